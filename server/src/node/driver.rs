//! The glue between the machine and the links: outputs to frames, events to inputs, and nothing else.
//!
//! It branches on the kind of an input or output, never on what a message means.
//!
//! # What may leave before it is synced
//!
//! With `durability = "os"` a client is answered before its write is synced, and nobody else is told anything that a
//! power cut could still undo. So of what the machine releases:
//!
//! | output | leaves | because |
//! |---|---|---|
//! | `Reply::Committed`, `Reply::Refused` | once written | this is the setting's bargain with clients. Both may rest on writes before that are not synced either: "nothing to change", "not a number" |
//! | `Reply::Status` | once synced | it lists contexts, and operators and tools compare them with those of other nodes |
//! | `Send` | once synced | deltas, contexts (which acknowledge deltas, and ask for those missing) and answers to requests all claim what the node has applied |
//! | `Close` | once synced | it follows what was sent on the link before |
//! | `Read`, `EndRead` | once synced | nobody is in a hurry. What is read is what is written, synced or not; what is said of it leaves with a later group, so after a sync that covers it |
//! | `Alarm` | once synced | nobody is in a hurry, and what is new waits unless it is listed here |
//! | `Trim` | once synced | a power cut that took back the log's floor must not find the entries above it gone |
//!
//! Reads of clients go to the store as it is written, synced or not: who was answered must find what it wrote.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use godwit_core::machine::{Effects, Machine};
use godwit_core::store::{StoreError, StoreRead};
use godwit_core::time::{Mono, Now};
use godwit_engine::committer::{self, CommitterHandle, Release};
use godwit_net::{Event, EventReceiver, RateLimit, SendOutcome, TransportHandle};
use godwit_proto::Alarm;
use godwit_proto::{Input, LinkId, Node, Output, Reply};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::reader::Reader;
use super::replies::Replies;
use super::trim::Trimmer;

/// Bytes of peers' frames that wait for the committer. A larger frame passes alone.
pub const FRAME_ROOM_BYTES: u32 = 2 * 1024 * 1024;

/// What a frame costs beyond its bytes, so that empty frames are not free.
const FRAME_OVERHEAD_BYTES: usize = 128;

/// Alarms of one kind are logged this often.
const ALARM_LOG_INTERVAL: Duration = Duration::from_secs(10);

/// An input, with the room that its bytes take until it is handled.
#[derive(Debug)]
pub struct Submission {
    pub(super) input: Input,
    pub(super) room: Option<OwnedSemaphorePermit>,
}

/// A node whose inputs give back their room when they are handled.
#[derive(Debug)]
pub(super) struct Metered(Node);

impl Metered {
    pub(super) fn new(node: Node) -> Self {
        Self(node)
    }
}

impl Machine for Metered {
    type Input = Submission;
    type Output = Output;

    fn handle(
        &mut self,
        now: Now,
        submission: Submission,
        store: &impl StoreRead,
        out: &mut Effects<Output>,
    ) -> Result<(), StoreError> {
        let Submission { input, room } = submission;
        let outcome = self.0.handle(now, input, store, out);
        drop(room);
        outcome
    }

    fn next_deadline(&self) -> Option<Mono> {
        self.0.next_deadline()
    }

    fn handle_timeout(
        &mut self,
        now: Now,
        store: &impl StoreRead,
        out: &mut Effects<Output>,
    ) -> Result<(), StoreError> {
        self.0.handle_timeout(now, store, out)
    }
}

/// Turns events of links into inputs, until the transport ends.
pub(super) async fn pump(mut events: EventReceiver, committer: CommitterHandle<Submission>) {
    let frames = Arc::new(Semaphore::new(FRAME_ROOM_BYTES as usize));
    let link = |link: godwit_net::LinkId| LinkId(link.0);
    while let Some(event) = events.recv().await {
        let submission = match event {
            Event::Up { peer, link: id, wire, .. } => {
                Submission { input: Input::Up { peer, link: link(id), wire }, room: None }
            }
            Event::Down { peer, link: id, .. } => {
                Submission { input: Input::Down { peer, link: link(id) }, room: None }
            }
            Event::Frame { peer, link: id, frame } => {
                let room = frame_room(&frames, frame.len()).await;
                Submission { input: Input::Frame { peer, link: link(id), bytes: frame.into() }, room }
            }
        };
        // A committer that has stopped takes nothing more, but the transport cannot end while its events wait.
        let _ = committer.submit(submission).await;
    }
}

async fn frame_room(frames: &Arc<Semaphore>, bytes: usize) -> Option<OwnedSemaphorePermit> {
    let cost = u32::try_from(bytes.saturating_add(FRAME_OVERHEAD_BYTES)).unwrap_or(u32::MAX);
    // Nobody closes the semaphore; if so, frames would only not be counted.
    Arc::clone(frames).acquire_many_owned(cost.min(FRAME_ROOM_BYTES)).await.ok()
}

/// Takes what the machine releases, on the committer's thread.
#[derive(Debug)]
pub(super) struct Sink {
    replies: Arc<Replies>,
    transport: Option<TransportHandle>,
    trimmer: Trimmer,
    reader: Reader,
    drift: RateLimit,
    pending: RateLimit,
    gone: RateLimit,
    repairs: RateLimit,
}

impl Sink {
    pub(super) fn new(
        replies: Arc<Replies>,
        transport: Option<TransportHandle>,
        trimmer: Trimmer,
        reader: Reader,
    ) -> Self {
        Self {
            replies,
            transport,
            trimmer,
            reader,
            drift: RateLimit::new(ALARM_LOG_INTERVAL),
            pending: RateLimit::new(ALARM_LOG_INTERVAL),
            gone: RateLimit::new(ALARM_LOG_INTERVAL),
            repairs: RateLimit::new(ALARM_LOG_INTERVAL),
        }
    }

    fn alarm(&self, alarm: &Alarm) {
        match alarm {
            Alarm::ClockDrift { replica, ahead_ms } => {
                if let Some(suppressed) = self.drift.pass() {
                    tracing::warn!(%replica, ahead_ms, suppressed, "another node's clock is far ahead");
                }
            }
            Alarm::Reincarnated { from, to, why } => {
                tracing::warn!(%from, %to, why, "the node writes under a new replica id");
            }
            Alarm::Repaired { partition, peer, rows, dropped } => {
                tracing::info!(%partition, peer, rows, dropped, "repaired a partition from a peer");
            }
            Alarm::Diverged { partition, peer, missing, altered, fields } => {
                let fields: Vec<String> =
                    fields.iter().map(|(record, field)| format!("{record} {}", field.as_str())).collect();
                tracing::error!(
                    %partition,
                    peer,
                    missing,
                    altered,
                    fields = fields.join(", "),
                    "divergence_detected: rows differ from a peer's though both have applied the same commits; those that were \
                     missing here are put back, those with other contents stay as they are"
                );
            }
            Alarm::RepairGivenUp { partition, peer, why } => {
                if let Some(suppressed) = self.repairs.pass() {
                    tracing::warn!(%partition, peer, why, suppressed, "gave up a repair; it will be tried again");
                }
            }
            Alarm::TwoProcesses { node } => {
                tracing::error!(
                    node,
                    "two live processes run as this node: the later one is refused, stop one"
                );
            }
            Alarm::LogGone { partition, peer } => {
                if let Some(suppressed) = self.gone.pass() {
                    tracing::error!(
                        %partition,
                        peer,
                        suppressed,
                        "a log does not reach back to what the other node has: deltas cannot bring it up to date"
                    );
                }
            }
            Alarm::PendingFull { partition } => {
                if let Some(suppressed) = self.pending.pass() {
                    tracing::warn!(%partition, suppressed, "no room for commits that wait for others");
                }
            }
        }
    }
}

impl committer::Sink<Output> for Sink {
    fn release(&self, output: &Output) -> Release {
        match output {
            Output::Reply { reply: Reply::Committed { .. } | Reply::Refused(_), .. } => Release::Written,
            _ => Release::Synced,
        }
    }

    fn take(&mut self, output: Output) {
        // Whatever is released follows a write, and who listens looks for himself.
        self.replies.wrote();
        match output {
            Output::Reply { request, reply } => self.replies.answer(request, reply),
            Output::Send { peer, link, wire, message } => {
                let Some(transport) = &self.transport else { return };
                let Some(frame) = message.encode(wire).map(Bytes::from) else {
                    let message = message.name();
                    return tracing::error!(
                        peer,
                        wire,
                        message,
                        "a message is beyond the link's wire version"
                    );
                };
                let bytes = frame.len();
                match transport.send(&peer, godwit_net::LinkId(link.0), frame) {
                    // The machine hears of a link's end by its `Down`.
                    SendOutcome::Queued | SendOutcome::NotConnected | SendOutcome::Overflowed => {}
                    SendOutcome::TooLong => tracing::error!(peer, bytes, "a message is too long to be sent"),
                }
            }
            Output::Close { peer, link, reason } => {
                tracing::warn!(peer, reason, "closing a link");
                if let Some(transport) = &self.transport {
                    transport.disconnect(&peer, godwit_net::LinkId(link.0), &reason);
                }
            }
            Output::Alarm(alarm) => self.alarm(&alarm),
            Output::Trim { partition, first } => self.trimmer.trim(partition, first),
            Output::Read { reader, fresh, read, sizes } => self.reader.read(reader, fresh, read, sizes),
            Output::EndRead { reader } => self.reader.end(reader),
        }
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        // The committer has ended, well or not: nothing will be answered any more.
        self.replies.close();
    }
}
