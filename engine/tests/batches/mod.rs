//! Numbered batches whose halves and gaps show.

use godwit_core::store::{Batch, Family, StoreRead};
use godwit_engine::store::RocksStore;

/// One batch over two families, so that a half of it would show.
pub fn batch(n: u64) -> Batch {
    let mut batch = Batch::default();
    batch.put(Family::Rows, n.to_be_bytes().to_vec(), vec![n as u8; 300]);
    batch.put(Family::Log, n.to_be_bytes().to_vec(), n.to_be_bytes().to_vec());
    batch
}

/// How many batches are there: each whole, and none missing before another.
pub fn batches(store: &RocksStore) -> u64 {
    let mut count = 0;
    while let Some(row) = store.get(Family::Rows, &count_key(count)).unwrap() {
        assert_eq!(row, vec![count as u8; 300]);
        assert_eq!(store.get(Family::Log, &count_key(count)).unwrap(), Some(count_key(count)));
        count += 1;
    }
    let rest = |family| store.first(family, &count_key(count), &[u8::MAX; 9]).unwrap();
    assert_eq!((rest(Family::Rows), rest(Family::Log)), (None, None));
    count
}

fn count_key(n: u64) -> Vec<u8> {
    n.to_be_bytes().to_vec()
}
