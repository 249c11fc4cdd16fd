//! Serving clients: what they ask for reaches a node of their region, and what the world tells reaches them.
//!
//! A read shows what is on the node's disk at that moment. A commit is answered when its batch is on the disk; one request
//! that writes to several partitions is as many commits, and is answered with the last.

use std::collections::BTreeMap;

use godwit_core::ids::{Key, PartitionId, RecordId};
use godwit_core::op::{Terms, Write};
use godwit_core::partition;
use godwit_core::read::{self, FieldView, PageLimits, ReadAt, ReadLimits, Value};
use godwit_core::repair::Settled;
use godwit_core::store::StoreError;
use godwit_proto::{Input, Reply, RequestId};

use super::{Asked, Drive, Open, PARTS};
use crate::oracle::Violation;
use crate::scenario::conflicts::Made;
use crate::scenario::report::Part;
use crate::scenario::requests::Request;
use crate::scenario::workload::Workload;
use crate::watch::Told;

/// What a read returns at most: members of each set, bytes in all.
const READ_LIMITS: ReadLimits = ReadLimits { members_max: 1_000, bytes_max: 8 * 1024 * 1024 };
/// Bytes of keys on a page, and rows looked at for it.
const PAGE_BYTES_MAX: usize = 8 * 1024 * 1024;
const PAGE_ROWS_MAX: usize = 100_000;

impl Drive {
    /// A client asks for something, and is busy until it is answered.
    pub(super) fn turn(&mut self, client: usize) -> Result<(), Violation> {
        let (region, number) = (self.clients[client].region, self.clients[client].number);
        let next = self.clients[client].next_us + self.gap(client);
        self.clients[client].next_us = next;
        let Workload::Drawn { mix, .. } = &mut self.scenario.workload else { return Ok(()) };
        match mix.draw(&mut self.rng, &self.names[region], self.operations) {
            Ok(request) => self.begin(region, number, Some(client), request),
            Err(refusal) => {
                // A name that became too long, say: as the API would, it is refused.
                let op = self.opened(region, Some(client), "write", 1);
                self.refuse(op, refusal);
                self.close(op, false);
                Ok(())
            }
        }
    }

    fn part(&mut self) -> &mut Part {
        let part_us = self.scenario.duration_us.div_ceil(PARTS);
        let at = (self.now_us() / part_us).min(PARTS - 1);
        &mut self.timeline[at as usize]
    }

    fn opened(&mut self, region: usize, client: Option<usize>, kind: &'static str, ways: u64) -> u64 {
        self.operations += 1;
        self.part().operations += 1;
        let way_us = self.scenario.regions[region].client_us * ways;
        let open = Open { client, region, kind, began_us: self.now_us(), way_us, waits: 0, refusal: None };
        self.open.insert(self.operations, open);
        self.operations
    }

    pub(super) fn begin(
        &mut self,
        region: usize,
        number: usize,
        client: Option<usize>,
        request: Request,
    ) -> Result<(), Violation> {
        let ways = if matches!(request, Request::ReadThenWrite(..)) { 2 } else { 1 };
        let op = self.opened(region, client, request.kind(), ways);
        let nodes = &self.scenario.regions[region].nodes;
        let order = (0..nodes.len()).map(|next| nodes[(number + next) % nodes.len()]);
        let Some(node) = order.into_iter().find(|&node| self.world.is_up(node)) else {
            self.close(op, true);
            return Ok(());
        };
        match request {
            Request::Read(records) => {
                for (record, field) in &records {
                    self.read(node, record, field.as_ref().map(|field| field.as_str()))?;
                }
                self.has_read(
                    records.iter().filter_map(|(record, _)| self.measure.missed(node, record)).min(),
                );
            }
            Request::List { namespace, prefix, after, limit } => {
                let limits =
                    PageLimits { items_max: limit, bytes_max: PAGE_BYTES_MAX, rows_max: PAGE_ROWS_MAX };
                let broken = |error: StoreError| Violation::new(10, error.to_string());
                let disk = &Settled::open(self.world.disk(node)).map_err(broken)?;
                let at = self.read_at(node);
                let page = read::list_keys(disk, at, &namespace, &prefix, after.as_deref(), limits)
                    .map_err(|error| Violation::new(10, error.to_string()))?;
                let first = page.items.first().cloned();
                let last = page.items.last().cloned();
                let record = |key: Key| RecordId { namespace: namespace.clone(), key };
                let missed = first.zip(last).and_then(|(first, last)| {
                    self.measure.missed_between(node, &record(first), &record(last))
                });
                self.has_read(missed);
            }
            Request::Write(writes) => return self.commit(op, node, writes),
            Request::ReadThenWrite(record, writes) => {
                self.read(node, &record, None)?;
                self.has_read(self.measure.missed(node, &record));
                return self.commit(op, node, writes);
            }
        }
        self.close(op, false);
        Ok(())
    }

    fn read(&mut self, node: usize, record: &RecordId, field: Option<&str>) -> Result<(), Violation> {
        let views = self.views(node, record)?;
        let siblings = |view: &FieldView| {
            let wanted = field.is_none_or(|field| view.field.as_str() == field);
            wanted && matches!(&view.value, Value::Register { siblings, .. } if !siblings.is_empty())
        };
        self.with_siblings += u64::from(views.iter().any(siblings));
        Ok(())
    }

    fn read_at(&self, node: usize) -> ReadAt {
        ReadAt { partitions: self.scenario.partitions, now_ms: self.world.wall_ms(node) }
    }

    pub(super) fn views(&self, node: usize, record: &RecordId) -> Result<Vec<FieldView>, Violation> {
        let disk = Settled::open(self.world.disk(node));
        let views = disk
            .map_err(read::ReadError::from)
            .and_then(|disk| read::record(&disk, self.read_at(node), record, READ_LIMITS));
        match views {
            Ok(views) => Ok(views),
            Err(read::ReadError::TooLarge { .. } | read::ReadError::Unordered) => Ok(Vec::new()),
            Err(read::ReadError::Store(error)) => Err(Violation::new(10, error.to_string())),
        }
    }

    fn has_read(&mut self, missed: Option<u64>) {
        self.reads += 1;
        self.part().reads += 1;
        if let Some(at) = missed {
            let behind = self.now_us() - at;
            self.behind_us.push(behind);
            self.part().missed += 1;
        }
    }

    /// One commit for each partition.
    fn commit(&mut self, op: u64, node: usize, writes: Vec<Write>) -> Result<(), Violation> {
        let mut homes: BTreeMap<PartitionId, Vec<Write>> = BTreeMap::new();
        for write in writes {
            homes.entry(write.record.partition(self.scenario.partitions)).or_default().push(write);
        }
        if let Some(open) = self.open.get_mut(&op) {
            open.waits = homes.len();
        }
        for writes in homes.into_values() {
            self.requests += 1;
            let request = RequestId(self.requests);
            self.asked.insert(request, Asked { op, node, writes: writes.clone() });
            self.world.input(node, Input::Commit { request, writes, terms: Terms::default() })?;
        }
        self.look()
    }

    /// Takes what the world tells.
    pub(super) fn look(&mut self) -> Result<(), Violation> {
        for told in self.world.take_told() {
            match told {
                Told::Durable(node) => self.durable(node)?,
                Told::Answered(request, reply) => self.answered(request, reply),
            }
        }
        Ok(())
    }

    fn durable(&mut self, node: usize) -> Result<(), Violation> {
        let now_us = self.now_us();
        for id in (0..self.scenario.partitions).map(PartitionId) {
            let context = partition::stored_context(self.world.disk(node), id)
                .map_err(|error| Violation::new(10, error.to_string()))?;
            if context == *self.measure.context(node, id) {
                continue;
            }
            for (record, field) in self.measure.advance(now_us, node, id, context) {
                let mut views = self.views(node, &record)?;
                views.retain(|view| view.field == field);
                self.conflicts.arrived(now_us, &record, &views, &self.names);
            }
        }
        for healing in &mut self.healing {
            if healing.lacking.contains(&node) && self.measure.has(node, &healing.all) {
                healing.lacking.remove(&node);
                if healing.lacking.is_empty() {
                    healing.report.converged_after_us = Some(now_us - healing.report.at_us);
                }
            }
        }
        Ok(())
    }

    fn answered(&mut self, request: RequestId, reply: Reply) {
        let Some(Asked { op, writes, .. }) = self.asked.remove(&request) else { return };
        match reply {
            Reply::Committed { partition, commit: Some((dot, _)), context, .. } => {
                let (now_us, region) = (self.now_us(), self.open.get(&op).map_or(0, |open| open.region));
                let made = Made { at_us: now_us, region, dot, context: &context };
                self.conflicts.answered(made, &writes, &self.names);
                self.counters.answered(&writes);
                self.measure.answered(now_us, region, partition, dot, &writes);
            }
            Reply::Refused(error) => self.refuse(op, error.to_string()),
            Reply::Committed { .. } | Reply::Stopping | Reply::Status(_) => {}
        }
        let Some(open) = self.open.get_mut(&op) else { return };
        open.waits -= 1;
        if open.waits == 0 {
            self.close(op, false);
        }
    }

    fn refuse(&mut self, op: u64, refusal: String) {
        if let Some(open) = self.open.get_mut(&op) {
            open.refusal.get_or_insert(refusal);
        }
    }

    /// An operation has ended; its client goes on.
    pub(super) fn close(&mut self, op: u64, unanswered: bool) {
        let Some(open) = self.open.remove(&op) else { return };
        let now_us = self.now_us();
        let failed = unanswered || open.refusal.is_some();
        self.part().failed += u64::from(failed);
        let seen = self.seen.entry((open.region, open.kind)).or_default();
        match (unanswered, open.refusal) {
            (true, _) => seen.unanswered += 1,
            (false, Some(refusal)) => {
                seen.refused += 1;
                seen.first_refusal.get_or_insert(refusal);
            }
            (false, None) => seen.latencies_us.push(now_us - open.began_us + open.way_us),
        }
        if let Some(client) = open.client {
            let next = self.clients[client].next_us.max(now_us + open.way_us);
            self.clients[client].next_us = next;
            self.due.insert((next, client));
        }
    }
}
