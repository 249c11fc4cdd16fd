//! When a record expires: a register of times of which the latest of concurrent ones counts, and a floor.
//!
//! SEMANTICS.md: *from the winning time T on, every row last written before T reads as absent, everywhere, whether or not it
//! has been swept.* `persist` is a time later than any.
//!
//! Nothing that was hidden comes back with a commit that finds it so. A new time would bring it back, since it takes the
//! place of the time that has passed. So a row holds a *floor* too: the greatest time that had passed when it was written;
//! what was written before that stays hidden. The floor of a record is the greatest of its rows'.
//!
//! Time is told by the stamps of rows and by the clock of whoever reads, both in milliseconds since 1970: so until clocks
//! agree that T has passed, one node shows what another one hides.
//!
//! The rows belong to the record. They are kept under a field's name, which takes nothing from a field of that name: the type is
//! another one, no clear's scope takes it, and reads pass it over.

use bincode::{Decode, Encode};

use super::{Unit, counter, document, zset};
use crate::codec::{self, CodecError};
use crate::context::Dot;
use crate::ids::Field;
use crate::row::{FieldType, Row};

/// The one slot.
pub const SLOT: &[u8] = &[];
/// Later than any time.
pub const NEVER: u64 = u64::MAX;
/// The longest time that a client may ask for, in milliseconds: a hundred years.
pub const EXPIRE_MS_MAX: u64 = 100 * 365 * 24 * 60 * 60 * 1000;
const PAYLOAD_VERSION: u8 = 1;

/// A row's payload, and what the rows of a record come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Expiry {
    /// The time of expiry, in milliseconds since 1970; [`NEVER`] for none.
    pub at: u64,
    /// What was written before this stays hidden.
    pub floor: u64,
}

impl Expiry {
    /// Of a record that has no such rows.
    pub const NONE: Self = Self { at: NEVER, floor: 0 };

    /// Of a record's rows.
    pub fn of_rows(rows: &[Row]) -> Result<Self, CodecError> {
        Self::of_payloads(rows.iter().map(|row| row.payload.as_slice()))
    }

    /// Rows stamped before this, in milliseconds since 1970, are absent at this time; 0 for none.
    pub fn hidden_before(self, now_ms: u64) -> u64 {
        if self.at <= now_ms { self.at.max(self.floor) } else { self.floor }
    }

    /// Reads a payload.
    pub fn decode(payload: &[u8]) -> Result<Self, CodecError> {
        codec::decode(PAYLOAD_VERSION, payload)
    }

    /// As a commit leaves it.
    pub fn of_unit(unit: &Unit) -> Result<Self, CodecError> {
        let written = unit.written().iter().map(|(_, payload)| payload.as_slice());
        Self::of_payloads(unit.alive().map(|(_, _, payload)| payload).chain(written))
    }

    fn of_payloads<'p>(payloads: impl Iterator<Item = &'p [u8]>) -> Result<Self, CodecError> {
        let mut latest: Option<u64> = None;
        let mut floor = 0;
        for payload in payloads {
            let row = Self::decode(payload)?;
            latest = latest.max(Some(row.at));
            floor = floor.max(row.floor);
        }
        Ok(Self { at: latest.unwrap_or(NEVER), floor })
    }
}

/// The field's name under which the rows are kept.
pub fn field() -> Field {
    Field::new("expiry").expect("a name of its form")
}

/// Sets the time, over what is seen.
pub fn set(unit: &mut Unit, at: u64, now_ms: u64) -> Result<(), CodecError> {
    let floor = Expiry::of_unit(unit)?.hidden_before(now_ms);
    unit.kill(|_| true);
    unit.write(SLOT.to_vec(), codec::encode(PAYLOAD_VERSION, &Expiry { at, floor }));
    Ok(())
}

/// Takes away what the client has seen of it.
pub fn clear(unit: &mut Unit, sees: impl Fn(Dot) -> bool) {
    unit.kill(sees);
    unit.unwrite_all();
}

/// Whether a row is absent in a record in which those stamped before a time are. What tells which part of a sum was taken is
/// not: the sum may be there, last written later.
pub fn hides(before_ms: u64, row: &Row) -> bool {
    row.hlc.millis() < before_ms && can_expire(row)
}

/// Whether a row is part of what a record shows, and so absent once that has expired.
pub fn can_expire(row: &Row) -> bool {
    !row.ty.holds_sums() || is_sum(row) || document::is_change(row)
}

/// Whether a row is a sum.
pub fn is_sum(row: &Row) -> bool {
    match row.ty {
        FieldType::COUNTER => row.slot == counter::SUM_SLOT,
        FieldType::ZSUM => zset::split(&row.slot).is_some_and(|(_, rest)| rest == counter::SUM_SLOT),
        _ => false,
    }
}
