//! The parts that measure time and memory: they want a machine that does nothing else.

use std::sync::Arc;
use std::time::{Duration, Instant};

use godwit_core::ids::{Field, RecordId};
use godwit_core::read;
use godwit_core::rng::Rng;
use godwit_server::node::NodeHandle;
use tokio::sync::Mutex;

use super::load::{self, FIELD, VALUE_BYTES, WRITERS};
use super::pair::{Pair, Settings, pause, status};
use super::{Wanted, result, told};

/// Names how long the peer is dead, in seconds.
const DEAD_SECONDS: &str = "GODWIT_BENCH_DEAD_SECONDS";
/// Names how much is missing in the bulk catch-up, in MiB.
const BULK_MIB: &str = "GODWIT_BENCH_BULK_MIB";

const MIB: f64 = 1_048_576.0;

fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).map_or(otherwise, |text| text.parse().expect("a number"))
}

/// Bulk catch-up at two delays.
pub async fn bulk() {
    let bytes = number(BULK_MIB, 1024) << 20;
    let mut goodput = Vec::new();
    for delay in [Duration::from_micros(500), Duration::from_millis(75)] {
        goodput.push(catch_up(delay, bytes).await);
    }
    let told = format!(
        "{} MiB: {:.1} MiB/s at a round trip of 1 ms, {:.1} MiB/s at 150 ms",
        bytes >> 20,
        goodput[0],
        goodput[1]
    );
    result("bulk", goodput[1] / goodput[0], Wanted::AtLeast(0.8), &told);
}

/// How many MiB of deltas a second `b` applies, from when the link is up.
async fn catch_up(delay: Duration, bytes: u64) -> f64 {
    const VALUE: usize = 1 << 10;
    const COMMIT: usize = 16;
    let pair = Pair::start(&Settings { delay, ..Settings::default() }).await;
    pair.cut().await;
    let mut rng = Rng::new(1);
    let writes =
        (0..bytes / VALUE as u64).map(move |i| load::set(load::record(i), load::value(&mut rng, VALUE)));
    load::write_all(pair.a(), WRITERS, load::commits(writes, COMMIT)).await;
    let deltas = status(pair.a()).await.log_bytes;
    told(&format!("{:.0} MiB of deltas are missing", deltas as f64 / MIB));
    pair.heal();
    while pair.b().links().iter().all(|link| link.up.is_none()) {
        pause(Duration::from_millis(1)).await;
    }
    let began = Instant::now();
    let progress = tokio::spawn(progress(pair.b().clone(), began));
    pair.has_all().await;
    let took = began.elapsed();
    progress.abort();
    let goodput = deltas as f64 / MIB / took.as_secs_f64();
    let lost: u64 = pair.a().links().iter().map(|link| link.packets_lost).sum();
    told(&format!("{:.1} s: {goodput:.1} MiB/s, {lost} packets lost", took.as_secs_f64()));
    pair.stop().await;
    goodput
}

/// Tells what came, now and then.
async fn progress(node: NodeHandle, began: Instant) {
    loop {
        pause(Duration::from_secs(3)).await;
        let received: u64 =
            node.links().iter().filter_map(|link| link.up.as_ref()).map(|up| up.udp_bytes_received).sum();
        told(&format!("{:.1} s: {:.1} MiB came", began.elapsed().as_secs_f64(), received as f64 / MIB));
    }
}

/// Resident memory of this process, in bytes.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    line.trim().trim_end_matches("kB").trim().parse::<u64>().expect("a number") * 1024
}

/// A peer that is dead while the other one writes.
pub async fn dead() {
    /// Records that are written over and over: what grows is what is kept for the peer.
    const RECORDS: u64 = 50_000;
    const PER_SECOND: u64 = 4_000;
    const FILL: u64 = 1_000_000;
    const CACHE_BYTES: usize = 32 << 20;
    const CAP_BYTES: u64 = 64 << 20;
    let time = Duration::from_secs(number(DEAD_SECONDS, 600));
    let commits = |seed, count: u64| {
        let mut rng = Rng::new(seed);
        (0..count)
            .map(move |i| vec![load::set(load::record(i % RECORDS), load::value(&mut rng, VALUE_BYTES))])
    };
    let settings = Settings { log_bytes: CAP_BYTES, cache_bytes: CACHE_BYTES, ..Settings::default() };
    let mut pair = Pair::start(&settings).await;
    pair.stop_b().await;
    // Memtables, the cache and the log fill.
    load::write_all(pair.a(), WRITERS, commits(0, FILL)).await;
    let filled = resident();
    let samples = Arc::new(Mutex::new(Vec::new()));
    let watch = tokio::spawn(watch(pair.a().clone(), Arc::clone(&samples)));
    let mut next = commits(1, u64::MAX);
    let came_to = load::write_paced(PER_SECOND, time, |_| {
        let write = next.next().and_then(|mut writes| writes.pop()).expect("no end");
        load::write_one(pair.a().clone(), write)
    })
    .await;
    watch.abort();
    let samples = samples.lock().await.clone();
    let mean = |part: &[(u64, u64)]| {
        part.iter().map(|(resident, _)| *resident as f64).sum::<f64>() / part.len().max(1) as f64
    };
    let third = samples.len() / 3;
    let (earlier, later) = (mean(&samples[..third]), mean(&samples[2 * third..]));
    let [most, log] = [0, 1].map(|which| {
        samples.iter().map(|(resident, log)| if which == 0 { *resident } else { *log }).max().unwrap_or(0)
    });
    let told = format!(
        "{:.0} s at {came_to:.0} commits/s: {:.1} MiB in the first third, {:.1} MiB in the last, {:.1} MiB at most, {:.1} \
         MiB before",
        time.as_secs_f64(),
        earlier / MIB,
        later / MIB,
        most as f64 / MIB,
        filled as f64 / MIB
    );
    // Memtables come and go by a few MiB. Were the peer's deltas kept, there would be several times as much.
    result("dead", later / earlier, Wanted::AtMost(1.05), &told);
    let told = format!("log {:.1} MiB at most, cap {:.0} MiB", log as f64 / MIB, CAP_BYTES as f64 / MIB);
    result("dead", log as f64 / CAP_BYTES as f64, Wanted::AtMost(1.01), &told);
    pair.stop().await;
}

/// Samples resident memory and the log, twice a second.
async fn watch(node: NodeHandle, samples: Arc<Mutex<Vec<(u64, u64)>>>) {
    const PAUSE: Duration = Duration::from_millis(500);
    const TOLD_EVERY: usize = 40;
    loop {
        let log = status(&node).await.log_bytes;
        let mut samples = samples.lock().await;
        samples.push((resident(), log));
        if samples.len().is_multiple_of(TOLD_EVERY) {
            let (resident, log) = (resident() as f64 / MIB, log as f64 / MIB);
            told(&format!("{resident:.0} MiB resident, {log:.1} MiB of log"));
        }
        drop(samples);
        pause(PAUSE).await;
    }
}

/// Commit to readable in another region.
pub async fn delay() {
    const SATURATED: Duration = Duration::from_secs(10);
    const TIME: Duration = Duration::from_secs(20);
    const ONE_WAY: Duration = Duration::from_millis(75);
    /// One commit in so many is waited for.
    const WATCHED: u64 = 20;
    let pair = Pair::start(&Settings { delay: ONE_WAY, ..Settings::default() }).await;
    let began = Instant::now();
    let mut rng = Rng::new(1);
    let mut next = 0;
    let writes = std::iter::from_fn(move || {
        next += 1;
        let write = load::set(load::record(next), load::value(&mut rng, VALUE_BYTES));
        (began.elapsed() < SATURATED).then(|| vec![write])
    });
    let made = load::write_all(pair.a(), WRITERS, writes).await as u64;
    let alone = made as f64 / began.elapsed().as_secs_f64();
    // What saturates is what both can take: they share the machine here.
    pair.has_all().await;
    let saturating = made as f64 / began.elapsed().as_secs_f64();
    pair.caught_up().await;
    told(&format!("{WRITERS} at once: {alone:.0} commits/s in one, {saturating:.0} commits/s in both"));

    let delays = Arc::new(Mutex::new(Vec::new()));
    let mut rng = Rng::new(2);
    let half = (saturating / 2.0) as u64;
    let came_to = load::write_paced(half, TIME, |i| {
        let record = load::record(made + 1_000 + i);
        let write = load::set(record.clone(), load::value(&mut rng, VALUE_BYTES));
        let (a, b, delays) = (pair.a().clone(), pair.b().clone(), Arc::clone(&delays));
        async move {
            load::write_one(a, write).await;
            if i.is_multiple_of(WATCHED) {
                let committed = Instant::now();
                pause(ONE_WAY.saturating_sub(Duration::from_millis(5))).await;
                while !is_readable(&b, &record).await {
                    pause(Duration::from_micros(500)).await;
                }
                delays.lock().await.push(committed.elapsed());
            }
        }
    })
    .await;
    let mut delays = delays.lock().await.clone();
    delays.sort_unstable();
    let quantile = |part: f64| delays[((delays.len() - 1) as f64 * part).round() as usize];
    for (name, part, most) in [("median", 0.5, 1.05), ("p99", 0.99, 1.25)] {
        let found = quantile(part);
        let ms = found.as_secs_f64() * 1e3;
        let count = delays.len();
        let told =
            format!("{name} {ms:.1} ms of {count}, from the acknowledgement on, at {came_to:.0} commits/s");
        result("delay", found.as_secs_f64() / ONE_WAY.as_secs_f64(), Wanted::AtMost(most), &told);
    }
    pair.stop().await;
}

async fn is_readable(node: &NodeHandle, record: &RecordId) -> bool {
    let (record, field) = (record.clone(), Field::new(FIELD).expect("a name"));
    let at = node.read_at();
    let read = node.read(move |store| read::live_types(store, at, &record, &field)).await;
    !read.expect("a node that runs").is_empty()
}
