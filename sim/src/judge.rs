//! What a step of a node's machine did, for the oracle: commits that clients asked for, commits that the node made of its
//! own accord (folds), and answers without a commit, which are judged at once. Answers to commits with an idempotency key are
//! held against what was made under the key ([`Requests`]).

use std::collections::BTreeMap;

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
    pub(crate) ask: Ask,
    pub(crate) client: Option<usize>,
}

/// What a commit that is answered at once would have been refused for.
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
    /// Takes down the commits of the step, those that nobody asked for too, and judges the answers without one.
    /// Commits of the same group are not in the oracle's history yet: a verdict that depends on them is left out.
    pub(crate) fn judge(
        self,
        outputs: &[Output],
        commits: &mut Vec<Commit>,
        oracle: &mut Oracle,
        requests: &mut Requests,
    ) -> Result<(), Violation> {
        let replica = self.node.replica();
        let before = |context: &VersionVector, counter: u64| -> VersionVector {
            let others = context.iter().filter(|dot| dot.replica != replica);
            others.chain([Dot { replica, counter: counter - 1 }]).collect()
        };
        let mut named: BTreeMap<(PartitionId, u64), Commit> = BTreeMap::new();
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
            let unknown = |commit: &Commit| Some(commit.partition) == here;
            match reply {
                Reply::Committed { repeated: true, .. } | Reply::Stopping | Reply::Status(_) => {}
                Reply::Committed { partition, commit: Some((dot, hlc)), context, .. } => {
                    let saw = before(context, dot.counter);
                    let commit =
                        Commit { partition: *partition, dot: *dot, hlc: Some(*hlc), ask: ask.clone(), saw };
                    named.insert((*partition, dot.counter), commit);
                }
                Reply::Refused(CommitError::KeyReused) => {}
                _ if commits.iter().any(unknown) || named.values().any(unknown) => {}
                Reply::Committed { partition, commit: None, context, .. } => {
                    oracle.accepted(*partition, ask, context)?;
                    oracle.changed_nothing(*partition, ask, context)?;
                }
                Reply::Refused(refusal) => {
                    if let Some((at_once, Refusable { partition, ask, saw })) = &self.before
                        && at_once == request
                    {
                        oracle.refused(*partition, ask, saw, refusal)?;
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
                commits.push(named.remove(&(id, counter)).unwrap_or_else(unasked));
            }
        }
        Ok(())
    }
}

fn home(node: &Node, ask: &Ask) -> Option<PartitionId> {
    ask.writes.first().map(|write| write.record.partition(node.config().partitions))
}
