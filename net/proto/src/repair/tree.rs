//! Trees of hashes: what each side makes of its rows, and the way down to where two of them differ.

use crate::message::repair::Ask;

/// Nodes of a tree asked about in one message.
pub(crate) const NODES_MAX: usize = 4096;
/// How many bits one level of a tree adds.
pub(crate) const LEVEL_BITS: u8 = 4;
/// Rows that a leaf holds, about, if they are many.
const LEAF_ROWS: u64 = 4;

/// The sums of a tree's leaves.
#[derive(Debug)]
pub(crate) struct Tree {
    bits: u8,
    leaves: Vec<u64>,
}

impl Tree {
    pub(crate) fn new(bits: u8) -> Self {
        Self { bits, leaves: vec![0; 1 << bits] }
    }

    pub(crate) fn bits(&self) -> u8 {
        self.bits
    }

    pub(crate) fn add(&mut self, hash: u64) {
        let leaf = godwit_core::repair::leaf(hash, self.bits) as usize;
        self.leaves[leaf] = self.leaves[leaf].wrapping_add(hash);
    }

    /// The same rows, divided by fewer bits.
    pub(crate) fn cut(&self, bits: u8) -> Self {
        let leaves = (0..1u32 << bits).map(|at| self.sum(bits, at)).collect();
        Self { bits, leaves }
    }

    /// The sum below a node.
    ///
    /// # Panics
    /// If there is no such node.
    pub(crate) fn sum(&self, depth: u8, position: u32) -> u64 {
        let below = 1usize << (self.bits - depth);
        let from = position as usize * below;
        self.leaves[from..from + below].iter().fold(0, |sum, leaf| sum.wrapping_add(*leaf))
    }
}

/// By how many bits the tree of so many rows divides them.
pub(crate) fn tree_bits(rows: u64, most: u8) -> u8 {
    let mut bits = 0;
    while bits < most && (LEAF_ROWS << bits) < rows {
        bits += LEVEL_BITS;
    }
    bits.min(most)
}

/// The way down a tree, a level a round trip: nodes of a depth that differ, those that are asked about first.
#[derive(Debug)]
pub(crate) struct Descent {
    depth: u8,
    differ: Vec<u32>,
    below: Vec<u32>,
}

/// What became of an answer.
#[derive(Debug)]
pub(crate) enum Came {
    /// It was none to what is asked.
    Passed,
    /// No correct peer sends it.
    Wrong,
    /// More is to be asked.
    More,
    /// These leaves differ.
    Leaves(Vec<u32>),
}

impl Descent {
    /// The roots differ.
    pub(crate) fn new() -> Self {
        Self { depth: 0, differ: vec![0], below: Vec::new() }
    }

    /// What to ask next.
    pub(crate) fn ask(&self) -> Ask {
        let positions = self.differ[..self.differ.len().min(NODES_MAX)].to_vec();
        Ask::Nodes { depth: self.depth, positions }
    }

    /// The sums below some nodes came.
    pub(crate) fn came(&mut self, tree: &Tree, depth: u8, positions: &[u32], sums: &[[u8; 8]]) -> Came {
        if self.depth != depth || positions.is_empty() || !self.differ.starts_with(positions) {
            return Came::Passed;
        }
        if sums.len() != positions.len() << LEVEL_BITS {
            return Came::Wrong;
        }
        let children = positions.iter().flat_map(|at| (at << LEVEL_BITS)..((at + 1) << LEVEL_BITS));
        let lower = depth + LEVEL_BITS;
        let others = children.zip(sums).filter(|(at, sum)| tree.sum(lower, *at).to_be_bytes() != **sum);
        self.below.extend(others.map(|(at, _)| at));
        self.differ.drain(..positions.len());
        if self.differ.is_empty() {
            self.differ = std::mem::take(&mut self.below);
            self.depth = lower;
            if lower == tree.bits() {
                return Came::Leaves(std::mem::take(&mut self.differ));
            }
        }
        Came::More
    }
}
