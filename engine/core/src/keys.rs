//! Ordered storage keys.
//!
//! | family | key |
//! |---|---|
//! | `rows` | partition (2) · record hash (8) · namespace 0 · key 0 · field 0 · type (1) · slot · replica (8) [· counter (8)] |
//! | `log`  | partition (2) · kind (1: 0 entry, 1 checkpoint) · index (8) |
//! | `keys` | namespace 0 · key |
//! | `fields` | as `rows`, up to and with the type |
//! | `staged` | as `rows` |
//! | `derived` | as `fields`, and what [`crate::derived`] says |
//! | `requests` | 0 · namespace 0 · idempotency key (16) · partition (2), or 1 · time (8) · the same |
//! | `meta` | a name, then its bytes |
//!
//! Integers are big-endian, so byte order is numeric order. Names end in a zero byte, which no name holds, so
//! that every record, field and slot is a contiguous range. Ids are full, hence keys are the same bytes on
//! every node and comparing stored bytes compares states.

use std::ops::RangeInclusive;

use crate::codec::CodecError;
use crate::context::Dot;
use crate::ids::{Field, Key, Namespace, PartitionId, RecordId, ReplicaId};
use crate::row::{FieldType, Row, RowValue};

/// The first bytes of all rows of a partition.
pub fn partition_prefix(partition: PartitionId) -> Vec<u8> {
    partition.0.to_be_bytes().to_vec()
}

/// The first bytes of all rows of a record.
pub fn record_prefix(partition: PartitionId, record: &RecordId) -> Vec<u8> {
    let (namespace, key) = (record.namespace.as_str(), record.key.as_str());
    let mut prefix = Vec::with_capacity(2 + 8 + namespace.len() + key.len() + 2 + 64);
    prefix.extend_from_slice(&partition.0.to_be_bytes());
    prefix.extend_from_slice(&record.hash());
    push_name(&mut prefix, namespace);
    push_name(&mut prefix, key);
    prefix
}

/// The first bytes of all rows of a field, of any type.
pub fn field_prefix(record_prefix: &[u8], field: &Field) -> Vec<u8> {
    with_room(record_prefix, field, 0)
}

/// The first bytes of all rows of a field's type.
pub fn type_prefix(record_prefix: &[u8], field: &Field, ty: FieldType) -> Vec<u8> {
    let mut prefix = with_room(record_prefix, field, 1);
    prefix.push(ty.0);
    prefix
}

/// A row's key.
pub fn row_key(record_prefix: &[u8], field: &Field, ty: FieldType, slot: &[u8], dot: Dot) -> Vec<u8> {
    let mut key = with_room(record_prefix, field, 1 + slot.len() + 16);
    key.push(ty.0);
    key.extend_from_slice(slot);
    key.extend_from_slice(&dot.replica.0.to_be_bytes());
    if ty.keyed_by_dot() {
        key.extend_from_slice(&dot.counter.to_be_bytes());
    }
    key
}

/// Takes a row apart that was found below a record's prefix.
pub fn parse_row(record_prefix: &[u8], key: &[u8], value: &[u8]) -> Result<Row, CodecError> {
    let (field, ty, rest) = parse_field(record_prefix, key)?;
    let (slot, replica, _) = row_tail(ty, rest)?;
    let value = RowValue::decode(value)?;
    Ok(Row {
        field,
        ty,
        slot: slot.to_vec(),
        dot: Dot { replica, counter: value.counter },
        hlc: value.hlc,
        payload: value.payload,
    })
}

/// The field and type of a row's key below a record's prefix, and the rest of the key.
pub fn parse_field<'k>(
    record_prefix: &[u8],
    key: &'k [u8],
) -> Result<(Field, FieldType, &'k [u8]), CodecError> {
    let rest = key.strip_prefix(record_prefix).ok_or_else(|| malformed("a row of another record"))?;
    let end = rest.iter().position(|&b| b == 0).ok_or_else(|| malformed("a row's key has no field"))?;
    let name = std::str::from_utf8(&rest[..end]).map_err(|_| malformed("a field that is no UTF-8"))?;
    let field = Field::new(name).map_err(|error| malformed(&error.to_string()))?;
    let (&ty, rest) = rest[end + 1..].split_first().ok_or_else(|| malformed("a row's key has no type"))?;
    Ok((field, FieldType(ty), rest))
}

/// The parts of a row's key besides the record: what a peer sent is taken apart with it, too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowKey {
    /// The partition.
    pub partition: PartitionId,
    /// The record.
    pub record: RecordId,
    /// How many of the key's bytes name partition and record.
    pub record_bytes: usize,
    /// The field.
    pub field: Field,
    /// Its type.
    pub ty: FieldType,
    /// How many of the key's bytes name partition, record, field and type.
    pub type_bytes: usize,
    /// The slot.
    pub slot: Vec<u8>,
    /// The writer.
    pub replica: ReplicaId,
    /// The counter, where rows are keyed by dot.
    pub counter: Option<u64>,
}

/// Takes a row's key apart, whole. The record's hash and partition are not checked.
pub fn parse_row_key(key: &[u8]) -> Result<RowKey, CodecError> {
    let type_bytes = type_bytes(key)?;
    let (record, field, ty) = parse_type_prefix(&key[..type_bytes])?;
    let (slot, replica, counter) = row_tail(ty, &key[type_bytes..])?;
    let names = record.namespace.as_str().len() + record.key.as_str().len() + 2;
    Ok(RowKey {
        partition: PartitionId(u16::from_be_bytes([key[0], key[1]])),
        record,
        record_bytes: 10 + names,
        field,
        ty,
        type_bytes,
        slot: slot.to_vec(),
        replica,
        counter,
    })
}

/// How many bytes of a row's key name partition, record, field and type.
pub(crate) fn type_bytes(key: &[u8]) -> Result<usize, CodecError> {
    let names = key.get(10..).ok_or_else(|| malformed("a row's key is too short"))?;
    let mut ends = names.iter().enumerate().filter(|(_, byte)| **byte == 0).map(|(at, _)| at);
    let end = ends.nth(2).ok_or_else(|| malformed("a row's key lacks a name"))?;
    match names.len() > end + 1 {
        true => Ok(10 + end + 2),
        false => Err(malformed("a row's key has no type")),
    }
}

/// The dot of a stored row, without decoding the rest of its value.
pub(crate) fn row_dot(key: &[u8], value: &[u8]) -> Result<Dot, CodecError> {
    let type_bytes = type_bytes(key)?;
    let (_, replica, counter) = row_tail(FieldType(key[type_bytes - 1]), &key[type_bytes..])?;
    let counter = match counter {
        Some(counter) => counter,
        None => RowValue::counter(value)?,
    };
    Ok(Dot { replica, counter })
}

/// Slot, replica and counter: what follows the type in a row's key.
fn row_tail(ty: FieldType, rest: &[u8]) -> Result<(&[u8], ReplicaId, Option<u64>), CodecError> {
    let tail = if ty.keyed_by_dot() { 16 } else { 8 };
    let at = rest.len().checked_sub(tail).ok_or_else(|| malformed("a row's key is too short"))?;
    let (slot, tail) = rest.split_at(at);
    let counter = ty.keyed_by_dot().then(|| be_u64(&tail[8..]));
    Ok((slot, ReplicaId(be_u64(&tail[..8])), counter))
}

/// The record, field and type of a key of `fields`.
pub fn parse_type_prefix(key: &[u8]) -> Result<(RecordId, Field, FieldType), CodecError> {
    let names = key.get(10..).ok_or_else(|| malformed("a field's key is too short"))?;
    let mut parts = names.splitn(4, |&byte| byte == 0);
    let mut name = || {
        let part = parts.next().ok_or_else(|| malformed("a field's key lacks a name"))?;
        std::str::from_utf8(part).map_err(|_| malformed("a name that is no UTF-8"))
    };
    let invalid = |error: crate::ids::NameError| malformed(&error.to_string());
    let namespace = Namespace::new(name()?).map_err(invalid)?;
    let key = Key::new(name()?).map_err(invalid)?;
    let field = Field::new(name()?).map_err(invalid)?;
    match parts.next() {
        Some(&[ty]) => Ok((RecordId { namespace, key }, field, FieldType(ty))),
        _ => Err(malformed("a field's key does not end with its type")),
    }
}

/// Work left to do on a field and type, in `meta`.
pub fn job(type_prefix: &[u8]) -> Vec<u8> {
    [JOB, type_prefix].concat()
}

/// Work left to do on a part of it, by what its slots begin with.
pub fn job_of(type_prefix: &[u8], part: &[u8]) -> Vec<u8> {
    [JOB, type_prefix, part].concat()
}

/// The field's key ([`type_prefix`]) of a job's, and the part.
pub fn parse_job(job: &[u8]) -> Result<(&[u8], &[u8]), CodecError> {
    let range = job.strip_prefix(JOB).ok_or_else(|| malformed("not a job's key"))?;
    Ok(range.split_at(type_bytes(range)?))
}

/// That a document has changes that clears hide, by its field's key ([`type_prefix`]), in `meta`; or what such keys of a partition begin with.
pub fn hidden(type_prefix: &[u8]) -> Vec<u8> {
    [HIDDEN, type_prefix].concat()
}

/// The field's key of a key made by [`hidden`].
pub fn parse_hidden(key: &[u8]) -> Result<&[u8], CodecError> {
    key.strip_prefix(HIDDEN).ok_or_else(|| malformed("not a key of a document with hidden changes"))
}

/// That records of a partition have had expiries, in `meta`.
pub fn has_expiries(partition: PartitionId) -> Vec<u8> {
    [b"expiries/", &partition.0.to_be_bytes()[..]].concat()
}

/// That a record may have expired at a time, in milliseconds since 1970, in `meta`.
pub fn due(partition: PartitionId, at_ms: u64, record: &RecordId) -> Vec<u8> {
    let mut key = dues(partition);
    key.extend_from_slice(&at_ms.to_be_bytes());
    push_name(&mut key, record.namespace.as_str());
    key.extend_from_slice(record.key.as_str().as_bytes());
    key
}

/// The first bytes of a partition's keys made by [`due`].
pub fn dues(partition: PartitionId) -> Vec<u8> {
    [b"due/", &partition.0.to_be_bytes()[..]].concat()
}

/// Where the keys made by [`due`] of a time, in milliseconds since 1970, begin.
pub fn due_from(partition: PartitionId, at_ms: u64) -> Vec<u8> {
    [dues(partition).as_slice(), &at_ms.to_be_bytes()].concat()
}

/// The parts of a key made by [`due`].
pub fn parse_due(key: &[u8]) -> Result<(u64, RecordId), CodecError> {
    let names = key.get(14..).ok_or_else(|| malformed("a due record's key is too short"))?;
    let end = names.iter().position(|&byte| byte == 0).ok_or_else(|| malformed("a due record has no key"))?;
    let text = |bytes| std::str::from_utf8(bytes).map_err(|_| malformed("a name that is no UTF-8"));
    let invalid = |error: crate::ids::NameError| malformed(&error.to_string());
    let namespace = Namespace::new(text(&names[..end])?).map_err(invalid)?;
    let key_name = Key::new(text(&names[end + 1..])?).map_err(invalid)?;
    Ok((be_u64(&key[6..14]), RecordId { namespace, key: key_name }))
}

/// Jobs of a partition.
pub fn jobs(partition: PartitionId) -> Vec<u8> {
    job(&partition_prefix(partition))
}

/// An idempotency key's entry.
pub fn request(namespace: &Namespace, key: &[u8; 16], partition: PartitionId) -> Vec<u8> {
    let mut bytes = vec![0];
    push_request(&mut bytes, namespace, key, partition);
    bytes
}

/// The same in the order of time, in milliseconds since 1970.
pub fn request_at(millis: u64, namespace: &Namespace, key: &[u8; 16], partition: PartitionId) -> Vec<u8> {
    let mut bytes = vec![1];
    bytes.extend_from_slice(&millis.to_be_bytes());
    push_request(&mut bytes, namespace, key, partition);
    bytes
}

/// The time of a key made by [`request_at`], and the key made by [`request`] that belongs to it.
pub fn parse_request_at(key: &[u8]) -> Result<(u64, Vec<u8>), CodecError> {
    let millis = key.get(1..9).ok_or_else(|| malformed("a request's key is too short"))?;
    Ok((be_u64(millis), [&[0], &key[9..]].concat()))
}

/// The parts of a key made by [`request`].
pub fn parse_request(key: &[u8]) -> Result<(Namespace, [u8; 16], PartitionId), CodecError> {
    let parts = key.get(1..).and_then(|rest| rest.split_at_checked(rest.len().checked_sub(19)?));
    let Some((name, &[0, ref tail @ ..])) = parts else {
        return Err(malformed("a request's key is too short"));
    };
    let name = std::str::from_utf8(name).map_err(|_| malformed("a name that is no UTF-8"))?;
    let namespace = Namespace::new(name).map_err(|error| malformed(&error.to_string()))?;
    let mut id = [0; 16];
    id.copy_from_slice(&tail[..16]);
    Ok((namespace, id, PartitionId(u16::from_be_bytes([tail[16], tail[17]]))))
}

/// The first bytes of all keys made by [`request_at`].
pub const REQUESTS_BY_TIME: &[u8] = &[1];

fn push_request(bytes: &mut Vec<u8>, namespace: &Namespace, key: &[u8; 16], partition: PartitionId) {
    push_name(bytes, namespace.as_str());
    bytes.extend_from_slice(key);
    bytes.extend_from_slice(&partition.0.to_be_bytes());
}

/// A log entry's key.
pub fn log_entry(partition: PartitionId, index: u64) -> Vec<u8> {
    log_key(partition, 0, index)
}

/// The key of the context that the log had reached after an entry.
pub fn log_checkpoint(partition: PartitionId, index: u64) -> Vec<u8> {
    log_key(partition, 1, index)
}

/// The index of a log entry's or checkpoint's key.
pub fn log_index(key: &[u8]) -> Result<u64, CodecError> {
    key.get(3..11).map(be_u64).ok_or_else(|| malformed("a log key is too short"))
}

/// The ranges of what is garbage in a log whose first entry is `first`, at least 1: the entries below, and the checkpoints
/// below but the one right before it. What was garbage when the first entry was `since` is left out; 0 for all.
pub fn log_garbage(partition: PartitionId, since: u64, first: u64) -> [RangeInclusive<Vec<u8>>; 2] {
    let range = |kind, from, to| log_key(partition, kind, from)..=log_key(partition, kind, to);
    // Indexes begin at 1, so 0 names nothing.
    [range(0, since, first.saturating_sub(1)), range(1, since.saturating_sub(1), first.saturating_sub(2))]
}

/// The mark of a record that has rows.
pub fn key_mark(record: &RecordId) -> Vec<u8> {
    let (namespace, key) = (record.namespace.as_str(), record.key.as_str());
    let mut mark = Vec::with_capacity(namespace.len() + 1 + key.len());
    push_name(&mut mark, namespace);
    mark.extend_from_slice(key.as_bytes());
    mark
}

/// The first bytes of all marks of a namespace.
pub fn key_marks(namespace: &Namespace) -> Vec<u8> {
    let mut prefix = Vec::with_capacity(namespace.as_str().len() + 1);
    push_name(&mut prefix, namespace.as_str());
    prefix
}

/// The durable state of a partition, in `meta`.
pub fn partition_meta(partition: PartitionId) -> Vec<u8> {
    [b"partition/", &partition.0.to_be_bytes()[..]].concat()
}

/// How often rows that were lost have been put back in a partition, in `meta`.
pub fn mended(partition: PartitionId) -> Vec<u8> {
    [b"mended/", &partition.0.to_be_bytes()[..]].concat()
}

/// From where on the log of a partition is there, in `meta`.
pub fn log_floor(partition: PartitionId) -> Vec<u8> {
    let mut key = b"log_floor/".to_vec();
    key.extend_from_slice(&partition.0.to_be_bytes());
    key
}

/// That rows which a peer sent are taking effect in a partition, in `meta`.
pub fn settling(partition: PartitionId) -> Vec<u8> {
    [SETTLING, &partition.0.to_be_bytes()].concat()
}

/// The partition of a key made by [`settling`].
pub fn parse_settling(key: &[u8]) -> Result<PartitionId, CodecError> {
    match key.strip_prefix(SETTLING) {
        Some(&[high, low]) => Ok(PartitionId(u16::from_be_bytes([high, low]))),
        _ => Err(malformed("not a key of a partition that settles")),
    }
}

/// The first bytes of all keys made by [`settling`].
pub const SETTLING: &[u8] = b"settling/";
const JOB: &[u8] = b"job/";
const HIDDEN: &[u8] = b"hidden/";
/// The greatest stamp of the node's clock, in `meta`.
pub const CLOCK: &[u8] = b"clock";
/// The node's incarnation, in `meta`.
pub const INCARNATION: &[u8] = b"incarnation";

/// Where the data directory stands, in `meta`.
pub const PLACE: &[u8] = b"place";

/// What was last heard of the process of a peer, in `meta`.
pub fn instance(peer: &str) -> Vec<u8> {
    [b"instance/", peer.as_bytes()].concat()
}

/// The node's identity, in `meta`.
pub const IDENTITY: &[u8] = b"identity";
/// The format version of the whole store, in `meta`.
pub const FORMAT: &[u8] = b"format";

/// The first key after all that begin with the prefix.
pub fn after_prefix(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.last_mut() {
        if *last < u8::MAX {
            *last += 1;
            return end;
        }
        end.pop();
    }
    // Only a prefix of nothing but 0xff has no key after it, and no family has such keys.
    vec![u8::MAX; prefix.len() + 1]
}

fn log_key(partition: PartitionId, kind: u8, index: u64) -> Vec<u8> {
    let mut key = Vec::with_capacity(2 + 1 + 8);
    key.extend_from_slice(&partition.0.to_be_bytes());
    key.push(kind);
    key.extend_from_slice(&index.to_be_bytes());
    key
}

/// A field's prefix, with room for so many bytes behind it: keys are made for every row, and to grow one is to copy it.
fn with_room(record_prefix: &[u8], field: &Field, room: usize) -> Vec<u8> {
    let mut prefix = Vec::with_capacity(record_prefix.len() + field.as_str().len() + 1 + room);
    prefix.extend_from_slice(record_prefix);
    push_name(&mut prefix, field.as_str());
    prefix
}

fn push_name(bytes: &mut Vec<u8>, name: &str) {
    bytes.extend_from_slice(name.as_bytes());
    bytes.push(0);
}

fn be_u64(bytes: &[u8]) -> u64 {
    let mut whole = [0; 8];
    whole.copy_from_slice(bytes);
    u64::from_be_bytes(whole)
}

fn malformed(what: &str) -> CodecError {
    CodecError::Malformed(what.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Hlc;
    use proptest::prelude::*;

    fn record(key: &str) -> RecordId {
        RecordId { namespace: Namespace::new("ns").unwrap(), key: Key::new(key).unwrap() }
    }

    #[test]
    fn after_prefix_is_tight() {
        assert_eq!(after_prefix(b"ab"), b"ac");
        assert_eq!(after_prefix(&[1, 0xff]), [2]);
        assert!(after_prefix(&[0xff]) > vec![0xff]);
    }

    proptest! {
        #[test]
        fn a_row_comes_back(
            key in "[a-z{}/]{1,9}", name in "[a-zA-Z é]{1,5}", ty: u8, slot: Vec<u8>,
            replica: u64, counter: u64, hlc: u64, payload: Vec<u8>
        ) {
            let name_of = key;
            let prefix = record_prefix(PartitionId(3), &record(&name_of));
            let row = Row {
                field: Field::new(name).unwrap(),
                ty: FieldType(ty),
                slot,
                dot: Dot { replica: ReplicaId(replica), counter },
                hlc: Hlc(hlc),
                payload,
            };
            let key = row_key(&prefix, &row.field, row.ty, &row.slot, row.dot);
            let value = RowValue { counter, hlc: row.hlc, payload: row.payload.clone() }.encode();
            let field_key = type_prefix(&prefix, &row.field, row.ty);
            prop_assert_eq!(parse_type_prefix(&field_key), Ok((record(&name_of), row.field.clone(), row.ty)));
            let job = job(&field_key);
            prop_assert_eq!(parse_job(&job), Ok((field_key.as_slice(), &[][..])));
            let part = job_of(&field_key, &row.slot);
            prop_assert_eq!(parse_job(&part), Ok((field_key.as_slice(), row.slot.as_slice())));
            let due = due(PartitionId(7), hlc, &record(&name_of));
            prop_assert_eq!(parse_due(&due), Ok((hlc, record(&name_of))));
            prop_assert_eq!(row_dot(&key, &value), Ok(row.dot));
            let parts = parse_row_key(&key).unwrap();
            prop_assert_eq!((&key[..parts.record_bytes], &key[..parts.type_bytes]), (&prefix[..], &field_key[..]));
            prop_assert_eq!((parts.slot, parts.replica, parts.field), (row.slot.clone(), row.dot.replica, row.field.clone()));
            prop_assert_eq!(parse_row(&prefix, &key, &value), Ok(row));
        }

        #[test]
        fn a_request_comes_back(millis: u64, id: [u8; 16], partition: u16) {
            let (namespace, partition) = (Namespace::new("ns").unwrap(), PartitionId(partition));
            let name = request(&namespace, &id, partition);
            let by_time = request_at(millis, &namespace, &id, partition);
            prop_assert_eq!(parse_request_at(&by_time), Ok((millis, name.clone())));
            prop_assert_eq!(parse_request(&name), Ok((namespace, id, partition)));
        }

        #[test]
        fn junk_never_panics(key: Vec<u8>, value: Vec<u8>) {
            let _ = parse_row(&[], &key, &value);
            let _ = log_index(&key);
            let _ = parse_type_prefix(&key);
            let _ = parse_request_at(&key);
            let _ = parse_request(&key);
            let _ = parse_row_key(&key);
            let _ = row_dot(&key, &value);
        }
    }
}
