//! Two nodes in this process, linked by QUIC over loopback through sockets that delay and cut.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use godwit_core::context::VersionVector;
use godwit_core::ids::PartitionId;
use godwit_net::tls::write_private;
use godwit_net::{CertificateAuthority, FaultControl, FaultRule};
use godwit_proto::status::Status;
use godwit_server::config::{
    AddressClass, AddressSection, Config, HttpSection, NodeSection, PeerSection, ReplicationSection,
};
use godwit_server::node::{NodeHandle, RunningNode, StartOptions};
use tempfile::TempDir;

pub const PARTITIONS: u16 = 64;

const CLUSTER: &str = "bench";
const NAMES: [&str; 2] = ["a", "b"];
/// Names the directory for data, if not Cargo's own below the target directory.
const DIRECTORY_VARIABLE: &str = "GODWIT_BENCH_DIR";
/// How often a state is looked at that is waited for.
const LOOK: Duration = Duration::from_millis(5);
/// How long anything may take that must come to an end.
const PATIENCE: Duration = Duration::from_secs(900);
/// What follows the end of an exchange: acknowledgements, and contexts that are told late.
const SETTLE: Duration = Duration::from_millis(500);

/// What the nodes of a part are told beyond their names.
#[derive(Clone)]
pub struct Settings {
    pub delay: Duration,
    pub log_bytes: u64,
    pub log_age_ms: u64,
    pub cache_bytes: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self { delay: Duration::ZERO, log_bytes: 4 << 30, log_age_ms: 7 * 86_400_000, cache_bytes: 256 << 20 }
    }
}

/// The nodes `a` and `b`; each is the other's only peer.
pub struct Pair {
    dir: TempDir,
    faults: [FaultControl; 2],
    nodes: Vec<RunningNode>,
}

/// Bytes in UDP datagrams that each side sent, on all of its links since it started.
#[derive(Clone, Copy)]
pub struct Sent {
    pub a: u64,
    pub b: u64,
}

impl Sent {
    pub fn both(self) -> u64 {
        self.a + self.b
    }

    pub fn since(self, before: Self) -> Self {
        Self { a: self.a - before.a, b: self.b - before.b }
    }
}

pub fn directory() -> TempDir {
    let parent = std::env::var_os(DIRECTORY_VARIABLE).unwrap_or_else(|| env!("CARGO_TARGET_TMPDIR").into());
    tempfile::tempdir_in(parent).expect("a directory")
}

/// Waits for a time that a measurement lasts, or until it looks again.
pub async fn pause(time: Duration) {
    tokio::time::sleep(time).await; // polls: the caller looks, or the time itself is what is measured
}

/// Looks until there is something, for as long as anything may take.
pub async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(began.elapsed() < PATIENCE, "{what}: not within {} s", PATIENCE.as_secs());
        pause(LOOK).await;
    }
}

pub async fn status(node: &NodeHandle) -> Status {
    node.status().await.expect("a node that runs")
}

fn covers(has: &Status, owed: &Status) -> bool {
    let nothing = VersionVector::new();
    let of = |id: &PartitionId| has.contexts.get(id).unwrap_or(&nothing);
    owed.contexts.iter().all(|(id, context)| of(id).covers_all(context))
}

/// A node's configuration with its certificate, which is made here, and its peers.
fn configure(dir: &Path, name: &str, settings: &Settings, links: Option<ReplicationSection>) -> Config {
    let mut config = Config {
        node: NodeSection {
            name: name.into(),
            region: name.into(),
            cluster: CLUSTER.into(),
            data_dir: dir.join(name),
            partitions: PARTITIONS,
            secret_file: None,
        },
        http: HttpSection { listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), ..HttpSection::default() },
        replication: links,
        limits: Default::default(),
        clock: Default::default(),
        log: Default::default(),
        retention: Default::default(),
        repair: Default::default(),
        storage: Default::default(),
    };
    config.retention.log_bytes = settings.log_bytes;
    config.retention.log_age_ms = settings.log_age_ms;
    config.storage.cache_bytes = settings.cache_bytes;
    config
}

async fn start(config: Config, mut options: StartOptions) -> RunningNode {
    options.http = Some(TcpListener::bind(config.http.listen).expect("a port"));
    RunningNode::start(config, options).await.expect("a node")
}

/// Starts a node without peers; its data is below the directory.
pub async fn alone(dir: &Path, settings: &Settings) -> (RunningNode, PathBuf) {
    let config = configure(dir, NAMES[0], settings, None);
    let data = config.node.data_dir.clone();
    (start(config, StartOptions::default()).await, data)
}

impl Pair {
    /// Starts both and waits until they are linked.
    pub async fn start(settings: &Settings) -> Self {
        let dir = directory();
        let authority = CertificateAuthority::generate(CLUSTER).expect("an authority");
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            write_private(&path, text).expect("a directory that takes files");
            path
        };
        let ca = file("ca.pem", authority.cert_pem());
        let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let sockets = NAMES.map(|_| godwit_net::bind(loopback).expect("a port"));
        let udp: Vec<SocketAddr> =
            sockets.iter().map(|socket| socket.local_addr().expect("a bound socket")).collect();
        let faults = [FaultControl::new(1), FaultControl::new(2)];
        let rule = FaultRule { delay_us: settings.delay.as_micros() as u64, ..FaultRule::default() };
        faults.iter().for_each(|faults| faults.set_all(rule));
        let mut nodes = Vec::new();
        for (i, socket) in sockets.into_iter().enumerate() {
            let issued = authority.issue(NAMES[i]).expect("a certificate");
            let address = AddressSection { address: udp[1 - i].to_string(), class: AddressClass::Public };
            let links = ReplicationSection {
                listen: udp[i],
                ca: ca.clone(),
                certificate: file(&format!("{}.pem", NAMES[i]), &issued.cert_pem),
                key: file(&format!("{}.key", NAMES[i]), &issued.key_pem),
                peers: vec![PeerSection { name: NAMES[1 - i].into(), addresses: vec![address] }],
            };
            let config = configure(dir.path(), NAMES[i], settings, Some(links));
            let faults = Some(faults[i].clone());
            nodes.push(start(config, StartOptions { udp: Some(socket), faults, ..Default::default() }).await);
        }
        let pair = Self { dir, faults, nodes };
        pair.linked().await;
        pair
    }

    pub fn a(&self) -> &NodeHandle {
        self.nodes[0].handle()
    }

    pub fn b(&self) -> &NodeHandle {
        self.nodes[1].handle()
    }

    /// Waits until both have told each other what they have.
    pub async fn linked(&self) {
        for node in [self.a(), self.b()] {
            until("a link", async || status(node).await.peers.values().any(|peer| peer.linked).then_some(()))
                .await;
        }
    }

    /// Nothing passes any more; waits until both sides have noticed.
    pub async fn cut(&self) {
        self.faults.iter().for_each(|faults| faults.cut_all(true));
        for node in [self.a(), self.b()] {
            let is_down = async || node.links().iter().all(|link| link.up.is_none()).then_some(());
            until("the end of a link", is_down).await;
        }
    }

    pub fn heal(&self) {
        self.faults.iter().for_each(|faults| faults.cut_all(false));
    }

    /// Waits until `b` has all that `a` has, and then until it is quiet.
    pub async fn caught_up(&self) {
        self.has_all().await;
        pause(SETTLE).await;
    }

    /// Waits until `b` has all that `a` has.
    pub async fn has_all(&self) {
        let owed = status(self.a()).await;
        until("catching up", async || covers(&status(self.b()).await, &owed).then_some(())).await;
    }

    pub fn sent(&self) -> Sent {
        let of = |node: &NodeHandle| node.links().iter().map(|link| link.udp_bytes_sent).sum();
        Sent { a: of(self.a()), b: of(self.b()) }
    }

    /// Stops `b` for good. What remains is stopped by [`Self::stop`].
    pub async fn stop_b(&mut self) {
        let node = self.nodes.pop().expect("two nodes");
        node.shutdown().await.expect("an orderly stop");
    }

    pub async fn stop(self) {
        for node in self.nodes {
            node.shutdown().await.expect("an orderly stop");
        }
        drop(self.dir);
    }
}
