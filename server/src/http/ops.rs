//! Operations as JSON: `{"ops": [{"op": "incr", "field": "plays", "by": 1}, …]}`.
//!
//! - An operation is a flat object. It has exactly the members that its kind takes: a member of another kind, or an
//!   unknown one, is refused, since the client meant something that would not happen.
//! - Values of registers are passed on as text, so that numbers and key order survive.
//! - Arrays are counted while they are read: what is beyond a limit is never stored.

use std::borrow::Cow;
use std::fmt;

use godwit_core::ids::{Field, Member};
use godwit_core::json::Json;
use godwit_core::op::Op;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::problem::{Kind, Problem};
use crate::config::LimitsSection;

/// The operations that this version has, for people.
const NAMES: &str = "set, incr, enable, disable, add, remove, clear";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPatch<'a> {
    #[serde(borrow)]
    ops: &'a RawValue,
}

/// The name alone: what else an unknown operation has is of no interest.
#[derive(Deserialize)]
struct RawName<'a> {
    #[serde(borrow)]
    op: Cow<'a, str>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawOp<'a> {
    #[serde(borrow)]
    op: Cow<'a, str>,
    #[serde(borrow)]
    field: Option<Cow<'a, str>>,
    #[serde(borrow, default, deserialize_with = "present")]
    value: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    by: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    members: Option<&'a RawValue>,
}

/// Keeps `null` apart from what is not there: a register may be set to `null`.
pub(super) fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

/// Reads the body of a `PATCH`.
pub(super) fn parse(body: &str, limits: &LimitsSection) -> Result<Vec<Op>, Problem> {
    let patch: RawPatch<'_> = object(body)
        .map_err(|error| malformed(format!("the body is not {{\"ops\": [operation, …]}}: {error}")))?;
    list(patch.ops, limits, &mut { limits.members })
}

/// Reads the operations on one record, which may name so many members yet.
pub(super) fn list(
    raw: &RawValue,
    limits: &LimitsSection,
    members_left: &mut usize,
) -> Result<Vec<Op>, Problem> {
    let items: Vec<&RawValue> = bounded(raw, limits.ops).map_err(|failure| match failure {
        Unread::Beyond => {
            let detail = format!("the commit has more than {} operations: split it", limits.ops);
            Problem::too_large("ops", limits.ops, detail)
        }
        Unread::Not(error) => malformed(format!("`ops` is not an array of operations: {error}")),
    })?;
    if items.is_empty() {
        return Err(malformed("`ops` is empty: a commit has at least one operation"));
    }
    let mut ops = Vec::with_capacity(items.len());
    for (index, item) in items.into_iter().enumerate() {
        let op = operation(item.get(), limits, members_left);
        ops.push(op.map_err(|problem| problem.at_op(index))?);
    }
    Ok(ops)
}

fn operation(text: &str, limits: &LimitsSection, members_left: &mut usize) -> Result<Op, Problem> {
    let not_one = |error| malformed(format!("not an operation: {error}"));
    let name: RawName<'_> = object(text).map_err(not_one)?;
    let takes: &[&str] = match name.op.as_ref() {
        "set" => &["value"],
        "incr" => &["by"],
        "add" | "remove" => &["members"],
        "enable" | "disable" | "clear" => &[],
        other => {
            let detail = format!("there is no operation {other:?}; this version has: {NAMES}");
            return Err(Problem::new(Kind::UnknownOp, detail));
        }
    };
    let raw: RawOp<'_> = object(text).map_err(not_one)?;
    let given = [("value", raw.value), ("by", raw.by), ("members", raw.members)];
    if let Some((name, _)) = given.iter().find(|(name, value)| value.is_some() && !takes.contains(name)) {
        return Err(malformed(format!("the operation {:?} does not take `{name}`", raw.op)));
    }
    let missing = |name: &str| malformed(format!("the operation {:?} needs `{name}`", raw.op));
    let field = Field::new(raw.field.as_deref().ok_or_else(|| missing("field"))?)?;
    Ok(match raw.op.as_ref() {
        "set" => {
            let value = raw.value.ok_or_else(|| missing("value"))?;
            Op::Set { field, value: Json::parse(value.get())? }
        }
        "incr" => {
            let by = raw.by.ok_or_else(|| missing("by"))?;
            let by = serde_json::from_str(by.get()).map_err(|_| {
                malformed(format!("`by` must be an integer from {} to {}", i64::MIN, i64::MAX))
            })?;
            Op::Incr { field, by }
        }
        "enable" => Op::Enable { field },
        "disable" => Op::Disable { field },
        "clear" => Op::Clear { field },
        add_or_remove => {
            let members = raw.members.ok_or_else(|| missing("members"))?;
            let members = self::members(members, limits, members_left)?;
            match add_or_remove {
                "add" => Op::Add { field, members },
                _ => Op::Remove { field, members },
            }
        }
    })
}

fn members(raw: &RawValue, limits: &LimitsSection, left: &mut usize) -> Result<Vec<Member>, Problem> {
    let names: Vec<Cow<'_, str>> = bounded(raw, *left).map_err(|failure| match failure {
        Unread::Beyond => {
            let detail = format!("the commit names more than {} members: split it", limits.members);
            Problem::too_large("members", limits.members, detail)
        }
        Unread::Not(error) => malformed(format!("`members` is not an array of strings: {error}")),
    })?;
    if names.is_empty() {
        return Err(malformed("`members` is empty: name at least one"));
    }
    *left -= names.len();
    Ok(names.into_iter().map(Member::new).collect::<Result<_, _>>()?)
}

/// Reads an object: derived readers would take an array of its members too.
pub(super) fn object<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, serde_json::Error> {
    if text.trim_start().starts_with('{') {
        serde_json::from_str(text)
    } else {
        Err(serde_json::Error::custom("it is not an object"))
    }
}

pub(super) fn malformed(detail: impl Into<String>) -> Problem {
    Problem::new(Kind::Malformed, detail)
}

/// Why an array was not read.
pub(super) enum Unread {
    /// It has more items than allowed.
    Beyond,
    /// It is not such an array.
    Not(serde_json::Error),
}

/// Reads an array of up to `max` items.
pub(super) fn bounded<'a, T: Deserialize<'a>>(raw: &'a RawValue, max: usize) -> Result<Vec<T>, Unread> {
    let mut beyond = false;
    let seed = Bounded { max, beyond: &mut beyond, items: std::marker::PhantomData };
    let items = seed.deserialize(&mut serde_json::Deserializer::from_str(raw.get()));
    items.map_err(|error| if beyond { Unread::Beyond } else { Unread::Not(error) })
}

struct Bounded<'s, T> {
    max: usize,
    beyond: &'s mut bool,
    items: std::marker::PhantomData<T>,
}

impl<'de, T: Deserialize<'de>> DeserializeSeed<'de> for Bounded<'_, T> {
    type Value = Vec<T>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Vec<T>, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for Bounded<'_, T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<T>, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            if items.len() == self.max {
                *self.beyond = true;
                return Err(A::Error::custom("too many items"));
            }
            items.push(item);
        }
        Ok(items)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> LimitsSection {
        LimitsSection { ops: 3, members: 4, ..LimitsSection::default() }
    }

    fn field(name: &str) -> Field {
        Field::new(name).unwrap()
    }

    #[test]
    fn each_operation_is_read() {
        let body = r#" { "ops": [ {"value": null, "field": "a\u0062", "op": "set"},
            {"op": "incr", "field": "c", "by": -9223372036854775808}, {"op": "add", "field": "s", "members": ["x", "\u00e9"]} ] } "#;
        let member = |name: &str| Member::new(name).unwrap();
        assert_eq!(
            parse(body, &limits()).unwrap(),
            [
                Op::Set { field: field("ab"), value: Json::parse("null").unwrap() },
                Op::Incr { field: field("c"), by: i64::MIN },
                Op::Add { field: field("s"), members: vec![member("x"), member("é")] },
            ]
        );
        let body = r#"{"ops":[{"op":"enable","field":"f"},{"op":"disable","field":"f"},{"op":"clear","field":"f"}]}"#;
        let f = || field("f");
        let expected = [Op::Enable { field: f() }, Op::Disable { field: f() }, Op::Clear { field: f() }];
        assert_eq!(parse(body, &limits()).unwrap(), expected);
    }

    #[test]
    fn the_wrong_is_refused_with_its_place() {
        let one = |op: &str| format!("{{\"ops\":[{{\"op\":\"clear\",\"field\":\"a\"}},{op}]}}");
        let cases = [
            ("nonsense".to_owned(), "ops"),
            ("[]".to_owned(), "ops"),
            ("{}".to_owned(), "missing field `ops`"),
            (r#"{"ops":[]}"#.to_owned(), "empty"),
            (r#"{"ops":{}}"#.to_owned(), "array"),
            (r#"{"ops":[],"ops":[]}"#.to_owned(), "duplicate"),
            (r#"{"ops":[],"x":1}"#.to_owned(), "unknown field"),
            (r#"{"ops":[1,2,3,4]}"#.to_owned(), "more than 3"),
            (one("7"), "not an operation"),
            (one(r#"{"op":"zadd","field":"a"}"#), "this version has: set"),
            (one(r#"{"op":"set","field":"a"}"#), "needs `value`"),
            (one(r#"{"op":"set","value":1}"#), "needs `field`"),
            (one(r#"{"op":"set","field":"a","value":1,"by":1}"#), "does not take `by`"),
            (one(r#"{"op":"clear","field":"a","value":null}"#), "does not take `value`"),
            (one(r#"{"op":"incr","field":"a","by":1.0}"#), "integer"),
            (one(r#"{"op":"incr","field":"a","by":"1"}"#), "integer"),
            (one(r#"{"op":"incr","field":"a","by":9223372036854775808}"#), "integer"),
            (one(r#"{"op":"incr","field":"a"}"#), "needs `by`"),
            (one(r#"{"op":"add","field":"a","members":"x"}"#), "array of strings"),
            (one(r#"{"op":"add","field":"a","members":[1]}"#), "array of strings"),
            (one(r#"{"op":"add","field":"a","members":[]}"#), "at least one"),
            (one(r#"{"op":"add","field":"a","members":["1","2","3","4","5"]}"#), "more than 4"),
            (one(r#"{"op":"add","field":"a","members":[""]}"#), "empty"),
            (one(r#"{"op":"set","field":"","value":1}"#), "empty"),
            (one(r#"{"op":"set","field":"a","value":{"x":1,"x":2}}"#), "twice"),
            (one(r#"{"op":"set","field":"a","value":"\ud800"}"#), "JSON"),
            (one(r#"{"op":"set","field":"a","value":1,"vlaue":2}"#), "unknown field"),
        ];
        for (body, says) in cases {
            let problem = parse(&body, &limits()).unwrap_err();
            let text = format!("{problem:?}");
            assert!(text.contains(says), "{body}: {text}");
            let places = body.contains("clear\",\"field\":\"a\"},");
            assert_eq!(text.contains("op: Some(1)"), places, "{body}: {text}");
        }
    }
}
