//! Scrub: comparing what is stored with each peer, now and then, though nothing seems to be lacking.
//!
//! Equal contexts must mean equal rows. A disk, a bug or a hand may have made that untrue, so every node compares each of its
//! partitions with every peer, one after the other, and puts back what it has lost:
//!
//! 1. It notes its context, and from then on which records are written to. It makes a tree of hashes over its rows that this
//!    context covers, contents included, from a snapshot ([`crate::repair`] describes trees).
//! 2. It asks a peer with that context. Once the peer has applied all of it, it makes the same tree of its own rows. Where sums
//!    differ the node goes down the tree, and sends its hashes in leaves that differ; the peer sends the rows that it has beyond
//!    those.
//! 3. Such a row is one that this node has lost ([`godwit_core::partition::Partition::reinstate`] says why): it is put back. A
//!    row that both have with other contents is only named: of two, nobody knows which is right.
//!
//! What deletes rows for good that others may need, and tells so by what rows are here, waits for a comparison that left nothing open
//! ([`Node::forget_hidden`]).
//!
//! Rows that the node has and the peer has not may have been removed by commits that only the peer has. If not, the peer finds
//! that when its turn comes to ask. So present rows win, and a scrub removes nothing.
//!
//! Invariants:
//!
//! - *Where nothing is damaged a scrub changes nothing, and raises no alarm*, whatever is written meanwhile.
//! - *Damage does not spread.* Rows of a peer are checked as those of deltas are. Those that do not pass end the comparison, and
//!   count as altered.
//! - *Bounded.* One at a time is asked for, and none while this node repairs; it shares readers, rate and limits with repairs. What
//!   is not compared in [`BATCHES_MAX`] batches of leaves is left for the next time.

use std::collections::BTreeSet;
use std::sync::Arc;

use godwit_core::context::VersionVector;
use godwit_core::ids::{Field, PartitionId, RecordId};
use godwit_core::partition::Reinstated;
use godwit_core::repair::{Found, Leaves, Listed, RepairRead, TREE_BITS_MAX, Wanted};
use godwit_core::store::{Entry, StoreError, StoreRead};
use godwit_core::time::Mono;

use crate::interface::{Alarm, Output, ReaderId};
use crate::message::Message;
use crate::message::repair::{Ask, Part, Pull, Root, State};
use crate::node::{Node, Step};
use crate::repair::tree::{Came, Descent, LEVEL_BITS, Tree};
use crate::repair::{LEAVES_MAX, LINGER_US, OTHERS_HASHES_MAX, RETRY_US, hash_key};

/// Batches of leaves in which rows are looked for, in one comparison.
const BATCHES_MAX: u32 = 4;
/// Fields that an alarm names.
const NAMED_MAX: usize = 10;
/// The shortest pause between comparisons.
const PAUSE_US_MIN: u64 = 1_000;

/// The scrubs of a node.
#[derive(Debug, Default)]
pub(crate) struct Scrubs {
    asking: Option<Scrubbing>,
    /// When to begin the next comparison; `None` before the first.
    begin_at: Option<Mono>,
    /// Of all pairs of a peer and a partition, which one was last.
    turn: u64,
    status: ScrubStatus,
}

/// What scrubs have found, since the start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ScrubStatus {
    /// Comparisons of a partition with a peer.
    pub compared: u64,
    /// Those that were not ended: the peer was not reached, or a repair went first.
    pub given_up: u64,
    /// Rows that this node had lost, and were put back.
    pub rows_missing: u64,
    /// Rows found with other contents than a peer's.
    pub rows_altered: u64,
}

/// The comparison that is under way.
#[derive(Debug)]
struct Scrubbing {
    partition: PartitionId,
    peer: String,
    /// Names it, as repairs are named.
    name: u64,
    asked: VersionVector,
    stage: Stage,
    reader: ReaderId,
    is_reading: bool,
    tree: Tree,
    rows: u64,
    /// Leaves that differ and have not been looked into.
    leaves: Vec<u32>,
    batches: u32,
    found: Reinstated,
    held_at: Mono,
    heard_at: Mono,
    asked_at: Mono,
}

#[derive(Debug)]
enum Stage {
    /// This node's tree is made.
    Hashing {
        after: Vec<u8>,
    },
    /// The peer makes its own, and has told of it up to this key.
    Waiting {
        after: Vec<u8>,
    },
    Descending(Descent),
    /// This node's hashes in some leaves are gathered.
    Listing {
        listed: Listed,
        after: Vec<u8>,
    },
    /// The peer's rows there come.
    Others {
        listed: Arc<Listed>,
        after: Vec<u8>,
    },
}

impl Scrubbing {
    fn reads(&self) -> bool {
        matches!(self.stage, Stage::Hashing { .. } | Stage::Listing { .. })
    }
}

impl Scrubs {
    pub(crate) fn deadline(&self, read_at: Mono) -> Option<Mono> {
        match &self.asking {
            Some(scrub) if scrub.reads() && scrub.is_reading => None,
            Some(scrub) if scrub.reads() => Some(read_at),
            Some(scrub) => Some(scrub.asked_at.plus_us(RETRY_US).min(scrub.heard_at.plus_us(LINGER_US))),
            None => self.begin_at,
        }
    }

    pub(crate) fn status(&self) -> ScrubStatus {
        self.status.clone()
    }

    /// Whether a reader is that of the comparison under way.
    pub(crate) fn reads_as(&self, reader: ReaderId) -> bool {
        self.asking.as_ref().is_some_and(|scrub| scrub.reader == reader)
    }
}

impl Node {
    /// Goes on with the comparison, or begins the next one.
    pub(crate) fn scrub_due<S: StoreRead>(&mut self, step: &mut Step<'_, S>) {
        let now = step.now.mono;
        let Some(scrub) = &self.scrubs.asking else { return self.scrub_begins(step) };
        let peer = self.peers.get(&scrub.peer).and_then(|peer| peer.synced());
        if peer.is_none() || scrub.heard_at.plus_us(LINGER_US) <= now {
            self.scrub_ends(step, false);
        } else if scrub.reads() {
            if !scrub.is_reading && self.repairs.read_at() <= now {
                self.scrub_reads(step);
            }
        } else if scrub.asked_at.plus_us(RETRY_US) <= now {
            self.scrub_asks(step, true);
        }
    }

    fn scrub_begins<S: StoreRead>(&mut self, step: &mut Step<'_, S>) {
        let (now, every_us) = (step.now.mono, self.config.tuning.scrub_us);
        let pairs = self.peers.len() as u64 * u64::from(self.config.partitions);
        if every_us == u64::MAX || pairs == 0 {
            return;
        }
        let begin_at = self.scrubs.begin_at;
        if begin_at.is_some_and(|at| at > now) {
            return;
        }
        self.scrubs.begin_at = Some(now.plus_us((every_us / pairs).max(PAUSE_US_MIN)));
        if begin_at.is_none() {
            // Anywhere: a node that is often restarted comes to all of them too.
            self.scrubs.turn = self.incarnation.instance() % pairs;
            return;
        }
        if self.repairs.is_busy() {
            return;
        }
        self.scrubs.turn = (self.scrubs.turn + 1) % pairs;
        let partitions = u64::from(self.config.partitions);
        let partition = PartitionId((self.scrubs.turn % partitions) as u16);
        let Some(peer) = self.peers.keys().nth((self.scrubs.turn / partitions) as usize).cloned() else {
            return;
        };
        let session = self.peers.get(&peer).and_then(|peer| peer.synced());
        let settles = self.settlings.get(partition).is_some();
        if settles || !session.is_some_and(|session| session.place().repairs()) {
            return;
        }
        self.partitions[usize::from(partition.0)].watch();
        let (name, reader) = (self.name_of_repair(), self.repairs.next_reader());
        let asked = self.context(partition).clone();
        let scrub = Scrubbing {
            partition,
            peer,
            name,
            asked,
            stage: Stage::Hashing { after: Vec::new() },
            reader,
            is_reading: false,
            tree: Tree::new(self.config.tuning.repair_tree_bits),
            rows: 0,
            leaves: Vec::new(),
            batches: 0,
            found: Reinstated::default(),
            held_at: now,
            heard_at: now,
            asked_at: now,
        };
        self.scrubs.asking = Some(scrub);
        self.scrub_due(step);
    }

    /// Ends the comparison, and tells what it found. `is_whole`: it was made as far as it is made at one time.
    pub(crate) fn scrub_ends<S: StoreRead>(&mut self, step: &mut Step<'_, S>, is_whole: bool) {
        self.scrub_sends(step, Ask::End);
        let Some(scrub) = self.scrubs.asking.take() else { return };
        let Scrubbing { partition, peer, reader, leaves, found, .. } = scrub;
        step.outputs.push(Output::EndRead { reader });
        let touched = self.partitions[usize::from(partition.0)].unwatch();
        let status = &mut self.scrubs.status;
        status.compared += u64::from(is_whole);
        status.given_up += u64::from(!is_whole);
        status.rows_missing += found.missing;
        status.rows_altered += found.altered;
        let Reinstated { missing, altered, fields, .. } = found;
        if is_whole && leaves.is_empty() && altered == 0 {
            self.forget_hidden(step.now, partition, touched);
        }
        if missing + altered > 0 {
            let fields: Vec<(RecordId, Field)> = fields.into_iter().collect();
            step.outputs.push(Output::Alarm(Alarm::Diverged { partition, peer, missing, altered, fields }));
        }
    }

    /// Reads a part of this node's own rows.
    fn scrub_reads<S: StoreRead>(&mut self, step: &mut Step<'_, S>) {
        let (sizes, now) = (self.read_sizes(), step.now.mono);
        let Some(scrub) = &mut self.scrubs.asking else { return };
        let (wanted, after) = match &scrub.stage {
            Stage::Hashing { after } => (Wanted::Hashes, after.clone()),
            Stage::Listing { listed, after } => {
                (Wanted::Within(Arc::new(listed.leaves.clone())), after.clone())
            }
            Stage::Waiting { .. } | Stage::Descending(_) | Stage::Others { .. } => return,
        };
        scrub.is_reading = true;
        let fresh = matches!(scrub.stage, Stage::Hashing { .. }) && after.is_empty();
        let holds = scrub.held_at.plus_us(LINGER_US / 4) <= now;
        let read = RepairRead {
            partition: scrub.partition,
            key: hash_key(scrub.name),
            asked: scrub.asked.clone(),
            theirs: None,
            contents: true,
            wanted,
            after,
        };
        step.outputs.push(Output::Read { reader: scrub.reader, fresh, read: Box::new(read), sizes });
        if holds {
            scrub.held_at = now;
            self.scrub_sends(step, Ask::Hold);
        }
    }

    /// A read of this node's own rows is done.
    pub(crate) fn scrub_read<S: StoreRead>(&mut self, step: &mut Step<'_, S>, found: Found) {
        let Some(scrub) = &mut self.scrubs.asking else { return };
        scrub.is_reading = false;
        scrub.heard_at = step.now.mono;
        match &mut scrub.stage {
            Stage::Hashing { after } => {
                scrub.rows += found.hashes.len() as u64;
                found.hashes.iter().for_each(|hash| scrub.tree.add(*hash));
                match found.upto {
                    Some(upto) => *after = upto,
                    None => {
                        scrub.stage = Stage::Waiting { after: Vec::new() };
                        return self.scrub_asks(step, false);
                    }
                }
            }
            Stage::Listing { listed, after } => {
                listed.hashes.extend(found.hashes);
                if listed.hashes.len() > OTHERS_HASHES_MAX {
                    return self.scrub_ends(step, false);
                }
                match found.upto {
                    Some(upto) => *after = upto,
                    None => {
                        let leaves = listed.leaves.clone();
                        let listed = Listed { leaves, hashes: std::mem::take(&mut listed.hashes) };
                        scrub.stage = Stage::Others { listed: Arc::new(listed), after: Vec::new() };
                        return self.scrub_asks(step, false);
                    }
                }
            }
            Stage::Waiting { .. } | Stage::Descending(_) | Stage::Others { .. } => {}
        }
        self.scrub_due(step);
    }

    fn scrub_asks<S: StoreRead>(&mut self, step: &mut Step<'_, S>, again: bool) {
        let Some(scrub) = &mut self.scrubs.asking else { return };
        scrub.asked_at = step.now.mono;
        let ask = match &scrub.stage {
            Stage::Waiting { after } if after.is_empty() => Ask::Compare { asked: scrub.asked.clone() },
            Stage::Waiting { after } => Ask::Took { stream: 0, upto: after.clone(), again },
            Stage::Descending(descent) => descent.ask(),
            Stage::Others { listed, after } if after.is_empty() => Ask::Others {
                stream: scrub.batches,
                positions: listed.leaves.positions.iter().copied().collect(),
                hashes: listed.hashes.iter().map(|hash| hash.to_be_bytes()).collect(),
            },
            Stage::Others { after, .. } => Ask::Took { stream: scrub.batches, upto: after.clone(), again },
            Stage::Hashing { .. } | Stage::Listing { .. } => return,
        };
        self.scrub_sends(step, ask);
    }

    fn scrub_sends<S: StoreRead>(&self, step: &mut Step<'_, S>, ask: Ask) {
        let Some(scrub) = &self.scrubs.asking else { return };
        let session = self.peers.get(&scrub.peer).and_then(|peer| peer.synced());
        let Some(session) = session.filter(|session| session.place().repairs()) else { return };
        let pull = Pull { partition: scrub.partition, repair: scrub.name, ask };
        step.send(&scrub.peer, session.place(), Message::Pull(pull));
    }

    /// Whether a part answers the comparison under way.
    pub(crate) fn is_for_scrub(&self, name: &str, state: &State) -> bool {
        let scrub = self.scrubs.asking.as_ref();
        scrub.is_some_and(|it| it.peer == name && (it.name, it.partition) == (state.repair, state.partition))
    }

    /// A peer sent a part of the comparison under way; `Err` in the result says why the link must close.
    pub(crate) fn scrub_part_came<S: StoreRead>(
        &mut self,
        step: &mut Step<'_, S>,
        part: Part,
    ) -> Result<Result<(), String>, StoreError> {
        match part {
            Part::Busy | Part::Lost => self.scrub_ends(step, false),
            Part::Rows { after, upto, rows, tree, .. } => {
                let is_sound = rows.is_empty() && upto.is_none() == tree.is_some();
                let fits = tree.is_none_or(|root| root.bits <= TREE_BITS_MAX && root.bits % LEVEL_BITS == 0);
                if !is_sound || !fits || upto.as_ref().is_some_and(|upto| *upto <= after) {
                    return Ok(Err("a scrub was sent what is no tree".into()));
                }
                self.scrub_root_came(step, after, upto, tree);
            }
            Part::Nodes { depth, positions, sums } => {
                let Some(scrub) = &mut self.scrubs.asking else { return Ok(Ok(())) };
                let Stage::Descending(descent) = &mut scrub.stage else { return Ok(Ok(())) };
                match descent.came(&scrub.tree, depth, &positions, &sums) {
                    Came::Passed => return Ok(Ok(())),
                    Came::Wrong => return Ok(Err("a scrub was sent nodes that it did not ask for".into())),
                    Came::More => {
                        scrub.heard_at = step.now.mono;
                        self.scrub_asks(step, false);
                    }
                    Came::Leaves(leaves) => {
                        scrub.heard_at = step.now.mono;
                        scrub.leaves = leaves;
                        self.scrub_lists_next(step);
                    }
                }
            }
            Part::List { .. } => {}
            Part::Others { stream, after, upto, rows } => {
                let rows = match rows.unpack() {
                    Ok(rows) => rows,
                    Err(error) => return Ok(Err(format!("rows of a scrub are refused: {error}"))),
                };
                return self.scrub_rows_came(step, stream, (after, upto), rows);
            }
        }
        Ok(Ok(()))
    }

    fn scrub_root_came<S: StoreRead>(
        &mut self,
        step: &mut Step<'_, S>,
        from: Vec<u8>,
        upto: Option<Vec<u8>>,
        tree: Option<Root>,
    ) {
        let Some(scrub) = &mut self.scrubs.asking else { return };
        let Stage::Waiting { after } = &mut scrub.stage else { return };
        if *after != from {
            return;
        }
        scrub.heard_at = step.now.mono;
        if let Some(upto) = upto {
            *after = upto;
            return self.scrub_asks(step, false);
        }
        let Some(root) = tree.filter(|root| root.bits <= scrub.tree.bits()) else {
            // Made by one with a larger tree: it cannot be compared with this node's.
            return self.scrub_ends(step, false);
        };
        scrub.tree = scrub.tree.cut(root.bits);
        if scrub.tree.sum(0, 0).to_be_bytes() == root.sum {
            return self.scrub_ends(step, true);
        }
        if root.bits == 0 {
            scrub.leaves = vec![0];
            return self.scrub_lists_next(step);
        }
        scrub.stage = Stage::Descending(Descent::new());
        self.scrub_asks(step, false);
    }

    /// Gathers this node's hashes in the next leaves that differ.
    fn scrub_lists_next<S: StoreRead>(&mut self, step: &mut Step<'_, S>) {
        let Some(scrub) = &mut self.scrubs.asking else { return };
        if scrub.leaves.is_empty() || scrub.batches == BATCHES_MAX {
            return self.scrub_ends(step, true);
        }
        let bits = scrub.tree.bits();
        // About half of what one message holds: leaves are filled unevenly.
        let fits = ((OTHERS_HASHES_MAX as u64 / 2) << bits) / scrub.rows.max(1);
        let next = scrub.leaves.len().min(LEAVES_MAX).min(fits.max(1) as usize);
        let positions: BTreeSet<u32> = scrub.leaves.drain(..next).collect();
        let listed = Listed { leaves: Leaves { bits, positions }, hashes: BTreeSet::new() };
        scrub.stage = Stage::Listing { listed, after: Vec::new() };
        scrub.batches += 1;
        self.scrub_due(step);
    }

    fn scrub_rows_came<S: StoreRead>(
        &mut self,
        step: &mut Step<'_, S>,
        stream: u32,
        (from, upto): (Vec<u8>, Option<Vec<u8>>),
        rows: Vec<Entry>,
    ) -> Result<Result<(), String>, StoreError> {
        let partitions = self.config.partitions;
        let Some(scrub) = &mut self.scrubs.asking else { return Ok(Ok(())) };
        let Stage::Others { after, .. } = &mut scrub.stage else { return Ok(Ok(())) };
        if scrub.batches != stream || *after != from {
            return Ok(Ok(()));
        }
        if upto.as_ref().is_some_and(|upto| *upto <= from) {
            return Ok(Err("rows of a scrub are out of order".into()));
        }
        scrub.heard_at = step.now.mono;
        let partition = &mut self.partitions[usize::from(scrub.partition.0)];
        let done = match partition.reinstate(&mut step.txn, partitions, &scrub.asked, rows)? {
            Ok(done) => done,
            Err(_) => {
                // As it is stored there: closing the link would not mend it.
                scrub.found.altered += 1;
                self.scrub_ends(step, false);
                return Ok(Ok(()));
            }
        };
        let found = &mut scrub.found;
        found.missing += done.missing;
        found.altered += done.altered;
        let room = NAMED_MAX.saturating_sub(found.fields.len());
        found.fields.extend(done.fields.into_iter().take(room));
        let id = scrub.partition;
        match upto {
            Some(upto) => {
                *after = upto;
                self.scrub_asks(step, false);
            }
            None => self.scrub_lists_next(step),
        }
        self.jobs_may_be_due(step.now, id);
        Ok(Ok(()))
    }
}
