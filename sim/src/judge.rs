//! What a step of a node's machine did, for the oracle: commits that clients asked for, commits that the node made of its
//! own accord (folds, sweeps of what has expired), and answers without a commit. The oracle hears of them in their order once their group is durable
//! ([`Outcome::tell`]): what they say may rest on commits before them, which it knows only then. Answers to commits with an
//! idempotency key are held against what was made under the key ([`Requests`]).

use std::collections::{BTreeMap, BTreeSet};

use godwit_core::context::{Dot, VersionVector};
use godwit_core::delta::{Delta, EncodedDelta};
use godwit_core::ids::{PartitionId, RecordId, ReplicaId};
use godwit_core::keys;
use godwit_core::partition::CommitError;
use godwit_core::row::FieldType;
use godwit_core::store::{Batch, Family};
use godwit_core::time::Hlc;
use godwit_core::types::zset;
use godwit_proto::{Node, Output, Reply, RequestId};

use crate::oracle::{Commit, Oracle, Violation};
use crate::requests::Requests;
use crate::spec::SpecOp;
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
    Unchanged(Refusable),
    /// A commit that was refused.
    Refused(Refusable, CommitError),
}

impl Outcome {
    /// Tells the oracle.
    pub(crate) fn tell(&self, oracle: &mut Oracle) -> Result<(), Violation> {
        match self {
            Self::Made(commit) => {
                oracle.accepted(commit.partition, &commit.ask, &commit.saw, commit.now_ms)?;
                oracle.committed(commit)
            }
            Self::Unchanged(Refusable { partition, ask, saw, now_ms }) => {
                oracle.accepted(*partition, ask, saw, *now_ms)?;
                oracle.changed_nothing(*partition, ask, saw, *now_ms)
            }
            Self::Refused(Refusable { partition, ask, saw, now_ms }, refusal) => {
                oracle.refused(*partition, ask, saw, *now_ms, refusal)
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
    /// The time that its node had.
    pub(crate) now_ms: u64,
}

/// A node after one step.
pub(crate) struct Stepped<'a> {
    pub(crate) node: &'a Node,
    /// Its number.
    pub(crate) who: usize,
    /// The time that it has.
    pub(crate) now_ms: u64,
    pub(crate) open: &'a BTreeMap<RequestId, Asked>,
    /// What it writes.
    pub(crate) batch: &'a Batch,
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
                    let commit = Commit {
                        partition: *partition,
                        dot: *dot,
                        hlc: Some(*hlc),
                        ask: ask.clone(),
                        saw,
                        now_ms: self.now_ms,
                        own: None,
                    };
                    named.insert((*partition, dot.counter), commit);
                }
                Reply::Refused(CommitError::KeyReused) => {}
                Reply::Committed { partition, commit: None, context, .. } => {
                    let (partition, ask, saw) = (*partition, ask.clone(), context.clone());
                    let unchanged = Refusable { partition, ask, saw, now_ms: self.now_ms };
                    without_commit.push(Outcome::Unchanged(unchanged));
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
                let unasked = || {
                    let (hlc, own) = own_commit(self.batch, id, dot).unzip();
                    let (ask, saw) = (Ask::default(), before(context, counter));
                    Commit { partition: id, dot, hlc, ask, saw, now_ms: self.now_ms, own: own.flatten() }
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

/// A record, and what a node does to it of its own accord.
type OwnCommit = (RecordId, Vec<SpecOp>);

/// What a commit of a node's own does: it is a sweep if it clears, otherwise it folds the sums that it writes. What it forgets of a document
/// nobody sees.
fn own_commit(batch: &Batch, partition: PartitionId, dot: Dot) -> Option<(Hlc, Option<OwnCommit>)> {
    let home = keys::partition_prefix(partition);
    let log = batch.iter().filter(|(family, key, _)| *family == Family::Log && key.starts_with(&home));
    let mut deltas = log.filter_map(|(_, _, value)| {
        let encoded = EncodedDelta::from_bytes(value?);
        encoded.dots().is_ok_and(|dots| dots.only() == Some(dot)).then(|| Delta::decode(&encoded).ok())?
    });
    let delta = deltas.next()?;
    let own = delta.records.into_iter().next().map(|record| {
        if !record.clears.is_empty() {
            let last = record.fields.iter().any(|field| field.ty == FieldType::EXPIRY);
            return (record.record, vec![SpecOp::Sweep { last }]);
        }
        let written = record.fields.iter().flat_map(|field| field.rows.iter().map(move |row| (field, row)));
        let folds = written.map(|(field, row)| {
            let member = zset::split(&row.slot).filter(|_| field.ty == FieldType::ZSUM);
            let member = member.and_then(|(base, _)| zset::member(base)).map(str::to_owned);
            SpecOp::Fold { field: field.field.to_string(), member }
        });
        let folds = folds.collect();
        (record.record, folds)
    });
    Some((delta.hlc, own))
}

fn home(node: &Node, ask: &Ask) -> Option<PartitionId> {
    ask.writes.first().map(|write| write.record.partition(node.config().partitions))
}
