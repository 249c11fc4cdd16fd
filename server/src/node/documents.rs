//! Open documents: kept in memory so that a read or an edit of a large one need not make it of its changes again.
//!
//! What holds:
//!
//! - *A document is what the store says.* An open one is brought to what a snapshot of the store has before anything is read of it or done
//!   to it ([`Kept`]).
//! - *One edit of a document at a time is made at a node*, from opening it until its commit is known. Each edit is a change with a number
//!   of an actor, and no two may share one. The actor is drawn when the open document is first edited, and is never used again once that
//!   is closed, begins anew, or has had an edit of which it is not known that it was committed.
//! - An edit whose client has gone is made to its end.
//! - Memory is bounded: documents are closed, those used longest ago first, beyond what [`OpenDocuments::new`] is told; and few large ones
//!   are made of their changes at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use godwit_core::context::Seen;
use godwit_core::document::{self, Document, DocumentError, Documents, MakeError, Touched};
use godwit_core::ids::{Field, PartitionId, RecordId};
use godwit_core::op::{Op, Reason, Refusal, Terms, Write};
use godwit_core::partition::{CommitError, stored_context};
use godwit_core::read::{self, BringError, DocumentValue, FieldView, Kept, KeptPlace, ReadAt, Value};
use godwit_core::requests;
use godwit_core::store::StoreError;
use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit};

use super::handle::{CommitFailure, Committed, NodeHandle, ReadFailure, StoreView};

/// How long an edit waits for those before it.
const TURN_MAX: Duration = Duration::from_secs(5);
/// How long a read waits for those before it: many clients may look at one document at the same moment.
const READ_WAIT_MAX: Duration = Duration::from_millis(200);
/// How often an edit is made that clears come before.
const ATTEMPTS_MAX: usize = 8;
/// How long such an edit waits for something to be written.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// Bytes of changes from which on a document is large.
const LARGE_BYTES: usize = 256 * 1024;
/// Large documents that are made of their changes at a time.
const LARGE_AT_ONCE: usize = 2;
/// Memory that an open document takes beyond its content.
const OPEN_BYTES: usize = 16 * 1024;
/// About how much memory an operation takes.
const OPERATION_BYTES: u64 = 24;

type Name = (RecordId, Field);
type Slot = Arc<tokio::sync::Mutex<Option<Open>>>;

/// The open documents of a node.
#[derive(Debug)]
pub(crate) struct OpenDocuments {
    all: Mutex<All>,
    large: [Mutex<()>; LARGE_AT_ONCE],
}

#[derive(Debug, Default)]
struct All {
    by_name: BTreeMap<Name, Entry>,
    /// By when they were last used.
    by_use: BTreeMap<u64, Name>,
    uses: u64,
    bytes: usize,
    bytes_max: usize,
}

#[derive(Debug)]
struct Entry {
    slot: Slot,
    used: u64,
    bytes: usize,
}

#[derive(Debug, Default)]
struct Open {
    kept: Kept,
    actor: Option<[u8; 16]>,
}

impl OpenDocuments {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { all: Mutex::new(All { bytes_max, ..All::default() }), large: Default::default() }
    }

    /// Makes JSON of the documents among a record's fields, each of at most so many bytes. Blocks.
    pub(crate) fn show(
        &self,
        store: &StoreView<'_>,
        at: ReadAt,
        record: &RecordId,
        views: &mut Vec<FieldView>,
        bytes_max: usize,
    ) -> Result<(), ReadFailure> {
        for FieldView { field, value, .. } in views.iter_mut() {
            if !matches!(value, Value::Document(DocumentValue::Unopened)) {
                continue;
            }
            let show = |document: &mut Document| Ok((document.json(None)?, document.heads()));
            let (json, heads) = self.with(store, at, (record, field), show)?;
            if json.len() > bytes_max {
                return Err(ReadFailure::TooLarge { max: bytes_max });
            }
            *value = Value::Document(DocumentValue::Shown { json, heads });
        }
        // One of which a disk has lost what all of it builds on.
        let is_empty = |value: &Value| matches!(value, Value::Document(DocumentValue::Shown { heads, .. }) if heads.is_empty());
        views.retain(|view| !is_empty(&view.value));
        Ok(())
    }

    /// Reads a document, which is empty if there is none. Blocks.
    pub(crate) fn with<T>(
        &self,
        store: &StoreView<'_>,
        at: ReadAt,
        (record, field): (&RecordId, &Field),
        read: impl FnOnce(&mut Document) -> Result<T, DocumentError>,
    ) -> Result<T, ReadFailure> {
        let name = (record.clone(), field.clone());
        let known = self.all().by_name.get(&name).map(|entry| Arc::clone(&entry.slot));
        // One that is in use for longer is made anew rather than waited for.
        let mut held = known.clone().and_then(wait_for);
        if let Some(Open { kept, .. }) = held.as_ref().and_then(|held| held.as_ref())
            && kept.is_ahead(store, at, record)?
        {
            // Whoever was before looked at a later state. That is what the next ones want.
            held = None;
        }
        let mut open = held.as_mut().and_then(|held| held.take()).unwrap_or_default();
        let goes_on = self.bring(&mut open.kept, store, at, &name)?;
        open.actor = open.actor.filter(|_| goes_on);
        let value = read(open.kept.document())?;
        if open.kept.document().heads().is_empty() {
            return Ok(value);
        }
        match held {
            Some(mut held) => {
                self.used(&name, open.kept.document());
                *held = Some(open);
            }
            // Not known before: from now on it is. In use: that is what will be known.
            None if known.is_none() => {
                let slot = self.slot(&name);
                self.used(&name, open.kept.document());
                if let Ok(mut held) = slot.try_lock() {
                    *held = Some(open);
                }
            }
            None => {}
        }
        Ok(value)
    }

    fn bring(
        &self,
        kept: &mut Kept,
        store: &StoreView<'_>,
        at: ReadAt,
        (record, field): &Name,
    ) -> Result<bool, ReadFailure> {
        let large = |bytes: usize| {
            (bytes >= LARGE_BYTES).then(|| {
                let turn = &self.large[bytes % LARGE_AT_ONCE];
                turn.lock().unwrap_or_else(PoisonError::into_inner)
            })
        };
        kept.bring(store, at, (record, field), large).map_err(|error| match error {
            BringError::Read(error) => error.into(),
            BringError::Document(error) => error.into(),
        })
    }

    fn slot(&self, name: &Name) -> Slot {
        let mut all = self.all();
        match all.by_name.get(name) {
            Some(entry) => Arc::clone(&entry.slot),
            None => {
                let slot = Slot::default();
                all.put(name.clone(), Arc::clone(&slot), OPEN_BYTES);
                slot
            }
        }
    }

    /// Notes that a document was used, and closes others if all take too much.
    fn used(&self, name: &Name, document: &Document) {
        let content = document.raw_bytes().saturating_mul(2);
        let operations = document.ops().saturating_mul(OPERATION_BYTES) as usize;
        let mut all = self.all();
        if let Some(slot) = all.by_name.get(name).map(|entry| Arc::clone(&entry.slot)) {
            all.put(name.clone(), slot, OPEN_BYTES + content + operations);
        }
    }

    fn all(&self) -> MutexGuard<'_, All> {
        // Nothing panics between two changes that belong together.
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl All {
    fn put(&mut self, name: Name, slot: Slot, bytes: usize) {
        self.uses += 1;
        let used = self.uses;
        if let Some(before) = self.by_name.insert(name.clone(), Entry { slot, used, bytes }) {
            self.by_use.remove(&before.used);
            self.bytes -= before.bytes;
        }
        self.by_use.insert(used, name.clone());
        self.bytes += bytes;
        while self.bytes > self.bytes_max {
            // Who holds one that is closed goes on with it; nobody else finds it.
            let Some((_, oldest)) = self.by_use.pop_first() else { break };
            if let Some(entry) = self.by_name.remove(&oldest) {
                self.bytes -= entry.bytes;
            }
        }
    }
}

/// A document that others read or edit, once they have, unless that takes long. Blocks.
fn wait_for(slot: Slot) -> Option<OwnedMutexGuard<Option<Open>>> {
    if let Ok(held) = Arc::clone(&slot).try_lock_owned() {
        return Some(held);
    }
    let runtime = tokio::runtime::Handle::try_current().ok()?;
    runtime.block_on(async { tokio::time::timeout(READ_WAIT_MAX, slot.lock_owned()).await.ok() })
}

/// The documents that a commit is about, held until it is known.
type Held = BTreeMap<Name, OwnedMutexGuard<Option<Open>>>;

/// What a commit comes to, with its edits made into changes.
struct Made {
    writes: Vec<Write>,
    held: Held,
    touched: Vec<(RecordId, Touched, (Actors, Places))>,
}

type Actors = BTreeMap<Field, [u8; 16]>;
type Places = BTreeMap<Field, KeptPlace>;

impl NodeHandle {
    /// Commits writes to records of one partition, atomically, as [`Self::commit_holding`] does, with the edits of documents among them.
    pub(crate) async fn commit_edits(
        &self,
        writes: Vec<Write>,
        terms: Terms,
        room: Option<OwnedSemaphorePermit>,
    ) -> Result<Committed, CommitFailure> {
        if !writes.iter().any(|write| document::is_wanted(&write.ops)) {
            return self.commit_holding(writes, terms, room).await;
        }
        let node = self.clone();
        // To its end, also if the client goes: what becomes of an edit must be known to those after it.
        let commit = tokio::spawn(async move { node.edit_and_commit(writes, terms, room).await });
        commit.await.unwrap_or(Err(CommitFailure::Unknown))
    }

    async fn edit_and_commit(
        &self,
        writes: Vec<Write>,
        terms: Terms,
        room: Option<OwnedSemaphorePermit>,
    ) -> Result<Committed, CommitFailure> {
        let turn = tokio::time::timeout(TURN_MAX, self.hold(&writes)).await;
        let mut held = turn.map_err(|_| CommitFailure::Overloaded)?;
        let edits = writes.iter().any(|write| write.ops.iter().any(|op| matches!(op, Op::Edit { .. })));
        let (mut room, mut attempts) = (room, 0);
        let (committed, touched) = loop {
            attempts += 1;
            let written = self.written();
            let (node, at, asked) = (self.clone(), self.read_at(), terms.clone());
            let asked_for = writes.clone();
            let make = move |store: &StoreView<'_>| node.make(store, at, asked_for, held, &asked);
            let made = self.read(make).await??;
            held = made.held;
            // What the writes take in memory is given back with the first attempt that is handed in.
            match self.commit_holding(made.writes, terms.clone(), room.take()).await {
                // A clear came between the look and the commit: an edit is made anew on what it left.
                Err(CommitFailure::Refused(CommitError::Refused { refusal, .. }))
                    if edits
                        && matches!(refusal.reason, Reason::MissingChanges { .. })
                        && attempts < ATTEMPTS_MAX =>
                {
                    let _ = tokio::time::timeout(LOOK_AGAIN, written).await;
                }
                outcome => break (outcome?, made.touched),
            }
        };
        if committed.commit.is_some() && !committed.repeated {
            for (record, documents, (actors, mut places)) in touched {
                for (field, document) in documents {
                    let actor = actors.get(&field).copied();
                    let name = (record.clone(), field);
                    self.documents().used(&name, &document);
                    if let Some(held) = held.get_mut(&name) {
                        let place = places.remove(&name.1).unwrap_or_default();
                        **held = Some(Open { kept: Kept::edited(document, place), actor });
                    }
                }
            }
        }
        Ok(committed)
    }

    /// Waits until it is the turn of these edits. In one order for all, so that none wait for each other.
    async fn hold(&self, writes: &[Write]) -> Held {
        let mut names: BTreeSet<Name> = BTreeSet::new();
        for write in writes {
            for op in &write.ops {
                if let Op::Edit { field, .. } | Op::Change { field, .. } = op {
                    names.insert((write.record.clone(), field.clone()));
                }
            }
        }
        let mut held = Held::new();
        for name in names {
            let slot = self.documents().slot(&name);
            held.insert(name, slot.lock_owned().await);
        }
        held
    }

    /// Makes the edits of writes into changes, in a state of the store.
    fn make(
        &self,
        store: &StoreView<'_>,
        at: ReadAt,
        mut writes: Vec<Write>,
        mut held: Held,
        terms: &Terms,
    ) -> Result<Result<Made, CommitFailure>, ReadFailure> {
        let mut touched = Vec::new();
        let oldest_ms = at.now_ms.saturating_sub(self.limits().idempotency_window_ms);
        if is_retry(store, at, &writes, terms, oldest_ms)? {
            // The machine tells what became of it, and looks at nothing else.
            return Ok(Ok(Made { writes, held, touched }));
        }
        let (limits, time) = (self.limits().documents(), (at.now_ms / 1000) as i64);
        for (index, write) in writes.iter_mut().enumerate() {
            let mut opening = Opening {
                node: self,
                store,
                at,
                record: write.record.clone(),
                held: &mut held,
                actors: Actors::new(),
                places: Places::new(),
            };
            let made = document::make(&mut write.ops, &mut opening, terms.seen.as_ref(), time, limits);
            let known = (opening.actors, opening.places);
            match made {
                Ok(documents) => touched.push((write.record.clone(), documents, known)),
                Err(MakeError::Open(failure)) => return Err(failure),
                Err(MakeError::Refused(op, unmade)) => {
                    let field = write.ops.get(op).and_then(Op::target).map(|(field, _)| field.clone());
                    let Some(field) = field else { return Ok(Err(CommitFailure::Unknown)) };
                    let refusal = Refusal { op, reason: Reason::Document { field, unmade } };
                    return Ok(Err(CommitError::Refused { write: index, refusal }.into()));
                }
            }
        }
        Ok(Ok(Made { writes, held, touched }))
    }
}

/// Whether a request was committed before: its edits need not fit what its first commit left.
fn is_retry(
    store: &StoreView<'_>,
    at: ReadAt,
    writes: &[Write],
    terms: &Terms,
    oldest_ms: u64,
) -> Result<bool, StoreError> {
    let (Some(request), Some(first)) = (terms.request, writes.first()) else { return Ok(false) };
    let partition: PartitionId = first.record.partition(at.partitions);
    let context = stored_context(store, partition)?;
    let known = requests::find(store, &first.record.namespace, &request.key, partition, &context, oldest_ms)?;
    Ok(known.is_some())
}

/// Opens the documents of one record for edits.
struct Opening<'a, 's> {
    node: &'a NodeHandle,
    store: &'a StoreView<'s>,
    at: ReadAt,
    record: RecordId,
    held: &'a mut Held,
    actors: Actors,
    /// Of documents that go on from what they were.
    places: Places,
}

impl Documents for Opening<'_, '_> {
    type Error = ReadFailure;

    fn open(&mut self, field: &Field, cleared: Option<&Seen>) -> Result<Document, ReadFailure> {
        if cleared.is_some() {
            let changes = read::changes(self.store, self.at, &self.record, field, cleared)?;
            let mut document = Document::default();
            document.bring(&changes)?;
            return Ok(document);
        }
        let name = (self.record.clone(), field.clone());
        // Taken: it comes back when the commit is known, and is made anew otherwise.
        let mut open = self.held.get_mut(&name).and_then(|held| held.take()).unwrap_or_default();
        let goes_on = self.node.documents().bring(&mut open.kept, self.store, self.at, &name)?;
        if let Some(actor) = open.actor.filter(|_| goes_on) {
            self.actors.insert(field.clone(), actor);
        }
        let (document, place) = open.kept.into_parts();
        self.places.insert(field.clone(), place);
        Ok(document)
    }

    fn actor(&mut self, field: &Field, _: &Document) -> Result<[u8; 16], ReadFailure> {
        if let Some(actor) = self.actors.get(field) {
            return Ok(*actor);
        }
        let actor = super::random_bytes().map_err(|error| StoreError::Io(error.to_string()))?;
        self.actors.insert(field.clone(), actor);
        Ok(actor)
    }
}
