//! Groups of inputs go to the disk, and what they did becomes true: commits are told to the oracle, outputs are released.
//!
//! The order is the invariant: no output leaves a node before the batch that it follows from is durable. With
//! `durability = "os"` the batch must be written, and answers do not wait for its sync ([`crate::faults`]).

use godwit_proto::Alarm;
use godwit_proto::Output;

use crate::judge::Outcome;
use crate::network::pair;
use crate::oracle::Violation;
use crate::reads::Read;
use crate::watch::Told;
use crate::world::{Event, Group, WALL_START_MS, World};

impl World {
    /// Hands the group that fills to the disk, if there is anything in it.
    pub(super) fn hand_over(&mut self, i: usize) -> Result<bool, Violation> {
        let member = &mut self.nodes[i];
        let group = std::mem::take(&mut member.filling);
        if group.inputs == 0 {
            return Ok(false);
        }
        if member.unsynced.is_some() {
            self.write_unsynced(i, group)?;
        } else if group.effects.batch.is_empty() {
            let outputs = self.persist(i, group)?;
            self.release(i, outputs)?;
        } else {
            member.group = Some(group);
            let life = member.life;
            let after = self.sync_us(i);
            self.at(after, Event::Durable { node: i, life });
        }
        Ok(true)
    }

    pub(crate) fn durable(&mut self, i: usize) -> Result<(), Violation> {
        if let Some(until) = self.refuses(i) {
            return self.write_fails(i, until);
        }
        let Some(group) = self.nodes[i].group.take() else { return Ok(()) };
        let outputs = self.persist(i, group)?;
        self.release(i, outputs)?;
        self.work(i)
    }

    pub(crate) fn persist(&mut self, i: usize, group: Group) -> Result<Vec<Output>, Violation> {
        let drift_ms = self.nodes[i].config.max_clock_drift_ms;
        let followed_ms = WALL_START_MS.saturating_add_signed(self.slowest_ms).saturating_add(drift_ms);
        for outcome in &group.outcomes {
            if let Outcome::Made(commit) = outcome
                && self.oracle.is_lost(commit.partition, commit.dot)
            {
                self.check_name(commit)?;
                self.given_again(commit.partition, commit.dot)?;
            }
            outcome.tell(&mut self.oracle)?;
            if let Outcome::Made(commit) = outcome {
                self.stamps.committed(commit, followed_ms)?;
            }
        }
        self.nodes[i].disk.commit(group.effects.batch);
        self.tell_watcher(Told::Durable(i));
        self.mark_state(i);
        Ok(group.effects.outputs)
    }

    pub(crate) fn release(&mut self, i: usize, outputs: Vec<Output>) -> Result<(), Violation> {
        for output in outputs {
            match output {
                Output::Send { peer, link, wire, message } => self.send(i, &peer, link, wire, &message)?,
                Output::Close { peer, link, reason }
                    if self.was_copied(&peer)
                        || self.was_copied(&self.nodes[i].name)
                        || self.damaged_links.contains(&link) =>
                {
                    self.trace.line(self.now_us, format_args!("n{i} closes its link to {peer}: {reason}"));
                    if let Some(to) = self.other_end(i, &peer, link) {
                        self.disconnect(pair(i, to));
                    }
                }
                Output::Close { peer, reason, .. } => {
                    return Err(Violation::new(10, format!("n{i} closes its link to {peer}: {reason}")));
                }
                Output::Reply { request, .. } if self.ends(i, request) => {}
                Output::Reply { request, reply } if self.is_watched() => {
                    self.tell_watcher(Told::Answered(request, reply))
                }
                Output::Reply { request, reply } => self.answered(i, request, &reply)?,
                Output::Trim { partition, first } => {
                    self.met("log truncated");
                    self.nodes[i].disk.trim(partition, first);
                }
                Output::Read { reader, fresh, read, sizes } => {
                    let life = self.nodes[i].life;
                    self.read_asked(Read { node: i, life, reader, fresh, read, sizes });
                }
                Output::EndRead { reader } => self.read_ended(i, reader),
                Output::Alarm(alarm) => {
                    match &alarm {
                        Alarm::Repaired { dropped, .. } => {
                            self.met("state repaired");
                            (0..*dropped).for_each(|_| self.met("row dropped by a repair"));
                        }
                        Alarm::Diverged { .. } if self.rows_lost == 0 => {
                            return Err(Violation::new(
                                1,
                                format!("n{i} finds damage where none is: {alarm:?}"),
                            ));
                        }
                        Alarm::RepairGivenUp { .. } => self.met("repair given up"),
                        _ => {}
                    }
                    self.trace.line(self.now_us, format_args!("n{i} alarm {alarm:?}"));
                }
            }
        }
        Ok(())
    }
}
