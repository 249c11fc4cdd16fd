//! What the transport tells its consumer.
//!
//! One bounded channel carries all peers' events. It is bounded twice: in events by the channel, in bytes by permits
//! that a frame holds from before it is queued until the consumer takes it. A reader that gets no room stops reading.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::config::{Limits, LinkClass};
use crate::link::LinkId;

/// What a frame costs in a queue beyond its bytes, so that empty frames are not free.
pub(crate) const FRAME_OVERHEAD_BYTES: usize = 128;

/// Something that happened on the link to a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A link is usable. The peer's identity is verified and it has accepted ours.
    Up {
        /// The peer's node name.
        peer: String,
        /// Names this link in all that follows.
        link: LinkId,
        /// Where the peer is.
        remote: SocketAddr,
        /// The wire version that both ends speak, of [`crate::tls::PROTOCOLS`].
        wire: u8,
        /// The class of the address dialled; `None` on the accepting side, which cannot know.
        class: Option<LinkClass>,
    },
    /// A frame arrived.
    Frame {
        /// The peer's node name.
        peer: String,
        /// The link that it arrived on.
        link: LinkId,
        /// The frame as it was sent.
        frame: Bytes,
    },
    /// The link is gone, with all that was queued on it. Nothing of this link follows.
    Down {
        /// The peer's node name.
        peer: String,
        /// The link that is gone.
        link: LinkId,
        /// Why, for people. Up to a few hundred bytes; may quote what the peer said.
        reason: String,
    },
}

/// The consumer's end of the events. Dropping it stops the transport at the next event.
#[derive(Debug)]
pub struct EventReceiver {
    queue: mpsc::Receiver<Queued>,
}

#[derive(Debug)]
struct Queued {
    event: Event,
    /// Held for the bytes of a frame; released when the consumer takes it.
    _room: Option<OwnedSemaphorePermit>,
}

impl EventReceiver {
    /// The next event; `None` once the transport has stopped and all events are taken. Cancel-safe.
    pub async fn recv(&mut self) -> Option<Event> {
        self.queue.recv().await.map(|queued| queued.event)
    }

    /// The next event if there is one already.
    pub fn try_recv(&mut self) -> Option<Event> {
        self.queue.try_recv().ok().map(|queued| queued.event)
    }
}

/// The consumer dropped its receiver.
#[derive(Debug)]
pub(crate) struct ConsumerGone;

#[derive(Debug)]
pub(crate) struct EventSender {
    queue: mpsc::Sender<Queued>,
    room: Arc<Semaphore>,
    room_bytes: u32,
}

pub(crate) fn channel(limits: &Limits) -> (EventSender, EventReceiver) {
    let (sender, receiver) = mpsc::channel(limits.event_queue_max);
    let room_bytes = u32::try_from(limits.inbound_queue_bytes_max).unwrap_or(u32::MAX);
    // A semaphore holds at most `usize::MAX >> 3` permits, which matters on 32-bit targets only.
    let room_bytes = room_bytes.min(u32::try_from(Semaphore::MAX_PERMITS).unwrap_or(u32::MAX));
    let room = Arc::new(Semaphore::new(room_bytes as usize));
    (EventSender { queue: sender, room, room_bytes }, EventReceiver { queue: receiver })
}

impl EventSender {
    /// Queues a frame, once there is room for it. Cancelled, it has queued nothing.
    pub(crate) async fn frame(&self, peer: &str, link: LinkId, frame: Bytes) -> Result<(), ConsumerGone> {
        // A frame larger than all the room takes all the room: it passes alone.
        let cost = frame.len().saturating_add(FRAME_OVERHEAD_BYTES);
        let cost = u32::try_from(cost).unwrap_or(u32::MAX).min(self.room_bytes);
        let room = Arc::clone(&self.room);
        let room = room.acquire_many_owned(cost).await.map_err(|_| ConsumerGone)?;
        let event = Event::Frame { peer: peer.to_owned(), link, frame };
        self.send(Queued { event, _room: Some(room) }).await
    }

    /// Queues an event that is no frame.
    pub(crate) async fn notice(&self, event: Event) -> Result<(), ConsumerGone> {
        self.send(Queued { event, _room: None }).await
    }

    async fn send(&self, queued: Queued) -> Result<(), ConsumerGone> {
        self.queue.send(queued).await.map_err(|_| ConsumerGone)
    }
}
