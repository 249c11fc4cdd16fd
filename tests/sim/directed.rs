//! Histories told step by step, with the machines of a run: what healing costs, which incarnations come about, what is left
//! of what was deleted.

use std::ops::ControlFlow;

use godwit_core::context::Seen;
use godwit_core::ids::{Field, Key, Member, Namespace, RecordId};
use godwit_core::json::Json;
use godwit_core::keys;
use godwit_core::op::{Op, Terms, Write};
use godwit_core::read::FieldView;
use godwit_core::rng::Rng;
use godwit_core::store::{Family, StoreRead};
use godwit_sim::cluster::{Cluster, Traffic};
use godwit_sim::config::RunConfig;
use godwit_sim::trace::Watch;
use godwit_sim::workload::{self, Ask};
use godwit_sim::world::{Event, World};

/// Increments of one counter during a cut.
const INCREMENTS: usize = 200_000;
/// How many times what one increment costs, greetings included, their healing may cost, in frames and in bytes.
const HEALING_COST_MAX: u64 = 3;
const SECOND_US: u64 = 1_000_000;

fn incr() -> Vec<Op> {
    vec![Op::Incr { field: Field::new("n").unwrap(), by: 1 }]
}

fn record() -> RecordId {
    RecordId { namespace: Namespace::new("ns").unwrap(), key: Key::new("counted").unwrap() }
}

fn cluster() -> Cluster {
    Cluster::new(&["a", "b", "c"].map(str::to_string)).unwrap()
}

/// What it costs to bring one increment over.
fn one_increment() -> Traffic {
    let mut cluster = cluster();
    cluster.commit(0, &record(), incr()).unwrap();
    cluster.sync(0, 2).unwrap()
}

fn assert_cheap(healing: Traffic, cluster: &Cluster) {
    let one = one_increment();
    assert!(
        healing.frames <= HEALING_COST_MAX * one.frames && healing.bytes <= HEALING_COST_MAX * one.bytes,
        "one increment costs {one:?}, the healing {healing:?}"
    );
    let views = cluster.read(2, &record()).unwrap();
    assert_eq!(views[0].value, godwit_core::read::Value::Counter(INCREMENTS as i64));
}

#[test]
fn many_increments_during_a_cut_heal_for_what_a_few_cost() {
    let mut cluster = cluster();
    for _ in 0..INCREMENTS {
        cluster.commit(0, &record(), incr()).unwrap();
    }
    let healing = cluster.sync(0, 2).unwrap();
    assert_cheap(healing, &cluster);
}

#[test]
fn so_do_those_of_two_nodes_that_take_turns() {
    let mut cluster = cluster();
    for turn in 0..INCREMENTS / 500 {
        for _ in 0..500 {
            cluster.commit(turn % 2, &record(), incr()).unwrap();
        }
        cluster.sync(turn % 2, 1 - turn % 2).unwrap();
    }
    let last = INCREMENTS / 500 % 2;
    let healing = cluster.sync(last, 2).unwrap();
    assert_cheap(healing, &cluster);
}

/// A removal takes what its client has seen, also where an addition of the same commit stands for the rest.
#[test]
fn what_a_client_has_not_seen_outlives_its_adding_and_removing() {
    let (field, flag) = (Field::new("s").unwrap(), Field::new("f").unwrap());
    let members = vec![Member::new("m").unwrap()];
    let add = Op::Add { field: field.clone(), members: members.clone() };
    let takings = [
        vec![add.clone(), Op::Remove { field: field.clone(), members }],
        vec![add.clone(), Op::Clear { field: field.clone() }],
        vec![Op::Enable { field: flag.clone() }, Op::Disable { field: flag.clone() }],
    ];
    for ops in takings {
        let mut cluster = cluster();
        cluster.commit(0, &record(), vec![add.clone(), Op::Enable { field: flag.clone() }]).unwrap();
        let before = cluster.read(0, &record()).unwrap();
        let saw_nothing = Terms { seen: Some(Seen::default()), request: None };
        cluster.commit_on(0, &record(), ops, saw_nothing).unwrap();
        let values = |views: Vec<FieldView>| views.into_iter().map(|view| view.value).collect::<Vec<_>>();
        let after = cluster.read(0, &record()).unwrap();
        assert_eq!(values(after), values(before));
    }
}

fn world(nodes: usize) -> World {
    World::new(&RunConfig::calm(nodes), 7, Watch::default()).unwrap()
}

fn pass(world: &mut World, us: u64) {
    let until = world.now_us + us;
    while world.advance(until).unwrap() {}
}

fn write_everywhere(world: &mut World) {
    for node in 0..world.node_count() {
        for record in workload::records() {
            let writes = vec![Write { record, ops: incr() }];
            world.at(0, Event::Client(node, Ask { writes, ..Ask::default() }));
        }
    }
    pass(world, SECOND_US);
}

/// The replicas that a node knows of, in the partition that knows most.
fn replicas(world: &World, node: usize) -> usize {
    world.contexts(node).unwrap().values().map(|context| context.len()).max().unwrap()
}

#[test]
fn clean_restarts_do_not_grow_contexts_and_others_do() {
    let mut world = world(3);
    write_everywhere(&mut world);
    for round in 0..4 {
        for node in 0..3 {
            world.at(0, Event::Stop(node, SECOND_US / 10 + round));
            // Reconnecting takes a while, and every member has to confirm.
            pass(&mut world, 5 * SECOND_US);
            assert!(world.is_up(node));
            write_everywhere(&mut world);
        }
    }
    pass(&mut world, SECOND_US);
    assert_eq!([0, 1, 2].map(|node| replicas(&world, node)), [3; 3]);

    world.at(0, Event::Crash(1));
    world.at(1, Event::Start(1));
    pass(&mut world, 5 * SECOND_US);
    write_everywhere(&mut world);
    pass(&mut world, SECOND_US);
    assert_eq!([0, 1, 2].map(|node| replicas(&world, node)), [4; 3]);
    (0..3).for_each(|node| world.check(node).unwrap());
}

#[test]
fn a_node_that_nobody_confirms_writes_under_a_new_name() {
    let mut world = world(3);
    write_everywhere(&mut world);
    world.at(0, Event::Stop(0, SECOND_US));
    pass(&mut world, SECOND_US / 2);
    world.pairs().into_iter().for_each(|pair| world.at(0, Event::Cut(pair)));
    pass(&mut world, 5 * SECOND_US);
    write_everywhere(&mut world);
    world.pairs().into_iter().for_each(|pair| world.at(0, Event::Heal(pair)));
    pass(&mut world, 10 * SECOND_US);
    assert_eq!(world.difference(None).unwrap(), None);
    assert_eq!([0, 1, 2].map(|node| replicas(&world, node)), [4; 3]);
}

/// A disk goes back to where its process had stopped cleanly; the process after it went on with the incarnation, and others
/// hold what it wrote. Whether or not they can be asked, no name is given twice, and nothing of it is lost.
#[test]
fn a_disk_that_is_put_back_gives_no_name_twice() {
    for seed in 0..12 {
        let mut world = World::new(&RunConfig::calm(3), seed, Watch::default()).unwrap();
        write_everywhere(&mut world);
        world.at(0, Event::Stop(0, SECOND_US / 10));
        pass(&mut world, 5 * SECOND_US);
        write_everywhere(&mut world);
        assert_eq!(replicas(&world, 1), 3, "it went on with its incarnation");
        if seed % 2 == 0 {
            world.pairs().into_iter().for_each(|pair| world.at(0, Event::Cut(pair)));
        }
        world.at(0, Event::Rollback(vec![0]));
        pass(&mut world, 5 * SECOND_US);
        write_everywhere(&mut world);
        world.pairs().into_iter().for_each(|pair| world.at(0, Event::Heal(pair)));
        pass(&mut world, 10 * SECOND_US);
        assert_eq!(world.difference(None).unwrap(), None);
        assert_eq!([0, 1, 2].map(|node| replicas(&world, node)), [4; 3]);
        (0..3).for_each(|node| world.check(node).unwrap());
    }
}

/// Of incarnations that live: the rows of a dead one's sums may stay for ever, since nobody but their owner retires them.
#[test]
fn nothing_is_left_of_what_was_deleted() {
    let mut config = RunConfig::calm(3);
    // What is hidden of documents goes after comparisons.
    config.tuning.scrub_us = 2 * SECOND_US;
    let mut world = World::new(&config, 7, Watch::default()).unwrap();
    let mut rng = Rng::new(3);
    for number in 0..400 {
        let writes = workload::commit(&mut rng, 2);
        let key = rng.chance(1, 4).then_some(number);
        let node = rng.below(3) as usize;
        if let Some(key) = key {
            let mut ask = Ask { writes, ..Ask::default() };
            ask.terms.request = Some(workload::request_key(key, &ask.writes));
            world.at(0, Event::Client(node, ask));
        } else {
            world.at(0, Event::Client(node, Ask { writes, ..Ask::default() }));
        }
        if rng.chance(1, 10) {
            let field = rng.pick(&workload::set_fields()).clone();
            let record = rng.pick(&workload::records()).clone();
            world.at(0, Event::Count(node, record, field));
        }
        pass(&mut world, SECOND_US / 100);
    }
    pass(&mut world, 5 * SECOND_US);
    assert!(count(&world, 0, Family::Rows, &[]) > 0);
    for (node, record) in workload::records().into_iter().enumerate() {
        let writes = vec![Write { record, ops: vec![Op::Delete] }];
        world.at(0, Event::Client(node, Ask { writes, ..Ask::default() }));
    }
    pass(&mut world, 30 * SECOND_US);
    assert_eq!(world.difference(None).unwrap(), None);
    for node in 0..3 {
        let left =
            [Family::Rows, Family::Keys, Family::Fields].map(|family| count(&world, node, family, &[]));
        assert_eq!(left, [0; 3], "rows, marks and states of fields at n{node}");
        assert_eq!(count(&world, node, Family::Meta, b"job/"), 0, "jobs at n{node}");
    }
}

/// What a clear hid of a document stays everywhere while an edit may be under way that builds on it, and goes when none can be.
#[test]
fn what_an_edit_under_way_needs_is_not_forgotten() {
    let mut config = RunConfig::calm(3);
    config.tuning.scrub_us = SECOND_US / 2;
    let mut world = World::new(&config, 7, Watch::default()).unwrap();
    let record = workload::records()[0].clone();
    let field = Field::new("document").unwrap();
    let ask =
        |op: Op| Ask { writes: vec![Write { record: record.clone(), ops: vec![op] }], ..Ask::default() };
    let edit = |key: &str| {
        let patch = format!(r#"[{{"op":"add","path":"/{key}","value":"{key}"}}]"#);
        ask(Op::Edit { field: field.clone(), patch: Json::parse(&patch).unwrap() })
    };
    let rows = |world: &World| [0, 1, 2].map(|node| count(world, node, Family::Rows, &[]));
    pass(&mut world, SECOND_US);
    world.at(0, Event::Client(0, edit("first")));
    pass(&mut world, SECOND_US);
    let cut: Vec<_> = world.pairs().into_iter().filter(|&(a, b)| a == 2 || b == 2).collect();
    cut.iter().for_each(|pair| world.at(0, Event::Cut(*pair)));
    world.at(0, Event::Client(0, ask(Op::Clear { field: field.clone() })));
    world.at(0, Event::Client(2, edit("beside")));
    pass(&mut world, 60 * SECOND_US);
    assert_eq!(rows(&world), [2, 2, 2], "the change and the clear; at n2 two changes");
    cut.iter().for_each(|pair| world.at(0, Event::Heal(*pair)));
    pass(&mut world, 60 * SECOND_US);
    assert_eq!(rows(&world), [3; 3], "the edit needs what was cleared");
    (0..3).for_each(|node| world.check(node).unwrap());
    world.at(0, Event::Client(1, ask(Op::Clear { field: field.clone() })));
    pass(&mut world, 60 * SECOND_US);
    assert_eq!(rows(&world), [0; 3]);
    assert_eq!(world.difference(None).unwrap(), None);
}

fn count(world: &World, node: usize, family: Family, prefix: &[u8]) -> usize {
    let (mut found, end) = (0, if prefix.is_empty() { vec![0xff; 32] } else { keys::after_prefix(prefix) });
    let count = &mut |_: &[u8], _: &[u8]| {
        found += 1;
        ControlFlow::Continue(())
    };
    world.disk(node).scan(family, prefix, &end, count).unwrap();
    found
}
