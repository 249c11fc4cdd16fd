//! What each event does, or who does it: the one place where all kinds of events are told apart.

use godwit_core::row::FieldType;
use godwit_proto::{Input, LinkId};

use crate::network::pair;
use crate::oracle::Violation;
use crate::trace::What;
use crate::world::{Event, World};

impl World {
    pub(super) fn happen(&mut self, event: Event) -> Result<(), Violation> {
        match event {
            Event::Client(i, ask) => self.ask(i, None, ask),
            Event::Session { client, node, plan } => self.session(client, node, plan),
            Event::Count(i, record, field) => {
                self.trace.line(self.now_us, format_args!("n{i} is to keep the size of {record} {field}"));
                self.trace.mark(self.now_us, || What::Happened {
                    node: i,
                    what: format!("somebody asks for the size of {field} of {}", record.key),
                });
                self.input(i, Input::Count { record, field, ty: FieldType::SET })
            }
            Event::Check(i) => self.check(i),
            Event::Durable { node, life } if self.nodes[node].life == life => {
                if self.durable_waits(node) {
                    Ok(())
                } else {
                    self.durable(node)
                }
            }
            Event::Durable { .. } => Ok(()),
            Event::Timer(i) if self.nodes[i].timer == Some(self.now_us) => {
                self.nodes[i].timer = None;
                self.work(i)
            }
            // An earlier one was set since.
            Event::Timer(_) => Ok(()),
            Event::Read(read) => self.read_happens(read),
            Event::Arrival(frame) => match self.network.deliver(frame) {
                Some(frame) => self.arrive(frame),
                None => Ok(()),
            },
            Event::Connect(pair) => self.connect(pair),
            Event::Down { node, peer, link } => {
                let peer = self.nodes[peer].name.clone();
                self.trace.line(self.now_us, format_args!("n{node} loses link {link} to {peer}"));
                self.input(node, Input::Down { peer, link: LinkId(link) })
            }
            Event::Idle(pair, link) => {
                if self.is_dead(pair) && self.network.connection(pair) == Some(link) {
                    self.met("connection idle too long");
                    self.disconnect(pair);
                }
                Ok(())
            }
            Event::Seal(pair) => {
                self.network.seal(pair);
                Ok(())
            }
            Event::Cut(pair) | Event::Heal(pair) if self.network.is_sealed(pair) => Ok(()),
            Event::CutWay(from, to) if self.network.is_sealed(pair(from, to)) => Ok(()),
            Event::CutWay(from, to) => {
                self.cut_way(from, to);
                Ok(())
            }
            Event::Cut(pair) => {
                self.trace.line(self.now_us, format_args!("cut {pair:?}"));
                self.trace.mark(self.now_us, || What::Cut { link: pair });
                self.network.cut(pair);
                self.met("link cut");
                self.idle_later(pair);
                Ok(())
            }
            Event::Heal(pair) => {
                self.trace.line(self.now_us, format_args!("heal {pair:?}"));
                self.trace.mark(self.now_us, || What::Healed { link: pair });
                let stalled = self.network.heal(pair);
                stalled.into_iter().for_each(|frame| self.transmit(frame));
                Ok(())
            }
            Event::Reset(pair) => {
                self.trace.line(self.now_us, format_args!("reset {pair:?}"));
                self.met("connection reset");
                self.disconnect(pair);
                Ok(())
            }
            Event::Pause(i) => {
                self.pause(i);
                Ok(())
            }
            Event::Resume(i) => self.resume(i),
            Event::SlowDisk(i, fsync_us, for_us) => {
                self.slow_disk(i, fsync_us, for_us);
                Ok(())
            }
            Event::RefusingDisk(i, for_us) => {
                self.refusing_disk(i, for_us);
                Ok(())
            }
            Event::PowerCut(i) => self.power_cut(i),
            Event::Mend => {
                self.mend_disks();
                self.network.calm();
                Ok(())
            }
            Event::Synced { node, life, covers } if self.nodes[node].life == life && self.is_up(node) => {
                self.synced(node, covers)
            }
            Event::Synced { .. } => Ok(()),
            Event::Crash(i) => self.crash(i),
            Event::Start(i) if self.is_up(i) || !self.nodes[i].takes_part => Ok(()),
            // The first thing that a process does is to write.
            Event::Start(i) if self.refuses(i).is_some() => {
                let until = self.refuses(i).unwrap_or(self.now_us);
                self.at(until - self.now_us, Event::Start(i));
                Ok(())
            }
            Event::Start(i) => self.start(i),
            Event::Stop(i, outage_us) => self.stop(i, outage_us),
            Event::End { node, life, outage_us } if self.nodes[node].life == life => {
                self.end(node, outage_us)
            }
            Event::End { .. } => Ok(()),
            Event::Backup(i) => {
                self.backup(i, false);
                Ok(())
            }
            Event::Rollback(nodes) => self.rollback(&nodes),
            Event::Copy(i) => self.copy(i),
            Event::Retire(i) => self.retire(i),
            Event::ClockStep(i, ms) => {
                self.trace.line(self.now_us, format_args!("n{i} clock steps to {ms} ms off"));
                self.met("clock set");
                self.trace.mark(self.now_us, || What::Happened {
                    node: i,
                    what: format!("its clock is set {ms} ms off"),
                });
                self.nodes[i].clock_offset_ms = ms;
                self.slowest_ms = self.slowest_ms.min(ms);
                Ok(())
            }
        }
    }
}
