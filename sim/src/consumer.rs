//! A consumer of the change feed. It follows all records, and moves: whichever node is looked at next, it reads on there from the
//! position that it has, in small steps.
//!
//! When all nodes agree and it has just what they have, the last value that it was told of each record is the one that they
//! show. A consumer that has what no node has (a disk was lost) is not held to that.

use std::collections::BTreeMap;

use godwit_core::feed::{Cursor, Followed, Found, StepLimits};
use godwit_core::ids::{PartitionId, RecordId};
use godwit_core::partition;
use godwit_core::repair::Settled;
use godwit_core::store::StoreError;

use crate::draws::Of;
use crate::oracle::{Violation, read_spec};
use crate::spec::SpecRecord;
use crate::workload;
use crate::world::World;

/// What the consumer has.
#[derive(Debug, Default)]
pub(crate) struct Consumer {
    cursor: Cursor,
    told: BTreeMap<RecordId, SpecRecord>,
    /// Steps and resets, for the report.
    pub(crate) steps: u64,
    pub(crate) resets: u64,
}

impl World {
    /// The consumer reads on at a node, to the end.
    pub(crate) fn consume(&mut self, i: usize) -> Result<(), Violation> {
        let mut rng = self.draws.of(Of::Consumer, &[i as u64, self.now_us]);
        let limits = StepLimits {
            entries_max: 1 + rng.below(4) as usize,
            bytes_max: 1 << rng.below(12),
            records_max: 1 + rng.below(2) as usize,
        };
        let followed = Followed { namespace: workload::namespace(), prefix: String::new() };
        let broken = |error: StoreError| Violation::new(10, format!("a consumer at n{i}: {error}"));
        let store = &Settled::open(&self.nodes[i].disk).map_err(broken)?;
        let at = self.read_at(0);
        let record_now = |record: &RecordId| {
            let read = read_spec(store, at, record);
            read.map_err(|error| Violation::new(10, format!("a consumer at n{i}: {error}")))
        };
        let consumer = &mut self.consumer;
        loop {
            let found = consumer.cursor.look(store, at.partitions, &followed, limits).map_err(broken)?;
            consumer.steps += 1;
            let changes = match found {
                None => break,
                Some(Found::Step(changes)) => changes,
                Some(Found::Reset(id)) => {
                    consumer.resets += 1;
                    let here = workload::records().into_iter();
                    for record in here.filter(|record| record.partition(at.partitions) == id) {
                        let now = record_now(&record)?;
                        consumer.told.insert(record, now);
                    }
                    continue;
                }
            };
            for change in changes {
                let now = record_now(&change.record)?;
                let told = consumer.told.entry(change.record).or_default();
                let is_told = |name: &str| {
                    change.fields.as_ref().is_none_or(|fields| fields.iter().any(|f| f.as_str() == name))
                };
                told.retain(|(name, _), _| !is_told(name));
                told.extend(now.into_iter().filter(|((name, _), _)| is_told(name)));
            }
        }
        Ok(())
    }

    /// All nodes agree: what the consumer was told last, once it has read on at one, is what that one shows.
    pub fn check_consumer(&mut self, i: usize) -> Result<(), Violation> {
        self.consume(i)?;
        let broken = |error: StoreError| Violation::new(10, format!("a consumer at n{i}: {error}"));
        let store = &Settled::open(&self.nodes[i].disk).map_err(broken)?;
        let at = self.read_at(0);
        for id in (0..self.partitions).map(PartitionId) {
            let context = partition::stored_context(store, id).map_err(broken)?;
            if *self.consumer.cursor.position().seen(id).vector() != context {
                continue;
            }
            let here = workload::records().into_iter();
            for record in here.filter(|record| record.partition(at.partitions) == id) {
                let now = read_spec(store, at, &record);
                let now = now.map_err(|error| Violation::new(10, format!("a consumer at n{i}: {error}")))?;
                let told = self.consumer.told.get(&record).cloned().unwrap_or_default();
                if told != now {
                    let what = format!(
                        "a consumer at n{i} was told last that {record} is {told:?}, and it is {now:?}"
                    );
                    return Err(Violation::new(7, what));
                }
            }
        }
        Ok(())
    }
}
