//! Histories over three datacenters with answers agreed by independent implementations (`crdt.jsonl`).
//!
//! Each line is played on a fresh [`Cluster`]: `exec` as a commit of the API's operations, `sync` as a one-way
//! synchronisation by the protocol. Values are compared at every datacenter before a last full synchronisation, and
//! after it.
//!
//! | type | here |
//! |---|---|
//! | `set_aw` | a set |
//! | `counter_pn`, `counter_resettable` | a counter; 0 where it is absent |
//! | `flag_ew` | a flag |
//! | `register_mv` | a register: winner and siblings, equal values once |
//! | `map_rr` | a record: each child is a field, named by its key and type since the vectors let a key have several types; empty children absent |

use std::collections::{BTreeMap, BTreeSet};

use godwit_core::ids::{Field, Key, Member, Namespace, RecordId};
use godwit_core::json::Json;
use godwit_core::op::Op;
use godwit_core::read::{FieldView, Value as View};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::cluster::Cluster;

/// The types that are Godwit's; others in a file are counted and left out.
pub const TYPES: [&str; 6] =
    ["set_aw", "counter_pn", "counter_resettable", "flag_ew", "register_mv", "map_rr"];

/// The field that holds the value of a type that is not a record.
const FIELD: &str = "value";

/// One history.
#[derive(Debug, Clone, Deserialize)]
pub struct Vector {
    /// Its name.
    pub id: String,
    /// The type of its value.
    #[serde(rename = "type")]
    pub ty: String,
    steps: Vec<Vec<Value>>,
    before_final_sync: BTreeMap<String, Value>,
    #[serde(rename = "final")]
    last: Value,
}

/// What came of a file, by type.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// How many passed, of how many.
    pub types: BTreeMap<String, (usize, usize)>,
    /// Lines of types that are not Godwit's.
    pub left_out: BTreeMap<String, usize>,
    /// What went wrong, a line each.
    pub failures: Vec<String>,
}

/// Plays every line of a file.
pub fn play_file(text: &str) -> Report {
    let mut report = Report::default();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let vector: Vector = match serde_json::from_str(line) {
            Ok(vector) => vector,
            Err(error) => {
                report.failures.push(format!("line {}: {error}", number + 1));
                continue;
            }
        };
        if !TYPES.contains(&vector.ty.as_str()) {
            *report.left_out.entry(vector.ty).or_default() += 1;
            continue;
        }
        let outcome = play(&vector);
        let (passed, of) = report.types.entry(vector.ty).or_default();
        *of += 1;
        match outcome {
            Ok(()) => *passed += 1,
            Err(what) => report.failures.push(format!("{}: {what}", vector.id)),
        }
    }
    report
}

/// Plays one history.
pub fn play(vector: &Vector) -> Result<(), String> {
    let places = vector.steps.iter().flat_map(|step| match step.first().and_then(Value::as_str) {
        Some("exec") => &step[1..step.len().min(2)],
        Some("sync") => &step[1..],
        _ => &[],
    });
    let mentioned = places.filter_map(Value::as_str).map(str::to_string);
    let names: BTreeSet<String> = mentioned.chain(vector.before_final_sync.keys().cloned()).collect();
    let names: Vec<String> = names.into_iter().collect();
    let place =
        |name: &str| names.iter().position(|n| n == name).ok_or_else(|| format!("no datacenter {name:?}"));
    let mut cluster = Cluster::new(&names).map_err(|error| error.0)?;
    let record = record();
    for step in &vector.steps {
        match step.iter().map(|part| part.as_str().unwrap_or_default()).collect::<Vec<_>>()[..] {
            ["exec", at, _] => {
                let op = operation(&vector.ty, &step[2])?;
                cluster.commit(place(at)?, &record, vec![op]).map_err(|error| error.0)?;
            }
            ["sync", from, to] => drop(cluster.sync(place(from)?, place(to)?).map_err(|error| error.0)?),
            _ => return Err(format!("not a step: {step:?}")),
        }
    }
    let expect = |cluster: &Cluster, name: &str, expected: &Value, when: &str| {
        let views = cluster.read(place(name)?, &record).map_err(|error| error.0)?;
        let found = value(&vector.ty, &views)?;
        if found == sorted(expected) {
            Ok(())
        } else {
            Err(format!("{name} {when}: {found}, must be {expected}"))
        }
    };
    for (name, expected) in &vector.before_final_sync {
        expect(&cluster, name, expected, "before the last sync")?;
    }
    // Everybody to the first, then the first to everybody.
    for other in 1..names.len() {
        cluster.sync(other, 0).map_err(|error| error.0)?;
    }
    for other in 1..names.len() {
        cluster.sync(0, other).map_err(|error| error.0)?;
    }
    names.iter().try_for_each(|name| expect(&cluster, name, &vector.last, "at the end"))
}

fn operation(ty: &str, op: &Value) -> Result<Op, String> {
    let parts = op.as_array().ok_or_else(|| format!("not an operation: {op}"))?;
    let text =
        |i: usize| parts.get(i).and_then(Value::as_str).ok_or_else(|| format!("not an operation: {op}"));
    if ty != "map_rr" {
        return type_operation(ty, FIELD, op);
    }
    let child = format!("{}:{}", text(1)?, text(2)?);
    match text(0)? {
        "update" => type_operation(text(2)?, &child, parts.get(3).unwrap_or(&Value::Null)),
        "remove_key" => Ok(Op::Clear { field: field(&child)? }),
        other => Err(format!("unknown operation {other:?}")),
    }
}

fn type_operation(ty: &str, name: &str, op: &Value) -> Result<Op, String> {
    let wrong = || format!("not an operation of {ty}: {op}");
    let parts = op.as_array().ok_or_else(wrong)?;
    let field = field(name)?;
    let kind = parts.first().and_then(Value::as_str).ok_or_else(wrong)?;
    let number = || parts.get(1).and_then(Value::as_i64).ok_or_else(wrong);
    let one = || Ok::<_, String>(vec![member(parts.get(1).ok_or_else(wrong)?)?]);
    let all = || {
        parts
            .get(1)
            .and_then(Value::as_array)
            .ok_or_else(wrong)?
            .iter()
            .map(member)
            .collect::<Result<Vec<_>, _>>()
    };
    Ok(match (ty, kind) {
        (_, "reset") => Op::Clear { field },
        ("set_aw", "add") => Op::Add { field, members: one()? },
        ("set_aw", "add_all") => Op::Add { field, members: all()? },
        ("set_aw", "remove") => Op::Remove { field, members: one()? },
        ("set_aw", "remove_all") => Op::Remove { field, members: all()? },
        ("counter_pn" | "counter_resettable", "increment") => Op::Incr { field, by: number()? },
        ("counter_pn" | "counter_resettable", "decrement") => {
            Op::Incr { field, by: number()?.checked_neg().ok_or_else(wrong)? }
        }
        ("flag_ew", "enable") => Op::Enable { field },
        ("flag_ew", "disable") => Op::Disable { field },
        ("register_mv", "assign") => {
            let value = parts.get(1).ok_or_else(wrong)?.to_string();
            Op::Set { field, value: Json::parse(&value).map_err(|error| error.to_string())? }
        }
        _ => return Err(wrong()),
    })
}

/// The value as the vectors write it.
fn value(ty: &str, views: &[FieldView]) -> Result<Value, String> {
    if ty != "map_rr" {
        let view = views.iter().find(|view| view.field.as_str() == FIELD);
        return view.map_or_else(|| Ok(absent(ty)), |view| plain(&view.value));
    }
    // The vectors name a child "key:type", as the fields are named here.
    let mut record = Map::new();
    for view in views {
        record.insert(view.field.to_string(), plain(&view.value)?);
    }
    Ok(Value::Object(record))
}

fn absent(ty: &str) -> Value {
    match ty {
        "counter_pn" | "counter_resettable" => json!(0),
        "flag_ew" => json!(false),
        _ => json!([]),
    }
}

fn plain(view: &View) -> Result<Value, String> {
    Ok(match view {
        View::Register { value, siblings } => {
            let texts = std::iter::once(value).chain(siblings);
            let values = texts.map(|text| serde_json::from_str(text).map_err(|error| error.to_string()));
            sorted(&Value::Array(values.collect::<Result<_, _>>()?))
        }
        View::Counter(sum) => json!(sum),
        View::Flag => json!(true),
        View::Set { members, .. } => sorted(&json!(members)),
        View::Zset { members, .. } => {
            sorted(&json!(members.iter().map(|(m, score)| (m, score.value())).collect::<Vec<_>>()))
        }
        View::Unique(count) => json!(count),
        View::Document(_) => return Err("histories with answers have no documents".into()),
    })
}

/// Arrays stand for sets here: in one order, whatever theirs was.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Array(items) => {
            let mut items: Vec<Value> = items.iter().map(sorted).collect();
            items.sort_by_key(Value::to_string);
            items.dedup();
            Value::Array(items)
        }
        Value::Object(entries) => entries.iter().map(|(key, value)| (key.clone(), sorted(value))).collect(),
        other => other.clone(),
    }
}

fn field(name: &str) -> Result<Field, String> {
    Field::new(name).map_err(|error| error.to_string())
}

fn member(value: &Value) -> Result<Member, String> {
    let name = value.as_str().map_or_else(|| value.to_string(), str::to_string);
    Member::new(name).map_err(|error| error.to_string())
}

fn record() -> RecordId {
    let namespace = Namespace::new("vectors").expect("a constant name");
    RecordId { namespace, key: Key::new("record").expect("a constant name") }
}
