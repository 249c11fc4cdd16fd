//! What was committed survives: a copied directory as a crash would leave it, a torn and a damaged log, and a
//! process that is killed.

mod batches;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs};

use batches::{batch, batches};
use godwit_core::store::StoreError;
use godwit_engine::store::{Durability, RocksStore, StoreOpenError, StoreOptions};
use tempfile::TempDir;

const CHILD_DIR: &str = "GODWIT_TEST_CHILD_DIR";

fn open(path: &Path) -> Result<RocksStore, StoreOpenError> {
    RocksStore::open(path, &StoreOptions::default())
}

fn commit(store: &RocksStore, n: u64) -> Result<(), StoreError> {
    store.commit(&batch(n))
}

/// The directory of a store that is still open: what a crash at this moment would leave.
fn crash_image(store: &RocksStore) -> TempDir {
    let image = TempDir::new().unwrap();
    for entry in fs::read_dir(store.path()).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), image.path().join(entry.file_name())).unwrap();
    }
    image
}

fn last_log(path: &Path) -> PathBuf {
    let paths = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    paths.filter(|path| path.extension().is_some_and(|extension| extension == "log")).max().unwrap()
}

fn store_with(dir: &TempDir, count: u64) -> RocksStore {
    let store = open(dir.path()).unwrap();
    (0..count).for_each(|n| commit(&store, n).unwrap());
    store
}

#[test]
fn commits_survive_without_a_clean_close() {
    let dir = TempDir::new().unwrap();
    let store = store_with(&dir, 40);
    let image = crash_image(&store);
    for _ in 0..2 {
        assert_eq!(batches(&open(image.path()).unwrap()), 40);
    }
}

#[test]
fn a_torn_last_record_is_dropped_whole() {
    let dir = TempDir::new().unwrap();
    let store = store_with(&dir, 10);
    for cut in [1, 100, 330] {
        let image = crash_image(&store);
        let log = last_log(image.path());
        let file = fs::OpenOptions::new().write(true).open(&log).unwrap();
        file.set_len(file.metadata().unwrap().len() - cut).unwrap();
        assert_eq!(batches(&open(image.path()).unwrap()), 9, "cut {cut}");
    }
}

#[test]
fn a_damaged_record_refuses_to_open() {
    let dir = TempDir::new().unwrap();
    let store = store_with(&dir, 10);
    let length = fs::metadata(last_log(dir.path())).unwrap().len() as usize;
    // In the middle, where point-in-time recovery would drop what follows, and in the last record.
    for at in [length / 2, length - 20] {
        let image = crash_image(&store);
        let log = last_log(image.path());
        let mut bytes = fs::read(&log).unwrap();
        bytes[at] ^= 0x10;
        fs::write(&log, bytes).unwrap();
        let error = open(image.path()).unwrap_err();
        assert!(matches!(error, StoreOpenError::Damaged { .. }), "{error}");
        assert!(error.to_string().contains("restore a backup"), "{error}");
    }
}

fn open_os(path: &Path) -> RocksStore {
    RocksStore::open(path, &StoreOptions { durability: Durability::Os, ..StoreOptions::default() }).unwrap()
}

#[test]
fn a_log_that_was_not_synced_is_read_to_a_point_in_time() {
    let dir = TempDir::new().unwrap();
    // Some of it written when every commit was synced: that part has gone to tables when the setting changes.
    drop(store_with(&dir, 4));
    let store = open_os(dir.path());
    assert_eq!((store.durability(), store.written_with()), (Durability::Os, Durability::Fsync));
    (4..10).for_each(|n| store.write(&batch(n)).unwrap());
    let image = crash_image(&store);
    assert_eq!(batches(&open(image.path()).unwrap()), 10);

    // As a disk leaves it that persisted pages out of order: zeros in the second of six records, or all its bytes.
    let length = fs::metadata(last_log(dir.path())).unwrap().len() as usize;
    for hole in [length / 6 + 40..length / 6 + 200, length / 6..length / 3] {
        for durability in [Durability::Fsync, Durability::Os] {
            let image = crash_image(&store);
            let log = last_log(image.path());
            let mut bytes = fs::read(&log).unwrap();
            bytes[hole.clone()].fill(0);
            fs::write(&log, bytes).unwrap();
            // What counts is how the log was written, not how it goes on.
            let options = StoreOptions { durability, ..StoreOptions::default() };
            let opened = RocksStore::open(image.path(), &options).unwrap();
            assert_eq!(opened.written_with(), Durability::Os);
            assert_eq!(batches(&opened), 5);
            commit(&opened, 5).unwrap();
            drop(opened);
            let opened = open(image.path()).unwrap();
            assert_eq!((batches(&opened), opened.written_with()), (6, durability));
        }
    }
}

#[test]
fn once_every_commit_is_synced_damage_is_refused_again() {
    let dir = TempDir::new().unwrap();
    drop(open_os(dir.path()));
    let store = store_with(&dir, 10);
    let image = crash_image(&store);
    let log = last_log(image.path());
    let mut bytes = fs::read(&log).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::write(&log, bytes).unwrap();
    assert!(matches!(open(image.path()), Err(StoreOpenError::Damaged { .. })));
}

#[test]
#[should_panic(expected = "only a store that runs with Os")]
fn a_store_that_syncs_every_commit_writes_nothing_unsynced() {
    let dir = TempDir::new().unwrap();
    let _ = open(dir.path()).unwrap().write(&batch(0));
}

/// Not a test of its own: what the killed process of the next one runs.
#[test]
fn child_commits_until_killed() {
    let Some(dir) = env::var_os(CHILD_DIR) else { return };
    let store = open(Path::new(&dir)).unwrap();
    // Bounded, so that it ends by itself should its parent be gone.
    for n in batches(&store)..100_000 {
        commit(&store, n).unwrap();
        println!("\ncommitted {n}");
    }
}

fn child(dir: &TempDir) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", "child_commits_until_killed", "--nocapture", "--test-threads=1"]);
    command.env(CHILD_DIR, dir.path()).stdout(Stdio::piped());
    command
}

#[test]
fn another_process_is_locked_out() {
    let dir = TempDir::new().unwrap();
    let _store = store_with(&dir, 1);
    let output = child(&dir).stderr(Stdio::piped()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("Locked"), "{said}");
}

#[test]
fn acknowledged_commits_survive_kill_9() {
    let dir = TempDir::new().unwrap();
    let mut acknowledged = 0;
    for lines_before_kill in [1, 50, 200] {
        let mut child = child(&dir).spawn().unwrap();
        let mut seen = 0;
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            // What it printed up to its end counts, so reading goes on after the kill.
            let Some(n) = line.unwrap().strip_prefix("committed ").map(str::to_string) else { continue };
            acknowledged = n.parse::<u64>().unwrap() + 1;
            seen += 1;
            if seen == lines_before_kill {
                child.kill().unwrap();
            }
        }
        let status = child.wait().unwrap();
        assert!(!status.success() && seen >= lines_before_kill, "{status}, {seen} lines");
        let found = batches(&open(dir.path()).unwrap());
        // One commit may have been durable and not printed yet.
        assert!(found == acknowledged || found == acknowledged + 1, "{found} of {acknowledged}");
    }
}
