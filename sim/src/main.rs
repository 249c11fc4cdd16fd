//! `godwit-sim`: runs seeds, replays one, plays vectors. Reads files and prints; all else is in the library.

mod commands;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
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
    /// Replay a recorded history, one replica a chain, and compare its end; exit with 1 if it differs.
    Trace {
        /// The history: a commit a line (`put`, `del`, `unset` of a map, or `add`, `rem` of a set).
        file: PathBuf,
        /// What it must end in: `{key: {field: value}}`, or an array of elements.
        #[arg(long = "final", value_name = "FILE")]
        last: PathBuf,
    },
    /// Run a scenario and report what its clients saw (docs/SCENARIOS.md).
    Scenario {
        /// The scenario, as TOML.
        file: PathBuf,
        /// Write the report as JSON, too.
        #[arg(long)]
        json: Option<PathBuf>,
        /// Write the report as a page with charts, too.
        #[arg(long)]
        html: Option<PathBuf>,
    },
}

fn main() -> anyhow::Result<ExitCode> {
    match Arguments::parse().command {
        Command::Run { seeds, from } => Ok(run_seeds(from, seeds)),
        Command::Replay { seed, trace } => Ok(replay(seed, trace)),
        Command::Vectors { file } => play_vectors(&file),
        Command::Scenario { file, json, html } => {
            Ok(commands::scenario(&file, json.as_deref(), html.as_deref()))
        }
        Command::Trace { file, last } => Ok(commands::trace(&file, &last)),
    }
}

#[expect(clippy::disallowed_methods, reason = "measures how fast the simulator is; decides nothing")]
fn run_seeds(from: u64, seeds: u64) -> ExitCode {
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
            print_failure(&report);
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
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
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
