//! Connections: how many, how long, and how they end.
//!
//! - At most so many at a time; more wait in the system's queue until one ends.
//! - A connection that sends no complete request head within [`HEAD_READ_MAX`] is closed: the first one, and each
//!   later one of a connection that is kept alive.
//! - HTTP/2 connections are pinged, so that a dead one gives its place back.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::middleware::{self, Next};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};

use crate::node::NodeHandle;

/// How long a request's head may take, the wait for it on an open connection included.
const HEAD_READ_MAX: Duration = Duration::from_secs(60);
/// The most bytes of a request's head: the longest names, escaped, and generous headers.
const HEAD_BYTES_MAX: u32 = 32 * 1024;
/// Requests at a time on one HTTP/2 connection.
const STREAMS_MAX: u32 = 128;
/// How often an HTTP/2 connection is pinged, and how long the answer may take.
const PING_INTERVAL: Duration = Duration::from_secs(20);
/// The pause after the system refused a connection, usually for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The listening side of the API.
#[derive(Debug)]
pub(crate) struct HttpServer {
    stop: watch::Sender<bool>,
    task: JoinHandle<JoinSet<()>>,
}

/// Starts the API on a listener that does not block, within a Tokio runtime.
pub(crate) fn serve(
    node: NodeHandle,
    listener: TcpListener,
    connections_max: usize,
) -> std::io::Result<HttpServer> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let (stop, stopped) = watch::channel(false);
    let places = Arc::new(Semaphore::new(connections_max));
    let task = tokio::spawn(accept(listener, super::router(node), places, stopped));
    Ok(HttpServer { stop, task })
}

impl HttpServer {
    /// Takes no more connections, lets requests in progress finish within the time, and closes what is left.
    pub(crate) async fn shutdown(self, drain_max: Duration) {
        self.stop.send_replace(true);
        // The acceptor ends at once; a panic in it would be a defect that must not keep the node from stopping.
        let Ok(mut connections) = self.task.await else { return };
        let drained =
            tokio::time::timeout(drain_max, async { while connections.join_next().await.is_some() {} });
        if drained.await.is_err() {
            tracing::warn!(left = connections.len(), "requests did not finish in time and are broken off");
        }
        connections.shutdown().await;
    }
}

async fn accept(
    listener: tokio::net::TcpListener,
    router: Router,
    places: Arc<Semaphore>,
    stopped: watch::Receiver<bool>,
) -> JoinSet<()> {
    let mut stop = stopped.clone();
    let mut connections = JoinSet::new();
    loop {
        let next = async {
            // Nobody closes the semaphore.
            let place = Arc::clone(&places).acquire_owned().await.ok();
            (place, listener.accept().await)
        };
        tokio::select! {
            () = told(&mut stop) => return connections,
            // Takes ended connections out of the set.
            Some(_) = connections.join_next() => {}
            (place, accepted) = next => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(stream, router.clone(), place, stopped.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "no connection was accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

async fn connection(
    stream: TcpStream,
    router: Router,
    place: Option<OwnedSemaphorePermit>,
    mut stopped: watch::Receiver<bool>,
) {
    // Answers are small and each is waited for; refused only on a socket that is dead already.
    let _ = stream.set_nodelay(true);
    // HTTP/1's own timer starts only once the protocol is known, so the first request is watched here.
    let asked = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&asked);
    let router = router.layer(middleware::from_fn(move |request: Request, next: Next| {
        seen.store(true, Ordering::Relaxed);
        next.run(request)
    }));
    let builder = builder();
    let serving = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut serving = std::pin::pin!(serving);
    let mut first = std::pin::pin!(tokio::time::sleep(HEAD_READ_MAX));
    let mut is_watched = true;
    let mut is_stopping = false;
    loop {
        tokio::select! {
            ended = &mut serving => {
                if let Err(error) = ended {
                    tracing::debug!(error, "a connection broke");
                }
                break;
            }
            () = &mut first, if is_watched => {
                if !asked.load(Ordering::Relaxed) {
                    break;
                }
                is_watched = false;
            }
            () = told(&mut stopped), if !is_stopping => {
                is_stopping = true;
                serving.as_mut().graceful_shutdown();
            }
        }
    }
    drop(place);
}

/// Completes when the server is told to stop, or when nobody is left to tell it.
async fn told(stopped: &mut watch::Receiver<bool>) {
    let _ = stopped.wait_for(|stop| *stop).await;
}

fn builder() -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_READ_MAX)
        .max_buf_size(HEAD_BYTES_MAX as usize);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(HEAD_BYTES_MAX)
        .max_concurrent_streams(STREAMS_MAX)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_INTERVAL);
    builder
}
