//! The pure core of Godwit: everything that gives a stored byte its meaning.
//!
//! This crate has no clock, no randomness, no file, no socket and no thread. Time and seeds come in as
//! arguments, effects go out as data, and the same code runs in the server and in the simulator.
//!
//! Read in this order:
//!
//! 1. [`ids`], [`time`], [`context`], [`token`]: names, stamps, dots and version vectors, what a client has seen;
//! 2. [`row`] and [`delta`]: what is stored, and what one commit changed;
//! 3. [`types`]: one module a CRDT type, each with its semantics and its invariant in the header;
//! 4. [`commit`]: operations to delta; [`partition`]: deltas to rows, log and context; [`interval`]: runs of deltas;
//!    [`fields`], [`derived`] and [`requests`]: what a node remembers besides;
//! 5. [`read`]: rows to values; [`feed`]: which of them changed;
//! 6. [`store`] and [`machine`]: the two boundaries to the world.

pub mod codec;
pub mod commit;
pub mod context;
pub mod delta;
pub mod derived;
pub mod digest;
pub mod document;
pub mod feed;
pub mod fields;
pub mod ids;
pub mod interval;
pub mod json;
pub mod keys;
pub mod machine;
pub mod op;
pub mod partition;
pub mod read;
pub mod repair;
pub mod requests;
pub mod rng;
pub mod row;
pub mod store;
pub mod time;
pub mod token;
pub mod types;
pub mod usage;
