//! What a node is told, and what it wants: its only ties to the world around it.

use godwit_core::context::{Dot, VersionVector};
use godwit_core::ids::{Field, PartitionId, RecordId, ReplicaId};
use godwit_core::op::{Terms, Write};
use godwit_core::partition::CommitError;
use godwit_core::repair::{Found, ReadSizes, RepairRead};
use godwit_core::row::FieldType;
use godwit_core::store::StoreError;
use godwit_core::time::Hlc;

use crate::message::Message;
use crate::status::Status;

/// Names a client's request until it is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// Names one connection to a peer; a later connection has a greater id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u64);

/// What the node is told.
#[derive(Debug, Clone)]
pub enum Input {
    /// A client wants to write records of one partition, atomically.
    Commit {
        /// For the reply.
        request: RequestId,
        /// What to write; at least one.
        writes: Vec<Write>,
        /// On which terms.
        terms: Terms,
    },
    /// Somebody asks for the size of a field, and will again: it is to be kept. No reply.
    Count {
        /// The record.
        record: RecordId,
        /// The field.
        field: Field,
        /// Its type.
        ty: FieldType,
    },
    /// The process is about to stop: nothing more is committed.
    Stop {
        /// For the reply.
        request: RequestId,
    },
    /// Somebody asks how the node is.
    Status {
        /// For the reply.
        request: RequestId,
    },
    /// A link to a peer came up. The transport has proved the peer's name.
    Up {
        /// The peer's name.
        peer: String,
        /// The link.
        link: LinkId,
        /// The wire version that both ends speak, from [`crate::message::WIRE_OLDEST`] to
        /// [`crate::message::WIRE_VERSION`].
        wire: u8,
    },
    /// A link went down.
    Down {
        /// The peer's name.
        peer: String,
        /// The link.
        link: LinkId,
    },
    /// A frame came in on a link.
    Frame {
        /// The peer's name.
        peer: String,
        /// The link.
        link: LinkId,
        /// The frame's bytes.
        bytes: Vec<u8>,
    },
    /// What was asked for by [`Output::Read`] was read.
    Read {
        /// The reader.
        reader: ReaderId,
        /// What was found.
        found: Box<Found>,
    },
    /// The store could not be read: the node stops.
    ReadFailed {
        /// Why.
        error: StoreError,
    },
}

/// What the node wants released, once its batch is durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Send a message on a link.
    Send {
        /// The peer's name.
        peer: String,
        /// The link.
        link: LinkId,
        /// The wire version of the link.
        wire: u8,
        /// The message.
        message: Message,
    },
    /// Close a link, after what was sent on it.
    Close {
        /// The peer's name.
        peer: String,
        /// The link.
        link: LinkId,
        /// Why, for the log.
        reason: String,
    },
    /// Answer a request.
    Reply {
        /// The request.
        request: RequestId,
        /// The answer.
        reply: Reply,
    },
    /// Read a part of the store, on a thread of its own, and hand in what is found as [`Input::Read`]. Several may be under
    /// way for different readers, one for each.
    Read {
        /// The reader.
        reader: ReaderId,
        /// Whether to take a new snapshot for it, of what is in the store then; otherwise its last one goes on to be read.
        fresh: bool,
        /// What to read.
        read: Box<RepairRead>,
        /// How much.
        sizes: ReadSizes,
    },
    /// The reader reads no more: its snapshot may go, and what is still being read for it.
    EndRead {
        /// The reader.
        reader: ReaderId,
    },
    /// Something that an operator should know.
    Alarm(Alarm),
    /// What [`godwit_core::keys::log_garbage`] names is garbage: remove it whenever convenient. May come again, also after a restart.
    Trim {
        /// The partition.
        partition: PartitionId,
        /// The index of its first log entry.
        first: u64,
    },
}

/// Names a reader of the store, in one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReaderId(pub u64);

/// Something that an operator should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Alarm {
    /// A peer's stamp is further ahead than allowed. It was applied, and not followed.
    ClockDrift {
        /// The writer of the stamp.
        replica: ReplicaId,
        /// How far ahead of this node's clock, in milliseconds.
        ahead_ms: u64,
    },
    /// The node writes under another replica id from now on.
    Reincarnated {
        /// The former id.
        from: ReplicaId,
        /// The new one.
        to: ReplicaId,
        /// Why it did not go on.
        why: &'static str,
    },
    /// Two live processes run under one node name; the one that began later is refused.
    TwoProcesses {
        /// The name.
        node: String,
    },
    /// A node lacks what the log of the other one no longer holds: deltas cannot bring it up to date.
    LogGone {
        /// The partition.
        partition: PartitionId,
        /// The other node: the one that lacks it if that speaks a wire version without [`Message::Gone`], else the one
        /// that does not hold it.
        peer: String,
    },
    /// Deltas came that have to wait, and there was no room: they will be sent again.
    PendingFull {
        /// The partition.
        partition: PartitionId,
    },
    /// A partition's state was repaired from a peer.
    Repaired {
        /// The partition.
        partition: PartitionId,
        /// From whom.
        peer: String,
        /// Rows that came.
        rows: u64,
        /// Rows of this node that the peer had no more.
        dropped: u64,
    },
    /// A scrub found that a partition's rows are not what a peer's are, though both have applied what wrote them.
    Diverged {
        /// The partition.
        partition: PartitionId,
        /// With whom it was compared.
        peer: String,
        /// Rows that this node had lost, and were put back.
        missing: u64,
        /// Rows with other contents than the peer's. They stay as they are.
        altered: u64,
        /// Some of the fields that these are of; none for rows of the peer that make no sense.
        fields: Vec<(RecordId, Field)>,
    },
    /// The repair of a partition's state was given up; it will be tried again.
    RepairGivenUp {
        /// The partition.
        partition: PartitionId,
        /// From whom it was repaired.
        peer: String,
        /// Why.
        why: &'static str,
    },
}

/// An answer to a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// Committed: everything is durable.
    Committed {
        /// The partition of the records.
        partition: PartitionId,
        /// The commit and its stamp; `None` if there was nothing to change.
        commit: Option<(Dot, Hlc)>,
        /// Whether it had been made before, under the same idempotency key.
        repeated: bool,
        /// What the node has applied of the partition, this commit included.
        context: VersionVector,
    },
    /// Refused: nothing changed.
    Refused(CommitError),
    /// The process stops: nothing was committed, and nothing will be.
    Stopping,
    /// How the node is.
    Status(Box<Status>),
}
