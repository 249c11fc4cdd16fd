//! Which records differ between two nodes that have applied the same commits of a partition.
//!
//! One node says where a range of so many rows ends, the other digests the same range. Ranges that differ are divided into
//! smaller ones, until their rows are listed on both sides and compared by hash. If either node applies something meanwhile,
//! no more is named: what was found before stands.

use std::collections::BTreeMap;

use anyhow::Context as _;
use serde::Serialize;

use super::nodes::Node;
use crate::http::digests::{Context, DigestBody, ROWS_LISTED_MAX, RowBody};

/// Rows of the first ranges.
const ROWS_FIRST: usize = 64 * ROWS_LISTED_MAX;
/// Fields named of one partition and two nodes.
pub(super) const FIELDS_NAMED_MAX: usize = 20;
/// Rows listed of one partition and two nodes.
const ROWS_LOOKED_AT_MAX: usize = 200_000;

/// A field whose rows differ.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(super) struct Difference {
    pub(super) namespace: String,
    pub(super) key: String,
    pub(super) field: String,
    #[serde(rename = "type")]
    pub(super) ty: String,
    /// Rows that only the first of the two nodes has.
    pub(super) only_first: u64,
    /// Rows that only the second has.
    pub(super) only_second: u64,
    /// Rows that both have, with other values.
    pub(super) other_value: u64,
}

/// The search in one partition.
struct Search<'n> {
    first: &'n Node,
    second: &'n Node,
    partition: u16,
    /// What both must have applied when they answer.
    context: &'n Context,
    /// By namespace, key, field and type.
    found: BTreeMap<[String; 4], Difference>,
    looked_at: usize,
}

/// Why a search ended early: enough was found or looked at, or a node has applied more.
struct Ended;

/// The differences between two nodes, and whether these are all.
pub(super) async fn find(
    first: &Node,
    second: &Node,
    partition: u16,
    context: &Context,
) -> anyhow::Result<(Vec<Difference>, bool)> {
    let mut search = Search { first, second, partition, context, found: BTreeMap::new(), looked_at: 0 };
    let outcome = search.run().await?;
    let complete = outcome.is_ok() && search.found.len() <= FIELDS_NAMED_MAX;
    Ok((search.found.into_values().take(FIELDS_NAMED_MAX).collect(), complete))
}

impl Search<'_> {
    async fn run(&mut self) -> anyhow::Result<Result<(), Ended>> {
        // Ranges to look into, the first one last, each with the size of its parts.
        let mut ranges = vec![(String::new(), String::new(), ROWS_FIRST)];
        while let Some((from, to, rows)) = ranges.pop() {
            let Some(part) = self.ask(self.first, &from, &to, &format!("&rows={rows}")).await? else {
                return Ok(Err(Ended));
            };
            let end = part.next.clone().unwrap_or_else(|| to.clone());
            let Some(same) = self.ask(self.second, &from, &end, "").await? else { return Ok(Err(Ended)) };
            if part.next.is_some() {
                ranges.push((end.clone(), to, rows));
            }
            if (part.rows, &part.digest) == (same.rows, &same.digest) {
                continue;
            }
            if rows > ROWS_LISTED_MAX {
                ranges.push((from, end, ROWS_LISTED_MAX));
                continue;
            }
            if let Err(ended) = self.compare(&from, &end).await? {
                return Ok(Err(ended));
            }
        }
        Ok(Ok(()))
    }

    /// Lists a range on both sides, of which the first has one page at most.
    async fn compare(&mut self, from: &str, to: &str) -> anyhow::Result<Result<(), Ended>> {
        let Some(page) = self.ask(self.first, from, to, "&list=true").await? else { return Ok(Err(Ended)) };
        self.looked_at += page.list.len();
        let mut rest: BTreeMap<String, RowBody> =
            page.list.into_iter().map(|row| (row.at.clone(), row)).collect();
        let mut at = Some(from.to_owned());
        while let Some(from) = at {
            let Some(page) = self.ask(self.second, &from, to, "&list=true").await? else {
                return Ok(Err(Ended));
            };
            self.looked_at += page.list.len();
            for row in page.list {
                match rest.remove(&row.at) {
                    None => self.difference(row).only_second += 1,
                    Some(other) if other.digest != row.digest => self.difference(row).other_value += 1,
                    Some(_) => {}
                }
            }
            if self.has_enough() {
                return Ok(Err(Ended));
            }
            at = page.next;
        }
        for row in rest.into_values() {
            self.difference(row).only_first += 1;
        }
        Ok(if self.has_enough() { Err(Ended) } else { Ok(()) })
    }

    fn has_enough(&self) -> bool {
        self.found.len() > FIELDS_NAMED_MAX || self.looked_at > ROWS_LOOKED_AT_MAX
    }

    fn difference(&mut self, row: RowBody) -> &mut Difference {
        let RowBody { namespace, key, field, ty, .. } = row;
        let name = [&namespace, &key, &field, &ty].map(Clone::clone);
        let new = || Difference { namespace, key, field, ty, ..Difference::default() };
        self.found.entry(name).or_insert_with(new)
    }

    /// `None` if the node has applied more than it should have.
    async fn ask(&self, node: &Node, from: &str, to: &str, what: &str) -> anyhow::Result<Option<DigestBody>> {
        let part = format!("&from={from}&to={to}{what}");
        let answer = node.digest(self.partition, &part).await.context("while looking for what differs")?;
        Ok((answer.context == *self.context).then_some(answer))
    }
}
