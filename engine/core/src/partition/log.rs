//! The log of a partition: its entries, checkpoints and floor, and where a reader begins.
//!
//! Invariants:
//!
//! - *Entries are contiguous* from [`LogFloor::first`] to the last one. From [`LogFloor::whole_from`] on they hold every
//!   commit that was applied beyond [`LogFloor::floor`]: whoever has the floor is served completely from there.
//! - *The log is cut at checkpoints only.* A checkpoint says what was applied up to an entry and how many bytes all
//!   entries up to there have, so dropping an interval is a step of constant time that moves the floor.
//! - *What is below the floor is garbage*: nothing reads it, and whether and when it is removed changes nothing. The one
//!   checkpoint before the first entry is kept: it says where the entries begin.

use std::ops::ControlFlow;

use bincode::{Decode, Encode};

use super::Partition;
use crate::codec::{self, CodecError};
use crate::context::{DotRanges, VersionVector};
use crate::delta::EncodedDelta;
use crate::ids::PartitionId;
use crate::keys;
use crate::store::{Family, StoreError, StoreRead, Txn};

/// The format before this one: the context alone.
const CHECKPOINT_FORMAT_1: u8 = 1;
const CHECKPOINT_VERSION: u8 = 2;
const FLOOR_VERSION: u8 = 1;

/// Intervals that one call of [`Partition::truncate`] drops at most.
const TRUNCATE_INTERVALS_MAX: usize = 64;
/// Entries whose sizes stand for those of a log whose checkpoints do not tell them.
const SAMPLE_ENTRIES: u64 = 256;

/// From where on a log is there.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct LogFloor {
    /// The index of the first entry, at least 1; one more than the last if there is none.
    pub first: u64,
    /// The index, at least `first`, from which on the log holds every commit applied beyond `floor`.
    pub whole_from: u64,
    /// What was applied before the entry `whole_from`.
    pub floor: VersionVector,
}

impl LogFloor {
    /// That of a stored log.
    pub(crate) fn read(store: &impl StoreRead, id: PartitionId) -> Result<Self, StoreError> {
        match store.get(Family::Meta, &keys::log_floor(id))? {
            Some(bytes) => {
                codec::decode(FLOOR_VERSION, &bytes).map_err(StoreError::damaged("meta: log floor"))
            }
            None => Ok(Self::default()),
        }
    }
}

impl Default for LogFloor {
    fn default() -> Self {
        Self { first: 1, whole_from: 1, floor: VersionVector::new() }
    }
}

/// What a checkpoint of the present format holds.
#[derive(Encode, Decode)]
struct Checkpoint2 {
    context: VersionVector,
    /// Bytes of all entries up to here, those that are dropped too.
    bytes: u64,
    /// When it was written, in milliseconds since 1970.
    written_ms: u64,
}

/// A checkpoint. One of format 1 has neither bytes nor a time.
struct Checkpoint {
    index: u64,
    context: VersionVector,
    bytes: Option<u64>,
    written_ms: Option<u64>,
}

impl Checkpoint {
    fn read(index: u64, bytes: &[u8]) -> Result<Self, CodecError> {
        if bytes.first() == Some(&CHECKPOINT_FORMAT_1) {
            let context = codec::decode(CHECKPOINT_FORMAT_1, bytes)?;
            return Ok(Self { index, context, bytes: None, written_ms: None });
        }
        let Checkpoint2 { context, bytes, written_ms } = codec::decode(CHECKPOINT_VERSION, bytes)?;
        Ok(Self { index, context, bytes: Some(bytes), written_ms: Some(written_ms) })
    }

    /// Its place, bytes and time. Bytes that it does not tell are taken to lie on the line from nothing to what the log
    /// has at an entry.
    fn mark(&self, at: (u64, u64)) -> Mark {
        let on_line = || share(self.index, at);
        Mark { index: self.index, bytes: self.bytes.unwrap_or_else(on_line), written_ms: self.written_ms }
    }
}

/// A checkpoint without its context.
#[derive(Debug, Clone, Copy)]
struct Mark {
    index: u64,
    bytes: u64,
    written_ms: Option<u64>,
}

/// What is known of a log without reading it.
#[derive(Debug)]
pub(super) struct Log {
    floor: LogFloor,
    /// Bytes of all entries, those that are dropped too.
    bytes: u64,
    /// Bytes of those that are dropped.
    dropped: u64,
    /// The last checkpoint.
    last: Mark,
    /// When the last entry was written; since the opening: when that was first asked for.
    written_ms: Option<u64>,
    /// The first checkpoint at or after the first entry: the end of the oldest whole interval.
    oldest: Option<Mark>,
    /// The time of the first checkpoint that tells one. What is older than that is taken to be as old.
    timed_ms: Option<u64>,
}

impl Log {
    /// Reads what is kept about a log, and at most one interval of its entries.
    pub(super) fn open(
        store: &impl StoreRead,
        id: PartitionId,
        last: u64,
        checkpoint_entries: u64,
    ) -> Result<Self, StoreError> {
        let floor = match store.get(Family::Meta, &keys::log_floor(id))? {
            Some(bytes) => {
                codec::decode(FLOOR_VERSION, &bytes).map_err(StoreError::damaged("meta: log floor"))?
            }
            None => LogFloor::default(),
        };
        let LogFloor { first, whole_from, .. } = floor;
        if first < 1 || whole_from < first || whole_from > last.saturating_add(1) {
            let what =
                format!("the log of partition {id} ends at {last} and begins at {first}, {whole_from}");
            return Err(StoreError::Inconsistent(what));
        }
        // A checkpoint is written when it is this far from the one before, at the latest.
        let mut newest = None;
        each_checkpoint(store, id, last.saturating_sub(checkpoint_entries), last, |checkpoint| {
            newest = Some(checkpoint);
            ControlFlow::Continue(())
        })?;
        let newest = match newest {
            Some(checkpoint) if checkpoint.bytes.is_none() => {
                let from = first.max(last.saturating_sub(SAMPLE_ENTRIES - 1));
                let sample = entry_bytes(store, id, from)?;
                checkpoint.mark((last + 1 - from, sample))
            }
            Some(checkpoint) => checkpoint.mark((1, 0)),
            None => Mark { index: 0, bytes: 0, written_ms: None },
        };
        let bytes = newest.bytes.saturating_add(entry_bytes(store, id, newest.index + 1)?);
        let dropped = match first {
            1 => 0,
            _ => checkpoint_before(store, id, first)?.mark((last, bytes)).bytes,
        };
        let mut log =
            Self { floor, bytes, dropped, last: newest, written_ms: None, oldest: None, timed_ms: None };
        log.find_oldest(store, id, last)?;
        if log.oldest.is_some_and(|oldest| oldest.written_ms.is_none()) {
            let untimed = last_checkpoint(store, id, first - 1, last, |it| it.written_ms.is_none())?;
            log.timed_ms = first_checkpoint(store, id, untimed + 1, last)?.and_then(|it| it.written_ms);
        }
        Ok(log)
    }

    fn find_oldest(&mut self, store: &impl StoreRead, id: PartitionId, last: u64) -> Result<(), StoreError> {
        let oldest = first_checkpoint(store, id, self.floor.first, last)?;
        self.oldest = oldest.map(|checkpoint| checkpoint.mark((last, self.bytes)));
        Ok(())
    }

    fn write_floor<S: StoreRead>(&self, txn: &mut Txn<'_, S>, id: PartitionId) {
        txn.put(Family::Meta, keys::log_floor(id), codec::encode(FLOOR_VERSION, &self.floor));
    }
}

impl Partition {
    /// Writes the next entry, and a checkpoint if the last one is far enough away; the context is the one after the entry.
    pub(super) fn append<S: StoreRead>(
        &mut self,
        txn: &mut Txn<'_, S>,
        encoded: &EncodedDelta,
        now_ms: u64,
    ) -> u64 {
        self.meta.log_last += 1;
        let (id, index, log) = (self.id, self.meta.log_last, &mut self.log);
        txn.put(Family::Log, keys::log_entry(id, index), encoded.as_bytes().to_vec());
        log.bytes = log.bytes.saturating_add(encoded.as_bytes().len() as u64);
        log.written_ms = Some(now_ms);
        if index - log.last.index >= self.meta.checkpoint_entries
            || log.bytes - log.last.bytes >= self.sizes.checkpoint_bytes
        {
            self.write_checkpoint(txn, now_ms);
        }
        index
    }

    /// Ends the last interval with a checkpoint if no entry was written since `oldest_ms` (milliseconds since 1970), so that
    /// [`Self::truncate`] can drop it: a partition that is not written any more does not keep its log. Entries from before
    /// the opening count from the first call, which is at `now_ms`.
    pub fn end_interval<S: StoreRead>(&mut self, txn: &mut Txn<'_, S>, oldest_ms: u64, now_ms: u64) {
        if self.log.last.index < self.meta.log_last {
            let written_ms = *self.log.written_ms.get_or_insert(now_ms);
            if written_ms < oldest_ms {
                self.write_checkpoint(txn, written_ms);
            }
        }
    }

    fn write_checkpoint<S: StoreRead>(&mut self, txn: &mut Txn<'_, S>, written_ms: u64) {
        let (id, index, log) = (self.id, self.meta.log_last, &mut self.log);
        let (context, bytes) = (self.meta.context.clone(), log.bytes);
        let value = codec::encode(CHECKPOINT_VERSION, &Checkpoint2 { context, bytes, written_ms });
        txn.put(Family::Log, keys::log_checkpoint(id, index), value);
        log.last = Mark { index, bytes, written_ms: Some(written_ms) };
        log.oldest.get_or_insert(log.last);
        log.timed_ms.get_or_insert(written_ms);
    }

    /// The index of the last log entry, 0 if there was none.
    pub fn log_last(&self) -> u64 {
        self.meta.log_last
    }

    /// From where on the log is there.
    pub fn log_floor(&self) -> &LogFloor {
        &self.log.floor
    }

    /// Bytes of the entries that are there. Exact but for entries up to the last checkpoint of format 1: of those it is
    /// an estimate.
    pub fn log_bytes(&self) -> u64 {
        self.log.bytes.saturating_sub(self.log.dropped)
    }

    /// When the oldest interval that is there was finished, in milliseconds since 1970; `None` if none is. Entries of an
    /// interval without a time count from the first checkpoint with one.
    pub fn log_oldest_ms(&self) -> Option<u64> {
        let oldest = self.log.oldest?;
        oldest.written_ms.or(self.log.timed_ms)
    }

    /// Whether there is a whole interval that [`Self::truncate`] could drop.
    pub fn can_truncate(&self) -> bool {
        self.log.oldest.is_some()
    }

    /// Whether the log can serve one who has this: all that was applied and is not in `asked` is there.
    pub fn reaches(&self, asked: &VersionVector) -> bool {
        asked.covers_all(&self.log.floor.floor)
    }

    /// An index, at least [`LogFloor::whole_from`], before which every entry from there on is covered: the first entry after
    /// the last checkpoint whose context satisfies the condition, which must hold for a prefix of the log. A binary search;
    /// nothing is remembered.
    pub fn log_position(
        &self,
        store: &impl StoreRead,
        covered: impl Fn(&VersionVector) -> bool,
    ) -> Result<u64, StoreError> {
        let (from, last) = (self.log.floor.whole_from - 1, self.meta.log_last);
        Ok(last_checkpoint(store, self.id, from, last, |it| covered(&it.context))? + 1)
    }

    /// An index from which on the log holds all own commits after a counter; `None` if some of those are dropped.
    pub fn own_log_position(&self, store: &impl StoreRead, counter: u64) -> Result<Option<u64>, StoreError> {
        let first = self.log.floor.first;
        let covered = |checkpoint: &Checkpoint| checkpoint.context.get(self.replica) <= counter;
        if first > 1 && !covered(&checkpoint_before(store, self.id, first)?) {
            return Ok(None);
        }
        Ok(Some(last_checkpoint(store, self.id, first - 1, self.meta.log_last, covered)? + 1))
    }

    /// Drops whole intervals, the oldest first, as long as fewer than `excess` bytes are dropped or the interval was finished
    /// before `oldest_ms` (milliseconds since 1970): a bounded number. The entries since the last checkpoint stay.
    /// Returns the index of the first entry that is left, if any was dropped: all below is garbage once this is durable
    /// ([`keys::log_garbage`]).
    pub fn truncate<S: StoreRead>(
        &mut self,
        txn: &mut Txn<'_, S>,
        excess: u64,
        oldest_ms: u64,
    ) -> Result<Option<u64>, StoreError> {
        let before = self.log.dropped;
        let mut moved = None;
        for _ in 0..TRUNCATE_INTERVALS_MAX {
            let Some(oldest) = self.log.oldest else { break };
            let is_old = self.log_oldest_ms().is_some_and(|ms| ms < oldest_ms);
            if !is_old && self.log.dropped - before >= excess {
                break;
            }
            moved = Some(oldest.index + 1);
            self.log.floor.first = oldest.index + 1;
            self.log.dropped = oldest.bytes.max(self.log.dropped);
            self.log.find_oldest(txn, self.id, self.meta.log_last)?;
        }
        if let Some(first) = moved {
            if first > self.log.floor.whole_from {
                self.log.floor.whole_from = first;
                // Joined, since what came by repair may be in no checkpoint so far.
                let before = checkpoint_before(txn, self.id, first)?.context;
                self.log.floor.floor.join(&before);
            }
            self.log.write_floor(txn, self.id);
        }
        Ok(moved)
    }

    /// The partition takes on commits that are not in its log: all that `context` covers. The log serves those who have
    /// that from now on.
    pub(super) fn log_jumped<S: StoreRead>(&mut self, txn: &mut Txn<'_, S>, context: &VersionVector) {
        self.log.floor.floor.join(context);
        self.log.write_floor(txn, self.id);
    }
}

/// An index of a stored log from which on whoever has a position, a version vector, finds all that it lacks; `None` if the log
/// does not reach back to that.
pub fn log_from(
    store: &impl StoreRead,
    id: PartitionId,
    position: &VersionVector,
) -> Result<Option<u64>, StoreError> {
    let floor = LogFloor::read(store, id)?;
    if !position.covers_all(&floor.floor) {
        return Ok(None);
    }
    let last = super::stored_log_last(store, id)?;
    let covered =
        last_checkpoint(store, id, floor.whole_from - 1, last, |it| position.covers_all(&it.context))?;
    Ok(Some(covered + 1))
}

/// A log entry found by [`read_log`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEntry {
    /// Its index.
    pub index: u64,
    /// The delta's commits.
    pub dots: DotRanges,
    /// The delta's bytes.
    pub encoded: EncodedDelta,
}

/// Visits log entries from an index on, in the order of application. One that is missing is an error: read from
/// [`LogFloor::first`] on at the earliest.
pub fn read_log(
    store: &impl StoreRead,
    id: PartitionId,
    from: u64,
    mut visit: impl FnMut(LogEntry) -> ControlFlow<()>,
) -> Result<(), StoreError> {
    let mut outcome = Ok(());
    let mut expected = from;
    let (first, end) = (keys::log_entry(id, from), keys::after_prefix(&keys::log_entry(id, u64::MAX)));
    store.scan(Family::Log, &first, &end, &mut |key, value| {
        let encoded = EncodedDelta::from_bytes(value);
        let entry = keys::log_index(key).and_then(|index| Ok((index, encoded.dots()?)));
        match entry {
            Ok((index, _)) if index != expected => {
                let what = format!("log entry {expected} of partition {id} is missing");
                outcome = Err(StoreError::Inconsistent(what));
                ControlFlow::Break(())
            }
            Ok((index, dots)) => {
                expected = index.saturating_add(1);
                visit(LogEntry { index, dots, encoded })
            }
            Err(error) => {
                outcome = Err(StoreError::damaged("log")(error));
                ControlFlow::Break(())
            }
        }
    })?;
    outcome
}

/// Bytes of the entries from an index on.
fn entry_bytes(store: &impl StoreRead, id: PartitionId, from: u64) -> Result<u64, StoreError> {
    let mut bytes = 0u64;
    let (first, end) = (keys::log_entry(id, from), keys::after_prefix(&keys::log_entry(id, u64::MAX)));
    store.scan(Family::Log, &first, &end, &mut |_, value| {
        bytes = bytes.saturating_add(value.len() as u64);
        ControlFlow::Continue(())
    })?;
    Ok(bytes)
}

/// The part of a log's bytes that its first `index` entries have, if `(entries, bytes)` of it are all alike.
fn share(index: u64, (entries, bytes): (u64, u64)) -> u64 {
    let share = u128::from(index) * u128::from(bytes) / u128::from(entries.max(1));
    u64::try_from(share).unwrap_or(u64::MAX)
}

/// Visits the checkpoints of the entries `from` to `to`, both included.
fn each_checkpoint(
    store: &impl StoreRead,
    id: PartitionId,
    from: u64,
    to: u64,
    mut visit: impl FnMut(Checkpoint) -> ControlFlow<()>,
) -> Result<(), StoreError> {
    let mut outcome = Ok(());
    let (first, end) = (keys::log_checkpoint(id, from), keys::after_prefix(&keys::log_checkpoint(id, to)));
    store.scan(Family::Log, &first, &end, &mut |key, value| match keys::log_index(key)
        .and_then(|index| Checkpoint::read(index, value))
    {
        Ok(checkpoint) => visit(checkpoint),
        Err(error) => {
            outcome = Err(StoreError::damaged("log checkpoint")(error));
            ControlFlow::Break(())
        }
    })?;
    outcome
}

fn first_checkpoint(
    store: &impl StoreRead,
    id: PartitionId,
    from: u64,
    to: u64,
) -> Result<Option<Checkpoint>, StoreError> {
    let mut found = None;
    each_checkpoint(store, id, from, to, |checkpoint| {
        found = Some(checkpoint);
        ControlFlow::Break(())
    })?;
    Ok(found)
}

/// The checkpoint that says where the log begins.
fn checkpoint_before(store: &impl StoreRead, id: PartitionId, first: u64) -> Result<Checkpoint, StoreError> {
    first_checkpoint(store, id, first - 1, first - 1)?.ok_or_else(|| {
        StoreError::Inconsistent(format!(
            "the log checkpoint before entry {first} of partition {id} is missing"
        ))
    })
}

/// The index of the last checkpoint after `from` that satisfies a condition, which must hold for a prefix of them; `from`
/// if none does. One seek a halving of the entries in between, since intervals differ.
fn last_checkpoint(
    store: &impl StoreRead,
    id: PartitionId,
    from: u64,
    to: u64,
    holds: impl Fn(&Checkpoint) -> bool,
) -> Result<u64, StoreError> {
    let (mut below, mut above) = (from, to);
    while below < above {
        let middle = below + (above - below).div_ceil(2);
        match first_checkpoint(store, id, middle, above)? {
            Some(checkpoint) if holds(&checkpoint) => below = checkpoint.index,
            _ => above = middle - 1,
        }
    }
    Ok(below)
}

#[cfg(test)]
mod tests;
