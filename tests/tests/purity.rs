//! The pure crates are pure, and crates import only in the direction that the design draws.
//!
//! Cargo is the witness: what a crate may touch follows from its dependency tree, and what the
//! standard library offers beyond that is banned by the crate's `clippy.toml`. Nothing here
//! compiles the crates.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

const PURE: [(&str, &str); 3] =
    [("godwit-core", "engine/core"), ("godwit-proto", "net/proto"), ("godwit-sim", "sim")];

/// Runtimes, sockets and files.
const IO: [&str; 7] = ["tokio", "quinn", "quinn-proto", "rocksdb", "librocksdb-sys", "mio", "socket2"];

/// Automerge alone may bring these: its random actor ids are never used, ids are given to it.
const ENTROPY: [&str; 4] = ["getrandom", "rand", "rand_core", "fastrand"];

/// TLS is rustls with ring alone.
const OTHER_TLS: [&str; 4] = ["aws-lc-rs", "aws-lc-sys", "openssl", "openssl-sys"];

/// Who may depend on whom, among our own crates. `godwit-tests` may see all, and nobody sees it.
const EDGES: [(&str, &[&str]); 6] = [
    ("godwit-core", &[]),
    ("godwit-proto", &["godwit-core"]),
    ("godwit-engine", &["godwit-core"]),
    ("godwit-net", &["godwit-proto", "godwit-core"]),
    ("godwit-sim", &["godwit-proto", "godwit-core"]),
    ("godwit-server", &["godwit-net", "godwit-engine", "godwit-sim", "godwit-proto", "godwit-core"]),
];

#[test]
fn pure_crates_reach_no_io() {
    for (name, _) in PURE {
        assert_none(normal_tree(name).paths_to(&IO, None));
    }
}

#[test]
fn pure_crates_reach_entropy_only_through_automerge() {
    for (name, _) in PURE {
        assert_none(normal_tree(name).paths_to(&ENTROPY, Some("automerge")));
    }
}

#[test]
fn net_never_sees_rocksdb_and_engine_never_sees_quinn() {
    assert_none(normal_tree("godwit-net").paths_to(&["rocksdb", "librocksdb-sys"], None));
    assert_none(normal_tree("godwit-engine").paths_to(&["quinn", "quinn-proto"], None));
}

/// The lock file holds every platform, feature and kind of dependency: more than any one tree.
#[test]
fn lock_file_has_no_tls_but_ring() {
    let lock = read("Cargo.lock");
    assert!(!locked(&lock, &["blake3"]).is_empty(), "Cargo.lock is not read as it should be");
    assert_none(locked(&lock, &OTHER_TLS));
}

#[test]
fn own_crates_import_as_designed() {
    let metadata = cargo(&["metadata", "--no-deps", "--offline", "--format-version", "1"]);
    let metadata = serde_json::from_str(&metadata).expect("cargo metadata prints JSON");
    let declared = own_edges(&metadata);
    assert!(declared.contains_key("godwit-tests"), "{declared:?}");
    assert_none(undesigned(&declared));
}

/// No tree shows the standard library: clippy watches that, as long as its configuration stands.
#[test]
fn pure_crates_ban_clocks_threads_and_random_order() {
    for (name, dir) in PURE {
        let config = read(&format!("{dir}/clippy.toml"));
        for path in [
            "std::time::Instant::now",
            "std::time::SystemTime::now",
            "std::thread::spawn",
            "std::thread::sleep",
            "std::collections::HashMap",
            "std::hash::RandomState",
        ] {
            assert!(
                config.contains(&format!("{{ path = \"{path}\", reason = ")),
                "the clippy.toml of {name} does not ban {path}"
            );
        }
    }
}

/// A dependency graph as `cargo tree --prefix depth` prints it. Nodes are `name vX.Y.Z`.
#[derive(Default)]
struct Tree {
    roots: Vec<String>,
    edges: BTreeMap<String, BTreeSet<String>>,
}

impl Tree {
    /// Cargo prints a subtree once and `(*)` where it repeats; as edges it is whole again.
    fn parse(text: &str) -> Tree {
        let mut tree = Tree::default();
        let mut ancestors: Vec<String> = Vec::new();
        for line in text.lines().filter(|line| !line.is_empty()) {
            let digits = line.bytes().take_while(u8::is_ascii_digit).count();
            let depth: usize = line[..digits].parse().expect("a line starts with its depth");
            let mut words = line[digits..].split(' ');
            let name = words.next().expect("a name");
            let version = words.next().expect("a version");
            let node = format!("{name} {version}");
            ancestors.truncate(depth);
            match ancestors.last() {
                Some(parent) => {
                    tree.edges.entry(parent.clone()).or_default().insert(node.clone());
                }
                None => tree.roots.push(node.clone()),
            }
            ancestors.push(node);
        }
        tree
    }

    /// One path to each of `names` that some root reaches without passing `gate`.
    fn paths_to(&self, names: &[&str], gate: Option<&str>) -> Vec<String> {
        let mut found = Vec::new();
        let mut seen = BTreeSet::new();
        let mut open: Vec<Vec<&str>> = self.roots.iter().map(|root| vec![root.as_str()]).collect();
        while let Some(path) = open.pop() {
            let node = path[path.len() - 1];
            if Some(name_of(node)) == gate || !seen.insert(node) {
                continue;
            }
            if names.contains(&name_of(node)) {
                found.push(path.join(" > "));
            }
            for child in self.edges.get(node).into_iter().flatten() {
                open.push(path.iter().copied().chain([child.as_str()]).collect());
            }
        }
        found
    }
}

fn name_of(node: &str) -> &str {
    node.split(' ').next().unwrap_or(node)
}

fn normal_tree(package: &str) -> Tree {
    // Not `--offline`: with `--locked` Cargo asks the network only for what is not downloaded yet,
    // as the other crates' dependencies may be when this package is tested alone.
    let text = cargo(&["tree", "--locked", "-e", "normal", "-p", package, "--prefix", "depth"]);
    let tree = Tree::parse(&text);
    assert_eq!(tree.roots.len(), 1, "{text}");
    assert_eq!(name_of(&tree.roots[0]), package);
    tree
}

/// Which of `names` the lock file names.
fn locked(lock: &str, names: &[&str]) -> Vec<String> {
    let named: BTreeSet<&str> = lock.lines().collect();
    let mut found: Vec<String> = names.iter().map(|name| format!("name = \"{name}\"")).collect();
    found.retain(|line| named.contains(line.as_str()));
    found
}

/// Each of our crates with those of ours that it declares, of any kind and for any target.
fn own_edges(metadata: &Value) -> BTreeMap<String, BTreeSet<String>> {
    let text = |value: &Value| value.as_str().expect("a string").to_owned();
    let list = |value: &Value| value.as_array().expect("an array").clone();
    list(&metadata["packages"])
        .iter()
        .map(|package| {
            let dependencies = list(&package["dependencies"]);
            let own = dependencies.iter().map(|dependency| text(&dependency["name"]));
            (text(&package["name"]), own.filter(|name| name.starts_with("godwit-")).collect())
        })
        .collect()
}

fn undesigned(declared: &BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
    let designed = BTreeMap::from(EDGES);
    let mut found = Vec::new();
    for (package, dependencies) in declared {
        if package == "godwit-tests" {
            continue;
        }
        match designed.get(package.as_str()) {
            None => found.push(format!("{package} has no row in EDGES")),
            Some(allowed) => {
                let extra = dependencies.iter().filter(|name| !allowed.contains(&name.as_str()));
                found.extend(extra.map(|name| format!("{package} -> {name}")));
            }
        }
    }
    found
}

fn cargo(arguments: &[&str]) -> String {
    let output =
        Command::new(env!("CARGO")).args(arguments).current_dir(root()).output().expect("cargo runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "cargo {}: {errors}", arguments.join(" "));
    String::from_utf8(output.stdout).expect("cargo prints UTF-8")
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this crate is a directory of the workspace")
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn assert_none(found: Vec<String>) {
    assert!(found.is_empty(), "\n{}\n", found.join("\n"));
}

mod the_checks_can_fail {
    use super::*;

    const TREE: &str = "0godwit-core v0.1.0 (/somewhere)\n\
        1automerge v0.7.0\n2rand v0.9.0\n3rand_core v0.9.0\n3getrandom v0.3.0\n\
        1blake3 v1.8.7\n2cfg-if v1.0.5\n";

    #[test]
    fn a_tree_with_tokio_deep_inside_is_found() {
        let tree =
            Tree::parse(&format!("{TREE}2hyper v1.0.0 (proc-macro)\n3tokio v1.54.1\n1cfg-if v1.0.5\n"));
        assert_eq!(
            tree.paths_to(&IO, None),
            ["godwit-core v0.1.0 > blake3 v1.8.7 > hyper v1.0.0 > tokio v1.54.1"]
        );
        assert_none(Tree::parse(TREE).paths_to(&IO, None));
    }

    #[test]
    fn entropy_is_free_only_behind_the_gate() {
        assert_none(Tree::parse(TREE).paths_to(&ENTROPY, Some("automerge")));
        assert_eq!(Tree::parse(TREE).paths_to(&ENTROPY, None).len(), 3);
    }

    /// Cargo prints the subtree below automerge, and only `(*)` where a second crate reaches it.
    #[test]
    fn entropy_beside_the_gate_is_found_in_a_repeated_subtree() {
        let tree = Tree::parse(&format!("{TREE}1proptest v1.12.0\n2rand v0.9.0 (*)\n"));
        assert_eq!(
            tree.paths_to(&["getrandom"], Some("automerge")),
            ["godwit-core v0.1.0 > proptest v1.12.0 > rand v0.9.0 > getrandom v0.3.0"]
        );
    }

    #[test]
    fn another_tls_in_the_lock_file_is_found() {
        let lock = "[[package]]\nname = \"aws-lc-sys\"\nversion = \"0.30.0\"\n";
        assert_eq!(locked(lock, &OTHER_TLS), ["name = \"aws-lc-sys\""]);
    }

    #[test]
    fn an_edge_against_the_arrows_is_found() {
        let metadata = serde_json::json!({ "packages": [
            { "name": "godwit-core", "dependencies": [{ "name": "godwit-proto" }, { "name": "csv" }] },
            { "name": "godwit-net", "dependencies": [{ "name": "godwit-core" }] },
            { "name": "godwit-extra", "dependencies": [] },
            { "name": "godwit-tests", "dependencies": [{ "name": "godwit-server" }] },
        ]});
        assert_eq!(
            undesigned(&own_edges(&metadata)),
            ["godwit-core -> godwit-proto", "godwit-extra has no row in EDGES"]
        );
    }
}
