//! Playing a history: replicas that apply ancestors, and readers that apply all.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use godwit_core::delta::{Delta, EncodedDelta};
use godwit_core::digest;
use godwit_core::ids::{Field, Key, Namespace, PartitionId, RecordId, ReplicaId};
use godwit_core::machine::Effects;
use godwit_core::op::{Limits, Op, Terms, Write};
use godwit_core::partition::{Committed, Partition, Received};
use godwit_core::read::{self, PageLimits, ReadAt, ReadLimits, Value as View};
use godwit_core::store::{MemStore, Txn};
use godwit_core::time::{Hlc, HlcClock, Wall};

use super::file::{Recorded, RecordedCommit, RecordedOp};

const PARTITIONS: u16 = 1;
const PARTITION: PartitionId = PartitionId(0);
/// The record and field of a history that edits one set.
const SET: &str = "set";
/// Operations of one commit to the machine, and bytes of their values: a longer one becomes several, one after the other
/// at the same replica, which means the same.
const PART_OPS_MAX: usize = 500;
const PART_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The history cannot be played.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlayError(pub String);

impl fmt::Display for PlayError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for PlayError {}

/// What a reader of everything finds, under the original names, values as JSON text.
#[derive(Debug, Default)]
pub(super) struct End {
    pub(super) records: BTreeMap<String, BTreeMap<String, String>>,
    pub(super) members: BTreeSet<String>,
    pub(super) unresolved: usize,
}

#[derive(Debug)]
pub(super) struct Played {
    pub(super) end: End,
    pub(super) deltas: usize,
    pub(super) delta_bytes: usize,
    pub(super) applied: usize,
}

/// One replica: a partition's machine over a store of its own.
struct Replica {
    partition: Partition,
    store: MemStore,
    clock: HlcClock,
    /// The commits that it has applied.
    has: Vec<bool>,
    applied: usize,
}

impl Replica {
    fn new(name: &str, number: usize, commits: usize) -> Result<Self, PlayError> {
        let store = MemStore::default();
        let id = ReplicaId::of_node(name, number as u64);
        let partition = Partition::open(&store, PARTITION, id).map_err(broken)?;
        // Stamps follow whatever authors' clocks said: they order concurrent assignments only.
        let clock = HlcClock::new(Hlc::default(), u64::MAX);
        Ok(Self { partition, store, clock, has: vec![false; commits], applied: 0 })
    }

    /// Applies commits that others made.
    fn apply(&mut self, at: usize, deltas: &[EncodedDelta]) -> Result<(), PlayError> {
        self.has[at] = true;
        for encoded in deltas {
            let delta = Delta::decode(encoded).map_err(broken)?;
            self.clock.observe(delta.hlc, Wall(0));
            let mut effects = Effects::<()>::default();
            let mut txn = Txn::new(&self.store, &mut effects.batch);
            match self.partition.receive(&mut txn, delta, encoded.clone(), 0, (0, 0)).map_err(broken)? {
                Received::Applied(_) => self.applied += 1,
                other => return Err(PlayError(format!("a delta of commit {at} is not applied: {other:?}"))),
            }
            self.store.commit(effects.batch);
        }
        Ok(())
    }

    /// Makes a commit; nothing if it changes nothing.
    fn make(&mut self, commit: &RecordedCommit, writes: &[Write]) -> Result<Option<EncodedDelta>, PlayError> {
        let limits = Limits {
            value_bytes_max: usize::MAX,
            fields_max: usize::MAX,
            ops_max: usize::MAX,
            members_max: usize::MAX,
        };
        let mut effects = Effects::<()>::default();
        let mut txn = Txn::new(&self.store, &mut effects.batch);
        let (clock, wall) = (&mut self.clock, Wall(commit.wall_ms));
        let times = (commit.wall_ms, 0);
        let tick = || clock.tick(wall);
        let done = self.partition.commit(&mut txn, writes, &Terms::default(), &limits, times, tick);
        let done = done.map_err(|error| {
            PlayError(format!("line {}: commit {} is refused: {error}", commit.line, commit.name))
        })?;
        self.store.commit(effects.batch);
        Ok(match done {
            Committed::Applied(applied) => Some(applied.encoded),
            Committed::Unchanged | Committed::Repeated(_) => None,
        })
    }

    fn digest(&self) -> Result<[u8; 32], PlayError> {
        digest::partition(&self.store, PARTITION, self.partition.context()).map_err(broken)
    }
}

fn broken(error: impl fmt::Display) -> PlayError {
    PlayError(format!("the machine stops: {error}"))
}

/// Plays a history.
pub(super) fn play(recorded: &Recorded) -> Result<Played, PlayError> {
    let commits = &recorded.commits;
    let last: BTreeMap<usize, usize> =
        commits.iter().enumerate().map(|(at, commit)| (commit.replica, at)).collect();
    let mut deltas: Vec<Vec<EncodedDelta>> = Vec::with_capacity(commits.len());
    let mut replicas: BTreeMap<usize, (Replica, usize)> = BTreeMap::new();
    let mut applied = 0;
    for (at, commit) in commits.iter().enumerate() {
        let (mut replica, before) = match replicas.remove(&commit.replica) {
            Some((replica, before)) => (replica, Some(before)),
            None => {
                let name = &recorded.replicas[commit.replica];
                (Replica::new(name, commit.replica, commits.len())?, None)
            }
        };
        if let Some(before) = before
            && !is_ancestor(commits, before, commit)
        {
            return Err(PlayError(format!(
                "line {}: commit {} of replica {} does not descend from the replica's commit before, {}: a replica is a chain",
                commit.line, commit.name, recorded.replicas[commit.replica], commits[before].name
            )));
        }
        for ancestor in missing(commits, &replica.has, &commit.parents) {
            replica.apply(ancestor, &deltas[ancestor])?;
        }
        let mut made = Vec::new();
        for writes in parts(&commit.ops) {
            made.extend(replica.make(commit, &writes)?);
        }
        deltas.push(made);
        replica.has[at] = true;
        if last[&commit.replica] == at {
            applied += replica.applied;
        } else {
            replicas.insert(commit.replica, (replica, at));
        }
    }
    let mut reader = Replica::new("reader", 0, commits.len())?;
    for (at, deltas) in deltas.iter().enumerate() {
        reader.apply(at, deltas)?;
    }
    let mut other = Replica::new("other reader", 1, commits.len())?;
    for at in backwards(commits) {
        other.apply(at, &deltas[at])?;
    }
    if reader.digest()? != other.digest()? {
        return Err(PlayError(
            "two readers that applied the same commits in two orders hold different bytes".into(),
        ));
    }
    Ok(Played {
        end: end(&reader.store, recorded)?,
        deltas: deltas.iter().map(Vec::len).sum(),
        delta_bytes: deltas.iter().flatten().map(|delta| delta.as_bytes().len()).sum(),
        applied: applied + reader.applied + other.applied,
    })
}

/// The commits above some that a replica has not applied, parents first. What it has is closed under ancestry.
fn missing(commits: &[RecordedCommit], has: &[bool], from: &[usize]) -> BTreeSet<usize> {
    let mut found = BTreeSet::new();
    let mut stack = from.to_vec();
    while let Some(at) = stack.pop() {
        if !has[at] && found.insert(at) {
            stack.extend(&commits[at].parents);
        }
    }
    // Parents stand on earlier lines.
    found
}

fn is_ancestor(commits: &[RecordedCommit], ancestor: usize, of: &RecordedCommit) -> bool {
    let mut seen = BTreeSet::new();
    let mut stack = of.parents.clone();
    while let Some(at) = stack.pop() {
        if at == ancestor {
            return true;
        }
        if at > ancestor && seen.insert(at) {
            stack.extend(&commits[at].parents);
        }
    }
    false
}

/// All commits, parents first, in an order far from that of the file: each line of descent as late as it can be.
fn backwards(commits: &[RecordedCommit]) -> Vec<usize> {
    let mut done = vec![false; commits.len()];
    let mut order = Vec::with_capacity(commits.len());
    for head in (0..commits.len()).rev() {
        let mut stack = vec![head];
        while let Some(&at) = stack.last() {
            let next = commits[at].parents.iter().rev().find(|parent| !done[**parent]);
            match next {
                Some(&parent) if !done[at] => stack.push(parent),
                _ => {
                    stack.pop();
                    if !std::mem::replace(&mut done[at], true) {
                        order.push(at);
                    }
                }
            }
        }
    }
    order
}

/// A commit's operations as writes, records in the order in which they are first named.
fn parts(ops: &[RecordedOp]) -> Vec<Vec<Write>> {
    let mut parts: Vec<Vec<Write>> = Vec::new();
    let (mut places, mut count, mut bytes) = (BTreeMap::new(), 0, 0);
    for op in ops {
        let (record, op, size) = operation(op);
        if parts.is_empty() || count >= PART_OPS_MAX || bytes + size > PART_BYTES_MAX {
            parts.push(Vec::new());
            places = BTreeMap::new();
            (count, bytes) = (0, 0);
        }
        (count, bytes) = (count + 1, bytes + size);
        let part = parts.last_mut().expect("one was pushed");
        let place = *places.entry(record.key.clone()).or_insert(part.len());
        if place == part.len() {
            part.push(Write { record, ops: Vec::new() });
        }
        part[place].ops.push(op);
    }
    parts
}

fn operation(op: &RecordedOp) -> (RecordId, Op, usize) {
    let record = |key: &Key| RecordId { namespace: namespace(), key: key.clone() };
    let set = || RecordId { namespace: namespace(), key: Key::new(SET).expect("a constant name") };
    let field = || Field::new(SET).expect("a constant name");
    match op {
        RecordedOp::Put(key, field, value) => {
            let size = value.as_str().len();
            (record(key), Op::Set { field: field.clone(), value: value.clone() }, size)
        }
        RecordedOp::Del(key) => (record(key), Op::Delete, 0),
        RecordedOp::Unset(key, field) => (record(key), Op::Clear { field: field.clone() }, 0),
        RecordedOp::Add(member) => (set(), Op::Add { field: field(), members: vec![member.clone()] }, 0),
        RecordedOp::Rem(member) => (set(), Op::Remove { field: field(), members: vec![member.clone()] }, 0),
    }
}

fn namespace() -> Namespace {
    Namespace::new("recorded").expect("a constant name")
}

/// Everything that a store shows.
fn end(store: &MemStore, recorded: &Recorded) -> Result<End, PlayError> {
    let names = &recorded.names;
    let at = ReadAt { partitions: PARTITIONS, now_ms: 0 };
    let everything = PageLimits { items_max: usize::MAX, bytes_max: usize::MAX, rows_max: usize::MAX };
    let keys = read::list_keys(store, at, &namespace(), "", None, everything).map_err(broken)?.items;
    let mut end = End::default();
    for key in keys {
        let record = RecordId { namespace: namespace(), key };
        for view in read::record(store, at, &record, ReadLimits::NONE).map_err(broken)? {
            match view.value {
                View::Register { value, siblings } => {
                    end.unresolved += usize::from(!siblings.is_empty());
                    let fields = end.records.entry(names.text(record.key.as_str())).or_default();
                    fields.insert(names.text(view.field.as_str()), value);
                }
                View::Set { members, .. } => {
                    end.members.extend(members.iter().map(|member| names.original(member).to_string()));
                }
                View::Counter(_) | View::Flag | View::Zset { .. } | View::Unique(_) | View::Document(_) => {
                    return Err(PlayError("a field has a type that no operation made".into()));
                }
            }
        }
    }
    Ok(end)
}
