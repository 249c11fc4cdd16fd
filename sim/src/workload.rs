//! What simulated clients do: random commits on tiny key spaces.
//!
//! Three keys, a field for each type and one that any type may take, three members, three values: nearly every
//! commit meets another one. Some operations are refused (two types under one name), some change nothing, and the
//! oracle knows which.

use godwit_core::ids::{Field, Key, Member, Namespace, RecordId};
use godwit_core::json::Json;
use godwit_core::op::{Op, Write};
use godwit_core::rng::Rng;

use crate::spec::SpecOp;

const KEYS: [&str; 3] = ["k1", "k2", "k3"];
const MEMBERS: [&str; 3] = ["a", "b", "c"];
const VALUES: [&str; 3] = ["1", "\"two\"", "[3]"];
const FIELD_ANY: &str = "any";

/// The records that a workload touches.
pub fn records() -> Vec<RecordId> {
    KEYS.iter().map(|key| record(key)).collect()
}

/// A random commit: one write of one to three operations, sometimes a second write to a record of the same
/// partition.
pub fn commit(rng: &mut Rng, partitions: u16) -> Vec<Write> {
    let records = records();
    let first = rng.pick(&records).clone();
    let home = first.partition(partitions);
    let mut writes = vec![Write { ops: ops(rng), record: first.clone() }];
    if rng.chance(1, 8)
        && let Some(other) =
            records.into_iter().find(|record| *record != first && record.partition(partitions) == home)
    {
        writes.push(Write { record: other, ops: ops(rng) });
    }
    writes
}

/// A random commit to one record.
pub fn commit_to(rng: &mut Rng, record: &RecordId) -> Vec<Write> {
    vec![Write { ops: ops(rng), record: record.clone() }]
}

/// The specification's view of an operation.
pub fn spec_op(op: &Op) -> SpecOp {
    let names = |members: &[Member]| members.iter().map(|member| member.as_str().to_string()).collect();
    match op {
        Op::Set { field, value } => {
            SpecOp::Set { field: field.to_string(), value: value.as_str().to_string() }
        }
        Op::Incr { field, by } => SpecOp::Incr { field: field.to_string(), by: *by },
        Op::Enable { field } => SpecOp::Enable { field: field.to_string() },
        Op::Disable { field } => SpecOp::Disable { field: field.to_string() },
        Op::Add { field, members } => SpecOp::Add { field: field.to_string(), members: names(members) },
        Op::Remove { field, members } => SpecOp::Remove { field: field.to_string(), members: names(members) },
        Op::Clear { field } => SpecOp::Clear { field: field.to_string() },
        Op::Delete => SpecOp::Delete,
    }
}

fn ops(rng: &mut Rng) -> Vec<Op> {
    (0..1 + rng.below(3)).map(|_| op(rng)).collect()
}

fn op(rng: &mut Rng) -> Op {
    let kind = rng.below(16);
    let usual = match kind {
        0..=2 => "register",
        3..=6 => "counter",
        7..=8 => "flag",
        9..=12 => "set",
        _ => *rng.pick(&["register", "counter", "flag", "set"]),
    };
    let field = field(if rng.chance(1, 6) { FIELD_ANY } else { usual });
    match kind {
        0..=2 => Op::Set { field, value: value(rng) },
        3..=6 => Op::Incr { field, by: rng.below(20) as i64 - 8 },
        7 => Op::Enable { field },
        8 => Op::Disable { field },
        9..=10 => Op::Add { field, members: members(rng) },
        11..=12 => Op::Remove { field, members: members(rng) },
        13..=14 => Op::Clear { field },
        _ => Op::Delete,
    }
}

fn members(rng: &mut Rng) -> Vec<Member> {
    let count = 1 + rng.below(2);
    (0..count).map(|_| Member::new(*rng.pick(&MEMBERS)).expect("a constant name")).collect()
}

fn value(rng: &mut Rng) -> Json {
    Json::parse(rng.pick::<&str>(&VALUES)).expect("constant JSON")
}

fn field(name: &str) -> Field {
    Field::new(name).expect("a constant name")
}

fn record(key: &str) -> RecordId {
    let namespace = Namespace::new("sim").expect("a constant name");
    RecordId { namespace, key: Key::new(key).expect("a constant name") }
}
