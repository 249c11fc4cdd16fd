//! Relay on demand: getting a third party's deltas from a peer that has them.
//!
//! Contexts show that a peer has what this node lacks. Usually its origin is about to send it; so the node waits, a
//! little if it has no link to the origin, longer if it has one. If nothing of that origin was applied meanwhile it
//! asks, one peer at a time, and another one if no answer comes. An answer is bounded; if more is lacking, the same
//! happens again. As long as answers bring nothing that can be applied (it depends on what comes another way), each
//! wait is twice the one before.
//!
//! The one who is asked sends, from its log and in its order, what the asker's context does not cover: such a run is
//! causally closed given what came before it. Its own deltas it leaves out, since it pushes them anyway. It answers
//! one request a partition at a time, a bounded part of the log a step, so that no request holds up its clients.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use godwit_core::context::VersionVector;
use godwit_core::delta::EncodedDelta;
use godwit_core::ids::{PartitionId, ReplicaId};
use godwit_core::partition;
use godwit_core::store::{StoreError, StoreRead};
use godwit_core::time::Mono;

use crate::message::Message;
use crate::node::{Node, Step};
use crate::peer::Peer;
use crate::push::{CHUNK_ENTRIES_MAX, CHUNK_READ_BYTES_MAX};

/// How often the wait may double; [`crate::Tuning::relay_retry_us`] ends it before.
const DOUBLINGS_MAX: u32 = 16;

/// A request that is being answered.
#[derive(Debug)]
pub(crate) struct Answer {
    /// What the asker has.
    context: VersionVector,
    /// The index of the first log entry not looked at.
    next: u64,
    /// Bytes of deltas sent.
    bytes: usize,
}

/// What this node lacks and has asked for.
#[derive(Debug, Default)]
pub(crate) struct Relay {
    lacks: BTreeMap<PartitionId, Lack>,
}

#[derive(Debug, Default)]
struct Lack {
    /// For each origin: the counter reached here, and since when it has stood there.
    origins: BTreeMap<ReplicaId, (u64, Mono)>,
    asked: Option<(String, Mono)>,
    attempts: usize,
    /// Requests since something that was lacking was last applied.
    fruitless: u32,
}

impl Node {
    /// Compares what peers have of others' deltas with what this node has.
    pub(crate) fn review_relay(&mut self, now: Mono, id: PartitionId) {
        let mut lacking: BTreeMap<ReplicaId, (u64, Mono)> = BTreeMap::new();
        let context = self.partitions[usize::from(id.0)].context();
        for peer in self.peers.values().filter(|peer| peer.synced().is_some()) {
            let told = peer.known.get(&id).into_iter().flat_map(VersionVector::iter);
            for dot in told.filter(|dot| !context.covers(*dot) && Some(dot.replica) != peer.replica()) {
                lacking.insert(dot.replica, (context.get(dot.replica), now));
            }
        }
        if lacking.is_empty() {
            self.relay.lacks.remove(&id);
            return;
        }
        let lack = self.relay.lacks.entry(id).or_default();
        for (origin, (reached, since)) in &mut lacking {
            match lack.origins.get(origin) {
                Some((before, started)) if before == reached => *since = *started,
                Some(_) => lack.fruitless = 0,
                None => {}
            }
        }
        lack.origins = lacking;
    }

    pub(crate) fn next_relay_deadline(&self) -> Option<Mono> {
        self.relay.lacks.values().map(|lack| self.relay_deadline(lack)).min()
    }

    /// When to ask for what is lacking.
    fn relay_deadline(&self, lack: &Lack) -> Mono {
        let tuning = &self.config.tuning;
        let linked = |origin: &ReplicaId| {
            self.peers.values().any(|peer| peer.synced().is_some() && peer.replica() == Some(*origin))
        };
        let patience = |(origin, (_, since)): (&ReplicaId, &(u64, Mono))| {
            let wait = if linked(origin) { tuning.relay_wait_linked_us } else { tuning.relay_wait_cut_us };
            let longer =
                wait.saturating_mul(1 << lack.fruitless.min(DOUBLINGS_MAX)).min(tuning.relay_retry_us);
            since.plus_us(longer.max(wait))
        };
        let ripe = lack.origins.iter().map(patience).min();
        let answer = lack.asked.as_ref().map(|(_, at)| at.plus_us(tuning.relay_retry_us));
        ripe.max(answer).unwrap_or(Mono(u64::MAX))
    }

    /// Asks for what has been lacking for too long.
    pub(crate) fn relay_due<S: StoreRead>(&mut self, step: &mut Step<'_, S>) {
        let now = step.now.mono;
        let due = self.relay.lacks.iter().filter(|(_, lack)| self.relay_deadline(lack) <= now);
        let due: Vec<PartitionId> = due.map(|(&id, _)| id).collect();
        for id in due {
            let context = self.context(id).clone();
            let Some(lack) = self.relay.lacks.get_mut(&id) else { continue };
            // A node leaves its own out of its answers.
            let has = |peer: &Peer| {
                let mut others = lack.origins.iter().filter(|(origin, _)| Some(**origin) != peer.replica());
                others.any(|(&origin, &(at, _))| peer.known(id, origin) > at)
            };
            let candidates = self.peers.iter().filter(|(_, peer)| has(peer));
            let candidates: Vec<_> =
                candidates.filter_map(|(name, peer)| Some((name, peer.synced()?.link))).collect();
            if candidates.is_empty() {
                self.relay.lacks.remove(&id);
                continue;
            }
            let (name, link) = candidates[lack.attempts % candidates.len()];
            lack.attempts += 1;
            lack.fruitless += 1;
            lack.asked = Some((name.clone(), now));
            let origins = lack.origins.values_mut();
            origins.for_each(|(_, since)| *since = now);
            step.send(name, link, Message::Want { partition: id, context });
        }
    }

    /// An answer has ended: what is still lacking may be asked for again.
    pub(crate) fn want_answered(&mut self, now: Mono, name: &str, id: PartitionId) {
        if let Some(lack) = self.relay.lacks.get_mut(&id)
            && lack.asked.as_ref().is_some_and(|(asked, _)| asked == name)
        {
            lack.asked = None;
        }
        self.review_relay(now, id);
    }

    /// Begins to answer a peer that lacks others' deltas. The same question again is being answered already.
    pub(crate) fn serve_want<S: StoreRead>(
        &mut self,
        step: &mut Step<'_, S>,
        name: &str,
        id: PartitionId,
        context: VersionVector,
    ) -> Result<(), StoreError> {
        let partition = &self.partitions[usize::from(id.0)];
        let Some(session) = self.peers.get_mut(name).and_then(|peer| peer.session.as_mut()) else {
            return Ok(());
        };
        if session.answers.get(&id).is_none_or(|answer| answer.context != context) {
            let next = partition.log_position(&step.txn, |reached| context.covers_all(reached))?;
            session.answers.insert(id, Answer { context, next, bytes: 0 });
            session.answer_at = Some(step.now.mono);
        }
        Ok(())
    }

    /// Goes on with answers, one part a peer; partitions take turns.
    pub(crate) fn answers_due<S: StoreRead>(&mut self, step: &mut Step<'_, S>) -> Result<(), StoreError> {
        let now = step.now.mono;
        let names: Vec<String> = self.peers.keys().cloned().collect();
        for name in names {
            let Some(session) = self.peers.get_mut(&name).and_then(|peer| peer.session.as_mut()) else {
                continue;
            };
            if session.answer_at.is_none_or(|at| at > now) {
                continue;
            }
            let turn =
                session.answers.range(session.answer_turn..).next().or(session.answers.first_key_value());
            let turn = turn.map(|(&id, _)| id);
            if let Some(id) = turn
                && let Some(answer) = session.answers.remove(&id)
            {
                session.answer_turn = PartitionId(id.0.saturating_add(1));
                self.answer_part(step, &name, id, answer)?;
            }
            if let Some(session) = self.peers.get_mut(&name).and_then(|peer| peer.session.as_mut()) {
                session.answer_at = (!session.answers.is_empty()).then_some(now);
            }
        }
        Ok(())
    }

    /// Sends a part of an answer, and puts off the rest.
    fn answer_part<S: StoreRead>(
        &mut self,
        step: &mut Step<'_, S>,
        name: &str,
        id: PartitionId,
        mut answer: Answer,
    ) -> Result<(), StoreError> {
        let (own, tuning) = (self.config.replica, &self.config.tuning);
        let mut deltas: Vec<EncodedDelta> = Vec::new();
        let (mut bytes, mut bytes_read, mut looked_at) = (0, 0, 0);
        partition::read_log(&step.txn, id, answer.next, |entry| {
            let wanted = entry.dot.replica != own && !answer.context.covers(entry.dot);
            let size = entry.encoded.as_bytes().len();
            if wanted && bytes > 0 && bytes + size > tuning.chunk_bytes {
                return ControlFlow::Break(());
            }
            answer.next = entry.index + 1;
            looked_at += 1;
            bytes_read += size;
            if wanted {
                bytes += size;
                deltas.push(entry.encoded);
            }
            let enough = looked_at == CHUNK_ENTRIES_MAX
                || bytes_read >= CHUNK_READ_BYTES_MAX
                || answer.bytes + bytes >= tuning.relay_bytes;
            if enough { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        answer.bytes += bytes;
        let log_last = self.partitions[usize::from(id.0)].log_last();
        let ends = answer.next > log_last || answer.bytes >= tuning.relay_bytes;
        let Some(session) = self.peers.get_mut(name).and_then(|peer| peer.session.as_mut()) else {
            return Ok(());
        };
        if !ends {
            session.answers.insert(id, answer);
        }
        if ends || !deltas.is_empty() {
            let link = session.link;
            step.send(name, link, Message::Deltas { partition: id, deltas, ends_want: ends });
        }
        Ok(())
    }
}
