//! State repair against the commits that it stands for.
//!
//! The bytes are a history ([`super::history`]) in which replicas repair from one another, a read at a time, while commits and
//! syncs go on, and what was repaired is moved to its place a few rows at a time. After every step the replica must show the
//! rows, byte for byte, that a fresh one has of the same commits one by one.

use std::collections::BTreeSet;
use std::sync::Arc;

use godwit_core::context::{Dot, VersionVector};
use godwit_core::repair::{self, Found, Leaves, Listed, ReadSizes, RepairRead, Wanted};
use godwit_core::store::MemStore;

use super::bytes::Choices;
use super::history::{HOME, REPLICAS, World, expect_state};

/// Steps of one history.
const STEPS_MAX: usize = 64;

/// A repair that is under way.
struct Repair {
    asked: VersionVector,
    theirs: VersionVector,
    /// The other side, as it was when the repair began.
    snapshot: MemStore,
    after: Vec<u8>,
    stage: Stage,
}

enum Stage {
    /// Rows come.
    Rows,
    /// What the other side lists is gathered.
    Lists(BTreeSet<u64>),
    /// What it has no more is looked for.
    Drops(Arc<Listed>),
    /// All is staged.
    Settle,
}

/// A repair does what the commits do that it stands for.
///
/// # Panics
/// If it does not.
pub fn repairs(bytes: &[u8]) {
    let from = &mut Choices::new(bytes);
    let mut world = World::chosen(from);
    let mut repairs: Vec<Option<Repair>> = (0..REPLICAS).map(|_| None).collect();
    for _ in 0..STEPS_MAX {
        if from.is_empty() {
            break;
        }
        let at = from.below(REPLICAS);
        match from.below(16) {
            0 => give(&mut world, from.below(REPLICAS), at, from),
            1..=6 => match repairs[at].take() {
                Some(repair) => repairs[at] = step(&mut world, at, repair, from),
                None => repairs[at] = begin(&mut world, at, from.below(REPLICAS)),
            },
            7 if repairs[at].is_some() => {
                repairs[at] = None;
                while !forget(&mut world, at) {}
            }
            _ => world.local_step(from, at),
        }
        let (commits, records) = (&world.commits, &world.records);
        expect_state(&mut world.replicas[at], commits, records);
    }
    for (at, repair) in repairs.iter_mut().enumerate() {
        while let Some(begun) = repair.take() {
            *repair = step(&mut world, at, begun, from);
        }
        let (commits, records) = (&world.commits, &world.records);
        expect_state(&mut world.replicas[at], commits, records);
    }
}

/// A replica gets commits that another has, not all of them maybe, whatever the logs hold.
fn give(world: &mut World, source: usize, to: usize, from: &mut Choices<'_>) {
    let context = world.replicas[source].partition.context().clone();
    let of = *from.pick(&[0, 1, 2, 3]);
    let given = |dot: &Dot| context.covers(*dot) && (of == 0 || dot.replica.0 == of);
    for (_, encoded) in world.commits.iter().filter(|(dot, _)| given(dot)) {
        world.replicas[to].receive(encoded);
    }
}

fn forget(world: &mut World, at: usize) -> bool {
    world.replicas[at].with(|partition, txn, _| partition.unstage(txn).expect("a sound store"))
}

fn begin(world: &mut World, at: usize, source: usize) -> Option<Repair> {
    let is_busy =
        world.replicas[at].with(|partition, txn, _| partition.is_settling(txn) || partition.has_staged());
    if at == source || is_busy {
        return None;
    }
    Some(Repair {
        asked: world.replicas[at].partition.context().clone(),
        theirs: VersionVector::new(),
        snapshot: world.replicas[source].store.clone(),
        after: Vec::new(),
        stage: Stage::Rows,
    })
}

/// Goes on with a repair.
fn step(world: &mut World, at: usize, mut repair: Repair, from: &mut Choices<'_>) -> Option<Repair> {
    let sizes = ReadSizes { rows: *from.pick(&[1, 2, 100]), bytes: *from.pick(&[1, 100, 10_000]) };
    let leaves = Leaves { bits: 0, positions: BTreeSet::from([0]) };
    let replica = &mut world.replicas[at];
    match repair.stage {
        Stage::Rows => {
            let found = read(&repair.snapshot, &repair, Wanted::Missing, None, sizes);
            repair.theirs = found.context;
            let contexts = (&repair.asked, &repair.theirs);
            let checked =
                replica.partition.check_rows(1, contexts, found.rows).expect("rows of a sound store");
            replica.with(|partition, txn, _| partition.stage(txn, checked).expect("a sound store"));
            repair.stage = next(&mut repair.after, found.upto, Stage::Rows, || Stage::Lists(BTreeSet::new()));
        }
        Stage::Lists(mut hashes) => {
            let wanted = Wanted::Within(Arc::new(leaves.clone()));
            repair.stage = Stage::Rows;
            let found = read(&repair.snapshot, &repair, wanted, None, sizes);
            hashes.extend(found.hashes);
            repair.stage = match found.upto {
                Some(upto) => {
                    repair.after = upto;
                    Stage::Lists(hashes)
                }
                None => {
                    repair.after = Vec::new();
                    Stage::Drops(Arc::new(Listed { leaves, hashes }))
                }
            };
        }
        Stage::Drops(listed) => {
            let wanted = Wanted::Unlisted(Arc::clone(&listed));
            repair.stage = Stage::Rows;
            let found = read(&replica.store, &repair, wanted, Some(repair.theirs.clone()), sizes);
            let unlisted = found.unlisted;
            replica.with(|partition, txn, _| partition.stage_drops(txn, unlisted).expect("a sound store"));
            repair.stage = next(&mut repair.after, found.upto, Stage::Drops(listed), || Stage::Settle);
        }
        Stage::Settle => {
            let Repair { asked, theirs, .. } = repair;
            let settled = replica.with(|partition, txn, _| partition.settle(txn, asked, theirs, (0, 0)));
            settled.expect("a sound store").expect("few replicas");
            return None;
        }
    }
    Some(repair)
}

fn next(after: &mut Vec<u8>, upto: Option<Vec<u8>>, same: Stage, then: impl FnOnce() -> Stage) -> Stage {
    let stage = if upto.is_some() { same } else { then() };
    *after = upto.unwrap_or_default();
    stage
}

fn read(
    store: &MemStore,
    repair: &Repair,
    wanted: Wanted,
    theirs: Option<VersionVector>,
    sizes: ReadSizes,
) -> Found {
    let read = RepairRead {
        partition: HOME,
        key: [7; 32],
        asked: repair.asked.clone(),
        theirs,
        contents: false,
        wanted,
        after: repair.after.clone(),
    };
    repair::run(store, &read, sizes).expect("a sound store")
}
