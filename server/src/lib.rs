//! The shell around the state machines: configuration, HTTP API, and the node that runs them.
//!
//! 1. [`config`]: what an operator says, checked before anything is opened;
//! 2. [`node`]: one running node, from its data directory to its links, and how it stops;
//! 3. [`http`]: the API, over a [`node::NodeHandle`];
//! 4. [`cli`]: the command line of the binary `godwit`;
//! 5. `demo`: three regions in one process, cut, healed, restarted and proved equal;
//! 6. `verify`: nodes compared over HTTP, from outside;
//! 7. `transfer`: a namespace exported and imported over HTTP, from outside.
//!
//! The crate is a library so that the demo and tests start nodes in their own process; the binary adds nothing.
//! What is absent: nothing here looks into a row, a delta or a message.

mod ca;
pub mod cli;
pub mod config;
mod demo;
pub mod http;
mod logging;
pub mod node;
mod transfer;
mod verify;
