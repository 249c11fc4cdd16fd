//! Faults told step by step: what each does to a node, and what it must not do.

use std::collections::BTreeMap;

use godwit_core::ids::Field;
use godwit_core::op::{Op, Write};
use godwit_sim::config::RunConfig;
use godwit_sim::network::LinkConfig;
use godwit_sim::trace::Watch;
use godwit_sim::workload::{self, Ask};
use godwit_sim::world::{Event, World};

const MS: u64 = 1_000;

fn pass(world: &mut World, us: u64) {
    let until = world.now_us + us;
    while world.advance(until).unwrap() {}
}

fn begin(config: &RunConfig) -> World {
    let mut world = World::new(config, 7, Watch::default()).unwrap();
    pass(&mut world, 3_000 * MS);
    world
}

fn write(world: &mut World, node: usize) {
    let ops = vec![Op::Incr { field: Field::new("n").unwrap(), by: 1 }];
    let writes = vec![Write { record: workload::records()[0].clone(), ops }];
    world.at(0, Event::Client(node, Ask { writes, ..Ask::default() }));
}

fn met(world: &World, kind: &str) -> u64 {
    world.met_so_far().get(kind).copied().unwrap_or(0)
}

fn agree(world: &mut World) {
    for node in 0..world.node_count() {
        world.check(node).unwrap();
    }
    assert_eq!(world.difference(None).unwrap(), None);
}

#[test]
fn a_power_cut_takes_what_was_not_synced_and_nobody_else_has_it() {
    let mut lost = 0;
    for seed in 0..8 {
        let mut config = RunConfig::calm(3);
        config.unsynced[0] = true;
        config.fsync_us[0] = 200 * MS;
        let mut world = World::new(&config, seed, Watch::default()).unwrap();
        pass(&mut world, 3_000 * MS);
        for _ in 0..5 {
            write(&mut world, 0);
            pass(&mut world, 20 * MS);
        }
        assert_eq!(world.acknowledged, 5, "answers do not wait for the sync");
        world.at(0, Event::PowerCut(0));
        world.at(100 * MS, Event::Start(0));
        pass(&mut world, 5_000 * MS);
        agree(&mut world);
        lost += met(&world, "acknowledged commit lost");
        // It goes on under a new id, and others get what it writes.
        write(&mut world, 0);
        pass(&mut world, 5_000 * MS);
        agree(&mut world);
    }
    assert!(lost > 0, "no power cut took an acknowledged commit");
}

#[test]
fn a_killed_process_loses_nothing_that_was_acknowledged_unsynced() {
    let mut config = RunConfig::calm(3);
    config.unsynced[0] = true;
    config.fsync_us[0] = 200 * MS;
    let mut world = begin(&config);
    write(&mut world, 0);
    pass(&mut world, 20 * MS);
    assert_eq!(world.acknowledged, 1);
    world.at(0, Event::Crash(0));
    world.at(100 * MS, Event::Start(0));
    pass(&mut world, 5_000 * MS);
    agree(&mut world);
}

#[test]
fn damaged_frames_end_links_and_nothing_of_them_is_applied() {
    let mut config = RunConfig::calm(2);
    config.network.damaged_of_1000 = 200;
    let mut world = begin(&config);
    for node in [0, 1].repeat(20) {
        write(&mut world, node);
        pass(&mut world, 200 * MS);
    }
    assert!(met(&world, "frame damaged") > 5);
    world.at(0, Event::Mend);
    pass(&mut world, 20_000 * MS);
    agree(&mut world);
}

#[test]
fn a_link_that_is_cut_one_way_ends_and_comes_back() {
    let mut world = begin(&RunConfig::calm(2));
    world.at(0, Event::CutWay(0, 1));
    write(&mut world, 0);
    write(&mut world, 1);
    pass(&mut world, 500 * MS);
    assert_eq!(met(&world, "connection idle too long"), 0);
    assert!(world.difference(None).unwrap().is_some(), "a frame passed over a link that is cut");
    pass(&mut world, 5_000 * MS);
    assert_eq!(met(&world, "connection idle too long"), 1);
    world.at(0, Event::Heal((0, 1)));
    pass(&mut world, 5_000 * MS);
    agree(&mut world);
}

#[test]
fn a_process_that_stands_still_goes_on_with_all_that_waited() {
    let mut world = begin(&RunConfig::calm(3));
    write(&mut world, 0);
    world.at(0, Event::Pause(0));
    pass(&mut world, 10_000 * MS);
    assert_eq!((world.acknowledged, met(&world, "connection idle too long")), (0, 2));
    write(&mut world, 0);
    world.at(0, Event::Resume(0));
    pass(&mut world, 5_000 * MS);
    assert_eq!(world.acknowledged, 2);
    agree(&mut world);
}

#[test]
fn a_disk_that_refuses_writes_stops_its_process_and_nothing_else() {
    let mut world = begin(&RunConfig::calm(3));
    world.at(0, Event::RefusingDisk(0, 3_000 * MS));
    pass(&mut world, MS);
    write(&mut world, 0);
    write(&mut world, 1);
    pass(&mut world, 1_000 * MS);
    assert!(!world.is_up(0) && world.is_up(1));
    assert_eq!((world.acknowledged, met(&world, "disk refuses writes")), (1, 1));
    world.at(0, Event::Start(0));
    pass(&mut world, 1_000 * MS);
    assert!(!world.is_up(0), "it cannot begin before its disk takes writes");
    pass(&mut world, 5_000 * MS);
    assert!(world.is_up(0));
    agree(&mut world);
}

#[test]
fn a_slow_disk_delays_answers_and_loses_none() {
    let mut world = begin(&RunConfig::calm(2));
    world.at(0, Event::SlowDisk(0, 4_000 * MS, 2_000 * MS));
    pass(&mut world, MS);
    write(&mut world, 0);
    write(&mut world, 1);
    pass(&mut world, 3_000 * MS);
    assert_eq!(world.acknowledged, 1);
    pass(&mut world, 6_000 * MS);
    assert_eq!(world.acknowledged, 2);
    agree(&mut world);
}

/// What a process that stops says to clients waits for a sync where answers to writes do not: that is not its lateness.
#[test]
fn what_waits_for_a_slow_sync_is_not_late() {
    let mut config = RunConfig::calm(2);
    config.unsynced[0] = true;
    let mut world = begin(&config);
    world.at(0, Event::SlowDisk(0, 4_000 * MS, 2_000 * MS));
    pass(&mut world, MS);
    write(&mut world, 0);
    world.at(0, Event::Stop(0, 100 * MS));
    pass(&mut world, MS);
    write(&mut world, 0);
    pass(&mut world, 10_000 * MS);
    assert!(world.is_up(0) && met(&world, "process stopped") == 1);
    agree(&mut world);
}

#[test]
fn frames_queue_on_a_narrow_link() {
    let narrow =
        LinkConfig { latency_us: MS, jitter_us: 0, bytes_per_second: Some(2_000), lost_of_million: 0 };
    let mut config = RunConfig::calm(2);
    config.network.links = BTreeMap::from([((0, 1), narrow)]);
    let mut world = begin(&config);
    for _ in 0..20 {
        write(&mut world, 0);
    }
    pass(&mut world, 20_000 * MS);
    assert!(met(&world, "frame held up by others") > 0);
    agree(&mut world);
}
