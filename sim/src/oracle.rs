//! What must hold, checked while a run goes on. Numbers are those of DESIGN.md §5.
//!
//! The oracle keeps the history of every commit that became durable anywhere, with what its origin had applied then.
//! From what a replica says to have applied follows, by the specification, what a read there must show. It knows
//! nothing of rows, deltas or messages.

use std::collections::BTreeMap;
use std::fmt;

use godwit_core::context::{Dot, Seen, VersionVector};
use godwit_core::digest;
use godwit_core::document::{Document, Selected};
use godwit_core::ids::{Key, PartitionId, RecordId, ReplicaId};
use godwit_core::partition::{self, CommitError};
use godwit_core::read::{self, ReadAt, ReadError, ReadLimits, Value};
use godwit_core::repair::Settled;
use godwit_core::row::FieldType;
use godwit_core::store::StoreRead;
use godwit_core::time::Hlc;

use crate::spec::{Event, EventId, EventSet, History, SpecOp, SpecRecord, SpecType, SpecValue, Stamp};
use crate::workload::{self, Ask};

mod zsets;

/// After every time of expiry.
const TIMES_END: u64 = u64::MAX - 1;

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
    /// Its stamp, if that is known.
    pub hlc: Option<Hlc>,
    /// What was asked for; nothing, of a commit that the node made of its own accord.
    pub ask: Ask,
    /// What the origin had applied.
    pub saw: VersionVector,
    /// The time that the origin had, in milliseconds.
    pub now_ms: u64,
    /// What the node did of its own accord.
    pub own: Option<(RecordId, Vec<SpecOp>)>,
}

/// The histories of all partitions, and what was seen of replicas.
#[derive(Debug, Default)]
pub struct Oracle {
    partitions: BTreeMap<PartitionId, PartitionOracle>,
    /// By replica and partition.
    last_stamps: BTreeMap<(u64, PartitionId), Hlc>,
    reads: u64,
}

#[derive(Debug, Default)]
struct PartitionOracle {
    history: History,
    /// By replica and counter from 1.
    commits: BTreeMap<u64, Vec<Made>>,
    acknowledged: VersionVector,
    /// What no disk holds any more: by replica, the counter from which on commits are lost.
    lost: BTreeMap<u64, u64>,
    /// What must be seen at each context that was met.
    states: BTreeMap<VersionVector, State>,
}

/// A commit in the history.
#[derive(Debug)]
struct Made {
    events: Vec<EventId>,
    /// These, and all of earlier commits of its replica.
    until: EventSet,
}

/// What follows from a context, by the specification but for the bytes, which are those of the replica that met it first.
#[derive(Debug, Clone)]
struct State {
    /// Every record of the partition that clients touch, before any time of expiry has come; and after all of them, if it has
    /// one.
    records: Vec<(RecordId, SpecRecord, Option<SpecRecord>)>,
    digest: Option<[u8; 32]>,
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
        if self.is_lost(commit.partition, commit.dot) {
            self.forget(commit.partition, commit.dot);
        }
        let last = self.last_stamps.entry((replica, commit.partition)).or_default();
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
        let seen = commit.ask.terms.seen.as_ref().map(|seen| partition.seen(seen)).transpose()?;
        let own = commit.own.iter().map(|(record, ops)| (record.to_string(), ops.clone()));
        let now_ms = commit.now_ms;
        let events: Vec<EventId> = commit
            .ask
            .spec()
            .into_iter()
            .chain(own)
            .map(|(record, ops)| {
                let stamp = Stamp { hlc: last.0, replica };
                let event = Event { stamp, now_ms, record, ops, saw: saw.clone() };
                match &seen {
                    Some(seen) => partition.history.push_seen(event, seen.clone()),
                    None => partition.history.push(event),
                }
            })
            .collect();
        if let Some((record, ops)) = &commit.own
            && ops.contains(&SpecOp::Sweep { last: true })
        {
            let mut after = saw.clone();
            events.iter().for_each(|&event| after.insert(event));
            let left = partition.history.read_at(&record.to_string(), &after, now_ms);
            if !left.is_empty() {
                let what =
                    format!("{} takes the expiry of {record} away, where there is {left:?}", commit.dot);
                return Err(Violation::new(2, what));
            }
        }
        let commits = partition.commits.entry(replica).or_default();
        let mut until = commits.last().map(|made| made.until.clone()).unwrap_or_default();
        events.iter().for_each(|&event| until.insert(event));
        commits.push(Made { events, until });
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

    /// Some nodes' disks were rolled back: what no node holds any more is not owed any more.
    pub fn lost(&mut self, id: PartitionId, held: &VersionVector) {
        let partition = self.partitions.entry(id).or_default();
        let acknowledged = partition.acknowledged.iter();
        let kept = acknowledged.map(|dot| Dot { counter: dot.counter.min(held.get(dot.replica)), ..dot });
        partition.acknowledged = kept.collect();
        let made = partition.commits.iter().map(|(&replica, commits)| (replica, commits.len() as u64));
        let lost = made.filter_map(|(replica, made)| {
            let kept = held.get(ReplicaId(replica));
            (kept < made).then_some((replica, kept + 1))
        });
        partition.lost = lost.collect();
    }

    /// Whether a commit was durable and no disk held it when disks were last rolled back.
    pub fn is_lost(&self, id: PartitionId, dot: Dot) -> bool {
        let partition = self.partitions.get(&id);
        partition.is_some_and(|partition| {
            let made = partition.commits.get(&dot.replica.0).map_or(0, Vec::len) as u64;
            partition.lost.get(&dot.replica.0).is_some_and(|&from| (from..=made).contains(&dot.counter))
        })
    }

    /// A name is given again whose first bearer is nowhere any more: only if every disk was rolled back that could tell.
    fn forget(&mut self, id: PartitionId, dot: Dot) {
        let partition = self.partitions.entry(id).or_default();
        if let Some(commits) = partition.commits.get_mut(&dot.replica.0) {
            commits.truncate(dot.counter as usize - 1);
        }
        partition.lost.remove(&dot.replica.0);
        partition.states.retain(|context, _| !context.covers(dot));
        self.last_stamps.remove(&(dot.replica.0, id));
    }

    /// The events that a token names.
    pub fn seen(&mut self, id: PartitionId, seen: &Seen) -> Result<EventSet, Violation> {
        self.partitions.entry(id).or_default().seen(seen)
    }

    /// The events of one commit.
    pub fn made(&self, id: PartitionId, dot: Dot) -> Result<EventSet, Violation> {
        let partition = self.partitions.get(&id);
        let events = partition.map(|partition| partition.made(dot)).transpose()?.unwrap_or_default();
        let mut made = EventSet::default();
        events.iter().for_each(|&event| made.insert(event));
        Ok(made)
    }

    /// A commit changed nothing: rightly so?
    pub fn changed_nothing(
        &mut self,
        id: PartitionId,
        ask: &Ask,
        saw: &VersionVector,
        now_ms: u64,
    ) -> Result<(), Violation> {
        let partition = self.partitions.entry(id).or_default();
        let visible = partition.visible(saw)?;
        let seen = ask.terms.seen.as_ref().map(|seen| partition.seen(seen)).transpose()?;
        for (name, ops) in ask.spec() {
            let takes = |op: &SpecOp| {
                matches!(
                    op,
                    SpecOp::Disable { .. }
                        | SpecOp::Remove { .. }
                        | SpecOp::ZRemove { .. }
                        | SpecOp::Clear { .. }
                        | SpecOp::Delete
                )
            };
            if !ops.iter().any(takes) {
                return Err(Violation::new(2, format!("{ops:?} on {name} changed nothing")));
            }
            let before = partition.history.read_at(&name, &visible, now_ms);
            let after = partition.history.read_after(&name, &visible, &ops, seen.as_ref(), now_ms);
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
        ask: &Ask,
        saw: &VersionVector,
        now_ms: u64,
        refusal: &CommitError,
    ) -> Result<(), Violation> {
        let expected = self.expected_refusal(id, ask, saw, now_ms)?;
        match refusal {
            CommitError::Refused { write, refusal } if expected == Some((*write, refusal.op)) => Ok(()),
            _ => Err(Violation::new(2, format!("{ask:?} was refused ({refusal}), expected {expected:?}"))),
        }
    }

    /// A commit was accepted: rightly so?
    pub fn accepted(
        &mut self,
        id: PartitionId,
        ask: &Ask,
        saw: &VersionVector,
        now_ms: u64,
    ) -> Result<(), Violation> {
        match self.expected_refusal(id, ask, saw, now_ms)? {
            None => Ok(()),
            Some(at) => Err(Violation::new(
                2,
                format!(
                    "{ask:?} was accepted, but {at:?} has another type, or takes what its client has not seen"
                ),
            )),
        }
    }

    fn expected_refusal(
        &mut self,
        id: PartitionId,
        ask: &Ask,
        saw: &VersionVector,
        now_ms: u64,
    ) -> Result<Option<(usize, usize)>, Violation> {
        let partition = self.partitions.entry(id).or_default();
        let visible = partition.visible(saw)?;
        let seen = ask.terms.seen.as_ref().map(|seen| partition.seen(seen)).transpose()?;
        Ok(ask.spec().into_iter().enumerate().find_map(|(i, (record, ops))| {
            let history = &partition.history;
            let refused = history.first_refused_seen(&record, &ops, &visible, seen.as_ref(), now_ms);
            refused.map(|op| (i, op))
        }))
    }

    /// Compares a replica's durable state of a partition with what must be there: every record that clients touch, and
    /// the bytes with those of any replica that had applied the same. Returns its context, and the records that exist.
    pub fn check(
        &mut self,
        store: &impl StoreRead,
        partitions: u16,
        id: PartitionId,
        whose: &str,
    ) -> Result<(VersionVector, Vec<Key>), Violation> {
        let broken = |error: godwit_core::store::StoreError| Violation::new(10, format!("{whose}: {error}"));
        let store = &Settled::open(store).map_err(broken)?;
        let context = partition::stored_context(store, id).map_err(broken)?;
        let partition = self.partitions.entry(id).or_default();
        let mut state = match partition.states.remove(&context) {
            Some(state) => state,
            None => partition.state(partitions, id, &context, whose)?,
        };
        let mut exist = Vec::new();
        for (record, expected, expired) in &state.records {
            let expired = expired.as_ref().map(|expired| (TIMES_END, expired));
            for (now_ms, expected) in [(0, expected)].into_iter().chain(expired) {
                self.reads += 1;
                let at = ReadAt { partitions, now_ms };
                let wrong = |what| {
                    Violation::new(2, format!("{whose}: {what} (applied {context:?}, at {now_ms} ms)"))
                };
                let broken = |error: ReadError| Violation::new(10, format!("{whose}: {error}"));
                let seen = read_spec(store, at, record).map_err(broken)?;
                compare(record, &seen, expected).map_err(wrong)?;
                check_sizes(store, at, record, expected).map_err(broken)?.map_err(wrong)?;
                zsets::check(store, at, record, expected).map_err(broken)?.map_err(wrong)?;
            }
            if !expected.is_empty() {
                exist.push(record.key.clone());
            }
            check_mark(store, id, record)
                .map_err(broken)?
                .map_err(|what| Violation::new(2, format!("{whose}: {what}")))?;
        }
        let digest = digest::partition(store, id, &context).map_err(broken)?;
        if *state.digest.get_or_insert(digest) != digest {
            return Err(Violation::new(
                1,
                format!(
                    "{whose} has applied {context:?} of partition {id}, as another replica had, and its bytes differ"
                ),
            ));
        }
        partition.states.insert(context.clone(), state);
        Ok((context, exist))
    }

    /// A replica must have every commit that a client was told of (after healing).
    pub fn has_acknowledged(
        &self,
        id: PartitionId,
        context: &VersionVector,
        whose: &str,
    ) -> Result<(), Violation> {
        let Some(partition) = self.partitions.get(&id) else { return Ok(()) };
        match partition.acknowledged.iter().find(|dot| !context.covers(*dot)) {
            None => Ok(()),
            Some(dot) => Err(Violation::new(
                3,
                format!("{whose} lacks {dot} of partition {id}, which a client was told of"),
            )),
        }
    }
}

impl PartitionOracle {
    fn seen(&self, seen: &Seen) -> Result<EventSet, Violation> {
        let mut events = self.visible(seen.vector())?;
        for dot in seen.cloud() {
            self.made(dot)?.iter().for_each(|&event| events.insert(event));
        }
        Ok(events)
    }

    fn made(&self, dot: Dot) -> Result<&[EventId], Violation> {
        let commits = self.commits.get(&dot.replica.0).map_or(&[][..], Vec::as_slice);
        let made = commits.get(dot.counter as usize - 1).map(|made| made.events.as_slice());
        made.ok_or_else(|| Violation::new(6, format!("a token names {dot}, which nobody made")))
    }

    fn visible(&self, context: &VersionVector) -> Result<EventSet, Violation> {
        let mut visible = EventSet::default();
        for dot in context.iter() {
            let commits = self.commits.get(&dot.replica.0).map_or(&[][..], Vec::as_slice);
            let Some(last) = commits.get(dot.counter as usize - 1) else {
                return Err(Violation::new(
                    6,
                    format!(
                        "{dot} is applied somewhere, but only {} commits were durable at its origin",
                        commits.len()
                    ),
                ));
            };
            visible.union(&last.until);
        }
        Ok(visible)
    }

    /// What must be seen at a context that was not met before.
    fn state(
        &self,
        partitions: u16,
        id: PartitionId,
        context: &VersionVector,
        whose: &str,
    ) -> Result<State, Violation> {
        let visible = self.visible(context)?;
        if !self.history.is_causally_closed(&visible) {
            return Err(Violation::new(
                7,
                format!("{whose} has applied {context:?} of partition {id}, not causally closed"),
            ));
        }
        let here = workload::records().into_iter().filter(|record| record.partition(partitions) == id);
        let records = here.map(|record| {
            let name = record.to_string();
            let expected = self.history.read(&name, &visible);
            let expires = self.history.may_expire(&name, &visible);
            let expired = expires.then(|| self.history.read_at(&name, &visible, TIMES_END));
            (record, expected, expired)
        });
        Ok(State { records: records.collect(), digest: None })
    }
}

/// What a read of a record shows, in the specification's form.
pub fn read_spec(store: &impl StoreRead, at: ReadAt, record: &RecordId) -> Result<SpecRecord, ReadError> {
    let views = read::record(store, at, record, ReadLimits::NONE)?;
    let (mut documents, mut ranks) = (BTreeMap::new(), BTreeMap::new());
    for view in views.iter().filter(|view| view.ty == FieldType::UNIQUE) {
        ranks.insert(view.field.clone(), read::ranks(store, at, record, &view.field)?);
    }
    for view in views.iter().filter(|view| view.ty == FieldType::DOCUMENT) {
        documents.insert(view.field.clone(), document(&read::changes(store, at, record, &view.field, None)?));
    }
    let fields = views.into_iter().filter_map(|view| {
        let ty = match view.ty {
            FieldType::DOCUMENT => SpecType::Document,
            FieldType::REGISTER => SpecType::Register,
            FieldType::COUNTER => SpecType::Counter,
            FieldType::FLAG => SpecType::Flag,
            FieldType::SET => SpecType::Set,
            FieldType::ZSET => SpecType::Zset,
            FieldType::UNIQUE => SpecType::Unique,
            _ => return None,
        };
        let value = match view.value {
            Value::Register { value, siblings } => SpecValue::Register { value, siblings },
            Value::Counter(value) => SpecValue::Counter(value),
            Value::Flag => SpecValue::Flag(true),
            Value::Set { members, .. } => SpecValue::Set(members.into_iter().collect()),
            Value::Zset { members, .. } => {
                SpecValue::Zset(members.into_iter().map(|(m, score)| (m, score.value())).collect())
            }
            Value::Unique(count) => {
                SpecValue::Unique { count, ranks: ranks.remove(&view.field)?.into_iter().collect() }
            }
            Value::Document(_) => documents.remove(&view.field)?,
        };
        Some(((view.field.to_string(), ty), value))
    });
    Ok(fields.collect())
}

fn document(changes: &[Selected]) -> SpecValue {
    let hashes = changes.iter().map(|selected| selected.encoded.change.hash.to_string()).collect();
    let mut document = Document::default();
    let json =
        document.apply(changes.iter().map(|selected| &selected.encoded)).and_then(|()| document.json(None));
    SpecValue::Document(hashes, json.unwrap_or_else(|error| error.to_string()))
}

fn compare(record: &RecordId, seen: &SpecRecord, expected: &SpecRecord) -> Result<(), String> {
    if seen == expected { Ok(()) } else { Err(format!("{record} reads {seen:?}, must be {expected:?}")) }
}

/// The size of a set, kept by the node or counted at once, is the number of its members.
fn check_sizes(
    store: &impl StoreRead,
    at: ReadAt,
    record: &RecordId,
    expected: &SpecRecord,
) -> Result<Result<(), String>, ReadError> {
    for field in workload::set_fields() {
        let size = read::size(store, at, record, &field)?;
        let members = match expected.get(&(field.to_string(), SpecType::Set)) {
            Some(SpecValue::Set(members)) => members.len() as u64,
            _ => 0,
        };
        if size != members {
            return Ok(Err(format!("{record}: {field} has the size {size}, must have {members}")));
        }
    }
    Ok(Ok(()))
}

/// A record is marked exactly if it has rows, or has some staged.
fn check_mark(
    store: &impl StoreRead,
    id: PartitionId,
    record: &RecordId,
) -> Result<Result<(), String>, godwit_core::store::StoreError> {
    use godwit_core::{keys, store::Family};
    let prefix = keys::record_prefix(id, record);
    let rows = store.first(Family::Rows, &prefix, &keys::after_prefix(&prefix))?.is_some();
    let marked = store.get(Family::Keys, &keys::key_mark(record))?.is_some();
    let staged = store.first(Family::Staged, &prefix, &keys::after_prefix(&prefix))?.is_some();
    Ok(if rows == marked || (marked && staged) {
        Ok(())
    } else {
        Err(format!("{record}: has rows {rows}, is marked {marked}"))
    })
}
