//! One seed, one trace: the same in two processes, and from a recorded file, and another one for another seed.

use std::collections::BTreeSet;
use std::process::Command;

fn replay_with(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_godwit-sim"))
        .args(["replay", "--trace"])
        .args(arguments)
        .output()
        .expect("the simulator starts");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stdout).expect("a trace is text")
}

fn replay(seed: u64) -> String {
    replay_with(&["--seed", &seed.to_string()])
}

#[test]
fn a_seed_has_one_trace() {
    let mut traces = BTreeSet::new();
    for seed in 1..=12 {
        let trace = replay(seed);
        assert!(trace.lines().count() > 100, "seed {seed} does nothing:\n{trace}");
        assert!(trace == replay(seed), "seed {seed} has two traces");
        traces.insert(trace);
    }
    assert_eq!(traces.len(), 12, "two seeds have one trace");
}

#[test]
fn a_recorded_run_has_the_trace_of_its_seed() {
    for seed in 20..24 {
        // Named as the seed is, so that the output is the same to the letter.
        let file = format!("{}/seed-{seed}.jsonl", env!("CARGO_TARGET_TMPDIR"));
        let recorded = replay_with(&["--seed", &seed.to_string(), "--record", &file]);
        assert!(recorded == replay_with(&["--file", &file]), "seed {seed} has another trace from its file");
    }
}
