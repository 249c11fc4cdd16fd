//! Seeds that must hold: some that failed once, and a few hundred others.

use godwit_sim::faults::{Faults, KINDS};
use godwit_sim::run;

/// Failed once: 58 and 105 by a clear that killed a live reset beside a dead one, 1661 to 1956 by a greeting that was
/// lost and never repeated, the next two by bounds that were drawn or counted wrongly; 67 and 72 by a removal that took what
/// its client had not seen, 10883 to 12176 by names given again after every disk was put back, or after a member that ran
/// twice had confirmed them. The generator may have changed what they draw since; what they showed has tests of its own.
const FAILED_ONCE: [u64; 14] =
    [58, 105, 1661, 1750, 1846, 1956, 1_000_246, 1_000_837, 67, 72, 10_883, 11_435, 11_839, 12_176];

#[test]
fn seeds_that_failed_once_hold() {
    hold(FAILED_ONCE.into_iter());
}

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
                "seed {seed}: {violation}\n  again: cargo run -p godwit-sim -- replay --trace --seed {seed}"
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
