//! Connections: how many, how long, and how they end.
//!
//! - At most so many at a time; more wait in the system's queue until one ends.
//! - A connection that sends no complete request head within [`HEAD_READ_MAX`] is closed: the first one, and each
//!   later one of a connection that is kept alive.
//! - While others wait for a place, a connection that has been idle for [`IDLE_WHEN_CROWDED`] is closed in order: kept-alive
//!   connections of one client must not shut out the others, nor the probes of health.
//! - A connection that takes none of its answer for [`WRITE_STALL_MAX`] is closed, and what the answer holds is freed.
//! - HTTP/2 connections are pinged, so that a dead one gives its place back.

use std::net::TcpListener;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::Request;
use axum::middleware::{self, Next};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio_io_timeout::TimeoutStream;

use crate::node::NodeHandle;

/// How long a request's head may take, the wait for it on an open connection included.
const HEAD_READ_MAX: Duration = Duration::from_secs(60);
/// The most bytes of a request's head: the longest names, escaped, and generous headers.
const HEAD_BYTES_MAX: u32 = 32 * 1024;
/// Requests at a time on one HTTP/2 connection.
const STREAMS_MAX: u32 = 128;
/// How often an HTTP/2 connection is pinged, and how long the answer may take.
const PING_INTERVAL: Duration = Duration::from_secs(20);
/// How long a client may take none of its answer.
const WRITE_STALL_MAX: Duration = Duration::from_secs(30);
/// How long a connection may be idle while others wait for its place.
const IDLE_WHEN_CROWDED: Duration = Duration::from_secs(1);
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
    let crowded = watch::Sender::new(false);
    // A connection that was accepted and has no place yet.
    let mut waiting: Option<TcpStream> = None;
    loop {
        crowded.send_replace(waiting.is_some() && places.available_permits() == 0);
        tokio::select! {
            () = told(&mut stop) => return connections,
            // Takes ended connections out of the set.
            Some(_) = connections.join_next() => {}
            accepted = listener.accept(), if waiting.is_none() => match accepted {
                Ok((stream, _)) => waiting = Some(stream),
                Err(error) => {
                    tracing::warn!(%error, "no connection was accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            // Nobody closes the semaphore.
            Ok(place) = Arc::clone(&places).acquire_owned(), if waiting.is_some() => {
                if let Some(stream) = waiting.take() {
                    let (router, crowded) = (router.clone(), crowded.subscribe());
                    connections.spawn(connection(stream, router, place, stopped.clone(), crowded));
                }
            }
        }
    }
}

async fn connection(
    stream: TcpStream,
    router: Router,
    place: OwnedSemaphorePermit,
    mut stopped: watch::Receiver<bool>,
    mut crowded: watch::Receiver<bool>,
) {
    // Answers are small and each is waited for; refused only on a socket that is dead already.
    let _ = stream.set_nodelay(true);
    // HTTP/1's own timer starts only once the protocol is known, so the first request is watched here.
    let activity = Arc::new(Activity::new());
    let seen = Arc::clone(&activity);
    let router = router.layer(middleware::from_fn(move |request: Request, next: Next| {
        let request_in_progress = InProgress::new(Arc::clone(&seen));
        async move {
            let response = next.run(request).await;
            drop(request_in_progress);
            response
        }
    }));
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(WRITE_STALL_MAX));
    let builder = builder();
    let serving = builder
        .serve_connection_with_upgrades(TokioIo::new(Box::pin(stream)), TowerToHyperService::new(router));
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
                if !activity.asked() {
                    break;
                }
                is_watched = false;
            }
            () = told(&mut stopped), if !is_stopping => {
                is_stopping = true;
                serving.as_mut().graceful_shutdown();
            }
            () = in_the_way(&mut crowded, &activity), if !is_stopping => {
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

/// Completes when others wait for a place and this connection has been idle.
async fn in_the_way(crowded: &mut watch::Receiver<bool>, activity: &Activity) {
    loop {
        if crowded.wait_for(|crowded| *crowded).await.is_err() {
            // Nobody accepts any more.
            return std::future::pending().await;
        }
        match activity.idle() {
            Some(idle) if idle >= IDLE_WHEN_CROWDED => return,
            idle => tokio::time::sleep(IDLE_WHEN_CROWDED - idle.unwrap_or_default()).await,
        }
    }
}

/// What a connection does.
#[derive(Debug)]
struct Activity(Mutex<Requests>);

#[derive(Debug)]
struct Requests {
    in_progress: usize,
    asked: bool,
    last: Instant,
}

impl Activity {
    fn new() -> Self {
        Self(Mutex::new(Requests { in_progress: 0, asked: false, last: Instant::now() }))
    }

    fn requests(&self) -> MutexGuard<'_, Requests> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there has been a request.
    fn asked(&self) -> bool {
        self.requests().asked
    }

    /// For how long there has been no request in progress; `None` while there is one.
    fn idle(&self) -> Option<Duration> {
        let requests = self.requests();
        (requests.in_progress == 0).then(|| requests.last.elapsed())
    }
}

/// A request in progress, until it is dropped.
struct InProgress(Arc<Activity>);

impl InProgress {
    fn new(activity: Arc<Activity>) -> Self {
        let mut requests = activity.requests();
        requests.in_progress += 1;
        requests.asked = true;
        drop(requests);
        Self(activity)
    }
}

impl Drop for InProgress {
    fn drop(&mut self) {
        let mut requests = self.0.requests();
        requests.in_progress -= 1;
        requests.last = Instant::now();
    }
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
