//! What an export or import says on standard error while it runs, and at its end.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Between two lines.
const INTERVAL: Duration = Duration::from_secs(2);

/// Counts, shared with who prints them.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) records: AtomicU64,
    pub(super) bytes: AtomicU64,
    /// The bytes that there are; 0 if that is not known.
    pub(super) of_bytes: u64,
    /// From which line on an import is to be resumed.
    pub(super) resume: AtomicU64,
}

/// Prints counts until it is dropped.
#[derive(Debug)]
pub(super) struct Progress {
    counts: Arc<Counts>,
    begun: Instant,
    printing: Option<tokio::task::JoinHandle<()>>,
}

impl Progress {
    /// `resume` is the name under which an import can be resumed.
    pub(super) fn begin(counts: &Arc<Counts>, quiet: bool, resume: Option<String>) -> Self {
        let (counts, begun) = (Arc::clone(counts), Instant::now());
        let of = Arc::clone(&counts);
        let print = async move {
            loop {
                tokio::time::sleep(INTERVAL).await;
                let resume = resume.as_ref().map(|id| (id.as_str(), of.resume.load(Ordering::Relaxed)));
                let resume = resume.map(|(id, line)| format!("; --resume {id}:{line}")).unwrap_or_default();
                eprintln!("{}{resume}", told(&of, begun.elapsed()));
            }
        };
        Self { counts, begun, printing: (!quiet).then(|| tokio::spawn(print)) }
    }

    /// Counts and time so far.
    pub(super) fn told(&self) -> String {
        told(&self.counts, self.begun.elapsed())
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.printing.iter().for_each(|printing| printing.abort());
    }
}

fn told(counts: &Counts, took: Duration) -> String {
    let (records, bytes) = (counts.records.load(Ordering::Relaxed), counts.bytes.load(Ordering::Relaxed));
    let seconds = took.as_secs_f64();
    let rate = records as f64 / seconds.max(0.001);
    let share = match counts.of_bytes {
        0 => String::new(),
        all => format!(", {:.1} %", 100.0 * bytes as f64 / all as f64),
    };
    format!("{records} records, {:.1} MB{share}, in {seconds:.1} s: {rate:.0} records/s", bytes as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_told_if_known() {
        let counts = Counts { records: 50.into(), bytes: 1_000_000.into(), ..Counts::default() };
        assert_eq!(told(&counts, Duration::from_secs(2)), "50 records, 1.0 MB, in 2.0 s: 25 records/s");
        let counts = Counts { of_bytes: 4_000_000, ..counts };
        assert!(told(&counts, Duration::from_secs(2)).contains("1.0 MB, 25.0 %"));
    }
}
