//! From rows to values: what a reader sees of a record.
//!
//! Reads go to a consistent state of the store (a snapshot) and need nothing of the machine. A field is there
//! if one of its types has a live value; a record, if one of its fields is.
//!
//! | module | holds |
//! |---|---|
//! | this one | records and fields |
//! | `sets` | pages of sets, membership, sizes |
//! | `zsets`, `uniques` | the same of zsets, by member, rank and score; estimates of uniques |
//! | `documents` | the changes that make a document |
//! | `listing` | the keys of a namespace |
//! | `rows` | the one way to stored rows, and how much of them is looked at |

mod documents;
mod kept;
mod listing;
mod rows;
mod sets;
#[cfg(test)]
mod tests;
mod uniques;
mod zsets;

use std::ops::ControlFlow;

use crate::codec::CodecError;
use crate::context::Dot;
use crate::document::ChangeHash;
use crate::ids::{Field, RecordId};
use crate::keys;
use crate::partition;
use crate::row::{FieldType, Row};
use crate::store::{StoreError, StoreRead};
use crate::time::Hlc;
use crate::types::expiry::NEVER;
use crate::types::register;
use crate::types::score::Score;

pub use documents::{DOCUMENT_BYTES_MAX, changes, stored_changes};
pub use kept::{BringError, Kept, KeptPlace};
pub use listing::{has_keys, list_keys, list_namespaces};
pub use sets::{contains, kept_size, members, size};
pub use uniques::ranks;
pub use zsets::{Place, Ranked, ZPage, ZRange, scored, zmembers, zpage, zsize};

use rows::{Budget, Record, Rows, each_type};

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
    /// Members and scores by rank, the lowest first; `truncated` if there are more than asked for.
    Zset {
        /// The members and their scores.
        members: Vec<(String, Score)>,
        /// Whether members were left out.
        truncated: bool,
    },
    /// About how many distinct members were observed.
    Unique(u64),
    /// A document.
    Document(DocumentValue),
}

/// A document's value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DocumentValue {
    /// There is one: somebody is to open it ([`Kept`], or [`changes`]).
    Unopened,
    /// As it is shown, once somebody has.
    Shown {
        /// Compact JSON.
        json: String,
        /// The changes that no other one builds on.
        heads: Vec<ChangeHash>,
    },
}

/// Where and when something is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadAt {
    /// How many partitions the cluster has.
    pub partitions: u16,
    /// The node's time, in milliseconds since 1970: what has expired by then is absent.
    pub now_ms: u64,
}

/// How much of a record is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadLimits {
    /// The most members of each set and zset: the others are left out.
    pub members_max: usize,
    /// The most bytes of values, siblings and members in all: what is larger is not read.
    pub bytes_max: usize,
}

impl ReadLimits {
    /// Everything.
    pub const NONE: Self = Self { members_max: usize::MAX, bytes_max: usize::MAX };
}

/// Why a record was not read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// More bytes than asked for; or too much that was cleared and is not yet swept lies before it: a set is then read in
    /// pages, or later.
    #[error("there are more than {max} bytes to read")]
    TooLarge {
        /// The limit.
        max: usize,
    },
    /// A large zset's order by score is being made, or waits until what has expired is swept.
    #[error("the order by score is being made: try again in a while, or read by member")]
    Unordered,
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

/// How long a page may be, and what it may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageLimits {
    /// The most names on it; at least 1 is shown.
    pub items_max: usize,
    /// The most bytes of names on it; at least one name is shown.
    pub bytes_max: usize,
    /// How many rows and marks are looked at before the page ends, whatever it shows by then. What was begun is
    /// finished: the rows of one member, or of one record.
    pub rows_max: usize,
}

impl PageLimits {
    /// Whether there is no place for one more item, which makes so many bytes with those before.
    fn is_full(&self, items: usize, bytes: usize) -> bool {
        items > 0 && (items >= self.items_max || bytes > self.bytes_max)
    }
}

/// A part of something long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<T> {
    /// In byte order. There may be fewer than asked for, even none, although there is a next page.
    pub items: Vec<T>,
    /// After what to go on; `None` if this was the last page. It need not be among the items.
    pub next: Option<T>,
}

/// Reads a record: its live fields by name, then in the order of precedence.
pub fn record(
    store: &impl StoreRead,
    at: ReadAt,
    record: &RecordId,
    limits: ReadLimits,
) -> Result<Vec<FieldView>, ReadError> {
    record_within(store, at, record, limits.members_max, &Budget::of_bytes(limits.bytes_max))
}

/// Reads records, each as [`record`] does, in the order given. They share the limit on bytes, to which their keys
/// count.
pub fn records(
    store: &impl StoreRead,
    at: ReadAt,
    records: &[RecordId],
    limits: ReadLimits,
) -> Result<Vec<Vec<FieldView>>, ReadError> {
    let budget = Budget::of_bytes(limits.bytes_max);
    let read = |record: &RecordId| {
        budget.take_bytes(record.key.as_str().len())?;
        record_within(store, at, record, limits.members_max, &budget)
    };
    records.iter().map(read).collect()
}

/// Reads one field: its live types in the order of precedence, so that the first is what a read by name gives.
pub fn field(
    store: &impl StoreRead,
    at: ReadAt,
    record: &RecordId,
    field: &Field,
    limits: ReadLimits,
) -> Result<Vec<FieldView>, ReadError> {
    let budget = Budget::of_bytes(limits.bytes_max);
    let record = Record::open(store, at, record, &budget)?;
    let range = keys::field_prefix(&record.prefix, field);
    let mut views = read_fields(&record, &range, limits.members_max)?;
    views.sort_by_key(|view| view.ty.read_precedence());
    Ok(views)
}

/// When a record is to expire, in milliseconds since 1970; `None` if it is not, or what it has was written since it did.
pub fn expires(store: &impl StoreRead, at: ReadAt, record: &RecordId) -> Result<Option<u64>, ReadError> {
    let partition = record.partition(at.partitions);
    let expiry = partition::read_expiry(store, &keys::record_prefix(partition, record))?;
    Ok(Some(expiry.at).filter(|time| *time > at.now_ms && *time != NEVER))
}

/// The types of a field that have a live value, in the order of precedence.
pub fn live_types(
    store: &impl StoreRead,
    at: ReadAt,
    record: &RecordId,
    field: &Field,
) -> Result<Vec<FieldType>, ReadError> {
    let budget = Budget::unlimited();
    let record = Record::open(store, at, record, &budget)?;
    let range = keys::field_prefix(&record.prefix, field);
    let mut types = Vec::new();
    each_type(&record, &range, |_, ty, rows| {
        if rows.live()? {
            types.push(ty);
        }
        Ok(ControlFlow::Continue(()))
    })?;
    types.sort_by_key(|ty| ty.read_precedence());
    Ok(types)
}

fn record_within(
    store: &impl StoreRead,
    at: ReadAt,
    record: &RecordId,
    members_max: usize,
    budget: &Budget,
) -> Result<Vec<FieldView>, ReadError> {
    let record = Record::open(store, at, record, budget)?;
    let mut views = read_fields(&record, &record.prefix, members_max)?;
    views.sort_by(|a, b| (&a.field, a.ty.read_precedence()).cmp(&(&b.field, b.ty.read_precedence())));
    Ok(views)
}

fn read_fields(
    record: &Record<'_, impl StoreRead>,
    range: &[u8],
    members_max: usize,
) -> Result<Vec<FieldView>, ReadError> {
    let mut views = Vec::new();
    each_type(record, range, |field, ty, rows| {
        let view = match ty {
            FieldType::REGISTER => register(&rows)?,
            FieldType::COUNTER => {
                rows.counter()?.and_then(|(sum, rows)| Some((Value::Counter(sum), latest(rows)?)))
            }
            FieldType::FLAG => latest(rows.all()?).map(|row| (Value::Flag, row)),
            FieldType::SET => set(&rows, members_max)?,
            FieldType::ZSET => zsets::view(&rows, members_max)?,
            FieldType::UNIQUE => uniques::view(&rows)?,
            FieldType::DOCUMENT => documents::view(&rows, &field)?,
            // Of a later version: kept and relayed, not read.
            _ => None,
        };
        if let Some((value, by)) = view {
            views.push(FieldView { field, ty, value, updated: by.dot, updated_at: by.hlc });
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(views)
}

fn latest(rows: Vec<Row>) -> Option<Row> {
    rows.into_iter().max_by_key(|row| row.hlc)
}

fn register(rows: &Rows<'_, impl StoreRead>) -> Result<Option<(Value, Row)>, ReadError> {
    let mut rows = rows.all()?;
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

fn set(rows: &Rows<'_, impl StoreRead>, members_max: usize) -> Result<Option<(Value, Row)>, ReadError> {
    let mut members: Vec<String> = Vec::new();
    let mut latest: Option<Row> = None;
    let mut truncated = false;
    rows.each(rows.range(), &keys::after_prefix(rows.range()), |row| {
        let member = sets::member_name(&row)?;
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

fn text(row: &Row) -> Result<String, StoreError> {
    String::from_utf8(row.payload.clone())
        .map_err(|error| StoreError::damaged("rows: register")(CodecError::Malformed(error.to_string())))
}
