//! Documents through HTTP at real nodes: edits, forms to read them in, files, clears beside edits, what is refused, and what people
//! really typed.

#[path = "scenarios/nodes.rs"]
#[allow(dead_code)] // Shared with tests that need more of it.
mod nodes;
mod support;

use std::io::Read;
use std::path::Path;

use automerge::transaction::{CommitOptions, Transactable};
use automerge::{ActorId, Automerge, ObjType, ROOT, ReadDoc, TextEncoding};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use nodes::{Kind, Nodes};
use serde_json::{Value, json};
use support::{Answer, Cluster, Server, converged, lone_config};
use tempfile::TempDir;

const NOTES: &str = "/v1/app/k/notes";

async fn ops(server: &Server, key: &str, ops: Value) -> Answer {
    server.patch(&format!("/v1/app/{key}"), json!({ "ops": ops }).to_string()).await
}

async fn edit(server: &Server, patch: Value) -> Answer {
    ops(server, "k", json!([{"op": "edit", "field": "notes", "patch": patch}])).await
}

async fn shown(server: &Server) -> Value {
    server.get(NOTES).await.json()["value"].clone()
}

async fn heads(server: &Server) -> String {
    let answer = server.get(&format!("{NOTES}?view=changes")).await.json();
    let heads: Vec<&str> =
        answer["heads"].as_array().unwrap().iter().map(|head| head.as_str().unwrap()).collect();
    heads.join(",")
}

async fn in_form(server: &Server, path: &str, accept: &str) -> reqwest::Response {
    server.request("GET", path).header("accept", accept).send().await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_document_is_edited_and_read_in_every_form() {
    let dir = TempDir::new().unwrap();
    let mut server = Server::start(&lone_config(dir.path(), "")).await;
    // In one commit with what stands beside it.
    let both = json!([
        {"op": "edit", "field": "notes", "patch": [
            {"op": "add", "path": "/title", "value": "Draft"}, {"op": "add", "path": "/n", "value": [1, 2.5, null]}]},
        {"op": "incr", "field": "plays", "by": 1},
    ]);
    ops(&server, "k", both).await.json();
    let first = heads(&server).await;
    edit(&server, json!([{"op": "splice", "path": "/title", "index": 5, "delete": 0, "insert": " 2 é"}]))
        .await
        .json();
    let second = heads(&server).await;
    for _ in 0..2 {
        let now = json!({"title": "Draft 2 é", "n": [1, 2.5, null]});
        assert_eq!(shown(&server).await, now);
        assert_eq!(server.get("/v1/app/k").await.json()["fields"], json!({"notes": now, "plays": 1}));
        let full = server.get(&format!("{NOTES}?view=full")).await.json();
        assert_eq!(
            (&full["type"], &full["heads"], &full["value"]),
            (&json!("document"), &json!([second]), &now)
        );
        let then = server.get(&format!("{NOTES}?heads={first}")).await.json();
        assert_eq!(then["value"], json!({"title": "Draft", "n": [1, 2.5, null]}));
        let text = in_form(&server, &format!("{NOTES}?path=/title"), "text/plain").await;
        assert_eq!(text.headers()["content-type"], "text/plain; charset=utf-8");
        assert_eq!(text.text().await.unwrap(), "Draft 2 é");
        let text = in_form(&server, &format!("{NOTES}?heads={first}"), "text/plain").await;
        assert_eq!(text.text().await.unwrap(), "Draft");
        let history = server.get(&format!("{NOTES}?view=history&limit=1")).await.json();
        assert_eq!(
            (&history["history"][0]["hash"], &history["history"][0]["seq"]),
            (&json!(first), &json!(1))
        );
        assert_eq!(history["history"][0]["committed"]["region"], "region-lone");
        let next = history["next"].as_str().unwrap();
        let history = server.get(&format!("{NOTES}?view=history&limit=1&after={next}")).await.json();
        assert_eq!((&history["history"][0]["deps"], &history["next"]), (&json!([first]), &Value::Null));
        let diff = server.get(&format!("{NOTES}?view=diff&from={first}")).await.json();
        assert_eq!(diff["patch"], json!([{"op": "splice", "path": "/title", "index": 5, "insert": " 2 é"}]));
        let changes = server.get(&format!("{NOTES}?view=changes&since={first}")).await.json();
        assert_eq!(changes["changes"].as_array().unwrap().len(), 1);
        server.kill();
        server.restart().await;
    }
    // The actor of before is not used again, and nothing is lost.
    edit(&server, json!([{"op": "splice", "path": "/title", "index": 0, "delete": 5, "insert": "Text"}]))
        .await
        .json();
    assert_eq!(shown(&server).await["title"], "Text 2 é");

    // A file goes out and comes in elsewhere; to send it again changes nothing.
    let file = in_form(&server, NOTES, "application/automerge").await.bytes().await.unwrap();
    for times in 0..2 {
        let put = server.request("PUT", "/v1/app/copy/notes").header("content-type", "application/automerge");
        let committed = Answer::of(put.body(file.clone())).await.json();
        assert_eq!(committed["commit"].is_null(), times == 1, "{committed}");
    }
    assert_eq!(server.get("/v1/app/copy/notes").await.json()["value"], shown(&server).await);
    // So do changes, of which some are there.
    let changes = server.get(&format!("{NOTES}?view=changes")).await.json()["changes"].clone();
    let change = |changes: &Value| json!([{"op": "change", "field": "d", "changes": changes}]);
    ops(&server, "moved", change(&json!([changes[0]]))).await.json();
    ops(&server, "moved", change(&changes)).await.json();
    assert_eq!(server.get("/v1/app/moved/d").await.json()["value"], shown(&server).await);
    assert!(ops(&server, "moved", change(&changes)).await.json()["commit"].is_null());

    // A clear takes it whole; what begins anew brings nothing back.
    server.delete(NOTES).await.json();
    server.get(NOTES).await.problem(404, "not-found");
    server.get(&format!("{NOTES}?view=history")).await.problem(404, "not-found");
    edit(&server, json!([{"op": "add", "path": "/new", "value": true}])).await.json();
    assert_eq!(shown(&server).await, json!({"new": true}));
    // So does one in the commit that clears it.
    let anew = json!([
        {"op": "clear", "field": "notes"},
        {"op": "edit", "field": "notes", "patch": [{"op": "add", "path": "/a", "value": 1}]},
        {"op": "edit", "field": "notes", "patch": [{"op": "add", "path": "/b", "value": 2}]},
    ]);
    ops(&server, "k", anew).await.json();
    assert_eq!(shown(&server).await, json!({"a": 1, "b": 2}));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_fit_is_refused_and_changes_nothing() {
    let dir = TempDir::new().unwrap();
    let limits = "[limits]\ndocument_bytes = 4096\ndocument_ops = 200\n";
    let server = Server::start(&lone_config(dir.path(), limits)).await;
    edit(&server, json!([{"op": "add", "path": "/title", "value": "x"}])).await.json();
    ops(&server, "k", json!([{"op": "set", "field": "reg", "value": 1}])).await.json();
    let refused = async |patch: Value, status, slug: &str| {
        let problem = edit(&server, patch).await.problem(status, slug);
        assert_eq!(problem["op"], 0, "{problem}");
    };
    refused(json!([{"op": "add", "path": "title", "value": 1}]), 400, "malformed").await;
    refused(json!([{"op": "put", "path": "/title"}]), 400, "malformed").await;
    refused(json!({}), 400, "malformed").await;
    refused(json!([{"op": "remove", "path": "/none"}]), 409, "edit-refused").await;
    refused(json!([{"op": "test", "path": "/title", "value": "y"}]), 409, "edit-refused").await;
    refused(json!([{"op": "splice", "path": "/title", "index": 2, "insert": "y"}]), 409, "edit-refused")
        .await;
    refused(json!([{"op": "add", "path": "/long", "value": "x".repeat(5_000)}]), 413, "too-large").await;
    refused(json!([{"op": "add", "path": "/many", "value": vec![0; 300]}]), 413, "too-large").await;
    let nested = |levels| (0..levels).fold(json!({}), |inner, _| json!({"a": inner}));
    edit(&server, json!([{"op": "add", "path": "/deep", "value": nested(40)}])).await.json();
    let deeper = format!("/deep{}", "/a".repeat(40));
    refused(json!([{"op": "add", "path": deeper, "value": nested(30)}]), 413, "too-large").await;
    let before = shown(&server).await;
    ops(
        &server,
        "k",
        json!([{"op": "edit", "field": "reg", "patch": [{"op": "add", "path": "/a", "value": 1}]}]),
    )
    .await
    .problem(409, "type-mismatch");
    ops(&server, "k", json!([{"op": "set", "field": "notes", "value": 1}]))
        .await
        .problem(409, "type-mismatch");
    ops(&server, "k", json!([{"op": "edit", "field": "notes"}])).await.problem(400, "malformed");
    let change = async |changes: Value| {
        ops(&server, "k", json!([{"op": "change", "field": "notes", "changes": changes}])).await
    };
    change(json!([])).await.problem(400, "malformed");
    change(json!(["?"])).await.problem(400, "malformed");
    change(json!(["AAAA"])).await.problem(422, "invalid-document");
    // One that builds on a change which is nowhere.
    let all = server.get(&format!("{NOTES}?view=changes")).await.json()["changes"].clone();
    ops(&server, "other", json!([{"op": "change", "field": "d", "changes": [all[1]]}]))
        .await
        .problem(409, "missing-changes");
    for (path, status, slug) in [
        ("?heads=00", 400, "malformed"),
        (&format!("?heads={}", "0".repeat(64)), 404, "not-found"),
        ("?view=diff", 400, "malformed"),
        ("?view=history&heads=", 400, "malformed"),
        ("?view=history&limit=0", 400, "malformed"),
    ] {
        server.get(&format!("{NOTES}{path}")).await.problem(status, slug);
    }
    server.get("/v1/app/k/reg?view=history").await.problem(409, "type-mismatch");
    let text =
        Answer::of(server.request("GET", "/v1/app/k/notes?path=/deep").header("accept", "text/plain")).await;
    text.problem(404, "not-found");
    for file in [&b""[..], b"x", &[0x85, 0x6f, 0x4a, 0x83, 0, 0, 0, 0, 0, 1, 0]] {
        let put = server.request("PUT", "/v1/app/k/notes").header("content-type", "application/automerge");
        let answer = Answer::of(put.body(file.to_vec())).await;
        assert!([400, 422].contains(&answer.status), "{} {}", answer.status, answer.body);
    }
    assert_eq!(shown(&server).await, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_of_others_load() {
    let dir = TempDir::new().unwrap();
    let server = Server::start(&lone_config(dir.path(), "")).await;
    let mut loaded = 0;
    for entry in std::fs::read_dir(data("valid")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "md") {
            continue;
        }
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let put = server
            .request("PUT", &format!("/v1/app/files/{name}"))
            .header("content-type", "application/automerge");
        Answer::of(put.body(std::fs::read(&path).unwrap())).await.json();
        let value = server.get(&format!("/v1/app/files/{name}")).await.json()["value"].clone();
        assert!(value.is_object(), "{name}: {value}");
        loaded += 1;
    }
    assert_eq!(loaded, 6);
    let exemplar = server.get("/v1/app/files/exemplar").await.json()["value"].clone();
    assert_eq!(exemplar["bool"], true, "{exemplar}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn edits_at_once_are_all_kept_and_retries_are_made_once() {
    let dir = TempDir::new().unwrap();
    let server = Server::start(&lone_config(dir.path(), "")).await;
    edit(&server, json!([{"op": "add", "path": "/text", "value": ""}])).await.json();
    let splice = json!({"ops": [{"op": "edit", "field": "notes", "patch": [
        {"op": "splice", "path": "/text", "index": 0, "insert": "x"}]}]});
    let (all, url) = (tokio::task::JoinSet::new(), server.url("/v1/app/k"));
    let all = (0..40).fold(all, |mut all, _| {
        let request = support::client().patch(&url).header("content-type", "application/json");
        let request = request.body(splice.to_string());
        all.spawn(async move { request.send().await.unwrap().status().as_u16() });
        all
    });
    assert!(all.join_all().await.iter().all(|status| *status == 200));
    assert_eq!(shown(&server).await["text"], "x".repeat(40));
    // The second would not fit any more what the first one left.
    let once = json!({"ops": [{"op": "edit", "field": "notes", "patch": [
        {"op": "splice", "path": "/text", "index": 0, "delete": 40}]}]});
    for repeated in [false, true] {
        let request =
            server.request("PATCH", "/v1/app/k").header("idempotency-key", "once").body(once.to_string());
        let response = request.header("content-type", "application/json").send().await.unwrap();
        assert_eq!(
            (response.status().as_u16(), response.headers().contains_key("godwit-repeated")),
            (200, repeated)
        );
    }
    assert_eq!(shown(&server).await["text"], "");
    edit(&server, json!([{"op": "splice", "path": "/text", "index": 0, "insert": "y"}])).await.json();
    assert_eq!(shown(&server).await["text"], "y");
}

/// The scenario of a clear beside an edit, with links that are cut.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_concurrent_edit_keeps_the_whole_document() {
    let nodes = Nodes::start(Kind::InProcess).await;
    let edit = async |at: usize, patch: Value| {
        let ops = json!({"ops": [{"op": "edit", "field": "notes", "patch": patch}]}).to_string();
        Answer::of(nodes.request("PATCH", at, "/v1/app/k").body(ops)).await
    };
    edit(0, json!([{"op": "add", "path": "/text", "value": "from a"}])).await.json();
    nodes.sync().await;
    nodes.cut(&[1]);
    Answer::of(nodes.request("DELETE", 0, NOTES)).await.json();
    Answer::of(nodes.request("GET", 0, NOTES)).await.problem(404, "not-found");
    edit(1, json!([{"op": "splice", "path": "/text", "index": 6, "insert": ", kept by b"}])).await.json();
    // Begun anew where it was cleared: beside what comes back.
    edit(0, json!([{"op": "add", "path": "/anew", "value": 1}])).await.json();
    assert_eq!(Answer::of(nodes.request("GET", 0, NOTES)).await.json()["value"], json!({"anew": 1}));
    nodes.sync().await;
    for at in 0..3 {
        let value = Answer::of(nodes.request("GET", at, NOTES)).await.json()["value"].clone();
        assert_eq!(value, json!({"text": "from a, kept by b", "anew": 1}));
    }
    // A clear that has seen it all takes it all.
    Answer::of(nodes.request("DELETE", 1, NOTES)).await.json();
    nodes.sync().await;
    for at in 0..3 {
        Answer::of(nodes.request("GET", at, NOTES)).await.problem(404, "not-found");
    }
    nodes.stop().await;
}

/// What two people really typed at once, each in a region of their own, over a slow link that is cut now and then. Each has a copy of the
/// document, as an app on a phone has, and sends its changes to its region.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_two_people_typed_at_once_comes_together() {
    let nodes = Nodes::start(Kind::InProcess).await;
    let trace = trace("friendsforever.json.gz");
    let mut sent = 0;
    let mut begin = 0;
    let changes = changes_of(&trace);
    for (turn, batch) in changes.chunks(400).enumerate() {
        match turn % 5 {
            1 => nodes.cut(&[0]),
            3 => nodes.cut(&[1, 2]),
            _ => {
                nodes.cut(&[]);
                nodes.delay(30_000);
            }
        }
        for agent in 0..2 {
            // All that its last change may build on: what the other one sends, too, since a cut may hold that up.
            let Some(last) = batch.iter().rposition(|(of, _)| *of == agent) else { continue };
            for part in changes[begin..][..=last].chunks(100) {
                let part: Vec<String> = part.iter().map(|(_, change)| STANDARD.encode(change)).collect();
                let ops = json!({"ops": [{"op": "change", "field": "notes", "changes": part}]}).to_string();
                let answer = Answer::of(nodes.request("PATCH", agent, "/v1/app/k").body(ops.clone())).await;
                if answer.status == 409 {
                    // An earlier batch of the other one has not come yet: an app waits and asks again.
                    answer.problem(409, "missing-changes");
                    nodes.sync().await;
                    Answer::of(nodes.request("PATCH", agent, "/v1/app/k").body(ops)).await.json();
                } else {
                    answer.json();
                }
                sent += part.len();
            }
        }
        begin += batch.len();
    }
    nodes.sync().await;
    assert!(sent > 3_000, "{sent}");
    for at in 0..3 {
        let text = nodes.request("GET", at, &format!("{NOTES}?path=/text")).header("accept", "text/plain");
        assert_eq!(Answer::of(text).await.body, trace["endContent"].as_str().unwrap());
    }
    nodes.stop().await;
}

/// A session of typing by one person: the region in which they write changes with every hundred edits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_person_typed_comes_out_wherever_they_were() {
    let cluster = Cluster::new(&["a", "b"]);
    let servers = [cluster.start("a").await, cluster.start("b").await];
    let trace = trace("sveltecomponent.json.gz");
    let mut token: Option<String> = None;
    edit(&servers[0], json!([{"op": "add", "path": "/text", "value": ""}])).await.json();
    converged(&[&servers[0], &servers[1]]).await;
    let steps: Vec<Value> = splices(&trace).collect();
    for (turn, steps) in steps.chunks(100).enumerate() {
        let body = json!({"ops": [{"op": "edit", "field": "notes", "patch": steps}]}).to_string();
        let request = servers[turn % 2].request("PATCH", "/v1/app/k?wait_ms=20000").body(body);
        let request = request.header("content-type", "application/json");
        let request = token.iter().fold(request, |request, token| request.header("godwit-token", token));
        let response = request.send().await.unwrap();
        token = response.headers().get("godwit-token").map(|token| token.to_str().unwrap().to_owned());
        assert_eq!(response.status(), 200, "{}", response.text().await.unwrap());
    }
    converged(&[&servers[0], &servers[1]]).await;
    for server in &servers {
        assert_eq!(shown(server).await["text"], trace["endContent"]);
    }
}

fn data(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/documents").join(name)
}

fn trace(name: &str) -> Value {
    let file = std::fs::File::open(data(name)).unwrap();
    let mut text = String::new();
    flate2::read::GzDecoder::new(file).read_to_string(&mut text).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// The splices of a trace, in its order.
fn splices(trace: &Value) -> impl Iterator<Item = Value> {
    let patches = trace["txns"].as_array().unwrap().iter().flat_map(|txn| txn["patches"].as_array().unwrap());
    patches.map(|patch| {
        json!({"op": "splice", "path": "/text", "index": patch[0], "delete": patch[1], "insert": patch[2]})
    })
}

/// The changes of a trace with several agents, each with its agent: runs of transactions that follow each other are one change.
fn changes_of(trace: &Value) -> Vec<(usize, Vec<u8>)> {
    let txns = trace["txns"].as_array().unwrap();
    let parents = |txn: &Value| -> Vec<usize> {
        txn["parents"].as_array().unwrap().iter().map(|parent| parent.as_u64().unwrap() as usize).collect()
    };
    let agent = |txn: &Value| txn["agent"].as_u64().unwrap() as usize;
    let new = |agent: u8| {
        Automerge::new_with_encoding(TextEncoding::UnicodeCodePoint)
            .with_actor(ActorId::from([agent + 1; 16]))
    };
    let mut documents: Vec<Automerge> = (0..2).map(new).collect();
    let mut begun =
        Automerge::new_with_encoding(TextEncoding::UnicodeCodePoint).with_actor(ActorId::from([9; 16]));
    let mut transaction = begun.transaction();
    transaction.put_object(ROOT, "text", ObjType::Text).unwrap();
    transaction.commit_with(CommitOptions::default());
    let mut changes = vec![(0, begun.get_last_local_change().unwrap().bytes().into_owned())];
    for document in &mut documents {
        document.merge(&mut begun).unwrap();
    }
    // Of each agent: where its runs end, with their changes, and how many of the other's it has.
    let mut runs: [Vec<(usize, automerge::Change)>; 2] = Default::default();
    let mut taken = [0, 0];
    let mut begin = 0;
    while begin < txns.len() {
        let of = agent(&txns[begin]);
        let follows = |at: usize| {
            agent(&txns[at]) == of && parents(&txns[at]) == [at - 1] && txns[at - 1]["numChildren"] == 1
        };
        let end = (begin + 1..txns.len()).find(|at| !follows(*at)).unwrap_or(txns.len());
        // What the other one had written that is seen when this run begins.
        for parent in parents(&txns[begin]).into_iter().filter(|parent| agent(&txns[*parent]) != of) {
            let seen = runs[1 - of].iter().take_while(|(end, _)| *end <= parent).count().max(taken[of]);
            let news = runs[1 - of][taken[of]..seen].iter().map(|(_, change)| change.clone());
            documents[of].apply_changes(news).unwrap();
            taken[of] = seen;
        }
        let document = &mut documents[of];
        let (_, text) = document.get(ROOT, "text").unwrap().unwrap();
        let mut transaction = document.transaction();
        for patch in txns[begin..end].iter().flat_map(|txn| txn["patches"].as_array().unwrap()) {
            let (at, delete) = (patch[0].as_u64().unwrap() as usize, patch[1].as_i64().unwrap() as isize);
            transaction.splice_text(&text, at, delete, patch[2].as_str().unwrap()).unwrap();
        }
        if let (Some(hash), _) = transaction.commit_with(CommitOptions::default()) {
            let mut change = document.get_change_by_hash(&hash).unwrap();
            changes.push((of, change.bytes().into_owned()));
            runs[of].push((end - 1, change));
        }
        begin = end;
    }
    changes
}
