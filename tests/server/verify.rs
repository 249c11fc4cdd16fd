//! `godwit verify` against real nodes: it proves equal ones equal, names the records that were changed behind a node's back,
//! and does not call anything proven that is not.

mod support;

use std::process::ExitStatus;

use godwit_core::ids::{Field, Key, Namespace, PartitionId, RecordId};
use godwit_core::keys;
use godwit_core::row::RowValue;
use godwit_core::store::{Batch, Entry, Family, StoreRead};
use godwit_engine::store::{RocksStore, StoreOptions};
use serde_json::{Value, json};
use support::{Cluster, Server, converged, eventually, run};

/// Of the configurations of [`Cluster`].
const PARTITIONS: u16 = 8;
/// More than several pages of a list.
const MEMBERS: usize = 3_000;
const MEMBERS_OF_A_WRITE: usize = 1_000;

fn verify(servers: &[&Server], more: &[&str]) -> (ExitStatus, String) {
    let urls: Vec<String> = servers.iter().map(|server| server.url("")).collect();
    let args: Vec<&str> = ["verify"].into_iter().chain(urls.iter().map(String::as_str)).collect();
    run(&[&args, more].concat())
}

/// A set, and some other records.
async fn write(server: &Server) {
    let members: Vec<String> = (0..MEMBERS).map(|i| format!("m{i:04}")).collect();
    for members in members.chunks(MEMBERS_OF_A_WRITE) {
        let ops = json!({"ops": [{"op": "add", "field": "members", "members": members}]});
        server.patch("/v1/ns/large", ops.to_string()).await.json();
    }
    for i in 0..40 {
        let ops = json!({"ops": [
            {"op": "set", "field": "title", "value": i}, {"op": "incr", "field": "plays", "by": i},
            {"op": "enable", "field": "explicit"},
        ]});
        server.patch(&format!("/v1/ns/k{i}"), ops.to_string()).await.json();
    }
    server.delete("/v1/ns/k7").await.json();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn equal_nodes_are_proven_equal() {
    let cluster = Cluster::new(&["a", "b", "c"]);
    let [a, b, c] = [cluster.start("a").await, cluster.start("b").await, cluster.start("c").await];
    write(&a).await;
    // It waits by itself until all is everywhere.
    let (status, said) = verify(&[&a, &b, &c], &[]);
    assert_eq!(status.code(), Some(0), "{said}");
    assert!(said.ends_with("on all 3 nodes\n") && said.contains("EQUAL: all 8 partitions, "), "{said}");
    let (status, said) = verify(&[&a, &c], &["--json", "--wait", "0"]);
    let found: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(status.code(), Some(0), "{said}");
    assert_eq!((&found["outcome"], &found["equal"]), (&json!("equal"), &json!(PARTITIONS)));
    assert_eq!(found["nodes"][1]["name"], "c");
    // A member is a row, and each of the 39 records that are left has three.
    assert_eq!(found["rows"], MEMBERS + 39 * 3);
}

fn record(key: &str) -> RecordId {
    RecordId { namespace: Namespace::new("ns").unwrap(), key: Key::new(key).unwrap() }
}

/// The rows of a record's field.
fn rows(store: &RocksStore, key: &str, field: &str) -> Vec<Entry> {
    let prefix = keys::record_prefix(record(key).partition(PARTITIONS), &record(key));
    let prefix = keys::field_prefix(&prefix, &Field::new(field).unwrap());
    let mut rows = Vec::new();
    store
        .scan_prefix(Family::Rows, &prefix, &mut |key, value| {
            rows.push((key.to_vec(), value.to_vec()));
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
    rows
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_changed_behind_a_nodes_back_is_named() {
    let cluster = Cluster::new(&["a", "b", "c"]);
    let [a, mut b, c] = [cluster.start("a").await, cluster.start("b").await, cluster.start("c").await];
    write(&a).await;
    converged(&[&a, &b, &c]).await;
    b.terminate();
    assert!(b.exit_status().await.success());
    let store = RocksStore::open(cluster.path("b-data"), &StoreOptions::default()).unwrap();
    let mut batch = Batch::default();
    let members = rows(&store, "large", "members");
    assert_eq!(members.len(), MEMBERS);
    members[1_500..1_502].iter().for_each(|(key, _)| batch.delete(Family::Rows, key.clone()));
    let (key, value) = rows(&store, "k3", "title").pop().unwrap();
    let mut value = RowValue::decode(&value).unwrap();
    *value.payload.last_mut().unwrap() ^= 1;
    batch.put(Family::Rows, key, value.encode());
    // A row that was replaced is there again.
    let (key, value) = rows(&store, "k5", "title").pop().unwrap();
    let mut value = RowValue::decode(&value).unwrap();
    value.counter = value.counter.checked_sub(1).filter(|counter| *counter > 0).unwrap();
    let (whose, counter) = key.split_at(key.len() - size_of::<u64>());
    assert_eq!(counter, (value.counter + 1).to_be_bytes());
    batch.put(Family::Rows, [whose, &value.counter.to_be_bytes()].concat(), value.encode());
    store.commit(&batch).unwrap();
    drop(store);
    b.restart().await;

    let (status, said) = verify(&[&a, &b, &c], &[]);
    assert_eq!(status.code(), Some(1), "{said}");
    for named in [
        "namespace ns, key \"large\", field \"members\" (set): 2 rows only on a\n",
        "namespace ns, key \"k3\", field \"title\" (register): 1 row with another value\n",
        "namespace ns, key \"k5\", field \"title\" (register): 1 row only on b\n",
    ] {
        assert!(said.contains(named), "{said}");
    }
    assert_eq!(said.matches("namespace").count(), 3, "nothing else differs: {said}");
    assert!(!said.contains("NOT PROVEN") && !said.contains("There may be more"), "{said}");

    let (status, said) = verify(&[&b, &a], &["--json"]);
    assert_eq!(status.code(), Some(1), "{said}");
    let found: Value = serde_json::from_str(&said).unwrap();
    let changed: Vec<u16> = {
        let mut of = ["large", "k3", "k5"].map(|key| record(key).partition(PARTITIONS)).to_vec();
        of.sort();
        of.dedup();
        of.into_iter().map(|PartitionId(id)| id).collect()
    };
    let diverged = found["diverged"].as_array().unwrap();
    let partitions: Vec<&Value> = diverged.iter().map(|it| &it["partition"]).collect();
    assert_eq!(partitions, changed.iter().map(|id| json!(id)).collect::<Vec<_>>().iter().collect::<Vec<_>>());
    let mut all = diverged.iter().flat_map(|it| it["differences"].as_array().unwrap());
    let large = all.find(|it| it["key"] == "large").unwrap();
    assert_eq!((&large["only_first"], &large["only_second"]), (&json!(0), &json!(2)));
    // The others are what they were.
    assert_eq!(verify(&[&a, &c], &[]).0.code(), Some(0));

    // A write replaces what is wrong, through any node where the row is there.
    c.put("/v1/ns/k3/title", "\"right\"").await.json();
    b.put("/v1/ns/k5/title", "\"right\"").await.json();
    let (status, said) = verify(&[&a, &b, &c], &[]);
    assert_eq!((status.code(), said.matches("namespace").count()), (Some(1), 1), "{said}");
    assert!(said.contains("key \"large\""), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_node_lost_is_found_and_after_a_scrub_it_is_equal_again() {
    let cluster = Cluster::new(&["a", "b"]);
    let [a, mut b] = [cluster.start("a").await, cluster.start("b").await];
    write(&a).await;
    converged(&[&a, &b]).await;
    b.terminate();
    assert!(b.exit_status().await.success());
    let store = RocksStore::open(cluster.path("b-data"), &StoreOptions::default()).unwrap();
    let mut batch = Batch::default();
    let lost = rows(&store, "large", "members").into_iter().step_by(3).chain(rows(&store, "k9", "title"));
    lost.for_each(|(key, _)| batch.delete(Family::Rows, key));
    let count = batch.iter().count();
    store.commit(&batch).unwrap();
    drop(store);
    // By default the first comparison comes long after this test.
    b.restart().await;
    let (status, said) = verify(&[&a, &b], &[]);
    assert_eq!(status.code(), Some(1), "{said}");
    b.terminate();
    assert!(b.exit_status().await.success());
    let config = std::fs::read_to_string(cluster.config("b")).unwrap();
    std::fs::write(cluster.config("b"), config + "[repair]\nscrub_every_ms = 1000\n").unwrap();
    b.restart().await;
    eventually("the scrub puts back what was lost", async || {
        let missing = b.cluster().await["scrubs"]["rows_missing"].as_u64()?;
        (missing >= count as u64).then_some(())
    })
    .await;
    let (status, said) = verify(&[&a, &b], &[]);
    assert_eq!(status.code(), Some(0), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_behind_is_not_proven_and_what_cannot_be_asked_is_an_error() {
    let cluster = Cluster::new(&["a", "b"]);
    // Of another authority: it gets no link.
    let other = cluster.path("other-ca");
    let other = other.to_str().unwrap();
    assert!(run(&["ca", "init", "--cluster", "test", "--dir", other]).0.success());
    assert!(run(&["ca", "issue", "--dir", other, "--node", "b"]).0.success());
    cluster.configure("b", "other-ca");
    let [a, mut b] = [cluster.start("a").await, cluster.start("b").await];
    for key in ["x", "y"] {
        a.put(&format!("/v1/ns/{{t}}{key}/f"), "1").await.json();
    }
    let partition = record("{t}").partition(PARTITIONS).0;
    let (status, said) = verify(&[&a, &b], &["--wait", "1"]);
    assert_eq!(status.code(), Some(3), "{said}");
    assert!(said.contains(&format!("NOT PROVEN  partition {partition}: b lacks 2 commits\n")), "{said}");
    assert!(said.ends_with("NOT PROVEN: 1 of 8 partitions; 7 are equal, none has diverged\n"), "{said}");

    let (status, said) = verify(&[&a, &a], &[]);
    assert_eq!(status.code(), Some(2), "{said}");
    assert!(said.contains("are one node, \"a\""), "{said}");
    assert_eq!(verify(&[&a], &[]).0.code(), Some(2), "one node equals nothing");
    let url = a.url("");
    let (status, said) = run(&["verify", &url, "nonsense"]);
    assert!(status.code() == Some(2) && said.contains("not the URL of a node's API"), "{said}");
    b.kill();
    let (status, said) = verify(&[&a, &b], &[]);
    assert!(status.code() == Some(2) && said.contains("does not answer"), "{said}");
}

#[tokio::test]
async fn digests_of_ranges_are_asked_for_in_one_way() {
    let cluster = Cluster::new(&["a"]);
    let a = cluster.start("a").await;
    a.put("/v1/ns/k/f", "1").await.json();
    let partition = record("k").partition(PARTITIONS).0;
    let ask = async |more: &str| a.get(&format!("/v1/_digest?partition={partition}{more}")).await;
    let whole = eventually("the write is shown", async || Some(ask("").await.json())).await;
    assert_eq!((&whole["rows"], &whole["next"]), (&json!(1), &Value::Null));
    assert_eq!(whole["context"].as_object().unwrap().len(), 1);
    let list = ask("&list=true").await.json();
    assert_eq!((&list["list"][0]["key"], &list["digest"]), (&json!("k"), &Value::Null));
    let at = list["list"][0]["at"].as_str().unwrap();
    assert_eq!(ask(&format!("&from={at}")).await.json()["digest"], whole["digest"]);
    assert_eq!(ask(&format!("&to={at}")).await.json()["rows"], 0);
    for wrong in ["&from=0", "&to=xy", "&rows=0", "&list=true&rows=1025", "&prefix=00", "&list=1"] {
        ask(wrong).await.problem(400, "malformed");
    }
    for wrong in ["", "?partition=", "?partition=8", "?partition=-1"] {
        a.get(&format!("/v1/_digest{wrong}")).await.problem(400, "malformed");
    }
}
