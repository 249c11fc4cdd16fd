//! An interval does what its commits do one by one: the fuzz target of `godwit_tests::fuzz::intervals` on random histories, which
//! shrink; and histories that random ones hardly ever hit.

use std::ops::ControlFlow;

use godwit_core::context::{Dot, VersionVector};
use godwit_core::delta::{Delta, EncodedDelta};
use godwit_core::digest;
use godwit_core::ids::{Field, Key, Member, Namespace, PartitionId, RecordId, ReplicaId};
use godwit_core::interval::IntervalBuilder;
use godwit_core::op::{Limits, Op, Terms, Write};
use godwit_core::partition::{self, Committed, Partition, Received};
use godwit_core::store::{Batch, MemStore, Txn};
use godwit_core::time::Hlc;
use godwit_tests::fuzz::intervals::intervals;
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn an_interval_does_what_its_commits_do(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        intervals(&bytes);
    }
}

const HOME: PartitionId = PartitionId(0);

/// One replica of a partition.
struct Replica {
    store: MemStore,
    partition: Partition,
}

impl Replica {
    fn new(id: u64) -> Self {
        let store = MemStore::default();
        let partition = Partition::open(&store, HOME, ReplicaId(id)).unwrap();
        Self { store, partition }
    }

    /// The delta of a commit.
    fn commit(&mut self, op: Op) -> EncodedDelta {
        let mut batch = Batch::default();
        let record = RecordId { namespace: Namespace::new("test").unwrap(), key: Key::new("k").unwrap() };
        let (writes, terms, limits) =
            ([Write { record, ops: vec![op] }], Terms::default(), Limits::default());
        let mut txn = Txn::new(&self.store, &mut batch);
        let done = self.partition.commit(&mut txn, &writes, &terms, &limits, (0, 0), || Hlc(1)).unwrap();
        let Committed::Applied(applied) = done else { panic!("{done:?}") };
        self.store.commit(batch);
        applied.encoded
    }

    fn apply(&mut self, encoded: &EncodedDelta) {
        let mut batch = Batch::default();
        let mut txn = Txn::new(&self.store, &mut batch);
        let delta = Delta::decode(encoded).unwrap();
        let received = self.partition.receive(&mut txn, delta, encoded.clone(), 0, (0, 0)).unwrap();
        assert!(matches!(received, Received::Applied(_)), "{received:?}");
        self.store.commit(batch);
    }

    /// The whole log as one interval.
    fn merged(&self) -> EncodedDelta {
        let mut run = IntervalBuilder::new(VersionVector::new());
        partition::read_log(&self.store, HOME, 1, |entry| {
            run.add(Delta::decode(&entry.encoded).unwrap(), entry.encoded);
            ControlFlow::Continue(())
        })
        .unwrap();
        run.finish().unwrap()
    }

    fn digest(&self) -> [u8; 32] {
        digest::partition(&self.store, HOME, self.partition.context()).unwrap()
    }
}

/// The clear takes nothing of a slot whose row is gone already: what took the row has to be said all the same, to one who
/// got the row, and not what took it, by another way.
#[test]
fn a_row_removed_before_a_clear_that_did_not_see_it_is_removed_from_who_has_it() {
    let field = || Field::new("s").unwrap();
    let member = |name: &str| vec![Member::new(name).unwrap()];
    for clear in [Op::Clear { field: field() }, Op::Delete] {
        let [mut source, mut writer, mut clearer, mut receiver] = [1, 2, 3, 4].map(Replica::new);
        let row = writer.commit(Op::Add { field: field(), members: member("m") });
        // It sees a row of its own, and not the other.
        let other = clearer.commit(Op::Add { field: field(), members: member("n") });
        let clear = clearer.commit(clear);
        source.apply(&row);
        source.commit(Op::Remove { field: field(), members: member("m") });
        source.apply(&other);
        source.apply(&clear);

        let said = Delta::decode(&source.merged()).unwrap();
        assert!(!said.records[0].clears[0].seen.covers(Dot { replica: ReplicaId(2), counter: 1 }));
        receiver.apply(&row);
        receiver.apply(&source.merged());
        assert_eq!(receiver.partition.context(), source.partition.context());
        assert_eq!(receiver.digest(), source.digest(), "{said:?}");
    }
}
