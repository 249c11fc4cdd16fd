//! Three processes whose logs are short, on ways that can be cut.
//!
//! Logs are kept for a second, and are cut at checkpoints, of which there is one after a MiB of entries. So a *filler* in each
//! partition, a commit of more than that, ends what any log reaches back to.

use std::collections::BTreeMap;

use godwit_core::ids::{Key, Namespace, RecordId};
use serde_json::{Value, json};

use super::support::relay::Relay;
use super::support::{Cluster, Server, converged, eventually};

pub const NAMES: [&str; 3] = ["a", "b", "c"];

/// What the configurations of [`Cluster`] say.
pub const PARTITIONS: u16 = 8;

/// Two of these exceed the MiB after which there is a checkpoint, and one what is read at a time.
const FILLER_BYTES: usize = 600 * 1024;

/// What a log has at most that begins after a filler in each partition.
const CUT_LOG_BYTES_MAX: u64 = 256 * 1024;

pub struct Trio {
    pub cluster: Cluster,
    relays: BTreeMap<(&'static str, &'static str), Relay>,
    servers: BTreeMap<&'static str, Server>,
    /// One tag for each partition.
    pub tags: Vec<String>,
}

impl Trio {
    /// Starts them, and waits until they are linked. Repairs read so many bytes a second.
    pub async fn start(repair_bytes_per_s: u64) -> Self {
        let cluster = Cluster::new(&NAMES);
        let mut relays = BTreeMap::new();
        // The node with the smaller name dials.
        for ways in [("a", "b"), ("a", "c"), ("b", "c")] {
            let relay = Relay::start(cluster.port(ways.1)).await;
            let config = std::fs::read_to_string(cluster.config(ways.0)).unwrap();
            let address = |port| format!("address = \"127.0.0.1:{port}\"");
            let (direct, relayed) = (address(cluster.port(ways.1)), address(relay.port));
            assert!(config.contains(&direct));
            std::fs::write(cluster.config(ways.0), config.replace(&direct, &relayed)).unwrap();
            relays.insert(ways, relay);
        }
        for name in NAMES {
            let more =
                format!("[retention]\nlog_age_ms = 1000\n[repair]\nbytes_per_s = {repair_bytes_per_s}\n");
            let config = std::fs::read_to_string(cluster.config(name)).unwrap();
            std::fs::write(cluster.config(name), config + &more).unwrap();
        }
        let mut servers = BTreeMap::new();
        for name in NAMES {
            servers.insert(name, cluster.start(name).await);
        }
        let trio = Self { cluster, relays, servers, tags: tags() };
        trio.converge().await;
        trio
    }

    /// # Panics
    /// If it does not run.
    pub fn node(&self, name: &str) -> &Server {
        &self.servers[name]
    }

    pub fn running(&self) -> Vec<&Server> {
        self.servers.values().collect()
    }

    /// Stops a node in order, so that its peers know at once.
    pub async fn stop(&mut self, name: &'static str) {
        let mut server = self.servers.remove(name).unwrap();
        server.terminate();
        assert!(server.exit_status().await.success());
    }

    pub fn kill(&mut self, name: &'static str) {
        self.servers.remove(name).unwrap().kill();
    }

    pub async fn begin(&mut self, name: &'static str) {
        self.servers.insert(name, self.cluster.start(name).await);
    }

    /// Cuts the way between two nodes, or heals it.
    pub fn cut(&self, one: &str, other: &str, is_cut: bool) {
        let way =
            self.relays.iter().find(|((from, to), _)| [(one, other), (other, one)].contains(&(*from, *to)));
        way.unwrap().1.cut(is_cut);
    }

    /// Waits until every node that runs says that it has converged, and all hold the same state.
    pub async fn converge(&self) {
        converged(&self.running()).await;
    }

    /// Writes a filler into each partition through a node, and waits until the logs of these nodes begin after it.
    pub async fn cut_logs(&self, through: &str, of: &[&str]) {
        for tag in &self.tags {
            self.fill(through, tag).await;
        }
        for name in of {
            eventually("the log is cut", async || {
                (self.log_bytes(name).await < CUT_LOG_BYTES_MAX).then_some(())
            })
            .await;
        }
    }

    /// Writes a filler into one partition.
    pub async fn fill(&self, through: &str, tag: &str) {
        let value = "x".repeat(FILLER_BYTES);
        let ops = ["one", "two"].map(|field| json!({"op": "set", "field": field, "value": value}));
        self.patch(through, &format!("{tag}filler"), &json!(ops)).await;
    }

    pub async fn log_bytes(&self, name: &str) -> u64 {
        self.node(name).cluster().await["log_bytes"].as_u64().unwrap()
    }

    pub async fn repairs(&self, name: &str) -> Value {
        self.node(name).cluster().await["repairs"].take()
    }

    /// A write that must be acknowledged.
    pub async fn patch(&self, through: &str, key: &str, ops: &Value) {
        let path = format!("/v1/ns/{key}");
        self.node(through).patch(&path, json!({ "ops": ops }).to_string()).await.json();
    }

    pub async fn delete(&self, through: &str, key: &str) {
        self.node(through).delete(&format!("/v1/ns/{key}")).await.json();
    }

    /// What a node shows of a record; `{}` if nothing.
    pub async fn fields(&self, name: &str, key: &str) -> Value {
        let answer = self.node(name).get(&format!("/v1/ns/{key}")).await;
        match answer.status {
            404 => json!({}),
            _ => answer.json()["fields"].take(),
        }
    }

    /// Every node shows this.
    pub async fn expect(&self, key: &str, fields: &Value) {
        for name in self.servers.keys() {
            assert_eq!(self.fields(name, key).await, *fields, "{name} shows {key}");
        }
    }

    /// Waits until a repair of a node is in the middle: some partitions are done, and of the next one some rows came. Gives the
    /// name of the node that serves it.
    pub async fn middle(&self, name: &str) -> &'static str {
        let peer = eventually("a repair is in the middle", async || {
            let repairs = self.repairs(name).await;
            let under_way = &repairs["under_way"];
            let is_middle = repairs["done"].as_u64()? > 0 && under_way["rows"].as_u64()? > 0;
            is_middle.then(|| under_way["peer"].as_str().unwrap().to_owned())
        })
        .await;
        NAMES.into_iter().find(|name| *name == peer).unwrap()
    }
}

/// A tag for each partition, in their order.
fn tags() -> Vec<String> {
    let tag = |partition| {
        let mut tags = (0..).map(|i| format!("{{t{i}}}"));
        let namespace = Namespace::new("ns").unwrap();
        let key = |tag: &String| Key::new(tag.as_str()).unwrap();
        let is_there = |tag: &String| {
            let record = RecordId { namespace: namespace.clone(), key: key(tag) };
            record.partition(PARTITIONS).0 == partition
        };
        tags.find(is_there).unwrap()
    };
    (0..PARTITIONS).map(tag).collect()
}
