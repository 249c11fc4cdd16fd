//! Deltas: what one commit changed, and the unit of replication.
//!
//! A delta names its dot, its stamp, its dependencies (the entries of its origin's context that changed since
//! the origin's last delta), and for each record: what it cleared, which rows it killed, which rows it wrote.
//! Applied in causal order it needs no tombstones: what a removal saw has been applied before it.
//!
//! A delta from a peer is checked in two steps: the codec holds it to sizes and names; [`Delta::check`] to all
//! that applying and reading take for granted. What another node accepted must be accepted here, so the checks
//! are those of the wire, not those of the client limits. Rows of unknown types pass: they are stored and
//! relayed, and nothing here reads them.

use std::sync::Arc;

use bincode::{Decode, Encode};

use crate::codec::{self, CodecError};
use crate::context::{Dot, VersionVector};
use crate::ids::{Field, Member, RecordId};
use crate::json::Json;
use crate::row::{FieldType, MAX_SLOT_BYTES};
use crate::time::Hlc;
use crate::types::{counter, presence, register};

/// The format version of a delta, in the log and on the wire.
pub const DELTA_VERSION: u8 = 1;

/// The most bytes of an encoded delta: a client's largest commit with room for its names, and well below what
/// one frame or one decoded value may have.
pub const MAX_DELTA_BYTES: usize = 12 * 1024 * 1024;

/// What one commit changed.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Delta {
    /// The commit.
    pub dot: Dot,
    /// Its stamp.
    pub hlc: Hlc,
    /// Entries of the origin's context that changed since its previous delta, the origin's own excepted.
    pub deps: VersionVector,
    /// Changes by record.
    pub records: Vec<RecordDelta>,
}

/// Changes of one record: clears act first, then kills, then the rows written.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct RecordDelta {
    /// The record.
    pub record: RecordId,
    /// What was cleared, if anything.
    pub clear: Option<Clear>,
    /// Changes by field and type.
    pub fields: Vec<FieldDelta>,
}

/// Takes away every row of its scope whose dot is covered by what was seen, rows that hold sums excepted.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Clear {
    /// The fields cleared, whatever their type; `None` for the whole record.
    pub fields: Option<Vec<Field>>,
    /// What was seen.
    pub seen: VersionVector,
}

/// Changes of one field and type.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct FieldDelta {
    /// The field.
    pub field: Field,
    /// Its type.
    pub ty: FieldType,
    /// Rows removed.
    pub kills: Vec<Kill>,
    /// Rows written, each under the delta's dot.
    pub rows: Vec<RowWrite>,
}

/// Removes a replica's row from a slot: where rows are keyed by dot the one with exactly this dot, elsewhere
/// the replica's row up to and including this dot.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Kill {
    /// The slot.
    pub slot: Vec<u8>,
    /// The dot seen there.
    pub dot: Dot,
}

/// Writes a row to a slot.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct RowWrite {
    /// The slot.
    pub slot: Vec<u8>,
    /// The type's own bytes.
    pub payload: Vec<u8>,
}

/// A delta's bytes, shared by the log and every link it goes out on.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct EncodedDelta(Arc<[u8]>);

impl EncodedDelta {
    /// Takes bytes as they are; they are checked when read.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        Self(bytes.into())
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The dot alone, without decoding the rest.
    pub fn dot(&self) -> Result<Dot, CodecError> {
        codec::decode_prefix(DELTA_VERSION, &self.0).map(|(dot, _)| dot)
    }
}

impl Delta {
    /// The delta's bytes.
    pub fn encode(&self) -> EncodedDelta {
        EncodedDelta(codec::encode(DELTA_VERSION, self).into())
    }

    /// Reads and checks a delta's bytes.
    pub fn decode(bytes: &EncodedDelta) -> Result<Self, CodecError> {
        if bytes.0.len() > MAX_DELTA_BYTES {
            return Err(malformed(format!("a delta of {} bytes", bytes.0.len())));
        }
        let delta: Self = codec::decode(DELTA_VERSION, &bytes.0)?;
        delta.check()?;
        Ok(delta)
    }

    /// Checks everything that applying and reading take for granted.
    pub fn check(&self) -> Result<(), CodecError> {
        if self.dot.counter == 0 {
            return Err(malformed("a dot's counter is at least 1"));
        }
        if self.deps.get(self.dot.replica) != 0 {
            return Err(malformed("a delta depends on its own replica by its counter, not by name"));
        }
        let cleared = self.records.iter().filter_map(|record| record.clear.as_ref()?.fields.as_ref());
        for fields in cleared {
            if !fields.is_sorted_by(|a, b| a < b) {
                return Err(malformed("a clear names its fields in order, each once"));
            }
        }
        for field in self.records.iter().flat_map(|record| &record.fields) {
            for kill in &field.kills {
                check_slot(field.ty, &kill.slot)?;
                if kill.dot.replica == self.dot.replica && kill.dot.counter >= self.dot.counter {
                    return Err(malformed("a kill of what its own commit wrote"));
                }
            }
            for row in &field.rows {
                check_slot(field.ty, &row.slot)?;
                check_payload(field.ty, row, self.dot)?;
            }
        }
        Ok(())
    }
}

fn check_slot(ty: FieldType, slot: &[u8]) -> Result<(), CodecError> {
    if slot.len() > MAX_SLOT_BYTES {
        return Err(malformed(format!("a slot of {} bytes", slot.len())));
    }
    match ty {
        FieldType::REGISTER if slot != register::SLOT => Err(malformed("not a slot of a register")),
        FieldType::FLAG if slot != presence::FLAG_SLOT => Err(malformed("not a slot of a flag")),
        FieldType::SET => {
            let member = presence::slot_member(slot).ok_or_else(|| malformed("not a slot of a set"))?;
            Member::new(member).map(drop).map_err(|error| malformed(error.to_string()))
        }
        FieldType::COUNTER => counter::parse_slot(slot).map(drop),
        _ => Ok(()),
    }
}

fn check_payload(ty: FieldType, row: &RowWrite, dot: Dot) -> Result<(), CodecError> {
    match ty {
        FieldType::REGISTER => {
            let text = std::str::from_utf8(&row.payload).map_err(|error| malformed(error.to_string()))?;
            let json = Json::parse(text).map_err(|error| malformed(error.to_string()))?;
            if json.as_str() != text {
                return Err(malformed("a register's JSON is not in its compact form"));
            }
        }
        FieldType::FLAG | FieldType::SET if !row.payload.is_empty() => {
            return Err(malformed("a flag's or member's row carries nothing"));
        }
        FieldType::COUNTER if row.slot == counter::SUM_SLOT => {
            let sum = counter::Sum::decode(&row.payload)?;
            if sum.last > dot.counter {
                return Err(malformed("a sum row names an increment that is still to come"));
            }
        }
        FieldType::COUNTER => {
            counter::decode_reset(&row.payload)?;
        }
        _ => {}
    }
    Ok(())
}

fn malformed(what: impl Into<String>) -> CodecError {
    CodecError::Malformed(what.into())
}
