//! `/v1/_digest`: digests of a partition's rows by ranges, so that `godwit verify` can prove nodes equal, or name what is not.
//!
//! Every answer is of one snapshot and holds that snapshot's context: digests of two nodes say something only where their
//! contexts are equal. One such request at a time reads, on a thread that may block; what it holds in memory is one row, or a
//! page of [`ROWS_LISTED_MAX`] keys and hashes.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use axum::http::Uri;
use axum::response::Response;
use godwit_core::context::VersionVector;
use godwit_core::digest::{self, ListedRow, Range, RangeDigest};
use godwit_core::ids::PartitionId;
use godwit_core::partition::stored_context;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::contract::schemas;
use super::problem::{Kind, Problem};
use super::request::Query;
use super::{Api, respond};
use crate::node::ReadFailure;

/// Rows on a page of a list.
pub(crate) const ROWS_LISTED_MAX: usize = 1024;

/// What the last counter of each replica is, by the replica's id.
pub(crate) type Context = BTreeMap<String, u64>;

/// A digest of a range of a partition's rows, or a page of them.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[schema(as = RangeDigest)]
pub(crate) struct DigestBody {
    pub(crate) partition: u16,
    /// What the snapshot had applied.
    #[schema(value_type = schemas::Context)]
    pub(crate) context: Context,
    /// How many live rows are in the range.
    pub(crate) rows: u64,
    /// BLAKE3 over them, hexadecimal. A list has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<schemas::Blake3>)]
    pub(crate) digest: Option<String>,
    /// The key of the first row in the range that was not taken, hexadecimal; absent if all were.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<schemas::Hexadecimal>)]
    pub(crate) next: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) list: Vec<RowBody>,
}

/// A row, as a list tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = Row)]
pub(crate) struct RowBody {
    /// Its storage key, hexadecimal.
    pub(crate) at: String,
    pub(crate) namespace: String,
    pub(crate) key: String,
    pub(crate) field: String,
    #[serde(rename = "type")]
    pub(crate) ty: String,
    /// BLAKE3 over its value, hexadecimal.
    pub(crate) digest: String,
}

/// Which rows are asked for.
struct Asked {
    partition: PartitionId,
    from: Vec<u8>,
    to: Vec<u8>,
    rows_max: Option<usize>,
    lists: bool,
}

/// `GET`: a digest of a range of a partition's rows, or a page of them. Without `rows` and `to` it reads the whole partition.
#[utoipa::path(
    get, path = "/v1/_digest", operation_id = "readDigest", tag = "node",
    params(
        ("partition" = u16, Query, description = "Which partition."),
        ("from" = Option<schemas::Hexadecimal>, Query, description = "From this row's key on: `next` of an answer."),
        ("to" = Option<schemas::Hexadecimal>, Query, description = "Up to this row's key, without it."),
        ("rows" = Option<u64>, Query, description = "At most so many; of a list 1,024.", minimum = 1),
        ("list" = Option<bool>, Query, description = "The rows, and not their digest."),
    ),
    responses(
        (status = 200, description = "The digest or the page.", body = DigestBody),
        (status = 400, description = "malformed"),
        (status = 500, description = "internal"),
        (status = 503, description = "stopping"),
    )
)]
pub(super) async fn read(State(api): State<Api>, uri: Uri) -> Result<Response, Problem> {
    let query = Query::parse(uri.query(), &["partition", "from", "to", "rows", "list"])?;
    let lists = query.is_true("list")?;
    let asked = Asked {
        partition: partition(&query, api.node.partitions())?,
        from: bytes(&query, "from")?,
        to: bytes(&query, "to")?,
        rows_max: query.number("rows", if lists { ROWS_LISTED_MAX } else { usize::MAX })?,
        lists,
    };
    // It goes with the read, which goes on if the client leaves.
    let turn = Arc::clone(&api.digests).lock_owned().await;
    let read = api.node.read(move |store| {
        let _turn = turn;
        let context = stored_context(store, asked.partition)?;
        let within = Range { from: &asked.from, to: &asked.to };
        let body = DigestBody {
            partition: asked.partition.0,
            context: context_body(&context),
            rows: 0,
            digest: None,
            next: None,
            list: Vec::new(),
        };
        if asked.lists {
            let rows_max = asked.rows_max.unwrap_or(ROWS_LISTED_MAX);
            let (list, next) = digest::list(store, asked.partition, &within, rows_max)?;
            let list: Vec<RowBody> = list.into_iter().map(row_body).collect();
            return Ok(DigestBody { rows: list.len() as u64, next: next.as_deref().map(hex), list, ..body });
        }
        let rows_max = asked.rows_max.map_or(u64::MAX, |rows| rows as u64);
        let RangeDigest { rows, digest, next } = digest::range(store, asked.partition, &within, rows_max)?;
        Ok::<_, ReadFailure>(DigestBody {
            rows,
            digest: Some(hex(&digest)),
            next: next.as_deref().map(hex),
            ..body
        })
    });
    respond::json(&read.await?)
}

/// A context as answers hold it.
pub(super) fn context_body(context: &VersionVector) -> Context {
    context.iter().map(|dot| (dot.replica.to_string(), dot.counter)).collect()
}

fn row_body(row: ListedRow) -> RowBody {
    RowBody {
        at: hex(&row.key),
        namespace: row.record.namespace.as_str().to_owned(),
        key: row.record.key.as_str().to_owned(),
        field: row.field.as_str().to_owned(),
        ty: row.ty.to_string(),
        digest: hex(&row.digest),
    }
}

fn partition(query: &Query, partitions: u16) -> Result<PartitionId, Problem> {
    let given = query.text("partition").and_then(|given| given.parse().ok());
    let refused = || {
        let last = partitions - 1;
        let detail = format!("the query parameter \"partition\" must be a number from 0 to {last}");
        Problem::new(Kind::Malformed, detail)
    };
    given.filter(|given| *given < partitions).map(PartitionId).ok_or_else(refused)
}

fn bytes(query: &Query, name: &str) -> Result<Vec<u8>, Problem> {
    let given = query.text(name).unwrap_or_default();
    let refused = || {
        let detail = format!(
            "the query parameter {name:?} must be a row's key in hexadecimal, as `next` of an answer holds it"
        );
        Problem::new(Kind::Malformed, detail)
    };
    unhex(given).ok_or_else(refused)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let bytes = pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?));
    if rest.is_empty() { bytes.collect() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_back_from_hexadecimal() {
        for bytes in [&[][..], &[0], &[0, 0x0f, 0xf0, 0xff]] {
            assert_eq!(unhex(&hex(bytes)).as_deref(), Some(bytes));
        }
        for wrong in ["0", "0g", "+1", "é0", "00 "] {
            assert_eq!(unhex(wrong), None, "{wrong}");
        }
    }
}
