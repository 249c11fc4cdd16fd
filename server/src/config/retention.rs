//! How much of the replication log a node keeps.

use godwit_proto::Tuning;
use serde::{Deserialize, Serialize};

use super::{ConfigError, MIB, setting};

/// The least that may be kept: what the open intervals of the most partitions take is a part of it.
const LOG_BYTES_LEAST: u64 = 64 * MIB as u64;
/// Any age is safe, since who is behind every log is repaired. Less than what links are down for now and then costs a repair each time.
const LOG_AGE_MS_LEAST: u64 = 1_000;

/// How much of the replication log is kept, whoever is behind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetentionSection {
    /// Bytes of its entries, over all partitions.
    pub log_bytes: u64,
    /// How long entries are kept at most, in milliseconds.
    pub log_age_ms: u64,
    /// How long after a clear of a document the changes that it hid are kept at least, in milliseconds.
    pub cleared_documents_ms: u64,
}

impl Default for RetentionSection {
    fn default() -> Self {
        let Tuning { log_bytes_max, log_age_max_ms, sizes, .. } = Tuning::default();
        Self {
            log_bytes: log_bytes_max,
            log_age_ms: log_age_max_ms,
            cleared_documents_ms: sizes.forget_after_ms,
        }
    }
}

impl RetentionSection {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        if self.log_bytes < LOG_BYTES_LEAST {
            return Err(setting(
                "retention.log_bytes",
                format!("{} is less than {LOG_BYTES_LEAST}", self.log_bytes),
                "It should hold what is written while a peer is away; the default is 1 GiB",
            ));
        }
        if self.log_age_ms < LOG_AGE_MS_LEAST {
            return Err(setting(
                "retention.log_age_ms",
                format!("{} is less than {LOG_AGE_MS_LEAST}, a second", self.log_age_ms),
                "It should be longer than a peer is ever away; the default is a week",
            ));
        }
        Ok(())
    }
}
