//! Who a node is: written into its data directory once, checked at every start.
//!
//! - The identity is durable before anything is written under it, and never changes afterwards: rows carry the
//!   replica id, and keys carry a partition that depends on the number of partitions.
//! - A start with other settings than the stored ones is refused. The usual cause is a data directory that
//!   belongs to another node, and going on would let two nodes write under one name, or two clusters mix.
//! - A store that has data but no identity is damaged and refused: a new replica id would not make it whole.

use std::ops::ControlFlow;
use std::os::unix::fs::MetadataExt;

use godwit_core::codec::{self, CodecError};
use godwit_core::ids::ReplicaId;
use godwit_core::keys;
use godwit_core::store::{Batch, Family, StoreError, StoreRead};

use crate::store::RocksStore;

const IDENTITY_VERSION: u8 = 1;
const PLACE_VERSION: u8 = 1;
/// By which the directory is recognised.
const PLACE_FILE: &str = "GODWIT-PLACE";

/// What the configuration says about a node. Nothing here is checked but for equality with what is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeSettings {
    /// The cluster's name.
    pub cluster: String,
    /// The node's name, unique in the cluster.
    pub node: String,
    /// The region that the node is in.
    pub region: String,
    /// Hash partitions of the cluster, fixed for its life.
    pub partitions: u16,
}

/// A node's identity as its data directory holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The cluster's name.
    pub cluster: String,
    /// The node's name, unique in the cluster.
    pub node: String,
    /// The region that the node is in.
    pub region: String,
    /// The replica id that the first release wrote under. Later ones take an id for each incarnation, which the protocol's
    /// machine keeps.
    pub replica: ReplicaId,
    /// Hash partitions of the cluster.
    pub partitions: u16,
}

/// Why a node does not start on this data directory with these settings.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// Another cluster's data.
    #[error(
        "the data directory belongs to cluster {stored:?}, the configuration says {configured:?}: correct the \
         configuration, or use an empty data directory to join the other cluster"
    )]
    Cluster {
        /// In the data directory.
        stored: String,
        /// In the configuration.
        configured: String,
    },
    /// Another node's data.
    #[error(
        "the data directory belongs to node {stored:?}, the configuration says {configured:?}: correct the \
         configuration; a new node needs an empty data directory"
    )]
    Node {
        /// In the data directory.
        stored: String,
        /// In the configuration.
        configured: String,
    },
    /// Another region's data.
    #[error(
        "the data directory belongs to region {stored:?}, the configuration says {configured:?}: a node cannot \
         move or rename its region; correct the configuration, or start a new node on an empty data directory"
    )]
    Region {
        /// In the data directory.
        stored: String,
        /// In the configuration.
        configured: String,
    },
    /// Another placement of keys.
    #[error(
        "the data directory was created with {stored} partitions, the configuration says {configured}: the \
         number is fixed for the life of a cluster; set it back to {stored}"
    )]
    Partitions {
        /// In the data directory.
        stored: u16,
        /// In the configuration.
        configured: u16,
    },
    /// Data without an owner.
    #[error(
        "the data directory holds data (family {}) but no identity: it is damaged; restore a backup, or use an \
         empty data directory, so that the node copies its data from its peers",
        family.name()
    )]
    Missing {
        /// A family that is not empty.
        family: Family,
    },
    /// Reading, decoding or writing it failed.
    #[error("the node's identity could not be read or written: {0}")]
    Store(#[from] StoreError),
}

/// The identity that the store holds, checked against the settings; in a new store, one with a replica id from
/// `new_replica`, durable when this returns.
///
/// To be called before anything else is written. `new_replica` must draw at random: ids of 64 bits are unique
/// by probability alone.
pub fn load_or_create(
    store: &RocksStore,
    settings: &NodeSettings,
    new_replica: impl FnOnce() -> ReplicaId,
) -> Result<Identity, IdentityError> {
    match store.get(Family::Meta, keys::IDENTITY)? {
        Some(bytes) => {
            let identity = decode(&bytes).map_err(StoreError::damaged("meta: identity"))?;
            check(&identity, settings)?;
            Ok(identity)
        }
        None => create(store, settings, new_replica()),
    }
}

/// Where a data directory stands.
#[derive(Debug)]
pub struct Place {
    /// Whether its last process used this very directory, as far as can be told.
    pub is_same: bool,
    /// What is to be stored under [`keys::PLACE`] for the next process, in the batch that removes the last one's mark of
    /// a clean stop: a copy that is stopped between the two would pass for the original.
    pub note: Vec<u8>,
}

/// Looks whether the store stands where its last process left it: not on a copy of its directory, nor on one that was
/// restored from files.
///
/// A file in the directory is recognised by its inode and time of creation, which a copy does not keep. A copy of the
/// whole disk, and a disk that was rolled back, keep both.
pub fn place(store: &RocksStore) -> Result<Place, IdentityError> {
    let failed = |error: std::io::Error| StoreError::Io(format!("the file {PLACE_FILE}: {error}"));
    let file = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(store.path().join(PLACE_FILE))
        .map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    let created = metadata.created().ok().and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
    let place = (metadata.ino(), created.map_or(0, |since| since.as_nanos() as u64));
    let note = codec::encode(PLACE_VERSION, &place);
    Ok(Place { is_same: store.get(Family::Meta, keys::PLACE)?.as_ref() == Some(&note), note })
}

fn check(identity: &Identity, settings: &NodeSettings) -> Result<(), IdentityError> {
    let differ = |stored: &String, configured: &String| {
        (stored != configured).then(|| (stored.clone(), configured.clone()))
    };
    if let Some((stored, configured)) = differ(&identity.cluster, &settings.cluster) {
        return Err(IdentityError::Cluster { stored, configured });
    }
    if let Some((stored, configured)) = differ(&identity.node, &settings.node) {
        return Err(IdentityError::Node { stored, configured });
    }
    if let Some((stored, configured)) = differ(&identity.region, &settings.region) {
        return Err(IdentityError::Region { stored, configured });
    }
    if identity.partitions != settings.partitions {
        return Err(IdentityError::Partitions {
            stored: identity.partitions,
            configured: settings.partitions,
        });
    }
    Ok(())
}

fn create(
    store: &RocksStore,
    settings: &NodeSettings,
    replica: ReplicaId,
) -> Result<Identity, IdentityError> {
    if let Some(family) = family_with_data(store)? {
        return Err(IdentityError::Missing { family });
    }
    let NodeSettings { cluster, node, region, partitions } = settings.clone();
    let identity = Identity { cluster, node, region, replica, partitions };
    let mut batch = Batch::default();
    batch.put(Family::Meta, keys::IDENTITY.to_vec(), encode(&identity));
    store.commit(&batch)?;
    Ok(identity)
}

fn family_with_data(store: &RocksStore) -> Result<Option<Family>, StoreError> {
    for family in Family::ALL {
        let mut found = false;
        // Only the format version is there before the identity.
        store.scan(family, &[], &[u8::MAX], &mut |key, _| {
            found = (family, key) != (Family::Meta, keys::FORMAT);
            if found { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        if found {
            return Ok(Some(family));
        }
    }
    Ok(None)
}

fn encode(identity: &Identity) -> Vec<u8> {
    let Identity { cluster, node, region, replica, partitions } = identity.clone();
    codec::encode(IDENTITY_VERSION, &(cluster, node, region, replica, partitions))
}

fn decode(bytes: &[u8]) -> Result<Identity, CodecError> {
    let (cluster, node, region, replica, partitions) = codec::decode(IDENTITY_VERSION, bytes)?;
    Ok(Identity { cluster, node, region, replica, partitions })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stored_bytes_are_part_of_the_format() {
        let identity = Identity {
            cluster: "c".to_string(),
            node: "n1".to_string(),
            region: "eu".to_string(),
            replica: ReplicaId(0x0102_0304_0506_0708),
            partitions: 64,
        };
        let golden = b"\x01\x01c\x02n1\x02eu\xfd\x08\x07\x06\x05\x04\x03\x02\x01\x40";
        assert_eq!(encode(&identity), golden);
        assert_eq!(decode(golden), Ok(identity));
    }
}
