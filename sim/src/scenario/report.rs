//! What a scenario came to. Its JSON is this, field by field; all times are microseconds since the clients began.

use serde::Serialize;

use super::conflicts::Conflict;
use super::drive::Drive;

/// Upper bounds of the histogram of staleness, in microseconds; the last bucket has none.
pub const BOUNDS_US: [u64; 15] = [
    10_000,
    20_000,
    50_000,
    100_000,
    200_000,
    500_000,
    1_000_000,
    2_000_000,
    5_000_000,
    10_000_000,
    30_000_000,
    60_000_000,
    600_000_000,
    1_800_000_000,
    3_600_000_000,
];

/// The version of the form of the JSON.
pub const REPORT_VERSION: u32 = 1;

/// Everything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// [`REPORT_VERSION`].
    pub version: u32,
    /// The scenario's title.
    pub title: String,
    /// Its comment.
    pub about: String,
    /// Its seed.
    pub seed: u64,
    /// How long clients went on.
    pub duration_us: u64,
    /// The regions.
    pub regions: Vec<RegionReport>,
    /// The fault script.
    pub faults: Vec<FaultReport>,
    /// What clients saw, by region and kind of operation.
    pub clients: Vec<ClientReport>,
    /// How stale reads were.
    pub reads: ReadReport,
    /// How long a commit took to other regions.
    pub staleness: Vec<StalenessReport>,
    /// The same over all pairs of regions.
    pub histogram: Vec<Bucket>,
    /// What met without having seen each other.
    pub conflicts: ConflictReport,
    /// Counters, those with the most increments first.
    pub counters: Vec<CounterReport>,
    /// What links carried.
    pub links: Vec<LinkReport>,
    /// How long agreement took after each heal and return.
    pub heals: Vec<HealReport>,
    /// The end.
    pub end: EndReport,
    /// The run in equal parts.
    pub timeline: Vec<Part>,
    /// The digest of all events of the run: equal for equal files and builds.
    pub trace_digest: String,
}

/// A region.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RegionReport {
    /// Its name.
    pub name: String,
    /// Its nodes.
    pub nodes: usize,
    /// Its clients.
    pub clients: usize,
}

/// A fault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FaultReport {
    /// When.
    pub at_us: u64,
    /// As it was written.
    pub what: String,
}

/// Percentiles of times.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Times {
    /// Half are at most this.
    pub p50_us: u64,
    /// 99 of 100 are at most this.
    pub p99_us: u64,
    /// All are at most this.
    pub max_us: u64,
}

impl Times {
    /// Of these, in any order.
    pub(super) fn of(times_us: &[u64]) -> Self {
        let mut sorted = times_us.to_vec();
        sorted.sort_unstable();
        let at = |per_cent: usize| {
            let rank = (sorted.len() * per_cent).div_ceil(100).max(1);
            sorted.get(rank - 1).copied().unwrap_or(0)
        };
        Self { p50_us: at(50), p99_us: at(99), max_us: at(100) }
    }
}

/// Operations of one kind in one region.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ClientReport {
    /// The region.
    pub region: String,
    /// `read`, `list`, `write` or `read-modify-write`.
    pub operation: String,
    /// Operations that were answered as they should be.
    pub answered: u64,
    /// Those that were refused.
    pub refused: u64,
    /// Those that no node answered: none was up, or it crashed meanwhile.
    pub unanswered: u64,
    /// How long answers took, the clients' way to the node and back included.
    pub latency: Times,
    /// Why the first of the refused was refused.
    pub first_refusal: Option<String>,
}

/// Reads and listings.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct ReadReport {
    /// All that were answered.
    pub reads: u64,
    /// Those that missed a commit that a client elsewhere had been told of.
    pub missed: u64,
    /// How long before the read the oldest missed commit had been answered.
    pub behind: Times,
    /// Reads that showed a register with siblings.
    pub with_siblings: u64,
}

/// Commits of one region as another one's nodes got them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StalenessReport {
    /// Where they were made.
    pub from: String,
    /// Where they became readable.
    pub to: String,
    /// How many did, a node each.
    pub commits: u64,
    /// How long after their clients were answered.
    pub after: Times,
    /// How many did not by the end.
    pub never: u64,
}

/// A part of the histogram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Bucket {
    /// Its upper bound, inclusive; none in the last one.
    pub up_to_us: Option<u64>,
    /// Commits in it.
    pub commits: u64,
}

/// Conflicts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ConflictReport {
    /// Values of registers that lost to concurrent ones, and were kept as siblings.
    pub register_values_lost: u64,
    /// Additions that a concurrent removal did not take.
    pub adds_kept: u64,
    /// Writes that a concurrent clear or deletion did not take.
    pub writes_kept: u64,
    /// Increments beside concurrent ones: all are counted.
    pub concurrent_increments: u64,
    /// The first of the first three kinds.
    pub listed: Vec<Conflict>,
}

/// A counter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CounterReport {
    /// The record.
    pub record: String,
    /// The field.
    pub field: String,
    /// Increments that were answered.
    pub increments: u64,
    /// Their sum, within the limits of an i64.
    pub sum: i64,
    /// The counter at the end, if all nodes agreed.
    pub at_the_end: Option<i64>,
    /// Whether it may differ: it was cleared, or a node crashed before it answered an increment.
    pub uncertain: bool,
}

/// One direction of a link between regions, over all pairs of their nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LinkReport {
    /// The sending region.
    pub from: String,
    /// The receiving region.
    pub to: String,
    /// Messages that arrived.
    pub messages: u64,
    /// Their bytes, without what QUIC, UDP and IP add.
    pub bytes: u64,
}

/// A heal or a return.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HealReport {
    /// When.
    pub at_us: u64,
    /// As it was written.
    pub what: String,
    /// Commits that some node lacked then, summed over nodes.
    pub lacking: u64,
    /// How long until every node that was up had all that any node had had; none if that did not come.
    pub converged_after_us: Option<u64>,
}

/// The end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EndReport {
    /// Whether all nodes that were up had the same commits, and so the same bytes.
    pub agreed: bool,
    /// How long after the last request they did.
    pub after_us: Option<u64>,
    /// Nodes that lack commits: how many.
    pub lacking: Vec<(String, u64)>,
}

/// A part of the run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Part {
    /// Where it begins.
    pub from_us: u64,
    /// Operations begun.
    pub operations: u64,
    /// Those that were refused or not answered.
    pub failed: u64,
    /// Reads and listings.
    pub reads: u64,
    /// Those of them that missed a commit.
    pub missed: u64,
    /// Commits that some node lacked at its end.
    pub under_way: u64,
}

impl Drive {
    /// Everything, once the run is over; `agreed_us` is how long agreement took after the last request.
    pub(super) fn report(self, agreed_us: Option<u64>, counters: Vec<CounterReport>) -> Report {
        let scenario = &self.scenario;
        let names = &self.names;
        let regions = scenario.regions.iter().map(|region| RegionReport {
            name: region.name.clone(),
            nodes: region.nodes.len(),
            clients: if region.per_hour > 0 { region.clients } else { 0 },
        });
        let faults =
            scenario.faults.iter().map(|step| FaultReport { at_us: step.at_us, what: step.text.clone() });
        let clients = self.seen.iter().map(|(&(region, operation), seen)| ClientReport {
            region: names[region].clone(),
            operation: operation.into(),
            answered: seen.latencies_us.len() as u64,
            refused: seen.refused,
            unanswered: seen.unanswered,
            latency: Times::of(&seen.latencies_us),
            first_refusal: seen.first_refusal.clone(),
        });
        let never = self.measure.never();
        let nothing = Vec::new();
        let mut staleness = Vec::new();
        let mut links = Vec::new();
        for from in 0..names.len() {
            for to in 0..names.len() {
                let after = self.measure.staleness_us.get(&(from, to)).unwrap_or(&nothing);
                let never = never.get(&(from, to)).copied().unwrap_or(0);
                let (of, at) = (names[from].clone(), names[to].clone());
                if from != to && after.len() as u64 + never > 0 {
                    let (commits, after) = (after.len() as u64, Times::of(after));
                    staleness.push(StalenessReport {
                        from: of.clone(),
                        to: at.clone(),
                        commits,
                        after,
                        never,
                    });
                }
                if self.linked(from, to) {
                    let carried = self.carried(from, to);
                    links.push(LinkReport {
                        from: of,
                        to: at,
                        messages: carried.frames,
                        bytes: carried.bytes,
                    });
                }
            }
        }
        let mut histogram: Vec<Bucket> = BOUNDS_US
            .iter()
            .map(|bound| Bucket { up_to_us: Some(*bound), commits: 0 })
            .chain([Bucket { up_to_us: None, commits: 0 }])
            .collect();
        let between = self.measure.staleness_us.iter().filter(|((from, to), _)| from != to);
        for us in between.flat_map(|(_, times)| times) {
            histogram[BOUNDS_US.partition_point(|bound| bound < us)].commits += 1;
        }
        Report {
            version: REPORT_VERSION,
            title: scenario.title.clone(),
            about: scenario.about.clone(),
            seed: scenario.seed,
            duration_us: scenario.duration_us,
            regions: regions.collect(),
            faults: faults.collect(),
            clients: clients.collect(),
            reads: ReadReport {
                reads: self.reads,
                missed: self.behind_us.len() as u64,
                behind: self.behind(),
                with_siblings: self.with_siblings,
            },
            staleness,
            histogram,
            conflicts: ConflictReport {
                register_values_lost: self.conflicts.registers,
                adds_kept: self.conflicts.adds_kept,
                writes_kept: self.conflicts.writes_kept,
                concurrent_increments: self.conflicts.increments,
                listed: self.conflicts.listed.clone(),
            },
            counters,
            links,
            heals: self.heals(),
            end: EndReport { agreed: agreed_us.is_some(), after_us: agreed_us, lacking: self.lacking() },
            timeline: self.timeline.clone(),
            trace_digest: self.trace_digest(),
        }
    }
}
