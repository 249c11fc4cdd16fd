//! Nodes of a test cluster, and what every test checks about their events.

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use bytes::Bytes;
use godwit_net::{
    CertificateAuthority, Event, EventReceiver, FaultControl, LinkClass, LinkId, LinkStatus, PeerAddress,
    PeerConfig, TlsIdentity, Transport, TransportConfig, TransportHandle, Wire,
};
use tokio::time::{Instant, sleep, timeout};

/// Longest wait for anything: far above what a loaded machine needs, reached only by failures.
pub const PATIENCE: Duration = Duration::from_secs(30);

const POLL_INTERVAL: Duration = Duration::from_millis(5);

pub fn authority() -> CertificateAuthority {
    CertificateAuthority::generate("test").unwrap()
}

pub fn identity(ca: &CertificateAuthority, name: &str) -> TlsIdentity {
    let issued = ca.issue(name).unwrap();
    TlsIdentity::load(ca.cert_pem(), &issued.cert_pem, &issued.key_pem).unwrap()
}

pub fn socket() -> UdpSocket {
    godwit_net::bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap()
}

pub fn address(addr: impl ToString, class: LinkClass) -> PeerAddress {
    PeerAddress { addr: addr.to_string(), class }
}

/// A peer at the address of a socket bound already.
pub fn peer_at(name: &str, socket: &UdpSocket) -> PeerConfig {
    let addr = socket.local_addr().unwrap();
    PeerConfig { name: name.to_owned(), addresses: vec![address(addr, LinkClass::Dedicated)] }
}

/// A peer that dials, so that no address is needed.
pub fn peer(name: &str) -> PeerConfig {
    PeerConfig { name: name.to_owned(), addresses: Vec::new() }
}

/// A configuration with timeouts that make tests quick.
pub fn config(name: &str, peers: Vec<PeerConfig>) -> TransportConfig {
    let mut config = TransportConfig::new(name, peers);
    config.timeouts.handshake = Duration::from_millis(1_500);
    config.timeouts.keep_alive = Duration::from_millis(200);
    config.timeouts.idle = Duration::from_millis(1_000);
    config.timeouts.backoff_first = Duration::from_millis(20);
    config.timeouts.backoff_max = Duration::from_millis(100);
    config
}

pub struct Node {
    pub handle: TransportHandle,
    pub events: EventReceiver,
    /// The link of each peer that is up, by the events taken so far.
    up: BTreeMap<String, LinkId>,
}

impl Node {
    pub fn start(ca: &CertificateAuthority, config: TransportConfig, socket: UdpSocket) -> Self {
        let identity = identity(ca, &config.node);
        Self::start_as(identity, config, socket, Wire::Plain)
    }

    pub fn start_faulty(
        ca: &CertificateAuthority,
        config: TransportConfig,
        socket: UdpSocket,
        control: &FaultControl,
    ) -> Self {
        let identity = identity(ca, &config.node);
        Self::start_as(identity, config, socket, Wire::Faulty(control.clone()))
    }

    pub fn start_as(identity: TlsIdentity, config: TransportConfig, socket: UdpSocket, wire: Wire) -> Self {
        let (handle, events) = Transport::start(config, identity, socket, wire).unwrap();
        Self { handle, events, up: BTreeMap::new() }
    }

    /// The next event, checked: one `Down` for each `Up`, frames only between them, no overlap.
    pub async fn next(&mut self) -> Option<Event> {
        let event = timeout(PATIENCE, self.events.recv()).await.expect("no event in time")?;
        match &event {
            Event::Up { peer, link, .. } => {
                assert_eq!(self.up.insert(peer.clone(), *link), None, "overlap: {event:?}");
            }
            Event::Frame { peer, link, .. } => {
                assert_eq!(self.up.get(peer), Some(link), "frame outside its link: {event:?}");
            }
            Event::Down { peer, link, .. } => {
                assert_eq!(self.up.remove(peer), Some(*link), "down without up: {event:?}");
            }
        }
        Some(event)
    }

    /// Takes events until the peer's link is up.
    pub async fn until_up(&mut self, name: &str) -> (LinkId, Option<LinkClass>) {
        loop {
            if let Event::Up { peer, link, class, .. } = self.next().await.unwrap()
                && peer == name
            {
                return (link, class);
            }
        }
    }

    /// Takes events until the peer's link is down, and says which and why.
    pub async fn until_down(&mut self, name: &str) -> (LinkId, String) {
        loop {
            if let Event::Down { peer, link, reason } = self.next().await.unwrap()
                && peer == name
            {
                return (link, reason);
            }
        }
    }

    /// Takes events until a frame of the peer.
    pub async fn until_frame(&mut self, name: &str) -> Bytes {
        loop {
            if let Event::Frame { peer, frame, .. } = self.next().await.unwrap()
                && peer == name
            {
                return frame;
            }
        }
    }

    pub fn status(&self, name: &str) -> LinkStatus {
        self.handle.links().into_iter().find(|status| status.peer == name).unwrap()
    }

    /// Waits until the peer's last error contains the text.
    pub async fn until_error(&self, name: &str, text: &str) {
        until(|| self.status(name).last_error.is_some_and(|error| error.contains(text))).await;
    }
}

/// Waits until a condition holds.
pub async fn until(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "the condition did not come to hold in time");
        sleep(POLL_INTERVAL).await; // polls: until the deadline
    }
}

/// Two nodes, `a` that dials and `b`, connected; with their links.
pub async fn pair(
    ca: &CertificateAuthority,
    adapt: impl Fn(&mut TransportConfig),
) -> (Node, LinkId, Node, LinkId) {
    let (socket_a, socket_b) = (socket(), socket());
    let mut config_a = config("a", vec![peer_at("b", &socket_b)]);
    let mut config_b = config("b", vec![peer("a")]);
    adapt(&mut config_a);
    adapt(&mut config_b);
    let mut a = Node::start(ca, config_a, socket_a);
    let mut b = Node::start(ca, config_b, socket_b);
    let (link_a, _) = a.until_up("b").await;
    let (link_b, _) = b.until_up("a").await;
    (a, link_a, b, link_b)
}
