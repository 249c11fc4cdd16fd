//! How some runs end: in a scene, after which nobody writes any more.
//!
//! Later commits mend much: what was not sent shows as a gap, and is sent again. And some bugs need four or five things in
//! a row that chance seldom puts together. So one run in [`SCENE_ONE_IN`] is cut off somewhere and ends with such a row, whose
//! nodes, times and commits are drawn; what went wrong before goes on into it. Scenes have draws of their own, so that the
//! seeds without one are what they would be if there were none.

use godwit_core::op::{Op, Write};
use godwit_core::rng::Rng;

use crate::clients::Plan;
use crate::config::RunConfig;
use crate::network::pair;
use crate::script::{Act, Script, Step};
use crate::workload;

/// One run in so many ends with a scene.
const SCENE_ONE_IN: u64 = 3;
/// And of the others one in so many that all speak the present wire version: with a repair.
const REPAIR_ONE_IN: u64 = 6;
/// What the draws of scenes are told from those of scripts by.
const SALT: u64 = 0x05ce_4e5c_e4e5;
/// How long nothing but what went on before happens after the last step of a scene.
const AFTER_US: u64 = 6_000_000;
/// How long a node asks to go on under its id, at most, before its first commit.
const ASKS_US: u64 = 1_000_000;

/// The ends that a run may take.
#[derive(Debug, Clone, Copy)]
enum Scene {
    /// Clients fall silent, faults go on.
    Silence,
    /// Nodes restart, so that nobody's word counts, and the last commits wait for a new incarnation.
    AllRestart,
    /// What answers a request is the last that is sent, over a network that loses frames.
    LastAnswer,
    /// A node restarts within reach of one member, and again, with its disk put back, within reach of another.
    OneMemberEach,
    /// A node stops in order, and two processes go on with what it left.
    TwoGoOn,
    /// A node is cut off until no log reaches back to what it has, and writes while it repairs its state.
    OutOfReach,
}

/// Ends a script with a scene, if its seed has one.
pub(super) fn play_out(script: &mut Script, rollbacks: bool) {
    let mut rng = Rng::new(script.seed ^ SALT);
    if rng.chance(1, SCENE_ONE_IN) {
        let scene = *rng.pick(&possible(&script.config, rollbacks));
        end_with(scene, script, rng);
    } else if !script.config.has_old() && rng.chance(1, REPAIR_ONE_IN) {
        end_with(Scene::OutOfReach, script, rng);
    }
}

/// The scenes that a configuration allows.
fn possible(config: &RunConfig, rollbacks: bool) -> Vec<Scene> {
    let plain = !config.has_old() && !config.unsynced.contains(&true);
    let mut scenes = vec![Scene::Silence, Scene::AllRestart];
    if config.copied.is_none() && !config.has_old() {
        scenes.push(Scene::LastAnswer);
    }
    if plain && config.nodes > 2 && (rollbacks || config.copied.is_none()) {
        scenes.push(Scene::OneMemberEach);
    }
    if plain {
        scenes.push(Scene::TwoGoOn);
    }
    scenes
}

fn end_with(scene: Scene, script: &mut Script, mut rng: Rng) {
    let config = &mut script.config;
    config.busy = None;
    let begins_us = config.active_us / 4 + rng.below(config.active_us / 2);
    let mut director = Director { rng, now_us: begins_us, steps: Vec::new(), config };
    match scene {
        Scene::Silence => {
            let is_asked = |step: &Step| matches!(step.act, Act::Commit { .. } | Act::Session { .. });
            script.steps.retain(|step| step.at_us < begins_us || !is_asked(step));
            return;
        }
        Scene::AllRestart => director.all_restart(),
        Scene::LastAnswer => director.last_answer(),
        Scene::OneMemberEach => director.one_member_each(),
        Scene::TwoGoOn => director.two_go_on(),
        Scene::OutOfReach => director.out_of_reach(),
    }
    let Director { now_us, mut steps, .. } = director;
    script.config.active_us = now_us + AFTER_US;
    script.steps.retain(|step| step.at_us < begins_us);
    steps.sort_by_key(|step| step.at_us);
    script.steps.append(&mut steps);
    (0..).zip(&mut script.steps).for_each(|(number, step)| step.number = number);
}

/// Writes a scene.
struct Director<'a> {
    rng: Rng,
    now_us: u64,
    steps: Vec<Step>,
    config: &'a mut RunConfig,
}

impl Director<'_> {
    fn step(&mut self, after_us: u64, act: Act) {
        self.steps.push(Step { number: 0, at_us: self.now_us + after_us, act });
    }

    fn node(&mut self) -> usize {
        self.rng.below(self.config.nodes as u64) as usize
    }

    /// Commits at a place, spread over a time.
    fn commits(&mut self, place: usize, count: u64, after_us: u64, within_us: u64) {
        for _ in 0..count {
            let mut writes = workload::commit(&mut self.rng, self.config.partitions);
            if self.config.windows_end {
                workload::without_deletions(&mut writes);
            }
            let at_us = after_us + self.rng.below(within_us);
            self.step(at_us, Act::Commit { node: place, writes });
        }
    }

    /// Links that are made quickly: a scene reckons with less than a second.
    fn quick_links(&mut self) {
        self.config.network.connect_us = 10_000 + self.rng.below(50_000);
    }

    fn all_restart(&mut self) {
        self.quick_links();
        // Little goes at once, so that some of what waited is sent from the log.
        self.config.tuning.window_bytes = 200 << self.rng.below(3);
        self.config.tuning.push_commits_max = 16 << self.rng.below(4);
        let node = self.node();
        let down_us = 300_000 + self.rng.below(300_000);
        self.step(0, Act::Stop { node, for_us: down_us });
        for other in (0..self.config.nodes).filter(|&other| other != node) {
            let after_us = 100_000 + self.rng.below(100_000);
            let for_us = 1 + self.rng.below(100_000);
            self.step(after_us, Act::Crash { node: other, for_us });
        }
        let count = 2 + self.rng.below(12);
        self.commits(node, count, down_us + 100_000, ASKS_US);
        self.now_us += down_us + 100_000 + ASKS_US;
    }

    fn last_answer(&mut self) {
        self.quick_links();
        let config = &mut *self.config;
        // Only the origin can tell, and only in several messages.
        config.star = config.nodes > 2;
        config.network.idle_us = 500_000 + self.rng.below(500_000);
        config.network.lost_of_1000 = 50 + self.rng.below(100);
        config.tuning.push_commits_max = 1 << self.rng.below(4);
        config.tuning.chunk_bytes = 100 << self.rng.below(3);
        config.tuning.relay_bytes = 10_000 << self.rng.below(4);
        let times = 1 + self.rng.below(4);
        for _ in 0..times {
            let for_us = 2 * self.config.network.idle_us;
            self.step(0, Act::Isolate { node: 0, for_us });
            let count = self.config.tuning.push_commits_max + 5 + self.rng.below(20);
            let count = count * u64::from(self.config.partitions);
            self.commits(0, count, 0, for_us);
            self.now_us += for_us + 1_000_000;
        }
    }

    fn one_member_each(&mut self) {
        self.quick_links();
        let node = self.node();
        let others: Vec<usize> = (0..self.config.nodes).filter(|&other| other != node).collect();
        let first = *self.rng.pick(&others);
        // First one member only, then all others but that one, which hear nothing of it meanwhile.
        let turn_us = 1_500_000 + self.rng.below(1_000_000);
        for other in others.into_iter().filter(|&other| other != first) {
            self.step(0, Act::Cut { link: pair(node, other), for_us: turn_us });
            self.step(0, Act::Cut { link: pair(first, other), for_us: turn_us + 4_000_000 });
        }
        self.step(turn_us, Act::Cut { link: pair(node, first), for_us: 4_000_000 });
        let for_us = 1 + self.rng.below(100_000);
        self.step(1_000, Act::Stop { node, for_us });
        let count = 1 + self.rng.below(4);
        self.commits(node, count, 300_000, turn_us - 300_000);
        self.step(turn_us + 1_000, Act::Rollback { nodes: vec![node] });
        let count = 2 + self.rng.below(8);
        self.commits(node, count, turn_us + 100_000, 3_900_000);
        self.now_us += turn_us + 4_000_000;
    }

    fn two_go_on(&mut self) {
        self.quick_links();
        let node = *self.config.copied.get_or_insert(0);
        let twin = self.config.nodes;
        self.config.star = false;
        let down_us = 1 + self.rng.below(1_000_000);
        self.step(0, Act::Stop { node, for_us: down_us });
        let copied_us = 200_000 + self.rng.below(2_000_000);
        self.step(copied_us, Act::Copy { node });
        let both_us = down_us.max(copied_us);
        for place in [node, twin] {
            let count = 1 + self.rng.below(4);
            self.commits(place, count, both_us + 100_000, 2_000_000);
        }
        self.now_us += both_us + 2_100_000;
    }

    fn out_of_reach(&mut self) {
        self.quick_links();
        let node = self.node();
        let config = &mut *self.config;
        config.star = false;
        // Small parts, read slowly: much happens between the first and the last of a repair.
        config.tuning.log_bytes_max = 100 << self.rng.below(4);
        config.tuning.sizes.checkpoint_entries = 1 + self.rng.below(4);
        config.tuning.sizes.checkpoint_bytes = 50 << self.rng.below(4);
        config.tuning.repair_rows = 1 << self.rng.below(4);
        config.tuning.repair_bytes_per_s = 2_000 << self.rng.below(8);
        // A slow clock, that follows the others'.
        config.max_clock_drift_ms = config.max_clock_drift_ms.max(100_000);
        config.clock_offsets_ms[node] = -(self.rng.below(20_000) as i64);
        config.clients = config.clients.max(1);
        let others: Vec<usize> = (0..config.nodes).filter(|&other| other != node).collect();
        let times = 1 + self.rng.below(3);
        for _ in 0..times {
            let away_us = 1_000_000 + self.rng.below(2_000_000);
            self.step(0, Act::Isolate { node, for_us: away_us });
            let count = 5 + self.rng.below(30);
            for _ in 0..count {
                let other = *self.rng.pick(&others);
                self.commits(other, 1, 0, away_us);
            }
            if self.rng.chance(1, 2) {
                let other = *self.rng.pick(&others);
                self.deletions(other, away_us);
            }
            let key = self.now_us;
            if self.rng.chance(1, 2) {
                let other = *self.rng.pick(&others);
                self.once(other, key, away_us / 2);
            }
            if self.rng.chance(1, 3) {
                let for_us = 1 + self.rng.below(300_000);
                let after_us = away_us + self.rng.below(1_000_000);
                self.step(after_us, Act::Crash { node, for_us });
            }
            let back_us = 1_000_000 + self.rng.below(3_000_000);
            let count = self.rng.below(16);
            self.commits(node, count, away_us, back_us);
            // A retry after the window of its key would be another request.
            let retries = if self.config.windows_end { 0 } else { self.rng.below(6) };
            for _ in 0..retries {
                let after_us = away_us + self.rng.below(back_us);
                self.step(after_us, Act::Session { client: 0, node, plan: Plan::Retry });
            }
            self.now_us += away_us + back_us;
        }
        // A clock so far ahead that nobody follows it must not hide the stamps of others.
        if others.len() > 1 && self.rng.chance(1, 2) {
            let far = *self.rng.pick(&others);
            let beyond_ms = 60_000 + self.rng.below(600_000);
            self.config.clock_offsets_ms[far] = (self.config.max_clock_drift_ms + beyond_ms) as i64;
        }
    }

    /// The last that a node does is to remove everything, so that no row has the latest stamp.
    fn deletions(&mut self, node: usize, after_us: u64) {
        for record in workload::records() {
            let mut writes = vec![Write { record, ops: vec![Op::Delete] }];
            if self.config.windows_end {
                workload::without_deletions(&mut writes);
            }
            self.step(after_us, Act::Commit { node, writes });
        }
    }

    /// The first client does something once, under a key.
    fn once(&mut self, node: usize, key: u64, after_us: u64) {
        let writes = workload::commit_once(&mut self.rng);
        let plan = Plan::Write { writes, says: false, key: Some(key) };
        self.step(after_us, Act::Session { client: 0, node, plan });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::play;
    use crate::trace::Watch;

    /// What a scene needs does happen, for some seed each: a scene that is drawn and has no effect proves nothing.
    #[test]
    fn scenes_have_their_effect() {
        let effects = [
            (Scene::AllRestart, "process killed", 1),
            (Scene::LastAnswer, "frame lost", 1),
            (Scene::OneMemberEach, "disk put back", 1),
            (Scene::TwoGoOn, "directory copied", 1),
            (Scene::OutOfReach, "state repaired", 1),
        ];
        for (scene, kind, times) in effects {
            for seed in 1..4 {
                let mut config = RunConfig::calm(3);
                config.active_us = 4_000_000;
                let mut script = Script { seed, note: String::new(), config, steps: Vec::new() };
                end_with(scene, &mut script, Rng::new(seed));
                let steps = &script.steps;
                assert!(steps.is_sorted_by_key(|step| step.at_us));
                assert!((0..).zip(steps).all(|(number, step)| step.number == number));
                assert!(steps.iter().all(|step| step.at_us < script.config.active_us));
                let report = play(&script, Watch::default());
                assert_eq!(report.violation, None, "{scene:?} {seed}");
                assert!(report.commits > 0, "{scene:?} {seed}");
                let met = report.faults.get(kind).copied().unwrap_or(0);
                assert!(met >= times, "{scene:?} {seed}: {kind} {met}");
            }
        }
    }

    #[test]
    fn after_silence_nobody_asks() {
        let mut config = RunConfig::calm(2);
        config.active_us = 1_000_000;
        let at = |number| Step {
            number,
            at_us: number * 10_000,
            act: if number % 2 == 0 {
                Act::Commit { node: 0, writes: Vec::new() }
            } else {
                Act::Reset { link: (0, 1) }
            },
        };
        let mut script = Script { seed: 1, note: String::new(), config, steps: (0..100).map(at).collect() };
        end_with(Scene::Silence, &mut script, Rng::new(1));
        let asked = |step: &&Step| matches!(step.act, Act::Commit { .. });
        let last_us = script.steps.iter().filter(asked).map(|step| step.at_us).max();
        assert!(last_us.is_some_and(|at_us| at_us < 750_000), "{last_us:?}");
        assert_eq!(script.steps.iter().filter(|step| !asked(step)).count(), 50);
    }
}
