//! Recorded histories: what many people really did to one map or one set, replayed exactly.
//!
//! A file is a graph of commits ([`file`]). Each chain of commits is played by a replica of its own, which applies the
//! ancestors of its next commit and nothing else, then makes it ([`play`]): operations and deltas through the machine of
//! a partition, as in the server. At the end two readers apply everything, in two orders: they must hold the same bytes,
//! and what the record of the end says.

pub mod file;
mod play;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::value::RawValue;

pub use file::{FileError, Final, Format, Recorded};
use play::End;
pub use play::PlayError;

/// What came of a replay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Commits played.
    pub commits: usize,
    /// Those with more than one parent.
    pub merges: usize,
    /// Replicas, one a chain.
    pub replicas: usize,
    /// Operations by name.
    pub ops: BTreeMap<&'static str, usize>,
    /// Deltas made.
    pub deltas: usize,
    /// Their bytes.
    pub delta_bytes: usize,
    /// Deltas applied by replicas other than their origin, readers included.
    pub applied: usize,
    /// Records at the end, or members of the set.
    pub items: usize,
    /// Fields of records at the end; 0 for a set.
    pub fields: usize,
    /// Registers at the end that have siblings, which no later commit resolved.
    pub unresolved: usize,
    /// Names that the API refuses (control characters, too long, not text), played under stand-ins.
    pub stand_ins: usize,
    /// What the file says of itself and does not hold.
    pub notes: Vec<String>,
    /// How the end differs from what it must be, a line each.
    pub differences: Vec<String>,
}

/// Replays a file and compares its end.
///
/// # Errors
/// If the machine refuses what the file asks for, or the two files are not of one format.
pub fn replay(recorded: &Recorded, expected: &Final) -> Result<Report, PlayError> {
    match (recorded.format, expected) {
        (Some(Format::Map), Final::Set(_)) => {
            return Err(PlayError(
                "the history is of a map (put, del, unset), but the final file holds an array".into(),
            ));
        }
        (Some(Format::Set), Final::Map(_)) => {
            return Err(PlayError(
                "the history is of a set (add, rem), but the final file holds an object".into(),
            ));
        }
        _ => {}
    }
    let played = play::play(recorded)?;
    let (items, fields) = match &played.end {
        End { records, .. } if recorded.format == Some(Format::Map) => {
            (records.len(), records.values().map(BTreeMap::len).sum())
        }
        End { members, .. } => (members.len(), 0),
    };
    let mut ops = BTreeMap::new();
    for op in recorded.commits.iter().flat_map(|commit| &commit.ops) {
        *ops.entry(op.name()).or_insert(0) += 1;
    }
    let differences = match expected {
        Final::Map(records) => map_differences(&played.end.records, records),
        Final::Set(members) => set_differences(&played.end.members, members),
    };
    Ok(Report {
        commits: recorded.commits.len(),
        merges: recorded.commits.iter().filter(|commit| commit.parents.len() > 1).count(),
        replicas: recorded.replicas.len(),
        ops,
        deltas: played.deltas,
        delta_bytes: played.delta_bytes,
        applied: played.applied,
        items,
        fields,
        unresolved: played.end.unresolved,
        stand_ins: recorded.names.stand_ins(),
        notes: recorded.notes.clone(),
        differences,
    })
}

type Records = BTreeMap<String, BTreeMap<String, String>>;

/// A record without fields is no record.
fn map_differences(found: &Records, expected: &Records) -> Vec<String> {
    let mut differences = Vec::new();
    let nothing = BTreeMap::new();
    let keys: BTreeSet<&String> = found.keys().chain(expected.keys()).collect();
    for key in keys {
        let (here, there) = (found.get(key).unwrap_or(&nothing), expected.get(key).unwrap_or(&nothing));
        if here.is_empty() != there.is_empty() {
            let what = if here.is_empty() { "is missing" } else { "must not be there" };
            differences.push(format!("record {key:?} {what}"));
            continue;
        }
        let fields: BTreeSet<&String> = here.keys().chain(there.keys()).collect();
        for field in fields {
            match (here.get(field), there.get(field)) {
                (Some(here), Some(there)) if same_json(here, there) => {}
                (Some(here), Some(there)) => {
                    differences.push(format!("record {key:?} field {field:?}: {here}, must be {there}"));
                }
                (None, _) => differences.push(format!("record {key:?} field {field:?} is missing")),
                (_, None) => differences.push(format!("record {key:?} field {field:?} must not be there")),
            }
        }
    }
    differences
}

fn set_differences(found: &BTreeSet<String>, expected: &BTreeSet<String>) -> Vec<String> {
    let missing = expected.difference(found).map(|member| format!("element {member} is missing"));
    let surplus = found.difference(expected).map(|member| format!("element {member} must not be there"));
    missing.chain(surplus).collect()
}

/// Equal values, however written: escapes and the order of keys may differ, numbers must have the same text.
fn same_json(a: &str, b: &str) -> bool {
    a == b || normal(a).is_some_and(|a| normal(b) == Some(a))
}

fn normal(text: &str) -> Option<String> {
    Some(match text.as_bytes().first()? {
        b'{' => {
            let entries: BTreeMap<String, &RawValue> = serde_json::from_str(text).ok()?;
            let entries =
                entries.iter().map(|(key, value)| Some(format!("{key:?}:{}", normal(value.get())?)));
            format!("{{{}}}", entries.collect::<Option<Vec<_>>>()?.join(","))
        }
        b'[' => {
            let items: Vec<&RawValue> = serde_json::from_str(text).ok()?;
            let items = items.iter().map(|item| normal(item.get()));
            format!("[{}]", items.collect::<Option<Vec<_>>>()?.join(","))
        }
        b'"' => format!("{:?}", serde_json::from_str::<String>(text).ok()?),
        _ => text.to_string(),
    })
}
