//! `/v1/{ns}`: the keys of a namespace.

use axum::extract::{Extension, State};
use axum::http::{HeaderMap, Uri};
use axum::response::Response;
use godwit_core::ids::{Key, PartitionId};
use godwit_core::read::{self, Page};
use serde::Serialize;
use utoipa::ToSchema;

use super::contract::schemas;
use super::paging::Paging;
use super::problem::Problem;
use super::request::{NamespacePath, Query};
use super::session::Session;
use super::{Api, respond};
use crate::node::StoreView;

/// A page of keys.
#[derive(Serialize, ToSchema)]
#[schema(as = Keys)]
pub(super) struct KeysBody<'a> {
    #[schema(value_type = Vec<schemas::KeyName>)]
    keys: Vec<&'a str>,
    /// The `after` of the next page, if there is one.
    #[schema(value_type = Option<schemas::KeyName>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<&'a str>,
}

/// `GET`: the keys of live records, in byte order, a page at a time.
#[utoipa::path(
    get, path = "/v1/{ns}", operation_id = "listKeys", tag = "records",
    params(
        ("prefix" = Option<String>, Query, description = "Only keys that begin with it."),
        ("after" = Option<String>, Query, description = "Only keys after it: the `next` of the page before."),
        ("limit" = Option<u16>, Query, description = "Keys on a page; 100 without.", minimum = 1, maximum = 1_000),
    ),
    responses(
        (status = 200, description = "A page. One that is short may have a next one.", body = KeysBody),
        (status = 304, description = "As the client has it."),
    )
)]
pub(super) async fn list(
    State(api): State<Api>,
    Extension(session): Extension<Session>,
    NamespacePath(namespace): NamespacePath,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let query = Query::of_data(uri.query(), &["after", "limit", "prefix"])?;
    let Paging { after, limits } = Paging::parse(&query)?;
    let prefix = query.text("prefix").unwrap_or_default().to_owned();
    let partitions = api.node.partitions();
    let at = api.node.read_at();
    let read = move |store: &StoreView<'_>| {
        read::list_keys(store, at, &namespace, &prefix, after.as_deref(), limits)
    };
    let page = session.read(&api, (0..partitions).map(PartitionId), read).await?;
    respond::tagged(&KeysBody::of(&page), &headers, None)
}

impl<'a> KeysBody<'a> {
    fn of(page: &'a Page<Key>) -> Self {
        Self { keys: page.items.iter().map(Key::as_str).collect(), next: page.next.as_ref().map(Key::as_str) }
    }
}
