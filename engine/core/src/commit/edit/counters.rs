//! Counters under the operations of one commit.

use super::RecordEdit;
use crate::ids::Field;
use crate::row::FieldType;
use crate::store::{StoreError, StoreRead};
use crate::types::{counter, keyed};

impl<S: StoreRead> RecordEdit<'_, S> {
    /// Folds what is cleared of the own sum.
    pub(in crate::commit) fn fold_sums(&mut self, field: &Field) -> Result<(), StoreError> {
        let own = self.own.replica;
        if self.field(field)?.types.contains_key(&FieldType::COUNTER) {
            let unit = self.unit(field, FieldType::COUNTER, &[])?;
            counter::sums().fold(unit, own).map_err(StoreError::damaged("rows: counter"))?;
        }
        Ok(())
    }

    /// Increments a counter under an idempotency key, unless that has been done.
    pub(super) fn incr_keyed(
        &mut self,
        field: &Field,
        key: &[u8; keyed::KEY_BYTES],
        by: i64,
    ) -> Result<(), StoreError> {
        let edit = self.stored_type(field, FieldType::KEYED)?;
        let mut units = edit.units.iter().filter(|(slot, _)| slot.starts_with(key));
        let begun = units.find(|(_, unit)| !unit.written().is_empty()).map(|(slot, _)| slot.clone());
        let slot = match begun {
            Some(slot) => Some(slot),
            None => {
                let rows =
                    if edit.stored { self.stored_rows(field, FieldType::KEYED, key)? } else { Vec::new() };
                keyed::next_generation(&rows, self.oldest_ms).map(|generation| keyed::slot(key, generation))
            }
        };
        let Some(slot) = slot else { return Ok(()) };
        let unit = self.unit(field, FieldType::KEYED, &slot)?;
        keyed::incr(unit, &slot, by).map_err(StoreError::damaged("rows: counter"))
    }
}
