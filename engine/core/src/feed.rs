//! The change feed: which records changed since a position, by the log.
//!
//! A position is a version vector of each partition, in a [`Token`]: it names what a consumer has, not a place in one node's
//! log, so any node goes on from it. Invariants:
//!
//! - *Nothing is passed over.* A step moves a position over entries of the log in their order, and over nothing else;
//!   every record that a commit beyond the old position touched is told with the step whose position first covers the commit.
//!   Whoever reads a record in the same state of the store as the step reads a value at least as new.
//! - *A commit that comes by repair is in no log.* The floor of the log covers it then ([`LogFloor`](crate::partition::LogFloor)),
//!   so a position that lacks it is *reset*: its consumer reads all there is, and goes on from what the node has.
//! - *What is told is what the node has.* A consumer that comes from a node which was ahead and is told of a record here may
//!   see it go back. So with the first step here its position loses what this node lacks, in that partition: that is told
//!   again when it comes. Waiting for it instead could take as long as a cut.
//!
//! - *What expires is told when its time has come*, though no commit says so, by [`Expiries`]: where a consumer is connected at that
//!   moment, by that node's clock. Whoever is not hears of the commit that sweeps it.
//!
//! An interval of which a consumer has a part is told whole: an event may come again, and says what is so now.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use crate::context::{Dot, Seen, VersionVector};
use crate::delta::{Delta, RecordDelta};
use crate::ids::{Field, Namespace, PartitionId, RecordId};
use crate::keys;
use crate::partition::{self, LogEntry};
use crate::read::ReadAt;
use crate::row::FieldType;
use crate::store::{Family, StoreError, StoreRead};
use crate::token::Token;

/// What a consumer follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Followed {
    /// The namespace.
    pub namespace: Namespace,
    /// What keys begin with.
    pub prefix: String,
}

impl Followed {
    fn has(&self, record: &RecordId) -> bool {
        record.namespace == self.namespace && record.key.as_str().starts_with(&self.prefix)
    }
}

/// How much one step looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepLimits {
    /// Log entries that the position does not cover, at least 1.
    pub entries_max: usize,
    /// Bytes of those entries after which it ends.
    pub bytes_max: usize,
    /// Records told after which it ends. One entry is never divided.
    pub records_max: usize,
}

/// A record that changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The record.
    pub record: RecordId,
    /// The fields; `None` if it was cleared as a whole or got another time of expiry, so that any of its fields may be gone.
    pub fields: Option<BTreeSet<Field>>,
}

/// A consumer's place in the feed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cursor {
    position: Token,
    /// The partition that is looked at first: a busy one does not keep the others waiting.
    next: u16,
}

/// What a look found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// The log of a partition does not reach back to the position: read everything, then go on from the new one.
    Reset(PartitionId),
    /// A step: the records that changed, each once. None, if what was passed over is not followed.
    Step(Vec<Change>),
}

impl Cursor {
    /// A place to begin: what the consumer has.
    pub fn new(position: Token) -> Self {
        Self { position, next: 0 }
    }

    /// What the consumer has once it has handled all that was found. It may be less than it was.
    pub fn position(&self) -> &Token {
        &self.position
    }

    /// Reads on in the next partition in which there is something, and moves the position. `None`: in none there is.
    pub fn look(
        &mut self,
        store: &impl StoreRead,
        partitions: u16,
        followed: &Followed,
        limits: StepLimits,
    ) -> Result<Option<Found>, StoreError> {
        let first = self.next % partitions;
        for partition in (first..partitions).chain(0..first).map(PartitionId) {
            let seen = self.position.seen(partition);
            let Some((found, position)) = read_on(store, partition, seen.vector(), followed, limits)? else {
                continue;
            };
            self.position.replace(partition, Seen::all_of(position));
            self.next = partition.0 + 1;
            return Ok(Some(found));
        }
        Ok(None)
    }
}

/// How far a consumer was told of what has expired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expiries {
    /// What expired up to here was told, in milliseconds since 1970.
    told_ms: u64,
    /// What expires up to here is being told.
    until_ms: u64,
    /// From where on.
    partition: u16,
    from: Vec<u8>,
}

impl Expiries {
    /// Of what expires from a time on.
    pub fn since(now_ms: u64) -> Self {
        Self { told_ms: now_ms, until_ms: now_ms, partition: 0, from: Vec::new() }
    }

    /// Up to so many records whose times have come. Fewer than that: all there are by now.
    pub fn look(
        &mut self,
        store: &impl StoreRead,
        at: ReadAt,
        followed: &Followed,
        most: usize,
    ) -> Result<Vec<Change>, StoreError> {
        let mut found = Vec::new();
        if self.partition == 0 && self.from.is_empty() {
            self.until_ms = at.now_ms.max(self.told_ms);
        }
        while self.partition < at.partitions {
            let partition = PartitionId(self.partition);
            if store.get(Family::Meta, &keys::has_expiries(partition))?.is_some() {
                let from = keys::due_from(partition, self.told_ms + 1).max(std::mem::take(&mut self.from));
                let mut outcome = Ok(());
                store.scan(
                    Family::Meta,
                    &from,
                    &keys::due_from(partition, self.until_ms + 1),
                    &mut |key, _| {
                        if found.len() >= most {
                            self.from = key.to_vec();
                            return ControlFlow::Break(());
                        }
                        match keys::parse_due(key) {
                            Ok((_, record)) if followed.has(&record) => {
                                found.push(Change { record, fields: None });
                            }
                            Ok(_) => {}
                            Err(error) => outcome = Err(StoreError::damaged("meta: due")(error)),
                        }
                        ControlFlow::Continue(())
                    },
                )?;
                outcome?;
                if !self.from.is_empty() {
                    return Ok(found);
                }
            }
            self.partition += 1;
        }
        *self = Self::since(self.until_ms);
        Ok(found)
    }
}

/// Reads on in a partition: what is found, and the position after it. `None`: the position covers all there is.
fn read_on(
    store: &impl StoreRead,
    partition: PartitionId,
    position: &VersionVector,
    followed: &Followed,
    limits: StepLimits,
) -> Result<Option<(Found, VersionVector)>, StoreError> {
    let context = partition::stored_context(store, partition)?;
    if position.covers_all(&context) {
        return Ok(None);
    }
    let both = position.iter().map(|dot| Dot { counter: dot.counter.min(context.get(dot.replica)), ..dot });
    let both = both.filter(|dot| dot.counter > 0).collect();
    let mut step = Step { position: both, changes: BTreeMap::new() };
    let Some(from) = partition::log_from(store, partition, &step.position)? else {
        return Ok(Some((Found::Reset(partition), context)));
    };
    let (mut entries, mut bytes) = (0, 0);
    let mut outcome = Ok(());
    partition::read_log(store, partition, from, |entry| {
        if entry.dots.covered_by(&step.position) {
            return ControlFlow::Continue(());
        }
        let is_full = entries >= limits.entries_max
            || bytes >= limits.bytes_max
            || step.changes.len() >= limits.records_max;
        if is_full {
            return ControlFlow::Break(());
        }
        entries += 1;
        bytes += entry.encoded.as_bytes().len();
        outcome = step.take(&entry, followed);
        if outcome.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    outcome?;
    Ok(Some(step.ended()))
}

struct Step {
    position: VersionVector,
    changes: BTreeMap<RecordId, Option<BTreeSet<Field>>>,
}

impl Step {
    fn take(&mut self, entry: &LogEntry, followed: &Followed) -> Result<(), StoreError> {
        let delta = Delta::decode(&entry.encoded).map_err(StoreError::damaged("log"))?;
        if !delta.dots.continues(&self.position) {
            let what = format!("the log tells {:?} after {:?}", delta.dots, self.position);
            return Err(StoreError::Inconsistent(what));
        }
        for record in delta.records.iter().filter(|record| followed.has(&record.record)) {
            self.change(record);
        }
        for dot in delta.dots.last_dots().filter(|dot| !self.position.covers(*dot)).collect::<Vec<_>>() {
            self.position.advance(dot);
        }
        Ok(())
    }

    fn change(&mut self, delta: &RecordDelta) {
        let changed = self.changes.entry(delta.record.clone()).or_insert_with(|| Some(BTreeSet::new()));
        for clear in &delta.clears {
            match (&clear.fields, &mut *changed) {
                (None, changed) => *changed = None,
                (Some(fields), Some(changed)) => changed.extend(fields.iter().cloned()),
                (Some(_), None) => {}
            }
        }
        // Another time of expiry may show or hide any field.
        if delta.fields.iter().any(|field| field.ty == FieldType::EXPIRY) {
            *changed = None;
        }
        // Of later versions: not shown.
        let shown = delta.fields.iter().filter(|field| field.ty.name().is_some());
        if let Some(changed) = changed {
            changed.extend(shown.map(|field| field.field.clone()));
        }
    }

    fn ended(self) -> (Found, VersionVector) {
        let told = |fields: &Option<BTreeSet<Field>>| fields.as_ref().is_none_or(|fields| !fields.is_empty());
        let changes = self.changes.into_iter().filter(|(_, fields)| told(fields));
        let changes = changes.map(|(record, fields)| Change { record, fields }).collect();
        (Found::Step(changes), self.position)
    }
}
