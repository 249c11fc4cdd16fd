//! How fast states are repaired, and how often they are compared.

use godwit_proto::Tuning;
use serde::{Deserialize, Serialize};

use super::{ConfigError, MIB, setting};

const SCRUB_MS_MIN: u64 = 1000;
const SCRUB_MS_MAX: u64 = 90 * 86_400_000;

/// Repairs from peers whose logs do not reach back, and scrubs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RepairSection {
    /// Bytes of rows read in a second, for own repairs and for those that peers are served.
    pub bytes_per_s: u64,
    /// The time in which each partition is compared with every peer once, in milliseconds.
    pub scrub_every_ms: u64,
}

impl Default for RepairSection {
    fn default() -> Self {
        let tuning = Tuning::default();
        Self { bytes_per_s: tuning.repair_bytes_per_s, scrub_every_ms: tuning.scrub_us / 1000 }
    }
}

impl RepairSection {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        let least = MIB as u64;
        if self.bytes_per_s < least {
            return Err(setting(
                "repair.bytes_per_s",
                format!("{} is less than {least}, a MiB", self.bytes_per_s),
                "A repair reads a partition as a whole, on both sides; the default is 64 MiB",
            ));
        }
        if !(SCRUB_MS_MIN..=SCRUB_MS_MAX).contains(&self.scrub_every_ms) {
            return Err(setting(
                "repair.scrub_every_ms",
                format!("{} is not within {SCRUB_MS_MIN} and {SCRUB_MS_MAX}, 90 days", self.scrub_every_ms),
                "Each time all rows are read, once for every peer and once by it; the default is a day",
            ));
        }
        Ok(())
    }
}
