//! Reading the store for repairs, on a thread of its own, so that nothing that commits waits for the disk.
//!
//! Each reader of the machine has a snapshot, from its first read to its end. The machine asks for one read a reader at a time,
//! and has a handful of readers, so what waits here is bounded by that.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use godwit_core::repair::{self, ReadSizes, RepairRead};
use godwit_engine::committer::CommitterHandle;
use godwit_engine::store::{RocksStore, Snapshot};
use godwit_proto::{Input, ReaderId};
use tokio::sync::mpsc;

use super::driver::Submission;

/// Results that wait to be handed in; then the thread waits.
const RESULTS_MAX: usize = 8;

/// The thread. Dropping it ends it, after the read in progress.
#[derive(Debug)]
pub(super) struct Reader {
    asked: Option<Sender<Asked>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
enum Asked {
    Read { reader: ReaderId, fresh: bool, read: Box<RepairRead>, sizes: ReadSizes },
    End(ReaderId),
}

impl Reader {
    /// The thread, and what it finds: inputs for the machine.
    pub(super) fn spawn(store: RocksStore) -> std::io::Result<(Self, mpsc::Receiver<Input>)> {
        let (asked, questions) = channel();
        let (results, found) = mpsc::channel(RESULTS_MAX);
        let thread = std::thread::Builder::new()
            .name("godwit-repair".to_string())
            .spawn(move || run(&store, &questions, &results))?;
        Ok((Self { asked: Some(asked), thread: Some(thread) }, found))
    }

    /// See [`godwit_proto::Output::Read`]. Does not wait.
    pub(super) fn read(&self, reader: ReaderId, fresh: bool, read: Box<RepairRead>, sizes: ReadSizes) {
        self.ask(Asked::Read { reader, fresh, read, sizes });
    }

    /// See [`godwit_proto::Output::EndRead`].
    pub(super) fn end(&self, reader: ReaderId) {
        self.ask(Asked::End(reader));
    }

    fn ask(&self, asked: Asked) {
        if let Some(sender) = &self.asked {
            // The thread ends before this only by a panic, which the join reports.
            let _ = sender.send(asked);
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.asked = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that reads for repairs panicked");
        }
    }
}

/// Hands in what is found, until the thread ends.
pub(super) async fn hand_in(mut found: mpsc::Receiver<Input>, committer: CommitterHandle<Submission>) {
    while let Some(input) = found.recv().await {
        // A committer that has stopped takes nothing more, but the thread must not wait for ever.
        let _ = committer.submit(Submission { input, room: None }).await;
    }
}

fn run(store: &RocksStore, asked: &Receiver<Asked>, results: &mpsc::Sender<Input>) {
    let mut snapshots: BTreeMap<ReaderId, Snapshot<'_>> = BTreeMap::new();
    while let Ok(asked) = asked.recv() {
        let (reader, fresh, read, sizes) = match asked {
            Asked::Read { reader, fresh, read, sizes } => (reader, fresh, read, sizes),
            Asked::End(reader) => {
                snapshots.remove(&reader);
                continue;
            }
        };
        if fresh {
            snapshots.insert(reader, store.snapshot());
        }
        let Some(snapshot) = snapshots.get(&reader) else { continue };
        let input = match repair::run(snapshot, &read, sizes) {
            Ok(found) => Input::Read { reader, found: Box::new(found) },
            Err(error) => Input::ReadFailed { error },
        };
        if results.blocking_send(input).is_err() {
            return;
        }
    }
}
