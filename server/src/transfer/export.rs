//! Reading a namespace: lists of keys, records in the full view, and the rest of large sets page by page.
//!
//! Keys are listed ahead of the records that are read, and records ahead of the lines that are written, [`PAGES_AHEAD`]
//! pages at most. Each record is of one moment (a large set is not); the export as a whole is not.

use std::collections::VecDeque;
use std::io::{self, BufWriter, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use anyhow::{Context, bail, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;

use super::client::{Client, FieldView, Read, encoded};
use super::line::{End, FORMAT, FieldLine, Header, RecordLine, Totals};
use super::progress::{Counts, Progress};
use crate::http::time::rfc3339_system;

/// Keys of a page, and records of one request: the most that the API gives.
const PAGE: usize = 1_000;
/// Pages of records that are read ahead of the lines written.
const PAGES_AHEAD: usize = 3;
/// After so many fields or bytes of them a record goes on in another line.
const LINE_FIELDS: usize = 500;
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

/// The part of a page of a set that is read.
#[derive(Deserialize)]
struct MembersPage {
    value: Vec<String>,
    next: Option<String>,
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
                write_record(client, record.key, record.fields.into_iter(), output)
                    .await
                    .with_context(|| format!("the record {key:?}"))?;
                output.last = Some(key);
                output.totals.records += 1;
                output.counts.records.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

async fn write_record<W: Write>(
    client: &Client,
    key: String,
    fields: impl Iterator<Item = (String, FieldView)>,
    output: &mut Output<W>,
) -> anyhow::Result<()> {
    let mut line = RecordLine { key, continues: false, fields: Vec::new() };
    let mut bytes = 0;
    for (field, mut view) in fields {
        let others = std::mem::take(&mut view.others);
        let mut shadowed = false;
        for view in std::iter::once(view).chain(others) {
            output.crowded += u64::from(view.siblings.len() >= SIBLINGS_SHOWN);
            let truncated = view.truncated;
            let part = part(&field, view, shadowed)?;
            let size = size(&part);
            // A line holds what fits, and at least one field.
            if line.fields.len() >= LINE_FIELDS || (bytes + size > LINE_BYTES && !line.fields.is_empty()) {
                output.part(&mut line)?;
                bytes = 0;
            }
            let last = part.members.last().cloned();
            line.fields.push(part);
            bytes += size;
            let mut next = last.filter(|_| truncated);
            while let Some(after) = next {
                output.part(&mut line)?;
                bytes = 0;
                let page: MembersPage = members(client, &line.key, &field, &after).await?;
                ensure!(page.next.as_ref().is_none_or(|next| *next > after), "a set is paged in no order");
                next = page.next;
                if !page.value.is_empty() {
                    bytes = page.value.iter().map(String::len).sum();
                    let r#type = "set".to_owned();
                    let (field, members) = (field.clone(), page.value);
                    let part = FieldLine { field, r#type, value: None, siblings: vec![], members, shadowed };
                    line.fields.push(part);
                }
            }
            shadowed = true;
        }
    }
    output.part(&mut line)
}

/// A page of a set. One that is gone by now has no more members.
async fn members(client: &Client, key: &str, field: &str, after: &str) -> anyhow::Result<MembersPage> {
    let (key, field, after) = (encoded(key), encoded(field), encoded(after));
    let answer = client.get(&format!("/{key}/{field}?after={after}&limit={PAGE}")).await?;
    match answer.status {
        404 | 409 => Ok(MembersPage { value: Vec::new(), next: None }),
        _ => answer.json(),
    }
}

fn part(field: &str, view: FieldView, shadowed: bool) -> anyhow::Result<FieldLine> {
    let FieldView { r#type, value, siblings, .. } = view;
    let (mut kept, mut members) = (None, Vec::new());
    match r#type.as_str() {
        "register" | "counter" => kept = Some(value),
        "flag" => {}
        "set" => members = serde_json::from_str(value.get()).context("a set that is no array of strings")?,
        _ => bail!(
            "the field {field:?} has the type {:?}, which this version of godwit cannot export: use the node's version of it",
            r#type
        ),
    }
    Ok(FieldLine { field: field.to_owned(), r#type, value: kept, siblings, members, shadowed })
}

fn size(part: &FieldLine) -> usize {
    let values = part.value.iter().chain(&part.siblings).map(|value| value.get().len()).sum::<usize>();
    part.field.len() + values + part.members.iter().map(String::len).sum::<usize>()
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
