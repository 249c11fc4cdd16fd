//! Playing a script, to a verdict.
//!
//! A run has two phases: faults and clients for some seconds, as the script says; then every link heals, every node starts,
//! clients are silent, and all nodes must have the same bytes, with everything that any client was told of, within
//! [`CONVERGENCE_US_MAX`](crate::config::CONVERGENCE_US_MAX) (or
//! [`CRAMPED_CONVERGENCE_US_MAX`](crate::config::CRAMPED_CONVERGENCE_US_MAX)). In some runs only as many links heal as
//! connect all nodes, so that relaying must do the rest; in some a client goes on writing to one partition until the others
//! agree, so that no partition depends on silence elsewhere.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use godwit_core::ids::PartitionId;

use crate::config::{CRAMPED_CONVERGENCE_US_MAX, RunConfig};
use crate::draw;
use crate::draws::Of;
use crate::failure::View;
use crate::faults::Faults;
use crate::network::{Pair, pair};
use crate::oracle::Violation;
use crate::script::{Act, Script};
use crate::trace::{Mark, Watch};
use crate::workload::{self, Ask};
use crate::world::{Event, World};

/// How often agreement is looked at in the second phase.
const LOOK_US: u64 = 50_000;

/// Simulated time within which agreement must be known to all: every node tells its contexts this often, and a lost
/// message costs one more time.
const SETTLED_INTERVALS: u64 = 8;

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
    /// What went wrong, by kind ([`crate::faults::KINDS`]), and how often it had an effect.
    pub faults: Faults,
    /// What each node had when something did not hold.
    pub views: Vec<View>,
    /// What happened, if it was kept.
    pub marks: Vec<Mark>,
}

/// Runs a seed; `print` shows the trace.
pub fn run(seed: u64, print: bool) -> RunReport {
    play(&draw::draw(seed), Watch { print, ..Watch::default() })
}

/// Plays a script.
pub fn play(script: &Script, watch: Watch) -> RunReport {
    let Script { seed, config, .. } = script;
    let mut world = match World::new(config, *seed, watch) {
        Ok(world) => world,
        // Fresh nodes on empty disks: only a broken build gets here.
        Err(violation) => return failed_to_begin(*seed, violation),
    };
    world.trace.line(0, format_args!("{config:?}"));
    // A machine that asserts is a node that stops. The world is read afterwards, and lives on no more.
    let verdict = catch_unwind(AssertUnwindSafe(|| live(&mut world, script)))
        .unwrap_or_else(|panic| Err(Violation::new(10, format!("a node panics: {}", words_of(&*panic)))));
    if let Err(violation) = &verdict {
        world.trace.line(world.now_us, format_args!("VIOLATION of {violation}"));
    }
    RunReport {
        seed: *seed,
        digest: world.trace.digest(),
        simulated_us: world.now_us,
        events: world.trace.lines(),
        commits: world.oracle.commits(),
        acknowledged: world.acknowledged,
        frames: world.frames,
        reads: world.oracle.reads(),
        convergence_us: verdict.as_ref().copied().unwrap_or(0),
        faults: world.met_so_far(),
        views: verdict.as_ref().map_or_else(|violation| world.views(&violation.what), |_| Vec::new()),
        marks: world.trace.into_marks(),
        violation: verdict.err(),
    }
}

fn words_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| text.to_string())).unwrap_or_default()
}

fn live(world: &mut World, script: &Script) -> Result<u64, Violation> {
    for step in &script.steps {
        while world.advance(step.at_us)? {}
        act(world, &script.config, &step.act);
    }
    while world.advance(script.config.active_us)? {}
    converge(world, &script.config)
}

/// Lets something happen, with all that follows from it in time.
fn act(world: &mut World, config: &RunConfig, act: &Act) {
    match act.clone() {
        Act::Commit { node, writes } => {
            world.at(0, Event::Client(node, Ask { writes, ..Ask::default() }));
        }
        Act::Session { client, node, plan } => world.at(0, Event::Session { client, node, plan }),
        Act::Count { node, record, field } => world.at(0, Event::Count(node, record, field)),
        Act::Check { node } => world.at(0, Event::Check(node)),
        Act::Cut { link, for_us } => {
            world.at(0, Event::Cut(link));
            world.at(for_us, Event::Heal(link));
        }
        Act::Isolate { node, for_us } => {
            for link in world.pairs().into_iter().filter(|link| link.0 == node || link.1 == node) {
                world.at(0, Event::Cut(link));
                world.at(for_us, Event::Heal(link));
            }
        }
        Act::IsolateRegion { region, for_us } => {
            let links = config.pairs().into_iter().filter(|&link| config.leaves(region, link));
            for link in links {
                world.at(0, Event::Cut(link));
                world.at(for_us, Event::Heal(link));
            }
        }
        Act::CutWay { from, to, for_us } => {
            world.at(0, Event::CutWay(from, to));
            world.at(for_us, Event::Heal(pair(from, to)));
        }
        Act::Flap { link, times, each_us } => {
            for nth in 0..times {
                world.at(2 * nth * each_us, Event::Cut(link));
                world.at((2 * nth + 1) * each_us, Event::Heal(link));
            }
        }
        Act::Pause { node, for_us } => {
            world.at(0, Event::Pause(node));
            world.at(for_us, Event::Resume(node));
        }
        Act::SlowDisk { node, fsync_us, for_us } => world.at(0, Event::SlowDisk(node, fsync_us, for_us)),
        Act::RefusingDisk { node, for_us } => world.at(0, Event::RefusingDisk(node, for_us)),
        Act::PowerCut { node, for_us } => {
            world.at(0, Event::PowerCut(node));
            world.at(for_us, Event::Start(node));
        }
        Act::Reset { link } => world.at(0, Event::Reset(link)),
        Act::Crash { node, for_us } => {
            world.at(0, Event::Crash(node));
            world.at(for_us, Event::Start(node));
        }
        Act::Stop { node, for_us } => world.at(0, Event::Stop(node, for_us)),
        Act::Clock { node, offset_ms } => world.at(0, Event::ClockStep(node, offset_ms)),
        Act::Backup { node } => world.at(0, Event::Backup(node)),
        Act::Rollback { nodes } => world.at(0, Event::Rollback(nodes)),
        Act::Copy { node } => world.at(0, Event::Copy(node)),
    }
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
        let (one, other) = if config.copy_ends { (twin, copied) } else { (copied, twin) };
        if world.is_up(twin) {
            world.at(0, Event::Retire(one));
            world.at(0, Event::Crash(other));
        }
    }
    world.at(0, Event::Mend);
    for node in 0..world.node_count() {
        world.at(0, Event::Resume(node));
        world.at(0, Event::Start(node));
    }
    if let Some(record) = config.busy.map(|busy| workload::records()[busy].clone()) {
        let home = record.partition(config.partitions);
        let mut looks = 0;
        agree(world, began + config.convergence_us_max(), Some(home), |world| {
            let mut writes = workload::commit_to(&mut world.draws.of(Of::Busy, &[looks]), &record);
            looks += 1;
            if config.windows_end {
                workload::without_deletions(&mut writes);
            }
            workload::without_edits(&mut writes);
            world.at(0, Event::Client(0, Ask { writes, ..Ask::default() }));
        })?;
    }
    agree(world, began + config.convergence_us_max(), None, |_| {})?;
    let took = world.now_us - began;
    // What a consumer was told of and no disk holds any more is not taken back from it.
    let keeps_all =
        config.copied.is_none() && !world.may_wait_for_ever && !config.unsynced.iter().any(|un| *un);
    for node in 0..world.node_count() {
        world.check(node)?;
        if keeps_all {
            world.check_consumer(node)?;
        }
    }
    let linked = |node: usize, peer: &str| !config.star || node == 0 || peer == "n0";
    // Nodes make commits that nobody asked for: when windows of idempotency keys end, when sums that a repair brought
    // are folded, and when what has expired is swept. Then it all begins once more.
    let goes_on = config.windows_end || config.tuning.log_bytes_max != u64::MAX || world.has_due()?;
    let deadline = world.now_us + if goes_on { config.convergence_us_max() } else { 0 };
    let unsettled = loop {
        let until = world.now_us + SETTLED_INTERVALS * config.tuning.contexts_interval_us;
        while world.advance(until)? {}
        let unsettled = world.unsettled(linked);
        if unsettled.is_none() || world.now_us >= deadline {
            break unsettled;
        }
    };
    if goes_on {
        // What was folded or swept meanwhile.
        agree(world, world.now_us + config.convergence_us_max(), None, |_| {})?;
        for node in 0..world.node_count() {
            world.check(node)?;
            if keeps_all {
                world.check_consumer(node)?;
            }
        }
    }
    // A node of an older wire version compares nothing.
    // What a sweep has not found it may take.
    let may_lose = config.tuning.scrub_us != u64::MAX && !config.has_old() && !world.has_due()?;
    if unsettled.is_none() && may_lose && world.lose_rows()? {
        // In a scrub all rows are read several times, at what rate the run has drawn.
        agree(world, world.now_us + CRAMPED_CONVERGENCE_US_MAX, None, |_| {})?;
        for node in 0..world.node_count() {
            world.check(node)?;
            if keeps_all {
                world.check_consumer(node)?;
            }
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
    mut meanwhile: impl FnMut(&mut World),
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
        faults: Faults::new(),
        views: Vec::new(),
        marks: Vec::new(),
    }
}
