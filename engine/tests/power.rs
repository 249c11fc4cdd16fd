//! Power losses of a store that flushes and compacts all the while, on a disk that keeps only what was synced
//! ([`shim`](../../tests/server/power/shim.c)): whatever moment is met, the batches that are there are whole and without a
//! gap, and none of those is missing that a sync has covered.

mod batches;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::{env, thread};

use batches::{batch, batches};
use godwit_engine::store::{Durability, RocksStore, StoreOptions};
use tempfile::TempDir;

const CHILD_DIR: &str = "GODWIT_TEST_POWER_DIR";
const CHILD_DURABILITY: &str = "GODWIT_TEST_POWER_DURABILITY";
const STATUS_LOST: i32 = 99;
/// Bounds a child that nobody ends.
const BATCHES_MAX: u64 = 2_000_000;
/// Batches that a child says to be durable before its power goes: several memtables each.
const DURABLE_PER_LOSS: [u64; 4] = [1, 5_000, 8_000, 12_000];

fn open(path: &Path, durability: Durability) -> RocksStore {
    // Small memtables, so that flushes are met.
    let options = StoreOptions { durability, write_buffer_bytes: 1 << 20, ..StoreOptions::default() };
    RocksStore::open(path, &options).unwrap()
}

/// Not a test of its own: what the process without power runs. Says up to which batch everything is durable.
#[test]
fn child_writes_until_the_power_goes() {
    let Some(dir) = env::var_os(CHILD_DIR) else { return };
    let synced_each = env::var(CHILD_DURABILITY).unwrap() == "fsync";
    let store = open(Path::new(&dir), if synced_each { Durability::Fsync } else { Durability::Os });
    let begun = batches(&store);
    let (written, stop) = (AtomicU64::new(begun), AtomicBool::new(false));
    thread::scope(|scope| {
        if !synced_each {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let covered = written.load(Ordering::Acquire);
                    store.sync().unwrap();
                    println!("\ndurable {covered}");
                }
            });
        }
        for n in begun..begun + BATCHES_MAX {
            if synced_each {
                store.commit(&batch(n)).unwrap();
                println!("\ndurable {}", n + 1);
            } else {
                store.write(&batch(n)).unwrap();
            }
            written.store(n + 1, Ordering::Release);
        }
        stop.store(true, Ordering::Relaxed);
    });
}

/// Compiles the shim. `None` without a C compiler, which every machine that builds RocksDB has.
fn shim(dir: &Path) -> Option<PathBuf> {
    let shim = dir.join("shim.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/server/power/shim.c");
    let mut compile = Command::new("cc");
    compile.args(["-shared", "-fPIC", "-O1", "-pthread", "-o"]).arg(&shim).arg(source).arg("-ldl");
    match compile.output() {
        Ok(output) => {
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            Some(shim)
        }
        Err(error) => {
            eprintln!("SKIPPED: a power loss cannot be simulated without the C compiler `cc`: {error}");
            None
        }
    }
}

/// Runs a child until so many more batches are durable and takes its power; up to which it said that all are.
fn run_until_power_loss(shim: &Path, data: &Path, durability: &str, more: u64) -> u64 {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", "child_writes_until_the_power_goes", "--nocapture", "--test-threads=1"]);
    command.env(CHILD_DIR, data).env(CHILD_DURABILITY, durability);
    let mut child =
        command.env("LD_PRELOAD", shim).env("POWER_DIR", data).stdout(Stdio::piped()).spawn().unwrap();
    let (mut durable, mut goal) = (0, None);
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let Some(n) = line.unwrap().strip_prefix("durable ").map(str::to_string) else { continue };
        durable = n.parse::<u64>().unwrap();
        // What it said up to its end counts, so reading goes on.
        if durable >= *goal.get_or_insert(durable + more) && goal != Some(u64::MAX) {
            goal = Some(u64::MAX);
            let kill = format!("kill -USR1 {}", child.id());
            assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
        }
    }
    assert_eq!(child.wait().unwrap().code(), Some(STATUS_LOST));
    durable
}

fn survives(durability: &str, setting: Durability) {
    let dir = TempDir::new().unwrap();
    let Some(shim) = shim(dir.path()) else { return };
    let data = dir.path().join("data");
    for more in DURABLE_PER_LOSS {
        let durable = run_until_power_loss(&shim, &data, durability, more);
        let found = batches(&open(&data, setting));
        assert!(found >= durable, "{} of {durable} durable batches are missing", durable - found);
        if setting == Durability::Fsync {
            assert!(found <= durable + 1, "{found} found, {durable} were committed");
        }
    }
    assert!(batches(&open(&data, setting)) > DURABLE_PER_LOSS.iter().sum());
}

#[test]
fn with_fsync_every_commit_survives_between_flushes() {
    survives("fsync", Durability::Fsync);
}

#[test]
fn with_os_every_sync_survives_between_flushes_and_nothing_has_a_gap() {
    survives("os", Durability::Os);
}
