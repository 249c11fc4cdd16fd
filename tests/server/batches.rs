//! Batches, on real nodes: atomic within a partition, and each result told.

mod support;

use std::collections::BTreeMap;

use serde_json::{Value, json};
use support::{Answer, Cluster, Server, converged, eventually, lone_config};
use tempfile::TempDir;

async fn node(more: &str) -> (Server, TempDir) {
    let dir = TempDir::new().unwrap();
    (Server::start(&lone_config(dir.path(), more)).await, dir)
}

async fn post(node: &Server, path: &str, body: &Value) -> Answer {
    Answer::of(node.request("POST", path).body(body.to_string())).await
}

fn incr(key: &str, by: i64) -> Value {
    json!({"key": key, "ops": [{"op": "incr", "field": "n", "by": by}]})
}

fn set(key: &str, field: &str, value: Value) -> Value {
    json!({"key": key, "ops": [{"op": "set", "field": field, "value": value}]})
}

async fn read(node: &Server, keys: &[&str]) -> Value {
    post(node, "/v1/ns", &json!({"reads": keys})).await.json()["records"].take()
}

/// Two keys of different partitions.
async fn apart(node: &Server) -> [String; 2] {
    let mut homes: BTreeMap<u64, String> = BTreeMap::new();
    for i in 0..50 {
        let key = format!("apart{i}");
        // A delete of nothing changes nothing, and tells the partition.
        let told = node.delete(&format!("/v1/ns/{key}")).await.json();
        homes.entry(told["partition"].as_u64().unwrap()).or_insert(key);
    }
    let mut keys = homes.into_values();
    [keys.next().unwrap(), keys.next().unwrap()]
}

#[tokio::test]
async fn writes_are_committed_and_told_one_by_one() {
    let (node, _dir) = node("").await;
    let writes: Vec<Value> = (0..40).map(|i| incr(&format!("k{i}"), i)).collect();
    let told = post(&node, "/v1/ns", &json!({"writes": writes})).await.json();
    assert_eq!(told["refused"], 0);
    let results = told["results"].as_array().unwrap();
    let mut commits: BTreeMap<u64, &Value> = BTreeMap::new();
    for (i, result) in results.iter().enumerate() {
        assert_eq!(result["key"], format!("k{i}"));
        let commit = commits.entry(result["partition"].as_u64().unwrap()).or_insert(&result["commit"]);
        assert_eq!(*commit, &result["commit"], "one commit a partition");
        assert_eq!(result["commit"]["counter"], 1);
        assert_eq!(node.get(&format!("/v1/ns/k{i}/n")).await.json()["value"], i);
    }
    assert_eq!((results.len(), commits.len()), (40, 8));
    // Nothing to change is no refusal.
    let nothing = json!({"writes": [{"key": "gone", "ops": [{"op": "clear", "field": "f"}]}]});
    let told = post(&node, "/v1/ns", &nothing).await.json();
    assert_eq!((&told["refused"], &told["results"][0]["commit"]), (&json!(0), &Value::Null));

    // As many as there may be, and one more.
    let writes: Vec<Value> = (0..1_001).map(|i| incr(&format!("many{i}"), 1)).collect();
    let problem = post(&node, "/v1/ns", &json!({"writes": writes})).await.problem(413, "too-large");
    assert_eq!((&problem["limit"], &problem["max"]), (&json!("writes"), &json!(1_000)));
    node.get("/v1/ns/many0").await.problem(404, "not-found");
    let told = post(&node, "/v1/ns", &json!({"writes": writes[..1_000]})).await.json();
    assert_eq!((told["results"].as_array().unwrap().len(), &told["refused"]), (1_000, &json!(0)));
}

#[tokio::test]
async fn a_key_named_twice_is_one_write() {
    let (node, _dir) = node("").await;
    let body = json!({"writes": [set("k", "t", json!(1)), incr("j", 1), set("k", "t", json!(2)), incr("k", 3), incr("k", 4)]});
    let told = post(&node, "/v1/ns", &body).await.json();
    let results = told["results"].as_array().unwrap();
    assert_eq!(
        results.iter().map(|result| result["key"].as_str().unwrap()).collect::<Vec<_>>(),
        ["k", "j", "k", "k", "k"]
    );
    for same in [2, 3, 4] {
        assert_eq!(results[same], results[0]);
    }
    assert_eq!(node.get("/v1/ns/k").await.json()["fields"], json!({"n": 7, "t": 2}));
    assert_eq!(node.get("/v1/ns/k/t?view=full").await.json()["siblings"], json!([]));
    // A refused operation is found in the write that it came with.
    let body = json!({"writes": [set("k", "u", json!(1)), set("k", "v", json!(1)),
        {"key": "k", "ops": [{"op": "enable", "field": "f"}, {"op": "enable", "field": "n"}]}]});
    let problem = post(&node, "/v1/ns", &body).await.problem(409, "type-mismatch");
    assert_eq!((&problem["write"], &problem["op"], &problem["refused"]), (&json!(2), &json!(1), &json!(3)));
    assert_eq!(node.get("/v1/ns/k").await.json()["fields"], json!({"n": 7, "t": 2}));
}

#[tokio::test]
async fn records_of_one_tag_change_together_or_not_at_all() {
    let (node, _dir) = node("").await;
    let (likes, profile) = ("/v1/ns/%7Buser:7%7D%2Flikes", "/v1/ns/%7Buser%3A7%7D%2Fprofile");
    let body = json!({"writes": [
        {"key": "{user:7}/likes", "ops": [{"op": "add", "field": "songs", "members": ["s1"]}]},
        {"key": "{user:7}/profile", "ops": [{"op": "incr", "field": "likes", "by": 1}]},
    ]});
    let told = post(&node, "/v1/ns", &body).await.json();
    assert_eq!(told["results"][0]["commit"], told["results"][1]["commit"]);
    assert_eq!(node.get(likes).await.json(), json!({"key": "{user:7}/likes", "fields": {"songs": ["s1"]}}));
    assert_eq!(node.get(profile).await.json(), json!({"key": "{user:7}/profile", "fields": {"likes": 1}}));
    // Braces as they are do as well, and a slash that is not escaped is another resource.
    let raw = node.raw(b"GET /v1/ns/{user:7}%2Flikes HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    assert!(raw.starts_with("HTTP/1.1 200") && raw.contains("songs"), "{raw}");
    node.get("/v1/ns/%7Buser:7%7D/likes").await.problem(404, "not-found");
    assert_eq!(
        node.get("/v1/ns?prefix=%7Buser:7%7D").await.json()["keys"],
        json!(["{user:7}/likes", "{user:7}/profile"])
    );

    let body = json!({"writes": [
        {"key": "{user:7}/likes", "ops": [{"op": "add", "field": "songs", "members": ["s2"]}]},
        {"key": "{user:7}/profile", "ops": [{"op": "incr", "field": "likes", "by": 1}, {"op": "enable", "field": "likes"}]},
        {"key": "{user:7}/more", "ops": [{"op": "enable", "field": "f"}]},
    ]});
    let problem = post(&node, "/v1/ns", &body).await.problem(409, "type-mismatch");
    assert_eq!((&problem["write"], &problem["op"], &problem["refused"]), (&json!(1), &json!(1), &json!(3)));
    for result in problem["results"].as_array().unwrap() {
        assert_eq!((&result["problem"]["write"], &result["problem"]["status"]), (&json!(1), &json!(409)));
    }
    assert_eq!(node.get(likes).await.json()["fields"], json!({"songs": ["s1"]}));
    assert_eq!(node.get(profile).await.json()["fields"], json!({"likes": 1}));
    node.get("/v1/ns/%7Buser:7%7D%2Fmore").await.problem(404, "not-found");
}

#[tokio::test]
async fn no_reader_in_another_region_sees_half_of_a_commit() {
    let cluster = Cluster::new(&["a", "b"]);
    let (a, b) = (cluster.start("a").await, cluster.start("b").await);
    let keys = ["{u}/1", "{u}/2"];
    let writer = async {
        for _ in 0..100 {
            let told = post(&a, "/v1/ns", &json!({"writes": keys.map(|key| incr(key, 1))})).await.json();
            assert_eq!(told["refused"], 0);
        }
    };
    let reader = async {
        eventually("all commits are seen", async || {
            let records = read(&b, &keys).await;
            assert_eq!(records[0]["fields"], records[1]["fields"]);
            (records[0]["fields"]["n"] == 100).then_some(())
        })
        .await;
    };
    tokio::join!(writer, reader);
    converged(&[&a, &b]).await;
}

#[tokio::test]
async fn a_refused_partition_leaves_the_others_committed() {
    let (node, _dir) = node("").await;
    let [first, second] = apart(&node).await;
    node.put(&format!("/v1/ns/{first}/n"), "\"text\"").await.json();
    let body = json!({"writes": [incr(&second, 1), incr(&first, 1), set(&second, "t", json!("x"))]});
    let answer = post(&node, "/v1/ns", &body).await;
    assert_eq!((answer.status, answer.headers["content-type"].to_str().unwrap()), (207, "application/json"));
    let told: Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!(told["refused"], 1);
    let [kept, refused, with_it] = &told["results"].as_array().unwrap()[..] else { panic!("{told}") };
    assert_eq!(kept["commit"], with_it["commit"]);
    assert!(kept["commit"]["counter"].is_u64() && kept.get("problem").is_none());
    assert!(refused.get("commit").is_none());
    let problem = &refused["problem"];
    assert_eq!((&problem["type"], &problem["status"]), (&json!("/problems/type-mismatch"), &json!(409)));
    assert_eq!((&problem["write"], &problem["op"]), (&json!(1), &json!(0)));
    assert!(problem["detail"].as_str().unwrap().contains("register"));
    assert_eq!(
        read(&node, &[&first, &second]).await,
        json!([{"key": first, "fields": {"n": "text"}}, {"key": second, "fields": {"n": 1, "t": "x"}}])
    );
}

#[tokio::test]
async fn what_is_wrong_with_one_write_refuses_all_before_any() {
    let limits = "[limits]\nvalue_bytes = 100\nfields = 4\nops = 3\nmembers = 4\nbody_bytes = 3000\n";
    let (node, _dir) = node(limits).await;
    let good = || incr("k", 1);
    let op = |op: Value| json!({"writes": [good(), {"key": "j", "ops": [op]}]});
    let many = |members: usize| json!({"op": "add", "field": "s", "members": vec!["m"; members]});
    let cases = [
        (json!([]), 400, "malformed", Value::Null, Value::Null),
        (json!({}), 400, "malformed", Value::Null, Value::Null),
        (json!({"writes": []}), 400, "malformed", Value::Null, Value::Null),
        (json!({"writes": [good()], "reads": ["k"]}), 400, "malformed", Value::Null, Value::Null),
        (json!({"writes": [good(), 7]}), 400, "malformed", json!(1), Value::Null),
        (json!({"writes": [good(), {"key": "..", "ops": []}]}), 400, "invalid-name", json!(1), Value::Null),
        (json!({"writes": [good(), {"key": "j", "ops": []}]}), 400, "malformed", json!(1), Value::Null),
        (op(json!({"op": "zap", "field": "f"})), 400, "unknown-op", json!(1), json!(0)),
        (op(json!({"op": "enable", "field": ""})), 400, "invalid-name", json!(1), json!(0)),
        (op(many(5)), 413, "too-large", json!(1), json!(0)),
        (json!({"writes": [good(), good(), good(), good()]}), 413, "too-large", json!(3), Value::Null),
        (json!({"reads": []}), 400, "malformed", Value::Null, Value::Null),
        (json!({"reads": [1]}), 400, "malformed", Value::Null, Value::Null),
        (json!({"reads": ["k", ""]}), 400, "invalid-name", Value::Null, Value::Null),
        (json!({"reads": ["k"], "view": "full"}), 400, "malformed", Value::Null, Value::Null),
        (json!({"reads": ["x".repeat(3000)]}), 413, "too-large", Value::Null, Value::Null),
    ];
    for (body, status, kind, write, op) in cases {
        let problem = post(&node, "/v1/ns", &body).await.problem(status, kind);
        assert_eq!((&problem["write"], &problem["op"]), (&write, &op), "{body}: {problem}");
        assert_eq!(read(&node, &["k", "j"]).await, json!([null, null]), "{body}");
    }
    let body = json!({"writes": [good()]});
    post(&node, "/v1/ns?view=full", &body).await.problem(400, "malformed");
    post(&node, "/v1/ns?wiev=full", &json!({"reads": ["k"]})).await.problem(400, "malformed");
    post(&node, "/v1/NS", &body).await.problem(400, "invalid-name");
    post(&node, "/v1/_ns", &body).await.problem(404, "not-found");
    let typed = node.request("POST", "/v1/ns").header("content-type", "text/plain").body(body.to_string());
    Answer::of(typed).await.problem(415, "unsupported-media-type");
    let keyed = node.request("POST", "/v1/ns").header("if-match", "x").body(body.to_string());
    Answer::of(keyed).await.problem(400, "unsupported-header");
    assert_eq!(read(&node, &["k", "j"]).await, json!([null, null]));
    // A limit that depends on the data, within a partition.
    let fields = |fields: &[&str]| -> Value {
        let ops: Vec<Value> = fields.iter().map(|field| json!({"op": "enable", "field": field})).collect();
        json!({"writes": [{"key": "k", "ops": ops}]})
    };
    post(&node, "/v1/ns", &fields(&["a", "b", "c"])).await.json();
    let problem = post(&node, "/v1/ns", &fields(&["d", "e"])).await.problem(413, "too-large");
    assert_eq!(
        (&problem["limit"], &problem["write"], &problem["op"]),
        (&json!("fields"), &json!(0), &json!(1))
    );
}

#[tokio::test]
async fn many_records_are_read_at_once() {
    let (node, _dir) = node("[limits]\nanswer_bytes = 2000000\n").await;
    node.put("/v1/ns/a%2Fb/t", "{\"z\":1,\"a\":2}").await.json();
    node.patch("/v1/ns/c", r#"{"ops":[{"op":"incr","field":"n","by":9007199254740993}]}"#).await.json();
    let answer = post(&node, "/v1/ns", &json!({"reads": ["c", "gone", "a/b", "c"]})).await;
    let c = r#"{"key":"c","fields":{"n":9007199254740993}}"#;
    assert_eq!(
        answer.body,
        format!(
            "{{\"records\":[{c},null,{{\"key\":\"a/b\",\"fields\":{{\"t\":{{\"z\":1,\"a\":2}}}}}},{c}]}}"
        )
    );
    let shaped = post(&node, "/v1/ns?view=full&numbers=string", &json!({"reads": ["c"]})).await.json();
    let shown = &shaped["records"][0]["fields"]["n"];
    assert_eq!((&shown["value"], &shown["type"]), (&json!("9007199254740993"), &json!("counter")));
    assert_eq!(shown["updated"]["region"], "region-lone");
    let members: Vec<String> = (0..1_001).map(|i| format!("m{i:04}")).collect();
    let add = json!({"ops": [{"op": "add", "field": "s", "members": members}]});
    node.patch("/v1/ns/long", add.to_string()).await.json();
    assert_eq!(read(&node, &["long"]).await[0]["truncated"], json!(["s"]));

    // Limits on keys and on bytes.
    let keys = |count| json!({"reads": vec!["c"; count]});
    assert_eq!(post(&node, "/v1/ns", &keys(1_000)).await.json()["records"].as_array().unwrap().len(), 1_000);
    let problem = post(&node, "/v1/ns", &keys(1_001)).await.problem(413, "too-large");
    assert_eq!((&problem["limit"], &problem["max"]), (&json!("reads"), &json!(1_000)));
    let large = format!("\"{}\"", "x".repeat(1_000_000));
    node.put("/v1/ns/large/v", large).await.json();
    assert_eq!(read(&node, &["large"]).await[0]["fields"]["v"].as_str().unwrap().len(), 1_000_000);
    let problem =
        post(&node, "/v1/ns", &json!({"reads": ["large", "c", "large"]})).await.problem(413, "too-large");
    assert_eq!((&problem["limit"], &problem["max"]), (&json!("answer"), &json!(2_000_000)));
}
