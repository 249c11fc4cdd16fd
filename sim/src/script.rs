//! A run as a script: its configuration, and everything that comes from outside, with its time. What clients ask for and
//! which faults happen is all here; what the world leaves to chance ([`crate::draws`]) follows from the seed and from names
//! that stay the same when a step is left out.
//!
//! [`crate::draw`] makes scripts of seeds, [`crate::run::play`] plays them.

use godwit_core::ids::{Field, RecordId};
use godwit_core::op::Write;
use serde::{Deserialize, Serialize};

use crate::clients::Plan;
use crate::config::RunConfig;
use crate::lines::{FieldLine, RecordLine, WriteLine};

/// A run that can be played.
#[derive(Debug, Clone)]
pub struct Script {
    /// The seed that it was drawn from; what the world leaves to chance follows from it too.
    pub seed: u64,
    /// What somebody should know of it, if anything.
    pub note: String,
    /// The configuration.
    pub config: RunConfig,
    /// What happens, in order of time.
    pub steps: Vec<Step>,
}

/// Something that happens at a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// Its number in the script as it was drawn, which it keeps when others are left out.
    pub number: u64,
    /// Simulated microseconds since the beginning.
    pub at_us: u64,
    /// What happens.
    pub act: Act,
}

/// What happens. Places are those of [`RunConfig::places`]; times are in microseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum Act {
    /// Somebody commits at a node.
    Commit {
        /// The node.
        node: usize,
        /// What is written.
        #[serde(with = "WriteLine")]
        writes: Vec<Write>,
    },
    /// A client with a token does something at a node.
    Session {
        /// The client.
        client: usize,
        /// The node.
        node: usize,
        /// What it does.
        plan: Plan,
    },
    /// Somebody asks a node for the size of a set, so that it is kept from then on.
    Count {
        /// The node.
        node: usize,
        /// The record.
        #[serde(with = "RecordLine")]
        record: RecordId,
        /// The set.
        #[serde(with = "FieldLine")]
        field: Field,
    },
    /// All that a node holds is compared with the specification.
    Check {
        /// The node.
        node: usize,
    },
    /// The link between two nodes is cut, and heals.
    Cut {
        /// The link, the smaller place first.
        link: (usize, usize),
        /// How long it is cut.
        for_us: u64,
    },
    /// All links of a node are cut, and heal.
    Isolate {
        /// The node.
        node: usize,
        /// How long it is cut off.
        for_us: u64,
    },
    /// All links of a region to others are cut, and heal.
    IsolateRegion {
        /// The region, by number.
        region: usize,
        /// How long it is cut off.
        for_us: u64,
    },
    /// The connection between two nodes is reset.
    Reset {
        /// The link, the smaller place first.
        link: (usize, usize),
    },
    /// Frames from one node to another stall, and pass again.
    CutWay {
        /// The node whose frames stall.
        from: usize,
        /// The node that does not get them.
        to: usize,
        /// How long.
        for_us: u64,
    },
    /// The link between two nodes is cut and heals, many times.
    Flap {
        /// The link, the smaller place first.
        link: (usize, usize),
        /// How often.
        times: u64,
        /// How long it is cut each time, and how long it works then.
        each_us: u64,
    },
    /// A process stands still, and goes on.
    Pause {
        /// The node.
        node: usize,
        /// How long it stands still.
        for_us: u64,
    },
    /// A disk is slow for a while.
    SlowDisk {
        /// The node.
        node: usize,
        /// What a sync takes.
        fsync_us: u64,
        /// How long.
        for_us: u64,
    },
    /// A disk refuses writes for a while, as a full or a failing one does.
    RefusingDisk {
        /// The node.
        node: usize,
        /// How long.
        for_us: u64,
    },
    /// The power of a node goes, and it starts again.
    PowerCut {
        /// The node.
        node: usize,
        /// The time until it starts.
        for_us: u64,
    },
    /// A process is killed, and starts again.
    Crash {
        /// The node.
        node: usize,
        /// The time until it starts.
        for_us: u64,
    },
    /// A process is told to stop, and starts again.
    Stop {
        /// The node.
        node: usize,
        /// The time until it starts, from when it has ended.
        for_us: u64,
    },
    /// A node's wall clock is set.
    Clock {
        /// The node.
        node: usize,
        /// How far off it is from then on, in milliseconds.
        offset_ms: i64,
    },
    /// A node's disk is copied, to be put back later.
    Backup {
        /// The node.
        node: usize,
    },
    /// Nodes are killed and get back earlier copies of their disks.
    Rollback {
        /// The nodes.
        nodes: Vec<usize>,
    },
    /// A second process starts on a copy of a node's directory, under its name.
    Copy {
        /// The node.
        node: usize,
    },
}
