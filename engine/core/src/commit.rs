//! From operations to a delta.
//!
//! Operations act in the order given, each on what the ones before it left. Nothing is written meanwhile: the
//! edits gather here, slot by slot, and become one delta, or are dropped whole if one operation is refused.
//! The delta is then applied like any other (see [`crate::partition`]), so a node's own commits and its peers'
//! take one path to the rows.
//!
//! A commit that would change nothing (a removal of what is not there) yields no delta and takes no dot.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use crate::context::{Dot, VersionVector};
use crate::delta::{Clear, FieldDelta, Kill, RecordDelta, RowWrite};
use crate::ids::{Field, Member, PartitionId};
use crate::keys;
use crate::op::{Limits, Op, Reason, Refusal, Write};
use crate::row::{FieldType, Row};
use crate::store::{Family, StoreError, StoreRead};
use crate::types::{Unit, counter, presence, register};

/// Evaluates one write against what is seen: `own` is the commit's dot, `seen` the node's context.
/// `None` if it changes nothing.
pub fn evaluate(
    store: &impl StoreRead,
    partition: PartitionId,
    write: &Write,
    own: Dot,
    seen: &VersionVector,
    limits: &Limits,
) -> Result<Option<RecordDelta>, EvaluateError> {
    check_sizes(write, limits)?;
    let mut edit = RecordEdit {
        store,
        prefix: keys::record_prefix(partition, &write.record),
        own,
        cleared_all: false,
        cleared: BTreeSet::new(),
        types: BTreeMap::new(),
        units: BTreeMap::new(),
    };
    for (op, operation) in write.ops.iter().enumerate() {
        let refuse = |reason| EvaluateError::Refused(Refusal { op, reason });
        if let Some((field, ty)) = operation.target() {
            edit.check_type(field, ty)?.map_err(refuse)?;
            let creates = !matches!(operation, Op::Remove { .. } | Op::Disable { .. });
            if creates && !edit.field_lives(field)? && edit.live_fields()? >= limits.fields_max {
                return Err(refuse(Reason::TooManyFields { max: limits.fields_max }));
            }
        }
        edit.apply(operation)?;
    }
    Ok(edit.finish(write, seen))
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
        match operation {
            Op::Set { value, .. } if value.as_str().len() > limits.value_bytes_max => {
                let found = value.as_str().len();
                return refuse(Reason::ValueTooLarge { found, max: limits.value_bytes_max });
            }
            Op::Add { members, .. } | Op::Remove { members, .. } => {
                members_found += members.len();
                if members_found > limits.members_max {
                    return refuse(Reason::TooManyMembers { found: members_found, max: limits.members_max });
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// Which rows a unit holds: one slot, or all of a counter.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct UnitId {
    field: Field,
    ty: FieldType,
    slot: Vec<u8>,
}

struct RecordEdit<'s, S> {
    store: &'s S,
    prefix: Vec<u8>,
    own: Dot,
    cleared_all: bool,
    cleared: BTreeSet<Field>,
    /// The types of each field looked at that have rows stored.
    types: BTreeMap<Field, BTreeSet<FieldType>>,
    units: BTreeMap<UnitId, Unit>,
}

impl<S: StoreRead> RecordEdit<'_, S> {
    fn apply(&mut self, op: &Op) -> Result<(), StoreError> {
        let own = self.own;
        match op {
            Op::Set { field, value } => {
                register::set(self.unit(field, FieldType::REGISTER, register::SLOT)?, value);
            }
            Op::Incr { field, by } => {
                let unit = self.unit(field, FieldType::COUNTER, &[])?;
                counter::incr(unit, *by, own).map_err(StoreError::damaged("rows: counter"))?;
            }
            Op::Enable { field } => {
                presence::add(self.unit(field, FieldType::FLAG, presence::FLAG_SLOT)?, presence::FLAG_SLOT);
            }
            Op::Disable { field } => {
                presence::remove(
                    self.unit(field, FieldType::FLAG, presence::FLAG_SLOT)?,
                    presence::FLAG_SLOT,
                );
            }
            Op::Add { field, members } => self.each_member(field, members, presence::add)?,
            Op::Remove { field, members } => self.each_member(field, members, presence::remove)?,
            Op::Clear { field } => self.clear_field(field)?,
            Op::Delete => self.delete()?,
        }
        Ok(())
    }

    fn each_member(
        &mut self,
        field: &Field,
        members: &[Member],
        edit: impl Fn(&mut Unit, &[u8]),
    ) -> Result<(), StoreError> {
        for member in members {
            let slot = presence::member_slot(member);
            edit(self.unit(field, FieldType::SET, &slot)?, &slot);
        }
        Ok(())
    }

    /// The unit of a slot, read at its first use. What a clear of this commit covers is not seen any more.
    fn unit(&mut self, field: &Field, ty: FieldType, slot: &[u8]) -> Result<&mut Unit, StoreError> {
        let id = UnitId { field: field.clone(), ty, slot: slot.to_vec() };
        if !self.units.contains_key(&id) {
            let hidden = !ty.holds_sums() && self.is_cleared(field);
            let unit = if hidden { Unit::default() } else { Unit::new(self.stored_rows(field, ty, slot)?) };
            self.units.insert(id.clone(), unit);
        }
        Ok(self.units.entry(id).or_default())
    }

    /// The types of a field that have rows stored, dead sums included: one seek a type, once a commit.
    fn stored_types(&mut self, field: &Field) -> Result<&BTreeSet<FieldType>, StoreError> {
        if !self.types.contains_key(field) {
            let range = keys::field_prefix(&self.prefix, field);
            let end = keys::after_prefix(&range);
            let (mut types, mut from) = (BTreeSet::new(), range);
            while let Some((key, _)) = self.store.first(Family::Rows, &from, &end)? {
                let (_, ty, _) =
                    keys::parse_field(&self.prefix, &key).map_err(StoreError::damaged("rows"))?;
                types.insert(ty);
                from = keys::after_prefix(&keys::type_prefix(&self.prefix, field, ty));
            }
            self.types.insert(field.clone(), types);
        }
        Ok(self.types.entry(field.clone()).or_default())
    }

    fn is_cleared(&self, field: &Field) -> bool {
        self.cleared_all || self.cleared.contains(field)
    }

    fn stored_rows(&self, field: &Field, ty: FieldType, slot: &[u8]) -> Result<Vec<Row>, StoreError> {
        let mut range = keys::type_prefix(&self.prefix, field, ty);
        range.extend_from_slice(slot);
        let mut rows = Vec::new();
        self.each_row(&range, |row| {
            rows.push(row);
            ControlFlow::Continue(())
        })?;
        Ok(rows)
    }

    fn each_row(
        &self,
        range: &[u8],
        mut visit: impl FnMut(Row) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        let mut outcome = Ok(());
        self.store.scan_prefix(Family::Rows, range, &mut |key, value| match keys::parse_row(
            &self.prefix,
            key,
            value,
        ) {
            Ok(row) => visit(row),
            Err(error) => {
                outcome = Err(StoreError::damaged("rows")(error));
                ControlFlow::Break(())
            }
        })?;
        outcome
    }

    fn delete(&mut self) -> Result<(), StoreError> {
        for field in self.fields()? {
            self.clear_field(&field)?;
        }
        self.cleared_all = !self.cleared.is_empty();
        Ok(())
    }

    /// Clears every type of the field: sums by rows of their own, the rest by scope.
    fn clear_field(&mut self, field: &Field) -> Result<(), StoreError> {
        let own = self.own.replica;
        let stored = self.stored_types(field)?.clone();
        let counter_here = stored.contains(&FieldType::COUNTER)
            || self.units.keys().any(|id| id.field == *field && id.ty == FieldType::COUNTER);
        if counter_here {
            let unit = self.unit(field, FieldType::COUNTER, &[])?;
            counter::clear(unit, own).map_err(StoreError::damaged("rows: counter"))?;
        }
        self.units.retain(|id, _| id.field != *field || id.ty.holds_sums());
        if stored.iter().any(|ty| !ty.holds_sums()) {
            self.cleared.insert(field.clone());
        }
        Ok(())
    }

    /// Every field with rows stored or written by this commit.
    fn fields(&self) -> Result<BTreeSet<Field>, StoreError> {
        let mut fields: BTreeSet<Field> = self.units.keys().map(|id| id.field.clone()).collect();
        each_stored_field(self.store, &self.prefix, |field| {
            fields.insert(field);
            Ok(())
        })?;
        Ok(fields)
    }

    fn live_fields(&mut self) -> Result<usize, StoreError> {
        let mut live = 0;
        for field in self.fields()? {
            live += usize::from(self.field_lives(&field)?);
        }
        Ok(live)
    }

    fn field_lives(&mut self, field: &Field) -> Result<bool, StoreError> {
        Ok(self.first_live_type(field, None)?.is_some())
    }

    /// Refuses an operation where another type of that name is live and none has the operation's own.
    fn check_type(&mut self, field: &Field, wanted: FieldType) -> Result<Result<(), Reason>, StoreError> {
        Ok(match self.first_live_type(field, Some(wanted))? {
            Some(found) if found != wanted => {
                Err(Reason::TypeMismatch { field: field.clone(), found, wanted })
            }
            _ => Ok(()),
        })
    }

    /// A live type of the field as this commit leaves it: the preferred one if it lives.
    fn first_live_type(
        &mut self,
        field: &Field,
        preferred: Option<FieldType>,
    ) -> Result<Option<FieldType>, StoreError> {
        let mut types = self.stored_types(field)?.clone();
        types.extend(self.units.keys().filter(|id| id.field == *field).map(|id| id.ty));
        let mut types: Vec<FieldType> = types.into_iter().collect();
        types.sort_by_key(|&ty| Some(ty) != preferred);
        for ty in types {
            if self.type_lives(field, ty)? {
                return Ok(Some(ty));
            }
        }
        Ok(None)
    }

    fn type_lives(&mut self, field: &Field, ty: FieldType) -> Result<bool, StoreError> {
        if ty == FieldType::COUNTER {
            let own = self.own.replica;
            let unit = self.unit(field, ty, &[])?;
            return counter::lives(unit, own).map_err(StoreError::damaged("rows: counter"));
        }
        let mut units = self.units.iter().filter(|(id, _)| id.field == *field && id.ty == ty);
        if units.any(|(_, unit)| !unit.written().is_empty() || unit.any_seen_alive()) {
            return Ok(true);
        }
        if !ty.holds_sums() && self.is_cleared(field) {
            return Ok(false);
        }
        let killed = |row: &Row| {
            self.units
                .iter()
                .any(|(id, unit)| id.field == *field && id.ty == ty && unit.kills(&row.slot, row.dot))
        };
        let mut lives = false;
        self.each_row(&keys::type_prefix(&self.prefix, field, ty), |row| {
            lives = !killed(&row);
            if lives { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        Ok(lives)
    }

    fn finish(self, write: &Write, seen: &VersionVector) -> Option<RecordDelta> {
        let own = self.own.replica;
        let mut fields: Vec<FieldDelta> = Vec::new();
        for (id, unit) in self.units {
            let kills = unit.killed().filter(|(slot, dot)| {
                // A row of one's own is replaced by the one written, without a word.
                let replaced =
                    dot.replica == own && unit.written().iter().any(|(written, _)| written == slot);
                id.ty.keyed_by_dot() || !replaced
            });
            let kills: Vec<Kill> = kills.map(|(slot, dot)| Kill { slot: slot.to_vec(), dot }).collect();
            let rows = unit.written().iter().cloned().map(|(slot, payload)| RowWrite { slot, payload });
            let rows: Vec<RowWrite> = rows.collect();
            match fields.last_mut() {
                _ if kills.is_empty() && rows.is_empty() => {}
                Some(last) if last.field == id.field && last.ty == id.ty => {
                    last.kills.extend(kills);
                    last.rows.extend(rows);
                }
                _ => fields.push(FieldDelta { field: id.field, ty: id.ty, kills, rows }),
            }
        }
        let clear = (!self.cleared.is_empty()).then(|| Clear {
            fields: (!self.cleared_all).then(|| self.cleared.into_iter().collect()),
            seen: seen.clone(),
        });
        if clear.is_none() && fields.is_empty() {
            return None;
        }
        Some(RecordDelta { record: write.record.clone(), clear, fields })
    }
}

/// Calls back for each field of a record that has rows, in order: one seek a field.
pub(crate) fn each_stored_field(
    store: &impl StoreRead,
    record_prefix: &[u8],
    mut visit: impl FnMut(Field) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let end = keys::after_prefix(record_prefix);
    let mut from = record_prefix.to_vec();
    while let Some((key, _)) = store.first(Family::Rows, &from, &end)? {
        let (field, _, _) = keys::parse_field(record_prefix, &key).map_err(StoreError::damaged("rows"))?;
        from = keys::after_prefix(&keys::field_prefix(record_prefix, &field));
        visit(field)?;
    }
    Ok(())
}
