//! Parts of a set: a page of it, one member, the number of members.
//!
//! Members stand in byte order, and a page begins with a seek. So its cost depends on what it shows and on how many
//! rows there are of that, at most [`PageLimits::rows_max`], never on the size of the set.

use std::ops::ControlFlow;

use super::rows::{Budget, Ended, Record, Rows};
use super::{Page, PageLimits, ReadAt, ReadError};
use crate::codec::CodecError;
use crate::ids::{Field, Member, RecordId};
use crate::keys;
use crate::row::{FieldType, Row};
use crate::store::{StoreError, StoreRead};
use crate::types::presence;

/// The members after a name (exclusive; it need not be a member), in byte order.
pub fn members(
    store: &impl StoreRead,
    at: ReadAt,
    record: &RecordId,
    field: &Field,
    after: Option<&str>,
    limits: PageLimits,
) -> Result<Page<Member>, ReadError> {
    let budget = Budget::of_rows(limits.rows_max);
    let record = Record::open(store, at, record, &budget)?;
    let rows = record.rows(field, FieldType::SET);
    let from = match after {
        Some(after) => keys::after_prefix(&member_prefix(&rows, after)),
        None => rows.range().to_vec(),
    };
    let mut page = Page { items: Vec::<Member>::new(), next: None };
    let mut bytes = 0;
    let ended = rows.each(&from, &keys::after_prefix(rows.range()), |row| {
        let name = member_name(&row)?;
        // Rows of one member stand together.
        if page.items.last().is_some_and(|last| last.as_str() == name) {
            return Ok(ControlFlow::Continue(()));
        }
        bytes += name.len();
        if limits.is_full(page.items.len(), bytes) {
            return Ok(ControlFlow::Break(()));
        }
        page.items.push(member(name)?);
        Ok(ControlFlow::Continue(()))
    })?;
    page.next = match ended {
        Ended::Whole => None,
        Ended::Told => page.items.last().cloned(),
        Ended::AtBound(slot) => {
            let last = slot_name(&slot).and_then(member).map_err(StoreError::damaged("rows"))?;
            Some(last)
        }
    };
    Ok(page)
}

/// Whether a set has a member: one short range.
pub fn contains(
    store: &impl StoreRead,
    at: ReadAt,
    record: &RecordId,
    field: &Field,
    member: &Member,
) -> Result<bool, ReadError> {
    let budget = Budget::unlimited();
    let record = Record::open(store, at, record, &budget)?;
    let rows = record.rows(field, FieldType::SET);
    rows.any(&member_prefix(&rows, member.as_str()))
}

/// The number of a set's members as the node keeps it; `None` if it does not (see
/// [`crate::partition::Partition::count`]). Its cost does not depend on the size.
pub fn kept_size(
    store: &impl StoreRead,
    at: ReadAt,
    record: &RecordId,
    field: &Field,
) -> Result<Option<u64>, ReadError> {
    let budget = Budget::unlimited();
    let kept = Record::open(store, at, record, &budget)?.rows(field, FieldType::SET).counted()?;
    Ok(kept.map(|tally| tally.slots))
}

/// The number of a set's members, 0 if there is no such set: as the node keeps it, if it does; otherwise every row is
/// looked at.
pub fn size(store: &impl StoreRead, at: ReadAt, record: &RecordId, field: &Field) -> Result<u64, ReadError> {
    let budget = Budget::unlimited();
    let record = Record::open(store, at, record, &budget)?;
    let rows = record.rows(field, FieldType::SET);
    match rows.counted()? {
        Some(tally) => Ok(tally.slots),
        None => count(&rows),
    }
}

fn count(rows: &Rows<'_, impl StoreRead>) -> Result<u64, ReadError> {
    let (mut count, mut last) = (0, Vec::new());
    rows.each(rows.range(), &keys::after_prefix(rows.range()), |row| {
        // A slot of a set is never empty.
        if row.slot != last {
            count += 1;
            last = row.slot;
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(count)
}

/// The member that a set's row is about.
pub(super) fn member_name(row: &Row) -> Result<&str, CodecError> {
    slot_name(&row.slot)
}

fn slot_name(slot: &[u8]) -> Result<&str, CodecError> {
    presence::slot_member(slot).ok_or_else(|| CodecError::Malformed("a set's row names no member".into()))
}

fn member(name: &str) -> Result<Member, CodecError> {
    Member::new(name).map_err(|error| CodecError::Malformed(error.to_string()))
}

/// The first bytes of the keys of a member's rows.
fn member_prefix(rows: &Rows<'_, impl StoreRead>, member: &str) -> Vec<u8> {
    let mut prefix = rows.range().to_vec();
    prefix.extend_from_slice(&presence::slot_of(member));
    prefix
}
