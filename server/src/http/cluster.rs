//! `/v1/_cluster`: what this node knows of the cluster, and how far apart its nodes are.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use axum::http::Uri;
use axum::response::Response;
use godwit_core::digest;
use godwit_core::ids::PartitionId;
use godwit_core::partition::stored_context;
use godwit_core::store::{StoreError, StoreRead};
use godwit_net::{LinkClass, LinkStatus};
use godwit_proto::repair::{Phase, RepairsStatus};
use godwit_proto::scrub::ScrubStatus;
use godwit_proto::status::{PeerStatus, Status};
use serde::Serialize;
use utoipa::ToSchema;

use super::contract::schemas;
use super::digests::{Context, context_body};
use super::problem::Problem;
use super::request::Query;
use super::time::{rfc3339, rfc3339_system};
use super::{Api, respond};
use crate::config::AddressClass;

#[derive(Serialize, ToSchema)]
#[schema(as = Cluster)]
pub(super) struct ClusterBody {
    cluster: String,
    partitions: u16,
    /// The node that answers.
    node: String,
    /// Whether every other node is linked and has told exactly what this node has.
    converged: bool,
    /// Names of nodes by region; those whose region is not known yet are left out.
    regions: BTreeMap<String, Vec<String>>,
    nodes: Vec<NodeBody>,
    links: Vec<LinkBody>,
    /// Bytes of commits that wait for others that they depend on.
    pending_bytes: usize,
    /// Bytes of the log's entries that this node keeps.
    log_bytes: u64,
    /// When the oldest of them were written, as far as is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<schemas::Time>)]
    log_since: Option<String>,
    /// Partitions whose state is got from a peer.
    repairs: RepairsBody,
    /// Comparisons of partitions with peers.
    scrubs: ScrubsBody,
    /// What this node has applied: by partition, the last counter of each replica. Empty partitions are left out.
    #[schema(value_type = schemas::Contexts)]
    contexts: BTreeMap<u16, Context>,
    #[serde(skip_serializing_if = "Option::is_none")]
    digests: Option<DigestsBody>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Scrubs)]
struct ScrubsBody {
    /// Made, since the start.
    compared: u64,
    /// Begun and not ended, since the start: the peer was not reached, or a repair went first.
    given_up: u64,
    /// Rows that this node had lost, and were put back.
    rows_missing: u64,
    /// Rows found with other contents than a peer's.
    rows_altered: u64,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Repairs)]
struct RepairsBody {
    /// The one that is under way.
    #[serde(skip_serializing_if = "Option::is_none")]
    under_way: Option<RepairBody>,
    /// Partitions that wait for theirs.
    waiting: usize,
    /// Partitions whose repaired rows are shown, and are being moved to their places.
    settling: usize,
    /// Repairs that peers are served.
    serving: usize,
    /// Since the start, as all that follows.
    done: u64,
    given_up: u64,
    bytes_received: u64,
    bytes_sent: u64,
    /// Rows of this node that peers had no more.
    rows_dropped: u64,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Repair)]
struct RepairBody {
    partition: u16,
    peer: String,
    /// `rows`: they come; `comparing`: what both sides know of is compared.
    #[schema(value_type = schemas::RepairPhase)]
    phase: &'static str,
    /// How much of the partition the phase has passed, in thousandths.
    permille: u16,
    /// Rows that came.
    rows: u64,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Node)]
struct NodeBody {
    name: String,
    #[schema(required)]
    region: Option<String>,
    #[schema(required)]
    replica: Option<String>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Link)]
struct LinkBody {
    peer: String,
    /// Whether there is a connection.
    up: bool,
    /// Whether the peer has told on it what it has.
    synced: bool,
    #[schema(required)]
    address: Option<String>,
    #[schema(required, value_type = Option<schemas::LinkClass>)]
    class: Option<AddressClass>,
    #[schema(required)]
    rtt_us: Option<u64>,
    #[schema(required, value_type = Option<schemas::Time>)]
    since: Option<String>,
    /// Commits that this node has and the peer has not told to have.
    commits_behind: u64,
    /// Commits that the peer has told to have and this node has not.
    commits_ahead: u64,
    /// Bytes of commits sent to it and not acknowledged.
    in_flight_bytes: usize,
    /// Bytes that wait to be written to the connection.
    queue_bytes: usize,
    connects: u64,
    bytes_sent: u64,
    bytes_received: u64,
    packets_lost: u64,
    #[schema(required)]
    last_error: Option<String>,
}

/// Digests of state: equal on two nodes exactly if they hold the same.
#[derive(Serialize, ToSchema)]
#[schema(as = Digests)]
struct DigestsBody {
    /// Over all partitions.
    #[schema(value_type = schemas::Blake3)]
    all: String,
    /// Of those that are not empty.
    #[schema(value_type = schemas::PartitionDigests)]
    partitions: BTreeMap<u16, String>,
}

/// `GET`: the cluster as this node knows it, and whether it has converged.
#[utoipa::path(
    get, path = "/v1/_cluster", operation_id = "readCluster", tag = "node",
    params(("digests" = Option<bool>, Query, description = "Digests of the state, for which all data is read.")),
    responses(
        (status = 200, description = "The cluster.", body = ClusterBody),
        (status = 400, description = "malformed"),
        (status = 500, description = "internal"),
        (status = 503, description = "stopping"),
    )
)]
pub(super) async fn read(State(api): State<Api>, uri: Uri) -> Result<Response, Problem> {
    let query = Query::parse(uri.query(), &["digests"])?;
    let digests = if query.is_true("digests")? {
        // It goes with the read, which goes on if the client leaves.
        let turn = Arc::clone(&api.digests).lock_owned().await;
        let partitions = api.node.partitions();
        let read = api.node.read(move |store| {
            let _turn = turn;
            digest_all(store, partitions)
        });
        Some(read.await?)
    } else {
        None
    };
    let status = api.node.status().await?;
    let links = api.node.links();
    respond::json(&body(status, api.node.peers(), links, digests))
}

fn repairs(status: RepairsStatus) -> RepairsBody {
    let under_way = status.under_way.map(|repair| RepairBody {
        partition: repair.partition.0,
        peer: repair.peer,
        phase: match repair.phase {
            Phase::Rows => "rows",
            Phase::Comparing => "comparing",
        },
        permille: repair.permille,
        rows: repair.rows,
    });
    let RepairsStatus { waiting, settling, serving, done, given_up, .. } = status;
    let RepairsStatus { bytes_received, bytes_sent, rows_dropped, .. } = status;
    RepairsBody {
        under_way,
        waiting,
        settling,
        serving,
        done,
        given_up,
        bytes_received,
        bytes_sent,
        rows_dropped,
    }
}

fn scrubs(status: ScrubStatus) -> ScrubsBody {
    let ScrubStatus { compared, given_up, rows_missing, rows_altered } = status;
    ScrubsBody { compared, given_up, rows_missing, rows_altered }
}

fn body(
    status: Status,
    peers: &[String],
    links: Vec<LinkStatus>,
    digests: Option<DigestsBody>,
) -> ClusterBody {
    // The machine knows peers once they were linked; those of the configuration are all there are.
    let met_all = peers.iter().all(|peer| status.peers.contains_key(peer));
    let mut nodes = vec![NodeBody {
        name: status.node.clone(),
        region: Some(status.region.clone()),
        replica: Some(status.replica.to_string()),
    }];
    nodes.extend(peers.iter().map(|name| {
        let peer = status.peers.get(name);
        NodeBody {
            name: name.clone(),
            region: peer.and_then(|peer| peer.region.clone()),
            replica: peer.and_then(|peer| peer.replica).map(|replica| replica.to_string()),
        }
    }));
    nodes.sort_by(|a, b| a.name.cmp(&b.name));
    let mut regions: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for node in &nodes {
        if let Some(region) = &node.region {
            regions.entry(region.clone()).or_default().push(node.name.clone());
        }
    }
    let links = links.into_iter().map(|link| {
        let peer = status.peers.get(&link.peer);
        link_body(link, peer)
    });
    ClusterBody {
        links: links.collect(),
        cluster: status.cluster,
        partitions: status.partitions,
        node: status.node,
        converged: status.converged && met_all,
        regions,
        nodes,
        pending_bytes: status.pending_bytes,
        log_bytes: status.log_bytes,
        log_since: status.log_oldest_ms.map(rfc3339),
        repairs: repairs(status.repairs),
        scrubs: scrubs(status.scrubs),
        contexts: status.contexts.iter().map(|(id, context)| (id.0, context_body(context))).collect(),
        digests,
    }
}

fn link_body(link: LinkStatus, peer: Option<&PeerStatus>) -> LinkBody {
    let up = link.up.as_ref();
    LinkBody {
        up: up.is_some(),
        synced: peer.is_some_and(|peer| peer.linked),
        address: up.map(|up| up.remote.to_string()),
        class: up.and_then(|up| up.class).map(|class| match class {
            LinkClass::Dedicated => AddressClass::Dedicated,
            LinkClass::Public => AddressClass::Public,
        }),
        rtt_us: up.map(|up| u64::try_from(up.rtt.as_micros()).unwrap_or(u64::MAX)),
        since: up.map(|up| rfc3339_system(up.connected_since)),
        commits_behind: peer.map_or(0, |peer| peer.commits_behind),
        commits_ahead: peer.map_or(0, |peer| peer.commits_ahead),
        in_flight_bytes: peer.map_or(0, |peer| peer.in_flight_bytes),
        queue_bytes: up.map_or(0, |up| up.outbound_queue_bytes),
        connects: link.connects,
        bytes_sent: link.udp_bytes_sent,
        bytes_received: link.udp_bytes_received,
        packets_lost: link.packets_lost,
        last_error: link.last_error,
        peer: link.peer,
    }
}

fn digest_all(store: &impl StoreRead, partitions: u16) -> Result<DigestsBody, StoreError> {
    let mut all = blake3::Hasher::new_derive_key("godwit 2026 node state");
    let mut by_partition = BTreeMap::new();
    for id in (0..partitions).map(PartitionId) {
        let context = stored_context(store, id)?;
        let digest = digest::partition(store, id, &context)?;
        all.update(&digest);
        if !context.is_empty() {
            by_partition.insert(id.0, blake3::Hash::from(digest).to_hex().to_string());
        }
    }
    Ok(DigestsBody { all: all.finalize().to_hex().to_string(), partitions: by_partition })
}
