//! The change feed of real nodes: live events, filters, going on at another node and after a restart, resets, what is refused.

mod support;

use serde_json::{Value, json};
use support::contract::{self, Contract};
use support::{Cluster, Server, WAIT_MAX, converged, lone_config};
use tempfile::TempDir;

/// A consumer.
struct Feed {
    contract: &'static Contract,
    answer: reqwest::Response,
    text: String,
    /// The last id that it was given.
    id: String,
}

#[derive(Debug)]
struct Event {
    name: String,
    data: Value,
}

impl Feed {
    /// Opens a feed; the first event says where it begins.
    async fn open(server: &Server, query: &str, last: Option<&str>) -> Self {
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let mut request = client.get(server.url(&format!("/v1/_changes/ns?{query}")));
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status().as_u16(), 200);
        assert_eq!(answer.headers()["content-type"], "text/event-stream");
        let contract = contract::of_node(&client, answer.url()).await.unwrap();
        let mut feed = Self { contract, answer, text: String::new(), id: String::new() };
        assert_eq!(feed.next().await.unwrap().name, "position");
        feed
    }

    /// The next event; `None` when the stream has ended.
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let (mut name, mut data) = (String::new(), Value::Null);
                for line in event.lines() {
                    match line.split_once(": ") {
                        Some(("event", text)) => name = text.to_owned(),
                        Some(("data", text)) => data = serde_json::from_str(text).unwrap(),
                        Some(("id", text)) => self.id = text.to_owned(),
                        _ => assert!(line.starts_with(':'), "{line}"),
                    }
                }
                self.text = rest.to_owned();
                if name.is_empty() {
                    continue;
                }
                if name == "change" {
                    self.contract.validate("/components/schemas/ChangeEvent", &data).unwrap();
                }
                return Some(Event { name, data });
            }
            let chunk = tokio::time::timeout(WAIT_MAX, self.answer.chunk()).await.expect("an event comes");
            match chunk {
                Ok(Some(chunk)) => self.text.push_str(std::str::from_utf8(&chunk).unwrap()),
                Ok(None) | Err(_) => return None,
            }
        }
    }

    /// The next change, whatever positions come before it.
    async fn change(&mut self) -> Value {
        loop {
            let event = self.next().await.expect("the stream goes on");
            match event.name.as_str() {
                "change" => return event.data,
                "position" => {}
                other => panic!("an event {other}"),
            }
        }
    }

    /// Changes until a record has a value.
    async fn until(&mut self, key: &str, field: &str, value: &Value) {
        loop {
            let change = self.change().await;
            if change["key"] == key && change["fields"][field] == *value {
                return;
            }
        }
    }
}

async fn patch(server: &Server, key: &str, ops: Value) {
    let path = format!("/v1/ns/{}", key.replace('/', "%2F"));
    server.patch(&path, json!({ "ops": ops }).to_string()).await.json();
}

async fn set(server: &Server, key: &str, value: u64) {
    patch(server, key, json!([{"op": "set", "field": "title", "value": value}])).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_are_told_with_their_values() {
    let dir = TempDir::new().unwrap();
    let server = Server::start(&lone_config(dir.path(), "")).await;
    set(&server, "before", 1).await;
    let mut feed = Feed::open(&server, "", None).await;
    patch(
        &server,
        "a",
        json!([
            {"op": "set", "field": "title", "value": {"b": 1, "a": 1.50}}, {"op": "incr", "field": "plays", "by": 3},
            {"op": "add", "field": "tags", "members": ["x", "y"]}, {"op": "enable", "field": "new"},
            {"op": "zadd", "field": "top", "scores": {"m": 2.5, "n": 1}},
            {"op": "observe", "field": "listeners", "members": ["u1", "u2"]},
        ]),
    )
    .await;
    let all = json!({"key": "a", "fields": {"title": {"b": 1, "a": 1.50}, "plays": 3, "tags": ["x", "y"],
        "new": true, "top": [["n", 1.0], ["m", 2.5]], "listeners": 2}});
    assert_eq!(feed.change().await, all);
    patch(&server, "a", json!([{"op": "incr", "field": "plays", "by": 1}, {"op": "clear", "field": "tags"}]))
        .await;
    assert_eq!(feed.change().await, json!({"key": "a", "fields": {"plays": 4, "tags": null}}));
    server.delete("/v1/ns/a").await.json();
    assert_eq!(feed.change().await, json!({"key": "a", "fields": {}, "whole": true, "deleted": true}));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_expires_is_told_when_its_time_comes() {
    let dir = TempDir::new().unwrap();
    let server = Server::start(&lone_config(dir.path(), "")).await;
    let mut feed = Feed::open(&server, "prefix=pod", None).await;
    for (key, in_ms) in [("pod/soon", 1_000), ("pod/later", 3_600_000), ("pod/kept", 1_000), ("other", 1_000)]
    {
        let ops = json!([{"op": "set", "field": "title", "value": 1}, {"op": "expire", "in_ms": in_ms}]);
        patch(&server, key, ops).await;
    }
    patch(&server, "pod/kept", json!([{"op": "persist"}])).await;
    let mut gone = Vec::new();
    // Until both times have come. What was to expire then, and does no more, may be told, as it is.
    while gone.is_empty() {
        let change = feed.change().await;
        match change["deleted"] == true {
            true => gone.push(change["key"].clone()),
            false => assert_eq!(change["fields"]["title"], 1),
        }
    }
    assert_eq!(gone, ["pod/soon"]);
    server.get("/v1/ns/pod%2Fsoon").await.problem(404, "not-found");
    set(&server, "pod/end", 2).await;
    loop {
        let change = feed.change().await;
        assert_ne!(change["deleted"], true, "{change}");
        if change["key"] == "pod/end" {
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prefix_filters_and_positions_go_on() {
    let dir = TempDir::new().unwrap();
    let server = Server::start(&lone_config(dir.path(), "")).await;
    let mut feed = Feed::open(&server, "prefix=pod%2F", None).await;
    set(&server, "other", 1).await;
    set(&server, "pod/1", 2).await;
    assert_eq!(feed.change().await, json!({"key": "pod/1", "fields": {"title": 2}}));
    let id = feed.id.clone();
    drop(feed);
    set(&server, "pod/2", 3).await;
    // By the address, as by the header; the header is later.
    let mut again = Feed::open(&server, &format!("prefix=pod&since={id}"), None).await;
    assert_eq!(again.change().await["key"], "pod/2");
    let later = again.id.clone();
    let mut last = Feed::open(&server, &format!("since={id}"), Some(&later)).await;
    set(&server, "pod/3", 4).await;
    assert_eq!(last.change().await["key"], "pod/3");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_goes_on_in_another_region_and_after_a_restart() {
    let cluster = Cluster::new(&["a", "b"]);
    let [mut a, mut b] = [cluster.start("a").await, cluster.start("b").await];
    let mut feed = Feed::open(&a, "", None).await;
    set(&a, "k1", 1).await;
    set(&b, "k2", 2).await;
    let mut keys = [feed.change().await["key"].clone(), feed.change().await["key"].clone()];
    keys.sort_by_key(Value::to_string);
    assert_eq!(keys, [json!("k1"), json!("k2")]);
    converged(&[&a, &b]).await;
    let id = feed.id.clone();
    // What is written while nobody listens, on either side, some of it while a is down.
    a.kill();
    set(&b, "k3", 3).await;
    let mut at_b = Feed::open(&b, &format!("since={id}"), None).await;
    assert_eq!(at_b.change().await, json!({"key": "k3", "fields": {"title": 3}}));
    let id = at_b.id.clone();
    a.restart().await;
    set(&a, "k4", 4).await;
    at_b.until("k4", "title", &json!(4)).await;
    b.kill();
    // The stream of a node that is gone ends.
    while at_b.next().await.is_some() {}
    let mut at_a = Feed::open(&a, &format!("since={id}"), None).await;
    at_a.until("k4", "title", &json!(4)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_is_gone_resets() {
    let dir = TempDir::new().unwrap();
    let config = lone_config(dir.path(), "[retention]\nlog_age_ms = 1000\n");
    let server = Server::start(&config).await;
    let mut feed = Feed::open(&server, "", None).await;
    set(&server, "k", 0).await;
    feed.until("k", "title", &json!(0)).await;
    let id = feed.id.clone();
    drop(feed);
    set(&server, "k", 1).await;
    let reset = support::eventually("the log is dropped", async || {
        let mut feed = Feed::open(&server, &format!("since={id}"), None).await;
        let event = feed.next().await.unwrap();
        (event.name == "reset").then_some(feed)
    });
    let mut feed = reset.await;
    // From there on it goes on as ever.
    set(&server, "k", 2).await;
    feed.until("k", "title", &json!(2)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_does_not_read_costs_nothing_and_misses_nothing() {
    let dir = TempDir::new().unwrap();
    let server = Server::start(&lone_config(dir.path(), "")).await;
    let mut slow = Feed::open(&server, "", None).await;
    let text = "x".repeat(30_000);
    for i in 0..300 {
        let ops =
            json!([{"op": "set", "field": "text", "value": text}, {"op": "set", "field": "n", "value": i}]);
        patch(&server, &format!("k{}", i % 7), ops).await;
    }
    // Far more than sockets hold was written; what the consumer gets is the last of each, if not more.
    for key in 0..7 {
        let last = (0..300).rev().find(|i| i % 7 == key).unwrap();
        let mut again = Feed::open(&server, &format!("since={}&prefix=k{key}", slow.id), None).await;
        again.until(&format!("k{key}"), "n", &json!(last)).await;
    }
    let mut seen = std::collections::BTreeSet::new();
    while seen.len() < 7 {
        let change = slow.change().await;
        if change["fields"]["n"].as_u64().is_some_and(|n| n >= 293) {
            seen.insert(change["key"].to_string());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_wrong_is_refused() {
    let dir = TempDir::new().unwrap();
    let server = Server::start(&lone_config(dir.path(), "[limits]\nfeeds = 1\n")).await;
    server.get("/v1/_changes/ns?since=nonsense").await.problem(400, "malformed");
    server.get("/v1/_changes/ns?sinse=x").await.problem(400, "malformed");
    server.get("/v1/_changes/NS").await.problem(400, "invalid-name");
    let feed = Feed::open(&server, "", None).await;
    server.get("/v1/_changes/ns").await.problem(429, "overloaded");
    // The place of one that has gone is free once the node has noticed.
    drop(feed);
    support::eventually("a place is free", async || {
        let answer = support::client().get(server.url("/v1/_changes/ns")).send().await.unwrap();
        (answer.status().as_u16() == 200).then_some(())
    })
    .await;
}
