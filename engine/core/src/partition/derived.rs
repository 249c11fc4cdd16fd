//! Keeping what is derived of rows ([`crate::derived`]): with each change of a few, and by jobs for many.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use crate::codec::CodecError;
use crate::context::VersionVector;
use crate::derived::order::Order;
use crate::derived::{self, State};
use crate::fields::FieldState;
use crate::ids::Field;
use crate::keys;
use crate::row::{FieldType, Row, each_row};
use crate::store::{Family, StoreError, StoreRead, Txn};
use crate::types::exact::Exact;
use crate::types::unique;
use crate::types::zset::{self, Of};

/// What follows the field and type in a job's key.
const JOB: &[u8] = &[0];
/// Members or registers that a step of a rebuild takes in.
const STEP: usize = 64;
/// Keys of garbage that a step removes.
const GARBAGE_STEP: usize = 1024;

/// Whether something is derived of a type's rows.
pub(super) fn is_kept(ty: FieldType) -> bool {
    matches!(ty, FieldType::ZSET | FieldType::ZSUM | FieldType::UNIQUE)
}

/// What a slot's member or register begins with.
pub(super) fn base_of(ty: FieldType, slot: &[u8]) -> &[u8] {
    match ty {
        FieldType::UNIQUE => unique::register_of(slot),
        _ => zset::split(slot).map_or(slot, |(base, _)| base),
    }
}

/// The rows of a field of which something is derived.
pub(super) struct Source<'a> {
    /// The first bytes of the record's keys.
    pub(super) prefix: &'a [u8],
    pub(super) field: &'a Field,
    /// The whole type.
    pub(super) ty: FieldType,
}

impl Source<'_> {
    /// Rows of these members or registers came or went; of some members it is known that they were only added to. Tells whether a
    /// job was put.
    pub(super) fn changed<S: StoreRead>(
        &self,
        txn: &mut Txn<'_, S>,
        bases: &BTreeMap<Vec<u8>, Option<Exact>>,
    ) -> Result<bool, StoreError> {
        let range = self.range();
        let known = State::read(txn, &range)?;
        let is_new = known.is_none();
        let mut state = match known {
            Some(state) => state,
            None if self.has_others(txn, |base| bases.contains_key(base))? => {
                return self.restart(txn).map(|()| true);
            }
            None => State::default(),
        };
        let before = state.clone();
        let order = Order::at(derived::order_root(&range, state.epoch));
        for (base, added) in bases.iter().filter(|(base, _)| before.has(base)) {
            if let (Some(added), Some(member)) = (added, zset::member(base))
                && order.add(txn, member, added)?
            {
                continue;
            }
            self.refresh(txn, &range, &mut state, base)?;
        }
        if state.is_whole() {
            if is_new || state != before {
                state.write(txn, &range);
            }
            return Ok(false);
        }
        // While a partition settles it is only seen so: what is passed over here must not count as derived afterwards.
        state.write(txn, &range);
        txn.put(Family::Meta, keys::job_of(&range, JOB), Vec::new());
        Ok(true)
    }

    /// Nothing of what is derived holds any more.
    pub(super) fn restart<S: StoreRead>(&self, txn: &mut Txn<'_, S>) -> Result<(), StoreError> {
        let range = self.range();
        State::read(txn, &range)?.unwrap_or_default().restarted().write(txn, &range);
        txn.put(Family::Meta, keys::job_of(&range, JOB), Vec::new());
        Ok(())
    }

    /// All rows of before are gone, but for sums.
    pub(super) fn emptied<S: StoreRead>(&self, txn: &mut Txn<'_, S>) -> Result<(), StoreError> {
        let range = self.range();
        let sums = keys::type_prefix(self.prefix, self.field, FieldType::ZSUM);
        if txn.first(Family::Rows, &sums, &keys::after_prefix(&sums))?.is_some() {
            return self.restart(txn);
        }
        State::read(txn, &range)?.unwrap_or_default().emptied().write(txn, &range);
        txn.put(Family::Meta, keys::job_of(&range, JOB), Vec::new());
        Ok(())
    }

    /// A step of a rebuild, or of what follows it.
    pub(super) fn work<S: StoreRead>(&self, txn: &mut Txn<'_, S>) -> Result<(), StoreError> {
        let range = self.range();
        let job = keys::job_of(&range, JOB);
        let Some(mut state) = State::read(txn, &range)? else {
            txn.delete(Family::Meta, job);
            return Ok(());
        };
        if let Some(cursor) = state.rebuild.clone() {
            let (bases, more) = self.bases(txn, &cursor)?;
            let next = bases.last().map(|last| [last, &[0][..]].concat());
            state.rebuild = next.filter(|_| more);
            for base in &bases {
                self.refresh(txn, &range, &mut state, base)?;
            }
            state.write(txn, &range);
            return Ok(());
        }
        if state.garbage {
            let (from, to) = derived::garbage(&range, state.epoch);
            let mut gone = Vec::new();
            txn.scan(Family::Derived, &from, &to, &mut |key, _| {
                gone.push(key.to_vec());
                if gone.len() < GARBAGE_STEP { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })?;
            state.garbage = gone.len() == GARBAGE_STEP;
            gone.into_iter().for_each(|key| txn.delete(Family::Derived, key));
            state.write(txn, &range);
            return Ok(());
        }
        if !self.has_others(txn, |_| false)? {
            txn.delete(Family::Derived, derived::key(&range));
        }
        txn.delete(Family::Meta, job);
        Ok(())
    }

    /// Derives what one member or register comes to.
    fn refresh<S: StoreRead>(
        &self,
        txn: &mut Txn<'_, S>,
        range: &[u8],
        state: &mut State,
        base: &[u8],
    ) -> Result<(), StoreError> {
        let damaged = StoreError::damaged("rows: zset");
        let root = derived::order_root(range, state.epoch);
        let dead = FieldState::read(txn, range)?.map(|state| state.dead).unwrap_or_default();
        let rows = self.rows(txn, self.ty, base, &dead)?;
        if self.ty == FieldType::ZSET {
            let sums = self.rows(txn, FieldType::ZSUM, base, &VersionVector::new())?;
            let member = zset::member(base).ok_or_else(|| CodecError::Malformed("no member".into()));
            let total = Of::base(base).total(&rows, &sums);
            let (member, total) = member.and_then(|member| Ok((member, total?))).map_err(damaged)?;
            return Order::at(root).set(txn, member, total);
        }
        let key = [&root, base].concat();
        let before = txn.get(Family::Derived, &key)?.and_then(|value| value.first().copied()).unwrap_or(0);
        let ranks = rows.iter().filter_map(|row| unique::parse(&row.slot).ok());
        let after = ranks.map(|(_, rank)| rank).max().unwrap_or(0);
        if before != after {
            let mut histogram = state.histogram();
            histogram.change(before, after);
            state.set_histogram(&histogram);
            match after {
                0 => txn.delete(Family::Derived, key),
                rank => txn.put(Family::Derived, key, vec![rank]),
            }
        }
        Ok(())
    }

    fn rows<S: StoreRead>(
        &self,
        txn: &Txn<'_, S>,
        ty: FieldType,
        base: &[u8],
        dead: &VersionVector,
    ) -> Result<Vec<Row>, StoreError> {
        let from = [&keys::type_prefix(self.prefix, self.field, ty), base].concat();
        let mut rows = Vec::new();
        each_row(txn, self.prefix, &from, &keys::after_prefix(&from), |_, row| {
            if !dead.covers(row.dot) {
                rows.push(row);
            }
            ControlFlow::Continue(())
        })?;
        Ok(rows)
    }

    /// The next members or registers that have rows, from one on, and whether there are more.
    fn bases<S: StoreRead>(
        &self,
        txn: &Txn<'_, S>,
        cursor: &[u8],
    ) -> Result<(BTreeSet<Vec<u8>>, bool), StoreError> {
        let mut all = BTreeSet::new();
        // Beyond this, one of the types may have more.
        let mut known_to: Option<Vec<u8>> = None;
        for ty in self.types() {
            let range = keys::type_prefix(self.prefix, self.field, ty);
            let mut found: BTreeSet<Vec<u8>> = BTreeSet::new();
            let from = [&range, cursor].concat();
            each_row(txn, self.prefix, &from, &keys::after_prefix(&range), |_, row| {
                found.insert(base_of(ty, &row.slot).to_vec());
                if found.len() <= STEP { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })?;
            if found.len() > STEP {
                found.pop_last();
                let last = found.last().cloned();
                known_to = if known_to.is_none() { last } else { known_to.min(last) };
            }
            all.append(&mut found);
        }
        let more = known_to.is_some();
        if let Some(known_to) = known_to {
            all.retain(|base| *base <= known_to);
        }
        Ok((all, more))
    }

    /// Whether there are rows of others than these.
    fn has_others<S: StoreRead>(
        &self,
        txn: &Txn<'_, S>,
        is_known: impl Fn(&[u8]) -> bool,
    ) -> Result<bool, StoreError> {
        let mut others = false;
        for ty in self.types() {
            let range = keys::type_prefix(self.prefix, self.field, ty);
            each_row(txn, self.prefix, &range, &keys::after_prefix(&range), |_, row| {
                others |= !is_known(base_of(ty, &row.slot));
                if others { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })?;
        }
        Ok(others)
    }

    fn types(&self) -> impl Iterator<Item = FieldType> {
        let sums = (self.ty == FieldType::ZSET).then_some(FieldType::ZSUM);
        [self.ty].into_iter().chain(sums)
    }

    fn range(&self) -> Vec<u8> {
        keys::type_prefix(self.prefix, self.field, self.ty)
    }
}

/// A record has no rows any more: nothing is derived of it.
pub(super) fn forget<S: StoreRead>(txn: &mut Txn<'_, S>, prefix: &[u8]) -> Result<(), StoreError> {
    let end = keys::after_prefix(prefix);
    let mut from = prefix.to_vec();
    while let Some((key, _)) = txn.first(Family::Derived, &from, &end)? {
        let bytes = keys::type_bytes(&key).map_err(StoreError::damaged("derived"))?;
        let range = &key[..bytes];
        from = keys::after_prefix(range);
        // Of what is not whole, or has garbage, a job removes it all.
        if State::read(txn, range)?.is_some_and(|state| state.is_whole() && !state.garbage) {
            txn.delete(Family::Derived, derived::key(range));
        }
    }
    Ok(())
}
