//! Pushing own deltas to a peer.
//!
//! A peer that lacks more than a few of this node's commits in a partition is not pushed to there: it asks, and gets what
//! the log holds merged (see [`crate::catch_up`]); the end of that answer makes the stream live. A peer of wire version 1
//! does not ask for a node's own deltas, so it is pushed to however far behind it is.
//!
//! For each peer and partition there is a place in this node's log ([`Stream::next`]) before which every own delta was
//! sent on this link or acknowledged. A stream at the end of the log is *live*: a new own commit goes out in the step
//! that makes it. A stream behind reads the log from its place on. Both stop at the window: bytes sent and not
//! acknowledged ([`crate::Tuning::window_bytes`]). So a slow or dead peer costs a place, never memory.
//!
//! What the peer tells of its context is the acknowledgement: it has durably applied this node's deltas up to there.
//! A stream of which nothing is acknowledged for [`crate::Tuning::resend_after_us`] though something is in flight goes
//! back to what is acknowledged: messages may be lost, or dropped by a peer without room. Streams take turns, a message
//! each, so that a long backlog of one partition does not hold up the others.
//!
//! The place of a peer that is behind is found from the contexts that the log carries: nothing is remembered about
//! peers between links. A peer that lacks own commits that the log does not hold any more is told so and not pushed to: it
//! asks ([`crate::gone`]).

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
/// Bytes of log entries, others' too, looked at for one message, the last entry excepted.
const CHUNK_READ_BYTES_MAX: usize = 1024 * 1024;
/// Messages read from the log in one step: bounds how long clients wait for a peer's catching up.
const STEP_CHUNKS_MAX: usize = 4;

/// The pushing state of one link.
#[derive(Debug)]
pub(crate) struct Push {
    streams: BTreeMap<PartitionId, Stream>,
    in_flight_bytes: usize,
    /// The earliest moment at which a stream may have to go back.
    resend_at: Option<Mono>,
    /// Set while a stream is behind and the window has room.
    pump_at: Option<Mono>,
    /// The partition whose turn it is.
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
    /// When something was last acknowledged, or the first of what is in flight was sent.
    progress_at: Mono,
}

impl Push {
    pub(crate) fn new() -> Self {
        Self {
            streams: BTreeMap::new(),
            in_flight_bytes: 0,
            resend_at: None,
            pump_at: None,
            turn: PartitionId(0),
        }
    }

    /// Everything is found anew, soon: the node writes under another id.
    pub(crate) fn begin_anew(&mut self, now: Mono) {
        *self = Self { pump_at: Some(now), ..Self::new() };
    }

    pub(crate) fn deadline(&self) -> Option<Mono> {
        self.pump_at.into_iter().chain(self.resend_at).min()
    }

    /// Bytes sent and not acknowledged.
    pub(crate) fn in_flight_bytes(&self) -> usize {
        self.in_flight_bytes
    }

    /// A peer was sent all there is by way of an answer: the stream goes on from the end of the log.
    pub(crate) fn go_live(&mut self, id: PartitionId, next: u64, sent: u64, now: Mono, resend_after_us: u64) {
        self.forget(id);
        self.streams.insert(id, Stream { next, sent, in_flight: VecDeque::new(), progress_at: now });
        // If the answer is lost nothing acknowledges it, and the stream is found anew.
        self.sent(id, sent, DELTA_BYTES_LEAST, now, resend_after_us);
    }

    pub(crate) fn forget(&mut self, id: PartitionId) {
        if let Some(stream) = self.streams.remove(&id) {
            self.in_flight_bytes -= stream.in_flight.iter().map(|(_, size)| size).sum::<usize>();
        }
    }

    fn sent(&mut self, id: PartitionId, counter: u64, size: usize, now: Mono, resend_after_us: u64) {
        let size = size.max(DELTA_BYTES_LEAST);
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.sent = counter;
            if stream.in_flight.is_empty() {
                stream.progress_at = now;
            }
            stream.in_flight.push_back((counter, size));
            self.in_flight_bytes += size;
            self.resend_at.get_or_insert(now.plus_us(resend_after_us));
        }
    }

    /// Forgets the streams that wait for acknowledgement for too long: they are found anew from what is acknowledged.
    /// Tells whether there were any.
    fn go_back(&mut self, now: Mono, resend_after_us: u64) -> bool {
        if self.resend_at.is_none_or(|at| at > now) {
            return false;
        }
        let before = self.streams.len();
        self.streams.retain(|_, stream| {
            let late = !stream.in_flight.is_empty() && stream.progress_at.plus_us(resend_after_us) <= now;
            if late {
                self.in_flight_bytes -= stream.in_flight.iter().map(|(_, size)| size).sum::<usize>();
            }
            !late
        });
        let waiting = self.streams.values().filter(|stream| !stream.in_flight.is_empty());
        self.resend_at = waiting.map(|stream| stream.progress_at.plus_us(resend_after_us)).min();
        self.streams.len() < before
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
        let own = self.replica();
        // An interval is never this node's own: it was got from a peer.
        let own = applied.dots.only().filter(|dot| dot.replica == own);
        for (name, peer) in &mut self.peers {
            let Some(session) = peer.session.as_mut().filter(|session| session.synced) else { continue };
            let push = &mut session.push;
            let fresh = Stream {
                next: applied.index,
                sent: own.map_or(0, |dot| dot.counter - 1),
                in_flight: VecDeque::new(),
                progress_at: step.now.mono,
            };
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
            if own.is_some() && push.in_flight_bytes >= window {
                continue;
            }
            stream.next = applied.index + 1;
            if let Some(dot) = own {
                let size = applied.encoded.as_bytes().len();
                push.sent(id, dot.counter, size, step.now.mono, resend_after);
                let deltas = vec![applied.encoded.clone()];
                let message = Message::Deltas { partition: id, deltas, ends_want: false };
                step.send(name, session.place(), message);
            }
        }
    }

    /// A peer told its context of a partition: what it covers is no longer in flight.
    pub(crate) fn acknowledged(&mut self, now: Mono, name: &str, id: PartitionId) {
        let own = self.replica();
        let Some(peer) = self.peers.get_mut(name) else { return };
        let acknowledged = peer.known(id, own);
        let Some(session) = peer.session.as_mut() else { return };
        let push = &mut session.push;
        let Some(stream) = push.streams.get_mut(&id) else { return };
        while let Some((_, size)) = stream.in_flight.pop_front_if(|(counter, _)| *counter <= acknowledged) {
            push.in_flight_bytes -= size;
            stream.progress_at = now;
        }
        stream.sent = stream.sent.max(acknowledged);
    }

    /// Goes on with peers that are behind, and back where nothing was acknowledged for too long.
    pub(crate) fn push_due<S: StoreRead>(&mut self, step: &mut Step<'_, S>) -> Result<(), StoreError> {
        let (now, resend_after) = (step.now.mono, self.config.tuning.resend_after_us);
        let names: Vec<String> = self.peers.keys().cloned().collect();
        for name in names {
            let Some(session) = self.peers.get_mut(&name).and_then(|peer| peer.session.as_mut()) else {
                continue;
            };
            let push = &mut session.push;
            if push.go_back(now, resend_after) || push.pump_at.is_some_and(|at| at <= now) {
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
        let (count, window) = (self.config.partitions, self.config.tuning.window_bytes);
        let Some(peer) = self.peers.get_mut(name) else { return Ok(()) };
        let Some(session) = peer.session.as_mut() else { return Ok(()) };
        session.push.pump_at = None;
        if !session.synced {
            return Ok(());
        }
        let mut id = session.push.turn;
        let (mut chunks, mut up_to_date) = (0, 0);
        while up_to_date < count {
            if self.is_behind(step, name, id)? {
                let Some(session) = self.peers.get_mut(name).and_then(|peer| peer.session.as_mut()) else {
                    return Ok(());
                };
                let push = &mut session.push;
                push.turn = id;
                if push.in_flight_bytes >= window {
                    // Acknowledgements will wake it.
                    return Ok(());
                }
                if chunks == STEP_CHUNKS_MAX {
                    push.pump_at = Some(step.now.mono);
                    return Ok(());
                }
                self.push_chunk(step, name, id)?;
                chunks += 1;
                up_to_date = 0;
            } else {
                up_to_date += 1;
            }
            id = PartitionId((id.0 + 1) % count);
        }
        Ok(())
    }

    /// Whether a partition's stream has not reached the end of the log and is to go on; finds its place if it has none.
    fn is_behind<S: StoreRead>(
        &mut self,
        step: &mut Step<'_, S>,
        name: &str,
        id: PartitionId,
    ) -> Result<bool, StoreError> {
        let (own, tell_at) = (self.replica(), step.now.mono.plus_us(self.config.tuning.contexts_delay_us));
        let commits_max = self.config.tuning.push_commits_max;
        let partition = &self.partitions[usize::from(id.0)];
        let (log_last, own_counter) = (partition.log_last(), partition.own_counter());
        let Some(peer) = self.peers.get_mut(name) else { return Ok(false) };
        let (acknowledged, asks) = (peer.known(id, own), peer.answers_all());
        let Some(session) = peer.session.as_mut() else { return Ok(false) };
        let sent = session.push.streams.get(&id).map_or(acknowledged, |stream| stream.sent);
        if asks && own_counter.saturating_sub(sent) > commits_max {
            session.push.forget(id);
            if session.to_ask.insert(id) {
                // So that it knows how far behind it is.
                session.untold.insert(id);
                session.tell_at.get_or_insert(tell_at);
            }
            return Ok(false);
        }
        session.to_ask.remove(&id);
        let stream = session.push.streams.get(&id);
        if let Some(stream) = stream.filter(|stream| stream.next >= partition.log_floor().first) {
            return Ok(stream.next <= log_last);
        }
        // A stream that stood where the log was truncated goes on if what it has not looked at was others'.
        let place = match sent >= own_counter {
            true => Some(log_last + 1),
            false => partition.own_log_position(&step.txn, sent)?,
        };
        let Some(next) = place else {
            self.push_gone(step, name, id);
            return Ok(false);
        };
        let now = step.now.mono;
        let fresh = || Stream { next, sent, in_flight: VecDeque::new(), progress_at: now };
        session.push.streams.entry(id).or_insert_with(fresh).next = next;
        Ok(next <= log_last)
    }

    fn push_chunk<S: StoreRead>(
        &mut self,
        step: &mut Step<'_, S>,
        name: &str,
        id: PartitionId,
    ) -> Result<(), StoreError> {
        let (own, chunk_bytes) = (self.replica(), self.config.tuning.chunk_bytes);
        let resend_after = self.config.tuning.resend_after_us;
        let Some(session) = self.peers.get_mut(name).and_then(|peer| peer.session.as_mut()) else {
            return Ok(());
        };
        let push = &mut session.push;
        let Some(stream) = push.streams.get_mut(&id) else { return Ok(()) };
        let (mut next, sent) = (stream.next, stream.sent);
        let mut found: Vec<(u64, EncodedDelta)> = Vec::new();
        let (mut bytes, mut bytes_read, mut looked_at) = (0, 0, 0);
        partition::read_log(&step.txn, id, next, |entry| {
            let wanted = entry.dots.only().filter(|dot| dot.replica == own && dot.counter > sent);
            let size = entry.encoded.as_bytes().len().max(DELTA_BYTES_LEAST);
            if wanted.is_some() && !found.is_empty() && bytes + size > chunk_bytes {
                return ControlFlow::Break(());
            }
            next = entry.index + 1;
            looked_at += 1;
            bytes_read += size;
            if let Some(dot) = wanted {
                bytes += size;
                found.push((dot.counter, entry.encoded));
            }
            let enough = looked_at == CHUNK_ENTRIES_MAX || bytes_read >= CHUNK_READ_BYTES_MAX;
            if enough { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        if looked_at == 0 {
            let place = stream.next;
            return Err(StoreError::Inconsistent(format!("log entry {place} of partition {id} is missing")));
        }
        stream.next = next;
        if found.is_empty() {
            return Ok(());
        }
        for (counter, delta) in &found {
            push.sent(id, *counter, delta.as_bytes().len(), step.now.mono, resend_after);
        }
        let deltas = found.into_iter().map(|(_, delta)| delta).collect();
        let place = session.place();
        step.send(name, place, Message::Deltas { partition: id, deltas, ends_want: false });
        Ok(())
    }
}
