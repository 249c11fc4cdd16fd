//! The commands that read files of users: `trace` and `scenario`. All else of them is in the library.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, anyhow};
use godwit_sim::recorded::{self, Final, Recorded};
use godwit_sim::scenario;

/// Differences that are printed, at most.
const SHOWN_MAX: usize = 50;

/// The exit status where a file cannot be used, as opposed to one that does not hold.
const UNUSABLE: u8 = 2;

/// `godwit-sim trace FILE --final FILE`.
pub(crate) fn trace(file: &Path, last: &Path) -> ExitCode {
    play_trace(file, last).unwrap_or_else(|error| unusable(&error))
}

fn unusable(error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {error:#}");
    ExitCode::from(UNUSABLE)
}

fn play_trace(file: &Path, last: &Path) -> anyhow::Result<ExitCode> {
    let history = Recorded::parse(&text_of(file)?).map_err(|error| anyhow!("{}, {error}", file.display()))?;
    let expected = Final::parse(&text_of(last)?).map_err(|error| anyhow!("{}, {error}", last.display()))?;
    let report =
        recorded::replay(&history, &expected).map_err(|error| anyhow!("{}: {error}", file.display()))?;
    let ops: Vec<String> = report.ops.iter().map(|(name, count)| format!("{count} {name}")).collect();
    let ops = if ops.is_empty() { "no operations".to_string() } else { ops.join(", ") };
    println!("{} commits ({} merges) by {} replicas: {ops}", report.commits, report.merges, report.replicas);
    println!(
        "{} deltas of {} bytes, applied {} times by other replicas; two readers in two orders hold the same bytes",
        report.deltas, report.delta_bytes, report.applied
    );
    match expected {
        Final::Map(_) => println!(
            "the end: {} records, {} fields, {} of them with siblings that no commit resolved",
            report.items, report.fields, report.unresolved
        ),
        Final::Set(_) => println!("the end: {} elements", report.items),
    }
    if report.stand_ins > 0 {
        println!("{} names that the API refuses were played under stand-ins", report.stand_ins);
    }
    for note in &report.notes {
        println!("note: {note}");
    }
    if report.differences.is_empty() {
        println!("it equals {}", last.display());
        return Ok(ExitCode::SUCCESS);
    }
    for difference in report.differences.iter().take(SHOWN_MAX) {
        println!("DIFFERS {difference}");
    }
    println!("{} differences from {}", report.differences.len(), last.display());
    Ok(ExitCode::FAILURE)
}

/// `godwit-sim scenario FILE`: the report goes to the standard output, and to files in other forms.
pub(crate) fn scenario(file: &Path, json: Option<&Path>, html: Option<&Path>) -> ExitCode {
    play_scenario(file, json, html).unwrap_or_else(|error| unusable(&error))
}

fn play_scenario(file: &Path, json: Option<&Path>, html: Option<&Path>) -> anyhow::Result<ExitCode> {
    let beside = file.parent().unwrap_or(Path::new(""));
    let open = |name: &str| text_of(&beside.join(name)).map_err(|error| format!("{error:#}"));
    let report =
        scenario::run(&text_of(file)?, &open).map_err(|error| anyhow!("{}: {error}", file.display()))?;
    let outputs = [(json, report.json()), (html, report.html())];
    for (path, text) in outputs.iter().filter_map(|(path, text)| Some(((*path)?, text))) {
        std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    print!("{}", report.text());
    Ok(ExitCode::SUCCESS)
}

fn text_of(file: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))
}
