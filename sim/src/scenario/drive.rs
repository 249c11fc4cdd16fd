//! The run: clients, faults and the world, in order of time.

mod serve;

use std::collections::{BTreeMap, BTreeSet};

use godwit_core::context::VersionVector;
use godwit_core::digest;
use godwit_core::ids::PartitionId;
use godwit_core::op::{Terms, Write};
use godwit_core::read::{FieldView, Value};
use godwit_core::rng::Rng;
use godwit_proto::{Input, RequestId};

use super::ScenarioError;
use super::config::Scenario;
use super::conflicts::Conflicts;
use super::counters::{Counters, REPORTED_MAX};
use super::faults::{Fault, Step};
use super::measure::Measure;
use super::report::{CounterReport, HealReport, Part, Report, Times};
use super::workload::Workload;
use crate::config::RunConfig;
use crate::network::{Carried, NetworkConfig, pair};
use crate::oracle::Violation;
use crate::trace::Watch;
use crate::watch::Told;
use crate::world::{Event, World};

/// Parts of the timeline.
pub(super) const PARTS: u64 = 120;
/// Simulated time within which the records that are there at the beginning must be everywhere.
const LOAD_US_MAX: u64 = 3_600_000_000;
const LOOK_US: u64 = 20_000;
const HOUR_US: u64 = 3_600_000_000;
/// As in the shell of the server: connections end after so much silence, and are tried again this often.
const IDLE_US: u64 = 10_000_000;
const CONNECT_US: u64 = 1_000_000;

/// A client.
struct Client {
    region: usize,
    number: usize,
    /// When it wants to ask next.
    next_us: u64,
}

/// An operation that is not answered.
struct Open {
    client: Option<usize>,
    region: usize,
    kind: &'static str,
    began_us: u64,
    /// What the client needs besides: its way there and back.
    way_us: u64,
    /// Commits that it waits for.
    waits: usize,
    refusal: Option<String>,
}

/// A commit that is not answered.
struct Asked {
    op: u64,
    node: usize,
    writes: Vec<Write>,
}

/// What happened to operations of one kind in one region.
#[derive(Default)]
pub(super) struct Seen {
    pub(super) refused: u64,
    pub(super) unanswered: u64,
    pub(super) latencies_us: Vec<u64>,
    pub(super) first_refusal: Option<String>,
}

struct Healing {
    report: HealReport,
    all: Vec<VersionVector>,
    lacking: BTreeSet<usize>,
}

/// A run under way.
pub(super) struct Drive {
    pub(super) scenario: Scenario,
    pub(super) names: Vec<String>,
    pub(super) measure: Measure,
    pub(super) conflicts: Conflicts,
    counters: Counters,
    pub(super) seen: BTreeMap<(usize, &'static str), Seen>,
    pub(super) behind_us: Vec<u64>,
    pub(super) reads: u64,
    pub(super) with_siblings: u64,
    pub(super) timeline: Vec<Part>,
    world: World,
    rng: Rng,
    /// When the clients begin.
    zero_us: u64,
    region_of: Vec<usize>,
    clients: Vec<Client>,
    due: BTreeSet<(u64, usize)>,
    open: BTreeMap<u64, Open>,
    asked: BTreeMap<RequestId, Asked>,
    operations: u64,
    requests: u64,
    healing: Vec<Healing>,
    carried: BTreeMap<(usize, usize), Carried>,
}

/// Runs a scenario.
pub(super) fn run(scenario: Scenario) -> Result<Report, ScenarioError> {
    let failed =
        |violation: Violation| ScenarioError(format!("the cluster does not hold what it must: {violation}"));
    let mut drive = Drive::new(scenario).map_err(failed)?;
    if !drive.load().map_err(failed)? {
        return Err(ScenarioError(
            "the records of the beginning do not reach all regions within an hour: use fewer `records` or a wider link"
                .into(),
        ));
    }
    drive.live().map_err(failed)?;
    let agreed_us = drive.settle().map_err(failed)?;
    let counters = drive.counted(agreed_us.is_some()).map_err(failed)?;
    Ok(drive.report(agreed_us, counters))
}

impl Drive {
    fn new(scenario: Scenario) -> Result<Self, Violation> {
        let region_of: Vec<usize> =
            (0..).zip(&scenario.regions).flat_map(|(at, region)| vec![at; region.nodes.len()]).collect();
        let nodes = region_of.len();
        let mut config = RunConfig::calm(nodes);
        config.partitions = scenario.partitions;
        config.regions = region_of.clone();
        config.fsync_us = region_of.iter().map(|region| scenario.regions[*region].fsync_us).collect();
        let mut absent = Vec::new();
        let mut links = BTreeMap::new();
        for b in 0..nodes {
            for a in 0..b {
                let between = (region_of[a].min(region_of[b]), region_of[a].max(region_of[b]));
                match scenario.links.get(&between) {
                    _ if between.0 == between.1 => drop(links.insert((a, b), scenario.local)),
                    Some(link) => drop(links.insert((a, b), *link)),
                    None => absent.push((a, b)),
                }
            }
        }
        config.network = NetworkConfig {
            latency_us: 0,
            jitter_us: 0,
            idle_us: IDLE_US,
            connect_us: CONNECT_US,
            lost_of_1000: 0,
            doubled_of_1000: 0,
            reordered_of_1000: 0,
            damaged_of_1000: 0,
            links,
        };
        let mut world = World::new(&config, scenario.seed, Watch::default())?;
        world.watch();
        for pair in absent {
            world.at(0, Event::Cut(pair));
            world.at(0, Event::Seal(pair));
        }
        let mut clients = Vec::new();
        for (at, region) in scenario.regions.iter().enumerate().filter(|(_, region)| region.per_hour > 0) {
            clients.extend((0..region.clients).map(|number| Client { region: at, number, next_us: 0 }));
        }
        let part_us = scenario.duration_us.div_ceil(PARTS);
        Ok(Self {
            names: scenario.regions.iter().map(|region| region.name.clone()).collect(),
            measure: Measure::new(scenario.partitions, region_of.clone()),
            conflicts: Conflicts::default(),
            counters: Counters::default(),
            seen: BTreeMap::new(),
            behind_us: Vec::new(),
            reads: 0,
            with_siblings: 0,
            timeline: (0..PARTS).map(|part| Part { from_us: part * part_us, ..Part::default() }).collect(),
            world,
            // Not the world's draws, so that a fault does not change what clients ask for.
            rng: Rng::new(scenario.seed.wrapping_mul(2).wrapping_add(1)),
            zero_us: 0,
            region_of,
            clients,
            due: BTreeSet::new(),
            open: BTreeMap::new(),
            asked: BTreeMap::new(),
            operations: 0,
            requests: 0,
            healing: Vec::new(),
            carried: BTreeMap::new(),
            scenario,
        })
    }

    /// Microseconds since the clients began.
    fn now_us(&self) -> u64 {
        self.world.now_us - self.zero_us
    }

    /// Writes what is there at the beginning, and waits until it is everywhere. False if that takes too long.
    fn load(&mut self) -> Result<bool, Violation> {
        let writes = match &mut self.scenario.workload {
            Workload::Drawn { mix, .. } => mix.load(),
            Workload::Recorded(_) => Vec::new(),
        };
        let count = writes.len() as u64;
        for write in writes {
            self.requests += 1;
            let request = RequestId(self.requests);
            self.world.input(0, Input::Commit { request, writes: vec![write], terms: Terms::default() })?;
        }
        let mut answers = 0;
        loop {
            let until = self.world.now_us + LOOK_US;
            while self.world.advance(until)? {
                answers += self
                    .world
                    .watched
                    .iter()
                    .flatten()
                    .filter(|told| matches!(told, Told::Answered(..)))
                    .count() as u64;
                self.look()?;
            }
            // Connections come up meanwhile in any case.
            if self.world.now_us > 2 * CONNECT_US && answers >= count && self.agrees() {
                break;
            }
            if self.world.now_us > LOAD_US_MAX {
                return Ok(false);
            }
        }
        self.zero_us = self.world.now_us;
        let nodes = self.region_of.len();
        let pairs = (0..nodes).flat_map(|from| (0..nodes).map(move |to| (from, to)));
        self.carried = pairs.map(|(from, to)| ((from, to), self.world.network.carried(from, to))).collect();
        Ok(true)
    }

    /// Clients and faults.
    fn live(&mut self) -> Result<(), Violation> {
        for client in 0..self.clients.len() {
            let first = self.gap(client);
            self.clients[client].next_us = first;
            self.due.insert((first, client));
        }
        let end = self.scenario.duration_us;
        let part_us = end.div_ceil(PARTS);
        let (mut part, mut next_fault, mut next_recorded) = (0, 0, 0);
        loop {
            let fault = self.scenario.faults.get(next_fault).map(|step| step.at_us);
            let recorded = match &self.scenario.workload {
                Workload::Recorded(all) => all.get(next_recorded).map(|recorded| recorded.at_us),
                Workload::Drawn { .. } => None,
            };
            let client = self.due.first().map(|(at, _)| *at);
            let part_end = ((part as u64 + 1) * part_us).min(end);
            let until = [fault, recorded, client].into_iter().flatten().fold(part_end, u64::min);
            let until = until.max(self.now_us());
            if self.world.advance(self.zero_us + until)? {
                self.look()?;
                continue;
            }
            if fault.is_some_and(|at| at <= until) {
                let step = self.scenario.faults[next_fault].clone();
                next_fault += 1;
                self.happen(&step)?;
            } else if recorded.is_some_and(|at| at <= until) {
                if let Workload::Recorded(all) = &self.scenario.workload {
                    let (region, request) = (all[next_recorded].region, all[next_recorded].request.clone());
                    next_recorded += 1;
                    self.begin(region, next_recorded, None, request)?;
                }
            } else if client.is_some_and(|at| at <= until) && until < end {
                if let Some((_, client)) = self.due.pop_first() {
                    self.turn(client)?;
                }
            } else {
                self.timeline[part].under_way = self.measure.under_way() as u64;
                if until >= end {
                    return Ok(());
                }
                part += 1;
            }
        }
    }

    /// Waits for answers and agreement; when that was, since the last request.
    fn settle(&mut self) -> Result<Option<u64>, Violation> {
        let (began, end) = (self.now_us(), self.now_us() + self.scenario.settle_us);
        loop {
            if self.open.is_empty() && self.agrees() {
                self.same_bytes()?;
                return Ok(Some(self.now_us() - began));
            }
            if self.now_us() >= end {
                return Ok(None);
            }
            let until = self.world.now_us + LOOK_US;
            while self.world.advance(until)? {
                self.look()?;
            }
        }
    }

    fn agrees(&self) -> bool {
        let all = self.measure.all();
        (0..self.region_of.len())
            .filter(|&node| self.world.is_up(node))
            .all(|node| self.measure.has(node, &all))
    }

    fn same_bytes(&self) -> Result<(), Violation> {
        let broken = |error: godwit_core::store::StoreError| Violation::new(10, error.to_string());
        for id in (0..self.scenario.partitions).map(PartitionId) {
            let mut digests = BTreeSet::new();
            for node in (0..self.region_of.len()).filter(|&node| self.world.is_up(node)) {
                let context = self.measure.context(node, id);
                digests.insert(digest::partition(self.world.disk(node), id, context).map_err(broken)?);
            }
            if digests.len() > 1 {
                return Err(Violation::new(1, format!("equal contexts, other bytes in partition {id}")));
            }
        }
        Ok(())
    }

    fn gap(&mut self, client: usize) -> u64 {
        let region = &self.scenario.regions[self.clients[client].region];
        let mean = (region.clients as u64).saturating_mul(HOUR_US) / region.per_hour.max(1);
        1 + self.rng.below(2 * mean.max(1))
    }

    fn happen(&mut self, step: &Step) -> Result<(), Violation> {
        let region_of = self.region_of.clone();
        let pairs = self.world.pairs();
        let between = |a: usize, b: Option<usize>| {
            let crosses =
                |x: usize, y: usize| region_of[x] == a && b.map_or(region_of[y] != a, |b| region_of[y] == b);
            pairs.iter().copied().filter(|&(x, y)| crosses(x, y) || crosses(y, x)).collect::<Vec<_>>()
        };
        if step.fault.mends() {
            self.mend(step);
        }
        match &step.fault {
            Fault::Cut(a, b) => {
                between(*a, *b).into_iter().for_each(|pair| self.world.at(0, Event::Cut(pair)))
            }
            Fault::Heal(which) => {
                let healed = which.map_or_else(|| pairs.clone(), |(a, b)| between(a, b));
                healed.into_iter().for_each(|pair| self.world.at(0, Event::Heal(pair)));
            }
            Fault::Crash(nodes) => {
                for &node in nodes {
                    self.world.at(0, Event::Crash(node));
                }
            }
            Fault::Restart(nodes) => {
                for &node in nodes {
                    self.world.at(0, Event::Start(node));
                }
            }
            Fault::Clock(nodes, ms) => {
                for &node in nodes {
                    self.world.at(0, Event::ClockStep(node, *ms));
                }
            }
        }
        // What was scheduled for now happens now, before any client asks again.
        let now = self.world.now_us;
        while self.world.advance(now)? {
            self.look()?;
        }
        let lost: Vec<RequestId> = self
            .asked
            .iter()
            .filter(|(_, asked)| !self.world.is_up(asked.node))
            .map(|(request, _)| *request)
            .collect();
        for request in lost {
            if let Some(asked) = self.asked.remove(&request) {
                self.counters.unanswered(&asked.writes);
                self.close(asked.op, true);
            }
        }
        Ok(())
    }

    /// From here on the cluster is to converge.
    fn mend(&mut self, step: &Step) {
        let all = self.measure.all();
        let returns = |node: &usize| matches!(&step.fault, Fault::Restart(nodes) if nodes.contains(node));
        let up = |node: &usize| self.world.is_up(*node) || returns(node);
        let nodes: Vec<usize> = (0..self.region_of.len()).filter(up).collect();
        let lacking: BTreeSet<usize> =
            nodes.iter().copied().filter(|&node| !self.measure.has(node, &all)).collect();
        let report = HealReport {
            at_us: self.now_us(),
            what: step.text.clone(),
            lacking: nodes.iter().map(|&node| self.measure.lacks(node, &all)).sum(),
            converged_after_us: lacking.is_empty().then_some(0),
        };
        self.healing.push(Healing { report, all, lacking });
    }

    /// What counters hold at the end, against what clients were told. What was surely counted must be there, once.
    fn counted(&self, agreed: bool) -> Result<Vec<CounterReport>, Violation> {
        let reader = (0..self.region_of.len()).find(|&node| agreed && self.world.is_up(node));
        let mut reports = Vec::new();
        for (record, field, counted) in self.counters.all() {
            let value = match reader {
                Some(node) => {
                    let views = self.views(node, record)?;
                    let of_field = views.iter().filter(|view| view.field == *field);
                    let counter = |view: &FieldView| {
                        if let Value::Counter(sum) = view.value { Some(sum) } else { None }
                    };
                    Some(of_field.filter_map(counter).next().unwrap_or(0))
                }
                None => None,
            };
            let sum = counted.sum.clamp(i64::MIN.into(), i64::MAX.into()) as i64;
            if let Some(value) = value.filter(|value| *value != sum && !counted.uncertain) {
                let what =
                    format!("{record} {field} is {value} at the end; increments of {sum} were answered");
                return Err(Violation::new(5, what));
            }
            reports.push(CounterReport {
                record: record.to_string(),
                field: field.to_string(),
                increments: counted.increments,
                sum,
                at_the_end: value,
                uncertain: counted.uncertain,
            });
        }
        reports.sort_by_key(|report| std::cmp::Reverse(report.increments));
        reports.truncate(REPORTED_MAX);
        Ok(reports)
    }

    /// Heals and what came of them.
    pub(super) fn heals(&self) -> Vec<HealReport> {
        self.healing.iter().map(|healing| healing.report.clone()).collect()
    }

    /// What was carried between two regions since the clients began.
    pub(super) fn carried(&self, from: usize, to: usize) -> Carried {
        let mut sum = Carried::default();
        for &a in &self.scenario.regions[from].nodes {
            for &b in &self.scenario.regions[to].nodes {
                let (before, now) = (self.carried[&(a, b)], self.world.network.carried(a, b));
                sum.frames += now.frames - before.frames;
                sum.bytes += now.bytes - before.bytes;
            }
        }
        sum
    }

    /// Nodes that lack something, and how much.
    pub(super) fn lacking(&self) -> Vec<(String, u64)> {
        let all = self.measure.all();
        let named = |(region, nodes): (&String, &Vec<usize>)| {
            let lacks = |(number, node): (usize, &usize)| {
                (format!("{region}/{}", number + 1), self.measure.lacks(*node, &all))
            };
            nodes.iter().enumerate().map(lacks).collect::<Vec<_>>()
        };
        let regions = self.scenario.regions.iter().map(|region| (&region.name, &region.nodes));
        regions.flat_map(named).filter(|(_, lacks)| *lacks > 0).collect()
    }

    pub(super) fn trace_digest(&self) -> String {
        self.world.trace.digest()
    }

    pub(super) fn behind(&self) -> Times {
        Times::of(&self.behind_us)
    }

    /// Whether two regions have a link.
    pub(super) fn linked(&self, a: usize, b: usize) -> bool {
        let (a, b) = pair(a, b);
        if a == b {
            self.scenario.regions[a].nodes.len() > 1
        } else {
            self.scenario.links.contains_key(&(a, b))
        }
    }
}
