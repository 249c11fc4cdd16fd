//! Clients of automerge-repo at real nodes: the protocol by hand, and the npm packages themselves under Node.js.

#[path = "sync/client.rs"]
mod client;
#[path = "scenarios/nodes.rs"]
#[allow(dead_code)] // Shared with tests that need more of it.
mod nodes;
mod support;

use client::{Client, Node};
use nodes::{Kind, Nodes};
use serde_json::{Value, json};
use support::{Answer, Server, eventually, lone_config};
use tempfile::TempDir;

/// An id of a document as automerge-repo draws it.
const ID: &str = "4NMNnkMhL8jXrdJ9jamS58PAVdXu";
const OTHER: &str = "2j9knpCseyhnK8izDmLpGP5WMdZQ";

fn path(id: &str) -> String {
    format!("/v1/app/{id}/document")
}

async fn shown(server: &Server, id: &str) -> Value {
    server.get(&path(id)).await.json()["value"].clone()
}

async fn edit(server: &Server, id: &str, patch: Value) {
    let ops = json!({"ops": [{"op": "edit", "field": "document", "patch": patch}]});
    server.patch(&format!("/v1/app/{id}"), ops.to_string()).await.json();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_document_goes_both_ways_and_presence_to_the_others() {
    let dir = TempDir::new().unwrap();
    let server = Server::start(&lone_config(dir.path(), "")).await;
    let mut a = Client::join(server.addr(), "app", "a").await;
    a.put(ID, "title", "Draft");
    a.sync(ID).await;
    assert_eq!(shown(&server, ID).await, json!({"title": "Draft"}));
    // Beside counters, in the same record.
    server.patch(&format!("/v1/app/{ID}"), r#"{"ops":[{"op":"incr","field":"plays","by":1}]}"#).await.json();
    assert_eq!(server.get(&format!("/v1/app/{ID}")).await.json()["fields"]["plays"], 1);

    let mut b = Client::join(server.addr(), "app", "b").await;
    b.request(ID).await;
    b.until(ID, "title", "Draft").await;
    // What is edited over HTTP comes to both, and what one edits to the other.
    edit(&server, ID, json!([{"op": "add", "path": "/by", "value": "http"}])).await;
    a.until(ID, "by", "http").await;
    b.until(ID, "by", "http").await;
    b.put(ID, "title", "Final");
    b.sync(ID).await;
    assert_eq!(shown(&server, ID).await["title"], "Final");
    a.until(ID, "title", "Final").await;
    a.say(ID, b"here").await;
    assert_eq!(b.presence(ID).await, b"here");
    b.say(ID, b"there").await;
    assert_eq!(a.presence(ID).await, b"there");

    // One that is not there, until it is; the other client does not hear of it.
    b.request(OTHER).await;
    b.unavailable(OTHER).await;
    edit(&server, OTHER, json!([{"op": "add", "path": "/late", "value": "but here"}])).await;
    b.until(OTHER, "late", "but here").await;

    // A clear is told, and undone by nobody who only has what was cleared: not by the linked, not by who comes back.
    server.delete(&path(ID)).await.json();
    a.unavailable(ID).await;
    a.begin_anew(ID);
    a.sync_in_vain(ID).await;
    let mut back = Client::join(server.addr(), "app", "a").await;
    back.copy(&a, ID);
    back.sync_in_vain(ID).await;
    server.get(&path(ID)).await.problem(404, "not-found");
    // A new edit beside the clear stays, with what it builds on.
    back.put(ID, "title", "Kept");
    back.sync(ID).await;
    assert_eq!(shown(&server, ID).await, json!({"title": "Kept", "by": "http"}));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_is_refused() {
    let dir = TempDir::new().unwrap();
    let limits = "[limits]\ndocument_bytes = 4096\nbody_bytes = 65536\nsyncs = 2\n";
    let mut server = Server::start(&lone_config(dir.path(), limits)).await;
    // No WebSocket; a page of another site; a namespace and a field that cannot be.
    server.get("/v1/_sync/app").await.problem(400, "malformed");
    for (path, origin, status, slug) in [
        ("/v1/_sync/app", Some("https://evil.example"), 403, "origin-refused"),
        ("/v1/_sync/_app", None, 404, "not-found"),
        ("/v1/_sync/app?field=", None, 400, "invalid-name"),
        ("/v1/_sync/app?fields=x", None, 400, "malformed"),
    ] {
        let refused = Client::refused(server.addr(), path, origin).await;
        assert_eq!(
            (refused["status"].as_u64(), &refused["type"]),
            (Some(status), &json!(format!("/problems/{slug}")))
        );
    }
    // What does not follow the protocol is sent away.
    for (first, messages) in [
        (false, vec![vec![0xff]]),
        (false, vec![client::frame("sync", Some(ID), Some(&[0x42, 0, 0, 0, 0]))]),
        (true, vec![client::frame("sync", Some(ID), None)]),
        (true, vec![client::frame("sync", Some(""), Some(&[0x42, 0, 0, 0, 0]))]),
        (true, vec![vec![0; 70_000]]),
    ] {
        let mut client = Client::open(server.addr(), "/v1/_sync/app").await;
        if first {
            client.join_as("x").await;
        }
        for message in messages {
            client.send(message).await;
        }
        client.is_sent_away().await;
    }
    // What cannot be committed is said, and the rest goes on.
    let mut client = Client::join(server.addr(), "app", "a").await;
    client.send(client::frame("sync", Some(OTHER), Some(b"?"))).await;
    assert!(client.error(OTHER).await.contains("sync message"));
    client.put(ID, "long", &"x".repeat(5_000));
    client.sync_in_vain(ID).await;
    assert!(client.error(ID).await.contains("at most 4096"));
    server.get(&path(ID)).await.problem(404, "not-found");
    let third = "3third";
    client.put(third, "title", "short");
    client.sync(third).await;
    assert_eq!(shown(&server, third).await, json!({"title": "short"}));
    // As many clients as there may be.
    let _other = Client::join(server.addr(), "app", "b").await;
    let refused = Client::refused(server.addr(), "/v1/_sync/app", None).await;
    assert_eq!(refused["type"], "/problems/overloaded");
    // A node that stops sends its clients away.
    server.terminate();
    client.is_sent_away().await;
    assert!(server.exit_status().await.success());
}

/// The npm packages, at two regions, with the link cut and healed between edits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_apps_with_automerge_repo_end_with_the_same() {
    let nodes = Nodes::start(Kind::InProcess).await;
    let Some(mut a) = Node::start(nodes.addr(0)) else { return };
    let Some(mut b) = Node::start(nodes.addr(1)) else { return };
    let created = a.ask(json!({"do": "create", "doc": {"title": "Draft", "text": "", "list": [1]}})).await;
    let url = created["url"].as_str().unwrap().to_owned();
    let id = url.strip_prefix("automerge:").unwrap();
    let at_node = async |at: usize| {
        let answer = Answer::of(nodes.request("GET", at, &path(id))).await;
        (answer.status == 200).then(|| answer.json()["value"].clone())
    };
    eventually("the document is in the other region", async || at_node(1).await).await;
    let opened = b.ask(json!({"do": "open", "url": url})).await;
    assert_eq!(opened["doc"], json!({"title": "Draft", "text": "", "list": [1]}));
    b.ask(json!({"do": "splice", "url": url, "key": "text", "index": 0, "remove": 0, "insert": "é😀b"}))
        .await;
    a.ask(json!({"do": "until", "url": url, "key": "text", "value": "é😀b"})).await;

    nodes.cut(&[0]);
    a.ask(json!({"do": "splice", "url": url, "key": "text", "index": 0, "remove": 0, "insert": "a says: "}))
        .await;
    b.ask(json!({"do": "splice", "url": url, "key": "text", "index": 3, "remove": 0, "insert": " said"}))
        .await;
    a.ask(json!({"do": "set", "url": url, "key": "title", "value": "A's"})).await;
    b.ask(json!({"do": "set", "url": url, "key": "by", "value": "b"})).await;
    // Each region goes on by itself, and over HTTP too.
    eventually("a's edit is at its node", async || at_node(0).await.filter(|doc| doc["title"] == "A's"))
        .await;
    eventually("b's edit is at its node", async || at_node(1).await.filter(|doc| doc["by"] == "b")).await;
    let patch = json!({"ops": [{"op": "edit", "field": "document", "patch": [
        {"op": "add", "path": "/list/-", "value": 2}]}]});
    Answer::of(nodes.request("PATCH", 2, &format!("/v1/app/{id}")).body(patch.to_string())).await.json();
    assert_eq!(at_node(0).await.unwrap()["by"], Value::Null);
    nodes.sync().await;
    let merged = json!({"title": "A's", "text": "a says: é😀 saidb", "list": [1, 2], "by": "b"});
    for at in 0..3 {
        assert_eq!(at_node(at).await.unwrap(), merged);
    }
    let answer = Answer::of(nodes.request("GET", 2, &format!("{}?view=changes", path(id)))).await.json();
    for app in [&mut a, &mut b] {
        let heads = answer["heads"].clone();
        let ended = app.ask(json!({"do": "untilHeads", "url": url, "heads": heads})).await;
        assert_eq!(ended["doc"], merged);
    }

    // Presence among the clients of a node, a document that is not there, and one that was made over HTTP.
    let Some(mut c) = Node::start(nodes.addr(0)) else { return };
    let gone = c.ask(json!({"do": "open", "url": format!("automerge:{ID}")})).await;
    assert!(gone["unavailable"].as_str().unwrap().contains("unavailable"), "{gone}");
    assert_eq!(c.ask(json!({"do": "open", "url": url})).await["doc"], merged);
    a.ask(json!({"do": "say", "url": url, "message": {"cursor": 7}})).await;
    assert_eq!(c.ask(json!({"do": "hear", "url": url})).await["said"], json!({"cursor": 7}));
    let made = json!({"ops": [{"op": "edit", "field": "document", "patch": [
        {"op": "add", "path": "/made", "value": "over HTTP"}]}]});
    Answer::of(nodes.request("PATCH", 1, &format!("/v1/app/{OTHER}")).body(made.to_string())).await.json();
    nodes.sync().await;
    let opened = c.ask(json!({"do": "open", "url": format!("automerge:{OTHER}")})).await;
    assert_eq!(opened["doc"], json!({"made": "over HTTP"}));
    for app in [a, b, c] {
        app.end().await;
    }
    nodes.stop().await;
}
