//! Dialling one peer, for ever.
//!
//! A round tries the peer's addresses in order, dedicated ones first and otherwise as configured, until one gives a
//! link. Names are resolved at each attempt, since addresses move. Between rounds, and after each link, there is a
//! backoff with jitter; only a link that lasted longer than the longest backoff resets it, so that a peer
//! that accepts and then closes is not dialled in a tight loop.
//!
//! A link over a public address stays until it ends, even when a dedicated one works again.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use godwit_core::rng::Rng;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{debug, warn};

use crate::backoff::Backoff;
use crate::config::{LinkClass, PeerAddress};
use crate::link::{self, CloseCode, Context, Established, LinkEnd, Next};
use crate::peer::Peer;
use crate::sync::{RateLimit, stopped};

/// How many of a name's addresses are tried in one round.
const RESOLVED_MAX: usize = 8;

/// A peer that cannot be reached is logged as a warning this often.
const FAILURE_LOG_INTERVAL: Duration = Duration::from_secs(60);

/// A seed from the process's hash keys: differs between processes, which is all that jitter needs.
fn process_seed() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// Why an attempt at one address failed.
#[derive(Debug, thiserror::Error)]
enum DialError {
    #[error("cannot resolve the name: {0}")]
    Resolve(io::Error),
    #[error("the name has no address that this node's socket can reach")]
    NoUsableAddress,
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("cannot connect: {0}")]
    Connect(#[from] quinn::ConnectError),
    #[error("{0}")]
    Refused(LinkEnd),
}

/// What a dialer works with.
#[derive(Debug)]
pub(crate) struct Dialer {
    pub(crate) context: Arc<Context>,
    pub(crate) peer: Arc<Peer>,
    pub(crate) endpoint: quinn::Endpoint,
    pub(crate) client_config: quinn::ClientConfig,
    /// Whether the endpoint's socket is an IPv6 one; an IPv4 one reaches no IPv6 address.
    pub(crate) is_ipv6: bool,
}

impl Dialer {
    /// Keeps a link to the peer until told to stop.
    pub(crate) async fn run(self) {
        let mut stop = self.context.stop.subscribe();
        let timeouts = &self.context.timeouts;
        let rng = Rng::new(process_seed());
        let mut backoff = Backoff::new(timeouts.backoff_first, timeouts.backoff_max, rng);
        let failures = RateLimit::new(FAILURE_LOG_INTERVAL);
        loop {
            let established = tokio::select! {
                () = stopped(&mut stop) => return,
                established = self.round(&failures) => established,
            };
            if let Some(established) = established {
                let since = Instant::now();
                let next = link::run(&self.context, &self.peer, established, &mut stop).await;
                if matches!(next, Next::Stop) {
                    return;
                }
                if since.elapsed() >= timeouts.backoff_max {
                    backoff.reset();
                }
            }
            tokio::select! {
                () = stopped(&mut stop) => return,
                () = sleep(backoff.next_delay()) => {}
            }
        }
    }

    async fn round(&self, failures: &RateLimit) -> Option<Established> {
        let mut addresses: Vec<&PeerAddress> = self.peer.config.addresses.iter().collect();
        // Stable: the configured order holds within a class.
        addresses.sort_by_key(|address| address.class);
        for address in addresses {
            match self.attempt(address).await {
                Ok(established) => return Some(established),
                Err(error) => self.report(&address.addr, &error, failures),
            }
        }
        None
    }

    fn report(&self, addr: &str, error: &DialError, failures: &RateLimit) {
        let peer = self.peer.name();
        if let Some(suppressed) = failures.pass() {
            warn!(peer, addr, %error, suppressed, "cannot reach the peer");
        } else {
            debug!(peer, addr, %error, "cannot reach the peer");
        }
        self.peer.set_error(format!("{addr}: {error}"));
    }

    async fn attempt(&self, address: &PeerAddress) -> Result<Established, DialError> {
        let resolved = self.resolve(&address.addr).await?;
        let mut last = DialError::NoUsableAddress;
        for remote in resolved {
            match self.connect(remote, address.class).await {
                Ok(established) => return Ok(established),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn resolve(&self, addr: &str) -> Result<Vec<SocketAddr>, DialError> {
        let usable = |remote: &SocketAddr| self.is_ipv6 || remote.is_ipv4();
        if let Ok(remote) = addr.parse::<SocketAddr>() {
            return Ok(Some(remote).filter(usable).into_iter().collect());
        }
        let deadline = Instant::now() + self.context.timeouts.handshake;
        let resolved = timeout_at(deadline, tokio::net::lookup_host(addr))
            .await
            .map_err(|_| DialError::Timeout(self.context.timeouts.handshake))?
            .map_err(DialError::Resolve)?;
        Ok(resolved.filter(usable).take(RESOLVED_MAX).collect())
    }

    async fn connect(&self, remote: SocketAddr, class: LinkClass) -> Result<Established, DialError> {
        let handshake = self.context.timeouts.handshake;
        let deadline = Instant::now() + handshake;
        let config = self.client_config.clone();
        let connecting = self.endpoint.connect_with(config, remote, self.peer.name())?;
        let connection = timeout_at(deadline, connecting)
            .await
            .map_err(|_| DialError::Timeout(handshake))?
            .map_err(|error| DialError::Refused(LinkEnd::lost(&error)))?;
        let established = timeout_at(deadline, link::establish(connection.clone(), Some(class)));
        let result = established.await.unwrap_or_else(|_| {
            Err(LinkEnd::new(CloseCode::Timeout, "no preamble within the handshake timeout"))
        });
        result.map_err(|end| {
            end.close(&connection);
            DialError::Refused(end)
        })
    }
}
