//! Sums of increments, with clears that take exactly what they saw: a counter's, and each member's of a zset.
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
//! The value is Σ over sum rows of (sum − cover.sum); it lives while some row has `last` > cover.dot.
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
//! value, by (3) a row of which every increment is covered may go. So a cleared sum leaves no rows once its owners
//! have heard of it, and a deleted record's last row goes. Of what has
//! expired nothing is written anew, lest it come back; it may be retired. Rows of a past incarnation have no owner any more and stay as
//! they are: a later clear puts its reset beside them, and (1) to (5) never ask whether the owner lives.

use std::marker::PhantomData;

use bincode::{Decode, Encode};

use super::Unit;
use crate::codec::{self, CodecError};
use crate::context::{Dot, Seen};
use crate::ids::ReplicaId;

const SUM_KIND: u8 = 0;
const RESET_KIND: u8 = 1;
const PAYLOAD_VERSION: u8 = 1;

/// What is summed: an abelian group, so that any order gives the same and a part can be taken away.
pub trait Amount: Clone + Default + Ord + Encode + Decode<()> + 'static {
    /// The sum of two.
    fn plus(&self, other: &Self) -> Self;

    /// The difference.
    fn minus(&self, other: &Self) -> Self;

    /// Checks what a peer sent.
    fn check(&self) -> Result<(), CodecError>;
}

/// The payload of a sum row.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Sum<A: 'static> {
    /// Increments from `first` to `last`, added up.
    pub sum: A,
    /// The counter of the first increment's dot.
    pub first: u64,
    /// The counter of the last increment's dot.
    pub last: u64,
    /// The part that folded clears have taken.
    pub base: Option<Cover<A>>,
}

/// A prefix of an owner's increments that is cleared: a base, or a reset row's payload.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub struct Cover<A: 'static> {
    /// The counter of the last increment in it.
    pub dot: u64,
    /// The sum up to there.
    pub sum: A,
}

impl<A: Amount> Sum<A> {
    fn encode(&self) -> Vec<u8> {
        codec::encode(PAYLOAD_VERSION, self)
    }

    /// Reads a sum row's payload.
    pub fn decode(payload: &[u8]) -> Result<Self, CodecError> {
        let sum: Self = codec::decode(PAYLOAD_VERSION, payload)?;
        let ordered = 0 < sum.first
            && sum.first <= sum.last
            && sum.base.as_ref().is_none_or(|base| base.dot <= sum.last);
        ordered
            .then_some(sum)
            .ok_or_else(|| CodecError::Malformed("a sum row's dots are out of order".into()))
    }

    /// Checks what a peer sent.
    pub fn check(&self) -> Result<(), CodecError> {
        self.sum.check()?;
        self.base.as_ref().map_or(Ok(()), |base| base.sum.check())
    }

    /// Whether some increment is beyond the cover.
    fn lives(&self, cover: Option<&Cover<A>>) -> bool {
        cover.is_none_or(|cover| cover.dot < self.last)
    }

    fn cover<'a>(&'a self, resets: impl Iterator<Item = &'a Cover<A>>) -> Option<&'a Cover<A>> {
        resets.filter(|reset| reset.dot >= self.first).chain(&self.base).max()
    }
}

/// The slots of one sum begin with these bytes: none of a counter, the member of a zset's.
#[derive(Debug)]
pub struct Sums<'b, A> {
    base: &'b [u8],
    amount: PhantomData<A>,
}

impl<A> Copy for Sums<'_, A> {}

impl<A> Clone for Sums<'_, A> {
    fn clone(&self) -> Self {
        *self
    }
}

/// The slot of sum rows.
pub fn sum_slot(base: &[u8]) -> Vec<u8> {
    [base, &[SUM_KIND]].concat()
}

/// The slot of reset rows about an owner.
pub fn reset_slot(base: &[u8], owner: ReplicaId) -> Vec<u8> {
    [base, &[RESET_KIND], &owner.0.to_be_bytes()].concat()
}

/// Reads a reset row's payload.
pub fn decode_reset<A: Amount>(payload: &[u8]) -> Result<Cover<A>, CodecError> {
    codec::decode(PAYLOAD_VERSION, payload)
}

/// Checks what follows the base in a slot; the owner if it is a reset's.
pub fn parse_slot(slot: &[u8]) -> Result<Option<ReplicaId>, CodecError> {
    if slot == [SUM_KIND] {
        return Ok(None);
    }
    match slot.split_first() {
        Some((&RESET_KIND, owner)) if owner.len() == 8 => {
            let mut id = [0; 8];
            id.copy_from_slice(owner);
            Ok(Some(ReplicaId(u64::from_be_bytes(id))))
        }
        _ => Err(CodecError::Malformed("not a slot of a sum".into())),
    }
}

/// Checks what reading takes for granted of a row: what follows the base in its slot, its dot and its payload.
pub fn check_payload<A: Amount>(slot: &[u8], dot: Dot, payload: &[u8]) -> Result<(), CodecError> {
    if parse_slot(slot)?.is_some() {
        return decode_reset::<A>(payload)?.sum.check();
    }
    let sum = Sum::<A>::decode(payload)?;
    if sum.last > dot.counter {
        return Err(CodecError::Malformed("a sum row names an increment that is still to come".into()));
    }
    sum.check()
}

impl<'b, A: Amount> Sums<'b, A> {
    /// The sum whose slots begin so.
    pub fn at(base: &'b [u8]) -> Self {
        Self { base, amount: PhantomData }
    }

    /// Adds `by` as `own`, the commit's dot. A row that has expired begins anew.
    pub fn incr(self, unit: &mut Unit, by: &A, own: Dot) -> Result<(), CodecError> {
        let state = self.of_unit(unit, own.replica)?;
        let begun = || Sum { sum: by.clone(), first: own.counter, last: own.counter, base: None };
        let slot = sum_slot(self.base);
        let goes_on = unit.written_at(&slot).is_some() || !unit.is_hidden(&slot, own.replica);
        let sum = match state.of(own.replica) {
            Some((sum, cover)) if sum.lives(cover) && goes_on => {
                Sum { sum: sum.sum.plus(by), last: own.counter, base: cover.cloned(), first: sum.first }
            }
            _ => begun(),
        };
        self.kill_own(unit, own.replica);
        unit.write(slot, sum.encode());
        Ok(())
    }

    /// Whether the stored rows hold increments that are there and that the client has not seen: sums cannot be split, so
    /// it cannot clear them. That the last increment is seen does not tell that those before it are: a client may have seen
    /// commits beyond a gap. A row does not say which of its owner's commits were increments, so all of them count.
    pub fn is_beyond(self, unit: &Unit, seen: &Seen) -> Result<bool, CodecError> {
        let state = self.of_rows(unit.stored())?;
        Ok(state.sums().any(|(replica, sum, cover)| {
            let cleared = cover.map_or(0, |cover| cover.dot);
            let known = cleared.max(seen.vector().get(replica)).max(sum.first - 1);
            // Ends at the first that is not seen, and few are seen beyond the vector.
            (known.saturating_add(1)..=sum.last).any(|counter| !seen.covers(Dot { replica, counter }))
        }))
    }

    /// What the owner does with resets about its row, between its increments: it folds them in, and retires the row if
    /// nothing of it is left. Changes no value.
    pub fn fold(self, unit: &mut Unit, own: ReplicaId) -> Result<(), CodecError> {
        let state = self.of_unit(unit, own)?;
        let found = state.of(own);
        let retired = found.is_some_and(|(sum, cover)| !sum.lives(cover));
        let is_hidden = unit.is_hidden(&sum_slot(self.base), own);
        if !retired && (is_hidden || state.resets_about(own).next().is_none()) {
            return Ok(());
        }
        let folded =
            found.filter(|_| !retired).map(|(sum, cover)| Sum { base: cover.cloned(), ..sum.clone() });
        self.kill_own(unit, own);
        if let Some(sum) = folded {
            unit.write(sum_slot(self.base), sum.encode());
        }
        Ok(())
    }

    /// Takes away every increment seen, by `own` replica.
    pub fn clear(self, unit: &mut Unit, own: ReplicaId) -> Result<(), CodecError> {
        self.clear_of(unit, own, |_| true)
    }

    /// The same, of some owners alone.
    pub fn clear_of(
        self,
        unit: &mut Unit,
        own: ReplicaId,
        is_cleared: impl Fn(ReplicaId) -> bool,
    ) -> Result<(), CodecError> {
        let state = self.of_unit(unit, own)?;
        for (owner, sum, cover) in state.sums().filter(|(owner, ..)| is_cleared(*owner)) {
            let about = reset_slot(self.base, owner);
            if owner == own {
                unit.unwrite(&sum_slot(self.base));
                self.kill_own(unit, own);
            } else if sum.lives(cover) {
                unit.kill_where(|slot, _| slot == about);
                let reset = Cover { dot: sum.last, sum: sum.sum.clone() };
                unit.write(about, codec::encode(PAYLOAD_VERSION, &reset));
            }
        }
        // One by one: beside a dead reset there may be one that applies.
        let dead =
            |owner, reset: &Cover<A>| state.sums.iter().all(|(o, sum)| *o != owner || reset.dot < sum.first);
        for (owner, by, _) in state.resets.iter().filter(|(owner, _, reset)| dead(*owner, reset)) {
            let about = reset_slot(self.base, *owner);
            unit.kill_where(|slot, dot| slot == about && dot.replica == *by);
        }
        Ok(())
    }

    /// Whether some increment is there for readers, as this commit leaves the unit.
    pub fn lives(self, unit: &Unit, own: ReplicaId) -> Result<bool, CodecError> {
        let state = self.of_unit(unit, own)?;
        let slot = sum_slot(self.base);
        let is_shown =
            |owner| owner == own && unit.written_at(&slot).is_some() || !unit.is_hidden(&slot, owner);
        Ok(state.sums().any(|(owner, sum, cover)| sum.lives(cover) && is_shown(owner)))
    }

    /// The rows as a commit of `own` leaves them.
    pub fn of_unit(self, unit: &Unit, own: ReplicaId) -> Result<State<A>, CodecError> {
        let kept =
            unit.alive().filter(|(slot, dot, _)| dot.replica != own || unit.written_at(slot).is_none());
        // Of the dot only the replica counts.
        let dot = Dot { replica: own, counter: 0 };
        let written = unit.written().iter().map(|(slot, payload)| (slot.as_slice(), dot, payload.as_slice()));
        self.of_rows(kept.chain(written))
    }

    /// The rows: slot, dot, payload.
    pub fn of_rows<'r>(
        self,
        rows: impl Iterator<Item = (&'r [u8], Dot, &'r [u8])>,
    ) -> Result<State<A>, CodecError> {
        let mut state = State { sums: Vec::new(), resets: Vec::new() };
        for (slot, Dot { replica, .. }, payload) in rows {
            let below = slot.strip_prefix(self.base).unwrap_or_default();
            match parse_slot(below)? {
                None => state.sums.push((replica, Sum::decode(payload)?)),
                Some(owner) => state.resets.push((owner, replica, decode_reset(payload)?)),
            }
        }
        Ok(state)
    }

    /// Kills the owner's row and the resets about it.
    fn kill_own(self, unit: &mut Unit, own: ReplicaId) {
        let (sum, about) = (sum_slot(self.base), reset_slot(self.base, own));
        unit.kill_where(|slot, dot| slot == about || (slot == sum && dot.replica == own));
    }
}

/// A sum's rows, read.
#[derive(Debug)]
pub struct State<A: 'static> {
    sums: Vec<(ReplicaId, Sum<A>)>,
    /// Owner, writer, what is cleared.
    resets: Vec<(ReplicaId, ReplicaId, Cover<A>)>,
}

impl<A: Amount> State<A> {
    /// The sum of the increments that are left; `None` if there are none.
    pub fn value(&self) -> Option<A> {
        self.value_beyond(|_| None)
    }

    /// The same, less what else is covered: `more` tells up to where, of each owner. It does not take increments away, only
    /// what they come to.
    pub fn value_beyond<'m>(&self, more: impl Fn(ReplicaId) -> Option<&'m Cover<A>>) -> Option<A> {
        let mut total: Option<A> = None;
        for (owner, sum, cover) in self.sums() {
            if !sum.lives(cover) {
                continue;
            }
            // What cleared counts first: of one commit it has seen all.
            let more = more(owner).filter(|more| more.dot >= sum.first);
            let more = more.filter(|more| cover.is_none_or(|cover| more.dot > cover.dot));
            let rest = more.or(cover).map_or_else(|| sum.sum.clone(), |cover| sum.sum.minus(&cover.sum));
            total = Some(total.map_or_else(|| rest.clone(), |total| total.plus(&rest)));
        }
        total
    }

    /// Owners, their rows and how far those are cleared.
    pub fn sums(&self) -> impl Iterator<Item = (ReplicaId, &Sum<A>, Option<&Cover<A>>)> {
        self.sums.iter().map(|(owner, sum)| (*owner, sum, sum.cover(self.resets_about(*owner))))
    }

    fn of(&self, owner: ReplicaId) -> Option<(&Sum<A>, Option<&Cover<A>>)> {
        self.sums().find(|(of, ..)| *of == owner).map(|(_, sum, cover)| (sum, cover))
    }

    fn resets_about(&self, owner: ReplicaId) -> impl Iterator<Item = &Cover<A>> {
        self.resets.iter().filter(move |(about, ..)| *about == owner).map(|(.., reset)| reset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::row::Row;
    use crate::types::counter::{SUM_SLOT, saturated, sums};

    fn dot(replica: u64, counter: u64) -> Dot {
        Dot { replica: ReplicaId(replica), counter }
    }

    fn read(unit: &Unit) -> Option<i128> {
        sums().of_unit(unit, ReplicaId(1)).unwrap().value()
    }

    #[test]
    fn within_one_commit_operations_act_in_order() {
        let me = dot(1, 5);
        let mut unit = Unit::default();
        sums().incr(&mut unit, &10, me).unwrap();
        sums().clear(&mut unit, me.replica).unwrap();
        assert!(!sums().lives(&unit, me.replica).unwrap());
        sums().incr(&mut unit, &3, me).unwrap();
        sums().incr(&mut unit, &-1, me).unwrap();
        assert_eq!(read(&unit), Some(2));
    }

    #[test]
    fn an_increment_of_zero_makes_the_sum_exist() {
        let mut unit = Unit::default();
        sums().incr(&mut unit, &0, dot(1, 1)).unwrap();
        assert_eq!(read(&unit), Some(0));
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
        let reset = |dot| codec::encode(PAYLOAD_VERSION, &Cover { dot, sum: -2i128 });
        // The owner's row began anew at 7: a reset up to 3 is about its earlier row, one up to 7 takes all of it.
        let sum = Sum { sum: -2i128, first: 7, last: 7, base: None };
        let mut unit = Unit::new([
            row(SUM_SLOT.to_vec(), dot(4, 7), sum.encode()),
            row(reset_slot(&[], owner), dot(2, 8), reset(7)),
            row(reset_slot(&[], owner), dot(3, 9), reset(3)),
        ]);
        sums().clear(&mut unit, me).unwrap();
        assert_eq!(unit.killed().collect::<Vec<_>>(), [(reset_slot(&[], owner).as_slice(), dot(3, 9))]);
        assert!(!sums().lives(&unit, me).unwrap());
    }

    #[test]
    fn reading_saturates() {
        let mut unit = Unit::default();
        let incr = |unit: &mut Unit, by: i64| sums().incr(unit, &i128::from(by), dot(1, 1)).unwrap();
        for _ in 0..3 {
            incr(&mut unit, i64::MAX);
        }
        assert_eq!(read(&unit).map(saturated), Some(i64::MAX));
        incr(&mut unit, i64::MIN);
        incr(&mut unit, i64::MIN);
        incr(&mut unit, -1);
        assert_eq!(read(&unit).map(saturated), Some(i64::MAX - 3));
    }

    #[test]
    fn rows_of_nonsense_are_refused() {
        assert!(parse_slot(&[]).is_err());
        assert!(parse_slot(&[1, 2, 3]).is_err());
        let bad = Sum { sum: 0i128, first: 3, last: 2, base: None };
        assert!(Sum::<i128>::decode(&bad.encode()).is_err());
    }
}
