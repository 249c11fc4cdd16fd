//! The specification against SEMANTICS.md: short scripts, and what every replica must read after them.

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
    A: incr f 1; B: set f x; sync; C: clear f; D: set f y => f=y[]
    A: observe f u210; B: observe f u361 u1 => f=2[2, 3]
    A: observe f u361; sync; A: clear f; B: observe f u210 => f=1[1]
    A: observe f u210; sync; A: clear f; B: observe f u361; C: observe f u1142 => f=1[3]
    A: observe f u210; sync; B: observe f u361; sync; A: clear f => \n\
    A: observe f u210 u1; sync; B: clear f => ";

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
        world.history.first_refused_seen("k", &ops, &world.applied[&'A'], Some(&seen), 0)
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
            now_ms: 0,
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
            SpecValue::Zset(members) => format!("{field}={members:?}"),
            SpecValue::Unique { count, ranks } => format!("{field}={count}{:?}", ranks.values()),
            SpecValue::Document(_, json) => format!("{field}={json}"),
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
        "zadd" => {
            let score = members[1].parse().unwrap();
            SpecOp::ZAdd { field, scores: vec![(members[0].clone(), score)] }
        }
        "zincr" => SpecOp::ZIncr { field, member: members[0].clone(), by: members[1].parse().unwrap() },
        "zremove" => SpecOp::ZRemove { field, members },
        "observe" => SpecOp::Observe { field, members },
        "clear" => SpecOp::Clear { field },
        "delete" => SpecOp::Delete,
        other => panic!("{other}"),
    }
}
