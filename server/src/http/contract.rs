//! `/openapi.json`: the contract, as OpenAPI 3.1, made of the handlers that keep it.
//!
//! - A route cannot be served without being described: both come of the handler's `utoipa::path`.
//! - What a layer takes and answers (tokens, waits, admission), the layer's [`Scope`] adds to each operation behind it, so that no
//!   handler repeats it. Names in paths are described once, too.
//! - A problem is named by its slug in the description of a response; its schema and title come from [`Kind`].
//! - No object has members that its schema does not name: what handlers describe is closed here. Only a register's and a
//!   document's JSON is free.
//!
//! The tests hold every answer that they get to what is served here, and every body that a node accepts.

use std::collections::BTreeSet;

use axum::Router;
use axum::extract::Extension;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde_json::{Map, Value, json};
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;

use super::problem::Kind;
use super::{Api, idempotency, respond, session};

pub(super) mod schemas;

/// Which layers a request passes, from the fewest to the most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Scope {
    /// None: about the node, and answered also by one that is busy.
    Node,
    /// Counted among the requests in progress.
    Limited,
    /// With a session.
    Attended,
    /// And admitted to its namespace.
    Admitted,
}

/// The parts of the contract, as routers are made.
#[derive(Default)]
pub(super) struct Contract(Vec<(Scope, OpenApi)>);

/// The contract as it is served.
#[derive(Debug, Clone)]
pub(super) struct Document {
    text: Bytes,
    tag: HeaderValue,
}

/// `GET`: this contract.
#[utoipa::path(
    get, path = "/openapi.json", operation_id = "contract", tag = "node",
    responses(
        (status = 200, description = "OpenAPI 3.1.", body = schemas::OpenApiJson),
        (status = 304, description = "As the client has it.")
    )
)]
pub(super) async fn read(Extension(document): Extension<Document>, headers: HeaderMap) -> Response {
    let mut response = if respond::is_known(&headers, document.tag.to_str().unwrap_or_default()) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        let content_type = HeaderValue::from_static("application/json");
        ([(header::CONTENT_TYPE, content_type)], document.text).into_response()
    };
    response.headers_mut().insert(header::ETAG, document.tag);
    response
}

impl Contract {
    /// Notes what the handlers of a router say of themselves.
    pub(super) fn note(&mut self, scope: Scope, router: OpenApiRouter<Api>) -> Router<Api> {
        let (router, described) = router.split_for_parts();
        self.0.push((scope, described));
        router
    }

    /// The whole.
    pub(super) fn finish(self) -> Document {
        let text = self.value().to_string();
        let tag = HeaderValue::try_from(format!("\"{}\"", blake3::hash(text.as_bytes()).to_hex()));
        // A tag is visible ASCII.
        let tag = tag.unwrap_or(HeaderValue::from_static("\"\""));
        Document { text: text.into(), tag }
    }

    fn value(self) -> Value {
        let (mut paths, mut components) = (Map::new(), Map::new());
        for (scope, described) in self.0 {
            let described = serde_json::to_value(&described).unwrap_or_default();
            for (path, item) in members(&described["paths"]) {
                let operations = members(&item).map(|(method, mut operation)| {
                    complete(&path, &method, scope, &mut operation);
                    (method, operation)
                });
                paths.insert(path.clone(), Value::Object(operations.collect()));
            }
            components.extend(members(&described["components"]["schemas"]));
        }
        components.extend(schemas::derived());
        components.values_mut().for_each(schemas::never_null);
        components.extend(schemas::by_hand().into_iter().map(|(name, schema)| (name.to_owned(), schema)));
        schemas::complete(&mut components);
        let (mut paths, mut components) = (Value::Object(paths), Value::Object(components));
        close(&mut paths);
        close(&mut components);
        json!({
            "openapi": "3.1.0",
            "info": {
                "title": "Godwit",
                "version": env!("CARGO_PKG_VERSION"),
                "summary": "An always-writable key-value store for user-generated metadata.",
                "description": ABOUT,
                "license": {"name": env!("CARGO_PKG_LICENSE"), "identifier": env!("CARGO_PKG_LICENSE")},
            },
            "tags": schemas::tags(),
            "paths": paths,
            "components": {"schemas": components, "headers": headers()},
        })
    }
}

const ABOUT: &str = "Every region answers reads and writes by itself, whatever the links to the others do. \
    2xx: committed as durably as configured. 4xx: refused, nothing was written. 5xx or no answer: it is not known, unless the problem \
    says `\"applied\": \"no\"`. Each `GET` answers `HEAD` too. What no operation here has is answered with the problems `not-found` \
    and `method-not-allowed`. Lengths of names are bounded in bytes of UTF-8; `maxLength` counts characters, of which there are never more.";

const TAG: &str = "ETag";
const RETRY: &str = "Retry-After";

/// The headers of answers.
fn headers() -> Value {
    let number = json!({"type": "integer"});
    let about_retry = "Seconds until the request may go well.";
    let mut all: Map<String, Value> =
        session::answer_headers(true).into_iter().map(|(name, header)| (name.to_owned(), header)).collect();
    all.insert(
        TAG.to_owned(),
        json!({"description": "BLAKE3 of the body, in quotes.", "schema": {"type": "string"}}),
    );
    all.insert(RETRY.to_owned(), json!({"description": about_retry, "schema": number}));
    all.into()
}

fn header(name: &str) -> Value {
    json!({"$ref": format!("#/components/headers/{name}")})
}

fn members(object: &Value) -> impl Iterator<Item = (String, Value)> {
    object.as_object().cloned().unwrap_or_default().into_iter()
}

/// Adds what the layers and the path bring, and what the slugs of problems stand for.
fn complete(path: &str, method: &str, scope: Scope, operation: &mut Value) {
    let writes = method != "get";
    if let Some(summary) = operation["summary"].as_str() {
        // Handlers begin with their method, which stands beside it here.
        let summary = summary.split_once("`: ").map_or(summary, |(_, rest)| rest);
        operation["summary"] = sentence(summary).into();
    }
    let mut parameters: Vec<Value> = names_in(path).map(schemas::path_parameter).collect();
    parameters.extend(operation["parameters"].as_array().cloned().unwrap_or_default());
    if scope >= Scope::Attended {
        parameters.extend(session::parameters(writes));
    }
    if writes && scope >= Scope::Attended {
        parameters.push(idempotency::parameter());
    }
    let is_tagged = operation["responses"]["304"].is_object();
    if is_tagged {
        parameters.push(json!({
            "name": "If-None-Match", "in": "header", "schema": {"type": "string"},
            "description": "Entity tags of answers that the client has.",
        }));
    }
    if !parameters.is_empty() {
        operation["parameters"] = parameters.into();
    }
    let has_body = operation["requestBody"].is_object();
    for kind in problems_of(scope, writes, has_body) {
        let response = &mut operation["responses"][kind.status().as_str()];
        let named = response["description"].as_str().unwrap_or_default();
        response["description"] = format!("{named} {}", kind.slug()).trim().into();
    }
    for (status, response) in operation["responses"].as_object_mut().into_iter().flatten() {
        if status.starts_with(['4', '5']) {
            *response = problem_response(status, response);
        }
        if scope >= Scope::Attended {
            // A refusal, too, may show what there is.
            let told = session::answer_headers(writes).into_iter();
            told.for_each(|(name, _)| response["headers"][name] = header(name));
        }
        if is_tagged && (status == "200" || status == "304") {
            response["headers"][TAG] = header(TAG);
        }
    }
}

/// The names that a path has places for.
fn names_in(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter_map(|segment| segment.strip_prefix('{')?.strip_suffix('}'))
}

/// The problems that layers answer with, and those of any write and any body.
fn problems_of(scope: Scope, writes: bool, has_body: bool) -> Vec<Kind> {
    let mut kinds = Vec::new();
    if scope >= Scope::Limited {
        kinds.extend([Kind::Malformed, Kind::Overloaded, Kind::Internal, Kind::Stopping]);
    }
    if scope >= Scope::Attended {
        kinds.extend([Kind::UnsupportedHeader, Kind::InvalidToken, Kind::NotYetVisible]);
    }
    if scope >= Scope::Admitted {
        kinds.extend([Kind::InvalidName, Kind::NotFound]);
        kinds.extend([Kind::NamespaceNotFound, Kind::NamespaceDeleting, Kind::RateLimited]);
    }
    if scope >= Scope::Attended && writes {
        kinds.extend([Kind::StaleSeen, Kind::IdempotencyKeyReused, Kind::TooLarge]);
    }
    if has_body {
        kinds.extend([Kind::RequestTimeout, Kind::UnsupportedMediaType, Kind::TooLarge]);
    }
    kinds
}

/// A response of the problems whose slugs its description names.
fn problem_response(status: &str, response: &Value) -> Value {
    let named: BTreeSet<&str> = response["description"].as_str().unwrap_or_default().split(' ').collect();
    let kinds: Vec<Kind> = Kind::ALL
        .into_iter()
        .filter(|kind| named.contains(kind.slug()) && kind.status().as_str() == status)
        .collect();
    let told = kinds.iter().map(|kind| format!("`{}`: {}.", kind.slug(), kind.title()));
    let mut problem = schemas::reference("Problem");
    problem["properties"] =
        json!({"type": {"enum": kinds.iter().map(|kind| kind.page()).collect::<Vec<_>>()}});
    // A handler whose problems say more names their schema.
    let more = &response["content"]["application/problem+json"]["schema"];
    let schema = if more.is_null() { problem } else { json!({"anyOf": [problem, more]}) };
    let mut body = json!({
        "description": told.collect::<Vec<_>>().join(" "),
        "content": {"application/problem+json": {"schema": schema}},
    });
    if kinds.iter().any(|kind| kind.comes_again()) {
        body["headers"][RETRY] = header(RETRY);
    }
    body
}

fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters.next().map(|first| first.to_uppercase().to_string()).unwrap_or_default();
    first + letters.as_str().trim_end_matches('.') + "."
}

/// Says of each object with named members that it has no others.
pub(super) fn close(value: &mut Value) {
    if let Some(object) = value.as_object_mut()
        && object.get("type").is_some_and(|ty| ty == "object" || ty == &json!(["object", "null"]))
        && object.contains_key("properties")
    {
        object.entry("additionalProperties").or_insert(false.into());
    }
    match value {
        Value::Object(object) => object.values_mut().for_each(close),
        Value::Array(items) => items.iter_mut().for_each(close),
        _ => {}
    }
}

/// A query parameter, of a layer.
pub(super) fn query_parameter(name: &str, description: &str, schema: Value) -> Value {
    json!({"name": name, "in": "query", "description": description, "schema": schema})
}

/// A header of a request, of a layer.
pub(super) fn header_parameter(name: &str, description: &str, schema: Value) -> Value {
    json!({"name": name, "in": "header", "description": description, "schema": schema})
}
