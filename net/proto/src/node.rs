//! The node: partitions, peers and clock, driven by inputs and time.
//!
//! Invariants:
//!
//! - Nothing is said to a peer or a client that the batch of the same step, or an earlier one, does not hold: the
//!   driver commits before it releases outputs.
//! - Clients are served whatever the peers do: a commit touches no peer's state except to append to its stream.
//! - A peer's input can make the node refuse, close a link, wait, or take on a new replica id (see
//!   [`crate::incarnation`]), never panic.
//! - What was put off (sweeping, counting, folding) is done a step at a time, with pauses, so that it delays nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use godwit_core::codec::{self, CodecError};
use godwit_core::context::{Dot, VersionVector};
use godwit_core::delta::{Delta, EncodedDelta, RecordDelta};
use godwit_core::ids::{MAX_PARTITIONS, PartitionId, ReplicaId};
use godwit_core::keys;
use godwit_core::machine::{Effects, Machine};
use godwit_core::op::{Limits, Terms, Write};
use godwit_core::partition::{self, Applied, CommitError, Committed, Partition, Received, Watch};
use godwit_core::repair::{Settlings, TREE_BITS_MAX};
use godwit_core::requests;
use godwit_core::store::{Batch, Family, StoreError, StoreRead, Txn};
use godwit_core::time::{Hlc, HlcClock, Mono, Now};

use crate::catch_up::CatchUp;
use crate::incarnation::{Incarnation, Waiting};
use crate::interface::{Alarm, Input, LinkId, Output, Reply};
use crate::message::Message;
use crate::peer::{Peer, Place};
use crate::repair::{READ_ROWS, Repairs};
use crate::retention::{self, Retention};
use crate::scrub::Scrubs;

const CLOCK_VERSION: u8 = 1;
/// How often idempotency keys whose window has ended are looked for.
const REQUESTS_INTERVAL_US: u64 = 10_000_000;
/// How often what is hidden of documents is looked at, whether anybody may still need it.
const HIDDEN_INTERVAL_US: u64 = 1_000_000;
/// How often records whose time has come are looked for.
const EXPIRIES_INTERVAL_US: u64 = 1_000_000;
/// Idempotency keys dropped in one step.
const REQUESTS_STEP: usize = 1000;
/// How long a job waits that cannot be done before it is settled under which id the node writes.
const UNSETTLED_PAUSE_US: u64 = 1_000_000;

/// Who the node is and how it behaves.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// The cluster's name: nodes of other clusters are refused.
    pub cluster: String,
    /// The node's name.
    pub node: String,
    /// Its region.
    pub region: String,
    /// The names of all other nodes.
    pub members: Vec<String>,
    /// Drawn at random for each start: replica ids come of it, which are unique by probability alone.
    pub seed: u64,
    /// Whether the data directory is the very one that the node's last process used, as far as the shell can tell.
    pub same_place: bool,
    /// The number of partitions, the same on every node, 1 to [`MAX_PARTITIONS`].
    pub partitions: u16,
    /// Limits on what clients may write.
    pub limits: Limits,
    /// How far ahead of the local wall clock a remote stamp may be and still be followed, in milliseconds.
    pub max_clock_drift_ms: u64,
    /// How long an idempotency key is remembered, in milliseconds.
    pub idempotency_window_ms: u64,
    /// Windows and waits.
    pub tuning: Tuning,
}

/// Windows and waits of the protocol. Times are in microseconds.
#[derive(Debug, Clone)]
pub struct Tuning {
    /// How long after applying others' deltas the new contexts are told; five times longer to those whose deltas they are.
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
    /// What a peer may have read of the log again, beyond once, before its answers are paced: an entry costs 1, and 1 more
    /// for each KiB.
    pub again_burst: u32,
    /// How long it takes to earn 1 of that back.
    pub again_every_us: u64,
    /// Bytes of deltas that may wait for others that they depend on, over all partitions. Less than what all peers may
    /// have in flight (their windows) makes catching up slow, never wrong: what finds no room is sent again.
    pub pending_bytes_max: usize,
    /// Own commits in a partition that a peer may lack and still be pushed them one by one; beyond, it asks.
    pub push_commits_max: u64,
    /// Bytes of rows that repairs read in a second, those of this node and those that it serves.
    pub repair_bytes_per_s: u64,
    /// Rows that one read of a repair looks at, at least 1.
    pub repair_rows: usize,
    /// Bytes of a repair's parts that may be sent and not taken.
    pub repair_window_bytes: usize,
    /// By how many bits the tree of a repair divides the rows at most; a multiple of 4, up to 20.
    pub repair_tree_bits: u8,
    /// The time in which each partition is compared with every peer once; `u64::MAX`: never.
    pub scrub_us: u64,
    /// How long work that was put off (sweeping, counting, folding) rests before its first step.
    pub job_delay_us: u64,
    /// The pause between steps of such work.
    pub job_pause_us: u64,
    /// Bytes of log entries that the node keeps, over all partitions; beyond, the largest log loses its oldest interval. What
    /// follows the last checkpoint of each partition always stays, so that much more may be there.
    pub log_bytes_max: u64,
    /// How long log entries are kept at most, in milliseconds, from when their interval is finished.
    pub log_age_max_ms: u64,
    /// How often the log's size and age are looked at; what exceeds its size is dropped sooner.
    pub log_check_us: u64,
    /// Sizes of the partitions' work.
    pub sizes: partition::Sizes,
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
            again_burst: 1024 * 1024,
            again_every_us: 30,
            pending_bytes_max: 128 * 1024 * 1024,
            push_commits_max: 1024,
            repair_bytes_per_s: 64 * 1024 * 1024,
            repair_rows: READ_ROWS,
            repair_window_bytes: 8 * 1024 * 1024,
            repair_tree_bits: TREE_BITS_MAX,
            scrub_us: 86_400_000_000,
            job_delay_us: 200_000,
            job_pause_us: 5_000,
            log_bytes_max: 1024 * 1024 * 1024,
            log_age_max_ms: 7 * 86_400_000,
            log_check_us: 1_000_000,
            sizes: partition::Sizes::default(),
        }
    }
}

/// The machine of one node.
#[derive(Debug)]
pub struct Node {
    pub(crate) config: NodeConfig,
    pub(crate) partitions: Vec<Partition>,
    pub(crate) peers: BTreeMap<String, Peer>,
    pub(crate) catch_up: CatchUp,
    pub(crate) incarnation: Incarnation,
    pub(crate) repairs: Repairs,
    pub(crate) scrubs: Scrubs,
    pub(crate) stopped: bool,
    /// When to do the next step of what was put off.
    jobs_at: Option<Mono>,
    /// The partition whose turn it is then.
    jobs_turn: u16,
    /// When records whose time has come are looked for.
    expiries_at: Mono,
    hidden_at: Mono,
    /// When to look for idempotency keys whose window has ended.
    requests_at: Mono,
    pub(crate) retention: Retention,
    /// Bytes of deltas that wait, over all partitions.
    pub(crate) pending_bytes: usize,
    pub(crate) clock: HlcClock,
    /// The partitions in which rows of a repair count and have not been moved to their places.
    pub(crate) settlings: Arc<Settlings>,
}

/// One step of the machine: the time, the store under the growing batch, and the outputs so far.
pub(crate) struct Step<'a, S> {
    pub(crate) now: Now,
    pub(crate) txn: Txn<'a, S>,
    pub(crate) outputs: &'a mut Vec<Output>,
}

impl Node {
    /// Opens a node on what its store holds. The batch must be durable before the node is told anything.
    ///
    /// # Panics
    /// If the configuration names no partitions or more than [`MAX_PARTITIONS`].
    pub fn open(config: NodeConfig, store: &impl StoreRead) -> Result<(Self, Batch), StoreError> {
        assert!((1..=MAX_PARTITIONS).contains(&config.partitions), "1 to {MAX_PARTITIONS} partitions");
        let mut batch = Batch::default();
        let incarnation = Incarnation::open(store, &mut batch, &config)?;
        let (replica, sizes) = (incarnation.replica(), retention::sizes(&config));
        let partitions = (0..config.partitions)
            .map(|id| Partition::open_with(store, PartitionId(id), replica, sizes.clone()))
            .collect::<Result<_, _>>()?;
        let last = match store.get(Family::Meta, keys::CLOCK)? {
            Some(bytes) => {
                codec::decode(CLOCK_VERSION, &bytes).map_err(StoreError::damaged("meta: clock"))?
            }
            None => Hlc::default(),
        };
        let clock = HlcClock::new(last, config.max_clock_drift_ms);
        let node = Self {
            config,
            partitions,
            peers: BTreeMap::new(),
            catch_up: CatchUp::default(),
            incarnation,
            repairs: Repairs::default(),
            scrubs: Scrubs::default(),
            stopped: false,
            // There may be jobs left from before.
            jobs_at: Some(Mono(0)),
            jobs_turn: 0,
            expiries_at: Mono(0),
            hidden_at: Mono(0),
            requests_at: Mono(0),
            retention: Retention::new(),
            pending_bytes: 0,
            clock,
            settlings: Arc::new(Settlings::open(store)?),
        };
        Ok((node, batch))
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

    pub(crate) fn commit<S: StoreRead>(
        &mut self,
        step: &mut Step<'_, S>,
        writes: &[Write],
        terms: &Terms,
    ) -> Result<Reply, StoreError> {
        let mut homes = writes.iter().map(|write| write.record.partition(self.config.partitions));
        let Some(id) = homes.next() else { return Ok(Reply::Refused(CommitError::Empty)) };
        if let Some(other) = homes.position(|home| home != id) {
            return Ok(Reply::Refused(CommitError::OtherPartition { write: other + 1 }));
        }
        let namespace = &writes[0].record.namespace;
        if let Some(other) = writes.iter().position(|write| write.record.namespace != *namespace) {
            return Ok(Reply::Refused(CommitError::OtherNamespace { write: other }));
        }
        let times = (step.now.wall.0, self.oldest_request_ms(step.now));
        let (clock, wall) = (&mut self.clock, step.now.wall);
        let partition = &mut self.partitions[usize::from(id.0)];
        let limits = &self.config.limits;
        let done = partition.commit(&mut step.txn, writes, terms, limits, times, || clock.tick(wall));
        let (commit, repeated) = match done {
            Ok(Committed::Applied(applied)) => {
                let commit = applied.dots.only().map(|dot| (dot, applied.hlc));
                self.committed(step, id, &applied);
                (commit, false)
            }
            Ok(Committed::Unchanged) => (None, false),
            Ok(Committed::Repeated(commit)) => (commit, true),
            Err(CommitError::Store(error)) => return Err(error),
            Err(refused) => return Ok(Reply::Refused(refused)),
        };
        Ok(Reply::Committed { partition: id, commit, repeated, context: self.context(id).clone() })
    }

    /// A commit of this node's own was applied.
    fn committed<S: StoreRead>(&mut self, step: &mut Step<'_, S>, id: PartitionId, applied: &Applied) {
        self.write_clock(step);
        self.push_applied(step, id, applied);
        self.log_grew(step.now.mono, applied);
        self.jobs_may_be_due(step.now, id);
    }

    /// The time before which idempotency keys no longer count.
    pub(crate) fn oldest_request_ms(&self, now: Now) -> u64 {
        now.wall.0.saturating_sub(self.config.idempotency_window_ms)
    }

    pub(crate) fn jobs_may_be_due(&mut self, now: Now, id: PartitionId) {
        if self.jobs_at.is_none() && self.partitions[usize::from(id.0)].has_jobs() {
            self.jobs_at = Some(now.mono.plus_us(self.config.tuning.job_delay_us));
        }
    }

    /// There is something to be done that should not wait.
    pub(crate) fn jobs_are_due(&mut self, now: Mono) {
        self.jobs_at = Some(now);
    }

    /// Does a step of what was put off.
    fn jobs_due<S: StoreRead>(&mut self, step: &mut Step<'_, S>) -> Result<(), StoreError> {
        let now = step.now.mono;
        if self.jobs_at.is_none_or(|at| at > now) {
            return Ok(());
        }
        let turns = (self.jobs_turn..self.config.partitions).chain(0..self.jobs_turn);
        let Some(turn) = turns.into_iter().find(|id| self.partitions[usize::from(*id)].has_jobs()) else {
            self.jobs_at = None;
            return Ok(());
        };
        self.jobs_turn = (turn + 1) % self.config.partitions;
        let mut pause = self.config.tuning.job_pause_us;
        match self.partitions[usize::from(turn)].work(&mut step.txn, step.now.wall.0)? {
            partition::Step::Idle => pause = 0,
            partition::Step::Worked => {}
            partition::Step::Own(_) if self.stopped || !self.incarnation.is_settled() => {
                pause = UNSETTLED_PAUSE_US
            }
            partition::Step::Own(own) => {
                let (clock, wall) = (&mut self.clock, step.now.wall);
                let made =
                    self.partitions[usize::from(turn)]
                        .commit_own(&mut step.txn, own, wall.0, || clock.tick(wall))?;
                if let Some(applied) = made {
                    self.committed(step, PartitionId(turn), &applied);
                }
            }
        }
        self.jobs_at = Some(now.plus_us(pause));
        Ok(())
    }

    /// A node that is alone has nobody to compare its rows with.
    fn hidden_due<S: StoreRead>(&mut self, step: &mut Step<'_, S>) {
        let now = step.now.mono;
        if self.hidden_at > now || !self.config.members.is_empty() {
            return;
        }
        self.hidden_at = now.plus_us(HIDDEN_INTERVAL_US);
        self.partition_ids().for_each(|id| self.forget_hidden(step.now, id, None));
    }

    /// Has what is hidden of documents forgotten where all members have applied what hid it. Only just after this node's rows were compared
    /// with a peer's: what needs something hidden may be lost here and not elsewhere, and forgetting is a commit, for all.
    pub(crate) fn forget_hidden(&mut self, now: Now, id: PartitionId, except: Option<Watch>) {
        if self.partitions[usize::from(id.0)].has_hidden()
            && let Some(stable) = self.stable(id)
        {
            self.partitions[usize::from(id.0)].forget_hidden(stable, except);
            self.jobs_may_be_due(now, id);
        }
    }

    /// What every member is known to have applied of a partition, if this node has applied all that they have told: then nothing is on its
    /// way that a member made before.
    fn stable(&self, id: PartitionId) -> Option<VersionVector> {
        let own = self.context(id);
        let mut stable = own.clone();
        for member in &self.config.members {
            let known = self.peers.get(member)?.known.get(&id)?;
            if !own.covers_all(known) {
                return None;
            }
            stable.meet(known);
        }
        Some(stable)
    }

    /// Looks for records whose time has come.
    fn expiries_due<S: StoreRead>(&mut self, step: &mut Step<'_, S>) -> Result<(), StoreError> {
        let now = step.now.mono;
        if self.expiries_at > now || !self.has_expiries() {
            return Ok(());
        }
        self.expiries_at = now.plus_us(EXPIRIES_INTERVAL_US);
        for id in 0..self.config.partitions {
            self.partitions[usize::from(id)].due(&step.txn, step.now.wall.0)?;
            self.jobs_may_be_due(step.now, PartitionId(id));
        }
        Ok(())
    }

    fn has_hidden(&self) -> bool {
        self.config.members.is_empty() && self.partitions.iter().any(Partition::has_hidden)
    }

    fn has_expiries(&self) -> bool {
        self.partitions.iter().any(Partition::has_expiries)
    }

    /// Forgets idempotency keys whose window has ended.
    fn requests_due<S: StoreRead>(&mut self, step: &mut Step<'_, S>) -> Result<(), StoreError> {
        let now = step.now.mono;
        if self.requests_at > now {
            return Ok(());
        }
        let oldest_ms = self.oldest_request_ms(step.now);
        let more = requests::expire(&mut step.txn, oldest_ms, REQUESTS_STEP)?;
        self.requests_at =
            now.plus_us(if more { self.config.tuning.job_pause_us } else { REQUESTS_INTERVAL_US });
        Ok(())
    }

    /// Takes deltas of a peer; `Err` in the result says why the peer's bytes are refused.
    pub(crate) fn receive<S: StoreRead>(
        &mut self,
        step: &mut Step<'_, S>,
        id: PartitionId,
        deltas: Vec<EncodedDelta>,
    ) -> Result<Result<(), String>, StoreError> {
        let mut writers = BTreeSet::new();
        let mut outcome = Ok(());
        for encoded in deltas {
            outcome = self.receive_one(step, id, encoded, &mut writers)?;
            if outcome.is_err() {
                break;
            }
        }
        if let Some(writer) = writers.pop_first() {
            self.write_clock(step);
            self.catch_up.repair_alarmed.remove(&id);
            self.context_changed(step.now.mono, id, writers.is_empty().then_some(writer));
            self.review_lacks(step.now.mono, id);
            self.jobs_may_be_due(step.now, id);
        }
        Ok(outcome)
    }

    fn receive_one<S: StoreRead>(
        &mut self,
        step: &mut Step<'_, S>,
        id: PartitionId,
        encoded: EncodedDelta,
        writers: &mut BTreeSet<ReplicaId>,
    ) -> Result<Result<(), String>, StoreError> {
        let refused = |error: CodecError| Ok(Err(format!("a delta of partition {id} is refused: {error}")));
        let dots = match encoded.dots() {
            Ok(dots) => dots,
            Err(error) => return refused(error),
        };
        for dot in dots.last_dots() {
            self.check_own(step, id, dot)?;
        }
        let room = self.config.tuning.pending_bytes_max.saturating_sub(self.pending_bytes);
        match self.partitions[usize::from(id.0)].passes_over(&dots, encoded.as_bytes().len(), room) {
            Some(Received::Dropped) => {
                step.outputs.push(Output::Alarm(Alarm::PendingFull { partition: id }));
                return Ok(Ok(()));
            }
            Some(_) => return Ok(Ok(())),
            None => {}
        }
        let delta = match Delta::decode(&encoded) {
            Ok(delta) => delta,
            Err(error) => return refused(error),
        };
        let home = |record: &RecordDelta| record.record.partition(self.config.partitions);
        if delta.records.iter().any(|record| home(record) != id) {
            return Ok(Err(format!("delta {:?} does not belong to partition {id}", delta.dots)));
        }
        // Who has seen a commit of this replica proves that it was made.
        let own = self.replica();
        let seen = Dot { replica: own, counter: delta.deps.get(own) };
        self.check_own(step, id, seen)?;
        let times = (step.now.wall.0, self.oldest_request_ms(step.now));
        let partition = &mut self.partitions[usize::from(id.0)];
        let before = partition.pending_bytes();
        let received = partition.receive(&mut step.txn, delta, encoded, room, times)?;
        self.pending_bytes = self.pending_bytes + partition.pending_bytes() - before;
        match received {
            Received::Applied(all) => {
                writers.extend(all.iter().flat_map(|it| it.dots.last_dots()).map(|dot| dot.replica));
                all.iter().for_each(|applied| self.applied_remote(step, id, applied));
            }
            Received::Dropped => step.outputs.push(Output::Alarm(Alarm::PendingFull { partition: id })),
            Received::Refused(error) => return refused(error),
            Received::Duplicate | Received::Waits | Received::OutOfOrder => {}
        }
        Ok(Ok(()))
    }

    pub(crate) fn applied_remote<S: StoreRead>(
        &mut self,
        step: &mut Step<'_, S>,
        id: PartitionId,
        applied: &Applied,
    ) {
        // Of an interval, one of those who may have written the stamp.
        let writer = applied.dots.last_dots().next().map(|dot| dot.replica);
        let several = applied.dots.only().is_none();
        self.follow_clock(step, applied.hlc, several, writer);
        self.push_applied(step, id, applied);
        self.log_grew(step.now.mono, applied);
    }

    /// A stamp came, or the greatest of several, maybe of this writer.
    pub(crate) fn follow_clock<S: StoreRead>(
        &mut self,
        step: &mut Step<'_, S>,
        hlc: Hlc,
        several: bool,
        writer: Option<ReplicaId>,
    ) {
        let (clock, wall) = (&mut self.clock, step.now.wall);
        let alarm = if several { clock.observe_several(hlc, wall) } else { clock.observe(hlc, wall) };
        if let Some(alarm) = alarm {
            let (replica, ahead_ms) = (writer.unwrap_or(ReplicaId(0)), alarm.ahead_ms);
            step.outputs.push(Output::Alarm(Alarm::ClockDrift { replica, ahead_ms }));
        }
    }

    pub(crate) fn write_clock<S: StoreRead>(&self, step: &mut Step<'_, S>) {
        step.txn.put(Family::Meta, keys::CLOCK.to_vec(), codec::encode(CLOCK_VERSION, &self.clock.last()));
    }

    fn input<S: StoreRead>(&mut self, step: &mut Step<'_, S>, input: Input) -> Result<(), StoreError> {
        match input {
            Input::Commit { request, .. } | Input::Stop { request } if self.stopped => {
                step.outputs.push(Output::Reply { request, reply: Reply::Stopping });
            }
            Input::Commit { request, writes, terms } => {
                let held_back = self.hold_back(step, Waiting { request, writes, terms })?;
                if let Some(Waiting { request, writes, terms }) = held_back {
                    let reply = self.commit(step, &writes, &terms)?;
                    step.outputs.push(Output::Reply { request, reply });
                }
            }
            Input::Count { record, field, ty } => {
                let id = record.partition(self.config.partitions);
                self.partitions[usize::from(id.0)].count(&mut step.txn, &record, &field, ty)?;
                self.jobs_may_be_due(step.now, id);
            }
            Input::Stop { request } => {
                self.stop(step)?;
                step.outputs.push(Output::Reply { request, reply: Reply::Stopping });
            }
            Input::Status { request } => {
                let reply = Reply::Status(Box::new(self.status()));
                step.outputs.push(Output::Reply { request, reply });
            }
            Input::Up { peer, link, wire } => self.link_up(step, peer, link, wire),
            Input::Down { peer, link } => self.link_down(step.now.mono, &peer, link),
            Input::Frame { peer, link, bytes } => self.frame(step, &peer, link, &bytes)?,
            Input::Read { reader, found } => self.read_done(step, reader, *found)?,
            Input::ReadFailed { error } => return Err(error),
        }
        Ok(())
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
        self.began(now.mono);
        let mut step = Step::new(now, store, &mut out.batch, &mut out.outputs, &self.settlings);
        self.input(&mut step, input)?;
        self.settlings = Arc::clone(step.txn.settlings());
        Ok(())
    }

    fn next_deadline(&self) -> Option<Mono> {
        let peers = self.peers.values().filter_map(Peer::next_deadline).min();
        let others = [
            self.next_catch_up_deadline(),
            self.incarnation.deadline(),
            self.jobs_at,
            self.has_expiries().then_some(self.expiries_at),
            self.has_hidden().then_some(self.hidden_at),
            self.repairs.deadline(self.config.tuning.repair_window_bytes),
            self.scrubs.deadline(self.repairs.read_at()),
            Some(self.requests_at),
            Some(self.retention.deadline()),
        ];
        peers.into_iter().chain(others.into_iter().flatten()).min()
    }

    fn handle_timeout(
        &mut self,
        now: Now,
        store: &impl StoreRead,
        out: &mut Effects<Output>,
    ) -> Result<(), StoreError> {
        let mut step = Step::new(now, store, &mut out.batch, &mut out.outputs, &self.settlings);
        self.began(now.mono);
        self.incarnation_due(&mut step)?;
        self.tell_contexts_due(&mut step);
        self.push_due(&mut step)?;
        self.ask_due(&mut step);
        self.answers_due(&mut step)?;
        self.repairs_due(&mut step)?;
        self.expiries_due(&mut step)?;
        self.hidden_due(&mut step);
        self.jobs_due(&mut step)?;
        self.requests_due(&mut step)?;
        self.retention_due(&mut step)?;
        self.settlings = Arc::clone(step.txn.settlings());
        Ok(())
    }
}

impl<'a, S: StoreRead> Step<'a, S> {
    fn new(
        now: Now,
        store: &'a S,
        batch: &'a mut Batch,
        outputs: &'a mut Vec<Output>,
        settlings: &Arc<Settlings>,
    ) -> Self {
        Self { now, txn: Txn::with(store, batch, Arc::clone(settlings)), outputs }
    }

    pub(crate) fn send(&mut self, peer: &str, place: Place, message: Message) {
        let Place { link, wire } = place;
        self.outputs.push(Output::Send { peer: peer.to_string(), link, wire, message });
    }

    pub(crate) fn close(&mut self, peer: &str, link: LinkId, reason: String) {
        self.outputs.push(Output::Close { peer: peer.to_string(), link, reason });
    }
}
