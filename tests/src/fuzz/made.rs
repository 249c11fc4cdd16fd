//! Names, operations and deltas made of choices: few of each, so that they meet.

use std::collections::BTreeMap;

use godwit_core::codec;
use godwit_core::context::{Dot, DotRanges, VersionVector};
use godwit_core::delta::{Clear, Delta, FieldDelta, Kill, RecordDelta, Request, RequestKey, RowWrite};
use godwit_core::ids::{Field, Key, Member, Namespace, RecordId, ReplicaId};
use godwit_core::json::Json;
use godwit_core::op::{Op, Terms, Write};
use godwit_core::row::FieldType;
use godwit_core::time::Hlc;
use godwit_core::types::exact::Exact;
use godwit_core::types::expiry::Expiry;
use godwit_core::types::score::Score;
use godwit_core::types::{counter, keyed, presence, register, sums, zset};

use super::bytes::Choices;

/// Types: those that this version knows, and one of each kind that it does not (see [`FieldType`]).
pub const TYPES: [FieldType; 12] = [
    FieldType::FLAG,
    FieldType::SET,
    FieldType::KEYED,
    FieldType::COUNTER,
    FieldType::REGISTER,
    FieldType(0x10),
    FieldType(0x30),
    FieldType(0x50),
    FieldType::ZSET,
    FieldType::ZSUM,
    FieldType::UNIQUE,
    FieldType::EXPIRY,
];

/// Those that it does not know.
pub const UNKNOWN_TYPES: [FieldType; 3] = [FieldType(0x10), FieldType(0x30), FieldType(0x50)];

const FIELDS: [&str; 5] = ["s", "c", "f", "r", "x"];
const MEMBERS: [&str; 2] = ["m", "mn"];

/// The namespace of everything.
pub fn namespace() -> Namespace {
    Namespace::new("ns").expect("a name")
}

/// A record of the namespace.
pub fn record(key: &str) -> RecordId {
    RecordId { namespace: namespace(), key: Key::new(key).expect("a key") }
}

/// A field.
pub fn field(from: &mut Choices<'_>) -> Field {
    Field::new(*from.pick(&FIELDS)).expect("a field")
}

/// An idempotency key.
pub fn request_key(from: &mut Choices<'_>) -> RequestKey {
    RequestKey { key: [from.below(3) as u8; 16], asked: [from.below(2) as u8; 16] }
}

/// A client's commit to some of the records, all of one partition.
pub fn writes(from: &mut Choices<'_>, records: &[RecordId]) -> Vec<Write> {
    let chosen = match from.below(8) {
        7 => records,
        6 => &records[records.len() - 1..],
        _ => &records[..1],
    };
    let write = |record: &RecordId| {
        let ops = (0..=from.below(2)).map(|_| op(from)).collect();
        Write { record: record.clone(), ops }
    };
    chosen.iter().map(write).collect()
}

/// A commit's terms.
pub fn terms(from: &mut Choices<'_>) -> Terms {
    let request = from.one_in(4).then(|| request_key(from));
    Terms { seen: None, request }
}

/// An operation. Mostly each type has a field of its own, so that few are refused.
fn op(from: &mut Choices<'_>) -> Op {
    let kind = from.below(12);
    let own = match kind {
        0 | 1 => "r",
        2 | 3 => "c",
        4 | 5 => "f",
        _ => "s",
    };
    let field = if from.one_in(16) { "x" } else { own };
    let field = Field::new(field).expect("a field");
    match kind {
        0 => Op::Set { field, value: value(from) },
        1 | 9 | 10 => Op::Clear { field },
        2 | 3 => Op::Incr { field, by: from.below(5) as i64 - 2 },
        4 => Op::Enable { field },
        5 => Op::Disable { field },
        6 | 7 => Op::Add { field, members: members(from) },
        8 => Op::Remove { field, members: members(from) },
        _ => Op::Delete,
    }
}

fn members(from: &mut Choices<'_>) -> Vec<Member> {
    (0..=from.below(2)).map(|_| Member::new(*from.pick(&MEMBERS)).expect("a member")).collect()
}

fn value(from: &mut Choices<'_>) -> Json {
    Json::parse(from.pick::<&str>(&["1", "\"v\"", "{\"a\":[]}"])).expect("JSON")
}

/// A vector over some of the replicas.
pub fn vector(from: &mut Choices<'_>, replicas: &[ReplicaId]) -> VersionVector {
    (0..from.below(4)).map(|_| dot(from, replicas)).filter(|dot| dot.counter > 0).collect()
}

/// A dot of one of the replicas: mostly an early one.
pub fn dot(from: &mut Choices<'_>, replicas: &[ReplicaId]) -> Dot {
    Dot { replica: *from.pick(replicas), counter: count(from) }
}

/// A number: mostly small, sometimes at the end of what there is.
pub fn count(from: &mut Choices<'_>) -> u64 {
    match from.byte() {
        255 => u64::MAX,
        254 => u64::MAX - 1,
        byte => u64::from(byte % 8),
    }
}

/// A slot: mostly one of the type's own.
fn slot(from: &mut Choices<'_>, ty: FieldType, replicas: &[ReplicaId]) -> Vec<u8> {
    match ty {
        _ if from.one_in(32) => from.take(3).to_vec(),
        FieldType::FLAG => presence::FLAG_SLOT.to_vec(),
        FieldType::REGISTER => register::SLOT.to_vec(),
        FieldType::SET => presence::member_slot(&Member::new(*from.pick(&MEMBERS)).expect("a member")),
        FieldType::KEYED => vec![from.below(3) as u8; keyed::SLOT_BYTES],
        FieldType::COUNTER if from.one_in(2) => sums::reset_slot(&[], *from.pick(replicas)),
        FieldType::COUNTER => counter::SUM_SLOT.to_vec(),
        FieldType::ZSET | FieldType::ZSUM => {
            let base = zset::base(&Member::new(*from.pick(&MEMBERS)).expect("a member"));
            let rest = match (ty == FieldType::ZSUM, from.one_in(3)) {
                (true, true) => return sums::reset_slot(&base, *from.pick(replicas)),
                (false, true) => vec![1; 1 + keyed::SLOT_BYTES],
                (_, false) => vec![0],
            };
            [base, rest].concat()
        }
        FieldType::UNIQUE => vec![0, from.below(3) as u8, 1 + from.below(60) as u8],
        FieldType::EXPIRY => Vec::new(),
        // One begins another: types of later versions may have such slots.
        _ => from.pick(&[&b""[..], b"s", b"st"]).to_vec(),
    }
}

fn payload(from: &mut Choices<'_>, ty: FieldType, slot: &[u8], dot: Dot) -> Vec<u8> {
    match ty {
        _ if from.one_in(32) => from.take(8).to_vec(),
        FieldType::FLAG | FieldType::SET | FieldType::UNIQUE => Vec::new(),
        FieldType::ZSET if slot.ends_with(&[0, 0]) => {
            let of = |replica| zset::SeenOf {
                replica: ReplicaId(replica),
                counter: replica - 1,
                sum: Some(sums::Cover { dot: 1, sum: Exact::of(-1.5) }),
            };
            let seen = (1..=from.below(3) as u64).map(of).collect();
            codec::encode(1, &zset::Assigned { score: Score::new(0.1).expect("finite"), seen })
        }
        FieldType::ZSET => codec::encode(1, &zset::Keyed { by: Exact::of(2.0), before: Exact::default() }),
        FieldType::ZSUM if slot.ends_with(&[0, 0]) => {
            let sum = Exact::of(*from.pick(&[0.0, 0.5, f64::MAX, -5e-324]));
            codec::encode(1, &sums::Sum { sum, first: 1, last: dot.counter, base: None })
        }
        FieldType::ZSUM => codec::encode(1, &sums::Cover { dot: count(from), sum: Exact::of(0.5) }),
        FieldType::EXPIRY => {
            let at = *from.pick(&[1, 1000, u64::MAX]);
            codec::encode(1, &Expiry { at, floor: from.below(2) as u64 * 500 })
        }
        FieldType::REGISTER => value(from).as_str().as_bytes().to_vec(),
        FieldType::KEYED => codec::encode(1, from.pick(&[0, 1, -1, i64::MAX, i64::MIN])),
        FieldType::COUNTER if slot == counter::SUM_SLOT => {
            let base = from.one_in(3).then(|| cover(from));
            codec::encode(1, &counter::Sum { sum: sum(from), first: 1, last: dot.counter, base })
        }
        FieldType::COUNTER => codec::encode(1, &cover(from)),
        _ => from.take(2).to_vec(),
    }
}

fn cover(from: &mut Choices<'_>) -> counter::Cover {
    counter::Cover { dot: count(from), sum: sum(from) }
}

fn sum(from: &mut Choices<'_>) -> i128 {
    *from.pick(&[0, 1, -1, 100, i128::MAX, i128::MIN])
}

/// A delta as a peer may send it: one commit or an interval, of some of the replicas, about some of the records. Half of
/// them go on after a context, so that they are not refused for their numbers alone.
pub fn delta(
    from: &mut Choices<'_>,
    replicas: &[ReplicaId],
    records: &[RecordId],
    after: &VersionVector,
) -> Delta {
    let mut until = after.clone();
    let mut base = after.clone();
    for _ in 0..=from.below(2) {
        let replica = *from.pick(replicas);
        let first = if from.one_in(2) { count(from) } else { after.get(replica).saturating_add(1) };
        let more = if from.one_in(2) { count(from) } else { 0 };
        base.remove(replica);
        base.advance(Dot { replica, counter: first.saturating_sub(1) });
        until.remove(replica);
        until.advance(Dot { replica, counter: first.saturating_add(more) });
    }
    let mut dots = DotRanges::between(&base, &until);
    if dots.iter().next().is_none() {
        dots = DotRanges::single(Dot { replica: replicas[0], counter: 1 });
    }
    let hlc = Hlc(from.pick(&[1, 2, 1 << 20, u64::MAX]) - from.below(2) as u64);
    let deps = if from.one_in(4) { vector(from, replicas) } else { VersionVector::new() };
    let own = |from: &mut Choices<'_>| {
        let ranges: Vec<_> = dots.iter().collect();
        let range = from.pick(&ranges);
        let counter = range.first.saturating_add(from.below(4) as u64).min(range.last);
        Dot { replica: range.replica, counter }
    };
    let requests = (0..from.below(4).saturating_sub(2)).map(|_| Request {
        namespace: namespace(),
        id: request_key(from),
        dot: own(from),
        hlc,
    });
    let requests = requests.collect();
    let records = (0..from.below(3)).map(|_| {
        let clears = (0..from.below(4).saturating_sub(1)).map(|_| Clear {
            fields: from.one_in(2).then(|| vec![field(from)]),
            seen: if from.one_in(2) { vector(from, replicas) } else { after.clone() },
        });
        let clears = clears.collect();
        let fields = (0..from.below(4)).map(|_| {
            let (name, ty) = (field(from), *from.pick(&TYPES));
            let kills = (0..from.below(3))
                .map(|_| Kill { slot: slot(from, ty, replicas), dot: dot(from, replicas) })
                .collect();
            let rows = (0..from.below(4)).map(|_| {
                let (slot, dot) = (slot(from, ty, replicas), own(from));
                let payload = payload(from, ty, &slot, dot);
                RowWrite { slot, dot, hlc: if from.one_in(4) { Hlc(1) } else { hlc }, payload }
            });
            let rows = rows.collect();
            let gone = (0..from.below(4).saturating_sub(2)).map(|_| slot(from, ty, replicas)).collect();
            FieldDelta { field: name, ty, kills, rows, gone }
        });
        let fields = fields.collect();
        RecordDelta { record: from.pick(records).clone(), clears, fields }
    });
    let records = records.collect();
    Delta { dots, hlc, deps, requests, records }
}

/// What a later version may do to fields of its own types, to be added to a commit: rows written in slots of theirs,
/// over those that are there.
pub fn later_fields(
    from: &mut Choices<'_>,
    dot: Dot,
    hlc: Hlc,
    mut present: impl FnMut(&Field, FieldType, &[u8]) -> Vec<Dot>,
) -> Vec<FieldDelta> {
    let mut fields: BTreeMap<(Field, FieldType), FieldDelta> = BTreeMap::new();
    for _ in 0..=from.below(3) {
        let (name, ty) = (field(from), *from.pick(&UNKNOWN_TYPES));
        let slot = from.pick(&[&b""[..], b"s", b"st"]).to_vec();
        let writes = !from.one_in(3);
        let kills = if from.one_in(2) { present(&name, ty, &slot) } else { Vec::new() };
        let delta = fields.entry((name.clone(), ty)).or_insert_with(|| FieldDelta {
            field: name,
            ty,
            kills: Vec::new(),
            rows: Vec::new(),
            gone: Vec::new(),
        });
        if delta.rows.iter().any(|row| row.slot == slot) || delta.kills.iter().any(|kill| kill.slot == slot) {
            continue;
        }
        delta.kills.extend(kills.into_iter().map(|dot| Kill { slot: slot.clone(), dot }));
        if writes {
            delta.rows.push(RowWrite { slot, dot, hlc, payload: from.take(1).to_vec() });
        }
    }
    fields.into_values().collect()
}
