//! The CRDT types: what an operation does to the rows of its slots, and what rows mean.
//!
//! Each module is pure arithmetic on rows. [`Unit`] is what an operation may touch: the rows seen of one slot
//! (or of several that belong together: a whole counter, a zset's member, a register of a unique) and what this commit makes of them so far.

pub mod counter;
pub mod document;
pub mod exact;
pub mod expiry;
pub mod keyed;
pub mod presence;
pub mod register;
pub mod score;
pub mod sums;
pub mod unique;
pub mod zset;

use crate::context::Dot;
use crate::ids::ReplicaId;
use crate::row::Row;

/// Rows that one commit sees and changes together.
#[derive(Debug, Clone, Default)]
pub struct Unit {
    seen: Vec<SeenRow>,
    written: Vec<(Vec<u8>, Vec<u8>)>,
}

#[derive(Debug, Clone)]
struct SeenRow {
    slot: Vec<u8>,
    dot: Dot,
    payload: Vec<u8>,
    /// It is absent: the record has expired since.
    hidden: bool,
    killed: bool,
}

impl Unit {
    /// A unit in which these rows are seen.
    pub fn new(rows: impl IntoIterator<Item = Row>) -> Self {
        Self::expired(rows, 0)
    }

    /// The same of a record in which rows stamped before a time are absent ([`expiry::hides`]). They are seen all the same: what
    /// takes rows takes them too, lest they come back when another time of expiry wins.
    pub fn expired(rows: impl IntoIterator<Item = Row>, hidden_before: u64) -> Self {
        let seen = rows
            .into_iter()
            .map(|row| {
                let hidden = expiry::hides(hidden_before, &row);
                let Row { slot, dot, payload, .. } = row;
                SeenRow { slot, dot, payload, hidden, killed: false }
            })
            .collect();
        Self { seen, written: Vec::new() }
    }

    /// Adds a row that is seen.
    pub fn see(&mut self, row: Row) {
        let Row { slot, dot, payload, .. } = row;
        self.seen.push(SeenRow { slot, dot, payload, hidden: false, killed: false });
    }

    /// The rows written by this commit: slot and payload.
    pub fn written(&self) -> &[(Vec<u8>, Vec<u8>)] {
        &self.written
    }

    /// The same, of a unit that is done.
    pub fn into_written(self) -> Vec<(Vec<u8>, Vec<u8>)> {
        self.written
    }

    /// The rows seen that this commit removes: slot and dot.
    pub fn killed(&self) -> impl Iterator<Item = (&[u8], Dot)> {
        self.seen.iter().filter(|row| row.killed).map(|row| (row.slot.as_slice(), row.dot))
    }

    /// The rows seen, removed or not: slot, dot, payload.
    fn stored(&self) -> impl Iterator<Item = (&[u8], Dot, &[u8])> {
        self.seen.iter().map(|row| (row.slot.as_slice(), row.dot, row.payload.as_slice()))
    }

    /// Forgets what a clear's scope takes: the rows seen that it covers, and what this commit wrote.
    pub fn clear(&mut self, covers: impl Fn(Dot) -> bool) {
        self.seen.retain(|row| !covers(row.dot));
        self.written.clear();
    }

    /// Removes every row seen that satisfies the condition.
    pub fn kill(&mut self, condition: impl Fn(Dot) -> bool) {
        self.kill_where(|_, dot| condition(dot));
    }

    /// Keeps rows seen after all that an earlier operation of this commit removed.
    pub fn keep(&mut self, condition: impl Fn(Dot) -> bool) {
        for row in &mut self.seen {
            row.killed &= !condition(row.dot);
        }
    }

    /// Whether a row seen is still there, for readers too.
    pub fn any_seen_alive(&self) -> bool {
        self.seen.iter().any(|row| !row.killed && !row.hidden)
    }

    /// Whether the row that a replica wrote to a slot is absent for readers.
    fn is_hidden(&self, slot: &[u8], replica: ReplicaId) -> bool {
        let mut seen = self.seen.iter();
        seen.any(|row| row.hidden && row.slot == slot && row.dot.replica == replica)
    }

    /// Whether this commit removes the row with this dot.
    pub fn kills(&self, slot: &[u8], dot: Dot) -> bool {
        self.killed().any(|killed| killed == (slot, dot))
    }

    /// The rows seen and not removed: slot, dot, payload.
    fn alive(&self) -> impl Iterator<Item = (&[u8], Dot, &[u8])> {
        self.seen
            .iter()
            .filter(|row| !row.killed)
            .map(|row| (row.slot.as_slice(), row.dot, row.payload.as_slice()))
    }

    fn kill_where(&mut self, mut condition: impl FnMut(&[u8], Dot) -> bool) {
        for row in &mut self.seen {
            row.killed |= condition(&row.slot, row.dot);
        }
    }

    fn write(&mut self, slot: Vec<u8>, payload: Vec<u8>) {
        self.unwrite(&slot);
        self.written.push((slot, payload));
    }

    fn unwrite_all(&mut self) {
        self.written.clear();
    }

    fn unwrite(&mut self, slot: &[u8]) {
        self.written.retain(|(written, _)| written != slot);
    }

    fn written_at(&self, slot: &[u8]) -> Option<&[u8]> {
        self.written.iter().find(|(written, _)| written == slot).map(|(_, payload)| payload.as_slice())
    }
}
