//! Votes on posts: increments in all regions at a steady pace, and how long each took.
//!
//! Every vote is a request of its own: `ups` or `downs` and `score` change by one, in one commit. The pace is the same
//! before, during and after the cut, so that latencies can be compared.

use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde_json::json;

use super::cluster::REGIONS;
use super::data::{Data, Post};
use super::trace::lock;

/// Votes a second in each region.
const PACE: u64 = 100;
/// The pace once latencies need no comparing any more.
const HURRY: u64 = 400;
/// Requests under way in each region at most.
const UNDER_WAY_MAX: usize = 16;

/// Where the story is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// All links work.
    Together,
    /// One region is cut off.
    Cut,
    /// All links work again.
    Healed,
}

#[derive(Debug, Clone, Copy)]
struct Vote {
    post: usize,
    up: bool,
}

/// All votes.
#[derive(Debug)]
pub(super) struct Votes {
    urls: Vec<String>,
    client: reqwest::Client,
    posts: Vec<Post>,
    votes: Vec<Vote>,
    next: AtomicUsize,
    done: AtomicUsize,
    failed: AtomicUsize,
    phase: AtomicU8,
    /// Latencies in microseconds, by phase.
    latencies: [Mutex<Histogram<u64>>; 3],
}

impl Votes {
    pub(super) fn new(data: &Data, urls: Vec<String>) -> Self {
        let posts = &data.posts;
        let of_post = |(post, p): (usize, &Post)| {
            let ups = (0..p.ups).map(move |_| Vote { post, up: true });
            ups.chain((0..p.downs).map(move |_| Vote { post, up: false }))
        };
        let mut votes: Vec<Vote> = posts.iter().enumerate().flat_map(of_post).collect();
        // People do not vote post by post.
        let mut rng = godwit_core::rng::Rng::new(1);
        for i in (1..votes.len()).rev() {
            votes.swap(i, rng.below(i as u64 + 1) as usize);
        }
        let histogram =
            || Mutex::new(Histogram::new(3).unwrap_or_else(|_| unreachable!("3 digits are allowed")));
        Self {
            urls,
            client: reqwest::Client::new(),
            posts: posts.clone(),
            votes,
            next: AtomicUsize::new(0),
            done: AtomicUsize::new(0),
            failed: AtomicUsize::new(0),
            phase: AtomicU8::new(Phase::Together as u8),
            latencies: [histogram(), histogram(), histogram()],
        }
    }

    pub(super) fn total(&self) -> usize {
        self.votes.len()
    }

    pub(super) fn done(&self) -> usize {
        self.done.load(Ordering::Relaxed)
    }

    pub(super) fn failed(&self) -> usize {
        self.failed.load(Ordering::Relaxed)
    }

    pub(super) fn is_finished(&self) -> bool {
        self.done() + self.failed() == self.total()
    }

    pub(super) fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Relaxed);
    }

    /// Votes counted in a phase.
    pub(super) fn count(&self, phase: Phase) -> usize {
        self.latency(phase).len() as usize
    }

    /// Writes the posts' titles, spread over the regions.
    pub(super) async fn publish_posts(&self) -> anyhow::Result<()> {
        for (i, post) in self.posts.iter().enumerate() {
            let url = post_url(&self.urls[i % self.urls.len()], &post.id);
            let body = json!({"ops": [{"op": "set", "field": "title", "value": post.title}]});
            self.client.patch(url).json(&body).send().await?.error_for_status()?;
        }
        Ok(())
    }

    /// Casts all votes.
    pub(super) async fn cast(self: Arc<Self>) -> anyhow::Result<()> {
        let regions: Vec<_> =
            (0..REGIONS.len()).map(|region| tokio::spawn(Arc::clone(&self).cast_in(region))).collect();
        for region in regions {
            region.await?;
        }
        Ok(())
    }

    async fn cast_in(self: Arc<Self>, region: usize) {
        let room = Arc::new(tokio::sync::Semaphore::new(UNDER_WAY_MAX));
        let mut due = Instant::now();
        loop {
            let at = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(&vote) = self.votes.get(at) else { break };
            let pace = if self.phase.load(Ordering::Relaxed) == Phase::Healed as u8 { HURRY } else { PACE };
            due = (due + Duration::from_micros(1_000_000 / pace))
                .max(Instant::now() - Duration::from_millis(100));
            tokio::time::sleep_until(due.into()).await;
            let Ok(permit) = Arc::clone(&room).acquire_owned().await else { break };
            let votes = Arc::clone(&self);
            tokio::spawn(async move {
                votes.vote(region, vote).await;
                drop(permit);
            });
        }
        // All permits back: all requests answered.
        let _ = room.acquire_many(UNDER_WAY_MAX as u32).await;
    }

    async fn vote(&self, region: usize, vote: Vote) {
        let (field, score) = if vote.up { ("ups", 1) } else { ("downs", -1) };
        let body = json!({"ops": [
            {"op": "incr", "field": field, "by": 1},
            {"op": "incr", "field": "score", "by": score},
        ]});
        let request = self.client.patch(post_url(&self.urls[region], &self.posts[vote.post].id)).json(&body);
        let phase = self.phase.load(Ordering::Relaxed);
        let began = Instant::now();
        let answer = request.send().await.and_then(reqwest::Response::error_for_status);
        match answer {
            Ok(_) => {
                let took = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
                // Only a vote wholly within a phase tells about it.
                if self.phase.load(Ordering::Relaxed) == phase {
                    lock(&self.latencies[usize::from(phase)]).saturating_record(took);
                }
                self.done.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => {
                tracing::error!(%error, region = REGIONS[region].name, "a vote failed");
                self.failed.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// How latencies during the cut compare with those before, in lines to show.
    pub(super) fn compare(&self) -> Vec<String> {
        let (before, cut) = (self.latency(Phase::Together), self.latency(Phase::Cut));
        let milliseconds = |us: u64| us as f64 / 1000.0;
        let line = |name: &str, quantile: f64| {
            let (before, cut) = (before.value_at_quantile(quantile), cut.value_at_quantile(quantile));
            let ratio = cut as f64 / before.max(1) as f64;
            format!(
                "    {name}  {:>7.2} ms  {:>7.2} ms   x {ratio:.2}",
                milliseconds(before),
                milliseconds(cut)
            )
        };
        vec![
            format!(
                "latency of durable writes: {} before the cut, {} during it, none failed",
                before.len(),
                cut.len()
            ),
            "         before      during".to_string(),
            line("p50", 0.5),
            line("p90", 0.9),
            line("p99", 0.99),
        ]
    }

    fn latency(&self, phase: Phase) -> MutexGuard<'_, Histogram<u64>> {
        lock(&self.latencies[phase as usize])
    }
}

/// Where a post's record is.
pub(super) fn post_url(url: &str, id: &str) -> String {
    format!("{url}/v1/posts/{id}")
}
