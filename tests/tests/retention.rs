//! A log that is truncated: nodes, driven by hand, of which some are further behind than it reaches, and are repaired.

use godwit_core::ids::PartitionId;
use godwit_core::partition::Sizes;
use godwit_proto::{Message, Output, Tuning};
use godwit_tests::hand::{PARTITIONS, STEP_US, World};

/// What the log of a node that truncates may have, in bytes.
const LOG_BYTES: u64 = 40_000;
/// Above the bytes of one interval of one partition: eight entries of at most 400 bytes.
const INTERVAL_BYTES: u64 = 8 * 400;

fn truncating() -> Tuning {
    Tuning { log_bytes_max: LOG_BYTES, ..keeping() }
}

fn keeping() -> Tuning {
    let sizes = Sizes { checkpoint_entries: 8, ..Sizes::default() };
    Tuning { log_age_max_ms: 1_000_000, sizes, ..Tuning::default() }
}

/// Node a has truncated its log, node c has all of it, node b has nothing.
fn behind(commits: usize) -> World {
    let mut world = World::new([truncating(), keeping(), keeping()]);
    world.link(0, 2);
    world.run(100_000);
    world.commits(0, commits);
    assert!(world.is_even(0, 2) && !world.is_even(0, 1));
    assert!(world.status(0).log_bytes <= LOG_BYTES);
    world
}

#[test]
fn the_log_stays_at_its_size_and_what_is_dropped_is_removed() {
    let mut world = World::new([truncating(), keeping(), keeping()]);
    world.run(2_000_000);
    for _ in 0..3000 {
        world.commit(0);
        let bytes = world.status(0).log_bytes;
        assert!(bytes <= LOG_BYTES + INTERVAL_BYTES * u64::from(PARTITIONS), "{bytes} bytes");
        world.due();
    }
    let entries = world.stored_entries(0);
    assert!((80..250).contains(&entries), "{entries} entries are stored");
}

#[test]
fn what_is_old_is_dropped_too() {
    let mut world = World::new([keeping(), keeping(), keeping()]);
    world.commits(0, 100);
    let before = world.status(0);
    assert_eq!(world.stored_entries(0), 100);
    assert!(before.log_oldest_ms.is_some_and(|ms| ms < world.wall_ms));
    world.wall_ms += 1_000_000;
    world.run(2_000_000);
    // What follows the last checkpoint of each partition stays.
    assert!(world.stored_entries(0) < 16, "{} entries", world.stored_entries(0));
    assert_eq!(world.status(0).log_oldest_ms, None);
}

#[test]
fn one_behind_the_floor_is_served_by_another_that_reaches_back() {
    for commits in [300, 3000] {
        let mut world = behind(commits);
        world.link(0, 1);
        world.run(100_000);
        assert!(world.said_gone(0));
        world.link(1, 2);
        world.run(8_000_000);
        assert!(world.is_even(0, 1), "{commits} commits");
        // Once it is even it is pushed to again.
        world.cut(1, 2);
        world.commits(0, 3);
        assert!(world.is_even(0, 1));
    }
}

#[test]
fn one_behind_every_floor_is_repaired() {
    for commits in [300, 3000] {
        let mut world = behind(commits);
        // Commits of its own, which nobody has.
        world.commits(1, 5);
        world.link(0, 1);
        world.run(10_000_000);
        assert!(world.is_even(0, 1), "{commits} commits");
        assert_eq!(world.repaired(), [1, 1]);
        assert!(world.alarms().is_empty());
        assert_eq!(world.status(1).pending_bytes, 0);
        // Once it is even it is pushed to again.
        world.commits(0, 3);
        world.commits(1, 3);
        assert!(world.is_even(0, 1));
        assert_eq!(world.repaired(), [1, 1]);
        world.link(1, 2);
        world.run(10_000_000);
        assert!(world.is_even(1, 2));
    }
}

#[test]
fn peers_of_older_wire_versions_get_no_gap_and_the_operator_hears_of_them() {
    for wire in [1, 2] {
        let mut world = behind(3000);
        world.link_by(0, 1, wire);
        world.run(20_000_000);
        let mut alarms = world.alarms();
        alarms.sort_unstable();
        assert_eq!(alarms, [(0, PartitionId(0), "b"), (0, PartitionId(1), "b")], "wire version {wire}");
        let status = world.status(1);
        assert_eq!((status.pending_bytes, status.contexts.len()), (0, 0));
    }
}

#[test]
fn garbage_that_was_not_removed_is_named_again_after_a_restart() {
    let mut world = World::new([truncating(), keeping(), keeping()]);
    world.members[0].trims = false;
    world.commits(0, 1000);
    assert_eq!(world.stored_entries(0), 1000);
    world.reopen(0);
    world.members[0].trims = true;
    let before = world.status(0).log_bytes;
    assert!((LOG_BYTES / 2..=LOG_BYTES).contains(&before), "{before} bytes");
    world.run(1_000_000);
    assert_eq!(world.status(0).log_bytes, before);
    assert!(world.stored_entries(0) < 250);
    // One who has the floor is served from it.
    world.reopen(0);
    world.run(1_000_000);
    assert_eq!(world.status(0).log_bytes, before);
}

#[test]
fn a_log_truncated_under_an_answer_ends_it() {
    // Answers of one step each second: the log is truncated meanwhile.
    let slow = Tuning { again_burst: 0, again_every_us: 3_000, relay_bytes: 1 << 30, ..truncating() };
    let mut world = World::new([Tuning { log_bytes_max: 1 << 30, ..slow }, keeping(), keeping()]);
    world.commits(0, 3000);
    let wants = |world: &World| {
        let wants = world.outputs.iter().filter(|(at, output)| {
            *at == 1 && matches!(output, Output::Send { message: Message::Want { .. }, .. })
        });
        wants.count()
    };
    world.link(0, 1);
    while wants(&world) == 0 {
        world.run(STEP_US);
    }
    world.run(2 * STEP_US);
    assert!(!world.is_even(0, 1) && !world.said_gone(0));
    // All that is closed is too old at once.
    world.wall_ms += 1_000_000;
    world.now_us += 2_000_000;
    world.run(10_000_000);
    assert!(world.said_gone(0));
    assert!(world.is_even(0, 1) && !world.repaired().is_empty());
    assert_eq!(world.status(1).pending_bytes, 0);
}
