//! The configuration of a node: one TOML file, every setting documented in `godwit.example.toml`.
//!
//! - A setting that is not known is refused, and so is a value that cannot work: before anything is opened, with the
//!   setting's name, what is wrong and what to do.
//! - Relative paths are relative to the file that names them, wherever the process was started.
//! - What is left out has the default that the example shows. Only who the node is has none.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use godwit_core::document::DocumentLimits;
use godwit_core::document::chunk::{CHUNK_BYTES_MAX, CHUNK_OPS_MAX};
use godwit_core::ids::MAX_PARTITIONS;
use godwit_core::op;
use godwit_core::token::TokenKey;
use godwit_engine::store::{Durability, StoreOptions};
use godwit_net::{LinkClass, PeerAddress, PeerConfig, TlsError, TlsIdentity, TransportConfig};
use godwit_proto::message::MAX_MESSAGE_BYTES;
use serde::{Deserialize, Serialize};

mod repair;
mod retention;

pub use repair::RepairSection;
pub use retention::RetentionSection;

/// The most bytes of a node's or region's name: a DNS label.
pub const NAME_BYTES_MAX: usize = 63;
/// The most bytes of a cluster's name: its authority's certificate carries it.
pub const CLUSTER_BYTES_MAX: usize = 48;

/// Bytes of the cluster's secret.
pub(crate) const SECRET_BYTES: usize = 32;

const MIB: usize = 1024 * 1024;

/// A node's configuration.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Who the node is.
    pub node: NodeSection,
    /// The API.
    #[serde(default)]
    pub http: HttpSection,
    /// Links to other nodes; without it the node runs alone.
    pub replication: Option<ReplicationSection>,
    /// What clients may do.
    #[serde(default)]
    pub limits: LimitsSection,
    /// The hybrid logical clock.
    #[serde(default)]
    pub clock: ClockSection,
    /// Logs.
    #[serde(default)]
    pub log: LogSection,
    /// How much of the replication log is kept.
    #[serde(default)]
    pub retention: RetentionSection,
    /// Repairs from peers whose logs do not reach back.
    #[serde(default)]
    pub repair: RepairSection,
    /// RocksDB.
    #[serde(default)]
    pub storage: StorageSection,
}

/// Who the node is. Fixed for the life of its data directory.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeSection {
    /// The node's name, unique in the cluster; its certificate proves it.
    pub name: String,
    /// The region that it is in.
    pub region: String,
    /// The cluster that it belongs to.
    pub cluster: String,
    /// Where its data is.
    pub data_dir: PathBuf,
    /// Hash partitions of the cluster, the same on every node.
    #[serde(default = "default_partitions")]
    pub partitions: u16,
    /// The cluster's secret, the same on every node: 32 bytes as hexadecimal digits.
    pub secret_file: Option<PathBuf>,
}

/// The API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HttpSection {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Sites whose pages may open WebSockets, as browsers say them, or `*`.
    pub origins: Vec<String>,
}

/// Links to other nodes.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReplicationSection {
    /// Where the node listens, UDP.
    pub listen: SocketAddr,
    /// Certificates of the cluster's authorities, PEM.
    pub ca: PathBuf,
    /// The node's certificate, PEM.
    pub certificate: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
    /// The other nodes.
    #[serde(default, rename = "peer")]
    pub peers: Vec<PeerSection>,
}

/// Another node.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerSection {
    /// Its name.
    pub name: String,
    /// Where it listens. The node with the smaller name dials; the other one needs no addresses.
    #[serde(default)]
    pub addresses: Vec<AddressSection>,
}

/// One way to another node.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddressSection {
    /// `host:port`.
    pub address: String,
    /// What kind of way it is: dedicated ones are tried first.
    #[serde(default)]
    pub class: AddressClass,
}

/// Kinds of ways between two nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AddressClass {
    /// A leased or private line.
    Dedicated,
    /// The public internet.
    #[default]
    Public,
}

/// What clients may do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsSection {
    /// The most bytes of a register's compact JSON.
    pub value_bytes: usize,
    /// The most fields of a record.
    pub fields: usize,
    /// The most operations of one commit.
    pub ops: usize,
    /// The most members named by one commit.
    pub members: usize,
    /// The most bytes of a request's body.
    pub body_bytes: usize,
    /// Requests for data in progress.
    pub requests: usize,
    /// Bytes of the bodies of all requests in progress.
    pub request_bytes: usize,
    /// The most bytes of values in one answer.
    pub answer_bytes: usize,
    /// Bytes of large answers in progress, those that their clients do not fetch included.
    pub answers_bytes: usize,
    /// Connections.
    pub connections: usize,
    /// Change feeds that are open; each takes a connection.
    pub feeds: usize,
    /// Clients of automerge-repo that are connected.
    pub syncs: usize,
    /// The most bytes of a document's changes, before compression.
    pub document_bytes: usize,
    /// The most operations of a document.
    pub document_ops: u64,
    /// About how much memory documents may take that are kept open.
    pub documents_bytes: usize,
    /// How long an idempotency key is remembered, in milliseconds.
    pub idempotency_window_ms: u64,
    /// Whether a write makes its namespace; otherwise requests for one that nobody made are refused.
    pub auto_create_namespaces: bool,
}

/// The hybrid logical clock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClockSection {
    /// How far ahead of this node's clock another node's stamp may be and still be followed, in milliseconds.
    pub max_drift_ms: u64,
}

/// Logs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogSection {
    /// What is logged, as `tracing` filters say it.
    pub filter: String,
    /// How.
    pub format: LogFormat,
}

/// Formats of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// RocksDB.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StorageSection {
    /// Bytes of the cache for blocks, indexes and filters.
    pub cache_bytes: usize,
    /// When a write is acknowledged.
    pub durability: DurabilitySetting,
}

/// When a write is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DurabilitySetting {
    /// After it is synced to the disk.
    #[default]
    Fsync,
    /// After it is handed to the operating system, which is synced soon after.
    Os,
}

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file, or one that it names, cannot be read.
    #[error("cannot read {}: {source}. Check the path and its permissions", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// Not TOML, or settings that do not exist, or values of the wrong kind.
    #[error("{} is not a valid configuration: {source}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
    /// A value that cannot work.
    #[error("setting {setting}: {problem}. {cure}")]
    Setting {
        /// The setting.
        setting: String,
        /// What is wrong.
        problem: String,
        /// What to do.
        cure: &'static str,
    },
    /// The certificates or the key are not usable.
    #[error(
        "section [replication]: {source}. `godwit ca issue` makes a certificate and key for a node; ca, certificate \
         and key must come from one authority"
    )]
    Identity {
        /// What is wrong.
        source: TlsError,
    },
}

fn default_partitions() -> u16 {
    64
}

impl Default for HttpSection {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 7400)), origins: Vec::new() }
    }
}

impl Default for LimitsSection {
    fn default() -> Self {
        let op::Limits { value_bytes_max, fields_max, ops_max, members_max } = op::Limits::default();
        Self {
            value_bytes: value_bytes_max,
            fields: fields_max,
            ops: ops_max,
            members: members_max,
            body_bytes: 8 * MIB,
            requests: 1024,
            request_bytes: 128 * MIB,
            answer_bytes: 16 * MIB,
            answers_bytes: 128 * MIB,
            connections: 400,
            feeds: 200,
            syncs: 200,
            document_bytes: 16 * MIB,
            document_ops: 1_000_000,
            documents_bytes: 256 * MIB,
            idempotency_window_ms: 86_400_000,
            auto_create_namespaces: true,
        }
    }
}

impl Default for ClockSection {
    fn default() -> Self {
        Self { max_drift_ms: 5_000 }
    }
}

impl Default for LogSection {
    fn default() -> Self {
        Self { filter: "info".to_string(), format: LogFormat::Text }
    }
}

impl Default for StorageSection {
    fn default() -> Self {
        Self {
            cache_bytes: StoreOptions::default().block_cache_bytes,
            durability: DurabilitySetting::default(),
        }
    }
}

impl From<AddressClass> for LinkClass {
    fn from(class: AddressClass) -> Self {
        match class {
            AddressClass::Dedicated => Self::Dedicated,
            AddressClass::Public => Self::Public,
        }
    }
}

impl From<DurabilitySetting> for Durability {
    fn from(setting: DurabilitySetting) -> Self {
        match setting {
            DurabilitySetting::Fsync => Self::Fsync,
            DurabilitySetting::Os => Self::Os,
        }
    }
}

impl Config {
    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = read(path)?;
        let parsed = toml::from_str::<Self>(&text);
        let mut config = parsed
            .map_err(|source| ConfigError::Parse { path: path.to_path_buf(), source: Box::new(source) })?;
        config.resolve(path.parent().unwrap_or(Path::new("")));
        config.validate()?;
        Ok(config)
    }

    /// Makes relative paths relative to a directory.
    fn resolve(&mut self, dir: &Path) {
        let absolute = |path: &mut PathBuf| *path = dir.join(&path);
        absolute(&mut self.node.data_dir);
        self.node.secret_file.iter_mut().for_each(absolute);
        if let Some(replication) = &mut self.replication {
            [&mut replication.ca, &mut replication.certificate, &mut replication.key]
                .into_iter()
                .for_each(absolute);
        }
    }

    /// Checks every setting. Files are not looked at: see [`Self::identity`].
    pub fn validate(&self) -> Result<(), ConfigError> {
        check_name("node.name", &self.node.name, NAME_BYTES_MAX)?;
        check_name("node.region", &self.node.region, NAME_BYTES_MAX)?;
        check_name("node.cluster", &self.node.cluster, CLUSTER_BYTES_MAX)?;
        if !(1..=MAX_PARTITIONS).contains(&self.node.partitions) {
            return Err(setting(
                "node.partitions",
                format!("{} is not between 1 and {MAX_PARTITIONS}", self.node.partitions),
                "64 suits most clusters; the number cannot be changed later and is the same on every node",
            ));
        }
        self.limits.validate()?;
        self.retention.validate()?;
        self.repair.validate()?;
        if self.storage.cache_bytes < MIB {
            return Err(setting(
                "storage.cache_bytes",
                format!("{} is less than 1 MiB", self.storage.cache_bytes),
                "Give it a quarter of the memory that the node may use",
            ));
        }
        crate::logging::filter(&self.log.filter)
            .map_err(|error| setting("log.filter", error, "Examples: info, warn, info,godwit_net=debug"))?;
        match &self.replication {
            Some(replication) => replication.validate(&self.node.name),
            None => Ok(()),
        }
    }

    /// Reads the node's certificates and key, and checks that they are this node's. `None` without replication.
    pub fn identity(&self) -> Result<Option<TlsIdentity>, ConfigError> {
        let Some(replication) = &self.replication else { return Ok(None) };
        let (ca, certificate) = (read(&replication.ca)?, read(&replication.certificate)?);
        let key = read(&replication.key)?;
        let refused = |source| ConfigError::Identity { source };
        let identity = TlsIdentity::load(&ca, &certificate, &key).map_err(refused)?;
        identity.verify_own_name(&self.node.name).map_err(refused)?;
        Ok(Some(identity))
    }

    /// Reads the key of the cluster's tokens: by its secret or, without one, by what all its nodes know.
    pub fn token_key(&self) -> Result<TokenKey, ConfigError> {
        let secret = match (&self.node.secret_file, &self.replication) {
            (Some(path), _) => Cow::Owned(secret(path, &read(path)?)?.to_vec()),
            (None, Some(replication)) => Cow::Owned(read(&replication.ca)?.into_bytes()),
            (None, None) => Cow::Borrowed(&[][..]),
        };
        Ok(TokenKey::new(&self.node.cluster, &secret))
    }

    /// What the transport is told; `None` without replication.
    pub(crate) fn transport(&self) -> Option<TransportConfig> {
        let peers = self.replication.as_ref()?.peers.iter().map(PeerSection::transport).collect();
        let mut config = TransportConfig::new(&self.node.name, peers);
        config.limits.frame_bytes_max = MAX_MESSAGE_BYTES as u32;
        Some(config)
    }
}

impl LimitsSection {
    fn validate(&self) -> Result<(), ConfigError> {
        let at_least_one = [
            ("limits.value_bytes", self.value_bytes),
            ("limits.fields", self.fields),
            ("limits.ops", self.ops),
            ("limits.members", self.members),
            ("limits.body_bytes", self.body_bytes),
            ("limits.requests", self.requests),
            ("limits.connections", self.connections),
            ("limits.feeds", self.feeds),
            ("limits.syncs", self.syncs),
            ("limits.document_bytes", self.document_bytes),
            ("limits.document_ops", self.document_ops as usize),
        ];
        if let Some((name, _)) = at_least_one.into_iter().find(|(_, value)| *value == 0) {
            return Err(setting(
                name,
                "0 would refuse everything".to_string(),
                "Leave it out for the default",
            ));
        }
        if self.document_bytes > CHUNK_BYTES_MAX || self.document_ops > CHUNK_OPS_MAX {
            return Err(setting(
                "limits.document_bytes",
                format!("{} bytes or {} operations are too many", self.document_bytes, self.document_ops),
                "A document has at most 64 MiB of changes and 4000000 operations, in every cluster",
            ));
        }
        let delta_bytes_max = godwit_core::delta::MAX_DELTA_BYTES;
        if self.value_bytes > delta_bytes_max {
            return Err(setting(
                "limits.value_bytes",
                format!("{} is more than one commit can hold", self.value_bytes),
                "A commit holds at most 12 MiB, in every cluster",
            ));
        }
        let counted =
            [("limits.requests", self.requests), ("limits.request_bytes", self.request_bytes)].into_iter();
        let counted = counted.chain([("limits.answers_bytes", self.answers_bytes)]);
        for (name, value) in counted.chain([("limits.connections", self.connections)]) {
            if value > u32::MAX as usize >> 1 {
                return Err(setting(name, format!("{value} is no limit"), "Leave it out for the default"));
            }
        }
        if self.request_bytes < self.body_bytes {
            return Err(setting(
                "limits.request_bytes",
                format!("{} is less than limits.body_bytes, {}", self.request_bytes, self.body_bytes),
                "It bounds the bodies of all requests in progress, so it must hold at least one",
            ));
        }
        if self.answer_bytes < self.value_bytes {
            return Err(setting(
                "limits.answer_bytes",
                format!("{} is less than limits.value_bytes, {}", self.answer_bytes, self.value_bytes),
                "An answer must hold at least one value",
            ));
        }
        if self.answers_bytes < self.answer_bytes {
            return Err(setting(
                "limits.answers_bytes",
                format!("{} is less than limits.answer_bytes, {}", self.answers_bytes, self.answer_bytes),
                "It bounds all large answers in progress, so it must hold at least one",
            ));
        }
        Ok(())
    }

    /// What a document may come to.
    pub(crate) fn documents(&self) -> DocumentLimits {
        DocumentLimits { bytes_max: self.document_bytes, ops_max: self.document_ops }
    }

    /// The limits that the state machine holds clients to.
    pub(crate) fn ops(&self) -> op::Limits {
        op::Limits {
            value_bytes_max: self.value_bytes,
            fields_max: self.fields,
            ops_max: self.ops,
            members_max: self.members,
        }
    }
}

impl ReplicationSection {
    fn validate(&self, own_name: &str) -> Result<(), ConfigError> {
        let mut names = BTreeSet::new();
        for (i, peer) in self.peers.iter().enumerate() {
            let at = |rest: &str| format!("replication.peer[{i}].{rest}");
            check_name(&at("name"), &peer.name, NAME_BYTES_MAX)?;
            let refuse = |problem, cure| Err(setting(&at("name"), problem, cure));
            if peer.name == own_name {
                let problem = format!("{own_name:?} is this node itself");
                return refuse(problem, "List the other nodes only");
            }
            if !names.insert(&peer.name) {
                let problem = format!("{:?} is listed twice", peer.name);
                return refuse(problem, "Give one [[replication.peer]] all addresses of that node");
            }
            if peer.addresses.is_empty() && own_name < peer.name.as_str() {
                return Err(setting(
                    &at("addresses"),
                    "there is none, and this node is the one that dials".to_string(),
                    "Of two nodes the one with the smaller name dials: say where the other one listens",
                ));
            }
            for (j, address) in peer.addresses.iter().enumerate() {
                check_address(&at(&format!("addresses[{j}].address")), &address.address)?;
            }
        }
        // What is left: numbers of peers and addresses.
        let peers = self.peers.iter().map(PeerSection::transport).collect();
        TransportConfig::new(own_name, peers)
            .validate()
            .map_err(|error| setting("replication.peer", error.to_string(), "Remove some"))
    }
}

impl PeerSection {
    fn transport(&self) -> PeerConfig {
        let address = |address: &AddressSection| PeerAddress {
            addr: address.address.clone(),
            class: address.class.into(),
        };
        PeerConfig { name: self.name.clone(), addresses: self.addresses.iter().map(address).collect() }
    }
}

/// `[a-z0-9][a-z0-9-]*`, not ending with a hyphen: what a DNS label may be, since certificates carry node names.
fn check_name(name: &str, value: &str, bytes_max: usize) -> Result<(), ConfigError> {
    let form = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let edges = value.starts_with('-') || value.ends_with('-');
    if value.is_empty() || value.len() > bytes_max || edges || !value.bytes().all(form) {
        return Err(setting(
            name,
            format!(
                "{value:?} is not 1 to {bytes_max} of a-z, 0-9 and -, beginning and ending with a letter or digit"
            ),
            "Names of nodes and regions look like eu-west-1",
        ));
    }
    Ok(())
}

fn check_address(name: &str, address: &str) -> Result<(), ConfigError> {
    let port = address.rsplit_once(':').filter(|(host, _)| !host.is_empty());
    if port.and_then(|(_, port)| port.parse::<u16>().ok()).is_none_or(|port| port == 0) {
        return Err(setting(
            name,
            format!("{address:?} is not host:port"),
            "Examples: eu-1.example.net:7401, 10.0.0.7:7401, [fd00::7]:7401",
        ));
    }
    Ok(())
}

fn secret(path: &Path, text: &str) -> Result<[u8; SECRET_BYTES], ConfigError> {
    // Hexadecimal digits of 32 bytes are a hash's text.
    blake3::Hash::from_hex(text.trim()).map(Into::into).map_err(|_| {
        let problem = format!("{} does not hold {} hexadecimal digits", path.display(), 2 * SECRET_BYTES);
        setting("node.secret_file", problem, "`godwit ca init` writes such a file; every node needs the same")
    })
}

fn setting(name: &str, problem: String, cure: &'static str) -> ConfigError {
    ConfigError::Setting { setting: name.to_string(), problem, cure }
}

fn read(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_path_buf(), source })
}

#[cfg(test)]
mod tests;
