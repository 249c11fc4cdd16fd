//! Documents: `GET /v1/{ns}/{key}/{field}` in forms that only documents have, and `PUT` of an Automerge file.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Body;
use axum::http::{HeaderMap, header};
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use godwit_core::document::{self, ChangeHash, Document, DocumentError, Encoded, Selected};
use godwit_core::ids::{Field, RecordId};
use godwit_core::op::{Op, Write};
use godwit_core::read;
use godwit_core::row::FieldType;
use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::contract::schemas;
use super::fields::absent;
use super::paging::Paging;
use super::problem::{Kind, Problem};
use super::request::{self, Query};
use super::session::Session;
use super::view::{CommittedBody, UpdatedBody};
use super::{Api, respond};
use crate::node::{ReadFailure, StoreView};

/// The query parameters that only documents have.
pub(super) const PARAMETERS: [&str; 5] = ["heads", "path", "from", "to", "since"];

/// The media type of Automerge's files.
const AUTOMERGE: &str = "application/automerge";
const TEXT: &str = "text/plain";

/// The most heads that a request names.
const HEADS_MAX: usize = 100;
/// Changes of a file that go into one commit.
const CHANGES_AT_ONCE: usize = 1_000;
/// Bytes of them after which it ends.
const BYTES_AT_ONCE: usize = 2 * 1024 * 1024;

/// In what form a document is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// As it is, or was at heads.
    Json,
    Text,
    File,
    History,
    Diff,
    Changes,
}

/// The answer to a question about heads.
struct Heads(Vec<ChangeHash>);

/// A document, as it is or was.
#[derive(Serialize, ToSchema)]
#[schema(as = DocumentAt)]
pub(super) struct ValueBody<'a> {
    #[schema(value_type = schemas::FieldName)]
    field: &'a str,
    #[schema(value_type = schemas::DocumentJson)]
    value: Box<RawValue>,
    /// The changes that no other one builds on, in this state.
    #[schema(value_type = Vec<schemas::ChangeHash>)]
    heads: Vec<String>,
}

/// What leads from one state of a document to another.
#[derive(Serialize, ToSchema)]
#[schema(as = DocumentDiff)]
pub(super) struct DiffBody<'a> {
    #[schema(value_type = schemas::FieldName)]
    field: &'a str,
    #[schema(value_type = Vec<schemas::ChangeHash>)]
    from: Vec<String>,
    #[schema(value_type = Vec<schemas::ChangeHash>)]
    to: Vec<String>,
    #[schema(value_type = schemas::JsonPatch)]
    patch: Box<RawValue>,
}

/// Changes of a document, in causal order.
#[derive(Serialize, ToSchema)]
#[schema(as = DocumentChanges)]
pub(super) struct ChangesBody<'a> {
    #[schema(value_type = schemas::FieldName)]
    field: &'a str,
    #[schema(value_type = Vec<schemas::Base64>)]
    changes: Vec<String>,
    /// Of the whole document.
    #[schema(value_type = Vec<schemas::ChangeHash>)]
    heads: Vec<String>,
    /// There are more: ask again with what these lead to as `since`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    truncated: bool,
}

/// Changes of a document, in the order in which they were first committed.
#[derive(Serialize, ToSchema)]
#[schema(as = DocumentHistory)]
pub(super) struct HistoryBody<'a> {
    #[schema(value_type = schemas::FieldName)]
    field: &'a str,
    history: Vec<ChangeBody>,
    /// The `after` of the next page, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// A change of a document.
#[derive(Serialize, ToSchema)]
#[schema(as = DocumentChange)]
pub(super) struct ChangeBody {
    #[schema(value_type = schemas::ChangeHash)]
    hash: String,
    /// The changes that it builds on.
    #[schema(value_type = Vec<schemas::ChangeHash>)]
    deps: Vec<String>,
    #[schema(value_type = schemas::Hexadecimal)]
    actor: String,
    /// Which one of its actor's it is, from 1 on.
    seq: u64,
    /// How many operations it has.
    ops: u64,
    /// When its author says that it was made, in seconds since 1970.
    time: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    committed: UpdatedBody,
}

impl Form {
    /// The form that a request asks for, if it is one that only documents have.
    pub(super) fn of(query: &Query, headers: &HeaderMap) -> Result<Option<Self>, Problem> {
        let form = match (query.text("view"), accepts(headers)) {
            (Some("history"), _) => Self::History,
            (Some("diff"), _) => Self::Diff,
            (Some("changes"), _) => Self::Changes,
            (Some(_), _) => return Ok(None),
            (None, Some(AUTOMERGE)) => Self::File,
            (None, Some(TEXT)) => Self::Text,
            (None, _) if PARAMETERS.iter().any(|name| query.text(name).is_some()) => Self::Json,
            (None, _) => return Ok(None),
        };
        let takes: &[&str] = match form {
            Self::Json | Self::File => &["heads"],
            Self::Text => &["heads", "path"],
            Self::History => &["after", "limit"],
            Self::Diff => &["from", "to"],
            Self::Changes => &["since"],
        };
        let all = PARAMETERS.iter().chain(&["after", "limit"]);
        if let Some(other) = all.copied().find(|name| query.text(name).is_some() && !takes.contains(name)) {
            let detail = format!(
                "the query parameter {other:?} does not go with this form of a document: `heads` with JSON, text and \
                 {AUTOMERGE}, `path` with {TEXT}, `from` and `to` with view=diff, `since` with view=changes, `after` and \
                 `limit` with view=history"
            );
            return Err(Problem::new(Kind::Malformed, detail));
        }
        Ok(Some(form))
    }
}

/// The first of the types that only documents have, in the order in which the client names them; none if it names JSON first.
fn accepts(headers: &HeaderMap) -> Option<&'static str> {
    let named = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let types =
        named.flat_map(|value| value.split(',')).map(|ty| ty.split(';').next().unwrap_or_default().trim());
    for ty in types {
        match ty {
            AUTOMERGE => return Some(AUTOMERGE),
            TEXT => return Some(TEXT),
            "application/json" => return None,
            _ => {}
        }
    }
    None
}

impl Heads {
    fn parse(query: &Query, name: &str) -> Result<Option<Self>, Problem> {
        let Some(given) = query.text(name) else { return Ok(None) };
        let wrong = |what: &str| {
            let detail =
                format!("the query parameter {name:?} is a list of hashes of changes, by commas: {what}");
            Problem::new(Kind::Malformed, detail)
        };
        if given.is_empty() {
            return Ok(Some(Self(Vec::new())));
        }
        let hashes = given.split(',').map(|hash| hash.parse().map_err(|_| wrong(&format!("not {hash:?}"))));
        let hashes: Vec<ChangeHash> = hashes.collect::<Result<_, _>>()?;
        match hashes.len() <= HEADS_MAX {
            true => Ok(Some(Self(hashes))),
            false => Err(wrong(&format!("at most {HEADS_MAX}"))),
        }
    }
}

/// Shows a document in a form that only documents have.
pub(super) async fn read(
    api: &Api,
    session: &Session,
    record: RecordId,
    field: Field,
    form: Form,
    query: &Query,
    headers: &HeaderMap,
) -> Result<Response, Problem> {
    let heads = Heads::parse(query, "heads")?.map(|Heads(heads)| heads);
    let most = api.node.limits().answer_bytes;
    // Nobody knows how large it will be before it is made.
    let room = respond::room(api, most).await?;
    let name = field.as_str().to_owned();
    match form {
        Form::Json => {
            let show = move |document: &Document| {
                Ok((document.json(heads.as_deref())?, heads.unwrap_or_else(|| document.heads())))
            };
            let (json, heads) = with(api, session, record, field, show).await?;
            let value = RawValue::from_string(json).map_err(|error| Problem::unreadable(&error))?;
            respond::tagged(&ValueBody { field: &name, value, heads: texts(&heads) }, headers, room)
        }
        Form::Text => {
            let path = query.text("path").map(str::to_owned);
            let show = move |document: &Document| document.text(path.as_deref(), heads.as_deref());
            let text = with(api, session, record, field, show).await?;
            respond::tagged_as("text/plain; charset=utf-8", text.into_bytes(), headers, room)
        }
        Form::File => {
            let show = move |document: &Document| document.save(heads.as_deref());
            let file = with(api, session, record, field, show).await?;
            respond::tagged_as(AUTOMERGE, file, headers, room)
        }
        Form::Diff => {
            let Some(Heads(from)) = Heads::parse(query, "from")? else {
                return Err(Problem::new(Kind::Malformed, "view=diff needs `from`: heads of the document"));
            };
            let to = Heads::parse(query, "to")?.map(|Heads(to)| to);
            let show = move |document: &Document| {
                let to = to.unwrap_or_else(|| document.heads());
                Ok((document.diff(&from, &to)?, from, to))
            };
            let (patch, from, to) = with(api, session, record, field, show).await?;
            let patch = RawValue::from_string(patch).map_err(|error| Problem::unreadable(&error))?;
            let body = DiffBody { field: &name, from: texts(&from), to: texts(&to), patch };
            respond::tagged(&body, headers, room)
        }
        Form::Changes => {
            let Heads(since) = Heads::parse(query, "since")?.unwrap_or(Heads(Vec::new()));
            let show = move |document: &Document| {
                let (mut changes, mut bytes, mut truncated) = (Vec::new(), 0, false);
                for change in document.changes_since(&since)? {
                    bytes += change.len() * 4 / 3 + 8;
                    truncated = bytes > most && !changes.is_empty();
                    if truncated {
                        break;
                    }
                    changes.push(STANDARD.encode(change));
                }
                Ok((changes, document.heads(), truncated))
            };
            let (changes, heads, truncated) = with(api, session, record, field, show).await?;
            let body = ChangesBody { field: &name, changes, heads: texts(&heads), truncated };
            respond::tagged(&body, headers, room)
        }
        Form::History => history(api, session, record, field, query, headers).await,
    }
}

/// A page of the changes, in the order in which they were first committed.
async fn history(
    api: &Api,
    session: &Session,
    record: RecordId,
    field: Field,
    query: &Query,
    headers: &HeaderMap,
) -> Result<Response, Problem> {
    let Paging { after, limits } = Paging::parse(query)?;
    let name = field.as_str().to_owned();
    let place = |selected: &Selected| format!("{:016x}-{}", selected.hlc.0, selected.encoded.change.hash);
    let (at, asked) = (api.node.read_at(), field.clone());
    let home = [record.partition(at.partitions)];
    let read = move |store: &StoreView<'_>| {
        let changes = read::changes(store, at, &record, &asked, None)?;
        if changes.is_empty() {
            return Ok(Err(read::live_types(store, at, &record, &asked)?));
        }
        let mut ordered: Vec<(String, Selected)> =
            changes.into_iter().map(|selected| (place(&selected), selected)).collect();
        ordered.sort_by(|a, b| a.0.cmp(&b.0));
        let begin = after.map_or(0, |after| ordered.partition_point(|(place, _)| *place <= after));
        let mut shown = ordered.split_off(begin);
        let more = shown.len() > limits.items_max;
        shown.truncate(limits.items_max);
        let next = shown.last().filter(|_| more).map(|(place, _)| place.clone());
        Ok::<_, ReadFailure>(Ok((shown.into_iter().map(|(_, selected)| selected).collect::<Vec<_>>(), next)))
    };
    let found = session.read(api, home, read).await?;
    let (shown, next) = found.map_err(|types| missing(&field, &types))?;
    let mut replicas: Vec<_> = shown.iter().map(|selected| selected.dot.replica).collect();
    replicas.sort_unstable();
    replicas.dedup();
    let regions = api.node.regions(&replicas).await;
    let history = shown.into_iter().map(|selected| ChangeBody::of(selected, &regions)).collect();
    respond::tagged(&HistoryBody { field: &name, history, next }, headers, None)
}

impl ChangeBody {
    fn of(selected: Selected, regions: &BTreeMap<godwit_core::ids::ReplicaId, String>) -> Self {
        let Selected { encoded: Encoded { change, .. }, dot, hlc } = selected;
        Self {
            hash: change.hash.to_string(),
            deps: texts(&change.deps),
            actor: change.actor.iter().map(|byte| format!("{byte:02x}")).collect(),
            seq: change.seq,
            ops: change.ops,
            time: change.time,
            message: change.message,
            committed: UpdatedBody::of(dot.replica, hlc, regions),
        }
    }
}

fn texts(hashes: &[ChangeHash]) -> Vec<String> {
    hashes.iter().map(ToString::to_string).collect()
}

/// Reads a document in a state of the store.
async fn with<T: Send + 'static>(
    api: &Api,
    session: &Session,
    record: RecordId,
    field: Field,
    show: impl FnOnce(&Document) -> Result<T, DocumentError> + Send + 'static,
) -> Result<T, Problem> {
    let (at, documents, asked) = (api.node.read_at(), Arc::clone(api.node.documents()), field.clone());
    let home = [record.partition(at.partitions)];
    let read = move |store: &StoreView<'_>| {
        let show = |document: &mut Document| match document.heads().is_empty() {
            true => Ok(None),
            false => show(document).map(Some),
        };
        match documents.with(store, at, (&record, &asked), show)? {
            Some(shown) => Ok::<_, ReadFailure>(Ok(shown)),
            None => Ok(Err(read::live_types(store, at, &record, &asked)?)),
        }
    };
    session.read(api, home, read).await?.map_err(|types| missing(&field, &types))
}

/// Why a document is not there.
fn missing(field: &Field, types: &[FieldType]) -> Problem {
    match types.first() {
        Some(other) => {
            let detail = format!("the field {field:?} is a {other}, and only a document has this form");
            Problem::new(Kind::TypeMismatch, detail)
        }
        None => absent(field),
    }
}

/// Whether a body is said to be an Automerge file.
pub(super) fn is_file(headers: &HeaderMap) -> bool {
    let given = headers.get(header::CONTENT_TYPE).and_then(|given| given.to_str().ok());
    given.is_some_and(|given| {
        given.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case(AUTOMERGE)
    })
}

/// Adds the changes of a file to a document: those that it does not have. A large file is several commits, in causal order; to send it
/// again goes on where it ended.
pub(super) async fn put(
    api: &Api,
    session: &Session,
    record: RecordId,
    field: Field,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let (file, room) = request::bytes(api, headers, body, |_| Ok(())).await?;
    let changes = tokio::task::spawn_blocking(move || document::changes_of_file(&file)).await;
    let changes = changes.map_err(|error| Problem::unreadable(&error))?.map_err(ReadFailure::from)?;
    if changes.is_empty() {
        return Err(Problem::new(Kind::Malformed, "the body has no change: send an Automerge file"));
    }
    let mut committed = None;
    for part in parts(changes) {
        let write =
            Write { record: record.clone(), ops: vec![Op::Change { field: field.clone(), changes: part }] };
        let part = session.commit_part(api, vec![write]).await;
        committed = Some(part.map_err(|failure| Problem::from(failure).at_no_op())?);
    }
    drop(room);
    match committed {
        Some(committed) => respond::json(&CommittedBody::from(committed)),
        None => Err(Problem::new(Kind::Malformed, "the body has no change")),
    }
}

/// The changes by commits.
pub(super) fn parts(changes: Vec<Encoded>) -> Vec<Vec<Encoded>> {
    let mut parts: Vec<Vec<Encoded>> = Vec::new();
    let mut bytes = 0;
    for change in changes {
        bytes += change.bytes.len();
        match parts.last_mut() {
            Some(part) if part.len() < CHANGES_AT_ONCE && bytes <= BYTES_AT_ONCE => part.push(change),
            _ => {
                bytes = change.bytes.len();
                parts.push(vec![change]);
            }
        }
    }
    parts
}
