//! Writing an export into a namespace: batches under idempotency keys, several in flight.
//!
//! - Each request has a key made of the import's name and its lines, so that it counts once however often it is tried. An
//!   import that is resumed under its name makes the same requests from the same line on, and those that were in flight
//!   when it broke off count once too.
//! - A register with siblings is set value by value, the winner last, each time as by a client that has seen what there was
//!   when the import began: so the values stand side by side.
//! - With `--replace` a record is cleared, as it is read, before its first line is written. A resumed import clears and
//!   writes again, under a new name: the old keys would only repeat what was cleared meanwhile.

use std::collections::{BTreeSet, VecDeque};
use std::fs::File;
use std::io::{self, BufReader};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::{Context, anyhow, bail, ensure};
use clap::Args;
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};

use super::batch::{self, Batch, Batches, Item, LineError};
use super::client::{Answer, Client, Problem, Record};
use super::progress::{Counts, Progress};

/// The most `--in-flight`.
const IN_FLIGHT_MAX: u64 = 64;
/// Batches read ahead of those in flight.
const AHEAD: usize = 2;
/// Bytes of the input's buffer.
const INPUT_BUFFER: usize = 256 * 1024;
/// How often a record that others write meanwhile is read again, to be cleared.
const CLEARS_MAX: usize = 5;
/// The most operations of one request that clears, unless it is for one record.
const CLEARS_OF_A_REQUEST: usize = 5_000;
const NAME_BYTES: usize = 8;

/// What is asked of `godwit import`.
#[derive(Debug, Args)]
pub struct ImportArguments {
    /// The API of a node, like http://127.0.0.1:7400.
    #[arg(value_name = "URL")]
    pub url: String,
    /// The namespace to write to, which need not be the one that was exported.
    pub namespace: String,
    /// Adds to the records that are there: counters grow, sets unite, registers are overwritten.
    #[arg(long, conflicts_with = "replace")]
    pub merge: bool,
    /// Clears each record of the export before it is written. Records that the export does not have stay.
    #[arg(long)]
    pub replace: bool,
    /// Leaves out fields that a plain read would not show, since another type of the same name stands before them.
    #[arg(long)]
    pub drop_shadowed: bool,
    /// Requests at a time.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=IN_FLIGHT_MAX))]
    pub in_flight: u64,
    /// Goes on with an import that broke off, as it told. The same input and options must be given, within the window of
    /// idempotency keys (24 h).
    #[arg(long, value_name = "NAME:LINE")]
    pub resume: Option<Resume>,
    /// Says nothing on standard error but errors and how to resume.
    #[arg(long)]
    pub quiet: bool,
}

/// Under which name and from which line on an import is resumed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resume {
    name: String,
    line: u64,
}

impl std::str::FromStr for Resume {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once(':').and_then(|(name, line)| Some((name, line.parse().ok()?)));
        let is_name =
            |name: &str| name.len() == 2 * NAME_BYTES && name.bytes().all(|c| c.is_ascii_hexdigit());
        match parts.filter(|(name, _)| is_name(name)) {
            Some((name, line)) => Ok(Self { name: name.to_owned(), line }),
            None => Err("it is what the import told, like 0123456789abcdef:1000".to_owned()),
        }
    }
}

/// How an import ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All is imported.
    Whole,
    /// All that the input has is imported, and the input lacks its end.
    WithoutEnd,
}

impl Outcome {
    /// The process's exit status.
    pub fn exit_status(self) -> u8 {
        match self {
            Self::Whole => 0,
            Self::WithoutEnd => 3,
        }
    }
}

/// What a thread reads from the input.
enum Input {
    Batch(Batch),
    Wrong(LineError),
    /// The end of the input, and whether it is the end of an export.
    Over(bool),
}

/// What writing a batch takes.
#[derive(Debug)]
struct Writer {
    client: Client,
    name: String,
    replace: bool,
    /// Of what was there when the import began.
    seen: Option<String>,
}

/// A line's operations in one request.
struct Line<'a> {
    number: u64,
    key: &'a str,
    ops: String,
}

/// Writes standard input to a namespace.
pub async fn run(arguments: &ImportArguments) -> anyhow::Result<Outcome> {
    let client = Client::new(&arguments.url, &arguments.namespace)?;
    client.node().await?;
    let any = !arguments.merge && !arguments.replace && arguments.resume.is_none();
    let seen = look(&client, any).await?;
    let name = match &arguments.resume {
        Some(resume) if !arguments.replace => resume.name.clone(),
        _ => new_name()?,
    };
    let from = arguments.resume.as_ref().map_or(1, |resume| resume.line);
    let counts = Counts { of_bytes: input_bytes(), resume: from.into(), ..Counts::default() };
    let counts = Arc::new(counts);
    let progress = Progress::begin(&counts, arguments.quiet, Some(name.clone()));
    let input = read_input(from, arguments.drop_shadowed);
    let writer = Arc::new(Writer { client, name: name.clone(), replace: arguments.replace, seen });
    let in_flight = usize::try_from(arguments.in_flight)?;
    let outcome = write_all(&writer, input, &counts, in_flight).await.with_context(|| {
        let line = counts.resume.load(Ordering::Relaxed);
        format!("the import broke off after {}; to go on, add --resume {name}:{line}", progress.told())
    })?;
    if !arguments.quiet {
        eprintln!("imported {}", progress.told());
    }
    if outcome == Outcome::WithoutEnd {
        eprintln!(
            "godwit: all that was read is imported, but the input has no end line: the export broke off"
        );
    }
    Ok(outcome)
}

/// Refuses a namespace that has records, if it must be empty; the token of what it has.
async fn look(client: &Client, must_be_empty: bool) -> anyhow::Result<Option<String>> {
    let mut after = String::new();
    loop {
        let (page, token) = client.keys("", &after, 1).await?;
        if let (true, Some(key)) = (must_be_empty, page.keys.first()) {
            bail!(
                "the namespace {:?} has records already, {key:?} for one: --merge adds to them, --replace clears each record of the export first, and --resume goes on with an import",
                client.namespace()
            );
        }
        match page.next {
            Some(next) if must_be_empty => after = next,
            _ => return Ok(token),
        }
    }
}

fn new_name() -> anyhow::Result<String> {
    let mut bytes = [0; NAME_BYTES];
    let entropy = rustls::crypto::ring::default_provider().secure_random;
    entropy.fill(&mut bytes).map_err(|_| anyhow!("the system gives no random numbers"))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The bytes of standard input, if it is a file.
fn input_bytes() -> u64 {
    let file = io::stdin().as_fd().try_clone_to_owned().map(File::from);
    let about = file.and_then(|file| file.metadata());
    about.ok().filter(|about| about.is_file()).map_or(0, |about| about.len())
}

/// Reads standard input on a thread of its own, a few batches ahead.
fn read_input(from: u64, drop_shadowed: bool) -> mpsc::Receiver<Input> {
    let (sender, receiver) = mpsc::channel(AHEAD);
    std::thread::spawn(move || {
        let input = BufReader::with_capacity(INPUT_BUFFER, io::stdin());
        let mut batches = Batches::new(input, from, drop_shadowed);
        loop {
            let (read, more) = match batches.next() {
                Ok(Some(batch)) => (Input::Batch(batch), true),
                Ok(None) => (Input::Over(batches.has_ended()), false),
                Err(error) => (Input::Wrong(error), false),
            };
            // Nobody listens any more once a batch has failed.
            if sender.blocking_send(read).is_err() || !more {
                return;
            }
        }
    });
    receiver
}

/// Batches in flight, and from where all would have to be written again.
struct Flight {
    running: JoinSet<(u64, anyhow::Result<()>)>,
    /// Batches by number that are not done.
    open: BTreeSet<u64>,
    /// The numbers and first lines of batches that begin with a record's first line.
    starts: VecDeque<(u64, u64)>,
    counts: Arc<Counts>,
}

impl Flight {
    /// Notes what became of a batch.
    fn note(&mut self, landed: Option<Result<(u64, anyhow::Result<()>), JoinError>>) -> anyhow::Result<()> {
        let Some(landed) = landed else { return Ok(()) };
        let (number, outcome) = landed.context("writing a batch")?;
        outcome?;
        self.open.remove(&number);
        let first_open = self.open.first().copied().unwrap_or(u64::MAX);
        while self.starts.front().is_some_and(|(number, _)| *number <= first_open) {
            if let Some((_, line)) = self.starts.pop_front() {
                self.counts.resume.store(line, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    async fn land_all(&mut self) -> anyhow::Result<()> {
        let mut outcome = Ok(());
        while let Some(landed) = self.running.join_next().await {
            // What else is in flight is waited for too: it is done then, and not left half way.
            outcome = outcome.and(self.note(Some(landed)));
        }
        outcome
    }
}

async fn write_all(
    writer: &Arc<Writer>,
    mut input: mpsc::Receiver<Input>,
    counts: &Arc<Counts>,
    in_flight: usize,
) -> anyhow::Result<Outcome> {
    let mut flight = Flight {
        running: JoinSet::new(),
        open: BTreeSet::new(),
        starts: VecDeque::new(),
        counts: Arc::clone(counts),
    };
    let outcome = dispatch(writer, &mut input, &mut flight, in_flight).await;
    let landed = flight.land_all().await;
    let outcome = outcome?;
    landed.map(|()| outcome)
}

async fn dispatch(
    writer: &Arc<Writer>,
    input: &mut mpsc::Receiver<Input>,
    flight: &mut Flight,
    in_flight: usize,
) -> anyhow::Result<Outcome> {
    let mut number = 0;
    loop {
        // What lands is noted also while the input has nothing to give.
        let next = tokio::select! {
            landed = flight.running.join_next(), if !flight.running.is_empty() => {
                flight.note(landed)?;
                continue;
            }
            next = input.recv(), if flight.running.len() < in_flight => next,
        };
        let batch = match next.context("the input is no longer read")? {
            Input::Batch(batch) => batch,
            Input::Wrong(error) => return Err(error.into()),
            Input::Over(true) => return Ok(Outcome::Whole),
            Input::Over(false) => return Ok(Outcome::WithoutEnd),
        };
        let Some(first) = batch.items.first() else { continue };
        let (line, continues) = (first.line, first.continues);
        if continues && writer.replace || first.follows {
            // The record is cleared by a batch before, which must not take what this one writes; or this one builds on that.
            flight.land_all().await?;
        }
        flight.open.insert(number);
        if !continues {
            flight.starts.push_back((number, line));
        }
        let (writer, counts) = (Arc::clone(writer), Arc::clone(&flight.counts));
        flight.running.spawn(async move {
            let outcome = writer.write(&batch).await;
            if outcome.is_ok() {
                let records = batch.items.iter().filter(|item| !item.continues).count();
                counts.records.fetch_add(records as u64, Ordering::Relaxed);
                counts.bytes.fetch_add(batch.read, Ordering::Relaxed);
            }
            (number, outcome)
        });
        number += 1;
    }
}

impl Writer {
    async fn write(&self, batch: &Batch) -> anyhow::Result<()> {
        if self.replace {
            self.clear(&batch.items).await?;
        }
        let plain = batch.items.iter().filter(|item| !item.ops.is_empty());
        let plain = plain.map(|item| Line { number: item.line, key: &item.key, ops: item.ops.clone() });
        self.send(plain.collect(), None).await?;
        for round in 0.. {
            let lines: Vec<Line<'_>> = batch.items.iter().filter_map(|item| contested(item, round)).collect();
            if lines.is_empty() {
                return Ok(());
            }
            self.send(lines, Some(round)).await?;
        }
        unreachable!("no register has values without end")
    }

    /// Writes lines; those that are too much for one commit, in parts. A round of contested registers is written as by one
    /// who has seen what there was when the import began.
    async fn send(&self, lines: Vec<Line<'_>>, round: Option<usize>) -> anyhow::Result<()> {
        let seen = match (round, &self.seen) {
            (None, _) => None,
            (Some(_), Some(seen)) => Some(seen.as_str()),
            (Some(_), None) => bail!(
                "the node's token is too large for a header, so that siblings of registers cannot be written through it"
            ),
        };
        let mut parts = vec![lines];
        while let Some(lines) = parts.pop() {
            let (Some(first), Some(last)) = (lines.first(), lines.last()) else { continue };
            let mut key = format!("import-{}-{}-{}-{}", self.name, first.number, last.number, lines.len());
            if let (Some(round), Some(seen)) = (round, seen) {
                // A resumed import has seen more, and what is asked for on other terms is another request.
                key += &format!("-{round}-{}", &blake3::hash(seen.as_bytes()).to_hex()[..16]);
            }
            let mut headers = vec![("idempotency-key", key.as_str())];
            headers.extend(seen.map(|seen| ("godwit-seen", seen)));
            let writes =
                lines.iter().map(|line| write_json(line.key, &line.ops)).collect::<Result<Vec<_>, _>>()?;
            let answer = self.client.post("", body(&writes), &headers).await?;
            if answer.status == 200 {
                continue;
            }
            let refused = Refused::of(&answer, lines.len())?;
            let splits = refused.problem.r#type.ends_with("/too-large") && lines.len() > 1;
            if !splits {
                let line = refused.problem.write.and_then(|write| lines.get(write)).unwrap_or(first);
                bail!(
                    "line {}, record {:?}: {} ({})",
                    line.number,
                    line.key,
                    refused.problem.detail,
                    refused.problem.r#type
                );
            }
            let lines = lines.into_iter().enumerate();
            let mut left: Vec<Line<'_>> =
                lines.filter(|(write, _)| refused.writes.contains(write)).map(|(_, line)| line).collect();
            let second = left.split_off(left.len() / 2);
            parts.extend([second, left]);
        }
        Ok(())
    }

    /// Clears the records whose first lines these are, if there are any.
    async fn clear(&self, items: &[Item]) -> anyhow::Result<()> {
        let keys: BTreeSet<String> =
            items.iter().filter(|item| !item.continues).map(|item| item.key.clone()).collect();
        let keys: Vec<String> = keys.into_iter().collect();
        'attempt: for _ in 0..CLEARS_MAX {
            for read in self.client.records(&keys).await? {
                for records in chunks(&read.records) {
                    let writes = records.iter().map(clear_json).collect::<Result<Vec<_>, _>>()?;
                    let answer = self.client.post("", body(&writes), &[("godwit-seen", &read.token)]).await?;
                    if answer.status == 200 {
                        continue;
                    }
                    let problem = Refused::of(&answer, records.len())?.problem;
                    if problem.r#type.ends_with("/stale-seen") {
                        continue 'attempt;
                    }
                    let key = problem.write.and_then(|write| records.get(write)).map(|record| &record.key);
                    bail!("clearing {key:?}: {} ({})", problem.detail, problem.r#type);
                }
            }
            return Ok(());
        }
        bail!(
            "line {}: counters of this and the next records grew each time they were cleared: stop those who write to them",
            items[0].line
        )
    }
}

/// What a batch was refused for.
struct Refused {
    /// The first problem that more of the same would not cure, or else the first.
    problem: Problem,
    /// Indices of the writes that were refused.
    writes: BTreeSet<usize>,
}

impl Refused {
    fn of(answer: &Answer, writes: usize) -> anyhow::Result<Self> {
        let Some(results) = answer.results() else {
            return Ok(Self { problem: answer.problem()?, writes: (0..writes).collect() });
        };
        ensure!(results.len() == writes, "the node tells of {} writes of {writes}", results.len());
        let refused = results.into_iter().enumerate();
        let refused: Vec<(usize, Problem)> =
            refused.filter_map(|(write, result)| Some((write, result.problem?))).collect();
        let splits = |problem: &Problem| problem.r#type.ends_with("/too-large");
        let first = refused.iter().find(|(_, problem)| !splits(problem)).or(refused.first());
        let (_, problem) = first.context("the node refused a batch and none of its writes")?.clone();
        Ok(Self { problem, writes: refused.into_iter().map(|(write, _)| write).collect() })
    }
}

/// The operations of a line's registers with siblings in a round.
fn contested(item: &Item, round: usize) -> Option<Line<'_>> {
    let sets = item.contested.iter().filter_map(|(field, values)| {
        let field = serde_json::Value::from(field.as_str());
        values.get(round).map(|value| batch::set(&field, value))
    });
    let mut ops: Vec<String> = sets.collect();
    if ops.is_empty() {
        return None;
    }
    ops.extend(item.expires.clone());
    Some(Line { number: item.line, key: &item.key, ops: ops.join(",") })
}

/// Records in parts of a bounded number of fields.
fn chunks(records: &[Record]) -> Vec<&[Record]> {
    let (mut chunks, mut rest) = (Vec::new(), records);
    while !rest.is_empty() {
        let mut fields = 0;
        let fit = rest.iter().take_while(|record| {
            fields += record.fields.len();
            fields <= CLEARS_OF_A_REQUEST
        });
        let (chunk, more) = rest.split_at(fit.count().max(1));
        chunks.push(chunk);
        rest = more;
    }
    chunks
}

fn clear_json(record: &Record) -> Result<String, serde_json::Error> {
    let clear = |field: &String| {
        Ok::<_, serde_json::Error>(format!(r#"{{"op":"clear","field":{}}}"#, serde_json::to_string(field)?))
    };
    let mut ops = record.fields.keys().map(clear).collect::<Result<Vec<_>, _>>()?;
    if record.expires.is_some() {
        ops.push(r#"{"op":"persist"}"#.to_owned());
    }
    write_json(&record.key, &ops.join(","))
}

fn write_json(key: &str, ops: &str) -> Result<String, serde_json::Error> {
    Ok(format!(r#"{{"key":{},"ops":[{ops}]}}"#, serde_json::to_string(key)?))
}

fn body(writes: &[String]) -> String {
    format!(r#"{{"writes":[{}]}}"#, writes.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_to_resume_is_checked() {
        let resume: Resume = "0123456789abcdef:7".parse().unwrap();
        assert_eq!(resume, Resume { name: "0123456789abcdef".to_owned(), line: 7 });
        for bad in ["", "0123456789abcdef", "0123456789abcdef:", "0123456789abcde:7", "0123456789abcdeg:7"] {
            assert!(bad.parse::<Resume>().is_err(), "{bad}");
        }
    }
}
