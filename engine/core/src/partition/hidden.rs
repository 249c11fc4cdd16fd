//! Documents of which changes are hidden, and the end of those that nobody needs.
//!
//! A clear hides changes and takes none, since an edit made beside it may build on them ([`crate::types::document`]). They go once no such
//! edit can come any more: once all members have applied the clear, and this node all that they had applied then. Invariants:
//!
//! - *What has clears is on a list*, from the batch that brings one until a look finds none.
//! - *Nothing goes that is built on*, here or by what is still to come. Let `T` be what those clears saw that all members have applied. A
//!   commit that is not here yet was made where `T` was applied. What it accepts builds on changes that count there, so on some that `T`
//!   does not cover or, by induction over causal order, on changes of commits that are not here either, which do the same. So it needs, of
//!   what `T` covers, only what is needed by something here that `T` does not cover: and that stays.
//! - The clears go with the last of what they hid. While some of it is needed they stay: it must not count by itself when what needs it
//!   goes.
//! - *What was looked at in vain is not looked at again* until there is another clear: only that makes more of it unneeded.
//!
//! - A node that was restored from a backup does not know what it had applied: an edit that it makes before it has heard of a clear may build
//!   on what is gone. So what is hidden is kept for a time at least (`Sizes::forget_after_ms`).
//!
//! - *What needs it is here.* A disk may have lost a row of this node and of no other. So there is a walk only when the rows were compared
//!   with a peer's, and records that commits touched meanwhile, whose rows the comparison left alone, are passed by.
//!
//! Who wrote a clear ends it; other nodes do so if it has not for a while.

use std::ops::ControlFlow;

use super::Partition;
use super::scrub::Watch;
use super::sweep::{Own, Step};
use crate::codec;
use crate::context::VersionVector;
use crate::ids::{Field, PartitionId, RecordId};
use crate::keys;
use crate::row::{FieldType, Row, each_row};
use crate::store::{Family, StoreError, StoreRead, Txn};
use crate::types::document::{self, Cleared};

/// Of what stands on the list: the clears that were looked at in vain.
const VAIN_VERSION: u8 = 1;

/// A walk over the list.
#[derive(Debug)]
pub(super) struct Walk {
    /// What all members have applied.
    stable: VersionVector,
    /// Records to be passed by, if any.
    except: Option<Watch>,
    /// Where it goes on.
    cursor: Vec<u8>,
}

/// Changes that nobody needs any more, to be removed for good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forget {
    pub(super) record: RecordId,
    pub(super) field: Field,
    /// What was cleared, everywhere.
    pub(super) cleared: Cleared,
    /// The clears that saw it have dots that this covers.
    pub(super) stable: VersionVector,
}

/// Puts a document on the list.
pub(super) fn note<S: StoreRead>(txn: &mut Txn<'_, S>, range: &[u8]) -> Result<(), StoreError> {
    let key = keys::hidden(range);
    if txn.get(Family::Meta, &key)?.is_none_or(|vain| !vain.is_empty()) {
        txn.put(Family::Meta, key, Vec::new());
    }
    Ok(())
}

impl Forget {
    /// Nothing could be forgotten.
    pub(super) fn in_vain<S: StoreRead>(self, txn: &mut Txn<'_, S>, partition: PartitionId) {
        let prefix = keys::record_prefix(partition, &self.record);
        let range = keys::type_prefix(&prefix, &self.field, FieldType::DOCUMENT);
        txn.put(Family::Meta, keys::hidden(&range), codec::encode(VAIN_VERSION, &self.stable));
    }
}

impl Partition {
    /// Whether there may be documents with changes to forget.
    pub fn has_hidden(&self) -> bool {
        self.has_hidden
    }

    /// Has a job look through the list, given what all members have applied and this node knows that they have: it must have applied all
    /// that they told. `except` are records whose rows may be lacking here.
    pub fn forget_hidden(&mut self, stable: VersionVector, except: Option<Watch>) {
        if self.has_hidden && self.walk.is_none() {
            self.walk = Some(Walk { stable, except, cursor: Vec::new() });
            self.has_jobs = true;
        }
    }

    /// A step of the walk.
    pub(super) fn walk<S: StoreRead>(
        &mut self,
        txn: &mut Txn<'_, S>,
        now_ms: u64,
    ) -> Result<Option<Step>, StoreError> {
        let Some(mut walk) = self.walk.take() else { return Ok(None) };
        let all = keys::hidden(&keys::partition_prefix(self.id));
        let from = if walk.cursor.is_empty() { all.clone() } else { walk.cursor.clone() };
        let Some((key, vain)) = txn.first(Family::Meta, &from, &keys::after_prefix(&all))? else {
            self.has_hidden = txn.first(Family::Meta, &all, &keys::after_prefix(&all))?.is_some();
            return Ok(Some(Step::Worked));
        };
        let damaged = || StoreError::damaged("meta: hidden");
        let range = keys::parse_hidden(&key).map_err(damaged())?;
        let (record, field, _) = keys::parse_type_prefix(range).map_err(damaged())?;
        let mut clears: Vec<Row> = Vec::new();
        let from = [range, document::CLEAR_SLOT].concat();
        let prefix = keys::record_prefix(self.id, &record);
        if walk.except.as_ref().is_some_and(|records| records.may_have_touched(&prefix)) {
            walk.cursor = keys::after_prefix(&key);
            self.walk = Some(walk);
            return Ok(Some(Step::Worked));
        }
        each_row(txn, &prefix, &from, &keys::after_prefix(&from), |_, row| {
            clears.push(row);
            ControlFlow::Continue(())
        })?;
        if clears.is_empty() {
            txn.delete(Family::Meta, key.clone());
        }
        let (kept_ms, turn_ms) = (self.sizes.forget_after_ms, self.turn_ms(&record));
        let is_due = |row: &&Row| {
            let turn_ms = if row.dot.replica == self.replica { 0 } else { turn_ms };
            let from_ms = row.hlc.millis().saturating_add(kept_ms).saturating_add(turn_ms);
            walk.stable.covers(row.dot) && from_ms <= now_ms
        };
        let due: Vec<&Row> = clears.iter().filter(is_due).collect();
        let cleared = Cleared::of_rows(due.iter().copied()).map_err(damaged())?;
        let stable: VersionVector = due.iter().map(|row| row.dot).collect();
        // One that is begun is ended: the last step takes the clears.
        let in_vain = due.is_empty() || vain == codec::encode(VAIN_VERSION, &stable);
        walk.cursor = if in_vain { keys::after_prefix(&key) } else { key };
        self.walk = Some(walk);
        if in_vain {
            return Ok(Some(Step::Worked));
        }
        Ok(Some(Step::Own(Own::Forget(Forget { record, field, cleared, stable }))))
    }
}
