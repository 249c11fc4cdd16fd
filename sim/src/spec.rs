//! The executable specification of registers, counters, flags, sets, and records made of them.
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
//! Not here: `zset`, `document`, `unique`, expiry.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

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

/// An operation of a commit on its record.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // The names say it.
#[rustfmt::skip] // A line each.
pub enum SpecOp {
    /// The value is compact JSON, compared as text.
    Set { field: String, value: String },
    Incr { field: String, by: i64 },
    /// Under an idempotency key.
    IncrOnce { field: String, by: i64, key: String },
    Enable { field: String },
    Disable { field: String },
    Add { field: String, members: Vec<String> },
    Remove { field: String, members: Vec<String> },
    /// Of every type under that name.
    Clear { field: String },
    /// Clears every field.
    Delete,
}

impl SpecOp {
    /// The field and the type that the operation names, if any.
    pub fn target(&self) -> (Option<&str>, Option<SpecType>) {
        use SpecOp::{Add, Clear, Delete, Disable, Enable, Incr, IncrOnce, Remove, Set};
        match self {
            Set { field, .. } => (Some(field), Some(SpecType::Register)),
            Incr { field, .. } | IncrOnce { field, .. } => (Some(field), Some(SpecType::Counter)),
            Enable { field } | Disable { field } => (Some(field), Some(SpecType::Flag)),
            Add { field, .. } | Remove { field, .. } => (Some(field), Some(SpecType::Set)),
            Clear { field } => (Some(field), None),
            Delete => (None, None),
        }
    }
}

/// What one commit did to one record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// When and where the commit was made.
    pub stamp: Stamp,
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

/// The types, in the order in which a read by name prefers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)]
pub enum SpecType {
    Set,
    Counter,
    Flag,
    Register,
}

/// The value of a field that lives.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
#[rustfmt::skip]
pub enum SpecValue {
    /// The winner; and the other surviving values, each once, without the winner's, sorted.
    Register { value: String, siblings: Vec<String> },
    Counter(i64),
    /// Always true: a false flag, like an empty set, is absent.
    Flag(bool),
    Set(BTreeSet<String>),
}

/// A record: the fields that live, if any. A read by name shows the first of each name.
pub type SpecRecord = BTreeMap<(String, SpecType), SpecValue>;

/// A micro-operation that gave something.
#[derive(Clone, Debug)]
struct Given {
    /// Its event; none of a pending one, which saw the whole view.
    by: Option<EventId>,
    stamp: Stamp,
    gift: Gift,
    /// The events that take it. An event never changes what it saw, so who takes what is known when it is added.
    takers: Vec<EventId>,
}

#[derive(Clone, Debug)]
enum Gift {
    Set(String),
    Incr(i64),
    IncrOnce(i64, String),
    Enable,
    Add(String),
}

impl Gift {
    fn kind(&self) -> SpecType {
        match self {
            Self::Set(_) => SpecType::Register,
            Self::Incr(_) | Self::IncrOnce(..) => SpecType::Counter,
            Self::Enable => SpecType::Flag,
            Self::Add(_) => SpecType::Set,
        }
    }
}

impl SpecOp {
    /// What the operation gives, a gift a member.
    fn gifts(&self) -> Vec<Gift> {
        match self {
            Self::Set { value, .. } => vec![Gift::Set(value.clone())],
            Self::Incr { by, .. } => vec![Gift::Incr(*by)],
            Self::IncrOnce { by, key, .. } => vec![Gift::IncrOnce(*by, key.clone())],
            Self::Enable { .. } => vec![Gift::Enable],
            Self::Add { members, .. } => members.iter().cloned().map(Gift::Add).collect(),
            Self::Disable { .. } | Self::Remove { .. } | Self::Clear { .. } | Self::Delete => Vec::new(),
        }
    }

    /// Whether this takes what was given, if it saw it. Both are of one field name.
    fn takes(&self, gift: &Gift) -> bool {
        match (self, gift) {
            (Self::Set { .. }, Gift::Set(_)) | (Self::Disable { .. }, Gift::Enable) => true,
            (Self::Remove { members, .. }, Gift::Add(member)) => members.contains(member),
            (Self::Clear { .. } | Self::Delete, _) => true,
            _ => false,
        }
    }

    fn is_of(&self, field: &str) -> bool {
        self.target().0.is_none_or(|name| name == field)
    }
}

/// The stamp of an event that is not made yet: it would be the latest.
const PENDING: Stamp = Stamp { hlc: u64::MAX, replica: u64::MAX };

/// Operations of an event that is not in the history, on top of a view.
#[derive(Clone, Copy)]
struct Pending<'a> {
    ops: &'a [SpecOp],
    /// What its takings saw, if not the whole view.
    seen: Option<&'a EventSet>,
}

/// What was given to a record, by field, in order.
type Fields = BTreeMap<String, Vec<Given>>;

/// All events that ever happened, in some order in which none comes before one that it saw.
#[derive(Clone, Debug, Default)]
pub struct History {
    events: Vec<Event>,
    records: BTreeMap<String, Fields>,
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
        use SpecOp::{Add, Enable, Incr, IncrOnce};
        let closed = self.is_causally_closed(&seen) && self.is_causally_closed(&event.saw);
        assert!(closed && seen.is_subset(&event.saw), "{seen:?} {event:?}");
        let sees_node =
            |op: &SpecOp| matches!(op, Incr { .. } | IncrOnce { .. } | Enable { .. } | Add { .. });
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
        let saw = seen.unwrap_or(&event.saw);
        let fields = self.records.entry(event.record.clone()).or_default();
        for op in &event.ops {
            // Earlier operations of the event are seen as well.
            let sees = |given: &Given| given.by.is_some_and(|by| by == id || saw.contains(by));
            for (_, givens) in fields.iter_mut().filter(|(field, _)| op.is_of(field)) {
                for given in givens.iter_mut().filter(|given| op.takes(&given.gift) && sees(given)) {
                    given.takers.push(id);
                }
            }
            if let (Some(field), _) = op.target() {
                let given = |gift| Given { by: Some(id), stamp: event.stamp, gift, takers: Vec::new() };
                let gifts = op.gifts().into_iter().map(given);
                match fields.get_mut(field) {
                    Some(givens) => givens.extend(gifts),
                    None => drop(fields.insert(field.to_owned(), gifts.collect())),
                }
            }
        }
        self.events.push(event);
        id
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

    /// The record as a replica reads it that has applied the visible events.
    pub fn read(&self, record: &str, visible: &EventSet) -> SpecRecord {
        self.read_after(record, visible, &[], None)
    }

    /// The record as a node would read it that has applied the visible events, and then these operations, of a client that
    /// may say what it had seen of them.
    pub fn read_after(
        &self,
        record: &str,
        visible: &EventSet,
        ops: &[SpecOp],
        seen: Option<&EventSet>,
    ) -> SpecRecord {
        let known = self.records.get(record).into_iter().flat_map(BTreeMap::keys).map(String::as_str);
        let pending = Pending { ops, seen };
        let names: BTreeSet<&str> = known.chain(ops.iter().filter_map(|op| op.target().0)).collect();
        let mut out = SpecRecord::new();
        for field in names {
            for (kind, value) in values(&self.surviving(record, field, visible, pending)) {
                out.insert((field.to_owned(), kind), value);
            }
        }
        out
    }

    /// The types that live under a name, the one that a read by name prefers first.
    pub fn live_types(&self, record: &str, field: &str, visible: &EventSet) -> Vec<SpecType> {
        let nothing = Pending { ops: &[], seen: None };
        values(&self.surviving(record, field, visible, nothing)).into_keys().collect()
    }

    /// [`Self::first_refused_seen`] for a client that does not say what it had seen.
    pub fn first_refused(&self, record: &str, ops: &[SpecOp], visible: &EventSet) -> Option<usize> {
        self.first_refused_seen(record, ops, visible, None)
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
    ) -> Option<usize> {
        let refused = |(index, op): (usize, &SpecOp)| {
            let stale = matches!(op, SpecOp::Clear { .. } | SpecOp::Delete)
                && seen.is_some_and(|seen| self.holds_unseen(record, op.target().0, visible, seen));
            let mismatch = match op.target() {
                (Some(field), Some(kind)) => {
                    let live = self.surviving(record, field, visible, Pending { ops: &ops[..index], seen });
                    !live.is_empty() && live.iter().all(|given| given.gift.kind() != kind)
                }
                _ => false,
            };
            (stale || mismatch).then_some(index)
        };
        ops.iter().enumerate().find_map(refused)
    }

    /// Whether an increment made without a key survives that is not seen, in a field or any field.
    fn holds_unseen(&self, record: &str, field: Option<&str>, visible: &EventSet, seen: &EventSet) -> bool {
        let fields = self.records.get(record).into_iter().flatten();
        let mut givens = fields
            .filter(|(name, _)| field.is_none_or(|field| field == *name))
            .flat_map(|(_, givens)| givens);
        givens.any(|given| {
            matches!(given.gift, Gift::Incr(_))
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
        for op in pending.ops.iter().filter(|op| op.is_of(field)) {
            let saw = |by| pending.seen.is_none_or(|seen| seen.contains(by));
            out.retain(|given| !(op.takes(&given.gift) && given.by.is_none_or(saw)));
            let given = |gift| Cow::Owned(Given { by: None, stamp: PENDING, gift, takers: Vec::new() });
            out.extend(op.gifts().into_iter().map(given));
        }
        out
    }
}

/// Whether what was given is in a view, and nothing there takes it.
fn survives(given: &Given, view: &EventSet) -> bool {
    given.by.is_some_and(|by| view.contains(by)) && !given.takers.iter().any(|&taker| view.contains(taker))
}

/// The values that what survives in a field makes.
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
