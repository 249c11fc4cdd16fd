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
//! Two processes cannot hold one directory: RocksDB locks it (`LOCK`), and the lock goes with the process.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use godwit_core::keys;
use godwit_core::store::{Batch, Family, StoreError, StoreRead};
use rocksdb::{Cache, DB, ErrorKind};

use super::{RocksStore, Shared, StoreOptions, options};

/// The version of the whole store's layout that this build reads and writes.
pub const FORMAT_VERSION: u8 = 1;

const CREATING: &str = "GODWIT-CREATING";

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
        "the data directory {} has format version {found}, this godwit reads version {known}: start the godwit \
         version that wrote it, or a newer one",
        path.display()
    )]
    Format {
        /// The directory.
        path: PathBuf,
        /// The version found.
        found: u8,
        /// The version that this build reads.
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
        File::create(&marker).and_then(|file| file.sync_all()).map_err(io_error("creating", &marker))?;
        sync_dir(path)?;
    }
    let creating = marker.exists();

    let cache = Cache::new_lru_cache(options.block_cache_bytes);
    let families = options::families(options, &cache);
    let db = DB::open_cf_descriptors(&options::database(options, creating), path, families)
        .map_err(|error| open_error(path, &error))?;
    let store = RocksStore { shared: Arc::new(Shared { db, block_cache: cache, path: path.to_path_buf() }) };

    check_format(&store, creating)?;
    if creating {
        fs::remove_file(&marker).map_err(io_error("removing", &marker))?;
        sync_dir(path)?;
    }
    Ok(store)
}

fn check_format(store: &RocksStore, creating: bool) -> Result<(), StoreOpenError> {
    let path = || store.path().to_path_buf();
    let failed = |error: StoreError| StoreOpenError::Failed { path: path(), reason: error.to_string() };
    match store.get(Family::Meta, keys::FORMAT).map_err(failed)?.as_deref() {
        Some(&[FORMAT_VERSION]) => Ok(()),
        Some(&[found]) => Err(StoreOpenError::Format { path: path(), found, known: FORMAT_VERSION }),
        Some(other) => {
            let reason = format!("the format version has {} bytes instead of one", other.len());
            Err(StoreOpenError::Damaged { path: path(), reason })
        }
        None if creating => {
            let mut batch = Batch::default();
            batch.put(Family::Meta, keys::FORMAT.to_vec(), vec![FORMAT_VERSION]);
            store.commit(batch).map_err(failed)
        }
        None => {
            let reason = "it has no format version".to_string();
            Err(StoreOpenError::NotGodwit { path: path(), reason })
        }
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
