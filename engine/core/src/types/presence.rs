//! Presence with add-wins: a flag, and each member of a set.
//!
//! The observed-remove construction without tombstones (Bieniusa et al., "An Optimized Conflict-free
//! Replicated Set", 2012), a slot at a time: the slot is present while it has a row.
//!
//! - An add writes a row under the commit's dot and kills every row seen: the new row stands for them all, and
//!   a removal that saw only those cannot take it.
//! - A removal kills every row seen. A row written concurrently was not seen, so it stays: add wins.

use super::Unit;
use crate::context::Dot;
use crate::ids::Member;

/// The slot of a flag.
pub const FLAG_SLOT: &[u8] = &[];

/// The slot of a set's member: its bytes and a zero byte, so that a member that is a prefix of another does
/// not share its range.
pub fn member_slot(member: &Member) -> Vec<u8> {
    slot_of(member.as_str())
}

/// The same for any text, to look for what stands before or after it.
pub fn slot_of(name: &str) -> Vec<u8> {
    let mut slot = name.as_bytes().to_vec();
    slot.push(0);
    slot
}

/// The member of a set's slot; `None` if the slot is not one.
pub fn slot_member(slot: &[u8]) -> Option<&str> {
    slot.strip_suffix(&[0]).and_then(|name| std::str::from_utf8(name).ok())
}

/// Makes the slot present.
pub fn add(unit: &mut Unit, slot: &[u8]) {
    unit.kill(|_| true);
    unit.write(slot.to_vec(), Vec::new());
}

/// Makes the slot absent, as far as the client has seen. Rows that it has not seen stay, also those for which an earlier
/// addition of this commit was to stand.
pub fn remove(unit: &mut Unit, slot: &[u8], sees: impl Fn(Dot) -> bool) {
    unit.kill(&sees);
    unit.keep(|dot| !sees(dot));
    unit.unwrite(slot);
}
