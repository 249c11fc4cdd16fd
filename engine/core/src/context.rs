//! Dots and version vectors: which commits a replica has applied.
//!
//! A dot `(replica, counter)` names one commit in one partition; a replica's counters there are contiguous
//! from 1. Deltas are applied in causal order, so what a node has applied is always a version vector: for
//! each replica, every counter up to one. Version vectors form a join semilattice (join is the maximum a
//! replica), proved in the tests.
//!
//! What a *client* has seen may have gaps: its own write through a node need not have seen what other clients wrote
//! there before. That is a [`Seen`]: a version vector and a cloud of dots beyond it (Almeida, Baquero et al., "Scalable
//! and Accurate Causality Tracking for Eventually Consistent Stores", 2014).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use bincode::{Decode, Encode};

use crate::ids::ReplicaId;

/// The most replicas that a decoded vector may name: every node of a large cluster in a hundred incarnations.
pub const REPLICAS_MAX: usize = 16_384;

/// Names one commit in one partition.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct Dot {
    /// The writer.
    pub replica: ReplicaId,
    /// Its counter in the partition, from 1.
    pub counter: u64,
}

impl fmt::Debug for Dot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.replica, self.counter)
    }
}

impl fmt::Display for Dot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Replica → the highest counter below and at which everything is covered. Entries of 0 are not held, so
/// equal vectors have equal bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Encode)]
pub struct VersionVector(BTreeMap<ReplicaId, u64>);

impl VersionVector {
    /// The empty vector.
    pub fn new() -> Self {
        Self::default()
    }

    /// The highest counter covered of a replica, 0 if none.
    pub fn get(&self, replica: ReplicaId) -> u64 {
        self.0.get(&replica).copied().unwrap_or(0)
    }

    /// Whether the dot is covered.
    pub fn covers(&self, dot: Dot) -> bool {
        dot.counter <= self.get(dot.replica)
    }

    /// Whether all that the other covers is covered.
    pub fn covers_all(&self, other: &Self) -> bool {
        other.iter().all(|dot| self.covers(dot))
    }

    /// Covers the dot, and so all of its replica's before it.
    pub fn advance(&mut self, dot: Dot) {
        if dot.counter > self.get(dot.replica) {
            self.0.insert(dot.replica, dot.counter);
        }
    }

    /// The lattice's join: covers what either covers.
    pub fn join(&mut self, other: &Self) {
        for dot in other.iter() {
            self.advance(dot);
        }
    }

    /// The lattice's meet: covers what both cover.
    pub fn meet(&mut self, other: &Self) {
        self.0.retain(|replica, counter| {
            *counter = (*counter).min(other.get(*replica));
            *counter > 0
        });
    }

    /// Forgets a replica.
    pub fn remove(&mut self, replica: ReplicaId) {
        self.0.remove(&replica);
    }

    /// The last dot of each replica, in the order of ids.
    pub fn iter(&self) -> impl Iterator<Item = Dot> + '_ {
        self.0.iter().map(|(&replica, &counter)| Dot { replica, counter })
    }

    /// How many replicas it names.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it covers nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for VersionVector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.0.iter()).finish()
    }
}

impl FromIterator<Dot> for VersionVector {
    fn from_iter<I: IntoIterator<Item = Dot>>(dots: I) -> Self {
        let mut vector = Self::new();
        dots.into_iter().for_each(|dot| vector.advance(dot));
        vector
    }
}

impl<C> Decode<C> for VersionVector {
    fn decode<D: bincode::de::Decoder<Context = C>>(
        decoder: &mut D,
    ) -> Result<Self, bincode::error::DecodeError> {
        let entries = BTreeMap::<ReplicaId, u64>::decode(decoder)?;
        if entries.len() > REPLICAS_MAX {
            return Err(bincode::error::DecodeError::Other("a version vector names too many replicas"));
        }
        Ok(entries.into_iter().map(|(replica, counter)| Dot { replica, counter }).collect())
    }
}

/// Runs of consecutive dots, at most one a replica, in the order of ids: the commits of an interval.
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode)]
pub struct DotRanges(Vec<DotRange>);

/// A replica's commits from one counter to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct DotRange {
    /// The writer.
    pub replica: ReplicaId,
    /// The counter of the first commit, at least 1.
    pub first: u64,
    /// The counter of the last one, at least `first`.
    pub last: u64,
}

impl DotRange {
    /// The last commit.
    pub fn last_dot(&self) -> Dot {
        Dot { replica: self.replica, counter: self.last }
    }
}

impl DotRanges {
    /// One commit.
    pub fn single(dot: Dot) -> Self {
        Self(vec![DotRange { replica: dot.replica, first: dot.counter, last: dot.counter }])
    }

    /// What the first vector has of `until` and `from` has not.
    pub fn between(from: &VersionVector, until: &VersionVector) -> Self {
        let beyond = until.iter().filter(|dot| !from.covers(*dot));
        let range =
            |dot: Dot| DotRange { replica: dot.replica, first: from.get(dot.replica) + 1, last: dot.counter };
        Self(beyond.map(range).collect())
    }

    /// The ranges.
    pub fn iter(&self) -> impl Iterator<Item = DotRange> + '_ {
        self.0.iter().copied()
    }

    /// The only commit, if it is one.
    pub fn only(&self) -> Option<Dot> {
        match self.0.as_slice() {
            [range] if range.first == range.last => Some(range.last_dot()),
            _ => None,
        }
    }

    /// Whether the dot is one of these.
    pub fn contains(&self, dot: Dot) -> bool {
        let at = self.0.binary_search_by_key(&dot.replica, |range| range.replica);
        at.is_ok_and(|at| (self.0[at].first..=self.0[at].last).contains(&dot.counter))
    }

    /// The last dot of each replica.
    pub fn last_dots(&self) -> impl Iterator<Item = Dot> + '_ {
        self.iter().map(|range| range.last_dot())
    }

    /// Whether the vector covers them all.
    pub fn covered_by(&self, vector: &VersionVector) -> bool {
        self.last_dots().all(|dot| vector.covers(dot))
    }

    /// Whether the vector covers one of them.
    pub fn overlaps(&self, vector: &VersionVector) -> bool {
        self.iter().any(|range| vector.get(range.replica) >= range.first)
    }

    /// Whether each begins at or before the vector's next dot.
    pub fn continues(&self, vector: &VersionVector) -> bool {
        self.iter().all(|range| range.first <= vector.get(range.replica).saturating_add(1))
    }
}

impl<C> Decode<C> for DotRanges {
    fn decode<D: bincode::de::Decoder<Context = C>>(
        decoder: &mut D,
    ) -> Result<Self, bincode::error::DecodeError> {
        let ranges = Vec::<DotRange>::decode(decoder)?;
        let sound = |range: &DotRange| 1 <= range.first && range.first <= range.last;
        let ordered = ranges.is_sorted_by(|a, b| a.replica < b.replica);
        if ranges.is_empty() || ranges.len() > REPLICAS_MAX || !ordered || !ranges.iter().all(sound) {
            return Err(bincode::error::DecodeError::Other("ranges of dots are malformed"));
        }
        Ok(Self(ranges))
    }
}

/// What a client has seen of one partition: a version vector, and dots beyond it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Seen {
    vector: VersionVector,
    /// None is covered by the vector.
    cloud: BTreeSet<Dot>,
}

/// The most dots beyond its vector that a [`Seen`] keeps.
pub const CLOUD_DOTS_MAX: usize = 256;

impl Seen {
    /// All that the vector covers.
    pub fn all_of(vector: VersionVector) -> Self {
        Self { vector, cloud: BTreeSet::new() }
    }

    /// What a client has seen after a commit: what it said it had, and the commit; or, if it did not say or some operation
    /// acted on more, all that its node has applied.
    pub fn after(said: Option<Self>, commit: Option<Dot>, context: VersionVector) -> Self {
        match said {
            Some(mut seen) => {
                commit.into_iter().for_each(|dot| seen.insert(dot));
                seen
            }
            None => Self::all_of(context),
        }
    }

    /// All that the vector covers, and these dots. Beyond [`CLOUD_DOTS_MAX`] it keeps what [`Self::shed`] keeps.
    pub fn of_parts(vector: VersionVector, dots: impl IntoIterator<Item = Dot>) -> Self {
        let mut seen = Self { vector, cloud: dots.into_iter().collect() };
        seen.settle();
        seen
    }

    /// Whether nothing is seen.
    pub fn is_empty(&self) -> bool {
        self.vector.is_empty() && self.cloud.is_empty()
    }

    /// What is seen without gaps.
    pub fn vector(&self) -> &VersionVector {
        &self.vector
    }

    /// What is seen beyond gaps.
    pub fn cloud(&self) -> impl Iterator<Item = Dot> + '_ {
        self.cloud.iter().copied()
    }

    /// Whether the dot is seen.
    pub fn covers(&self, dot: Dot) -> bool {
        self.vector.covers(dot) || self.cloud.contains(&dot)
    }

    /// Whether all of it is applied where the context is.
    pub fn applied_by(&self, context: &VersionVector) -> bool {
        context.covers_all(&self.vector) && self.cloud().all(|dot| context.covers(dot))
    }

    /// Adds a dot; keeps at most [`CLOUD_DOTS_MAX`] beyond the vector, as [`Self::shed`] does.
    pub fn insert(&mut self, dot: Dot) {
        self.cloud.insert(dot);
        self.settle();
    }

    /// Adds all that the other has seen.
    pub fn join(&mut self, other: &Self) {
        self.vector.join(&other.vector);
        self.cloud.extend(&other.cloud);
        self.settle();
    }

    fn settle(&mut self) {
        for dot in std::mem::take(&mut self.cloud) {
            let reached = self.vector.get(dot.replica);
            if dot.counter.checked_sub(1) == Some(reached) {
                self.vector.advance(dot);
            } else if dot.counter > reached {
                self.cloud.insert(dot);
            }
        }
        self.shed(CLOUD_DOTS_MAX);
    }

    /// Forgets dots beyond the vector until at most so many are left, the earliest first, and of no replica the last:
    /// less is then seen (a superseded value may stay as a sibling), and where all of it is applied does not change.
    pub fn shed(&mut self, dots_max: usize) {
        let mut excess = self.cloud.len().saturating_sub(dots_max);
        if excess == 0 {
            return;
        }
        let dots: Vec<Dot> = self.cloud.iter().copied().collect();
        for (dot, next) in dots.iter().zip(&dots[1..]) {
            if excess > 0 && dot.replica == next.replica {
                self.cloud.remove(dot);
                excess -= 1;
            }
        }
    }
}

impl<'de, C> bincode::de::BorrowDecode<'de, C> for DotRanges {
    fn borrow_decode<D: bincode::de::BorrowDecoder<'de, Context = C>>(
        decoder: &mut D,
    ) -> Result<Self, bincode::error::DecodeError> {
        Decode::decode(decoder)
    }
}

impl<'de, C> bincode::de::BorrowDecode<'de, C> for VersionVector {
    fn borrow_decode<D: bincode::de::BorrowDecoder<'de, Context = C>>(
        decoder: &mut D,
    ) -> Result<Self, bincode::error::DecodeError> {
        Decode::decode(decoder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec;
    use proptest::prelude::*;

    fn vector() -> impl Strategy<Value = VersionVector> {
        prop::collection::vec((0u64..4, 0u64..5), 0..6).prop_map(|dots| {
            dots.into_iter().map(|(r, counter)| Dot { replica: ReplicaId(r), counter }).collect()
        })
    }

    fn joined(a: &VersionVector, b: &VersionVector) -> VersionVector {
        let mut join = a.clone();
        join.join(b);
        join
    }

    proptest! {
        #[test]
        fn join_is_a_semilattice(a in vector(), b in vector(), c in vector()) {
            prop_assert_eq!(joined(&a, &b), joined(&b, &a));
            prop_assert_eq!(joined(&joined(&a, &b), &c), joined(&a, &joined(&b, &c)));
            prop_assert_eq!(joined(&a, &a), a.clone());
            prop_assert!(joined(&a, &b).covers_all(&a));
            prop_assert_eq!(a.covers_all(&b), joined(&a, &b) == a);
        }

        #[test]
        fn equal_vectors_have_equal_bytes(a in vector()) {
            let bytes = codec::encode(1, &a);
            let back: VersionVector = codec::decode(1, &bytes).unwrap();
            prop_assert_eq!(codec::encode(1, &back), bytes);
            prop_assert_eq!(back, a);
        }
    }

    #[test]
    fn a_gap_that_closes_leaves_no_cloud() {
        let dot = |counter| Dot { replica: ReplicaId(1), counter };
        let mut seen = Seen::default();
        [3, 2].into_iter().for_each(|counter| seen.insert(dot(counter)));
        assert!(seen.covers(dot(2)) && seen.covers(dot(3)) && !seen.covers(dot(1)));
        seen.insert(dot(1));
        assert_eq!(seen, Seen::all_of([dot(3)].into_iter().collect()));
    }

    #[test]
    fn a_cloud_is_bounded_and_keeps_the_last_of_each_replica() {
        let mut seen = Seen::default();
        for counter in 0..CLOUD_DOTS_MAX as u64 + 50 {
            seen.insert(Dot { replica: ReplicaId(1), counter: 2 * counter + 2 });
        }
        assert_eq!(seen.cloud().count(), CLOUD_DOTS_MAX);
        let last = Dot { replica: ReplicaId(1), counter: 2 * (CLOUD_DOTS_MAX as u64 + 50) };
        assert_eq!(seen.cloud().last(), Some(last));
    }

    #[test]
    fn ranges_are_what_one_vector_has_and_the_other_has_not() {
        let vector = |dots: &[(u64, u64)]| -> VersionVector {
            dots.iter().map(|&(r, counter)| Dot { replica: ReplicaId(r), counter }).collect()
        };
        let (from, until) = (vector(&[(1, 2), (3, 1)]), vector(&[(1, 5), (2, 1), (3, 1)]));
        let ranges = DotRanges::between(&from, &until);
        let dot = |r, counter| Dot { replica: ReplicaId(r), counter };
        assert!(ranges.contains(dot(1, 3)) && ranges.contains(dot(1, 5)) && ranges.contains(dot(2, 1)));
        assert!(!ranges.contains(dot(1, 2)) && !ranges.contains(dot(3, 1)));
        assert!(ranges.continues(&from) && !ranges.continues(&vector(&[(1, 1)])));
        assert!(!ranges.overlaps(&from) && ranges.overlaps(&vector(&[(1, 3)])) && ranges.covered_by(&until));
        let back: DotRanges = codec::decode(1, &codec::encode(1, &ranges)).unwrap();
        assert_eq!(back, ranges);
    }

    #[test]
    fn an_entry_of_zero_is_nothing() {
        let zero: VersionVector = [Dot { replica: ReplicaId(1), counter: 0 }].into_iter().collect();
        assert_eq!(zero, VersionVector::new());
    }
}
