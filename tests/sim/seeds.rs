//! A few hundred seeds that must hold. What failed once is kept as events, not as seeds: see `regressions.rs`.

use godwit_sim::faults::{Faults, KINDS};
use godwit_sim::run;

#[test]
fn fresh_seeds_hold() {
    let met = hold(1_000_000..1_000_300);
    for kind in KINDS {
        assert!(met.contains_key(kind), "no seed met: {kind}");
    }
    assert_eq!(met.len(), KINDS.len(), "a kind is not listed: {met:?}");
}

fn hold(seeds: impl Iterator<Item = u64>) -> Faults {
    let (mut commits, mut reads, mut met) = (0, 0, Faults::new());
    for seed in seeds {
        let report = run::run(seed, false);
        if let Some(violation) = report.violation {
            panic!(
                "seed {seed}: {violation}\n  again: cargo run -p godwit-sim -- replay --shrink --seed {seed}"
            );
        }
        commits += report.commits;
        reads += report.reads;
        for (kind, times) in report.faults {
            *met.entry(kind).or_default() += times;
        }
    }
    assert!(commits > 100 && reads > 100, "{commits} commits and {reads} reads prove nothing");
    met
}
