//! `godwit export` and `godwit import` against real nodes: what is imported reads as what was exported, increments count once
//! however an import breaks off, and what is wrong is refused with its line.

mod support;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use godwit_core::rng::Rng;
use serde_json::{Value, json};
use support::{Answer, Cluster, Server, converged, eventually, godwit, lone_config, udp_port};
use tempfile::TempDir;

/// Members of the large set: several pages.
const LARGE: usize = 2_500;

struct Ended {
    code: Option<i32>,
    out: String,
    told: String,
}

/// Runs the binary with an input; its exit status, output, and what it told.
fn run(args: &[&str], input: Option<&Path>) -> Ended {
    let input = input.map_or(Stdio::null(), |path| Stdio::from(std::fs::File::open(path).unwrap()));
    let ended = godwit().args(args).stdin(input).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ended { code: ended.status.code(), out: text(ended.stdout), told: text(ended.stderr) }
}

fn export(server: &Server, namespace: &str, more: &[&str]) -> String {
    let url = server.url("");
    let ended = run(&[&["export", &url, namespace], more].concat(), None);
    assert_eq!(ended.code, Some(0), "{}", ended.told);
    ended.out
}

fn import(server: &Server, namespace: &str, file: &Path, more: &[&str]) -> Ended {
    let url = server.url("");
    run(&[&["import", &url, namespace], more].concat(), Some(file))
}

fn file(dir: &TempDir, text: &str) -> PathBuf {
    let path = dir.path().join("export.jsonl");
    std::fs::write(&path, text).unwrap();
    path
}

/// All lines but the header, which names node and time.
fn body(export: &str) -> Vec<&str> {
    export.lines().skip(1).collect()
}

async fn batch(server: &Server, namespace: &str, body: &Value) {
    Answer::of(server.request("POST", &format!("/v1/{namespace}")).body(body.to_string())).await.json();
}

async fn token(server: &Server, path: &str) -> String {
    server.get(path).await.headers["godwit-token"].to_str().unwrap().to_owned()
}

/// Records of all types, with what is hard to keep.
async fn fill(server: &Server, rng: &mut Rng) {
    let values = [
        "null",
        "false",
        "\"\\u00e9\\n\"",
        "123456789012345678901234567890123",
        "1.50e+7",
        r#"{"b":1.0,"a":[{}, []]}"#,
        "-0",
    ];
    let keys = ["plain", "{tag}/a", "{tag}/b", "sp ace", "per%cent", "sla/sh", "quo\"te", "é", "+"];
    for i in 0..60 {
        let key = format!("{}{i}", keys[rng.below(keys.len() as u64) as usize]);
        let mut ops = Vec::new();
        for field in 0..1 + rng.below(8) {
            ops.push(match rng.below(5) {
                0 => {
                    let by = [0, 1, -7, i64::MAX, i64::MIN][rng.below(5) as usize];
                    format!(r#"{{"op":"incr","field":"counter {field}","by":{by}}}"#)
                }
                1 => format!(r#"{{"op":"enable","field":"fl/ag{field}"}}"#),
                2 => format!(r#"{{"op":"add","field":"set{field}","members":["a","\"","m{i}","ü/%"]}}"#),
                _ => {
                    let value = values[rng.below(values.len() as u64) as usize];
                    format!(r#"{{"op":"set","field":"register{field}","value":{value}}}"#)
                }
            });
        }
        let write = format!(r#"{{"writes":[{{"key":{},"ops":[{}]}}]}}"#, json!(key), ops.join(","));
        Answer::of(server.request("POST", "/v1/app").body(write)).await.json();
    }
    // Siblings: one before a token, the others by clients that saw the same.
    let seen = token(server, "/v1/app?limit=1").await;
    for value in ["1", "1.0", "\"x\"", "null", "[123456789012345678901234567890]"] {
        let put = server.request("PUT", "/v1/app/contested/title").header("godwit-seen", &seen);
        Answer::of(put.body(value)).await.json();
    }
    batch(
        server,
        "app",
        &json!({"writes": [{"key": "contested", "ops": [{"op": "incr", "field": "plays", "by": 3}]}]}),
    )
    .await;
    let members: Vec<String> = (0..LARGE).map(|i| format!("m{i:05}")).collect();
    for members in members.chunks(1_000) {
        let ops = json!([{"op": "add", "field": "many", "members": members}, {"op": "enable", "field": "z"}]);
        batch(server, "app", &json!({"writes": [{"key": "large", "ops": ops}]})).await;
    }
    // More fields and bytes than one line holds.
    let ops: Vec<Value> = (0..1_000)
        .map(|i| json!({"op": "set", "field": format!("f{i}"), "value": "x".repeat(if i < 2 { 600_000 } else { 3 })}))
        .collect();
    batch(server, "app", &json!({"writes": [{"key": "wide", "ops": ops}]})).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scores_observations_and_times_of_expiry_are_kept() {
    let (here, there) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let from = Server::start(&lone_config(here.path(), "")).await;
    let to = Server::start(&lone_config(there.path(), "")).await;
    let mut rng = Rng::new(20_261);
    let mut hard = [0.1, -0.0, 5e-324, f64::MAX, f64::MIN, 31.245270191439438, 1.0e23].into_iter();
    let mut score = || hard.next().unwrap_or_else(|| f64::from_bits(rng.below(0x7FE0_0000_0000_0000)));
    for part in 0..5 {
        let members = (0..LARGE / 5).map(|i| format!("m{part}/{i} \"ü")).collect::<Vec<_>>();
        let scores: serde_json::Map<_, _> =
            members.iter().map(|member| (member.clone(), json!(score()))).collect();
        let ops = json!([
            {"op": "zadd", "field": "top", "scores": scores},
            {"op": "observe", "field": "seen", "members": members},
            {"op": "enable", "field": "z"},
        ]);
        batch(&from, "app", &json!({"writes": [{"key": "large", "ops": ops}]})).await;
    }
    let ops = json!([
        {"op": "zincr", "field": "top", "member": "a", "by": 0.25},
        {"op": "zincr", "field": "top", "member": "a", "by": 0.5},
        {"op": "observe", "field": "seen", "members": ["a"]},
        {"op": "incr", "field": "plays", "by": 2},
        {"op": "expire", "in_ms": 3_600_000},
    ]);
    batch(&from, "app", &json!({"writes": [{"key": "small", "ops": ops}, {"key": "soon", "ops": ops}]}))
        .await;
    // Siblings are written in commits of their own.
    let seen = token(&from, "/v1/app?limit=1").await;
    for value in ["1", "2"] {
        let put = from.request("PUT", "/v1/app/soon/title").header("godwit-seen", &seen);
        Answer::of(put.body(value)).await.json();
    }
    assert_eq!(from.get("/v1/app/small/top").await.json()["value"], json!([["a", 0.75]]));
    assert!(from.get("/v1/app/small").await.json().get("expires").is_none());

    let exported = export(&from, "app", &[]);
    let path = file(&here, &exported);
    let ended = import(&to, "copy", &path, &[]);
    assert_eq!(ended.code, Some(0), "{}", ended.told);
    assert_eq!(body(&export(&to, "copy", &[])), body(&exported));
    for path in
        ["large/top?order=rank&limit=1000", "large/top?limit=1000", "large/seen", "small/seen?view=ranks"]
    {
        let copy = to.get(&format!("/v1/copy/{path}")).await.body;
        assert_eq!(copy, from.get(&format!("/v1/app/{path}")).await.body, "{path}");
    }
    assert_eq!(full_view(&to, "/v1/copy/small").await, full_view(&from, "/v1/app/small").await);
    assert!(full_view(&to, "/v1/copy/small").await.contains("\"expires\":\"20"));
    // The same members again are counted already, and a score that is imported is the one that counts.
    let again = json!([{"op": "observe", "field": "seen", "members": ["m0/1 \"ü", "m4/7 \"ü"]}]);
    batch(&to, "copy", &json!({"writes": [{"key": "large", "ops": again}]})).await;
    assert_eq!(to.get("/v1/copy/large/seen").await.body, from.get("/v1/app/large/seen").await.body);
    let ops = json!([{"op": "zadd", "field": "top", "scores": {"a": 7}}, {"op": "persist"}]);
    batch(&to, "copy", &json!({"writes": [{"key": "small", "ops": ops}]})).await;
    let ended = import(&to, "copy", &path, &["--replace"]);
    assert_eq!(ended.code, Some(0), "{}", ended.told);
    assert_eq!(body(&export(&to, "copy", &[])), body(&exported));

    // What has expired by the time of the import is not there, whatever the record consists of.
    let of = |line: &str, key: &str| line.starts_with(&format!("{{\"key\":\"{key}\""));
    let expired: Vec<String> = exported
        .lines()
        .map(|line| match of(line, "soon") {
            true => {
                let (before, after) = line.split_once("\"expires\":\"").unwrap();
                format!("{before}\"expires\":\"2020-02-29T23:59:59.999Z{}", &after[24..])
            }
            false => line.to_owned(),
        })
        .collect();
    let path = file(&here, &expired.join("\n"));
    let ended = import(&to, "late", &path, &[]);
    assert_eq!(ended.code, Some(0), "{}", ended.told);
    to.get("/v1/late/soon").await.problem(404, "not-found");
    assert_eq!(to.get("/v1/late").await.json()["keys"], json!(["large", "small"]));
    let path = file(&here, &exported.replace("\"expires\":\"20", "\"expires\":\"x"));
    let ended = import(&to, "wrong", &path, &[]);
    assert!(ended.code == Some(1) && ended.told.contains("`at` must be a time"), "{}", ended.told);
}

/// The full view of a record without who wrote it when, as text: equal texts are equal values, byte by byte.
async fn full_view(server: &Server, path: &str) -> String {
    let answer = server.get(&format!("{path}?view=full")).await;
    let mut text = String::new();
    for (i, part) in answer.body.split(r#""updated":{"#).enumerate() {
        text += if i == 0 { part } else { part.split_once('}').unwrap().1 };
    }
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_imported_reads_as_what_was_exported() {
    let (here, there) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let from = Server::start(&lone_config(here.path(), "")).await;
    let to = Server::start(&lone_config(there.path(), "")).await;
    let mut rng = Rng::new(20_260);
    fill(&from, &mut rng).await;

    let exported = export(&from, "app", &["--quiet"]);
    let path = file(&here, &exported);
    let header: Value = serde_json::from_str(exported.lines().next().unwrap()).unwrap();
    assert_eq!(
        (&header["godwit_export"], &header["namespace"], &header["node"]),
        (&1.into(), &"app".into(), &"lone".into())
    );
    let records = body(&exported)
        .iter()
        .filter(|line| line.starts_with("{\"key\"") && !line.contains("\"continues\""))
        .count();
    assert_eq!(records, 63);
    let continued = |key: &str| {
        body(&exported)
            .iter()
            .filter(|line| line.starts_with(&format!("{{\"key\":\"{key}\",\"continues\"")))
            .count()
    };
    assert!(
        continued("large") == 2 && continued("wide") >= 2,
        "{} {}",
        continued("large"),
        continued("wide")
    );

    // Into another namespace of the same node, and into another cluster.
    for (server, namespace) in [(&from, "copy"), (&to, "app")] {
        let ended = import(server, namespace, &path, &[]);
        assert_eq!(ended.code, Some(0), "{}", ended.told);
        assert!(ended.told.contains("imported 63 records"), "{}", ended.told);
        assert_eq!(body(&export(server, namespace, &[])), body(&exported));
        for key in ["contested", "large", "wide"] {
            let copy = full_view(server, &format!("/v1/{namespace}/{key}")).await;
            assert_eq!(copy, full_view(&from, &format!("/v1/app/{key}")).await);
        }
        let size = server.get(&format!("/v1/{namespace}/large/many?view=size")).await.json();
        assert_eq!(size["size"], LARGE);
    }
    let siblings = to.get("/v1/app/contested/title?view=full").await.json()["siblings"].clone();
    assert_eq!(siblings.as_array().unwrap().len(), 4);

    // A namespace with records is not written to by accident.
    let ended = import(&to, "app", &path, &[]);
    assert!(ended.code == Some(1) && ended.told.contains("has records already"), "{}", ended.told);
    // What was changed since goes, also fields that the export does not have; records that it does not have stay.
    let ops = json!([{"op": "incr", "field": "plays", "by": 100}, {"op": "enable", "field": "later"}]);
    batch(&to, "app", &json!({"writes": [{"key": "contested", "ops": ops}, {"key": "zzz", "ops": [{"op": "enable", "field": "f"}]}]})).await;
    let ended = import(&to, "app", &path, &["--replace", "--in-flight", "8"]);
    assert_eq!(ended.code, Some(0), "{}", ended.told);
    to.delete("/v1/app/zzz").await.json();
    assert_eq!(body(&export(&to, "app", &[])), body(&exported));
    // Counters add up, and nothing else changes.
    let ended = import(&to, "app", &path, &["--merge"]);
    assert_eq!(ended.code, Some(0), "{}", ended.told);
    assert_eq!(to.get("/v1/app/contested/plays").await.json()["value"], 6);
    assert_eq!(to.get("/v1/app/contested/title").await.body, from.get("/v1/app/contested/title").await.body);

    // Parts, by prefix and after a key.
    let tagged = export(&from, "app", &["--prefix", "{tag}/"]);
    assert!(
        body(&tagged).len() > 2
            && body(&tagged)
                .iter()
                .all(|line| line.starts_with("{\"key\":\"{tag}/") || line.starts_with("{\"end\""))
    );
    let rest = export(&from, "app", &["--after", "large"]);
    assert!(!rest.contains("\"large\",") && rest.contains("{\"key\":\"wide\""));
}

/// An export of counters, each 1 but for one record.
fn counters(count: usize) -> String {
    let mut text = String::from(
        "{\"godwit_export\":1,\"cluster\":\"c\",\"node\":\"n\",\"namespace\":\"ns\",\"time\":\"t\"}\n",
    );
    for i in 0..count {
        writeln!(text, r#"{{"key":"k{i:06}","fields":[{{"field":"n","type":"counter","value":1}},{{"field":"s","type":"register","value":1,"siblings":[2]}}]}}"#).unwrap();
    }
    text + &format!("{{\"end\":{{\"records\":{count},\"lines\":{count}}}}}\n")
}

/// Whether every record is there and counts once.
async fn check_counters(server: &Server, namespace: &str, count: usize) {
    let keys: Vec<String> = (0..count).map(|i| format!("k{i:06}")).collect();
    for keys in keys.chunks(1_000) {
        let reads = json!({"reads": keys}).to_string();
        let answer = Answer::of(server.request("POST", &format!("/v1/{namespace}")).body(reads)).await.json();
        for record in answer["records"].as_array().unwrap() {
            assert_eq!((&record["fields"]["n"], &record["fields"]["s"]), (&1.into(), &1.into()), "{record}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_import_that_was_killed_is_resumed() {
    const COUNT: usize = 4_500;
    let dir = TempDir::new().unwrap();
    let server = Server::start(&lone_config(dir.path(), "")).await;
    let text = counters(COUNT);
    let path = file(&dir, &text);
    let (url, log) = (server.url(""), dir.path().join("import.log"));
    for (namespace, more) in [("plain", &[][..]), ("replace", &["--replace"])] {
        let mut command = godwit();
        command.args(["import", &url, namespace, "--in-flight", "2"]).args(more);
        let errors = std::fs::File::create(&log).unwrap();
        let mut child = command.stdin(Stdio::piped()).stderr(errors).spawn().unwrap();
        // The rest never comes.
        let half: usize = text.lines().take(3_600).map(|line| line.len() + 1).sum();
        child.stdin.as_mut().unwrap().write_all(&text.as_bytes()[..half]).unwrap();
        let told = eventually("the import tells how to resume it", async || {
            let told = std::fs::read_to_string(&log).unwrap();
            let last = told.lines().rev().find_map(|line| line.split_once("--resume "))?.1.to_owned();
            // The line of a batch that begins later than the first.
            let (_, line) = last.split_once(':')?;
            (line.parse::<u64>().unwrap() > 1_000).then_some(last)
        })
        .await;
        child.kill().unwrap();
        child.wait().unwrap();
        let (name, line) = told.split_once(':').unwrap();
        assert!(line.parse::<u64>().unwrap() <= 3_600, "{told}");

        let resume = |from: &str| import(&server, namespace, &path, &[&["--resume", from], more].concat());
        let ended = resume(&told);
        assert_eq!(ended.code, Some(0), "{}", ended.told);
        check_counters(&server, namespace, COUNT).await;
        // All of it once more, as if everything had been in flight.
        let ended = resume(&format!("{name}:1"));
        assert_eq!(ended.code, Some(0), "{}", ended.told);
        check_counters(&server, namespace, COUNT).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_import_outlasts_a_crash_of_its_node() {
    const COUNT: usize = 3_500;
    let dir = TempDir::new().unwrap();
    let config = lone_config(dir.path(), "");
    // The node must come back where it was.
    let listen = format!("listen = \"127.0.0.1:{}\"", udp_port());
    let text = std::fs::read_to_string(&config).unwrap().replace("listen = \"127.0.0.1:0\"", &listen);
    std::fs::write(&config, text).unwrap();
    let mut server = Server::start(&config).await;
    let mut command = godwit();
    command.args(["import", &server.url(""), "app", "--quiet"]).stdin(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let text = counters(COUNT);
    let half: usize = text.lines().take(2_500).map(|line| line.len() + 1).sum();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(&text.as_bytes()[..half]).unwrap();
    eventually("something is imported", async || {
        let listed = server.get("/v1/app?limit=1").await.json();
        (!listed["keys"].as_array().unwrap().is_empty()).then_some(())
    })
    .await;
    server.kill();
    stdin.write_all(&text.as_bytes()[half..]).unwrap();
    drop(stdin);
    server.restart().await;
    let status = eventually("the import ends", async || child.try_wait().unwrap()).await;
    assert_eq!(status.code(), Some(0));
    check_counters(&server, "app", COUNT).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_is_refused_with_its_line() {
    let dir = TempDir::new().unwrap();
    let server = Server::start(&lone_config(dir.path(), "[limits]\nops = 30\nmembers = 300\n")).await;
    let whole = counters(1_500);
    let lines: Vec<&str> = whole.lines().collect();
    let with = |at: usize, line: &str| {
        let mut changed = lines.clone();
        changed[at - 1] = line;
        changed.join("\n")
    };
    let clash = r#"{"key":"clash","fields":[{"field":"f","type":"flag"}]}"#;
    batch(
        &server,
        "ns1",
        &json!({"writes": [{"key": "clash", "ops": [{"op": "incr", "field": "f", "by": 1}]}]}),
    )
    .await;
    let cases: [(&str, String, i32, &str); 6] = [
        ("ns0", with(1_200, "{\"key\":"), 1, "line 1200: not a record"),
        ("ns1", with(1_300, clash), 1, "line 1300, record \"clash\": field \"f\" is a counter here"),
        (
            "ns2",
            with(7, r#"{"key":"..","fields":[{"field":"f","type":"flag"}]}"#),
            1,
            "line 7, record \"..\"",
        ),
        ("ns3", with(8, r#"{"key":"k","fields":[{"field":"f","type":"graph"}]}"#), 1, "\"graph\""),
        ("ns4", lines[..1_400].join("\n"), 3, "no end line"),
        (
            "ns5",
            lines[..1_400].join("\n") + "\n{\"end\":{\"records\":1500,\"lines\":1500}}\n",
            1,
            "lines are missing",
        ),
    ];
    for (namespace, text, code, says) in cases {
        let ended = import(&server, namespace, &file(&dir, &text), &["--merge"]);
        assert_eq!(
            (ended.code, ended.told.contains(says)),
            (Some(code), true),
            "{namespace}: {}",
            ended.told
        );
        // What broke off is resumed once the file is mended.
        if let Some((_, resume)) = ended.told.split_once("add --resume ") {
            let resume: String = resume.chars().take_while(|c| c.is_ascii_hexdigit() || *c == ':').collect();
            let (path, resume) = (file(&dir, &whole), resume.trim_end_matches(':'));
            let mut ended = import(&server, namespace, &path, &["--merge", "--resume", resume]);
            if namespace == "ns1" {
                // Parts of that batch are committed, and the mended line would change one of them.
                assert!(ended.told.contains("/problems/idempotency-key-reused"), "{}", ended.told);
                ended = import(&server, namespace, &path, &["--replace", "--resume", resume]);
            }
            assert_eq!(ended.code, Some(0), "{namespace}: {}", ended.told);
            check_counters(&server, namespace, 1_500).await;
        }
    }
    // Batches that this node's limits do not allow are taken apart.
    let mut large = String::from(lines[0]);
    for i in 0..40 {
        let members: Vec<String> = (0..200).map(|m| format!("{m}")).collect();
        let fields = json!([{"field": "s", "type": "set", "members": members}, {"field": "n", "type": "counter", "value": 1}]);
        write!(large, "\n{}", json!({"key": format!("{{t}}{i}"), "fields": fields})).unwrap();
    }
    let ended = import(&server, "limits", &file(&dir, &large), &[]);
    assert_eq!(ended.code, Some(3), "{}", ended.told);
    let listed = server.get("/v1/limits").await.json();
    assert_eq!(listed["keys"].as_array().unwrap().len(), 40);
    for i in [0, 39] {
        assert_eq!(server.get(&format!("/v1/limits/%7Bt%7D{i}/n")).await.json()["value"], 1);
        assert_eq!(server.get(&format!("/v1/limits/%7Bt%7D{i}/s?view=size")).await.json()["size"], 200);
    }
    // Nobody there, and no such address.
    for url in ["http://127.0.0.1:9", "ftp://x"] {
        assert_eq!(run(&["import", url, "ns"], None).code, Some(1));
        assert_eq!(run(&["export", url, "ns"], None).code, Some(1));
    }
    assert_eq!(run(&["export", &server.url(""), "Not-A-Name"], None).code, Some(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_types_of_one_name_are_exported_and_left_out_if_asked() {
    let cluster = Cluster::new(&["a", "b"]);
    let mut a = cluster.start("a").await;
    a.patch("/v1/app/k", r#"{"ops":[{"op":"incr","field":"f","by":2}]}"#).await.json();
    a.kill();
    let b = cluster.start("b").await;
    b.patch("/v1/app/k", r#"{"ops":[{"op":"set","field":"f","value":"x"}]}"#).await.json();
    a.restart().await;
    converged(&[&a, &b]).await;

    let exported = export(&a, "app", &[]);
    let fields: Value = serde_json::from_str(exported.lines().nth(1).unwrap()).unwrap();
    let expected = json!([{"field": "f", "type": "counter", "value": 2}, {"field": "f", "type": "register", "value": "x", "shadowed": true}]);
    assert_eq!(fields["fields"], expected);
    let path = file(&cluster.dir, &exported);
    let ended = import(&b, "copy", &path, &[]);
    assert!(
        ended.code == Some(1) && ended.told.contains("line 2: ") && ended.told.contains("--drop-shadowed"),
        "{}",
        ended.told
    );
    assert_eq!(import(&b, "copy", &path, &["--drop-shadowed"]).code, Some(0));
    let types: BTreeSet<String> =
        [b.get("/v1/copy/k?view=full").await.json()["fields"]["f"]["type"].to_string()].into();
    assert_eq!(types, ["\"counter\"".to_owned()].into());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn documents_keep_their_changes() {
    let (here, there) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let from = Server::start(&lone_config(here.path(), "")).await;
    let to = Server::start(&lone_config(there.path(), "")).await;
    // More changes than a line holds, in few commits; and two small documents, one of them a sibling's beside it.
    let edit = |patch: Value| json!({"op": "edit", "field": "notes", "patch": patch});
    let begin =
        edit(json!([{"op": "add", "path": "/text", "value": "x"}, {"op": "add", "path": "/n", "value": 0}]));
    batch(
        &from,
        "app",
        &json!({"writes": [{"key": "small", "ops": [begin]}, {"key": "long", "ops": [begin]}]}),
    )
    .await;
    for part in 0..3 {
        let step = |n: usize| {
            edit(json!([{"op": "replace", "path": "/n", "value": part * 500 + n},
                {"op": "splice", "path": "/text", "index": n, "delete": 0, "insert": "é"}]))
        };
        let ops: Vec<Value> = (0..500).map(step).collect();
        batch(&from, "app", &json!({"writes": [{"key": "long", "ops": ops}]})).await;
    }
    let exported = export(&from, "app", &[]);
    assert!(exported.contains("\"continues\":true"), "the long one takes several lines");
    let path = file(&here, &exported);
    for _ in 0..2 {
        let ended = import(&to, "copy", &path, &["--merge"]);
        assert_eq!(ended.code, Some(0), "{}", ended.told);
        assert_eq!(body(&export(&to, "copy", &[])), body(&exported));
    }
    for path in ["small/notes", "long/notes"] {
        let copy = to.get(&format!("/v1/copy/{path}")).await;
        assert_eq!(copy.body, from.get(&format!("/v1/app/{path}")).await.body, "{path}");
    }

    // Edits of a copy are merged with what was exported, or replaced by it.
    let more = edit(json!([{"op": "add", "path": "/more", "value": true}]));
    batch(&to, "copy", &json!({"writes": [{"key": "small", "ops": [more]}]})).await;
    let ended = import(&to, "copy", &path, &["--merge"]);
    assert_eq!(ended.code, Some(0), "{}", ended.told);
    let merged = to.get("/v1/copy/small/notes").await.json()["value"].clone();
    assert_eq!(merged, json!({"text": "x", "n": 0, "more": true}));
    let ended = import(&to, "copy", &path, &["--replace"]);
    assert_eq!(ended.code, Some(0), "{}", ended.told);
    assert_eq!(body(&export(&to, "copy", &[])), body(&exported));
    assert_eq!(to.get("/v1/copy/small/notes").await.json()["value"], json!({"text": "x", "n": 0}));
}
