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
//! - while a survey is under way, the slots before its cursor hold no dead rows, and its tally counts
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
    /// Of the slots before the survey's cursor, or of all.
    tally: Tally,
    /// Whether the tally is worth keeping: somebody asked for the size, or the type is read by it.
    pub counted: bool,
}

/// A pass over the rows of a field and type.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
pub struct Survey {
    /// Where it goes on, below the prefix of the field and type: the first bytes of a row's key.
    pub cursor: Vec<u8>,
    /// Of the slots from the cursor on, where that is known: nothing was left when the survey began.
    pub beyond: Option<Tally>,
}

/// What slots come to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Encode, Decode)]
pub struct Tally {
    /// How many are present.
    pub slots: u64,
    /// The sum of their values: of keyed increments; 0 for other types.
    pub sum: i128,
}

impl Tally {
    /// A slot came, with a value.
    pub(crate) fn add(&mut self, value: i64) {
        self.slots += 1;
        self.sum = self.sum.wrapping_add(i128::from(value));
    }

    fn change(&mut self, before: Option<i64>, after: Option<i64>) {
        if let Some(value) = before {
            self.slots = self.slots.saturating_sub(1);
            self.sum = self.sum.wrapping_sub(i128::from(value));
        }
        if let Some(value) = after {
            self.add(value);
        }
    }

    fn join(self, other: Self) -> Self {
        Self { slots: self.slots + other.slots, sum: self.sum.wrapping_add(other.sum) }
    }

    fn without(self, other: Self) -> Self {
        Self { slots: self.slots.saturating_sub(other.slots), sum: self.sum.wrapping_sub(other.sum) }
    }
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
            txn.put(Family::Fields, key.to_vec(), self.encode());
        }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        codec::encode(STATE_VERSION, self)
    }

    /// Of a field without rows that is counted from its first one on.
    pub(crate) fn counted_from_nothing() -> Self {
        Self { counted: true, ..Self::default() }
    }

    /// Of a field that is counted from now on.
    pub(crate) fn to_be_counted() -> Self {
        Self { survey: Some(Survey::default()), counted: true, ..Self::default() }
    }

    /// Rows came and went without being counted: what the slots come to is open until a survey has passed over them.
    pub(crate) fn uncounted(mut self) -> Self {
        self.tally = Tally::default();
        self.survey = Some(Survey::default());
        self
    }

    /// More is cleared. `all`: no row of before is left alive.
    pub(crate) fn clear(&mut self, seen: &VersionVector, all: bool) {
        self.dead.join(seen);
        self.tally = Tally::default();
        self.survey = Some(Survey { cursor: Vec::new(), beyond: all.then(Tally::default) });
    }

    /// What the slots present come to, if it is known.
    pub fn counted(&self) -> Option<Tally> {
        match &self.survey {
            None => Some(self.tally),
            Some(survey) => survey.beyond.map(|beyond| self.tally.join(beyond)),
        }
    }

    /// How many slots are present, if that is known and rows may be dead: whoever has found as many need not look on.
    pub(crate) fn live_slots(&self) -> Option<u64> {
        self.survey.as_ref()?;
        self.counted().map(|tally| tally.slots)
    }

    /// The place, below the prefix of the field and type, from which on all rows are dead, if some is known.
    pub(crate) fn live_end(&self) -> Option<&[u8]> {
        let survey = self.survey.as_ref()?;
        let beyond = survey.beyond?;
        (beyond.slots == 0).then_some(survey.cursor.as_slice())
    }

    /// All rows were looked through at once, the dead ones removed.
    pub(crate) fn looked_through(&mut self, tally: Tally) {
        *self = if self.counted { Self { counted: true, tally, ..Self::default() } } else { Self::default() };
    }

    /// A slot's value changed; `None` is a slot that is not present.
    pub(crate) fn changed(&mut self, slot: &[u8], before: Option<i64>, after: Option<i64>) {
        match &mut self.survey {
            // The cursor begins a slot or is empty, so a slot before it is smaller and no prefix of it.
            Some(survey) if slot >= survey.cursor.as_slice() => {
                if let Some(beyond) = &mut survey.beyond {
                    beyond.change(before, after);
                }
            }
            _ => self.tally.change(before, after),
        }
    }

    /// The survey passed over slots, and goes on at a cursor, or has ended.
    pub(crate) fn surveyed(&mut self, passed: Tally, cursor: Option<Vec<u8>>) {
        self.tally = self.tally.join(passed);
        match (cursor, &mut self.survey) {
            (Some(cursor), Some(survey)) => {
                survey.cursor = cursor;
                survey.beyond = survey.beyond.map(|beyond| beyond.without(passed));
            }
            _ => self.looked_through(self.tally),
        }
    }
}
