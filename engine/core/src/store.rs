//! The boundary to storage: ordered bytes in families, read through [`StoreRead`], changed by a [`Batch`]
//! that is committed atomically or not at all.
//!
//! [`Txn`] lays a batch that is not committed yet over a store, so that many inputs of one group commit see
//! each other. [`Overlay`] does so with a batch that is complete, so that a group sees the one before it, whose commit
//! has not returned. [`MemStore`] is the store of tests and of the simulator.

use std::collections::BTreeMap;
use std::collections::btree_map::Range;
use std::ops::Bound::{Excluded, Included};
use std::ops::ControlFlow;
use std::sync::Arc;

use crate::codec::CodecError;
use crate::ids::PartitionId;
use crate::keys;
use crate::repair::{self, Settlings};

/// A family of keys (a RocksDB column family).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// The data.
    Rows,
    /// Deltas in the order of application.
    Log,
    /// Marks of records that have rows.
    Keys,
    /// Identity, contexts, clock.
    Meta,
    /// What this node keeps about fields of its own accord: sizes, clears not yet swept.
    Fields,
    /// Idempotency keys that were applied.
    Requests,
    /// Rows that a peer sent and that have not taken effect yet.
    Staged,
    /// What follows from rows, for reads.
    Derived,
}

impl Family {
    /// All families.
    pub const ALL: [Self; 8] = [
        Self::Rows,
        Self::Log,
        Self::Keys,
        Self::Meta,
        Self::Fields,
        Self::Requests,
        Self::Staged,
        Self::Derived,
    ];

    /// The family's name on disk.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rows => "rows",
            Self::Log => "log",
            Self::Keys => "keys",
            Self::Meta => "meta",
            Self::Fields => "fields",
            Self::Requests => "requests",
            Self::Staged => "staged",
            Self::Derived => "derived",
        }
    }
}

/// The store could not answer, or answered bytes that make no sense. The node stops: it never guesses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Reading or writing failed.
    #[error("the store failed: {0}")]
    Io(String),
    /// Stored bytes are not what this node wrote.
    #[error("stored bytes are damaged ({place}): {source}")]
    Damaged {
        /// Which family and what kind of value.
        place: &'static str,
        /// What was wrong with them.
        source: CodecError,
    },
    /// A stored fact contradicts another one.
    #[error("the store contradicts itself: {0}")]
    Inconsistent(String),
}

impl StoreError {
    /// For `map_err` on decoding a stored value.
    pub fn damaged(place: &'static str) -> impl FnOnce(CodecError) -> Self {
        move |source| Self::Damaged { place, source }
    }
}

/// A key and its value.
pub type Entry = (Vec<u8>, Vec<u8>);

/// What a visitor of a scan says after each entry.
pub type Visit<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>;

/// Reading a consistent state of a store.
pub trait StoreRead {
    /// The value of a key.
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;

    /// Visits the entries from `from` (inclusive) to `to` (exclusive) in key order until told to break.
    fn scan(&self, family: Family, from: &[u8], to: &[u8], visit: Visit<'_>) -> Result<(), StoreError>;

    /// Visits the entries that begin with a prefix.
    fn scan_prefix(&self, family: Family, prefix: &[u8], visit: Visit<'_>) -> Result<(), StoreError> {
        self.scan(family, prefix, &keys::after_prefix(prefix), visit)
    }

    /// The first entry of a range.
    fn first(&self, family: Family, from: &[u8], to: &[u8]) -> Result<Option<Entry>, StoreError> {
        let mut found = None;
        self.scan(family, from, to, &mut |key, value| {
            found = Some((key.to_vec(), value.to_vec()));
            ControlFlow::Break(())
        })?;
        Ok(found)
    }
}

impl<S: StoreRead> StoreRead for &S {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        (*self).get(family, key)
    }

    fn scan(&self, family: Family, from: &[u8], to: &[u8], visit: Visit<'_>) -> Result<(), StoreError> {
        (*self).scan(family, from, to, visit)
    }
}

type Changes = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// Changes to commit atomically: the last one of a key counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    families: [Changes; Family::ALL.len()],
    bytes: usize,
}

impl Batch {
    /// Sets a value.
    pub fn put(&mut self, family: Family, key: Vec<u8>, value: Vec<u8>) {
        self.bytes += key.len() + value.len();
        self.families[family as usize].insert(key, Some(value));
    }

    /// Removes a key.
    pub fn delete(&mut self, family: Family, key: Vec<u8>) {
        self.bytes += key.len();
        self.families[family as usize].insert(key, None);
    }

    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.families.iter().all(Changes::is_empty)
    }

    /// The bytes of keys and values put in so far, for bounding groups.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// All changes, by family and key; `None` removes.
    pub fn iter(&self) -> impl Iterator<Item = (Family, &[u8], Option<&[u8]>)> {
        Family::ALL.into_iter().flat_map(move |family| {
            self.families[family as usize].iter().map(move |(k, v)| (family, k.as_slice(), v.as_deref()))
        })
    }
}

/// A store with a batch laid over it, which may be on its way into the store: that changes nothing that is read here.
#[derive(Debug)]
pub struct Overlay<'a, S> {
    store: &'a S,
    batch: &'a Batch,
}

impl<'a, S: StoreRead> Overlay<'a, S> {
    /// Lays the batch over the store.
    pub fn new(store: &'a S, batch: &'a Batch) -> Self {
        Self { store, batch }
    }
}

impl<S: StoreRead> StoreRead for Overlay<'_, S> {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        match self.batch.families[family as usize].get(key) {
            Some(change) => Ok(change.clone()),
            None => self.store.get(family, key),
        }
    }

    fn scan(&self, family: Family, from: &[u8], to: &[u8], visit: Visit<'_>) -> Result<(), StoreError> {
        if from >= to {
            return Ok(());
        }
        let mut over = within(&self.batch.families[family as usize], from, to).peekable();
        if over.peek().is_none() {
            return self.store.scan(family, from, to, visit);
        }
        let mut stopped = false;
        self.store.scan(family, from, to, &mut |key, value| {
            // Changes before this key are new keys; a change of this key hides the stored value.
            while let Some((changed, change)) = over.next_if(|(changed, _)| changed.as_slice() < key) {
                if let Some(new) = change
                    && visit(changed, new).is_break()
                {
                    stopped = true;
                    return ControlFlow::Break(());
                }
            }
            let flow = match over.next_if(|(changed, _)| changed.as_slice() == key) {
                Some((_, Some(new))) => visit(key, new),
                Some((_, None)) => ControlFlow::Continue(()),
                None => visit(key, value),
            };
            stopped = flow.is_break();
            flow
        })?;
        if !stopped {
            for (key, change) in over {
                if let Some(new) = change
                    && visit(key, new).is_break()
                {
                    break;
                }
            }
        }
        Ok(())
    }
}

/// A store with a batch laid over it that goes on growing. Of partitions that settle it shows, and changes, what readers
/// are to see ([`crate::repair`]).
#[derive(Debug)]
pub struct Txn<'a, S> {
    store: &'a S,
    batch: &'a mut Batch,
    settlings: Arc<Settlings>,
}

impl<'a, S: StoreRead> Txn<'a, S> {
    /// Lays the batch over a store in which no partition settles.
    pub fn new(store: &'a S, batch: &'a mut Batch) -> Self {
        Self::with(store, batch, Arc::default())
    }

    /// Lays the batch over the store.
    pub fn with(store: &'a S, batch: &'a mut Batch, settlings: Arc<Settlings>) -> Self {
        Self { store, batch, settlings }
    }

    /// Sets a value in the batch.
    pub fn put(&mut self, family: Family, key: Vec<u8>, value: Vec<u8>) {
        self.unstage(family, &key);
        self.batch.put(family, key, value);
    }

    /// Removes a key in the batch.
    pub fn delete(&mut self, family: Family, key: Vec<u8>) {
        self.unstage(family, &key);
        self.batch.delete(family, key);
    }

    /// The partitions that settle.
    pub fn settlings(&self) -> &Arc<Settlings> {
        &self.settlings
    }

    /// What the batch itself does to the partitions that settle was changed.
    pub(crate) fn settle(&mut self, settlings: Arc<Settlings>) {
        self.settlings = settlings;
    }

    /// The store and the batch as they are, staged entries beside rows.
    pub(crate) fn raw(&self) -> Overlay<'_, S> {
        Overlay::new(self.store, self.batch)
    }

    /// The batch as it is.
    pub(crate) fn raw_batch(&mut self) -> &mut Batch {
        self.batch
    }

    /// A row that changes puts an end to what is staged under its key.
    fn unstage(&mut self, family: Family, key: &[u8]) {
        if family == Family::Rows && !self.settlings.is_empty() && self.settlings.of(key).is_some() {
            self.batch.delete(Family::Staged, key.to_vec());
        }
    }
}

impl<S: StoreRead> StoreRead for Txn<'_, S> {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        match self.settlings.is_empty() {
            true => self.raw().get(family, key),
            false => repair::get(&self.raw(), &self.settlings, family, key),
        }
    }

    fn scan(&self, family: Family, from: &[u8], to: &[u8], visit: Visit<'_>) -> Result<(), StoreError> {
        match self.settlings.is_empty() {
            true => self.raw().scan(family, from, to, visit),
            false => repair::scan(&self.raw(), &self.settlings, family, from, to, visit),
        }
    }
}

/// The entries of a map from `from` (inclusive) to `to` (exclusive), which must not be less.
fn within<'m, V>(map: &'m BTreeMap<Vec<u8>, V>, from: &[u8], to: &[u8]) -> Range<'m, Vec<u8>, V> {
    map.range::<[u8], _>((Included(from), Excluded(to)))
}

/// An ordered store in memory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemStore {
    families: [BTreeMap<Vec<u8>, Vec<u8>>; Family::ALL.len()],
}

impl MemStore {
    /// Commits a batch.
    pub fn commit(&mut self, batch: Batch) {
        for (family, changes) in self.families.iter_mut().zip(batch.families) {
            for (key, change) in changes {
                match change {
                    Some(value) => family.insert(key, value),
                    None => family.remove(&key),
                };
            }
        }
    }

    /// Removes what is garbage in a partition's log ([`keys::log_garbage`]).
    pub fn trim(&mut self, partition: PartitionId, first: u64) {
        for garbage in keys::log_garbage(partition, 0, first) {
            self.families[Family::Log as usize].retain(|key, _| !garbage.contains(key));
        }
    }
}

impl StoreRead for MemStore {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.families[family as usize].get(key).cloned())
    }

    fn scan(&self, family: Family, from: &[u8], to: &[u8], visit: Visit<'_>) -> Result<(), StoreError> {
        if from >= to {
            return Ok(());
        }
        for (key, value) in within(&self.families[family as usize], from, to) {
            if visit(key, value).is_break() {
                break;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(store: &impl StoreRead, from: &[u8], to: &[u8], most: usize) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut found = Vec::new();
        store
            .scan(Family::Rows, from, to, &mut |k, v| {
                found.push((k.to_vec(), v.to_vec()));
                if found.len() == most { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })
            .unwrap();
        found
    }

    proptest! {
        #[test]
        fn a_transaction_reads_as_if_committed(
            stored in prop::collection::btree_map(0u8..8, 0u8..4, 0..6),
            changes in prop::collection::vec((0u8..8, prop::option::of(0u8..4)), 0..8),
            from in 0u8..9, to in 0u8..9, most in 1usize..9,
        ) {
            let mut base = Batch::default();
            stored.iter().for_each(|(&k, &v)| base.put(Family::Rows, vec![k], vec![v]));
            let mut store = MemStore::default();
            store.commit(base);

            let mut batch = Batch::default();
            for (k, change) in changes {
                match change {
                    Some(v) => batch.put(Family::Rows, vec![k], vec![v]),
                    None => batch.delete(Family::Rows, vec![k]),
                }
            }
            let mut committed = store.clone();
            committed.commit(batch.clone());

            // On its way: all of it may be there already.
            let over = Overlay::new(&committed, &batch);
            prop_assert_eq!(all(&over, &[from], &[to], most), all(&committed, &[from], &[to], most));
            let txn = Txn::new(&store, &mut batch);
            prop_assert_eq!(all(&txn, &[from], &[to], most), all(&committed, &[from], &[to], most));
            for k in 0u8..8 {
                prop_assert_eq!(txn.get(Family::Rows, &[k]), committed.get(Family::Rows, &[k]));
            }
        }
    }
}
