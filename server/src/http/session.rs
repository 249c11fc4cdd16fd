//! What a request says that its client has seen, the wait for it, and what the answer tells.
//!
//! - Every request for data is attended here ([`attend`]): before its handler runs, this node has applied all that the
//!   request's tokens name, or the request is refused (`not-yet-visible`), nothing done.
//! - A handler reads and commits through its [`Session`], which notes what the answer shows: the contexts of the very
//!   snapshot that was read, and what a commit has seen. Whatever the answer then is (also 304 and 404), it carries a
//!   token of that and of the request's tokens.
//! - A listing shows every partition: a key that is not listed is one that no partition had.
//! - A token that would be too long for a header tells of this answer alone, and says so by `Godwit-Token-Scope`: no
//!   token pretends to hold what it does not.
//!
//! Waiting is bounded in time and number: requests that wait take at most half of `limits.requests`, and look at the
//! store again after pauses that grow from [`PAUSE_FIRST`] to [`PAUSE_MAX`].

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use godwit_core::delta::RequestKey;
use godwit_core::ids::PartitionId;
use godwit_core::op::{Terms, Write};
use godwit_core::token::Token;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::OwnedSemaphorePermit;
use utoipa::ToSchema;

use super::problem::{Kind, Problem};
use super::{Api, admission, contract, idempotency, request, respond};
use crate::node::StoreView;
use crate::node::{CommitFailure, Committed, ReadFailure, Stopped};

const TOKEN: HeaderName = HeaderName::from_static("godwit-token");
const TOKEN_SCOPE: HeaderName = HeaderName::from_static("godwit-token-scope");
const SEEN: HeaderName = HeaderName::from_static("godwit-seen");
const REPEATED: HeaderName = HeaderName::from_static("godwit-repeated");

/// How long a request waits for what its tokens name, unless `wait_ms` says otherwise.
const WAIT_MS_DEFAULT: u64 = 1_000;
/// The greatest `wait_ms`.
const WAIT_MS_MAX: u64 = 30_000;
/// The most requests that wait at a time, and never more than half of all in progress.
const WAITS_MAX: usize = 128;
/// Pauses between two looks at the store: each is twice the one before.
const PAUSE_FIRST: Duration = Duration::from_millis(2);
const PAUSE_MAX: Duration = Duration::from_millis(32);

/// The requests that may wait at a time, of so many in progress.
pub(super) fn waits_max(requests: usize) -> usize {
    (requests / 2).clamp(1, WAITS_MAX)
}

/// One request's session.
#[derive(Debug, Clone)]
pub(super) struct Session(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// The union of `Godwit-Token`.
    asked: Token,
    /// The union of `Godwit-Seen`, if it was given.
    seen: Option<Token>,
    /// Half of the digest of `Idempotency-Key`.
    key: Option<[u8; 16]>,
    shown: Mutex<Shown>,
}

/// What the answer tells.
#[derive(Debug, Default)]
struct Shown {
    token: Option<Token>,
    commits: usize,
    /// Commits that had been made before.
    repeated: usize,
}

impl Session {
    fn of(api: &Api, method: &Method, headers: &HeaderMap) -> Result<Self, Problem> {
        let seen = headers.contains_key(SEEN).then(|| union(api, headers, &SEEN)).transpose()?;
        let inner = Inner {
            asked: union(api, headers, &TOKEN)?,
            seen,
            key: idempotency::key(headers)?,
            shown: Mutex::default(),
        };
        let session = Self(Arc::new(inner));
        if matches!(*method, Method::GET | Method::HEAD) {
            session.only_reads()?;
        }
        Ok(session)
    }

    /// Refuses headers that only a write may have.
    pub(super) fn only_reads(&self) -> Result<(), Problem> {
        let header = match (&self.0.seen, &self.0.key) {
            (Some(_), _) => &SEEN,
            (_, Some(_)) => &idempotency::KEY,
            (None, None) => return Ok(()),
        };
        let detail = format!("{header} has a meaning for writes only, and this request reads: leave it out");
        Err(Problem::new(Kind::UnsupportedHeader, detail))
    }

    /// All that must be applied before the request is served.
    fn named(&self) -> Token {
        let mut named = self.0.asked.clone();
        self.0.seen.iter().for_each(|seen| named.join(seen));
        named
    }

    /// Reads a state of these partitions, which the answer then shows.
    pub(super) async fn read<T: Send + 'static, E: Into<ReadFailure> + Send + 'static>(
        &self,
        api: &Api,
        partitions: impl IntoIterator<Item = PartitionId> + Send + 'static,
        read: impl FnOnce(&StoreView<'_>) -> Result<T, E> + Send + 'static,
    ) -> Result<T, ReadFailure> {
        let read = move |store: &StoreView<'_>| {
            let value = read(store).map_err(Into::into)?;
            Ok::<_, ReadFailure>((value, Token::of_store(store, partitions)?))
        };
        let (value, token) = api.node.read(read).await?;
        self.shown().token.get_or_insert_default().join(&token);
        Ok(value)
    }

    /// Commits writes to records of one partition, on the request's terms, within the quotas of their namespace.
    pub(super) async fn commit(
        &self,
        api: &Api,
        writes: Vec<Write>,
        room: Option<OwnedSemaphorePermit>,
    ) -> Result<Committed, CommitFailure> {
        self.commit_under(api, writes, room, self.0.key).await
    }

    /// The same, of a part of what the request writes, which may be written again without harm: the request's idempotency key is not for
    /// one part.
    pub(super) async fn commit_part(
        &self,
        api: &Api,
        writes: Vec<Write>,
    ) -> Result<Committed, CommitFailure> {
        self.commit_under(api, writes, None, None).await
    }

    async fn commit_under(
        &self,
        api: &Api,
        writes: Vec<Write>,
        room: Option<OwnedSemaphorePermit>,
        key: Option<[u8; 16]>,
    ) -> Result<Committed, CommitFailure> {
        let home = writes.first().map(|write| write.record.partition(api.node.partitions()));
        // A token that does not name the partition has seen nothing of it.
        let seen = self.0.seen.as_ref().zip(home).map(|(token, home)| token.seen(home));
        let request = key.map(|key| RequestKey { key, asked: idempotency::asked(&writes, seen.as_ref()) });
        admission::within_quota(api, &writes, request).await?;
        let committed = api.node.commit_edits(writes, Terms { seen, request }, room).await?;
        let mut shown = self.shown();
        shown.commits += 1;
        shown.repeated += usize::from(committed.repeated);
        let token = shown.token.get_or_insert_default();
        self.0.seen.iter().for_each(|seen| token.join(seen));
        token.add(committed.partition, committed.seen.clone());
        drop(shown);
        Ok(committed)
    }

    fn shown(&self) -> MutexGuard<'_, Shown> {
        // Nothing panics between two changes that belong together.
        self.0.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts into the answer's head what it shows.
    fn tell(&self, api: &Api, headers: &mut HeaderMap) {
        let shown = std::mem::take(&mut *self.shown());
        if shown.commits > 0 && shown.repeated == shown.commits {
            headers.insert(REPEATED, HeaderValue::from_static("true"));
        }
        let Some(alone) = shown.token else { return };
        let mut whole = self.0.asked.clone();
        whole.join(&alone);
        let text = whole.seal(api.node.tokens());
        if text.is_none() {
            headers.insert(TOKEN_SCOPE, HeaderValue::from_static("answer"));
        }
        match text.or_else(|| alone.seal(api.node.tokens())).and_then(|text| HeaderValue::try_from(text).ok())
        {
            Some(token) => headers.insert(TOKEN, token),
            None => headers.insert(TOKEN_SCOPE, HeaderValue::from_static("none")),
        };
    }
}

/// Lets a request wait for what its tokens name, hands its session to the handler, and tells what the answer shows.
pub(super) async fn attend(State(api): State<Api>, request: Request, next: Next) -> Response {
    let (mut parts, body) = request.into_parts();
    let session = match begin(&api, &parts).await {
        Ok(session) => session,
        Err(problem) => {
            request::discard_refused(&parts.headers, body).await;
            return problem.into_response();
        }
    };
    parts.extensions.insert(session.clone());
    let mut response = next.run(Request::from_parts(parts, body)).await;
    session.tell(&api, response.headers_mut());
    response
}

async fn begin(api: &Api, parts: &Parts) -> Result<Session, Problem> {
    let session = Session::of(api, &parts.method, &parts.headers)?;
    let wait = wait(&parts.uri)?.unwrap_or(Duration::from_millis(WAIT_MS_DEFAULT));
    let detail = match until_visible(api, session.named(), wait).await? {
        Visible::Yes => return Ok(session),
        Visible::No => {
            let wait_ms = wait.as_millis();
            format!(
                "within {wait_ms} ms this node did not get what the request's tokens name: repeat it, or use the node that gave them"
            )
        }
        Visible::Crowded => {
            let most = waits_max(api.node.limits().requests);
            format!(
                "this node does not have yet what the request's tokens name, and {most} requests wait already"
            )
        }
    };
    Err(Problem::new(Kind::NotYetVisible, detail))
}

/// Whether a node has applied what tokens name.
enum Visible {
    Yes,
    No,
    /// No, and as many requests wait for it as may.
    Crowded,
}

async fn until_visible(api: &Api, mut named: Token, wait: Duration) -> Result<Visible, ReadFailure> {
    if named.is_empty() {
        return Ok(Visible::Yes);
    }
    let begun = Instant::now();
    let (mut place, mut pause) = (None, PAUSE_FIRST);
    loop {
        named = api.node.read(move |store| named.beyond(store)).await?;
        let left = wait.saturating_sub(begun.elapsed());
        if named.is_empty() {
            return Ok(Visible::Yes);
        } else if !api.node.is_ready() {
            return Err(Stopped.into());
        } else if left.is_zero() {
            return Ok(Visible::No);
        } else if place.is_none() {
            match api.waits.try_acquire() {
                Ok(permit) => place = Some(permit),
                Err(_) => return Ok(Visible::Crowded),
            }
        }
        tokio::time::sleep(pause.min(left)).await; // polls: what the tokens name is applied
        pause = PAUSE_MAX.min(2 * pause);
    }
}

/// All that the tokens of a header cover. It may repeat, or list them.
fn union(api: &Api, headers: &HeaderMap, name: &HeaderName) -> Result<Token, Problem> {
    let mut all = Token::default();
    for value in headers.get_all(name) {
        let value = String::from_utf8_lossy(value.as_bytes());
        for text in value.split(',') {
            all.join(&open(api, name.as_str(), text.trim())?);
        }
    }
    Ok(all)
}

fn open(api: &Api, from: &str, text: &str) -> Result<Token, Problem> {
    Token::open(text, api.node.tokens()).map_err(|error| {
        let detail = format!(
            "a token in {from} is refused: {error}. Send one as this cluster gave it, or begin a new session without"
        );
        Problem::new(Kind::InvalidToken, detail)
    })
}

fn wait(uri: &Uri) -> Result<Option<Duration>, Problem> {
    let pairs = request::pairs(uri.query())?;
    let mut given = pairs.iter().filter(|(name, _)| name == request::WAIT).map(|(_, value)| value);
    let Some(first) = given.next() else { return Ok(None) };
    let wait = first.parse().ok().filter(|wait_ms| *wait_ms <= WAIT_MS_MAX && given.next().is_none());
    wait.map(|wait_ms| Some(Duration::from_millis(wait_ms))).ok_or_else(|| {
        let detail =
            format!("the query parameter {:?} can only be one number from 0 to {WAIT_MS_MAX}", request::WAIT);
        Problem::new(Kind::Malformed, detail)
    })
}

/// What requests with a session take, for the contract.
pub(super) fn parameters(writes: bool) -> Vec<Value> {
    let token = json!({"type": "string"});
    let mut all = vec![
        contract::query_parameter(
            request::WAIT,
            "How long to wait for what tokens name, in milliseconds.",
            json!({"type": "integer", "minimum": 0, "maximum": WAIT_MS_MAX, "default": WAIT_MS_DEFAULT}),
        ),
        contract::header_parameter(
            "Godwit-Token",
            "Served only once this node has what these tokens of answers name. May repeat, or be a list.",
            token.clone(),
        ),
    ];
    if writes {
        let about = "Tokens of reads: what the client has seen. What the write removes or replaces is that, and no more.";
        all.push(contract::header_parameter("Godwit-Seen", about, token));
    }
    all
}

/// What their answers tell, for the contract.
pub(super) fn answer_headers(writes: bool) -> Vec<(&'static str, Value)> {
    let header = |about: &str, schema: Value| json!({"description": about, "schema": schema});
    let about_scope = "The token tells of this answer alone (`answer`), or there is none (`none`): with the request's it would be too long.";
    let mut all = vec![
        (
            "Godwit-Token",
            header("What this answer shows, and what the request's tokens name.", json!({"type": "string"})),
        ),
        ("Godwit-Token-Scope", header(about_scope, json!({"enum": ["answer", "none"]}))),
    ];
    if writes {
        let about = "The write had been made before, under its idempotency key.";
        all.push(("Godwit-Repeated", header(about, json!({"const": "true"}))));
    }
    all
}

#[derive(Serialize, ToSchema)]
#[schema(as = Visible)]
pub(super) struct VisibleBody {
    visible: bool,
}

/// `GET`: whether this node has applied all that the tokens name.
#[utoipa::path(
    get, path = "/v1/_visible", operation_id = "readVisible", tag = "changes",
    params(
        ("token" = String, Query, description = "A token of an answer, of any node. May repeat."),
        ("wait_ms" = Option<u16>, Query, description = "How long to wait for it, in milliseconds; not at all without.", minimum = 0, maximum = 30_000),
    ),
    responses((status = 200, description = "Whether it has.", body = VisibleBody), (status = 400, description = "invalid-token"))
)]
pub(super) async fn visible(State(api): State<Api>, uri: Uri) -> Result<Response, Problem> {
    let mut named = Token::default();
    let mut given = false;
    for (name, value) in request::pairs(uri.query())? {
        match name.as_ref() {
            "token" => {
                named.join(&open(&api, "the query", &value)?);
                given = true;
            }
            request::WAIT => {}
            _ => {
                let detail =
                    format!("there is no query parameter {name:?} here; this request takes: token, wait_ms");
                return Err(Problem::new(Kind::Malformed, detail));
            }
        }
    }
    if !given {
        return Err(Problem::new(Kind::Malformed, "there is no token to look for: ask with ?token="));
    }
    let wait = wait(&uri)?.unwrap_or_default();
    let visible = matches!(until_visible(&api, named, wait).await?, Visible::Yes);
    respond::json(&VisibleBody { visible })
}
