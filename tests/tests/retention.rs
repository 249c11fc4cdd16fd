//! A log that is truncated: nodes, driven by hand, of which some are further behind than it reaches, and are repaired.

use std::collections::{BTreeMap, VecDeque};
use std::ops::ControlFlow;

use godwit_core::ids::{Field, Key, Namespace, PartitionId, RecordId};
use godwit_core::json::Json;
use godwit_core::keys;
use godwit_core::machine::{Effects, Machine};
use godwit_core::op::{Limits, Op, Terms, Write};
use godwit_core::partition::Sizes;
use godwit_core::repair;
use godwit_core::store::{Family, MemStore, StoreRead};
use godwit_core::time::{Mono, Now, Wall};
use godwit_proto::Alarm;
use godwit_proto::message::WIRE_VERSION;
use godwit_proto::status::Status;
use godwit_proto::{Input, LinkId, Message, Node, NodeConfig, Output, ReaderId, Reply, RequestId, Tuning};

const NAMES: [&str; 3] = ["a", "b", "c"];
const PARTITIONS: u16 = 2;
/// What the log of a node that truncates may have, in bytes.
const LOG_BYTES: u64 = 40_000;
/// Above the bytes of one interval of one partition: eight entries of at most 400 bytes.
const INTERVAL_BYTES: u64 = 8 * 400;
const STEP_US: u64 = 10_000;

struct Member {
    config: NodeConfig,
    node: Node,
    store: MemStore,
    /// Whether garbage is removed.
    trims: bool,
    /// What repairs read.
    snapshots: BTreeMap<ReaderId, MemStore>,
}

/// Nodes and the links between them, on which nothing is lost while they are up.
struct World {
    members: Vec<Member>,
    links: Vec<(usize, usize, LinkId)>,
    /// Sender, receiver, link, bytes.
    wire: VecDeque<(usize, usize, LinkId, Vec<u8>)>,
    /// Who read what.
    reads: VecDeque<(usize, Input)>,
    /// All that was ever put out, but for replies: by whom, and what.
    outputs: Vec<(usize, Output)>,
    now_us: u64,
    wall_ms: u64,
    next: u64,
}

fn truncating() -> Tuning {
    Tuning { log_bytes_max: LOG_BYTES, ..keeping() }
}

fn keeping() -> Tuning {
    let sizes = Sizes { checkpoint_entries: 8, ..Sizes::default() };
    Tuning { log_age_max_ms: 1_000_000, sizes, ..Tuning::default() }
}

impl World {
    fn new(tunings: [Tuning; 3]) -> Self {
        let members = NAMES.iter().zip(tunings).zip(1..).map(|((name, tuning), seed)| {
            let config = NodeConfig {
                cluster: "test".into(),
                node: name.to_string(),
                region: "r".into(),
                members: NAMES.iter().filter(|other| *other != name).map(ToString::to_string).collect(),
                seed,
                same_place: true,
                partitions: PARTITIONS,
                limits: Limits::default(),
                max_clock_drift_ms: 1000,
                idempotency_window_ms: 1000,
                tuning,
            };
            let mut store = MemStore::default();
            let (node, batch) = Node::open(config.clone(), &store).unwrap();
            store.commit(batch);
            Member { config, node, store, trims: true, snapshots: BTreeMap::new() }
        });
        let members = members.collect();
        let (links, wire, reads) = (Vec::new(), VecDeque::new(), VecDeque::new());
        Self { members, links, wire, reads, outputs: Vec::new(), now_us: 1, wall_ms: 5_000_000, next: 0 }
    }

    /// One step of a node: an input, or what is due.
    fn step(&mut self, at: usize, input: Option<Input>) -> Option<Reply> {
        let now = Now { mono: Mono(self.now_us), wall: Wall(self.wall_ms) };
        let Member { node, store, trims, snapshots, .. } = &mut self.members[at];
        let mut effects = Effects::default();
        match input {
            Some(input) => node.handle(now, input, store, &mut effects).unwrap(),
            None => node.handle_timeout(now, store, &mut effects).unwrap(),
        }
        store.commit(effects.batch);
        let mut answer = None;
        for output in effects.outputs {
            match &output {
                Output::Send { peer, link, wire, message } => {
                    let to = NAMES.iter().position(|name| name == peer).unwrap();
                    let bytes = message.encode(*wire).expect("no message beyond the link's version");
                    self.wire.push_back((at, to, *link, bytes));
                }
                Output::Trim { partition, first } if *trims => store.trim(*partition, *first),
                Output::Read { reader, fresh, read, sizes } => {
                    if *fresh {
                        snapshots.insert(*reader, store.clone());
                    }
                    let found = repair::run(&snapshots[reader], read, *sizes).unwrap();
                    self.reads.push_back((at, Input::Read { reader: *reader, found: Box::new(found) }));
                }
                Output::EndRead { reader } => drop(snapshots.remove(reader)),
                Output::Close { reason, .. } => panic!("{} closes a link: {reason}", NAMES[at]),
                Output::Reply { reply, .. } => answer = Some(reply.clone()),
                _ => {}
            }
            if !matches!(output, Output::Reply { .. }) {
                self.outputs.push((at, output));
            }
        }
        answer
    }

    fn deliver(&mut self) {
        loop {
            while let Some((at, read)) = self.reads.pop_front() {
                self.step(at, Some(read));
            }
            let Some((from, to, link, bytes)) = self.wire.pop_front() else { break };
            let is_up = |&(x, y, id): &(usize, usize, LinkId)| id == link && [x, y].contains(&to);
            if self.links.iter().any(is_up) {
                self.step(to, Some(Input::Frame { peer: NAMES[from].into(), link, bytes }));
            }
        }
    }

    /// Time passes.
    fn run(&mut self, us: u64) {
        let end = self.now_us + us;
        while self.now_us < end {
            self.deliver();
            self.now_us += STEP_US;
            self.wall_ms += STEP_US / 1000;
            self.due();
        }
        self.deliver();
    }

    fn due(&mut self) {
        for at in 0..self.members.len() {
            if self.members[at].node.next_deadline().is_some_and(|at| at <= Mono(self.now_us)) {
                self.step(at, None);
            }
        }
    }

    fn link_by(&mut self, a: usize, b: usize, wire: u8) {
        self.next += 1;
        let link = LinkId(self.next);
        self.links.push((a, b, link));
        self.step(a, Some(Input::Up { peer: NAMES[b].into(), link, wire }));
        self.step(b, Some(Input::Up { peer: NAMES[a].into(), link, wire }));
    }

    fn link(&mut self, a: usize, b: usize) {
        self.link_by(a, b, WIRE_VERSION);
    }

    fn cut(&mut self, a: usize, b: usize) {
        let at = self.links.iter().position(|(x, y, _)| (*x, *y) == (a, b)).unwrap();
        let (_, _, link) = self.links.remove(at);
        self.step(a, Some(Input::Down { peer: NAMES[b].into(), link }));
        self.step(b, Some(Input::Down { peer: NAMES[a].into(), link }));
    }

    fn commit(&mut self, at: usize) {
        self.next += 1;
        let key = Key::new(format!("k{}", self.next)).unwrap();
        let record = RecordId { namespace: Namespace::new("ns").unwrap(), key };
        let value = Json::parse(&format!("{:?}", "x".repeat(200))).unwrap();
        let ops = vec![Op::Set { field: Field::new("f").unwrap(), value }];
        let writes = vec![Write { record, ops }];
        let input = Input::Commit { request: RequestId(self.next), writes, terms: Terms::default() };
        let reply = self.step(at, Some(input));
        assert!(matches!(reply, Some(Reply::Committed { .. })), "{reply:?}");
    }

    fn commits(&mut self, at: usize, count: usize) {
        for _ in 0..count {
            self.commit(at);
            self.due();
        }
        self.run(1_000_000);
    }

    fn status(&mut self, at: usize) -> Status {
        match self.step(at, Some(Input::Status { request: RequestId(0) })) {
            Some(Reply::Status(status)) => *status,
            other => panic!("{other:?}"),
        }
    }

    fn is_even(&self, a: usize, b: usize) -> bool {
        let context = |at: usize, id| self.members[at].node.context(PartitionId(id));
        (0..PARTITIONS).all(|id| context(a, id) == context(b, id))
    }

    fn reopen(&mut self, at: usize) {
        let Member { config, node, store, .. } = &mut self.members[at];
        config.seed += 100;
        let (opened, batch) = Node::open(config.clone(), store).unwrap();
        store.commit(batch);
        *node = opened;
    }

    /// Who raised an alarm that a log does not reach back, and about whom.
    fn alarms(&self) -> Vec<(usize, PartitionId, &str)> {
        let alarms = self.outputs.iter().filter_map(|(at, output)| match output {
            Output::Alarm(Alarm::LogGone { partition, peer }) => Some((*at, *partition, peer.as_str())),
            _ => None,
        });
        alarms.collect()
    }

    /// Who had a partition repaired, each time.
    fn repaired(&self) -> Vec<usize> {
        let repaired = self.outputs.iter().filter_map(|(at, output)| {
            matches!(output, Output::Alarm(Alarm::Repaired { .. })).then_some(*at)
        });
        repaired.collect()
    }

    fn said_gone(&self, at: usize) -> bool {
        self.outputs.iter().any(|(by, output)| {
            *by == at && matches!(output, Output::Send { message: Message::Gone { .. }, .. })
        })
    }

    /// Entries in a store's logs.
    fn stored_entries(&self, at: usize) -> u64 {
        let mut count = 0;
        for id in 0..PARTITIONS {
            let (from, to) =
                (keys::log_entry(PartitionId(id), 0), keys::log_entry(PartitionId(id), u64::MAX));
            let mut visit = |_: &[u8], _: &[u8]| {
                count += 1;
                ControlFlow::Continue(())
            };
            self.members[at].store.scan(Family::Log, &from, &to, &mut visit).unwrap();
        }
        count
    }
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
