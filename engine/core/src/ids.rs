//! Names of things: replicas, partitions, namespaces, keys, fields and members.
//!
//! Every name is checked where it enters (HTTP, a peer's delta) and is a type of its own from then on.
//! Names hold no control characters, so that a zero byte can end them in ordered storage keys.

use std::fmt;

use bincode::de::{BorrowDecode, BorrowDecoder, Decoder};
use bincode::error::DecodeError;
use bincode::{Decode, Encode};

/// The most bytes of a namespace's name.
pub const MAX_NAMESPACE_BYTES: usize = 63;
/// The most bytes of a key.
pub const MAX_KEY_BYTES: usize = 1024;
/// The most bytes of a field's name.
pub const MAX_FIELD_BYTES: usize = 256;
/// The most bytes of a set's member.
pub const MAX_MEMBER_BYTES: usize = 1024;
/// The most partitions of a cluster.
pub const MAX_PARTITIONS: u16 = 4096;

/// Why a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing there.
    #[error("a {what} must not be empty")]
    Empty {
        /// Which kind of name.
        what: &'static str,
    },
    /// Longer than the limit.
    #[error("a {what} holds at most {max} bytes, this one has {found}")]
    TooLong {
        /// Which kind of name.
        what: &'static str,
        /// The limit in bytes.
        max: usize,
        /// The bytes found.
        found: usize,
    },
    /// A control character, which no name may hold.
    #[error("a {what} must not hold control characters (found U+{code:04X})")]
    Control {
        /// Which kind of name.
        what: &'static str,
        /// The character's code.
        code: u32,
    },
    /// `.` or `..`, which URL libraries resolve away.
    #[error("a {what} must not be \".\" or \"..\": URL libraries resolve them away")]
    Dots {
        /// Which kind of name.
        what: &'static str,
    },
    /// Not of a namespace's form.
    #[error("a namespace is 1 to 63 of a-z, 0-9, _ and -, beginning with a letter or digit")]
    NamespaceForm,
}

/// Names the writer of dots: one node in one incarnation. Its upper 24 bits are a digest of the node's name, so that it
/// can be told whose past incarnation it is; the lower 40 are drawn at random: a node that drew a thousand of them would
/// see two alike with a probability of about 5 in 10⁷. (The first release drew all 64 bits.)
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct ReplicaId(pub u64);

impl fmt::Debug for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl ReplicaId {
    const RANDOM_BITS: u32 = 40;

    /// An incarnation of a node, of random bits.
    pub fn of_node(name: &str, random: u64) -> Self {
        Self(Self::digest(name) << Self::RANDOM_BITS | random & ((1 << Self::RANDOM_BITS) - 1))
    }

    /// Whether this may be an incarnation of a node: with a probability of 6 in 10⁸ it is another node's.
    pub fn may_be_of(self, name: &str) -> bool {
        self.0 >> Self::RANDOM_BITS == Self::digest(name)
    }

    fn digest(name: &str) -> u64 {
        let digest = blake3::derive_key("godwit 2026 replica", name.as_bytes());
        u64::from_be_bytes([0, 0, 0, 0, 0, digest[0], digest[1], digest[2]])
    }
}

/// A hash partition of the cluster, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct PartitionId(pub u16);

impl fmt::Display for PartitionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Encode)]
        pub struct $name(String);

        impl $name {
            /// Checks and takes a name.
            pub fn new(name: impl Into<String>) -> Result<Self, NameError> {
                let name = name.into();
                let check: fn(&str) -> Result<(), NameError> = $check;
                check(&name)?;
                Ok(Self(name))
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl<C> Decode<C> for $name {
            fn decode<D: Decoder<Context = C>>(decoder: &mut D) -> Result<Self, DecodeError> {
                let name = String::decode(decoder)?;
                Self::new(name).map_err(|error| DecodeError::OtherString(error.to_string()))
            }
        }

        impl<'de, C> BorrowDecode<'de, C> for $name {
            fn borrow_decode<D: BorrowDecoder<'de, Context = C>>(
                decoder: &mut D,
            ) -> Result<Self, DecodeError> {
                Decode::decode(decoder)
            }
        }
    };
}

name!(
    /// A business domain: `[a-z0-9][a-z0-9_-]{0,62}`.
    Namespace,
    |name| {
        let form = |(i, b): (usize, u8)| {
            b.is_ascii_lowercase() || b.is_ascii_digit() || (i > 0 && (b == b'_' || b == b'-'))
        };
        if name.is_empty() || name.len() > MAX_NAMESPACE_BYTES || !name.bytes().enumerate().all(form) {
            return Err(NameError::NamespaceForm);
        }
        Ok(())
    }
);
name!(
    /// Addresses a record in a namespace: 1 to 1,024 bytes.
    Key,
    |name| {
        check("key", MAX_KEY_BYTES, name)?;
        refuse_dots("key", name)
    }
);
name!(
    /// Names a field of a record: 1 to 256 bytes.
    Field,
    |name| {
        check("field", MAX_FIELD_BYTES, name)?;
        refuse_dots("field", name)
    }
);
name!(
    /// A member of a set: 1 to 1,024 bytes.
    Member,
    |name| check("member", MAX_MEMBER_BYTES, name)
);

/// A record's full address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct RecordId {
    /// The namespace.
    pub namespace: Namespace,
    /// The key in it.
    pub key: Key,
}

impl RecordId {
    /// The record's place in hash order within its partition.
    pub fn hash(&self) -> [u8; 8] {
        hash("godwit 2026 record", self.namespace.as_str(), self.key.as_str())
    }

    /// The partition that holds the record, of `partitions` in the cluster. Keys that share a tag
    /// (`{user:7}/likes`, `{user:7}/profile`) share a partition.
    pub fn partition(&self, partitions: u16) -> PartitionId {
        assert!(partitions > 0, "a cluster has at least one partition");
        let hash = hash("godwit 2026 partition", self.namespace.as_str(), self.hashed_part());
        PartitionId((u64::from_be_bytes(hash) % u64::from(partitions)) as u16)
    }

    /// What the partition is chosen by: the text in the first braces, or the key where there is none.
    fn hashed_part(&self) -> &str {
        let key = self.key.as_str();
        let tag = key.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map(|(tag, _)| tag);
        tag.filter(|tag| !tag.is_empty()).unwrap_or(key)
    }
}

impl fmt::Display for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.key)
    }
}

fn hash(purpose: &str, namespace: &str, key: &str) -> [u8; 8] {
    let mut hasher = blake3::Hasher::new_derive_key(purpose);
    hasher.update(namespace.as_bytes());
    // Ends the namespace: names hold no zero bytes, so no two addresses feed the same bytes.
    hasher.update(&[0]);
    hasher.update(key.as_bytes());
    let mut first = [0; 8];
    first.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    first
}

fn check(what: &'static str, max: usize, name: &str) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty { what });
    }
    if name.len() > max {
        return Err(NameError::TooLong { what, max, found: name.len() });
    }
    match name.chars().find(|c| c.is_control()) {
        Some(c) => Err(NameError::Control { what, code: u32::from(c) }),
        None => Ok(()),
    }
}

fn refuse_dots(what: &'static str, name: &str) -> Result<(), NameError> {
    if name == "." || name == ".." { Err(NameError::Dots { what }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec;

    fn record(key: &str) -> RecordId {
        RecordId { namespace: Namespace::new("ns").unwrap(), key: Key::new(key).unwrap() }
    }

    #[test]
    fn names_are_checked() {
        assert!(Namespace::new("a-b_1").is_ok());
        for bad in ["", "-a", "_a", "A", "é", "a b", &"a".repeat(64)] {
            assert_eq!(Namespace::new(bad), Err(NameError::NamespaceForm), "{bad}");
        }
        assert!(Key::new("a/b c?é").is_ok());
        assert!(matches!(Key::new(""), Err(NameError::Empty { .. })));
        assert!(matches!(Key::new("k".repeat(1025)), Err(NameError::TooLong { found: 1025, .. })));
        assert!(matches!(Key::new("a\0b"), Err(NameError::Control { code: 0, .. })));
        assert!(matches!(Key::new("a\u{85}"), Err(NameError::Control { code: 0x85, .. })));
        assert!(matches!(Field::new(".."), Err(NameError::Dots { .. })));
        assert!(Member::new("..").is_ok());
    }

    #[test]
    fn a_decoded_name_is_checked_too() {
        let bytes = codec::encode(1, &"a\nb".to_string());
        assert!(codec::decode::<Key>(1, &bytes).is_err());
    }

    #[test]
    fn tags_choose_the_partition() {
        let a = record("{user:7}/likes").partition(64);
        assert_eq!(a, record("{user:7}/profile").partition(64));
        assert_eq!(a, record("x{user:7}y{z}").partition(64));
        assert_eq!(record("{}/a").hashed_part(), "{}/a");
        assert_eq!(record("{a").hashed_part(), "{a");
        assert_ne!(record("a").hash(), record("b").hash());
    }

    #[test]
    fn placement_is_part_of_the_format() {
        expect_test::expect!["0 06dc4dc20feb9e6f"].assert_eq(&format!(
            "{} {:016x}",
            record("{user:7}/likes").partition(64),
            u64::from_be_bytes(record("{user:7}/likes").hash())
        ));
    }
}
