//! Counters: a sum of integers ([`super::sums`]), exact in 128 bits.

use super::sums::{self, Amount, Sums};
use crate::codec::CodecError;
use crate::row::Row;

/// The payload of a sum row.
pub type Sum = sums::Sum<i128>;

/// A prefix of an owner's increments that is cleared.
pub type Cover = sums::Cover<i128>;

/// The slot of sum rows.
pub const SUM_SLOT: &[u8] = &[0];

// Wrapping: 2⁶⁴ increments of an i64 cannot leave an i128, and a peer's nonsense must not panic.
impl Amount for i128 {
    fn plus(&self, other: &Self) -> Self {
        self.wrapping_add(*other)
    }

    fn minus(&self, other: &Self) -> Self {
        self.wrapping_sub(*other)
    }

    fn check(&self) -> Result<(), CodecError> {
        Ok(())
    }
}

/// The one sum of a counter.
pub fn sums() -> Sums<'static, i128> {
    Sums::at(&[])
}

/// The exact sum of a counter's rows; `None` if no increment is left.
pub fn value(rows: &[Row]) -> Result<Option<i128>, CodecError> {
    let rows = rows.iter().map(|row| (row.slot.as_slice(), row.dot, row.payload.as_slice()));
    Ok(sums().of_rows(rows)?.value())
}

/// A sum as it is read: saturated at the limits of an i64.
pub fn saturated(sum: i128) -> i64 {
    sum.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64
}
