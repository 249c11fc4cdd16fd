//! What is looked at: a node's durable state, its limits, and whether all agree.

use godwit_core::context::VersionVector;
use godwit_core::digest;
use godwit_core::ids::{Key, Member, PartitionId};
use godwit_core::keys;
use godwit_core::partition;
use godwit_core::read::{self, PageLimits, ReadAt, ReadError, ReadLimits, Value};
use godwit_core::repair::Settled;
use godwit_core::store::{Family, StoreError, StoreRead};

use crate::draws::Of;
use crate::oracle::{Commit, Violation};
use crate::trace::What;
use crate::workload;
use crate::world::World;

/// What a delta counts for at least in a window, and an answer's end that is not acknowledged.
const COUNTS_FOR_BYTES_LEAST: usize = 128;

impl World {
    pub(crate) fn read_at(&self, now_ms: u64) -> ReadAt {
        ReadAt { partitions: self.partitions, now_ms }
    }

    /// Compares a node's durable state with what must be there.
    pub fn check(&mut self, i: usize) -> Result<(), Violation> {
        if !self.nodes[i].takes_part {
            return Ok(());
        }
        let whose = format!("n{i}");
        let mut exist = Vec::new();
        for id in (0..self.partitions).map(PartitionId) {
            let (context, keys) = self.oracle.check(&self.nodes[i].disk, self.partitions, id, &whose)?;
            exist.extend(keys);
            let node = &mut self.nodes[i];
            let lacks = |what: &VersionVector| !context.covers_all(what);
            if let Some(before) = node.seen.get(&id).filter(|seen| lacks(seen)) {
                return Err(Violation::new(
                    3,
                    format!("{whose} had applied {before:?} of partition {id}, now {context:?}"),
                ));
            }
            if let Some(promised) = node.promised.get(&id).filter(|promised| lacks(promised)) {
                return Err(Violation::new(
                    3,
                    format!("{whose} told clients of {promised:?} of partition {id}, and has {context:?}"),
                ));
            }
            node.seen.insert(id, context);
        }
        exist.sort();
        self.check_listing(i, &exist)?;
        self.check_pages(i)?;
        self.check_kept(i)?;
        self.consume(i)?;
        self.check_bounds(i)
    }

    /// A commit may bear the name of a lost one only if that is nowhere.
    pub(crate) fn check_name(&self, commit: &Commit) -> Result<(), Violation> {
        let Commit { partition, dot, .. } = commit;
        for i in (0..self.nodes.len()).filter(|&i| self.nodes[i].takes_part) {
            if self.contexts(i)?.get(partition).is_some_and(|context| context.covers(*dot)) {
                return Err(Violation::new(6, format!("{dot} is made again, and n{i} holds the first")));
            }
        }
        Ok(())
    }

    /// The listing of all keys, in pages of a random size, names the records that exist.
    fn check_listing(&mut self, i: usize, expected: &[Key]) -> Result<(), Violation> {
        let mut rng = self.draws.of(Of::Pages, &[i as u64, self.now_us]);
        let limits = PageLimits {
            items_max: 1 + rng.below(4) as usize,
            bytes_max: 1 + rng.below(8) as usize,
            rows_max: 1 + rng.below(12) as usize,
        };
        let broken = |error: StoreError| Violation::new(10, format!("n{i}: {error}"));
        let store = &Settled::open(&self.nodes[i].disk).map_err(broken)?;
        let namespace = workload::namespace();
        let mut listed: Vec<Key> = Vec::new();
        let mut after: Option<Key> = None;
        // Each page gets on by one mark at least.
        for _ in 0..=workload::records().len() {
            let from = after.as_ref().map(Key::as_str);
            let page = read::list_keys(store, self.read_at(0), &namespace, "", from, limits)
                .map_err(|error| Violation::new(10, format!("n{i}: {error}")))?;
            listed.extend(page.items);
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        if listed != expected || after.is_some() {
            return Err(Violation::new(
                2,
                format!("n{i} lists {listed:?} in pages of {limits:?}, must list {expected:?}"),
            ));
        }
        Ok(())
    }

    /// The pages of each set, of a random size, show the members that a read of its record shows.
    fn check_pages(&mut self, i: usize) -> Result<(), Violation> {
        let mut rng = self.draws.of(Of::Members, &[i as u64, self.now_us]);
        let limits = PageLimits {
            items_max: 1 + rng.below(3) as usize,
            bytes_max: 1 + rng.below(4) as usize,
            rows_max: 1 + rng.below(6) as usize,
        };
        let at = self.read_at(0);
        let broken = |error: ReadError| Violation::new(10, format!("n{i}: {error}"));
        let store = &Settled::open(&self.nodes[i].disk).map_err(|error| broken(error.into()))?;
        for (record, field) in workload::records()
            .iter()
            .flat_map(|record| workload::set_fields().into_iter().map(move |field| (record, field)))
        {
            let views = read::field(store, at, record, &field, ReadLimits::NONE).map_err(broken)?;
            let members = views.into_iter().find_map(|view| match view.value {
                Value::Set { members, .. } => Some(members),
                _ => None,
            });
            let members = members.unwrap_or_default();
            let (mut shown, mut after) = (Vec::new(), None);
            // Each page gets on by one member at least, one that is cleared and not swept yet too.
            for _ in 0..=workload::MEMBERS.len() {
                let from = after.as_ref().map(Member::as_str);
                let page = read::members(store, at, record, &field, from, limits).map_err(broken)?;
                shown.extend(page.items.iter().map(|member| member.as_str().to_string()));
                after = page.next;
                if after.is_none() {
                    break;
                }
            }
            if shown != members || after.is_some() {
                let what = format!("n{i} shows {shown:?} in pages of {limits:?}, must show {members:?}");
                return Err(Violation::new(2, format!("{what}: {record} {field}")));
            }
        }
        Ok(())
    }

    /// Whether all nodes have applied the same, and nothing less than what clients were told of, in every partition
    /// but one that is still written to. `Ok(None)` says yes.
    pub fn difference(&self, busy: Option<PartitionId>) -> Result<Option<String>, Violation> {
        let broken = |error: StoreError| Violation::new(10, error.to_string());
        for id in (0..self.partitions).map(PartitionId).filter(|&id| Some(id) != busy) {
            let mut first: Option<(VersionVector, [u8; 32])> = None;
            for node in self.nodes.iter().filter(|node| node.takes_part) {
                let context = partition::stored_context(&node.disk, id).map_err(broken)?;
                let digest = digest::partition(&node.disk, id, &context).map_err(broken)?;
                match &first {
                    None => {
                        if self.oracle.has_acknowledged(id, &context, &node.name).is_err() {
                            return Ok(Some(format!("{} lacks commits of partition {id}", node.name)));
                        }
                        first = Some((context, digest));
                    }
                    Some((other, _)) if *other != context => {
                        return Ok(Some(format!(
                            "{} has {context:?} of partition {id}, another {other:?}",
                            node.name
                        )));
                    }
                    Some((_, other)) if *other != digest && self.rows_lost > 0 => {
                        return Ok(Some(format!("{} has other rows in partition {id}", node.name)));
                    }
                    Some((_, other)) if *other != digest => {
                        return Err(Violation::new(
                            1,
                            format!("{}: equal contexts, other bytes in partition {id}", node.name),
                        ));
                    }
                    Some(_) => {}
                }
            }
        }
        Ok(None)
    }

    /// Whether every node knows that all agree, and nothing waits or is under way any more. `None` says yes.
    pub fn unsettled(&self, directly_linked: impl Fn(usize, &str) -> bool) -> Option<String> {
        self.nodes.iter().enumerate().find_map(|(i, member)| {
            let status = member.node.as_ref()?.status();
            if status.pending_bytes > 0 && !self.may_wait_for_ever {
                return Some(format!("n{i} holds {} bytes of waiting deltas", status.pending_bytes));
            }
            let mut linked = status.peers.iter().filter(|(name, _)| directly_linked(i, name));
            let open = linked.find(|(_, peer)| {
                !peer.linked || peer.commits_behind + peer.commits_ahead > 0 || peer.in_flight_bytes > 0
            })?;
            Some(format!("n{i} does not know that it agrees with {open:?}"))
        })
    }

    /// Whether some node has records whose time of expiry is still to come, or that it has yet to sweep.
    pub fn has_due(&self) -> Result<bool, Violation> {
        let broken = |error: StoreError| Violation::new(10, error.to_string());
        for member in self.nodes.iter().filter(|member| member.takes_part) {
            for id in (0..self.partitions).map(PartitionId) {
                let dues = keys::dues(id);
                let first = member.disk.first(Family::Meta, &dues, &keys::after_prefix(&dues));
                if first.map_err(broken)?.is_some() {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Marks what a node's disk holds, so that a timeline can tell where views part.
    pub(crate) fn mark_state(&mut self, i: usize) {
        if !self.trace.keeps_marks() {
            return;
        }
        let mut hasher = blake3::Hasher::new();
        for id in (0..self.partitions).map(PartitionId) {
            // A store that cannot be read is found out by the checks.
            let context = partition::stored_context(&self.nodes[i].disk, id).unwrap_or_default();
            hasher.update(&digest::partition(&self.nodes[i].disk, id, &context).unwrap_or_default());
        }
        let mut short = [0; 8];
        short.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
        self.trace.mark(self.now_us, || What::State { node: i, digest: u64::from_be_bytes(short) });
    }

    fn check_bounds(&self, i: usize) -> Result<(), Violation> {
        let Some(node) = &self.nodes[i].node else { return Ok(()) };
        let status = node.status();
        let tuning = &self.nodes[i].config.tuning;
        // A message is begun while there is room: it holds a chunk, or one delta. The end of an answer, one a partition,
        // counts whatever room there is.
        let message = tuning.chunk_bytes.max(self.nodes[i].largest_sent).max(COUNTS_FOR_BYTES_LEAST);
        let window = tuning.window_bytes + message + usize::from(self.partitions) * COUNTS_FOR_BYTES_LEAST;
        if status.pending_bytes > tuning.pending_bytes_max {
            return Err(Violation::new(
                9,
                format!("n{i} holds {} bytes of waiting deltas", status.pending_bytes),
            ));
        }
        match status.peers.iter().find(|(_, peer)| peer.in_flight_bytes > window) {
            Some((name, peer)) => {
                Err(Violation::new(9, format!("n{i} has {} bytes in flight to {name}", peer.in_flight_bytes)))
            }
            None => Ok(()),
        }
    }
}
