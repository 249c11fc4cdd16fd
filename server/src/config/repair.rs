//! How fast states are repaired.

use godwit_proto::Tuning;
use serde::{Deserialize, Serialize};

use super::{ConfigError, MIB, setting};

/// Repairs from peers whose logs do not reach back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RepairSection {
    /// Bytes of rows read in a second, for own repairs and for those that peers are served.
    pub bytes_per_s: u64,
}

impl Default for RepairSection {
    fn default() -> Self {
        Self { bytes_per_s: Tuning::default().repair_bytes_per_s }
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
        Ok(())
    }
}
