//! The digest of a partition's whole state: equal on two replicas exactly if their contexts and rows are equal
//! byte for byte. It reads everything, so it is for proofs (tests, the simulator, the demo), not for steady
//! comparison.

use std::ops::ControlFlow;

use crate::codec;
use crate::context::VersionVector;
use crate::ids::PartitionId;
use crate::keys;
use crate::store::{Family, StoreError, StoreRead};

/// BLAKE3 over the context and every row of a partition, in key order.
pub fn partition(
    store: &impl StoreRead,
    id: PartitionId,
    context: &VersionVector,
) -> Result<[u8; 32], StoreError> {
    let mut hasher = blake3::Hasher::new_derive_key("godwit 2026 partition state");
    update(&mut hasher, &codec::encode(1, context));
    store.scan_prefix(Family::Rows, &keys::partition_prefix(id), &mut |key, value| {
        update(&mut hasher, key);
        update(&mut hasher, value);
        ControlFlow::Continue(())
    })?;
    Ok(*hasher.finalize().as_bytes())
}

fn update(hasher: &mut blake3::Hasher, bytes: &[u8]) {
    // The length first, so that no two sequences of values feed the same bytes.
    hasher.update(&(bytes.len() as u64).to_le_bytes());
    hasher.update(bytes);
}
