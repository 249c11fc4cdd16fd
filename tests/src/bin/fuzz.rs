//! `fuzz TARGET SEED RUNS [DIR]`: mutates the corpus of a target, so many times; a mutation that makes it panic is written
//! to `DIR` (by default where it was started), with the panic's message on standard error.
//!
//! Without guidance by coverage, for machines without a nightly compiler. The seed decides everything: a fault is found
//! again by the same seed and corpus.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use godwit_core::rng::Rng;
use godwit_tests::fuzz::{TARGETS, Target, corpus, mutator};

/// Faults after which it stops: the same one is found again and again.
const FAULTS_MAX: usize = 20;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let parsed = match arguments.as_slice() {
        [target, seed, runs, rest @ ..] if rest.len() <= 1 => {
            let target = TARGETS.iter().find(|known| known.name == target);
            target.zip(seed.parse().ok()).zip(runs.parse().ok()).map(|((target, seed), runs)| {
                (target, seed, runs, rest.first().map_or_else(PathBuf::new, PathBuf::from))
            })
        }
        _ => None,
    };
    let Some((target, seed, runs, dir)) = parsed else {
        let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
        eprintln!("usage: fuzz TARGET SEED RUNS [DIR], with one of these targets: {}", names.join(", "));
        return ExitCode::from(2);
    };
    match mutate(target, seed, runs, &dir) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(faults) => {
            eprintln!("{faults} faults");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// The number of faults found.
fn mutate(target: &Target, seed: u64, runs: u64, dir: &Path) -> std::io::Result<usize> {
    let inputs: Vec<Vec<u8>> = corpus::of(target)?.into_iter().map(|(_, bytes)| bytes).collect();
    let (mut rng, mut faults) = (Rng::new(seed), 0);
    for run in 0..runs {
        let input = mutator::mutated(&mut rng, &inputs);
        if catch_unwind(AssertUnwindSafe(|| (target.run)(&input))).is_err() {
            let path = dir.join(format!("{}-{seed}-{run}", target.name));
            std::fs::write(&path, &input)?;
            eprintln!("written to {}", path.display());
            faults += 1;
            if faults == FAULTS_MAX {
                break;
            }
        }
    }
    Ok(faults)
}
