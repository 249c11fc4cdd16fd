//! What each type means, through HTTP against three real nodes: the rows of `semantics.jsonl` and the behaviours of
//! `scenarios.jsonl`.
//!
//! - What stands between two `sync` is concurrent: the links are cut below QUIC meanwhile. (Where nodes are processes,
//!   which are killed, the links stay.) `sync` heals them and waits until all nodes have converged and hold the same.
//! - Every answer is read at the node named, or at all. At the end of a scenario all nodes must show its records alike,
//!   writers and siblings included.
//! - Each commit gets a later stamp than the one before it, at whichever node: so `later` in a scenario is later here.
//! - Every scenario is played, or is named below with the place that holds it.

mod support;

#[path = "scenarios/nodes.rs"]
mod nodes;
#[path = "scenarios/steps.rs"]
mod steps;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime};

use godwit_core::rng::Rng;
use nodes::{Kind, NAMES, Nodes};
use reqwest::Response;
use serde_json::{Value, json};
use steps::{Expected, Scenario, Seen, Step, Workload};
use support::{Answer, WAIT_MAX};

const SEMANTICS: &str = include_str!("../data/semantics.jsonl");
const SCENARIOS: &str = include_str!("../data/scenarios.jsonl");

/// The rows of the table of scenarios that says what each type means, and two of uniques, which it has none of.
const ROWS: usize = 16 + 2;

/// Scenarios that are held elsewhere, and where.
const ELSEWHERE: [(&str, &str); 2] = [
    (
        "assignment-by-a-clock-behind",
        "a node takes the system's clock, which no test sets: the simulator sets its clocks, up to an hour off, and holds every read against the specification",
    ),
    (
        "k2v-error-may-have-applied",
        "says what an oracle must allow, not what a store does: tests/server/crash.rs allows both of a write without an answer",
    ),
];

/// Writes of a workload, and how many of them between two faults.
const WORKLOAD_WRITES: usize = 150;
const WRITES_PER_FAULT: usize = 10;
/// How often a node is killed, all times but the first to be put back on an old copy of its data.
const OLD_COPY_ROUNDS: usize = 4;

/// How long a read with a token may wait for what the token names.
const TOKEN_WAIT_MS: u64 = 10_000;

/// All scenarios of both files.
fn all() -> Vec<(String, Result<Scenario, String>)> {
    let read = |text: &'static str, of: fn(&Value) -> Result<Scenario, String>| {
        text.lines().map(move |line| {
            let line: Value = serde_json::from_str(line).unwrap();
            (line["id"].as_str().unwrap().to_owned(), of(&line))
        })
    };
    read(SEMANTICS, steps::ours).chain(read(SCENARIOS, steps::theirs)).collect()
}

#[test]
fn every_scenario_is_played_or_listed() {
    let all = all();
    let ids: BTreeSet<&str> = all.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(ids.len(), all.len(), "two scenarios have one id");
    let listed: Vec<&str> = ELSEWHERE.iter().map(|(id, _)| *id).collect();
    assert!(listed.iter().all(|id| ids.contains(id)), "a list names a scenario that is not there");
    assert_eq!(listed.iter().collect::<BTreeSet<_>>().len(), listed.len(), "a scenario is listed twice");
    for (id, scenario) in &all {
        if !listed.contains(&id.as_str()) {
            let scenario = scenario.as_ref().unwrap_or_else(|wrong| panic!("{id}: {wrong}"));
            assert!(KINDS.iter().any(|kind| runs_on(scenario, *kind)), "{id} runs nowhere");
        }
    }
    let rows = SEMANTICS.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["row"].to_string());
    assert_eq!(rows.collect::<BTreeSet<_>>().len(), ROWS);
}

const KINDS: [Kind; 2] = [Kind::InProcess, Kind::Processes];

/// Kills need processes, cuts need them not to be; a workload of increments is to stand both.
fn runs_on(scenario: &Scenario, kind: Kind) -> bool {
    let kills = |step| matches!(step, &Step::Kill(_) | &Step::Restart(_) | &Step::Workload(Workload::Names));
    let kills = scenario.iter().any(kills);
    let counts = scenario.iter().any(|step| matches!(step, Step::Workload(Workload::Increments)));
    counts || kills == (kind == Kind::Processes)
}

#[tokio::test(flavor = "multi_thread")]
async fn links_cut_between_syncs() {
    play_all(Kind::InProcess).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_killed_between_syncs() {
    play_all(Kind::Processes).await;
}

async fn play_all(kind: Kind) {
    let mut nodes = Nodes::start(kind).await;
    let (mut failures, mut played) = (Vec::new(), 0);
    for (id, scenario) in all() {
        // One that cannot be read is listed, or another test fails.
        let Ok(scenario) = scenario else { continue };
        if ELSEWHERE.iter().any(|(listed, _)| *listed == id) || !runs_on(&scenario, kind) {
            continue;
        }
        let began = Instant::now();
        let outcome = Player::new(&mut nodes, &id).play(&scenario).await;
        println!("{id}: {outcome:?} after {} ms", began.elapsed().as_millis());
        match outcome {
            Ok(()) => played += 1,
            Err(what) => failures.push(format!("{id}: {what}")),
        }
    }
    nodes.cut(&[]);
    nodes.stop().await;
    assert!(failures.is_empty(), "{failures:#?}");
    assert!(played > 0);
}

/// Plays one scenario on records of its own.
struct Player<'n> {
    nodes: &'n mut Nodes,
    path: String,
    /// Records written, to be compared at the end.
    keys: BTreeSet<String>,
    /// Tokens of reads, by the name that the scenario gives them.
    kept: BTreeMap<String, String>,
    /// Feeds of a record each, and their nodes.
    followed: BTreeMap<String, (usize, Response)>,
    /// The token of each node's last answer.
    last: [Option<String>; NAMES.len()],
    /// The token of a read of each record from before any write.
    nothing: BTreeMap<String, String>,
    /// The stamp of the last commit.
    time: String,
}

impl<'n> Player<'n> {
    fn new(nodes: &'n mut Nodes, id: &str) -> Self {
        Self {
            nodes,
            path: format!("/v1/scenarios/{id}"),
            keys: BTreeSet::new(),
            kept: BTreeMap::new(),
            followed: BTreeMap::new(),
            last: Default::default(),
            nothing: BTreeMap::new(),
            time: String::new(),
        }
    }

    async fn play(mut self, scenario: &Scenario) -> Result<(), String> {
        for step in scenario {
            if let Step::Write { key, seen: Seen::Nothing, .. } = step
                && let Some(token) = token(&self.get(0, key, "").await)
            {
                self.nothing.insert(key.clone(), token);
            }
        }
        self.cut();
        for (i, step) in scenario.iter().enumerate() {
            self.step(step).await.map_err(|what| format!("step {}: {what}", i + 1))?;
        }
        self.nodes.sync().await;
        for key in &self.keys {
            let mut shown = Vec::new();
            for at in 0..NAMES.len() {
                shown.push(self.get(at, key, "?view=full").await.body);
            }
            if shown.iter().any(|other| *other != shown[0]) {
                return Err(format!("the nodes show {key} differently: {shown:?}"));
            }
        }
        Ok(())
    }

    fn cut(&self) {
        self.nodes.cut(&[0, 1, 2]);
    }

    async fn step(&mut self, step: &Step) -> Result<(), String> {
        match step {
            Step::Write { at, key, ops, seen } => self.write(*at, key, ops.as_ref(), seen).await?,
            Step::KeepToken { at, key, name } => {
                let answer = self.get(*at, key, "").await;
                let token = token(&answer).ok_or("a read gave no token")?;
                self.kept.insert(name.clone(), token);
            }
            Step::ReadAfter { at, other, key } => self.read_after(*at, *other, key).await?,
            Step::Sync => {
                self.nodes.sync().await;
                self.cut();
            }
            Step::Expect { at, key, what } => self.expect(*at, key, what).await?,
            Step::Follow { at, key, name } => self.follow(*at, key, name).await?,
            Step::ExpectFollowed { key, values } => self.expect_followed(key, values).await?,
            Step::Kill(at) => self.nodes.kill(*at),
            Step::Restart(at) => self.nodes.restart(*at).await,
            Step::Workload(workload) => self.workload(*workload).await?,
        }
        Ok(())
    }

    async fn follow(&mut self, at: usize, key: &str, name: &str) -> Result<(), String> {
        let token = self.kept.get(name).ok_or("no read gave this token")?;
        let record = self.path(key).rsplit('/').next().unwrap_or_default().to_owned();
        let path = format!("/v1/_changes/scenarios?prefix={record}&since={token}");
        let feed = self.nodes.request("GET", at, &path).send().await.map_err(|error| error.to_string())?;
        let feed = feed.error_for_status().map_err(|error| error.to_string())?;
        self.followed.insert(key.to_owned(), (at, feed));
        Ok(())
    }

    /// What is told before the change that was waited for is not it, and what the node then shows is not older.
    async fn expect_followed(&mut self, key: &str, values: &[Value]) -> Result<(), String> {
        let (at, mut feed) = self.followed.remove(key).ok_or("nobody follows it")?;
        let mut text = String::new();
        let told = loop {
            if let Some((_, rest)) = text.split_once("event: change\ndata: ")
                && let Some((data, _)) = rest.split_once('\n')
            {
                break serde_json::from_str::<Value>(data).map_err(|error| error.to_string())?;
            }
            let chunk =
                tokio::time::timeout(WAIT_MAX, feed.chunk()).await.map_err(|_| "no change was told")?;
            let chunk = chunk.map_err(|error| error.to_string())?.ok_or("the feed ended")?;
            text.push_str(std::str::from_utf8(&chunk).map_err(|error| error.to_string())?);
        };
        let wanted = Expected::Values { field: "value".to_owned(), values: values.to_vec() };
        let shown = self.read(at, key, &wanted).await?;
        match told["fields"] == shown {
            true => Ok(()),
            false => Err(format!("{told} was told, and {shown} is there")),
        }
    }

    async fn expect(&self, at: Option<usize>, key: &str, what: &Expected) -> Result<(), String> {
        let mut first = None;
        for at in at.map_or(0..NAMES.len(), |at| at..at + 1) {
            let found = self.read(at, key, what).await.map_err(|error| format!("{} {error}", NAMES[at]))?;
            let first = first.get_or_insert_with(|| found.clone());
            if *first != found {
                return Err(format!("{} reads {found}, others {first}", NAMES[at]));
            }
        }
        Ok(())
    }

    async fn write(&mut self, at: usize, key: &str, ops: Option<&Value>, seen: &Seen) -> Result<(), String> {
        self.keys.insert(key.to_owned());
        let method = if ops.is_some() { "PATCH" } else { "DELETE" };
        let mut request = self.nodes.request(method, at, &self.path(key));
        if let Some(ops) = ops {
            request = request.body(json!({ "ops": ops }).to_string());
        }
        let seen = match seen {
            Seen::Node => None,
            // Where nothing is, a write without a token has seen nothing too.
            Seen::Nothing if self.get(at, key, "").await.status == 404 => None,
            Seen::Nothing => Some(self.nothing.get(key).cloned().ok_or("a read gave no token")?),
            Seen::Token(name) => Some(self.kept.get(name).cloned().ok_or("no read gave this token")?),
        };
        if let Some(seen) = seen {
            request = request.header("Godwit-Seen", seen);
        }
        until_the_clock_moves().await;
        let answer = good(Answer::of(request).await)?;
        self.last[at] = token(&answer).or(self.last[at].take());
        let commit = &answer.json()["commit"];
        if let Some(time) = commit["time"].as_str() {
            if *time <= *self.time {
                return Err(format!("a later commit has the stamp {time}, an earlier one {}", self.time));
            }
            time.clone_into(&mut self.time);
        }
        Ok(())
    }

    /// While the links are cut, a node that lacks what the token names must say so, and never show less.
    async fn read_after(&mut self, at: usize, other: usize, key: &str) -> Result<(), String> {
        let token_then = self.last[other].clone().ok_or("no answer gave a token")?;
        let read = |wait_ms| {
            let path = format!("{}?wait_ms={wait_ms}", self.path(key));
            Answer::of(self.nodes.request("GET", at, &path).header("Godwit-Token", &token_then))
        };
        let early = read(0).await;
        self.nodes.cut(&[]);
        let answer = good(read(TOKEN_WAIT_MS).await)?;
        if early.status != 503 && early.body != answer.body {
            return Err(format!("{} read {} too early, then {}", NAMES[at], early.body, answer.body));
        }
        self.last[at] = Some(token(&answer).ok_or("a read gave no token")?);
        self.cut();
        Ok(())
    }

    /// What a node shows of what is expected, which it must meet.
    async fn read(&self, at: usize, key: &str, what: &Expected) -> Result<Value, String> {
        let plain = self.get(at, key, "").await;
        let fields = match plain.status {
            404 => json!({}),
            _ => good(plain)?.json()["fields"].take(),
        };
        let must = |holds: bool, wanted: String| match holds {
            true => Ok(fields.clone()),
            false => Err(format!("reads {fields}, must be {wanted}")),
        };
        match what {
            Expected::Fields(wanted) => must(same(&fields, wanted), wanted.to_string()),
            Expected::OneOf(choices) => {
                must(choices.iter().any(|choice| same(&fields, choice)), format!("one of {choices:?}"))
            }
            Expected::Equal => Ok(fields),
            Expected::Values { field, values } => {
                let full = self.full(at, key, field).await?;
                let siblings = full["siblings"].as_array().ok_or("a register has no siblings")?;
                let found = std::iter::once(&full["value"]).chain(siblings);
                let found: Vec<String> = found.map(Value::to_string).collect();
                let wanted: BTreeSet<String> = values.iter().map(Value::to_string).collect();
                let once = found.len() == wanted.len();
                must(once && found.into_iter().collect::<BTreeSet<_>>() == wanted, format!("{values:?}"))
            }
            Expected::Siblings { field, values } => {
                let siblings = self.full(at, key, field).await?["siblings"].take();
                must(siblings == json!(values), format!("with the siblings {values:?}, not {siblings}"))
            }
        }
    }

    async fn full(&self, at: usize, key: &str, field: &str) -> Result<Value, String> {
        Ok(good(self.get(at, key, "?view=full").await)?.json()["fields"][field].take())
    }

    async fn get(&self, at: usize, key: &str, query: &str) -> Answer {
        Answer::of(self.nodes.request("GET", at, &format!("{}{query}", self.path(key)))).await
    }

    fn path(&self, key: &str) -> String {
        format!("{}.{key}", self.path)
    }

    /// Each round writes at all nodes, and a kill follows; after the first one the data directory is copied, after each later
    /// one that copy is put back. No two commits may have one dot, and what others have is not lost.
    async fn names(&mut self) -> Result<(), String> {
        const KEY: &str = "w";
        self.keys.insert(KEY.to_owned());
        let (mut sum, mut dots) = (0, BTreeSet::new());
        for round in 0..OLD_COPY_ROUNDS {
            for i in 0..WRITES_PER_FAULT {
                let request = self.nodes.request("PATCH", i % NAMES.len(), &self.path(KEY));
                let written = good(
                    Answer::of(
                        request
                            .body(json!({ "ops": [{"op": "incr", "field": "value", "by": 1}] }).to_string()),
                    )
                    .await,
                )?
                .json();
                sum += 1;
                if !dots.insert((
                    written["partition"].to_string(),
                    written["commit"]["replica"].to_string(),
                    written["commit"]["counter"].to_string(),
                )) {
                    return Err(format!("two commits have one dot: {written}"));
                }
            }
            self.nodes.sync().await;
            self.nodes.kill(0);
            match round {
                0 => self.nodes.save(0),
                _ => self.nodes.put_back(0),
            }
            self.nodes.restart(0).await;
        }
        self.nodes.sync().await;
        self.expect(None, KEY, &Expected::Fields(json!({ "value": sum }))).await
    }

    /// Writes at random nodes while links are cut, or nodes killed, at random. All are acknowledged, so all must be
    /// read at every node in the end, once, and nothing else; no two commits have the same dot.
    async fn workload(&mut self, workload: Workload) -> Result<(), String> {
        const KEY: &str = "w";
        if workload == Workload::Names {
            return self.names().await;
        }
        self.keys.insert(KEY.to_owned());
        let mut rng = Rng::new(0x600d);
        let (mut sum, mut members, mut dots) = (0, Vec::new(), BTreeSet::new());
        let mut down = None;
        if let Workload::Adds { delay_us } = workload {
            self.nodes.delay(delay_us);
        }
        for i in 0..WORKLOAD_WRITES {
            if i % WRITES_PER_FAULT == 0 {
                self.fault(&mut rng, &mut down).await;
            }
            let at = loop {
                let at = rng.below(NAMES.len() as u64) as usize;
                if Some(at) != down {
                    break at;
                }
            };
            let op = match workload {
                Workload::Adds { .. } => {
                    let member = format!("{i:04}");
                    members.push(member.clone());
                    json!({"op": "add", "field": "value", "members": [member]})
                }
                Workload::Increments | Workload::Names => {
                    let by = rng.below(10) as i64 - 5;
                    sum += by;
                    json!({"op": "incr", "field": "value", "by": by})
                }
            };
            let request = self.nodes.request("PATCH", at, &self.path(KEY));
            let written = good(Answer::of(request.body(json!({ "ops": [op] }).to_string())).await)?.json();
            if !dots.insert((written["partition"].to_string(), written["commit"].to_string())) {
                return Err(format!("two commits have one dot: {written}"));
            }
        }
        if let Some(at) = down {
            self.nodes.restart(at).await;
        }
        let healed = Instant::now();
        self.nodes.sync().await;
        println!("equal {} ms after the last fault ended", healed.elapsed().as_millis());
        self.nodes.delay(0);
        let value = match workload {
            Workload::Adds { .. } => json!(members),
            Workload::Increments | Workload::Names => json!(sum),
        };
        let wanted = Expected::Fields(json!({ "value": value }));
        self.expect(None, KEY, &wanted).await
    }

    /// The next fault: other links are cut or all healed, or another node is down or none.
    async fn fault(&mut self, rng: &mut Rng, down: &mut Option<usize>) {
        let at = rng.below(NAMES.len() as u64 + 1) as usize;
        match self.nodes.kind() {
            Kind::InProcess => match at {
                // Cut off from each other, all of them.
                3 if rng.chance(1, 2) => self.cut(),
                3 => self.nodes.cut(&[]),
                lonely => self.nodes.cut(&[lonely]),
            },
            Kind::Processes => {
                if let Some(at) = down.take() {
                    self.nodes.restart(at).await;
                } else if at < NAMES.len() {
                    self.nodes.kill(at);
                    *down = Some(at);
                }
            }
        }
    }
}

fn token(answer: &Answer) -> Option<String> {
    Some(answer.headers.get("godwit-token")?.to_str().unwrap().to_owned())
}

/// A good answer, or what the node said.
fn good(answer: Answer) -> Result<Answer, String> {
    if answer.status == 200 { Ok(answer) } else { Err(format!("{}: {}", answer.status, answer.body)) }
}

/// Equal, with fractions to within rounding.
fn same(found: &Value, wanted: &Value) -> bool {
    match (found, wanted) {
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(name, a)| b.get(name).is_some_and(|b| same(a, b)))
        }
        (Value::Number(a), Value::Number(b)) if a.is_f64() || b.is_f64() => {
            a.as_f64().zip(b.as_f64()).is_some_and(|(a, b)| (a - b).abs() < 1e-9)
        }
        _ => found == wanted,
    }
}

/// Until stamps of all nodes, which share this machine's clock, are later than any given so far.
async fn until_the_clock_moves() {
    let now_ms = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis();
    let began = now_ms();
    while now_ms() <= began {
        tokio::time::sleep(Duration::from_millis(1)).await; // polls: the clock's next millisecond
    }
}
