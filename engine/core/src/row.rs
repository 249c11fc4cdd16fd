//! Rows: what one replica last wrote to one slot.
//!
//! A slot is the smallest unit of data: a register, a flag, one member of a set, one replica's share of a
//! counter. A row is a slot, the replica that wrote it, and one dot. The type's code tells two things that
//! even a node which does not know the type must know to store, kill and relay its rows:
//!
//! - bit `0x40`: rows are keyed by their whole dot (two rows of one replica may stand side by side);
//!   otherwise a replica's later row replaces its earlier one;
//! - bit `0x20`: rows hold sums; a clear's scope does not cover them, the type clears them by rows or kills of its own.

use std::fmt;
use std::ops::ControlFlow;

use bincode::{Decode, Encode};

use crate::codec::{self, CodecError};
use crate::context::Dot;
use crate::ids::Field;
use crate::keys;
use crate::store::{Family, StoreError, StoreRead};
use crate::time::Hlc;

/// The format version of a stored row.
pub const ROW_VERSION: u8 = 1;

/// The most bytes of a slot within its field and type: a zset's longest member, its end, and what follows.
pub const MAX_SLOT_BYTES: usize = crate::ids::MAX_MEMBER_BYTES + 1 + crate::types::zset::SLOT_BYTES_MORE;

/// A CRDT type, by its code on disk and on the wire.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct FieldType(pub u8);

impl FieldType {
    /// True while some enable is seen by no visible disable or clear.
    pub const FLAG: Self = Self(0x01);
    /// Add-wins set.
    pub const SET: Self = Self(0x02);
    /// Increments of a counter made under an idempotency key, each a slot of its own (read as part of the counter).
    pub const KEYED: Self = Self(0x03);
    /// Members with scores: assignments, and increments under idempotency keys.
    pub const ZSET: Self = Self(0x04);
    /// Distinct members, estimated.
    pub const UNIQUE: Self = Self(0x05);
    /// Sum of increments, with clears that take what they saw.
    pub const COUNTER: Self = Self(0x21);
    /// The increments of a zset's members (read as part of the zset).
    pub const ZSUM: Self = Self(0x22);
    /// A document: Automerge changes, and clears that hide them.
    pub const DOCUMENT: Self = Self(0x23);
    /// The latest of concurrent assignments, the others kept as siblings.
    pub const REGISTER: Self = Self(0x41);
    /// When the record expires: no value of the field under whose name it is kept. Of the kind that no clear's scope takes.
    pub const EXPIRY: Self = Self(0x61);

    /// Whether rows are keyed by replica and counter, not by replica alone.
    pub fn keyed_by_dot(self) -> bool {
        self.0 & 0x40 != 0
    }

    /// Whether rows hold sums, which a clear does not cover.
    pub fn holds_sums(self) -> bool {
        self.0 & 0x20 != 0
    }

    /// The type of which this one holds a part: itself, but for keyed increments and the sums of a zset.
    pub fn whole(self) -> Self {
        match self {
            Self::KEYED => Self::COUNTER,
            Self::ZSUM => Self::ZSET,
            _ => self,
        }
    }

    /// The name in the API, for the types that this version knows.
    pub fn name(self) -> Option<&'static str> {
        match self.whole() {
            Self::DOCUMENT => Some("document"),
            Self::FLAG => Some("flag"),
            Self::SET => Some("set"),
            Self::ZSET => Some("zset"),
            Self::UNIQUE => Some("unique"),
            Self::COUNTER => Some("counter"),
            Self::REGISTER => Some("register"),
            _ => None,
        }
    }

    /// The place among types of one name when a read by name must choose: the smallest wins.
    pub fn read_precedence(self) -> u8 {
        match self.whole() {
            Self::DOCUMENT => 0,
            Self::ZSET => 1,
            Self::SET => 2,
            Self::UNIQUE => 3,
            Self::COUNTER => 4,
            Self::FLAG => 5,
            Self::REGISTER => 6,
            _ => u8::MAX,
        }
    }
}

impl fmt::Debug for FieldType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "type-{:#04x}", self.0),
        }
    }
}

impl fmt::Display for FieldType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A row as read from the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The field.
    pub field: Field,
    /// Its type.
    pub ty: FieldType,
    /// The slot within field and type, in the type's own bytes.
    pub slot: Vec<u8>,
    /// The commit that wrote the row.
    pub dot: Dot,
    /// That commit's stamp.
    pub hlc: Hlc,
    /// The type's own bytes.
    pub payload: Vec<u8>,
}

/// A row's stored value. The replica stands in the key.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct RowValue {
    /// The dot's counter.
    pub counter: u64,
    /// The commit's stamp.
    pub hlc: Hlc,
    /// The type's own bytes.
    pub payload: Vec<u8>,
}

impl RowValue {
    /// The value's bytes.
    pub fn encode(&self) -> Vec<u8> {
        Self::encode_parts(self.counter, self.hlc, &self.payload)
    }

    /// The bytes of a value of these parts.
    pub fn encode_parts(counter: u64, hlc: Hlc, payload: &[u8]) -> Vec<u8> {
        // A tuple is encoded as a struct of the same parts is.
        codec::encode(ROW_VERSION, &(counter, hlc, payload))
    }

    /// Reads a value's bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        codec::decode(ROW_VERSION, bytes)
    }

    /// The counter alone.
    pub(crate) fn counter(bytes: &[u8]) -> Result<u64, CodecError> {
        codec::decode_prefix(ROW_VERSION, bytes).map(|(counter, _)| counter)
    }
}

/// Visits the rows of a key range of one record, dead ones too, with their keys.
pub(crate) fn each_row(
    store: &impl StoreRead,
    record_prefix: &[u8],
    from: &[u8],
    to: &[u8],
    mut visit: impl FnMut(&[u8], Row) -> ControlFlow<()>,
) -> Result<(), StoreError> {
    let mut outcome = Ok(());
    store.scan(
        Family::Rows,
        from,
        to,
        &mut |key, value| match keys::parse_row(record_prefix, key, value) {
            Ok(row) => visit(key, row),
            Err(error) => {
                outcome = Err(StoreError::damaged("rows")(error));
                ControlFlow::Break(())
            }
        },
    )?;
    outcome
}
