//! Reading the store for one group of commits.
//!
//! Making an iterator costs about as much as a short scan with it. Nearly every commit scans a record once, and a change of a
//! score looks at some ten places in the order of its zset. So a [`Reader`] keeps an iterator for records and one for what is
//! derived of them, which see the store as of their first scans. That is why a reader is for a group: who makes it lays over it
//! what is committed while it lives (see [`crate::committer`]), and lets go of it soon, since an iterator pins what it reads
//! from, in memory and on disk. A snapshot keeps such iterators, too.
//!
//! A kept iterator is told of no end of a range, since those differ. RocksDB stops that of records at the end of the record's
//! prefix, but what was deleted between the end of a range and there would be passed over one by one. So it gives up after
//! [`SKIPS_MAX`], and a scan with an end goes on.

use std::cell::Cell;

use godwit_core::store::{Family, StoreError, StoreRead, Visit};
use rocksdb::{DBRawIterator, ErrorKind, ReadOptions};

use super::{RocksStore, failed_in, within_one_record};

/// Entries without effect (deleted, or overwritten) that one step of the kept iterator passes over.
const SKIPS_MAX: u64 = 64;

/// Iterators that are used again.
#[derive(Default)]
pub(super) struct Kept<'s> {
    records: Cell<Option<DBRawIterator<'s>>>,
    derived: Cell<Option<DBRawIterator<'s>>>,
}

impl<'s> Kept<'s> {
    /// Visits a range as far as a kept iterator gets: where to go on, if that is not all. Its first scan makes it.
    pub(super) fn scan(
        &self,
        family: Family,
        from: &[u8],
        to: &[u8],
        visit: Visit<'_>,
        make: impl FnOnce(ReadOptions) -> DBRawIterator<'s>,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        if from >= to {
            return Ok(None);
        }
        let kept = match family {
            Family::Rows if within_one_record(from, to) => &self.records,
            Family::Derived => &self.derived,
            _ => return Ok(Some(from.to_vec())),
        };
        // Taken out while it is in use: what a visitor scans meanwhile gets another one.
        let mut entries = kept.take().unwrap_or_else(|| {
            let mut options = ReadOptions::default();
            options.set_prefix_same_as_start(family == Family::Rows);
            options.set_max_skippable_internal_keys(SKIPS_MAX);
            make(options)
        });
        entries.seek(from);
        let mut visited: Vec<u8> = Vec::new();
        while let Some((key, value)) = entries.item() {
            if key >= to || visit(key, value).is_break() {
                kept.set(Some(entries));
                return Ok(None);
            }
            visited.clear();
            visited.extend_from_slice(key);
            entries.next();
        }
        let left = match entries.status() {
            Ok(()) => None,
            Err(error) if error.kind() == ErrorKind::Incomplete => Some(match visited.is_empty() {
                true => from.to_vec(),
                // The next key that can be.
                false => {
                    visited.push(0);
                    visited
                }
            }),
            Err(error) => return Err(failed_in("scanning", family, &error)),
        };
        kept.set(Some(entries));
        Ok(left)
    }
}

/// Reads some state of the store that holds all that was committed before the reader was made, and of what is committed
/// meanwhile any part. Made by [`RocksStore::reader`].
pub struct Reader<'s> {
    store: &'s RocksStore,
    options: ReadOptions,
    kept: Kept<'s>,
}

impl<'s> Reader<'s> {
    pub(super) fn new(store: &'s RocksStore) -> Self {
        Self { store, options: ReadOptions::default(), kept: Kept::default() }
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
        let store = self.store;
        let make = |options| store.shared.db.raw_iterator_cf_opt(store.family(family), options);
        match self.kept.scan(family, from, to, visit, make)? {
            Some(left) => store.scan(family, &left, to, visit),
            None => Ok(()),
        }
    }
}
