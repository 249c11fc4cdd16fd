//! The durable store: one RocksDB instance a node, one column family for each [`Family`].
//!
//! What holds:
//!
//! - *Atomic and durable.* [`RocksStore::commit`] writes a whole batch, over all families, as one record of
//!   the write-ahead log and returns after that record is synced. After a crash every committed batch is
//!   there, whole; a batch whose commit did not return is there whole or not at all.
//! - *Or soon durable.* [`RocksStore::write`] returns once that record is in the hands of the operating system, and
//!   [`RocksStore::sync`] makes all durable that was written before it. The process may end in any way without harm;
//!   after a power cut some last batches are missing, each whole and none before another that is there. Only who
//!   runs with [`Durability::Os`] writes so.
//! - *Snapshots.* A [`Snapshot`] is the state after some commit, for as long as it lives. It pins space: old
//!   versions of what changes meanwhile stay on disk. Hold one for a request, not for a session.
//! - *One writer.* Nothing here stops two threads from committing, but a machine reads the latest state while
//!   it fills a batch, so once a [`Committer`](crate::committer::Committer) runs, it alone commits.
//! - *No guessing.* Damage that checksums reveal is an error of the read that meets it, or of opening.
//!
//! # The write-ahead log after a crash
//!
//! RocksDB's default (point in time) replays up to the first damaged record and silently drops what follows,
//! which may have been acknowledged: not acceptable here. `AbsoluteConsistency` refuses a half-written last
//! record, which every crash in the middle of a write leaves behind: a node that needs an operator after each
//! power cut. So the mode is `TolerateCorruptedTailRecords`: an *incomplete* record (or zeros) at the end of
//! a log is dropped, which loses nothing, since its commit never returned; a record that is complete but
//! fails its checksum refuses to open, wherever it is. The sizes of closed logs are tracked in the manifest,
//! so that a tail missing from any but the last log is found too. Limits: if the disk lied about a sync, the
//! missing end of the last log looks like an incomplete write; and if a disk persisted the pages of one
//! unfinished write out of order, the store refuses to open although nothing acknowledged is lost.
//!
//! A log whose records were not synced one by one may lose more than an unfinished record at its end: a disk may have
//! persisted a later part and not an earlier one, also of two logs that follow each other. There the last mode would
//! refuse to open, or skip from the one log to the other and leave out batches between. So such a log is read to a
//! point in time: up to the first record that is damaged or missing. What is lost by that either was never synced, as
//! [`Durability::Os`] allows, or was damaged later; the two cannot be told apart, except that the sizes of closed logs
//! stand in the manifest here too. [`RocksStore::written_with`] tells which way the log was read.
//!
//! Flushing is not atomic over families, because the log always is on: what a flush of one family is ahead of the
//! others is replayed from the log. RocksDB syncs the closed logs before a flush counts, so that this holds for
//! batches that were written and not synced, too.
//!
//! # Prefixes
//!
//! Rows of one record share their first [`RECORD_PREFIX_BYTES`] bytes (partition, record hash), and the blooms
//! of `rows` hold these prefixes beside whole keys: scans within one record cannot use a bloom of whole keys. A scan
//! whose bounds share such a prefix uses the blooms; every other scan is told to ignore them, because RocksDB would
//! otherwise leave out keys of other prefixes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use godwit_core::store::{Batch, Family, StoreError, StoreRead, Visit};
use rocksdb::{Cache, ColumnFamily, DB, DBRawIterator, ReadOptions, WriteBatch, WriteOptions, properties};

mod open;
mod options;
mod reader;
#[cfg(test)]
mod tests;

pub use open::{FORMAT_VERSION, StoreOpenError};
pub use options::{Durability, StoreOptions};
pub use reader::Reader;

/// The bytes of a row's key that name its record: partition and record hash.
pub const RECORD_PREFIX_BYTES: usize = 10;

/// Something that batches are committed to: [`RocksStore`], or a test's store that fails or waits.
pub trait Commit: StoreRead {
    /// What a group of commits is read through.
    type Reader<'s>: StoreRead
    where
        Self: 's;

    /// A reader for one group. It sees all that was committed before, and of what is committed while it lives any part.
    fn reader(&self) -> Self::Reader<'_>;

    /// Commits a batch atomically, and returns when it would survive a power cut. After an error it is not
    /// known whether the batch is there: the caller must stop.
    fn commit(&self, batch: &Batch) -> Result<(), StoreError>;

    /// Whether to [`Self::commit`], or to [`Self::write`] and [`Self::sync`] soon after. It never changes.
    fn durability(&self) -> Durability {
        Durability::Fsync
    }

    /// Commits a batch atomically, and returns when it would survive the end of the process. As [`Self::commit`],
    /// unless the store knows better.
    fn write(&self, batch: &Batch) -> Result<(), StoreError> {
        self.commit(batch)
    }

    /// Returns when all that was written before would survive a power cut. Called while other threads write. After an
    /// error it is not known what of it would: the caller must stop.
    fn sync(&self) -> Result<(), StoreError> {
        Ok(())
    }
}

/// The store of a node. Cheap to clone; the data directory is closed when the last clone goes.
#[derive(Clone)]
pub struct RocksStore {
    shared: Arc<Shared>,
}

struct Shared {
    db: DB,
    block_cache: Cache,
    path: PathBuf,
    durability: Durability,
    written_with: Durability,
}

/// Sizes for metrics. Estimates are RocksDB's and may be off while keys are overwritten or deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StoreStats {
    /// Rows, estimated.
    pub rows_estimated: u64,
    /// Records that have rows, estimated.
    pub records_estimated: u64,
    /// Bytes of table files, those included that only snapshots and compactions still hold.
    pub table_bytes: u64,
    /// Bytes of memtables, those being flushed included.
    pub memtable_bytes: u64,
    /// Bytes in the block cache.
    pub block_cache_bytes: u64,
}

impl RocksStore {
    /// Opens a data directory, or creates it if it does not exist or holds no RocksDB files.
    ///
    /// Blocks for as long as replaying the write-ahead log takes (about 256 MiB of it at most). Every error
    /// says what to do.
    pub fn open(path: impl AsRef<Path>, options: &StoreOptions) -> Result<Self, StoreOpenError> {
        open::open(path.as_ref(), options)
    }

    /// The data directory.
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// When this store acknowledges commits, as the options said that it was opened with.
    pub fn durability(&self) -> Durability {
        self.shared.durability
    }

    /// What the store ran with before it was opened, so whether a power cut since then may have taken acknowledged
    /// commits. [`Durability::Fsync`] for a new one.
    pub fn written_with(&self) -> Durability {
        self.shared.written_with
    }

    /// Commits a batch atomically with one sync; an empty one costs nothing. Blocks the thread.
    ///
    /// After an error it is not known whether the batch is there (the bytes may have reached the log before
    /// the sync failed): the node must stop, and reopening tells.
    pub fn commit(&self, batch: &Batch) -> Result<(), StoreError> {
        self.put(batch, true)
    }

    /// Commits a batch atomically without a sync: it survives the end of the process, and a power cut after the next
    /// [`Self::sync`]. An empty one costs nothing. Blocks the thread.
    ///
    /// # Panics
    /// If the store does not run with [`Durability::Os`]: its log would be taken for one that was synced.
    pub fn write(&self, batch: &Batch) -> Result<(), StoreError> {
        assert_eq!(
            self.shared.durability,
            Durability::Os,
            "only a store that runs with Os may write unsynced"
        );
        self.put(batch, false)
    }

    /// Makes all durable that was written before. Blocks the thread, and no other one that commits or writes.
    ///
    /// After an error it is not known what of it is durable: the node must stop.
    pub fn sync(&self) -> Result<(), StoreError> {
        self.shared.db.flush_wal(true).map_err(|error| failed("syncing", &error))
    }

    /// Rewrites all table files into one sorted level of each family, without what was deleted and overwritten. Blocks
    /// for as long as that takes; commits go on meanwhile. RocksDB does as much by itself, bit by bit.
    pub fn compact(&self) {
        for family in Family::ALL {
            self.shared.db.compact_range_cf(self.family(family), None::<&[u8]>, None::<&[u8]>);
        }
    }

    /// Removes the keys from `first` to `last`, both included, of which nobody will read any again: whole table files at
    /// once, the rest when RocksDB compacts. May run beside commits; may wait for the disk. After a power cut some may be
    /// there again.
    pub fn discard(&self, family: Family, first: &[u8], last: &[u8]) -> Result<(), StoreError> {
        let end = [last, &[0]].concat();
        let family = self.family(family);
        if first >= end.as_slice() {
            return Ok(());
        }
        let db = &self.shared.db;
        // Files before the mark: the other way round the mark would be written to files that are about to go.
        db.delete_file_in_range_cf(family, first, last).map_err(|error| failed("discarding", &error))?;
        let mut write = WriteBatch::default();
        write.delete_range_cf(family, first, end.as_slice());
        db.write(write).map_err(|error| failed("discarding", &error))
    }

    fn put(&self, batch: &Batch, sync: bool) -> Result<(), StoreError> {
        if batch.is_empty() {
            return Ok(());
        }
        let mut write = WriteBatch::default();
        for (family, key, change) in batch.iter() {
            let family = self.family(family);
            match change {
                Some(value) => write.put_cf(family, key, value),
                None => write.delete_cf(family, key),
            }
        }
        let mut options = WriteOptions::default();
        options.set_sync(sync);
        self.shared.db.write_opt(write, &options).map_err(|error| failed("committing", &error))
    }

    /// The state as it is now, whatever is committed meanwhile. Taking one is cheap.
    pub fn snapshot(&self) -> Snapshot<'_> {
        Snapshot { store: self, at: self.shared.db.snapshot() }
    }

    /// Reads for one group of commits: cheaper than reading the store itself, where records are scanned. Let go of it when
    /// the group is filled: it pins what it reads from.
    pub fn reader(&self) -> Reader<'_> {
        Reader::new(self)
    }

    /// Sizes, from counters in memory: cheap enough for a scrape.
    pub fn stats(&self) -> Result<StoreStats, StoreError> {
        Ok(StoreStats {
            rows_estimated: self.property(Family::Rows, properties::ESTIMATE_NUM_KEYS)?,
            records_estimated: self.property(Family::Keys, properties::ESTIMATE_NUM_KEYS)?,
            table_bytes: self.total(properties::TOTAL_SST_FILES_SIZE)?,
            memtable_bytes: self.total(properties::CUR_SIZE_ALL_MEM_TABLES)?,
            block_cache_bytes: self.shared.block_cache.get_usage() as u64,
        })
    }

    fn total(&self, property: &properties::PropName) -> Result<u64, StoreError> {
        Family::ALL.into_iter().map(|family| self.property(family, property)).sum()
    }

    fn property(&self, family: Family, property: &properties::PropName) -> Result<u64, StoreError> {
        let value = self.shared.db.property_int_value_cf(self.family(family), property);
        Ok(value.map_err(|error| failed("reading a property", &error))?.unwrap_or(0))
    }

    fn family(&self, family: Family) -> &ColumnFamily {
        self.shared.db.cf_handle(family.name()).expect("opening a store opens every family")
    }
}

impl std::fmt::Debug for RocksStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RocksStore").field("path", &self.shared.path).finish_non_exhaustive()
    }
}

impl Commit for RocksStore {
    type Reader<'s> = Reader<'s>;

    fn reader(&self) -> Reader<'_> {
        RocksStore::reader(self)
    }

    fn commit(&self, batch: &Batch) -> Result<(), StoreError> {
        RocksStore::commit(self, batch)
    }

    fn durability(&self) -> Durability {
        RocksStore::durability(self)
    }

    fn write(&self, batch: &Batch) -> Result<(), StoreError> {
        RocksStore::write(self, batch)
    }

    fn sync(&self) -> Result<(), StoreError> {
        RocksStore::sync(self)
    }
}

/// Reads the latest committed state: two reads may see different ones.
impl StoreRead for RocksStore {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.shared.db.get_cf(self.family(family), key).map_err(|error| failed_in("reading", family, &error))
    }

    fn scan(&self, family: Family, from: &[u8], to: &[u8], visit: Visit<'_>) -> Result<(), StoreError> {
        scan(family, from, to, visit, |options| {
            self.shared.db.raw_iterator_cf_opt(self.family(family), options)
        })
    }
}

/// A state of the store that does not change. It borrows the store: in async code, clone the store into a
/// blocking closure and take the snapshot there.
pub struct Snapshot<'s> {
    store: &'s RocksStore,
    at: rocksdb::Snapshot<'s>,
}

impl std::fmt::Debug for Snapshot<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Snapshot").field("sequence", &self.at.sequence_number()).finish_non_exhaustive()
    }
}

impl StoreRead for Snapshot<'_> {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let value = self.at.get_cf(self.store.family(family), key);
        value.map_err(|error| failed_in("reading", family, &error))
    }

    fn scan(&self, family: Family, from: &[u8], to: &[u8], visit: Visit<'_>) -> Result<(), StoreError> {
        scan(family, from, to, visit, |options| {
            self.at.raw_iterator_cf_opt(self.store.family(family), options)
        })
    }
}

fn scan<'a>(
    family: Family,
    from: &[u8],
    to: &[u8],
    visit: Visit<'_>,
    iterator: impl FnOnce(ReadOptions) -> DBRawIterator<'a>,
) -> Result<(), StoreError> {
    if from >= to {
        return Ok(());
    }
    let mut options = ReadOptions::default();
    options.set_iterate_upper_bound(to);
    if family == Family::Rows && within_one_record(from, to) {
        options.set_prefix_same_as_start(true);
    } else {
        options.set_total_order_seek(true);
    }
    let mut entries = iterator(options);
    entries.seek(from);
    while let Some((key, value)) = entries.item() {
        if visit(key, value).is_break() {
            return Ok(());
        }
        entries.next();
    }
    // The iterator ends alike at the end of the range and at an error.
    entries.status().map_err(|error| failed_in("scanning", family, &error))
}

/// Whether every key between the bounds begins with the same whole prefix, so that blooms of prefixes apply.
fn within_one_record(from: &[u8], to: &[u8]) -> bool {
    match (from.first_chunk::<RECORD_PREFIX_BYTES>(), to.first_chunk::<RECORD_PREFIX_BYTES>()) {
        (Some(first), Some(last)) => first == last,
        _ => false,
    }
}

fn failed(doing: &str, error: &rocksdb::Error) -> StoreError {
    StoreError::Io(format!("{doing}: {error}"))
}

fn failed_in(doing: &str, family: Family, error: &rocksdb::Error) -> StoreError {
    StoreError::Io(format!("{doing} {}: {error}", family.name()))
}
