//! A model of counters: replicas that count, clear, fold, retire and come back as new incarnations, against a set of
//! increments and a set of clears with what each saw. The proof in `types/counter.rs`, tried to be broken.

use std::collections::BTreeSet;

use godwit_core::context::{Dot, Seen, VersionVector};
use godwit_core::delta::{Delta, EncodedDelta};
use godwit_core::digest;
use godwit_core::ids::{Field, Key, Namespace, PartitionId, RecordId, ReplicaId};
use godwit_core::keys;
use godwit_core::op::{Limits, Op, Reason, Refusal, Terms, Write};
use godwit_core::partition::{Applied, CommitError, Committed, Partition, Received, Step as Job};
use godwit_core::read::{self, ReadAt, ReadLimits, Value};
use godwit_core::store::{Batch, Family, MemStore, StoreRead, Txn};
use godwit_core::time::Hlc;
use proptest::prelude::*;

const HOME: PartitionId = PartitionId(0);
const REPLICAS: usize = 3;

#[derive(Debug, Clone)]
enum Step {
    /// Increments and clears of one commit, in order: `None` clears.
    Commit(usize, Vec<Option<i64>>),
    /// What is left to fold is folded.
    Fold(usize),
    /// The replica goes on under another id, on the same data.
    Reincarnate(usize),
    /// One gets all that another has, in the order of its log.
    Sync(usize, usize),
}

/// What happened, as SEMANTICS.md sees it: an increment, or a clear of the increments named.
#[derive(Debug, Default)]
struct Model {
    increments: Vec<i64>,
    clears: Vec<BTreeSet<usize>>,
}

/// What a replica has applied of it.
#[derive(Debug, Default, Clone)]
struct View {
    increments: BTreeSet<usize>,
    clears: BTreeSet<usize>,
}

impl Model {
    fn left<'a>(&'a self, view: &'a View) -> impl Iterator<Item = usize> + 'a {
        let cleared =
            |increment: &usize| view.clears.iter().any(|clear| self.clears[*clear].contains(increment));
        view.increments.iter().copied().filter(move |increment| !cleared(increment))
    }

    fn value(&self, view: &View) -> Option<i64> {
        self.left(view).map(|increment| self.increments[increment]).reduce(|sum, by| sum + by)
    }
}

struct Replica {
    store: MemStore,
    partition: Partition,
    log: Vec<EncodedDelta>,
    view: View,
}

impl Replica {
    fn new(id: u64) -> Self {
        let store = MemStore::default();
        let partition = Partition::open(&store, HOME, ReplicaId(id)).unwrap();
        Self { store, partition, log: Vec::new(), view: View::default() }
    }

    fn within<T>(&mut self, change: impl FnOnce(&mut Partition, &mut Txn<'_, MemStore>) -> T) -> T {
        let mut batch = Batch::default();
        let done = change(&mut self.partition, &mut Txn::new(&self.store, &mut batch));
        self.store.commit(batch);
        done
    }

    fn commit(&mut self, ops: &[Option<i64>], model: &mut Model) {
        let field = || Field::new("c").unwrap();
        let op = |by: &Option<i64>| match by {
            Some(by) => Op::Incr { field: field(), by: *by },
            None => Op::Clear { field: field() },
        };
        let writes = [Write { record: record(), ops: ops.iter().map(op).collect() }];
        let done = self.within(|partition, txn| {
            partition.commit(txn, &writes, &Terms::default(), &Limits::default(), (0, 0), || Hlc(1)).unwrap()
        });
        for by in ops {
            match by {
                Some(by) => {
                    self.view.increments.insert(model.increments.len());
                    model.increments.push(*by);
                }
                None => {
                    self.view.clears.insert(model.clears.len());
                    model.clears.push(self.view.increments.clone());
                }
            }
        }
        match done {
            Committed::Applied(applied) => self.log.push(applied.encoded),
            Committed::Unchanged => assert_eq!(ops.last(), Some(&None), "an increment changed nothing"),
            Committed::Repeated(_) => panic!("a commit without a key"),
        }
    }

    fn fold(&mut self) {
        loop {
            match self.within(|partition, txn| partition.work(txn, 0).unwrap()) {
                Job::Idle => return,
                Job::Worked => {}
                Job::Own(fold) => {
                    let folded: Option<Applied> =
                        self.within(|partition, txn| partition.commit_own(txn, fold, 0, || Hlc(1)).unwrap());
                    self.log.extend(folded.map(|applied| applied.encoded));
                }
            }
        }
    }

    fn receive(&mut self, log: &[EncodedDelta], view: &View) {
        for encoded in log {
            let delta = Delta::decode(encoded).unwrap();
            let received = self.within(|partition, txn| {
                partition.receive(txn, delta, encoded.clone(), usize::MAX, (0, 0)).unwrap()
            });
            match received {
                Received::Applied(applied) => self.log.extend(applied.into_iter().map(|a| a.encoded)),
                Received::Duplicate => {}
                other => panic!("a log is in causal order: {other:?}"),
            }
        }
        self.view.increments.extend(&view.increments);
        self.view.clears.extend(&view.clears);
    }

    fn value(&self) -> Option<i64> {
        let views =
            read::record(&self.store, ReadAt { partitions: 1, now_ms: 0 }, &record(), ReadLimits::NONE)
                .unwrap();
        views.first().map(|view| match view.value {
            Value::Counter(value) => value,
            ref other => panic!("{other:?}"),
        })
    }

    fn rows(&self) -> usize {
        let prefix = keys::record_prefix(HOME, &record());
        let mut rows = 0;
        self.store
            .scan_prefix(Family::Rows, &prefix, &mut |_, _| {
                rows += 1;
                std::ops::ControlFlow::Continue(())
            })
            .unwrap();
        rows
    }

    fn is_marked(&self) -> bool {
        self.store.get(Family::Keys, &keys::key_mark(&record())).unwrap().is_some()
    }

    fn digest(&self) -> [u8; 32] {
        digest::partition(&self.store, HOME, self.partition.context()).unwrap()
    }

    fn context(&self) -> &VersionVector {
        self.partition.context()
    }
}

fn record() -> RecordId {
    RecordId { namespace: Namespace::new("model").unwrap(), key: Key::new("k").unwrap() }
}

fn sync(replicas: &mut [Replica], from: usize, to: usize) {
    let (log, view) = (replicas[from].log.clone(), replicas[from].view.clone());
    replicas[to].receive(&log, &view);
}

/// Everybody gets everything, and folds what there is to fold, until nothing changes.
fn settle(replicas: &mut [Replica]) {
    loop {
        let before: Vec<VersionVector> = replicas.iter().map(|replica| replica.context().clone()).collect();
        for from in 0..REPLICAS {
            (0..REPLICAS).filter(|to| *to != from).for_each(|to| sync(replicas, from, to));
        }
        replicas.iter_mut().for_each(Replica::fold);
        if replicas.iter().zip(&before).all(|(replica, before)| replica.context() == before) {
            return;
        }
    }
}

fn step() -> impl Strategy<Value = Step> {
    let op = prop_oneof![3 => (-5i64..6).prop_map(Some), 2 => Just(None)];
    prop_oneof![
        6 => (0..REPLICAS, prop::collection::vec(op, 1..3)).prop_map(|(at, ops)| Step::Commit(at, ops)),
        2 => (0..REPLICAS).prop_map(Step::Fold),
        1 => (0..REPLICAS).prop_map(Step::Reincarnate),
        5 => (0..REPLICAS, 0..REPLICAS).prop_map(|(from, to)| Step::Sync(from, to)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, ..ProptestConfig::default() })]

    #[test]
    fn a_counter_is_the_sum_of_what_no_clear_saw(steps in prop::collection::vec(step(), 1..50)) {
        let mut replicas: Vec<Replica> = (1..=REPLICAS as u64).map(Replica::new).collect();
        let mut model = Model::default();
        let mut next_id = 100;
        let mut reincarnated = false;
        for step in steps {
            match step {
                Step::Commit(at, ops) => replicas[at].commit(&ops, &mut model),
                Step::Fold(at) => replicas[at].fold(),
                Step::Reincarnate(at) => {
                    replicas[at].partition.reincarnate(ReplicaId(next_id));
                    next_id += 1;
                    reincarnated = true;
                }
                Step::Sync(from, to) => sync(&mut replicas, from, to),
            }
            for replica in &replicas {
                prop_assert_eq!(replica.value(), model.value(&replica.view));
            }
        }
        settle(&mut replicas);
        for replica in &replicas {
            prop_assert_eq!(replica.value(), model.value(&replica.view));
            prop_assert_eq!(replica.digest(), replicas[0].digest());
            prop_assert_eq!(replica.rows() > 0, replica.is_marked());
            // Once its owners have heard of it, nothing of a cleared counter is left; what past incarnations own stays.
            if !reincarnated {
                prop_assert!(replica.rows() <= REPLICAS, "{} rows", replica.rows());
                prop_assert!(replica.value().is_some() || replica.rows() == 0);
            }
        }
    }
}

/// Whoever has seen the last increment of a sum, by a commit of its own, has not seen those before it.
#[test]
fn a_clear_takes_no_increment_before_a_gap_in_what_its_client_has_seen() {
    let mut replica = Replica::new(1);
    let mut model = Model::default();
    let clear = |replica: &mut Replica, seen: &Seen| {
        let writes = [Write { record: record(), ops: vec![Op::Clear { field: Field::new("c").unwrap() }] }];
        let terms = Terms { seen: Some(seen.clone()), request: None };
        replica.within(|partition, txn| {
            partition.commit(txn, &writes, &terms, &Limits::default(), (0, 0), || Hlc(1))
        })
    };
    let stale = |refused: Result<Committed, CommitError>| {
        let reason = Reason::StaleSeen { field: Field::new("c").unwrap() };
        assert_eq!(refused, Err(CommitError::Refused { write: 0, refusal: Refusal { op: 0, reason } }));
    };
    let dot = |counter| Dot { replica: ReplicaId(1), counter };
    replica.commit(&[Some(1)], &mut model);
    replica.commit(&[Some(10)], &mut model);
    replica.commit(&[Some(100)], &mut model);
    // Not the first one, not the second one.
    stale(clear(&mut replica, &Seen::of_parts(VersionVector::new(), [dot(2), dot(3)])));
    stale(clear(&mut replica, &Seen::of_parts([dot(1)].into_iter().collect(), [dot(3)])));
    stale(clear(&mut replica, &Seen::all_of([dot(2)].into_iter().collect())));
    assert_eq!(replica.value(), Some(111));
    assert!(clear(&mut replica, &Seen::all_of([dot(3)].into_iter().collect())).is_ok());
    assert_eq!(replica.value(), None);
    // A new sum begins after the gap: it is seen whole.
    replica.commit(&[Some(1000)], &mut model);
    assert!(clear(&mut replica, &Seen::of_parts(VersionVector::new(), [dot(5)])).is_ok());
    assert_eq!(replica.value(), None);
}
