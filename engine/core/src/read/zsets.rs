//! Zsets: pages by member, by rank and by score, a member's score and rank, sizes.
//!
//! By member, rows are read in the order of their keys; by rank and score, the order that the node keeps is
//! ([`crate::derived::order`]). Where there is none (it is being rebuilt, or rows may be absent that have expired), all rows
//! are looked at and sorted, at most [`UNORDERED_ROWS_MAX`].

use std::ops::ControlFlow;

use super::rows::{Budget, Ended, Record, Rows};
use super::{Page, PageLimits, ReadAt, ReadError, Value};
use crate::codec::CodecError;
use crate::derived::order::Order;
use crate::derived::{self, State};
use crate::ids::{Field, Member, RecordId};
use crate::keys;
use crate::row::{FieldType, Row};
use crate::store::{StoreError, StoreRead};
use crate::types::presence;
use crate::types::score::Score;
use crate::types::zset::{self, Of};

/// Rows of a zset without an order that are looked at: more are an error until it is there.
const UNORDERED_ROWS_MAX: usize = 256 * 1024;
/// Rows looked at for what is told beside a value: the latest of them.
const ROWS_SHOWN: usize = 64;

/// A member, its score and its rank: how many members come before it, by score, then by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ranked {
    /// The member.
    pub member: Member,
    /// Its score.
    pub score: Score,
    /// Its rank, from the page's end: of a descending page the highest score has rank 0.
    pub rank: u64,
}

/// Where a page by rank or score begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// At a rank, from the page's end.
    Rank(u64),
    /// After a member with this score, whether or not it is there still.
    After(Score, String),
}

/// What a page by rank or score shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ZRange {
    /// Scores from here on.
    pub min: Option<Score>,
    /// Scores up to here.
    pub max: Option<Score>,
    /// The highest score first.
    pub desc: bool,
    /// Where in that it begins.
    pub place: Place,
}

/// A page of a zset by rank or score.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ZPage {
    /// The members, by rank.
    pub items: Vec<Ranked>,
    /// Whether there are more.
    pub more: bool,
}

/// A member's score and, if asked for, its rank (from the highest score down if `desc`); `None` if it is absent.
pub fn scored(
    store: &impl StoreRead,
    at: ReadAt,
    record: &RecordId,
    field: &Field,
    member: &Member,
    rank: Option<bool>,
) -> Result<Option<(Score, Option<u64>)>, ReadError> {
    let budget = Budget::unlimited();
    let record = Record::open(store, at, record, &budget)?;
    let rows = record.rows(field, FieldType::ZSET);
    let base = zset::base(member);
    let Some(desc) = rank else { return Ok(score_of(&rows, &base)?.map(|score| (score, None))) };
    let ordered = Ordered::open(&rows)?;
    let score = match &ordered {
        Ordered::Kept(order) => order.score(store, member.as_str())?,
        Ordered::Sorted(_) => score_of(&rows, &base)?,
    };
    let Some(score) = score else { return Ok(None) };
    let (below, len) = ordered.rank(&rows, score, member.as_str())?;
    let rank = if desc { len.saturating_sub(below + 1) } else { below };
    Ok(Some((score, Some(rank))))
}

/// How many members a zset has.
pub fn zsize(store: &impl StoreRead, at: ReadAt, record: &RecordId, field: &Field) -> Result<u64, ReadError> {
    let budget = Budget::unlimited();
    let record = Record::open(store, at, record, &budget)?;
    let rows = record.rows(field, FieldType::ZSET);
    Ordered::open(&rows)?.len(&rows)
}

/// A page by rank or score.
pub fn zpage(
    store: &impl StoreRead,
    at: ReadAt,
    record: &RecordId,
    field: &Field,
    range: &ZRange,
    limits: PageLimits,
) -> Result<ZPage, ReadError> {
    let budget = Budget::unlimited();
    let record = Record::open(store, at, record, &budget)?;
    let rows = record.rows(field, FieldType::ZSET);
    let ordered = Ordered::open(&rows)?;
    let len = ordered.len(&rows)?;
    // Places from `from` to `to` (exclusive), the lowest score first.
    let mut from = range.min.map_or(Ok(0), |min| ordered.below(&rows, min, false))?;
    let mut to = range.max.map_or(Ok(len), |max| ordered.below(&rows, max, true))?;
    match (&range.place, range.desc) {
        (Place::Rank(rank), false) => from = from.max(*rank),
        (Place::Rank(rank), true) => to = to.min(len.saturating_sub(*rank)),
        (Place::After(score, member), desc) => {
            let (below, _) = ordered.rank(&rows, *score, member)?;
            let is_there = ordered.at(&rows, below)?.is_some_and(|(m, s)| s == *score && m == *member);
            match desc {
                true => to = to.min(below),
                false => from = from.max(below + u64::from(is_there)),
            }
        }
    }
    let count = to.saturating_sub(from).min(limits.items_max as u64);
    let first = if range.desc { to - count } else { from };
    let mut items = Vec::new();
    ordered.each_from(&rows, first, &mut |member, score| {
        if items.len() as u64 == count {
            return ControlFlow::Break(());
        }
        items.push((member.to_owned(), score));
        ControlFlow::Continue(())
    })?;
    if range.desc {
        items.reverse();
    }
    let mut bytes = 0;
    let whole = items.len();
    let fits = items.iter().take_while(|(member, _)| {
        bytes += member.len();
        bytes <= limits.bytes_max || bytes == member.len()
    });
    let fits = fits.count();
    items.truncate(fits);
    let more = fits < whole || count < to.saturating_sub(from);
    let rank_of = |i: usize| if range.desc { len - to + i as u64 } else { from + i as u64 };
    let items = items.into_iter().enumerate().map(|(i, (member, score))| {
        let member = Member::new(member).map_err(|error| CodecError::Malformed(error.to_string()));
        Ok(Ranked { member: member.map_err(StoreError::damaged("derived: order"))?, score, rank: rank_of(i) })
    });
    Ok(ZPage { items: items.collect::<Result<_, StoreError>>()?, more })
}

/// The members after a name (exclusive; it need not be a member), in byte order, with their scores.
pub fn zmembers(
    store: &impl StoreRead,
    at: ReadAt,
    record: &RecordId,
    field: &Field,
    after: Option<&str>,
    limits: PageLimits,
) -> Result<Page<(Member, Score)>, ReadError> {
    let budget = Budget::of_rows(limits.rows_max);
    let record = Record::open(store, at, record, &budget)?;
    let rows = record.rows(field, FieldType::ZSET);
    let mut page: Page<(Member, Score)> = Page { items: Vec::new(), next: None };
    let mut bytes = 0;
    let mut is_full = false;
    let from = after.map_or_else(Vec::new, |after| keys::after_prefix(&presence::slot_of(after)));
    let ended = each_member(&rows, &from, |name, score| {
        bytes += name.len();
        if limits.is_full(page.items.len(), bytes) {
            is_full = true;
            return Ok(ControlFlow::Break(()));
        }
        page.items.push((named(name)?, score));
        Ok(ControlFlow::Continue(()))
    })?;
    page.next = match ended {
        _ if is_full => page.items.last().cloned(),
        Some(last) => Some((named(&last).map_err(StoreError::damaged("rows: zset"))?, Score::default())),
        None => None,
    };
    Ok(page)
}

/// A zset's value, and the latest of the rows looked at.
pub(super) fn view(
    rows: &Rows<'_, impl StoreRead>,
    members_max: usize,
) -> Result<Option<(Value, Row)>, ReadError> {
    let mut latest: Option<Row> = None;
    for rows in [rows, &rows.of(FieldType::ZSUM)] {
        let mut looked_at = 0;
        rows.each(rows.range(), &keys::after_prefix(rows.range()), |row| {
            looked_at += 1;
            if latest.as_ref().is_none_or(|latest| latest.hlc < row.hlc) {
                latest = Some(row);
            }
            Ok(if looked_at < ROWS_SHOWN { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
        })?;
    }
    let Some(latest) = latest else { return Ok(None) };
    let ordered = Ordered::open(rows)?;
    let mut members = Vec::new();
    let (mut truncated, mut too_large) = (false, Ok(()));
    ordered.each_from(rows, 0, &mut |member, score| {
        truncated = members.len() == members_max;
        if truncated {
            return ControlFlow::Break(());
        }
        too_large = rows.take_bytes(member.len() + size_of::<Score>());
        if too_large.is_err() {
            return ControlFlow::Break(());
        }
        members.push((member.to_owned(), score));
        ControlFlow::Continue(())
    })?;
    too_large?;
    Ok((!members.is_empty() || truncated).then_some((Value::Zset { members, truncated }, latest)))
}

/// Whether some member has increments that are not cleared.
pub(super) fn any_incremented(rows: &Rows<'_, impl StoreRead>) -> Result<bool, ReadError> {
    let mut any = false;
    each_member(rows, &[], |_, _| {
        any = true;
        Ok(ControlFlow::Break(()))
    })?;
    Ok(any)
}

/// A zset by score.
enum Ordered {
    /// As the node keeps it.
    Kept(Order),
    /// Sorted for this read.
    Sorted(Vec<(Score, String)>),
}

impl Ordered {
    fn open(rows: &Rows<'_, impl StoreRead>) -> Result<Self, ReadError> {
        if !rows.may_hide()
            && let Some(state) = State::read(rows.store(), rows.range())?
            && state.is_whole()
        {
            return Ok(Self::Kept(Order::at(derived::order_root(rows.range(), state.epoch))));
        }
        let mut sorted = Vec::new();
        let mut is_cut = false;
        each_member(rows, &[], |name, score| {
            is_cut = sorted.len() == UNORDERED_ROWS_MAX;
            if is_cut {
                return Ok(ControlFlow::Break(()));
            }
            sorted.push((score, name.to_owned()));
            Ok(ControlFlow::Continue(()))
        })?;
        if is_cut {
            return Err(ReadError::Unordered);
        }
        sorted.sort();
        Ok(Self::Sorted(sorted))
    }

    fn len(&self, rows: &Rows<'_, impl StoreRead>) -> Result<u64, ReadError> {
        match self {
            Self::Kept(order) => Ok(order.len(rows.store())?),
            Self::Sorted(sorted) => Ok(sorted.len() as u64),
        }
    }

    /// How many come before a member with this score, and how many there are.
    fn rank(
        &self,
        rows: &Rows<'_, impl StoreRead>,
        score: Score,
        member: &str,
    ) -> Result<(u64, u64), ReadError> {
        match self {
            Self::Kept(order) => Ok(order.rank(rows.store(), score, member)?),
            Self::Sorted(sorted) => {
                let before = sorted.partition_point(|(s, m)| (*s, m.as_str()) < (score, member));
                Ok((before as u64, sorted.len() as u64))
            }
        }
    }

    fn below(&self, rows: &Rows<'_, impl StoreRead>, score: Score, with: bool) -> Result<u64, ReadError> {
        match self {
            Self::Kept(order) => Ok(order.below(rows.store(), score, with)?),
            Self::Sorted(sorted) => {
                Ok(sorted.partition_point(|(s, _)| *s < score || with && *s == score) as u64)
            }
        }
    }

    fn at(&self, rows: &Rows<'_, impl StoreRead>, place: u64) -> Result<Option<(String, Score)>, ReadError> {
        let mut found = None;
        self.each_from(rows, place, &mut |member, score| {
            found = Some((member.to_owned(), score));
            ControlFlow::Break(())
        })?;
        Ok(found)
    }

    fn each_from(
        &self,
        rows: &Rows<'_, impl StoreRead>,
        place: u64,
        visit: &mut dyn FnMut(&str, Score) -> ControlFlow<()>,
    ) -> Result<(), ReadError> {
        match self {
            Self::Kept(order) => order.each_from(rows.store(), place, visit)?,
            Self::Sorted(sorted) => {
                let rest = sorted.iter().skip(usize::try_from(place).unwrap_or(usize::MAX));
                for (score, member) in rest {
                    if visit(member, *score).is_break() {
                        break;
                    }
                }
            }
        }
        Ok(())
    }
}

fn score_of(rows: &Rows<'_, impl StoreRead>, base: &[u8]) -> Result<Option<Score>, ReadError> {
    let collect = |rows: &Rows<'_, _>| {
        let from = [rows.range(), base].concat();
        let mut found = Vec::new();
        rows.each(&from, &keys::after_prefix(&from), |row| {
            found.push(row);
            Ok(ControlFlow::Continue(()))
        })?;
        Ok::<_, ReadError>(found)
    };
    let (assigned, sums) = (collect(rows)?, collect(&rows.of(FieldType::ZSUM))?);
    Ok(Of::base(base).score(&assigned, &sums).map_err(StoreError::damaged("rows: zset"))?)
}

/// Rows of a zset that are read at once.
const CHUNK: usize = 1024;

/// Visits the members present whose slots begin with these bytes or later ones, in byte order. Tells the last name that was
/// looked at if the budget of rows ended the visit.
fn each_member(
    rows: &Rows<'_, impl StoreRead>,
    from: &[u8],
    mut visit: impl FnMut(&str, Score) -> Result<ControlFlow<()>, CodecError>,
) -> Result<Option<String>, ReadError> {
    let sums = rows.of(FieldType::ZSUM);
    let mut from = from.to_vec();
    let damaged = || StoreError::damaged("rows: zset");
    loop {
        let mut members: std::collections::BTreeMap<Vec<u8>, (Vec<Row>, Vec<Row>)> = Default::default();
        // All rows of what is not beyond this are known.
        let mut known_to: Option<Vec<u8>> = None;
        let mut is_spent = false;
        for (source, is_sum) in [(rows, false), (&sums, true)] {
            let begin = [source.range(), &from].concat();
            let (mut taken, mut last) = (0, Vec::new());
            let ended = source.each(&begin, &keys::after_prefix(source.range()), |row| {
                let (base, _) = zset::split(&row.slot).ok_or_else(|| malformed("no slot of a zset"))?;
                if base != last {
                    if taken >= CHUNK {
                        return Ok(ControlFlow::Break(()));
                    }
                    last = base.to_vec();
                }
                taken += 1;
                let of_member = members.entry(last.clone()).or_default();
                if is_sum {
                    of_member.1.push(row)
                } else {
                    of_member.0.push(row)
                }
                Ok(ControlFlow::Continue(()))
            })?;
            let to = match ended {
                Ended::Whole => None,
                Ended::Told => Some(last),
                Ended::AtBound(slot) => {
                    is_spent = true;
                    zset::split(&slot).map(|(base, _)| base.to_vec())
                }
            };
            known_to = match (known_to, to) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
        }
        for (base, (assigned, sums)) in &members {
            if known_to.as_ref().is_some_and(|to| base > to) {
                break;
            }
            let name = zset::member(base).ok_or_else(|| malformed("no member")).map_err(damaged())?;
            let score = Of::base(base).score(assigned, sums).map_err(damaged())?;
            if let Some(score) = score
                && visit(name, score).map_err(damaged())?.is_break()
            {
                return Ok(None);
            }
        }
        match known_to {
            None => return Ok(None),
            Some(to) if is_spent => {
                let name = zset::member(&to).ok_or_else(|| malformed("no member")).map_err(damaged())?;
                return Ok(Some(name.to_owned()));
            }
            Some(to) => from = keys::after_prefix(&to),
        }
    }
}

fn named(name: &str) -> Result<Member, CodecError> {
    Member::new(name).map_err(|error| CodecError::Malformed(error.to_string()))
}

fn malformed(what: &str) -> CodecError {
    CodecError::Malformed(what.into())
}
