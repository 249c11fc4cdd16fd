//! What a world leaves to chance, each draw by a name of its own: a seed and the name decide it, and nothing else does.
//!
//! So leaving out an event of a script does not shift what others draw: frame 7 of a connection is lost or not, whatever
//! happened elsewhere. Names are numbers of things and simulated times, never the order in which things happened.

use godwit_core::rng::Rng;

/// What is drawn for. The numbers are part of what a recorded script means: add, and never renumber.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Of {
    /// What becomes of a frame: link (2), connection of that link, direction, frame.
    Frame = 1,
    /// When an end learns that its connection is gone: end, other end, connection of that link.
    Ending = 2,
    /// When two nodes connect again: link (2), connection of that link.
    Reconnecting = 3,
    /// What a process draws from: node, life.
    Process = 4,
    /// Whether the last batch is kept: node, life.
    LastBatch = 5,
    /// How long a process goes on that has said that it stops: node, life.
    Stopping = 6,
    /// Which copy of a disk is put back, and how: node, time.
    PutBack = 7,
    /// What a directory is copied from, and how: node, time.
    Copy = 8,
    /// The pages of a listing: node, time.
    Pages = 9,
    /// What the busy client writes: look.
    Busy = 10,
    /// What a power cut leaves: node, life.
    PowerCut = 11,
    /// How long a read of the store takes: node, reader, time.
    Reading = 12,
    /// Which rows a disk loses: time.
    Damage = 13,
    /// The pages of sets: node, time.
    Members = 20,
    /// The steps of a consumer: node, time.
    Consumer = 21,
}

/// The source of all draws of a world.
#[derive(Debug, Clone, Copy)]
pub struct Draws {
    seed: u64,
}

impl Draws {
    /// The draws of a seed.
    pub fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// A generator for one thing, by its name.
    pub fn of(self, what: Of, name: &[u64]) -> Rng {
        let mixed = |state: u64, part: u64| Rng::new(state ^ part).draw();
        let start = mixed(Rng::new(self.seed).draw(), what as u64);
        Rng::new(name.iter().fold(start, |state, &part| mixed(state, part)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn each_name_draws_its_own() {
        let mut drawn = BTreeSet::new();
        for seed in 0..10 {
            for what in [Of::Frame, Of::Pages] {
                for name in [&[][..], &[0], &[1], &[0, 0], &[0, 1], &[1, 0], &[u64::MAX]] {
                    assert_eq!(
                        Draws::new(seed).of(what, name).draw(),
                        Draws::new(seed).of(what, name).draw()
                    );
                    drawn.insert(Draws::new(seed).of(what, name).draw());
                }
            }
        }
        assert_eq!(drawn.len(), 10 * 2 * 7);
    }
}
