//! Parts of zsets by rank and by score: `/v1/{ns}/{key}/{field}?order=rank`, `?min=&max=`. By member they are paged as sets
//! are ([`super::sets`]).
//!
//! A page by rank says where the next one begins by the score and name of its last member, not by a rank: ranks move
//! while others write.

use axum::http::HeaderMap;
use axum::response::Response;
use godwit_core::ids::{Field, RecordId};
use godwit_core::read::{self, Place, ZPage, ZRange};
use godwit_core::row::FieldType;
use godwit_core::types::score::Score;
use serde::Serialize;
use utoipa::ToSchema;

use super::contract::schemas;
use super::ops::score;
use super::paging::Paging;
use super::problem::{Kind, Problem};
use super::request::Query;
use super::session::Session;
use super::sets::check_type;
use super::{Api, respond};
use crate::node::StoreView;

/// The query parameters that ask for an order by score.
pub(super) const PARAMETERS: [&str; 5] = ["order", "desc", "rank", "min", "max"];

/// A page of a zset by rank or score.
#[derive(Serialize, ToSchema)]
#[schema(as = ZsetPage)]
pub(super) struct PageBody<'a> {
    #[schema(value_type = schemas::FieldName)]
    field: &'a str,
    #[schema(value_type = schemas::ScoredMembers)]
    value: Vec<(&'a str, f64)>,
    /// The rank of the first, from the page's end.
    #[serde(skip_serializing_if = "Option::is_none")]
    rank: Option<u64>,
    /// The `after` of the next page, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// A page by rank or score.
pub(super) async fn page(
    api: &Api,
    session: &Session,
    record: RecordId,
    field: Field,
    query: &Query,
    headers: &HeaderMap,
) -> Result<Response, Problem> {
    let Paging { after, limits } = Paging::parse(query)?;
    query.has("numbers", "string")?;
    query.one_of("order", &["rank"])?;
    let rank = query.number("rank", usize::MAX)?;
    let place = match (after, rank) {
        (Some(_), Some(_)) => {
            return Err(malformed("`rank` says where the first page begins: leave out `after`"));
        }
        (Some(after), None) => parse_mark(&after)?,
        (None, rank) => Place::Rank(rank.unwrap_or(0) as u64),
    };
    let (min, max) = (bound(query, "min")?, bound(query, "max")?);
    let range = ZRange { min, max, desc: query.is_true("desc")?, place };
    let (at, asked) = (api.node.read_at(), field.clone());
    let home = record.partition(at.partitions);
    let read = move |store: &StoreView<'_>| {
        let page = read::zpage(store, at, &record, &asked, &range, limits)?;
        // An empty page says nothing about whether there is a zset.
        let types =
            page.items.is_empty().then(|| read::live_types(store, at, &record, &asked)).transpose()?;
        Ok::<_, read::ReadError>((page, types))
    };
    let (ZPage { items, more }, types) = session.read(api, [home], read).await?;
    if let Some(types) = types {
        check_type(&field, &types, &[FieldType::ZSET], "only a zset has an order by score")?;
    }
    let last = items.last().filter(|_| more);
    let body = PageBody {
        field: field.as_str(),
        value: items.iter().map(|of| (of.member.as_str(), of.score.value())).collect(),
        rank: items.first().map(|of| of.rank),
        next: last.map(|of| mark(of.score, of.member.as_str())),
    };
    respond::tagged(&body, headers, None)
}

/// Where a page by rank goes on after a member.
pub(super) fn mark(score: Score, member: &str) -> String {
    format!("{score}:{member}")
}

fn parse_mark(mark: &str) -> Result<Place, Problem> {
    let parts = mark.split_once(':').and_then(|(number, member)| {
        let number = number.parse().ok()?;
        Some(Place::After(Score::new(number).ok()?, member.to_owned()))
    });
    parts.ok_or_else(|| {
        malformed("`after` of a page by rank is the `next` of the page before it: score:member")
    })
}

fn bound(query: &Query, name: &str) -> Result<Option<Score>, Problem> {
    let Some(text) = query.text(name) else { return Ok(None) };
    score(text).map(Some).map_err(|_| malformed(&format!("`{name}` must be a finite number")))
}

fn malformed(detail: &str) -> Problem {
    Problem::new(Kind::Malformed, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_read_as_it_was_written() {
        for (number, member) in [(0.1, "a:b"), (-1e300, ""), (5e-324, "é"), (0.0, "x")] {
            let score = Score::new(number).unwrap();
            let place = parse_mark(&mark(score, member)).unwrap();
            assert_eq!(place, Place::After(score, member.to_owned()));
        }
        for wrong in ["", "alice", "x:alice", "inf:alice", "NaN:a"] {
            assert!(parse_mark(wrong).is_err(), "{wrong}");
        }
    }
}
