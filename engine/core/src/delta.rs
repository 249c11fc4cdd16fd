//! Deltas: what a run of commits changed, and the unit of replication.
//!
//! A delta is one commit, or an *interval*: a run of commits of any origins, as one atomic change (Almeida, Shoker and
//! Baquero's delta-intervals; built by [`crate::interval`]). It names its commits, its dependencies (of a commit: the
//! entries of its origin's context that changed since the origin's last delta), and for each record: what was
//! cleared, which rows were killed, which rows were written. Applied in causal order it needs no tombstones: what a
//! removal saw has been applied before it.
//!
//! What a delta says of a slot that it touches is complete for its commits: a row of one of them that is not listed
//! is gone. So an interval names neither the rows that it wrote and killed itself, nor those kills; and a replica that
//! has some of its commits already, by another way, still comes to the same rows (see [`crate::partition`]).
//!
//! A delta from a peer is checked in two steps: the codec holds it to sizes and names; [`Delta::check`] to all
//! that applying and reading take for granted. What another node accepted must be accepted here, so the checks
//! are those of the wire, not those of the client limits. Rows of unknown types pass: they are stored and
//! relayed, and nothing here reads them.
//!
//! Two formats: 1 for a plain commit, by a frozen module, and 2 for all else (intervals, commits with an idempotency
//! key). A node of the previous version knows format 1 only.

mod format1;

use std::sync::Arc;

use bincode::{Decode, Encode};

use crate::codec::{self, CodecError};
use crate::context::{Dot, DotRanges, VersionVector};
use crate::ids::{Field, Member, Namespace, RecordId};
use crate::json::Json;
use crate::row::{FieldType, MAX_SLOT_BYTES};
use crate::time::Hlc;
use crate::types::exact::Exact;
use crate::types::expiry::Expiry;
use crate::types::{document, expiry, keyed, presence, register, sums, unique, zset};

/// The format of what format 1 cannot say.
pub const DELTA_VERSION: u8 = 2;

/// The most bytes of an encoded delta: a client's largest commit with room for its names, and well below what
/// one frame or one decoded value may have.
pub const MAX_DELTA_BYTES: usize = 12 * 1024 * 1024;

/// What a run of commits changed.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Delta {
    /// The commits.
    pub dots: DotRanges,
    /// The greatest of their stamps.
    pub hlc: Hlc,
    /// What must have been applied before, besides the earlier commits of the same replicas, which are not named.
    pub deps: VersionVector,
    /// The idempotency keys of the commits that have one.
    pub requests: Vec<Request>,
    /// Changes by record.
    pub records: Vec<RecordDelta>,
}

/// A commit that was made under an idempotency key.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Request {
    /// The namespace in which the key counts.
    pub namespace: Namespace,
    /// The key and what was asked for.
    pub id: RequestKey,
    /// The commit.
    pub dot: Dot,
    /// Its stamp.
    pub hlc: Hlc,
}

/// An idempotency key, and what was asked for under it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub struct RequestKey {
    /// Half of the key's BLAKE3 digest.
    pub key: [u8; 16],
    /// Half of the BLAKE3 digest of what was asked for: the same key with another one is a client's mistake.
    pub asked: [u8; 16],
}

/// Changes of one record: clears act first, then kills, then the rows written.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct RecordDelta {
    /// The record.
    pub record: RecordId,
    /// What was cleared.
    pub clears: Vec<Clear>,
    /// Changes by field and type.
    pub fields: Vec<FieldDelta>,
}

/// Takes away every row of its scope whose dot is covered by what was seen, rows that hold sums excepted.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Clear {
    /// The fields cleared, whatever their type, in order; `None` for the whole record.
    pub fields: Option<Vec<Field>>,
    /// What was seen.
    pub seen: VersionVector,
}

impl Clear {
    /// Whether the field is in its scope.
    pub fn takes_from(&self, field: &Field) -> bool {
        self.fields.as_ref().is_none_or(|fields| fields.binary_search(field).is_ok())
    }
}

/// Changes of one field and type.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct FieldDelta {
    /// The field.
    pub field: Field,
    /// Its type.
    pub ty: FieldType,
    /// Rows removed, of earlier commits than the delta's.
    pub kills: Vec<Kill>,
    /// Rows written and still there at the end.
    pub rows: Vec<RowWrite>,
    /// Slots that the delta's commits touched without leaving a row or a kill of an earlier commit's.
    pub gone: Vec<Vec<u8>>,
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
    /// The commit that wrote it.
    pub dot: Dot,
    /// That commit's stamp.
    pub hlc: Hlc,
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

    /// The commits alone, without decoding the rest.
    pub fn dots(&self) -> Result<DotRanges, CodecError> {
        match format1::dot(&self.0) {
            Some(dot) => Ok(DotRanges::single(dot?)),
            None => codec::decode_prefix(DELTA_VERSION, &self.0).map(|(dots, _)| dots),
        }
    }

    /// The same change for a node that knows format 1 only, without its idempotency key; `None` for an interval.
    pub fn as_format1(&self) -> Result<Option<Self>, CodecError> {
        if format1::dot(&self.0).is_some() {
            return Ok(Some(self.clone()));
        }
        let mut delta: Delta = codec::decode(DELTA_VERSION, &self.0)?;
        delta.requests.clear();
        Ok(format1::encode(&delta).map(|bytes| Self(bytes.into())))
    }
}

impl Delta {
    /// The delta's bytes.
    pub fn encode(&self) -> EncodedDelta {
        let bytes = format1::encode(self).unwrap_or_else(|| codec::encode(DELTA_VERSION, self));
        EncodedDelta(bytes.into())
    }

    /// Reads and checks a delta's bytes.
    pub fn decode(bytes: &EncodedDelta) -> Result<Self, CodecError> {
        if bytes.0.len() > MAX_DELTA_BYTES {
            return Err(malformed(format!("a delta of {} bytes", bytes.0.len())));
        }
        let delta = match format1::decode(&bytes.0) {
            Some(delta) => delta?,
            None => codec::decode(DELTA_VERSION, &bytes.0)?,
        };
        delta.check()?;
        Ok(delta)
    }

    /// Checks everything that applying and reading take for granted.
    pub fn check(&self) -> Result<(), CodecError> {
        for range in self.dots.iter() {
            if range.first == 0 {
                return Err(malformed("a dot's counter is at least 1"));
            }
            if self.deps.get(range.replica) != 0 {
                return Err(malformed("a delta depends on its own replicas by counter, not by name"));
            }
        }
        let cleared = self.records.iter().flat_map(|record| &record.clears);
        for fields in cleared.filter_map(|clear| clear.fields.as_ref()) {
            if !fields.is_sorted_by(|a, b| a < b) {
                return Err(malformed("a clear names its fields in order, each once"));
            }
        }
        if self.requests.iter().any(|request| !self.dots.contains(request.dot)) {
            return Err(malformed("an idempotency key of a commit that is not here"));
        }
        for field in self.records.iter().flat_map(|record| &record.fields) {
            for kill in &field.kills {
                check_slot(field.ty, &kill.slot)?;
                let later = |first: u64| kill.dot.counter >= first;
                if self.dots.iter().any(|range| range.replica == kill.dot.replica && later(range.first)) {
                    return Err(malformed("a kill of what its own commits wrote"));
                }
            }
            for row in &field.rows {
                if !self.dots.contains(row.dot) || row.hlc > self.hlc {
                    return Err(malformed("a row of a commit that is not here"));
                }
                check_row(field.ty, &row.slot, row.dot, &row.payload)?;
            }
            for slot in &field.gone {
                check_slot(field.ty, slot)?;
            }
        }
        Ok(())
    }
}

/// Checks what reading takes for granted of a row's slot and payload.
pub(crate) fn check_row(ty: FieldType, slot: &[u8], dot: Dot, payload: &[u8]) -> Result<(), CodecError> {
    check_slot(ty, slot)?;
    check_payload(ty, slot, dot, payload)
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
        FieldType::COUNTER => sums::parse_slot(slot).map(drop),
        FieldType::ZSET | FieldType::ZSUM => {
            let (base, rest) = zset::split(slot).ok_or_else(|| malformed("not a slot of a zset"))?;
            let member = zset::member(base).ok_or_else(|| malformed("a member that is no UTF-8"))?;
            Member::new(member).map_err(|error| malformed(error.to_string()))?;
            if ty == FieldType::ZSET { zset::check_rest(rest) } else { sums::parse_slot(rest).map(drop) }
        }
        FieldType::UNIQUE => unique::parse(slot).map(drop),
        FieldType::DOCUMENT => document::parse_slot(slot).map(drop),
        FieldType::EXPIRY if slot != expiry::SLOT => Err(malformed("not a slot of an expiry")),
        FieldType::KEYED if slot.len() != keyed::SLOT_BYTES => {
            Err(malformed("not a slot of a keyed increment"))
        }
        _ => Ok(()),
    }
}

fn check_payload(ty: FieldType, slot: &[u8], dot: Dot, payload: &[u8]) -> Result<(), CodecError> {
    match ty {
        FieldType::REGISTER => {
            let text = std::str::from_utf8(payload).map_err(|error| malformed(error.to_string()))?;
            let json = Json::parse(text).map_err(|error| malformed(error.to_string()))?;
            if json.as_str() != text {
                return Err(malformed("a register's JSON is not in its compact form"));
            }
        }
        FieldType::FLAG | FieldType::SET | FieldType::UNIQUE if !payload.is_empty() => {
            return Err(malformed("a flag's, member's or observation's row carries nothing"));
        }
        FieldType::COUNTER => sums::check_payload::<i128>(slot, dot, payload)?,
        FieldType::ZSET | FieldType::ZSUM => {
            let (_, rest) = zset::split(slot).ok_or_else(|| malformed("not a slot of a zset"))?;
            match ty {
                FieldType::ZSET => zset::check_payload(rest, dot, payload)?,
                _ => sums::check_payload::<Exact>(rest, dot, payload)?,
            }
        }
        FieldType::EXPIRY => drop(Expiry::decode(payload)?),
        FieldType::DOCUMENT => document::check_payload(slot, payload)?,
        FieldType::KEYED => drop(keyed::decode(payload)?),
        _ => {}
    }
    Ok(())
}

fn malformed(what: impl Into<String>) -> CodecError {
    CodecError::Malformed(what.into())
}
