//! Operations as JSON: `{"ops": [{"op": "incr", "field": "plays", "by": 1}, …]}`.
//!
//! - An operation is a flat object. It has exactly the members that its kind takes: a member of another kind, or an
//!   unknown one, is refused, since the client meant something that would not happen.
//! - Values of registers are passed on as text, so that numbers and key order survive.
//! - Arrays are counted while they are read: what is beyond a limit is never stored.

use std::borrow::Cow;
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use godwit_core::document::{Encoded, Patch};
use godwit_core::ids::{Field, Member, NameError};
use godwit_core::json::Json;
use godwit_core::op::Op;
use godwit_core::types::expiry::EXPIRE_MS_MAX;
use godwit_core::types::score::{NotFinite, Score};
use godwit_core::types::unique::{RANK_MAX, REGISTERS};
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::problem::{Kind, Problem};
use super::time;
use crate::config::LimitsSection;

mod schema;

pub(super) use schema::{patch_schema, rank_schema, schema};

/// What an operation looks like.
struct Form {
    name: &'static str,
    /// Whether it names a field; else it is about the whole record.
    of_field: bool,
    /// The members that it has besides.
    takes: &'static [&'static str],
    /// Whether it has one of them, and not all.
    either: bool,
    about: &'static str,
}

impl Form {
    const fn of(name: &'static str, takes: &'static [&'static str], about: &'static str) -> Self {
        Self { name, of_field: true, takes, either: false, about }
    }
}

/// The operations that this version has.
const FORMS: [Form; 15] = [
    Form::of("set", &["value"], "Sets a register."),
    Form::of("incr", &["by"], "Adds to a counter."),
    Form::of("enable", &[], "Makes a flag true."),
    Form::of("disable", &[], "Makes a flag false, as far as it was seen to be true."),
    Form::of("add", &["members"], "Adds to a set."),
    Form::of("remove", &["members"], "Removes from a set what was seen in it."),
    Form::of("zadd", &["scores"], "Sets scores in a zset."),
    Form::of("zincr", &["member", "by"], "Adds to a score in a zset."),
    Form::of("zremove", &["members"], "Removes from a zset what was seen in it."),
    Form {
        either: true,
        ..Form::of("observe", &["members", "ranks"], "Counts members in a unique, or sets its registers.")
    },
    Form::of("edit", &["patch"], "Edits a document."),
    Form::of("change", &["changes"], "Adds changes to a document."),
    Form::of("clear", &[], "Clears a field of any type, as it was seen."),
    Form { of_field: false, either: true, ..Form::of("expire", &["in_ms", "at"], "Has the record expire.") },
    Form { of_field: false, ..Form::of("persist", &[], "Has the record not expire.") },
];

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
    #[serde(borrow, default, deserialize_with = "present")]
    member: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    scores: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    in_ms: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    at: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    ranks: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    patch: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    changes: Option<&'a RawValue>,
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
    let Some(form) = FORMS.iter().find(|form| form.name == name.op) else {
        let names = FORMS.map(|form| form.name).join(", ");
        let detail = format!("there is no operation {:?}; this version has: {names}", name.op);
        return Err(Problem::new(Kind::UnknownOp, detail));
    };
    let raw: RawOp<'_> = object(text).map_err(not_one)?;
    let given = [
        ("value", raw.value),
        ("by", raw.by),
        ("members", raw.members),
        ("member", raw.member),
        ("scores", raw.scores),
        ("in_ms", raw.in_ms),
        ("at", raw.at),
        ("ranks", raw.ranks),
        ("patch", raw.patch),
        ("changes", raw.changes),
    ];
    if let Some((name, _)) = given.iter().find(|(name, value)| value.is_some() && !form.takes.contains(name))
    {
        return Err(malformed(format!("the operation {:?} does not take `{name}`", raw.op)));
    }
    let missing = |name: &str| malformed(format!("the operation {:?} needs `{name}`", raw.op));
    if !form.of_field {
        if raw.field.is_some() {
            return Err(malformed(format!("{:?} is about the whole record: leave out `field`", raw.op)));
        }
        return match (raw.in_ms, raw.at) {
            (None, None) if raw.op == "persist" => Ok(Op::Persist),
            (Some(in_ms), None) => expire(in_ms),
            (None, Some(at)) => expire_at(at),
            (Some(_), Some(_)) => Err(malformed("\"expire\" takes `in_ms` or `at`, not both")),
            (None, None) => Err(missing("in_ms")),
        };
    }
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
        "edit" => {
            let patch = Json::parse(raw.patch.ok_or_else(|| missing("patch"))?.get())?;
            Patch::parse(&patch).map_err(|error| malformed(format!("`patch`: {error}")))?;
            Op::Edit { field, patch }
        }
        "change" => {
            let raw = raw.changes.ok_or_else(|| missing("changes"))?;
            Op::Change { field, changes: changes(raw, limits, members_left)? }
        }
        "enable" => Op::Enable { field },
        "disable" => Op::Disable { field },
        "clear" => Op::Clear { field },
        "zadd" => {
            let scores = raw.scores.ok_or_else(|| missing("scores"))?;
            Op::ZAdd { field, scores: self::scores(scores, limits, members_left)? }
        }
        "observe" if raw.ranks.is_some() => match (raw.ranks, raw.members) {
            (Some(ranks), None) => {
                Op::ObserveRanks { field, ranks: self::ranks(ranks, limits, members_left)? }
            }
            _ => return Err(malformed("\"observe\" takes `members` or `ranks`, not both")),
        },
        "zincr" => {
            let member: Cow<'_, str> =
                serde_json::from_str(raw.member.ok_or_else(|| missing("member"))?.get())
                    .map_err(|_| malformed("`member` must be a string"))?;
            let by = raw.by.ok_or_else(|| missing("by"))?;
            let by = score(by.get()).map_err(|_| malformed("`by` must be a finite number"))?;
            *members_left = members_left.checked_sub(1).ok_or_else(|| too_many(limits))?;
            Op::ZIncr { field, member: Member::new(member)?, by }
        }
        with_members => {
            let members = raw.members.ok_or_else(|| missing("members"))?;
            let members = self::members(members, limits, members_left)?;
            match with_members {
                "add" => Op::Add { field, members },
                "zremove" => Op::ZRemove { field, members },
                "observe" => Op::Observe { field, members },
                _ => Op::Remove { field, members },
            }
        }
    })
}

fn expire(in_ms: &RawValue) -> Result<Op, Problem> {
    let in_ms = serde_json::from_str(in_ms.get()).ok().filter(|in_ms| (1..=EXPIRE_MS_MAX).contains(in_ms));
    let wrong =
        || malformed(format!("`in_ms` must be an integer from 1 to {EXPIRE_MS_MAX}, in milliseconds"));
    in_ms.map(|in_ms| Op::Expire { in_ms }).ok_or_else(wrong)
}

fn expire_at(at: &RawValue) -> Result<Op, Problem> {
    let at = serde_json::from_str::<Cow<'_, str>>(at.get()).ok();
    let at_ms = at.and_then(|at| time::parse(&at));
    let wrong = || malformed("`at` must be a time like \"2026-11-23T09:30:00.000Z\", in UTC, from 1970 on");
    at_ms.map(|at_ms| Op::ExpireAt { at_ms }).ok_or_else(wrong)
}

/// Automerge changes, in base64. They count as members do.
fn changes(raw: &RawValue, limits: &LimitsSection, left: &mut usize) -> Result<Vec<Encoded>, Problem> {
    let texts: Vec<Cow<'_, str>> = bounded(raw, *left).map_err(|failure| match failure {
        Unread::Beyond => too_many(limits),
        Unread::Not(error) => malformed(format!("`changes` is not an array of strings: {error}")),
    })?;
    if texts.is_empty() {
        return Err(malformed("`changes` is empty: send at least one"));
    }
    *left -= texts.len();
    let read = |(index, text): (usize, Cow<'_, str>)| {
        let bytes = STANDARD
            .decode(text.as_ref())
            .map_err(|error| malformed(format!("change {index} is not base64: {error}")))?;
        Encoded::parse(bytes)
            .map_err(|error| Problem::new(Kind::InvalidDocument, format!("change {index}: {error}")))
    };
    texts.into_iter().enumerate().map(read).collect()
}

/// Registers and ranks, in the order given.
fn ranks(raw: &RawValue, limits: &LimitsSection, left: &mut usize) -> Result<Vec<(u16, u8)>, Problem> {
    let ranks: Vec<(u16, u8)> = bounded(raw, *left).map_err(|failure| match failure {
        Unread::Beyond => too_many(limits),
        Unread::Not(error) => malformed(format!("`ranks` is not an array of [register, rank]: {error}")),
    })?;
    *left -= ranks.len();
    let is_one = |(register, rank): &(u16, u8)| *register < REGISTERS && (1..=RANK_MAX).contains(rank);
    match ranks.iter().all(is_one) && !ranks.is_empty() {
        true => Ok(ranks),
        false => Err(malformed(format!(
            "`ranks` must have at least one [register, rank], registers from 0 to {}, ranks from 1 to {RANK_MAX}",
            REGISTERS - 1
        ))),
    }
}

/// A finite number. What is out of the range of a 64-bit float is refused, not rounded to an infinity.
pub(super) fn score(text: &str) -> Result<Score, NotFinite> {
    let number: f64 = serde_json::from_str(text).map_err(|_| NotFinite)?;
    Score::new(number)
}

/// Members and their scores, in the order given; a member that is named twice is a client's mistake.
fn scores(raw: &RawValue, limits: &LimitsSection, left: &mut usize) -> Result<Vec<(Member, Score)>, Problem> {
    let not_scores =
        |error| malformed(format!("`scores` is not an object of finite numbers by member: {error}"));
    let mut read = serde_json::Deserializer::from_str(raw.get());
    let mut beyond = false;
    let found = read.deserialize_map(BoundedScores { max: *left, beyond: &mut beyond });
    let found = found.map_err(|error| if beyond { too_many(limits) } else { not_scores(error) })?;
    if found.is_empty() {
        return Err(malformed("`scores` is empty: name at least one member"));
    }
    *left -= found.len();
    let mut names: Vec<&str> = found.iter().map(|(name, _)| name.as_ref()).collect();
    names.sort_unstable();
    if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(malformed(format!("`scores` names {:?} twice", twice[0])));
    }
    let scored = found.into_iter().map(|(name, score)| Ok((Member::new(name)?, score)));
    scored.collect::<Result<_, NameError>>().map_err(Problem::from)
}

fn too_many(limits: &LimitsSection) -> Problem {
    let detail = format!("the commit names more than {} members: split it", limits.members);
    Problem::too_large("members", limits.members, detail)
}

struct BoundedScores<'s> {
    max: usize,
    beyond: &'s mut bool,
}

impl<'de> Visitor<'de> for BoundedScores<'_> {
    type Value = Vec<(Cow<'de, str>, Score)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut scores = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            if scores.len() == self.max {
                *self.beyond = true;
                return Err(A::Error::custom("too many members"));
            }
            let value: &RawValue = map.next_value()?;
            let score = score(value.get()).map_err(|_| A::Error::custom(format!("the score of {name:?}")))?;
            scores.push((Cow::Owned(name), score));
        }
        Ok(scores)
    }
}

fn members(raw: &RawValue, limits: &LimitsSection, left: &mut usize) -> Result<Vec<Member>, Problem> {
    let names: Vec<Cow<'_, str>> = bounded(raw, *left).map_err(|failure| match failure {
        Unread::Beyond => too_many(limits),
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
        let body = r#"{"ops":[{"op":"zadd","field":"z","scores":{"b":1.5,"a":-0.0}},
            {"op":"zincr","field":"z","member":"m","by":1e-3},{"op":"expire","in_ms":7}]}"#;
        let number = |value: f64| Score::new(value).unwrap();
        let scores = vec![(member("b"), number(1.5)), (member("a"), number(0.0))];
        let expected = [
            Op::ZAdd { field: field("z"), scores },
            Op::ZIncr { field: field("z"), member: member("m"), by: number(0.001) },
            Op::Expire { in_ms: 7 },
        ];
        assert_eq!(parse(body, &limits()).unwrap(), expected);
        let body = r#"{"ops":[{"op":"observe","field":"u","ranks":[[0,1],[16383,51]]},
            {"op":"expire","at":"1970-01-01T00:01:00Z"},{"op":"zincr","field":"z","member":"m","by":31.245270191439438}]}"#;
        let expected = [
            Op::ObserveRanks { field: field("u"), ranks: vec![(0, 1), (16383, 51)] },
            Op::ExpireAt { at_ms: 60_000 },
            // Some readers of JSON take it for its neighbour.
            Op::ZIncr { field: field("z"), member: member("m"), by: number(31.245270191439438) },
        ];
        assert_eq!(parse(body, &limits()).unwrap(), expected);
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
            (one(r#"{"op":"pop","field":"a"}"#), "this version has: set"),
            (one(r#"{"op":"zadd","field":"a"}"#), "needs `scores`"),
            (one(r#"{"op":"zadd","field":"a","scores":{}}"#), "at least one"),
            (one(r#"{"op":"zadd","field":"a","scores":[["x",1]]}"#), "an object"),
            (one(r#"{"op":"zadd","field":"a","scores":{"x":"1"}}"#), "the score of"),
            (one(r#"{"op":"zadd","field":"a","scores":{"x":1e400}}"#), "the score of"),
            (one(r#"{"op":"zadd","field":"a","scores":{"x":1,"x":2}}"#), "twice"),
            (one(r#"{"op":"zadd","field":"a","scores":{"1":1,"2":1,"3":1,"4":1,"5":1}}"#), "more than 4"),
            (one(r#"{"op":"zincr","field":"a","by":1}"#), "needs `member`"),
            (one(r#"{"op":"zincr","field":"a","member":["m"],"by":1}"#), "a string"),
            (one(r#"{"op":"zincr","field":"a","member":"m","by":-1e999}"#), "finite"),
            (one(r#"{"op":"expire"}"#), "needs `in_ms`"),
            (one(r#"{"op":"expire","in_ms":0}"#), "from 1"),
            (one(r#"{"op":"expire","in_ms":1.5}"#), "integer"),
            (one(r#"{"op":"expire","in_ms":5,"field":"a"}"#), "whole record"),
            (one(r#"{"op":"persist","in_ms":5}"#), "does not take"),
            (one(r#"{"op":"persist","at":"2031-01-01T00:00:00Z"}"#), "does not take"),
            (one(r#"{"op":"expire","at":"2031-01-01T00:00:00Z","in_ms":5}"#), "not both"),
            (one(r#"{"op":"expire","at":5}"#), "a time like"),
            (one(r#"{"op":"expire","at":"tomorrow"}"#), "a time like"),
            (one(r#"{"op":"observe","field":"a"}"#), "needs `members`"),
            (one(r#"{"op":"observe","field":"a","members":["x"],"ranks":[[0,1]]}"#), "not both"),
            (one(r#"{"op":"observe","field":"a","ranks":[]}"#), "at least one"),
            (one(r#"{"op":"observe","field":"a","ranks":[[16384,1]]}"#), "from 0 to 16383"),
            (one(r#"{"op":"observe","field":"a","ranks":[[0,0]]}"#), "from 1 to 51"),
            (one(r#"{"op":"observe","field":"a","ranks":[[0,1],[0,1],[0,1],[0,1],[0,1]]}"#), "more than 4"),
            (one(r#"{"op":"observe","field":"a","ranks":{"0":1}}"#), "array"),
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
