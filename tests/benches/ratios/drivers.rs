//! The two that write: a node's machine over its store, in groups, and RocksDB alone with the same changes.

use std::cell::Cell;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant, SystemTime};

use godwit_core::ids::RecordId;
use godwit_core::machine::{Effects, Machine};
use godwit_core::op::{Limits, Terms, Write};
use godwit_core::store::{Batch, Family, Overlay, StoreError, StoreRead, Visit};
use godwit_core::time::{Mono, Now, Wall};
use godwit_engine::store::{Reader, RocksStore, StoreOptions};
use godwit_proto::{Input, Output, Reply, RequestId};
use godwit_proto::{Node, NodeConfig, Tuning};
use rocksdb::{Cache, DB, Env, Options, WriteBatch, WriteOptions};

use super::inputs::{GROUP, add, member};

const MEMBERS_PER_COMMIT: u32 = 1_000;
const FILL_COMMITS_PER_GROUP: usize = 20;

/// What a group took.
#[derive(Clone, Copy)]
pub struct Group {
    /// Evaluating and applying its commits.
    pub machine: Duration,
    /// Of that, reading the store.
    pub reading: Duration,
    /// How often it was read.
    pub reads: u32,
    /// One write batch and its sync.
    pub commit: Duration,
}

impl Group {
    pub fn whole(self) -> Duration {
        self.machine + self.commit
    }
}

/// A store that tells how much it is read.
struct Counted<'s> {
    store: Reader<'s>,
    reads: Cell<u32>,
    reading: Cell<Duration>,
}

impl Counted<'_> {
    fn count<T>(&self, read: impl FnOnce(&Reader<'_>) -> T) -> T {
        let began = Instant::now();
        let value = read(&self.store);
        self.reading.set(self.reading.get() + began.elapsed());
        self.reads.set(self.reads.get() + 1);
        value
    }
}

impl StoreRead for Counted<'_> {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.count(|store| store.get(family, key))
    }

    fn scan(&self, family: Family, from: &[u8], to: &[u8], visit: Visit<'_>) -> Result<(), StoreError> {
        self.count(|store| store.scan(family, from, to, visit))
    }
}

/// The store of a node and its machine, driven group by group.
pub struct Driven {
    pub store: RocksStore,
    node: Node,
    start: Instant,
}

impl Driven {
    pub fn open(dir: &Path, cache_bytes: usize) -> Self {
        let options = StoreOptions { block_cache_bytes: cache_bytes, ..StoreOptions::default() };
        let store = RocksStore::open(dir, &options).expect("a data directory");
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
        Self { store, node, start: Instant::now() }
    }

    /// Commits groups as the committer does: a thread writes each while the machine fills the next. Returns how long it took,
    /// and what each changed.
    pub fn pipelined(&mut self, groups: Vec<Vec<Write>>) -> (Duration, Vec<Arc<Batch>>) {
        let groups: Vec<Vec<Input>> = groups.into_iter().map(inputs).collect();
        let (store, node, start) = (&self.store, &mut self.node, self.start);
        let (hand_over, handed_over) = sync_channel::<Arc<Batch>>(1);
        let (wrote, written) = sync_channel(1);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for batch in handed_over {
                    store.commit(&batch).expect("a disk that works");
                    wrote.send(()).expect("somebody who waits");
                }
            });
            let began = Instant::now();
            let mut batches: Vec<Arc<Batch>> = Vec::with_capacity(groups.len());
            let mut under_way = Arc::default();
            for group in groups {
                let mut out = Effects::default();
                let reader = store.reader();
                for input in group {
                    let now = now(start);
                    let over = Overlay::new(&reader, &under_way);
                    node.handle(now, input, &over, &mut out).expect("a machine that works");
                }
                if !batches.is_empty() {
                    written.recv().expect("a thread that writes");
                }
                assert_eq!(committed(&out), GROUP, "every write changes something");
                under_way = Arc::new(out.batch);
                hand_over.send(Arc::clone(&under_way)).expect("a thread that writes");
                batches.push(Arc::clone(&under_way));
            }
            written.recv().expect("a thread that writes");
            let took = began.elapsed();
            drop(hand_over);
            (took, batches)
        })
    }

    /// Commits writes as one group.
    pub fn group(&mut self, writes: Vec<Write>) -> Group {
        let inputs = inputs(writes);
        let expected = inputs.len();
        let store = Counted { store: self.store.reader(), reads: Cell::default(), reading: Cell::default() };
        let began = Instant::now();
        let mut out = Effects::default();
        for input in inputs {
            let now = now(self.start);
            self.node.handle(now, input, &store, &mut out).expect("a machine that works");
        }
        let machine = began.elapsed();
        let (reads, reading) = (store.reads.get(), store.reading.get());
        let began = Instant::now();
        self.store.commit(&out.batch).expect("a disk that works");
        let commit = began.elapsed();
        assert_eq!(committed(&out), expected, "every write changes something");
        Group { machine, reading, reads, commit }
    }

    /// Adds members to sets until each has so many.
    pub fn fill(&mut self, sets: &[RecordId], members: u32) {
        let mut writes = Vec::new();
        for set in sets {
            for from in (0..members).step_by(MEMBERS_PER_COMMIT as usize) {
                let to = (from + MEMBERS_PER_COMMIT).min(members);
                writes.push(add(set, (from..to).map(member).collect()));
                // A commit of many members is worth many of few.
                if writes.len() * (to - from) as usize >= FILL_COMMITS_PER_GROUP * MEMBERS_PER_COMMIT as usize
                {
                    self.group(std::mem::take(&mut writes));
                }
            }
        }
        self.group(writes);
    }
}

/// A RocksDB with the options of a node's store and nothing of Godwit.
pub struct Raw {
    pub db: DB,
}

impl Raw {
    pub fn open(dir: &Path) -> Self {
        // A store leaves its options in the directory.
        drop(RocksStore::open(dir, &StoreOptions::default()).expect("a data directory"));
        let env = Env::new().expect("an environment");
        let cache = Cache::new_lru_cache(StoreOptions::default().block_cache_bytes);
        let (options, families) = Options::load_latest(dir, env, false, cache).expect("stored options");
        Self { db: DB::open_cf_descriptors(&options, dir, families).expect("a database") }
    }

    /// Writes the changes in one batch, with one sync.
    pub fn write(&self, changes: &Batch) -> Duration {
        let began = Instant::now();
        let mut batch = WriteBatch::default();
        for (family, key, value) in changes.iter() {
            let family = self.db.cf_handle(family.name()).expect("a family");
            match value {
                Some(value) => batch.put_cf(family, key, value),
                None => batch.delete_cf(family, key),
            }
        }
        let mut options = WriteOptions::default();
        options.set_sync(true);
        self.db.write_opt(batch, &options).expect("a disk that works");
        began.elapsed()
    }
}

fn inputs(writes: Vec<Write>) -> Vec<Input> {
    let input = |(i, write)| {
        let (request, writes) = (RequestId(i as u64), vec![write]);
        Input::Commit { request, writes, terms: Terms::default() }
    };
    writes.into_iter().enumerate().map(input).collect()
}

/// How many commits changed something.
fn committed(out: &Effects<Output>) -> usize {
    let committed = |output: &&Output| {
        matches!(output, Output::Reply { reply: Reply::Committed { commit: Some(_), .. }, .. })
    };
    out.outputs.iter().filter(committed).count()
}

fn now(start: Instant) -> Now {
    let us = start.elapsed().as_micros() as u64;
    let ms = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis());
    Now { mono: Mono(us), wall: Wall(ms as u64) }
}
