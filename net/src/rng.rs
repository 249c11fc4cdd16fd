//! SplitMix64: a small seeded generator for jitter and fault draws. Not for secrets.

use std::hash::{BuildHasher, Hasher, RandomState};

/// One million: the denominator of every rate in parts per million.
pub(crate) const PPM: u32 = 1_000_000;

/// A SplitMix64 generator (Steele, Lea, Flood 2014). Equal seeds give equal draws.
#[derive(Debug, Clone)]
pub(crate) struct SplitMix64 {
    state: u64,
}

impl SplitMix64 {
    pub(crate) fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// A generator seeded by the process's hash keys: differs between processes, which is all that jitter needs.
    pub(crate) fn from_process() -> Self {
        Self::new(RandomState::new().build_hasher().finish())
    }

    pub(crate) fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A draw from `0..=max`, by the high half of a product; its bias is below `max / 2^64`.
    pub(crate) fn up_to(&mut self, max: u64) -> u64 {
        let product = u128::from(self.next_u64()) * (u128::from(max) + 1);
        (product >> 64) as u64
    }

    /// True with a probability of `ppm` in a million.
    pub(crate) fn hits(&mut self, ppm: u32) -> bool {
        ppm != 0 && self.up_to(u64::from(PPM) - 1) < u64::from(ppm)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_stay_in_range_and_repeat_with_the_seed() {
        let (mut a, mut b) = (SplitMix64::new(7), SplitMix64::new(7));
        for _ in 0..1_000 {
            let draw = a.up_to(9);
            assert!(draw <= 9);
            assert_eq!(draw, b.up_to(9));
        }
        assert!(!a.hits(0));
        assert!(a.hits(PPM));
        let hits = (0..10_000).filter(|_| a.hits(100_000)).count();
        assert!((800..1_200).contains(&hits), "{hits} hits of 10,000 at a tenth");
    }
}
