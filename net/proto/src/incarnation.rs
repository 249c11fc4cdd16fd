//! Incarnations: under which replica id a node writes, so that no dot ever names two commits.
//!
//! A data directory may be older than what was written under its replica id: restored from a backup, copied, rolled back,
//! or short of its last writes after a power loss. Going on under the old id would then give old dots to new commits.
//! So a starting node takes a new replica id, unless *all* of this holds, and then its data is whole:
//!
//! 1. its last process stopped cleanly (the mark is removed, durably, before this process does anything), on this very
//!    directory (the shell tells);
//! 2. every other member says within [`CONFIRM_WAIT_US`] of the start that it has seen nothing of the incarnation beyond what
//!    this node holds, and that the last process that it has heard of under this node's name is the one that this
//!    process follows. A member's word counts if it is settled itself, and writes under the incarnation under which the
//!    followed process last heard of it.
//!
//! **Invariant**: of the processes that found a mark of one incarnation, no two that follow the same process go on with it. So
//! those that go on follow one another, and each has on its disk what the one before it knew.
//!
//! Why it holds. Take the first time that it does not: two processes go on with R, on two copies of what P left. Each was
//! confirmed by every member, and both copies name the same incarnation of a member M, since a process that has left its
//! mark hears and confirms no more. So M's word came twice from processes that were settled under that incarnation. It was
//! the same process, or one followed the other (that is the invariant for M, before). Who confirms has durably noted whom,
//! and that stays on the disk that is handed on; so the later word came from one that had heard of a process other than P,
//! and it was no. That M's directory is copied, and runs twice, or is put back, even every disk of the cluster at once, does
//! not matter: such a process of M is settled under another incarnation, or not at all.
//!
//! What it costs: a node takes a new incarnation if a member did while it was down, or if the whole cluster stopped. A node that
//! never had a peer has no member to ask: there (1) decides alone.
//!
//! Until this is settled the node reads, receives and relays; the first commits of clients wait, at most
//! [`CONFIRM_WAIT_US`] and at most [`WAITING_COMMITS_MAX`] of [`WAITING_BYTES_MAX`]. Contexts grow by one entry an incarnation that writes;
//! the commits of a past one are like any other node's, and peers that lack some ask for them.
//!
//! Two live processes under one node name (each with its own replica id, by the above) would take each other's links.
//! A peer sees the older one come back after the newer one, and refuses the newer one until the older one has been silent
//! for [`REFUSED_US`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bincode::{Decode, Encode};
use godwit_core::codec;
use godwit_core::context::Dot;
use godwit_core::ids::{PartitionId, ReplicaId};
use godwit_core::keys;
use godwit_core::op::{Terms, Write};
use godwit_core::rng::Rng;
use godwit_core::store::{Batch, Family, StoreError, StoreRead};
use godwit_core::time::Mono;

use crate::interface::{Alarm, Output, RequestId};
use crate::message::{Confirm, Hello, Message};
use crate::node::{Node, NodeConfig, Step};
use crate::peer::Place;

/// How long commits wait for the members' word, from the start on.
pub const CONFIRM_WAIT_US: u64 = 1_000_000;
/// Commits that may wait for it: one more settles it.
pub const WAITING_COMMITS_MAX: usize = 1024;
/// Bytes of commits that may wait for it: one that finds no room settles it.
pub const WAITING_BYTES_MAX: usize = 16 * 1024 * 1024;
/// How long the older of two processes under one name must not have greeted before the refused one is taken again: ten times
/// what lies between greetings.
const REFUSED_US: u64 = 30_000_000;
/// Incarnations that one process may take on because of what peers say, before it stops.
const REINCARNATIONS_MAX: u32 = 8;

const RECORD_VERSION: u8 = 1;
const INSTANCE_VERSION: u8 = 1;

/// What the data directory says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
struct Record {
    replica: ReplicaId,
    /// The process that wrote this.
    instance: u64,
    /// Whether it stopped cleanly, and wrote nothing after this.
    clean: bool,
}

/// What was last heard of under a peer's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
struct Heard {
    replica: ReplicaId,
    instance: u64,
}

/// Under which id the node writes, or may.
#[derive(Debug)]
pub(crate) struct Incarnation {
    replica: ReplicaId,
    instance: u64,
    /// While it is not settled whether the node goes on with its last incarnation.
    open: Option<Question>,
    rng: Rng,
    reincarnations: u32,
}

#[derive(Debug)]
struct Question {
    /// The process to follow.
    follows: u64,
    /// When the node began to ask.
    since: Option<Mono>,
    /// The incarnation of each member, as the process to follow left it. Not what is heard of them since.
    known: BTreeMap<String, ReplicaId>,
    confirmed: BTreeSet<String>,
    waiting: VecDeque<Waiting>,
    waiting_bytes: usize,
}

/// A commit that waits until it is settled under which id.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) request: RequestId,
    pub(crate) writes: Vec<Write>,
    pub(crate) terms: Terms,
}

impl Incarnation {
    /// Reads what the last process left, and removes its mark.
    pub(crate) fn open(
        store: &impl StoreRead,
        batch: &mut Batch,
        config: &NodeConfig,
    ) -> Result<Self, StoreError> {
        let NodeConfig { node, members, same_place, .. } = config;
        let mut rng = Rng::new(config.seed);
        let instance = rng.draw();
        let last: Option<Record> = store
            .get(Family::Meta, keys::INCARNATION)?
            .map(|bytes| codec::decode(RECORD_VERSION, &bytes))
            .transpose()
            .map_err(StoreError::damaged("meta: incarnation"))?;
        let resumed = last.filter(|last| last.clean && *same_place);
        let replica = resumed.map_or_else(|| ReplicaId::of_node(node, rng.draw()), |last| last.replica);
        let mut known = BTreeMap::new();
        for member in members {
            if let Some(heard) = heard(store, member)? {
                known.insert(member.clone(), heard.replica);
            }
        }
        let question = |last: Record| Question {
            follows: last.instance,
            since: None,
            known,
            confirmed: BTreeSet::new(),
            waiting: VecDeque::new(),
            waiting_bytes: 0,
        };
        // Whoever has had peers asks them, whatever the configuration says now.
        let peers = keys::instance("");
        let has_members =
            !members.is_empty() || store.first(Family::Meta, &peers, &keys::after_prefix(&peers))?.is_some();
        let incarnation = Self {
            replica,
            instance,
            open: resumed.filter(|_| has_members).map(question),
            rng,
            reincarnations: 0,
        };
        batch.put(Family::Meta, keys::INCARNATION.to_vec(), incarnation.record(false));
        Ok(incarnation)
    }

    pub(crate) fn replica(&self) -> ReplicaId {
        self.replica
    }

    pub(crate) fn instance(&self) -> u64 {
        self.instance
    }

    /// The process that this one follows, while it asks to go on with its incarnation.
    pub(crate) fn resumes(&self) -> Option<u64> {
        self.open.as_ref().map(|question| question.follows)
    }

    /// Whether the node may write.
    pub(crate) fn is_settled(&self) -> bool {
        self.open.is_none()
    }

    /// When the waiting commits wait no longer.
    pub(crate) fn deadline(&self) -> Option<Mono> {
        let question = self.open.as_ref().filter(|question| !question.waiting.is_empty())?;
        question.since.map(|since| since.plus_us(CONFIRM_WAIT_US))
    }

    /// What the data directory is to say.
    fn record(&self, clean: bool) -> Vec<u8> {
        let record = Record { replica: self.replica, instance: self.instance, clean };
        codec::encode(RECORD_VERSION, &record)
    }
}

/// What was last heard of under a peer's name.
fn heard(store: &impl StoreRead, name: &str) -> Result<Option<Heard>, StoreError> {
    let bytes = store.get(Family::Meta, &keys::instance(name))?;
    let heard = bytes.map(|bytes| codec::decode(INSTANCE_VERSION, &bytes)).transpose();
    heard.map_err(StoreError::damaged("meta: instance"))
}

impl Node {
    /// The id under which the node writes, as far as it is settled.
    pub fn replica(&self) -> ReplicaId {
        self.incarnation.replica
    }

    /// Whether the node asks its peers if it may go on with its last incarnation.
    pub fn asks_to_resume(&self) -> bool {
        !self.incarnation.is_settled()
    }

    /// Notes when the node began to ask.
    pub(crate) fn began(&mut self, now: Mono) {
        if let Some(question) = &mut self.incarnation.open {
            question.since.get_or_insert(now);
        }
    }

    /// Takes a commit that comes before it is settled under which id it is made. Gives it back if it has to be now.
    pub(crate) fn hold_back<S: StoreRead>(
        &mut self,
        step: &mut Step<'_, S>,
        commit: Waiting,
    ) -> Result<Option<Waiting>, StoreError> {
        let now = step.now.mono;
        let Some(question) = &mut self.incarnation.open else { return Ok(Some(commit)) };
        let waited = question.since.is_some_and(|since| since.plus_us(CONFIRM_WAIT_US) <= now);
        let bytes = commit.writes.iter().map(Write::bytes).sum::<usize>() + commit.terms.bytes();
        let room = WAITING_BYTES_MAX - question.waiting_bytes;
        if !waited && question.waiting.len() < WAITING_COMMITS_MAX && bytes <= room {
            question.waiting.push_back(commit);
            question.waiting_bytes += bytes;
            return Ok(None);
        }
        self.reincarnate(step, "not every member confirmed it in time")?;
        Ok(Some(commit))
    }

    /// Settles what cannot wait any longer.
    pub(crate) fn incarnation_due<S: StoreRead>(&mut self, step: &mut Step<'_, S>) -> Result<(), StoreError> {
        match self.incarnation.deadline() {
            Some(deadline) if deadline <= step.now.mono => {
                self.reincarnate(step, "not every member confirmed it in time")
            }
            _ => Ok(()),
        }
    }

    /// A peer says what it knows of the incarnation.
    pub(crate) fn confirmed<S: StoreRead>(
        &mut self,
        step: &mut Step<'_, S>,
        name: &str,
        confirm: &Confirm,
    ) -> Result<(), StoreError> {
        let Incarnation { replica, instance, .. } = self.incarnation;
        if (confirm.replica, confirm.instance) != (replica, instance) {
            return Ok(());
        }
        let held = |id: PartitionId| self.partitions[usize::from(id.0)].own_counter();
        let beyond = confirm.holds.iter().any(|(id, counter)| *counter > held(*id));
        let Some(question) = &mut self.incarnation.open else { return Ok(()) };
        if beyond || !confirm.follows {
            let why =
                if beyond { "a member has later commits of it" } else { "another process has used it since" };
            return self.reincarnate(step, why);
        }
        let says = self.peers.get(name).and_then(|peer| peer.hello.as_ref());
        let settled = says.filter(|hello| hello.resumes.is_none()).map(|hello| hello.replica);
        if settled.is_none() || settled != question.known.get(name).copied() {
            // It may know less than another process under that name, which has confirmed another one.
            return Ok(());
        }
        question.confirmed.insert(name.to_string());
        if self.config.members.iter().all(|member| question.confirmed.contains(member)) {
            return self.settle(step);
        }
        Ok(())
    }

    /// Takes note of a peer's process, and tells it what it wants to know; not after the mark of a clean stop, after which
    /// nothing is written down that the next process, or one on a copy, might not know.
    pub(crate) fn heard_of<S: StoreRead>(
        &mut self,
        step: &mut Step<'_, S>,
        name: &str,
        place: Place,
        hello: &Hello,
    ) -> Result<(), StoreError> {
        if self.stopped {
            return Ok(());
        }
        let heard = heard(&step.txn, name)?;
        let Hello { replica, instance, resumes, .. } = *hello;
        let follows = resumes.is_none()
            || heard.is_some_and(|heard| {
                heard.replica == replica && (Some(heard.instance) == resumes || heard.instance == instance)
            });
        let now = Heard { replica, instance };
        if follows && heard != Some(now) {
            step.txn.put(Family::Meta, keys::instance(name), codec::encode(INSTANCE_VERSION, &now));
        }
        if resumes.is_some() {
            let held = self.partitions.iter().map(|partition| partition.last_held(replica));
            let held = self.partition_ids().zip(held).filter(|(_, counter)| *counter > 0).collect();
            let confirm = Confirm { replica, instance, follows, holds: held };
            step.send(name, place, Message::Confirm(confirm));
        }
        Ok(())
    }

    /// Refuses the later of two live processes under one name.
    pub(crate) fn other_process<S: StoreRead>(
        &mut self,
        step: &mut Step<'_, S>,
        name: &str,
        hello: &Hello,
    ) -> Result<(), String> {
        let Some(peer) = self.peers.get_mut(name) else { return Ok(()) };
        let silent = peer.greeted_at.is_none_or(|at| at.plus_us(REFUSED_US) <= step.now.mono);
        if silent {
            // The older one seems to be gone. If it comes back, both are known to live again.
            peer.refused = None;
        }
        if peer.refused == Some(hello.instance) {
            return Err(format!(
                "another process runs as node {name:?}, and began before this one: stop one of them"
            ));
        }
        let before =
            peer.hello.as_ref().map(|hello| hello.instance).filter(|before| *before != hello.instance);
        if before.is_some() && peer.displaced == Some(hello.instance) {
            peer.refused = before;
            peer.displaced = None;
            step.outputs.push(Output::Alarm(Alarm::TwoProcesses { node: name.to_string() }));
        } else if before.is_some() {
            peer.displaced = before;
        }
        Ok(())
    }

    /// Takes on a new incarnation if somebody has a commit of this one that this node does not hold.
    pub(crate) fn check_own<S: StoreRead>(
        &mut self,
        step: &mut Step<'_, S>,
        id: PartitionId,
        dot: Dot,
    ) -> Result<(), StoreError> {
        let own = self.partitions[usize::from(id.0)].own_counter();
        if dot.replica != self.replica() || dot.counter <= own {
            return Ok(());
        }
        if self.incarnation.is_settled() {
            self.incarnation.reincarnations += 1;
        }
        if self.incarnation.reincarnations > REINCARNATIONS_MAX {
            return Err(StoreError::Inconsistent(format!(
                "peers have said {REINCARNATIONS_MAX} times that they have commits of this node that it does not hold: \
                 another process may run on a copy of its data directory, or a peer may be lying"
            )));
        }
        self.reincarnate(step, "a member has later commits of it")
    }

    fn reincarnate<S: StoreRead>(
        &mut self,
        step: &mut Step<'_, S>,
        why: &'static str,
    ) -> Result<(), StoreError> {
        let from = self.replica();
        let replica = ReplicaId::of_node(&self.config.node, self.incarnation.rng.draw());
        self.incarnation.replica = replica;
        self.partitions.iter_mut().for_each(|partition| partition.reincarnate(replica));
        step.outputs.push(Output::Alarm(Alarm::Reincarnated { from, to: replica, why }));
        for session in self.peers.values_mut().filter_map(|peer| peer.session.as_mut()) {
            session.push.begin_anew(step.now.mono);
            session.to_ask.clear();
        }
        self.settle(step)
    }

    /// It is settled under which id the node writes: what waits is committed.
    fn settle<S: StoreRead>(&mut self, step: &mut Step<'_, S>) -> Result<(), StoreError> {
        let waiting = self.incarnation.open.take().map(|question| question.waiting).unwrap_or_default();
        self.write_incarnation(step, self.stopped);
        let sessions =
            self.peers.iter().filter_map(|(name, peer)| Some((name.clone(), peer.session.as_ref()?.place())));
        for (name, place) in sessions.collect::<Vec<_>>() {
            self.greet(step, &name, place);
        }
        for Waiting { request, writes, terms } in waiting {
            let reply = self.commit(step, &writes, &terms)?;
            step.outputs.push(Output::Reply { request, reply });
        }
        Ok(())
    }

    /// Marks that the process stops, and commits no more.
    pub(crate) fn stop<S: StoreRead>(&mut self, step: &mut Step<'_, S>) -> Result<(), StoreError> {
        if self.incarnation.open.as_ref().is_some_and(|question| !question.waiting.is_empty()) {
            self.reincarnate(step, "the node stops before every member confirmed it")?;
        }
        self.stopped = true;
        self.write_incarnation(step, true);
        Ok(())
    }

    fn write_incarnation<S: StoreRead>(&self, step: &mut Step<'_, S>, clean: bool) {
        let record = self.incarnation.record(clean);
        step.txn.put(Family::Meta, keys::INCARNATION.to_vec(), record);
    }
}
