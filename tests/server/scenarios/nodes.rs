//! The three nodes that scenarios are played on.
//!
//! Either they run in this process, where the links of each can be cut below QUIC, or each is a process that can be
//! killed. Both have the same configuration, certificates and data directories, and are asked over HTTP only.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use godwit_net::{FaultControl, FaultRule};
use godwit_server::config::Config;
use godwit_server::node::{RunningNode, StartOptions};
use serde_json::Value;

use super::support::{Answer, Cluster, Server, client, eventually};

/// The nodes, as scenarios name them.
pub const NAMES: [&str; 3] = ["A", "B", "C"];

/// The same in configurations.
const NODES: [&str; 3] = ["a", "b", "c"];

/// Which of the two kinds runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// In this process; links can be cut.
    InProcess,
    /// A process each; they can be killed.
    Processes,
}

/// Three nodes that are linked with each other.
pub struct Nodes {
    client: reqwest::Client,
    cluster: Cluster,
    running: Running,
}

enum Running {
    InProcess { nodes: Vec<RunningNode>, faults: Vec<FaultControl> },
    Processes(Vec<Server>),
}

impl Nodes {
    /// Starts them and waits until each has met the others.
    pub async fn start(kind: Kind) -> Self {
        let cluster = Cluster::new(&NODES);
        let running = match kind {
            Kind::InProcess => {
                let faults: Vec<FaultControl> = (1..=3).map(FaultControl::new).collect();
                let mut nodes = Vec::new();
                for (node, faults) in NODES.iter().zip(&faults) {
                    let config = Config::load(&cluster.config(node)).unwrap();
                    let options = StartOptions { faults: Some(faults.clone()), ..StartOptions::default() };
                    nodes.push(RunningNode::start(config, options).await.unwrap());
                }
                Running::InProcess { nodes, faults }
            }
            Kind::Processes => {
                let mut servers = Vec::new();
                for node in NODES {
                    servers.push(cluster.start(node).await);
                }
                Running::Processes(servers)
            }
        };
        let nodes = Self { client: client(), cluster, running };
        nodes.sync().await;
        nodes
    }

    pub fn kind(&self) -> Kind {
        match self.running {
            Running::InProcess { .. } => Kind::InProcess,
            Running::Processes(_) => Kind::Processes,
        }
    }

    /// Where a node's API is.
    pub fn addr(&self, at: usize) -> SocketAddr {
        match &self.running {
            Running::InProcess { nodes, .. } => nodes[at].http_addr(),
            Running::Processes(servers) => servers[at].addr(),
        }
    }

    /// A request to a node.
    pub fn request(&self, method: &str, at: usize, path: &str) -> reqwest::RequestBuilder {
        let address = self.addr(at);
        self.client.request(method.parse().unwrap(), format!("http://{address}{path}"))
    }

    /// Cuts every link of these nodes and heals the rest. Processes stay linked.
    pub fn cut(&self, lonely: &[usize]) {
        if let Running::InProcess { faults, .. } = &self.running {
            for (at, faults) in faults.iter().enumerate() {
                faults.cut_all(lonely.contains(&at));
            }
        }
    }

    /// Delays whatever the nodes tell each other. Processes are not delayed.
    pub fn delay(&self, delay_us: u64) {
        if let Running::InProcess { faults, .. } = &self.running {
            for faults in faults {
                faults.set_all(FaultRule { delay_us, ..FaultRule::default() });
            }
        }
    }

    /// Ends a process as a crash does.
    pub fn kill(&mut self, at: usize) {
        match &mut self.running {
            Running::InProcess { .. } => panic!("only processes can be killed"),
            Running::Processes(servers) => servers[at].kill(),
        }
    }

    /// Starts a process again on its data.
    pub async fn restart(&mut self, at: usize) {
        match &mut self.running {
            Running::InProcess { .. } => panic!("only processes can be restarted"),
            // Its configuration has not changed, and neither has its port for links.
            Running::Processes(servers) => servers[at] = self.cluster.start(NODES[at]).await,
        }
    }

    /// Copies the data directory of a process that has ended.
    pub fn save(&self, at: usize) {
        self.copy(&self.data(at), &self.cluster.path("saved"));
    }

    /// Puts the copy in the place of the data directory of a process that has ended.
    pub fn put_back(&self, at: usize) {
        std::fs::remove_dir_all(self.data(at)).unwrap();
        self.copy(&self.cluster.path("saved"), &self.data(at));
    }

    fn data(&self, at: usize) -> PathBuf {
        self.cluster.path(&format!("{}-data", NODES[at]))
    }

    fn copy(&self, from: &Path, to: &Path) {
        assert!(Command::new("cp").arg("-r").args([from, to]).status().unwrap().success());
    }

    /// Heals all links and waits until all nodes say that they have converged, and hold the same state.
    pub async fn sync(&self) {
        self.cut(&[]);
        eventually("all nodes converge", async || {
            let mut digests = Vec::new();
            for at in 0..NAMES.len() {
                let answer = Answer::of(self.request("GET", at, "/v1/_cluster?digests=true")).await;
                let mut cluster: Value = answer.json();
                if cluster["converged"] != true {
                    return None;
                }
                digests.push(cluster["digests"]["all"].take());
            }
            digests.iter().all(|digest| *digest == digests[0]).then_some(())
        })
        .await;
    }

    /// Stops them in order.
    pub async fn stop(self) {
        if let Running::InProcess { nodes, .. } = self.running {
            for node in nodes {
                node.shutdown().await.unwrap();
            }
        }
    }
}
