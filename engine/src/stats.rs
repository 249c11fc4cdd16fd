//! What the committer counts, for metrics. Counters only grow; reading them never waits for the committer.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds, in microseconds, of the buckets of commit times; one more bucket takes what is slower.
pub const COMMIT_US_BOUNDS: [u64; 12] =
    [50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 1_000_000];

/// Counters of one committer, since it started.
#[derive(Debug, Default)]
pub struct CommitStats {
    groups: AtomicU64,
    commits: AtomicU64,
    inputs: AtomicU64,
    outputs: AtomicU64,
    bytes: AtomicU64,
    group_inputs_max: AtomicU64,
    syncs: AtomicU64,
    sync_us_total: AtomicU64,
    commit_us_total: AtomicU64,
    commit_us_buckets: [AtomicU64; COMMIT_US_BOUNDS.len() + 1],
}

/// The counters' values at some moment. Each is exact, but they are not read at the same instant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitCounts {
    /// Groups processed, those that changed nothing included.
    pub groups: u64,
    /// Groups that were written: and synced, unless the store acknowledges before it syncs.
    pub commits: u64,
    /// Inputs handled in the groups.
    pub inputs: u64,
    /// Outputs of the groups: released, unless the store acknowledges before it syncs and they wait for that.
    pub outputs: u64,
    /// Bytes of keys and values committed.
    pub bytes: u64,
    /// Inputs of the largest group.
    pub group_inputs_max: u64,
    /// Syncs apart from commits: none, unless the store acknowledges before it syncs.
    pub syncs: u64,
    /// Microseconds spent in those.
    pub sync_us_total: u64,
    /// Microseconds spent in commits.
    pub commit_us_total: u64,
    /// Commits by time, not cumulated: bucket `i` counts those of at most [`COMMIT_US_BOUNDS`]`[i]`
    /// microseconds that exceeded the bound before it; the last one counts the rest.
    pub commit_us_buckets: [u64; COMMIT_US_BOUNDS.len() + 1],
}

impl CommitStats {
    /// Reads all counters.
    pub fn counts(&self) -> CommitCounts {
        CommitCounts {
            groups: self.groups.load(Ordering::Relaxed),
            commits: self.commits.load(Ordering::Relaxed),
            inputs: self.inputs.load(Ordering::Relaxed),
            outputs: self.outputs.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            group_inputs_max: self.group_inputs_max.load(Ordering::Relaxed),
            syncs: self.syncs.load(Ordering::Relaxed),
            sync_us_total: self.sync_us_total.load(Ordering::Relaxed),
            commit_us_total: self.commit_us_total.load(Ordering::Relaxed),
            commit_us_buckets: std::array::from_fn(|i| self.commit_us_buckets[i].load(Ordering::Relaxed)),
        }
    }

    pub(crate) fn add_group(&self, inputs: u64, outputs: u64) {
        self.groups.fetch_add(1, Ordering::Relaxed);
        self.inputs.fetch_add(inputs, Ordering::Relaxed);
        self.outputs.fetch_add(outputs, Ordering::Relaxed);
        self.group_inputs_max.fetch_max(inputs, Ordering::Relaxed);
    }

    pub(crate) fn add_sync(&self, took: Duration) {
        self.syncs.fetch_add(1, Ordering::Relaxed);
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.sync_us_total.fetch_add(us, Ordering::Relaxed);
    }

    pub(crate) fn add_commit(&self, bytes: u64, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = COMMIT_US_BOUNDS.partition_point(|&bound| bound < us);
        self.commits.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.commit_us_total.fetch_add(us, Ordering::Relaxed);
        self.commit_us_buckets[bucket].fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_belong_to_the_bucket_below() {
        let stats = CommitStats::default();
        for us in [0, 50, 51, 1_000_000, 1_000_001] {
            stats.add_commit(1, Duration::from_micros(us));
        }
        let counts = stats.counts();
        assert_eq!(counts.commit_us_buckets, [2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1]);
        assert_eq!((counts.commits, counts.bytes, counts.commit_us_total), (5, 5, 2_000_102));
    }
}
