//! Scripts as files: what was written is read back as the same run, and what is no script is refused in words. Shrinking
//! finds what a failure needs. The page of a timeline stands alone.

use godwit_sim::script::{Act, Script};
use godwit_sim::trace::Watch;
use godwit_sim::{draw, recording, run, shrink, timeline};

fn digest(script: &Script) -> String {
    run::play(script, Watch::default()).digest
}

#[test]
fn a_script_that_was_written_is_read_back_as_the_same_run() {
    for seed in 0..60 {
        let drawn = draw::draw(seed);
        let text = recording::write(&drawn);
        let read = recording::read(&text).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert_eq!(read.steps, drawn.steps, "seed {seed}");
        assert_eq!(recording::write(&read), text, "seed {seed}");
        if seed < 20 {
            assert_eq!(digest(&read), digest(&drawn), "seed {seed}");
        }
    }
}

#[test]
fn keeping_marks_changes_nothing() {
    for seed in 3..8 {
        let script = draw::draw(seed);
        let kept = run::play(&script, Watch { keep: true, ..Watch::default() });
        assert_eq!(kept.digest, digest(&script), "seed {seed}");
        assert!(!kept.marks.is_empty());
    }
}

#[test]
fn what_is_no_script_is_refused_with_its_line() {
    let good = recording::write(&draw::draw(1));
    let (head, steps) = good.split_once('\n').expect("more than a line");
    let line = |text: &str| recording::read(text).expect_err("no script").to_string();
    let cases = [
        (String::new(), "line 1: the file is empty"),
        ("nonsense\n".into(), "line 1: no script of godwit-sim"),
        (
            head.replace("\"godwit_sim_script\":1", "\"godwit_sim_script\":99"),
            "line 1: the script is of version 99",
        ),
        (
            head.replace("\"nodes\":", "\"knots\":1,\"nodes\":"),
            "line 1: the configuration: unknown field `knots`",
        ),
        (
            head.replacen("\"fsync_us\":[", "\"fsync_us\":[7,", 1),
            "line 1: fsync_us must have an entry for each",
        ),
        (
            head.replace("\"max_clock_drift_ms\":", "\"max_clock_drift_ms\":9999999"),
            "line 1: max_clock_drift_ms must be at most",
        ),
        (format!("{head}\n{{\"number\":0}}\n"), "line 2: missing field"),
        (
            format!("{head}\n\n{{\"number\":0,\"at_us\":0,\"act\":{{\"check\":{{\"node\":77}}}}}}\n"),
            "line 3: there is no node 77",
        ),
        (
            format!(
                "{head}\n{{\"number\":0,\"at_us\":0,\"act\":{{\"commit\":{{\"node\":0,\"writes\":[]}}}}}}\n"
            ),
            "line 2: a commit has at least one write",
        ),
        (
            format!(
                "{head}\n{{\"number\":0,\"at_us\":0,\"act\":{{\"commit\":{{\"node\":0,\"writes\":[{{\"key\":\"zz\",\"ops\":[\"delete\"]}}]}}}}}}\n"
            ),
            "line 2: the key zz is none of those",
        ),
        (
            format!("{head}\n{{\"number\":0,\"at_us\":5,\"act\":{{\"check\":{{\"node\":0}}}}}}\n{steps}"),
            "line 3: a step at 0",
        ),
    ];
    for (text, expected) in cases {
        let found = line(&text);
        assert!(found.starts_with(expected), "{found:?} must begin with {expected:?}");
    }
}

/// No broken engine is needed: a candidate "fails" if it still has what was chosen at random.
#[test]
fn shrinking_finds_what_a_failure_needs() {
    let mut together = 0;
    for seed in 0..30 {
        let script = draw::draw(seed);
        let commits = script.steps.iter().filter(|step| matches!(step.act, Act::Commit { .. }));
        let commits: Vec<u64> = commits.map(|step| step.number).collect();
        let (Some(&first), Some(&last)) = (commits.get(commits.len() / 3), commits.get(commits.len() / 2))
        else {
            continue;
        };
        let fails = |script: &Script| {
            let at =
                |number: u64| script.steps.iter().find(|step| step.number == number).map(|step| step.at_us);
            at(first).and(at(last))
        };
        let shrunk = shrink::shrink(&script, shrink::RUNS_MAX, fails);
        assert!(!shrunk.ran_out, "seed {seed}: {} runs", shrunk.runs);
        let mut left: Vec<u64> = shrunk.script.steps.iter().map(|step| step.number).collect();
        left.dedup();
        let mut needed = vec![first, last];
        needed.dedup();
        assert_eq!(left, needed, "seed {seed}");
        // What is left is a script: it can be written, read and played, and says as little as it can.
        let read = recording::read(&recording::write(&shrunk.script)).expect("a script");
        assert_eq!(read.config.nodes, 2);
        assert_eq!((read.config.clients, read.config.copied, read.config.network.lost_of_1000), (0, None, 0));
        let simple = |act: &Act| matches!(act, Act::Commit { writes, .. } if writes.len() == 1 && writes[0].ops.len() == 1);
        assert!(read.steps.iter().all(|step| simple(&step.act)), "{:?}", read.steps);
        let report = run::play(&read, Watch::default());
        assert_eq!(report.violation, None, "seed {seed}");
        together += 1;
    }
    assert!(together > 10, "only {together} seeds had something to shrink");
}

#[test]
fn shrinking_stops_where_it_was_told_to_and_keeps_what_does_not_fail() {
    let script = draw::draw(2);
    let never = shrink::shrink(&script, 50, |_| None);
    assert_eq!((never.runs, never.script.steps.len()), (1, script.steps.len()));
    let mut tried = 0;
    let shrunk = shrink::shrink(&script, 7, |candidate| {
        tried += 1;
        (candidate.steps.len() + 3 > script.steps.len()).then_some(u64::MAX)
    });
    assert!(shrunk.ran_out && shrunk.runs == 7 && tried == 7);
}

#[test]
fn the_page_of_a_timeline_stands_alone() {
    let mut script = draw::draw(11);
    script.note = "<script>alert(1)</script>".into();
    let page = timeline::html(&script, &run::play(&script, Watch { keep: true, ..Watch::default() }));
    assert!(page.starts_with("<!DOCTYPE html>") && page.ends_with("</body></html>\n"));
    for banned in ["<script", "<img", "<link", "href=", "src=", "@import", "url("] {
        assert!(!page.contains(banned), "the page has {banned}");
    }
    let http = page.matches("http").count();
    assert_eq!(http, page.matches("http-equiv").count() + page.matches("http://www.w3.org/2000/svg").count());
    for (open, close) in [("<text", "</text>"), ("<g ", "</g>"), ("<svg", "</svg>")] {
        assert_eq!(page.matches(open).count(), page.matches(close).count(), "{open}");
    }
    assert!(page.contains("n0 in region r0") && page.contains("asks:"));
}
