//! `/v1/_sync/{ns}`: clients of automerge-repo, unmodified, over a WebSocket (RFC 6455).
//!
//! A document of automerge-repo is the field [`FIELD`], or the one that `?field=` names, of the record whose key is its id: the
//! part of its address after `automerge:`. So a document stands beside counters and sets, and is read and edited over HTTP too.
//!
//! What holds:
//!
//! - What a client sends is a write like any other: within the namespace's rate and quotas, held to the limits of documents, durable
//!   before the client hears that it is here. What is refused ends the exchange about that document, and the client is told why.
//! - What is written to a document that a client follows, here or in another region, is told to it.
//! - Presence goes to all other clients of this node that follow the document, and nowhere else.
//! - A page of another site is refused: browsers let any page open a WebSocket. `http.origins` names those that may.
//! - A client costs a connection, what [`BYTES_MAX`] allows, and one message in progress.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::http::{HeaderMap, Uri, header};
use axum::response::Response;
use bytes::Bytes;
use godwit_core::ids::{Field, Key, Namespace};
use serde_bytes::ByteBuf;
use tokio::sync::OwnedSemaphorePermit;

use super::Api;
use super::contract::schemas;
use super::problem::{Kind, Problem};
use super::request::{NamespacePath, Query};

mod exchange;
mod frames;
mod rooms;

pub(super) use rooms::Rooms;

use exchange::{Answer, Exchange};
use frames::{Frame, PeerMetadata, VERSION};
use rooms::{Name, News, Place};

/// The field that a document is, unless the client's address names another.
const FIELD: &str = "document";
/// Documents that one client follows.
const DOCUMENTS_MAX: usize = 1_000;
/// What is kept about them, in bytes.
const BYTES_MAX: usize = 32 * 1024 * 1024;
/// Bytes of a client's name for itself.
const PEER_BYTES_MAX: usize = 1024;
/// Bytes of a message of presence.
const PRESENCE_BYTES_MAX: usize = 64 * 1024;
/// A client is asked for a sign of life this often,
const PING_EVERY: Duration = Duration::from_secs(20);
/// and is gone if it has given none for so long.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// `GET`: a WebSocket for clients of automerge-repo.
#[utoipa::path(
    get, path = "/v1/_sync/{ns}", operation_id = "syncDocuments", tag = "changes",
    params(("field" = Option<schemas::FieldName>, Query, description = "Which field of a record is its document; `document` without.")),
    responses(
        (status = 101, description = "The network protocol of automerge-repo, version 1, in CBOR."),
        (status = 400, description = "invalid-name"),
        (status = 403, description = "origin-refused"),
        (status = 404, description = "namespace-not-found not-found"),
        (status = 409, description = "namespace-deleting"),
        (status = 429, description = "rate-limited"),
    )
)]
pub(super) async fn connect(
    State(api): State<Api>,
    NamespacePath(namespace): NamespacePath,
    uri: Uri,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Problem> {
    exchange::admit(&api, &namespace).await?;
    let query = Query::parse(uri.query(), &["field"])?;
    let field = Field::new(query.text("field").unwrap_or(FIELD))?;
    check_origin(&headers, &api.origins)?;
    let upgrade = upgrade.map_err(|rejection| {
        let detail = format!("this is for WebSockets, as automerge-repo opens them: {rejection}");
        Problem::new(Kind::Malformed, detail)
    })?;
    let permit = Arc::clone(&api.syncs).try_acquire_owned().map_err(|_| {
        let detail = format!(
            "{} clients of automerge-repo are connected, the most that limits.syncs allows",
            api.node.limits().syncs
        );
        Problem::new(Kind::Overloaded, detail)
    })?;
    let place = api.rooms.join(&api.node, &namespace).await?;
    let bytes_max = api.node.limits().body_bytes;
    let client = Client {
        sender: format!("godwit-{}", api.node.name()),
        api,
        namespace,
        field,
        place,
        peer: None,
        exchanges: BTreeMap::new(),
        bytes: 0,
        _permit: permit,
    };
    let upgrade = upgrade.max_message_size(bytes_max).max_frame_size(bytes_max);
    Ok(upgrade.on_upgrade(move |socket| client.run(socket)))
}

/// Refuses pages of other sites: a browser says which one it is, and other clients say nothing.
fn check_origin(headers: &HeaderMap, allowed: &[String]) -> Result<(), Problem> {
    let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
    let origin = origin.to_str().unwrap_or_default();
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let is_same = origin.split_once("://").is_some_and(|(_, of)| Some(of) == host);
    match is_same || allowed.iter().any(|allowed| allowed == "*" || allowed == origin) {
        true => Ok(()),
        false => {
            let detail = format!("pages of {origin:?} may not connect here: http.origins does not name it");
            Err(Problem::new(Kind::OriginRefused, detail))
        }
    }
}

/// A connected client.
struct Client {
    api: Api,
    namespace: Namespace,
    field: Field,
    place: Place,
    /// What the node calls itself.
    sender: String,
    /// What the client calls itself, once it has.
    peer: Option<String>,
    /// By id; `None` if the exchange has failed, until the client connects again.
    exchanges: BTreeMap<String, Option<Exchange>>,
    /// What these take.
    bytes: usize,
    _permit: OwnedSemaphorePermit,
}

/// Why a connection ends.
struct Leave {
    code: u16,
    reason: String,
}

impl Leave {
    fn new(code: u16, reason: impl Into<String>) -> Self {
        Self { code, reason: reason.into() }
    }

    /// The client does not speak the protocol.
    fn protocol(reason: impl Into<String>) -> Self {
        Self::new(close_code::PROTOCOL, reason)
    }

    /// The client is to come back, to another node maybe.
    fn again(reason: impl Into<String>) -> Self {
        Self::new(close_code::AGAIN, reason)
    }
}

/// The most bytes of a reason: a control frame has 125.
const REASON_BYTES_MAX: usize = 120;

impl Client {
    async fn run(mut self, mut socket: WebSocket) {
        let Err(leave) = self.serve(&mut socket).await else { return };
        let mut reason = leave.reason;
        tracing::debug!(
            peer = self.peer,
            code = leave.code,
            reason,
            "a client of automerge-repo is sent away"
        );
        reason.truncate(reason.floor_char_boundary(REASON_BYTES_MAX));
        // Whether it hears it or not.
        let _ =
            socket.send(Message::Close(Some(CloseFrame { code: leave.code, reason: reason.into() }))).await;
    }

    /// Until the client goes, or is to go.
    async fn serve(&mut self, socket: &mut WebSocket) -> Result<(), Leave> {
        let mut ping = tokio::time::interval(PING_EVERY);
        let mut heard = Instant::now();
        loop {
            let frames = tokio::select! {
                received = socket.recv() => {
                    heard = Instant::now();
                    match received {
                        None | Some(Err(_) | Ok(Message::Close(_))) => return Ok(()),
                        Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
                        Some(Ok(Message::Text(_))) => return Err(Leave::protocol("messages are binary")),
                        Some(Ok(Message::Binary(bytes))) => self.receive(&bytes).await?,
                    }
                }
                news = self.place.news() => self.tell(news).await?,
                _ = ping.tick() => {
                    if heard.elapsed() > SILENCE_MAX {
                        return Ok(());
                    }
                    if socket.send(Message::Ping(Bytes::new())).await.is_err() {
                        return Ok(());
                    }
                    continue;
                }
            };
            for frame in frames {
                if socket.send(Message::Binary(frame.encode().into())).await.is_err() {
                    return Ok(());
                }
            }
        }
    }

    /// What a message of the client is answered with.
    async fn receive(&mut self, bytes: &[u8]) -> Result<Vec<Frame>, Leave> {
        let frame = Frame::decode(bytes).map_err(Leave::protocol)?;
        match frame.r#type.as_str() {
            "join" => self.join(frame).map(|frame| vec![frame]),
            _ if self.peer.is_none() => Err(Leave::protocol("the first message is `join`")),
            "request" | "sync" => {
                let (Some(id), Some(data)) = (frame.document_id, frame.data) else {
                    return Err(Leave::protocol("a message about a document has `documentId` and `data`"));
                };
                self.sync(id, data.into_vec()).await
            }
            "ephemeral" => {
                let name = frame.document_id.as_deref().map(|id| self.name(id)).transpose()?;
                if let Some(name) = name
                    && frame.data.as_ref().is_some_and(|data| data.len() <= PRESENCE_BYTES_MAX)
                {
                    self.place.pass_on(&name, &frame);
                }
                Ok(Vec::new())
            }
            // Of what automerge-repo says besides, nothing concerns a node.
            _ => Ok(Vec::new()),
        }
    }

    fn join(&mut self, frame: Frame) -> Result<Frame, Leave> {
        let peer = frame.sender_id.clone().filter(|peer| peer.len() <= PEER_BYTES_MAX);
        let Some(peer) = peer else {
            return Err(Leave::protocol("`join` says who the client is, in `senderId`"));
        };
        if !frame.speaks_our_version() {
            return Err(Leave::protocol(format!("this node speaks version {VERSION} of the protocol")));
        }
        self.peer = Some(peer);
        Ok(Frame {
            selected_protocol_version: Some(VERSION.to_owned()),
            peer_metadata: Some(PeerMetadata {}),
            ..self.frame("peer")
        })
    }

    async fn sync(&mut self, id: String, data: Vec<u8>) -> Result<Vec<Frame>, Leave> {
        let name = self.name(&id)?;
        if !self.exchanges.contains_key(&id) {
            if self.exchanges.len() >= DOCUMENTS_MAX {
                return Err(Leave::new(
                    close_code::POLICY,
                    format!("a client follows at most {DOCUMENTS_MAX} documents"),
                ));
            }
            // Before it is read, so that no change is missed.
            self.place.follow(name.clone());
            let exchange = Exchange::default();
            self.bytes += exchange.bytes_held();
            self.exchanges.insert(id.clone(), Some(exchange));
        }
        let Some(mut exchange) = self.taken(&id) else { return Ok(Vec::new()) };
        let heard = async {
            exchange::admit(&self.api, &self.namespace).await?;
            exchange.hear(&self.api, &self.namespace, &name, data).await
        };
        let answer = heard.await;
        self.answered(id, exchange, answer)
    }

    /// What is told of what has come.
    async fn tell(&mut self, news: News) -> Result<Vec<Frame>, Leave> {
        if news.is_over {
            return Err(Leave::again("the node stops"));
        }
        let mut frames = Vec::new();
        for (key, field) in news.changed {
            let id = key.as_str().to_owned();
            let Some(mut exchange) = self.taken(&id) else { continue };
            let name = (key, field);
            let answer = exchange.look(&self.api, &self.namespace, &name).await;
            frames.extend(self.answered(id, exchange, answer)?);
        }
        let peer = self.peer.clone();
        frames.extend(news.presence.into_iter().map(|frame| Frame { target_id: peer.clone(), ..frame }));
        Ok(frames)
    }

    fn taken(&mut self, id: &str) -> Option<Exchange> {
        let exchange = self.exchanges.get_mut(id)?.take()?;
        self.bytes -= exchange.bytes_held();
        Some(exchange)
    }

    fn answered(
        &mut self,
        id: String,
        exchange: Exchange,
        answer: Result<Answer, Problem>,
    ) -> Result<Vec<Frame>, Leave> {
        let answer = match answer {
            Ok(answer) => answer,
            Err(problem) => return self.failed(id, &problem).map(|frame| vec![frame]),
        };
        self.bytes += exchange.bytes_held();
        self.exchanges.insert(id.clone(), Some(exchange));
        if self.bytes > BYTES_MAX {
            return Err(Leave::new(close_code::POLICY, "the client's documents take too much"));
        }
        let about = |frame: Frame| Frame { document_id: Some(id), ..frame };
        Ok(match answer {
            Answer::Nothing => Vec::new(),
            Answer::Say(data) => vec![about(Frame { data: Some(ByteBuf::from(data)), ..self.frame("sync") })],
            Answer::Unavailable => vec![about(self.frame("doc-unavailable"))],
        })
    }

    /// Says why the exchange about a document is over, or sends the client away if another node, or another moment, may do better.
    fn failed(&self, id: String, problem: &Problem) -> Result<Frame, Leave> {
        match problem.kind() {
            Kind::Overloaded | Kind::RateLimited | Kind::Stopping | Kind::Internal => {
                Err(Leave::again(problem.to_string()))
            }
            _ => {
                tracing::info!(namespace = self.namespace.as_str(), id, %problem, "what a client of automerge-repo sent is refused");
                Ok(Frame { document_id: Some(id), message: Some(problem.to_string()), ..self.frame("error") })
            }
        }
    }

    fn name(&self, id: &str) -> Result<Name, Leave> {
        let key = Key::new(id).map_err(|error| Leave::protocol(format!("no id of a document: {error}")))?;
        Ok((key, self.field.clone()))
    }

    fn frame(&self, r#type: &str) -> Frame {
        Frame {
            r#type: r#type.to_owned(),
            sender_id: Some(self.sender.clone()),
            target_id: self.peer.clone(),
            ..Frame::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn pages_of_other_sites_are_refused() {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, HeaderValue::from_static("api.example:8080"));
        let allowed = |headers: &HeaderMap, origins: &[&str]| {
            let origins: Vec<String> = origins.iter().map(|origin| (*origin).to_owned()).collect();
            check_origin(headers, &origins).is_ok()
        };
        assert!(allowed(&headers, &[]), "no browser");
        headers.insert(header::ORIGIN, HeaderValue::from_static("http://api.example:8080"));
        assert!(allowed(&headers, &[]), "its own site");
        for other in
            ["https://evil.example", "http://api.example", "null", "http://api.example:8080.evil.example"]
        {
            headers.insert(header::ORIGIN, HeaderValue::from_static(other));
            assert!(!allowed(&headers, &[]) && !allowed(&headers, &["https://app.example"]), "{other}");
            assert!(
                allowed(&headers, &["https://app.example", other]) && allowed(&headers, &["*"]),
                "{other}"
            );
        }
    }
}
