//! Counters: sums of increments, with clears that take exactly what they saw.
//!
//! SEMANTICS.md: *the value is the sum of the visible increments that no visible clear saw*. Increments of
//! one replica are stored as one sum, so a clear has to name a part of a sum. Compare Weidner and Almeida,
//! "An Oblivious Observed-Reset Embeddable Replicated Counter" (2022).
//!
//! # Rows
//!
//! - A **sum row** of owner `O`: `sum` of O's increments from dot `first` to dot `last`, and a `base`: (dot,
//!   sum) of the part already taken by clears that O has folded in. One a replica, since only O writes it.
//! - A **reset row** about owner `O`, by whoever cleared: (dot, sum): O's `last` and `sum` as the clear saw them.
//!
//! A reset *applies* to O's sum row if its dot is at least `first` (otherwise it is about an earlier row of O,
//! which no longer exists). The row's *cover* is the base or applicable reset with the greatest dot.
//! The counter's value is Σ over sum rows of (sum − cover.sum); it lives while some row has `last` > cover.dot.
//!
//! # Why this is right
//!
//! Let R(O) be O's current sum row, as some replica has it, with increments I = {i : first ≤ dot(i) ≤ last} of O.
//!
//! 1. *A prefix is known by its end.* The dots of O are totally ordered and O sees its own past, so the sum that
//!    a reset or base with dot d carries is Σ {i ∈ I : dot(i) ≤ d}: `sum` as of d. Two covers of one row are
//!    therefore nested, and the one with the greater dot takes all that the other does.
//! 2. *A clear takes what it saw.* A clear that saw R(O) with last = d saw exactly O's increments up to d: those
//!    before `first` are in no row (3), those in I up to d are what its reset subtracts, those after d stay.
//! 3. *Nothing is lost by retiring.* O starts a new row (first = its new dot) only when every increment of the
//!    old one is covered, hence cleared by a visible clear. A clear that O had not seen, about the old row, has a
//!    dot below the new `first` and does not apply: all that it saw is gone already, and it saw none of I.
//! 4. *Folding changes no value.* O moves the greatest applicable cover into `base` and kills the resets that it
//!    saw; any reset killed had a dot at most base.dot (1). A concurrent reset survives, and wins only if its dot
//!    is greater. `last` stays the dot of the last increment, so (1) holds for later resets too.
//! 5. *Order does not matter.* The rows are a function of the commits applied (each row has one writer, kills
//!    name what they saw), and the value is a function of the rows.
//!
//! A reset about an owner without a sum row, or below its `first`, is dead for good: its owner's row was
//! retired in its causal past or will begin after it. Whoever clears next removes it.
//!
//! # Folding and retiring between increments
//!
//! An owner that applies a reset about itself folds soon after, in a commit of its own ([`fold`]): by (4) that changes no
//! value, by (3) a row of which every increment is covered may go. So a cleared counter leaves no rows once its owners
//! have heard of it, and a deleted record's last row goes. Rows of a past incarnation have no owner any more and stay as
//! they are: a later clear puts its reset beside them, and (1) to (5) never ask whether the owner lives.

use bincode::{Decode, Encode};

use super::Unit;
use crate::codec::{self, CodecError};
use crate::context::{Dot, Seen};
use crate::ids::ReplicaId;
use crate::row::Row;

/// The slot of sum rows.
pub const SUM_SLOT: &[u8] = &[0];
const RESET_KIND: u8 = 1;
const PAYLOAD_VERSION: u8 = 1;

/// The payload of a sum row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Sum {
    /// Increments from `first` to `last`, added up.
    pub sum: i128,
    /// The counter of the first increment's dot.
    pub first: u64,
    /// The counter of the last increment's dot.
    pub last: u64,
    /// The part that folded clears have taken.
    pub base: Option<Cover>,
}

/// A prefix of an owner's increments that is cleared: a base, or a reset row's payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub struct Cover {
    /// The counter of the last increment in it.
    pub dot: u64,
    /// The sum up to there.
    pub sum: i128,
}

impl Sum {
    fn encode(&self) -> Vec<u8> {
        codec::encode(PAYLOAD_VERSION, self)
    }

    /// Reads a sum row's payload.
    pub fn decode(payload: &[u8]) -> Result<Self, CodecError> {
        let sum: Self = codec::decode(PAYLOAD_VERSION, payload)?;
        let ordered =
            0 < sum.first && sum.first <= sum.last && sum.base.is_none_or(|base| base.dot <= sum.last);
        ordered
            .then_some(sum)
            .ok_or_else(|| CodecError::Malformed("a sum row's dots are out of order".into()))
    }

    fn cover(&self, resets: impl Iterator<Item = Cover>) -> Option<Cover> {
        resets.filter(|reset| reset.dot >= self.first).chain(self.base).max()
    }
}

/// The slot of reset rows about an owner.
pub fn reset_slot(owner: ReplicaId) -> Vec<u8> {
    let mut slot = vec![RESET_KIND];
    slot.extend_from_slice(&owner.0.to_be_bytes());
    slot
}

/// Reads a reset row's payload.
pub fn decode_reset(payload: &[u8]) -> Result<Cover, CodecError> {
    codec::decode(PAYLOAD_VERSION, payload)
}

/// Checks a slot of a counter; the owner if it is a reset's.
pub fn parse_slot(slot: &[u8]) -> Result<Option<ReplicaId>, CodecError> {
    if slot == SUM_SLOT {
        return Ok(None);
    }
    match slot.split_first() {
        Some((&RESET_KIND, owner)) if owner.len() == 8 => {
            let mut id = [0; 8];
            id.copy_from_slice(owner);
            Ok(Some(ReplicaId(u64::from_be_bytes(id))))
        }
        _ => Err(CodecError::Malformed("not a slot of a counter".into())),
    }
}

/// Adds `by` as `own`, the commit's dot.
pub fn incr(unit: &mut Unit, by: i64, own: Dot) -> Result<(), CodecError> {
    let state = State::of_unit(unit, own.replica)?;
    let by = i128::from(by);
    let old = state.sums.iter().find(|(owner, _)| *owner == own.replica).map(|(_, sum)| *sum);
    let sum = match old {
        Some(sum) => {
            let cover = sum.cover(state.resets_about(own.replica));
            if cover.is_none_or(|cover| cover.dot < sum.last) {
                // Wrapping: 2⁶⁴ increments of an i64 cannot leave an i128, and a peer's nonsense must not panic.
                Sum { sum: sum.sum.wrapping_add(by), last: own.counter, base: cover, ..sum }
            } else {
                Sum { sum: by, first: own.counter, last: own.counter, base: None }
            }
        }
        None => Sum { sum: by, first: own.counter, last: own.counter, base: None },
    };
    let folded = reset_slot(own.replica);
    unit.kill_where(|slot, dot| slot == folded || (slot == SUM_SLOT && dot.replica == own.replica));
    unit.write(SUM_SLOT.to_vec(), sum.encode());
    Ok(())
}

/// Whether the stored rows hold increments that are there and that the client has not seen: sums cannot be split, so
/// it cannot clear them. That the last increment is seen does not tell that those before it are: a client may have seen
/// commits beyond a gap. A row does not say which of its owner's commits were increments, so all of them count.
pub fn is_beyond(unit: &Unit, seen: &Seen) -> Result<bool, CodecError> {
    let stored = unit.stored().map(|(slot, dot, payload)| (slot, dot.replica, payload));
    let state = State::of_rows(stored)?;
    Ok(state.sums.iter().any(|&(replica, sum)| {
        let cleared = sum.cover(state.resets_about(replica)).map_or(0, |cover| cover.dot);
        let known = cleared.max(seen.vector().get(replica)).max(sum.first - 1);
        // Ends at the first that is not seen, and few are seen beyond the vector.
        (known.saturating_add(1)..=sum.last).any(|counter| !seen.covers(Dot { replica, counter }))
    }))
}

/// What the owner does with resets about its row, between its increments: it folds them in, and retires the row if
/// nothing of it is left. Changes no value.
pub fn fold(unit: &mut Unit, own: ReplicaId) -> Result<(), CodecError> {
    let state = State::of_unit(unit, own)?;
    let about = reset_slot(own);
    let sum = state.sums.iter().find(|(owner, _)| *owner == own).map(|(_, sum)| *sum);
    let cover = sum.and_then(|sum| sum.cover(state.resets_about(own)));
    let retired = sum.is_some_and(|sum| cover.is_some_and(|cover| cover.dot >= sum.last));
    if !retired && state.resets_about(own).next().is_none() {
        return Ok(());
    }
    unit.kill_where(|slot, dot| slot == about || (slot == SUM_SLOT && dot.replica == own));
    if let Some(sum) = sum.filter(|_| !retired) {
        unit.write(SUM_SLOT.to_vec(), Sum { base: cover, ..sum }.encode());
    }
    Ok(())
}

/// Takes away every increment seen, by `own` replica.
pub fn clear(unit: &mut Unit, own: ReplicaId) -> Result<(), CodecError> {
    let state = State::of_unit(unit, own)?;
    for &(owner, sum) in &state.sums {
        let about = reset_slot(owner);
        if owner == own {
            unit.unwrite(SUM_SLOT);
            unit.kill_where(|slot, dot| slot == about || (slot == SUM_SLOT && dot.replica == own));
        } else if sum.cover(state.resets_about(owner)).is_none_or(|cover| cover.dot < sum.last) {
            unit.kill_where(|slot, _| slot == about);
            unit.write(about, codec::encode(PAYLOAD_VERSION, &Cover { dot: sum.last, sum: sum.sum }));
        }
    }
    // One by one: beside a dead reset there may be one that applies.
    let dead = |owner, reset: Cover| state.sums.iter().all(|(o, sum)| *o != owner || reset.dot < sum.first);
    for &(owner, by, _) in state.resets.iter().filter(|(owner, _, reset)| dead(*owner, *reset)) {
        let about = reset_slot(owner);
        unit.kill_where(|slot, dot| slot == about && dot.replica == by);
    }
    Ok(())
}

/// Whether some increment is not cleared, as this commit leaves the unit.
pub fn lives(unit: &Unit, own: ReplicaId) -> Result<bool, CodecError> {
    Ok(State::of_unit(unit, own)?.value().is_some())
}

/// The exact sum of a counter's rows; `None` if no increment is left.
pub fn value(rows: &[Row]) -> Result<Option<i128>, CodecError> {
    let rows = rows.iter().map(|row| (row.slot.as_slice(), row.dot.replica, row.payload.as_slice()));
    Ok(State::of_rows(rows)?.value())
}

/// A sum as it is read: saturated at the limits of an i64.
pub fn saturated(sum: i128) -> i64 {
    sum.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64
}

/// A counter's rows, read.
struct State {
    sums: Vec<(ReplicaId, Sum)>,
    /// Owner, writer, what is cleared.
    resets: Vec<(ReplicaId, ReplicaId, Cover)>,
}

impl State {
    /// As a commit of `own` leaves it.
    fn of_unit(unit: &Unit, own: ReplicaId) -> Result<Self, CodecError> {
        let kept = unit
            .alive()
            .filter(|(slot, dot, _)| dot.replica != own || unit.written_at(slot).is_none())
            .map(|(slot, dot, payload)| (slot, dot.replica, payload));
        let written = unit.written().iter().map(|(slot, payload)| (slot.as_slice(), own, payload.as_slice()));
        Self::of_rows(kept.chain(written))
    }

    fn of_rows<'r>(rows: impl Iterator<Item = (&'r [u8], ReplicaId, &'r [u8])>) -> Result<Self, CodecError> {
        let mut state = Self { sums: Vec::new(), resets: Vec::new() };
        for (slot, replica, payload) in rows {
            match parse_slot(slot)? {
                None => state.sums.push((replica, Sum::decode(payload)?)),
                Some(owner) => state.resets.push((owner, replica, decode_reset(payload)?)),
            }
        }
        Ok(state)
    }

    fn resets_about(&self, owner: ReplicaId) -> impl Iterator<Item = Cover> {
        self.resets.iter().filter(move |(about, ..)| *about == owner).map(|(.., reset)| *reset)
    }

    fn value(&self) -> Option<i128> {
        let mut total = None;
        for (owner, sum) in &self.sums {
            let cover = sum.cover(self.resets_about(*owner));
            if cover.is_none_or(|cover| cover.dot < sum.last) {
                let rest = sum.sum.wrapping_sub(cover.map_or(0, |cover| cover.sum));
                total = Some(total.unwrap_or(0i128).wrapping_add(rest));
            }
        }
        total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dot(replica: u64, counter: u64) -> Dot {
        Dot { replica: ReplicaId(replica), counter }
    }

    #[test]
    fn within_one_commit_operations_act_in_order() {
        let me = dot(1, 5);
        let mut unit = Unit::default();
        incr(&mut unit, 10, me).unwrap();
        clear(&mut unit, me.replica).unwrap();
        assert!(!lives(&unit, me.replica).unwrap());
        incr(&mut unit, 3, me).unwrap();
        incr(&mut unit, -1, me).unwrap();
        assert_eq!(State::of_unit(&unit, me.replica).unwrap().value(), Some(2));
    }

    #[test]
    fn an_increment_of_zero_makes_the_counter_exist() {
        let mut unit = Unit::default();
        incr(&mut unit, 0, dot(1, 1)).unwrap();
        assert_eq!(State::of_unit(&unit, ReplicaId(1)).unwrap().value(), Some(0));
    }

    #[test]
    fn a_dead_reset_is_removed_and_a_live_one_beside_it_is_kept() {
        let (owner, me) = (ReplicaId(4), ReplicaId(3));
        let row = |slot: Vec<u8>, dot: Dot, payload: Vec<u8>| Row {
            field: crate::ids::Field::new("c").unwrap(),
            ty: crate::row::FieldType::COUNTER,
            slot,
            dot,
            hlc: crate::time::Hlc(1),
            payload,
        };
        let reset = |dot| codec::encode(PAYLOAD_VERSION, &Cover { dot, sum: -2 });
        // The owner's row began anew at 7: a reset up to 3 is about its earlier row, one up to 7 takes all of it.
        let sum = Sum { sum: -2, first: 7, last: 7, base: None };
        let mut unit = Unit::new([
            row(SUM_SLOT.to_vec(), dot(4, 7), sum.encode()),
            row(reset_slot(owner), dot(2, 8), reset(7)),
            row(reset_slot(owner), dot(3, 9), reset(3)),
        ]);
        clear(&mut unit, me).unwrap();
        assert_eq!(unit.killed().collect::<Vec<_>>(), [(reset_slot(owner).as_slice(), dot(3, 9))]);
        assert!(!lives(&unit, me).unwrap());
    }

    #[test]
    fn reading_saturates() {
        let mut unit = Unit::default();
        for _ in 0..3 {
            incr(&mut unit, i64::MAX, dot(1, 1)).unwrap();
        }
        let read = |unit: &Unit| State::of_unit(unit, ReplicaId(1)).unwrap().value().map(saturated);
        assert_eq!(read(&unit), Some(i64::MAX));
        incr(&mut unit, i64::MIN, dot(1, 1)).unwrap();
        incr(&mut unit, i64::MIN, dot(1, 1)).unwrap();
        incr(&mut unit, -1, dot(1, 1)).unwrap();
        assert_eq!(read(&unit), Some(i64::MAX - 3));
    }

    #[test]
    fn rows_of_nonsense_are_refused() {
        assert!(parse_slot(&[]).is_err());
        assert!(parse_slot(&[1, 2, 3]).is_err());
        let bad = Sum { sum: 0, first: 3, last: 2, base: None };
        assert!(Sum::decode(&bad.encode()).is_err());
    }
}
