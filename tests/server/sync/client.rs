//! Clients of automerge-repo's protocol: one by hand, and the npm packages under Node.js.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use automerge::sync::{Message as SyncMessage, State, SyncDoc};
use automerge::transaction::{CommitOptions, Transactable};
use automerge::{ActorId, Automerge, ROOT, ReadDoc};
use ciborium::Value as Cbor;
use futures_util::{SinkExt, StreamExt};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStdin, ChildStdout};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use super::support::WAIT_MAX;

/// Where the packages are installed: `make test` does it.
const PACKAGES: &str = "../tests/automerge-repo";

/// A client by hand.
pub struct Client {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    name: String,
    documents: BTreeMap<String, (Automerge, State)>,
    /// What came and was not asked for yet.
    presence: VecDeque<(String, Vec<u8>)>,
    unavailable: VecDeque<String>,
    errors: VecDeque<(String, String)>,
}

/// A message as a client sends it.
pub fn frame(r#type: &str, document: Option<&str>, data: Option<&[u8]>) -> Vec<u8> {
    let text = |text: &str| Cbor::Text(text.to_owned());
    let mut map = vec![(text("type"), text(r#type)), (text("senderId"), text("by-hand"))];
    map.extend(document.map(|id| (text("documentId"), text(id))));
    map.extend(data.map(|data| (text("data"), Cbor::Bytes(data.to_vec()))));
    let mut bytes = Vec::new();
    ciborium::into_writer(&Cbor::Map(map), &mut bytes).unwrap();
    bytes
}

impl Client {
    pub async fn open(addr: SocketAddr, path: &str) -> Self {
        let (socket, _) = tokio_tungstenite::connect_async(format!("ws://{addr}{path}")).await.unwrap();
        Self {
            socket,
            name: String::new(),
            documents: BTreeMap::new(),
            presence: VecDeque::new(),
            unavailable: VecDeque::new(),
            errors: VecDeque::new(),
        }
    }

    pub async fn join(addr: SocketAddr, namespace: &str, name: &str) -> Self {
        let mut client = Self::open(addr, &format!("/v1/_sync/{namespace}")).await;
        client.join_as(name).await;
        client
    }

    pub async fn join_as(&mut self, name: &str) {
        self.name = name.to_owned();
        self.send(frame("join", None, None)).await;
        let peer = self.receive().await;
        assert_eq!((&peer["type"], &peer["selectedProtocolVersion"]), (&"peer".into(), &"1".into()));
        assert_eq!(peer["targetId"], "by-hand");
    }

    /// The problem with which a connection is refused.
    pub async fn refused(addr: SocketAddr, path: &str, origin: Option<&str>) -> Value {
        let mut request = format!("ws://{addr}{path}").into_client_request().unwrap();
        origin.map(|origin| request.headers_mut().insert("origin", origin.parse().unwrap()));
        match tokio_tungstenite::connect_async(request).await {
            Err(tungstenite::Error::Http(answer)) => {
                serde_json::from_slice(answer.body().as_ref().unwrap()).unwrap()
            }
            other => panic!("not refused: {other:?}"),
        }
    }

    pub async fn send(&mut self, bytes: Vec<u8>) {
        // One that has been sent away already finds out when it listens.
        let _ = self.socket.send(Message::Binary(bytes.into())).await;
    }

    /// The node ends the connection, whatever it says before.
    pub async fn is_sent_away(&mut self) {
        let over = async {
            while let Some(Ok(message)) = self.socket.next().await {
                if matches!(message, Message::Close(_)) {
                    return;
                }
            }
        };
        tokio::time::timeout(WAIT_MAX, over).await.expect("the node ends the connection");
    }

    /// Writes to the client's copy.
    pub fn put(&mut self, id: &str, key: &str, value: &str) {
        let actor = self.name.as_bytes().to_vec();
        let new = || (Automerge::new().with_actor(ActorId::from(actor)), State::new());
        let (document, _) = self.documents.entry(id.to_owned()).or_insert_with(new);
        let mut transaction = document.transaction();
        transaction.put(ROOT, key, value).unwrap();
        transaction.commit_with(CommitOptions::default());
    }

    /// Takes what another client has.
    pub fn copy(&mut self, other: &Self, id: &str) {
        let mut document = other.documents[id].0.clone();
        document.set_actor(ActorId::from(format!("{}-again", self.name).into_bytes()));
        self.documents.insert(id.to_owned(), (document, State::new()));
    }

    /// Says what there is to say about a document, until the node has it as the client has.
    pub async fn sync(&mut self, id: &str) {
        self.tell(id, "sync").await;
        while self.documents[id].1.their_heads.as_ref() != Some(&self.documents[id].0.get_heads()) {
            self.receive().await;
        }
    }

    /// The same, of what the node does not take: until all is said.
    pub async fn sync_in_vain(&mut self, id: &str) {
        self.tell(id, "sync").await;
        // The node hears in order; each round lets one message and its answer pass.
        for round in 0..4 {
            let mark = format!("nothing-{round}");
            self.request(&mark).await;
            self.unavailable(&mark).await;
        }
    }

    /// Begins anew, as a client does that connects again.
    pub fn begin_anew(&mut self, id: &str) {
        self.documents.get_mut(id).unwrap().1 = State::new();
    }

    /// Asks for a document that the client lacks.
    pub async fn request(&mut self, id: &str) {
        self.documents.insert(id.to_owned(), (Automerge::new(), State::new()));
        self.tell(id, "request").await;
    }

    async fn tell(&mut self, id: &str, r#type: &str) {
        let (document, state) = self.documents.get_mut(id).unwrap();
        if let Some(message) = document.generate_sync_message(state) {
            let message = frame(r#type, Some(id), Some(&message.encode()));
            self.send(message).await;
        }
    }

    /// Listens until a document has a value.
    pub async fn until(&mut self, id: &str, key: &str, value: &str) {
        loop {
            let document = self.documents.get(id).map(|(document, _)| document);
            let found =
                document.and_then(|document| document.get(ROOT, key).unwrap().map(|found| (document, found)));
            let text = found.map(|(document, (value, object))| match value.as_str() {
                Some(text) => text.to_owned(),
                None => document.text(object).unwrap(),
            });
            if text.as_deref() == Some(value) {
                return;
            }
            self.receive().await;
        }
    }

    pub async fn presence(&mut self, id: &str) -> Vec<u8> {
        loop {
            if let Some((about, said)) = self.presence.pop_front() {
                assert_eq!(about, id);
                return said;
            }
            self.receive().await;
        }
    }

    pub async fn unavailable(&mut self, id: &str) {
        while !self.unavailable.iter().any(|about| about == id) {
            self.receive().await;
        }
        self.unavailable.retain(|about| about != id);
    }

    pub async fn error(&mut self, id: &str) -> String {
        loop {
            if let Some((about, said)) = self.errors.pop_front() {
                assert_eq!(about, id);
                return said;
            }
            self.receive().await;
        }
    }

    pub async fn say(&mut self, id: &str, data: &[u8]) {
        self.send(frame("ephemeral", Some(id), Some(data))).await;
    }

    /// The next message, heard: without its data.
    async fn receive(&mut self) -> Value {
        let next = async {
            loop {
                match self.socket.next().await.expect("the node goes on").unwrap() {
                    Message::Binary(bytes) => return bytes,
                    Message::Ping(_) => {}
                    other => panic!("{other:?}"),
                }
            }
        };
        let bytes = tokio::time::timeout(WAIT_MAX, next).await.expect("a message comes");
        let Cbor::Map(map) = ciborium::from_reader(&bytes[..]).unwrap() else { panic!("no map") };
        let mut data = Vec::new();
        let mut told = serde_json::Map::new();
        for (name, value) in map {
            match (name.as_text().unwrap(), value) {
                ("data", Cbor::Bytes(bytes)) => data = bytes,
                (name, Cbor::Text(text)) => drop(told.insert(name.to_owned(), text.into())),
                _ => {}
            }
        }
        let told = Value::Object(told);
        let id = told["documentId"].as_str().unwrap_or_default().to_owned();
        match told["type"].as_str().unwrap() {
            "sync" => {
                let (document, state) = self.documents.get_mut(&id).unwrap();
                document.receive_sync_message(state, SyncMessage::decode(&data).unwrap()).unwrap();
                self.tell(&id, "sync").await;
            }
            "ephemeral" => self.presence.push_back((id, data)),
            "doc-unavailable" => self.unavailable.push_back(id),
            "error" => self.errors.push_back((id, told["message"].as_str().unwrap().to_owned())),
            "peer" => {}
            other => panic!("a message {other:?}"),
        }
        told
    }
}

/// An app with the npm packages, under Node.js.
pub struct Node {
    process: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Node {
    /// `None`, said aloud, where the packages are not installed: they need Node.js and npm's registry.
    pub fn start(addr: SocketAddr) -> Option<Self> {
        let packages = Path::new(PACKAGES);
        if !packages.join("node_modules/.installed").exists() {
            eprintln!(
                "NOT RUN: the npm packages of tests/automerge-repo are not installed (bash .ci/setup tests)"
            );
            return None;
        }
        let mut process = tokio::process::Command::new("node")
            .arg("client.mjs")
            .arg(format!("ws://{addr}/v1/_sync/app"))
            .current_dir(packages)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("Node.js runs");
        let commands = process.stdin.take().unwrap();
        let answers = BufReader::new(process.stdout.take().unwrap());
        Some(Self { process, commands, answers })
    }

    /// Has the app do something, and hears what it says.
    pub async fn ask(&mut self, command: Value) -> Value {
        self.commands.write_all(format!("{command}\n").as_bytes()).await.unwrap();
        let mut line = String::new();
        let answered = tokio::time::timeout(2 * WAIT_MAX, self.answers.read_line(&mut line)).await;
        assert!(
            answered.unwrap_or_else(|_| panic!("no answer to {command}")).unwrap() > 0,
            "the app failed at {command}"
        );
        serde_json::from_str(&line).unwrap()
    }

    /// Ends it.
    pub async fn end(self) {
        let Self { mut process, commands, .. } = self;
        drop(commands);
        let ended = tokio::time::timeout(Duration::from_secs(10), process.wait()).await;
        assert!(ended.expect("the app ends").unwrap().success());
    }
}
