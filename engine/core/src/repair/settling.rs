//! What is staged in a partition, and when it counts.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use bincode::{Decode, Encode};

use crate::codec::{self, CodecError};
use crate::context::{Dot, VersionVector};
use crate::ids::PartitionId;
use crate::keys;
use crate::store::{Family, StoreError, StoreRead};

const SETTLING_VERSION: u8 = 1;
const STAGED_VERSION: u8 = 1;

/// What is staged for a row's key.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Staged {
    /// The row that the other side has: its stored value.
    Row(Vec<u8>),
    /// The other side has this node's row no more, up to this counter.
    Drop(u64),
}

impl Staged {
    /// The entry's bytes.
    pub fn encode(&self) -> Vec<u8> {
        codec::encode(STAGED_VERSION, self)
    }

    /// Reads an entry's bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        codec::decode(STAGED_VERSION, bytes)
    }
}

/// The same with the row's dot instead of the row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StagedDot {
    Row(Dot),
    Drop(u64),
}

/// Takes a staged entry's dot.
pub(crate) fn staged_dot(key: &[u8], staged: &Staged) -> Result<StagedDot, CodecError> {
    match staged {
        Staged::Row(value) => keys::row_dot(key, value).map(StagedDot::Row),
        Staged::Drop(counter) => Ok(StagedDot::Drop(*counter)),
    }
}

/// What a reader sees under a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Choice {
    Row,
    Staged,
    Nothing,
}

/// A partition whose staged rows count, and are being moved to their places.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Settling {
    /// What this node had when it asked.
    pub asked: VersionVector,
    /// What the other side had when its rows were read.
    pub theirs: VersionVector,
    /// What this node had when the staged rows began to count.
    pub before: VersionVector,
    /// Keys before this one have been moved: their rows are what they are.
    pub cursor: Vec<u8>,
}

impl Settling {
    /// Whether rows of commits that came meanwhile may have to go that nothing staged names.
    pub(crate) fn overlaps(&self) -> bool {
        let came = |dot: Dot| self.before.get(dot.replica).min(dot.counter) > self.asked.get(dot.replica);
        self.theirs.iter().any(came)
    }

    pub(crate) fn choose(&self, row: Option<Dot>, staged: Option<StagedDot>) -> Choice {
        let is_kept = |dot: Dot| {
            if !self.theirs.covers(dot) {
                return true;
            }
            match staged {
                _ if !self.asked.covers(dot) => staged == Some(StagedDot::Row(dot)),
                Some(StagedDot::Row(later)) => later == dot,
                Some(StagedDot::Drop(counter)) => counter < dot.counter,
                None => true,
            }
        };
        match (row, staged) {
            (Some(dot), _) if is_kept(dot) => Choice::Row,
            (_, Some(StagedDot::Row(dot))) if !self.before.covers(dot) => Choice::Staged,
            _ => Choice::Nothing,
        }
    }

    fn decode(bytes: &[u8]) -> Result<Self, StoreError> {
        codec::decode(SETTLING_VERSION, bytes).map_err(StoreError::damaged("meta: settling"))
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        codec::encode(SETTLING_VERSION, self)
    }
}

/// The partitions of which that is true: usually none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settlings(BTreeMap<PartitionId, Settling>);

impl Settlings {
    /// Reads what a store says.
    pub fn open(store: &impl StoreRead) -> Result<Self, StoreError> {
        let mut settlings = BTreeMap::new();
        let mut outcome = Ok(());
        store.scan_prefix(Family::Meta, keys::SETTLING, &mut |key, value| {
            let id = keys::parse_settling(key).map_err(StoreError::damaged("meta: settling"));
            match id.and_then(|id| Ok((id, Settling::decode(value)?))) {
                Ok((id, settling)) => {
                    settlings.insert(id, settling);
                    ControlFlow::Continue(())
                }
                Err(error) => {
                    outcome = Err(error);
                    ControlFlow::Break(())
                }
            }
        })?;
        outcome.map(|()| Self(settlings))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A partition's.
    pub fn get(&self, id: PartitionId) -> Option<&Settling> {
        self.0.get(&id)
    }

    /// Takes note of a partition, or strikes it off.
    pub fn set(&mut self, id: PartitionId, settling: Option<Settling>) {
        match settling {
            Some(settling) => drop(self.0.insert(id, settling)),
            None => drop(self.0.remove(&id)),
        }
    }

    /// The one that a row's key is subject to.
    pub(crate) fn of(&self, key: &[u8]) -> Option<&Settling> {
        self.partition_of(key).filter(|settling| key >= settling.cursor.as_slice())
    }

    /// The one that some key of a range may be subject to.
    pub(crate) fn of_prefix(&self, prefix: &[u8]) -> Option<&Settling> {
        self.partition_of(prefix).filter(|settling| keys::after_prefix(prefix) > settling.cursor)
    }

    /// Whether some key from `from` to `to` (exclusive) may be subject to one.
    pub(crate) fn within(&self, from: &[u8], to: &[u8]) -> bool {
        self.0.iter().any(|(&id, settling)| {
            let all = keys::partition_prefix(id);
            from < keys::after_prefix(&all).as_slice() && settling.cursor.as_slice().max(all.as_slice()) < to
        })
    }

    fn partition_of(&self, key: &[u8]) -> Option<&Settling> {
        let id = key.get(..2)?;
        self.0.get(&PartitionId(u16::from_be_bytes([id[0], id[1]])))
    }
}
