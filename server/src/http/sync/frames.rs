//! Messages of automerge-repo's WebSocket protocol, version 1: CBOR maps (RFC 8949), one in each binary frame.
//!
//! | type | from | what |
//! |---|---|---|
//! | `join` | client | who it is, and the versions that it speaks; the first one |
//! | `peer` | node | who the node is, and the version that it chose |
//! | `request`, `sync` | both | a message of Automerge's sync protocol about one document; with `request` its sender lacks it |
//! | `doc-unavailable` | node | it has no such document now |
//! | `ephemeral` | both | presence: passed on, kept nowhere |
//! | `error` | node | what went wrong |

use ciborium::Value;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

/// The version of the protocol that is spoken here.
pub(super) const VERSION: &str = "1";

/// A message. What its type does not have is absent, and what others have besides is passed over.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Frame {
    pub(super) r#type: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) sender_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) target_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) document_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) data: Option<ByteBuf>,
    /// Which message of a sender's session it is: whoever hears it twice can tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) count: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) session_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) supported_protocol_versions: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) selected_protocol_version: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) peer_metadata: Option<PeerMetadata>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) message: Option<String>,
}

/// What a node says of itself: nothing, so that clients keep no state of exchanges with it beyond a connection.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct PeerMetadata {}

impl Frame {
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, String> {
        ciborium::from_reader(bytes).map_err(|error| format!("not a message of this protocol: {error}"))
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        // Writing to memory does not fail, and every part has a form in CBOR.
        if let Err(error) = ciborium::into_writer(self, &mut bytes) {
            tracing::error!(%error, "a message could not be encoded: a defect");
        }
        bytes
    }

    /// Whether a `join` allows the version that is spoken here. Old clients do not say.
    pub(super) fn speaks_our_version(&self) -> bool {
        self.supported_protocol_versions.as_ref().is_none_or(|versions| versions.iter().any(|v| v == VERSION))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As cbor-x writes it: `{type: "sync", senderId: "a", targetId: "b", documentId: "d", data: Uint8Array [1, 2], more: [{}]}`.
    #[test]
    fn a_message_of_a_client_is_read() {
        let mut bytes = vec![0xb9, 0, 6]; // cbor-x writes lengths of maps in 16 bits.
        for text in ["type", "sync", "senderId", "a", "targetId", "b", "documentId", "d"] {
            bytes.push(0x60 + text.len() as u8);
            bytes.extend_from_slice(text.as_bytes());
        }
        bytes.extend_from_slice(b"\x64data\x42\x01\x02\x64more\x81\xa0");
        let frame = Frame::decode(&bytes).unwrap();
        assert_eq!((frame.r#type.as_str(), frame.document_id.as_deref()), ("sync", Some("d")));
        assert_eq!(frame.data.as_ref().unwrap().as_ref(), [1, 2]);
        assert_eq!(Frame::decode(&frame.encode()), Ok(frame));
    }

    #[test]
    fn what_is_no_message_is_refused() {
        let deep = [0x81; 10_000];
        let endless = [0x5b, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0];
        for bytes in [&[][..], b"\xa0", b"\x01", b"\xa1\x64type\x01", &deep, &endless] {
            assert!(Frame::decode(bytes).is_err(), "{bytes:?}");
        }
    }
}
