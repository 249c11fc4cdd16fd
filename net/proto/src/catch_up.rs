//! Catching up: getting from a peer what it has and this node lacks, by asking.
//!
//! Contexts show what a peer has. Usually the origin of what is lacking is about to send it; so the node waits: a little
//! if it has no link to the origin, longer if it has one, not at all if it lacks so much of the peer's own that the
//! peer, by the same rule ([`crate::push`]), waits to be asked. If nothing of that origin was applied meanwhile it asks, one
//! peer at a time, and another one if no answer comes. An answer is bounded; if more is lacking, the same happens
//! again, at once if the answer brought something. As long as answers bring nothing, each wait is twice the one before.
//!
//! The one who is asked sends, from its log and in its order, what the asker's context does not cover, merged into
//! intervals ([`godwit_core::interval`]) of about a message's size. Such a run is causally closed given what came before
//! it, so each interval can be applied when it arrives. It answers one request a partition at a time, a bounded part of
//! the log a step, so that no request holds up its clients; the interval that grows meanwhile is bounded by a message's
//! size too. To a peer of wire version 1 it sends the deltas of the run one by one.
//!
//! What answering costs a node over time is bounded as well. A peer that goes on from where its last answer ended is
//! answered from there, so in honest catching up each log entry is read once, at full speed. Reading an entry for a peer
//! *again* has a price ([`Walked`]): a peer that asks for the same without end is answered ever later, not refused, since an
//! answer may be lost and a node may come back without its data.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use godwit_core::context::{Dot, VersionVector};
use godwit_core::delta::{Delta, EncodedDelta};
use godwit_core::ids::{PartitionId, ReplicaId};
use godwit_core::interval::IntervalBuilder;
use godwit_core::partition::{self, LogEntry};
use godwit_core::store::{StoreError, StoreRead};
use godwit_core::time::Mono;

use crate::gone::Gone;
use crate::message::Message;
use crate::node::{Node, Step};
use crate::peer::{Bucket, Peer, Session};

/// How often the wait may double; [`crate::Tuning::relay_retry_us`] ends it before.
const DOUBLINGS_MAX: u32 = 16;
/// Origins of which it is kept that something is lacking, a partition: the others come when these have.
const GAPS_MAX: usize = 256;
/// Log entries looked at in one step.
const STEP_ENTRIES_MAX: usize = 1024;
/// Bytes of log entries looked at in one step, the last entry excepted.
const STEP_BYTES_MAX: usize = 1024 * 1024;
/// Bytes of a log entry that is read again that cost as much as the entry itself.
const AGAIN_BYTES: usize = 1024;
/// What finding the place for an answer costs: a binary search over checkpoints.
const SEARCH_COST: u32 = 32;
/// Processes of a peer that may have a log from its beginning as if for the first time, and how long it takes to earn
/// another: a node that is replaced, or put back from a backup, has lost what it was sent.
const ANEW_BURST: u32 = 4;
const ANEW_EVERY_US: u64 = 600_000_000;

/// A request that is being answered.
#[derive(Debug)]
pub(crate) struct Answer {
    /// What the asker had when it asked.
    asked: VersionVector,
    /// What it will have of this node's own deltas at the end.
    own: u64,
    /// The index of the first log entry not looked at; `None` while the place is still to be found.
    next: Option<u64>,
    /// Bytes sent.
    bytes: usize,
    /// What is still to be sent.
    run: IntervalBuilder,
}

/// How far a partition's log was read for a peer, whatever the link.
#[derive(Debug, Default)]
struct Reach {
    /// The index before which every entry was read for the peer once: reading it again has a price.
    read: u64,
    /// Where the last answer ended, and what covers every entry before that.
    ended: Option<(u64, VersionVector)>,
}

/// What was read of the log for a peer, and what it may still have read again.
///
/// Entries and bytes of them cost alike: one for an entry and one for each [`AGAIN_BYTES`] of it. A step is done first and
/// paid for after, so that an entry of any size is answered in the end.
#[derive(Debug, Default)]
pub(crate) struct Walked {
    reaches: BTreeMap<PartitionId, Reach>,
    /// What was read again and is not earned back yet.
    debt: u32,
    /// Up to when what is earned is taken off it.
    paid_at: Option<Mono>,
    /// Processes that may begin anew.
    anew: Option<Bucket>,
}

impl Walked {
    /// The peer is another process than before: it may have lost what was read for the last one.
    pub(crate) fn another_process(&mut self, now: Mono) {
        let anew = self.anew.get_or_insert_with(|| Bucket::full(ANEW_BURST, now));
        if anew.take(now, ANEW_BURST, ANEW_EVERY_US) {
            self.reaches.clear();
        }
    }

    /// When the peer's answers may go on: at once, unless it owes more than `burst`.
    fn open_at(&mut self, now: Mono, burst: u32, every_us: u64) -> Mono {
        let every_us = every_us.max(1);
        let paid_at = self.paid_at.unwrap_or(now);
        let earned = now.since_us(paid_at) / every_us;
        self.debt = self.debt.saturating_sub(u32::try_from(earned).unwrap_or(u32::MAX));
        let paid_at = if self.debt == 0 { now } else { paid_at.plus_us(earned * every_us) };
        self.paid_at = Some(paid_at);
        match self.debt.saturating_sub(burst) {
            0 => now,
            beyond => paid_at.plus_us(u64::from(beyond).saturating_mul(every_us)),
        }
    }

    /// Takes note that an entry was read for the peer.
    fn read(&mut self, id: PartitionId, index: u64, bytes: usize) {
        let reach = self.reaches.entry(id).or_default();
        if index < reach.read {
            let cost = u32::try_from(1 + bytes / AGAIN_BYTES).unwrap_or(u32::MAX);
            self.debt = self.debt.saturating_add(cost);
        } else {
            reach.read = index + 1;
        }
    }

    /// An answer ended at an entry; `reached` covers all before it, and needs to say no more than `context`.
    fn ended(&mut self, id: PartitionId, next: u64, reached: &VersionVector, context: &VersionVector) {
        let known =
            context.iter().map(|dot| Dot { counter: dot.counter.min(reached.get(dot.replica)), ..dot });
        let known = known.filter(|dot| dot.counter > 0).collect();
        self.reaches.entry(id).or_default().ended = Some((next, known));
    }

    /// Where an answer to one who has this may go on from the last one.
    fn place(&self, id: PartitionId, asked: &VersionVector) -> Option<u64> {
        let (next, reached) = self.reaches.get(&id)?.ended.as_ref()?;
        asked.covers_all(reached).then_some(*next)
    }
}

/// What this node lacks and has asked for.
#[derive(Debug, Default)]
pub(crate) struct CatchUp {
    lacks: BTreeMap<PartitionId, Lack>,
    /// Who cannot serve this node from its log.
    pub(crate) gone: Gone,
    /// Partitions of which an operator was told that nobody can, since something was last applied.
    pub(crate) repair_alarmed: BTreeSet<PartitionId>,
}

impl CatchUp {
    /// Asks for what is lacking without waiting any longer.
    pub(crate) fn ask_now(&mut self, now: Mono, id: PartitionId) {
        if let Some(lack) = self.lacks.get_mut(&id) {
            lack.due = now;
        }
    }
}

#[derive(Debug)]
struct Lack {
    /// By origin.
    origins: BTreeMap<ReplicaId, Gap>,
    asked: Option<(String, Mono)>,
    attempts: usize,
    /// Requests since something that was lacking was last applied.
    fruitless: u32,
    /// When to ask.
    due: Mono,
}

/// What is lacking of an origin.
#[derive(Debug, Clone, Copy)]
struct Gap {
    /// The counter reached here.
    reached: u64,
    /// Since when it has stood there, or an answer was last awaited.
    since: Mono,
    /// Whether its origin is a peer that waits to be asked, or that cannot push it.
    awaited: bool,
}

impl Node {
    /// Compares what peers have with what this node has.
    pub(crate) fn review_lacks(&mut self, now: Mono, id: PartitionId) {
        let mut lacking: BTreeMap<ReplicaId, Gap> = BTreeMap::new();
        let context = self.partitions[usize::from(id.0)].context();
        for (name, peer) in self.peers.iter().filter(|(_, peer)| peer.synced().is_some()) {
            let is_gone = self.catch_up.gone.has_said(id, name, now);
            let told = peer.known.get(&id).into_iter().flat_map(VersionVector::iter);
            for dot in told.filter(|dot| !context.covers(*dot)) {
                let reached = context.get(dot.replica);
                let own = Some(dot.replica) == peer.replica();
                let is_far =
                    peer.answers_all() && dot.counter - reached > self.config.tuning.push_commits_max;
                let awaited = own && (is_far || is_gone);
                let is_kept = lacking.len() < GAPS_MAX || lacking.contains_key(&dot.replica);
                if is_kept && (!own || awaited) {
                    let gap = lacking.entry(dot.replica).or_insert(Gap { reached, since: now, awaited });
                    gap.awaited |= awaited;
                }
            }
        }
        if lacking.is_empty() {
            self.catch_up.lacks.remove(&id);
            self.catch_up.gone.forget(id);
            return;
        }
        let fresh = || Lack { origins: BTreeMap::new(), asked: None, attempts: 0, fruitless: 0, due: now };
        let mut lack = self.catch_up.lacks.remove(&id).unwrap_or_else(fresh);
        for (origin, gap) in &mut lacking {
            match lack.origins.get(origin) {
                Some(before) if before.reached == gap.reached => gap.since = before.since,
                Some(_) => lack.fruitless = 0,
                None => {}
            }
        }
        lack.origins = lacking;
        lack.due = self.lack_deadline(&lack);
        self.catch_up.lacks.insert(id, lack);
    }

    pub(crate) fn next_catch_up_deadline(&self) -> Option<Mono> {
        self.catch_up.lacks.values().map(|lack| lack.due).min()
    }

    /// When to ask for what is lacking.
    fn lack_deadline(&self, lack: &Lack) -> Mono {
        let tuning = &self.config.tuning;
        let linked = |origin: &ReplicaId| {
            self.peers.values().any(|peer| peer.synced().is_some() && peer.replica() == Some(*origin))
        };
        let patience = |(origin, gap): (&ReplicaId, &Gap)| {
            if gap.awaited && lack.fruitless == 0 {
                return gap.since;
            }
            let linked = linked(origin) && !gap.awaited;
            let wait = if linked { tuning.relay_wait_linked_us } else { tuning.relay_wait_cut_us };
            let longer =
                wait.saturating_mul(1 << lack.fruitless.min(DOUBLINGS_MAX)).min(tuning.relay_retry_us);
            gap.since.plus_us(longer.max(wait))
        };
        let ripe = lack.origins.iter().map(patience).min();
        let answer = lack.asked.as_ref().map(|(_, at)| at.plus_us(tuning.relay_retry_us));
        ripe.max(answer).unwrap_or(Mono(u64::MAX))
    }

    /// Asks for what has been lacking for too long.
    pub(crate) fn ask_due<S: StoreRead>(&mut self, step: &mut Step<'_, S>) {
        let now = step.now.mono;
        let due = self.catch_up.lacks.iter().filter(|(_, lack)| lack.due <= now);
        let due: Vec<PartitionId> = due.map(|(&id, _)| id).collect();
        for id in due {
            let context = self.context(id).clone();
            let Some(mut lack) = self.catch_up.lacks.remove(&id) else { continue };
            // A node of wire version 1 leaves its own out of its answers.
            let has = |peer: &Peer| {
                let mut gaps = lack.origins.iter();
                gaps.any(|(&origin, gap)| {
                    let answers = peer.answers_all() || Some(origin) != peer.replica();
                    answers && peer.known(id, origin) > gap.reached
                })
            };
            let candidates = self.peers.iter().filter(|(_, peer)| has(peer));
            let candidates = candidates.filter_map(|(name, peer)| Some((name, peer.synced()?.place())));
            let (gone, able): (Vec<_>, Vec<_>) =
                candidates.partition(|(name, _)| self.catch_up.gone.has_said(id, name, now));
            let candidates = if able.is_empty() { &gone } else { &able };
            if candidates.is_empty() {
                continue;
            }
            let (name, place) = candidates[lack.attempts % candidates.len()];
            let name = name.clone();
            lack.attempts += 1;
            lack.fruitless += 1;
            lack.asked = Some((name.clone(), now));
            lack.origins.values_mut().for_each(|gap| gap.since = now);
            if able.is_empty() {
                self.repair_wanted(step, id, &name);
            } else {
                step.send(&name, place, Message::Want { partition: id, context });
            }
            lack.due = self.lack_deadline(&lack);
            self.catch_up.lacks.insert(id, lack);
        }
    }

    /// An answer has ended: what is still lacking may be asked for again.
    pub(crate) fn want_answered(&mut self, now: Mono, name: &str, id: PartitionId) {
        if let Some(lack) = self.catch_up.lacks.get_mut(&id)
            && lack.asked.as_ref().is_some_and(|(asked, _)| asked == name)
        {
            lack.asked = None;
        }
        self.review_lacks(now, id);
    }

    /// Begins to answer a peer. One who asks again having more is being answered already: were the answer begun anew, a peer
    /// that applies others' commits meanwhile would never see the end of a long one.
    pub(crate) fn serve_want(&mut self, now: Mono, name: &str, id: PartitionId, asked: VersionVector) {
        let Some(session) = self.peers.get_mut(name).and_then(|peer| peer.session.as_mut()) else { return };
        if session.answers.get(&id).is_none_or(|answer| !asked.covers_all(&answer.asked)) {
            let run = IntervalBuilder::new(asked.clone());
            session.answers.insert(id, Answer { asked, own: 0, next: None, bytes: 0, run });
            session.answer_at.get_or_insert(now);
        }
    }

    /// Goes on with answers, one part a peer; partitions take turns.
    pub(crate) fn answers_due<S: StoreRead>(&mut self, step: &mut Step<'_, S>) -> Result<(), StoreError> {
        let now = step.now.mono;
        let (burst, every_us) = (self.config.tuning.again_burst, self.config.tuning.again_every_us);
        let names: Vec<String> = self.peers.keys().cloned().collect();
        for name in names {
            let Some(peer) = self.peers.get_mut(&name) else { continue };
            let Some(session) = peer.session.as_mut().filter(|it| it.answer_at.is_some_and(|at| at <= now))
            else {
                continue;
            };
            let open_at = peer.walked.open_at(now, burst, every_us);
            if open_at > now {
                session.answer_at = Some(open_at);
                continue;
            }
            let turn =
                session.answers.range(session.answer_turn..).next().or(session.answers.first_key_value());
            let turn = turn.map(|(&id, _)| id);
            if let Some(id) = turn
                && let Some(answer) = session.answers.remove(&id)
            {
                // A run that grows is finished before another begins: so only one takes memory.
                let in_progress = !answer.run.is_empty();
                session.answer_turn = PartitionId(id.0.saturating_add(1));
                let grows = self.answer_part(step, &name, id, answer)?;
                if let Some(session) = self.peers.get_mut(&name).and_then(|peer| peer.session.as_mut())
                    && (grows || in_progress)
                    && session.answers.contains_key(&id)
                {
                    session.answer_turn = id;
                }
            }
            if let Some(session) = self.peers.get_mut(&name).and_then(|peer| peer.session.as_mut()) {
                session.answer_at = (!session.answers.is_empty()).then_some(now);
            }
        }
        Ok(())
    }

    /// Sends a part of an answer, and puts off the rest. Tells whether it holds a run that is not sent yet.
    fn answer_part<S: StoreRead>(
        &mut self,
        step: &mut Step<'_, S>,
        name: &str,
        id: PartitionId,
        mut answer: Answer,
    ) -> Result<bool, StoreError> {
        let own = self.replica();
        let tuning = &self.config.tuning;
        let partition = &self.partitions[usize::from(id.0)];
        let Some(peer) = self.peers.get_mut(name) else { return Ok(false) };
        let Some(place) = peer.session.as_ref().map(Session::place) else { return Ok(false) };
        let walked = &mut peer.walked;
        let whole_from = partition.log_floor().whole_from;
        // While it is answered the log may be truncated to beyond the place reached, or a repair may bring what it lacks.
        let is_there =
            partition.reaches(answer.run.reached()) && answer.next.is_none_or(|next| next >= whole_from);
        if !is_there {
            let mut deltas = Vec::new();
            answer.flush(&mut deltas);
            if !deltas.is_empty() {
                step.send(name, place, Message::Deltas { partition: id, deltas, ends_want: false });
            }
            self.answer_gone(step, name, id);
            return Ok(false);
        }
        let ended = || walked.place(id, &answer.asked).filter(|next| *next >= whole_from);
        let mut next = match answer.next.or_else(ended) {
            Some(next) => next,
            None => {
                walked.debt = walked.debt.saturating_add(SEARCH_COST);
                partition.log_position(&step.txn, |reached| answer.asked.covers_all(reached))?
            }
        };
        let mut deltas: Vec<EncodedDelta> = Vec::new();
        let (mut bytes_read, mut looked_at, mut full) = (0, 0, false);
        let mut outcome = Ok(());
        partition::read_log(&step.txn, id, next, |entry| {
            let size = entry.encoded.as_bytes().len();
            looked_at += 1;
            bytes_read += size;
            next = entry.index + 1;
            walked.read(id, entry.index, size);
            match answer.take(entry, own, place.merges(), tuning.chunk_bytes, &mut deltas) {
                Ok(is_full) => full = is_full || answer.bytes + answer.run.bytes() >= tuning.relay_bytes,
                Err(error) => outcome = Err(error),
            }
            let enough = looked_at == STEP_ENTRIES_MAX || bytes_read >= STEP_BYTES_MAX;
            if enough || full || outcome.is_err() {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })?;
        outcome?;
        answer.next = Some(next);
        let at_end = next > partition.log_last();
        let ends = at_end || answer.bytes + answer.run.bytes() >= tuning.relay_bytes;
        if ends || full {
            answer.flush(&mut deltas);
        }
        if ends {
            walked.ended(id, next, answer.run.reached(), partition.context());
        }
        let (grows, sent_own) = (!answer.run.is_empty(), answer.own);
        let resend_after_us = tuning.resend_after_us;
        let Some(session) = self.peers.get_mut(name).and_then(|peer| peer.session.as_mut()) else {
            return Ok(false);
        };
        if !ends {
            session.answers.insert(id, answer);
        } else if at_end && sent_own > 0 {
            // The peer has, or is about to get, all that there is: new commits can be pushed to it.
            session.push.go_live(id, partition.log_last() + 1, sent_own, step.now.mono, resend_after_us);
        }
        if ends || !deltas.is_empty() {
            step.send(name, place, Message::Deltas { partition: id, deltas, ends_want: ends });
        }
        Ok(grows)
    }
}

impl Answer {
    /// Takes a log entry into the answer. Tells whether there is enough for a message.
    fn take(
        &mut self,
        entry: LogEntry,
        own: ReplicaId,
        merges: bool,
        chunk_bytes: usize,
        deltas: &mut Vec<EncodedDelta>,
    ) -> Result<bool, StoreError> {
        if entry.dots.covered_by(self.run.reached()) {
            return Ok(false);
        }
        let size = entry.encoded.as_bytes().len();
        let damaged = || StoreError::damaged("log");
        self.own = self.own.max(
            entry.dots.last_dots().filter(|dot| dot.replica == own).map(|dot| dot.counter).max().unwrap_or(0),
        );
        // Decoded, a large delta takes many times its bytes, and it gains little from being merged.
        if !merges || size > chunk_bytes || !self.run.takes(&entry.dots) {
            self.flush(deltas);
            self.bytes += size;
            let mut reached = self.run.reached().clone();
            entry.dots.last_dots().for_each(|dot| reached.advance(dot));
            self.run = IntervalBuilder::new(reached);
            deltas.push(entry.encoded);
            let bytes: usize = deltas.iter().map(|delta| delta.as_bytes().len()).sum();
            return Ok(bytes >= chunk_bytes);
        }
        let delta = Delta::decode(&entry.encoded).map_err(damaged())?;
        self.run.add(delta, entry.encoded);
        Ok(self.run.bytes() >= chunk_bytes)
    }

    /// Ends the run that grows.
    fn flush(&mut self, deltas: &mut Vec<EncodedDelta>) {
        let next = IntervalBuilder::new(self.run.reached().clone());
        if let Some(delta) = std::mem::replace(&mut self.run, next).finish() {
            self.bytes += delta.as_bytes().len();
            deltas.push(delta);
        }
    }
}
