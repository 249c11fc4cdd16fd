//! Idempotency keys, as clients may rely on them: what was made under each, and what each node said of it.
//!
//! A node that has applied a commit made under a key answers with such a commit and makes none, or refuses the key if
//! something else is asked for; and what it once told a client it goes on telling. That increments count once wherever
//! they were retried is the specification's matter ([`crate::spec`]).

use std::collections::{BTreeMap, BTreeSet};

use godwit_core::context::{Dot, VersionVector};
use godwit_core::delta::RequestKey;
use godwit_core::ids::PartitionId;
use godwit_core::partition::CommitError;
use godwit_proto::Reply;

use crate::oracle::Violation;

type Key = (PartitionId, [u8; 16]);

/// What was made under idempotency keys.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    /// What was asked for and the commit, also of commits that were not durable before a crash: no context names those.
    made: BTreeMap<Key, Vec<([u8; 16], Dot)>>,
    /// Where a request that changed nothing may be remembered.
    unchanged: BTreeSet<(usize, Key)>,
    /// What clients were told.
    told: BTreeMap<(usize, Key), ([u8; 16], Option<Dot>)>,
    /// Answers that repeated one, for the report.
    pub(crate) repeated: u64,
}

impl Requests {
    /// A node answered, before its answer is durable; `context` is what it has applied now.
    pub(crate) fn answered(
        &mut self,
        node: usize,
        partition: PartitionId,
        request: RequestKey,
        reply: &Reply,
        context: &VersionVector,
    ) -> Result<(), Violation> {
        let key = (partition, request.key);
        let made = self.made.entry(key).or_default();
        let mut applied = made.iter().filter(|(_, dot)| context.covers(*dot));
        let nothing_known = self.unchanged.contains(&(node, key));
        let wrong = |what: &str| {
            Err(Violation::new(5, format!("n{node} {what} under key {:02x?}: {reply:?}", request.key)))
        };
        match reply {
            Reply::Committed { repeated: true, commit: Some((dot, _)), .. } => {
                self.repeated += 1;
                if !applied.any(|made| *made == (request.asked, *dot)) {
                    return wrong("repeats what was not made");
                }
            }
            Reply::Committed { repeated: true, commit: None, .. } => {
                self.repeated += 1;
                if !nothing_known {
                    return wrong("repeats what was never asked for");
                }
            }
            Reply::Committed { commit, .. } => {
                let new = commit.map(|(dot, _)| dot);
                if applied.any(|(_, dot)| Some(*dot) != new) {
                    return wrong("makes another commit");
                }
                match new {
                    Some(dot) => made.push((request.asked, dot)),
                    None => drop(self.unchanged.insert((node, key))),
                }
            }
            Reply::Refused(CommitError::KeyReused) => {
                if !nothing_known && !applied.any(|(asked, _)| *asked != request.asked) {
                    return wrong("refuses what was never used");
                }
            }
            Reply::Refused(_) if applied.next().is_some() => {
                return wrong("refuses what was made");
            }
            Reply::Refused(_) | Reply::Stopping | Reply::Status(_) => {}
        }
        Ok(())
    }

    /// A client was told.
    pub(crate) fn told(
        &mut self,
        node: usize,
        partition: PartitionId,
        request: RequestKey,
        commit: Option<Dot>,
    ) -> Result<(), Violation> {
        let now = (request.asked, commit);
        let before = *self.told.entry((node, (partition, request.key))).or_insert(now);
        if before != now {
            let key = request.key;
            return Err(Violation::new(
                5,
                format!("n{node} told {before:?} of a request under key {key:02x?}, and now {now:?}"),
            ));
        }
        Ok(())
    }

    /// A commit is made: what bore its name before was lost with every disk that held it.
    pub(crate) fn named(&mut self, partition: PartitionId, dot: Dot) {
        for (_, made) in self.made.iter_mut().filter(|((of, _), _)| *of == partition) {
            made.retain(|(_, before)| *before != dot);
        }
    }

    /// A node begins on a copy of another's disk.
    pub(crate) fn copied(&mut self, from: usize, to: usize) {
        let inherited = self.unchanged.iter().filter(|(node, _)| *node == from).map(|(_, key)| (to, *key));
        let inherited: Vec<_> = inherited.collect();
        self.unchanged.extend(inherited);
    }

    /// A node's disk was rolled back: what it told may be forgotten there.
    pub(crate) fn forgotten_by(&mut self, node: usize) {
        self.told.retain(|(who, _), _| *who != node);
    }
}
