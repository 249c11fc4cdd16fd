//! Deleting namespaces: the node that was asked deletes what it has, record by record, with ordinary commits.
//!
//! A deletion is a register beside the namespace's settings ([`super::namespaces`]), so it outlives a restart of the node, and
//! every node that hears of it refuses requests for the namespace meanwhile. This node goes through the records again and again
//! until none is left, and then clears the register: the namespace is as if it had never been.
//!
//! What other regions write before they hear of the deletion is concurrent with it. What of that arrives while it goes on is deleted
//! as well, and what arrives later is there then: like any clear, a deletion takes only what its node has.
//!
//! If the node is lost for good, another one that is asked to delete the namespace takes over.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use godwit_core::ids::{Field, Key, Member, Namespace, PartitionId, RecordId};
use godwit_core::op::{Op, Reason, Terms, Write};
use godwit_core::partition::CommitError;
use godwit_core::read::{self, PageLimits, ReadLimits};
use godwit_core::row::FieldType;
use tokio::task::JoinSet;

use super::namespaces::{Deletion, deletion_field, record_of, settings_field};
use super::{CommitFailure, NodeHandle, ReadFailure};

/// From one look for a deletion to the next, and after one that failed.
const LOOK_EVERY: Duration = Duration::from_millis(500);
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// Records of one commit.
const COMMIT_RECORDS: usize = 64;
/// Commits at a time.
const COMMITS_MAX: usize = 8;
/// A page of the namespace's keys.
const PAGE: PageLimits = PageLimits { items_max: 2_000, bytes_max: 1 << 20, rows_max: 20_000 };
/// Members that one commit removes of a zset with more increments than a clear takes.
const MEMBERS: PageLimits = PageLimits { items_max: 1_000, bytes_max: 1 << 20, rows_max: 100_000 };

/// Why a deletion does not go on for now.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Read(#[from] ReadFailure),
    #[error(transparent)]
    Commit(#[from] CommitFailure),
}

/// Writes that begin a deletion by this node.
pub(crate) fn begins(node: &NodeHandle, namespace: &Namespace) -> Write {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let since_ms = u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX);
    let deletion = serde_json::json!(Deletion { node: node.name().to_owned(), since_ms }).to_string();
    let value = godwit_core::json::Json::parse(&deletion).expect("it is JSON");
    let ops = vec![Op::Clear { field: settings_field() }, Op::Set { field: deletion_field(), value }];
    Write { record: record_of(namespace), ops }
}

/// Does what deletions ask of this node, until it stops.
pub(super) async fn run(node: NodeHandle) {
    while node.is_ready() {
        let mut pause = LOOK_EVERY;
        for namespace in own(&node) {
            match erase(&node, &namespace).await {
                Ok(erased) => {
                    tracing::info!(namespace = namespace.as_str(), erased, "deleted a namespace");
                }
                Err(_) if !node.is_ready() => return,
                Err(error) => {
                    tracing::warn!(namespace = namespace.as_str(), %error, "deleting a namespace goes on later");
                    pause = RETRY_AFTER;
                }
            }
        }
        tokio::time::sleep(pause).await;
    }
}

/// Namespaces that this node is to delete.
fn own(node: &NodeHandle) -> Vec<Namespace> {
    let known = node.namespaces().after(None, usize::MAX).into_iter();
    known.map(|(namespace, _)| namespace).filter(|namespace| is_own(node, namespace)).collect()
}

fn is_own(node: &NodeHandle, namespace: &Namespace) -> bool {
    let known = node.namespaces().known(namespace);
    known.is_some_and(|known| known.deletion.as_ref().is_some_and(|deletion| deletion.node == node.name()))
}

/// Deletes all records; tells how many there were.
async fn erase(node: &NodeHandle, namespace: &Namespace) -> Result<u64, Failure> {
    let mut erased = 0;
    loop {
        let of_pass = pass(node, namespace).await?;
        erased += of_pass;
        if of_pass == 0 {
            break;
        }
    }
    if is_own(node, namespace) {
        let ops = vec![Op::Clear { field: deletion_field() }];
        node.commit(vec![Write { record: record_of(namespace), ops }], Terms::default()).await?;
        node.refresh_namespaces().await?;
    }
    Ok(erased)
}

/// Deletes the records that are there, in the order of their keys.
async fn pass(node: &NodeHandle, namespace: &Namespace) -> Result<u64, Failure> {
    let (mut erased, mut after) = (0, None::<Key>);
    // Another node may take over.
    while is_own(node, namespace) && node.is_ready() {
        let (at, of, from) = (node.read_at(), namespace.clone(), after.take());
        let list = move |store: &super::StoreView<'_>| {
            read::list_keys(store, at, &of, "", from.as_ref().map(Key::as_str), PAGE)
        };
        let page = node.read(list).await?;
        erased += page.items.len() as u64;
        delete_all(node, namespace, page.items).await?;
        match page.next {
            Some(next) => after = Some(next),
            None => break,
        }
    }
    Ok(erased)
}

/// Deletes records, many in a commit and several commits at a time.
async fn delete_all(node: &NodeHandle, namespace: &Namespace, keys: Vec<Key>) -> Result<(), Failure> {
    let mut homes: BTreeMap<PartitionId, Vec<RecordId>> = BTreeMap::new();
    for key in keys {
        let record = RecordId { namespace: namespace.clone(), key };
        homes.entry(record.partition(node.partitions())).or_default().push(record);
    }
    let mut commits = JoinSet::new();
    let groups = homes.values().flat_map(|records| records.chunks(COMMIT_RECORDS));
    let mut outcome = Ok(());
    for group in groups {
        if commits.len() == COMMITS_MAX {
            outcome = outcome.and(joined(commits.join_next().await));
        }
        let (node, records) = (node.clone(), group.to_vec());
        commits.spawn(async move { delete(&node, records).await });
    }
    while let Some(ended) = commits.join_next().await {
        outcome = outcome.and(joined(Some(ended)));
    }
    outcome
}

fn joined(ended: Option<Result<Result<(), Failure>, tokio::task::JoinError>>) -> Result<(), Failure> {
    match ended {
        Some(Ok(outcome)) => outcome,
        Some(Err(error)) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        // The runtime is going down.
        Some(Err(_)) => Err(CommitFailure::Stopped(super::Stopped).into()),
        None => Ok(()),
    }
}

/// Deletes records of one partition in a commit or, if that is too large, one by one.
async fn delete(node: &NodeHandle, records: Vec<RecordId>) -> Result<(), Failure> {
    let delete = |record: &RecordId| Write { record: record.clone(), ops: vec![Op::Delete] };
    match node.commit(records.iter().map(delete).collect(), Terms::default()).await {
        Ok(_) => return Ok(()),
        Err(failure) if !is_too_large(&failure) => return Err(failure.into()),
        Err(_) => {}
    }
    for record in &records {
        match node.commit(vec![delete(record)], Terms::default()).await {
            Ok(_) => continue,
            Err(failure) if !is_too_large(&failure) => return Err(failure.into()),
            Err(_) => empty_zsets(node, record).await?,
        }
        node.commit(vec![delete(record)], Terms::default()).await?;
    }
    Ok(())
}

fn is_too_large(failure: &CommitFailure) -> bool {
    let CommitFailure::Refused(CommitError::Refused { refusal, .. }) = failure else { return false };
    matches!(
        refusal.reason,
        Reason::TooLarge { .. } | Reason::TooManyParts | Reason::TooManyIncremented { .. }
    )
}

/// Removes the members of a record's zsets: clearing one with very many increments at once is refused.
async fn empty_zsets(node: &NodeHandle, record: &RecordId) -> Result<(), Failure> {
    let (at, of) = (node.read_at(), record.clone());
    let limits = ReadLimits { members_max: 0, bytes_max: usize::MAX };
    let views = node.read(move |store| read::record(store, at, &of, limits)).await?;
    let zsets = views.into_iter().filter(|view| view.ty == FieldType::ZSET).map(|view| view.field);
    for field in zsets.collect::<Vec<Field>>() {
        let mut after = None::<Member>;
        loop {
            let (of, at, named, from) = (record.clone(), node.read_at(), field.clone(), after.take());
            let read = move |store: &super::StoreView<'_>| {
                read::zmembers(store, at, &of, &named, from.as_ref().map(Member::as_str), MEMBERS)
            };
            let page = node.read(read).await?;
            let members: Vec<Member> = page.items.into_iter().map(|(member, _)| member).collect();
            if !members.is_empty() {
                let ops = vec![Op::ZRemove { field: field.clone(), members }];
                node.commit(vec![Write { record: record.clone(), ops }], Terms::default()).await?;
            }
            match page.next {
                Some((next, _)) => after = Some(next),
                None => break,
            }
        }
    }
    Ok(())
}
