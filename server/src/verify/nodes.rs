//! The nodes that are compared, asked over HTTP. What one is asked, all are asked at the same time.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::task::JoinHandle;

use crate::http::digests::{Context, DigestBody};

/// How long a node may take to accept a connection.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// How long to wait for what a node knows without reading its data.
const ANSWER_MAX: Duration = Duration::from_secs(15);
/// How long to wait for a digest. To read a partition as a whole takes as long as the disk needs for it.
const DIGEST_MAX: Duration = Duration::from_secs(600);
/// Bytes of a problem that are shown.
const PROBLEM_BYTES_MAX: usize = 500;

const CLUSTER: &str = "/v1/_cluster";

/// A node.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) name: String,
    pub(super) url: String,
    client: reqwest::Client,
}

/// Nodes of one cluster.
#[derive(Debug)]
pub(super) struct Cluster {
    pub(super) name: String,
    pub(super) partitions: u16,
    pub(super) nodes: Vec<Node>,
}

/// The part of `/v1/_cluster` that is read.
#[derive(Debug, Deserialize)]
struct ClusterAnswer {
    cluster: String,
    partitions: u16,
    node: String,
    contexts: BTreeMap<u16, Context>,
}

/// Asks each who it is. They must be different nodes of one cluster.
pub(super) async fn connect(urls: &[String]) -> anyhow::Result<Cluster> {
    let client = reqwest::Client::builder()
        .no_proxy()
        .connect_timeout(CONNECT_MAX)
        .build()
        .context("making an HTTP client")?;
    let mut cluster: Option<Cluster> = None;
    for url in urls {
        let url = url.trim_end_matches('/').to_owned();
        ensure!(
            url.starts_with("http://"),
            "{url:?} is not the URL of a node's API: it looks like http://127.0.0.1:7400"
        );
        let mut node = Node { name: url.clone(), url, client: client.clone() };
        let told: ClusterAnswer = node.get(CLUSTER, ANSWER_MAX).await?;
        node.name = told.node;
        let known = cluster.get_or_insert_with(|| Cluster {
            name: told.cluster.clone(),
            partitions: told.partitions,
            nodes: Vec::new(),
        });
        ensure!(
            (&known.name, known.partitions) == (&told.cluster, told.partitions),
            "{} is of the cluster {:?} with {} partitions, and {} of {:?} with {}: they cannot be compared",
            node.url,
            told.cluster,
            told.partitions,
            urls[0],
            known.name,
            known.partitions
        );
        if let Some(same) = known.nodes.iter().find(|other| other.name == node.name) {
            bail!("{} and {} are one node, {:?}: name each once", same.url, node.url, node.name);
        }
        known.nodes.push(node);
    }
    cluster.context("no node is named")
}

/// What each node has applied, by partition.
pub(super) async fn contexts(nodes: &[Node]) -> anyhow::Result<Vec<BTreeMap<u16, Context>>> {
    let told: Vec<ClusterAnswer> = ask_all(nodes, CLUSTER.to_owned(), ANSWER_MAX).await?;
    Ok(told.into_iter().map(|told| told.contexts).collect())
}

/// What each node holds in a partition.
pub(super) async fn digests(nodes: &[Node], partition: u16) -> anyhow::Result<Vec<DigestBody>> {
    ask_all(nodes, digest_path(partition, ""), DIGEST_MAX).await
}

fn digest_path(partition: u16, more: &str) -> String {
    format!("/v1/_digest?partition={partition}{more}")
}

async fn ask_all<T: DeserializeOwned + Send + 'static>(
    nodes: &[Node],
    path: String,
    wait_max: Duration,
) -> anyhow::Result<Vec<T>> {
    let ask = |node: &Node| -> JoinHandle<anyhow::Result<T>> {
        let (node, path) = (node.clone(), path.clone());
        tokio::spawn(async move { node.get(&path, wait_max).await })
    };
    let asked: Vec<_> = nodes.iter().map(ask).collect();
    let mut answers = Vec::new();
    for answer in asked {
        answers.push(answer.await.context("asking a node")??);
    }
    Ok(answers)
}

impl Node {
    /// What the node holds in a part of a partition.
    pub(super) async fn digest(&self, partition: u16, part: &str) -> anyhow::Result<DigestBody> {
        self.get(&digest_path(partition, part), DIGEST_MAX).await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str, wait_max: Duration) -> anyhow::Result<T> {
        let unreachable = || {
            format!(
                "{} ({}) does not answer. Is it up, and is this the address of its API?",
                self.name, self.url
            )
        };
        let request = self.client.get(format!("{}{path}", self.url)).timeout(wait_max);
        let answer = request.send().await.with_context(unreachable)?;
        let status = answer.status();
        let body = answer.bytes().await.with_context(unreachable)?;
        if !status.is_success() {
            let said = String::from_utf8_lossy(&body[..body.len().min(PROBLEM_BYTES_MAX)]);
            bail!(
                "{} ({}) answers {path} with {status}: {said}. Does it run this version?",
                self.name,
                self.url
            );
        }
        let unknown =
            || format!("{} ({}) answers {path} as no node of this version does", self.name, self.url);
        serde_json::from_slice(&body).with_context(unknown)
    }
}
