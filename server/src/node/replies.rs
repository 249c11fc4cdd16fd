//! Requests that wait for an answer of the machine.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use godwit_proto::{Reply, RequestId};
use tokio::sync::{Notify, oneshot};

/// Waiting requests by id. Closed, it tells all who wait, and those who come, that no answer will come.
#[derive(Debug, Default)]
pub(super) struct Replies {
    state: Mutex<State>,
    /// Rung when something may have been written.
    written: Arc<Notify>,
}

#[derive(Debug, Default)]
struct State {
    waiting: BTreeMap<RequestId, oneshot::Sender<Reply>>,
    last: u64,
    closed: bool,
}

/// A place in the map, given back when dropped.
#[derive(Debug)]
pub(super) struct Waiting<'a> {
    replies: &'a Replies,
    pub(super) request: RequestId,
    receiver: oneshot::Receiver<Reply>,
}

impl Replies {
    /// Tells those who wait that something was written.
    pub(super) fn wrote(&self) {
        self.written.notify_waiters();
    }

    /// Completes when something is written after this call.
    pub(super) fn written(&self) -> impl Future<Output = ()> + Send + use<> {
        Arc::clone(&self.written).notified_owned()
    }

    /// A new request id; `None` if closed.
    pub(super) fn register(&self) -> Option<Waiting<'_>> {
        let (sender, receiver) = oneshot::channel();
        let mut state = self.state();
        if state.closed {
            return None;
        }
        state.last += 1;
        let request = RequestId(state.last);
        state.waiting.insert(request, sender);
        Some(Waiting { replies: self, request, receiver })
    }

    /// Hands an answer to who waits for it, if somebody still does.
    pub(super) fn answer(&self, request: RequestId, reply: Reply) {
        let sender = self.state().waiting.remove(&request);
        if let Some(sender) = sender {
            // The receiver may have gone meanwhile, which is its right.
            let _ = sender.send(reply);
        }
    }

    /// No more answers.
    pub(super) fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        state.waiting.clear();
    }

    /// Whether the committer has ended.
    pub(super) fn is_closed(&self) -> bool {
        self.state().closed
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics between two changes that belong together.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting<'_> {
    /// The answer; `None` if none will come.
    pub(super) async fn reply(&mut self) -> Option<Reply> {
        (&mut self.receiver).await.ok()
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.replies.state().waiting.remove(&self.request);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use godwit_core::ids::PartitionId;

    fn committed() -> Reply {
        Reply::Committed {
            partition: PartitionId(1),
            commit: None,
            repeated: false,
            context: Default::default(),
        }
    }

    #[tokio::test]
    async fn each_waiter_gets_its_own_answer() {
        let replies = Replies::default();
        let (mut a, mut b) = (replies.register().unwrap(), replies.register().unwrap());
        assert_ne!(a.request, b.request);
        replies.answer(b.request, committed());
        assert_eq!(b.reply().await, Some(committed()));
        replies.close();
        assert_eq!(a.reply().await, None);
        assert!(replies.register().is_none());
    }

    #[test]
    fn who_left_is_forgotten() {
        let replies = Replies::default();
        let request = replies.register().unwrap().request;
        assert!(replies.state().waiting.is_empty());
        replies.answer(request, committed());
    }
}
