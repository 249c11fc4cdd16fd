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
        let ids = (0..self.words.len() * 64).map(EventId);
        ids.filter(|&id| self.contains(id))
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

/// A micro-operation.
struct Micro<'a> {
    /// Its event, and the index of its operation there.
    at: (EventId, usize),
    op: &'a SpecOp,
    member: Option<&'a str>,
}

impl Micro<'_> {
    /// Whether this takes what the other gave, if it saw it. Both are of one field name.
    fn takes(&self, given: &Micro<'_>) -> bool {
        use SpecOp::{Add, Clear, Delete, Disable, Enable, Remove, Set};
        match (self.op, given.op) {
            (Set { .. }, Set { .. }) | (Disable { .. }, Enable { .. }) => true,
            (Remove { .. }, Add { .. }) => self.member == given.member,
            (Clear { .. } | Delete, _) => true,
            _ => false,
        }
    }
}

/// All events that ever happened, in some order in which none comes before one that it saw.
#[derive(Clone, Debug, Default)]
pub struct History {
    events: Vec<Event>,
    /// What the takings of an event saw, where that differs from the event's `saw`.
    seen: BTreeMap<EventId, EventSet>,
    by_record: BTreeMap<String, Vec<EventId>>,
}

impl History {
    /// Adds an event, each of whose operations saw `event.saw`.
    ///
    /// # Panics
    /// If `event.saw` is not a closed set of earlier events.
    pub fn push(&mut self, event: Event) -> EventId {
        assert!(self.is_causally_closed(&event.saw), "{event:?}");
        let id = EventId(self.events.len());
        let of_record = self.by_record.entry(event.record.clone());
        of_record.or_default().push(id);
        self.events.push(event);
        id
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
        let id = self.push(event);
        self.seen.insert(id, seen);
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
        let micros = self.micros(record, visible, &[]);
        let names: BTreeSet<&str> = micros.iter().filter_map(|m| m.op.target().0).collect();
        let mut out = SpecRecord::new();
        for field in names {
            for (kind, value) in self.values(field, &micros, None) {
                out.insert((field.to_owned(), kind), value);
            }
        }
        out
    }

    /// The types that live under a name, the one that a read by name prefers first.
    pub fn live_types(&self, record: &str, field: &str, visible: &EventSet) -> Vec<SpecType> {
        let micros = self.micros(record, visible, &[]);
        self.values(field, &micros, None).into_keys().collect()
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
            let micros = self.micros(record, visible, &ops[..index]);
            let mismatch = match op.target() {
                (Some(field), Some(kind)) => {
                    let live = self.values(field, &micros, seen);
                    !live.is_empty() && !live.contains_key(&kind)
                }
                _ => false,
            };
            (stale || mismatch).then_some(index)
        };
        ops.iter().enumerate().find_map(refused)
    }

    /// Whether an increment made without a key survives that is not seen, in a field or any field.
    fn holds_unseen(&self, record: &str, field: Option<&str>, visible: &EventSet, seen: &EventSet) -> bool {
        let micros = self.micros(record, visible, &[]);
        micros.iter().any(|given| {
            let SpecOp::Incr { field: of, .. } = given.op else { return false };
            let taken = |taking: &Micro<'_>| {
                taking.op.target().0.is_none_or(|name| name == of)
                    && taking.takes(given)
                    && self.saw(taking, given, None)
            };
            field.is_none_or(|field| field == of) && !seen.contains(given.at.0) && !micros.iter().any(taken)
        })
    }

    /// The micro-operations on a record, in a view. `more` are the operations of a pending event,
    /// not yet in the history, which saw the whole view.
    fn micros<'a>(&'a self, record: &str, view: &EventSet, more: &'a [SpecOp]) -> Vec<Micro<'a>> {
        let ids = self.by_record.get(record).into_iter().flatten();
        let ids = ids.filter(|id| view.contains(**id));
        let events = ids.map(|&id| (id, self.events[id.0].ops.as_slice()));
        let mut out = Vec::new();
        for (event, ops) in events.chain([(EventId(self.events.len()), more)]) {
            for (index, op) in ops.iter().enumerate() {
                let at = (event, index);
                let micro = |member| Micro { at, op, member };
                match op {
                    SpecOp::Add { members, .. } | SpecOp::Remove { members, .. } => {
                        out.extend(members.iter().map(|member| micro(Some(member.as_str()))));
                    }
                    _ => out.push(micro(None)),
                }
            }
        }
        out
    }

    /// Whether a taking saw what was given; `pending` is what takings of a pending event saw, if not all.
    fn saw(&self, taking: &Micro<'_>, given: &Micro<'_>, pending: Option<&EventSet>) -> bool {
        let ((taker, later), (giver, earlier)) = (taking.at, given.at);
        if taker == giver {
            return earlier < later;
        }
        let whole = self.events.get(taker.0).map(|event| &event.saw);
        let saw = self.seen.get(&taker).or(whole).or(pending);
        saw.is_none_or(|saw| saw.contains(giver))
    }

    /// What lives under a name.
    fn values(
        &self,
        field: &str,
        micros: &[Micro<'_>],
        pending: Option<&EventSet>,
    ) -> BTreeMap<SpecType, SpecValue> {
        let of_field = |m: &&Micro<'_>| m.op.target().0.is_none_or(|name| name == field);
        let micros: Vec<&Micro<'_>> = micros.iter().filter(of_field).collect();
        let mut sets: Vec<(Option<Stamp>, String)> = Vec::new(); // A pending set has no stamp.
        let mut sum: Option<i128> = None;
        // By key, then by the commit's stamp (a pending one has none).
        let mut once: BTreeMap<&str, BTreeMap<Option<Stamp>, i128>> = BTreeMap::new();
        let mut enabled = false;
        let mut members = BTreeSet::new();
        for given in &micros {
            let mut latest_first = micros.iter().rev(); // Any order would do: this is quicker.
            if latest_first.any(|taking| taking.takes(given) && self.saw(taking, given, pending)) {
                continue;
            }
            let stamp = self.events.get(given.at.0.0).map(|event| event.stamp);
            match given.op {
                SpecOp::Set { value, .. } => sets.push((stamp, value.clone())),
                SpecOp::Incr { by, .. } => sum = Some(sum.unwrap_or(0) + i128::from(*by)),
                SpecOp::IncrOnce { by, key, .. } => {
                    *once.entry(key).or_default().entry(stamp).or_default() += i128::from(*by);
                }
                SpecOp::Enable { .. } => enabled = true,
                SpecOp::Add { .. } => members.extend(given.member.map(str::to_owned)),
                _ => {}
            }
        }
        for by in once.values().filter_map(|commits| commits.values().next_back()) {
            sum = Some(sum.unwrap_or(0) + by);
        }
        let mut out = BTreeMap::new();
        sets.sort_unstable();
        if let Some((_, value)) = sets.pop() {
            let mut others: BTreeSet<String> = sets.into_iter().map(|(_, other)| other).collect();
            others.remove(&value);
            let siblings = others.into_iter().collect();
            out.insert(SpecType::Register, SpecValue::Register { value, siblings });
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
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SEMANTICS.md's table, then what follows from its text. `7@` is a commit's clock.
    const SCENARIOS: &str = "\
        A: incr f 7; B: incr f 3 => f=10
        A: incr f 10; sync; B: clear f; A: incr f 5 => f=5
        B: incr f 10; sync; B: clear f; A: incr f 5 => f=5
        A: incr f 4; B: incr f 6; sync; B: clear f; A: incr f 5 => f=5
        A: incr f 10; sync; A: clear f; B: clear f; A: incr f 1 => f=1
        A: incr f 10; sync; A: clear f; B: clear f; sync; A: incr f 1 => f=1
        A: set f x; sync; A: set f a; B: set f b => f=b[a]
        B: 9@set f 0; sync; A: 1@set f 1 => f=1[]
        A: add f a; B: add f b => f={a, b}
        A: add f a b; sync; A: remove f a, remove f c; B: add f c => f={b, c}
        A: add f x; sync; A: remove f x; B: add f x => f={x}
        A: add f x; sync; A: remove f x, add f x => f={x}
        A: add f e1; sync; A: add f e2; B: clear f => f={e2}
        A: enable f; B: disable f => f=true
        A: set a 1, incr b 1, enable c, add d x, set e 2, incr f 8; sync; A: delete; \
            B: incr f 1 => f=1
        A: add f x; sync; A: add f x, remove f x => \n\
        A: enable f; sync; B: disable f => \n\
        A: set f v; B: set f v; C: set f w; C: delete; D: 9@set f u => f=v[u]
        A: 5@set f a; B: 5@set f b => f=b[a]
        A: set f a; sync; A: clear f; B: set f b => f=b[]
        A: incr f 2; A: incr f -2 => f=0
        A: incr f 0; sync; B: clear f => \n\
        A: incr f 9223372036854775807; B: incr f 5 => f=9223372036854775807
        A: incr f 9223372036854775807; B: incr f 5; C: incr f -6 => f=9223372036854775806
        A: incr f 1, clear f, set f x, set f y => f=y[]
        A: incr f 1; B: set f x; C: add f m => f={m} f=1 f=x[]
        A: incr f 1; B: set f x; sync; C: clear f; D: set f y => f=y[]";

    #[test]
    fn scenarios() {
        for line in SCENARIOS.lines() {
            let (script, want) = line.split_once(" => ").unwrap();
            let mut world = World::default();
            world.play(&format!("{}; sync", script.trim()));
            for node in ['A', 'B', 'C', 'D'] {
                assert_eq!(world.read(node), want, "{line}");
            }
        }
    }

    #[test]
    fn seen() {
        let mut world = World::default();
        world.play("A: set f x; A: add s m");
        let token = world.applied[&'A'].clone();
        let mine = world.commit('A', "set f a", Some(&token));
        // Another client of the node: its increment sees the node, its set and removal do not.
        world.play("A: add s m");
        world.commit('A', "set f b, remove s m, incr n 1", Some(&token));
        assert_eq!(world.read('A'), "f=b[a] n=1 s={m}");
        world.commit('A', "set f c", Some(&mine)); // The first client goes on.
        assert_eq!(world.read('A'), "f=c[b] n=1 s={m}");
        world.play("A: set f d, remove s m"); // No token: it sees the node.
        assert_eq!(world.read('A'), "f=d[] n=1");
    }

    #[test]
    fn keyed_increments_count_once() {
        let mut world = World::default();
        world.play("A: once f 7 k1; B: once f 7 k1, once f 2 k2; sync");
        assert_eq!(world.read('C'), "f=9");
        world.play("A: clear f; B: once f 1 k3; sync");
        assert_eq!(world.read('C'), "f=1");
    }

    #[test]
    fn a_clear_of_what_is_not_seen_is_refused() {
        let mut world = World::default();
        world.play("A: incr f 1; A: once g 1 k");
        let seen = world.applied[&'A'].clone();
        let refused = |world: &World, ops: &str| {
            let ops: Vec<SpecOp> = ops.split(", ").map(op).collect();
            world.history.first_refused_seen("k", &ops, &world.applied[&'A'], Some(&seen))
        };
        assert_eq!(refused(&world, "clear f"), None);
        world.play("A: incr f 1; A: once g 1 l");
        assert_eq!(refused(&world, "clear f"), Some(0));
        // Those made under keys can be told apart.
        assert_eq!(refused(&world, "clear g, delete"), Some(1));
        world.play("A: clear f");
        assert_eq!(refused(&world, "clear f"), None);
    }

    #[test]
    fn types_by_name() {
        let mut world = World::default();
        world.play("A: incr f 1; B: set f x, enable g; sync");
        let (history, all) = (&world.history, &world.applied[&'A']);
        assert_eq!(history.live_types("k", "f", all), [SpecType::Counter, SpecType::Register]);
        for (text, want) in [
            ("incr f 1, set f x, set h y", None),
            ("set h y, add f m", Some(1)),
            ("clear f, add f m, set f x", Some(2)),
            ("disable g, set g 1", None),
        ] {
            let ops: Vec<SpecOp> = text.split(", ").map(op).collect();
            assert_eq!(history.first_refused("k", &ops, all), want, "{text}");
        }
    }

    /// Nodes, each with what it has applied; one record.
    #[derive(Default)]
    struct World {
        history: History,
        applied: BTreeMap<char, EventSet>,
    }

    impl World {
        fn play(&mut self, script: &str) {
            for step in script.split("; ") {
                match step.split_once(": ") {
                    Some((node, text)) => drop(self.commit(node.parse().unwrap(), text, None)),
                    None => self.sync(),
                }
            }
        }

        fn sync(&mut self) {
            let mut all = EventSet::default();
            self.applied.values().for_each(|set| all.union(set));
            self.applied = ['A', 'B', 'C', 'D'].map(|node| (node, all.clone())).into();
        }

        /// Answers with the token of the write.
        fn commit(&mut self, node: char, text: &str, seen: Option<&EventSet>) -> EventSet {
            let saw = self.applied.entry(node).or_default().clone();
            let (hlc, text) = text.split_once('@').unwrap_or(("", text));
            let now = 100 + self.history.events().len() as u64;
            let (hlc, replica) = (hlc.parse().unwrap_or(now), u64::from(node));
            let event = Event {
                stamp: Stamp { hlc, replica },
                record: "k".to_owned(),
                ops: text.split(", ").map(op).collect(),
                saw,
            };
            let id = match seen {
                Some(seen) => self.history.push_seen(event, seen.clone()),
                None => self.history.push(event),
            };
            self.applied.entry(node).or_default().insert(id);
            let mut token = self.history.events()[id.0].saw.clone();
            token.insert(id);
            token
        }

        fn read(&self, node: char) -> String {
            let record = self.history.read("k", &self.applied[&node]);
            let fields = record.iter().map(|((field, _), value)| match value {
                SpecValue::Register { value, siblings } => format!("{field}={value}{siblings:?}"),
                SpecValue::Counter(sum) => format!("{field}={sum}"),
                SpecValue::Flag(flag) => format!("{field}={flag}"),
                SpecValue::Set(members) => format!("{field}={members:?}"),
            });
            fields.collect::<Vec<_>>().join(" ").replace('"', "")
        }
    }

    fn op(text: &str) -> SpecOp {
        let mut words = text.split(' ').map(str::to_owned);
        let name = words.next().unwrap();
        let field = words.next().unwrap_or_default();
        let members: Vec<String> = words.collect();
        let value = members.first().cloned().unwrap_or_default();
        let by = value.parse().unwrap_or_default();
        match name.as_str() {
            "set" => SpecOp::Set { field, value },
            "incr" => SpecOp::Incr { field, by },
            "once" => SpecOp::IncrOnce { field, by, key: members[1].clone() },
            "enable" => SpecOp::Enable { field },
            "disable" => SpecOp::Disable { field },
            "add" => SpecOp::Add { field, members },
            "remove" => SpecOp::Remove { field, members },
            "clear" => SpecOp::Clear { field },
            "delete" => SpecOp::Delete,
            other => panic!("{other}"),
        }
    }
}
