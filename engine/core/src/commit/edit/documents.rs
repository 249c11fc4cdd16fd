//! Documents under the operations of one commit. See [`crate::types::document`].

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use automerge::ChangeHash;

use super::{Alive, RecordEdit};
use crate::context::{Seen, VersionVector};
use crate::document::Encoded;
use crate::ids::Field;
use crate::keys;
use crate::op::Reason;
use crate::row::{FieldType, Row};
use crate::store::{StoreError, StoreRead};
use crate::types::document::{self, Cleared};
use crate::types::expiry;

const TYPE: FieldType = FieldType::DOCUMENT;

impl<S: StoreRead> RecordEdit<'_, S> {
    /// Adds changes, but for those that count already.
    pub(super) fn change(
        &mut self,
        field: &Field,
        changes: &[Encoded],
    ) -> Result<Result<(), Reason>, StoreError> {
        let given: BTreeSet<ChangeHash> = changes.iter().map(|encoded| encoded.change.hash).collect();
        let mut missing = BTreeSet::new();
        for Encoded { change, bytes } in changes {
            for dep in change.deps.iter().filter(|dep| !given.contains(dep)) {
                if !self.counts(field, dep)? {
                    missing.insert(*dep);
                }
            }
            if !self.counts(field, &change.hash)? {
                let slot = document::slot(&change.hash);
                document::add(self.unit(field, TYPE, &slot)?, slot.clone(), bytes.clone());
            }
        }
        Ok(match missing.is_empty() {
            true => Ok(()),
            false => {
                Err(Reason::MissingChanges { field: field.clone(), missing: missing.into_iter().collect() })
            }
        })
    }

    /// Hides what the client has seen of a document, if there is anything to hide: what has expired too, lest it come back with another
    /// time of expiry.
    pub(super) fn clear_document(&mut self, field: &Field) -> Result<(), StoreError> {
        if !self.rows_live(field, TYPE)? && !self.any_stored(field)? {
            return Ok(());
        }
        let seen = self.terms.seen.clone().unwrap_or_else(|| Seen::all_of(self.context.clone()));
        self.hide(field, &seen)
    }

    /// Hides those rows of a document of which an expired record shows nothing any more.
    pub(super) fn sweep_document(&mut self, field: &Field, hidden_before: u64) -> Result<(), StoreError> {
        let mut hidden = VersionVector::new();
        for row in self.stored_rows(field, TYPE, document::CHANGES)? {
            if expiry::hides(hidden_before, &row) && !hidden.covers(row.dot) {
                hidden.advance(row.dot);
            }
        }
        self.hide(field, &Seen::all_of(hidden))
    }

    /// Removes rows that nobody needs of what was cleared everywhere: see [`crate::partition`], `hidden`.
    pub(in crate::commit) fn forget(
        &mut self,
        field: &Field,
        cleared: &Cleared,
        stable: &VersionVector,
        rows_max: usize,
    ) -> Result<(), StoreError> {
        let range = keys::type_prefix(&self.prefix, field, TYPE);
        let (mut clears, mut covered, mut others) = (Vec::new(), Vec::new(), Vec::new());
        self.each_row(&range, &keys::after_prefix(&range), |_, row| {
            let rows = match (document::is_clear(&row), cleared.covers(row.dot)) {
                (true, _) => &mut clears,
                (false, true) => &mut covered,
                (false, false) => &mut others,
            };
            rows.push(row);
            ControlFlow::Continue(())
        })?;
        let needed = document::needed(&others, &covered).map_err(StoreError::damaged("rows: document"))?;
        let here: BTreeSet<&[u8]> = others.iter().map(|row| row.slot.as_slice()).collect();
        // What stands there by another row is not needed by this one.
        let is_needed = |row: &Row| needed.contains(&row.slot) && !here.contains(row.slot.as_slice());
        let mut gone: Vec<Row> = covered.iter().filter(|row| !is_needed(row)).cloned().collect();
        let is_all = gone.len() == covered.len() && gone.len() <= rows_max;
        gone.truncate(rows_max);
        if is_all {
            gone.extend(clears.into_iter().filter(|row| stable.covers(row.dot)));
        }
        let edit = self.stored_type(field, TYPE)?;
        for row in gone {
            let unit = edit.units.entry(row.slot.clone()).or_default();
            unit.see(row);
        }
        edit.units.values_mut().for_each(|unit| unit.kill(|_| true));
        Ok(())
    }

    /// Whether a change counts, as the commit leaves it so far.
    fn counts(&mut self, field: &Field, hash: &ChangeHash) -> Result<bool, StoreError> {
        Ok(super::unit_lives(self.unit(field, TYPE, &document::slot(hash))?))
    }

    /// Whether a change is stored that no clear has seen.
    fn any_stored(&mut self, field: &Field) -> Result<bool, StoreError> {
        self.stored_type(field, TYPE)?;
        let Some(edit) = self.fields.get(field).and_then(|edit| edit.types.get(&TYPE)) else {
            return Ok(false);
        };
        let range = [keys::type_prefix(&self.prefix, field, TYPE).as_slice(), document::CHANGES].concat();
        let mut any = false;
        self.each_row(&range, &keys::after_prefix(&range), |_, row| {
            any = !self.is_gone(edit, &row);
            if any { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        Ok(any)
    }

    fn hide(&mut self, field: &Field, seen: &Seen) -> Result<(), StoreError> {
        let mut cleared = self.stored_type(field, TYPE)?.cleared_dots.clone();
        cleared.clear(seen);
        document::hide(self.unit(field, TYPE, document::CLEAR_SLOT)?, &cleared);
        let edit = self.stored_type(field, TYPE)?;
        for (_, unit) in edit.units.iter_mut().filter(|(slot, _)| slot.as_slice() != document::CLEAR_SLOT) {
            unit.clear(|dot| cleared.covers(dot));
        }
        edit.cleared_dots = cleared;
        edit.living_slot = None;
        edit.alive = Alive::Unknown;
        Ok(())
    }

    /// What the clears among a document's stored rows saw.
    pub(super) fn cleared_document(&self, field: &Field) -> Result<Cleared, StoreError> {
        let rows = self.stored_rows(field, TYPE, document::CLEAR_SLOT)?;
        Cleared::of_rows(&rows).map_err(StoreError::damaged("rows: document"))
    }
}

/// Whether a row is one of changes that a clear has seen.
pub(super) fn is_cleared(cleared: &Cleared, row: &Row) -> bool {
    document::is_change(row) && cleared.covers(row.dot)
}

/// Whether a unit is that of a document's clears, which is no value.
pub(super) fn is_clears(ty: FieldType, slot: &[u8]) -> bool {
    ty == TYPE && slot == document::CLEAR_SLOT
}
