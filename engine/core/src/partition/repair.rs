//! Taking part in state repair ([`crate::repair`]): rows of a peer are staged, begin to count, and are moved to their places.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use super::apply::{mark, reset_about, unmark_if_empty};
use super::derived::{self, Source};
use super::{Applied, META_VERSION, Partition};
use super::{expiries, hidden};
use crate::codec::{self, CodecError};
use crate::context::{Dot, REPLICAS_MAX, VersionVector};
use crate::delta::check_row;
use crate::fields::FieldState;
use crate::ids::RecordId;
use crate::keys;
use crate::repair::{Choice, Settling, Settlings, Staged, staged_dot};
use crate::requests::{self, Sent};
use crate::row::{FieldType, Row, RowValue};
use crate::store::{Batch, Entry, Family, StoreError, StoreRead, Txn};
use crate::time::Hlc;

/// Rows that a peer sent, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    rows: Vec<Entry>,
    records: Vec<RecordId>,
    /// The greatest of their stamps.
    pub hlc: Hlc,
}

impl Checked {
    pub(super) fn into_rows(self) -> Vec<Entry> {
        self.rows
    }
}

impl Partition {
    /// Checks rows that a peer with the context `theirs` sent to this node, which asked with `asked`: that they are what is
    /// stored of this partition's records, that the one covers them and the other does not.
    pub fn check_rows(
        &self,
        partitions: u16,
        (asked, theirs): (&VersionVector, &VersionVector),
        rows: Vec<Entry>,
    ) -> Result<Checked, CodecError> {
        let malformed = |what: &str| CodecError::Malformed(what.into());
        let mut checked = Checked { rows: Vec::new(), records: Vec::new(), hlc: Hlc::default() };
        for (key, value) in rows {
            let parts = keys::parse_row_key(&key)?;
            if checked.records.last() != Some(&parts.record) {
                let home = parts.record.partition(partitions);
                if (home, home) != (self.id, parts.partition) || key[2..10] != parts.record.hash() {
                    return Err(malformed("a row of another partition, or in the wrong place"));
                }
                checked.records.push(parts.record.clone());
            }
            let RowValue { counter, hlc, payload } = RowValue::decode(&value)?;
            if counter == 0 || parts.counter.is_some_and(|in_key| in_key != counter) {
                return Err(malformed("a row with two dots, or none"));
            }
            let dot = Dot { replica: parts.replica, counter };
            if asked.covers(dot) || !theirs.covers(dot) {
                return Err(malformed("a row that was not asked for"));
            }
            check_row(parts.ty, &parts.slot, dot, &payload)?;
            checked.hlc = checked.hlc.max(hlc);
            checked.rows.push((key, value));
        }
        Ok(checked)
    }

    /// Keeps rows of a peer where nobody sees them yet.
    pub fn stage<S: StoreRead>(&mut self, txn: &mut Txn<'_, S>, checked: Checked) -> Result<(), StoreError> {
        self.has_staged = true;
        for record in &checked.records {
            // A mark without rows does no harm, and rows without a mark would not be listed.
            mark(txn, record)?;
        }
        for (key, value) in checked.rows {
            if keys::type_bytes(&key).is_ok_and(|bytes| FieldType(key[bytes - 1]) == FieldType::EXPIRY) {
                txn.put(Family::Meta, keys::has_expiries(self.id), Vec::new());
                self.has_expiries = true;
            }
            txn.put(Family::Staged, key, Staged::Row(value).encode());
        }
        Ok(())
    }

    /// Keeps idempotency keys of commits that a peer sends the rows of: they count when those do.
    pub fn foresee<S: StoreRead>(
        &mut self,
        txn: &mut Txn<'_, S>,
        (asked, theirs): (&VersionVector, &VersionVector),
        sent: Vec<Sent>,
        oldest_ms: u64,
    ) -> Result<Result<(), CodecError>, StoreError> {
        let fits =
            |sent: &Sent| sent.known.commit.is_some_and(|(dot, _)| theirs.covers(dot) && !asked.covers(dot));
        if !sent.iter().all(fits) {
            return Ok(Err(CodecError::Malformed("an idempotency key that was not asked for".into())));
        }
        for Sent { namespace, key, known } in sent {
            requests::remember(txn, &namespace, &key, self.id, &known, &self.meta.context, oldest_ms)?;
        }
        Ok(Ok(()))
    }

    /// Takes note that the peer has rows of this node no more, by key and counter.
    pub fn stage_drops<S: StoreRead>(
        &mut self,
        txn: &mut Txn<'_, S>,
        drops: Vec<(Vec<u8>, u64)>,
    ) -> Result<(), StoreError> {
        self.has_staged = true;
        for (key, counter) in drops {
            // What is staged there as a row is later than this node's, and takes its place.
            if txn.get(Family::Staged, &key)?.is_none() {
                txn.put(Family::Staged, key, Staged::Drop(counter).encode());
            }
        }
        Ok(())
    }

    /// Whether something is staged that does not count (yet).
    pub fn has_staged(&self) -> bool {
        self.has_staged
    }

    /// Whether what is staged counts.
    pub fn is_settling<S: StoreRead>(&self, txn: &Txn<'_, S>) -> bool {
        txn.settlings().get(self.id).is_some()
    }

    /// Forgets some of what is staged, of a repair that came to nothing. Tells whether all is forgotten.
    ///
    /// # Panics
    /// If it counts.
    pub fn unstage<S: StoreRead>(&mut self, txn: &mut Txn<'_, S>) -> Result<bool, StoreError> {
        assert!(!self.is_settling(txn), "what counts is not forgotten");
        let all = keys::partition_prefix(self.id);
        let mut gone = Vec::new();
        txn.scan_prefix(Family::Staged, &all, &mut |key, _| {
            gone.push(key.to_vec());
            if gone.len() < self.sizes.sweep_rows {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        })?;
        self.has_staged = gone.len() >= self.sizes.sweep_rows;
        let mut records: BTreeMap<Vec<u8>, RecordId> = BTreeMap::new();
        for key in gone {
            let parts = keys::parse_row_key(&key).map_err(StoreError::damaged("staged"))?;
            records.insert(key[..parts.record_bytes].to_vec(), parts.record);
            txn.delete(Family::Staged, key);
        }
        for (prefix, record) in records {
            unmark_if_empty(txn, &prefix, &record)?;
        }
        Ok(!self.has_staged)
    }

    /// Makes all that is staged count: the state becomes the join of this node's and the peer's. Deltas that waited for what
    /// that brings are applied, and told. `Err` in the result says why it cannot be; then nothing changes.
    pub fn settle<S: StoreRead>(
        &mut self,
        txn: &mut Txn<'_, S>,
        asked: VersionVector,
        theirs: VersionVector,
        times: (u64, u64),
    ) -> Result<Result<Vec<Applied>, CodecError>, StoreError> {
        assert!(self.meta.context.covers_all(&asked), "a node has what it had when it asked");
        let before = self.meta.context.clone();
        let mut joined = before.clone();
        joined.join(&theirs);
        if joined.len() > REPLICAS_MAX {
            let what = format!("there were more than {REPLICAS_MAX} replicas");
            return Ok(Err(CodecError::Malformed(what)));
        }
        for dot in theirs.iter().filter(|dot| dot.replica != self.replica && !before.covers(*dot)) {
            self.news.advance(dot);
        }
        self.meta.context = joined;
        txn.put(Family::Meta, keys::partition_meta(self.id), codec::encode(META_VERSION, &self.meta));
        self.log_jumped(txn, &theirs);
        if let Some(watch) = &mut self.watch {
            watch.all_touched();
        }
        // What is hidden may have come after the look passed.
        self.look = None;
        let settling = Settling { asked, theirs, before, cursor: keys::partition_prefix(self.id) };
        self.note(txn, Some(settling));
        self.has_jobs = true;
        self.has_staged = true;
        self.apply_pending(txn, times).map(Ok)
    }

    /// Moves some of what counts to its place. Tells whether that is all.
    pub(super) fn move_staged<S: StoreRead>(&mut self, txn: &mut Txn<'_, S>) -> Result<bool, StoreError> {
        let Some(settling) = txn.settlings().get(self.id).cloned() else { return Ok(true) };
        let most = self.sizes.sweep_rows.max(1);
        let end = keys::after_prefix(&keys::partition_prefix(self.id));
        let mut found: BTreeMap<Vec<u8>, RowAndStaged> = BTreeMap::new();
        let (raw, mut outcome) = (txn.raw(), Ok(()));
        raw.scan(Family::Staged, &settling.cursor, &end, &mut |key, entry| {
            match Staged::decode(entry) {
                Ok(staged) => found.entry(key.to_vec()).or_default().1 = Some(staged),
                Err(error) => outcome = Err(StoreError::damaged("staged")(error)),
            }
            if found.len() < most && outcome.is_ok() {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        })?;
        outcome?;
        // Of the rows all have to be looked at only if some may have to go that nothing staged names.
        let staged_end = (found.len() >= most).then(|| after(found.keys().next_back()));
        let until = if settling.overlaps() {
            let (mut rows, mut last) = (0, None);
            let to = staged_end.clone().unwrap_or_else(|| end.clone());
            raw.scan(Family::Rows, &settling.cursor, &to, &mut |key, value| {
                rows += 1;
                found.entry(key.to_vec()).or_default().0 = Some(value.to_vec());
                last = (rows >= most).then(|| key.to_vec());
                if rows < most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })?;
            if last.is_some() { Some(after(last.as_ref())) } else { staged_end }
        } else {
            for (key, (row, _)) in &mut found {
                *row = raw.get(Family::Rows, key)?;
            }
            staged_end
        };
        if let Some(until) = &until {
            found.retain(|key, _| key < until);
        }
        let batch = txn.raw_batch();
        let mut touched: BTreeMap<Vec<u8>, bool> = BTreeMap::new();
        for (key, (row, staged)) in found {
            let change = move_one(batch, &settling, &key, row, staged)?;
            if let Some(removed) = change {
                let bytes = keys::type_bytes(&key).map_err(StoreError::damaged("rows"))?;
                *touched.entry(key[..bytes].to_vec()).or_default() |= removed;
            }
        }
        let done = until.is_none();
        self.note(txn, until.map(|cursor| Settling { cursor, ..settling }));
        for (range, removed) in touched {
            self.field_moved(txn, &range, removed)?;
        }
        self.has_staged = !done;
        Ok(done)
    }

    /// What follows from rows of a field that came or went.
    pub(super) fn field_moved<S: StoreRead>(
        &mut self,
        txn: &mut Txn<'_, S>,
        range: &[u8],
        removed: bool,
    ) -> Result<(), StoreError> {
        let (record, field, ty) = keys::parse_type_prefix(range).map_err(StoreError::damaged("rows"))?;
        let prefix = keys::record_prefix(self.id, &record);
        if derived::is_kept(ty) {
            Source { prefix: &prefix, field: &field, ty: ty.whole() }.restart(txn)?;
        }
        if self.has_expiries {
            expiries::note(txn, self.id, &prefix, &record)?;
        }
        if ty == FieldType::DOCUMENT {
            hidden::note(txn, range)?;
            self.has_hidden = true;
        }
        if ty.holds_sums() {
            self.note_folds(txn, &prefix, range, ty)?;
        } else {
            let state = FieldState::read(txn, range)?.map(FieldState::uncounted);
            let state = state.or_else(|| (ty == FieldType::KEYED).then(FieldState::to_be_counted));
            if let Some(state) = state {
                state.write(txn, range);
                self.has_states = true;
                txn.put(Family::Meta, keys::job(range), Vec::new());
            }
        }
        if removed {
            unmark_if_empty(txn, &prefix, &record)?;
        }
        Ok(())
    }

    /// Has folded what somebody cleared of what this node counted.
    fn note_folds<S: StoreRead>(
        &self,
        txn: &mut Txn<'_, S>,
        prefix: &[u8],
        range: &[u8],
        ty: FieldType,
    ) -> Result<(), StoreError> {
        let mut jobs = Vec::new();
        crate::row::each_row(txn, prefix, range, &keys::after_prefix(range), |_, row: Row| {
            if let Some(part) = reset_about(ty, &row.slot, self.replica)
                && row.dot.replica != self.replica
            {
                jobs.push(keys::job_of(range, part));
            }
            ControlFlow::Continue(())
        })?;
        jobs.into_iter().for_each(|job| txn.put(Family::Meta, job, Vec::new()));
        Ok(())
    }

    fn note<S: StoreRead>(&self, txn: &mut Txn<'_, S>, settling: Option<Settling>) {
        match &settling {
            Some(settling) => txn.put(Family::Meta, keys::settling(self.id), settling.encode()),
            None => txn.delete(Family::Meta, keys::settling(self.id)),
        }
        let mut settlings = Settlings::clone(txn.settlings());
        settlings.set(self.id, settling);
        txn.settle(Arc::new(settlings));
    }
}

/// The row under a key, and what is staged there.
type RowAndStaged = (Option<Vec<u8>>, Option<Staged>);

fn after(key: Option<&Vec<u8>>) -> Vec<u8> {
    [key.map_or(&[][..], Vec::as_slice), &[0]].concat()
}

/// Moves what is staged under a key. Tells whether the row there was changed, and removed.
fn move_one(
    batch: &mut Batch,
    settling: &Settling,
    key: &[u8],
    row: Option<Vec<u8>>,
    staged: Option<Staged>,
) -> Result<Option<bool>, StoreError> {
    let row_dot = row.as_deref().map(|value| keys::row_dot(key, value)).transpose();
    let row_dot = row_dot.map_err(StoreError::damaged("rows"))?;
    let staged_at = staged.as_ref().map(|staged| staged_dot(key, staged)).transpose();
    let staged_at = staged_at.map_err(StoreError::damaged("staged"))?;
    if staged.is_some() {
        batch.delete(Family::Staged, key.to_vec());
    }
    Ok(match (settling.choose(row_dot, staged_at), staged) {
        (Choice::Staged, Some(Staged::Row(value))) => {
            batch.put(Family::Rows, key.to_vec(), value);
            Some(false)
        }
        (Choice::Nothing, _) if row.is_some() => {
            batch.delete(Family::Rows, key.to_vec());
            Some(true)
        }
        // A staged row that is not shown was counted where the size was open.
        (_, Some(_)) => Some(true),
        _ => None,
    })
}
