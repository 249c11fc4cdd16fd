//! Making a script that fails shorter, for as long as it goes on failing in the same way.
//!
//! Steps go first, in large runs and then one by one (delta debugging: Zeller, Hildebrandt, 2002), then parts of steps
//! (writes, operations, members, what a client says), then the configuration becomes plainer: fewer nodes and clients, no
//! loss, the protocol's default windows. All of it again, until nothing more can go or as many runs were tried as are
//! allowed. What the world leaves to chance is not shifted by what is left out ([`crate::draws`]), so that most of what a
//! failure does not need can go.

use godwit_core::op::{Op, Write};
use godwit_proto::message::WIRE_VERSION;

use crate::clients::Plan;
use crate::config::{RunConfig, plain_tuning};
use crate::script::{Act, Script, Step};

/// As many runs are tried unless somebody says otherwise.
pub const RUNS_MAX: u32 = 2_000;

/// What shrinking came to.
#[derive(Debug, Clone)]
pub struct Shrunk {
    /// The shortest script found.
    pub script: Script,
    /// How many runs were tried.
    pub runs: u32,
    /// Whether all runs that were allowed were tried, so that it might become shorter still.
    pub ran_out: bool,
}

/// Shrinks a script. `fails` plays a candidate: when it failed in the same way, in simulated microseconds, or `None` if it
/// did not.
pub fn shrink(script: &Script, runs_max: u32, fails: impl FnMut(&Script) -> Option<u64>) -> Shrunk {
    let mut search = Search { best: script.clone(), runs: 0, runs_max, fails };
    // The script as it is tells when it fails: what comes later was not even played.
    if search.attempt(script.clone()) {
        while search.runs < runs_max && (search.steps() | search.parts() | search.configuration()) {}
    }
    Shrunk { ran_out: search.runs >= runs_max, runs: search.runs, script: search.best }
}

struct Search<F> {
    best: Script,
    runs: u32,
    runs_max: u32,
    fails: F,
}

impl<F: FnMut(&Script) -> Option<u64>> Search<F> {
    /// Takes the candidate for the best if it fails.
    fn attempt(&mut self, candidate: Script) -> bool {
        if self.runs >= self.runs_max {
            return false;
        }
        self.runs += 1;
        let Some(failed_us) = (self.fails)(&candidate) else { return false };
        self.best = candidate;
        self.best.steps.retain(|step| step.at_us <= failed_us);
        true
    }

    /// The same for a change, if it changes anything that is written down.
    fn change(&mut self, change: impl FnOnce(&mut Script)) -> bool {
        let mut candidate = self.best.clone();
        change(&mut candidate);
        let same = candidate.steps == self.best.steps
            && format!("{:?}", candidate.config) == format!("{:?}", self.best.config);
        !same && self.attempt(candidate)
    }

    fn steps(&mut self) -> bool {
        let mut shorter = false;
        let mut chunk = self.best.steps.len().div_ceil(2);
        while chunk > 0 && self.runs < self.runs_max {
            let mut went = false;
            // From the end: what failed lately depends on what is before it, and seldom the other way round.
            let mut end = self.best.steps.len();
            while end > 0 {
                let start = end.saturating_sub(chunk);
                went |= self.change(|script| drop(script.steps.drain(start..end)));
                end = start.min(self.best.steps.len());
            }
            shorter |= went;
            if chunk == 1 && !went {
                break;
            }
            chunk = if chunk == 1 { 1 } else { chunk.div_ceil(2) };
        }
        shorter
    }

    fn parts(&mut self) -> bool {
        let mut smaller = false;
        for i in (0..self.best.steps.len()).rev() {
            // Steps may go meanwhile: those after a failure that now comes sooner.
            while let Some(step) = self.best.steps.get(i) {
                let mut acts = smaller_acts(&self.best.config, &step.act).into_iter();
                if !acts.any(|act| self.change(|script| script.steps[i].act = act)) {
                    break;
                }
                smaller = true;
            }
        }
        smaller
    }

    fn configuration(&mut self) -> bool {
        let mut plainer = false;
        for change in PLAINER {
            plainer |= self.change(change);
        }
        for node in (0..self.best.config.nodes).rev() {
            plainer |= self.change(|script| without_node(script, node));
        }
        for client in (0..self.best.config.clients).rev() {
            plainer |= self.change(|script| without_client(script, client));
        }
        plainer
    }
}

/// The same step with one part less, each.
fn smaller_acts(config: &RunConfig, act: &Act) -> Vec<Act> {
    match act {
        Act::Commit { node, writes } => {
            fewer(writes).into_iter().map(|writes| Act::Commit { node: *node, writes }).collect()
        }
        Act::Session { client, node, plan: Plan::Write { writes, says, key } } => {
            let (client, node) = (*client, *node);
            let session =
                |writes, says, key| Act::Session { client, node, plan: Plan::Write { writes, says, key } };
            let mut acts = vec![Act::Commit { node, writes: writes.clone() }];
            if *says {
                acts.push(session(writes.clone(), false, *key));
            }
            if key.is_some() {
                acts.push(session(writes.clone(), *says, None));
            }
            acts.extend(fewer(writes).into_iter().map(|writes| session(writes, *says, *key)));
            acts
        }
        Act::Rollback { nodes } if nodes.len() > 1 => {
            (0..nodes.len()).map(|i| Act::Rollback { nodes: without(nodes, i) }).collect()
        }
        Act::Isolate { node, for_us } => {
            let links = config.pairs().into_iter().filter(|link| link.0 == *node || link.1 == *node);
            links.map(|link| Act::Cut { link, for_us: *for_us }).collect()
        }
        Act::IsolateRegion { region, for_us } => {
            let links = config.pairs().into_iter().filter(|&link| config.leaves(*region, link));
            links.map(|link| Act::Cut { link, for_us: *for_us }).collect()
        }
        Act::Flap { link, times, each_us } => {
            let fewer =
                (*times > 1).then_some(Act::Flap { link: *link, times: times / 2, each_us: *each_us });
            fewer.into_iter().chain([Act::Cut { link: *link, for_us: *each_us }]).collect()
        }
        Act::PowerCut { node, for_us } => vec![Act::Crash { node: *node, for_us: *for_us }],
        _ => Vec::new(),
    }
}

/// The same writes with one part less, each.
fn fewer(writes: &[Write]) -> Vec<Vec<Write>> {
    let mut all = Vec::new();
    for (i, write) in writes.iter().enumerate() {
        if writes.len() > 1 {
            all.push(without(writes, i));
        }
        let with_ops = |ops: Vec<Op>| {
            let mut writes = writes.to_vec();
            writes[i].ops = ops;
            writes
        };
        for (j, op) in write.ops.iter().enumerate() {
            if write.ops.len() > 1 {
                all.push(with_ops(without(&write.ops, j)));
            }
            if let Op::Add { members, .. } | Op::Remove { members, .. } = op
                && members.len() > 1
            {
                for k in 0..members.len() {
                    let mut ops = write.ops.clone();
                    if let Op::Add { members, .. } | Op::Remove { members, .. } = &mut ops[j] {
                        members.remove(k);
                    }
                    all.push(with_ops(ops));
                }
            }
        }
    }
    all
}

fn without<T: Clone>(all: &[T], i: usize) -> Vec<T> {
    let mut fewer = all.to_vec();
    fewer.remove(i);
    fewer
}

/// Values of the configuration that say less.
const PLAINER: [fn(&mut Script); 25] = [
    |script| script.config.active_us = script.steps.last().map_or(0, |step| step.at_us),
    |script| script.config.busy = None,
    |script| script.config.star = false,
    |script| without_copy(script),
    |script| {
        let network = &mut script.config.network;
        (network.lost_of_1000, network.doubled_of_1000, network.reordered_of_1000) = (0, 0, 0);
    },
    |script| script.config.network.lost_of_1000 = 0,
    |script| script.config.network.doubled_of_1000 = 0,
    |script| script.config.network.reordered_of_1000 = 0,
    |script| script.config.network.jitter_us = 0,
    |script| script.config.wires.fill(WIRE_VERSION),
    |script| script.config.clock_offsets_ms.fill(0),
    |script| {
        let most = script.config.fsync_us.iter().copied().max().unwrap_or(0);
        script.config.fsync_us.fill(most);
    },
    |script| {
        script.config.windows_end = false;
        script.config.idempotency_window_ms = 86_400_000;
    },
    |script| script.config.partitions = 1,
    |script| script.config.network.links.clear(),
    |script| script.config.network.damaged_of_1000 = 0,
    |script| script.config.drifts_ppm.fill(0),
    |script| script.config.paces_ppm.fill(0),
    |script| script.config.unsynced.fill(false),
    |script| script.config.tuning = plain_tuning(),
    |script| script.config.tuning.sizes = plain_tuning().sizes,
    |script| {
        let (tuning, plain) = (&mut script.config.tuning, plain_tuning());
        tuning.window_bytes = plain.window_bytes;
        tuning.chunk_bytes = plain.chunk_bytes;
        tuning.relay_bytes = plain.relay_bytes;
        tuning.pending_bytes_max = plain.pending_bytes_max;
        tuning.push_commits_max = plain.push_commits_max;
    },
    |script| {
        let (tuning, plain) = (&mut script.config.tuning, plain_tuning());
        tuning.repair_bytes_per_s = plain.repair_bytes_per_s;
        tuning.repair_rows = plain.repair_rows;
        tuning.repair_window_bytes = plain.repair_window_bytes;
        tuning.repair_tree_bits = plain.repair_tree_bits;
    },
    |script| script.config.tuning.scrub_us = u64::MAX,
    |script| {
        let (tuning, plain) = (&mut script.config.tuning, plain_tuning());
        tuning.log_bytes_max = plain.log_bytes_max;
        tuning.log_age_max_ms = plain.log_age_max_ms;
    },
];

fn without_copy(script: &mut Script) {
    if let Some(copied) = script.config.copied {
        script.steps.retain(|step| !matches!(step.act, Act::Copy { .. }));
        // Clients of the copy go to the one that it was copied from.
        let places = script.steps.iter_mut().filter_map(|step| place_of(&mut step.act));
        places.filter(|place| **place == script.config.nodes).for_each(|place| *place = copied);
        without_place(script, script.config.nodes);
        script.config.copied = None;
        script.config.copy_ends = false;
    }
}

fn without_node(script: &mut Script, node: usize) {
    let config = &mut script.config;
    // A node that is copied goes after its copy, and somebody must be left to talk to.
    if config.nodes <= 2 || node >= config.nodes || config.copied.is_some() {
        return;
    }
    config.nodes -= 1;
    config.fsync_us.remove(node);
    config.clock_offsets_ms.remove(node);
    config.wires.remove(node);
    config.regions.remove(node);
    config.drifts_ppm.remove(node);
    if !config.paces_ppm.is_empty() {
        config.paces_ppm.remove(node);
    }
    config.unsynced.remove(node);
    let up = |place: usize| place - usize::from(place > node);
    let links = std::mem::take(&mut config.network.links).into_iter();
    let links = links.filter(|&((a, b), _)| a != node && b != node);
    config.network.links = links.map(|((a, b), link)| ((up(a), up(b)), link)).collect();
    without_place(script, node);
}

/// Leaves out what happens at a place; places after it move up.
fn without_place(script: &mut Script, gone: usize) {
    let kept = |place: &mut usize| {
        let stays = *place != gone;
        *place -= usize::from(*place > gone);
        stays
    };
    script.steps.retain_mut(|Step { act, .. }| match act {
        Act::Cut { link: (a, b), .. }
        | Act::Flap { link: (a, b), .. }
        | Act::CutWay { from: a, to: b, .. }
        | Act::Reset { link: (a, b) } => kept(a) & kept(b),
        Act::Rollback { nodes } => {
            nodes.retain_mut(kept);
            !nodes.is_empty()
        }
        act => place_of(act).is_none_or(kept),
    });
}

/// The place of what happens at one.
fn place_of(act: &mut Act) -> Option<&mut usize> {
    match act {
        Act::Commit { node, .. }
        | Act::Session { node, .. }
        | Act::Count { node, .. }
        | Act::Check { node }
        | Act::Isolate { node, .. }
        | Act::Pause { node, .. }
        | Act::SlowDisk { node, .. }
        | Act::RefusingDisk { node, .. }
        | Act::PowerCut { node, .. }
        | Act::Crash { node, .. }
        | Act::Stop { node, .. }
        | Act::Clock { node, .. }
        | Act::Backup { node }
        | Act::Copy { node } => Some(node),
        Act::Cut { .. }
        | Act::CutWay { .. }
        | Act::Flap { .. }
        | Act::IsolateRegion { .. }
        | Act::Reset { .. }
        | Act::Rollback { .. } => None,
    }
}

fn without_client(script: &mut Script, gone: usize) {
    script.config.clients -= 1;
    script.steps.retain_mut(|Step { act, .. }| match act {
        Act::Session { client, .. } => {
            let stays = *client != gone;
            *client -= usize::from(*client > gone);
            stays
        }
        _ => true,
    });
}
