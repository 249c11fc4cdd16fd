//! What is written and read: sets and their members, commits of every kind, pages.

use std::time::{Duration, Instant};

use godwit_core::ids::{Field, Key, Member, Namespace, RecordId};
use godwit_core::json::Json;
use godwit_core::op::{Op, Write};
use godwit_core::read::{self, PageLimits, ReadAt};
use godwit_core::rng::Rng;
use godwit_engine::store::RocksStore;

/// Commits of one group, which share a batch and a sync.
pub const GROUP: usize = 64;

/// Members of a page, and pages of a sample.
pub const PAGE: usize = 100;
pub const PAGES: usize = 20;

/// Records that commits of all kinds go to.
const RECORDS: u64 = 10_000;

/// One partition, so that all sides have the same context and log.
pub const AT: ReadAt = ReadAt { partitions: 1, now_ms: 0 };

pub fn record(key: String) -> RecordId {
    let namespace = Namespace::new("bench").expect("a name");
    RecordId { namespace, key: Key::new(key).expect("a name") }
}

fn field() -> Field {
    Field::new("members").expect("a name")
}

/// The i-th member: all differ, and neighbours in number are far apart in order.
pub fn member(i: u32) -> Member {
    Member::new(format!("user-{:08x}", i.wrapping_mul(0x9e37_79b1))).expect("a name")
}

pub fn add(set: &RecordId, members: Vec<Member>) -> Write {
    Write { record: set.clone(), ops: vec![Op::Add { field: field(), members }] }
}

/// Sets, and members that none of them has yet.
pub struct Adder {
    sets: Vec<RecordId>,
    next: u32,
    rng: Rng,
}

impl Adder {
    pub fn new(sets: Vec<RecordId>, members: u32) -> Self {
        Self { sets, next: members, rng: Rng::new(1) }
    }

    /// One new member each to sets drawn at random.
    pub fn group(&mut self) -> Vec<Write> {
        let mut writes = Vec::with_capacity(GROUP);
        for _ in 0..GROUP {
            writes.push(add(self.rng.pick(&self.sets), vec![member(self.next)]));
            self.next += 1;
        }
        writes
    }
}

/// A page of a set's members after one of them. Returns how many there were.
fn page(store: &RocksStore, set: &RecordId, after: &Member) -> usize {
    let limits = PageLimits { items_max: PAGE, bytes_max: usize::MAX, rows_max: usize::MAX };
    let page = read::members(&store.snapshot(), AT, set, &field(), Some(after.as_str()), limits);
    page.expect("a disk that works").items.len()
}

/// Reads pages of a set, each from a member drawn at random that has a whole page after it.
pub struct Pager {
    set: RecordId,
    members: Vec<Member>,
    rng: Rng,
}

impl Pager {
    pub fn new(set: RecordId, members: u32) -> Self {
        let mut members: Vec<Member> = (0..members).map(member).collect();
        members.sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
        Self { set, members, rng: Rng::new(2) }
    }

    /// Brings the whole set into the cache, if there is room.
    pub fn read_all(&self, store: &RocksStore) {
        let mut after = &self.members[0];
        for last in self.members.chunks(PAGE).filter_map(<[Member]>::last) {
            page(store, &self.set, after);
            after = last;
        }
    }

    pub fn sample(&mut self, store: &RocksStore) -> Duration {
        let whole = self.members.len() - PAGE;
        let starts: Vec<&Member> =
            (0..PAGES).map(|_| &self.members[self.rng.below(whole as u64) as usize]).collect();
        let began = Instant::now();
        let read: usize = starts.iter().map(|after| page(store, &self.set, after)).sum();
        let took = began.elapsed();
        assert_eq!(read, PAGES * PAGE);
        took
    }
}

/// What commits do in the comparison with raw batches.
#[derive(Clone, Copy)]
pub enum Kind {
    Increments,
    Registers,
    Adds,
    Mixed,
}

/// Commits to records drawn at random.
pub struct Writer {
    pub rng: Rng,
    pub next: u32,
}

impl Writer {
    pub fn group(&mut self, kind: Kind) -> Vec<Write> {
        (0..GROUP).map(|i| self.write(kind, i)).collect()
    }

    fn write(&mut self, kind: Kind, i: usize) -> Write {
        let drawn = self.rng.below(RECORDS);
        let name = |name: &str| Field::new(name).expect("a name");
        match kind {
            Kind::Increments => Write {
                record: record(format!("c{drawn}")),
                ops: vec![Op::Incr { field: name("plays"), by: 1 }],
            },
            Kind::Registers => {
                let text = format!("\"{:0>98}\"", self.rng.draw());
                let value = Json::parse(&text).expect("JSON");
                Write {
                    record: record(format!("r{drawn}")),
                    ops: vec![Op::Set { field: name("title"), value }],
                }
            }
            Kind::Adds => {
                self.next += 1;
                add(&record(format!("s{}", drawn / 100)), vec![member(self.next)])
            }
            Kind::Mixed => self.write([Kind::Increments, Kind::Registers, Kind::Adds][i % 3], i),
        }
    }
}
