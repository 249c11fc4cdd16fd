//! One hash partition of one node: the machine that turns operations and peers' deltas into rows, log and
//! context.
//!
//! Invariants, each held by every batch that leaves this module:
//!
//! - *Own counters are contiguous.* A commit takes the counter after the last one of this replica, in the
//!   batch that writes its rows, its log entry and the context that covers it.
//! - *Causal application.* A delta is applied when its origin's previous delta and all its dependencies are:
//!   once, whole, in one batch with its log entry and the context. What waits is not in the context.
//! - *Rows are a function of the deltas applied.* A row is put by its origin's delta, in the order of that
//!   origin's counters; a kill or clear takes only dots in its past, which are applied before it. So deltas
//!   that did not see each other commute, and equal contexts mean equal rows, byte for byte.
//! - *Nothing from the future.* A delta whose kills or clears name dots that its dependencies do not cover is refused:
//!   its origin cannot have seen them, and what it would remove depended on the order of arrival.
//! - *Bounded waiting.* Deltas that wait are held as long as there is room; beyond it they are dropped, to be sent
//!   again. A delta that can be applied is never dropped, so the least missing one in causal order always makes
//!   progress.

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};

use bincode::{Decode, Encode};

use crate::codec::{self, CodecError};
use crate::commit::{self, EvaluateError};
use crate::context::{Dot, VersionVector};
use crate::delta::{Clear, Delta, EncodedDelta, FieldDelta, MAX_DELTA_BYTES, RecordDelta};
use crate::ids::{PartitionId, ReplicaId};
use crate::keys;
use crate::op::{Limits, Reason, Refusal, Write};
use crate::row::RowValue;
use crate::store::{Family, StoreError, StoreRead, Txn};
use crate::time::Hlc;

/// What a delta that waits costs beyond its bytes.
const PENDING_OVERHEAD_BYTES: usize = 256;
/// A delta of at most this size is taken to be readable by peers without trying.
const DELTA_BYTES_TRUSTED: usize = 256 * 1024;

/// The context is written into the log after every so many entries, unless the partition was begun with another
/// number. Fixed for the life of a data directory.
pub const CHECKPOINT_ENTRIES: u64 = 1024;

const META_VERSION: u8 = 1;
const CHECKPOINT_VERSION: u8 = 1;
const KEY_MARK: &[u8] = &[1];

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
    meta: PartitionMeta,
    /// Entries of the context that changed since the last own delta: the next one's dependencies.
    news: VersionVector,
    pending: BTreeMap<Dot, Pending>,
    pending_bytes: usize,
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
    /// The commit.
    pub dot: Dot,
    /// Its stamp.
    pub hlc: Hlc,
    /// Its bytes.
    pub encoded: EncodedDelta,
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
    /// No correct node makes such a delta.
    Refused(CodecError),
}

impl Partition {
    /// Reads the partition's state. Dependencies of its next own delta are then all that it has: a superset
    /// of what changed since the last one.
    pub fn open(store: &impl StoreRead, id: PartitionId, replica: ReplicaId) -> Result<Self, StoreError> {
        Self::open_with(store, id, replica, CHECKPOINT_ENTRIES)
    }

    /// The same, with the interval of checkpoints (at least 1) that a partition without entries is to have.
    pub fn open_with(
        store: &impl StoreRead,
        id: PartitionId,
        replica: ReplicaId,
        checkpoint_entries: u64,
    ) -> Result<Self, StoreError> {
        let begun = read_meta(store, id)?;
        let meta = begun.unwrap_or(PartitionMeta {
            context: VersionVector::new(),
            log_last: 0,
            checkpoint_entries: checkpoint_entries.max(1),
        });
        let mut news = meta.context.clone();
        news.remove(replica);
        Ok(Self { id, replica, meta, news, pending: BTreeMap::new(), pending_bytes: 0 })
    }

    /// What is applied, the uncommitted batch included.
    pub fn context(&self) -> &VersionVector {
        &self.meta.context
    }

    /// The counter of the last own commit.
    pub fn own_counter(&self) -> u64 {
        self.meta.context.get(self.replica)
    }

    /// The index of the last log entry, 0 if there is none.
    pub fn log_last(&self) -> u64 {
        self.meta.log_last
    }

    /// Bytes of deltas that wait for others.
    pub fn pending_bytes(&self) -> usize {
        self.pending_bytes
    }

    /// An index before which every entry is covered: the first entry after the last checkpoint whose context satisfies
    /// the condition, which must hold for a prefix of the log. A binary search; nothing is remembered.
    pub fn log_position(
        &self,
        store: &impl StoreRead,
        covered: impl Fn(&VersionVector) -> bool,
    ) -> Result<u64, StoreError> {
        let every = self.meta.checkpoint_entries;
        let (mut below, mut above) = (0, self.meta.log_last / every + 1);
        while above - below > 1 {
            let middle = below.midpoint(above);
            let bytes = store.get(Family::Log, &keys::log_checkpoint(self.id, middle * every))?;
            let bytes = bytes
                .ok_or_else(|| StoreError::Inconsistent(format!("log checkpoint {middle} is missing")))?;
            let context =
                codec::decode(CHECKPOINT_VERSION, &bytes).map_err(StoreError::damaged("log checkpoint"))?;
            if covered(&context) { below = middle } else { above = middle }
        }
        Ok(below * every + 1)
    }

    /// Commits a client's writes, all of them records of this partition, atomically. `stamp` is asked for a
    /// stamp only if something changes; `None` comes back if nothing does.
    pub fn commit<S: StoreRead>(
        &mut self,
        txn: &mut Txn<'_, S>,
        writes: &[Write],
        limits: &Limits,
        stamp: impl FnOnce() -> Hlc,
    ) -> Result<Option<Applied>, CommitError> {
        let dot = Dot { replica: self.replica, counter: self.own_counter() + 1 };
        let mut records: Vec<RecordDelta> = Vec::new();
        for (write, asked) in writes.iter().enumerate() {
            let refused = |refusal| CommitError::Refused { write, refusal };
            if writes[..write].iter().any(|earlier| earlier.record == asked.record) {
                return Err(CommitError::RecordTwice { write });
            }
            match commit::evaluate(txn, self.id, asked, dot, &self.meta.context, limits) {
                Ok(record) => records.extend(record),
                Err(EvaluateError::Refused(refusal)) => return Err(refused(refusal)),
                Err(EvaluateError::Store(error)) => return Err(error.into()),
            }
        }
        if records.is_empty() {
            return Ok(None);
        }
        let delta = Delta { dot, hlc: stamp(), deps: self.news.clone(), records };
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
        Ok(Some(self.apply(txn, &delta, encoded)?))
    }

    /// Takes a peer's delta, already decoded and checked; `room` is how many bytes more may wait.
    pub fn receive<S: StoreRead>(
        &mut self,
        txn: &mut Txn<'_, S>,
        delta: Delta,
        encoded: EncodedDelta,
        room: usize,
    ) -> Result<Received, StoreError> {
        if self.meta.context.covers(delta.dot) {
            return Ok(Received::Duplicate);
        }
        if !self.is_applicable(delta.dot, &delta.deps) {
            return Ok(self.wait(delta, encoded, room));
        }
        if let Err(error) = self.check_past(&delta) {
            return Ok(Received::Refused(error));
        }
        self.take_pending(delta.dot);
        let mut applied = vec![self.apply_remote(txn, &delta, encoded)?];
        // Each round takes at least one out, so this ends with what is pending.
        while let Some(next) = self.next_applicable() {
            let Some(pending) = self.take_pending(next) else { break };
            let delta =
                Delta::decode(&pending.encoded).and_then(|delta| self.check_past(&delta).map(|()| delta));
            // What is refused now is forgotten; when it comes again, its sender is told.
            if let Ok(delta) = delta {
                applied.push(self.apply_remote(txn, &delta, pending.encoded)?);
            }
        }
        Ok(Received::Applied(applied))
    }

    fn is_applicable(&self, dot: Dot, deps: &VersionVector) -> bool {
        let context = &self.meta.context;
        dot.counter.checked_sub(1) == Some(context.get(dot.replica)) && context.covers_all(deps)
    }

    /// Refuses a delta, next to be applied, that takes what its origin cannot have seen.
    fn check_past(&self, delta: &Delta) -> Result<(), CodecError> {
        let context = &self.meta.context;
        let mut kills = delta.records.iter().flat_map(|record| &record.fields).flat_map(|field| &field.kills);
        let mut clears = delta.records.iter().filter_map(|record| record.clear.as_ref());
        if kills.all(|kill| context.covers(kill.dot)) && clears.all(|clear| context.covers_all(&clear.seen)) {
            return Ok(());
        }
        Err(CodecError::Malformed(format!("delta {} takes what it cannot have seen", delta.dot)))
    }

    /// Only the next of each origin can be applicable.
    fn next_applicable(&self) -> Option<Dot> {
        let mut after = Bound::Unbounded;
        while let Some((first, _)) = self.pending.range((after, Bound::Unbounded)).next() {
            let replica = first.replica;
            let reached = self.meta.context.get(replica);
            let next = reached.checked_add(1).map(|counter| Dot { replica, counter });
            if let Some(next) = next
                && self.pending.get(&next).is_some_and(|pending| self.is_applicable(next, &pending.deps))
            {
                return Some(next);
            }
            after = Bound::Excluded(Dot { replica, counter: u64::MAX });
        }
        None
    }

    fn wait(&mut self, delta: Delta, encoded: EncodedDelta, room: usize) -> Received {
        if self.pending.contains_key(&delta.dot) {
            return Received::Waits;
        }
        let pending = Pending { deps: delta.deps, encoded };
        if pending.bytes() > room {
            return Received::Dropped;
        }
        self.pending_bytes += pending.bytes();
        self.pending.insert(delta.dot, pending);
        Received::Waits
    }

    fn take_pending(&mut self, dot: Dot) -> Option<Pending> {
        let taken = self.pending.remove(&dot)?;
        self.pending_bytes -= taken.bytes();
        Some(taken)
    }

    fn apply_remote<S: StoreRead>(
        &mut self,
        txn: &mut Txn<'_, S>,
        delta: &Delta,
        encoded: EncodedDelta,
    ) -> Result<Applied, StoreError> {
        self.news.advance(delta.dot);
        self.apply(txn, delta, encoded)
    }

    /// Applies a delta that is next: rows, marks, log, context.
    fn apply<S: StoreRead>(
        &mut self,
        txn: &mut Txn<'_, S>,
        delta: &Delta,
        encoded: EncodedDelta,
    ) -> Result<Applied, StoreError> {
        assert!(
            self.is_applicable(delta.dot, &delta.deps),
            "deltas are applied in causal order: {} is not next",
            delta.dot
        );
        for record in &delta.records {
            apply_record(txn, self.id, record, delta.dot, delta.hlc)?;
        }
        self.meta.context.advance(delta.dot);
        self.meta.log_last += 1;
        let index = self.meta.log_last;
        txn.put(Family::Log, keys::log_entry(self.id, index), encoded.as_bytes().to_vec());
        if index.is_multiple_of(self.meta.checkpoint_entries) {
            let context = codec::encode(CHECKPOINT_VERSION, &self.meta.context);
            txn.put(Family::Log, keys::log_checkpoint(self.id, index), context);
        }
        txn.put(Family::Meta, keys::partition_meta(self.id), codec::encode(META_VERSION, &self.meta));
        Ok(Applied { index, dot: delta.dot, hlc: delta.hlc, encoded })
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
    /// A commit without writes.
    #[error("the commit has no writes")]
    Empty,
    /// A commit is atomic within one partition. Nothing changed.
    #[error("write {write} belongs to another partition than the first (give the keys one tag in braces)")]
    OtherPartition {
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

/// A log entry found by [`read_log`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEntry {
    /// Its index.
    pub index: u64,
    /// The delta's dot.
    pub dot: Dot,
    /// The delta's bytes.
    pub encoded: EncodedDelta,
}

/// Visits log entries from an index on, in the order of application.
pub fn read_log(
    store: &impl StoreRead,
    id: PartitionId,
    from: u64,
    mut visit: impl FnMut(LogEntry) -> ControlFlow<()>,
) -> Result<(), StoreError> {
    let mut outcome = Ok(());
    let (first, end) = (keys::log_entry(id, from), keys::after_prefix(&keys::log_entry(id, u64::MAX)));
    store.scan(Family::Log, &first, &end, &mut |key, value| {
        let encoded = EncodedDelta::from_bytes(value);
        let entry = keys::log_index(key).and_then(|index| Ok((index, encoded.dot()?)));
        match entry {
            Ok((index, dot)) => visit(LogEntry { index, dot, encoded }),
            Err(error) => {
                outcome = Err(StoreError::damaged("log")(error));
                ControlFlow::Break(())
            }
        }
    })?;
    outcome
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

fn apply_record<S: StoreRead>(
    txn: &mut Txn<'_, S>,
    partition: PartitionId,
    delta: &RecordDelta,
    dot: Dot,
    hlc: Hlc,
) -> Result<(), StoreError> {
    let prefix = keys::record_prefix(partition, &delta.record);
    let mut removed = false;
    if let Some(clear) = &delta.clear {
        removed |= apply_clear(txn, &prefix, clear)?;
    }
    for field in &delta.fields {
        removed |= apply_kills(txn, &prefix, field)?;
    }
    let mut wrote = false;
    for field in &delta.fields {
        for row in &field.rows {
            let key = keys::row_key(&prefix, &field.field, field.ty, &row.slot, dot);
            let value = RowValue { counter: dot.counter, hlc, payload: row.payload.clone() };
            txn.put(Family::Rows, key, value.encode());
            wrote = true;
        }
    }
    let mark = keys::key_mark(&delta.record);
    if wrote {
        if txn.get(Family::Keys, &mark)?.is_none() {
            txn.put(Family::Keys, mark, KEY_MARK.to_vec());
        }
    } else if removed && txn.first(Family::Rows, &prefix, &keys::after_prefix(&prefix))?.is_none() {
        txn.delete(Family::Keys, mark);
    }
    Ok(())
}

fn apply_clear<S: StoreRead>(txn: &mut Txn<'_, S>, prefix: &[u8], clear: &Clear) -> Result<bool, StoreError> {
    let ranges = match &clear.fields {
        Some(fields) => fields.iter().map(|field| keys::field_prefix(prefix, field)).collect(),
        None => vec![prefix.to_vec()],
    };
    let mut covered = Vec::new();
    let mut outcome = Ok(());
    for range in ranges {
        txn.scan_prefix(Family::Rows, &range, &mut |key, value| {
            match covered_by(prefix, key, value, &clear.seen) {
                Ok(true) => covered.push(key.to_vec()),
                Ok(false) => {}
                Err(error) => {
                    outcome = Err(StoreError::damaged("rows")(error));
                    return ControlFlow::Break(());
                }
            }
            ControlFlow::Continue(())
        })?;
    }
    outcome?;
    let removed = !covered.is_empty();
    covered.into_iter().for_each(|key| txn.delete(Family::Rows, key));
    Ok(removed)
}

fn covered_by(prefix: &[u8], key: &[u8], value: &[u8], seen: &VersionVector) -> Result<bool, CodecError> {
    let (_, ty, _) = keys::parse_field(prefix, key)?;
    Ok(!ty.holds_sums() && seen.covers(keys::parse_row(prefix, key, value)?.dot))
}

fn apply_kills<S: StoreRead>(
    txn: &mut Txn<'_, S>,
    prefix: &[u8],
    delta: &FieldDelta,
) -> Result<bool, StoreError> {
    let mut removed = false;
    for kill in &delta.kills {
        let key = keys::row_key(prefix, &delta.field, delta.ty, &kill.slot, kill.dot);
        let Some(value) = txn.get(Family::Rows, &key)? else { continue };
        let row = RowValue::decode(&value).map_err(StoreError::damaged("rows"))?;
        if row.counter <= kill.dot.counter {
            txn.delete(Family::Rows, key);
            removed = true;
        }
    }
    Ok(removed)
}
