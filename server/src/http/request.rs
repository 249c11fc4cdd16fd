//! Requests, before a handler acts on them: names in paths, query parameters, headers, bodies.
//!
//! Everything is limited before it is stored: a body is read frame by frame, against its own limit, against the
//! room that all bodies share, and against the clock.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequestParts, RawPathParams};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, Method, header};
use godwit_core::ids::{Field, Key, Member, Namespace, RecordId};
use http_body_util::BodyExt;
use percent_encoding::percent_decode_str;
use tokio::sync::OwnedSemaphorePermit;

use super::Api;
use super::problem::{Kind, Problem};
use crate::node::namespaces::RESERVED;

/// How long a body may take to arrive.
pub(super) const BODY_READ_MAX: Duration = Duration::from_secs(30);

/// How much of a refused body is read and thrown away, and for how long, so that the client hears the answer: closing
/// the connection with bytes unread can take the answer with it.
const DISCARDED_BYTES_MAX: usize = 32 * 1024 * 1024;
const DISCARD_MAX: Duration = Duration::from_secs(3);

/// How long a request may wait for what its tokens name: any request for data takes it.
pub(super) const WAIT: &str = "wait_ms";

/// Headers that make a write depend on the state: there is no compare-and-set, in no region.
const CONDITIONS: [HeaderName; 4] =
    [header::IF_MATCH, header::IF_NONE_MATCH, header::IF_MODIFIED_SINCE, header::IF_UNMODIFIED_SINCE];

/// The record that a path names.
#[derive(Debug, Clone)]
pub(super) struct RecordPath(pub(super) RecordId);

/// The field that a path names.
#[derive(Debug, Clone)]
pub(super) struct FieldPath(pub(super) RecordId, pub(super) Field);

/// The member of a set that a path names.
#[derive(Debug, Clone)]
pub(super) struct MemberPath(pub(super) RecordId, pub(super) Field, pub(super) Member);

/// The namespace that a path names.
#[derive(Debug, Clone)]
pub(super) struct NamespacePath(pub(super) Namespace);

impl<S: Send + Sync> FromRequestParts<S> for NamespacePath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let mut names = path_names(parts, state).await?;
        Ok(Self(namespace(&mut names)?))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for MemberPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let mut names = path_names(parts, state).await?;
        let record = record(&mut names)?;
        let field = Field::new(names.remove("field").unwrap_or_default())?;
        Ok(Self(record, field, Member::new(names.remove("member").unwrap_or_default())?))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for RecordPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let mut names = path_names(parts, state).await?;
        Ok(Self(record(&mut names)?))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for FieldPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let mut names = path_names(parts, state).await?;
        let record = record(&mut names)?;
        Ok(Self(record, Field::new(names.remove("field").unwrap_or_default())?))
    }
}

fn namespace(names: &mut BTreeMap<String, String>) -> Result<Namespace, Problem> {
    let namespace = names.remove("ns").unwrap_or_default();
    if namespace.starts_with('_') {
        let detail =
            format!("there is no resource {namespace:?}; names that begin with _ are not namespaces");
        return Err(Problem::new(Kind::NotFound, detail));
    }
    if namespace == RESERVED {
        let detail = format!("{namespace:?} is where settings are kept: see /v1/_namespaces");
        return Err(Problem::new(Kind::InvalidName, detail));
    }
    Ok(Namespace::new(namespace)?)
}

fn record(names: &mut BTreeMap<String, String>) -> Result<RecordId, Problem> {
    let namespace = namespace(names)?;
    Ok(RecordId { namespace, key: Key::new(names.remove("key").unwrap_or_default())? })
}

/// The names in a path, percent-decoded once, after the path was split: `%2F` is a slash within a name.
async fn path_names<S: Send + Sync>(
    parts: &mut Parts,
    state: &S,
) -> Result<BTreeMap<String, String>, Problem> {
    check_headers(&parts.method, &parts.headers)?;
    check_escapes(parts.uri.path())?;
    let params = RawPathParams::from_request_parts(parts, state).await.map_err(|_| {
        Problem::new(Kind::Malformed, "the path is not UTF-8 once its percent-escapes are decoded")
    })?;
    Ok(params.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
}

fn check_escapes(text: &str) -> Result<(), Problem> {
    let bytes = text.as_bytes();
    for (at, _) in bytes.iter().enumerate().filter(|(_, byte)| **byte == b'%') {
        let is_hex = |digit: Option<&u8>| digit.is_some_and(u8::is_ascii_hexdigit);
        if !is_hex(bytes.get(at + 1)) || !is_hex(bytes.get(at + 2)) {
            let detail = "a % in the address is not followed by two hexadecimal digits; a % itself is %25";
            return Err(Problem::new(Kind::Malformed, detail));
        }
    }
    Ok(())
}

fn check_headers(method: &Method, headers: &HeaderMap) -> Result<(), Problem> {
    let conditions: &[HeaderName] =
        if matches!(*method, Method::GET | Method::HEAD) { &[] } else { &CONDITIONS };
    match conditions.iter().find(|name| headers.contains_key(*name)) {
        Some(name) => {
            let detail =
                format!("{name} is not supported: no write depends on a state, and nothing was done");
            Err(Problem::new(Kind::UnsupportedHeader, detail))
        }
        None => Ok(()),
    }
}

/// Query parameters, all of which must be among those that the resource takes.
#[derive(Debug)]
pub(super) struct Query(BTreeMap<String, String>);

/// A query parameter's name and value, decoded.
pub(super) type Pair<'q> = (Cow<'q, str>, Cow<'q, str>);

/// The parameters of a query in their order.
pub(super) fn pairs(query: Option<&str>) -> Result<Vec<Pair<'_>>, Problem> {
    let query = query.unwrap_or_default();
    check_escapes(query)?;
    let parts = query.split('&').filter(|part| !part.is_empty());
    let pair = |part| {
        let (name, value) = str::split_once(part, '=').unwrap_or((part, ""));
        Ok((decode(name)?, decode(value)?))
    };
    parts.map(pair).collect()
}

impl Query {
    /// Of a request for data, which may also say how long it waits.
    pub(super) fn of_data(query: Option<&str>, taken: &[&str]) -> Result<Self, Problem> {
        Self::parse(query, &[taken, &[WAIT]].concat())
    }

    pub(super) fn parse(query: Option<&str>, taken: &[&str]) -> Result<Self, Problem> {
        let mut parameters = BTreeMap::new();
        for (name, value) in pairs(query)? {
            if !taken.contains(&name.as_ref()) {
                let takes = if taken.is_empty() { "none".to_owned() } else { taken.join(", ") };
                let detail =
                    format!("there is no query parameter {name:?} here; this request takes: {takes}");
                return Err(Problem::new(Kind::Malformed, detail));
            }
            if parameters.insert(name.clone().into_owned(), value.into_owned()).is_some() {
                let detail = format!("the query parameter {name:?} stands twice");
                return Err(Problem::new(Kind::Malformed, detail));
            }
        }
        Ok(Self(parameters))
    }

    /// A parameter as it was given.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// Whether a parameter has its one value; absent, it has not.
    pub(super) fn has(&self, name: &str, value: &'static str) -> Result<bool, Problem> {
        Ok(self.one_of(name, &[value])?.is_some())
    }

    /// Which of its values a parameter has, if it is there.
    pub(super) fn one_of(
        &self,
        name: &str,
        values: &[&'static str],
    ) -> Result<Option<&'static str>, Problem> {
        let Some(given) = self.text(name) else { return Ok(None) };
        let found = values.iter().find(|value| **value == given);
        let refused = || {
            let values = values.iter().map(|value| format!("{value:?}")).collect::<Vec<_>>().join(" or ");
            let detail = format!("the query parameter {name:?} can only be {values}, not {given:?}");
            Problem::new(Kind::Malformed, detail)
        };
        found.copied().map(Some).ok_or_else(refused)
    }

    /// A number from 1 to `max`, if it is there.
    pub(super) fn number(&self, name: &str, max: usize) -> Result<Option<usize>, Problem> {
        let Some(given) = self.text(name) else { return Ok(None) };
        let number = given.parse().ok().filter(|number| (1..=max).contains(number));
        let refused = || {
            let detail =
                format!("the query parameter {name:?} can only be a number from 1 to {max}, not {given:?}");
            Problem::new(Kind::Malformed, detail)
        };
        number.map(Some).ok_or_else(refused)
    }

    /// Whether a parameter is true; absent, it is false.
    pub(super) fn is_true(&self, name: &str) -> Result<bool, Problem> {
        if self.0.get(name).is_some_and(|given| given == "false") {
            return Ok(false);
        }
        self.has(name, "true")
    }
}

fn decode(text: &str) -> Result<Cow<'_, str>, Problem> {
    let decoded = percent_decode_str(text).decode_utf8();
    decoded.map_err(|_| Problem::new(Kind::Malformed, "the query is not UTF-8 once decoded"))
}

/// A body, and the room that it takes.
#[derive(Debug)]
pub(super) struct Text {
    pub(super) text: String,
    pub(super) room: Option<OwnedSemaphorePermit>,
}

/// Reads a JSON body whole, up to the limits.
pub(super) async fn text(api: &Api, headers: &HeaderMap, body: Body) -> Result<Text, Problem> {
    let (bytes, room) = bytes(api, headers, body, check_content_type).await?;
    let text = String::from_utf8(bytes);
    let text = text.map_err(|_| Problem::new(Kind::Malformed, "the body is not UTF-8"))?;
    Ok(Text { text, room })
}

/// Reads a body whole, up to the limits, if its type is right.
pub(super) async fn bytes(
    api: &Api,
    headers: &HeaderMap,
    mut body: Body,
    check_content_type: impl Fn(&HeaderMap) -> Result<(), Problem>,
) -> Result<(Vec<u8>, Option<OwnedSemaphorePermit>), Problem> {
    let read = async {
        check_content_type(headers)?;
        check_announced(api, headers)?;
        collect(api, &mut body).await
    };
    let read = tokio::time::timeout(BODY_READ_MAX, read).await.unwrap_or_else(|_| {
        let detail = format!("the body did not arrive within {} seconds", BODY_READ_MAX.as_secs());
        Err(Problem::new(Kind::RequestTimeout, detail))
    });
    match read {
        Ok(read) => Ok(read),
        Err(refusal) => {
            discard_refused(headers, body).await;
            Err(refusal)
        }
    }
}

/// Reads what is left of a refused request's body, within limits, so that its client hears the answer.
pub(super) async fn discard_refused(headers: &HeaderMap, mut body: Body) {
    if is_worth_discarding(headers) {
        let _ = tokio::time::timeout(DISCARD_MAX, discard(&mut body)).await;
    }
}

fn check_announced(api: &Api, headers: &HeaderMap) -> Result<(), Problem> {
    match announced(headers) {
        Some(length) if length > api.node.limits().body_bytes => Err(too_large(api)),
        _ => Ok(()),
    }
}

fn announced(headers: &HeaderMap) -> Option<usize> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Not if it cannot be read to its end, nor from a client that waits to be told to continue: that one has sent
/// nothing yet.
fn is_worth_discarding(headers: &HeaderMap) -> bool {
    announced(headers).is_none_or(|length| length <= DISCARDED_BYTES_MAX)
        && !headers.contains_key(header::EXPECT)
}

async fn collect(api: &Api, body: &mut Body) -> Result<(Vec<u8>, Option<OwnedSemaphorePermit>), Problem> {
    let (mut bytes, mut room) = (Vec::new(), None);
    while let Some(frame) = body.frame().await {
        let frame =
            frame.map_err(|error| Problem::new(Kind::Malformed, format!("the body broke off: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > api.node.limits().body_bytes {
            return Err(too_large(api));
        }
        if !take_room(api, &mut room, data.len()) {
            let most = api.node.limits().request_bytes;
            let detail =
                format!("bodies in progress have {most} bytes, the most that limits.request_bytes allows");
            return Err(Problem::new(Kind::Overloaded, detail));
        }
        bytes.extend_from_slice(&data);
    }
    Ok((bytes, room))
}

async fn discard(body: &mut Body) {
    let mut discarded = 0;
    while discarded < DISCARDED_BYTES_MAX
        && let Some(Ok(frame)) = body.frame().await
    {
        discarded += frame.data_ref().map_or(0, bytes::Bytes::len);
    }
}

fn too_large(api: &Api) -> Problem {
    let max = api.node.limits().body_bytes;
    Problem::too_large("body", max, format!("the body has more than {max} bytes"))
}

fn take_room(api: &Api, room: &mut Option<OwnedSemaphorePermit>, bytes: usize) -> bool {
    let Ok(permits) = u32::try_from(bytes) else { return false };
    let Ok(more) = Arc::clone(&api.body_room).try_acquire_many_owned(permits) else { return false };
    match room {
        Some(room) => room.merge(more),
        None => *room = Some(more),
    }
    true
}

/// A type that is given must be JSON; an absent one is taken for it.
fn check_content_type(headers: &HeaderMap) -> Result<(), Problem> {
    let Some(given) = headers.get(header::CONTENT_TYPE) else { return Ok(()) };
    let given = String::from_utf8_lossy(given.as_bytes());
    let essence = given.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json")) {
        return Ok(());
    }
    let detail = format!("the body is {given:?}; send application/json, in UTF-8");
    Err(Problem::new(Kind::UnsupportedMediaType, detail))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_hold_what_is_taken() {
        let query = Query::parse(Some("view=full&a%2Fb=%31"), &["view", "a/b"]).unwrap();
        assert!(query.has("view", "full").unwrap());
        assert!(query.has("a/b", "1").unwrap());
        assert!(query.has("view", "small").is_err());
        assert!(!query.is_true("other").unwrap());
        assert_eq!(query.one_of("view", &["small", "full"]).unwrap(), Some("full"));
        assert!(query.one_of("view", &["small", "large"]).is_err());
        assert_eq!((query.number("a/b", 1).unwrap(), query.number("other", 1).unwrap()), (Some(1), None));
        for bad in ["0", "11", "-1", "1.0", "", "ten", "99999999999999999999"] {
            let query = format!("limit={bad}");
            assert!(Query::parse(Some(&query), &["limit"]).unwrap().number("limit", 10).is_err(), "{bad}");
        }
        for bad in ["vieww=full", "view=a&view=b", "view=%f", "view=%ff", "=1"] {
            assert!(Query::parse(Some(bad), &["view"]).is_err(), "{bad}");
        }
        Query::parse(None, &[]).unwrap();
        Query::parse(Some("&"), &[]).unwrap();
    }

    #[test]
    fn content_types_are_json_or_absent() {
        let headers = |value: &'static str| {
            HeaderMap::from_iter([(header::CONTENT_TYPE, axum::http::HeaderValue::from_static(value))])
        };
        check_content_type(&HeaderMap::new()).unwrap();
        for good in ["application/json", "Application/JSON; charset=utf-8", "application/merge-patch+json"] {
            check_content_type(&headers(good)).unwrap();
        }
        for bad in ["text/plain", "application/x-www-form-urlencoded", "", "json"] {
            assert!(check_content_type(&headers(bad)).is_err(), "{bad}");
        }
    }
}
