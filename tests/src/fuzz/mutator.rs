//! Mutations of inputs, drawn from a seed: the same seed, the same inputs.

use godwit_core::rng::Rng;

/// The most bytes of a mutated input.
pub const INPUT_BYTES_MAX: usize = 4096;
/// Changes to one input.
const CHANGES_MAX: u64 = 6;
/// Bytes put in at once.
const PIECE_MAX: u64 = 12;

/// An input made of one of the corpus, and maybe of pieces of others; of nothing if the corpus is empty.
pub fn mutated(rng: &mut Rng, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = if corpus.is_empty() || rng.below(2) == 0 {
        (0..rng.below(600)).map(|_| rng.draw() as u8).collect()
    } else {
        rng.pick(corpus).clone()
    };
    for _ in 0..1 + rng.below(CHANGES_MAX) {
        change(rng, &mut bytes, corpus);
    }
    bytes.truncate(INPUT_BYTES_MAX);
    bytes
}

fn change(rng: &mut Rng, bytes: &mut Vec<u8>, corpus: &[Vec<u8>]) {
    let at = rng.below(bytes.len() as u64 + 1) as usize;
    match rng.below(8) {
        0 | 1 if at < bytes.len() => bytes[at] = rng.draw() as u8,
        2 if at < bytes.len() => bytes[at] = bytes[at].wrapping_add(*rng.pick(&[1, 255])),
        3 if at < bytes.len() => bytes[at] = *rng.pick(&[0, 1, 2, 127, 250, 251, 252, 253, 255]),
        4 => {
            let end = (at + rng.below(PIECE_MAX) as usize).min(bytes.len());
            bytes.drain(at..end);
        }
        5 if !corpus.is_empty() => {
            // A piece of another.
            let other = rng.pick(corpus);
            let start = rng.below(other.len() as u64 + 1) as usize;
            let end = (start + rng.below(PIECE_MAX * 4) as usize).min(other.len());
            bytes.splice(at..at, other[start..end].iter().copied());
        }
        6 => {
            // Again what is there.
            let end = (at + rng.below(PIECE_MAX * 2) as usize).min(bytes.len());
            let piece = bytes[at..end].to_vec();
            bytes.splice(at..at, piece);
        }
        _ => {
            let piece: Vec<u8> = (0..1 + rng.below(PIECE_MAX)).map(|_| rng.draw() as u8).collect();
            bytes.splice(at..at, piece);
        }
    }
}
