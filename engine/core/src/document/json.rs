//! A document as JSON and as text.
//!
//! | in Automerge | in JSON |
//! |---|---|
//! | map, table | object, by key |
//! | list | array |
//! | text, string | string |
//! | integers, counter, timestamp (milliseconds since 1970) | integer |
//! | float | number; `null` if it is not finite |
//! | bytes | string, in base64 |
//! | what this version of Automerge does not know | `null` |
//!
//! Of values that were assigned concurrently the one that Automerge chose is shown.

use automerge::{Automerge, ChangeHash, ObjId, ObjType, ROOT, ReadDoc, ScalarValueRef, ValueRef};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::DocumentError;
use crate::json::MAX_DEPTH;

type Heads<'h> = Option<&'h [ChangeHash]>;

pub(super) fn of_document(document: &Automerge, heads: Heads<'_>) -> Result<String, DocumentError> {
    let mut out = String::new();
    object(document, &ROOT, ObjType::Map, heads, 0, &mut out)?;
    Ok(out)
}

pub(super) fn check_depth(document: &Automerge) -> Result<(), DocumentError> {
    // Level by level, since it may be deeper than any stack.
    let mut level = vec![(ROOT, ObjType::Map)];
    for _ in 0..=MAX_DEPTH {
        let mut next = Vec::new();
        for (id, ty) in level {
            match ty {
                ObjType::Map | ObjType::Table => {
                    let items = document.map_range(&id, ..);
                    next.extend(items.filter_map(|item| Some((item.id(), nested(&item.value)?))));
                }
                ObjType::List => {
                    let items = document.list_range(&id, ..);
                    next.extend(items.filter_map(|item| Some((item.id(), nested(&item.value)?))));
                }
                ObjType::Text => {}
            }
        }
        if next.is_empty() {
            return Ok(());
        }
        level = next;
    }
    Err(DocumentError::TooDeep)
}

pub(super) fn text(
    document: &Automerge,
    pointer: Option<&str>,
    heads: Heads<'_>,
) -> Result<String, DocumentError> {
    let no_text = |at: &str| DocumentError::NotThere(format!("there is no text at {at:?}"));
    let Some(pointer) = pointer else {
        let mut texts = map_items(document, &ROOT, heads).filter(|(_, value, _)| is_text(value));
        return match (texts.next(), texts.next()) {
            (Some((_, value, id)), None) => text_of(document, &value, &id, heads),
            _ => Err(DocumentError::NotThere(
                "the document has no text or several on its first level: name one by `path`, a JSON Pointer"
                    .into(),
            )),
        };
    };
    let mut at = (ValueRef::Object(ObjType::Map), ROOT);
    for token in super::edit::tokens(pointer).map_err(|error| DocumentError::NotThere(error.to_string()))? {
        let (found, id) = match (at.0, heads) {
            (ValueRef::Object(ObjType::Map | ObjType::Table), _) => {
                let mut items = map_items(document, &at.1, heads);
                let item = items.find(|(key, _, _)| *key == token).ok_or_else(|| no_text(pointer))?;
                (item.1, item.2)
            }
            (ValueRef::Object(ObjType::List), _) => {
                let index: usize = token.parse().map_err(|_| no_text(pointer))?;
                let mut items = list_items(document, &at.1, heads).skip(index);
                items.next().ok_or_else(|| no_text(pointer))?
            }
            _ => return Err(no_text(pointer)),
        };
        at = (found, id);
    }
    match is_text(&at.0) {
        true => text_of(document, &at.0, &at.1, heads),
        false => Err(no_text(pointer)),
    }
}

fn is_text(value: &ValueRef<'_>) -> bool {
    matches!(value, ValueRef::Object(ObjType::Text) | ValueRef::Scalar(ScalarValueRef::Str(_)))
}

fn text_of(
    document: &Automerge,
    value: &ValueRef<'_>,
    id: &ObjId,
    heads: Heads<'_>,
) -> Result<String, DocumentError> {
    match (value, heads) {
        (ValueRef::Scalar(ScalarValueRef::Str(text)), _) => Ok(text.to_string()),
        (_, Some(heads)) => document.text_at(id, heads).map_err(super::failed),
        (_, None) => document.text(id).map_err(super::failed),
    }
}

fn map_items<'d>(
    document: &'d Automerge,
    id: &ObjId,
    heads: Heads<'_>,
) -> Box<dyn Iterator<Item = (String, ValueRef<'d>, ObjId)> + 'd> {
    let items = match heads {
        Some(heads) => document.map_range_at(id, .., heads),
        None => document.map_range(id, ..),
    };
    Box::new(items.map(|item| (item.key.to_string(), item.value.clone(), item.id())))
}

fn list_items<'d>(
    document: &'d Automerge,
    id: &ObjId,
    heads: Heads<'_>,
) -> Box<dyn Iterator<Item = (ValueRef<'d>, ObjId)> + 'd> {
    let items = match heads {
        Some(heads) => document.list_range_at(id, .., heads),
        None => document.list_range(id, ..),
    };
    Box::new(items.map(|item| (item.value.clone(), item.id())))
}

fn nested(value: &ValueRef<'_>) -> Option<ObjType> {
    match value {
        ValueRef::Object(ty) => Some(*ty),
        ValueRef::Scalar(_) => None,
    }
}

fn object(
    document: &Automerge,
    id: &ObjId,
    ty: ObjType,
    heads: Heads<'_>,
    depth: usize,
    out: &mut String,
) -> Result<(), DocumentError> {
    if depth >= MAX_DEPTH && ty != ObjType::Text {
        return Err(DocumentError::TooDeep);
    }
    let value = |value: ValueRef<'_>, id: ObjId, out: &mut String| match value {
        ValueRef::Object(ty) => object(document, &id, ty, heads, depth + 1, out),
        ValueRef::Scalar(scalar) => {
            self::scalar(&scalar, out);
            Ok(())
        }
    };
    match ty {
        ObjType::Map | ObjType::Table => {
            out.push('{');
            for (i, (key, item, id)) in map_items(document, id, heads).enumerate() {
                if i > 0 {
                    out.push(',');
                }
                string(&key, out);
                out.push(':');
                value(item, id, out)?;
            }
            out.push('}');
        }
        ObjType::List => {
            out.push('[');
            for (i, (item, id)) in list_items(document, id, heads).enumerate() {
                if i > 0 {
                    out.push(',');
                }
                value(item, id, out)?;
            }
            out.push(']');
        }
        ObjType::Text => {
            let text = match heads {
                Some(heads) => document.text_at(id, heads),
                None => document.text(id),
            };
            string(&text.map_err(super::failed)?, out);
        }
    }
    Ok(())
}

pub(super) fn scalar(value: &ScalarValueRef<'_>, out: &mut String) {
    match value {
        ScalarValueRef::Str(text) => string(text, out),
        ScalarValueRef::Bytes(bytes) => string(&STANDARD.encode(bytes), out),
        ScalarValueRef::Int(number) | ScalarValueRef::Counter(number) | ScalarValueRef::Timestamp(number) => {
            out.push_str(&number.to_string());
        }
        ScalarValueRef::Uint(number) => out.push_str(&number.to_string()),
        ScalarValueRef::F64(number) => {
            let number = serde_json::Number::from_f64(*number);
            out.push_str(&number.map_or_else(|| "null".to_owned(), |number| number.to_string()));
        }
        ScalarValueRef::Boolean(value) => out.push_str(if *value { "true" } else { "false" }),
        ScalarValueRef::Null | ScalarValueRef::Unknown { .. } => out.push_str("null"),
    }
}

pub(super) fn string(text: &str, out: &mut String) {
    out.push_str(&serde_json::Value::from(text).to_string());
}
