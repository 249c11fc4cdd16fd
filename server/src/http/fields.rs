//! `/v1/{ns}/{key}/{field}`: single fields.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, Uri};
use axum::response::Response;
use godwit_core::json::Json;
use godwit_core::op::{Op, Write};
use godwit_core::read;
use godwit_engine::store::Snapshot;

use super::problem::{Kind, Problem};
use super::request::{self, FieldPath, Query};
use super::respond::Fetched;
use super::view::{self, CommittedBody, Shape, Viewer};
use super::{Api, respond};

/// `GET`: the field's value.
pub(super) async fn read(
    State(api): State<Api>,
    FieldPath(record, field): FieldPath,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let shape = Shape::parse(&Query::parse(uri.query(), &view::PARAMETERS)?)?;
    let (partitions, asked) = (api.node.partitions(), field.clone());
    let read = move |store: &Snapshot<'_>, limits| read::field(store, partitions, &record, &asked, limits);
    let Fetched { views, room } = respond::fetch(&api, read).await?;
    let viewer = Viewer::new(&api.node, shape, &views).await;
    match viewer.field(field.as_str(), views)? {
        Some(body) => respond::tagged(&body, &headers, room),
        None => Err(Problem::new(Kind::NotFound, format!("the field {field:?} has no live value"))),
    }
}

/// `PUT`: sets a register to the body.
pub(super) async fn put(
    State(api): State<Api>,
    FieldPath(record, field): FieldPath,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    Query::parse(uri.query(), &[])?;
    let body = request::text(&api, &headers, body).await?;
    let value = Json::parse(&body.text)?;
    drop(body.text);
    let write = Write { record, ops: vec![Op::Set { field, value }] };
    let committed = api.node.commit_holding(vec![write], body.room).await;
    let committed = committed.map_err(|failure| Problem::from(failure).at_no_op())?;
    respond::json(&CommittedBody::from(committed))
}

/// `DELETE`: clears the field as seen, whatever its type.
pub(super) async fn delete(
    State(api): State<Api>,
    FieldPath(record, field): FieldPath,
    uri: Uri,
) -> Result<Response, Problem> {
    Query::parse(uri.query(), &[])?;
    let committed = api.node.commit(vec![Write { record, ops: vec![Op::Clear { field }] }]).await?;
    respond::json(&CommittedBody::from(committed))
}
