//! Tests of the sync protocol against Automerge's own part in it.

use automerge::transaction::{CommitOptions, Transactable};
use automerge::{ActorId, Automerge, ROOT, ReadDoc};
use proptest::prelude::*;

use super::*;

/// Messages of an exchange after which it should have ended.
const MESSAGES_MAX: usize = 40;

/// A node: its stored changes, and whether each counts.
#[derive(Default)]
struct Node {
    stored: BTreeMap<ChangeHash, (Encoded, bool)>,
}

impl Node {
    fn document(&self) -> Document {
        let mut wanted: Vec<ChangeHash> =
            self.stored.iter().filter(|(_, (_, counts))| *counts).map(|(hash, _)| *hash).collect();
        let mut reached = BTreeMap::new();
        while let Some(hash) = wanted.pop() {
            let encoded = &self.stored[&hash].0;
            if reached.insert(hash, encoded.clone()).is_none() {
                wanted.extend(&encoded.change.deps);
            }
        }
        let mut document = Document::default();
        document.apply(&select::in_causal_order(reached)).unwrap();
        document
    }

    fn clear(&mut self) {
        self.stored.values_mut().for_each(|(_, counts)| *counts = false);
    }

    /// Takes a message, and tells what it commits.
    fn hear(&mut self, state: &mut SyncState, bytes: &[u8]) -> usize {
        let mut message = SyncMessage::parse(bytes).unwrap();
        let stored = |hash: &ChangeHash| self.stored.contains_key(hash);
        let admitted = state.admit(message.take_changes(), &self.document(), stored).unwrap();
        let committed = admitted.len();
        self.stored.extend(admitted.into_iter().map(|encoded| (encoded.change.hash, (encoded, true))));
        self.document().hear(state, message).unwrap();
        committed
    }
}

struct Client {
    automerge: Automerge,
    theirs: State,
    ours: SyncState,
}

impl Client {
    fn new(actor: u8) -> Self {
        let automerge = Automerge::new().with_actor(ActorId::from([actor; 16]));
        Self { automerge, theirs: State::new(), ours: SyncState::default() }
    }

    fn edit(&mut self, key: u8) {
        let mut transaction = self.automerge.transaction();
        transaction.put(ROOT, format!("{key}"), i64::from(key)).unwrap();
        transaction.commit_with(CommitOptions::default());
    }

    fn heads(&self) -> Vec<ChangeHash> {
        let mut heads = self.automerge.get_heads();
        heads.sort_unstable();
        heads
    }

    /// A message of the client to the node, and one back. Tells whether anything was said.
    fn exchange(&mut self, node: &mut Node) -> bool {
        let said = self.automerge.generate_sync_message(&mut self.theirs).map(Message::encode);
        if let Some(bytes) = &said {
            node.hear(&mut self.ours, bytes);
        }
        let answer = node.document().tell(&mut self.ours).unwrap();
        if let Some(bytes) = &answer {
            let message = Message::decode(bytes).unwrap();
            self.automerge.receive_sync_message(&mut self.theirs, message).unwrap();
        }
        said.is_some() || answer.is_some()
    }

    fn settle(&mut self, node: &mut Node) {
        let ended = (0..MESSAGES_MAX).any(|_| !self.exchange(node));
        assert!(ended, "an exchange goes on and on");
    }
}

#[derive(Debug, Clone)]
enum Step {
    Edit(usize, u8),
    EditAtNode(u8),
    Exchange(usize),
    Reconnect(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (0..2usize, 0..20u8).prop_map(|(client, key)| Step::Edit(client, key)),
        2 => (0..20u8).prop_map(Step::EditAtNode),
        4 => (0..2usize).prop_map(Step::Exchange),
        1 => (0..2usize).prop_map(Step::Reconnect),
    ];
    prop::collection::vec(step, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn two_clients_and_their_node_end_with_the_same(steps in steps()) {
        let mut node = Node::default();
        let mut clients = [Client::new(1), Client::new(2)];
        for step in steps {
            match step {
                Step::Edit(client, key) => clients[client].edit(key),
                Step::EditAtNode(key) => {
                    let mut document = node.document();
                    let json = format!(r#"[{{"op":"add","path":"/{key}","value":true}}]"#);
                    let patch = super::super::Patch::parse(&crate::json::Json::parse(&json).unwrap()).unwrap();
                    if let Some(encoded) = document.edit(&[9; 16], 0, &patch).unwrap() {
                        node.stored.insert(encoded.change.hash, (encoded, true));
                    }
                }
                Step::Exchange(client) => {
                    clients[client].exchange(&mut node);
                }
                Step::Reconnect(client) => {
                    clients[client].theirs = State::new();
                    clients[client].ours = SyncState::default();
                }
            }
        }
        for client in [0, 1, 0] {
            clients[client].settle(&mut node);
        }
        prop_assert_eq!(clients[0].heads(), node.document().heads());
        prop_assert_eq!(clients[1].heads(), node.document().heads());
        prop_assert!(clients.iter().all(|client| !client.ours.waits()));
    }
}

#[test]
fn who_missed_a_clear_does_not_undo_it() {
    let mut node = Node::default();
    let mut client = Client::new(1);
    (0..10).for_each(|key| client.edit(key));
    client.settle(&mut node);
    assert_eq!(node.document().heads(), client.heads());
    node.clear();
    // As it hears of it while it is linked, and as it comes back.
    for begins_anew in [false, true] {
        client.ours = SyncState::default();
        if begins_anew {
            client.theirs = State::new();
        }
        client.settle(&mut node);
        assert_eq!(node.document().heads(), []);
    }
    client.edit(10);
    client.settle(&mut node);
    assert_eq!(
        node.document().heads(),
        client.heads(),
        "an edit beside the clear stays, with what it builds on"
    );
    assert_eq!(node.stored.len(), 11);
}

#[test]
fn an_edit_after_a_clear_does_not_bring_back_what_it_does_not_build_on() {
    let mut node = Node::default();
    let mut client = Client::new(1);
    client.edit(1);
    client.settle(&mut node);
    node.clear();
    let mut other = Client::new(2);
    other.edit(2);
    other.settle(&mut node);
    client.settle(&mut node);
    assert_eq!(node.document().heads(), other.heads());
    // The client has both: what it edits now builds on both.
    assert_eq!(client.automerge.get(ROOT, "2").unwrap().unwrap().0.as_i64(), Some(2));
}

#[test]
fn what_a_filter_left_out_is_asked_for() {
    let mut node = Node::default();
    let mut client = Client::new(1);
    (0..3).for_each(|key| client.edit(key));
    // The first message tells heads; the second brings the changes.
    client.exchange(&mut node);
    let mut message = client.automerge.generate_sync_message(&mut client.theirs).unwrap();
    let changes: Vec<automerge::Change> = client.automerge.get_changes(&[]);
    let left_out = changes[1].hash();
    let rest = changes.iter().filter(|change| change.hash() != left_out);
    message.changes = ChunkList::from(rest.map(|change| change.raw_bytes().to_vec()).collect::<Vec<_>>());
    client.theirs.sent_hashes.remove(&left_out);
    assert_eq!(node.hear(&mut client.ours, &message.encode()), 1);
    assert!(client.ours.waits());
    client.settle(&mut node);
    assert_eq!(node.document().heads(), client.heads());
    assert!(!client.ours.waits());
}

#[test]
fn hostile_messages_are_refused() {
    let message = |filter: &[u8]| {
        let mut bytes = vec![0x42, 0, 0, 1, 0, filter.len() as u8];
        bytes.extend_from_slice(filter);
        bytes.push(0);
        bytes
    };
    assert!(SyncMessage::parse(&message(&[])).is_ok());
    assert!(SyncMessage::parse(&message(&[1, 8, 7, 0xff])).is_ok());
    for filter in
        [&[1, 0, 7][..], &[1, 8, 65, 0xff], &[2, 8, 7, 0xff], &[1, 8, 0xff, 0xff, 0xff, 0xff, 0xf, 0xff]]
    {
        assert!(SyncMessage::parse(&message(filter)).is_err(), "{filter:?}");
    }
    for bytes in [&[][..], &[0x41], &[0x42, 0xff, 0xff, 0xff, 0xff, 0xf], &[0x42, 0, 0, 17]] {
        assert!(SyncMessage::parse(bytes).is_err(), "{bytes:?}");
    }
    let changes = [0x42, 0, 0, 0, 1, 3, 1, 2, 3];
    assert!(SyncMessage::parse(&changes).is_err());
}
