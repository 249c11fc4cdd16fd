//! What a namespace takes in one node's store: its keys, and the bytes of its rows. Local, and not replicated.
//!
//! A [`Count`] goes through the records of a namespace in the order of their keys, a bounded step at a time, while commits go on
//! between the steps. Invariant: it holds exactly what is stored before its [`Place`], in every state of the store that is
//! committed: a step adds what it passes, and [`Counts::change`] adds what a batch changes before that place and leaves out
//! what lies beyond it, which the steps come to. Once the last record is passed, it is the count of all, and stays so.
//!
//! That needs each batch told before it is written, in order, and no step between the two.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use crate::codec::CodecError;
use crate::ids::{Key, Namespace, RecordId};
use crate::keys;
use crate::store::{Batch, Family, StoreError, StoreRead};

/// What a namespace takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Records of which rows are stored. One that is deleted counts until its rows are swept.
    pub keys: u64,
    /// Bytes of rows, keys and values, as stored and before compression.
    pub bytes: u64,
}

/// Counts of some namespaces.
#[derive(Debug, Default)]
pub struct Counts(BTreeMap<Namespace, Count>);

/// One namespace's count.
#[derive(Debug, Default)]
struct Count {
    /// Sums of differences in the order of the batch's keys, so they may be below zero in between.
    keys: i64,
    bytes: i64,
    /// How far it is; `None` at the end.
    place: Option<Place>,
}

/// A place between two rows, in the order of records' keys and then of rows: all before it is counted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Place {
    /// The record's key.
    record: Vec<u8>,
    /// The first row that is not counted; empty if the record's mark is not counted either.
    row: Vec<u8>,
}

impl Place {
    fn is_after(&self, record: &[u8], row: &[u8]) -> bool {
        (record, row) < (self.record.as_slice(), self.row.as_slice())
    }
}

impl Counts {
    /// Counts these namespaces and no others: what is counted of one stays, a new one is counted from its first record on.
    pub fn follow<'a>(&mut self, namespaces: impl Iterator<Item = &'a Namespace>) {
        let mut before = std::mem::take(&mut self.0);
        let begun = || Count { place: Some(Place::default()), ..Count::default() };
        let follow =
            |namespace: &Namespace| (namespace.clone(), before.remove(namespace).unwrap_or_else(begun));
        self.0 = namespaces.map(follow).collect();
    }

    /// Whether none is counted.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What namespaces take that are counted to their ends.
    pub fn usages(&self) -> impl Iterator<Item = (&Namespace, Usage)> {
        self.0.iter().filter_map(|(namespace, count)| Some((namespace, count.usage()?)))
    }

    /// What a namespace takes; `None` if it is not counted, or not to its end yet.
    pub fn usage(&self, namespace: &Namespace) -> Option<Usage> {
        self.0.get(namespace)?.usage()
    }

    /// Adds what a batch changes. Before it is committed: the store is as the batch finds it. Returns the namespaces whose
    /// counts it changed.
    pub fn change(
        &mut self,
        before: &impl StoreRead,
        batch: &Batch,
    ) -> Result<BTreeSet<Namespace>, StoreError> {
        let mut changed = BTreeSet::new();
        for (family, key, value) in batch.iter() {
            let names = match family {
                Family::Keys => key,
                Family::Rows => key.get(10..).unwrap_or_default(),
                _ => continue,
            };
            let mut names = names.split(|&byte| byte == 0);
            let (Some(namespace), Some(record)) = (names.next(), names.next()) else { continue };
            let named = std::str::from_utf8(namespace).ok().and_then(|name| Namespace::new(name).ok());
            let Some(namespace) = named else { continue };
            let Some(count) = self.0.get_mut(&namespace) else { continue };
            let row = if family == Family::Rows { key } else { &[] };
            if count.place.as_ref().is_some_and(|place| !place.is_after(record, row)) {
                continue;
            }
            let size = |value: &[u8]| (key.len() + value.len()) as i64;
            let had = before.get(family, key)?;
            if family == Family::Keys {
                count.keys += i64::from(value.is_some()) - i64::from(had.is_some());
            } else {
                count.bytes += value.map_or(0, size) - had.as_deref().map_or(0, size);
            }
            changed.insert(namespace);
        }
        Ok(changed)
    }

    /// Passes over up to so many rows and marks, at least one. Tells whether there is more to be passed.
    pub fn step(&mut self, store: &impl StoreRead, partitions: u16, most: usize) -> Result<bool, StoreError> {
        let mut left = most.max(1);
        for (namespace, count) in &mut self.0 {
            while left > 0 && count.place.is_some() {
                left = left.saturating_sub(count.record(store, namespace, partitions, left)?);
            }
        }
        Ok(self.0.values().any(|count| count.place.is_some()))
    }
}

impl Count {
    fn usage(&self) -> Option<Usage> {
        let sum = |sum: i64| u64::try_from(sum).unwrap_or(0);
        self.place.is_none().then(|| Usage { keys: sum(self.keys), bytes: sum(self.bytes) })
    }

    /// Passes over rows of one record, or moves to the next. Returns how much was looked at.
    fn record(
        &mut self,
        store: &impl StoreRead,
        namespace: &Namespace,
        partitions: u16,
        most: usize,
    ) -> Result<usize, StoreError> {
        let Some(place) = self.place.take() else { return Ok(0) };
        let marks = keys::key_marks(namespace);
        if place.row.is_empty() {
            let from = [marks.as_slice(), &place.record].concat();
            let Some((mark, _)) = store.first(Family::Keys, &from, &keys::after_prefix(&marks))? else {
                return Ok(1);
            };
            self.keys += 1;
            let record = mark[marks.len()..].to_vec();
            // The mark sorts before all rows, as a row's key that is empty.
            self.place = Some(Place { record, row: vec![0] });
            return Ok(1);
        }
        let malformed = |what: String| StoreError::damaged("keys")(CodecError::Malformed(what));
        let key = String::from_utf8(place.record.clone()).map_err(|error| malformed(error.to_string()))?;
        let key = Key::new(key).map_err(|error| malformed(error.to_string()))?;
        let id = RecordId { namespace: namespace.clone(), key };
        let prefix = keys::record_prefix(id.partition(partitions), &id);
        let from = prefix.clone().max(place.row);
        let (mut passed, mut next) = (0, None);
        store.scan(Family::Rows, &from, &keys::after_prefix(&prefix), &mut |row, value| {
            if passed == most {
                next = Some(row.to_vec());
                return ControlFlow::Break(());
            }
            passed += 1;
            self.bytes += (row.len() + value.len()) as i64;
            ControlFlow::Continue(())
        })?;
        self.place = Some(match next {
            Some(row) => Place { record: place.record, row },
            // No key holds a zero byte, so this comes right after the record.
            None => Place { record: [place.record.as_slice(), &[0]].concat(), row: Vec::new() },
        });
        Ok(passed.max(1))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::context::Dot;
    use crate::ids::{Field, ReplicaId};
    use crate::row::FieldType;
    use crate::store::MemStore;

    const PARTITIONS: u16 = 4;

    fn namespace(i: u8) -> Namespace {
        Namespace::new(["a", "ab", "b"][usize::from(i)]).unwrap()
    }

    fn record(ns: u8, key: u8) -> RecordId {
        let key = ["k", "k0", "k\u{1F600}", "l", "m"][usize::from(key)];
        RecordId { namespace: namespace(ns), key: Key::new(key).unwrap() }
    }

    fn row(record: &RecordId, slot: u8) -> Vec<u8> {
        let prefix = keys::record_prefix(record.partition(PARTITIONS), record);
        let dot = Dot { replica: ReplicaId(1), counter: 1 };
        keys::row_key(&prefix, &Field::new("f").unwrap(), FieldType::SET, &[slot], dot)
    }

    #[derive(Debug, Clone)]
    enum Do {
        /// A batch of rows put with so many bytes, or deleted.
        Commit(Vec<(u8, u8, u8, Option<u8>)>),
        Step(usize),
        Follow(Vec<u8>),
    }

    fn deeds() -> impl Strategy<Value = Vec<Do>> {
        let change = (0..3u8, 0..5u8, 0..4u8, prop::option::weighted(0.6, 0..40u8));
        let deed = prop_oneof![
            4 => prop::collection::vec(change, 1..6).prop_map(Do::Commit),
            3 => (1..4usize).prop_map(Do::Step),
            1 => prop::collection::vec(0..3u8, 0..3).prop_map(Do::Follow),
        ];
        prop::collection::vec(deed, 1..60)
    }

    proptest! {
        /// However steps and commits come between each other, what is counted to its end is what is there.
        #[test]
        fn counts_are_what_is_stored(deeds in deeds()) {
            let mut store = MemStore::default();
            let mut counts = Counts::default();
            let mut rows: BTreeMap<(u8, u8), BTreeMap<u8, u8>> = BTreeMap::new();
            for deed in deeds.into_iter().chain([Do::Follow(vec![0, 1, 2]), Do::Step(10_000)]) {
                match deed {
                    Do::Commit(changes) => {
                        let mut batch = Batch::default();
                        for (ns, key, slot, value) in changes {
                            let (id, of_record) = (record(ns, key), rows.entry((ns, key)).or_default());
                            match value {
                                Some(bytes) => {
                                    batch.put(Family::Rows, row(&id, slot), vec![0; usize::from(bytes)]);
                                    of_record.insert(slot, bytes);
                                    batch.put(Family::Keys, keys::key_mark(&id), vec![1]);
                                }
                                None => {
                                    batch.delete(Family::Rows, row(&id, slot));
                                    of_record.remove(&slot);
                                    if of_record.is_empty() {
                                        batch.delete(Family::Keys, keys::key_mark(&id));
                                    }
                                }
                            }
                        }
                        counts.change(&store, &batch).unwrap();
                        store.commit(batch);
                    }
                    Do::Step(most) => {
                        counts.step(&store, PARTITIONS, most).unwrap();
                    }
                    Do::Follow(namespaces) => {
                        let namespaces: Vec<Namespace> = namespaces.into_iter().map(namespace).collect();
                        counts.follow(namespaces.iter());
                    }
                }
                for ns in 0..3 {
                    let Some(usage) = counts.usage(&namespace(ns)) else { continue };
                    let live = rows.iter().filter(|((of, _), rows)| *of == ns && !rows.is_empty());
                    let bytes = live.clone().flat_map(|((ns, key), rows)| {
                        rows.iter().map(|(slot, bytes)| row(&record(*ns, *key), *slot).len() + usize::from(*bytes))
                    });
                    let there = Usage { keys: live.clone().count() as u64, bytes: bytes.sum::<usize>() as u64 };
                    prop_assert_eq!(usage, there);
                }
            }
            for ns in 0..3 {
                prop_assert!(counts.usage(&namespace(ns)).is_some());
            }
        }
    }
}
