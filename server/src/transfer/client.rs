//! The node that is read or written, over HTTP.
//!
//! A request is tried again if the node could not be reached, gave no whole answer, or says to come again (408, 429, 5xx), up
//! to [`ATTEMPTS_MAX`] times. So only what may be repeated is sent from here: reads, writes under an idempotency key, and
//! clears of what was seen.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use godwit_core::ids::Namespace;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// How long the node may take to accept a connection.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// How long the node may take for one answer.
const ANSWER_MAX: Duration = Duration::from_secs(60);
/// How often a request is tried. With the pauses it gives a node that is up again within two minutes its chance.
const ATTEMPTS_MAX: usize = 30;
/// Pauses between attempts: each is twice the one before.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// From which attempt on the retries are told.
const ATTEMPTS_QUIET: usize = 5;
/// Bytes of an answer that is not understood that are shown.
const SHOWN_BYTES_MAX: usize = 500;

/// A namespace of a node.
#[derive(Debug, Clone)]
pub(super) struct Client {
    http: reqwest::Client,
    url: String,
    namespace: Namespace,
}

/// An answer that is not to be asked for again.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) token: Option<String>,
    body: Bytes,
    what: String,
}

/// What was refused.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Problem {
    pub(super) r#type: String,
    pub(super) status: u16,
    pub(super) detail: String,
    /// The index of the write to blame.
    pub(super) write: Option<usize>,
    /// The limit that was exceeded.
    pub(super) limit: Option<String>,
}

/// The part of a batch's answer that is read.
#[derive(Debug, Deserialize)]
pub(super) struct Results {
    #[serde(default)]
    pub(super) results: Vec<WriteResult>,
}

/// The outcome of one write.
#[derive(Debug, Deserialize)]
pub(super) struct WriteResult {
    /// Absent if it is committed.
    pub(super) problem: Option<Problem>,
}

/// Who a node is.
#[derive(Debug, Deserialize)]
pub(super) struct Node {
    pub(super) cluster: String,
    pub(super) node: String,
}

/// A page of a list of keys.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Keys {
    pub(super) keys: Vec<String>,
    pub(super) next: Option<String>,
}

/// A record in the full view.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    pub(super) key: String,
    pub(super) fields: std::collections::BTreeMap<String, FieldView>,
    /// When it expires.
    pub(super) expires: Option<String>,
    #[serde(default, rename = "truncated")]
    _truncated: serde::de::IgnoredAny,
}

/// A field in the full view.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FieldView {
    pub(super) r#type: String,
    pub(super) value: Box<RawValue>,
    #[serde(default)]
    pub(super) siblings: Vec<Box<RawValue>>,
    #[serde(default)]
    pub(super) truncated: bool,
    /// Of a document; told again with its changes.
    #[serde(default, rename = "heads")]
    _heads: serde::de::IgnoredAny,
    #[serde(rename = "updated")]
    _updated: serde::de::IgnoredAny,
    #[serde(default)]
    pub(super) others: Vec<FieldView>,
}

/// Records read at one moment, and the token of that.
#[derive(Debug)]
pub(super) struct Read {
    pub(super) token: String,
    pub(super) records: Vec<Record>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RecordsAnswer {
    records: Vec<Option<Record>>,
}

#[derive(Serialize)]
struct Reads<'a> {
    reads: &'a [String],
}

impl Client {
    pub(super) fn new(url: &str, namespace: &str) -> anyhow::Result<Self> {
        let url = url.trim_end_matches('/').to_owned();
        ensure!(
            url.starts_with("http://"),
            "{url:?} is not the URL of a node's API: it looks like http://127.0.0.1:7400"
        );
        let http = reqwest::Client::builder().no_proxy().connect_timeout(CONNECT_MAX).timeout(ANSWER_MAX);
        let http = http.build().context("making an HTTP client")?;
        Ok(Self { http, url, namespace: Namespace::new(namespace)? })
    }

    pub(super) fn namespace(&self) -> &str {
        self.namespace.as_str()
    }

    /// Who the node is. Asked once, so that a wrong address is told at once.
    pub(super) async fn node(&self) -> anyhow::Result<Node> {
        let unreachable =
            || format!("{} does not answer. Is it up, and is this the address of its API?", self.url);
        let sent = self.http.get(format!("{}/v1/_cluster", self.url)).send();
        let answer = sent.await.with_context(unreachable)?;
        let body = answer.bytes().await.with_context(unreachable)?;
        serde_json::from_slice(&body).with_context(|| format!("{} is not the API of a node", self.url))
    }

    /// A page of keys, and the token of the list.
    pub(super) async fn keys(
        &self,
        prefix: &str,
        after: &str,
        limit: usize,
    ) -> anyhow::Result<(Keys, Option<String>)> {
        let (prefix, after) = (encoded(prefix), encoded(after));
        let answer = self.get(&format!("?prefix={prefix}&after={after}&limit={limit}")).await?;
        Ok((answer.json()?, answer.token))
    }

    /// Records in the full view, in the order of the keys; those that do not exist are left out. What is too large for one
    /// answer is read in parts.
    pub(super) async fn records(&self, keys: &[String]) -> anyhow::Result<Vec<Read>> {
        let (mut reads, mut parts) = (Vec::new(), vec![keys]);
        while let Some(keys) = parts.pop() {
            if keys.is_empty() {
                continue;
            }
            let body = serde_json::to_string(&Reads { reads: keys })?;
            let answer = self.post("?view=full", body, &[]).await?;
            if answer.status == 413 && answer.problem()?.limit.as_deref() == Some("answer") {
                ensure!(
                    keys.len() > 1,
                    "the record {:?} is too large to be read whole: raise limits.answer_bytes of the node",
                    keys[0]
                );
                let (first, second) = keys.split_at(keys.len() / 2);
                parts.extend([second, first]);
                continue;
            }
            let RecordsAnswer { records } = answer.json()?;
            let token = answer.token.context("the node's answer to a read carries no token")?;
            reads.push(Read { token, records: records.into_iter().flatten().collect() });
        }
        Ok(reads)
    }

    /// Reads something below the namespace.
    pub(super) async fn get(&self, path: &str) -> anyhow::Result<Answer> {
        self.ask(|| self.http.get(self.address(path)), path).await
    }

    /// The answer to a batch, which may be a refusal.
    pub(super) async fn post(
        &self,
        path: &str,
        body: String,
        headers: &[(&str, &str)],
    ) -> anyhow::Result<Answer> {
        let body = Bytes::from(body);
        let request = || {
            let request = self.http.post(self.address(path)).header("content-type", "application/json");
            let request =
                headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
            request.body(body.clone())
        };
        self.ask(request, path).await
    }

    fn address(&self, path: &str) -> String {
        format!("{}/v1/{}{path}", self.url, self.namespace.as_str())
    }

    async fn ask(&self, request: impl Fn() -> reqwest::RequestBuilder, path: &str) -> anyhow::Result<Answer> {
        let mut pause = PAUSE_FIRST;
        for attempt in 1.. {
            let (said, wait) = match send(request()).await {
                Ok((answer, _)) if !answer.is_to_be_repeated() => return Ok(answer),
                Ok((answer, wait)) => (format!("it answers {}", answer.what), wait),
                Err(error) => (format!("{:#}", anyhow::Error::from(error)), Duration::ZERO),
            };
            if attempt == ATTEMPTS_MAX {
                bail!("{} did not do {path:?} in {ATTEMPTS_MAX} attempts: {said}", self.address(""));
            }
            if attempt >= ATTEMPTS_QUIET {
                eprintln!("{} is asked again: {said}", self.url);
            }
            tokio::time::sleep(pause.max(wait.min(PAUSE_MAX))).await;
            pause = PAUSE_MAX.min(pause * 2);
        }
        unreachable!("the loop ends by itself")
    }
}

async fn send(request: reqwest::RequestBuilder) -> Result<(Answer, Duration), reqwest::Error> {
    let answer = request.send().await?;
    let header = |name| answer.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let (token, retry_after) = (header("godwit-token"), header("retry-after"));
    let seconds = retry_after.and_then(|seconds| seconds.parse().ok()).unwrap_or(0);
    let status = answer.status().as_u16();
    let body = answer.bytes().await?;
    let shown = String::from_utf8_lossy(&body[..body.len().min(SHOWN_BYTES_MAX)]).into_owned();
    let what = format!("{status}: {shown}");
    Ok((Answer { status, token, body, what }, Duration::from_secs(seconds)))
}

impl Answer {
    /// Whether the node says, of the whole or of a part, that it may be asked again.
    fn is_to_be_repeated(&self) -> bool {
        match self.status {
            207 => self
                .results()
                .iter()
                .flatten()
                .any(|result| result.problem.as_ref().is_some_and(|problem| is_passing(problem.status))),
            status => is_passing(status),
        }
    }

    /// What became of each write, if commits were tried.
    pub(super) fn results(&self) -> Option<Vec<WriteResult>> {
        let Results { results } = serde_json::from_slice(&self.body).ok()?;
        (!results.is_empty()).then_some(results)
    }

    /// The body of an answer of 200.
    pub(super) fn json<T: DeserializeOwned>(&self) -> anyhow::Result<T> {
        ensure!(self.status == 200, "the node answers {}", self.what);
        serde_json::from_slice(&self.body).with_context(|| {
            format!("the node's answer has what this version of godwit does not know: use the node's version of it ({})", self.what)
        })
    }

    /// The body of a refusal.
    pub(super) fn problem(&self) -> anyhow::Result<Problem> {
        serde_json::from_slice(&self.body).with_context(|| format!("the node answers {}", self.what))
    }
}

fn is_passing(status: u16) -> bool {
    matches!(status, 408 | 429 | 500..)
}

/// A name as a part of an address.
pub(super) fn encoded(name: &str) -> String {
    utf8_percent_encode(name, NON_ALPHANUMERIC).to_string()
}
