//! Namespaces through HTTP at real nodes: settings and quotas, which reach every region; their deletion, whatever is killed
//! meanwhile; and what is refused.

mod support;

use serde_json::{Value, json};
use support::{Answer, Cluster, Server, converged, eventually, lone_config};
use tempfile::TempDir;

async fn settle(server: &Server, namespace: &str, settings: Value) -> Value {
    server.put(&format!("/v1/_namespaces/{namespace}"), settings.to_string()).await.json()
}

async fn told(server: &Server, namespace: &str) -> Value {
    server.get(&format!("/v1/_namespaces/{namespace}")).await.json()
}

async fn put(server: &Server, path: &str, value: &str) -> Answer {
    server.put(path, format!("\"{value}\"")).await
}

async fn batch(server: &Server, namespace: &str, keys: std::ops::Range<usize>) -> Answer {
    let ops = json!([
        {"op": "set", "field": "title", "value": "x"},
        {"op": "incr", "field": "plays", "by": 1},
        {"op": "add", "field": "tags", "members": ["a", "b"]},
        {"op": "zincr", "field": "top", "member": "m", "by": 1},
        {"op": "observe", "field": "seen", "members": ["m"]},
        {"op": "expire", "in_ms": 3_600_000},
    ]);
    let writes: Vec<Value> = keys.map(|i| json!({"key": format!("k{i}"), "ops": ops})).collect();
    let body = json!({ "writes": writes }).to_string();
    Answer::of(server.request("POST", &format!("/v1/{namespace}")).body(body)).await
}

async fn delete(server: &Server, namespace: &str) -> Value {
    let answer = server.delete(&format!("/v1/_namespaces/{namespace}")).await;
    assert_eq!(answer.status, 202, "{}", answer.body);
    serde_json::from_str(&answer.body).unwrap()
}

/// Waits until the namespace is gone, as far as a node knows.
async fn gone(server: &Server, namespace: &str) {
    eventually("the namespace is deleted", async || {
        let answer = server.get(&format!("/v1/_namespaces/{namespace}")).await;
        (answer.status == 404).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_are_kept_and_what_is_no_setting_is_refused() {
    let dir = TempDir::new().unwrap();
    let mut server = Server::start(&lone_config(dir.path(), "")).await;
    server.get("/v1/_namespaces/shop").await.problem(404, "namespace-not-found");
    assert_eq!(server.get("/v1/_namespaces").await.json(), json!({"namespaces": []}));
    let made = settle(&server, "shop", json!({"max_keys": 5, "requests_per_second": 1_000})).await;
    let settings = json!({"max_keys": 5, "requests_per_second": 1_000});
    assert_eq!((&made["namespace"], &made["settings"]), (&json!("shop"), &settings));
    put(&server, "/v1/other/k/f", "x").await.json();
    for _ in 0..2 {
        let told = told(&server, "shop").await;
        assert_eq!((&told["state"], &told["settings"]), (&json!("active"), &settings));
        assert_eq!(told_usage(&server, "shop").await, json!({"keys": 0, "bytes": 0}));
        assert_eq!(server.get("/v1/_namespaces").await.json(), json!({"namespaces": ["other", "shop"]}));
        let after = server.get("/v1/_namespaces?after=other").await;
        assert_eq!(after.json(), json!({"namespaces": ["shop"]}));
        server.kill();
        server.restart().await;
    }
    // One that has keys and no settings.
    let other = told(&server, "other").await;
    assert_eq!((&other["settings"], other.get("usage")), (&json!({}), None));
    settle(&server, "shop", json!({})).await;
    assert_eq!(told(&server, "shop").await["settings"], json!({}));

    for wrong in ["[]", "{", "{\"max_keys\":-1}", "{\"max_key\":1}", "{\"requests_per_second\":0}"] {
        server.put("/v1/_namespaces/shop", wrong).await.problem(400, "malformed");
    }
    for path in ["/v1/_namespaces/Shop", "/v1/_namespaces/godwit-namespaces", "/v1/godwit-namespaces/k/f"] {
        server.put(path, "{}").await.problem(400, "invalid-name");
    }
    server.get("/v1/godwit-namespaces").await.problem(400, "invalid-name");
    server.get("/v1/_changes/godwit-namespaces").await.problem(400, "invalid-name");
    server.patch("/v1/_namespaces/shop", "{}").await.problem(405, "method-not-allowed");
    server.get("/v1/_namespaces/shop?x=1").await.problem(400, "malformed");
}

/// What is told of the usage, once it is counted.
async fn told_usage(server: &Server, namespace: &str) -> Value {
    eventually("the namespace is counted", async || told(server, namespace).await.get("usage").cloned()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quota_on_keys_refuses_new_records_only() {
    let dir = TempDir::new().unwrap();
    let mut server = Server::start(&lone_config(dir.path(), "")).await;
    // What was there before is counted.
    put(&server, "/v1/shop/a/f", "1").await.json();
    settle(&server, "shop", json!({"max_keys": 3})).await;
    for _ in 0..2 {
        assert_eq!(told_usage(&server, "shop").await["keys"], 1);
        put(&server, "/v1/shop/b/f", "1").await.json();
        put(&server, "/v1/shop/c/f", "1").await.json();
        let refused = put(&server, "/v1/shop/d/f", "1").await.problem(403, "quota-exceeded");
        let detail = refused["detail"].as_str().unwrap();
        assert!(detail.contains("3 keys") && detail.contains("max_keys"), "{detail}");
        server.get("/v1/shop/d").await.problem(404, "not-found");
        // Records that are there take writes, and what takes away is taken.
        put(&server, "/v1/shop/a/g", "2").await.json();
        server.delete("/v1/shop/nothing").await.json();
        server
            .patch("/v1/shop/nothing", r#"{"ops":[{"op":"remove","field":"s","members":["m"]}]}"#)
            .await
            .json();
        // Other namespaces have other quotas.
        put(&server, "/v1/other/d/f", "1").await.json();
        server.delete("/v1/shop/b").await.json();
        server.delete("/v1/shop/c").await.json();
        server.kill();
        server.restart().await;
    }
    // A batch is judged by what was there before it, each commit for itself.
    let answer = batch(&server, "shop", 0..20).await;
    answer.json();
    let answer = batch(&server, "shop", 20..21).await;
    answer.problem(403, "quota-exceeded");
    let results: Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!(results["results"][0]["problem"]["status"], 403);
    assert_eq!(told(&server, "shop").await["usage"]["keys"], 21);
    // Raised, it lets through at once; without it nothing is counted.
    settle(&server, "shop", json!({"max_keys": 22})).await;
    batch(&server, "shop", 20..21).await.json();
    batch(&server, "shop", 21..22).await.problem(403, "quota-exceeded");
    let unlimited = settle(&server, "shop", json!({})).await;
    assert_eq!(unlimited.get("usage"), None);
    batch(&server, "shop", 21..22).await.json();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quota_on_bytes_refuses_what_adds_and_no_retry_of_what_was_committed() {
    let dir = TempDir::new().unwrap();
    let server = Server::start(&lone_config(dir.path(), "")).await;
    settle(&server, "shop", json!({"max_bytes": 10_000})).await;
    told_usage(&server, "shop").await;
    let large = "x".repeat(4_000);
    let keyed = async || {
        let put = server.request("PUT", "/v1/shop/c/f").header("idempotency-key", "once");
        Answer::of(put.body(format!("\"{large}\""))).await
    };
    put(&server, "/v1/shop/a/f", &large).await.json();
    put(&server, "/v1/shop/b/f", &large).await.json();
    keyed().await.json();
    let usage = told(&server, "shop").await["usage"].clone();
    let bytes = usage["bytes"].as_u64().unwrap();
    assert!((12_000..12_500).contains(&bytes) && usage["keys"] == 3, "{usage}");
    put(&server, "/v1/shop/a/g", "1").await.problem(403, "quota-exceeded");
    let repeated = keyed().await;
    repeated.json();
    assert_eq!(repeated.headers["godwit-repeated"], "true");
    // Counts follow what is taken away.
    server.patch("/v1/shop/a", r#"{"ops":[{"op":"expire","in_ms":100000}]}"#).await.json();
    server.delete("/v1/shop/a/f").await.json();
    let less = told(&server, "shop").await["usage"]["bytes"].as_u64().unwrap();
    assert!((8_000..8_500).contains(&less), "{less}");
    put(&server, "/v1/shop/a/g", "1").await.json();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rate_is_held_and_others_are_not() {
    let dir = TempDir::new().unwrap();
    let server = Server::start(&lone_config(dir.path(), "")).await;
    settle(&server, "shop", json!({"requests_per_second": 5})).await;
    let mut taken = 0;
    let refused = loop {
        let answer = server.get("/v1/shop").await;
        if answer.status == 429 {
            break answer;
        }
        answer.json();
        taken += 1;
        assert!(taken < 1_000, "no request is refused");
    };
    assert!(taken >= 5, "{taken}");
    assert_eq!(refused.problem(429, "rate-limited")["applied"], "no");
    assert_eq!(refused.headers["retry-after"], "1");
    server.get("/v1/other").await.json();
    assert_eq!(told(&server, "shop").await["settings"]["requests_per_second"], 5);
    eventually("the rate lets through again", async || {
        (server.get("/v1/shop").await.status == 200).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_automatic_creation_a_namespace_must_be_made() {
    let dir = TempDir::new().unwrap();
    let config = lone_config(dir.path(), "[limits]\nauto_create_namespaces = false\n");
    let mut server = Server::start(&config).await;
    for path in ["/v1/shop", "/v1/shop/k", "/v1/shop/k/f", "/v1/_changes/shop", "/v1/_namespaces/shop"] {
        server.get(path).await.problem(404, "namespace-not-found");
    }
    put(&server, "/v1/shop/k/f", "1").await.problem(404, "namespace-not-found");
    batch(&server, "shop", 0..1).await.problem(404, "namespace-not-found");
    settle(&server, "shop", json!({})).await;
    put(&server, "/v1/shop/k/f", "1").await.json();
    server.kill();
    server.restart().await;
    put(&server, "/v1/shop/k/g", "1").await.json();
    put(&server, "/v1/shop2/k/g", "1").await.problem(404, "namespace-not-found");
    assert_eq!(delete(&server, "shop").await["state"], "deleting");
    gone(&server, "shop").await;
    put(&server, "/v1/shop/k/f", "1").await.problem(404, "namespace-not-found");
    settle(&server, "shop", json!({})).await;
    assert_eq!(server.get("/v1/shop").await.json()["keys"], json!([]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deletion_outlives_a_crash_and_leaves_nothing() {
    let dir = TempDir::new().unwrap();
    let mut server = Server::start(&lone_config(dir.path(), "")).await;
    settle(&server, "shop", json!({"max_keys": 1_000_000})).await;
    for first in (0..3_000).step_by(500) {
        batch(&server, "shop", first..first + 500).await.json();
    }
    batch(&server, "shop2", 0..10).await.json();
    let deleting = delete(&server, "shop").await;
    assert_eq!((&deleting["state"], &deleting["deletion"]["node"]), (&json!("deleting"), &json!("lone")));
    server.kill();
    server.restart().await;
    // Whether it is over by now or not: nothing in between is shown or taken.
    let listed = server.get("/v1/shop").await;
    match listed.status {
        200 => assert_eq!(listed.json()["keys"], json!([])),
        _ => drop(listed.problem(409, "namespace-deleting")),
    }
    gone(&server, "shop").await;
    assert_eq!(server.get("/v1/shop").await.json()["keys"], json!([]));
    assert_eq!(server.get("/v1/_namespaces").await.json(), json!({"namespaces": ["shop2"]}));
    assert_eq!(server.get("/v1/shop2?limit=100").await.json()["keys"].as_array().unwrap().len(), 10);
    // It may be used again, without the settings that it had.
    put(&server, "/v1/shop/k1/f", "new").await.json();
    assert_eq!(server.get("/v1/shop/k1").await.json()["fields"], json!({"f": "new"}));
    assert_eq!(told(&server, "shop").await["settings"], json!({}));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_and_deletions_reach_every_region() {
    let cluster = Cluster::new(&["a", "b"]);
    let [mut a, mut b] = [cluster.start("a").await, cluster.start("b").await];
    let made = a.put("/v1/_namespaces/shop", r#"{"max_keys":2}"#).await;
    let token = made.headers["godwit-token"].to_str().unwrap().to_owned();
    // A session that carries the token finds them there.
    let there = b.request("GET", "/v1/_namespaces/shop?wait_ms=20000").header("godwit-token", token);
    assert_eq!(Answer::of(there).await.json()["settings"], json!({"max_keys": 2}));
    for key in ["k1", "k2"] {
        put(&a, &format!("/v1/shop/{key}/f"), "1").await.json();
    }
    converged(&[&a, &b]).await;
    eventually("b counts what came from a", async || {
        (told(&b, "shop").await["usage"]["keys"] == 2).then_some(())
    })
    .await;
    put(&b, "/v1/shop/k3/f", "1").await.problem(403, "quota-exceeded");

    // Beyond the quota when the regions do not hear of each other: nothing is lost by it.
    b.kill();
    a.delete("/v1/shop/k1").await.json();
    put(&a, "/v1/shop/k4/f", "1").await.json();
    a.kill();
    b.restart().await;
    b.delete("/v1/shop/k2").await.json();
    put(&b, "/v1/shop/k5/f", "1").await.json();
    // Deleted at b while a, that is away, has a record that b never saw.
    delete(&b, "shop").await;
    gone(&b, "shop").await;
    a.restart().await;
    converged(&[&a, &b]).await;
    for server in [&a, &b] {
        assert_eq!(server.get("/v1/shop").await.json(), json!({"keys": ["k4"]}));
    }

    // A node that is lost for good leaves its deletion to another one.
    for first in (0..2_000).step_by(500) {
        batch(&a, "shop", first..first + 500).await.json();
    }
    converged(&[&a, &b]).await;
    delete(&a, "shop").await;
    eventually("b hears of it", async || {
        let answer = b.get("/v1/_namespaces/shop").await;
        (answer.status == 404 || answer.json()["state"] == "deleting").then_some(())
    })
    .await;
    a.kill();
    delete(&b, "shop").await;
    gone(&b, "shop").await;
    assert_eq!(b.get("/v1/shop").await.json()["keys"], json!([]));
    a.restart().await;
    converged(&[&a, &b]).await;
    gone(&a, "shop").await;
    assert_eq!(a.get("/v1/shop").await.json()["keys"], json!([]));
}
