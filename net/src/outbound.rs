//! The queue of frames that wait to be written on one link, bounded in bytes.
//!
//! A frame counts, with [`FRAME_OVERHEAD_BYTES`], from when it is pushed until QUIC has taken it (which then holds at
//! most its send window). A push that would exceed the bound closes the queue and frees what it held: the peer is too
//! slow, and what it misses it gets by catching up over a new link.
//!
//! Frames that would not fill a datagram wait for others, for [`LINGER`] after what was written last: the headers of a
//! datagram of its own, and of what acknowledges it, weigh as much as a third of a small commit. So a frame after a pause
//! leaves at once, and so do many at a time; in between, a frame is late by at most that.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use crate::events::FRAME_OVERHEAD_BYTES;
use crate::framing;
use crate::link::{CloseCode, LinkEnd};
use crate::sync::lock;

/// How many bytes of frames are handed to QUIC at once, at least one frame.
const BATCH_BYTES_MAX: usize = 256 * 1024;

/// Frames of so many bytes together do not wait for others: they fill a datagram on any path.
const BATCH_BYTES_LEAST: usize = 1_200;

/// How long after the last write fewer bytes than that wait for others.
pub(crate) const LINGER: Duration = Duration::from_millis(4);

/// Frames up to this size are copied behind their header; larger ones are passed on as they are.
const COPY_BYTES_MAX: usize = 4 * 1024;

/// Buffers for copied frames start at this size.
const COPY_BUFFER_BYTES: usize = 16 * 1024;

#[derive(Debug)]
pub(crate) struct OutboundQueue {
    bytes_max: usize,
    state: Mutex<State>,
    filled: Notify,
    closing: Notify,
}

#[derive(Debug, Default)]
struct State {
    frames: VecDeque<Bytes>,
    /// The bytes of the frames queued, with their headers.
    queued: usize,
    /// When a batch was last taken.
    taken_at: Option<Instant>,
    /// The cost of the frames queued and of those being written.
    bytes: usize,
    closed: Option<LinkEnd>,
}

/// What became of a push.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Push {
    Queued,
    Overflowed,
    Closed,
}

/// Frames with their headers, ready for the stream, and what they cost in the queue.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) chunks: Vec<Bytes>,
    cost: usize,
}

impl OutboundQueue {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { bytes_max, state: Mutex::default(), filled: Notify::new(), closing: Notify::new() }
    }

    /// Queues a frame that the caller has checked against the largest allowed. Never waits.
    pub(crate) fn push(&self, frame: Bytes) -> Push {
        let mut state = lock(&self.state);
        if state.closed.is_some() {
            return Push::Closed;
        }
        let bytes = state.bytes.saturating_add(cost(&frame));
        if bytes > self.bytes_max {
            let reason = format!("outbound queue overflowed its {} bytes", self.bytes_max);
            self.close_locked(&mut state, LinkEnd::new(CloseCode::Overflow, reason));
            return Push::Overflowed;
        }
        state.bytes = bytes;
        state.queued = state.queued.saturating_add(framed(&frame));
        state.frames.push_back(frame);
        drop(state);
        self.filled.notify_one();
        Push::Queued
    }

    /// Closes the queue, unless it is closed already, and frees what waits in it.
    pub(crate) fn close(&self, end: LinkEnd) {
        self.close_locked(&mut lock(&self.state), end);
    }

    fn close_locked(&self, state: &mut State, end: LinkEnd) {
        if state.closed.is_none() {
            state.closed = Some(end);
            state.frames = VecDeque::new();
            state.queued = 0;
            state.bytes = 0;
            self.closing.notify_one();
        }
    }

    /// Completes when the queue is closed, with the reason. For one waiter; cancel-safe.
    pub(crate) async fn closed(&self) -> LinkEnd {
        loop {
            if let Some(end) = lock(&self.state).closed.clone() {
                return end;
            }
            self.closing.notified().await;
        }
    }

    /// Waits for frames and takes as many as make a batch. For one waiter; cancel-safe.
    pub(crate) async fn batch(&self) -> Batch {
        loop {
            let batch = match self.lingers_until() {
                // Whoever was woken for a frame looks again; at the end of the wait what is there leaves.
                Some(end) if timeout_at(end, self.filled.notified()).await.is_ok() => continue,
                _ => self.take(),
            };
            if !batch.chunks.is_empty() {
                return batch;
            }
            self.filled.notified().await;
        }
    }

    /// Until when what is queued waits for more; `None` if it does not.
    fn lingers_until(&self) -> Option<Instant> {
        let state = lock(&self.state);
        let is_small = !state.frames.is_empty() && state.queued < BATCH_BYTES_LEAST;
        let end = state.taken_at.filter(|_| is_small)? + LINGER;
        (end > Instant::now()).then_some(end)
    }

    /// Says that QUIC has taken a batch.
    pub(crate) fn written(&self, batch: &Batch) {
        let mut state = lock(&self.state);
        state.bytes = state.bytes.saturating_sub(batch.cost);
    }

    /// The cost in bytes of all that is queued or being written.
    pub(crate) fn bytes(&self) -> usize {
        lock(&self.state).bytes
    }

    fn take(&self) -> Batch {
        let mut batch = Batch::default();
        let mut copied = BytesMut::new();
        let mut state = lock(&self.state);
        if !state.frames.is_empty() {
            state.taken_at = Some(Instant::now());
        }
        while batch.cost < BATCH_BYTES_MAX {
            let Some(frame) = state.frames.pop_front() else {
                break;
            };
            state.queued = state.queued.saturating_sub(framed(&frame));
            batch.cost += cost(&frame);
            // Frames were checked against a limit that fits the header.
            let Some(header) = framing::header(&frame) else {
                continue;
            };
            if copied.capacity() == 0 {
                copied.reserve(COPY_BUFFER_BYTES);
            }
            copied.put_slice(&header);
            if frame.len() <= COPY_BYTES_MAX {
                copied.put_slice(&frame);
            } else {
                batch.chunks.push(copied.split().freeze());
                batch.chunks.push(frame);
            }
        }
        if !copied.is_empty() {
            batch.chunks.push(copied.freeze());
        }
        batch
    }
}

fn framed(frame: &Bytes) -> usize {
    frame.len().saturating_add(framing::FRAME_HEADER_BYTES)
}

fn cost(frame: &Bytes) -> usize {
    frame.len().saturating_add(FRAME_OVERHEAD_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Batch {
        /// How many frames.
        fn frames(&self) -> usize {
            let mut decoder = framing::Decoder::new(1 << 20);
            let mut count = 0;
            for mut chunk in self.chunks.clone() {
                while decoder.push(&mut chunk).unwrap().is_some() {
                    count += 1;
                }
            }
            count
        }
    }

    #[tokio::test]
    async fn batches_carry_frames_in_order_and_free_their_room() {
        let queue = OutboundQueue::new(1 << 20);
        let large = Bytes::from(vec![7; COPY_BYTES_MAX + 1]);
        for frame in [Bytes::from_static(b"one"), large.clone(), Bytes::new()] {
            assert_eq!(queue.push(frame), Push::Queued);
        }
        let batch = queue.batch().await;
        let mut decoder = framing::Decoder::new(1 << 20);
        let mut frames = Vec::new();
        for mut chunk in batch.chunks.clone() {
            while let Some(frame) = decoder.push(&mut chunk).unwrap() {
                frames.push(frame);
            }
        }
        assert_eq!(frames, [Bytes::from_static(b"one"), large, Bytes::new()]);
        assert!(queue.bytes() > 0);
        queue.written(&batch);
        assert_eq!(queue.bytes(), 0);
    }

    #[tokio::test]
    async fn few_bytes_wait_for_more_unless_they_come_after_a_pause() {
        let queue = OutboundQueue::new(1 << 20);
        let push = |bytes: usize| assert_eq!(queue.push(Bytes::from(vec![0; bytes])), Push::Queued);
        push(5);
        let first = queue.batch().await;
        let taken = Instant::now();
        assert_eq!(first.frames(), 1, "nothing was written before");
        push(5);
        push(5);
        let second = queue.batch().await;
        assert_eq!(second.frames(), 2);
        assert!(taken.elapsed() >= LINGER / 2, "they waited: {:?}", taken.elapsed());
        push(5);
        push(BATCH_BYTES_LEAST);
        assert_eq!(queue.lingers_until(), None, "there is enough for a datagram");
        assert_eq!(queue.batch().await.frames(), 2);
        tokio::time::sleep(LINGER).await;
        push(5);
        assert_eq!(queue.lingers_until(), None, "nothing was written for a while");
        assert_eq!(queue.batch().await.frames(), 1);
    }

    #[tokio::test]
    async fn overflow_closes_and_frees() {
        let queue = OutboundQueue::new(1_000);
        assert_eq!(queue.push(Bytes::from(vec![0; 500])), Push::Queued);
        assert_eq!(queue.push(Bytes::from(vec![0; 500])), Push::Overflowed);
        assert_eq!(queue.push(Bytes::new()), Push::Closed);
        assert_eq!(queue.bytes(), 0);
        assert_eq!(queue.closed().await.code, CloseCode::Overflow);
    }

    #[tokio::test]
    async fn empty_frames_are_not_free() {
        let queue = OutboundQueue::new(10 * FRAME_OVERHEAD_BYTES);
        let pushed = (0..100).take_while(|_| queue.push(Bytes::new()) == Push::Queued).count();
        assert_eq!(pushed, 10);
    }
}
