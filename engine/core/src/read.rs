//! From rows to values: what a reader sees of a record.
//!
//! Reads go to a consistent state of the store (a snapshot) and need nothing of the machine. A field is there
//! if one of its types has a live value; a record, if one of its fields is.

use std::ops::ControlFlow;

use crate::codec::CodecError;
use crate::context::Dot;
use crate::ids::{Field, RecordId};
use crate::keys;
use crate::row::{FieldType, Row};
use crate::store::{Family, StoreError, StoreRead};
use crate::time::Hlc;
use crate::types::{counter, presence, register};

/// The most siblings of a register that a read returns.
pub const SIBLINGS_MAX: usize = 100;

/// A field's value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Compact JSON: the winner, and the other values that stand beside it (each once, sorted).
    Register {
        /// The value.
        value: String,
        /// The concurrent ones that it won against.
        siblings: Vec<String>,
    },
    /// The sum, within the limits of an i64.
    Counter(i64),
    /// Raised. A lowered flag has no value.
    Flag,
    /// Members in byte order; `truncated` if there are more than asked for.
    Set {
        /// The members.
        members: Vec<String>,
        /// Whether members were left out.
        truncated: bool,
    },
}

/// A live field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldView {
    /// Its name.
    pub field: Field,
    /// Its type.
    pub ty: FieldType,
    /// Its value.
    pub value: Value,
    /// The commit that decided the value (a register's winner), or the latest of those that made it.
    pub updated: Dot,
    /// That commit's stamp.
    pub updated_at: Hlc,
}

/// Reads a record: its live fields by name, then in the order of precedence. `members_max` bounds each set.
pub fn record(
    store: &impl StoreRead,
    partitions: u16,
    record: &RecordId,
    members_max: usize,
) -> Result<Vec<FieldView>, StoreError> {
    let prefix = keys::record_prefix(record.partition(partitions), record);
    let mut views = read_fields(store, &prefix, &prefix, members_max)?;
    views.sort_by(|a, b| (&a.field, a.ty.read_precedence()).cmp(&(&b.field, b.ty.read_precedence())));
    Ok(views)
}

/// Reads one field: its live types in the order of precedence, so that the first is what a read by name gives.
pub fn field(
    store: &impl StoreRead,
    partitions: u16,
    record: &RecordId,
    field: &Field,
    members_max: usize,
) -> Result<Vec<FieldView>, StoreError> {
    let prefix = keys::record_prefix(record.partition(partitions), record);
    let mut views = read_fields(store, &prefix, &keys::field_prefix(&prefix, field), members_max)?;
    views.sort_by_key(|view| view.ty.read_precedence());
    Ok(views)
}

fn read_fields(
    store: &impl StoreRead,
    record_prefix: &[u8],
    range: &[u8],
    members_max: usize,
) -> Result<Vec<FieldView>, StoreError> {
    let end = keys::after_prefix(range);
    let mut views = Vec::new();
    let mut from = range.to_vec();
    // Each round reads one field and type, and goes on after it.
    while let Some((key, _)) = store.first(Family::Rows, &from, &end)? {
        let (field, ty, _) = keys::parse_field(record_prefix, &key).map_err(StoreError::damaged("rows"))?;
        let range = keys::type_prefix(record_prefix, &field, ty);
        from = keys::after_prefix(&range);
        let rows = Rows { store, record_prefix, range: &range };
        let view = match ty {
            FieldType::REGISTER => rows.register()?,
            FieldType::COUNTER => rows.counter()?,
            FieldType::FLAG => {
                rows.all()?.into_iter().max_by_key(|row| row.hlc).map(|row| (Value::Flag, row))
            }
            FieldType::SET => rows.set(members_max)?,
            // Of a later version: kept and relayed, not read.
            _ => None,
        };
        if let Some((value, by)) = view {
            views.push(FieldView { field, ty, value, updated: by.dot, updated_at: by.hlc });
        }
    }
    Ok(views)
}

/// The rows of one field and type.
struct Rows<'a, S> {
    store: &'a S,
    record_prefix: &'a [u8],
    range: &'a [u8],
}

impl<S: StoreRead> Rows<'_, S> {
    fn register(&self) -> Result<Option<(Value, Row)>, StoreError> {
        let mut rows = self.all()?;
        let Some(winner) = register::winner(&rows) else { return Ok(None) };
        let winner = rows.swap_remove(winner);
        let value = text(&winner)?;
        let mut siblings = rows.iter().map(text).collect::<Result<Vec<_>, _>>()?;
        siblings.sort();
        siblings.dedup();
        siblings.retain(|sibling| *sibling != value);
        siblings.truncate(SIBLINGS_MAX);
        Ok(Some((Value::Register { value, siblings }, winner)))
    }

    fn counter(&self) -> Result<Option<(Value, Row)>, StoreError> {
        let rows = self.all()?;
        let value = counter::value(&rows).map_err(StoreError::damaged("rows: counter"))?;
        let latest = rows.into_iter().max_by_key(|row| row.hlc);
        Ok(value.zip(latest).map(|(value, row)| (Value::Counter(value), row)))
    }

    fn set(&self, members_max: usize) -> Result<Option<(Value, Row)>, StoreError> {
        let mut members: Vec<String> = Vec::new();
        let mut latest: Option<Row> = None;
        let mut truncated = false;
        self.each(|row| {
            let Some(member) = presence::slot_member(&row.slot) else {
                return Err(CodecError::Malformed("a set's row names no member".into()));
            };
            // Rows of one member stand together.
            if members.last().is_none_or(|last| last != member) {
                if members.len() == members_max {
                    truncated = true;
                    return Ok(ControlFlow::Break(()));
                }
                members.push(member.to_string());
            }
            if latest.as_ref().is_none_or(|latest| latest.hlc < row.hlc) {
                latest = Some(row);
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(latest.map(|row| (Value::Set { members, truncated }, row)))
    }

    fn all(&self) -> Result<Vec<Row>, StoreError> {
        let mut rows = Vec::new();
        self.each(|row| {
            rows.push(row);
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(rows)
    }

    fn each(
        &self,
        mut visit: impl FnMut(Row) -> Result<ControlFlow<()>, CodecError>,
    ) -> Result<(), StoreError> {
        let mut outcome = Ok(());
        self.store.scan_prefix(Family::Rows, self.range, &mut |key, value| {
            let flow = keys::parse_row(self.record_prefix, key, value).and_then(&mut visit);
            flow.unwrap_or_else(|error| {
                outcome = Err(StoreError::damaged("rows")(error));
                ControlFlow::Break(())
            })
        })?;
        outcome
    }
}

fn text(row: &Row) -> Result<String, StoreError> {
    String::from_utf8(row.payload.clone())
        .map_err(|error| StoreError::damaged("rows: register")(CodecError::Malformed(error.to_string())))
}
