//! Telling contexts: what a node has applied.
//!
//! Told in full on a new link and every [`contexts_interval_us`](crate::Tuning::contexts_interval_us) (which mends
//! whatever a lost message left wrong), and by partition soon after others' deltas were applied. Own commits need no
//! telling: the deltas themselves do it. To the peer whose commits were applied a context only acknowledges them, and that
//! can wait longer ([`ACKNOWLEDGE_DELAYS`]): at a thousand small commits a second in many partitions, each telling costs more
//! than a tenth of what it tells of. What a peer tells only ever grows while its link lasts, so late messages do no harm.

use godwit_core::context::{Dot, REPLICAS_MAX, VersionVector};
use godwit_core::ids::{PartitionId, ReplicaId};
use godwit_core::store::{StoreError, StoreRead};
use godwit_core::time::Mono;

use crate::message::Message;
use crate::node::{Node, Step};

/// How many times longer than news an acknowledgement may wait.
const ACKNOWLEDGE_DELAYS: u64 = 5;

impl Node {
    /// Others' deltas were applied, all of this replica's if one is named: peers are to be told soon.
    pub(crate) fn context_changed(&mut self, now: Mono, partition: PartitionId, of: Option<ReplicaId>) {
        let delay_us = self.config.tuning.contexts_delay_us;
        for peer in self.peers.values_mut() {
            let is_news = of.is_none() || peer.replica() != of;
            let tell_at = now.plus_us(if is_news { delay_us } else { delay_us * ACKNOWLEDGE_DELAYS });
            let Some(session) = peer.session.as_mut() else { continue };
            session.untold.insert(partition);
            session.tell_at = Some(session.tell_at.map_or(tell_at, |at| at.min(tell_at)));
        }
    }

    pub(crate) fn tell_all_contexts<S: StoreRead>(&mut self, step: &mut Step<'_, S>, name: &str) {
        let contexts = self.partition_ids().map(|id| (id, self.context(id).clone()));
        let contexts = contexts.filter(|(_, context)| !context.is_empty()).collect();
        let next = step.now.mono.plus_us(self.config.tuning.contexts_interval_us);
        let Some(session) = self.peers.get_mut(name).and_then(|peer| peer.session.as_mut()) else { return };
        session.untold.clear();
        session.tell_at = None;
        session.tell_all_at = next;
        let place = session.place();
        step.send(name, place, Message::Contexts { complete: true, contexts });
    }

    /// Tells what is due.
    pub(crate) fn tell_contexts_due<S: StoreRead>(&mut self, step: &mut Step<'_, S>) {
        let now = step.now.mono;
        let names: Vec<String> = self.peers.keys().cloned().collect();
        for name in names {
            let Some(session) = self.peers.get(&name).and_then(|peer| peer.session.as_ref()) else {
                continue;
            };
            if session.tell_all_at <= now {
                // The greeting may have been lost, and the peer cannot say so.
                let place = session.place();
                self.greet(step, &name, place);
                self.tell_all_contexts(step, &name);
            } else if session.tell_at.is_some_and(|at| at <= now) {
                self.tell_changed_contexts(step, &name);
            }
        }
    }

    fn tell_changed_contexts<S: StoreRead>(&mut self, step: &mut Step<'_, S>, name: &str) {
        let Some(session) = self.peers.get_mut(name).and_then(|peer| peer.session.as_mut()) else { return };
        session.tell_at = None;
        let untold = std::mem::take(&mut session.untold);
        let place = session.place();
        let contexts = untold.into_iter().map(|id| (id, self.context(id).clone())).collect();
        step.send(name, place, Message::Contexts { complete: false, contexts });
    }

    /// A peer told what it has.
    pub(crate) fn contexts_told<S: StoreRead>(
        &mut self,
        step: &mut Step<'_, S>,
        name: &str,
        complete: bool,
        contexts: Vec<(PartitionId, VersionVector)>,
    ) -> Result<Result<(), String>, StoreError> {
        if !contexts.is_sorted_by(|(a, _), (b, _)| a < b) {
            return Ok(Err("contexts name partitions out of order, or twice".into()));
        }
        let own = self.replica();
        for (id, context) in &contexts {
            self.check_own(step, *id, Dot { replica: own, counter: context.get(own) })?;
        }
        let Some(peer) = self.peers.get_mut(name) else { return Ok(Ok(())) };
        let Some(session) = peer.session.as_mut() else { return Ok(Ok(())) };
        session.synced |= complete;
        for (id, context) in &contexts {
            let known = peer.known.entry(*id).or_default();
            known.join(context);
            if known.len() > REPLICAS_MAX {
                return Ok(Err(format!(
                    "the peer names more than {REPLICAS_MAX} replicas in partition {id}"
                )));
            }
        }
        for (id, _) in contexts {
            self.acknowledged(step.now.mono, name, id);
            self.review_lacks(step.now.mono, id);
        }
        self.pump(step, name).map(Ok)
    }
}
