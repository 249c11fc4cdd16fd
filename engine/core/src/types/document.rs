//! Documents: an add-wins set of Automerge changes, of which a clear hides what it saw and takes nothing.
//!
//! SEMANTICS.md: *the Automerge document of the visible changes that no visible clear saw; a concurrent edit keeps the whole
//! document.* A change builds on others, its *dependencies*. So:
//!
//! - Each change is a row of its own, in a slot named by the change's hash.
//! - A clear kills no change. It writes a row that says what it saw ([`Cleared`]). A change *counts* if one of its rows is covered by
//!   no clear (and has not expired).
//! - The document is made of the changes that count and all that they build on, whether or not that counts
//!   ([`crate::document::select`]). Without a concurrent edit nothing counts after a clear, and the document is gone; with one, its
//!   dependencies are all that its author saw.
//!
//! A change is accepted only if what it builds on counts where it is committed, or comes with it: an edit of a document begun after a
//! clear never brings back what was cleared. Hence also what is hidden everywhere, and on which nothing builds that counts, is
//! needed by nobody once all nodes have applied the clear.
//!
//! The type's code says "sums" (see [`crate::row`]): a clear's scope does not take the rows, here or on a node that does not know the
//! type.

use std::collections::{BTreeMap, BTreeSet};

use automerge::ChangeHash;
use bincode::{Decode, Encode};

use super::Unit;
use crate::codec::{self, CodecError};
use crate::context::{Dot, Seen, VersionVector};
use crate::document::chunk::Change;
use crate::row::{FieldType, Row};

/// The slot of clears.
pub const CLEAR_SLOT: &[u8] = &[0];
/// What slots of changes begin with.
pub const CHANGES: &[u8] = &[1];
const SLOT_BYTES: usize = 1 + 32;
const PAYLOAD_VERSION: u8 = 1;

/// The slot of a change.
pub fn slot(hash: &ChangeHash) -> Vec<u8> {
    [CHANGES, &hash.0].concat()
}

/// The change of a slot; `None` if it is that of clears.
pub fn parse_slot(slot: &[u8]) -> Result<Option<ChangeHash>, CodecError> {
    if slot == CLEAR_SLOT {
        return Ok(None);
    }
    let hash = slot.strip_prefix(CHANGES).and_then(|hash| <[u8; 32]>::try_from(hash).ok());
    let hash = hash.ok_or_else(|| CodecError::Malformed("not a slot of a document".into()))?;
    debug_assert_eq!(slot.len(), SLOT_BYTES);
    Ok(Some(ChangeHash(hash)))
}

/// Whether a row is a change of a document.
pub fn is_change(row: &Row) -> bool {
    row.ty == FieldType::DOCUMENT && row.slot.starts_with(CHANGES)
}

/// Whether a row tells of clears of a document.
pub fn is_clear(row: &Row) -> bool {
    row.ty == FieldType::DOCUMENT && row.slot == CLEAR_SLOT
}

/// What clears saw: the payload of a replica's row of clears, which joins all that it knew of when it wrote it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
pub struct Cleared {
    vector: VersionVector,
    /// Beyond the vector, in order.
    dots: Vec<Dot>,
}

impl Cleared {
    /// What the rows of clears among these come to.
    pub fn of_rows<'r>(rows: impl IntoIterator<Item = &'r Row>) -> Result<Self, CodecError> {
        let mut cleared = Self::default();
        for row in rows.into_iter().filter(|row| is_clear(row)) {
            cleared.join(&Self::decode(&row.payload)?);
        }
        Ok(cleared)
    }

    /// Whether a row written by this commit was seen by a clear.
    pub fn covers(&self, dot: Dot) -> bool {
        self.vector.covers(dot) || self.dots.binary_search(&dot).is_ok()
    }

    /// Whether nothing was cleared.
    pub fn is_empty(&self) -> bool {
        self.vector.is_empty() && self.dots.is_empty()
    }

    /// Adds another one.
    pub fn join(&mut self, other: &Self) {
        self.vector.join(&other.vector);
        self.dots.extend_from_slice(&other.dots);
        self.settle();
    }

    /// Adds what a client has seen.
    pub fn clear(&mut self, seen: &Seen) {
        self.vector.join(seen.vector());
        self.dots.extend(seen.cloud());
        self.settle();
    }

    /// The payload's bytes.
    pub fn encode(&self) -> Vec<u8> {
        codec::encode(PAYLOAD_VERSION, self)
    }

    /// Reads a payload.
    pub fn decode(payload: &[u8]) -> Result<Self, CodecError> {
        let cleared: Self = codec::decode(PAYLOAD_VERSION, payload)?;
        match cleared.dots.is_sorted_by(|a, b| a < b) {
            true => Ok(cleared),
            false => Err(CodecError::Malformed("what a clear saw is not in order".into())),
        }
    }

    fn settle(&mut self) {
        self.dots.sort_unstable();
        self.dots.dedup();
        self.dots.retain(|dot| !self.vector.covers(*dot));
    }
}

/// The slots of what these changes build on, in as many steps as it takes, among themselves and those others.
pub fn needed(by: &[Row], among: &[Row]) -> Result<BTreeSet<Vec<u8>>, CodecError> {
    let slots = |rows: &[Row]| -> Result<BTreeMap<Vec<u8>, Vec<ChangeHash>>, CodecError> {
        let deps = |row: &Row| match Change::parse(&row.payload) {
            Ok(change) => Ok((row.slot.clone(), change.deps)),
            Err(error) => Err(CodecError::Malformed(error.to_string())),
        };
        rows.iter().map(deps).collect()
    };
    let mut all = slots(among)?;
    let by = slots(by)?;
    let mut wanted: Vec<Vec<u8>> = by.values().flatten().map(slot).collect();
    all.extend(by);
    let mut needed = BTreeSet::new();
    while let Some(wants) = wanted.pop() {
        if let Some(deps) = all.remove(&wants) {
            wanted.extend(deps.iter().map(slot));
            needed.insert(wants);
        }
    }
    Ok(needed)
}

/// Adds a change.
pub fn add(unit: &mut Unit, slot: Vec<u8>, bytes: Vec<u8>) {
    unit.write(slot, bytes);
}

/// Writes what was cleared, all that was known of it before included: the new row takes the place of those seen.
pub fn hide(clears: &mut Unit, cleared: &Cleared) {
    clears.kill(|_| true);
    clears.write(CLEAR_SLOT.to_vec(), cleared.encode());
}

/// Checks a row's payload.
pub(crate) fn check_payload(slot: &[u8], payload: &[u8]) -> Result<(), CodecError> {
    match parse_slot(slot)? {
        None => Cleared::decode(payload).map(drop),
        Some(hash) => match Change::parse(payload) {
            Ok(change) if change.hash == hash => Ok(()),
            Ok(_) => Err(CodecError::Malformed("a change under another one's name".into())),
            Err(error) => Err(CodecError::Malformed(error.to_string())),
        },
    }
}
