//! Members with scores: presence as in a set, and a number each that is assigned and added to.
//!
//! SEMANTICS.md: a member is present while an addition of it (zadd or zincr) is seen by no visible removal or clear. *Its
//! score is the last-writer score among the surviving zadds, plus every surviving zincr that the winning zadd did not see.*
//!
//! # Rows
//!
//! Those of a member begin with its name and a zero byte, in two types, since a clear's scope takes one and not the other:
//!
//! - [`FieldType::ZSET`](crate::row::FieldType::ZSET): a replica's *assignment*, the score and what of the member's increments
//!   it saw; and increments made under an idempotency key, each (key, generation) a slot of its own ([`super::keyed`]).
//! - [`FieldType::ZSUM`](crate::row::FieldType::ZSUM): the member's other increments, as sums ([`super::sums`]), kept exactly
//!   ([`super::exact`]).
//!
//! # Why this is right
//!
//! 1. An assignment kills the assignments that it saw and no increment: if another assignment wins, which did not see an
//!    increment that this one saw, the increment counts. The winner is the one with the greatest (HLC, dot) that is there.
//! 2. What a winner saw is left out by *parts of sums*: it says of each owner's sum row up to where it saw it (dot, sum).
//!    That is a prefix of the owner's increments as a reset is, so (1) of [`super::sums`] holds for the greater of the two. It
//!    does not apply to a row that the owner began later. It does not make a member absent, and its owner never folds it in.
//! 3. Of keyed increments it says for each replica the counter up to which it saw them. One commit may hold increments
//!    under a key before and after its own assignment: the row tells the part before, and only that commit's assignment leaves
//!    that part, and nothing else, out.
//! 4. Where two regions accepted one key, the slot has two rows and counts once: not at all if the winner saw one of them, else
//!    as the row with the greatest (HLC, dot) says, but for the row of the winner's own commit, which goes first.

use bincode::{Decode, Encode};

use super::exact::Exact;
use super::score::Score;
use super::sums::{Amount, Cover, Sum, Sums};
use super::{Unit, keyed, presence};
use crate::codec::{self, CodecError};
use crate::context::{Dot, VersionVector};
use crate::ids::{Member, ReplicaId};
use crate::row::Row;

const ASSIGNED_KIND: u8 = 0;
const KEYED_KIND: u8 = 1;
const PAYLOAD_VERSION: u8 = 1;

/// Bytes of a slot beyond the member's.
pub const SLOT_BYTES_MORE: usize = 1 + keyed::SLOT_BYTES;

impl Amount for Exact {
    fn plus(&self, other: &Self) -> Self {
        self.plus(other)
    }

    fn minus(&self, other: &Self) -> Self {
        self.minus(other)
    }

    fn check(&self) -> Result<(), CodecError> {
        self.check()
    }
}

/// An assignment's payload.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Assigned {
    /// The score.
    pub score: Score,
    /// What it saw of the member's increments, by replica, in order.
    pub seen: Vec<SeenOf>,
}

/// What an assignment saw of one replica's increments.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct SeenOf {
    /// The replica.
    pub replica: ReplicaId,
    /// Keyed increments up to this counter.
    pub counter: u64,
    /// The others.
    pub sum: Option<Cover<Exact>>,
}

/// A keyed increment's payload.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
pub struct Keyed {
    /// What it adds.
    pub by: Exact,
    /// The part of that which its commit did before it assigned the score.
    pub before: Exact,
}

/// The rows of one member.
#[derive(Debug, Clone, Copy)]
pub struct Of<'b>(&'b [u8]);

/// The first bytes of a member's slots.
pub fn base(member: &Member) -> Vec<u8> {
    presence::member_slot(member)
}

/// The first bytes of the slots of a slot's member, and the rest; `None` if it is no slot.
pub fn split(slot: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = slot.iter().position(|&byte| byte == 0)?;
    Some(slot.split_at(end + 1))
}

/// The member of the first bytes of its slots; `None` if they are not that.
pub fn member(base: &[u8]) -> Option<&str> {
    presence::slot_member(base)
}

/// Checks what follows the member in a slot.
pub fn check_rest(rest: &[u8]) -> Result<(), CodecError> {
    match rest {
        [ASSIGNED_KIND] => Ok(()),
        [KEYED_KIND, key @ ..] if key.len() == keyed::SLOT_BYTES => Ok(()),
        _ => Err(CodecError::Malformed("not a slot of a zset".into())),
    }
}

/// Checks what reading takes for granted of a row: what follows the member in its slot, and its payload.
pub fn check_payload(rest: &[u8], dot: Dot, payload: &[u8]) -> Result<(), CodecError> {
    check_rest(rest)?;
    if rest != [ASSIGNED_KIND] {
        let Keyed { by, before } = codec::decode(PAYLOAD_VERSION, payload)?;
        return by.check().and_then(|()| before.check());
    }
    let assigned: Assigned = codec::decode(PAYLOAD_VERSION, payload)?;
    if !assigned.seen.is_sorted_by(|a, b| a.replica < b.replica) {
        return Err(CodecError::Malformed("what an assignment saw is out of order".into()));
    }
    for of in &assigned.seen {
        let last = of.sum.as_ref().map_or(0, |cover| cover.dot).max(of.counter);
        if of.replica == dot.replica && last > dot.counter {
            return Err(CodecError::Malformed("an assignment saw what is still to come".into()));
        }
        of.sum.as_ref().map_or(Ok(()), |cover| cover.sum.check())?;
    }
    Ok(())
}

impl<'b> Of<'b> {
    /// Of the member whose slots begin so.
    pub fn base(base: &'b [u8]) -> Self {
        Self(base)
    }

    /// Its increments.
    pub fn sums(self) -> Sums<'b, Exact> {
        Sums::at(self.0)
    }

    /// The first bytes of the slots of an idempotency key's increments.
    pub fn keyed_prefix(self, key: &[u8; keyed::KEY_BYTES]) -> Vec<u8> {
        [self.0, &[KEYED_KIND], key].concat()
    }

    /// Assigns a score, as `own`, by a node that has applied `context`.
    pub fn assign(
        self,
        unit: &mut Unit,
        sums: &Unit,
        score: Score,
        own: Dot,
        context: &VersionVector,
    ) -> Result<(), CodecError> {
        let slot = self.assigned_slot();
        let state = self.sums().of_unit(sums, own.replica)?;
        let keyed = unit.alive().filter(|(of, ..)| *of != slot).map(|(_, dot, _)| dot.replica);
        let mut replicas: Vec<ReplicaId> = state.sums().map(|(owner, ..)| owner).chain(keyed).collect();
        replicas.sort();
        replicas.dedup();
        let seen = replicas.into_iter().map(|replica| {
            let sum = state.sums().find(|(owner, ..)| *owner == replica);
            let sum = sum.map(|(_, sum, _)| Cover { dot: sum.last, sum: sum.sum.clone() });
            SeenOf { replica, counter: context.get(replica), sum }
        });
        let assigned = Assigned { score, seen: seen.collect() };
        for (of, payload) in unit.written().to_vec() {
            if of != slot {
                let mut keyed: Keyed = codec::decode(PAYLOAD_VERSION, &payload)?;
                keyed.before = keyed.by.clone();
                unit.write(of, codec::encode(PAYLOAD_VERSION, &keyed));
            }
        }
        unit.kill_where(|of, _| of == slot);
        unit.write(slot, codec::encode(PAYLOAD_VERSION, &assigned));
        Ok(())
    }

    /// Adds to the score under an idempotency key, in a slot that has no rows.
    pub fn incr_keyed(self, unit: &mut Unit, slot: &[u8], by: Score) -> Result<(), CodecError> {
        let before = unit.written_at(slot).map(|payload| codec::decode::<Keyed>(PAYLOAD_VERSION, payload));
        let mut keyed = before.transpose()?.unwrap_or_default();
        keyed.by = keyed.by.plus(&Exact::of(by.value()));
        unit.kill_where(|of, _| of == slot);
        unit.write(slot.to_vec(), codec::encode(PAYLOAD_VERSION, &keyed));
        Ok(())
    }

    /// Makes the member absent, as far as the client has seen; of its sums all must be seen.
    pub fn remove(
        self,
        unit: &mut Unit,
        sums: &mut Unit,
        own: ReplicaId,
        sees: impl Fn(Dot) -> bool,
    ) -> Result<(), CodecError> {
        unit.kill(&sees);
        unit.keep(|dot| !sees(dot));
        unit.unwrite_all();
        self.sums().clear(sums, own)
    }

    /// The member's score; `None` if it is absent. The rows are those of the one type and of the other.
    pub fn score(self, rows: &[Row], sums: &[Row]) -> Result<Option<Score>, CodecError> {
        Ok(self.total(rows, sums)?.as_ref().and_then(rounded))
    }

    /// The same before it is rounded.
    pub fn total(self, rows: &[Row], sums: &[Row]) -> Result<Option<Exact>, CodecError> {
        let slot = self.assigned_slot();
        let assigned = rows.iter().filter(|row| row.slot == slot);
        let winner = match assigned.max_by_key(|row| (row.hlc, row.dot)) {
            Some(row) => Some((row.dot, codec::decode::<Assigned>(PAYLOAD_VERSION, &row.payload)?)),
            None => None,
        };
        let seen_of = |replica: ReplicaId| {
            let (_, assigned) = winner.as_ref()?;
            let place = assigned.seen.binary_search_by_key(&replica, |of| of.replica).ok()?;
            Some(&assigned.seen[place])
        };
        let sums = sums.iter().map(|row| (row.slot.as_slice(), row.dot, row.payload.as_slice()));
        let state = self.sums().of_rows(sums)?;
        let mut total = state.value_beyond(|owner| seen_of(owner)?.sum.as_ref());
        if let Some((_, assigned)) = &winner {
            let score = Exact::of(assigned.score.value());
            total = Some(total.map_or(score.clone(), |total| total.plus(&score)));
        }
        let mut keyed: Vec<&Row> = rows.iter().filter(|row| row.slot != slot).collect();
        keyed.sort_by(|a, b| a.slot.cmp(&b.slot));
        for of_slot in keyed.chunk_by(|a, b| a.slot == b.slot) {
            let saw = |row: &&Row| seen_of(row.dot.replica).is_some_and(|of| row.dot.counter <= of.counter);
            let of_winner =
                of_slot.iter().find(|row| winner.as_ref().is_some_and(|(dot, _)| *dot == row.dot));
            let chosen = of_winner.or_else(|| of_slot.iter().max_by_key(|row| (row.hlc, row.dot)));
            let Some(chosen) = chosen else { continue };
            let Keyed { by, before } = codec::decode(PAYLOAD_VERSION, &chosen.payload)?;
            let adds = match (of_slot.iter().any(saw), of_winner.is_some()) {
                (true, _) => Exact::default(),
                (false, true) => by.minus(&before),
                (false, false) => by,
            };
            total = Some(total.map_or(adds.clone(), |total| total.plus(&adds)));
        }
        Ok(total)
    }

    fn assigned_slot(self) -> Vec<u8> {
        [self.0, &[ASSIGNED_KIND]].concat()
    }
}

/// A score, rounded once. What is exactly summed is finite.
pub fn rounded(total: &Exact) -> Option<Score> {
    Score::new(total.to_f64()).ok()
}

/// By how much a replica's row of sums adds more than the row that it replaces, if that is all that changes: both begin with one
/// increment, so whatever covers a part of the one covers the same part of the other.
pub fn added(before: &[u8], after: &[u8]) -> Result<Option<Exact>, CodecError> {
    let (before, after) = (Sum::<Exact>::decode(before)?, Sum::<Exact>::decode(after)?);
    let same = before.first == after.first && before.base == after.base;
    Ok(same.then(|| after.sum.minus(&before.sum)))
}
