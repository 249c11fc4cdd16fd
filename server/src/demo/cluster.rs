//! Three nodes in this process, and what the demo does to them from outside: delays, the cut, restarts.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use godwit_net::{FaultControl, FaultRule};
use serde::Deserialize;

use crate::ca;
use crate::config::{
    AddressClass, AddressSection, Config, HttpSection, NodeSection, PeerSection, ReplicationSection,
};
use crate::node::{RunningNode, StartOptions};

/// A region of the demo.
#[derive(Debug)]
pub(super) struct Region {
    /// Its name, as the history has it.
    pub(super) name: &'static str,
    /// Its node.
    node: &'static str,
}

/// The regions.
pub(super) const REGIONS: [Region; 3] = [
    Region { name: "emea", node: "emea-1" },
    Region { name: "americas", node: "americas-1" },
    Region { name: "apac", node: "apac-1" },
];
/// One-way delays between two regions, in milliseconds.
pub(super) const DELAYS_MS: [(usize, usize, u64); 3] = [(0, 1, 40), (1, 2, 75), (0, 2, 120)];

const JITTER_US: u64 = 2_000;
const CLUSTER: &str = "demo";
/// How often contexts are asked for while something is awaited.
const LOOK: Duration = Duration::from_millis(10);

/// What has been applied somewhere: partition → replica → counter, as `/v1/_cluster` writes it.
pub(super) type Contexts = BTreeMap<u16, BTreeMap<String, u64>>;

/// The part of `/v1/_cluster` that the demo reads.
#[derive(Debug, Deserialize)]
pub(super) struct ClusterAnswer {
    /// What the node has applied.
    pub(super) contexts: Contexts,
    converged: bool,
    /// Digests, if asked for.
    pub(super) digests: Option<Digests>,
}

/// Digests of a node's data.
#[derive(Debug, Deserialize)]
pub(super) struct Digests {
    /// Over everything.
    pub(super) all: String,
}

/// The three nodes.
#[derive(Debug)]
pub(super) struct Cluster {
    dir: PathBuf,
    /// UDP and HTTP addresses by region, kept over restarts.
    udp: Vec<SocketAddr>,
    http: Vec<SocketAddr>,
    faults: Vec<FaultControl>,
    nodes: Vec<RunningNode>,
    client: reqwest::Client,
}

impl Cluster {
    /// Makes certificates, starts the nodes and waits until they are linked.
    pub(super) async fn start(dir: &Path) -> anyhow::Result<Self> {
        ca::init(CLUSTER, dir)?;
        for region in &REGIONS {
            ca::issue(dir, region.node)?;
        }
        let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let sockets: Vec<UdpSocket> =
            REGIONS.iter().map(|_| godwit_net::bind(loopback)).collect::<Result<_, _>>()?;
        let listeners: Vec<TcpListener> =
            REGIONS.iter().map(|_| TcpListener::bind(loopback)).collect::<Result<_, _>>()?;
        let mut cluster = Self {
            dir: dir.to_path_buf(),
            udp: sockets.iter().map(UdpSocket::local_addr).collect::<Result<_, _>>()?,
            http: listeners.iter().map(TcpListener::local_addr).collect::<Result<_, _>>()?,
            faults: (0..REGIONS.len()).map(|i| FaultControl::new(i as u64 + 1)).collect(),
            nodes: Vec::new(),
            client: reqwest::Client::new(),
        };
        cluster.set_links(None);
        for (i, (udp, http)) in sockets.into_iter().zip(listeners).enumerate() {
            cluster.start_node(i, udp, http).await?;
        }
        cluster.until_converged(Duration::from_secs(30)).await?;
        Ok(cluster)
    }

    /// Where each region's API is.
    pub(super) fn urls(&self) -> Vec<String> {
        self.http.iter().map(|address| format!("http://{address}")).collect()
    }

    /// Where a region's node keeps its data.
    pub(super) fn data_dir(&self, region: &Region) -> PathBuf {
        self.dir.join(region.node)
    }

    /// Sets all delays; the links of a region that is cut off drop everything, at both ends.
    pub(super) fn set_links(&self, lonely: Option<usize>) {
        for (a, b, delay_ms) in DELAYS_MS {
            let rule = FaultRule {
                delay_us: delay_ms * 1000,
                jitter_us: JITTER_US,
                cut: lonely == Some(a) || lonely == Some(b),
                ..FaultRule::default()
            };
            self.faults[a].set(self.udp[b], rule);
            self.faults[b].set(self.udp[a], rule);
        }
    }

    /// Stops every node, then starts every node again, on the same ports and data.
    pub(super) async fn restart(&mut self) -> anyhow::Result<()> {
        stop_all(self.nodes.drain(..)).await?;
        for i in 0..REGIONS.len() {
            let udp = godwit_net::bind(self.udp[i])?;
            let http = TcpListener::bind(self.http[i]).context("taking the HTTP port again")?;
            self.start_node(i, udp, http).await?;
        }
        self.until_converged(Duration::from_secs(30)).await
    }

    /// Stops every node.
    pub(super) async fn stop(self) -> anyhow::Result<()> {
        stop_all(self.nodes.into_iter()).await
    }

    /// What any region has applied by now.
    pub(super) async fn everything_applied(&self) -> anyhow::Result<Contexts> {
        let mut all = Contexts::new();
        for url in self.urls() {
            join(&mut all, &ask(&self.client, &url, "").await?.contexts);
        }
        Ok(all)
    }

    /// Waits until every region has applied all of this.
    pub(super) async fn until_applied(&self, owed: &Contexts, patience: Duration) -> anyhow::Result<()> {
        let began = Instant::now();
        for url in self.urls() {
            while !covers(&ask(&self.client, &url, "").await?.contexts, owed) {
                if began.elapsed() > patience {
                    bail!("{url} does not have everything after {} s", patience.as_secs());
                }
                tokio::time::sleep(LOOK).await;
            }
        }
        Ok(())
    }

    /// Waits until every node says that the cluster has converged.
    async fn until_converged(&self, patience: Duration) -> anyhow::Result<()> {
        let began = Instant::now();
        for url in self.urls() {
            while !ask(&self.client, &url, "").await?.converged {
                if began.elapsed() > patience {
                    bail!("the nodes are not linked and equal after {} s", patience.as_secs());
                }
                tokio::time::sleep(LOOK).await;
            }
        }
        Ok(())
    }

    async fn start_node(&mut self, i: usize, udp: UdpSocket, http: TcpListener) -> anyhow::Result<()> {
        let Region { name, node } = REGIONS[i];
        let peers = (0..REGIONS.len()).filter(|&other| other != i).map(|other| PeerSection {
            name: REGIONS[other].node.into(),
            addresses: vec![AddressSection {
                address: self.udp[other].to_string(),
                class: AddressClass::Public,
            }],
        });
        let config = Config {
            node: NodeSection {
                name: node.into(),
                region: name.into(),
                cluster: CLUSTER.into(),
                data_dir: self.dir.join(node),
                partitions: 64,
                secret_file: Some(self.dir.join("cluster.secret")),
            },
            http: HttpSection { listen: self.http[i], ..HttpSection::default() },
            replication: Some(ReplicationSection {
                listen: self.udp[i],
                ca: self.dir.join("ca.pem"),
                certificate: self.dir.join(format!("{node}.pem")),
                key: self.dir.join(format!("{node}.key")),
                peers: peers.collect(),
            }),
            limits: Default::default(),
            clock: Default::default(),
            log: Default::default(),
            retention: Default::default(),
            repair: Default::default(),
            storage: Default::default(),
        };
        let options = StartOptions {
            udp: Some(udp),
            http: Some(http),
            faults: Some(self.faults[i].clone()),
            ..StartOptions::default()
        };
        let started =
            RunningNode::start(config, options).await.with_context(|| format!("starting {node}"))?;
        self.nodes.push(started);
        Ok(())
    }
}

async fn stop_all(nodes: impl Iterator<Item = RunningNode>) -> anyhow::Result<()> {
    let stopping: Vec<_> = nodes.map(|node| tokio::spawn(node.shutdown())).collect();
    for node in stopping {
        node.await??;
    }
    Ok(())
}

/// Asks a node about the cluster.
pub(super) async fn ask(client: &reqwest::Client, url: &str, query: &str) -> anyhow::Result<ClusterAnswer> {
    let answer = client.get(format!("{url}/v1/_cluster{query}")).send().await?.error_for_status()?;
    Ok(answer.json().await?)
}

/// Whether all of this is applied there.
pub(super) fn covers(contexts: &Contexts, owed: &Contexts) -> bool {
    let covers_dot = |partition: &u16, replica: &String, counter: &u64| {
        contexts.get(partition).and_then(|context| context.get(replica)).is_some_and(|have| have >= counter)
    };
    owed.iter().all(|(p, context)| context.iter().all(|(replica, counter)| covers_dot(p, replica, counter)))
}

/// Adds what the other has.
pub(super) fn join(contexts: &mut Contexts, other: &Contexts) {
    for (partition, context) in other {
        let into = contexts.entry(*partition).or_default();
        for (replica, counter) in context {
            let have = into.entry(replica.clone()).or_default();
            *have = (*have).max(*counter);
        }
    }
}
