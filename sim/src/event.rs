//! What can happen in a [`World`](crate::world::World), at a moment of its queue.

use godwit_core::ids::{Field, RecordId};

use crate::clients::Plan;
use crate::network::{Frame, Pair};
use crate::reads::Read;
use crate::workload::Ask;

/// What happens at a moment.
#[derive(Debug)]
pub enum Event {
    /// A client commits at a node.
    Client(usize, Ask),
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
    Count(usize, RecordId, Field),
    /// A read of a node's whole state is compared with the specification.
    Check(usize),
    /// A batch becomes durable.
    Durable {
        /// The node.
        node: usize,
        /// Its life, counted up by each start.
        life: u64,
    },
    /// A node's machine may have something to do.
    Timer(usize),
    /// A part of a node's store is read.
    Read(Read),
    /// A frame arrives.
    Arrival(Frame),
    /// Two nodes try to connect.
    Connect(Pair),
    /// One end of a connection learns that it has ended.
    Down {
        /// The end.
        node: usize,
        /// The other end.
        peer: usize,
        /// The connection.
        link: u64,
    },
    /// A connection has been cut for too long, if it still is.
    Idle(Pair, u64),
    /// The link between two nodes is cut.
    Cut(Pair),
    /// It works again.
    Heal(Pair),
    /// No more cuts and heals: the link stays as it is.
    Seal(Pair),
    /// Frames from one node to another stall.
    CutWay(usize, usize),
    /// The connection between two nodes is reset.
    Reset(Pair),
    /// A process stands still.
    Pause(usize),
    /// It goes on.
    Resume(usize),
    /// Syncs of a node's disk take so many microseconds, for so many.
    SlowDisk(usize, u64, u64),
    /// A node's disk refuses writes for so many microseconds.
    RefusingDisk(usize, u64),
    /// The power of a node goes.
    PowerCut(usize),
    /// Disks and frames are well again.
    Mend,
    /// What a node with `durability = "os"` has written is synced.
    Synced {
        /// The node.
        node: usize,
        /// Its life.
        life: u64,
        /// The number of batches that are.
        covers: u64,
    },
    /// A node's process is killed.
    Crash(usize),
    /// It starts again.
    Start(usize),
    /// A node is told to stop, and starts again so many microseconds after it has.
    Stop(usize, u64),
    /// A process that has said that it stops ends, and starts again so many microseconds later.
    End {
        /// The node.
        node: usize,
        /// Its life.
        life: u64,
        /// The time until it starts again.
        outage_us: u64,
    },
    /// A node's disk is copied, to be put back later.
    Backup(usize),
    /// Nodes are killed and get back earlier copies of their disks.
    Rollback(Vec<usize>),
    /// A second process starts on a copy of a node's directory, under the same name.
    Copy(usize),
    /// A process ends for good.
    Retire(usize),
    /// A node's wall clock is set, in milliseconds off.
    ClockStep(usize, i64),
}
