//! From a seed to a verdict.
//!
//! A seed draws the configuration first (nodes, partitions, latencies, windows, fault rates), then everything else.
//! A run has two phases: faults and clients for some seconds; then every link heals, every node starts, clients are
//! silent, and all nodes must have the same bytes, with everything that any client was told of, within
//! [`CONVERGENCE_US_MAX`] (or [`CRAMPED_CONVERGENCE_US_MAX`]). In some runs only as many links heal as connect all nodes, so that relaying must do the rest;
//! in some a client goes on writing to one partition until the others agree, so that no partition depends on silence
//! elsewhere. All draws are integers, all rates are ratios.

use std::collections::BTreeMap;

use godwit_core::ids::PartitionId;
use godwit_core::partition::Sizes;
use godwit_core::rng::Rng;
use godwit_proto::Tuning;
use godwit_proto::message::{WIRE_OLDEST, WIRE_VERSION};

use crate::clients::Plan;
use crate::network::{NetworkConfig, Pair};
use crate::oracle::Violation;
use crate::workload::{self, Ask};
use crate::world::{Event, World};

/// Simulated time within which all nodes must agree after faults end: the longest wait of the protocol (resending), a
/// few round trips of the slowest network drawn, and reconnecting.
pub const CONVERGENCE_US_MAX: u64 = 60_000_000;

/// The same in runs that drew less room for deltas that wait than all peers may have in flight, or a window of a few
/// deltas on a network that loses frames within a connection: what finds no room, or is lost, is sent again only after
/// seconds, a few deltas at a time. So it is where an answer to a request holds a few deltas, and a node whose disk was put
/// back lacks many; and where nodes of the previous wire version wait for what only its origin can tell them.
pub const CRAMPED_CONVERGENCE_US_MAX: u64 = 30 * CONVERGENCE_US_MAX;

const SMALL_WINDOW_BYTES: usize = 10_000;
const SMALL_ANSWER_BYTES: usize = 2_000;

/// Idempotency keys that clients use: few, so that some are used twice for different requests.
const KEYS: u64 = 60;

/// How often agreement is looked at in the second phase.
const LOOK_US: u64 = 50_000;

/// Simulated time within which agreement must be known to all: every node tells its contexts this often, and a lost
/// message costs one more time.
const SETTLED_INTERVALS: u64 = 8;

/// How often that is looked at in runs where windows of idempotency keys end: nodes make commits then that nobody asked for.
const SETTLED_LOOKS: u32 = 5;

/// What a seed drew.
#[derive(Debug, Clone)]
pub struct RunConfig {
    /// Nodes, each a region of its own.
    pub nodes: usize,
    /// Partitions.
    pub partitions: u16,
    /// Latencies and losses.
    pub network: NetworkConfig,
    /// Windows and waits of the protocol.
    pub tuning: Tuning,
    /// The time of an fsync, a node.
    pub fsync_us: Vec<u64>,
    /// The most inputs in a group.
    pub group_max: usize,
    /// Each node's clock at the beginning, in milliseconds off.
    pub clock_offsets_ms: Vec<i64>,
    /// How far ahead a remote stamp may be and still be followed.
    pub max_clock_drift_ms: u64,
    /// How long idempotency keys are remembered.
    pub idempotency_window_ms: u64,
    /// How long faults and clients go on.
    pub active_us: u64,
    /// The mean time between commits, over all nodes.
    pub commit_every_us: u64,
    /// The mean time between faults, if there are any.
    pub fault_every_us: Option<u64>,
    /// How long a cut or an outage lasts at most.
    pub outage_us_max: u64,
    /// Whether only links to the first node heal at the end.
    pub star: bool,
    /// Whether a client goes on writing to one partition.
    pub busy: bool,
    /// Clients that carry tokens and use idempotency keys.
    pub clients: usize,
    /// Whether windows of idempotency keys end while the run goes on.
    pub windows_end: bool,
    /// The newest wire version of each node.
    pub wires: Vec<u8>,
    /// Whether disks are put back.
    pub rollbacks: bool,
    /// The node whose directory is copied, for a second process under its name.
    pub copied: Option<usize>,
}

impl RunConfig {
    /// A cluster in which nothing goes wrong, as it is tuned by default: for histories told step by step.
    pub fn calm(nodes: usize) -> Self {
        Self {
            nodes,
            partitions: 2,
            network: NetworkConfig {
                latency_us: 1_000,
                jitter_us: 0,
                idle_us: 1_000_000,
                connect_us: 10_000,
                lost_of_1000: 0,
                doubled_of_1000: 0,
                reordered_of_1000: 0,
                links: BTreeMap::new(),
            },
            tuning: Tuning::default(),
            fsync_us: vec![100; nodes],
            group_max: 64,
            clock_offsets_ms: vec![0; nodes],
            max_clock_drift_ms: 60_000,
            idempotency_window_ms: 86_400_000,
            active_us: 0,
            commit_every_us: 20_000,
            fault_every_us: None,
            outage_us_max: 1,
            star: false,
            busy: false,
            clients: 0,
            windows_end: false,
            wires: vec![WIRE_VERSION; nodes],
            rollbacks: false,
            copied: None,
        }
    }

    /// Draws a configuration.
    pub fn draw(rng: &mut Rng) -> Self {
        let nodes = 2 + rng.below(4) as usize;
        let latency_us = 200 << rng.below(10);
        let harsh = rng.chance(1, 3);
        let idle_us = 500_000 + rng.below(10_000_000);
        let network = NetworkConfig {
            latency_us,
            jitter_us: rng.below(latency_us),
            idle_us,
            connect_us: 10_000 + rng.below(300_000),
            lost_of_1000: if harsh { rng.below(60) } else { 0 },
            doubled_of_1000: if harsh { rng.below(60) } else { 0 },
            reordered_of_1000: if harsh { rng.below(200) } else { 0 },
            links: BTreeMap::new(),
        };
        let tuning = Tuning {
            contexts_delay_us: 1_000 << rng.below(8),
            contexts_interval_us: 1_000_000 + rng.below(4_000_000),
            window_bytes: 200 << rng.below(14),
            chunk_bytes: 100 << rng.below(10),
            resend_after_us: 2_000_000 + rng.below(4_000_000),
            relay_wait_linked_us: 300_000 + rng.below(1_500_000),
            relay_wait_cut_us: 5_000 + rng.below(200_000),
            relay_retry_us: 500_000 + rng.below(3_000_000),
            relay_bytes: 100 << rng.below(12),
            pending_bytes_max: 1_000 << rng.below(14),
            push_commits_max: 1 << rng.below(8),
            job_delay_us: 1_000 << rng.below(10),
            job_pause_us: 1_000 << rng.below(6),
            sizes: Sizes {
                checkpoint_entries: 1 + rng.below(20),
                clear_rows: rng.below(4) as usize,
                sweep_rows: 1 + rng.below(3) as usize,
            },
        };
        let old = rng.chance(1, 8);
        let wire = |rng: &mut Rng| if old && rng.chance(1, 2) { WIRE_OLDEST } else { WIRE_VERSION };
        let wires = (0..nodes).map(|_| wire(rng)).collect();
        let copied = (!old && rng.chance(1, 6)).then(|| rng.below(nodes as u64) as usize);
        // Not both: a member that runs twice can confirm two processes of a node that was put back.
        let rollbacks = !old && copied.is_none() && rng.chance(1, 3);
        let windows_end = rng.chance(1, 3);
        let window_ms = if windows_end { 1_000 << rng.below(5) } else { 86_400_000 };
        Self {
            clients: rng.below(4) as usize,
            windows_end,
            wires,
            rollbacks,
            copied,
            partitions: 1 + rng.below(3) as u16,
            network,
            tuning,
            fsync_us: (0..nodes).map(|_| 100 << rng.below(8)).collect(),
            group_max: 1 << rng.below(7),
            clock_offsets_ms: (0..nodes).map(|_| offset(rng)).collect(),
            max_clock_drift_ms: 1 << rng.below(20),
            idempotency_window_ms: window_ms,
            active_us: 5_000_000 + rng.below(25_000_000),
            commit_every_us: 20_000 << rng.below(5),
            fault_every_us: rng.chance(9, 10).then(|| 200_000 << rng.below(5)),
            outage_us_max: 200_000 << rng.below(7),
            star: !old && copied.is_none() && rng.chance(1, 4),
            busy: rng.chance(1, 4),
            nodes,
        }
    }
}

impl RunConfig {
    /// Places for processes: one a node, and one more for a copied one.
    pub fn places(&self) -> usize {
        self.nodes + usize::from(self.copied.is_some())
    }

    /// Whether some nodes speak the previous wire version.
    pub fn has_old(&self) -> bool {
        self.wires.iter().any(|wire| *wire < WIRE_VERSION)
    }

    fn convergence_us_max(&self) -> u64 {
        let tuning = &self.tuning;
        // A waiting delta costs several times what a small one does in a window.
        let in_flight = (self.nodes - 1) * (tuning.window_bytes + tuning.chunk_bytes) * 4;
        let lossy_and_small = self.network.lost_of_1000 > 0 && tuning.window_bytes < SMALL_WINDOW_BYTES;
        let few_a_request = tuning.relay_bytes < SMALL_ANSWER_BYTES;
        let cramped =
            tuning.pending_bytes_max < in_flight || lossy_and_small || few_a_request || self.has_old();
        if cramped { CRAMPED_CONVERGENCE_US_MAX } else { CONVERGENCE_US_MAX }
    }
}

/// What a run came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunReport {
    /// The seed.
    pub seed: u64,
    /// The digest of the trace.
    pub digest: String,
    /// What did not hold, if anything.
    pub violation: Option<Violation>,
    /// Simulated time.
    pub simulated_us: u64,
    /// Events traced.
    pub events: u64,
    /// Commits that became durable.
    pub commits: usize,
    /// Commits that a client was told of.
    pub acknowledged: u64,
    /// Frames sent.
    pub frames: u64,
    /// Records read and compared.
    pub reads: u64,
    /// How long agreement took after faults ended.
    pub convergence_us: u64,
}

/// Runs a seed; `print` shows the trace.
pub fn run(seed: u64, print: bool) -> RunReport {
    let mut rng = Rng::new(seed);
    let config = RunConfig::draw(&mut rng);
    let mut world = match World::new(&config, rng, print) {
        Ok(world) => world,
        // Fresh nodes on empty disks: only a broken build gets here.
        Err(violation) => return failed_to_begin(seed, violation),
    };
    world.trace.line(0, format_args!("{config:?}"));
    let verdict = live(&mut world, &config);
    if let Err(violation) = &verdict {
        world.trace.line(world.now_us, format_args!("VIOLATION of {violation}"));
    }
    RunReport {
        seed,
        digest: world.trace.digest(),
        simulated_us: world.now_us,
        events: world.trace.lines(),
        commits: world.oracle.commits(),
        acknowledged: world.acknowledged,
        frames: world.frames,
        reads: world.oracle.reads(),
        convergence_us: verdict.as_ref().copied().unwrap_or(0),
        violation: verdict.err(),
    }
}

fn live(world: &mut World, config: &RunConfig) -> Result<u64, Violation> {
    let mut next_commit = 0;
    let mut next_fault = config.fault_every_us.map(|every| world.rng.below(2 * every));
    while world.now_us < config.active_us {
        let until = next_fault.unwrap_or(u64::MAX).min(next_commit).min(config.active_us);
        if world.advance(until)? {
            continue;
        }
        if world.now_us == next_commit {
            something(world, config);
            if world.rng.chance(1, 3) {
                let reader = world.rng.below(config.places() as u64) as usize;
                world.at(0, Event::Check(reader));
            }
            next_commit += 1 + world.rng.below(2 * config.commit_every_us);
        }
        if next_fault == Some(world.now_us) {
            fault(world, config);
            next_fault = config.fault_every_us.map(|every| world.now_us + 1 + world.rng.below(2 * every));
        }
    }
    converge(world, config)
}

/// A client does something.
fn something(world: &mut World, config: &RunConfig) {
    let node = world.rng.below(config.places() as u64) as usize;
    let mut writes = workload::commit(&mut world.rng, config.partitions);
    if config.windows_end {
        workload::without_deletions(&mut writes);
    }
    if world.rng.chance(1, 12) {
        let field = world.rng.pick(&workload::set_fields()).clone();
        let record = world.rng.pick(&workload::records()).clone();
        world.at(0, Event::Count(node, record, field));
    }
    if config.clients == 0 || world.rng.chance(1, 3) {
        let ask = Ask { writes, ..Ask::default() };
        return world.at(0, Event::Client(node, ask));
    }
    let client = world.rng.below(config.clients as u64) as usize;
    let keyed = !config.has_old() && world.rng.chance(1, 3);
    let says = world.rng.chance(1, 2);
    let plan = match world.rng.below(6) {
        0..=1 => Plan::Read,
        // Where windows end, a key is used once: a retry after its window would be another request.
        2..=3 if keyed && !config.windows_end => Plan::Retry,
        _ if keyed && config.windows_end => {
            let key = Some(world.now_us);
            Plan::Write { writes: workload::commit_once(&mut world.rng), says, key }
        }
        _ => Plan::Write { writes, says, key: keyed.then(|| world.rng.below(KEYS)) },
    };
    world.at(0, Event::Session { client, node, plan });
}

/// Ends all faults and demands agreement.
fn converge(world: &mut World, config: &RunConfig) -> Result<u64, Violation> {
    let began = world.now_us;
    world.trace.line(began, format_args!("faults end"));
    let heals = |pair: &Pair| !config.star || pair.0 == 0;
    for pair in world.pairs() {
        world.at(0, if heals(&pair) { Event::Heal(pair) } else { Event::Cut(pair) });
        // Heals that are under way already come to nothing.
        world.at(0, Event::Seal(pair));
    }
    if let Some(copied) = config.copied {
        // One of the two is stopped for good, and the other one begins anew: peers may refuse it as the later one.
        let twin = config.nodes;
        let (one, other) = if world.rng.chance(1, 2) { (copied, twin) } else { (twin, copied) };
        if world.is_up(twin) {
            world.at(0, Event::Retire(one));
            world.at(0, Event::Crash(other));
        }
    }
    for node in 0..world.node_count() {
        world.at(0, Event::Start(node));
    }
    let busy = config.busy.then(|| {
        let records = workload::records();
        world.rng.pick(&records).clone()
    });
    if let Some(record) = &busy {
        let home = record.partition(config.partitions);
        agree(world, began + config.convergence_us_max(), Some(home), |world| {
            let mut writes = workload::commit_to(&mut world.rng, record);
            if config.windows_end {
                workload::without_deletions(&mut writes);
            }
            world.at(0, Event::Client(0, Ask { writes, ..Ask::default() }));
        })?;
    }
    agree(world, began + config.convergence_us_max(), None, |_| {})?;
    let took = world.now_us - began;
    for node in 0..world.node_count() {
        world.check(node)?;
    }
    let linked = |node: usize, peer: &str| !config.star || node == 0 || peer == "n0";
    let mut looks = if config.windows_end { SETTLED_LOOKS } else { 1 };
    let unsettled = loop {
        let until = world.now_us + SETTLED_INTERVALS * config.tuning.contexts_interval_us;
        while world.advance(until)? {}
        let unsettled = world.unsettled(linked);
        looks -= 1;
        if unsettled.is_none() || looks == 0 {
            break unsettled;
        }
    };
    if config.windows_end {
        // What was folded meanwhile.
        agree(world, world.now_us + config.convergence_us_max(), None, |_| {})?;
        for node in 0..world.node_count() {
            world.check(node)?;
        }
    }
    match unsettled {
        Some(what) => Err(Violation::new(1, what)),
        None => {
            world.trace.line(world.now_us, format_args!("all agree, and know it"));
            Ok(took)
        }
    }
}

/// Waits until all nodes agree, but for a partition that is busy; `meanwhile` happens at every look.
fn agree(
    world: &mut World,
    deadline: u64,
    busy: Option<PartitionId>,
    meanwhile: impl Fn(&mut World),
) -> Result<(), Violation> {
    loop {
        meanwhile(world);
        let until = world.now_us + LOOK_US;
        while world.advance(until)? {}
        match world.difference(busy)? {
            None => return Ok(()),
            Some(what) if world.now_us > deadline => {
                return Err(Violation::new(1, format!("no agreement in time after faults ended: {what}")));
            }
            Some(_) => {}
        }
    }
}

fn fault(world: &mut World, config: &RunConfig) {
    let outage = 1 + world.rng.below(config.outage_us_max);
    let node = world.rng.below(config.nodes as u64) as usize;
    let pairs = world.pairs();
    let pair = *world.rng.pick(&pairs);
    if config.rollbacks && world.rng.chance(1, 4) {
        return match world.rng.below(5) {
            0..=1 => world.at(0, Event::Backup(node)),
            2..=3 => world.at(0, Event::Rollback(vec![node])),
            _ => {
                let nodes = (0..config.nodes).filter(|_| world.rng.chance(1, 2)).collect();
                world.at(0, Event::Rollback(nodes));
            }
        };
    }
    if let Some(copied) = config.copied.filter(|_| world.rng.chance(1, 8)) {
        return world.at(0, Event::Copy(copied));
    }
    match world.rng.below(12) {
        0..=2 => {
            world.at(0, Event::Cut(pair));
            world.at(outage, Event::Heal(pair));
        }
        // A whole region is cut off.
        3..=4 => {
            for pair in pairs.into_iter().filter(|pair| pair.0 == node || pair.1 == node) {
                world.at(0, Event::Cut(pair));
                world.at(outage, Event::Heal(pair));
            }
        }
        5 => world.at(0, Event::Reset(pair)),
        6..=8 => {
            world.at(0, Event::Crash(node));
            world.at(outage, Event::Start(node));
        }
        9..=10 => world.at(0, Event::Stop(node, outage)),
        _ => {
            let ms = offset(&mut world.rng);
            world.at(0, Event::ClockStep(node, ms));
        }
    }
}

/// How far off a clock is: mostly little, sometimes hours.
fn offset(rng: &mut Rng) -> i64 {
    let most = *rng.pick(&[1i64, 50, 2_000, 3_600_000]);
    rng.below(2 * most as u64 + 1) as i64 - most
}

fn failed_to_begin(seed: u64, violation: Violation) -> RunReport {
    RunReport {
        seed,
        digest: String::new(),
        violation: Some(violation),
        simulated_us: 0,
        events: 0,
        commits: 0,
        acknowledged: 0,
        frames: 0,
        reads: 0,
        convergence_us: 0,
    }
}
