//! Estimates of uniques: from the histogram that the node keeps, or from rows.

use std::ops::ControlFlow;

use super::rows::{Budget, Record, Rows};
use super::{ReadAt, ReadError, Value};
use crate::derived::State;
use crate::ids::{Field, RecordId};
use crate::keys;
use crate::row::{FieldType, Row};
use crate::store::StoreRead;
use crate::types::unique::{self, Histogram};

/// Rows looked at for what is told beside an estimate that the node keeps.
const ROWS_SHOWN: usize = 64;

/// The greatest rank of each register that has one, in the order of registers: what a unique's estimate follows from.
pub fn ranks(
    store: &impl StoreRead,
    at: ReadAt,
    record: &RecordId,
    field: &Field,
) -> Result<Vec<(u16, u8)>, ReadError> {
    let budget = Budget::unlimited();
    let record = Record::open(store, at, record, &budget)?;
    let rows = record.rows(field, FieldType::UNIQUE);
    let mut ranks: Vec<(u16, u8)> = Vec::new();
    rows.each(rows.range(), &keys::after_prefix(rows.range()), |row| {
        let (register, rank) = unique::parse(&row.slot)?;
        match ranks.last_mut() {
            // In the order of keys a register's greatest rank comes last.
            Some(last) if last.0 == register => last.1 = rank,
            _ => ranks.push((register, rank)),
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(ranks)
}

/// A unique's value, and the latest of the rows looked at.
pub(super) fn view(rows: &Rows<'_, impl StoreRead>) -> Result<Option<(Value, Row)>, ReadError> {
    let kept = if rows.may_hide() { None } else { State::read(rows.store(), rows.range())? };
    let kept = kept.filter(State::is_whole).map(|state| state.histogram());
    let mut latest: Option<Row> = None;
    let mut histogram = Histogram::default();
    let (mut looked_at, mut last) = (0, (0, 0));
    rows.each(rows.range(), &keys::after_prefix(rows.range()), |row| {
        looked_at += 1;
        let (register, rank) = unique::parse(&row.slot)?;
        // In the order of keys a register's greatest rank comes last.
        let before = if last.0 == register { last.1 } else { 0 };
        histogram.change(before, rank);
        last = (register, rank);
        if latest.as_ref().is_none_or(|latest| latest.hlc < row.hlc) {
            latest = Some(row);
        }
        Ok(match kept.is_some() && looked_at >= ROWS_SHOWN {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        })
    })?;
    let histogram = kept.unwrap_or(histogram);
    Ok(latest.map(|row| (Value::Unique(histogram.estimate()), row)))
}
