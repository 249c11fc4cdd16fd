//! Repairs of state between real nodes whose logs are truncated: nothing comes back that was removed, nothing is lost that one
//! node alone had, whoever dies or is cut off in between, and clients are served all the while.

mod support;

#[path = "repair/trio.rs"]
mod trio;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::{Answer, client, eventually};
use trio::{PARTITIONS, Trio};

/// A repair of all partitions lasts some ten seconds: what a filler has in each is read at this rate.
const SLOWLY: u64 = 1024 * 1024;
const FAST: u64 = 64 * 1024 * 1024;

/// No answer to a client takes as long, also while others repair: on a busy machine, too.
const ANSWER_MAX: Duration = Duration::from_secs(10);

const MEMBERS: usize = 40;

fn members(from: usize, to: usize) -> Vec<String> {
    (from..to).map(|i| format!("m{i:02}")).collect()
}

fn add(field: &str, members: &[String]) -> Value {
    json!({"op": "add", "field": field, "members": members})
}

/// A record with a field of each type.
fn a_bit_of_all() -> Value {
    json!([
        {"op": "set", "field": "title", "value": "known"}, {"op": "incr", "field": "plays", "by": 10},
        {"op": "enable", "field": "explicit"}, {"op": "add", "field": "likes", "members": ["ann", "bob"]},
    ])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_away_longer_than_any_log_resurrects_nothing_and_loses_nothing() {
    let mut trio = Trio::start(FAST).await;
    let tags = trio.tags.clone();
    for (i, tag) in tags.iter().enumerate() {
        for key in ["gone", "shared", "dropped"] {
            trio.patch(["a", "b", "c"][i % 3], &format!("{tag}{key}"), &a_bit_of_all()).await;
        }
        trio.patch("c", &format!("{tag}members"), &json!([add("s", &members(0, MEMBERS))])).await;
    }
    trio.converge().await;

    trio.stop("a").await;
    trio.cut("a", "b", true);
    trio.cut("a", "c", true);
    trio.begin("a").await;
    for tag in &tags {
        let own = json!([{"op": "incr", "field": "plays", "by": 5}, {"op": "add", "field": "likes", "members": ["own"]}]);
        trio.patch("a", &format!("{tag}shared"), &own).await;
        trio.patch("a", &format!("{tag}members"), &json!([add("s", &["own".to_owned()])])).await;
        trio.patch("a", &format!("{tag}mine"), &a_bit_of_all()).await;
        trio.delete("a", &format!("{tag}dropped")).await;
    }
    // In one partition the one that was away is behind what its own log reaches back to, too: the others lack its commits.
    trio.fill("a", &tags[0]).await;
    eventually("a truncates its log", async || (trio.log_bytes("a").await < 1024 * 1024).then_some(())).await;

    for tag in &tags {
        for key in ["gone", "shared"] {
            trio.delete("b", &format!("{tag}{key}")).await;
        }
        let gone = json!([{"op": "remove", "field": "s", "members": members(0, MEMBERS)}]);
        trio.patch("c", &format!("{tag}members"), &gone).await;
        trio.patch("c", &format!("{tag}new"), &a_bit_of_all()).await;
    }
    trio.cut_logs("b", &["b", "c"]).await;

    trio.cut("a", "b", false);
    trio.cut("a", "c", false);
    trio.converge().await;
    let all = json!({"title": "known", "plays": 10, "explicit": true, "likes": ["ann", "bob"]});
    for tag in &tags {
        trio.expect(&format!("{tag}gone"), &json!({})).await;
        trio.expect(&format!("{tag}shared"), &json!({"plays": 5, "likes": ["own"]})).await;
        trio.expect(&format!("{tag}members"), &json!({"s": ["own"]})).await;
        trio.expect(&format!("{tag}mine"), &all).await;
        trio.expect(&format!("{tag}dropped"), &json!({})).await;
        trio.expect(&format!("{tag}new"), &all).await;
    }
    let repairs = trio.repairs("a").await;
    // Of a partition whose log is cut again meanwhile, twice.
    let done = repairs["done"].as_u64().unwrap();
    assert!((u64::from(PARTITIONS)..=2 * u64::from(PARTITIONS)).contains(&done), "{repairs}");
    assert!(repairs["rows_dropped"].as_u64().unwrap() >= u64::from(PARTITIONS) * MEMBERS as u64, "{repairs}");
    for other in ["b", "c"] {
        let repairs = trio.repairs(other).await;
        assert!(
            repairs["done"].as_u64().unwrap() > 0,
            "{other} lacked what a no longer has in its log: {repairs}"
        );
    }
    // It is a member like the others again.
    trio.patch("a", &format!("{}shared", tags[1]), &json!([{"op": "incr", "field": "plays", "by": 1}])).await;
    trio.delete("b", &format!("{}new", tags[1])).await;
    trio.converge().await;
    trio.expect(&format!("{}shared", tags[1]), &json!({"plays": 6, "likes": ["own"]})).await;
    trio.expect(&format!("{}new", tags[1]), &json!({})).await;
}

/// Increments counters through a node until it is told to stop. Every write must be acknowledged.
async fn write(url: String, tags: Vec<String>, stop: Arc<AtomicBool>, acked: Arc<AtomicU64>) -> u64 {
    let client = client();
    let mut written = 0;
    while !stop.load(Ordering::Relaxed) {
        let key = format!("{}counted", tags[written as usize % tags.len()]);
        let ops = json!({"ops": [{"op": "incr", "field": "n", "by": 1}]});
        let begun = Instant::now();
        let request = client.patch(format!("{url}/v1/ns/{key}")).body(ops.to_string());
        Answer::of(request).await.json();
        assert!(begun.elapsed() < ANSWER_MAX, "a write took {:?}", begun.elapsed());
        written += 1;
        acked.store(written, Ordering::Relaxed);
    }
    written
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_node_joins_peers_with_short_logs_while_everybody_writes() {
    let mut trio = Trio::start(SLOWLY).await;
    let tags = trio.tags.clone();
    for tag in &tags {
        for (by, name) in ["a", "b", "c"].into_iter().enumerate() {
            let ops = json!([
                {"op": "incr", "field": "n", "by": by + 1}, {"op": "add", "field": "s", "members": [name]},
            ]);
            trio.patch(name, &format!("{tag}counted"), &ops).await;
        }
        trio.patch("c", &format!("{tag}gone"), &a_bit_of_all()).await;
    }
    trio.converge().await;
    // The disk is lost, and with it what says under which id the node wrote.
    trio.kill("c");
    std::fs::remove_dir_all(trio.cluster.path("c-data")).unwrap();
    for tag in &tags {
        trio.delete("a", &format!("{tag}gone")).await;
    }
    trio.cut_logs("a", &["a", "b"]).await;

    trio.begin("c").await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = Vec::new();
    for name in ["a", "b", "c"] {
        let acked = Arc::new(AtomicU64::new(0));
        let writing = write(trio.node(name).url(""), tags.clone(), Arc::clone(&stop), Arc::clone(&acked));
        writers.push((tokio::spawn(writing), acked));
    }
    let acked = || writers.iter().map(|(_, acked)| acked.load(Ordering::Relaxed)).collect::<Vec<_>>();
    let served_by = trio.middle("c").await;
    let before = acked();
    eventually("the other side shows it", async || {
        (trio.repairs(served_by).await["serving"] == 1).then_some(())
    })
    .await;
    let in_the_middle = eventually("everybody is served while c repairs", async || {
        let are_served = acked().iter().zip(&before).all(|(now, before)| *now >= before + 5);
        if !are_served {
            return None;
        }
        // Between two partitions none is under way.
        Some(trio.repairs("c").await).filter(|repairs| repairs["under_way"].is_object())
    })
    .await;
    assert!(in_the_middle["done"].as_u64().unwrap() < u64::from(PARTITIONS), "{in_the_middle}");
    let under_way = &in_the_middle["under_way"];
    assert!(["rows", "comparing"].contains(&under_way["phase"].as_str().unwrap()), "{in_the_middle}");
    assert!(under_way["permille"].as_u64().unwrap() <= 1000, "{in_the_middle}");

    all_is_repaired(&trio).await;
    stop.store(true, Ordering::Relaxed);
    let mut written = 0;
    for (writer, _) in writers {
        written += writer.await.unwrap();
    }
    trio.converge().await;
    let mut counted = 0;
    for tag in &tags {
        trio.expect(&format!("{tag}gone"), &json!({})).await;
        let fields = trio.fields("c", &format!("{tag}counted")).await;
        assert_eq!(fields["s"], json!(["a", "b", "c"]), "what c had told before it was lost is back");
        counted += fields["n"].as_u64().unwrap() - 6;
        trio.expect(&format!("{tag}counted"), &fields).await;
    }
    assert_eq!(counted, written);
    let repairs = trio.repairs("c").await;
    assert!(repairs["bytes_received"].as_u64().unwrap() > 8 * 1024 * 1024, "{repairs}");
    // So much was written that logs may have been cut again meanwhile.
    eventually("c has nothing left to repair", async || {
        let repairs = trio.repairs("c").await;
        (repairs["under_way"].is_null() && repairs["waiting"] == 0).then_some(())
    })
    .await;
}

/// Two records in each partition that one commit made or changed.
const PAIR: [&str; 2] = ["left", "right"];

async fn write_pairs(trio: &Trio, through: &str, value: &str) {
    for tag in &trio.tags {
        let ops = json!([{"op": "set", "field": "of", "value": value}]);
        let writes = PAIR.map(|key| json!({"key": format!("{tag}{key}"), "ops": ops}));
        let batch = json!({ "writes": writes }).to_string();
        let request = trio.node(through).request("POST", "/v1/ns").body(batch);
        Answer::of(request).await.json();
    }
}

/// Both records of each pair are of one commit, at any moment. Which are to be seen.
async fn read_pairs(trio: &Trio, name: &str) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    for tag in &trio.tags {
        let keys = PAIR.map(|key| format!("{tag}{key}"));
        let request = trio.node(name).request("POST", "/v1/ns").body(json!({ "reads": keys }).to_string());
        let records = Answer::of(request).await.json()["records"].take();
        let values = [0, 1].map(|i| records[i]["fields"]["of"].clone());
        assert_eq!(values[0], values[1], "{name} shows half a commit: {records}");
        seen.insert(values[0].as_str().unwrap_or("nothing").to_owned());
    }
    seen
}

/// Records of which `c` hears by a repair that comes to nothing, if at all.
const BRIEF: usize = 10;

/// `c` is down, knows something old in each partition, and is behind all logs.
async fn far_behind() -> Trio {
    let mut trio = Trio::start(SLOWLY).await;
    write_pairs(&trio, "c", "old").await;
    for tag in &trio.tags {
        trio.patch("c", &format!("{tag}gone"), &a_bit_of_all()).await;
    }
    trio.converge().await;
    trio.stop("c").await;
    write_pairs(&trio, "a", "new").await;
    for tag in &trio.tags {
        trio.delete("b", &format!("{tag}gone")).await;
        for i in 0..BRIEF {
            trio.patch("a", &format!("{tag}brief{i}"), &json!([add("s", &members(0, 1))])).await;
        }
    }
    trio.cut_logs("a", &["a", "b"]).await;
    trio
}

async fn all_is_new(trio: &Trio) {
    trio.converge().await;
    for name in trio::NAMES {
        assert_eq!(read_pairs(trio, name).await, BTreeSet::from(["new".to_owned()]), "{name}");
    }
    for tag in &trio.tags {
        trio.expect(&format!("{tag}gone"), &json!({})).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_in_the_middle_of_a_repair_on_either_side() {
    let mut trio = far_behind().await;
    trio.begin("c").await;
    trio.middle("c").await;
    let seen = read_pairs(&trio, "c").await;
    assert!(seen.contains("old") && seen.contains("new"), "{seen:?}");
    trio.kill("c");
    // Of what was staged and did not count yet, some is not there any more when it is repaired anew.
    for tag in &trio.tags {
        for i in 0..BRIEF {
            trio.delete("a", &format!("{tag}brief{i}")).await;
        }
    }
    trio.begin("c").await;
    assert!(read_pairs(&trio, "c").await.contains("new"), "what was repaired stays so");

    let serving = trio.middle("c").await;
    trio.kill(serving);
    trio.patch("c", "meanwhile", &json!([{"op": "incr", "field": "n", "by": 1}])).await;
    assert!(!read_pairs(&trio, "c").await.contains("nothing"));
    trio.begin(serving).await;
    all_is_new(&trio).await;
    trio.expect("meanwhile", &json!({"n": 1})).await;
    for tag in &trio.tags {
        for i in 0..BRIEF {
            trio.expect(&format!("{tag}brief{i}"), &json!({})).await;
        }
    }
}

/// Waits until `c` has repaired every partition; its repairs then.
async fn all_is_repaired(trio: &Trio) -> Value {
    eventually("all is repaired", async || {
        let repairs = trio.repairs("c").await;
        (repairs["done"].as_u64()? >= u64::from(PARTITIONS)).then_some(repairs)
    })
    .await
}

async fn link_is_up(trio: &Trio, name: &str, peer: &str) -> bool {
    let cluster = trio.node(name).cluster().await;
    let links = cluster["links"].as_array().unwrap();
    links.iter().any(|link| link["peer"] == peer && link["up"] == true)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repair_goes_on_where_it_was_when_the_link_heals() {
    let mut trio = far_behind().await;
    trio.begin("c").await;
    let serving = trio.middle("c").await;
    // With nobody else to turn to it waits.
    let other = other_than(serving);
    trio.stop(other).await;
    trio.cut(serving, "c", true);
    eventually("both ends know that they are cut off", async || {
        let up = link_is_up(&trio, "c", serving).await || link_is_up(&trio, serving, "c").await;
        (!up).then_some(())
    })
    .await;
    let cut = trio.repairs("c").await;
    assert_eq!(cut["under_way"]["peer"], serving, "{cut}");
    // Alone it serves what it has, and takes writes.
    read_pairs(&trio, "c").await;
    trio.patch("c", "alone", &json!([{"op": "incr", "field": "n", "by": 1}])).await;
    assert_eq!(trio.fields("c", "alone").await, json!({"n": 1}));

    trio.cut(serving, "c", false);
    let repairs = all_is_repaired(&trio).await;
    assert_eq!(repairs["given_up"], 0, "{repairs}");
    trio.begin(other).await;
    all_is_new(&trio).await;
    trio.expect("alone", &json!({"n": 1})).await;
}

/// Of those that `c` may repair from.
fn other_than(serving: &str) -> &'static str {
    if serving == "a" { "b" } else { "a" }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repair_goes_on_from_another_peer_when_one_link_stays_cut() {
    let mut trio = far_behind().await;
    trio.begin("c").await;
    let serving = trio.middle("c").await;
    let other = other_than(serving);
    trio.cut(serving, "c", true);
    eventually("c repairs from the other", async || {
        (trio.repairs("c").await["under_way"]["peer"] == other).then_some(())
    })
    .await;
    all_is_repaired(&trio).await;
    assert_eq!(read_pairs(&trio, "c").await, BTreeSet::from(["new".to_owned()]));
    trio.cut(serving, "c", false);
    all_is_new(&trio).await;
}
