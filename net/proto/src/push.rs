//! Pushing own deltas to a peer.
//!
//! For each peer and partition there is a place in this node's log ([`Stream::next`]) before which every own delta was
//! sent on this link or acknowledged. A stream at the end of the log is *live*: a new own commit goes out in the step
//! that makes it. A stream behind reads the log from its place on. Both stop at the window: bytes sent and not
//! acknowledged ([`crate::Tuning::window_bytes`]). So a slow or dead peer costs a place, never memory.
//!
//! What the peer tells of its context is the acknowledgement: it has durably applied this node's deltas up to there.
//! If it acknowledges nothing for [`crate::Tuning::resend_after_us`] though something is in flight, every stream with
//! something in flight goes back to what is acknowledged: messages may be lost, or dropped by a peer without room.
//!
//! The place of a peer that is behind is found from the contexts that the log carries: nothing is remembered about
//! peers between links.

use std::collections::{BTreeMap, VecDeque};
use std::ops::ControlFlow;

use godwit_core::delta::EncodedDelta;
use godwit_core::ids::PartitionId;
use godwit_core::partition::{self, Applied};
use godwit_core::store::{StoreError, StoreRead};
use godwit_core::time::Mono;

use crate::message::Message;
use crate::node::{Node, Step};

/// The least that a delta counts for in the window, so that the list of what is in flight is bounded too.
const DELTA_BYTES_LEAST: usize = 128;
/// Log entries looked at for one message: bounds a step where most entries are others'.
const CHUNK_ENTRIES_MAX: usize = 4096;
/// Messages read from the log in one step: bounds how long clients wait for a peer's catching up.
const STEP_CHUNKS_MAX: usize = 4;

/// The pushing state of one link.
#[derive(Debug)]
pub(crate) struct Push {
    streams: BTreeMap<PartitionId, Stream>,
    in_flight_bytes: usize,
    /// When the peer last acknowledged something, or there was nothing to acknowledge.
    progress_at: Mono,
    resend_at: Option<Mono>,
    /// Set while a stream is behind and the window has room.
    pump_at: Option<Mono>,
    /// The partition after which the next pump begins, so that all get their turn.
    turn: PartitionId,
}

#[derive(Debug)]
struct Stream {
    /// The index of the first log entry not looked at.
    next: u64,
    /// The counter of the last own delta sent or acknowledged.
    sent: u64,
    /// Counters and sizes of what is sent and not acknowledged.
    in_flight: VecDeque<(u64, usize)>,
}

impl Push {
    pub(crate) fn new(now: Mono) -> Self {
        Self {
            streams: BTreeMap::new(),
            in_flight_bytes: 0,
            progress_at: now,
            resend_at: None,
            pump_at: None,
            turn: PartitionId(0),
        }
    }

    pub(crate) fn deadline(&self) -> Option<Mono> {
        self.pump_at.into_iter().chain(self.resend_at).min()
    }

    /// Bytes sent and not acknowledged.
    pub(crate) fn in_flight_bytes(&self) -> usize {
        self.in_flight_bytes
    }

    fn sent(&mut self, id: PartitionId, counter: u64, size: usize, resend_at: Mono) {
        let size = size.max(DELTA_BYTES_LEAST);
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.sent = counter;
            stream.in_flight.push_back((counter, size));
            self.in_flight_bytes += size;
            self.resend_at.get_or_insert(resend_at);
        }
    }
}

impl Node {
    /// A delta was applied and logged: live streams take it, or step over it if it is another's.
    pub(crate) fn push_applied<S: StoreRead>(
        &mut self,
        step: &mut Step<'_, S>,
        id: PartitionId,
        applied: &Applied,
    ) {
        let (window, resend_after) = (self.config.tuning.window_bytes, self.config.tuning.resend_after_us);
        let own = applied.dot.replica == self.config.replica;
        for (name, peer) in &mut self.peers {
            let Some(session) = peer.session.as_mut().filter(|session| session.synced) else { continue };
            let push = &mut session.push;
            let fresh =
                Stream { next: applied.index, sent: applied.dot.counter - 1, in_flight: VecDeque::new() };
            // An empty log and an empty context need no looking up.
            let stream = match push.streams.entry(id) {
                std::collections::btree_map::Entry::Occupied(stream) => stream.into_mut(),
                std::collections::btree_map::Entry::Vacant(vacant) if applied.index == 1 => {
                    vacant.insert(fresh)
                }
                std::collections::btree_map::Entry::Vacant(_) => continue,
            };
            if stream.next != applied.index {
                continue;
            }
            if own && push.in_flight_bytes >= window {
                continue;
            }
            stream.next = applied.index + 1;
            if own {
                if push.in_flight_bytes == 0 {
                    push.progress_at = step.now.mono;
                }
                let resend_at = step.now.mono.plus_us(resend_after);
                push.sent(id, applied.dot.counter, applied.encoded.as_bytes().len(), resend_at);
                let deltas = vec![applied.encoded.clone()];
                step.outputs.push(crate::Output::Send {
                    peer: name.clone(),
                    link: session.link,
                    message: Message::Deltas { partition: id, deltas, ends_want: false },
                });
            }
        }
    }

    /// A peer told its context of a partition: what it covers is no longer in flight.
    pub(crate) fn acknowledged(&mut self, now: Mono, name: &str, id: PartitionId) {
        let own = self.config.replica;
        let Some(peer) = self.peers.get_mut(name) else { return };
        let acknowledged = peer.known(id, own);
        let Some(session) = peer.session.as_mut() else { return };
        let push = &mut session.push;
        let Some(stream) = push.streams.get_mut(&id) else { return };
        while let Some((_, size)) = stream.in_flight.pop_front_if(|(counter, _)| *counter <= acknowledged) {
            push.in_flight_bytes -= size;
            push.progress_at = now;
        }
        stream.sent = stream.sent.max(acknowledged);
        push.resend_at =
            (push.in_flight_bytes > 0).then(|| push.progress_at.plus_us(self.config.tuning.resend_after_us));
    }

    /// Goes on with peers that are behind, and back where nothing was acknowledged for too long.
    pub(crate) fn push_due<S: StoreRead>(&mut self, step: &mut Step<'_, S>) -> Result<(), StoreError> {
        let now = step.now.mono;
        let names: Vec<String> = self.peers.keys().cloned().collect();
        for name in names {
            let Some(session) = self.peers.get_mut(&name).and_then(|peer| peer.session.as_mut()) else {
                continue;
            };
            let push = &mut session.push;
            let resend = push.resend_at.is_some_and(|at| at <= now);
            if resend {
                // Streams are found anew from what is acknowledged.
                push.streams.retain(|_, stream| stream.in_flight.is_empty());
                push.in_flight_bytes = 0;
                push.resend_at = None;
            }
            if resend || push.pump_at.is_some_and(|at| at <= now) {
                self.pump(step, &name)?;
            }
        }
        Ok(())
    }

    /// Sends from the log what a peer lacks of this node's deltas, as far as the window and the step allow.
    pub(crate) fn pump<S: StoreRead>(
        &mut self,
        step: &mut Step<'_, S>,
        name: &str,
    ) -> Result<(), StoreError> {
        let count = self.config.partitions;
        let Some(peer) = self.peers.get_mut(name) else { return Ok(()) };
        let Some(session) = peer.session.as_mut().filter(|session| session.synced) else { return Ok(()) };
        session.push.pump_at = None;
        let turn = session.push.turn;
        let mut chunks = 0;
        for offset in 0..count {
            let id = PartitionId((turn.0 + offset) % count);
            while self.is_behind(step, name, id)? {
                let Some(session) = self.peers.get_mut(name).and_then(|peer| peer.session.as_mut()) else {
                    return Ok(());
                };
                let push = &mut session.push;
                if push.in_flight_bytes >= self.config.tuning.window_bytes {
                    // Acknowledgements will wake it.
                    return Ok(());
                }
                if chunks == STEP_CHUNKS_MAX {
                    push.pump_at = Some(step.now.mono);
                    push.turn = id;
                    return Ok(());
                }
                chunks += 1;
                self.push_chunk(step, name, id)?;
            }
        }
        Ok(())
    }

    /// Whether a partition's stream has not reached the end of the log; finds its place if it has none.
    fn is_behind<S: StoreRead>(
        &mut self,
        step: &Step<'_, S>,
        name: &str,
        id: PartitionId,
    ) -> Result<bool, StoreError> {
        let own = self.config.replica;
        let partition = &self.partitions[usize::from(id.0)];
        let (log_last, own_counter) = (partition.log_last(), partition.own_counter());
        let Some(peer) = self.peers.get_mut(name) else { return Ok(false) };
        let acknowledged = peer.known(id, own);
        let Some(session) = peer.session.as_mut() else { return Ok(false) };
        if let Some(stream) = session.push.streams.get(&id) {
            return Ok(stream.next <= log_last);
        }
        let next = if acknowledged >= own_counter {
            log_last + 1
        } else {
            partition::log_position(&step.txn, id, log_last, |context| context.get(own) <= acknowledged)?
        };
        session.push.streams.insert(id, Stream { next, sent: acknowledged, in_flight: VecDeque::new() });
        Ok(next <= log_last)
    }

    fn push_chunk<S: StoreRead>(
        &mut self,
        step: &mut Step<'_, S>,
        name: &str,
        id: PartitionId,
    ) -> Result<(), StoreError> {
        let (own, chunk_bytes) = (self.config.replica, self.config.tuning.chunk_bytes);
        let resend_at = step.now.mono.plus_us(self.config.tuning.resend_after_us);
        let Some(session) = self.peers.get_mut(name).and_then(|peer| peer.session.as_mut()) else {
            return Ok(());
        };
        let push = &mut session.push;
        let Some(stream) = push.streams.get_mut(&id) else { return Ok(()) };
        let (mut next, sent) = (stream.next, stream.sent);
        let mut found: Vec<(u64, EncodedDelta)> = Vec::new();
        let (mut bytes, mut looked_at) = (0, 0);
        partition::read_log(&step.txn, id, next, |entry| {
            let wanted = entry.dot.replica == own && entry.dot.counter > sent;
            let size = entry.encoded.as_bytes().len();
            if wanted && !found.is_empty() && bytes + size > chunk_bytes {
                return ControlFlow::Break(());
            }
            next = entry.index + 1;
            looked_at += 1;
            if wanted {
                bytes += size;
                found.push((entry.dot.counter, entry.encoded));
            }
            if looked_at == CHUNK_ENTRIES_MAX { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        if looked_at == 0 {
            let place = stream.next;
            return Err(StoreError::Inconsistent(format!("log entry {place} of partition {id} is missing")));
        }
        stream.next = next;
        if found.is_empty() {
            return Ok(());
        }
        if push.in_flight_bytes == 0 {
            push.progress_at = step.now.mono;
        }
        for (counter, delta) in &found {
            push.sent(id, *counter, delta.as_bytes().len(), resend_at);
        }
        let deltas = found.into_iter().map(|(_, delta)| delta).collect();
        let link = session.link;
        step.send(name, link, Message::Deltas { partition: id, deltas, ends_want: false });
        Ok(())
    }
}
