//! The configuration of a run: everything that is settled before its first event.
//!
//! A seed draws it ([`crate::draw`]), a recorded script holds it ([`crate::script`]). All rates are ratios of integers.

use std::collections::BTreeMap;

use godwit_core::partition::Sizes;
use godwit_proto::Tuning;
use godwit_proto::message::WIRE_VERSION;
use serde::{Deserialize, Serialize};

use crate::network::{NetworkConfig, Pair};

/// Simulated time within which all nodes must agree after faults end: the longest wait of the protocol (resending), a
/// few round trips of the slowest network drawn, and reconnecting.
pub const CONVERGENCE_US_MAX: u64 = 60_000_000;

/// The same in runs that drew less room for deltas that wait than all peers may have in flight, or a window of a few
/// deltas on a network that loses frames within a connection: what finds no room, or is lost, is sent again only after
/// seconds, a few deltas at a time. So it is where an answer to a request holds a few deltas, and a node whose disk was put
/// back lacks many; where logs are short, so that states are repaired part by part; and where nodes of the previous wire version wait for what only its origin can tell them.
pub const CRAMPED_CONVERGENCE_US_MAX: u64 = 30 * CONVERGENCE_US_MAX;

/// What a node that was away for the whole of a run reads of another, several times over: rows of documents are the largest.
const REPAIRED_BYTES: u64 = 200_000;
const SMALL_WINDOW_BYTES: usize = 10_000;
const SMALL_ANSWER_BYTES: usize = 2_000;

/// What is settled before the first event.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// Nodes.
    pub nodes: usize,
    /// The region of each node, by number.
    pub regions: Vec<usize>,
    /// Partitions.
    pub partitions: u16,
    /// Latencies and losses.
    pub network: NetworkConfig,
    /// Windows and waits of the protocol.
    #[serde(with = "TuningLine")]
    pub tuning: Tuning,
    /// The time of an fsync, a node.
    pub fsync_us: Vec<u64>,
    /// The most inputs in a group.
    pub group_max: usize,
    /// Each node's clock at the beginning, in milliseconds off.
    pub clock_offsets_ms: Vec<i64>,
    /// How much each node's clock gains, in millionths.
    pub drifts_ppm: Vec<i64>,
    /// How much faster each node's monotonic clock goes than the time of the world, in millionths; none does if nothing is
    /// said.
    #[serde(default)]
    pub paces_ppm: Vec<i64>,
    /// Whether each node acknowledges writes that it has not synced (`durability = "os"`).
    pub unsynced: Vec<bool>,
    /// How far ahead a remote stamp may be and still be followed.
    pub max_clock_drift_ms: u64,
    /// How long idempotency keys are remembered.
    pub idempotency_window_ms: u64,
    /// When faults end and clients fall silent.
    pub active_us: u64,
    /// Whether only links to the first node heal at the end.
    pub star: bool,
    /// The record, of those of the workload, to which a client goes on writing.
    pub busy: Option<usize>,
    /// Clients that carry tokens and use idempotency keys.
    pub clients: usize,
    /// Whether windows of idempotency keys end while the run goes on.
    pub windows_end: bool,
    /// The newest wire version of each node.
    pub wires: Vec<u8>,
    /// The node whose directory is copied, for a second process under its name.
    pub copied: Option<usize>,
    /// Whether the copy is the one of the two that ends for good.
    pub copy_ends: bool,
}

impl RunConfig {
    /// A cluster in which nothing goes wrong, as it is tuned by default: for histories told step by step.
    pub fn calm(nodes: usize) -> Self {
        Self {
            nodes,
            regions: (0..nodes).collect(),
            partitions: 2,
            network: NetworkConfig {
                latency_us: 1_000,
                jitter_us: 0,
                idle_us: 1_000_000,
                connect_us: 10_000,
                lost_of_1000: 0,
                doubled_of_1000: 0,
                reordered_of_1000: 0,
                damaged_of_1000: 0,
                links: BTreeMap::new(),
            },
            tuning: plain_tuning(),
            fsync_us: vec![100; nodes],
            group_max: 64,
            clock_offsets_ms: vec![0; nodes],
            drifts_ppm: vec![0; nodes],
            paces_ppm: vec![0; nodes],
            unsynced: vec![false; nodes],
            max_clock_drift_ms: 60_000,
            idempotency_window_ms: 86_400_000,
            active_us: 0,
            star: false,
            busy: None,
            clients: 0,
            windows_end: false,
            wires: vec![WIRE_VERSION; nodes],
            copied: None,
            copy_ends: false,
        }
    }

    /// Places for processes: one a node, and one more for a copied one.
    pub fn places(&self) -> usize {
        self.nodes + usize::from(self.copied.is_some())
    }

    /// Whether some nodes speak the previous wire version.
    pub fn has_old(&self) -> bool {
        self.wires.iter().any(|wire| *wire < WIRE_VERSION)
    }

    /// All links: every two places, but for those of one name.
    pub fn pairs(&self) -> Vec<Pair> {
        let same = |a: usize, b: usize| b == self.nodes && self.copied == Some(a);
        let pairs = (0..self.places()).flat_map(|b| (0..b).map(move |a| (a, b)));
        pairs.filter(|&(a, b)| !same(a, b)).collect()
    }

    /// Whether a link leads out of a region.
    pub fn leaves(&self, region: usize, link: Pair) -> bool {
        // The place after the nodes is that of the copied one.
        let node = |place: usize| if place < self.nodes { place } else { self.copied.unwrap_or(0) };
        (self.regions[node(link.0)] == region) != (self.regions[node(link.1)] == region)
    }

    /// Simulated time within which all nodes must agree after faults end.
    pub fn convergence_us_max(&self) -> u64 {
        let tuning = &self.tuning;
        // A waiting delta costs several times what a small one does in a window.
        let in_flight = (self.nodes - 1) * (tuning.window_bytes + tuning.chunk_bytes) * 4;
        let lossy_and_small = self.network.lost_of_1000 > 0 && tuning.window_bytes < SMALL_WINDOW_BYTES;
        let narrow = self.network.links.values().any(|link| link.bytes_per_second.is_some());
        let few_a_request = tuning.relay_bytes < SMALL_ANSWER_BYTES;
        let cramped = tuning.pending_bytes_max < in_flight
            || lossy_and_small
            || narrow
            || few_a_request
            || tuning.log_bytes_max != u64::MAX
            || self.has_old();
        let us_max = if cramped { CRAMPED_CONVERGENCE_US_MAX } else { CONVERGENCE_US_MAX };
        us_max + self.repairs_us()
    }

    /// How long one node may take to have all others repair from it, at the rate of the run.
    fn repairs_us(&self) -> u64 {
        if self.tuning.log_bytes_max == u64::MAX {
            return 0;
        }
        let bytes = (self.nodes as u64 - 1) * REPAIRED_BYTES;
        bytes * 1_000_000 / self.tuning.repair_bytes_per_s.max(1)
    }
}

/// Windows and waits as they are by default, but a log that is never truncated, and no scrubs.
pub fn plain_tuning() -> Tuning {
    let sizes = Sizes { forget_after_ms: 0, ..Sizes::default() };
    Tuning {
        log_bytes_max: u64::MAX,
        log_age_max_ms: u64::MAX,
        scrub_us: u64::MAX,
        sizes,
        ..Tuning::default()
    }
}

/// How [`Tuning`] is written in a script.
#[derive(Serialize, Deserialize)]
#[serde(remote = "Tuning", deny_unknown_fields)]
struct TuningLine {
    contexts_delay_us: u64,
    contexts_interval_us: u64,
    window_bytes: usize,
    chunk_bytes: usize,
    resend_after_us: u64,
    relay_wait_linked_us: u64,
    relay_wait_cut_us: u64,
    relay_retry_us: u64,
    relay_bytes: usize,
    again_burst: u32,
    again_every_us: u64,
    pending_bytes_max: usize,
    push_commits_max: u64,
    repair_bytes_per_s: u64,
    repair_rows: usize,
    repair_window_bytes: usize,
    repair_tree_bits: u8,
    scrub_us: u64,
    job_delay_us: u64,
    job_pause_us: u64,
    log_bytes_max: u64,
    log_age_max_ms: u64,
    log_check_us: u64,
    #[serde(with = "SizesLine")]
    sizes: Sizes,
}

/// How [`Sizes`] are written in a script.
#[derive(Serialize, Deserialize)]
#[serde(remote = "Sizes", deny_unknown_fields)]
struct SizesLine {
    checkpoint_entries: u64,
    checkpoint_bytes: u64,
    clear_rows: usize,
    sweep_rows: usize,
    #[serde(default = "sweep_after_ms")]
    sweep_after_ms: u64,
    #[serde(default = "forget_after_ms")]
    forget_after_ms: u64,
}

/// Of scripts written before there were documents.
fn forget_after_ms() -> u64 {
    Sizes::default().forget_after_ms
}

/// Of scripts written before records expired.
fn sweep_after_ms() -> u64 {
    Sizes::default().sweep_after_ms
}
