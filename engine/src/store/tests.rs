//! The store against its model, [`MemStore`]: any history of batches, flushes, compactions and restarts reads
//! the same, over few keys that differ around the length of a record's prefix.

use std::ops::ControlFlow;

use godwit_core::store::MemStore;
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

type Entries = Vec<(Vec<u8>, Vec<u8>)>;

#[derive(Debug, Clone)]
enum Step {
    Commit(Vec<(Family, Vec<u8>, Option<u8>)>),
    Flush,
    Compact,
    Reopen,
}

#[derive(Debug, Clone)]
struct Query {
    family: Family,
    from: Vec<u8>,
    to: Vec<u8>,
    entries_max: usize,
}

/// A key of 0 to 13 bytes: a few records' prefixes, some cut short, with short tails.
fn key() -> impl Strategy<Value = Vec<u8>> {
    let edge = prop_oneof![Just(0u8), Just(1), Just(0xff)];
    let tail = prop::collection::vec(prop_oneof![Just(0u8), Just(7), Just(0xff)], 0..4);
    (edge.clone(), edge, 0..=RECORD_PREFIX_BYTES + 3, tail).prop_map(|(first, last, cut, tail)| {
        let mut key = vec![first; RECORD_PREFIX_BYTES - 1];
        key.push(last);
        key.truncate(cut);
        if key.len() == RECORD_PREFIX_BYTES {
            key.extend(tail);
        }
        key
    })
}

fn family() -> impl Strategy<Value = Family> {
    prop_oneof![4 => Just(Family::Rows), 1 => Just(Family::Log), 1 => Just(Family::Keys), 1 => Just(Family::Meta)]
}

fn step() -> impl Strategy<Value = Step> {
    let change = (family(), key(), prop::option::weighted(0.7, any::<u8>()));
    prop_oneof![
        8 => prop::collection::vec(change, 0..12).prop_map(Step::Commit),
        3 => Just(Step::Flush),
        1 => Just(Step::Compact),
        1 => Just(Step::Reopen),
    ]
}

fn query() -> impl Strategy<Value = Query> {
    let range = (key(), key(), any::<bool>()).prop_map(|(from, to, prefix)| {
        let to = if prefix { godwit_core::keys::after_prefix(&from) } else { to };
        (from, to)
    });
    (family(), range, 1..20usize).prop_map(|(family, (from, to), entries_max)| Query {
        family,
        from,
        to,
        entries_max,
    })
}

fn answer(store: &impl StoreRead, query: &Query) -> Entries {
    let mut found = Entries::new();
    store
        .scan(query.family, &query.from, &query.to, &mut |key, value| {
            found.push((key.to_vec(), value.to_vec()));
            if found.len() == query.entries_max { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .unwrap();
    found
}

fn flush(store: &RocksStore) {
    Family::ALL.iter().for_each(|&family| store.shared.db.flush_cf(store.family(family)).unwrap());
}

fn compact(store: &RocksStore) {
    for family in Family::ALL {
        store.shared.db.compact_range_cf(store.family(family), None::<&[u8]>, None::<&[u8]>);
    }
}

fn batch(changes: Vec<(Family, Vec<u8>, Option<u8>)>) -> Batch {
    let mut batch = Batch::default();
    for (family, key, change) in changes {
        match change {
            Some(value) => batch.put(family, key, vec![value]),
            None => batch.delete(family, key),
        }
    }
    batch
}

/// A store of its own directory, with the model that holds the same.
struct Pair {
    _dir: TempDir,
    store: Option<RocksStore>,
    model: MemStore,
}

impl Pair {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let store = RocksStore::open(dir.path(), &StoreOptions::default()).unwrap();
        let mut model = MemStore::default();
        // The store's own key.
        let mut format = Batch::default();
        format.put(Family::Meta, godwit_core::keys::FORMAT.to_vec(), vec![FORMAT_VERSION]);
        model.commit(format);
        Self { _dir: dir, store: Some(store), model }
    }

    fn store(&self) -> &RocksStore {
        self.store.as_ref().unwrap()
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Commit(changes) => {
                let batch = batch(changes);
                self.model.commit(batch.clone());
                self.store().commit(&batch).unwrap();
            }
            Step::Flush => flush(self.store()),
            Step::Compact => compact(self.store()),
            Step::Reopen => {
                let path = self.store().path().to_path_buf();
                self.store = None;
                self.store = Some(RocksStore::open(path, &StoreOptions::default()).unwrap());
            }
        }
    }

    fn check(&self, store: &impl StoreRead, queries: &[Query]) -> Result<(), TestCaseError> {
        for query in queries {
            prop_assert_eq!(answer(store, query), answer(&self.model, query), "{:?}", query);
            for key in [&query.from, &query.to] {
                let (found, expected) = (store.get(query.family, key), self.model.get(query.family, key));
                prop_assert_eq!(found, expected, "{:?} {:?}", query.family, key);
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn reads_as_the_model(
        steps in prop::collection::vec((step(), prop::collection::vec(query(), 0..8)), 1..16),
        queries in prop::collection::vec(query(), 1..80),
    ) {
        let mut pair = Pair::new();
        for (step, queries) in steps {
            pair.step(step);
            pair.check(pair.store(), &queries)?;
        }
        for step in [Step::Flush, Step::Compact, Step::Reopen] {
            pair.step(step);
            pair.check(pair.store(), &queries)?;
        }
    }

    #[test]
    fn a_snapshot_does_not_change(
        before in prop::collection::vec(step(), 0..8),
        after in prop::collection::vec(step(), 1..8),
        queries in prop::collection::vec(query(), 1..40),
    ) {
        let mut pair = Pair::new();
        before.into_iter().for_each(|step| pair.step(step));
        let store = pair.store().clone();
        let snapshot = store.snapshot();
        for step in after {
            match step {
                Step::Commit(changes) => store.commit(&batch(changes)).unwrap(),
                Step::Flush => flush(&store),
                // A snapshot holds the store open, so there is no restart.
                Step::Compact | Step::Reopen => compact(&store),
            }
            pair.check(&snapshot, &queries)?;
        }
    }
}

#[test]
fn only_bounds_of_one_record_use_its_blooms() {
    let prefix = [5; RECORD_PREFIX_BYTES];
    let long = |tail: &[u8]| [&prefix[..], tail].concat();
    assert!(within_one_record(&long(b"a"), &long(b"b")));
    assert!(within_one_record(&prefix, &long(b"b")));
    assert!(!within_one_record(&prefix[..9], &long(b"b")));
    assert!(!within_one_record(&long(b"a"), &prefix[..9]));
    assert!(!within_one_record(&prefix, &godwit_core::keys::after_prefix(&prefix)));
}

/// Many records in several tables: a scan over prefixes finds all, and blooms do rule out absent records.
#[test]
fn scans_cross_records_and_tables() {
    let pair = Pair::new();
    let store = pair.store();
    let key = |record: u64, row: u8| [&[0, 1][..], &record.to_be_bytes(), &[row; 3]].concat();
    for table in 0..4u64 {
        let mut batch = Batch::default();
        for record in (table..400).step_by(4) {
            (0..3).for_each(|row| batch.put(Family::Rows, key(record * 2, row), vec![row]));
        }
        store.commit(&batch).unwrap();
        flush(store);
    }
    let rows = |from: &[u8], to: &[u8]| {
        let query =
            Query { family: Family::Rows, from: from.to_vec(), to: to.to_vec(), entries_max: usize::MAX };
        answer(store, &query).len()
    };
    for () in [(), compact(store)] {
        assert_eq!(rows(&[0, 1], &[0, 2]), 1200);
        assert_eq!(rows(&key(3, 0), &key(9, 0)), 9);
        for record in 0..800u64 {
            let expected = if record.is_multiple_of(2) { 3 } else { 0 };
            assert_eq!(rows(&key(record, 0), &key(record, 9)), expected, "record {record}");
        }
    }
}

#[test]
fn stats_tell_sizes() {
    let pair = Pair::new();
    let store = pair.store();
    let put = |n: u8| (Family::Rows, vec![n; 12], Some(n));
    store.commit(&batch((0..50).map(put).collect())).unwrap();
    flush(store);
    let stats = store.stats().unwrap();
    assert_eq!((stats.rows_estimated, stats.records_estimated), (50, 0));
    assert!(stats.table_bytes > 0 && stats.memtable_bytes > 0, "{stats:?}");
}

#[test]
fn a_reader_sees_what_the_store_does_beyond_many_deleted_rows() {
    let dir = TempDir::new().unwrap();
    let store = RocksStore::open(dir.path(), &StoreOptions::default()).unwrap();
    let row = |record: u8, slot: u8| [[record; RECORD_PREFIX_BYTES].as_slice(), &[slot]].concat();
    let mut batch = Batch::default();
    for record in 1..4 {
        (0..=250).for_each(|slot| batch.put(Family::Rows, row(record, slot), vec![record]));
    }
    store.commit(&batch).unwrap();
    let mut batch = Batch::default();
    // Beyond what the kept iterator passes over: from the start of a range, and amid one.
    (0..100).chain(110..240).for_each(|slot| batch.delete(Family::Rows, row(2, slot)));
    store.commit(&batch).unwrap();

    let reader = store.reader();
    let all = |store: &dyn StoreRead, from: &[u8], to: &[u8], most: usize| {
        let mut found: Entries = Vec::new();
        let visit: Visit<'_> = &mut |key, value| {
            found.push((key.to_vec(), value.to_vec()));
            if found.len() == most { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        store.scan(Family::Rows, from, to, visit).unwrap();
        found
    };
    for record in 0..5 {
        for (from, to) in [(0, 255), (0, 50), (50, 105), (100, 101), (105, 245), (245, 245), (109, 112)] {
            for most in [1, 7, usize::MAX] {
                let (from, to) = (row(record, from), row(record, to));
                assert_eq!(all(&reader, &from, &to, most), all(&store, &from, &to, most));
            }
        }
    }
    assert_eq!(
        all(&reader, &row(1, 0), &row(3, 9), usize::MAX),
        all(&store, &row(1, 0), &row(3, 9), usize::MAX)
    );
    assert_eq!(reader.get(Family::Rows, &row(2, 105)), store.get(Family::Rows, &row(2, 105)));
    assert_eq!(reader.get(Family::Rows, &row(2, 50)), Ok(None));
}

/// Of two neighbouring logs one loses what is below an entry, whatever files it is in: nothing else goes.
#[test]
fn what_is_discarded_is_gone_and_its_neighbours_stay() {
    use godwit_core::ids::PartitionId;
    use godwit_core::keys::{log_checkpoint, log_entry, log_garbage};
    let present = |store: &RocksStore, id: u16, first: u64| {
        let (entry, checkpoint) = (log_entry(PartitionId(id), 0), log_checkpoint(PartitionId(id), 0));
        let until = |end: u64| log_entry(PartitionId(id), end);
        let range = |from: &[u8], to: &[u8]| {
            answer(
                store,
                &Query { family: Family::Log, from: from.to_vec(), to: to.to_vec(), entries_max: 1000 },
            )
            .len() as u64
        };
        let below = range(&entry, &until(first));
        (below, range(&until(first), &checkpoint), range(&checkpoint, &log_entry(PartitionId(id + 1), 0)))
    };
    // In one file, in files that end right before and right at the first entry, and not in any file.
    for flushes in [vec![], vec![200], vec![59, 60], (1..=200).step_by(7).collect()] {
        let pair = Pair::new();
        let store = pair.store();
        for index in 1..=200 {
            let mut changes = Batch::default();
            for id in 3..=5 {
                changes.put(Family::Log, log_entry(PartitionId(id), index), vec![7; 50]);
                if index % 10 == 0 {
                    changes.put(Family::Log, log_checkpoint(PartitionId(id), index), vec![8]);
                }
            }
            store.commit(&changes).unwrap();
            if flushes.contains(&index) {
                flush(store);
            }
        }
        compact(store);
        let mut since = 0;
        for first in [1, 61, 61, 121] {
            for garbage in log_garbage(PartitionId(4), since, first) {
                store.discard(Family::Log, garbage.start(), garbage.end()).unwrap();
            }
            since = first;
            let checkpoints = if first == 1 { 20 } else { 21 - (first - 1) / 10 };
            assert_eq!(present(store, 4, first), (0, 201 - first, checkpoints), "{flushes:?}, {first}");
        }
        assert_eq!(present(store, 3, 121), (120, 80, 20));
        assert_eq!(present(store, 5, 121), (120, 80, 20));
    }
}

/// The bytes go from the disk.
#[test]
fn discarding_frees_the_disk() {
    let pair = Pair::new();
    let store = pair.store();
    for table in 0..8u8 {
        let mut changes = Batch::default();
        (0..64).for_each(|i| changes.put(Family::Log, vec![table, i], noise(table, i)));
        store.commit(&changes).unwrap();
        flush(store);
    }
    compact(store);
    let before = store.stats().unwrap().table_bytes;
    store.discard(Family::Log, &[0, 0], &[7, 62]).unwrap();
    compact(store);
    assert!(store.stats().unwrap().table_bytes < before / 4, "{before}");
    assert_eq!(store.get(Family::Log, &[7, 63]).unwrap(), Some(noise(7, 63)));
    assert_eq!(store.get(Family::Log, &[7, 62]).unwrap(), None);
}

/// Bytes that do not compress.
fn noise(table: u8, i: u8) -> Vec<u8> {
    let mut rng = godwit_core::rng::Rng::new(u64::from(table) << 8 | u64::from(i));
    (0..512).map(|_| rng.below(256) as u8).collect()
}
