//! `godwit-sim`: runs seeds, replays one, plays vectors. Reads files and prints; all else is in the library.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::Context;
use clap::{Parser, Subcommand};
use godwit_sim::faults::{self, Faults};
use godwit_sim::run::{self, RunReport};
use godwit_sim::vectors;

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
    },
    /// Run one seed and print the digest of its trace.
    Replay {
        /// The seed.
        #[arg(long)]
        seed: u64,
        /// Print the trace, a line an event.
        #[arg(long)]
        trace: bool,
    },
    /// Play a file of histories with known answers (crdt.jsonl).
    Vectors {
        /// The file.
        file: PathBuf,
    },
}

fn main() -> anyhow::Result<ExitCode> {
    match Arguments::parse().command {
        Command::Run { seeds, from, jobs } => Ok(run_seeds(from, seeds, jobs)),
        Command::Replay { seed, trace } => Ok(replay(seed, trace)),
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
fn run_seeds(from: u64, seeds: u64, jobs: usize) -> ExitCode {
    let started = std::time::Instant::now();
    let next = AtomicU64::new(0);
    let tally = Mutex::new(Tally::default());
    let work = || {
        loop {
            let nth = next.fetch_add(1, Ordering::Relaxed);
            if nth >= seeds {
                return;
            }
            let report = run::run(from.wrapping_add(nth), false);
            print_failure(&report);
            tally.lock().unwrap_or_else(PoisonError::into_inner).add(&report);
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
    if tally.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn replay(seed: u64, trace: bool) -> ExitCode {
    let report = run::run(seed, trace);
    println!("seed {seed}: {} events, {} commits, {} frames", report.events, report.commits, report.frames);
    println!("trace digest {}", report.digest);
    match &report.violation {
        None => {
            println!("all held; convergence took {} ms", report.convergence_us / 1000);
            ExitCode::SUCCESS
        }
        Some(_) => {
            print_failure(&report);
            ExitCode::FAILURE
        }
    }
}

fn print_failure(report: &RunReport) {
    if let Some(violation) = &report.violation {
        println!("seed {} FAILED at {} ms: {violation}", report.seed, report.simulated_us / 1000);
        println!("    again, with its trace: godwit-sim replay --seed {} --trace", report.seed);
    }
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
