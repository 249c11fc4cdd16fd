//! From rows to values: what a reader sees of a record.
//!
//! Reads go to a consistent state of the store (a snapshot) and need nothing of the machine. A field is there
//! if one of its types has a live value; a record, if one of its fields is.

use std::cell::Cell;
use std::ops::ControlFlow;

use crate::codec::CodecError;
use crate::context::{Dot, VersionVector};
use crate::fields::FieldState;
use crate::ids::{Field, RecordId};
use crate::keys;
use crate::row::{FieldType, Row};
use crate::store::{Family, StoreError, StoreRead};
use crate::time::Hlc;
use crate::types::{counter, keyed, presence, register};

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

/// How much of a record is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadLimits {
    /// The most members of each set: the others are left out.
    pub members_max: usize,
    /// The most bytes of values, siblings and members in all: a larger record is not read.
    pub bytes_max: usize,
}

impl ReadLimits {
    /// Everything.
    pub const NONE: Self = Self { members_max: usize::MAX, bytes_max: usize::MAX };
}

/// Why a record was not read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// More bytes than asked for.
    #[error("there are more than {max} bytes to read")]
    TooLarge {
        /// The limit.
        max: usize,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
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

/// Reads a record: its live fields by name, then in the order of precedence.
pub fn record(
    store: &impl StoreRead,
    partitions: u16,
    record: &RecordId,
    limits: ReadLimits,
) -> Result<Vec<FieldView>, ReadError> {
    let prefix = keys::record_prefix(record.partition(partitions), record);
    let mut views = read_fields(store, &prefix, &prefix, limits)?;
    views.sort_by(|a, b| (&a.field, a.ty.read_precedence()).cmp(&(&b.field, b.ty.read_precedence())));
    Ok(views)
}

/// Reads one field: its live types in the order of precedence, so that the first is what a read by name gives.
pub fn field(
    store: &impl StoreRead,
    partitions: u16,
    record: &RecordId,
    field: &Field,
    limits: ReadLimits,
) -> Result<Vec<FieldView>, ReadError> {
    let prefix = keys::record_prefix(record.partition(partitions), record);
    let mut views = read_fields(store, &prefix, &keys::field_prefix(&prefix, field), limits)?;
    views.sort_by_key(|view| view.ty.read_precedence());
    Ok(views)
}

fn read_fields(
    store: &impl StoreRead,
    record_prefix: &[u8],
    range: &[u8],
    limits: ReadLimits,
) -> Result<Vec<FieldView>, ReadError> {
    let end = keys::after_prefix(range);
    let left = Cell::new(limits.bytes_max);
    let mut views = Vec::new();
    let mut from = range.to_vec();
    // Each round reads one field and type, and goes on after it.
    while let Some((key, _)) = store.first(Family::Rows, &from, &end)? {
        let (field, ty, _) = keys::parse_field(record_prefix, &key).map_err(StoreError::damaged("rows"))?;
        let range = keys::type_prefix(record_prefix, &field, ty);
        from = keys::after_prefix(&range);
        let rows = Rows::new(store, record_prefix, &range, limits, &left)?;
        let view = match ty {
            FieldType::REGISTER => rows.register()?,
            FieldType::KEYED | FieldType::COUNTER => {
                if views.last().is_some_and(|view: &FieldView| view.field == field && view.ty == ty.whole()) {
                    // Read with the keyed increments, which come first.
                    continue;
                }
                let keyed = if ty == FieldType::KEYED { rows.all()? } else { Vec::new() };
                let range = keys::type_prefix(record_prefix, &field, FieldType::COUNTER);
                Rows::new(store, record_prefix, &range, limits, &left)?.counter(keyed)?
            }
            FieldType::FLAG => {
                rows.all()?.into_iter().max_by_key(|row| row.hlc).map(|row| (Value::Flag, row))
            }
            FieldType::SET => rows.set()?,
            // Of a later version: kept and relayed, not read.
            _ => None,
        };
        if let Some((value, by)) = view {
            views.push(FieldView { field, ty: ty.whole(), value, updated: by.dot, updated_at: by.hlc });
        }
    }
    Ok(views)
}

/// The rows of one field and type.
struct Rows<'a, S> {
    store: &'a S,
    record_prefix: &'a [u8],
    range: &'a [u8],
    limits: ReadLimits,
    /// Bytes that may still be read.
    left: &'a Cell<usize>,
    /// Rows that are cleared and not yet swept.
    dead: VersionVector,
}

impl<'a, S: StoreRead> Rows<'a, S> {
    fn new(
        store: &'a S,
        record_prefix: &'a [u8],
        range: &'a [u8],
        limits: ReadLimits,
        left: &'a Cell<usize>,
    ) -> Result<Self, StoreError> {
        let dead = FieldState::read(store, range)?.map(|state| state.dead).unwrap_or_default();
        Ok(Self { store, record_prefix, range, limits, left, dead })
    }

    fn register(&self) -> Result<Option<(Value, Row)>, ReadError> {
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

    fn counter(&self, keyed: Vec<Row>) -> Result<Option<(Value, Row)>, ReadError> {
        let rows = self.all()?;
        let damaged = || StoreError::damaged("rows: counter");
        let sums = [counter::value(&rows).map_err(damaged())?, keyed::value(&keyed).map_err(damaged())?];
        let value = sums.into_iter().flatten().reduce(i128::wrapping_add).map(counter::saturated);
        let latest = rows.into_iter().chain(keyed).max_by_key(|row| row.hlc);
        Ok(value.zip(latest).map(|(value, row)| (Value::Counter(value), row)))
    }

    fn set(&self) -> Result<Option<(Value, Row)>, ReadError> {
        let mut members: Vec<String> = Vec::new();
        let mut latest: Option<Row> = None;
        let mut truncated = false;
        self.each(|row| {
            let Some(member) = presence::slot_member(&row.slot) else {
                return Err(CodecError::Malformed("a set's row names no member".into()));
            };
            // Rows of one member stand together.
            if members.last().is_none_or(|last| last != member) {
                if members.len() == self.limits.members_max {
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

    fn all(&self) -> Result<Vec<Row>, ReadError> {
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
    ) -> Result<(), ReadError> {
        let mut outcome = Ok(());
        self.store.scan_prefix(Family::Rows, self.range, &mut |key, value| {
            let row = keys::parse_row(self.record_prefix, key, value);
            if row.as_ref().is_ok_and(|row| self.dead.covers(row.dot)) {
                return ControlFlow::Continue(());
            }
            // The field's name stands in every key, and once in the answer.
            let bytes = value.len() + key.len().saturating_sub(self.range.len());
            let Some(left) = self.left.get().checked_sub(bytes) else {
                outcome = Err(ReadError::TooLarge { max: self.limits.bytes_max });
                return ControlFlow::Break(());
            };
            self.left.set(left);
            let flow = row.and_then(&mut visit);
            flow.unwrap_or_else(|error| {
                outcome = Err(StoreError::damaged("rows")(error).into());
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
