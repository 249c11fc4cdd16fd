//! The data that travels with the demo: a podcast directory's history (CC0 1.0) and posts with their votes (PDDL).
//! See `tests/data/README.md`.

use std::collections::BTreeMap;

use anyhow::{Context, bail};
use serde::Deserialize;

const HISTORY: &str = include_str!("../../../tests/data/awesome_podcasts.map.jsonl");
const DIRECTORY: &str = include_str!("../../../tests/data/awesome_podcasts.map.final.json");
const POSTS: &str = include_str!("../../../tests/data/podcasts.csv");

/// Everything, read.
#[derive(Debug)]
pub(super) struct Data {
    /// The history, parents first.
    pub(super) history: Vec<Commit>,
    /// How many people made it.
    pub(super) users: usize,
    /// The directory at its end: podcast → field → value.
    pub(super) directory: BTreeMap<String, BTreeMap<String, String>>,
    /// The posts.
    pub(super) posts: Vec<Post>,
}

/// A commit of the history.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Commit {
    /// Its number, from 0 without gaps.
    pub(super) i: usize,
    /// The commits that its author had.
    pub(super) parents: Vec<usize>,
    /// Where the author was.
    pub(super) region: String,
    /// `put key field value`, `del key`, `unset key field`.
    pub(super) ops: Vec<Vec<String>>,
}

/// A post and its votes.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Post {
    /// Its id.
    pub(super) id: String,
    /// Its title.
    pub(super) title: String,
    /// Votes for it.
    pub(super) ups: u32,
    /// Votes against it.
    pub(super) downs: u32,
    /// What must come out.
    pub(super) score: i64,
}

#[derive(Deserialize)]
struct Metadata {
    txns: usize,
    users: usize,
}

impl Data {
    pub(super) fn load() -> anyhow::Result<Self> {
        let mut lines = HISTORY.lines();
        let metadata: Metadata = serde_json::from_str(lines.next().unwrap_or_default())?;
        let history: Vec<Commit> =
            lines.map(serde_json::from_str).collect::<Result<_, _>>().context("reading the history")?;
        let in_order = |(i, commit): (usize, &Commit)| commit.i == i && commit.parents.iter().all(|&p| p < i);
        if history.len() != metadata.txns || !history.iter().enumerate().all(in_order) {
            bail!("the history is not whole and in order");
        }
        let directory = serde_json::from_str(DIRECTORY).context("reading the directory")?;
        let posts = csv::Reader::from_reader(POSTS.as_bytes());
        let posts = posts.into_deserialize().collect::<Result<_, _>>().context("reading the posts")?;
        Ok(Self { history, users: metadata.users, directory, posts })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_data_is_what_the_readme_says() {
        let data = Data::load().unwrap();
        assert_eq!(
            (data.history.len(), data.users, data.directory.len(), data.posts.len()),
            (672, 225, 293, 1000)
        );
        assert!(data.posts.iter().all(|post| post.score == i64::from(post.ups) - i64::from(post.downs)));
    }
}
