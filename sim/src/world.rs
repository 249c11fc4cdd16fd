//! The world of a run: nodes with their disks and clocks, the network between them, and one queue of events.
//!
//! A node is driven as in production: inputs gather, a group of them goes through the machine over one growing
//! batch, the batch becomes durable after the time of an fsync, and only then outputs are released. A crash at any
//! moment between loses what was not durable: the batch of the moment is lost or kept whole, as a write-ahead log
//! does it, and its outputs are lost either way.

use std::collections::{BTreeMap, VecDeque};

use godwit_core::context::VersionVector;
use godwit_core::digest;
use godwit_core::ids::{PartitionId, ReplicaId};
use godwit_core::machine::{Effects, Machine};
use godwit_core::op::{Limits, Terms, Write};
use godwit_core::partition;
use godwit_core::rng::Rng;
use godwit_core::store::{MemStore, StoreError};
use godwit_core::time::{Mono, Now, Wall};
use godwit_proto::incarnation::CONFIRM_WAIT_US;
use godwit_proto::message::WIRE_VERSION;
use godwit_proto::{Input, LinkId, Message, Node, NodeConfig, Output, Reply, RequestId};

use crate::judge::{Asked, Refusable, Stepped};
use crate::network::{Frame, Network, Pair, pair};
use crate::oracle::{Commit, Oracle, Violation};
use crate::run::RunConfig;
use crate::trace::Trace;

/// A node that is up must answer a commit within this time, whatever the links do.
const ANSWER_US_MAX: u64 = CONFIRM_WAIT_US + 1_000_000;
/// More than any delta of the workload has.
const SMALL_DELTA_BYTES: usize = 4096;
/// Wall time at the beginning, in milliseconds since 1970.
const WALL_START_MS: u64 = 1_800_000_000_000;

/// What happens at a moment.
#[derive(Debug)]
pub enum Event {
    /// A client commits at a node.
    Client(usize, Vec<Write>),
    /// A read of a node's whole state is compared with the specification.
    Check(usize),
    /// A batch becomes durable.
    Durable {
        /// The node.
        node: usize,
        /// Its life, counted up by each start.
        life: u64,
    },
    /// A node's machine may have something to do.
    Timer(usize),
    /// A frame arrives.
    Arrival(Frame),
    /// Two nodes try to connect.
    Connect(Pair),
    /// One end of a connection learns that it has ended.
    Down {
        /// The end.
        node: usize,
        /// The other end.
        peer: usize,
        /// The connection.
        link: u64,
    },
    /// A connection has been cut for too long, if it still is.
    Idle(Pair, u64),
    /// The link between two nodes is cut.
    Cut(Pair),
    /// It works again.
    Heal(Pair),
    /// No more cuts and heals: the link stays as it is.
    Seal(Pair),
    /// The connection between two nodes is reset.
    Reset(Pair),
    /// A node's process is killed.
    Crash(usize),
    /// It starts again.
    Start(usize),
    /// A node's wall clock is set, in milliseconds off.
    ClockStep(usize, i64),
}

/// A node with its process, disk and clock.
#[derive(Debug)]
struct Machinery {
    name: String,
    config: NodeConfig,
    node: Option<Node>,
    disk: MemStore,
    life: u64,
    inbox: VecDeque<Input>,
    group: Option<Group>,
    timer: Option<u64>,
    clock_offset_ms: i64,
    fsync_us: u64,
    group_max: usize,
    /// What a reader last saw applied, by partition: it must never shrink.
    seen: BTreeMap<PartitionId, VersionVector>,
    /// Requests not answered: since when, and what.
    open: BTreeMap<RequestId, Asked>,
    /// Its incarnations that have written something durable, and how much, by partition.
    written: BTreeMap<(ReplicaId, PartitionId), u64>,
    /// The same, with what is on its way to the disk.
    begun: BTreeMap<(ReplicaId, PartitionId), u64>,
}

/// A batch on its way to the disk.
#[derive(Debug)]
struct Group {
    effects: Effects<Output>,
    commits: Vec<Commit>,
}

/// Everything.
#[derive(Debug)]
pub struct World {
    /// Simulated microseconds since the beginning.
    pub now_us: u64,
    /// The draws of the run.
    pub rng: Rng,
    /// What happened.
    pub trace: Trace,
    /// What must hold.
    pub oracle: Oracle,
    partitions: u16,
    nodes: Vec<Machinery>,
    network: Network,
    queue: BTreeMap<(u64, u64), Event>,
    sequence: u64,
    requests: u64,
    /// Frames sent, for the report.
    pub frames: u64,
    /// Commits acknowledged, for the report.
    pub acknowledged: u64,
}

impl World {
    /// A world at its beginning: all nodes start, all links work.
    pub fn new(config: &RunConfig, rng: Rng, print: bool) -> Result<Self, Violation> {
        let mut world = Self {
            now_us: 0,
            rng,
            trace: Trace::new(print),
            oracle: Oracle::default(),
            partitions: config.partitions,
            nodes: Vec::new(),
            network: Network::new(config.network.clone(), config.nodes),
            queue: BTreeMap::new(),
            sequence: 0,
            requests: 0,
            frames: 0,
            acknowledged: 0,
        };
        for i in 0..config.nodes {
            let name = format!("n{i}");
            let node = NodeConfig {
                cluster: "sim".into(),
                node: name.clone(),
                region: format!("r{i}"),
                members: (0..config.nodes)
                    .filter(|&other| other != i)
                    .map(|other| format!("n{other}"))
                    .collect(),
                seed: 0,
                same_place: true,
                partitions: config.partitions,
                limits: Limits::default(),
                max_clock_drift_ms: config.max_clock_drift_ms,
                idempotency_window_ms: config.idempotency_window_ms,
                tuning: config.tuning.clone(),
            };
            world.nodes.push(Machinery {
                name,
                config: node,
                node: None,
                disk: MemStore::default(),
                life: 0,
                inbox: VecDeque::new(),
                group: None,
                timer: None,
                clock_offset_ms: config.clock_offsets_ms[i],
                fsync_us: config.fsync_us[i],
                group_max: config.group_max,
                seen: BTreeMap::new(),
                open: BTreeMap::new(),
                written: BTreeMap::new(),
                begun: BTreeMap::new(),
            });
            world.start(i)?;
        }
        for pair in world.network.pairs() {
            world.at(config.network.connect_us, Event::Connect(pair));
        }
        Ok(world)
    }

    /// Schedules an event after a time.
    pub fn at(&mut self, after_us: u64, event: Event) {
        self.sequence += 1;
        self.queue.insert((self.now_us + after_us, self.sequence), event);
    }

    /// Lives through the next event if it comes before a moment; otherwise the moment is now.
    pub fn advance(&mut self, until_us: u64) -> Result<bool, Violation> {
        let Some(entry) = self.queue.first_entry() else {
            self.now_us = until_us;
            return Ok(false);
        };
        if entry.key().0 > until_us {
            self.now_us = until_us;
            return Ok(false);
        }
        let ((at, _), event) = entry.remove_entry();
        self.now_us = at;
        self.happen(event)?;
        Ok(true)
    }

    /// All links of the world.
    pub fn pairs(&self) -> Vec<Pair> {
        self.network.pairs()
    }

    /// How many nodes there are.
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// Whether a node's process runs.
    pub fn is_up(&self, node: usize) -> bool {
        self.nodes[node].node.is_some()
    }

    /// Whether a link is cut.
    pub fn is_cut(&self, pair: Pair) -> bool {
        self.network.is_cut(pair)
    }

    /// Compares a node's durable state with what must be there.
    pub fn check(&mut self, i: usize) -> Result<(), Violation> {
        for id in (0..self.partitions).map(PartitionId) {
            let whose = self.nodes[i].name.clone();
            let context = self.oracle.check(&self.nodes[i].disk, self.partitions, id, &whose)?;
            let node = &mut self.nodes[i];
            let seen = node.seen.entry(id).or_default();
            if !context.covers_all(seen) {
                return Err(Violation::new(
                    3,
                    format!("{whose} had applied {seen:?} of partition {id}, now {context:?}"),
                ));
            }
            let written = &node.written;
            let own = |replica| written.contains_key(&(replica, id));
            self.oracle.has_acknowledged(id, &context, own, &whose)?;
            *seen = context;
        }
        self.check_bounds(i)
    }

    /// Whether all nodes have applied the same, and nothing less than what clients were told of, in every partition
    /// but one that is still written to. `Ok(None)` says yes.
    pub fn difference(&self, busy: Option<PartitionId>) -> Result<Option<String>, Violation> {
        let broken = |error: StoreError| Violation::new(10, error.to_string());
        for id in (0..self.partitions).map(PartitionId).filter(|&id| Some(id) != busy) {
            let mut first: Option<(VersionVector, [u8; 32])> = None;
            for node in &self.nodes {
                let context = partition::stored_context(&node.disk, id).map_err(broken)?;
                let digest = digest::partition(&node.disk, id, &context).map_err(broken)?;
                match &first {
                    None => {
                        if self.oracle.has_acknowledged(id, &context, |_| true, &node.name).is_err() {
                            return Ok(Some(format!("{} lacks commits of partition {id}", node.name)));
                        }
                        first = Some((context, digest));
                    }
                    Some((other, _)) if *other != context => {
                        return Ok(Some(format!(
                            "{} has {context:?} of partition {id}, another {other:?}",
                            node.name
                        )));
                    }
                    Some((_, other)) if *other != digest => {
                        return Err(Violation::new(
                            1,
                            format!("{}: equal contexts, other bytes in partition {id}", node.name),
                        ));
                    }
                    Some(_) => {}
                }
            }
        }
        Ok(None)
    }

    /// Whether every node knows that all agree, and nothing waits or is under way any more. `None` says yes.
    pub fn unsettled(&self, directly_linked: impl Fn(usize, &str) -> bool) -> Option<String> {
        self.nodes.iter().enumerate().find_map(|(i, member)| {
            let status = member.node.as_ref()?.status();
            if status.pending_bytes > 0 {
                return Some(format!("n{i} holds {} bytes of waiting deltas", status.pending_bytes));
            }
            let mut linked = status.peers.iter().filter(|(name, _)| directly_linked(i, name));
            let open = linked.find(|(_, peer)| {
                !peer.linked || peer.commits_behind + peer.commits_ahead > 0 || peer.in_flight_bytes > 0
            })?;
            Some(format!("n{i} does not know that it agrees with {open:?}"))
        })
    }

    fn happen(&mut self, event: Event) -> Result<(), Violation> {
        match event {
            Event::Client(i, writes) => self.client(i, writes),
            Event::Check(i) => self.check(i),
            Event::Durable { node, life } if self.nodes[node].life == life => self.durable(node),
            Event::Durable { .. } => Ok(()),
            Event::Timer(i) => {
                self.nodes[i].timer = None;
                self.work(i)
            }
            Event::Arrival(frame) => match self.network.deliver(frame) {
                Some(frame) => self.arrive(frame),
                None => Ok(()),
            },
            Event::Connect(pair) => self.connect(pair),
            Event::Down { node, peer, link } => {
                let peer = self.nodes[peer].name.clone();
                self.trace.line(self.now_us, format_args!("n{node} loses link {link} to {peer}"));
                self.input(node, Input::Down { peer, link: LinkId(link) })
            }
            Event::Idle(pair, link) => {
                if self.network.is_cut(pair) && self.network.connection(pair) == Some(link) {
                    self.disconnect(pair);
                }
                Ok(())
            }
            Event::Seal(pair) => {
                self.network.seal(pair);
                Ok(())
            }
            Event::Cut(pair) | Event::Heal(pair) if self.network.is_sealed(pair) => Ok(()),
            Event::Cut(pair) => {
                self.trace.line(self.now_us, format_args!("cut {pair:?}"));
                self.network.cut(pair);
                if let Some(link) = self.network.connection(pair) {
                    self.at(self.network.config().idle_us, Event::Idle(pair, link));
                }
                Ok(())
            }
            Event::Heal(pair) => {
                self.trace.line(self.now_us, format_args!("heal {pair:?}"));
                let stalled = self.network.heal(pair);
                stalled.into_iter().for_each(|frame| self.transmit(frame));
                Ok(())
            }
            Event::Reset(pair) => {
                self.trace.line(self.now_us, format_args!("reset {pair:?}"));
                self.disconnect(pair);
                Ok(())
            }
            Event::Crash(i) => self.crash(i),
            Event::Start(i) if self.is_up(i) => Ok(()),
            Event::Start(i) => self.start(i),
            Event::ClockStep(i, ms) => {
                self.trace.line(self.now_us, format_args!("n{i} clock steps to {ms} ms off"));
                self.nodes[i].clock_offset_ms = ms;
                Ok(())
            }
        }
    }

    fn client(&mut self, i: usize, writes: Vec<Write>) -> Result<(), Violation> {
        if !self.is_up(i) {
            return Ok(());
        }
        self.requests += 1;
        let request = RequestId(self.requests);
        self.trace.line(self.now_us, format_args!("n{i} is asked {}: {writes:?}", request.0));
        let asked = Asked { since: self.now_us, writes: writes.clone() };
        self.nodes[i].open.insert(request, asked);
        let terms = Terms::default();
        self.input(i, Input::Commit { request, writes, terms })
    }

    fn arrive(&mut self, frame: Frame) -> Result<(), Violation> {
        if !self.is_up(frame.to) {
            return Ok(());
        }
        let peer = self.nodes[frame.from].name.clone();
        self.input(frame.to, Input::Frame { peer, link: LinkId(frame.link), bytes: frame.bytes })
    }

    fn input(&mut self, i: usize, input: Input) -> Result<(), Violation> {
        if self.is_up(i) {
            self.nodes[i].inbox.push_back(input);
            self.work(i)?;
        }
        Ok(())
    }

    /// Runs groups of inputs through a node's machine until it waits for its disk or has nothing to do.
    fn work(&mut self, i: usize) -> Result<(), Violation> {
        while self.nodes[i].group.is_none() {
            let now = self.now(i);
            let member = &mut self.nodes[i];
            let Some(node) = &mut member.node else { return Ok(()) };
            let due = node.next_deadline().is_some_and(|deadline| deadline <= now.mono);
            if member.inbox.is_empty() && !due {
                break;
            }
            let mut effects = Effects::default();
            let mut commits = Vec::new();
            let stopped = |error: StoreError| Violation::new(10, format!("{} stops: {error}", member.name));
            for input in member.inbox.drain(..member.group_max.min(member.inbox.len())) {
                let asked = match &input {
                    Input::Commit { request, writes, .. } => Some((*request, writes.clone())),
                    _ => None,
                };
                let before = asked.map(|(request, writes)| {
                    let partition = writes[0].record.partition(self.partitions);
                    (request, Refusable { partition, writes, saw: node.context(partition).clone() })
                });
                let answered = effects.outputs.len();
                node.handle(now, input, &member.disk, &mut effects).map_err(stopped)?;
                let step = Stepped { node, open: &member.open, written: &mut member.begun, before };
                step.judge(&effects.outputs[answered..], &mut commits, &mut self.oracle)?;
            }
            if due {
                let answered = effects.outputs.len();
                node.handle_timeout(now, &member.disk, &mut effects).map_err(stopped)?;
                let step = Stepped { node, open: &member.open, written: &mut member.begun, before: None };
                step.judge(&effects.outputs[answered..], &mut commits, &mut self.oracle)?;
            }
            if effects.batch.is_empty() {
                self.release(i, effects.outputs)?;
            } else {
                member.group = Some(Group { effects, commits });
                let (after, life) = (member.fsync_us, member.life);
                self.at(after, Event::Durable { node: i, life });
            }
        }
        self.set_timer(i);
        Ok(())
    }

    fn durable(&mut self, i: usize) -> Result<(), Violation> {
        let Some(group) = self.nodes[i].group.take() else { return Ok(()) };
        let outputs = self.persist(i, group)?;
        self.release(i, outputs)?;
        self.work(i)
    }

    fn persist(&mut self, i: usize, group: Group) -> Result<Vec<Output>, Violation> {
        for commit in &group.commits {
            self.oracle.accepted(commit.partition, &commit.writes, &commit.saw)?;
            self.oracle.committed(commit)?;
            self.nodes[i].written.insert((commit.dot.replica, commit.partition), commit.dot.counter);
        }
        self.nodes[i].disk.commit(group.effects.batch);
        Ok(group.effects.outputs)
    }

    fn release(&mut self, i: usize, outputs: Vec<Output>) -> Result<(), Violation> {
        for output in outputs {
            match output {
                Output::Send { peer, link, wire, message } => self.send(i, &peer, link, wire, &message)?,
                Output::Close { peer, reason, .. } => {
                    return Err(Violation::new(10, format!("n{i} closes its link to {peer}: {reason}")));
                }
                Output::Reply { request, reply } => self.answered(i, request, &reply)?,
                Output::Alarm(alarm) => self.trace.line(self.now_us, format_args!("n{i} alarm {alarm:?}")),
            }
        }
        Ok(())
    }

    fn send(
        &mut self,
        i: usize,
        peer: &str,
        link: LinkId,
        wire: u8,
        message: &Message,
    ) -> Result<(), Violation> {
        let Some(to) = self.nodes.iter().position(|node| node.name == peer) else { return Ok(()) };
        let Some(bytes) = message.encode(wire) else {
            return Err(Violation::new(10, format!("n{i} sends {} on wire version {wire}", message.name())));
        };
        self.trace.line(
            self.now_us,
            format_args!("n{i} sends {} to {peer}: {} bytes", message.name(), bytes.len()),
        );
        self.transmit(Frame { from: i, to, link: link.0, bytes });
        Ok(())
    }

    fn transmit(&mut self, frame: Frame) {
        self.frames += 1;
        for (arrives, copy) in self.network.send(&mut self.rng, self.now_us, frame) {
            self.at(arrives - self.now_us, Event::Arrival(copy));
        }
    }

    fn answered(&mut self, i: usize, request: RequestId, reply: &Reply) -> Result<(), Violation> {
        let Some(asked) = self.nodes[i].open.remove(&request) else {
            return Err(Violation::new(5, format!("n{i} answers request {} twice", request.0)));
        };
        let took = self.now_us - asked.since;
        if took > ANSWER_US_MAX {
            return Err(Violation::new(8, format!("n{i} took {took} µs to answer {:?}", asked.writes)));
        }
        self.trace.line(self.now_us, format_args!("n{i} answers {}: {reply:?}", request.0));
        if let Reply::Committed { partition, commit: Some((dot, _)), .. } = reply {
            self.oracle.acknowledged(*partition, *dot);
            self.acknowledged += 1;
        }
        Ok(())
    }

    fn connect(&mut self, (a, b): Pair) -> Result<(), Violation> {
        let link = if self.is_up(a) && self.is_up(b) { self.network.connect((a, b)) } else { None };
        let Some(link) = link else {
            if self.network.connection((a, b)).is_none() {
                self.at(self.network.config().connect_us, Event::Connect((a, b)));
            }
            return Ok(());
        };
        self.trace.line(self.now_us, format_args!("n{a} and n{b} connect as {link}"));
        let (of_a, of_b) = (self.nodes[a].name.clone(), self.nodes[b].name.clone());
        self.input(a, Input::Up { peer: of_b, link: LinkId(link), wire: WIRE_VERSION })?;
        self.input(b, Input::Up { peer: of_a, link: LinkId(link), wire: WIRE_VERSION })
    }

    /// Ends a connection: each side that is up learns of it in its own time, and a new one is tried.
    fn disconnect(&mut self, (a, b): Pair) {
        let Some(link) = self.network.disconnect((a, b)) else { return };
        let (idle, connect) = (self.network.config().idle_us, self.network.config().connect_us);
        for (node, peer) in [(a, b), (b, a)] {
            let after = self.rng.below(idle / 4 + 1);
            self.at(after, Event::Down { node, peer, link });
        }
        let after = connect + self.rng.below(connect + 1);
        self.at(after, Event::Connect((a, b)));
    }

    fn start(&mut self, i: usize) -> Result<(), Violation> {
        let seed = self.rng.draw();
        let member = &mut self.nodes[i];
        member.config.seed = seed;
        let opened = Node::open(member.config.clone(), &member.disk);
        let (node, batch) =
            opened.map_err(|error| Violation::new(3, format!("{} does not start: {error}", member.name)))?;
        member.disk.commit(batch);
        member.begun = member.written.clone();
        member.life += 1;
        member.node = Some(node);
        self.trace.line(self.now_us, format_args!("n{i} starts"));
        Ok(())
    }

    fn crash(&mut self, i: usize) -> Result<(), Violation> {
        if !self.is_up(i) {
            return Ok(());
        }
        let kept = self.rng.chance(1, 2);
        self.trace.line(
            self.now_us,
            format_args!("n{i} crashes, its last batch is {}", if kept { "kept" } else { "lost" }),
        );
        if let Some(group) = self.nodes[i].group.take()
            && kept
        {
            // On the disk, and nobody was told: the commits happened.
            self.persist(i, group)?;
        }
        let member = &mut self.nodes[i];
        member.node = None;
        member.inbox.clear();
        member.open.clear();
        for other in (0..self.nodes.len()).filter(|&other| other != i) {
            self.disconnect(pair(i, other));
        }
        Ok(())
    }

    fn set_timer(&mut self, i: usize) {
        if self.nodes[i].group.is_some() {
            // What is due is done when the disk is.
            return;
        }
        let Some(node) = &self.nodes[i].node else { return };
        let Some(Mono(deadline)) = node.next_deadline() else { return };
        let deadline = deadline.max(self.now_us);
        if self.nodes[i].timer.is_none_or(|timer| timer > deadline) {
            self.nodes[i].timer = Some(deadline);
            self.at(deadline - self.now_us, Event::Timer(i));
        }
    }

    fn now(&self, i: usize) -> Now {
        let wall = (WALL_START_MS + self.now_us / 1000).saturating_add_signed(self.nodes[i].clock_offset_ms);
        Now { mono: Mono(self.now_us), wall: Wall(wall) }
    }

    fn check_bounds(&self, i: usize) -> Result<(), Violation> {
        let Some(node) = &self.nodes[i].node else { return Ok(()) };
        let status = node.status();
        let tuning = &self.nodes[i].config.tuning;
        // A message more than the window may be under way, and a delta more than a chunk may be in a message.
        let window = tuning.window_bytes + tuning.chunk_bytes + SMALL_DELTA_BYTES;
        if status.pending_bytes > tuning.pending_bytes_max {
            return Err(Violation::new(
                9,
                format!("n{i} holds {} bytes of waiting deltas", status.pending_bytes),
            ));
        }
        match status.peers.iter().find(|(_, peer)| peer.in_flight_bytes > window) {
            Some((name, peer)) => {
                Err(Violation::new(9, format!("n{i} has {} bytes in flight to {name}", peer.in_flight_bytes)))
            }
            None => Ok(()),
        }
    }
}
