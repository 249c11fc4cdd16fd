//! The messages between two nodes, and their bytes.
//!
//! A message is one frame: a version byte and a bincode body. Every vector in it is bounded by the frame's size
//! ([`MAX_MESSAGE_BYTES`]), which the transport enforces before the bytes are here.
//!
//! The transport settles with the peer which wire version a link speaks: the newest that both know. Version 2 has the bytes
//! of version 3 but for the version byte, and no [`Message::Gone`]. Version 1, without intervals and without incarnations, is
//! a frozen module.

pub mod repair;
mod wire1;

use bincode::{Decode, Encode};
use godwit_core::codec::{self, CodecError};
use godwit_core::context::VersionVector;
use godwit_core::delta::{EncodedDelta, MAX_DELTA_BYTES};
use godwit_core::ids::{PartitionId, ReplicaId};

/// The newest wire version.
pub const WIRE_VERSION: u8 = 3;

/// The version before it: the same bytes, without [`Message::Gone`].
const WIRE_2: u8 = 2;

/// The oldest wire version that is still spoken.
pub const WIRE_OLDEST: u8 = 1;

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
    /// Asks for what the receiver has beyond a context.
    Want {
        /// The partition.
        partition: PartitionId,
        /// What the sender has.
        context: VersionVector,
    },
    /// Answers a greeting that asks to go on with an incarnation.
    Confirm(Confirm),
    /// The sender's log does not reach back to what the receiver has: ends the answer to a [`Message::Want`], or stands for
    /// the sender's own deltas, which it cannot push without a gap. From wire version 3 on.
    Gone {
        /// The partition.
        partition: PartitionId,
    },
    /// Asks for a partition's state.
    Pull(repair::Pull),
    /// Answers that.
    State(repair::State),
}

/// What a peer knows of an incarnation that a starting node would go on with.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Confirm {
    /// The incarnation.
    pub replica: ReplicaId,
    /// The process that asked.
    pub instance: u64,
    /// Whether the process that this one says it follows is the last that the peer has heard of under the node's name.
    pub follows: bool,
    /// The counters of the incarnation's last commits that the peer has, by partition; those that wait included.
    pub holds: Vec<(PartitionId, u64)>,
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
    /// The process, by a random number; 0 on a link of wire version 1.
    pub instance: u64,
    /// The process before it, if this one asks to go on with its incarnation.
    pub resumes: Option<u64>,
}

impl Message {
    /// The message's bytes in a link's wire version; `None` if that version cannot say it.
    pub fn encode(&self, wire: u8) -> Option<Vec<u8>> {
        match wire {
            wire1::VERSION => wire1::encode(self),
            WIRE_2 if self.is_since_3() => None,
            WIRE_2 => Some(codec::encode(WIRE_2, self)),
            _ => Some(codec::encode(WIRE_VERSION, self)),
        }
    }

    /// Reads a message's bytes.
    pub fn decode(wire: u8, bytes: &[u8]) -> Result<Self, CodecError> {
        if bytes.len() > MAX_MESSAGE_BYTES {
            return Err(CodecError::Malformed(format!("a message of {} bytes", bytes.len())));
        }
        match wire {
            wire1::VERSION => wire1::decode(bytes),
            WIRE_2 => match codec::decode(WIRE_2, bytes)? {
                message if Self::is_since_3(&message) => {
                    Err(CodecError::Malformed("wire version 2 has no such message".to_string()))
                }
                message => Ok(message),
            },
            _ => codec::decode(WIRE_VERSION, bytes),
        }
    }

    /// Whether wire version 2 does not know it.
    fn is_since_3(&self) -> bool {
        matches!(self, Self::Gone { .. } | Self::Pull(_) | Self::State(_))
    }

    /// The message's name, for logs and traces.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Hello(_) => "hello",
            Self::Refuse { .. } => "refuse",
            Self::Contexts { .. } => "contexts",
            Self::Deltas { .. } => "deltas",
            Self::Want { .. } => "want",
            Self::Confirm(_) => "confirm",
            Self::Gone { .. } => "gone",
            Self::Pull(_) => "pull",
            Self::State(_) => "state",
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
                instance: 5,
                resumes: Some(4),
            }),
            Message::Refuse { reason: "no".into() },
            Message::Contexts { complete: true, contexts: vec![(PartitionId(3), vector.clone())] },
            Message::Deltas {
                partition: PartitionId(1),
                deltas: vec![EncodedDelta::from_bytes(&[1, 2])],
                ends_want: false,
            },
            Message::Want { partition: PartitionId(2), context: vector },
            Message::Confirm(Confirm {
                replica: ReplicaId(1),
                instance: 5,
                follows: true,
                holds: vec![(PartitionId(2), 9)],
            }),
            Message::Gone { partition: PartitionId(2) },
        ];
        for message in messages {
            let bytes = message.encode(WIRE_VERSION).unwrap();
            assert_eq!(Message::decode(WIRE_VERSION, &bytes), Ok(message));
        }
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
    }

    /// The bytes of the last release that spoke version 1, which this one must go on speaking.
    #[test]
    fn wire_version_1_is_frozen() {
        let vector: VersionVector = [Dot { replica: ReplicaId(7), counter: 300 }].into_iter().collect();
        let hello = Hello {
            cluster: "c".into(),
            node: "n".into(),
            region: "r".into(),
            replica: ReplicaId(1),
            partitions: 64,
            instance: 0,
            resumes: None,
        };
        let golden = [
            (Message::Hello(hello), "01 00 01 63 01 6e 01 72 01 40"),
            (Message::Refuse { reason: "no".into() }, "01 01 02 6e 6f"),
            (
                Message::Contexts { complete: true, contexts: vec![(PartitionId(3), vector.clone())] },
                "01 02 01 01 03 01 07 fb 2c 01",
            ),
            (Message::Want { partition: PartitionId(2), context: vector }, "01 04 02 01 07 fb 2c 01"),
        ];
        for (message, bytes) in golden {
            let encoded = message.encode(1).unwrap();
            assert_eq!(hex(&encoded), bytes);
            assert_eq!(Message::decode(1, &encoded), Ok(message));
        }
    }

    #[test]
    fn bytes_on_the_wire_are_part_of_the_format() {
        let vector: VersionVector = [Dot { replica: ReplicaId(7), counter: 300 }].into_iter().collect();
        let message = Message::Want { partition: PartitionId(2), context: vector };
        expect_test::expect!["03 04 02 01 07 fb 2c 01"].assert_eq(&hex(&message.encode(3).unwrap()));
    }

    /// The bytes of the last release that spoke version 2.
    #[test]
    fn wire_version_2_has_the_bytes_of_3_and_knows_no_gone() {
        let vector: VersionVector = [Dot { replica: ReplicaId(7), counter: 300 }].into_iter().collect();
        let message = Message::Want { partition: PartitionId(2), context: vector };
        let bytes = message.encode(2).unwrap();
        assert_eq!(hex(&bytes), "02 04 02 01 07 fb 2c 01");
        assert_eq!(Message::decode(2, &bytes), Ok(message));
        let gone = Message::Gone { partition: PartitionId(2) };
        assert_eq!((gone.encode(1), gone.encode(2)), (None, None));
        let mut bytes = gone.encode(3).unwrap();
        assert_eq!(hex(&bytes), "03 06 02");
        assert!(matches!(Message::decode(2, &bytes), Err(CodecError::Version { .. })));
        bytes[0] = 2;
        assert!(matches!(Message::decode(2, &bytes), Err(CodecError::Malformed(_))));
    }

    proptest! {
        #[test]
        fn junk_never_panics(bytes: Vec<u8>) {
            let _ = Message::decode(1, &bytes);
            let _ = Message::decode(2, &bytes);
            let _ = Message::decode(3, &bytes);
        }

        #[test]
        fn damaged_messages_never_panic(at in 0usize..40, to: u8) {
            let hello = Hello {
                cluster: "c".into(),
                node: "n".into(),
                region: "r".into(),
                replica: ReplicaId(1),
                partitions: 64,
                instance: 3,
                resumes: None,
            };
            for wire in 1..=3 {
                let mut bytes = Message::Hello(hello.clone()).encode(wire).unwrap();
                let at = at % bytes.len();
                bytes[at] = to;
                let _ = Message::decode(wire, &bytes);
            }
        }
    }
}
