//! Idempotency keys: which commits were made under one, so that a retry is answered and not repeated.
//!
//! Invariant: an entry is written in the batch that applies its commit, here or from a peer, so after any crash either
//! both are there or neither. A commit that changed nothing leaves an entry as well: its retry changes nothing either.
//!
//! Of a request that changed nothing here, and something elsewhere, the first answer stays. The other one is kept in the order of
//! time only, for those who repair their state from here: they have its commit, and no answer of their own.
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
            if before.commit.is_none() && known.commit.is_some() {
                let by_time = keys::request_at(known.at_ms, namespace, key, partition);
                txn.put(Family::Requests, by_time, codec::encode(ENTRY_VERSION, known));
            }
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
    let mut old: Vec<(Vec<u8>, Vec<u8>, bool)> = Vec::new();
    let mut outcome = Ok(());
    txn.scan_prefix(
        Family::Requests,
        keys::REQUESTS_BY_TIME,
        &mut |key, other| match keys::parse_request_at(key) {
            Ok((at_ms, name)) if at_ms < oldest_ms && old.len() < most => {
                old.push((key.to_vec(), name, !other.is_empty()));
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
    for (by_time, name, is_other) in old {
        txn.delete(Family::Requests, by_time);
        // The answer that was given first may have come later.
        let stays = is_other && read(txn, &name)?.is_some_and(|known| known.at_ms >= oldest_ms);
        if !stays {
            txn.delete(Family::Requests, name);
        }
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
    store.scan(Family::Requests, &from, &keys::after_prefix(keys::REQUESTS_BY_TIME), &mut |key, other| {
        if key.ends_with(&partition.0.to_be_bytes()) {
            names.push((keys::parse_request_at(key), other.to_vec()));
        }
        looked_at += 1;
        upto = (looked_at >= most).then(|| key.to_vec());
        if looked_at < most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    let mut sent = Vec::new();
    for (name, other) in names {
        let (_, name) = name.map_err(damaged())?;
        let (namespace, key, _) = keys::parse_request(&name).map_err(damaged())?;
        let known = match other.is_empty() {
            true => read(store, &name)?,
            false => Some(codec::decode(ENTRY_VERSION, &other).map_err(damaged())?),
        };
        let Some(known) = known else { continue };
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ReplicaId;
    use crate::store::{Batch, MemStore};

    const PARTITION: PartitionId = PartitionId(3);
    const KEY: [u8; 16] = [7; 16];

    fn namespace() -> Namespace {
        Namespace::new("ns").unwrap()
    }

    fn made(at_ms: u64, commit: Option<(Dot, Hlc)>) -> Known {
        Known { asked: [1; 16], commit, at_ms }
    }

    fn elsewhere() -> Option<(Dot, Hlc)> {
        Some((Dot { replica: ReplicaId(9), counter: 1 }, Hlc::default()))
    }

    fn all() -> VersionVector {
        let mut context = VersionVector::new();
        context.advance(Dot { replica: ReplicaId(9), counter: 1 });
        context
    }

    /// Here nothing was to be changed; a retry elsewhere made a commit, at another time.
    fn unchanged_here(here_ms: u64, elsewhere_ms: u64) -> MemStore {
        let mut store = MemStore::default();
        for (known, context) in
            [(made(here_ms, None), VersionVector::new()), (made(elsewhere_ms, elsewhere()), all())]
        {
            let mut batch = Batch::default();
            let mut txn = Txn::new(&store, &mut batch);
            remember(&mut txn, &namespace(), &KEY, PARTITION, &known, &context, 0).unwrap();
            store.commit(batch);
        }
        store
    }

    fn answer(store: &MemStore) -> Option<Known> {
        find(store, &namespace(), &KEY, PARTITION, &all(), 0).unwrap()
    }

    #[test]
    fn the_first_answer_stays_and_the_commit_is_passed_on() {
        for (here_ms, elsewhere_ms) in [(5, 8), (5, 5), (8, 5)] {
            let store = unchanged_here(here_ms, elsewhere_ms);
            assert_eq!(answer(&store), Some(made(here_ms, None)));
            let mut after = Vec::new();
            let mut sent = Vec::new();
            loop {
                let (found, upto) =
                    beyond(&store, PARTITION, (&all(), &VersionVector::new()), &after, 1).unwrap();
                sent.extend(found);
                let Some(upto) = upto else { break };
                after = upto;
            }
            let known = made(elsewhere_ms, elsewhere());
            assert_eq!(sent, [Sent { namespace: namespace(), key: KEY, known }]);
            assert_eq!(
                beyond(&store, PARTITION, (&all(), &all()), &[], 9).unwrap(),
                (Vec::new(), None),
                "the other side has it"
            );
        }
    }

    #[test]
    fn each_of_two_entries_under_a_key_goes_in_its_time() {
        for (here_ms, elsewhere_ms) in [(5, 8), (5, 5), (8, 5)] {
            let mut store = unchanged_here(here_ms, elsewhere_ms);
            for oldest_ms in [6, 9] {
                let mut batch = Batch::default();
                assert!(!expire(&mut Txn::new(&store, &mut batch), oldest_ms, 9).unwrap());
                store.commit(batch);
                assert_eq!(answer(&store).is_some(), here_ms >= oldest_ms);
            }
            let entries = [keys::REQUESTS_BY_TIME.to_vec(), keys::request(&namespace(), &KEY, PARTITION)];
            for prefix in entries {
                let left = store.first(Family::Requests, &prefix, &keys::after_prefix(&prefix)).unwrap();
                assert_eq!(left, None, "here {here_ms}, elsewhere {elsewhere_ms}");
            }
        }
    }
}
