//! Pages show everything once, in order, within their limits, at a cost that the size does not change.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::rows::Ended;
use super::*;
use crate::delta::Delta;
use crate::fields::FieldState;
use crate::ids::{Key, Member, Namespace, PartitionId, ReplicaId};
use crate::op::{Limits, Op, Terms, Write};
use crate::partition::{Committed, Partition, Received};
use crate::row::RowValue;
use crate::store::{Batch, Family, MemStore, Txn, Visit};
use crate::types::presence;

const AT: ReadAt = ReadAt { partitions: 1, now_ms: 0 };
const HOME: PartitionId = PartitionId(0);

fn id(key: &str) -> RecordId {
    RecordId { namespace: namespace(), key: Key::new(key).unwrap() }
}

fn namespace() -> Namespace {
    Namespace::new("ns").unwrap()
}

fn likes() -> Field {
    Field::new("likes").unwrap()
}

/// A store with a set that has these rows: member and replica.
fn set_of<'m>(rows: impl IntoIterator<Item = (&'m str, u64)>) -> MemStore {
    let mut batch = Batch::default();
    let prefix = keys::record_prefix(HOME, &id("r"));
    for (member, replica) in rows {
        let dot = Dot { replica: ReplicaId(replica), counter: 1 };
        let slot = presence::member_slot(&Member::new(member).unwrap());
        let value = RowValue { counter: 1, hlc: Hlc(replica), payload: Vec::new() };
        batch.put(Family::Rows, keys::row_key(&prefix, &likes(), FieldType::SET, &slot, dot), value.encode());
    }
    // Neighbours, which no page may show.
    for (field, ty) in [("like", FieldType::SET), ("likes", FieldType::COUNTER), ("likes2", FieldType::SET)] {
        let dot = Dot { replica: ReplicaId(1), counter: 2 };
        let slot = if ty == FieldType::SET { &b"b\0"[..] } else { &[0] };
        let value = RowValue { counter: 2, hlc: Hlc(1), payload: Vec::new() };
        let key = keys::row_key(&prefix, &Field::new(field).unwrap(), ty, slot, dot);
        batch.put(Family::Rows, key, value.encode());
    }
    let mut store = MemStore::default();
    store.commit(batch);
    store
}

fn page_of(store: &impl StoreRead, after: Option<&str>, limits: PageLimits) -> Page<Member> {
    members(store, AT, &id("r"), &likes(), after, limits).unwrap()
}

fn limits() -> impl Strategy<Value = PageLimits> {
    (0usize..6, 0usize..12, 0usize..8).prop_map(|(items_max, bytes_max, rows_max)| PageLimits {
        items_max,
        bytes_max,
        rows_max,
    })
}

/// Small names of which many are prefixes of others.
fn name() -> impl Strategy<Value = String> {
    "[ab é]{1,3}"
}

/// All pages one after another: what they show, each page held against the limits.
fn walk<T: Clone + Ord>(
    limits: PageLimits,
    bytes: impl Fn(&T) -> usize,
    mut page: impl FnMut(Option<&T>) -> Page<T>,
) -> Vec<T> {
    let (mut shown, mut next) = (Vec::new(), None);
    loop {
        let Page { items, next: after } = page(next.as_ref());
        assert!(items.len() <= limits.items_max.max(1));
        assert!(items.len() <= 1 || items.iter().map(&bytes).sum::<usize>() <= limits.bytes_max);
        assert!(after.is_none() || after > next, "each page goes on");
        shown.extend(items);
        next = after;
        if next.is_none() {
            return shown;
        }
    }
}

proptest! {
    #[test]
    fn pages_of_a_set_are_the_set(
        rows in prop::collection::btree_set((name(), 1u64..4), 0..30), limits in limits(), probe in name(),
    ) {
        let store = set_of(rows.iter().map(|(member, replica)| (member.as_str(), *replica)));
        let expected: BTreeSet<&str> = rows.iter().map(|(member, _)| member.as_str()).collect();
        let shown = walk(limits, |member: &Member| member.as_str().len(), |after: Option<&Member>| {
            page_of(&store, after.map(Member::as_str), limits)
        });
        prop_assert_eq!(shown.iter().map(Member::as_str).collect::<Vec<_>>(), Vec::from_iter(expected.clone()));

        prop_assert_eq!(size(&store, AT, &id("r"), &likes()).unwrap(), expected.len() as u64);
        let has = contains(&store, AT, &id("r"), &likes(), &Member::new(probe.clone()).unwrap());
        prop_assert_eq!(has.unwrap(), expected.contains(probe.as_str()));
        // From any name on, whether or not it is a member.
        let all = PageLimits { items_max: 100, bytes_max: 1000, rows_max: 1000 };
        let after = page_of(&store, Some(&probe), all);
        prop_assert_eq!(after.next, None);
        prop_assert!(after.items.iter().map(Member::as_str).eq(expected.into_iter().filter(|m| *m > probe.as_str())));
    }

    #[test]
    fn pages_of_keys_are_the_live_records(
        marks in prop::collection::btree_map("[ab{}/é]{1,3}", any::<bool>(), 0..30),
        limits in limits(), prefix in "[ab é]{0,2}", from in name(),
    ) {
        let mut batch = Batch::default();
        for (key, lives) in &marks {
            batch.put(Family::Keys, keys::key_mark(&id(key)), vec![1]);
            if *lives {
                let dot = Dot { replica: ReplicaId(1), counter: 1 };
                let row = keys::row_key(&keys::record_prefix(HOME, &id(key)), &likes(), FieldType::FLAG, &[], dot);
                batch.put(Family::Rows, row, RowValue { counter: 1, hlc: Hlc(1), payload: Vec::new() }.encode());
            }
        }
        for neighbour in ["nr", "ns-", "ns1"] {
            let record = RecordId { namespace: Namespace::new(neighbour).unwrap(), ..id("a") };
            batch.put(Family::Keys, keys::key_mark(&record), vec![1]);
        }
        let mut store = MemStore::default();
        store.commit(batch);
        let list = |after: Option<&str>, limits| {
            list_keys(&store, AT, &namespace(), &prefix, after, limits).unwrap()
        };
        let live = marks.iter().filter(|(key, lives)| **lives && key.starts_with(&prefix)).map(|(key, _)| key.as_str());
        let shown = walk(limits, |key: &Key| key.as_str().len(), |after: Option<&Key>| list(after.map(Key::as_str), limits));
        prop_assert_eq!(shown.iter().map(Key::as_str).collect::<Vec<_>>(), live.clone().collect::<Vec<_>>());
        let all = PageLimits { items_max: 100, bytes_max: 1000, rows_max: 1000 };
        prop_assert!(list(Some(&from), all).items.iter().map(Key::as_str).eq(live.filter(|key| *key > from.as_str())));
    }
}

/// A store that counts what is read.
struct Counting<'s>(&'s MemStore, Cell<usize>);

impl StoreRead for Counting<'_> {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.1.set(self.1.get() + 1);
        self.0.get(family, key)
    }

    fn scan(&self, family: Family, from: &[u8], to: &[u8], visit: Visit<'_>) -> Result<(), StoreError> {
        self.0.scan(family, from, to, &mut |key, value| {
            self.1.set(self.1.get() + 1);
            visit(key, value)
        })
    }
}

#[test]
fn a_page_and_a_member_cost_the_same_in_sets_of_any_size() {
    let limits = PageLimits { items_max: 10, bytes_max: 1000, rows_max: 100 };
    let reads = |size: usize| {
        let names: Vec<String> = (0..size).map(|i| format!("{i:06}")).collect();
        let store = set_of(names.iter().map(|name| (name.as_str(), 1)));
        let counting = Counting(&store, Cell::new(0));
        let middle = names[size / 2].as_str();
        let page = page_of(&counting, Some(middle), limits);
        assert_eq!(page.items.len(), 10);
        assert!(contains(&counting, AT, &id("r"), &likes(), &Member::new(middle).unwrap()).unwrap());
        counting.1.get()
    };
    assert_eq!(reads(30), reads(20_000));
    // Eleven rows and one, and for both what is cleared there.
    assert_eq!(reads(30), 14);
}

#[test]
fn the_rows_of_one_member_are_never_split() {
    let store = set_of([("a", 1), ("a", 2), ("a", 3), ("b", 1), ("b", 2)]);
    let limits = PageLimits { items_max: 9, bytes_max: 9, rows_max: 2 };
    let first = page_of(&store, None, limits);
    assert_eq!((first.items.len(), first.next.as_ref().map(Member::as_str)), (1, Some("a")));
    let second = page_of(&store, Some("a"), limits);
    assert_eq!((second.items[0].as_str(), second.next), ("b", None));

    // Also where not every row counts, the one that does may be the last.
    let budget = Budget::of_rows(2);
    let record = Record::open(&store, AT, &id("r"), &budget).unwrap();
    let rows = record.rows(&likes(), FieldType::SET);
    let mut visited = Vec::new();
    let ended = rows.each(rows.range(), &keys::after_prefix(rows.range()), |row| {
        visited.push(row.dot.replica.0);
        Ok(ControlFlow::Continue(()))
    });
    assert_eq!((ended, visited), (Ok(Ended::AtBound(b"a\0".to_vec())), vec![1, 2, 3]));
}

/// A partition and its store.
struct Replica(MemStore, Partition);

impl Replica {
    fn new(id: u64) -> Self {
        let store = MemStore::default();
        let partition = Partition::open(&store, HOME, ReplicaId(id)).unwrap();
        Self(store, partition)
    }

    fn commit(&mut self, key: &str, op: Op) -> Delta {
        let mut batch = Batch::default();
        let writes = [Write { record: id(key), ops: vec![op] }];
        let mut txn = Txn::new(&self.0, &mut batch);
        let (terms, limits) = (Terms::default(), Limits::default());
        let done = self.1.commit(&mut txn, &writes, &terms, &limits, (0, 0), || Hlc(7)).unwrap();
        let Committed::Applied(applied) = done else { panic!("{done:?}") };
        self.0.commit(batch);
        Delta::decode(&applied.encoded).unwrap()
    }

    fn receive(&mut self, delta: Delta) {
        let mut batch = Batch::default();
        let encoded = delta.encode();
        let received = self.1.receive(&mut Txn::new(&self.0, &mut batch), delta, encoded, usize::MAX, (0, 0));
        assert!(matches!(received, Ok(Received::Applied(_))));
        self.0.commit(batch);
    }
}

/// Once the size is kept, it is told by one read, whatever was done to the set since.
#[test]
fn a_size_that_is_kept_costs_one_read_whatever_the_size() {
    let names = |from: usize, to: usize| -> Vec<Member> {
        (from..to).map(|i| Member::new(format!("{i:06}")).unwrap()).collect()
    };
    for members in [30, 3_000] {
        let mut a = Replica::new(1);
        a.commit("r", Op::Add { field: likes(), members: names(0, members) });
        let told = |a: &Replica| {
            let counting = Counting(&a.0, Cell::new(0));
            let kept = kept_size(&counting, AT, &id("r"), &likes()).unwrap();
            assert_eq!(counting.1.get(), 1, "it never counts");
            let size = size(&counting, AT, &id("r"), &likes()).unwrap();
            (kept, size, counting.1.get() - 1)
        };
        let (kept, size, reads) = told(&a);
        assert_eq!((kept, size), (None, members as u64));
        assert!(reads > members, "the first question looks at every row");
        let mut batch = Batch::default();
        a.1.count(&mut Txn::new(&a.0, &mut batch), &id("r"), &likes(), FieldType::SET).unwrap();
        a.0.commit(batch);
        let mut steps = 0;
        while a.1.has_jobs() {
            let mut batch = Batch::default();
            a.1.work(&mut Txn::new(&a.0, &mut batch), 0).unwrap();
            a.0.commit(batch);
            steps += 1;
            assert!(steps < 1_000, "the counting ends");
        }
        assert_eq!(told(&a), (Some(members as u64), members as u64, 1));
        a.commit("r", Op::Add { field: likes(), members: names(members - 10, members + 5) });
        a.commit("r", Op::Remove { field: likes(), members: names(members - 1, members + 100) });
        assert_eq!(told(&a), (Some(members as u64 - 1), members as u64 - 1, 1));
        a.commit("r", Op::Clear { field: likes() });
        assert_eq!(told(&a).1, 0);
        a.commit("r", Op::Add { field: likes(), members: names(0, 7) });
        assert_eq!(told(&a).1, 7);
    }
}

#[test]
fn a_counter_that_was_cleared_is_not_listed_although_its_rows_are_left() {
    let (mut a, mut b) = (Replica::new(1), Replica::new(2));
    let plays = || Field::new("plays").unwrap();
    for key in ["k1", "k2", "k3"] {
        b.receive(a.commit(key, Op::Incr { field: plays(), by: 5 }));
    }
    b.commit("k2", Op::Clear { field: plays() });
    b.commit("k3", Op::Delete);
    b.commit("k3", Op::Enable { field: likes() });
    assert!(b.0.get(Family::Keys, &keys::key_mark(&id("k2"))).unwrap().is_some(), "its mark is left");
    let limits = PageLimits { items_max: 9, bytes_max: 99, rows_max: 99 };
    let keys = list_keys(&b.0, AT, &namespace(), "", None, limits).unwrap();
    assert_eq!(keys.items.iter().map(Key::as_str).collect::<Vec<_>>(), ["k1", "k3"]);
    let live = |key, field: Field| live_types(&b.0, AT, &id(key), &field).unwrap();
    assert_eq!(live("k1", plays()), [FieldType::COUNTER]);
    assert_eq!(live("k2", plays()), []);
    assert_eq!(live("k3", likes()), [FieldType::FLAG]);
}

/// Of a set that was cleared nothing is looked at that the field's state knows to be dead, and never without bound.
#[test]
fn a_read_passes_over_few_of_the_rows_that_a_clear_took() {
    const ROWS: usize = super::rows::DEAD_ROWS_MAX + 1;
    let names: Vec<String> = (0..ROWS).map(|i| format!("{i:06}")).collect();
    let mut a = Replica::new(2);
    let store = set_of(names.iter().map(|name| (name.as_str(), 1)));
    let range = keys::type_prefix(&keys::record_prefix(HOME, &id("r")), &likes(), FieldType::SET);
    let cleared = |all: bool| {
        let (mut store, mut batch) = (store.clone(), Batch::default());
        let mut state = FieldState::default();
        state.clear(&[Dot { replica: ReplicaId(1), counter: 1 }].into_iter().collect(), all);
        state.write(&mut Txn::new(&store, &mut batch), &range);
        batch.put(Family::Meta, keys::job(&range), Vec::new());
        // The neighbour of another type.
        let (prefix, dot) = (keys::record_prefix(HOME, &id("r")), Dot { replica: ReplicaId(1), counter: 2 });
        batch.delete(Family::Rows, keys::row_key(&prefix, &likes(), FieldType::COUNTER, &[0], dot));
        store.commit(batch);
        store
    };
    let limits = ReadLimits { members_max: 100, bytes_max: 1 << 30 };
    let told = |store: &MemStore| {
        let counting = Counting(store, Cell::new(0));
        let views = field(&counting, AT, &id("r"), &likes(), limits);
        let page = members(
            &counting,
            AT,
            &id("r"),
            &likes(),
            None,
            PageLimits { items_max: 9, bytes_max: 99, rows_max: ROWS },
        );
        (views, page.unwrap().items.len(), counting.1.get())
    };
    let members_of = |views: Vec<FieldView>| {
        views.into_iter().filter(|view| view.field == likes()).find_map(|view| match view.value {
            Value::Set { members, .. } => Some(members),
            _ => None,
        })
    };

    // All is known to be dead.
    a.0 = cleared(true);
    a.1 = Partition::open(&a.0, HOME, ReplicaId(2)).unwrap();
    let (views, page, reads) = told(&a.0);
    assert_eq!((members_of(views.unwrap()), page), (None, 0));
    assert!(reads < 20, "{reads} reads");
    // But for two that came since, among the first ones.
    let member = |name: &str| Member::new(name).unwrap();
    a.commit("r", Op::Add { field: likes(), members: vec![member("000003"), member("000005x")] });
    let (views, page, reads) = told(&a.0);
    assert_eq!(members_of(views.unwrap()).unwrap(), ["000003", "000005x"]);
    assert_eq!(page, 2);
    assert!(reads < 60, "{reads} reads");
    // One stands behind all that is dead, until it is swept.
    a.commit("r", Op::Add { field: likes(), members: vec![member("x")] });
    assert_eq!(told(&a.0).0, Err(ReadError::TooLarge { max: limits.bytes_max }));
    assert_eq!(members_of(record(&a.0, AT, &id("r"), ReadLimits::NONE).unwrap()).unwrap().len(), 3);
    let mut batch = Batch::default();
    a.1.work(&mut Txn::new(&a.0, &mut batch), 0).unwrap();
    a.0.commit(batch);
    assert_eq!(members_of(told(&a.0).0.unwrap()).unwrap(), ["000003", "000005x", "x"]);

    // Nothing is known of what is left.
    assert_eq!(told(&cleared(false)).0, Err(ReadError::TooLarge { max: limits.bytes_max }));
}

#[test]
fn records_read_together_share_the_limit_on_bytes() {
    let mut a = Replica::new(1);
    for key in ["k1", "k2"] {
        a.commit(key, Op::Enable { field: likes() });
    }
    let read = |ids: &[&str], bytes_max| {
        let ids: Vec<RecordId> = ids.iter().map(|key| id(key)).collect();
        records(&a.0, AT, &ids, ReadLimits { members_max: 9, bytes_max })
    };
    let many = read(&["k2", "gone", "k1", "k2"], 1000).unwrap();
    let one = |key| record(&a.0, AT, &id(key), ReadLimits::NONE).unwrap();
    assert_eq!(many, [one("k2"), Vec::new(), one("k1"), one("k2")]);
    let enough: BTreeMap<usize, bool> =
        (0..200).map(|bytes_max| (bytes_max, read(&["k1"], bytes_max).is_ok())).collect();
    let one_needs = *enough.iter().find(|(_, ok)| **ok).unwrap().0;
    assert!(one_needs > 2);
    assert_eq!(read(&["k1", "k2"], 2 * one_needs - 1), Err(ReadError::TooLarge { max: 2 * one_needs - 1 }));
    assert!(read(&["k1", "k2"], 2 * one_needs).is_ok());
}
