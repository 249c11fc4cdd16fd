//! Reading a state for repair: bounded steps over one snapshot of the store, off the thread that commits.
//!
//! Rows that both sides know of are compared by hashes: a keyed BLAKE3 of a row's key and counter (a row's content follows
//! from these, unless it was damaged, so a scrub adds it), of which 8 bytes are used. The key is new for every repair and random, so whoever chooses the names of
//! members cannot make two sets of rows look alike, and what is mistaken once (chance: one in 2^64 for each difference) is
//! not mistaken again. A tree's node is the sum of the hashes below it, by their first bits: the same set of rows has the
//! same tree whatever the order, rows are spread evenly however large one record is, and no tree is stored or kept up to
//! date by writes.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;

use super::settled::Settled;
use crate::context::{Dot, VersionVector};
use crate::fields::FieldState;
use crate::ids::PartitionId;
use crate::keys;
use crate::partition::stored_context;
use crate::requests::{self, Sent};
use crate::store::{Entry, Family, StoreError, StoreRead};

/// The most bits by which a tree divides rows: 2^20 leaves, 8 MiB while a repair lasts.
pub const TREE_BITS_MAX: u8 = 20;

/// What the places of idempotency keys begin with: after those of all rows.
const REQUESTS: &[u8] = &[u8::MAX];

/// What to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepairRead {
    /// The partition.
    pub partition: PartitionId,
    /// Of this repair's hashes.
    pub key: [u8; 32],
    /// What the asker had.
    pub asked: VersionVector,
    /// What the other side had; `None` if that is the side that reads: all that is read is covered by it.
    pub theirs: Option<VersionVector>,
    /// Whether hashes are of the rows' contents too.
    pub contents: bool,
    /// What of it.
    pub wanted: Wanted,
    /// After which row's key; empty: from the first row on.
    pub after: Vec<u8>,
}

/// What a read is to find among the live rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// Rows that the asker does not cover, and the hashes of all that both cover; then the idempotency keys of commits that the
    /// asker does not cover.
    Missing,
    /// The hashes of all that both cover.
    Hashes,
    /// The hashes of what both cover in some leaves.
    Within(Arc<Leaves>),
    /// Of what both cover in some leaves: keys and counters of rows that are not listed.
    Unlisted(Arc<Listed>),
    /// The same rows, whole.
    Others(Arc<Listed>),
}

/// Some leaves of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaves {
    /// By how many of their first bits the hashes are divided, at most [`TREE_BITS_MAX`].
    pub bits: u8,
    /// Which: the first bits of their hashes.
    pub positions: BTreeSet<u32>,
}

impl Leaves {
    fn contains(&self, hash: u64) -> bool {
        self.positions.contains(&leaf(hash, self.bits))
    }
}

/// What the other side has in some leaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The leaves.
    pub leaves: Leaves,
    /// The hashes there.
    pub hashes: BTreeSet<u64>,
}

/// Bounds of one read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadSizes {
    /// Rows looked at, at least 1.
    pub rows: usize,
    /// Bytes of rows found after which no more are taken.
    pub bytes: usize,
}

/// What a read found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// What the snapshot had applied.
    pub context: VersionVector,
    /// The last row looked at, after which to go on; `None`: there are no more.
    pub upto: Option<Vec<u8>>,
    /// Rows.
    pub rows: Vec<Entry>,
    /// Idempotency keys of commits that the asker does not cover.
    pub requests: Vec<Sent>,
    /// Hashes.
    pub hashes: Vec<u64>,
    /// Keys and counters of rows that are not listed.
    pub unlisted: Vec<(Vec<u8>, u64)>,
    /// Bytes of rows looked at.
    pub bytes_read: usize,
}

/// The leaf of a hash in a tree of so many bits.
pub fn leaf(hash: u64, bits: u8) -> u32 {
    hash.checked_shr(64 - u32::from(bits)).unwrap_or(0) as u32
}

/// Does a read.
pub fn run(store: &impl StoreRead, read: &RepairRead, sizes: ReadSizes) -> Result<Found, StoreError> {
    let store = &Settled::open(store)?;
    let mut found = Found {
        context: stored_context(store, read.partition)?,
        upto: None,
        rows: Vec::new(),
        requests: Vec::new(),
        hashes: Vec::new(),
        unlisted: Vec::new(),
        bytes_read: 0,
    };
    if let Some(after) = read.after.strip_prefix(REQUESTS) {
        let contexts = (&found.context, &read.asked);
        let (requests, upto) = requests::beyond(store, read.partition, contexts, after, sizes.rows)?;
        found.bytes_read = requests.len() * size_of::<Sent>();
        found.requests = requests;
        found.upto = upto.map(|upto| [REQUESTS, &upto].concat());
        return Ok(found);
    }
    let all = keys::partition_prefix(read.partition);
    let from = if read.after.is_empty() { all.clone() } else { [read.after.as_slice(), &[0]].concat() };
    let mut dead = DeadRows::open(store, &all)?;
    let (mut looked_at, mut taken) = (0, 0);
    let mut outcome = Ok(());
    store.scan(Family::Rows, &from, &keys::after_prefix(&all), &mut |key, value| {
        let dot = keys::row_dot(key, value).map_err(StoreError::damaged("rows"));
        let live = dot.and_then(|dot| Ok((dot, !dead.covers(store, key, dot)?)));
        let (dot, is_live) = match live {
            Ok(live) => live,
            Err(error) => {
                outcome = Err(error);
                return ControlFlow::Break(());
            }
        };
        looked_at += 1;
        found.bytes_read += key.len() + value.len();
        if is_live {
            taken += take(read, &mut found, key, value, dot);
        }
        if looked_at >= sizes.rows || taken >= sizes.bytes {
            found.upto = Some(key.to_vec());
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    })?;
    outcome?;
    if found.upto.is_none() && read.wanted == Wanted::Missing {
        let by_time = (keys::REQUESTS_BY_TIME, keys::after_prefix(keys::REQUESTS_BY_TIME));
        let are_there = store.first(Family::Requests, by_time.0, &by_time.1)?.is_some();
        found.upto = are_there.then(|| REQUESTS.to_vec());
    }
    Ok(found)
}

/// Takes a live row into what is found, by its bytes.
fn take(read: &RepairRead, found: &mut Found, key: &[u8], value: &[u8], dot: Dot) -> usize {
    if !read.asked.covers(dot) {
        if read.wanted != Wanted::Missing {
            return 0;
        }
        found.rows.push((key.to_vec(), value.to_vec()));
        return key.len() + value.len();
    }
    if read.theirs.as_ref().is_some_and(|theirs| !theirs.covers(dot)) {
        return 0;
    }
    let hash = hash(&read.key, key, dot, if read.contents { value } else { &[] });
    match &read.wanted {
        Wanted::Missing | Wanted::Hashes => found.hashes.push(hash),
        Wanted::Within(leaves) if leaves.contains(hash) => found.hashes.push(hash),
        Wanted::Unlisted(listed) if listed.leaves.contains(hash) && !listed.hashes.contains(&hash) => {
            found.unlisted.push((key.to_vec(), dot.counter));
            return key.len();
        }
        Wanted::Others(listed) if listed.leaves.contains(hash) && !listed.hashes.contains(&hash) => {
            found.rows.push((key.to_vec(), value.to_vec()));
            return key.len() + value.len();
        }
        Wanted::Within(_) | Wanted::Unlisted(_) | Wanted::Others(_) => {}
    }
    // Hashes for the tree are not sent, so they do not count; those of a list are, 8 bytes each.
    if matches!(read.wanted, Wanted::Within(_)) { size_of::<u64>() } else { 0 }
}

fn hash(repair: &[u8; 32], key: &[u8], dot: Dot, content: &[u8]) -> u64 {
    let mut hasher = blake3::Hasher::new_keyed(repair);
    hasher.update(key);
    hasher.update(&dot.counter.to_le_bytes());
    hasher.update(content);
    let mut first = [0; 8];
    first.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    u64::from_be_bytes(first)
}

/// What clears have taken and no sweep has removed, looked up field by field, for rows that come in key order.
pub(crate) struct DeadRows {
    has_states: bool,
    range: Vec<u8>,
    dead: VersionVector,
}

impl DeadRows {
    pub(crate) fn open(store: &impl StoreRead, partition: &[u8]) -> Result<Self, StoreError> {
        let has_states = store.first(Family::Fields, partition, &keys::after_prefix(partition))?.is_some();
        Ok(Self { has_states, range: Vec::new(), dead: VersionVector::new() })
    }

    fn covers(&mut self, store: &impl StoreRead, key: &[u8], dot: Dot) -> Result<bool, StoreError> {
        self.look_up(store, key)?;
        Ok(self.dead.covers(dot))
    }

    /// The same for a row whose dot is not known: it is decoded only where something is dead.
    pub(crate) fn takes(
        &mut self,
        store: &impl StoreRead,
        key: &[u8],
        value: &[u8],
    ) -> Result<bool, StoreError> {
        self.look_up(store, key)?;
        if self.dead.is_empty() {
            return Ok(false);
        }
        let dot = keys::row_dot(key, value).map_err(StoreError::damaged("rows"))?;
        Ok(self.dead.covers(dot))
    }

    fn look_up(&mut self, store: &impl StoreRead, key: &[u8]) -> Result<(), StoreError> {
        if !self.has_states {
            return Ok(());
        }
        if self.range.is_empty() || !key.starts_with(&self.range) {
            let bytes = keys::type_bytes(key).map_err(StoreError::damaged("rows"))?;
            self.range = key[..bytes].to_vec();
            self.dead = FieldState::read(store, &self.range)?.unwrap_or_default().dead;
        }
        Ok(())
    }
}
