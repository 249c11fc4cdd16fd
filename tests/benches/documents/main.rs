//! What documents cost, as ratios: the editing trace of a paper (259,778 edits, 100 a commit) through a node's machine and store, beside
//! Automerge alone.
//!
//! Both sides take turns of [`TURN`] commits in one run, and CPU time is that of the thread: syncs wait and do not count. Left out are HTTP
//! and the reading of JSON. Bytes on disk are those of the store's table files, compacted, with next to nothing of the replication log,
//! which has a limit of its own.
//!
//! `docs/BENCHMARKS.md` says how to run this and how to read it.

use std::collections::VecDeque;
use std::io::Read as _;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use automerge::transaction::{CommitOptions, Transactable};
use automerge::{ActorId, Automerge, ObjId, ObjType, ROOT, TextEncoding};
use godwit_core::context::Seen;
use godwit_core::document::{self, Document, DocumentLimits, Documents, changes_of_file};
use godwit_core::ids::{Field, Key, Namespace, PartitionId, RecordId};
use godwit_core::json::Json;
use godwit_core::keys;
use godwit_core::machine::{Effects, Machine};
use godwit_core::op::{Limits, Op, Terms, Write};
use godwit_core::read::{BringError, Kept, KeptPlace, ReadAt};
use godwit_core::store::{Batch, Family};
use godwit_core::time::{Mono, Now, Wall};
use godwit_engine::store::{Reader, RocksStore, StoreOptions};
use godwit_proto::{Input, Node, NodeConfig, Output, RequestId, Tuning};
use serde_json::{Value, json};
use tempfile::TempDir;
use tikv_jemallocator::Jemalloc;

/// As the binary has it.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

const TRACE: &str = "../tests/data/documents/automerge-paper.json.gz";
/// Edits of a commit.
const EDITS: usize = 100;
/// Commits of a turn.
const TURN: usize = 20;
/// Keys of the log that stay, so that it does not count as bytes on disk.
const LOG_KEPT: usize = 16;
const ACTOR: [u8; 16] = [7; 16];
const LIMITS: DocumentLimits = DocumentLimits { bytes_max: 1 << 26, ops_max: 4_000_000 };

type Edit = (usize, usize, String);

fn main() {
    let edits = trace();
    let commits: Vec<&[Edit]> = edits.chunks(EDITS).collect();
    let dir = TempDir::new().expect("a directory");
    let mut store = Stored::open(dir.path());
    let mut alone = Alone::new();
    let (mut ours, mut theirs) = (Duration::ZERO, Duration::ZERO);
    let tenth = commits.len() / 10;
    println!("{} edits, {} commits", edits.len(), commits.len());
    println!(
        "{:>8} {:>10} {:>10} {:>7} {:>10} {:>10} {:>7}",
        "commits", "store ms", "alone ms", "ratio", "disk", "save()", "ratio"
    );
    for (turn, commits_of_turn) in commits.chunks(TURN).enumerate() {
        let requests: Vec<Json> = commits_of_turn.iter().map(|edits| patch(edits)).collect();
        let began = cpu();
        requests.into_iter().for_each(|patch| store.commit(patch));
        ours += cpu() - began;
        let began = cpu();
        commits_of_turn.iter().for_each(|edits| alone.commit(edits));
        theirs += cpu() - began;
        let done = (turn * TURN + commits_of_turn.len()).min(commits.len());
        if done / tenth > turn * TURN / tenth || done == commits.len() {
            let disk = store.disk();
            let saved = alone.document.save().len();
            println!(
                "{done:>8} {:>10} {:>10} {:>7.2} {disk:>10} {saved:>10} {:>7.2}",
                ours.as_millis(),
                theirs.as_millis(),
                ours.as_secs_f64() / theirs.as_secs_f64(),
                disk as f64 / saved as f64
            );
        }
    }
    assert_eq!(store.kept.document().ops(), ops(&alone.document), "both have done the same");
    let whole: usize = changes_of_file(&alone.document.save())
        .expect("a file")
        .iter()
        .map(|change| change.bytes.len())
        .sum();
    println!("changes, encoded one by one: {whole} bytes; told to a peer: {} bytes of deltas", store.told);
}

fn trace() -> Vec<Edit> {
    let file = std::fs::File::open(TRACE).expect("the trace");
    let mut text = String::new();
    flate2::read::GzDecoder::new(file).read_to_string(&mut text).expect("a trace");
    let trace: Value = serde_json::from_str(&text).expect("JSON");
    let patches = trace["txns"]
        .as_array()
        .expect("transactions")
        .iter()
        .flat_map(|txn| txn["patches"].as_array().expect("patches"));
    let edit = |patch: &Value| {
        let number = |at: usize| patch[at].as_u64().expect("a number") as usize;
        (number(0), number(1), patch[2].as_str().expect("text").to_owned())
    };
    patches.map(edit).collect()
}

/// Operations of a document's changes.
fn ops(document: &Automerge) -> u64 {
    changes_of_file(&document.save()).expect("a file").iter().map(|change| change.change.ops).sum()
}

fn patch(edits: &[Edit]) -> Json {
    let step = |(index, delete, insert): &Edit| json!({"op": "splice", "path": "/text", "index": index, "delete": delete, "insert": insert});
    Json::parse(&Value::from(edits.iter().map(step).collect::<Vec<_>>()).to_string()).expect("JSON")
}

/// CPU time of this thread.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux");
    Duration::from_nanos(stat.split(' ').next().and_then(|on_cpu| on_cpu.parse().ok()).expect("nanoseconds"))
}

/// Automerge alone.
struct Alone {
    document: Automerge,
    text: ObjId,
}

impl Alone {
    fn new() -> Self {
        let mut document =
            Automerge::new_with_encoding(TextEncoding::UnicodeCodePoint).with_actor(ActorId::from(ACTOR));
        let mut transaction = document.transaction();
        let text = transaction.put_object(ROOT, "text", ObjType::Text).expect("a text");
        transaction.commit_with(CommitOptions::default());
        Self { document, text }
    }

    fn commit(&mut self, edits: &[Edit]) {
        let mut transaction = self.document.transaction();
        for (index, delete, insert) in edits {
            transaction.splice_text(&self.text, *index, *delete as isize, insert).expect("an edit that fits");
        }
        transaction.commit_with(CommitOptions::default());
    }
}

/// A node's machine and store, with the document kept open as the server does.
struct Stored {
    store: RocksStore,
    node: Node,
    start: Instant,
    kept: Kept,
    record: RecordId,
    field: Field,
    told: usize,
    /// Keys of the log that are there.
    log: VecDeque<Vec<u8>>,
    commits: u64,
}

impl Stored {
    fn open(dir: &Path) -> Self {
        let store = RocksStore::open(dir, &StoreOptions::default()).expect("a data directory");
        let config = NodeConfig {
            cluster: "bench".into(),
            node: "bench".into(),
            region: "bench".into(),
            members: Vec::new(),
            seed: 1,
            same_place: true,
            partitions: 1,
            limits: Limits::default(),
            max_clock_drift_ms: 60_000,
            idempotency_window_ms: 86_400_000,
            tuning: Tuning::default(),
        };
        let (node, batch) = Node::open(config, &store).expect("a node");
        store.commit(&batch).expect("a disk that works");
        let record = RecordId {
            namespace: Namespace::new("app").expect("a name"),
            key: Key::new("paper").expect("a key"),
        };
        let field = Field::new("text").expect("a name");
        let mut stored = Self {
            store,
            node,
            start: Instant::now(),
            kept: Kept::default(),
            record,
            field,
            told: 0,
            log: VecDeque::new(),
            commits: 0,
        };
        stored.commit(Json::parse(r#"[{"op":"add","path":"/text","value":""}]"#).expect("JSON"));
        stored
    }

    fn commit(&mut self, patch: Json) {
        let mut ops = vec![Op::Edit { field: self.field.clone(), patch }];
        let store = self.store.clone();
        let reader = store.reader();
        let mut opening = Opening {
            store: &reader,
            record: &self.record,
            kept: std::mem::take(&mut self.kept),
            place: KeptPlace::default(),
        };
        let touched = document::make(&mut ops, &mut opening, None, 0, LIMITS);
        let mut touched = touched.unwrap_or_else(|_| panic!("an edit that fits"));
        let document = touched.remove(&self.field).expect("the document");
        self.kept = Kept::edited(document, opening.place);
        let writes = vec![Write { record: self.record.clone(), ops }];
        self.commits += 1;
        let input = Input::Commit { request: RequestId(self.commits), writes, terms: Terms::default() };
        let mut out: Effects<Output> = Effects::default();
        self.node.handle(self.now(), input, &self.store.reader(), &mut out).expect("a machine that works");
        let mut batch = Batch::default();
        for (family, key, value) in out.batch.iter() {
            match value {
                Some(value) => {
                    if family == Family::Log {
                        let is_entry = key.starts_with(&keys::log_entry(PartitionId(0), 0)[..3]);
                        self.told += if is_entry { value.len() } else { 0 };
                        self.log.push_back(key.to_vec());
                    }
                    batch.put(family, key.to_vec(), value.to_vec());
                }
                None => batch.delete(family, key.to_vec()),
            }
        }
        while self.log.len() > LOG_KEPT {
            batch.delete(Family::Log, self.log.pop_front().expect("a key"));
        }
        self.store.commit(&batch).expect("a disk that works");
    }

    /// Bytes of table files, compacted.
    fn disk(&mut self) -> u64 {
        self.store.compact();
        self.store.stats().expect("statistics").table_bytes
    }

    fn now(&self) -> Now {
        let us = self.start.elapsed().as_micros() as u64;
        let ms =
            SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis());
        Now { mono: Mono(us), wall: Wall(ms as u64) }
    }
}

struct Opening<'s, 'r> {
    store: &'s Reader<'r>,
    record: &'s RecordId,
    kept: Kept,
    place: KeptPlace,
}

impl Documents for Opening<'_, '_> {
    type Error = BringError;

    fn open(&mut self, field: &Field, _: Option<&Seen>) -> Result<Document, BringError> {
        let at = ReadAt { partitions: 1, now_ms: 1 };
        self.kept.bring(self.store, at, (self.record, field), |_| ())?;
        let (document, place) = std::mem::take(&mut self.kept).into_parts();
        self.place = place;
        Ok(document)
    }

    fn actor(&mut self, _: &Field, _: &Document) -> Result<[u8; 16], BringError> {
        Ok(ACTOR)
    }
}
