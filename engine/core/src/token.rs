//! Tokens: what a client has seen, as text that it carries from answer to request, and from region to region.
//!
//! A token holds a [`Seen`] for each partition that its session touched. What holds:
//!
//! - *Small.* It grows with partitions times replicas, and not with records, reads or writes: as base64, a table of 8 bytes
//!   a replica, 3 bytes a partition (5 beyond the 250th), and for each replica of a partition 2 bytes up to 250 commits,
//!   4 up to 65,535, 6 up to four billion. Dots beyond a vector are at most [`DOTS_MAX`] in all, those apart that are
//!   the last of a replica: earlier ones are forgotten, which is safe (see [`Seen::shed`]). No token is longer than
//!   [`TOKEN_BYTES_MAX`]: what would be is not written at all.
//! - *Checked.* The text ends with a keyed BLAKE3 over the cluster's name and all before it. Nothing is decoded that does
//!   not carry it, so a token says only what a node of the cluster has said.
//! - *Deterministic*: equal tokens have equal text. The form has a version, and golden bytes in the tests.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bincode::{Decode, Encode};

use crate::codec::{self, CodecError};
use crate::context::{Dot, Seen, VersionVector};
use crate::ids::{MAX_PARTITIONS, PartitionId, ReplicaId};
use crate::partition::stored_context;
use crate::store::{StoreError, StoreRead};

/// The most bytes of a token's text: two of them, and all else, fit into a request's head.
pub const TOKEN_BYTES_MAX: usize = 12 * 1024;

/// The most dots beyond vectors that a token carries, over all partitions, those apart that are the last of a replica.
pub const DOTS_MAX: usize = 256;

const TOKEN_VERSION: u8 = 1;

const MAC_BYTES: usize = 16;

/// What a client has seen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Token(BTreeMap<PartitionId, Seen>);

/// What makes the tokens of one cluster, and no other.
#[derive(Clone)]
pub struct TokenKey {
    key: [u8; 32],
    cluster: String,
}

/// Why a token was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Too long.
    #[error("it has {found} bytes, and none has more than {TOKEN_BYTES_MAX}")]
    TooLong {
        /// Its bytes.
        found: usize,
    },
    /// Not base64url.
    #[error("it is not the text of a token")]
    NotText,
    /// Of a version that this one does not know.
    #[error("it has version {found}, and this node knows version {TOKEN_VERSION}")]
    Version {
        /// The version found.
        found: u8,
    },
    /// It does not carry the cluster's mark.
    #[error("it was not made by this cluster, or it was changed since")]
    Forged,
    /// The cluster made it, and it makes no sense.
    #[error("it cannot be read: {0}")]
    Malformed(String),
}

#[derive(Encode, Decode)]
struct Body {
    /// Replica ids, in order; below they are told by their place here.
    replicas: Vec<[u8; 8]>,
    partitions: Vec<Part>,
}

#[derive(Encode, Decode)]
struct Part {
    partition: u16,
    vector: Vec<(u16, u64)>,
    dots: Vec<(u16, u64)>,
}

impl TokenKey {
    /// The key that a cluster has by this secret.
    pub fn new(cluster: &str, secret: &[u8]) -> Self {
        Self { key: blake3::derive_key("godwit 2026 token key", secret), cluster: cluster.to_owned() }
    }

    fn mac(&self, bytes: &[u8]) -> [u8; MAC_BYTES] {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(&(self.cluster.len() as u64).to_le_bytes());
        hasher.update(self.cluster.as_bytes());
        hasher.update(bytes);
        let mut mac = [0; MAC_BYTES];
        mac.copy_from_slice(&hasher.finalize().as_bytes()[..MAC_BYTES]);
        mac
    }

    fn made(&self, bytes: &[u8], mac: &[u8; MAC_BYTES]) -> bool {
        // Hashes are compared in constant time.
        let whole = |mac: &[u8; MAC_BYTES]| {
            let mut hash = [0; 32];
            hash[..MAC_BYTES].copy_from_slice(mac);
            blake3::Hash::from(hash)
        };
        whole(&self.mac(bytes)) == whole(mac)
    }
}

impl fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenKey").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

impl Token {
    /// All that a store has applied of some partitions.
    pub fn of_store(
        store: &impl StoreRead,
        partitions: impl IntoIterator<Item = PartitionId>,
    ) -> Result<Self, StoreError> {
        let mut token = Self::default();
        for partition in partitions {
            token.add(partition, Seen::all_of(stored_context(store, partition)?));
        }
        Ok(token)
    }

    /// Adds what is seen of a partition.
    pub fn add(&mut self, partition: PartitionId, seen: Seen) {
        if !seen.is_empty() {
            self.0.entry(partition).or_default().join(&seen);
        }
    }

    /// Has what is seen of a partition be this, and nothing else: it may be less than it was.
    pub fn replace(&mut self, partition: PartitionId, seen: Seen) {
        self.0.remove(&partition);
        self.add(partition, seen);
    }

    /// Adds all that the other one has.
    pub fn join(&mut self, other: &Self) {
        other.0.iter().for_each(|(partition, seen)| self.add(*partition, seen.clone()));
    }

    /// What is seen of a partition: nothing, if the token does not name it.
    pub fn seen(&self, partition: PartitionId) -> Seen {
        self.0.get(&partition).cloned().unwrap_or_default()
    }

    /// Whether nothing is seen.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What of it a store has not applied yet: whole partitions.
    pub fn beyond(mut self, store: &impl StoreRead) -> Result<Self, StoreError> {
        let mut outcome = Ok(());
        self.0.retain(|partition, seen| match stored_context(store, *partition) {
            Ok(context) => !seen.applied_by(&context),
            Err(error) => {
                outcome = Err(error);
                true
            }
        });
        outcome.map(|()| self)
    }

    /// The token's text. `None` if it would be longer than [`TOKEN_BYTES_MAX`].
    pub fn seal(&self, key: &TokenKey) -> Option<String> {
        let bytes = codec::encode(TOKEN_VERSION, &self.body()?);
        let mac = key.mac(&bytes);
        let text = URL_SAFE_NO_PAD.encode([&bytes[..], &mac].concat());
        (text.len() <= TOKEN_BYTES_MAX).then_some(text)
    }

    fn body(&self) -> Option<Body> {
        let with_dots = self.0.values().filter(|seen| seen.cloud().next().is_some()).count();
        let shed = |seen: &Seen| {
            let mut seen = seen.clone();
            seen.shed(DOTS_MAX / with_dots.max(1));
            seen
        };
        let parts: Vec<(u16, Seen)> =
            self.0.iter().map(|(partition, seen)| (partition.0, shed(seen))).collect();
        let dots = parts.iter().flat_map(|(_, seen)| seen.vector().iter().chain(seen.cloud()));
        let replicas: BTreeSet<ReplicaId> = dots.map(|dot| dot.replica).collect();
        let replicas: Vec<ReplicaId> = replicas.into_iter().collect();
        // More are not to be told by two bytes, nor in so short a text.
        u16::try_from(replicas.len()).ok()?;
        let place = |dot: Dot| {
            let place = replicas.binary_search(&dot.replica).expect("every replica is in the table");
            (place as u16, dot.counter)
        };
        let part = |(partition, seen): (u16, Seen)| Part {
            partition,
            vector: seen.vector().iter().map(place).collect(),
            dots: seen.cloud().map(place).collect(),
        };
        let partitions = parts.into_iter().map(part).collect();
        Some(Body { replicas: replicas.iter().map(|replica| replica.0.to_be_bytes()).collect(), partitions })
    }

    /// Reads a token's text.
    pub fn open(text: &str, key: &TokenKey) -> Result<Self, TokenError> {
        if text.len() > TOKEN_BYTES_MAX {
            return Err(TokenError::TooLong { found: text.len() });
        }
        let sealed = URL_SAFE_NO_PAD.decode(text).map_err(|_| TokenError::NotText)?;
        let (bytes, mac) = sealed.split_last_chunk::<MAC_BYTES>().ok_or(TokenError::NotText)?;
        match bytes.first() {
            Some(&TOKEN_VERSION) => {}
            Some(&found) => return Err(TokenError::Version { found }),
            None => return Err(TokenError::NotText),
        }
        if !key.made(bytes, mac) {
            return Err(TokenError::Forged);
        }
        let body = codec::decode(TOKEN_VERSION, bytes);
        body.and_then(Self::of_body).map_err(|error| TokenError::Malformed(error.to_string()))
    }

    fn of_body(body: Body) -> Result<Self, CodecError> {
        let malformed = |what: &str| CodecError::Malformed(what.into());
        let dot = |&(place, counter): &(u16, u64)| {
            let replica = body.replicas.get(usize::from(place));
            let replica = replica.ok_or_else(|| malformed("a replica that is not in the table"))?;
            Ok(Dot { replica: ReplicaId(u64::from_be_bytes(*replica)), counter })
        };
        let mut token = Self::default();
        for part in &body.partitions {
            if part.partition >= MAX_PARTITIONS {
                return Err(malformed("a partition that cannot be"));
            }
            let vector = part.vector.iter().map(dot).collect::<Result<VersionVector, _>>()?;
            let dots = part.dots.iter().map(dot).collect::<Result<Vec<Dot>, _>>()?;
            token.add(PartitionId(part.partition), Seen::of_parts(vector, dots));
        }
        Ok(token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::CLOUD_DOTS_MAX;
    use proptest::prelude::*;

    fn key() -> TokenKey {
        TokenKey::new("test", b"secret")
    }

    fn dot(replica: u64, counter: u64) -> Dot {
        Dot { replica: ReplicaId(replica), counter }
    }

    fn token() -> impl Strategy<Value = Token> {
        let dots = || prop::collection::vec((any::<u64>().prop_map(|r| (r % 7) << 40), 1..400_000u64), 0..6);
        prop::collection::btree_map(0..MAX_PARTITIONS, (dots(), dots()), 0..8).prop_map(|parts| {
            let mut token = Token::default();
            for (partition, (vector, cloud)) in parts {
                let dots =
                    |dots: Vec<(u64, u64)>| dots.into_iter().map(|(replica, counter)| dot(replica, counter));
                token.add(PartitionId(partition), Seen::of_parts(dots(vector).collect(), dots(cloud)));
            }
            token
        })
    }

    #[test]
    fn what_replaces_may_be_less() {
        let (partition, other) = (PartitionId(3), PartitionId(4));
        let mut token = Token::default();
        token.add(partition, Seen::all_of([dot(1, 5), dot(2, 7)].into_iter().collect()));
        token.add(other, Seen::all_of([dot(1, 1)].into_iter().collect()));
        let less = Seen::all_of([dot(1, 2)].into_iter().collect());
        token.replace(partition, less.clone());
        assert_eq!((token.seen(partition), token.seen(other).is_empty()), (less, false));
        token.replace(other, Seen::default());
        assert!(token.seen(other).is_empty());
    }

    proptest! {
        #[test]
        fn what_is_sealed_is_opened(token in token()) {
            let text = token.seal(&key()).unwrap();
            let back = Token::open(&text, &key()).unwrap();
            prop_assert_eq!(back.seal(&key()), Some(text));
            prop_assert_eq!(back, token);
        }

        #[test]
        fn every_change_is_refused(token in token(), at: prop::sample::Index, bit in 0..8u32) {
            let text = token.seal(&key()).unwrap();
            let mut bytes = text.clone().into_bytes();
            bytes[at.index(text.len())] ^= 1 << bit;
            if let Ok(changed) = String::from_utf8(bytes) {
                prop_assert!(Token::open(&changed, &key()).is_err());
            }
            let mut sealed = URL_SAFE_NO_PAD.decode(&text).unwrap();
            let at = at.index(sealed.len());
            sealed[at] ^= 1 << bit;
            let refused = Token::open(&URL_SAFE_NO_PAD.encode(&sealed), &key()).unwrap_err();
            let version = TokenError::Version { found: sealed[0] };
            prop_assert_eq!(refused, if at == 0 { version } else { TokenError::Forged });
            let (shorter, longer) = (&text[..text.len() - 1], text.clone() + "A");
            prop_assert!(Token::open(shorter, &key()).is_err() && Token::open(&longer, &key()).is_err());
        }

        #[test]
        fn other_clusters_and_secrets_are_told_apart(token in token()) {
            let text = token.seal(&key()).unwrap();
            for other in [TokenKey::new("tes", b"secret"), TokenKey::new("test", b"secre"), TokenKey::new("tests", b"ecret")] {
                prop_assert_eq!(Token::open(&text, &other), Err(TokenError::Forged));
            }
        }

        #[test]
        fn junk_is_refused(text in "[A-Za-z0-9_=-]{0,200}|.{0,50}") {
            prop_assert!(Token::open(&text, &key()).is_err());
        }

        #[test]
        fn what_makes_no_sense_never_panics(bytes: Vec<u8>) {
            let bytes = [&[TOKEN_VERSION], &bytes[..]].concat();
            let mac = key().mac(&bytes);
            let _ = Token::open(&URL_SAFE_NO_PAD.encode([&bytes[..], &mac].concat()), &key());
        }

        #[test]
        fn joining_is_a_union(a in token(), b in token()) {
            let (mut ab, mut ba) = (a.clone(), b.clone());
            ab.join(&b);
            ba.join(&a);
            prop_assert_eq!(&ab, &ba);
            ab.join(&a);
            prop_assert_eq!(ab, ba);
        }
    }

    #[test]
    fn the_form_is_fixed() {
        let mut token = Token::default();
        let vector = [dot(0x0102_0304_0506_0708, 3), dot(9, 70_000)].into_iter().collect();
        token.add(PartitionId(0), Seen::of_parts(vector, [dot(9, 70_002)]));
        token.add(PartitionId(300), Seen::all_of([dot(9, 300)].into_iter().collect()));
        let text = token.seal(&key()).unwrap();
        expect_test::expect![
            "AQIAAAAAAAAACQECAwQFBgcIAgACAPxwEQEAAQMBAPxyEQEA-ywBAQD7LAEAo_oOBpaI5v9lKSXQ_KWSuA"
        ]
        .assert_eq(&text);
    }

    #[test]
    fn the_wrong_is_told() {
        let version = |version: u8| URL_SAFE_NO_PAD.encode([&[version][..], &[0; 20]].concat());
        let refused = |text: &str| Token::open(text, &key()).unwrap_err();
        assert_eq!(refused(&version(2)), TokenError::Version { found: 2 });
        assert_eq!(refused(&version(1)), TokenError::Forged);
        assert_eq!(refused(&"A".repeat(TOKEN_BYTES_MAX)), TokenError::Version { found: 0 });
        assert_eq!(
            refused(&"A".repeat(TOKEN_BYTES_MAX + 1)),
            TokenError::TooLong { found: TOKEN_BYTES_MAX + 1 }
        );
        for junk in ["", "A", "AQ", "====", "Ä", "a b", "AQ=="] {
            assert_eq!(refused(junk), TokenError::NotText, "{junk}");
        }
    }

    /// Bytes of the text of a session over whole partitions.
    fn text_bytes(partitions: u16, replicas: u64, counter: u64) -> Option<usize> {
        let mut token = Token::default();
        for partition in (0..partitions).map(PartitionId) {
            let vector = (0..replicas).map(|replica| dot(u64::MAX - replica, counter)).collect();
            token.add(partition, Seen::all_of(vector));
        }
        token.seal(&key()).map(|text| text.len())
    }

    #[test]
    fn tokens_grow_with_partitions_and_replicas_alone() {
        let sizes = [
            text_bytes(1, 3, 250),
            text_bytes(64, 3, 250),
            text_bytes(64, 3, 65_535),
            text_bytes(64, 3, u64::from(u32::MAX)),
            text_bytes(64, 21, u64::from(u32::MAX)),
            text_bytes(64, 23, u64::from(u32::MAX)),
            text_bytes(4_096, 1, 65_535),
        ];
        expect_test::expect!["[Some(70), Some(826), Some(1338), Some(1850), Some(11258), None, None]"]
            .assert_eq(&format!("{sizes:?}"));
    }

    #[test]
    fn gaps_cost_a_bounded_number_of_bytes() {
        let mut token = Token::default();
        for partition in (0..64).map(PartitionId) {
            let dots = (0..2 * CLOUD_DOTS_MAX as u64).map(|i| dot(i % 3, 100_000 + 2 * i));
            token.add(partition, Seen::of_parts(VersionVector::new(), dots));
        }
        let text = token.seal(&key()).unwrap();
        let back = Token::open(&text, &key()).unwrap();
        assert!(text.len() < 3_600, "{} bytes", text.len());
        // Where all of it is applied has not changed.
        for (partition, seen) in &token.0 {
            let last = |seen: &Seen| seen.cloud().collect::<VersionVector>();
            assert_eq!(last(seen), last(&back.seen(*partition)));
        }
    }
}
