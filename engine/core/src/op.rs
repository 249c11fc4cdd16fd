//! Operations of clients, their limits, and why a commit is refused.

use automerge::ChangeHash;

use crate::context::{Dot, Seen};
use crate::delta::RequestKey;
use crate::document::{Encoded, Unmade};
use crate::ids::{Field, Member, RecordId};
use crate::json::Json;
use crate::row::FieldType;
use crate::types::score::Score;

/// One operation on a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Assigns a register.
    Set {
        /// The register.
        field: Field,
        /// Its new value.
        value: Json,
    },
    /// Adds to a counter.
    Incr {
        /// The counter.
        field: Field,
        /// How much, of either sign.
        by: i64,
    },
    /// Raises a flag.
    Enable {
        /// The flag.
        field: Field,
    },
    /// Lowers a flag, as far as seen.
    Disable {
        /// The flag.
        field: Field,
    },
    /// Adds members to a set.
    Add {
        /// The set.
        field: Field,
        /// The members.
        members: Vec<Member>,
    },
    /// Removes members from a set, as far as seen.
    Remove {
        /// The set.
        field: Field,
        /// The members.
        members: Vec<Member>,
    },
    /// Assigns scores to members of a zset, which adds them.
    ZAdd {
        /// The zset.
        field: Field,
        /// Members and their scores.
        scores: Vec<(Member, Score)>,
    },
    /// Adds to the score of a zset's member, which adds the member.
    ZIncr {
        /// The zset.
        field: Field,
        /// The member.
        member: Member,
        /// How much, of either sign.
        by: Score,
    },
    /// Removes members from a zset, as far as seen.
    ZRemove {
        /// The zset.
        field: Field,
        /// The members.
        members: Vec<Member>,
    },
    /// Observes members, to be counted as distinct ones.
    Observe {
        /// The unique.
        field: Field,
        /// The members.
        members: Vec<Member>,
    },
    /// Notes what observations came to elsewhere: greatest ranks of registers (see [`crate::types::unique`]).
    ObserveRanks {
        /// The unique.
        field: Field,
        /// Registers and ranks, each below [`REGISTERS`](crate::types::unique::REGISTERS) and from 1 to
        /// [`RANK_MAX`](crate::types::unique::RANK_MAX).
        ranks: Vec<(u16, u8)>,
    },
    /// Adds Automerge changes to a document.
    Change {
        /// The document.
        field: Field,
        /// The changes, in any order.
        changes: Vec<Encoded>,
    },
    /// Edits a document as its node has it. It is made into changes ([`crate::document::Document::edit`]) before the commit.
    Edit {
        /// The document.
        field: Field,
        /// A JSON Patch that [`crate::document::Patch`] takes.
        patch: Json,
    },
    /// Sets when the record expires.
    Expire {
        /// In how many milliseconds from the commit on, 1 to [`EXPIRE_MS_MAX`](crate::types::expiry::EXPIRE_MS_MAX).
        in_ms: u64,
    },
    /// Sets the time at which the record expires, in milliseconds since 1970. If that has passed, the record is deleted, as by
    /// [`Self::Delete`].
    ExpireAt {
        /// The time.
        at_ms: u64,
    },
    /// Makes the record never expire.
    Persist,
    /// Takes away what was seen of a field, whatever its type.
    Clear {
        /// The field.
        field: Field,
    },
    /// Takes away what was seen of every field.
    Delete,
}

impl Op {
    /// Whether the operation acts on what its client has seen, if that is said; the others act on what the node has.
    pub fn acts_on_seen(&self) -> bool {
        match self {
            Self::Set { .. }
            | Self::Disable { .. }
            | Self::Remove { .. }
            | Self::ZRemove { .. }
            | Self::Clear { .. }
            | Self::Delete => true,
            Self::Incr { .. }
            | Self::Enable { .. }
            | Self::Add { .. }
            | Self::ZAdd { .. }
            | Self::ZIncr { .. }
            | Self::Observe { .. }
            | Self::ObserveRanks { .. }
            | Self::Change { .. }
            | Self::Edit { .. }
            | Self::Expire { .. }
            | Self::ExpireAt { .. }
            | Self::Persist => false,
        }
    }

    /// Whether the operation only takes away, so that it makes no field.
    pub fn only_removes(&self) -> bool {
        matches!(
            self,
            Self::Remove { .. }
                | Self::Disable { .. }
                | Self::ZRemove { .. }
                | Self::Clear { .. }
                | Self::Delete
        )
    }

    /// The field and type that the operation needs; `None` if it takes any.
    pub fn target(&self) -> Option<(&Field, FieldType)> {
        match self {
            Self::Set { field, .. } => Some((field, FieldType::REGISTER)),
            Self::Incr { field, .. } => Some((field, FieldType::COUNTER)),
            Self::Enable { field } | Self::Disable { field } => Some((field, FieldType::FLAG)),
            Self::Add { field, .. } | Self::Remove { field, .. } => Some((field, FieldType::SET)),
            Self::ZAdd { field, .. } | Self::ZIncr { field, .. } | Self::ZRemove { field, .. } => {
                Some((field, FieldType::ZSET))
            }
            Self::Observe { field, .. } | Self::ObserveRanks { field, .. } => {
                Some((field, FieldType::UNIQUE))
            }
            Self::Change { field, .. } | Self::Edit { field, .. } => Some((field, FieldType::DOCUMENT)),
            Self::Clear { .. }
            | Self::Delete
            | Self::Expire { .. }
            | Self::ExpireAt { .. }
            | Self::Persist => None,
        }
    }

    /// How many members it names, and the bytes that they take in memory.
    pub fn members(&self) -> (usize, usize) {
        let bytes = |member: &Member| size_of::<Member>() + member.as_str().len();
        match self {
            Self::Add { members, .. }
            | Self::Remove { members, .. }
            | Self::ZRemove { members, .. }
            | Self::Observe { members, .. } => (members.len(), members.iter().map(bytes).sum()),
            Self::ZAdd { scores, .. } => {
                let of = |(member, _): &(Member, Score)| bytes(member) + size_of::<Score>();
                (scores.len(), scores.iter().map(of).sum())
            }
            Self::ZIncr { member, .. } => (1, bytes(member)),
            Self::ObserveRanks { ranks, .. } => (ranks.len(), ranks.len() * size_of::<(u16, u8)>()),
            _ => (0, 0),
        }
    }
}

/// The operations of one commit on one record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// The record.
    pub record: RecordId,
    /// What to do, in order.
    pub ops: Vec<Op>,
}

impl Write {
    /// About the memory that it takes, in bytes; at least that of all names, members and values.
    pub fn bytes(&self) -> usize {
        let op = |op: &Op| {
            let name = op.target().map_or(0, |(field, _)| field.as_str().len());
            let more = match op {
                Op::Set { value, .. } => value.as_str().len(),
                Op::Clear { field } => field.as_str().len(),
                Op::Edit { patch, .. } => patch.as_str().len(),
                Op::Change { changes, .. } => changes.iter().map(Encoded::bytes_held).sum(),
                op => op.members().1,
            };
            size_of::<Op>() + name + more
        };
        let RecordId { namespace, key } = &self.record;
        let ops: usize = self.ops.iter().map(op).sum();
        size_of::<Self>() + namespace.as_str().len() + key.as_str().len() + ops
    }
}

/// The terms of a commit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Terms {
    /// What the client says it has seen: its `set`s and removals act on that. Without it they act on all that the node
    /// has applied, as other operations do in any case.
    pub seen: Option<Seen>,
    /// The idempotency key.
    pub request: Option<RequestKey>,
}

impl Terms {
    /// About the memory that they take, in bytes.
    pub fn bytes(&self) -> usize {
        let dots = self.seen.as_ref().map_or(0, |seen| seen.vector().len() + seen.cloud().count());
        size_of::<Self>() + dots * size_of::<Dot>()
    }

    /// Whether the client says what it has seen, and every operation acts on that and on nothing else.
    pub fn acts_on_seen(&self, writes: &[Write]) -> bool {
        self.seen.is_some() && writes.iter().flat_map(|write| &write.ops).all(Op::acts_on_seen)
    }
}

/// Limits on what clients may write. Peers' deltas are held to the wire's limits instead: a node must apply
/// whatever another node accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// The most bytes of a register's compact JSON.
    pub value_bytes_max: usize,
    /// The most fields of one record.
    pub fields_max: usize,
    /// The most operations on one record in one commit.
    pub ops_max: usize,
    /// The most members of one record named by one commit.
    pub members_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { value_bytes_max: 1024 * 1024, fields_max: 1000, ops_max: 1000, members_max: 10_000 }
    }
}

/// Why a commit was refused. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("operation {op}: {reason}")]
pub struct Refusal {
    /// The index of the offending operation in its write.
    pub op: usize,
    /// What is wrong with it.
    pub reason: Reason,
}

/// What is wrong with an operation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// A live field of that name has another type.
    #[error(
        "field {field:?} is a {found} here; {wanted} operations do not apply to it (clear it first, or use another name)"
    )]
    TypeMismatch {
        /// The field.
        field: Field,
        /// Its type here.
        found: FieldType,
        /// The operation's type.
        wanted: FieldType,
    },
    /// A removal over increments that the client has not seen.
    #[error(
        "{field:?} has increments that the token does not cover, and sums cannot be split: read the record again"
    )]
    StaleSeen {
        /// The counter or zset.
        field: Field,
    },
    /// A value above the limit.
    #[error("the value has {found} bytes, at most {max} are allowed")]
    ValueTooLarge {
        /// Bytes found.
        found: usize,
        /// The limit.
        max: usize,
    },
    /// Changes that build on others which are not there, or were cleared.
    #[error(
        "{field:?} lacks changes that these build on, or they were cleared: send them too ({})",
        listed(missing)
    )]
    MissingChanges {
        /// The document.
        field: Field,
        /// What is missing, in order.
        missing: Vec<ChangeHash>,
    },
    /// An operation on a document that does not fit it.
    #[error("document {field:?}: {unmade}")]
    Document {
        /// The document.
        field: Field,
        /// What is wrong.
        unmade: Unmade,
    },
    /// An edit that was not made into changes before.
    #[error("an edit is made into changes before it is committed")]
    EditNotMade,
    /// One field more than a record may have.
    #[error("the record already has {max} fields, the most that is allowed")]
    TooManyFields {
        /// The limit.
        max: usize,
    },
    /// More operations than a commit may have.
    #[error("the commit has {found} operations, at most {max} are allowed")]
    TooManyOps {
        /// Operations found.
        found: usize,
        /// The limit.
        max: usize,
    },
    /// More members than a commit may name.
    #[error("the commit names {found} members, at most {max} are allowed")]
    TooManyMembers {
        /// Members found so far.
        found: usize,
        /// The limit.
        max: usize,
    },
    /// A zset too large to be cleared in one commit: each member that was incremented costs a row.
    #[error(
        "zset {field:?} has more than {max} members with increments, the most that one commit clears: remove its members \
         in parts (zremove), then clear it"
    )]
    TooManyIncremented {
        /// The zset.
        field: Field,
        /// The limit.
        max: usize,
    },
    /// More rows and removals than one delta may have.
    #[error("the commit changes more than one delta can carry: split it")]
    TooManyParts,
    /// More bytes than one delta may have.
    #[error("the commit makes {found} bytes of changes, at most {max} are allowed: split it")]
    TooLarge {
        /// Bytes found.
        found: usize,
        /// The limit.
        max: usize,
    },
}

/// The first few of them.
pub(crate) fn listed(hashes: &[ChangeHash]) -> String {
    const SHOWN: usize = 8;
    let mut shown: Vec<String> = hashes.iter().take(SHOWN).map(ToString::to_string).collect();
    if hashes.len() > SHOWN {
        shown.push(format!("and {} more", hashes.len() - SHOWN));
    }
    shown.join(", ")
}
