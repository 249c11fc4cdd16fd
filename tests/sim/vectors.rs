//! Histories with answers agreed by independent implementations, through operations, rows and messages.

use godwit_sim::vectors::{self, TYPES};

const VECTORS: &str = include_str!("../data/crdt.jsonl");

#[test]
fn every_vector_of_our_types_passes() {
    let report = vectors::play_file(VECTORS);
    assert!(report.failures.is_empty(), "{:#?}", report.failures);
    assert_eq!(report.types.len(), TYPES.len());
    for (ty, (passed, of)) in report.types {
        assert_eq!((passed, of), (60, 60), "{ty}");
    }
    assert_eq!(report.left_out.values().sum::<usize>(), 180);
}

#[test]
fn a_wrong_answer_is_noticed() {
    let line = VECTORS.lines().find(|line| line.contains("counter_resettable-0004")).expect("a known line");
    assert!(vectors::play_file(line).failures.is_empty());
    let wrong = line.replace("\"final\":-8", "\"final\":-7");
    assert_ne!(wrong, line);
    let failures = vectors::play_file(&wrong).failures;
    assert!(failures.len() == 1 && failures[0].contains("-8, must be -7"), "{failures:?}");
}

#[test]
fn any_number_of_datacenters_and_steps_will_do() {
    let lines = [
        r#"{"id":"one","type":"counter_pn","steps":[],"before_final_sync":{"a":0},"final":0}"#,
        r#"{"id":"four","type":"set_aw","steps":[["exec","d",["add","x y"]],["sync","d","b"]],
            "before_final_sync":{"a":[],"b":["x y"],"c":[],"d":["x y"]},"final":["x y"]}"#,
        r#"{"id":"silent","type":"counter_resettable","steps":[["exec","b",["increment",-3]],["sync","b","c"],
            ["exec","c",["reset"]],["exec","b",["decrement",-2]]],"before_final_sync":{"a":0},"final":2}"#,
    ];
    let report = vectors::play_file(&lines.map(|line| line.replace('\n', "")).join("\n"));
    assert_eq!(report.failures, Vec::<String>::new());
    assert_eq!(report.types.values().map(|(passed, _)| passed).sum::<usize>(), 3);
}

#[test]
fn lines_that_are_not_histories_are_named() {
    let report = vectors::play_file("{}\n\nnonsense\n");
    assert_eq!(report.failures.len(), 2);
    assert!(report.failures[0].starts_with("line 1") && report.failures[1].starts_with("line 3"));
}
