//! Automerge's sync protocol, for one document and one peer, where documents are stored elsewhere.
//!
//! The protocol is that of <https://automerge.org/automerge/automerge/sync/>: peers tell their heads and a Bloom filter of what they
//! have, and send what the other seems to lack. Automerge's own part takes changes straight into its document. Here they are taken out
//! of a message ([`SyncMessage::parse`]), committed by whoever listens as far as they can be ([`SyncState::admit`]), and the rest of the
//! message is heard once the document has them ([`Document::hear`]).
//!
//! What holds:
//!
//! - *What a peer sends is bounded before Automerge sees it*: hashes, filters and their probes, and every chunk as [`super::chunk`] says.
//! - *Changes are committed after those that they build on.* A filter may have left one of these out: what builds on it waits, within
//!   [`WAITING_MAX`] and [`WAITING_BYTES_MAX`], and is asked for.
//! - *A peer that has not heard of a clear does not undo it.* Changes that are stored and hidden are taken again only with one that is not
//!   stored yet and builds on them: a new edit beside the clear, which stays as it would have at another node.
//! - *An exchange ends.* What would say the same as the last message is not said: with hidden changes heads stay different for good.

use std::collections::{BTreeMap, BTreeSet};

use automerge::ChangeHash;
use automerge::sync::{ChunkList, Message, State, SyncDoc};

use super::chunk::{ChunkError, Input};
use super::{Document, DocumentError, Encoded, changes_of_file, failed, guarded, select};

/// Changes that wait for others that they build on.
pub const WAITING_MAX: usize = 10_000;
/// Bytes of them.
pub const WAITING_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Hashes that a message names.
const HASHES_MAX: usize = 10_000;
/// Filters of a message.
const FILTERS_MAX: usize = 16;
/// Bytes of a filter: of a million changes, as Automerge makes it, and some.
const FILTER_BYTES_MAX: usize = 2 * 1024 * 1024;
/// How often a filter is looked into for each change. Automerge makes it 7.
const PROBES_MAX: u64 = 64;

/// What is known of a peer, about one document.
#[derive(Debug, Default)]
pub struct SyncState {
    state: State,
    /// Digest of the last message without changes.
    said: Option<blake3::Hash>,
    /// Changes that build on others that are not there.
    waiting: BTreeMap<ChangeHash, Encoded>,
    /// Bytes of the peer's last filters and hashes.
    heard_bytes: usize,
}

/// What a peer says of one document.
#[derive(Debug)]
pub struct SyncMessage {
    /// Without changes.
    message: Message,
    has_changes: bool,
    bytes: usize,
    changes: Vec<Encoded>,
}

impl SyncMessage {
    /// Reads a message.
    pub fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        let chunks = check(bytes)?;
        let mut message = guarded(|| Message::decode(bytes).map_err(failed))?;
        message.changes = ChunkList::empty();
        let changes = if chunks.is_empty() { Vec::new() } else { changes_of_file(&chunks)? };
        Ok(Self { message, has_changes: !chunks.is_empty(), bytes: bytes.len() - chunks.len(), changes })
    }

    /// Whether the peer says that it has something of the document.
    pub fn has_heads(&self) -> bool {
        !self.message.heads.is_empty()
    }

    /// The changes that it brings, each after those that it builds on. They are handed out once.
    pub fn take_changes(&mut self) -> Vec<Encoded> {
        std::mem::take(&mut self.changes)
    }
}

impl SyncState {
    /// Of changes that came, and those that wait: which are to be committed, each after those that it builds on. `stored` tells of a change
    /// whether it is stored, hidden or not.
    pub fn admit(
        &mut self,
        came: Vec<Encoded>,
        document: &Document,
        stored: impl Fn(&ChangeHash) -> bool,
    ) -> Result<Vec<Encoded>, DocumentError> {
        let mut batch = std::mem::take(&mut self.waiting);
        batch.extend(came.into_iter().map(|encoded| (encoded.change.hash, encoded)));
        batch.retain(|hash, _| !document.has(hash));
        let ordered = select::in_causal_order(batch);
        let mut whole: BTreeMap<ChangeHash, usize> = BTreeMap::new();
        for (index, encoded) in ordered.iter().enumerate() {
            if encoded.change.deps.iter().all(|dep| whole.contains_key(dep) || document.has(dep)) {
                whole.insert(encoded.change.hash, index);
            }
        }
        let mut wanted: BTreeSet<ChangeHash> = BTreeSet::new();
        let mut left: Vec<ChangeHash> = whole.keys().filter(|hash| !stored(hash)).copied().collect();
        while let Some(hash) = left.pop() {
            if let Some(index) = whole.get(&hash)
                && wanted.insert(hash)
            {
                left.extend(&ordered[*index].change.deps);
            }
        }
        let mut admitted = Vec::with_capacity(wanted.len());
        for encoded in ordered {
            let hash = encoded.change.hash;
            if wanted.contains(&hash) {
                admitted.push(encoded);
            } else if !whole.contains_key(&hash) {
                self.waiting.insert(hash, encoded);
            }
        }
        let bytes: usize = self.waiting.values().map(Encoded::bytes_held).sum();
        match self.waiting.len() <= WAITING_MAX && bytes <= WAITING_BYTES_MAX {
            true => Ok(admitted),
            false => Err(ChunkError::TooLarge("changes that build on others which did not come").into()),
        }
    }

    /// Has changes wait that were to be committed and build on others that are not there any more.
    pub fn put_back(&mut self, changes: Vec<Encoded>) {
        self.waiting.extend(changes.into_iter().map(|encoded| (encoded.change.hash, encoded)));
    }

    /// Whether changes wait for others.
    pub fn waits(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// About the memory that it takes beyond a few hundred bytes.
    pub fn bytes_held(&self) -> usize {
        let waiting: usize = self.waiting.values().map(Encoded::bytes_held).sum();
        self.heard_bytes + waiting + self.state.sent_hashes.len() * size_of::<ChangeHash>()
    }
}

impl Document {
    /// Hears what a peer says, whose changes it has as far as they could be committed. After an error it is to be dropped, and so is the
    /// state.
    pub fn hear(&mut self, state: &mut SyncState, message: SyncMessage) -> Result<(), DocumentError> {
        let SyncMessage { message, has_changes, bytes, .. } = message;
        let last_sent =
            (has_changes && !message.heads.is_empty()).then(|| state.state.last_sent_heads.clone());
        guarded(|| self.automerge.receive_sync_message(&mut state.state, message).map_err(failed))?;
        // As if the changes had come with the message: the peer is yet to be told that they are here.
        if let Some(last_sent) = last_sent {
            state.state.last_sent_heads = last_sent;
        }
        state.heard_bytes = bytes;
        Ok(())
    }

    /// What is to be said to a peer now, if anything.
    pub fn tell(&self, state: &mut SyncState) -> Result<Option<Vec<u8>>, DocumentError> {
        let message = guarded(|| {
            if state.waiting.is_empty() {
                return Ok(self.automerge.generate_sync_message(&mut state.state));
            }
            // Automerge asks for what the changes in its queue lack.
            let mut with_waiting = self.automerge.clone();
            let waiting =
                state.waiting.values().map(|encoded| automerge::Change::from_bytes(encoded.bytes.clone()));
            let waiting = waiting.collect::<Result<Vec<_>, _>>().map_err(failed)?;
            with_waiting.apply_changes(waiting).map_err(failed)?;
            Ok(with_waiting.generate_sync_message(&mut state.state))
        })?;
        let Some(message) = message else { return Ok(None) };
        let has_changes = !message.changes.is_empty();
        let bytes = message.encode();
        let said = (!has_changes).then(|| blake3::hash(&bytes));
        if said.is_some() && said == state.said {
            return Ok(None);
        }
        state.said = said;
        Ok(Some(bytes))
    }
}

/// Checks a message against the limits; its chunks, one after the other.
fn check(bytes: &[u8]) -> Result<Vec<u8>, ChunkError> {
    let mut input = Input(bytes);
    if !matches!(input.take(1)?, [0x42 | 0x43]) {
        return Err(ChunkError::Malformed("no sync message"));
    }
    let mut hashes = 0;
    for _ in ["heads", "need"] {
        hashes += pass_hashes(&mut input)?;
    }
    let filters = input.count()?;
    if filters > FILTERS_MAX as u64 {
        return Err(ChunkError::TooLarge("filters of a sync message"));
    }
    for _ in 0..filters {
        hashes += pass_hashes(&mut input)?;
        check_filter(input.prefixed()?)?;
    }
    if hashes > HASHES_MAX {
        return Err(ChunkError::TooLarge("hashes of a sync message"));
    }
    let mut chunks = Vec::new();
    for _ in 0..input.count()? {
        chunks.extend_from_slice(input.prefixed()?);
    }
    Ok(chunks)
}

fn pass_hashes(input: &mut Input<'_>) -> Result<usize, ChunkError> {
    let count = input.count()? as usize;
    input.take(count.checked_mul(32).ok_or(ChunkError::Malformed("it ends too early"))?)?;
    Ok(count)
}

/// Automerge divides by the bits of a filter, and makes room for its probes.
fn check_filter(bytes: &[u8]) -> Result<(), ChunkError> {
    if bytes.len() > FILTER_BYTES_MAX {
        return Err(ChunkError::TooLarge("a filter of a sync message"));
    }
    if bytes.is_empty() {
        return Ok(());
    }
    let mut input = Input(bytes);
    let (entries, bits, probes) = (input.uleb()?, input.uleb()?, input.uleb()?);
    if probes > PROBES_MAX {
        return Err(ChunkError::TooLarge("probes of a filter"));
    }
    let needed = entries.checked_mul(bits).map(|bits| bits.div_ceil(8));
    match needed.is_some_and(|needed| needed > 0 && needed <= input.0.len() as u64) || entries == 0 {
        true => Ok(()),
        false => Err(ChunkError::Malformed("a filter is not as long as it says")),
    }
}

#[cfg(test)]
mod tests;
