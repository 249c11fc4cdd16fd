//! Exponential backoff with jitter, for dialling again for ever.
//!
//! The n-th delay is drawn from the upper half of `min(first * 2^n, cap)`: jitter keeps nodes that lost the same
//! link from dialling in step, and half of the delay is kept so that a broken peer is never dialled in a busy loop.

use std::time::Duration;

use godwit_core::rng::Rng;

#[derive(Debug)]
pub(crate) struct Backoff {
    first: Duration,
    cap: Duration,
    next: Duration,
    rng: Rng,
}

impl Backoff {
    pub(crate) fn new(first: Duration, cap: Duration, rng: Rng) -> Self {
        Self { first, cap, next: first.min(cap), rng }
    }

    /// The delay before the next attempt; each call doubles the following one, up to the cap.
    pub(crate) fn next_delay(&mut self) -> Duration {
        let full = self.next;
        self.next = full.saturating_mul(2).min(self.cap);
        let half = full / 2;
        let half_us = u64::try_from(half.as_micros()).unwrap_or(u64::MAX);
        half + Duration::from_micros(self.rng.below(half_us.saturating_add(1)))
    }

    /// Starts again from the first delay, after success.
    pub(crate) fn reset(&mut self) {
        self.next = self.first.min(self.cap);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_the_cap_and_resets() {
        let ms = Duration::from_millis;
        let mut backoff = Backoff::new(ms(100), ms(2_000), Rng::new(1));
        for full in [100, 200, 400, 800, 1_600, 2_000, 2_000] {
            let delay = backoff.next_delay();
            assert!(delay >= ms(full / 2) && delay <= ms(full), "{delay:?} of {full} ms");
        }
        backoff.reset();
        assert!(backoff.next_delay() <= ms(100));
    }
}
