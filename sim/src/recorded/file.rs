//! The files: JSON Lines, a commit a line, and the end as one JSON value.
//!
//! | format | operations | the end |
//! |---|---|---|
//! | map | `["put", key, field, value]`, `["del", key]`, `["unset", key, field]` | `{key: {field: value}}` |
//! | set | `["add", element]`, `["rem", element]` | `[element, …]` |
//!
//! The first line may be metadata (an object without `i` and `parents`). Parents stand on earlier lines, and commits of one replica
//! are a chain: each has the one before among its ancestors (checked when it is played).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use godwit_core::ids::{Field, Key, Member, NameError};
use godwit_core::json::Json;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

/// The most commits of a file.
pub const COMMITS_MAX: usize = 100_000;
/// The most replicas of a file: a causal context names each of them, and has a limit of this size.
pub const REPLICAS_MAX: usize = 16_000;

/// What is wrong with a file, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileError {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub what: String,
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.what)
    }
}

impl std::error::Error for FileError {}

/// What a history edits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Records with fields.
    Map,
    /// One set.
    Set,
}

/// One operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecordedOp {
    /// Sets a field.
    Put(Key, Field, Json),
    /// Deletes a record.
    Del(Key),
    /// Clears a field.
    Unset(Key, Field),
    /// Adds an element.
    Add(Member),
    /// Removes one.
    Rem(Member),
}

impl RecordedOp {
    /// The name in files.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Put(..) => "put",
            Self::Del(_) => "del",
            Self::Unset(..) => "unset",
            Self::Add(_) => "add",
            Self::Rem(_) => "rem",
        }
    }

    fn format(&self) -> Format {
        match self {
            Self::Put(..) | Self::Del(_) | Self::Unset(..) => Format::Map,
            Self::Add(_) | Self::Rem(_) => Format::Set,
        }
    }
}

/// One commit.
#[derive(Debug, Clone)]
pub struct RecordedCommit {
    /// The line, from 1.
    pub line: usize,
    /// What the file calls it.
    pub name: u64,
    /// Its parents' places among the commits, each once.
    pub parents: Vec<usize>,
    /// Its replica's place among the replicas.
    pub replica: usize,
    /// Its author's clock, in milliseconds since 1970.
    pub wall_ms: u64,
    /// What it did, in order.
    pub ops: Vec<RecordedOp>,
}

/// A whole history, parents first.
#[derive(Debug, Clone, Default)]
pub struct Recorded {
    /// The commits.
    pub commits: Vec<RecordedCommit>,
    /// The names of the replicas.
    pub replicas: Vec<String>,
    /// What it edits; `None` if it does nothing.
    pub format: Option<Format>,
    /// What the metadata says that does not hold.
    pub notes: Vec<String>,
    pub(super) names: Names,
}

/// Names that the API refuses, under stand-ins that it takes.
#[derive(Debug, Clone, Default)]
pub(super) struct Names(BTreeMap<String, Value>);

impl Names {
    fn take<T>(&mut self, name: &Value, new: impl Fn(String) -> Result<T, NameError>) -> Result<T, String> {
        if let Value::String(text) = name
            && let Ok(taken) = new(text.clone())
        {
            return Ok(taken);
        }
        let stand_in = format!("stand-in-{}", blake3::hash(name.to_string().as_bytes()).to_hex());
        self.0.insert(stand_in.clone(), name.clone());
        new(stand_in).map_err(|error| error.to_string())
    }

    /// The name that stands behind one.
    pub(super) fn original(&self, name: &str) -> Value {
        self.0.get(name).cloned().unwrap_or_else(|| Value::String(name.to_string()))
    }

    /// The same of a name that was text.
    pub(super) fn text(&self, name: &str) -> String {
        self.0.get(name).and_then(Value::as_str).unwrap_or(name).to_string()
    }

    pub(super) fn stand_ins(&self) -> usize {
        self.0.len()
    }
}

#[derive(Deserialize)]
struct RawCommit<'a> {
    i: u64,
    parents: Vec<u64>,
    replica: Value,
    #[serde(default)]
    t: i64,
    #[serde(borrow)]
    ops: Vec<Vec<&'a RawValue>>,
}

/// What of the metadata can be checked.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Metadata {
    txns: Option<usize>,
    replicas: Option<usize>,
}

impl Recorded {
    /// Reads a history.
    pub fn parse(text: &str) -> Result<Self, FileError> {
        let mut recorded = Self::default();
        let mut metadata = Metadata::default();
        let (mut places, mut replicas) = (BTreeMap::new(), BTreeMap::new());
        let mut lines = text.lines().zip(1..).filter(|(line, _)| !line.trim().is_empty()).peekable();
        if let Some(&(first, line)) = lines.peek() {
            let object: BTreeMap<String, &RawValue> = serde_json::from_str(first)
                .map_err(|error| FileError { line, what: format!("not a JSON object: {error}") })?;
            if !object.contains_key("i") && !object.contains_key("parents") {
                // Metadata is free: what has another form is not checked.
                metadata = serde_json::from_str(first).unwrap_or_default();
                lines.next();
            }
        }
        for (text, line) in lines {
            let commit = recorded.commit(text, line, &mut places, &mut replicas);
            recorded.commits.push(commit.map_err(|what| FileError { line, what })?);
        }
        if recorded.commits.is_empty() {
            let what = "the file holds no commits (a line each: {\"i\", \"parents\", \"replica\", \"ops\"})";
            return Err(FileError { line: text.lines().count().max(1), what: what.into() });
        }
        let counts = [
            ("txns", metadata.txns, recorded.commits.len()),
            ("replicas", metadata.replicas, recorded.replicas.len()),
        ];
        for (name, told, found) in counts {
            if let Some(told) = told.filter(|told| *told != found) {
                recorded
                    .notes
                    .push(format!("the metadata tells {told} {name}, the file holds {found}: is it whole?"));
            }
        }
        Ok(recorded)
    }

    fn commit(
        &mut self,
        text: &str,
        line: usize,
        places: &mut BTreeMap<u64, usize>,
        replicas: &mut BTreeMap<String, usize>,
    ) -> Result<RecordedCommit, String> {
        let raw: RawCommit<'_> =
            serde_json::from_str(text).map_err(|error| format!("not a commit: {error}"))?;
        if self.commits.len() == COMMITS_MAX {
            return Err(format!("the file has more than {COMMITS_MAX} commits, which is the limit"));
        }
        let parent = |name: &u64| {
            places.get(name).copied().ok_or_else(|| {
                format!("parent {name} of commit {} is on no earlier line: parents come first", raw.i)
            })
        };
        let parents = raw.parents.iter().map(parent).collect::<Result<BTreeSet<_>, _>>()?;
        if places.insert(raw.i, self.commits.len()).is_some() {
            return Err(format!("there is a commit {} already", raw.i));
        }
        let name = match &raw.replica {
            Value::String(name) => name.clone(),
            Value::Number(number) => number.to_string(),
            other => return Err(format!("`replica` must be a number or a name, this is {other}")),
        };
        let next = replicas.len();
        let replica = *replicas.entry(name.clone()).or_insert(next);
        if replica == next {
            if next == REPLICAS_MAX {
                return Err(format!("the file has more than {REPLICAS_MAX} replicas, which is the limit"));
            }
            self.replicas.push(name);
        }
        let mut ops = Vec::with_capacity(raw.ops.len());
        for (at, parts) in raw.ops.iter().enumerate() {
            let op = operation(parts, &mut self.names).map_err(|what| format!("operation {at}: {what}"))?;
            if *self.format.get_or_insert(op.format()) != op.format() {
                let name = op.name();
                return Err(format!(
                    "operation {at}: {name:?} edits a set and the others a map, or the other way round"
                ));
            }
            ops.push(op);
        }
        let wall_ms = u64::try_from(raw.t).unwrap_or(0).saturating_mul(1000);
        let parents = parents.into_iter().collect();
        Ok(RecordedCommit { line, name: raw.i, parents, replica, wall_ms, ops })
    }
}

fn operation(parts: &[&RawValue], names: &mut Names) -> Result<RecordedOp, String> {
    let values = parts.iter().map(|part| serde_json::from_str(part.get()));
    let values: Vec<Value> = values.collect::<Result<_, _>>().map_err(|error| error.to_string())?;
    let key = |names: &mut Names, at: usize| match &values[at] {
        name @ Value::String(_) => names.take(name, Key::new),
        other => Err(format!("a key is a string, this is {other}")),
    };
    let field = |names: &mut Names, at: usize| match &values[at] {
        name @ Value::String(_) => names.take(name, Field::new),
        other => Err(format!("a field's name is a string, this is {other}")),
    };
    let kind = values.first().and_then(Value::as_str).unwrap_or_default();
    Ok(match (kind, values.len()) {
        ("put", 4) => {
            let value = Json::parse(parts[3].get()).map_err(|error| error.to_string())?;
            RecordedOp::Put(key(names, 1)?, field(names, 2)?, value)
        }
        ("del", 2) => RecordedOp::Del(key(names, 1)?),
        ("unset", 3) => RecordedOp::Unset(key(names, 1)?, field(names, 2)?),
        ("add", 2) => RecordedOp::Add(names.take(&values[1], Member::new)?),
        ("rem", 2) => RecordedOp::Rem(names.take(&values[1], Member::new)?),
        _ => {
            let shown = Value::Array(values).to_string();
            return Err(format!(
                "{shown} is none of [\"put\", key, field, value], [\"del\", key], [\"unset\", key, field], \
                 [\"add\", element], [\"rem\", element]"
            ));
        }
    })
}

/// The end as the file tells it, values as JSON text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Final {
    /// Records and their fields.
    Map(BTreeMap<String, BTreeMap<String, String>>),
    /// The elements, each once.
    Set(BTreeSet<String>),
}

impl Final {
    /// Reads the end.
    pub fn parse(text: &str) -> Result<Self, FileError> {
        let wrong = |what: &str, error: serde_json::Error| FileError {
            line: error.line().max(1),
            what: format!("{what}: {error}"),
        };
        if text.trim_start().starts_with('[') {
            let elements: Vec<Value> =
                serde_json::from_str(text).map_err(|error| wrong("not an array of elements", error))?;
            return Ok(Self::Set(elements.iter().map(Value::to_string).collect()));
        }
        let records: BTreeMap<String, BTreeMap<String, &RawValue>> = serde_json::from_str(text)
            .map_err(|error| wrong("neither {key: {field: value}} nor an array of elements", error))?;
        let fields = |fields: BTreeMap<String, &RawValue>| -> Result<BTreeMap<String, String>, FileError> {
            let text = |value: &RawValue| Json::parse(value.get()).map(|json| json.as_str().to_string());
            let named = fields.into_iter().map(|(name, value)| Ok((name, text(value)?)));
            named
                .collect::<Result<_, godwit_core::json::JsonError>>()
                .map_err(|error| FileError { line: 1, what: error.to_string() })
        };
        let records = records.into_iter().map(|(key, record)| Ok((key, fields(record)?)));
        Ok(Self::Map(records.collect::<Result<_, FileError>>()?))
    }
}
