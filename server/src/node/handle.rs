//! What the API and callers in the same process do with a node.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use std::time::{SystemTime, UNIX_EPOCH};

use godwit_core::context::{Dot, Seen};
use godwit_core::document::DocumentError;
use godwit_core::ids::{Field, PartitionId, RecordId, ReplicaId};
use godwit_core::op::{Terms, Write};
use godwit_core::partition::CommitError;
use godwit_core::read::{ReadAt, ReadError};
use godwit_core::repair::Settled;
use godwit_core::row::FieldType;
use godwit_core::store::StoreError;
use godwit_core::time::Hlc;
use godwit_core::token::TokenKey;
use godwit_engine::committer::CommitterHandle;
use godwit_engine::identity::Identity;
use godwit_engine::stats::CommitCounts;
use godwit_engine::store::{RocksStore, Snapshot, StoreStats};
use godwit_net::{LinkStatus, TransportHandle};
use godwit_proto::status::Status;
use godwit_proto::{Input, Reply, RequestId};
use tokio::sync::OwnedSemaphorePermit;

use super::documents::OpenDocuments;
use super::driver::Submission;
use super::gate::StoreGate;
use super::namespaces::{Namespaces, QuotaExceeded};
use super::replies::Replies;
use crate::config::{Config, LimitsSection};

/// What readers are shown of the store: a snapshot, with repaired rows where they have not been moved to their places.
pub type StoreView<'a> = Settled<'a, Snapshot<'a>>;

/// How long a request waits for room in the committer's queue before it is refused.
const QUEUE_WAIT_MAX: Duration = Duration::from_secs(5);

/// A node, to be asked and told. Clones are the same node; one that has stopped answers [`struct@Stopped`].
#[derive(Debug, Clone)]
pub struct NodeHandle(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    identity: Identity,
    limits: LimitsSection,
    origins: Vec<String>,
    tokens: TokenKey,
    peers: Vec<String>,
    committer: CommitterHandle<Submission>,
    replies: Arc<Replies>,
    gate: Arc<StoreGate>,
    namespaces: Arc<Namespaces>,
    documents: Arc<OpenDocuments>,
    transport: Option<TransportHandle>,
    /// Regions of nodes, as far as they were ever told: they never change.
    regions: Mutex<BTreeMap<String, String>>,
    stopping: AtomicBool,
}

/// A commit that is as durable as the node's setting `storage.durability` has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// The partition of the records.
    pub partition: PartitionId,
    /// The commit and its stamp; `None` if there was nothing to change.
    pub commit: Option<(Dot, Hlc)>,
    /// Whether it had been made before, under the same idempotency key.
    pub repeated: bool,
    /// What the client has seen of the partition now.
    pub seen: Seen,
}

/// Why a commit was not acknowledged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommitFailure {
    /// It cannot be. Nothing changed.
    #[error(transparent)]
    Refused(#[from] CommitError),
    /// The namespace takes no more. Nothing changed.
    #[error(transparent)]
    Quota(#[from] QuotaExceeded),
    /// The committer's queue stayed full. Nothing changed.
    #[error("the node has more commits waiting than it can take")]
    Overloaded,
    /// The node takes no more commits. Nothing changed.
    #[error(transparent)]
    Stopped(#[from] Stopped),
    /// What the commit acts on cannot be read. Nothing changed.
    #[error(transparent)]
    Unread(ReadFailure),
    /// The node failed before it knew that the commit is durable: it may be, or not.
    #[error("the node failed while it committed: it is not known whether the commit is durable")]
    Unknown,
}

/// Why nothing was read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadFailure {
    /// The store could not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is more than asked for.
    #[error("there are more than {max} bytes to read")]
    TooLarge {
        /// The limit.
        max: usize,
    },
    /// A document cannot be made of its changes, or has not what is asked for.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// The order of a large zset is being made.
    #[error("the order by score is being made: try again in a while, or read by member")]
    Unordered,
    /// The node has stopped.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

impl From<ReadFailure> for CommitFailure {
    fn from(failure: ReadFailure) -> Self {
        match failure {
            ReadFailure::Stopped(stopped) => Self::Stopped(stopped),
            other => Self::Unread(other),
        }
    }
}

impl From<ReadError> for ReadFailure {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::TooLarge { max } => Self::TooLarge { max },
            ReadError::Unordered => Self::Unordered,
            ReadError::Store(error) => Self::Store(error),
        }
    }
}

/// The node is stopping, has stopped, or has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the node is stopping")]
pub struct Stopped;

impl NodeHandle {
    pub(super) fn new(
        identity: Identity,
        config: &Config,
        tokens: TokenKey,
        committer: CommitterHandle<Submission>,
        replies: Arc<Replies>,
        (gate, namespaces): (Arc<StoreGate>, Arc<Namespaces>),
        transport: Option<TransportHandle>,
    ) -> Self {
        let peers = config.replication.iter().flat_map(|replication| &replication.peers);
        let peers = peers.map(|peer| peer.name.clone()).collect();
        let regions = BTreeMap::from([(identity.node.clone(), identity.region.clone())]);
        Self(Arc::new(Shared {
            identity,
            limits: config.limits.clone(),
            origins: config.http.origins.clone(),
            tokens,
            peers,
            committer,
            replies,
            gate,
            namespaces,
            documents: Arc::new(OpenDocuments::new(config.limits.documents_bytes)),
            transport,
            regions: Mutex::new(regions),
            stopping: AtomicBool::new(false),
        }))
    }

    /// The number of partitions of the cluster.
    pub fn partitions(&self) -> u16 {
        self.0.identity.partitions
    }

    /// Where a read looks that is made at this moment.
    pub fn read_at(&self) -> ReadAt {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now_ms = u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX);
        ReadAt { partitions: self.partitions(), now_ms }
    }

    /// What clients may do.
    pub fn limits(&self) -> &LimitsSection {
        &self.0.limits
    }

    /// Sites whose pages may open WebSockets.
    pub(crate) fn origins(&self) -> &[String] {
        &self.0.origins
    }

    /// The node's name.
    pub(crate) fn name(&self) -> &str {
        &self.0.identity.node
    }

    /// What is known of namespaces.
    pub(crate) fn namespaces(&self) -> &Arc<Namespaces> {
        &self.0.namespaces
    }

    /// The documents that are open.
    pub(crate) fn documents(&self) -> &Arc<OpenDocuments> {
        &self.0.documents
    }

    /// Has what is known of namespaces be what the store has now.
    pub(crate) async fn refresh_namespaces(&self) -> Result<(), ReadFailure> {
        let (namespaces, at) = (Arc::clone(&self.0.namespaces), self.read_at());
        self.read(move |store| namespaces.refresh(store, at)).await
    }

    /// A step of counting what namespaces take. Tells whether there is more to count.
    pub(crate) async fn count_namespaces(&self) -> Result<bool, ReadFailure> {
        let (gate, namespaces) = (Arc::clone(&self.0.gate), Arc::clone(&self.0.namespaces));
        let step = move || gate.enter(|store| namespaces.count(store));
        let counted = blocking(step).await?;
        Ok(counted.ok_or(Stopped)??)
    }

    /// What the committer has counted.
    pub(crate) fn commit_counts(&self) -> CommitCounts {
        self.0.committer.stats().counts()
    }

    /// What waits for the committer.
    pub(crate) fn queued(&self) -> usize {
        self.0.committer.queued()
    }

    /// Sizes of the store.
    pub(crate) async fn store_stats(&self) -> Result<StoreStats, ReadFailure> {
        let gate = Arc::clone(&self.0.gate);
        let stats = blocking(move || gate.enter(RocksStore::stats)).await?;
        Ok(stats.ok_or(Stopped)??)
    }

    /// The key of the cluster's tokens.
    pub(crate) fn tokens(&self) -> &TokenKey {
        &self.0.tokens
    }

    /// The names of all other nodes.
    pub fn peers(&self) -> &[String] {
        &self.0.peers
    }

    /// The links, one for each other node.
    pub fn links(&self) -> Vec<LinkStatus> {
        self.0.transport.as_ref().map(TransportHandle::links).unwrap_or_default()
    }

    /// Commits writes to records of one partition, atomically. `Ok` means as durable as configured. Waits for room in the
    /// committer's queue for up to 5 s.
    pub async fn commit(&self, writes: Vec<Write>, terms: Terms) -> Result<Committed, CommitFailure> {
        self.commit_holding(writes, terms, None).await
    }

    /// Commits writes to records of one partition, atomically. `Ok` means as durable as configured. The permit for what the
    /// writes take in memory goes with them, whether or not the caller waits.
    pub(crate) async fn commit_holding(
        &self,
        writes: Vec<Write>,
        terms: Terms,
        room: Option<OwnedSemaphorePermit>,
    ) -> Result<Committed, CommitFailure> {
        let acts_on_seen = terms.acts_on_seen(&writes);
        let said = terms.seen.clone().filter(|_| acts_on_seen);
        let reply = self.ask(|request| Input::Commit { request, writes, terms }, room).await;
        match reply? {
            Reply::Committed { partition, commit, repeated, context } => {
                let seen = Seen::after(said, commit.map(|(dot, _)| dot), context);
                Ok(Committed { partition, commit, repeated, seen })
            }
            Reply::Refused(error) => Err(error.into()),
            Reply::Stopping => Err(Stopped.into()),
            Reply::Status(_) => unreachable!("a commit is answered as one"),
        }
    }

    /// Asks the node to keep the size of a set, so that later questions need not count. Nothing is lost if it has too
    /// much to do: the next question asks again.
    pub(crate) fn keep_size(&self, record: RecordId, field: Field) {
        let input = Input::Count { record, field, ty: FieldType::SET };
        if self.0.committer.try_submit(Submission { input, room: None }).is_err() {
            tracing::debug!("the node has too much to do to keep the size of a set");
        }
    }

    /// How the node is. `Err` if it has stopped or has too much to do to say.
    pub async fn status(&self) -> Result<Status, CommitFailure> {
        match self.ask(|request| Input::Status { request }, None).await? {
            Reply::Status(status) => Ok(*status),
            Reply::Stopping | Reply::Committed { .. } | Reply::Refused(_) => {
                unreachable!("a question is answered as one")
            }
        }
    }

    async fn ask(
        &self,
        input: impl FnOnce(RequestId) -> Input,
        room: Option<OwnedSemaphorePermit>,
    ) -> Result<Reply, CommitFailure> {
        let mut waiting = self.0.replies.register().ok_or(Stopped)?;
        let submission = Submission { input: input(waiting.request), room };
        let submitted = tokio::time::timeout(QUEUE_WAIT_MAX, self.0.committer.submit(submission)).await;
        submitted.map_err(|_| CommitFailure::Overloaded)?.map_err(|_| Stopped)?;
        waiting.reply().await.ok_or(CommitFailure::Unknown)
    }

    /// Reads a state of the store, on a thread that may block.
    pub async fn read<T: Send + 'static, E: Into<ReadFailure> + Send + 'static>(
        &self,
        read: impl FnOnce(&StoreView<'_>) -> Result<T, E> + Send + 'static,
    ) -> Result<T, ReadFailure> {
        let gate = Arc::clone(&self.0.gate);
        let shown = move |store: &RocksStore| {
            let snapshot = store.snapshot();
            let shown = StoreView::open(&snapshot).map_err(ReadFailure::from)?;
            read(&shown).map_err(Into::into)
        };
        blocking(move || gate.enter(shown)).await?.unwrap_or(Err(Stopped.into()))
    }

    /// The regions of replicas, past incarnations too: those whose node this one has ever been linked with.
    pub async fn regions(&self, replicas: &[ReplicaId]) -> BTreeMap<ReplicaId, String> {
        let known = |regions: &BTreeMap<String, String>| {
            let region = |replica: &ReplicaId| {
                let (_, region) = regions.iter().find(|(node, _)| replica.may_be_of(node))?;
                Some((*replica, region.clone()))
            };
            replicas.iter().filter_map(region).collect::<BTreeMap<_, _>>()
        };
        let found = known(&self.0.regions.lock().unwrap_or_else(PoisonError::into_inner));
        if replicas.iter().all(|replica| found.contains_key(replica)) {
            return found;
        }
        // Without an answer the reader gets what is known: this only decorates.
        let Ok(status) = self.status().await else { return found };
        let mut regions = self.0.regions.lock().unwrap_or_else(PoisonError::into_inner);
        regions.extend(status.peers.into_iter().filter_map(|(node, peer)| Some((node, peer.region?))));
        known(&regions)
    }

    /// Whether the node takes requests: it has not been told to stop, and has not failed.
    pub fn is_ready(&self) -> bool {
        !self.0.stopping.load(Ordering::Relaxed) && !self.0.replies.is_closed()
    }

    /// Marks in the store that the node stops cleanly; nothing is committed afterwards. Tells whether that is durable.
    pub(super) async fn finish(&self) -> bool {
        matches!(self.ask(|request| Input::Stop { request }, None).await, Ok(Reply::Stopping))
    }

    /// Completes when something is written after this call, or the node is stopped.
    pub fn written(&self) -> impl Future<Output = ()> + Send + use<> {
        self.0.replies.written()
    }

    pub(super) fn stop(&self) {
        self.0.stopping.store(true, Ordering::Relaxed);
        self.0.replies.wrote();
    }
}

/// Runs on a thread that may block. `Err` if the runtime is going down.
async fn blocking<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> Result<T, Stopped> {
    match tokio::task::spawn_blocking(run).await {
        Ok(value) => Ok(value),
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(Stopped),
    }
}
