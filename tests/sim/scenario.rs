//! Scenarios: those that ship, what each part of a file does, and what a wrong file is told.

use std::path::Path;
use std::process::Command;

use godwit_sim::scenario::{self, Report};
use serde_json::Value;

const SHIPPED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/scenarios");

fn shipped(name: &str) -> Report {
    let open = |file: &str| {
        std::fs::read_to_string(Path::new(SHIPPED).join(file)).map_err(|error| format!("{file}: {error}"))
    };
    let text = open(name).expect("a scenario that ships");
    scenario::run(&text, &open).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn no_file(name: &str) -> Result<String, String> {
    Err(format!("there is no file {name}"))
}

/// Two regions, and what is put on top and at the end of the file.
fn two(top: &str, end: &str) -> String {
    format!(
        "title = \"two\"\nduration = \"20 s\"\n{top}\n[[region]]\nname = \"eu\"\n[[region]]\nname = \"us\"\n\
         [[link]]\nbetween = [\"eu\", \"us\"]\nlatency = \"40 ms\"\n{end}\n"
    )
}

const GETS: &str =
    "[workload]\nrate = \"10/s\"\n[[workload.request]]\nmethod = \"GET\"\npath = \"/v1/a/k\"\n";

fn traced(top: &str, lines: &[&str]) -> Report {
    let lines = lines.join("\n");
    let open = |_: &str| Ok(lines.clone());
    scenario::run(&two(top, "[workload]\ntrace = \"t.jsonl\""), &open)
        .unwrap_or_else(|error| panic!("{error}"))
}

fn told(text: &str) -> String {
    scenario::run(text, &no_file).expect_err("a file that is wrong").to_string()
}

fn count(report: &Report, region: &str, operation: &str) -> (u64, u64, u64) {
    let mut found = report.clients.iter().filter(|c| c.region == region && c.operation == operation);
    found.next().map_or((0, 0, 0), |client| (client.answered, client.refused, client.unanswered))
}

#[test]
fn a_cut_link_makes_reads_stale_and_heals() {
    let report = shipped("transatlantic.toml");
    assert!(report.end.agreed && report.end.lacking.is_empty());
    assert!(report.clients.iter().all(|client| client.refused + client.unanswered == 0), "always writable");
    assert!(report.clients.iter().all(|client| client.latency.max_us < 20_000), "at the same speed");
    assert!(report.reads.missed * 4 > report.reads.reads && report.reads.behind.max_us > 25_000_000);
    assert!(report.conflicts.register_values_lost > 20 && report.reads.with_siblings > 0);
    assert!(report.staleness.iter().all(|pair| pair.never == 0 && pair.after.max_us > 29_000_000));
    let [heal] = &report.heals[..] else { panic!("{:?}", report.heals) };
    assert!(heal.at_us == 40_000_000 && heal.lacking > 500);
    assert!(heal.converged_after_us.is_some_and(|us| us < 15_000_000), "{heal:?}");
    assert!(report.links.iter().all(|link| link.bytes > 50_000));
}

#[test]
fn a_dark_region_serves_nobody_and_catches_up() {
    let report = shipped("dark_region.toml");
    assert!(report.end.agreed);
    let (answered, _, unanswered) = count(&report, "ap", "read");
    assert!(unanswered > answered, "60 of 80 minutes");
    assert!(["eu", "us"].iter().all(|region| count(&report, region, "read").2 == 0));
    let [back] = &report.heals[..] else { panic!("{:?}", report.heals) };
    assert!(back.lacking > 50 && back.converged_after_us.is_some_and(|us| us < 30_000_000), "{back:?}");
}

#[test]
fn likes_are_counted_and_fans_are_kept() {
    let report = shipped("celebrity.toml");
    assert!(report.end.agreed);
    let [likes] = &report.counters[..] else { panic!("{:?}", report.counters) };
    assert!(likes.increments > 500 && likes.at_the_end == Some(likes.sum) && !likes.uncertain, "{likes:?}");
    assert!(report.conflicts.concurrent_increments > 100 && report.conflicts.adds_kept > 0);
    assert!(
        report
            .staleness
            .iter()
            .any(|pair| pair.from == "us" && pair.to == "ap" && pair.after.p50_us < 100_000)
    );
    assert!(report.clients.iter().all(|client| client.refused + client.unanswered == 0));
}

#[test]
fn one_file_is_one_report_in_every_form() {
    let directory = std::env::temp_dir().join(format!("godwit-scenario-{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("a directory");
    let once = |number: u32| {
        let [json, html] = ["json", "html"].map(|form| directory.join(format!("{number}.{form}")));
        let mut command = Command::new(env!("CARGO_BIN_EXE_godwit-sim"));
        command.arg("scenario").arg(Path::new(SHIPPED).join("celebrity.toml"));
        let output =
            command.arg("--json").arg(&json).arg("--html").arg(&html).output().expect("the binary starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let read = |path| std::fs::read_to_string(path).expect("a report");
        (String::from_utf8(output.stdout).expect("text"), read(json), read(html))
    };
    let (first, second) = (once(1), once(2));
    std::fs::remove_dir_all(&directory).expect("the directory");
    assert_eq!(first, second);
    let (text, json, html) = first;
    let json: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!((&json["version"], &json["regions"][1]["name"]), (&Value::from(1), &Value::from("us")));
    let reference = include_str!("../../docs/SCENARIOS.md");
    for member in json.as_object().expect("an object").keys() {
        assert!(reference.contains(&format!("`{member}")), "docs/SCENARIOS.md does not tell of {member}");
    }
    for part in ["What clients saw", "Stale reads", "Conflicts", "What links carried", "Time to converge"] {
        assert!(text.contains(part), "no {part:?} in:\n{text}");
    }
    assert!(html.contains("<svg") && html.ends_with("</html>\n"));
    for outside in ["http://", "https://", "<script", "src=", "@import", "url("] {
        assert!(!html.contains(outside), "{outside}");
    }
}

#[test]
fn every_ycsb_workload_runs() {
    let data = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/ycsb");
    let open =
        |file: &str| std::fs::read_to_string(Path::new(data).join(file)).map_err(|error| error.to_string());
    let kinds = [
        ("a", vec!["read", "write"]),
        ("b", vec!["read", "write"]),
        ("c", vec!["read"]),
        ("d", vec!["read", "write"]),
        ("e", vec!["list", "write"]),
        ("f", vec!["read", "read-modify-write"]),
    ];
    for (letter, kinds) in kinds {
        // Without a rate, the file's operationcount is spread over the duration.
        let end = format!("[workload]\nycsb = \"workload{letter}\"\nrecords = 50");
        let report = scenario::run(&two("", &end), &open).unwrap_or_else(|error| panic!("{letter}: {error}"));
        let mut found: Vec<&str> = report.clients.iter().map(|client| client.operation.as_str()).collect();
        found.sort_unstable();
        found.dedup();
        assert_eq!(found, kinds, "{letter}");
        let answered: u64 = report.clients.iter().map(|client| client.answered).sum();
        assert!((900..=1_100).contains(&answered) && report.end.agreed, "{letter}: {answered}");
    }
}

#[test]
fn a_trace_is_replayed_and_its_conflicts_are_told() {
    let report = traced(
        "faults = \"2 s: cut eu; 8 s: heal\"",
        &[
            r#"{"time":1000,"region":"eu","method":"PATCH","path":"/v1/a/k","body":{"ops":[{"op":"set","field":"t","value":"<x>"},{"op":"add","field":"s","members":["m"]}]}}"#,
            r#"{"time":"3 s","region":"eu","method":"PUT","path":"/v1/a/k/t","body":"of eu"}"#,
            r#"{"time":"4 s","region":"us","method":"PUT","path":"/v1/a/k/t","body":"of <us>"}"#,
            r#"{"time":"4 s","region":"us","method":"PATCH","path":"/v1/a/k","body":{"ops":[{"op":"remove","field":"s","members":["m"]}]}}"#,
            r#"{"time":"5 s","region":"eu","method":"PATCH","path":"/v1/a/k","body":{"ops":[{"op":"add","field":"s","members":["m"]}]}}"#,
            r#"{"time":"5 s","region":"us","method":"POST","path":"/v1/a","body":{"writes":[{"key":"x","ops":[{"op":"incr","field":"n","by":1}]},{"key":"y z","ops":[{"op":"enable","field":"f"}]}]}}"#,
            r#"{"time":"6 s","region":"us","method":"GET","path":"/v1/a/k"}"#,
            r#"{"time":"7 s","region":"eu","method":"GET","path":"/v1/a?prefix=y&limit=5"}"#,
            r#"{"time":"7 s","region":"us","method":"PATCH","path":"/v1/a/y%20z","body":{"ops":[{"op":"incr","field":"f","by":1}]}}"#,
            r#"{"time":"10 s","region":"eu","method":"DELETE","path":"/v1/a/x"}"#,
            r#"{"time":"10 s","region":"us","method":"PATCH","path":"/v1/a/x","body":{"ops":[{"op":"incr","field":"n","by":4}]}}"#,
            r#"{"time":"19 s","region":"eu","method":"GET","path":"/v1/a/k/t"}"#,
        ],
    );
    assert!(report.end.agreed);
    assert_eq!((count(&report, "us", "write"), count(&report, "eu", "list")), ((4, 1, 0), (1, 0, 0)));
    let counters: Vec<_> = report.counters.iter().map(|counter| (counter.sum, counter.at_the_end)).collect();
    assert_eq!(
        (counters, report.conflicts.writes_kept),
        (vec![(5, Some(4))], 1),
        "a deletion takes what it saw"
    );
    let refusal = report.clients.iter().find_map(|client| client.first_refusal.clone());
    assert!(refusal.is_some_and(|why| why.contains("is a flag here")));
    assert_eq!((report.reads.reads, report.reads.missed, report.reads.with_siblings), (3, 1, 1));
    assert_eq!((report.conflicts.register_values_lost, report.conflicts.adds_kept), (1, 1));
    let lost = report.conflicts.listed.iter().find(|conflict| conflict.field.as_deref() == Some("t"));
    let lost = lost.expect("the title's conflict");
    assert_eq!((lost.won.what.as_str(), lost.won.region.as_deref()), ("\"of <us>\"", Some("us")));
    assert_eq!((lost.lost.what.as_str(), lost.lost.at_us), ("\"of eu\"", Some(3_001_000)));
    let html = report.html();
    assert!(html.contains("of &lt;us&gt;") && !html.contains("<us>"));
}

#[test]
fn links_and_faults_do_what_is_told() {
    // A third region is reached over the second alone, and a node crashes and comes back.
    let chain = "title = \"chain\"\nduration = \"30 s\"\nfaults = [\"5 s: crash us/2; 6 s: restart us/2\", \
                 \"10 s: cut ap\", \"12 s: clock of eu/1 2 s behind\"]\nsettle = \"20 s\"\n\
                 [[region]]\nname = \"eu\"\n[[region]]\nname = \"us\"\nnodes = 2\n[[region]]\nname = \"ap\"\n\
                 [[link]]\nbetween = [\"eu\", \"us\"]\nlatency = \"40 ms\"\n\
                 [[link]]\nbetween = [\"us\", \"ap\"]\nlatency = \"70 ms\"\nbandwidth = \"64 kbit/s\"\nloss = \"2 %\"\n\
                 [workload]\nrate = \"5/s\"\n[[workload.request]]\nmethod = \"PATCH\"\npath = \"/v1/a/{1..9}\"\n\
                 body = '{\"ops\":[{\"op\":\"incr\",\"field\":\"n\",\"by\":1}]}'\n";
    let report = scenario::run(chain, &no_file).unwrap_or_else(|error| panic!("{error}"));
    assert!(report.counters.len() == 9 && report.counters.iter().all(|counter| counter.at_the_end.is_none()));
    assert!(!report.end.agreed && report.end.after_us.is_none(), "nothing heals the cut");
    assert!(report.end.lacking.iter().any(|(node, commits)| node == "ap/1" && *commits > 50));
    assert!(!report.links.iter().any(|link| (link.from.as_str(), link.to.as_str()) == ("eu", "ap")));
    let far =
        report.staleness.iter().find(|pair| pair.from == "eu" && pair.to == "ap").expect("it is relayed");
    assert!(far.commits > 10 && far.after.p50_us >= 110_000 && far.never > 50, "{far:?}");
    assert!(report.text().contains("they do NOT agree"));
}

#[test]
fn a_wrong_file_is_told_what_to_do() {
    let wrong = [
        ("title = 1".to_string(), "invalid type"),
        (two("sed = 1", GETS), "unknown field `sed`"),
        (two("duration = \"1 s\"", GETS), "duplicate key"),
        (two("faults = \"cut eu\"", GETS), "has no time: write it like"),
        (two("faults = \"1 s: cut eu from mars\"", GETS), "there is no region \"mars\"; there are eu, us"),
        (two("faults = \"1 s: cut eu from eu\"", GETS), "name two different regions"),
        (two("faults = \"1 s: explode\"", GETS), "it is none of: cut A"),
        (two("faults = \"1 s: crash eu/2\"", GETS), "eu has nodes eu/1 to eu/1"),
        (two("faults = \"20 s: heal\"", GETS), "comes after the end"),
        (two("partitions = 65", GETS), "from 1 to 64"),
        (two("", ""), "missing field `workload`"),
        (two("", "[workload]"), "exactly one of"),
        (two("", "[workload]\nycsb = \"w\""), "there is no file w"),
        (two("", &GETS.replace("rate = \"10/s\"", "")), "give the workload a `rate`"),
        (two("", &GETS.replace("10/s", "10 Hz")), "is not a rate"),
        (two("", &GETS.replace("10/s", "9000/s")), "at most 100000 are allowed: lower"),
        (two("", &GETS.replace("GET", "PATCH")), "request 1: PATCH /v1/a/k needs a body"),
        (two("", &GETS.replace("/v1/a/k", "/v1/A/k")), "request 1: a namespace is"),
        (
            two("", &format!("[[region]]\nname = \"ap\"\n{GETS}")),
            "no links lead from region \"eu\" to region \"ap\"",
        ),
        (
            two("", &format!("[[link]]\nbetween = [\"us\", \"eu\"]\nlatency = \"1 ms\"\n{GETS}")),
            "it is there twice",
        ),
        (
            two("", &format!("[[link]]\nbetween = [\"us\", \"eu\"]\nlatency = \"1 day\"\n{GETS}")),
            "is not a duration",
        ),
    ];
    for (text, expected) in wrong {
        let told = told(&text);
        assert!(told.contains(expected), "must tell {expected:?}: {told}");
    }
    let open = |_: &str| Ok("\n{\"time\":1,\"region\":\"eu\",\"method\":\"GET\"}".to_string());
    let told = scenario::run(&two("", "[workload]\ntrace = \"t.jsonl\""), &open).expect_err("a wrong trace");
    assert!(told.to_string().starts_with("t.jsonl, line 2: "), "{told}");
}
