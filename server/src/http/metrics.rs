//! `/metrics`: counters and gauges in Prometheus' text format, version 0.0.4.
//!
//! Names follow Prometheus' conventions: base units (seconds, bytes), `_total` for what only grows while the process lives.
//! `docs/OPERATIONS.md` says which to watch. What cannot be told at the moment (the committer has too much to do to say how the node
//! is) is left out; the rest is told all the same.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::extract::State;
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use godwit_engine::stats::{COMMIT_US_BOUNDS, CommitCounts};
use godwit_engine::store::StoreStats;
use godwit_net::LinkStatus;
use godwit_proto::status::Status;

use super::Api;

/// Upper bounds of the buckets of request times, in microseconds; one more takes what is slower.
const REQUEST_US_BOUNDS: [u64; 12] =
    [250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000, 5_000_000];

/// What is counted of requests.
#[derive(Debug, Default)]
pub(super) struct Requests {
    /// By whether they read, and by the first digit of their status.
    answered: [[AtomicU64; 6]; 2],
    us_total: AtomicU64,
    us_buckets: [AtomicU64; REQUEST_US_BOUNDS.len() + 1],
}

impl Requests {
    /// Notes an answer. A feed's or a body's time is that to its head.
    pub(super) fn answered(&self, method: &Method, status: StatusCode, took: Duration) {
        let reads = usize::from(matches!(*method, Method::GET | Method::HEAD));
        let class = usize::from(status.as_u16() / 100).min(5);
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.answered[reads][class].fetch_add(1, Ordering::Relaxed);
        self.us_total.fetch_add(us, Ordering::Relaxed);
        let bucket = REQUEST_US_BOUNDS.partition_point(|&bound| bound < us);
        self.us_buckets[bucket].fetch_add(1, Ordering::Relaxed);
    }
}

/// Text that grows, a family at a time.
#[derive(Default)]
struct Text(String);

impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string does not fail.
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        let quoted = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let labels: Vec<String> =
            labels.iter().map(|(name, value)| format!("{name}=\"{}\"", quoted(value))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _ = writeln!(self.0, "{name}{labels} {value}");
    }

    /// A family of one sample.
    fn one(&mut self, name: &str, kind: &str, help: &str, value: impl std::fmt::Display) {
        self.family(name, kind, help);
        self.sample(name, &[], value);
    }

    fn histogram(&mut self, name: &str, help: &str, bounds: &[u64], buckets: &[u64], us_total: u64) {
        self.family(name, "histogram", help);
        let (bucket, mut count) = (format!("{name}_bucket"), 0);
        for (i, of_bucket) in buckets.iter().enumerate() {
            count += of_bucket;
            let bound = bounds.get(i).map_or_else(|| "+Inf".to_owned(), |us| seconds(*us).to_string());
            self.sample(&bucket, &[("le", &bound)], count);
        }
        self.sample(&format!("{name}_sum"), &[], seconds(us_total));
        self.sample(&format!("{name}_count"), &[], count);
    }
}

/// `GET`: all metrics, in Prometheus' text format.
#[utoipa::path(
    get, path = "/metrics", operation_id = "readMetrics", tag = "node",
    responses((status = 200, description = "Metrics.", body = String, content_type = "text/plain"))
)]
pub(super) async fn read(State(api): State<Api>) -> Response {
    let mut text = Text::default();
    let status = api.node.status().await.ok();
    let store = api.node.store_stats().await.ok();
    requests(&mut text, &api);
    commits(&mut text, &api.node.commit_counts(), api.node.queued());
    if let Some(status) = &status {
        node(&mut text, status);
    }
    if let Some(store) = store {
        stored(&mut text, &store);
    }
    links(&mut text, &api.node.links(), status.as_ref());
    namespaces(&mut text, &api);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text.0).into_response()
}

fn requests(text: &mut Text, api: &Api) {
    const TOTAL: &str = "godwit_http_requests_total";
    text.family(TOTAL, "counter", "Requests answered, by what they do and the class of their status.");
    let counts = &api.metrics;
    for (reads, by_class) in counts.answered.iter().enumerate() {
        for (class, count) in by_class.iter().enumerate().skip(2) {
            let kind = if reads == 1 { "read" } else { "write" };
            let labels = [("kind", kind), ("status", ["", "", "2xx", "3xx", "4xx", "5xx"][class])];
            text.sample(TOTAL, &labels, count.load(Ordering::Relaxed));
        }
    }
    let buckets: Vec<u64> = counts.us_buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect();
    let us_total = counts.us_total.load(Ordering::Relaxed);
    let help = "Time from a request's head to its answer's.";
    text.histogram("godwit_http_request_seconds", help, &REQUEST_US_BOUNDS, &buckets, us_total);
    let limits = api.node.limits();
    let in_progress = limits.requests - api.requests.available_permits();
    text.one("godwit_http_requests_in_progress", "gauge", "Requests for data in progress.", in_progress);
    let feeds = limits.feeds - api.feeds.available_permits();
    text.one("godwit_feeds_open", "gauge", "Change feeds that are open.", feeds);
    let clients = limits.syncs - api.syncs.available_permits();
    text.one(
        "godwit_automerge_repo_clients",
        "gauge",
        "Clients of automerge-repo that are connected.",
        clients,
    );
    let help = "Whether the node takes requests.";
    text.one("godwit_ready", "gauge", help, u8::from(api.node.is_ready()));
}

fn commits(text: &mut Text, counts: &CommitCounts, queued: usize) {
    let counters = [
        ("godwit_commit_inputs_total", "Requests and messages handled by the committer.", counts.inputs),
        ("godwit_commit_groups_total", "Groups handled, with or without changes.", counts.groups),
        ("godwit_commit_bytes_total", "Bytes of keys and values committed.", counts.bytes),
        ("godwit_syncs_total", "Syncs apart from commits, with durability \"os\".", counts.syncs),
    ];
    for (name, help, value) in counters {
        text.one(name, "counter", help, value);
    }
    let help = "Time of syncs apart from commits.";
    text.one("godwit_sync_seconds_total", "counter", help, seconds(counts.sync_us_total));
    let help = "Time that writing a group takes, its sync included with durability \"fsync\".";
    let (buckets, total) = (&counts.commit_us_buckets, counts.commit_us_total);
    text.histogram("godwit_commit_seconds", help, &COMMIT_US_BOUNDS, buckets, total);
    let help = "Requests and messages that wait for the committer.";
    text.one("godwit_commit_queue", "gauge", help, queued);
}

fn node(text: &mut Text, status: &Status) {
    text.family("godwit_info", "gauge", "Who the node is.");
    let replica = status.replica.to_string();
    let labels = [
        ("cluster", status.cluster.as_str()),
        ("node", &status.node),
        ("region", &status.region),
        ("replica", &replica),
        ("version", env!("CARGO_PKG_VERSION")),
    ];
    text.sample("godwit_info", &labels, 1);
    let help = "Whether every other node is linked and has told exactly what this one has.";
    text.one("godwit_converged", "gauge", help, u8::from(status.converged));
    let help = "Bytes of the replication log's entries.";
    text.one("godwit_log_bytes", "gauge", help, status.log_bytes);
    if let Some(oldest_ms) = status.log_oldest_ms {
        let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let age = now_ms.saturating_sub(u128::from(oldest_ms)) as f64 / 1e3;
        text.one("godwit_log_oldest_seconds", "gauge", "Age of the oldest entry of the log.", age);
    }
    let help = "Bytes of commits of peers that wait for others that they depend on.";
    text.one("godwit_pending_bytes", "gauge", help, status.pending_bytes);
    let (repairs, scrubs) = (&status.repairs, &status.scrubs);
    let help = "Partitions that wait for their repair, or are being repaired.";
    let open = repairs.waiting + usize::from(repairs.under_way.is_some());
    text.one("godwit_repairs_open", "gauge", help, open);
    let counters = [
        ("godwit_repairs_total", "Partitions repaired from a peer.", repairs.done),
        ("godwit_repairs_given_up_total", "Repairs broken off; they are tried again.", repairs.given_up),
        ("godwit_repair_received_bytes_total", "Bytes received for repairs.", repairs.bytes_received),
        ("godwit_repair_sent_bytes_total", "Bytes sent for repairs.", repairs.bytes_sent),
        ("godwit_scrubs_total", "Comparisons of a partition with a peer's.", scrubs.compared),
        ("godwit_scrub_rows_missing_total", "Rows found lost here, and put back.", scrubs.rows_missing),
        ("godwit_scrub_rows_altered_total", "Rows found other than a peer's.", scrubs.rows_altered),
    ];
    for (name, help, value) in counters {
        text.one(name, "counter", help, value);
    }
}

fn stored(text: &mut Text, store: &StoreStats) {
    let gauges = [
        ("godwit_store_rows", "Rows, as RocksDB estimates them.", store.rows_estimated),
        (
            "godwit_store_records",
            "Records that have rows, as RocksDB estimates them.",
            store.records_estimated,
        ),
        ("godwit_store_table_bytes", "Bytes of table files.", store.table_bytes),
        ("godwit_store_memtable_bytes", "Bytes of memtables.", store.memtable_bytes),
        ("godwit_store_cache_bytes", "Bytes in the block cache.", store.block_cache_bytes),
    ];
    for (name, help, value) in gauges {
        text.one(name, "gauge", help, value);
    }
}

fn links(text: &mut Text, links: &[LinkStatus], status: Option<&Status>) {
    type Of = fn(&LinkStatus) -> Option<f64>;
    let families: [(&str, &str, &str, Of); 7] = [
        ("godwit_link_up", "gauge", "Whether there is a link to the peer.", |link| {
            Some(f64::from(u8::from(link.up.is_some())))
        }),
        ("godwit_link_rtt_seconds", "gauge", "Round trip as QUIC estimates it.", |link| {
            link.up.as_ref().map(|up| up.rtt.as_secs_f64())
        }),
        ("godwit_link_queue_bytes", "gauge", "Bytes that wait to be written to the link.", |link| {
            link.up.as_ref().map(|up| up.outbound_queue_bytes as f64)
        }),
        ("godwit_link_connects_total", "counter", "Links that came up.", |link| Some(link.connects as f64)),
        ("godwit_link_sent_bytes_total", "counter", "Bytes of UDP datagrams sent to the peer.", |link| {
            Some(link.udp_bytes_sent as f64)
        }),
        ("godwit_link_received_bytes_total", "counter", "Bytes of UDP datagrams received from it.", |link| {
            Some(link.udp_bytes_received as f64)
        }),
        ("godwit_link_lost_packets_total", "counter", "QUIC packets sent and taken for lost.", |link| {
            Some(link.packets_lost as f64)
        }),
    ];
    for (name, kind, help, of) in families {
        text.family(name, kind, help);
        for link in links {
            if let Some(value) = of(link) {
                text.sample(name, &[("peer", &link.peer)], value);
            }
        }
    }
    let Some(status) = status else { return };
    let help = "Commits that this node has and the peer has not told to have.";
    text.family("godwit_peer_commits_behind", "gauge", help);
    for (name, peer) in &status.peers {
        text.sample("godwit_peer_commits_behind", &[("peer", name)], peer.commits_behind);
    }
    let help = "Commits that the peer has told to have and this node has not.";
    text.family("godwit_peer_commits_ahead", "gauge", help);
    for (name, peer) in &status.peers {
        text.sample("godwit_peer_commits_ahead", &[("peer", name)], peer.commits_ahead);
    }
}

/// Of namespaces with a quota on keys or bytes: the others are not counted.
fn namespaces(text: &mut Text, api: &Api) {
    let usages = api.node.namespaces().usages();
    text.family("godwit_namespace_keys", "gauge", "Keys of a namespace that has a quota.");
    for (namespace, usage) in &usages {
        text.sample("godwit_namespace_keys", &[("namespace", namespace.as_str())], usage.keys);
    }
    text.family("godwit_namespace_bytes", "gauge", "Bytes of its rows.");
    for (namespace, usage) in &usages {
        text.sample("godwit_namespace_bytes", &[("namespace", namespace.as_str())], usage.bytes);
    }
}

fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_add_up_and_labels_are_quoted() {
        let mut text = Text::default();
        text.histogram("t", "Help.", &[250, 1_000], &[1, 2, 3], 7_500_000);
        let expected = "# HELP t Help.\n# TYPE t histogram\nt_bucket{le=\"0.00025\"} 1\nt_bucket{le=\"0.001\"} 3\n\
                        t_bucket{le=\"+Inf\"} 6\nt_sum 7.5\nt_count 6\n";
        assert_eq!(text.0, expected);
        let mut text = Text::default();
        text.sample("s", &[("a", "x\"y\\z"), ("b", "1")], 2);
        assert_eq!(text.0, "s{a=\"x\\\"y\\\\z\",b=\"1\"} 2\n");
    }

    #[test]
    fn requests_are_counted_by_kind_status_and_time() {
        let counts = Requests::default();
        counts.answered(&Method::GET, StatusCode::OK, Duration::from_micros(250));
        counts.answered(&Method::PUT, StatusCode::FORBIDDEN, Duration::from_secs(60));
        let at = |reads: usize, class: usize| counts.answered[reads][class].load(Ordering::Relaxed);
        assert_eq!((at(1, 2), at(0, 4), at(0, 2)), (1, 1, 0));
        assert_eq!(counts.us_buckets[0].load(Ordering::Relaxed), 1);
        assert_eq!(counts.us_buckets[REQUEST_US_BOUNDS.len()].load(Ordering::Relaxed), 1);
    }
}
