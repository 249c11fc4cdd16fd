//! Reading parts of sets and listing keys, of a real node: pages show everything once, and say where the next begins.

mod support;

use serde_json::{Value, json};
use support::{Answer, Cluster, Server, converged, lone_config};
use tempfile::TempDir;

async fn node() -> (Server, TempDir) {
    let dir = TempDir::new().unwrap();
    (Server::start(&lone_config(dir.path(), "")).await, dir)
}

async fn add(node: &Server, path: &str, field: &str, members: &[String]) {
    for members in members.chunks(10_000) {
        let body = json!({"ops": [{"op": "add", "field": field, "members": members}]});
        node.patch(path, body.to_string()).await.json();
    }
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().unwrap().iter().map(|item| item.as_str().unwrap().to_owned()).collect()
}

fn escaped(name: &str) -> String {
    name.bytes().map(|byte| format!("%{byte:02x}")).collect()
}

/// All pages, from a path that ends in its query, and how many they were.
async fn walk(node: &Server, path: &str, items: &str) -> (Vec<String>, usize) {
    let (mut shown, mut pages, mut after) = (Vec::new(), 0, String::new());
    loop {
        let page = node.get(&format!("{path}&after={after}")).await.json();
        shown.extend(strings(&page[items]));
        pages += 1;
        match page.get("next") {
            Some(next) => after = escaped(next.as_str().unwrap()),
            None => return (shown, pages),
        }
    }
}

#[tokio::test]
async fn a_set_is_read_page_by_page() {
    let (node, _dir) = node().await;
    let path = "/v1/ns/k";
    let mut members: Vec<String> = (0..2_500).map(|i| format!("m{i:04}")).collect();
    members.extend(["a/b", "a&b=c", "é", "..", "m"].map(str::to_owned));
    add(&node, path, "likes", &members).await;
    members.sort();

    for (limit, pages) in [(1_000, 3), (835, 3), (501, 5), (2, 1_253)] {
        let walked = walk(&node, &format!("{path}/likes?limit={limit}"), "value").await;
        assert_eq!(walked, (members.clone(), pages), "limit {limit}");
    }
    let first = node.get(&format!("{path}/likes?limit=3")).await.json();
    assert_eq!(first, json!({"field": "likes", "value": ["..", "a&b=c", "a/b"], "next": "a/b"}));
    assert_eq!(
        node.get(&format!("{path}/likes?after=")).await.json()["value"].as_array().unwrap().len(),
        100
    );
    // From where there is no member, and beyond the last.
    let page = node.get(&format!("{path}/likes?after=m24989&limit=9")).await.json();
    assert_eq!(page, json!({"field": "likes", "value": ["m2499", "é"]}));
    assert_eq!(node.get(&format!("{path}/likes?after=%C3%A9")).await.json()["value"], json!([]));
    // A read that was cut says where to go on.
    let cut = node.get(&format!("{path}/likes")).await.json();
    assert_eq!((cut["truncated"].as_bool(), cut["next"].as_str()), (Some(true), Some("m0995")));
    assert_eq!(node.get(path).await.json()["truncated"], json!(["likes"]));

    let page = node.get(&format!("{path}/likes?limit=5")).await;
    let tag = page.headers["etag"].to_str().unwrap();
    let again = node.request("GET", &format!("{path}/likes?limit=5")).header("if-none-match", tag);
    assert_eq!(Answer::of(again).await.status, 304);
}

#[tokio::test]
async fn a_page_of_long_names_is_short_and_goes_on() {
    let (node, _dir) = node().await;
    let members: Vec<String> = (0..200).map(|i| format!("{i:0>1024}")).collect();
    add(&node, "/v1/ns/k", "s", &members).await;
    let (shown, pages) = walk(&node, "/v1/ns/k/s?limit=1000", "value").await;
    assert_eq!(shown, members);
    assert_eq!(pages, 4, "64 KiB of names make a page");
}

#[tokio::test]
async fn one_member_and_the_size_are_told() {
    let (node, _dir) = node().await;
    let path = "/v1/ns/k";
    let names = ["u1", "a/b", "..", "é", "100%"].map(str::to_owned);
    add(&node, path, "likes", &names).await;
    let size = |expected: u64| json!({"field": "likes", "size": expected});
    assert_eq!(node.get(&format!("{path}/likes?view=size")).await.json(), size(5));
    // The client library resolves `..` away, so that one is asked for below.
    for name in names.iter().filter(|name| *name != "..") {
        let answer = node.get(&format!("{path}/likes/{}", escaped(name))).await;
        assert_eq!(answer.json(), json!({"field": "likes", "member": name}));
        assert!(answer.headers.contains_key("etag"));
    }
    let raw = |target: &str| {
        node.raw(format!("GET {target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes())
    };
    assert!(raw("/v1/ns/k/likes/..").starts_with("HTTP/1.1 200"), "a member may be named so");
    assert!(raw("/v1/ns/k/../u1").starts_with("HTTP/1.1 400"), "a field may not");
    for name in ["u", "u11", "U1", "a", "%20"] {
        let problem = node.get(&format!("{path}/likes/{name}")).await.problem(404, "not-found");
        assert!(problem["detail"].as_str().unwrap().contains("likes"), "{problem}");
    }
    let body = json!({"ops": [{"op": "remove", "field": "likes", "members": ["u1", "é"]}]});
    node.patch(path, body.to_string()).await.json();
    node.get(&format!("{path}/likes/u1")).await.problem(404, "not-found");
    assert_eq!(node.get(&format!("{path}/likes?view=size")).await.json(), size(3));
    node.delete(&format!("{path}/likes")).await.json();
    node.get(&format!("{path}/likes?view=size")).await.problem(404, "not-found");
    node.get(&format!("{path}/likes?limit=1")).await.problem(404, "not-found");
    node.get(&format!("{path}/likes/a%2Fb")).await.problem(404, "not-found");
}

#[tokio::test]
async fn keys_are_listed_by_prefix() {
    let (node, _dir) = node().await;
    let mut keys: Vec<String> = (0..150).map(|i| format!("song:{i:03}")).collect();
    keys.extend(["{user:7}/likes", "{user:7}/profile", "a&b=c d", "é", "...", "song"].map(str::to_owned));
    for key in &keys {
        node.put(&format!("/v1/ns/{}/f", escaped(key)), "1").await.json();
    }
    node.put("/v1/ns2/song:000/f", "1").await.json();
    keys.sort();
    for (limit, pages) in [(1_000, 1), (50, 4), (7, 23)] {
        assert_eq!(walk(&node, &format!("/v1/ns?limit={limit}"), "keys").await, (keys.clone(), pages));
    }
    let list = async |query: &str| node.get(&format!("/v1/ns?{query}")).await.json();
    assert_eq!(
        list("prefix=song:14&limit=2").await,
        json!({"keys": ["song:140", "song:141"], "next": "song:141"})
    );
    assert_eq!(list("prefix=%7Buser:7%7D%2F").await, json!({"keys": ["{user:7}/likes", "{user:7}/profile"]}));
    assert_eq!(list("prefix=a%26b%3Dc%20d").await, json!({"keys": ["a&b=c d"]}));
    assert_eq!(list("prefix=.").await, json!({"keys": ["..."]}));
    assert_eq!(list("prefix=song:14&after=song:148").await, json!({"keys": ["song:149"]}));
    assert_eq!(list("prefix=song:14&after=a").await["keys"].as_array().unwrap().len(), 10);
    assert_eq!(list("prefix=song:14&after=t").await, json!({"keys": []}));
    assert_eq!(list("").await["keys"].as_array().unwrap().len(), 100);
    assert_eq!(node.get("/v1/nothing").await.json(), json!({"keys": []}));

    // What is gone is not listed.
    node.delete("/v1/ns/song:140").await.json();
    assert_eq!(list("prefix=song:14&limit=1").await, json!({"keys": ["song:141"], "next": "song:141"}));
    let tag = node.get("/v1/ns?limit=1").await.headers["etag"].to_str().unwrap().to_owned();
    let again = node.request("GET", "/v1/ns?limit=1").header("if-none-match", tag);
    assert_eq!(Answer::of(again).await.status, 304);
}

#[tokio::test]
async fn a_record_that_only_has_cleared_counters_is_not_listed() {
    let cluster = Cluster::new(&["a", "b"]);
    let (a, b) = (cluster.start("a").await, cluster.start("b").await);
    for key in ["k1", "k2"] {
        a.patch(&format!("/v1/ns/{key}"), r#"{"ops":[{"op":"incr","field":"n","by":5}]}"#).await.json();
    }
    converged(&[&a, &b]).await;
    // The sum is a's, so b's clear leaves it and says how much of it is gone.
    b.delete("/v1/ns/k1").await.json();
    converged(&[&a, &b]).await;
    for node in [&a, &b] {
        node.get("/v1/ns/k1").await.problem(404, "not-found");
        assert_eq!(node.get("/v1/ns").await.json(), json!({"keys": ["k2"]}));
    }
}

#[tokio::test]
async fn what_is_wrong_is_refused() {
    let (node, _dir) = node().await;
    add(&node, "/v1/ns/k", "s", &["m".to_owned()]).await;
    node.patch("/v1/ns/k", r#"{"ops":[{"op":"incr","field":"c","by":1}]}"#).await.json();
    let long = "x".repeat(1025);
    let cases = [
        ("/v1/ns/k/s?limit=0", 400, "malformed", "from 1 to 1000"),
        ("/v1/ns/k/s?limit=1001", 400, "malformed", "from 1 to 1000"),
        ("/v1/ns/k/s?limit=ten", 400, "malformed", "from 1 to 1000"),
        ("/v1/ns/k/s?limit=1&limit=2", 400, "malformed", "twice"),
        ("/v1/ns/k/s?after=%ff", 400, "malformed", "UTF-8"),
        ("/v1/ns/k/s?befor=a", 400, "malformed", "after, limit, numbers, view"),
        ("/v1/ns/k/s?view=size&limit=1", 400, "malformed", "view=size"),
        ("/v1/ns/k/s?view=full&after=a", 400, "malformed", "view=full"),
        ("/v1/ns/k/s?view=all", 400, "malformed", "\"full\" or \"ranks\" or \"size\""),
        ("/v1/ns/k/s?limit=1&numbers=roman", 400, "malformed", "string"),
        ("/v1/ns/k?view=size", 400, "malformed", "full"),
        ("/v1/ns/k?limit=1", 400, "malformed", "numbers, view"),
        ("/v1/ns/k/c?limit=1", 409, "type-mismatch", "counter"),
        ("/v1/ns/k/c?view=size", 409, "type-mismatch", "counter"),
        ("/v1/ns/k/c/m", 404, "not-found", "no set"),
        ("/v1/ns/k/none?limit=1", 404, "not-found", "none"),
        ("/v1/ns/k/none?view=size", 404, "not-found", "none"),
        ("/v1/ns/none/s/m", 404, "not-found", "no set"),
        ("/v1/ns/k/s/m?view=full", 400, "malformed", "takes: rank, desc, wait_ms"),
        ("/v1/ns/k/s/%00", 400, "invalid-name", "control"),
        ("/v1/ns/k/s/%zz", 400, "malformed", "hexadecimal"),
        (&format!("/v1/ns/k/s/{long}"), 400, "invalid-name", "1024"),
        ("/v1/NS/k/s/m", 400, "invalid-name", "namespace"),
        ("/v1/_x/k/s/m", 404, "not-found", "_x"),
        ("/v1/ns?limit=0", 400, "malformed", "from 1 to 1000"),
        ("/v1/ns?view=full", 400, "malformed", "after, limit, prefix"),
        ("/v1/ns?prefix=%ff", 400, "malformed", "UTF-8"),
        ("/v1/NS", 400, "invalid-name", "namespace"),
        ("/v1/_ns", 404, "not-found", "_ns"),
    ];
    for (path, status, kind, words) in cases {
        let problem = node.get(path).await.problem(status, kind);
        assert!(problem["detail"].as_str().unwrap().contains(words), "{path}: {problem}");
    }
    for (method, path) in [("PUT", "/v1/ns/k/s/m"), ("DELETE", "/v1/ns"), ("POST", "/v1/ns/k/s/m")] {
        let answer = Answer::of(node.request(method, path)).await;
        answer.problem(405, "method-not-allowed");
        assert!(answer.headers.contains_key("allow"));
    }
    for path in ["/v1/ns", "/v1/ns/k/s/m", "/v1/ns/k/s?limit=1"] {
        let request = node.request("GET", path).header("idempotency-key", "x");
        Answer::of(request).await.problem(400, "unsupported-header");
    }
}

#[tokio::test]
async fn the_full_view_of_each_type_is_complete() {
    let (node, _dir) = node().await;
    let ops = r#"{"ops":[{"op":"set","field":"t","value":{"a":1}},{"op":"incr","field":"c","by":2},
        {"op":"enable","field":"f"},{"op":"add","field":"s","members":["m"]}]}"#;
    let replica = node.patch("/v1/ns/k", ops).await.json()["commit"]["replica"].clone();
    let full = node.get("/v1/ns/k?view=full").await.json();
    let expected = [
        ("t", "register", json!({"a": 1}), json!([])),
        ("c", "counter", json!(2), Value::Null),
        ("f", "flag", json!(true), Value::Null),
        ("s", "set", json!(["m"]), Value::Null),
    ];
    for (field, ty, value, siblings) in expected {
        let shown = &full["fields"][field];
        assert_eq!((&shown["type"], &shown["value"], &shown["siblings"]), (&json!(ty), &value, &siblings));
        assert_eq!(
            (&shown["updated"]["replica"], &shown["updated"]["region"]),
            (&replica, &json!("region-lone"))
        );
        assert!(shown["updated"]["time"].as_str().unwrap().ends_with('Z'));
        let mut alone = node.get(&format!("/v1/ns/k/{field}?view=full")).await.json();
        assert_eq!(alone.as_object_mut().unwrap().remove("field"), Some(json!(field)));
        assert_eq!(alone, *shown);
    }
    assert_eq!(node.get("/v1/ns/k/c?view=full&numbers=string").await.json()["value"], "2");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_are_in_the_format_of_prometheus() {
    let dir = TempDir::new().unwrap();
    let server = Server::start(&lone_config(dir.path(), "")).await;
    server.put("/v1/_namespaces/ns", r#"{"max_keys":5}"#).await.json();
    server.put("/v1/ns/k/f", "1").await.json();
    server.get("/v1/ns/none").await.problem(404, "not-found");
    let answer = server.get("/metrics").await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.headers["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    let mut types = std::collections::BTreeMap::new();
    let mut values = std::collections::BTreeMap::new();
    for line in answer.body.lines() {
        if let Some(of) = line.strip_prefix("# TYPE ") {
            let (name, kind) = of.split_once(' ').unwrap();
            assert!(types.insert(name, kind).is_none(), "{name} stands twice");
        } else if !line.starts_with('#') {
            let (sample, value) = line.rsplit_once(' ').unwrap();
            let name = sample.split('{').next().unwrap();
            let family = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
            assert!(
                types.contains_key(name) || family.is_some_and(|name| types[name] == "histogram"),
                "{line}"
            );
            assert!(values.insert(sample, value.parse::<f64>().unwrap()).is_none(), "{sample} stands twice");
        }
    }
    assert_eq!(values[r#"godwit_http_requests_total{kind="write",status="2xx"}"#], 2.0);
    assert_eq!(values[r#"godwit_http_requests_total{kind="read",status="4xx"}"#], 1.0);
    let count = values["godwit_http_request_seconds_count"];
    assert!(count >= 3.0 && count == values[r#"godwit_http_request_seconds_bucket{le="+Inf"}"#], "{count}");
    assert_eq!(values[r#"godwit_namespace_keys{namespace="ns"}"#], 1.0);
    assert_eq!((values["godwit_ready"], values["godwit_feeds_open"]), (1.0, 0.0));
    assert!(values["godwit_commit_seconds_count"] >= 2.0 && values["godwit_commit_bytes_total"] > 0.0);
    assert!(values.keys().any(|name| name.starts_with("godwit_info{") && name.contains("node=\"lone\"")));
}
