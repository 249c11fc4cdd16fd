//! The operations of the specification, what they give and take, and the values that fields have.

use std::collections::{BTreeMap, BTreeSet};

/// An operation of a commit on its record.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)] // The names say it.
#[rustfmt::skip] // A line each.
pub enum SpecOp {
    /// The value is compact JSON, compared as text.
    Set { field: String, value: String },
    Incr { field: String, by: i64 },
    /// Under an idempotency key.
    IncrOnce { field: String, by: i64, key: String },
    Enable { field: String },
    Disable { field: String },
    Add { field: String, members: Vec<String> },
    Remove { field: String, members: Vec<String> },
    ZAdd { field: String, scores: Vec<(String, f64)> },
    ZIncr { field: String, member: String, by: f64 },
    /// Under an idempotency key.
    ZIncrOnce { field: String, member: String, by: f64, key: String },
    ZRemove { field: String, members: Vec<String> },
    Observe { field: String, members: Vec<String> },
    Change { field: String, changes: Vec<SpecChange> },
    /// In milliseconds from the commit on.
    Expire { in_ms: u64 },
    Persist,
    /// A node takes what is hidden, and the expiry itself if nothing else is left.
    Sweep { last: bool },
    /// A node writes what it added to a counter, or to a zset's member, anew.
    Fold { field: String, member: Option<String> },
    /// Of every type under that name.
    Clear { field: String },
    /// Clears every field.
    Delete,
}

impl SpecOp {
    /// The field and the type that the operation names, if any.
    pub fn target(&self) -> (Option<&str>, Option<SpecType>) {
        use SpecOp::{
            Add, Change, Clear, Delete, Disable, Enable, Expire, Fold, Incr, IncrOnce, Observe, Persist,
            Remove, Set, Sweep, ZAdd, ZIncr, ZIncrOnce, ZRemove,
        };
        match self {
            Set { field, .. } => (Some(field), Some(SpecType::Register)),
            Incr { field, .. } | IncrOnce { field, .. } => (Some(field), Some(SpecType::Counter)),
            Enable { field } | Disable { field } => (Some(field), Some(SpecType::Flag)),
            Add { field, .. } | Remove { field, .. } => (Some(field), Some(SpecType::Set)),
            ZAdd { field, .. } | ZIncr { field, .. } | ZIncrOnce { field, .. } | ZRemove { field, .. } => {
                (Some(field), Some(SpecType::Zset))
            }
            Observe { field, .. } => (Some(field), Some(SpecType::Unique)),
            Change { field, .. } => (Some(field), Some(SpecType::Document)),
            Clear { field } | Fold { field, .. } => (Some(field), None),
            Expire { .. } | Persist => (Some(EXPIRY), None),
            Delete | Sweep { .. } => (None, None),
        }
    }
}

/// An Automerge change.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct SpecChange {
    pub hash: String,
    /// The hashes of those that it builds on.
    pub deps: Vec<String>,
    pub bytes: Vec<u8>,
}

/// Where expiries are kept: no field has such a name.
pub(super) const EXPIRY: &str = "";

/// A time that never comes.
const NEVER: u64 = u64::MAX;

/// The types, in the order in which a read by name prefers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)]
pub enum SpecType {
    Document,
    Zset,
    Set,
    Unique,
    Counter,
    Flag,
    Register,
}

/// The value of a field that lives.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
#[rustfmt::skip]
pub enum SpecValue {
    /// The winner; and the other surviving values, each once, without the winner's, sorted.
    Register { value: String, siblings: Vec<String> },
    Counter(i64),
    /// Always true: a false flag, like an empty set, is absent.
    Flag(bool),
    Set(BTreeSet<String>),
    /// Members and scores, the lowest first.
    Zset(Vec<(String, f64)>),
    /// How many members, and the greatest rank of each register, which that follows from.
    Unique { count: u64, ranks: BTreeMap<u16, u8> },
    /// The changes that make it, by hash; and what they make, as JSON.
    Document(BTreeSet<String>, String),
}

/// A record: the fields that live, if any. A read by name shows the first of each name.
pub type SpecRecord = BTreeMap<(String, SpecType), SpecValue>;

#[derive(Clone, Debug)]
pub(super) enum Gift {
    Set(String),
    Incr(i64),
    IncrOnce(i64, String),
    Enable,
    Add(String),
    ZAdd(String, f64),
    ZIncr(String, f64),
    ZIncrOnce(String, f64, String),
    /// A register of a unique, and a rank.
    Observe(u16, u8),
    Change(SpecChange),
    /// From when on the record is expired, and what is hidden already.
    Expire {
        at: u64,
        floor: u64,
    },
}

impl Gift {
    pub(super) fn kind(&self) -> SpecType {
        match self {
            Self::Change(_) => SpecType::Document,
            Self::Set(_) => SpecType::Register,
            Self::Incr(_) | Self::IncrOnce(..) => SpecType::Counter,
            Self::Enable => SpecType::Flag,
            Self::Add(_) => SpecType::Set,
            Self::ZAdd(..) | Self::ZIncr(..) | Self::ZIncrOnce(..) => SpecType::Zset,
            Self::Observe(..) => SpecType::Unique,
            Self::Expire { .. } => unreachable!("no field has it"),
        }
    }

    /// Whether this stands for the other one if it saw it.
    pub(super) fn replaces(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Enable, Self::Enable) => true,
            (Self::Add(a), Self::Add(b)) | (Self::ZAdd(a, _), Self::ZAdd(b, _)) => a == b,
            (Self::Observe(register, rank), Self::Observe(other, below)) => {
                register == other && rank >= below
            }
            _ => false,
        }
    }

    /// Whether both are parts of one sum, if they are of one replica.
    fn adds_to(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Incr(_), Self::Incr(_)) => true,
            (Self::ZIncr(a, _), Self::ZIncr(b, _)) => a == b,
            _ => false,
        }
    }
}

impl SpecOp {
    /// What the operation gives, a gift a member.
    pub(super) fn gifts(&self, now_ms: u64, floor: u64) -> Vec<Gift> {
        match self {
            Self::Set { value, .. } => vec![Gift::Set(value.clone())],
            Self::Incr { by, .. } => vec![Gift::Incr(*by)],
            Self::IncrOnce { by, key, .. } => vec![Gift::IncrOnce(*by, key.clone())],
            Self::Enable { .. } => vec![Gift::Enable],
            Self::Add { members, .. } => members.iter().cloned().map(Gift::Add).collect(),
            Self::ZAdd { scores, .. } => {
                scores.iter().map(|(member, score)| Gift::ZAdd(member.clone(), *score)).collect()
            }
            Self::ZIncr { member, by, .. } => vec![Gift::ZIncr(member.clone(), *by)],
            Self::ZIncrOnce { member, by, key, .. } => {
                vec![Gift::ZIncrOnce(member.clone(), *by, key.clone())]
            }
            Self::Observe { members, .. } => members.iter().map(|member| observation(member)).collect(),
            Self::Change { changes, .. } => changes.iter().cloned().map(Gift::Change).collect(),
            Self::Expire { in_ms } => vec![Gift::Expire { at: now_ms + in_ms, floor }],
            Self::Persist => vec![Gift::Expire { at: NEVER, floor }],
            Self::Disable { .. }
            | Self::Remove { .. }
            | Self::ZRemove { .. }
            | Self::Clear { .. }
            | Self::Delete
            | Self::Fold { .. }
            | Self::Sweep { .. } => Vec::new(),
        }
    }

    /// Whether this takes what was given, if it saw it. Both are of one field name.
    pub(super) fn takes(&self, gift: &Gift) -> bool {
        match (self, gift) {
            (Self::Set { .. }, Gift::Set(_)) | (Self::Disable { .. }, Gift::Enable) => true,
            (Self::Remove { members, .. }, Gift::Add(member))
            | (
                Self::ZRemove { members, .. },
                Gift::ZAdd(member, _) | Gift::ZIncr(member, _) | Gift::ZIncrOnce(member, ..),
            ) => members.contains(member),
            (Self::Expire { .. } | Self::Persist, Gift::Expire { .. }) => true,
            (Self::Clear { .. } | Self::Delete, _) => true,
            _ => false,
        }
    }

    /// Whether this writes an increment of its replica anew.
    pub(super) fn carries(&self, gift: &Gift) -> bool {
        match (self, gift) {
            (Self::Fold { member: None, .. }, Gift::Incr(_)) => true,
            (Self::Fold { member: Some(member), .. }, Gift::ZIncr(of, _)) => member == of,
            _ => self.gifts(0, 0).iter().any(|given| given.adds_to(gift)),
        }
    }

    /// Whether the client's token says what it saw; the others see what the node has.
    pub(super) fn acts_on_seen(&self) -> bool {
        matches!(
            self,
            Self::Set { .. }
                | Self::Disable { .. }
                | Self::Remove { .. }
                | Self::ZRemove { .. }
                | Self::Clear { .. }
                | Self::Delete
        )
    }

    pub(super) fn is_of(&self, field: &str) -> bool {
        self.target().0.is_none_or(|name| name == field)
    }
}

/// What an observation of a member notes: the first 14 bits of the first eight bytes of its BLAKE3, little-endian, say in which register,
/// and the zeros after them, and one, the rank.
fn observation(member: &str) -> Gift {
    let digest = blake3::hash(member.as_bytes());
    let bit = |at: usize| digest.as_bytes()[at / 8] >> (at % 8) & 1;
    let register = (0..14).map(|at| u16::from(bit(at)) << at).sum();
    let zeros = (14..64).take_while(|at| bit(*at) == 0).count();
    Gift::Observe(register, zeros as u8 + 1)
}
