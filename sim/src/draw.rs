//! From a seed to a script: everything that comes from outside, drawn up front without a look at the world.
//!
//! A seed draws the configuration first (nodes, partitions, latencies, windows, fault rates), then commits and faults in
//! the order of their times. All draws are integers, all rates are ratios. Some runs then end in a scene ([`scenes`]).

mod scenes;

use std::collections::BTreeMap;

use godwit_core::partition::Sizes;
use godwit_core::rng::Rng;
use godwit_proto::Tuning;
use godwit_proto::message::{WIRE_OLDEST, WIRE_VERSION};

use crate::clients::Plan;
use crate::config::RunConfig;
use crate::network::{LinkConfig, NetworkConfig, Pair, pair};
use crate::script::{Act, Script, Step};
use crate::workload;

/// Idempotency keys that clients use: few, so that some are used twice for different requests.
const KEYS: u64 = 60;

/// What later additions to the draws of a configuration are told from the others by.
const EXPIRY_SALT: u64 = 0x6578_7069_7279_0001;
/// For when cleared documents are forgotten.
const FORGET_SALT: u64 = 0x666f_7267_6574_0001;
const MORE_SALT: u64 = 0xadd1_7104;

/// How often things happen; needed for drawing only.
#[derive(Debug)]
struct Rates {
    /// The mean time between commits, over all nodes.
    commit_every_us: u64,
    /// The mean time between faults, if there are any.
    fault_every_us: Option<u64>,
    /// How long a cut or an outage lasts at most.
    outage_us_max: u64,
    /// Whether disks are put back.
    rollbacks: bool,
    /// Whether links are cut one way and flap, processes stand still, disks are slow, disks refuse writes.
    world: [bool; 4],
}

/// Draws a script.
pub fn draw(seed: u64) -> Script {
    let mut rng = Rng::new(seed);
    let (config, rates) = configuration(seed, &mut rng);
    let mut drawer = Drawer { rng, config, rates, steps: Vec::new() };
    drawer.draw_steps();
    let Drawer { config, rates, steps, .. } = drawer;
    let mut script = Script { seed, note: String::new(), config, steps };
    scenes::play_out(&mut script, rates.rollbacks);
    // Where disks are put back and directories copied, what is forgotten may be needed: that takes a time to keep it for.
    let goes_back = script.config.copied.is_some()
        || script.steps.iter().any(|step| matches!(step.act, Act::Rollback { .. }));
    if !goes_back {
        let (mut forgets, tuning) = (Rng::new(seed ^ FORGET_SALT), &mut script.config.tuning);
        tuning.sizes.forget_after_ms = 10 << forgets.below(10);
        // Only after a comparison is anything forgotten.
        if forgets.chance(1, 2) {
            tuning.scrub_us = 100_000 << forgets.below(8);
            tuning.repair_bytes_per_s = tuning.repair_bytes_per_s.max(1_000_000);
        }
    }
    script
}

fn configuration(seed: u64, rng: &mut Rng) -> (RunConfig, Rates) {
    // One run in three has regions of several nodes.
    let regions: Vec<usize> = if rng.chance(1, 3) {
        let sizes = (0..1 + rng.below(4)).map(|_| 1 + rng.below(3) as usize).collect::<Vec<_>>();
        let all = sizes.iter().enumerate().flat_map(|(region, &size)| std::iter::repeat_n(region, size));
        let all: Vec<usize> = all.collect();
        if all.len() > 1 { all } else { vec![0, 0] }
    } else {
        (0..2 + rng.below(4) as usize).collect()
    };
    let nodes = regions.len();
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
        damaged_of_1000: if harsh && rng.chance(1, 2) { 1 + rng.below(5) } else { 0 },
        links: if rng.chance(1, 2) { links(rng, &regions) } else { BTreeMap::new() },
    };
    let old = rng.chance(1, 8);
    // A node that knows no repair could not be helped.
    let truncating = !old && rng.chance(1, 2);
    let mut tuning = Tuning {
        contexts_delay_us: 1_000 << rng.below(8),
        contexts_interval_us: 1_000_000 + rng.below(4_000_000),
        window_bytes: 200 << rng.below(14),
        chunk_bytes: 100 << rng.below(10),
        resend_after_us: 2_000_000 + rng.below(4_000_000),
        relay_wait_linked_us: 300_000 + rng.below(1_500_000),
        relay_wait_cut_us: 5_000 + rng.below(200_000),
        relay_retry_us: 500_000 + rng.below(3_000_000),
        relay_bytes: 100 << rng.below(12),
        again_burst: 1 << rng.below(12),
        again_every_us: 1 << rng.below(12),
        pending_bytes_max: 1_000 << rng.below(14),
        push_commits_max: 1 << rng.below(8),
        repair_bytes_per_s: 1_000 << rng.below(16),
        repair_rows: 1 << rng.below(6),
        repair_window_bytes: 100 << rng.below(12),
        repair_tree_bits: 4 * rng.below(3) as u8,
        scrub_us: u64::MAX,
        job_delay_us: 1_000 << rng.below(10),
        job_pause_us: 1_000 << rng.below(6),
        log_bytes_max: if truncating { 100 << rng.below(10) } else { u64::MAX },
        log_age_max_ms: if truncating && rng.chance(1, 4) { 500 << rng.below(5) } else { u64::MAX },
        log_check_us: 1_000 << rng.below(10),
        sizes: Sizes {
            checkpoint_entries: 1 + rng.below(20),
            checkpoint_bytes: 50 << rng.below(10),
            clear_rows: rng.below(4) as usize,
            sweep_rows: 1 + rng.below(3) as usize,
            sweep_after_ms: 50 << Rng::new(seed ^ EXPIRY_SALT).below(8),
            forget_after_ms: u64::MAX,
        },
    };
    let wire = |rng: &mut Rng| if old && rng.chance(1, 2) { WIRE_OLDEST } else { WIRE_VERSION };
    let wires = (0..nodes).map(|_| wire(rng)).collect();
    let copied = (!old && rng.chance(1, 6)).then(|| rng.below(nodes as u64) as usize);
    let rollbacks = !old && rng.chance(1, 3);
    let windows_end = rng.chance(1, 3);
    let window_ms = if windows_end { 1_000 << rng.below(5) } else { 86_400_000 };
    let plain = !rollbacks && copied.is_none();
    let some_unsynced = plain && rng.chance(1, 3);
    let unsynced: Vec<bool> = (0..nodes).map(|_| some_unsynced && rng.chance(1, 2)).collect();
    let drifting = rng.chance(1, 3);
    // Draws of their own, so that what was drawn before they were added stays.
    let mut more = Rng::new(seed ^ MORE_SALT);
    let paced = more.chance(1, 4);
    let paces_ppm = (0..nodes).map(|_| if paced { drift_ppm(&mut more) } else { 0 }).collect();
    let scrubs = more.chance(1, 3);
    let (scrub_us, scrub_bytes_per_s) = (8_000_000 << more.below(4), 32_000 << more.below(8));
    if scrubs {
        tuning.scrub_us = scrub_us;
        tuning.repair_bytes_per_s = tuning.repair_bytes_per_s.max(scrub_bytes_per_s);
    }
    // A disk that is put back may be one of which a power cut has taken something.
    let unsynced = if rollbacks && copied.is_none() && more.chance(1, 3) {
        (0..nodes).map(|_| more.chance(1, 2)).collect()
    } else {
        unsynced
    };
    let rates = Rates {
        world: [rng.chance(1, 3), rng.chance(1, 3), rng.chance(1, 3), rng.chance(1, 3)],
        commit_every_us: 20_000 << rng.below(5),
        fault_every_us: rng.chance(9, 10).then(|| 200_000 << rng.below(5)),
        outage_us_max: 200_000 << rng.below(7),
        rollbacks,
    };
    let config = RunConfig {
        clients: rng.below(4) as usize,
        windows_end,
        wires,
        copied,
        copy_ends: rng.chance(1, 2),
        partitions: 1 + rng.below(3) as u16,
        network,
        tuning,
        group_max: 1 << rng.below(7),
        clock_offsets_ms: (0..nodes).map(|_| offset_ms(rng)).collect(),
        max_clock_drift_ms: 1 << rng.below(20),
        idempotency_window_ms: window_ms,
        active_us: 5_000_000 + rng.below(25_000_000),
        star: !old && copied.is_none() && rng.chance(1, 4),
        busy: rng.chance(1, 4).then(|| rng.below(workload::records().len() as u64) as usize),
        paces_ppm,
        drifts_ppm: (0..nodes).map(|_| if drifting { drift_ppm(rng) } else { 0 }).collect(),
        // Long syncs where answers do not wait for them: a power cut has something to take.
        fsync_us: unsynced.iter().map(|&unsynced| 100 << rng.below(if unsynced { 12 } else { 8 })).collect(),
        unsynced,
        nodes,
        regions,
    };
    (config, rates)
}

struct Drawer {
    rng: Rng,
    config: RunConfig,
    rates: Rates,
    steps: Vec<Step>,
}

impl Drawer {
    fn draw_steps(&mut self) {
        let mut next_commit = 0;
        let mut next_fault = self.rates.fault_every_us.map(|every| self.rng.below(2 * every));
        loop {
            let now = next_fault.unwrap_or(u64::MAX).min(next_commit);
            if now >= self.config.active_us {
                return;
            }
            if now == next_commit {
                self.something(now);
                next_commit += 1 + self.rng.below(2 * self.rates.commit_every_us);
            }
            if next_fault == Some(now) {
                if let Some(act) = self.fault() {
                    self.step(now, act);
                }
                next_fault = self.rates.fault_every_us.map(|every| now + 1 + self.rng.below(2 * every));
            }
        }
    }

    fn step(&mut self, at_us: u64, act: Act) {
        self.steps.push(Step { number: self.steps.len() as u64, at_us, act });
    }

    fn place(&mut self) -> usize {
        self.rng.below(self.config.places() as u64) as usize
    }

    /// A client does something, and sometimes somebody looks.
    fn something(&mut self, now: u64) {
        let node = self.place();
        if self.rng.chance(1, 12) {
            let field = self.rng.pick(&workload::set_fields()).clone();
            let record = self.rng.pick(&workload::records()).clone();
            self.step(now, Act::Count { node, record, field });
        }
        let act = self.request(now, node);
        self.step(now, act);
        if self.rng.chance(1, 3) {
            let node = self.place();
            self.step(now, Act::Check { node });
        }
    }

    fn request(&mut self, now: u64, node: usize) -> Act {
        let Self { rng, config, .. } = self;
        let mut writes = workload::commit(rng, config.partitions);
        if config.windows_end {
            workload::without_deletions(&mut writes);
        }
        if config.clients == 0 || rng.chance(1, 3) {
            return Act::Commit { node, writes };
        }
        let client = rng.below(config.clients as u64) as usize;
        let keyed = !config.has_old() && rng.chance(1, 3);
        let says = rng.chance(1, 2);
        let plan = match rng.below(6) {
            0..=1 => Plan::Read,
            // Where windows end, a key is used once: a retry after its window would be another request.
            2..=3 if keyed && !config.windows_end => Plan::Retry,
            _ if keyed && config.windows_end => {
                Plan::Write { writes: workload::commit_once(rng), says, key: Some(now) }
            }
            _ => Plan::Write { writes, says, key: keyed.then(|| rng.below(KEYS)) },
        };
        Act::Session { client, node, plan }
    }

    fn fault(&mut self) -> Option<Act> {
        let Self { rng, config, rates, .. } = self;
        let for_us = 1 + rng.below(rates.outage_us_max);
        let node = rng.below(config.nodes as u64) as usize;
        let link = *rng.pick(&config.pairs());
        if rates.rollbacks && rng.chance(1, 4) {
            return match rng.below(5) {
                0..=1 => Some(Act::Backup { node }),
                2..=3 => Some(Act::Rollback { nodes: vec![node] }),
                _ => {
                    let nodes: Vec<_> = (0..config.nodes).filter(|_| rng.chance(1, 2)).collect();
                    (!nodes.is_empty()).then_some(Act::Rollback { nodes })
                }
            };
        }
        if let Some(node) = config.copied.filter(|_| rng.chance(1, 8)) {
            return Some(Act::Copy { node });
        }
        let power = config.unsynced[node] && rng.chance(1, 3);
        if power {
            return Some(Act::PowerCut { node, for_us });
        }
        if let Some(act) = rates.of_the_world(rng, node, link, for_us) {
            return Some(act);
        }
        Some(match rng.below(12) {
            0..=2 => Act::Cut { link, for_us },
            3 => Act::Isolate { node, for_us },
            4 => Act::IsolateRegion { region: config.regions[node], for_us },
            5 => Act::Reset { link },
            6..=8 => Act::Crash { node, for_us },
            9..=10 => Act::Stop { node, for_us },
            _ => Act::Clock { node, offset_ms: offset_ms(rng) },
        })
    }
}

impl Rates {
    /// One of the faults that not every run has, or none.
    fn of_the_world(&self, rng: &mut Rng, node: usize, link: Pair, for_us: u64) -> Option<Act> {
        let [links, pauses, slow, refusing] = self.world;
        if links && rng.chance(1, 6) {
            if rng.chance(1, 2) {
                let (from, to) = if rng.chance(1, 2) { link } else { (link.1, link.0) };
                return Some(Act::CutWay { from, to, for_us });
            }
            return Some(Act::Flap { link, times: 2 + rng.below(20), each_us: 1_000 << rng.below(9) });
        }
        if pauses && rng.chance(1, 8) {
            return Some(Act::Pause { node, for_us });
        }
        if slow && rng.chance(1, 8) {
            return Some(Act::SlowDisk { node, fsync_us: 100_000 << rng.below(6), for_us });
        }
        (refusing && rng.chance(1, 8)).then_some(Act::RefusingDisk { node, for_us })
    }
}

/// Links of their own: short and wide within a region; between two regions as long as chance has it, mostly wide, and with a
/// long tail where packets are lost.
fn links(rng: &mut Rng, regions: &[usize]) -> BTreeMap<Pair, LinkConfig> {
    let mut between: BTreeMap<Pair, LinkConfig> = BTreeMap::new();
    let mut links = BTreeMap::new();
    for b in 0..regions.len() {
        for a in 0..b {
            let far = *between.entry(pair(regions[a], regions[b])).or_insert_with(|| {
                let latency_us = 1_000 + rng.below(150_000);
                LinkConfig {
                    latency_us,
                    jitter_us: rng.below(latency_us),
                    bytes_per_second: rng.chance(1, 2).then(|| 20_000 << rng.below(8)),
                    lost_of_million: if rng.chance(1, 2) { 1 << rng.below(17) } else { 0 },
                }
            });
            let near = LinkConfig {
                latency_us: 100 + rng.below(400),
                jitter_us: rng.below(200),
                bytes_per_second: None,
                lost_of_million: 0,
            };
            links.insert((a, b), if regions[a] == regions[b] { near } else { far });
        }
    }
    links
}

/// What a clock gains or loses: a good one 50 millionths, a broken one a tenth.
fn drift_ppm(rng: &mut Rng) -> i64 {
    let most = *rng.pick(&[50i64, 1_000, 100_000]);
    rng.below(2 * most as u64 + 1) as i64 - most
}

/// How far off a clock is: mostly little, sometimes hours.
fn offset_ms(rng: &mut Rng) -> i64 {
    let most = *rng.pick(&[1i64, 50, 2_000, 3_600_000]);
    rng.below(2 * most as u64 + 1) as i64 - most
}
