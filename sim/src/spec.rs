//! The executable specification of registers, counters, flags, sets, zsets, uniques, and records made of them that may
//! expire.
//! The simulator holds the engine against it, so they share no code: no dots, contexts or merges.
//!
//! A value is a function of a history of events and of a relation *saw* between them:
//!
//! - An **event** is what one commit did to one record: operations, a stamp, and the events that
//!   it saw, closed under seeing. A commit of several records is several events with one stamp.
//! - A **micro-operation** is (event, operation index, member). It saw those of every event that
//!   its event saw, and of earlier operations of its own. Some **give** (`set`, `incr`, `enable`,
//!   `add`), some **take** (`set`, `disable`, `remove`, `clear`, `delete`) what a field holds.
//! - What was given **survives** in a view (a set of visible events) unless a visible taking of it
//!   saw it. A *register* is the surviving `set` with the greatest stamp, the others being its
//!   siblings; a *counter* the sum of its increments, exact inside, saturated to i64 when read; a
//!   *flag* is true if an `enable` survives; a *set* is its members. A field without survivors is
//!   absent. A counter whose increments cancel out is present, and 0.
//! - A field is its name *and* type. `clear` and `delete` take from every type.
//!
//! A client that says what it had seen (`Godwit-Seen`) narrows what its takings saw, but not what
//! its other operations saw: see [`History::push_seen`]. Such a taking sees earlier operations of
//! its own commit, but not, through them, what they saw. Seeing is a matter of one partition: a
//! node may apply a commit before one of another partition that it saw, so closing the relation
//! across partitions would claim too much for later commits.
//!
//! - Increments made under an idempotency key count once: of several commits that made one under one key, the one with the
//!   greatest stamp counts among those that survive.
//! - Sums cannot be split: a client that says what it had seen cannot clear a counter while an increment survives there,
//!   made without a key, that it has not seen ([`History::first_refused_seen`]).
//!
//! - A *zset* has the members of which a zadd or zincr survives. The score is that of the surviving zadd with the greatest stamp
//!   among those that no other one saw, plus the surviving increments that it did not see.
//! - A *unique* has, for each register of which an observation survives, the greatest rank. It is as many as there are such
//!   registers: that is what the estimate is while they are few.
//! - *Expiry*: what was given is hidden from a time T on if it was last written before T. What a later giving of the same thing
//!   saw is written by that one. An increment is written again by each later one of its replica, until one finds it
//!   hidden: that one takes it instead. A record's T is the latest of the surviving ones, and what a time hid when it was replaced
//!   by another one stays hidden (the *floor*). A sweep takes what is hidden, of all that it saw.
//!
//! - A *document* is made of the surviving changes and all visible ones that they build on, in as many steps as it takes: Automerge
//!   merges them. A change that survives already is not given again. A commit is refused if a change builds on one that neither
//!   survives nor comes with it.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use ops::{EXPIRY, Gift};

pub use ops::{SpecChange, SpecOp, SpecRecord, SpecType, SpecValue};

mod documents;
mod ops;

/// An event's place in its history, from 0 without gaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventId(pub usize);

/// Orders concurrent assignments: by clock, then by replica. No two events of a record share one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stamp {
    /// The hybrid logical clock of the commit.
    pub hlc: u64,
    /// The replica that made the commit.
    pub replica: u64,
}

/// What one commit did to one record.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// When and where the commit was made.
    pub stamp: Stamp,
    /// The time that its node had, in milliseconds.
    pub now_ms: u64,
    /// The record.
    pub record: String,
    /// Its operations, in order.
    pub ops: Vec<SpecOp>,
    /// The earlier events that it saw, and all that those saw.
    pub saw: EventSet,
}

/// A set of events: a bit for each. Equal sets compare equal, however they came about.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventSet {
    /// The last word is never zero: it is there for a bit that was set, and none is unset.
    words: Vec<u64>,
}

impl EventSet {
    /// Adds an event.
    pub fn insert(&mut self, id: EventId) {
        let len = self.words.len().max(id.0 / 64 + 1);
        self.words.resize(len, 0);
        self.words[id.0 / 64] |= 1 << (id.0 % 64);
    }

    /// Whether the event is in the set.
    pub fn contains(&self, id: EventId) -> bool {
        let word = self.words.get(id.0 / 64);
        word.is_some_and(|word| word >> (id.0 % 64) & 1 == 1)
    }

    /// Adds all events of the other set.
    pub fn union(&mut self, other: &EventSet) {
        let len = self.words.len().max(other.words.len());
        self.words.resize(len, 0);
        for (mine, theirs) in self.words.iter_mut().zip(&other.words) {
            *mine |= theirs;
        }
    }

    /// Whether the other set has every event of this one.
    pub fn is_subset(&self, other: &EventSet) -> bool {
        let mut pairs = self.words.iter().zip(&other.words);
        self.words.len() <= other.words.len() && pairs.all(|(mine, theirs)| mine & !theirs == 0)
    }

    /// The events, in order.
    pub fn iter(&self) -> impl Iterator<Item = EventId> + '_ {
        self.words.iter().enumerate().flat_map(|(at, &word)| {
            let mut left = word;
            std::iter::from_fn(move || {
                let bit = (left != 0).then(|| left.trailing_zeros() as usize)?;
                left &= left - 1;
                Some(EventId(at * 64 + bit))
            })
        })
    }
}

/// A micro-operation that gave something.
#[derive(Clone, Debug)]
struct Given {
    /// Its event; none of a pending one, which saw the whole view.
    by: Option<EventId>,
    /// The place of its operation.
    op: usize,
    stamp: Stamp,
    gift: Gift,
    /// Of an increment: the later events of its replica that wrote it again.
    carried_by: Vec<EventId>,
    /// The events that take it. An event never changes what it saw, so who takes what is known when it is added.
    takers: Vec<EventId>,
}

/// The stamp of an event that is not made yet: it would be the latest.
const PENDING: Stamp = Stamp { hlc: u64::MAX, replica: u64::MAX };

/// Operations of an event that is not in the history, on top of a view.
#[derive(Clone, Copy)]
struct Pending<'a> {
    ops: &'a [SpecOp],
    /// What its takings saw, if not the whole view.
    seen: Option<&'a EventSet>,
    /// What was last written before this is hidden.
    hidden_before: u64,
}

/// What was given to a record, by field, in order.
type Fields = BTreeMap<String, Vec<Given>>;

/// All events that ever happened, in some order in which none comes before one that it saw.
#[derive(Clone, Debug, Default)]
pub struct History {
    events: Vec<Event>,
    records: BTreeMap<String, Fields>,
    merged: RefCell<documents::Merged>,
}

impl History {
    /// Adds an event, each of whose operations saw `event.saw`.
    ///
    /// # Panics
    /// If `event.saw` is not a closed set of earlier events.
    pub fn push(&mut self, event: Event) -> EventId {
        self.add(event, None)
    }

    /// Adds an event of a client that said what it had seen: its sets and removals saw `seen`, its
    /// other operations `event.saw`, which is what the node had applied. An event without other
    /// operations saw `seen` and nothing else, also for those who see the event.
    ///
    /// # Panics
    /// If `seen` or `event.saw` is not a closed set of earlier events, or `seen` not part of it.
    pub fn push_seen(&mut self, mut event: Event, seen: EventSet) -> EventId {
        let closed = self.is_causally_closed(&seen) && self.is_causally_closed(&event.saw);
        assert!(closed && seen.is_subset(&event.saw), "{seen:?} {event:?}");
        let sees_node = |op: &SpecOp| !op.acts_on_seen();
        if !event.ops.iter().any(sees_node) {
            event.saw = seen;
            return self.push(event);
        }
        self.add(event, Some(&seen))
    }

    /// `seen` is what takings saw, if not `event.saw`.
    fn add(&mut self, event: Event, seen: Option<&EventSet>) -> EventId {
        assert!(self.is_causally_closed(&event.saw), "{event:?}");
        let id = EventId(self.events.len());
        let hidden_before = self.hidden_before(&event.record, &event.saw, event.now_ms);
        self.carry(id, &event, hidden_before);
        for (place, op) in event.ops.iter().enumerate() {
            let saw = if op.acts_on_seen() { seen.unwrap_or(&event.saw) } else { &event.saw };
            let floor = match op {
                SpecOp::Expire { .. } | SpecOp::Persist => self.floor(id, &event),
                _ => 0,
            };
            let hidden = match op {
                SpecOp::Sweep { .. } => self.hidden(&event.record, &event.saw, hidden_before),
                _ => BTreeSet::new(),
            };
            let here = match op {
                SpecOp::Change { field, .. } => {
                    let pending = Pending { ops: &event.ops[..place], seen, hidden_before };
                    documents::hashes(&self.surviving(&event.record, field, &event.saw, pending))
                }
                _ => BTreeSet::new(),
            };
            let fields = self.records.entry(event.record.clone()).or_default();
            // Earlier operations of the event are seen as well.
            let sees = |given: &Given| given.by.is_some_and(|by| by == id || saw.contains(by));
            for (field, givens) in fields.iter_mut().filter(|(field, _)| op.is_of(field)) {
                for (at, given) in givens.iter_mut().enumerate().filter(|(_, given)| sees(given)) {
                    let is_taken = match op {
                        SpecOp::Sweep { last } if field == EXPIRY => *last,
                        SpecOp::Sweep { .. } => hidden.contains(&(field.clone(), at)),
                        op => op.takes(&given.gift),
                    };
                    if is_taken {
                        given.takers.push(id);
                    }
                }
            }
            if let (Some(field), _) = op.target() {
                let stamp = event.stamp;
                let (by, takers, carried_by) = (Some(id), Vec::new(), Vec::new());
                let given = |gift| Given {
                    by,
                    op: place,
                    stamp,
                    gift,
                    carried_by: carried_by.clone(),
                    takers: takers.clone(),
                };
                let mut gifts = op.gifts(event.now_ms, floor);
                gifts.retain(|gift| !matches!(gift, Gift::Change(change) if here.contains(&change.hash)));
                let gifts = gifts.into_iter().map(given);
                match fields.get_mut(field) {
                    Some(givens) => givens.extend(gifts),
                    None => drop(fields.insert(field.to_owned(), gifts.collect())),
                }
            }
        }
        self.events.push(event);
        id
    }

    /// An event that increments writes what its replica had added before, or begins anew where that is hidden.
    fn carry(&mut self, id: EventId, event: &Event, hidden_before: u64) {
        let Some(fields) = self.records.get(&event.record) else { return };
        let mut carried: Vec<(String, usize, bool)> = Vec::new();
        for op in &event.ops {
            let (Some(field), _) = op.target() else { continue };
            for (at, given) in fields.get(field).into_iter().flatten().enumerate() {
                let own = given.stamp.replica == event.stamp.replica
                    && given.by.is_some_and(|by| event.saw.contains(by))
                    && survives(given, &event.saw)
                    && op.carries(&given.gift);
                if own {
                    let is_hidden = self.last_written(given, &event.saw) < hidden_before;
                    carried.push((field.to_owned(), at, is_hidden));
                }
            }
        }
        let fields = self.records.entry(event.record.clone()).or_default();
        for (field, at, is_hidden) in carried {
            let Some(given) = fields.get_mut(&field).and_then(|givens| givens.get_mut(at)) else { continue };
            let list = if is_hidden { &mut given.takers } else { &mut given.carried_by };
            if !list.contains(&id) {
                list.push(id);
            }
        }
    }

    /// What a new time of expiry must go on hiding.
    fn floor(&self, id: EventId, event: &Event) -> u64 {
        let mut view = event.saw.clone();
        view.insert(id);
        self.hidden_before(&event.record, &view, event.now_ms)
    }

    /// What was last written before this, in milliseconds, is hidden at this time in a view.
    fn hidden_before(&self, record: &str, view: &EventSet, now_ms: u64) -> u64 {
        let givens = self.records.get(record).and_then(|fields| fields.get(EXPIRY)).into_iter().flatten();
        let mut latest: Option<u64> = None;
        let mut hidden = 0;
        for given in givens.filter(|given| survives(given, view)) {
            if let Gift::Expire { at, floor } = given.gift {
                latest = latest.max(Some(at));
                hidden = hidden.max(floor);
            }
        }
        latest.filter(|at| *at <= now_ms).map_or(hidden, |at| at.max(hidden))
    }

    /// Whether the record ever had a time of expiry in a view.
    pub fn may_expire(&self, record: &str, view: &EventSet) -> bool {
        let givens = self.records.get(record).and_then(|fields| fields.get(EXPIRY)).into_iter().flatten();
        givens.filter(|given| survives(given, view)).count() > 0
    }

    /// When what was given was last written, in milliseconds.
    fn last_written(&self, given: &Given, view: &EventSet) -> u64 {
        let carried = given.carried_by.iter().filter(|by| view.contains(**by));
        let stamps = carried.filter_map(|by| self.events.get(by.0)).map(|event| event.stamp.hlc);
        stamps.chain([given.stamp.hlc]).max().unwrap_or(0) >> HLC_COUNTER_BITS
    }

    /// The places, by field, of what survives and is hidden: written too early, or replaced by nothing but such.
    fn hidden(&self, record: &str, view: &EventSet, hidden_before: u64) -> BTreeSet<(String, usize)> {
        let fields = self.records.get(record).into_iter().flatten().filter(|(field, _)| *field != EXPIRY);
        let mut hidden = BTreeSet::new();
        for (field, givens) in fields {
            let survives = |given: &Given| survives(given, view);
            let is_early = |given: &Given| self.last_written(given, view) < hidden_before;
            let replaces = |other: &Given, given: &Given| {
                survives(other) && other.gift.replaces(&given.gift) && self.saw(other, given)
            };
            // Who sees the latest has seen those before it, so of what replaces something one that nothing replaces counts.
            let is_latest = |given: &Given| !givens.iter().any(|other| replaces(other, given));
            for (at, given) in givens.iter().enumerate().filter(|(_, given)| survives(given)) {
                let mut replacing = givens.iter().filter(|other| replaces(other, given) && is_latest(other));
                if is_early(given) && is_latest(given) || !is_latest(given) && replacing.all(is_early) {
                    hidden.insert((field.clone(), at));
                }
            }
        }
        hidden
    }

    /// The events, by id.
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// Whether the set has, with every event, all that it saw.
    pub fn is_causally_closed(&self, visible: &EventSet) -> bool {
        let closed = |event: &Event| event.saw.is_subset(visible);
        let mut ids = visible.iter();
        ids.all(|id| self.events.get(id.0).is_some_and(closed))
    }

    /// The record as a replica reads it before any time has come, that has applied the visible events.
    pub fn read(&self, record: &str, visible: &EventSet) -> SpecRecord {
        self.read_at(record, visible, 0)
    }

    /// The record as a replica reads it at a time, in milliseconds, that has applied the visible events.
    pub fn read_at(&self, record: &str, visible: &EventSet, now_ms: u64) -> SpecRecord {
        self.read_after(record, visible, &[], None, now_ms)
    }

    /// The record as a node would read it that has applied the visible events, and then these operations, of a client that
    /// may say what it had seen of them.
    pub fn read_after(
        &self,
        record: &str,
        visible: &EventSet,
        ops: &[SpecOp],
        seen: Option<&EventSet>,
        now_ms: u64,
    ) -> SpecRecord {
        let known = self.records.get(record).into_iter().flat_map(BTreeMap::keys).map(String::as_str);
        let hidden_before = self.hidden_before(record, visible, now_ms);
        let pending = Pending { ops, seen, hidden_before };
        let mut names: BTreeSet<&str> = known.chain(ops.iter().filter_map(|op| op.target().0)).collect();
        names.remove(EXPIRY);
        let mut out = SpecRecord::new();
        for field in names {
            let survivors = self.surviving(record, field, visible, pending);
            let document = self.document(record, field, visible, ops, &survivors);
            out.extend(document.map(|value| ((field.to_owned(), SpecType::Document), value)));
            for (kind, value) in self.values(&survivors) {
                out.insert((field.to_owned(), kind), value);
            }
        }
        out
    }

    /// The types that live under a name, the one that a read by name prefers first.
    pub fn live_types(&self, record: &str, field: &str, visible: &EventSet) -> Vec<SpecType> {
        let nothing = Pending { ops: &[], seen: None, hidden_before: 0 };
        let survivors = self.surviving(record, field, visible, nothing);
        let document = (!documents::hashes(&survivors).is_empty()).then_some(SpecType::Document);
        document.into_iter().chain(self.values(&survivors).into_keys()).collect()
    }

    /// [`Self::first_refused_seen`] for a client that does not say what it had seen.
    pub fn first_refused(&self, record: &str, ops: &[SpecOp], visible: &EventSet) -> Option<usize> {
        self.first_refused_seen(record, ops, visible, None, 0)
    }

    /// The index of the first operation that has to be refused in a commit at a node that has applied the visible events,
    /// of a client that may say what it had seen of them. Refused is (409 `type-mismatch`) what finds a live field of that
    /// name with another type and none with the operation's own; an operation sees what earlier ones of its commit
    /// did. Refused is as well (409 `stale-seen`) a clear of a counter that holds what the client has not seen.
    pub fn first_refused_seen(
        &self,
        record: &str,
        ops: &[SpecOp],
        visible: &EventSet,
        seen: Option<&EventSet>,
        now_ms: u64,
    ) -> Option<usize> {
        let hidden_before = self.hidden_before(record, visible, now_ms);
        let refused = |(index, op): (usize, &SpecOp)| {
            let stale = matches!(op, SpecOp::Clear { .. } | SpecOp::Delete | SpecOp::ZRemove { .. })
                && seen.is_some_and(|seen| self.holds_unseen(record, op, visible, seen));
            let mismatch = match op.target() {
                (Some(field), Some(kind)) => {
                    let pending = Pending { ops: &ops[..index], seen, hidden_before };
                    let live = self.surviving(record, field, visible, pending);
                    !live.is_empty() && live.iter().all(|given| given.gift.kind() != kind)
                }
                _ => false,
            };
            let lacks = match op {
                SpecOp::Change { field, changes } => {
                    let pending = Pending { ops: &ops[..index], seen, hidden_before };
                    documents::lacks(&self.surviving(record, field, visible, pending), changes)
                }
                _ => false,
            };
            (stale || mismatch || lacks).then_some(index)
        };
        ops.iter().enumerate().find_map(refused)
    }

    /// Whether an increment made without a key survives that is not seen, of those that the operation takes.
    fn holds_unseen(&self, record: &str, op: &SpecOp, visible: &EventSet, seen: &EventSet) -> bool {
        let fields = self.records.get(record).into_iter().flatten();
        let mut givens = fields.filter(|(name, _)| op.is_of(name)).flat_map(|(_, givens)| givens);
        givens.any(|given| {
            matches!(given.gift, Gift::Incr(_) | Gift::ZIncr(..))
                && op.takes(&given.gift)
                && survives(given, visible)
                && !given.by.is_some_and(|by| seen.contains(by))
        })
    }

    /// What survives in a field, in a view and after pending operations.
    fn surviving(
        &self,
        record: &str,
        field: &str,
        view: &EventSet,
        pending: Pending<'_>,
    ) -> Vec<Cow<'_, Given>> {
        let givens = self.records.get(record).and_then(|fields| fields.get(field));
        let givens = givens.into_iter().flatten().filter(|given| survives(given, view));
        let mut out: Vec<Cow<'_, Given>> = givens.map(Cow::Borrowed).collect();
        for (place, op) in pending.ops.iter().enumerate().filter(|(_, op)| op.is_of(field)) {
            let saw = |by| pending.seen.is_none_or(|seen| seen.contains(by));
            out.retain(|given| !(op.takes(&given.gift) && given.by.is_none_or(saw)));
            let given = |gift| {
                let (takers, carried_by) = (Vec::new(), Vec::new());
                Cow::Owned(Given { by: None, op: place, stamp: PENDING, gift, carried_by, takers })
            };
            out.extend(op.gifts(0, 0).into_iter().map(given));
        }
        if pending.hidden_before > 0 {
            let replaced = |given: &Given| {
                out.iter().any(|other| other.gift.replaces(&given.gift) && self.saw(other, given))
            };
            let is_shown = |given: &Cow<'_, Given>| {
                self.last_written(given, view) >= pending.hidden_before && !replaced(given)
            };
            return out.iter().filter(|given| is_shown(given)).cloned().collect();
        }
        out
    }

    /// Whether one giving saw the other.
    fn saw(&self, one: &Given, other: &Given) -> bool {
        match (one.by, other.by) {
            (None, None) => other.op < one.op,
            (None, Some(_)) => true,
            (Some(_), None) => false,
            (Some(one_by), Some(other_by)) if one_by == other_by => other.op < one.op,
            (Some(one_by), Some(other_by)) => self.events[one_by.0].saw.contains(other_by),
        }
    }

    /// The score of a zset's member of which this survives.
    fn score(&self, givens: &[&Given]) -> f64 {
        let replaced = |given: &Given| {
            givens.iter().any(|other| other.gift.replaces(&given.gift) && self.saw(other, given))
        };
        let assigned = givens.iter().filter(|given| matches!(given.gift, Gift::ZAdd(..)) && !replaced(given));
        let winner = assigned.max_by_key(|given| (given.stamp, given.op));
        let saw = |given: &Given| winner.is_some_and(|winner| self.saw(winner, given));
        let mut sum = 0;
        // By key: the commits that made it, with what each adds beside the winner.
        let mut once: BTreeMap<&str, Vec<(&Given, f64)>> = BTreeMap::new();
        for given in givens {
            match &given.gift {
                Gift::ZAdd(_, score) if winner.is_some_and(|winner| std::ptr::eq(*winner, *given)) => {
                    sum += fixed(*score);
                }
                Gift::ZIncr(_, by) if !saw(given) => sum += fixed(*by),
                Gift::ZIncrOnce(_, by, key) => once.entry(key).or_default().push((given, *by)),
                _ => {}
            }
        }
        for commits in once.values() {
            let of_winner = |given: &Given| winner.is_some_and(|winner| winner.by == given.by);
            if commits.iter().any(|(given, _)| saw(given) && !of_winner(given)) {
                continue;
            }
            let own = commits.iter().find(|(given, _)| of_winner(given));
            let chosen = own.or_else(|| commits.iter().max_by_key(|(given, _)| given.stamp));
            let counts = commits
                .iter()
                .filter(|(given, _)| chosen.is_some_and(|(chosen, _)| chosen.by == given.by) && !saw(given));
            sum += counts.map(|(_, by)| fixed(*by)).sum::<i128>();
        }
        sum as f64 / FIXED_ONE
    }

    /// The values that what survives in a field makes.
    fn values(&self, givens: &[Cow<'_, Given>]) -> BTreeMap<SpecType, SpecValue> {
        let mut out = values(givens);
        let mut members: BTreeMap<&str, Vec<&Given>> = BTreeMap::new();
        let mut ranks: BTreeMap<u16, u8> = BTreeMap::new();
        for given in givens {
            match &given.gift {
                Gift::ZAdd(member, _) | Gift::ZIncr(member, _) | Gift::ZIncrOnce(member, ..) => {
                    members.entry(member).or_default().push(given);
                }
                Gift::Observe(register, rank) => {
                    let greatest = ranks.entry(*register).or_default();
                    *greatest = (*greatest).max(*rank);
                }
                _ => {}
            }
        }
        if !ranks.is_empty() {
            out.insert(SpecType::Unique, SpecValue::Unique { count: ranks.len() as u64, ranks });
        }
        let mut scored: Vec<(String, f64)> =
            members.iter().map(|(member, givens)| ((*member).to_owned(), self.score(givens))).collect();
        scored.sort_by(|a, b| a.1.total_cmp(&b.1).then_with(|| a.0.cmp(&b.0)));
        if !scored.is_empty() {
            out.insert(SpecType::Zset, SpecValue::Zset(scored));
        }
        out
    }
}

/// Bits of a stamp below its milliseconds.
const HLC_COUNTER_BITS: u32 = 16;

/// What a score of 1 is in fixed point: scores of histories are a few thousand at most, and no finer than this.
const FIXED_ONE: f64 = (1u64 << 60) as f64;

fn fixed(score: f64) -> i128 {
    (score * FIXED_ONE) as i128
}

/// Whether what was given is in a view, and nothing there takes it.
fn survives(given: &Given, view: &EventSet) -> bool {
    given.by.is_some_and(|by| view.contains(by)) && !given.takers.iter().any(|&taker| view.contains(taker))
}

/// The same, of registers, counters, flags and sets.
fn values(givens: &[Cow<'_, Given>]) -> BTreeMap<SpecType, SpecValue> {
    let mut sets: Vec<(Stamp, &str)> = Vec::new();
    let mut sum: Option<i128> = None;
    // By key, then by the commit's stamp.
    let mut once: BTreeMap<&str, BTreeMap<Stamp, i128>> = BTreeMap::new();
    let mut enabled = false;
    let mut members = BTreeSet::new();
    for given in givens {
        match &given.gift {
            Gift::Set(value) => sets.push((given.stamp, value)),
            Gift::Incr(by) => sum = Some(sum.unwrap_or(0) + i128::from(*by)),
            Gift::IncrOnce(by, key) => {
                *once.entry(key).or_default().entry(given.stamp).or_default() += i128::from(*by);
            }
            Gift::Enable => enabled = true,
            Gift::Add(member) => drop(members.insert(member.clone())),
            _ => {}
        }
    }
    for by in once.values().filter_map(|commits| commits.values().next_back()) {
        sum = Some(sum.unwrap_or(0) + by);
    }
    let mut out = BTreeMap::new();
    sets.sort_unstable();
    if let Some((_, value)) = sets.pop() {
        let mut others: BTreeSet<&str> = sets.into_iter().map(|(_, other)| other).collect();
        others.remove(value);
        let siblings = others.into_iter().map(str::to_owned).collect();
        out.insert(SpecType::Register, SpecValue::Register { value: value.to_owned(), siblings });
    }
    if let Some(sum) = sum {
        let limit = if sum < 0 { i64::MIN } else { i64::MAX };
        let counter = SpecValue::Counter(i64::try_from(sum).unwrap_or(limit));
        out.insert(SpecType::Counter, counter);
    }
    out.extend(enabled.then_some((SpecType::Flag, SpecValue::Flag(true))));
    if !members.is_empty() {
        out.insert(SpecType::Set, SpecValue::Set(members));
    }
    out
}

#[cfg(test)]
mod tests;
