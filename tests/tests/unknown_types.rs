//! A type of a later version: a node that does not know it stores, counts, kills, clears and relays its rows by the two bits
//! of its code ([`FieldType`]), shows nothing of it, and refuses nobody for it.

use std::ops::ControlFlow;

use godwit_core::context::{Dot, DotRanges, VersionVector};
use godwit_core::delta::{Delta, EncodedDelta, FieldDelta, Kill, RecordDelta, RowWrite};
use godwit_core::digest;
use godwit_core::ids::{Field, Key, Member, Namespace, PartitionId, RecordId, ReplicaId};
use godwit_core::json::Json;
use godwit_core::keys;
use godwit_core::machine::{Effects, Machine};
use godwit_core::op::{Limits, Op, Terms, Write};
use godwit_core::partition;
use godwit_core::read::{self, FieldView, ReadAt, ReadLimits};
use godwit_core::row::FieldType;
use godwit_core::store::{Family, MemStore, StoreRead};
use godwit_core::time::{Hlc, Mono, Now, Wall};
use godwit_proto::message::Hello;
use godwit_proto::{Input, LinkId, Message, Node, NodeConfig, Output, Reply, RequestId, Tuning};

const HOME: PartitionId = PartitionId(0);
/// By replica; by replica and not cleared; by dot.
const PLAIN: FieldType = FieldType(0x10);
const SUMS: FieldType = FieldType(0x30);
const BY_DOT: FieldType = FieldType(0x50);
const LATER: ReplicaId = ReplicaId(2);

struct Bench {
    node: Node,
    store: MemStore,
    now_us: u64,
}

impl Bench {
    fn new(name: &str, seed: u64) -> Self {
        let config = NodeConfig {
            cluster: "test".into(),
            node: name.into(),
            region: name.into(),
            members: Vec::new(),
            seed,
            same_place: true,
            partitions: 1,
            limits: Limits::default(),
            max_clock_drift_ms: 1000,
            idempotency_window_ms: 86_400_000,
            tuning: Tuning::default(),
        };
        let mut store = MemStore::default();
        let (node, batch) = Node::open(config, &store).unwrap();
        store.commit(batch);
        Self { node, store, now_us: 1 }
    }

    fn now(&self) -> Now {
        Now { mono: Mono(self.now_us), wall: Wall(1_000_000) }
    }

    fn give(&mut self, input: Input) -> Vec<Output> {
        let mut effects = Effects::default();
        self.node.handle(self.now(), input, &self.store, &mut effects).unwrap();
        self.store.commit(effects.batch);
        effects.outputs
    }

    fn pass(&mut self, us: u64) -> Vec<Output> {
        self.now_us += us;
        let mut effects = Effects::default();
        self.node.handle_timeout(self.now(), &self.store, &mut effects).unwrap();
        self.store.commit(effects.batch);
        effects.outputs
    }

    /// A peer links up and greets.
    fn link(&mut self, peer: &str, link: u64, wire: u8, replica: ReplicaId) {
        self.give(Input::Up { peer: peer.into(), link: LinkId(link), wire });
        let hello = Hello {
            cluster: "test".into(),
            node: peer.into(),
            region: peer.into(),
            replica,
            partitions: 1,
            instance: if wire == 1 { 0 } else { 5 },
            resumes: None,
        };
        self.say(peer, link, wire, &Message::Hello(hello));
    }

    fn say(&mut self, peer: &str, link: u64, wire: u8, message: &Message) -> Vec<Output> {
        let bytes = message.encode(wire).unwrap();
        let outputs = self.give(Input::Frame { peer: peer.into(), link: LinkId(link), bytes });
        assert!(!outputs.iter().any(|output| matches!(output, Output::Close { .. })), "{outputs:?}");
        outputs
    }

    fn push(&mut self, deltas: &[EncodedDelta]) {
        let deltas = deltas.to_vec();
        self.say("later", 1, 2, &Message::Deltas { partition: HOME, deltas, ends_want: false });
    }

    /// What it answers to somebody who has nothing.
    fn answer(&mut self, peer: &str, link: u64, wire: u8) -> Vec<EncodedDelta> {
        self.link(peer, link, wire, ReplicaId(link));
        let context = VersionVector::new();
        self.say(peer, link, wire, &Message::Want { partition: HOME, context });
        let sent = self.pass(0).into_iter().filter_map(|output| match output {
            Output::Send { peer: to, wire, message, .. } if to == peer => {
                // Through the bytes of the link's version.
                Message::decode(wire, &message.encode(wire).unwrap()).ok()
            }
            _ => None,
        });
        let deltas = sent.filter_map(|message| match message {
            Message::Deltas { deltas, .. } => Some(deltas),
            _ => None,
        });
        deltas.flatten().collect()
    }

    fn commit(&mut self, ops: Vec<Op>) {
        let writes = vec![Write { record: record(), ops }];
        let outputs = self.give(Input::Commit { request: RequestId(1), writes, terms: Terms::default() });
        let done = |output: &Output| {
            matches!(output, Output::Reply { reply: Reply::Committed { commit: Some(_), .. }, .. })
        };
        assert!(outputs.iter().any(done), "{outputs:?}");
    }

    fn views(&self) -> Vec<FieldView> {
        read::record(&self.store, ReadAt { partitions: 1, now_ms: 0 }, &record(), ReadLimits::NONE).unwrap()
    }

    /// Type, slot and dot of rows of types that are not known.
    fn unknown_rows(&self) -> Vec<(u8, Vec<u8>, Dot)> {
        let prefix = keys::record_prefix(HOME, &record());
        let mut rows = Vec::new();
        let visit = &mut |key: &[u8], value: &[u8]| {
            let row = keys::parse_row(&prefix, key, value).unwrap();
            if row.ty.name().is_none() {
                rows.push((row.ty.0, row.slot, row.dot));
            }
            ControlFlow::Continue(())
        };
        self.store.scan_prefix(Family::Rows, &prefix, visit).unwrap();
        rows
    }

    fn digest(&self) -> [u8; 32] {
        digest::partition(&self.store, HOME, self.node.context(HOME)).unwrap()
    }
}

fn record() -> RecordId {
    RecordId { namespace: Namespace::new("ns").unwrap(), key: Key::new("k").unwrap() }
}

fn field() -> Field {
    Field::new("f").unwrap()
}

/// A commit of the later version: a row in slot `s` of each type, over those named.
fn later(counter: u64, kills: &[(FieldType, u64)]) -> EncodedDelta {
    let dot = Dot { replica: LATER, counter };
    let change = |ty: FieldType| FieldDelta {
        field: field(),
        ty,
        kills: kills
            .iter()
            .filter(|(killed, _)| *killed == ty)
            .map(|(_, counter)| Kill { slot: b"s".to_vec(), dot: Dot { replica: LATER, counter: *counter } })
            .collect(),
        rows: vec![RowWrite { slot: b"s".to_vec(), dot, hlc: Hlc(counter), payload: b"?".to_vec() }],
        gone: Vec::new(),
    };
    let fields = [PLAIN, SUMS, BY_DOT].map(change).to_vec();
    let records = vec![RecordDelta { record: record(), clears: Vec::new(), fields }];
    let (dots, deps) = (DotRanges::single(dot), VersionVector::new());
    Delta { dots, hlc: Hlc(counter), deps, requests: Vec::new(), records }.encode()
}

fn row(ty: FieldType, counter: u64) -> (u8, Vec<u8>, Dot) {
    (ty.0, b"s".to_vec(), Dot { replica: LATER, counter })
}

/// Two commits: the second stands beside the first where rows are keyed by dot.
fn told() -> Bench {
    let mut bench = Bench::new("here", 1);
    bench.link("later", 1, 2, LATER);
    bench.push(&[later(1, &[]), later(2, &[])]);
    bench
}

#[test]
fn rows_are_stored_and_counted_and_not_shown() {
    let mut bench = told();
    assert_eq!(bench.node.context(HOME).get(LATER), 2);
    let stored = [row(PLAIN, 2), row(SUMS, 2), row(BY_DOT, 1), row(BY_DOT, 2)];
    assert_eq!(bench.unknown_rows(), stored);
    assert_eq!(bench.views(), []);
    // A kill names one dot, or all of a replica's up to one.
    bench.push(&[later(3, &[(BY_DOT, 1)])]);
    assert_eq!(bench.unknown_rows(), [row(PLAIN, 3), row(SUMS, 3), row(BY_DOT, 2), row(BY_DOT, 3)]);
}

#[test]
fn no_client_is_refused_because_of_them() {
    let value = || Json::parse("1").unwrap();
    let ops = [
        Op::Set { field: field(), value: value() },
        Op::Incr { field: field(), by: 1 },
        Op::Enable { field: field() },
        Op::Add { field: field(), members: vec![Member::new("m").unwrap()] },
    ];
    for op in ops {
        let mut bench = told();
        bench.commit(vec![op]);
        assert_eq!(bench.views().len(), 1);
        assert_eq!(bench.unknown_rows().len(), 4);
    }
}

#[test]
fn a_clear_takes_them_unless_they_hold_sums() {
    for op in [Op::Clear { field: field() }, Op::Delete] {
        let mut bench = told();
        bench.commit(vec![op]);
        assert_eq!(bench.unknown_rows(), [row(SUMS, 2)]);
        // What the clear did not see stays.
        bench.push(&[later(3, &[])]);
        assert_eq!(bench.unknown_rows(), [row(PLAIN, 3), row(SUMS, 3), row(BY_DOT, 3)]);
    }
}

#[test]
fn they_are_relayed_one_by_one_and_in_intervals() {
    let mut bench = told();
    bench.push(&[later(3, &[(BY_DOT, 1)])]);
    bench.commit(vec![Op::Incr { field: Field::new("n").unwrap(), by: 1 }]);
    bench.commit(vec![Op::Clear { field: field() }]);
    bench.push(&[later(4, &[(BY_DOT, 3)])]);

    // To the previous version as they came, but for this node's own, which it pushes.
    let single = bench.answer("old", 3, 1);
    let theirs = |delta: &&EncodedDelta| delta.dots().unwrap().last_dots().all(|dot| dot.replica == LATER);
    let relayed: Vec<EncodedDelta> = single.iter().filter(theirs).cloned().collect();
    let sent = [later(1, &[]), later(2, &[]), later(3, &[(BY_DOT, 1)]), later(4, &[(BY_DOT, 3)])];
    assert_eq!(relayed, sent);
    let merged = bench.answer("new", 4, 2);
    assert_eq!(merged.len(), 1);
    assert!(merged[0].dots().unwrap().only().is_none());

    // Whoever gets them one by one, merged, or merged after some of them, has the same.
    let mut log = Vec::new();
    partition::read_log(&bench.store, HOME, 1, |entry| {
        log.push(entry.encoded);
        ControlFlow::Continue(())
    })
    .unwrap();
    for (way, before, deltas) in [("one by one", 0, &log), ("merged", 0, &merged), ("both", 3, &merged)] {
        let mut third = Bench::new("third", 9);
        third.link("later", 1, 2, LATER);
        third.push(&log[..before]);
        third.push(deltas);
        assert_eq!(third.node.context(HOME), bench.node.context(HOME), "{way}");
        assert_eq!(third.unknown_rows(), [row(PLAIN, 4), row(SUMS, 4), row(BY_DOT, 4)], "{way}");
        assert_eq!(third.digest(), bench.digest(), "{way}");
    }
}
