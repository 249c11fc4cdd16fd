//! The scenario file, read strictly: what is unknown or out of its limits is refused, with what to do instead.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::faults::{self, Step};
use super::workload::{self, Workload};
use super::{ScenarioError, units};
use crate::network::LinkConfig;

/// The most bytes of a scenario file.
pub const FILE_BYTES_MAX: usize = 1024 * 1024;
/// The most regions.
pub const REGIONS_MAX: usize = 8;
/// The most nodes, over all regions.
pub const NODES_MAX: usize = 16;
/// The most partitions.
pub const PARTITIONS_MAX: u16 = 64;
/// The longest that clients may go on.
pub const DURATION_US_MAX: u64 = 24 * 3_600_000_000;
/// The longest wait for agreement after that.
pub const SETTLE_US_MAX: u64 = 24 * 3_600_000_000;

const NAME_BYTES_MAX: usize = 40;
const TITLE_BYTES_MAX: usize = 2_000;
const DELAY_US_MAX: u64 = 60_000_000;
const LOCAL_LATENCY_US: u64 = 250;

/// A scenario, checked.
#[derive(Debug)]
pub(super) struct Scenario {
    pub(super) title: String,
    pub(super) about: String,
    pub(super) seed: u64,
    pub(super) duration_us: u64,
    pub(super) settle_us: u64,
    pub(super) partitions: u16,
    pub(super) regions: Vec<Region>,
    /// Between two regions, the smaller place first.
    pub(super) links: BTreeMap<(usize, usize), LinkConfig>,
    /// Between nodes of one region.
    pub(super) local: LinkConfig,
    pub(super) faults: Vec<Step>,
    pub(super) workload: Workload,
}

/// A region.
#[derive(Debug)]
pub(super) struct Region {
    pub(super) name: String,
    /// Its nodes among all.
    pub(super) nodes: Vec<usize>,
    pub(super) fsync_us: u64,
    pub(super) client_us: u64,
    /// How fast its clients ask, over all of them, in operations an hour.
    pub(super) per_hour: u64,
    pub(super) clients: usize,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawScenario {
    title: String,
    #[serde(default)]
    about: String,
    #[serde(default = "one")]
    seed: u64,
    duration: String,
    settle: Option<String>,
    partitions: Option<u16>,
    #[serde(default)]
    region: Vec<RawRegion>,
    #[serde(default)]
    link: Vec<RawLink>,
    faults: Option<Script>,
    workload: RawWorkload,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRegion {
    name: String,
    nodes: Option<usize>,
    fsync: Option<String>,
    client_round_trip: Option<String>,
    clients: Option<usize>,
    rate: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLink {
    between: Vec<String>,
    latency: String,
    jitter: Option<String>,
    bandwidth: Option<String>,
    loss: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "a text or an array of texts like \"10 s: cut eu from us\"")]
enum Script {
    One(String),
    Many(Vec<String>),
}

/// What clients do, as written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawWorkload {
    pub(super) ycsb: Option<String>,
    pub(super) trace: Option<String>,
    #[serde(default)]
    pub(super) request: Vec<RawRequest>,
    pub(super) namespace: Option<String>,
    pub(super) records: Option<usize>,
    pub(super) clients: Option<usize>,
    pub(super) rate: Option<String>,
}

/// A kind of request, as written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRequest {
    pub(super) weight: Option<u64>,
    pub(super) method: String,
    pub(super) path: String,
    pub(super) body: Option<String>,
}

fn one() -> u64 {
    1
}

/// Reads a scenario; `open` reads a file that it names.
pub(super) fn parse(
    text: &str,
    open: &dyn Fn(&str) -> Result<String, String>,
) -> Result<Scenario, ScenarioError> {
    if text.len() > FILE_BYTES_MAX {
        return Err(ScenarioError(format!(
            "the file has more than {FILE_BYTES_MAX} bytes, which is the limit"
        )));
    }
    let raw: RawScenario = toml::from_str(text).map_err(|error| ScenarioError(error.to_string()))?;
    checked(raw, open).map_err(ScenarioError)
}

fn checked(raw: RawScenario, open: &dyn Fn(&str) -> Result<String, String>) -> Result<Scenario, String> {
    if raw.title.trim().is_empty() || raw.title.len() + raw.about.len() > TITLE_BYTES_MAX {
        return Err(format!("`title` must not be empty, and with `about` at most {TITLE_BYTES_MAX} bytes"));
    }
    let duration_us = within("duration", &raw.duration, 1_000_000, DURATION_US_MAX)?;
    let settle = raw.settle.as_deref().unwrap_or("30 min");
    let settle_us = within("settle", settle, 0, SETTLE_US_MAX)?;
    let partitions = raw.partitions.unwrap_or(8);
    if !(1..=PARTITIONS_MAX).contains(&partitions) {
        return Err(format!("`partitions` must be from 1 to {PARTITIONS_MAX}"));
    }
    let regions = regions(&raw)?;
    let links = links(&raw.link, &regions)?;
    let script = match raw.faults {
        None => String::new(),
        Some(Script::One(script)) => script,
        Some(Script::Many(steps)) => steps.join("\n"),
    };
    let faults = faults::parse(&script, &regions)?;
    if let Some(late) = faults.iter().find(|step| step.at_us >= duration_us) {
        return Err(format!(
            "fault {:?} comes after the end: make `duration` longer, or the fault earlier",
            late.text
        ));
    }
    let workload = workload::read(&raw.workload, &regions, duration_us, open)?;
    let mut regions = regions;
    if let Workload::Drawn { per_hour: Some(given), .. } = &workload {
        // No rate was told: that of the workload's own file, spread over all regions.
        let each = given.div_ceil(regions.len() as u64);
        regions.iter_mut().filter(|region| region.per_hour == 0).for_each(|region| region.per_hour = each);
    }
    let local =
        LinkConfig { latency_us: LOCAL_LATENCY_US, jitter_us: 0, bytes_per_second: None, lost_of_million: 0 };
    Ok(Scenario {
        title: raw.title,
        about: raw.about,
        seed: raw.seed,
        duration_us,
        settle_us,
        partitions,
        regions,
        links,
        local,
        faults,
        workload,
    })
}

fn within(name: &str, text: &str, least_us: u64, most_us: u64) -> Result<u64, String> {
    let us = units::duration_us(text).map_err(|error| format!("`{name}`: {error}"))?;
    if (least_us..=most_us).contains(&us) {
        return Ok(us);
    }
    Err(format!("`{name}` must be from {} to {}", units::shown_us(least_us), units::shown_us(most_us)))
}

fn regions(raw: &RawScenario) -> Result<Vec<Region>, String> {
    if !(1..=REGIONS_MAX).contains(&raw.region.len()) {
        return Err(format!(
            "there must be 1 to {REGIONS_MAX} regions: write [[region]] and a name for each"
        ));
    }
    let mut regions: Vec<Region> = Vec::new();
    let mut count = 0;
    for given in &raw.region {
        let name = given.name.clone();
        let is_word = name.chars().all(|c| c.is_alphanumeric() || c == '-' || c == '_');
        if name.is_empty() || name.len() > NAME_BYTES_MAX || !is_word {
            return Err(format!(
                "region {name:?}: a name is letters, digits, - and _, at most {NAME_BYTES_MAX} bytes"
            ));
        }
        if regions.iter().any(|region| region.name == name) {
            return Err(format!("there are two regions {name:?}: give each a name of its own"));
        }
        let nodes = given.nodes.unwrap_or(1);
        if nodes == 0 || count + nodes > NODES_MAX {
            return Err(format!(
                "region {name:?}: each region has 1 node or more, and all together {NODES_MAX} at most"
            ));
        }
        let delay = |what: &str, text: &Option<String>, usual: &str| {
            within(what, text.as_deref().unwrap_or(usual), 0, DELAY_US_MAX)
                .map_err(|error| format!("region {name:?}: {error}"))
        };
        let rate = given.rate.as_deref().or(raw.workload.rate.as_deref());
        let per_hour = rate.map(units::per_hour).transpose();
        let clients = given.clients.or(raw.workload.clients).unwrap_or(8);
        if clients > workload::CLIENTS_MAX {
            return Err(format!("region {name:?}: at most {} clients", workload::CLIENTS_MAX));
        }
        regions.push(Region {
            nodes: (count..count + nodes).collect(),
            fsync_us: delay("fsync", &given.fsync, "1 ms")?,
            client_us: delay("client_round_trip", &given.client_round_trip, "1 ms")?,
            per_hour: per_hour.map_err(|error| format!("region {name:?}: `rate`: {error}"))?.unwrap_or(0),
            clients,
            name,
        });
        count += nodes;
    }
    Ok(regions)
}

fn links(raw: &[RawLink], regions: &[Region]) -> Result<BTreeMap<(usize, usize), LinkConfig>, String> {
    let mut links = BTreeMap::new();
    for link in raw {
        let shown = link.between.join(", ");
        let places: Vec<usize> = link
            .between
            .iter()
            .filter_map(|name| regions.iter().position(|region| region.name == *name))
            .collect();
        let &[a, b] = &places[..] else {
            return Err(format!("link between [{shown}]: name two regions that are declared as [[region]]"));
        };
        if a == b || link.between.len() != 2 {
            return Err(format!("link between [{shown}]: name two different regions"));
        }
        let told = |error: String| format!("link between [{shown}]: {error}");
        let delay = |what: &str, text: &str| within(what, text, 0, DELAY_US_MAX).map_err(told);
        let config = LinkConfig {
            latency_us: delay("latency", &link.latency)?,
            jitter_us: link.jitter.as_deref().map_or(Ok(0), |text| delay("jitter", text))?,
            bytes_per_second: link
                .bandwidth
                .as_deref()
                .map(units::bytes_per_second)
                .transpose()
                .map_err(told)?,
            lost_of_million: link.loss.as_deref().map_or(Ok(0), units::millionths).map_err(told)?,
        };
        if links.insert((a.min(b), a.max(b)), config).is_some() {
            return Err(format!("link between [{shown}]: it is there twice; a link goes both ways"));
        }
    }
    let mut reached = vec![0];
    while let Some(next) = (0..regions.len()).find(|next| {
        let linked = |at: &usize| links.contains_key(&(*at.min(next), *at.max(next)));
        !reached.contains(next) && reached.iter().any(linked)
    }) {
        reached.push(next);
    }
    match (0..regions.len()).find(|region| !reached.contains(region)) {
        None => Ok(links),
        Some(alone) => Err(format!(
            "no links lead from region {:?} to region {:?}: write [[link]] with between = [\"{0}\", \"{1}\"] and a latency",
            regions[0].name, regions[alone].name
        )),
    }
}
