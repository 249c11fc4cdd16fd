//! A node of the world: its process, disk and clock, what waits for its machine, and the batches that it writes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use godwit_core::context::VersionVector;
use godwit_core::ids::{PartitionId, ReplicaId};
use godwit_core::machine::Effects;
use godwit_core::op::Limits;
use godwit_core::store::MemStore;
use godwit_core::time::Mono;
use godwit_proto::{Input, LinkId, Message, Node, NodeConfig, Output, ReaderId, RequestId};

use crate::config::RunConfig;
use crate::disks::Image;
use crate::edits::KeptDocuments;
use crate::faults::{Trouble, Unsynced};
use crate::judge::{Asked, Outcome};

const MILLION: u128 = 1_000_000;

/// A node with its process, disk and clock.
#[derive(Debug)]
pub(crate) struct Machinery {
    pub(crate) name: String,
    pub(crate) config: NodeConfig,
    /// The newest wire version that it speaks.
    pub(crate) wire: u8,
    pub(crate) node: Option<Node>,
    pub(crate) disk: MemStore,
    pub(crate) kept: KeptDocuments,
    pub(crate) life: u64,
    /// Inputs, and whether each is a damaged frame.
    pub(crate) inbox: VecDeque<(Input, bool)>,
    /// Connections that the machine has ended.
    pub(crate) ended: BTreeSet<LinkId>,
    /// The group on its way to the disk, and the one behind it.
    pub(crate) group: Option<Group>,
    pub(crate) filling: Group,
    pub(crate) timer: Option<u64>,
    pub(crate) clock_offset_ms: i64,
    /// How much its wall clock gains.
    pub(crate) drift_ppm: i64,
    /// How much faster its monotonic clock goes.
    pub(crate) pace_ppm: i64,
    pub(crate) fsync_us: u64,
    pub(crate) group_max: usize,
    /// What a reader last saw applied, by partition: it must never shrink.
    pub(crate) seen: BTreeMap<PartitionId, VersionVector>,
    /// What this node itself told clients that it had committed: it must have it.
    pub(crate) promised: BTreeMap<PartitionId, VersionVector>,
    /// Requests not answered: since when, and what.
    pub(crate) open: BTreeMap<RequestId, Asked>,
    /// Commits by incarnation and partition, those on their way to the disk too.
    pub(crate) begun: BTreeMap<(ReplicaId, PartitionId), u64>,
    /// The request to stop, and how long the node is to be down then.
    pub(crate) stopping: Option<(RequestId, u64)>,
    /// Copies of its disk, the latest last.
    pub(crate) images: Vec<Image>,
    /// Whether it takes part: the place of a copied process is empty at first, and one of the two ends for good.
    pub(crate) takes_part: bool,
    /// Snapshots that are read for repairs.
    pub(crate) reads: BTreeMap<ReaderId, MemStore>,
    pub(crate) trouble: Trouble,
    /// With `durability = "os"`, what is not synced.
    pub(crate) unsynced: Option<Unsynced>,
    /// Bytes of the largest delta that its machines ever sent.
    pub(crate) largest_sent: usize,
}

/// A batch that fills or is on its way to the disk.
#[derive(Debug, Default)]
pub(crate) struct Group {
    pub(crate) effects: Effects<Output>,
    pub(crate) outcomes: Vec<Outcome>,
    /// Inputs, timeouts counted too.
    pub(crate) inputs: usize,
}

impl Machinery {
    /// A place of a run before anything started there.
    pub(super) fn new(config: &RunConfig, place: usize) -> Self {
        // The last place may be that of a copied process.
        let own = if place < config.nodes { place } else { config.copied.unwrap_or(0) };
        let name = format!("n{own}");
        let others = (0..config.nodes).filter(|&other| other != own);
        let node = NodeConfig {
            cluster: "sim".into(),
            node: name.clone(),
            region: format!("r{}", config.regions[own]),
            members: others.map(|other| format!("n{other}")).collect(),
            seed: 0,
            same_place: true,
            partitions: config.partitions,
            limits: Limits::default(),
            max_clock_drift_ms: config.max_clock_drift_ms,
            idempotency_window_ms: config.idempotency_window_ms,
            tuning: config.tuning.clone(),
        };
        Self {
            name,
            config: node,
            wire: config.wires[own],
            node: None,
            disk: MemStore::default(),
            kept: KeptDocuments::new(),
            life: 0,
            inbox: VecDeque::new(),
            ended: BTreeSet::new(),
            group: None,
            filling: Group::default(),
            timer: None,
            clock_offset_ms: config.clock_offsets_ms[own],
            drift_ppm: config.drifts_ppm[own],
            pace_ppm: config.paces_ppm.get(own).copied().unwrap_or(0),
            fsync_us: config.fsync_us[own],
            group_max: config.group_max,
            seen: BTreeMap::new(),
            promised: BTreeMap::new(),
            open: BTreeMap::new(),
            begun: BTreeMap::new(),
            stopping: None,
            images: Vec::new(),
            takes_part: place < config.nodes,
            reads: BTreeMap::new(),
            trouble: Trouble::default(),
            unsynced: config.unsynced[own].then(Unsynced::new),
            largest_sent: 0,
        }
    }

    /// Takes note of what a step of the machine says about links.
    pub(super) fn note(ended: &mut BTreeSet<LinkId>, largest_sent: &mut usize, outputs: &[Output]) {
        for output in outputs {
            match output {
                Output::Close { link, .. } => drop(ended.insert(*link)),
                Output::Send { message: Message::Deltas { deltas, .. }, .. } => {
                    let sizes = deltas.iter().map(|delta| delta.as_bytes().len());
                    *largest_sent = sizes.max().unwrap_or(0).max(*largest_sent);
                }
                _ => {}
            }
        }
    }

    /// How long its disk takes for what waits in the inbox: much, where a group holds few inputs and syncs are long.
    pub(crate) fn queue_us(&self) -> u64 {
        (self.inbox.len() / self.group_max) as u64 * self.fsync_us
    }

    /// What its monotonic clock shows at a time of the world.
    pub(super) fn mono(&self, at_us: u64) -> Mono {
        Mono((u128::from(at_us) * self.millionths() / MILLION) as u64)
    }

    /// The first time of the world at which its monotonic clock shows so much.
    pub(super) fn when(&self, Mono(shows): Mono) -> u64 {
        // A deadline that never comes is far beyond what a run takes.
        u64::try_from((u128::from(shows) * MILLION).div_ceil(self.millionths())).unwrap_or(u64::MAX)
    }

    /// How many millionths of a second its monotonic clock goes on in a second.
    fn millionths(&self) -> u128 {
        (MILLION as i128 + i128::from(self.pace_ppm)).max(1) as u128
    }

    /// How many more inputs the group takes that fills.
    pub(super) fn room(&self) -> usize {
        self.group_max.saturating_sub(self.filling.inputs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_shows_what_is_due_when_it_is_due() {
        for ppm in [0, 50, -50, 100_000, -100_000, 999_999, -999_999] {
            let mut config = RunConfig::calm(2);
            config.paces_ppm = vec![ppm; 2];
            let node = Machinery::new(&config, 0);
            for shows in [0, 1, 2, 999_999, 1_000_000, 1_234_567_891] {
                let at = node.when(Mono(shows));
                assert!(node.mono(at) >= Mono(shows), "{ppm} {shows}");
                assert!(at == 0 || node.mono(at - 1) < Mono(shows), "{ppm} {shows}");
            }
            assert!(node.when(Mono(u64::MAX)) > 1 << 60);
        }
    }
}
