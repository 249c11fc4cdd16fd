//! The parts that count bytes: what the machine does besides does not change them by much.

use std::path::Path;
use std::time::{Duration, Instant};

use godwit_core::op::Write;
use godwit_core::rng::Rng;
use godwit_engine::store::{RocksStore, StoreOptions};

use super::load::{self, PAYLOAD_BYTES, VALUE_BYTES, WRITERS};
use super::pair::{self, PARTITIONS, Pair, Sent, Settings, pause, status};
use super::{Wanted, result, told};

/// Records of the large data sets.
const MANY: u64 = 1_000_000;
/// Writes of one commit while they are made.
const FILL_COMMIT: usize = 250;
/// They are made in so many pieces, and `b` catches up after each, so that its log is never needed further back.
const FILL_PIECES: u64 = 20;

/// The smallest log that can be set, for those that are to lose theirs.
const SMALL_LOG_BYTES: u64 = 64 << 20;
/// What is written for a moment where a change should fill a log: with 16 in a partition, several intervals of it.
const BULKY_BYTES: usize = 128 << 10;
/// Changes that a log should lose.
const CHANGES: usize = 1_000;

/// One-way delay of links between regions.
const FAR: Duration = Duration::from_millis(75);

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Writes records in commits of many, and waits until `b` has them.
async fn fill(pair: &Pair) {
    let began = Instant::now();
    for piece in 0..FILL_PIECES {
        let mut rng = Rng::new(piece);
        let numbers = piece * MANY / FILL_PIECES..(piece + 1) * MANY / FILL_PIECES;
        let writes = numbers.map(move |i| load::set(load::record(i), load::value(&mut rng, VALUE_BYTES)));
        load::write_all(pair.a(), WRITERS, load::commits(writes, FILL_COMMIT)).await;
        pair.has_all().await;
    }
    let repaired = status(pair.b()).await.repairs.done;
    told(&format!("{MANY} rows in both: {:.0} s, {repaired} repairs", began.elapsed().as_secs_f64()));
}

/// 100,000 commits missing, their log there.
pub async fn missing() {
    const COMMITS: u64 = 100_000;
    let pair = Pair::start(&Settings { delay: FAR, ..Settings::default() }).await;
    let writes = |numbers: std::ops::Range<u64>| {
        let mut rng = Rng::new(numbers.start);
        numbers.map(move |i| vec![load::set(load::record(i), load::value(&mut rng, VALUE_BYTES))])
    };
    // What each has of the other is not nothing.
    load::write_all(pair.a(), WRITERS, writes(0..1_000)).await;
    pair.caught_up().await;
    pair.cut().await;
    let before = status(pair.a()).await.log_bytes;
    load::write_all(pair.a(), WRITERS, writes(1_000..1_000 + COMMITS)).await;
    let deltas = status(pair.a()).await.log_bytes - before;
    told(&format!("{COMMITS} commits are missing"));

    let sent = pair.sent();
    pair.heal();
    let flow = flows(&pair).await;
    pair.caught_up().await;
    let bytes = pair.sent().since(sent);
    let ratio = bytes.both() as f64 / deltas as f64;
    let told = format!(
        "{:.1} MiB there, {:.2} MiB back, for {:.1} MiB of deltas; data flows {flow:.2} round trips after the link is up",
        mib(bytes.a),
        mib(bytes.b),
        mib(deltas),
    );
    result("missing", ratio, Wanted::AtMost(1.05), &told);
    pair.stop().await;
}

/// How many round trips after its link came up, which is later than at the other end, `a` sends more than greetings.
async fn flows(pair: &Pair) -> f64 {
    const GREETINGS_BYTES: u64 = 4 << 10;
    let sent = || pair.a().links().first().and_then(|link| link.up.clone()).map(|up| up.udp_bytes_sent);
    let look = Duration::from_millis(1);
    let greeted = loop {
        match sent() {
            Some(bytes) => break bytes,
            None => pause(look).await,
        }
    };
    let began = Instant::now();
    while sent().unwrap_or(0) < greeted + GREETINGS_BYTES {
        pause(look).await;
    }
    began.elapsed().as_secs_f64() / (2.0 * FAR.as_secs_f64())
}

/// Live replication of 100-byte values.
pub async fn live() {
    const TIME: Duration = Duration::from_secs(20);
    let pair = Pair::start(&Settings { delay: FAR, ..Settings::default() }).await;
    let mut number = 0;
    for (per_second, wanted) in [(1_000, Wanted::AtMost(1.5)), (4_000, Wanted::Nothing)] {
        let mut rng = Rng::new(per_second);
        let (sent, before) = (pair.sent(), status(pair.a()).await.log_bytes);
        let from = number;
        let came_to = load::write_paced(per_second, TIME, |_| {
            number += 1;
            let write = load::set(load::record(number), load::value(&mut rng, VALUE_BYTES));
            load::write_one(pair.a().clone(), write)
        })
        .await;
        pair.caught_up().await;
        let commits = number - from;
        tell_live(
            pair.sent().since(sent),
            status(pair.a()).await.log_bytes - before,
            commits,
            came_to,
            wanted,
        );
    }
    pair.stop().await;
}

fn tell_live(bytes: Sent, deltas: u64, commits: u64, per_second: f64, wanted: Wanted) {
    let each = |bytes: u64| bytes as f64 / commits as f64;
    let told = format!(
        "{per_second:.0} commits/s; of a commit: {PAYLOAD_BYTES} B of key, field and value, {:.0} B of delta, {:.1} B on \
         the link there, {:.1} B back",
        each(deltas),
        each(bytes.a),
        each(bytes.b),
    );
    result("live", each(bytes.both()) / PAYLOAD_BYTES as f64, wanted, &told);
}

/// A pair with 1,000,000 rows in both, cut, and changes of `a` that are no longer in its log. Each change is made of two
/// commits, a bulky one that fills the log, and one that leaves what counts.
async fn without_log(records: u64, last: impl Fn(&mut Rng, Write) -> Write) -> Pair {
    let pair = Pair::start(&Settings { delay: FAR, log_bytes: SMALL_LOG_BYTES, ..Settings::default() }).await;
    fill(&pair).await;
    pair.caught_up().await;
    pair.cut().await;
    let records = load::records_in_turn(records, CHANGES);
    let mut rng = Rng::new(7);
    let bulky: Vec<_> =
        records.iter().map(|it| vec![load::set(it.clone(), load::value(&mut rng, BULKY_BYTES))]).collect();
    load::write_all(pair.a(), PARTITIONS.into(), bulky.clone().into_iter()).await;
    let small: Vec<_> = bulky.into_iter().flatten().map(|write| vec![last(&mut rng, write)]).collect();
    load::write_all(pair.a(), PARTITIONS.into(), small.into_iter()).await;
    told(&format!("{CHANGES} changes; the log has {:.1} MiB", mib(status(pair.a()).await.log_bytes)));
    pair
}

/// Heals, and waits until `b` was repaired. Returns what was sent.
async fn repaired(pair: &Pair) -> Sent {
    let before = status(pair.b()).await.repairs;
    let (sent, began) = (pair.sent(), Instant::now());
    pair.heal();
    pair.linked().await;
    let linked = began.elapsed();
    pair.has_all().await;
    let took = began.elapsed() - linked;
    pause(Duration::from_secs(1)).await;
    let after = status(pair.b()).await.repairs;
    let (done, given_up) = (after.done - before.done, after.given_up - before.given_up);
    told(&format!("{done} repairs, {given_up} given up: {:.1} s after the link", took.as_secs_f64()));
    assert_eq!(done, u64::from(PARTITIONS), "every partition was repaired, once");
    pair.sent().since(sent)
}

/// The log lost, 1,000 of 1,000,000 rows missing.
pub async fn rows() {
    // New records: nothing is to be taken away from `b`.
    let pair = without_log(MANY, |rng, write| load::set(write.record, load::value(rng, VALUE_BYTES))).await;
    let bytes = repaired(&pair).await;
    let repairs = status(pair.b()).await.repairs;
    let ratio = bytes.both() as f64 / repairs.bytes_received as f64;
    let told = format!(
        "{CHANGES} rows of {:.0} B; {:.0} B on the link for each there, {:.0} B back",
        repairs.bytes_received as f64 / CHANGES as f64,
        bytes.a as f64 / CHANGES as f64,
        bytes.b as f64 / CHANGES as f64,
    );
    result("rows", ratio, Wanted::AtMost(2.0), &told);
    pair.stop().await;
}

/// The log lost, 1,000 of 1,000,000 rows removed.
pub async fn removals() {
    let pair = without_log(0, |_, write| load::delete(write.record)).await;
    let bytes = repaired(&pair).await;
    let repairs = status(pair.b()).await.repairs;
    assert_eq!(repairs.rows_dropped, CHANGES as u64, "every removal was found");
    let told = format!(
        "{} rows dropped, {} B of rows sent; {:.0} B on the link for each there, {:.0} B back",
        repairs.rows_dropped,
        repairs.bytes_received,
        bytes.a as f64 / CHANGES as f64,
        bytes.b as f64 / CHANGES as f64,
    );
    result("removals", bytes.both() as f64 / CHANGES as f64, Wanted::AtMost(600.0), &told);
    pair.stop().await;
}

/// 1,000,000 keys made and deleted.
pub async fn deleted() {
    /// The shortest age that can be set, and what the node and its threads take to act on it.
    const AGE: Duration = Duration::from_secs(60);
    const SETTLES: Duration = Duration::from_secs(15);
    let dir = pair::directory();
    let settings = Settings { log_age_ms: AGE.as_millis() as u64, ..Settings::default() };
    let (node, data) = pair::alone(dir.path(), &settings).await;
    let mut rng = Rng::new(3);
    let writes = (0..MANY).map(move |i| load::set(load::record(i), load::value(&mut rng, VALUE_BYTES)));
    load::write_all(node.handle(), WRITERS, load::commits(writes, FILL_COMMIT)).await;
    node.shutdown().await.expect("an orderly stop");
    let peak = compacted(&data);
    told(&format!("made: {:.1} MiB", mib(peak.iter().map(|(_, bytes)| bytes).sum())));

    let (node, data) = pair::alone(dir.path(), &settings).await;
    let writes = (0..MANY).map(|i| load::delete(load::record(i)));
    load::write_all(node.handle(), WRITERS, load::commits(writes, FILL_COMMIT)).await;
    told(&format!("deleted; waiting {} s, for the age at which the log goes", (AGE + SETTLES).as_secs()));
    pause(AGE + SETTLES).await;
    told(&format!("the log has {} B", status(node.handle()).await.log_bytes));
    node.shutdown().await.expect("an orderly stop");
    let left = compacted(&data);
    let (peak, all) = (total(&peak), total(&left));
    let kinds: Vec<String> = left.iter().map(|(kind, bytes)| format!("{kind} {bytes} B")).collect();
    let told = format!("{all} B of {:.1} MiB left: {}", mib(peak), kinds.join(", "));
    result("deleted", 100.0 * all as f64 / peak as f64, Wanted::AtMost(0.2), &told);
}

fn total(files: &[(String, u64)]) -> u64 {
    files.iter().map(|(_, bytes)| bytes).sum()
}

/// Compacts a store, and tells the bytes of its files, by kind. RocksDB's text logs are left out: they tell of the process.
fn compacted(data: &Path) -> Vec<(String, u64)> {
    let store = RocksStore::open(data, &StoreOptions::default()).expect("a data directory");
    store.compact();
    drop(store);
    // What a compaction made obsolete goes when the store is opened, at the latest.
    drop(RocksStore::open(data, &StoreOptions::default()).expect("a data directory"));
    let mut kinds = std::collections::BTreeMap::new();
    count_files(data, &mut kinds);
    kinds.into_iter().collect()
}

fn count_files(dir: &Path, kinds: &mut std::collections::BTreeMap<String, u64>) {
    for entry in std::fs::read_dir(dir).expect("a directory").map(|entry| entry.expect("an entry")) {
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        if path.is_dir() {
            count_files(&path, kinds);
        } else if !name.starts_with("LOG") {
            let kind = path.extension().map_or_else(
                || name.split('-').next().unwrap_or_default().to_string(),
                |extension| extension.to_string_lossy().into_owned(),
            );
            *kinds.entry(kind).or_insert(0) += entry.metadata().expect("a file").len();
        }
    }
}
