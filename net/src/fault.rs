//! A UDP socket that delays, loses and reorders datagrams, for tests and demonstrations.
//!
//! A [`FaultRule`] applies to datagrams sent to one address, or to all that have no rule of their own. Rules change
//! while the socket is in use, through a [`FaultControl`]. What holds:
//!
//! - Delays apply one way, to what this socket sends. Datagrams to one address keep their order, jitter
//!   or not, except those that the reorder rate picks: these are held back longer and later ones overtake them.
//! - A cut drops what is sent to an address, what waits for it, and what arrives from it.
//! - Waiting datagrams are bounded by [`HELD_DATAGRAMS_MAX`]; beyond it they are dropped as by a full router.
//! - Draws come from one generator with the seed given. The order in which tasks draw is the scheduler's, so runs with
//!   one seed are alike, not equal.
//!
//! Timers have the runtime's granularity, 1 ms. Addresses are compared in their canonical form: an IPv4
//! address is the same whether seen by an IPv4 or an IPv6 socket.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::future::poll_fn;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use godwit_core::rng::Rng;
use quinn::udp::{EcnCodepoint, RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::sync::lock;

/// Most datagrams that wait in one socket: 1 Gbit/s for a third of a second in datagrams of 1,200 bytes.
pub const HELD_DATAGRAMS_MAX: usize = 32_768;

/// How much longer a datagram is held that the reorder rate picks.
pub const REORDER_HOLD: Duration = Duration::from_millis(3);

/// Addresses whose order is remembered; beyond it, those with nothing waiting are forgotten.
const ORDERED_ADDRESSES_MAX: usize = 1_024;

/// What happens to datagrams between this socket and an address. Rates are in parts per million.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FaultRule {
    /// Added to the way of each datagram sent, in microseconds.
    pub delay_us: u64,
    /// Up to this much more, evenly drawn, in microseconds.
    pub jitter_us: u64,
    /// Rate of datagrams sent that are lost.
    pub loss_ppm: u32,
    /// Rate of datagrams sent that later ones overtake.
    pub reorder_ppm: u32,
    /// Nothing passes, either way.
    pub cut: bool,
}

/// What has happened to datagrams so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FaultCounts {
    /// Sent later than asked.
    pub delayed: u64,
    /// Of these, overtaken by choice.
    pub reordered: u64,
    /// Dropped by the loss rate.
    pub lost: u64,
    /// Dropped by a cut, on the way out, waiting, or on the way in.
    pub cut: u64,
    /// Dropped because too many were waiting.
    pub overflowed: u64,
}

/// Switches faults while they are in use. Clones control the same faults; one may serve several sockets.
#[derive(Debug, Clone)]
pub struct FaultControl {
    inner: Arc<Control>,
}

#[derive(Debug)]
struct Control {
    rules: Mutex<Rules>,
    delayed: AtomicU64,
    reordered: AtomicU64,
    lost: AtomicU64,
    cut: AtomicU64,
    overflowed: AtomicU64,
}

#[derive(Debug)]
struct Rules {
    all: FaultRule,
    by_address: BTreeMap<SocketAddr, FaultRule>,
    cut_all: bool,
    rng: Rng,
}

impl Rules {
    fn rule(&self, address: SocketAddr) -> FaultRule {
        let mut rule = self.by_address.get(&address).copied().unwrap_or(self.all);
        rule.cut |= self.cut_all;
        rule
    }
}

enum Verdict {
    Drop,
    Pass { delay: Duration, reordered: bool },
}

impl FaultControl {
    /// No faults yet; draws come from the seed.
    pub fn new(seed: u64) -> Self {
        let rules = Rules {
            all: FaultRule::default(),
            by_address: BTreeMap::new(),
            cut_all: false,
            rng: Rng::new(seed),
        };
        let inner = Control {
            rules: Mutex::new(rules),
            delayed: AtomicU64::new(0),
            reordered: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            cut: AtomicU64::new(0),
            overflowed: AtomicU64::new(0),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Gives an address a rule of its own.
    pub fn set(&self, address: SocketAddr, rule: FaultRule) {
        lock(&self.inner.rules).by_address.insert(canonical(address), rule);
    }

    /// Gives all addresses this rule and forgets rules of their own. Leaves [`Self::cut_all`] as it is.
    pub fn set_all(&self, rule: FaultRule) {
        let mut rules = lock(&self.inner.rules);
        rules.all = rule;
        rules.by_address.clear();
    }

    /// Cuts everything, or lifts that; the rules stay as they are underneath.
    pub fn cut_all(&self, cut: bool) {
        lock(&self.inner.rules).cut_all = cut;
    }

    /// What has happened so far, over all sockets of this control.
    pub fn counts(&self) -> FaultCounts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        FaultCounts {
            delayed: read(&self.inner.delayed),
            reordered: read(&self.inner.reordered),
            lost: read(&self.inner.lost),
            cut: read(&self.inner.cut),
            overflowed: read(&self.inner.overflowed),
        }
    }

    fn judge(&self, address: SocketAddr) -> Verdict {
        let mut rules = lock(&self.inner.rules);
        let rule = rules.rule(address);
        if rule.cut {
            count(&self.inner.cut);
            return Verdict::Drop;
        }
        if hits(&mut rules.rng, rule.loss_ppm) {
            count(&self.inner.lost);
            return Verdict::Drop;
        }
        let jitter_us =
            if rule.jitter_us == 0 { 0 } else { rules.rng.below(rule.jitter_us.saturating_add(1)) };
        let delay = Duration::from_micros(rule.delay_us.saturating_add(jitter_us));
        Verdict::Pass { delay, reordered: hits(&mut rules.rng, rule.reorder_ppm) }
    }

    /// Whether a datagram of this address is to be dropped now, and counted as such.
    fn is_cut(&self, address: SocketAddr) -> bool {
        let is_cut = lock(&self.inner.rules).rule(address).cut;
        if is_cut {
            count(&self.inner.cut);
        }
        is_cut
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// A socket with faults around a real one.
#[derive(Debug)]
pub struct FaultySocket {
    wire: Arc<FaultyWire>,
}

#[derive(Debug)]
struct FaultyWire {
    control: FaultControl,
    socket: Arc<dyn AsyncUdpSocket>,
    held: Mutex<Held>,
    wake: Notify,
    closed: AtomicBool,
}

#[derive(Debug, Default)]
struct Held {
    datagrams: BinaryHeap<Reverse<Datagram>>,
    /// When the last datagram to an address that must not be overtaken leaves.
    last: BTreeMap<SocketAddr, Instant>,
    sequence: u64,
}

/// Ordered by when it leaves, then by when it came; the sequence is unique, so the rest is never compared.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Datagram {
    release: Instant,
    sequence: u64,
    destination: SocketAddr,
    ecn: Option<u8>,
    src_ip: Option<std::net::IpAddr>,
    contents: Bytes,
}

enum Due {
    Now(Datagram),
    At(Instant),
    Never,
}

impl FaultySocket {
    /// Puts faults around a socket. The future releases delayed datagrams and must be run; it ends when the socket is
    /// dropped.
    pub fn new(
        socket: Arc<dyn AsyncUdpSocket>,
        control: FaultControl,
    ) -> (Arc<Self>, impl Future<Output = ()> + Send + 'static) {
        let wire = Arc::new(FaultyWire {
            control,
            socket,
            held: Mutex::default(),
            wake: Notify::new(),
            closed: AtomicBool::new(false),
        });
        let release = release(Arc::clone(&wire));
        (Arc::new(Self { wire }), release)
    }
}

impl Drop for FaultySocket {
    fn drop(&mut self) {
        self.wire.closed.store(true, Ordering::Release);
        self.wire.wake.notify_one();
    }
}

impl AsyncUdpSocket for FaultySocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.wire.socket).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        // One segment, given `max_transmit_segments`; should it be several, each has its own fate.
        let segment = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
        for contents in transmit.contents.chunks(segment) {
            self.wire.send(&Transmit { contents, segment_size: None, ..transmit.clone() })?;
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let received = ready!(self.wire.socket.poll_recv(cx, bufs, meta))?;
        for meta in meta.iter_mut().take(received) {
            if self.wire.control.is_cut(canonical(meta.addr)) {
                // An entry without bytes holds no datagram for the endpoint to look at.
                meta.len = 0;
            }
        }
        Poll::Ready(Ok(received))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.wire.socket.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        1
    }

    fn max_receive_segments(&self) -> usize {
        self.wire.socket.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.wire.socket.may_fragment()
    }
}

impl FaultyWire {
    fn send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let address = canonical(transmit.destination);
        let Verdict::Pass { delay, reordered } = self.control.judge(address) else {
            return Ok(());
        };
        let now = Instant::now();
        let mut held = lock(&self.held);
        let last = held.last.get(&address).copied().unwrap_or(now);
        if delay.is_zero() && !reordered && last <= now {
            drop(held);
            return self.socket.try_send(transmit);
        }
        if held.datagrams.len() >= HELD_DATAGRAMS_MAX {
            count(&self.control.inner.overflowed);
            return Ok(());
        }
        // A delay beyond what the clock can express is a cut in all but name; a century does.
        let wanted = now.checked_add(delay).unwrap_or(now + Duration::from_secs(3_155_760_000));
        let release = if reordered {
            count(&self.control.inner.reordered);
            wanted.max(last) + REORDER_HOLD
        } else {
            held.remember(address, wanted.max(last), now)
        };
        count(&self.control.inner.delayed);
        held.push(release, transmit);
        drop(held);
        self.wake.notify_one();
        Ok(())
    }

    fn due(&self) -> Due {
        let mut held = lock(&self.held);
        match held.datagrams.peek() {
            None => Due::Never,
            Some(Reverse(next)) if next.release > Instant::now() => Due::At(next.release),
            Some(_) => held.datagrams.pop().map_or(Due::Never, |Reverse(next)| Due::Now(next)),
        }
    }
}

impl Held {
    fn remember(&mut self, address: SocketAddr, release: Instant, now: Instant) -> Instant {
        if self.last.len() >= ORDERED_ADDRESSES_MAX {
            self.last.retain(|_, last| *last > now);
        }
        if self.last.len() < ORDERED_ADDRESSES_MAX || self.last.contains_key(&address) {
            self.last.insert(address, release);
        }
        release
    }

    fn push(&mut self, release: Instant, transmit: &Transmit<'_>) {
        self.sequence += 1;
        self.datagrams.push(Reverse(Datagram {
            release,
            sequence: self.sequence,
            destination: transmit.destination,
            ecn: transmit.ecn.map(|ecn| ecn as u8),
            src_ip: transmit.src_ip,
            contents: Bytes::copy_from_slice(transmit.contents),
        }));
    }
}

async fn release(wire: Arc<FaultyWire>) {
    let mut poller = Arc::clone(&wire.socket).create_io_poller();
    while !wire.closed.load(Ordering::Acquire) {
        match wire.due() {
            Due::Now(datagram) => {
                if !wire.control.is_cut(canonical(datagram.destination)) {
                    write(&wire, &datagram, &mut poller).await;
                }
            }
            Due::At(release) => tokio::select! {
                () = sleep_until(release) => {}
                () = wire.wake.notified() => {}
            },
            Due::Never => wire.wake.notified().await,
        }
    }
}

async fn write(wire: &FaultyWire, datagram: &Datagram, poller: &mut Pin<Box<dyn UdpPoller>>) {
    let transmit = Transmit {
        destination: datagram.destination,
        ecn: datagram.ecn.and_then(EcnCodepoint::from_bits),
        contents: &datagram.contents,
        segment_size: None,
        src_ip: datagram.src_ip,
    };
    while let Err(error) = wire.socket.try_send(&transmit) {
        // UDP promises nothing: any other error loses the datagram, as the network might.
        let blocked = error.kind() == io::ErrorKind::WouldBlock;
        if !blocked || poll_fn(|cx| poller.as_mut().poll_writable(cx)).await.is_err() {
            return;
        }
    }
}

/// True so many times in a million; a rate of 0 draws nothing.
fn hits(rng: &mut Rng, ppm: u32) -> bool {
    ppm != 0 && rng.chance(u64::from(ppm), 1_000_000)
}

#[cfg(test)]
mod tests {
    use quinn::{Runtime, TokioRuntime};
    use tokio::net::UdpSocket;

    use super::*;

    const COUNT: u8 = 100;

    /// Sends numbered datagrams under a rule and gives the order in which they arrive.
    async fn order_under(rule: FaultRule) -> Vec<u8> {
        let sink = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let source = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let control = FaultControl::new(5);
        control.set(sink.local_addr().unwrap(), rule);
        let source = TokioRuntime.wrap_udp_socket(source).unwrap();
        let (socket, release) = FaultySocket::new(source, control.clone());
        let release = tokio::spawn(release);
        let mut poller = Arc::clone(&socket).create_io_poller();
        for number in 0..COUNT {
            let transmit = Transmit {
                destination: sink.local_addr().unwrap(),
                ecn: None,
                contents: &[number],
                segment_size: None,
                src_ip: None,
            };
            while let Err(error) = socket.try_send(&transmit) {
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                poll_fn(|cx| poller.as_mut().poll_writable(cx)).await.unwrap();
            }
        }
        let mut order = Vec::new();
        for _ in 0..COUNT {
            let mut datagram = [0];
            sink.recv(&mut datagram).await.unwrap();
            order.push(datagram[0]);
        }
        drop(socket);
        // Ends by itself with its socket.
        release.await.unwrap();
        order
    }

    #[tokio::test]
    async fn jitter_keeps_the_order_and_the_reorder_rate_breaks_it() {
        let rule = FaultRule { delay_us: 1_000, jitter_us: 5_000, ..FaultRule::default() };
        assert!(order_under(rule).await.is_sorted());
        let rule = FaultRule { reorder_ppm: 200_000, ..FaultRule::default() };
        let mut order = order_under(rule).await;
        assert!(!order.is_sorted());
        order.sort_unstable();
        assert_eq!(order, (0..COUNT).collect::<Vec<_>>());
    }
}
