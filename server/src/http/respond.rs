//! Answers: JSON, and for reads an entity tag over the very bytes.

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::problem::Problem;

/// An answer to a write, or about the node.
pub(super) fn json(body: &impl Serialize) -> Result<Response, Problem> {
    Ok(with_type(bytes(body)?))
}

/// An answer to a read: 304 if the client has these bytes already.
pub(super) fn tagged(body: &impl Serialize, headers: &HeaderMap) -> Result<Response, Problem> {
    let bytes = bytes(body)?;
    let tag = format!("\"{}\"", blake3::hash(&bytes).to_hex());
    let mut response =
        if is_known(headers, &tag) { StatusCode::NOT_MODIFIED.into_response() } else { with_type(bytes) };
    let tag = HeaderValue::from_str(&tag).map_err(|error| Problem::unreadable(&error))?;
    response.headers_mut().insert(header::ETAG, tag);
    Ok(response)
}

fn bytes(body: &impl Serialize) -> Result<Vec<u8>, Problem> {
    serde_json::to_vec(body).map_err(|error| Problem::unreadable(&error))
}

fn with_type(bytes: Vec<u8>) -> Response {
    ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], bytes).into_response()
}

/// Whether `If-None-Match` names the tag. Comparison is weak, as RFC 9110 has it for this header.
fn is_known(headers: &HeaderMap, tag: &str) -> bool {
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
