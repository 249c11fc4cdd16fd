//! The two that write: a node's machine over its store, in groups, and RocksDB alone with the same changes.

use std::cell::Cell;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use godwit_core::ids::RecordId;
use godwit_core::machine::{Effects, Machine};
use godwit_core::op::{Limits, Terms, Write};
use godwit_core::store::{Family, StoreError, StoreRead, Visit};
use godwit_core::time::{Mono, Now, Wall};
use godwit_engine::store::{RocksStore, StoreOptions};
use godwit_proto::node::{Input, Output, Reply, RequestId};
use godwit_proto::{Node, NodeConfig, Tuning};
use rocksdb::{Cache, DB, Env, Options, WriteBatch, WriteOptions};

use super::inputs::{add, member};

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
    store: &'s RocksStore,
    reads: Cell<u32>,
    reading: Cell<Duration>,
}

impl Counted<'_> {
    fn count<T>(&self, read: impl FnOnce(&RocksStore) -> T) -> T {
        let began = Instant::now();
        let value = read(self.store);
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

/// The changes of a batch, to be written again without the machine.
pub type Changes = Vec<(Family, Vec<u8>, Option<Vec<u8>>)>;

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
        store.commit(batch).expect("a disk that works");
        Self { store, node, start: Instant::now() }
    }

    /// Commits writes as one group.
    pub fn group(&mut self, writes: Vec<Write>) -> Group {
        self.group_into(writes, None)
    }

    /// The same, and keeps what it changed.
    pub fn group_into(&mut self, writes: Vec<Write>, changes: Option<&mut Changes>) -> Group {
        let inputs: Vec<Input> = writes
            .into_iter()
            .enumerate()
            .map(|(i, write)| {
                let (request, writes) = (RequestId(i as u64), vec![write]);
                Input::Commit { request, writes, terms: Terms::default() }
            })
            .collect();
        let expected = inputs.len();
        let store = Counted { store: &self.store, reads: Cell::default(), reading: Cell::default() };
        let began = Instant::now();
        let mut out = Effects::default();
        for input in inputs {
            let now = now(self.start);
            self.node.handle(now, input, &store, &mut out).expect("a machine that works");
        }
        let machine = began.elapsed();
        let (reads, reading) = (store.reads.get(), store.reading.get());
        if let Some(changes) = changes {
            let all = out.batch.iter();
            *changes = all.map(|(f, key, value)| (f, key.to_vec(), value.map(<[u8]>::to_vec))).collect();
        }
        let Effects { batch, outputs } = out;
        let began = Instant::now();
        self.store.commit(batch).expect("a disk that works");
        let commit = began.elapsed();
        let committed = |output: &&Output| {
            matches!(output, Output::Reply { reply: Reply::Committed { commit: Some(_), .. }, .. })
        };
        assert_eq!(outputs.iter().filter(committed).count(), expected, "every write changes something");
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
    pub fn write(&self, changes: &Changes) -> Duration {
        let began = Instant::now();
        let mut batch = WriteBatch::default();
        for (family, key, value) in changes {
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

fn now(start: Instant) -> Now {
    let us = start.elapsed().as_micros() as u64;
    let ms = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis());
    Now { mono: Mono(us), wall: Wall(ms as u64) }
}
