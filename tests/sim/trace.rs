//! Recorded histories, replayed exactly: the real one, and small ones that tell what a file may hold and what not.

use std::fmt::Write as _;
use std::process::Command;

use godwit_sim::recorded::{self, Final, Recorded, Report};

const HISTORY: &str = include_str!("../data/awesome_podcasts.map.jsonl");
const DIRECTORY: &str = include_str!("../data/awesome_podcasts.map.final.json");

fn replay(lines: &[&str], last: &str) -> Result<Report, String> {
    let history = Recorded::parse(&lines.join("\n")).map_err(|error| error.to_string())?;
    let last = Final::parse(last).map_err(|error| error.to_string())?;
    recorded::replay(&history, &last).map_err(|error| error.to_string())
}

/// The report of a history that ends as told.
fn holds(lines: &[&str], last: &str) -> Report {
    let report = replay(lines, last).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(report.differences, Vec::<String>::new());
    report
}

fn refused(lines: &[&str]) -> String {
    replay(lines, "{}").expect_err("a file that is malformed")
}

#[test]
fn the_real_history_ends_in_the_real_directory() {
    let report = holds(&HISTORY.lines().collect::<Vec<_>>(), DIRECTORY);
    assert_eq!((report.commits, report.merges, report.replicas), (672, 258, 146));
    assert_eq!((report.ops["put"], report.ops["del"], report.ops["unset"]), (2003, 109, 8));
    assert_eq!((report.items, report.unresolved, report.stand_ins), (293, 0, 0));
    assert!(report.notes.is_empty(), "{:?}", report.notes);
}

#[test]
fn a_changed_end_and_a_lost_line_are_noticed() {
    let changed = DIRECTORY.replacen("Twice a week", "Twice a year", 1);
    let report =
        replay(&HISTORY.lines().collect::<Vec<_>>(), &changed).expect("a history that can be played");
    assert!(report.differences.len() == 1 && report.differences[0].contains("\"Twice a week\", must be"));
    let most: Vec<&str> = HISTORY.lines().take(600).collect();
    let report = replay(&most, DIRECTORY).expect("a history that can be played");
    assert!(!report.differences.is_empty());
    assert!(report.notes[0].contains("672 txns, the file holds 599"), "{:?}", report.notes);
}

#[test]
fn a_set_is_add_wins_and_octopuses_merge() {
    let lines = [
        r#"{"kind":"git-dag-set","txns":7,"replicas":4}"#,
        r#"{"i":0,"parents":[],"replica":0,"t":1,"ops":[["add","a"],["add","put"],["add","é ☂ 日本"]]}"#,
        r#"{"i":1,"parents":[0],"replica":1,"t":2,"ops":[["rem","a"]]}"#,
        r#"{"i":2,"parents":[0],"replica":2,"t":2,"ops":[["add","a"],["rem","put"]]}"#,
        r#"{"i":3,"parents":[0,0],"replica":3,"t":2,"ops":[]}"#,
        r#"{"i":4,"parents":[1,2,3],"replica":0,"t":9,"ops":[["add","b"],["rem","b"],["add","c"],["add","c"]]}"#,
        r#"{"i":5,"parents":[4],"replica":0,"t":8,"ops":[["rem","absent"]]}"#,
        r#"{"i":6,"parents":[5],"replica":0,"t":8,"ops":[["add","5"],["add",5],["add",""],["add","x\ty"]]}"#,
    ];
    let report = holds(&lines, r#"["c", "a", "\u00e9 ☂ 日本", "5", 5, "", "x\ty"]"#);
    assert_eq!((report.merges, report.replicas, report.items, report.stand_ins), (1, 4, 7, 3));
}

#[test]
fn a_replica_applies_ancestors_and_nothing_else() {
    // Replica 0 goes on after what replica 1 branched from: the removal of `x` must not see the second adding of it.
    let lines = [
        r#"{"i":10,"parents":[],"replica":"main","ops":[["add","x"]]}"#,
        r#"{"i":11,"parents":[10],"replica":"main","ops":[["rem","x"]]}"#,
        r#"{"i":12,"parents":[11],"replica":"main","ops":[["add","x"]]}"#,
        r#"{"i":13,"parents":[10],"replica":"side","ops":[["rem","x"],["add","y"]]}"#,
        r#"{"i":14,"parents":[12,13],"replica":"main","ops":[]}"#,
    ];
    holds(&lines, r#"["x","y"]"#);
    let other = lines
        .map(|line| line.replace(r#""parents":[10],"replica":"side""#, r#""parents":[12],"replica":"side""#));
    holds(&other.iter().map(String::as_str).collect::<Vec<_>>(), r#"["y"]"#);
}

#[test]
fn concurrent_puts_are_resolved_by_the_merge_or_by_the_later_clock() {
    let branches = [
        r#"{"i":0,"parents":[],"replica":0,"t":100,"ops":[["put","k","f","base"],["put","gone","f",1]]}"#,
        r#"{"i":1,"parents":[0],"replica":1,"t":300,"ops":[["put","k","f","one"],["put","k","n",12345678901234567890123]]}"#,
        r#"{"i":2,"parents":[0],"replica":2,"t":200,"ops":[["put","k","f","two"],["unset","k","none"],["del","gone"]]}"#,
    ];
    let merged =
        r#"{"i":3,"parents":[1,2],"replica":0,"t":50,"ops":[["put","k","f",{"b":[null,true],"a":"both"}]]}"#;
    let report = holds(
        &[&branches[..], &[merged]].concat(),
        r#"{"k":{"f":{"b":[null, true],"a":"both"},"n":12345678901234567890123},"empty":{}}"#,
    );
    assert_eq!(report.unresolved, 0);
    let report = holds(&branches, r#"{"k":{"f":"one","n":12345678901234567890123}}"#);
    assert_eq!(report.unresolved, 1);
    let report = replay(&branches, r#"{"k":{"f":"two","n":12345678901234567890124},"more":{"f":1}}"#);
    assert_eq!(
        report.expect("a history that can be played").differences,
        [
            r#"record "k" field "f": "one", must be "two""#,
            r#"record "k" field "n": 12345678901234567890123, must be 12345678901234567890124"#,
            r#"record "more" is missing"#,
        ]
    );
}

#[test]
fn keys_that_the_api_refuses_are_played_under_stand_ins() {
    let line = r#"{"i":0,"parents":[],"replica":0,"ops":[["put","","..","v"],["put",".","tab\there","w"]]}"#;
    let report = holds(&[line], r#"{"": {"..": "v"}, ".": {"tab\there": "w"}}"#);
    assert_eq!((report.items, report.fields, report.stand_ins), (2, 2, 4));
}

#[test]
fn a_large_commit_and_many_replicas_will_do() {
    let adds: Vec<String> = (0..3_000).map(|n| format!(r#"["add","element {n}"]"#)).collect();
    let mut lines = vec![format!(r#"{{"i":0,"parents":[],"replica":0,"ops":[{}]}}"#, adds.join(","))];
    for n in 1..=60 {
        lines.push(format!(
            r#"{{"i":{n},"parents":[0],"replica":{n},"ops":[["rem","element {n}"],["add","b{n}"]]}}"#
        ));
    }
    let parents: Vec<String> = (1..=60).map(|n| n.to_string()).collect();
    lines.push(format!(r#"{{"i":61,"parents":[{}],"replica":0,"ops":[["rem","b7"]]}}"#, parents.join(",")));
    let elements = (0..3_000).filter(|n| !(1..=60).contains(n)).map(|n| format!("\"element {n}\""));
    let more = (1..=60).filter(|n| *n != 7).map(|n| format!("\"b{n}\""));
    let last = format!("[{}]", elements.chain(more).collect::<Vec<_>>().join(","));
    let report = holds(&lines.iter().map(String::as_str).collect::<Vec<_>>(), &last);
    assert_eq!((report.items, report.replicas), (2_999, 61));
}

#[test]
fn what_is_malformed_is_told_with_its_line() {
    let first = r#"{"i":0,"parents":[],"replica":0,"ops":[]}"#;
    let cases = [
        (vec![], "line 1: the file holds no commits"),
        (vec!["nonsense"], "line 1: not a JSON object"),
        (vec![first, "[1]"], "line 2: not a commit"),
        (
            vec![first, "", r#"{"i":1,"parents":[0],"replica":0}"#],
            "line 3: not a commit: missing field `ops`",
        ),
        (vec![first, r#"{"i":1,"parents":[4],"replica":0,"ops":[]}"#], "line 2: parent 4 of commit 1"),
        (vec![first, r#"{"i":0,"parents":[0],"replica":0,"ops":[]}"#], "line 2: there is a commit 0 already"),
        (vec![first, r#"{"i":1,"parents":[1],"replica":0,"ops":[]}"#], "line 2: parent 1 of commit 1"),
        (
            vec![first, r#"{"i":1,"parents":[],"replica":0,"ops":[]}"#],
            "line 2: commit 1 of replica 0 does not descend",
        ),
        (vec![first, r#"{"i":1,"parents":[0],"replica":null,"ops":[]}"#], "line 2: `replica` must be"),
        (
            vec![first, r#"{"i":1,"parents":[0],"replica":0,"ops":[["put","k","f"]]}"#],
            "line 2: operation 0: ",
        ),
        (
            vec![first, r#"{"i":1,"parents":[0],"replica":0,"ops":[["del",7]]}"#],
            "line 2: operation 0: a key is",
        ),
        (
            vec![first, r#"{"i":1,"parents":[0],"replica":0,"ops":[["del","k"],["add","k"]]}"#],
            "line 2: operation 1: \"add\" edits a set",
        ),
    ];
    for (lines, expected) in cases {
        let told = refused(&lines);
        assert!(told.starts_with(expected), "{lines:?}: {told}");
    }
    let told = replay(&[first], "{\n7}").expect_err("a final file that is malformed");
    assert!(told.starts_with("line 2: neither {key: {field: value}} nor an array"), "{told}");
    let set = r#"{"i":0,"parents":[],"replica":0,"ops":[["add","k"]]}"#;
    assert!(refused(&[set]).contains("the history is of a set"));
}

#[test]
fn the_exit_status_tells_whether_it_held() {
    let data = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/");
    let run = |file: &str, last: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_godwit-sim"));
        command.args(["trace", &format!("{data}{file}"), "--final", &format!("{data}{last}")]);
        let output = command.output().expect("the binary starts");
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        let _ = write!(text, "{}", String::from_utf8_lossy(&output.stderr));
        (output.status.code(), text)
    };
    let (code, text) = run("awesome_podcasts.map.jsonl", "awesome_podcasts.map.final.json");
    assert!(code == Some(0) && text.contains("672 commits (258 merges) by 146 replicas"), "{text}");
    let (code, text) = run("crdt.jsonl", "awesome_podcasts.map.final.json");
    assert!(code == Some(2) && text.contains("crdt.jsonl, line 2: not a commit"), "{text}");
    let (code, text) = run("awesome_podcasts.map.jsonl", "missing.json");
    assert!(code == Some(2) && text.contains("reading"), "{text}");
}
