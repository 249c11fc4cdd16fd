//! One client's exchange about one document: what it sends is committed like any other write, and what the store has is told.

use std::sync::Arc;
use std::time::Duration;

use godwit_core::document::{Document, Encoded, SyncMessage, SyncState, Unmade};
use godwit_core::ids::{Namespace, RecordId};
use godwit_core::op::{Op, Reason, Terms, Write};
use godwit_core::partition::CommitError;
use godwit_core::read;

use super::super::documents::parts;
use super::super::problem::{Kind, Problem};
use super::super::{Api, admission};
use super::rooms::Name;
use crate::node::{CommitFailure, ReadFailure, StoreView};

/// How often changes are committed that clears come before.
const ATTEMPTS_MAX: usize = 8;
/// How often a commit is tried again that the node, or the namespace's rate, does not take yet; meanwhile nothing more is read of the
/// client.
const TRIES_MAX: usize = 30;
/// Between two of them.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// What is known of a client about a document.
#[derive(Debug, Default)]
pub(super) struct Exchange {
    state: SyncState,
    /// Whether there was a document when it was last looked at.
    is_there: bool,
}

/// What a client is to be told.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Nothing,
    Say(Vec<u8>),
    /// There is no document.
    Unavailable,
}

impl Exchange {
    /// About the memory that it takes.
    pub(super) fn bytes_held(&self) -> usize {
        size_of::<Self>() + self.state.bytes_held()
    }

    /// Hears a message. After an error the exchange is over.
    pub(super) async fn hear(
        &mut self,
        api: &Api,
        namespace: &Namespace,
        name: &Name,
        bytes: Vec<u8>,
    ) -> Result<Answer, Problem> {
        let record = RecordId { namespace: namespace.clone(), key: name.0.clone() };
        let mut message = parse(bytes).await?;
        let mut came = message.take_changes();
        for _ in 0..ATTEMPTS_MAX {
            if came.is_empty() && !self.state.waits() {
                break;
            }
            let admitted = self.admit(api, &record, name, came).await?;
            if admitted.is_empty() || self.commit(api, &record, name, admitted).await? {
                break;
            }
            // A clear came between the look and the commit.
            came = Vec::new();
        }
        self.answer(api, record, name, Some(message)).await
    }

    /// Looks at the document again, which may have changed.
    pub(super) async fn look(
        &mut self,
        api: &Api,
        namespace: &Namespace,
        name: &Name,
    ) -> Result<Answer, Problem> {
        let record = RecordId { namespace: namespace.clone(), key: name.0.clone() };
        self.answer(api, record, name, None).await
    }

    /// Which changes are to be committed.
    async fn admit(
        &mut self,
        api: &Api,
        record: &RecordId,
        name: &Name,
        came: Vec<Encoded>,
    ) -> Result<Vec<Encoded>, Problem> {
        let mut state = std::mem::take(&mut self.state);
        let (at, documents) = (api.node.read_at(), Arc::clone(api.node.documents()));
        let (record, field) = (record.clone(), name.1.clone());
        let look = move |store: &StoreView<'_>| {
            let stored = read::stored_changes(store, at, &record, &field)?;
            let is_stored = |hash: &_| stored.contains(hash);
            let admit = |document: &mut Document| state.admit(came, document, is_stored);
            let admitted = documents.with(store, at, (&record, &field), admit)?;
            Ok::<_, ReadFailure>((state, admitted))
        };
        let (state, admitted) = api.node.read(look).await?;
        self.state = state;
        Ok(admitted)
    }

    /// Commits changes; `false` if some of what they build on is not there any more.
    async fn commit(
        &mut self,
        api: &Api,
        record: &RecordId,
        name: &Name,
        changes: Vec<Encoded>,
    ) -> Result<bool, Problem> {
        for part in parts(changes.clone()) {
            let write = Write {
                record: record.clone(),
                ops: vec![Op::Change { field: name.1.clone(), changes: part }],
            };
            match commit(api, vec![write]).await {
                Ok(()) => {}
                Err(CommitFailure::Refused(CommitError::Refused { refusal, .. }))
                    if lacks(&refusal.reason) =>
                {
                    self.state.put_back(changes);
                    return Ok(false);
                }
                Err(failure) => return Err(Problem::from(failure).at_no_op()),
            }
        }
        Ok(true)
    }

    /// What is to be said now, with what the client said heard.
    async fn answer(
        &mut self,
        api: &Api,
        record: RecordId,
        name: &Name,
        message: Option<SyncMessage>,
    ) -> Result<Answer, Problem> {
        let (mut state, was_there) = (std::mem::take(&mut self.state), self.is_there);
        let (at, documents) = (api.node.read_at(), Arc::clone(api.node.documents()));
        let field = name.1.clone();
        let look = move |store: &StoreView<'_>| {
            let say = |document: &mut Document| {
                let is_there = !document.heads().is_empty();
                if was_there && !is_there {
                    state = SyncState::default();
                }
                let Some(message) = message else {
                    // To a client that has it, it would seem to have lost everything: it would send all that was cleared.
                    let answer = if was_there { Answer::Unavailable } else { Answer::Nothing };
                    return match is_there {
                        true => Ok((is_there, said(document.tell(&mut state)?))),
                        false => Ok((is_there, answer)),
                    };
                };
                let client_has = message.has_heads();
                document.hear(&mut state, message)?;
                match client_has || is_there {
                    true => Ok((is_there, said(document.tell(&mut state)?))),
                    false => Ok((is_there, Answer::Unavailable)),
                }
            };
            let (is_there, answer) = documents.with(store, at, (&record, &field), say)?;
            Ok::<_, ReadFailure>((state, is_there, answer))
        };
        let (state, is_there, answer) = api.node.read(look).await?;
        (self.state, self.is_there) = (state, is_there);
        Ok(answer)
    }
}

fn said(message: Option<Vec<u8>>) -> Answer {
    message.map_or(Answer::Nothing, Answer::Say)
}

/// Reads a message, on a thread that may block: a few bytes can stand for many changes.
async fn parse(bytes: Vec<u8>) -> Result<SyncMessage, Problem> {
    let parsed = tokio::task::spawn_blocking(move || SyncMessage::parse(&bytes)).await;
    Ok(parsed.map_err(|error| Problem::unreadable(&error))?.map_err(ReadFailure::from)?)
}

/// Commits within the namespace's rate and quotas, later if it must be.
async fn commit(api: &Api, writes: Vec<Write>) -> Result<(), CommitFailure> {
    let mut tries = 0;
    loop {
        tries += 1;
        let committed = async {
            admission::within_quota(api, &writes, None).await?;
            api.node.commit_edits(writes.clone(), Terms::default(), None).await
        };
        match committed.await {
            Err(CommitFailure::Overloaded) if tries < TRIES_MAX && api.node.is_ready() => {
                tokio::time::sleep(TRY_AGAIN).await;
            }
            outcome => return outcome.map(|_| ()),
        }
    }
}

/// Lets a message of a client in, at the namespace's rate: later if it must be.
pub(super) async fn admit(api: &Api, namespace: &Namespace) -> Result<(), Problem> {
    let mut tries = 0;
    loop {
        tries += 1;
        match admission::check(api, namespace).await {
            Err(problem) if problem.kind() == Kind::RateLimited && tries < TRIES_MAX => {
                tokio::time::sleep(TRY_AGAIN).await;
            }
            outcome => return outcome,
        }
    }
}

/// Whether a commit is refused because of changes that are not there.
fn lacks(reason: &Reason) -> bool {
    match reason {
        Reason::MissingChanges { .. } => true,
        Reason::Document { unmade, .. } => matches!(unmade, Unmade::Missing(_)),
        _ => false,
    }
}
