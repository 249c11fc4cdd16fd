//! Automerge's bytes, as clients and peers send them: what is taken makes a document that is the same in every form, or is refused; never
//! a panic outside of Automerge.

use std::collections::BTreeSet;

use godwit_core::document::chunk::chunks;
use godwit_core::document::{ChangeHash, Document, Encoded, changes_of_file};
use sha2::{Digest, Sha256};

/// Beyond, an input is passed over: a few bytes can stand for millions of operations, which is allowed and takes seconds.
const OPS_MAX: u64 = 10_000;
const MAGIC: [u8; 4] = [0x85, 0x6f, 0x4a, 0x83];
/// Magic, checksum, kind.
const HEADER_BYTES: usize = 9;

/// A file of a document or changes. Of the first byte one bit says whether its checksums are made right.
///
/// # Panics
/// If what is taken is not the same in all forms.
pub fn documents(bytes: &[u8]) {
    let Some((choice, bytes)) = bytes.split_first() else { return };
    let bytes = if choice % 2 == 0 { sealed(bytes) } else { bytes.to_vec() };
    if chunks(&bytes).map_or(0, |chunks| chunks.iter().map(|chunk| chunk.ops).sum()) > OPS_MAX {
        return;
    }
    let Ok(changes) = changes_of_file(&bytes) else { return };
    for encoded in &changes {
        assert_eq!(Encoded::parse(encoded.bytes.clone()).as_ref(), Ok(encoded));
    }
    let mut document = Document::default();
    if document.admit(&changes).is_err() {
        return;
    }
    assert_eq!(document.heads(), heads(&changes));
    assert_eq!(document.ops(), changes.iter().map(|encoded| encoded.change.ops).sum::<u64>());
    let json = document.json(None);
    if let Ok(saved) = document.save(None) {
        let again = changes_of_file(&saved).expect("what was saved is taken");
        let mut loaded = Document::default();
        loaded.apply(&again).expect("what was saved can be loaded");
        assert_eq!(loaded.heads(), document.heads());
        assert_eq!(loaded.json(None), json);
    }
    // Whatever comes of these: no panic.
    drop(document.diff(&[], &document.heads()));
    drop(document.text(None, None));
    drop(document.changes_since(&[]));
}

/// The changes on which no other one builds, in order.
fn heads(changes: &[Encoded]) -> Vec<ChangeHash> {
    let built_on: BTreeSet<&ChangeHash> = changes.iter().flat_map(|encoded| &encoded.change.deps).collect();
    let hashes: BTreeSet<ChangeHash> = changes.iter().map(|encoded| encoded.change.hash).collect();
    hashes.into_iter().filter(|hash| !built_on.contains(hash)).collect()
}

/// Makes the checksum of each chunk right that is not compressed.
fn sealed(bytes: &[u8]) -> Vec<u8> {
    let mut sealed = bytes.to_vec();
    let mut at = 0;
    while let Some(chunk) = sealed.get_mut(at..).filter(|chunk| chunk.starts_with(&MAGIC)) {
        let Some(length) = chunk.get(HEADER_BYTES..).and_then(length) else { break };
        let end = HEADER_BYTES + length.0 + length.1;
        let Some(chunk) = chunk.get_mut(..end) else { break };
        let sum = Sha256::digest(&chunk[HEADER_BYTES - 1..]);
        chunk[4..8].copy_from_slice(&sum[..4]);
        at += end;
    }
    sealed
}

/// A number of variable length, below 2^21: how many bytes it takes, and the number.
fn length(bytes: &[u8]) -> Option<(usize, usize)> {
    let last = bytes.iter().take(3).position(|byte| byte & 0x80 == 0)?;
    let number = bytes[..=last].iter().rev().fold(0, |number, byte| number << 7 | usize::from(byte & 0x7f));
    Some((last + 1, number))
}
