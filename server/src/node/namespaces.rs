//! What this node knows of namespaces: their settings, which are replicated, and what they take here, which is counted.
//!
//! Settings are data like any other: registers of a record a namespace, in a namespace of their own ([`RESERVED`]) whose records
//! share a partition. So they are durable, reach every region, and of two that did not know of each other the later one counts.
//! The fields:
//!
//! | field | JSON |
//! |---|---|
//! | `settings` | [`Settings`]; where it is live, the namespace was made on purpose |
//! | `deletion` | [`Deletion`]: the namespace is being deleted, by the node that it names ([`super::erasure`]) |
//!
//! What holds:
//!
//! - *Known soon.* What is kept in memory follows the partition's context: it is read anew where a request might be refused by it,
//!   and [`LOOK_EVERY`] at the latest.
//! - *Quotas are soft.* Each node holds its own clients to what it has counted in its own store. Groups of commits, and regions
//!   that do not hear of each other, may pass a quota; what peers send is never refused.
//! - *Counts are exact.* Every batch passes [`Counting`], which adds what it changes; see [`godwit_core::usage`]. Only namespaces
//!   with a quota on keys or bytes are counted: the others cost nothing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use godwit_core::context::VersionVector;
use godwit_core::ids::{Field, Key, Namespace, PartitionId, RecordId};
use godwit_core::partition::stored_context;
use godwit_core::read::{self, PageLimits, ReadAt, ReadError, ReadLimits, Value};
use godwit_core::store::{Batch, Family, StoreError, StoreRead, Visit};
use godwit_core::usage::{Counts, Usage};
use godwit_engine::store::{Commit, Durability, Reader, RocksStore};
use serde::{Deserialize, Serialize};

use super::{NodeHandle, StoreView};

/// Where settings are. No client can name it.
pub(crate) const RESERVED: &str = "godwit-namespaces";

/// The tag that all its keys begin with.
const TAG: &str = "{namespaces}";
/// The register of the settings.
const SETTINGS: &str = "settings";
/// The register of a deletion.
const DELETION: &str = "deletion";

/// From one look for changed settings to the next.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Rows and marks that one step of a count passes over: commits wait for it.
const STEP_ROWS: usize = 256;
/// Between two steps.
const STEP_PAUSE: Duration = Duration::from_millis(2);
/// A page of the list of settings.
const PAGE: PageLimits = PageLimits { items_max: 1_000, bytes_max: 1 << 20, rows_max: 10_000 };
/// Bytes of the JSON that is read of one namespace: what a peer wrote is larger only by mistake.
const RECORD_BYTES_MAX: usize = 64 * 1024;

/// Settings of a namespace; what is absent is not limited.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Settings {
    /// Records, at each node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max_keys: Option<u64>,
    /// Bytes of rows, at each node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max_bytes: Option<u64>,
    /// Requests a second, at each node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) requests_per_second: Option<u32>,
    /// Settings that this version does not know.
    #[serde(flatten)]
    pub(crate) unknown: BTreeMap<String, serde_json::Value>,
}

/// A deletion that is under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Deletion {
    /// The node that deletes.
    pub(crate) node: String,
    /// Since when, in milliseconds since 1970 by that node's clock.
    pub(crate) since_ms: u64,
}

/// A namespace of which there is something to know.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// `None`: it was not made on purpose.
    pub(crate) settings: Option<Settings>,
    pub(crate) deletion: Option<Deletion>,
    bucket: Mutex<Bucket>,
}

/// Why a request is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Nobody made the namespace, and writing does not make it.
    Absent,
    /// It is being deleted, by a node.
    Deleting(String),
    /// More than so many requests in a second.
    TooFast(u32),
}

/// A quota that is used up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the namespace has {used} {what} here, and its quota is {max}: delete something, or raise {setting}")]
pub struct QuotaExceeded {
    /// What there is too much of.
    pub what: &'static str,
    /// The setting that limits it.
    pub setting: &'static str,
    /// How much there is.
    pub used: u64,
    /// How much there may be.
    pub max: u64,
}

/// All that is known.
#[derive(Debug)]
pub(crate) struct Namespaces {
    partitions: u16,
    /// Whether a write makes its namespace.
    auto_create: bool,
    known: RwLock<Arc<Directory>>,
    /// Held over a commit and over a step, so that neither falls into the other.
    counts: Mutex<Counts>,
    /// What the counts came to, for who must not wait for a commit.
    usage: RwLock<BTreeMap<Namespace, Usage>>,
}

#[derive(Debug, Default)]
struct Directory {
    /// The partition's context that it was read at.
    at: VersionVector,
    named: BTreeMap<Namespace, Arc<Known>>,
}

impl Namespaces {
    pub(super) fn new(partitions: u16, auto_create: bool) -> Self {
        Self {
            partitions,
            auto_create,
            known: RwLock::default(),
            counts: Mutex::default(),
            usage: RwLock::default(),
        }
    }

    /// What is known of a namespace.
    pub(crate) fn known(&self, namespace: &Namespace) -> Option<Arc<Known>> {
        self.directory().named.get(namespace).cloned()
    }

    /// The namespaces after one, of which something is known.
    pub(crate) fn after(&self, after: Option<&Namespace>, most: usize) -> Vec<(Namespace, Arc<Known>)> {
        let directory = self.directory();
        let beyond = directory.named.iter().filter(|(name, _)| after.is_none_or(|after| *name > after));
        beyond.take(most).map(|(name, known)| (name.clone(), Arc::clone(known))).collect()
    }

    /// What a namespace takes here, if it has a quota, and has been counted since.
    pub(crate) fn usage(&self, namespace: &Namespace) -> Option<Usage> {
        self.usage.read().unwrap_or_else(PoisonError::into_inner).get(namespace).copied()
    }

    /// What namespaces with quotas take here, as far as they are counted.
    pub(crate) fn usages(&self) -> Vec<(Namespace, Usage)> {
        let usage = self.usage.read().unwrap_or_else(PoisonError::into_inner);
        usage.iter().map(|(name, usage)| (name.clone(), *usage)).collect()
    }

    /// Takes a request, or says why not.
    pub(crate) fn admit(&self, namespace: &Namespace) -> Result<(), Refused> {
        let known = self.known(namespace);
        match known.as_deref() {
            Some(Known { deletion: Some(deletion), .. }) => Err(Refused::Deleting(deletion.node.clone())),
            Some(Known { settings: Some(settings), bucket, .. }) => match settings.requests_per_second {
                Some(rate) if !lock(bucket).take(rate, Instant::now()) => Err(Refused::TooFast(rate)),
                _ => Ok(()),
            },
            _ if self.auto_create => Ok(()),
            _ => Err(Refused::Absent),
        }
    }

    /// The quotas that are used up: on keys, and on bytes.
    pub(crate) fn exceeded(&self, namespace: &Namespace) -> [Option<QuotaExceeded>; 2] {
        let known = self.known(namespace);
        let settings = known.as_ref().and_then(|known| known.settings.as_ref());
        let (Some(settings), Some(usage)) = (settings, self.usage(namespace)) else { return [None, None] };
        let exceeded = |what, setting, used, max: Option<u64>| {
            max.filter(|max| used >= *max).map(|max| QuotaExceeded { what, setting, used, max })
        };
        [
            exceeded("keys", "max_keys", usage.keys, settings.max_keys),
            exceeded("bytes", "max_bytes", usage.bytes, settings.max_bytes),
        ]
    }

    /// Reads the settings anew if something changed where they are.
    pub(crate) fn refresh(&self, store: &StoreView<'_>, at: ReadAt) -> Result<(), ReadError> {
        let context = stored_context(store, home(self.partitions))?;
        if self.directory().at == context {
            return Ok(());
        }
        let mut named = BTreeMap::new();
        let (reserved, mut after) = (reserved(), None::<Key>);
        loop {
            let from = after.as_ref().map(Key::as_str);
            let page = read::list_keys(store, at, &reserved, TAG, from, PAGE)?;
            for key in page.items {
                let name = key.as_str().strip_prefix(TAG).unwrap_or_default();
                let Ok(name) = Namespace::new(name) else { continue };
                let id = RecordId { namespace: reserved.clone(), key };
                named.insert(name, Arc::new(read_known(store, at, &id)?));
            }
            match page.next {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        self.take(Directory { at: context, named });
        Ok(())
    }

    fn take(&self, directory: Directory) {
        let is_counted = |known: &Known| {
            let settings = known.settings.as_ref();
            settings.is_some_and(|of| of.max_keys.is_some() || of.max_bytes.is_some())
        };
        let mut counts = lock(&self.counts);
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        // Another look may have been quicker, and later.
        if !directory.at.covers_all(&known.at) {
            return;
        }
        counts.follow(directory.named.iter().filter(|(_, known)| is_counted(known)).map(|(name, _)| name));
        *known = Arc::new(directory);
        drop(known);
        self.publish(&counts);
    }

    /// What all counts came to.
    fn publish(&self, counts: &Counts) {
        let usages = counts.usages().map(|(namespace, usage)| (namespace.clone(), usage));
        *self.usage.write().unwrap_or_else(PoisonError::into_inner) = usages.collect();
    }

    /// A step of the counts. Tells whether there is more to count.
    pub(super) fn count(&self, store: &RocksStore) -> Result<bool, StoreError> {
        let mut counts = lock(&self.counts);
        if counts.is_empty() {
            return Ok(false);
        }
        let more = counts.step(store, self.partitions, STEP_ROWS)?;
        if !more {
            self.publish(&counts);
        }
        Ok(more)
    }

    fn directory(&self) -> Arc<Directory> {
        Arc::clone(&self.known.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Keeps what is known up to date, until the node stops.
pub(super) async fn keep(node: NodeHandle) {
    while node.is_ready() {
        if let Err(error) = node.refresh_namespaces().await {
            tracing::error!(%error, "the settings of namespaces cannot be read");
        }
        let more = node.count_namespaces().await.unwrap_or_else(|error| {
            tracing::error!(%error, "namespaces cannot be counted");
            false
        });
        tokio::time::sleep(if more { STEP_PAUSE } else { LOOK_EVERY }).await;
    }
}

/// The record of a namespace's settings.
pub(crate) fn record_of(namespace: &Namespace) -> RecordId {
    // At most 75 bytes, and no control characters.
    let key = Key::new(format!("{TAG}{}", namespace.as_str())).expect("a name is part of a key");
    RecordId { namespace: reserved(), key }
}

/// The register of the settings.
pub(crate) fn settings_field() -> Field {
    Field::new(SETTINGS).expect("it is a field's name")
}

/// The register of a deletion.
pub(crate) fn deletion_field() -> Field {
    Field::new(DELETION).expect("it is a field's name")
}

fn reserved() -> Namespace {
    Namespace::new(RESERVED).expect("it is a namespace's name")
}

/// The partition of all settings.
pub(crate) fn home(partitions: u16) -> PartitionId {
    let key = Key::new(TAG).expect("it is a key");
    RecordId { namespace: reserved(), key }.partition(partitions)
}

fn read_known(store: &StoreView<'_>, at: ReadAt, record: &RecordId) -> Result<Known, ReadError> {
    let limits = ReadLimits { members_max: 0, bytes_max: RECORD_BYTES_MAX };
    let mut known = Known::default();
    for view in read::record(store, at, record, limits)? {
        let Value::Register { value, .. } = view.value else { continue };
        let unreadable = |error: serde_json::Error| {
            tracing::error!(%record, field = view.field.as_str(), %error, "a namespace's setting is not readable");
        };
        match view.field.as_str() {
            SETTINGS => known.settings = serde_json::from_str(&value).map_err(unreadable).ok(),
            DELETION => known.deletion = serde_json::from_str(&value).map_err(unreadable).ok(),
            _ => {}
        }
    }
    Ok(known)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Lets through so many requests a second, and as many at once after a second without any (the generic cell rate
/// algorithm, ITU-T I.371).
#[derive(Debug, Default)]
struct Bucket {
    /// When all that was let through would have been, evenly spaced.
    due: Option<Instant>,
}

impl Bucket {
    fn take(&mut self, rate: u32, now: Instant) -> bool {
        let apart = Duration::from_secs(1) / rate.max(1);
        let due = self.due.map_or(now, |due| due.max(now));
        let goes = due + apart <= now + Duration::from_secs(1);
        if goes {
            self.due = Some(due + apart);
        }
        goes
    }
}

/// The store, as the committer writes to it: what a batch changes of namespaces with quotas is counted.
#[derive(Debug, Clone)]
pub(super) struct Counting {
    pub(super) store: RocksStore,
    pub(super) namespaces: Arc<Namespaces>,
}

impl Counting {
    fn counted(
        &self,
        batch: &Batch,
        write: impl FnOnce() -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let mut counts = lock(&self.namespaces.counts);
        if counts.is_empty() {
            // Held all the same: a count that begins now finds the batch either in the store or told.
            return write();
        }
        let changed = counts.change(&self.store, batch)?;
        write()?;
        if !changed.is_empty() {
            let mut usage = self.namespaces.usage.write().unwrap_or_else(PoisonError::into_inner);
            let now = changed.into_iter().filter_map(|name| counts.usage(&name).map(|usage| (name, usage)));
            usage.extend(now);
        }
        Ok(())
    }
}

impl Commit for Counting {
    type Reader<'s> = Reader<'s>;

    fn reader(&self) -> Reader<'_> {
        self.store.reader()
    }

    fn commit(&self, batch: &Batch) -> Result<(), StoreError> {
        self.counted(batch, || self.store.commit(batch))
    }

    fn durability(&self) -> Durability {
        self.store.durability()
    }

    fn write(&self, batch: &Batch) -> Result<(), StoreError> {
        self.counted(batch, || self.store.write(batch))
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.store.sync()
    }
}

impl StoreRead for Counting {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.store.get(family, key)
    }

    fn scan(&self, family: Family, from: &[u8], to: &[u8], visit: Visit<'_>) -> Result<(), StoreError> {
        self.store.scan(family, from, to, visit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_lets_through_its_rate_and_a_second_of_it_at_once() {
        let (mut bucket, begun) = (Bucket::default(), Instant::now());
        let at = |ms| begun + Duration::from_millis(ms);
        let mut let_through = |ms, tries| (0..tries).filter(|_| bucket.take(10, at(ms))).count();
        assert_eq!(let_through(0, 50), 10);
        assert_eq!(let_through(99, 50), 0);
        assert_eq!(let_through(100, 50), 1);
        assert_eq!(let_through(550, 50), 4);
        assert_eq!(let_through(60_000, 50), 10);
    }

    #[test]
    fn settings_of_later_versions_are_kept_and_told() {
        let text = r#"{"max_keys":3,"shade":"blue"}"#;
        let settings: Settings = serde_json::from_str(text).unwrap();
        assert_eq!((settings.max_keys, settings.max_bytes), (Some(3), None));
        assert_eq!(serde_json::to_string(&settings).unwrap(), text);
    }

    #[test]
    fn all_settings_share_a_partition() {
        for name in ["a", "shop", &"z".repeat(63)] {
            assert_eq!(record_of(&Namespace::new(name).unwrap()).partition(64), home(64));
        }
    }
}
