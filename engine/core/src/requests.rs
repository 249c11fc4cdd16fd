//! Idempotency keys: which commits were made under one, so that a retry is answered and not repeated.
//!
//! Invariant: an entry is written in the batch that applies its commit, here or from a peer, so after any crash either
//! both are there or neither. A commit that changed nothing leaves an entry as well: its retry changes nothing either.
//!
//! An entry that a repair brought ([`crate::repair`]) may be there before its commit: it does not count until that is applied.
//!
//! An entry holds for a window of time; then it is dropped. (The increments made under the key stay: see
//! [`crate::types::keyed`].)

use std::ops::ControlFlow;

use bincode::{Decode, Encode};

use crate::codec;
use crate::context::{Dot, VersionVector};
use crate::delta::RequestKey;
use crate::ids::{Namespace, PartitionId};
use crate::keys;
use crate::store::{Family, StoreError, StoreRead, Txn};
use crate::time::Hlc;

const ENTRY_VERSION: u8 = 1;

/// An entry on its way to another node.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Sent {
    /// The namespace in which the key counts.
    pub namespace: Namespace,
    /// Half of the key's digest.
    pub key: [u8; 16],
    /// The commit made under it.
    pub known: Known,
}

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

    fn counts(&self, context: &VersionVector, oldest_ms: u64) -> bool {
        self.at_ms >= oldest_ms && self.commit.is_none_or(|(dot, _)| context.covers(dot))
    }
}

/// The commit made under a key within the window, if there is one.
pub fn find(
    store: &impl StoreRead,
    namespace: &Namespace,
    key: &[u8; 16],
    partition: PartitionId,
    context: &VersionVector,
    oldest_ms: u64,
) -> Result<Option<Known>, StoreError> {
    let found = read(store, &keys::request(namespace, key, partition))?;
    Ok(found.filter(|known| known.counts(context, oldest_ms)))
}

/// Remembers a commit. Of two the first stays, unless its window has ended or it is not applied where the context is.
pub fn remember<S: StoreRead>(
    txn: &mut Txn<'_, S>,
    namespace: &Namespace,
    key: &[u8; 16],
    partition: PartitionId,
    known: &Known,
    context: &VersionVector,
    oldest_ms: u64,
) -> Result<(), StoreError> {
    let name = keys::request(namespace, key, partition);
    if let Some(before) = read(txn, &name)? {
        if before.counts(context, oldest_ms) {
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

/// Finds entries of a partition's commits that the first context covers and the second does not, after a key of their order
/// of time: those among the next `most`. Tells after which key to go on, if there are more.
pub fn beyond(
    store: &impl StoreRead,
    partition: PartitionId,
    (has, lacks): (&VersionVector, &VersionVector),
    after: &[u8],
    most: usize,
) -> Result<(Vec<Sent>, Option<Vec<u8>>), StoreError> {
    let damaged = || StoreError::damaged("requests");
    let from = if after.is_empty() { keys::REQUESTS_BY_TIME.to_vec() } else { [after, &[0]].concat() };
    let (mut names, mut looked_at, mut upto) = (Vec::new(), 0, None);
    store.scan(Family::Requests, &from, &keys::after_prefix(keys::REQUESTS_BY_TIME), &mut |key, _| {
        if key.ends_with(&partition.0.to_be_bytes()) {
            names.push(keys::parse_request_at(key));
        }
        looked_at += 1;
        upto = (looked_at >= most).then(|| key.to_vec());
        if looked_at < most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    let mut sent = Vec::new();
    for name in names {
        let (_, name) = name.map_err(damaged())?;
        let (namespace, key, _) = keys::parse_request(&name).map_err(damaged())?;
        let Some(known) = read(store, &name)? else { continue };
        if known.commit.is_some_and(|(dot, _)| has.covers(dot) && !lacks.covers(dot)) {
            sent.push(Sent { namespace, key, known });
        }
    }
    Ok((sent, upto))
}

fn read(store: &impl StoreRead, name: &[u8]) -> Result<Option<Known>, StoreError> {
    let bytes = store.get(Family::Requests, name)?;
    bytes
        .map(|bytes| codec::decode(ENTRY_VERSION, &bytes))
        .transpose()
        .map_err(StoreError::damaged("requests"))
}
