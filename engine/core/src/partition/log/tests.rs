//! What the log promises by [`Partition::reaches`] it serves, whatever was dropped, trimmed and opened again.

use super::*;
use crate::context::Dot;
use crate::ids::{Field, Key, Namespace, RecordId, ReplicaId};
use crate::json::Json;
use crate::op::{Limits, Op, Terms, Write};
use crate::partition::{Committed, Received, Sizes};
use crate::store::{Batch, MemStore};
use crate::time::Hlc;
use proptest::prelude::*;

const ID: PartitionId = PartitionId(3);

struct Bench {
    store: MemStore,
    partition: Partition,
    replica: ReplicaId,
    sizes: Sizes,
}

impl Bench {
    fn new(replica: u64, sizes: Sizes) -> Self {
        let (store, replica) = (MemStore::default(), ReplicaId(replica));
        let partition = Partition::open_with(&store, ID, replica, sizes.clone()).unwrap();
        Self { store, partition, replica, sizes }
    }

    fn within<T>(&mut self, run: impl FnOnce(&mut Partition, &mut Txn<'_, MemStore>) -> T) -> T {
        let mut batch = Batch::default();
        let done = run(&mut self.partition, &mut Txn::new(&self.store, &mut batch));
        self.store.commit(batch);
        done
    }

    fn commit(&mut self, bytes: usize, now_ms: u64) -> EncodedDelta {
        let record = RecordId { namespace: Namespace::new("ns").unwrap(), key: Key::new("k").unwrap() };
        let value = Json::parse(&format!("{:?}", "x".repeat(bytes))).unwrap();
        let ops = vec![Op::Set { field: Field::new("f").unwrap(), value }];
        let (terms, limits) = (Terms::default(), Limits::default());
        let stamp = || Hlc(now_ms << 16);
        let done = self.within(|partition, txn| {
            partition.commit(txn, &[Write { record, ops }], &terms, &limits, (now_ms, 0), stamp)
        });
        let Ok(Committed::Applied(applied)) = done else { panic!("{done:?}") };
        applied.encoded
    }

    fn receive(&mut self, encoded: &EncodedDelta, now_ms: u64) {
        let delta = crate::delta::Delta::decode(encoded).unwrap();
        let received = self.within(|partition, txn| {
            partition.receive(txn, delta, encoded.clone(), usize::MAX, (now_ms, 0)).unwrap()
        });
        assert!(matches!(received, Received::Applied(_)), "{received:?}");
    }

    fn truncate(&mut self, excess: u64, oldest_ms: u64) -> Option<u64> {
        self.within(|partition, txn| partition.truncate(txn, excess, oldest_ms).unwrap())
    }

    fn end_interval(&mut self, oldest_ms: u64, now_ms: u64) {
        self.within(|partition, txn| partition.end_interval(txn, oldest_ms, now_ms));
    }

    fn trim(&mut self) {
        self.store.trim(ID, self.partition.log_floor().first);
    }

    fn reopen(&mut self) {
        self.partition = Partition::open_with(&self.store, ID, self.replica, self.sizes.clone()).unwrap();
    }

    fn entries(&self, from: u64) -> Vec<LogEntry> {
        let mut found = Vec::new();
        read_log(&self.store, ID, from, |entry| {
            found.push(entry);
            ControlFlow::Continue(())
        })
        .unwrap();
        found
    }

    /// Bytes of the entries that are there, counted one by one.
    fn counted(&self) -> u64 {
        let entries = self.entries(self.partition.log_floor().first);
        entries.iter().map(|entry| entry.encoded.as_bytes().len() as u64).sum()
    }
}

fn sizes(checkpoint_entries: u64, checkpoint_bytes: u64) -> Sizes {
    Sizes { checkpoint_entries, checkpoint_bytes, ..Sizes::default() }
}

#[derive(Debug, Clone)]
enum Act {
    Own(usize),
    Theirs(usize),
    Truncate {
        excess: u64,
        age_ms: u64,
    },
    /// Ends an interval of this age.
    End(u64),
    Jump,
    Trim,
    Reopen,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        6 => (0usize..200).prop_map(Act::Own),
        6 => (0usize..200).prop_map(Act::Theirs),
        2 => (0u64..2000, 0u64..40).prop_map(|(excess, age_ms)| Act::Truncate { excess, age_ms }),
        1 => (0u64..40).prop_map(Act::End),
        1 => Just(Act::Jump),
        1 => Just(Act::Trim),
        1 => Just(Act::Reopen),
    ]
}

proptest! {
    /// The model is the list of all entries ever with the context after each, and what was taken on beside the log.
    #[test]
    fn what_is_promised_is_served(
        acts in prop::collection::vec(act(), 1..80), entries in 1u64..6, bytes in 100u64..2000,
    ) {
        let (mut here, mut there) = (Bench::new(1, sizes(entries, bytes)), Bench::new(2, sizes(entries, bytes)));
        let mut contexts = vec![VersionVector::new()];
        let mut all: Vec<EncodedDelta> = Vec::new();
        for (now, act) in acts.into_iter().enumerate() {
            let now = now as u64 + 1000;
            let is_entry = matches!(act, Act::Own(_) | Act::Theirs(_));
            match act {
                Act::Own(bytes) => all.push(here.commit(bytes, now)),
                Act::Theirs(bytes) => {
                    let encoded = there.commit(bytes, now);
                    here.receive(&encoded, now);
                    all.push(encoded);
                }
                Act::Truncate { excess, age_ms } => {
                    let (before, floor) = (here.partition.log_bytes(), here.partition.log_floor().clone());
                    let moved = here.truncate(excess, now - age_ms);
                    let dropped = before - here.partition.log_bytes();
                    prop_assert_eq!(moved.is_some(), floor.first != here.partition.log_floor().first);
                    prop_assert!(dropped >= excess || !here.partition.can_truncate());
                    prop_assert!(here.partition.log_oldest_ms().is_none_or(|ms| ms >= now - age_ms));
                }
                Act::End(age_ms) => here.end_interval(now - age_ms, now),
                Act::Jump => {
                    let context = here.partition.context().clone();
                    here.within(|partition, txn| partition.log_jumped(txn, &context));
                }
                Act::Trim => here.trim(),
                Act::Reopen => {
                    let before = (here.partition.log_floor().clone(), here.partition.log_bytes());
                    let oldest = here.partition.log_oldest_ms();
                    here.reopen();
                    prop_assert_eq!(before, (here.partition.log_floor().clone(), here.partition.log_bytes()));
                    prop_assert_eq!(oldest, here.partition.log_oldest_ms());
                }
            }
            if is_entry {
                contexts.push(here.partition.context().clone());
            }
            let floor = here.partition.log_floor().clone();
            prop_assert_eq!(here.partition.log_bytes(), here.counted());
            let there_are = here.entries(floor.first);
            prop_assert_eq!(there_are.len() as u64, here.partition.log_last() + 1 - floor.first);
            for asked in &contexts {
                if here.partition.reaches(asked) {
                    let from = here.partition.log_position(&here.store, |it| asked.covers_all(it)).unwrap();
                    prop_assert!(from >= floor.whole_from);
                    // Everything before is covered, so what follows brings the asker to the end.
                    let mut has = asked.clone();
                    for entry in here.entries(from) {
                        prop_assert!(entry.dots.continues(&has));
                        entry.dots.last_dots().for_each(|dot| has.advance(dot));
                    }
                    prop_assert_eq!(&has, here.partition.context());
                }
                let own = asked.get(ReplicaId(1));
                if let Some(from) = here.partition.own_log_position(&here.store, own).unwrap() {
                    prop_assert!(from >= floor.first);
                    let mut has: VersionVector = [Dot { replica: ReplicaId(1), counter: own }].into_iter().collect();
                    for dot in here.entries(from).iter().filter_map(|entry| entry.dots.only()) {
                        prop_assert!(dot.replica != ReplicaId(1) || dot.counter <= has.get(dot.replica) + 1);
                        has.advance(dot);
                    }
                    prop_assert_eq!(has.get(ReplicaId(1)), here.partition.own_counter());
                } else {
                    prop_assert!(contexts[floor.first as usize - 1].get(ReplicaId(1)) > own);
                }
            }
        }
    }
}

#[test]
fn the_log_is_cut_at_checkpoints_by_bytes_and_by_age() {
    let mut bench = Bench::new(1, sizes(4, 1 << 20));
    (0..10).for_each(|i| drop(bench.commit(100, 1000 + i)));
    assert_eq!(bench.partition.log_oldest_ms(), Some(1003));
    let all = bench.partition.log_bytes();
    assert_eq!(bench.truncate(0, 1003), None);
    assert_eq!(bench.truncate(1, 0), Some(5));
    let floor = bench.partition.log_floor().clone();
    assert_eq!((floor.first, floor.whole_from, floor.floor.get(ReplicaId(1))), (5, 5, 4));
    assert!(bench.partition.log_bytes() < all * 7 / 10);
    assert_eq!(bench.partition.log_bytes(), bench.counted());
    assert_eq!(bench.truncate(0, 2000), Some(9));
    // What follows the last checkpoint stays until its interval is ended.
    assert_eq!(bench.truncate(u64::MAX, u64::MAX), None);
    assert!(!bench.partition.can_truncate());
    assert_eq!(bench.partition.log_bytes(), bench.counted());
}

#[test]
fn an_interval_to_which_nothing_is_added_is_ended_by_age() {
    let mut bench = Bench::new(1, sizes(4, 1 << 20));
    (0..3).for_each(|i| drop(bench.commit(100, 1000 + i)));
    bench.end_interval(1002, 5000);
    assert!(!bench.partition.can_truncate(), "the last entry is of 1002");
    bench.end_interval(1003, 5000);
    assert_eq!((bench.partition.log_oldest_ms(), bench.truncate(0, 1003)), (Some(1002), Some(4)));
    assert_eq!((bench.partition.log_bytes(), bench.counted()), (0, 0));
    bench.trim();
    bench.reopen();
    assert_eq!(bench.partition.log_floor().first, 4);
    drop(bench.commit(100, 6000));
    // Opened again, it does not know of 6000.
    bench.reopen();
    bench.end_interval(7000, 7000);
    bench.end_interval(7000, 9000);
    assert!(!bench.partition.can_truncate());
    bench.end_interval(7001, 9000);
    assert_eq!((bench.truncate(0, 7001), bench.partition.log_bytes()), (Some(5), 0));
}

#[test]
fn an_interval_ends_where_it_has_grown_large() {
    let mut bench = Bench::new(1, sizes(1024, 1000));
    (0..20).for_each(|_| drop(bench.commit(600, 1)));
    assert_eq!(bench.truncate(1, 0), Some(3));
}

#[test]
fn a_jump_serves_only_those_who_have_what_was_taken_on() {
    let mut bench = Bench::new(1, sizes(2, 1 << 20));
    (0..5).for_each(|_| drop(bench.commit(10, 1)));
    let mut context = bench.partition.context().clone();
    let before = context.clone();
    context.advance(Dot { replica: ReplicaId(9), counter: 7 });
    bench.within(|partition, txn| partition.log_jumped(txn, &context));
    assert!(!bench.partition.reaches(&before) && bench.partition.reaches(&context));
    assert_eq!(bench.partition.own_log_position(&bench.store, 0).unwrap(), Some(1));
    // Intervals from before the jump are dropped without it being forgotten.
    assert_eq!(bench.truncate(u64::MAX, 0), Some(5));
    assert_eq!(bench.partition.log_floor(), &LogFloor { first: 5, whole_from: 5, floor: context });
}

/// Checkpoints of format 1, as the release before wrote them: at multiples of the interval, the context alone.
fn with_format_1(bench: &mut Bench, until: u64) {
    let mut batch = Batch::default();
    each_checkpoint(&bench.store, ID, 0, until, |it| {
        let bytes = codec::encode(CHECKPOINT_FORMAT_1, &it.context);
        batch.put(Family::Log, keys::log_checkpoint(ID, it.index), bytes);
        ControlFlow::Continue(())
    })
    .unwrap();
    bench.store.commit(batch);
    bench.reopen();
}

fn is_near(bench: &Bench) -> bool {
    bench.partition.log_bytes().abs_diff(bench.counted()) <= bench.counted() / 50
}

#[test]
fn checkpoints_of_format_1_are_estimated() {
    let mut bench = Bench::new(1, sizes(4, 1 << 20));
    (0..10).for_each(|_| drop(bench.commit(100, 1000)));
    with_format_1(&mut bench, 8);
    // All entries but the first are alike, so the estimate is good; their age is not known.
    assert!(is_near(&bench));
    assert_eq!((bench.partition.log_oldest_ms(), bench.truncate(0, u64::MAX)), (None, None));
    (0..2).for_each(|_| drop(bench.commit(100, 5000)));
    assert_eq!(bench.partition.log_oldest_ms(), Some(5000));
    bench.reopen();
    assert!(is_near(&bench));
    assert_eq!(bench.partition.log_oldest_ms(), Some(5000));
    assert_eq!(bench.truncate(1, 0), Some(5));
    assert!(is_near(&bench));
    bench.trim();
    bench.reopen();
    assert!(is_near(&bench));
    assert_eq!(bench.truncate(0, 5001), Some(13));
}

#[test]
fn a_missing_entry_is_noticed() {
    let mut bench = Bench::new(1, sizes(4, 1 << 20));
    (0..3).for_each(|_| drop(bench.commit(10, 1)));
    let mut batch = Batch::default();
    batch.delete(Family::Log, keys::log_entry(ID, 2));
    bench.store.commit(batch);
    let read = |from| read_log(&bench.store, ID, from, |_| ControlFlow::Continue(()));
    assert!(matches!(read(1), Err(StoreError::Inconsistent(_))));
    assert_eq!(read(3), Ok(()));
}
