//! Golden bytes: what is on disk and on the wire is a promise to every later version.

use std::ops::ControlFlow;

use expect_test::{Expect, expect};
use godwit_core::document::{Document, Patch};
use godwit_core::ids::{Field, Key, Member, Namespace, PartitionId, RecordId, ReplicaId};
use godwit_core::json::Json;
use godwit_core::op::{Limits, Op, Terms, Write};
use godwit_core::partition::{Committed, Partition};
use godwit_core::store::{Batch, Family, MemStore, StoreRead, Txn};
use godwit_core::time::Hlc;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn field(name: &str) -> Field {
    Field::new(name).unwrap()
}

/// What commits of replicas leave in a store, and their deltas.
fn made(commits: impl IntoIterator<Item = (u64, Vec<Op>)>) -> (MemStore, Vec<String>) {
    let record = RecordId { namespace: Namespace::new("ns").unwrap(), key: Key::new("k").unwrap() };
    let (mut store, mut deltas) = (MemStore::default(), Vec::new());
    for (replica, ops) in commits {
        let mut partition = Partition::open(&store, PartitionId(7), ReplicaId(replica)).unwrap();
        let mut batch = Batch::default();
        let writes = [Write { record: record.clone(), ops }];
        let mut txn = Txn::new(&store, &mut batch);
        let stamp = || Hlc((1_700_000_000_000 << 16) + replica);
        let (terms, limits) = (Terms::default(), Limits::default());
        let done = partition.commit(&mut txn, &writes, &terms, &limits, (0, 0), stamp).unwrap();
        let Committed::Applied(applied) = done else { panic!("{done:?}") };
        store.commit(batch);
        deltas.push(hex(applied.encoded.as_bytes()));
    }
    (store, deltas)
}

/// Everything that one commit of every operation, and a clear by another replica, leave in a store.
fn written() -> (MemStore, Vec<String>) {
    let member = |name: &str| Member::new(name).unwrap();
    let first = vec![
        Op::Set { field: field("r"), value: Json::parse("{\"a\": [1, \"é\"]}").unwrap() },
        Op::Incr { field: field("c"), by: -3 },
        Op::Enable { field: field("f") },
        Op::Add { field: field("s"), members: vec![member("m"), member("n")] },
    ];
    let second = vec![
        Op::Clear { field: field("c") },
        Op::Remove { field: field("s"), members: vec![member("n")] },
        Op::Clear { field: field("f") },
    ];
    made([(1, first), (2, second)])
}

/// A change of a document, and a clear of it by another replica.
#[test]
fn a_document() {
    let patch = Patch::parse(&Json::parse(r#"[{"op":"add","path":"/t","value":"é"}]"#).unwrap()).unwrap();
    let change = Document::default().edit(&[7; 16], 1_700_000_000, &patch).unwrap().unwrap();
    let change = vec![Op::Change { field: field("d"), changes: vec![change] }];
    let (store, deltas) = made([(1, change), (2, vec![Op::Clear { field: field("d") }])]);
    let mut rows = String::new();
    let mut line = |key: &[u8], value: &[u8]| {
        rows += &format!("{} = {}\n", hex(key), hex(value));
        ControlFlow::Continue(())
    };
    store.scan(Family::Rows, &[], &[0xff; 8], &mut line).unwrap();
    expect![[r#"
        0007d157d54bf9c0ca9f6e73006b00640023000000000000000002 = 0101fd02000068e5cf8b01050101010100
        0007d157d54bf9c0ca9f6e73006b006400230164b2d8e73d1da53ccadab7bf0bbf51aa43bd4bd5e3c0c4d57f3cb92d995d2e920000000000000001 = 0101fd01000068e5cf8b0155856f4a8364b2d8e7014b001007070707070707070707070707070707010180e2cfaa0600000901040204130415053402420356035702700200017f0000017f0100017f007f0174000101017e04017e0026c3a90200
    "#]].assert_eq(&rows);
    expect![[r#"
        010101fd01000068e5cf8b010001026e73016b00010164230001210164b2d8e73d1da53ccadab7bf0bbf51aa43bd4bd5e3c0c4d57f3cb92d995d2e9255856f4a8364b2d8e7014b001007070707070707070707070707070707010180e2cfaa0600000901040204130415053402420356035702700200017f0000017f0100017f007f0174000101017e04017e0026c3a90200
        010201fd02000068e5cf8b0101010101026e73016b000101642300010100050101010100"#]].assert_eq(&deltas.join("\n"));
}

fn check(family: Family, expected: &Expect) {
    let mut lines = String::new();
    let everything = (&[][..], &[0xff; 8][..]);
    written()
        .0
        .scan(family, everything.0, everything.1, &mut |key, value| {
            lines.push_str(&format!("{} = {}\n", hex(key), hex(value)));
            ControlFlow::Continue(())
        })
        .unwrap();
    expected.assert_eq(&lines);
}

#[test]
fn rows() {
    check(
        Family::Rows,
        &expect![[r#"
        0007d157d54bf9c0ca9f6e73006b00630021000000000000000001 = 0101fd01000068e5cf8b01050105010100
        0007d157d54bf9c0ca9f6e73006b006300210100000000000000010000000000000002 = 0101fd02000068e5cf8b0103010105
        0007d157d54bf9c0ca9f6e73006b0072004100000000000000010000000000000001 = 0101fd01000068e5cf8b010e7b2261223a5b312c22c3a9225d7d
        0007d157d54bf9c0ca9f6e73006b007300026d000000000000000001 = 0101fd01000068e5cf8b0100
    "#]],
    );
}

#[test]
fn marks() {
    check(
        Family::Keys,
        &expect![[r#"
        6e73006b = 01
    "#]],
    );
}

#[test]
fn meta() {
    check(
        Family::Meta,
        &expect![[r#"
            706172746974696f6e2f0007 = 01020101020102fb0004
        "#]],
    );
}

#[test]
fn deltas_in_the_log_are_those_on_the_wire() {
    let (store, deltas) = written();
    expect![[r#"
        010101fd01000068e5cf8b010001026e73016b000401632100010100050105010100016601000100000172410001000e7b2261223a5b312c22c3a9225d7d0173020002026d0000026e0000
        010201fd02000068e5cf8b0101010101026e73016b0101010166010101020163210001090100000000000000010301010501730201026e00010100"#]].assert_eq(&deltas.join("\n"));
    for (index, delta) in deltas.iter().enumerate() {
        let key = godwit_core::keys::log_entry(PartitionId(7), index as u64 + 1);
        assert_eq!(store.get(Family::Log, &key).unwrap().map(|bytes| hex(&bytes)).as_ref(), Some(delta));
    }
}

/// Commits that only format 2 can say, and what a node keeps besides rows: by keyed increments, a clear that is not swept, an
/// interval of two origins with a kill, a clear and slots that are gone.
mod format2 {
    use super::*;
    use godwit_core::context::{Dot, DotRanges, VersionVector};
    use godwit_core::delta::{
        Clear, Delta, EncodedDelta, FieldDelta, Kill, RecordDelta, Request, RequestKey, RowWrite,
    };
    use godwit_core::machine::{Effects, Machine};
    use godwit_core::partition::Sizes;
    use godwit_core::row::FieldType;
    use godwit_core::time::{Mono, Now, Wall};
    use godwit_proto::message::{Confirm, Hello, WIRE_OLDEST, WIRE_VERSION};
    use godwit_proto::{Input, LinkId, Message, Node, NodeConfig, Tuning};

    fn lines(store: &MemStore, family: Family) -> String {
        let mut lines = String::new();
        store
            .scan(family, &[], &[0xff; 8], &mut |key, value| {
                lines.push_str(format!("{} = {}", hex(key), hex(value)).trim_end());
                lines.push('\n');
                ControlFlow::Continue(())
            })
            .unwrap();
        lines
    }

    fn record() -> RecordId {
        RecordId { namespace: Namespace::new("ns").unwrap(), key: Key::new("k").unwrap() }
    }

    /// A keyed increment and two members, then a clear that is put off.
    fn kept() -> (MemStore, Vec<String>) {
        let mut store = MemStore::default();
        let sizes = Sizes { clear_rows: 1, ..Sizes::default() };
        let mut partition = Partition::open_with(&store, PartitionId(7), ReplicaId(1), sizes).unwrap();
        let members = ["m", "n"].map(|name| Member::new(name).unwrap()).to_vec();
        let request = Some(RequestKey { key: [0xaa; 16], asked: [0xbb; 16] });
        let commits = [
            (vec![Op::Incr { field: field("c"), by: 5 }, Op::Add { field: field("s"), members }], request),
            (vec![Op::Clear { field: field("s") }], None),
        ];
        let mut deltas = Vec::new();
        for (ops, request) in commits {
            let mut batch = Batch::default();
            let mut txn = Txn::new(&store, &mut batch);
            let (writes, terms) = ([Write { record: record(), ops }], Terms { seen: None, request });
            let stamp = || Hlc(1_700_000_000_000 << 16);
            let done =
                partition.commit(&mut txn, &writes, &terms, &Limits::default(), (0, 0), stamp).unwrap();
            let Committed::Applied(applied) = done else { panic!("{done:?}") };
            deltas.push(hex(applied.encoded.as_bytes()));
            store.commit(batch);
        }
        (store, deltas)
    }

    #[test]
    fn a_commit_with_an_idempotency_key() {
        expect!["0201010101fd00000068e5cf8b010001026e73aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaabbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb0101fd00000068e5cf8b0101026e73016b0002016303000112aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa00000101fd00000068e5cf8b0102010a000173020002026d000101fd00000068e5cf8b0100026e000101fd00000068e5cf8b010000"].assert_eq(&kept().1[0]);
    }

    #[test]
    fn idempotency_keys() {
        expect![[r#"
            006e7300aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa0007 = 01bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb010101fd00000068e5cf8b01fd0068e5cf8b010000
            010000018bcfe568006e7300aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa0007 =
        "#]].assert_eq(&lines(&kept().0, Family::Requests));
    }

    #[test]
    fn states_of_fields() {
        expect![[r#"
            0007d157d54bf9c0ca9f6e73006b00630003 = 010000010a01
            0007d157d54bf9c0ca9f6e73006b00730002 = 010101010100010000000000
        "#]]
        .assert_eq(&lines(&kept().0, Family::Fields));
    }

    #[test]
    fn jobs_and_the_partition() {
        expect![[r#"
            6a6f622f0007d157d54bf9c0ca9f6e73006b00730002 =
            706172746974696f6e2f0007 = 0101010202fb0004
        "#]]
        .assert_eq(&lines(&kept().0, Family::Meta));
    }

    fn interval() -> Delta {
        let dot = |replica, counter| Dot { replica: ReplicaId(replica), counter };
        let dots = DotRanges::between(
            &[dot(1, 2)].into_iter().collect(),
            &[dot(1, 300), dot(2, 1)].into_iter().collect(),
        );
        let seen = [dot(1, 300), dot(3, 1)].into_iter().collect();
        let fields = vec![FieldDelta {
            field: field("f"),
            ty: FieldType::SET,
            kills: vec![Kill { slot: b"m\0".to_vec(), dot: dot(3, 1) }],
            rows: vec![RowWrite { slot: b"m\0".to_vec(), dot: dot(2, 1), hlc: Hlc(7), payload: Vec::new() }],
            gone: vec![b"n\0".to_vec()],
        }];
        let id = RequestKey { key: [0xaa; 16], asked: [0xbb; 16] };
        Delta {
            dots,
            hlc: Hlc(9),
            deps: [dot(3, 1)].into_iter().collect(),
            requests: vec![Request { namespace: record().namespace, id, dot: dot(1, 3), hlc: Hlc(8) }],
            records: vec![RecordDelta {
                record: record(),
                clears: vec![Clear { fields: Some(vec![field("g")]), seen }],
                fields,
            }],
        }
    }

    /// Where a log is cut: checkpoints, its floor, and checkpoints of the format before.
    #[test]
    fn checkpoints_and_the_floor() {
        let mut store = MemStore::default();
        let sizes = Sizes { checkpoint_entries: 1, ..Sizes::default() };
        let mut partition = Partition::open_with(&store, PartitionId(7), ReplicaId(1), sizes).unwrap();
        let mut batch = Batch::default();
        let mut txn = Txn::new(&store, &mut batch);
        for _ in 0..3 {
            let writes = [Write { record: record(), ops: vec![Op::Incr { field: field("c"), by: 1 }] }];
            let (terms, limits, times) = (Terms::default(), Limits::default(), (1_700_000_000_000, 0));
            partition.commit(&mut txn, &writes, &terms, &limits, times, || Hlc(1)).unwrap();
        }
        assert_eq!(partition.truncate(&mut txn, 1, 0), Ok(Some(2)));
        store.commit(batch);
        store.trim(PartitionId(7), 2);
        expect![[r#"
            0007000000000000000002 = 010102010001026e73016b000101632100010100050104010200
            0007000000000000000003 = 010103010001026e73016b000101632100010100050106010300
            0007010000000000000001 = 020101011afd0068e5cf8b010000
            0007010000000000000002 = 0201010234fd0068e5cf8b010000
            0007010000000000000003 = 020101034efd0068e5cf8b010000
        "#]]
        .assert_eq(&lines(&store, Family::Log));
        expect![[r#"
            6c6f675f666c6f6f722f0007 = 010202010101
            706172746974696f6e2f0007 = 010101030301
        "#]]
        .assert_eq(&lines(&store, Family::Meta));
        // The checkpoint before the first entry, as format 1 had it.
        let one: VersionVector = [Dot { replica: ReplicaId(1), counter: 1 }].into_iter().collect();
        let format1 = godwit_core::codec::encode(1, &one);
        assert_eq!(hex(&format1), "01010101");
        let mut batch = Batch::default();
        batch.put(Family::Log, godwit_core::keys::log_checkpoint(PartitionId(7), 1), format1);
        store.commit(batch);
        let partition = Partition::open(&store, PartitionId(7), ReplicaId(1)).unwrap();
        assert_eq!(partition.own_log_position(&store, 1), Ok(Some(2)));
        assert_eq!(partition.own_log_position(&store, 0), Ok(None));
    }

    #[test]
    fn an_interval() {
        let encoded = interval().encode();
        expect!["02020103fb2c010201010901030101026e73aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaabbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb01030801026e73016b01010101670201fb2c0103010101660201026d00030101026d000201070001026e00"].assert_eq(&hex(encoded.as_bytes()));
        assert_eq!(Delta::decode(&encoded), Ok(interval()));
    }

    #[test]
    fn messages() {
        let vector = || [Dot { replica: ReplicaId(7), counter: 300 }].into_iter().collect();
        let hello = Hello {
            cluster: "c".into(),
            node: "n".into(),
            region: "r".into(),
            replica: ReplicaId(1),
            partitions: 64,
            instance: 5,
            resumes: Some(4),
        };
        let deltas = vec![EncodedDelta::from_bytes(&[1, 2])];
        let confirm =
            Confirm { replica: ReplicaId(1), instance: 5, follows: true, holds: vec![(PartitionId(2), 9)] };
        let all = [
            Message::Hello(hello),
            Message::Refuse { reason: "no".into() },
            Message::Contexts { complete: true, contexts: vec![(PartitionId(3), vector())] },
            Message::Deltas { partition: PartitionId(1), deltas, ends_want: true },
            Message::Want { partition: PartitionId(2), context: vector() },
            Message::Confirm(confirm),
            Message::Gone { partition: PartitionId(2) },
        ];
        let mut lines = String::new();
        for message in all {
            let bytes = message.encode(WIRE_VERSION).unwrap();
            let mut before = bytes.clone();
            before[0] = 2;
            let is_news = matches!(message, Message::Gone { .. });
            assert_eq!(message.encode(2), (!is_news).then_some(before.clone()));
            assert_eq!(Message::decode(2, &before).ok(), (!is_news).then(|| message.clone()));
            assert_eq!(Message::decode(WIRE_VERSION, &bytes).as_ref(), Ok(&message));
            lines.push_str(&format!("{} = {}\n", message.name(), hex(&bytes)));
        }
        expect![[r#"
            hello = 03000163016e01720140050104
            refuse = 0301026e6f
            contexts = 03020101030107fb2c01
            deltas = 0303010102010201
            want = 0304020107fb2c01
            confirm = 0305010501010209
            gone = 030602
        "#]]
        .assert_eq(&lines);
    }

    /// What a node of the previous release is sent: its deltas in format 1, without idempotency keys, and no intervals.
    #[test]
    fn messages_of_wire_version_1() {
        let hex_bytes = |text: &str| -> Vec<u8> {
            (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
        };
        let (format1, format2) = (written().1, kept().1);
        let deltas = [&format1[1], &format2[0]].map(|delta| EncodedDelta::from_bytes(&hex_bytes(delta)));
        let deltas = deltas.into_iter().chain([interval().encode()]).collect();
        let sent = Message::Deltas { partition: PartitionId(7), deltas, ends_want: true };
        let bytes = sent.encode(WIRE_OLDEST).unwrap();
        expect!["010307023b010201fd02000068e5cf8b0101010101026e73016b0101010166010101020163210001090100000000000000010301010501730201026e000101003d010101fd00000068e5cf8b010001026e73016b0002016303000112aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa000002010a0173020002026d0000026e000001"].assert_eq(&hex(&bytes));
        let Ok(Message::Deltas { partition, deltas, ends_want }) = Message::decode(WIRE_OLDEST, &bytes)
        else {
            panic!("it is read again");
        };
        assert_eq!((partition, deltas.len(), ends_want), (PartitionId(7), 2, true));
        assert_eq!(hex(deltas[0].as_bytes()), format1[1]);
        let keyless = Delta::decode(&deltas[1]).unwrap();
        let keyed = Delta::decode(&EncodedDelta::from_bytes(&hex_bytes(&format2[0]))).unwrap();
        assert_eq!(keyless, Delta { requests: Vec::new(), ..keyed });
    }

    /// The clock, the incarnation, and what was heard of a peer.
    #[test]
    fn a_node() {
        let config = NodeConfig {
            cluster: "c".into(),
            node: "n".into(),
            region: "r".into(),
            members: vec!["p".into()],
            seed: 1,
            same_place: true,
            partitions: 1,
            limits: Limits::default(),
            max_clock_drift_ms: 1000,
            idempotency_window_ms: 1000,
            tuning: Tuning::default(),
        };
        let mut store = MemStore::default();
        let (mut node, batch) = Node::open(config, &store).unwrap();
        store.commit(batch);
        let hello = Hello {
            cluster: "c".into(),
            node: "p".into(),
            region: "r".into(),
            replica: ReplicaId(2),
            partitions: 1,
            instance: 300,
            resumes: None,
        };
        let bytes = Message::Hello(hello).encode(WIRE_VERSION).unwrap();
        let writes = vec![Write { record: record(), ops: vec![Op::Enable { field: field("f") }] }];
        let inputs = [
            Input::Up { peer: "p".into(), link: LinkId(1), wire: WIRE_VERSION },
            Input::Frame { peer: "p".into(), link: LinkId(1), bytes },
            Input::Commit { request: godwit_proto::RequestId(1), writes, terms: Terms::default() },
        ];
        for input in inputs {
            let mut effects = Effects::default();
            node.handle(Now { mono: Mono(1), wall: Wall(1_000_000) }, input, &store, &mut effects).unwrap();
            store.commit(effects.batch);
        }
        expect![[r#"
            636c6f636b = 01fd000040420f000000
            696e6361726e6174696f6e = 01fd67ec8e65a19df3fbfdc15c0289ec2d0a9100
            696e7374616e63652f70 = 0102fb2c01
            706172746974696f6e2f0000 = 0101fd67ec8e65a19df3fb0101fb0004
        "#]]
        .assert_eq(&lines(&store, Family::Meta));
    }
}
