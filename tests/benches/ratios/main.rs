//! What Godwit's way of storing costs, as ratios of two things measured in one run, and Criterion's figures of each.
//!
//! - A ratio compares medians of samples that alternate between its sides, so that what else the machine does
//!   falls on both. Absolute figures say more about the disk than about Godwit.
//! - Nothing is left out of a sample but making its input: a group is 64 commits through the node's machine, one
//!   write batch and one sync, as the committer does it, without its queue. Commits are compared with raw batches over six
//!   groups, each written by a second thread while the machine fills the next; adds one group after the other.
//! - Members are added through a block cache that is smaller than the large set, after the store was opened again. What
//!   the system caches of the files is not dropped.
//!
//! `docs/BENCHMARKS.md` says how to run this and how to read it.

mod boards;
mod drivers;
mod inputs;

use std::cell::RefCell;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use boards::{Board, To};
use criterion::{Criterion, Throughput};
use drivers::{Driven, Group, Raw};
use godwit_core::ids::RecordId;
use godwit_core::rng::Rng;
use godwit_engine::store::StoreOptions;
use inputs::{Adder, GROUP, Kind, PAGES, Pager, Writer, record};
use tempfile::TempDir;
use tikv_jemallocator::Jemalloc;

/// As the binary has it.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// Groups that are committed behind each other, where a group is filled while the one before is written.
const ROUND: usize = 6;

/// Samples of each side of a ratio, and those before them that do not count.
const SAMPLES: usize = 300;
const WARM_UP: usize = 20;

/// Syncs alone, measured after each ratio that has them on both sides; beyond this they hide what it compares.
const SYNCS: usize = 100;
const SYNC_US_MAX: f64 = 1_000.0;

const LARGE_SET: u32 = 1_000_000;
const SMALL_BOARD: u32 = 1_000;
const PAGED_SET: u32 = 1_000;
const SMALL_SET: u32 = 100;
/// Small sets that share what is added to such: each stays small, and all of them together stay cached.
const SMALL_SETS: u32 = 64;
/// Small sets with as many members as the large one: none of them is cached for long.
const COLD_SETS: u32 = LARGE_SET / SMALL_SET;
/// Bytes of the block cache, a small part of the rows of a large set.
const CACHE_BYTES: usize = 8 * 1024 * 1024;

/// Names the directory for data, if not Cargo's own below the target directory.
const DIRECTORY_VARIABLE: &str = "GODWIT_BENCH_DIR";

/// A row of the table: a ratio of rates, and what the design wants of it at least.
struct Ratio {
    what: &'static str,
    wanted: Option<f64>,
    base: Samples,
    tested: Samples,
    /// What a sync alone took right after, if both sides have them.
    sync_us: Option<f64>,
}

/// Durations of one side, with what parts of them went where.
#[derive(Default, Clone)]
struct Samples {
    whole: Vec<Duration>,
    machine: Vec<Duration>,
    reading: Vec<Duration>,
    commit: Vec<Duration>,
    reads: usize,
}

impl Samples {
    fn push(&mut self, group: Group) {
        self.whole.push(group.whole());
        self.machine.push(group.machine);
        self.reading.push(group.reading);
        self.commit.push(group.commit);
        self.reads += group.reads as usize;
    }

    fn print(&self, side: &str) {
        let (low, high) = (quantile_us(&self.whole, 0.25), quantile_us(&self.whole, 0.75));
        print!("    {side:<6} median {:>8.0} us, half within {low:.0} to {high:.0}", median_us(&self.whole));
        if !self.machine.is_empty() {
            let (machine, reading) = (median_us(&self.machine), median_us(&self.reading));
            let reads = self.reads as f64 / (self.machine.len() * GROUP) as f64;
            print!("; machine {machine:.0} ({reads:.1} reads a commit, {reading:.0} in all)");
            print!("; batch and sync {:.0}", median_us(&self.commit));
        }
        println!();
    }
}

/// The value below which a part of the samples lies, in microseconds.
fn quantile_us(samples: &[Duration], part: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    let at = (sorted.len().saturating_sub(1) as f64 * part).round() as usize;
    sorted.get(at).map_or(f64::NAN, |sample| sample.as_secs_f64() * 1e6)
}

fn median_us(samples: &[Duration]) -> f64 {
    quantile_us(samples, 0.5)
}

impl Ratio {
    fn print(&self) {
        let (base, tested) = (median_us(&self.base.whole), median_us(&self.tested.whole));
        let ratio = base / tested;
        let verdict = match self.wanted {
            Some(_) if self.sync_us.is_some_and(|us| us > SYNC_US_MAX) => {
                "syncs hide it: measure again".to_owned()
            }
            Some(wanted) if ratio >= wanted => format!("wanted {wanted:.2}: held"),
            Some(wanted) => format!("wanted {wanted:.2}: MISSED"),
            None => "for comparison".to_owned(),
        };
        println!("{:<58} {ratio:>5.2}  {verdict}", self.what);
        let total = |samples: &[Duration]| samples.iter().sum::<Duration>().as_secs_f64();
        print!("    of totals {:.2}", total(&self.base.whole) / total(&self.tested.whole));
        if !self.base.machine.is_empty() {
            let ratio = median_us(&self.base.machine) / median_us(&self.tested.machine);
            print!("; of the machine alone, without batch and sync, {ratio:.2}");
        }
        if let Some(us) = self.sync_us {
            print!("; a sync of 16 KiB alone took {us:.0} us then");
        }
        println!();
        self.base.print("base");
        self.tested.print("tested");
    }
}

/// Runs each of the sides once a round, in an order drawn at random: what a sync takes depends on which file was synced
/// before. The sides are told whether the round counts.
fn alternate(samples: usize, sides: &mut [&mut dyn FnMut(bool)]) {
    let mut rng = Rng::new(5);
    for round in 0..WARM_UP + samples {
        let mut order: Vec<usize> = (0..sides.len()).collect();
        while !order.is_empty() {
            let next = order.swap_remove(rng.below(order.len() as u64) as usize);
            sides[next](round >= WARM_UP);
        }
    }
}

fn directory() -> TempDir {
    let parent = std::env::var_os(DIRECTORY_VARIABLE).unwrap_or_else(|| env!("CARGO_TARGET_TMPDIR").into());
    tempfile::tempdir_in(parent).expect("a directory")
}

/// What a sync of a few pages takes in that directory now, on a file that has just been appended to.
fn sync_us() -> f64 {
    let directory = directory();
    let mut file = tempfile::tempfile_in(directory.path()).expect("a file");
    let mut samples = Vec::new();
    for _ in 0..SYNCS {
        file.write_all(&[1; 16 * 1024]).expect("a disk that works");
        let began = Instant::now();
        file.sync_data().expect("a disk that works");
        samples.push(began.elapsed());
    }
    median_us(&samples)
}

fn told<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let began = Instant::now();
    let done = work();
    println!("{what}: {:.1} s", began.elapsed().as_secs_f64());
    done
}

/// Makes a store of sets, and compacts it.
fn filled(dir: &Path, sets: &[(&[RecordId], u32)]) {
    let mut driven = Driven::open(dir, StoreOptions::default().block_cache_bytes);
    for (records, members) in sets {
        driven.fill(records, *members);
    }
    // How many unsorted files the filling leaves is luck, and each would be searched. What was written long ago lies in
    // one sorted level.
    driven.store.compact();
}

fn pages(
    what: &'static str,
    wanted: Option<f64>,
    driven: &Driven,
    large: &mut Pager,
    small: &mut Pager,
) -> Ratio {
    let (mut base, mut tested) = (Samples::default(), Samples::default());
    alternate(
        SAMPLES,
        &mut [
            &mut |counts| base.whole.extend(Some(small.sample(&driven.store)).filter(|_| counts)),
            &mut |counts| tested.whole.extend(Some(large.sample(&driven.store)).filter(|_| counts)),
        ],
    );
    Ratio { what, wanted, base, tested, sync_us: None }
}

/// Adds to sets, each side in a store of its own.
fn adds([large, small, cold]: &mut [(Driven, Adder); 3]) -> [Ratio; 2] {
    let mut samples: [Samples; 3] = Default::default();
    let [in_large, in_small, in_cold] = &mut samples;
    let sample = |(driven, adder): &mut (Driven, Adder), samples: &mut Samples, counts: bool| {
        let group = driven.group(adder.group());
        if counts {
            samples.push(group);
        }
    };
    alternate(
        SAMPLES,
        &mut [
            &mut |counts| sample(large, in_large, counts),
            &mut |counts| sample(small, in_small, counts),
            &mut |counts| sample(cold, in_cold, counts),
        ],
    );
    let [tested, base, cold] = samples;
    let sync_us = Some(sync_us());
    let what = "add, set of 1,000,000 to 10,000 sets of 100";
    let second = Ratio { what, wanted: None, base: cold, tested: tested.clone(), sync_us };
    let what = "add, set of 1,000,000 to cached sets of 100";
    [Ratio { what, wanted: Some(0.9), base, tested, sync_us }, second]
}

/// Groups of commits, and the same changes as raw batches with as many syncs.
fn commits(what: &'static str, kind: Kind, wanted: Option<f64>, driven: &mut Driven, raw: &Raw) -> Ratio {
    let (mut base, mut tested) = (Samples::default(), Samples::default());
    let mut writer = Writer { rng: Rng::new(3), next: 0 };
    let mut groups = || (0..ROUND).map(|_| writer.group(kind)).collect();
    // Of the round before, where raw batches come first in one.
    let changes = RefCell::new(driven.pipelined(groups()).1);
    alternate(
        SAMPLES / ROUND,
        &mut [
            &mut |counts| {
                let took: Duration = changes.borrow().iter().map(|changes| raw.write(changes)).sum();
                base.whole.extend(Some(took / ROUND as u32).filter(|_| counts));
            },
            &mut |counts| {
                let (took, batches) = driven.pipelined(groups());
                *changes.borrow_mut() = batches;
                tested.whole.extend(Some(took / ROUND as u32).filter(|_| counts));
            },
        ],
    );
    Ratio { what, wanted, base, tested, sync_us: Some(sync_us()) }
}

/// Increments of a leaderboard of 1,000,000 members to those of as many counters, and what its readers ask.
fn boards(large: &mut Driven, small: &Driven) -> [Ratio; 3] {
    let mut board = Board::new(LARGE_SET);
    let (mut base, mut tested) = (Samples::default(), Samples::default());
    // The order of the sides is drawn, and both act on one store.
    let shared = RefCell::new((large, &mut board));
    let sample = |to: To, samples: &mut Samples, counts: bool| {
        let (driven, board) = &mut *shared.borrow_mut();
        let group = driven.group(board.group(to));
        if counts {
            samples.push(group);
        }
    };
    alternate(
        SAMPLES,
        &mut [&mut |counts| sample(To::Counters, &mut base, counts), &mut |counts| {
            sample(To::Zset, &mut tested, counts)
        }],
    );
    let what = "zincr, 1,000,000 members, to incr of as many counters";
    let increments = Ratio { what, wanted: Some(0.5), base, tested, sync_us: Some(sync_us()) };

    let ask = |with_rank: bool, samples: &mut Samples, counts: bool| {
        let (driven, board) = &mut *shared.borrow_mut();
        samples.whole.extend(Some(board.ask(&driven.store, with_rank)).filter(|_| counts));
    };
    let (mut base, mut tested) = (Samples::default(), Samples::default());
    alternate(
        SAMPLES,
        &mut [&mut |counts| ask(false, &mut base, counts), &mut |counts| ask(true, &mut tested, counts)],
    );
    let what = "score with rank to score, of 1,000,000 members";
    let ranks = Ratio { what, wanted: Some(0.2), base, tested, sync_us: None };

    let of_small = Board::new(SMALL_BOARD);
    let (mut base, mut tested) = (Samples::default(), Samples::default());
    alternate(
        SAMPLES,
        &mut [
            &mut |counts| base.whole.extend(Some(of_small.top(&small.store)).filter(|_| counts)),
            &mut |counts| {
                let (driven, board) = &mut *shared.borrow_mut();
                tested.whole.extend(Some(board.top(&driven.store)).filter(|_| counts));
            },
        ],
    );
    let what = "first 100 of 1,000,000 members to those of 1,000";
    [increments, ranks, Ratio { what, wanted: None, base, tested, sync_us: None }]
}

fn leaderboards() -> [Ratio; 3] {
    let [large_dir, small_dir] = std::array::from_fn(|_| directory());
    let (mut large, small) = told("filling leaderboards", || {
        (board(large_dir.path(), LARGE_SET), board(small_dir.path(), SMALL_BOARD))
    });
    told("leaderboards", || boards(&mut large, &small))
}

/// A store with a leaderboard, compacted.
fn board(dir: &Path, members: u32) -> Driven {
    let mut driven = Driven::open(dir, StoreOptions::default().block_cache_bytes);
    Board::new(members).fill(&mut driven);
    driven.store.compact();
    driven
}

fn main() {
    let [large_dir, small_dir, cold_dir, commits_dir, raw_dir] = std::array::from_fn(|_| directory());
    let (large, paged) = (record("large".into()), record("paged".into()));
    let small: Vec<RecordId> = (0..SMALL_SETS).map(|i| record(format!("small-{i}"))).collect();
    let cold: Vec<RecordId> = (0..COLD_SETS).map(|i| record(format!("cold-{i}"))).collect();
    let (one, other) = (std::slice::from_ref(&large), std::slice::from_ref(&paged));
    told("filling a set of 1,000,000", || {
        filled(large_dir.path(), &[(one, LARGE_SET), (other, PAGED_SET)]);
    });
    told("filling 10,000 sets of 100", || filled(cold_dir.path(), &[(&cold, SMALL_SET)]));
    filled(small_dir.path(), &[(&small, SMALL_SET)]);
    let mut in_large = Pager::new(large.clone(), LARGE_SET);
    let mut in_small = Pager::new(paged, PAGED_SET);

    let mut ratios = Vec::new();
    let cached = Driven::open(large_dir.path(), StoreOptions::default().block_cache_bytes);
    in_large.read_all(&cached.store);
    let what = "page of 100, set of 1,000,000 to set of 1,000, cached";
    ratios.push(told(what, || pages(what, Some(0.8), &cached, &mut in_large, &mut in_small)));
    drop(cached);
    let reopened = Driven::open(large_dir.path(), CACHE_BYTES);
    let what = "the same, the larger one not cached";
    ratios.push(told(what, || pages(what, None, &reopened, &mut in_large, &mut in_small)));
    drop(reopened);

    let open = |dir: &TempDir| Driven::open(dir.path(), CACHE_BYTES);
    let mut sides = [
        (open(&large_dir), Adder::new(vec![large], LARGE_SET)),
        (open(&small_dir), Adder::new(small, SMALL_SET)),
        (open(&cold_dir), Adder::new(cold, SMALL_SET)),
    ];
    ratios.extend(told("adds", || adds(&mut sides)));
    let mut driven = Driven::open(commits_dir.path(), StoreOptions::default().block_cache_bytes);
    let raw = Raw::open(raw_dir.path());
    for (what, kind, wanted) in [
        ("commits of all kinds in groups of 64 to raw batches", Kind::Mixed, Some(0.7)),
        ("increments in groups of 64 to raw batches", Kind::Increments, None),
        ("registers of 100 bytes in groups of 64 to raw batches", Kind::Registers, None),
        ("adds in groups of 64 to raw batches", Kind::Adds, None),
    ] {
        ratios.push(told(what, || commits(what, kind, wanted, &mut driven, &raw)));
    }
    ratios.extend(leaderboards());
    println!(
        "\nratios of rates, of {SAMPLES} samples a side that alternate; of commits, {} of {ROUND} groups:",
        SAMPLES / ROUND
    );
    ratios.iter().for_each(Ratio::print);
    println!();

    let mut criterion = Criterion::default().without_plots().sample_size(20).configure_from_args();
    let mut group = criterion.benchmark_group("add");
    group.throughput(Throughput::Elements(GROUP as u64));
    for (name, (driven, adder)) in ["set of 1,000,000", "sets of 100"].into_iter().zip(&mut sides) {
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|rounds| (0..rounds).map(|_| driven.group(adder.group()).whole()).sum());
        });
    }
    group.finish();
    let mut group = criterion.benchmark_group("commit");
    group.throughput(Throughput::Elements((ROUND * GROUP) as u64));
    let mut writer = Writer { rng: Rng::new(4), next: u32::MAX / 2 };
    let mut groups = || (0..ROUND).map(|_| writer.group(Kind::Mixed)).collect();
    let changes = driven.pipelined(groups()).1;
    group.bench_function("godwit", |bencher| {
        bencher.iter_custom(|rounds| (0..rounds).map(|_| driven.pipelined(groups()).0).sum());
    });
    group.bench_function("raw", |bencher| {
        bencher.iter_custom(|rounds| {
            let round = || changes.iter().map(|changes| raw.write(changes)).sum::<Duration>();
            (0..rounds).map(|_| round()).sum()
        });
    });
    group.finish();
    drop(sides);
    let cached = Driven::open(large_dir.path(), StoreOptions::default().block_cache_bytes);
    in_large.read_all(&cached.store);
    let mut group = criterion.benchmark_group("page");
    group.throughput(Throughput::Elements(PAGES as u64));
    for (name, pager) in [("set of 1,000,000", in_large), ("set of 1,000", in_small)].iter_mut() {
        group.bench_function(*name, |bencher| {
            bencher.iter_custom(|rounds| (0..rounds).map(|_| pager.sample(&cached.store)).sum());
        });
    }
    group.finish();
    criterion.final_summary();
}
