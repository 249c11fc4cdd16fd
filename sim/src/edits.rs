//! Edits of documents: the front of a node makes them into changes on what the node has, before it asks the machine.
//!
//! The server lets one edit of a document be made at a time; here each has an actor of its own, so that none need wait.

use godwit_core::context::Seen;
use godwit_core::document::{self, Document, DocumentLimits, Documents, MakeError};
use godwit_core::ids::{Field, RecordId};
use godwit_core::op::Op;
use godwit_core::read::{self, ReadAt, ReadError};
use godwit_core::store::MemStore;
use godwit_proto::RequestId;

use crate::oracle::Violation;
use crate::workload::Ask;
use crate::world::World;

const LIMITS: DocumentLimits = DocumentLimits { bytes_max: 1 << 20, ops_max: 1 << 20 };

struct OnDisk<'d> {
    disk: &'d MemStore,
    at: ReadAt,
    record: RecordId,
    actor: u128,
}

impl Documents for OnDisk<'_> {
    type Error = ReadError;

    fn open(&mut self, field: &Field, cleared: Option<&Seen>) -> Result<Document, ReadError> {
        let changes = read::changes(self.disk, self.at, &self.record, field, cleared)?;
        let mut document = Document::default();
        document
            .apply(changes.iter().map(|selected| &selected.encoded))
            .expect("changes that were made here");
        Ok(document)
    }

    fn actor(&mut self, _: &Field, _: &Document) -> Result<[u8; 16], ReadError> {
        self.actor += 1;
        Ok(self.actor.to_be_bytes())
    }
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
                let mut documents =
                    OnDisk { disk: &self.nodes[i].disk, at, record: write.record.clone(), actor };
                let mut ops = write.ops.clone();
                match document::make(&mut ops, &mut documents, ask.terms.seen.as_ref(), 0, LIMITS) {
                    Ok(_) => {
                        write.ops = ops;
                        break;
                    }
                    Err(MakeError::Refused(op, _)) => drop(write.ops.remove(op)),
                    Err(MakeError::Open(error)) => {
                        return Err(Violation::new(10, format!("n{i} cannot open a document: {error}")));
                    }
                }
            }
            write.ops.retain(|op| !matches!(op, Op::Change { changes, .. } if changes.is_empty()));
        }
        ask.writes.retain(|write| !write.ops.is_empty());
        Ok(())
    }
}
