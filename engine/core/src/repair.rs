//! State repair: a partition's state as one delta, when no peer's log reaches back far enough.
//!
//! A node that is behind (the *asker*, with context `asked`) is sent the rows that another (with context `theirs`) has at
//! one moment, less those whose dots `asked` covers. Of the rows that both know of (dots that `asked` and `theirs` cover) it
//! finds those that the other has no more, by comparing trees of hashes. Then it *joins* the two states (the causal join of
//! Almeida, Shoker and Baquero, "Delta State Replicated Data Types", 2018):
//!
//! > a row that one side has and the other lacks is kept if the other's context does not cover its dot, and dropped if it does.
//!
//! So nothing comes back that was removed, and nothing is lost that the other did not know, however long the asker was away.
//!
//! What is sent is *staged*: kept beside the rows, where no reader and no commit sees it. When all of it is there, one small
//! batch makes it count, with the context that covers it ([`Settling`]): every reader from then on sees the joined state, and
//! none saw a part of it. The rows are moved to their places afterwards, a bounded step at a time ([`Settled`] lays those
//! over the rows that have not been moved yet). So it does not matter how much there is, nor what is applied meanwhile.
//!
//! # The join, row by row
//!
//! `before` is what the node has applied when the staged rows begin to count. It covers `asked`, and may cover more of
//! `theirs`: commits that came by other ways meanwhile. For one key, let `row` be what the node has there and `staged` what
//! was sent or found for it. Of two rows with one key the later dot has replaced the earlier.
//!
//! - `row` is kept if `theirs` does not cover it: the other did not know it.
//! - If `asked` and `theirs` cover it, it is kept unless it is staged as dropped (the other has it no more), or a later row
//!   of its key is staged (the other has that in its place).
//! - If `theirs` covers it and `asked` does not, it came meanwhile. What was sent is all that the other has beyond
//!   `asked`, so it is kept if it was sent, and dropped otherwise.
//! - `staged` is shown if `before` does not cover it: the node did not know it. If `before` does, the node has it as `row`, or
//!   has applied something that took it.
//!
//! This needs nothing but the key's own two entries and three contexts, so it can be evaluated at any time after, in any
//! order, as long as rows written later (their dots are in none of the three) put an end to what is staged under their key.

mod read;
mod settled;
mod settling;

pub use read::{Found, Leaves, Listed, ReadSizes, RepairRead, TREE_BITS_MAX, Wanted, leaf, run};
pub use settled::Settled;
pub use settling::{Settling, Settlings, Staged};

pub(crate) use read::DeadRows;
pub(crate) use settled::{get, scan};
pub(crate) use settling::{Choice, staged_dot};
