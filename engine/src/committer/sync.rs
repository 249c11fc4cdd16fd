//! The syncs of a committer that writes first and syncs soon after ([`Durability::Os`]): a thread of its own runs
//! them, one at a time, while the committer goes on; what must wait for one waits here, in order.
//!
//! - Every write has a number, and every output that waits has the number of the last write before it, its own
//!   group's included: what an output says may rest on any of them. It is released once that write is synced.
//! - A sync covers what was written when it began. It begins at once if something is not synced, none is in progress
//!   and the last one began at least [`CommitterOptions::sync_interval`] ago, whether an output waits or not: this
//!   bounds what a power cut can take, too.
//! - Beyond [`CommitterOptions::waiting_outputs_max`] or [`CommitterOptions::unsynced_bytes_max`] the committer takes
//!   no further input until a sync is done, and the next one does not wait for its time. It exceeds them by one group
//!   at most.
//!
//! [`Durability::Os`]: crate::store::Durability::Os
//! [`CommitterOptions::sync_interval`]: super::CommitterOptions::sync_interval
//! [`CommitterOptions::waiting_outputs_max`]: super::CommitterOptions::waiting_outputs_max
//! [`CommitterOptions::unsynced_bytes_max`]: super::CommitterOptions::unsynced_bytes_max

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::{CommitterOptions, Failure, panic_text};
use crate::stats::CommitStats;
use crate::store::Commit;

/// One is in progress at most, so neither channel ever holds a second message.
const SYNCS_IN_PROGRESS_MAX: usize = 1;

pub(super) struct Syncs<O> {
    options: CommitterOptions,
    /// Writes so far, and how many of them are known to be synced.
    written: u64,
    synced: u64,
    /// Bytes of writes that no sync has been begun for, and of those that the one in progress covers.
    bytes_new: usize,
    bytes_syncing: usize,
    /// What the sync in progress covers, if there is one.
    syncing: Option<u64>,
    last_begun: Option<Instant>,
    waiting: VecDeque<(u64, O)>,
    thread: SyncThread,
}

impl<O> Syncs<O> {
    pub(super) fn spawn<S: Commit + Send + 'static>(
        store: S,
        options: CommitterOptions,
        stats: Arc<CommitStats>,
    ) -> std::io::Result<Self> {
        Ok(Self {
            options,
            written: 0,
            synced: 0,
            bytes_new: 0,
            bytes_syncing: 0,
            syncing: None,
            last_begun: None,
            waiting: VecDeque::new(),
            thread: SyncThread::spawn(store, stats)?,
        })
    }

    /// A batch of so many bytes was written.
    pub(super) fn wrote(&mut self, bytes: usize) {
        self.written += 1;
        self.bytes_new += bytes;
    }

    /// Whether all that was written is synced, so that nothing need wait.
    pub(super) fn is_clean(&self) -> bool {
        self.synced == self.written
    }

    /// Keeps an output until all that is written by now is synced.
    pub(super) fn keep(&mut self, output: O) {
        self.waiting.push_back((self.written, output));
    }

    /// Whether the committer must wait for a sync before it takes more.
    pub(super) fn is_full(&self) -> bool {
        self.waiting.len() >= self.options.waiting_outputs_max.max(1)
            || self.bytes_new + self.bytes_syncing >= self.options.unsynced_bytes_max.max(1)
    }

    /// When the next sync is to begin; `None` while one is in progress or nothing needs one.
    pub(super) fn due(&self) -> Option<Instant> {
        if self.syncing.is_some() || self.is_clean() {
            return None;
        }
        let interval = if self.is_full() { Duration::ZERO } else { self.options.sync_interval };
        Some(self.last_begun.map_or_else(Instant::now, |begun| begun + interval))
    }

    /// Begins a sync of what is written, unless one is in progress.
    pub(super) fn begin(&mut self) {
        if self.syncing.is_none() {
            self.syncing = Some(self.written);
            self.bytes_syncing = std::mem::take(&mut self.bytes_new);
            self.last_begun = Some(Instant::now());
            self.thread.begin();
        }
    }

    /// Waits for the end of the sync in progress; for ever if there is none. Cancel-safe: who asks again gets it.
    pub(super) async fn done(&mut self) -> Result<(), Failure> {
        let Some(covered) = self.syncing else { return std::future::pending().await };
        self.thread.done().await?;
        self.syncing = None;
        self.synced = covered;
        self.bytes_syncing = 0;
        Ok(())
    }

    /// The next output that waits for nothing any more.
    pub(super) fn next_released(&mut self) -> Option<O> {
        let (after, _) = self.waiting.front()?;
        if *after > self.synced {
            return None;
        }
        self.waiting.pop_front().map(|(_, output)| output)
    }
}

/// The thread that syncs. Dropping it waits for the sync in progress, so that the store is let go.
struct SyncThread {
    begin: Option<SyncSender<()>>,
    done: mpsc::Receiver<Result<(), Failure>>,
    thread: Option<JoinHandle<()>>,
}

impl SyncThread {
    fn spawn<S: Commit + Send + 'static>(store: S, stats: Arc<CommitStats>) -> std::io::Result<Self> {
        let (begin, begun) = sync_channel(SYNCS_IN_PROGRESS_MAX);
        let (ended, done) = mpsc::channel(SYNCS_IN_PROGRESS_MAX);
        let thread = std::thread::Builder::new()
            .name("godwit-sync".to_string())
            .spawn(move || sync_when_told(&store, &begun, &ended, &stats))?;
        Ok(Self { begin: Some(begin), done, thread: Some(thread) })
    }

    fn begin(&self) {
        if let Some(begin) = &self.begin {
            // A thread that is gone is noticed by who waits for the end.
            let _ = begin.send(());
        }
    }

    async fn done(&mut self) -> Result<(), Failure> {
        let gone = || Err(Failure::Panicked("the thread that syncs is gone".to_string()));
        self.done.recv().await.unwrap_or_else(gone)
    }
}

impl Drop for SyncThread {
    fn drop(&mut self) {
        self.begin = None;
        if let Some(thread) = self.thread.take() {
            // It hands on its panics as failures.
            let _ = thread.join();
        }
    }
}

fn sync_when_told<S: Commit>(
    store: &S,
    begun: &Receiver<()>,
    ended: &mpsc::Sender<Result<(), Failure>>,
    stats: &CommitStats,
) {
    while let Ok(()) = begun.recv() {
        let begun = Instant::now();
        // Unwind safety: a panic is final for the committer, which then only drops the store.
        let outcome = catch_unwind(AssertUnwindSafe(|| store.sync().map_err(Failure::Sync)))
            .unwrap_or_else(|panic| Err(Failure::Panicked(panic_text(panic.as_ref()))));
        stats.add_sync(begun.elapsed());
        if ended.blocking_send(outcome).is_err() {
            return;
        }
    }
}
