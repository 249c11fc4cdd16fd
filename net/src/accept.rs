//! Accepting connections, and knowing whose they are.
//!
//! TLS has verified by then that the certificate is the cluster's. Its peer is the one configured node that
//! the certificate is valid for. One that is valid for none or for several is refused, as is a peer that
//! dials although it should be dialled: two dialers of one pair would replace each other's links for ever.
//!
//! Handshakes run beside each other, up to a limit. From half of it, a client must first prove its address, which
//! spoofed floods cannot. Refusals are logged at a limited rate, and the refused side is told why.

use std::collections::BTreeMap;
use std::sync::Arc;

use quinn::Incoming;
use rustls::pki_types::CertificateDer;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tracing::warn;

use crate::link::{self, CloseCode, Context, Established, LinkEnd, Next};
use crate::peer::Peer;
use crate::sync::stopped;
use crate::tls;

/// What the acceptor works with.
#[derive(Debug)]
pub(crate) struct Acceptor {
    pub(crate) context: Arc<Context>,
    pub(crate) peers: Arc<BTreeMap<String, Arc<Peer>>>,
    pub(crate) endpoint: quinn::Endpoint,
}

impl Acceptor {
    /// Accepts until told to stop.
    pub(crate) async fn run(self) {
        let mut stop = self.context.stop.subscribe();
        let mut handshakes = JoinSet::new();
        loop {
            tokio::select! {
                () = stopped(&mut stop) => break,
                Some(_) = handshakes.join_next() => {}
                incoming = self.endpoint.accept() => match incoming {
                    Some(incoming) => self.admit(incoming, &mut handshakes),
                    None => break,
                },
            }
        }
        handshakes.shutdown().await;
    }

    fn admit(&self, incoming: Incoming, handshakes: &mut JoinSet<()>) {
        let limit = self.context.limits.handshakes_max;
        if handshakes.len() >= limit {
            incoming.refuse();
        } else if handshakes.len() >= limit / 2 && incoming.may_retry() {
            // Cannot fail, having asked; and a client that gets no answer tries again.
            let _ = incoming.retry();
        } else {
            let handshake = Handshake { context: Arc::clone(&self.context), peers: Arc::clone(&self.peers) };
            handshakes.spawn(handshake.run(incoming));
        }
    }
}

struct Handshake {
    context: Arc<Context>,
    peers: Arc<BTreeMap<String, Arc<Peer>>>,
}

impl Handshake {
    async fn run(self, incoming: Incoming) {
        let remote = incoming.remote_address();
        if let Err(end) = self.accept(incoming).await
            && let Some(suppressed) = self.context.refusals.pass()
        {
            warn!(%remote, reason = %end, suppressed, "refused a connection");
        }
    }

    async fn accept(&self, incoming: Incoming) -> Result<(), LinkEnd> {
        let deadline = Instant::now() + self.context.timeouts.handshake;
        let lost = |error| LinkEnd::lost(&error);
        let late = || LinkEnd::new(CloseCode::Timeout, "handshake timed out");
        let connecting = incoming.accept().map_err(lost)?;
        let connection = timeout_at(deadline, connecting).await.map_err(|_| late())?.map_err(lost)?;
        let refuse = |end: LinkEnd| {
            end.close(&connection);
            end
        };
        let peer = self.identify(&connection).map_err(refuse)?;
        let established = timeout_at(deadline, link::establish(connection.clone(), None)).await;
        match established.unwrap_or_else(|_| Err(late())) {
            Ok(established) => {
                peer.arrivals.put(established);
                Ok(())
            }
            Err(end) => {
                let end = refuse(end);
                peer.set_error(end.reason.clone());
                Err(end)
            }
        }
    }

    fn identify(&self, connection: &quinn::Connection) -> Result<&Arc<Peer>, LinkEnd> {
        let unknown = |reason| LinkEnd::new(CloseCode::UnknownPeer, reason);
        let identity = connection.peer_identity();
        let certificate = identity
            .as_ref()
            .and_then(|identity| identity.downcast_ref::<Vec<CertificateDer<'static>>>())
            .and_then(|chain| chain.first())
            .ok_or_else(|| unknown("no certificate"))?;
        let mut valid = self.peers.values().filter(|peer| tls::is_valid_for(certificate, peer.name()));
        let peer =
            valid.next().ok_or_else(|| unknown("the certificate names no node that is configured here"))?;
        if valid.next().is_some() {
            return Err(unknown("the certificate names several nodes that are configured here"));
        }
        if peer.dials {
            let reason = "the node with the smaller name dials, which is this one";
            return Err(LinkEnd::new(CloseCode::WrongDirection, reason));
        }
        Ok(peer)
    }
}

/// Runs the links of a peer that dials, as they arrive, until told to stop.
pub(crate) async fn run_arrivals(context: Arc<Context>, peer: Arc<Peer>) {
    let mut stop = context.stop.subscribe();
    let mut replacement: Option<Box<Established>> = None;
    loop {
        let established = match replacement.take() {
            Some(established) => *established,
            None => match arrival(&peer, &mut stop).await {
                Some(established) => established,
                None => return,
            },
        };
        match link::run(&context, &peer, established, &mut stop).await {
            Next::Idle => {}
            Next::Replacement(newer) => replacement = Some(newer),
            Next::Stop => return,
        }
    }
}

async fn arrival(peer: &Peer, stop: &mut watch::Receiver<bool>) -> Option<Established> {
    tokio::select! {
        () = stopped(stop) => None,
        established = peer.arrivals.take() => Some(established),
    }
}
