//! One link: a connection on which both sides have accepted each other.
//!
//! [`establish`] exchanges preambles on a fresh connection; [`run`] then owns the link until it ends. Everything that
//! the consumer hears about a peer comes from the one task that runs that peer's links, one after another. The order
//! of events follows from that, without locks: `Up`, frames, `Down`, and only then the next link's `Up`.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use quinn::{ConnectionError, ReadError, ReadExactError, RecvStream, SendStream, VarInt};
use tokio::sync::watch;
use tracing::{debug, info};

use crate::config::{Limits, LinkClass, Timeouts};
use crate::events::{ConsumerGone, Event, EventSender};
use crate::framing::{Decoder, PREAMBLE};
use crate::outbound::OutboundQueue;
use crate::peer::Peer;
use crate::sync::{RateLimit, stopped};
use crate::tls;

/// How much is taken from a stream at once, in bytes.
const READ_BYTES_MAX: usize = 64 * 1024;

/// Longest reason that is sent to a peer or taken from one, in bytes.
const REASON_BYTES_MAX: usize = 256;

/// Names a link: unique within a transport, ascending.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u64);

impl fmt::Display for LinkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What became of a frame given to [`TransportHandle::send`](crate::TransportHandle::send).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum SendOutcome {
    /// It waits to be written. It arrives unless the link ends first.
    Queued,
    /// That link is not, or no longer, the peer's link. The frame is dropped.
    NotConnected,
    /// The link's queue had no room. The frame is dropped and the link is being closed.
    Overflowed,
    /// The frame is longer than the limit. It is dropped; the link is unharmed.
    TooLong,
}

/// Why a side closes a connection: QUIC application error codes, part of the wire format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseCode {
    /// The node stops.
    Shutdown = 0,
    /// The certificate is valid for no configured peer, or for several.
    UnknownPeer = 1,
    /// The wrong side dialled.
    WrongDirection = 2,
    /// The peer has connected anew.
    Replaced = 3,
    /// The peer broke the framing.
    Protocol = 4,
    /// The peer takes frames too slowly.
    Overflow = 5,
    /// The consumer asked for it.
    Disconnected = 6,
    /// The peer did not send its preamble in time.
    Timeout = 7,
}

impl CloseCode {
    fn wire(self) -> VarInt {
        VarInt::from_u32(self as u32)
    }
}

/// Why a link ended or a connection never became one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LinkEnd {
    pub(crate) code: CloseCode,
    pub(crate) reason: String,
}

impl LinkEnd {
    pub(crate) fn new(code: CloseCode, reason: impl Into<String>) -> Self {
        Self { code, reason: reason.into() }
    }

    pub(crate) fn replaced() -> Self {
        Self::new(CloseCode::Replaced, "replaced by a newer connection")
    }

    pub(crate) fn shutdown() -> Self {
        Self::new(CloseCode::Shutdown, "shut down")
    }

    fn protocol(reason: impl Into<String>) -> Self {
        Self::new(CloseCode::Protocol, reason)
    }

    /// The connection is gone already, so the code goes nowhere.
    pub(crate) fn lost(error: &ConnectionError) -> Self {
        let reason = match error {
            ConnectionError::ApplicationClosed(close) => {
                let said = &close.reason[..close.reason.len().min(REASON_BYTES_MAX)];
                let said = String::from_utf8_lossy(said);
                // Escaped, since it goes to logs and terminals and the peer may say anything.
                format!("closed by the peer with code {}: {}", close.error_code, said.escape_debug())
            }
            ConnectionError::TimedOut => "timed out: nothing heard from the peer".to_owned(),
            other => other.to_string().escape_debug().take(REASON_BYTES_MAX).collect(),
        };
        Self::new(CloseCode::Protocol, reason)
    }

    /// Closes the connection with this code and reason, unless it is closed already.
    pub(crate) fn close(&self, connection: &quinn::Connection) {
        let reason = self.reason.as_bytes();
        connection.close(self.code.wire(), &reason[..reason.len().min(REASON_BYTES_MAX)]);
    }
}

impl fmt::Display for LinkEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.reason.fmt(f)
    }
}

/// What all tasks of a transport share.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) limits: Limits,
    pub(crate) timeouts: Timeouts,
    pub(crate) events: EventSender,
    pub(crate) stop: Arc<watch::Sender<bool>>,
    pub(crate) refusals: RateLimit,
    pub(crate) next_link: AtomicU64,
}

/// A connection on which both sides have accepted each other.
#[derive(Debug)]
pub(crate) struct Established {
    pub(crate) connection: quinn::Connection,
    pub(crate) class: Option<LinkClass>,
    pub(crate) wire: u8,
    send: SendStream,
    recv: RecvStream,
}

/// Opens this side's stream, and waits until the peer has opened its own: then each has accepted the other.
pub(crate) async fn establish(
    connection: quinn::Connection,
    class: Option<LinkClass>,
) -> Result<Established, LinkEnd> {
    let lost = |error: ConnectionError| LinkEnd::lost(&error);
    // The handshake fails without a protocol that both ends name.
    let wire = tls::wire_version(&connection).ok_or_else(|| LinkEnd::protocol("no application protocol"))?;
    let mut send = connection.open_uni().await.map_err(lost)?;
    send.write_all(&PREAMBLE).await.map_err(|error| write_end(&error))?;
    let mut recv = connection.accept_uni().await.map_err(lost)?;
    let mut preamble = [0; PREAMBLE.len()];
    recv.read_exact(&mut preamble).await.map_err(|error| match error {
        ReadExactError::ReadError(error) => read_end(&error),
        ReadExactError::FinishedEarly(_) => LinkEnd::protocol("the stream ended in its preamble"),
    })?;
    if preamble == PREAMBLE {
        Ok(Established { connection, class, wire, send, recv })
    } else {
        Err(LinkEnd::protocol("the stream does not start with the preamble"))
    }
}

/// What follows the end of a link.
pub(crate) enum Next {
    /// Nothing: wait for the next connection, or dial.
    Idle,
    /// The peer has connected anew.
    Replacement(Box<Established>),
    /// The transport stops, or its consumer is gone.
    Stop,
}

enum Cause {
    End(LinkEnd),
    Replaced(Box<Established>),
    ConsumerGone,
    Stop,
}

/// Runs a link from `Up` to `Down`.
pub(crate) async fn run(
    context: &Context,
    peer: &Peer,
    mut established: Established,
    stop: &mut watch::Receiver<bool>,
) -> Next {
    let link = LinkId(context.next_link.fetch_add(1, Ordering::Relaxed));
    let outbound = Arc::new(OutboundQueue::new(context.limits.outbound_queue_bytes_max));
    let remote = established.connection.remote_address();
    let class = established.class;
    // Before `Up`, so that the consumer may answer it with a send.
    peer.set_up(link, &established, Arc::clone(&outbound));
    info!(peer = peer.name(), %link, %remote, ?class, "link up");
    let wire = established.wire;
    let up = Event::Up { peer: peer.name().to_owned(), link, remote, wire, class };
    let cause = match context.events.notice(up).await {
        Ok(()) => serve(context, peer, link, &mut established, &outbound, stop).await,
        Err(ConsumerGone) => Cause::ConsumerGone,
    };
    let (end, next) = match cause {
        Cause::End(end) => (end, Next::Idle),
        Cause::Replaced(newer) => {
            // A peer that closed the older one and came again at once is told of by what it said, whichever is noticed
            // first here.
            let ended = established.connection.close_reason();
            let end = ended.map_or_else(LinkEnd::replaced, |error| LinkEnd::lost(&error));
            (end, Next::Replacement(newer))
        }
        Cause::Stop => (LinkEnd::shutdown(), Next::Stop),
        Cause::ConsumerGone => {
            context.stop.send_replace(true);
            (LinkEnd::shutdown(), Next::Stop)
        }
    };
    peer.set_down(&end.reason);
    outbound.close(end.clone());
    end.close(&established.connection);
    info!(peer = peer.name(), %link, reason = %end, "link down");
    let down = Event::Down { peer: peer.name().to_owned(), link, reason: end.reason };
    match context.events.notice(down).await {
        Ok(()) => next,
        Err(ConsumerGone) => {
            context.stop.send_replace(true);
            Next::Stop
        }
    }
}

async fn serve(
    context: &Context,
    peer: &Peer,
    link: LinkId,
    established: &mut Established,
    outbound: &OutboundQueue,
    stop: &mut watch::Receiver<bool>,
) -> Cause {
    let Established { connection, send, recv, .. } = established;
    tokio::select! {
        // What this side decides comes before what the connection says about it.
        biased;
        () = stopped(stop) => Cause::Stop,
        end = outbound.closed() => Cause::End(end),
        newer = peer.arrivals.take() => Cause::Replaced(Box::new(newer)),
        cause = read(context, peer, link, recv) => cause,
        end = write(send, outbound) => Cause::End(end),
        // Last, so that frames that came before an orderly close are still read; needed, since the reader does not
        // notice while it waits for the consumer.
        error = connection.closed() => Cause::End(LinkEnd::lost(&error)),
    }
}

async fn read(context: &Context, peer: &Peer, link: LinkId, recv: &mut RecvStream) -> Cause {
    let mut decoder = Decoder::new(context.limits.frame_bytes_max);
    loop {
        let mut bytes = match recv.read_chunk(READ_BYTES_MAX, true).await {
            Ok(Some(chunk)) => chunk.bytes,
            Ok(None) if decoder.is_at_boundary() => {
                return Cause::End(LinkEnd::protocol("the peer ended its stream"));
            }
            Ok(None) => {
                return Cause::End(LinkEnd::protocol("the peer ended its stream inside a frame"));
            }
            Err(error) => return Cause::End(read_end(&error)),
        };
        loop {
            match decoder.push(&mut bytes) {
                Ok(Some(frame)) => {
                    if context.events.frame(peer.name(), link, frame).await.is_err() {
                        return Cause::ConsumerGone;
                    }
                }
                Ok(None) => break,
                Err(error) => return Cause::End(LinkEnd::protocol(error.to_string())),
            }
        }
    }
}

async fn write(send: &mut SendStream, outbound: &OutboundQueue) -> LinkEnd {
    loop {
        let mut batch = outbound.batch().await;
        if let Err(error) = send.write_all_chunks(&mut batch.chunks).await {
            return write_end(&error);
        }
        outbound.written(&batch);
    }
}

fn read_end(error: &ReadError) -> LinkEnd {
    match error {
        ReadError::ConnectionLost(error) => LinkEnd::lost(error),
        other => {
            debug!(error = %other, "reading failed");
            LinkEnd::protocol(other.to_string())
        }
    }
}

fn write_end(error: &quinn::WriteError) -> LinkEnd {
    match error {
        quinn::WriteError::ConnectionLost(error) => LinkEnd::lost(error),
        other => {
            debug!(error = %other, "writing failed");
            LinkEnd::protocol(other.to_string())
        }
    }
}
