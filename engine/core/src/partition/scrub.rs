//! Putting back rows that a partition should have and has not: what a scrub finds by comparing with a peer.
//!
//! Rows are a function of the commits applied ([`crate::partition`]). So a row that a peer has live, whose context covers all
//! that was applied here at some moment, was live here at that moment, if its dot was covered here. If it is not there, it was
//! lost: by a disk, a bug, a hand.
//!
//! Invariant: *what was removed does not come back.* Between that moment and the one at which a row is put back, commits may have
//! taken it. So the records that commits touch are noted meanwhile ([`Partition::watch`]), and their rows are left for
//! the next comparison.

use std::collections::{BTreeMap, BTreeSet};

use super::Partition;
use super::apply::mark;
use crate::codec::CodecError;
use crate::context::VersionVector;
use crate::delta::RecordDelta;
use crate::fields::FieldState;
use crate::ids::{Field, PartitionId, RecordId};
use crate::keys;
use crate::store::{Entry, Family, StoreError, StoreRead, Txn};

/// Records that are noted; with more, all count as touched.
const WATCHED_RECORDS_MAX: usize = 65_536;

/// The records touched since a moment, by the first bytes of their rows' keys; `None`: all may be.
#[derive(Debug)]
pub struct Watch(Option<BTreeSet<Vec<u8>>>);

impl Watch {
    pub(super) fn touched(&mut self, partition: PartitionId, records: &[RecordDelta]) {
        let Some(touched) = &mut self.0 else { return };
        touched.extend(records.iter().map(|record| keys::record_prefix(partition, &record.record)));
        if touched.len() > WATCHED_RECORDS_MAX {
            self.0 = None;
        }
    }

    pub(super) fn all_touched(&mut self) {
        self.0 = None;
    }

    pub(super) fn may_have_touched(&self, record: &[u8]) -> bool {
        self.0.as_ref().is_none_or(|touched| touched.contains(record))
    }
}

/// What became of rows that a peer has and this node was thought not to have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reinstated {
    /// Rows that had been lost, and were put back.
    pub missing: u64,
    /// Rows that are another here, or dead, though both sides have seen the same. Nothing was changed: nobody can tell which
    /// of the two is right.
    pub altered: u64,
    /// Rows of records that were written to meanwhile, left for the next comparison.
    pub passed: u64,
    /// The fields of those that were missing or altered, each once.
    pub fields: BTreeSet<(RecordId, Field)>,
}

impl Partition {
    /// From here on notes which records are touched.
    pub fn watch(&mut self) {
        self.watch = Some(Watch(Some(BTreeSet::new())));
    }

    /// Ends [`Partition::watch`], and tells what was noted.
    pub fn unwatch(&mut self) -> Option<Watch> {
        self.watch.take()
    }

    /// Puts back rows of a peer that this node has lost. The peer had applied all of `covered`, and so had this node when
    /// [`Partition::watch`] was last called. `Err` in the result says why no correct peer sends them; then nothing changes.
    pub fn reinstate<S: StoreRead>(
        &mut self,
        txn: &mut Txn<'_, S>,
        partitions: u16,
        covered: &VersionVector,
        rows: Vec<Entry>,
    ) -> Result<Result<Reinstated, CodecError>, StoreError> {
        let checked = match self.check_rows(partitions, (&VersionVector::new(), covered), rows) {
            Ok(checked) => checked,
            Err(error) => return Ok(Err(error)),
        };
        let damaged = || StoreError::damaged("rows");
        let mut result = Reinstated::default();
        let mut ranges: BTreeMap<Vec<u8>, RecordId> = BTreeMap::new();
        for (key, value) in checked.into_rows() {
            let parts = keys::parse_row_key(&key).map_err(damaged())?;
            let watch = self.watch.as_ref();
            if watch.is_none_or(|watch| watch.may_have_touched(&key[..parts.record_bytes])) {
                result.passed += 1;
                continue;
            }
            let range = key[..parts.type_bytes].to_vec();
            let dot = keys::row_dot(&key, &value).map_err(damaged())?;
            let here = txn.get(Family::Rows, &key)?;
            let counter = match &here {
                Some(row) => keys::row_dot(&key, row).map_err(damaged())?.counter,
                None => 0,
            };
            // Of two rows with one key the later has replaced the earlier. So if this one is the later, it is the peer's that
            // was lost, and the peer finds that.
            if counter > dot.counter || here.as_ref() == Some(&value) {
                continue;
            }
            result.fields.insert((parts.record.clone(), parts.field.clone()));
            let is_dead = FieldState::read(txn, &range)?.is_some_and(|state| state.dead.covers(dot));
            if is_dead || counter == dot.counter {
                result.altered += 1;
                continue;
            }
            result.missing += 1;
            txn.put(Family::Rows, key, value);
            ranges.insert(range, parts.record);
        }
        if result.missing > 0 {
            count_mending(txn, self.id)?;
        }
        for (range, record) in ranges {
            mark(txn, &record)?;
            self.field_moved(txn, &range, false)?;
            self.has_jobs = true;
        }
        Ok(Ok(result))
    }
}

/// Has documents that are kept open be read anew: no commit tells of the rows.
fn count_mending<S: StoreRead>(txn: &mut Txn<'_, S>, id: PartitionId) -> Result<(), StoreError> {
    let times = read_mended(txn, id)?.wrapping_add(1);
    txn.put(Family::Meta, keys::mended(id), times.to_be_bytes().to_vec());
    Ok(())
}

/// How often rows that were lost have been put back in a partition.
pub(crate) fn read_mended(store: &impl StoreRead, id: PartitionId) -> Result<u64, StoreError> {
    let stored = store.get(Family::Meta, &keys::mended(id))?;
    Ok(stored.and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_be_bytes))
}
