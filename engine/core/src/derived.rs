//! What a node derives from rows so that reads need not look at all of them: the order of a zset's members by score, and the
//! histogram of a unique.
//!
//! This is no part of the replicated state, and follows from it. It is kept by every batch that changes rows
//! (`partition/derived.rs`).
//!
//! | key in `derived` | value |
//! |---|---|
//! | field and type ([`keys::type_prefix`](crate::keys::type_prefix)) · 0 | [`State`] |
//! | field and type · 1 · epoch (4) · … | of a zset: [`order`] |
//!
//! Invariants:
//!
//! - No state means that nothing is derived: right if the field has no rows, and otherwise made up for by a rebuild.
//! - While a rebuild is under way, exactly the members (or registers) before its cursor are in; readers look at rows instead.
//! - Whatever makes it wrong at once (a large clear, rows that a repair brought) begins a new epoch, in which nothing is; what is left
//!   of the epochs before is garbage.
//! - Rows that have expired are in: readers that may meet some look at rows instead.

pub mod order;

use bincode::{Decode, Encode};

use crate::codec;
use crate::store::{Family, StoreError, StoreRead, Txn};
use crate::types::unique::Histogram;

const STATE_VERSION: u8 = 1;

/// What is known of a field's derived data.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
pub struct State {
    /// The epoch.
    pub epoch: u32,
    /// Where the rebuild goes on, if one is under way: what slots begin with.
    pub rebuild: Option<Vec<u8>>,
    /// Whether there may be something of earlier epochs.
    pub garbage: bool,
    /// Of a unique: how many registers have which rank; of none if empty.
    counts: Vec<u16>,
}

impl State {
    /// The state of a field and type.
    pub fn read(store: &impl StoreRead, range: &[u8]) -> Result<Option<Self>, StoreError> {
        let bytes = store.get(Family::Derived, &key(range))?;
        bytes.map(|bytes| Self::decode(&bytes)).transpose()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, StoreError> {
        codec::decode(STATE_VERSION, bytes).map_err(StoreError::damaged("derived"))
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        codec::encode(STATE_VERSION, self)
    }

    pub(crate) fn write<S: StoreRead>(&self, txn: &mut Txn<'_, S>, range: &[u8]) {
        txn.put(Family::Derived, key(range), self.encode());
    }

    /// Of which nothing holds any more.
    pub(crate) fn restarted(self) -> Self {
        if self.rebuild.as_ref().is_some_and(Vec::is_empty) {
            return self;
        }
        Self {
            epoch: self.epoch.wrapping_add(1),
            rebuild: Some(Vec::new()),
            garbage: true,
            counts: Vec::new(),
        }
    }

    /// Of a field that holds nothing.
    pub(crate) fn emptied(self) -> Self {
        Self { rebuild: None, ..self.restarted() }
    }

    /// Whether all is in.
    pub fn is_whole(&self) -> bool {
        self.rebuild.is_none()
    }

    /// Whether what begins so is in.
    pub(crate) fn has(&self, base: &[u8]) -> bool {
        self.rebuild.as_ref().is_none_or(|cursor| base < cursor.as_slice())
    }

    /// Of a unique.
    pub fn histogram(&self) -> Histogram {
        Histogram::of_counts(&self.counts).unwrap_or_default()
    }

    pub(crate) fn set_histogram(&mut self, histogram: &Histogram) {
        self.counts = histogram.counts().to_vec();
    }
}

/// The key of a field's state.
pub fn key(range: &[u8]) -> Vec<u8> {
    [range, &[0]].concat()
}

/// The field and type of a state's key; `None` if it is another one.
pub(crate) fn range_of(key: &[u8]) -> Option<&[u8]> {
    let bytes = crate::keys::type_bytes(key).ok()?;
    (key.len() == bytes + 1 && key[bytes] == 0).then_some(&key[..bytes])
}

/// The first bytes of all keys of a zset's order in an epoch.
pub fn order_root(range: &[u8], epoch: u32) -> Vec<u8> {
    [range, &[1], &epoch.to_be_bytes()].concat()
}

/// The keys of all epochs before one: from and to (exclusive).
pub(crate) fn garbage(range: &[u8], epoch: u32) -> (Vec<u8>, Vec<u8>) {
    (order_root(range, 0), order_root(range, epoch))
}
