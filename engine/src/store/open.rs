//! Opening a data directory, or refusing it: a node never starts on data that it might misread or destroy.
//!
//! A directory is created in steps, and a crash may fall between any two of them. So creation is bracketed by
//! a marker file, durable before the first RocksDB file and removed after the format version is durable:
//!
//! | marker | RocksDB files | format | meaning |
//! |---|---|---|---|
//! | no | no | | new: create |
//! | yes | any | none | creation was interrupted, nothing was ever stored: create |
//! | any | yes | ours | open; a left-over marker is removed |
//! | any | yes | another | refused |
//! | no | yes | none | not a Godwit store, or a damaged one: refused |
//!
//! # Formats
//!
//! | format | families |
//! |---|---|
//! | 1 | `rows`, `log`, `keys`, `meta` |
//! | 2 | those, `fields` and `requests` |
//! | 3 | those, and `staged` |
//!
//! A store of an older format is brought to the last when it is opened: the missing families are created, each durable
//! before the next, and then the format is written. A crash in between leaves the older format with some of the new
//! families, empty, and the next opening goes on. The format is written last, so a format that lacks one of its families
//! has lost it, and is refused. Which families there are is read without the lock, so it decides only how RocksDB is opened; the format
//! is read under the lock. A store with families that this version does not know is not opened for writing at all:
//! it is looked at read-only, to tell a newer format from a stranger.
//!
//! # How the log was written
//!
//! The end of a log that was written without syncs has to be read differently (the header of [`super`] says why), and
//! the settings of the last start are not those of this one. So the marker file `GODWIT-UNSYNCED` stands in the
//! directory from before the first write that is not synced until the store has been opened with
//! [`Durability::Fsync`]. Opening replays the log and flushes all of it to tables, so nothing of it is read again
//! when the marker comes or goes.
//!
//! Two processes cannot hold one directory: RocksDB locks it (`LOCK`), and the lock goes with the process.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use godwit_core::keys;
use godwit_core::store::{Batch, Family, StoreError};
use rocksdb::{Cache, DB, ErrorKind, Options};

use super::{Durability, RocksStore, Shared, StoreOptions, options};

/// The version of the whole store's layout that this build writes. It opens stores of formats 1 to 3, too, and brings
/// them to this one. Format 3 has logs that begin later than at their first entry, and `staged`; format 4 has `derived`, which a
/// version that does not know of it would leave behind what it writes, and records that expire.
pub const FORMAT_VERSION: u8 = 4;

/// The format before `fields` and `requests`.
const FORMAT_1: u8 = 1;
/// Families that older formats lack, and the first format that has them.
const ADDED: [(Family, u8); 4] =
    [(Family::Fields, 2), (Family::Requests, 2), (Family::Staged, 3), (Family::Derived, 4)];

const CREATING: &str = "GODWIT-CREATING";
const UNSYNCED: &str = "GODWIT-UNSYNCED";

/// Why a data directory was not opened. Nothing in it was changed that matters.
#[derive(Debug, thiserror::Error)]
pub enum StoreOpenError {
    /// Another process, or another store of this one, holds the directory.
    #[error(
        "another godwit process uses the data directory {}: stop it, or give this node a directory of its own",
        path.display()
    )]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// RocksDB files that are no Godwit store.
    #[error(
        "the data directory {} holds RocksDB files that are not a Godwit store, or a damaged one ({reason}): \
         choose an empty directory, or restore a backup",
        path.display()
    )]
    NotGodwit {
        /// The directory.
        path: PathBuf,
        /// What is missing or unexpected.
        reason: String,
    },
    /// Written by a version of Godwit with another layout.
    #[error(
        "the data directory {} has format version {found}, this godwit reads versions up to {known}: start the \
         godwit version that wrote it, or a newer one",
        path.display()
    )]
    Format {
        /// The directory.
        path: PathBuf,
        /// The version found.
        found: u8,
        /// The newest version that this build reads.
        known: u8,
    },
    /// RocksDB found damage.
    #[error(
        "the data directory {} is damaged: {reason}. Opening it could lose acknowledged writes: restore a \
         backup, or move the directory away and start anew, so that the node copies its data from its peers",
        path.display()
    )]
    Damaged {
        /// The directory.
        path: PathBuf,
        /// What RocksDB says.
        reason: String,
    },
    /// The file system refused.
    #[error("{doing} {} failed: {source}. Check that it exists, its permissions and the free space", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// RocksDB failed for another reason.
    #[error(
        "opening the data directory {} failed: {reason}. Check its permissions, the free space and the limit \
         of open files",
        path.display()
    )]
    Failed {
        /// The directory.
        path: PathBuf,
        /// What RocksDB says.
        reason: String,
    },
}

pub(super) fn open(path: &Path, options: &StoreOptions) -> Result<RocksStore, StoreOpenError> {
    create_dir_durably(path)?;
    let marker = path.join(CREATING);
    if !holds_rocksdb_files(path)? && !marker.exists() {
        create_marker(path, &marker)?;
    }
    let creating = marker.exists();
    let unsynced = path.join(UNSYNCED);
    let written_with = if unsynced.exists() { Durability::Os } else { Durability::Fsync };

    let cache = Cache::new_lru_cache(options.block_cache_bytes);
    let present = if creating { Family::ALL.to_vec() } else { families_to_open(path)? };
    let families = options::families(&present, options, &cache);
    let mut db = DB::open_cf_descriptors(&options::database(options, creating, written_with), path, families)
        .map_err(|error| open_error(path, &error))?;
    let format = check_format(&db, path, creating)?;
    for family in Family::ALL.into_iter().filter(|family| !present.contains(family)) {
        let is_younger =
            |(added, since): &(Family, u8)| *added == family && format.is_some_and(|it| it < *since);
        if !ADDED.iter().any(is_younger) {
            let reason = format!("its family {} is missing", family.name());
            return Err(StoreOpenError::NotGodwit { path: path.to_path_buf(), reason });
        }
        db.create_cf(family.name(), &options::of_family(family, options, &cache))
            .map_err(|error| open_error(path, &error))?;
    }
    let store = RocksStore {
        shared: Arc::new(Shared {
            db,
            block_cache: cache,
            path: path.to_path_buf(),
            durability: options.durability,
            written_with,
        }),
    };

    if format != Some(FORMAT_VERSION) {
        let mut batch = Batch::default();
        batch.put(Family::Meta, keys::FORMAT.to_vec(), vec![FORMAT_VERSION]);
        let failed = |error: StoreError| StoreOpenError::Failed {
            path: path.to_path_buf(),
            reason: error.to_string(),
        };
        store.commit(&batch).map_err(failed)?;
    }
    if let Some(from) = format.filter(|&from| from != FORMAT_VERSION) {
        tracing::info!(path = %path.display(), from, to = FORMAT_VERSION, "brought the store to a newer format");
    }
    if creating {
        remove_marker(path, &marker)?;
    }
    match (written_with, options.durability) {
        (Durability::Fsync, Durability::Os) => create_marker(path, &unsynced)?,
        (Durability::Os, Durability::Fsync) => remove_marker(path, &unsynced)?,
        _ => {}
    }
    Ok(store)
}

fn create_marker(dir: &Path, marker: &Path) -> Result<(), StoreOpenError> {
    File::create(marker).and_then(|file| file.sync_all()).map_err(io_error("creating", marker))?;
    sync_dir(dir)
}

fn remove_marker(dir: &Path, marker: &Path) -> Result<(), StoreOpenError> {
    fs::remove_file(marker).map_err(io_error("removing", marker))?;
    sync_dir(dir)
}

/// The families with which to open an instance: all, unless it may be one that lacks those of a later format.
fn families_to_open(path: &Path) -> Result<Vec<Family>, StoreOpenError> {
    // Opening says better than listing what is wrong with an instance.
    let Ok(found) = DB::list_cf(&Options::default(), path) else { return Ok(Family::ALL.to_vec()) };
    let known = |name: &String| {
        name == rocksdb::DEFAULT_COLUMN_FAMILY_NAME || Family::ALL.iter().any(|family| family.name() == name)
    };
    if !found.iter().all(known) {
        refuse_newer_format(path, &found)?;
    }
    let kept = |family: &Family| {
        let is_added = ADDED.iter().any(|(added, _)| added == family);
        !is_added || found.iter().any(|name| name == family.name())
    };
    Ok(Family::ALL.into_iter().filter(kept).collect())
}

/// Refuses an instance with unknown families if its format is newer, and leaves it alone in any case.
fn refuse_newer_format(path: &Path, found: &[String]) -> Result<(), StoreOpenError> {
    let meta = Family::Meta.name();
    // What cannot be looked at is refused by opening it.
    let Ok(db) = DB::open_cf_for_read_only(&Options::default(), path, found, false) else { return Ok(()) };
    let Some(meta) = db.cf_handle(meta) else { return Ok(()) };
    match db.get_cf(meta, keys::FORMAT).ok().flatten().as_deref() {
        Some(&[found]) if found > FORMAT_VERSION => {
            Err(StoreOpenError::Format { path: path.to_path_buf(), found, known: FORMAT_VERSION })
        }
        _ => Ok(()),
    }
}

/// The instance's format, one that this build reads; `None` if it is being created.
fn check_format(db: &DB, path: &Path, creating: bool) -> Result<Option<u8>, StoreOpenError> {
    let path = path.to_path_buf();
    let meta = db.cf_handle(Family::Meta.name()).expect("every opening includes this family");
    match db.get_cf(meta, keys::FORMAT).map_err(|error| open_error(&path, &error))?.as_deref() {
        Some(&[found @ FORMAT_1..=FORMAT_VERSION]) => Ok(Some(found)),
        Some(&[found]) => Err(StoreOpenError::Format { path, found, known: FORMAT_VERSION }),
        Some(other) => {
            let reason = format!("the format version has {} bytes instead of one", other.len());
            Err(StoreOpenError::Damaged { path, reason })
        }
        None if creating => Ok(None),
        None => Err(StoreOpenError::NotGodwit { path, reason: "it has no format version".to_string() }),
    }
}

fn open_error(path: &Path, error: &rocksdb::Error) -> StoreOpenError {
    let (path, reason) = (path.to_path_buf(), error.to_string());
    // RocksDB has no kind of its own for a lock; the first text is its own process's, the second another's.
    let locked = reason.contains("lock hold by current process")
        || (reason.contains("While lock file") && reason.contains("temporarily unavailable"));
    match error.kind() {
        ErrorKind::IOError if locked => StoreOpenError::Locked { path },
        ErrorKind::Corruption => StoreOpenError::Damaged { path, reason },
        // A missing or foreign family, or no instance where a family's files are.
        ErrorKind::InvalidArgument => StoreOpenError::NotGodwit { path, reason },
        _ => StoreOpenError::Failed { path, reason },
    }
}

/// Whether RocksDB would find, overwrite or clean up something here.
fn holds_rocksdb_files(path: &Path) -> Result<bool, StoreOpenError> {
    for entry in fs::read_dir(path).map_err(io_error("listing", path))? {
        let name = entry.map_err(io_error("listing", path))?.file_name();
        let name = name.to_string_lossy();
        let kept = name == "CURRENT" || name.starts_with("MANIFEST-");
        let numbered = name.split_once('.').is_some_and(|(number, extension)| {
            matches!(extension, "sst" | "log" | "blob") && number.bytes().all(|b| b.is_ascii_digit())
        });
        if kept || numbered {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Creates a directory and its missing parents so that they survive a power cut: RocksDB syncs what is in its
/// directory, but not that the directory exists.
fn create_dir_durably(path: &Path) -> Result<(), StoreOpenError> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => return Ok(()),
    };
    create_dir_durably(parent)?;
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(io_error("creating", path)(error)),
        _ => sync_dir(parent),
    }
}

fn sync_dir(path: &Path) -> Result<(), StoreOpenError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(io_error("syncing", path))
}

fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreOpenError {
    let path = path.to_path_buf();
    move |source| StoreOpenError::Io { doing, path, source }
}
