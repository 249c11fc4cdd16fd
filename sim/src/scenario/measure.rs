//! Where each commit is readable, and what reads miss.
//!
//! A commit counts from the moment at which its client is answered; it is readable at a node once the node has it on its
//! disk. Commits that every node has are forgotten, so that this holds what is under way and no more.

use std::collections::BTreeMap;

use godwit_core::context::{Dot, VersionVector};
use godwit_core::ids::{Field, PartitionId, RecordId, ReplicaId};
use godwit_core::op::{Op, Write};

/// An answered commit that some node lacks.
#[derive(Debug)]
struct Tracked {
    at_us: u64,
    region: usize,
    /// Nodes that lack it.
    lacking: usize,
    records: Vec<RecordId>,
    /// Registers that it set.
    sets: Vec<(RecordId, Field)>,
}

type Name = (PartitionId, ReplicaId, u64);

/// What is known of commits and nodes.
#[derive(Debug)]
pub(super) struct Measure {
    partitions: u16,
    /// The region of each node.
    regions: Vec<usize>,
    /// What each node has on its disk, by partition.
    contexts: Vec<Vec<VersionVector>>,
    tracked: BTreeMap<Name, Tracked>,
    /// By record: commits that some node lacks, and since when.
    under_way: BTreeMap<RecordId, BTreeMap<(ReplicaId, u64), u64>>,
    /// Microseconds from a commit in one region until it is readable at a node of another.
    pub(super) staleness_us: BTreeMap<(usize, usize), Vec<u64>>,
}

impl Measure {
    pub(super) fn new(partitions: u16, regions: Vec<usize>) -> Self {
        let nothing = vec![VersionVector::new(); usize::from(partitions)];
        Self {
            partitions,
            contexts: vec![nothing; regions.len()],
            regions,
            tracked: BTreeMap::new(),
            under_way: BTreeMap::new(),
            staleness_us: BTreeMap::new(),
        }
    }

    /// A client was told of a commit.
    pub(super) fn answered(
        &mut self,
        now_us: u64,
        region: usize,
        partition: PartitionId,
        dot: Dot,
        writes: &[Write],
    ) {
        let lacks = |contexts: &&Vec<VersionVector>| !contexts[usize::from(partition.0)].covers(dot);
        let lacking = self.contexts.iter().filter(lacks).count();
        if lacking == 0 {
            return;
        }
        let mut sets = Vec::new();
        for write in writes {
            for op in &write.ops {
                if let Op::Set { field, .. } = op {
                    sets.push((write.record.clone(), field.clone()));
                }
            }
            let of_record = self.under_way.entry(write.record.clone()).or_default();
            of_record.insert((dot.replica, dot.counter), now_us);
        }
        let records = writes.iter().map(|write| write.record.clone()).collect();
        let tracked = Tracked { at_us: now_us, region, lacking, records, sets };
        self.tracked.insert((partition, dot.replica, dot.counter), tracked);
    }

    /// A node has more on its disk. Returns the registers that others set and it has now.
    pub(super) fn advance(
        &mut self,
        now_us: u64,
        node: usize,
        partition: PartitionId,
        context: VersionVector,
    ) -> Vec<(RecordId, Field)> {
        let before = std::mem::replace(&mut self.contexts[node][usize::from(partition.0)], context);
        let mut sets = Vec::new();
        let mut everywhere: Vec<Name> = Vec::new();
        for dot in self.contexts[node][usize::from(partition.0)].iter() {
            let from = (partition, dot.replica, before.get(dot.replica) + 1);
            let until = (partition, dot.replica, dot.counter);
            if from > until {
                continue;
            }
            for (name, tracked) in self.tracked.range_mut(from..=until) {
                let between = (tracked.region, self.regions[node]);
                self.staleness_us.entry(between).or_default().push(now_us - tracked.at_us);
                sets.extend(tracked.sets.iter().cloned());
                tracked.lacking -= 1;
                if tracked.lacking == 0 {
                    everywhere.push(*name);
                }
            }
        }
        for name in everywhere {
            let Some(tracked) = self.tracked.remove(&name) else { continue };
            for record in tracked.records {
                if let Some(of_record) = self.under_way.get_mut(&record) {
                    of_record.remove(&(name.1, name.2));
                    if of_record.is_empty() {
                        self.under_way.remove(&record);
                    }
                }
            }
        }
        sets.sort();
        sets.dedup();
        sets
    }

    /// When the oldest commit of a record was answered that a node lacks.
    pub(super) fn missed(&self, node: usize, record: &RecordId) -> Option<u64> {
        let of_record = self.under_way.get(record)?;
        let context = &self.contexts[node][usize::from(record.partition(self.partitions).0)];
        let mut oldest: Option<u64> = None;
        let mut from = (ReplicaId(0), 0);
        while let Some((&(replica, _), _)) = of_record.range(from..).next() {
            let lacks = (replica, context.get(replica).saturating_add(1))..=(replica, u64::MAX);
            if let Some((_, &at)) = of_record.range(lacks).next() {
                oldest = Some(oldest.map_or(at, |oldest| oldest.min(at)));
            }
            let Some(next) = replica.0.checked_add(1) else { break };
            from = (ReplicaId(next), 0);
        }
        oldest
    }

    /// The same over records of a range that have commits under way.
    pub(super) fn missed_between(&self, node: usize, from: &RecordId, until: &RecordId) -> Option<u64> {
        if from > until {
            return None;
        }
        let records = self.under_way.range(from..=until);
        records.filter_map(|(record, _)| self.missed(node, record)).min()
    }

    /// Commits that some node lacks.
    pub(super) fn under_way(&self) -> usize {
        self.tracked.len()
    }

    /// Commits that never came from one region to the nodes of another.
    pub(super) fn never(&self) -> BTreeMap<(usize, usize), u64> {
        let mut never = BTreeMap::new();
        for ((partition, replica, counter), tracked) in &self.tracked {
            for (node, contexts) in self.contexts.iter().enumerate() {
                if contexts[usize::from(partition.0)].get(*replica) < *counter {
                    *never.entry((tracked.region, self.regions[node])).or_insert(0) += 1;
                }
            }
        }
        never
    }

    /// All that any node has.
    pub(super) fn all(&self) -> Vec<VersionVector> {
        let mut all = vec![VersionVector::new(); usize::from(self.partitions)];
        for contexts in &self.contexts {
            all.iter_mut().zip(contexts).for_each(|(all, context)| all.join(context));
        }
        all
    }

    /// Whether a node has all of that.
    pub(super) fn has(&self, node: usize, all: &[VersionVector]) -> bool {
        self.contexts[node].iter().zip(all).all(|(context, all)| context.covers_all(all))
    }

    /// Commits of that which a node lacks.
    pub(super) fn lacks(&self, node: usize, all: &[VersionVector]) -> u64 {
        let lacks = |(context, all): (&VersionVector, &VersionVector)| {
            all.iter().map(|dot| dot.counter.saturating_sub(context.get(dot.replica))).sum::<u64>()
        };
        self.contexts[node].iter().zip(all).map(lacks).sum()
    }

    pub(super) fn context(&self, node: usize, partition: PartitionId) -> &VersionVector {
        &self.contexts[node][usize::from(partition.0)]
    }
}
