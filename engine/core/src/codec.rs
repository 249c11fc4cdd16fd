//! The one place where values become bytes and back.
//!
//! Every durable value and every message is a format version byte followed by a bincode body. Decoding is
//! limited in size before anything is allocated, refuses left-over bytes, and never panics, whatever the
//! input. bincode 2.0.1 is pinned (see `deny.toml`); replacing it touches this module only.

use bincode::config::{Configuration, Limit, LittleEndian, Varint};
use bincode::enc::write::Writer;
use bincode::error::EncodeError;
use bincode::{Decode, Encode};

/// The most bytes that one decoded value may claim: above the largest delta (a commit of 8 MiB of JSON
/// with its names), below anything that could hurt a node.
pub const MAX_DECODED_BYTES: usize = 16 * 1024 * 1024;

const CONFIG: Configuration<LittleEndian, Varint, Limit<MAX_DECODED_BYTES>> =
    bincode::config::standard().with_limit::<MAX_DECODED_BYTES>();

/// Why bytes were refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// No bytes at all.
    #[error("the value is empty")]
    Empty,
    /// Written by a version of Godwit that this one does not know.
    #[error("format version {found} is not known here (this version reads {known})")]
    Version {
        /// The version byte found.
        found: u8,
        /// The version that this build reads.
        known: u8,
    },
    /// The body is not what the version promises.
    #[error("malformed bytes: {0}")]
    Malformed(String),
    /// Bytes remain after the value.
    #[error("{0} bytes are left over after the value")]
    LeftOver(usize),
}

/// Encodes a value behind its format version.
///
/// # Panics
/// If the value itself exceeds [`MAX_DECODED_BYTES`]: callers bound what they build, so that is an
/// internal invariant, never the effect of input.
pub fn encode<T: Encode>(version: u8, value: &T) -> Vec<u8> {
    let mut bytes = Growing(Vec::with_capacity(FEW_BYTES));
    bytes.0.push(version);
    bincode::encode_into_writer(value, &mut bytes, CONFIG)
        .expect("values are bounded before they are encoded");
    bytes.0
}

/// Most values fit, so that they are encoded in one pass and one allocation.
const FEW_BYTES: usize = 128;

struct Growing(Vec<u8>);

impl Writer for &mut Growing {
    fn write(&mut self, bytes: &[u8]) -> Result<(), EncodeError> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}

/// Decodes a whole value of exactly this version.
pub fn decode<T: Decode<()>>(version: u8, bytes: &[u8]) -> Result<T, CodecError> {
    let (value, rest) = decode_prefix(version, bytes)?;
    match rest.len() {
        0 => Ok(value),
        left => Err(CodecError::LeftOver(left)),
    }
}

/// Decodes the value at the start of the bytes and returns what follows it.
pub fn decode_prefix<T: Decode<()>>(version: u8, bytes: &[u8]) -> Result<(T, &[u8]), CodecError> {
    let (&found, body) = bytes.split_first().ok_or(CodecError::Empty)?;
    if found != version {
        return Err(CodecError::Version { found, known: version });
    }
    let (value, used) = bincode::decode_from_slice::<T, _>(body, CONFIG)
        .map_err(|error| CodecError::Malformed(error.to_string()))?;
    Ok((value, &body[used..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn refuses_empty_foreign_and_left_over() {
        assert_eq!(decode::<u64>(1, &[]), Err(CodecError::Empty));
        assert_eq!(decode::<u64>(1, &[2, 7]), Err(CodecError::Version { found: 2, known: 1 }));
        assert_eq!(decode::<u64>(1, &[1, 7, 0]), Err(CodecError::LeftOver(1)));
    }

    #[test]
    fn a_huge_announced_length_allocates_nothing() {
        let mut bytes = vec![1, 253];
        bytes.extend_from_slice(&u64::MAX.to_le_bytes());
        assert!(matches!(decode::<Vec<u8>>(1, &bytes), Err(CodecError::Malformed(_))));
    }

    proptest! {
        #[test]
        fn round_trip(value: Vec<(u64, String)>) {
            prop_assert_eq!(decode::<Vec<(u64, String)>>(1, &encode(1, &value)), Ok(value));
        }

        #[test]
        fn junk_never_panics(bytes: Vec<u8>) {
            let _ = decode::<Vec<(u64, Vec<String>)>>(1, &bytes);
        }
    }
}
