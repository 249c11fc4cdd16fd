//! Rows that a node has lost, found by comparing with a peer: nodes driven by hand.

use godwit_core::document::{Document, Patch};
use godwit_core::ids::{Field, RecordId};
use godwit_core::json::Json;
use godwit_core::keys;
use godwit_core::op::Op;
use godwit_core::read::{Kept, ReadAt};
use godwit_core::store::{Batch, Family, StoreRead};
use godwit_core::types::document::slot;
use godwit_proto::message::repair::{Ask, Pull};
use godwit_proto::{Alarm, Message, Output, Tuning};
use godwit_tests::hand::{PARTITIONS, STEP_US, World};

/// How long it takes until all pairs were compared, and then some.
const ALL_US: u64 = 6_000_000;

fn scrubbing() -> Tuning {
    Tuning { scrub_us: 2_000_000, repair_rows: 16, ..Tuning::default() }
}

/// Two linked nodes with some records.
fn even(tuning: &Tuning) -> World {
    let mut world = World::new([tuning.clone(), tuning.clone(), tuning.clone()]);
    world.link(0, 1);
    world.run(100_000);
    world.commits(0, 200);
    world.commits(1, 200);
    assert!(world.is_even(0, 1));
    world
}

/// The rows of a record at a node: keys and values.
fn rows(world: &World, at: usize, record: &RecordId) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut rows = Vec::new();
    let prefix = keys::record_prefix(record.partition(PARTITIONS), record);
    let mut visit = |key: &[u8], value: &[u8]| {
        rows.push((key.to_vec(), value.to_vec()));
        std::ops::ControlFlow::Continue(())
    };
    world.members[at].store.scan_prefix(Family::Rows, &prefix, &mut visit).unwrap();
    rows
}

/// A disk changes the rows of a record behind its node's back, or loses them.
fn damage(world: &mut World, at: usize, record: &RecordId, change: Option<fn(&mut Vec<u8>)>) {
    let found = rows(world, at, record);
    assert!(!found.is_empty());
    let mut batch = Batch::default();
    for (key, mut value) in found {
        match change {
            Some(change) => {
                change(&mut value);
                batch.put(Family::Rows, key, value);
            }
            None => batch.delete(Family::Rows, key),
        }
    }
    world.members[at].store.commit(batch);
}

type Divergence = (usize, u64, u64, Vec<(RecordId, Field)>);

/// What was found: by whom, rows that were missing, rows that were altered, of which fields.
fn found(world: &World) -> Vec<Divergence> {
    let found = world.outputs.iter().filter_map(|(at, output)| match output {
        Output::Alarm(Alarm::Diverged { missing, altered, fields, .. }) => {
            Some((*at, *missing, *altered, fields.clone()))
        }
        _ => None,
    });
    found.collect()
}

fn field() -> Field {
    Field::new("f").unwrap()
}

#[test]
fn where_nothing_is_damaged_nothing_is_found_whatever_is_written() {
    let mut world = even(&scrubbing());
    for i in 0..400 {
        let at = i % 2;
        let record = World::record(1 + i as u64 / 3);
        let value = Json::parse(&i.to_string()).unwrap();
        world.write(at, &record, vec![Op::Set { field: field(), value }]);
        world.run(5 * STEP_US);
    }
    world.run(ALL_US);
    assert_eq!(found(&world), []);
    let compared = [0, 1].map(|at| world.status(at).scrubs.compared);
    assert!(compared.iter().all(|&compared| compared > 20), "{compared:?}");
}

#[test]
fn a_lost_row_is_put_back_and_named() {
    for bits in [0, 4, 20] {
        let mut world = even(&Tuning { repair_tree_bits: bits, ..scrubbing() });
        let record = World::record(7);
        let before = rows(&world, 0, &record);
        damage(&mut world, 0, &record, None);
        world.run(ALL_US);
        assert_eq!(rows(&world, 0, &record), before);
        assert_eq!(found(&world), [(0, 1, 0, vec![(record, field())])]);
        assert_eq!((world.status(0).scrubs.rows_missing, world.status(1).scrubs.rows_missing), (1, 0));
    }
}

/// No commit tells of what is put back.
#[test]
fn a_document_that_is_kept_open_has_what_is_put_back() {
    let mut world = even(&scrubbing());
    let record = World::record(500);
    let mut document = Document::default();
    let mut edit = |world: &mut World, patch: &str| {
        let patch = Patch::parse(&Json::parse(patch).unwrap()).unwrap();
        let change = document.edit(&[1; 16], 0, &patch).unwrap().unwrap();
        world.write(0, &record, vec![Op::Change { field: field(), changes: vec![change] }]);
    };
    edit(&mut world, r#"[{"op":"add","path":"/a","value":1}]"#);
    edit(&mut world, r#"[{"op":"add","path":"/b","value":2}]"#);
    world.run(200 * STEP_US);
    assert!(world.is_even(0, 1));
    let all = document.heads();
    let mut kept = Kept::default();
    let mut bring = |world: &World| {
        let at = ReadAt { partitions: PARTITIONS, now_ms: world.wall_ms };
        kept.bring(&world.members[0].store, at, (&record, &field()), |_| ()).unwrap();
        kept.document().heads()
    };
    // Its last change, on which nothing builds.
    let prefix = keys::record_prefix(record.partition(PARTITIONS), &record);
    let last = slot(&all[0]);
    let is_last = |key: &[u8]| key[prefix.len()..].windows(last.len()).any(|part| part == last);
    let (key, _) = rows(&world, 0, &record).into_iter().find(|(key, _)| is_last(key)).unwrap();
    let mut batch = Batch::default();
    batch.delete(Family::Rows, key);
    world.members[0].store.commit(batch);
    assert_ne!(bring(&world), all, "a disk has lost it");
    world.run(ALL_US);
    assert_eq!(bring(&world), all);
}

#[test]
fn many_lost_rows_come_back_and_some_are_named() {
    let mut world = even(&scrubbing());
    let all: Vec<_> = (1..=400).map(World::record).collect();
    for record in &all {
        damage(&mut world, 1, record, None);
    }
    world.run(2 * ALL_US);
    for record in &all {
        assert_eq!(rows(&world, 0, record), rows(&world, 1, record));
    }
    let found = found(&world);
    assert_eq!(found.iter().map(|(_, missing, ..)| missing).sum::<u64>(), 400);
    assert!(found.iter().all(|(at, _, altered, fields)| *at == 1 && *altered == 0 && fields.len() == 10));
}

#[test]
fn a_row_with_other_contents_is_named_by_both_and_stays() {
    let mut world = even(&scrubbing());
    let record = World::record(7);
    // One of the register's text.
    damage(&mut world, 0, &record, Some(|value| *value.iter_mut().nth_back(9).unwrap() ^= 1));
    let before = [0, 1].map(|at| rows(&world, at, &record));
    world.run(ALL_US);
    assert_eq!([0, 1].map(|at| rows(&world, at, &record)), before);
    for at in [0, 1] {
        assert!(found(&world).contains(&(at, 0, 1, vec![(record.clone(), field())])));
    }
}

#[test]
fn a_row_that_makes_no_sense_is_taken_by_nobody() {
    let mut world = even(&scrubbing());
    let record = World::record(7);
    // The end of the register's text.
    damage(&mut world, 0, &record, Some(|value| value.truncate(value.len() - 1)));
    let before = [0, 1].map(|at| rows(&world, at, &record));
    world.run(ALL_US);
    assert_eq!([0, 1].map(|at| rows(&world, at, &record)), before);
    assert!(found(&world).contains(&(0, 0, 1, vec![(record, field())])));
    assert!(found(&world).contains(&(1, 0, 1, Vec::new())));
}

#[test]
fn a_row_of_a_record_that_is_written_to_meanwhile_waits() {
    let mut world = even(&scrubbing());
    let record = World::record(7);
    damage(&mut world, 0, &record, None);
    let asks = |world: &World| {
        let asks = world.outputs.iter().filter(|(at, output)| {
            let Output::Send { message: Message::Pull(Pull { ask, .. }), .. } = output else { return false };
            *at == 0 && matches!(ask, Ask::Compare { .. })
        });
        asks.count()
    };
    // Whenever this node has asked, the record is deleted, of which it knows nothing, and written to.
    let mut asked = asks(&world);
    let other = Field::new("g").unwrap();
    for i in 0..600 {
        world.run(STEP_US);
        if asks(&world) > asked {
            asked = asks(&world);
            let value = Json::parse(&i.to_string()).unwrap();
            world.write(0, &record, vec![Op::Set { field: other.clone(), value }]);
        }
        world.deliver();
    }
    assert!(asked > 3);
    world.run(ALL_US);
    assert_eq!(rows(&world, 0, &record), rows(&world, 1, &record));
    assert_eq!(rows(&world, 0, &record).len(), 2);
    assert_eq!(found(&world), [(0, 1, 0, vec![(record, field())])]);
}

#[test]
fn a_peer_that_is_behind_is_waited_for_and_one_that_is_gone_is_not() {
    let mut world = even(&scrubbing());
    world.cut(0, 1);
    world.commits(0, 50);
    damage(&mut world, 0, &World::record(7), None);
    world.run(ALL_US);
    assert_eq!(found(&world), []);
    let begun = world.status(0).scrubs.given_up;
    world.link(0, 1);
    world.run(ALL_US);
    assert_eq!(found(&world).len(), 1);
    assert_eq!(rows(&world, 0, &World::record(7)), rows(&world, 1, &World::record(7)));
    assert!(world.status(0).scrubs.given_up <= begun + 1);
}

#[test]
fn peers_of_an_older_wire_version_are_not_asked() {
    let mut world = World::new([scrubbing(), scrubbing(), scrubbing()]);
    world.link_by(0, 1, 2);
    world.run(100_000);
    world.commits(0, 20);
    world.run(ALL_US);
    assert_eq!(world.status(0).scrubs.compared, 0);
}
