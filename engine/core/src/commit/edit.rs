//! One record under the operations of one commit.

mod counters;
mod documents;
mod sample;
mod zsets;

use sample::{SAMPLE_ROWS, Sample};

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use super::{At, Found};
use crate::context::{Dot, VersionVector};
use crate::delta::{Clear, FieldDelta, Kill, RecordDelta, RowWrite};
use crate::fields::FieldState;
use crate::ids::{Field, Member, RecordId, ReplicaId};
use crate::keys;
use crate::op::{Op, Reason, Terms};
use crate::row::{FieldType, Row, each_row};
use crate::store::{Family, StoreError, StoreRead};
use crate::time::Hlc;
use crate::types::document::Cleared;
use crate::types::exact::Exact;
use crate::types::expiry::{self, Expiry};
use crate::types::zset::Of;
use crate::types::{Unit, counter, document, presence, register, unique, zset};

/// Rows looked at to find out whether a field lives: more are passed over only where a large field was cleared a moment
/// ago and is not swept yet. Beyond it the field is taken to be empty, so an operation of another type is let through.
const LIVES_ROWS_MAX: usize = 65_536;

/// The most members with increments of a zset that one commit clears: each costs a row.
const CLEAR_INCREMENTED_MAX: usize = 100_000;

/// The most replicas whose rows of one slot are looked up one by one: filters then tell of an absent row without
/// reading a block. With more, the slot's range is read.
const POINT_READS_MAX: usize = 8;

/// The record as the commit leaves it so far.
pub(super) struct RecordEdit<'s, S> {
    store: &'s S,
    prefix: Vec<u8>,
    own: Dot,
    /// What the node has applied.
    context: &'s VersionVector,
    terms: &'s Terms,
    /// Whether some field of the partition has a state.
    has_states: bool,
    /// The time before which idempotency keys no longer count.
    oldest_ms: u64,
    /// The node's time.
    now_ms: u64,
    /// Rows stamped before this are absent: the record has expired.
    hidden_before: u64,
    /// The record's first rows, dead ones too.
    sample: Sample,
    /// Whether those are all.
    is_whole: bool,
    /// Fields looked at.
    fields: BTreeMap<Field, FieldEdit>,
    /// Whether those are all that have rows.
    all_fields: bool,
    /// Whether the whole record was cleared.
    deleted: bool,
    /// What a sweep takes of the whole record.
    swept: Option<VersionVector>,
}

#[derive(Default)]
struct FieldEdit {
    /// Boxed, since a map makes room for eleven at once and there is mostly one.
    types: BTreeMap<FieldType, Box<TypeEdit>>,
    /// Whether those are all that have rows.
    all_types: bool,
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
    /// Of a document: what clears have seen, those of this commit too.
    cleared_dots: Cleared,
    /// Whether a clear of this commit took what the client has seen.
    cleared: bool,
    /// What the commit sees and changes: by slot, or by what several slots begin with ([`unit_of`]).
    units: BTreeMap<Vec<u8>, Unit>,
    /// Of a zset's sums: the units that live.
    living: BTreeSet<Vec<u8>>,
    /// A slot that lived when last looked at.
    living_slot: Option<Vec<u8>>,
    /// Whether one of them lives.
    alive: Alive,
}

/// What is known of the stored rows of a type: but for removals by what a client has seen, a commit only ever kills more.
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
        record: &RecordId,
        at: At<'s>,
        terms: &'s Terms,
    ) -> Result<Self, StoreError> {
        let At { partition, own, context, has_states, has_expiries, oldest_ms, now_ms } = at;
        let prefix = keys::record_prefix(partition, record);
        let (mut sample, mut is_whole) = (Sample::new(), true);
        store.scan_prefix(Family::Rows, &prefix, &mut |key, value| {
            if sample.ends.len() == SAMPLE_ROWS {
                is_whole = false;
                return ControlFlow::Break(());
            }
            sample.push(key, value);
            ControlFlow::Continue(())
        })?;
        let fields = BTreeMap::new();
        let (all_fields, deleted) = (false, false);
        let mut edit = Self {
            store,
            prefix,
            own,
            context,
            terms,
            has_states,
            oldest_ms,
            now_ms,
            hidden_before: 0,
            sample,
            is_whole,
            fields,
            all_fields,
            deleted,
            swept: None,
        };
        if has_expiries {
            let rows = edit.stored_rows(&expiry::field(), FieldType::EXPIRY, expiry::SLOT)?;
            let expiry = Expiry::of_rows(&rows).map_err(StoreError::damaged("rows: expiry"))?;
            edit.hidden_before = expiry.hidden_before(now_ms);
        }
        Ok(edit)
    }

    /// What is known of the stored record.
    pub(super) fn found(&self) -> Found {
        Found { prefix: self.prefix.clone(), has_rows: !self.sample.ends.is_empty() }
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
                if let Some(id) = terms.request {
                    self.incr_keyed(field, &id.key, *by)?;
                } else {
                    let unit = self.unit(field, FieldType::COUNTER, &[])?;
                    let by = i128::from(*by);
                    counter::sums().incr(unit, &by, own).map_err(StoreError::damaged("rows: counter"))?;
                }
            }
            Op::Enable { field } => {
                let slot = presence::FLAG_SLOT;
                presence::add(self.unit(field, FieldType::FLAG, slot)?, slot);
            }
            Op::Disable { field } => {
                let slot = presence::FLAG_SLOT;
                presence::remove(self.unit(field, FieldType::FLAG, slot)?, slot, sees);
                self.look_again(field, FieldType::FLAG)?;
            }
            Op::Add { field, members } => self.each_member(field, members, presence::add)?,
            Op::Remove { field, members } => {
                self.each_member(field, members, |unit, slot| presence::remove(unit, slot, sees))?;
                self.look_again(field, FieldType::SET)?;
            }
            Op::ZAdd { field, scores } => {
                let context = self.context;
                for (member, score) in scores {
                    self.member(field, member, |of, unit, sums| of.assign(unit, sums, *score, own, context))?;
                }
            }
            Op::ZIncr { field, member, by } => match terms.request {
                Some(id) => self.zincr_keyed(field, member, &id.key, *by)?,
                None => {
                    let by = Exact::of(by.value());
                    self.incr_member(field, member, &by, own)?;
                }
            },
            Op::ZRemove { field, members } => {
                for member in members {
                    let mut is_beyond = false;
                    self.member(field, member, |of, unit, sums| {
                        let seen = terms.seen.as_ref();
                        is_beyond = seen.map_or(Ok(false), |seen| of.sums().is_beyond(sums, seen))?;
                        if is_beyond { Ok(()) } else { of.remove(unit, sums, own.replica, sees) }
                    })?;
                    if is_beyond {
                        return Ok(Err(Reason::StaleSeen { field: field.clone() }));
                    }
                }
                self.look_again(field, FieldType::ZSET)?;
            }
            Op::Observe { field, members } => {
                members.iter().try_for_each(|member| self.observe(field, &unique::slot(member)))?;
            }
            Op::ObserveRanks { field, ranks } => {
                let slots = ranks.iter().map(|(register, rank)| unique::slot_of(*register, *rank));
                slots.into_iter().try_for_each(|slot| self.observe(field, &slot))?;
            }
            Op::Change { field, changes } => return self.change(field, changes),
            Op::Edit { .. } => return Ok(Err(Reason::EditNotMade)),
            Op::ExpireAt { at_ms } if *at_ms <= self.now_ms => return self.apply(&Op::Delete),
            Op::ExpireAt { at_ms } => self.expire(*at_ms)?,
            Op::Expire { in_ms } => self.expire(self.now_ms.saturating_add(*in_ms))?,
            Op::Persist => self.expire(expiry::NEVER)?,
            Op::Clear { field } => return self.clear_field(field),
            Op::Delete => {
                self.load_all_fields()?;
                let fields: Vec<Field> = self.fields.keys().cloned().collect();
                for field in &fields {
                    if let Err(refused) = self.clear_field(field)? {
                        return Ok(Err(refused));
                    }
                }
                if self.fields.contains_key(&expiry::field()) {
                    let unit = self.unit(&expiry::field(), FieldType::EXPIRY, expiry::SLOT)?;
                    expiry::clear(unit, sees);
                }
                self.deleted = true;
            }
        }
        Ok(Ok(()))
    }

    fn observe(&mut self, field: &Field, slot: &[u8]) -> Result<(), StoreError> {
        let unit = self.unit(field, FieldType::UNIQUE, unique::register_of(slot))?;
        unique::observe(unit, slot);
        Ok(())
    }

    fn expire(&mut self, at: u64) -> Result<(), StoreError> {
        let now_ms = self.now_ms;
        let unit = self.unit(&expiry::field(), FieldType::EXPIRY, expiry::SLOT)?;
        expiry::set(unit, at, now_ms).map_err(StoreError::damaged("rows: expiry"))
    }

    /// A removal by what the client has seen keeps rows that this commit had removed: what lives has to be found anew.
    fn look_again(&mut self, field: &Field, ty: FieldType) -> Result<(), StoreError> {
        if self.terms.seen.is_some() {
            self.field(field)?.types.entry(ty).or_default().alive = Alive::Unknown;
        }
        Ok(())
    }

    /// Takes away what is hidden: of the sums given by field, type and what their slots begin with, those last written before
    /// `hidden_before`; of all else what is `seen`, which names nothing that was written later. With `last`, nothing is left, and
    /// the time of expiry goes too. The edit itself must not hide anything.
    pub(super) fn sweep(
        &mut self,
        hidden_before: u64,
        sums: &[(Field, FieldType, Vec<u8>)],
        seen: VersionVector,
        last: bool,
    ) -> Result<(), StoreError> {
        let own = self.own.replica;
        for (field, ty, base) in sums {
            if *ty == FieldType::DOCUMENT {
                self.sweep_document(field, hidden_before)?;
                continue;
            }
            let rows = self.stored_rows(field, *ty, base)?;
            let hidden = rows.iter().filter(|row| expiry::is_sum(row) && expiry::hides(hidden_before, row));
            let hidden: BTreeSet<ReplicaId> = hidden.map(|row| row.dot.replica).collect();
            let unit = self.unit(field, *ty, base)?;
            let swept = match *ty {
                FieldType::COUNTER => counter::sums().clear_of(unit, own, |owner| hidden.contains(&owner)),
                _ => Of::base(base).sums().clear_of(unit, own, |owner| hidden.contains(&owner)),
            };
            swept.map_err(StoreError::damaged("rows: sums"))?;
        }
        self.swept = Some(seen);
        if last {
            let unit = self.unit(&expiry::field(), FieldType::EXPIRY, expiry::SLOT)?;
            expiry::clear(unit, |_| true);
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
            self.fields.entry(field.clone()).or_default().lives = Some(true);
            return Ok(Ok(()));
        }
        Ok(match self.first_live_type(field)? {
            Some(found) => Err(Reason::TypeMismatch { field: field.clone(), found, wanted }),
            None => Ok(()),
        })
    }

    /// Whether the field has a live value.
    pub(super) fn field_lives(&mut self, field: &Field) -> Result<bool, StoreError> {
        if let Some(lives) = self.fields.get(field).and_then(|edit| edit.lives) {
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
                    // The stamp is drawn when the commit is known to change something.
                    let row =
                        |(slot, payload)| RowWrite { slot, dot: self.own, hlc: Hlc::default(), payload };
                    rows.extend(unit.into_written().into_iter().map(row));
                }
                if !kills.is_empty() || !rows.is_empty() {
                    fields.push(FieldDelta { field: field.clone(), ty, kills, rows, gone: Vec::new() });
                }
            }
        }
        if cleared.is_empty() && fields.is_empty() && self.swept.is_none() {
            return None;
        }
        let seen = self.terms.seen.as_ref().map_or(self.context, |seen| seen.vector());
        let scope = (!self.deleted).then(|| cleared.clone());
        let clear = (!cleared.is_empty()).then(|| Clear { fields: scope, seen: seen.clone() });
        let swept = self.swept.map(|seen| Clear { fields: None, seen });
        Some(RecordDelta { record: record.clone(), clears: clear.into_iter().chain(swept).collect(), fields })
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
                && counter::sums().is_beyond(unit, seen).map_err(StoreError::damaged("rows: counter"))?
            {
                return Ok(Err(Reason::StaleSeen { field: field.clone() }));
            }
            counter::sums().clear(unit, own).map_err(StoreError::damaged("rows: counter"))?;
        }
        if self.field(field)?.types.contains_key(&FieldType::ZSUM)
            && let Err(refused) = self.clear_members(field)?
        {
            return Ok(Err(refused));
        }
        if self.field(field)?.types.contains_key(&FieldType::DOCUMENT) {
            self.clear_document(field)?;
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
                None => **ty = TypeEdit::default(),
                Some(seen) => {
                    ty.cleared = true;
                    ty.alive = Alive::Unknown;
                    for unit in ty.units.values_mut() {
                        unit.clear(|dot| seen.vector().covers(dot));
                        unit.kill(|dot| seen.covers(dot));
                        unit.keep(|dot| !seen.covers(dot));
                    }
                }
            }
        }
        Ok(Ok(()))
    }

    /// The unit of a slot, read at its first use, to be changed.
    fn unit(&mut self, field: &Field, ty: FieldType, slot: &[u8]) -> Result<&mut Unit, StoreError> {
        let edit = self.stored_type(field, ty)?;
        if !edit.units.contains_key(slot) {
            let rows = if edit.stored { self.stored_rows(field, ty, slot)? } else { Vec::new() };
            let unit = Unit::expired(rows, self.hidden_before);
            self.stored_type(field, ty)?.units.insert(slot.to_vec(), unit);
        }
        let edit = self.fields.entry(field.clone()).or_default();
        edit.lives = None;
        Ok(edit.types.entry(ty).or_default().units.entry(slot.to_vec()).or_default())
    }

    /// A field, with all the types that have rows stored: a seek each, at its first use.
    fn field(&mut self, field: &Field) -> Result<&mut FieldEdit, StoreError> {
        if self.fields.get(field).is_none_or(|edit| !edit.all_types) {
            let range = keys::field_prefix(&self.prefix, field);
            let end = keys::after_prefix(&range);
            let mut from = range;
            let mut found = Vec::new();
            while let Some(key) = self.first(&from, &end)? {
                let (_, ty, _) =
                    keys::parse_field(&self.prefix, &key).map_err(StoreError::damaged("rows"))?;
                self.stored_type(field, ty)?;
                found.push(ty);
                from = keys::after_prefix(&keys::type_prefix(&self.prefix, field, ty));
            }
            let edit = self.fields.entry(field.clone()).or_default();
            edit.all_types = true;
            for (_, ty) in edit.types.iter_mut().filter(|(ty, _)| !found.contains(ty)) {
                ty.stored = false;
            }
        }
        Ok(self.fields.entry(field.clone()).or_default())
    }

    /// A type of a field, with what is known of it without looking at its rows: it may have some, unless all types were
    /// looked for and it was not found.
    fn stored_type(&mut self, field: &Field, ty: FieldType) -> Result<&mut TypeEdit, StoreError> {
        let known = self.fields.get(field).is_some_and(|edit| edit.all_types || edit.types.contains_key(&ty));
        if !known {
            let prefix = keys::type_prefix(&self.prefix, field, ty);
            let keeps_state = self.has_states && !ty.holds_sums();
            let state = if keeps_state { FieldState::read(self.store, &prefix)? } else { None };
            // Where all is known to be swept or cleared, nothing is looked for.
            let stored =
                state.as_ref().is_none_or(|state| state.counted().is_none_or(|tally| tally.slots > 0));
            let dead = state.map(|state| state.dead).unwrap_or_default();
            let cleared_dots = match ty {
                FieldType::DOCUMENT => self.cleared_document(field)?,
                _ => Cleared::default(),
            };
            let edit = TypeEdit { stored, dead, cleared_dots, ..TypeEdit::default() };
            self.fields.entry(field.clone()).or_default().types.insert(ty, Box::new(edit));
        }
        Ok(self.fields.entry(field.clone()).or_default().types.entry(ty).or_default())
    }

    fn load_all_fields(&mut self) -> Result<(), StoreError> {
        if self.all_fields {
            return Ok(());
        }
        let end = keys::after_prefix(&self.prefix);
        let mut from = self.prefix.clone();
        while let Some(key) = self.first(&from, &end)? {
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
        let types: BTreeSet<FieldType> =
            types.filter(|ty| ty.name().is_some()).map(FieldType::whole).collect();
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
            let sums = counter::sums().lives(unit, own).map_err(StoreError::damaged("rows: counter"))?;
            return Ok(sums || self.rows_live(field, FieldType::KEYED)?);
        }
        Ok(self.rows_live(field, ty)? || ty == FieldType::ZSET && self.members_live(field)?)
    }

    fn rows_live(&mut self, field: &Field, ty: FieldType) -> Result<bool, StoreError> {
        let edit = self.stored_type(field, ty)?;
        let known = edit.living_slot.as_ref().and_then(|slot| edit.units.get(slot));
        if known.is_some_and(unit_lives) || self.stored_row_lives(field, ty)? {
            return Ok(true);
        }
        let edit = self.stored_type(field, ty)?;
        let mut values = edit.units.iter().filter(|(slot, _)| !documents::is_clears(ty, slot));
        edit.living_slot = values.find(|(_, unit)| unit_lives(unit)).map(|(slot, _)| slot.clone());
        Ok(edit.living_slot.is_some())
    }

    /// Looks for the first stored row that neither this commit nor a clear of it takes.
    fn stored_row_lives(&mut self, field: &Field, ty: FieldType) -> Result<bool, StoreError> {
        let range = keys::type_prefix(&self.prefix, field, ty);
        let Some(edit) = self.fields.get(field).and_then(|edit| edit.types.get(&ty)) else {
            return Ok(false);
        };
        let is_alive = |row: &Row| {
            let unit = edit.units.get(unit_of(ty, &row.slot));
            let killed = unit.is_some_and(|unit| unit.kills(&row.slot, row.dot));
            !killed
                && !self.is_hidden(row)
                && !self.is_gone(edit, row)
                && !documents::is_clears(ty, &row.slot)
        };
        let from = match &edit.alive {
            Alive::None => return Ok(false),
            _ if !edit.stored => return Ok(false),
            Alive::From(key) => key,
            Alive::Unknown => {
                for (key, value) in self.sample.iter().filter(|(key, _)| key.starts_with(&range)) {
                    if is_alive(&self.parse(key, value)?) {
                        return Ok(true);
                    }
                }
                &range
            }
        };
        let mut alive = Alive::None;
        let mut looked_at = 0;
        self.each_row(from, &keys::after_prefix(&range), |key, row| {
            looked_at += 1;
            if looked_at == LIVES_ROWS_MAX {
                return ControlFlow::Break(());
            }
            if !is_alive(&row) {
                return ControlFlow::Continue(());
            }
            alive = Alive::From(key.to_vec());
            ControlFlow::Break(())
        })?;
        let lives = matches!(alive, Alive::From(_));
        self.stored_type(field, ty)?.alive = alive;
        Ok(lives)
    }

    fn stored_rows(&self, field: &Field, ty: FieldType, slot: &[u8]) -> Result<Vec<Row>, StoreError> {
        let mut range = keys::type_prefix(&self.prefix, field, ty);
        range.extend_from_slice(slot);
        let edit = self.fields.get(field).and_then(|edit| edit.types.get(&ty));
        let mut rows = Vec::new();
        let mut take = |row: Row| {
            if edit.is_none_or(|edit| !self.is_gone(edit, &row)) {
                rows.push(row);
            }
        };
        let is_slot = matches!(ty, FieldType::SET | FieldType::FLAG | FieldType::DOCUMENT);
        let is_slot = is_slot && slot != document::CHANGES;
        if is_slot && !self.is_whole && self.context.len() <= POINT_READS_MAX {
            for dot in self.context.iter() {
                let key = keys::row_key(&self.prefix, field, ty, slot, dot);
                if let Some(value) = self.store.get(Family::Rows, &key)? {
                    take(self.parse(&key, &value)?);
                }
            }
            return Ok(rows);
        }
        self.each_row(&range, &keys::after_prefix(&range), |_, row| {
            take(row);
            ControlFlow::Continue(())
        })?;
        Ok(rows)
    }

    /// Whether a stored row was cleared, before this commit or by it.
    fn is_gone(&self, edit: &TypeEdit, row: &Row) -> bool {
        let seen = self.terms.seen.as_ref().filter(|_| edit.cleared);
        edit.dead.covers(row.dot)
            || seen.is_some_and(|seen| seen.vector().covers(row.dot))
            || documents::is_cleared(&edit.cleared_dots, row)
    }

    /// Whether a stored row is absent for readers: the record has expired since.
    fn is_hidden(&self, row: &Row) -> bool {
        expiry::hides(self.hidden_before, row)
    }

    /// The first key of a range.
    fn first(&self, from: &[u8], to: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let sampled = self.sample.iter().map(|(key, _)| key).find(|key| *key >= from);
        match sampled {
            Some(key) => Ok(Some(key).filter(|key| *key < to).map(<[u8]>::to_vec)),
            None if self.is_whole => Ok(None),
            None => Ok(self.store.first(Family::Rows, from, to)?.map(|(key, _)| key)),
        }
    }

    fn each_row(
        &self,
        from: &[u8],
        to: &[u8],
        mut visit: impl FnMut(&[u8], Row) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        if !self.is_whole {
            return each_row(self.store, &self.prefix, from, to, visit);
        }
        for (key, value) in self.sample.iter().filter(|(key, _)| (from..to).contains(key)) {
            if visit(key, self.parse(key, value)?).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn parse(&self, key: &[u8], value: &[u8]) -> Result<Row, StoreError> {
        keys::parse_row(&self.prefix, key, value).map_err(StoreError::damaged("rows"))
    }
}

/// What the slots of one unit begin with.
fn unit_of(ty: FieldType, slot: &[u8]) -> &[u8] {
    match ty {
        FieldType::COUNTER => &[],
        FieldType::ZSET | FieldType::ZSUM => zset::split(slot).map_or(slot, |(base, _)| base),
        FieldType::UNIQUE => unique::register_of(slot),
        _ => slot,
    }
}

fn unit_lives(unit: &Unit) -> bool {
    !unit.written().is_empty() || unit.any_seen_alive()
}
