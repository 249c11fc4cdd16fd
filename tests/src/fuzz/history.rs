//! Histories of three replicas of one partition: commits of clients, commits of a later version with types of its own, syncs
//! by single deltas and by intervals, sweeping and folding. Every commit is kept as it was made, so that what a replica comes
//! to can be held against a fresh one that has the same commits one by one.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use godwit_core::context::{Dot, DotRanges, VersionVector};
use godwit_core::delta::{Delta, EncodedDelta, RecordDelta};
use godwit_core::digest;
use godwit_core::ids::{PartitionId, RecordId, ReplicaId};
use godwit_core::interval::IntervalBuilder;
use godwit_core::keys;
use godwit_core::op::Limits;
use godwit_core::partition::{self, Committed, LogEntry, Partition, Received, Sizes, Step};
use godwit_core::read::{self, ReadAt, ReadLimits, Value};
use godwit_core::repair::{Settled, Settlings};
use godwit_core::row::FieldType;
use godwit_core::store::{Batch, Family, MemStore, StoreRead, Txn};
use godwit_core::time::{Hlc, HlcClock, Wall};

use super::bytes::Choices;
use super::made;

pub(super) const HOME: PartitionId = PartitionId(0);
const PARTITIONS: u16 = 1;
const AT: ReadAt = ReadAt { partitions: PARTITIONS, now_ms: 0 };
pub(super) const REPLICAS: usize = 3;
/// What an interval takes beyond what its builder adds up: its version, stamp and the counts of its lists.
const HEAD_BYTES: usize = 64;
/// Steps of putting right what was put off, which must end.
const WORK_MAX: usize = 1000;

/// A replica, or one that is only asked what it comes to.
#[derive(Debug)]
pub(super) struct Replica {
    pub(super) store: MemStore,
    pub(super) partition: Partition,
    clock: HlcClock,
    settlings: Arc<Settlings>,
}

impl Replica {
    pub(super) fn new(id: u64, sizes: Sizes) -> Self {
        Self::open(MemStore::default(), id, sizes)
    }

    pub(super) fn open(store: MemStore, id: u64, sizes: Sizes) -> Self {
        let partition = Partition::open_with(&store, HOME, ReplicaId(id), sizes).expect("a sound store");
        let settlings = Arc::new(Settlings::open(&store).expect("a sound store"));
        Self { store, partition, clock: HlcClock::new(Hlc::default(), 1 << 40), settlings }
    }

    /// Does something, and commits it.
    pub(super) fn with<T>(
        &mut self,
        act: impl FnOnce(&mut Partition, &mut Txn<'_, MemStore>, &mut HlcClock) -> T,
    ) -> T {
        let mut batch = Batch::default();
        let mut txn = Txn::with(&self.store, &mut batch, Arc::clone(&self.settlings));
        let done = act(&mut self.partition, &mut txn, &mut self.clock);
        self.settlings = Arc::clone(txn.settlings());
        self.store.commit(batch);
        done
    }

    pub(super) fn receive(&mut self, encoded: &EncodedDelta) -> Received {
        let delta = Delta::decode(encoded).expect("what was made is read");
        self.with(|partition, txn, clock| {
            clock.observe(delta.hlc, Wall(0));
            partition.receive(txn, delta, encoded.clone(), usize::MAX, (0, 0)).expect("a sound store")
        })
    }

    /// Takes what can be taken at once.
    pub(super) fn apply(&mut self, encoded: &EncodedDelta) {
        let received = self.receive(encoded);
        assert!(
            matches!(received, Received::Applied(_) | Received::Duplicate),
            "{received:?} of {:?} after {:?}",
            Delta::decode(encoded),
            self.partition.context()
        );
    }

    pub(super) fn log(&self) -> Vec<LogEntry> {
        let mut log = Vec::new();
        partition::read_log(&self.store, HOME, 1, |entry| {
            log.push(entry);
            ControlFlow::Continue(())
        })
        .expect("a sound store");
        log
    }

    pub(super) fn digest(&self) -> [u8; 32] {
        digest::partition(&self.store, HOME, self.partition.context()).expect("a sound store")
    }

    /// A step of what was put off; whether there was one.
    pub(super) fn work(&mut self) -> Option<EncodedDelta> {
        self.with(|partition, txn, clock| {
            let Step::Own(own) = partition.work(txn, 0).expect("a sound store") else { return None };
            let made = partition.commit_own(txn, own, 0, || clock.tick(Wall(0))).expect("a sound store");
            made.map(|applied| applied.encoded)
        })
    }

    /// What a reader sees, and that sizes that are kept are right.
    fn read(&mut self, records: &[RecordId]) -> String {
        let mut seen = String::new();
        for record in records {
            let store = &Settled::open(&self.store).expect("a sound store");
            let views = read::record(store, AT, record, ReadLimits::NONE).expect("readable");
            for view in &views {
                if let Value::Set { members, .. } = &view.value {
                    let size = read::size(store, AT, record, &view.field);
                    assert_eq!(size, Ok(members.len() as u64), "{members:?}");
                }
            }
            seen.push_str(&format!("{record}: {views:?}\n"));
        }
        seen
    }
}

/// The history so far.
pub(super) struct World {
    pub(super) replicas: Vec<Replica>,
    /// Every commit as it was made.
    pub(super) commits: BTreeMap<Dot, EncodedDelta>,
    pub(super) records: Vec<RecordId>,
    pub(super) sizes: Sizes,
}

impl World {
    pub(super) fn chosen(from: &mut Choices<'_>) -> Self {
        let sizes = Sizes {
            checkpoint_entries: 4,
            checkpoint_bytes: 1024,
            clear_rows: *from.pick(&[256, 0, 1, 2]),
            sweep_rows: *from.pick(&[1, 2, 1024]),
            sweep_after_ms: 0,
            forget_after_ms: 0,
        };
        Self {
            replicas: (1..=REPLICAS as u64).map(|id| Replica::new(id, sizes.clone())).collect(),
            commits: BTreeMap::new(),
            records: vec![made::record("k"), made::record("{k}2")],
            sizes,
        }
    }

    /// What a history has besides syncs: a commit, a question for a size, or a step of what was put off.
    pub(super) fn local_step(&mut self, from: &mut Choices<'_>, at: usize) {
        match from.below(9) {
            0..=4 => self.commit(from, at),
            5 | 6 => self.commit_of_later_version(from, at),
            7 => self.count(from, at),
            _ => {
                let made = self.replicas[at].work();
                self.keep(made);
            }
        }
    }

    pub(super) fn keep(&mut self, made: Option<EncodedDelta>) {
        if let Some(encoded) = made {
            let dot = encoded.dots().expect("what was made is read").only().expect("a commit is one");
            self.commits.insert(dot, encoded);
        }
    }

    fn commit(&mut self, from: &mut Choices<'_>, at: usize) {
        let (writes, terms) = (made::writes(from, &self.records), made::terms(from));
        let done = self.replicas[at].with(|partition, txn, clock| {
            partition.commit(txn, &writes, &terms, &Limits::default(), (1, 0), || clock.tick(Wall(0)))
        });
        if let Ok(Committed::Applied(applied)) = done {
            self.keep(Some(applied.encoded));
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
            let store = Settled::open(&replica.store).expect("a sound store");
            store.scan_prefix(Family::Rows, &range, visit).expect("a sound store");
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
    pub(super) fn sync(&mut self, source: usize, to: usize, chunk: Option<usize>) {
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
        self.replicas[at]
            .with(|partition, txn, _| partition.count(txn, &record, &field, FieldType::SET))
            .expect("a sound store");
    }
}

/// The log entries that a receiver of this context lacks.
pub(super) fn lacking(log: &[LogEntry], base: &VersionVector) -> Vec<EncodedDelta> {
    log.iter().filter(|entry| !entry.dots.covered_by(base)).map(|entry| entry.encoded.clone()).collect()
}

/// The same merged into intervals of about some bytes, as an answer to `Want` is.
pub(super) fn merged(log: &[LogEntry], base: &VersionVector, chunk_bytes: usize) -> Vec<EncodedDelta> {
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
pub(super) fn expect_state(
    replica: &mut Replica,
    commits: &BTreeMap<Dot, EncodedDelta>,
    records: &[RecordId],
) {
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
    // Rows that a repair has staged, and that do not count yet, have their marks already.
    let families =
        if swept.partition.has_staged() { &[Family::Rows][..] } else { &[Family::Rows, Family::Keys] };
    let dead = |store: &MemStore| entries(store, families);
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

fn entries(store: &MemStore, families: &[Family]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut entries = Vec::new();
    for &family in families {
        let visit = &mut |key: &[u8], value: &[u8]| {
            entries.push((key.to_vec(), value.to_vec()));
            ControlFlow::Continue(())
        };
        store.scan_prefix(family, &[], visit).expect("a sound store");
    }
    entries
}
