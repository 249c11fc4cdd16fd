//! A store as its readers are to see it: with staged rows that count, where they have not been moved to their places yet.
//!
//! Rows are the join of [`super`]. What a node keeps about a field ([`crate::fields`]) does not count what is staged there, so
//! of such a field the size is open; of a partition that settles nothing derived ([`crate::derived`]) holds. All else is as
//! stored.

use std::ops::ControlFlow;

use super::settling::{Choice, Settling, Settlings, Staged, staged_dot};
use crate::derived;
use crate::fields::FieldState;
use crate::keys;
use crate::store::{Entry, Family, StoreError, StoreRead, Visit};

/// Staged entries that a scan takes at a time.
const SCAN_CHUNK: usize = 256;

/// A store as its readers are to see it.
#[derive(Debug)]
pub struct Settled<'a, S> {
    store: &'a S,
    settlings: Settlings,
}

impl<'a, S: StoreRead> Settled<'a, S> {
    /// Looks up in which partitions staged rows count.
    pub fn open(store: &'a S) -> Result<Self, StoreError> {
        Ok(Self { store, settlings: Settlings::open(store)? })
    }
}

impl<S: StoreRead> StoreRead for Settled<'_, S> {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        get(self.store, &self.settlings, family, key)
    }

    fn scan(&self, family: Family, from: &[u8], to: &[u8], visit: Visit<'_>) -> Result<(), StoreError> {
        scan(self.store, &self.settlings, family, from, to, visit)
    }
}

/// A value as readers are to see it.
pub(crate) fn get(
    store: &impl StoreRead,
    settlings: &Settlings,
    family: Family,
    key: &[u8],
) -> Result<Option<Vec<u8>>, StoreError> {
    let found = store.get(family, key)?;
    match family {
        Family::Rows => match settlings.of(key) {
            Some(settling) => {
                let staged = decoded(store.get(Family::Staged, key)?.as_deref())?;
                chosen(settling, key, found, staged)
            }
            None => Ok(found),
        },
        Family::Fields => {
            let Some(bytes) = found else { return Ok(None) };
            let Some(settling) = settlings.of_prefix(key) else { return Ok(Some(bytes)) };
            let end = keys::after_prefix(key);
            if !settling.overlaps() && store.first(Family::Staged, key, &end)?.is_none() {
                return Ok(Some(bytes));
            }
            let state = FieldState::decode(&bytes).map_err(StoreError::damaged("fields"))?;
            Ok(Some(state.uncounted().encode()))
        }
        Family::Derived => {
            let (Some(bytes), Some(range)) = (&found, derived::range_of(key)) else { return Ok(found) };
            // Of all types of the field: what is derived of one may follow from rows of another.
            if settlings.of_prefix(&range[..range.len() - 1]).is_none() {
                return Ok(found);
            }
            Ok(Some(derived::State::decode(bytes)?.restarted().encode()))
        }
        _ => Ok(found),
    }
}

/// A scan as readers are to see it.
pub(crate) fn scan(
    store: &impl StoreRead,
    settlings: &Settlings,
    family: Family,
    from: &[u8],
    to: &[u8],
    visit: Visit<'_>,
) -> Result<(), StoreError> {
    if family != Family::Rows || !settlings.within(from, to) {
        return store.scan(family, from, to, visit);
    }
    let mut at = from.to_vec();
    loop {
        let (staged, until) = staged_chunk(store, &at, to)?;
        if merge(store, settlings, (&at, until.as_deref().unwrap_or(to)), staged, visit)?.is_break() {
            return Ok(());
        }
        match until {
            Some(until) => at = until,
            None => return Ok(()),
        }
    }
}

/// Some staged entries from `at` on, and the key before which they are all, if not `to`.
fn staged_chunk(
    store: &impl StoreRead,
    at: &[u8],
    to: &[u8],
) -> Result<(Vec<Entry>, Option<Vec<u8>>), StoreError> {
    let mut staged: Vec<Entry> = Vec::new();
    store.scan(Family::Staged, at, to, &mut |key, value| {
        staged.push((key.to_vec(), value.to_vec()));
        if staged.len() < SCAN_CHUNK { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    let is_full = staged.len() == SCAN_CHUNK;
    let until = staged.last().filter(|_| is_full).map(|(key, _)| [key.as_slice(), &[0]].concat());
    Ok((staged, until))
}

/// Visits a range of which all that is staged is given.
fn merge(
    store: &impl StoreRead,
    settlings: &Settlings,
    (from, to): (&[u8], &[u8]),
    staged: Vec<Entry>,
    visit: Visit<'_>,
) -> Result<ControlFlow<()>, StoreError> {
    let mut staged = staged.into_iter().peekable();
    let mut outcome = Ok(ControlFlow::Continue(()));
    let mut show = |key: &[u8], row: Option<&[u8]>, staged: Option<&[u8]>| {
        let seen = match settlings.of(key) {
            Some(settling) => {
                decoded(staged).and_then(|staged| chosen(settling, key, row.map(<[u8]>::to_vec), staged))
            }
            None => Ok(row.map(<[u8]>::to_vec)),
        };
        match seen {
            Ok(Some(value)) => visit(key, &value),
            Ok(None) => ControlFlow::Continue(()),
            Err(error) => {
                outcome = Err(error);
                ControlFlow::Break(())
            }
        }
    };
    let mut flow = ControlFlow::Continue(());
    store.scan(Family::Rows, from, to, &mut |key, value| {
        while let Some((before, entry)) = staged.next_if(|(staged, _)| staged.as_slice() < key) {
            flow = show(&before, None, Some(&entry));
            if flow.is_break() {
                return flow;
            }
        }
        let beside = staged.next_if(|(staged, _)| staged.as_slice() == key);
        flow = show(key, Some(value), beside.as_ref().map(|(_, entry)| entry.as_slice()));
        flow
    })?;
    while flow.is_continue()
        && let Some((key, entry)) = staged.next()
    {
        flow = show(&key, None, Some(&entry));
    }
    if outcome.is_ok() {
        outcome = Ok(flow);
    }
    outcome
}

fn decoded(entry: Option<&[u8]>) -> Result<Option<Staged>, StoreError> {
    entry.map(Staged::decode).transpose().map_err(StoreError::damaged("staged"))
}

fn chosen(
    settling: &Settling,
    key: &[u8],
    row: Option<Vec<u8>>,
    staged: Option<Staged>,
) -> Result<Option<Vec<u8>>, StoreError> {
    let row_dot = row.as_deref().map(|value| keys::row_dot(key, value)).transpose();
    let row_dot = row_dot.map_err(StoreError::damaged("rows"))?;
    let staged_at = staged.as_ref().map(|staged| staged_dot(key, staged)).transpose();
    let staged_at = staged_at.map_err(StoreError::damaged("staged"))?;
    Ok(match (settling.choose(row_dot, staged_at), staged) {
        (Choice::Row, _) => row,
        (Choice::Staged, Some(Staged::Row(value))) => Some(value),
        _ => None,
    })
}
