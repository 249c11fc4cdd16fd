//! A leaderboard: a zset, beside as many counters.

use std::time::{Duration, Instant};

use godwit_core::ids::{Field, Member, RecordId};
use godwit_core::op::{Op, Write};
use godwit_core::read::{self, PageLimits, Place, ZRange};
use godwit_core::rng::Rng;
use godwit_core::types::score::Score;
use godwit_engine::store::RocksStore;

use super::drivers::Driven;
use super::inputs::{AT, GROUP, PAGE, PAGES, member, record};

/// Ranks or scores that are asked for in a sample.
const ASKED: usize = 200;
const MEMBERS_PER_COMMIT: usize = 1_000;
const COUNTERS_PER_GROUP: usize = 10_000;

/// What increments go to.
#[derive(Clone, Copy)]
pub enum To {
    Zset,
    Counters,
}

/// Members, each with a score in a zset and a counter of its own.
pub struct Board {
    members: u32,
    rng: Rng,
}

impl Board {
    pub fn new(members: u32) -> Self {
        Self { members, rng: Rng::new(6) }
    }

    /// Scores of all members, and a counter for each.
    pub fn fill(&mut self, driven: &mut Driven) {
        let all: Vec<u32> = (0..self.members).collect();
        for members in all.chunks(MEMBERS_PER_COMMIT) {
            let scores =
                members.iter().map(|i| (member(*i), score(self.rng.below(1_000_000) as f64))).collect();
            let ops = vec![Op::ZAdd { field: field("top"), scores }];
            driven.group(vec![Write { record: board(), ops }]);
        }
        for members in all.chunks(COUNTERS_PER_GROUP) {
            driven.group(members.iter().map(|i| self.increment(To::Counters, *i)).collect());
        }
        // What has never been incremented begins a sum: that is not what is compared.
        for members in all.chunks(COUNTERS_PER_GROUP) {
            driven.group(members.iter().map(|i| self.increment(To::Zset, *i)).collect());
        }
    }

    pub fn group(&mut self, to: To) -> Vec<Write> {
        let drawn: Vec<u32> = (0..GROUP).map(|_| self.rng.below(u64::from(self.members)) as u32).collect();
        drawn.into_iter().map(|i| self.increment(to, i)).collect()
    }

    fn increment(&mut self, to: To, i: u32) -> Write {
        let by = 1 + self.rng.below(100) as i64;
        match to {
            To::Zset => {
                let op = Op::ZIncr { field: field("top"), member: member(i), by: score(by as f64) };
                Write { record: board(), ops: vec![op] }
            }
            To::Counters => {
                let record = record(format!("score-{}", member(i).as_str()));
                Write { record, ops: vec![Op::Incr { field: field("score"), by }] }
            }
        }
    }

    /// Asks for members' scores, with their ranks or without.
    pub fn ask(&mut self, store: &RocksStore, with_rank: bool) -> Duration {
        let drawn: Vec<Member> =
            (0..ASKED).map(|_| member(self.rng.below(u64::from(self.members)) as u32)).collect();
        let began = Instant::now();
        for member in &drawn {
            let rank = with_rank.then_some(true);
            let found = read::scored(&store.snapshot(), AT, &board(), &field("top"), member, rank);
            let (_, rank) = found.expect("a disk that works").expect("a member");
            assert_eq!(rank.is_some(), with_rank);
        }
        began.elapsed()
    }

    /// Asks for the first 100.
    pub fn top(&self, store: &RocksStore) -> Duration {
        let range = ZRange { min: None, max: None, desc: true, place: Place::Rank(0) };
        let limits = PageLimits { items_max: PAGE, bytes_max: usize::MAX, rows_max: usize::MAX };
        let began = Instant::now();
        for _ in 0..PAGES {
            let page = read::zpage(&store.snapshot(), AT, &board(), &field("top"), &range, limits);
            assert_eq!(page.expect("a disk that works").items.len(), PAGE);
        }
        began.elapsed()
    }
}

fn board() -> RecordId {
    record("board".into())
}

fn field(name: &str) -> Field {
    Field::new(name).expect("a name")
}

fn score(value: f64) -> Score {
    Score::new(value).expect("a finite number")
}
