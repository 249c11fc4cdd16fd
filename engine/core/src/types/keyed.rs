//! Keyed increments: increments of a counter made under an idempotency key, which count once however often and
//! wherever they are retried.
//!
//! Each (key, field) is a slot. A commit that sees the slot present changes nothing: the increment is there. Two regions
//! that accepted one key before they could talk each leave a row in the one slot, and it counts once: as the row with
//! the greatest (HLC, dot) says (retries say the same). A clear takes the rows that it saw, by its scope; no sums are
//! involved, so a row that it did not see stays whole.
//!
//! A key may be used again when its window has ended; then the increment is another one, and its slot is the key's next
//! *generation*. Regions that use it again concurrently, having seen the same, choose the same generation.
//!
//! Slots are never folded into a sum. A clear that saw a slot and not the fold could not take the increment from the sum
//! any more, however late the fold. So a keyed increment keeps a row until its counter is cleared; what they come to is
//! kept beside (see [`crate::fields`]), so that reading does not depend on how many there are.

use super::Unit;
use crate::codec::{self, CodecError};
use crate::row::Row;

const PAYLOAD_VERSION: u8 = 1;

/// Bytes of an idempotency key's digest.
pub const KEY_BYTES: usize = 16;

/// Bytes of a slot: the key and its generation, big-endian.
pub const SLOT_BYTES: usize = KEY_BYTES + 2;

/// The slot of a key's generation.
pub fn slot(key: &[u8; KEY_BYTES], generation: u16) -> Vec<u8> {
    [&key[..], &generation.to_be_bytes()].concat()
}

/// The generation for an increment under a key, of which these rows are there, their slots ending as [`slot`]'s do; `None` if it
/// is counted already: its last generation has a row from `oldest_ms` or later. There are 65,536 generations; the last one is
/// never left.
pub fn next_generation(rows: &[Row], oldest_ms: u64) -> Option<u16> {
    let Some(last) = rows.iter().map(|row| &row.slot).max() else { return Some(0) };
    let mut of_last = rows.iter().filter(|row| row.slot == *last);
    if of_last.any(|row| row.hlc.millis() >= oldest_ms) {
        return None;
    }
    let generation = last.last_chunk().map_or(u16::MAX, |bytes| u16::from_be_bytes(*bytes));
    Some(generation.saturating_add(1))
}

/// Adds `by` in a slot that has no rows. Of one commit's operations on one counter the slot is the sum; it saturates at what
/// a row can say.
pub fn incr(unit: &mut Unit, slot: &[u8], by: i64) -> Result<(), CodecError> {
    let before = unit.written_at(slot).map(decode).transpose()?.unwrap_or(0);
    unit.kill(|_| true);
    unit.write(slot.to_vec(), codec::encode(PAYLOAD_VERSION, &before.saturating_add(by)));
    Ok(())
}

/// Reads a payload.
pub fn decode(payload: &[u8]) -> Result<i64, CodecError> {
    codec::decode(PAYLOAD_VERSION, payload)
}

/// The value of a slot's rows; `None` if there are none.
pub fn value(rows: &[Row]) -> Result<Option<i64>, CodecError> {
    let winner = rows.iter().max_by_key(|row| (row.hlc, row.dot));
    winner.map(|row| decode(&row.payload)).transpose()
}
