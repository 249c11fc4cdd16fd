//! What a node keeps about a field and type of its own accord: what is cleared there and not yet swept, and how many
//! slots are present.
//!
//! This is no part of the replicated state: the rows that count are the same on every node, whatever each has swept or
//! counted (so digests pass over dead rows). A clear of a large field writes one such state and no row: that is what
//! makes it O(1).
//!
//! Invariants:
//!
//! - a row whose dot is covered by [`FieldState::dead`] does not exist for any reader, nor for a commit;
//! - no live row is ever written under a dot that `dead` covers: a dot is covered only after its delta was applied, and
//!   a delta is applied once;
//! - while a survey is under way, the slots before its cursor hold no dead rows, and [`FieldState::counted_size`] counts
//!   them; when it ends nothing is dead any more.

use bincode::{Decode, Encode};

use crate::codec::{self, CodecError};
use crate::context::VersionVector;
use crate::store::{Family, StoreError, StoreRead, Txn};

const STATE_VERSION: u8 = 1;

/// A field's state, absent for a field that has nothing dead and is not counted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
pub struct FieldState {
    /// Rows of these commits are cleared.
    pub dead: VersionVector,
    /// The pass over the rows that removes dead ones and counts the others, if it has not ended.
    pub survey: Option<Survey>,
    /// Slots present: before the survey's cursor, or all.
    size: u64,
    /// Whether somebody asked for the size, so that it is worth keeping.
    pub counted: bool,
}

/// A pass over the rows of a field and type.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
pub struct Survey {
    /// Where it goes on, below the prefix of the field and type: the first bytes of a row's key.
    pub cursor: Vec<u8>,
    /// Slots present from the cursor on, where that is known: nothing was left when the survey began.
    pub beyond: Option<u64>,
}

impl FieldState {
    /// Reads a state by its key ([`crate::keys::type_prefix`]).
    pub fn read(store: &impl StoreRead, key: &[u8]) -> Result<Option<Self>, StoreError> {
        let bytes = store.get(Family::Fields, key)?;
        bytes.map(|bytes| Self::decode(&bytes)).transpose().map_err(StoreError::damaged("fields"))
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        codec::decode(STATE_VERSION, bytes)
    }

    pub(crate) fn write<S: StoreRead>(&self, txn: &mut Txn<'_, S>, key: &[u8]) {
        if *self == Self::default() {
            txn.delete(Family::Fields, key.to_vec());
        } else {
            txn.put(Family::Fields, key.to_vec(), codec::encode(STATE_VERSION, self));
        }
    }

    /// A field that is counted from the beginning.
    pub(crate) fn to_be_counted() -> Self {
        Self { survey: Some(Survey::default()), counted: true, ..Self::default() }
    }

    /// More is cleared. `all`: no row of before is left alive.
    pub(crate) fn clear(&mut self, seen: &VersionVector, all: bool) {
        self.dead.join(seen);
        self.size = 0;
        self.survey = Some(Survey { cursor: Vec::new(), beyond: all.then_some(0) });
    }

    /// The number of slots present, if it is known.
    pub fn counted_size(&self) -> Option<u64> {
        match &self.survey {
            None => Some(self.size),
            Some(survey) => survey.beyond.map(|beyond| self.size + beyond),
        }
    }

    /// All rows were looked through at once, the dead ones removed: so many slots are present.
    pub(crate) fn looked_through(&mut self, present: u64) {
        *self = if self.counted {
            Self { counted: true, size: present, ..Self::default() }
        } else {
            Self::default()
        };
    }

    /// A slot came or went.
    pub(crate) fn changed(&mut self, slot: &[u8], is_present: bool) {
        let count = match &mut self.survey {
            // The cursor begins a slot or is empty, so a slot before it is smaller and no prefix of it.
            Some(survey) if slot >= survey.cursor.as_slice() => match &mut survey.beyond {
                Some(beyond) => beyond,
                None => return,
            },
            _ => &mut self.size,
        };
        *count = if is_present { *count + 1 } else { count.saturating_sub(1) };
    }

    /// The survey passed over slots, of which some are present, and goes on at a cursor, or has ended.
    pub(crate) fn surveyed(&mut self, present: u64, cursor: Option<Vec<u8>>) {
        self.size += present;
        match (cursor, &mut self.survey) {
            (Some(cursor), Some(survey)) => {
                survey.cursor = cursor;
                survey.beyond = survey.beyond.map(|beyond| beyond.saturating_sub(present));
            }
            _ => self.looked_through(self.size),
        }
    }
}
