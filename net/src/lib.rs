//! QUIC links between Godwit nodes: certificates, endpoint, framing, fault injection.
//!
//! The transport moves opaque frames between *named* nodes and never looks inside one. What holds:
//!
//! - A node is who its certificate says: both ends verify the other against the cluster's CA, the dialer
//!   against the name it dials, the acceptor against the names it has configured. TLS 1.3 only, no resumption.
//! - Of each pair of nodes the one with the smaller name dials, and a pair has at most one link.
//! - Frames of one link arrive in order, once, or not at all. A link that breaks loses what was in flight; whoever
//!   uses the transport recovers from that, as it must from a crash of either node.
//! - Every [`Event::Up`] is followed by exactly one [`Event::Down`] with the same [`LinkId`], with that link's frames
//!   between them and none after. Links of one peer do not overlap.
//! - Every queue is bounded. A slow consumer stops the readers, and QUIC flow control stops the peers; a slow peer
//!   overflows its outbound queue, which closes the link instead of growing.
//! - Nothing that a peer sends panics or allocates beyond the limits in [`Limits`].
//!
//! What is absent: this crate has no storage, and no branch on what a frame means.

mod accept;
mod backoff;
mod config;
mod dial;
mod endpoint;
mod events;
pub mod fault;
mod framing;
mod link;
mod outbound;
mod peer;
mod sync;
pub mod tls;
mod transport;

pub use config::{
    ADDRESSES_MAX, ConfigError, FRAME_BYTES_CEILING, Limits, LinkClass, PEERS_MAX, PeerAddress, PeerConfig,
    Timeouts, TransportConfig,
};
pub use endpoint::{BindError, UDP_BUFFER_BYTES, bind};
pub use events::{Event, EventReceiver};
pub use fault::{FaultControl, FaultCounts, FaultRule};
pub use framing::{FRAME_HEADER_BYTES, PREAMBLE};
pub use link::{CloseCode, LinkId, SendOutcome};
pub use peer::{LinkStats, LinkStatus};
pub use sync::RateLimit;
pub use tls::{CertificateAuthority, IssuedCertificate, TlsError, TlsIdentity};
pub use transport::{ShutdownError, StartError, Transport, TransportHandle, Wire};
