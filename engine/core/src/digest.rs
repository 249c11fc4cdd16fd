//! Digests of a partition's logical state: equal on two replicas exactly if the live rows are equal byte for byte, whatever
//! each has beside them (logs, what is staged, what it keeps about fields).
//!
//! Replicas whose contexts are equal hold equal rows, so equal contexts with different digests are a broken promise, not a
//! delay. [`range`] and [`list`] find out where: a range ends at a row's key, so another replica can be asked for the same one.
//! All of it reads what it digests, so it is for proofs (tests, the simulator, the demo, `godwit verify`), not for steady
//! comparison.

use std::ops::ControlFlow;

use crate::codec;
use crate::context::VersionVector;
use crate::ids::{Field, PartitionId, RecordId};
use crate::keys;
use crate::repair::{DeadRows, Settled};
use crate::row::FieldType;
use crate::store::{Family, StoreError, StoreRead, Visit};

/// BLAKE3 over the context and every live row of a partition, in key order: what a clear took and no sweep has removed yet
/// does not count.
pub fn partition(
    store: &impl StoreRead,
    id: PartitionId,
    context: &VersionVector,
) -> Result<[u8; 32], StoreError> {
    let mut hasher = blake3::Hasher::new_derive_key("godwit 2026 partition state");
    update(&mut hasher, &codec::encode(1, context));
    each_live(store, id, &Range::default(), &mut |key, value| {
        update(&mut hasher, key);
        update(&mut hasher, value);
        ControlFlow::Continue(())
    })?;
    Ok(*hasher.finalize().as_bytes())
}

/// Some of a partition's rows: from a key on and before another one. Empty: from the first, and to the last.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Range<'a> {
    /// The key of the first row that can be in it.
    pub from: &'a [u8],
    /// The key before which all are.
    pub to: &'a [u8],
}

/// The digest of a range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeDigest {
    /// How many live rows there are.
    pub rows: u64,
    /// BLAKE3 over them.
    pub digest: [u8; 32],
    /// The key of the first live row that was not taken, if there are more.
    pub next: Option<Vec<u8>>,
}

/// A live row, told by a hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedRow {
    /// Its key.
    pub key: Vec<u8>,
    /// The record.
    pub record: RecordId,
    /// The field.
    pub field: Field,
    /// Its type.
    pub ty: FieldType,
    /// BLAKE3 over its value.
    pub digest: [u8; 32],
}

/// The digest of at most so many live rows of a range.
pub fn range(
    store: &impl StoreRead,
    id: PartitionId,
    within: &Range<'_>,
    rows_max: u64,
) -> Result<RangeDigest, StoreError> {
    let mut hasher = blake3::Hasher::new_derive_key("godwit 2026 range of rows");
    let (mut rows, mut next) = (0, None);
    each_live(store, id, within, &mut |key, value| {
        if rows == rows_max {
            next = Some(key.to_vec());
            return ControlFlow::Break(());
        }
        rows += 1;
        update(&mut hasher, key);
        update(&mut hasher, value);
        ControlFlow::Continue(())
    })?;
    Ok(RangeDigest { rows, digest: *hasher.finalize().as_bytes(), next })
}

/// At most so many live rows of a range, and the key of the first one that was not taken, if there are more.
pub fn list(
    store: &impl StoreRead,
    id: PartitionId,
    within: &Range<'_>,
    rows_max: usize,
) -> Result<(Vec<ListedRow>, Option<Vec<u8>>), StoreError> {
    let (mut rows, mut next) = (Vec::new(), None);
    let mut outcome = Ok(());
    each_live(store, id, within, &mut |key, value| {
        if rows.len() == rows_max {
            next = Some(key.to_vec());
            return ControlFlow::Break(());
        }
        match keys::parse_row_key(key) {
            Ok(keys::RowKey { record, field, ty, .. }) => {
                let digest = *blake3::hash(value).as_bytes();
                rows.push(ListedRow { key: key.to_vec(), record, field, ty, digest });
                ControlFlow::Continue(())
            }
            Err(error) => {
                outcome = Err(StoreError::damaged("rows")(error));
                ControlFlow::Break(())
            }
        }
    })?;
    outcome?;
    Ok((rows, next))
}

/// Visits the live rows of a range in key order.
fn each_live(
    store: &impl StoreRead,
    id: PartitionId,
    within: &Range<'_>,
    visit: Visit<'_>,
) -> Result<(), StoreError> {
    let store = &Settled::open(store)?;
    let first = keys::partition_prefix(id);
    let end = keys::after_prefix(&first);
    let from = within.from.max(&first);
    let to = if within.to.is_empty() { &end } else { within.to.min(&end) };
    if from >= to {
        return Ok(());
    }
    let mut dead = DeadRows::open(store, &first)?;
    let mut outcome = Ok(());
    store.scan(Family::Rows, from, to, &mut |key, value| match dead.takes(store, key, value) {
        Ok(false) => visit(key, value),
        Ok(true) => ControlFlow::Continue(()),
        Err(error) => {
            outcome = Err(error);
            ControlFlow::Break(())
        }
    })?;
    outcome
}

fn update(hasher: &mut blake3::Hasher, bytes: &[u8]) {
    // The length first, so that no two sequences of values feed the same bytes.
    hasher.update(&(bytes.len() as u64).to_le_bytes());
    hasher.update(bytes);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::context::Dot;
    use crate::fields::FieldState;
    use crate::ids::{Key, Namespace, ReplicaId};
    use crate::row::RowValue;
    use crate::store::{Batch, MemStore};
    use crate::time::Hlc;
    use proptest::prelude::*;

    const HOME: PartitionId = PartitionId(3);

    type Rows = BTreeMap<Vec<u8>, Vec<u8>>;

    fn record(key: u8) -> RecordId {
        RecordId { namespace: Namespace::new("ns").unwrap(), key: Key::new(format!("k{key}")).unwrap() }
    }

    fn field(name: u8) -> Field {
        Field::new(format!("f{name}")).unwrap()
    }

    /// A row of a set by its parts, all small, so that rows share records and fields.
    fn row(id: PartitionId, (key, name, slot, counter): (u8, u8, u8, u64)) -> (Vec<u8>, Vec<u8>) {
        let dot = Dot { replica: ReplicaId(7), counter };
        let prefix = keys::record_prefix(id, &record(key));
        let value = RowValue { counter, hlc: Hlc(counter), payload: vec![] };
        (keys::row_key(&prefix, &field(name), FieldType::SET, &[slot], dot), value.encode())
    }

    fn parts() -> impl Strategy<Value = (u8, u8, u8, u64)> {
        (0..4u8, 0..3u8, any::<u8>(), 1..9u64)
    }

    fn store(rows: &Rows) -> MemStore {
        let mut batch = Batch::default();
        rows.iter().for_each(|(key, value)| batch.put(Family::Rows, key.clone(), value.clone()));
        // Beside it is another partition.
        for id in [PartitionId(2), PartitionId(4)] {
            let (key, value) = row(id, (0, 0, 0, 1));
            batch.put(Family::Rows, key, value);
        }
        let mut store = MemStore::default();
        store.commit(batch);
        store
    }

    /// All ranges of so many rows, in order, and where each begins.
    fn ranges(store: &MemStore, rows_max: u64) -> Vec<(Vec<u8>, RangeDigest)> {
        let (mut all, mut from) = (Vec::new(), Vec::new());
        loop {
            let found = range(store, HOME, &Range { from: &from, to: &[] }, rows_max).unwrap();
            let next = found.next.clone();
            all.push((from, found));
            match next {
                Some(next) => from = next,
                None => return all,
            }
        }
    }

    fn whole(store: &MemStore) -> [u8; 32] {
        partition(store, HOME, &VersionVector::new()).unwrap()
    }

    proptest! {
        #[test]
        fn ranges_hold_every_row_once_and_end_at_the_same_keys_elsewhere(
            all in prop::collection::vec(parts(), 0..40), rows_max in 1..10u64
        ) {
            let rows: Rows = all.into_iter().map(|parts| row(HOME, parts)).collect();
            let (one, other) = (store(&rows), store(&rows));
            let ranges = ranges(&one, rows_max);
            prop_assert_eq!(ranges.iter().map(|(_, found)| found.rows).sum::<u64>(), rows.len() as u64);
            let mut listed = Vec::new();
            for (from, found) in &ranges {
                let to = found.next.as_deref().unwrap_or_default();
                let within = Range { from, to };
                let elsewhere = range(&other, HOME, &within, u64::MAX).unwrap();
                prop_assert_eq!((elsewhere.rows, elsewhere.digest, elsewhere.next), (found.rows, found.digest, None));
                let (page, next) = list(&other, HOME, &within, rows_max as usize).unwrap();
                prop_assert_eq!(next, None);
                listed.extend(page.into_iter().map(|row| row.key));
            }
            prop_assert_eq!(listed, rows.into_keys().collect::<Vec<_>>());
        }

        #[test]
        fn a_row_that_differs_is_in_one_range_and_has_a_name(
            all in prop::collection::vec(parts(), 1..40), at: prop::sample::Index, rows_max in 1..10u64, gone: bool
        ) {
            let rows: Rows = all.iter().map(|parts| row(HOME, *parts)).collect();
            let victim = all[at.index(all.len())];
            let (key, value) = row(HOME, victim);
            let mut changed = rows.clone();
            match gone {
                true => drop(changed.remove(&key)),
                false => drop(changed.insert(key.clone(), [value.as_slice(), &[0]].concat())),
            }
            let (one, other) = (store(&rows), store(&changed));
            prop_assert_ne!(whole(&one), whole(&other));
            let mut differ = 0;
            for (from, found) in ranges(&one, rows_max) {
                let to = found.next.unwrap_or_default();
                let within = Range { from: &from, to: &to };
                if range(&other, HOME, &within, u64::MAX).unwrap().digest == found.digest {
                    continue;
                }
                differ += 1;
                let (page, _) = list(&one, HOME, &within, usize::MAX).unwrap();
                let named = page.into_iter().find(|row| row.key == key).unwrap();
                prop_assert_eq!((named.record, named.field, named.ty), (record(victim.0), field(victim.1), FieldType::SET));
            }
            prop_assert_eq!(differ, 1);
        }

        #[test]
        fn what_a_clear_took_does_not_count(all in prop::collection::vec(parts(), 0..40), cleared: (u8, u8), upto in 0..9u64) {
            let (key, name) = (cleared.0 % 4, cleared.1 % 3);
            let is_left = |parts: &(u8, u8, u8, u64)| (parts.0, parts.1) != (key, name) || parts.3 > upto;
            // Of two rows under one key the last one stands.
            let rows: BTreeMap<Vec<u8>, (u8, u8, u8, u64)> = all.into_iter().map(|parts| (row(HOME, parts).0, parts)).collect();
            let left: Rows = rows.values().filter(|parts| is_left(parts)).map(|parts| row(HOME, *parts)).collect();
            let mut not_swept = store(&rows.values().map(|parts| row(HOME, *parts)).collect());
            let mut state = FieldState::default();
            state.dead = [Dot { replica: ReplicaId(7), counter: upto }].into_iter().filter(|dot| dot.counter > 0).collect();
            let at = keys::type_prefix(&keys::record_prefix(HOME, &record(key)), &field(name), FieldType::SET);
            let mut batch = Batch::default();
            batch.put(Family::Fields, at, state.encode());
            not_swept.commit(batch);
            let swept = store(&left);
            prop_assert_eq!(whole(&not_swept), whole(&swept));
            prop_assert_eq!(ranges(&not_swept, 3), ranges(&swept, 3));
            prop_assert_eq!(list(&not_swept, HOME, &Range::default(), 9), list(&swept, HOME, &Range::default(), 9));
        }
    }

    #[test]
    fn ranges_stay_in_their_partition() {
        let (key, value) = row(HOME, (1, 1, 1, 1));
        let store = store(&Rows::from([(key.clone(), value)]));
        let beyond = keys::partition_prefix(PartitionId(9));
        for within in [Range { from: &[0], to: &beyond }, Range { from: &key, to: &[] }, Range::default()] {
            assert_eq!(range(&store, HOME, &within, 10).unwrap().rows, 1);
        }
        for within in [
            Range { from: &beyond, to: &[] },
            Range { from: &[], to: &key },
            Range { from: &beyond, to: &[0] },
        ] {
            assert_eq!(range(&store, HOME, &within, 10).unwrap().rows, 0);
        }
    }
}
