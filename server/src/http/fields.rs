//! `/v1/{ns}/{key}/{field}`: single fields.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Extension, State};
use axum::http::{HeaderMap, Uri};
use axum::response::Response;
use godwit_core::ids::{Field, RecordId};
use godwit_core::json::Json;
use godwit_core::op::{Op, Write};
use godwit_core::read::{self, ReadError, ReadLimits};
use serde::Serialize;
use utoipa::ToSchema;

use super::contract::schemas;
use super::problem::{Kind, Problem};
use super::request::{self, FieldPath, Query};
use super::respond::Fetched;
use super::session::Session;
use super::view::{CommittedBody, Shape, Viewer};
use super::{Api, documents, respond, sets, zsets};
use crate::node::StoreView;

/// `GET`: the field's value; of a set or zset also a page, or its size; of a document also what it was and how it came about.
#[utoipa::path(
    get, path = "/v1/{ns}/{key}/{field}", operation_id = "readField", tag = "records",
    params(
        ("view" = Option<schemas::FieldView>, Query, description = "`full`: with type, siblings, commits. `size`: of a set or zset. `ranks`: of a unique. `history`, `diff`, `changes`: of a document."),
        ("numbers" = Option<schemas::NumbersForm>, Query, description = "Counters and uniques as strings."),
        ("after" = Option<String>, Query, description = "Of a set, a zset or a history: the `next` of the page before."),
        ("limit" = Option<u16>, Query, description = "A page of so many at most; 100 without.", minimum = 1, maximum = 1_000),
        ("order" = Option<schemas::PageOrder>, Query, description = "A page of a zset by rank, not by member."),
        ("desc" = Option<bool>, Query, description = "By rank, from the greatest score on."),
        ("rank" = Option<u64>, Query, description = "By rank, from this one on.", minimum = 1),
        ("min" = Option<f64>, Query, description = "By rank, only scores from this one on."),
        ("max" = Option<f64>, Query, description = "By rank, only scores up to this one."),
        ("heads" = Option<String>, Query, description = "A document as it was: up to 100 hashes of changes, by commas."),
        ("path" = Option<String>, Query, description = "As text/plain: which text in the document, a JSON Pointer."),
        ("from" = Option<String>, Query, description = "view=diff needs it: hashes of changes, by commas; none is the empty document."),
        ("to" = Option<String>, Query, description = "view=diff: hashes of changes, by commas; as it is, without."),
        ("since" = Option<String>, Query, description = "view=changes: only those that these hashes of changes, by commas, do not cover."),
    ),
    responses(
        (status = 200, description = "The field in the form that was asked for. Documents have two more: their text, and an Automerge file.", content(
            (schemas::FieldAnswer = "application/json"), (String = "text/plain"), (schemas::AutomergeFile = "application/automerge"),
        )),
        (status = 304, description = "As the client has it."),
        (status = 409, description = "type-mismatch"),
        (status = 413, description = "too-large"),
        (status = 422, description = "invalid-document"),
    )
)]
pub(super) async fn read(
    State(api): State<Api>,
    Extension(session): Extension<Session>,
    FieldPath(record, field): FieldPath,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let query = Query::of_data(
        uri.query(),
        &[&["after", "limit", "numbers", "view"][..], &zsets::PARAMETERS, &documents::PARAMETERS].concat(),
    )?;
    if let Some(form) = documents::Form::of(&query, &headers)? {
        return documents::read(&api, &session, record, field, form, &query, &headers).await;
    }
    let view = query.one_of("view", &["full", "ranks", "size", "history", "diff", "changes"])?;
    let ranked = zsets::PARAMETERS.iter().any(|name| query.text(name).is_some());
    let paged = ranked || query.text("after").is_some() || query.text("limit").is_some();
    match view {
        Some(view) if paged => {
            let detail =
                format!("a page has no view: leave out view={view}, or after, limit and what orders a page");
            Err(Problem::new(Kind::Malformed, detail))
        }
        Some("ranks") => ranks(&api, &session, record, field, &headers).await,
        Some("size") => sets::size(&api, &session, record, field, &headers).await,
        None if ranked => zsets::page(&api, &session, record, field, &query, &headers).await,
        None if paged => sets::page(&api, &session, record, field, &query, &headers).await,
        view => value(&api, &session, record, field, Shape::of(view.is_some(), &query)?, &headers).await,
    }
}

async fn value(
    api: &Api,
    session: &Session,
    record: RecordId,
    field: Field,
    shape: Shape,
    headers: &HeaderMap,
) -> Result<Response, Problem> {
    let (partitions, asked) = (api.node.partitions(), field.clone());
    let home = [record.partition(partitions)].into();
    let (at, documents) = (api.node.read_at(), Arc::clone(api.node.documents()));
    let read = move |store: &StoreView<'_>, limits: ReadLimits| {
        let mut views = read::field(store, at, &record, &asked, limits)?;
        documents.show(store, at, &record, &mut views, limits.bytes_max)?;
        Ok(views)
    };
    let Fetched { views, room } = respond::fetch(api, session, &home, read).await?;
    let viewer = Viewer::new(&api.node, shape, &views).await;
    match viewer.field(field.as_str(), views)? {
        Some(body) => respond::tagged(&body, headers, room),
        None => Err(absent(&field)),
    }
}

/// The registers of a unique that are not empty, and their ranks.
#[derive(Serialize, ToSchema)]
#[schema(as = Ranks)]
pub(super) struct RanksBody<'a> {
    #[schema(value_type = schemas::FieldName)]
    field: &'a str,
    #[schema(value_type = Vec<schemas::RegisterRank>)]
    ranks: Vec<(u16, u8)>,
}

/// The registers of a unique and their ranks, which `observe` takes.
async fn ranks(
    api: &Api,
    session: &Session,
    record: RecordId,
    field: Field,
    headers: &HeaderMap,
) -> Result<Response, Problem> {
    let at = api.node.read_at();
    let home = [record.partition(at.partitions)];
    let name = field.clone();
    let read = move |store: &StoreView<'_>| match read::ranks(store, at, &record, &field)? {
        ranks if ranks.is_empty() => Ok(Err(read::live_types(store, at, &record, &field)?)),
        ranks => Ok::<_, ReadError>(Ok(ranks)),
    };
    match session.read(api, home, read).await? {
        Ok(ranks) => respond::tagged(&RanksBody { field: name.as_str(), ranks }, headers, None),
        Err(types) => Err(match types.first() {
            Some(other) => {
                let detail = format!("the field {name:?} is a {other}, and only a unique has ranks");
                Problem::new(Kind::TypeMismatch, detail)
            }
            None => absent(&name),
        }),
    }
}

/// The problem of a field without a value.
pub(super) fn absent(field: &Field) -> Problem {
    Problem::new(Kind::NotFound, format!("the field {field:?} has no live value"))
}

/// `PUT`: sets a register to the body, or adds the changes of an Automerge file to a document.
#[utoipa::path(
    put, path = "/v1/{ns}/{key}/{field}", operation_id = "writeField", tag = "records",
    request_body(content((schemas::RegisterJson = "application/json"), (schemas::AutomergeFile = "application/automerge"))),
    responses(
        (status = 200, description = "Committed; of a file that is several commits: the last one.", body = CommittedBody),
        (status = 403, description = "quota-exceeded"),
        (status = 409, description = "type-mismatch missing-changes"),
        (status = 422, description = "invalid-document"),
    )
)]
pub(super) async fn put(
    State(api): State<Api>,
    Extension(session): Extension<Session>,
    FieldPath(record, field): FieldPath,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    Query::of_data(uri.query(), &[])?;
    if documents::is_file(&headers) {
        return documents::put(&api, &session, record, field, &headers, body).await;
    }
    let body = request::text(&api, &headers, body).await?;
    let value = Json::parse(&body.text)?;
    drop(body.text);
    let write = Write { record, ops: vec![Op::Set { field, value }] };
    let committed = session.commit(&api, vec![write], body.room).await;
    let committed = committed.map_err(|failure| Problem::from(failure).at_no_op())?;
    respond::json(&CommittedBody::from(committed))
}

/// `DELETE`: clears the field as seen, whatever its type.
#[utoipa::path(
    delete, path = "/v1/{ns}/{key}/{field}", operation_id = "clearField", tag = "records",
    responses((status = 200, description = "Committed.", body = CommittedBody))
)]
pub(super) async fn delete(
    State(api): State<Api>,
    Extension(session): Extension<Session>,
    FieldPath(record, field): FieldPath,
    uri: Uri,
) -> Result<Response, Problem> {
    Query::of_data(uri.query(), &[])?;
    let committed =
        session.commit(&api, vec![Write { record, ops: vec![Op::Clear { field }] }], None).await?;
    respond::json(&CommittedBody::from(committed))
}
