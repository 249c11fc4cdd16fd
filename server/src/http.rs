//! The HTTP API: JSON over HTTP/1.1 and HTTP/2, every error a problem (RFC 9457).
//!
//! | module | holds |
//! |---|---|
//! | [`problem`] | what can go wrong, and how it is told |
//! | `request` | names in paths, query parameters, bodies: everything that is checked before a handler runs |
//! | `ops` | operations as JSON |
//! | `records`, `fields`, `sets`, `zsets` | the handlers of records and their parts |
//! | `session`, `idempotency` | tokens: what a client has seen, and the wait for it; keys under which a write is made once |
//! | `namespaces`, `batches` | listing of keys; many writes or reads in one request |
//! | `admission`, `settings` | whether a namespace takes a request; its settings and its deletion |
//! | `changes` | the change feed |
//! | `documents`, `sync` | documents in forms of their own; clients of automerge-repo |
//! | `paging` | how long a page is, and where the next one begins |
//! | `view` | records and fields as JSON |
//! | `respond` | answers, entity tags |
//! | `contract` | what all of these take and answer, as OpenAPI |
//! | `metrics` | counters for Prometheus |
//! | `cluster` | the node's view of the cluster |
//! | `digests` | digests of partitions and ranges of rows |
//! | `server` | connections and their limits |
//!
//! What holds: no input makes the node panic, hang or grow without bound. A handler that panics is a defect that one
//! request pays for. What is refused has changed nothing.

use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use axum::extract::{Extension, Request, State};
use axum::http::{Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use tokio::sync::Semaphore;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::node::NodeHandle;

mod admission;
mod batches;
mod changes;
mod cluster;
mod contract;
pub(crate) mod digests;
mod documents;
mod fields;
mod idempotency;
mod metrics;
mod namespaces;
mod ops;
mod paging;
pub mod problem;
mod records;
mod request;
mod respond;
mod server;
mod session;
mod sets;
mod settings;
mod sync;
pub(crate) mod time;
mod view;
mod zsets;

pub(crate) use server::{HttpServer, serve};

use contract::{Contract, Scope};
use problem::{Applied, Kind, Problem};

/// The documentation of all problems, served under their `type`.
const PROBLEMS_PAGE: &str = include_str!("../../docs/PROBLEMS.md");

/// What the handlers share.
#[derive(Debug, Clone)]
struct Api {
    node: NodeHandle,
    /// Requests for data in progress.
    requests: Arc<Semaphore>,
    /// Bytes of their bodies.
    body_room: Arc<Semaphore>,
    /// Bytes of large answers.
    answer_room: Arc<Semaphore>,
    /// State digests read everything: one at a time.
    digests: Arc<tokio::sync::Mutex<()>>,
    /// Sizes of sets read all of them: a few at a time.
    sizes: Arc<Semaphore>,
    /// Requests that wait for what their tokens name.
    waits: Arc<Semaphore>,
    /// Change feeds that are open.
    feeds: Arc<Semaphore>,
    /// Clients of automerge-repo that are connected, and what they follow.
    syncs: Arc<Semaphore>,
    rooms: Arc<sync::Rooms>,
    /// Sites whose pages may connect.
    origins: Arc<[String]>,
    metrics: Arc<metrics::Requests>,
}

/// The API of a node.
fn router(node: NodeHandle) -> axum::Router {
    let limits = node.limits();
    let api = Api {
        requests: Arc::new(Semaphore::new(limits.requests)),
        body_room: Arc::new(Semaphore::new(limits.request_bytes)),
        answer_room: Arc::new(Semaphore::new(limits.answers_bytes)),
        digests: Arc::default(),
        sizes: Arc::new(Semaphore::new(sets::SIZES_AT_ONCE_MAX)),
        waits: Arc::new(Semaphore::new(session::waits_max(limits.requests))),
        feeds: Arc::new(Semaphore::new(limits.feeds)),
        syncs: Arc::new(Semaphore::new(limits.syncs)),
        rooms: Arc::default(),
        origins: node.origins().into(),
        metrics: Arc::default(),
        node,
    };
    let mut contract = Contract::default();
    let admitted = OpenApiRouter::new()
        .routes(routes!(namespaces::list, batches::post))
        .routes(routes!(records::read, records::patch, records::delete))
        .routes(routes!(fields::read, fields::put, fields::delete))
        .routes(routes!(sets::member));
    let admitted = contract.note(Scope::Admitted, admitted);
    let attended = OpenApiRouter::new().routes(routes!(settings::list)).routes(routes!(
        settings::read,
        settings::put,
        settings::delete
    ));
    let attended = contract.note(Scope::Attended, attended);
    let limited = OpenApiRouter::new()
        .routes(routes!(session::visible))
        .routes(routes!(changes::follow))
        .routes(routes!(sync::connect));
    let limited = contract.note(Scope::Limited, limited);
    let of_node = OpenApiRouter::new()
        .routes(routes!(cluster::read))
        .routes(routes!(digests::read))
        .routes(routes!(healthy))
        .routes(routes!(ready))
        .routes(routes!(metrics::read))
        .routes(routes!(contract::read))
        .routes(routes!(problem_page));
    let of_node = contract.note(Scope::Node, of_node).layer(Extension(contract.finish()));

    let attended = admitted
        .route_layer(middleware::from_fn_with_state(api.clone(), admission::admit))
        .merge(attended)
        .route_layer(middleware::from_fn_with_state(api.clone(), session::attend));
    let limited =
        attended.merge(limited).route_layer(middleware::from_fn_with_state(api.clone(), limit_requests));
    limited
        .merge(of_node)
        .fallback(async || {
            Problem::new(Kind::NotFound, "there is no such resource: /openapi.json has all there are")
        })
        .method_not_allowed_fallback(method_not_allowed)
        .layer(middleware::from_fn_with_state(api.clone(), survive_panics))
        .with_state(api)
}

/// `GET`: whether the process answers.
#[utoipa::path(
    get, path = "/healthz", operation_id = "readHealth", tag = "node",
    responses((status = 200, description = "It does.", body = String, content_type = "text/plain"))
)]
async fn healthy() -> &'static str {
    "ok\n"
}

/// `GET`: whether the store is open and the node takes writes. What the links do does not matter.
#[utoipa::path(
    get, path = "/readyz", operation_id = "readReadiness", tag = "node",
    responses(
        (status = 200, description = "It does.", body = String, content_type = "text/plain"),
        (status = 503, description = "stopping"),
    )
)]
async fn ready(State(api): State<Api>) -> Response {
    match api.node.is_ready() {
        true => "ready\n".into_response(),
        false => Problem::new(Kind::Stopping, "the node is stopping, or has failed").into_response(),
    }
}

async fn method_not_allowed(request: Request) -> Problem {
    let detail = format!("{} is not possible here: the header Allow names what is", request.method());
    Problem::new(Kind::MethodNotAllowed, detail)
}

/// `GET`: what such problems are, why they come, and what to do.
#[utoipa::path(
    get, path = "/problems/{slug}", operation_id = "readProblem", tag = "node",
    responses(
        (status = 200, description = "A page for people.", body = String, content_type = "text/markdown"),
        (status = 404, description = "not-found"),
    )
)]
async fn problem_page(State(_): State<Api>, request: Request) -> Result<Response, Problem> {
    let slug = request.uri().path().rsplit('/').next().unwrap_or_default();
    let kind = Kind::ALL.into_iter().find(|kind| kind.slug() == slug);
    let page = kind.and_then(|kind| section(PROBLEMS_PAGE, kind.slug()));
    let page = page.ok_or_else(|| Problem::new(Kind::NotFound, "there is no such problem"))?;
    Ok(([(header::CONTENT_TYPE, "text/markdown; charset=utf-8")], page).into_response())
}

/// A section of the page, from its heading to the next one.
fn section<'a>(page: &'a str, slug: &str) -> Option<&'a str> {
    let start = page.find(&format!("\n## {slug}\n"))? + 1;
    let rest = &page[start..];
    Some(rest.find("\n## ").map_or(rest, |end| &rest[..=end]))
}

async fn limit_requests(State(api): State<Api>, request: Request, next: Next) -> Response {
    let Ok(_permit) = api.requests.try_acquire() else {
        let detail = format!(
            "{} requests are in progress, the most that limits.requests allows",
            api.node.limits().requests
        );
        return Problem::new(Kind::Overloaded, detail).into_response();
    };
    next.run(request).await
}

async fn survive_panics(State(api): State<Api>, request: Request, next: Next) -> Response {
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let begun = std::time::Instant::now();
    let response = CatchPanic(Box::pin(next.run(request))).await.unwrap_or_else(|panic| {
        tracing::error!(%method, path, panic, "a request handler panicked: a defect");
        let applied = if reads { Applied::No } else { Applied::Unknown };
        Problem::new(Kind::Internal, "the node's log says more").applied(applied).into_response()
    });
    let status = response.status().as_u16();
    // Who is told to come again is refused in the ordinary course of things, and may come often.
    let come_again = response.headers().contains_key(header::RETRY_AFTER);
    if response.status() >= StatusCode::INTERNAL_SERVER_ERROR && !come_again {
        tracing::warn!(%method, path, status, "request failed");
    }
    let took = begun.elapsed();
    api.metrics.answered(&method, response.status(), took);
    tracing::debug!(%method, path, status, ?took, "request");
    response
}

/// A future whose panic is its value.
struct CatchPanic<F>(Pin<Box<F>>);

impl<F: Future> Future for CatchPanic<F> {
    type Output = Result<F::Output, String>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> Poll<Self::Output> {
        let future = self.0.as_mut();
        // Unwind safety: after a panic the future is only dropped.
        match std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| future.poll(cx))) {
            Ok(poll) => poll.map(Ok),
            Err(panic) => {
                let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
                let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
                Poll::Ready(Err(text.unwrap_or_else(|| "no message".to_owned())))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_problem_has_its_page() {
        let headings = PROBLEMS_PAGE.lines().filter_map(|line| line.strip_prefix("## "));
        let slugs: Vec<&str> = Kind::ALL.iter().map(|kind| kind.slug()).collect();
        assert_eq!(headings.collect::<Vec<_>>(), slugs);
        for kind in Kind::ALL {
            let page = section(PROBLEMS_PAGE, kind.slug()).unwrap();
            assert!(page.contains(&format!("Status {}", kind.status().as_u16())), "{}", kind.slug());
            assert!(page.contains("Cause:") && page.contains("Cure:"), "{}", kind.slug());
        }
    }

    #[tokio::test]
    async fn a_panic_becomes_a_value() {
        let panics = async { panic!("on purpose") };
        let caught: Result<(), String> = CatchPanic(Box::pin(panics)).await;
        assert_eq!(caught, Err("on purpose".to_owned()));
    }
}
