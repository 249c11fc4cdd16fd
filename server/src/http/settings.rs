//! `/v1/_namespaces`: which namespaces there are, their settings and quotas, and their deletion.
//!
//! Settings are replicated as one value: `PUT` replaces them all. A node's own are in force when it has answered; other nodes
//! follow when they hear of them.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Extension, State};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::Response;
use godwit_core::ids::{Namespace, PartitionId};
use godwit_core::json::Json;
use godwit_core::op::{Op, Write};
use godwit_core::read;
use serde::Serialize;
use utoipa::ToSchema;

use super::contract::schemas;
use super::problem::{Kind, Problem};
use super::request::{self, NamespacePath, Query};
use super::session::Session;
use super::{Api, ops, respond, time};
use crate::node::namespaces::{self, Known, RESERVED, Settings};
use crate::node::{StoreView, erasure};

/// The most requests a second that can be a limit.
pub(super) const RATE_MAX: u32 = 1_000_000;
/// Steps of counting that setting a quota waits for.
const COUNT_STEPS: usize = 16;
/// Names on one page of the list.
const LISTED_MAX: usize = 1_000;

/// A namespace.
#[derive(Serialize, ToSchema)]
#[schema(as = Namespace)]
pub(super) struct NamespaceBody<'a> {
    #[schema(value_type = schemas::NamespaceName)]
    namespace: &'a str,
    #[schema(value_type = schemas::NamespaceState)]
    state: &'static str,
    #[schema(value_type = schemas::StoredSettings)]
    settings: Settings,
    /// What it takes at this node; of one with quotas.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<UsageBody>,
    #[serde(skip_serializing_if = "Option::is_none")]
    deletion: Option<DeletionBody>,
}

/// What a namespace takes.
#[derive(Serialize, ToSchema)]
#[schema(as = Usage)]
struct UsageBody {
    keys: u64,
    bytes: u64,
}

/// A deletion that is under way.
#[derive(Serialize, ToSchema)]
#[schema(as = Deletion)]
struct DeletionBody {
    /// The node that deletes.
    node: String,
    #[schema(value_type = schemas::Time)]
    since: String,
}

/// A page of namespaces.
#[derive(Serialize, ToSchema)]
#[schema(as = Namespaces)]
pub(super) struct ListBody {
    #[schema(value_type = Vec<schemas::NamespaceName>)]
    namespaces: Vec<String>,
    /// The `after` of the next page, if there is one.
    #[schema(value_type = Option<schemas::NamespaceName>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// `GET`: the names of those that have settings or keys, in order.
#[utoipa::path(
    get, path = "/v1/_namespaces", operation_id = "listNamespaces", tag = "namespaces",
    params(("after" = Option<schemas::NamespaceName>, Query, description = "Only names after it: the `next` of the page before.")),
    responses((status = 200, description = "A page.", body = ListBody), (status = 400, description = "invalid-name"))
)]
pub(super) async fn list(
    State(api): State<Api>,
    Extension(session): Extension<Session>,
    uri: Uri,
) -> Result<Response, Problem> {
    let query = Query::of_data(uri.query(), &["after"])?;
    let after = query.text("after").map(Namespace::new).transpose()?;
    let from = after.clone();
    let at = api.node.read_at();
    let read = move |store: &StoreView<'_>| read::list_namespaces(store, at, from.as_ref(), LISTED_MAX + 1);
    let with_keys = session.read(&api, (0..at.partitions).map(PartitionId), read).await?;
    api.node.refresh_namespaces().await?;
    let known = api.node.namespaces().after(after.as_ref(), LISTED_MAX + 1).into_iter();
    let known = known.filter(|(_, known)| known.settings.is_some() || known.deletion.is_some());
    let mut all: Vec<Namespace> = known.map(|(name, _)| name).chain(with_keys).collect();
    all.retain(|name| name.as_str() != RESERVED);
    all.sort();
    all.dedup();
    let more = all.len() > LISTED_MAX;
    all.truncate(LISTED_MAX);
    let names: Vec<String> = all.iter().map(|name| name.as_str().to_owned()).collect();
    let next = names.last().filter(|_| more).cloned();
    respond::json(&ListBody { namespaces: names, next })
}

/// `GET`: settings, state, and what a namespace with quotas takes here.
#[utoipa::path(
    get, path = "/v1/_namespaces/{ns}", operation_id = "readNamespace", tag = "namespaces",
    responses(
        (status = 200, description = "The namespace.", body = NamespaceBody),
        (status = 304, description = "As the client has it."),
        (status = 400, description = "invalid-name"),
        (status = 404, description = "namespace-not-found not-found"),
    )
)]
pub(super) async fn read(
    State(api): State<Api>,
    Extension(session): Extension<Session>,
    NamespacePath(namespace): NamespacePath,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    Query::of_data(uri.query(), &[])?;
    let known = current(&api, &session, &namespace).await?;
    if known.is_none() && !(api.node.limits().auto_create_namespaces && has_keys(&api, &namespace).await?) {
        let detail =
            format!("nobody made the namespace {:?}, and there are no keys in it", namespace.as_str());
        return Err(Problem::new(Kind::NamespaceNotFound, detail));
    }
    respond::tagged(&body(&api, &namespace, known.as_deref()), &headers, None)
}

/// `PUT`: makes a namespace, or replaces its settings.
#[utoipa::path(
    put, path = "/v1/_namespaces/{ns}", operation_id = "writeNamespace", tag = "namespaces",
    request_body = schemas::Settings,
    responses(
        (status = 200, description = "The namespace, as it is now.", body = NamespaceBody),
        (status = 400, description = "invalid-name"),
        (status = 404, description = "not-found"),
        (status = 409, description = "namespace-deleting"),
    )
)]
pub(super) async fn put(
    State(api): State<Api>,
    Extension(session): Extension<Session>,
    NamespacePath(namespace): NamespacePath,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    Query::of_data(uri.query(), &[])?;
    let text = request::text(&api, &headers, body).await?.text;
    let settings = parse(&text)?;
    let known = current(&api, &session, &namespace).await?;
    if let Some(deletion) = known.as_ref().and_then(|known| known.deletion.as_ref()) {
        let detail = format!(
            "{:?} is being deleted by {}: wait until that is done",
            namespace.as_str(),
            deletion.node
        );
        return Err(Problem::new(Kind::NamespaceDeleting, detail));
    }
    let value = serde_json::to_string(&settings).map_err(|error| Problem::unreadable(&error))?;
    let set = Op::Set { field: namespaces::settings_field(), value: Json::parse(&value)? };
    let write = Write { record: namespaces::record_of(&namespace), ops: vec![set] };
    session.commit(&api, vec![write], None).await?;
    let known = current(&api, &session, &namespace).await?;
    // A small namespace is held to its quotas from the answer on.
    let mut steps = 0;
    while steps < COUNT_STEPS && api.node.count_namespaces().await? {
        steps += 1;
    }
    respond::json(&self::body(&api, &namespace, known.as_deref()))
}

/// `DELETE`: forgets the settings, and begins to delete all records.
#[utoipa::path(
    delete, path = "/v1/_namespaces/{ns}", operation_id = "deleteNamespace", tag = "namespaces",
    responses(
        (status = 202, description = "The deletion goes on.", body = NamespaceBody),
        (status = 400, description = "invalid-name"),
        (status = 404, description = "not-found"),
    )
)]
pub(super) async fn delete(
    State(api): State<Api>,
    Extension(session): Extension<Session>,
    NamespacePath(namespace): NamespacePath,
    uri: Uri,
) -> Result<Response, Problem> {
    Query::of_data(uri.query(), &[])?;
    session.commit(&api, vec![erasure::begins(&api.node, &namespace)], None).await?;
    let known = current(&api, &session, &namespace).await?;
    let mut response = respond::json(&body(&api, &namespace, known.as_deref()))?;
    *response.status_mut() = StatusCode::ACCEPTED;
    Ok(response)
}

/// What is known of the namespace at this moment.
async fn current(api: &Api, session: &Session, namespace: &Namespace) -> Result<Option<Arc<Known>>, Problem> {
    let (at, namespaces) = (api.node.read_at(), Arc::clone(api.node.namespaces()));
    let home = namespaces::home(at.partitions);
    session.read(api, [home], move |store| namespaces.refresh(store, at)).await?;
    Ok(api.node.namespaces().known(namespace))
}

async fn has_keys(api: &Api, namespace: &Namespace) -> Result<bool, Problem> {
    let (at, of) = (api.node.read_at(), namespace.clone());
    Ok(api.node.read(move |store| read::has_keys(store, at, &of)).await?)
}

fn body<'a>(api: &Api, namespace: &'a Namespace, known: Option<&Known>) -> NamespaceBody<'a> {
    let deletion = known.and_then(|known| known.deletion.as_ref());
    let usage = api.node.namespaces().usage(namespace);
    NamespaceBody {
        namespace: namespace.as_str(),
        state: if deletion.is_some() { "deleting" } else { "active" },
        settings: known.and_then(|known| known.settings.clone()).unwrap_or_default(),
        usage: usage.map(|usage| UsageBody { keys: usage.keys, bytes: usage.bytes }),
        deletion: deletion.map(|deletion| DeletionBody {
            node: deletion.node.clone(),
            since: time::rfc3339(deletion.since_ms),
        }),
    }
}

fn parse(text: &str) -> Result<Settings, Problem> {
    const FORM: &str =
        "the body is not {\"max_keys\", \"max_bytes\", \"requests_per_second\"}, each a number or left out";
    let malformed = |what: String| Problem::new(Kind::Malformed, format!("{FORM}: {what}"));
    let settings: Settings = ops::object(text).map_err(|error| malformed(error.to_string()))?;
    if let Some(name) = settings.unknown.keys().next() {
        return Err(malformed(format!("there is no setting {name:?}")));
    }
    match settings.requests_per_second {
        Some(rate) if !(1..=RATE_MAX).contains(&rate) => {
            Err(malformed(format!("requests_per_second is 1 to {RATE_MAX}; leave it out for no limit")))
        }
        _ => Ok(settings),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_numbers_or_absent() {
        for good in ["{}", r#"{"max_keys":0}"#, r#"{"max_bytes":null}"#, r#"{"requests_per_second":1}"#] {
            parse(good).unwrap();
        }
        let bad = [
            "",
            "[]",
            "{",
            r#"{"max_keys":-1}"#,
            r#"{"max_keys":1.5}"#,
            r#"{"max_keys":"1"}"#,
            r#"{"max_key":1}"#,
            r#"{"requests_per_second":0}"#,
            r#"{"requests_per_second":1000001}"#,
            r#"{"max_keys":1,"max_keys":2}"#,
        ];
        for bad in bad {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
