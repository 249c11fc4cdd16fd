//! The UDP socket and QUIC's settings.
//!
//! Windows fit 150 ms at 1 Gbit/s. A UDP buffer must hold what arrives while the process is not scheduled: 4 MiB is
//! some 30 ms at that rate, and far above common defaults, so the operating system often has to be told to allow it.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, Once};

use quinn::congestion::CubicConfig;
use quinn::{EndpointConfig, IdleTimeout, VarInt};
use quinn_proto::HashedConnectionIdGenerator;
use ring::hmac;
use socket2::{Domain, Protocol, Socket, Type};
use tracing::warn;

use crate::config::{ConfigError, Limits, Timeouts};
use crate::tls::TlsIdentity;

/// Send and receive buffer asked of the operating system for each UDP socket.
pub const UDP_BUFFER_BYTES: usize = 4 << 20;

/// What UDP payloads are assumed to pass before the path is probed: what QUIC requires of any path, so that
/// tunnelled private lines work. Probing finds what Ethernet allows within a few round trips.
const INITIAL_MTU_BYTES: u16 = 1_200;

/// Handshakes that may wait to be looked at.
const INCOMING_WAITING_MAX: usize = 256;

/// Bytes that one waiting handshake, and all of them, may have buffered.
const INCOMING_BUFFER_BYTES: u64 = 64 << 10;
const INCOMING_BUFFERS_BYTES: u64 = 4 << 20;

/// A socket could not be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {listen}")]
pub struct BindError {
    /// The address wanted.
    pub listen: SocketAddr,
    /// The reason.
    pub source: io::Error,
}

/// Binds a UDP socket with buffers of [`UDP_BUFFER_BYTES`], or what the system allows, with one warning a process.
///
/// Port 0 takes any free port. `[::]` receives IPv4 as well.
pub fn bind(listen: SocketAddr) -> Result<UdpSocket, BindError> {
    let open = || {
        let socket = Socket::new(Domain::for_address(listen), Type::DGRAM, Some(Protocol::UDP))?;
        if listen.is_ipv6() {
            socket.set_only_v6(false)?;
        }
        request_buffers(&socket);
        socket.bind(&listen.into())?;
        Ok(socket.into())
    };
    open().map_err(|source| BindError { listen, source })
}

fn request_buffers(socket: &Socket) {
    static WARNED: Once = Once::new();
    // Some systems refuse what others shorten; what counts is what there is afterwards.
    let _ = socket.set_recv_buffer_size(UDP_BUFFER_BYTES);
    let _ = socket.set_send_buffer_size(UDP_BUFFER_BYTES);
    // Linux reports twice what it grants.
    let factor = if cfg!(target_os = "linux") { 2 } else { 1 };
    let receive = socket.recv_buffer_size().unwrap_or(0) / factor;
    let send = socket.send_buffer_size().unwrap_or(0) / factor;
    if receive < UDP_BUFFER_BYTES || send < UDP_BUFFER_BYTES {
        WARNED.call_once(|| {
            warn!(
                wanted_bytes = UDP_BUFFER_BYTES,
                receive_bytes = receive,
                send_bytes = send,
                "UDP buffers are smaller than wanted; on Linux raise net.core.rmem_max and wmem_max"
            );
        });
    }
}

/// QUIC's settings for both ends.
pub(crate) fn transport_config(
    limits: &Limits,
    timeouts: &Timeouts,
) -> Result<Arc<quinn::TransportConfig>, ConfigError> {
    let idle = IdleTimeout::try_from(timeouts.idle)
        .map_err(|_| ConfigError::OutOfRange { name: "idle", rule: "at most an hour" })?;
    let window = VarInt::from_u32(limits.window_bytes);
    let mut config = quinn::TransportConfig::default();
    config
        .max_concurrent_uni_streams(VarInt::from_u32(1))
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .stream_receive_window(window)
        .receive_window(window)
        .send_window(u64::from(limits.window_bytes))
        .keep_alive_interval(Some(timeouts.keep_alive))
        .max_idle_timeout(Some(idle))
        .initial_mtu(INITIAL_MTU_BYTES)
        .congestion_controller_factory(Arc::new(CubicConfig::default()));
    Ok(Arc::new(config))
}

/// The endpoint's own settings.
///
/// A process that was killed cannot tell its peers. When it is back it answers what they send on connections that it
/// does not know with stateless resets (RFC 9000, 10.3), so that they connect anew at once instead of waiting for
/// their idle timeouts. For that, keys are the same at each start: they are derived from the node's private key.
pub(crate) fn endpoint_config(identity: &TlsIdentity) -> EndpointConfig {
    let reset = identity.derive_secret("godwit 2026 QUIC stateless reset");
    let ids = identity.derive_secret("godwit 2026 QUIC connection ids");
    let mut id_key = [0; 8];
    id_key.copy_from_slice(&ids[..8]);
    let id_key = u64::from_le_bytes(id_key);
    let mut config = EndpointConfig::new(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, &reset)));
    config.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(id_key)));
    config
}

/// Bounds what strangers can make an endpoint hold.
pub(crate) fn bound_incoming(config: &mut quinn::ServerConfig) {
    config
        .max_incoming(INCOMING_WAITING_MAX)
        .incoming_buffer_size(INCOMING_BUFFER_BYTES)
        .incoming_buffer_size_total(INCOMING_BUFFERS_BYTES);
}
