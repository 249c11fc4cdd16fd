//! Golden bytes: what is on disk and on the wire is a promise to every later version.

use std::ops::ControlFlow;

use expect_test::{Expect, expect};
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

/// Everything that one commit of every operation, and a clear by another replica, leave in a store.
fn written() -> (MemStore, Vec<String>) {
    let record = RecordId { namespace: Namespace::new("ns").unwrap(), key: Key::new("k").unwrap() };
    let member = |name: &str| Member::new(name).unwrap();
    let mut deltas = Vec::new();
    let mut commit = |store: &mut MemStore, replica: u64, ops: Vec<Op>| {
        let mut partition = Partition::open(store, PartitionId(7), ReplicaId(replica)).unwrap();
        let mut batch = Batch::default();
        let writes = [Write { record: record.clone(), ops }];
        let mut txn = Txn::new(store, &mut batch);
        let stamp = || Hlc((1_700_000_000_000 << 16) + replica);
        let (terms, limits) = (Terms::default(), Limits::default());
        let done = partition.commit(&mut txn, &writes, &terms, &limits, (0, 0), stamp).unwrap();
        let Committed::Applied(applied) = done else { panic!("{done:?}") };
        store.commit(batch);
        deltas.push(hex(applied.encoded.as_bytes()));
    };
    let mut store = MemStore::default();
    let ops = vec![
        Op::Set { field: field("r"), value: Json::parse("{\"a\": [1, \"é\"]}").unwrap() },
        Op::Incr { field: field("c"), by: -3 },
        Op::Enable { field: field("f") },
        Op::Add { field: field("s"), members: vec![member("m"), member("n")] },
    ];
    commit(&mut store, 1, ops);
    let ops = vec![
        Op::Clear { field: field("c") },
        Op::Remove { field: field("s"), members: vec![member("n")] },
        Op::Clear { field: field("f") },
    ];
    commit(&mut store, 2, ops);
    (store, deltas)
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
