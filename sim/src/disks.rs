//! What becomes of processes and disks: starts, kills, clean stops, copies put back, directories copied.
//!
//! A disk that is put back has forgotten what was written since. What no node holds then is lost for good, and is owed to
//! nobody from that moment on; what some node still holds must come back to all. However it comes about, no dot may
//! name two commits.

use std::collections::BTreeMap;

use godwit_core::context::{Dot, VersionVector};
use godwit_core::ids::PartitionId;
use godwit_core::partition;
use godwit_core::store::MemStore;
use godwit_proto::{Input, Node, NodeConfig, RequestId};

use crate::draws::Of;
use crate::network::pair;
use crate::oracle::Violation;
use crate::trace::What;
use crate::world::{Event, Group, World};

/// Copies kept of a disk.
const IMAGES_MAX: usize = 4;
/// How long a process goes on after it has said that it stops.
const ENDING_US_MAX: u64 = 50_000;
/// How long a node is down whose disk is put back.
const PUT_BACK_US_MAX: u64 = 2_000_000;

/// A copy of a disk.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    disk: MemStore,
    /// Whether its process had stopped cleanly.
    clean: bool,
}

impl World {
    pub(crate) fn start(&mut self, i: usize) -> Result<(), Violation> {
        let seed = self.draws.of(Of::Process, &[i as u64, self.nodes[i].life]).draw();
        let contexts = self.contexts(i)?;
        let member = &mut self.nodes[i];
        member.config.seed = seed;
        let opened = Node::open(member.config.clone(), &member.disk);
        let (node, batch) =
            opened.map_err(|error| Violation::new(3, format!("{} does not start: {error}", member.name)))?;
        member.disk.commit(batch);
        // The shell writes down where the directory stands: from now on it is the same place.
        member.config.same_place = true;
        let applied = contexts.iter().flat_map(|(id, context)| context.iter().map(move |dot| (*id, dot)));
        member.begun = applied.map(|(id, dot)| ((dot.replica, id), dot.counter)).collect();
        member.life += 1;
        member.stopping = None;
        member.node = Some(node);
        self.trace.line(self.now_us, format_args!("n{i} starts"));
        self.synced_all(i);
        let NodeConfig { node: name, region, .. } = &self.nodes[i].config;
        self.trace.mark(self.now_us, || What::Started {
            node: i,
            name: name.clone(),
            region: region.clone(),
        });
        self.mark_state(i);
        // What was due before is due now.
        self.at(0, Event::Timer(i));
        Ok(())
    }

    pub(crate) fn crash(&mut self, i: usize) -> Result<(), Violation> {
        if !self.is_up(i) {
            return Ok(());
        }
        let kept = self.draws.of(Of::LastBatch, &[i as u64, self.nodes[i].life]).chance(1, 2);
        self.trace.line(
            self.now_us,
            format_args!("n{i} crashes, its last batch is {}", if kept { "kept" } else { "lost" }),
        );
        self.met("process killed");
        self.cease(i, kept)
    }

    /// The process is gone.
    pub(crate) fn cease(&mut self, i: usize, kept: bool) -> Result<(), Violation> {
        if let Some(group) = self.nodes[i].group.take() {
            self.met(if kept { "batch kept, its outputs lost" } else { "batch lost" });
            if kept {
                // On the disk, and nobody was told: the commits happened.
                self.persist(i, group)?;
            }
        }
        self.trace.mark(self.now_us, || What::Ended { node: i });
        let member = &mut self.nodes[i];
        member.node = None;
        member.filling = Group::default();
        member.trouble.stop();
        member.ended.clear();
        member.inbox.clear();
        member.reads.clear();
        member.kept.clear();
        member.open.clear();
        member.stopping = None;
        for other in (0..self.nodes.len()).filter(|&other| other != i) {
            self.disconnect(pair(i, other));
        }
        Ok(())
    }

    /// Tells a process to stop.
    pub(crate) fn stop(&mut self, i: usize, outage_us: u64) -> Result<(), Violation> {
        if !self.is_up(i) || self.nodes[i].stopping.is_some() {
            return Ok(());
        }
        self.requests += 1;
        let request = RequestId(self.requests);
        self.trace.line(self.now_us, format_args!("n{i} is told to stop: {}", request.0));
        self.nodes[i].stopping = Some((request, outage_us));
        self.input(i, Input::Stop { request })
    }

    /// Whether an answer says that the process stops: then it ends soon, and may do other things meanwhile.
    pub(crate) fn ends(&mut self, i: usize, request: RequestId) -> bool {
        let Some((_, outage_us)) = self.nodes[i].stopping.filter(|(asked, _)| *asked == request) else {
            return false;
        };
        let life = self.nodes[i].life;
        let after = self.draws.of(Of::Stopping, &[i as u64, life]).below(ENDING_US_MAX);
        self.at(after, Event::End { node: i, life, outage_us });
        true
    }

    pub(crate) fn end(&mut self, i: usize, outage_us: u64) -> Result<(), Violation> {
        self.trace.line(self.now_us, format_args!("n{i} ends"));
        self.met("process stopped");
        self.cease(i, true)?;
        self.backup(i, true);
        self.synced_all(i);
        self.at(outage_us, Event::Start(i));
        Ok(())
    }

    pub(crate) fn backup(&mut self, i: usize, clean: bool) {
        let member = &mut self.nodes[i];
        if !clean && !member.takes_part {
            return;
        }
        self.trace.line(self.now_us, format_args!("the disk of n{i} is copied"));
        self.trace.mark(self.now_us, || What::Happened { node: i, what: "its disk is copied".to_string() });
        if member.images.len() == IMAGES_MAX {
            member.images.remove(0);
        }
        // Copied while a process runs, it is not that of one that has stopped.
        member.images.push(Image { disk: member.disk.clone(), clean });
    }

    pub(crate) fn rollback(&mut self, nodes: &[usize]) -> Result<(), Violation> {
        for &i in nodes {
            let choices = self.nodes[i].images.len();
            if choices == 0 || !self.nodes[i].takes_part {
                continue;
            }
            self.crash(i)?;
            let mut rng = self.draws.of(Of::PutBack, &[i as u64, self.now_us]);
            let image = self.nodes[i].images[rng.below(choices as u64) as usize].clone();
            // The shell notices that files were put elsewhere, not that a whole machine went back in time.
            let same_place = rng.chance(2, 3);
            self.trace.line(
                self.now_us,
                format_args!("the disk of n{i} goes back, clean {}, same place {same_place}", image.clean),
            );
            self.met("disk put back");
            self.trace.mark(self.now_us, || What::Happened {
                node: i,
                what: "an earlier copy of its disk is put back".to_string(),
            });
            let member = &mut self.nodes[i];
            member.disk = image.disk;
            member.config.same_place = same_place;
            member.seen.clear();
            member.promised.clear();
            self.keys.forgotten_by(i);
            self.synced_all(i);
            let after = rng.below(PUT_BACK_US_MAX);
            self.at(after, Event::Start(i));
        }
        self.something_was_lost()
    }

    /// A second process starts on a copy of a node's directory.
    pub(crate) fn copy(&mut self, i: usize) -> Result<(), Violation> {
        let twin = self.nodes.len() - 1;
        if self.nodes[twin].takes_part || self.nodes[twin].name != self.nodes[i].name || twin == i {
            return Ok(());
        }
        let mut rng = self.draws.of(Of::Copy, &[i as u64, self.now_us]);
        let clean = self.nodes[i].images.iter().rfind(|image| image.clean);
        let disk = match clean.cloned() {
            Some(image) if rng.chance(1, 2) => image.disk,
            _ => self.nodes[i].disk.clone(),
        };
        let same_place = rng.chance(1, 2);
        self.trace.line(
            self.now_us,
            format_args!("n{twin} begins on a copy of the directory of n{i}, same place {same_place}"),
        );
        self.met("directory copied");
        self.trace.mark(self.now_us, || What::Happened {
            node: twin,
            what: format!("it begins on a copy of the directory of n{i}"),
        });
        let member = &mut self.nodes[twin];
        member.disk = disk;
        member.config.same_place = same_place;
        member.takes_part = true;
        self.keys.copied(i, twin);
        self.start(twin)?;
        for pair in self.pairs().into_iter().filter(|pair| pair.1 == twin) {
            self.at(0, Event::Connect(pair));
        }
        Ok(())
    }

    /// Whether two processes have run under a name.
    pub(crate) fn was_copied(&self, name: &str) -> bool {
        let of_name: Vec<_> = self.nodes.iter().filter(|node| node.name == name).collect();
        of_name.len() > 1 && of_name.iter().all(|node| node.life > 0)
    }

    /// Of two processes under one name one ends for good.
    pub(crate) fn retire(&mut self, i: usize) -> Result<(), Violation> {
        self.trace.line(self.now_us, format_args!("n{i} ends for good"));
        self.crash(i)?;
        self.nodes[i].takes_part = false;
        self.something_was_lost()
    }

    /// Other connections between nodes of these names end: the name has moved to another process.
    pub(crate) fn displace(&mut self, a: usize, b: usize) {
        let alike = |x: usize, y: usize| self.nodes[x].name == self.nodes[y].name;
        let others = self.network.pairs().into_iter().filter(|&(x, y)| {
            (x, y) != (a, b) && ((alike(x, a) && alike(y, b)) || (alike(x, b) && alike(y, a)))
        });
        for other in others.collect::<Vec<_>>() {
            self.disconnect(other);
        }
    }

    /// The name of a lost commit is given again: who would put back a disk that holds the first would hold another history
    /// under the same names, and nobody could tell. Such copies are thrown away.
    pub(crate) fn given_again(&mut self, id: PartitionId, dot: Dot) -> Result<(), Violation> {
        self.trace.line(self.now_us, format_args!("{dot} of partition {id} is made again"));
        for images in self.nodes.iter_mut().map(|node| &mut node.images) {
            let mut kept = Vec::new();
            for image in images.drain(..) {
                let context = partition::stored_context(&image.disk, id);
                let context = context.map_err(|error| Violation::new(10, error.to_string()))?;
                if !context.covers(dot) {
                    kept.push(image);
                }
            }
            *images = kept;
        }
        Ok(())
    }

    fn something_was_lost(&mut self) -> Result<(), Violation> {
        self.may_wait_for_ever = true;
        self.owed_no_more()
    }

    /// What no disk holds any more is owed to nobody.
    pub(crate) fn owed_no_more(&mut self) -> Result<(), Violation> {
        let mut held: BTreeMap<PartitionId, VersionVector> = BTreeMap::new();
        for i in (0..self.nodes.len()).filter(|&i| self.nodes[i].takes_part) {
            for (id, context) in self.contexts(i)? {
                held.entry(id).or_default().join(&context);
            }
        }
        for (id, held) in &held {
            self.oracle.lost(*id, held);
        }
        self.begin_anew_unless(&held);
        Ok(())
    }

    /// What a node has durably applied.
    pub fn contexts(&self, i: usize) -> Result<BTreeMap<PartitionId, VersionVector>, Violation> {
        let read = |id| partition::stored_context(&self.nodes[i].disk, id).map(|context| (id, context));
        let contexts: Result<_, _> = (0..self.partitions).map(PartitionId).map(read).collect();
        contexts.map_err(|error| Violation::new(10, error.to_string()))
    }
}
