//! Wire version 1. Frozen: nodes of the previous release speak it.
//!
//! It knows deltas of one commit only, without idempotency keys, and no incarnations.

use bincode::{Decode, Encode};
use godwit_core::codec::{self, CodecError};
use godwit_core::context::VersionVector;
use godwit_core::delta::EncodedDelta;
use godwit_core::ids::{PartitionId, ReplicaId};

use super::{Hello, Message};

pub(super) const VERSION: u8 = 1;

#[derive(Encode, Decode)]
enum Message1 {
    Hello { cluster: String, node: String, region: String, replica: ReplicaId, partitions: u16 },
    Refuse { reason: String },
    Contexts { complete: bool, contexts: Vec<(PartitionId, VersionVector)> },
    Deltas { partition: PartitionId, deltas: Vec<EncodedDelta>, ends_want: bool },
    Want { partition: PartitionId, context: VersionVector },
}

/// The message's bytes. Whoever sends leaves out what this version cannot say; an interval is left out here too.
pub(super) fn encode(message: &Message) -> Option<Vec<u8>> {
    let message = match message.clone() {
        Message::Hello(Hello { cluster, node, region, replica, partitions, .. }) => {
            Message1::Hello { cluster, node, region, replica, partitions }
        }
        Message::Refuse { reason } => Message1::Refuse { reason },
        Message::Contexts { complete, contexts } => Message1::Contexts { complete, contexts },
        Message::Deltas { partition, deltas, ends_want } => {
            let deltas = deltas.iter().filter_map(|delta| delta.as_format1().ok().flatten()).collect();
            Message1::Deltas { partition, deltas, ends_want }
        }
        Message::Want { partition, context } => Message1::Want { partition, context },
        Message::Confirm(_) | Message::Gone { .. } | Message::Pull(_) | Message::State(_) => return None,
    };
    Some(codec::encode(VERSION, &message))
}

pub(super) fn decode(bytes: &[u8]) -> Result<Message, CodecError> {
    Ok(match codec::decode(VERSION, bytes)? {
        Message1::Hello { cluster, node, region, replica, partitions } => {
            Message::Hello(Hello { cluster, node, region, replica, partitions, instance: 0, resumes: None })
        }
        Message1::Refuse { reason } => Message::Refuse { reason },
        Message1::Contexts { complete, contexts } => Message::Contexts { complete, contexts },
        Message1::Deltas { partition, deltas, ends_want } => Message::Deltas { partition, deltas, ends_want },
        Message1::Want { partition, context } => Message::Want { partition, context },
    })
}
