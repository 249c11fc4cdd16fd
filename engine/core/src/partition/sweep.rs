//! Jobs: what is put off when deltas are applied, done a bounded step at a time between them.
//!
//! - A *survey* passes over the rows of a field, removes those that a clear took, and counts the slots present.
//! - Rows that a peer sent and that count are *moved* to their places ([`super::repair`]).
//! - A *fold* has the owner of sums take in what clears took of them. It is an ordinary commit.
//! - What is derived of rows is *rebuilt* ([`super::derived`]).
//! - Changes of documents that were cleared and that nobody needs are *forgotten* ([`super::hidden`]).
//! - Records that have expired are looked through and *swept* ([`super::expiries`]), each by an ordinary commit.
//!
//! The list of jobs is durable: it is written in the batch that makes the job, and a job is struck off in the batch that
//! ends it.

use std::ops::ControlFlow;

use super::apply::{slot_value, unmark_if_empty};
use super::derived::Source;
use super::{Forget, Partition, Sweep};
use crate::fields::{FieldState, Tally};
use crate::ids::{Field, PartitionId, RecordId};
use crate::keys;
use crate::row::{FieldType, Row, each_row};
use crate::store::{Family, StoreError, StoreRead, Txn};

/// Members of a zset that are folded in one commit.
const FOLD_MEMBERS: usize = 256;

/// A commit of the node's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Own {
    /// Of sums.
    Fold(Fold),
    /// Of an expired record.
    Sweep(Sweep),
    /// Of changes of a document that nobody needs any more.
    Forget(Forget),
}

/// A fold of a counter, or of members of a zset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fold {
    pub(super) record: RecordId,
    pub(super) field: Field,
    /// The members, by what their slots begin with; none of a counter.
    pub(super) members: Vec<Vec<u8>>,
    /// What to strike off.
    pub(super) jobs: Vec<Vec<u8>>,
}

/// What a step of the jobs came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The list is empty.
    Idle,
    /// Something was done, or begun.
    Worked,
    /// A commit is due: see [`Partition::commit_own`].
    Own(Own),
}

impl Partition {
    /// Whether there may be jobs to do.
    pub fn has_jobs(&self) -> bool {
        self.has_jobs
    }

    /// Has the size of a field kept from now on: a job counts it first. Nothing is done for a field that has it kept, or
    /// has no rows.
    pub fn count<S: StoreRead>(
        &mut self,
        txn: &mut Txn<'_, S>,
        record: &RecordId,
        field: &Field,
        ty: FieldType,
    ) -> Result<(), StoreError> {
        let range = keys::type_prefix(&keys::record_prefix(self.id, record), field, ty);
        let state = match FieldState::read(txn, &range)? {
            Some(state) if state.counted => return Ok(()),
            // A survey that is under way counts as well.
            Some(mut state) => {
                state.counted = true;
                state
            }
            None if txn.first(Family::Rows, &range, &keys::after_prefix(&range))?.is_none() => return Ok(()),
            None => FieldState::to_be_counted(),
        };
        state.write(txn, &range);
        self.has_states = true;
        txn.put(Family::Meta, keys::job(&range), Vec::new());
        self.has_jobs = true;
        Ok(())
    }

    /// Does a step of the next job, at this time in milliseconds since 1970. What is due by time alone is
    /// put on the list by [`Self::due`].
    pub fn work<S: StoreRead>(&mut self, txn: &mut Txn<'_, S>, now_ms: u64) -> Result<Step, StoreError> {
        if self.is_settling(txn) {
            self.move_staged(txn)?;
            return Ok(Step::Worked);
        }
        if let Some(step) = self.look(txn, now_ms)? {
            return Ok(step);
        }
        if let Some(step) = self.walk(txn, now_ms)? {
            return Ok(step);
        }
        let all = keys::jobs(self.id);
        let end = keys::after_prefix(&all);
        let from = self.job_turn.take().filter(|turn| turn.starts_with(&all)).unwrap_or_else(|| all.clone());
        let next = match txn.first(Family::Meta, &from, &end)? {
            Some((job, _)) => Some(job),
            None => txn.first(Family::Meta, &all, &end)?.map(|(job, _)| job),
        };
        let Some(job) = next else {
            self.has_jobs = false;
            return Ok(Step::Idle);
        };
        let damaged = || StoreError::damaged("meta: job");
        let (range, part) = keys::parse_job(&job).map_err(damaged())?;
        let (record, field, ty) = keys::parse_type_prefix(range).map_err(damaged())?;
        // The next step goes to the next field.
        self.job_turn = Some(keys::after_prefix(&job));
        if ty.holds_sums() {
            let (mut members, mut jobs) = (Vec::new(), vec![job.clone()]);
            if !part.is_empty() {
                members.push(part.to_vec());
                let rest = (&keys::after_prefix(&job), keys::after_prefix(&keys::job(range)));
                txn.scan(Family::Meta, rest.0, &rest.1, &mut |job, _| {
                    let part = keys::parse_job(job).map_or(&[][..], |(_, part)| part);
                    members.push(part.to_vec());
                    jobs.push(job.to_vec());
                    if jobs.len() < FOLD_MEMBERS { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
                })?;
            }
            return Ok(Step::Own(Own::Fold(Fold { record, field, members, jobs })));
        }
        if !part.is_empty() {
            let prefix = keys::record_prefix(self.id, &record);
            Source { prefix: &prefix, field: &field, ty }.work(txn)?;
            return Ok(Step::Worked);
        }
        survey(txn, self.id, &record, range, ty, self.sizes.sweep_rows)?;
        Ok(Step::Worked)
    }
}

/// A step of a survey.
fn survey<S: StoreRead>(
    txn: &mut Txn<'_, S>,
    partition: PartitionId,
    record: &RecordId,
    range: &[u8],
    ty: FieldType,
    rows_max: usize,
) -> Result<(), StoreError> {
    let prefix = keys::record_prefix(partition, record);
    let state = FieldState::read(txn, range)?;
    let Some((mut state, survey)) = state.and_then(|state| Some((state.clone(), state.survey?))) else {
        txn.delete(Family::Meta, keys::job(range));
        return Ok(());
    };
    let from = [range, &survey.cursor].concat();
    let (mut dead, mut passed, mut rows, mut cursor) = (Vec::new(), Tally::default(), 0, None);
    let mut outcome = Ok(());
    // The live rows of the slot that is being passed.
    let mut slot: (Vec<u8>, Vec<Row>) = Default::default();
    each_row(txn, &prefix, &from, &keys::after_prefix(range), |key, row| {
        let begins = rows == 0 || slot.0 != row.slot;
        // Slots of known types are contiguous, and a step takes whole ones, so that each is counted once.
        if rows >= rows_max && (begins || ty.name().is_none()) {
            let below = if ty.name().is_some() { &row.slot } else { &key[range.len()..] };
            cursor = Some(below.to_vec());
            return ControlFlow::Break(());
        }
        rows += 1;
        if begins {
            let (_, of_last) = std::mem::replace(&mut slot, (row.slot.clone(), Vec::new()));
            match slot_value(ty, &of_last) {
                Ok(value) => value.into_iter().for_each(|value| passed.add(value)),
                Err(error) => {
                    outcome = Err(error);
                    return ControlFlow::Break(());
                }
            }
        }
        if state.dead.covers(row.dot) {
            dead.push(key.to_vec());
        } else {
            slot.1.push(row);
        }
        ControlFlow::Continue(())
    })?;
    outcome?;
    slot_value(ty, &slot.1)?.into_iter().for_each(|value| passed.add(value));
    let removed = !dead.is_empty();
    dead.into_iter().for_each(|key| txn.delete(Family::Rows, key));
    if cursor.is_none() {
        txn.delete(Family::Meta, keys::job(range));
    }
    state.surveyed(passed, cursor);
    state.write(txn, range);
    if removed {
        unmark_if_empty(txn, &prefix, record)?;
    }
    Ok(())
}
