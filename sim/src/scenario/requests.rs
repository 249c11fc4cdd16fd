//! Requests of the HTTP API: method, path and body become reads, listings and commits.
//!
//! What the API has and the simulator does not model (tokens, `view`, pages of sets, change streams) is refused by name.

use godwit_core::ids::{Field, Key, Member, NameError, Namespace, RecordId};
use godwit_core::json::Json;
use godwit_core::op::{Op, Write};
use serde::Deserialize;
use serde_json::value::RawValue;

/// Keys on a page if the request does not say, and at most.
const LIST_LIMIT: usize = 100;
const LIST_LIMIT_MAX: usize = 1_000;

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Request {
    /// Reads records, or one field of each.
    Read(Vec<(RecordId, Option<Field>)>),
    /// Lists keys.
    List { namespace: Namespace, prefix: String, after: Option<String>, limit: usize },
    /// Writes; records of one partition are one commit.
    Write(Vec<Write>),
    /// Reads a record, then writes.
    ReadThenWrite(RecordId, Vec<Write>),
}

impl Request {
    /// The name of its kind in reports.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Read(_) => "read",
            Self::List { .. } => "list",
            Self::Write(_) => "write",
            Self::ReadThenWrite(..) => "read-modify-write",
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Patch<'a> {
    #[serde(borrow)]
    ops: Vec<RawOp<'a>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Post<'a> {
    #[serde(borrow)]
    writes: Option<Vec<PostWrite<'a>>>,
    reads: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PostWrite<'a> {
    key: String,
    #[serde(borrow)]
    ops: Vec<RawOp<'a>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawOp<'a> {
    op: String,
    field: String,
    #[serde(borrow)]
    value: Option<&'a RawValue>,
    by: Option<i64>,
    members: Option<Vec<String>>,
}

/// Reads a request.
pub(super) fn parse(method: &str, path: &str, body: Option<&str>) -> Result<Request, String> {
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let segments =
        path.strip_prefix("/v1/").ok_or_else(|| format!("path {path:?} does not begin with /v1/"))?;
    let segments: Vec<String> = segments.split('/').map(decoded).collect::<Result<_, _>>()?;
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    let namespace = Namespace::new(segments[0]).map_err(named)?;
    let record = |key: &str| -> Result<RecordId, String> {
        Ok(RecordId { namespace: namespace.clone(), key: Key::new(key).map_err(named)? })
    };
    let body = || body.ok_or_else(|| format!("{method} {path} needs a body"));
    let one = |key: &str, ops: Vec<Op>| Ok(Request::Write(vec![Write { record: record(key)?, ops }]));
    if !query.is_empty() && segments.len() != 1 {
        return Err(format!("the simulator models no query of a record: leave out ?{query}"));
    }
    match (method, &segments[1..]) {
        ("GET", []) => list(namespace, query),
        ("GET", [key]) => Ok(Request::Read(vec![(record(key)?, None)])),
        ("GET", [key, field] | [key, field, _]) => {
            Ok(Request::Read(vec![(record(key)?, Some(Field::new(*field).map_err(named)?))]))
        }
        ("PATCH", [key]) => {
            let patch: Patch<'_> = serde_json::from_str(body()?)
                .map_err(|error| format!("the body is not {{\"ops\": [operation, …]}}: {error}"))?;
            one(key, ops(&patch.ops)?)
        }
        ("DELETE", [key]) => one(key, vec![Op::Delete]),
        ("PUT", [key, field]) => {
            let value = Json::parse(body()?).map_err(|error| error.to_string())?;
            one(key, vec![Op::Set { field: Field::new(*field).map_err(named)?, value }])
        }
        ("DELETE", [key, field]) => one(key, vec![Op::Clear { field: Field::new(*field).map_err(named)? }]),
        ("POST", []) => {
            let post: Post<'_> = serde_json::from_str(body()?).map_err(|error| {
                format!("the body is neither {{\"writes\": …}} nor {{\"reads\": …}}: {error}")
            })?;
            match (post.writes, post.reads) {
                (Some(writes), None) if !writes.is_empty() => {
                    let write = |write: &PostWrite<'_>| {
                        Ok(Write { record: record(&write.key)?, ops: ops(&write.ops)? })
                    };
                    Ok(Request::Write(writes.iter().map(write).collect::<Result<_, String>>()?))
                }
                (None, Some(reads)) if !reads.is_empty() => {
                    let read = |key: &String| Ok((record(key)?, None));
                    Ok(Request::Read(reads.iter().map(read).collect::<Result<_, String>>()?))
                }
                _ => Err("the body needs either `writes` or `reads`, and something in it".into()),
            }
        }
        _ => Err(format!(
            "{method} {path} is not modelled: there are GET, PATCH and DELETE of /v1/namespace/key, GET, PUT and DELETE of \
             /v1/namespace/key/field, GET and POST of /v1/namespace"
        )),
    }
}

fn list(namespace: Namespace, query: &str) -> Result<Request, String> {
    let (mut prefix, mut after, mut limit) = (String::new(), None, LIST_LIMIT);
    for part in query.split('&').filter(|part| !part.is_empty()) {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        let value = decoded(value)?;
        match name {
            "prefix" => prefix = value,
            "after" => after = Some(value),
            "limit" => {
                let given = value.parse().ok().filter(|limit| (1..=LIST_LIMIT_MAX).contains(limit));
                limit = given.ok_or_else(|| format!("`limit` is a number from 1 to {LIST_LIMIT_MAX}"))?;
            }
            other => return Err(format!("a listing takes prefix, after and limit, not {other:?}")),
        }
    }
    Ok(Request::List { namespace, prefix, after, limit })
}

fn ops(raw: &[RawOp<'_>]) -> Result<Vec<Op>, String> {
    if raw.is_empty() {
        return Err("`ops` is empty: a commit has at least one operation".into());
    }
    raw.iter()
        .enumerate()
        .map(|(at, raw)| op(raw).map_err(|what| format!("operation {at}: {what}")))
        .collect()
}

fn op(raw: &RawOp<'_>) -> Result<Op, String> {
    let field = Field::new(raw.field.as_str()).map_err(named)?;
    let given = (raw.value, raw.by, raw.members.as_deref());
    let members = |names: &[String]| -> Result<Vec<Member>, String> {
        names.iter().map(|name| Member::new(name.as_str()).map_err(named)).collect()
    };
    Ok(match (raw.op.as_str(), given) {
        ("set", (Some(value), None, None)) => {
            Op::Set { field, value: Json::parse(value.get()).map_err(|error| error.to_string())? }
        }
        ("incr", (None, Some(by), None)) => Op::Incr { field, by },
        ("enable", (None, None, None)) => Op::Enable { field },
        ("disable", (None, None, None)) => Op::Disable { field },
        ("clear", (None, None, None)) => Op::Clear { field },
        ("add", (None, None, Some(names))) if !names.is_empty() => {
            Op::Add { field, members: members(names)? }
        }
        ("remove", (None, None, Some(names))) if !names.is_empty() => {
            Op::Remove { field, members: members(names)? }
        }
        (name, _) => {
            return Err(format!(
                "{name:?} and what stands with it are no operation: there are set (value), incr (by), enable, disable, \
                 add and remove (members), clear"
            ));
        }
    })
}

fn named(error: NameError) -> String {
    error.to_string()
}

/// Undoes percent-encoding.
fn decoded(text: &str) -> Result<String, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|byte| char::from(byte).to_digit(16));
        let (Some(high), Some(low)) = (digit(), digit()) else {
            return Err(format!("{text:?} has a % that two hexadecimal digits do not follow"));
        };
        bytes.push((high * 16 + low) as u8);
    }
    String::from_utf8(bytes).map_err(|_| format!("{text:?} is not UTF-8 once decoded"))
}
