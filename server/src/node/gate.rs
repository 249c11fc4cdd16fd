//! The door to the store: open while the node runs, and closed for good when it stops.
//!
//! Handles outlive the node, in connections and in callers; the data directory must not stay locked by them. So the
//! store is reached through the gate only, for the duration of one read, and closing waits for reads in progress.

use std::sync::{PoisonError, RwLock};

use godwit_engine::store::RocksStore;

#[derive(Debug)]
pub(super) struct StoreGate(RwLock<Option<RocksStore>>);

impl StoreGate {
    pub(super) fn new(store: RocksStore) -> Self {
        Self(RwLock::new(Some(store)))
    }

    /// Runs a read. `None` if the node has stopped. Blocks.
    pub(super) fn enter<T>(&self, read: impl FnOnce(&RocksStore) -> T) -> Option<T> {
        // A read that panicked has left the store as it was.
        let store = self.0.read().unwrap_or_else(PoisonError::into_inner);
        store.as_ref().map(read)
    }

    /// Lets go of the store, once no read is in progress. Blocks.
    pub(super) fn close(&self) {
        drop(self.0.write().unwrap_or_else(PoisonError::into_inner).take());
    }
}
