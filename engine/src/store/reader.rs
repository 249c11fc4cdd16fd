//! Reading the store for one group of commits.
//!
//! Making an iterator costs about as much as a short scan with it, and nearly every commit scans a record once. So a
//! [`Reader`] keeps one for records, which sees the store as of its first scan. That is why a reader is for a group: who
//! makes it lays over it what is committed while it lives (see [`crate::committer`]), and lets go of it soon, since an
//! iterator pins what it reads from, in memory and on disk.
//!
//! The iterator is told of no end of a range, since those differ. RocksDB stops it at the end of the record's prefix,
//! but rows that were deleted between the end of a range and there would be passed over one by one. So it gives up after
//! [`SKIPS_MAX`], and a scan with an end goes on.

use std::cell::Cell;

use godwit_core::store::{Family, StoreError, StoreRead, Visit};
use rocksdb::{DBRawIterator, ErrorKind, ReadOptions};

use super::{RocksStore, failed_in, within_one_record};

/// Entries without effect (deleted, or overwritten) that one step of the kept iterator passes over.
const SKIPS_MAX: u64 = 64;

/// Reads some state of the store that holds all that was committed before the reader was made, and of what is committed
/// meanwhile any part. Made by [`RocksStore::reader`].
pub struct Reader<'s> {
    store: &'s RocksStore,
    options: ReadOptions,
    /// Taken out while it is in use.
    records: Cell<Option<DBRawIterator<'s>>>,
}

impl<'s> Reader<'s> {
    pub(super) fn new(store: &'s RocksStore) -> Self {
        Self { store, options: ReadOptions::default(), records: Cell::new(None) }
    }

    fn records(&self) -> DBRawIterator<'s> {
        self.records.take().unwrap_or_else(|| {
            let mut options = ReadOptions::default();
            options.set_prefix_same_as_start(true);
            options.set_max_skippable_internal_keys(SKIPS_MAX);
            self.store.shared.db.raw_iterator_cf_opt(self.store.family(Family::Rows), options)
        })
    }

    /// Visits a range within one record as far as the kept iterator gets: where to go on, if that is not all.
    fn scan_record(&self, from: &[u8], to: &[u8], visit: Visit<'_>) -> Result<Option<Vec<u8>>, StoreError> {
        let mut records = self.records();
        records.seek(from);
        let mut visited: Vec<u8> = Vec::new();
        while let Some((key, value)) = records.item() {
            if key >= to || visit(key, value).is_break() {
                self.records.set(Some(records));
                return Ok(None);
            }
            visited.clear();
            visited.extend_from_slice(key);
            records.next();
        }
        let left = match records.status() {
            Ok(()) => None,
            Err(error) if error.kind() == ErrorKind::Incomplete => Some(match visited.is_empty() {
                true => from.to_vec(),
                // The next key that can be.
                false => {
                    visited.push(0);
                    visited
                }
            }),
            Err(error) => return Err(failed_in("scanning", Family::Rows, &error)),
        };
        self.records.set(Some(records));
        Ok(left)
    }
}

impl std::fmt::Debug for Reader<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").field("store", self.store).finish_non_exhaustive()
    }
}

impl StoreRead for Reader<'_> {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let value = self.store.shared.db.get_cf_opt(self.store.family(family), key, &self.options);
        value.map_err(|error| failed_in("reading", family, &error))
    }

    fn scan(&self, family: Family, from: &[u8], to: &[u8], visit: Visit<'_>) -> Result<(), StoreError> {
        if family != Family::Rows || from >= to || !within_one_record(from, to) {
            return self.store.scan(family, from, to, visit);
        }
        match self.scan_record(from, to, visit)? {
            Some(left) => self.store.scan(family, &left, to, visit),
            None => Ok(()),
        }
    }
}
