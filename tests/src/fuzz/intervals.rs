//! Intervals against the commits that they stand for.
//!
//! The bytes are a history ([`super::history`]). At the end each replica's log is merged for every other one, and for what it
//! was when it was last remembered and then brought on by a part of the log: it must come to the rows, byte for byte, that a
//! fresh replica has of the commits one by one.

use godwit_core::partition::LogEntry;
use godwit_core::store::MemStore;

use super::bytes::Choices;
use super::history::{REPLICAS, Replica, World, expect_state, lacking, merged};

/// Steps of one history.
const STEPS_MAX: usize = 48;

/// An interval does what its deltas do one by one.
///
/// # Panics
/// If it does not.
pub fn intervals(bytes: &[u8]) {
    let from = &mut Choices::new(bytes);
    let mut world = World::chosen(from);
    // States of before, with the replica whose they were.
    let mut remembered = Vec::new();
    for _ in 0..STEPS_MAX {
        if from.is_empty() {
            break;
        }
        let at = from.below(REPLICAS);
        match from.below(12) {
            0 => world.sync(at, from.below(REPLICAS), None),
            1 => {
                let chunk = *from.pick(&[usize::MAX, 1, 200]);
                world.sync(at, from.below(REPLICAS), Some(chunk));
            }
            2 => remembered.push((at, world.replicas[at].store.clone())),
            _ => world.local_step(from, at),
        }
    }
    judge(&mut world, remembered, from);
}

/// Every receiver comes to the rows of the commits one by one.
fn judge(world: &mut World, mut remembered: Vec<(usize, MemStore)>, from: &mut Choices<'_>) {
    for replica in &mut world.replicas {
        expect_state(replica, &world.commits, &world.records);
    }
    let logs: Vec<Vec<LogEntry>> = world.replicas.iter().map(Replica::log).collect();
    for at in 0..REPLICAS {
        let store = world.replicas[at].store.clone();
        remembered.push((at, store));
    }
    for (at, store) in &remembered {
        for source in (0..REPLICAS).filter(|source| source != at) {
            let mut receiver = Replica::open(store.clone(), *at as u64 + 1, world.sizes.clone());
            let base = receiver.partition.context().clone();
            let run = merged(&logs[source], &base, *from.pick(&[usize::MAX, 1, 200]));
            // Meanwhile the receiver gets a part by another way.
            let other = &logs[(source + from.below(REPLICAS)) % REPLICAS];
            let part = lacking(other, &base);
            let most = from.below(part.len().min(200) + 1);
            part[..most].iter().for_each(|encoded| receiver.apply(encoded));
            run.iter().for_each(|encoded| receiver.apply(encoded));
            expect_state(&mut receiver, &world.commits, &world.records);
        }
    }
}
