//! What can go wrong with a request, as `application/problem+json` (RFC 9457).
//!
//! Each kind has a stable `type`, `/problems/<slug>`, which is a section of `docs/PROBLEMS.md` and is served there.
//! The outcome is always one of three: 4xx, and nothing was written; 5xx with `"applied": "no"`, the same; any other
//! 5xx, and it is not known.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use godwit_core::delta::MAX_DELTA_BYTES;
use godwit_core::document::{DocumentError, EditError, Unmade};
use godwit_core::ids::NameError;
use godwit_core::json::{JsonError, MAX_DEPTH};
use godwit_core::op::Reason;
use godwit_core::partition::CommitError;
use serde::{Serialize, Serializer};
use utoipa::ToSchema;

use crate::node::{CommitFailure, ReadFailure};

/// After how many seconds to come again.
const RETRY_AFTER_SECONDS: &str = "1";

/// Kinds of problems.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The request is not what the resource takes.
    Malformed,
    /// A name is empty, too long, or holds what names must not.
    InvalidName,
    /// An operation that does not exist.
    UnknownOp,
    /// A header whose promise this version cannot keep.
    UnsupportedHeader,
    /// A token that this cluster did not make, or that cannot be read.
    InvalidToken,
    /// The namespace takes no more.
    QuotaExceeded,
    /// A page of a site that may not connect.
    OriginRefused,
    /// Nothing there.
    NotFound,
    /// Nobody made the namespace.
    NamespaceNotFound,
    /// The resource has no such method.
    MethodNotAllowed,
    /// The body did not come in time.
    RequestTimeout,
    /// A live field of that name has another type.
    TypeMismatch,
    /// A removal over increments that the client has not seen.
    StaleSeen,
    /// An edit that does not fit the document as it is.
    EditRefused,
    /// Changes that build on others which are not there.
    MissingChanges,
    /// The namespace is being deleted.
    NamespaceDeleting,
    /// Beyond a limit.
    TooLarge,
    /// The body is not JSON.
    UnsupportedMediaType,
    /// Bytes of which Automerge makes no document.
    InvalidDocument,
    /// An idempotency key that was used for something else.
    IdempotencyKeyReused,
    /// The node has too much to do.
    Overloaded,
    /// More requests in a second than the namespace may have.
    RateLimited,
    /// A defect, or a failed disk.
    Internal,
    /// The node has not applied yet what a token names.
    NotYetVisible,
    /// The node is stopping.
    Stopping,
}

/// Whether the request changed something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Applied {
    /// It did not.
    No,
    /// It may have.
    Unknown,
}

/// One problem, ready to be told.
#[derive(Debug, Clone)]
pub struct Problem {
    kind: Kind,
    detail: String,
    write: Option<usize>,
    op: Option<usize>,
    limit: Option<Limit>,
    applied: Option<Applied>,
}

#[derive(Debug, Clone, Copy)]
struct Limit {
    name: &'static str,
    max: usize,
}

impl Kind {
    /// All kinds, by status.
    pub const ALL: [Self; 25] = [
        Self::Malformed,
        Self::InvalidName,
        Self::UnknownOp,
        Self::UnsupportedHeader,
        Self::InvalidToken,
        Self::QuotaExceeded,
        Self::OriginRefused,
        Self::NotFound,
        Self::NamespaceNotFound,
        Self::MethodNotAllowed,
        Self::RequestTimeout,
        Self::TypeMismatch,
        Self::StaleSeen,
        Self::EditRefused,
        Self::MissingChanges,
        Self::NamespaceDeleting,
        Self::TooLarge,
        Self::UnsupportedMediaType,
        Self::InvalidDocument,
        Self::IdempotencyKeyReused,
        Self::Overloaded,
        Self::RateLimited,
        Self::Internal,
        Self::NotYetVisible,
        Self::Stopping,
    ];

    /// The end of the problem's `type`.
    pub fn slug(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::InvalidName => "invalid-name",
            Self::UnknownOp => "unknown-op",
            Self::UnsupportedHeader => "unsupported-header",
            Self::InvalidToken => "invalid-token",
            Self::QuotaExceeded => "quota-exceeded",
            Self::OriginRefused => "origin-refused",
            Self::NotFound => "not-found",
            Self::NamespaceNotFound => "namespace-not-found",
            Self::MethodNotAllowed => "method-not-allowed",
            Self::RequestTimeout => "request-timeout",
            Self::TypeMismatch => "type-mismatch",
            Self::StaleSeen => "stale-seen",
            Self::EditRefused => "edit-refused",
            Self::MissingChanges => "missing-changes",
            Self::InvalidDocument => "invalid-document",
            Self::NamespaceDeleting => "namespace-deleting",
            Self::TooLarge => "too-large",
            Self::UnsupportedMediaType => "unsupported-media-type",
            Self::IdempotencyKeyReused => "idempotency-key-reused",
            Self::Overloaded => "overloaded",
            Self::RateLimited => "rate-limited",
            Self::Internal => "internal",
            Self::NotYetVisible => "not-yet-visible",
            Self::Stopping => "stopping",
        }
    }

    /// The `type` of problems, and where it is told what they are.
    pub(super) fn page(self) -> String {
        format!("/problems/{}", self.slug())
    }

    /// Whether the same request may go well the next time, and changed nothing this time.
    pub(super) fn comes_again(self) -> bool {
        matches!(self, Self::Overloaded | Self::RateLimited | Self::NotYetVisible | Self::Stopping)
    }

    /// The same for all problems of the kind.
    pub fn title(self) -> &'static str {
        match self {
            Self::Malformed => "The request is malformed",
            Self::InvalidName => "A name is not allowed",
            Self::UnknownOp => "There is no such operation",
            Self::UnsupportedHeader => "A header is not supported",
            Self::InvalidToken => "A token is not valid here",
            Self::QuotaExceeded => "The namespace's quota is used up",
            Self::OriginRefused => "Pages of that site may not connect",
            Self::NotFound => "There is nothing here",
            Self::NamespaceNotFound => "The namespace does not exist",
            Self::MethodNotAllowed => "The method is not allowed here",
            Self::RequestTimeout => "The request took too long to arrive",
            Self::TypeMismatch => "The field has another type",
            Self::EditRefused => "The edit does not fit the document",
            Self::MissingChanges => "The document lacks what the changes build on",
            Self::InvalidDocument => "Automerge makes no document of this",
            Self::StaleSeen => "The token does not cover what is to be removed",
            Self::NamespaceDeleting => "The namespace is being deleted",
            Self::TooLarge => "A limit is exceeded",
            Self::UnsupportedMediaType => "The body must be JSON",
            Self::IdempotencyKeyReused => "The idempotency key was used for another request",
            Self::Overloaded => "The node has too much to do",
            Self::RateLimited => "The namespace has too many requests",
            Self::Internal => "The node failed",
            Self::NotYetVisible => "The node does not have yet what the token names",
            Self::Stopping => "The node is stopping",
        }
    }

    /// The HTTP status.
    pub fn status(self) -> StatusCode {
        match self {
            Self::Malformed
            | Self::InvalidName
            | Self::UnknownOp
            | Self::UnsupportedHeader
            | Self::InvalidToken => StatusCode::BAD_REQUEST,
            Self::QuotaExceeded | Self::OriginRefused => StatusCode::FORBIDDEN,
            Self::NotFound | Self::NamespaceNotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::RequestTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::TypeMismatch
            | Self::StaleSeen
            | Self::EditRefused
            | Self::MissingChanges
            | Self::NamespaceDeleting => StatusCode::CONFLICT,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::InvalidDocument | Self::IdempotencyKeyReused => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Overloaded | Self::RateLimited => StatusCode::TOO_MANY_REQUESTS,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Self::NotYetVisible | Self::Stopping => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

impl Problem {
    /// A problem; the detail says what is wrong with this request and what to do.
    pub fn new(kind: Kind, detail: impl Into<String>) -> Self {
        let applied = match kind {
            _ if kind.comes_again() => Some(Applied::No),
            Kind::Internal => Some(Applied::Unknown),
            _ => None,
        };
        Self { kind, detail: detail.into(), write: None, op: None, limit: None, applied }
    }

    /// A limit exceeded: its name and value.
    pub fn too_large(name: &'static str, max: usize, detail: impl Into<String>) -> Self {
        Self { limit: Some(Limit { name, max }), ..Self::new(Kind::TooLarge, detail) }
    }

    /// Names the offending operation.
    pub fn at_op(mut self, op: usize) -> Self {
        self.op = Some(op);
        self
    }

    /// Names the offending write of a batch.
    pub(super) fn at_write(mut self, write: usize) -> Self {
        self.write = Some(write);
        self
    }

    /// For requests that consist of one operation, which needs no index.
    pub(super) fn at_no_op(mut self) -> Self {
        self.op = None;
        self
    }

    /// Says whether the request changed something.
    pub fn applied(mut self, applied: Applied) -> Self {
        self.applied = Some(applied);
        self
    }

    /// What kind of problem it is.
    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    /// Whether it is known that the request changed nothing.
    pub(super) fn changed_nothing(&self) -> bool {
        self.applied != Some(Applied::Unknown)
    }

    /// Something that is stored does not make sense; nothing was changed by finding out.
    pub(super) fn unreadable(error: &dyn std::fmt::Display) -> Self {
        Self::internal(error, Applied::No)
    }

    /// What a document is not, or has not. One that cannot be made of what is stored is told so too.
    fn of_document(error: &DocumentError) -> Self {
        match error {
            DocumentError::NotThere(_) | DocumentError::UnknownHead(_) => {
                Self::new(Kind::NotFound, error.to_string())
            }
            DocumentError::TooDeep => Self::too_large("depth", MAX_DEPTH, error.to_string()),
            DocumentError::Chunk(_) | DocumentError::Failed(_) => {
                Self::new(Kind::InvalidDocument, error.to_string())
            }
        }
    }

    fn of_unmade(unmade: &Unmade, detail: String) -> Self {
        match unmade {
            Unmade::Patch(_) => Self::new(Kind::Malformed, detail),
            Unmade::Edit(EditError::Step { .. }) => Self::new(Kind::EditRefused, detail),
            Unmade::Edit(EditError::Document(error)) | Unmade::Document(error) => {
                Self { detail, ..Self::of_document(error) }
            }
            Unmade::Missing(_) => Self::new(Kind::MissingChanges, detail),
            Unmade::TooLarge { max, .. } => {
                Self::too_large("document", usize::try_from(*max).unwrap_or(usize::MAX), detail)
            }
        }
    }

    fn internal(error: &dyn std::fmt::Display, applied: Applied) -> Self {
        tracing::error!(%error, "a request failed");
        Self::new(Kind::Internal, "the store failed: the node's log says more").applied(applied)
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.kind.title(), self.detail)
    }
}

/// What is wrong, and what to do.
#[derive(Serialize, ToSchema)]
#[schema(as = Problem)]
pub(super) struct Body<'a> {
    /// A path under which it is told what such problems are.
    r#type: String,
    title: &'a str,
    status: u16,
    /// What is wrong with this request, for people.
    detail: &'a str,
    /// The index of the write in the batch that it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    write: Option<usize>,
    /// The index of the operation.
    #[serde(skip_serializing_if = "Option::is_none")]
    op: Option<usize>,
    /// The limit that is exceeded.
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<&'a str>,
    /// Its value.
    #[serde(skip_serializing_if = "Option::is_none")]
    max: Option<usize>,
    /// Whether the request changed something; a 4xx that does not say did not.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(inline)]
    applied: Option<Applied>,
}

impl Serialize for Problem {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let body = Body {
            r#type: self.kind.page(),
            title: self.kind.title(),
            status: self.kind.status().as_u16(),
            detail: &self.detail,
            write: self.write,
            op: self.op,
            limit: self.limit.map(|limit| limit.name),
            max: self.limit.map(|limit| limit.max),
            applied: self.applied,
        };
        body.serialize(serializer)
    }
}

impl Problem {
    /// An answer of this problem's kind with a body that says as much as the problem does, or more.
    pub(super) fn respond(&self, body: impl IntoResponse) -> Response {
        let content_type = (header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        let mut response = (self.kind.status(), [content_type], body).into_response();
        if self.kind.comes_again() {
            let retry = HeaderValue::from_static(RETRY_AFTER_SECONDS);
            response.headers_mut().insert(header::RETRY_AFTER, retry);
        }
        response
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        // Strings and numbers always serialise.
        self.respond(serde_json::to_vec(&self).unwrap_or_default())
    }
}

impl From<NameError> for Problem {
    fn from(error: NameError) -> Self {
        Self::new(Kind::InvalidName, error.to_string())
    }
}

impl From<JsonError> for Problem {
    fn from(error: JsonError) -> Self {
        match error {
            JsonError::TooDeep => Self::too_large("depth", MAX_DEPTH, error.to_string()),
            JsonError::Invalid(_) => Self::new(Kind::Malformed, error.to_string()),
        }
    }
}

impl From<ReadFailure> for Problem {
    fn from(failure: ReadFailure) -> Self {
        match failure {
            ReadFailure::Stopped(stopped) => Self::new(Kind::Stopping, stopped.to_string()),
            ReadFailure::Document(error) => Self::of_document(&error),
            ReadFailure::Unordered => Self::new(Kind::Overloaded, failure.to_string()),
            ReadFailure::TooLarge { max } => {
                let detail = format!(
                    "the answer has more than {max} bytes: ask for fewer records, or for fields one by one"
                );
                Self::too_large("answer", max, detail)
            }
            ReadFailure::Store(error) => Self::internal(&error, Applied::No),
        }
    }
}

impl From<CommitFailure> for Problem {
    fn from(failure: CommitFailure) -> Self {
        match failure {
            CommitFailure::Refused(error) => error.into(),
            CommitFailure::Quota(exceeded) => Self::new(Kind::QuotaExceeded, exceeded.to_string()),
            CommitFailure::Overloaded => Self::new(Kind::Overloaded, failure.to_string()),
            CommitFailure::Stopped(stopped) => Self::new(Kind::Stopping, stopped.to_string()),
            CommitFailure::Unread(failure) => failure.into(),
            CommitFailure::Unknown => Self::internal(&failure, Applied::Unknown),
        }
    }
}

impl From<CommitError> for Problem {
    fn from(error: CommitError) -> Self {
        let CommitError::Refused { refusal, .. } = error else {
            return match error {
                CommitError::Store(error) => Self::internal(&error, Applied::Unknown),
                reused @ CommitError::KeyReused => Self::new(Kind::IdempotencyKeyReused, reused.to_string()),
                // Requests are made of writes that go together, so the others do not come up.
                other => Self::new(Kind::Malformed, other.to_string()),
            };
        };
        let detail = refusal.reason.to_string();
        let too_large = |name, max| Self::too_large(name, max, detail.clone());
        let problem = match refusal.reason {
            Reason::TypeMismatch { .. } => Self::new(Kind::TypeMismatch, detail),
            Reason::StaleSeen { .. } => Self::new(Kind::StaleSeen, detail),
            Reason::ValueTooLarge { max, .. } => too_large("value", max),
            Reason::TooManyFields { max } => too_large("fields", max),
            Reason::TooManyOps { max, .. } => too_large("ops", max),
            Reason::TooManyMembers { max, .. } => too_large("members", max),
            Reason::TooManyIncremented { max, .. } => too_large("members", max),
            Reason::TooLarge { max, .. } => too_large("delta", max),
            Reason::TooManyParts => too_large("delta", MAX_DELTA_BYTES),
            Reason::MissingChanges { .. } => Self::new(Kind::MissingChanges, detail),
            Reason::Document { unmade, .. } => Self::of_unmade(&unmade, detail),
            Reason::EditNotMade => Self::new(Kind::Overloaded, detail),
        };
        problem.at_op(refusal.op)
    }
}
