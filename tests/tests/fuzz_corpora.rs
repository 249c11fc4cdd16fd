//! Every fuzz target holds for its corpus, and for a fixed number of mutations of it.

use godwit_core::rng::Rng;
use godwit_tests::fuzz::{TARGETS, corpus, mutator};

/// The most inputs of a target, and the most bytes of one.
const CORPUS_MAX: usize = 300;

fn holds(name: &str, mutations: usize) {
    let target = TARGETS.iter().find(|target| target.name == name).unwrap();
    let inputs = corpus::of(target).unwrap();
    assert!((1..=CORPUS_MAX).contains(&inputs.len()), "{} inputs", inputs.len());
    let mut bytes = Vec::new();
    for (file, input) in inputs {
        assert!(input.len() <= mutator::INPUT_BYTES_MAX, "{file} is too long");
        // Shown if the target panics.
        println!("{}", corpus::dir(target).join(file).display());
        (target.run)(&input);
        bytes.push(input);
    }
    let mut rng = Rng::new(3);
    for _ in 0..mutations {
        let input = mutator::mutated(&mut rng, &bytes);
        println!("{input:?}");
        (target.run)(&input);
    }
}

#[test]
fn messages() {
    holds("messages", 5000);
}

#[test]
fn deltas() {
    holds("deltas", 5000);
}

#[test]
fn stored() {
    holds("stored", 3000);
}

#[test]
fn documents() {
    holds("documents", 3000);
}

#[test]
fn sync() {
    holds("sync", 3000);
}

#[test]
fn intervals() {
    holds("intervals", 1500);
}

#[test]
fn conversation() {
    holds("conversation", 1000);
}
