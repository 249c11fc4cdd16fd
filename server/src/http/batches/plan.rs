//! What a batch asks for, and which commits its writes become.
//!
//! Writes are grouped by partition; the groups, the records in a group, and the operations on a record stand in the
//! order in which the batch first names them. A key that stands in several writes is one record of one commit: its
//! operations act in order, as in one write, and each of those writes has the commit's outcome.

use std::borrow::Cow;
use std::collections::BTreeMap;

use godwit_core::ids::{Key, Namespace, PartitionId, RecordId};
use godwit_core::op::{Op, Write};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::config::LimitsSection;
use crate::http::contract::schemas::reference;
use crate::http::ops::{self, Unread, bounded, malformed, object, present};
use crate::http::problem::Problem;

/// The most writes of a batch.
const WRITES_MAX: usize = 1_000;
/// The most keys that a batch reads.
const READS_MAX: usize = 1_000;
/// The most operations of all writes of a batch, unless one record may have more.
const OPS_MAX: usize = 10_000;

/// A batch.
#[derive(Debug)]
pub(super) enum Batch {
    /// Keys, and what to do to their records.
    Writes(Vec<(Key, Vec<Op>)>),
    /// Keys of records to show.
    Reads(Vec<Key>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawBatch<'a> {
    #[serde(borrow, default, deserialize_with = "present")]
    writes: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    reads: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawWrite<'a> {
    #[serde(borrow)]
    key: Cow<'a, str>,
    #[serde(borrow)]
    ops: &'a RawValue,
}

/// What [`parse`] reads, for the contract.
pub(in crate::http) fn schema() -> Value {
    let write = json!({
        "type": "object", "required": ["key", "ops"],
        "properties": {"key": reference("KeyName"), "ops": reference("OperationList")},
    });
    let list = |name: &str, of: Value, max: usize| {
        let items = json!({"type": "array", "items": of, "minItems": 1, "maxItems": max});
        json!({"type": "object", "required": [name], "properties": {name: items}})
    };
    json!({"oneOf": [list("writes", write, WRITES_MAX), list("reads", reference("KeyName"), READS_MAX)]})
}

/// Reads the body of a batch.
pub(super) fn parse(body: &str, limits: &LimitsSection) -> Result<Batch, Problem> {
    const FORM: &str = "the body is not {\"writes\": [{\"key\", \"ops\"}, …]} or {\"reads\": [key, …]}";
    let batch: RawBatch<'_> = object(body).map_err(|error| malformed(format!("{FORM}: {error}")))?;
    match (batch.writes, batch.reads) {
        (Some(writes), None) => self::writes(writes, limits).map(Batch::Writes),
        (None, Some(reads)) => self::reads(reads).map(Batch::Reads),
        (Some(_), Some(_)) => Err(malformed(format!("{FORM}: it is both; send two requests"))),
        (None, None) => Err(malformed(format!("{FORM}: it is neither"))),
    }
}

fn reads(raw: &RawValue) -> Result<Vec<Key>, Problem> {
    let names: Vec<Cow<'_, str>> = items(raw, "reads", READS_MAX, "keys")?;
    let key = |name: Cow<'_, str>| Ok(Key::new(name)?);
    names.into_iter().map(key).collect()
}

fn writes(raw: &RawValue, limits: &LimitsSection) -> Result<Vec<(Key, Vec<Op>)>, Problem> {
    let items: Vec<&RawValue> = items(raw, "writes", WRITES_MAX, "objects")?;
    let (mut members_left, mut ops_left) = (limits.members, OPS_MAX.max(limits.ops));
    let mut writes = Vec::with_capacity(items.len());
    for (index, item) in items.into_iter().enumerate() {
        let write = write(item, limits, &mut members_left).and_then(|(key, ops)| {
            let left = ops_left.checked_sub(ops.len());
            ops_left = left.ok_or_else(|| too_many_ops("the batch", OPS_MAX.max(limits.ops)))?;
            Ok((key, ops))
        });
        writes.push(write.map_err(|problem| problem.at_write(index))?);
    }
    Ok(writes)
}

fn write(
    raw: &RawValue,
    limits: &LimitsSection,
    members_left: &mut usize,
) -> Result<(Key, Vec<Op>), Problem> {
    let write: RawWrite<'_> = object(raw.get())
        .map_err(|error| malformed(format!("the write is not {{\"key\", \"ops\"}}: {error}")))?;
    Ok((Key::new(write.key)?, ops::list(write.ops, limits, members_left)?))
}

fn items<'a, T: Deserialize<'a>>(
    raw: &'a RawValue,
    name: &'static str,
    max: usize,
    of: &str,
) -> Result<Vec<T>, Problem> {
    let items: Vec<T> = bounded(raw, max).map_err(|failure| match failure {
        Unread::Beyond => {
            Problem::too_large(name, max, format!("the batch has more than {max} {name}: split it"))
        }
        Unread::Not(error) => malformed(format!("`{name}` is not an array of {of}: {error}")),
    })?;
    if items.is_empty() {
        return Err(malformed(format!("`{name}` is empty: give at least one")));
    }
    Ok(items)
}

fn too_many_ops(what: &str, max: usize) -> Problem {
    Problem::too_large("ops", max, format!("{what} has more than {max} operations: split it"))
}

/// The keys of the writes, and the commits that they become.
#[derive(Debug)]
pub(super) struct Plan {
    /// By write.
    pub(super) keys: Vec<Key>,
    /// One a partition.
    pub(super) commits: Vec<Commit>,
}

/// One partition's part of a batch.
#[derive(Debug)]
pub(super) struct Commit {
    pub(super) partition: PartitionId,
    /// One a record.
    pub(super) writes: Vec<Write>,
    /// For each record, where its operations come from.
    sources: Vec<Vec<Source>>,
}

#[derive(Debug, Clone, Copy)]
struct Source {
    /// The index of the write in the batch.
    write: usize,
    /// How many operations it has.
    ops: usize,
}

/// Groups writes into commits. Refuses a record that is given more operations than one commit may have.
pub(super) fn plan(
    namespace: &Namespace,
    partitions: u16,
    asked: Vec<(Key, Vec<Op>)>,
    limits: &LimitsSection,
) -> Result<Plan, Problem> {
    let keys: Vec<Key> = asked.iter().map(|(key, _)| key.clone()).collect();
    let mut commits: Vec<Commit> = Vec::new();
    let mut homes: BTreeMap<PartitionId, usize> = BTreeMap::new();
    let mut places: BTreeMap<Key, (usize, usize)> = BTreeMap::new();
    for (index, (key, ops)) in asked.into_iter().enumerate() {
        let source = Source { write: index, ops: ops.len() };
        if let Some(&(commit, place)) = places.get(&key) {
            let commit = &mut commits[commit];
            let write = &mut commit.writes[place];
            if write.ops.len() + ops.len() > limits.ops {
                return Err(too_many_ops("the record", limits.ops).at_write(index));
            }
            write.ops.extend(ops);
            commit.sources[place].push(source);
            continue;
        }
        let record = RecordId { namespace: namespace.clone(), key: key.clone() };
        let partition = record.partition(partitions);
        let home = *homes.entry(partition).or_insert(commits.len());
        if home == commits.len() {
            commits.push(Commit { partition, writes: Vec::new(), sources: Vec::new() });
        }
        let commit = &mut commits[home];
        places.insert(key, (home, commit.writes.len()));
        commit.writes.push(Write { record, ops });
        commit.sources.push(vec![source]);
    }
    Ok(Plan { keys, commits })
}

impl Commit {
    /// The indices of the batch's writes that are in it.
    pub(super) fn asked(&self) -> impl Iterator<Item = usize> {
        self.sources.iter().flatten().map(|source| source.write)
    }

    /// Where an operation of the commit stands in the batch: its write, and its index there.
    pub(super) fn locate(&self, write: usize, op: usize) -> Option<(usize, usize)> {
        let mut before = 0;
        for source in self.sources.get(write)? {
            if op < before + source.ops {
                return Some((source.write, op - before));
            }
            before += source.ops;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> LimitsSection {
        LimitsSection { ops: 3, members: 4, ..LimitsSection::default() }
    }

    fn planned(body: &str, partitions: u16) -> Result<Plan, Problem> {
        match parse(body, &limits())? {
            Batch::Writes(asked) => plan(&Namespace::new("ns").unwrap(), partitions, asked, &limits()),
            Batch::Reads(_) => panic!("it is a batch of writes"),
        }
    }

    fn write(key: &str, fields: &[&str]) -> String {
        let ops: Vec<String> =
            fields.iter().map(|field| format!("{{\"op\":\"enable\",\"field\":\"{field}\"}}")).collect();
        format!("{{\"key\":\"{key}\",\"ops\":[{}]}}", ops.join(","))
    }

    fn body(writes: &[String]) -> String {
        format!("{{\"writes\":[{}]}}", writes.join(","))
    }

    #[test]
    fn writes_are_grouped_in_order_and_operations_are_found_again() {
        let tagged =
            [write("{u}/b", &["1", "2"]), write("x", &["1"]), write("{u}/a", &["3"]), write("{u}/b", &["4"])];
        let plan = planned(&body(&tagged), 4096).unwrap();
        assert_eq!(plan.keys.iter().map(Key::as_str).collect::<Vec<_>>(), ["{u}/b", "x", "{u}/a", "{u}/b"]);
        let [tagged, other] = &plan.commits[..] else { panic!("two partitions: {plan:?}") };
        assert_ne!(tagged.partition, other.partition);
        let told = |commit: &Commit| -> Vec<(String, usize)> {
            commit.writes.iter().map(|write| (write.record.key.to_string(), write.ops.len())).collect()
        };
        assert_eq!(told(tagged), [("{u}/b".to_owned(), 3), ("{u}/a".to_owned(), 1)]);
        assert_eq!(told(other), [("x".to_owned(), 1)]);
        let mut asked: Vec<usize> = tagged.asked().collect();
        asked.sort_unstable();
        assert_eq!(asked, [0, 2, 3]);
        let places = [(0, 0), (0, 1), (0, 2), (1, 0)].map(|(write, op)| tagged.locate(write, op));
        assert_eq!(places, [Some((0, 0)), Some((0, 1)), Some((3, 0)), Some((2, 0))]);
        assert_eq!((tagged.locate(0, 3), tagged.locate(2, 0)), (None, None));
    }

    #[test]
    fn the_wrong_is_refused_with_its_place() {
        let good = write("k", &["f"]);
        let cases = [
            ("[]".to_owned(), "not an object", None),
            ("{}".to_owned(), "neither", None),
            (r#"{"reads":["k"],"writes":[]}"#.to_owned(), "both", None),
            (r#"{"reads":["k"],"read":[]}"#.to_owned(), "unknown field", None),
            (r#"{"reads":[]}"#.to_owned(), "empty", None),
            (r#"{"reads":null}"#.to_owned(), "not an array", None),
            (r#"{"reads":[7]}"#.to_owned(), "not an array of keys", None),
            (r#"{"reads":[".."]}"#.to_owned(), "..", None),
            (format!("{{\"reads\":[{}]}}", ["\"k\""; READS_MAX + 1].join(",")), "more than 1000 reads", None),
            (body(&[]), "empty", None),
            (body(&vec![good.clone(); WRITES_MAX + 1]), "more than 1000 writes", None),
            (body(&[good.clone(), "7".to_owned()]), "not an object", Some(1)),
            (body(&[good.clone(), r#"{"key":"k"}"#.to_owned()]), "missing field `ops`", Some(1)),
            (body(&[good.clone(), r#"{"key":"k","ops":[],"if":1}"#.to_owned()]), "unknown field", Some(1)),
            (body(&[good.clone(), write("k", &[])]), "empty", Some(1)),
            (body(&[good.clone(), write("", &["f"])]), "empty", Some(1)),
            (body(&[good.clone(), write("j", &["f", ".."])]), "..", Some(1)),
            (body(&[good.clone(), write("j", &["f"; 4])]), "more than 3 operations", Some(1)),
            (
                body(&[good.clone(), write("j", &["f"; 3]), write("k", &["f"; 3])]),
                "the record has more",
                Some(2),
            ),
        ];
        for (body, says, place) in cases {
            let told = match parse(&body, &limits()) {
                Ok(Batch::Writes(_)) => planned(&body, 8).unwrap_err(),
                outcome => outcome.unwrap_err(),
            };
            let told = format!("{told:?}");
            assert!(told.contains(says), "{body:.200}: {told}");
            assert!(told.contains(&format!("write: {place:?}")), "{body:.200}: {told}");
        }
        // Members are counted over the batch, operations too.
        let add = |key: &str| {
            format!(
                "{{\"key\":\"{key}\",\"ops\":[{{\"op\":\"add\",\"field\":\"s\",\"members\":[\"a\",\"b\"]}}]}}"
            )
        };
        planned(&body(&[add("1"), add("2")]), 8).unwrap();
        let told = format!("{:?}", planned(&body(&[add("1"), add("2"), add("3")]), 8).unwrap_err());
        assert!(told.contains("more than 4 members") && told.contains("write: Some(2)"), "{told}");
        let many = LimitsSection { ops: 1_000, ..LimitsSection::default() };
        let full = |count: usize| -> Vec<String> {
            (0..count).map(|i| write(&format!("k{i}"), &["f"; 1_000])).collect()
        };
        parse(&body(&full(10)), &many).unwrap();
        let told = format!("{:?}", parse(&body(&full(11)), &many).unwrap_err());
        assert!(told.contains("more than 10000 operations") && told.contains("write: Some(10)"), "{told}");
    }
}
