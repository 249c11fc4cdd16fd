//! How what clients write is written in the lines of a script: `{"key":"k1","ops":[{"incr":{"field":"counter","by":3}}]}`.
//!
//! Types of its own, so that the engine's may change without the files. All records are in the simulator's namespace.

use godwit_core::ids::{Field, Key, Member, RecordId};
use godwit_core::json::Json;
use godwit_core::op::{Op, Write};
use godwit_core::types::score::Score;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::workload;

/// One write.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct WriteLine {
    key: String,
    ops: Vec<OpLine>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
enum OpLine {
    Set {
        field: String,
        value: String,
    },
    Incr {
        field: String,
        by: i64,
    },
    Enable {
        field: String,
    },
    Disable {
        field: String,
    },
    Add {
        field: String,
        members: Vec<String>,
    },
    Remove {
        field: String,
        members: Vec<String>,
    },
    #[serde(rename = "zadd")]
    ZAdd {
        field: String,
        scores: Vec<(String, f64)>,
    },
    #[serde(rename = "zincr")]
    ZIncr {
        field: String,
        member: String,
        by: f64,
    },
    #[serde(rename = "zremove")]
    ZRemove {
        field: String,
        members: Vec<String>,
    },
    /// A JSON Patch, as text.
    Edit {
        field: String,
        patch: String,
    },
    Observe {
        field: String,
        members: Vec<String>,
    },
    Expire {
        in_ms: u64,
    },
    Persist,
    Clear {
        field: String,
    },
    Delete,
}

impl WriteLine {
    pub(crate) fn serialize<S: Serializer>(writes: &[Write], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(writes.iter().map(Self::of))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Write>, D::Error> {
        let lines = Vec::<Self>::deserialize(from)?;
        if lines.is_empty() || lines.iter().any(|line| line.ops.is_empty()) {
            return Err(D::Error::custom("a commit has at least one write, and a write one operation"));
        }
        lines.into_iter().map(|line| line.into_write().map_err(D::Error::custom)).collect()
    }

    fn of(write: &Write) -> Self {
        Self { key: write.record.key.to_string(), ops: write.ops.iter().map(OpLine::of).collect() }
    }

    fn into_write(self) -> Result<Write, String> {
        let ops = self.ops.into_iter().map(OpLine::into_op).collect::<Result<_, _>>()?;
        Ok(Write { record: record(&self.key)?, ops })
    }
}

impl OpLine {
    fn of(op: &Op) -> Self {
        let names = |members: &[Member]| members.iter().map(|member| member.as_str().to_string()).collect();
        match op {
            Op::Set { field, value } => {
                Self::Set { field: field.to_string(), value: value.as_str().to_string() }
            }
            Op::Incr { field, by } => Self::Incr { field: field.to_string(), by: *by },
            Op::Enable { field } => Self::Enable { field: field.to_string() },
            Op::Disable { field } => Self::Disable { field: field.to_string() },
            Op::Add { field, members } => Self::Add { field: field.to_string(), members: names(members) },
            Op::Remove { field, members } => {
                Self::Remove { field: field.to_string(), members: names(members) }
            }
            Op::ZAdd { field, scores } => {
                let score = |(member, score): &(Member, Score)| (member.as_str().to_string(), score.value());
                Self::ZAdd { field: field.to_string(), scores: scores.iter().map(score).collect() }
            }
            Op::ZIncr { field, member, by } => {
                Self::ZIncr { field: field.to_string(), member: member.as_str().to_string(), by: by.value() }
            }
            Op::ZRemove { field, members } => {
                Self::ZRemove { field: field.to_string(), members: names(members) }
            }
            Op::Observe { field, members } => {
                Self::Observe { field: field.to_string(), members: names(members) }
            }
            Op::Expire { in_ms } => Self::Expire { in_ms: *in_ms },
            Op::Persist => Self::Persist,
            Op::Edit { field, patch } => {
                Self::Edit { field: field.to_string(), patch: patch.as_str().to_string() }
            }
            Op::Change { .. } | Op::ExpireAt { .. } | Op::ObserveRanks { .. } => {
                unreachable!("no workload has it")
            }
            Op::Clear { field } => Self::Clear { field: field.to_string() },
            Op::Delete => Self::Delete,
        }
    }

    fn into_op(self) -> Result<Op, String> {
        let named = |members: Vec<String>| -> Result<Vec<Member>, String> {
            members
                .into_iter()
                .map(|name| Member::new(name.as_str()).map_err(|error| error.to_string()))
                .collect()
        };
        Ok(match self {
            Self::Set { field, value } => Op::Set {
                field: named_field(&field)?,
                value: Json::parse(&value).map_err(|error| format!("the value {value}: {error}"))?,
            },
            Self::Incr { field, by } => Op::Incr { field: named_field(&field)?, by },
            Self::Enable { field } => Op::Enable { field: named_field(&field)? },
            Self::Disable { field } => Op::Disable { field: named_field(&field)? },
            Self::Add { field, members } => Op::Add { field: named_field(&field)?, members: named(members)? },
            Self::Remove { field, members } => {
                Op::Remove { field: named_field(&field)?, members: named(members)? }
            }
            Self::ZAdd { field, scores } => {
                let scored = |(name, value): (String, f64)| {
                    let member = Member::new(name.as_str()).map_err(|error| error.to_string())?;
                    Ok((member, score(value)?))
                };
                let scores = scores.into_iter().map(scored).collect::<Result<_, String>>()?;
                Op::ZAdd { field: named_field(&field)?, scores }
            }
            Self::ZIncr { field, member, by } => Op::ZIncr {
                field: named_field(&field)?,
                member: Member::new(member.as_str()).map_err(|error| error.to_string())?,
                by: score(by)?,
            },
            Self::ZRemove { field, members } => {
                Op::ZRemove { field: named_field(&field)?, members: named(members)? }
            }
            Self::Observe { field, members } => {
                Op::Observe { field: named_field(&field)?, members: named(members)? }
            }
            Self::Expire { in_ms } => Op::Expire { in_ms },
            Self::Edit { field, patch } => Op::Edit {
                field: named_field(&field)?,
                patch: Json::parse(&patch).map_err(|error| format!("the patch {patch}: {error}"))?,
            },
            Self::Persist => Op::Persist,
            Self::Clear { field } => Op::Clear { field: named_field(&field)? },
            Self::Delete => Op::Delete,
        })
    }
}

/// A record, by its key.
pub(crate) struct RecordLine;

impl RecordLine {
    pub(crate) fn serialize<S: Serializer>(record: &RecordId, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&record.key)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<RecordId, D::Error> {
        record(&String::deserialize(from)?).map_err(D::Error::custom)
    }
}

/// A field, by its name.
pub(crate) struct FieldLine;

impl FieldLine {
    pub(crate) fn serialize<S: Serializer>(field: &Field, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(field)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Field, D::Error> {
        named_field(&String::deserialize(from)?).map_err(D::Error::custom)
    }
}

fn score(value: f64) -> Result<Score, String> {
    Score::new(value).map_err(|error| error.to_string())
}

fn named_field(name: &str) -> Result<Field, String> {
    Field::new(name).map_err(|error| error.to_string())
}

/// Only records that are looked at: a commit to another one would be checked by nobody.
fn record(key: &str) -> Result<RecordId, String> {
    let key = Key::new(key).map_err(|error| error.to_string())?;
    let mut known = workload::records().into_iter();
    known
        .find(|record| record.key == key)
        .ok_or_else(|| format!("the key {key} is none of those that the simulator's workload uses"))
}
