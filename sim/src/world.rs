//! The world of a run: nodes with their disks and clocks, the network between them, and one queue of events.
//!
//! A node is driven as in production: inputs gather, a group of them goes through the machine over one growing
//! batch, the batch becomes durable after the time of an fsync, and only then outputs are released; the next group fills
//! meanwhile. A crash at any moment between loses what was not durable: the batch on its way is lost or kept whole, as a
//! write-ahead log does it, the one behind it is lost, and the outputs of both are.
//!
//! Here is what there is, and how time passes. Below it: what each event does (`events`), inputs (`inputs`), groups and
//! outputs (`groups`), frames and connections (`links`). What clients do is in [`crate::clients`], what becomes of processes
//! and disks in [`crate::disks`], what is looked at in [`crate::checks`].

mod events;
mod groups;
mod inputs;
mod links;
mod node;

use std::collections::{BTreeMap, BTreeSet};

use godwit_core::store::MemStore;
use godwit_proto::LinkId;
use godwit_proto::incarnation::CONFIRM_WAIT_US;

use crate::clients::Client;
use crate::config::RunConfig;
use crate::consumer::Consumer;
use crate::draws::Draws;
pub use crate::event::Event;
use crate::faults::Faults;
use crate::network::{Network, Pair};
use crate::oracle::{Oracle, Violation};
use crate::requests::Requests;
use crate::stamps::Stamps;
use crate::trace::{Trace, Watch};
use crate::watch::Told;
pub(crate) use node::{Group, Machinery};

/// A node that is up must answer a commit within this time, whatever the links do.
pub(crate) const ANSWER_US_MAX: u64 = CONFIRM_WAIT_US + 1_000_000;
/// Wall time at the beginning, in milliseconds since 1970.
const WALL_START_MS: u64 = 1_800_000_000_000;

/// Everything.
#[derive(Debug)]
pub struct World {
    /// Simulated microseconds since the beginning.
    pub now_us: u64,
    /// What is left to chance.
    pub draws: Draws,
    /// What happened.
    pub trace: Trace,
    /// What must hold.
    pub oracle: Oracle,
    pub(crate) partitions: u16,
    pub(crate) nodes: Vec<Machinery>,
    pub(crate) network: Network,
    pub(crate) clients: Vec<Client>,
    pub(crate) keys: Requests,
    stamps: Stamps,
    /// The slowest clock that a node ever had, in milliseconds off.
    slowest_ms: i64,
    /// Whether commits that wait for ever are allowed: what they depend on may have been lost with a disk.
    pub(crate) may_wait_for_ever: bool,
    /// Rows that disks have lost.
    pub(crate) rows_lost: u64,
    pub(crate) consumer: Consumer,
    queue: BTreeMap<(u64, u64), Event>,
    /// The moment of the last step of a machine, and the steps in it before.
    moment: (u64, u32),
    sequence: u64,
    /// Frames sent for the first time.
    messages: u64,
    pub(crate) requests: u64,
    /// Frames sent, for the report.
    pub frames: u64,
    /// Commits acknowledged, for the report.
    pub acknowledged: u64,
    /// What a watcher was not told yet, if there is one: nothing is judged then.
    pub(crate) watched: Option<Vec<Told>>,
    pub(crate) faults: Faults,
    /// Connections over which damaged frames came.
    pub(crate) damaged_links: BTreeSet<LinkId>,
}

impl World {
    /// A world at its beginning: all nodes start, all links work.
    pub fn new(config: &RunConfig, seed: u64, watch: Watch) -> Result<Self, Violation> {
        let mut world = Self {
            now_us: 0,
            draws: Draws::new(seed),
            trace: Trace::new(watch),
            oracle: Oracle::default(),
            partitions: config.partitions,
            nodes: Vec::new(),
            network: Network::new(config.network.clone(), config.places()),
            clients: vec![Client::default(); config.clients],
            keys: Requests::default(),
            stamps: Stamps::default(),
            slowest_ms: config.clock_offsets_ms.iter().copied().min().unwrap_or(0),
            may_wait_for_ever: false,
            rows_lost: 0,
            consumer: Consumer::default(),
            queue: BTreeMap::new(),
            moment: (0, 0),
            sequence: 0,
            messages: 0,
            requests: 0,
            frames: 0,
            acknowledged: 0,
            watched: None,
            faults: Faults::new(),
            damaged_links: BTreeSet::new(),
        };
        for i in 0..config.places() {
            world.nodes.push(Machinery::new(config, i));
            if i < config.nodes {
                world.start(i)?;
            }
        }
        for pair in world.pairs() {
            world.at(config.network.connect_us, Event::Connect(pair));
        }
        Ok(world)
    }

    /// Schedules an event after a time.
    pub fn at(&mut self, after_us: u64, event: Event) {
        self.sequence += 1;
        self.queue.insert((self.now_us + after_us, self.sequence), event);
    }

    /// Lives through the next event if it comes before a moment; otherwise the moment is now.
    pub fn advance(&mut self, until_us: u64) -> Result<bool, Violation> {
        let Some(entry) = self.queue.first_entry() else {
            self.now_us = until_us;
            return Ok(false);
        };
        if entry.key().0 > until_us {
            self.now_us = until_us;
            return Ok(false);
        }
        let ((at, _), event) = entry.remove_entry();
        self.now_us = at;
        self.happen(event)?;
        Ok(true)
    }

    /// All links of the world, between nodes of different names.
    pub fn pairs(&self) -> Vec<Pair> {
        let mut pairs = self.network.pairs();
        pairs.retain(|&(a, b)| self.nodes[a].name != self.nodes[b].name);
        pairs
    }

    /// How many nodes there are.
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// What a node's disk holds.
    pub fn disk(&self, node: usize) -> &MemStore {
        &self.nodes[node].disk
    }

    /// Whether a node's process runs.
    pub fn is_up(&self, node: usize) -> bool {
        self.nodes[node].node.is_some()
    }

    /// Whether a link is cut.
    pub fn is_cut(&self, pair: Pair) -> bool {
        self.network.is_cut(pair)
    }
}
