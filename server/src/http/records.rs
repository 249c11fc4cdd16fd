//! `/v1/{ns}/{key}`: records.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Extension, State};
use axum::http::{HeaderMap, Uri};
use axum::response::Response;
use godwit_core::ids::RecordId;
use godwit_core::op::{Op, Write};
use godwit_core::read;

use super::contract::schemas;
use super::problem::{Kind, Problem};
use super::request::{self, Query, RecordPath};
use super::respond::Fetched;
use super::session::Session;
use super::view::{self, CommittedBody, RecordBody, RecordView, Shape, Viewer};
use super::{Api, ops, respond};
use crate::node::StoreView;

/// `GET`: the record's live fields.
#[utoipa::path(
    get, path = "/v1/{ns}/{key}", operation_id = "readRecord", tag = "records",
    params(
        ("numbers" = Option<schemas::NumbersForm>, Query, description = "Counters and uniques as strings."),
        ("view" = Option<schemas::RecordView>, Query, description = "With types, siblings, and which commit each value is of."),
    ),
    responses(
        (status = 200, description = "The record.", body = RecordBody),
        (status = 304, description = "As the client has it."),
        (status = 413, description = "too-large"),
        (status = 422, description = "invalid-document"),
    )
)]
pub(super) async fn read(
    State(api): State<Api>,
    Extension(session): Extension<Session>,
    RecordPath(record): RecordPath,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let shape = Shape::parse(&Query::of_data(uri.query(), &view::PARAMETERS)?)?;
    let Fetched { views: view, room } = fetch(&api, &session, shape, &record).await?;
    if view.fields.is_empty() {
        let detail = format!("the record {:?} has no live field", record.key);
        return Err(Problem::new(Kind::NotFound, detail));
    }
    let viewer = Viewer::new(&api.node, shape, &view.fields).await;
    respond::tagged(&viewer.record(record.key.as_str(), view, None)?, &headers, room)
}

/// `PATCH`: operations, committed together. A record that is asked for and too large to show is left out of the answer.
#[utoipa::path(
    patch, path = "/v1/{ns}/{key}", operation_id = "writeRecord", tag = "records",
    params(
        ("return" = Option<schemas::Returned>, Query, description = "Answer with the record afterwards."),
        ("numbers" = Option<schemas::NumbersForm>, Query, description = "In a record that is answered: counters and uniques as strings."),
        ("view" = Option<schemas::RecordView>, Query, description = "In a record that is answered: types, siblings, commits."),
    ),
    request_body = schemas::Operations,
    responses(
        (status = 200, description = "Committed.", body = schemas::CommittedRecord),
        (status = 400, description = "unknown-op"),
        (status = 403, description = "quota-exceeded"),
        (status = 409, description = "type-mismatch edit-refused missing-changes"),
        (status = 422, description = "invalid-document"),
    )
)]
pub(super) async fn patch(
    State(api): State<Api>,
    Extension(session): Extension<Session>,
    RecordPath(record): RecordPath,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let query = Query::of_data(uri.query(), &["numbers", "return", "view"])?;
    let (shape, returns_record) = (Shape::parse(&query)?, query.has("return", "record")?);
    let body = request::text(&api, &headers, body).await?;
    let ops = ops::parse(&body.text, api.node.limits())?;
    drop(body.text);
    let write = Write { record: record.clone(), ops };
    let committed = session.commit(&api, vec![write], body.room).await?;
    if !returns_record {
        return respond::json(&CommittedBody::from(committed));
    }
    // The commit stands, whatever becomes of showing the record.
    let Ok(Fetched { views: view, room }) = fetch(&api, &session, shape, &record).await else {
        return respond::json(&CommittedBody::from(committed));
    };
    let viewer = Viewer::new(&api.node, shape, &view.fields).await;
    respond::held(&viewer.record(record.key.as_str(), view, Some(committed))?, room)
}

/// `DELETE`: clears every field as seen.
#[utoipa::path(
    delete, path = "/v1/{ns}/{key}", operation_id = "deleteRecord", tag = "records",
    responses((status = 200, description = "Committed.", body = CommittedBody))
)]
pub(super) async fn delete(
    State(api): State<Api>,
    Extension(session): Extension<Session>,
    RecordPath(record): RecordPath,
    uri: Uri,
) -> Result<Response, Problem> {
    Query::of_data(uri.query(), &[])?;
    let committed = session.commit(&api, vec![Write { record, ops: vec![Op::Delete] }], None).await?;
    respond::json(&CommittedBody::from(committed))
}

async fn fetch(
    api: &Api,
    session: &Session,
    shape: Shape,
    record: &RecordId,
) -> Result<Fetched<RecordView>, Problem> {
    let (partitions, record) = (api.node.partitions(), record.clone());
    let home = [record.partition(partitions)].into();
    let (at, documents) = (api.node.read_at(), Arc::clone(api.node.documents()));
    let read = move |store: &StoreView<'_>, limits| {
        let fields = read::record(store, at, &record, limits)?;
        RecordView::of(fields, shape, store, at, &record, (&documents, limits))
    };
    respond::fetch(api, session, &home, read).await
}
