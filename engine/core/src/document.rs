//! Documents: from rows to an Automerge document, what is read of it, and edits of it.
//!
//! What a document's rows mean is told by [`crate::types::document`]. This module is pure, and may be slow: it is for threads that may
//! block, never for the machine. Automerge is given only chunks that [`chunk`] has read, and never draws an actor's id of its own.
//!
//! A failure inside Automerge, a panic too, is an error here ([`DocumentError::Failed`]). After one a [`Document`] is to be dropped.

pub mod chunk;
mod diff;
mod edit;
mod json;
mod make;
mod select;
mod sync;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use automerge::{ActorId, Automerge, LoadOptions, OnPartialLoad, TextEncoding};

pub use automerge::ChangeHash;
pub use edit::{EditError, Patch, PatchError};
pub use make::{DocumentLimits, Documents, MakeError, Touched, Unmade, is_wanted, make};
pub use select::{Selected, Selection, Stored, select};
pub use sync::{SyncMessage, SyncState};

use chunk::{Change, ChunkError, Kind};

/// A change, and what it says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// What it says of itself.
    pub change: Change,
    /// Its chunk.
    pub bytes: Vec<u8>,
}

impl Encoded {
    /// Reads a change's chunk.
    pub fn parse(bytes: Vec<u8>) -> Result<Self, ChunkError> {
        Ok(Self { change: Change::parse(&bytes)?, bytes })
    }

    /// About the memory that it takes, in bytes.
    pub fn bytes_held(&self) -> usize {
        let Change { deps, actor, message, .. } = &self.change;
        let named = actor.len() + message.as_ref().map_or(0, String::len);
        size_of::<Self>() + self.bytes.len() + named + size_of_val(deps.as_slice())
    }
}

/// What is wrong with a document.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    /// It is not of Automerge's format, or stands for too much.
    #[error(transparent)]
    Chunk(#[from] ChunkError),
    /// Automerge cannot make a document of it.
    #[error("Automerge does not take it: {0}")]
    Failed(String),
    /// It is nested deeper than [`crate::json::MAX_DEPTH`].
    #[error("the document is nested deeper than {} levels", crate::json::MAX_DEPTH)]
    TooDeep,
    /// There is no such place, or none of that kind.
    #[error("{0}")]
    NotThere(String),
    /// These heads are none of the document.
    #[error("the document has no change {0}")]
    UnknownHead(ChangeHash),
}

/// An open document.
#[derive(Debug, Clone)]
pub struct Document {
    automerge: Automerge,
    /// Bytes of all changes before compression.
    raw_bytes: usize,
    /// Operations of all changes.
    ops: u64,
    /// How many changes it has.
    changes: usize,
}

impl Default for Document {
    fn default() -> Self {
        let mut automerge = Automerge::new_with_encoding(TextEncoding::UnicodeCodePoint);
        // Never that which Automerge draws.
        automerge.set_actor(ActorId::from([0; 16]));
        Self { automerge, raw_bytes: 0, ops: 0, changes: 0 }
    }
}

impl Document {
    /// Adds changes that build on nothing but each other and what the document has.
    pub fn apply<'c>(&mut self, changes: impl IntoIterator<Item = &'c Encoded>) -> Result<(), DocumentError> {
        let (mut decoded, mut raw_bytes, mut ops) = (Vec::new(), 0, 0);
        for Encoded { change, bytes } in changes {
            raw_bytes += change.raw_bytes;
            ops += change.ops;
            decoded.push(bytes.clone());
        }
        let count = decoded.len();
        guarded(|| {
            let changes = decoded.into_iter().map(automerge::Change::from_bytes);
            let changes = changes.collect::<Result<Vec<_>, _>>().map_err(failed)?;
            let hashes: Vec<ChangeHash> = changes.iter().map(automerge::Change::hash).collect();
            self.automerge.apply_changes(changes).map_err(failed)?;
            match hashes.iter().find(|hash| !self.has(hash)) {
                Some(left_out) => Err(DocumentError::Failed(format!("it leaves out change {left_out}"))),
                None => Ok(()),
            }
        })?;
        self.raw_bytes += raw_bytes;
        self.ops += ops;
        self.changes += count;
        Ok(())
    }

    /// As [`Self::apply`], for changes of clients: also refuses what Automerge understands but would itself write in another way. It keeps
    /// operations, not bytes, so a file saved with such a change could not be loaded.
    pub fn admit<'c>(&mut self, changes: impl IntoIterator<Item = &'c Encoded>) -> Result<(), DocumentError> {
        let new: BTreeMap<ChangeHash, &Encoded> =
            changes.into_iter().map(|encoded| (encoded.change.hash, encoded)).collect();
        let before = self.heads();
        self.apply(new.values().copied())?;
        guarded(|| {
            let written = self.automerge.get_changes(&before);
            let differs = |change: &automerge::Change| !new.contains_key(&change.hash());
            match written.len() != new.len() || written.iter().any(differs) {
                true => {
                    Err(DocumentError::Failed("a change is not encoded as Automerge encodes it".to_owned()))
                }
                false => Ok(()),
            }
        })
    }

    /// Brings it to exactly these changes, each after those that it builds on. Tells whether it went on from what it had; it begins anew
    /// if it has others.
    pub fn bring(&mut self, changes: &[Selected]) -> Result<bool, DocumentError> {
        let new = changes.iter().map(|selected| &selected.encoded);
        let new: Vec<&Encoded> = new.filter(|encoded| !self.has(&encoded.change.hash)).collect();
        let goes_on = self.changes + new.len() == changes.len();
        if goes_on {
            self.apply(new)?;
        } else {
            *self = Self::default();
            self.apply(changes.iter().map(|selected| &selected.encoded))?;
        }
        Ok(goes_on)
    }

    /// The changes that no other one builds on, in order.
    pub fn heads(&self) -> Vec<ChangeHash> {
        let mut heads = self.automerge.get_heads();
        heads.sort_unstable();
        heads
    }

    /// Whether it has a change.
    pub fn has(&self, hash: &ChangeHash) -> bool {
        self.automerge.get_change_meta_by_hash(hash).is_some()
    }

    /// Bytes of its changes before compression.
    pub fn raw_bytes(&self) -> usize {
        self.raw_bytes
    }

    /// Operations of its changes.
    pub fn ops(&self) -> u64 {
        self.ops
    }

    /// Automerge's file of it, as it is or was at heads.
    pub fn save(&self, heads: Option<&[ChangeHash]>) -> Result<Vec<u8>, DocumentError> {
        self.check_heads(heads)?;
        guarded(|| match heads {
            Some(heads) => Ok(self.automerge.fork_at(heads).map_err(failed)?.save()),
            None => Ok(self.automerge.save()),
        })
    }

    /// The changes that heads do not have, in causal order.
    pub fn changes_since(&self, heads: &[ChangeHash]) -> Result<Vec<Vec<u8>>, DocumentError> {
        self.check_heads(Some(heads))?;
        guarded(|| {
            let changes = self.automerge.get_changes(heads);
            Ok(changes.into_iter().map(|mut change| change.bytes().into_owned()).collect())
        })
    }

    /// JSON of all of it, as it is or was at heads.
    pub fn json(&self, heads: Option<&[ChangeHash]>) -> Result<String, DocumentError> {
        self.check_heads(heads)?;
        guarded(|| json::of_document(&self.automerge, heads))
    }

    /// The text at a JSON Pointer; without one, the only text among the document's first level.
    pub fn text(&self, pointer: Option<&str>, heads: Option<&[ChangeHash]>) -> Result<String, DocumentError> {
        self.check_heads(heads)?;
        guarded(|| json::text(&self.automerge, pointer, heads))
    }

    /// What makes the document at some heads of what it was at others: a JSON Patch with splices, as [`Patch`] takes.
    pub fn diff(&self, from: &[ChangeHash], to: &[ChangeHash]) -> Result<String, DocumentError> {
        self.check_heads(Some(from))?;
        self.check_heads(Some(to))?;
        guarded(|| Ok(diff::patch(&self.automerge, from, to)))
    }

    /// Makes a change of a patch, at a time in seconds since 1970, and has it; `None` if nothing changes. Nothing else may ever have
    /// made or make a change as this actor that the document does not have.
    pub fn edit(&mut self, actor: &[u8], time: i64, patch: &Patch) -> Result<Option<Encoded>, EditError> {
        let bytes = guarded(|| Ok(edit::apply(&mut self.automerge, actor, time, patch)))??;
        let Some(bytes) = bytes else { return Ok(None) };
        let encoded = Encoded::parse(bytes).map_err(DocumentError::from)?;
        self.raw_bytes += encoded.change.raw_bytes;
        self.ops += encoded.change.ops;
        self.changes += 1;
        Ok(Some(encoded))
    }

    /// Refuses what is nested too deep to be shown.
    pub fn check_depth(&self) -> Result<(), DocumentError> {
        guarded(|| json::check_depth(&self.automerge))
    }

    fn check_heads(&self, heads: Option<&[ChangeHash]>) -> Result<(), DocumentError> {
        let unknown = |head: &&ChangeHash| !self.has(head);
        match heads.into_iter().flatten().find(unknown) {
            Some(head) => Err(DocumentError::UnknownHead(*head)),
            None => Ok(()),
        }
    }
}

/// The changes of a file, each once and after those that it builds on: of a saved document, or of changes one after the other.
pub fn changes_of_file(bytes: &[u8]) -> Result<Vec<Encoded>, DocumentError> {
    let chunks = chunk::chunks(bytes)?;
    if chunks.iter().all(|chunk| chunk.kind == Kind::Change) {
        return each_once(chunks.into_iter().map(|chunk| chunk.bytes.to_vec()));
    }
    let changes = guarded(|| {
        let options = LoadOptions::new()
            .text_encoding(TextEncoding::UnicodeCodePoint)
            .on_partial_load(OnPartialLoad::Error);
        let document = Automerge::load_with_options(bytes, options).map_err(failed)?;
        let changes = document.get_changes(&[]);
        Ok(changes.into_iter().map(|mut change| change.bytes().into_owned()).collect::<Vec<_>>())
    })?;
    each_once(changes)
}

fn each_once(changes: impl IntoIterator<Item = Vec<u8>>) -> Result<Vec<Encoded>, DocumentError> {
    let mut once = BTreeMap::new();
    for bytes in changes {
        let encoded = Encoded::parse(bytes)?;
        once.insert(encoded.change.hash, encoded);
    }
    Ok(select::in_causal_order(once))
}

/// A panic within Automerge is an error of its input.
fn guarded<T>(with_automerge: impl FnOnce() -> Result<T, DocumentError>) -> Result<T, DocumentError> {
    // Unwind safety: what was being changed is dropped by whoever is told.
    catch_unwind(AssertUnwindSafe(with_automerge))
        .unwrap_or_else(|_| Err(DocumentError::Failed("it failed within".to_owned())))
}

fn failed(error: impl std::fmt::Display) -> DocumentError {
    DocumentError::Failed(error.to_string())
}

#[cfg(test)]
mod tests;
