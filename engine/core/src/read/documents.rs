//! Reads of documents: the changes that make one.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use super::rows::{Budget, Record, Rows};
use super::{DocumentValue, ReadAt, ReadError, Value};
use crate::context::Seen;
use crate::document::{ChangeHash, Selected, Selection, Stored, select};
use crate::ids::{Field, RecordId};
use crate::row::{FieldType, Row};
use crate::store::{StoreError, StoreRead};
use crate::types::document::{self, Cleared};
use crate::types::expiry;

/// The most bytes of a document's changes as stored, hidden ones too: a larger one is not read. Far above what clients may make.
pub const DOCUMENT_BYTES_MAX: usize = 256 * 1024 * 1024;

/// The changes that make a document, each after those that it builds on; none if there is no document. If `cleared` is given, as a clear leaves it that has seen that.
pub fn changes(
    store: &impl StoreRead,
    at: ReadAt,
    record: &RecordId,
    field: &Field,
    cleared: Option<&Seen>,
) -> Result<Vec<Selected>, ReadError> {
    let budget = Budget::unlimited();
    let record = Record::open(store, at, record, &budget)?;
    Ok(found(&record.rows(field, FieldType::DOCUMENT), cleared)?.selection.changes)
}

/// The changes that are stored of a document, also those that clears or the time hide.
pub fn stored_changes(
    store: &impl StoreRead,
    at: ReadAt,
    record: &RecordId,
    field: &Field,
) -> Result<BTreeSet<ChangeHash>, ReadError> {
    let budget = Budget::unlimited();
    let record = Record::open(store, at, record, &budget)?;
    let mut stored = BTreeSet::new();
    record.rows(field, FieldType::DOCUMENT).each_stored(|row| {
        stored.extend(document::parse_slot(&row.slot)?);
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(stored)
}

pub(super) fn view(
    rows: &Rows<'_, impl StoreRead>,
    field: &Field,
) -> Result<Option<(Value, Row)>, ReadError> {
    let (mut cleared, mut changes) = (Cleared::default(), BTreeMap::new());
    rows.each_stored(|row| {
        let Some(hash) = document::parse_slot(&row.slot)? else {
            // Rows of clears come first.
            cleared.join(&Cleared::decode(&row.payload)?);
            return Ok(ControlFlow::Continue(()));
        };
        // The first commit that brought it, and whether it counts.
        let by = (row.hlc, row.dot);
        let (first, counts) = changes.entry(hash).or_insert((by, false));
        *first = by.min(*first);
        *counts |= !cleared.covers(row.dot) && !expiry::hides(rows.hidden_before(), &row);
        Ok(ControlFlow::Continue(()))
    })?;
    let counting = changes.iter().filter(|(_, (_, counts))| *counts).map(|(hash, (first, _))| (*first, hash));
    let Some(((hlc, dot), hash)) = counting.max() else { return Ok(None) };
    let slot = document::slot(hash);
    let row = Row { field: field.clone(), ty: FieldType::DOCUMENT, slot, dot, hlc, payload: Vec::new() };
    Ok(Some((Value::Document(DocumentValue::Unopened), row)))
}

/// Whether some change counts.
pub(super) fn lives(rows: &Rows<'_, impl StoreRead>) -> Result<bool, ReadError> {
    let (mut cleared, mut lives) = (Cleared::default(), false);
    rows.each_stored(|row| {
        if document::is_clear(&row) {
            cleared.join(&Cleared::decode(&row.payload)?);
            return Ok(ControlFlow::Continue(()));
        }
        lives = !cleared.covers(row.dot) && !expiry::hides(rows.hidden_before(), &row);
        Ok(if lives { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    Ok(lives)
}

/// What the rows of a document come to.
pub(super) struct Found {
    pub(super) selection: Selection,
    /// What clears saw.
    pub(super) cleared: Cleared,
    /// Bytes of all changes.
    pub(super) bytes: usize,
}

/// As a clear leaves it that has seen what is given.
pub(super) fn found(rows: &Rows<'_, impl StoreRead>, seen: Option<&Seen>) -> Result<Found, ReadError> {
    let (mut stored, mut bytes) = (Vec::new(), 0);
    rows.each_stored(|row| {
        bytes += row.payload.len();
        stored.push(row);
        Ok(if bytes <= DOCUMENT_BYTES_MAX { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    if bytes > DOCUMENT_BYTES_MAX {
        return Err(ReadError::TooLarge { max: DOCUMENT_BYTES_MAX });
    }
    let damaged = || StoreError::damaged("rows: document");
    let mut cleared = Cleared::of_rows(&stored).map_err(damaged())?;
    seen.into_iter().for_each(|seen| cleared.clear(seen));
    let stored = Stored::of_rows(stored, &cleared, rows.hidden_before()).map_err(damaged())?;
    Ok(Found { selection: select(stored).map_err(damaged())?, cleared, bytes })
}
