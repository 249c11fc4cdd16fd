//! The second half of a committer: writes groups, one at a time and in order, and releases their outputs, on a thread of
//! its own, while the first half fills the next group.
//!
//! - What the first half hands over is written whole before the outputs that came with it are looked at. Outputs without
//!   changes come the same way: what they say may rest on the group before.
//! - After each group the first half is told how long it took ([`Event::Written`]): until then it hands over nothing, and
//!   lays the group over the store for its own reads.
//! - After a failure nothing more is written or released. The sink, with what waits in it, is let go only when the first
//!   half lets go of this one: by then it has told everyone why.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use godwit_core::store::Batch;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

use super::sync::Syncs;
use super::{CommitterOptions, Failure, Release, Sink, at, panic_text};
use crate::stats::CommitStats;
use crate::store::{Commit, Durability};

/// The first half waits for one group before it hands over the next, so at most that one and the end are on their way.
const MESSAGES_MAX: usize = 2;
/// Likewise: one group written, and the end.
const EVENTS_MAX: usize = 2;

/// What the first half hands over.
enum Message<O> {
    /// A group: changes, perhaps none, and the outputs to release after them.
    Group(Arc<Batch>, Vec<O>),
    /// There are no more: sync, release, end.
    Finish,
}

/// What the first half is told.
pub(super) enum Event {
    /// The group is written, its outputs are released or wait for a sync, and there is room for another one.
    Written(Duration),
    /// All is written, synced and released.
    Finished,
}

/// The thread that writes, as the first half sees it. Dropping it waits for the group in progress.
pub(super) struct Writer<O> {
    groups: Option<mpsc::Sender<Message<O>>>,
    events: mpsc::Receiver<Result<Event, Failure>>,
    thread: Option<JoinHandle<()>>,
}

impl<O: Send + 'static> Writer<O> {
    pub(super) fn spawn<S, K>(
        store: S,
        sink: K,
        options: &CommitterOptions,
        stats: Arc<CommitStats>,
    ) -> std::io::Result<Self>
    where
        S: Commit + Clone + Send + 'static,
        K: Sink<O> + Send + 'static,
    {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        let syncs = match store.durability() {
            Durability::Fsync => None,
            Durability::Os => Some(Syncs::spawn(store.clone(), options.clone(), Arc::clone(&stats))?),
        };
        let (groups, queue) = mpsc::channel(MESSAGES_MAX);
        let (told, events) = mpsc::channel(EVENTS_MAX);
        let mut half = Half { store, syncs, sink, queue, told, stats };
        let thread = std::thread::Builder::new()
            .name("godwit-write".to_string())
            .spawn(move || run_thread(&runtime, &mut half))?;
        Ok(Self { groups: Some(groups), events, thread: Some(thread) })
    }

    /// Hands over a group. The one before must have been reported as written.
    pub(super) fn hand_over(&self, batch: Arc<Batch>, outputs: Vec<O>) {
        self.send(Message::Group(batch, outputs));
    }

    /// Hands over the end.
    pub(super) fn finish(&self) {
        self.send(Message::Finish);
    }

    /// The next event; a failure is the last one. Cancel-safe.
    pub(super) async fn event(&mut self) -> Result<Event, Failure> {
        let gone = || Err(Failure::Panicked("the thread that writes is gone".to_string()));
        self.events.recv().await.unwrap_or_else(gone)
    }

    fn send(&self, message: Message<O>) {
        if let Some(groups) = &self.groups {
            // A thread that is gone is noticed by who waits for the event.
            let _ = groups.try_send(message);
        }
    }
}

impl<O> Drop for Writer<O> {
    fn drop(&mut self) {
        self.groups = None;
        if let Some(thread) = self.thread.take() {
            // It hands on its panics as failures.
            let _ = thread.join();
        }
    }
}

fn run_thread<S: Commit, K: Sink<O>, O>(runtime: &Runtime, half: &mut Half<S, K, O>) {
    // Unwind safety: after a panic nothing of it is used again, but for telling and for the end of the channel.
    let outcome = catch_unwind(AssertUnwindSafe(|| runtime.block_on(half.run())))
        .unwrap_or_else(|panic| Err(Failure::Panicked(panic_text(panic.as_ref()))));
    if let Some(last) = outcome.map(|finished| finished.then_some(Event::Finished)).transpose() {
        // There is room, and who does not listen any more need not know.
        let _ = half.told.try_send(last);
    }
    while let Some(dropped) = half.queue.blocking_recv() {
        drop(dropped);
    }
}

struct Half<S, K, O> {
    store: S,
    /// What is not synced yet; `None` if each commit is.
    syncs: Option<Syncs<O>>,
    sink: K,
    queue: mpsc::Receiver<Message<O>>,
    told: mpsc::Sender<Result<Event, Failure>>,
    stats: Arc<CommitStats>,
}

impl<S: Commit, K: Sink<O>, O> Half<S, K, O> {
    /// Whether it came to its end in order. If not, the first half has failed.
    async fn run(&mut self) -> Result<bool, Failure> {
        loop {
            let sync_due = self.begin_due_sync();
            // What syncs release must not starve under load; a due sync begins above.
            let message = tokio::select! {
                biased;
                outcome = synced(&mut self.syncs) => {
                    outcome?;
                    self.release_synced();
                    continue;
                }
                message = self.queue.recv() => message,
                () = at(sync_due) => continue,
            };
            match message {
                Some(Message::Group(batch, outputs)) => {
                    let took = self.write(batch, outputs)?;
                    self.sync_while(Syncs::is_full).await?;
                    // There is room: the first half has taken the event before.
                    let _ = self.told.try_send(Ok(Event::Written(took)));
                }
                Some(Message::Finish) => {
                    self.sync_while(|syncs| !syncs.is_clean()).await?;
                    return Ok(true);
                }
                None => return Ok(false),
            }
        }
    }

    /// Writes a group, up to the release of its outputs.
    fn write(&mut self, batch: Arc<Batch>, outputs: Vec<O>) -> Result<Duration, Failure> {
        let begun = Instant::now();
        if !batch.is_empty() {
            match &mut self.syncs {
                None => self.store.commit(&batch).map_err(Failure::Commit)?,
                Some(syncs) => {
                    self.store.write(&batch).map_err(Failure::Commit)?;
                    syncs.wrote(batch.bytes());
                }
            }
            self.stats.add_commit(batch.bytes() as u64, begun.elapsed());
        }
        for output in outputs {
            match &mut self.syncs {
                Some(syncs) if !syncs.is_clean() && self.sink.release(&output) == Release::Synced => {
                    syncs.keep(output);
                }
                _ => self.sink.take(output),
            }
        }
        Ok(begun.elapsed())
    }

    /// Syncs, and releases what waits for it, for as long as there is a reason to. Nothing is written meanwhile, so two
    /// syncs at most: the one in progress, and one more.
    async fn sync_while(&mut self, reason: impl Fn(&Syncs<O>) -> bool) -> Result<(), Failure> {
        while let Some(syncs) = self.syncs.as_mut().filter(|syncs| reason(syncs)) {
            syncs.begin();
            syncs.done().await?;
            self.release_synced();
        }
        Ok(())
    }

    /// Begins a sync if one is due; when the next one is.
    fn begin_due_sync(&mut self) -> Option<tokio::time::Instant> {
        let syncs = self.syncs.as_mut()?;
        let due = syncs.due()?;
        if due <= Instant::now() {
            syncs.begin();
            return None;
        }
        Some(due.into())
    }

    fn release_synced(&mut self) {
        while let Some(output) = self.syncs.as_mut().and_then(Syncs::next_released) {
            self.sink.take(output);
        }
    }
}

/// The end of the sync in progress, which never comes if none is.
async fn synced<O>(syncs: &mut Option<Syncs<O>>) -> Result<(), Failure> {
    match syncs {
        Some(syncs) => syncs.done().await,
        None => std::future::pending().await,
    }
}
