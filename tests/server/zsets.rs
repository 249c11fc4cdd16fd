//! Zsets, uniques and expiry through HTTP at a real node: every way to ask, what is refused, and that a restart changes nothing.

mod support;

use serde_json::{Value, json};
use support::{Answer, Server, eventually, lone_config};
use tempfile::TempDir;

const RECORD: &str = "/v1/ns/board";

async fn commit(server: &Server, ops: Value) -> Answer {
    server.patch(RECORD, json!({ "ops": ops }).to_string()).await
}

async fn page(server: &Server, query: &str) -> Value {
    server.get(&format!("{RECORD}/top?{query}")).await.json()
}

async fn board(server: &Server) {
    let scores = json!({"ada": 2.5, "bob": -1, "cy": 2.5, "dee": 10, "eve": 0.1});
    commit(server, json!([{"op": "zadd", "field": "top", "scores": scores}])).await.json();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_zset_is_paged_by_name_rank_and_score() {
    let dir = TempDir::new().unwrap();
    let mut server = Server::start(&lone_config(dir.path(), "")).await;
    board(&server).await;
    for _ in 0..2 {
        let by_rank = json!([["bob", -1.0], ["eve", 0.1], ["ada", 2.5], ["cy", 2.5], ["dee", 10.0]]);
        assert_eq!(server.get(RECORD).await.json()["fields"]["top"], by_rank);
        assert_eq!(page(&server, "view=size").await["size"], 5);
        let first = page(&server, "limit=2").await;
        assert_eq!((&first["value"], &first["next"]), (&json!([["ada", 2.5], ["bob", -1.0]]), &json!("bob")));
        let second = page(&server, "limit=9&after=bob").await;
        assert_eq!(second["value"], json!([["cy", 2.5], ["dee", 10.0], ["eve", 0.1]]));

        let first = page(&server, "order=rank&desc=true&limit=3").await;
        assert_eq!(first["value"], json!([["dee", 10.0], ["cy", 2.5], ["ada", 2.5]]));
        assert_eq!((&first["rank"], &first["next"]), (&json!(0), &json!("2.5:ada")));
        let second = page(&server, "order=rank&desc=true&after=2.5:ada").await;
        assert_eq!((&second["value"], &second["rank"]), (&json!([["eve", 0.1], ["bob", -1.0]]), &json!(3)));
        assert_eq!(page(&server, "rank=3&limit=1").await["value"], json!([["cy", 2.5]]));
        assert_eq!(
            page(&server, "min=0&max=2.5").await["value"],
            json!([["eve", 0.1], ["ada", 2.5], ["cy", 2.5]])
        );
        assert_eq!(page(&server, "min=3&desc=true").await["value"], json!([["dee", 10.0]]));
        assert_eq!(page(&server, "min=11").await["value"], json!([]));

        let member = async |path: &str| server.get(&format!("{RECORD}/top/{path}")).await;
        assert_eq!(member("cy").await.json(), json!({"field": "top", "member": "cy", "score": 2.5}));
        assert_eq!(member("cy?rank=true").await.json()["rank"], 3);
        assert_eq!(member("cy?rank=true&desc=true").await.json()["rank"], 1);
        member("zoe").await.problem(404, "not-found");
        server.kill();
        server.restart().await;
    }
    commit(&server, json!([{"op": "zincr", "field": "top", "member": "bob", "by": 100}])).await.json();
    commit(&server, json!([{"op": "zremove", "field": "top", "members": ["dee"]}])).await.json();
    assert_eq!(
        page(&server, "order=rank&desc=true&limit=2").await["value"],
        json!([["bob", 99.0], ["cy", 2.5]])
    );
    commit(&server, json!([{"op": "clear", "field": "top"}])).await.json();
    server.get(&format!("{RECORD}/top?order=rank")).await.problem(404, "not-found");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_time_that_has_passed_deletes_and_one_to_come_is_told() {
    let dir = TempDir::new().unwrap();
    let server = Server::start(&lone_config(dir.path(), "")).await;
    board(&server).await;
    commit(&server, json!([{"op": "expire", "at": "2100-01-01T12:00:00.250Z"}])).await.json();
    let full = server.get(&format!("{RECORD}?view=full")).await.json();
    assert_eq!(full["expires"], "2100-01-01T12:00:00.250Z");
    let body = json!({"reads": ["board"]}).to_string();
    let batch = Answer::of(server.request("POST", "/v1/ns?view=full").body(body)).await.json();
    assert_eq!(batch["records"][0]["expires"], "2100-01-01T12:00:00.250Z");
    // What comes after it in the commit is there, and the expiry is gone with the rest.
    let ops =
        json!([{"op": "expire", "at": "2001-01-01T00:00:00Z"}, {"op": "incr", "field": "plays", "by": 1}]);
    commit(&server, ops).await.json();
    let full = server.get(&format!("{RECORD}?view=full")).await.json();
    assert_eq!((full.get("expires"), &full["fields"]["plays"]["value"]), (None, &json!(1)));
    assert_eq!(full["fields"].as_object().unwrap().len(), 1);
    let ops =
        json!([{"op": "incr", "field": "plays", "by": 1}, {"op": "expire", "at": "2001-01-01T00:00:00Z"}]);
    commit(&server, ops).await.json();
    server.get(RECORD).await.problem(404, "not-found");

    commit(&server, json!([{"op": "observe", "field": "seen", "ranks": [[3, 2], [3, 5], [7, 1]]}]))
        .await
        .json();
    let ranks = server.get(&format!("{RECORD}/seen?view=ranks")).await.json();
    assert_eq!(ranks, json!({"field": "seen", "ranks": [[3, 5], [7, 1]]}));
    commit(&server, json!([{"op": "add", "field": "tags", "members": ["x"]}])).await.json();
    server.get(&format!("{RECORD}/tags?view=ranks")).await.problem(409, "type-mismatch");
    server.get(&format!("{RECORD}/none?view=ranks")).await.problem(404, "not-found");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_wrong_is_refused() {
    let dir = TempDir::new().unwrap();
    let server = Server::start(&lone_config(dir.path(), "")).await;
    board(&server).await;
    commit(&server, json!([{"op": "incr", "field": "top", "by": 1}])).await.problem(409, "type-mismatch");
    commit(&server, json!([{"op": "zincr", "field": "top", "member": "x", "by": "1"}]))
        .await
        .problem(400, "malformed");
    commit(&server, json!([{"op": "add", "field": "tags", "members": ["x"]}])).await.json();
    server.get(&format!("{RECORD}/tags?order=rank")).await.problem(409, "type-mismatch");
    for wrong in [
        "order=name",
        "rank=-1",
        "min=x",
        "max=1e999",
        "after=x&order=rank",
        "rank=1&after=1:x",
        "view=size&desc=true",
    ] {
        server.get(&format!("{RECORD}/top?{wrong}")).await.problem(400, "malformed");
    }
    // A client that has not seen an increment cannot remove it: sums cannot be split.
    let seen = server.get(RECORD).await.headers["godwit-token"].clone();
    commit(&server, json!([{"op": "zincr", "field": "top", "member": "ada", "by": 1}])).await.json();
    let remove = json!({"ops": [{"op": "zremove", "field": "top", "members": ["ada"]}]}).to_string();
    let stale = server.request("PATCH", RECORD).header("content-type", "application/json");
    Answer::of(stale.header("godwit-seen", seen).body(remove)).await.problem(409, "stale-seen");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_score_under_an_idempotency_key_counts_once() {
    let dir = TempDir::new().unwrap();
    let mut server = Server::start(&lone_config(dir.path(), "")).await;
    let body = json!({"ops": [{"op": "zincr", "field": "top", "member": "ada", "by": 0.1}]}).to_string();
    for _ in 0..2 {
        for _ in 0..2 {
            let request = server.request("PATCH", RECORD).header("content-type", "application/json");
            Answer::of(request.header("idempotency-key", "once").body(body.clone())).await.json();
        }
        server.kill();
        server.restart().await;
    }
    assert_eq!(server.get(RECORD).await.json()["fields"]["top"], json!([["ada", 0.1]]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn distinct_members_are_estimated() {
    let dir = TempDir::new().unwrap();
    let mut server = Server::start(&lone_config(dir.path(), "")).await;
    for chunk in 0..5 {
        let members: Vec<String> = (chunk * 800..chunk * 800 + 1000).map(|i| format!("user-{i}")).collect();
        commit(&server, json!([{"op": "observe", "field": "listeners", "members": members}])).await.json();
    }
    // 4,200 distinct ones; four standard errors.
    let told = server.get(&format!("{RECORD}/listeners")).await.json()["value"].as_u64().unwrap();
    assert!((4_064..=4_336).contains(&told), "{told}");
    server.kill();
    server.restart().await;
    assert_eq!(
        server.get(&format!("{RECORD}/listeners?numbers=string")).await.json()["value"],
        told.to_string()
    );
    commit(&server, json!([{"op": "clear", "field": "listeners"}])).await.json();
    server.get(RECORD).await.problem(404, "not-found");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_expires_for_every_reader_and_begins_anew() {
    let dir = TempDir::new().unwrap();
    let mut server = Server::start(&lone_config(dir.path(), "")).await;
    board(&server).await;
    commit(&server, json!([{"op": "incr", "field": "plays", "by": 5}, {"op": "expire", "in_ms": 600}]))
        .await
        .json();
    eventually("the record expires", async || {
        let answer = server.get(RECORD).await;
        (answer.status == 404).then_some(())
    })
    .await;
    server.kill();
    server.restart().await;
    server.get(RECORD).await.problem(404, "not-found");
    assert_eq!(server.get("/v1/ns").await.json()["keys"], json!([]));
    server.get(&format!("{RECORD}/top?order=rank")).await.problem(404, "not-found");
    server.get(&format!("{RECORD}/top/ada")).await.problem(404, "not-found");
    // What is written afterwards stays, alone.
    commit(&server, json!([{"op": "incr", "field": "plays", "by": 1}, {"op": "persist"}])).await.json();
    assert_eq!(server.get(RECORD).await.json()["fields"], json!({"plays": 1}));
    assert_eq!(server.get("/v1/ns").await.json()["keys"], json!(["board"]));
}
