//! Group commit: the production driver of a [`Machine`].
//!
//! Two threads, a group each. The first owns the machine: it takes what waits in the queue and runs the machine over one
//! growing batch. The second ([`writer`]) commits that batch with one sync and then hands the outputs to the sink, in
//! order, while the first fills the next group, for whose reads the batch under way lies over the store. A group is handed
//! over when nothing is being written and nothing waits any more, or no more fits in, or filling it has taken as long as
//! writing the one before: the slower the disk, the larger the groups, and nobody waits for a timer.
//!
//! A store that runs with [`Durability::Os`] is written to first and synced soon after, by a thread of its own. Then
//! the outputs of a group fall into two classes, of which the sink, not the committer, knows ([`Sink::release`]):
//! those that may go out once the group is written, and those that wait until it is synced.
//!
//! What holds (the *driver law* of [`godwit_core::machine`]):
//!
//! - *Nothing leaves before it is durable.* Outputs reach the sink after the commit of their group, and of all before it,
//!   returned, in the order of the machine. With [`Durability::Os`] those that the sink lets go reach it after the group
//!   is in the system's hands, and all others after a sync that covers the group and everything before it: what an output
//!   says may rest on an earlier group, also if its own changed nothing. Order is kept within each class.
//! - *The machine sees what it did.* Its reads see all groups before, whether written or under way: one is under way at
//!   most, and laid over the store it hides nothing but itself, before and after it gets there.
//! - *A failure is final.* If a step of the machine, the commit or a sync fails, or anything panics, no output of that
//!   group or a later one is released, nothing more is written, both threads end, [`CommitterHandle::failed`] resolves
//!   and every later submit is refused. (A group that was under way when a *later* one's step failed is written and
//!   released as ever.) The machine is dropped: it may be ahead of the store. What was queued is dropped with it, and so
//!   are reply channels in it, which tells their waiters. The process should exit with an error.
//! - *Accepted is handled.* What was submitted before [`CommitterHandle::shutdown`] closed the queue is handled
//!   and committed before the threads end, and with [`Durability::Os`] synced, and what waited for that released.
//!   Dropping the last handle does the same, without waiting for it.
//! - *Deadlines are not starved.* A due deadline is served at the end of each group, however full the queue
//!   is, and else when it is due. A machine whose deadline stays due is called again at once: it must move it.
//!
//! Limits: the queue holds [`CommitterOptions::queue_inputs`]; then submitting waits. A group takes nothing more after
//! [`CommitterOptions::group_inputs_max`] inputs (a timeout counts as one) or once its batch reaches
//! [`CommitterOptions::group_bytes_max`], so it exceeds that by one input's changes, and those of a deadline, at most. Its
//! outputs are bounded by its inputs only. Two groups exist at a time. What waits for a sync is bounded by
//! [`CommitterOptions::waiting_outputs_max`] and [`CommitterOptions::unsynced_bytes_max`]: beyond them nothing is written
//! until a sync is done, and once the next group is full nothing else is served, deadlines included. Deadlines are met to
//! about a millisecond, after the input in progress.
//!
//! The sink runs on the second thread: it must not block, and should hand on what it gets.
//!
//! [`Durability::Os`]: crate::store::Durability::Os

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use godwit_core::machine::{Effects, Machine};
use godwit_core::store::{Batch, Overlay, StoreError};
use godwit_core::time::{Mono, Now, Wall};
use tokio::runtime::Runtime;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, mpsc, watch};

use crate::stats::CommitStats;
use crate::store::Commit;

mod sync;
mod writer;

use writer::{Event, Writer};

/// Inputs that wait by default.
pub const QUEUE_INPUTS: usize = 4096;
/// Inputs of one group by default.
pub const GROUP_INPUTS_MAX: usize = 512;
/// Bytes of changes at which a group is full by default.
pub const GROUP_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Outputs that wait for a sync by default.
pub const WAITING_OUTPUTS_MAX: usize = 65_536;
/// Bytes of changes that are written and not synced by default: what a power cut can take at most, beside one group.
pub const UNSYNCED_BYTES_MAX: usize = 16 * 1024 * 1024;
/// How far apart syncs begin by default: well below the round trip to another region, and rare enough to leave the
/// disk to other things.
pub const SYNC_INTERVAL: Duration = Duration::from_millis(10);

/// Bounds of the queue, of groups and of what is not synced. Zero counts as one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitterOptions {
    /// Inputs that may wait before submitting waits.
    pub queue_inputs: usize,
    /// The most inputs of one group.
    pub group_inputs_max: usize,
    /// Bytes of keys and values at which a group takes no further input.
    pub group_bytes_max: usize,
    /// With [`Os`](crate::store::Durability::Os): outputs that may wait for a sync before no more is written.
    pub waiting_outputs_max: usize,
    /// With [`Os`](crate::store::Durability::Os): bytes of keys and values that may be written and not synced before
    /// no more is written.
    pub unsynced_bytes_max: usize,
    /// With [`Os`](crate::store::Durability::Os): the least time from the beginning of one sync to that of the next.
    pub sync_interval: Duration,
}

impl Default for CommitterOptions {
    fn default() -> Self {
        Self {
            queue_inputs: QUEUE_INPUTS,
            group_inputs_max: GROUP_INPUTS_MAX,
            group_bytes_max: GROUP_BYTES_MAX,
            waiting_outputs_max: WAITING_OUTPUTS_MAX,
            unsynced_bytes_max: UNSYNCED_BYTES_MAX,
            sync_interval: SYNC_INTERVAL,
        }
    }
}

/// Why a committer ended without being asked to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// A step of the machine failed.
    #[error("the node stops, since a step failed and it never guesses: {0}")]
    Machine(StoreError),
    /// The commit failed: it is not known whether the group is in the store.
    #[error("the node stops, since a group was not committed for certain: {0}")]
    Commit(StoreError),
    /// A sync failed: it is not known what of the writes since the one before would survive a power cut.
    #[error("the node stops, since writes that it may have acknowledged were not synced for certain: {0}")]
    Sync(StoreError),
    /// The machine, the store or the sink panicked: a defect.
    #[error("the node stops, since its committer panicked: {0}")]
    Panicked(String),
}

/// The committer takes no more inputs: it was shut down, or it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the committer has stopped")]
pub struct Stopped;

/// Why an input was not taken at once; it comes back.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrySubmitError<I> {
    /// The queue is full.
    #[error("the committer's queue is full")]
    Full(I),
    /// See [`struct@Stopped`].
    #[error("the committer has stopped")]
    Stopped(I),
}

/// When an output may leave, of a store that runs with [`Durability::Os`](crate::store::Durability::Os).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release {
    /// Once its group is written: a power cut may make it untrue.
    Written,
    /// Once its group and all before it are synced.
    Synced,
}

/// Takes what the machine releases. A closure that takes outputs is a sink, all of whose outputs wait for syncs.
pub trait Sink<O> {
    /// When this output may leave. With [`Fsync`](crate::store::Durability::Fsync) nobody asks: written is synced.
    fn release(&self, output: &O) -> Release;

    /// Takes an output. Runs on the thread that writes: it must not block.
    fn take(&mut self, output: O);
}

impl<O, F: FnMut(O)> Sink<O> for F {
    fn release(&self, _: &O) -> Release {
        Release::Synced
    }

    fn take(&mut self, output: O) {
        self(output);
    }
}

/// Starts committers.
#[derive(Debug)]
pub struct Committer;

impl Committer {
    /// Starts the thread that drives the machine, one that writes, and with [`Os`](crate::store::Durability::Os) one
    /// that syncs. From now on nothing else may commit to the store.
    ///
    /// Fails if the system gives no thread or no timer.
    pub fn spawn<M, S>(
        machine: M,
        store: S,
        sink: impl Sink<M::Output> + Send + 'static,
        options: CommitterOptions,
    ) -> std::io::Result<CommitterHandle<M::Input>>
    where
        M: Machine + Send + 'static,
        M::Input: Send + 'static,
        M::Output: Send + 'static,
        S: Commit + Clone + Send + 'static,
    {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        let (inputs, queue) = mpsc::channel(options.queue_inputs.max(1));
        let (status_writer, status) = watch::channel(Status::Running);
        let shared = Arc::new(Shared::default());
        let writer = Writer::spawn(store.clone(), sink, &options, Arc::clone(&shared.stats))?;
        let (closing, stats) = (Arc::clone(&shared.closing), Arc::clone(&shared.stats));
        let thread = std::thread::Builder::new().name("godwit-commit".to_string()).spawn(move || {
            let driver = Driver {
                machine,
                store: &store,
                reader: store.reader(),
                writer,
                options,
                queue,
                group: Effects::default(),
                inputs: 0,
                begun: None,
                under_way: None,
                last_write: Duration::ZERO,
                start: Instant::now(),
                closing,
                stats,
            };
            run_thread(&runtime, driver, &status_writer);
            // The status closes last: who waits for that may take the store to be let go of.
            drop(store);
            drop(status_writer);
        })?;
        shared.keep(thread);
        Ok(CommitterHandle { inputs, status, shared })
    }
}

/// Submits inputs to a committer and tells how it is. Clones are the same committer.
pub struct CommitterHandle<I> {
    inputs: mpsc::Sender<I>,
    status: watch::Receiver<Status>,
    shared: Arc<Shared>,
}

impl<I> CommitterHandle<I> {
    /// Queues an input, waiting for room. `Ok` means queued, not committed: what becomes of it, the sink is
    /// told. Cancel-safe: a dropped future has either queued its input or not.
    pub async fn submit(&self, input: I) -> Result<(), Stopped> {
        self.inputs.send(input).await.map_err(|_| Stopped)
    }

    /// Queues an input if there is room now.
    pub fn try_submit(&self, input: I) -> Result<(), TrySubmitError<I>> {
        self.inputs.try_send(input).map_err(|error| match error {
            TrySendError::Full(input) => TrySubmitError::Full(input),
            TrySendError::Closed(input) => TrySubmitError::Stopped(input),
        })
    }

    /// Inputs that wait.
    pub fn queued(&self) -> usize {
        self.inputs.max_capacity() - self.inputs.capacity()
    }

    /// What the committer has counted.
    pub fn stats(&self) -> &Arc<CommitStats> {
        &self.shared.stats
    }

    /// Resolves when the committer has failed, never if it ends as asked. The process should then exit with an
    /// error: this node takes no more writes.
    pub async fn failed(&self) -> Failure {
        match self.ended(|status| *status != Status::Running).await {
            Err(failure) => failure,
            Ok(()) => std::future::pending().await,
        }
    }

    /// Takes no more inputs, handles and commits those queued, and waits until the thread has ended and has let
    /// go of machine, store and sink. The failure, if it failed. May be called again, by any clone.
    pub async fn shutdown(&self) -> Result<(), Failure> {
        self.shared.closing.notify_one();
        // The status closes as the thread's last act, so joining it does not block this task.
        let outcome = self.ended(|_| false).await;
        match self.shared.take_thread().map(JoinHandle::join) {
            Some(Err(panic)) => outcome.and(Err(Failure::Panicked(panic_text(panic.as_ref())))),
            _ => outcome,
        }
    }

    /// Waits for a status, or for the end of the thread.
    async fn ended(&self, enough: impl FnMut(&Status) -> bool) -> Result<(), Failure> {
        let mut status = self.status.clone();
        // An error says that the thread has ended; the last status stays readable.
        let _ = status.wait_for(enough).await;
        match &*status.borrow() {
            Status::Stopped => Ok(()),
            Status::Failed(failure) => Err(failure.clone()),
            Status::Running => Err(Failure::Panicked("the thread ended while it was stopping".to_string())),
        }
    }
}

impl<I> Clone for CommitterHandle<I> {
    fn clone(&self) -> Self {
        Self { inputs: self.inputs.clone(), status: self.status.clone(), shared: Arc::clone(&self.shared) }
    }
}

impl<I> std::fmt::Debug for CommitterHandle<I> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let status = self.status.borrow().clone();
        f.debug_struct("CommitterHandle").field("status", &status).finish_non_exhaustive()
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Status {
    Running,
    Stopped,
    Failed(Failure),
}

#[derive(Default)]
struct Shared {
    closing: Arc<Notify>,
    stats: Arc<CommitStats>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Shared {
    fn keep(&self, thread: JoinHandle<()>) {
        *self.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
    }

    fn take_thread(&self) -> Option<JoinHandle<()>> {
        self.thread.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

fn run_thread<M, S>(runtime: &Runtime, mut driver: Driver<'_, M, S>, status: &watch::Sender<Status>)
where
    M: Machine,
    M::Output: Send + 'static,
    S: Commit,
{
    // Unwind safety: after a panic nothing of the driver is used again, it is only dropped.
    let outcome = catch_unwind(AssertUnwindSafe(|| runtime.block_on(driver.run())))
        .unwrap_or_else(|panic| Err(Failure::Panicked(panic_text(panic.as_ref()))));
    match outcome {
        Ok(()) => {
            drop(driver);
            status.send_replace(Status::Stopped);
        }
        Err(failure) => {
            tracing::error!(%failure, "the committer failed");
            // Before the queue closes: who is refused finds the reason.
            status.send_replace(Status::Failed(failure));
            drop(driver);
        }
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message").to_string()
}

struct Driver<'s, M: Machine, S: Commit + 's> {
    machine: M,
    store: &'s S,
    /// Of the group that fills: it was made when all groups but the one under way were written.
    reader: S::Reader<'s>,
    writer: Writer<M::Output>,
    options: CommitterOptions,
    queue: mpsc::Receiver<M::Input>,
    /// The group that fills, and its inputs, timeouts counted too.
    group: Effects<M::Output>,
    inputs: usize,
    /// When the first of them was handled.
    begun: Option<Instant>,
    /// The group that is being written.
    under_way: Option<Arc<Batch>>,
    /// How long the one before took to write.
    last_write: Duration,
    /// What monotonic time counts from.
    start: Instant,
    closing: Arc<Notify>,
    stats: Arc<CommitStats>,
}

impl<M, S> Driver<'_, M, S>
where
    M: Machine,
    M::Output: Send + 'static,
    S: Commit,
{
    async fn run(&mut self) -> Result<(), Failure> {
        let closing = Arc::clone(&self.closing);
        let mut open = true;
        loop {
            if self.is_ripe() {
                self.hand_over()?;
            }
            let (full, deadline) = (self.is_full(), self.next_deadline());
            // In this order: closing and what was written must not starve under load; a due deadline need not come
            // before inputs, because every group serves it.
            tokio::select! {
                biased;
                () = closing.notified(), if open => {
                    self.queue.close();
                    open = false;
                }
                event = self.writer.event() => self.written(event?),
                input = self.queue.recv(), if !full => match input {
                    Some(input) => self.handle(input)?,
                    // Closed and drained, or every handle is gone.
                    None => return self.finish().await,
                },
                () = at(deadline), if !full => self.handle_timeout()?,
            }
        }
    }

    /// Whether the group is to be handed over now: nothing is being written, and either nothing waits, or no more fits in,
    /// or it has been filled for as long as the one before took to write. Then both halves have the same to do, and
    /// neither waits long for the other.
    fn is_ripe(&self) -> bool {
        let Some(begun) = self.begun.filter(|_| self.under_way.is_none()) else { return false };
        self.queue.is_empty() || self.is_full() || begun.elapsed() >= self.last_write
    }

    fn is_full(&self) -> bool {
        self.inputs >= self.options.group_inputs_max.max(1)
            || self.group.batch.bytes() >= self.options.group_bytes_max.max(1)
    }

    fn handle(&mut self, input: M::Input) -> Result<(), Failure> {
        let now = self.count();
        let (machine, group) = (&mut self.machine, &mut self.group);
        match &self.under_way {
            None => machine.handle(now, input, &self.reader, group),
            Some(batch) => machine.handle(now, input, &Overlay::new(&self.reader, batch), group),
        }
        .map_err(Failure::Machine)
    }

    fn handle_timeout(&mut self) -> Result<(), Failure> {
        let now = self.count();
        let (machine, group) = (&mut self.machine, &mut self.group);
        match &self.under_way {
            None => machine.handle_timeout(now, &self.reader, group),
            Some(batch) => machine.handle_timeout(now, &Overlay::new(&self.reader, batch), group),
        }
        .map_err(Failure::Machine)
    }

    /// Counts an input or a timeout into the group.
    fn count(&mut self) -> Now {
        self.begun.get_or_insert_with(Instant::now);
        self.inputs += 1;
        self.now()
    }

    /// Hands over the group that fills, a due deadline served.
    fn hand_over(&mut self) -> Result<(), Failure> {
        let now = self.now();
        if self.machine.next_deadline().is_some_and(|deadline| deadline <= now.mono) {
            self.handle_timeout()?;
        }
        let Effects { batch, outputs } = std::mem::take(&mut self.group);
        self.stats.add_group(self.inputs as u64, outputs.len() as u64);
        (self.inputs, self.begun) = (0, None);
        if batch.is_empty() && outputs.is_empty() {
            // Nothing is pinned for as long as nothing happens.
            self.reader = self.store.reader();
            return Ok(());
        }
        let batch = Arc::new(batch);
        self.under_way = Some(Arc::clone(&batch));
        self.writer.hand_over(batch, outputs);
        Ok(())
    }

    fn written(&mut self, event: Event) {
        if let Event::Written(took) = event {
            self.under_way = None;
            // What was laid over the store is in it, and the former reader may not see it.
            self.reader = self.store.reader();
            self.last_write = took;
        }
    }

    /// Hands over what is left, and waits until all is durable and released.
    async fn finish(&mut self) -> Result<(), Failure> {
        loop {
            if self.under_way.is_none() {
                if self.begun.is_none() {
                    break;
                }
                self.hand_over()?;
            }
            let event = self.writer.event().await?;
            self.written(event);
        }
        self.writer.finish();
        while !matches!(self.writer.event().await?, Event::Finished) {}
        Ok(())
    }

    fn now(&self) -> Now {
        let us = self.start.elapsed().as_micros();
        // A clock before 1970 is wrong anyway; the hybrid clock keeps stamps in order.
        let ms =
            SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis());
        Now {
            mono: Mono(u64::try_from(us).unwrap_or(u64::MAX)),
            wall: Wall(u64::try_from(ms).unwrap_or(u64::MAX)),
        }
    }

    fn next_deadline(&self) -> Option<tokio::time::Instant> {
        let Mono(us) = self.machine.next_deadline()?;
        // A deadline beyond what the clock can express never comes.
        let deadline = self.start.checked_add(Duration::from_micros(us))?;
        Some(deadline.into())
    }
}

async fn at(deadline: Option<tokio::time::Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
