//! Conflicts: what met without having seen each other, and what came of it.
//!
//! Registers are read where another region's assignment arrives: siblings there are values that lost. Removals, disables,
//! clears and deletions are compared with what other regions wrote that they had not seen: that stays (SEMANTICS.md).

use std::collections::{BTreeMap, BTreeSet};

use godwit_core::context::{Dot, VersionVector};
use godwit_core::ids::{Field, Member, RecordId, ReplicaId};
use godwit_core::op::{Op, Write};
use godwit_core::read::{FieldView, Value};
use serde::Serialize;

/// Conflicts that are listed one by one; all are counted.
pub const LISTED_MAX: usize = 200;
const SHOWN_CHARS: usize = 32;

/// One side of a conflict.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Side {
    /// The region, if it is known.
    pub region: Option<String>,
    /// When, in microseconds since the clients began.
    pub at_us: Option<u64>,
    /// What was written, shortened.
    pub what: String,
}

/// Two writes that had not seen each other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Conflict {
    /// The record.
    pub record: String,
    /// Its field; none if the whole record was deleted.
    pub field: Option<String>,
    /// When it showed.
    pub seen_us: u64,
    /// What won, or stays.
    pub won: Side,
    /// What lost.
    pub lost: Side,
}

/// All of a run.
#[derive(Debug, Default)]
pub(super) struct Conflicts {
    /// Values of registers that lost to another one.
    pub(super) registers: u64,
    /// Additions and enables beside a removal or disable that had not seen them: they stay.
    pub(super) adds_kept: u64,
    /// Writes beside a clear or deletion that had not seen them: they stay.
    pub(super) writes_kept: u64,
    /// Increments beside others of the same counter: all are counted.
    pub(super) increments: u64,
    pub(super) listed: Vec<Conflict>,
    known: BTreeSet<[u8; 16]>,
    /// Who set a value.
    authors: BTreeMap<[u8; 16], (usize, u64)>,
    touched: BTreeMap<Slot, BTreeMap<ReplicaId, Touches>>,
}

/// What a removal may take: a member, a field, a record.
type Slot = (RecordId, Option<Field>, Option<Member>);

/// The last of each kind by one replica.
#[derive(Debug, Clone, Default)]
struct Touches {
    gave: Option<Touch>,
    took: Option<Touch>,
    counted: u64,
}

#[derive(Debug, Clone)]
struct Touch {
    counter: u64,
    at_us: u64,
    region: usize,
    what: String,
}

/// A commit as it is compared with others.
#[derive(Debug, Clone, Copy)]
pub(super) struct Made<'a> {
    pub(super) at_us: u64,
    pub(super) region: usize,
    pub(super) dot: Dot,
    /// What its node had.
    pub(super) context: &'a VersionVector,
}

impl Conflicts {
    /// A commit was answered.
    pub(super) fn answered(&mut self, made: Made<'_>, writes: &[Write], names: &[String]) {
        for write in writes {
            let record = &write.record;
            for op in &write.ops {
                let field = |field: &Field| (record.clone(), Some(field.clone()), None);
                let whole = || (record.clone(), None, None);
                let shown = shown_op(op);
                match op {
                    Op::Set { field: name, value } => {
                        let author = hash(&[record.to_string().as_str(), name.as_str(), value.as_str()]);
                        self.authors.insert(author, (made.region, made.at_us));
                        self.gives(made, field(name), &shown, names);
                        self.gives(made, whole(), &shown, names);
                    }
                    Op::Incr { field: name, .. } => {
                        self.counts(made, field(name));
                        self.gives(made, field(name), &shown, names);
                        self.gives(made, whole(), &shown, names);
                    }
                    Op::Enable { field: name }
                    | Op::ZIncr { field: name, .. }
                    | Op::Observe { field: name, .. }
                    | Op::ObserveRanks { field: name, .. }
                    | Op::Change { field: name, .. }
                    | Op::Edit { field: name, .. } => {
                        self.gives(made, field(name), &shown, names);
                        self.gives(made, whole(), &shown, names);
                    }
                    Op::Add { field: name, members } => {
                        for member in members {
                            let slot = (record.clone(), Some(name.clone()), Some(member.clone()));
                            self.gives(made, slot, &shown, names);
                        }
                        self.gives(made, field(name), &shown, names);
                        self.gives(made, whole(), &shown, names);
                    }
                    Op::ZAdd { field: name, scores } => {
                        for (member, _) in scores {
                            let slot = (record.clone(), Some(name.clone()), Some(member.clone()));
                            self.gives(made, slot, &shown, names);
                        }
                        self.gives(made, field(name), &shown, names);
                        self.gives(made, whole(), &shown, names);
                    }
                    // What passes with time loses to nobody.
                    Op::Expire { .. } | Op::ExpireAt { .. } | Op::Persist => {}
                    Op::Remove { field: name, members } | Op::ZRemove { field: name, members } => {
                        for member in members {
                            let slot = (record.clone(), Some(name.clone()), Some(member.clone()));
                            self.takes(made, slot, &shown, names);
                        }
                    }
                    Op::Disable { field: name } | Op::Clear { field: name } => {
                        self.takes(made, field(name), &shown, names);
                    }
                    Op::Delete => self.takes(made, whole(), &shown, names),
                }
            }
        }
    }

    fn counts(&mut self, made: Made<'_>, slot: Slot) {
        let touched = self.touched.entry(slot).or_default();
        let unseen =
            |(replica, touches): (&ReplicaId, &Touches)| touches.counted > made.context.get(*replica);
        self.increments += u64::from(touched.iter().any(unseen));
        touched.entry(made.dot.replica).or_default().counted = made.dot.counter;
    }

    fn gives(&mut self, made: Made<'_>, slot: Slot, what: &str, names: &[String]) {
        let touched = self.touched.entry(slot.clone()).or_default();
        let touch =
            Touch { counter: made.dot.counter, at_us: made.at_us, region: made.region, what: what.into() };
        let unseen = |(replica, touches): (&ReplicaId, &Touches)| {
            touches.took.clone().filter(|took| took.counter > made.context.get(*replica))
        };
        let lost: Vec<Touch> = touched.iter().filter_map(unseen).collect();
        touched.entry(made.dot.replica).or_default().gave = Some(touch.clone());
        lost.into_iter().for_each(|lost| self.kept(made.at_us, &slot, &touch, &lost, names));
    }

    fn takes(&mut self, made: Made<'_>, slot: Slot, what: &str, names: &[String]) {
        let touched = self.touched.entry(slot.clone()).or_default();
        let touch =
            Touch { counter: made.dot.counter, at_us: made.at_us, region: made.region, what: what.into() };
        let unseen = |(replica, touches): (&ReplicaId, &Touches)| {
            touches.gave.clone().filter(|gave| gave.counter > made.context.get(*replica))
        };
        let kept: Vec<Touch> = touched.iter().filter_map(unseen).collect();
        touched.entry(made.dot.replica).or_default().took = Some(touch.clone());
        kept.into_iter().for_each(|kept| self.kept(made.at_us, &slot, &kept, &touch, names));
    }

    fn kept(&mut self, now_us: u64, slot: &Slot, won: &Touch, lost: &Touch, names: &[String]) {
        let is_add = slot.2.is_some() || won.what.starts_with("enable") && lost.what.starts_with("disable");
        match is_add {
            true => self.adds_kept += 1,
            false => self.writes_kept += 1,
        }
        let side = |touch: &Touch| Side {
            region: names.get(touch.region).cloned(),
            at_us: Some(touch.at_us),
            what: touch.what.clone(),
        };
        self.list(Conflict {
            record: slot.0.to_string(),
            field: slot.1.as_ref().map(Field::to_string),
            seen_us: now_us,
            won: side(won),
            lost: side(lost),
        });
    }

    /// A node reads a register to which another region's assignment has come.
    pub(super) fn arrived(&mut self, now_us: u64, record: &RecordId, views: &[FieldView], names: &[String]) {
        for view in views {
            let Value::Register { value, siblings } = &view.value else { continue };
            let (record, field) = (record.to_string(), view.field.to_string());
            let side = |authors: &BTreeMap<[u8; 16], (usize, u64)>, value: &str| {
                let author = authors.get(&hash(&[&record, &field, value]));
                Side {
                    region: author.and_then(|(region, _)| names.get(*region).cloned()),
                    at_us: author.map(|(_, at)| *at),
                    what: shortened(value),
                }
            };
            for sibling in siblings {
                if self.known.insert(hash(&[&record, &field, &view.updated.to_string(), sibling])) {
                    self.registers += 1;
                    self.list(Conflict {
                        won: side(&self.authors, value),
                        lost: side(&self.authors, sibling),
                        record: record.clone(),
                        field: Some(field.clone()),
                        seen_us: now_us,
                    });
                }
            }
        }
    }

    fn list(&mut self, conflict: Conflict) {
        if self.listed.len() < LISTED_MAX {
            self.listed.push(conflict);
        }
    }
}

fn hash(parts: &[&str]) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&(part.len() as u64).to_be_bytes());
        hasher.update(part.as_bytes());
    }
    let mut short = [0; 16];
    short.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    short
}

fn shown_op(op: &Op) -> String {
    let members = |members: &[Member]| members.iter().map(Member::as_str).collect::<Vec<_>>().join(", ");
    shortened(&match op {
        Op::Set { value, .. } => format!("set {}", value.as_str()),
        Op::Incr { by, .. } => format!("incr {by}"),
        Op::Enable { .. } => "enable".into(),
        Op::Disable { .. } => "disable".into(),
        Op::Add { members: names, .. } => format!("add {}", members(names)),
        Op::Remove { members: names, .. } => format!("remove {}", members(names)),
        Op::ZAdd { scores, .. } => format!("zadd {scores:?}"),
        Op::ZIncr { member, by, .. } => format!("zincr {member} {by}"),
        Op::ZRemove { members: names, .. } => format!("zremove {}", members(names)),
        Op::Observe { members: names, .. } => format!("observe {}", members(names)),
        Op::ObserveRanks { ranks, .. } => format!("observe {} ranks", ranks.len()),
        Op::Edit { patch, .. } => format!("edit {}", patch.as_str()),
        Op::Change { changes, .. } => format!("change {} changes", changes.len()),
        Op::ExpireAt { at_ms } => format!("expire at {at_ms}"),
        Op::Expire { in_ms } => format!("expire in {in_ms} ms"),
        Op::Persist => "persist".into(),
        Op::Clear { .. } => "clear".into(),
        Op::Delete => "delete".into(),
    })
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_string(),
    }
}
