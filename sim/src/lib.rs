//! The deterministic simulator of Godwit: whole clusters in one thread, from one seed.
//!
//! It runs the very state machines that the server runs ([`godwit_proto::Node`] over [`godwit_core`]), with
//! virtual time, a network that can be cut, disks that lose what was not committed, and processes that crash; and
//! it compares every read with an independent specification. No clock, thread or random source is used: a seed
//! decides everything, and the digest of a run's trace proves it.
//!
//! - [`spec`]: the meaning of the types, as plain code over histories of events; shares nothing with the engine;
//! - [`oracle`]: what must hold (DESIGN.md §5), checked while a run goes on;
//! - [`world`], [`network`] and [`faults`]: nodes, disks, clocks, links and what goes wrong with them;
//! - [`workload`] and [`clients`]: what clients do, on tiny key spaces, since collisions find bugs;
//! - [`draw`], [`script`], [`config`]: from a seed to a script, which is all that comes from outside, with its times;
//! - [`recording`]: scripts as files;
//! - [`shrink`], [`failure`], [`timeline`]: a failure made short, in words, and as a picture;
//! - [`run`]: from a script to a verdict: faults, then healing and convergence ([`draws`]: what the world leaves to chance);
//! - [`vectors`]: histories with known answers through the same machines ([`cluster`]);
//! - [`recorded`]: what people really did, replayed exactly;
//! - [`scenario`]: what a cluster's clients would see, told in a file.

mod checks;
pub mod clients;
pub mod cluster;
pub mod config;
mod consumer;
mod damage;
mod disks;
pub mod draw;
pub mod draws;
mod edits;
mod event;
pub mod failure;
pub mod faults;
mod judge;
mod lines;
pub mod network;
pub mod oracle;
mod reads;
pub mod recorded;
pub mod recording;
mod requests;
pub mod run;
pub mod scenario;
pub mod script;
pub mod shrink;
pub mod spec;
mod stamps;
pub mod timeline;
pub mod trace;
pub mod vectors;
mod watch;
pub mod workload;
pub mod world;
