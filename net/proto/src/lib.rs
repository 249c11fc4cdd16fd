//! The replication protocol of Godwit as one pure state machine.
//!
//! [`Node`] is a node of the cluster without its IO: it takes commits of clients and messages of peers, and
//! answers with a batch to commit, messages to send, and replies. It has no clock, no socket, no file and no
//! randomness of its own; the server and the simulator run this very code (see [`godwit_core::machine`]).
//!
//! # The protocol
//!
//! Truth is what a node has durably applied: for each partition a version vector, its *context*. Everything else
//! that two nodes keep about each other is a guess that may be thrown away, so any message may be lost, doubled
//! or late, and a link may break anywhere.
//!
//! 1. **Greeting** ([`peer`]). On a new link both sides say who they are; different clusters or partition counts
//!    part ways. Then both tell all their contexts.
//! 2. **Push** ([`push`]). A node sends its *own* deltas to every peer that is nearly up to date: new ones as soon as
//!    they are durable. So each delta crosses a link once, and never goes back to its origin.
//! 3. **Contexts** ([`contexts`]). What a node applies it tells its peers, soon after and periodically. That
//!    acknowledges pushes, and lets a peer see that others have what it lacks.
//! 4. **Catching up** ([`catch_up`]). A node that is behind, or for too long lacks what a peer has from a third, asks a
//!    peer, and gets runs of its log merged into intervals. So two regions that both reach a third converge though the
//!    link between them is cut, and a million increments of one counter heal for what one costs.
//! 5. **Incarnations** ([`incarnation`]). Under which replica id a starting node writes.
//! 6. **Retention** ([`retention`]). The log is truncated by size and age, whoever is behind. A node says when its log does
//!    not reach back to what a peer has ([`gone`]).
//! 7. **State repair** ([`repair`]). Where no log reaches back far enough, a partition's state is joined with a peer's.
//! 8. **Scrub** ([`scrub`]). What is stored is compared with each peer's now and then, and what was lost is put back.
//!
//! Deltas are applied in causal order ([`godwit_core::partition`]). The least missing delta in causal order is
//! always the next one of its origin's stream and can be applied on arrival, so streams never wait for each
//! other in a circle; and an interval is a run of a log, which what its receiver has already is all that it needs.

pub mod catch_up;
pub mod contexts;
pub mod gone;
pub mod incarnation;
pub mod interface;
pub mod message;
pub mod node;
pub mod peer;
pub mod push;
pub mod repair;
pub mod retention;
pub mod scrub;
pub mod status;

pub use interface::{Alarm, Input, LinkId, Output, ReaderId, Reply, RequestId};
pub use message::Message;
pub use node::{Node, NodeConfig, Tuning};
