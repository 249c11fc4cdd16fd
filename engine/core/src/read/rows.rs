//! The one way from a field's stored rows to the rows that a reader sees.
//!
//! What holds:
//!
//! - Whatever a reader is told comes through [`Rows::each`]: what does not count although it is stored must be
//!   left out there, and is then left out everywhere. Documents alone take all that is stored ([`Rows::each_stored`]), since what
//!   counts may build on what does not.
//! - Rows that have expired (see [`crate::types::expiry`]) are left out, whether or not they have been swept.
//! - Rows that a clear took and no sweep has removed yet (see [`crate::fields`]) are left out. A visit ends where the field's
//!   state tells that only such rows follow; and a read with a limit on bytes passes over at most [`DEAD_ROWS_MAX`] of them.
//! - Every row that is looked at is counted, also one that is left out, against a [`Budget`] that all parts of a
//!   request share.

use std::cell::Cell;
use std::ops::ControlFlow;

use super::{ReadAt, ReadError, documents, zsets};
use crate::codec::CodecError;
use crate::fields::{FieldState, Tally};
use crate::ids::{Field, RecordId};
use crate::keys;
use crate::partition::{may_hide, read_expiry};
use crate::row::{FieldType, Row};
use crate::store::{Family, StoreError, StoreRead};
use crate::types::{counter, expiry, keyed};

/// Rows of keyed increments that are read for what is told beside a counter's value.
const KEYED_ROWS_SHOWN: usize = 256;

/// Rows, cleared or expired and not yet swept, that a read with a limit on bytes passes over: more are an error until they are swept.
pub(super) const DEAD_ROWS_MAX: usize = 256 * 1024;

/// How much may be looked at.
pub(super) struct Budget {
    bytes_max: usize,
    bytes_left: Cell<usize>,
    rows_max: usize,
    rows_seen: Cell<usize>,
    dead_rows_left: Cell<usize>,
}

impl Budget {
    /// Nothing is refused, and nothing cut.
    pub(super) fn unlimited() -> Self {
        Self::new(usize::MAX, usize::MAX, usize::MAX)
    }

    /// More bytes are an error, and so are, unless bytes are not limited, more than [`DEAD_ROWS_MAX`] dead rows.
    pub(super) fn of_bytes(bytes_max: usize) -> Self {
        let dead_rows_max = if bytes_max == usize::MAX { usize::MAX } else { DEAD_ROWS_MAX };
        Self::new(bytes_max, usize::MAX, dead_rows_max)
    }

    /// More rows end a visit, between two slots.
    pub(super) fn of_rows(rows_max: usize) -> Self {
        Self::new(usize::MAX, rows_max, usize::MAX)
    }

    fn new(bytes_max: usize, rows_max: usize, dead_rows_max: usize) -> Self {
        Self {
            bytes_max,
            bytes_left: Cell::new(bytes_max),
            rows_max,
            rows_seen: Cell::new(0),
            dead_rows_left: Cell::new(dead_rows_max),
        }
    }

    fn pass_dead_row(&self) -> Result<(), ReadError> {
        let left = self.dead_rows_left.get().checked_sub(1);
        self.dead_rows_left.set(left.ok_or(ReadError::TooLarge { max: self.bytes_max })?);
        Ok(())
    }

    pub(super) fn take_bytes(&self, bytes: usize) -> Result<(), ReadError> {
        let left = self.bytes_left.get().checked_sub(bytes);
        self.bytes_left.set(left.ok_or(ReadError::TooLarge { max: self.bytes_max })?);
        Ok(())
    }

    /// Rows looked at so far.
    pub(super) fn rows_seen(&self) -> usize {
        self.rows_seen.get()
    }
}

/// How a visit ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// All rows were visited.
    Whole,
    /// The visitor had enough.
    Told,
    /// The budget is spent; all rows up to this slot, and none after it, were looked at.
    AtBound(Vec<u8>),
}

/// A record as it is read at a time.
pub(super) struct Record<'a, S> {
    pub(super) store: &'a S,
    /// The first bytes of its keys.
    pub(super) prefix: Vec<u8>,
    pub(super) budget: &'a Budget,
    /// Rows stamped before this are absent: it has expired.
    hidden_before: u64,
    /// Whether there may be such rows.
    may_hide: bool,
}

impl<'a, S: StoreRead> Record<'a, S> {
    pub(super) fn open(
        store: &'a S,
        at: ReadAt,
        record: &RecordId,
        budget: &'a Budget,
    ) -> Result<Self, StoreError> {
        let partition = record.partition(at.partitions);
        let prefix = keys::record_prefix(partition, record);
        let expiry = read_expiry(store, &prefix)?;
        let hidden_before = expiry.hidden_before(at.now_ms);
        let may_hide = hidden_before > 0 && may_hide(store, partition, record, expiry, at.now_ms)?;
        Ok(Self { store, prefix, budget, hidden_before, may_hide })
    }

    /// The rows of a field and type.
    pub(super) fn rows(&self, field: &Field, ty: FieldType) -> Rows<'_, S> {
        let Self { store, ref prefix, budget, hidden_before, may_hide } = *self;
        let range = keys::type_prefix(prefix, field, ty);
        Rows { store, record_prefix: prefix, range, ty, budget, hidden_before, may_hide }
    }
}

/// The rows of one field and type.
pub(super) struct Rows<'a, S> {
    store: &'a S,
    record_prefix: &'a [u8],
    range: Vec<u8>,
    ty: FieldType,
    budget: &'a Budget,
    hidden_before: u64,
    may_hide: bool,
}

impl<'a, S: StoreRead> Rows<'a, S> {
    /// Of another type of the same field.
    pub(super) fn of(&self, ty: FieldType) -> Self {
        let range = [&self.range[..self.range.len() - 1], &[ty.0]].concat();
        Self { range, ty, ..*self }
    }

    /// Whether rows may be absent because they have expired: what is kept or derived of them does not count then.
    pub(super) fn may_hide(&self) -> bool {
        self.may_hide
    }

    /// Counts bytes of an answer that are not those of rows.
    pub(super) fn take_bytes(&self, bytes: usize) -> Result<(), ReadError> {
        self.budget.take_bytes(bytes)
    }

    pub(super) fn store(&self) -> &'a S {
        self.store
    }

    /// The first bytes of all keys.
    pub(super) fn range(&self) -> &[u8] {
        &self.range
    }

    /// All rows.
    pub(super) fn all(&self) -> Result<Vec<Row>, ReadError> {
        let mut rows = Vec::new();
        self.each(&self.range, &keys::after_prefix(&self.range), |row| {
            rows.push(row);
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(rows)
    }

    /// Whether some key that begins so has a row.
    pub(super) fn any(&self, prefix: &[u8]) -> Result<bool, ReadError> {
        let ended = self.each(prefix, &keys::after_prefix(prefix), |_| Ok(ControlFlow::Break(())))?;
        Ok(ended == Ended::Told)
    }

    /// Whether the rows make a value.
    pub(super) fn live(&self) -> Result<bool, ReadError> {
        match self.ty {
            FieldType::COUNTER => Ok(self.counter()?.is_some()),
            FieldType::ZSET => Ok(self.any(&self.range)? || zsets::any_incremented(self)?),
            FieldType::DOCUMENT => documents::lives(self),
            FieldType::REGISTER | FieldType::FLAG | FieldType::SET | FieldType::UNIQUE => {
                match self.counted()? {
                    Some(tally) => Ok(tally.slots > 0),
                    None => self.any(&self.range),
                }
            }
            // Of a later version: kept and relayed, not read.
            _ => Ok(false),
        }
    }

    /// Visits all rows that are stored, also those that do not count: a document may be made of what was cleared or has expired.
    pub(super) fn each_stored(
        &self,
        mut visit: impl FnMut(Row) -> Result<ControlFlow<()>, CodecError>,
    ) -> Result<(), ReadError> {
        let mut outcome = Ok(());
        self.store.scan_prefix(Family::Rows, &self.range, &mut |key, value| {
            let row = keys::parse_row(self.record_prefix, key, value).map_err(StoreError::damaged("rows"));
            let visited = row
                .map_err(ReadError::from)
                .and_then(|row| visit(row).map_err(|error| StoreError::damaged("rows")(error).into()));
            visited.unwrap_or_else(|error| {
                outcome = Err(error);
                ControlFlow::Break(())
            })
        })?;
        outcome
    }

    /// What was written before this, in milliseconds since 1970, has expired.
    pub(super) fn hidden_before(&self) -> u64 {
        self.hidden_before
    }

    /// A counter's value and its rows: those that hold sums, and of the keyed increments the first
    /// [`KEYED_ROWS_SHOWN`], since what they come to is kept.
    pub(super) fn counter(&self) -> Result<Option<(i64, Vec<Row>)>, ReadError> {
        let keyed = self.of(FieldType::KEYED);
        let mut rows = self.all()?;
        let damaged = || StoreError::damaged("rows: counter");
        let sums = counter::value(&rows).map_err(damaged())?;
        let (mut tally, kept) = (Tally::default(), keyed.counted()?);
        let mut slot: Vec<Row> = Vec::new();
        let mut shown = 0;
        keyed.each(&keyed.range, &keys::after_prefix(&keyed.range), |row| {
            if shown < KEYED_ROWS_SHOWN {
                shown += 1;
                rows.push(row.clone());
            } else if kept.is_some() {
                return Ok(ControlFlow::Break(()));
            }
            if slot.first().is_some_and(|first| first.slot != row.slot) {
                keyed::value(&std::mem::take(&mut slot))?.into_iter().for_each(|value| tally.add(value));
            }
            slot.push(row);
            Ok(ControlFlow::Continue(()))
        })?;
        keyed::value(&slot).map_err(damaged())?.into_iter().for_each(|value| tally.add(value));
        let tally = kept.unwrap_or(tally);
        let keyed = (tally.slots > 0).then_some(tally.sum);
        let value = sums.into_iter().chain(keyed).reduce(i128::wrapping_add).map(counter::saturated);
        Ok(value.map(|value| (value, rows)))
    }

    /// What the slots present come to, if the node keeps it.
    pub(super) fn counted(&self) -> Result<Option<Tally>, ReadError> {
        if self.may_hide() {
            return Ok(None);
        }
        Ok(FieldState::read(self.store, &self.range)?.and_then(|state| state.counted()))
    }

    /// Visits the rows with keys from `from` (inclusive) to `to` (exclusive), both within the range, in their order.
    pub(super) fn each(
        &self,
        from: &[u8],
        to: &[u8],
        mut visit: impl FnMut(Row) -> Result<ControlFlow<()>, CodecError>,
    ) -> Result<Ended, ReadError> {
        let state = if self.ty.holds_sums() { None } else { FieldState::read(self.store, &self.range)? };
        let state = state.unwrap_or_default();
        let live_end = state.live_end().map(|cursor| [&self.range, cursor].concat());
        let to = live_end.as_deref().map_or(to, |end| end.min(to));
        // Of a visit from the first row on it is known how many slots it finds.
        let is_known = from == self.range.as_slice() && !self.may_hide();
        let mut slots_left = state.live_slots().filter(|_| is_known);
        if from >= to || slots_left == Some(0) {
            return Ok(Ended::Whole);
        }
        let (mut live_slot, dead) = (None, state.dead);
        let is_absent = |row: &Row| dead.covers(row.dot) || expiry::hides(self.hidden_before, row);
        let mut outcome = Ok(Ended::Whole);
        let mut slot: Option<Vec<u8>> = None;
        self.store.scan(Family::Rows, from, to, &mut |key, value| {
            let row = keys::parse_row(self.record_prefix, key, value).map_err(StoreError::damaged("rows"));
            let row = row.map_err(ReadError::from).and_then(|row| {
                if is_absent(&row) {
                    self.budget.pass_dead_row()?;
                } else {
                    // The field's name stands in every key, and once in the answer.
                    self.budget.take_bytes(value.len() + key.len().saturating_sub(self.range.len()))?;
                }
                Ok(row)
            });
            let row = match row {
                Ok(row) => row,
                Err(error) => {
                    outcome = Err(error);
                    return ControlFlow::Break(());
                }
            };
            if slot.as_ref() != Some(&row.slot) {
                if self.budget.rows_seen() >= self.budget.rows_max
                    && let Some(slot) = slot.take()
                {
                    outcome = Ok(Ended::AtBound(slot));
                    return ControlFlow::Break(());
                }
                slot = Some(row.slot.clone());
            }
            self.budget.rows_seen.set(self.budget.rows_seen() + 1);
            if slots_left == Some(0) && live_slot.as_ref() != Some(&row.slot) {
                return ControlFlow::Break(());
            }
            if is_absent(&row) {
                return ControlFlow::Continue(());
            }
            if let Some(left) = &mut slots_left
                && live_slot.as_ref() != Some(&row.slot)
            {
                *left -= 1;
                live_slot = Some(row.slot.clone());
            }
            match visit(row) {
                Ok(ControlFlow::Continue(())) => ControlFlow::Continue(()),
                Ok(ControlFlow::Break(())) => {
                    outcome = Ok(Ended::Told);
                    ControlFlow::Break(())
                }
                Err(error) => {
                    outcome = Err(StoreError::damaged("rows")(error).into());
                    ControlFlow::Break(())
                }
            }
        })?;
        outcome
    }
}

/// Visits each field and type below `range` that has rows stored, whether or not they make a value: one seek each. The
/// parts of a counter or zset are visited as one.
pub(super) fn each_type<S: StoreRead>(
    record: &Record<'_, S>,
    range: &[u8],
    mut visit: impl FnMut(Field, FieldType, Rows<'_, S>) -> Result<ControlFlow<()>, ReadError>,
) -> Result<(), ReadError> {
    let end = keys::after_prefix(range);
    let mut from = range.to_vec();
    let mut visited: Vec<(Field, FieldType)> = Vec::new();
    while let Some((key, _)) = record.store.first(Family::Rows, &from, &end)? {
        let (field, ty, _) = keys::parse_field(&record.prefix, &key).map_err(StoreError::damaged("rows"))?;
        from = keys::after_prefix(&keys::type_prefix(&record.prefix, &field, ty));
        visited.retain(|(of, _)| *of == field);
        let whole = (field.clone(), ty.whole());
        if visited.contains(&whole) {
            continue;
        }
        visited.push(whole);
        let rows = record.rows(&field, ty.whole());
        if visit(field, ty.whole(), rows)?.is_break() {
            break;
        }
    }
    Ok(())
}
