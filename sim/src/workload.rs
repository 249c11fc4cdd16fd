//! What simulated clients do: random commits on tiny key spaces.
//!
//! Three keys, a field for each type and one that any type may take, three members, three values: nearly every
//! commit meets another one. Some operations are refused (two types under one name), some change nothing, and the
//! oracle knows which.

use godwit_core::delta::RequestKey;
use godwit_core::document::Encoded;
use godwit_core::ids::{Field, Key, Member, Namespace, RecordId};
use godwit_core::json::Json;
use godwit_core::op::{Op, Terms, Write};
use godwit_core::rng::Rng;
use godwit_core::types::score::Score;

use crate::spec::{SpecChange, SpecOp};

const KEYS: [&str; 3] = ["k1", "k2", "k3"];
/// The members of sets and zsets.
pub(crate) const MEMBERS: [&str; 3] = ["a", "b", "c"];
/// Those of uniques: three share a register, with the ranks 1, 2 and 3.
const OBSERVED: [&str; 4] = ["u210", "u1142", "u361", "u1"];
const VALUES: [&str; 3] = ["1", "\"two\"", "[3]"];
const FIELD_ANY: &str = "any";
/// Some cannot be added in f64 without rounding.
const SCORES: [f64; 7] = [1.0, -2.0, 0.1, 0.2, 1.1, 1000.0, 0.0];
/// Times to live: shorter than anything, than a cut, than a run, and longer.
const EXPIRE_MS: [u64; 4] = [1, 700, 6_000, 60_000];

/// A counter that is only ever incremented, and only under idempotency keys.
const FIELD_ONCE: &str = "once";

/// What a client asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ask {
    /// The writes.
    pub writes: Vec<Write>,
    /// Their terms.
    pub terms: Terms,
}

impl Ask {
    /// The specification's view: records and operations.
    pub fn spec(&self) -> Vec<(String, Vec<SpecOp>)> {
        let ops = |write: &Write| write.ops.iter().map(|op| self.spec_op(op)).collect();
        self.writes.iter().map(|write| (write.record.to_string(), ops(write))).collect()
    }

    fn spec_op(&self, op: &Op) -> SpecOp {
        match (op, &self.terms.request) {
            (Op::Incr { field, by }, Some(request)) => {
                SpecOp::IncrOnce { field: field.to_string(), by: *by, key: format!("{:02x?}", request.key) }
            }
            (Op::ZIncr { field, member, by }, Some(request)) => SpecOp::ZIncrOnce {
                field: field.to_string(),
                member: member.as_str().to_string(),
                by: by.value(),
                key: format!("{:02x?}", request.key),
            },
            _ => spec_op(op),
        }
    }
}

/// An idempotency key by number, for what is asked for under it.
pub fn request_key(number: u64, writes: &[Write]) -> RequestKey {
    let digest = blake3::hash(format!("{writes:?}").as_bytes());
    let mut asked = [0; 16];
    asked.copy_from_slice(&digest.as_bytes()[..16]);
    RequestKey { key: u128::from(number).to_be_bytes(), asked }
}

/// The namespace of all records.
pub fn namespace() -> Namespace {
    Namespace::new("sim").expect("a constant name")
}

/// The fields that may be zsets.
pub fn zset_fields() -> [Field; 2] {
    [field("zset"), field(FIELD_ANY)]
}

/// The fields that may be sets.
pub fn set_fields() -> [Field; 2] {
    [field("set"), field(FIELD_ANY)]
}

/// A commit to a record that does nothing but increment, for a run in which the windows of idempotency keys end.
pub fn commit_once(rng: &mut Rng) -> Vec<Write> {
    let record = rng.pick(&records()).clone();
    let by = rng.below(20) as i64 - 8;
    vec![Write { record, ops: vec![Op::Incr { field: field(FIELD_ONCE), by }] }]
}

/// The writes without deletions and expiries, which would take what is only ever incremented.
pub fn without_deletions(writes: &mut [Write]) {
    for op in writes.iter_mut().flat_map(|write| &mut write.ops) {
        match op {
            Op::Delete => *op = Op::Clear { field: field("counter") },
            Op::Expire { .. } => *op = Op::Persist,
            _ => {}
        }
    }
}

/// The writes without edits of documents, whose changes would pile up.
pub fn without_edits(writes: &mut [Write]) {
    for op in writes.iter_mut().flat_map(|write| &mut write.ops) {
        if matches!(op, Op::Edit { .. }) {
            *op = Op::Incr { field: field("counter"), by: 1 };
        }
    }
}

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
        Op::ZAdd { field, scores } => {
            let score = |(member, score): &(Member, Score)| (member.as_str().to_string(), score.value());
            SpecOp::ZAdd { field: field.to_string(), scores: scores.iter().map(score).collect() }
        }
        Op::ZIncr { field, member, by } => {
            SpecOp::ZIncr { field: field.to_string(), member: member.as_str().to_string(), by: by.value() }
        }
        Op::ZRemove { field, members } => {
            SpecOp::ZRemove { field: field.to_string(), members: names(members) }
        }
        Op::Observe { field, members } => {
            SpecOp::Observe { field: field.to_string(), members: names(members) }
        }
        Op::Expire { in_ms } => SpecOp::Expire { in_ms: *in_ms },
        Op::Persist => SpecOp::Persist,
        // What imports use: tests of imports hold it to what was exported.
        Op::ExpireAt { .. } | Op::ObserveRanks { .. } => unreachable!("no workload has it"),
        Op::Change { field, changes } => {
            let change = |encoded: &Encoded| SpecChange {
                hash: encoded.change.hash.to_string(),
                deps: encoded.change.deps.iter().map(ToString::to_string).collect(),
                bytes: encoded.bytes.clone(),
            };
            SpecOp::Change { field: field.to_string(), changes: changes.iter().map(change).collect() }
        }
        Op::Edit { .. } => unreachable!("edits are made into changes before they are asked for"),
        Op::Clear { field } => SpecOp::Clear { field: field.to_string() },
        Op::Delete => SpecOp::Delete,
    }
}

fn ops(rng: &mut Rng) -> Vec<Op> {
    (0..1 + rng.below(3)).map(|_| op(rng)).collect()
}

fn op(rng: &mut Rng) -> Op {
    let kind = rng.below(29);
    let usual = match kind {
        0..=2 => "register",
        3..=6 => "counter",
        7..=8 => "flag",
        9..=12 => "set",
        16..=21 => "zset",
        22 => "unique",
        25..=28 => "document",
        _ => *rng.pick(&["register", "counter", "flag", "set", "zset", "unique", "document"]),
    };
    let field = field(if rng.chance(1, 6) { FIELD_ANY } else { usual });
    match kind {
        0..=2 => Op::Set { field, value: value(rng) },
        3..=6 => Op::Incr { field, by: rng.below(20) as i64 - 8 },
        7 => Op::Enable { field },
        8 => Op::Disable { field },
        9..=10 => Op::Add { field, members: members(rng, &MEMBERS) },
        11..=12 => Op::Remove { field, members: members(rng, &MEMBERS) },
        13..=14 => Op::Clear { field },
        15 => Op::Delete,
        16..=17 => {
            let scores = members(rng, &MEMBERS).into_iter().map(|member| (member, score(rng))).collect();
            Op::ZAdd { field, scores }
        }
        18..=20 => Op::ZIncr { field, member: members(rng, &MEMBERS).remove(0), by: score(rng) },
        21 => Op::ZRemove { field, members: members(rng, &MEMBERS) },
        22 => Op::Observe { field, members: members(rng, &OBSERVED) },
        23 => Op::Expire { in_ms: *rng.pick(&EXPIRE_MS) },
        24 => Op::Persist,
        _ => Op::Edit { field, patch: patch(rng) },
    }
}

fn members(rng: &mut Rng, of: &[&'static str]) -> Vec<Member> {
    let count = 1 + rng.below(2);
    (0..count).map(|_| Member::new(*rng.pick(of)).expect("a constant name")).collect()
}

fn score(rng: &mut Rng) -> Score {
    Score::new(*rng.pick(&SCORES)).expect("finite")
}

/// Most fit any document; the others only one that has the text.
fn patch(rng: &mut Rng) -> Json {
    let letter = rng.pick(&MEMBERS);
    let text = match rng.below(5) {
        0 => format!(r#"[{{"op":"add","path":"/{letter}","value":{}}}]"#, rng.below(3)),
        1 => format!(r#"[{{"op":"add","path":"/text","value":"{letter}"}}]"#),
        2 => r#"[{"op":"splice","path":"/text","index":0,"delete":1}]"#.to_string(),
        _ => format!(r#"[{{"op":"splice","path":"/text","index":0,"insert":"{letter}"}}]"#),
    };
    Json::parse(&text).expect("constant JSON")
}

fn value(rng: &mut Rng) -> Json {
    Json::parse(rng.pick::<&str>(&VALUES)).expect("constant JSON")
}

fn field(name: &str) -> Field {
    Field::new(name).expect("a constant name")
}

fn record(key: &str) -> RecordId {
    RecordId { namespace: namespace(), key: Key::new(key).expect("a constant name") }
}
