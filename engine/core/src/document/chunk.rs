//! Automerge's binary chunks, held to limits before Automerge sees them.
//!
//! The format is that of <https://automerge.org/automerge-binary-format-spec/>: a header with a checksum, then the body. Columns are
//! run-length encoded, and compressed chunks deflated, so a few bytes can stand for any number of operations. Here every chunk is
//! inflated under a limit, and the runs of every column are added up without being laid out.
//!
//! What holds of a [`Change`] or [`Chunk`] that was read here: its checksum is right; its body, inflated, has at most
//! [`CHUNK_BYTES_MAX`] bytes; it has at most [`CHUNK_OPS_MAX`] operations, and its columns stand for no more than a bounded number of
//! values. Whether its operations make sense only Automerge can tell.

use std::io::Read;

use automerge::ChangeHash;
use sha2::{Digest, Sha256};

/// The most bytes of a chunk's body, inflated.
pub const CHUNK_BYTES_MAX: usize = 64 * 1024 * 1024;
/// The most operations of a chunk.
pub const CHUNK_OPS_MAX: u64 = 4_000_000;
/// The most values that the columns of a chunk stand for, all together.
const VALUES_MAX: u64 = 16 * CHUNK_OPS_MAX;
/// The most bytes of text that the runs of a chunk's columns stand for.
const TEXT_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// The most columns of a chunk.
const COLUMNS_MAX: u64 = 64;
/// The most bytes of an actor's id.
const ACTOR_BYTES_MAX: usize = 256;

const MAGIC: [u8; 4] = [0x85, 0x6f, 0x4a, 0x83];
const DEFLATE_BIT: u32 = 0b1000;

/// Why bytes are no chunk that is taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChunkError {
    /// They are not of the format.
    #[error("not Automerge's format: {0}")]
    Malformed(&'static str),
    /// They stand for more than is taken.
    #[error("too much for one chunk: {0}")]
    TooLarge(&'static str),
}

/// What kind of chunk it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A whole document.
    Document,
    /// A change, compressed or not.
    Change,
}

/// A chunk within bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk<'b> {
    /// Its kind.
    pub kind: Kind,
    /// All of its bytes.
    pub bytes: &'b [u8],
    /// How many operations it has.
    pub ops: u64,
}

/// What a change says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Its hash, which names it.
    pub hash: ChangeHash,
    /// The changes that it builds on.
    pub deps: Vec<ChangeHash>,
    /// Who made it.
    pub actor: Vec<u8>,
    /// The number of the change among the actor's, from 1 on.
    pub seq: u64,
    /// How many operations it has.
    pub ops: u64,
    /// When its author says that it was made, in seconds since 1970.
    pub time: i64,
    /// What its author says of it.
    pub message: Option<String>,
    /// Bytes of its chunk before compression.
    pub raw_bytes: usize,
}

impl Change {
    /// Reads a change: exactly one chunk.
    pub fn parse(bytes: &[u8]) -> Result<Self, ChunkError> {
        let mut input = Input(bytes);
        let header = Header::parse(&mut input)?;
        if !input.0.is_empty() {
            return Err(ChunkError::Malformed("bytes after the chunk"));
        }
        match header.kind {
            1 => Self::of_body(header.checksum, header.body),
            2 => Self::of_body(header.checksum, &inflate(header.body, CHUNK_BYTES_MAX)?),
            _ => Err(ChunkError::Malformed("not a change")),
        }
    }

    fn of_body(checksum: [u8; 4], body: &[u8]) -> Result<Self, ChunkError> {
        let hash = checked_hash(checksum, 1, body)?;
        let mut input = Input(body);
        let deps = input.hashes()?;
        let actor = input.actor()?.to_vec();
        let (seq, start_op) = (input.uleb()?, input.uleb()?);
        let time = input.sleb()?;
        let message = input.prefixed()?;
        let message =
            std::str::from_utf8(message).map_err(|_| ChunkError::Malformed("a message that is no UTF-8"))?;
        for _ in 0..input.count()? {
            input.actor()?;
        }
        let columns = Columns::parse(&mut input)?;
        if columns.iter().any(|(spec, _)| spec & DEFLATE_BIT != 0) {
            return Err(ChunkError::Malformed("a change with compressed columns"));
        }
        let mut tally = Tally::default();
        let ops = tally.columns(&columns, &mut input, ACTION)?;
        if seq == 0 || start_op == 0 {
            return Err(ChunkError::Malformed("a change or operation numbered 0"));
        }
        if start_op.checked_add(ops).is_none_or(|end| u32::try_from(end).is_err()) {
            return Err(ChunkError::TooLarge("operations numbered beyond 32 bits"));
        }
        Ok(Self {
            hash,
            deps,
            actor,
            seq,
            ops,
            time,
            message: (!message.is_empty()).then(|| message.to_owned()),
            raw_bytes: body.len(),
        })
    }
}

/// Reads all chunks of a file: of a saved document, or of changes one after the other.
pub fn chunks(bytes: &[u8]) -> Result<Vec<Chunk<'_>>, ChunkError> {
    let mut input = Input(bytes);
    let (mut chunks, mut room) = (Vec::new(), CHUNK_BYTES_MAX);
    while !input.0.is_empty() {
        let before = input.0;
        let header = Header::parse(&mut input)?;
        let bytes = &before[..before.len() - input.0.len()];
        let (kind, ops, inflated) = match header.kind {
            0 => {
                checked_hash(header.checksum, 0, header.body)?;
                let (ops, inflated) = document(header.body, room)?;
                (Kind::Document, ops, inflated)
            }
            1 | 2 => {
                let change = Change::parse(bytes)?;
                (Kind::Change, change.ops, change.raw_bytes)
            }
            _ => return Err(ChunkError::Malformed("a chunk that is neither a document nor a change")),
        };
        room = room.checked_sub(inflated).ok_or(ChunkError::TooLarge("bytes of all chunks"))?;
        chunks.push(Chunk { kind, bytes, ops });
        if chunks.iter().map(|chunk| chunk.ops).sum::<u64>() > CHUNK_OPS_MAX {
            return Err(ChunkError::TooLarge("operations of all chunks"));
        }
    }
    Ok(chunks)
}

/// The operations of a document's chunk, and its bytes once inflated.
fn document(body: &[u8], room: usize) -> Result<(u64, usize), ChunkError> {
    let mut input = Input(body);
    for _ in 0..input.count()? {
        input.actor()?;
    }
    input.hashes()?;
    let changes = Columns::parse(&mut input)?;
    let ops = Columns::parse(&mut input)?;
    let mut tally = Tally { room, ..Tally::default() };
    tally.columns(&changes, &mut input, CHANGE_ACTOR)?;
    let ops = tally.columns(&ops, &mut input, ACTION)?;
    Ok((ops, body.len() + room - tally.room))
}

struct Header<'b> {
    checksum: [u8; 4],
    kind: u8,
    body: &'b [u8],
}

impl<'b> Header<'b> {
    fn parse(input: &mut Input<'b>) -> Result<Self, ChunkError> {
        if input.take(4)? != MAGIC {
            return Err(ChunkError::Malformed("it does not begin as a chunk does"));
        }
        let mut checksum = [0; 4];
        checksum.copy_from_slice(input.take(4)?);
        let kind = input.take(1)?[0];
        Ok(Self { checksum, kind, body: input.prefixed()? })
    }
}

/// The hash of a chunk of a kind, if it is what the header's checksum begins.
fn checked_hash(checksum: [u8; 4], kind: u8, body: &[u8]) -> Result<ChangeHash, ChunkError> {
    let mut hasher = Sha256::new();
    hasher.update([kind]);
    let mut length = body.len() as u64;
    while length >= 0x80 {
        hasher.update([length as u8 | 0x80]);
        length >>= 7;
    }
    hasher.update([length as u8]);
    hasher.update(body);
    let hash: [u8; 32] = hasher.finalize().into();
    match hash[..4] == checksum {
        true => Ok(ChangeHash(hash)),
        false => Err(ChunkError::Malformed("the checksum is wrong")),
    }
}

fn inflate(bytes: &[u8], max: usize) -> Result<Vec<u8>, ChunkError> {
    let mut inflated = Vec::new();
    let mut reader = flate2::bufread::DeflateDecoder::new(bytes).take(max as u64 + 1);
    reader.read_to_end(&mut inflated).map_err(|_| ChunkError::Malformed("it cannot be inflated"))?;
    match inflated.len() <= max {
        true => Ok(inflated),
        false => Err(ChunkError::TooLarge("bytes once inflated")),
    }
}

/// The columns of which there is one value an operation, or a change.
const ACTION: u32 = 4 << 4 | 2;
const CHANGE_ACTOR: u32 = 1;

type Column = (u32, usize);
struct Columns;

impl Columns {
    fn parse(input: &mut Input<'_>) -> Result<Vec<Column>, ChunkError> {
        let count = input.uleb()?;
        if count > COLUMNS_MAX {
            return Err(ChunkError::TooLarge("columns"));
        }
        let mut columns: Vec<Column> = Vec::new();
        for _ in 0..count {
            let spec =
                u32::try_from(input.uleb()?).map_err(|_| ChunkError::Malformed("a column's number"))?;
            let length =
                usize::try_from(input.uleb()?).map_err(|_| ChunkError::Malformed("a column's length"))?;
            if columns.last().is_some_and(|(last, _)| last & !DEFLATE_BIT >= spec & !DEFLATE_BIT) {
                return Err(ChunkError::Malformed("columns out of order"));
            }
            columns.push((spec, length));
        }
        Ok(columns)
    }
}

/// What the columns of a chunk stand for.
struct Tally {
    /// Bytes that may still be inflated.
    room: usize,
    values: u64,
    text_bytes: u64,
}

impl Default for Tally {
    fn default() -> Self {
        Self { room: CHUNK_BYTES_MAX, values: 0, text_bytes: 0 }
    }
}

impl Tally {
    /// Adds columns, and tells how many values that one has of which there is one each.
    fn columns(&mut self, columns: &[Column], input: &mut Input<'_>, each: u32) -> Result<u64, ChunkError> {
        let (mut ones, mut value_bytes) = (0, None);
        for &(spec, length) in columns {
            let inflated;
            let mut data = input.take(length)?;
            if spec & DEFLATE_BIT != 0 {
                inflated = inflate(data, self.room)?;
                self.room -= inflated.len();
                data = &inflated;
            }
            let ty = spec & 0b111;
            if ty == 7 {
                if value_bytes.take().is_some_and(|bytes| bytes != data.len() as u64) {
                    return Err(ChunkError::Malformed("values of other lengths than said"));
                }
                continue;
            }
            let Runs { entries, sum, text_bytes } = runs(ty, data)?;
            if ty == 6 {
                value_bytes = Some(sum);
            }
            if ty == 0 && sum > CHUNK_OPS_MAX {
                return Err(ChunkError::TooLarge("values of a group"));
            }
            self.values = self.values.saturating_add(entries);
            self.text_bytes = self.text_bytes.saturating_add(text_bytes);
            if self.values > VALUES_MAX || self.text_bytes > TEXT_BYTES_MAX {
                return Err(ChunkError::TooLarge("values of its columns"));
            }
            if spec & !DEFLATE_BIT == each {
                ones = entries;
            }
        }
        if value_bytes.is_some_and(|bytes| bytes > 0) {
            return Err(ChunkError::Malformed("values of other lengths than said"));
        }
        match ones <= CHUNK_OPS_MAX {
            true => Ok(ones),
            false => Err(ChunkError::TooLarge("operations")),
        }
    }
}

/// What the runs of a column come to.
#[derive(Default)]
struct Runs {
    entries: u64,
    /// Of a group: of its values; of what tells of values: of their lengths.
    sum: u64,
    text_bytes: u64,
}

fn runs(ty: u32, data: &[u8]) -> Result<Runs, ChunkError> {
    let mut input = Input(data);
    let mut runs = Runs::default();
    if ty == 4 {
        while !input.0.is_empty() {
            runs.entries = runs.entries.saturating_add(input.uleb()?);
        }
        return Ok(runs);
    }
    while !input.0.is_empty() {
        let length = input.sleb()?;
        let (times, literals) = match length {
            0 => {
                runs.entries = runs.entries.saturating_add(input.uleb()?);
                continue;
            }
            1.. => (length.unsigned_abs(), 1),
            _ => (1, length.unsigned_abs()),
        };
        for _ in 0..literals {
            let value = match ty {
                3 => input.sleb().map(|_| 0)?,
                5 => input.prefixed()?.len() as u64,
                _ => input.uleb()?,
            };
            let value = if ty == 6 { value >> 4 } else { value };
            runs.entries = runs.entries.saturating_add(times);
            let sum = if ty == 5 { &mut runs.text_bytes } else { &mut runs.sum };
            *sum = sum.saturating_add(value.saturating_mul(times));
        }
    }
    Ok(runs)
}

/// Bytes that are left to read.
pub(super) struct Input<'b>(pub(super) &'b [u8]);

impl<'b> Input<'b> {
    pub(super) fn take(&mut self, bytes: usize) -> Result<&'b [u8], ChunkError> {
        let (taken, rest) =
            self.0.split_at_checked(bytes).ok_or(ChunkError::Malformed("it ends too early"))?;
        self.0 = rest;
        Ok(taken)
    }

    pub(super) fn uleb(&mut self) -> Result<u64, ChunkError> {
        let (mut value, mut shift) = (0u64, 0);
        loop {
            let byte = self.take(1)?[0];
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 || shift > 63 {
                return Err(ChunkError::Malformed("a number beyond 64 bits"));
            }
            value |= bits << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
    }

    fn sleb(&mut self) -> Result<i64, ChunkError> {
        let (mut value, mut shift) = (0i64, 0);
        loop {
            let byte = self.take(1)?[0];
            if shift > 63 {
                return Err(ChunkError::Malformed("a number beyond 64 bits"));
            }
            value |= i64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                if shift < 64 && byte & 0x40 != 0 {
                    value |= -1 << shift;
                }
                return Ok(value);
            }
        }
    }

    /// How many things follow, of which each takes a byte at least.
    pub(super) fn count(&mut self) -> Result<u64, ChunkError> {
        let count = self.uleb()?;
        match count <= self.0.len() as u64 {
            true => Ok(count),
            false => Err(ChunkError::Malformed("it ends too early")),
        }
    }

    pub(super) fn prefixed(&mut self) -> Result<&'b [u8], ChunkError> {
        let length = self.count()?;
        self.take(length as usize)
    }

    fn actor(&mut self) -> Result<&'b [u8], ChunkError> {
        let actor = self.prefixed()?;
        match actor.len() <= ACTOR_BYTES_MAX {
            true => Ok(actor),
            false => Err(ChunkError::TooLarge("an actor's id")),
        }
    }

    fn hashes(&mut self) -> Result<Vec<ChangeHash>, ChunkError> {
        let count = self.count()?;
        let mut hashes = Vec::new();
        for _ in 0..count {
            let mut hash = [0; 32];
            hash.copy_from_slice(self.take(32)?);
            hashes.push(ChangeHash(hash));
        }
        Ok(hashes)
    }
}
