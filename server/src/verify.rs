//! `godwit verify`: proves nodes equal, partition by partition, or names what is not.
//!
//! Nodes that have applied the same commits hold the same rows: that is Godwit's promise, and here it is checked from outside.
//! A partition is *equal* if all nodes answered with equal contexts and equal digests. It has *diverged* if two nodes answered
//! with equal contexts and different digests: no delay explains that. Otherwise contexts differ, nothing is proven, and it is
//! asked for again until the time is up: writes go on, a node is behind, or a link is down.
//!
//! Each node answers from snapshots of its own, at its own moment. That is enough, since a context says all of what a
//! partition's rows must be.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::ensure;
use clap::Args;
use serde::Serialize;

use crate::http::digests::Context;

mod differences;
mod nodes;
mod report;

use differences::Difference;
use nodes::Node;

/// Between two attempts to find nodes equal.
const PAUSE: Duration = Duration::from_millis(500);
/// The longest `--wait`: an hour. With [`PAUSE`] it bounds the attempts.
const WAIT_SECONDS_MAX: u64 = 3_600;
/// Nodes compared at once.
const NODES_MAX: usize = 16;

/// What is asked of `godwit verify`.
#[derive(Debug, Args)]
pub struct VerifyArguments {
    /// The APIs of two or more nodes of one cluster, like http://127.0.0.1:7400.
    #[arg(required = true, num_args = 2..=NODES_MAX, value_name = "URL")]
    pub urls: Vec<String>,
    /// How long to try again while nodes have not applied the same, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(0..=WAIT_SECONDS_MAX))]
    pub wait: u64,
    /// Prints one JSON object instead of text.
    #[arg(long)]
    pub json: bool,
}

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// All nodes hold the same in every partition.
    Equal,
    /// Two nodes that have applied the same do not hold the same.
    Diverged,
    /// In some partition the nodes never had applied the same when they were asked.
    NotProven,
}

impl Outcome {
    /// The process's exit status.
    pub fn exit_status(self) -> u8 {
        match self {
            Self::Equal => 0,
            Self::Diverged => 1,
            Self::NotProven => 3,
        }
    }
}

/// All that was found.
#[derive(Debug, Serialize)]
struct Findings {
    outcome: Outcome,
    cluster: String,
    partitions: u16,
    nodes: Vec<NodeFound>,
    /// Partitions in which all nodes hold the same.
    equal: usize,
    /// The rows in them, counted once.
    rows: u64,
    diverged: Vec<Divergence>,
    not_proven: Vec<NotProven>,
}

#[derive(Debug, Clone, Serialize)]
struct NodeFound {
    name: String,
    url: String,
}

/// Two nodes that have applied the same in a partition, and do not hold the same.
#[derive(Debug, Serialize)]
struct Divergence {
    partition: u16,
    nodes: [String; 2],
    /// How many rows each holds.
    rows: [u64; 2],
    differences: Vec<Difference>,
    /// Whether there are no others.
    complete: bool,
}

/// A partition in which nodes had not applied the same.
#[derive(Debug, Serialize)]
struct NotProven {
    partition: u16,
    /// How many commits each node lacks that another one had; those that lack none are left out.
    lacks: BTreeMap<String, u64>,
}

/// Compares the nodes and prints what was found.
pub async fn run(arguments: &VerifyArguments) -> anyhow::Result<Outcome> {
    let deadline = Instant::now() + Duration::from_secs(arguments.wait);
    let findings = compare(nodes::connect(&arguments.urls).await?, deadline).await?;
    match arguments.json {
        true => println!("{}", serde_json::to_string_pretty(&findings)?),
        false => print!("{}", report::text(&findings)),
    }
    Ok(findings.outcome)
}

async fn compare(cluster: nodes::Cluster, deadline: Instant) -> anyhow::Result<Findings> {
    let nodes::Cluster { name, partitions, nodes } = cluster;
    let found = nodes.iter().map(|node| NodeFound { name: node.name.clone(), url: node.url.clone() });
    let mut findings = Findings {
        outcome: Outcome::Equal,
        cluster: name,
        partitions,
        nodes: found.collect(),
        equal: 0,
        rows: 0,
        diverged: Vec::new(),
        not_proven: Vec::new(),
    };
    let mut open: BTreeSet<u16> = (0..partitions).collect();
    loop {
        // Asked for first: reading partitions whose contexts differ would prove nothing.
        let contexts = nodes::contexts(&nodes).await?;
        let is_last = Instant::now() >= deadline;
        for partition in open.clone() {
            let told: Vec<_> = contexts.iter().map(|of| of.get(&partition)).collect();
            let some_agree = told.iter().enumerate().any(|(i, one)| told[..i].contains(one));
            let all_agree = told.iter().all(|other| *other == told[0]);
            if (all_agree || (is_last && some_agree)) && judge(&nodes, partition, &mut findings).await? {
                open.remove(&partition);
            }
        }
        if is_last || open.is_empty() {
            let lacking = |partition| NotProven { partition, lacks: lacks(&nodes, partition, &contexts) };
            findings.not_proven = open.into_iter().map(lacking).collect();
            break;
        }
        tokio::time::sleep(PAUSE.min(deadline.saturating_duration_since(Instant::now()))).await;
    }
    ensure!(
        findings.equal + findings.diverged_partitions() + findings.not_proven.len()
            == usize::from(partitions),
        "a partition was lost count of: a defect"
    );
    findings.outcome = match (findings.diverged.is_empty(), findings.not_proven.is_empty()) {
        (false, _) => Outcome::Diverged,
        (true, false) => Outcome::NotProven,
        (true, true) => Outcome::Equal,
    };
    Ok(findings)
}

impl Findings {
    fn diverged_partitions(&self) -> usize {
        self.diverged.iter().map(|divergence| divergence.partition).collect::<BTreeSet<_>>().len()
    }
}

/// Reads a partition on all nodes; whether that says what it is.
async fn judge(nodes: &[Node], partition: u16, findings: &mut Findings) -> anyhow::Result<bool> {
    let answers = nodes::digests(nodes, partition).await?;
    let mut diverged = false;
    for (i, answer) in answers.iter().enumerate() {
        // One to compare with is enough: whoever equals it equals all others that do.
        let Some(j) = answers[..i].iter().position(|other| other.context == answer.context) else { continue };
        if answers[j].digest == answer.digest {
            continue;
        }
        diverged = true;
        let (differences, complete) =
            differences::find(&nodes[j], &nodes[i], partition, &answer.context).await?;
        findings.diverged.push(Divergence {
            partition,
            nodes: [nodes[j].name.clone(), nodes[i].name.clone()],
            rows: [answers[j].rows, answer.rows],
            differences,
            complete,
        });
    }
    let is_equal = !diverged && answers.iter().all(|answer| answer.context == answers[0].context);
    if is_equal {
        findings.equal += 1;
        findings.rows += answers[0].rows;
    }
    Ok(diverged || is_equal)
}

/// How many commits of a partition each node lacks that another one had.
fn lacks(nodes: &[Node], partition: u16, contexts: &[BTreeMap<u16, Context>]) -> BTreeMap<String, u64> {
    let mut joined = Context::new();
    for (replica, counter) in contexts.iter().filter_map(|of| of.get(&partition)).flatten() {
        let most = joined.entry(replica.clone()).or_default();
        *most = counter.max(most).to_owned();
    }
    let lacks = |of: &BTreeMap<u16, Context>| {
        let has = |replica| of.get(&partition).and_then(|context| context.get(replica)).copied().unwrap_or(0);
        joined.iter().map(|(replica, counter)| counter - has(replica)).sum::<u64>()
    };
    let named = nodes.iter().zip(contexts).map(|(node, of)| (node.name.clone(), lacks(of)));
    named.filter(|(_, lacks)| *lacks > 0).collect()
}
