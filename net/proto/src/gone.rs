//! When deltas cannot bring a node up to date: the other one's log does not reach back to what it has.
//!
//! The one whose log was truncated says so ([`Message::Gone`]): in answer to a request, and instead of pushing its own
//! commits with a gap. The one that lacks something then asks others that have it first, each of which may say the same;
//! what was said is forgotten when nothing is lacking any more, on a new link, and after a minute, since what the node
//! applied meanwhile may be enough. Once every linked peer that has what is lacking said so, deltas cannot help
//! ([`Node::repair_wanted`]).
//!
//! A peer of an older wire version does not know the message. It gets an answer that ends without anything, or no pushes,
//! and this node tells its operator: such a peer waits until it is upgraded, or another peer has what it lacks.

use std::collections::BTreeMap;

use godwit_core::ids::PartitionId;
use godwit_core::store::StoreRead;
use godwit_core::time::Mono;

use crate::interface::{Alarm, Output};
use crate::message::Message;
use crate::node::{Node, Step};

/// How long it counts that a peer's log does not reach back.
const GONE_US: u64 = 60_000_000;

/// Whose logs do not reach back to what this node has.
#[derive(Debug, Default)]
pub(crate) struct Gone {
    said: BTreeMap<PartitionId, BTreeMap<String, Mono>>,
}

impl Gone {
    pub(crate) fn has_said(&self, id: PartitionId, name: &str, now: Mono) -> bool {
        let said = self.said.get(&id).and_then(|peers| peers.get(name));
        said.is_some_and(|at| at.plus_us(GONE_US) > now)
    }

    /// On a new link to the peer.
    pub(crate) fn forget_peer(&mut self, name: &str) {
        for peers in self.said.values_mut() {
            peers.remove(name);
        }
    }

    /// Nothing is lacking.
    pub(crate) fn forget(&mut self, id: PartitionId) {
        self.said.remove(&id);
    }
}

impl Node {
    /// A peer's log does not reach back to what this node has.
    pub(crate) fn gone_said(&mut self, now: Mono, name: &str, id: PartitionId) {
        let is_news = !self.catch_up.gone.has_said(id, name, now);
        self.catch_up.gone.said.entry(id).or_default().insert(name.to_string(), now);
        self.want_answered(now, name, id);
        if is_news {
            self.catch_up.ask_now(now, id);
        }
    }

    /// Instead of the end of an answer.
    pub(crate) fn answer_gone<S: StoreRead>(&mut self, step: &mut Step<'_, S>, name: &str, id: PartitionId) {
        let Some(session) = self.peers.get_mut(name).and_then(|peer| peer.session.as_mut()) else { return };
        let place = session.place();
        let is_first = session.gone.insert(id, step.now.mono).is_none();
        if place.repairs() {
            step.send(name, place, Message::Gone { partition: id });
            return;
        }
        step.send(name, place, Message::Deltas { partition: id, deltas: Vec::new(), ends_want: true });
        if is_first {
            step.outputs.push(Output::Alarm(Alarm::LogGone { partition: id, peer: name.to_string() }));
        }
    }

    /// Instead of pushing own commits of which some are dropped. The peer is told what there is, so that it knows what it
    /// lacks; again from time to time, since a message may be lost.
    pub(crate) fn push_gone<S: StoreRead>(&mut self, step: &mut Step<'_, S>, name: &str, id: PartitionId) {
        let now = step.now.mono;
        let context = self.context(id).clone();
        let Some(session) = self.peers.get_mut(name).and_then(|peer| peer.session.as_mut()) else { return };
        session.push.forget(id);
        session.to_ask.insert(id);
        let said = session.gone.get(&id).copied();
        if said.is_some_and(|at| at.plus_us(self.config.tuning.resend_after_us) > now) {
            return;
        }
        session.gone.insert(id, now);
        let place = session.place();
        step.send(name, place, Message::Contexts { complete: false, contexts: vec![(id, context)] });
        if place.repairs() {
            step.send(name, place, Message::Gone { partition: id });
        } else if said.is_none() {
            step.outputs.push(Output::Alarm(Alarm::LogGone { partition: id, peer: name.to_string() }));
        }
    }

    /// No linked peer's log reaches back to what this node has of a partition; the named one has what is lacking. Comes
    /// again, ever more rarely, while that is so.
    pub(crate) fn repair_wanted<S: StoreRead>(
        &mut self,
        step: &mut Step<'_, S>,
        id: PartitionId,
        peer: &str,
    ) {
        let session = self.peers.get(peer).and_then(|peer| peer.synced());
        if session.is_some_and(|session| session.place().repairs()) {
            self.repairs.want(step.now.mono, id, peer);
        } else if self.catch_up.repair_alarmed.insert(id) {
            step.outputs.push(Output::Alarm(Alarm::LogGone { partition: id, peer: peer.to_string() }));
        }
    }
}
