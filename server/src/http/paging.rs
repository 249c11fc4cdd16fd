//! Pages: how long they are, and what a request says about them.
//!
//! A page may be shorter than asked for, since it also ends at a number of bytes and of rows looked at. Whether there
//! is more is told by `next` alone, which is the `after` of the next request. So no page needs room among the large
//! answers, and none can be too large to show.

use godwit_core::read::PageLimits;

use super::problem::Problem;
use super::request::Query;

/// Names on a page, unless `limit` says how many.
const NAMES_DEFAULT: usize = 100;
/// The greatest `limit`.
const NAMES_MAX: usize = 1_000;
/// Bytes of the names on a page: what an answer may have without taking room.
const NAME_BYTES_MAX: usize = 64 * 1024;
/// Rows and marks that are looked at for one page.
const ROWS_MAX: usize = 10_000;

/// `after` and `limit`.
pub(super) struct Paging {
    /// Nothing, or an empty name, is the beginning.
    pub(super) after: Option<String>,
    pub(super) limits: PageLimits,
}

impl Paging {
    pub(super) fn parse(query: &Query) -> Result<Self, Problem> {
        let items_max = query.number("limit", NAMES_MAX)?.unwrap_or(NAMES_DEFAULT);
        let after = query.text("after").filter(|after| !after.is_empty()).map(str::to_owned);
        let limits = PageLimits { items_max, bytes_max: NAME_BYTES_MAX, rows_max: ROWS_MAX };
        Ok(Self { after, limits })
    }
}
