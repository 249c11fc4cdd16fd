//! One hash partition of one node: the machine that turns operations and peers' deltas into rows, log and
//! context.
//!
//! Invariants, each held by every batch that leaves this module:
//!
//! - *Own counters are contiguous.* A commit takes the counter after the last one of this replica, in the
//!   batch that writes its rows, its log entry and the context that covers it.
//! - *Causal application.* A delta is applied when the previous deltas of its origins and all its dependencies are:
//!   once, whole, in one batch with its log entry and the context. What waits is not in the context. An interval of which
//!   some commits are applied already adds the others.
//! - *Rows are a function of the commits applied.* A row is put by its origin's delta, in the order of that
//!   origin's counters; a kill or clear takes only dots in its past, which are applied before it. So deltas
//!   that did not see each other commute, and equal contexts mean equal live rows, byte for byte. (Rows that a clear took
//!   may be there still, dead and unswept: see [`crate::fields`].)
//! - *Nothing from the future.* A delta whose kills or clears name dots that its dependencies do not cover is refused:
//!   its origin cannot have seen them, and what it would remove depended on the order of arrival.
//! - *Bounded waiting.* Deltas that wait are held as long as there is room; beyond it they are dropped, to be sent
//!   again. A delta that can be applied is never dropped, so the least missing one in causal order always makes
//!   progress. Intervals do not wait: a run of a log is causally closed given what its receiver said it has, so one that
//!   cannot be applied follows one that was lost, and comes again. Hence no two wait for each other in a circle.

mod apply;
mod derived;
mod expiries;
mod hidden;
mod log;
mod repair;
mod scrub;
mod sweep;

use std::collections::BTreeMap;
use std::ops::Bound;

use bincode::{Decode, Encode};

use crate::codec::{self, CodecError};
use crate::commit::{self, At, EvaluateError, Evaluated, Found};
use crate::context::{Dot, DotRanges, REPLICAS_MAX, VersionVector};
use crate::delta::{Delta, EncodedDelta, MAX_DELTA_BYTES, RecordDelta, Request};
use crate::ids::{PartitionId, ReplicaId};
use crate::keys;
use crate::op::{Limits, Reason, Refusal, Terms, Write};
use crate::requests::{self, Known};
use crate::store::{Family, StoreError, StoreRead, Txn};
use crate::time::Hlc;

pub use expiries::Sweep;
pub use hidden::Forget;
pub use log::{LogEntry, LogFloor, log_from, read_log};
pub use repair::Checked;
pub(crate) use scrub::read_mended;
pub use scrub::{Reinstated, Watch};
pub use sweep::{Fold, Own, Step};

pub(crate) use expiries::{may_hide, read as read_expiry};

use expiries::Look;
use hidden::Walk;
use log::Log;

/// What a delta that waits costs beyond its bytes.
const PENDING_OVERHEAD_BYTES: usize = 256;
/// Deltas of a partition that may wait: after each application the first of every origin is looked at.
const PENDING_DELTAS_MAX: usize = 16_384;
/// A delta of at most this size is taken to be readable by peers without trying.
const DELTA_BYTES_TRUSTED: usize = 256 * 1024;

/// The context is written into the log after every so many entries, unless the partition was begun with another
/// number. Fixed for the life of a data directory.
pub const CHECKPOINT_ENTRIES: u64 = 1024;
/// It is written too once the entries since the last one have this many bytes.
pub const CHECKPOINT_BYTES: u64 = 1024 * 1024;

const META_VERSION: u8 = 1;

/// Sizes of a partition's work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sizes {
    /// The interval of checkpoints in the log of a partition without entries, at least 1.
    pub checkpoint_entries: u64,
    /// Bytes of entries after which a checkpoint is written too; may change at any start.
    pub checkpoint_bytes: u64,
    /// Rows of a field that a clear removes at once if there are no more.
    pub clear_rows: usize,
    /// Rows that one step of a sweep looks at, at least 1.
    pub sweep_rows: usize,
    /// How long after its time an expired record is swept at the earliest, in milliseconds; each node waits one to four times as
    /// long.
    pub sweep_after_ms: u64,
    /// How long after a clear of a document the changes that it hid are kept at least, in milliseconds.
    pub forget_after_ms: u64,
}

impl Default for Sizes {
    fn default() -> Self {
        Self {
            checkpoint_entries: CHECKPOINT_ENTRIES,
            checkpoint_bytes: CHECKPOINT_BYTES,
            clear_rows: 256,
            sweep_rows: 1024,
            sweep_after_ms: 60_000,
            forget_after_ms: 24 * 60 * 60 * 1000,
        }
    }
}

/// The durable state of a partition besides rows and log.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
struct PartitionMeta {
    context: VersionVector,
    log_last: u64,
    checkpoint_entries: u64,
}

/// The machine of one partition.
#[derive(Debug)]
pub struct Partition {
    id: PartitionId,
    replica: ReplicaId,
    sizes: Sizes,
    meta: PartitionMeta,
    log: Log,
    /// Entries of the context that changed since the last own delta: the next one's dependencies.
    news: VersionVector,
    pending: BTreeMap<Dot, Pending>,
    pending_bytes: usize,
    has_jobs: bool,
    /// Whether some field may have a state: in most partitions none has.
    has_states: bool,
    /// Whether some record may have an expiry.
    has_expiries: bool,
    /// A due record that is being looked through.
    look: Option<Look>,
    /// Whether some document may have changes that are hidden.
    has_hidden: bool,
    /// A look through those.
    walk: Option<Walk>,
    /// Whether something may be staged.
    has_staged: bool,
    /// Where the next job is looked for.
    job_turn: Option<Vec<u8>>,
    /// While rows are compared with a peer's: what changes meanwhile.
    watch: Option<Watch>,
}

/// A delta that waits: decoded again when its time comes, since the decoded form is many times larger.
#[derive(Debug)]
struct Pending {
    deps: VersionVector,
    encoded: EncodedDelta,
}

/// A delta that was applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// Its place in the log.
    pub index: u64,
    /// The commits.
    pub dots: DotRanges,
    /// The greatest of their stamps.
    pub hlc: Hlc,
    /// Its bytes.
    pub encoded: EncodedDelta,
}

/// What became of a client's commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Committed {
    /// It was applied.
    Applied(Applied),
    /// There was nothing to change.
    Unchanged,
    /// It was made before, under the same idempotency key: the commit and its stamp, if it changed anything.
    Repeated(Option<(Dot, Hlc)>),
}

/// What became of a peer's delta.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Received {
    /// It was applied, and with it those that waited for it, in this order.
    Applied(Vec<Applied>),
    /// It had been applied before.
    Duplicate,
    /// It waits for what it depends on.
    Waits,
    /// It would have to wait and there is no room: it must be sent again.
    Dropped,
    /// An interval that does not continue what is here: it must be asked for again.
    OutOfOrder,
    /// No correct node makes such a delta.
    Refused(CodecError),
}

impl Partition {
    /// Reads the partition's state. Dependencies of its next own delta are then all that it has: a superset
    /// of what changed since the last one.
    pub fn open(store: &impl StoreRead, id: PartitionId, replica: ReplicaId) -> Result<Self, StoreError> {
        Self::open_with(store, id, replica, Sizes::default())
    }

    /// The same with other sizes.
    pub fn open_with(
        store: &impl StoreRead,
        id: PartitionId,
        replica: ReplicaId,
        sizes: Sizes,
    ) -> Result<Self, StoreError> {
        let begun = read_meta(store, id)?;
        let meta = begun.unwrap_or(PartitionMeta {
            context: VersionVector::new(),
            log_last: 0,
            checkpoint_entries: sizes.checkpoint_entries.max(1),
        });
        let mut news = meta.context.clone();
        news.remove(replica);
        let states = keys::partition_prefix(id);
        let log = Log::open(store, id, meta.log_last, meta.checkpoint_entries)?;
        let has_states = store.first(Family::Fields, &states, &keys::after_prefix(&states))?.is_some();
        let has_expiries = store.get(Family::Meta, &keys::has_expiries(id))?.is_some();
        let hidden = keys::hidden(&keys::partition_prefix(id));
        let has_hidden = store.first(Family::Meta, &hidden, &keys::after_prefix(&hidden))?.is_some();
        let has_staged = store.first(Family::Staged, &states, &keys::after_prefix(&states))?.is_some();
        Ok(Self {
            id,
            replica,
            sizes,
            meta,
            log,
            news,
            pending: BTreeMap::new(),
            pending_bytes: 0,
            has_jobs: true,
            has_states,
            has_expiries,
            look: None,
            has_hidden,
            walk: None,
            has_staged,
            job_turn: None,
            watch: None,
        })
    }

    /// Goes on under another replica id: a new incarnation of the node.
    pub fn reincarnate(&mut self, replica: ReplicaId) {
        self.replica = replica;
        self.news = self.meta.context.clone();
        self.news.remove(replica);
    }

    /// What is applied, the uncommitted batch included.
    pub fn context(&self) -> &VersionVector {
        &self.meta.context
    }

    /// The counter of the last own commit.
    pub fn own_counter(&self) -> u64 {
        self.meta.context.get(self.replica)
    }

    /// The counter of a replica's last commit that is here, applied or waiting.
    pub fn last_held(&self, replica: ReplicaId) -> u64 {
        let waiting = self.pending.range(..=Dot { replica, counter: u64::MAX }).next_back();
        let waiting = waiting.filter(|(dot, _)| dot.replica == replica).map_or(0, |(dot, _)| dot.counter);
        waiting.max(self.meta.context.get(replica))
    }

    /// Bytes of deltas that wait for others.
    pub fn pending_bytes(&self) -> usize {
        self.pending_bytes
    }

    /// Commits a client's writes, all of them records of this partition and of one namespace, atomically. `stamp` is asked
    /// for a stamp only if something changes. `oldest_ms` is the time before which idempotency keys no longer count, `now_ms`
    /// the node's.
    pub fn commit<S: StoreRead>(
        &mut self,
        txn: &mut Txn<'_, S>,
        writes: &[Write],
        terms: &Terms,
        limits: &Limits,
        times: (u64, u64),
        stamp: impl FnOnce() -> Hlc,
    ) -> Result<Committed, CommitError> {
        let (now_ms, oldest_ms) = times;
        let Some(namespace) = writes.first().map(|write| write.record.namespace.clone()) else {
            return Err(CommitError::Empty);
        };
        if let Some(id) = terms.request
            && let Some(known) =
                requests::find(txn, &namespace, &id.key, self.id, &self.meta.context, oldest_ms)?
        {
            return match known.asked == id.asked {
                true => Ok(Committed::Repeated(known.commit)),
                false => Err(CommitError::KeyReused),
            };
        }
        if terms.seen.as_ref().is_some_and(|seen| !seen.applied_by(&self.meta.context)) {
            return Err(CommitError::SeenTooMuch);
        }
        let dot = self.next_dot();
        let mut records: Vec<RecordDelta> = Vec::new();
        let mut found: Vec<Found> = Vec::new();
        for (write, asked) in writes.iter().enumerate() {
            let refused = |refusal| CommitError::Refused { write, refusal };
            if writes[..write].iter().any(|earlier| earlier.record == asked.record) {
                return Err(CommitError::RecordTwice { write });
            }
            match commit::evaluate(txn, self.at(dot, times), asked, terms, limits) {
                Ok(Evaluated { change: Some(record), found: of_record }) => {
                    records.push(record);
                    found.push(of_record);
                }
                Ok(Evaluated { change: None, .. }) => {}
                Err(EvaluateError::Refused(refusal)) => return Err(refused(refusal)),
                Err(EvaluateError::Store(error)) => return Err(error.into()),
            }
        }
        if records.is_empty() {
            if let Some(id) = terms.request {
                let known = Known::new(id, None, now_ms);
                requests::remember(txn, &namespace, &id.key, self.id, &known, &self.meta.context, oldest_ms)?;
            }
            return Ok(Committed::Unchanged);
        }
        let hlc = stamp();
        let requests = terms.request.map(|id| Request { namespace, id, dot, hlc });
        self.commit_records(txn, records, &found, requests.into_iter().collect(), hlc, times)
            .map(Committed::Applied)
    }

    /// Makes a commit of this node's own, if there is anything to change. `now_ms` is the node's time.
    pub fn commit_own<S: StoreRead>(
        &mut self,
        txn: &mut Txn<'_, S>,
        own: Own,
        now_ms: u64,
        stamp: impl FnOnce() -> Hlc,
    ) -> Result<Option<Applied>, StoreError> {
        let evaluated = match own {
            Own::Fold(Fold { record, field, members, jobs }) => {
                jobs.into_iter().for_each(|job| txn.delete(Family::Meta, job));
                commit::fold(txn, self.at(self.next_dot(), (now_ms, 0)), &record, &field, &members)?
            }
            Own::Sweep(sweep) => self.swept(txn, sweep, now_ms)?,
            Own::Forget(forget) => {
                let (at, rows_max) = (self.at(self.next_dot(), (now_ms, 0)), self.sizes.sweep_rows);
                let Forget { record, field, cleared, stable } = &forget;
                let evaluated = commit::forget(txn, at, record, field, (cleared, stable), rows_max)?;
                if evaluated.change.is_none() {
                    forget.in_vain(txn, self.id);
                }
                evaluated
            }
        };
        let Evaluated { change: Some(delta), found } = evaluated else { return Ok(None) };
        match self.commit_records(txn, vec![delta], &[found], Vec::new(), stamp(), (now_ms, 0)) {
            Ok(applied) => Ok(Some(applied)),
            Err(CommitError::Store(error)) => Err(error),
            Err(refused) => Err(StoreError::Inconsistent(format!("an own commit cannot be made: {refused}"))),
        }
    }

    /// `times` are the node's and that before which idempotency keys no longer count.
    fn at(&self, own: Dot, (now_ms, oldest_ms): (u64, u64)) -> At<'_> {
        let Self { id, has_states, has_expiries, .. } = *self;
        let context = &self.meta.context;
        At { partition: id, own, context, has_states, has_expiries, oldest_ms, now_ms }
    }

    fn next_dot(&self) -> Dot {
        Dot { replica: self.replica, counter: self.own_counter() + 1 }
    }

    /// Makes the next own commit of changed records.
    fn commit_records<S: StoreRead>(
        &mut self,
        txn: &mut Txn<'_, S>,
        mut records: Vec<RecordDelta>,
        known: &[Found],
        requests: Vec<Request>,
        hlc: Hlc,
        times: (u64, u64),
    ) -> Result<Applied, CommitError> {
        let rows = records.iter_mut().flat_map(|record| &mut record.fields).flat_map(|field| &mut field.rows);
        rows.for_each(|row| row.hlc = hlc);
        let dots = DotRanges::single(self.next_dot());
        let delta = Delta { dots, hlc, deps: self.news.clone(), requests, records };
        let encoded = delta.encode();
        let found = encoded.as_bytes().len();
        // What is accepted here must be readable everywhere. A small delta always is: the limits of decoding are
        // some fifty times larger, which is more than memory of any part can exceed its bytes.
        if found > DELTA_BYTES_TRUSTED && Delta::decode(&encoded).is_err() {
            let reason = match found > MAX_DELTA_BYTES {
                true => Reason::TooLarge { found, max: MAX_DELTA_BYTES },
                false => Reason::TooManyParts,
            };
            return Err(CommitError::Refused { write: 0, refusal: Refusal { op: 0, reason } });
        }
        self.news = VersionVector::new();
        Ok(self.apply(txn, &delta, encoded, known, times)?)
    }

    /// Takes a peer's delta, already decoded and checked; `room` is how many bytes more may wait, `times` the node's time and
    /// the one before which idempotency keys no longer count, in milliseconds since 1970.
    pub fn receive<S: StoreRead>(
        &mut self,
        txn: &mut Txn<'_, S>,
        delta: Delta,
        encoded: EncodedDelta,
        room: usize,
        times: (u64, u64),
    ) -> Result<Received, StoreError> {
        if delta.dots.covered_by(&self.meta.context) {
            return Ok(Received::Duplicate);
        }
        let context = &self.meta.context;
        let new = delta.dots.iter().filter(|range| context.get(range.replica) == 0).count();
        if context.len() + new > REPLICAS_MAX {
            // No context of that size can be read again.
            let what = format!("with delta {:?} there were more than {REPLICAS_MAX} replicas", delta.dots);
            return Ok(Received::Refused(CodecError::Malformed(what)));
        }
        if !self.is_applicable(&delta.dots, &delta.deps) {
            return Ok(match delta.dots.only() {
                Some(dot) => self.wait(dot, delta.deps, encoded, room),
                None => Received::OutOfOrder,
            });
        }
        if let Err(error) = self.check_past(&delta) {
            return Ok(Received::Refused(error));
        }
        let mut applied = vec![self.apply(txn, &delta, encoded, &[], times)?];
        applied.extend(self.apply_pending(txn, times)?);
        Ok(Received::Applied(applied))
    }

    /// Applies what waits and need not any more.
    fn apply_pending<S: StoreRead>(
        &mut self,
        txn: &mut Txn<'_, S>,
        times: (u64, u64),
    ) -> Result<Vec<Applied>, StoreError> {
        let mut applied = Vec::new();
        // Each round takes at least one out, so this ends with what is pending.
        while let Some(next) = self.next_pending() {
            let Some(pending) = self.take_pending(next) else { break };
            if self.meta.context.covers(next) {
                continue;
            }
            let delta =
                Delta::decode(&pending.encoded).and_then(|delta| self.check_past(&delta).map(|()| delta));
            // What is refused now is forgotten; when it comes again, its sender is told.
            if let Ok(delta) = delta {
                applied.push(self.apply(txn, &delta, pending.encoded, &[], times)?);
            }
        }
        Ok(applied)
    }

    /// What becomes of a delta of these commits whatever else it says, so that it need not be decoded: `None` if that is open.
    /// `bytes` is its size, `room` how many bytes more may wait.
    pub fn passes_over(&self, dots: &DotRanges, bytes: usize, room: usize) -> Option<Received> {
        let context = &self.meta.context;
        // What no correct node makes is decoded, and then refused.
        if dots.iter().any(|range| range.first == 0) {
            return None;
        }
        if dots.covered_by(context) {
            return Some(Received::Duplicate);
        }
        match dots.only() {
            _ if dots.continues(context) => None,
            None => Some(Received::OutOfOrder),
            Some(dot) if self.pending.contains_key(&dot) => Some(Received::Waits),
            Some(_) => {
                (bytes > room || self.pending.len() >= PENDING_DELTAS_MAX).then_some(Received::Dropped)
            }
        }
    }

    fn is_applicable(&self, dots: &DotRanges, deps: &VersionVector) -> bool {
        dots.continues(&self.meta.context) && self.meta.context.covers_all(deps)
    }

    /// Refuses a delta, next to be applied, that takes what its origins cannot have seen.
    fn check_past(&self, delta: &Delta) -> Result<(), CodecError> {
        let context = &self.meta.context;
        let mut kills = delta.records.iter().flat_map(|record| &record.fields).flat_map(|field| &field.kills);
        let clears = delta.records.iter().flat_map(|record| &record.clears);
        let mut cleared = clears.flat_map(|clear| clear.seen.iter());
        let single = delta.dots.only();
        let past = |dot: Dot| context.covers(dot) || (single.is_none() && delta.dots.contains(dot));
        if kills.all(|kill| context.covers(kill.dot)) && cleared.all(past) {
            return Ok(());
        }
        Err(CodecError::Malformed(format!("delta {:?} takes what it cannot have seen", delta.dots)))
    }

    /// A delta that waits and need not any more: it is applied, or can be. Only the first of each origin can be either.
    fn next_pending(&self) -> Option<Dot> {
        let mut after = Bound::Unbounded;
        while let Some((&first, pending)) = self.pending.range((after, Bound::Unbounded)).next() {
            if self.meta.context.covers(first) || self.is_applicable(&DotRanges::single(first), &pending.deps)
            {
                return Some(first);
            }
            after = Bound::Excluded(Dot { replica: first.replica, counter: u64::MAX });
        }
        None
    }

    fn wait(&mut self, dot: Dot, deps: VersionVector, encoded: EncodedDelta, room: usize) -> Received {
        if self.pending.contains_key(&dot) {
            return Received::Waits;
        }
        let pending = Pending { deps, encoded };
        if pending.bytes() > room || self.pending.len() >= PENDING_DELTAS_MAX {
            return Received::Dropped;
        }
        self.pending_bytes += pending.bytes();
        self.pending.insert(dot, pending);
        Received::Waits
    }

    fn take_pending(&mut self, dot: Dot) -> Option<Pending> {
        let taken = self.pending.remove(&dot)?;
        self.pending_bytes -= taken.bytes();
        Some(taken)
    }

    /// Applies a delta that is next: rows, marks, idempotency keys, log, context. `known` tells, as far as it goes, what was found
    /// of its records.
    fn apply<S: StoreRead>(
        &mut self,
        txn: &mut Txn<'_, S>,
        delta: &Delta,
        encoded: EncodedDelta,
        known: &[Found],
        (now_ms, oldest_ms): (u64, u64),
    ) -> Result<Applied, StoreError> {
        assert!(
            self.is_applicable(&delta.dots, &delta.deps),
            "deltas are applied in causal order: {:?} is not next",
            delta.dots
        );
        let place = apply::Place {
            partition: self.id,
            own: self.replica,
            before: &self.meta.context,
            clear_rows: self.sizes.clear_rows,
            has_states: self.has_states,
            has_expiries: self.has_expiries,
            known,
        };
        let left = apply::apply(txn, &place, delta)?;
        // What is hidden may have come after the look passed.
        self.look.take_if(|look| delta.records.iter().any(|record| look.is_of(&record.record)));
        if let Some(watch) = &mut self.watch {
            watch.touched(self.id, &delta.records);
        }
        self.has_jobs |= left.job;
        self.has_states |= left.state;
        self.has_expiries |= left.expiry;
        self.has_hidden |= left.hidden;
        for request in delta.requests.iter().filter(|request| !place.before.covers(request.dot)) {
            let Request { namespace, id, dot, hlc } = request;
            let known = Known::new(*id, Some((*dot, *hlc)), hlc.millis());
            requests::remember(txn, namespace, &id.key, self.id, &known, place.before, oldest_ms)?;
        }
        for dot in delta.dots.last_dots() {
            if dot.replica != self.replica && !self.meta.context.covers(dot) {
                self.news.advance(dot);
            }
            self.meta.context.advance(dot);
        }
        let index = self.append(txn, &encoded, now_ms);
        txn.put(Family::Meta, keys::partition_meta(self.id), codec::encode(META_VERSION, &self.meta));
        Ok(Applied { index, dots: delta.dots.clone(), hlc: delta.hlc, encoded })
    }
}

impl Pending {
    fn bytes(&self) -> usize {
        self.encoded.as_bytes().len() + self.deps.len() * size_of::<Dot>() + PENDING_OVERHEAD_BYTES
    }
}

/// Why a commit came to nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// The client asked for what cannot be. Nothing changed.
    #[error("write {write}, {refusal}")]
    Refused {
        /// The index of the write in the commit.
        write: usize,
        /// Why.
        refusal: Refusal,
    },
    /// The idempotency key was used for something else. Nothing changed.
    #[error("the idempotency key was used for another request: use a new key for each")]
    KeyReused,
    /// The client has seen what is not applied here: it has to wait. Nothing changed.
    #[error("the client has seen commits that this node has not applied yet")]
    SeenTooMuch,
    /// A commit without writes.
    #[error("the commit has no writes")]
    Empty,
    /// A commit is atomic within one partition. Nothing changed.
    #[error("write {write} belongs to another partition than the first (give the keys one tag in braces)")]
    OtherPartition {
        /// The index of the write.
        write: usize,
    },
    /// A commit belongs to one namespace. Nothing changed.
    #[error("write {write} belongs to another namespace than the first")]
    OtherNamespace {
        /// The index of the write.
        write: usize,
    },
    /// One commit names a record twice; its operations belong into one write. Nothing changed.
    #[error("write {write} names a record that an earlier write of the same commit names")]
    RecordTwice {
        /// The index of the later write.
        write: usize,
    },
    /// The store failed: the node stops.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The context that a partition has durably reached, as a reader of the store sees it.
pub fn stored_context(store: &impl StoreRead, id: PartitionId) -> Result<VersionVector, StoreError> {
    Ok(read_meta(store, id)?.map(|meta| meta.context).unwrap_or_default())
}

/// What is applied in a partition, and the index of its last log entry.
pub(crate) fn progress(store: &impl StoreRead, id: PartitionId) -> Result<(VersionVector, u64), StoreError> {
    Ok(read_meta(store, id)?.map(|meta| (meta.context, meta.log_last)).unwrap_or_default())
}

fn stored_log_last(store: &impl StoreRead, id: PartitionId) -> Result<u64, StoreError> {
    Ok(read_meta(store, id)?.map_or(0, |meta| meta.log_last))
}

fn read_meta(store: &impl StoreRead, id: PartitionId) -> Result<Option<PartitionMeta>, StoreError> {
    let Some(bytes) = store.get(Family::Meta, &keys::partition_meta(id))? else { return Ok(None) };
    let meta: PartitionMeta =
        codec::decode(META_VERSION, &bytes).map_err(StoreError::damaged("meta: partition"))?;
    if meta.checkpoint_entries == 0 {
        return Err(StoreError::Inconsistent(format!("partition {id} has no interval of checkpoints")));
    }
    Ok(Some(meta))
}
