//! The report for terminals.

use std::fmt::Write as _;

use super::report::Report;
use super::units::{shown_bytes, shown_share, shown_us};

/// Conflicts shown one by one.
const CONFLICTS_SHOWN: usize = 10;
/// Counters shown.
const COUNTERS_SHOWN: usize = 5;
const BAR_CHARS: u64 = 40;

/// Writes the report. Lines end with a line's end, columns are padded.
pub(super) fn of(report: &Report) -> String {
    let mut out = String::new();
    write(&mut out, report).expect("a text takes any text");
    out
}

fn write(out: &mut String, report: &Report) -> std::fmt::Result {
    writeln!(out, "{}", report.title)?;
    let regions: Vec<String> = report
        .regions
        .iter()
        .map(|region| format!("{} (nodes {}, clients {})", region.name, region.nodes, region.clients))
        .collect();
    writeln!(out, "{} from seed {}; {}", shown_us(report.duration_us), report.seed, regions.join(", "))?;
    for fault in &report.faults {
        writeln!(out, "  {:>8}  {}", shown_us(fault.at_us), fault.what)?;
    }

    writeln!(
        out,
        "\nWhat clients saw (time from the request to its answer, their way to the node included)"
    )?;
    let head = ["region", "operation", "answered", "refused", "unanswered", "half", "99 %", "longest"];
    let rows = report.clients.iter().map(|client| {
        [
            client.region.clone(),
            client.operation.clone(),
            client.answered.to_string(),
            client.refused.to_string(),
            client.unanswered.to_string(),
            shown_us(client.latency.p50_us),
            shown_us(client.latency.p99_us),
            shown_us(client.latency.max_us),
        ]
    });
    table(out, head, rows.collect())?;
    for client in &report.clients {
        if let Some(why) = &client.first_refusal {
            writeln!(out, "  the first {} refused in {}: {why}", client.operation, client.region)?;
        }
    }

    let reads = &report.reads;
    writeln!(out, "\nStale reads")?;
    writeln!(
        out,
        "  {} of {} reads ({}) missed a commit that had been answered elsewhere",
        reads.missed,
        reads.reads,
        shown_share(reads.missed, reads.reads)
    )?;
    if reads.missed > 0 {
        let behind = &reads.behind;
        writeln!(
            out,
            "  the oldest commit that such a read missed had been answered {} before (half of them), {} (99 %), {} (longest)",
            shown_us(behind.p50_us),
            shown_us(behind.p99_us),
            shown_us(behind.max_us)
        )?;
    }

    writeln!(out, "\nHow long after its answer a commit is readable at a node of another region")?;
    let head = ["from", "to", "commits", "half", "99 %", "longest", "never"];
    let rows = report.staleness.iter().map(|pair| {
        [
            pair.from.clone(),
            pair.to.clone(),
            pair.commits.to_string(),
            shown_us(pair.after.p50_us),
            shown_us(pair.after.p99_us),
            shown_us(pair.after.max_us),
            pair.never.to_string(),
        ]
    });
    table(out, head, rows.collect())?;
    let most = report.histogram.iter().map(|bucket| bucket.commits).max().unwrap_or(0).max(1);
    for bucket in report.histogram.iter().filter(|bucket| bucket.commits > 0) {
        let bound = bucket.up_to_us.map_or("more".into(), |bound| format!("up to {}", shown_us(bound)));
        let bar = "#".repeat((bucket.commits * BAR_CHARS).div_ceil(most) as usize);
        writeln!(out, "  {bound:>12} {:>8}  {bar}", bucket.commits)?;
    }

    let conflicts = &report.conflicts;
    writeln!(out, "\nConflicts")?;
    writeln!(
        out,
        "  {} values of registers lost to concurrent ones; {} reads showed siblings",
        conflicts.register_values_lost, reads.with_siblings
    )?;
    writeln!(
        out,
        "  {} additions stayed beside a concurrent removal, {} other writes beside a concurrent clear or deletion",
        conflicts.adds_kept, conflicts.writes_kept
    )?;
    writeln!(out, "  {} increments beside concurrent ones, all counted", conflicts.concurrent_increments)?;
    for conflict in conflicts.listed.iter().take(CONFLICTS_SHOWN) {
        let field = conflict.field.as_ref().map_or(String::new(), |field| format!(" {field}"));
        let region = |region: &Option<String>| region.clone().unwrap_or_else(|| "?".into());
        writeln!(
            out,
            "  {:>8}  {}{field}: {} of {} won over {} of {}",
            shown_us(conflict.seen_us),
            conflict.record,
            conflict.won.what,
            region(&conflict.won.region),
            conflict.lost.what,
            region(&conflict.lost.region)
        )?;
    }
    if conflicts.listed.len() > CONFLICTS_SHOWN {
        writeln!(out, "  … and more: the JSON report lists {}", conflicts.listed.len())?;
    }

    if !report.counters.is_empty() {
        writeln!(out, "\nCounters")?;
    }
    for counter in report.counters.iter().take(COUNTERS_SHOWN) {
        let end = counter.at_the_end.map_or("unknown".into(), |end| end.to_string());
        let uncertain =
            if counter.uncertain { " (it was cleared, or a node crashed before it answered)" } else { "" };
        writeln!(
            out,
            "  {} {}: {} increments were answered, of {} in all; at the end it is {end}{uncertain}",
            counter.record, counter.field, counter.increments, counter.sum
        )?;
    }

    writeln!(out, "\nWhat links carried")?;
    let rows = report
        .links
        .iter()
        .map(|link| [link.from.clone(), link.to.clone(), link.messages.to_string(), shown_bytes(link.bytes)]);
    table(out, ["from", "to", "messages", "bytes"], rows.collect())?;

    writeln!(out, "\nTime to converge")?;
    for heal in &report.heals {
        let after = heal.converged_after_us.map_or("not by the end".into(), shown_us);
        writeln!(
            out,
            "  after {:?} at {}: {after} ({} commits were lacking, summed over nodes)",
            heal.what,
            shown_us(heal.at_us),
            heal.lacking
        )?;
    }
    match report.end.after_us {
        Some(after) => {
            writeln!(
                out,
                "  at the end all nodes that are up hold the same bytes, {} after the last request",
                shown_us(after)
            )?;
        }
        None => writeln!(out, "  at the end they do NOT agree")?,
    }
    for (node, commits) in &report.end.lacking {
        writeln!(out, "  {node} lacks {commits} commits")?;
    }
    writeln!(out, "\ntrace digest {}", report.trace_digest)
}

/// The first column to the left, the others too if they are no numbers.
fn table<const N: usize>(out: &mut String, head: [&str; N], rows: Vec<[String; N]>) -> std::fmt::Result {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([head[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..N).map(width).collect();
    let is_text = |column: usize| matches!(head[column], "region" | "operation" | "from" | "to");
    let mut line = |cells: &[&str]| {
        let mut text = String::from(" ");
        for (column, cell) in cells.iter().enumerate() {
            let padding = " ".repeat(widths[column] - cell.chars().count());
            match is_text(column) {
                true => text += &format!(" {cell}{padding}"),
                false => text += &format!(" {padding}{cell}"),
            }
        }
        writeln!(out, "{}", text.trim_end())
    };
    line(&head)?;
    for row in &rows {
        line(&row.each_ref().map(String::as_str))?;
    }
    Ok(())
}
