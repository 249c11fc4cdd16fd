//! The report for browsers: one file, charts drawn inside it, nothing fetched, every text escaped.

use std::fmt::Write as _;

use super::report::{Report, Times};
use super::units::{shown_bytes, shown_share, shown_us};

const WIDTH: u64 = 860;
const HEIGHT: u64 = 200;
const LEFT: u64 = 60;
const BOTTOM: u64 = 24;

const STYLE: &str = "body{font:15px/1.45 system-ui,sans-serif;max-width:900px;margin:2em auto;padding:0 1em;color:#222}\
h1{font-size:1.5em}h2{font-size:1.15em;margin-top:2em}p.note{color:#555}\
table{border-collapse:collapse;margin:.5em 0}td,th{padding:.2em .8em .2em 0;text-align:right;border-bottom:1px solid #ddd}\
td.t,th.t{text-align:left}svg{background:#fafafa;border:1px solid #ddd;max-width:100%}svg text{font:11px system-ui,sans-serif;fill:#444}\
.a{fill:#4477aa}.b{fill:#cc3311}.key{display:inline-block;width:.8em;height:.8em;margin:0 .3em 0 1em}\
.bad{color:#cc3311;font-weight:bold}code{font-size:.9em}";

/// Writes the page.
pub(super) fn of(report: &Report) -> String {
    let mut out = String::new();
    write(&mut out, report).expect("a text takes any text");
    out
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

fn write(out: &mut String, report: &Report) -> std::fmt::Result {
    let title = escaped(&report.title);
    write!(out, "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>")?;
    writeln!(out, "<style>{STYLE}</style></head><body>\n<h1>{title}</h1>")?;
    if !report.about.is_empty() {
        writeln!(out, "<p>{}</p>", escaped(report.about.trim()))?;
    }
    writeln!(
        out,
        "<p class=\"note\">A simulation of Godwit, an always-writable store whose regions each hold all data and converge. \
         Clients worked for {} of simulated time (seed {}); the same file gives the same report.</p>",
        shown_us(report.duration_us),
        report.seed
    )?;
    let regions = report
        .regions
        .iter()
        .map(|region| vec![region.name.clone(), region.nodes.to_string(), region.clients.to_string()]);
    table(out, &["region", "nodes", "clients"], 1, regions.collect())?;
    faults(out, report)?;
    timelines(out, report)?;
    clients(out, report)?;
    staleness(out, report)?;
    conflicts(out, report)?;
    counters(out, report)?;
    links(out, report)?;
    ends(out, report)?;
    writeln!(out, "<p class=\"note\">Trace digest <code>{}</code></p></body></html>", report.trace_digest)
}

fn faults(out: &mut String, report: &Report) -> std::fmt::Result {
    writeln!(out, "<h2>What went wrong, and when</h2>")?;
    if report.faults.is_empty() {
        return writeln!(out, "<p>Nothing.</p>");
    }
    let rows = report.faults.iter().map(|fault| vec![fault.what.clone(), shown_us(fault.at_us)]);
    table(out, &["fault", "at"], 1, rows.collect())
}

fn timelines(out: &mut String, report: &Report) -> std::fmt::Result {
    writeln!(out, "<h2>Commits that some region did not have yet</h2>")?;
    let under_way: Vec<u64> = report.timeline.iter().map(|part| part.under_way).collect();
    let missed: Vec<u64> = report.timeline.iter().map(|part| part.missed).collect();
    writeln!(
        out,
        "<p class=\"note\">Answered to their clients, but not readable at every node yet (commits, over simulated time). \
         Dashed lines are faults; point at one to read it.</p>"
    )?;
    bars(out, report, "commits under way", &under_way, "a")?;
    writeln!(out, "<h2>Reads that missed something</h2>")?;
    writeln!(
        out,
        "<p class=\"note\">Reads in each {} that did not show a commit which a client elsewhere had already been told \
         of.</p>",
        shown_us(report.duration_us.div_ceil(report.timeline.len().max(1) as u64))
    )?;
    bars(out, report, "stale reads", &missed, "b")
}

/// Bars over the time of the run, with its faults.
fn bars(out: &mut String, report: &Report, what: &str, values: &[u64], class: &str) -> std::fmt::Result {
    let most = values.iter().copied().max().unwrap_or(0).max(1);
    let (wide, high) = (WIDTH - LEFT, HEIGHT - BOTTOM - 10);
    let x = |at_us: u64| {
        LEFT + (u128::from(at_us) * u128::from(wide) / u128::from(report.duration_us.max(1))) as u64
    };
    write!(out, "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{what} over time\">")?;
    for (part, value) in report.timeline.iter().zip(values) {
        let tall = value * high / most;
        let (from, until) =
            (x(part.from_us), x(part.from_us + report.duration_us / values.len().max(1) as u64));
        write!(
            out,
            "<rect class=\"{class}\" x=\"{from}\" y=\"{}\" width=\"{}\" height=\"{tall}\"><title>{}: {value}</title></rect>",
            10 + high - tall,
            until.saturating_sub(from).max(2) - 1,
            shown_us(part.from_us)
        )?;
    }
    for fault in &report.faults {
        let at = x(fault.at_us);
        write!(
            out,
            "<line x1=\"{at}\" x2=\"{at}\" y1=\"4\" y2=\"{}\" stroke=\"#222\" stroke-width=\"1.5\" stroke-dasharray=\"4 3\">\
             <title>{} {}</title></line>",
            10 + high,
            shown_us(fault.at_us),
            escaped(&fault.what)
        )?;
    }
    write!(out, "<text x=\"4\" y=\"16\">{most}</text><text x=\"4\" y=\"{}\">0</text>", 10 + high)?;
    for quarter in 0..=4 {
        let at_us = report.duration_us / 4 * quarter;
        let anchor = if quarter == 4 { "end" } else { "start" };
        write!(
            out,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"{anchor}\">{}</text>",
            x(at_us),
            HEIGHT - 6,
            shown_us(at_us)
        )?;
    }
    writeln!(out, "</svg>")
}

fn times(times: &Times) -> [String; 3] {
    [times.p50_us, times.p99_us, times.max_us].map(shown_us)
}

fn clients(out: &mut String, report: &Report) -> std::fmt::Result {
    writeln!(out, "<h2>What clients saw</h2>")?;
    writeln!(
        out,
        "<p class=\"note\">Times from a request to its answer, the way to the node and back included: half of the answers took \
         at most, 99 % at most, the longest. Unanswered: no node of the region was up, or it crashed meanwhile.</p>"
    )?;
    let rows = report.clients.iter().map(|client| {
        let counts = [client.answered, client.refused, client.unanswered].map(|count| count.to_string());
        let names = [client.region.clone(), client.operation.clone()];
        names.into_iter().chain(counts).chain(times(&client.latency)).collect()
    });
    let head = ["region", "operation", "answered", "refused", "unanswered", "half", "99 %", "longest"];
    table(out, &head, 2, rows.collect())?;
    for client in &report.clients {
        if let Some(why) = &client.first_refusal {
            writeln!(
                out,
                "<p>The first {} refused in {}: {}</p>",
                client.operation,
                escaped(&client.region),
                escaped(why)
            )?;
        }
    }
    Ok(())
}

fn staleness(out: &mut String, report: &Report) -> std::fmt::Result {
    let reads = &report.reads;
    writeln!(out, "<h2>Staleness</h2>")?;
    writeln!(
        out,
        "<p><b>{}</b> of {} reads ({}) missed a commit that had been answered elsewhere.",
        reads.missed,
        reads.reads,
        shown_share(reads.missed, reads.reads)
    )?;
    if reads.missed > 0 {
        let [half, most, longest] = times(&reads.behind);
        write!(
            out,
            " The oldest commit that such a read missed had been answered {half} before (half of them), {most} (99 %), \
             {longest} (longest)."
        )?;
    }
    writeln!(
        out,
        "</p><p class=\"note\">How long after its answer a commit is readable at a node of another region:</p>"
    )?;
    let rows = report.staleness.iter().map(|pair| {
        let names = [pair.from.clone(), pair.to.clone(), pair.commits.to_string()];
        names.into_iter().chain(times(&pair.after)).chain([pair.never.to_string()]).collect()
    });
    table(out, &["from", "to", "commits", "half", "99 %", "longest", "never"], 2, rows.collect())?;
    writeln!(out, "<p class=\"note\">Commits by that time, over all pairs of regions:</p>")?;
    let rows = report.histogram.iter().filter(|bucket| bucket.commits > 0).map(|bucket| {
        let bound = bucket.up_to_us.map_or("more".into(), |bound| format!("up to {}", shown_us(bound)));
        (bound, bucket.commits, bucket.commits.to_string())
    });
    lying(out, "commits by time until readable", &rows.collect::<Vec<_>>())
}

/// Lying bars with a name and a value each.
fn lying(out: &mut String, what: &str, rows: &[(String, u64, String)]) -> std::fmt::Result {
    let most = rows.iter().map(|(_, value, _)| *value).max().unwrap_or(0).max(1);
    let high = rows.len() as u64 * 22 + 8;
    write!(out, "<svg viewBox=\"0 0 {WIDTH} {high}\" role=\"img\" aria-label=\"{what}\">")?;
    for (at, (name, value, shown)) in rows.iter().enumerate() {
        let y = at as u64 * 22 + 6;
        let long = (u128::from(*value) * u128::from(WIDTH - 320) / u128::from(most)) as u64;
        write!(
            out,
            "<text x=\"200\" y=\"{0}\" text-anchor=\"end\">{1}</text><rect class=\"a\" x=\"210\" y=\"{y}\" width=\"{2}\" \
             height=\"16\"/><text x=\"{3}\" y=\"{0}\">{4}</text>",
            y + 12,
            escaped(name),
            long.max(1),
            216 + long,
            escaped(shown)
        )?;
    }
    writeln!(out, "</svg>")
}

fn conflicts(out: &mut String, report: &Report) -> std::fmt::Result {
    let conflicts = &report.conflicts;
    writeln!(out, "<h2>Conflicts</h2><ul>")?;
    writeln!(
        out,
        "<li><b>{}</b> values of registers lost to concurrent ones (kept as siblings until somebody writes again); {} reads \
         showed siblings</li>",
        conflicts.register_values_lost, report.reads.with_siblings
    )?;
    writeln!(out, "<li><b>{}</b> additions stayed beside a concurrent removal</li>", conflicts.adds_kept)?;
    writeln!(
        out,
        "<li><b>{}</b> other writes stayed beside a concurrent clear or deletion</li>",
        conflicts.writes_kept
    )?;
    writeln!(
        out,
        "<li><b>{}</b> increments were made beside concurrent ones, and all are counted</li></ul>",
        conflicts.concurrent_increments
    )?;
    if conflicts.listed.is_empty() {
        return Ok(());
    }
    let region = |region: &Option<String>| region.clone().unwrap_or_else(|| "?".into());
    let rows = conflicts.listed.iter().map(|conflict| {
        vec![
            conflict.record.clone(),
            conflict.field.clone().unwrap_or_default(),
            format!("{} ({})", conflict.won.what, region(&conflict.won.region)),
            format!("{} ({})", conflict.lost.what, region(&conflict.lost.region)),
            shown_us(conflict.seen_us),
        ]
    });
    table(out, &["record", "field", "won", "lost", "seen at"], 4, rows.collect())
}

fn counters(out: &mut String, report: &Report) -> std::fmt::Result {
    if report.counters.is_empty() {
        return Ok(());
    }
    writeln!(out, "<h2>Counters</h2>")?;
    writeln!(
        out,
        "<p class=\"note\">Increments that clients were told of, against the counter at the end. It may differ only where the \
         counter was cleared, or a node crashed before it answered.</p>"
    )?;
    let rows = report.counters.iter().map(|counter| {
        let end = counter.at_the_end.map_or("unknown".into(), |end| end.to_string());
        let may = if counter.uncertain { "may differ" } else { "must be equal" };
        let texts = [counter.record.clone(), counter.field.clone()];
        let numbers = [counter.increments.to_string(), counter.sum.to_string(), end, may.to_string()];
        texts.into_iter().chain(numbers).collect()
    });
    let head = ["record", "field", "increments answered", "their sum", "at the end", ""];
    table(out, &head, 2, rows.collect())
}

fn links(out: &mut String, report: &Report) -> std::fmt::Result {
    writeln!(out, "<h2>What links carried</h2>")?;
    writeln!(
        out,
        "<p class=\"note\">Bytes of messages that arrived, without what QUIC, UDP and IP add.</p>"
    )?;
    let rows = report.links.iter().map(|link| {
        let shown = format!("{} in {} messages", shown_bytes(link.bytes), link.messages);
        (format!("{} → {}", link.from, link.to), link.bytes, shown)
    });
    lying(out, "bytes carried by each link", &rows.collect::<Vec<_>>())
}

fn ends(out: &mut String, report: &Report) -> std::fmt::Result {
    writeln!(out, "<h2>Time to converge</h2>")?;
    if !report.heals.is_empty() {
        let rows = report.heals.iter().map(|heal| {
            let after = heal.converged_after_us.map_or("not by the end".into(), shown_us);
            vec![heal.what.clone(), shown_us(heal.at_us), heal.lacking.to_string(), after]
        });
        let head =
            ["mended", "at", "commits lacking, over all nodes", "until every node that was up had them"];
        table(out, &head, 1, rows.collect())?;
    }
    match report.end.after_us {
        Some(after) => {
            writeln!(
                out,
                "<p>At the end all nodes that are up hold the same bytes, {} after the last request.</p>",
                shown_us(after)
            )?;
        }
        None => writeln!(out, "<p class=\"bad\">At the end the nodes do not agree.</p>")?,
    }
    let rows = report.end.lacking.iter().map(|(node, commits)| vec![node.clone(), commits.to_string()]);
    let rows: Vec<Vec<String>> = rows.collect();
    if rows.is_empty() { Ok(()) } else { table(out, &["node", "lacks commits"], 1, rows) }
}

/// A table whose first columns are text.
fn table(out: &mut String, head: &[&str], texts: usize, rows: Vec<Vec<String>>) -> std::fmt::Result {
    let class = |column: usize| if column < texts { " class=\"t\"" } else { "" };
    write!(out, "<table><tr>")?;
    for (column, name) in head.iter().enumerate() {
        write!(out, "<th{}>{name}</th>", class(column))?;
    }
    writeln!(out, "</tr>")?;
    for row in rows {
        write!(out, "<tr>")?;
        for (column, cell) in row.iter().enumerate() {
            write!(out, "<td{}>{}</td>", class(column), escaped(cell))?;
        }
        writeln!(out, "</tr>")?;
    }
    writeln!(out, "</table>")
}
