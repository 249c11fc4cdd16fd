//! From a delta to rows, marks and what the node keeps about fields.
//!
//! A receiver may have some of a delta's commits already (only of an interval, got in part by another way). So:
//!
//! - a row is written only if its commit is new here: of an old one the row is there, or something took it since;
//! - in each slot that the delta touches, a row of its commits that it does not list is removed.
//!
//! What is cleared goes at once where there is little of it; where there is much, a [`FieldState`] says which rows are dead,
//! and a job to sweep them is put on the partition's list.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use super::derived::{self, Source};
use super::{expiries, hidden};
use crate::commit::Found;
use crate::context::{Dot, DotRanges, VersionVector};
use crate::delta::{Clear, Delta, FieldDelta, RecordDelta};
use crate::fields::{FieldState, Tally};
use crate::ids::{Field, PartitionId, RecordId, ReplicaId};
use crate::keys;
use crate::row::{FieldType, Row, RowValue, each_row};
use crate::store::{Family, StoreError, StoreRead, Txn};
use crate::types::exact::Exact;
use crate::types::expiry::Expiry;
use crate::types::{counter, document, keyed, sums, zset};

const KEY_MARK: &[u8] = &[1];

/// Where a delta is applied.
pub(super) struct Place<'a> {
    pub(super) partition: PartitionId,
    /// The node's own replica.
    pub(super) own: ReplicaId,
    /// What is applied before the delta.
    pub(super) before: &'a VersionVector,
    /// Rows of a field that a clear looks at, and removes at once if there are no more.
    pub(super) clear_rows: usize,
    /// Whether some field may have a state.
    pub(super) has_states: bool,
    /// Whether some record may have an expiry.
    pub(super) has_expiries: bool,
    /// What was found of the delta's first records; what is to be known of the others is looked up.
    pub(super) known: &'a [Found],
}

/// What applying a delta left.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Left {
    /// A job to do.
    pub(super) job: bool,
    /// The state of a field.
    pub(super) state: bool,
    /// A record that has an expiry.
    pub(super) expiry: bool,
    /// A document with changes that are hidden.
    pub(super) hidden: bool,
}

/// Applies a delta's records.
pub(super) fn apply<S: StoreRead>(
    txn: &mut Txn<'_, S>,
    place: &Place<'_>,
    delta: &Delta,
) -> Result<Left, StoreError> {
    let overlaps = delta.dots.overlaps(place.before);
    let mut left = Left { state: place.has_states, expiry: place.has_expiries, ..Left::default() };
    for (i, record) in delta.records.iter().enumerate() {
        let known = place.known.get(i);
        let prefix = match known {
            Some(found) => found.prefix.clone(),
            None => keys::record_prefix(place.partition, &record.record),
        };
        let mut change = Change {
            txn: &mut *txn,
            place,
            prefix,
            dots: &delta.dots,
            overlaps,
            is_marked: known.map(|found| found.has_rows),
            wrote: false,
            removed: false,
            derives: BTreeMap::new(),
            left,
        };
        change.apply(record)?;
        left = change.left;
    }
    Ok(left)
}

/// Marks that a record has rows.
pub(super) fn mark<S: StoreRead>(txn: &mut Txn<'_, S>, record: &RecordId) -> Result<(), StoreError> {
    let mark = keys::key_mark(record);
    if txn.get(Family::Keys, &mark)?.is_none() {
        txn.put(Family::Keys, mark, KEY_MARK.to_vec());
    }
    Ok(())
}

/// Removes a record's mark, and what is kept about its fields, if it has no row any more, and none that may come to count.
pub(super) fn unmark_if_empty<S: StoreRead>(
    txn: &mut Txn<'_, S>,
    prefix: &[u8],
    record: &RecordId,
) -> Result<(), StoreError> {
    let end = keys::after_prefix(prefix);
    if txn.first(Family::Rows, prefix, &end)?.is_some() || txn.first(Family::Staged, prefix, &end)?.is_some()
    {
        return Ok(());
    }
    txn.delete(Family::Keys, keys::key_mark(record));
    let mut states = Vec::new();
    txn.scan_prefix(Family::Fields, prefix, &mut |key, _| {
        states.push(key.to_vec());
        ControlFlow::Continue(())
    })?;
    states.into_iter().for_each(|key| txn.delete(Family::Fields, key));
    derived::forget(txn, prefix)
}

/// The value of a slot's live rows, for a tally: of keyed increments what counts, of other types 0; `None` without rows.
pub(super) fn slot_value(ty: FieldType, rows: &[Row]) -> Result<Option<i64>, StoreError> {
    if ty == FieldType::KEYED {
        return keyed::value(rows).map_err(StoreError::damaged("rows: counter"));
    }
    Ok((!rows.is_empty()).then_some(0))
}

/// What the slots of a sum begin with, if this is the slot of a reset about the owner.
pub(super) fn reset_about(ty: FieldType, slot: &[u8], owner: ReplicaId) -> Option<&[u8]> {
    let (part, rest) = match ty {
        FieldType::COUNTER => (&[][..], slot),
        FieldType::ZSUM => zset::split(slot)?,
        _ => return None,
    };
    sums::parse_slot(rest).is_ok_and(|about| about == Some(owner)).then_some(part)
}

/// One record under a delta.
struct Change<'a, 't, S> {
    txn: &'a mut Txn<'t, S>,
    place: &'a Place<'a>,
    prefix: Vec<u8>,
    dots: &'a DotRanges,
    overlaps: bool,
    is_marked: Option<bool>,
    wrote: bool,
    removed: bool,
    /// Of fields of which something is derived: the members or registers that changed, and what was added to a member if that
    /// is all.
    derives: BTreeMap<(Field, FieldType), BTreeMap<Vec<u8>, Option<Exact>>>,
    left: Left,
}

impl<S: StoreRead> Change<'_, '_, S> {
    fn apply(&mut self, delta: &RecordDelta) -> Result<(), StoreError> {
        delta.clears.iter().try_for_each(|clear| self.clear(clear))?;
        delta.fields.iter().try_for_each(|field| self.field(field, &delta.clears))?;
        for ((field, ty), bases) in std::mem::take(&mut self.derives) {
            self.left.job |= Source { prefix: &self.prefix, field: &field, ty }.changed(self.txn, &bases)?;
        }
        if !self.wrote {
            if self.removed {
                unmark_if_empty(self.txn, &self.prefix, &delta.record)?;
            }
        } else if self.is_marked == Some(false) {
            self.txn.put(Family::Keys, keys::key_mark(&delta.record), KEY_MARK.to_vec());
        } else if self.is_marked.is_none() {
            mark(self.txn, &delta.record)?;
        }
        self.expiry(delta)
    }

    /// Has the record looked at when its time comes.
    fn expiry(&mut self, delta: &RecordDelta) -> Result<(), StoreError> {
        self.left.expiry |= delta.fields.iter().any(|field| field.ty == FieldType::EXPIRY);
        if !self.left.expiry {
            return Ok(());
        }
        let expiry = expiries::read(self.txn, &self.prefix)?;
        if expiry != Expiry::NONE && expiries::concerns(delta, expiry) {
            expiries::note(self.txn, self.place.partition, &self.prefix, &delta.record)?;
            self.left.job = true;
        }
        Ok(())
    }

    fn clear(&mut self, clear: &Clear) -> Result<(), StoreError> {
        let scopes = match &clear.fields {
            Some(fields) => fields.iter().map(|field| keys::field_prefix(&self.prefix, field)).collect(),
            None => vec![self.prefix.clone()],
        };
        for scope in scopes {
            let end = keys::after_prefix(&scope);
            let mut from = scope;
            while let Some((key, _)) = self.txn.first(Family::Rows, &from, &end)? {
                let (field, ty, _) =
                    keys::parse_field(&self.prefix, &key).map_err(StoreError::damaged("rows"))?;
                let range = keys::type_prefix(&self.prefix, &field, ty);
                from = keys::after_prefix(&range);
                if !ty.holds_sums() {
                    self.clear_type(&range, (&field, ty), &clear.seen)?;
                }
            }
        }
        Ok(())
    }

    fn clear_type(
        &mut self,
        range: &[u8],
        (field, ty): (&Field, FieldType),
        seen: &VersionVector,
    ) -> Result<(), StoreError> {
        let state = if self.left.state { FieldState::read(self.txn, range)? } else { None };
        let (mut taken, mut bases) = (Vec::new(), BTreeSet::new());
        let mut rows_left: Vec<Row> = Vec::new();
        let mut rows = 0;
        each_row(self.txn, &self.prefix, range, &keys::after_prefix(range), |key, row| {
            rows += 1;
            if rows > self.place.clear_rows {
                return ControlFlow::Break(());
            }
            if seen.covers(row.dot) || state.as_ref().is_some_and(|state| state.dead.covers(row.dot)) {
                taken.push(key.to_vec());
                bases.insert(derived::base_of(ty, &row.slot).to_vec());
            } else {
                rows_left.push(row);
            }
            ControlFlow::Continue(())
        })?;
        if rows > self.place.clear_rows {
            let mut state = state.unwrap_or_default();
            let all = seen.covers_all(self.place.before);
            state.clear(seen, all);
            if derived::is_kept(ty) {
                let source = Source { prefix: &self.prefix, field, ty: ty.whole() };
                if all { source.emptied(self.txn)? } else { source.restart(self.txn)? }
            }
            state.write(self.txn, range);
            self.txn.put(Family::Meta, keys::job(range), Vec::new());
            (self.left.job, self.left.state) = (true, true);
            return Ok(());
        }
        self.removed |= !taken.is_empty();
        taken.into_iter().for_each(|key| self.txn.delete(Family::Rows, key));
        if derived::is_kept(ty) && !bases.is_empty() {
            let derives = self.derives.entry((field.clone(), ty.whole())).or_default();
            derives.extend(bases.into_iter().map(|base| (base, None)));
        }
        if let Some(mut state) = state {
            let mut tally = Tally::default();
            for slot in rows_left.chunk_by(|a, b| a.slot == b.slot) {
                slot_value(ty, slot)?.into_iter().for_each(|value| tally.add(value));
            }
            state.looked_through(tally);
            state.write(self.txn, range);
        }
        Ok(())
    }

    fn field(&mut self, delta: &FieldDelta, clears: &[Clear]) -> Result<(), StoreError> {
        let range = keys::type_prefix(&self.prefix, &delta.field, delta.ty);
        if derived::is_kept(delta.ty) {
            self.derives(delta)?;
        }
        // Sums are neither swept nor counted.
        let keeps_state = self.left.state && !delta.ty.holds_sums();
        let mut state = if keeps_state { FieldState::read(self.txn, &range)? } else { None };
        if state.is_none() && delta.ty == FieldType::KEYED && !delta.rows.is_empty() {
            // A counter is read by what its keyed increments come to, which is kept from the first one on.
            if self.txn.first(Family::Rows, &range, &keys::after_prefix(&range))?.is_none() {
                state = Some(FieldState::counted_from_nothing());
                self.left.state = true;
            }
        }
        let slots = if state.is_some() || self.overlaps { touched(delta) } else { BTreeSet::new() };
        let mut before = Vec::new();
        if let Some(state) = &state {
            for slot in &slots {
                before.push(self.value(&range, delta.ty, slot, state)?);
            }
        }
        self.kill(delta)?;
        if self.overlaps {
            self.remove_unlisted(delta, &range, &slots)?;
        }
        self.write(delta, clears, &range)?;
        if let Some(mut state) = state {
            for (slot, before) in slots.iter().zip(before) {
                let after = self.value(&range, delta.ty, slot, &state)?;
                state.changed(slot, before, after);
            }
            state.write(self.txn, &range);
            if state.survey.is_some() {
                // What is staged here is not counted, and no job may have been put yet.
                self.txn.put(Family::Meta, keys::job(&range), Vec::new());
                self.left.job = true;
            }
        }
        Ok(())
    }

    /// Notes what is to be derived anew. Before the rows are written.
    fn derives(&mut self, delta: &FieldDelta) -> Result<(), StoreError> {
        let only_adds = delta.ty == FieldType::ZSUM && delta.kills.is_empty() && delta.gone.is_empty();
        let mut changed: BTreeMap<Vec<u8>, Option<Exact>> = BTreeMap::new();
        for slot in touched(delta) {
            changed.insert(derived::base_of(delta.ty, slot).to_vec(), None);
        }
        if only_adds && !self.overlaps {
            // Rows of one member stand together, as its units do.
            for rows in delta
                .rows
                .chunk_by(|a, b| derived::base_of(delta.ty, &a.slot) == derived::base_of(delta.ty, &b.slot))
            {
                let [row] = rows else { continue };
                let base = derived::base_of(delta.ty, &row.slot);
                let is_sum = row.slot[base.len()..] == *counter::SUM_SLOT;
                let key = keys::row_key(&self.prefix, &delta.field, delta.ty, &row.slot, row.dot);
                let before = self.txn.get(Family::Rows, &key)?.filter(|_| is_sum);
                let Some(before) = before else { continue };
                let before = RowValue::decode(&before).map_err(StoreError::damaged("rows"))?;
                let added = zset::added(&before.payload, &row.payload);
                let added = added.map_err(StoreError::damaged("rows: zset"))?;
                // Twice in one delta, which no correct node does: all of it is looked at.
                let again = changed.insert(base.to_vec(), added.clone()).is_some_and(|known| known.is_some());
                if again {
                    changed.insert(base.to_vec(), None);
                }
            }
        }
        let derives = self.derives.entry((delta.field.clone(), delta.ty.whole())).or_default();
        for (base, added) in changed {
            // Of a member of which more changes, all is looked at.
            let added = if derives.contains_key(&base) { None } else { added };
            derives.insert(base, added);
        }
        Ok(())
    }

    fn kill(&mut self, delta: &FieldDelta) -> Result<(), StoreError> {
        for kill in &delta.kills {
            let key = keys::row_key(&self.prefix, &delta.field, delta.ty, &kill.slot, kill.dot);
            let Some(value) = self.txn.get(Family::Rows, &key)? else { continue };
            let row = RowValue::decode(&value).map_err(StoreError::damaged("rows"))?;
            if row.counter <= kill.dot.counter {
                self.txn.delete(Family::Rows, key);
                self.removed = true;
            }
        }
        Ok(())
    }

    fn remove_unlisted(
        &mut self,
        delta: &FieldDelta,
        range: &[u8],
        slots: &BTreeSet<&[u8]>,
    ) -> Result<(), StoreError> {
        let listed: BTreeSet<(&[u8], Dot)> =
            delta.rows.iter().map(|row| (row.slot.as_slice(), row.dot)).collect();
        let mut gone = Vec::new();
        for &slot in slots {
            let from = [range, slot].concat();
            each_row(self.txn, &self.prefix, &from, &keys::after_prefix(&from), |key, row| {
                if row.slot == slot && self.dots.contains(row.dot) && !listed.contains(&(slot, row.dot)) {
                    gone.push(key.to_vec());
                }
                ControlFlow::Continue(())
            })?;
        }
        self.removed |= !gone.is_empty();
        gone.into_iter().for_each(|key| self.txn.delete(Family::Rows, key));
        Ok(())
    }

    fn write(&mut self, delta: &FieldDelta, clears: &[Clear], range: &[u8]) -> Result<(), StoreError> {
        // No correct node lists a row that its delta clears. It is gone, whether the clear is done at once or put off.
        let clears: Vec<&Clear> = clears.iter().filter(|clear| clear.takes_from(&delta.field)).collect();
        let is_cleared =
            |dot: Dot| !delta.ty.holds_sums() && clears.iter().any(|clear| clear.seen.covers(dot));
        let is_new = |dot: Dot| !self.place.before.covers(dot) && !is_cleared(dot);
        for row in delta.rows.iter().filter(|row| is_new(row.dot)) {
            let key = keys::row_key(&self.prefix, &delta.field, delta.ty, &row.slot, row.dot);
            let value = RowValue::encode_parts(row.dot.counter, row.hlc, &row.payload);
            self.txn.put(Family::Rows, key, value);
            self.wrote = true;
            if delta.ty == FieldType::DOCUMENT && row.slot == document::CLEAR_SLOT {
                hidden::note(self.txn, range)?;
                self.left.hidden = true;
            }
            if row.dot.replica != self.place.own
                && let Some(part) = reset_about(delta.ty, &row.slot, self.place.own)
            {
                // Somebody cleared what this node counted: it will fold that in.
                self.txn.put(Family::Meta, keys::job_of(range, part), Vec::new());
                self.left.job = true;
            }
        }
        Ok(())
    }

    fn value(
        &self,
        range: &[u8],
        ty: FieldType,
        slot: &[u8],
        state: &FieldState,
    ) -> Result<Option<i64>, StoreError> {
        let from = [range, slot].concat();
        let mut live = Vec::new();
        each_row(self.txn, &self.prefix, &from, &keys::after_prefix(&from), |_, row| {
            if row.slot == slot && !state.dead.covers(row.dot) {
                live.push(row);
            }
            ControlFlow::Continue(())
        })?;
        slot_value(ty, &live)
    }
}

/// The slots that a delta touches.
fn touched(delta: &FieldDelta) -> BTreeSet<&[u8]> {
    let kills = delta.kills.iter().map(|kill| kill.slot.as_slice());
    let rows = delta.rows.iter().map(|row| row.slot.as_slice());
    kills.chain(rows).chain(delta.gone.iter().map(Vec::as_slice)).collect()
}
