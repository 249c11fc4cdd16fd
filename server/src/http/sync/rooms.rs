//! Who follows which documents: what is written, here or in another region, wakes the clients that follow it, and presence goes from
//! one to the others.
//!
//! Each namespace with clients has one task that reads the change feed and marks documents at the clients that follow them. What holds:
//!
//! - *Nothing is passed over*: the feed begins before the first client of a namespace looks at a document, and where the log does not
//!   reach back all are marked.
//! - *Nobody waits for a slow client*: what waits for one is a mark for each document that it follows, and presence of at most
//!   [`PRESENCE_BYTES_MAX`], of which the oldest goes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use godwit_core::feed::{Change, Cursor, Expiries, Followed, Found, StepLimits};
use godwit_core::ids::{Field, Key, Namespace, PartitionId};
use godwit_core::store::StoreError;
use godwit_core::token::Token;
use tokio::sync::Notify;

use super::frames::Frame;
use crate::node::{NodeHandle, ReadFailure, StoreView};

/// One step of the feed.
const STEP: StepLimits = StepLimits { entries_max: 1_000, bytes_max: 1024 * 1024, records_max: 1_000 };
/// Between two looks, so that what is written meanwhile comes together.
const PAUSE: Duration = Duration::from_millis(20);
/// A look without being told that something was written.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Presence that waits for a client.
const PRESENCE_BYTES_MAX: usize = 256 * 1024;

/// A document of a namespace.
pub(super) type Name = (Key, Field);

/// The namespaces with clients.
#[derive(Debug, Default)]
pub(in crate::http) struct Rooms(Mutex<All>);

#[derive(Debug, Default)]
struct All {
    rooms: BTreeMap<Namespace, Room>,
    /// Numbers of rooms and clients.
    last: u64,
}

#[derive(Debug)]
struct Room {
    number: u64,
    clients: BTreeMap<u64, Arc<Client>>,
}

/// A client: what waits for it.
#[derive(Debug, Default)]
pub(super) struct Client {
    inbox: Mutex<Inbox>,
    woken: Notify,
}

#[derive(Debug, Default)]
struct Inbox {
    follows: BTreeSet<Name>,
    changed: BTreeSet<Name>,
    presence: VecDeque<Frame>,
    presence_bytes: usize,
    is_over: bool,
}

/// What has come for a client.
#[derive(Debug, Default)]
pub(super) struct News {
    /// Documents that may have changed.
    pub(super) changed: BTreeSet<Name>,
    pub(super) presence: VecDeque<Frame>,
    /// Whether nothing comes any more.
    pub(super) is_over: bool,
}

/// A client's place in its namespace, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    rooms: Arc<Rooms>,
    namespace: Namespace,
    number: u64,
    client: Arc<Client>,
}

impl Rooms {
    /// Has a client hear of a namespace.
    pub(super) async fn join(
        self: &Arc<Self>,
        node: &NodeHandle,
        namespace: &Namespace,
    ) -> Result<Place, ReadFailure> {
        // Before it is known whether it is needed: nothing that is written after the client is there may be missed.
        let partitions = node.partitions();
        let all = move |store: &StoreView<'_>| Token::of_store(store, (0..partitions).map(PartitionId));
        let position = node.read::<_, StoreError>(all).await?;
        let client = Arc::new(Client::default());
        let mut all = self.all();
        all.last += 2;
        let (number, of_room) = (all.last, all.last - 1);
        let room = all.rooms.entry(namespace.clone()).or_insert_with(|| {
            let followed = Followed { namespace: namespace.clone(), prefix: String::new() };
            let expiries = Expiries::since(node.read_at().now_ms);
            let watch = Watch { node: node.clone(), followed, cursor: Cursor::new(position), expiries };
            tokio::spawn(Arc::clone(self).run(watch, of_room));
            Room { number: of_room, clients: BTreeMap::new() }
        });
        room.clients.insert(number, Arc::clone(&client));
        drop(all);
        Ok(Place { rooms: Arc::clone(self), namespace: namespace.clone(), number, client })
    }

    /// Until a room is empty or the node stops.
    async fn run(self: Arc<Self>, mut watch: Watch, number: u64) {
        let namespace = watch.followed.namespace.clone();
        while watch.node.is_ready() && self.is_open(&namespace, number) {
            // Before the look, so that what is written after it is not missed.
            let written = watch.node.written();
            match watch.look().await {
                Ok(Look::Nothing) => {
                    let _ = tokio::time::timeout(LOOK_EVERY, written).await;
                    tokio::time::sleep(PAUSE).await;
                }
                Ok(Look::Step(changes)) => self.each(&namespace, |inbox| inbox.mark(&changes)),
                Ok(Look::Reset) => self.each(&namespace, Inbox::mark_all),
                Err(error) => {
                    tracing::warn!(namespace = namespace.as_str(), %error, "what changes cannot be followed");
                    break;
                }
            }
        }
        self.close(&namespace, number);
    }

    /// Sends the clients of a room away; whoever comes then begins a new one.
    fn close(&self, namespace: &Namespace, number: u64) {
        let mut all = self.all();
        let room = all.rooms.remove(namespace);
        match room {
            Some(room) if room.number == number => {
                for client in room.clients.values() {
                    client.inbox().is_over = true;
                    client.woken.notify_one();
                }
            }
            Some(other) => drop(all.rooms.insert(namespace.clone(), other)),
            None => {}
        }
    }

    fn is_open(&self, namespace: &Namespace, number: u64) -> bool {
        self.all().rooms.get(namespace).is_some_and(|room| room.number == number)
    }

    /// Does something to the inbox of each client, and wakes those for which it says so.
    fn each(&self, namespace: &Namespace, mut put: impl FnMut(&mut Inbox) -> bool) {
        let all = self.all();
        for client in all.rooms.get(namespace).into_iter().flat_map(|room| room.clients.values()) {
            if put(&mut client.inbox()) {
                client.woken.notify_one();
            }
        }
    }

    fn all(&self) -> MutexGuard<'_, All> {
        // Nothing panics between two changes that belong together.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Has it hear of a document from now on.
    pub(super) fn follow(&self, name: Name) {
        self.client.inbox().follows.insert(name);
    }

    /// What has come, once there is something.
    pub(super) async fn news(&self) -> News {
        loop {
            let news = self.client.inbox().take();
            if !news.changed.is_empty() || !news.presence.is_empty() || news.is_over {
                return news;
            }
            self.client.woken.notified().await;
        }
    }

    /// Passes presence on to all others that follow the document.
    pub(super) fn pass_on(&self, name: &Name, frame: &Frame) {
        let own = &self.client;
        let all = self.rooms.all();
        for client in all.rooms.get(&self.namespace).into_iter().flat_map(|room| room.clients.values()) {
            if !Arc::ptr_eq(client, own) && client.inbox().put(name, frame) {
                client.woken.notify_one();
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut all = self.rooms.all();
        let Some(room) = all.rooms.get_mut(&self.namespace) else { return };
        room.clients.remove(&self.number);
        if room.clients.is_empty() {
            all.rooms.remove(&self.namespace);
        }
    }
}

impl Client {
    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inbox {
    fn mark(&mut self, changes: &[Change]) -> bool {
        let before = self.changed.len();
        for change in changes {
            let key = &change.record.key;
            match &change.fields {
                Some(fields) => {
                    let names = fields.iter().map(|field| (key.clone(), field.clone()));
                    self.changed.extend(names.filter(|name| self.follows.contains(name)));
                }
                None => self.changed.extend(self.follows.iter().filter(|(of, _)| of == key).cloned()),
            }
        }
        self.changed.len() > before
    }

    fn mark_all(&mut self) -> bool {
        self.changed.clone_from(&self.follows);
        !self.changed.is_empty()
    }

    fn put(&mut self, name: &Name, frame: &Frame) -> bool {
        if !self.follows.contains(name) {
            return false;
        }
        self.presence_bytes += bytes(frame);
        self.presence.push_back(frame.clone());
        while self.presence_bytes > PRESENCE_BYTES_MAX {
            let Some(oldest) = self.presence.pop_front() else { break };
            self.presence_bytes -= bytes(&oldest);
        }
        true
    }

    fn take(&mut self) -> News {
        self.presence_bytes = 0;
        News {
            changed: std::mem::take(&mut self.changed),
            presence: std::mem::take(&mut self.presence),
            is_over: self.is_over,
        }
    }
}

fn bytes(frame: &Frame) -> usize {
    size_of::<Frame>() + frame.data.as_ref().map_or(0, |data| data.len())
}

/// A place in the change feed.
struct Watch {
    node: NodeHandle,
    followed: Followed,
    cursor: Cursor,
    expiries: Expiries,
}

enum Look {
    Nothing,
    Step(Vec<Change>),
    Reset,
}

impl Watch {
    async fn look(&mut self) -> Result<Look, ReadFailure> {
        let (mut cursor, mut expiries) = (self.cursor.clone(), self.expiries.clone());
        let (followed, at) = (self.followed.clone(), self.node.read_at());
        let read = move |store: &StoreView<'_>| {
            let look = match cursor.look(store, at.partitions, &followed, STEP)? {
                None => match expiries.look(store, at, &followed, STEP.records_max)? {
                    expired if expired.is_empty() => Look::Nothing,
                    expired => Look::Step(expired),
                },
                Some(Found::Reset(_)) => Look::Reset,
                Some(Found::Step(changes)) => Look::Step(changes),
            };
            Ok::<_, StoreError>((cursor, expiries, look))
        };
        let (cursor, expiries, look) = self.node.read(read).await?;
        (self.cursor, self.expiries) = (cursor, expiries);
        Ok(look)
    }
}
