//! Parts of sets and zsets: `/v1/{ns}/{key}/{field}` with `after`, `limit` or `view=size`, and `…/{member}`.

use std::sync::Arc;

use axum::extract::{Extension, State};
use axum::http::{HeaderMap, Uri};
use axum::response::Response;
use godwit_core::ids::{Field, Member, RecordId};
use godwit_core::read::{self, Page};
use godwit_core::row::FieldType;
use godwit_core::types::score::Score;
use serde::Serialize;
use utoipa::ToSchema;

use super::contract::schemas;
use super::fields::absent;
use super::paging::Paging;
use super::problem::{Kind, Problem};
use super::request::{MemberPath, Query};
use super::session::Session;
use super::{Api, respond};
use crate::node::StoreView;

/// Sets whose members are counted at a time.
pub(super) const SIZES_AT_ONCE_MAX: usize = 2;

/// A page of a set or zset by member.
#[derive(Serialize)]
struct PageBody<'a, T> {
    field: &'a str,
    value: Vec<T>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<&'a str>,
}

/// How many members a set or zset has.
#[derive(Serialize, ToSchema)]
#[schema(as = SetSize)]
pub(super) struct SizeBody<'a> {
    #[schema(value_type = schemas::FieldName)]
    field: &'a str,
    size: u64,
}

/// A member that is there.
#[derive(Serialize, ToSchema)]
#[schema(as = FoundMember)]
pub(super) struct MemberBody<'a> {
    #[schema(value_type = schemas::FieldName)]
    field: &'a str,
    #[schema(value_type = schemas::Member)]
    member: &'a str,
    /// Of a zset.
    #[serde(skip_serializing_if = "Option::is_none")]
    score: Option<f64>,
    /// Of a zset, if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    rank: Option<u64>,
}

enum Members {
    Set(Page<Member>),
    Zset(Page<(Member, Score)>),
}

/// A page of a set, or of a zset by member.
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
    let (at, asked) = (api.node.read_at(), field.clone());
    let home = record.partition(at.partitions);
    let read = move |store: &StoreView<'_>| {
        let types = read::live_types(store, at, &record, &asked)?;
        let after = after.as_deref();
        let page = match types.first() {
            Some(&FieldType::ZSET) => {
                Members::Zset(read::zmembers(store, at, &record, &asked, after, limits)?)
            }
            _ => Members::Set(read::members(store, at, &record, &asked, after, limits)?),
        };
        Ok::<_, read::ReadError>((page, types))
    };
    let (page, types) = session.read(api, [home], read).await?;
    check_type(&field, &types, &PAGED, "only a set or zset has pages and a size")?;
    let field = field.as_str();
    match &page {
        Members::Set(page) => {
            let value: Vec<&str> = page.items.iter().map(Member::as_str).collect();
            let next = page.next.as_ref().map(Member::as_str);
            respond::tagged(&PageBody { field, value, next }, headers, None)
        }
        Members::Zset(page) => {
            let scored = page.items.iter().map(|(member, score)| (member.as_str(), score.value()));
            let next = page.next.as_ref().map(|(member, _)| member.as_str());
            respond::tagged(&PageBody { field, value: scored.collect(), next }, headers, None)
        }
    }
}

/// The number of members. The first question about a set counts them, and asks the node to keep the number.
pub(super) async fn size(
    api: &Api,
    session: &Session,
    record: RecordId,
    field: Field,
    headers: &HeaderMap,
) -> Result<Response, Problem> {
    let (at, asked) = (api.node.read_at(), (record.clone(), field.clone()));
    let home = record.partition(at.partitions);
    let kept = move |store: &StoreView<'_>| {
        let types = read::live_types(store, at, &asked.0, &asked.1)?;
        if types.first() == Some(&FieldType::ZSET) {
            return read::zsize(store, at, &asked.0, &asked.1).map(Some);
        }
        read::kept_size(store, at, &asked.0, &asked.1)
    };
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
    let (at, asked) = (api.node.read_at(), field.clone());
    let home = record.partition(at.partitions);
    let read = move |store: &StoreView<'_>| {
        // Held until the counting ends, also if the client is gone by then.
        let _turn = turn;
        let size = read::size(store, at, &record, &asked)?;
        let types = (size == 0).then(|| read::live_types(store, at, &record, &asked)).transpose()?;
        Ok::<_, read::ReadError>((size, types))
    };
    let (size, types) = session.read(api, [home], read).await?;
    if let Some(types) = types {
        check_type(&field, &types, &PAGED, "only a set or zset has pages and a size")?;
    }
    Ok(size)
}

/// `GET`: whether the set or zset has a member; of a zset its score, and its rank if asked for.
#[utoipa::path(
    get, path = "/v1/{ns}/{key}/{field}/{member}", operation_id = "readMember", tag = "records",
    params(
        ("rank" = Option<bool>, Query, description = "Tell its rank in a zset, too."),
        ("desc" = Option<bool>, Query, description = "Count the rank from the greatest score on."),
    ),
    responses(
        (status = 200, description = "It is there.", body = MemberBody),
        (status = 304, description = "As the client has it."),
    )
)]
pub(super) async fn member(
    State(api): State<Api>,
    Extension(session): Extension<Session>,
    MemberPath(record, field, member): MemberPath,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let query = Query::of_data(uri.query(), &["rank", "desc"])?;
    let rank = query.is_true("rank")?.then_some(query.is_true("desc")?);
    let (at, asked) = (api.node.read_at(), (field.clone(), member.clone()));
    let home = record.partition(at.partitions);
    let read = move |store: &StoreView<'_>| {
        let (field, member) = &asked;
        if let Some((score, rank)) = read::scored(store, at, &record, field, member, rank)? {
            return Ok(Some((Some(score.value()), rank)));
        }
        Ok::<_, read::ReadError>(read::contains(store, at, &record, field, member)?.then_some((None, None)))
    };
    let Some((score, rank)) = session.read(&api, [home], read).await? else {
        let detail = format!("there is no set or zset {field:?} that has the member {member:?}");
        return Err(Problem::new(Kind::NotFound, detail));
    };
    respond::tagged(
        &MemberBody { field: field.as_str(), member: member.as_str(), score, rank },
        &headers,
        None,
    )
}

/// What has pages by member, and a size.
const PAGED: [FieldType; 2] = [FieldType::ZSET, FieldType::SET];

/// Refuses what only some types have of a field that is none of them.
pub(super) fn check_type(
    field: &Field,
    types: &[FieldType],
    wanted: &[FieldType],
    rule: &str,
) -> Result<(), Problem> {
    match types.first() {
        _ if types.iter().any(|ty| wanted.contains(ty)) => Ok(()),
        Some(other) => {
            Err(Problem::new(Kind::TypeMismatch, format!("field {field:?} is a {other} here; {rule}")))
        }
        None => Err(absent(field)),
    }
}
