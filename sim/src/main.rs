//! `godwit-sim`: runs seeds, replays one or a recorded script, plays vectors. Reads files and prints; all else is in the library.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use godwit_sim::{draw, run, vectors};

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
        Command::Run { seeds, from, kept } => run_seeds(from, seeds, &kept),
        Command::Replay(arguments) => replay::replay(&arguments),
        Command::Vectors { file } => play_vectors(&file),
    }
}

#[expect(clippy::disallowed_methods, reason = "measures how fast the simulator is; decides nothing")]
fn run_seeds(from: u64, seeds: u64, kept: &Kept) -> anyhow::Result<ExitCode> {
    let started = std::time::Instant::now();
    let (mut failed, mut simulated_us, mut events, mut commits, mut reads) = (0u64, 0u64, 0u64, 0usize, 0u64);
    let mut slowest_us = 0;
    for seed in (0..seeds).map(|i| from.wrapping_add(i)) {
        let report = run::run(seed, false);
        simulated_us += report.simulated_us;
        events += report.events;
        commits += report.commits;
        reads += report.reads;
        slowest_us = slowest_us.max(report.convergence_us);
        if report.violation.is_some() {
            failed += 1;
            let name = format!("seed-{seed}");
            // One short history is enough to begin with, and shrinking takes as long as many seeds.
            if failed == 1 {
                replay::show_shrunk(&name, &draw::draw(seed), &report, kept)?;
            } else {
                replay::print_failure(&name, &report);
                println!("    a short history of it: godwit-sim replay --shrink --seed {seed}");
            }
        }
    }
    let wall_ms = started.elapsed().as_millis().max(1) as u64;
    println!(
        "{seeds} seeds from {from}: {failed} failed; {commits} commits, {reads} reads compared, {events} events; \
         slowest convergence {} ms",
        slowest_us / 1000
    );
    println!(
        "{} simulated seconds in {} ms: {} times real time, {} seeds an hour, {} events a second",
        simulated_us / 1_000_000,
        wall_ms,
        simulated_us / 1000 / wall_ms,
        seeds * 3_600_000 / wall_ms,
        events * 1000 / wall_ms
    );
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
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
