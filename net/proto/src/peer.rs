//! Peers and their links: greeting, dispatch of messages, and what is known of a peer.
//!
//! What a peer has told of its contexts outlives its link, so that the status can say how far behind a peer is that
//! cannot be reached; but a new link starts from what the peer tells on it, since the peer may have been replaced.
//!
//! A message that comes before the greeting is passed over: it is a leftover, or the greeting was lost and will come
//! again with the next contexts.

use std::collections::{BTreeMap, BTreeSet};

use godwit_core::context::VersionVector;
use godwit_core::ids::{PartitionId, ReplicaId};
use godwit_core::store::{StoreError, StoreRead};
use godwit_core::time::Mono;

use crate::catch_up::{Answer, Walked};
use crate::interface::LinkId;
use crate::message::{Hello, Message};
use crate::node::{Node, Step};
use crate::push::Push;

/// The most bytes of a reason that a peer gives, kept for the log.
const REASON_BYTES_MAX: usize = 300;

/// Greetings that a peer may send at once, and how long it takes to earn another: it sends one every few seconds.
const HELLO_BURST: u32 = 32;
const HELLO_EVERY_US: u64 = 1_000_000;
/// The same for contexts; another is earned in half of [`crate::Tuning::contexts_delay_us`], which is twice as often as a
/// node tells what has changed.
const CONTEXTS_BURST: u32 = 1000;

/// How often something may still be done: a token bucket.
#[derive(Debug)]
pub(crate) struct Bucket {
    tokens: u32,
    filled_at: Mono,
}

impl Bucket {
    pub(crate) fn full(burst: u32, now: Mono) -> Self {
        Self { tokens: burst, filled_at: now }
    }

    /// Takes a token; false if there is none.
    pub(crate) fn take(&mut self, now: Mono, burst: u32, every_us: u64) -> bool {
        let every_us = every_us.max(1);
        let earned = now.since_us(self.filled_at) / every_us;
        self.filled_at = self.filled_at.plus_us(earned.saturating_mul(every_us));
        let tokens = u64::from(self.tokens).saturating_add(earned).min(u64::from(burst));
        self.tokens = tokens as u32;
        let taken = self.tokens > 0;
        self.tokens = self.tokens.saturating_sub(1);
        taken
    }
}

/// A peer: what it last told, and its link if there is one.
#[derive(Debug, Default)]
pub(crate) struct Peer {
    /// The peer's introduction.
    pub(crate) hello: Option<Hello>,
    /// What it has applied, as far as told.
    pub(crate) known: BTreeMap<PartitionId, VersionVector>,
    /// The link, if one is up.
    pub(crate) session: Option<Session>,
    /// What was read of the log for it.
    pub(crate) walked: Walked,
    /// The process before the present one.
    pub(crate) displaced: Option<u64>,
    /// A process that began while another one under this name was alive.
    pub(crate) refused: Option<u64>,
    /// When a process that is not refused last greeted.
    pub(crate) greeted_at: Option<Mono>,
}

/// A link, and what it speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) link: LinkId,
    pub(crate) wire: u8,
}

impl Place {
    /// Whether the peer knows intervals.
    pub(crate) fn merges(self) -> bool {
        self.wire >= 2
    }

    /// Whether the peer knows that a log may not reach back, and state repair.
    pub(crate) fn repairs(self) -> bool {
        self.wire >= 3
    }
}

/// What is kept about a peer while a link to it is up.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) link: LinkId,
    /// The wire version of the link.
    pub(crate) wire: u8,
    /// Whether the peer has introduced itself on this link.
    pub(crate) greeted: bool,
    /// Whether it has told all its contexts on this link.
    pub(crate) synced: bool,
    /// Partitions whose context changed since it was told.
    pub(crate) untold: BTreeSet<PartitionId>,
    /// When to tell them.
    pub(crate) tell_at: Option<Mono>,
    /// When to tell all contexts.
    pub(crate) tell_all_at: Mono,
    pub(crate) push: Push,
    /// Greetings and contexts that the peer may still send.
    pub(crate) hellos: Bucket,
    pub(crate) contexts: Bucket,
    /// Partitions in which the peer lacks so much that it is to ask.
    pub(crate) to_ask: BTreeSet<PartitionId>,
    /// Where the log does not reach back to what the peer has, and when it was last told.
    pub(crate) gone: BTreeMap<PartitionId, Mono>,
    /// Requests for others' deltas that are being answered.
    pub(crate) answers: BTreeMap<PartitionId, Answer>,
    /// When to go on with them.
    pub(crate) answer_at: Option<Mono>,
    /// The partition whose turn it is then.
    pub(crate) answer_turn: PartitionId,
}

impl Peer {
    /// The earliest moment at which something is to be done for the peer.
    pub(crate) fn next_deadline(&self) -> Option<Mono> {
        let session = self.session.as_ref()?;
        let deadlines =
            [Some(session.tell_all_at), session.tell_at, session.push.deadline(), session.answer_at];
        deadlines.into_iter().flatten().min()
    }

    /// The peer's session, once it is greeted and has told what it has.
    pub(crate) fn synced(&self) -> Option<&Session> {
        self.session.as_ref().filter(|session| session.synced)
    }

    /// Whether the peer asks for, and answers with, its own deltas too: from wire version 2 on.
    pub(crate) fn answers_all(&self) -> bool {
        self.session.as_ref().is_some_and(|session| session.place().merges())
    }

    pub(crate) fn replica(&self) -> Option<ReplicaId> {
        self.hello.as_ref().map(|hello| hello.replica)
    }

    pub(crate) fn known(&self, partition: PartitionId, replica: ReplicaId) -> u64 {
        self.known.get(&partition).map_or(0, |context| context.get(replica))
    }
}

impl Session {
    pub(crate) fn place(&self) -> Place {
        Place { link: self.link, wire: self.wire }
    }
}

impl Node {
    pub(crate) fn link_up<S: StoreRead>(
        &mut self,
        step: &mut Step<'_, S>,
        name: String,
        link: LinkId,
        wire: u8,
    ) {
        let peer = self.peers.entry(name.clone()).or_default();
        if peer.session.as_ref().is_some_and(|session| session.link > link) {
            return;
        }
        let now = step.now.mono;
        self.catch_up.gone.forget_peer(&name);
        peer.session = Some(Session {
            link,
            wire,
            greeted: false,
            synced: false,
            untold: BTreeSet::new(),
            tell_at: None,
            tell_all_at: now,
            push: Push::new(),
            hellos: Bucket::full(HELLO_BURST, now),
            contexts: Bucket::full(CONTEXTS_BURST, now),
            to_ask: BTreeSet::new(),
            gone: BTreeMap::new(),
            answers: BTreeMap::new(),
            answer_at: None,
            answer_turn: PartitionId(0),
        });
        self.greet(step, &name, Place { link, wire });
        self.tell_all_contexts(step, &name);
    }

    pub(crate) fn link_down(&mut self, now: Mono, name: &str, link: LinkId) {
        let Some(peer) = self.peers.get_mut(name) else { return };
        if peer.session.as_ref().is_some_and(|session| session.link == link) {
            peer.session = None;
            // What was awaited from this peer may have to come from another one now.
            for partition in self.partition_ids() {
                self.review_lacks(now, partition);
            }
        }
    }

    pub(crate) fn greet<S: StoreRead>(&self, step: &mut Step<'_, S>, name: &str, place: Place) {
        let config = &self.config;
        let hello = Hello {
            cluster: config.cluster.clone(),
            node: config.node.clone(),
            region: config.region.clone(),
            replica: self.replica(),
            partitions: config.partitions,
            instance: self.incarnation.instance(),
            resumes: self.incarnation.resumes(),
        };
        step.send(name, place, Message::Hello(hello));
    }

    pub(crate) fn frame<S: StoreRead>(
        &mut self,
        step: &mut Step<'_, S>,
        name: &str,
        link: LinkId,
        bytes: &[u8],
    ) -> Result<(), StoreError> {
        let Some(session) = self.peers.get(name).and_then(|peer| peer.session.as_ref()) else {
            return Ok(());
        };
        if session.link != link {
            return Ok(());
        }
        let (greeted, place) = (session.greeted, session.place());
        let outcome = match Message::decode(place.wire, bytes) {
            Ok(message) if !self.may_say(name, &message, step.now.mono) => {
                Err(format!("too many {} messages in a short time", message.name()))
            }
            Ok(Message::Hello(hello)) => self.hello(step, name, place, hello)?,
            Ok(Message::Refuse { reason }) => Err(format!("the peer refuses: {}", shortened(&reason))),
            Ok(_) if !greeted => Ok(()),
            Ok(message) => self.message(step, name, message)?,
            Err(error) => Err(format!("a message is refused: {error}")),
        };
        if let Err(reason) = outcome {
            step.send(name, place, Message::Refuse { reason: reason.clone() });
            step.close(name, link, reason);
            self.link_down(step.now.mono, name, link);
        }
        Ok(())
    }

    /// Whether the peer may say this now: what costs more than its bytes has a rate.
    fn may_say(&mut self, name: &str, message: &Message, now: Mono) -> bool {
        let contexts_every_us = self.config.tuning.contexts_delay_us / 2;
        let Some(session) = self.peers.get_mut(name).and_then(|peer| peer.session.as_mut()) else {
            return false;
        };
        match message {
            Message::Hello(_) => session.hellos.take(now, HELLO_BURST, HELLO_EVERY_US),
            Message::Contexts { .. } => session.contexts.take(now, CONTEXTS_BURST, contexts_every_us),
            _ => true,
        }
    }

    /// Takes a message of a greeted peer; an inner `Err` says why the link must close.
    fn message<S: StoreRead>(
        &mut self,
        step: &mut Step<'_, S>,
        name: &str,
        message: Message,
    ) -> Result<Result<(), String>, StoreError> {
        let partition = match &message {
            Message::Deltas { partition, .. }
            | Message::Want { partition, .. }
            | Message::Gone { partition } => Some(*partition),
            Message::Contexts { contexts, .. } => contexts.iter().map(|(partition, _)| *partition).max(),
            Message::Confirm(confirm) => confirm.holds.iter().map(|(partition, _)| *partition).max(),
            Message::Pull(pull) => Some(pull.partition),
            Message::State(state) => Some(state.partition),
            Message::Hello(_) | Message::Refuse { .. } => None,
        };
        if let Some(partition) = partition.filter(|partition| partition.0 >= self.config.partitions) {
            return Ok(Err(format!("there is no partition {partition}")));
        }
        match message {
            Message::Contexts { complete, contexts } => {
                return self.contexts_told(step, name, complete, contexts);
            }
            Message::Deltas { partition, deltas, ends_want } => {
                if let Err(reason) = self.receive(step, partition, deltas)? {
                    return Ok(Err(reason));
                }
                if ends_want {
                    self.want_answered(step.now.mono, name, partition);
                }
            }
            Message::Want { partition, context } => self.serve_want(step.now.mono, name, partition, context),
            Message::Gone { partition } => self.gone_said(step.now.mono, name, partition),
            Message::Confirm(confirm) => self.confirmed(step, name, &confirm)?,
            Message::Pull(pull) => return Ok(self.pulled(step, name, pull)),
            Message::State(state) => return self.part_came(step, name, state),
            Message::Hello(_) | Message::Refuse { .. } => {}
        }
        Ok(Ok(()))
    }

    fn hello<S: StoreRead>(
        &mut self,
        step: &mut Step<'_, S>,
        name: &str,
        place: Place,
        hello: Hello,
    ) -> Result<Result<(), String>, StoreError> {
        if let Err(reason) = self.check_hello(name, &hello) {
            return Ok(Err(reason));
        }
        if place.wire >= 2 {
            if let Err(reason) = self.other_process(step, name, &hello) {
                return Ok(Err(reason));
            }
            self.heard_of(step, name, place, &hello)?;
        }
        let Some(peer) = self.peers.get_mut(name) else { return Ok(Ok(())) };
        let Some(session) = peer.session.as_mut() else { return Ok(Ok(())) };
        if !session.greeted {
            session.greeted = true;
            peer.known.clear();
        }
        if peer.hello.as_ref().is_some_and(|before| before.instance != hello.instance) {
            peer.walked.another_process(step.now.mono);
        }
        peer.hello = Some(hello);
        peer.greeted_at = Some(step.now.mono);
        Ok(Ok(()))
    }

    fn check_hello(&self, name: &str, hello: &Hello) -> Result<(), String> {
        let own = &self.config;
        if hello.cluster != own.cluster {
            return Err(format!("cluster {:?} is not {:?}", shortened(&hello.cluster), own.cluster));
        }
        if hello.partitions != own.partitions {
            return Err(format!("{} partitions there, {} here", hello.partitions, own.partitions));
        }
        if hello.node != name {
            return Err(format!(
                "the node calls itself {:?}, its certificate {name:?}",
                shortened(&hello.node)
            ));
        }
        if hello.replica == self.replica() {
            return Err(format!(
                "node {name:?} writes under this node's replica id: a copied data directory?"
            ));
        }
        Ok(())
    }
}

fn shortened(text: &str) -> String {
    let end = text.char_indices().map(|(at, _)| at).take_while(|&at| at <= REASON_BYTES_MAX).last();
    match end {
        Some(end) if text.len() > REASON_BYTES_MAX => format!("{}…", &text[..end]),
        _ => text.to_string(),
    }
}
