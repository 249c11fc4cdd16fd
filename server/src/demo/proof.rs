//! The end, proved in every region by reading over HTTP.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, bail, ensure};
use reqwest::StatusCode;
use serde::Deserialize;
use serde_json::Value;

use super::data::Data;
use super::votes::{Votes, post_url};
use super::{cluster, trace};

#[derive(Debug, Deserialize)]
struct Record {
    fields: BTreeMap<String, Value>,
}

/// Proves everything; says what was proved, a line each.
pub(super) async fn prove(data: &Data, urls: &[String], votes: &Votes) -> anyhow::Result<Vec<String>> {
    ensure!(votes.failed() == 0, "{} votes failed", votes.failed());
    let client = reqwest::Client::new();
    let mut digests = BTreeSet::new();
    for (i, url) in urls.iter().enumerate() {
        let name = cluster::REGIONS[i].name;
        directory(&client, url, data).await.with_context(|| format!("the directory in {name}"))?;
        scores(&client, url, data).await.with_context(|| format!("the scores in {name}"))?;
        let answer = cluster::ask(&client, url, "?digests=true").await?;
        digests.insert(answer.digests.context("no digests")?.all);
    }
    ensure!(digests.len() == 1, "the digests of the regions differ: {digests:?}");
    let digest = digests.into_iter().next().unwrap_or_default();
    Ok(vec![
        format!("the directory equals the recorded one: {} podcasts", data.directory.len()),
        format!(
            "every score equals ups - downs: {} posts, {} votes, none lost, none counted twice",
            data.posts.len(),
            votes.total()
        ),
        format!("the digests of all data are equal: {}", &digest[..16.min(digest.len())]),
    ])
}

async fn directory(client: &reqwest::Client, url: &str, data: &Data) -> anyhow::Result<()> {
    let touched = data.history.iter().flat_map(|commit| &commit.ops).filter_map(|op| op.get(1));
    for key in touched.collect::<BTreeSet<_>>() {
        let found = read(client, &trace::record_url(url, key)).await?;
        match (data.directory.get(key), found) {
            (None, None) => {}
            (None, Some(found)) => bail!("{key:?} should be gone, but reads {:?}", found.fields),
            (Some(_), None) => bail!("{key:?} is missing"),
            (Some(expected), Some(found)) => {
                let expected: BTreeMap<&str, Value> = expected
                    .iter()
                    .map(|(field, value)| (field.as_str(), Value::from(value.as_str())))
                    .collect();
                let same = expected.len() == found.fields.len()
                    && expected.iter().all(|(field, value)| found.fields.get(*field) == Some(value));
                ensure!(same, "{key:?} reads {:?}, should be {expected:?}", found.fields);
            }
        }
    }
    Ok(())
}

async fn scores(client: &reqwest::Client, url: &str, data: &Data) -> anyhow::Result<()> {
    for post in &data.posts {
        let Some(record) = read(client, &post_url(url, &post.id)).await? else {
            bail!("post {} is missing", post.id)
        };
        let number = |field: &str| record.fields.get(field).and_then(Value::as_i64).unwrap_or(0);
        let found = (number("ups"), number("downs"), number("score"));
        let expected = (i64::from(post.ups), i64::from(post.downs), post.score);
        ensure!(
            found == expected,
            "post {}: ups, downs, score are {found:?}, should be {expected:?}",
            post.id
        );
        ensure!(
            record.fields.get("title") == Some(&Value::from(post.title.as_str())),
            "post {}: another title",
            post.id
        );
    }
    Ok(())
}

async fn read(client: &reqwest::Client, url: &str) -> anyhow::Result<Option<Record>> {
    let answer = client.get(url).send().await?;
    if answer.status() == StatusCode::NOT_FOUND {
        return Ok(None);
    }
    Ok(Some(answer.error_for_status()?.json().await?))
}
