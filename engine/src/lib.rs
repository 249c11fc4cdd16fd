//! The RocksDB store of Godwit and the driver that commits to it: the IO around the pure `godwit-core`.
//!
//! This crate has clocks, files, threads and tokio. It has no network, and it knows the meaning of nothing it
//! stores: keys and values are bytes, inputs and outputs are opaque. Only the store's format version and the
//! node's [`identity`] are its own.
//!
//! 1. [`store`]: column families, durable atomic commits, snapshots, opening and refusing a data directory;
//! 2. [`identity`]: who this node is, as its data directory says;
//! 3. [`committer`]: group commit, the production driver of a [`godwit_core::machine::Machine`];
//! 4. [`stats`]: what the committer counts.

pub mod committer;
pub mod identity;
pub mod stats;
pub mod store;
