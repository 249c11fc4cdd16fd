//! Replaying the directory's history: each commit in its author's region, once all that its author knew is visible
//! there.
//!
//! What a commit needs is the join of what its parents needed and wrote: partitions and counters, as the writes'
//! answers named them. A region may run a commit when its node has applied that.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde_json::{Value, json};

use super::cluster::{self, Contexts, REGIONS};
use super::data::{Commit, Data};

/// How often a region looks whether more has become visible.
const LOOK: Duration = Duration::from_millis(10);

/// The replay of the whole history.
#[derive(Debug)]
pub(super) struct Replay {
    urls: Vec<String>,
    client: reqwest::Client,
    history: Vec<Commit>,
    /// What each commit that is done needed and wrote.
    known: Mutex<BTreeMap<usize, Contexts>>,
    /// By region: commits whose parents are done, in other regions too, but not all visible in theirs.
    waiting: Vec<Mutex<BTreeSet<usize>>>,
    failed: AtomicUsize,
}

/// The answer to a write.
#[derive(Debug, Deserialize)]
struct Written {
    partition: u16,
    commit: Option<WrittenCommit>,
}

#[derive(Debug, Deserialize)]
struct WrittenCommit {
    replica: String,
    counter: u64,
}

impl Replay {
    pub(super) fn new(data: &Data, urls: Vec<String>) -> Self {
        Self {
            urls,
            client: reqwest::Client::new(),
            history: data.history.clone(),
            known: Mutex::default(),
            waiting: REGIONS.iter().map(|_| Mutex::default()).collect(),
            failed: AtomicUsize::new(0),
        }
    }

    pub(super) fn total(&self) -> usize {
        self.history.len()
    }

    pub(super) fn done(&self) -> usize {
        lock(&self.known).len()
    }

    pub(super) fn is_finished(&self) -> bool {
        self.done() == self.total() || self.failed() > 0
    }

    /// How many commits wait for ancestors that are not visible in their region, and how many stand behind them.
    pub(super) fn waiting(&self) -> (usize, usize) {
        let direct: BTreeSet<usize> = self.waiting.iter().flat_map(|waiting| lock(waiting).clone()).collect();
        let done = lock(&self.known);
        let mut held = direct.clone();
        for commit in self.history.iter().filter(|commit| !done.contains_key(&commit.i)) {
            if commit.parents.iter().any(|parent| held.contains(parent)) {
                held.insert(commit.i);
            }
        }
        (direct.len(), held.len() - direct.len())
    }

    pub(super) fn failed(&self) -> usize {
        self.failed.load(Ordering::Relaxed)
    }

    /// Plays all regions to the end.
    pub(super) async fn play(self: Arc<Self>) -> anyhow::Result<()> {
        let regions = (0..REGIONS.len()).map(|region| {
            let replay = Arc::clone(&self);
            tokio::spawn(async move {
                let outcome = replay.play_region(region).await;
                if outcome.is_err() {
                    replay.failed.fetch_add(1, Ordering::Relaxed);
                }
                outcome
            })
        });
        for region in regions.collect::<Vec<_>>() {
            region.await??;
        }
        Ok(())
    }

    async fn play_region(&self, region: usize) -> anyhow::Result<()> {
        let mut pending: Vec<&Commit> =
            self.history.iter().filter(|commit| commit.region == REGIONS[region].name).collect();
        while !pending.is_empty() && self.failed() == 0 {
            let visible = cluster::ask(&self.client, &self.urls[region], "").await?.contexts;
            let (mut waiting, mut next) = (BTreeSet::new(), None);
            for (at, commit) in pending.iter().enumerate() {
                match self.needs(commit) {
                    Some(needs) if cluster::covers(&visible, &needs) => {
                        next = Some((at, needs));
                        break;
                    }
                    Some(_) => {
                        waiting.insert(commit.i);
                    }
                    None => {}
                }
            }
            *lock(&self.waiting[region]) = waiting;
            match next {
                Some((at, needs)) => {
                    let commit = pending.remove(at);
                    let done = self.run(region, commit, needs).await;
                    let done = done.with_context(|| format!("commit {} in {}", commit.i, commit.region))?;
                    lock(&self.known).insert(commit.i, done);
                }
                None => tokio::time::sleep(LOOK).await,
            }
        }
        lock(&self.waiting[region]).clear();
        Ok(())
    }

    /// What must be visible for a commit, if its parents are done.
    fn needs(&self, commit: &Commit) -> Option<Contexts> {
        let known = lock(&self.known);
        let mut needs = Contexts::new();
        for parent in &commit.parents {
            cluster::join(&mut needs, known.get(parent)?);
        }
        Some(needs)
    }

    /// Runs a commit, one PATCH for each record that it touches; returns what it needed and wrote.
    async fn run(&self, region: usize, commit: &Commit, mut contexts: Contexts) -> anyhow::Result<Contexts> {
        let mut records: Vec<(&str, Vec<Value>)> = Vec::new();
        for op in &commit.ops {
            let parts: Vec<&str> = op.iter().map(String::as_str).collect();
            let (key, op) = match parts[..] {
                ["put", key, field, value] => (key, json!({"op": "set", "field": field, "value": value})),
                ["unset", key, field] => (key, json!({"op": "clear", "field": field})),
                ["del", key] => (key, Value::Null),
                _ => anyhow::bail!("not an operation: {op:?}"),
            };
            match records.last_mut() {
                Some((last, ops)) if *last == key && !op.is_null() && !ops[0].is_null() => ops.push(op),
                _ => records.push((key, vec![op])),
            }
        }
        for (key, ops) in records {
            let url = record_url(&self.urls[region], key);
            let request = if ops[0].is_null() {
                self.client.delete(url)
            } else {
                self.client.patch(url).json(&json!({ "ops": ops }))
            };
            let written: Written = request.send().await?.error_for_status()?.json().await?;
            if let Some(commit) = written.commit {
                let one = BTreeMap::from([(commit.replica, commit.counter)]);
                cluster::join(&mut contexts, &BTreeMap::from([(written.partition, one)]));
            }
        }
        Ok(contexts)
    }
}

/// A mutex that no holder can have left half-changed.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where a podcast's record is.
pub(super) fn record_url(url: &str, key: &str) -> String {
    format!("{url}/v1/directory/{}", utf8_percent_encode(key, NON_ALPHANUMERIC))
}
