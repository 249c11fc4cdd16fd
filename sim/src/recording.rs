//! Scripts as files: JSON Lines, the first with the format's version and the configuration, then one line a step.
//!
//! What is read is checked before it is played: a file that was written by hand, or by another version, gets an error that
//! names the line, and never a panic or a run that means something else. A file that was written is read back as the same
//! script, with the same trace.

use std::fmt;

use godwit_core::ids::MAX_PARTITIONS;
use godwit_core::op::Write;
use godwit_proto::message::{WIRE_OLDEST, WIRE_VERSION};
use serde::{Deserialize, Serialize};

use crate::clients::Plan;
use crate::config::RunConfig;
use crate::network::pair;
use crate::script::{Act, Script, Step};
use crate::workload;

/// The version of the format: counted up when a file of before would mean something else.
pub const SCRIPT_VERSION: u32 = 1;

/// The most nodes of a script.
pub const NODES_MAX: usize = 64;
/// The most clients that carry tokens.
pub const CLIENTS_MAX: usize = 1_000;
/// The most times that one step cuts a link.
pub const FLAPS_MAX: u64 = 1_000;
/// What a clock may gain or lose, in millionths.
pub const DRIFT_PPM_MAX: u64 = 1_000_000;
/// The most steps of a script.
pub const STEPS_MAX: usize = 1_000_000;
/// The longest time that a script may name, in simulated microseconds: a day.
pub const TIME_US_MAX: u64 = 86_400_000_000;

/// How far off a clock may be, how long keys are remembered, and how far stamps are followed, in milliseconds: a year.
pub const WALL_MS_MAX: u64 = 31_536_000_000;

/// Why a script was not read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScriptError {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub what: String,
}

impl fmt::Display for ScriptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.what)
    }
}

impl std::error::Error for ScriptError {}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    godwit_sim_script: u32,
    seed: u64,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    note: String,
    config: RunConfig,
}

/// Only what tells whether the rest can be read.
#[derive(Deserialize)]
struct Version {
    godwit_sim_script: u32,
}

/// The text of a script's file.
pub fn write(script: &Script) -> String {
    let head = Head {
        godwit_sim_script: SCRIPT_VERSION,
        seed: script.seed,
        note: script.note.clone(),
        config: script.config.clone(),
    };
    let mut text = json(&head);
    for step in &script.steps {
        text.push('\n');
        text.push_str(&json(step));
    }
    text.push('\n');
    text
}

/// Reads a script's file.
///
/// # Errors
///
/// The first line that is not JSON, not of this version, or names what the configuration does not have.
pub fn read(text: &str) -> Result<Script, ScriptError> {
    let at = |line: usize| move |what: String| ScriptError { line, what };
    let mut lines =
        text.lines().enumerate().map(|(i, line)| (i + 1, line)).filter(|(_, line)| !line.trim().is_empty());
    let Some((number, first)) = lines.next() else {
        return Err(at(1)(
            "the file is empty: the first line holds the version and the configuration".into(),
        ));
    };
    let fail = at(number);
    let version: Version = serde_json::from_str(first).map_err(|error| {
        fail(format!(
            "no script of godwit-sim: it begins with {{\"godwit_sim_script\":{SCRIPT_VERSION},… ({error})"
        ))
    })?;
    if version.godwit_sim_script != SCRIPT_VERSION {
        let found = version.godwit_sim_script;
        return Err(fail(format!(
            "the script is of version {found}, this build reads version {SCRIPT_VERSION}: play it with the build that wrote it"
        )));
    }
    let head: Head =
        serde_json::from_str(first).map_err(|error| fail(format!("the configuration: {error}")))?;
    check_config(&head.config).map_err(fail)?;
    let mut script = Script { seed: head.seed, note: head.note, config: head.config, steps: Vec::new() };
    let mut now = 0;
    for (number, line) in lines {
        let fail = at(number);
        let step: Step = serde_json::from_str(line).map_err(|error| fail(error.to_string()))?;
        if script.steps.len() == STEPS_MAX {
            return Err(fail(format!("a script has at most {STEPS_MAX} steps")));
        }
        if step.at_us < now || step.at_us > script.config.active_us {
            let end = script.config.active_us;
            return Err(fail(format!(
                "a step at {} µs must not come before the one above it ({now} µs), nor after faults end (active_us, {end} µs)",
                step.at_us
            )));
        }
        check_act(&script.config, &step.act).map_err(fail)?;
        now = step.at_us;
        script.steps.push(step);
    }
    Ok(script)
}

fn json(what: &impl Serialize) -> String {
    serde_json::to_string(what).expect("plain data with text keys is JSON")
}

fn check_config(config: &RunConfig) -> Result<(), String> {
    let nodes = config.nodes;
    demand((2..=NODES_MAX).contains(&nodes), || format!("nodes must be 2 to {NODES_MAX}, not {nodes}"))?;
    for (name, len) in [
        ("fsync_us", config.fsync_us.len()),
        ("clock_offsets_ms", config.clock_offsets_ms.len()),
        ("wires", config.wires.len()),
        ("regions", config.regions.len()),
        ("drifts_ppm", config.drifts_ppm.len()),
        ("unsynced", config.unsynced.len()),
    ] {
        demand(len == nodes, || format!("{name} must have an entry for each of {nodes} nodes, not {len}"))?;
    }
    demand([0, nodes].contains(&config.paces_ppm.len()), || {
        format!("paces_ppm must have an entry for each of {nodes} nodes, or none at all")
    })?;
    demand(config.wires.iter().all(|wire| (WIRE_OLDEST..=WIRE_VERSION).contains(wire)), || {
        format!("wires must be {WIRE_OLDEST} to {WIRE_VERSION}, not {:?}", config.wires)
    })?;
    demand((1..=MAX_PARTITIONS).contains(&config.partitions), || {
        format!("partitions must be 1 to {MAX_PARTITIONS}, not {}", config.partitions)
    })?;
    demand(config.clients <= CLIENTS_MAX, || format!("clients must be at most {CLIENTS_MAX}"))?;
    demand(config.group_max > 0, || "group_max must be at least 1".into())?;
    demand(config.copied.is_none_or(|copied| copied < nodes), || "copied is no node".into())?;
    let records = workload::records().len();
    demand(config.busy.is_none_or(|busy| busy < records), || format!("busy must be below {records}"))?;
    let (network, tuning) = (&config.network, &config.tuning);
    for (name, ratio) in [
        ("lost_of_1000", network.lost_of_1000),
        ("doubled_of_1000", network.doubled_of_1000),
        ("reordered_of_1000", network.reordered_of_1000),
        ("damaged_of_1000", network.damaged_of_1000),
    ] {
        demand(ratio < 1_000, || format!("{name} must be below 1000, not {ratio}"))?;
    }
    demand(network.links.keys().all(|link| config.pairs().contains(link)), || {
        "links must be those of two nodes, the smaller place first".into()
    })?;
    demand(network.links.values().all(|link| link.lost_of_million < 1_000_000), || {
        "lost_of_million must be below 1000000".into()
    })?;
    let drifts = config.drifts_ppm.iter().chain(&config.paces_ppm);
    demand(drifts.map(|ppm| ppm.unsigned_abs()).all(|ppm| ppm <= DRIFT_PPM_MAX), || {
        format!("drifts_ppm and paces_ppm must be at most {DRIFT_PPM_MAX}")
    })?;
    let of_links = network.links.values().flat_map(|link| [link.latency_us, link.jitter_us]);
    let times = [
        ("the latency of a link", of_links.max().unwrap_or(0)),
        ("active_us", config.active_us),
        ("latency_us", network.latency_us),
        ("jitter_us", network.jitter_us),
        ("idle_us", network.idle_us),
        ("fsync_us", config.fsync_us.iter().copied().max().unwrap_or(0)),
    ];
    let offsets = config.clock_offsets_ms.iter().map(|offset| offset.unsigned_abs());
    for (name, ms) in [
        ("clock_offsets_ms", offsets.max().unwrap_or(0)),
        ("max_clock_drift_ms", config.max_clock_drift_ms),
        ("idempotency_window_ms", config.idempotency_window_ms),
    ] {
        demand(ms <= WALL_MS_MAX, || format!("{name} must be at most {WALL_MS_MAX}, not {ms}"))?;
    }
    // A wait of nothing would be over again and again at one moment.
    let waits = [
        ("connect_us", network.connect_us),
        ("contexts_delay_us", tuning.contexts_delay_us),
        ("contexts_interval_us", tuning.contexts_interval_us),
        ("resend_after_us", tuning.resend_after_us),
        ("relay_wait_linked_us", tuning.relay_wait_linked_us),
        ("relay_wait_cut_us", tuning.relay_wait_cut_us),
        ("relay_retry_us", tuning.relay_retry_us),
        ("job_delay_us", tuning.job_delay_us),
        ("job_pause_us", tuning.job_pause_us),
        ("log_check_us", tuning.log_check_us),
    ];
    for (name, time) in times.into_iter().chain(waits) {
        demand(time <= TIME_US_MAX, || format!("{name} must be at most {TIME_US_MAX}, not {time}"))?;
    }
    let scrub_us = tuning.scrub_us;
    demand(scrub_us == u64::MAX || (1..=TIME_US_MAX).contains(&scrub_us), || {
        format!("scrub_us must be 1 to {TIME_US_MAX}, or {} for never, not {scrub_us}", u64::MAX)
    })?;
    for (name, time) in waits {
        demand(time > 0, || format!("{name} must be at least 1"))?;
    }
    let sizes = &tuning.sizes;
    let least = sizes.checkpoint_entries.min(sizes.checkpoint_bytes).min(sizes.sweep_rows as u64);
    demand(least > 0, || "checkpoint_entries, checkpoint_bytes and sweep_rows must be at least 1".into())
}

fn check_act(config: &RunConfig, act: &Act) -> Result<(), String> {
    let node = |node: usize| {
        let places = config.places();
        demand(node < places, || format!("there is no node {node}: places are 0 to {}", places - 1))
    };
    let link = |link: (usize, usize)| {
        demand(config.pairs().contains(&link), || {
            format!("there is no link {link:?} (the smaller place first)")
        })
    };
    let time = |us: u64| demand(us <= TIME_US_MAX, || format!("{us} µs are more than {TIME_US_MAX}"));
    match act {
        Act::Commit { node: at, writes } => node(*at).and_then(|()| one_partition(config, writes)),
        Act::Session { client, node: at, plan } => {
            node(*at)?;
            demand(*client < config.clients, || {
                format!("there is no client {client} of {}", config.clients)
            })?;
            match plan {
                Plan::Write { writes, .. } => one_partition(config, writes),
                Plan::Read | Plan::Retry => Ok(()),
            }
        }
        Act::Count { node: at, .. } | Act::Check { node: at } => node(*at),
        Act::Isolate { node: at, for_us }
        | Act::Pause { node: at, for_us }
        | Act::RefusingDisk { node: at, for_us }
        | Act::PowerCut { node: at, for_us }
        | Act::Crash { node: at, for_us }
        | Act::Stop { node: at, for_us } => node(*at).and_then(|()| time(*for_us)),
        Act::Cut { link: cut, for_us } => link(*cut).and_then(|()| time(*for_us)),
        Act::Reset { link: reset } => link(*reset),
        Act::CutWay { from, to, for_us } => link(pair(*from, *to)).and_then(|()| time(*for_us)),
        Act::Flap { link: flaps, times, each_us } => {
            link(*flaps)?;
            demand(*times <= FLAPS_MAX, || format!("a link flaps at most {FLAPS_MAX} times, not {times}"))?;
            time(times.saturating_mul(*each_us))
        }
        Act::IsolateRegion { region, for_us } => {
            demand(config.regions.contains(region), || format!("there is no region {region}"))?;
            time(*for_us)
        }
        Act::SlowDisk { node: at, fsync_us, for_us } => {
            node(*at).and_then(|()| time(*fsync_us)).and_then(|()| time(*for_us))
        }
        Act::Clock { node: at, offset_ms } => {
            node(*at)?;
            demand(offset_ms.unsigned_abs() <= WALL_MS_MAX, || {
                format!("a clock is at most {WALL_MS_MAX} ms off, not {offset_ms}")
            })
        }
        Act::Backup { node: at } => node(*at),
        Act::Rollback { nodes } => nodes.iter().try_for_each(|&at| node(at)),
        Act::Copy { node: at } => demand(config.copied == Some(*at), || {
            format!("node {at} cannot be copied: the configuration's \"copied\" is {:?}", config.copied)
        }),
    }
}

fn one_partition(config: &RunConfig, writes: &[Write]) -> Result<(), String> {
    let mut homes = writes.iter().map(|write| write.record.partition(config.partitions));
    let first = homes.next();
    demand(homes.all(|home| Some(home) == first), || {
        "the records of a commit are of more than one partition".into()
    })
}

fn demand(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}
