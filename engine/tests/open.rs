//! Which data directories a node opens, which it refuses, and that it says why.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::UNIX_EPOCH;

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
    store.commit(&batch).unwrap();
}

fn set_format(path: &Path, change: impl FnOnce(&mut Batch)) {
    let mut batch = Batch::default();
    change(&mut batch);
    open(path).unwrap().commit(&batch).unwrap();
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
    assert!(matches!(error, StoreOpenError::Format { found: 5, known: 4, .. }), "{error}");
    assert!(error.to_string().contains("start the godwit version that wrote it"), "{error}");
}

/// An instance made by other hands: these families beside RocksDB's own, a format, and a row in each of the first.
fn raw(path: &Path, families: &[&str], format: u8) {
    let mut options = rocksdb::Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    let db = rocksdb::DB::open_cf(&options, path, families).unwrap();
    for name in families.iter().filter(|name| FORMAT_1_FAMILIES.contains(name)) {
        db.put_cf(db.cf_handle(name).unwrap(), b"partition k", name.as_bytes()).unwrap();
    }
    db.put_cf(db.cf_handle("meta").unwrap(), keys::FORMAT, [format]).unwrap();
}

const FORMAT_1_FAMILIES: [&str; 4] = ["rows", "log", "keys", "meta"];

fn migrated(path: &Path) {
    // The second time there is nothing left to do.
    for _ in 0..2 {
        let store = open(path).unwrap();
        assert_eq!(store.get(Family::Meta, keys::FORMAT).unwrap(), Some(vec![FORMAT_VERSION]));
        for family in [Family::Rows, Family::Log, Family::Keys, Family::Meta] {
            let kept = store.get(family, b"partition k").unwrap();
            assert_eq!(kept.as_deref(), Some(family.name().as_bytes()));
        }
        for family in [Family::Fields, Family::Requests, Family::Staged, Family::Derived] {
            assert_eq!(store.first(family, b"", b"x").unwrap(), None);
        }
    }
    let store = open(path).unwrap();
    let added =
        [(Family::Fields, b"f"), (Family::Requests, b"r"), (Family::Staged, b"s"), (Family::Derived, b"d")];
    added.iter().for_each(|(family, value)| put(&store, *family, b"x", *value));
    drop(store);
    let store = open(path).unwrap();
    for (family, value) in added {
        assert_eq!(store.get(family, b"x").unwrap(), Some(value.to_vec()));
    }
}

#[test]
fn older_formats_are_brought_to_the_present_one() {
    let all = [&FORMAT_1_FAMILIES[..], &["fields", "requests"]].concat();
    let three = [&all[..], &["staged"]].concat();
    for (families, format) in [(&FORMAT_1_FAMILIES[..], 1), (&all, 2), (&three, 3)] {
        let dir = TempDir::new().unwrap();
        raw(dir.path(), families, format);
        migrated(dir.path());
    }
}

#[test]
fn an_interrupted_migration_goes_on() {
    // Families are created one after the other, the format is written last: as after a crash at each step.
    for created in [&["fields"][..], &["requests"], &["fields", "requests"]] {
        let dir = TempDir::new().unwrap();
        raw(dir.path(), &FORMAT_1_FAMILIES, 1);
        raw(dir.path(), &[&FORMAT_1_FAMILIES[..], created].concat(), 1);
        migrated(dir.path());
    }
    // From formats 2 and 3: the family is there, and the format is not written yet.
    for (created, format) in
        [(&["fields", "requests", "staged"][..], 2), (&["fields", "requests", "staged", "derived"], 3)]
    {
        let dir = TempDir::new().unwrap();
        raw(dir.path(), &[&FORMAT_1_FAMILIES[..], created].concat(), format);
        migrated(dir.path());
    }
    // A creation by the older version that ended before the marker was removed.
    let dir = TempDir::new().unwrap();
    raw(dir.path(), &FORMAT_1_FAMILIES, 1);
    fs::write(dir.path().join("GODWIT-CREATING"), "").unwrap();
    migrated(dir.path());
}

#[test]
fn a_missing_family_is_refused() {
    let all = [&FORMAT_1_FAMILIES[..], &["fields", "requests"]].concat();
    let formats = all.iter().flat_map(|name| [(1, *name), (2, *name), (3, *name)]);
    for (format, missing) in formats.filter(|(format, name)| *format > 1 || FORMAT_1_FAMILIES.contains(name))
    {
        let dir = TempDir::new().unwrap();
        raw(dir.path(), &all, format);
        let mut db = rocksdb::DB::open_cf(&rocksdb::Options::default(), dir.path(), &all).unwrap();
        db.drop_cf(missing).unwrap();
        drop(db);
        for _ in 0..2 {
            let error = open(dir.path()).unwrap_err();
            assert!(matches!(error, StoreOpenError::NotGodwit { .. }), "{format}, {missing}: {error}");
            assert!(error.to_string().contains(missing), "{error}");
        }
    }
    for (families, format, missing) in
        [(all.clone(), 3, "staged"), ([&all[..], &["staged"]].concat(), 4, "derived")]
    {
        let dir = TempDir::new().unwrap();
        raw(dir.path(), &families, format);
        let error = open(dir.path()).unwrap_err();
        assert!(error.to_string().contains(missing), "{error}");
    }
}

#[test]
fn unknown_families_are_refused_and_a_newer_format_by_its_number() {
    let families = [&FORMAT_1_FAMILIES[..], &["fields", "requests", "later"]].concat();
    for format in [FORMAT_VERSION, FORMAT_VERSION + 1] {
        let dir = TempDir::new().unwrap();
        raw(dir.path(), &families, format);
        let error = open(dir.path()).unwrap_err();
        match format {
            FORMAT_VERSION => assert!(matches!(error, StoreOpenError::NotGodwit { .. }), "{error}"),
            _ => assert!(matches!(error, StoreOpenError::Format { found: 5, known: 4, .. }), "{error}"),
        }
        let kept = rocksdb::DB::list_cf(&rocksdb::Options::default(), dir.path()).unwrap();
        assert_eq!(kept.len(), families.len() + 1);
    }
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

/// What the next process compares: version, then inode and time of creation as bincode's variable-length integers.
#[test]
fn the_bytes_of_the_place_are_part_of_the_format() {
    fn number(bytes: &mut Vec<u8>, value: u64) {
        match value {
            0..=250 => bytes.push(value as u8),
            251..=0xffff => bytes.extend([&[251][..], &(value as u16).to_le_bytes()].concat()),
            0x1_0000..=0xffff_ffff => bytes.extend([&[252][..], &(value as u32).to_le_bytes()].concat()),
            _ => bytes.extend([&[253][..], &value.to_le_bytes()].concat()),
        }
    }
    let dir = TempDir::new().unwrap();
    let store = open(dir.path()).unwrap();
    let place = identity::place(&store).unwrap();
    assert!(!place.is_same, "nobody has been here");
    let metadata = fs::metadata(dir.path().join("GODWIT-PLACE")).unwrap();
    let created = metadata.created().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    let mut golden = vec![1];
    number(&mut golden, metadata.ino());
    number(&mut golden, created.map_or(0, |since| since.as_nanos() as u64));
    assert_eq!(place.note, golden);

    put(&store, Family::Meta, keys::PLACE, &golden);
    assert!(identity::place(&store).unwrap().is_same);
    *golden.last_mut().unwrap() ^= 1;
    put(&store, Family::Meta, keys::PLACE, &golden);
    assert!(!identity::place(&store).unwrap().is_same, "another time of creation");
}
