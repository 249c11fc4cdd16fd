//! A way between two processes that can be cut: datagrams go through a socket of the test, which drops all of them while the
//! way is cut. Neither process is told: each finds out by silence, as with a real cut.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

const LOOPBACK: &str = "127.0.0.1";
const DATAGRAM_BYTES_MAX: usize = 65_536;

/// One way, from whoever dials `port` to a node.
pub struct Relay {
    pub port: u16,
    is_cut: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Relay {
    /// Within a Tokio runtime.
    pub async fn start(to: u16) -> Self {
        let front = UdpSocket::bind((LOOPBACK, 0)).await.unwrap();
        let port = front.local_addr().unwrap().port();
        let is_cut = Arc::new(AtomicBool::new(false));
        let task = tokio::spawn(run(front, SocketAddr::from(([127, 0, 0, 1], to)), Arc::clone(&is_cut)));
        Self { port, is_cut, task }
    }

    pub fn cut(&self, is_cut: bool) {
        self.is_cut.store(is_cut, Ordering::Relaxed);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Each dialler gets a socket of its own, so that what comes back is known to be for it.
async fn run(front: UdpSocket, to: SocketAddr, is_cut: Arc<AtomicBool>) {
    let front = Arc::new(front);
    let mut backs: BTreeMap<SocketAddr, Arc<UdpSocket>> = BTreeMap::new();
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        let Ok((bytes, dialler)) = front.recv_from(&mut buffer).await else { continue };
        if is_cut.load(Ordering::Relaxed) {
            continue;
        }
        let back = match backs.get(&dialler) {
            Some(back) => back,
            None => {
                let back = Arc::new(UdpSocket::bind((LOOPBACK, 0)).await.unwrap());
                let (front, back, is_cut) = (Arc::clone(&front), Arc::clone(&back), Arc::clone(&is_cut));
                tokio::spawn(run_back(front, Arc::clone(&back), dialler, is_cut));
                backs.entry(dialler).or_insert(back)
            }
        };
        // What the system does not take is lost, as datagrams are.
        let _ = back.send_to(&buffer[..bytes], to).await;
    }
}

/// Ends with the test's runtime.
async fn run_back(front: Arc<UdpSocket>, back: Arc<UdpSocket>, dialler: SocketAddr, is_cut: Arc<AtomicBool>) {
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        let Ok((bytes, _)) = back.recv_from(&mut buffer).await else { continue };
        if !is_cut.load(Ordering::Relaxed) {
            let _ = front.send_to(&buffer[..bytes], dialler).await;
        }
    }
}
