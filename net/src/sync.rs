//! Small helpers for state that several tasks share.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// Locks a mutex whose critical sections leave no half-made state, so that poison carries no news.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Completes when the transport is told to stop, or when what could tell it is gone. Cancel-safe.
pub(crate) async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone, hence that nobody can want this task any more.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Lets one log line through an interval, and counts those in between, so that a peer cannot fill the log.
#[derive(Debug)]
pub struct RateLimit {
    interval: Duration,
    state: Mutex<RateState>,
}

#[derive(Debug, Default)]
struct RateState {
    last: Option<Instant>,
    suppressed: u64,
}

impl RateLimit {
    /// Lets a line through at once, then one each interval.
    pub fn new(interval: Duration) -> Self {
        Self { interval, state: Mutex::default() }
    }

    /// The number of lines suppressed since the last one if a line may be written now, `None` if it may not.
    pub fn pass(&self) -> Option<u64> {
        let now = Instant::now();
        let mut state = lock(&self.state);
        if state.last.is_some_and(|last| now.duration_since(last) < self.interval) {
            state.suppressed = state.suppressed.saturating_add(1);
            return None;
        }
        state.last = Some(now);
        Some(std::mem::take(&mut state.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn rate_limit_counts_what_it_suppresses() {
        let limit = RateLimit::new(Duration::from_secs(3600));
        assert_eq!(limit.pass(), Some(0));
        assert_eq!(limit.pass(), None);
        assert_eq!(limit.pass(), None);
        assert_eq!(lock(&limit.state).suppressed, 2);
    }
}
