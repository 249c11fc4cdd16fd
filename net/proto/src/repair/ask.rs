//! The side that lacks the state.

use std::collections::BTreeSet;
use std::sync::Arc;

use godwit_core::context::{Dot, VersionVector};
use godwit_core::ids::PartitionId;
use godwit_core::repair::{Found, Leaves, Listed, RepairRead, TREE_BITS_MAX, Wanted};
use godwit_core::requests::Sent;
use godwit_core::store::{Entry, StoreError, StoreRead};
use godwit_core::time::{Hlc, Mono};

use super::tree::{Came, Descent, LEVEL_BITS, Tree};
use super::{LEAVES_MAX, LINGER_US, RETRY_US, hash_key};
use crate::interface::{Alarm, Output, ReaderId};
use crate::message::Message;
use crate::message::repair::{Ask, Part, Pull, Root, State};
use crate::node::{Node, Step};
use crate::peer::Peer;

/// How long after a repair that was given up the next one begins.
const PAUSE_US: u64 = 1_000_000;
/// The pause between steps of clearing away what a repair left that was given up.
const CLEAR_PAUSE_US: u64 = 5_000;

/// The repair that is asked for.
#[derive(Debug)]
pub(crate) struct Asking {
    pub(crate) partition: PartitionId,
    pub(crate) peer: String,
    repair: u64,
    asked: VersionVector,
    /// Known after the first part.
    theirs: VersionVector,
    /// The greatest stamp that came.
    hlc: Hlc,
    stage: Stage,
    pub(crate) reader: ReaderId,
    is_reading: bool,
    /// Of the other side's tree and this node's: their bits and this node's sums.
    tree: Option<Tree>,
    /// Leaves that differ and have not been listed.
    leaves: Vec<u32>,
    /// Lists asked for.
    lists: u32,
    /// When the other side was last told that it is still asked.
    held_at: Mono,
    began_at: Mono,
    /// When something last came that was waited for.
    heard_at: Mono,
    /// When what is waited for was last asked for.
    asked_at: Mono,
    rows: u64,
    /// Rows of this node that the other side has no more.
    dropped: u64,
}

#[derive(Debug)]
enum Stage {
    /// Rows come, after this key.
    Rows(Vec<u8>),
    /// This node's own tree is made.
    Hashing { root: Root, after: Vec<u8> },
    /// The trees are compared.
    Descending(Descent),
    /// The other side's hashes in some leaves come.
    Listing { listed: Listed, after: Vec<u8> },
    /// What of this node's own rows is not listed is looked for.
    Comparing { listed: Arc<Listed>, after: Vec<u8> },
}

/// What a repair is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Rows come.
    Rows,
    /// What both know of is compared.
    Comparing,
}

/// How far a repair is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepairStatus {
    /// The partition.
    pub partition: PartitionId,
    /// From whom.
    pub peer: String,
    /// What it is doing.
    pub phase: Phase,
    /// How much of the partition this phase has passed, in thousandths of its records.
    pub permille: u16,
    /// Rows that came.
    pub rows: u64,
    /// When it began, by the machine's clock.
    pub began_at: Mono,
}

impl Asking {
    pub(crate) fn deadline(&self, read_at: Mono) -> Mono {
        match self.stage {
            Stage::Hashing { .. } | Stage::Comparing { .. } if !self.is_reading => read_at,
            Stage::Hashing { .. } | Stage::Comparing { .. } => Mono(u64::MAX),
            _ => self.asked_at.plus_us(RETRY_US).min(self.heard_at.plus_us(LINGER_US)),
        }
    }

    pub(crate) fn status(&self) -> RepairStatus {
        let (phase, after) = match &self.stage {
            Stage::Rows(after) => (Phase::Rows, after.as_slice()),
            Stage::Hashing { after, .. } | Stage::Listing { after, .. } | Stage::Comparing { after, .. } => {
                (Phase::Comparing, after.as_slice())
            }
            Stage::Descending(_) => (Phase::Comparing, &[][..]),
        };
        // Records lie evenly: the first bytes of their hash say how many are before.
        let passed = after.get(2..4).map_or(0, |hash| u32::from(u16::from_be_bytes([hash[0], hash[1]])));
        let permille = (passed * 1000 / 65_536) as u16;
        let (partition, peer) = (self.partition, self.peer.clone());
        RepairStatus { partition, peer, phase, permille, rows: self.rows, began_at: self.began_at }
    }
}

/// How long a repair waits for a peer that is cut off while others could repair as well.
const ELSEWHERE_US: u64 = 10_000_000;

impl Node {
    /// Goes on with the repair that is asked for, or begins the next one.
    pub(super) fn asking_due<S: StoreRead>(&mut self, step: &mut Step<'_, S>) -> Result<(), StoreError> {
        let now = step.now.mono;
        let Some(asking) = &self.repairs.asking else { return self.begin_due(step) };
        let heard_at = asking.heard_at;
        if heard_at.plus_us(LINGER_US) <= now {
            self.give_up(step, "nothing came for too long");
            return Ok(());
        }
        if heard_at.plus_us(ELSEWHERE_US) <= now && self.goes_on_elsewhere() {
            self.give_up(step, "its peer cannot be reached, and others can");
            return Ok(());
        }
        let Some(asking) = &self.repairs.asking else { return Ok(()) };
        match &asking.stage {
            Stage::Hashing { .. } | Stage::Comparing { .. } => {
                let may_read = !asking.is_reading && self.repairs.read_at() <= now;
                if may_read {
                    self.read_own(step);
                }
            }
            _ if asking.asked_at.plus_us(RETRY_US) <= now => self.ask_again(step),
            _ => {}
        }
        Ok(())
    }

    /// Whether the peer of the repair is cut off, and some other could repair this partition or another one.
    fn goes_on_elsewhere(&self) -> bool {
        let Some(asking) = &self.repairs.asking else { return false };
        let repairs = |peer: &Peer| peer.synced().is_some_and(|session| session.place().repairs());
        if self.peers.get(&asking.peer).is_some_and(repairs) {
            return false;
        }
        let context = self.context(asking.partition);
        self.peers.iter().any(|(name, peer)| {
            let has_more = peer.known.get(&asking.partition).is_some_and(|known| !context.covers_all(known));
            repairs(peer) && (has_more || self.repairs.wanted.values().any(|wanted| wanted == name))
        })
    }

    /// Begins the next repair that may begin.
    fn begin_due<S: StoreRead>(&mut self, step: &mut Step<'_, S>) -> Result<(), StoreError> {
        let now = step.now.mono;
        if self.repairs.begin_at.is_none_or(|at| at > now) {
            return Ok(());
        }
        self.repairs.begin_at = None;
        let mut wanted = std::mem::take(&mut self.repairs.wanted);
        // Wanted once more when it is still lacking, from whom has it then.
        wanted.retain(|_, peer| self.peers.get(peer).is_some_and(|peer| peer.synced().is_some()));
        let ready =
            |(id, _): &(&PartitionId, &String)| !self.partitions[usize::from(id.0)].is_settling(&step.txn);
        let next = wanted.iter().find(ready).map(|(id, peer)| (*id, peer.clone()));
        let Some((partition, peer)) = next else {
            if !wanted.is_empty() {
                self.repairs.begin_at = Some(now.plus_us(CLEAR_PAUSE_US));
            }
            self.repairs.wanted = wanted;
            return Ok(());
        };
        if self.partitions[usize::from(partition.0)].has_staged() {
            // Of a repair that came to nothing, in this process or the one before.
            self.partitions[usize::from(partition.0)].unstage(&mut step.txn)?;
            self.repairs.begin_at = Some(now.plus_us(CLEAR_PAUSE_US));
            self.repairs.wanted = wanted;
            return Ok(());
        }
        wanted.remove(&partition);
        self.repairs.wanted = wanted;
        let repair = self.name_of_repair();
        self.scrub_ends(step, false);
        let asked = self.context(partition).clone();
        let reader = self.repairs.next_reader();
        self.repairs.asking = Some(Asking {
            partition,
            peer,
            repair,
            asked,
            theirs: VersionVector::new(),
            hlc: Hlc::default(),
            stage: Stage::Rows(Vec::new()),
            reader,
            is_reading: false,
            tree: None,
            leaves: Vec::new(),
            lists: 0,
            held_at: now,
            began_at: now,
            heard_at: now,
            asked_at: now,
            rows: 0,
            dropped: 0,
        });
        self.ask(step, false);
        Ok(())
    }

    /// A name for a repair or a scrub: random to all others, and never given before.
    pub(crate) fn name_of_repair(&mut self) -> u64 {
        self.repairs.begun += 1;
        let drawn = [self.incarnation.instance().to_be_bytes(), self.repairs.begun.to_be_bytes()].concat();
        let digest = blake3::derive_key("godwit 2026 name of a repair", &drawn);
        u64::from_be_bytes(digest[..8].try_into().unwrap_or_default())
    }

    fn ask_again<S: StoreRead>(&mut self, step: &mut Step<'_, S>) {
        if let Some(asking) = &mut self.repairs.asking {
            asking.asked_at = step.now.mono;
        }
        self.ask(step, true);
    }

    /// Asks for what is next.
    fn ask<S: StoreRead>(&mut self, step: &mut Step<'_, S>, again: bool) {
        let Some(asking) = &self.repairs.asking else { return };
        let ask = match &asking.stage {
            Stage::Rows(after) if after.is_empty() => Ask::Begin { asked: asking.asked.clone() },
            Stage::Rows(after) => Ask::Took { stream: 0, upto: after.clone(), again },
            Stage::Descending(descent) => descent.ask(),
            Stage::Listing { listed, after } if after.is_empty() => {
                let stream = asking.lists;
                Ask::List { stream, positions: listed.leaves.positions.iter().copied().collect() }
            }
            Stage::Listing { after, .. } => Ask::Took { stream: asking.lists, upto: after.clone(), again },
            Stage::Hashing { .. } | Stage::Comparing { .. } => return,
        };
        self.send_pull(step, ask);
    }

    fn send_pull<S: StoreRead>(&self, step: &mut Step<'_, S>, ask: Ask) {
        let Some(asking) = &self.repairs.asking else { return };
        let session = self.peers.get(&asking.peer).and_then(|peer| peer.synced());
        let Some(session) = session.filter(|session| session.place().repairs()) else { return };
        let (partition, repair) = (asking.partition, asking.repair);
        step.send(&asking.peer, session.place(), Message::Pull(Pull { partition, repair, ask }));
    }

    /// Gives up a repair: what is staged is cleared away when the next one begins.
    pub(crate) fn give_up<S: StoreRead>(&mut self, step: &mut Step<'_, S>, why: &'static str) {
        self.send_pull(step, Ask::End);
        let Some(asking) = self.repairs.asking.take() else { return };
        let (partition, peer) = (asking.partition, asking.peer);
        step.outputs.push(Output::EndRead { reader: asking.reader });
        step.outputs.push(Output::Alarm(Alarm::RepairGivenUp { partition, peer, why }));
        self.repairs.given_up += 1;
        self.repairs.begin_at = Some(step.now.mono.plus_us(PAUSE_US));
        self.review_lacks(step.now.mono, partition);
    }

    /// A peer sent a part; `Err` in the result says why the link must close.
    pub(crate) fn part_came<S: StoreRead>(
        &mut self,
        step: &mut Step<'_, S>,
        name: &str,
        state: State,
    ) -> Result<Result<(), String>, StoreError> {
        if self.is_for_scrub(name, &state) {
            return self.scrub_part_came(step, state.part);
        }
        let State { partition, repair, part } = state;
        let is_asked = |it: &Asking| it.peer == name && (it.repair, it.partition) == (repair, partition);
        if !self.repairs.asking.as_ref().is_some_and(is_asked) {
            // A leftover of one that was given up: the peer need not go on.
            if !matches!(part, Part::Busy | Part::Lost)
                && let Some(session) = self.peers.get(name).and_then(|peer| peer.synced())
            {
                let end = Message::Pull(Pull { partition, repair, ask: Ask::End });
                step.send(name, session.place(), end);
            }
            return Ok(Ok(()));
        }
        match part {
            Part::Busy => {
                self.give_up(step, "the peer serves as many repairs as it may");
                Ok(Ok(()))
            }
            Part::Lost => {
                self.give_up(step, "the peer does not know the repair any more");
                Ok(Ok(()))
            }
            Part::Rows { theirs, after, upto, clock, rows, requests, tree } => {
                let rows = match rows.unpack() {
                    Ok(rows) => rows,
                    Err(error) => return Ok(Err(format!("rows of a repair are refused: {error}"))),
                };
                let Some(asking) = &mut self.repairs.asking else { return Ok(Ok(())) };
                asking.hlc = asking.hlc.max(clock);
                self.rows_came(step, (after, upto), theirs, (rows, requests), tree)
            }
            Part::Nodes { depth, positions, sums } => self.nodes_came(step, depth, &positions, &sums),
            Part::List { stream, after, upto, hashes } => {
                self.list_came(step, stream, (after, upto), &hashes);
                Ok(Ok(()))
            }
            Part::Others { .. } => Ok(Ok(())),
        }
    }

    fn rows_came<S: StoreRead>(
        &mut self,
        step: &mut Step<'_, S>,
        (after, upto): (Vec<u8>, Option<Vec<u8>>),
        theirs: VersionVector,
        (rows, requests): (Vec<Entry>, Vec<Sent>),
        tree: Option<Root>,
    ) -> Result<Result<(), String>, StoreError> {
        let partitions = self.config.partitions;
        let oldest_ms = self.oldest_request_ms(step.now);
        let Some(asking) = &mut self.repairs.asking else { return Ok(Ok(())) };
        if !matches!(&asking.stage, Stage::Rows(at) if *at == after) {
            return Ok(Ok(()));
        }
        let refused = |why: &str| Ok(Err(format!("rows of a repair are refused: {why}")));
        if after.is_empty() {
            asking.theirs = theirs;
        } else if asking.theirs != theirs {
            return refused("they are of two moments");
        }
        let from = |key: &[u8]| key > after.as_slice();
        let to = |key: &[u8]| upto.as_ref().is_none_or(|upto| key <= upto.as_slice());
        let ordered =
            upto.as_ref().is_none_or(|upto| from(upto)) && rows.iter().all(|(key, _)| from(key) && to(key));
        if !ordered || upto.is_none() != tree.is_some() {
            return refused("they are out of order");
        }
        if tree.is_some_and(|root| root.bits > TREE_BITS_MAX || !root.bits.is_multiple_of(LEVEL_BITS)) {
            return refused("their tree is of no known form");
        }
        let bytes: usize = rows.iter().map(|(key, value)| key.len() + value.len()).sum();
        let count = rows.len() as u64;
        let partition = &mut self.partitions[usize::from(asking.partition.0)];
        let checked = match partition.check_rows(partitions, (&asking.asked, &asking.theirs), rows) {
            Ok(checked) => checked,
            Err(error) => return refused(&error.to_string()),
        };
        let contexts = (&asking.asked, &asking.theirs);
        if let Err(error) = partition.foresee(&mut step.txn, contexts, requests, oldest_ms)? {
            return refused(&error.to_string());
        }
        asking.hlc = asking.hlc.max(checked.hlc);
        asking.rows += count;
        asking.heard_at = step.now.mono;
        asking.asked_at = step.now.mono;
        partition.stage(&mut step.txn, checked)?;
        self.repairs.bytes_staged += bytes as u64;
        match (upto, tree) {
            (Some(upto), _) => {
                asking.stage = Stage::Rows(upto);
                self.ask(step, false);
            }
            (None, Some(root)) => {
                asking.tree = Some(Tree::new(root.bits));
                asking.stage = Stage::Hashing { root, after: Vec::new() };
                self.asking_due(step)?;
            }
            (None, None) => {}
        }
        Ok(Ok(()))
    }

    /// Reads a part of this node's own rows.
    fn read_own<S: StoreRead>(&mut self, step: &mut Step<'_, S>) {
        let sizes = self.read_sizes();
        let now = step.now.mono;
        let Some(asking) = &mut self.repairs.asking else { return };
        if asking.held_at.plus_us(LINGER_US / 4) <= now {
            asking.held_at = now;
            self.send_pull(step, Ask::Hold);
        }
        let Some(asking) = &mut self.repairs.asking else { return };
        let (wanted, after) = match &asking.stage {
            Stage::Hashing { after, .. } => (Wanted::Hashes, after.clone()),
            Stage::Comparing { listed, after } => (Wanted::Unlisted(Arc::clone(listed)), after.clone()),
            _ => return,
        };
        asking.is_reading = true;
        let fresh = after.is_empty();
        let read = RepairRead {
            partition: asking.partition,
            key: hash_key(asking.repair),
            asked: asking.asked.clone(),
            theirs: Some(asking.theirs.clone()),
            contents: false,
            wanted,
            after,
        };
        let reader = asking.reader;
        step.outputs.push(Output::Read { reader, fresh, read: Box::new(read), sizes });
    }

    /// A read of this node's own rows is done.
    pub(super) fn own_read<S: StoreRead>(
        &mut self,
        step: &mut Step<'_, S>,
        found: Found,
    ) -> Result<(), StoreError> {
        let Some(asking) = &mut self.repairs.asking else { return Ok(()) };
        asking.is_reading = false;
        asking.heard_at = step.now.mono;
        asking.asked_at = step.now.mono;
        let Some(tree) = &mut asking.tree else { return Ok(()) };
        match &mut asking.stage {
            Stage::Hashing { root, after } => {
                found.hashes.iter().for_each(|hash| tree.add(*hash));
                if let Some(upto) = found.upto {
                    *after = upto;
                    return self.asking_due(step);
                }
                if tree.sum(0, 0).to_be_bytes() == root.sum {
                    return self.join(step);
                }
                match root.bits {
                    0 => {
                        asking.leaves = vec![0];
                        self.list_next(step)
                    }
                    _ => {
                        asking.stage = Stage::Descending(Descent::new());
                        self.ask(step, false);
                        Ok(())
                    }
                }
            }
            Stage::Comparing { after, .. } => {
                let upto = found.upto;
                let ends = upto.is_none();
                *after = upto.unwrap_or_default();
                self.repairs.rows_dropped += found.unlisted.len() as u64;
                asking.dropped += found.unlisted.len() as u64;
                let partition = &mut self.partitions[usize::from(asking.partition.0)];
                partition.stage_drops(&mut step.txn, found.unlisted)?;
                if ends { self.list_next(step) } else { self.asking_due(step) }
            }
            _ => Ok(()),
        }
    }

    fn nodes_came<S: StoreRead>(
        &mut self,
        step: &mut Step<'_, S>,
        depth: u8,
        positions: &[u32],
        sums: &[[u8; 8]],
    ) -> Result<Result<(), String>, StoreError> {
        let Some(asking) = &mut self.repairs.asking else { return Ok(Ok(())) };
        let Some(tree) = &asking.tree else { return Ok(Ok(())) };
        let Stage::Descending(descent) = &mut asking.stage else { return Ok(Ok(())) };
        let came = descent.came(tree, depth, positions, sums);
        if matches!(came, Came::Passed) {
            return Ok(Ok(()));
        }
        asking.heard_at = step.now.mono;
        asking.asked_at = step.now.mono;
        match came {
            Came::Passed | Came::More => self.ask(step, false),
            Came::Wrong => return Ok(Err("a repair was sent more or fewer nodes than it asked for".into())),
            Came::Leaves(leaves) => {
                asking.leaves = leaves;
                return self.list_next(step).map(Ok);
            }
        }
        Ok(Ok(()))
    }

    /// Has the next leaves that differ listed; when there are none left the states are joined.
    fn list_next<S: StoreRead>(&mut self, step: &mut Step<'_, S>) -> Result<(), StoreError> {
        let Some(asking) = &mut self.repairs.asking else { return Ok(()) };
        if asking.leaves.is_empty() {
            return self.join(step);
        }
        let bits = asking.tree.as_ref().map_or(0, Tree::bits);
        let next = asking.leaves.len().min(LEAVES_MAX);
        let positions: BTreeSet<u32> = asking.leaves.drain(..next).collect();
        let listed = Listed { leaves: Leaves { bits, positions }, hashes: BTreeSet::new() };
        asking.stage = Stage::Listing { listed, after: Vec::new() };
        asking.lists += 1;
        asking.asked_at = step.now.mono;
        self.ask(step, false);
        Ok(())
    }

    fn list_came<S: StoreRead>(
        &mut self,
        step: &mut Step<'_, S>,
        stream: u32,
        (from, upto): (Vec<u8>, Option<Vec<u8>>),
        hashes: &[[u8; 8]],
    ) {
        let Some(asking) = &mut self.repairs.asking else { return };
        if asking.lists != stream {
            return;
        }
        let Stage::Listing { listed, after } = &mut asking.stage else { return };
        if *after != from {
            return;
        }
        asking.heard_at = step.now.mono;
        asking.asked_at = step.now.mono;
        listed.hashes.extend(hashes.iter().map(|hash| u64::from_be_bytes(*hash)));
        match upto {
            Some(upto) => {
                *after = upto;
                self.ask(step, false);
            }
            None => {
                let hashes = std::mem::take(&mut listed.hashes);
                let leaves = listed.leaves.clone();
                let listed = Arc::new(Listed { leaves, hashes });
                asking.stage = Stage::Comparing { listed, after: Vec::new() };
                if self.repairs.read_at() <= step.now.mono {
                    self.read_own(step);
                }
            }
        }
    }

    /// Everything is staged: it counts from now on.
    fn join<S: StoreRead>(&mut self, step: &mut Step<'_, S>) -> Result<(), StoreError> {
        self.send_pull(step, Ask::End);
        let Some(asking) = self.repairs.asking.take() else { return Ok(()) };
        let (id, own) = (asking.partition, self.replica());
        self.check_own(step, id, Dot { replica: own, counter: asking.theirs.get(own) })?;
        step.outputs.push(Output::EndRead { reader: asking.reader });
        let times = (step.now.wall.0, self.oldest_request_ms(step.now));
        let writer = asking.theirs.iter().next().map(|dot| dot.replica);
        let partition = &mut self.partitions[usize::from(id.0)];
        let before = partition.pending_bytes();
        let joined = partition.settle(&mut step.txn, asking.asked, asking.theirs, times)?;
        self.pending_bytes = self.pending_bytes + partition.pending_bytes() - before;
        match joined {
            Ok(applied) => {
                self.follow_clock(step, asking.hlc, true, writer);
                applied.iter().for_each(|applied| self.applied_remote(step, id, applied));
                self.repairs.done += 1;
                let (rows, dropped, peer) = (asking.rows, asking.dropped, asking.peer);
                let repaired = Alarm::Repaired { partition: id, peer, rows, dropped };
                step.outputs.push(Output::Alarm(repaired));
            }
            Err(_) => self.repairs.given_up += 1,
        }
        self.repairs.begin_at = Some(step.now.mono);
        self.write_clock(step);
        self.context_changed(step.now.mono, id, None);
        self.review_lacks(step.now.mono, id);
        self.jobs_are_due(step.now.mono);
        Ok(())
    }
}
