//! What must hold, checked while a run goes on. Numbers are those of DESIGN.md §5.
//!
//! The oracle keeps the history of every commit that became durable anywhere, with what its origin had applied then.
//! From what a replica says to have applied follows, by the specification, what a read there must show. It knows
//! nothing of rows, deltas or messages.

use std::collections::BTreeMap;
use std::fmt;

use godwit_core::context::{Dot, VersionVector};
use godwit_core::digest;
use godwit_core::ids::{PartitionId, RecordId, ReplicaId};
use godwit_core::op::Write;
use godwit_core::partition::{self, CommitError};
use godwit_core::read::{self, FieldView, ReadLimits, Value};
use godwit_core::row::FieldType;
use godwit_core::store::StoreRead;
use godwit_core::time::Hlc;

use crate::spec::{Event, EventId, EventSet, History, SpecOp, SpecRecord, SpecType, SpecValue, Stamp};
use crate::workload;

/// Something that must hold did not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The number of the invariant in DESIGN.md §5.
    pub invariant: u8,
    /// What was seen.
    pub what: String,
}

impl Violation {
    /// A violation of an invariant.
    pub fn new(invariant: u8, what: impl Into<String>) -> Self {
        Self { invariant, what: what.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.invariant {
            1 => "convergence",
            2 => "meaning",
            3 => "nothing acknowledged is lost",
            5 => "exactly once",
            6 => "no dot names two commits",
            7 => "causality and atomicity",
            8 => "availability",
            9 => "bounds",
            10 => "damage is contained: no correct node stops or is refused",
            _ => "not numbered",
        };
        write!(f, "invariant {} ({name}): {}", self.invariant, self.what)
    }
}

/// A commit as its origin made it.
#[derive(Debug, Clone)]
pub struct Commit {
    /// The partition.
    pub partition: PartitionId,
    /// The commit's name.
    pub dot: Dot,
    /// Its stamp; of a commit that a client asked for.
    pub hlc: Option<Hlc>,
    /// What was asked for; nothing, of a commit that the node made of its own accord: that means nothing.
    pub writes: Vec<Write>,
    /// What the origin had applied.
    pub saw: VersionVector,
}

/// The histories of all partitions, and what was seen of replicas.
#[derive(Debug, Default)]
pub struct Oracle {
    partitions: BTreeMap<PartitionId, PartitionOracle>,
    last_stamps: BTreeMap<u64, Hlc>,
    reads: u64,
}

#[derive(Debug, Default)]
struct PartitionOracle {
    history: History,
    /// The events of each commit, by replica and counter from 1.
    commits: BTreeMap<u64, Vec<Vec<EventId>>>,
    acknowledged: VersionVector,
    /// The digest of the state at each context that was met.
    states: BTreeMap<VersionVector, [u8; 32]>,
}

impl Oracle {
    /// How many records were read and compared.
    pub fn reads(&self) -> u64 {
        self.reads
    }

    /// How many commits became durable.
    pub fn commits(&self) -> usize {
        self.partitions.values().flat_map(|partition| partition.commits.values()).map(Vec::len).sum()
    }

    /// A commit became durable at its origin.
    pub fn committed(&mut self, commit: &Commit) -> Result<(), Violation> {
        let replica = commit.dot.replica.0;
        let last = self.last_stamps.entry(replica).or_default();
        if let Some(hlc) = commit.hlc {
            if hlc <= *last {
                return Err(Violation::new(
                    2,
                    format!("stamp {hlc:?} of {} is not after {last:?}", commit.dot),
                ));
            }
            *last = hlc;
        }
        let partition = self.partitions.entry(commit.partition).or_default();
        let saw = partition.visible(&commit.saw)?;
        if !partition.history.is_causally_closed(&saw) {
            let what = format!("{} was made on {:?}, not causally closed", commit.dot, commit.saw);
            return Err(Violation::new(7, what));
        }
        let events: Vec<EventId> = commit
            .writes
            .iter()
            .map(|write| {
                partition.history.push(Event {
                    stamp: Stamp { hlc: last.0, replica },
                    record: write.record.to_string(),
                    ops: write.ops.iter().map(workload::spec_op).collect(),
                    saw: saw.clone(),
                })
            })
            .collect();
        let commits = partition.commits.entry(replica).or_default();
        commits.push(events);
        if commits.len() as u64 != commit.dot.counter {
            return Err(Violation::new(
                6,
                format!("{} is commit number {} of its replica", commit.dot, commits.len()),
            ));
        }
        Ok(())
    }

    /// A client was told that its commit is durable.
    pub fn acknowledged(&mut self, id: PartitionId, dot: Dot) {
        self.partitions.entry(id).or_default().acknowledged.advance(dot);
    }

    /// A commit changed nothing: rightly so?
    pub fn changed_nothing(
        &mut self,
        id: PartitionId,
        writes: &[Write],
        saw: &VersionVector,
    ) -> Result<(), Violation> {
        let partition = self.partitions.entry(id).or_default();
        let visible = partition.visible(saw)?;
        for write in writes {
            let ops: Vec<SpecOp> = write.ops.iter().map(workload::spec_op).collect();
            let takes = |op: &SpecOp| {
                matches!(
                    op,
                    SpecOp::Disable { .. } | SpecOp::Remove { .. } | SpecOp::Clear { .. } | SpecOp::Delete
                )
            };
            if !ops.iter().any(takes) {
                return Err(Violation::new(2, format!("{ops:?} on {} changed nothing", write.record)));
            }
            let name = write.record.to_string();
            let before = partition.history.read(&name, &visible);
            let mut history = partition.history.clone();
            let stamp = Stamp { hlc: u64::MAX, replica: 0 };
            let event =
                history.push(Event { stamp, record: name.clone(), ops: ops.clone(), saw: visible.clone() });
            let mut with = visible.clone();
            with.insert(event);
            let after = history.read(&name, &with);
            if before != after {
                return Err(Violation::new(
                    2,
                    format!("{ops:?} on {name} changed nothing, but {before:?} should be {after:?}"),
                ));
            }
        }
        Ok(())
    }

    /// A commit was refused: rightly so?
    pub fn refused(
        &mut self,
        id: PartitionId,
        writes: &[Write],
        saw: &VersionVector,
        refusal: &CommitError,
    ) -> Result<(), Violation> {
        let expected = self.expected_refusal(id, writes, saw)?;
        match refusal {
            CommitError::Refused { write, refusal } if expected == Some((*write, refusal.op)) => Ok(()),
            _ => Err(Violation::new(2, format!("{writes:?} was refused ({refusal}), expected {expected:?}"))),
        }
    }

    /// A commit was accepted: rightly so?
    pub fn accepted(
        &mut self,
        id: PartitionId,
        writes: &[Write],
        saw: &VersionVector,
    ) -> Result<(), Violation> {
        match self.expected_refusal(id, writes, saw)? {
            None => Ok(()),
            Some(at) => {
                Err(Violation::new(2, format!("{writes:?} was accepted, but {at:?} has another type")))
            }
        }
    }

    fn expected_refusal(
        &mut self,
        id: PartitionId,
        writes: &[Write],
        saw: &VersionVector,
    ) -> Result<Option<(usize, usize)>, Violation> {
        let partition = self.partitions.entry(id).or_default();
        let visible = partition.visible(saw)?;
        Ok(writes.iter().enumerate().find_map(|(i, write)| {
            let ops: Vec<SpecOp> = write.ops.iter().map(workload::spec_op).collect();
            partition.history.first_refused(&write.record.to_string(), &ops, &visible).map(|op| (i, op))
        }))
    }

    /// Compares a replica's durable state of a partition with what must be there: every record that clients touch, and
    /// the bytes with those of any replica that had applied the same. Returns its context.
    pub fn check(
        &mut self,
        store: &impl StoreRead,
        partitions: u16,
        id: PartitionId,
        whose: &str,
    ) -> Result<VersionVector, Violation> {
        let broken = |error: godwit_core::store::StoreError| Violation::new(10, format!("{whose}: {error}"));
        let context = partition::stored_context(store, id).map_err(broken)?;
        let partition = self.partitions.entry(id).or_default();
        let visible = partition.visible(&context)?;
        if !partition.history.is_causally_closed(&visible) {
            return Err(Violation::new(
                7,
                format!("{whose} has applied {context:?} of partition {id}, not causally closed"),
            ));
        }
        for record in workload::records().iter().filter(|record| record.partition(partitions) == id) {
            self.reads += 1;
            let seen = read::record(store, partitions, record, ReadLimits::NONE)
                .map_err(|error| Violation::new(10, format!("{whose}: {error}")))?;
            let expected = partition.history.read(&record.to_string(), &visible);
            compare(record, &seen, &expected)
                .map_err(|what| Violation::new(2, format!("{whose}: {what} (applied {context:?})")))?;
            check_mark(store, partitions, record)
                .map_err(broken)?
                .map_err(|what| Violation::new(2, format!("{whose}: {what}")))?;
        }
        let digest = digest::partition(store, id, &context).map_err(broken)?;
        let met = partition.states.entry(context.clone()).or_insert(digest);
        if *met != digest {
            return Err(Violation::new(
                1,
                format!(
                    "{whose} has applied {context:?} of partition {id}, as another replica had, and its bytes differ"
                ),
            ));
        }
        Ok(context)
    }

    /// A replica must have every commit that a client was told of (after healing), or at least its own (always).
    pub fn has_acknowledged(
        &self,
        id: PartitionId,
        context: &VersionVector,
        owed_by: impl Fn(ReplicaId) -> bool,
        whose: &str,
    ) -> Result<(), Violation> {
        let Some(partition) = self.partitions.get(&id) else { return Ok(()) };
        let mut owed = partition.acknowledged.iter().filter(|dot| owed_by(dot.replica));
        match owed.find(|dot| !context.covers(*dot)) {
            None => Ok(()),
            Some(dot) => Err(Violation::new(
                3,
                format!("{whose} lacks {dot} of partition {id}, which a client was told of"),
            )),
        }
    }
}

impl PartitionOracle {
    fn visible(&self, context: &VersionVector) -> Result<EventSet, Violation> {
        let mut visible = EventSet::default();
        for dot in context.iter() {
            let commits = self.commits.get(&dot.replica.0).map_or(&[][..], Vec::as_slice);
            let Some(applied) = commits.get(..dot.counter as usize) else {
                return Err(Violation::new(
                    6,
                    format!(
                        "{dot} is applied somewhere, but only {} commits were durable at its origin",
                        commits.len()
                    ),
                ));
            };
            applied.iter().flatten().for_each(|&event| visible.insert(event));
        }
        Ok(visible)
    }
}

/// The specification's form of what a read showed.
pub fn as_spec(views: &[FieldView]) -> SpecRecord {
    views
        .iter()
        .filter_map(|view| {
            let ty = match view.ty {
                FieldType::REGISTER => SpecType::Register,
                FieldType::COUNTER => SpecType::Counter,
                FieldType::FLAG => SpecType::Flag,
                FieldType::SET => SpecType::Set,
                _ => return None,
            };
            let value = match &view.value {
                Value::Register { value, siblings } => {
                    SpecValue::Register { value: value.clone(), siblings: siblings.clone() }
                }
                Value::Counter(value) => SpecValue::Counter(*value),
                Value::Flag => SpecValue::Flag(true),
                Value::Set { members, .. } => SpecValue::Set(members.iter().cloned().collect()),
            };
            Some(((view.field.to_string(), ty), value))
        })
        .collect()
}

fn compare(record: &RecordId, seen: &[FieldView], expected: &SpecRecord) -> Result<(), String> {
    let seen = as_spec(seen);
    if seen == *expected { Ok(()) } else { Err(format!("{record} reads {seen:?}, must be {expected:?}")) }
}

/// A record is marked exactly if it has rows.
fn check_mark(
    store: &impl StoreRead,
    partitions: u16,
    record: &RecordId,
) -> Result<Result<(), String>, godwit_core::store::StoreError> {
    use godwit_core::{keys, store::Family};
    let prefix = keys::record_prefix(record.partition(partitions), record);
    let rows = store.first(Family::Rows, &prefix, &keys::after_prefix(&prefix))?.is_some();
    let marked = store.get(Family::Keys, &keys::key_mark(record))?.is_some();
    Ok(if rows == marked { Ok(()) } else { Err(format!("{record}: has rows {rows}, is marked {marked}")) })
}
