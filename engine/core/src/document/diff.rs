//! What changed between two states of a document, as a patch.
//!
//! An object that came is told as an empty one, and then what is in it, as Automerge tells it. Marks and conflicts are not told.

use automerge::{Automerge, ChangeHash, ObjType, Patch, PatchAction, Prop, ReadDoc, Value};

use super::json;

pub(super) fn patch(document: &Automerge, from: &[ChangeHash], to: &[ChangeHash]) -> String {
    let mut steps = Steps(String::new());
    for Patch { obj, path, action } in document.diff(from, to) {
        let at: String = path.into_iter().map(|(_, prop)| token(&prop)).collect();
        match action {
            PatchAction::PutMap { key, value: (value, _), .. } => {
                steps.put("add", &at, &Prop::Map(key), &value);
            }
            PatchAction::PutSeq { index, value: (value, _), .. } => {
                steps.put("replace", &at, &Prop::Seq(index), &value);
            }
            PatchAction::Insert { index, values } => {
                for (i, (value, _, _)) in values.iter().enumerate() {
                    steps.put("add", &at, &Prop::Seq(index + i), value);
                }
            }
            PatchAction::SpliceText { index, value, .. } => {
                let mut insert = String::new();
                json::string(&value.make_string(), &mut insert);
                steps.step("splice", &at, &format!(",\"index\":{index},\"insert\":{insert}"));
            }
            PatchAction::DeleteMap { key } => {
                steps.step("remove", &(at + &token(&Prop::Map(key))), "");
            }
            PatchAction::DeleteSeq { index, length } => match document.object_type(&obj) {
                Ok(ObjType::Text) => {
                    steps.step("splice", &at, &format!(",\"index\":{index},\"delete\":{length}"));
                }
                _ => {
                    let item = at + &token(&Prop::Seq(index));
                    (0..length).for_each(|_| steps.step("remove", &item, ""));
                }
            },
            PatchAction::Increment { prop, value } => {
                steps.step("increment", &(at + &token(&prop)), &format!(",\"by\":{value}"));
            }
            PatchAction::Conflict { .. } | PatchAction::Mark { .. } => {}
        }
    }
    format!("[{}]", steps.0)
}

struct Steps(String);

impl Steps {
    fn put(&mut self, op: &str, at: &str, prop: &Prop, value: &Value<'_>) {
        let mut more = ",\"value\":".to_owned();
        match value {
            Value::Object(ObjType::Map | ObjType::Table) => more.push_str("{}"),
            Value::Object(ObjType::List) => more.push_str("[]"),
            Value::Object(ObjType::Text) => more.push_str("\"\""),
            Value::Scalar(value) => json::scalar(&value.as_ref().clone().into(), &mut more),
        }
        self.step(op, &format!("{at}{}", token(prop)), &more);
    }

    fn step(&mut self, op: &str, path: &str, more: &str) {
        let comma = if self.0.is_empty() { "" } else { "," };
        self.0.push_str(comma);
        self.0.push_str(&format!("{{\"op\":\"{op}\",\"path\":"));
        json::string(path, &mut self.0);
        self.0.push_str(more);
        self.0.push('}');
    }
}

/// A part of a JSON Pointer.
fn token(prop: &Prop) -> String {
    match prop {
        Prop::Map(key) => format!("/{}", key.replace('~', "~0").replace('/', "~1")),
        Prop::Seq(index) => format!("/{index}"),
    }
}
