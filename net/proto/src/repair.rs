//! State repair: getting a partition's state from a peer whose log no longer reaches back to what this node has.
//!
//! A peer that is asked for what its log no longer holds says so ([`crate::Message::Gone`]), and then this node repairs the
//! partition from it ([`godwit_core::repair`] says why that is right):
//!
//! 1. It asks with its context. The peer takes a snapshot, and sends the rows that the context does not cover, in parts, and
//!    at the end the root of a tree over the rows that it does cover. They are staged, durably, as they come.
//! 2. The node makes the same tree of its own rows that both contexts cover. Where sums differ it goes down the tree, a level
//!    a round trip, has the differing leaves listed, and so finds which of its rows the peer has no more.
//! 3. It makes what is staged count, together with the joined context, in one batch.
//!
//! Invariants:
//!
//! - *Either side may go at any time.* What is staged counts only when everything is there. A part that does not follow the one
//!   before it is passed over and asked for again; the peer keeps parts until they were taken. A link that comes back within
//!   [`LINGER_US`] (a sixth of it if another peer could repair as well) goes on where it was; otherwise the repair begins anew,
//!   with any peer.
//! - *Bounded.* One repair at a time is asked for, [`SERVED_MAX`] are served, one a peer. For each a snapshot is held, and at
//!   most a window of parts, a tree and some lists of hashes in memory.
//! - *Live traffic goes first.* Rows are read off the committing thread, in steps of [`READ_ROWS`], at a rate
//!   ([`crate::Tuning::repair_bytes_per_s`]) that all repairs of a node share.
//! - *A hostile peer* can make this node stage what it sends, as it can make it apply deltas. Rows are checked as those of deltas
//!   are. What does not fit the repair closes the link.

pub(crate) mod ask;
pub(crate) mod serve;
pub(crate) mod tree;

use std::collections::BTreeMap;

use godwit_core::ids::PartitionId;
use godwit_core::repair::ReadSizes;
use godwit_core::store::{StoreError, StoreRead};
use godwit_core::time::Mono;

use crate::interface::ReaderId;
use crate::node::{Node, Step};

pub use ask::{Phase, RepairStatus};

/// How long a repair waits for the other side before it is given up.
pub const LINGER_US: u64 = 60_000_000;
/// How long to wait for an answer before it is asked for again.
pub(crate) const RETRY_US: u64 = 2_000_000;
/// Repairs and scrubs that a node serves at once.
pub const SERVED_MAX: usize = 4;
/// A scrub is served only below so many: repairs go first.
pub(crate) const SCRUBS_SERVED_MAX: usize = 2;
/// Rows of one read.
pub const READ_ROWS: usize = 16_384;
/// Leaves listed at a time: bounds the hashes that are held.
pub(crate) const LEAVES_MAX: usize = 16_384;
/// Hashes that a scrub names in one message: 256 KiB.
pub(crate) const OTHERS_HASHES_MAX: usize = 32_768;

/// The repairs of a node.
#[derive(Debug, Default)]
pub(crate) struct Repairs {
    /// The one that is asked for.
    pub(crate) asking: Option<ask::Asking>,
    /// Partitions that are to be repaired, and from whom.
    pub(crate) wanted: BTreeMap<PartitionId, String>,
    /// When to begin the next one, or to clear away what is left of the last one.
    pub(crate) begin_at: Option<Mono>,
    /// Those that are served, by peer.
    pub(crate) serving: BTreeMap<String, serve::Serving>,
    /// When the rate allows the next read.
    read_at: Option<Mono>,
    readers: u64,
    /// Repairs and scrubs begun, so that each is named anew.
    begun: u64,
    /// Ended well, since the start.
    pub(crate) done: u64,
    /// Given up, since the start.
    pub(crate) given_up: u64,
    /// Bytes of rows that were sent for repairs, since the start.
    pub(crate) bytes_sent: u64,
    /// Bytes of rows that were staged, since the start.
    pub(crate) bytes_staged: u64,
    /// Rows found that a peer had no more, since the start.
    pub(crate) rows_dropped: u64,
}

impl Repairs {
    /// A partition is to be repaired from a peer, as soon as it is its turn.
    pub(crate) fn want(&mut self, now: Mono, id: PartitionId, peer: &str) {
        if self.asking.as_ref().is_none_or(|asking| asking.partition != id) {
            self.wanted.insert(id, peer.to_string());
            if self.asking.is_none() {
                self.begin_at.get_or_insert(now);
            }
        }
    }

    /// Whether one is asked for, or will be.
    pub(crate) fn is_busy(&self) -> bool {
        self.asking.is_some() || !self.wanted.is_empty()
    }

    pub(crate) fn next_reader(&mut self) -> ReaderId {
        self.readers += 1;
        ReaderId(self.readers)
    }

    /// Takes note of what was read: the next read waits for as long as the rate asks.
    fn paid(&mut self, now: Mono, bytes: usize, bytes_per_s: u64) {
        let costs_us = (bytes as u64).saturating_mul(1_000_000) / bytes_per_s.max(1);
        self.read_at = Some(self.read_at().max(now).plus_us(costs_us));
    }

    /// When the rate allows the next read.
    pub(crate) fn read_at(&self) -> Mono {
        self.read_at.unwrap_or(Mono(0))
    }

    pub(crate) fn deadline(&self, window_bytes: usize) -> Option<Mono> {
        let serving = self.serving.values().map(|serving| serving.deadline(self.read_at(), window_bytes));
        let asking = self.asking.as_ref().map(|asking| asking.deadline(self.read_at()));
        serving.chain(asking).chain(self.begin_at).min()
    }
}

/// What a node's repairs come to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RepairsStatus {
    /// The one that is under way.
    pub under_way: Option<RepairStatus>,
    /// Partitions that wait for theirs.
    pub waiting: usize,
    /// Partitions whose repaired rows count and are being moved to their places.
    pub settling: usize,
    /// Repairs that peers are served at the moment.
    pub serving: usize,
    /// Ended well, since the start.
    pub done: u64,
    /// Given up, since the start.
    pub given_up: u64,
    /// Bytes of rows that came, since the start.
    pub bytes_received: u64,
    /// Bytes of rows that were sent to peers, since the start.
    pub bytes_sent: u64,
    /// Rows of this node that peers had no more, since the start.
    pub rows_dropped: u64,
}

impl Node {
    pub(crate) fn repairs_status(&self) -> RepairsStatus {
        let repairs = &self.repairs;
        RepairsStatus {
            under_way: repairs.asking.as_ref().map(ask::Asking::status),
            waiting: repairs.wanted.len(),
            settling: self.partition_ids().filter(|id| self.settlings.get(*id).is_some()).count(),
            serving: repairs.serving.len(),
            done: repairs.done,
            given_up: repairs.given_up,
            bytes_received: repairs.bytes_staged,
            bytes_sent: repairs.bytes_sent,
            rows_dropped: repairs.rows_dropped,
        }
    }

    pub(crate) fn repairs_due<S: StoreRead>(&mut self, step: &mut Step<'_, S>) -> Result<(), StoreError> {
        self.serving_due(step);
        self.asking_due(step)?;
        self.scrub_due(step);
        Ok(())
    }

    pub(crate) fn read_done<S: StoreRead>(
        &mut self,
        step: &mut Step<'_, S>,
        reader: ReaderId,
        found: godwit_core::repair::Found,
    ) -> Result<(), StoreError> {
        self.repairs.paid(step.now.mono, found.bytes_read, self.config.tuning.repair_bytes_per_s);
        if self.repairs.asking.as_ref().is_some_and(|asking| asking.reader == reader) {
            return self.own_read(step, found);
        }
        if self.scrubs.reads_as(reader) {
            self.scrub_read(step, found);
            return Ok(());
        }
        let peer = self.repairs.serving.iter().find(|(_, serving)| serving.reader == reader);
        if let Some(name) = peer.map(|(name, _)| name.clone()) {
            self.served_read(step, &name, found);
        }
        Ok(())
    }

    pub(crate) fn read_sizes(&self) -> ReadSizes {
        ReadSizes { rows: self.config.tuning.repair_rows, bytes: self.config.tuning.chunk_bytes }
    }
}

/// The key of a repair's hashes.
pub(crate) fn hash_key(repair: u64) -> [u8; 32] {
    blake3::derive_key("godwit 2026 repair", &repair.to_be_bytes())
}
