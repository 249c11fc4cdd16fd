//! The messages between two nodes, and their bytes.
//!
//! A message is one frame: a version byte and a bincode body. Every vector in it is bounded by the frame's size
//! ([`MAX_MESSAGE_BYTES`]), which the transport enforces before the bytes are here.

use bincode::{Decode, Encode};
use godwit_core::codec::{self, CodecError};
use godwit_core::context::VersionVector;
use godwit_core::delta::{EncodedDelta, MAX_DELTA_BYTES};
use godwit_core::ids::{PartitionId, ReplicaId};

/// The version of the wire format.
pub const WIRE_VERSION: u8 = 1;

/// The most bytes of a message: one delta of the greatest size, or a chunk of small ones, with what surrounds it.
pub const MAX_MESSAGE_BYTES: usize = MAX_DELTA_BYTES + 1024 * 1024;

/// What nodes say to each other.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Message {
    /// Who the sender is: the first message on a link.
    Hello(Hello),
    /// The sender will not talk to the receiver, and closes the link.
    Refuse {
        /// Why, for the operator's log.
        reason: String,
    },
    /// What the sender has durably applied.
    Contexts {
        /// Whether every partition that is not listed is empty.
        complete: bool,
        /// Contexts by partition.
        contexts: Vec<(PartitionId, VersionVector)>,
    },
    /// Deltas of one partition, in an order in which they can be applied.
    Deltas {
        /// The partition.
        partition: PartitionId,
        /// The deltas.
        deltas: Vec<EncodedDelta>,
        /// Whether these end the answer to a [`Message::Want`].
        ends_want: bool,
    },
    /// Asks for what the receiver has of other nodes' deltas beyond a context.
    Want {
        /// The partition.
        partition: PartitionId,
        /// What the sender has.
        context: VersionVector,
    },
}

/// A node's introduction.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Hello {
    /// The cluster's name.
    pub cluster: String,
    /// The node's name, which its certificate must prove.
    pub node: String,
    /// Its region.
    pub region: String,
    /// The id under which it writes.
    pub replica: ReplicaId,
    /// The number of partitions of its cluster.
    pub partitions: u16,
}

impl Message {
    /// The message's bytes.
    pub fn encode(&self) -> Vec<u8> {
        codec::encode(WIRE_VERSION, self)
    }

    /// Reads a message's bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        if bytes.len() > MAX_MESSAGE_BYTES {
            return Err(CodecError::Malformed(format!("a message of {} bytes", bytes.len())));
        }
        codec::decode(WIRE_VERSION, bytes)
    }

    /// The message's name, for logs and traces.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Hello(_) => "hello",
            Self::Refuse { .. } => "refuse",
            Self::Contexts { .. } => "contexts",
            Self::Deltas { .. } => "deltas",
            Self::Want { .. } => "want",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use godwit_core::context::Dot;
    use proptest::prelude::*;

    #[test]
    fn messages_come_back() {
        let vector: VersionVector = [Dot { replica: ReplicaId(7), counter: 300 }].into_iter().collect();
        let messages = [
            Message::Hello(Hello {
                cluster: "c".into(),
                node: "n".into(),
                region: "r".into(),
                replica: ReplicaId(1),
                partitions: 64,
            }),
            Message::Refuse { reason: "no".into() },
            Message::Contexts { complete: true, contexts: vec![(PartitionId(3), vector.clone())] },
            Message::Deltas {
                partition: PartitionId(1),
                deltas: vec![EncodedDelta::from_bytes(&[1, 2])],
                ends_want: false,
            },
            Message::Want { partition: PartitionId(2), context: vector },
        ];
        for message in messages {
            assert_eq!(Message::decode(&message.encode()), Ok(message));
        }
    }

    #[test]
    fn bytes_on_the_wire_are_part_of_the_format() {
        let vector: VersionVector = [Dot { replica: ReplicaId(7), counter: 300 }].into_iter().collect();
        let message = Message::Want { partition: PartitionId(2), context: vector };
        let hex: Vec<String> = message.encode().iter().map(|byte| format!("{byte:02x}")).collect();
        expect_test::expect!["01 04 02 01 07 fb 2c 01"].assert_eq(&hex.join(" "));
    }

    proptest! {
        #[test]
        fn junk_never_panics(bytes: Vec<u8>) {
            let _ = Message::decode(&bytes);
        }

        #[test]
        fn damaged_messages_never_panic(at in 0usize..40, to: u8) {
            let hello = Hello { cluster: "c".into(), node: "n".into(), region: "r".into(), replica: ReplicaId(1), partitions: 64 };
            let mut bytes = Message::Hello(hello).encode();
            let at = at % bytes.len();
            bytes[at] = to;
            let _ = Message::decode(&bytes);
        }
    }
}
