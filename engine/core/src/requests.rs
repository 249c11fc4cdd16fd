//! Idempotency keys: which commits were made under one, so that a retry is answered and not repeated.
//!
//! Invariant: an entry is written in the batch that applies its commit, here or from a peer, so after any crash either
//! both are there or neither. A commit that changed nothing leaves an entry as well: its retry changes nothing either.
//!
//! An entry holds for a window of time; then it is dropped. (The increments made under the key stay: see
//! [`crate::types::keyed`].)

use std::ops::ControlFlow;

use bincode::{Decode, Encode};

use crate::codec;
use crate::context::Dot;
use crate::delta::RequestKey;
use crate::ids::{Namespace, PartitionId};
use crate::keys;
use crate::store::{Family, StoreError, StoreRead, Txn};
use crate::time::Hlc;

const ENTRY_VERSION: u8 = 1;

/// A commit made under a key.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Known {
    /// Half of the digest of what was asked for.
    pub asked: [u8; 16],
    /// The commit and its stamp; `None` if there was nothing to change.
    pub commit: Option<(Dot, Hlc)>,
    /// When, in milliseconds since 1970 by the committing node's clock.
    pub at_ms: u64,
}

impl Known {
    /// A commit made now.
    pub fn new(id: RequestKey, commit: Option<(Dot, Hlc)>, at_ms: u64) -> Self {
        Self { asked: id.asked, commit, at_ms }
    }
}

/// The commit made under a key within the window, if there is one.
pub fn find(
    store: &impl StoreRead,
    namespace: &Namespace,
    key: &[u8; 16],
    partition: PartitionId,
    oldest_ms: u64,
) -> Result<Option<Known>, StoreError> {
    let found = read(store, &keys::request(namespace, key, partition))?;
    Ok(found.filter(|known| known.at_ms >= oldest_ms))
}

/// Remembers a commit. Of two the first stays, unless its window has ended.
pub fn remember<S: StoreRead>(
    txn: &mut Txn<'_, S>,
    namespace: &Namespace,
    key: &[u8; 16],
    partition: PartitionId,
    known: &Known,
    oldest_ms: u64,
) -> Result<(), StoreError> {
    let name = keys::request(namespace, key, partition);
    if let Some(before) = read(txn, &name)? {
        if before.at_ms >= oldest_ms {
            return Ok(());
        }
        txn.delete(Family::Requests, keys::request_at(before.at_ms, namespace, key, partition));
    }
    txn.put(Family::Requests, keys::request_at(known.at_ms, namespace, key, partition), Vec::new());
    txn.put(Family::Requests, name, codec::encode(ENTRY_VERSION, known));
    Ok(())
}

/// Drops up to `most` entries from before a time, the oldest first. Tells whether more is to be dropped.
pub fn expire<S: StoreRead>(txn: &mut Txn<'_, S>, oldest_ms: u64, most: usize) -> Result<bool, StoreError> {
    let damaged = || StoreError::damaged("requests");
    let mut old: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    let mut outcome = Ok(());
    txn.scan_prefix(
        Family::Requests,
        keys::REQUESTS_BY_TIME,
        &mut |key, _| match keys::parse_request_at(key) {
            Ok((at_ms, name)) if at_ms < oldest_ms && old.len() < most => {
                old.push((key.to_vec(), name));
                ControlFlow::Continue(())
            }
            Ok(_) => ControlFlow::Break(()),
            Err(error) => {
                outcome = Err(damaged()(error));
                ControlFlow::Break(())
            }
        },
    )?;
    outcome?;
    let more = old.len() == most;
    for (by_time, name) in old {
        txn.delete(Family::Requests, by_time);
        txn.delete(Family::Requests, name);
    }
    Ok(more)
}

fn read(store: &impl StoreRead, name: &[u8]) -> Result<Option<Known>, StoreError> {
    let bytes = store.get(Family::Requests, name)?;
    bytes
        .map(|bytes| codec::decode(ENTRY_VERSION, &bytes))
        .transpose()
        .map_err(StoreError::damaged("requests"))
}
