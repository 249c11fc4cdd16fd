//! Reads of documents: the changes that make one.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use super::rows::{Budget, Record, Rows};
use super::{DocumentValue, ReadAt, ReadError, Value};
use crate::context::Seen;
use crate::document::{ChangeHash, Selected, Stored, select};
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
    selected(&record.rows(field, FieldType::DOCUMENT), cleared)
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
    let changes = selected(rows, None)?;
    let Some(latest) = changes.iter().max_by_key(|change| (change.hlc, change.dot)) else { return Ok(None) };
    let row = Row {
        field: field.clone(),
        ty: FieldType::DOCUMENT,
        slot: document::slot(&latest.encoded.change.hash),
        dot: latest.dot,
        hlc: latest.hlc,
        payload: Vec::new(),
    };
    Ok(Some((Value::Document(DocumentValue::Changes(changes)), row)))
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

fn selected(rows: &Rows<'_, impl StoreRead>, seen: Option<&Seen>) -> Result<Vec<Selected>, ReadError> {
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
    let mut cleared = Cleared::default();
    seen.into_iter().for_each(|seen| cleared.clear(seen));
    let stored = Stored::of_rows(stored, cleared, rows.hidden_before()).map_err(damaged())?;
    Ok(select(stored).map_err(damaged())?)
}
