//! Relay on demand: getting a third party's deltas from a peer that has them.
//!
//! Contexts show that a peer has what this node lacks. Usually its origin is about to send it; so the node waits, a
//! little if it has no link to the origin, longer if it has one. If nothing of that origin was applied meanwhile it
//! asks, one peer at a time, and another one if no answer comes. An answer is bounded; if more is lacking, the same
//! happens again. As long as answers bring nothing that can be applied (it depends on what comes another way), each
//! wait is twice the one before.
//!
//! The one who is asked sends, from its log and in its order, what the asker's context does not cover: such a run is
//! causally closed given what came before it. Its own deltas it leaves out, since it pushes them anyway.

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

/// How often the wait may double; [`crate::Tuning::relay_retry_us`] ends it before.
const DOUBLINGS_MAX: u32 = 16;

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
            let has =
                |known: &VersionVector| lack.origins.iter().any(|(&origin, &(at, _))| known.get(origin) > at);
            let candidates = self.peers.iter().filter(|(_, peer)| peer.known.get(&id).is_some_and(has));
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

    /// Answers a peer that lacks others' deltas.
    pub(crate) fn serve_want<S: StoreRead>(
        &mut self,
        step: &mut Step<'_, S>,
        name: &str,
        id: PartitionId,
        context: &VersionVector,
    ) -> Result<(), StoreError> {
        let (own, tuning) = (self.config.replica, &self.config.tuning);
        let log_last = self.partitions[usize::from(id.0)].log_last();
        let from = partition::log_position(&step.txn, id, log_last, |reached| context.covers_all(reached))?;
        let mut chunks: Vec<Vec<EncodedDelta>> = vec![Vec::new()];
        let (mut chunk_bytes, mut bytes) = (0, 0);
        partition::read_log(&step.txn, id, from, |entry| {
            if entry.dot.replica == own || context.covers(entry.dot) {
                return ControlFlow::Continue(());
            }
            let size = entry.encoded.as_bytes().len();
            if chunk_bytes > 0 && chunk_bytes + size > tuning.chunk_bytes {
                chunks.push(Vec::new());
                chunk_bytes = 0;
            }
            chunk_bytes += size;
            bytes += size;
            if let Some(chunk) = chunks.last_mut() {
                chunk.push(entry.encoded);
            }
            if bytes >= tuning.relay_bytes { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        let Some(session) = self.peers.get(name).and_then(|peer| peer.session.as_ref()) else {
            return Ok(());
        };
        let last = chunks.len() - 1;
        for (i, deltas) in chunks.into_iter().enumerate() {
            step.send(name, session.link, Message::Deltas { partition: id, deltas, ends_want: i == last });
        }
        Ok(())
    }
}
