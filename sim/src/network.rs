//! Links between nodes: connections that carry frames, and what can happen to them.
//!
//! A connection behaves as QUIC does: frames arrive in order or not at all; while a link is cut they stall; when it
//! heals in time they arrive late, otherwise the connection ends with all that was under way, and each side learns
//! of it in its own time. A run may draw a harsher network, which also loses, doubles and reorders frames within a
//! connection: the protocol must not depend on a transport that does not.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::draws::{Draws, Of};

/// What the network does, drawn from the seed. Times in microseconds, ratios in a thousand.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkConfig {
    /// The least one-way latency.
    pub latency_us: u64,
    /// How much may be added to it.
    pub jitter_us: u64,
    /// How long a connection survives a cut.
    pub idle_us: u64,
    /// How long a new connection takes.
    pub connect_us: u64,
    /// Frames lost.
    pub lost_of_1000: u64,
    /// Frames doubled.
    pub doubled_of_1000: u64,
    /// Frames that overtake others.
    pub reordered_of_1000: u64,
}

/// Two nodes, the smaller index first.
pub type Pair = (usize, usize);

/// The pair of two nodes.
pub fn pair(a: usize, b: usize) -> Pair {
    (a.min(b), a.max(b))
}

/// A frame under way.
#[derive(Debug, Clone)]
pub struct Frame {
    /// Its number among all messages of the run.
    pub number: u64,
    /// The sender.
    pub from: usize,
    /// The receiver.
    pub to: usize,
    /// The connection.
    pub link: u64,
    /// The bytes.
    pub bytes: Vec<u8>,
}

#[derive(Debug, Default)]
struct Link {
    cut: bool,
    sealed: bool,
    connection: Option<u64>,
    stalled: Vec<Frame>,
    /// When the last frame in either direction arrives, so that later ones do not overtake it.
    arrivals: [u64; 2],
    /// Frames sent in either direction.
    sent: [u64; 2],
    /// Connections so far.
    connections: u64,
}

/// All links of a run.
#[derive(Debug)]
pub struct Network {
    config: NetworkConfig,
    links: BTreeMap<Pair, Link>,
    last_connection: u64,
}

impl Network {
    /// A network in which all links work and nobody is connected.
    pub fn new(config: NetworkConfig, nodes: usize) -> Self {
        let pairs = (0..nodes).flat_map(|b| (0..b).map(move |a| (a, b)));
        Self { config, links: pairs.map(|pair| (pair, Link::default())).collect(), last_connection: 0 }
    }

    /// The settings.
    pub fn config(&self) -> &NetworkConfig {
        &self.config
    }

    /// All pairs of nodes.
    pub fn pairs(&self) -> Vec<Pair> {
        self.links.keys().copied().collect()
    }

    /// Whether the link is cut.
    pub fn is_cut(&self, pair: Pair) -> bool {
        self.links[&pair].cut
    }

    /// The connection between two nodes.
    pub fn connection(&self, pair: Pair) -> Option<u64> {
        self.links[&pair].connection
    }

    /// How many connections a link has had.
    pub fn connections(&self, pair: Pair) -> u64 {
        self.links[&pair].connections
    }

    /// Opens a connection, unless the link is cut or has one.
    pub fn connect(&mut self, pair: Pair) -> Option<u64> {
        let link = self.links.get_mut(&pair)?;
        if link.cut || link.connection.is_some() {
            return None;
        }
        self.last_connection += 1;
        let connection = Some(self.last_connection);
        *link =
            Link { connection, sealed: link.sealed, connections: link.connections + 1, ..Link::default() };
        link.connection
    }

    /// Ends the connection; what is under way on it is lost.
    pub fn disconnect(&mut self, pair: Pair) -> Option<u64> {
        let link = self.links.get_mut(&pair)?;
        link.stalled.clear();
        link.connection.take()
    }

    /// Whether the link stays as it is.
    pub fn is_sealed(&self, pair: Pair) -> bool {
        self.links[&pair].sealed
    }

    /// Lets the link stay as it is.
    pub fn seal(&mut self, pair: Pair) {
        if let Some(link) = self.links.get_mut(&pair) {
            link.sealed = true;
        }
    }

    /// Cuts the link.
    pub fn cut(&mut self, pair: Pair) {
        if let Some(link) = self.links.get_mut(&pair) {
            link.cut = true;
        }
    }

    /// Heals the link; returns what was stalled.
    pub fn heal(&mut self, pair: Pair) -> Vec<Frame> {
        let Some(link) = self.links.get_mut(&pair) else { return Vec::new() };
        link.cut = false;
        std::mem::take(&mut link.stalled)
    }

    /// Sends a frame; returns when copies of it arrive (none, one or two).
    pub fn send(&mut self, draws: Draws, now: u64, frame: Frame) -> Vec<(u64, Frame)> {
        let config = &self.config;
        let Some(link) = self.links.get_mut(&pair(frame.from, frame.to)) else { return Vec::new() };
        if link.connection != Some(frame.link) {
            return Vec::new();
        }
        if link.cut {
            link.stalled.push(frame);
            return Vec::new();
        }
        let direction = usize::from(frame.from > frame.to);
        let (a, b) = pair(frame.from, frame.to);
        let name = [a as u64, b as u64, link.connections, direction as u64, link.sent[direction]];
        let mut rng = draws.of(Of::Frame, &name);
        link.sent[direction] += 1;
        if rng.chance(config.lost_of_1000, 1000) {
            return Vec::new();
        }
        let mut arrives = now + config.latency_us + rng.below(config.jitter_us + 1);
        if !rng.chance(config.reordered_of_1000, 1000) {
            arrives = arrives.max(link.arrivals[direction]);
            link.arrivals[direction] = arrives;
        }
        let mut copies = vec![(arrives, frame.clone())];
        if rng.chance(config.doubled_of_1000, 1000) {
            copies.push((arrives + rng.below(config.latency_us + 1), frame));
        }
        copies
    }

    /// A frame arrives; `None` if its connection has ended or the link is cut meanwhile.
    pub fn deliver(&mut self, frame: Frame) -> Option<Frame> {
        let link = self.links.get_mut(&pair(frame.from, frame.to))?;
        if link.connection != Some(frame.link) {
            return None;
        }
        if link.cut {
            link.stalled.push(frame);
            return None;
        }
        Some(frame)
    }
}
