//! Reads of the store beside the machine, for repairs: each takes a while, of a snapshot that stays as it was.

use godwit_core::repair::{self, ReadSizes, RepairRead};
use godwit_proto::{Input, ReaderId};

use crate::draws::Of;
use crate::event::Event;
use crate::oracle::Violation;
use crate::world::World;

/// How long a read takes at most.
const READ_US_MAX: u64 = 20_000;

/// A read that was asked for.
#[derive(Debug)]
pub struct Read {
    /// Where.
    pub node: usize,
    /// The node's life.
    pub life: u64,
    /// By whom.
    pub reader: ReaderId,
    /// Whether a snapshot is to be taken.
    pub fresh: bool,
    /// What is read.
    pub read: Box<RepairRead>,
    /// How much.
    pub sizes: ReadSizes,
}

impl World {
    pub(crate) fn read_asked(&mut self, read: Read) {
        let name = [read.node as u64, read.reader.0, self.now_us];
        let after = 1 + self.draws.of(Of::Reading, &name).below(READ_US_MAX);
        self.at(after, Event::Read(read));
    }

    pub(crate) fn read_ended(&mut self, node: usize, reader: ReaderId) {
        self.nodes[node].reads.remove(&reader);
    }

    pub(crate) fn read_happens(&mut self, asked: Read) -> Result<(), Violation> {
        let Read { node, life, reader, fresh, read, sizes } = asked;
        let member = &mut self.nodes[node];
        if member.node.is_none() || member.life != life {
            return Ok(());
        }
        if fresh {
            member.reads.insert(reader, member.disk.clone());
        }
        let Some(snapshot) = member.reads.get(&reader) else { return Ok(()) };
        let found = repair::run(snapshot, &read, sizes);
        let found = found.map_err(|error| Violation::new(10, format!("n{node} cannot be read: {error}")))?;
        self.input(node, Input::Read { reader, found: Box::new(found) })
    }
}
