//! `Idempotency-Key`: which request a commit was made for.
//!
//! A key counts in its namespace, and for each partition that the request writes to. What was asked for is told by a
//! digest of the operations and of what the client says it has seen: whoever sends the same request sends the same
//! digest, to any node of any version, so the form hashed never changes.

use axum::http::{HeaderMap, HeaderName};
use godwit_core::context::{Dot, Seen};
use godwit_core::op::{Op, Write};
use serde_json::{Value, json};

use super::contract;
use super::problem::{Kind, Problem};

pub(super) const KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// The most characters of a key.
const KEY_BYTES_MAX: usize = 255;

/// What writes take, for the contract.
pub(super) fn parameter() -> Value {
    let about = "A retry with the same key is the same write: always in this region, for increments in any.";
    let schema = json!({"type": "string", "minLength": 1, "maxLength": KEY_BYTES_MAX, "pattern": "^[!-~]+$"});
    contract::header_parameter("Idempotency-Key", about, schema)
}

/// Half of the digest of the request's key, if it has one.
pub(super) fn key(headers: &HeaderMap) -> Result<Option<[u8; 16]>, Problem> {
    let mut given = headers.get_all(KEY).iter();
    let Some(key) = given.next() else { return Ok(None) };
    let key = key.as_bytes();
    let form = (1..=KEY_BYTES_MAX).contains(&key.len()) && key.iter().all(u8::is_ascii_graphic);
    if !form || given.next().is_some() {
        let detail =
            format!("{KEY} is one key of 1 to {KEY_BYTES_MAX} visible ASCII characters without spaces");
        return Err(Problem::new(Kind::Malformed, detail));
    }
    Ok(Some(half(blake3::derive_key("godwit 2026 idempotency key", key))))
}

/// Half of the digest of what is asked for.
pub(super) fn asked(writes: &[Write], seen: Option<&Seen>) -> [u8; 16] {
    let mut form = Form(blake3::Hasher::new_derive_key("godwit 2026 asked for"));
    form.number(writes.len() as u64);
    for Write { record, ops } in writes {
        form.text(record.namespace.as_str());
        form.text(record.key.as_str());
        form.number(ops.len() as u64);
        ops.iter().for_each(|op| form.op(op));
    }
    form.number(u64::from(seen.is_some()));
    if let Some(seen) = seen {
        form.dots(seen.vector().iter().collect());
        form.dots(seen.cloud().collect());
    }
    half(form.0.finalize().into())
}

fn half(digest: [u8; 32]) -> [u8; 16] {
    let mut half = [0; 16];
    half.copy_from_slice(&digest[..16]);
    half
}

/// The form of a request, as it is hashed.
struct Form(blake3::Hasher);

impl Form {
    fn number(&mut self, number: u64) {
        self.0.update(&number.to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        self.number(text.len() as u64);
        self.0.update(text.as_bytes());
    }

    fn dots(&mut self, dots: Vec<Dot>) {
        self.number(dots.len() as u64);
        for dot in dots {
            self.number(dot.replica.0);
            self.number(dot.counter);
        }
    }

    fn op(&mut self, op: &Op) {
        let mut begin = |code: u64, field: &str| {
            self.number(code);
            self.text(field);
        };
        match op {
            Op::Set { field, value } => {
                begin(1, field.as_str());
                self.text(value.as_str());
            }
            Op::Incr { field, by } => {
                begin(2, field.as_str());
                self.number(by.cast_unsigned());
            }
            Op::Enable { field } => begin(3, field.as_str()),
            Op::Disable { field } => begin(4, field.as_str()),
            Op::Add { field, members } | Op::Remove { field, members } => {
                begin(if matches!(op, Op::Add { .. }) { 5 } else { 6 }, field.as_str());
                self.number(members.len() as u64);
                members.iter().for_each(|member| self.text(member.as_str()));
            }
            Op::Clear { field } => begin(7, field.as_str()),
            Op::Delete => begin(8, ""),
            Op::ZAdd { field, scores } => {
                begin(9, field.as_str());
                self.number(scores.len() as u64);
                for (member, score) in scores {
                    self.text(member.as_str());
                    self.number(score.value().to_bits());
                }
            }
            Op::ZIncr { field, member, by } => {
                begin(10, field.as_str());
                self.text(member.as_str());
                self.number(by.value().to_bits());
            }
            Op::ZRemove { field, members } | Op::Observe { field, members } => {
                begin(if matches!(op, Op::ZRemove { .. }) { 11 } else { 12 }, field.as_str());
                self.number(members.len() as u64);
                members.iter().for_each(|member| self.text(member.as_str()));
            }
            Op::Expire { in_ms } => {
                begin(13, "");
                self.number(*in_ms);
            }
            Op::Persist => begin(14, ""),
            Op::ExpireAt { at_ms } => {
                begin(15, "");
                self.number(*at_ms);
            }
            Op::Edit { field, patch } => {
                begin(17, field.as_str());
                self.text(patch.as_str());
            }
            Op::Change { field, changes } => {
                begin(18, field.as_str());
                self.number(changes.len() as u64);
                changes.iter().for_each(|change| self.text(&change.change.hash.to_string()));
            }
            Op::ObserveRanks { field, ranks } => {
                begin(16, field.as_str());
                self.number(ranks.len() as u64);
                ranks
                    .iter()
                    .for_each(|(register, rank)| self.number(u64::from(*register) << 8 | u64::from(*rank)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;
    use godwit_core::ids::{Field, Key, Member, Namespace, RecordId, ReplicaId};
    use std::collections::BTreeSet;

    #[test]
    fn keys_are_visible_text_and_one() {
        let key = |values: &[&[u8]]| {
            let pairs = values.iter().map(|value| (KEY, HeaderValue::from_bytes(value).unwrap()));
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                headers.append(name, value);
            }
            super::key(&headers).map_err(drop)
        };
        assert_eq!(key(&[]), Ok(None));
        assert_ne!(key(&[b"a"]), key(&[b"b"]));
        assert!(key(&[&[b'~'; 255]]).unwrap().is_some());
        for bad in [&[&b""[..]][..], &[b"a b"], &[b"\xff"], &[&[b'a'; 256]], &[b"a", b"a"]] {
            assert_eq!(key(bad), Err(()), "{bad:?}");
        }
    }

    #[test]
    fn whatever_is_asked_differently_has_another_digest() {
        let field = |name: &str| Field::new(name).unwrap();
        let members =
            |names: &[&str]| names.iter().map(|name| Member::new(*name).unwrap()).collect::<Vec<_>>();
        let set =
            |json: &str| Op::Set { field: field("f"), value: godwit_core::json::Json::parse(json).unwrap() };
        let ops: Vec<Vec<Op>> = vec![
            vec![],
            vec![set("1")],
            vec![set("\"1\"")],
            vec![set("1"), set("1")],
            vec![Op::Incr { field: field("f"), by: 1 }],
            vec![Op::Incr { field: field("f"), by: -1 }],
            vec![Op::Incr { field: field("g"), by: 1 }],
            vec![Op::Enable { field: field("f") }],
            vec![Op::Disable { field: field("f") }],
            vec![Op::Add { field: field("f"), members: members(&["a", "b"]) }],
            vec![Op::Add { field: field("f"), members: members(&["ab"]) }],
            vec![Op::Remove { field: field("f"), members: members(&["ab"]) }],
            vec![Op::Clear { field: field("f") }],
            vec![Op::Delete],
        ];
        let write = |key: &str, ops: &[Op]| {
            let record = RecordId { namespace: Namespace::new("ns").unwrap(), key: Key::new(key).unwrap() };
            Write { record, ops: ops.to_vec() }
        };
        let dots = |counter| [Dot { replica: ReplicaId(1), counter }];
        let seen = [
            Seen::default(),
            Seen::all_of(dots(2).into_iter().collect()),
            Seen::of_parts(Default::default(), dots(2)),
            Seen::all_of(dots(3).into_iter().collect()),
        ];
        let mut digests: Vec<[u8; 16]> = ops.iter().map(|ops| asked(&[write("k", ops)], None)).collect();
        digests.extend(seen.iter().map(|seen| asked(&[write("k", &ops[1])], Some(seen))));
        digests.push(asked(&[write("j", &ops[1])], None));
        digests.push(asked(&[write("k", &ops[1]), write("j", &ops[1])], None));
        assert_eq!(digests.iter().collect::<BTreeSet<_>>().len(), digests.len());
        // A node of another version may be asked again.
        assert_eq!(blake3::hash(&digests.concat()).to_hex()[..16], *"3fb429c34b0bff25");
    }
}
