//! The timeline of a run, as one page that needs nothing else: for somebody who never saw the code.
//!
//! Time goes down, each node is a lane. What clients asked for, which messages went where, when links were cut and processes
//! gone, where what nodes hold parts, and in words what did not hold. Quiet stretches are squeezed: the labels say the time.
//! The size is bounded: what is left out is said at the top.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use crate::failure;
use crate::run::RunReport;
use crate::script::Script;
use crate::trace::{Mark, What};

/// The most labels of a page, the latest ones.
pub const LABELS_MAX: usize = 2_000;
/// The most arrows of a page, the latest ones; routine messages go first.
pub const ARROWS_MAX: usize = 1_500;

const TOP_PX: u64 = 60;
const TIMES_PX: u64 = 100;
const LANE_PX: u64 = 330;
const LINK_PX: u64 = 56;
const LINE_PX: u64 = 14;
const GAP_PX_MAX: u64 = 40;
const COLOURS: [&str; 8] =
    ["#4e79a7", "#f28e2b", "#59a14f", "#b07aa1", "#edc948", "#76b7b2", "#ff9da7", "#9c755f"];

const LEGEND: &str = "Time goes down; long quiet stretches are squeezed, the numbers at the left say the simulated \
    time. Each lane is a node: a server with its own disk, that clients write to. The colour of a lane stands for \
    what the node's disk holds: two lanes of one colour hold the same. The bar at the far left is red while nodes \
    that run hold different things: this is normal for as long as messages are under way or links are cut, and must \
    end soon after all faults have ended. A lane is grey and thin while the node's process does not run. Arrows are \
    messages between nodes, from when they are sent to when they arrive; an arrow that ends in a cross did not \
    arrive. Bars at the right show which links were cut, and how long.";

/// Draws the page of a run that was played with its marks kept.
pub fn html(script: &Script, report: &RunReport) -> String {
    let chosen = choose(&report.marks);
    let mut page = String::from(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\
         <title>A run of godwit-sim</title>\n<style>\
         body{font:14px/1.5 sans-serif;margin:1.5em;color:#222}pre{background:#f6f6f6;padding:.7em;overflow-x:auto}\
         .bad{border-left:6px solid #c22;background:#fdeeee;padding:.6em 1em}\
         .good{border-left:6px solid #2a2;background:#eefaee;padding:.6em 1em}\
         svg text{font:11px sans-serif;paint-order:stroke;stroke:#fff;stroke-width:3px}\
         svg .name{font-weight:bold;font-size:13px}\
         p{max-width:60em}</style></head><body>\n",
    );
    // Writing to a string cannot fail, here and below.
    let _ = writeln!(page, "<h1>Seed {}</h1>", script.seed);
    match &report.violation {
        Some(violation) => {
            let _ = writeln!(
                page,
                "<div class=\"bad\"><b>What did not hold, {} after the beginning</b><p>{}</p><p>{}</p></div>",
                seconds(report.simulated_us),
                escape(in_plain_words(violation.invariant)),
                escape(&violation.to_string())
            );
        }
        None => page.push_str("<div class=\"good\">Everything held.</div>\n"),
    }
    let _ = writeln!(page, "<h2>Timeline</h2><p>{}</p><p>{}</p>", escape(LEGEND), message_legend());
    if chosen.left_out > 0 {
        let _ = writeln!(
            page,
            "<p><b>{} labels and messages are left out</b>, of the beginning or routine ones: this page shows at most \
             {LABELS_MAX} labels and {ARROWS_MAX} messages.</p>",
            chosen.left_out
        );
    }
    Drawing::new(&chosen, report).draw(&mut page);
    let _ =
        writeln!(page, "<h2>What happened from outside</h2><pre>{}</pre>", escape(&failure::history(script)));
    if !report.views.is_empty() {
        let views = failure::views(report);
        let _ = writeln!(page, "<h2>What each node has at the end</h2><pre>{}</pre>", escape(&views));
    }
    let _ = writeln!(page, "<h2>Configuration</h2><pre>{}</pre>", escape(&format!("{:#?}", script.config)));
    page.push_str("</body></html>\n");
    page
}

/// What an invariant demands, for somebody who has not read the design.
fn in_plain_words(invariant: u8) -> &'static str {
    match invariant {
        1 => {
            "Nodes that got the same changes must hold the same bytes, and once all faults have ended, every node \
              must soon have every change."
        }
        2 => {
            "What a node shows must be exactly what follows from the changes that it has got, by the meaning of \
              each type; and a request must be accepted or refused accordingly."
        }
        3 => "What a client was told to be stored must not be lost.",
        5 => "A request must take effect once, however often it is repeated or a message arrives.",
        6 => "No name of a change may be given to two different changes.",
        7 => {
            "A node that shows a change must also show all that the change was made upon, a change must appear \
              whole, and a client must never see less than it has seen before."
        }
        8 => "A node that runs must answer in time, whatever happens to the links.",
        9 => "What waits in memory must stay within its limits.",
        10 => "No node that works properly may stop, or be refused by another one.",
        _ => "Something that must hold did not.",
    }
}

struct Arrow<'a> {
    sent_us: u64,
    arrived_us: Vec<u64>,
    from: usize,
    to: usize,
    message: &'a str,
    bytes: usize,
}

struct Chosen<'a> {
    marks: Vec<&'a Mark>,
    arrows: Vec<Arrow<'a>>,
    left_out: usize,
}

fn is_routine(message: &str) -> bool {
    matches!(message, "contexts" | "hello")
}

/// What is shown, within the limits of a page.
fn choose(marks: &[Mark]) -> Chosen<'_> {
    let mut arrivals: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    let mut labels = 0;
    for mark in marks {
        match mark.what {
            What::Arrived { number } => arrivals.entry(number).or_default().push(mark.at_us),
            What::Sent { .. } | What::State { .. } => {}
            _ => labels += 1,
        }
    }
    let mut left_out = labels - labels.min(LABELS_MAX);
    let mut to_skip = left_out;
    let (mut shown, mut arrows) = (Vec::new(), Vec::new());
    let mut began_us = 0;
    for mark in marks {
        match &mark.what {
            What::Sent { number, from, to, message, bytes } => arrows.push(Arrow {
                sent_us: mark.at_us,
                arrived_us: arrivals.remove(number).unwrap_or_default(),
                from: *from,
                to: *to,
                message,
                bytes: *bytes,
            }),
            What::Arrived { .. } => {}
            // These draw no label but the lanes and bars.
            What::State { .. }
            | What::Started { .. }
            | What::Ended { .. }
            | What::Cut { .. }
            | What::Healed { .. } => {
                to_skip = to_skip.saturating_sub(usize::from(!matches!(mark.what, What::State { .. })));
                shown.push(mark);
            }
            _ if to_skip > 0 => {
                to_skip -= 1;
                began_us = mark.at_us;
            }
            _ => shown.push(mark),
        }
    }
    let all = arrows.len();
    arrows.retain(|arrow| arrow.sent_us >= began_us);
    if arrows.len() > ARROWS_MAX {
        arrows.retain(|arrow| !is_routine(arrow.message));
    }
    let excess = arrows.len().saturating_sub(ARROWS_MAX);
    if excess > 0 {
        arrows.drain(..excess);
        began_us = began_us.max(arrows[0].sent_us);
    }
    left_out += all - arrows.len();
    // Where labels and arrows are left out at the beginning, the lanes begin later too.
    let first = shown.partition_point(|mark| mark.at_us < began_us);
    let lanes = shown[..first].iter().filter(|mark| matches!(mark.what, What::Started { .. }));
    let marks = lanes.chain(&shown[first..]).copied().collect();
    Chosen { marks, arrows, left_out }
}

struct Drawing<'a> {
    chosen: &'a Chosen<'a>,
    lanes: BTreeMap<usize, String>,
    links: BTreeSet<(usize, usize)>,
    rows: BTreeMap<u64, u64>,
    end_px: u64,
    failed: bool,
}

impl<'a> Drawing<'a> {
    fn new(chosen: &'a Chosen<'a>, report: &RunReport) -> Self {
        let (mut lanes, mut links) = (BTreeMap::new(), BTreeSet::new());
        // How many lines of text a lane needs at a time.
        let mut lines: BTreeMap<u64, BTreeMap<usize, u64>> = BTreeMap::new();
        for mark in &chosen.marks {
            let at = lines.entry(mark.at_us).or_default();
            match &mark.what {
                What::Started { node, name, region } => {
                    *at.entry(*node).or_default() += 1;
                    lanes.insert(*node, format!("{name} in region {region}"));
                }
                What::Cut { link } | What::Healed { link } => drop(links.insert(*link)),
                what => {
                    if let Some(node) = place_of(what) {
                        *at.entry(node).or_default() += 1;
                    }
                }
            }
        }
        for arrow in &chosen.arrows {
            for &at in arrow.arrived_us.iter().chain([&arrow.sent_us]) {
                lines.entry(at).or_default();
            }
        }
        lines.entry(report.simulated_us).or_default();
        let (mut rows, mut y, mut last) = (BTreeMap::new(), TOP_PX, 0);
        for (at, nodes) in lines {
            let gap_ms: u64 = (at - last) / 1_000;
            y += u64::from(gap_ms.checked_ilog2().unwrap_or(0)) * 4;
            y += 4;
            rows.insert(at, y);
            y += (nodes.values().copied().max().unwrap_or(0) * LINE_PX).min(GAP_PX_MAX * 10);
            last = at;
        }
        Self { chosen, lanes, links, rows, end_px: y + LINE_PX, failed: report.violation.is_some() }
    }

    fn x(&self, node: usize) -> u64 {
        TIMES_PX + self.lanes.range(..node).count() as u64 * LANE_PX
    }

    fn y(&self, at_us: u64) -> u64 {
        self.rows.get(&at_us).copied().unwrap_or(self.end_px)
    }

    fn draw(&self, page: &mut String) {
        let links_at = TIMES_PX + self.lanes.len() as u64 * LANE_PX;
        let width = links_at + self.links.len() as u64 * LINK_PX + 40;
        let _ = writeln!(
            page,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{}\">",
            self.end_px + 40
        );
        self.draw_times(page);
        self.draw_lanes(page);
        self.draw_cuts(page, links_at);
        self.chosen.arrows.iter().for_each(|arrow| self.draw_arrow(page, arrow));
        self.draw_labels(page);
        if self.failed {
            let y = self.end_px;
            let _ = writeln!(
                page,
                "<line x1=\"0\" y1=\"{y}\" x2=\"{width}\" y2=\"{y}\" stroke=\"#c22\" stroke-width=\"2\"/>\
                 <text x=\"{TIMES_PX}\" y=\"{}\" fill=\"#c22\" class=\"name\">here it was seen that something did not \
                 hold</text>",
                y + 18
            );
        }
        page.push_str("</svg>\n");
    }

    fn draw_times(&self, page: &mut String) {
        let mut free = 0;
        for (at, y) in &self.rows {
            if *y >= free {
                let _ =
                    writeln!(page, "<text x=\"14\" y=\"{}\" fill=\"#777\">{}</text>", y + 4, seconds(*at));
                free = y + LINE_PX;
            }
        }
    }

    /// A lane is a run of stretches, each in the colour of what the node's disk holds meanwhile.
    fn draw_lanes(&self, page: &mut String) {
        let mut colours: BTreeMap<u64, usize> = BTreeMap::new();
        let mut held: BTreeMap<usize, (u64, bool)> = BTreeMap::new();
        let mut since: BTreeMap<usize, u64> = BTreeMap::new();
        let mut parted: Option<u64> = None;
        for (node, name) in &self.lanes {
            let x = self.x(*node);
            let _ = writeln!(page, "<text x=\"{x}\" y=\"20\" class=\"name\">{}</text>", escape(name));
        }
        let draw = |page: &mut String, node: usize, (colour, up): (usize, bool), from: u64, to: u64| {
            let (fill, wide) = if up { (COLOURS[colour % COLOURS.len()], 10) } else { ("#bbb", 2) };
            let _ = writeln!(
                page,
                "<rect x=\"{}\" y=\"{from}\" width=\"{wide}\" height=\"{}\" fill=\"{fill}\"/>",
                self.x(node) - wide / 2,
                to.saturating_sub(from)
            );
        };
        for mark in &self.chosen.marks {
            let (node, digest, up) = match mark.what {
                What::State { node, digest } => (node, Some(digest), None),
                What::Started { node, .. } => (node, None, Some(true)),
                What::Ended { node } => (node, None, Some(false)),
                _ => continue,
            };
            let y = self.y(mark.at_us);
            let before = held.get(&node).copied();
            let (old, was_up) = before.unwrap_or((0, false));
            let now = (digest.unwrap_or(old), up.unwrap_or(was_up));
            if before != Some(now) {
                let next = colours.len();
                colours.entry(now.0).or_insert(next);
                if let (Some(_), Some(from)) = (before, since.insert(node, y)) {
                    draw(page, node, (colours.get(&old).copied().unwrap_or(0), was_up), from, y);
                }
                held.insert(node, now);
            }
            let running: BTreeSet<u64> =
                held.values().filter(|(_, up)| *up).map(|(digest, _)| *digest).collect();
            match (running.len() > 1, parted) {
                (true, None) => parted = Some(y),
                (false, Some(from)) => {
                    draw_parted(page, from, y);
                    parted = None;
                }
                _ => {}
            }
        }
        for (node, (digest, up)) in held {
            let from = since.get(&node).copied().unwrap_or(TOP_PX);
            draw(page, node, (colours.get(&digest).copied().unwrap_or(0), up), from, self.end_px);
        }
        if let Some(from) = parted {
            draw_parted(page, from, self.end_px);
        }
    }

    fn draw_cuts(&self, page: &mut String, links_at: u64) {
        for (column, link) in self.links.iter().enumerate() {
            let x = links_at + column as u64 * LINK_PX;
            let _ = writeln!(page, "<text x=\"{x}\" y=\"20\" class=\"name\">n{}–n{}</text>", link.0, link.1);
            let _ = writeln!(page, "<text x=\"{x}\" y=\"36\" fill=\"#c22\">cut</text>");
            let mut from = None;
            let bar = |page: &mut String, from: u64, to: u64| {
                let _ = writeln!(
                    page,
                    "<rect x=\"{x}\" y=\"{from}\" width=\"14\" height=\"{}\" fill=\"#c22\" opacity=\".6\"/>",
                    to.saturating_sub(from).max(3)
                );
            };
            for mark in &self.chosen.marks {
                match &mark.what {
                    What::Cut { link: cut } if cut == link => from = from.or(Some(self.y(mark.at_us))),
                    What::Healed { link: healed } if healed == link => {
                        if let Some(from) = from.take() {
                            bar(page, from, self.y(mark.at_us));
                        }
                    }
                    _ => {}
                }
            }
            if let Some(from) = from {
                bar(page, from, self.end_px);
            }
        }
    }

    fn draw_arrow(&self, page: &mut String, arrow: &Arrow<'_>) {
        let (x1, x2, y1) = (self.x(arrow.from), self.x(arrow.to), self.y(arrow.sent_us));
        let colour = colour_of(arrow.message);
        let opacity = if is_routine(arrow.message) { ".45" } else { "1" };
        let name = escape(arrow.message);
        let title = format!("{name}, {} bytes, sent at {}", arrow.bytes, seconds(arrow.sent_us));
        let line = |page: &mut String, x2: u64, y2: u64, end: &str, title: &str| {
            let _ = writeln!(
                page,
                "<g stroke=\"{colour}\" fill=\"{colour}\" opacity=\"{opacity}\"><title>{title}</title>\
                 <line x1=\"{x1}\" y1=\"{y1}\" x2=\"{x2}\" y2=\"{y2}\"/>{end}</g>"
            );
        };
        if arrow.arrived_us.is_empty() {
            let x = (x1 * 2 + x2) / 3;
            let cross = format!(
                "<path d=\"M{} {}l8 8m0 -8l-8 8\" fill=\"none\" stroke-width=\"2\"/>",
                x.saturating_sub(4),
                (y1 + 6).saturating_sub(4)
            );
            line(page, x, y1 + 6, &cross, &format!("{title}, did not arrive"));
        }
        for &at in &arrow.arrived_us {
            let y2 = self.y(at);
            let back = if x2 > x1 { "-8" } else { "8" };
            let head = format!("<path d=\"M{x2} {y2}l{back} -4v8z\" stroke=\"none\"/>");
            line(page, x2, y2, &head, &format!("{title}, arrived at {}", seconds(at)));
        }
    }

    fn draw_labels(&self, page: &mut String) {
        let mut lines: BTreeMap<(usize, u64), u64> = BTreeMap::new();
        for mark in &self.chosen.marks {
            let Some(node) = place_of(&mark.what) else { continue };
            let (text, colour) = match &mark.what {
                What::Asked { request, client, writes, .. } => {
                    let who = client.map_or("somebody".to_string(), |client| format!("client {client}"));
                    (format!("[{request}] {who} asks: {writes}"), "#111")
                }
                What::Answered { request, answer, .. } => (format!("[{request}] {answer}"), "#2a6"),
                What::Started { .. } => ("the process starts".into(), "#777"),
                What::Ended { .. } => ("the process is gone".into(), "#c22"),
                What::Happened { what, .. } => (what.clone(), "#a50"),
                _ => continue,
            };
            let line = lines.entry((node, mark.at_us)).or_default();
            let y = self.y(mark.at_us) + 4 + *line * LINE_PX;
            *line += 1;
            let _ = writeln!(
                page,
                "<text x=\"{}\" y=\"{y}\" fill=\"{colour}\"><title>{}</title>{}</text>",
                self.x(node) + 10,
                escape(&text),
                escape(&shortened(&text))
            );
        }
    }
}

fn draw_parted(page: &mut String, from: u64, to: u64) {
    let _ = writeln!(
        page,
        "<rect x=\"2\" y=\"{from}\" width=\"6\" height=\"{}\" fill=\"#e55\"><title>nodes hold different things</title></rect>",
        to.saturating_sub(from).max(2)
    );
}

/// The lane that a label is written beside.
fn place_of(what: &What) -> Option<usize> {
    match what {
        What::Asked { node, .. }
        | What::Answered { node, .. }
        | What::Started { node, .. }
        | What::Ended { node }
        | What::Happened { node, .. } => Some(*node),
        _ => None,
    }
}

fn colour_of(message: &str) -> &'static str {
    match message {
        "deltas" => "#1f6feb",
        "want" => "#8250df",
        "refuse" => "#c22",
        "confirm" => "#bf8700",
        _ => "#888",
    }
}

fn message_legend() -> String {
    let kinds = [
        ("deltas", "changes"),
        ("want", "a request for changes that are missing"),
        ("confirm", "what a node tells another that starts again about what it has of it"),
        ("refuse", "a refusal"),
        ("contexts", "what a node has got, and greetings; routine"),
    ];
    let kind =
        |(name, what): (&str, &str)| format!("<span style=\"color:{}\">⟶</span> {what}", colour_of(name));
    format!("Messages: {}.", kinds.map(kind).join("; "))
}

/// As much of a text as a lane has room for.
fn shortened(text: &str) -> String {
    const CHARS_MAX: usize = 54;
    if text.chars().count() <= CHARS_MAX {
        return text.into();
    }
    text.chars().take(CHARS_MAX - 1).chain(['…']).collect()
}

fn seconds(us: u64) -> String {
    format!("{}.{:06} s", us / 1_000_000, us % 1_000_000)
}

fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_escaped() {
        assert_eq!(escape("<a href=\"x\">'&'"), "&lt;a href=&quot;x&quot;&gt;&#39;&amp;&#39;");
    }

    #[test]
    fn what_is_too_much_is_left_out_and_counted() {
        let sent = |number: u64| {
            let message = if number.is_multiple_of(2) { "deltas" } else { "contexts" };
            Mark { at_us: number, what: What::Sent { number, from: 0, to: 1, message, bytes: 1 } }
        };
        let told = |at_us: u64| Mark { at_us, what: What::Happened { node: 0, what: "it rests".into() } };
        let few: Vec<_> = (0..10).flat_map(|at| [sent(at), told(at)]).collect();
        let chosen = choose(&few);
        assert_eq!((chosen.arrows.len(), chosen.marks.len(), chosen.left_out), (10, 10, 0));
        let many: Vec<_> = (0..10_000).flat_map(|at| [sent(at), told(at)]).collect();
        let chosen = choose(&many);
        assert!(chosen.arrows.len() <= ARROWS_MAX && chosen.marks.len() <= LABELS_MAX);
        assert!(chosen.arrows.iter().all(|arrow| arrow.arrived_us.is_empty()));
        assert!(chosen.left_out >= 20_000 - ARROWS_MAX - LABELS_MAX);
        assert_eq!(chosen.marks.last().map(|mark| mark.at_us), Some(9_999));
    }
}
