//! Documents that are kept open: what happened since they were read is read from the log, not all of their changes again.
//!
//! To read a document of its rows costs a visit of each change. A kept document remembers its *place*: the context of its partition, and the
//! end of the log, in the state of the store in which it was last brought up. What holds:
//!
//! - A kept document is the one that [`super::changes`] tells in the same state of the store.
//! - Rows of a document change by commits, which are in the log, with three exceptions, and the place tells of each: a repair moves the
//!   context on by more than the log tells; a comparison with a peer puts back rows that were lost, and counts that in `meta`
//!   ([`keys::mended`]); time hides what expires, so a record with rows that have expired is read whole.
//! - Commits that only add changes are followed. Whatever else touches the document (a clear, another time of expiry) or makes its meaning
//!   depend on more than what it has (a change that is left out, or builds on hidden ones) has it read whole.

use std::ops::ControlFlow;

use super::rows::{Budget, Record};
use super::{DOCUMENT_BYTES_MAX, ReadAt, ReadError, documents};
use crate::context::VersionVector;
use crate::delta::{Delta, FieldDelta, RecordDelta};
use crate::document::{Document, DocumentError, Encoded, Selection};
use crate::ids::{Field, RecordId};
use crate::keys;
use crate::partition::{self, LogFloor};
use crate::row::FieldType;
use crate::store::{StoreError, StoreRead};
use crate::types::document::{self, Cleared};

/// Log entries that are read before the document is rather read whole.
const ENTRIES_MAX: u64 = 1_000;
/// Bytes of them.
const LOG_BYTES_MAX: usize = 1024 * 1024;

/// A document that is kept open.
#[derive(Debug, Default)]
pub struct Kept {
    document: Document,
    /// `None` if only a whole read brings it up.
    place: Option<Place>,
}

#[derive(Debug, Clone)]
struct Place {
    context: VersionVector,
    log_last: u64,
    mended: u64,
    /// What clears saw of the document.
    cleared: Cleared,
    /// Bytes of its changes, hidden ones too.
    bytes: usize,
}

/// Why a document cannot be brought up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BringError {
    /// It cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// It cannot be made of its changes.
    #[error(transparent)]
    Document(#[from] DocumentError),
}

/// What happened to a document since its place.
enum News {
    /// These changes were added, or none.
    Added(Vec<Encoded>),
    /// The log does not tell.
    Unknown,
}

impl Kept {
    /// Whether it was brought up in a later state of the store than this: to bring it to this would be to begin anew.
    pub fn is_ahead(
        &self,
        store: &impl StoreRead,
        at: ReadAt,
        record: &RecordId,
    ) -> Result<bool, StoreError> {
        let Some(place) = &self.place else { return Ok(false) };
        Ok(partition::progress(store, record.partition(at.partitions))?.1 < place.log_last)
    }

    /// The document, as it was last brought up.
    pub fn document(&mut self) -> &mut Document {
        &mut self.document
    }

    /// Only the document, for an edit; [`Self::edited`] goes on from it.
    pub fn into_parts(self) -> (Document, KeptPlace) {
        (self.document, KeptPlace(self.place))
    }

    /// The document with an edit that was committed, and the place that it had before.
    pub fn edited(document: Document, place: KeptPlace) -> Self {
        Self { document, place: place.0 }
    }

    /// Brings it to what the store has. Tells whether it went on from what it had; it begins anew otherwise. `large` is told the bytes of
    /// changes that are about to be taken in, before compression, and what it returns is held until they are. After an error it is to be
    /// dropped.
    pub fn bring<G>(
        &mut self,
        store: &impl StoreRead,
        at: ReadAt,
        (record, field): (&RecordId, &Field),
        mut large: impl FnMut(usize) -> G,
    ) -> Result<bool, BringError> {
        let raw = |encoded: &Encoded| encoded.change.raw_bytes;
        if let Some(place) = self.place.take()
            && let (News::Added(added), place) =
                news(store, at, record, field, place).map_err(ReadError::from)?
        {
            let new: Vec<&Encoded> =
                added.iter().filter(|encoded| !self.document.has(&encoded.change.hash)).collect();
            let _held = large(new.iter().copied().map(raw).sum());
            if self.document.apply(new).is_ok() {
                self.place = Some(place);
                return Ok(true);
            }
            self.document = Document::default();
        }
        let (selection, place) = whole(store, at, record, field)?;
        let new = selection.changes.iter().map(|selected| &selected.encoded);
        let bytes = new.filter(|encoded| !self.document.has(&encoded.change.hash)).map(raw).sum();
        let _held = large(bytes);
        let goes_on = self.document.bring(&selection.changes)?;
        self.place = place.filter(|_| selection.is_whole);
        Ok(goes_on)
    }
}

/// The place of a document that is being edited.
#[derive(Debug, Default)]
pub struct KeptPlace(Option<Place>);

/// All changes, and the place; `None` if what follows cannot be followed.
fn whole(
    store: &impl StoreRead,
    at: ReadAt,
    record: &RecordId,
    field: &Field,
) -> Result<(Selection, Option<Place>), ReadError> {
    let budget = Budget::unlimited();
    let opened = Record::open(store, at, record, &budget)?;
    let rows = opened.rows(field, FieldType::DOCUMENT);
    let found = documents::found(&rows, None)?;
    let id = record.partition(at.partitions);
    let (context, log_last) = partition::progress(store, id)?;
    let place = Place {
        context,
        log_last,
        mended: partition::read_mended(store, id)?,
        cleared: found.cleared,
        bytes: found.bytes,
    };
    Ok((found.selection, (rows.hidden_before() == 0).then_some(place)))
}

/// What the log tells, and the place after it.
fn news(
    store: &impl StoreRead,
    at: ReadAt,
    record: &RecordId,
    field: &Field,
    mut place: Place,
) -> Result<(News, Place), StoreError> {
    let id = record.partition(at.partitions);
    let hidden = partition::read_expiry(store, &keys::record_prefix(id, record))?.hidden_before(at.now_ms);
    let (context, log_last) = partition::progress(store, id)?;
    let is_far = log_last.checked_sub(place.log_last).is_none_or(|entries| entries > ENTRIES_MAX);
    if hidden > 0 || partition::read_mended(store, id)? != place.mended || is_far {
        return Ok((News::Unknown, place));
    }
    if context == place.context {
        return Ok((News::Added(Vec::new()), place));
    }
    let from = place.log_last + 1;
    let floor = LogFloor::read(store, id)?;
    if floor.first > from || !place.context.covers_all(&floor.floor) {
        return Ok((News::Unknown, place));
    }
    let (mut added, mut bytes) = (Some(Vec::new()), 0);
    let mut outcome = Ok(());
    partition::read_log(store, id, from, |entry| {
        bytes += entry.encoded.as_bytes().len();
        let told = Delta::decode(&entry.encoded).map_err(StoreError::damaged("log"));
        let followed = told.map(|delta| {
            if !delta.dots.continues(&place.context) {
                return false;
            }
            delta.dots.last_dots().for_each(|dot| {
                if !place.context.covers(dot) {
                    place.context.advance(dot);
                }
            });
            let mut of_record = delta.records.iter().filter(|told| told.record == *record);
            of_record.all(|told| follow(told, field, &mut place, &mut added))
        });
        match followed {
            Ok(true) if bytes <= LOG_BYTES_MAX => ControlFlow::Continue(()),
            Ok(_) => {
                added = None;
                ControlFlow::Break(())
            }
            Err(error) => {
                outcome = Err(error);
                ControlFlow::Break(())
            }
        }
    })?;
    outcome?;
    place.log_last = log_last;
    Ok(match added {
        Some(added) if place.context == context && place.bytes <= DOCUMENT_BYTES_MAX => {
            (News::Added(added), place)
        }
        _ => (News::Unknown, place),
    })
}

/// Takes in what a commit says of the record; `false` if that cannot be followed.
fn follow(told: &RecordDelta, field: &Field, place: &mut Place, added: &mut Option<Vec<Encoded>>) -> bool {
    let clears = told.clears.iter().any(|clear| clear.takes_from(field));
    if clears || told.fields.iter().any(|told| told.ty == FieldType::EXPIRY) {
        return false;
    }
    let mut of_document =
        told.fields.iter().filter(|told| told.field == *field && told.ty == FieldType::DOCUMENT);
    of_document.all(|told| added.as_mut().is_some_and(|added| follow_rows(told, place, added)))
}

fn follow_rows(told: &FieldDelta, place: &mut Place, added: &mut Vec<Encoded>) -> bool {
    if !told.kills.is_empty() || !told.gone.is_empty() {
        return false;
    }
    for row in &told.rows {
        let is_change = matches!(document::parse_slot(&row.slot), Ok(Some(_)));
        if !is_change || place.cleared.covers(row.dot) {
            return false;
        }
        let Ok(encoded) = Encoded::parse(row.payload.clone()) else { return false };
        place.bytes += row.payload.len();
        added.push(encoded);
    }
    true
}
