//! Which of a document's stored changes make it.
//!
//! The document is a function of the rows alone, the same on every node that has them. It is made of the changes that count and all
//! that they build on. Two things that no correct client makes are left out the same way everywhere, with all that builds on them: a
//! change that builds on one that is not there; and of two changes by which an actor took the same number, the one with the greater
//! hash.

use std::collections::{BTreeMap, BTreeSet};

use super::Encoded;
use super::chunk::Change;
use crate::codec::CodecError;
use crate::context::Dot;
use crate::row::Row;
use crate::time::Hlc;
use crate::types::document::{self, Cleared};
use crate::types::expiry;
use automerge::ChangeHash;

/// A change as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Its chunk.
    pub bytes: Vec<u8>,
    /// The first commit that brought it, by its stamp.
    pub dot: Dot,
    /// That commit's stamp.
    pub hlc: Hlc,
    /// Whether it counts: a row of it is neither cleared nor expired.
    pub counts: bool,
}

/// A change of the document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selected {
    /// The change.
    pub encoded: Encoded,
    /// The first commit that brought it, by its stamp.
    pub dot: Dot,
    /// That commit's stamp.
    pub hlc: Hlc,
}

impl Stored {
    /// The changes among a document's rows, of which clears saw this. Those stamped before `hidden_before` have expired.
    pub fn of_rows(
        rows: impl IntoIterator<Item = Row>,
        cleared: &Cleared,
        hidden_before: u64,
    ) -> Result<BTreeMap<ChangeHash, Self>, CodecError> {
        let mut stored: BTreeMap<ChangeHash, Self> = BTreeMap::new();
        for row in rows {
            let Some(hash) = document::parse_slot(&row.slot)? else { continue };
            let counts = !cleared.covers(row.dot) && !expiry::hides(hidden_before, &row);
            let Row { dot, hlc, payload: bytes, .. } = row;
            match stored.get_mut(&hash) {
                None => drop(stored.insert(hash, Self { bytes, dot, hlc, counts })),
                Some(other) => {
                    other.counts |= counts;
                    if (hlc, dot) < (other.hlc, other.dot) {
                        (other.hlc, other.dot) = (hlc, dot);
                    }
                }
            }
        }
        Ok(stored)
    }
}

/// The changes that make a document.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    /// Each after those that it builds on.
    pub changes: Vec<Selected>,
    /// Whether no change was left out.
    pub is_whole: bool,
}

/// The changes that make the document.
pub fn select(mut stored: BTreeMap<ChangeHash, Stored>) -> Result<Selection, CodecError> {
    let mut wanted: Vec<ChangeHash> =
        stored.iter().filter(|(_, change)| change.counts).map(|(hash, _)| *hash).collect();
    let mut reached: BTreeMap<ChangeHash, Selected> = BTreeMap::new();
    let mut missing: BTreeSet<ChangeHash> = BTreeSet::new();
    while let Some(hash) = wanted.pop() {
        if reached.contains_key(&hash) {
            continue;
        }
        let Some(Stored { bytes, dot, hlc, .. }) = stored.remove(&hash) else {
            missing.insert(hash);
            continue;
        };
        let change = Change::parse(&bytes).map_err(|error| CodecError::Malformed(error.to_string()))?;
        wanted.extend(&change.deps);
        reached.insert(hash, Selected { encoded: Encoded { change, bytes }, dot, hlc });
    }
    let found = reached.len();
    let is_whole = missing.is_empty();
    leave_out(&mut reached, missing);
    let is_whole = is_whole && reached.len() == found;
    Ok(Selection { changes: in_causal_order(reached), is_whole })
}

/// Leaves out these, what contradicts others, and all that builds on them.
fn leave_out(reached: &mut BTreeMap<ChangeHash, Selected>, mut out: BTreeSet<ChangeHash>) {
    let mut numbers: BTreeSet<(&[u8], u64)> = BTreeSet::new();
    // In the order of hashes: the least one keeps the number.
    for (hash, selected) in reached.iter() {
        let change = &selected.encoded.change;
        if !numbers.insert((&change.actor, change.seq)) {
            out.insert(*hash);
        }
    }
    if out.is_empty() {
        return;
    }
    let mut dependents: BTreeMap<ChangeHash, Vec<ChangeHash>> = BTreeMap::new();
    for (hash, selected) in reached.iter() {
        for dep in &selected.encoded.change.deps {
            dependents.entry(*dep).or_default().push(*hash);
        }
    }
    let mut left: Vec<ChangeHash> = out.into_iter().collect();
    let mut gone = BTreeSet::new();
    while let Some(hash) = left.pop() {
        if gone.insert(hash) {
            left.extend(dependents.get(&hash).into_iter().flatten());
        }
    }
    reached.retain(|hash, _| !gone.contains(hash));
}

/// These changes, each after those that it builds on.
pub(super) fn in_causal_order<C: AsRef<Change>>(mut changes: BTreeMap<ChangeHash, C>) -> Vec<C> {
    let dependents = dependents(&changes);
    let mut left: BTreeMap<ChangeHash, usize> = BTreeMap::new();
    for hash in dependents.values().flatten() {
        *left.entry(*hash).or_default() += 1;
    }
    let mut ready: Vec<ChangeHash> =
        changes.keys().filter(|hash| !left.contains_key(hash)).copied().collect();
    let mut ordered = Vec::with_capacity(changes.len());
    while let Some(hash) = ready.pop() {
        for dependent in dependents.get(&hash).into_iter().flatten() {
            if let Some(left) = left.get_mut(dependent) {
                *left -= 1;
                if *left == 0 {
                    ready.push(*dependent);
                }
            }
        }
        ordered.extend(changes.remove(&hash));
    }
    ordered
}

/// Of the changes that others here build on: those others.
fn dependents<C: AsRef<Change>>(
    changes: &BTreeMap<ChangeHash, C>,
) -> BTreeMap<ChangeHash, BTreeSet<ChangeHash>> {
    let mut dependents: BTreeMap<ChangeHash, BTreeSet<ChangeHash>> = BTreeMap::new();
    for (hash, change) in changes {
        for dep in change.as_ref().deps.iter().filter(|dep| changes.contains_key(dep)) {
            dependents.entry(*dep).or_default().insert(*hash);
        }
    }
    dependents
}

impl AsRef<Change> for Selected {
    fn as_ref(&self) -> &Change {
        &self.encoded.change
    }
}

impl AsRef<Change> for Encoded {
    fn as_ref(&self) -> &Change {
        &self.change
    }
}
