//! Worlds that are watched and not judged: for scenarios of thousands of commits, which the oracle's plain code would take
//! hours for. The machines, disks, links and clocks are the same; what happens is told to the caller.

use godwit_proto::{Reply, RequestId};

use crate::world::World;

/// Something that a watcher is told, in order.
#[derive(Debug)]
pub(crate) enum Told {
    /// A batch of a node is on its disk.
    Durable(usize),
    /// A node answers.
    Answered(RequestId, Reply),
}

impl World {
    /// Watches from now on.
    pub(crate) fn watch(&mut self) {
        self.watched = Some(Vec::new());
    }

    pub(crate) fn is_watched(&self) -> bool {
        self.watched.is_some()
    }

    pub(crate) fn tell_watcher(&mut self, told: Told) {
        if let Some(watched) = &mut self.watched {
            watched.push(told);
        }
    }

    /// What happened since the last look.
    pub(crate) fn take_told(&mut self) -> Vec<Told> {
        self.watched.as_mut().map(std::mem::take).unwrap_or_default()
    }
}
