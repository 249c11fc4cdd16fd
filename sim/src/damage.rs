//! Damage to a disk that nothing reports: rows that are gone though nobody removed them.
//!
//! It comes when all nodes agree and nobody writes any more. What is written on top of a row that was lost spreads, and no
//! store could tell it from what was meant; what a scrub must do is find the loss while it is one, and mend it. So rows of documents are
//! lost only while their process is down: what is hidden of documents is forgotten by what a comparison found that may just be ending.

use std::ops::ControlFlow;

use godwit_core::ids::PartitionId;
use godwit_core::keys;
use godwit_core::row::FieldType;
use godwit_core::store::{Batch, Family, StoreRead, Txn};

use crate::draws::Of;
use crate::oracle::Violation;
use crate::world::{Event, World};

/// Rows that are lost at a time.
const ROWS_MAX: u64 = 3;

impl World {
    /// A node loses some rows. Tells whether there were any.
    pub(crate) fn lose_rows(&mut self) -> Result<bool, Violation> {
        let mut rng = self.draws.of(Of::Damage, &[self.now_us]);
        let nodes: Vec<usize> = (0..self.nodes.len()).filter(|&i| self.nodes[i].takes_part).collect();
        let node = nodes[rng.below(nodes.len() as u64) as usize];
        let crashes = rng.chance(1, 2);
        if crashes {
            self.crash(node)?;
            self.at(1, Event::Start(node));
        }
        let disk = &mut self.nodes[node].disk;
        let mut all = Vec::new();
        for id in (0..self.partitions).map(PartitionId) {
            let mut take = |key: &[u8], _: &[u8]| {
                let ty = keys::parse_row_key(key).map(|parts| parts.ty);
                if crashes || ty != Ok(FieldType::DOCUMENT) {
                    all.push(key.to_vec());
                }
                ControlFlow::Continue(())
            };
            disk.scan_prefix(Family::Rows, &keys::partition_prefix(id), &mut take)
                .expect("memory can be read");
        }
        let mut batch = Batch::default();
        let lost = (1 + rng.below(ROWS_MAX)).min(all.len() as u64);
        for _ in 0..lost {
            let lost = all.swap_remove(rng.below(all.len() as u64) as usize);
            let name = String::from_utf8_lossy(&lost);
            self.trace.line(self.now_us, format_args!("n{node} loses a row: {}", name.escape_debug()));
            Txn::new(&*disk, &mut batch).delete(Family::Rows, lost);
        }
        disk.commit(batch);
        self.rows_lost += lost;
        (0..lost).for_each(|_| self.met("row lost by a disk"));
        Ok(lost > 0)
    }
}
