//! Records that expire: which are due, and the sweep of what is hidden in them.
//!
//! Invariants:
//!
//! - *What may have to be swept is on the list of the due*, by time: a record that has an expiry, from the batch that
//!   brings it on; one in which something hidden arrives later, from that batch on. It is struck off in the batch of the
//!   sweep, or when nothing is hidden there.
//! - *A sweep takes nothing that is not hidden.* It is a clear of each replica's commits up to the last of which a hidden row is
//!   found: stamps of one replica rise with its counters, so whatever comes before that is hidden too. It does not name what is not
//!   found, so a row that this node has lost stays where it is. Sums are taken by resets of those that are hidden.
//!
//! Every node that notices may sweep. So that not all do, each waits another while, by record: the first one's sweep reaches
//! the others before their time comes.

use std::ops::ControlFlow;

use super::Partition;
use super::sweep::{Own, Step};
use crate::commit::{self, Evaluated};
use crate::context::VersionVector;
use crate::delta::RecordDelta;
use crate::ids::{Field, PartitionId, RecordId};
use crate::keys;
use crate::row::{FieldType, Row, each_row};
use crate::store::{Family, StoreError, StoreRead, Txn};
use crate::types::document::{self, Cleared};
use crate::types::expiry::{self, Expiry, NEVER};
use crate::types::zset;

/// Sums that one sweep takes: of a larger zset the rest has its turn afterwards.
const SUMS_MAX: usize = 1024;
/// How many times as long as the first node the last one waits at most.
const TURNS: u64 = 4;

/// The look through a due record.
#[derive(Debug)]
pub(super) struct Look {
    due: Vec<u8>,
    record: RecordId,
    prefix: Vec<u8>,
    hidden_before: u64,
    /// What the sweep takes.
    seen: VersionVector,
    cursor: Vec<u8>,
    /// Whether something is hidden, and whether something is not.
    hidden: bool,
    visible: bool,
    /// The sums and documents that are hidden.
    sums: Vec<(Field, FieldType, Vec<u8>)>,
    /// What was cleared of the document that is being passed.
    cleared: Option<(Field, Cleared)>,
}

/// A sweep that can be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sweep {
    record: RecordId,
    due: Vec<u8>,
    hidden_before: u64,
    seen: VersionVector,
    sums: Vec<(Field, FieldType, Vec<u8>)>,
    /// Whether nothing else is left.
    last: bool,
    /// Whether there are more sums.
    more: bool,
}

/// Has a record looked at when its time has come, if it has an expiry.
pub(super) fn note<S: StoreRead>(
    txn: &mut Txn<'_, S>,
    partition: PartitionId,
    prefix: &[u8],
    record: &RecordId,
) -> Result<(), StoreError> {
    let expiry = read(txn, prefix)?;
    let times = [(expiry.at != NEVER).then_some(expiry.at), (expiry.floor > 0).then_some(expiry.floor)];
    for at in times.into_iter().flatten() {
        let due = keys::due(partition, at, record);
        if txn.get(Family::Meta, &due)?.is_none() {
            txn.put(Family::Meta, due, Vec::new());
        }
    }
    let known = keys::has_expiries(partition);
    if expiry != Expiry::NONE && txn.get(Family::Meta, &known)?.is_none() {
        txn.put(Family::Meta, known, Vec::new());
    }
    Ok(())
}

/// Whether something may be hidden in a record with this expiry: it is on the list of the due then.
pub(crate) fn may_hide(
    store: &impl StoreRead,
    partition: PartitionId,
    record: &RecordId,
    expiry: Expiry,
    now_ms: u64,
) -> Result<bool, StoreError> {
    // What a peer sent may count and not be on the list yet.
    if store.get(Family::Meta, &keys::settling(partition))?.is_some() {
        return Ok(true);
    }
    let times = [(expiry.at <= now_ms).then_some(expiry.at), (expiry.floor > 0).then_some(expiry.floor)];
    for at in times.into_iter().flatten() {
        if store.get(Family::Meta, &keys::due(partition, at, record))?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The expiry of a record.
pub(crate) fn read(store: &impl StoreRead, prefix: &[u8]) -> Result<Expiry, StoreError> {
    let range = keys::type_prefix(prefix, &expiry::field(), FieldType::EXPIRY);
    let mut rows: Vec<Row> = Vec::new();
    each_row(store, prefix, &range, &keys::after_prefix(&range), |_, row| {
        rows.push(row);
        ControlFlow::Continue(())
    })?;
    Expiry::of_rows(&rows).map_err(StoreError::damaged("rows: expiry"))
}

impl Partition {
    /// Whether some record may have an expiry.
    pub fn has_expiries(&self) -> bool {
        self.has_expiries
    }

    /// Puts a look at due records on the list of jobs, if the time of one has come.
    pub fn due<S: StoreRead>(&mut self, txn: &Txn<'_, S>, now_ms: u64) -> Result<(), StoreError> {
        self.has_jobs |= self.next_due(txn)?.is_some_and(|due| due <= now_ms);
        Ok(())
    }

    /// When the next record is to be looked at, in milliseconds since 1970.
    fn next_due<S: StoreRead>(&self, store: &S) -> Result<Option<u64>, StoreError> {
        if !self.has_expiries {
            return Ok(None);
        }
        let all = keys::dues(self.id);
        let Some((key, _)) = store.first(Family::Meta, &all, &keys::after_prefix(&all))? else {
            return Ok(None);
        };
        let (at, record) = keys::parse_due(&key).map_err(StoreError::damaged("meta: due"))?;
        Ok(Some(at.saturating_add(self.turn_ms(&record))))
    }

    /// How long after its time this node sweeps a record.
    pub(super) fn turn_ms(&self, record: &RecordId) -> u64 {
        let name = u64::from_be_bytes(record.hash()) ^ self.replica.0.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let turn = (name ^ name >> 32) % TURNS;
        self.sizes.sweep_after_ms.saturating_mul(turn + 1)
    }

    /// Looks on through a record that is due.
    pub(super) fn look<S: StoreRead>(
        &mut self,
        txn: &mut Txn<'_, S>,
        now_ms: u64,
    ) -> Result<Option<Step>, StoreError> {
        let mut look = match self.look.take() {
            Some(look) => look,
            None if self.next_due(txn)?.is_none_or(|due| due > now_ms) => return Ok(None),
            None => {
                let all = keys::dues(self.id);
                let Some((due, _)) = txn.first(Family::Meta, &all, &keys::after_prefix(&all))? else {
                    return Ok(None);
                };
                let (_, record) = keys::parse_due(&due).map_err(StoreError::damaged("meta: due"))?;
                let prefix = keys::record_prefix(self.id, &record);
                let hidden_before = read(txn, &prefix)?.hidden_before(now_ms);
                if hidden_before == 0 {
                    txn.delete(Family::Meta, due);
                    return Ok(Some(Step::Worked));
                }
                let (seen, cursor, sums) = (VersionVector::new(), prefix.clone(), Vec::new());
                Look {
                    due,
                    record,
                    prefix,
                    hidden_before,
                    seen,
                    cursor,
                    hidden: false,
                    visible: false,
                    sums,
                    cleared: None,
                }
            }
        };
        if self.look_on(txn, &mut look)? {
            self.look = Some(look);
            return Ok(Some(Step::Worked));
        }
        let expiry = read(txn, &look.prefix)?;
        if expiry.hidden_before(now_ms) != look.hidden_before {
            // The clock was set back meanwhile, or another time has come.
            return Ok(Some(Step::Worked));
        }
        let is_over = expiry.at <= now_ms;
        if !look.hidden && (look.visible || !is_over) {
            txn.delete(Family::Meta, look.due);
            return Ok(Some(Step::Worked));
        }
        let more = look.sums.len() > SUMS_MAX;
        look.sums.truncate(SUMS_MAX);
        let Look { due, record, hidden_before, seen, sums, visible, .. } = look;
        let last = is_over && !visible && !more;
        Ok(Some(Step::Own(Own::Sweep(Sweep { record, due, hidden_before, seen, sums, last, more }))))
    }

    /// A step of the look. Tells whether there is more.
    fn look_on<S: StoreRead>(&self, txn: &Txn<'_, S>, look: &mut Look) -> Result<bool, StoreError> {
        let end = keys::after_prefix(&look.prefix);
        let (prefix, from) = (look.prefix.clone(), look.cursor.clone());
        let (mut rows, mut more) = (0, false);
        each_row(txn, &prefix, &from, &end, |key, row| {
            if rows >= self.sizes.sweep_rows || look.sums.len() > SUMS_MAX {
                look.cursor = key.to_vec();
                more = rows >= self.sizes.sweep_rows;
                return ControlFlow::Break(());
            }
            rows += 1;
            look.take(row);
            ControlFlow::Continue(())
        })?;
        Ok(more)
    }

    /// The change that a sweep makes.
    pub(super) fn swept<S: StoreRead>(
        &self,
        txn: &mut Txn<'_, S>,
        sweep: Sweep,
        now_ms: u64,
    ) -> Result<Evaluated, StoreError> {
        let Sweep { record, due, hidden_before, seen, sums, last, more } = sweep;
        if !more {
            txn.delete(Family::Meta, due);
        }
        let at = self.at(self.next_dot(), (now_ms, 0));
        commit::sweep(txn, at, &record, hidden_before, &sums, (seen, last))
    }
}

impl Look {
    /// Whether it is a look at this record.
    pub(super) fn is_of(&self, record: &RecordId) -> bool {
        self.record == *record
    }

    fn take(&mut self, row: Row) {
        if document::is_clear(&row) {
            // Clears of a document come before its changes.
            if let Ok(cleared) = Cleared::of_rows([&row]) {
                let of_others = self.cleared.take().filter(|(field, _)| *field == row.field);
                let mut all = of_others.map(|(_, cleared)| cleared).unwrap_or_default();
                all.join(&cleared);
                self.cleared = Some((row.field, all));
            }
            return;
        }
        let is_cleared = |(field, cleared): &(Field, Cleared)| *field == row.field && cleared.covers(row.dot);
        if row.ty == FieldType::EXPIRY
            || !expiry::can_expire(&row)
            || document::is_change(&row) && self.cleared.as_ref().is_some_and(is_cleared)
        {
            return;
        }
        if !expiry::hides(self.hidden_before, &row) {
            self.visible = true;
            return;
        }
        self.hidden = true;
        if !row.ty.holds_sums() && !self.seen.covers(row.dot) {
            self.seen.advance(row.dot);
        }
        if row.ty.holds_sums() {
            let base = match row.ty {
                FieldType::COUNTER | FieldType::DOCUMENT => Vec::new(),
                _ => zset::split(&row.slot).map_or_else(Vec::new, |(base, _)| base.to_vec()),
            };
            let sum = (row.field, row.ty, base);
            if self.sums.last() != Some(&sum) {
                self.sums.push(sum);
            }
        }
    }
}

/// Whether rows of a delta make a record worth looking at that has an expiry: its own rows, and what is hidden then, whatever the
/// clock says now.
pub(super) fn concerns(delta: &RecordDelta, expiry: Expiry) -> bool {
    let at = if expiry.at == NEVER { 0 } else { expiry.at };
    let hidden_before = at.max(expiry.floor);
    let mut rows = delta.fields.iter().flat_map(|field| &field.rows);
    delta.fields.iter().any(|field| field.ty == FieldType::EXPIRY)
        || rows.any(|row| row.hlc.millis() < hidden_before)
}
