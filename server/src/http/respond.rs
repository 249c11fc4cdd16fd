//! Answers: JSON, and for reads an entity tag over the very bytes.
//!
//! Memory that answers take is bounded, also where a client does not fetch them: a small answer costs little, and
//! there are only so many connections; a large one takes its room among all large answers before it is read, and
//! gives it back when its last byte is written or its connection is gone (see `server`).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use godwit_core::ids::PartitionId;
use godwit_core::read::ReadLimits;
use serde::Serialize;
use tokio::sync::OwnedSemaphorePermit;

use super::Api;
use super::problem::{Kind, Problem};
use super::session::Session;
use super::view::MEMBERS_SHOWN_MAX;
use crate::node::ReadFailure;
use crate::node::StoreView;

/// What is read without taking room: more than nearly all records have.
const SMALL_ANSWER_BYTES: usize = 64 * 1024;
/// How long a large answer waits for room.
pub(super) const ROOM_WAIT_MAX: Duration = Duration::from_secs(5);

/// What to answer with, and the room that it takes.
pub(super) struct Fetched<T> {
    pub(super) views: T,
    pub(super) room: Option<OwnedSemaphorePermit>,
}

/// Reads what a request asks for of these partitions, within the limits on answers.
pub(super) async fn fetch<T: Send + 'static>(
    api: &Api,
    session: &Session,
    partitions: &BTreeSet<PartitionId>,
    read: impl Fn(&StoreView<'_>, ReadLimits) -> Result<T, ReadFailure> + Clone + Send + 'static,
) -> Result<Fetched<T>, Problem> {
    let attempt = |bytes_max: usize| {
        let (read, limits) = (read.clone(), ReadLimits { members_max: MEMBERS_SHOWN_MAX, bytes_max });
        session.read(api, partitions.clone(), move |store| read(store, limits))
    };
    let most = api.node.limits().answer_bytes;
    match attempt(SMALL_ANSWER_BYTES.min(most)).await {
        Err(ReadFailure::TooLarge { max }) if max < most => {}
        outcome => return Ok(Fetched { views: outcome?, room: None }),
    }
    let room = room(api, most).await?;
    Ok(Fetched { views: attempt(most).await?, room })
}

/// Room for an answer of so many bytes; none is needed for a small one.
pub(super) async fn room(api: &Api, bytes: usize) -> Result<Option<OwnedSemaphorePermit>, Problem> {
    if bytes <= SMALL_ANSWER_BYTES {
        return Ok(None);
    }
    let all = api.node.limits().answers_bytes;
    let overloaded = || {
        let detail =
            format!("large answers in progress take {all} bytes, the most that limits.answers_bytes allows");
        Problem::new(Kind::Overloaded, detail)
    };
    let permits = u32::try_from(bytes.min(all)).map_err(|_| overloaded())?;
    let room = Arc::clone(&api.answer_room).acquire_many_owned(permits);
    let room = tokio::time::timeout(ROOM_WAIT_MAX, room).await;
    room.ok().and_then(Result::ok).map(Some).ok_or_else(overloaded)
}

/// An answer to a write, or about the node.
pub(super) fn json(body: &impl Serialize) -> Result<Response, Problem> {
    held(body, None)
}

/// The same, of a body that takes room.
pub(super) fn held(body: &impl Serialize, room: Option<OwnedSemaphorePermit>) -> Result<Response, Problem> {
    Ok(with_type("application/json", bytes(body)?, room))
}

/// An answer to a read: 304 if the client has these bytes already.
pub(super) fn tagged(
    body: &impl Serialize,
    headers: &HeaderMap,
    room: Option<OwnedSemaphorePermit>,
) -> Result<Response, Problem> {
    tagged_as("application/json", bytes(body)?, headers, room)
}

/// The same, of bytes of another type.
pub(super) fn tagged_as(
    content_type: &'static str,
    bytes: Vec<u8>,
    headers: &HeaderMap,
    room: Option<OwnedSemaphorePermit>,
) -> Result<Response, Problem> {
    let tag = format!("\"{}\"", blake3::hash(&bytes).to_hex());
    let mut response = if is_known(headers, &tag) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        with_type(content_type, bytes, room)
    };
    let tag = HeaderValue::from_str(&tag).map_err(|error| Problem::unreadable(&error))?;
    response.headers_mut().insert(header::ETAG, tag);
    Ok(response)
}

/// The same, with its status and type left to the caller.
pub(super) fn body(body: &impl Serialize, room: Option<OwnedSemaphorePermit>) -> Result<Bytes, Problem> {
    Ok(hold(bytes(body)?, room))
}

fn bytes(body: &impl Serialize) -> Result<Vec<u8>, Problem> {
    serde_json::to_vec(body).map_err(|error| Problem::unreadable(&error))
}

fn with_type(content_type: &'static str, bytes: Vec<u8>, room: Option<OwnedSemaphorePermit>) -> Response {
    let content_type = (header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    ([content_type], hold(bytes, room)).into_response()
}

fn hold(bytes: Vec<u8>, mut room: Option<OwnedSemaphorePermit>) -> Bytes {
    // What was set aside for the largest answer and is not needed goes back at once.
    let room = room.as_mut().and_then(|room| room.split(bytes.len().min(room.num_permits())));
    Bytes::from_owner(Held { bytes, _room: room })
}

/// Bytes that hold their room as long as anybody holds them.
struct Held {
    bytes: Vec<u8>,
    _room: Option<OwnedSemaphorePermit>,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Whether `If-None-Match` names the tag. Comparison is weak, as RFC 9110 has it for this header.
pub(super) fn is_known(headers: &HeaderMap, tag: &str) -> bool {
    let given = headers.get_all(header::IF_NONE_MATCH);
    let mut tags = given.iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
    tags.any(|given| {
        let given = given.trim();
        given == "*" || given.strip_prefix("W/").unwrap_or(given) == tag
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_compared_as_http_has_it() {
        let known = |value: &'static str| {
            let headers = HeaderMap::from_iter([(header::IF_NONE_MATCH, HeaderValue::from_static(value))]);
            is_known(&headers, "\"a\"")
        };
        assert!(known("\"a\"") && known("W/\"a\"") && known("\"b\", \"a\"") && known("*"));
        assert!(!known("\"b\"") && !known("a") && !known(""));
        assert!(!is_known(&HeaderMap::new(), "\"a\""));
    }
}
