//! What a transport is told: who it is, who its peers are, and its limits.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::events::FRAME_OVERHEAD_BYTES;
use crate::tls::{self, TlsError};

/// Most peers of one node.
pub const PEERS_MAX: usize = 256;

/// Most addresses of one peer.
pub const ADDRESSES_MAX: usize = 16;

/// The largest value that [`Limits::frame_bytes_max`] may have.
pub const FRAME_BYTES_CEILING: u32 = 1 << 30;

/// One transport's configuration. The address to listen on is that of the socket given to it.
#[derive(Debug, Clone)]
pub struct TransportConfig {
    /// This node's name; its certificate must be valid for it.
    pub node: String,
    /// All other nodes, in any order.
    pub peers: Vec<PeerConfig>,
    /// Bounds on memory.
    pub limits: Limits,
    /// Bounds on time.
    pub timeouts: Timeouts,
}

/// A node to have a link with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerConfig {
    /// The peer's node name; its certificate must be valid for it.
    pub name: String,
    /// Where it listens. May be empty when the peer is the one that dials, which is when its name is the smaller.
    pub addresses: Vec<PeerAddress>,
}

/// One way to reach a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerAddress {
    /// `host:port`; the host is a name, which is resolved at each attempt, or an IP address (IPv6 in brackets).
    pub addr: String,
    /// What kind of way it is.
    pub class: LinkClass,
}

/// Kinds of ways between two nodes, in the order in which they are tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LinkClass {
    /// A leased or private line.
    Dedicated,
    /// The public internet.
    Public,
}

/// Bounds on memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Longest frame, sent or received, in bytes.
    pub frame_bytes_max: u32,
    /// Frames that wait for one link, in bytes with their overhead. More closes the link.
    pub outbound_queue_bytes_max: usize,
    /// Frames of all links that wait for the consumer, in bytes with their overhead. More stops the readers.
    pub inbound_queue_bytes_max: usize,
    /// Events of all links that wait for the consumer.
    pub event_queue_max: usize,
    /// QUIC's windows, in bytes: what one connection may have in flight, or received and not read, each way.
    pub window_bytes: u32,
    /// Incoming handshakes in progress. More are refused; from half of it, addresses must be proven first.
    pub handshakes_max: usize,
}

impl Limits {
    /// 16 MiB.
    pub const FRAME_BYTES_MAX: u32 = 16 << 20;
    /// 64 MiB.
    pub const OUTBOUND_QUEUE_BYTES_MAX: usize = 64 << 20;
    /// 64 MiB.
    pub const INBOUND_QUEUE_BYTES_MAX: usize = 64 << 20;
    /// 4,096 events.
    pub const EVENT_QUEUE_MAX: usize = 4_096;
    /// 24 MiB: 150 ms at 1 Gbit/s is 18.75 MB in flight, and a quarter more while acknowledgements are under way.
    pub const WINDOW_BYTES: u32 = 24 << 20;
    /// 64 handshakes.
    pub const HANDSHAKES_MAX: usize = 64;
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            frame_bytes_max: Self::FRAME_BYTES_MAX,
            outbound_queue_bytes_max: Self::OUTBOUND_QUEUE_BYTES_MAX,
            inbound_queue_bytes_max: Self::INBOUND_QUEUE_BYTES_MAX,
            event_queue_max: Self::EVENT_QUEUE_MAX,
            window_bytes: Self::WINDOW_BYTES,
            handshakes_max: Self::HANDSHAKES_MAX,
        }
    }
}

/// Bounds on time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeouts {
    /// One attempt to connect to one address, its name's resolution included; also one accepted handshake.
    pub handshake: Duration,
    /// After this much silence a link says that it is alive. Less than `idle`.
    pub keep_alive: Duration,
    /// A link that hears nothing for this long is dead. The lower of both ends' counts.
    pub idle: Duration,
    /// The first delay between rounds of dialling.
    pub backoff_first: Duration,
    /// The longest delay between rounds of dialling.
    pub backoff_max: Duration,
    /// How long a shutdown waits for peers and for the consumer.
    pub shutdown: Duration,
}

impl Timeouts {
    /// 5 s.
    pub const HANDSHAKE: Duration = Duration::from_secs(5);
    /// 3 s.
    pub const KEEP_ALIVE: Duration = Duration::from_secs(3);
    /// 10 s.
    pub const IDLE: Duration = Duration::from_secs(10);
    /// 100 ms.
    pub const BACKOFF_FIRST: Duration = Duration::from_millis(100);
    /// 2 s.
    pub const BACKOFF_MAX: Duration = Duration::from_secs(2);
    /// 5 s.
    pub const SHUTDOWN: Duration = Duration::from_secs(5);
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            handshake: Self::HANDSHAKE,
            keep_alive: Self::KEEP_ALIVE,
            idle: Self::IDLE,
            backoff_first: Self::BACKOFF_FIRST,
            backoff_max: Self::BACKOFF_MAX,
            shutdown: Self::SHUTDOWN,
        }
    }
}

/// What can be wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A node's name cannot be one.
    #[error(transparent)]
    Name(#[from] TlsError),
    /// A peer has this node's name.
    #[error("the peer `{0}` is this node itself")]
    PeerIsSelf(String),
    /// Two peers have one name.
    #[error("the peer `{0}` is configured twice")]
    DuplicatePeer(String),
    /// More than [`PEERS_MAX`] peers.
    #[error("more than {PEERS_MAX} peers")]
    TooManyPeers,
    /// More than [`ADDRESSES_MAX`] addresses of a peer.
    #[error("the peer `{0}` has more than {ADDRESSES_MAX} addresses")]
    TooManyAddresses(String),
    /// This node should dial the peer, and has no address to dial.
    #[error("the peer `{0}` needs an address, since this node is the one that dials it")]
    NoAddress(String),
    /// A limit or timeout is out of its range.
    #[error("{name} must be {rule}")]
    OutOfRange {
        /// The setting.
        name: &'static str,
        /// What it must be.
        rule: &'static str,
    },
}

impl TransportConfig {
    /// A configuration with default limits and timeouts.
    pub fn new(node: impl Into<String>, peers: Vec<PeerConfig>) -> Self {
        let (limits, timeouts) = (Limits::default(), Timeouts::default());
        Self { node: node.into(), peers, limits, timeouts }
    }

    /// Whether this node is the one that dials the peer.
    pub(crate) fn dials(&self, peer: &str) -> bool {
        self.node.as_str() < peer
    }

    /// Checks names, counts and ranges.
    pub fn validate(&self) -> Result<(), ConfigError> {
        tls::validate_node_name(&self.node)?;
        if self.peers.len() > PEERS_MAX {
            return Err(ConfigError::TooManyPeers);
        }
        let mut seen = BTreeSet::new();
        for peer in &self.peers {
            tls::validate_node_name(&peer.name)?;
            if peer.name == self.node {
                return Err(ConfigError::PeerIsSelf(peer.name.clone()));
            }
            if !seen.insert(peer.name.as_str()) {
                return Err(ConfigError::DuplicatePeer(peer.name.clone()));
            }
            if peer.addresses.len() > ADDRESSES_MAX {
                return Err(ConfigError::TooManyAddresses(peer.name.clone()));
            }
            if peer.addresses.is_empty() && self.dials(&peer.name) {
                return Err(ConfigError::NoAddress(peer.name.clone()));
            }
        }
        self.validate_ranges()
    }

    fn validate_ranges(&self) -> Result<(), ConfigError> {
        let (limits, timeouts) = (&self.limits, &self.timeouts);
        let check = |holds: bool, name, rule| {
            if holds { Ok(()) } else { Err(ConfigError::OutOfRange { name, rule }) }
        };
        let frame_bytes_max = limits.frame_bytes_max as usize;
        let frame_cost_max = frame_bytes_max.saturating_add(FRAME_OVERHEAD_BYTES);
        check(
            limits.frame_bytes_max >= 1 && limits.frame_bytes_max <= FRAME_BYTES_CEILING,
            "frame_bytes_max",
            "from 1 byte to 1 GiB",
        )?;
        check(
            limits.outbound_queue_bytes_max >= frame_cost_max,
            "outbound_queue_bytes_max",
            "large enough for the longest frame and its overhead",
        )?;
        check(
            limits.inbound_queue_bytes_max >= FRAME_OVERHEAD_BYTES,
            "inbound_queue_bytes_max",
            "at least a frame's overhead",
        )?;
        check(limits.event_queue_max >= 1, "event_queue_max", "at least 1")?;
        check(limits.window_bytes >= 64 << 10, "window_bytes", "at least 64 KiB")?;
        check(limits.handshakes_max >= 2, "handshakes_max", "at least 2")?;
        check(!timeouts.handshake.is_zero(), "handshake", "longer than nothing")?;
        check(
            !timeouts.keep_alive.is_zero() && timeouts.keep_alive < timeouts.idle,
            "keep_alive",
            "longer than nothing and shorter than idle",
        )?;
        check(timeouts.idle <= Duration::from_secs(3_600), "idle", "at most an hour")?;
        check(
            !timeouts.backoff_first.is_zero() && timeouts.backoff_first <= timeouts.backoff_max,
            "backoff_first",
            "longer than nothing and at most backoff_max",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(name: &str, addresses: usize) -> PeerConfig {
        let address = PeerAddress { addr: "h:1".to_owned(), class: LinkClass::Public };
        PeerConfig { name: name.to_owned(), addresses: vec![address; addresses] }
    }

    #[test]
    fn sound_configurations_pass_and_others_say_why_not() {
        let config = |peers| TransportConfig::new("m", peers);
        config(vec![peer("a", 0), peer("z", 1)]).validate().unwrap();
        let refused = |peers| config(peers).validate().unwrap_err().to_string();
        assert!(refused(vec![peer("z", 0)]).contains("needs an address"));
        assert!(refused(vec![peer("m", 1)]).contains("itself"));
        assert!(refused(vec![peer("a", 1), peer("a", 1)]).contains("twice"));
        assert!(refused(vec![peer("z", ADDRESSES_MAX + 1)]).contains("addresses"));
        assert!(refused(vec![peer("Z", 1)]).contains("node name"));
        let mut tight = config(Vec::new());
        tight.limits.outbound_queue_bytes_max = tight.limits.frame_bytes_max as usize;
        assert!(tight.validate().unwrap_err().to_string().contains("outbound_queue"));
        let mut slow = config(Vec::new());
        slow.timeouts.keep_alive = slow.timeouts.idle;
        assert!(slow.validate().unwrap_err().to_string().contains("keep_alive"));
    }
}
