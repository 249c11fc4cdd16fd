//! The process: what it refuses to start with, how it ends, and what is there when it starts again.

mod support;

use std::io::Write;
use std::os::unix::fs::PermissionsExt;

use support::{Cluster, Server, eventually, lone_config, read_all, run, status_line};
use tempfile::TempDir;

/// Runs `godwit serve`, which must refuse to start and say these words.
fn refuses(config: &std::path::Path, words: &[&str]) {
    let (status, said) = run(&["serve", "--config", config.to_str().unwrap()]);
    assert_eq!(status.code(), Some(1), "{said}");
    for word in words {
        assert!(said.contains(word), "{word:?} is not in: {said}");
    }
}

#[test]
fn what_cannot_work_is_refused_with_a_reason() {
    let dir = TempDir::new().unwrap();
    let config = |more: &str| lone_config(dir.path(), more);
    refuses(&dir.path().join("absent.toml"), &["absent.toml", "No such file"]);
    refuses(&config("[http2]\n"), &["lone.toml", "unknown field `http2`"]);
    refuses(&config("[limits]\nbody = 1\n"), &["unknown field `body`", "body_bytes"]);
    refuses(&config("[limits]\nops = 0\n"), &["limits.ops"]);
    refuses(&config("]"), &["lone.toml", "TOML parse error"]);
    let replication =
        "[replication]\nlisten = \"127.0.0.1:0\"\nca = \"x/ca.pem\"\ncertificate = \"c\"\nkey = \"k\"\n";
    refuses(&config(replication), &["x/ca.pem", "No such file"]);
}

#[test]
fn the_api_is_not_shown_to_others() {
    let dir = TempDir::new().unwrap();
    let config = lone_config(dir.path(), "");
    let text = std::fs::read_to_string(&config).unwrap().replace("127.0.0.1:0", "0.0.0.0:0");
    std::fs::write(&config, text).unwrap();
    refuses(&config, &["0.0.0.0:0", "127.0.0.1", "--insecure"]);
    assert!(!dir.path().join("lone-data").exists(), "a refusal leaves nothing behind");
}

#[tokio::test]
async fn unless_the_operator_insists() {
    let dir = TempDir::new().unwrap();
    let config = lone_config(dir.path(), "");
    let text = std::fs::read_to_string(&config).unwrap().replace("127.0.0.1:0", "[::]:0");
    std::fs::write(&config, text).unwrap();
    let server = Server::start_with(&config, &["--insecure"]).await;
    assert_eq!(server.get("/healthz").await.status, 200);
}

#[tokio::test]
async fn a_data_directory_has_one_process_and_one_owner() {
    let dir = TempDir::new().unwrap();
    let config = lone_config(dir.path(), "");
    let mut server = Server::start(&config).await;
    refuses(&config, &["another godwit process", "lone-data"]);
    assert_eq!(server.get("/readyz").await.status, 200);
    server.kill();
    let text = std::fs::read_to_string(&config).unwrap();
    for (from, to) in [
        ("name = \"lone\"", "name = \"other\""),
        ("cluster = \"test\"", "cluster = \"other\""),
        ("= 8\n", "= 16\n"),
    ] {
        std::fs::write(&config, text.replacen(from, to, 1)).unwrap();
        refuses(&config, &["lone-data"].map(|_| "the data directory"));
    }
    std::fs::write(&config, text).unwrap();
    server.restart().await;
}

#[tokio::test]
async fn sigterm_ends_it_well_and_data_stays() {
    let dir = TempDir::new().unwrap();
    let mut server = Server::start(&lone_config(dir.path(), "")).await;
    assert_eq!(server.put("/v1/ns/k/before", "1").await.status, 200);

    // A request that is under way when the signal comes is finished.
    let mut half = server.half_put("/v1/ns/k/during", 4);
    server.terminate();
    eventually("the signal is taken", async || server.log().contains("SIGTERM").then_some(())).await;
    half.write_all(b"\"ab\"").unwrap();
    let answer = read_all(half);
    assert_eq!(status_line(&answer), "HTTP/1.1 200 OK", "{answer}");

    let status = server.exit_status().await;
    assert_eq!(status.code(), Some(0), "{}", server.log());
    server.restart().await;
    let record = server.get("/v1/ns/k").await.json();
    assert_eq!(record["fields"], serde_json::json!({"before": 1, "during": "ab"}));
}

#[tokio::test]
async fn a_node_with_all_links_down_is_ready() {
    let cluster = Cluster::new(&["a", "b"]);
    let server = cluster.start("a").await;
    assert_eq!(server.put("/v1/ns/k/f", "1").await.status, 200);
    assert_eq!(server.get("/readyz").await.status, 200);
    let seen = server.cluster().await;
    assert_eq!(seen["converged"], false);
    assert_eq!(seen["links"][0]["up"], false);
}

#[test]
fn certificates_are_made_once_and_kept_private() {
    let dir = TempDir::new().unwrap();
    let ca = dir.path().join("ca");
    let ca = ca.to_str().unwrap();
    let issue = || run(&["ca", "issue", "--dir", ca, "--node", "eu-1"]);
    let (status, said) = issue();
    assert!(!status.success() && said.contains("godwit ca init"), "{said}");
    assert!(run(&["ca", "init", "--cluster", "test", "--dir", ca]).0.success());
    assert!(issue().0.success());
    let (status, said) = issue();
    assert!(!status.success() && said.contains("not overwritten"), "{said}");
    let (status, said) = run(&["ca", "init", "--cluster", "test", "--dir", ca]);
    assert!(!status.success() && said.contains("not overwritten"), "{said}");
    assert!(!run(&["ca", "issue", "--dir", ca, "--node", "../x"]).0.success());
    for key in ["ca.key", "eu-1.key"] {
        let mode = std::fs::metadata(dir.path().join("ca").join(key)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{key}");
    }
}

#[test]
fn configurations_can_be_checked() {
    let cluster = Cluster::new(&["a", "b"]);
    let check = || run(&["check-config", cluster.config("a").to_str().unwrap()]);
    assert!(check().0.success());
    assert!(!cluster.path("a-data").exists(), "checking starts nothing");
    std::fs::copy(cluster.path("ca/b.pem"), cluster.path("ca/a.pem")).unwrap();
    let (status, said) = check();
    assert!(!status.success() && said.contains("[replication]"), "{said}");
    std::fs::copy(cluster.path("ca/b.key"), cluster.path("ca/a.key")).unwrap();
    let (status, said) = check();
    assert!(!status.success() && said.contains("not valid for the name"), "{said}");
}
