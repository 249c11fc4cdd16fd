//! Inputs of a node go through its machine: what waits, what is due, and the clock that the machine is told of.
//!
//! They gather in a group over one growing batch, which sees the group before as if it were on the disk.

use godwit_core::machine::Machine;
use godwit_core::store::{Batch, Overlay, StoreError};
use godwit_core::time::{Now, Wall};
use godwit_proto::Input;

use crate::judge::{Refusable, Stepped};
use crate::oracle::Violation;
use crate::workload::Ask;
use crate::world::{Event, Group, Machinery, WALL_START_MS, World};

/// Steps of all machines in one simulated microsecond: far more than frames and timers that may come together.
const MOMENT_STEPS_MAX: u32 = 100_000;

impl World {
    pub(crate) fn input(&mut self, i: usize, input: Input) -> Result<(), Violation> {
        if self.is_up(i) {
            self.nodes[i].inbox.push_back((input, false));
            self.work(i)?;
        }
        Ok(())
    }

    /// A machine that always has something to do at once would never let time pass.
    fn check_rest(&mut self, i: usize) -> Result<(), Violation> {
        let (at, steps) = self.moment;
        self.moment = (self.now_us, if at == self.now_us { steps + 1 } else { 0 });
        if steps < MOMENT_STEPS_MAX {
            return Ok(());
        }
        Err(Violation::new(9, format!("n{i} and others take {steps} steps in one moment, and do not rest")))
    }

    /// Runs inputs through a node's machine until it has nothing to do, or its disk must come first: one group is on its
    /// way to the disk at most, and the next one fills meanwhile, until it is full.
    pub(crate) fn work(&mut self, i: usize) -> Result<(), Violation> {
        while !self.nodes[i].trouble.paused {
            let filled = self.fill(i)?;
            let handed_over = self.nodes[i].group.is_none() && self.hand_over(i)?;
            if !filled && !handed_over {
                break;
            }
        }
        self.caught_up(i);
        self.set_timer(i);
        Ok(())
    }

    /// Fills the next group with what waits and fits in; whether there was anything.
    fn fill(&mut self, i: usize) -> Result<bool, Violation> {
        let judged = !self.is_watched();
        let now = self.now(i);
        let member = &mut self.nodes[i];
        let room = member.room();
        let Some(node) = member.node.as_mut().filter(|_| room > 0) else { return Ok(false) };
        let due = node.next_deadline().is_some_and(|deadline| deadline <= now.mono);
        if member.inbox.is_empty() && !due {
            return Ok(false);
        }
        self.check_rest(i)?;
        let member = &mut self.nodes[i];
        let Some(node) = member.node.as_mut() else { return Ok(false) };
        let stopped = |error: StoreError| Violation::new(10, format!("{} stops: {error}", member.name));
        // What is on its way to the disk is seen as if it were there.
        let nothing = Batch::default();
        let under_way = member.group.as_ref().map_or(&nothing, |group| &group.effects.batch);
        let store = Overlay::new(&member.disk, under_way);
        let Group { effects, outcomes, inputs } = &mut member.filling;
        for (input, damaged) in member.inbox.drain(..room.min(member.inbox.len())) {
            *inputs += 1;
            let asked = match &input {
                Input::Commit { request, writes, terms } if judged => {
                    Some((*request, Ask { writes: writes.clone(), terms: terms.clone() }))
                }
                _ => None,
            };
            let before = asked.map(|(request, ask)| {
                let partition = ask.writes[0].record.partition(self.partitions);
                (
                    request,
                    Refusable { partition, ask, saw: node.context(partition).clone(), now_ms: now.wall.0 },
                )
            });
            let answered = effects.outputs.len();
            let wrote = effects.batch.bytes();
            let on = if let Input::Frame { link, .. } = &input { Some(*link) } else { None };
            node.handle(now, input, &store, effects).map_err(stopped)?;
            Machinery::note(&mut member.ended, &mut member.largest_sent, &effects.outputs[answered..]);
            if let Some(link) = on.filter(|_| damaged) {
                let wrote = effects.batch.bytes() != wrote;
                Self::check_damaged(link, member.ended.contains(&link), wrote, i)?;
            }
            if judged {
                let written = &mut member.begun;
                let (open, batch, now_ms) = (&member.open, &effects.batch, now.wall.0);
                let step = Stepped { node, who: i, now_ms, open, batch, written, before };
                step.judge(&effects.outputs[answered..], outcomes, &mut self.keys)?;
            }
        }
        if due {
            *inputs += 1;
            let answered = effects.outputs.len();
            node.handle_timeout(now, &store, effects).map_err(stopped)?;
            Machinery::note(&mut member.ended, &mut member.largest_sent, &effects.outputs[answered..]);
            if judged {
                let written = &mut member.begun;
                let (open, batch, now_ms) = (&member.open, &effects.batch, now.wall.0);
                let step = Stepped { node, who: i, now_ms, open, batch, written, before: None };
                step.judge(&effects.outputs[answered..], outcomes, &mut self.keys)?;
            }
        }
        Ok(true)
    }

    fn set_timer(&mut self, i: usize) {
        if self.nodes[i].room() == 0 || self.nodes[i].trouble.paused {
            // What is due is done when the disk is, or the process goes on.
            return;
        }
        let Some(node) = &self.nodes[i].node else { return };
        let Some(deadline) = node.next_deadline() else { return };
        let deadline = self.nodes[i].when(deadline).max(self.now_us);
        if self.nodes[i].timer.is_none_or(|timer| timer > deadline) {
            self.nodes[i].timer = Some(deadline);
            self.at(deadline - self.now_us, Event::Timer(i));
        }
    }

    /// The time that a node has, in milliseconds.
    pub(crate) fn wall_ms(&self, i: usize) -> u64 {
        self.now(i).wall.0
    }

    fn now(&self, i: usize) -> Now {
        let drifted_ms = self.now_us as i64 / 1000 * self.nodes[i].drift_ppm / 1_000_000;
        let off_ms = self.nodes[i].clock_offset_ms + drifted_ms;
        let wall = (WALL_START_MS + self.now_us / 1000).saturating_add_signed(off_ms);
        Now { mono: self.nodes[i].mono(self.now_us), wall: Wall(wall) }
    }
}
