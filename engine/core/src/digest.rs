//! The digest of a partition's whole state: equal on two replicas exactly if their contexts and rows are equal
//! byte for byte. It reads everything, so it is for proofs (tests, the simulator, the demo), not for steady
//! comparison.

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};

use crate::codec::{self, CodecError};
use crate::context::VersionVector;
use crate::fields::FieldState;
use crate::ids::PartitionId;
use crate::keys;
use crate::repair::Settled;
use crate::store::{Family, StoreError, StoreRead};

/// BLAKE3 over the context and every live row of a partition, in key order: what a clear took and no sweep has removed yet
/// does not count.
pub fn partition(
    store: &impl StoreRead,
    id: PartitionId,
    context: &VersionVector,
) -> Result<[u8; 32], StoreError> {
    let store = &Settled::open(store)?;
    let mut hasher = blake3::Hasher::new_derive_key("godwit 2026 partition state");
    update(&mut hasher, &codec::encode(1, context));
    let dead = dead_rows(store, id)?;
    let mut outcome = Ok(());
    store.scan_prefix(Family::Rows, &keys::partition_prefix(id), &mut |key, value| {
        match is_dead(&dead, key, value) {
            Ok(false) => {
                update(&mut hasher, key);
                update(&mut hasher, value);
            }
            Ok(true) => {}
            Err(error) => {
                outcome = Err(StoreError::damaged("rows")(error));
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    })?;
    outcome?;
    Ok(*hasher.finalize().as_bytes())
}

/// What is dead, by the first bytes of the rows' keys.
type Dead = BTreeMap<Vec<u8>, VersionVector>;

fn dead_rows(store: &impl StoreRead, id: PartitionId) -> Result<Dead, StoreError> {
    let mut dead = Dead::new();
    let mut outcome = Ok(());
    store.scan_prefix(Family::Fields, &keys::partition_prefix(id), &mut |key, value| {
        match FieldState::decode(value) {
            Ok(state) if state.dead.is_empty() => {}
            Ok(state) => drop(dead.insert(key.to_vec(), state.dead)),
            Err(error) => outcome = Err(StoreError::damaged("fields")(error)),
        }
        ControlFlow::Continue(())
    })?;
    outcome.map(|()| dead)
}

fn is_dead(dead: &Dead, key: &[u8], value: &[u8]) -> Result<bool, CodecError> {
    // No two of the first bytes begin each other, so the one that a key has comes right before it.
    let Some((range, seen)) = dead.range::<[u8], _>((Bound::Unbounded, Bound::Included(key))).next_back()
    else {
        return Ok(false);
    };
    if !key.starts_with(range) {
        return Ok(false);
    }
    let (record, ..) = keys::parse_type_prefix(range)?;
    let partition = PartitionId(u16::from_be_bytes([range[0], range[1]]));
    let row = keys::parse_row(&keys::record_prefix(partition, &record), key, value)?;
    Ok(seen.covers(row.dot))
}

fn update(hasher: &mut blake3::Hasher, bytes: &[u8]) {
    // The length first, so that no two sequences of values feed the same bytes.
    hasher.update(&(bytes.len() as u64).to_le_bytes());
    hasher.update(bytes);
}
