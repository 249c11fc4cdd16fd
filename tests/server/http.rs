//! The API of a real node: what it takes, what it answers, and that what it refuses changes nothing.

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::{Value, json};
use support::{Answer, Cluster, Server, converged, lone_config, read_all, status_line};
use tempfile::TempDir;

const LIMITS: &str = "[limits]\nvalue_bytes = 100\nfields = 4\nops = 5\nmembers = 6\nbody_bytes = 2000\nrequest_bytes = 3000\nrequests = 1\n";

/// A node, and its directory, which goes with it.
struct Node {
    server: Server,
    _dir: TempDir,
}

impl std::ops::Deref for Node {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}

async fn node(more: &str) -> Node {
    let dir = TempDir::new().unwrap();
    Node { server: Server::start(&lone_config(dir.path(), more)).await, _dir: dir }
}

fn ops(ops: &str) -> String {
    format!("{{\"ops\":[{ops}]}}")
}

#[tokio::test]
async fn records_are_written_and_read() {
    let node = node("").await;
    let path = "/v1/music/song:1";
    node.get(path).await.problem(404, "not-found");
    let all = ops(
        r#"{"op":"set","field":"title","value":{"b":1,"a":[true,null]}},{"op":"incr","field":"plays","by":7},
           {"op":"enable","field":"explicit"},{"op":"add","field":"likes","members":["u2","u1","é"]},
           {"op":"remove","field":"likes","members":["u2"]},{"op":"enable","field":"gone"},{"op":"disable","field":"gone"}"#,
    );
    let written = node.patch(path, all).await.json();
    assert!(written["partition"].as_u64().unwrap() < 8);
    assert_eq!(written["commit"]["counter"], 1);
    assert_eq!(written["commit"]["replica"].as_str().unwrap().len(), 16);
    assert!(written["commit"]["time"].as_str().unwrap().ends_with('Z'));
    let fields =
        json!({"explicit": true, "likes": ["u1", "é"], "plays": 7, "title": {"b": 1, "a": [true, null]}});
    assert_eq!(node.get(path).await.json(), json!({"key": "song:1", "fields": fields}));
    assert_eq!(
        node.get(&format!("{path}/likes")).await.json(),
        json!({"field": "likes", "value": ["u1", "é"]})
    );
    assert_eq!(node.get(&format!("{path}/plays?numbers=string")).await.json()["value"], "7");
    node.get(&format!("{path}/gone")).await.problem(404, "not-found");

    assert_eq!(node.put(&format!("{path}/title"), " \"new\" ").await.json()["commit"]["counter"], 2);
    let after =
        node.patch(&format!("{path}?return=record"), ops(r#"{"op":"incr","field":"plays","by":-9}"#)).await;
    let after = after.json();
    assert_eq!((&after["fields"]["plays"], &after["fields"]["title"]), (&json!(-2), &json!("new")));
    assert_eq!(after["commit"]["counter"], 3);

    assert_eq!(node.delete(&format!("{path}/title")).await.json()["commit"]["counter"], 4);
    assert_eq!(node.delete(&format!("{path}/title")).await.json()["commit"], Value::Null);
    node.get(&format!("{path}/title")).await.problem(404, "not-found");
    assert_eq!(node.delete(path).await.json()["commit"]["counter"], 5);
    node.get(path).await.problem(404, "not-found");
    assert_eq!(node.delete(path).await.json()["commit"], Value::Null);
    let gone =
        node.patch(&format!("{path}?return=record"), ops(r#"{"op":"clear","field":"x"}"#)).await.json();
    assert_eq!((&gone["fields"], &gone["commit"]), (&json!({}), &Value::Null));
}

#[tokio::test]
async fn what_is_wrong_is_refused_and_changes_nothing() {
    let node = node(LIMITS).await;
    let path = "/v1/ns/k";
    let first = r#"{"op":"set","field":"t","value":1},{"op":"incr","field":"c","by":1},{"op":"add","field":"s","members":["m"]},{"op":"enable","field":"f"}"#;
    node.patch(path, ops(first)).await.json();
    let before = node.get(path).await;

    let good = r#"{"op":"incr","field":"c","by":1}"#;
    let then = |op: &str| ops(&format!("{good},{op}"));
    let deep = format!("{}{}", "[".repeat(65), "]".repeat(65));
    let long = |bytes: usize| format!("\"{}\"", "x".repeat(bytes));
    let members = |count: usize| (0..count).map(|i| format!("\"{i}\"")).collect::<Vec<_>>().join(",");
    // Method, path, body, status, kind; words of the answer; the offending operation.
    type Case<'a> = (&'a str, String, String, u16, &'a str, &'a str, Option<u64>);
    let patch = |body: String, status, kind, words, op| -> Case<'_> {
        ("PATCH", path.to_owned(), body, status, kind, words, op)
    };
    let put = |body: String, status, kind, words| -> Case<'_> {
        ("PUT", format!("{path}/t"), body, status, kind, words, None)
    };
    let at = |method, path: &str, status, kind, words| -> Case<'_> {
        (method, path.to_owned(), ops(good), status, kind, words, None)
    };
    let cases = [
        patch(String::new(), 400, "malformed", "ops", None),
        patch("{".to_owned(), 400, "malformed", "EOF", None),
        patch("\u{feff}{}".to_owned(), 400, "malformed", "ops", None),
        patch("{\"ops\":[]}".to_owned(), 400, "malformed", "empty", None),
        patch("{\"ops\":[],\"if\":1}".to_owned(), 400, "malformed", "unknown field", None),
        patch(format!("{{\"ops\":[{good}],\"ops\":[{good}]}}"), 400, "malformed", "duplicate", None),
        patch(ops(good) + "x", 400, "malformed", "trailing", None),
        patch(then("7"), 400, "malformed", "not an operation", Some(1)),
        patch(then(r#"{"op":"pop","field":"z"}"#), 400, "unknown-op", "set, incr", Some(1)),
        patch(
            then(r#"{"op":"pop","field":"z","scores":{"m":1.5}}"#),
            400,
            "unknown-op",
            "set, incr",
            Some(1),
        ),
        patch(then(r#"["set","f",1]"#), 400, "malformed", "not an object", Some(1)),
        patch(
            format!("[{}]", then(r#"{"op":"enable","field":"z"}"#)),
            400,
            "malformed",
            "not an object",
            None,
        ),
        patch(then(r#"{"op":"set","field":"t","value":1,"by":1}"#), 400, "malformed", "`by`", Some(1)),
        patch(
            then(r#"{"op":"set","field":"t","value":{"a":1,"\u0061":2}}"#),
            400,
            "malformed",
            "twice",
            Some(1),
        ),
        patch(then(r#"{"op":"set","field":"t","value":"\udc00"}"#), 400, "malformed", "JSON", Some(1)),
        patch(then(r#"{"op":"incr","field":"c"}"#), 400, "malformed", "`by`", Some(1)),
        patch(then(r#"{"op":"incr","field":"c","by":0.5}"#), 400, "malformed", "integer", Some(1)),
        patch(
            then(r#"{"op":"incr","field":"c","by":9223372036854775808}"#),
            400,
            "malformed",
            "integer",
            Some(1),
        ),
        patch(then(r#"{"op":"add","field":"s","members":["a",7]}"#), 400, "malformed", "strings", Some(1)),
        patch(then(r#"{"op":"add","field":"s","members":[""]}"#), 400, "invalid-name", "member", Some(1)),
        patch(
            then(r#"{"op":"add","field":"s","members":["\u0000"]}"#),
            400,
            "invalid-name",
            "control",
            Some(1),
        ),
        patch(
            then(&format!(r#"{{"op":"add","field":"s","members":[{}]}}"#, long(1025))),
            400,
            "invalid-name",
            "1024",
            Some(1),
        ),
        patch(
            then(&format!(r#"{{"op":"enable","field":{}}}"#, long(257))),
            400,
            "invalid-name",
            "256",
            Some(1),
        ),
        patch(then(r#"{"op":"enable","field":".."}"#), 400, "invalid-name", "..", Some(1)),
        patch(then(r#"{"op":"incr","field":"t","by":1}"#), 409, "type-mismatch", "register", Some(1)),
        patch(then(r#"{"op":"set","field":"c","value":1}"#), 409, "type-mismatch", "counter", Some(1)),
        patch(then(r#"{"op":"add","field":"f","members":["m"]}"#), 409, "type-mismatch", "flag", Some(1)),
        patch(then(r#"{"op":"disable","field":"s"}"#), 409, "type-mismatch", "set", Some(1)),
        patch(then(r#"{"op":"enable","field":"one-more"}"#), 413, "too-large", "4 fields", Some(1)),
        patch(ops(&[good; 6].join(",")), 413, "too-large", "5", None),
        patch(
            then(&format!(r#"{{"op":"add","field":"s","members":[{}]}}"#, members(7))),
            413,
            "too-large",
            "6",
            Some(1),
        ),
        patch(
            ops(&[r#"{"op":"add","field":"s","members":["1","2","3","4"]}"#; 2].join(",")),
            413,
            "too-large",
            "6",
            Some(1),
        ),
        patch(
            then(&format!(r#"{{"op":"set","field":"t","value":{}}}"#, long(99))),
            413,
            "too-large",
            "100",
            Some(1),
        ),
        patch(
            then(&format!(r#"{{"op":"set","field":"t","value":{deep}}}"#)),
            413,
            "too-large",
            "64",
            Some(1),
        ),
        patch(" ".repeat(2001), 413, "too-large", "2000", None),
        patch(" ".repeat(3_000_000), 413, "too-large", "2000", None),
        put(String::new(), 400, "malformed", "JSON"),
        put("nonsense".to_owned(), 400, "malformed", "JSON"),
        put("01".to_owned(), 400, "malformed", "JSON"),
        put("1 2".to_owned(), 400, "malformed", "JSON"),
        put("{\"a\":1,\"a\":1}".to_owned(), 400, "malformed", "twice"),
        put(deep.clone(), 413, "too-large", "64"),
        put("[".repeat(2000), 400, "malformed", "JSON"),
        put(long(99), 413, "too-large", "100"),
        at("PATCH", "/v1/ns/k?return=fields", 400, "malformed", "return"),
        at("PATCH", "/v1/ns/k?retrun=record", 400, "malformed", "numbers, return, view"),
        at("DELETE", "/v1/ns/k?all=1", 400, "malformed", "takes: wait_ms"),
        at("GET", "/v1/ns/k?view=all", 400, "malformed", "full"),
        at("PATCH", "/v1/NS/k", 400, "invalid-name", "namespace"),
        at("PATCH", &format!("/v1/{}/k", "n".repeat(64)), 400, "invalid-name", "63"),
        at("PATCH", &format!("/v1/ns/{}", "k".repeat(1025)), 400, "invalid-name", "1024"),
        at("DELETE", &format!("/v1/ns/k/{}", "f".repeat(257)), 400, "invalid-name", "256"),
        at("PATCH", "/v1/ns/a%00b", 400, "invalid-name", "control"),
        at("DELETE", "/v1/_secret/k", 404, "not-found", "_secret"),
        at("PATCH", "/v1/ns", 405, "method-not-allowed", "Allow"),
        at("PATCH", "/v1/ns/k/t/m", 405, "method-not-allowed", "Allow"),
        at("PATCH", "/v1/ns/k/t/m/n", 404, "not-found", "no such resource"),
        at("GET", "/v2/ns/k", 404, "not-found", "no such resource"),
        at("POST", "/v1/ns/k", 405, "method-not-allowed", "POST"),
        at("PATCH", "/v1/ns/k/t", 405, "method-not-allowed", "Allow"),
        at("DELETE", "/v1/_cluster", 405, "method-not-allowed", "Allow"),
    ];
    for (method, path, body, status, kind, words, op) in cases {
        let told = format!("{method} {path:.80} {body:.200}");
        let answer = Answer::of(node.request(method, &path).body(body)).await;
        let problem = answer.problem(status, kind);
        assert!(problem["detail"].as_str().unwrap().contains(words), "{told}: {problem}");
        assert_eq!(problem["op"].as_u64(), op, "{told}: {problem}");
        assert_eq!(
            problem["limit"].is_string() && problem["max"].is_u64(),
            status == 413,
            "{told}: {problem}"
        );
        assert_eq!(answer.headers.contains_key("allow"), status == 405, "{told}");
        assert_eq!(node.get("/v1/ns/k").await.body, before.body, "{told}");
    }

    let typed =
        |content_type| node.request("PATCH", path).header("content-type", content_type).body(ops(good));
    Answer::of(typed("text/plain")).await.problem(415, "unsupported-media-type");
    for header in ["if-match", "if-none-match"] {
        let request = node.request("PATCH", path).header(header, "x").body(ops(good));
        let problem = Answer::of(request).await.problem(400, "unsupported-header");
        assert!(problem["detail"].as_str().unwrap().contains(header));
    }
    assert_eq!(node.get(path).await.body, before.body);
    assert_eq!(Answer::of(typed("application/json; charset=utf-8")).await.status, 200);
}

#[tokio::test]
async fn bytes_that_no_client_library_sends_are_refused() {
    let node = node("").await;
    node.put("/v1/ns/k/t", "1").await.json();
    let get =
        |path: &str| format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").into_bytes();
    let put = |head: &str, body: &[u8]| {
        [
            format!("PUT /v1/ns/k/t HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{head}\r\n\r\n").as_bytes(),
            body,
        ]
        .concat()
    };
    let cases = [
        (get("/v1/ns/.."), "400", "invalid-name"),
        (get("/v1/ns/%2e%2E"), "400", "invalid-name"),
        (get("/v1/ns/k/."), "400", "invalid-name"),
        (get("/v1/ns/%ff"), "400", "not UTF-8"),
        (get("/v1/ns/%zz"), "400", "hexadecimal"),
        (get("/v1/ns/k/%4"), "400", "hexadecimal"),
        (get("/v1//k"), "400", "invalid-name"),
        (get("/v1/ns/"), "404", "not-found"),
        (get("/v1/ns/k?view=%ff"), "400", "not UTF-8"),
        (put("content-length: 2", b"\xff\xfe"), "400", "not UTF-8"),
        (put("transfer-encoding: chunked", b"zz\r\n"), "400", ""),
        (put("transfer-encoding: chunked", b"1\r\n2\r\n0\r\n\r\n"), "200", "commit"),
        (put("content-length: 99999999999", b""), "413", "too-large"),
        (put("expect: 100-continue\r\ncontent-length: 9999999", b""), "413", "too-large"),
        (put(&format!("x: {}", "y".repeat(100_000)), b""), "431", ""),
        (b"nonsense\r\n\r\n".to_vec(), "400", ""),
        (b"GET / HTTP/9.9\r\n\r\n".to_vec(), "400", ""),
    ];
    for (request, status, words) in cases {
        let told = String::from_utf8_lossy(&request[..request.len().min(100)]).into_owned();
        let answer = node.raw(&request);
        assert_eq!(status_line(&answer).split(' ').nth(1), Some(status), "{told}: {answer}");
        assert!(answer.contains(words), "{told}: {answer}");
    }
    assert_eq!(node.get("/v1/ns/k/t").await.json()["value"], 2);
}

#[tokio::test]
async fn names_are_segments_of_the_path() {
    let node = node("").await;
    let longest = "é".repeat(512);
    let cases = [
        ("a%2Fb", "a/b"),
        ("a%2fb%3Fc%23d%25%20%2B+", "a/b?c#d% ++"),
        ("%7Buser:7%7D%2Flikes", "{user:7}/likes"),
        ("%C3%A9", "é"),
        ("...", "..."),
        ("%252F", "%2F"),
        (longest.as_str(), longest.as_str()),
    ];
    for (i, (path, key)) in cases.iter().enumerate() {
        let field = format!("/v1/ns/{path}/f%2F{i}");
        node.put(&field, i.to_string()).await.json();
        assert_eq!(
            node.get(&format!("/v1/ns/{path}")).await.json(),
            json!({"key": key, "fields": {format!("f/{i}"): i}})
        );
        assert_eq!(node.get(&field).await.json(), json!({"field": format!("f/{i}"), "value": i}));
    }
    node.get("/v1/ns/a/b").await.problem(404, "not-found");
}

#[tokio::test]
async fn json_comes_back_as_it_was_sent() {
    let node = node("").await;
    for (sent, kept) in [
        ("123456789012345678901234567890.10e+5", "123456789012345678901234567890.10e+5"),
        ("[ -0 , 1E400 , 0.1000 ]", "[-0,1E400,0.1000]"),
        (r#"{ "z" : 9007199254740993 , "a" : "\u00e9\/" }"#, r#"{"z":9007199254740993,"a":"\u00e9\/"}"#),
        ("null", "null"),
    ] {
        node.put("/v1/ns/k/f", sent).await.json();
        assert_eq!(node.get("/v1/ns/k").await.body, format!("{{\"key\":\"k\",\"fields\":{{\"f\":{kept}}}}}"));
        node.patch("/v1/ns/k", ops(&format!("{{\"op\":\"set\",\"field\":\"g\",\"value\":{sent}}}")))
            .await
            .json();
        assert_eq!(node.get("/v1/ns/k/g").await.body, format!("{{\"field\":\"g\",\"value\":{kept}}}"));
        node.delete("/v1/ns/k").await.json();
    }
    let most = i64::MAX;
    for by in [most, most, 1] {
        node.patch("/v1/ns/c", ops(&format!("{{\"op\":\"incr\",\"field\":\"n\",\"by\":{by}}}"))).await.json();
        assert_eq!(node.get("/v1/ns/c/n").await.json()["value"], most);
    }
    assert_eq!(node.get("/v1/ns/c?numbers=string").await.json()["fields"]["n"], most.to_string());
}

#[tokio::test]
async fn answers_have_tags() {
    let node = node("").await;
    node.put("/v1/ns/k/f", "1").await.json();
    let ask = |tag: String| Answer::of(node.request("GET", "/v1/ns/k").header("if-none-match", tag));
    let first = node.get("/v1/ns/k").await;
    let tag = first.headers["etag"].to_str().unwrap().to_owned();
    assert_eq!(tag, format!("\"{}\"", blake3::hash(first.body.as_bytes()).to_hex()));
    let known = ask(format!("\"x\", W/{tag}")).await;
    assert_eq!(
        (known.status, known.body.as_str(), known.headers["etag"].to_str().unwrap()),
        (304, "", tag.as_str())
    );
    node.put("/v1/ns/k/f", "2").await.json();
    assert_eq!(ask(tag.clone()).await.json()["fields"]["f"], 2);
    node.put("/v1/ns/k/f", "1").await.json();
    assert_eq!(ask(tag).await.status, 304, "the same bytes have the same tag");
    assert!(node.get("/v1/ns/k/f").await.headers.contains_key("etag"));
}

#[tokio::test]
async fn long_sets_are_cut_and_named() {
    let node = node("").await;
    let add = |field: &str, count: usize| {
        let members: Vec<String> = (0..count).map(|i| format!("\"m{i:04}\"")).collect();
        format!("{{\"op\":\"add\",\"field\":\"{field}\",\"members\":[{}]}}", members.join(","))
    };
    node.patch("/v1/ns/k", ops(&format!("{},{}", add("fits", 1000), add("long", 1001)))).await.json();
    let record = node.get("/v1/ns/k").await.json();
    assert_eq!(record["truncated"], json!(["long"]));
    for field in ["fits", "long"] {
        let members = record["fields"][field].as_array().unwrap();
        assert_eq!((members.len(), members[999].as_str()), (1000, Some("m0999")));
    }
    assert_eq!(node.get("/v1/ns/k/long").await.json()["truncated"], true);
    assert_eq!(node.get("/v1/ns/k/fits").await.json().get("truncated"), None);
    assert_eq!(node.get("/v1/ns/k?view=full").await.json()["fields"]["long"]["truncated"], true);
}

#[tokio::test]
async fn the_full_view_shows_what_won_against_what() {
    let cluster = Cluster::new(&["a", "b"]);
    // Each writes while the other is down, so neither sees the other's writes.
    let a = cluster.start("a").await;
    a.patch("/v1/ns/k", ops(r#"{"op":"set","field":"t","value":"from a"},{"op":"enable","field":"x"}"#))
        .await
        .json();
    drop(a);
    let b = cluster.start("b").await;
    b.patch("/v1/ns/k", ops(r#"{"op":"set","field":"t","value":"from b"},{"op":"incr","field":"x","by":3}"#))
        .await
        .json();
    let a = cluster.start("a").await;
    converged(&[&a, &b]).await;

    let record = a.get("/v1/ns/k").await.json();
    assert_eq!(record["fields"], json!({"t": "from b", "x": 3}));
    let full = a.get("/v1/ns/k?view=full").await.json();
    let (t, x) = (&full["fields"]["t"], &full["fields"]["x"]);
    assert_eq!(
        (&t["type"], &t["value"], &t["siblings"]),
        (&json!("register"), &json!("from b"), &json!(["from a"]))
    );
    assert_eq!(t["updated"]["region"], "region-b");
    assert_eq!((&x["type"], &x["value"]), (&json!("counter"), &json!(3)));
    assert_eq!((&x["others"][0]["type"], &x["others"][0]["value"]), (&json!("flag"), &json!(true)));
    assert_eq!(x["others"][0]["updated"]["region"], "region-a");
    assert_eq!(x["others"].as_array().unwrap().len(), 1);
    let field = a.get("/v1/ns/k/t?view=full").await.json();
    assert_eq!((&field["field"], &field["siblings"]), (&json!("t"), &json!(["from a"])));
    assert_eq!(b.get("/v1/ns/k?view=full").await.body, a.get("/v1/ns/k?view=full").await.body);

    // A later write sees both values, and each type takes its own operations.
    a.put("/v1/ns/k/t", "\"both\"").await.json();
    a.patch("/v1/ns/k", ops(r#"{"op":"disable","field":"x"},{"op":"incr","field":"x","by":1}"#)).await.json();
    converged(&[&a, &b]).await;
    let full = b.get("/v1/ns/k?view=full").await.json();
    assert_eq!((&full["fields"]["t"]["siblings"], &full["fields"]["x"]["value"]), (&json!([]), &json!(4)));
    assert_eq!(full["fields"]["x"].get("others"), None);

    let seen = a.cluster().await;
    assert_eq!(seen["regions"], json!({"region-a": ["a"], "region-b": ["b"]}));
    let link = &seen["links"][0];
    assert_eq!((&link["peer"], &link["up"], &link["synced"]), (&json!("b"), &json!(true), &json!(true)));
    assert_eq!((&link["commits_behind"], &link["commits_ahead"]), (&json!(0), &json!(0)));
    assert!(link["rtt_us"].is_u64() && link["address"].is_string(), "{link}");
}

#[tokio::test]
async fn too_many_requests_are_told_to_come_again() {
    let node = node(LIMITS).await;
    let mut held = node.half_put("/v1/ns/k/f", 1);
    let refused = node.get("/v1/ns/k").await;
    let problem = refused.problem(429, "overloaded");
    assert_eq!((&problem["applied"], refused.headers["retry-after"].to_str().unwrap()), (&json!("no"), "1"));
    assert_eq!(node.get("/healthz").await.status, 200);
    assert_eq!(node.get("/readyz").await.status, 200);
    assert_eq!(node.cluster().await["converged"], true);
    held.write_all(b"1").unwrap();
    assert_eq!(status_line(&read_all(held)), "HTTP/1.1 200 OK");
    assert_eq!(node.get("/v1/ns/k/f").await.json()["value"], 1);

    // A client that goes away in the middle gives its place back.
    drop(node.half_put("/v1/ns/k/f", 1));
    support::eventually("the place is free", async || {
        (node.get("/v1/ns/k").await.status == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn bodies_in_progress_share_a_limit() {
    let node = node("[limits]\nvalue_bytes = 100\nbody_bytes = 2000\nrequest_bytes = 3000\n").await;
    let put = || node.put("/v1/ns/k/g", " ".repeat(1500) + "1");
    // Either body may be the first to take its room; here it is to be the one that is held.
    let mut held = support::eventually("the held body has taken its room", async || {
        let mut held = node.half_put("/v1/ns/k/f", 2000);
        held.write_all(&[b' '; 1999]).unwrap();
        let answer = put().await;
        (answer.status != 200).then(|| {
            answer.problem(429, "overloaded");
            held
        })
    })
    .await;
    held.write_all(b"1").unwrap();
    assert_eq!(status_line(&read_all(held)), "HTTP/1.1 200 OK");
    support::eventually("the room is free", async || (put().await.status == 200).then_some(())).await;
}

#[tokio::test]
async fn http2_is_spoken_without_tls() {
    let node = node("").await;
    let mut stream = node.connect();
    // The preface, and empty settings.
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
    let mut frame = [0; 9];
    stream.read_exact(&mut frame).unwrap();
    assert_eq!(frame[3], 4, "the node answers with its settings");
}

#[tokio::test]
async fn every_problem_leads_to_its_page() {
    let node = node("").await;
    let problem = node.get("/v1/ns/k").await.problem(404, "not-found");
    let page = node.get(problem["type"].as_str().unwrap()).await;
    assert!(page.body.starts_with("## not-found\n"), "{}", page.body);
    node.get("/problems/no-such").await.problem(404, "not-found");
}

/// A value of a mebibyte, less its quotes and a little.
fn large_value() -> String {
    format!("\"{}\"", "x".repeat((1 << 20) - 10))
}

#[tokio::test]
async fn large_answers_are_limited_one_by_one() {
    let node = node("[limits]\nanswer_bytes = 2000000\n").await;
    node.put("/v1/ns/k/a", large_value()).await.json();
    assert_eq!(node.get("/v1/ns/k").await.status, 200);
    node.put("/v1/ns/k/b", large_value()).await.json();
    let problem = node.get("/v1/ns/k").await.problem(413, "too-large");
    assert_eq!((&problem["limit"], &problem["max"]), (&json!("answer"), &json!(2_000_000)));
    for field in ["a", "b"] {
        assert_eq!(node.get(&format!("/v1/ns/k/{field}")).await.status, 200);
    }
    // The commit stands and is told; the record is left out.
    let patched =
        node.patch("/v1/ns/k?return=record", ops(r#"{"op":"incr","field":"n","by":1}"#)).await.json();
    assert_eq!(patched["commit"]["counter"], 3);
    assert!(patched.get("fields").is_none());
    assert_eq!(node.get("/v1/ns/k/n").await.json()["value"], 1);
}

#[tokio::test]
async fn answers_that_nobody_fetches_take_bounded_room() {
    // Far more than the system's own buffers take of an answer.
    let node = node("[limits]\nanswer_bytes = 40000000\nanswers_bytes = 40000000\n").await;
    for i in 0..30 {
        node.put(&format!("/v1/ns/k/f{i}"), large_value()).await.json();
    }
    node.put("/v1/ns/small/f", "1").await.json();
    let mut idle = node.connect();
    idle.write_all(b"GET /v1/ns/k HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    // Its first byte: the answer is under way.
    idle.read_exact(&mut [0; 1]).unwrap();
    node.get("/v1/ns/k").await.problem(429, "overloaded");
    assert_eq!(node.get("/v1/ns/small").await.status, 200);
    drop(idle);
    support::eventually("the room is free", async || {
        (node.get("/v1/ns/k").await.status == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn idle_connections_make_place_for_others() {
    let node = node("[limits]\nconnections = 3\n").await;
    let ask = |stream: &mut TcpStream| {
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut answer = [0; 15];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200 OK");
    };
    let mut idle: Vec<TcpStream> = (0..3).map(|_| node.connect()).collect();
    idle.iter_mut().for_each(ask);
    // Far below the minute that an idle connection may last otherwise.
    let mut late = node.connect();
    late.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    ask(&mut late);
}
