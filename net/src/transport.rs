//! The transport: one endpoint, one task a peer, one acceptor.
//!
//! [`Transport::start`] checks everything that can be checked before a packet is sent, then starts the tasks.
//! Each peer has one task that runs its links one after another: the dialer where this node dials, otherwise one that
//! waits for what the acceptor leaves. [`TransportHandle`] never waits, except in [`TransportHandle::shutdown`].
//!
//! Dropping the last handle, or the [`EventReceiver`], stops the tasks too, without a word to anyone.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use bytes::Bytes;
use quinn::{Runtime, TokioRuntime, VarInt};
use tokio::sync::{Mutex, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use crate::accept::{Acceptor, run_arrivals};
use crate::config::{ConfigError, TransportConfig};
use crate::dial::Dialer;
use crate::endpoint;
use crate::events::{self, EventReceiver};
use crate::fault::{FaultControl, FaultySocket};
use crate::link::{CloseCode, Context, LinkId, SendOutcome};
use crate::peer::{LinkStatus, Peer};
use crate::sync::RateLimit;
use crate::tls::{TlsError, TlsIdentity};

/// Refused connections are logged this often.
const REFUSAL_LOG_INTERVAL: Duration = Duration::from_secs(1);

/// Why a transport did not start. Nothing is left running.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration is not sound.
    #[error("transport configuration: {0}")]
    Config(#[from] ConfigError),
    /// The identity is not usable, or not this node's.
    #[error("node identity: {0}")]
    Identity(#[from] TlsError),
    /// The socket is not usable, or there is no Tokio runtime.
    #[error("UDP socket")]
    Socket(#[from] io::Error),
}

/// A shutdown did not finish in time. The tasks are stopped all the same; some peers or the consumer may not know.
#[derive(Debug, thiserror::Error)]
#[error("links were not closed in order within {0:?}")]
pub struct ShutdownError(Duration);

/// What datagrams go through.
#[derive(Debug, Clone)]
pub enum Wire {
    /// The socket itself.
    Plain,
    /// The socket behind faults, for tests and demonstrations: no segmentation offload, hence slower.
    Faulty(FaultControl),
}

/// Starts transports.
#[derive(Debug)]
pub struct Transport;

/// Sends frames, asks about links, and stops the transport. Clones are handles of the same transport.
#[derive(Debug, Clone)]
pub struct TransportHandle {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    peers: Arc<BTreeMap<String, Arc<Peer>>>,
    frame_bytes_max: usize,
    shutdown_timeout: Duration,
    local_addr: SocketAddr,
    stop: Arc<watch::Sender<bool>>,
    running: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Running {
    endpoint: quinn::Endpoint,
    /// Aborted when dropped.
    tasks: JoinSet<()>,
    /// Last to stop: the closing packets pass through it. Aborted when dropped.
    wire_tasks: JoinSet<()>,
}

impl Transport {
    /// Starts a transport on a bound socket (see [`bind`](crate::bind)), within a Tokio runtime.
    pub fn start(
        config: TransportConfig,
        identity: TlsIdentity,
        socket: UdpSocket,
        wire: Wire,
    ) -> Result<(TransportHandle, EventReceiver), StartError> {
        config.validate()?;
        identity.verify_own_name(&config.node)?;
        // Spawning without a runtime would panic.
        tokio::runtime::Handle::try_current().map_err(io::Error::other)?;
        let quic = endpoint::transport_config(&config.limits, &config.timeouts)?;
        let mut server_config = identity.server_config()?;
        server_config.transport_config(Arc::clone(&quic));
        endpoint::bound_incoming(&mut server_config);
        let mut client_config = identity.client_config()?;
        client_config.transport_config(quic);

        let local_addr = socket.local_addr()?;
        let mut socket = TokioRuntime.wrap_udp_socket(socket)?;
        let mut wire_tasks = JoinSet::new();
        if let Wire::Faulty(control) = wire {
            let (faulty, release) = FaultySocket::new(socket, control);
            wire_tasks.spawn(release);
            socket = faulty;
        }
        let endpoint = quinn::Endpoint::new_with_abstract_socket(
            endpoint::endpoint_config(&identity),
            Some(server_config),
            socket,
            Arc::new(TokioRuntime),
        )?;

        let stop = Arc::new(watch::Sender::new(false));
        let (sender, receiver) = events::channel(&config.limits);
        let shutdown_timeout = config.timeouts.shutdown;
        let frame_bytes_max = config.limits.frame_bytes_max as usize;
        let peers = peers(&config);
        let context = Arc::new(Context {
            limits: config.limits,
            timeouts: config.timeouts,
            events: sender,
            stop: Arc::clone(&stop),
            refusals: RateLimit::new(REFUSAL_LOG_INTERVAL),
            next_link: AtomicU64::new(1),
        });
        let tasks = spawn(context, &peers, &endpoint, &client_config, local_addr.is_ipv6());
        let running = Mutex::new(Some(Running { endpoint, tasks, wire_tasks }));
        let inner = Inner { peers, frame_bytes_max, shutdown_timeout, local_addr, stop, running };
        Ok((TransportHandle { inner: Arc::new(inner) }, receiver))
    }
}

fn peers(config: &TransportConfig) -> Arc<BTreeMap<String, Arc<Peer>>> {
    let peer = |peer: &crate::PeerConfig| {
        let dials = config.dials(&peer.name);
        (peer.name.clone(), Arc::new(Peer::new(peer.clone(), dials)))
    };
    Arc::new(config.peers.iter().map(peer).collect())
}

fn spawn(
    context: Arc<Context>,
    peers: &Arc<BTreeMap<String, Arc<Peer>>>,
    endpoint: &quinn::Endpoint,
    client_config: &quinn::ClientConfig,
    is_ipv6: bool,
) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    for peer in peers.values() {
        let (context, peer) = (Arc::clone(&context), Arc::clone(peer));
        if peer.dials {
            let (endpoint, client_config) = (endpoint.clone(), client_config.clone());
            let dialer = Dialer { context, peer, endpoint, client_config, is_ipv6 };
            tasks.spawn(dialer.run());
        } else {
            tasks.spawn(run_arrivals(context, peer));
        }
    }
    let (peers, endpoint) = (Arc::clone(peers), endpoint.clone());
    tasks.spawn(Acceptor { context, peers, endpoint }.run());
    tasks
}

impl TransportHandle {
    /// Queues a frame on a peer's link. Never waits.
    ///
    /// A frame for a link that has ended is dropped, never sent on its successor, which may need another.
    pub fn send(&self, peer: &str, link: LinkId, frame: Bytes) -> SendOutcome {
        if frame.len() > self.inner.frame_bytes_max {
            return SendOutcome::TooLong;
        }
        match self.inner.peers.get(peer) {
            Some(peer) => peer.send(link, frame),
            None => SendOutcome::NotConnected,
        }
    }

    /// Closes a link, telling the peer the reason; its `Down` follows. What was queued may be lost.
    ///
    /// False, and nothing happens, if it is not the peer's link. A peer that is still configured connects again.
    pub fn disconnect(&self, peer: &str, link: LinkId, reason: &str) -> bool {
        self.inner.peers.get(peer).is_some_and(|peer| peer.disconnect(link, reason))
    }

    /// All configured peers in the order of their names, with their links.
    pub fn links(&self) -> Vec<LinkStatus> {
        self.inner.peers.values().map(|peer| peer.status()).collect()
    }

    /// The address that the transport's socket is bound to.
    pub fn local_addr(&self) -> SocketAddr {
        self.inner.local_addr
    }

    /// Closes all links with code 0 and stops all tasks, within [`Timeouts::shutdown`](crate::Timeouts::shutdown).
    ///
    /// Each link's `Down` goes to the consumer, which must go on taking events, and then gets `None`. Calling this
    /// again waits for the first call and does nothing.
    pub async fn shutdown(&self) -> Result<(), ShutdownError> {
        self.inner.stop.send_replace(true);
        let mut slot = self.inner.running.lock().await;
        let Some(mut running) = slot.take() else {
            return Ok(());
        };
        let deadline = Instant::now() + self.inner.shutdown_timeout;
        let in_order = timeout_at(deadline, join(&mut running.tasks)).await.is_ok();
        running.tasks.shutdown().await;
        for peer in self.inner.peers.values() {
            peer.abandon();
        }
        running.endpoint.close(VarInt::from_u32(CloseCode::Shutdown as u32), b"shut down");
        let idle = timeout_at(deadline, running.endpoint.wait_idle()).await.is_ok();
        drop(running.endpoint);
        running.wire_tasks.shutdown().await;
        if in_order && idle { Ok(()) } else { Err(ShutdownError(self.inner.shutdown_timeout)) }
    }
}

async fn join(tasks: &mut JoinSet<()>) {
    while tasks.join_next().await.is_some() {}
}
