//! Which data directories a node opens, which it refuses, and that it says why.

use std::fs;
use std::path::Path;

use godwit_core::ids::ReplicaId;
use godwit_core::keys;
use godwit_core::store::{Batch, Family, StoreError, StoreRead};
use godwit_engine::identity::{self, Identity, IdentityError, NodeSettings};
use godwit_engine::store::{FORMAT_VERSION, RocksStore, StoreOpenError, StoreOptions};
use tempfile::TempDir;

fn open(path: &Path) -> Result<RocksStore, StoreOpenError> {
    RocksStore::open(path, &StoreOptions::default())
}

fn put(store: &RocksStore, family: Family, key: &[u8], value: &[u8]) {
    let mut batch = Batch::default();
    batch.put(family, key.to_vec(), value.to_vec());
    store.commit(batch).unwrap();
}

fn set_format(path: &Path, change: impl FnOnce(&mut Batch)) {
    let mut batch = Batch::default();
    change(&mut batch);
    open(path).unwrap().commit(batch).unwrap();
}

#[test]
fn creates_missing_directories_and_keeps_strangers() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a/b");
    fs::create_dir_all(&path).unwrap();
    fs::write(path.join("README.txt"), "mine").unwrap();
    let store = open(&path.join("c")).unwrap();
    assert_eq!(store.get(Family::Meta, keys::FORMAT).unwrap(), Some(vec![FORMAT_VERSION]));
    open(&path).unwrap();
    assert_eq!(fs::read_to_string(path.join("README.txt")).unwrap(), "mine");
}

#[test]
fn an_interrupted_creation_is_completed() {
    let dir = TempDir::new().unwrap();
    drop(open(dir.path()).unwrap());
    // As after a crash before the format was written, and as after one before the marker was removed.
    for removes_format in [true, false] {
        if removes_format {
            set_format(dir.path(), |batch| batch.delete(Family::Meta, keys::FORMAT.to_vec()));
        }
        fs::write(dir.path().join("GODWIT-CREATING"), "").unwrap();
        let store = open(dir.path()).unwrap();
        assert_eq!(store.get(Family::Meta, keys::FORMAT).unwrap(), Some(vec![FORMAT_VERSION]));
        assert!(!dir.path().join("GODWIT-CREATING").exists());
    }
}

#[test]
fn one_directory_has_one_user() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path()).unwrap();
    put(&store, Family::Rows, b"k", b"v");
    let error = open(dir.path()).unwrap_err();
    assert!(matches!(&error, StoreOpenError::Locked { path } if path == dir.path()), "{error}");
    assert!(error.to_string().contains("another godwit process uses"), "{error}");
    let clone = store.clone();
    drop(store);
    assert!(matches!(open(dir.path()), Err(StoreOpenError::Locked { .. })));
    drop(clone);
    assert_eq!(open(dir.path()).unwrap().get(Family::Rows, b"k").unwrap(), Some(b"v".to_vec()));
}

#[test]
fn a_newer_format_is_refused() {
    let dir = TempDir::new().unwrap();
    set_format(dir.path(), |batch| batch.put(Family::Meta, keys::FORMAT.to_vec(), vec![FORMAT_VERSION + 1]));
    let error = open(dir.path()).unwrap_err();
    assert!(matches!(error, StoreOpenError::Format { found: 2, known: 1, .. }), "{error}");
    assert!(error.to_string().contains("start the godwit version that wrote it"), "{error}");
}

#[test]
fn a_format_of_the_wrong_size_is_damage() {
    let dir = TempDir::new().unwrap();
    set_format(dir.path(), |batch| batch.put(Family::Meta, keys::FORMAT.to_vec(), vec![1, 2]));
    assert!(matches!(open(dir.path()), Err(StoreOpenError::Damaged { .. })));
}

#[test]
fn what_is_no_godwit_store_is_refused_and_left_alone() {
    // A store without a format.
    let dir = TempDir::new().unwrap();
    set_format(dir.path(), |batch| batch.delete(Family::Meta, keys::FORMAT.to_vec()));
    let error = open(dir.path()).unwrap_err();
    assert!(matches!(error, StoreOpenError::NotGodwit { .. }), "{error}");

    // Somebody else's instance.
    let dir = TempDir::new().unwrap();
    let foreign = rocksdb::DB::open_default(dir.path()).unwrap();
    foreign.put(b"k", b"v").unwrap();
    drop(foreign);
    let error = open(dir.path()).unwrap_err();
    assert!(matches!(error, StoreOpenError::NotGodwit { .. }), "{error}");
    let foreign = rocksdb::DB::open_default(dir.path()).unwrap();
    assert_eq!(foreign.get(b"k").unwrap(), Some(b"v".to_vec()));

    // An instance that has lost the file it begins with: creating a new one would delete its tables.
    let dir = TempDir::new().unwrap();
    put(&open(dir.path()).unwrap(), Family::Rows, b"k", b"v");
    fs::remove_file(dir.path().join("CURRENT")).unwrap();
    let error = open(dir.path()).unwrap_err();
    assert!(matches!(error, StoreOpenError::NotGodwit { .. }), "{error}");
    assert!(fs::read_dir(dir.path()).unwrap().count() > 3);
}

#[test]
fn a_path_that_is_a_file_is_refused() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("file");
    fs::write(&path, "").unwrap();
    assert!(matches!(open(&path), Err(StoreOpenError::Io { .. })));
}

fn settings() -> NodeSettings {
    NodeSettings {
        cluster: "prod".to_string(),
        node: "eu-1".to_string(),
        region: "eu".to_string(),
        partitions: 64,
    }
}

#[test]
fn an_identity_is_kept() {
    let dir = TempDir::new().unwrap();
    let created = identity::load_or_create(&open(dir.path()).unwrap(), &settings(), || ReplicaId(7)).unwrap();
    let NodeSettings { cluster, node, region, partitions } = settings();
    assert_eq!(created, Identity { cluster, node, region, replica: ReplicaId(7), partitions });
    let store = open(dir.path()).unwrap();
    put(&store, Family::Rows, b"k", b"v");
    let kept = identity::load_or_create(&store, &settings(), || panic!("it has a replica id"));
    assert_eq!(kept, Ok(created));
}

#[test]
fn other_settings_are_refused_by_name() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path()).unwrap();
    identity::load_or_create(&store, &settings(), || ReplicaId(7)).unwrap();
    let refusal = |change: fn(&mut NodeSettings)| {
        let mut settings = settings();
        change(&mut settings);
        identity::load_or_create(&store, &settings, || panic!("it has a replica id")).unwrap_err()
    };
    let texts = |stored: &str, configured: &str| (stored.to_string(), configured.to_string());

    let (stored, configured) = texts("prod", "test");
    assert_eq!(refusal(|s| s.cluster = "test".into()), IdentityError::Cluster { stored, configured });
    let (stored, configured) = texts("eu-1", "eu-2");
    assert_eq!(refusal(|s| s.node = "eu-2".into()), IdentityError::Node { stored, configured });
    let (stored, configured) = texts("eu", "us");
    assert_eq!(refusal(|s| s.region = "us".into()), IdentityError::Region { stored, configured });
    let error = refusal(|s| s.partitions = 32);
    assert_eq!(error, IdentityError::Partitions { stored: 64, configured: 32 });
    assert!(error.to_string().contains("64") && error.to_string().contains("32"), "{error}");
}

#[test]
fn data_without_an_identity_is_refused() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path()).unwrap();
    put(&store, Family::Log, b"k", b"v");
    let error = identity::load_or_create(&store, &settings(), || ReplicaId(7)).unwrap_err();
    assert_eq!(error, IdentityError::Missing { family: Family::Log });
}

#[test]
fn a_damaged_identity_is_refused() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path()).unwrap();
    put(&store, Family::Meta, keys::IDENTITY, &[1, 2, 3]);
    let error = identity::load_or_create(&store, &settings(), || ReplicaId(7)).unwrap_err();
    assert!(matches!(error, IdentityError::Store(StoreError::Damaged { .. })), "{error}");
}
