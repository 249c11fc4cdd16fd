//! Links between nodes: connections that carry frames, and what can happen to them.
//!
//! A connection behaves as QUIC does: frames arrive in order or not at all; while a link is cut they stall; when it
//! heals in time they arrive late, otherwise the connection ends with all that was under way, and each side learns
//! of it in its own time. A run may draw a harsher network, which also loses, doubles and reorders frames within a
//! connection: the protocol must not depend on a transport that does not.
//!
//! A link may have settings of its own ([`LinkConfig`]): then it is as far, as wide and as lossy as told. Packets that
//! are lost there are sent again by the transport, so they cost time and not frames.

use std::collections::BTreeMap;

use godwit_core::rng::Rng;
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
    /// Frames that are damaged, until faults end.
    pub damaged_of_1000: u64,
    /// Links that are not like all others.
    #[serde(with = "link_list")]
    pub links: BTreeMap<Pair, LinkConfig>,
}

/// One link, the same in both directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkConfig {
    /// The least one-way latency, in microseconds.
    pub latency_us: u64,
    /// How much may be added to it, in microseconds.
    pub jitter_us: u64,
    /// What each direction carries, at least 1; `None`: as much as is sent.
    pub bytes_per_second: Option<u64>,
    /// Packets lost, each of [`PACKET_BYTES`]. Each loss costs its frame a round trip.
    pub lost_of_million: u64,
}

/// What a packet holds of a frame: what is lost at once.
pub const PACKET_BYTES: usize = 1200;
/// Packets of a frame that are drawn for loss, and times that they are sent again, at most.
const PACKETS_DRAWN_MAX: usize = 64;
const RESENT_MAX: u64 = 8;

/// What a link carried in one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Carried {
    /// Frames that arrived.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
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
    /// Whether they are not those that were sent.
    pub damaged: bool,
}

/// The index of a direction of a link.
fn direction(from: usize, to: usize) -> usize {
    usize::from(from > to)
}

/// Bytes that are no message. A transport that authenticates its packets hands up none of these; what it would never hand up
/// in any case is a message that says something else, and that the protocol does not withstand.
fn damaged(rng: &mut Rng, mut bytes: Vec<u8>) -> Vec<u8> {
    match rng.below(3) {
        0 => bytes.truncate(rng.below(bytes.len() as u64) as usize),
        1 => bytes.extend((0..=rng.below(8)).map(|_| rng.draw() as u8)),
        // No wire version, or no kind of message.
        _ => bytes[0] ^= 0x80,
    }
    bytes
}

#[derive(Debug, Default)]
struct Link {
    /// By direction.
    cut: [bool; 2],
    sealed: bool,
    connection: Option<u64>,
    stalled: Vec<Frame>,
    /// When the last frame in either direction arrives, so that later ones do not overtake it.
    arrivals: [u64; 2],
    /// Until when each direction is busy with what was sent before.
    busy: [u64; 2],
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
    /// By sender and receiver.
    carried: BTreeMap<(usize, usize), Carried>,
    met: BTreeMap<&'static str, u64>,
}

impl Network {
    /// A network in which all links work and nobody is connected.
    pub fn new(config: NetworkConfig, nodes: usize) -> Self {
        let pairs = (0..nodes).flat_map(|b| (0..b).map(move |a| (a, b)));
        let links = pairs.map(|pair| (pair, Link::default())).collect();
        Self { config, links, last_connection: 0, carried: BTreeMap::new(), met: BTreeMap::new() }
    }

    /// What was carried from one node to another so far.
    pub fn carried(&self, from: usize, to: usize) -> Carried {
        self.carried.get(&(from, to)).copied().unwrap_or_default()
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
        self.links[&pair].cut != [false; 2]
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
        if link.cut != [false; 2] || link.connection.is_some() {
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
            link.cut = [true; 2];
        }
    }

    /// Cuts one direction of the link.
    pub fn cut_way(&mut self, from: usize, to: usize) {
        if let Some(link) = self.links.get_mut(&pair(from, to)) {
            link.cut[direction(from, to)] = true;
        }
    }

    /// Faults end: frames are not damaged any more.
    pub fn calm(&mut self) {
        self.config.damaged_of_1000 = 0;
    }

    /// What happened to frames so far, by kind.
    pub fn met(&self) -> &BTreeMap<&'static str, u64> {
        &self.met
    }

    /// Heals the link; returns what was stalled.
    pub fn heal(&mut self, pair: Pair) -> Vec<Frame> {
        let Some(link) = self.links.get_mut(&pair) else { return Vec::new() };
        link.cut = [false; 2];
        std::mem::take(&mut link.stalled)
    }

    /// Sends a frame; returns when copies of it arrive (none, one or two).
    pub fn send(&mut self, draws: Draws, now: u64, frame: Frame) -> Vec<(u64, Frame)> {
        let config = &self.config;
        let between = pair(frame.from, frame.to);
        let Some(link) = self.links.get_mut(&between) else { return Vec::new() };
        if link.connection != Some(frame.link) {
            return Vec::new();
        }
        let direction = direction(frame.from, frame.to);
        if link.cut[direction] {
            link.stalled.push(frame);
            return Vec::new();
        }
        let mut met = |kind| *self.met.entry(kind).or_default() += 1;
        let (a, b) = pair(frame.from, frame.to);
        let name = [a as u64, b as u64, link.connections, direction as u64, link.sent[direction]];
        let mut rng = draws.of(Of::Frame, &name);
        link.sent[direction] += 1;
        if rng.chance(config.lost_of_1000, 1000) {
            met("frame lost");
            return Vec::new();
        }
        let (latency_us, jitter_us) = match config.links.get(&between) {
            None => (config.latency_us, config.jitter_us),
            Some(own) => {
                let begins = now.max(link.busy[direction]);
                link.busy[direction] = begins + own.sending_us(frame.bytes.len());
                let resending_us = own.resending_us(&mut rng, frame.bytes.len());
                if begins > now {
                    met("frame held up by others");
                }
                if resending_us > 0 {
                    met("frame sent again");
                }
                (own.latency_us + link.busy[direction] - now + resending_us, own.jitter_us)
            }
        };
        let mut arrives = now + latency_us + rng.below(jitter_us + 1);
        if !rng.chance(config.reordered_of_1000, 1000) {
            arrives = arrives.max(link.arrivals[direction]);
            link.arrivals[direction] = arrives;
        } else if arrives < link.arrivals[direction] {
            met("frame reordered");
        }
        if rng.chance(config.damaged_of_1000, 1000) {
            met("frame damaged");
            return vec![(arrives, Frame { bytes: damaged(&mut rng, frame.bytes), damaged: true, ..frame })];
        }
        let mut copies = vec![(arrives, frame.clone())];
        if rng.chance(config.doubled_of_1000, 1000) {
            met("frame doubled");
            copies.push((arrives + rng.below(latency_us + 1), frame));
        }
        copies
    }

    /// A frame arrives; `None` if its connection has ended or the link is cut meanwhile.
    pub fn deliver(&mut self, frame: Frame) -> Option<Frame> {
        let link = self.links.get_mut(&pair(frame.from, frame.to))?;
        if link.connection != Some(frame.link) {
            return None;
        }
        if link.cut[direction(frame.from, frame.to)] {
            link.stalled.push(frame);
            return None;
        }
        let carried = self.carried.entry((frame.from, frame.to)).or_default();
        carried.frames += 1;
        carried.bytes += frame.bytes.len() as u64;
        Some(frame)
    }
}

/// How links of their own are written in a script: as a list, since a pair is no name.
mod link_list {
    use super::{BTreeMap, LinkConfig, Pair};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(
        links: &BTreeMap<Pair, LinkConfig>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        links.iter().collect::<Vec<_>>().serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<BTreeMap<Pair, LinkConfig>, D::Error> {
        Vec::<(Pair, LinkConfig)>::deserialize(from).map(|links| links.into_iter().collect())
    }
}

impl LinkConfig {
    /// How long the link is busy with a frame.
    fn sending_us(&self, bytes: usize) -> u64 {
        self.bytes_per_second.map_or(0, |rate| bytes as u64 * 1_000_000 / rate.max(1))
    }

    /// How long a frame waits for packets that were lost.
    fn resending_us(&self, rng: &mut Rng, bytes: usize) -> u64 {
        if self.lost_of_million == 0 {
            return 0;
        }
        let mut packets = bytes.div_ceil(PACKET_BYTES).clamp(1, PACKETS_DRAWN_MAX);
        let mut rounds = 0;
        while packets > 0 && rounds < RESENT_MAX {
            packets = (0..packets).filter(|_| rng.chance(self.lost_of_million, 1_000_000)).count();
            rounds += u64::from(packets > 0);
        }
        rounds * 2 * self.latency_us
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RunConfig;

    fn network(own: LinkConfig) -> (Network, u64) {
        let links = BTreeMap::from([((0, 1), own)]);
        let config = NetworkConfig { links, ..RunConfig::calm(2).network };
        let mut network = Network::new(config, 2);
        let link = network.connect((0, 1)).expect("a link that works");
        (network, link)
    }

    fn arrivals(network: &mut Network, link: u64, bytes: usize, frames: usize) -> Vec<u64> {
        let draws = Draws::new(1);
        let frame = Frame { number: 0, from: 0, to: 1, link, bytes: vec![0; bytes], damaged: false };
        (0..frames).flat_map(|_| network.send(draws, 0, frame.clone())).map(|(at, _)| at).collect()
    }

    const FAR: LinkConfig =
        LinkConfig { latency_us: 40_000, jitter_us: 0, bytes_per_second: None, lost_of_million: 0 };

    #[test]
    fn a_link_is_as_far_and_as_wide_as_told() {
        let (mut wide, link) = network(FAR);
        assert_eq!(arrivals(&mut wide, link, 1_000, 2), [40_000, 40_000]);
        let (mut narrow, link) = network(LinkConfig { bytes_per_second: Some(100_000), ..FAR });
        assert_eq!(arrivals(&mut narrow, link, 1_000, 3), [50_000, 60_000, 70_000]);
    }

    #[test]
    fn lost_packets_cost_round_trips_and_no_frames() {
        let (mut lossy, link) = network(LinkConfig { lost_of_million: 10_000, ..FAR });
        let arrivals = arrivals(&mut lossy, link, 60_000, 100);
        assert_eq!(arrivals.len(), 100);
        assert!(arrivals[99] >= 120_000 && arrivals[99] <= 40_000 + RESENT_MAX * 80_000, "{arrivals:?}");
        assert!(arrivals.is_sorted());
    }
}
