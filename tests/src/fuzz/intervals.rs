//! Intervals against the commits that they stand for.
//!
//! The bytes are a history of three replicas: commits of clients, commits of a later version with types of its own,
//! syncs by single deltas and by intervals, sweeping and folding. Every commit is kept as it was made. At the end each replica's
//! log is merged for every other one, and for what it was when it was last remembered and then brought on by a part of the
//! log: it must come to the rows, byte for byte, that a fresh replica has of the commits one by one.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use godwit_core::context::{Dot, DotRanges, VersionVector};
use godwit_core::delta::{Delta, EncodedDelta, RecordDelta};
use godwit_core::digest;
use godwit_core::ids::{PartitionId, RecordId, ReplicaId};
use godwit_core::interval::IntervalBuilder;
use godwit_core::keys;
use godwit_core::op::Limits;
use godwit_core::partition::{self, Committed, LogEntry, Partition, Received, Sizes, Step};
use godwit_core::read::{self, ReadLimits, Value};
use godwit_core::row::FieldType;
use godwit_core::store::{Batch, Family, MemStore, StoreRead, Txn};
use godwit_core::time::{Hlc, HlcClock, Wall};

use super::bytes::Choices;
use super::made;

const HOME: PartitionId = PartitionId(0);
const PARTITIONS: u16 = 1;
const REPLICAS: usize = 3;
/// Steps of one history.
const STEPS_MAX: usize = 48;
/// What an interval takes beyond what its builder adds up: its version, stamp and the counts of its lists.
const HEAD_BYTES: usize = 64;
/// Steps of putting right what was put off, which must end.
const WORK_MAX: usize = 1000;

/// A replica, or one that is only asked what it comes to.
#[derive(Debug)]
struct Replica {
    store: MemStore,
    partition: Partition,
    clock: HlcClock,
}

impl Replica {
    fn new(id: u64, sizes: Sizes) -> Self {
        Self::open(MemStore::default(), id, sizes)
    }

    fn open(store: MemStore, id: u64, sizes: Sizes) -> Self {
        let partition = Partition::open_with(&store, HOME, ReplicaId(id), sizes).expect("a sound store");
        Self { store, partition, clock: HlcClock::new(Hlc::default(), 1 << 40) }
    }

    fn receive(&mut self, encoded: &EncodedDelta) -> Received {
        let delta = Delta::decode(encoded).expect("what was made is read");
        let (hlc, mut batch) = (delta.hlc, Batch::default());
        let mut txn = Txn::new(&self.store, &mut batch);
        let received = self.partition.receive(&mut txn, delta, encoded.clone(), usize::MAX, (0, 0));
        let received = received.expect("a sound store");
        self.clock.observe(hlc, Wall(0));
        self.store.commit(batch);
        received
    }

    /// Takes what can be taken at once.
    fn apply(&mut self, encoded: &EncodedDelta) {
        let received = self.receive(encoded);
        assert!(
            matches!(received, Received::Applied(_) | Received::Duplicate),
            "{received:?} of {:?} after {:?}",
            Delta::decode(encoded),
            self.partition.context()
        );
    }

    fn log(&self) -> Vec<LogEntry> {
        let mut log = Vec::new();
        partition::read_log(&self.store, HOME, 1, |entry| {
            log.push(entry);
            ControlFlow::Continue(())
        })
        .expect("a sound store");
        log
    }

    fn digest(&self) -> [u8; 32] {
        digest::partition(&self.store, HOME, self.partition.context()).expect("a sound store")
    }

    /// A step of what was put off; whether there was one.
    fn work(&mut self) -> Option<EncodedDelta> {
        let mut batch = Batch::default();
        let mut txn = Txn::new(&self.store, &mut batch);
        let mut made = None;
        if let Step::Fold(fold) = self.partition.work(&mut txn).expect("a sound store") {
            let clock = &mut self.clock;
            let folded =
                self.partition.fold(&mut txn, fold, 0, || clock.tick(Wall(0))).expect("a sound store");
            made = folded.map(|applied| applied.encoded);
        }
        self.store.commit(batch);
        made
    }

    /// What a reader sees, and that sizes that are kept are right.
    fn read(&mut self, records: &[RecordId]) -> String {
        let mut seen = String::new();
        for record in records {
            let views = read::record(&self.store, PARTITIONS, record, ReadLimits::NONE).expect("readable");
            for view in &views {
                if let Value::Set { members, .. } = &view.value {
                    let size = read::size(&self.store, PARTITIONS, record, &view.field);
                    assert_eq!(size, Ok(members.len() as u64), "{members:?}");
                }
            }
            seen.push_str(&format!("{record}: {views:?}\n"));
        }
        seen
    }
}

/// The history so far.
struct World {
    replicas: Vec<Replica>,
    /// Every commit as it was made.
    commits: BTreeMap<Dot, EncodedDelta>,
    /// States of before, with the replica whose they were.
    remembered: Vec<(usize, MemStore)>,
    records: Vec<RecordId>,
    sizes: Sizes,
}

/// An interval does what its deltas do one by one.
///
/// # Panics
/// If it does not.
pub fn intervals(bytes: &[u8]) {
    let from = &mut Choices::new(bytes);
    let sizes = Sizes {
        checkpoint_entries: 4,
        checkpoint_bytes: 1024,
        clear_rows: *from.pick(&[256, 0, 1, 2]),
        sweep_rows: *from.pick(&[1, 2, 1024]),
    };
    let mut world = World {
        replicas: (1..=REPLICAS as u64).map(|id| Replica::new(id, sizes.clone())).collect(),
        commits: BTreeMap::new(),
        remembered: Vec::new(),
        records: vec![made::record("k"), made::record("{k}2")],
        sizes,
    };
    for _ in 0..STEPS_MAX {
        if from.is_empty() {
            break;
        }
        world.step(from);
    }
    world.judge(from);
}

impl World {
    fn step(&mut self, from: &mut Choices<'_>) {
        let at = from.below(REPLICAS);
        match from.below(12) {
            0..=4 => self.commit(from, at),
            5 | 6 => self.commit_of_later_version(from, at),
            7 => self.sync(at, from.below(REPLICAS), None),
            8 => {
                let chunk = *from.pick(&[usize::MAX, 1, 200]);
                self.sync(at, from.below(REPLICAS), Some(chunk));
            }
            9 => self.remembered.push((at, self.replicas[at].store.clone())),
            10 => self.count(from, at),
            _ => {
                let made = self.replicas[at].work();
                self.keep(made);
            }
        }
    }

    fn keep(&mut self, made: Option<EncodedDelta>) {
        if let Some(encoded) = made {
            let dot = encoded.dots().expect("what was made is read").only().expect("a commit is one");
            self.commits.insert(dot, encoded);
        }
    }

    fn commit(&mut self, from: &mut Choices<'_>, at: usize) {
        let (writes, terms) = (made::writes(from, &self.records), made::terms(from));
        let Replica { store, partition, clock } = &mut self.replicas[at];
        let mut batch = Batch::default();
        let mut txn = Txn::new(store, &mut batch);
        let stamp = || clock.tick(Wall(0));
        let done = partition.commit(&mut txn, &writes, &terms, &Limits::default(), (1, 0), stamp);
        if let Ok(done) = done {
            store.commit(batch);
            if let Committed::Applied(applied) = done {
                self.keep(Some(applied.encoded));
            }
        }
    }

    /// A commit with rows of types that this version does not know, made as that version would.
    fn commit_of_later_version(&mut self, from: &mut Choices<'_>, at: usize) {
        let replica = &mut self.replicas[at];
        let own = ReplicaId(at as u64 + 1);
        let context = replica.partition.context().clone();
        let dot = Dot { replica: own, counter: context.get(own) + 1 };
        let hlc = replica.clock.tick(Wall(0));
        let record = from.pick(&self.records).clone();
        let prefix = keys::record_prefix(HOME, &record);
        let fields = made::later_fields(from, dot, hlc, |field, ty, slot| {
            let mut present = Vec::new();
            let range = keys::type_prefix(&prefix, field, ty);
            let visit = &mut |key: &[u8], value: &[u8]| {
                let row = keys::parse_row(&prefix, key, value).expect("a sound store");
                // A row of one's own is replaced without a word.
                if row.slot == slot && (ty.keyed_by_dot() || row.dot.replica != own) {
                    present.push(row.dot);
                }
                ControlFlow::Continue(())
            };
            replica.store.scan_prefix(Family::Rows, &range, visit).expect("a sound store");
            present
        });
        let mut deps = context;
        deps.remove(own);
        let records = vec![RecordDelta { record, clears: Vec::new(), fields }];
        let delta = Delta { dots: DotRanges::single(dot), hlc, deps, requests: Vec::new(), records };
        let encoded = delta.encode();
        replica.apply(&encoded);
        self.keep(Some(encoded));
    }

    /// One replica gets all that another has: its log as it is, or merged.
    fn sync(&mut self, source: usize, to: usize, chunk: Option<usize>) {
        if source == to {
            return;
        }
        let base = self.replicas[to].partition.context().clone();
        let log = self.replicas[source].log();
        let run = match chunk {
            Some(chunk) => merged(&log, &base, chunk),
            None => lacking(&log, &base),
        };
        run.iter().for_each(|encoded| self.replicas[to].apply(encoded));
        let context = self.replicas[source].partition.context();
        assert!(self.replicas[to].partition.context().covers_all(context));
    }

    fn count(&mut self, from: &mut Choices<'_>, at: usize) {
        let (record, field) = (from.pick(&self.records).clone(), made::field(from));
        let Replica { store, partition, .. } = &mut self.replicas[at];
        let mut batch = Batch::default();
        let mut txn = Txn::new(store, &mut batch);
        partition.count(&mut txn, &record, &field, FieldType::SET).expect("a sound store");
        store.commit(batch);
    }

    /// Every receiver comes to the rows of the commits one by one.
    fn judge(&mut self, from: &mut Choices<'_>) {
        for replica in &mut self.replicas {
            expect_state(replica, &self.commits, &self.records);
        }
        let logs: Vec<Vec<LogEntry>> = self.replicas.iter().map(Replica::log).collect();
        for at in 0..REPLICAS {
            let store = self.replicas[at].store.clone();
            self.remembered.push((at, store));
        }
        for (at, store) in &self.remembered {
            for source in (0..REPLICAS).filter(|source| source != at) {
                let mut receiver = Replica::open(store.clone(), *at as u64 + 1, self.sizes.clone());
                let base = receiver.partition.context().clone();
                let run = merged(&logs[source], &base, *from.pick(&[usize::MAX, 1, 200]));
                // Meanwhile the receiver gets a part by another way.
                let other = &logs[(source + from.below(REPLICAS)) % REPLICAS];
                let part = lacking(other, &base);
                let most = from.below(part.len().min(200) + 1);
                part[..most].iter().for_each(|encoded| receiver.apply(encoded));
                run.iter().for_each(|encoded| receiver.apply(encoded));
                expect_state(&mut receiver, &self.commits, &self.records);
            }
        }
    }
}

/// The log entries that a receiver of this context lacks.
fn lacking(log: &[LogEntry], base: &VersionVector) -> Vec<EncodedDelta> {
    log.iter().filter(|entry| !entry.dots.covered_by(base)).map(|entry| entry.encoded.clone()).collect()
}

/// The same merged into intervals of about some bytes, as an answer to `Want` is.
fn merged(log: &[LogEntry], base: &VersionVector, chunk_bytes: usize) -> Vec<EncodedDelta> {
    let mut run = IntervalBuilder::new(base.clone());
    let mut all = Vec::new();
    let flush = |run: &mut IntervalBuilder, all: &mut Vec<EncodedDelta>| {
        let reached = run.reached().clone();
        let builder = std::mem::replace(run, IntervalBuilder::new(reached));
        let bytes = builder.bytes();
        if let Some(encoded) = builder.finish() {
            let found = encoded.as_bytes().len();
            assert!(found <= bytes + HEAD_BYTES, "an interval of {found} bytes was said to have {bytes}");
            all.push(encoded);
        }
    };
    for entry in log.iter().filter(|entry| !entry.dots.covered_by(base)) {
        if entry.dots.covered_by(run.reached()) {
            continue;
        }
        if run.takes(&entry.dots) {
            run.add(Delta::decode(&entry.encoded).expect("what was made is read"), entry.encoded.clone());
            if run.bytes() >= chunk_bytes {
                flush(&mut run, &mut all);
            }
        } else {
            flush(&mut run, &mut all);
            let mut reached = run.reached().clone();
            entry.dots.last_dots().for_each(|dot| reached.advance(dot));
            run = IntervalBuilder::new(reached);
            all.push(entry.encoded.clone());
        }
    }
    flush(&mut run, &mut all);
    all
}

/// The replica's state is that of its commits one by one, before and after what was put off is done.
fn expect_state(replica: &mut Replica, commits: &BTreeMap<Dot, EncodedDelta>, records: &[RecordId]) {
    let mut plain = Replica::new(99, Sizes::default());
    let context = replica.partition.context().clone();
    for (_, encoded) in commits.iter().filter(|(dot, _)| context.covers(**dot)) {
        plain.receive(encoded);
    }
    assert_eq!(plain.partition.context(), &context, "a commit is missing");
    assert_eq!(plain.partition.pending_bytes(), 0, "something still waits");
    assert_eq!(replica.read(records), plain.read(records), "rows differ");
    assert_eq!(replica.digest(), plain.digest(), "{:?}\n{:?}", replica.store, plain.store);
    let mut swept = Replica::open(replica.store.clone(), 98, replica_sizes());
    for _ in 0..WORK_MAX {
        if !swept.partition.has_jobs() {
            break;
        }
        swept.work();
    }
    assert!(!swept.partition.has_jobs(), "sweeping does not end");
    assert_eq!(swept.digest(), plain.digest(), "sweeping changed what is live");
    let dead = |store: &MemStore| rows(store);
    assert_eq!(dead(&swept.store), dead(&plain_swept(plain)), "what is swept is not what was never there");
}

fn replica_sizes() -> Sizes {
    Sizes { sweep_rows: 2, ..Sizes::default() }
}

fn plain_swept(mut plain: Replica) -> MemStore {
    for _ in 0..WORK_MAX {
        if !plain.partition.has_jobs() {
            break;
        }
        plain.work();
    }
    plain.store
}

/// Rows and marks.
fn rows(store: &MemStore) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut rows = Vec::new();
    for family in [Family::Rows, Family::Keys] {
        let visit = &mut |key: &[u8], value: &[u8]| {
            rows.push((key.to_vec(), value.to_vec()));
            ControlFlow::Continue(())
        };
        store.scan_prefix(family, &[], visit).expect("a sound store");
    }
    rows
}
