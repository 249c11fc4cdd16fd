//! The members of a zset by score, counted: the place of a member, and the member at a place, in logarithmic time.
//!
//! A skip list (Pugh, "Skip lists: a probabilistic alternative to balanced trees", 1990) in which the level of an entry is a
//! hash of it, so that the list is a function of what is in it. On each level above the entries a node ends with an entry of
//! that level, or with the end of all, and counts the entries after the node before it. A level has one node for some
//! [`FANOUT`] of the level below.
//!
//! | key below the root | value |
//! |---|---|
//! | 0 · score (8, [`Score::ordered`]) · member | nothing |
//! | level 1 to [`LEVELS`] · the entry with which the node ends | its count |
//! | 255 · member | its score (8), and what that was rounded from |
//!
//! Invariants: entries and scores are the same members; the counts of each level add up to the entries; a node of
//! a level counts what the nodes below it do.
//!
//! The hash is no secret: who chooses members and scores so that no entry is of a higher level makes places of that zset as slow
//! as looking at all of it.

use std::ops::ControlFlow;

use crate::codec::{self, CodecError};
use crate::keys;
use crate::store::{Family, StoreError, StoreRead, Txn};
use crate::types::exact::Exact;
use crate::types::score::Score;
use crate::types::zset::rounded;

/// Levels above the entries.
pub const LEVELS: u8 = 3;
/// About so many nodes or entries lie below a node.
pub const FANOUT: u32 = 1 << FANOUT_BITS;
const FANOUT_BITS: u32 = 5;
const ENTRIES: u8 = 0;
const SCORES: u8 = 255;
const TOTAL_VERSION: u8 = 1;
/// After every entry: no finite score has such bytes.
const END: [u8; 8] = [0xff; 8];

/// A member and its score.
pub type Scored = (String, Score);

/// The order of one zset.
#[derive(Debug, Clone)]
pub struct Order {
    root: Vec<u8>,
}

impl Order {
    /// Below these bytes.
    pub fn at(root: Vec<u8>) -> Self {
        Self { root }
    }

    /// How many entries there are.
    pub fn len(&self, store: &impl StoreRead) -> Result<u64, StoreError> {
        let mut total = 0;
        self.each_node(store, LEVELS, &[], |_, count| {
            total += count;
            ControlFlow::Continue(())
        })?;
        Ok(total)
    }

    /// The score of a member, if it is in.
    pub fn score(&self, store: &impl StoreRead, member: &str) -> Result<Option<Score>, StoreError> {
        let Some(bytes) = store.get(Family::Derived, &self.key(SCORES, member.as_bytes()))? else {
            return Ok(None);
        };
        score_in(&bytes).map(Some)
    }

    /// How many entries come before a member with this score (which need not be in), and how many there are.
    pub fn rank(&self, store: &impl StoreRead, score: Score, member: &str) -> Result<(u64, u64), StoreError> {
        self.before(store, &entry(score, member))
    }

    /// How many entries have a lower score, or, `with` it, no higher one.
    pub fn below(&self, store: &impl StoreRead, score: Score, with: bool) -> Result<u64, StoreError> {
        let mut bound = score.ordered().to_vec();
        if with {
            bound = keys::after_prefix(&bound);
        }
        Ok(self.before(store, &bound)?.0)
    }

    /// Visits entries from a place on, in order.
    pub fn each_from(
        &self,
        store: &impl StoreRead,
        place: u64,
        mut visit: impl FnMut(&str, Score) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        let (mut left, mut start) = (place, Vec::new());
        for level in (1..=LEVELS).rev() {
            self.each_node(store, level, &start.clone(), |end, count| {
                if left < count {
                    return ControlFlow::Break(());
                }
                left -= count;
                start = end.to_vec();
                ControlFlow::Continue(())
            })?;
        }
        let mut outcome = Ok(());
        self.each(store, ENTRIES, &start, |key, _| {
            if left > 0 {
                left -= 1;
                return ControlFlow::Continue(());
            }
            match parse(key) {
                Ok((score, member)) => visit(member, score),
                Err(error) => {
                    outcome = Err(error);
                    ControlFlow::Break(())
                }
            }
        })?;
        outcome
    }

    /// Puts a member in its place, or takes it out.
    pub fn set<S: StoreRead>(
        &self,
        txn: &mut Txn<'_, S>,
        member: &str,
        total: Option<Exact>,
    ) -> Result<(), StoreError> {
        let before = self.score(txn, member)?;
        self.place(txn, member, before, total)
    }

    /// Adds to what a member's score was rounded from. Tells whether the member is in.
    pub fn add<S: StoreRead>(
        &self,
        txn: &mut Txn<'_, S>,
        member: &str,
        added: &Exact,
    ) -> Result<bool, StoreError> {
        let Some(bytes) = txn.get(Family::Derived, &self.key(SCORES, member.as_bytes()))? else {
            return Ok(false);
        };
        let total: Exact = codec::decode(TOTAL_VERSION, bytes.get(8..).unwrap_or_default())
            .map_err(StoreError::damaged("derived: order"))?;
        self.place(txn, member, Some(score_in(&bytes)?), Some(total.plus(added)))?;
        Ok(true)
    }

    fn place<S: StoreRead>(
        &self,
        txn: &mut Txn<'_, S>,
        member: &str,
        before: Option<Score>,
        total: Option<Exact>,
    ) -> Result<(), StoreError> {
        let score = total.as_ref().and_then(rounded);
        let key = self.key(SCORES, member.as_bytes());
        match score.zip(total) {
            Some((score, total)) => {
                let value = [&score.ordered()[..], &codec::encode(TOTAL_VERSION, &total)].concat();
                txn.put(Family::Derived, key, value);
            }
            None if before.is_none() => return Ok(()),
            None => txn.delete(Family::Derived, key),
        }
        if before == score {
            return Ok(());
        }
        let (from, to) =
            (before.map(|before| entry(before, member)), score.map(|score| entry(score, member)));
        match (from, to) {
            (Some(from), Some(to)) if levels(&from) == 0 && levels(&to) == 0 => self.shift(txn, &from, &to),
            (from, to) => {
                from.map_or(Ok(()), |from| self.remove(txn, &from))?;
                to.map_or(Ok(()), |to| self.insert(txn, &to))
            }
        }
    }

    /// Moves an entry that ends no node, to where it ends none either. Mostly that is not far, and once both places are in one node
    /// they are so on all levels above.
    fn shift<S: StoreRead>(&self, txn: &mut Txn<'_, S>, from: &[u8], to: &[u8]) -> Result<(), StoreError> {
        txn.delete(Family::Derived, self.key(ENTRIES, from));
        txn.put(Family::Derived, self.key(ENTRIES, to), Vec::new());
        for level in 1..=LEVELS {
            let Some(old) = self.node_of(txn, level, from)? else {
                return Err(damaged("an entry below no node"));
            };
            // The node ends beyond the new place as well: on this level, and so on all above, nothing changes.
            if to > from && to <= old.0.as_slice() {
                break;
            }
            let Some(new) = self.node_of(txn, level, to)? else {
                return Err(damaged("an entry below no node"));
            };
            if old.0 == new.0 {
                break;
            }
            self.put_node(txn, level, &old.0, old.1.saturating_sub(1));
            self.put_node(txn, level, &new.0, new.1 + 1);
        }
        Ok(())
    }

    fn insert<S: StoreRead>(&self, txn: &mut Txn<'_, S>, entry: &[u8]) -> Result<(), StoreError> {
        txn.put(Family::Derived, self.key(ENTRIES, entry), Vec::new());
        let ends = levels(entry);
        for level in 1..=LEVELS {
            let (end, count) = self.node_of(txn, level, entry)?.unwrap_or((END.to_vec(), 0));
            if ends < level {
                self.put_node(txn, level, &end, count + 1);
                continue;
            }
            let mut after = 0;
            let mut add = |key: &[u8], count: u64| {
                if key > end.as_slice() {
                    return ControlFlow::Break(());
                }
                after += count;
                ControlFlow::Continue(())
            };
            if level == 1 {
                self.each(txn, ENTRIES, entry, |key, _| add(key, 1))?;
            } else {
                self.each_node(txn, level - 1, entry, add)?;
            }
            self.put_node(txn, level, entry, (count + 1).saturating_sub(after));
            self.put_node(txn, level, &end, after);
        }
        Ok(())
    }

    fn remove<S: StoreRead>(&self, txn: &mut Txn<'_, S>, entry: &[u8]) -> Result<(), StoreError> {
        txn.delete(Family::Derived, self.key(ENTRIES, entry));
        let ends = levels(entry);
        for level in 1..=LEVELS {
            let Some((end, mut count)) = self.node_of(txn, level, entry)? else {
                return Err(damaged("an entry below no node"));
            };
            let mut rest = end;
            if ends >= level {
                txn.delete(Family::Derived, self.key(level, &rest));
                let Some((next, more)) = self.node_of(txn, level, &[entry, &[0]].concat())? else {
                    return Err(damaged("an end of no node"));
                };
                rest = next;
                count += more;
            }
            if count == 1 && rest == END && self.is_first(txn, level, &rest)? {
                txn.delete(Family::Derived, self.key(level, &rest));
            } else {
                self.put_node(txn, level, &rest, count.saturating_sub(1));
            }
        }
        Ok(())
    }

    /// How many entries come before a bound, and how many there are.
    fn before(&self, store: &impl StoreRead, bound: &[u8]) -> Result<(u64, u64), StoreError> {
        let (mut before, mut all, mut start) = (0, 0, Vec::new());
        for level in (1..=LEVELS).rev() {
            self.each_node(store, level, &start.clone(), |end, count| {
                if level == LEVELS {
                    all += count;
                }
                if end < bound {
                    before += count;
                    start = end.to_vec();
                } else if level < LEVELS {
                    return ControlFlow::Break(());
                }
                ControlFlow::Continue(())
            })?;
        }
        self.each(store, ENTRIES, &start, |key, _| {
            if key >= bound {
                return ControlFlow::Break(());
            }
            before += 1;
            ControlFlow::Continue(())
        })?;
        Ok((before, all))
    }

    /// The node in which an entry is.
    fn node_of(
        &self,
        store: &impl StoreRead,
        level: u8,
        entry: &[u8],
    ) -> Result<Option<(Vec<u8>, u64)>, StoreError> {
        let end = self.key(level + 1, &[]);
        let Some((key, value)) = store.first(Family::Derived, &self.key(level, entry), &end)? else {
            return Ok(None);
        };
        Ok(Some((key[self.root.len() + 1..].to_vec(), count(&value)?)))
    }

    fn is_first(&self, store: &impl StoreRead, level: u8, end: &[u8]) -> Result<bool, StoreError> {
        Ok(self.node_of(store, level, &[])?.is_some_and(|(first, _)| first == end))
    }

    fn put_node<S: StoreRead>(&self, txn: &mut Txn<'_, S>, level: u8, end: &[u8], count: u64) {
        txn.put(Family::Derived, self.key(level, end), count.to_be_bytes().to_vec());
    }

    /// Visits the nodes of a level after the one that ends so, or all.
    fn each_node(
        &self,
        store: &impl StoreRead,
        level: u8,
        after: &[u8],
        mut visit: impl FnMut(&[u8], u64) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        let mut outcome = Ok(());
        self.each(store, level, after, |key, value| match count(value) {
            Ok(count) => visit(key, count),
            Err(error) => {
                outcome = Err(error);
                ControlFlow::Break(())
            }
        })?;
        outcome
    }

    /// Visits what is on a level after a key, or all.
    fn each(
        &self,
        store: &impl StoreRead,
        level: u8,
        after: &[u8],
        mut visit: impl FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        let mut from = self.key(level, after);
        if !after.is_empty() {
            from.push(0);
        }
        let below = self.root.len() + 1;
        store.scan(Family::Derived, &from, &self.key(level + 1, &[]), &mut |key, value| {
            visit(&key[below..], value)
        })
    }

    fn key(&self, level: u8, rest: &[u8]) -> Vec<u8> {
        [&self.root, &[level][..], rest].concat()
    }
}

/// The score that a member's value begins with.
fn score_in(bytes: &[u8]) -> Result<Score, StoreError> {
    let score = bytes.first_chunk().and_then(|ordered| Score::of_ordered(*ordered));
    score.ok_or_else(|| damaged("a score that is none"))
}

fn entry(score: Score, member: &str) -> Vec<u8> {
    [&score.ordered()[..], member.as_bytes()].concat()
}

fn parse(entry: &[u8]) -> Result<(Score, &str), StoreError> {
    let (score, member) = entry.split_first_chunk().ok_or_else(|| damaged("a short entry"))?;
    let score = Score::of_ordered(*score).ok_or_else(|| damaged("an entry without a score"))?;
    let member = std::str::from_utf8(member).map_err(|_| damaged("a member that is no UTF-8"))?;
    Ok((score, member))
}

/// The levels of which an entry ends a node: all up to this.
fn levels(entry: &[u8]) -> u8 {
    let hash = blake3::hash(entry);
    let mut first = [0; 4];
    first.copy_from_slice(&hash.as_bytes()[..4]);
    let levels = u32::from_le_bytes(first).trailing_zeros() / FANOUT_BITS;
    u8::try_from(levels).unwrap_or(LEVELS).min(LEVELS)
}

fn count(value: &[u8]) -> Result<u64, StoreError> {
    let bytes = value.try_into().map_err(|_| damaged("a count that is none"))?;
    Ok(u64::from_be_bytes(bytes))
}

fn damaged(what: &str) -> StoreError {
    StoreError::damaged("derived: order")(CodecError::Malformed(what.into()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::store::{Batch, MemStore};

    fn apply(store: &mut MemStore, order: &Order, member: &str, score: Option<Score>) {
        let mut batch = Batch::default();
        let total = score.map(|score| Exact::of(score.value()));
        order.set(&mut Txn::new(store, &mut batch), member, total).unwrap();
        store.commit(batch);
    }

    proptest! {
        #[test]
        fn places_are_those_of_a_sorted_list(
            changes in prop::collection::vec((0u16..300, prop::option::weighted(0.8, -20i8..20)), 1..400),
        ) {
            let mut store = MemStore::default();
            let order = Order::at(b"root".to_vec());
            let mut model: BTreeMap<String, Score> = BTreeMap::new();
            for (member, score) in changes {
                let member = format!("m{member}");
                let score = score.map(|score| Score::new(f64::from(score)).unwrap());
                apply(&mut store, &order, &member, score);
                match score {
                    Some(score) => drop(model.insert(member, score)),
                    None => drop(model.remove(&member)),
                }
            }
            let mut sorted: Vec<(Score, String)> = model.into_iter().map(|(m, s)| (s, m)).collect();
            sorted.sort();
            prop_assert_eq!(order.len(&store).unwrap(), sorted.len() as u64);
            for (place, (score, member)) in sorted.iter().enumerate() {
                let ranked = order.rank(&store, *score, member).unwrap();
                prop_assert_eq!(ranked, (place as u64, sorted.len() as u64));
                prop_assert_eq!(order.score(&store, member).unwrap(), Some(*score));
                let mut found = None;
                order.each_from(&store, place as u64, |member, score| {
                    found = Some((score, member.to_owned()));
                    ControlFlow::Break(())
                }).unwrap();
                prop_assert_eq!(found.as_ref(), Some(&sorted[place]));
            }
            for bound in [-3, 0, 7] {
                let bound = Score::new(f64::from(bound)).unwrap();
                let lower = sorted.iter().filter(|(score, _)| *score < bound).count() as u64;
                let upper = sorted.iter().filter(|(score, _)| *score <= bound).count() as u64;
                prop_assert_eq!(order.below(&store, bound, false).unwrap(), lower);
                prop_assert_eq!(order.below(&store, bound, true).unwrap(), upper);
            }
            for (_, member) in sorted {
                apply(&mut store, &order, &member, None);
            }
            let left = store.first(Family::Derived, b"", b"\xff").unwrap();
            prop_assert_eq!(left, None);
        }
    }
}
