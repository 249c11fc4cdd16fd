//! `godwit-sim replay`, and what is printed and written when something does not hold. Of the binary alone: it reads and
//! writes files.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use godwit_sim::run::{self, RunReport};
use godwit_sim::script::Script;
use godwit_sim::shrink::{self, Shrunk};
use godwit_sim::trace::Watch;
use godwit_sim::{draw, failure, recording, timeline};

/// What is played, and what is kept of it.
#[derive(Args)]
pub struct Replay {
    #[command(flatten)]
    what: Played,
    /// Print the trace, a line an event.
    #[arg(long)]
    trace: bool,
    /// Write what is played to this file, a line a step.
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// If it fails, look for a shorter history that fails in the same way.
    #[arg(long)]
    shrink: bool,
    /// Draw the timeline into this file: of the shorter history, with --shrink.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    #[command(flatten)]
    kept: Kept,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct Played {
    /// The seed.
    #[arg(long)]
    seed: Option<u64>,
    /// A recorded script.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
}

/// How failures are shrunk and kept.
#[derive(Args)]
pub struct Kept {
    /// The directory for recorded failures.
    #[arg(long, value_name = "DIR", default_value = "target/sim")]
    out: PathBuf,
    /// How many runs may be tried to shrink a failure; none with 0.
    #[arg(long, value_name = "RUNS", default_value_t = shrink::RUNS_MAX)]
    shrink_runs: u32,
}

/// Plays a seed or a file.
pub fn replay(arguments: &Replay) -> anyhow::Result<ExitCode> {
    let Replay { what, trace, record, shrink, html, kept } = arguments;
    let (name, script) = match (&what.file, what.seed) {
        (Some(file), _) => (stem(file), read(file)?),
        (None, seed) => {
            let seed = seed.unwrap_or_default();
            (format!("seed-{seed}"), draw::draw(seed))
        }
    };
    if let Some(file) = record {
        write(file, &recording::write(&script))?;
    }
    let report = run::play(&script, Watch { print: *trace, keep: html.is_some() });
    println!("{name}: {} events, {} commits, {} frames", report.events, report.commits, report.frames);
    println!("trace digest {}", report.digest);
    if report.violation.is_none() {
        println!("all held; convergence took {} ms", report.convergence_us / 1000);
        if let Some(file) = html {
            write(file, &timeline::html(&script, &report))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    if *shrink {
        let short = show_shrunk(&name, &script, &report, kept)?;
        if let Some(file) = html {
            draw_into(file, &short)?;
        }
    } else {
        print_failure(&name, &report);
        print!("what each node has then:\n{}", failure::views(&report));
        if let Some(file) = html {
            write(file, &timeline::html(&script, &report))?;
        }
    }
    Ok(ExitCode::FAILURE)
}

/// The line of a failure, and how to see it again.
pub fn print_failure(name: &str, report: &RunReport) {
    if let Some(violation) = &report.violation {
        println!("{name} FAILED at {} ms: {violation}", report.simulated_us / 1000);
    }
}

/// Shrinks a failure, prints the short history and what each node has, and records it with its timeline.
pub fn show_shrunk(name: &str, script: &Script, report: &RunReport, kept: &Kept) -> anyhow::Result<Script> {
    print_failure(name, report);
    let Some(violation) = &report.violation else { return Ok(script.clone()) };
    // Machines that assert say so once, not in every run that is tried.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let shrunk = shrink::shrink(script, kept.shrink_runs, |candidate| {
        let report = run::play(candidate, Watch::default());
        report
            .violation
            .is_some_and(|found| found.invariant == violation.invariant)
            .then_some(report.simulated_us)
    });
    let Shrunk { script: mut short, runs, ran_out } = shrunk;
    let again = run::play(&short, Watch { print: false, keep: true });
    std::panic::set_hook(hook);
    println!(
        "the shortest history found after {runs} runs{}: {} of {} steps, {} of {} nodes",
        if ran_out { " (as many as --shrink-runs allows)" } else { "" },
        short.steps.len(),
        script.steps.len(),
        short.config.nodes,
        script.config.nodes
    );
    print!("{}", failure::history(&short));
    if let Some(violation) = &again.violation {
        println!("there, at {} ms: {violation}", again.simulated_us / 1000);
        short.note = violation.to_string();
    }
    print!("what each node has then:\n{}", failure::views(&again));
    let file = kept.out.join(format!("{name}.jsonl"));
    let picture = file.with_extension("html");
    write(&file, &recording::write(&short))?;
    write(&picture, &timeline::html(&short, &again))?;
    println!("its timeline: {}", picture.display());
    println!("again: godwit-sim replay --file {} --trace", file.display());
    Ok(short)
}

fn draw_into(file: &Path, script: &Script) -> anyhow::Result<()> {
    let report = run::play(script, Watch { print: false, keep: true });
    write(file, &timeline::html(script, &report))
}

fn stem(file: &Path) -> String {
    file.file_stem().map_or_else(|| "script".into(), |stem| stem.to_string_lossy().into_owned())
}

fn read(file: &Path) -> anyhow::Result<Script> {
    let text = fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    recording::read(&text).with_context(|| format!("reading {}", file.display()))
}

fn write(file: &Path, text: &str) -> anyhow::Result<()> {
    if let Some(directory) = file.parent().filter(|directory| !directory.as_os_str().is_empty()) {
        fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
    }
    fs::write(file, text).with_context(|| format!("writing {}", file.display()))
}
