//! Under which id a node writes, and which process of a peer it listens to, at the edges that whole runs hardly ever meet.

use godwit_core::ids::{Field, Key, Namespace, RecordId, ReplicaId};
use godwit_core::json::Json;
use godwit_core::machine::{Effects, Machine};
use godwit_core::op::{Limits, Op, Terms, Write};
use godwit_core::store::MemStore;
use godwit_core::time::{Mono, Now, Wall};
use godwit_proto::Alarm;
use godwit_proto::incarnation::{CONFIRM_WAIT_US, WAITING_BYTES_MAX};
use godwit_proto::message::{Confirm, Hello, WIRE_VERSION};
use godwit_proto::{Input, LinkId, Message, Node, NodeConfig, Output, Reply, RequestId, Tuning};

/// A process of the node "here" in a cluster of two, which is told things by hand.
struct Process {
    node: Node,
    store: MemStore,
    now_us: u64,
    link: LinkId,
}

impl Process {
    /// On a copy of a directory, in its place.
    fn start(store: &MemStore, seed: u64) -> Self {
        let config = NodeConfig {
            cluster: "test".into(),
            node: "here".into(),
            region: "here".into(),
            members: vec!["there".into()],
            seed,
            same_place: true,
            partitions: 1,
            limits: Limits::default(),
            max_clock_drift_ms: 1000,
            idempotency_window_ms: 86_400_000,
            tuning: Tuning::default(),
        };
        let mut store = store.clone();
        let (node, batch) = Node::open(config, &store).unwrap();
        store.commit(batch);
        Self { node, store, now_us: 1, link: LinkId(0) }
    }

    fn give(&mut self, input: Input) -> Vec<Output> {
        let mut effects = Effects::default();
        let now = Now { mono: Mono(self.now_us), wall: Wall(1_000_000) };
        self.node.handle(now, input, &self.store, &mut effects).unwrap();
        self.store.commit(effects.batch);
        effects.outputs
    }

    fn say(&mut self, message: Message) -> Vec<Output> {
        let bytes = message.encode(WIRE_VERSION).unwrap();
        self.give(Input::Frame { peer: "there".into(), link: self.link, bytes })
    }

    /// A new link to a process of the peer.
    fn meet(&mut self, replica: u64, instance: u64) -> Vec<Output> {
        [self.link_up(), self.greet(replica, instance, None)].concat()
    }

    /// The same to one that asks whether it may go on.
    fn meet_asking(&mut self, replica: u64, instance: u64, resumes: u64) -> Vec<Output> {
        [self.link_up(), self.greet(replica, instance, Some(resumes))].concat()
    }

    fn link_up(&mut self) -> Vec<Output> {
        self.link = LinkId(self.link.0 + 1);
        self.give(Input::Up { peer: "there".into(), link: self.link, wire: WIRE_VERSION })
    }

    fn greet(&mut self, replica: u64, instance: u64, resumes: Option<u64>) -> Vec<Output> {
        self.say(Message::Hello(Hello {
            cluster: "test".into(),
            node: "there".into(),
            region: "there".into(),
            replica: ReplicaId(replica),
            partitions: 1,
            instance,
            resumes,
        }))
    }

    /// The peer confirms that the process that greeted so may go on.
    fn confirm(&mut self, greeting: &[Output]) {
        let hello = greeting.iter().find_map(|output| match output {
            Output::Send { message: Message::Hello(hello), .. } => Some(hello.clone()),
            _ => None,
        });
        let Hello { replica, instance, .. } = hello.expect("it greets on a new link");
        self.say(Message::Confirm(Confirm { replica, instance, follows: true, holds: Vec::new() }));
    }

    fn commit(&mut self, value_bytes: usize) -> Option<Reply> {
        let record = RecordId { namespace: Namespace::new("test").unwrap(), key: Key::new("k").unwrap() };
        let value = Json::parse(&format!("\"{}\"", "v".repeat(value_bytes))).unwrap();
        let writes = vec![Write { record, ops: vec![Op::Set { field: Field::new("f").unwrap(), value }] }];
        self.give(Input::Commit { request: RequestId(1), writes, terms: Terms::default() })
            .into_iter()
            .find_map(|output| if let Output::Reply { reply, .. } = output { Some(reply) } else { None })
    }

    fn stop(&mut self) {
        self.give(Input::Stop { request: RequestId(2) });
    }
}

/// What a process leaves that has heard of replica 2 under the peer's name and stopped cleanly, and its id.
fn left() -> (MemStore, ReplicaId) {
    let mut first = Process::start(&MemStore::default(), 1);
    first.meet(2, 22);
    first.commit(1).expect("it writes under its first id at once");
    first.stop();
    (first.store, first.node.replica())
}

/// A member that runs twice, on a copy of its directory, would confirm two processes that follow one: each of its memories
/// has heard of one of them only.
#[test]
fn a_member_confirms_only_in_the_incarnation_in_which_it_is_known() {
    let (disk, id) = left();
    let mut one = Process::start(&disk, 2);
    assert!(one.node.asks_to_resume());
    let greeting = one.meet(2, 23);
    one.confirm(&greeting);
    assert!(!one.node.asks_to_resume());
    assert_eq!(one.node.replica(), id);

    let mut other = Process::start(&disk, 3);
    let greeting = other.meet(9, 29);
    other.confirm(&greeting);
    assert!(other.node.asks_to_resume(), "the peer's other process has not heard of the first one");
    // Nor does it count when it has become the one last heard of.
    let greeting = other.meet(9, 29);
    other.confirm(&greeting);
    assert!(other.node.asks_to_resume());
    // Nor while it asks itself: it may have been put back.
    let greeting = other.meet_asking(2, 23, 22);
    other.confirm(&greeting);
    assert!(other.node.asks_to_resume());
    other.now_us += CONFIRM_WAIT_US;
    assert!(
        matches!(other.commit(1), Some(Reply::Committed { commit: Some((dot, _)), .. }) if dot.replica != id)
    );
}

/// What it heard after its mark the next process might not know, or one on a copy that was made between.
#[test]
fn a_process_that_has_left_its_mark_confirms_nothing() {
    let confirms = |outputs: &[Output]| {
        let confirm = |output: &Output| matches!(output, Output::Send { message: Message::Confirm(_), .. });
        outputs.iter().any(confirm)
    };
    let mut process = Process::start(&MemStore::default(), 1);
    process.meet(2, 22);
    assert!(confirms(&process.greet(2, 23, Some(22))));
    process.stop();
    let before = process.store.clone();
    assert!(!confirms(&process.greet(2, 24, Some(23))));
    assert_eq!(process.store, before);
}

#[test]
fn commits_held_back_are_bounded_by_bytes() {
    let (disk, id) = left();
    let mut process = Process::start(&disk, 2);
    let large = 1024 * 1024 - 2;
    for _ in 0..WAITING_BYTES_MAX / (large + 2) - 1 {
        assert_eq!(process.commit(large), None);
    }
    assert!(process.node.asks_to_resume());
    assert_eq!(process.commit(1), None, "there is room for a small one");
    assert!(process.commit(large).is_some());
    assert!(!process.node.asks_to_resume());
    assert_ne!(process.node.replica(), id);
}

/// The older of two processes under one name counts as gone once it is silent; the younger one need not be started anew.
#[test]
fn a_refused_process_is_taken_when_the_older_one_is_silent() {
    let mut process = Process::start(&MemStore::default(), 1);
    let alarms =
        |outputs: &[Output]| outputs.iter().any(|o| matches!(o, Output::Alarm(Alarm::TwoProcesses { .. })));
    let closes = |outputs: &[Output]| outputs.iter().any(|o| matches!(o, Output::Close { .. }));
    process.meet(2, 22);
    process.meet(3, 33);
    assert!(alarms(&process.meet(2, 22)), "both live");
    for _ in 0..20 {
        // The older one greets with its contexts, the younger one dials anew.
        process.now_us += 3_000_000;
        assert!(closes(&process.meet(3, 33)));
        assert!(!closes(&process.meet(2, 22)));
    }
    process.now_us += 29_000_000;
    assert!(closes(&process.meet(3, 33)), "it may come back");
    process.now_us += 1_000_000;
    assert!(!closes(&process.meet(3, 33)));
    process.now_us += 60_000_000;
    assert!(!closes(&process.greet(3, 33, None)));
    // It was away only.
    assert!(alarms(&process.meet(2, 22)));
    assert!(closes(&process.meet(3, 33)));
}
