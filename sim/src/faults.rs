//! What goes wrong beyond cuts and crashes: one-way cuts, damaged frames, processes that stand still, disks that are slow,
//! refuse writes, or lose what a node with `durability = "os"` has not synced.
//!
//! Every fault is counted when it *has an effect*, not when it is drawn, so that a report tells what a run has met.

use std::collections::{BTreeMap, VecDeque};

use godwit_core::context::{Dot, VersionVector};
use godwit_core::store::{Batch, MemStore};
use godwit_proto::{LinkId, Output, Reply};

use crate::draws::Of;
use crate::network::{Pair, pair};
use crate::oracle::Violation;
use crate::trace::What;
use crate::world::{Event, Group, World};

/// With `durability = "os"`, the least time from the beginning of one sync to the next.
const SYNC_EVERY_US: u64 = 10_000;

/// What a run met, by kind, and how often.
pub type Faults = BTreeMap<&'static str, u64>;

/// Every kind that a run can meet, in the order of reports.
pub const KINDS: [&str; 29] = [
    "link cut",
    "link cut one way",
    "connection idle too long",
    "connection reset",
    "frame lost",
    "frame doubled",
    "frame reordered",
    "frame damaged",
    "frame held up by others",
    "frame sent again",
    "process killed",
    "batch lost",
    "batch kept, its outputs lost",
    "process stopped",
    "process paused",
    "disk slow",
    "disk refuses writes",
    "disk put back",
    "directory copied",
    "power cut",
    "acknowledged commit lost",
    "clock set",
    "clock drifts",
    "monotonic clock drifts",
    "log truncated",
    "state repaired",
    "row dropped by a repair",
    "repair given up",
    "row lost by a disk",
];

/// What troubles a process or its disk.
#[derive(Debug, Default)]
pub(crate) struct Trouble {
    /// It stands still: time goes by, and everything waits for it.
    pub(crate) paused: bool,
    /// Its batch became durable meanwhile.
    durable_waits: bool,
    /// Until when a sync takes so long.
    slow: Option<(u64, u64)>,
    /// Until when its disk refuses writes.
    refuses_until: u64,
    /// Whether it has not caught up since it stood still or its disk was slow.
    behind: bool,
    /// When it had: what waited until then is not late.
    excused_until: u64,
}

impl Trouble {
    /// The process is gone; its disk is as it was.
    pub(crate) fn stop(&mut self) {
        *self = Self { slow: self.slow, refuses_until: self.refuses_until, ..Self::default() };
    }
}

/// What a node with `durability = "os"` has written and not synced.
#[derive(Debug)]
pub(crate) struct Unsynced {
    /// What a power cut leaves at least.
    synced: MemStore,
    /// Batches written since, the first one not synced by number.
    batches: VecDeque<Batch>,
    first: u64,
    /// What may leave once so many batches are synced.
    held: VecDeque<(u64, Output)>,
    /// Whether a sync is under way, and when the last one began.
    syncing: bool,
    began_us: u64,
}

impl Unsynced {
    pub(crate) fn new() -> Self {
        Self {
            synced: MemStore::default(),
            batches: VecDeque::new(),
            first: 0,
            held: VecDeque::new(),
            syncing: false,
            began_us: 0,
        }
    }

    /// A process begins on what is written: its first batch is synced before anything else happens.
    pub(crate) fn begin(&mut self, disk: &MemStore) {
        self.first += self.batches.len() as u64;
        self.batches.clear();
        self.held.clear();
        self.syncing = false;
        self.synced = disk.clone();
    }

    fn written(&self) -> u64 {
        self.first + self.batches.len() as u64
    }
}

impl World {
    /// Something went wrong.
    pub(crate) fn met(&mut self, kind: &'static str) {
        *self.faults.entry(kind).or_default() += 1;
    }

    /// Tells what became of a node, in the trace and in a timeline.
    fn tell(&mut self, i: usize, what: &str) {
        self.trace.line(self.now_us, format_args!("n{i} {what}"));
        self.trace.mark(self.now_us, || What::Happened { node: i, what: what.to_string() });
    }

    /// What went wrong so far, by kind.
    pub fn met_so_far(&self) -> Faults {
        let mut all = self.faults.clone();
        all.extend(self.network.met());
        let drifts = self.nodes.iter().filter(|node| node.drift_ppm != 0).count() as u64;
        all.extend((drifts > 0).then_some(("clock drifts", drifts)));
        let paces = self.nodes.iter().filter(|node| node.pace_ppm != 0).count() as u64;
        all.extend((paces > 0).then_some(("monotonic clock drifts", paces)));
        all
    }

    /// Frames from one node to another stall, those in the other direction do not.
    pub(crate) fn cut_way(&mut self, from: usize, to: usize) {
        let between = pair(from, to);
        self.trace.line(self.now_us, format_args!("cut from n{from} to n{to}"));
        self.trace.mark(self.now_us, || What::Cut { link: between });
        self.network.cut_way(from, to);
        self.met("link cut one way");
        self.idle_later(between);
    }

    /// A connection over which nothing passes, in one direction at least, ends after a while.
    pub(crate) fn idle_later(&mut self, between: Pair) {
        if let Some(link) = self.network.connection(between) {
            self.at(self.network.config().idle_us, Event::Idle(between, link));
        }
    }

    /// Whether nothing passes over a link, or an end of it does not answer.
    pub(crate) fn is_dead(&self, between: Pair) -> bool {
        self.network.is_cut(between)
            || [between.0, between.1].iter().any(|&end| self.nodes[end].trouble.paused)
    }

    /// A process stands still.
    pub(crate) fn pause(&mut self, i: usize) {
        if !self.is_up(i) || self.nodes[i].trouble.paused {
            return;
        }
        self.tell(i, "stands still");
        self.met("process paused");
        self.nodes[i].trouble.paused = true;
        self.nodes[i].trouble.behind = true;
        for between in self.pairs().into_iter().filter(|&(a, b)| a == i || b == i) {
            self.idle_later(between);
        }
    }

    /// It goes on, and all that waited comes at once.
    pub(crate) fn resume(&mut self, i: usize) -> Result<(), Violation> {
        if !std::mem::take(&mut self.nodes[i].trouble.paused) {
            return Ok(());
        }
        self.tell(i, "goes on");
        if std::mem::take(&mut self.nodes[i].trouble.durable_waits) {
            return self.durable(i);
        }
        self.work(i)
    }

    /// Whether a batch that has become durable waits for a process that stands still.
    pub(crate) fn durable_waits(&mut self, i: usize) -> bool {
        let trouble = &mut self.nodes[i].trouble;
        trouble.durable_waits |= trouble.paused;
        trouble.paused
    }

    /// Syncs of a disk take long for a while.
    pub(crate) fn slow_disk(&mut self, i: usize, fsync_us: u64, for_us: u64) {
        self.tell(i, &format!("has a disk that takes {fsync_us} µs for a sync"));
        self.nodes[i].trouble.slow = Some((self.now_us + for_us, fsync_us));
    }

    /// A disk refuses writes for a while, as a full or failing one does.
    pub(crate) fn refusing_disk(&mut self, i: usize, for_us: u64) {
        self.tell(i, "has a disk that refuses writes");
        self.nodes[i].trouble.refuses_until = self.now_us + for_us;
    }

    /// All disks work again.
    pub(crate) fn mend_disks(&mut self) {
        for member in &mut self.nodes {
            member.trouble.slow = None;
            member.trouble.refuses_until = 0;
        }
    }

    /// Until when a disk refuses writes, if it does.
    pub(crate) fn refuses(&self, i: usize) -> Option<u64> {
        Some(self.nodes[i].trouble.refuses_until).filter(|&until| until > self.now_us)
    }

    /// How long a sync that begins now takes.
    pub(crate) fn sync_us(&mut self, i: usize) -> u64 {
        let member = &mut self.nodes[i];
        match member.trouble.slow {
            Some((until, slow_us)) if until > self.now_us => {
                member.trouble.behind = true;
                self.met("disk slow");
                slow_us
            }
            _ => member.fsync_us,
        }
    }

    /// A write fails: the process stops, and starts again when its disk takes writes, or tries to before that.
    pub(crate) fn write_fails(&mut self, i: usize, until_us: u64) -> Result<(), Violation> {
        self.tell(i, "stops, since its disk refuses a write");
        self.met("disk refuses writes");
        self.cease(i, false)?;
        self.at(until_us - self.now_us, Event::Start(i));
        Ok(())
    }

    /// Whether a node has caught up with what waited while it stood still or its disk was slow.
    pub(crate) fn caught_up(&mut self, i: usize) {
        let member = &mut self.nodes[i];
        if member.trouble.behind && !member.trouble.paused {
            member.trouble.excused_until = self.now_us;
            let syncing = member.unsynced.as_ref().is_some_and(|unsynced| unsynced.syncing);
            member.trouble.behind = syncing || member.group.is_some() || !member.inbox.is_empty();
        }
    }

    /// From when on a request waited for nothing but its node.
    pub(crate) fn waited_since(&self, i: usize, since: u64) -> u64 {
        let trouble = &self.nodes[i].trouble;
        if trouble.behind { self.now_us } else { since.max(trouble.excused_until) }
    }

    /// What a damaged frame did: the machine ends the link, or had done so before, and writes nothing.
    pub(crate) fn check_damaged(link: LinkId, ended: bool, wrote: bool, who: usize) -> Result<(), Violation> {
        if wrote || !ended {
            let what = format!("n{who} takes a damaged frame on link {} for a good one", link.0);
            return Err(Violation::new(10, what));
        }
        Ok(())
    }

    /// With `durability = "os"`: a group is written; answers leave at once, all else when it is synced.
    pub(crate) fn write_unsynced(&mut self, i: usize, group: Group) -> Result<(), Violation> {
        if let Some(until) = self.refuses(i).filter(|_| !group.effects.batch.is_empty()) {
            return self.write_fails(i, until);
        }
        let Some(unsynced) = &mut self.nodes[i].unsynced else { return Ok(()) };
        if !group.effects.batch.is_empty() {
            unsynced.batches.push_back(group.effects.batch.clone());
        }
        let outputs = self.persist(i, group)?;
        self.hold(i, outputs)
    }

    fn hold(&mut self, i: usize, outputs: Vec<Output>) -> Result<(), Violation> {
        let Some(unsynced) = &mut self.nodes[i].unsynced else { return Ok(()) };
        let (after, waits) = (unsynced.written(), !unsynced.batches.is_empty());
        let at_once = |output: &Output| {
            matches!(output, Output::Reply { reply: Reply::Committed { .. } | Reply::Refused(_), .. })
        };
        let (now, later): (Vec<_>, Vec<_>) =
            outputs.into_iter().partition(|output| !waits || at_once(output));
        unsynced.held.extend(later.into_iter().map(|output| (after, output)));
        if waits && !unsynced.syncing {
            unsynced.syncing = true;
            let begins = self.now_us.max(unsynced.began_us + SYNC_EVERY_US);
            unsynced.began_us = begins;
            let (covers, life) = (unsynced.written(), self.nodes[i].life);
            let after_us = begins - self.now_us + self.sync_us(i);
            self.at(after_us, Event::Synced { node: i, life, covers });
        }
        self.release(i, now)
    }

    /// All that is written is synced, as when a process begins, or ends in order.
    pub(crate) fn synced_all(&mut self, i: usize) {
        let member = &mut self.nodes[i];
        if let Some(unsynced) = &mut member.unsynced {
            unsynced.begin(&member.disk);
        }
    }

    /// A sync is done: what waited for it leaves.
    pub(crate) fn synced(&mut self, i: usize, covers: u64) -> Result<(), Violation> {
        if let Some(until) = self.refuses(i) {
            return self.write_fails(i, until);
        }
        let Some(unsynced) = &mut self.nodes[i].unsynced else { return Ok(()) };
        while unsynced.first < covers {
            let Some(batch) = unsynced.batches.pop_front() else { break };
            unsynced.synced.commit(batch);
            unsynced.first += 1;
        }
        unsynced.syncing = false;
        let mut outputs = Vec::new();
        while unsynced.held.front().is_some_and(|(after, _)| *after <= covers) {
            outputs.extend(unsynced.held.pop_front().map(|(_, output)| output));
        }
        self.release(i, outputs)?;
        self.hold(i, Vec::new())?;
        self.caught_up(i);
        Ok(())
    }

    /// The power of a node goes: with `durability = "os"` an end of what was not synced is lost, acknowledged or not. Nobody
    /// else may have any of it.
    pub(crate) fn power_cut(&mut self, i: usize) -> Result<(), Violation> {
        if !self.nodes[i].takes_part {
            return Ok(());
        }
        self.crash(i)?;
        self.met("power cut");
        let life = self.nodes[i].life;
        let mut rng = self.draws.of(Of::PowerCut, &[i as u64, life]);
        let member = &mut self.nodes[i];
        let Some(unsynced) = &mut member.unsynced else { return Ok(()) };
        let kept = rng.below(unsynced.batches.len() as u64 + 1) as usize;
        let lost = unsynced.batches.len() - kept;
        let mut disk = std::mem::take(&mut unsynced.synced);
        unsynced.batches.drain(..).take(kept).for_each(|batch| disk.commit(batch));
        unsynced.begin(&disk);
        member.disk = disk;
        self.tell(i, &format!("had no power for a moment: {lost} batches that were not synced are lost"));
        if lost > 0 {
            self.forget_unsynced(i)?;
        }
        Ok(())
    }

    fn forget_unsynced(&mut self, i: usize) -> Result<(), Violation> {
        let left = self.contexts(i)?;
        let nothing = VersionVector::new();
        for (id, promised) in &self.nodes[i].promised {
            let has = left.get(id).unwrap_or(&nothing);
            let Some(dot) = promised.iter().find(|dot| !has.covers(*dot)) else { continue };
            for other in (0..self.nodes.len()).filter(|&other| other != i) {
                let theirs = self.contexts(other)?;
                let theirs = theirs.get(id).map_or(0, |context| context.get(dot.replica));
                if theirs > has.get(dot.replica) {
                    return Err(Violation::new(
                        3,
                        format!("n{other} has {}:{theirs}, which n{i} had not synced", dot.replica),
                    ));
                }
            }
        }
        let member = &mut self.nodes[i];
        member.seen.clear();
        let mut acknowledged = 0;
        for (id, promised) in &mut member.promised {
            let has = left.get(id).unwrap_or(&nothing);
            acknowledged += promised.iter().filter(|dot| !has.covers(*dot)).count();
            let kept =
                promised.iter().map(|dot| Dot { counter: dot.counter.min(has.get(dot.replica)), ..dot });
            *promised = kept.collect();
        }
        if acknowledged > 0 {
            self.met("acknowledged commit lost");
        }
        self.keys.forgotten_by(i);
        self.owed_no_more()
    }
}
