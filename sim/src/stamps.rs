//! Stamps follow what was seen: a commit's stamp is greater than those of the commits that its origin had applied, unless
//! one of them was too far ahead of the origin's clock to be followed.
//!
//! What a clock showed when a delta arrived is not kept; so a stamp counts as one to be followed if it was within the
//! allowed drift of the slowest clock that any node ever had, at the very beginning of the run. That leaves out some, and
//! blames no correct node.

use std::collections::BTreeMap;

use godwit_core::context::VersionVector;
use godwit_core::ids::PartitionId;
use godwit_core::time::Hlc;

use crate::oracle::{Commit, Violation};

/// The stamps of all durable commits.
#[derive(Debug, Default)]
pub(crate) struct Stamps {
    /// By partition and replica: the greatest stamp up to each counter, from 1.
    greatest: BTreeMap<(PartitionId, u64), Vec<Hlc>>,
}

impl Stamps {
    /// A commit became durable; stamps up to `followed_ms` had to be followed, whenever they came.
    pub(crate) fn committed(&mut self, commit: &Commit, followed_ms: u64) -> Result<(), Violation> {
        let Commit { partition, dot, saw, .. } = commit;
        if let Some(hlc) = commit.hlc {
            let seen = self.greatest_of(*partition, saw, followed_ms);
            if hlc <= seen {
                let what =
                    format!("the stamp {hlc:?} of {dot} is not after {seen:?}, which its node had seen");
                return Err(Violation::new(2, what));
            }
        }
        let stamps = self.greatest.entry((*partition, dot.replica.0)).or_default();
        // A name that is given again was lost with every disk that held it.
        stamps.truncate(dot.counter.saturating_sub(1) as usize);
        let before = stamps.last().copied().unwrap_or_default();
        stamps.push(before.max(commit.hlc.unwrap_or_default()));
        Ok(())
    }

    /// The greatest of the stamps seen that had to be followed.
    fn greatest_of(&self, partition: PartitionId, saw: &VersionVector, followed_ms: u64) -> Hlc {
        let of = |replica: u64, counter: u64| {
            let seen = self.greatest.get(&(partition, replica))?;
            let seen = &seen[..seen.len().min(counter as usize)];
            let followed = seen.partition_point(|stamp| stamp.millis() <= followed_ms);
            seen[..followed].last().copied()
        };
        saw.iter().filter_map(|dot| of(dot.replica.0, dot.counter)).max().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::Ask;
    use godwit_core::context::Dot;
    use godwit_core::ids::ReplicaId;
    use godwit_core::time::Wall;

    fn commit(replica: u64, counter: u64, wall_ms: u64, saw: &[(u64, u64)]) -> Commit {
        let dot = |&(replica, counter): &(u64, u64)| Dot { replica: ReplicaId(replica), counter };
        Commit {
            partition: PartitionId(0),
            dot: dot(&(replica, counter)),
            now_ms: wall_ms,
            own: None,
            hlc: Some(Hlc::from_wall(Wall(wall_ms))),
            ask: Ask::default(),
            saw: saw.iter().map(dot).collect(),
        }
    }

    #[test]
    fn a_stamp_that_does_not_follow_what_was_seen_is_told() {
        let mut stamps = Stamps::default();
        assert_eq!(stamps.committed(&commit(1, 1, 50, &[]), 100), Ok(()));
        assert_eq!(stamps.committed(&commit(2, 1, 40, &[]), 100), Ok(()));
        let earlier = commit(2, 2, 50, &[(1, 1), (2, 1)]);
        assert_eq!(stamps.committed(&earlier, 100).unwrap_err().invariant, 2);
        // Too far ahead to be followed.
        assert_eq!(stamps.committed(&earlier, 49), Ok(()));
    }
}
