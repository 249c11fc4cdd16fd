//! How a node is, for operators: what it has, what its peers have, how far behind they are.

use std::collections::BTreeMap;

use godwit_core::context::VersionVector;
use godwit_core::ids::{PartitionId, ReplicaId};

use crate::node::Node;
use crate::repair::RepairsStatus;
use crate::scrub::ScrubStatus;

/// A node's view of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// The cluster's name.
    pub cluster: String,
    /// This node's name.
    pub node: String,
    /// Its region.
    pub region: String,
    /// The id under which it writes.
    pub replica: ReplicaId,
    /// The number of partitions.
    pub partitions: u16,
    /// What it has applied, by partition; empty ones left out.
    pub contexts: BTreeMap<PartitionId, VersionVector>,
    /// Bytes of deltas that wait for others that they depend on.
    pub pending_bytes: usize,
    /// Bytes of log entries that it keeps, over all partitions.
    pub log_bytes: u64,
    /// When the oldest finished interval of its logs was finished, in milliseconds since 1970; `None` if none is kept or its
    /// time is not known.
    pub log_oldest_ms: Option<u64>,
    /// Its repairs.
    pub repairs: RepairsStatus,
    /// Its scrubs.
    pub scrubs: ScrubStatus,
    /// Its peers, as far as they were ever linked.
    pub peers: BTreeMap<String, PeerStatus>,
    /// Whether every peer is linked and has told exactly the contexts that this node has. With a peer that never was
    /// linked the driver must say no.
    pub converged: bool,
}

/// A node's view of a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerStatus {
    /// Its region, once it has introduced itself.
    pub region: Option<String>,
    /// The id under which it writes.
    pub replica: Option<ReplicaId>,
    /// Whether it is linked and has told what it has.
    pub linked: bool,
    /// Commits that this node has and the peer has not told to have.
    pub commits_behind: u64,
    /// Commits that the peer has told to have and this node has not.
    pub commits_ahead: u64,
    /// Bytes sent to it and not acknowledged.
    pub in_flight_bytes: usize,
}

impl Node {
    /// The node's view of the cluster, the uncommitted batch included.
    pub fn status(&self) -> Status {
        let contexts = self.partition_ids().map(|id| (id, self.context(id).clone()));
        let contexts: BTreeMap<_, _> = contexts.filter(|(_, context)| !context.is_empty()).collect();
        let peers: BTreeMap<_, _> =
            self.peers.keys().map(|name| (name.clone(), self.peer_status(name, &contexts))).collect();
        let even = |peer: &PeerStatus| peer.linked && peer.commits_behind == 0 && peer.commits_ahead == 0;
        Status {
            cluster: self.config.cluster.clone(),
            node: self.config.node.clone(),
            region: self.config.region.clone(),
            replica: self.replica(),
            partitions: self.config.partitions,
            pending_bytes: self.pending_bytes,
            log_bytes: self.partitions.iter().map(|partition| partition.log_bytes()).sum(),
            log_oldest_ms: self.partitions.iter().filter_map(|partition| partition.log_oldest_ms()).min(),
            repairs: self.repairs_status(),
            scrubs: self.scrubs.status(),
            converged: peers.values().all(even),
            contexts,
            peers,
        }
    }

    fn peer_status(&self, name: &str, contexts: &BTreeMap<PartitionId, VersionVector>) -> PeerStatus {
        let peer = &self.peers[name];
        let nothing = VersionVector::new();
        let (mut behind, mut ahead) = (0u64, 0u64);
        for id in self.partition_ids() {
            let here = contexts.get(&id).unwrap_or(&nothing);
            let there = peer.known.get(&id).unwrap_or(&nothing);
            behind = beyond(here, there, peer.replica()).saturating_add(behind);
            ahead = beyond(there, here, None).saturating_add(ahead);
        }
        PeerStatus {
            region: peer.hello.as_ref().map(|hello| hello.region.clone()),
            replica: peer.replica(),
            linked: peer.synced().is_some(),
            commits_behind: behind,
            commits_ahead: ahead,
            in_flight_bytes: peer.session.as_ref().map_or(0, |session| session.push.in_flight_bytes()),
        }
    }
}

/// Commits that one context covers and the other does not, those of one replica left out: a peer has its own commits
/// before it tells of them.
fn beyond(context: &VersionVector, other: &VersionVector, but: Option<ReplicaId>) -> u64 {
    let dots = context.iter().filter(|dot| Some(dot.replica) != but);
    // Saturating: a peer may tell nonsense.
    dots.fold(0, |sum: u64, dot| sum.saturating_add(dot.counter.saturating_sub(other.get(dot.replica))))
}
