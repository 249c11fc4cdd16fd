//! Scenarios as data, in two notations.
//!
//! `semantics.jsonl` is ours: a line for each row of the table of what each type means, or for each way to read it.
//! A step is `[node, ops]` (a commit), `[node, "delete"]`, `["sync"]`, `["expect", node, fields]`,
//! `["expect_all", fields]` or `["expect_all_siblings", field, values]`.
//!
//! `scenarios.jsonl` restates other stores in neutral steps, which become operations on records here:
//!
//! | there | here |
//! |---|---|
//! | a value of a type that is no map | the field `value` of a record |
//! | a map's `put`, `del`, `incr_field` | `set`, `clear`, `incr` of the field |
//! | `decr` | `incr` by the negative |
//! | `assign@n`, `zadd@n` | `set`, `zadd`: the steps are in the order of `n`, and each waits for a later clock |
//! | `delete_key` | `DELETE` of the record |
//! | `put` without a context | `set` that has seen nothing of the record |
//! | `put_with_ctx`, `delete_with_ctx` | `set`, `DELETE` with the `Godwit-Seen` that the read gave |
//! | a poll for what is newer than a context | a feed since the token, and a read once it tells a change |
//! | `null` among values | nothing: a removal leaves no sibling |
//!
//! In both, what all nodes must read is read after a `sync`: one is added where a write comes right before.

use serde_json::{Value, json};

use super::nodes::NAMES;

/// The field that holds a value which is not a map.
const FIELD: &str = "value";

/// One scenario's steps.
pub type Scenario = Vec<Step>;

#[derive(Debug)]
pub enum Step {
    /// A commit to a record, or its deletion, which has no operations.
    Write {
        at: usize,
        key: String,
        ops: Option<Value>,
        seen: Seen,
    },
    /// Reads a record and keeps the token of the answer.
    KeepToken {
        at: usize,
        key: String,
        name: String,
    },
    /// Reads a record with the token of the last answer that another node gave.
    ReadAfter {
        at: usize,
        other: usize,
        key: String,
    },
    Sync,
    /// Reads a record, at one node or at all.
    Expect {
        at: Option<usize>,
        key: String,
        what: Expected,
    },
    /// Follows a record's changes from where a read was that kept its token.
    Follow {
        at: usize,
        key: String,
        name: String,
    },
    /// The first change that is told is one after which the register has these values, in any order.
    ExpectFollowed {
        key: String,
        values: Vec<Value>,
    },
    Kill(usize),
    Restart(usize),
    /// Many writes at random nodes under faults, then what all must read.
    Workload(Workload),
}

/// What the client of a write has seen.
#[derive(Debug, PartialEq, Eq)]
pub enum Seen {
    /// What its node has applied.
    Node,
    /// Nothing of the record.
    Nothing,
    /// What the read showed that gave this token.
    Token(String),
}

#[derive(Debug)]
pub enum Expected {
    /// The record's fields, none if it is absent.
    Fields(Value),
    /// One of these.
    OneOf(Vec<Value>),
    /// The same at all nodes, whatever it is.
    Equal,
    /// The values of a register, the winner among them, in any order.
    Values { field: String, values: Vec<Value> },
    /// The siblings of a register.
    Siblings { field: String, values: Vec<Value> },
}

/// Faults are cuts within one process, and kills of processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Workload {
    /// Unique members added to one set, over links with a delay each way in microseconds.
    Adds { delay_us: u64 },
    /// Increments of one counter.
    Increments,
    /// The same while a node is put back on an old copy of its data, of which only the names of commits are checked.
    Names,
}

/// Reads a line of `semantics.jsonl`.
pub fn ours(line: &Value) -> Result<Scenario, String> {
    scenario(line, |step| {
        let key = "r".to_owned();
        let expect = |at, what| Step::Expect { at, key: key.clone(), what };
        let parts: Vec<&str> = step.iter().map(|part| part.as_str().unwrap_or_default()).collect();
        Ok(match parts[..] {
            ["sync"] => Step::Sync,
            ["expect", at, _] => expect(Some(node(at)?), Expected::Fields(step[2].clone())),
            ["expect_all", _] => expect(None, Expected::Fields(step[1].clone())),
            ["expect_all_siblings", field, _] => {
                expect(None, Expected::Siblings { field: field.to_owned(), values: list(&step[2])? })
            }
            [at, "delete"] => Step::Write { at: node(at)?, key, ops: None, seen: Seen::Node },
            [at, _] if step[1].is_array() => {
                Step::Write { at: node(at)?, key, ops: Some(step[1].clone()), seen: Seen::Node }
            }
            _ => return Err(format!("not a step: {}", json!(step))),
        })
    })
}

/// Reads a line of `scenarios.jsonl`.
pub fn theirs(line: &Value) -> Result<Scenario, String> {
    let ty = line["type"].as_str().unwrap_or_default();
    let fields = |value: &Value| match ty {
        "map" => value.clone(),
        _ if *value == json!("absent") || *value == json!([]) => json!({}),
        _ => json!({ FIELD: value }),
    };
    let workload = line["id"].as_str().and_then(|id| match id {
        "maelstrom-broadcast" => Some(Workload::Adds { delay_us: 100_000 }),
        "maelstrom-g-set" => Some(Workload::Adds { delay_us: 0 }),
        "maelstrom-pn-counter" => Some(Workload::Increments),
        "maelstrom-unique-ids" => Some(Workload::Names),
        _ => None,
    });
    scenario(line, |step| {
        let wrong = || format!("not a step: {}", json!(step));
        let parts: Vec<&str> = step.iter().map(|part| part.as_str().unwrap_or_default()).collect();
        let expect = |at, key: &str, what| Ok(Step::Expect { at, key: key.to_owned(), what });
        match parts[..] {
            ["sync"] => Ok(Step::Sync),
            ["kill_-9", at] => Ok(Step::Kill(node(at)?)),
            ["restart", at] => Ok(Step::Restart(node(at)?)),
            ["generate" | "check", _] => workload.map(Step::Workload).ok_or_else(wrong),
            ["expect", at, key, _] => expect(Some(node(at)?), key, Expected::Fields(fields(&step[3]))),
            ["expect_all" | "expect_all~", key, _] => expect(None, key, Expected::Fields(fields(&step[2]))),
            ["expect_all_equal", key] => expect(None, key, Expected::Equal),
            ["expect_all_in", key, _] => {
                let choices = list(&step[2])?.iter().map(fields).collect();
                expect(None, key, Expected::OneOf(choices))
            }
            ["expect_all_values", key, _] => {
                let values = list(&step[2])?.into_iter().filter(|value| !value.is_null()).collect();
                expect(None, key, Expected::Values { field: FIELD.to_owned(), values })
            }
            ["read_ctx", at, key, name] => {
                Ok(Step::KeepToken { at: node(at)?, key: key.to_owned(), name: name.to_owned() })
            }
            [at, "poll_in_background", key, name] => {
                Ok(Step::Follow { at: node(at)?, key: key.to_owned(), name: name.to_owned() })
            }
            ["expect_poll_returns", key, _] => {
                Ok(Step::ExpectFollowed { key: key.to_owned(), values: list(&step[2])? })
            }
            [at, "read_at_token_of", other, key] => {
                Ok(Step::ReadAfter { at: node(at)?, other: node(other)?, key: key.to_owned() })
            }
            [at, operation, key, ..] => {
                let (ops, seen) = write(ty, operation, &step[3..]).ok_or_else(wrong)?;
                Ok(Step::Write { at: node(at)?, key: key.to_owned(), ops, seen })
            }
            _ => Err(wrong()),
        }
    })
}

/// The operations of a neutral step, `None` within for a deletion.
fn write(ty: &str, operation: &str, rest: &[Value]) -> Option<(Option<Value>, Seen)> {
    let first = || rest.first();
    let name = || first()?.as_str();
    let one = |op: Value| Some((Some(json!([op])), Seen::Node));
    // The tick of `assign@n` is the order of the steps.
    let operation = operation.split('@').next()?;
    match (ty, operation) {
        (_, "delete_key") => Some((None, Seen::Node)),
        ("set", "add" | "remove") => one(json!({"op": operation, "field": FIELD, "members": [name()?]})),
        ("counter", "incr") => one(json!({"op": "incr", "field": FIELD, "by": first()?.as_i64()?})),
        ("counter", "decr") => one(json!({"op": "incr", "field": FIELD, "by": -first()?.as_i64()?})),
        ("register", "assign") => one(json!({"op": "set", "field": FIELD, "value": first()?})),
        ("zset", "zadd") => one(json!({"op": "zadd", "field": FIELD, "scores": {name()?: rest.get(1)?}})),
        ("zset", "zincrby") => {
            one(json!({"op": "zincr", "field": FIELD, "member": name()?, "by": rest.get(1)?}))
        }
        ("map", "put") => one(json!({"op": "set", "field": name()?, "value": rest.get(1)?})),
        ("map", "del") => one(json!({"op": "clear", "field": name()?})),
        ("map", "incr_field") => one(json!({"op": "incr", "field": name()?, "by": rest.get(1)?})),
        ("mv-register", "put") => {
            Some((Some(json!([{"op": "set", "field": FIELD, "value": first()?}])), Seen::Nothing))
        }
        ("mv-register", "put_with_ctx") => {
            let seen = Seen::Token(rest.get(1)?.as_str()?.to_owned());
            Some((Some(json!([{"op": "set", "field": FIELD, "value": first()?}])), seen))
        }
        ("mv-register", "delete_with_ctx") => Some((None, Seen::Token(name()?.to_owned()))),
        _ => None,
    }
}

/// What a workload checks is a step there, and part of it here.
fn scenario(line: &Value, step: impl Fn(&[Value]) -> Result<Step, String>) -> Result<Scenario, String> {
    let mut played = Scenario::new();
    for parts in line["steps"].as_array().ok_or("a scenario has no steps")? {
        let next = step(parts.as_array().ok_or("a step is not an array")?)?;
        match (&next, played.last()) {
            (Step::Workload(_), Some(Step::Workload(_))) => continue,
            (Step::Expect { at: None, .. }, Some(Step::Write { .. })) => played.push(Step::Sync),
            _ => {}
        }
        played.push(next);
    }
    Ok(played)
}

fn node(name: &str) -> Result<usize, String> {
    NAMES.iter().position(|node| *node == name).ok_or_else(|| format!("no node {name:?}"))
}

fn list(value: &Value) -> Result<Vec<Value>, String> {
    value.as_array().cloned().ok_or_else(|| format!("not an array: {value}"))
}
