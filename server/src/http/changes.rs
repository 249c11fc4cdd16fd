//! `/v1/_changes/{ns}`: what changes, as server-sent events (WHATWG HTML, "Server-sent events").
//!
//! | event | data | id |
//! |---|---|---|
//! | `change` | `{"key", "fields": {name: value, or null if it is gone}}`, values as reads show them; with `"whole": true` the record was cleared and these are all its fields, with `"deleted": true` it is gone | on the last one of a step |
//! | `reset` | `{}`: the log does not reach back; list and read all, then go on from the id | yes |
//! | `position` | `{}`: nothing that is followed changed, so far | yes |
//!
//! What holds: an id names what a consumer has once it has handled the event, so it may come back with it at any node; it is
//! a token, and a token of a read or write is a place to begin, too. Events of one step without an id are told again to a
//! consumer that breaks off between them.
//!
//! A consumer costs a task, a step at a time and one chunk of text that waits for its socket: nothing is kept for one that
//! is slow. Steps end at [`STEP`]. They begin when something is written, [`PAUSE`] after the last one at the earliest.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, Uri, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use godwit_core::feed::{Change, Cursor, Expiries, Followed, Found, StepLimits};
use godwit_core::ids::PartitionId;
use godwit_core::read::{self, FieldView, ReadError, ReadLimits};
use godwit_core::token::Token;
use http_body_util::channel::{Channel, Sender};
use serde::Serialize;
use tokio::sync::OwnedSemaphorePermit;
use utoipa::ToSchema;

use super::contract::schemas;
use super::problem::{Kind, Problem};
use super::request::{NamespacePath, Query};
use super::view::{MEMBERS_SHOWN_MAX, Shape, ValueBody, Viewer};
use super::{Api, admission};
use crate::node::{NodeHandle, ReadFailure, StoreView};

/// One step in one partition.
const STEP: StepLimits = StepLimits { entries_max: 1_000, bytes_max: 1024 * 1024, records_max: 100 };
/// Bytes of one record's values in an event: what is larger is named, and to be read.
const RECORD_BYTES_MAX: usize = 64 * 1024;
/// Between two looks at the store, so that what is written meanwhile comes together.
const PAUSE: Duration = Duration::from_millis(20);
/// A look without being told that something was written: what came otherwise waits so long at most.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A comment keeps connections open, and tells that the node lives, after this time without an event.
const SILENCE_MAX: Duration = Duration::from_secs(15);
/// A position that moved over what is not followed is told this often at most.
const POSITION_EVERY: Duration = Duration::from_secs(5);
/// Chunks that wait for the socket.
const CHUNKS_MAX: usize = 1;

/// `GET`: changes of records, from now on or from a position on.
#[utoipa::path(
    get, path = "/v1/_changes/{ns}", operation_id = "followChanges", tag = "changes",
    params(
        ("since" = Option<String>, Query, description = "The id of the last event that was handled, or a token of a read or write."),
        ("prefix" = Option<String>, Query, description = "Only records whose keys begin with it."),
        ("numbers" = Option<schemas::NumbersForm>, Query, description = "Counters and uniques as strings."),
        ("Last-Event-ID" = Option<String>, Header, description = "As `since`, which it goes before: browsers send it."),
    ),
    responses(
        (status = 200, description = "Events, until either side ends it.", body = schemas::EventStream, content_type = "text/event-stream"),
        (status = 400, description = "invalid-name"),
        (status = 404, description = "namespace-not-found not-found"),
        (status = 409, description = "namespace-deleting"),
        (status = 429, description = "rate-limited"),
    )
)]
pub(super) async fn follow(
    State(api): State<Api>,
    NamespacePath(namespace): NamespacePath,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    admission::check(&api, &namespace).await?;
    let query = Query::parse(uri.query(), &["since", "prefix", "numbers"])?;
    let shape = Shape::of(false, &query)?;
    let prefix = query.text("prefix").unwrap_or_default().to_owned();
    // A client that connects again says what it had last, whatever its address says.
    let last = headers.get("last-event-id").map(|id| id.to_str().unwrap_or_default());
    let since = last.or_else(|| query.text("since")).filter(|since| !since.is_empty());
    let position = match since {
        Some(text) => {
            let wrong =
                |error| Problem::new(Kind::Malformed, format!("`since` is no position of a feed: {error}"));
            Some(Token::open(text, api.node.tokens()).map_err(wrong)?)
        }
        None => None,
    };
    let place = Arc::clone(&api.feeds).try_acquire_owned().map_err(|_| {
        let detail = format!("{} feeds are open, the most that limits.feeds allows", api.node.limits().feeds);
        Problem::new(Kind::Overloaded, detail)
    })?;
    let position = match position {
        Some(position) => position,
        None => respond_to(api.node.read(of_store(api.node.partitions())).await)?,
    };
    let (sender, body) = Channel::<Bytes, Infallible>::new(CHUNKS_MAX);
    let followed = Followed { namespace, prefix };
    let expiries = Expiries::since(api.node.read_at().now_ms);
    let feed = Feed { node: api.node.clone(), followed, shape, cursor: Cursor::new(position), expiries };
    tokio::spawn(feed.run(sender, place));
    let head = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-store")];
    Ok((head, Body::new(body)).into_response())
}

fn respond_to<T>(outcome: Result<T, ReadFailure>) -> Result<T, Problem> {
    outcome.map_err(Problem::from)
}

fn of_store(partitions: u16) -> impl FnOnce(&StoreView<'_>) -> Result<Token, ReadError> + Send + 'static {
    move |store| Ok(Token::of_store(store, (0..partitions).map(PartitionId))?)
}

struct Feed {
    node: NodeHandle,
    followed: Followed,
    shape: Shape,
    /// Where the consumer is once it has handled all that was sent.
    cursor: Cursor,
    expiries: Expiries,
}

/// What a look found, with values.
enum Look {
    Reset,
    Step(Vec<(Change, Views)>),
}

/// The values of a record's fields; `None` if they are too large for an event.
type Views = Option<Vec<FieldView>>;

/// What changed in a record.
#[derive(Serialize, ToSchema)]
#[schema(as = ChangeEvent)]
pub(super) struct ChangeBody<'a> {
    #[schema(value_type = schemas::KeyName)]
    key: &'a str,
    #[schema(value_type = schemas::ChangedFields)]
    fields: BTreeMap<String, Option<ValueBody>>,
    /// Sets and zsets of which not all members are shown.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<schemas::FieldName>)]
    truncated: Vec<String>,
    /// The record was cleared, and these are all its fields.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    whole: bool,
    /// It is gone.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    deleted: bool,
    /// Its fields are too large for an event: read it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    too_large: bool,
}

impl Feed {
    /// Until the consumer goes or the node stops.
    async fn run(mut self, mut sender: Sender<Bytes, Infallible>, place: OwnedSemaphorePermit) {
        let _place = place;
        let mut told = Instant::now();
        let mut text = String::new();
        // Where a consumer stands that is told nothing for a while, it can come back to.
        if self.event(&mut text, "position", "{}", true).is_err() {
            return;
        }
        let mut unsaid = false;
        while self.node.is_ready() {
            if !text.is_empty() {
                told = Instant::now();
                if sender.send_data(Bytes::from(std::mem::take(&mut text))).await.is_err() {
                    return;
                }
            }
            // Before the look, so that what is written after it is not missed.
            let written = self.node.written();
            match self.look().await {
                Ok(Some(Look::Reset)) => {
                    if self.event(&mut text, "reset", "{}", true).is_err() {
                        return;
                    }
                    continue;
                }
                Ok(Some(Look::Step(changes))) => {
                    unsaid = changes.is_empty();
                    if self.changes(&mut text, changes).await.is_err() {
                        return;
                    }
                    if !unsaid || told.elapsed() < POSITION_EVERY {
                        continue;
                    }
                }
                Ok(None) if unsaid && told.elapsed() >= POSITION_EVERY => {}
                Ok(None) if told.elapsed() >= SILENCE_MAX => {
                    text.push_str(":\n\n");
                    continue;
                }
                Ok(None) => {
                    let _ = tokio::time::timeout(LOOK_EVERY, written).await;
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
                // The consumer comes back; the node's log says what it was.
                Err(_) => return,
            }
            unsaid = false;
            if self.event(&mut text, "position", "{}", true).is_err() {
                return;
            }
        }
    }

    /// The next step, in one snapshot of the store with the values that it tells.
    async fn look(&mut self) -> Result<Option<Look>, ReadFailure> {
        let (mut cursor, mut expiries) = (self.cursor.clone(), self.expiries.clone());
        let (followed, at) = (self.followed.clone(), self.node.read_at());
        let documents = Arc::clone(self.node.documents());
        let limits = ReadLimits { members_max: MEMBERS_SHOWN_MAX, bytes_max: RECORD_BYTES_MAX };
        let read = move |store: &StoreView<'_>| {
            let changes = match cursor.look(store, at.partitions, &followed, STEP)? {
                None => match expiries.look(store, at, &followed, STEP.records_max)? {
                    expired if expired.is_empty() => return Ok::<_, ReadFailure>((cursor, expiries, None)),
                    expired => expired,
                },
                Some(Found::Reset(_)) => return Ok((cursor, expiries, Some(Look::Reset))),
                Some(Found::Step(changes)) => changes,
            };
            let views = |change: &Change| {
                let mut views = read::record(store, at, &change.record, limits)?;
                documents.show(store, at, &change.record, &mut views, limits.bytes_max)?;
                Ok(views)
            };
            let with_views = |change: Change| match views(&change) {
                Ok(views) => Ok((change, Some(views))),
                // What cannot be shown is named, and to be read: reading says why.
                Err(ReadFailure::TooLarge { .. } | ReadFailure::Unordered | ReadFailure::Document(_)) => {
                    Ok((change, None))
                }
                Err(error) => Err(error),
            };
            let changes = changes.into_iter().map(with_views).collect::<Result<_, _>>()?;
            Ok((cursor, expiries, Some(Look::Step(changes))))
        };
        let (cursor, expiries, look) = self.node.read(read).await?;
        (self.cursor, self.expiries) = (cursor, expiries);
        Ok(look)
    }

    async fn changes(&self, text: &mut String, changes: Vec<(Change, Views)>) -> Result<(), NoId> {
        let viewer = Viewer::new(&self.node, self.shape, []).await;
        let last = changes.len().saturating_sub(1);
        for (place, (change, views)) in changes.into_iter().enumerate() {
            let body = body(&viewer, &change, views);
            // What a node cannot show is named, and to be read: reading says why.
            let body = body.unwrap_or_else(|_| too_large(&change));
            let data = serde_json::to_string(&body).unwrap_or_else(|_| "{}".to_owned());
            self.event(text, "change", &data, place == last)?;
        }
        Ok(())
    }

    fn event(&self, text: &mut String, name: &str, data: &str, with_id: bool) -> Result<(), NoId> {
        if with_id {
            let id = self.cursor.position().seal(self.node.tokens()).ok_or(NoId)?;
            text.push_str(&format!("id: {id}\n"));
        }
        // JSON in one line.
        text.push_str(&format!("event: {name}\ndata: {data}\n\n"));
        Ok(())
    }
}

/// The position is too long to be told: the cluster has had too many replicas for feeds.
struct NoId;

fn too_large(change: &Change) -> ChangeBody<'_> {
    ChangeBody {
        key: change.record.key.as_str(),
        fields: BTreeMap::new(),
        truncated: Vec::new(),
        whole: false,
        deleted: false,
        too_large: true,
    }
}

fn body<'c>(viewer: &Viewer, change: &'c Change, views: Views) -> Result<ChangeBody<'c>, Problem> {
    let Some(views) = views else { return Ok(too_large(change)) };
    let mut body = ChangeBody { too_large: false, whole: change.fields.is_none(), ..too_large(change) };
    body.deleted = views.is_empty();
    let is_told =
        |name: &str| change.fields.as_ref().is_none_or(|fields| fields.iter().any(|f| f.as_str() == name));
    let gone = change.fields.iter().flatten().map(|field| (field.as_str().to_owned(), None));
    body.fields = gone.collect();
    // Of two types of one name the first one is the value.
    let mut shown: Option<String> = None;
    for view in views.into_iter().filter(|view| is_told(view.field.as_str())) {
        let name = view.field.as_str().to_owned();
        if shown.as_ref() == Some(&name) {
            continue;
        }
        if super::view::is_truncated(&view) {
            body.truncated.push(name.clone());
        }
        body.fields.insert(name.clone(), Some(viewer.value(view.value)?));
        shown = Some(name);
    }
    Ok(body)
}
