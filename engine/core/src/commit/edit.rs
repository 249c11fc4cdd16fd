//! One record under the operations of one commit.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use crate::context::{Dot, VersionVector};
use crate::delta::{Clear, FieldDelta, Kill, RecordDelta, RowWrite};
use crate::fields::FieldState;
use crate::ids::{Field, Member, RecordId};
use crate::keys;
use crate::op::{Op, Reason, Terms};
use crate::row::{FieldType, Row};
use crate::store::{Family, StoreError, StoreRead};
use crate::time::Hlc;
use crate::types::{Unit, counter, keyed, presence, register};

/// Rows looked at to find out whether a field lives: more are passed over only where a large field was cleared a moment
/// ago and is not swept yet. Beyond it the field is taken to be empty, so an operation of another type is let through.
const LIVES_ROWS_MAX: usize = 65_536;

/// The record as the commit leaves it so far.
pub(super) struct RecordEdit<'s, S> {
    store: &'s S,
    prefix: Vec<u8>,
    own: Dot,
    /// What the node has applied.
    context: &'s VersionVector,
    terms: &'s Terms,
    /// Fields looked at.
    fields: BTreeMap<Field, FieldEdit>,
    /// Whether those are all that have rows.
    all_fields: bool,
    /// Whether the whole record was cleared.
    deleted: bool,
}

#[derive(Default)]
struct FieldEdit {
    types: BTreeMap<FieldType, TypeEdit>,
    /// Whether rows were taken by a clear's scope.
    cleared: bool,
    /// Whether some type lives, if that is known.
    lives: Option<bool>,
}

#[derive(Default)]
struct TypeEdit {
    /// Whether rows are stored that may be there still.
    stored: bool,
    /// Stored rows that are not there any more: cleared before and not yet swept.
    dead: VersionVector,
    /// Whether a clear of this commit took what the client has seen.
    cleared: bool,
    /// What the commit sees and changes: by slot, or all in one for a counter.
    units: BTreeMap<Vec<u8>, Unit>,
    /// A slot that lived when last looked at.
    living_slot: Option<Vec<u8>>,
    /// Whether one of them lives.
    alive: Alive,
}

/// What is known of the stored rows of a type: a commit only ever kills more of them.
#[derive(Default)]
enum Alive {
    /// Not looked at.
    #[default]
    Unknown,
    /// This commit kills all before this key.
    From(Vec<u8>),
    /// It kills them all.
    None,
}

impl<'s, S: StoreRead> RecordEdit<'s, S> {
    pub(super) fn new(
        store: &'s S,
        prefix: Vec<u8>,
        own: Dot,
        context: &'s VersionVector,
        terms: &'s Terms,
    ) -> Self {
        let fields = BTreeMap::new();
        Self { store, prefix, own, context, terms, fields, all_fields: false, deleted: false }
    }

    /// Applies an operation whose type fits.
    pub(super) fn apply(&mut self, op: &Op) -> Result<Result<(), Reason>, StoreError> {
        let (own, terms) = (self.own, self.terms);
        let sees = |dot: Dot| terms.seen.as_ref().is_none_or(|seen| seen.covers(dot));
        match op {
            Op::Set { field, value } => {
                register::set(self.unit(field, FieldType::REGISTER, register::SLOT)?, value, sees);
            }
            Op::Incr { field, by } => {
                let done = match terms.request {
                    Some(id) => keyed::incr(self.unit(field, FieldType::KEYED, &id.key)?, &id.key, *by),
                    None => counter::incr(self.unit(field, FieldType::COUNTER, &[])?, *by, own),
                };
                done.map_err(StoreError::damaged("rows: counter"))?;
            }
            Op::Enable { field } => {
                let slot = presence::FLAG_SLOT;
                presence::add(self.unit(field, FieldType::FLAG, slot)?, slot);
            }
            Op::Disable { field } => {
                let slot = presence::FLAG_SLOT;
                presence::remove(self.unit(field, FieldType::FLAG, slot)?, slot, sees);
            }
            Op::Add { field, members } => self.each_member(field, members, presence::add)?,
            Op::Remove { field, members } => {
                self.each_member(field, members, |unit, slot| presence::remove(unit, slot, sees))?;
            }
            Op::Clear { field } => return self.clear_field(field),
            Op::Delete => {
                self.load_all_fields()?;
                let fields: Vec<Field> = self.fields.keys().cloned().collect();
                for field in &fields {
                    if let Err(refused) = self.clear_field(field)? {
                        return Ok(Err(refused));
                    }
                }
                self.deleted = true;
            }
        }
        Ok(Ok(()))
    }

    /// Folds what is cleared of the own sum.
    pub(super) fn fold_sums(&mut self, field: &Field) -> Result<(), StoreError> {
        let own = self.own.replica;
        if self.field(field)?.types.contains_key(&FieldType::COUNTER) {
            let unit = self.unit(field, FieldType::COUNTER, &[])?;
            counter::fold(unit, own).map_err(StoreError::damaged("rows: counter"))?;
        }
        Ok(())
    }

    /// Turns those of the keyed increments that are the own replica's to fold into increments of its sum.
    pub(super) fn fold_keyed(&mut self, field: &Field, slots: &[Vec<u8>]) -> Result<(), StoreError> {
        let own = self.own;
        for slot in slots {
            let rows = self.stored_rows(field, FieldType::KEYED, slot)?;
            let Some(winner) = keyed::winner(&rows).filter(|row| row.dot.replica == own.replica) else {
                continue;
            };
            let by = keyed::decode(&winner.payload).map_err(StoreError::damaged("rows: counter"))?;
            self.unit(field, FieldType::KEYED, slot)?.kill(|_| true);
            let sums = self.unit(field, FieldType::COUNTER, &[])?;
            counter::incr(sums, by, own).map_err(StoreError::damaged("rows: counter"))?;
        }
        Ok(())
    }

    /// Refuses an operation where another type of that name is live and none has the operation's own.
    pub(super) fn check_type(
        &mut self,
        field: &Field,
        wanted: FieldType,
    ) -> Result<Result<(), Reason>, StoreError> {
        if self.type_lives(field, wanted)? {
            return Ok(Ok(()));
        }
        Ok(match self.first_live_type(field)? {
            Some(found) => Err(Reason::TypeMismatch { field: field.clone(), found, wanted }),
            None => Ok(()),
        })
    }

    /// Whether the field has a live value.
    pub(super) fn field_lives(&mut self, field: &Field) -> Result<bool, StoreError> {
        if let Some(lives) = self.field(field)?.lives {
            return Ok(lives);
        }
        let lives = self.first_live_type(field)?.is_some();
        self.field(field)?.lives = Some(lives);
        Ok(lives)
    }

    /// How many fields have a live value.
    pub(super) fn live_fields(&mut self) -> Result<usize, StoreError> {
        self.load_all_fields()?;
        let unknown = self.fields.iter().filter(|(_, edit)| edit.lives.is_none());
        let unknown: Vec<Field> = unknown.map(|(field, _)| field.clone()).collect();
        for field in unknown {
            self.field_lives(&field)?;
        }
        Ok(self.fields.values().filter(|edit| edit.lives == Some(true)).count())
    }

    /// What the commit changes, if anything.
    pub(super) fn finish(self, record: &RecordId) -> Option<RecordDelta> {
        let own = self.own.replica;
        let mut fields: Vec<FieldDelta> = Vec::new();
        let mut cleared: Vec<Field> = Vec::new();
        for (field, edit) in self.fields {
            if edit.cleared {
                cleared.push(field.clone());
            }
            for (ty, edit) in edit.types {
                let (mut kills, mut rows) = (Vec::new(), Vec::new());
                for unit in edit.units.into_values() {
                    // A row of one's own is replaced by the one written, without a word.
                    let replaced =
                        |slot: &[u8]| unit.written().iter().any(|(written, _)| written.as_slice() == slot);
                    let told = unit
                        .killed()
                        .filter(|(slot, dot)| ty.keyed_by_dot() || dot.replica != own || !replaced(slot));
                    kills.extend(told.map(|(slot, dot)| Kill { slot: slot.to_vec(), dot }));
                    let written = unit.written().iter().cloned();
                    // The stamp is drawn when the commit is known to change something.
                    let row =
                        |(slot, payload)| RowWrite { slot, dot: self.own, hlc: Hlc::default(), payload };
                    rows.extend(written.map(row));
                }
                if !kills.is_empty() || !rows.is_empty() {
                    fields.push(FieldDelta { field: field.clone(), ty, kills, rows, gone: Vec::new() });
                }
            }
        }
        if cleared.is_empty() && fields.is_empty() {
            return None;
        }
        let seen = self.terms.seen.as_ref().map_or(self.context, |seen| seen.vector());
        let scope = (!self.deleted).then(|| cleared.clone());
        let clear = (!cleared.is_empty()).then(|| Clear { fields: scope, seen: seen.clone() });
        Some(RecordDelta { record: record.clone(), clears: clear.into_iter().collect(), fields })
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

    /// Clears every type of the field: sums by rows of their own, the rest by scope.
    fn clear_field(&mut self, field: &Field) -> Result<Result<(), Reason>, StoreError> {
        let (own, terms) = (self.own.replica, self.terms);
        if self.field(field)?.types.contains_key(&FieldType::COUNTER) {
            let unit = self.unit(field, FieldType::COUNTER, &[])?;
            if let Some(seen) = &terms.seen
                && counter::is_beyond(unit, |dot| seen.covers(dot))
                    .map_err(StoreError::damaged("rows: counter"))?
            {
                return Ok(Err(Reason::StaleSeen { field: field.clone() }));
            }
            counter::clear(unit, own).map_err(StoreError::damaged("rows: counter"))?;
        }
        if terms.seen.as_ref().is_some_and(|seen| seen.cloud().next().is_some())
            && self.field(field)?.types.contains_key(&FieldType::REGISTER)
        {
            // A scope cannot say what was seen beyond a gap: the client's own assignments.
            self.unit(field, FieldType::REGISTER, register::SLOT)?;
        }
        let edit = self.field(field)?;
        edit.lives = None;
        for (_, ty) in edit.types.iter_mut().filter(|(ty, _)| !ty.holds_sums()) {
            edit.cleared |= ty.stored;
            match &terms.seen {
                // What the clear covers is not seen any more, and what the commit wrote is gone.
                None => *ty = TypeEdit::default(),
                Some(seen) => {
                    ty.cleared = true;
                    ty.alive = Alive::Unknown;
                    for unit in ty.units.values_mut() {
                        unit.clear(|dot| seen.vector().covers(dot));
                        unit.kill(|dot| seen.covers(dot));
                    }
                }
            }
        }
        Ok(Ok(()))
    }

    /// The unit of a slot, read at its first use, to be changed.
    fn unit(&mut self, field: &Field, ty: FieldType, slot: &[u8]) -> Result<&mut Unit, StoreError> {
        let edit = self.field(field)?.types.entry(ty).or_default();
        if !edit.units.contains_key(slot) {
            let rows = if edit.stored { self.stored_rows(field, ty, slot)? } else { Vec::new() };
            let edit = self.field(field)?.types.entry(ty).or_default();
            edit.units.insert(slot.to_vec(), Unit::new(rows));
        }
        let edit = self.field(field)?;
        edit.lives = None;
        Ok(edit.types.entry(ty).or_default().units.entry(slot.to_vec()).or_default())
    }

    /// A field, with the types that have rows stored: one seek a type, at its first use.
    fn field(&mut self, field: &Field) -> Result<&mut FieldEdit, StoreError> {
        if !self.fields.contains_key(field) {
            let range = keys::field_prefix(&self.prefix, field);
            let end = keys::after_prefix(&range);
            let mut edit = FieldEdit::default();
            let mut from = range;
            while let Some((key, _)) = self.store.first(Family::Rows, &from, &end)? {
                let (_, ty, _) =
                    keys::parse_field(&self.prefix, &key).map_err(StoreError::damaged("rows"))?;
                let prefix = keys::type_prefix(&self.prefix, field, ty);
                let state = if ty.holds_sums() { None } else { FieldState::read(self.store, &prefix)? };
                // Where all is known to be swept or cleared, nothing is looked for.
                let stored = state.as_ref().is_none_or(|state| state.counted_size() != Some(0));
                let dead = state.map(|state| state.dead).unwrap_or_default();
                edit.types.insert(ty, TypeEdit { stored, dead, ..TypeEdit::default() });
                from = keys::after_prefix(&prefix);
            }
            self.fields.insert(field.clone(), edit);
        }
        Ok(self.fields.entry(field.clone()).or_default())
    }

    fn load_all_fields(&mut self) -> Result<(), StoreError> {
        if self.all_fields {
            return Ok(());
        }
        let end = keys::after_prefix(&self.prefix);
        let mut from = self.prefix.clone();
        while let Some((key, _)) = self.store.first(Family::Rows, &from, &end)? {
            let (field, _, _) = keys::parse_field(&self.prefix, &key).map_err(StoreError::damaged("rows"))?;
            self.field(&field)?;
            from = keys::after_prefix(&keys::field_prefix(&self.prefix, &field));
        }
        self.all_fields = true;
        Ok(())
    }

    /// Types of later versions are not shown, so they are no reason to refuse a client, nor do they make a field.
    fn first_live_type(&mut self, field: &Field) -> Result<Option<FieldType>, StoreError> {
        let types = self.field(field)?.types.keys().copied();
        let types: Vec<FieldType> = types.filter(|ty| ty.name().is_some()).collect();
        for ty in types {
            if self.type_lives(field, ty)? {
                return Ok(Some(ty.whole()));
            }
        }
        Ok(None)
    }

    fn type_lives(&mut self, field: &Field, ty: FieldType) -> Result<bool, StoreError> {
        if ty == FieldType::COUNTER && self.type_lives(field, FieldType::KEYED)? {
            return Ok(true);
        }
        if !self.field(field)?.types.contains_key(&ty) {
            return Ok(false);
        }
        if ty == FieldType::COUNTER {
            let own = self.own.replica;
            let unit = self.unit(field, ty, &[])?;
            return counter::lives(unit, own).map_err(StoreError::damaged("rows: counter"));
        }
        let edit = self.field(field)?.types.entry(ty).or_default();
        let known = edit.living_slot.as_ref().and_then(|slot| edit.units.get(slot));
        if known.is_some_and(unit_lives) || self.stored_row_lives(field, ty)? {
            return Ok(true);
        }
        let edit = self.field(field)?.types.entry(ty).or_default();
        edit.living_slot = edit.units.iter().find(|(_, unit)| unit_lives(unit)).map(|(slot, _)| slot.clone());
        Ok(edit.living_slot.is_some())
    }

    /// Looks for the first stored row that neither this commit nor a clear of it takes.
    fn stored_row_lives(&mut self, field: &Field, ty: FieldType) -> Result<bool, StoreError> {
        let range = keys::type_prefix(&self.prefix, field, ty);
        let Some(edit) = self.fields.get(field).and_then(|edit| edit.types.get(&ty)) else {
            return Ok(false);
        };
        let from = match &edit.alive {
            Alive::None => return Ok(false),
            _ if !edit.stored => return Ok(false),
            Alive::From(key) => key,
            Alive::Unknown => &range,
        };
        let mut alive = Alive::None;
        let mut looked_at = 0;
        self.each_row(from, &keys::after_prefix(&range), |key, row| {
            looked_at += 1;
            if looked_at == LIVES_ROWS_MAX {
                return ControlFlow::Break(());
            }
            if self.is_gone(edit, row.dot) {
                return ControlFlow::Continue(());
            }
            if edit.units.get(&row.slot).is_some_and(|unit| unit.kills(&row.slot, row.dot)) {
                return ControlFlow::Continue(());
            }
            alive = Alive::From(key.to_vec());
            ControlFlow::Break(())
        })?;
        let lives = matches!(alive, Alive::From(_));
        self.field(field)?.types.entry(ty).or_default().alive = alive;
        Ok(lives)
    }

    fn stored_rows(&self, field: &Field, ty: FieldType, slot: &[u8]) -> Result<Vec<Row>, StoreError> {
        let mut range = keys::type_prefix(&self.prefix, field, ty);
        range.extend_from_slice(slot);
        let edit = self.fields.get(field).and_then(|edit| edit.types.get(&ty));
        let mut rows = Vec::new();
        self.each_row(&range, &keys::after_prefix(&range), |_, row| {
            if edit.is_none_or(|edit| !self.is_gone(edit, row.dot)) {
                rows.push(row);
            }
            ControlFlow::Continue(())
        })?;
        Ok(rows)
    }

    /// Whether a stored row was cleared, before this commit or by it.
    fn is_gone(&self, edit: &TypeEdit, dot: Dot) -> bool {
        let seen = self.terms.seen.as_ref().filter(|_| edit.cleared);
        edit.dead.covers(dot) || seen.is_some_and(|seen| seen.vector().covers(dot))
    }

    fn each_row(
        &self,
        from: &[u8],
        to: &[u8],
        mut visit: impl FnMut(&[u8], Row) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        let mut outcome = Ok(());
        self.store.scan(Family::Rows, from, to, &mut |key, value| match keys::parse_row(
            &self.prefix,
            key,
            value,
        ) {
            Ok(row) => visit(key, row),
            Err(error) => {
                outcome = Err(StoreError::damaged("rows")(error));
                ControlFlow::Break(())
            }
        })?;
        outcome
    }
}

fn unit_lives(unit: &Unit) -> bool {
    !unit.written().is_empty() || unit.any_seen_alive()
}
