//! Laws of deltas: whatever order causally unordered deltas come in, however often, replicas that have applied the same
//! hold the same bytes, and read what the specification says.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::ControlFlow;

use godwit_core::delta::{Delta, EncodedDelta};
use godwit_core::digest;
use godwit_core::ids::{Field, Key, Member, Namespace, PartitionId, RecordId, ReplicaId};
use godwit_core::json::Json;
use godwit_core::op::{Limits, Op, Terms, Write};
use godwit_core::partition::{Applied, CommitError, Committed, Partition, Received};
use godwit_core::read::ReadAt;
use godwit_core::rng::Rng;
use godwit_core::store::{Batch, Family, MemStore, StoreError, StoreRead, Txn, Visit};
use godwit_core::time::{Hlc, HlcClock, Wall};
use godwit_core::types::score::Score;
use godwit_sim::oracle::read_spec;
use godwit_sim::spec::{Event, EventId, EventSet, History, Stamp};
use godwit_sim::workload::spec_op;
use proptest::prelude::*;

const HOME: PartitionId = PartitionId(0);
const PARTITIONS: u16 = 1;
/// Between two steps.
const STEP_MS: u64 = 10;
/// A time after all that are told.
const TIMES_END: u64 = 1 << 40;

/// What happens: a commit somewhere, or one replica gets all that another has.
#[derive(Debug, Clone)]
enum Step {
    Commit(usize, Vec<Op>),
    Sync(usize, usize),
}

struct Replica {
    store: MemStore,
    partition: Partition,
    clock: HlcClock,
    /// Events applied, for the specification.
    visible: EventSet,
}

impl Replica {
    fn new(id: u64) -> Self {
        let store = MemStore::default();
        let partition = Partition::open(&store, HOME, ReplicaId(id)).unwrap();
        let clock = HlcClock::new(Default::default(), 1 << 40);
        Self { store, partition, clock, visible: EventSet::default() }
    }

    /// Takes deltas in any order; everything must be applied at the end.
    fn receive(&mut self, deltas: impl IntoIterator<Item = EncodedDelta>, now_ms: u64) {
        for encoded in deltas {
            let delta = Delta::decode(&encoded).unwrap();
            let hlc = delta.hlc;
            let mut batch = Batch::default();
            let received = self
                .partition
                .receive(&mut Txn::new(&self.store, &mut batch), delta, encoded, usize::MAX, (now_ms, 0))
                .unwrap();
            assert_ne!(received, Received::Dropped);
            self.clock.observe(hlc, Wall(now_ms));
            self.store.commit(batch);
        }
        assert_eq!(self.partition.pending_bytes(), 0, "something still waits");
    }

    fn digest(&self) -> [u8; 32] {
        digest::partition(&self.store, HOME, self.partition.context()).unwrap()
    }
}

/// Commits as a client without a token or a key does.
fn commit(
    partition: &mut Partition,
    txn: &mut Txn<'_, impl StoreRead>,
    writes: &[Write],
    limits: &Limits,
    now_ms: u64,
    stamp: impl FnOnce() -> Hlc,
) -> Result<Option<Applied>, CommitError> {
    match partition.commit(txn, writes, &Terms::default(), limits, (now_ms, 0), stamp)? {
        Committed::Applied(applied) => Ok(Some(applied)),
        Committed::Unchanged => Ok(None),
        Committed::Repeated(_) => panic!("a commit without a key"),
    }
}

fn record() -> RecordId {
    RecordId { namespace: Namespace::new("laws").unwrap(), key: Key::new("r").unwrap() }
}

fn member() -> impl Strategy<Value = Member> {
    prop::sample::select(vec!["a", "b", "c"]).prop_map(|name| Member::new(name).unwrap())
}

fn score() -> impl Strategy<Value = Score> {
    prop::sample::select(vec![0.1, 0.2, -1.5, 1.0, 0.0]).prop_map(|score| Score::new(score).unwrap())
}

/// Members of a unique, of which two share a register.
fn observed() -> impl Strategy<Value = Vec<Member>> {
    let one = prop::sample::select(vec!["u210", "u361", "u1"]).prop_map(|name| Member::new(name).unwrap());
    prop::collection::vec(one, 1..3)
}

fn op() -> impl Strategy<Value = Op> {
    // Each type has a field of its own and all share one.
    let field =
        |own: &'static str| prop_oneof![4 => Just(own), 1 => Just("x")].prop_map(|f| Field::new(f).unwrap());
    let members = || {
        prop::collection::vec(prop_oneof![Just("a"), Just("b")], 1..3)
            .prop_map(|names| names.into_iter().map(|name| Member::new(name).unwrap()).collect::<Vec<_>>())
    };
    let value = prop_oneof![Just("1"), Just("2")].prop_map(|text| Json::parse(text).unwrap());
    prop_oneof![
        3 => (field("c"), -5i64..6).prop_map(|(field, by)| Op::Incr { field, by }),
        2 => (field("r"), value).prop_map(|(field, value)| Op::Set { field, value }),
        1 => field("f").prop_map(|field| Op::Enable { field }),
        1 => field("f").prop_map(|field| Op::Disable { field }),
        2 => (field("s"), members()).prop_map(|(field, members)| Op::Add { field, members }),
        1 => (field("s"), members()).prop_map(|(field, members)| Op::Remove { field, members }),
        2 => field("c").prop_map(|field| Op::Clear { field }),
        1 => field("s").prop_map(|field| Op::Clear { field }),
        2 => (field("z"), member(), score()).prop_map(|(field, member, by)| Op::ZIncr { field, member, by }),
        2 => (field("z"), prop::collection::vec((member(), score()), 1..3))
            .prop_map(|(field, scores)| Op::ZAdd { field, scores }),
        1 => (field("z"), members()).prop_map(|(field, members)| Op::ZRemove { field, members }),
        1 => field("z").prop_map(|field| Op::Clear { field }),
        2 => (field("u"), observed()).prop_map(|(field, members)| Op::Observe { field, members }),
        1 => field("u").prop_map(|field| Op::Clear { field }),
        1 => prop::sample::select(vec![5, 25, 100_000]).prop_map(|in_ms| Op::Expire { in_ms }),
        1 => Just(Op::Persist),
        1 => Just(Op::Delete),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0usize..3, prop::collection::vec(op(), 1..3)).prop_map(|(at, ops)| Step::Commit(at, ops)),
        2 => (0usize..3, 0usize..3).prop_map(|(from, to)| Step::Sync(from, to)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn order_and_repetition_change_nothing(steps in prop::collection::vec(step(), 1..40), seed: u64) {
        let mut replicas: Vec<Replica> = (1..=3).map(Replica::new).collect();
        let mut history = History::default();
        let mut deltas: BTreeMap<(u64, u64), (EncodedDelta, EventId)> = BTreeMap::new();
        let name = record().to_string();

        let mut now_ms = 0;
        for step in steps {
            now_ms += STEP_MS;
            match step {
                Step::Commit(at, ops) => {
                    let Replica { store, partition, clock, visible } = &mut replicas[at];
                    let refused = history.first_refused_seen(&name, &ops.iter().map(spec_op).collect::<Vec<_>>(), visible, None, now_ms);
                    let writes = [Write { record: record(), ops: ops.clone() }];
                    let mut batch = Batch::default();
                    let stamp = || clock.tick(Wall(now_ms));
                    let mut txn = Txn::new(store, &mut batch);
                    let outcome = commit(partition, &mut txn, &writes, &Limits::default(), now_ms, stamp);
                    prop_assert_eq!(outcome.is_err(), refused.is_some(), "{:?}: {:?}", ops, outcome);
                    store.commit(batch);
                    if let Ok(Some(applied)) = outcome {
                        let dot = applied.dots.only().unwrap();
                        let replica = dot.replica.0;
                        let stamp = Stamp { hlc: applied.hlc.0, replica };
                        let ops = ops.iter().map(spec_op).collect();
                        let event = history.push(Event { stamp, now_ms, record: name.clone(), ops, saw: visible.clone() });
                        visible.insert(event);
                        deltas.insert((replica, dot.counter), (applied.encoded, event));
                    }
                }
                Step::Sync(from, to) => {
                    let have = replicas[from].partition.context().clone();
                    let missing = deltas.iter().filter(|((replica, counter), _)| {
                        *counter <= have.get(ReplicaId(*replica))
                            && *counter > replicas[to].partition.context().get(ReplicaId(*replica))
                    });
                    let missing: Vec<_> = missing.map(|(_, delta)| delta.clone()).collect();
                    let seen = replicas[from].visible.clone();
                    replicas[to].receive(missing.into_iter().map(|(encoded, _)| encoded), now_ms);
                    replicas[to].visible.union(&seen);
                }
            }
            for replica in &replicas {
                for now_ms in [0, now_ms, TIMES_END] {
                    let shown = read_spec(&replica.store, ReadAt { partitions: PARTITIONS, now_ms }, &record()).unwrap();
                    prop_assert_eq!(shown, history.read_at(&name, &replica.visible, now_ms), "at {}", now_ms);
                }
            }
        }

        // Two fresh replicas get everything in two random orders, one of them twice.
        let mut rng = Rng::new(seed);
        let mut shuffled = |times: usize| {
            let one = deltas.values().map(|(encoded, _)| encoded.clone());
            let mut all: Vec<EncodedDelta> = std::iter::repeat_n(one, times).flatten().collect();
            for i in (1..all.len()).rev() {
                all.swap(i, rng.below(i as u64 + 1) as usize);
            }
            all
        };
        let (mut once, mut twice) = (Replica::new(8), Replica::new(9));
        once.receive(shuffled(1), now_ms);
        twice.receive(shuffled(2), now_ms);
        prop_assert_eq!(once.partition.context(), twice.partition.context());
        prop_assert_eq!(once.digest(), twice.digest());
        let all: EventSet = deltas.values().fold(EventSet::default(), |mut all, (_, event)| {
            all.insert(*event);
            all
        });
        for now_ms in [0, now_ms, TIMES_END] {
            let shown = read_spec(&once.store, ReadAt { partitions: PARTITIONS, now_ms }, &record()).unwrap();
            prop_assert_eq!(shown, history.read_at(&name, &all, now_ms), "at {}", now_ms);
        }
    }
}

/// A commit that one node accepts and another cannot read would stop replication for good.
#[test]
fn what_is_accepted_can_be_read_by_peers() {
    let limits = Limits { members_max: usize::MAX, ..Limits::default() };
    let add = |members: std::ops::Range<u32>, length: usize| {
        let name = |i| Member::new(format!("{i:0>length$}")).unwrap();
        Op::Add { field: Field::new("s").unwrap(), members: members.map(name).collect() }
    };
    let mut outcomes = Vec::new();
    for (count, length) in [(10, 1000), (10_000, 1000), (12_700, 1000), (100_000, 6), (400_000, 6)] {
        let Replica { store, mut partition, .. } = Replica::new(u64::MAX);
        let writes = [Write { record: record(), ops: vec![add(0..count, length)] }];
        let mut batch = Batch::default();
        let mut txn = Txn::new(&store, &mut batch);
        let outcome = commit(&mut partition, &mut txn, &writes, &limits, 0, Default::default);
        if let Ok(Some(applied)) = &outcome {
            Delta::decode(&applied.encoded).unwrap();
        }
        outcomes.push(outcome.is_ok());
    }
    assert_eq!(outcomes, [true, true, false, true, false]);
}

/// A store that counts what is read.
struct Counting<'s> {
    store: &'s MemStore,
    reads: Cell<usize>,
}

impl StoreRead for Counting<'_> {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.reads.set(self.reads.get() + 1);
        self.store.get(family, key)
    }

    fn scan(&self, family: Family, from: &[u8], to: &[u8], visit: Visit<'_>) -> Result<(), StoreError> {
        self.reads.set(self.reads.get() + 1);
        self.store.scan(family, from, to, &mut |key, value| -> ControlFlow<()> {
            self.reads.set(self.reads.get() + 1);
            visit(key, value)
        })
    }
}

/// The committer serves everybody: one client's largest commit must not cost more than its size.
#[test]
fn a_commit_reads_in_proportion_to_its_operations() {
    let member = |i: usize| Member::new(format!("{i:06}")).unwrap();
    let field = |i: usize| Field::new(format!("f{i:06}")).unwrap();
    let set = || Field::new("s").unwrap();
    let reads_of = |stored: Vec<Op>, ops: Vec<Op>| {
        let Replica { mut store, mut partition, .. } = Replica::new(1);
        let mut hlc = HlcClock::new(Default::default(), 0);
        for chunk in stored.chunks(1) {
            let mut batch = Batch::default();
            let writes = [Write { record: record(), ops: chunk.to_vec() }];
            let mut txn = Txn::new(&store, &mut batch);
            commit(&mut partition, &mut txn, &writes, &Limits::default(), 0, || hlc.tick(Wall(1))).unwrap();
            store.commit(batch);
        }
        let counting = Counting { store: &store, reads: Cell::new(0) };
        let mut batch = Batch::default();
        let writes = [Write { record: record(), ops }];
        let mut txn = Txn::new(&counting, &mut batch);
        commit(&mut partition, &mut txn, &writes, &Limits::default(), 0, || hlc.tick(Wall(1)))
            .unwrap()
            .unwrap();
        counting.reads.get()
    };
    let members = |range: std::ops::Range<usize>| range.map(member).collect::<Vec<_>>();
    let add = |range| Op::Add { field: set(), members: members(range) };
    let remove = |range| Op::Remove { field: set(), members: members(range) };

    // 10 members an operation, all there are, in order: each read has to pass by what was removed before.
    let removes = |count: usize| {
        reads_of(vec![add(0..count * 10)], (0..count).map(|i| remove(i * 10..i * 10 + 10)).collect())
    };
    // New fields: each is held against the limit on fields.
    let value = Json::parse("1").unwrap();
    let sets = |count: usize| {
        reads_of(
            vec![add(0..1)],
            (0..count).map(|i| Op::Set { field: field(i), value: value.clone() }).collect(),
        )
    };
    for (name, small, large) in [("removes", removes(50), removes(500)), ("sets", sets(90), sets(900))] {
        assert!(large <= 11 * small, "{name}: ten times the operations read {large} instead of {small}");
    }
    // One member of a large set costs what one of a small set does.
    let one_of = |count: usize| reads_of(vec![add(0..count)], vec![remove(3..4)]);
    assert_eq!(one_of(100), one_of(10_000));
}
