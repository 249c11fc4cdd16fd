//! The world of a run: nodes with their disks and clocks, the network between them, and one queue of events.
//!
//! A node is driven as in production: inputs gather, a group of them goes through the machine over one growing
//! batch, the batch becomes durable after the time of an fsync, and only then outputs are released; the next group fills
//! meanwhile. A crash at any moment between loses what was not durable: the batch on its way is lost or kept whole, as a
//! write-ahead log does it, the one behind it is lost, and the outputs of both are.
//!
//! What clients do here is in [`crate::clients`], what becomes of processes and disks in [`crate::disks`], what is looked at in
//! [`crate::checks`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use godwit_core::context::VersionVector;
use godwit_core::ids::{PartitionId, ReplicaId};
use godwit_core::machine::{Effects, Machine};
use godwit_core::op::Limits;
use godwit_core::row::FieldType;
use godwit_core::store::{Batch, MemStore, Overlay, StoreError};
use godwit_core::time::{Mono, Now, Wall};
use godwit_proto::incarnation::CONFIRM_WAIT_US;
use godwit_proto::{Input, LinkId, Message, Node, NodeConfig, Output, RequestId};

use crate::clients::Client;
use crate::config::RunConfig;
use crate::disks::Image;
use crate::draws::{Draws, Of};
pub use crate::event::Event;
use crate::faults::{Faults, Trouble, Unsynced};
use crate::judge::{Asked, Outcome, Refusable, Stepped};
use crate::network::{Frame, Network, Pair, pair};
use crate::oracle::{Oracle, Violation};
use crate::requests::Requests;
use crate::stamps::Stamps;
use crate::trace::{Trace, Watch, What};
use crate::watch::Told;
use crate::workload::Ask;

/// A node that is up must answer a commit within this time, whatever the links do.
pub(crate) const ANSWER_US_MAX: u64 = CONFIRM_WAIT_US + 1_000_000;
/// Steps of all machines in one simulated microsecond: far more than frames and timers that may come together.
const MOMENT_STEPS_MAX: u32 = 100_000;
/// Wall time at the beginning, in milliseconds since 1970.
const WALL_START_MS: u64 = 1_800_000_000_000;

/// A node with its process, disk and clock.
#[derive(Debug)]
pub(crate) struct Machinery {
    pub(crate) name: String,
    pub(crate) config: NodeConfig,
    /// The newest wire version that it speaks.
    pub(crate) wire: u8,
    pub(crate) node: Option<Node>,
    pub(crate) disk: MemStore,
    pub(crate) life: u64,
    /// Inputs, and whether each is a damaged frame.
    pub(crate) inbox: VecDeque<(Input, bool)>,
    /// Connections that the machine has ended.
    pub(crate) ended: BTreeSet<LinkId>,
    /// The group on its way to the disk, and the one behind it.
    pub(crate) group: Option<Group>,
    pub(crate) filling: Group,
    pub(crate) timer: Option<u64>,
    pub(crate) clock_offset_ms: i64,
    /// How much its wall clock gains.
    pub(crate) drift_ppm: i64,
    pub(crate) fsync_us: u64,
    pub(crate) group_max: usize,
    /// What a reader last saw applied, by partition: it must never shrink.
    pub(crate) seen: BTreeMap<PartitionId, VersionVector>,
    /// What this node itself told clients that it had committed: it must have it.
    pub(crate) promised: BTreeMap<PartitionId, VersionVector>,
    /// Requests not answered: since when, and what.
    pub(crate) open: BTreeMap<RequestId, Asked>,
    /// Commits by incarnation and partition, those on their way to the disk too.
    pub(crate) begun: BTreeMap<(ReplicaId, PartitionId), u64>,
    /// The request to stop, and how long the node is to be down then.
    pub(crate) stopping: Option<(RequestId, u64)>,
    /// Copies of its disk, the latest last.
    pub(crate) images: Vec<Image>,
    /// Whether it takes part: the place of a copied process is empty at first, and one of the two ends for good.
    pub(crate) takes_part: bool,
    pub(crate) trouble: Trouble,
    /// With `durability = "os"`, what is not synced.
    pub(crate) unsynced: Option<Unsynced>,
}

/// A batch that fills or is on its way to the disk.
#[derive(Debug, Default)]
pub(crate) struct Group {
    pub(crate) effects: Effects<Output>,
    pub(crate) outcomes: Vec<Outcome>,
    /// Inputs, timeouts counted too.
    pub(crate) inputs: usize,
}

impl Machinery {
    /// How many more inputs the group takes that fills.
    fn room(&self) -> usize {
        self.group_max.saturating_sub(self.filling.inputs)
    }
}

/// Everything.
#[derive(Debug)]
pub struct World {
    /// Simulated microseconds since the beginning.
    pub now_us: u64,
    /// What is left to chance.
    pub draws: Draws,
    /// What happened.
    pub trace: Trace,
    /// What must hold.
    pub oracle: Oracle,
    pub(crate) partitions: u16,
    pub(crate) nodes: Vec<Machinery>,
    pub(crate) network: Network,
    pub(crate) clients: Vec<Client>,
    pub(crate) keys: Requests,
    stamps: Stamps,
    /// The slowest clock that a node ever had, in milliseconds off.
    slowest_ms: i64,
    /// Whether commits that wait for ever are allowed: what they depend on may have been lost with a disk.
    pub(crate) may_wait_for_ever: bool,
    queue: BTreeMap<(u64, u64), Event>,
    /// The moment of the last step of a machine, and the steps in it before.
    moment: (u64, u32),
    sequence: u64,
    /// Frames sent for the first time.
    messages: u64,
    pub(crate) requests: u64,
    /// Frames sent, for the report.
    pub frames: u64,
    /// Commits acknowledged, for the report.
    pub acknowledged: u64,
    /// What a watcher was not told yet, if there is one: nothing is judged then.
    pub(crate) watched: Option<Vec<Told>>,
    pub(crate) faults: Faults,
    /// Connections over which damaged frames came.
    pub(crate) damaged_links: BTreeSet<LinkId>,
}

impl World {
    /// A world at its beginning: all nodes start, all links work.
    pub fn new(config: &RunConfig, seed: u64, watch: Watch) -> Result<Self, Violation> {
        let mut world = Self {
            now_us: 0,
            draws: Draws::new(seed),
            trace: Trace::new(watch),
            oracle: Oracle::default(),
            partitions: config.partitions,
            nodes: Vec::new(),
            network: Network::new(config.network.clone(), config.places()),
            clients: vec![Client::default(); config.clients],
            keys: Requests::default(),
            stamps: Stamps::default(),
            slowest_ms: config.clock_offsets_ms.iter().copied().min().unwrap_or(0),
            may_wait_for_ever: false,
            queue: BTreeMap::new(),
            moment: (0, 0),
            sequence: 0,
            messages: 0,
            requests: 0,
            frames: 0,
            acknowledged: 0,
            watched: None,
            faults: Faults::new(),
            damaged_links: BTreeSet::new(),
        };
        for i in 0..config.places() {
            // The last place may be that of a copied process.
            let own = if i < config.nodes { i } else { config.copied.unwrap_or(0) };
            let name = format!("n{own}");
            let others = (0..config.nodes).filter(|&other| other != own);
            let node = NodeConfig {
                cluster: "sim".into(),
                node: name.clone(),
                region: format!("r{}", config.regions[own]),
                members: others.map(|other| format!("n{other}")).collect(),
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
                wire: config.wires[own],
                node: None,
                disk: MemStore::default(),
                life: 0,
                inbox: VecDeque::new(),
                ended: BTreeSet::new(),
                group: None,
                filling: Group::default(),
                timer: None,
                clock_offset_ms: config.clock_offsets_ms[own],
                drift_ppm: config.drifts_ppm[own],
                fsync_us: config.fsync_us[own],
                group_max: config.group_max,
                seen: BTreeMap::new(),
                promised: BTreeMap::new(),
                open: BTreeMap::new(),
                begun: BTreeMap::new(),
                stopping: None,
                images: Vec::new(),
                takes_part: i < config.nodes,
                trouble: Trouble::default(),
                unsynced: config.unsynced[own].then(Unsynced::new),
            });
            if i < config.nodes {
                world.start(i)?;
            }
        }
        for pair in world.pairs() {
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

    /// All links of the world, between nodes of different names.
    pub fn pairs(&self) -> Vec<Pair> {
        let mut pairs = self.network.pairs();
        pairs.retain(|&(a, b)| self.nodes[a].name != self.nodes[b].name);
        pairs
    }

    /// How many nodes there are.
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// What a node's disk holds.
    pub fn disk(&self, node: usize) -> &MemStore {
        &self.nodes[node].disk
    }

    /// Whether a node's process runs.
    pub fn is_up(&self, node: usize) -> bool {
        self.nodes[node].node.is_some()
    }

    /// Whether a link is cut.
    pub fn is_cut(&self, pair: Pair) -> bool {
        self.network.is_cut(pair)
    }

    fn happen(&mut self, event: Event) -> Result<(), Violation> {
        match event {
            Event::Client(i, ask) => self.ask(i, None, ask),
            Event::Session { client, node, plan } => self.session(client, node, plan),
            Event::Count(i, record, field) => {
                self.trace.line(self.now_us, format_args!("n{i} is to keep the size of {record} {field}"));
                self.trace.mark(self.now_us, || What::Happened {
                    node: i,
                    what: format!("somebody asks for the size of {field} of {}", record.key),
                });
                self.input(i, Input::Count { record, field, ty: FieldType::SET })
            }
            Event::Check(i) => self.check(i),
            Event::Durable { node, life } if self.nodes[node].life == life => {
                if self.durable_waits(node) {
                    Ok(())
                } else {
                    self.durable(node)
                }
            }
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
                if self.is_dead(pair) && self.network.connection(pair) == Some(link) {
                    self.met("connection idle too long");
                    self.disconnect(pair);
                }
                Ok(())
            }
            Event::Seal(pair) => {
                self.network.seal(pair);
                Ok(())
            }
            Event::Cut(pair) | Event::Heal(pair) if self.network.is_sealed(pair) => Ok(()),
            Event::CutWay(from, to) if self.network.is_sealed(pair(from, to)) => Ok(()),
            Event::CutWay(from, to) => {
                self.cut_way(from, to);
                Ok(())
            }
            Event::Cut(pair) => {
                self.trace.line(self.now_us, format_args!("cut {pair:?}"));
                self.trace.mark(self.now_us, || What::Cut { link: pair });
                self.network.cut(pair);
                self.met("link cut");
                self.idle_later(pair);
                Ok(())
            }
            Event::Heal(pair) => {
                self.trace.line(self.now_us, format_args!("heal {pair:?}"));
                self.trace.mark(self.now_us, || What::Healed { link: pair });
                let stalled = self.network.heal(pair);
                stalled.into_iter().for_each(|frame| self.transmit(frame));
                Ok(())
            }
            Event::Reset(pair) => {
                self.trace.line(self.now_us, format_args!("reset {pair:?}"));
                self.met("connection reset");
                self.disconnect(pair);
                Ok(())
            }
            Event::Pause(i) => {
                self.pause(i);
                Ok(())
            }
            Event::Resume(i) => self.resume(i),
            Event::SlowDisk(i, fsync_us, for_us) => {
                self.slow_disk(i, fsync_us, for_us);
                Ok(())
            }
            Event::RefusingDisk(i, for_us) => {
                self.refusing_disk(i, for_us);
                Ok(())
            }
            Event::PowerCut(i) => self.power_cut(i),
            Event::Mend => {
                self.mend_disks();
                self.network.calm();
                Ok(())
            }
            Event::Synced { node, life, covers } if self.nodes[node].life == life && self.is_up(node) => {
                self.synced(node, covers)
            }
            Event::Synced { .. } => Ok(()),
            Event::Crash(i) => self.crash(i),
            Event::Start(i) if self.is_up(i) || !self.nodes[i].takes_part => Ok(()),
            // The first thing that a process does is to write.
            Event::Start(i) if self.refuses(i).is_some() => {
                let until = self.refuses(i).unwrap_or(self.now_us);
                self.at(until - self.now_us, Event::Start(i));
                Ok(())
            }
            Event::Start(i) => self.start(i),
            Event::Stop(i, outage_us) => self.stop(i, outage_us),
            Event::End { node, life, outage_us } if self.nodes[node].life == life => {
                self.end(node, outage_us)
            }
            Event::End { .. } => Ok(()),
            Event::Backup(i) => {
                self.backup(i, false);
                Ok(())
            }
            Event::Rollback(nodes) => self.rollback(&nodes),
            Event::Copy(i) => self.copy(i),
            Event::Retire(i) => self.retire(i),
            Event::ClockStep(i, ms) => {
                self.trace.line(self.now_us, format_args!("n{i} clock steps to {ms} ms off"));
                self.met("clock set");
                self.trace.mark(self.now_us, || What::Happened {
                    node: i,
                    what: format!("its clock is set {ms} ms off"),
                });
                self.nodes[i].clock_offset_ms = ms;
                self.slowest_ms = self.slowest_ms.min(ms);
                Ok(())
            }
        }
    }

    fn arrive(&mut self, frame: Frame) -> Result<(), Violation> {
        if !self.is_up(frame.to) {
            return Ok(());
        }
        let peer = self.nodes[frame.from].name.clone();
        self.trace.mark(self.now_us, || What::Arrived { number: frame.number });
        let link = LinkId(frame.link);
        if frame.damaged {
            self.trace.line(self.now_us, format_args!("n{} gets damaged bytes from {peer}", frame.to));
            self.damaged_links.insert(link);
        }
        self.nodes[frame.to]
            .inbox
            .push_back((Input::Frame { peer, link, bytes: frame.bytes }, frame.damaged));
        self.work(frame.to)
    }

    pub(crate) fn input(&mut self, i: usize, input: Input) -> Result<(), Violation> {
        if self.is_up(i) {
            self.nodes[i].inbox.push_back((input, false));
            self.work(i)?;
        }
        Ok(())
    }

    /// A machine that always has something to do at once would never let time pass.
    fn check_rest(&mut self, i: usize) -> Result<(), Violation> {
        let (at, steps) = self.moment;
        self.moment = (self.now_us, if at == self.now_us { steps + 1 } else { 0 });
        if steps < MOMENT_STEPS_MAX {
            return Ok(());
        }
        Err(Violation::new(9, format!("n{i} and others take {steps} steps in one moment, and do not rest")))
    }

    /// Runs inputs through a node's machine until it has nothing to do, or its disk must come first: one group is on its
    /// way to the disk at most, and the next one fills meanwhile, until it is full.
    pub(crate) fn work(&mut self, i: usize) -> Result<(), Violation> {
        while !self.nodes[i].trouble.paused {
            let filled = self.fill(i)?;
            let handed_over = self.nodes[i].group.is_none() && self.hand_over(i)?;
            if !filled && !handed_over {
                break;
            }
        }
        self.caught_up(i);
        self.set_timer(i);
        Ok(())
    }

    /// Fills the next group with what waits and fits in; whether there was anything.
    fn fill(&mut self, i: usize) -> Result<bool, Violation> {
        let judged = !self.is_watched();
        let now = self.now(i);
        let member = &mut self.nodes[i];
        let room = member.room();
        let Some(node) = member.node.as_mut().filter(|_| room > 0) else { return Ok(false) };
        let due = node.next_deadline().is_some_and(|deadline| deadline <= now.mono);
        if member.inbox.is_empty() && !due {
            return Ok(false);
        }
        self.check_rest(i)?;
        let member = &mut self.nodes[i];
        let Some(node) = member.node.as_mut() else { return Ok(false) };
        let stopped = |error: StoreError| Violation::new(10, format!("{} stops: {error}", member.name));
        // What is on its way to the disk is seen as if it were there.
        let nothing = Batch::default();
        let under_way = member.group.as_ref().map_or(&nothing, |group| &group.effects.batch);
        let store = Overlay::new(&member.disk, under_way);
        let Group { effects, outcomes, inputs } = &mut member.filling;
        for (input, damaged) in member.inbox.drain(..room.min(member.inbox.len())) {
            *inputs += 1;
            let asked = match &input {
                Input::Commit { request, writes, terms } if judged => {
                    Some((*request, Ask { writes: writes.clone(), terms: terms.clone() }))
                }
                _ => None,
            };
            let before = asked.map(|(request, ask)| {
                let partition = ask.writes[0].record.partition(self.partitions);
                (request, Refusable { partition, ask, saw: node.context(partition).clone() })
            });
            let answered = effects.outputs.len();
            let wrote = effects.batch.bytes();
            let on = if let Input::Frame { link, .. } = &input { Some(*link) } else { None };
            node.handle(now, input, &store, effects).map_err(stopped)?;
            for output in &effects.outputs[answered..] {
                if let Output::Close { link, .. } = output {
                    member.ended.insert(*link);
                }
            }
            if let Some(link) = on.filter(|_| damaged) {
                let wrote = effects.batch.bytes() != wrote;
                Self::check_damaged(link, member.ended.contains(&link), wrote, i)?;
            }
            if judged {
                let step = Stepped { node, who: i, open: &member.open, written: &mut member.begun, before };
                step.judge(&effects.outputs[answered..], outcomes, &mut self.keys)?;
            }
        }
        if due {
            *inputs += 1;
            let answered = effects.outputs.len();
            node.handle_timeout(now, &store, effects).map_err(stopped)?;
            if judged {
                let written = &mut member.begun;
                let step = Stepped { node, who: i, open: &member.open, written, before: None };
                step.judge(&effects.outputs[answered..], outcomes, &mut self.keys)?;
            }
        }
        Ok(true)
    }

    /// Hands the group that fills to the disk, if there is anything in it.
    fn hand_over(&mut self, i: usize) -> Result<bool, Violation> {
        let member = &mut self.nodes[i];
        let group = std::mem::take(&mut member.filling);
        if group.inputs == 0 {
            return Ok(false);
        }
        if member.unsynced.is_some() {
            self.write_unsynced(i, group)?;
        } else if group.effects.batch.is_empty() {
            let outputs = self.persist(i, group)?;
            self.release(i, outputs)?;
        } else {
            member.group = Some(group);
            let life = member.life;
            let after = self.sync_us(i);
            self.at(after, Event::Durable { node: i, life });
        }
        Ok(true)
    }

    pub(crate) fn durable(&mut self, i: usize) -> Result<(), Violation> {
        if let Some(until) = self.refuses(i) {
            return self.write_fails(i, until);
        }
        let Some(group) = self.nodes[i].group.take() else { return Ok(()) };
        let outputs = self.persist(i, group)?;
        self.release(i, outputs)?;
        self.work(i)
    }

    pub(crate) fn persist(&mut self, i: usize, group: Group) -> Result<Vec<Output>, Violation> {
        let drift_ms = self.nodes[i].config.max_clock_drift_ms;
        let followed_ms = WALL_START_MS.saturating_add_signed(self.slowest_ms).saturating_add(drift_ms);
        for outcome in &group.outcomes {
            if let Outcome::Made(commit) = outcome
                && self.oracle.is_lost(commit.partition, commit.dot)
            {
                self.check_name(commit)?;
                self.given_again(commit.partition, commit.dot)?;
            }
            outcome.tell(&mut self.oracle)?;
            if let Outcome::Made(commit) = outcome {
                self.stamps.committed(commit, followed_ms)?;
            }
        }
        self.nodes[i].disk.commit(group.effects.batch);
        self.tell_watcher(Told::Durable(i));
        self.mark_state(i);
        Ok(group.effects.outputs)
    }

    pub(crate) fn release(&mut self, i: usize, outputs: Vec<Output>) -> Result<(), Violation> {
        for output in outputs {
            match output {
                Output::Send { peer, link, wire, message } => self.send(i, &peer, link, wire, &message)?,
                Output::Close { peer, link, reason }
                    if self.was_copied(&peer)
                        || self.was_copied(&self.nodes[i].name)
                        || self.damaged_links.contains(&link) =>
                {
                    self.trace.line(self.now_us, format_args!("n{i} closes its link to {peer}: {reason}"));
                    if let Some(to) = self.other_end(i, &peer, link) {
                        self.disconnect(pair(i, to));
                    }
                }
                Output::Close { peer, reason, .. } => {
                    return Err(Violation::new(10, format!("n{i} closes its link to {peer}: {reason}")));
                }
                Output::Reply { request, .. } if self.ends(i, request) => {}
                Output::Reply { request, reply } if self.is_watched() => {
                    self.tell_watcher(Told::Answered(request, reply))
                }
                Output::Reply { request, reply } => self.answered(i, request, &reply)?,
                Output::Trim { partition, first } => self.nodes[i].disk.trim(partition, first),
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
        let Some(bytes) = message.encode(wire) else {
            return Err(Violation::new(10, format!("n{i} sends {} on wire version {wire}", message.name())));
        };
        self.trace.line(
            self.now_us,
            format_args!("n{i} sends {} to {peer}: {} bytes", message.name(), bytes.len()),
        );
        if let Some(to) = self.other_end(i, peer, link) {
            self.messages += 1;
            let (number, bytes_len) = (self.messages, bytes.len());
            let message = message.name();
            self.trace.mark(self.now_us, || What::Sent { number, from: i, to, message, bytes: bytes_len });
            self.transmit(Frame { number, from: i, to, link: link.0, bytes, damaged: false });
        }
        Ok(())
    }

    /// The node of a name at the other end of a connection, if that stands.
    fn other_end(&self, i: usize, peer: &str, link: LinkId) -> Option<usize> {
        (0..self.nodes.len()).find(|&to| {
            to != i && self.nodes[to].name == peer && self.network.connection(pair(i, to)) == Some(link.0)
        })
    }

    fn transmit(&mut self, frame: Frame) {
        self.frames += 1;
        for (arrives, copy) in self.network.send(self.draws, self.now_us, frame) {
            self.at(arrives - self.now_us, Event::Arrival(copy));
        }
    }

    fn connect(&mut self, (a, b): Pair) -> Result<(), Violation> {
        let answers = |i: usize| self.is_up(i) && !self.nodes[i].trouble.paused;
        let link = if answers(a) && answers(b) { self.network.connect((a, b)) } else { None };
        let Some(link) = link else {
            if self.network.connection((a, b)).is_none() {
                self.at(self.network.config().connect_us, Event::Connect((a, b)));
            }
            return Ok(());
        };
        self.trace.line(self.now_us, format_args!("n{a} and n{b} connect as {link}"));
        self.displace(a, b);
        let (of_a, of_b) = (self.nodes[a].name.clone(), self.nodes[b].name.clone());
        let wire = self.nodes[a].wire.min(self.nodes[b].wire);
        self.input(a, Input::Up { peer: of_b, link: LinkId(link), wire })?;
        self.input(b, Input::Up { peer: of_a, link: LinkId(link), wire })
    }

    /// Ends a connection: each side that is up learns of it in its own time, and a new one is tried.
    pub(crate) fn disconnect(&mut self, (a, b): Pair) {
        let Some(link) = self.network.disconnect((a, b)) else { return };
        let nth = self.network.connections((a, b));
        let (idle, connect) = (self.network.config().idle_us, self.network.config().connect_us);
        for (node, peer) in [(a, b), (b, a)] {
            let name = [node as u64, peer as u64, nth];
            let after = self.draws.of(Of::Ending, &name).below(idle / 4 + 1);
            self.at(after, Event::Down { node, peer, link });
        }
        let mut rng = self.draws.of(Of::Reconnecting, &[a as u64, b as u64, nth]);
        let after = connect + rng.below(connect + 1);
        self.at(after, Event::Connect((a, b)));
    }

    fn set_timer(&mut self, i: usize) {
        if self.nodes[i].room() == 0 || self.nodes[i].trouble.paused {
            // What is due is done when the disk is, or the process goes on.
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
        let drifted_ms = self.now_us as i64 / 1000 * self.nodes[i].drift_ppm / 1_000_000;
        let off_ms = self.nodes[i].clock_offset_ms + drifted_ms;
        let wall = (WALL_START_MS + self.now_us / 1000).saturating_add_signed(off_ms);
        Now { mono: Mono(self.now_us), wall: Wall(wall) }
    }
}
