//! Bytes of peers and of disks: read the same again, or refused; never a panic.

use godwit_core::context::{Dot, VersionVector};
use godwit_core::delta::{Delta, EncodedDelta};
use godwit_core::derived;
use godwit_core::digest;
use godwit_core::fields::FieldState;
use godwit_core::ids::{PartitionId, ReplicaId};
use godwit_core::json::Json;
use godwit_core::keys;
use godwit_core::partition::{Partition, Received, Sizes};
use godwit_core::read::{self, ReadAt, ReadLimits};
use godwit_core::requests;
use godwit_core::row::{FieldType, RowValue};
use godwit_core::store::{Batch, Family, MemStore, Txn};
use godwit_core::types::exact::Exact;
use godwit_core::types::expiry::Expiry;
use godwit_core::types::{counter, keyed, sums, unique, zset};
use godwit_proto::Message;
use godwit_proto::message::{WIRE_OLDEST, WIRE_VERSION};

use super::made;

const HOME: PartitionId = PartitionId(0);

/// A message of either version: what is read is written and read again the same.
///
/// # Panics
/// If not.
pub fn messages(bytes: &[u8]) {
    for wire in WIRE_OLDEST..=WIRE_VERSION {
        let Ok(message) = Message::decode(wire, bytes) else { continue };
        let written = message.encode(wire).expect("a version can say what it can read");
        let again = Message::decode(wire, &written).expect("what was written is read");
        let mut same = message.clone();
        if let Message::Deltas { deltas, .. } = &mut same
            && wire == WIRE_OLDEST
        {
            // What that version does not know is left out.
            deltas.retain(|delta| matches!(delta.as_format1(), Ok(Some(_))));
            *deltas = deltas.iter().filter_map(|delta| delta.as_format1().ok().flatten()).collect();
        }
        assert_eq!(again, same, "wire version {wire}");
        let newest = message.encode(WIRE_VERSION).expect("the newest version can say everything");
        assert_eq!(Message::decode(WIRE_VERSION, &newest), Ok(message));
        if let Message::Deltas { deltas: found, .. } = again {
            found.iter().for_each(|delta| deltas(delta.as_bytes()));
        }
    }
}

/// A delta of either format: what is read is written and read again the same, and a partition takes it or refuses it.
///
/// # Panics
/// If not.
pub fn deltas(bytes: &[u8]) {
    let encoded = EncodedDelta::from_bytes(bytes);
    let named = encoded.dots();
    let oldest = encoded.as_format1();
    let Ok(delta) = Delta::decode(&encoded) else { return };
    assert_eq!(named.as_ref(), Ok(&delta.dots), "the commits alone");
    let written = delta.encode();
    assert_eq!(Delta::decode(&written).as_ref(), Ok(&delta));
    assert_eq!(written.dots().as_ref(), Ok(&delta.dots));
    if let Some(oldest) = oldest.expect("what is read is rewritten") {
        let plain = Delta { requests: Vec::new(), ..delta.clone() };
        assert_eq!(Delta::decode(&oldest), Ok(plain));
    }
    for clear_rows in [0, 256] {
        taken(&delta, &encoded, clear_rows);
    }
}

/// A partition that has what the delta follows takes it.
fn taken(delta: &Delta, encoded: &EncodedDelta, clear_rows: usize) {
    let mut store = MemStore::default();
    let sizes = Sizes { clear_rows, ..Sizes::default() };
    let mut partition = Partition::open_with(&store, HOME, ReplicaId(77), sizes).expect("a sound store");
    for again in 0..2 {
        let mut batch = Batch::default();
        let mut txn = Txn::new(&store, &mut batch);
        let received = partition.receive(&mut txn, delta.clone(), encoded.clone(), 1 << 20, (0, 0));
        match received.expect("a sound store") {
            Received::Applied(applied) => assert_eq!((again, applied.len()), (0, 1)),
            Received::Duplicate => assert_eq!(again, 1),
            Received::Waits | Received::OutOfOrder | Received::Dropped | Received::Refused(_) => {}
        }
        store.commit(batch);
    }
    assert!(partition.pending_bytes() <= 1 << 20);
    for record in &delta.records {
        read::record(&store, ReadAt { partitions: 1, now_ms: u64::MAX }, &record.record, ReadLimits::NONE)
            .expect("readable");
    }
    digest::partition(&store, HOME, partition.context()).expect("readable");
}

/// What the store keeps: it is read or refused.
///
/// # Panics
/// If reading panics, or what was read is not written the same.
pub fn stored(bytes: &[u8]) {
    if let Ok(row) = RowValue::decode(bytes) {
        assert_eq!(RowValue::decode(&row.encode()), Ok(row));
    }
    let (key, value) = bytes.split_at(bytes.len().min(bytes.first().map_or(0, |&first| usize::from(first))));
    let _ = sums::parse_slot(bytes);
    let _ = counter::Sum::decode(bytes);
    let _ = sums::decode_reset::<i128>(bytes);
    let dot = Dot { replica: ReplicaId(1), counter: 1 };
    for slot in [&[0][..], &[1; 9]] {
        let _ = sums::check_payload::<Exact>(slot, dot, bytes);
    }
    let _ = zset::check_payload(&[0], dot, bytes);
    let _ = Expiry::decode(bytes);
    let _ = unique::parse(bytes);
    let _ = keys::parse_due(bytes);
    let _ = keyed::decode(bytes);
    let _ = keys::log_index(bytes);
    let _ = keys::parse_type_prefix(bytes);
    let _ = keys::parse_job(bytes);
    let _ = keys::parse_request_at(bytes);
    let _ = keys::parse_row(&[], key, value);
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(json) = Json::parse(text)
    {
        assert_eq!(Json::parse(json.as_str()).map(|again| again == json), Ok(true), "{text:?}");
    }
    in_a_store(bytes);
}

/// The same bytes as values of a store: a damaged one is an error for whoever reads it, and no more.
fn in_a_store(bytes: &[u8]) {
    let record = made::record("k");
    let prefix = keys::record_prefix(HOME, &record);
    let field = godwit_core::ids::Field::new("a").expect("a field");
    for ty in made::TYPES {
        let range = keys::type_prefix(&prefix, &field, ty);
        let slot = if ty == FieldType::COUNTER { counter::SUM_SLOT } else { b"" };
        let dot = Dot { replica: ReplicaId(1), counter: 1 };
        let mut batch = Batch::default();
        batch.put(Family::Rows, keys::row_key(&prefix, &field, ty, slot, dot), bytes.to_vec());
        batch.put(Family::Fields, range.clone(), bytes.to_vec());
        batch.put(Family::Derived, derived::key(&range), bytes.to_vec());
        batch.put(Family::Meta, keys::job(&range), Vec::new());
        let request = keys::request(&record.namespace, &[0; 16], HOME);
        batch.put(Family::Requests, request, bytes.to_vec());
        let mut store = MemStore::default();
        store.commit(batch);
        let _ = FieldState::read(&store, &range);
        let at = ReadAt { partitions: 1, now_ms: u64::MAX };
        let _ = read::record(&store, at, &record, ReadLimits::NONE);
        let _ = read::size(&store, at, &record, &field);
        let _ = read::zsize(&store, at, &record, &field);
        let _ = requests::find(&store, &record.namespace, &[0; 16], HOME, &VersionVector::new(), 0);
        let _ = digest::partition(&store, HOME, &VersionVector::new());
        let mut partition = Partition::open(&store, HOME, ReplicaId(1)).expect("nothing of it is damaged");
        let mut batch = Batch::default();
        let _ = partition.work(&mut Txn::new(&store, &mut batch), 0);
        let mut batch = Batch::default();
        batch.put(Family::Meta, keys::partition_meta(HOME), bytes.to_vec());
        store.commit(batch);
        let _ = Partition::open(&store, HOME, ReplicaId(1));
    }
    let _ = store_log(bytes);
}

fn store_log(bytes: &[u8]) -> Result<(), godwit_core::store::StoreError> {
    let mut batch = Batch::default();
    batch.put(Family::Log, keys::log_entry(HOME, 1), bytes.to_vec());
    let mut store = MemStore::default();
    store.commit(batch);
    godwit_core::partition::read_log(&store, HOME, 1, |_| std::ops::ControlFlow::Continue(()))
}
