//! The driver law, with machines and stores made to break it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use godwit_core::machine::{Effects, Machine};
use godwit_core::store::{Batch, Family, MemStore, StoreError, StoreRead, Txn, Visit};
use godwit_core::time::{Mono, Now};
use godwit_engine::committer::{
    Committer, CommitterHandle, CommitterOptions, Failure, GROUP_INPUTS_MAX, Release, Sink, TrySubmitError,
};
use godwit_engine::store::{Commit, Durability, RocksStore, StoreOptions};
use tempfile::TempDir;

/// Longer than anything here takes; only a broken test waits for it.
const PATIENCE: Duration = Duration::from_secs(60);
const COUNTER: &[u8] = b"counter";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Input {
    /// Adds one and answers with the sum.
    Add,
    /// Answers with the sum.
    Read,
    /// Asks for a timeout so many microseconds from now, which adds a thousand.
    AddLater(u64),
    Fail,
    Panic,
}

#[derive(Default)]
struct Sums {
    deadline: Option<Mono>,
}

fn sum(store: &impl StoreRead) -> Result<u64, StoreError> {
    let stored = store.get(Family::Meta, COUNTER)?;
    Ok(stored.map_or(0, |bytes| u64::from_be_bytes(bytes.try_into().unwrap())))
}

fn add(n: u64, store: &impl StoreRead, out: &mut Effects<u64>) -> Result<(), StoreError> {
    let mut txn = Txn::new(store, &mut out.batch);
    let sum = sum(&txn)? + n;
    txn.put(Family::Meta, COUNTER.to_vec(), sum.to_be_bytes().to_vec());
    out.outputs.push(sum);
    Ok(())
}

impl Machine for Sums {
    type Input = Input;
    type Output = u64;

    fn handle(
        &mut self,
        now: Now,
        input: Input,
        store: &impl StoreRead,
        out: &mut Effects<u64>,
    ) -> Result<(), StoreError> {
        match input {
            Input::Add => add(1, store, out)?,
            Input::Read => {
                let sum = sum(&Txn::new(store, &mut out.batch))?;
                out.outputs.push(sum);
            }
            Input::AddLater(us) => self.deadline = Some(now.mono.plus_us(us)),
            Input::Fail => return Err(StoreError::Inconsistent("on request".to_string())),
            Input::Panic => panic!("on request"),
        }
        Ok(())
    }

    fn next_deadline(&self) -> Option<Mono> {
        self.deadline
    }

    fn handle_timeout(
        &mut self,
        now: Now,
        store: &impl StoreRead,
        out: &mut Effects<u64>,
    ) -> Result<(), StoreError> {
        let deadline = self.deadline.take().unwrap();
        assert!(deadline <= now.mono, "called early");
        add(1000, store, out)
    }
}

/// A store in memory whose commits each announce themselves, then wait to be told how to go on.
#[derive(Clone)]
struct GatedStore {
    inner: Arc<Mutex<MemStore>>,
    commits: Arc<AtomicUsize>,
    entered: Sender<()>,
    verdicts: Arc<Mutex<Receiver<Result<(), StoreError>>>>,
}

struct Gate {
    entered: Receiver<()>,
    verdicts: Sender<Result<(), StoreError>>,
}

fn gated() -> (GatedStore, Gate) {
    let (entered, on_entered) = mpsc::channel();
    let (verdicts, on_verdict) = mpsc::channel();
    let store = GatedStore {
        inner: Arc::default(),
        commits: Arc::default(),
        entered,
        verdicts: Arc::new(Mutex::new(on_verdict)),
    };
    (store, Gate { entered: on_entered, verdicts })
}

impl StoreRead for GatedStore {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.inner.lock().unwrap().get(family, key)
    }

    fn scan(&self, family: Family, from: &[u8], to: &[u8], visit: Visit<'_>) -> Result<(), StoreError> {
        self.inner.lock().unwrap().scan(family, from, to, visit)
    }
}

impl Commit for GatedStore {
    type Reader<'s> = &'s Self;

    fn reader(&self) -> &Self {
        self
    }

    fn commit(&self, batch: &Batch) -> Result<(), StoreError> {
        self.commits.fetch_add(1, Ordering::SeqCst);
        let _ = self.entered.send(());
        // A gate that is gone is open.
        self.verdicts.lock().unwrap().recv().unwrap_or(Ok(()))?;
        self.inner.lock().unwrap().commit(batch.clone());
        Ok(())
    }
}

fn spawn<S: Commit + Clone + Send + 'static>(store: S) -> (CommitterHandle<Input>, Receiver<u64>) {
    let (sender, outputs) = mpsc::channel();
    let sink = move |sum| sender.send(sum).unwrap();
    let handle = Committer::spawn(Sums::default(), store, sink, CommitterOptions::default()).unwrap();
    (handle, outputs)
}

fn rocks() -> (TempDir, RocksStore) {
    let dir = TempDir::new().unwrap();
    let store = RocksStore::open(dir.path(), &StoreOptions::default()).unwrap();
    (dir, store)
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it should not take this long")
}

async fn until(is: impl Fn() -> bool) {
    let polls = async {
        while !is() {
            tokio::time::sleep(Duration::from_millis(1)).await; // polls: until it is so
        }
    };
    within(polls).await;
}

#[tokio::test]
async fn outputs_come_after_their_commit_and_in_order() {
    let (_dir, store) = rocks();
    let (sender, outputs) = mpsc::channel();
    let reader = store.clone();
    let sink = move |seen: u64| sender.send((seen, sum(&reader).unwrap())).unwrap();
    let handle = Committer::spawn(Sums::default(), store, sink, CommitterOptions::default()).unwrap();
    for _ in 0..2000 {
        handle.submit(Input::Add).await.unwrap();
    }
    within(handle.shutdown()).await.unwrap();
    let outputs: Vec<_> = outputs.try_iter().collect();
    assert_eq!(outputs.iter().map(|&(seen, _)| seen).collect::<Vec<_>>(), (1..=2000).collect::<Vec<_>>());
    assert!(outputs.iter().all(|&(seen, stored)| seen <= stored), "released before it was stored");
    let counts = handle.stats().counts();
    assert_eq!((counts.inputs, counts.outputs), (2000, 2000));
    assert_eq!(counts.commit_us_buckets.iter().sum::<u64>(), counts.commits);
}

#[tokio::test]
async fn nothing_is_released_while_the_commit_runs_and_groups_form_behind_it() {
    let (store, gate) = gated();
    let commits = Arc::clone(&store.commits);
    let (handle, outputs) = spawn(store);
    handle.submit(Input::Add).await.unwrap();
    gate.entered.recv_timeout(PATIENCE).unwrap();
    for _ in 0..GROUP_INPUTS_MAX * 2 + 1 {
        handle.try_submit(Input::Add).unwrap();
    }
    // The next group fills meanwhile, until it is full.
    until(|| handle.queued() == GROUP_INPUTS_MAX + 1).await;
    assert!(outputs.try_recv().is_err(), "released before the commit returned");

    drop(gate);
    within(handle.shutdown()).await.unwrap();
    let all = 1..=GROUP_INPUTS_MAX as u64 * 2 + 2;
    assert_eq!(outputs.try_iter().collect::<Vec<_>>(), all.collect::<Vec<_>>(), "each sees those before it");
    assert!(commits.load(Ordering::SeqCst) >= 4, "one, then no group beyond its limit");
    assert_eq!(handle.stats().counts().group_inputs_max, GROUP_INPUTS_MAX as u64);
}

#[tokio::test]
async fn bytes_end_a_group_too() {
    let (store, gate) = gated();
    let commits = Arc::clone(&store.commits);
    let options = CommitterOptions { group_bytes_max: 1, ..CommitterOptions::default() };
    let handle = Committer::spawn(Sums::default(), store, |_| {}, options).unwrap();
    for _ in 0..5 {
        handle.submit(Input::Add).await.unwrap();
    }
    drop(gate);
    within(handle.shutdown()).await.unwrap();
    assert_eq!(commits.load(Ordering::SeqCst), 5);
}

#[tokio::test]
async fn what_changes_nothing_is_answered_without_a_commit() {
    let (store, gate) = gated();
    let (handle, outputs) = spawn(store);
    handle.submit(Input::Read).await.unwrap();
    assert_eq!(outputs.recv_timeout(PATIENCE), Ok(0));
    assert!(gate.entered.try_recv().is_err());
    assert_eq!(handle.stats().counts().commits, 0);
}

#[tokio::test]
async fn a_full_queue_pushes_back() {
    let (store, gate) = gated();
    let options = CommitterOptions { queue_inputs: 2, group_inputs_max: 1, ..CommitterOptions::default() };
    let handle = Committer::spawn(Sums::default(), store, |_| {}, options).unwrap();
    handle.submit(Input::Add).await.unwrap();
    gate.entered.recv_timeout(PATIENCE).unwrap();
    // One more is the next group, and the queue takes two.
    handle.submit(Input::Add).await.unwrap();
    until(|| handle.queued() == 0).await;
    handle.try_submit(Input::Add).unwrap();
    handle.try_submit(Input::Add).unwrap();
    assert_eq!(handle.try_submit(Input::Add), Err(TrySubmitError::Full(Input::Add)));
    let waits = handle.submit(Input::Add);
    let (waited, ()) = within(async { tokio::join!(waits, async { drop(gate) }) }).await;
    waited.unwrap();
    within(handle.shutdown()).await.unwrap();
    assert_eq!(handle.stats().counts().inputs, 5);
}

/// Three inputs in one group behind a gated first one, the last of which breaks: nothing of them comes out.
async fn poisoned_by(last: Input, expected: Failure) {
    let (store, gate) = gated();
    let reader = store.clone();
    let (handle, outputs) = spawn(store);
    handle.submit(Input::Add).await.unwrap();
    gate.entered.recv_timeout(PATIENCE).unwrap();
    for input in [Input::Add, Input::Read, last] {
        handle.submit(input).await.unwrap();
    }
    drop(gate);
    assert_eq!(within(handle.failed()).await, expected);
    assert_eq!(within(handle.shutdown()).await, Err(expected.clone()));
    assert_eq!(within(handle.clone().shutdown()).await, Err(expected));
    assert_eq!(outputs.iter().collect::<Vec<_>>(), [1], "only the group before is released");
    assert_eq!(sum(&reader), Ok(1));
    assert!(handle.submit(Input::Add).await.is_err());
    assert_eq!(handle.try_submit(Input::Add), Err(TrySubmitError::Stopped(Input::Add)));
}

#[tokio::test]
async fn a_failing_step_poisons() {
    poisoned_by(Input::Fail, Failure::Machine(StoreError::Inconsistent("on request".to_string()))).await;
}

#[tokio::test]
async fn a_panic_poisons() {
    poisoned_by(Input::Panic, Failure::Panicked("on request".to_string())).await;
}

#[tokio::test]
async fn a_failing_commit_poisons() {
    let (store, gate) = gated();
    let (handle, outputs) = spawn(store);
    let disk_full = StoreError::Io("disk full".to_string());
    gate.verdicts.send(Err(disk_full.clone())).unwrap();
    handle.submit(Input::Add).await.unwrap();
    let failure = within(handle.failed()).await;
    assert_eq!(failure, Failure::Commit(disk_full));
    assert!(failure.to_string().contains("disk full"));
    assert_eq!(outputs.recv_timeout(PATIENCE), Err(mpsc::RecvTimeoutError::Disconnected));
    // The failure is told before the queue is let go of.
    assert!(within(handle.shutdown()).await.is_err());
    assert!(handle.submit(Input::Add).await.is_err());
}

#[tokio::test]
async fn what_was_built_on_a_failed_commit_goes_nowhere() {
    let (store, gate) = gated();
    let commits = Arc::clone(&store.commits);
    let (handle, outputs) = spawn(store);
    handle.submit(Input::Add).await.unwrap();
    gate.entered.recv_timeout(PATIENCE).unwrap();
    handle.submit(Input::Add).await.unwrap();
    until(|| handle.queued() == 0).await;
    gate.verdicts.send(Err(StoreError::Io("disk full".to_string()))).unwrap();
    assert!(matches!(within(handle.failed()).await, Failure::Commit(_)));
    assert!(within(handle.shutdown()).await.is_err());
    assert_eq!(outputs.iter().count(), 0);
    assert_eq!(commits.load(Ordering::SeqCst), 1, "the group behind it was written");
}

#[tokio::test]
async fn a_panicking_sink_is_reported() {
    let (_dir, store) = rocks();
    let sink = |_: u64| panic!("no room");
    let handle = Committer::spawn(Sums::default(), store, sink, CommitterOptions::default()).unwrap();
    handle.submit(Input::Add).await.unwrap();
    assert_eq!(within(handle.failed()).await, Failure::Panicked("no room".to_string()));
}

#[tokio::test]
async fn a_deadline_fires_without_inputs() {
    let (_dir, store) = rocks();
    let reader = store.clone();
    let (handle, outputs) = spawn(store);
    for expected in [1000, 2000] {
        handle.submit(Input::AddLater(3_000)).await.unwrap();
        assert_eq!(outputs.recv_timeout(PATIENCE), Ok(expected));
        assert_eq!(sum(&reader), Ok(expected));
    }
    // One that the clock cannot express never comes, and harms nothing.
    handle.submit(Input::AddLater(u64::MAX)).await.unwrap();
    handle.submit(Input::Read).await.unwrap();
    assert_eq!(outputs.recv_timeout(PATIENCE), Ok(2000));
    within(handle.shutdown()).await.unwrap();
}

#[tokio::test]
async fn a_due_deadline_is_served_with_the_group() {
    let (store, gate) = gated();
    let (handle, outputs) = spawn(store);
    handle.submit(Input::Add).await.unwrap();
    gate.entered.recv_timeout(PATIENCE).unwrap();
    handle.submit(Input::AddLater(0)).await.unwrap();
    handle.submit(Input::Add).await.unwrap();
    until(|| handle.queued() == 0).await;
    drop(gate);
    within(handle.shutdown()).await.unwrap();
    // Before the last input or after it, but not left to a later group.
    let outputs: Vec<_> = outputs.iter().collect();
    assert!([[1, 2, 1002], [1, 1001, 1002]].contains(&outputs[..].try_into().unwrap()), "{outputs:?}");
    assert_eq!(handle.stats().counts().commits, 2);
}

#[tokio::test]
async fn shutdown_drains_and_lets_go_of_the_store() {
    let (dir, store) = rocks();
    let (handle, outputs) = spawn(store);
    for _ in 0..1000 {
        handle.submit(Input::Add).await.unwrap();
    }
    let both = async { tokio::join!(handle.shutdown(), handle.shutdown()) };
    assert_eq!(within(both).await, (Ok(()), Ok(())));
    assert_eq!(within(handle.shutdown()).await, Ok(()));
    assert_eq!(outputs.iter().count(), 1000);
    assert!(handle.submit(Input::Add).await.is_err());
    let reopened = RocksStore::open(dir.path(), &StoreOptions::default()).unwrap();
    assert_eq!(sum(&reopened), Ok(1000));
}

#[tokio::test]
async fn a_clean_end_is_no_failure() {
    let (_dir, store) = rocks();
    let (handle, _outputs) = spawn(store);
    within(handle.shutdown()).await.unwrap();
    tokio::select! {
        biased;
        failure = handle.failed() => panic!("{failure}"),
        () = std::future::ready(()) => {}
    }
}

#[test]
fn dropping_the_last_handle_drains_too() {
    let (_dir, store) = rocks();
    let (handle, outputs) = spawn(store);
    for _ in 0..100 {
        handle.clone().try_submit(Input::Add).unwrap();
    }
    drop(handle);
    assert_eq!(outputs.iter().count(), 100);
}

/// Acknowledges before it syncs: writes pass, and it is the syncs that announce themselves and wait.
#[derive(Clone)]
struct GatedSyncs(GatedStore);

impl StoreRead for GatedSyncs {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.0.get(family, key)
    }

    fn scan(&self, family: Family, from: &[u8], to: &[u8], visit: Visit<'_>) -> Result<(), StoreError> {
        self.0.scan(family, from, to, visit)
    }
}

impl Commit for GatedSyncs {
    type Reader<'s> = &'s Self;

    fn reader(&self) -> &Self {
        self
    }

    fn commit(&self, _: &Batch) -> Result<(), StoreError> {
        panic!("the committer writes and syncs apart");
    }

    fn durability(&self) -> Durability {
        Durability::Os
    }

    fn write(&self, batch: &Batch) -> Result<(), StoreError> {
        self.0.inner.lock().unwrap().commit(batch.clone());
        Ok(())
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.0.commit(&Batch::default())
    }
}

/// Lets odd sums go once written; tells the two classes apart for the test, too.
struct OddFirst {
    odd: Sender<u64>,
    even: Sender<u64>,
}

impl Sink<u64> for OddFirst {
    fn release(&self, sum: &u64) -> Release {
        if sum % 2 == 1 { Release::Written } else { Release::Synced }
    }

    fn take(&mut self, sum: u64) {
        let class = if sum % 2 == 1 { &self.odd } else { &self.even };
        class.send(sum).unwrap();
    }
}

struct Os {
    handle: CommitterHandle<Input>,
    gate: Gate,
    odd: Receiver<u64>,
    even: Receiver<u64>,
}

fn os(options: CommitterOptions) -> Os {
    let (store, gate) = gated();
    let ((to_odd, odd), (to_even, even)) = (mpsc::channel(), mpsc::channel());
    let sink = OddFirst { odd: to_odd, even: to_even };
    let handle = Committer::spawn(Sums::default(), GatedSyncs(store), sink, options).unwrap();
    Os { handle, gate, odd, even }
}

fn at_once() -> CommitterOptions {
    CommitterOptions { sync_interval: Duration::ZERO, ..CommitterOptions::default() }
}

#[tokio::test]
async fn what_needs_no_sync_passes_what_waits_for_one() {
    let Os { handle, gate, odd, even } = os(at_once());
    // The first sync covers the first write, or the first few; what comes while it runs waits for the next one.
    handle.submit(Input::Add).await.unwrap();
    gate.entered.recv_timeout(PATIENCE).unwrap();
    assert_eq!(odd.recv_timeout(PATIENCE), Ok(1));
    for _ in 0..4 {
        handle.submit(Input::Add).await.unwrap();
    }
    assert_eq!(odd.recv_timeout(PATIENCE), Ok(3));
    assert_eq!(odd.recv_timeout(PATIENCE), Ok(5));
    gate.verdicts.send(Ok(())).unwrap();
    gate.entered.recv_timeout(PATIENCE).unwrap();
    assert!(even.try_recv().is_err(), "released by a sync that began before it was written");
    // It changes nothing, but it says what is not synced yet.
    handle.submit(Input::Add).await.unwrap();
    handle.submit(Input::Read).await.unwrap();
    handle.submit(Input::Add).await.unwrap();
    assert_eq!(odd.recv_timeout(PATIENCE), Ok(7));
    gate.verdicts.send(Ok(())).unwrap();
    assert_eq!([even.recv_timeout(PATIENCE), even.recv_timeout(PATIENCE)], [Ok(2), Ok(4)]);
    gate.entered.recv_timeout(PATIENCE).unwrap();
    assert!(even.try_recv().is_err());
    gate.verdicts.send(Ok(())).unwrap();
    assert_eq!([even.recv_timeout(PATIENCE), even.recv_timeout(PATIENCE)], [Ok(6), Ok(6)]);
    within(handle.shutdown()).await.unwrap();
    assert_eq!(handle.stats().counts().syncs, 3);
}

#[tokio::test]
async fn a_failed_sync_poisons() {
    let Os { handle, gate, odd, even } = os(at_once());
    let disk = StoreError::Io("the disk is gone".to_string());
    for _ in 0..2 {
        handle.submit(Input::Add).await.unwrap();
    }
    gate.entered.recv_timeout(PATIENCE).unwrap();
    assert_eq!(odd.recv_timeout(PATIENCE), Ok(1));
    gate.verdicts.send(Err(disk.clone())).unwrap();
    let failure = within(handle.failed()).await;
    assert_eq!(failure, Failure::Sync(disk));
    assert!(failure.to_string().contains("the disk is gone"));
    assert_eq!(within(handle.shutdown()).await, Err(failure));
    assert_eq!(even.recv_timeout(PATIENCE), Err(mpsc::RecvTimeoutError::Disconnected), "nothing was synced");
    assert!(handle.submit(Input::Add).await.is_err());
}

#[tokio::test]
async fn shutdown_syncs_and_releases() {
    let hourly = CommitterOptions { sync_interval: Duration::from_secs(3600), ..CommitterOptions::default() };
    let Os { handle, gate, odd: _odd, even } = os(hourly);
    for _ in 0..2 {
        handle.submit(Input::Add).await.unwrap();
    }
    gate.entered.recv_timeout(PATIENCE).unwrap();
    for _ in 0..2 {
        handle.submit(Input::Add).await.unwrap();
    }
    // The sync in progress, and one more though its time has not come.
    gate.verdicts.send(Ok(())).unwrap();
    let asked = tokio::spawn({
        let handle = handle.clone();
        async move { handle.shutdown().await }
    });
    let (entered, verdicts) = (gate.entered, gate.verdicts);
    tokio::task::spawn_blocking(move || entered.recv_timeout(PATIENCE).unwrap()).await.unwrap();
    assert!(!asked.is_finished(), "it ended before all was synced");
    verdicts.send(Ok(())).unwrap();
    within(asked).await.unwrap().unwrap();
    assert_eq!(even.iter().collect::<Vec<_>>(), [2, 4]);
}

#[tokio::test]
async fn what_is_not_synced_is_bounded() {
    let limits = [
        CommitterOptions { waiting_outputs_max: 3, ..CommitterOptions::default() },
        CommitterOptions { unsynced_bytes_max: 3 * 15, ..CommitterOptions::default() },
    ];
    for limit in limits {
        let each_a_group = CommitterOptions { group_inputs_max: 1, queue_inputs: 8, ..limit };
        let Os { handle, gate, odd: _odd, even } = os(each_a_group);
        // While no sync ends, the committer takes some, and the queue the rest.
        let mut submitted = 0;
        while handle.queued() < 8 {
            handle.submit(Input::Add).await.unwrap();
            submitted += 1;
        }
        gate.entered.recv_timeout(PATIENCE).unwrap();
        // Half of the outputs wait for a sync; one input more fills the next group.
        let taken_max = 2 * 3 + 1;
        assert!(submitted <= 8 + taken_max, "{submitted} submitted");
        drop(gate);
        within(handle.shutdown()).await.unwrap();
        assert_eq!(even.iter().count(), submitted / 2, "nothing waits for ever");
    }
}

#[tokio::test]
async fn a_real_store_syncs_behind_its_acknowledgements() {
    let dir = TempDir::new().unwrap();
    let options = StoreOptions { durability: Durability::Os, ..StoreOptions::default() };
    let store = RocksStore::open(dir.path(), &options).unwrap();
    let ((to_odd, odd), (to_even, even)) = (mpsc::channel(), mpsc::channel());
    let sink = OddFirst { odd: to_odd, even: to_even };
    let handle = Committer::spawn(Sums::default(), store, sink, at_once()).unwrap();
    for _ in 0..2000 {
        handle.submit(Input::Add).await.unwrap();
    }
    within(handle.shutdown()).await.unwrap();
    assert_eq!(odd.iter().collect::<Vec<_>>(), (1..=2000).step_by(2).collect::<Vec<_>>());
    assert_eq!(even.iter().collect::<Vec<_>>(), (2..=2000).step_by(2).collect::<Vec<_>>());
    assert!(handle.stats().counts().syncs > 0);
    let reopened = RocksStore::open(dir.path(), &StoreOptions::default()).unwrap();
    assert_eq!(sum(&reopened), Ok(2000));
}
