//! Counters: what clients were told was counted, against what is there at the end.

use std::collections::BTreeMap;

use godwit_core::ids::{Field, RecordId};
use godwit_core::op::{Op, Write};

/// Counters that are reported, at most: those with the most increments.
pub(super) const REPORTED_MAX: usize = 20;

/// What is known of a counter.
#[derive(Debug, Clone, Default)]
pub(super) struct Counted {
    /// Increments answered.
    pub(super) increments: u64,
    /// Their sum.
    pub(super) sum: i128,
    /// Whether more may have happened to it: it was cleared, or a node crashed before it answered an increment.
    pub(super) uncertain: bool,
}

/// All counters of a run.
#[derive(Debug, Default)]
pub(super) struct Counters(BTreeMap<(RecordId, Field), Counted>);

impl Counters {
    /// A commit was answered.
    pub(super) fn answered(&mut self, writes: &[Write]) {
        for write in writes {
            for op in &write.ops {
                match op {
                    Op::Incr { field, by } => {
                        let counted = self.0.entry((write.record.clone(), field.clone())).or_default();
                        counted.increments += 1;
                        counted.sum += i128::from(*by);
                    }
                    _ => self.touched(&write.record, op),
                }
            }
        }
    }

    /// A commit was not answered: it may have happened.
    pub(super) fn unanswered(&mut self, writes: &[Write]) {
        for write in writes {
            write.ops.iter().for_each(|op| self.touched(&write.record, op));
        }
    }

    fn touched(&mut self, record: &RecordId, op: &Op) {
        match op {
            Op::Incr { field, .. } | Op::Clear { field } => {
                self.0.entry((record.clone(), field.clone())).or_default().uncertain = true;
            }
            Op::Delete => {
                // A deletion takes what it has seen, which was answered before, or is in a commit that nobody answered.
                let from = (record.clone(), Field::new("\u{20}").expect("a space is the least name"));
                let fields = self.0.range_mut(from..).take_while(|((of, _), _)| of == record);
                fields.for_each(|(_, counted)| counted.uncertain = true);
            }
            _ => {}
        }
    }

    /// Those that got increments.
    pub(super) fn all(&self) -> impl Iterator<Item = (&RecordId, &Field, &Counted)> {
        let counted = self.0.iter().filter(|(_, counted)| counted.increments > 0);
        counted.map(|((record, field), counted)| (record, field, counted))
    }
}
