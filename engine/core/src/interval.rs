//! Intervals: a run of a log as one delta, for a receiver that is behind.
//!
//! A run is taken from a log in the order of application, less what the receiver has (its context, the *base*), so it is
//! causally closed given the base. Merged it costs what it leaves, not what it went through: of a row that the run
//! superseded or killed nothing is left but the slot's name.
//!
//! What the merged delta must do to a receiver whose context covers the base, and maybe some of the run's commits by
//! another way:
//!
//! - *Rows of the run that are left at its end* are written, except those whose commits the receiver has: it has the
//!   row, or has something that superseded it.
//! - *Rows of the run that are not left* are removed where the receiver has them: their slots are named, and what a delta
//!   says of a slot is complete for its commits.
//! - *Rows of the base that the run removed* are killed by name. Where rows are keyed by replica a later row replaces
//!   an earlier one without a word, so a removed row of the run takes with it what it had replaced: a kill up to the base.
//! - *Clears* are kept, joined by scope: a dot is covered by one of two version vectors exactly if it is covered by
//!   their join. Rows of the run that a clear covers are left out, slot and all: the clear takes them from the receiver too.
//!
//! An entry that overlaps what the receiver has, or an earlier one (an interval got from one peer after some of its commits
//! came from another), cannot be merged: it tells which rows of its commits are left, not which of them went, and those of the
//! base would have to be named. It is sent as it is, between two runs.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use crate::context::{Dot, DotRanges, VersionVector};
use crate::delta::{Clear, Delta, EncodedDelta, FieldDelta, Kill, RecordDelta, Request, RowWrite};
use crate::ids::{Field, RecordId, ReplicaId};
use crate::row::FieldType;
use crate::time::Hlc;

/// What the parts of a delta take at most beyond their slots, names and payloads: encoded numbers and lengths.
const ROW_BYTES: usize = 48;
const KILL_BYTES: usize = 32;
const SLOT_BYTES: usize = 16;
const RECORD_BYTES: usize = 32;
const ENTRY_BYTES: usize = 20;
const REQUEST_BYTES: usize = 96;

/// Merges the entries of a run.
#[derive(Debug)]
pub struct IntervalBuilder {
    base: VersionVector,
    /// The base and the commits added.
    reached: VersionVector,
    deps: VersionVector,
    hlc: Hlc,
    requests: Vec<Request>,
    records: BTreeMap<RecordId, RecordRun>,
    bytes: usize,
    /// The only entry so far.
    only: Option<EncodedDelta>,
    is_empty: bool,
}

#[derive(Debug, Default)]
struct RecordRun {
    /// By scope: a field, or the whole record.
    clears: BTreeMap<Option<Field>, VersionVector>,
    slots: BTreeMap<(Field, FieldType, Vec<u8>), SlotRun>,
}

#[derive(Debug, Default)]
struct SlotRun {
    /// By replica, and by counter where rows are keyed by dot (0 elsewhere).
    rows: BTreeMap<(ReplicaId, u64), (Dot, Hlc, Vec<u8>)>,
    /// Kills of rows of the base, by the same key.
    kills: BTreeMap<(ReplicaId, u64), Dot>,
    /// Whether a row of the run was here that is gone, by other means than a clear.
    gone: bool,
}

impl IntervalBuilder {
    /// An empty run for a receiver that has applied `base`.
    pub fn new(base: VersionVector) -> Self {
        Self {
            reached: base.clone(),
            base,
            deps: VersionVector::new(),
            hlc: Hlc::default(),
            requests: Vec::new(),
            records: BTreeMap::new(),
            bytes: 0,
            only: None,
            is_empty: true,
        }
    }

    /// Whether nothing was added.
    pub fn is_empty(&self) -> bool {
        self.is_empty
    }

    /// What a receiver of all that was added will have applied.
    pub fn reached(&self) -> &VersionVector {
        &self.reached
    }

    /// At least the bytes that the merged delta will have.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether an entry of these commits can be merged with the run.
    pub fn takes(&self, dots: &DotRanges) -> bool {
        dots.continues(&self.reached) && !dots.overlaps(&self.reached)
    }

    /// Adds the log's next entry that the receiver lacks, whole or in part. What comes before it in the log must be in
    /// the base or added.
    ///
    /// # Panics
    /// If it is not next: the caller left an entry out, or did not ask [`Self::takes`].
    pub fn add(&mut self, delta: Delta, encoded: EncodedDelta) {
        assert!(self.takes(&delta.dots), "a run has no gaps and no overlaps: {:?} is not next", delta.dots);
        for record in delta.records {
            self.add_record(record);
        }
        for request in delta.requests {
            self.bytes += REQUEST_BYTES + request.namespace.as_str().len();
            self.requests.push(request);
        }
        for dot in delta.dots.last_dots() {
            self.bytes +=
                if self.reached.get(dot.replica) == self.base.get(dot.replica) { ENTRY_BYTES } else { 0 };
            self.reached.advance(dot);
        }
        self.bytes += delta.deps.iter().filter(|dot| self.deps.get(dot.replica) == 0).count() * ENTRY_BYTES;
        self.deps.join(&delta.deps);
        self.hlc = self.hlc.max(delta.hlc);
        self.only = self.is_empty.then_some(encoded);
        self.is_empty = false;
    }

    /// The run as one delta; `None` if nothing was added.
    pub fn finish(self) -> Option<EncodedDelta> {
        if self.is_empty || self.only.is_some() {
            return self.only;
        }
        let dots = DotRanges::between(&self.base, &self.reached);
        let mut deps = self.deps;
        dots.iter().for_each(|range| deps.remove(range.replica));
        let records = self.records.into_iter().map(|(record, run)| run.finish(record)).collect();
        Some(Delta { dots, hlc: self.hlc, deps, requests: self.requests, records }.encode())
    }

    fn add_record(&mut self, delta: RecordDelta) {
        let Self { base, bytes, .. } = self;
        let run = match self.records.entry(delta.record) {
            Entry::Occupied(run) => run.into_mut(),
            Entry::Vacant(vacant) => {
                let record = vacant.key();
                *bytes += RECORD_BYTES + record.namespace.as_str().len() + record.key.as_str().len();
                vacant.insert(RecordRun::default())
            }
        };
        delta.clears.into_iter().for_each(|clear| run.clear(clear, bytes));
        for FieldDelta { field, ty, kills, rows, gone } in delta.fields {
            for Kill { slot, dot } in kills {
                run.edit(&field, ty, slot, bytes, |slot| slot.kill(ty, base, dot));
            }
            for slot in gone {
                run.edit(&field, ty, slot, bytes, |slot| slot.gone = true);
            }
            for RowWrite { slot, dot, hlc, payload } in rows {
                let row = (dot, hlc, payload);
                run.edit(&field, ty, slot, bytes, |slot| drop(slot.rows.insert(row_key(ty, dot), row)));
            }
        }
    }
}

impl RecordRun {
    fn edit(
        &mut self,
        field: &Field,
        ty: FieldType,
        slot: Vec<u8>,
        bytes: &mut usize,
        change: impl FnOnce(&mut SlotRun),
    ) {
        let key = (field.clone(), ty, slot);
        let name_bytes = slot_name_bytes(&key);
        let slot = match self.slots.entry(key) {
            Entry::Occupied(slot) => slot.into_mut(),
            Entry::Vacant(vacant) => {
                *bytes += name_bytes;
                vacant.insert(SlotRun::default())
            }
        };
        *bytes -= slot.bytes(name_bytes);
        change(slot);
        *bytes += slot.bytes(name_bytes);
    }

    fn clear(&mut self, clear: Clear, bytes: &mut usize) {
        self.slots.retain(|key, slot| {
            let (field, ty, _) = key;
            if ty.holds_sums() || !clear.takes_from(field) {
                return true;
            }
            let name_bytes = slot_name_bytes(key);
            *bytes -= slot.bytes(name_bytes);
            slot.rows.retain(|_, (dot, ..)| !clear.seen.covers(*dot));
            let keep = slot.gone || !slot.rows.is_empty() || !slot.kills.is_empty();
            if keep {
                *bytes += slot.bytes(name_bytes);
            } else {
                *bytes -= name_bytes;
            }
            keep
        });
        let scopes = match clear.fields {
            Some(fields) => fields.into_iter().map(Some).collect(),
            None => vec![None],
        };
        for scope in scopes {
            let name_bytes = scope.as_ref().map_or(0, |field| field.as_str().len() + SLOT_BYTES);
            let seen = match self.clears.entry(scope) {
                Entry::Occupied(seen) => seen.into_mut(),
                Entry::Vacant(vacant) => {
                    *bytes += name_bytes + SLOT_BYTES;
                    vacant.insert(VersionVector::new())
                }
            };
            let before = seen.len();
            seen.join(&clear.seen);
            *bytes += (seen.len() - before) * ENTRY_BYTES;
        }
    }

    fn finish(self, record: RecordId) -> RecordDelta {
        let clears =
            self.clears.into_iter().map(|(scope, seen)| Clear { fields: scope.map(|f| vec![f]), seen });
        let mut fields: Vec<FieldDelta> = Vec::new();
        for ((field, ty, slot), run) in self.slots {
            if fields.last().is_none_or(|last| last.field != field || last.ty != ty) {
                fields.push(FieldDelta { field, ty, kills: Vec::new(), rows: Vec::new(), gone: Vec::new() });
            }
            let Some(delta) = fields.last_mut() else { continue };
            if run.gone && run.rows.is_empty() && run.kills.is_empty() {
                delta.gone.push(slot.clone());
            }
            delta.kills.extend(run.kills.into_values().map(|dot| Kill { slot: slot.clone(), dot }));
            let row = |(dot, hlc, payload)| RowWrite { slot: slot.clone(), dot, hlc, payload };
            delta.rows.extend(run.rows.into_values().map(row));
        }
        RecordDelta { record, clears: clears.collect(), fields }
    }
}

impl SlotRun {
    /// A kill of a row up to a dot (of exactly this dot, where rows are keyed by dot).
    fn kill(&mut self, ty: FieldType, base: &VersionVector, dot: Dot) {
        if ty.keyed_by_dot() {
            if base.covers(dot) {
                self.kills.insert(row_key(ty, dot), dot);
            } else {
                self.gone = true;
                self.rows.remove(&row_key(ty, dot));
            }
        } else {
            self.gone |= !base.covers(dot);
            self.rows.retain(|_, (row, ..)| row.replica != dot.replica || row.counter > dot.counter);
            self.kill_in_base(ty, base, dot);
        }
    }

    /// Where rows are keyed by replica: kills what the receiver has of the replica's, up to the dot.
    fn kill_in_base(&mut self, ty: FieldType, base: &VersionVector, dot: Dot) {
        let counter = dot.counter.min(base.get(dot.replica));
        if counter > 0 {
            let kill = self.kills.entry(row_key(ty, dot)).or_insert(Dot { counter, ..dot });
            kill.counter = kill.counter.max(counter);
        }
    }

    /// What it takes, its name once for each part.
    fn bytes(&self, name_bytes: usize) -> usize {
        let rows: usize =
            self.rows.values().map(|(.., payload)| name_bytes + payload.len() + ROW_BYTES).sum();
        rows + self.kills.len() * (name_bytes + KILL_BYTES)
    }
}

fn slot_name_bytes((field, _, slot): &(Field, FieldType, Vec<u8>)) -> usize {
    field.as_str().len() + slot.len() + SLOT_BYTES
}

fn row_key(ty: FieldType, dot: Dot) -> (ReplicaId, u64) {
    (dot.replica, if ty.keyed_by_dot() { dot.counter } else { 0 })
}
