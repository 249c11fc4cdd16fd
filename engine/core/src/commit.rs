//! From operations to a delta.
//!
//! Operations act in the order given, each on what the ones before it left. Nothing is written meanwhile: the
//! edits gather here, slot by slot, and become one delta, or are dropped whole if one operation is refused.
//! The delta is then applied like any other (see [`crate::partition`]), so a node's own commits and its peers'
//! take one path to the rows.
//!
//! A commit that would change nothing (a removal of what is not there) yields no delta and takes no dot.
//!
//! What a commit costs is linear in its operations and members, and does not depend on the size of the collections
//! that it touches: each slot is read once, and what is known of a field is kept while the commit is evaluated.

mod edit;

use edit::RecordEdit;

use crate::context::{Dot, VersionVector};
use crate::delta::RecordDelta;
use crate::ids::{Field, PartitionId, RecordId};
use crate::op::{Limits, Op, Reason, Refusal, Terms, Write};
use crate::row::FieldType;
use crate::store::{StoreError, StoreRead};
use crate::types::document::Cleared;

/// What a write changes.
#[derive(Debug)]
pub struct Evaluated {
    /// The change; `None` if there is none.
    pub change: Option<RecordDelta>,
    /// What was found of the record.
    pub found: Found,
}

/// What evaluating a write finds out of its record, so that applying the change need not.
#[derive(Debug)]
pub struct Found {
    /// The first bytes of its rows.
    pub prefix: Vec<u8>,
    /// Whether it has rows already, and so a mark.
    pub has_rows: bool,
}

/// Where and when a commit is made.
#[derive(Debug, Clone, Copy)]
pub struct At<'a> {
    /// The partition.
    pub partition: PartitionId,
    /// The commit's dot.
    pub own: Dot,
    /// What the node has applied.
    pub context: &'a VersionVector,
    /// Whether some field of the partition may have a state (see [`crate::fields`]).
    pub has_states: bool,
    /// Whether some record of the partition may have an expiry (see [`crate::types::expiry`]).
    pub has_expiries: bool,
    /// The time before which idempotency keys no longer count, in milliseconds since 1970.
    pub oldest_ms: u64,
    /// The node's time, in milliseconds since 1970.
    pub now_ms: u64,
}

/// Evaluates one write.
pub fn evaluate(
    store: &impl StoreRead,
    at: At<'_>,
    write: &Write,
    terms: &Terms,
    limits: &Limits,
) -> Result<Evaluated, EvaluateError> {
    check_sizes(write, limits)?;
    let mut edit = RecordEdit::new(store, &write.record, at, terms)?;
    for (op, operation) in write.ops.iter().enumerate() {
        let refuse = |reason| EvaluateError::Refused(Refusal { op, reason });
        if let Some((field, ty)) = operation.target() {
            edit.check_type(field, ty)?.map_err(refuse)?;
            if !operation.only_removes()
                && !edit.field_lives(field)?
                && edit.live_fields()? >= limits.fields_max
            {
                return Err(refuse(Reason::TooManyFields { max: limits.fields_max }));
            }
        }
        edit.apply(operation)?.map_err(refuse)?;
    }
    Ok(Evaluated { found: edit.found(), change: edit.finish(&write.record) })
}

/// What folding changes of a counter's sums, or of those of a zset's members by the first bytes of their slots; its change is
/// `None` if there is nothing to fold. See [`Sums::fold`](crate::types::sums::Sums::fold).
pub fn fold(
    store: &impl StoreRead,
    at: At<'_>,
    record: &RecordId,
    field: &Field,
    members: &[Vec<u8>],
) -> Result<Evaluated, StoreError> {
    let terms = Terms::default();
    let mut edit = RecordEdit::new(store, record, at, &terms)?;
    if members.is_empty() {
        edit.fold_sums(field)?;
    }
    for base in members {
        edit.fold_member(field, base)?;
    }
    Ok(Evaluated { found: edit.found(), change: edit.finish(record) })
}

/// What sweeping an expired record takes away. See [`RecordEdit::sweep`].
pub fn sweep(
    store: &impl StoreRead,
    at: At<'_>,
    record: &RecordId,
    hidden_before: u64,
    sums: &[(Field, FieldType, Vec<u8>)],
    (seen, last): (VersionVector, bool),
) -> Result<Evaluated, StoreError> {
    let terms = Terms::default();
    let mut edit = RecordEdit::new(store, record, At { has_expiries: false, ..at }, &terms)?;
    edit.sweep(hidden_before, sums, seen, last)?;
    Ok(Evaluated { found: edit.found(), change: edit.finish(record) })
}

/// What forgetting changes of a document takes away, at most so many rows: those that nobody needs of what was `cleared`, and with the last
/// of them the clears with dots that `stable` covers.
pub fn forget(
    store: &impl StoreRead,
    at: At<'_>,
    record: &RecordId,
    field: &Field,
    (cleared, stable): (&Cleared, &VersionVector),
    rows_max: usize,
) -> Result<Evaluated, StoreError> {
    let terms = Terms::default();
    let mut edit = RecordEdit::new(store, record, At { has_expiries: false, ..at }, &terms)?;
    edit.forget(field, cleared, stable, rows_max)?;
    Ok(Evaluated { found: edit.found(), change: edit.finish(record) })
}

/// Why a write was not evaluated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EvaluateError {
    /// An operation cannot be.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn check_sizes(write: &Write, limits: &Limits) -> Result<(), Refusal> {
    let found = write.ops.len();
    if found > limits.ops_max {
        return Err(Refusal {
            op: limits.ops_max,
            reason: Reason::TooManyOps { found, max: limits.ops_max },
        });
    }
    let mut members_found = 0;
    for (op, operation) in write.ops.iter().enumerate() {
        let refuse = |reason| Err(Refusal { op, reason });
        if let Op::Set { value, .. } = operation
            && value.as_str().len() > limits.value_bytes_max
        {
            let found = value.as_str().len();
            return refuse(Reason::ValueTooLarge { found, max: limits.value_bytes_max });
        }
        members_found += operation.members().0;
        if members_found > limits.members_max {
            return refuse(Reason::TooManyMembers { found: members_found, max: limits.members_max });
        }
    }
    Ok(())
}
