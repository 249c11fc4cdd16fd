//! Removing what is dropped from the log, on a thread of its own, since that may wait for the disk.
//!
//! What waits is one number a partition, however often it is named: a later one covers those before. Between two passes
//! there is a pause ([`PAUSE`]), so that few large ranges are removed and not many small ones. What was not removed when
//! the process ends is named again by the next one's machine, and so is what could not be removed.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use godwit_core::ids::PartitionId;
use godwit_core::keys;
use godwit_core::store::{Family, StoreError};
use godwit_engine::store::RocksStore;

/// From one pass to the next.
const PAUSE: Duration = Duration::from_secs(1);

/// The thread. Dropping it ends it, after the range in progress.
#[derive(Debug)]
pub(super) struct Trimmer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// The first entries that logs still have, where something below may be there.
    due: BTreeMap<PartitionId, u64>,
    ends: bool,
}

impl Trimmer {
    pub(super) fn spawn(store: RocksStore) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("godwit-trim".to_string())
            .spawn(move || run(&store, &theirs))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// All of a partition's log below an entry is garbage. Does not wait.
    pub(super) fn trim(&self, partition: PartitionId, first: u64) {
        let mut state = self.shared.lock();
        let due = state.due.entry(partition).or_default();
        *due = first.max(*due);
        self.shared.changed.notify_one();
    }
}

impl Drop for Trimmer {
    fn drop(&mut self) {
        self.shared.lock().ends = true;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.take() {
            // It panics only if its store does, and then there is nothing to save.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until something is due; `None` at the end.
    fn next(&self) -> Option<BTreeMap<PartitionId, u64>> {
        let idle = |state: &mut State| state.due.is_empty() && !state.ends;
        let mut state = self.changed.wait_while(self.lock(), idle).unwrap_or_else(PoisonError::into_inner);
        (!state.ends).then(|| std::mem::take(&mut state.due))
    }

    fn ends(&self) -> bool {
        self.lock().ends
    }

    /// Waits for a while, or for the end.
    fn pause(&self) {
        let waited = self.changed.wait_timeout_while(self.lock(), PAUSE, |state| !state.ends);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }
}

fn run(store: &RocksStore, shared: &Shared) {
    // Up to where each log is removed already: ranges that do not overlap are cheaper to read past.
    let mut done: BTreeMap<PartitionId, u64> = BTreeMap::new();
    while let Some(due) = shared.next() {
        for (partition, first) in due {
            if shared.ends() {
                return;
            }
            let since = done.get(&partition).copied().unwrap_or(0);
            match remove(store, partition, since, first) {
                Ok(()) => drop(done.insert(partition, first)),
                Err(error) => tracing::error!(%partition, first, %error, "a log's old entries stay on disk"),
            }
        }
        shared.pause();
    }
}

fn remove(store: &RocksStore, partition: PartitionId, since: u64, first: u64) -> Result<(), StoreError> {
    for garbage in keys::log_garbage(partition, since, first) {
        store.discard(Family::Log, garbage.start(), garbage.end())?;
    }
    Ok(())
}
