//! One running node: a data directory, the machine that a committer drives over it, links, and the API.
//!
//! ```text
//!     HTTP ── NodeHandle ──> committer ── sink ──> replies of waiting requests
//!                 │           (machine)    │
//!                 └─ reads ──> store       └────> transport <── pump ── events of links
//! ```
//!
//! What holds:
//!
//! - *Nobody waits without a bound on memory.* What waits for the committer is bounded in number by its queue, and
//!   frames in bytes by [`FRAME_ROOM_BYTES`]: so few of them stand before a client's commit that peers which catch up
//!   do not hold clients up. Beyond that the pump stops taking events, and QUIC stops the peers.
//! - *A request is answered once or its waiter is told that there will be no answer*, also when the committer fails.
//! - *Other nodes are told only what is synced*, whatever clients are told: see the header of `driver`.
//! - *Reads go to snapshots, on threads that may block.* Even a small read may have to wait for the disk, and the
//!   async threads also move the frames of all links.
//! - *A failed committer is the end of the node* ([`RunningNode::failed`]): the process should exit with an error.
//! - *Stopping is in order*: no new connections; requests in progress finish, up to [`HTTP_DRAIN_MAX`]; links close;
//!   the committer commits what it has accepted; reads end; the data directory is closed. When
//!   [`RunningNode::shutdown`] returns, another node can open it, whatever handles of this one still exist.

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use godwit_core::ids::ReplicaId;
use godwit_core::store::Family;
use godwit_core::{keys, partition};
use godwit_engine::committer::{Committer, CommitterHandle, CommitterOptions, Failure};
use godwit_engine::identity::{self, Identity, IdentityError, NodeSettings};
use godwit_engine::store::{RocksStore, StoreOpenError, StoreOptions};
use godwit_net::{EventReceiver, FaultControl, Transport, TransportHandle, Wire};
use godwit_proto::{Node, NodeConfig, Tuning};
use tokio::task::JoinHandle;

use crate::config::{Config, ConfigError};
use crate::http::{self, HttpServer};

pub(crate) mod documents;
mod driver;
pub(crate) mod erasure;
mod gate;
mod handle;
pub(crate) mod namespaces;
mod reader;
mod replies;
mod trim;

pub use driver::FRAME_ROOM_BYTES;
pub use handle::{CommitFailure, Committed, NodeHandle, ReadFailure, Stopped, StoreView};
pub use namespaces::QuotaExceeded;

use driver::{Metered, Sink, Submission};
use gate::StoreGate;
use namespaces::{Counting, Namespaces};
use reader::Reader;
use replies::Replies;
use trim::Trimmer;

/// How long requests in progress may take to finish when the node stops.
pub const HTTP_DRAIN_MAX: Duration = Duration::from_secs(10);

/// What is not in the configuration: permissions, and sockets made elsewhere.
#[derive(Debug, Default)]
pub struct StartOptions {
    /// Whether the API may listen beyond loopback, without tokens and TLS.
    pub insecure: bool,
    /// Listens here instead of at `http.listen`.
    pub http: Option<TcpListener>,
    /// Uses this socket for links instead of one bound to `replication.listen`.
    pub udp: Option<UdpSocket>,
    /// Puts faults between the links and their socket.
    pub faults: Option<FaultControl>,
}

/// Why a node did not start. Nothing is left running.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration, or what it names.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// There are no tokens and no TLS yet.
    #[error(
        "http.listen is {0}, which others can reach, and this version has neither tokens nor TLS: listen on \
         127.0.0.1, or say `--insecure` where only trusted machines reach that address"
    )]
    Insecure(SocketAddr),
    /// The data directory was refused.
    #[error(transparent)]
    Store(#[from] StoreOpenError),
    /// It belongs to another node.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// What it holds is not readable.
    #[error("the data directory cannot be read: {0}")]
    Read(#[from] godwit_core::store::StoreError),
    /// What it says of namespaces is not readable.
    #[error("the settings of namespaces cannot be read: {0}")]
    Namespaces(ReadFailure),
    /// The API's address.
    #[error("the API cannot listen on {listen}: {source}. Is another process there?")]
    Http {
        /// The address.
        listen: SocketAddr,
        /// The system's error.
        source: std::io::Error,
    },
    /// The links' address.
    #[error("replication.listen: {source}: {}. Is another process there?", source.source)]
    Bind {
        /// The transport's error.
        source: godwit_net::BindError,
    },
    /// The links.
    #[error("the links cannot start: {0}")]
    Links(#[from] godwit_net::StartError),
    /// The system gave no thread, timer or random number.
    #[error("the system does not give what a node needs: {0}")]
    System(#[from] std::io::Error),
}

/// Why a node that was asked to stop did not end well. It has stopped all the same.
#[derive(Debug, thiserror::Error)]
pub enum StopError {
    /// The committer had failed, or failed while it stopped.
    #[error(transparent)]
    Committer(#[from] Failure),
}

/// A node that runs. It ends by [`RunningNode::shutdown`]: if it is only dropped, its links and committer go on.
#[derive(Debug)]
pub struct RunningNode {
    handle: NodeHandle,
    http: HttpServer,
    http_addr: SocketAddr,
    committer: CommitterHandle<Submission>,
    links: Option<Links>,
    reads: JoinHandle<()>,
    gate: Arc<StoreGate>,
}

#[derive(Debug)]
struct Links {
    transport: TransportHandle,
    pump: JoinHandle<()>,
}

impl RunningNode {
    /// Opens the data directory and starts everything, within a multi-threaded Tokio runtime.
    pub async fn start(config: Config, options: StartOptions) -> Result<Self, StartError> {
        config.validate()?;
        let tls = config.identity()?;
        let tokens = config.token_key()?;
        // What others could hold comes first: a refusal then leaves no trace in the data directory.
        let listener = listen(&config, &options)?;
        let http_addr = listener.local_addr()?;
        let udp = match (&config.replication, options.udp) {
            (Some(_), Some(socket)) => Some(socket),
            (Some(replication), None) => {
                Some(godwit_net::bind(replication.listen).map_err(|source| StartError::Bind { source })?)
            }
            (None, _) => None,
        };

        let opening = config.clone();
        let opened = tokio::task::spawn_blocking(move || open(&opening)).await;
        let (store, identity, node) = opened.unwrap_or_else(|error| resume(error))?;

        let mut links = None;
        if let (Some(transport), Some(tls), Some(udp)) = (config.transport(), tls, udp) {
            let wire = options.faults.map_or(Wire::Plain, Wire::Faulty);
            links = Some(Transport::start(transport, tls, udp, wire)?);
        }
        let (transport, events): (Option<TransportHandle>, Option<EventReceiver>) = links.unzip();
        let replies = Arc::new(Replies::default());
        let (reader, found) = Reader::spawn(store.clone())?;
        let trimmer = Trimmer::spawn(store.clone())?;
        let sink = Sink::new(Arc::clone(&replies), transport.clone(), trimmer, reader);
        let namespaces = Arc::new(Namespaces::new(identity.partitions, config.limits.auto_create_namespaces));
        let written = Counting { store: store.clone(), namespaces: Arc::clone(&namespaces) };
        let committer = Committer::spawn(Metered::new(node), written, sink, CommitterOptions::default())?;
        let reads = tokio::spawn(reader::hand_in(found, committer.clone()));
        let links = transport.zip(events).map(|(transport, events)| {
            let pump = tokio::spawn(driver::pump(events, committer.clone()));
            Links { transport, pump }
        });

        let gate = Arc::new(StoreGate::new(store));
        let transport = links.as_ref().map(|links| links.transport.clone());
        let handle = NodeHandle::new(
            identity,
            &config,
            tokens,
            committer.clone(),
            replies,
            (Arc::clone(&gate), namespaces),
            transport,
        );
        // Before the first request: it is held to the settings.
        handle.refresh_namespaces().await.map_err(StartError::Namespaces)?;
        tokio::spawn(namespaces::keep(handle.clone()));
        tokio::spawn(erasure::run(handle.clone()));
        let http = http::serve(handle.clone(), listener, config.limits.connections)?;
        let running = Self { handle, http, http_addr, committer, links, reads, gate };
        running.announce(&config);
        Ok(running)
    }

    /// Where the API listens.
    pub fn http_addr(&self) -> SocketAddr {
        self.http_addr
    }

    /// Where the links listen, if there are any.
    pub fn replication_addr(&self) -> Option<SocketAddr> {
        self.links.as_ref().map(|links| links.transport.local_addr())
    }

    /// What the API is made of.
    pub fn handle(&self) -> &NodeHandle {
        &self.handle
    }

    /// Resolves when the committer has failed, never otherwise. The node takes no more writes then; what remains is
    /// [`Self::shutdown`].
    pub async fn failed(&self) -> Failure {
        self.committer.failed().await
    }

    /// Stops the node in order.
    pub async fn shutdown(self) -> Result<(), StopError> {
        self.handle.stop();
        self.http.shutdown(HTTP_DRAIN_MAX).await;
        // No commit after this: then the next start may go on with this incarnation.
        if !self.handle.finish().await {
            tracing::warn!("the stop is not marked as clean: the next start writes under a new replica id");
        }
        if let Some(links) = self.links {
            // The peers find out by themselves if they are not told in time.
            if let Err(error) = links.transport.shutdown().await {
                tracing::warn!(%error, "stopping");
            }
            if links.pump.await.is_err() {
                tracing::error!("the pump panicked");
            }
        }
        let outcome = self.committer.shutdown().await;
        if self.reads.await.is_err() {
            tracing::error!("handing in what was read for repairs panicked");
        }
        let gate = self.gate;
        // Waits for reads in progress, hence not on an async thread.
        tokio::task::spawn_blocking(move || gate.close()).await.unwrap_or_else(|error| resume(error));
        tracing::info!("stopped");
        Ok(outcome?)
    }

    fn announce(&self, config: &Config) {
        let node = &config.node;
        tracing::info!(
            node = node.name,
            region = node.region,
            cluster = node.cluster,
            partitions = node.partitions,
            durability = ?config.storage.durability,
            http = %self.http_addr,
            replication = self.replication_addr().map(tracing::field::display),
            data_dir = %node.data_dir.display(),
            version = env!("CARGO_PKG_VERSION"),
            "started"
        );
        if node.secret_file.is_none() {
            tracing::warn!(
                "node.secret_file is not set: who knows the cluster's name, and its authority's certificate if there is \
                 one, can forge tokens"
            );
        }
    }
}

fn listen(config: &Config, options: &StartOptions) -> Result<TcpListener, StartError> {
    let listen = config.http.listen;
    let refused = |source| StartError::Http { listen, source };
    let bound = match &options.http {
        Some(listener) => listener.local_addr()?,
        None => listen,
    };
    if !bound.ip().to_canonical().is_loopback() && !options.insecure {
        return Err(StartError::Insecure(bound));
    }
    let listener = match &options.http {
        Some(listener) => listener.try_clone()?,
        None => TcpListener::bind(listen).map_err(refused)?,
    };
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn open(config: &Config) -> Result<(RocksStore, Identity, Node), StartError> {
    let options = StoreOptions {
        block_cache_bytes: config.storage.cache_bytes,
        durability: config.storage.durability.into(),
        ..StoreOptions::default()
    };
    let store = RocksStore::open(&config.node.data_dir, &options)?;
    let settings = NodeSettings {
        cluster: config.node.cluster.clone(),
        node: config.node.name.clone(),
        region: config.node.region.clone(),
        partitions: config.node.partitions,
    };
    let replica = ReplicaId(random_u64()?);
    let identity = identity::load_or_create(&store, &settings, || replica)?;
    let place = identity::place(&store)?;
    let members = config.replication.iter().flat_map(|replication| &replication.peers);
    let node_config = NodeConfig {
        cluster: identity.cluster.clone(),
        node: identity.node.clone(),
        region: identity.region.clone(),
        members: members.map(|peer| peer.name.clone()).collect(),
        seed: random_u64()?,
        same_place: place.is_same,
        partitions: identity.partitions,
        limits: config.limits.ops(),
        max_clock_drift_ms: config.clock.max_drift_ms,
        idempotency_window_ms: config.limits.idempotency_window_ms,
        tuning: Tuning {
            log_bytes_max: config.retention.log_bytes,
            log_age_max_ms: config.retention.log_age_ms,
            repair_bytes_per_s: config.repair.bytes_per_s,
            scrub_us: config.repair.scrub_every_ms * 1000,
            sizes: partition::Sizes {
                forget_after_ms: config.retention.cleared_documents_ms,
                ..partition::Sizes::default()
            },
            ..Tuning::default()
        },
    };
    let (node, mut begins) = Node::open(node_config, &store)?;
    begins.put(Family::Meta, keys::PLACE.to_vec(), place.note);
    // Durable, whatever the setting: from here on the data directory is no longer one that was stopped cleanly.
    store.commit(&begins)?;
    let (replica, asks) = (node.replica(), node.asks_to_resume());
    tracing::info!(%replica, asks, "writes under this replica id, once its peers confirm it if it asks them");
    Ok((store, identity, node))
}

fn random_u64() -> Result<u64, std::io::Error> {
    random_bytes().map(u64::from_le_bytes)
}

fn random_bytes<const N: usize>() -> Result<[u8; N], std::io::Error> {
    let mut bytes = [0; N];
    let entropy = rustls::crypto::ring::default_provider().secure_random;
    entropy.fill(&mut bytes).map_err(|_| std::io::Error::other("no random numbers"))?;
    Ok(bytes)
}

/// A blocking task ends without a value only by a panic, which goes on here: nothing cancels such tasks while the
/// runtime lives.
fn resume(error: tokio::task::JoinError) -> ! {
    std::panic::resume_unwind(error.into_panic())
}
