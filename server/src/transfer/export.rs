//! Reading a namespace: lists of keys, records in the full view, and the rest of large sets and zsets page by page.
//!
//! Keys are listed ahead of the records that are read, and records ahead of the lines that are written, [`PAGES_AHEAD`]
//! pages at most. Each record is of one moment (a large set is not); the export as a whole is not.

use std::collections::{BTreeSet, VecDeque};
use std::io::{self, BufWriter, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use anyhow::{Context, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use godwit_core::document::Encoded;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::task::JoinHandle;

use super::client::{Client, FieldView, Read, Record, encoded};
use super::line::{End, FORMAT, FieldLine, Header, RecordLine, Totals};
use super::progress::{Counts, Progress};
use crate::http::time::rfc3339_system;

/// Keys of a page, and records of one request: the most that the API gives.
const PAGE: usize = 1_000;
/// Pages of records that are read ahead of the lines written.
const PAGES_AHEAD: usize = 3;
/// After so many fields, members of them or bytes a record goes on in another line: one can be imported in a commit.
const LINE_FIELDS: usize = 500;
const LINE_MEMBERS: usize = 1_000;
const LINE_BYTES: usize = 1024 * 1024;
/// Siblings of a register that a read shows at most.
const SIBLINGS_SHOWN: usize = godwit_core::read::SIBLINGS_MAX;

/// What is asked of `godwit export`.
#[derive(Debug, Args)]
pub struct ExportArguments {
    /// The API of a node, like http://127.0.0.1:7400.
    #[arg(value_name = "URL")]
    pub url: String,
    /// The namespace.
    pub namespace: String,
    /// Only records whose keys begin so.
    #[arg(long, default_value = "")]
    pub prefix: String,
    /// Only records whose keys come after this one: to go on where an export broke off, into another file.
    #[arg(long, default_value = "", value_name = "KEY")]
    pub after: String,
    /// Says nothing on standard error but errors.
    #[arg(long)]
    pub quiet: bool,
}

/// The part of a page of a set or zset that is read.
#[derive(Deserialize)]
struct Page<T> {
    value: Vec<T>,
    next: Option<String>,
}

/// A member of a zset, and its score.
type Scored = (String, Box<RawValue>);

/// What a unique is read by.
#[derive(Deserialize)]
struct Ranks {
    ranks: Vec<(u16, u8)>,
}

/// Where lines go, and what was written.
struct Output<W: Write> {
    to: W,
    counts: Arc<Counts>,
    totals: Totals,
    /// The last record written whole.
    last: Option<String>,
    /// Registers with as many siblings as a read shows: there may be more.
    crowded: u64,
}

/// Writes a namespace to standard output.
pub async fn run(arguments: &ExportArguments) -> anyhow::Result<()> {
    let client = Client::new(&arguments.url, &arguments.namespace)?;
    let node = client.node().await?;
    let counts = Arc::new(Counts::default());
    let progress = Progress::begin(&counts, arguments.quiet, None);
    let to = BufWriter::new(io::stdout().lock());
    let mut output = Output { to, counts, totals: Totals::default(), last: None, crowded: 0 };
    output.line(&Header {
        godwit_export: FORMAT,
        cluster: node.cluster,
        node: node.node,
        namespace: client.namespace().to_owned(),
        time: rfc3339_system(SystemTime::now()),
        prefix: arguments.prefix.clone(),
        after: arguments.after.clone(),
    })?;
    let outcome = write_all(&client, arguments, &mut output).await;
    if let Err(error) = outcome {
        // What is written stays of use: the file lacks its end, and says so to an import.
        let _ = output.to.flush();
        let hint = match &output.last {
            Some(last) => format!("; to go on, write another file with --after {last:?}"),
            None => String::new(),
        };
        return Err(error.context(format!("the export broke off after {}{hint}", progress.told())));
    }
    let end = End { end: output.totals };
    output.line(&end)?;
    output.to.flush().context("writing to standard output")?;
    if output.crowded > 0 {
        eprintln!(
            "{} registers have {SIBLINGS_SHOWN} siblings, the most that a read shows: they may have more, which are not in the export",
            output.crowded
        );
    }
    if !arguments.quiet {
        eprintln!("exported {}", progress.told());
    }
    Ok(())
}

async fn write_all<W: Write>(
    client: &Client,
    arguments: &ExportArguments,
    output: &mut Output<W>,
) -> anyhow::Result<()> {
    let mut after = Some(arguments.after.clone());
    let mut pages: VecDeque<JoinHandle<anyhow::Result<Vec<Read>>>> = VecDeque::new();
    loop {
        while pages.len() < PAGES_AHEAD
            && let Some(from) = after.take()
        {
            let (keys, _) = client.keys(&arguments.prefix, &from, PAGE).await?;
            after = keys.next;
            ensure!(after.as_ref().is_none_or(|next| *next > from), "the node lists keys in no order");
            let client = client.clone();
            pages.push_back(tokio::spawn(async move { client.records(&keys.keys).await }));
        }
        let Some(page) = pages.pop_front() else { return Ok(()) };
        for read in page.await.context("reading records")?? {
            for record in read.records {
                let key = record.key.clone();
                write_record(client, record, output).await.with_context(|| format!("the record {key:?}"))?;
                output.last = Some(key);
                output.totals.records += 1;
                output.counts.records.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

async fn write_record<W: Write>(
    client: &Client,
    record: Record,
    output: &mut Output<W>,
) -> anyhow::Result<()> {
    let Record { key, fields, expires, .. } = record;
    let mut line = RecordLine { key, continues: false, expires, fields: Vec::new() };
    let (mut bytes, mut members) = (0, 0);
    for (field, mut view) in fields {
        let others = std::mem::take(&mut view.others);
        let mut shadowed = false;
        for view in std::iter::once(view).chain(others) {
            output.crowded += u64::from(view.siblings.len() >= SIBLINGS_SHOWN);
            let mut parts = Parts::of(&field, view, shadowed)?;
            while let Some(part) = parts.next(client, &line.key).await? {
                let of_part = part.members.len() + part.scores.len() + part.ranks.len() + part.changes.len();
                (bytes, members) = (bytes + size(&part), members + of_part);
                // A line holds what fits, and at least one field.
                let is_full =
                    line.fields.len() >= LINE_FIELDS || members > LINE_MEMBERS || bytes > LINE_BYTES;
                if is_full && !line.fields.is_empty() {
                    output.part(&mut line)?;
                    (bytes, members) = (size(&part), of_part);
                }
                line.fields.push(part);
            }
            shadowed = true;
        }
    }
    output.part(&mut line)
}

/// A field, a part at a time.
struct Parts {
    field: String,
    r#type: String,
    shadowed: bool,
    /// The part that is there already.
    first: Option<FieldLine>,
    rest: Rest,
    /// Of a document: what was read so far.
    heads: Vec<String>,
}

/// What there is of a field beyond what the record's read showed.
enum Rest {
    Nothing,
    /// Members after one.
    Members(String),
    /// Members after one, or all, and their scores.
    Scores(Option<String>),
    /// All registers, of which so many are told.
    Ranks(usize),
    /// Changes of a document, the last first; and whether there are more.
    Changes(Vec<Encoded>, bool),
}

impl Parts {
    fn of(field: &str, view: FieldView, shadowed: bool) -> anyhow::Result<Self> {
        let FieldView { r#type, value, siblings, truncated, .. } = view;
        let (field, mut rest) = (field.to_owned(), Rest::Nothing);
        let mut part = FieldLine { field: field.clone(), r#type, siblings, shadowed, ..FieldLine::default() };
        match part.r#type.as_str() {
            "register" | "counter" => part.value = Some(value),
            "flag" => {}
            "set" => {
                part.members =
                    serde_json::from_str(value.get()).context("a set that is no array of strings")?;
                if let Some(last) = part.members.last().filter(|_| truncated) {
                    rest = Rest::Members(last.clone());
                }
            }
            // What is shown is the beginning by rank, and pages go by member.
            "zset" if truncated => rest = Rest::Scores(None),
            "zset" => {
                part.scores =
                    serde_json::from_str(value.get()).context("a zset that is no array of pairs")?;
            }
            "unique" => rest = Rest::Ranks(0),
            "document" => rest = Rest::Changes(Vec::new(), true),
            _ => bail!(
                "the field {field:?} has the type {:?}, which this version of godwit cannot export: use the node's version of it",
                part.r#type
            ),
        }
        let r#type = part.r#type.clone();
        let first = (!matches!(rest, Rest::Scores(_) | Rest::Ranks(_) | Rest::Changes(..))).then_some(part);
        Ok(Self { field, r#type, shadowed, first, rest, heads: Vec::new() })
    }

    async fn next(&mut self, client: &Client, key: &str) -> anyhow::Result<Option<FieldLine>> {
        if let Some(first) = self.first.take() {
            return Ok(Some(first));
        }
        let Self { field, r#type, shadowed, .. } = self;
        let mut part = FieldLine {
            field: field.clone(),
            r#type: r#type.clone(),
            shadowed: *shadowed,
            ..FieldLine::default()
        };
        let path = format!("/{}/{}", encoded(key), encoded(field));
        loop {
            match std::mem::replace(&mut self.rest, Rest::Nothing) {
                Rest::Nothing => return Ok(None),
                Rest::Members(after) => {
                    let page: Page<String> = page(client, &path, Some(&after)).await?;
                    (part.members, self.rest) = (page.value, page.next.map_or(Rest::Nothing, Rest::Members));
                }
                Rest::Scores(after) => {
                    let page: Page<Scored> = page(client, &path, after.as_deref()).await?;
                    let more = |next| Rest::Scores(Some(next));
                    (part.scores, self.rest) = (page.value, page.next.map_or(Rest::Nothing, more));
                }
                Rest::Changes(mut left, more) => {
                    if left.is_empty() {
                        if !more {
                            continue;
                        }
                        let answer = client
                            .get(&format!("{path}?view=changes&since={}", self.heads.join(",")))
                            .await?;
                        if is_gone(answer.status) {
                            continue;
                        }
                        let Changes { changes, truncated } = answer.json()?;
                        left = read_changes(changes)?;
                        self.heads = heads(std::mem::take(&mut self.heads), &left);
                        left.reverse();
                        self.rest = Rest::Changes(left, truncated);
                        continue;
                    }
                    let mut bytes = 0;
                    while let Some(change) = left.last()
                        && part.changes.len() < LINE_MEMBERS
                        && (part.changes.is_empty() || bytes + change.bytes.len() <= LINE_BYTES / 2)
                    {
                        bytes += change.bytes.len();
                        part.changes.extend(left.pop().map(|change| STANDARD.encode(change.bytes)));
                    }
                    self.rest = Rest::Changes(left, more);
                }
                Rest::Ranks(told) => {
                    let answer = client.get(&format!("{path}?view=ranks")).await?;
                    let ranks =
                        if is_gone(answer.status) { Vec::new() } else { answer.json::<Ranks>()?.ranks };
                    part.ranks = ranks.iter().skip(told).take(PAGE).copied().collect();
                    if ranks.len() > told + PAGE {
                        self.rest = Rest::Ranks(told + PAGE);
                    }
                }
            }
            if !part.changes.is_empty() {
                return Ok(Some(part));
            }
            // A page may be empty although there is a next one.
            if !(part.members.is_empty() && part.scores.is_empty() && part.ranks.is_empty()) {
                return Ok(Some(part));
            }
        }
    }
}

/// A part of a document's changes.
#[derive(Deserialize)]
struct Changes {
    changes: Vec<String>,
    #[serde(default)]
    truncated: bool,
}

fn read_changes(changes: Vec<String>) -> anyhow::Result<Vec<Encoded>> {
    let read = |text: String| Ok(Encoded::parse(STANDARD.decode(text)?)?);
    changes
        .into_iter()
        .map(read)
        .collect::<anyhow::Result<_>>()
        .context("the node tells of a change that is none")
}

/// The heads of what has these ones and more changes.
fn heads(before: Vec<String>, more: &[Encoded]) -> Vec<String> {
    let deps: BTreeSet<String> =
        more.iter().flat_map(|encoded| &encoded.change.deps).map(ToString::to_string).collect();
    let new = more.iter().map(|encoded| encoded.change.hash.to_string());
    before.into_iter().chain(new).filter(|hash| !deps.contains(hash)).collect()
}

/// A page of a set or zset. One that is gone by now has no more members.
async fn page<T: DeserializeOwned>(
    client: &Client,
    path: &str,
    after: Option<&str>,
) -> anyhow::Result<Page<T>> {
    let from = after.map_or_else(String::new, |after| format!("&after={}", encoded(after)));
    let answer = client.get(&format!("{path}?limit={PAGE}{from}")).await?;
    if is_gone(answer.status) {
        return Ok(Page { value: Vec::new(), next: None });
    }
    let page: Page<T> = answer.json()?;
    let is_later = page.next.as_deref().is_none_or(|next| after.is_none_or(|after| next > after));
    ensure!(is_later, "members are paged in no order");
    Ok(page)
}

/// Whether a field is not there any more, or has become another type.
fn is_gone(status: u16) -> bool {
    matches!(status, 404 | 409)
}

fn size(part: &FieldLine) -> usize {
    let values = part.value.iter().chain(&part.siblings).map(|value| value.get().len()).sum::<usize>();
    let scores = part.scores.iter().map(|(member, score)| member.len() + score.get().len()).sum::<usize>();
    part.field.len()
        + values
        + scores
        + part.members.iter().map(String::len).sum::<usize>()
        + 8 * part.ranks.len()
        + part.changes.iter().map(String::len).sum::<usize>()
}

impl<W: Write> Output<W> {
    /// Writes what there is of a record, which then continues.
    fn part(&mut self, line: &mut RecordLine) -> anyhow::Result<()> {
        if line.fields.is_empty() {
            return Ok(());
        }
        self.line(line)?;
        self.totals.lines += 1;
        line.continues = true;
        line.fields.clear();
        Ok(())
    }

    fn line(&mut self, line: &impl Serialize) -> anyhow::Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        self.counts.bytes.fetch_add(text.len() as u64, Ordering::Relaxed);
        self.to.write_all(&text).context("writing to standard output")
    }
}
