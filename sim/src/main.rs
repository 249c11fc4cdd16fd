//! `godwit-sim`: runs seeds, replays one or a recorded script, plays vectors. Reads files and prints; all else is in the library.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::Context;
use clap::{Parser, Subcommand};
use godwit_sim::faults::{self, Faults};
use godwit_sim::run::{self, RunReport};
use godwit_sim::{draw, vectors};

mod replay;

use crate::replay::{Kept, Replay};

#[derive(Parser)]
#[command(name = "godwit-sim", about = "The deterministic simulator of Godwit", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run many seeds; exit with 1 if something did not hold.
    Run {
        /// How many seeds.
        #[arg(long, default_value_t = 100)]
        seeds: u64,
        /// The first seed.
        #[arg(long, default_value_t = 1)]
        from: u64,
        /// Seeds that run at once, each in a thread of its own.
        #[arg(long, default_value_t = 1)]
        jobs: usize,
        #[command(flatten)]
        kept: Kept,
    },
    /// Play one seed or one recorded script, and print the digest of its trace.
    Replay(Box<Replay>),
    /// Play a file of histories with known answers (crdt.jsonl).
    Vectors {
        /// The file.
        file: PathBuf,
    },
}

fn main() -> anyhow::Result<ExitCode> {
    match Arguments::parse().command {
        Command::Run { seeds, from, jobs, kept } => run_seeds(from, seeds, jobs, &kept),
        Command::Replay(arguments) => replay::replay(&arguments),
        Command::Vectors { file } => play_vectors(&file),
    }
}

/// What many seeds came to.
#[derive(Default)]
struct Tally {
    failed: u64,
    simulated_us: u64,
    events: u64,
    commits: usize,
    reads: u64,
    slowest_us: u64,
    faults: Faults,
    /// The first failure that came.
    first: Option<(u64, RunReport)>,
}

impl Tally {
    fn add(&mut self, report: &RunReport) {
        self.simulated_us += report.simulated_us;
        self.events += report.events;
        self.commits += report.commits;
        self.reads += report.reads;
        self.slowest_us = self.slowest_us.max(report.convergence_us);
        self.failed += u64::from(report.violation.is_some());
        for (kind, times) in &report.faults {
            *self.faults.entry(kind).or_default() += times;
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "measures how fast the simulator is, and runs whole seeds beside each other; decides nothing"
)]
fn run_seeds(from: u64, seeds: u64, jobs: usize, kept: &Kept) -> anyhow::Result<ExitCode> {
    let started = std::time::Instant::now();
    let next = AtomicU64::new(0);
    let tally = Mutex::new(Tally::default());
    let work = || {
        loop {
            let nth = next.fetch_add(1, Ordering::Relaxed);
            if nth >= seeds {
                return;
            }
            let seed = from.wrapping_add(nth);
            let report = run::run(seed, false);
            let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
            tally.add(&report);
            if report.violation.is_some() {
                let name = format!("seed-{seed}");
                replay::print_failure(&name, &report);
                println!("    a short history of it: godwit-sim replay --shrink --seed {seed}");
                tally.first.get_or_insert((seed, report));
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..jobs {
            scope.spawn(work);
        }
        work();
    });
    let tally = tally.into_inner().unwrap_or_else(PoisonError::into_inner);
    let wall_ms = started.elapsed().as_millis().max(1) as u64;
    println!(
        "{seeds} seeds from {from}: {} failed; {} commits, {} reads compared, {} events; \
         slowest convergence {} ms",
        tally.failed,
        tally.commits,
        tally.reads,
        tally.events,
        tally.slowest_us / 1000
    );
    println!(
        "{} simulated seconds in {} ms: {} times real time, {} seeds an hour, {} events a second",
        tally.simulated_us / 1_000_000,
        wall_ms,
        tally.simulated_us / 1000 / wall_ms,
        seeds * 3_600_000 / wall_ms,
        tally.events * 1000 / wall_ms
    );
    for kind in faults::KINDS {
        println!("{:>10} {kind}", tally.faults.get(kind).copied().unwrap_or(0));
    }
    // One short history is enough to begin with, and shrinking takes as long as many seeds.
    if let Some((seed, report)) = &tally.first {
        replay::show_shrunk(&format!("seed-{seed}"), &draw::draw(*seed), report, kept)?;
    }
    Ok(if tally.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn play_vectors(file: &PathBuf) -> anyhow::Result<ExitCode> {
    let text = std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    let report = vectors::play_file(&text);
    for failure in &report.failures {
        println!("FAILED {failure}");
    }
    for (ty, (passed, of)) in &report.types {
        println!("{ty}: {passed} of {of} passed");
    }
    for (ty, count) in &report.left_out {
        println!("{ty}: {count} left out (not a type of Godwit's)");
    }
    let nothing = report.types.is_empty();
    if nothing {
        println!("no history of a type of Godwit's in {}", file.display());
    }
    Ok(if report.failures.is_empty() && !nothing { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
