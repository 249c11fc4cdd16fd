//! Parts of sets: `/v1/{ns}/{key}/{field}` with `after`, `limit` or `view=size`, and `…/{member}`.

use std::sync::Arc;

use axum::extract::{Extension, State};
use axum::http::{HeaderMap, Uri};
use axum::response::Response;
use godwit_core::ids::{Field, Member, RecordId};
use godwit_core::read;
use godwit_core::row::FieldType;
use serde::Serialize;

use super::fields::absent;
use super::paging::Paging;
use super::problem::{Kind, Problem};
use super::request::{MemberPath, Query};
use super::session::Session;
use super::{Api, respond};
use crate::node::StoreView;

/// Sets whose members are counted at a time.
pub(super) const SIZES_AT_ONCE_MAX: usize = 2;

#[derive(Serialize)]
struct PageBody<'a> {
    field: &'a str,
    value: Vec<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<&'a str>,
}

#[derive(Serialize)]
struct SizeBody<'a> {
    field: &'a str,
    size: u64,
}

#[derive(Serialize)]
struct MemberBody<'a> {
    field: &'a str,
    member: &'a str,
}

/// A page of a set.
pub(super) async fn page(
    api: &Api,
    session: &Session,
    record: RecordId,
    field: Field,
    query: &Query,
    headers: &HeaderMap,
) -> Result<Response, Problem> {
    let Paging { after, limits } = Paging::parse(query)?;
    query.has("numbers", "string")?;
    let (partitions, asked) = (api.node.partitions(), field.clone());
    let home = record.partition(partitions);
    let read = move |store: &StoreView<'_>| {
        let page = read::members(store, partitions, &record, &asked, after.as_deref(), limits)?;
        // An empty last page says nothing about whether there is a set.
        let empty = page.items.is_empty() && page.next.is_none();
        let types = empty.then(|| read::live_types(store, partitions, &record, &asked)).transpose()?;
        Ok::<_, read::ReadError>((page, types))
    };
    let (page, types) = session.read(api, [home], read).await?;
    if let Some(types) = types {
        check_set(&field, &types)?;
    }
    let body = PageBody {
        field: field.as_str(),
        value: page.items.iter().map(Member::as_str).collect(),
        next: page.next.as_ref().map(Member::as_str),
    };
    respond::tagged(&body, headers, None)
}

/// The number of a set's members. The first question counts them, and asks the node to keep the number.
pub(super) async fn size(
    api: &Api,
    session: &Session,
    record: RecordId,
    field: Field,
    headers: &HeaderMap,
) -> Result<Response, Problem> {
    let (partitions, asked) = (api.node.partitions(), (record.clone(), field.clone()));
    let home = record.partition(partitions);
    let kept = move |store: &StoreView<'_>| read::kept_size(store, partitions, &asked.0, &asked.1);
    let size = match session.read(api, [home], kept).await?.filter(|size| *size > 0) {
        Some(kept) => kept,
        None => {
            let size = count(api, session, record.clone(), field.clone()).await?;
            api.node.keep_size(record, field.clone());
            size
        }
    };
    respond::tagged(&SizeBody { field: field.as_str(), size }, headers, None)
}

async fn count(api: &Api, session: &Session, record: RecordId, field: Field) -> Result<u64, Problem> {
    let turn = tokio::time::timeout(respond::ROOM_WAIT_MAX, Arc::clone(&api.sizes).acquire_owned()).await;
    let turn = turn
        .ok()
        .and_then(Result::ok)
        .ok_or_else(|| Problem::new(Kind::Overloaded, "the node counts as many sets as it may at a time"))?;
    let (partitions, asked) = (api.node.partitions(), field.clone());
    let home = record.partition(partitions);
    let read = move |store: &StoreView<'_>| {
        // Held until the counting ends, also if the client is gone by then.
        let _turn = turn;
        let size = read::size(store, partitions, &record, &asked)?;
        let types = (size == 0).then(|| read::live_types(store, partitions, &record, &asked)).transpose()?;
        Ok::<_, read::ReadError>((size, types))
    };
    let (size, types) = session.read(api, [home], read).await?;
    if let Some(types) = types {
        check_set(&field, &types)?;
    }
    Ok(size)
}

/// `GET` of a member: whether the set has it.
pub(super) async fn member(
    State(api): State<Api>,
    Extension(session): Extension<Session>,
    MemberPath(record, field, member): MemberPath,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    Query::of_data(uri.query(), &[])?;
    let (partitions, asked) = (api.node.partitions(), (field.clone(), member.clone()));
    let home = record.partition(partitions);
    let read = move |store: &StoreView<'_>| read::contains(store, partitions, &record, &asked.0, &asked.1);
    if !session.read(&api, [home], read).await? {
        let detail = format!("there is no set {field:?} that has the member {member:?}");
        return Err(Problem::new(Kind::NotFound, detail));
    }
    respond::tagged(&MemberBody { field: field.as_str(), member: member.as_str() }, &headers, None)
}

/// Refuses what only a set has of a field that is none.
fn check_set(field: &Field, types: &[FieldType]) -> Result<(), Problem> {
    match types.first() {
        _ if types.contains(&FieldType::SET) => Ok(()),
        Some(other) => {
            let detail = format!("field {field:?} is a {other} here; only a set has pages and a size");
            Err(Problem::new(Kind::TypeMismatch, detail))
        }
        None => Err(absent(field)),
    }
}
