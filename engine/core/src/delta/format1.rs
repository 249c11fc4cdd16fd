//! Format 1 of a delta: one commit without an idempotency key. Frozen: nodes of wire version 1 and logs of storage
//! format 1 hold it, and a plain commit still goes out in it.

use bincode::{Decode, Encode};

use super::{Clear, Delta, FieldDelta, Kill, RecordDelta, RowWrite};
use crate::codec::{self, CodecError};
use crate::context::{Dot, DotRanges, VersionVector};
use crate::ids::{Field, RecordId};
use crate::row::FieldType;
use crate::time::Hlc;

const VERSION: u8 = 1;

#[derive(Decode)]
struct Delta1 {
    dot: Dot,
    hlc: Hlc,
    deps: VersionVector,
    records: Vec<Record1>,
}

#[derive(Decode)]
struct Record1 {
    record: RecordId,
    clear: Option<Clear>,
    fields: Vec<Field1>,
}

#[derive(Decode)]
struct Field1 {
    field: Field,
    ty: FieldType,
    kills: Vec<Kill>,
    rows: Vec<Row1>,
}

#[derive(Decode)]
struct Row1 {
    slot: Vec<u8>,
    payload: Vec<u8>,
}

/// The same by reference: a commit is encoded without being copied.
#[derive(Encode)]
struct Delta1Ref<'a> {
    dot: Dot,
    hlc: Hlc,
    deps: &'a VersionVector,
    records: Vec<Record1Ref<'a>>,
}

#[derive(Encode)]
struct Record1Ref<'a> {
    record: &'a RecordId,
    clear: Option<&'a Clear>,
    fields: Vec<Field1Ref<'a>>,
}

#[derive(Encode)]
struct Field1Ref<'a> {
    field: &'a Field,
    ty: FieldType,
    kills: &'a [Kill],
    rows: Vec<Row1Ref<'a>>,
}

#[derive(Encode)]
struct Row1Ref<'a> {
    slot: &'a [u8],
    payload: &'a [u8],
}

/// The commit of a delta of this format; `None` if the bytes have another one.
pub(super) fn dot(bytes: &[u8]) -> Option<Result<Dot, CodecError>> {
    (bytes.first() == Some(&VERSION)).then(|| codec::decode_prefix(VERSION, bytes).map(|(dot, _)| dot))
}

/// The delta's bytes, if this format can say it.
pub(super) fn encode(delta: &Delta) -> Option<Vec<u8>> {
    let dot = delta.dots.only()?;
    let plain = |record: &RecordDelta| {
        record.clears.len() <= 1 && record.fields.iter().all(|field| field.gone.is_empty())
    };
    if !delta.requests.is_empty() || !delta.records.iter().all(plain) {
        return None;
    }
    let records = delta.records.iter().map(|record| Record1Ref {
        record: &record.record,
        clear: record.clears.first(),
        fields: record.fields.iter().map(field_ref).collect(),
    });
    let whole = Delta1Ref { dot, hlc: delta.hlc, deps: &delta.deps, records: records.collect() };
    Some(codec::encode(VERSION, &whole))
}

fn field_ref(field: &FieldDelta) -> Field1Ref<'_> {
    let rows = field.rows.iter().map(|row| Row1Ref { slot: &row.slot, payload: &row.payload });
    Field1Ref { field: &field.field, ty: field.ty, kills: &field.kills, rows: rows.collect() }
}

/// Reads a delta of this format; `None` if the bytes have another one.
pub(super) fn decode(bytes: &[u8]) -> Option<Result<Delta, CodecError>> {
    (bytes.first() == Some(&VERSION)).then(|| codec::decode(VERSION, bytes).map(Delta1::into_delta))
}

impl Delta1 {
    fn into_delta(self) -> Delta {
        let Self { dot, hlc, deps, records } = self;
        let row = |row: Row1| RowWrite { slot: row.slot, dot, hlc, payload: row.payload };
        let field = |field: Field1| FieldDelta {
            field: field.field,
            ty: field.ty,
            kills: field.kills,
            rows: field.rows.into_iter().map(row).collect(),
            gone: Vec::new(),
        };
        let record = |record: Record1| RecordDelta {
            record: record.record,
            clears: record.clear.into_iter().collect(),
            fields: record.fields.into_iter().map(field).collect(),
        };
        let records = records.into_iter().map(record).collect();
        Delta { dots: DotRanges::single(dot), hlc, deps, requests: Vec::new(), records }
    }
}
