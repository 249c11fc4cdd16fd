//! Registers: concurrent assignments stand side by side, one of them is the value.
//!
//! A multi-value register (Shapiro et al., 2011) with a last-writer reading. Rows are keyed by whole dot.
//! An assignment kills every row seen and writes its own; so the rows are exactly the assignments that no
//! visible assignment or clear saw. The value is the one with the greatest (HLC, replica id); the others are
//! its siblings. Clocks choose among concurrent assignments only: one that was seen is gone, whatever its
//! stamp.

use super::Unit;
use crate::context::Dot;
use crate::json::Json;
use crate::row::Row;

/// The one slot of a register.
pub const SLOT: &[u8] = &[];

/// Assigns, over what the client has seen.
pub fn set(unit: &mut Unit, value: &Json, sees: impl Fn(Dot) -> bool) {
    unit.kill(sees);
    unit.write(SLOT.to_vec(), value.as_str().as_bytes().to_vec());
}

/// The place of the winning row.
pub fn winner(rows: &[Row]) -> Option<usize> {
    (0..rows.len()).max_by_key(|&i| (rows[i].hlc, rows[i].dot))
}
