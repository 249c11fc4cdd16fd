//! Time as an argument: wall time, monotonic time, and the hybrid logical clock.
//!
//! The clock follows Kulkarni et al., "Logical Physical Clocks" (2014). A stamp is 48 bits of milliseconds
//! since 1970 and a 16-bit counter. Stamps order *concurrent* assignments only; causality is the contexts'
//! business. Invariants:
//!
//! - the stamps that one node gives strictly increase, also over restarts, whatever its wall clock does;
//! - a stamp given after a remote stamp was observed is larger than it, unless the remote one was more than
//!   the allowed drift ahead of the local wall clock: then it is ignored and reported. Where only the greatest of several
//!   is known (of an interval, of what a repair brought), one beyond the drift must not hide the others: the clock then goes as
//!   far as the drift allows.

use std::fmt;

use bincode::{Decode, Encode};

/// Milliseconds since 1970, as the machine's clock tells, which may jump.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Wall(pub u64);

/// Microseconds since some moment of this process: never goes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mono(pub u64);

impl Mono {
    /// The moment `us` microseconds later.
    pub fn plus_us(self, us: u64) -> Self {
        Self(self.0.saturating_add(us))
    }

    /// The microseconds since an earlier moment; 0 if it is not earlier.
    pub fn since_us(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// Both clocks, read once for one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Monotonic time, for timers.
    pub mono: Mono,
    /// Wall time, for stamps.
    pub wall: Wall,
}

/// A hybrid logical stamp: milliseconds in the upper 48 bits, a counter in the lower 16.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Encode, Decode)]
pub struct Hlc(pub u64);

impl Hlc {
    const COUNTER_BITS: u32 = 16;
    const MAX_MILLIS: u64 = (1 << 48) - 1;

    /// The first stamp of a millisecond.
    pub fn from_wall(wall: Wall) -> Self {
        Self(wall.0.min(Self::MAX_MILLIS) << Self::COUNTER_BITS)
    }

    /// Milliseconds since 1970.
    pub fn millis(self) -> u64 {
        self.0 >> Self::COUNTER_BITS
    }

    fn next(self) -> Self {
        // The counter overflows into the milliseconds: still a larger stamp, a millisecond early at worst.
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Debug for Hlc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.millis(), self.0 & 0xffff)
    }
}

/// A remote stamp was too far ahead to follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DriftAlarm {
    /// How far ahead of the local wall clock, in milliseconds.
    pub ahead_ms: u64,
}

/// The clock of one node.
#[derive(Debug, Clone)]
pub struct HlcClock {
    last: Hlc,
    max_drift_ms: u64,
}

impl HlcClock {
    /// A clock that continues after `last`, the greatest stamp that the node has durably given or followed.
    pub fn new(last: Hlc, max_drift_ms: u64) -> Self {
        Self { last, max_drift_ms }
    }

    /// The greatest stamp given or followed.
    pub fn last(&self) -> Hlc {
        self.last
    }

    /// The stamp of a local commit. Local writes are always accepted: a clock that went back only makes
    /// the counter run.
    pub fn tick(&mut self, wall: Wall) -> Hlc {
        self.last = self.last.next().max(Hlc::from_wall(wall));
        self.last
    }

    /// Follows a remote stamp, unless it is beyond the allowed drift.
    pub fn observe(&mut self, remote: Hlc, wall: Wall) -> Option<DriftAlarm> {
        let ahead_ms = remote.millis().saturating_sub(wall.0);
        if ahead_ms > self.max_drift_ms {
            return Some(DriftAlarm { ahead_ms });
        }
        self.last = self.last.max(remote);
        None
    }

    /// Follows remote stamps of which only the greatest is known.
    pub fn observe_several(&mut self, greatest: Hlc, wall: Wall) -> Option<DriftAlarm> {
        let alarm = self.observe(greatest, wall);
        if alarm.is_some() {
            let next_millisecond = wall.0.saturating_add(self.max_drift_ms).saturating_add(1);
            self.last = self.last.max(Hlc(Hlc::from_wall(Wall(next_millisecond)).0 - 1));
        }
        alarm
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn far_ahead_is_reported_and_not_followed() {
        let mut clock = HlcClock::new(Hlc::default(), 500);
        assert_eq!(clock.observe(Hlc::from_wall(Wall(1500)), Wall(1000)), None);
        assert_eq!(clock.observe(Hlc::from_wall(Wall(1501)), Wall(1000)), Some(DriftAlarm { ahead_ms: 501 }));
        assert_eq!(clock.tick(Wall(1000)).millis(), 1500);
    }

    #[test]
    fn one_beyond_the_drift_does_not_hide_others() {
        let mut clock = HlcClock::new(Hlc::default(), 500);
        let alarm = clock.observe_several(Hlc::from_wall(Wall(9000)), Wall(1000));
        assert_eq!(alarm, Some(DriftAlarm { ahead_ms: 8000 }));
        let last_followed = Hlc(Hlc::from_wall(Wall(1501)).0 - 1);
        assert!(clock.tick(Wall(1000)) > last_followed);
        assert_eq!(clock.observe_several(Hlc::from_wall(Wall(1400)), Wall(1000)), None);
        let mut clock = HlcClock::new(Hlc::default(), u64::MAX);
        assert_eq!(clock.observe_several(Hlc(u64::MAX), Wall(0)), None);
    }

    proptest! {
        #[test]
        fn local_stamps_strictly_increase(walls: Vec<u32>, remote in 0u64..1 << 40) {
            let mut clock = HlcClock::new(Hlc(remote), 1000);
            let mut last = clock.last();
            for wall in walls {
                let stamp = clock.tick(Wall(u64::from(wall)));
                prop_assert!(stamp > last);
                last = stamp;
            }
        }
    }
}
