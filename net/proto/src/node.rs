//! The node: partitions, peers and clock, driven by inputs and time.
//!
//! Invariants:
//!
//! - Nothing is said to a peer or a client that the batch of the same step, or an earlier one, does not hold: the
//!   driver commits before it releases outputs.
//! - Clients are served whatever the peers do: a commit touches no peer's state except to append to its stream.
//! - A peer's input can make the node refuse, close a link or wait, never panic. One thing that a peer says stops
//!   the node: that it has commits of this replica which this node does not hold. Then this node's data is older
//!   than what it has told others, and writing on would give old dots to new commits.

use std::collections::BTreeMap;

use godwit_core::codec::{self, CodecError};
use godwit_core::context::{Dot, VersionVector};
use godwit_core::delta::{Delta, EncodedDelta, RecordDelta};
use godwit_core::ids::{MAX_PARTITIONS, PartitionId, ReplicaId};
use godwit_core::keys;
use godwit_core::machine::{Effects, Machine};
use godwit_core::op::{Limits, Write};
use godwit_core::partition::{Applied, CHECKPOINT_ENTRIES, CommitError, Partition, Received};
use godwit_core::store::{Batch, Family, StoreError, StoreRead, Txn};
use godwit_core::time::{Hlc, HlcClock, Mono, Now};

use crate::message::Message;
use crate::peer::Peer;
use crate::relay::Relay;
use crate::status::Status;

const CLOCK_VERSION: u8 = 1;

/// Who the node is and how it behaves.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// The cluster's name: nodes of other clusters are refused.
    pub cluster: String,
    /// The node's name.
    pub node: String,
    /// Its region.
    pub region: String,
    /// The id under which it writes.
    pub replica: ReplicaId,
    /// The number of partitions, the same on every node, 1 to [`MAX_PARTITIONS`].
    pub partitions: u16,
    /// Limits on what clients may write.
    pub limits: Limits,
    /// How far ahead of the local wall clock a remote stamp may be and still be followed, in milliseconds.
    pub max_clock_drift_ms: u64,
    /// Windows and waits.
    pub tuning: Tuning,
}

/// Windows and waits of the protocol. Times are in microseconds.
#[derive(Debug, Clone)]
pub struct Tuning {
    /// How long after applying others' deltas the new contexts are told.
    pub contexts_delay_us: u64,
    /// How often all contexts are told, changed or not.
    pub contexts_interval_us: u64,
    /// Pushed bytes that a peer may leave unacknowledged. 20 MB fill 150 ms at 1 Gbit/s.
    pub window_bytes: usize,
    /// Bytes of deltas read from the log for one message.
    pub chunk_bytes: usize,
    /// How long a peer may acknowledge nothing before it is sent again what it lacks.
    pub resend_after_us: u64,
    /// How long to wait for a third party's deltas while the link to it is up.
    pub relay_wait_linked_us: u64,
    /// The same while it is not.
    pub relay_wait_cut_us: u64,
    /// How long to wait for the answer to a request before another peer is asked.
    pub relay_retry_us: u64,
    /// Bytes of deltas in one answer.
    pub relay_bytes: usize,
    /// Bytes of deltas that may wait for others that they depend on, over all partitions. Less than what all peers may
    /// have in flight (their windows) makes catching up slow, never wrong: what finds no room is sent again.
    pub pending_bytes_max: usize,
    /// The interval of checkpoints in the logs of new data directories.
    pub checkpoint_entries: u64,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            contexts_delay_us: 20_000,
            contexts_interval_us: 3_000_000,
            window_bytes: 20 * 1024 * 1024,
            chunk_bytes: 256 * 1024,
            resend_after_us: 5_000_000,
            relay_wait_linked_us: 1_000_000,
            relay_wait_cut_us: 50_000,
            relay_retry_us: 2_000_000,
            relay_bytes: 1024 * 1024,
            pending_bytes_max: 128 * 1024 * 1024,
            checkpoint_entries: CHECKPOINT_ENTRIES,
        }
    }
}

/// Names a client's request until it is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// Names one connection to a peer; a later connection has a greater id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u64);

/// What the node is told.
#[derive(Debug, Clone)]
pub enum Input {
    /// A client wants to write records of one partition, atomically.
    Commit {
        /// For the reply.
        request: RequestId,
        /// What to write; at least one.
        writes: Vec<Write>,
    },
    /// Somebody asks how the node is.
    Status {
        /// For the reply.
        request: RequestId,
    },
    /// A link to a peer came up. The transport has proved the peer's name.
    Up {
        /// The peer's name.
        peer: String,
        /// The link.
        link: LinkId,
    },
    /// A link went down.
    Down {
        /// The peer's name.
        peer: String,
        /// The link.
        link: LinkId,
    },
    /// A frame came in on a link.
    Frame {
        /// The peer's name.
        peer: String,
        /// The link.
        link: LinkId,
        /// The frame's bytes.
        bytes: Vec<u8>,
    },
}

/// What the node wants released, once its batch is durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Send a message on a link.
    Send {
        /// The peer's name.
        peer: String,
        /// The link.
        link: LinkId,
        /// The message.
        message: Message,
    },
    /// Close a link, after what was sent on it.
    Close {
        /// The peer's name.
        peer: String,
        /// The link.
        link: LinkId,
        /// Why, for the log.
        reason: String,
    },
    /// Answer a request.
    Reply {
        /// The request.
        request: RequestId,
        /// The answer.
        reply: Reply,
    },
    /// Something that an operator should know.
    Alarm(Alarm),
}

/// Something that an operator should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Alarm {
    /// A peer's stamp is further ahead than allowed. It was applied, and not followed.
    ClockDrift {
        /// The writer of the stamp.
        replica: ReplicaId,
        /// How far ahead of this node's clock, in milliseconds.
        ahead_ms: u64,
    },
    /// Deltas came that have to wait, and there was no room: they will be sent again.
    PendingFull {
        /// The partition.
        partition: PartitionId,
    },
}

/// An answer to a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// Committed: everything is durable.
    Committed {
        /// The partition of the records.
        partition: PartitionId,
        /// The commit and its stamp; `None` if there was nothing to change.
        commit: Option<(Dot, Hlc)>,
    },
    /// Refused: nothing changed.
    Refused(CommitError),
    /// How the node is.
    Status(Box<Status>),
}

/// The machine of one node.
#[derive(Debug)]
pub struct Node {
    pub(crate) config: NodeConfig,
    pub(crate) partitions: Vec<Partition>,
    pub(crate) peers: BTreeMap<String, Peer>,
    pub(crate) relay: Relay,
    /// Bytes of deltas that wait, over all partitions.
    pub(crate) pending_bytes: usize,
    clock: HlcClock,
}

/// One step of the machine: the time, the store under the growing batch, and the outputs so far.
pub(crate) struct Step<'a, S> {
    pub(crate) now: Now,
    pub(crate) txn: Txn<'a, S>,
    pub(crate) outputs: &'a mut Vec<Output>,
}

impl Node {
    /// Opens a node on what its store holds.
    ///
    /// # Panics
    /// If the configuration names no partitions or more than [`MAX_PARTITIONS`].
    pub fn open(config: NodeConfig, store: &impl StoreRead) -> Result<Self, StoreError> {
        assert!((1..=MAX_PARTITIONS).contains(&config.partitions), "1 to {MAX_PARTITIONS} partitions");
        let partitions = (0..config.partitions)
            .map(|id| {
                Partition::open_with(store, PartitionId(id), config.replica, config.tuning.checkpoint_entries)
            })
            .collect::<Result<_, _>>()?;
        let last = match store.get(Family::Meta, keys::CLOCK)? {
            Some(bytes) => {
                codec::decode(CLOCK_VERSION, &bytes).map_err(StoreError::damaged("meta: clock"))?
            }
            None => Hlc::default(),
        };
        let clock = HlcClock::new(last, config.max_clock_drift_ms);
        Ok(Self {
            config,
            partitions,
            peers: BTreeMap::new(),
            relay: Relay::default(),
            pending_bytes: 0,
            clock,
        })
    }

    /// The node's settings.
    pub fn config(&self) -> &NodeConfig {
        &self.config
    }

    /// What a partition has applied, the uncommitted batch included.
    pub fn context(&self, partition: PartitionId) -> &VersionVector {
        self.partitions[usize::from(partition.0)].context()
    }

    pub(crate) fn partition_ids(&self) -> impl Iterator<Item = PartitionId> + use<> {
        (0..self.config.partitions).map(PartitionId)
    }

    fn commit<S: StoreRead>(
        &mut self,
        step: &mut Step<'_, S>,
        writes: &[Write],
    ) -> Result<Reply, StoreError> {
        let mut homes = writes.iter().map(|write| write.record.partition(self.config.partitions));
        let Some(id) = homes.next() else { return Ok(Reply::Refused(CommitError::Empty)) };
        if let Some(other) = homes.position(|home| home != id) {
            return Ok(Reply::Refused(CommitError::OtherPartition { write: other + 1 }));
        }
        let (clock, wall) = (&mut self.clock, step.now.wall);
        let partition = &mut self.partitions[usize::from(id.0)];
        let done = partition.commit(&mut step.txn, writes, &self.config.limits, || clock.tick(wall));
        let applied = match done {
            Ok(applied) => applied,
            Err(CommitError::Store(error)) => return Err(error),
            Err(refused) => return Ok(Reply::Refused(refused)),
        };
        if let Some(applied) = &applied {
            self.write_clock(step);
            self.push_applied(step, id, applied);
        }
        Ok(Reply::Committed { partition: id, commit: applied.map(|applied| (applied.dot, applied.hlc)) })
    }

    /// Takes deltas of a peer; `Err` in the result says why the peer's bytes are refused.
    pub(crate) fn receive<S: StoreRead>(
        &mut self,
        step: &mut Step<'_, S>,
        id: PartitionId,
        deltas: Vec<EncodedDelta>,
    ) -> Result<Result<(), String>, StoreError> {
        let mut applied_any = false;
        let mut outcome = Ok(());
        for encoded in deltas {
            outcome = self.receive_one(step, id, encoded, &mut applied_any)?;
            if outcome.is_err() {
                break;
            }
        }
        if applied_any {
            self.write_clock(step);
            self.context_changed(step.now.mono, id);
            self.review_relay(step.now.mono, id);
        }
        Ok(outcome)
    }

    fn receive_one<S: StoreRead>(
        &mut self,
        step: &mut Step<'_, S>,
        id: PartitionId,
        encoded: EncodedDelta,
        applied_any: &mut bool,
    ) -> Result<Result<(), String>, StoreError> {
        let refused = |error: CodecError| Ok(Err(format!("a delta of partition {id} is refused: {error}")));
        let delta = match Delta::decode(&encoded) {
            Ok(delta) => delta,
            Err(error) => return refused(error),
        };
        let home = |record: &RecordDelta| record.record.partition(self.config.partitions);
        if delta.records.iter().any(|record| home(record) != id) {
            return Ok(Err(format!("delta {} does not belong to partition {id}", delta.dot)));
        }
        // Who has seen a commit of this replica proves that it was made.
        let own = self.config.replica;
        self.check_own(id, delta.dot)?;
        self.check_own(id, Dot { replica: own, counter: delta.deps.get(own) })?;
        let room = self.config.tuning.pending_bytes_max.saturating_sub(self.pending_bytes);
        let partition = &mut self.partitions[usize::from(id.0)];
        let before = partition.pending_bytes();
        let received = partition.receive(&mut step.txn, delta, encoded, room)?;
        self.pending_bytes = self.pending_bytes + partition.pending_bytes() - before;
        match received {
            Received::Applied(all) => {
                *applied_any = true;
                all.iter().for_each(|applied| self.applied_remote(step, id, applied));
            }
            Received::Dropped => step.outputs.push(Output::Alarm(Alarm::PendingFull { partition: id })),
            Received::Refused(error) => return refused(error),
            Received::Duplicate | Received::Waits => {}
        }
        Ok(Ok(()))
    }

    fn applied_remote<S: StoreRead>(&mut self, step: &mut Step<'_, S>, id: PartitionId, applied: &Applied) {
        if let Some(alarm) = self.clock.observe(applied.hlc, step.now.wall) {
            let (replica, ahead_ms) = (applied.dot.replica, alarm.ahead_ms);
            step.outputs.push(Output::Alarm(Alarm::ClockDrift { replica, ahead_ms }));
        }
        self.push_applied(step, id, applied);
    }

    /// Stops the node if somebody has a commit of this replica that this node does not hold.
    pub(crate) fn check_own(&self, id: PartitionId, dot: Dot) -> Result<(), StoreError> {
        let own = self.partitions[usize::from(id.0)].own_counter();
        if dot.replica == self.config.replica && dot.counter > own {
            return Err(StoreError::Inconsistent(format!(
                "a peer has commit {} of this replica in partition {id}, but this node holds only {own}: its data \
                 directory is older than what it has told others (a restored or copied backup?). Start the node \
                 on an empty data directory; it will fetch everything from its peers",
                dot.counter
            )));
        }
        Ok(())
    }

    fn write_clock<S: StoreRead>(&self, step: &mut Step<'_, S>) {
        step.txn.put(Family::Meta, keys::CLOCK.to_vec(), codec::encode(CLOCK_VERSION, &self.clock.last()));
    }
}

impl Machine for Node {
    type Input = Input;
    type Output = Output;

    fn handle(
        &mut self,
        now: Now,
        input: Input,
        store: &impl StoreRead,
        out: &mut Effects<Output>,
    ) -> Result<(), StoreError> {
        let mut step = Step::new(now, store, &mut out.batch, &mut out.outputs);
        match input {
            Input::Commit { request, writes } => {
                let reply = self.commit(&mut step, &writes)?;
                step.outputs.push(Output::Reply { request, reply });
            }
            Input::Status { request } => {
                let reply = Reply::Status(Box::new(self.status()));
                step.outputs.push(Output::Reply { request, reply });
            }
            Input::Up { peer, link } => self.link_up(&mut step, peer, link),
            Input::Down { peer, link } => self.link_down(now.mono, &peer, link),
            Input::Frame { peer, link, bytes } => self.frame(&mut step, &peer, link, &bytes)?,
        }
        Ok(())
    }

    fn next_deadline(&self) -> Option<Mono> {
        let peers = self.peers.values().filter_map(Peer::next_deadline).min();
        let relay = self.next_relay_deadline();
        peers.into_iter().chain(relay).min()
    }

    fn handle_timeout(
        &mut self,
        now: Now,
        store: &impl StoreRead,
        out: &mut Effects<Output>,
    ) -> Result<(), StoreError> {
        let mut step = Step::new(now, store, &mut out.batch, &mut out.outputs);
        self.tell_contexts_due(&mut step);
        self.push_due(&mut step)?;
        self.relay_due(&mut step);
        self.answers_due(&mut step)?;
        Ok(())
    }
}

impl<'a, S: StoreRead> Step<'a, S> {
    fn new(now: Now, store: &'a S, batch: &'a mut Batch, outputs: &'a mut Vec<Output>) -> Self {
        Self { now, txn: Txn::new(store, batch), outputs }
    }

    pub(crate) fn send(&mut self, peer: &str, link: LinkId, message: Message) {
        self.outputs.push(Output::Send { peer: peer.to_string(), link, message });
    }

    pub(crate) fn close(&mut self, peer: &str, link: LinkId, reason: String) {
        self.outputs.push(Output::Close { peer: peer.to_string(), link, reason });
    }
}
