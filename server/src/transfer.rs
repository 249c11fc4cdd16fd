//! `godwit export` and `godwit import`: a namespace as JSON Lines, over the HTTP API of one node.
//!
//! | module | holds |
//! |---|---|
//! | `line` | the form of the file's lines |
//! | `client` | requests to the node, and which of them are tried again |
//! | `export` | reading a namespace, page by page |
//! | `batch` | lines gathered into requests: where one ends depends on the lines alone |
//! | `import` | writing batches, several at a time, and from where to resume |
//! | `progress` | what is told on standard error |
//!
//! What holds: memory does not grow with the namespace. A register's JSON is copied byte by byte, and never goes through a
//! number. What this version does not know (a type, a member of an object) stops it with an error: nothing is left out
//! silently. An increment that is imported counts once, however often a request is tried again or an import is resumed.

mod batch;
mod client;
mod export;
mod import;
mod line;
mod progress;

pub use export::{ExportArguments, run as export};
pub use import::{ImportArguments, run as import};
