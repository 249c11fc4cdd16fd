//! Keeping the log within its size and age, whoever is behind.
//!
//! The partition with the largest log loses its oldest interval first, until all together fit
//! ([`crate::Tuning::log_bytes_max`]): a partition that is written often does not take the log of a quiet one. Age
//! ([`crate::Tuning::log_age_max_ms`]) counts for each by itself, and ends the interval of one that is not written any
//! more. A step drops a bounded number of intervals; if that was
//! not enough the next one follows at once, after what clients asked for meanwhile. What exceeds the size is dropped as
//! soon as it is there, so the log stays at its size under any rate of writes.
//!
//! Dropping moves the log's floor, in the step's batch. The bytes are the driver's to remove, once that is durable
//! ([`Output::Trim`]): what was not removed before the process ended is named again when the next one begins.

use std::collections::BTreeMap;

use godwit_core::ids::PartitionId;
use godwit_core::partition::{Applied, Sizes};
use godwit_core::store::{StoreError, StoreRead};
use godwit_core::time::Mono;

use crate::interface::Output;
use crate::node::{Node, NodeConfig, Step};

/// Times that a partition is picked in one step.
const STEP_PICKS_MAX: usize = 64;
/// The interval of checkpoints is made so small that those of all partitions are no more than this part of the log's size.
const INTERVALS_PART: u64 = 4;
/// But no smaller than this: a checkpoint has a context.
const CHECKPOINT_BYTES_MIN: u64 = 4 * 1024;

/// When the log's size is looked at, and what it was.
#[derive(Debug)]
pub(crate) struct Retention {
    at: Mono,
    /// Bytes of all logs.
    bytes: u64,
    /// Set while there is too much and nothing can be dropped: waiting for `at` costs less than looking after each write.
    is_stuck: bool,
    /// Whether garbage of the process before was named.
    begun: bool,
}

impl Retention {
    pub(crate) fn new() -> Self {
        Self { at: Mono(0), bytes: 0, is_stuck: false, begun: false }
    }

    pub(crate) fn deadline(&self) -> Mono {
        self.at
    }
}

/// The partitions' sizes, with checkpoints close enough for the log's size.
pub(crate) fn sizes(config: &NodeConfig) -> Sizes {
    let tuning = &config.tuning;
    let most = tuning.log_bytes_max / (INTERVALS_PART * u64::from(config.partitions));
    let checkpoint_bytes = tuning.sizes.checkpoint_bytes.min(most.max(CHECKPOINT_BYTES_MIN));
    Sizes { checkpoint_bytes, ..tuning.sizes.clone() }
}

impl Node {
    /// An entry was written.
    pub(crate) fn log_grew(&mut self, now: Mono, applied: &Applied) {
        let retention = &mut self.retention;
        retention.bytes = retention.bytes.saturating_add(applied.encoded.as_bytes().len() as u64);
        if retention.bytes > self.config.tuning.log_bytes_max && !retention.is_stuck {
            retention.at = retention.at.min(now);
        }
    }

    /// Drops what is too much or too old.
    pub(crate) fn retention_due<S: StoreRead>(&mut self, step: &mut Step<'_, S>) -> Result<(), StoreError> {
        let now = step.now.mono;
        if self.retention.at > now {
            return Ok(());
        }
        let (bytes_max, age_max_ms) = (self.config.tuning.log_bytes_max, self.config.tuning.log_age_max_ms);
        let now_ms = step.now.wall.0;
        let oldest_ms = now_ms.saturating_sub(age_max_ms);
        for partition in &mut self.partitions {
            partition.end_interval(&mut step.txn, oldest_ms, now_ms);
        }
        let mut bytes: u64 = self.partitions.iter().map(|partition| partition.log_bytes()).sum();
        let mut garbage: BTreeMap<PartitionId, u64> = BTreeMap::new();
        if !std::mem::replace(&mut self.retention.begun, true) {
            let firsts = self.partition_ids().zip(&self.partitions);
            let firsts = firsts.map(|(id, partition)| (id, partition.log_floor().first));
            garbage.extend(firsts.filter(|(_, first)| *first > 1));
        }
        let mut picks = 0;
        let is_done = loop {
            let Some((id, excess)) = self.log_to_cut(bytes.saturating_sub(bytes_max), oldest_ms) else {
                break true;
            };
            if picks == STEP_PICKS_MAX {
                break false;
            }
            picks += 1;
            let partition = &mut self.partitions[usize::from(id.0)];
            let before = partition.log_bytes();
            let moved = partition.truncate(&mut step.txn, excess, oldest_ms)?;
            bytes -= before - partition.log_bytes();
            garbage.extend(moved.map(|first| (id, first)));
        };
        for (partition, first) in garbage {
            step.outputs.push(Output::Trim { partition, first });
        }
        let pause = if is_done { self.config.tuning.log_check_us } else { 0 };
        self.retention = Retention {
            at: now.plus_us(pause),
            bytes,
            is_stuck: is_done && bytes > bytes_max,
            ..self.retention
        };
        Ok(())
    }

    /// The partition whose oldest interval is next to be dropped, and how many of its bytes are too much: one that has
    /// something too old, or the largest if all together are.
    fn log_to_cut(&self, excess: u64, oldest_ms: u64) -> Option<(PartitionId, u64)> {
        let cuttable = || self.partition_ids().zip(&self.partitions).filter(|(_, log)| log.can_truncate());
        let is_old = |log: &godwit_core::partition::Partition| {
            log.log_oldest_ms().is_some_and(|written_ms| written_ms < oldest_ms)
        };
        if let Some((id, _)) = cuttable().find(|(_, log)| is_old(log)) {
            return Some((id, 0));
        }
        let largest = cuttable().max_by_key(|(_, log)| log.log_bytes()).filter(|_| excess > 0);
        // One interval at a time: then another log may be the largest.
        largest.map(|(id, _)| (id, 1))
    }
}
