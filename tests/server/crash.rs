//! Three nodes under writes, one of them killed with `kill -9` again and again: nothing acknowledged is missing in any
//! region afterwards, no increment counts twice, and all nodes hold the same bytes.
//!
//! A write that got no answer may be there or not, once; that is all the freedom there is.

mod support;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use support::{Cluster, Server, client, converged, eventually};

const COUNTERS: u64 = 4;
const WRITERS_PER_NODE: usize = 3;
const ROUNDS: usize = 3;
/// Acknowledged writes of the victim between two kills.
const ACKED_PER_ROUND: u64 = 60;
/// Reads show sets of up to 1,000 members, so each set gets fewer.
const MEMBERS_PER_SET: u64 = 300;

/// Where a node's API is now, for the writers that use it.
type Address = Arc<Mutex<String>>;

/// What one writer knows of its writes.
#[derive(Default)]
struct Written {
    acked: [i64; COUNTERS as usize],
    /// Acknowledged or not.
    attempted: [i64; COUNTERS as usize],
    members_acked: BTreeSet<(String, String)>,
    members_attempted: BTreeSet<(String, String)>,
}

/// Writes until it is told to stop: each commit increments a counter and adds a member that nobody else adds.
async fn write(name: String, address: Address, stop: Arc<AtomicBool>, acked: Arc<AtomicU64>) -> Written {
    let client = client();
    let mut written = Written::default();
    let mut i = 0;
    while !stop.load(Ordering::Relaxed) {
        let (counter, by) = (i % COUNTERS, i as i64 % 7 + 1);
        let (set, member) = (format!("{name}-{}", i / MEMBERS_PER_SET), format!("m{i:06}"));
        // One tag, hence one partition, but two records: each has its own commit.
        let increment = format!(r#"{{"ops":[{{"op":"incr","field":"n{counter}","by":{by}}}]}}"#);
        let add = format!(r#"{{"ops":[{{"op":"add","field":"s","members":["{member}"]}}]}}"#);
        written.attempted[counter as usize] += by;
        if patch(&client, &address, "counters", increment).await {
            written.acked[counter as usize] += by;
            acked.fetch_add(1, Ordering::Relaxed);
        }
        written.members_attempted.insert((set.clone(), member.clone()));
        if patch(&client, &address, &set, add).await {
            written.members_acked.insert((set, member));
        }
        i += 1;
    }
    written
}

/// Whether the write was acknowledged.
async fn patch(client: &reqwest::Client, address: &Address, key: &str, body: String) -> bool {
    let url = format!("{}/v1/ns/{key}", address.lock().unwrap());
    match client.patch(url).body(body).send().await {
        Ok(response) => {
            assert_eq!(response.status(), 200, "a node that answers takes the write");
            true
        }
        Err(_) => {
            // Nobody listens while the node is down: without a pause this loop would starve its restart.
            tokio::time::sleep(Duration::from_millis(10)).await; // polls: the node is back
            false
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_loses_nothing_acknowledged_and_counts_nothing_twice() {
    let cluster = Cluster::new(&["a", "b", "c"]);
    let mut servers = [cluster.start("a").await, cluster.start("b").await, cluster.start("c").await];
    let stop = Arc::new(AtomicBool::new(false));
    let addresses: Vec<Address> = servers.iter().map(|server| Arc::new(Mutex::new(server.url("")))).collect();
    let acked: Vec<Arc<AtomicU64>> = servers.iter().map(|_| Arc::default()).collect();
    let mut writers = Vec::new();
    for node in 0..servers.len() {
        for writer in 0..WRITERS_PER_NODE {
            let (address, acked) = (Arc::clone(&addresses[node]), Arc::clone(&acked[node]));
            let writing = write(format!("{node}-{writer}"), address, Arc::clone(&stop), acked);
            writers.push(tokio::spawn(writing));
        }
    }

    for round in 0..ROUNDS {
        let victim = round % servers.len();
        let others: Vec<usize> = (0..servers.len()).filter(|&node| node != victim).collect();
        more_acked(&acked, victim, ACKED_PER_ROUND).await;
        servers[victim].kill();
        for &other in &others {
            more_acked(&acked, other, ACKED_PER_ROUND).await;
        }
        servers[victim].restart().await;
        *addresses[victim].lock().unwrap() = servers[victim].url("");
    }
    // The last one killed writes on under its old name.
    for node in 0..servers.len() {
        more_acked(&acked, node, ACKED_PER_ROUND).await;
    }
    stop.store(true, Ordering::Relaxed);
    let mut all = Written::default();
    for writer in writers {
        let written = writer.await.unwrap();
        for counter in 0..COUNTERS as usize {
            all.acked[counter] += written.acked[counter];
            all.attempted[counter] += written.attempted[counter];
        }
        all.members_acked.extend(written.members_acked);
        all.members_attempted.extend(written.members_attempted);
    }

    let [a, b, c] = &servers;
    converged(&[a, b, c]).await;
    for server in &servers {
        check(server, &all).await;
    }
}

async fn more_acked(acked: &[Arc<AtomicU64>], node: usize, more: u64) {
    let goal = acked[node].load(Ordering::Relaxed) + more;
    let what = format!("node {node} acknowledges {more} more writes");
    eventually(&what, async || (acked[node].load(Ordering::Relaxed) >= goal).then_some(())).await;
}

async fn check(server: &Server, all: &Written) {
    let counters = server.get("/v1/ns/counters").await.json();
    for counter in 0..COUNTERS as usize {
        let sum = counters["fields"][format!("n{counter}")].as_i64().unwrap();
        let (least, most) = (all.acked[counter], all.attempted[counter]);
        assert!((least..=most).contains(&sum), "counter {counter}: {sum} is not in {least}..={most}");
    }
    let sets: BTreeSet<&String> = all.members_attempted.iter().map(|(set, _)| set).collect();
    let mut found = BTreeSet::new();
    for set in sets {
        let answer = server.get(&format!("/v1/ns/{set}/s")).await;
        // The one write to a set may have got no answer and not be there.
        let value: Value = if answer.status == 404 { Value::Null } else { answer.json()["value"].take() };
        let members = value.as_array().into_iter().flatten();
        found.extend(members.map(|member| (set.clone(), member.as_str().unwrap().to_owned())));
    }
    let missing: Vec<_> = all.members_acked.difference(&found).collect();
    assert!(missing.is_empty(), "acknowledged and missing: {missing:?}");
    let invented: Vec<_> = found.difference(&all.members_attempted).collect();
    assert!(invented.is_empty(), "never written: {invented:?}");
}
