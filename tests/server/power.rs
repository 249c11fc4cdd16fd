//! Power losses: real nodes on a disk that keeps, when it ends, only what was synced ([`shim`](power/shim.c)).
//!
//! With `durability = "fsync"` nothing acknowledged is missing afterwards. With `"os"` what was acknowledged may be,
//! but the store opens and no peer holds a commit that its own node lost. Each test of what holds has a control in
//! which the disk lies about syncs of the write-ahead log: there the same checks must find a loss.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;
use support::{Cluster, Server, client, converged, eventually, lone_config};
use tempfile::TempDir;

/// What the shim's process ends with when it lost power.
const STATUS_LOST: i32 = 99;

const WRITERS: usize = 8;
const POWER_LOSSES: usize = 4;
const ACKED_PER_LOSS: usize = 700;
/// Reads show sets of up to 1,000 members.
const MEMBERS_MAX: usize = 1_000;

const OS: &str = "durability = \"os\"\n";

/// A node's disk.
struct Disk {
    shim: PathBuf,
    data: PathBuf,
    hold: PathBuf,
    /// Syncs of files whose names end so are lies.
    lie: Option<&'static str>,
}

impl Disk {
    /// Compiles the shim into a directory. `None` without a C compiler, which every machine that builds Godwit has.
    fn new(dir: &Path, node: &str) -> Option<Self> {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/server/power/shim.c");
        let shim = dir.join(format!("{node}-shim.so"));
        let mut compile = Command::new("cc");
        compile.args(["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-pthread", "-o"]);
        match compile.arg(&shim).arg(source).arg("-ldl").output() {
            Ok(output) => {
                assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
                let data = dir.join(format!("{node}-data"));
                Some(Self { shim, data, hold: dir.join(format!("{node}-hold")), lie: None })
            }
            Err(error) => {
                eprintln!("SKIPPED: a power loss cannot be simulated without the C compiler `cc`: {error}");
                None
            }
        }
    }

    async fn start(&self, config: &Path) -> Server {
        let mut environment = vec![
            ("LD_PRELOAD", self.shim.clone()),
            ("POWER_DIR", self.data.clone()),
            ("POWER_HOLD", self.hold.clone()),
        ];
        environment.extend(self.lie.map(|lie| ("POWER_LIE", PathBuf::from(lie))));
        Server::start_in(config, &[], &environment).await
    }

    /// The data directory is created in good order; what is written to its log from now on is never synced.
    async fn begin_to_lie(&mut self, config: &Path) {
        let mut server = self.start(config).await;
        server.terminate();
        assert!(server.exit_status().await.success());
        self.lie = Some(".log");
    }

    /// From now on no sync returns.
    fn hold_syncs(&self) {
        std::fs::write(&self.hold, "").unwrap();
    }

    async fn lose_power(&self, mut server: Server) {
        server.signal("USR1");
        let status = server.exit_status().await;
        assert_eq!(status.code(), Some(STATUS_LOST), "{}", server.log());
        if self.hold.exists() {
            std::fs::remove_file(&self.hold).unwrap();
        }
    }
}

/// One commit: a member, and a count of commits.
fn addition(member: &str) -> String {
    format!(
        r#"{{"ops":[{{"op":"add","field":"s","members":["{member}"]}},{{"op":"incr","field":"n","by":1}}]}}"#
    )
}

async fn add(server: &Server, set: &str, members: std::ops::Range<usize>) {
    for member in members {
        let answer = server.request("PATCH", &format!("/v1/ns/{set}")).body(addition(&format!("m{member}")));
        assert_eq!(answer.send().await.unwrap().status(), 200);
    }
}

/// The members of a set; their commits are there whole.
async fn members(server: &Server, set: &str) -> BTreeSet<String> {
    let answer = server.get(&format!("/v1/ns/{set}")).await;
    let fields = if answer.status == 404 { Value::Null } else { answer.json()["fields"].take() };
    let members: BTreeSet<_> = fields["s"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|member| member.as_str().unwrap().to_owned())
        .collect();
    assert_eq!(fields["n"].as_u64().unwrap_or(0), members.len() as u64, "half a commit in {set}");
    members
}

/// Adds members to a set until the node is gone; those that were acknowledged.
async fn write_until_gone(url: String, acked: Arc<AtomicUsize>) -> BTreeSet<String> {
    let client = client();
    let mut written = BTreeSet::new();
    for i in 0..MEMBERS_MAX {
        let member = format!("m{i}");
        let Ok(answer) = client.patch(&url).body(addition(&member)).send().await else { break };
        assert_eq!(answer.status(), 200, "a node that answers takes the write");
        written.insert(member);
        acked.fetch_add(1, Ordering::Relaxed);
    }
    written
}

/// Writes under load to one node that loses power again and again; how many writes were acknowledged, and which of
/// those are missing at the end.
async fn write_through_losses(disk: &Disk, config: &Path, losses: usize) -> (usize, Vec<String>) {
    let mut written: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for loss in 0..losses {
        let server = disk.start(config).await;
        let acked = Arc::new(AtomicUsize::new(0));
        let mut writers = Vec::new();
        for writer in 0..WRITERS {
            let set = format!("{loss}-{writer}");
            let writing = write_until_gone(server.url(&format!("/v1/ns/{set}")), Arc::clone(&acked));
            writers.push((set, tokio::spawn(writing)));
        }
        eventually("enough writes are acknowledged", async || {
            (acked.load(Ordering::Relaxed) >= ACKED_PER_LOSS).then_some(())
        })
        .await;
        disk.lose_power(server).await;
        for (set, writing) in writers {
            written.insert(set, writing.await.unwrap());
        }
    }
    let server = disk.start(config).await;
    let mut missing = Vec::new();
    for (set, written) in &written {
        let found = members(&server, set).await;
        missing.extend(written.difference(&found).map(|member| format!("{set}/{member}")));
    }
    (written.values().map(BTreeSet::len).sum(), missing)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fsync_loses_nothing_acknowledged() {
    let dir = TempDir::new().unwrap();
    let Some(disk) = Disk::new(dir.path(), "lone") else { return };
    let (acked, missing) = write_through_losses(&disk, &lone_config(dir.path(), ""), POWER_LOSSES).await;
    assert!(acked >= POWER_LOSSES * ACKED_PER_LOSS);
    assert!(missing.is_empty(), "{} of {acked} acknowledged writes are missing: {missing:?}", missing.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn control_a_disk_that_lies_loses_what_was_acknowledged() {
    let dir = TempDir::new().unwrap();
    let Some(mut disk) = Disk::new(dir.path(), "lone") else { return };
    let config = lone_config(dir.path(), "");
    disk.begin_to_lie(&config).await;
    let (acked, missing) = write_through_losses(&disk, &config, 1).await;
    assert_eq!(missing.len(), acked, "the check of losses does not see them");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn os_acknowledges_before_the_sync_and_may_lose_that_and_nothing_before() {
    let dir = TempDir::new().unwrap();
    let Some(disk) = Disk::new(dir.path(), "lone") else { return };
    let config = lone_config(dir.path(), OS);
    let numbered =
        |range: std::ops::Range<usize>| range.map(|i| format!("m{i}")).collect::<BTreeSet<String>>();

    let server = disk.start(&config).await;
    add(&server, "x", 0..200).await;
    // It lists contexts, so it waits until they are synced.
    server.cluster().await;
    disk.hold_syncs();
    add(&server, "x", 200..300).await;
    assert_eq!(members(&server, "x").await, numbered(0..300), "who was answered finds what it wrote");
    disk.lose_power(server).await;

    // No sync returned after the first 200, so what came then is lost, though acknowledged.
    let mut server = disk.start(&config).await;
    assert_eq!(members(&server, "x").await, numbered(0..200));
    // The end of the process alone loses nothing, in order or not.
    add(&server, "x", 200..260).await;
    server.kill();
    let mut server = disk.start(&config).await;
    assert_eq!(members(&server, "x").await, numbered(0..260));
    add(&server, "x", 260..280).await;
    server.terminate();
    assert!(server.exit_status().await.success());
    // A node that stopped in order has synced everything.
    let server = disk.start(&config).await;
    disk.hold_syncs();
    disk.lose_power(server).await;
    assert_eq!(members(&disk.start(&config).await, "x").await, numbered(0..280));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn os_under_load_loses_only_the_last_moments() {
    let dir = TempDir::new().unwrap();
    let Some(disk) = Disk::new(dir.path(), "lone") else { return };
    let config = lone_config(dir.path(), OS);
    let (acked, missing) = write_through_losses(&disk, &config, POWER_LOSSES).await;
    assert!(missing.len() < acked / 2, "{} of {acked} acknowledged writes are missing", missing.len());
}

fn replica_of(cluster: &Value, name: &str) -> String {
    let mut nodes = cluster["nodes"].as_array().unwrap().iter();
    nodes.find(|node| node["name"] == name).unwrap()["replica"].as_str().unwrap().to_owned()
}

/// What a node has of a replica, by partition.
async fn context_of(server: &Server, replica: &str) -> BTreeMap<String, u64> {
    let cluster = server.cluster().await;
    let contexts = cluster["contexts"].as_object().unwrap().iter();
    let counters =
        contexts.map(|(partition, context)| (partition.clone(), context[replica].as_u64().unwrap_or(0)));
    counters.filter(|(_, counter)| *counter > 0).collect()
}

/// Node a loses power while no sync returns, with a peer that would take all it can get. What the peer and then a
/// itself hold of a's commits, each alone.
async fn peer_and_own(cluster: &Cluster, disk: &Disk) -> (BTreeMap<String, u64>, BTreeMap<String, u64>) {
    let (a, mut b) = (disk.start(&cluster.config("a")).await, cluster.start("b").await);
    add(&a, "x", 0..100).await;
    // Its first write settles under which id it writes.
    let replica = replica_of(&a.cluster().await, "a");
    converged(&[&a, &b]).await;
    let before = context_of(&b, &replica).await;
    disk.hold_syncs();
    add(&a, "x", 100..150).await;
    // The link works, and node a takes what comes on it: were a's new commits let go, they would have gone.
    add(&b, "y", 0..10).await;
    eventually("node a has what node b wrote", async || (members(&a, "y").await.len() == 10).then_some(()))
        .await;
    assert_eq!(context_of(&b, &replica).await, before, "node b learned of commits that are not synced");
    disk.lose_power(a).await;
    let peer = context_of(&b, &replica).await;
    b.kill();
    let a = disk.start(&cluster.config("a")).await;
    let own = context_of(&a, &replica).await;
    disk.lose_power(a).await;
    (peer, own)
}

/// Whether the peer holds only what the node itself holds.
fn within(peer: &BTreeMap<String, u64>, own: &BTreeMap<String, u64>) -> bool {
    assert!(peer.values().sum::<u64>() > 0, "{peer:?}");
    peer.iter().all(|(partition, counter)| counter <= own.get(partition).unwrap_or(&0))
}

fn two_nodes_with_os() -> Cluster {
    let cluster = Cluster::new(&["a", "b"]);
    let config = std::fs::read_to_string(cluster.config("a")).unwrap();
    let config = config.replace("[storage]\n", &format!("[storage]\n{OS}"));
    std::fs::write(cluster.config("a"), config).unwrap();
    cluster
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn os_tells_no_peer_what_a_power_loss_can_take() {
    let cluster = two_nodes_with_os();
    let Some(disk) = Disk::new(cluster.dir.path(), "a") else { return };
    let (peer, own) = peer_and_own(&cluster, &disk).await;
    assert!(within(&peer, &own), "node b has {peer:?} of node a, which has {own:?}");
    // So both go on.
    let (a, b) = (disk.start(&cluster.config("a")).await, cluster.start("b").await);
    add(&a, "z", 0..10).await;
    converged(&[&a, &b]).await;
    assert_eq!(members(&b, "x").await.len(), 100);
    assert_eq!(members(&b, "z").await.len(), 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn control_a_disk_that_lies_leaves_peers_with_what_the_node_lost() {
    let cluster = two_nodes_with_os();
    let Some(mut disk) = Disk::new(cluster.dir.path(), "a") else { return };
    disk.begin_to_lie(&cluster.config("a")).await;
    let (peer, own) = peer_and_own(&cluster, &disk).await;
    assert!(!within(&peer, &own), "the check of contexts does not see a loss");
}
