//! A few hundred seeds that must hold. What failed once is kept as events, not as seeds: see `regressions.rs`.

use godwit_sim::run;

#[test]
fn fresh_seeds_hold() {
    hold(1_000_000..1_000_250);
}

fn hold(seeds: impl Iterator<Item = u64>) {
    let (mut commits, mut reads) = (0, 0);
    for seed in seeds {
        let report = run::run(seed, false);
        if let Some(violation) = report.violation {
            panic!(
                "seed {seed}: {violation}\n  again: cargo run -p godwit-sim -- replay --shrink --seed {seed}"
            );
        }
        commits += report.commits;
        reads += report.reads;
    }
    assert!(commits > 100 && reads > 100, "{commits} commits and {reads} reads prove nothing");
}
