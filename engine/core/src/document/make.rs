//! From edits to changes: what a write does to documents, worked out before it is committed.
//!
//! The machine takes changes and nothing else of documents ([`Op::Change`]). Whoever hands it a write first has each edit made here, on
//! the document as the operations before it leave it, and each change tried: what Automerge does not take is refused before it is
//! anywhere.

use std::collections::BTreeMap;

use super::{ChangeHash, Document, DocumentError, EditError, Encoded, Patch, PatchError};
use crate::context::Seen;
use crate::ids::Field;
use crate::json::Json;
use crate::op::Op;

/// Documents of one record.
pub trait Documents {
    /// Why one cannot be opened.
    type Error;

    /// Opens a document as its node has it; if `cleared` is given, as a clear leaves it that has seen that.
    fn open(&mut self, field: &Field, cleared: Option<&Seen>) -> Result<Document, Self::Error>;

    /// The actor of the next edit of a document: see [`Document::edit`].
    fn actor(&mut self, field: &Field, document: &Document) -> Result<[u8; 16], Self::Error>;
}

/// What a document may come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DocumentLimits {
    /// The most bytes of its changes before compression.
    pub bytes_max: usize,
    /// The most operations of its changes.
    pub ops_max: u64,
}

/// Why an operation on a document is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unmade {
    /// The patch cannot be read.
    #[error(transparent)]
    Patch(#[from] PatchError),
    /// The patch does not fit the document.
    #[error(transparent)]
    Edit(#[from] EditError),
    /// The document would not hold.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// Changes build on others that are not there.
    #[error("it lacks changes that these build on, or they were cleared: send them too ({})", crate::op::listed(.0))]
    Missing(Vec<ChangeHash>),
    /// It would be larger than allowed.
    #[error("the document would have {found} {what}, at most {max} are allowed")]
    TooLarge {
        /// Of what.
        what: &'static str,
        /// How many.
        found: u64,
        /// The limit.
        max: u64,
    },
}

/// Why the operations of a write cannot be committed.
#[derive(Debug)]
pub enum MakeError<E> {
    /// One is refused: its index.
    Refused(usize, Unmade),
    /// A document cannot be opened.
    Open(E),
}

/// The documents that operations touched, as they leave them.
pub type Touched = BTreeMap<Field, Document>;

/// Whether some operation is about a document's content.
pub fn is_wanted(ops: &[Op]) -> bool {
    ops.iter().any(|op| matches!(op, Op::Edit { .. } | Op::Change { .. }))
}

/// Makes the edits among the operations on one record, at a time in seconds since 1970, into changes, and tries all changes. `seen` is what
/// the client says that it has seen. An edit that changes nothing stays as a change of nothing.
pub fn make<D: Documents>(
    ops: &mut [Op],
    documents: &mut D,
    seen: Option<&Seen>,
    time: i64,
    limits: DocumentLimits,
) -> Result<Touched, MakeError<D::Error>> {
    let mut touched: BTreeMap<Field, Document> = BTreeMap::new();
    let mut cleared: Vec<Field> = Vec::new();
    let mut deleted = false;
    for (index, op) in ops.iter_mut().enumerate() {
        let field = match op {
            Op::Clear { field } => {
                touched.remove(field);
                cleared.push(field.clone());
                continue;
            }
            Op::Delete => {
                touched.clear();
                deleted = true;
                continue;
            }
            Op::Change { field, .. } | Op::Edit { field, .. } => field.clone(),
            _ => continue,
        };
        if !touched.contains_key(&field) {
            let is_cleared = deleted || cleared.contains(&field);
            let document = match (is_cleared, seen) {
                (true, None) => Document::default(),
                (true, Some(seen)) => documents.open(&field, Some(seen)).map_err(MakeError::Open)?,
                (false, _) => documents.open(&field, None).map_err(MakeError::Open)?,
            };
            touched.insert(field.clone(), document);
        }
        let document = touched.entry(field.clone()).or_default();
        let changes = match op {
            Op::Edit { patch, .. } => {
                let actor = documents.actor(&field, document).map_err(MakeError::Open)?;
                edit(document, &actor, time, patch)
            }
            Op::Change { changes, .. } => admit(document, changes).map(|()| std::mem::take(changes)),
            _ => continue,
        };
        let changes = changes.and_then(|changes| within(document, limits).map(|()| changes));
        *op = Op::Change { field, changes: changes.map_err(|unmade| MakeError::Refused(index, unmade))? };
    }
    Ok(touched)
}

fn edit(document: &mut Document, actor: &[u8; 16], time: i64, patch: &Json) -> Result<Vec<Encoded>, Unmade> {
    let patch = Patch::parse(patch)?;
    Ok(document.edit(actor, time, &patch)?.into_iter().collect())
}

fn admit(document: &mut Document, changes: &[Encoded]) -> Result<(), Unmade> {
    let given: BTreeMap<ChangeHash, &Encoded> =
        changes.iter().map(|encoded| (encoded.change.hash, encoded)).collect();
    let deps = changes.iter().flat_map(|encoded| &encoded.change.deps);
    let mut missing: Vec<ChangeHash> =
        deps.filter(|dep| !given.contains_key(dep) && !document.has(dep)).copied().collect();
    if !missing.is_empty() {
        missing.sort_unstable();
        missing.dedup();
        return Err(Unmade::Missing(missing));
    }
    let new = given.into_values().filter(|encoded| !document.has(&encoded.change.hash));
    let new: Vec<&Encoded> = new.collect();
    Ok(document.admit(new)?)
}

fn within(document: &Document, limits: DocumentLimits) -> Result<(), Unmade> {
    let (bytes, bytes_max) = (document.raw_bytes() as u64, limits.bytes_max as u64);
    if bytes > bytes_max {
        return Err(Unmade::TooLarge { what: "bytes of changes", found: bytes, max: bytes_max });
    }
    if document.ops() > limits.ops_max {
        return Err(Unmade::TooLarge { what: "operations", found: document.ops(), max: limits.ops_max });
    }
    Ok(document.check_depth()?)
}
