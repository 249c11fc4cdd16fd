//! `POST /v1/{ns}`: many writes, or many reads, in one request.
//!
//! - *Writes* become one commit a partition, all submitted together, so that they share group commits. A commit is
//!   atomic: writes to records that share a tag in their keys happen together or not at all.
//! - What can be found wrong without looking at the data (form, names, limits) refuses the whole batch before
//!   anything is committed. What depends on the data refuses one partition's commit.
//! - The status tells the outcome of the whole. 200: every write is committed. 207: some are, and the others changed
//!   nothing. 4xx, or 5xx with `"applied": "no"`: nothing was committed. Other 5xx: of at least one write it is not
//!   known. Whenever commits were tried, `results` tells the outcome of each write.
//! - *Reads* see one state of the node. What does not exist is told as `null`.

use std::sync::Arc;
use std::task::Poll;

use axum::body::Body;
use axum::extract::{Extension, State};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::Response;
use godwit_core::ids::{Key, Namespace, RecordId};
use godwit_core::op::Reason;
use godwit_core::partition::CommitError;
use godwit_core::read;
use serde::Serialize;
use tokio::sync::OwnedSemaphorePermit;
use utoipa::ToSchema;

use super::contract::schemas;
use super::problem::Problem;
use super::request::{self, NamespacePath, Query};
use super::respond::Fetched;
use super::session::Session;
use super::view::{self, CommittedBody, RecordBody, RecordView, Shape, Viewer};
use super::{Api, respond};
use crate::node::StoreView;
use crate::node::{CommitFailure, Committed};

mod plan;

pub(super) use plan::schema;

use plan::{Batch, Commit, Plan};

/// What the answer may take for each write, besides its key.
const RESULT_BYTES_MAX: usize = 1_024;

/// The outcome of one write.
#[derive(Serialize)]
struct ResultBody<'a> {
    key: &'a str,
    #[serde(flatten)]
    outcome: OutcomeBody,
}

#[derive(Serialize, Clone)]
#[serde(untagged)]
enum OutcomeBody {
    Committed(CommittedBody),
    Refused { partition: u16, problem: Problem },
}

/// What became of the writes of a batch.
#[derive(Serialize, ToSchema)]
#[schema(as = WriteResults)]
pub(super) struct WritesBody<'a> {
    /// How many writes are not known to be committed.
    refused: usize,
    /// Of each write, in their order.
    #[schema(value_type = Vec<schemas::WriteResult>)]
    results: Vec<ResultBody<'a>>,
}

/// A problem, and the outcome of each write.
#[derive(Serialize)]
struct FailedBody<'a> {
    #[serde(flatten)]
    problem: &'a Problem,
    #[serde(flatten)]
    writes: WritesBody<'a>,
}

/// The records that a batch read.
#[derive(Serialize, ToSchema)]
#[schema(as = Records)]
pub(super) struct ReadsBody {
    /// In the order of their keys in the batch; null is one that is not there.
    #[schema(value_type = Vec<schemas::RecordOrNone>)]
    records: Vec<Option<RecordBody>>,
}

/// `POST`: a batch of writes or of reads.
#[utoipa::path(
    post, path = "/v1/{ns}", operation_id = "batch", tag = "records",
    params(
        ("numbers" = Option<schemas::NumbersForm>, Query, description = "Of reads: counters and uniques as strings."),
        ("view" = Option<schemas::RecordView>, Query, description = "Of reads: with types, siblings, and which commit each value is of."),
    ),
    request_body = schemas::Batch,
    responses(
        (status = 200, description = "All writes are committed, or the records.", body = schemas::BatchAnswer),
        (status = 207, description = "Some writes are committed; the others changed nothing.", body = WritesBody),
        (status = 400, description = "unknown-op", body = schemas::BatchProblem, content_type = "application/problem+json"),
        (status = 403, description = "quota-exceeded", body = schemas::BatchProblem, content_type = "application/problem+json"),
        (status = 409, description = "type-mismatch edit-refused missing-changes", body = schemas::BatchProblem, content_type = "application/problem+json"),
        (status = 413, description = "too-large", body = schemas::BatchProblem, content_type = "application/problem+json"),
        (status = 422, description = "invalid-document", body = schemas::BatchProblem, content_type = "application/problem+json"),
        (status = 429, description = "overloaded", body = schemas::BatchProblem, content_type = "application/problem+json"),
        (status = 500, description = "internal", body = schemas::BatchProblem, content_type = "application/problem+json"),
        (status = 503, description = "stopping", body = schemas::BatchProblem, content_type = "application/problem+json"),
    )
)]
pub(super) async fn post(
    State(api): State<Api>,
    Extension(session): Extension<Session>,
    NamespacePath(namespace): NamespacePath,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let shape = Shape::parse(&Query::of_data(uri.query(), &view::PARAMETERS)?)?;
    let request::Text { text, room } = request::text(&api, &headers, body).await?;
    match plan::parse(&text, api.node.limits())? {
        Batch::Reads(keys) => {
            drop((text, room));
            session.only_reads()?;
            reads(&api, &session, namespace, keys, shape).await
        }
        Batch::Writes(asked) => {
            drop(text);
            // They show nothing, so that no parameter has a meaning.
            Query::of_data(uri.query(), &[])?;
            let plan = plan::plan(&namespace, api.node.partitions(), asked, api.node.limits())?;
            writes(&api, &session, plan, room).await
        }
    }
}

async fn reads(
    api: &Api,
    session: &Session,
    namespace: Namespace,
    keys: Vec<Key>,
    shape: Shape,
) -> Result<Response, Problem> {
    let record = |key: &Key| RecordId { namespace: namespace.clone(), key: key.clone() };
    let ids: Arc<[RecordId]> = keys.iter().map(record).collect();
    let partitions = api.node.partitions();
    let homes = ids.iter().map(|id| id.partition(partitions)).collect();
    let (at, documents) = (api.node.read_at(), Arc::clone(api.node.documents()));
    let read = move |store: &StoreView<'_>, limits| {
        let fields = read::records(store, at, &ids, limits)?.into_iter().zip(ids.iter());
        let view = |(fields, id)| RecordView::of(fields, shape, store, at, id, (&documents, limits));
        fields.map(view).collect::<Result<Vec<_>, _>>()
    };
    let Fetched { views, room } = respond::fetch(api, session, &homes, read).await?;
    let viewer = Viewer::new(&api.node, shape, views.iter().flat_map(|view| &view.fields)).await;
    let show = |(key, view): (&Key, RecordView)| {
        let there = !view.fields.is_empty();
        there.then(|| viewer.record(key.as_str(), view, None)).transpose()
    };
    let records = keys.iter().zip(views).map(show).collect::<Result<_, _>>()?;
    respond::held(&ReadsBody { records }, room)
}

async fn writes(
    api: &Api,
    session: &Session,
    plan: Plan,
    body_room: Option<OwnedSemaphorePermit>,
) -> Result<Response, Problem> {
    let Plan { keys, commits } = plan;
    // Taken before anything is committed: what is committed can then be told.
    let bytes = keys.iter().map(|key| 2 * key.as_str().len() + RESULT_BYTES_MAX).sum();
    let room = respond::room(api, bytes).await?;
    let outcomes = commit_all(api, session, commits, body_room).await;

    let (verdict, writes) = judge(&keys, outcomes);
    match verdict {
        Verdict::All => respond::held(&writes, room),
        Verdict::Some => {
            let mut response = respond::held(&writes, room)?;
            *response.status_mut() = StatusCode::MULTI_STATUS;
            Ok(response)
        }
        Verdict::Failed(problem) => {
            let body = respond::body(&FailedBody { problem: &problem, writes }, room)?;
            Ok(problem.respond(body))
        }
    }
}

/// The outcome of a batch.
#[derive(Debug)]
enum Verdict {
    /// Every write is committed.
    All,
    /// Some are, and the others changed nothing.
    Some,
    /// None is, or there are writes of which it is not known.
    Failed(Problem),
}

fn judge(
    keys: &[Key],
    outcomes: Vec<(Commit, Result<Committed, CommitFailure>)>,
) -> (Verdict, WritesBody<'_>) {
    let mut results: Vec<Option<OutcomeBody>> = vec![None; keys.len()];
    // The first problem, one that leaves something unknown before all others.
    let mut worst: Option<Problem> = None;
    let (mut refused, mut committed_any) = (0, false);
    for (commit, outcome) in outcomes {
        let outcome = match outcome {
            Ok(committed) => {
                committed_any = true;
                OutcomeBody::Committed(committed.into())
            }
            Err(failure) => {
                let problem = place(&commit, failure);
                refused += commit.asked().count();
                if worst.as_ref().is_none_or(|worst| worst.changed_nothing() && !problem.changed_nothing()) {
                    worst = Some(problem.clone());
                }
                OutcomeBody::Refused { partition: commit.partition.0, problem }
            }
        };
        commit.asked().for_each(|write| results[write] = Some(outcome.clone()));
    }
    let results = keys.iter().zip(results).filter_map(|(key, outcome)| {
        // Every write is part of a commit.
        Some(ResultBody { key: key.as_str(), outcome: outcome? })
    });
    let verdict = match worst {
        None => Verdict::All,
        Some(problem) if committed_any && problem.changed_nothing() => Verdict::Some,
        Some(problem) => Verdict::Failed(problem),
    };
    (verdict, WritesBody { refused, results: results.collect() })
}

/// Submits all commits in their order before it waits for any, and waits for all.
async fn commit_all(
    api: &Api,
    session: &Session,
    commits: Vec<Commit>,
    mut room: Option<OwnedSemaphorePermit>,
) -> Vec<(Commit, Result<Committed, CommitFailure>)> {
    let mut tried = Vec::with_capacity(commits.len());
    let count = commits.len();
    for (i, mut commit) in commits.into_iter().enumerate() {
        let writes = std::mem::take(&mut commit.writes);
        // What the body takes is given back commit by commit.
        let share = room.as_mut().and_then(|room| room.split(room.num_permits() / (count - i)));
        tried.push((commit, Box::pin(session.commit(api, writes, share))));
    }
    // The first poll of each submits it.
    let mut outcomes: Vec<Option<Result<Committed, CommitFailure>>> = vec![None; count];
    std::future::poll_fn(|cx| {
        let mut all = Poll::Ready(());
        for ((_, trying), outcome) in tried.iter_mut().zip(&mut outcomes) {
            if outcome.is_none() {
                match trying.as_mut().poll(cx) {
                    Poll::Ready(done) => *outcome = Some(done),
                    Poll::Pending => all = Poll::Pending,
                }
            }
        }
        all
    })
    .await;
    let outcomes = outcomes.into_iter().map(|outcome| outcome.unwrap_or(Err(CommitFailure::Unknown)));
    tried.into_iter().map(|(commit, _)| commit).zip(outcomes).collect()
}

/// The problem of a commit, with its place in the request.
fn place(commit: &Commit, failure: CommitFailure) -> Problem {
    let at = match &failure {
        // The commit as a whole is too large, which no single operation is to blame for.
        CommitFailure::Refused(CommitError::Refused { refusal, .. })
            if matches!(refusal.reason, Reason::TooLarge { .. } | Reason::TooManyParts) =>
        {
            None
        }
        CommitFailure::Refused(CommitError::Refused { write, refusal }) => commit.locate(*write, refusal.op),
        _ => None,
    };
    let problem = Problem::from(failure).at_no_op();
    match at {
        Some((write, op)) => problem.at_write(write).at_op(op),
        None => problem,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::LimitsSection;
    use crate::node::Stopped;

    /// A batch of writes to five records, one a commit, with these outcomes: its verdict and what is told.
    fn judged(outcomes: [Result<(), CommitFailure>; 5]) -> (Verdict, serde_json::Value) {
        let write = |key| format!("{{\"key\":\"{key}\",\"ops\":[{{\"op\":\"enable\",\"field\":\"f\"}}]}}");
        let writes = ["{a}", "{b}", "{c}", "{d}", "{e}"].map(write).join(",");
        let limits = LimitsSection::default();
        let parsed = plan::parse(&format!("{{\"writes\":[{writes}]}}"), &limits).unwrap();
        let Batch::Writes(asked) = parsed else { panic!("it is a batch of writes") };
        let plan = plan::plan(&Namespace::new("ns").unwrap(), 4_096, asked, &limits).unwrap();
        assert_eq!(plan.commits.len(), 5, "each in a partition of its own");
        let outcomes = plan.commits.into_iter().zip(outcomes).map(|(commit, outcome)| {
            let partition = commit.partition;
            (
                commit,
                outcome.map(|()| Committed {
                    partition,
                    commit: None,
                    repeated: false,
                    seen: Default::default(),
                }),
            )
        });
        let (verdict, writes) = judge(&plan.keys, outcomes.collect());
        (verdict, serde_json::to_value(writes).unwrap())
    }

    fn statuses(told: &serde_json::Value) -> Vec<Option<u64>> {
        let results = told["results"].as_array().unwrap();
        results.iter().map(|result| result["problem"]["status"].as_u64()).collect()
    }

    #[test]
    fn the_status_never_promises_more_than_is_known() {
        let overloaded = || Err(CommitFailure::Overloaded);
        let stopped = || Err(CommitFailure::Stopped(Stopped));
        let unknown = || Err(CommitFailure::Unknown);

        let (verdict, told) = judged([Ok(()), Ok(()), Ok(()), Ok(()), Ok(())]);
        assert!(matches!(verdict, Verdict::All));
        assert_eq!((told["refused"].as_u64(), statuses(&told)), (Some(0), vec![None; 5]));

        let (verdict, told) = judged([overloaded(), Ok(()), stopped(), Ok(()), Ok(())]);
        assert!(matches!(verdict, Verdict::Some));
        assert_eq!(statuses(&told), [Some(429), None, Some(503), None, None]);
        assert_eq!((&told["refused"], &told["results"][0]["problem"]["applied"]), (&2.into(), &"no".into()));

        // Nothing was committed: a problem that may be retried as it says.
        let (verdict, told) = judged([overloaded(), overloaded(), stopped(), overloaded(), overloaded()]);
        let Verdict::Failed(problem) = verdict else { panic!("{verdict:?}") };
        assert!(problem.changed_nothing());
        assert_eq!((problem.respond(()).status().as_u16(), &told["refused"]), (429, &5.into()));

        // Something is not known: neither a success nor a promise that nothing was written.
        let first = overloaded();
        for others in [Ok(()), overloaded()] {
            let (verdict, told) = judged([first.clone(), others.clone(), unknown(), others, stopped()]);
            let Verdict::Failed(problem) = verdict else { panic!("{verdict:?}") };
            assert!(!problem.changed_nothing());
            assert_eq!(problem.respond(()).status().as_u16(), 500);
            assert_eq!(told["results"][2]["problem"]["applied"], "unknown");
        }
    }
}
