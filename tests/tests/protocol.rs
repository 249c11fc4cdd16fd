//! The protocol's machine at its edges: long logs, junk, foreign peers, stale data.

use godwit_core::context::{Dot, DotRanges, VersionVector};
use godwit_core::delta::{Clear, Delta, EncodedDelta, FieldDelta, Kill, RecordDelta};
use godwit_core::ids::{Field, Key, Namespace, PartitionId, RecordId, ReplicaId};
use godwit_core::machine::{Effects, Machine};
use godwit_core::op::{Limits, Op, Terms, Write};
use godwit_core::partition::Committed;
use godwit_core::read::Value;
use godwit_core::rng::Rng;
use godwit_core::row::FieldType;
use godwit_core::store::{MemStore, StoreError};
use godwit_core::time::{Hlc, Mono, Now, Wall};
use godwit_proto::Alarm;
use godwit_proto::message::{Hello, WIRE_VERSION};
use godwit_proto::{Input, LinkId, Message, Node, NodeConfig, Output, Reply, RequestId, Tuning};
use godwit_sim::cluster::Cluster;

fn record(key: &str) -> RecordId {
    RecordId { namespace: Namespace::new("test").unwrap(), key: Key::new(key).unwrap() }
}

fn incr() -> Vec<Op> {
    vec![Op::Incr { field: Field::new("n").unwrap(), by: 1 }]
}

/// A node with its store, to be told things by hand.
struct Bench {
    node: Node,
    store: MemStore,
    /// What it held when it was set up.
    before: MemStore,
    now_us: u64,
}

const LINK: LinkId = LinkId(1);

impl Bench {
    fn new() -> Self {
        Self::tuned(Tuning::default())
    }

    fn tuned(tuning: Tuning) -> Self {
        let config = NodeConfig {
            cluster: "test".into(),
            node: "here".into(),
            region: "here".into(),
            members: vec!["there".into(), "third".into()],
            seed: 1,
            same_place: true,
            partitions: 4,
            limits: Limits::default(),
            max_clock_drift_ms: 1000,
            idempotency_window_ms: 86_400_000,
            tuning,
        };
        let mut store = MemStore::default();
        let (node, batch) = Node::open(config, &store).unwrap();
        store.commit(batch);
        Self { node, before: store.clone(), store, now_us: 1 }
    }

    /// A node that is linked to a greeted peer, replica 2.
    fn linked() -> Self {
        let mut bench = Self::new();
        bench.give(Input::Up { peer: "there".into(), link: LINK, wire: WIRE_VERSION }).unwrap();
        bench.say(&hello()).unwrap();
        bench.before = bench.store.clone();
        bench
    }

    /// Microseconds pass, and what is due is done.
    fn pass(&mut self, us: u64) -> Vec<Output> {
        self.now_us += us;
        let mut effects = Effects::default();
        self.node.handle_timeout(self.now(), &self.store, &mut effects).unwrap();
        self.store.commit(effects.batch);
        effects.outputs
    }

    fn now(&self) -> Now {
        Now { mono: Mono(self.now_us), wall: Wall(1_000_000) }
    }

    fn give(&mut self, input: Input) -> Result<Vec<Output>, StoreError> {
        let mut effects = Effects::default();
        self.node.handle(self.now(), input, &self.store, &mut effects)?;
        self.store.commit(effects.batch);
        Ok(effects.outputs)
    }

    fn say(&mut self, message: &Message) -> Result<Vec<Output>, StoreError> {
        self.say_bytes(message.encode(WIRE_VERSION).unwrap())
    }

    fn say_bytes(&mut self, bytes: Vec<u8>) -> Result<Vec<Output>, StoreError> {
        self.give(Input::Frame { peer: "there".into(), link: LINK, bytes })
    }

    fn commit(&mut self) -> Reply {
        self.commit_to(&record("k"))
    }

    fn commit_to(&mut self, record: &RecordId) -> Reply {
        let writes = vec![Write { record: record.clone(), ops: incr() }];
        let outputs =
            self.give(Input::Commit { request: RequestId(1), writes, terms: Terms::default() }).unwrap();
        outputs
            .into_iter()
            .find_map(|output| if let Output::Reply { reply, .. } = output { Some(reply) } else { None })
            .unwrap()
    }
}

/// The id under which a node of the bench writes.
fn own() -> ReplicaId {
    Bench::new().node.replica()
}

fn hello() -> Message {
    Message::Hello(Hello {
        cluster: "test".into(),
        node: "there".into(),
        region: "there".into(),
        replica: ReplicaId(2),
        partitions: 4,
        instance: 22,
        resumes: None,
    })
}

/// A record of a partition.
fn record_in(partition: u16) -> RecordId {
    let mut records = (0..).map(|i| record(&format!("k{i}")));
    records.find(|record| record.partition(4) == PartitionId(partition)).unwrap()
}

/// The peer tells how many of this node's commits it has in a partition.
fn has(partition: u16, counter: u64) -> Message {
    let own = Dot { replica: own(), counter };
    Message::Contexts {
        complete: true,
        contexts: vec![(PartitionId(partition), [own].into_iter().collect())],
    }
}

/// The counters of deltas sent, by partition.
fn pushed(outputs: &[Output]) -> Vec<(u16, u64)> {
    let sent = outputs.iter().filter_map(|output| match output {
        Output::Send { message: Message::Deltas { partition, deltas, .. }, .. } => {
            Some((partition.0, deltas))
        }
        _ => None,
    });
    sent.flat_map(|(id, deltas)| {
        deltas.iter().map(move |delta| (id, delta.dots().unwrap().last_dots().last().unwrap().counter))
    })
    .collect()
}

fn closes(outputs: &[Output]) -> Option<&str> {
    outputs.iter().find_map(|output| {
        if let Output::Close { reason, .. } = output { Some(reason.as_str()) } else { None }
    })
}

#[test]
fn a_log_of_many_checkpoints_is_caught_up_from_anywhere() {
    let names = ["a".to_string(), "b".to_string(), "c".to_string()];
    let mut cluster = Cluster::new(&names).unwrap();
    for (upto, from) in [(700, 0), (2_000, 1), (2_500, 0), (5_000, 0)] {
        while cluster.context(from).get(cluster.replica(from)) < upto {
            cluster.commit(from, &record("k"), incr()).unwrap();
        }
        // The third only ever hears from the second.
        cluster.sync(0, 1).unwrap();
        cluster.sync(1, 0).unwrap();
        cluster.sync(1, 2).unwrap();
    }
    let views = cluster.read(2, &record("k")).unwrap();
    assert_eq!(views[0].value, Value::Counter(7_000));
}

#[test]
fn junk_closes_the_link_and_changes_nothing() {
    let mut rng = Rng::new(5);
    let good = [
        Message::Contexts { complete: true, contexts: vec![(PartitionId(1), VersionVector::new())] },
        Message::Want { partition: PartitionId(2), context: VersionVector::new() },
        Message::Deltas { partition: PartitionId(1), deltas: vec![delta(2, 1).encode()], ends_want: true },
    ];
    for _ in 0..3_000 {
        let mut bench = Bench::linked();
        let mut bytes = rng.pick(&good).encode(WIRE_VERSION).unwrap();
        for _ in 0..1 + rng.below(4) {
            let at = rng.below(bytes.len() as u64) as usize;
            match rng.below(3) {
                0 => bytes[at] = rng.draw() as u8,
                1 => bytes.truncate(at.max(1)),
                _ => bytes.insert(at, rng.draw() as u8),
            }
        }
        // Whatever it means, it neither panics nor stops the node.
        bench.say_bytes(bytes).unwrap();
        assert!(matches!(bench.commit(), Reply::Committed { commit: Some(_), .. }));
    }
    let mut bench = Bench::linked();
    let outputs = bench.say_bytes(b"junk".to_vec()).unwrap();
    assert!(closes(&outputs).unwrap().contains("refused"));
    assert_eq!(bench.store, bench.before);
    // The link is down for the node: what still comes on it is passed over.
    assert_eq!(bench.say(&hello()).unwrap(), []);
}

#[test]
fn peers_of_other_clusters_are_refused() {
    let Message::Hello(good) = hello() else { unreachable!() };
    let wrong = [
        (Hello { cluster: "other".into(), ..good.clone() }, "cluster"),
        (Hello { partitions: 8, ..good.clone() }, "partitions"),
        (Hello { node: "else".into(), ..good.clone() }, "certificate"),
        (Hello { replica: own(), ..good.clone() }, "copied data directory"),
    ];
    for (hello, why) in wrong {
        let mut bench = Bench::new();
        bench.give(Input::Up { peer: "there".into(), link: LINK, wire: WIRE_VERSION }).unwrap();
        let outputs = bench.say(&Message::Hello(hello)).unwrap();
        assert!(closes(&outputs).unwrap().contains(why), "{outputs:?}");
    }
}

#[test]
fn deltas_that_break_the_rules_are_refused_whole() {
    let home = record("k").partition(4);
    let elsewhere = PartitionId((home.0 + 1) % 4);
    let bench_says = |partition: PartitionId, delta: EncodedDelta| {
        let mut bench = Bench::linked();
        let outputs =
            bench.say(&Message::Deltas { partition, deltas: vec![delta], ends_want: false }).unwrap();
        assert_eq!(bench.store, bench.before);
        closes(&outputs).expect("the link is closed").to_string()
    };
    assert!(bench_says(elsewhere, real_delta()).contains("does not belong"));
    assert!(bench_says(PartitionId(4), real_delta()).contains("no partition 4"));
    let zero = Delta { dots: DotRanges::single(Dot { replica: ReplicaId(2), counter: 0 }), ..delta(2, 1) };
    assert!(bench_says(home, zero.encode()).contains("at least 1"));
    let own_dep =
        Delta { deps: [Dot { replica: ReplicaId(2), counter: 1 }].into_iter().collect(), ..delta(2, 2) };
    assert!(bench_says(home, own_dep.encode()).contains("own replicas"));
}

#[test]
fn a_peer_that_claims_nonsense_costs_neither_memory_nor_the_node() {
    let mut bench = Bench::linked();
    let claim = |replicas: std::ops::Range<u64>| {
        let dots = replicas.map(|id| Dot { replica: ReplicaId(id), counter: u64::MAX });
        Message::Contexts { complete: true, contexts: vec![(PartitionId(0), dots.collect())] }
    };
    assert_eq!(closes(&bench.say(&claim(10..20)).unwrap()), None);
    let Some(Output::Reply { reply: Reply::Status(status), .. }) =
        bench.give(Input::Status { request: RequestId(2) }).unwrap().pop()
    else {
        panic!("no status");
    };
    assert_eq!(status.peers["there"].commits_ahead, u64::MAX);
    // Vectors that are each small enough add up.
    let mut reason = None;
    for from in 0..3 {
        reason = reason.or(closes(&bench.say(&claim(100 + from * 8_000..100 + (from + 1) * 8_000)).unwrap())
            .map(str::to_string));
    }
    assert!(reason.expect("the link is closed").contains("more than 16384 replicas"));
    let mut bench = Bench::linked();
    assert!(closes(&bench.say(&claim(100..20_000)).unwrap()).unwrap().contains("too many replicas"));
}

#[test]
fn a_peer_that_greets_or_tells_without_end_loses_its_link() {
    let told = Message::Contexts { complete: true, contexts: Vec::new() };
    for (message, bound) in [(hello(), 40), (told, 1_100)] {
        // Spread over time it may say as much as it likes.
        let mut bench = Bench::linked();
        for _ in 0..2 * bound {
            bench.pass(1_000_000);
            assert_eq!(closes(&bench.say(&message).unwrap()), None);
        }
        let mut closed = None;
        for said in 0..bound {
            closed = closed.or(closes(&bench.say(&message).unwrap()).map(|why| (said, why.to_string())));
        }
        let (said, why) = closed.expect("the link is closed");
        assert!(said > 10 && why.contains("in a short time"), "{said}: {why}");
    }
}

#[test]
fn what_is_lost_is_sent_again_however_busy_other_partitions_are() {
    let mut bench = Bench::linked();
    bench.say(&Message::Contexts { complete: true, contexts: Vec::new() }).unwrap();
    // The push of this one is lost.
    bench.commit_to(&record_in(0));
    let mut resent = Vec::new();
    for second in 1..=20 {
        bench.commit_to(&record_in(1));
        bench.say(&has(1, second)).unwrap();
        let outputs = bench.pass(1_000_000);
        resent.extend(pushed(&outputs).into_iter().filter(|(id, _)| *id == 0).map(|push| (second, push)));
    }
    // After five seconds each time, and nothing of the partition that is acknowledged.
    assert_eq!(resent.first(), Some(&(5, (0, 1))));
    assert!((2..=4).contains(&resent.len()), "{resent:?}");
}

#[test]
fn a_peer_that_acknowledges_nothing_is_sent_no_more_than_the_window() {
    let tuning = Tuning { window_bytes: 4096, chunk_bytes: 1024, ..Tuning::default() };
    let mut bench = Bench::tuned(tuning);
    bench.give(Input::Up { peer: "there".into(), link: LINK, wire: WIRE_VERSION }).unwrap();
    bench.say(&hello()).unwrap();
    bench.say(&Message::Contexts { complete: true, contexts: Vec::new() }).unwrap();
    let (mut sent, record) = (Vec::new(), record_in(0));
    for _ in 0..500 {
        let writes = vec![Write { record: record.clone(), ops: incr() }];
        sent.extend(pushed(
            &bench.give(Input::Commit { request: RequestId(1), writes, terms: Terms::default() }).unwrap(),
        ));
        sent.extend(pushed(&bench.pass(1)));
    }
    // Small ones count 128 bytes each.
    assert_eq!(sent, (1..=32).map(|counter| (0, counter)).collect::<Vec<_>>());
    assert_eq!(bench.node.status().peers["there"].in_flight_bytes, 4096);
    // What it acknowledges makes room, and no gap is left.
    let mut more = pushed(&bench.say(&has(0, 10)).unwrap());
    more.extend(pushed(&bench.pass(1)));
    assert_eq!(more.first(), Some(&(0, 33)));
    assert!(more.windows(2).all(|pair| pair[1].1 == pair[0].1 + 1), "{more:?}");
}

#[test]
fn a_backlog_of_one_partition_does_not_hold_up_the_others() {
    let tuning = Tuning { window_bytes: 4096, chunk_bytes: 1024, ..Tuning::default() };
    let mut bench = Bench::tuned(tuning);
    for _ in 0..5_000 {
        bench.commit_to(&record_in(0));
    }
    bench.commit_to(&record_in(3));
    bench.give(Input::Up { peer: "there".into(), link: LINK, wire: WIRE_VERSION }).unwrap();
    bench.say(&hello()).unwrap();
    let mut outputs = bench.say(&Message::Contexts { complete: true, contexts: Vec::new() }).unwrap();
    let mut reached = 0;
    for _ in 0..1_000 {
        for (id, counter) in pushed(&outputs) {
            if id == 3 {
                assert!(reached < 100, "{reached} of the backlog went first");
                return;
            }
            reached = counter;
        }
        outputs = bench.say(&has(0, reached)).unwrap();
        outputs.extend(bench.pass(1_000));
    }
    panic!("the other partition's delta never went");
}

#[test]
fn deltas_that_take_what_they_cannot_have_seen_are_refused() {
    let home = record("k").partition(4);
    let flag = |kills: Vec<Kill>, clear: Option<Clear>| {
        let fields = vec![FieldDelta {
            field: Field::new("f").unwrap(),
            ty: FieldType::FLAG,
            kills,
            rows: vec![],
            gone: vec![],
        }];
        Delta {
            records: vec![RecordDelta { record: record("k"), clears: clear.into_iter().collect(), fields }],
            ..delta(9, 1)
        }
    };
    let unseen = Dot { replica: ReplicaId(3), counter: 5 };
    let kill = flag(vec![Kill { slot: vec![], dot: unseen }], None);
    let clear = flag(vec![], Some(Clear { fields: None, seen: [unseen].into_iter().collect() }));
    for bad in [kill, clear] {
        let mut bench = Bench::linked();
        let outputs = bench
            .say(&Message::Deltas { partition: home, deltas: vec![bad.encode()], ends_want: false })
            .unwrap();
        assert!(closes(&outputs).unwrap().contains("cannot have seen"), "{outputs:?}");
        assert_eq!(bench.store, bench.before);

        // The same when it had to wait: it is forgotten, and nothing with it.
        let mut bench = Bench::linked();
        let waits = Delta { dots: DotRanges::single(Dot { replica: ReplicaId(9), counter: 2 }), ..bad };
        for encoded in [waits.encode(), delta(9, 1).encode()] {
            let outputs = bench
                .say(&Message::Deltas { partition: home, deltas: vec![encoded], ends_want: false })
                .unwrap();
            assert_eq!(closes(&outputs), None);
        }
        assert_eq!(bench.node.context(home).get(ReplicaId(9)), 1);
        assert_eq!(bench.node.status().pending_bytes, 0);
    }
}

#[test]
fn an_answer_comes_in_bounded_steps_and_to_its_end() {
    let mut bench = Bench::linked();
    let home = record("k").partition(4);
    let theirs = Message::Deltas { partition: home, deltas: vec![real_delta()], ends_want: false };
    bench.say(&theirs).unwrap();
    for _ in 0..10_000 {
        bench.commit();
    }
    // Somebody who has all but the very first entry of the log.
    bench.give(Input::Up { peer: "third".into(), link: LinkId(2), wire: WIRE_VERSION }).unwrap();
    let third = |message: Message| Input::Frame {
        peer: "third".into(),
        link: LinkId(2),
        bytes: message.encode(WIRE_VERSION).unwrap(),
    };
    let Message::Hello(hello) = hello() else { unreachable!() };
    let hello = Hello { node: "third".into(), replica: ReplicaId(3), ..hello };
    bench.give(third(Message::Hello(hello))).unwrap();
    let context: VersionVector = [Dot { replica: own(), counter: 10_000 }].into_iter().collect();
    let want = third(Message::Want { partition: home, context });
    assert_eq!(bench.give(want.clone()).unwrap(), []);
    let mut steps = 0;
    let mut answered = Vec::new();
    while bench.node.next_deadline().is_some_and(|at| at <= Mono(bench.now_us)) {
        steps += 1;
        // Asking again meanwhile does not begin it anew.
        assert_eq!(bench.give(want.clone()).unwrap(), []);
        answered.extend(bench.pass(0).into_iter().filter(|output| {
            matches!(output, Output::Send { peer, message: Message::Deltas { .. }, .. } if peer == "third")
        }));
        assert!(steps < 100, "the answer does not end");
    }
    assert!(steps >= 3, "10,001 entries in {steps} steps");
    let ends = |output: &Output| {
        matches!(output, Output::Send { message: Message::Deltas { ends_want: true, .. }, .. })
    };
    assert_eq!(pushed(&answered), [(home.0, 1)]);
    assert_eq!(answered.iter().filter(|output| ends(output)).count(), 1);
}

/// Log entries are what a hostile peer's requests cost: it asks without end, for everything, with ever other contexts, over
/// ever new links and as ever new processes. An honest peer beside it has the log at full speed.
#[test]
fn a_peer_that_asks_for_the_same_without_end_is_answered_ever_later() {
    const ENTRIES: u64 = 2_000;
    let tuning = Tuning { again_burst: 5_000, again_every_us: 100, push_commits_max: 1, ..Tuning::default() };
    let mut bench = Bench::tuned(tuning);
    for _ in 0..ENTRIES {
        bench.commit();
    }
    let home = record("k").partition(4);
    let nothing = Message::Contexts { complete: true, contexts: Vec::new() };
    let ended = |outputs: &[Output], name: &str| {
        let ends = |output: &&Output| matches!(output, Output::Send { peer, message: Message::Deltas { ends_want: true, .. }, .. } if peer == name);
        outputs.iter().filter(ends).count() as u64
    };
    let Message::Hello(first) = hello() else { unreachable!() };
    let (began_us, mut answers) = (bench.now_us, 0);
    for round in 0..8_000 {
        // A new link, by a new process, every so often.
        let link = LinkId(10 + round / 800);
        let give = |bench: &mut Bench, message: &Message| {
            let bytes = message.encode(WIRE_VERSION).unwrap();
            bench.give(Input::Frame { peer: "there".into(), link, bytes }).unwrap()
        };
        if round % 800 == 0 {
            bench.give(Input::Up { peer: "there".into(), link, wire: WIRE_VERSION }).unwrap();
            give(&mut bench, &Message::Hello(Hello { instance: 100 + round, ..first.clone() }));
            give(&mut bench, &nothing);
        }
        // Somebody else's commits: none of the log.
        let context = [Dot { replica: ReplicaId(77), counter: 1 + round }].into_iter().collect();
        let outputs = give(&mut bench, &Message::Want { partition: home, context });
        assert_eq!(closes(&outputs), None);
        for _ in 0..4 {
            answers += ended(&bench.pass(250), "there");
        }
    }
    // Each reads the log: what is free, what may be owed (by the last step too), and what is earned.
    let free = ENTRIES * 5;
    let earned = (bench.now_us - began_us) / 100;
    assert!(answers >= earned / (2 * ENTRIES), "{answers}: answers end");
    assert!(answers * ENTRIES <= free + 5_000 + 1_024 + earned, "{answers} answers");

    // An honest one goes through the log by small answers, and again and again finds nothing new.
    let third = |bench: &mut Bench, message: Message| {
        let bytes = message.encode(WIRE_VERSION).unwrap();
        bench.give(Input::Frame { peer: "third".into(), link: LinkId(2), bytes }).unwrap()
    };
    bench.give(Input::Up { peer: "third".into(), link: LinkId(2), wire: WIRE_VERSION }).unwrap();
    third(&mut bench, Message::Hello(Hello { node: "third".into(), replica: ReplicaId(3), ..first.clone() }));
    third(&mut bench, nothing);
    let mut has = 0;
    for _ in 0..1_000 {
        let context = [Dot { replica: own(), counter: has }].into_iter().filter(|dot| dot.counter > 0);
        third(&mut bench, Message::Want { partition: home, context: context.collect() });
        let mut answered = 0;
        for _ in 0..4 {
            let outputs = bench.pass(1);
            let to_third = outputs.into_iter().filter(|output| {
                matches!(output, Output::Send { peer, message: Message::Deltas { .. }, .. } if peer == "third")
            });
            let to_third: Vec<Output> = to_third.collect();
            answered += ended(&to_third, "third");
            has = pushed(&to_third).last().map_or(has, |(_, counter)| *counter);
        }
        assert_eq!(answered, 1, "at {has}");
        bench.commit();
        bench.commit();
    }
    assert_eq!(has, ENTRIES + 2 * 999);
}

/// An asker that applies others' commits meanwhile asks with ever other contexts: the answer goes on.
#[test]
fn a_long_answer_ends_however_busy_the_asker_is() {
    let mut bench = Bench::linked();
    for _ in 0..10_000 {
        bench.commit();
    }
    let home = record("k").partition(4);
    let mut steps = 0;
    loop {
        steps += 1;
        let context = [Dot { replica: ReplicaId(2), counter: steps }].into_iter().collect();
        bench.say(&Message::Want { partition: home, context }).unwrap();
        let outputs = bench.pass(1);
        let ends = |output: &Output| {
            matches!(output, Output::Send { message: Message::Deltas { ends_want: true, .. }, .. })
        };
        if outputs.iter().any(ends) {
            break;
        }
        assert!(steps < 20, "the answer begins anew and anew");
    }
    assert!(steps > 5, "10,000 entries in {steps} steps");
}

/// What brings nothing is told by its first bytes: the rest may be anything.
#[test]
fn deltas_that_bring_nothing_are_not_decoded() {
    let mut bench = Bench::linked();
    let home = record("k").partition(4);
    let deltas = |deltas: Vec<EncodedDelta>| Message::Deltas { partition: home, deltas, ends_want: false };
    let damaged = |delta: &EncodedDelta| {
        let bytes = delta.as_bytes();
        EncodedDelta::from_bytes(&[bytes, &[0xff; 9]].concat())
    };
    let waits = delta(9, 3).encode();
    bench.say(&deltas(vec![real_delta(), waits.clone()])).unwrap();
    let dot = |counter| Dot { replica: ReplicaId(8), counter };
    let range = DotRanges::between(&[dot(4)].into_iter().collect(), &[dot(9)].into_iter().collect());
    let early = Delta { dots: range, ..delta(8, 5) }.encode();
    let before = bench.store.clone();
    for useless in [real_delta(), waits, early] {
        assert_eq!(closes(&bench.say(&deltas(vec![damaged(&useless)])).unwrap()), None);
        assert_eq!(bench.store, before);
    }
    // What is new is looked at.
    assert!(closes(&bench.say(&deltas(vec![damaged(&delta(9, 1).encode())])).unwrap()).is_some());
}

/// Whoever has, or depends on, commits of this node that it does not hold proves that its data is stale: it goes on
/// under a new id, and gives no old dot to a new commit.
#[test]
fn stale_data_takes_a_new_incarnation() {
    let beyond = Dot { replica: own(), counter: 7 };
    let told = Message::Contexts {
        complete: true,
        contexts: vec![(PartitionId(0), [beyond].into_iter().collect())],
    };
    let stale = Delta { deps: [beyond].into_iter().collect(), ..delta(9, 1) };
    let depends =
        Message::Deltas { partition: PartitionId(0), deltas: vec![stale.encode()], ends_want: false };
    for message in [told, depends] {
        let mut bench = Bench::linked();
        let outputs = bench.say(&message).unwrap();
        assert!(matches!(outputs[0], Output::Alarm(Alarm::Reincarnated { from, .. }) if from == own()));
        let Reply::Committed { commit: Some((dot, _)), .. } = bench.commit() else { panic!() };
        assert_ne!(dot.replica, own());
        assert_eq!(dot.counter, 1);
    }
}

/// A peer that goes on claiming cannot make the node's contexts grow without end.
#[test]
fn a_lying_peer_stops_the_node_in_the_end() {
    let mut bench = Bench::linked();
    for _ in 0..8 {
        let beyond = Dot { replica: bench.node.replica(), counter: 7 };
        let contexts = vec![(PartitionId(0), [beyond].into_iter().collect())];
        bench.say(&Message::Contexts { complete: true, contexts }).unwrap();
    }
    let beyond = Dot { replica: bench.node.replica(), counter: 7 };
    let contexts = vec![(PartitionId(0), [beyond].into_iter().collect())];
    let error = bench.say(&Message::Contexts { complete: true, contexts }).unwrap_err();
    assert!(error.to_string().contains("a peer may be lying"), "{error}");
}

#[test]
fn far_stamps_are_applied_and_not_followed() {
    let mut bench = Bench::linked();
    let home = record("k").partition(4);
    let far = Delta { hlc: Hlc(u64::MAX), ..Delta::decode(&real_delta()).unwrap() };
    let outputs = bench
        .say(&Message::Deltas { partition: home, deltas: vec![far.encode()], ends_want: false })
        .unwrap();
    assert!(outputs.iter().any(|output| matches!(output, Output::Alarm(_))), "{outputs:?}");
    assert_eq!(bench.node.context(home).get(ReplicaId(2)), 1);
    let Reply::Committed { commit: Some((_, hlc)), .. } = bench.commit() else { panic!() };
    assert_eq!(hlc.millis(), 1_000_000);
}

/// A delta without records.
fn delta(replica: u64, counter: u64) -> Delta {
    Delta {
        dots: DotRanges::single(Dot { replica: ReplicaId(replica), counter }),
        hlc: Hlc(1),
        deps: VersionVector::new(),
        requests: Vec::new(),
        records: Vec::new(),
    }
}

/// A delta of replica 2 as a node makes it.
fn real_delta() -> EncodedDelta {
    let mut store = MemStore::default();
    let mut batch = godwit_core::store::Batch::default();
    let home = record("k").partition(4);
    let mut partition = godwit_core::partition::Partition::open(&store, home, ReplicaId(2)).unwrap();
    let writes = [Write { record: record("k"), ops: incr() }];
    let mut txn = godwit_core::store::Txn::new(&store, &mut batch);
    let (terms, limits) = (Terms::default(), Limits::default());
    let done = partition.commit(&mut txn, &writes, &terms, &limits, (0, 0), || Hlc(1)).unwrap();
    let Committed::Applied(applied) = done else { panic!("{done:?}") };
    store.commit(batch);
    applied.encoded
}
