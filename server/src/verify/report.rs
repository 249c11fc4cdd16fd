//! What was found, for people: what is wrong first, what to do about it, and the verdict in the last line.

use std::fmt::Write;

use super::differences::{Difference, FIELDS_NAMED_MAX};
use super::{Divergence, Findings, NotProven, Outcome};

/// Partitions of which nothing is proven that are shown.
const NOT_PROVEN_SHOWN_MAX: usize = 10;

/// The report, with an end of line.
pub(super) fn text(findings: &Findings) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = write(findings, &mut text);
    text
}

fn write(findings: &Findings, text: &mut String) -> std::fmt::Result {
    let Findings { cluster, partitions, nodes, .. } = findings;
    writeln!(text, "cluster {cluster}, {partitions} partitions")?;
    for node in nodes {
        writeln!(text, "  {}  {}", node.name, node.url)?;
    }
    findings.diverged.iter().try_for_each(|divergence| diverged(divergence, text))?;
    for partition in findings.not_proven.iter().take(NOT_PROVEN_SHOWN_MAX) {
        not_proven(partition, text)?;
    }
    if let Some(more @ 1..) = findings.not_proven.len().checked_sub(NOT_PROVEN_SHOWN_MAX) {
        writeln!(text, "NOT PROVEN  and {more} more partitions")?;
    }
    let Findings { equal, rows, .. } = findings;
    match findings.outcome {
        Outcome::Equal => {
            writeln!(text, "EQUAL: all {partitions} partitions, {rows} rows, on all {} nodes", nodes.len())
        }
        Outcome::Diverged => {
            let diverged = findings.diverged_partitions();
            writeln!(
                text,
                "What to do: docs/OPERATIONS.md, \"Nodes have diverged\". Keep the data directories of all nodes until then."
            )?;
            writeln!(
                text,
                "DIVERGED: {diverged} of {partitions} partitions; {equal} are equal, {} not proven",
                findings.not_proven.len()
            )
        }
        Outcome::NotProven => {
            writeln!(
                text,
                "What to do: try again with a longer --wait, or while fewer writes come. If a node lacks commits for minutes, \
                 look at links and repairs in its /v1/_cluster."
            )?;
            let open = findings.not_proven.len();
            writeln!(
                text,
                "NOT PROVEN: {open} of {partitions} partitions; {equal} are equal, none has diverged"
            )
        }
    }
}

fn diverged(divergence: &Divergence, text: &mut String) -> std::fmt::Result {
    let Divergence { partition, nodes: [first, second], rows, differences, complete } = divergence;
    writeln!(
        text,
        "DIVERGED    partition {partition}: {first} and {second} have applied the same commits, and hold different rows ({} and {})",
        rows[0], rows[1]
    )?;
    for difference in differences {
        let Difference { namespace, key, field, ty, only_first, only_second, other_value } = difference;
        let counts = [
            (*only_first, format!("only on {first}")),
            (*only_second, format!("only on {second}")),
            (*other_value, "with another value".to_owned()),
        ];
        let counts = counts.into_iter().filter(|(rows, _)| *rows > 0);
        let counts: Vec<String> = counts
            .map(|(rows, what)| match rows {
                1 => format!("1 row {what}"),
                _ => format!("{rows} rows {what}"),
            })
            .collect();
        writeln!(
            text,
            "            namespace {namespace}, key {key:?}, field {field:?} ({ty}): {}",
            counts.join(", ")
        )?;
    }
    match complete {
        true => Ok(()),
        false => writeln!(
            text,
            "            There may be more: at most {FIELDS_NAMED_MAX} are named, and fewer if writes come meanwhile"
        ),
    }
}

fn not_proven(partition: &NotProven, text: &mut String) -> std::fmt::Result {
    let NotProven { partition, lacks } = partition;
    let lacks: Vec<String> =
        lacks.iter().map(|(node, commits)| format!("{node} lacks {commits} commits")).collect();
    match lacks.is_empty() {
        // They agreed when they were asked last, but not while they were read.
        true => writeln!(text, "NOT PROVEN  partition {partition}: writes go on"),
        false => writeln!(text, "NOT PROVEN  partition {partition}: {}", lacks.join(", ")),
    }
}
