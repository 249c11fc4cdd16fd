//! Zsets under the operations of one commit: a member's rows are of two types, changed together, and sums are cleared one by
//! one.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use super::{Alive, CLEAR_INCREMENTED_MAX, LIVES_ROWS_MAX, RecordEdit, unit_of};
use crate::codec::CodecError;
use crate::context::Dot;
use crate::ids::{Field, Member};
use crate::keys;
use crate::op::Reason;
use crate::row::{FieldType, Row};
use crate::store::{StoreError, StoreRead};
use crate::types::exact::Exact;
use crate::types::score::Score;
use crate::types::zset::{self, Of};
use crate::types::{Unit, keyed};

impl<S: StoreRead> RecordEdit<'_, S> {
    /// The same for a zset's member.
    pub(super) fn zincr_keyed(
        &mut self,
        field: &Field,
        member: &Member,
        key: &[u8; keyed::KEY_BYTES],
        by: Score,
    ) -> Result<(), StoreError> {
        let base = zset::base(member);
        let prefix = Of::base(&base).keyed_prefix(key);
        let written = self.unit(field, FieldType::ZSET, &base)?.written();
        let begun = written.iter().map(|(slot, _)| slot).find(|slot| slot.starts_with(&prefix)).cloned();
        let slot = match begun {
            Some(slot) => Some(slot),
            None => {
                let rows = self.stored_rows(field, FieldType::ZSET, &prefix)?;
                let generation = keyed::next_generation(&rows, self.oldest_ms);
                generation.map(|generation| [&prefix[..], &generation.to_be_bytes()].concat())
            }
        };
        let Some(slot) = slot else { return Ok(()) };
        self.member(field, member, |of, unit, _| of.incr_keyed(unit, &slot, by))
    }

    /// Adds to a zset's member.
    pub(super) fn incr_member(
        &mut self,
        field: &Field,
        member: &Member,
        by: &Exact,
        own: Dot,
    ) -> Result<(), StoreError> {
        let base = zset::base(member);
        let unit = self.unit(field, FieldType::ZSUM, &base)?;
        Of::base(&base).sums().incr(unit, by, own).map_err(StoreError::damaged("rows: zset"))?;
        self.stored_type(field, FieldType::ZSUM)?.living.insert(base);
        Ok(())
    }

    /// Edits a zset's member: its rows of the one type and of the other.
    pub(super) fn member(
        &mut self,
        field: &Field,
        member: &Member,
        edit: impl FnOnce(Of<'_>, &mut Unit, &mut Unit) -> Result<(), CodecError>,
    ) -> Result<(), StoreError> {
        let (base, own) = (zset::base(member), self.own.replica);
        let of = Of::base(&base);
        let mut sums = std::mem::take(self.unit(field, FieldType::ZSUM, &base)?);
        let unit = self.unit(field, FieldType::ZSET, &base)?;
        let edited = edit(of, unit, &mut sums).and_then(|()| of.sums().lives(&sums, own));
        let lives = edited.map_err(StoreError::damaged("rows: zset"))?;
        let edit = self.stored_type(field, FieldType::ZSUM)?;
        edit.units.insert(base.clone(), sums);
        if lives {
            edit.living.insert(base);
        } else {
            edit.living.remove(&base);
        }
        Ok(())
    }

    /// Clears the sums of all members of a zset, each by rows of its own.
    pub(super) fn clear_members(&mut self, field: &Field) -> Result<Result<(), Reason>, StoreError> {
        let damaged = || StoreError::damaged("rows: zset");
        let (own, seen) = (self.own.replica, self.terms.seen.as_ref());
        let mut stored: BTreeMap<Vec<u8>, Vec<Row>> = BTreeMap::new();
        let edit = self.stored_type(field, FieldType::ZSUM)?;
        let mut units = std::mem::take(&mut edit.units);
        edit.living.clear();
        edit.alive = Alive::None;
        let range = keys::type_prefix(&self.prefix, field, FieldType::ZSUM);
        self.each_row(&range, &keys::after_prefix(&range), |_, row| {
            let base = unit_of(FieldType::ZSUM, &row.slot);
            if !units.contains_key(base) {
                stored.entry(base.to_vec()).or_default().push(row);
            }
            match stored.len() > CLEAR_INCREMENTED_MAX {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        })?;
        if stored.len() > CLEAR_INCREMENTED_MAX {
            let max = CLEAR_INCREMENTED_MAX;
            return Ok(Err(Reason::TooManyIncremented { field: field.clone(), max }));
        }
        units.extend(stored.into_iter().map(|(base, rows)| (base, Unit::new(rows))));
        for (base, unit) in &mut units {
            let sums = Of::base(base).sums();
            if let Some(seen) = seen
                && sums.is_beyond(unit, seen).map_err(damaged())?
            {
                return Ok(Err(Reason::StaleSeen { field: field.clone() }));
            }
            sums.clear(unit, own).map_err(damaged())?;
        }
        self.stored_type(field, FieldType::ZSUM)?.units = units;
        Ok(Ok(()))
    }

    /// Whether some member of a zset has increments that nothing covers.
    pub(super) fn members_live(&mut self, field: &Field) -> Result<bool, StoreError> {
        self.stored_type(field, FieldType::ZSUM)?;
        let range = keys::type_prefix(&self.prefix, field, FieldType::ZSUM);
        let Some(edit) = self.fields.get(field).and_then(|edit| edit.types.get(&FieldType::ZSUM)) else {
            return Ok(false);
        };
        let from = match &edit.alive {
            _ if !edit.living.is_empty() => return Ok(true),
            Alive::None => return Ok(false),
            _ if !edit.stored => return Ok(false),
            Alive::From(key) => key,
            Alive::Unknown => &range,
        };
        let own = self.own.replica;
        let mut group: (Vec<u8>, Vec<Row>, Vec<u8>) = Default::default();
        let group_lives = |(base, rows, _): &(Vec<u8>, Vec<Row>, Vec<u8>)| {
            let is_known = rows.is_empty() || edit.units.contains_key(base);
            !is_known
                && Of::base(base)
                    .sums()
                    .lives(&Unit::expired(rows.iter().cloned(), self.hidden_before), own)
                    .unwrap_or(true)
        };
        let (mut looked_at, mut is_cut) = (0, false);
        self.each_row(from, &keys::after_prefix(&range), |key, row| {
            looked_at += 1;
            is_cut = looked_at == LIVES_ROWS_MAX;
            if is_cut {
                return ControlFlow::Break(());
            }
            let base = unit_of(FieldType::ZSUM, &row.slot);
            if group.0 != base {
                if group_lives(&group) {
                    return ControlFlow::Break(());
                }
                group = (base.to_vec(), Vec::new(), key.to_vec());
            }
            group.1.push(row);
            ControlFlow::Continue(())
        })?;
        let lives = !is_cut && group_lives(&group);
        let alive = if lives { Alive::From(group.2) } else { Alive::None };
        self.stored_type(field, FieldType::ZSUM)?.alive = alive;
        Ok(lives)
    }

    /// The same of a zset's member, by the first bytes of its slots.
    pub(in crate::commit) fn fold_member(&mut self, field: &Field, base: &[u8]) -> Result<(), StoreError> {
        let own = self.own.replica;
        let unit = self.unit(field, FieldType::ZSUM, base)?;
        Of::base(base).sums().fold(unit, own).map_err(StoreError::damaged("rows: zset"))
    }
}
