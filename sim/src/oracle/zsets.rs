//! What every read of a zset must show, by the one value that the specification gives it: pages by member, by rank and by
//! score in both directions, ranks, sizes.

use godwit_core::ids::{Field, Member, RecordId};
use godwit_core::read::{self, PageLimits, Place, Ranked, ReadAt, ReadError, ZRange};
use godwit_core::store::StoreRead;
use godwit_core::types::score::Score;

use crate::spec::{SpecRecord, SpecType, SpecValue};
use crate::workload;

const TWO: PageLimits = PageLimits { items_max: 2, bytes_max: usize::MAX, rows_max: usize::MAX };

/// Compares them all, in pages of two.
pub(super) fn check(
    store: &impl StoreRead,
    at: ReadAt,
    record: &RecordId,
    expected: &SpecRecord,
) -> Result<Result<(), String>, ReadError> {
    for field in workload::zset_fields() {
        let members = match expected.get(&(field.to_string(), SpecType::Zset)) {
            Some(SpecValue::Zset(members)) => members.as_slice(),
            _ => &[],
        };
        let zset = Zset { store, at, record, field: &field, members };
        if let Some(wrong) = zset.wrong()? {
            return Ok(Err(format!("{record}: {field} is {members:?}, but {wrong}")));
        }
    }
    Ok(Ok(()))
}

struct Zset<'a, S> {
    store: &'a S,
    at: ReadAt,
    record: &'a RecordId,
    field: &'a Field,
    /// By rank.
    members: &'a [(String, f64)],
}

impl<S: StoreRead> Zset<'_, S> {
    fn wrong(&self) -> Result<Option<String>, ReadError> {
        let Self { store, at, record, field, members } = *self;
        let size = read::zsize(store, at, record, field)?;
        if size != members.len() as u64 {
            return Ok(Some(format!("its size is {size}")));
        }
        for name in workload::MEMBERS {
            let member = Member::new(name).expect("a constant name");
            for desc in [false, true] {
                let found = read::scored(store, at, record, field, &member, Some(desc))?;
                let found = found.map(|(score, rank)| (score.value(), rank));
                let place = members.iter().position(|(of, _)| of == name);
                let rank = |place: usize| if desc { members.len() - 1 - place } else { place };
                let expected = place.map(|place| (members[place].1, Some(rank(place) as u64)));
                if found != expected {
                    return Ok(Some(format!("{name} has score and rank {found:?} (descending: {desc})")));
                }
            }
        }
        let mut bounds = vec![None];
        bounds.extend(members.iter().map(|(_, score)| Some(*score)));
        for (min, max) in bounds.iter().flat_map(|min| bounds.iter().map(move |max| (*min, *max))) {
            for desc in [false, true] {
                let shown = self.pages(min, max, desc)?;
                if shown != self.expected(min, max, desc) {
                    return Ok(Some(format!(
                        "from {min:?} to {max:?} (descending: {desc}) it shows {shown:?}"
                    )));
                }
            }
        }
        let mut by_name: Vec<(String, f64)> = members.to_vec();
        by_name.sort_by(|a, b| a.0.cmp(&b.0));
        let (mut shown, mut after) = (Vec::new(), None::<String>);
        for _ in 0..=members.len() {
            let page = read::zmembers(store, at, record, field, after.as_deref(), TWO)?;
            shown
                .extend(page.items.iter().map(|(member, score)| (member.as_str().to_owned(), score.value())));
            after = page.next.map(|(member, _)| member.as_str().to_owned());
            if after.is_none() {
                break;
            }
        }
        Ok((shown != by_name || after.is_some()).then(|| format!("by name it shows {shown:?}")))
    }

    fn expected(&self, min: Option<f64>, max: Option<f64>, desc: bool) -> Vec<(String, f64, u64)> {
        let len = self.members.len() as u64;
        let within = |score: f64| min.is_none_or(|min| score >= min) && max.is_none_or(|max| score <= max);
        let ranked = self.members.iter().enumerate().map(|(place, (member, score))| {
            let rank = if desc { len - 1 - place as u64 } else { place as u64 };
            (member.clone(), *score, rank)
        });
        let mut ranked: Vec<_> = ranked.filter(|(_, score, _)| within(*score)).collect();
        if desc {
            ranked.reverse();
        }
        ranked
    }

    /// All pages, each begun where the one before ended: by rank and by member in turn.
    fn pages(
        &self,
        min: Option<f64>,
        max: Option<f64>,
        desc: bool,
    ) -> Result<Vec<(String, f64, u64)>, ReadError> {
        let score = |score: f64| Score::new(score).expect("finite");
        let mut range = ZRange { min: min.map(score), max: max.map(score), desc, place: Place::Rank(0) };
        let mut shown = Vec::new();
        for turn in 0..=self.members.len() {
            let page = read::zpage(self.store, self.at, self.record, self.field, &range, TWO)?;
            let Some(Ranked { member, score, rank }) = page.items.last().cloned() else { break };
            let items = page.items.into_iter();
            shown.extend(items.map(|of| (of.member.as_str().to_owned(), of.score.value(), of.rank)));
            if !page.more {
                break;
            }
            range.place = match turn % 2 {
                0 => Place::After(score, member.as_str().to_owned()),
                _ => Place::Rank(rank + 1),
            };
        }
        Ok(shown)
    }
}
