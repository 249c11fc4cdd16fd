//! What is written, and how: many commits at once, or so many a second.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use godwit_core::ids::{Field, Key, Namespace, RecordId};
use godwit_core::json::Json;
use godwit_core::op::{Op, Terms, Write};
use godwit_core::rng::Rng;
use godwit_server::node::NodeHandle;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::pair::PARTITIONS;

/// Commits that are under way at once where nothing else is said: a few groups of the committer's.
pub const WRITERS: usize = 256;

pub const KEY_BYTES: usize = 32;
pub const FIELD: &str = "title";
/// Bytes of a value's JSON.
pub const VALUE_BYTES: usize = 100;

/// What a client hands over for one value: key, field and value.
pub const PAYLOAD_BYTES: usize = KEY_BYTES + FIELD.len() + VALUE_BYTES;

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// The i-th record: neighbours in number are far apart in order.
pub fn record(i: u64) -> RecordId {
    let mut rng = Rng::new(i);
    let key = format!("{:016x}{:016x}", rng.draw(), i);
    assert_eq!(key.len(), KEY_BYTES);
    let namespace = Namespace::new("bench").expect("a name");
    RecordId { namespace, key: Key::new(key).expect("a name") }
}

/// A record of each partition in turn, all of them new: their numbers begin at `from`.
pub fn records_in_turn(from: u64, count: usize) -> Vec<RecordId> {
    let most = count.div_ceil(usize::from(PARTITIONS));
    let mut taken = vec![0; usize::from(PARTITIONS)];
    let mut records = Vec::new();
    for i in from.. {
        if records.len() == count {
            break;
        }
        let record = record(i);
        let taken = &mut taken[usize::from(record.partition(PARTITIONS).0)];
        if *taken < most {
            *taken += 1;
            records.push(record);
        }
    }
    records
}

/// A text of so many bytes, as JSON, that does not compress to less than three quarters.
pub fn value(rng: &mut Rng, bytes: usize) -> Json {
    let mut text = String::with_capacity(bytes);
    text.push('"');
    while text.len() < bytes - 1 {
        text.push(char::from(ALPHABET[(rng.draw() >> 58) as usize]));
    }
    text.push('"');
    Json::parse(&text).expect("JSON")
}

pub fn set(record: RecordId, value: Json) -> Write {
    Write { record, ops: vec![Op::Set { field: Field::new(FIELD).expect("a name"), value }] }
}

pub fn delete(record: RecordId) -> Write {
    Write { record, ops: vec![Op::Delete] }
}

/// Groups writes into commits of one partition each, of up to so many.
pub fn commits(writes: impl IntoIterator<Item = Write>, most: usize) -> impl Iterator<Item = Vec<Write>> {
    let mut homes: Vec<Vec<Write>> = vec![Vec::new(); usize::from(PARTITIONS)];
    let mut writes = writes.into_iter();
    let mut rest = Vec::new();
    std::iter::from_fn(move || {
        for write in writes.by_ref() {
            let home = &mut homes[usize::from(write.record.partition(PARTITIONS).0)];
            home.push(write);
            if home.len() == most {
                return Some(std::mem::take(home));
            }
        }
        rest.append(&mut homes);
        rest.retain(|home| !home.is_empty());
        rest.pop()
    })
}

async fn commit(node: &NodeHandle, writes: Vec<Write>) {
    let committed = node.commit(writes, Terms::default()).await.expect("a commit");
    assert!(committed.commit.is_some(), "every commit changes something");
}

/// Makes commits, so many at once. Returns how many.
pub async fn write_all(
    node: &NodeHandle,
    writers: usize,
    commits: impl Iterator<Item = Vec<Write>> + Send + 'static,
) -> usize {
    let commits = Arc::new(Mutex::new(commits));
    let mut tasks = JoinSet::new();
    for _ in 0..writers {
        let (node, commits) = (node.clone(), Arc::clone(&commits));
        tasks.spawn(async move {
            let mut made = 0;
            loop {
                let next = commits.lock().expect("writers do not panic").next();
                let Some(writes) = next else { break made };
                commit(&node, writes).await;
                made += 1;
            }
        });
    }
    tasks.join_all().await.into_iter().sum()
}

/// Begins so many commits a second, evenly, whether or not those before have ended, and waits for them all. `next` makes
/// each. Returns how many a second it came to.
pub async fn write_paced<F>(per_second: u64, time: Duration, mut next: impl FnMut(u64) -> F) -> f64
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut ticks = interval(Duration::from_millis(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let began = Instant::now();
    let mut tasks = JoinSet::new();
    let mut begun = 0;
    while began.elapsed() < time {
        ticks.tick().await;
        let due = (began.elapsed().as_secs_f64() * per_second as f64) as u64;
        while begun < due {
            tasks.spawn(next(begun));
            begun += 1;
        }
        while tasks.try_join_next().is_some() {}
    }
    tasks.join_all().await;
    begun as f64 / began.elapsed().as_secs_f64()
}

/// One write as a commit of its own.
pub async fn write_one(node: NodeHandle, write: Write) {
    commit(&node, vec![write]).await;
}
