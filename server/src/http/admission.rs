//! Whether a namespace takes a request: that it exists, its rate, and its quotas.
//!
//! Only what makes data grow is held to quotas: what takes away is let through, and so is a retry of what was committed before. The
//! quota on keys refuses new records; the one on bytes all that adds.

use axum::extract::rejection::RawPathParamsRejection;
use axum::extract::{RawPathParams, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use godwit_core::delta::RequestKey;
use godwit_core::ids::Namespace;
use godwit_core::op::{Op, Write};
use godwit_core::partition::stored_context;
use godwit_core::store::{Family, StoreError, StoreRead};
use godwit_core::{keys, requests};

use super::problem::{Kind, Problem};
use super::{Api, request};
use crate::node::namespaces::Refused;
use crate::node::{CommitFailure, StoreView};

/// Takes a request for a namespace, or refuses it.
pub(super) async fn admit(
    State(api): State<Api>,
    params: Result<RawPathParams, RawPathParamsRejection>,
    request: Request,
    next: Next,
) -> Response {
    // A path that is not UTF-8, and what no namespace can be called, the handler refuses.
    let named = params.iter().flatten().find(|(name, _)| *name == "ns").map(|(_, value)| value);
    if let Some(namespace) = named.and_then(|name| Namespace::new(name).ok())
        && let Err(problem) = check(&api, &namespace).await
    {
        let (parts, body) = request.into_parts();
        request::discard_refused(&parts.headers, body).await;
        return problem.into_response();
    }
    next.run(request).await
}

/// Whether the namespace takes a request now.
pub(super) async fn check(api: &Api, namespace: &Namespace) -> Result<(), Problem> {
    let mut outcome = api.node.namespaces().admit(namespace);
    if matches!(outcome, Err(Refused::Absent | Refused::Deleting(_))) {
        // It may have been made, or its deletion ended, a moment ago.
        api.node.refresh_namespaces().await?;
        outcome = api.node.namespaces().admit(namespace);
    }
    let name = namespace.as_str();
    outcome.map_err(|refused| match refused {
        Refused::Absent => {
            let detail = format!(
                "there is no namespace {name:?} here: make it with PUT /v1/_namespaces/{name}, or wait until what another \
                 region made arrives"
            );
            Problem::new(Kind::NamespaceNotFound, detail)
        }
        Refused::Deleting(node) => {
            let detail = format!("{name:?} is being deleted by {node}: GET /v1/_namespaces/{name} tells when that is done");
            Problem::new(Kind::NamespaceDeleting, detail)
        }
        Refused::TooFast(rate) => {
            let detail = format!(
                "{name:?} takes {rate} requests a second at each node (its setting requests_per_second): come again later"
            );
            Problem::new(Kind::RateLimited, detail)
        }
    })
}

/// Whether the quotas of their namespace let writes to records of one partition through.
pub(super) async fn within_quota(
    api: &Api,
    writes: &[Write],
    request: Option<RequestKey>,
) -> Result<(), CommitFailure> {
    let Some(first) = writes.first() else { return Ok(()) };
    let namespace = first.record.namespace.clone();
    let [keys_exceeded, bytes_exceeded] = api.node.namespaces().exceeded(&namespace);
    let grows = |write: &&Write| !write.ops.iter().all(takes_away);
    if keys_exceeded.is_none() && bytes_exceeded.is_none() {
        return Ok(());
    }
    // Another node may have raised them a moment ago.
    let _ = api.node.refresh_namespaces().await;
    let [keys_exceeded, bytes_exceeded] = api.node.namespaces().exceeded(&namespace);
    let Some(exceeded) = keys_exceeded.or_else(|| bytes_exceeded.clone()) else { return Ok(()) };
    let marks: Vec<Vec<u8>> =
        writes.iter().filter(grows).map(|write| keys::key_mark(&write.record)).collect();
    if marks.is_empty() {
        return Ok(());
    }
    let at = api.node.read_at();
    let home = first.record.partition(at.partitions);
    let oldest_ms = at.now_ms.saturating_sub(api.node.limits().idempotency_window_ms);
    let look = move |store: &StoreView<'_>| {
        if let Some(request) = request {
            let context = stored_context(store, home)?;
            if requests::find(store, &namespace, &request.key, home, &context, oldest_ms)?.is_some() {
                return Ok(false);
            }
        }
        if bytes_exceeded.is_some() {
            return Ok(true);
        }
        for mark in &marks {
            if store.get(Family::Keys, mark)?.is_none() {
                return Ok(true);
            }
        }
        Ok::<bool, StoreError>(false)
    };
    match api.node.read(look).await {
        Ok(false) => Ok(()),
        Ok(true) => Err(exceeded.into()),
        // The commit finds out what the matter is, and says what became of it.
        Err(_) => Ok(()),
    }
}

/// Whether an operation leaves no more than there was: to have a record expire is to free what it takes.
fn takes_away(op: &Op) -> bool {
    op.only_removes() || matches!(op, Op::Expire { .. } | Op::ExpireAt { .. })
}
