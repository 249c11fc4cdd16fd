//! A cluster that is told what to do step by step: commits, and one-way synchronisations. For histories with known
//! answers, where the order of events is given and not drawn.
//!
//! Every step goes through operations, the row codec and the protocol's bytes, as in a run; only who talks to whom,
//! and when, is decided by the caller.

use std::collections::VecDeque;

use godwit_core::context::VersionVector;
use godwit_core::ids::{PartitionId, RecordId, ReplicaId};
use godwit_core::machine::{Effects, Machine};
use godwit_core::op::{Limits, Op, Terms, Write};
use godwit_core::read::{self, FieldView, ReadAt, ReadLimits};
use godwit_core::store::{MemStore, StoreError};
use godwit_core::time::{Mono, Now, Wall};
use godwit_proto::message::WIRE_VERSION;
use godwit_proto::{Input, LinkId, Message, Node, NodeConfig, Output, Reply, RequestId};

use crate::config::plain_tuning;

/// Rounds of waiting within one synchronisation: far more than any history needs.
const ROUNDS_MAX: usize = 1000;

/// Why a step failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepError(pub String);

impl From<StoreError> for StepError {
    fn from(error: StoreError) -> Self {
        Self(error.to_string())
    }
}

/// What a synchronisation cost: both directions, greetings included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Messages.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Nodes without a network of their own.
#[derive(Debug)]
pub struct Cluster {
    members: Vec<Member>,
    now_us: u64,
    links: u64,
}

#[derive(Debug)]
struct Member {
    name: String,
    node: Node,
    store: MemStore,
}

const PARTITIONS: u16 = 1;
const PARTITION: PartitionId = PartitionId(0);

impl Cluster {
    /// A cluster of nodes with these names and one partition.
    pub fn new(names: &[String]) -> Result<Self, StepError> {
        let member = |(i, name): (usize, &String)| {
            let config = NodeConfig {
                cluster: "vectors".into(),
                node: name.clone(),
                region: name.clone(),
                members: names.iter().filter(|other| *other != name).cloned().collect(),
                seed: i as u64 + 1,
                same_place: true,
                partitions: PARTITIONS,
                limits: Limits::default(),
                max_clock_drift_ms: 60_000,
                idempotency_window_ms: 86_400_000,
                tuning: plain_tuning(),
            };
            let mut store = MemStore::default();
            let (node, batch) = Node::open(config, &store)?;
            store.commit(batch);
            Ok(Member { name: name.clone(), node, store })
        };
        let members = names.iter().enumerate().map(member).collect::<Result<_, StoreError>>()?;
        Ok(Self { members, now_us: 1_000_000, links: 0 })
    }

    /// Commits operations on a record at a node.
    pub fn commit(&mut self, node: usize, record: &RecordId, ops: Vec<Op>) -> Result<(), StepError> {
        self.commit_on(node, record, ops, Terms::default())
    }

    /// The same on terms.
    pub fn commit_on(
        &mut self,
        node: usize,
        record: &RecordId,
        ops: Vec<Op>,
        terms: Terms,
    ) -> Result<(), StepError> {
        self.now_us += 1000;
        let writes = vec![Write { record: record.clone(), ops }];
        let outputs = self.step(node, Input::Commit { request: RequestId(0), writes, terms })?;
        match outputs
            .into_iter()
            .find_map(|output| if let Output::Reply { reply, .. } = output { Some(reply) } else { None })
        {
            Some(Reply::Committed { .. }) => Ok(()),
            other => Err(StepError(format!("the commit was answered with {other:?}"))),
        }
    }

    /// Reads a record at a node.
    pub fn read(&self, node: usize, record: &RecordId) -> Result<Vec<FieldView>, StepError> {
        let at = ReadAt { partitions: PARTITIONS, now_ms: self.now_us / 1000 };
        read::record(&self.members[node].store, at, record, ReadLimits::NONE)
            .map_err(|error| StepError(error.to_string()))
    }

    /// The id under which a node writes.
    pub fn replica(&self, node: usize) -> ReplicaId {
        self.members[node].node.replica()
    }

    /// What a node has applied.
    pub fn context(&self, node: usize) -> &VersionVector {
        self.members[node].node.context(PARTITION)
    }

    /// Connects two nodes until `to` has all that `from` has, by the protocol, and nothing else has moved: deltas in
    /// the other direction are lost on the way. Tells what it cost.
    pub fn sync(&mut self, from: usize, to: usize) -> Result<Traffic, StepError> {
        let mut traffic = Traffic::default();
        self.links += 1;
        let link = LinkId(self.links);
        let mut wire: VecDeque<(usize, Message)> = VecDeque::new();
        for (node, peer) in [(from, to), (to, from)] {
            let peer = self.members[peer].name.clone();
            let outputs = self.step(node, Input::Up { peer, link, wire: WIRE_VERSION })?;
            collect(&mut wire, node, outputs);
        }
        for _ in 0..ROUNDS_MAX {
            while let Some((sender, message)) = wire.pop_front() {
                if sender == to && matches!(message, Message::Deltas { .. }) {
                    continue;
                }
                let receiver = if sender == from { to } else { from };
                let peer = self.members[sender].name.clone();
                let bytes = message.encode(WIRE_VERSION).unwrap_or_default();
                traffic.frames += 1;
                traffic.bytes += bytes.len() as u64;
                let outputs = self.step(receiver, Input::Frame { peer, link, bytes })?;
                collect(&mut wire, receiver, outputs);
            }
            if self.context(to).covers_all(self.context(from)) {
                for (node, peer) in [(from, to), (to, from)] {
                    let peer = self.members[peer].name.clone();
                    self.step(node, Input::Down { peer, link })?;
                }
                return Ok(traffic);
            }
            self.now_us += 10_000;
            for node in [from, to] {
                let outputs = self.timeout(node)?;
                collect(&mut wire, node, outputs);
            }
        }
        Err(StepError(format!("node {to} does not get all that node {from} has")))
    }

    fn now(&self) -> Now {
        Now { mono: Mono(self.now_us), wall: Wall(self.now_us / 1000) }
    }

    fn step(&mut self, node: usize, input: Input) -> Result<Vec<Output>, StepError> {
        let now = self.now();
        let Member { node, store, .. } = &mut self.members[node];
        let mut effects = Effects::default();
        node.handle(now, input, store, &mut effects)?;
        store.commit(effects.batch);
        trim(store, &effects.outputs);
        Ok(effects.outputs)
    }

    fn timeout(&mut self, node: usize) -> Result<Vec<Output>, StepError> {
        let now = self.now();
        let Member { node, store, .. } = &mut self.members[node];
        let mut effects = Effects::default();
        node.handle_timeout(now, store, &mut effects)?;
        store.commit(effects.batch);
        trim(store, &effects.outputs);
        Ok(effects.outputs)
    }
}

fn trim(store: &mut MemStore, outputs: &[Output]) {
    for output in outputs {
        if let Output::Trim { partition, first } = output {
            store.trim(*partition, *first);
        }
    }
}

fn collect(wire: &mut VecDeque<(usize, Message)>, sender: usize, outputs: Vec<Output>) {
    for output in outputs {
        if let Output::Send { message, .. } = output {
            wire.push_back((sender, message));
        }
    }
}
