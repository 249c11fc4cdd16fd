//! Fuzzing: functions from any bytes to nothing, which panic if what must always hold does not.
//!
//! | target | takes the bytes as | and holds |
//! |---|---|---|
//! | [`messages`](decoding::messages) | a message of either wire version | what is read is written and read again the same |
//! | [`deltas`](decoding::deltas) | a delta of either format | the same, and a partition takes it or refuses it |
//! | [`stored`](decoding::stored) | what the store keeps: rows, field states, keys | it is read or refused |
//! | [`documents`](documents::documents) | an Automerge file or changes | what is taken is the same document in every form |
//! | [`sync`](sync::sync) | a message of a client of automerge-repo | what is to be committed can be, and the document stays whole |
//! | [`intervals`](intervals::intervals) | a history of commits, cuts and syncs | an interval does what its deltas do one by one |
//! | [`repairs`](repairs::repairs) | a history of commits, syncs and repairs | a repair does what the commits do that it stands for |
//! | [`conversation`](conversation::conversation) | what two hostile peers say to a node | the node stays whole, and passes on what it took |
//!
//! They run three ways: under `cargo fuzz` (`tests/fuzz`, which needs a nightly compiler), under the `fuzz` binary of this
//! crate, which mutates the corpora without guidance on the stable one, and in `make test`, which replays the corpora and
//! runs a fixed number of mutations (`tests/tests/fuzz_corpora.rs`).

pub mod bytes;
pub mod conversation;
pub mod corpus;
pub mod decoding;
pub mod documents;
mod history;
pub mod intervals;
pub mod made;
pub mod mutator;
pub mod repairs;
pub mod sync;

/// A function under test, and the directory of its corpus in `tests/fuzz/corpus`.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name, which is the directory's.
    pub name: &'static str,
    /// Panics if the bytes show a fault.
    pub run: fn(&[u8]),
}

/// Every target.
pub const TARGETS: [Target; 8] = [
    Target { name: "messages", run: decoding::messages },
    Target { name: "deltas", run: decoding::deltas },
    Target { name: "stored", run: decoding::stored },
    Target { name: "documents", run: documents::documents },
    Target { name: "sync", run: sync::sync },
    Target { name: "intervals", run: intervals::intervals },
    Target { name: "repairs", run: repairs::repairs },
    Target { name: "conversation", run: conversation::conversation },
];
