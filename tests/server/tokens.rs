//! Tokens and idempotency keys: what a client has seen decides what it overwrites and what it may be shown, in any
//! region; and what is sent twice happens once.

mod support;

#[path = "scenarios/nodes.rs"]
#[allow(dead_code, reason = "what scenarios need besides")]
mod nodes;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use nodes::{Kind, Nodes};
use serde_json::{Value, json};
use support::{Answer, Cluster, Server, lone_config};
use tempfile::TempDir;

/// The most bytes of the token of a session over all of 64 partitions, of which one replica wrote up to 250 commits each.
const SESSION_BYTES_MAX: usize = 700;

async fn lone(more: &str) -> (Server, TempDir) {
    let dir = TempDir::new().unwrap();
    let server = Server::start(&lone_config(dir.path(), more)).await;
    (server, dir)
}

fn token(answer: &Answer) -> String {
    let token = answer.headers.get("godwit-token").unwrap_or_else(|| panic!("no token: {answer:?}"));
    token.to_str().unwrap().to_owned()
}

/// A request with headers, and a body unless it is empty.
async fn ask(node: &Server, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    let mut request = node.request(method, path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    Answer::of(if body.is_empty() { request } else { request.body(body.to_owned()) }).await
}

fn ops(ops: Value) -> String {
    json!({ "ops": ops }).to_string()
}

async fn full(node: &Server, path: &str) -> (Value, Value) {
    let mut full = node.get(&format!("{path}?view=full")).await.json();
    (full["value"].take(), full["siblings"].take())
}

#[tokio::test]
async fn clients_that_read_one_value_and_set_it_leave_siblings() {
    let (node, _dir) = lone("").await;
    let path = "/v1/ns/k/title";
    node.put(path, "\"x\"").await.json();
    let (a, b) = (token(&node.get(path).await), token(&node.get("/v1/ns/k").await));
    let put = async |seen: &str, body: &str| ask(&node, "PUT", path, &[("godwit-seen", seen)], body).await;
    let after_a = put(&a, "\"a\"").await;
    after_a.json();
    put(&b, "\"b\"").await.json();
    assert_eq!(full(&node, path).await, (json!("b"), json!(["a"])));
    // The first one's answer covers its own write, and not the other's.
    put(&token(&after_a), "\"a2\"").await.json();
    assert_eq!(full(&node, path).await, (json!("a2"), json!(["b"])));
    // Who has read both settles it, and so does who has seen both by two tokens.
    let both = token(&node.get(path).await);
    put(&both, "\"c\"").await.json();
    assert_eq!(full(&node, path).await, (json!("c"), json!([])));
    let c = token(&node.get(path).await);
    let d = put(&c, "\"d\"").await;
    let e = put(&c, "\"e\"").await;
    assert_eq!(full(&node, path).await, (json!("e"), json!(["d"])));
    put(&format!("{}, {}", token(&d), token(&e)), "\"f\"").await.json();
    assert_eq!(full(&node, path).await, (json!("f"), json!([])));
    // A token of another partition has seen nothing of this one.
    let elsewhere = async |i: u64| node.put(&format!("/v1/ns/other{i}/f"), "1").await;
    let home = node.put(path, "\"g\"").await.json()["partition"].clone();
    let other =
        loop_until(async |i| Some(elsewhere(i).await).filter(|answer| answer.json()["partition"] != home))
            .await;
    put(&token(&other), "\"h\"").await.json();
    assert_eq!(full(&node, path).await, (json!("h"), json!(["g"])));
}

/// The first that is found among twenty.
async fn loop_until<T>(find: impl AsyncFn(u64) -> Option<T>) -> T {
    for i in 0..20 {
        if let Some(found) = find(i).await {
            return found;
        }
    }
    panic!("there is none among twenty");
}

#[tokio::test]
async fn removals_take_what_was_seen_and_no_more() {
    let (node, _dir) = lone("").await;
    let path = "/v1/ns/k";
    let add =
        ops(json!([{"op": "add", "field": "s", "members": ["a", "b"]}, {"op": "enable", "field": "f"}]));
    node.patch(path, add.clone()).await.json();
    let before = token(&node.get(path).await);
    // Unseen: the same again, and one more.
    node.patch(path, add).await.json();
    let remove =
        ops(json!([{"op": "remove", "field": "s", "members": ["a", "b"]}, {"op": "disable", "field": "f"}]));
    ask(&node, "PATCH", path, &[("godwit-seen", &before)], &remove).await.json();
    assert_eq!(node.get(path).await.json()["fields"], json!({"f": true, "s": ["a", "b"]}));
    ask(&node, "DELETE", path, &[("godwit-seen", &before)], "").await.json();
    ask(&node, "DELETE", "/v1/ns/k/s", &[("godwit-seen", &before)], "").await.json();
    assert_eq!(node.get(path).await.json()["fields"], json!({"f": true, "s": ["a", "b"]}));

    let now = token(&node.get(path).await);
    node.patch(path, ops(json!([{"op": "add", "field": "s", "members": ["c"]}]))).await.json();
    ask(&node, "PATCH", path, &[("godwit-seen", &now)], &remove).await.json();
    assert_eq!(node.get(path).await.json()["fields"], json!({"s": ["c"]}));
    let now = token(&node.get(path).await);
    node.put("/v1/ns/k/t", "1").await.json();
    ask(&node, "DELETE", path, &[("godwit-seen", &now)], "").await.json();
    assert_eq!(node.get(path).await.json()["fields"], json!({"t": 1}));
    let batch = json!({"writes": [{"key": "k", "ops": [{"op": "clear", "field": "t"}]}]}).to_string();
    ask(&node, "POST", "/v1/ns", &[("godwit-seen", &now)], &batch).await.json();
    assert_eq!(node.get(path).await.json()["fields"], json!({"t": 1}));
    let now = token(&node.get(path).await);
    ask(&node, "POST", "/v1/ns", &[("godwit-seen", &now)], &batch).await.json();
    node.get(path).await.problem(404, "not-found");
}

#[tokio::test]
async fn a_sum_that_was_not_wholly_seen_is_not_cleared() {
    let (node, _dir) = lone("").await;
    let (path, incr) = ("/v1/ns/k", ops(json!([{"op": "incr", "field": "n", "by": 5}])));
    node.patch(path, incr.clone()).await.json();
    let before = token(&node.get(path).await);
    node.patch(path, incr).await.json();
    let clear = ops(json!([{"op": "clear", "field": "n"}]));
    for (method, path, body) in [("PATCH", path, &*clear), ("DELETE", path, ""), ("DELETE", "/v1/ns/k/n", "")]
    {
        let answer = ask(&node, method, path, &[("godwit-seen", &before)], body).await;
        answer.problem(409, "stale-seen");
        assert!(!answer.headers.contains_key("godwit-token"), "nothing was shown");
    }
    assert_eq!(node.get(path).await.json()["fields"], json!({"n": 10}));
    let now = token(&node.get(path).await);
    ask(&node, "PATCH", path, &[("godwit-seen", &now)], &clear).await.json();
    node.get(path).await.problem(404, "not-found");
}

#[tokio::test]
async fn every_answer_tells_what_it_shows() {
    let (node, _dir) = lone("").await;
    let path = "/v1/ns/k";
    let written = node.patch(path, ops(json!([{"op": "add", "field": "s", "members": ["a"]}]))).await;
    let same = [
        path,
        "/v1/ns/k?view=full",
        "/v1/ns/k/s",
        "/v1/ns/k/s?limit=1",
        "/v1/ns/k/s?view=size",
        "/v1/ns/k/s/a",
        "/v1/ns?limit=1",
    ];
    for path in same {
        assert_eq!(token(&node.get(path).await), token(&written), "{path}");
    }
    for path in ["/v1/ns/k/none", "/v1/ns/k/s/b", "/v1/ns/k/none?view=size", "/v1/ns/k/none?limit=1"] {
        let answer = node.get(path).await;
        answer.problem(404, "not-found");
        assert_eq!(token(&answer), token(&written), "{path}: what is absent was seen to be");
    }
    let etag = node.get(path).await.headers["etag"].to_str().unwrap().to_owned();
    let unchanged = ask(&node, "GET", path, &[("if-none-match", &etag)], "").await;
    assert_eq!((unchanged.status, token(&unchanged)), (304, token(&written)));
    let many = node.request("POST", "/v1/ns").body(r#"{"reads":["k","none"]}"#);
    assert_eq!(token(&Answer::of(many).await), token(&written));
    let returned = node.patch("/v1/ns/k?return=record", ops(json!([{"op": "enable", "field": "f"}]))).await;
    assert_eq!(token(&returned), token(&node.get(path).await));
    for answer in
        [node.get("/v1/ns/k?view=x").await, node.get("/v1/_cluster").await, node.get("/v1/NS/k").await]
    {
        assert!(!answer.headers.contains_key("godwit-token"));
    }
    // The union of what was seen before and what is shown now.
    let old = token(&written);
    let writes: Vec<Value> =
        (0..20).map(|i| json!({"key": format!("b{i}"), "ops": [{"op": "enable", "field": "f"}]})).collect();
    let batch =
        ask(&node, "POST", "/v1/ns", &[("godwit-token", &old)], &json!({"writes": writes}).to_string()).await;
    let all = token(&node.get("/v1/ns?limit=1").await);
    assert_eq!(token(&ask(&node, "GET", path, &[("godwit-token", &token(&batch))], "").await), all);
    let repeated = [("godwit-token", &*old), ("godwit-token", &*all)];
    assert_eq!(token(&ask(&node, "GET", path, &repeated, "").await), all);
}

#[tokio::test]
async fn a_session_over_thousands_of_records_keeps_a_small_token() {
    let dir = TempDir::new().unwrap();
    let config = lone_config(dir.path(), "");
    let text = std::fs::read_to_string(&config).unwrap().replace("partitions = 8", "partitions = 64");
    std::fs::write(&config, text).unwrap();
    let node = Server::start(&config).await;
    let (mut session, mut partitions) = (None::<String>, BTreeSet::new());
    for batch in 0..40 {
        let writes: Vec<Value> = (0..100)
            .map(|i| json!({"key": format!("{batch}-{i}"), "ops": [{"op": "incr", "field": "n", "by": 1}]}))
            .collect();
        let headers: Vec<(&str, &str)> = session.iter().map(|token| ("godwit-token", &**token)).collect();
        let answer = ask(&node, "POST", "/v1/ns", &headers, &json!({"writes": writes}).to_string()).await;
        let results = answer.json()["results"].take();
        partitions
            .extend(results.as_array().unwrap().iter().map(|result| result["partition"].as_u64().unwrap()));
        session = Some(token(&answer));
    }
    let session = session.unwrap();
    assert_eq!(partitions.len(), 64, "the session has touched every partition");
    println!("4,000 records, 64 partitions: {} bytes", session.len());
    assert!(session.len() <= SESSION_BYTES_MAX, "{} bytes", session.len());
    let read = ask(&node, "GET", "/v1/ns/0-0", &[("godwit-token", &session)], "").await;
    assert_eq!(token(&read), session);
}

/// Thousands of partitions make more than a header holds: then a token holds less, and says so.
#[tokio::test]
async fn a_token_that_would_be_too_long_says_what_it_leaves_out() {
    let dir = TempDir::new().unwrap();
    let config = lone_config(dir.path(), "");
    let text = std::fs::read_to_string(&config).unwrap().replace("partitions = 8", "partitions = 4096");
    std::fs::write(&config, text).unwrap();
    let node = Server::start(&config).await;
    let batch = async |batch: u64, headers: &[(&str, &str)]| {
        let ops = json!([{"op": "incr", "field": "n", "by": 1}]);
        let writes: Vec<Value> =
            (0..1_000).map(|i| json!({"key": format!("{batch}-{i}"), "ops": ops})).collect();
        let answer = ask(&node, "POST", "/v1/ns", headers, &json!({ "writes": writes }).to_string()).await;
        answer.json();
        answer
    };
    let scope = |answer: &Answer| {
        answer.headers.get("godwit-token-scope").map(|scope| scope.to_str().unwrap().to_owned())
    };
    let first = batch(1, &[]).await;
    assert_eq!(scope(&first), None);
    let first = token(&first);
    let second = batch(2, &[("godwit-token", &first)]).await;
    assert_eq!(scope(&second).as_deref(), Some("answer"));
    let second = token(&second);
    // Both are sent along, and each holds its part.
    let both = [("godwit-token", &*first), ("godwit-token", &*second)];
    let read = ask(&node, "GET", "/v1/ns/1-0", &both, "").await;
    assert_eq!((read.status, scope(&read).as_deref()), (200, Some("answer")));
    let all = node.get("/v1/ns?limit=1").await;
    assert_eq!((scope(&all).as_deref(), all.headers.get("godwit-token")), (Some("none"), None));
    all.json();
}

#[tokio::test]
async fn tokens_of_others_and_damaged_ones_are_refused() {
    let (node, _dir) = lone("").await;
    let path = "/v1/ns/k/t";
    let good = token(&node.put(path, "1").await);
    let (stranger, dir) = lone("").await;
    stranger.put(path, "1").await.json();
    // The same cluster by its name, with a secret.
    let secret = dir.path().join("secret");
    std::fs::write(&secret, "5e".repeat(32)).unwrap();
    let config = lone_config(dir.path(), "");
    let text = std::fs::read_to_string(&config).unwrap();
    drop(stranger);
    std::fs::write(&config, text.replace("[http]", "secret_file = \"secret\"\n[http]")).unwrap();
    let stranger = Server::start(&config).await;
    assert!(!stranger.log().contains("can forge tokens") && node.log().contains("can forge tokens"));
    let foreign = token(&stranger.get(path).await);

    let mut damaged = good.clone().into_bytes();
    let last = damaged.len() / 2;
    damaged[last] = if damaged[last] == b'A' { b'B' } else { b'A' };
    let damaged = String::from_utf8(damaged).unwrap();
    let long = "A".repeat(12 * 1024 + 1);
    let cases = [
        ("x", "not the text"),
        ("", "not the text"),
        (&*damaged, "not made by this cluster"),
        (&*foreign, "not made by this cluster"),
        (&good[1..], ""),
        ("_wAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "version 255"),
        (&*long, "12289 bytes"),
    ];
    for (bad, words) in cases {
        for (method, header, body) in
            [("GET", "godwit-token", ""), ("PUT", "godwit-token", "2"), ("PUT", "godwit-seen", "2")]
        {
            let problem =
                ask(&node, method, path, &[(header, bad)], body).await.problem(400, "invalid-token");
            assert!(problem["detail"].as_str().unwrap().contains(words), "{bad:.50}: {problem}");
            let two = [(header, &*good), (header, bad)];
            ask(&node, method, path, &two, body).await.problem(400, "invalid-token");
        }
        node.get(&format!("/v1/_visible?token={bad}")).await.problem(400, "invalid-token");
    }
    assert_eq!(node.get(path).await.json()["value"], 1);
    for header in ["godwit-seen", "idempotency-key"] {
        let headers = [(header, &*good)];
        ask(&node, "GET", path, &headers, "").await.problem(400, "unsupported-header");
        ask(&node, "POST", "/v1/ns", &headers, r#"{"reads":["k"]}"#).await.problem(400, "unsupported-header");
    }
    for bad in ["-1", "30001", "1.5", "", "soon"] {
        node.get(&format!("{path}?wait_ms={bad}")).await.problem(400, "malformed");
    }
    node.get(&format!("/v1/_visible?token={good}&wait_ms=1&wait_ms=1")).await.problem(400, "malformed");
    node.get("/v1/_visible").await.problem(400, "malformed");
    node.get("/v1/_visible?tokn=x").await.problem(400, "malformed");
    node.get("/v1/_cluster?wait_ms=1").await.problem(400, "malformed");
}

#[tokio::test]
async fn who_waits_is_bounded_in_time_and_number() {
    // Two nodes of one cluster that never meet.
    let (mut node, _dir) = lone("[limits]\nrequests = 3\n").await;
    let (other, _other_dir) = lone("").await;
    let path = "/v1/ns/k/t";
    node.put(path, "1").await.json();
    let far = token(&other.put(path, "2").await);
    let refused = async |method: &str, header: &str, wait_ms: u64, body: &str| {
        let path = format!("{path}?wait_ms={wait_ms}");
        let answer = ask(&node, method, &path, &[(header, &far)], body).await;
        assert_eq!(answer.problem(503, "not-yet-visible")["applied"], "no");
        assert_eq!(answer.headers["retry-after"], "1");
        assert!(!answer.headers.contains_key("godwit-token"), "nothing was shown");
    };
    refused("GET", "godwit-token", 0, "").await;
    refused("PUT", "godwit-token", 0, "2").await;
    refused("PUT", "godwit-seen", 0, "2").await;
    refused("DELETE", "godwit-seen", 0, "").await;
    let begun = Instant::now();
    refused("GET", "godwit-token", 100, "").await;
    assert!(begun.elapsed() >= Duration::from_millis(100));
    let begun = Instant::now();
    ask(&node, "GET", path, &[("godwit-token", &far)], "").await.problem(503, "not-yet-visible");
    assert!(begun.elapsed() >= Duration::from_secs(1), "the default");
    assert_eq!(node.get(path).await.json()["value"], 1);
    assert_eq!(node.get(&format!("/v1/_visible?token={far}")).await.json(), json!({"visible": false}));

    // One may wait here; the other one is told at once, and the rest is served.
    let wait = || {
        let request = node.request("GET", &format!("{path}?wait_ms=30000")).header("godwit-token", &far);
        tokio::spawn(Answer::of(request.timeout(Duration::from_secs(60))))
    };
    let (mut one, mut two) = (wait(), wait());
    let (told, patient) = tokio::select! {
        told = &mut one => (told.unwrap(), two),
        told = &mut two => (told.unwrap(), one),
    };
    let problem = told.problem(503, "not-yet-visible");
    assert!(problem["detail"].as_str().unwrap().contains("1 requests wait"), "{problem}");
    assert_eq!(node.get(path).await.json()["value"], 1);
    // Who waits does not keep the node from stopping.
    node.terminate();
    patient.await.unwrap().problem(503, "stopping");
    assert!(node.exit_status().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_moves_between_regions() {
    let nodes = Nodes::start(Kind::InProcess).await;
    let path = "/v1/ns/k";
    let at = async |node: usize, method: &str, path: &str, token: &str, body: String| {
        let mut request = nodes.request(method, node, path);
        if !token.is_empty() {
            request = request.header("godwit-token", token);
        }
        Answer::of(if body.is_empty() { request } else { request.body(body) }).await
    };
    let incr = || ops(json!([{"op": "incr", "field": "n", "by": 1}]));
    // Read your writes, wherever the next request goes.
    let mut session = String::new();
    for i in 1..=30 {
        let written = at(i % 3, "PATCH", &format!("{path}?wait_ms=20000"), &session, incr()).await;
        written.json();
        session = token(&written);
        let read = at((i + 1) % 3, "GET", &format!("{path}?wait_ms=20000"), &session, String::new()).await;
        assert_eq!(read.json()["fields"]["n"], i);
        session = token(&read);
    }
    nodes.sync().await;
    // Cut off, a node says that it lacks what the token names, and never shows less.
    nodes.cut(&[1]);
    session = token(&at(0, "PATCH", path, &session, incr()).await);
    for (method, body) in [("GET", String::new()), ("PATCH", incr())] {
        let early = at(1, method, &format!("{path}?wait_ms=100"), &session, body).await;
        assert_eq!(early.problem(503, "not-yet-visible")["applied"], "no");
    }
    let visible = format!("/v1/_visible?token={session}");
    assert_eq!(at(1, "GET", &visible, "", String::new()).await.json(), json!({"visible": false}));
    assert_eq!(at(0, "GET", &visible, "", String::new()).await.json(), json!({"visible": true}));
    assert_eq!(
        at(1, "GET", path, "", String::new()).await.json()["fields"]["n"],
        30,
        "without a token it serves"
    );
    // A request that waits is served as soon as the link is back.
    let (waited, ()) = tokio::join!(at(1, "GET", "/v1/ns/k?wait_ms=19000", &session, String::new()), async {
        nodes.cut(&[])
    });
    assert_eq!(waited.json()["fields"]["n"], 31);
    let told = at(1, "GET", &format!("{visible}&wait_ms=1000&token={session}"), "", String::new()).await;
    assert_eq!(told.json(), json!({"visible": true}));
    nodes.stop().await;
}

#[tokio::test]
async fn a_retry_is_answered_and_not_repeated() {
    let cluster = Cluster::new(&["a", "b"]);
    let (mut a, b) = (cluster.start("a").await, cluster.start("b").await);
    let path = "/v1/ns/{k}1";
    let body = ops(json!([{"op": "incr", "field": "n", "by": 5}, {"op": "set", "field": "t", "value": 1}]));
    let batch = json!({"writes": [{"key": "x", "ops": [{"op": "incr", "field": "n", "by": 1}]},
        {"key": "y", "ops": [{"op": "incr", "field": "n", "by": 1}]}]})
    .to_string();
    let requests = [
        ("PATCH", path, "one", &*body),
        ("POST", "/v1/ns", "one", &*batch),
        ("PUT", "/v1/ns/z/t", "two", "7"),
        ("DELETE", "/v1/ns/z/t", "three", ""),
        ("DELETE", "/v1/ns/none", "four", ""),
    ];
    let mut first = Vec::new();
    for (method, path, key, body) in requests {
        let answer = ask(&a, method, path, &[("idempotency-key", key)], body).await;
        answer.json();
        assert!(!answer.headers.contains_key("godwit-repeated"), "{answer:?}");
        first.push(answer);
    }
    let before = a.get(path).await.body;
    let repeat = async |node: &Server| {
        for ((method, path, key, body), first) in requests.iter().zip(&first) {
            let again = ask(node, method, path, &[("idempotency-key", key)], body).await;
            assert_eq!((again.status, &again.body), (200, &first.body), "{method} {path}");
            assert_eq!(again.headers["godwit-repeated"], "true", "{method} {path}");
        }
        assert_eq!(node.get(path).await.body, before);
        assert_eq!(node.get("/v1/ns/x/n").await.json()["value"], 1);
    };
    repeat(&a).await;
    a.kill();
    a.restart().await;
    repeat(&a).await;
    // Where the commit has arrived, it is known too; of a commit that changed nothing there is nothing to arrive.
    let session = token(&a.get("/v1/ns").await);
    ask(&b, "GET", "/v1/ns?wait_ms=30000", &[("godwit-token", &session)], "").await.json();
    for ((method, path, key, body), first) in requests[..4].iter().zip(&first) {
        let again = ask(&b, method, path, &[("idempotency-key", key)], body).await;
        assert_eq!((&again.body, again.headers["godwit-repeated"].to_str().unwrap()), (&first.body, "true"));
    }
    assert_eq!(b.get(path).await.body, before);

    // The same key for something else.
    let other = ops(json!([{"op": "incr", "field": "n", "by": 6}]));
    for (path, body) in [(path, &*other), ("/v1/ns/{k}2", &*body)] {
        ask(&a, "PATCH", path, &[("idempotency-key", "one")], body)
            .await
            .problem(422, "idempotency-key-reused");
    }
    let seen = token(&a.get(path).await);
    let headers = [("idempotency-key", "one"), ("godwit-seen", &*seen)];
    ask(&a, "PATCH", path, &headers, &body).await.problem(422, "idempotency-key-reused");
    // Another namespace, another key; a session's token is no part of what is asked for.
    ask(&a, "PATCH", "/v1/other/{k}1", &[("idempotency-key", "one")], &other).await.json();
    let headers = [("idempotency-key", "one"), ("godwit-token", &*seen)];
    assert_eq!(ask(&a, "PATCH", path, &headers, &body).await.body, first[0].body);
    assert_eq!(a.get(path).await.body, before);
    for bad in ["a b", "", &"x".repeat(256)] {
        ask(&a, "PATCH", path, &[("idempotency-key", bad)], &body).await.problem(400, "malformed");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_increment_retried_in_another_region_counts_once() {
    let nodes = Nodes::start(Kind::InProcess).await;
    let path = "/v1/ns/k";
    let incr = async |at: usize| {
        let request = nodes.request("PATCH", at, path).header("idempotency-key", "once");
        Answer::of(request.body(ops(json!([{"op": "incr", "field": "n", "by": 7}])))).await
    };
    let read = async |at: usize| Answer::of(nodes.request("GET", at, path)).await.json()["fields"].clone();
    nodes.cut(&[0, 1, 2]);
    // Neither can know of the other's.
    for at in [0, 1] {
        let answer = incr(at).await;
        assert!(answer.status == 200 && !answer.headers.contains_key("godwit-repeated"), "{answer:?}");
        assert_eq!(read(at).await, json!({"n": 7}));
    }
    nodes.sync().await;
    for at in 0..3 {
        assert_eq!(read(at).await, json!({"n": 7}), "at {at}");
        let answer = incr(at).await;
        assert_eq!((answer.status, answer.headers["godwit-repeated"].to_str().unwrap()), (200, "true"));
    }
    nodes.sync().await;
    for at in 0..3 {
        assert_eq!(read(at).await, json!({"n": 7}), "at {at}");
    }
    nodes.stop().await;
}

#[tokio::test]
async fn the_size_of_a_set_stays_exact_once_it_is_kept() {
    let (mut node, _dir) = lone("").await;
    let path = "/v1/ns/k";
    let mut members = BTreeSet::new();
    let change = async |node: &Server, op: &str, members: Vec<String>| {
        let op = json!([{"op": op, "field": "s", "members": members}]);
        node.patch(path, ops(op)).await.json();
    };
    let size = async |node: &Server| {
        node.get("/v1/ns/k/s?view=size").await.json()["size"].as_u64().unwrap() as usize
    };
    let names = |from: usize, to: usize| (from..to).map(|i| format!("m{i:05}")).collect::<Vec<_>>();
    for round in 0..6 {
        let (added, removed) =
            (names(round * 500, round * 500 + 1_000), names(round * 400, round * 400 + 300));
        members.extend(added.clone());
        change(&node, "add", added).await;
        assert_eq!(size(&node).await, members.len());
        members.retain(|member| !removed.contains(member));
        change(&node, "remove", removed).await;
        assert_eq!(size(&node).await, members.len());
        if round == 3 {
            node.delete("/v1/ns/k/s").await.json();
            node.get("/v1/ns/k/s?view=size").await.problem(404, "not-found");
            members.clear();
        }
    }
    node.kill();
    node.restart().await;
    assert_eq!(size(&node).await, members.len());
    change(&node, "add", vec!["one more".into()]).await;
    assert_eq!(size(&node).await, members.len() + 1);
}
