//! Messages of Automerge's sync protocol, as clients send them: what is taken leaves the document whole, or is refused; never a panic
//! outside of Automerge, and never memory or time beyond what the limits say.

use std::collections::BTreeSet;

use godwit_core::document::{ChangeHash, Document, Patch, SyncMessage, SyncState};
use godwit_core::json::Json;

/// Beyond, an input is passed over: see [`super::documents`].
const OPS_MAX: u64 = 10_000;

/// A message to a node that has [`document`]. Of the first byte one bit says whether the client has been heard before.
///
/// # Panics
/// If changes are to be committed before those that they build on, or the node cannot go on.
pub fn sync(bytes: &[u8]) {
    let Some((choice, bytes)) = bytes.split_first() else { return };
    let mut node = document();
    let mut state = SyncState::default();
    if choice % 2 == 1 {
        drop(node.tell(&mut state));
    }
    let Ok(mut message) = SyncMessage::parse(bytes) else { return };
    let changes = message.take_changes();
    if changes.iter().map(|encoded| encoded.change.ops).sum::<u64>() > OPS_MAX {
        return;
    }
    let Ok(admitted) = state.admit(changes, &node, |hash| node.has(hash)) else { return };
    let mut known: BTreeSet<ChangeHash> = BTreeSet::new();
    for encoded in &admitted {
        assert!(encoded.change.deps.iter().all(|dep| known.contains(dep) || node.has(dep)));
        known.insert(encoded.change.hash);
    }
    // What Automerge does not take is not committed.
    if node.admit(&admitted).is_err() {
        return;
    }
    if node.hear(&mut state, message).is_err() {
        return;
    }
    drop(node.tell(&mut state));
    assert_eq!(node.tell(&mut state), Ok(None), "nothing is said twice");
    node.save(None).expect("a document that is whole");
}

/// A title, and two edits of it beside each other.
///
/// # Panics
/// Never: its edits fit.
pub fn document() -> Document {
    let edited = |document: &mut Document, actor, patch: &str| {
        let patch = Patch::parse(&Json::parse(patch).expect("JSON")).expect("a patch");
        document.edit(&[actor; 16], 0, &patch).expect("an edit that fits").expect("a change")
    };
    let mut document = Document::default();
    edited(&mut document, 1, r#"[{"op":"add","path":"/title","value":"Draft"}]"#);
    let mut beside = document.clone();
    edited(&mut document, 2, r#"[{"op":"splice","path":"/title","index":0,"insert":"A "}]"#);
    let other = edited(&mut beside, 3, r#"[{"op":"add","path":"/n","value":[1,2.5]}]"#);
    document.apply([&other]).expect("an edit beside another");
    document
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a client and the node say to each other, of which the corpus is made.
    #[test]
    fn an_exchange_passes() {
        let mut client = Document::default();
        let patch =
            Patch::parse(&Json::parse(r#"[{"op":"add","path":"/by","value":"c"}]"#).unwrap()).unwrap();
        client.edit(&[9; 16], 0, &patch).unwrap();
        let (mut node, mut ours, mut theirs) = (document(), SyncState::default(), SyncState::default());
        for _ in 0..6 {
            let said = client.tell(&mut theirs).unwrap();
            for (from_client, said) in [(true, said), (false, node.tell(&mut ours).unwrap())] {
                let Some(said) = said else { continue };
                sync(&[&[1], &said[..]].concat());
                let (to, state) =
                    if from_client { (&mut node, &mut ours) } else { (&mut client, &mut theirs) };
                let mut message = SyncMessage::parse(&said).unwrap();
                let admitted = state.admit(message.take_changes(), to, |_| false).unwrap();
                to.apply(&admitted).unwrap();
                to.hear(state, message).unwrap();
            }
        }
        assert_eq!(client.heads(), node.heads());
        assert_eq!(client.heads().len(), 3);
    }
}
