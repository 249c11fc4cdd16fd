//! Three nodes driven by hand, step by step: for tests that need one certain order of things. Stores are in memory.

use std::collections::{BTreeMap, VecDeque};
use std::ops::ControlFlow;

use godwit_core::ids::{Field, Key, Namespace, PartitionId, RecordId};
use godwit_core::json::Json;
use godwit_core::keys;
use godwit_core::machine::{Effects, Machine};
use godwit_core::op::{Limits, Op, Terms, Write};
use godwit_core::repair;
use godwit_core::store::{Family, MemStore, StoreRead};
use godwit_core::time::{Mono, Now, Wall};
use godwit_proto::message::WIRE_VERSION;
use godwit_proto::status::Status;
use godwit_proto::{
    Alarm, Input, LinkId, Message, Node, NodeConfig, Output, ReaderId, Reply, RequestId, Tuning,
};

/// The names of the nodes.
pub const NAMES: [&str; 3] = ["a", "b", "c"];
/// Partitions of each.
pub const PARTITIONS: u16 = 2;
/// Between two looks at what is due.
pub const STEP_US: u64 = 10_000;

/// A node and its store.
pub struct Member {
    /// How it is set up.
    pub config: NodeConfig,
    /// The machine.
    pub node: Node,
    /// What is durable.
    pub store: MemStore,
    /// Whether garbage is removed.
    pub trims: bool,
    /// What repairs read.
    snapshots: BTreeMap<ReaderId, MemStore>,
}

/// Nodes and the links between them, on which nothing is lost while they are up.
pub struct World {
    /// The nodes, in the order of their names.
    pub members: Vec<Member>,
    /// Links that are up: their ends.
    pub links: Vec<(usize, usize, LinkId)>,
    /// Sender, receiver, link, bytes.
    wire: VecDeque<(usize, usize, LinkId, Vec<u8>)>,
    /// Who read what.
    reads: VecDeque<(usize, Input)>,
    /// All that was ever put out, but for replies: by whom, and what.
    pub outputs: Vec<(usize, Output)>,
    /// The monotonic clock of all.
    pub now_us: u64,
    /// The clock of all.
    pub wall_ms: u64,
    next: u64,
    records: u64,
}

impl World {
    /// Nodes that know each other and are not linked.
    pub fn new(tunings: [Tuning; 3]) -> Self {
        let members = NAMES.iter().zip(tunings).zip(1..).map(|((name, tuning), seed)| {
            let config = NodeConfig {
                cluster: "test".into(),
                node: name.to_string(),
                region: "r".into(),
                members: NAMES.iter().filter(|other| *other != name).map(ToString::to_string).collect(),
                seed,
                same_place: true,
                partitions: PARTITIONS,
                limits: Limits::default(),
                max_clock_drift_ms: 1000,
                idempotency_window_ms: 1000,
                tuning,
            };
            let mut store = MemStore::default();
            let (node, batch) = Node::open(config.clone(), &store).unwrap();
            store.commit(batch);
            Member { config, node, store, trims: true, snapshots: BTreeMap::new() }
        });
        let members = members.collect();
        let (links, wire, reads) = (Vec::new(), VecDeque::new(), VecDeque::new());
        Self {
            members,
            links,
            wire,
            reads,
            outputs: Vec::new(),
            now_us: 1,
            wall_ms: 5_000_000,
            next: 0,
            records: 0,
        }
    }

    /// One step of a node: an input, or what is due.
    pub fn step(&mut self, at: usize, input: Option<Input>) -> Option<Reply> {
        let now = Now { mono: Mono(self.now_us), wall: Wall(self.wall_ms) };
        let Member { node, store, trims, snapshots, .. } = &mut self.members[at];
        let mut effects = Effects::default();
        match input {
            Some(input) => node.handle(now, input, store, &mut effects).unwrap(),
            None => node.handle_timeout(now, store, &mut effects).unwrap(),
        }
        store.commit(effects.batch);
        let mut answer = None;
        for output in effects.outputs {
            match &output {
                Output::Send { peer, link, wire, message } => {
                    let to = NAMES.iter().position(|name| name == peer).unwrap();
                    let bytes = message.encode(*wire).expect("no message beyond the link's version");
                    self.wire.push_back((at, to, *link, bytes));
                }
                Output::Trim { partition, first } if *trims => store.trim(*partition, *first),
                Output::Read { reader, fresh, read, sizes } => {
                    if *fresh {
                        snapshots.insert(*reader, store.clone());
                    }
                    let found = repair::run(&snapshots[reader], read, *sizes).unwrap();
                    self.reads.push_back((at, Input::Read { reader: *reader, found: Box::new(found) }));
                }
                Output::EndRead { reader } => drop(snapshots.remove(reader)),
                Output::Close { reason, .. } => panic!("{} closes a link: {reason}", NAMES[at]),
                Output::Reply { reply, .. } => answer = Some(reply.clone()),
                _ => {}
            }
            if !matches!(output, Output::Reply { .. }) {
                self.outputs.push((at, output));
            }
        }
        answer
    }

    /// Delivers what is on its way, and all that follows from it.
    pub fn deliver(&mut self) {
        loop {
            while let Some((at, read)) = self.reads.pop_front() {
                self.step(at, Some(read));
            }
            let Some((from, to, link, bytes)) = self.wire.pop_front() else { break };
            let is_up = |&(x, y, id): &(usize, usize, LinkId)| id == link && [x, y].contains(&to);
            if self.links.iter().any(is_up) {
                self.step(to, Some(Input::Frame { peer: NAMES[from].into(), link, bytes }));
            }
        }
    }

    /// Time passes.
    pub fn run(&mut self, us: u64) {
        let end = self.now_us + us;
        while self.now_us < end {
            self.deliver();
            self.now_us += STEP_US;
            self.wall_ms += STEP_US / 1000;
            self.due();
        }
        self.deliver();
    }

    /// Does what is due.
    pub fn due(&mut self) {
        for at in 0..self.members.len() {
            if self.members[at].node.next_deadline().is_some_and(|at| at <= Mono(self.now_us)) {
                self.step(at, None);
            }
        }
    }

    /// Links two nodes that speak a wire version.
    pub fn link_by(&mut self, a: usize, b: usize, wire: u8) {
        self.next += 1;
        let link = LinkId(self.next);
        self.links.push((a, b, link));
        self.step(a, Some(Input::Up { peer: NAMES[b].into(), link, wire }));
        self.step(b, Some(Input::Up { peer: NAMES[a].into(), link, wire }));
    }

    /// Links two nodes.
    pub fn link(&mut self, a: usize, b: usize) {
        self.link_by(a, b, WIRE_VERSION);
    }

    /// Cuts a link.
    pub fn cut(&mut self, a: usize, b: usize) {
        let at = self.links.iter().position(|(x, y, _)| (*x, *y) == (a, b)).unwrap();
        let (_, _, link) = self.links.remove(at);
        self.step(a, Some(Input::Down { peer: NAMES[b].into(), link }));
        self.step(b, Some(Input::Down { peer: NAMES[a].into(), link }));
    }

    /// A client writes a new record, which is [`World::record`] of the number of records written.
    pub fn commit(&mut self, at: usize) {
        self.records += 1;
        let value = Json::parse(&format!("{:?}", "x".repeat(200))).unwrap();
        let ops = vec![Op::Set { field: Field::new("f").unwrap(), value }];
        self.write(at, &Self::record(self.records), ops);
    }

    /// The name of a record, from 1.
    pub fn record(number: u64) -> RecordId {
        let key = Key::new(format!("k{number}")).unwrap();
        RecordId { namespace: Namespace::new("ns").unwrap(), key }
    }

    /// A client writes.
    pub fn write(&mut self, at: usize, record: &RecordId, ops: Vec<Op>) {
        self.next += 1;
        let writes = vec![Write { record: record.clone(), ops }];
        let input = Input::Commit { request: RequestId(self.next), writes, terms: Terms::default() };
        let reply = self.step(at, Some(input));
        assert!(matches!(reply, Some(Reply::Committed { .. })), "{reply:?}");
    }

    /// Clients write new records; then a second passes.
    pub fn commits(&mut self, at: usize, count: usize) {
        for _ in 0..count {
            self.commit(at);
            self.due();
        }
        self.run(1_000_000);
    }

    /// How a node is.
    pub fn status(&mut self, at: usize) -> Status {
        match self.step(at, Some(Input::Status { request: RequestId(0) })) {
            Some(Reply::Status(status)) => *status,
            other => panic!("{other:?}"),
        }
    }

    /// Whether two nodes have applied the same.
    pub fn is_even(&self, a: usize, b: usize) -> bool {
        let context = |at: usize, id| self.members[at].node.context(PartitionId(id));
        (0..PARTITIONS).all(|id| context(a, id) == context(b, id))
    }

    /// A node starts anew on what it has.
    pub fn reopen(&mut self, at: usize) {
        let Member { config, node, store, .. } = &mut self.members[at];
        config.seed += 100;
        let (opened, batch) = Node::open(config.clone(), store).unwrap();
        store.commit(batch);
        *node = opened;
    }

    /// Who raised an alarm that a log does not reach back, and about whom.
    pub fn alarms(&self) -> Vec<(usize, PartitionId, &str)> {
        let alarms = self.outputs.iter().filter_map(|(at, output)| match output {
            Output::Alarm(Alarm::LogGone { partition, peer }) => Some((*at, *partition, peer.as_str())),
            _ => None,
        });
        alarms.collect()
    }

    /// Who had a partition repaired, each time.
    pub fn repaired(&self) -> Vec<usize> {
        let repaired = self.outputs.iter().filter_map(|(at, output)| {
            matches!(output, Output::Alarm(Alarm::Repaired { .. })).then_some(*at)
        });
        repaired.collect()
    }

    /// Whether a node said that its log does not reach back.
    pub fn said_gone(&self, at: usize) -> bool {
        self.outputs.iter().any(|(by, output)| {
            *by == at && matches!(output, Output::Send { message: Message::Gone { .. }, .. })
        })
    }

    /// Entries in a store's logs.
    pub fn stored_entries(&self, at: usize) -> u64 {
        let mut count = 0;
        for id in 0..PARTITIONS {
            let (from, to) =
                (keys::log_entry(PartitionId(id), 0), keys::log_entry(PartitionId(id), u64::MAX));
            let mut visit = |_: &[u8], _: &[u8]| {
                count += 1;
                ControlFlow::Continue(())
            };
            self.members[at].store.scan(Family::Log, &from, &to, &mut visit).unwrap();
        }
        count
    }
}
