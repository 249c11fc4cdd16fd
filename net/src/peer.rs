//! What the transport knows about one peer, shared by the task that runs its links and by those who send or ask.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use quinn::ConnectionStats;
use tokio::sync::Notify;

use crate::config::{LinkClass, PeerConfig};
use crate::link::{CloseCode, Established, LinkEnd, LinkId, SendOutcome};
use crate::outbound::{OutboundQueue, Push};
use crate::sync::lock;

/// A peer and its link, for people and metrics.
#[derive(Debug, Clone)]
pub struct LinkStatus {
    /// The peer's node name.
    pub peer: String,
    /// The link, if there is one.
    pub up: Option<LinkStats>,
    /// Why the last link ended or the last attempt failed; kept while a later link is up.
    pub last_error: Option<String>,
    /// Links that have come up since the transport started.
    pub connects: u64,
    /// Bytes in UDP datagrams sent on all of the peer's links since the transport started.
    pub udp_bytes_sent: u64,
    /// Bytes in UDP datagrams received on all of the peer's links since the transport started.
    pub udp_bytes_received: u64,
    /// QUIC packets sent and taken for lost on all of the peer's links since the transport started.
    pub packets_lost: u64,
}

/// The link that is up.
#[derive(Debug, Clone)]
pub struct LinkStats {
    /// Its name.
    pub link: LinkId,
    /// Where the peer is now.
    pub remote: SocketAddr,
    /// The class of the address dialled; `None` on the accepting side.
    pub class: Option<LinkClass>,
    /// The round trip as QUIC estimates it.
    pub rtt: Duration,
    /// When it came up, by the wall clock.
    pub connected_since: SystemTime,
    /// Bytes in UDP datagrams sent on this link.
    pub udp_bytes_sent: u64,
    /// Bytes in UDP datagrams received on this link.
    pub udp_bytes_received: u64,
    /// QUIC packets sent and taken for lost on this link.
    pub packets_lost: u64,
    /// What waits to be written, in bytes with overhead.
    pub outbound_queue_bytes: usize,
}

#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) config: PeerConfig,
    /// Whether this node is the one that dials.
    pub(crate) dials: bool,
    pub(crate) arrivals: Arrivals,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    current: Option<Current>,
    last_error: Option<String>,
    connects: u64,
    ended: Totals,
}

#[derive(Debug)]
struct Current {
    link: LinkId,
    connection: quinn::Connection,
    class: Option<LinkClass>,
    since: SystemTime,
    outbound: Arc<OutboundQueue>,
}

/// Sums over links that have ended.
#[derive(Debug, Default, Clone, Copy)]
struct Totals {
    sent: u64,
    received: u64,
    lost: u64,
}

impl Totals {
    fn plus(self, stats: &ConnectionStats) -> Self {
        Self {
            sent: self.sent.saturating_add(stats.udp_tx.bytes),
            received: self.received.saturating_add(stats.udp_rx.bytes),
            lost: self.lost.saturating_add(stats.path.lost_packets),
        }
    }
}

impl Peer {
    pub(crate) fn new(config: PeerConfig, dials: bool) -> Self {
        Self { config, dials, arrivals: Arrivals::default(), state: Mutex::default() }
    }

    pub(crate) fn name(&self) -> &str {
        &self.config.name
    }

    /// Makes a link the one that sends go to.
    pub(crate) fn set_up(&self, link: LinkId, established: &Established, outbound: Arc<OutboundQueue>) {
        let mut state = lock(&self.state);
        state.connects = state.connects.saturating_add(1);
        state.current = Some(Current {
            link,
            connection: established.connection.clone(),
            class: established.class,
            since: SystemTime::now(),
            outbound,
        });
    }

    /// Forgets the current link. Sends to it are refused from here on.
    pub(crate) fn set_down(&self, reason: &str) {
        let mut state = lock(&self.state);
        if let Some(current) = state.current.take() {
            state.ended = state.ended.plus(&current.connection.stats());
        }
        state.last_error = Some(reason.to_owned());
    }

    /// Forgets a link whose task was stopped before it could end the link itself.
    pub(crate) fn abandon(&self) {
        let outbound = lock(&self.state).current.as_ref().map(|it| Arc::clone(&it.outbound));
        if let Some(outbound) = outbound {
            let end = LinkEnd::shutdown();
            self.set_down(&end.reason);
            outbound.close(end);
        }
        drop(lock(&self.arrivals.waiting).take());
    }

    pub(crate) fn set_error(&self, error: String) {
        lock(&self.state).last_error = Some(error);
    }

    pub(crate) fn send(&self, link: LinkId, frame: Bytes) -> SendOutcome {
        let Some(outbound) = self.outbound(link) else {
            return SendOutcome::NotConnected;
        };
        match outbound.push(frame) {
            Push::Queued => SendOutcome::Queued,
            Push::Overflowed => SendOutcome::Overflowed,
            Push::Closed => SendOutcome::NotConnected,
        }
    }

    /// Asks for the link's end; false if it is not the current one.
    pub(crate) fn disconnect(&self, link: LinkId, reason: &str) -> bool {
        let outbound = self.outbound(link);
        if let Some(outbound) = &outbound {
            outbound.close(LinkEnd::new(CloseCode::Disconnected, reason));
        }
        outbound.is_some()
    }

    pub(crate) fn status(&self) -> LinkStatus {
        let state = lock(&self.state);
        let stats = state.current.as_ref().map(|current| current.connection.stats());
        let totals = stats.as_ref().map_or(state.ended, |stats| state.ended.plus(stats));
        let up = state.current.as_ref().zip(stats).map(|(current, stats)| LinkStats {
            link: current.link,
            remote: current.connection.remote_address(),
            class: current.class,
            rtt: stats.path.rtt,
            connected_since: current.since,
            udp_bytes_sent: stats.udp_tx.bytes,
            udp_bytes_received: stats.udp_rx.bytes,
            packets_lost: stats.path.lost_packets,
            outbound_queue_bytes: current.outbound.bytes(),
        });
        LinkStatus {
            peer: self.config.name.clone(),
            up,
            last_error: state.last_error.clone(),
            connects: state.connects,
            udp_bytes_sent: totals.sent,
            udp_bytes_received: totals.received,
            packets_lost: totals.lost,
        }
    }

    fn outbound(&self, link: LinkId) -> Option<Arc<OutboundQueue>> {
        let state = lock(&self.state);
        let current = state.current.as_ref().filter(|current| current.link == link)?;
        Some(Arc::clone(&current.outbound))
    }
}

/// The place where the acceptor leaves a peer's new connection for the task that runs its links. Holds one: a newer
/// connection replaces one that was not taken yet, since the dialer would not have dialled if the older still worked.
#[derive(Debug, Default)]
pub(crate) struct Arrivals {
    waiting: Mutex<Option<Established>>,
    filled: Notify,
}

impl Arrivals {
    pub(crate) fn put(&self, established: Established) {
        let older = lock(&self.waiting).replace(established);
        if let Some(older) = older {
            LinkEnd::replaced().close(&older.connection);
        }
        self.filled.notify_one();
    }

    /// Waits for a connection. For one waiter; cancel-safe.
    pub(crate) async fn take(&self) -> Established {
        loop {
            if let Some(established) = lock(&self.waiting).take() {
                return established;
            }
            self.filled.notified().await;
        }
    }
}
