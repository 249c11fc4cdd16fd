//! What nodes say to each other while one repairs a partition's state from the other ([`crate::repair`]).

use bincode::{Decode, Encode};
use godwit_core::codec::CodecError;
use godwit_core::context::VersionVector;
use godwit_core::ids::PartitionId;
use godwit_core::requests::Sent;
use godwit_core::store::Entry;
use godwit_core::time::Hlc;

use super::MAX_MESSAGE_BYTES;

/// What one asks.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Pull {
    /// The partition.
    pub partition: PartitionId,
    /// Names the repair: random, and the source of the key of its hashes.
    pub repair: u64,
    /// What is asked for.
    pub ask: Ask,
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Ask {
    /// The rows beyond a context: the repair begins, or if the receiver knows it, goes on after its beginning.
    Begin {
        /// What the asker has.
        asked: VersionVector,
    },
    /// Everything up to this key has come.
    Took {
        /// Of what: 0 for the rows, then the lists by number.
        stream: u32,
        /// The key.
        upto: Vec<u8>,
        /// Whether what follows is to be sent again.
        again: bool,
    },
    /// The nodes below some nodes of the tree.
    Nodes {
        /// The depth of these, in bits.
        depth: u8,
        /// Which: the first bits of their hashes.
        positions: Vec<u32>,
    },
    /// All hashes in some leaves.
    List {
        /// The list's number, from 1.
        stream: u32,
        /// Which.
        positions: Vec<u32>,
    },
    /// Nothing yet: the asker looks through its own rows.
    Hold,
    /// Nothing more.
    End,
    /// The tree of the rows that a context covers, contents included, once the receiver covers it too: a scrub begins, or if
    /// the receiver knows it, goes on after its beginning.
    Compare {
        /// What the asker has.
        asked: VersionVector,
    },
    /// All rows in some leaves but for those with these hashes.
    Others {
        /// The list's number, from 1.
        stream: u32,
        /// Which.
        positions: Vec<u32>,
        /// Hashes of the asker's rows there.
        hashes: Vec<[u8; 8]>,
    },
}

/// What the other answers.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct State {
    /// The partition.
    pub partition: PartitionId,
    /// The repair.
    pub repair: u64,
    /// A part of it.
    pub part: Part,
}

/// A part of an answer.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Part {
    /// Not now: as many repairs are served as may be.
    Busy,
    /// The repair is not known (any more): it must be begun anew.
    Lost,
    /// Rows, in the order of their keys.
    Rows {
        /// What the sender had at the moment whose state it sends.
        theirs: VersionVector,
        /// The key after which they begin; empty at the beginning.
        after: Vec<u8>,
        /// The key up to which they are all; `None`: there are no more.
        upto: Option<Vec<u8>>,
        /// What the sender's clock said at most by then.
        clock: Hlc,
        /// The rows.
        rows: Rows,
        /// Idempotency keys of commits that the asker lacks: after all rows.
        requests: Vec<Sent>,
        /// At the end, the tree of what both know of.
        tree: Option<Root>,
    },
    /// The nodes below some nodes, sixteen for each.
    Nodes {
        /// The depth of the upper ones, in bits.
        depth: u8,
        /// Which.
        positions: Vec<u32>,
        /// The sums below.
        sums: Vec<[u8; 8]>,
    },
    /// Hashes.
    List {
        /// The list's number.
        stream: u32,
        /// The key after which their rows begin; empty at the beginning.
        after: Vec<u8>,
        /// The key up to which they are all; `None`: there are no more.
        upto: Option<Vec<u8>>,
        /// The hashes.
        hashes: Vec<[u8; 8]>,
    },
    /// Rows that the asker of a scrub has not.
    Others {
        /// The list's number.
        stream: u32,
        /// The key after which they begin; empty at the beginning.
        after: Vec<u8>,
        /// The key up to which they are all; `None`: there are no more.
        upto: Option<Vec<u8>>,
        /// The rows.
        rows: Rows,
    },
}

/// The top of a tree of hashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Root {
    /// By how many bits it divides them.
    pub bits: u8,
    /// The sum of all.
    pub sum: [u8; 8],
}

/// Stored rows, each key without what it shares with the one before.
#[derive(Debug, Clone, PartialEq, Eq, Default, Encode, Decode)]
pub struct Rows(Vec<Packed>);

#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
struct Packed {
    shared: u16,
    rest: Vec<u8>,
    value: Vec<u8>,
}

impl Rows {
    /// Packs rows that are in the order of their keys.
    pub fn pack(rows: Vec<Entry>) -> Self {
        let mut last: Vec<u8> = Vec::new();
        let mut packed = Vec::with_capacity(rows.len());
        for (key, value) in rows {
            let shared = last.iter().zip(&key).take_while(|(a, b)| a == b).count();
            let shared = u16::try_from(shared).unwrap_or(u16::MAX);
            packed.push(Packed { shared, rest: key[usize::from(shared)..].to_vec(), value });
            last = key;
        }
        Self(packed)
    }

    /// The rows.
    pub fn unpack(self) -> Result<Vec<Entry>, CodecError> {
        let mut last: Vec<u8> = Vec::new();
        let mut rows: Vec<Entry> = Vec::new();
        let mut bytes = 0;
        for Packed { shared, rest, value } in self.0 {
            let shared = last.get(..usize::from(shared));
            let key = [shared.ok_or_else(|| malformed("a row shares more than there is"))?, &rest].concat();
            bytes += key.len() + value.len();
            if bytes > UNPACKED_BYTES_MAX {
                return Err(malformed("rows that unpack to too many bytes"));
            }
            if key.len() > KEY_BYTES_MAX || (!rows.is_empty() && key <= last) {
                return Err(malformed("rows out of order, or a key that is too long"));
            }
            last.clone_from(&key);
            rows.push((key, value));
        }
        Ok(rows)
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The most bytes of a row's key: longer than the longest names, slot and dot.
const KEY_BYTES_MAX: usize = 4 * 1024;
/// The most bytes of one message's rows, unpacked.
const UNPACKED_BYTES_MAX: usize = 2 * MAX_MESSAGE_BYTES;

fn malformed(what: &str) -> CodecError {
    CodecError::Malformed(what.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn rows_come_back(rows: std::collections::BTreeMap<Vec<u8>, Vec<u8>>) {
            let rows: Vec<Entry> = rows.into_iter().collect();
            prop_assert_eq!(Rows::pack(rows.clone()).unpack(), Ok(rows));
        }
    }
}
