//! Dots and version vectors: which commits a replica has applied.
//!
//! A dot `(replica, counter)` names one commit in one partition; a replica's counters there are contiguous
//! from 1. Deltas are applied in causal order, so what a node has applied is always a version vector: for
//! each replica, every counter up to one. Version vectors form a join semilattice (join is the maximum a
//! replica), proved in the tests.

use std::collections::BTreeMap;
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
    fn an_entry_of_zero_is_nothing() {
        let zero: VersionVector = [Dot { replica: ReplicaId(1), counter: 0 }].into_iter().collect();
        assert_eq!(zero, VersionVector::new());
    }
}
