//! One seed, one trace: the same in two processes, and another one for another seed.

use std::collections::BTreeSet;
use std::process::Command;

fn replay(seed: u64) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_godwit-sim"))
        .args(["replay", "--trace", "--seed", &seed.to_string()])
        .output()
        .expect("the simulator starts");
    assert!(output.status.success(), "seed {seed}: {}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stdout).expect("a trace is text")
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
