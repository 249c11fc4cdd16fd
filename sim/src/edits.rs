//! Edits of documents: the front of a node makes them into changes on what the node has, before it asks the machine.
//!
//! The server lets one edit of a document be made at a time; here each has an actor of its own, so that none need wait. Documents are kept
//! open as they are there ([`Kept`]), and must be what a read of all their changes makes.

use std::collections::BTreeMap;

use godwit_core::context::Seen;
use godwit_core::document::{self, Document, DocumentLimits, Documents, MakeError};
use godwit_core::ids::{Field, RecordId};
use godwit_core::op::Op;
use godwit_core::read::{self, Kept, ReadAt};
use godwit_core::repair::Settled;
use godwit_core::store::MemStore;
use godwit_proto::RequestId;

use crate::oracle::Violation;
use crate::workload::Ask;
use crate::world::{Machinery, World};

const LIMITS: DocumentLimits = DocumentLimits { bytes_max: 1 << 20, ops_max: 1 << 20 };

/// Documents that a process keeps open.
pub(crate) type KeptDocuments = BTreeMap<(RecordId, Field), Kept>;

struct OnDisk<'d> {
    store: &'d Settled<'d, MemStore>,
    kept: &'d mut KeptDocuments,
    at: ReadAt,
    record: RecordId,
    actor: u128,
}

impl Documents for OnDisk<'_> {
    type Error = Violation;

    fn open(&mut self, field: &Field, cleared: Option<&Seen>) -> Result<Document, Violation> {
        if cleared.is_none() {
            return bring(self.store, self.kept, self.at, &self.record, field);
        }
        whole(self.store, self.at, &self.record, field, cleared)
    }

    fn actor(&mut self, _: &Field, _: &Document) -> Result<[u8; 16], Violation> {
        self.actor += 1;
        Ok(self.actor.to_be_bytes())
    }
}

/// A document as its node keeps it open.
fn bring(
    store: &Settled<'_, MemStore>,
    kept: &mut KeptDocuments,
    at: ReadAt,
    record: &RecordId,
    field: &Field,
) -> Result<Document, Violation> {
    let kept = kept.entry((record.clone(), field.clone())).or_default();
    let brought = kept.bring(store, at, (record, field), |_| ());
    brought.map_err(|error| Violation::new(10, format!("a document cannot be brought up: {error}")))?;
    let document = kept.document().clone();
    let whole = whole(store, at, record, field, None)?;
    match document.heads() == whole.heads() {
        true => Ok(document),
        false => {
            let what = format!(
                "the document {field:?} of {record:?} that is kept open has {:?}, its changes make {:?}",
                document.heads(),
                whole.heads()
            );
            Err(Violation::new(2, what))
        }
    }
}

/// A document of all its changes.
fn whole(
    store: &Settled<'_, MemStore>,
    at: ReadAt,
    record: &RecordId,
    field: &Field,
    cleared: Option<&Seen>,
) -> Result<Document, Violation> {
    let changes = read::changes(store, at, record, field, cleared);
    let changes =
        changes.map_err(|error| Violation::new(10, format!("a document cannot be read: {error}")))?;
    let mut document = Document::default();
    document.apply(changes.iter().map(|selected| &selected.encoded)).expect("changes that were made here");
    Ok(document)
}

impl World {
    /// Makes what a request edits into changes. What does not fit is left out, as by a client that is told so and asks for the rest.
    pub(crate) fn make_edits(
        &mut self,
        i: usize,
        request: RequestId,
        ask: &mut Ask,
    ) -> Result<(), Violation> {
        let at = ReadAt { partitions: self.partitions, now_ms: self.wall_ms(i) };
        for (place, write) in ask.writes.iter_mut().enumerate() {
            if !document::is_wanted(&write.ops) {
                continue;
            }
            loop {
                let actor = u128::from(request.0) << 64 | (place as u128) << 32;
                let Machinery { disk, kept, .. } = &mut self.nodes[i];
                let store =
                    Settled::open(disk).map_err(|error| Violation::new(10, format!("n{i}: {error}")))?;
                let mut documents = OnDisk { store: &store, kept, at, record: write.record.clone(), actor };
                let mut ops = write.ops.clone();
                match document::make(&mut ops, &mut documents, ask.terms.seen.as_ref(), 0, LIMITS) {
                    Ok(_) => {
                        write.ops = ops;
                        break;
                    }
                    Err(MakeError::Refused(op, _)) => drop(write.ops.remove(op)),
                    Err(MakeError::Open(violation)) => return Err(violation),
                }
            }
            write.ops.retain(|op| !matches!(op, Op::Change { changes, .. } if changes.is_empty()));
        }
        ask.writes.retain(|write| !write.ops.is_empty());
        Ok(())
    }

    /// What a node keeps open of documents is what their changes make, now and once time has hidden what it hides.
    pub(crate) fn check_kept(&mut self, i: usize) -> Result<(), Violation> {
        let at = ReadAt { partitions: self.partitions, now_ms: self.wall_ms(i) };
        let Machinery { disk, kept, .. } = &mut self.nodes[i];
        let store = Settled::open(disk).map_err(|error| Violation::new(10, format!("n{i}: {error}")))?;
        let names: Vec<(RecordId, Field)> = kept.keys().cloned().collect();
        for (record, field) in names {
            bring(&store, kept, at, &record, &field)?;
        }
        Ok(())
    }
}
