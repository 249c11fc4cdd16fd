//! Scenarios: what the clients of a cluster would see, told in a file.
//!
//! An app engineer names regions, links, faults with their times, and a workload in the HTTP API's operations. The run goes
//! through the machines of the server on simulated disks, links and clocks ([`crate::world`]), and is the same, byte for
//! byte, each time. `docs/SCENARIOS.md` is the reference.
//!
//! | module | holds |
//! |---|---|
//! | `config`, `units`, `faults` | the file |
//! | `requests`, `ycsb`, `workload` | what clients ask for |
//! | `drive` | the run |
//! | `measure`, `conflicts`, `counters` | what is looked at |
//! | [`report`], `text`, `html` | what is told of it |

mod config;
pub mod conflicts;
mod counters;
mod drive;
mod faults;
mod html;
mod measure;
pub mod report;
mod requests;
mod text;
mod units;
mod workload;
mod ycsb;

use std::fmt;

pub use report::Report;

/// Why a scenario cannot be run, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScenarioError(pub String);

impl fmt::Display for ScenarioError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ScenarioError {}

/// Runs a scenario, given as TOML; `open` reads a file that it names (a YCSB property file, a trace).
///
/// # Errors
/// If the file is not a scenario, is beyond a limit, or the cluster does not hold what it must.
pub fn run(text: &str, open: &dyn Fn(&str) -> Result<String, String>) -> Result<Report, ScenarioError> {
    drive::run(config::parse(text, open)?)
}

impl Report {
    /// For terminals.
    pub fn text(&self) -> String {
        text::of(self)
    }

    /// For browsers: one file that needs no other.
    pub fn html(&self) -> String {
        html::of(self)
    }

    /// For programs: one JSON object, its members in a fixed order.
    pub fn json(&self) -> String {
        // Numbers, texts and lists always can be written.
        let json = serde_json::to_string_pretty(self).expect("a report is JSON");
        json + "\n"
    }
}
