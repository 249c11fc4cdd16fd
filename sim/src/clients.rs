//! Clients: what they ask nodes for, and what those who carry tokens may rely on.
//!
//! A client with a session remembers what its reads showed and its writes made ([`Seen`]), in any region. A node serves it
//! only if it has applied all that the token names; the client then never sees less than it has seen. What that was is
//! kept here as events of the specification as well, so that a token that forgot some is found out.

use std::collections::BTreeMap;

use godwit_core::context::{Seen, VersionVector};
use godwit_core::ids::PartitionId;
use godwit_core::op::{Terms, Write};
use godwit_proto::{Input, Reply, RequestId};
use serde::{Deserialize, Serialize};

use crate::failure;
use crate::judge::Asked;
use crate::lines::WriteLine;
use crate::oracle::Violation;
use crate::spec::EventSet;
use crate::trace::What;
use crate::workload::{self, Ask};
use crate::world::{ANSWER_US_MAX, World};

/// What a client does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum Plan {
    /// It reads everything.
    Read,
    /// It writes.
    Write {
        /// What.
        #[serde(with = "WriteLine")]
        writes: Vec<Write>,
        /// Whether it says what it has seen.
        says: bool,
        /// The number of the idempotency key.
        key: Option<u64>,
    },
    /// It asks once more for what it last asked for under an idempotency key.
    Retry,
}

/// A client with a session.
#[derive(Debug, Clone, Default)]
pub(crate) struct Client {
    tokens: BTreeMap<PartitionId, Seen>,
    /// What it has seen.
    events: BTreeMap<PartitionId, EventSet>,
    last: Option<Ask>,
}

impl Client {
    fn is_held(&self, held: &BTreeMap<PartitionId, VersionVector>) -> bool {
        let nothing = VersionVector::new();
        self.tokens.iter().all(|(id, seen)| seen.applied_by(held.get(id).unwrap_or(&nothing)))
    }
}

impl World {
    /// Clients whose tokens name what nobody holds any more begin anew, and take no answer to what they asked with them.
    pub(crate) fn begin_anew_unless(&mut self, held: &BTreeMap<PartitionId, VersionVector>) {
        for (who, client) in self.clients.iter_mut().enumerate().filter(|(_, client)| !client.is_held(held)) {
            *client = Client::default();
            let open = self.nodes.iter_mut().flat_map(|node| node.open.values_mut());
            open.filter(|asked| asked.client == Some(who)).for_each(|asked| asked.client = None);
        }
    }

    pub(crate) fn session(&mut self, client: usize, i: usize, plan: Plan) -> Result<(), Violation> {
        if !self.is_up(i) {
            return Ok(());
        }
        match plan {
            Plan::Read => {
                for (id, context) in self.contexts(i)? {
                    if self.is_served(client, i, id, &context)? {
                        self.has_read(client, id, &context)?;
                    }
                }
                Ok(())
            }
            Plan::Write { writes, says, key } => {
                let home = writes[0].record.partition(self.partitions);
                let seen = says.then(|| self.clients[client].tokens.get(&home).cloned().unwrap_or_default());
                let request = key.map(|key| workload::request_key(key, &writes));
                let ask = Ask { writes, terms: Terms { seen, request } };
                if key.is_some() {
                    self.clients[client].last = Some(ask.clone());
                }
                self.session_ask(client, i, ask)
            }
            Plan::Retry => match self.clients[client].last.clone() {
                // A retry may go to a node that has not heard of the first: so it carries no more of a token than that did.
                Some(ask) if self.has_applied(i, &ask)? => self.ask(i, Some(client), ask),
                Some(_) => Ok(()),
                None => Ok(()),
            },
        }
    }

    fn session_ask(&mut self, client: usize, i: usize, ask: Ask) -> Result<(), Violation> {
        let home = ask.writes[0].record.partition(self.partitions);
        let context = self.contexts(i)?.remove(&home).unwrap_or_default();
        if self.has_applied(i, &ask)? && self.is_served(client, i, home, &context)? {
            self.ask(i, Some(client), ask)?;
        }
        Ok(())
    }

    /// Whether a node has what a request says that its client has seen.
    fn has_applied(&self, i: usize, ask: &Ask) -> Result<bool, Violation> {
        let home = ask.writes[0].record.partition(self.partitions);
        let context = self.contexts(i)?.remove(&home).unwrap_or_default();
        Ok(ask.terms.seen.as_ref().is_none_or(|seen| seen.applied_by(&context)))
    }

    /// Whether a node has what a client's token names; then it has all that the client has seen.
    fn is_served(
        &mut self,
        client: usize,
        i: usize,
        id: PartitionId,
        context: &VersionVector,
    ) -> Result<bool, Violation> {
        let Client { tokens, events, .. } = &self.clients[client];
        if tokens.get(&id).is_some_and(|seen| !seen.applied_by(context)) {
            return Ok(false);
        }
        let visible = self.oracle.seen(id, &Seen::all_of(context.clone()))?;
        if events.get(&id).is_some_and(|events| !events.is_subset(&visible)) {
            return Err(Violation::new(
                7,
                format!("client {client} would see less of partition {id} at n{i} than it has seen"),
            ));
        }
        Ok(true)
    }

    fn has_read(&mut self, client: usize, id: PartitionId, context: &VersionVector) -> Result<(), Violation> {
        let seen = Seen::all_of(context.clone());
        let events = self.oracle.seen(id, &seen)?;
        self.sees(client, id, &seen, &events)
    }

    /// A client has seen more. Its token must not name what it has not seen: it would take that unseen.
    fn sees(&mut self, who: usize, id: PartitionId, seen: &Seen, events: &EventSet) -> Result<(), Violation> {
        let client = &mut self.clients[who];
        let (token, known) = (client.tokens.entry(id).or_default(), client.events.entry(id).or_default());
        token.join(seen);
        known.union(events);
        if !self.oracle.seen(id, token)?.is_subset(known) {
            let what =
                format!("the token of client {who} for partition {id} names what it has not seen: {token:?}");
            return Err(Violation::new(7, what));
        }
        Ok(())
    }

    /// Somebody asks a node for a commit.
    pub(crate) fn ask(&mut self, i: usize, client: Option<usize>, mut ask: Ask) -> Result<(), Violation> {
        if !self.is_up(i) {
            return Ok(());
        }
        self.requests += 1;
        let request = RequestId(self.requests);
        self.make_edits(i, request, &mut ask)?;
        if ask.writes.is_empty() {
            return Ok(());
        }
        let Ask { writes, terms } = ask.clone();
        self.trace.line(self.now_us, format_args!("n{i} is asked {}: {writes:?}", request.0));
        self.trace.mark(self.now_us, || What::Asked {
            node: i,
            request: request.0,
            client,
            writes: failure::in_words(&writes),
        });
        if terms != Terms::default() {
            self.trace.line(self.now_us, format_args!("client {client:?}: {terms:?}"));
        }
        let queue_us = self.nodes[i].queue_us();
        self.nodes[i].open.insert(request, Asked { since: self.now_us, queue_us, ask, client });
        self.input(i, Input::Commit { request, writes, terms })
    }

    pub(crate) fn answered(&mut self, i: usize, request: RequestId, reply: &Reply) -> Result<(), Violation> {
        let Some(asked) = self.nodes[i].open.remove(&request) else {
            return Err(Violation::new(5, format!("n{i} answers request {} twice", request.0)));
        };
        let took = self.now_us - self.waited_since(i, asked.since);
        if took > ANSWER_US_MAX + asked.queue_us {
            return Err(Violation::new(8, format!("n{i} took {took} µs to answer {:?}", asked.ask)));
        }
        self.trace.line(self.now_us, format_args!("n{i} answers {}: {reply:?}", request.0));
        self.trace.mark(self.now_us, || What::Answered {
            node: i,
            request: request.0,
            answer: failure::answer_in_words(reply),
        });
        let Reply::Committed { partition, commit, repeated, context } = reply else { return Ok(()) };
        let (id, dot) = (*partition, commit.map(|(dot, _)| dot));
        if let Some(dot) = dot {
            self.oracle.acknowledged(id, dot);
            self.acknowledged += 1;
            if !repeated {
                self.nodes[i].promised.entry(id).or_default().advance(dot);
            }
        }
        if let Some(key) = asked.ask.terms.request {
            self.keys.told(i, id, key, dot)?;
        }
        if let Some(client) = asked.client {
            let Ask { writes, terms } = asked.ask;
            let said = terms.seen.clone().filter(|_| terms.acts_on_seen(&writes));
            // Its own write, or all that its node had if that is what the write acted on. Not told by a token, which is
            // what is to be checked.
            let events = match (&said, dot) {
                (None, _) => self.oracle.seen(id, &Seen::all_of(context.clone()))?,
                (Some(_), Some(dot)) => self.oracle.made(id, dot)?,
                (Some(_), None) => EventSet::default(),
            };
            let seen = Seen::after(said, dot, context.clone());
            self.sees(client, id, &seen, &events)?;
        }
        Ok(())
    }
}
