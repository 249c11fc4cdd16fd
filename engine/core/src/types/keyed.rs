//! Keyed increments: increments of a counter made under an idempotency key, which count once however often and
//! wherever they are retried.
//!
//! Each (key, field) is a slot. A commit that sees the slot present changes nothing: the increment is there. Two regions
//! that accepted one key before they could talk each leave a row in the one slot, and it counts once: as the row with
//! the greatest (HLC, dot) says (retries say the same). A clear takes the rows that it saw, by its scope; no sums are
//! involved, so a row that it did not see stays whole.
//!
//! When the window of the key has ended, the owner of the winning row *folds* it: one commit kills the slot's rows and
//! adds the increment to the owner's sum. Only that owner does, so it is added once, unless another region's copy of the
//! request was still unknown when the window ended: that is what the window bounds.

use super::Unit;
use crate::codec::{self, CodecError};
use crate::row::Row;

const PAYLOAD_VERSION: u8 = 1;

/// Bytes of a slot: half of the BLAKE3 digest of the idempotency key.
pub const SLOT_BYTES: usize = 16;

/// Adds `by` under a key, unless it has been.
pub fn incr(unit: &mut Unit, slot: &[u8], by: i64) -> Result<(), CodecError> {
    if unit.any_seen_alive() {
        return Ok(());
    }
    // Operations of one commit on one counter: their sum is the slot's. It saturates at what a row can say.
    let before = unit.written_at(slot).map(decode).transpose()?.unwrap_or(0);
    unit.write(slot.to_vec(), codec::encode(PAYLOAD_VERSION, &before.saturating_add(by)));
    Ok(())
}

/// Reads a payload.
pub fn decode(payload: &[u8]) -> Result<i64, CodecError> {
    codec::decode(PAYLOAD_VERSION, payload)
}

/// The sum of keyed increments; `None` if there are none. Rows of one slot stand together.
pub fn value(rows: &[Row]) -> Result<Option<i128>, CodecError> {
    let slots = rows.chunk_by(|a, b| a.slot == b.slot);
    let winners = slots.filter_map(winner);
    winners
        .map(|row| decode(&row.payload).map(i128::from))
        .sum::<Result<i128, _>>()
        .map(|sum| (!rows.is_empty()).then_some(sum))
}

/// The row that counts among those of one slot.
pub fn winner(rows: &[Row]) -> Option<&Row> {
    rows.iter().max_by_key(|row| (row.hlc, row.dot))
}
