//! What a step of a node's machine did, for the oracle: commits that clients asked for, commits that the node made of its
//! own accord (folds), and answers without a commit. The oracle hears of them in their order once their group is durable
//! ([`Outcome::tell`]): what they say may rest on commits before them, which it knows only then. Answers to commits with an
//! idempotency key are held against what was made under the key ([`Requests`]).

use std::collections::{BTreeMap, BTreeSet};

use godwit_core::context::{Dot, VersionVector};
use godwit_core::ids::{PartitionId, ReplicaId};
use godwit_core::partition::CommitError;
use godwit_proto::{Node, Output, Reply, RequestId};

use crate::oracle::{Commit, Oracle, Violation};
use crate::requests::Requests;
use crate::workload::Ask;

/// A request that is not answered.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) since: u64,
    /// The time that its disk needed for the inputs that waited before it.
    pub(crate) queue_us: u64,
    pub(crate) ask: Ask,
    pub(crate) client: Option<usize>,
}

/// What a step came to.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// A commit.
    Made(Commit),
    /// A commit that changed nothing, as its node saw it.
    Unchanged { partition: PartitionId, ask: Ask, saw: VersionVector },
    /// A commit that was refused.
    Refused(Refusable, CommitError),
}

impl Outcome {
    /// Tells the oracle.
    pub(crate) fn tell(&self, oracle: &mut Oracle) -> Result<(), Violation> {
        match self {
            Self::Made(commit) => {
                oracle.accepted(commit.partition, &commit.ask, &commit.saw)?;
                oracle.committed(commit)
            }
            Self::Unchanged { partition, ask, saw } => {
                oracle.accepted(*partition, ask, saw)?;
                oracle.changed_nothing(*partition, ask, saw)
            }
            Self::Refused(Refusable { partition, ask, saw }, refusal) => {
                oracle.refused(*partition, ask, saw, refusal)
            }
        }
    }
}

/// What a commit that is answered at once would have been refused for.
#[derive(Debug)]
pub(crate) struct Refusable {
    pub(crate) partition: PartitionId,
    pub(crate) ask: Ask,
    pub(crate) saw: VersionVector,
}

/// A node after one step.
pub(crate) struct Stepped<'a> {
    pub(crate) node: &'a Node,
    /// Its number.
    pub(crate) who: usize,
    pub(crate) open: &'a BTreeMap<RequestId, Asked>,
    /// What it had written before.
    pub(crate) written: &'a mut BTreeMap<(ReplicaId, PartitionId), u64>,
    pub(crate) before: Option<(RequestId, Refusable)>,
}

impl Stepped<'_> {
    /// Takes down the outcomes of the step, commits that nobody asked for too.
    pub(crate) fn judge(
        self,
        outputs: &[Output],
        outcomes: &mut Vec<Outcome>,
        requests: &mut Requests,
    ) -> Result<(), Violation> {
        let replica = self.node.replica();
        let before = |context: &VersionVector, counter: u64| -> VersionVector {
            let others = context.iter().filter(|dot| dot.replica != replica);
            others.chain([Dot { replica, counter: counter - 1 }]).collect()
        };
        let mut named: BTreeMap<(PartitionId, u64), Commit> = BTreeMap::new();
        let mut refusable = self.before;
        let mut without_commit = Vec::new();
        let mut made = BTreeSet::new();
        for output in outputs {
            let Output::Reply { request, reply } = output else { continue };
            let Some(asked) = self.open.get(request) else { continue };
            let ask = &asked.ask;
            let here = home(self.node, ask);
            if let Reply::Committed { partition, commit: Some((dot, _)), repeated: false, .. } = reply {
                requests.named(*partition, *dot);
            }
            if let (Some(key), Some(partition)) = (ask.terms.request, here) {
                requests.answered(self.who, partition, key, reply, self.node.context(partition))?;
            }
            match reply {
                Reply::Committed { repeated: true, .. } | Reply::Stopping | Reply::Status(_) => {}
                Reply::Committed { partition, commit: Some((dot, hlc)), context, .. } => {
                    let saw = before(context, dot.counter);
                    let commit =
                        Commit { partition: *partition, dot: *dot, hlc: Some(*hlc), ask: ask.clone(), saw };
                    named.insert((*partition, dot.counter), commit);
                }
                Reply::Refused(CommitError::KeyReused) => {}
                Reply::Committed { partition, commit: None, context, .. } => {
                    let (partition, ask, saw) = (*partition, ask.clone(), context.clone());
                    without_commit.push(Outcome::Unchanged { partition, ask, saw });
                }
                Reply::Refused(refusal) => {
                    if let Some((_, refused)) = refusable.take_if(|(at_once, _)| at_once == request) {
                        without_commit.push(Outcome::Refused(refused, refusal.clone()));
                    }
                }
            }
        }
        for id in (0..self.node.config().partitions).map(PartitionId) {
            let context = self.node.context(id);
            let last = context.get(replica);
            let known = self.written.insert((replica, id), last).unwrap_or(0);
            for counter in known + 1..=last {
                let dot = Dot { replica, counter };
                let unasked = || Commit {
                    partition: id,
                    dot,
                    hlc: None,
                    ask: Ask::default(),
                    saw: before(context, counter),
                };
                made.insert(id);
                outcomes.push(Outcome::Made(named.remove(&(id, counter)).unwrap_or_else(unasked)));
            }
        }
        // What was refused may have seen commits of the same step that had waited: what it saw is not known then.
        without_commit.retain(|outcome| match outcome {
            Outcome::Refused(refused, _) => !made.contains(&refused.partition),
            _ => true,
        });
        // After the commits of the step, on which they may rest.
        outcomes.append(&mut without_commit);
        Ok(())
    }
}

fn home(node: &Node, ask: &Ask) -> Option<PartitionId> {
    ask.writes.first().map(|write| write.record.partition(node.config().partitions))
}
