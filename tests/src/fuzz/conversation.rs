//! Two hostile peers and a node.
//!
//! The bytes are what the peers say, with the node's own commits and time in between. After each step the node has not
//! stopped (unless it was told too often that others have commits of its own that it does not hold), has put out and holds no more
//! than it may, has only grown, and every record is readable. At the end an honest node gets from it what it took, and comes
//! to the same rows: what a hostile peer made it accept is passed on consistently.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use godwit_core::context::VersionVector;
use godwit_core::delta::EncodedDelta;
use godwit_core::digest;
use godwit_core::ids::{PartitionId, RecordId, ReplicaId};
use godwit_core::machine::{Effects, Machine};
use godwit_core::op::Limits;
use godwit_core::partition::{CommitError, Sizes};
use godwit_core::read::{self, ReadAt, ReadLimits};
use godwit_core::row::FieldType;
use godwit_core::store::{MemStore, StoreError};
use godwit_core::time::{Mono, Now, Wall};
use godwit_proto::message::{Confirm, Hello, WIRE_VERSION};
use godwit_proto::{Input, LinkId, Message, Node, NodeConfig, Output, Reply, RequestId, Tuning};

use super::bytes::Choices;
use super::made;

const PARTITIONS: u16 = 2;
const PEERS: [&str; 2] = ["there", "third"];
/// Steps of one conversation.
const STEPS_MAX: usize = 64;
/// Outputs of one step: far above what a few peers and partitions ask for.
const OUTPUTS_MAX: usize = 256;
/// Bytes that may wait for others.
const PENDING_MAX: usize = 2000;
/// Rounds of ten milliseconds within which the honest node has all: half a minute.
const ROUNDS_MAX: usize = 3000;

/// A node with its store.
struct Bench {
    node: Node,
    store: MemStore,
    now_us: u64,
}

impl Bench {
    fn new(name: &str, seed: u64, tuning: Tuning) -> Self {
        let config = NodeConfig {
            cluster: "test".into(),
            node: name.into(),
            region: name.into(),
            members: PEERS.iter().map(ToString::to_string).collect(),
            seed,
            same_place: true,
            partitions: PARTITIONS,
            limits: Limits::default(),
            max_clock_drift_ms: 1000,
            idempotency_window_ms: 86_400_000,
            tuning,
        };
        let mut store = MemStore::default();
        let (node, batch) = Node::open(config, &store).expect("an empty store");
        store.commit(batch);
        Self { node, store, now_us: 1_000_000 }
    }

    fn now(&self) -> Now {
        Now { mono: Mono(self.now_us), wall: Wall(1_000_000 + self.now_us / 1000) }
    }

    fn give(&mut self, input: Input) -> Result<Vec<Output>, StoreError> {
        let mut effects = Effects::default();
        self.node.handle(self.now(), input, &self.store, &mut effects)?;
        self.store.commit(effects.batch);
        Ok(effects.outputs)
    }

    fn pass(&mut self, us: u64) -> Result<Vec<Output>, StoreError> {
        self.now_us += us;
        let mut effects = Effects::default();
        self.node.handle_timeout(self.now(), &self.store, &mut effects)?;
        self.store.commit(effects.batch);
        Ok(effects.outputs)
    }

    fn contexts(&self) -> Vec<VersionVector> {
        (0..PARTITIONS).map(|id| self.node.context(PartitionId(id)).clone()).collect()
    }

    fn digests(&self) -> Vec<[u8; 32]> {
        let digest = |id| {
            let id = PartitionId(id);
            digest::partition(&self.store, id, self.node.context(id)).expect("readable")
        };
        (0..PARTITIONS).map(digest).collect()
    }
}

/// What was seen of the node so far.
struct Witness {
    bench: Bench,
    records: Vec<Vec<RecordId>>,
    /// The ids under which the node has written, the present one last.
    own: Vec<ReplicaId>,
    before: Vec<VersionVector>,
    /// The last own commit by partition and id.
    committed: BTreeMap<(PartitionId, ReplicaId), u64>,
    /// The present link by peer.
    links: [u64; 2],
    wires: [u8; 2],
    next_link: u64,
}

/// A node among hostile peers stays whole, and passes on what it took.
///
/// # Panics
/// If it does not.
pub fn conversation(bytes: &[u8]) {
    let from = &mut Choices::new(bytes);
    let tuning = Tuning {
        window_bytes: 1024,
        chunk_bytes: 300,
        relay_bytes: 1000,
        push_commits_max: *from.pick(&[1024, 1]),
        pending_bytes_max: PENDING_MAX,
        sizes: Sizes {
            checkpoint_entries: *from.pick(&[2, 1, 1024]),
            checkpoint_bytes: 300,
            clear_rows: *from.pick(&[256, 0, 1]),
            sweep_rows: 2,
            sweep_after_ms: 0,
            forget_after_ms: 0,
        },
        ..Tuning::default()
    };
    let bench = Bench::new("here", 1, tuning.clone());
    let mut witness = Witness {
        records: (0..PARTITIONS).map(records_in).collect(),
        own: vec![bench.node.replica()],
        before: bench.contexts(),
        committed: BTreeMap::new(),
        links: [0; 2],
        wires: [WIRE_VERSION; 2],
        next_link: 1,
        bench,
    };
    for (peer, name) in PEERS.into_iter().enumerate() {
        let wire = if from.one_in(4) { 1 } else { WIRE_VERSION };
        witness.connect(peer, wire).expect("a new link stops nothing");
        let hello = hello(name, ReplicaId(2 + peer as u64), 7, None);
        witness.say(peer, &Message::Hello(hello)).expect("a greeting stops nothing");
    }
    for _ in 0..STEPS_MAX {
        if from.is_empty() {
            break;
        }
        match witness.step(from) {
            Ok(outputs) => witness.check(&outputs),
            Err(StoreError::Inconsistent(why)) if why.contains("a peer may be lying") => return,
            Err(error) => panic!("the node stops: {error}"),
        }
    }
    witness.pass_on(&tuning);
}

fn records_in(partition: u16) -> Vec<RecordId> {
    let all = (0..).map(|i| made::record(&format!("k{i}")));
    all.filter(|record| record.partition(PARTITIONS) == PartitionId(partition)).take(2).collect()
}

fn hello(node: &str, replica: ReplicaId, instance: u64, resumes: Option<u64>) -> Hello {
    Hello {
        cluster: "test".into(),
        node: node.into(),
        region: node.into(),
        replica,
        partitions: PARTITIONS,
        instance,
        resumes,
    }
}

impl Witness {
    fn connect(&mut self, peer: usize, wire: u8) -> Result<Vec<Output>, StoreError> {
        self.next_link += 1;
        self.links[peer] = self.next_link;
        self.wires[peer] = wire;
        self.bench.give(Input::Up { peer: PEERS[peer].into(), link: LinkId(self.next_link), wire })
    }

    fn say(&mut self, peer: usize, message: &Message) -> Result<Vec<Output>, StoreError> {
        match message.encode(self.wires[peer]) {
            Some(bytes) => self.say_bytes(peer, bytes),
            None => Ok(Vec::new()),
        }
    }

    fn say_bytes(&mut self, peer: usize, bytes: Vec<u8>) -> Result<Vec<Output>, StoreError> {
        let link = LinkId(self.links[peer]);
        self.bench.give(Input::Frame { peer: PEERS[peer].into(), link, bytes })
    }

    /// Ids that a peer may name: its own, others', and the node's former and present ones.
    fn replicas(&self) -> Vec<ReplicaId> {
        (2..6).map(ReplicaId).chain(self.own.iter().copied()).collect()
    }

    fn step(&mut self, from: &mut Choices<'_>) -> Result<Vec<Output>, StoreError> {
        let peer = from.below(PEERS.len());
        let id = from.below(usize::from(PARTITIONS));
        let partition = PartitionId(id as u16);
        let replicas = self.replicas();
        match from.below(16) {
            0 | 1 => {
                let (writes, terms) = (made::writes(from, &self.records[id]), made::terms(from));
                self.bench.give(Input::Commit { request: RequestId(1), writes, terms })
            }
            2 => self.bench.pass(*from.pick(&[0, 10_000, 60_000, 1_100_000, 6_000_000])),
            3 => {
                let (record, field) = (from.pick(&self.records[id]).clone(), made::field(from));
                let ty = *from.pick(&[FieldType::SET, FieldType::COUNTER, FieldType(0x10)]);
                self.bench.give(Input::Count { record, field, ty })
            }
            4 if from.one_in(4) => {
                let link = LinkId(self.links[peer]);
                self.bench.give(Input::Down { peer: PEERS[peer].into(), link })
            }
            4 => {
                let wire = if from.one_in(4) { 1 } else { WIRE_VERSION };
                let outputs = self.connect(peer, wire)?;
                self.check(&outputs);
                let hello = hello(PEERS[peer], ReplicaId(2 + peer as u64), 7, None);
                self.say(peer, &Message::Hello(hello))
            }
            5 => {
                let replica = *from.pick(&replicas);
                let resumes = from.one_in(2).then(|| from.below(3) as u64);
                self.say(peer, &Message::Hello(hello(PEERS[peer], replica, from.below(3) as u64, resumes)))
            }
            6 | 7 => {
                let complete = from.one_in(2);
                let contexts = (0..from.below(3))
                    .map(|_| (PartitionId(from.below(3) as u16 % PARTITIONS), made::vector(from, &replicas)));
                let contexts = contexts.collect();
                self.say(peer, &Message::Contexts { complete, contexts })
            }
            8 => {
                let context = made::vector(from, &replicas);
                self.say(peer, &Message::Want { partition, context })
            }
            9 => {
                let holds = (0..from.below(3)).map(|_| (partition, made::count(from))).collect();
                let (replica, instance) = (*from.pick(&replicas), from.below(3) as u64);
                let confirm = Confirm { replica, instance, follows: from.one_in(2), holds };
                self.say(peer, &Message::Confirm(confirm))
            }
            10 => {
                let length = from.below(40);
                let bytes = from.take(length).to_vec();
                self.say_bytes(peer, bytes)
            }
            _ => {
                let after = self.bench.node.context(partition).clone();
                let deltas: Vec<EncodedDelta> = (0..=from.below(2))
                    .map(|_| made::delta(from, &replicas, &self.records[id], &after).encode())
                    .collect();
                self.say(peer, &Message::Deltas { partition, deltas, ends_want: from.one_in(3) })
            }
        }
    }

    /// What must hold after every step.
    fn check(&mut self, outputs: &[Output]) {
        let Self { bench, records, own, before, committed, .. } = self;
        assert!(outputs.len() <= OUTPUTS_MAX, "{} outputs of one step", outputs.len());
        let replica = bench.node.replica();
        if own.last() != Some(&replica) {
            own.push(replica);
        }
        for output in outputs {
            match output {
                Output::Reply {
                    reply: Reply::Committed { commit: Some((dot, _)), repeated, .. }, ..
                } if !repeated => {
                    assert!(own.contains(&dot.replica), "a commit of another's: {dot:?}");
                }
                Output::Reply { reply: Reply::Refused(CommitError::Store(error)), .. } => {
                    panic!("a client is told of the store: {error}")
                }
                Output::Send { wire, message, .. } => {
                    let bytes = message.encode(*wire).expect("the link's version can say it");
                    assert_eq!(Message::decode(*wire, &bytes).map(|_| ()), Ok(()), "unreadable for peers");
                }
                _ => {}
            }
        }
        let contexts = bench.contexts();
        for (id, (now, before)) in contexts.iter().zip(before.iter()).enumerate() {
            assert!(now.covers_all(before), "a context shrank");
            let counter = now.get(replica);
            let last = committed.entry((PartitionId(id as u16), replica)).or_insert(0);
            // Commits that waited for their incarnation come several at once.
            assert!(counter >= *last, "own commits are taken back");
            *last = counter;
        }
        *before = contexts;
        let pending = bench.node.status().pending_bytes;
        assert!(pending <= PENDING_MAX, "{pending} bytes wait");
        for record in records.iter().flatten() {
            read::record(
                &bench.store,
                ReadAt { partitions: PARTITIONS, now_ms: u64::MAX },
                record,
                ReadLimits::NONE,
            )
            .expect("readable");
        }
    }

    /// An honest node gets all from this one.
    fn pass_on(mut self, tuning: &Tuning) {
        for (peer, link) in PEERS.into_iter().zip(self.links.map(LinkId)) {
            let _ = self.bench.give(Input::Down { peer: peer.into(), link });
        }
        // What the node keeps of its own accord must not tell.
        let mut honest = Bench::new("third", 2, Tuning { sizes: Sizes::default(), ..tuning.clone() });
        honest.now_us = self.bench.now_us;
        let link = LinkId(self.next_link + 1);
        let mut wire: VecDeque<(bool, Message)> = VecDeque::new();
        let collect = |wire: &mut VecDeque<(bool, Message)>, to_honest: bool, outputs: Vec<Output>| {
            for output in outputs {
                match output {
                    Output::Send { peer, link: on, message, .. } if on == link => {
                        assert_eq!(peer, if to_honest { "third" } else { "here" });
                        wire.push_back((to_honest, message));
                    }
                    Output::Close { reason, .. } => panic!("honest nodes part: {reason}"),
                    _ => {}
                }
            }
        };
        let up = |peer: &str| Input::Up { peer: peer.into(), link, wire: WIRE_VERSION };
        let ok = "a link stops nothing";
        collect(&mut wire, true, self.bench.give(up("third")).expect(ok));
        collect(&mut wire, false, honest.give(up("here")).expect(ok));
        for _ in 0..ROUNDS_MAX {
            while let Some((to_honest, message)) = wire.pop_front() {
                let bytes = message.encode(WIRE_VERSION).expect("the newest version says everything");
                let (bench, peer) =
                    if to_honest { (&mut honest, "here") } else { (&mut self.bench, "third") };
                let outputs = bench.give(Input::Frame { peer: peer.into(), link, bytes });
                let outputs = outputs.expect("what an honest node says stops nobody");
                collect(&mut wire, !to_honest, outputs);
            }
            let (here, there) = (self.bench.contexts(), honest.contexts());
            if there.iter().zip(&here).all(|(there, here)| there.covers_all(here)) && here == there {
                break;
            }
            collect(&mut wire, true, self.bench.pass(10_000).expect("time stops nothing"));
            collect(&mut wire, false, honest.pass(10_000).expect("time stops nothing"));
        }
        assert_eq!(honest.contexts(), self.bench.contexts(), "not everything is passed on");
        let same: BTreeSet<_> = [self.bench.digests(), honest.digests()].into_iter().collect();
        assert_eq!(same.len(), 1, "passed on differently: {:?}\n{:?}", self.bench.store, honest.store);
    }
}
