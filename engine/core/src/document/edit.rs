//! Edits: a JSON Patch ([RFC 6902](https://www.rfc-editor.org/rfc/rfc6902)) and splices of text, made into one change.
//!
//! - Strings become texts, so that they can be edited concurrently. Integers beyond 64 bits are refused, since Automerge would have to
//!   round them.
//! - Positions in texts are in Unicode scalar values. One that is beyond the end is refused.
//! - A patch is made as a whole, or not at all.

use std::collections::BTreeMap;

use automerge::transaction::{CommitOptions, Transactable, Transaction};
use automerge::{ActorId, Automerge, ChangeHash, ObjId, ObjType, Prop, ROOT, ReadDoc, ScalarValue, Value};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::DocumentError;
use crate::json::{Json, JsonError, MAX_DEPTH};

/// A patch that can be read.
#[derive(Debug, Clone, PartialEq)]
pub struct Patch(Vec<Step>);

/// Why a patch cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// It is no patch.
    #[error("not a JSON Patch: {0}")]
    Malformed(String),
    /// A step of it is none.
    #[error("step {step} of the patch: {what}")]
    Step {
        /// Its index.
        step: usize,
        /// What is wrong.
        what: String,
    },
}

/// Why a patch was not made. The document is as before, unless it has failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// A step does not fit the document.
    #[error("step {step} of the patch: {what}")]
    Step {
        /// Its index.
        step: usize,
        /// What is wrong.
        what: String,
    },
    /// The document fails.
    #[error(transparent)]
    Document(#[from] DocumentError),
}

#[derive(Debug, Clone, PartialEq)]
enum Step {
    Add(Pointer, Node),
    Remove(Pointer),
    Replace(Pointer, Node),
    Move { from: Pointer, to: Pointer },
    Copy { from: Pointer, to: Pointer },
    Test(Pointer, Node),
    Splice { text: Pointer, index: usize, delete: usize, insert: String },
}

type Pointer = Vec<String>;

/// A value to be put into a document.
#[derive(Debug, Clone, PartialEq)]
enum Node {
    Scalar(ScalarValue),
    Text(String),
    List(Vec<Node>),
    Map(BTreeMap<String, Node>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawStep<'a> {
    op: String,
    path: String,
    from: Option<String>,
    #[serde(borrow)]
    value: Option<&'a RawValue>,
    index: Option<usize>,
    delete: Option<usize>,
    insert: Option<String>,
}

impl Patch {
    /// Reads a patch.
    pub fn parse(patch: &Json) -> Result<Self, PatchError> {
        let steps: Vec<&RawValue> =
            serde_json::from_str(patch.as_str()).map_err(|error| PatchError::Malformed(error.to_string()))?;
        let read = |(step, raw): (usize, &&RawValue)| {
            self::step(raw.get()).map_err(|what| PatchError::Step { step, what })
        };
        steps.iter().enumerate().map(read).collect::<Result<_, _>>().map(Self)
    }
}

fn step(text: &str) -> Result<Step, String> {
    // `null` is a value, and not the lack of one.
    let has_value = serde_json::from_str::<BTreeMap<String, &RawValue>>(text)
        .map_err(|error| error.to_string())?
        .get("value")
        .copied();
    let mut raw: RawStep<'_> = serde_json::from_str(text).map_err(|error| error.to_string())?;
    raw.value = has_value;
    let takes: &[&str] = match raw.op.as_str() {
        "add" | "replace" | "test" => &["value"],
        "remove" => &[],
        "move" | "copy" => &["from"],
        "splice" => &["index", "delete", "insert"],
        other => {
            return Err(format!("there is no {other:?}: add, remove, replace, move, copy, test, splice"));
        }
    };
    let given = [
        ("value", raw.value.is_some()),
        ("from", raw.from.is_some()),
        ("index", raw.index.is_some()),
        ("delete", raw.delete.is_some()),
        ("insert", raw.insert.is_some()),
    ];
    if let Some((name, _)) = given.iter().find(|(name, given)| *given && !takes.contains(name)) {
        return Err(format!("{:?} does not take `{name}`", raw.op));
    }
    let missing = |name: &str| format!("{:?} needs `{name}`", raw.op);
    let path = tokens(&raw.path)?;
    let from = || tokens(raw.from.as_deref().ok_or_else(|| missing("from"))?);
    let value = || node(raw.value.ok_or_else(|| missing("value"))?.get());
    Ok(match raw.op.as_str() {
        "add" => Step::Add(path, value()?),
        "remove" => Step::Remove(path),
        "replace" => Step::Replace(path, value()?),
        "test" => Step::Test(path, value()?),
        "move" => Step::Move { from: from()?, to: path },
        "copy" => Step::Copy { from: from()?, to: path },
        _ => Step::Splice {
            text: path,
            index: raw.index.ok_or_else(|| missing("index"))?,
            delete: raw.delete.unwrap_or(0),
            insert: raw.insert.unwrap_or_default(),
        },
    })
}

/// The parts of a JSON Pointer (RFC 6901).
pub(super) fn tokens(pointer: &str) -> Result<Pointer, String> {
    if pointer.is_empty() {
        return Ok(Vec::new());
    }
    let Some(rest) = pointer.strip_prefix('/') else {
        return Err(format!("{pointer:?} is no JSON Pointer: it begins with a slash"));
    };
    let token = |token: &str| {
        let plain = token.replace("~1", "").replace("~0", "");
        match plain.contains('~') {
            true => Err(format!("{pointer:?} is no JSON Pointer: `~` is written `~0`, a slash `~1`")),
            false => Ok(token.replace("~1", "/").replace("~0", "~")),
        }
    };
    rest.split('/').map(token).collect()
}

/// A value of checked JSON.
fn node(text: &str) -> Result<Node, String> {
    let wrong = |error: serde_json::Error| error.to_string();
    Ok(match text.as_bytes().first() {
        Some(b'{') => {
            let items: BTreeMap<String, &RawValue> = serde_json::from_str(text).map_err(wrong)?;
            Node::Map(
                items
                    .into_iter()
                    .map(|(key, item)| Ok((key, node(item.get())?)))
                    .collect::<Result<_, String>>()?,
            )
        }
        Some(b'[') => {
            let items: Vec<&RawValue> = serde_json::from_str(text).map_err(wrong)?;
            Node::List(items.into_iter().map(|item| node(item.get())).collect::<Result<_, _>>()?)
        }
        Some(b'"') => Node::Text(serde_json::from_str(text).map_err(wrong)?),
        Some(b'n') => Node::Scalar(ScalarValue::Null),
        Some(b't' | b'f') => Node::Scalar(ScalarValue::Boolean(text == "true")),
        _ if text.contains(['.', 'e', 'E']) => {
            let number = text.parse::<f64>().ok().filter(|number| number.is_finite());
            Node::Scalar(ScalarValue::F64(number.ok_or_else(|| format!("{text} is beyond 64-bit floats"))?))
        }
        _ => match (text.parse(), text.parse()) {
            (Ok(number), _) => Node::Scalar(ScalarValue::Int(number)),
            (_, Ok(number)) => Node::Scalar(ScalarValue::Uint(number)),
            _ => return Err(format!("{text} is beyond 64-bit integers, which is all that documents hold")),
        },
    })
}

/// Makes a change of a patch; `None` if it changes nothing.
pub(super) fn apply(
    document: &mut Automerge,
    actor: &[u8],
    time: i64,
    patch: &Patch,
) -> Result<Option<Vec<u8>>, EditError> {
    document.set_actor(ActorId::from(actor));
    let Some(hash) = commit(document, time, patch)? else { return Ok(None) };
    let change = document.get_change_by_hash(&hash);
    Ok(change.map(|mut change| change.bytes().into_owned()))
}

fn commit(document: &mut Automerge, time: i64, patch: &Patch) -> Result<Option<ChangeHash>, EditError> {
    let mut edit = Edit { transaction: document.transaction(), text: None };
    let made =
        patch.0.iter().enumerate().try_for_each(|(step, of_step)| {
            edit.step(of_step).map_err(|what| EditError::Step { step, what })
        });
    let Edit { transaction, .. } = edit;
    if made.is_err() || transaction.pending_ops() == 0 {
        transaction.rollback();
        return made.map(|()| None);
    }
    let (hash, _) = transaction.commit_with(CommitOptions::default().with_time(time));
    Ok(hash)
}

struct Edit<'d> {
    transaction: Transaction<'d>,
    /// The text of the last step, if that was a splice: most patches type in one place.
    text: Option<OpenText>,
}

struct OpenText {
    path: Vec<String>,
    id: ObjId,
    /// In characters.
    length: usize,
}

/// Where a value stands: in its object, under its key or index.
struct Place {
    object: ObjId,
    ty: ObjType,
    prop: Prop,
}

impl Edit<'_> {
    fn step(&mut self, step: &Step) -> Result<(), String> {
        if !matches!(step, Step::Splice { .. }) {
            self.text = None;
        }
        match step {
            Step::Add(path, node) => self.add(path, node),
            Step::Remove(path) => self.remove(path).map(drop),
            Step::Replace(path, node) => self.replace(path, node),
            Step::Move { from, to } if to.starts_with(from) && to != from => {
                Err("a value cannot be moved into itself".into())
            }
            Step::Move { from, to } => {
                let node = self.remove(from)?;
                self.add(to, &node)
            }
            Step::Copy { from, to } => {
                let node = self.read(from)?;
                self.add(to, &node)
            }
            Step::Test(path, wanted) => match same(&self.read(path)?, wanted) {
                true => Ok(()),
                false => Err(format!("the value at {:?} is another one", pointer(path))),
            },
            Step::Splice { text, index, delete, insert } => self.splice(text, *index, *delete, insert),
        }
    }

    fn add(&mut self, path: &[String], node: &Node) -> Result<(), String> {
        let Some(place) = self.place(path, true)? else { return self.replace(path, node) };
        match place.ty {
            ObjType::List => self.insert(&place, node),
            _ => self.put(&place, node),
        }
    }

    fn replace(&mut self, path: &[String], node: &Node) -> Result<(), String> {
        if path.is_empty() {
            let Node::Map(items) = node else { return Err("a document is an object".into()) };
            self.remove(path)?;
            for (key, item) in items {
                self.put(&Place { object: ROOT, ty: ObjType::Map, prop: key.clone().into() }, item)?;
            }
            return Ok(());
        }
        let place = self.existing(path)?;
        self.put(&place, node)
    }

    /// Removes a value, and tells what it was.
    fn remove(&mut self, path: &[String]) -> Result<Node, String> {
        let before = self.read(path)?;
        if path.is_empty() {
            let keys: Vec<String> = self.transaction.keys(ROOT).collect();
            keys.into_iter().try_for_each(|key| self.transaction.delete(ROOT, key)).map_err(text)?;
        } else {
            let place = self.existing(path)?;
            self.transaction.delete(&place.object, place.prop).map_err(text)?;
        }
        Ok(before)
    }

    fn splice(&mut self, path: &[String], index: usize, delete: usize, insert: &str) -> Result<(), String> {
        let open = match self.text.take().filter(|open| open.path == path) {
            Some(open) => open,
            None => self.open_text(path)?,
        };
        let OpenText { id, length, .. } = &open;
        if index.checked_add(delete).is_none_or(|end| end > *length) {
            return Err(format!(
                "the text at {:?} has {length} characters, {delete} from {index} on are not there",
                pointer(path)
            ));
        }
        self.transaction
            .splice_text(id, index, isize::try_from(delete).map_err(text)?, insert)
            .map_err(text)?;
        let length = length - delete + insert.chars().count();
        self.text = Some(OpenText { length, ..open });
        Ok(())
    }

    fn open_text(&self, path: &[String]) -> Result<OpenText, String> {
        let (value, id) = self.find(path)?;
        if !matches!(value, Value::Object(ObjType::Text)) {
            return Err(format!("there is no text at {:?}, only texts are spliced", pointer(path)));
        }
        let length = self.transaction.length(&id);
        Ok(OpenText { path: path.to_vec(), id, length })
    }

    /// Puts a value in the place of another one, or under a new key.
    fn put(&mut self, place: &Place, node: &Node) -> Result<(), String> {
        let Place { object, prop, .. } = place;
        match node {
            Node::Scalar(value) => self.transaction.put(object, prop.clone(), value.clone()).map_err(text),
            nested => {
                let id = self.transaction.put_object(object, prop.clone(), nested.ty()).map_err(text)?;
                self.fill(&id, nested)
            }
        }
    }

    /// Inserts a value into a list.
    fn insert(&mut self, place: &Place, node: &Node) -> Result<(), String> {
        let Prop::Seq(index) = place.prop else { return Err("not an index".into()) };
        match node {
            Node::Scalar(value) => self.transaction.insert(&place.object, index, value.clone()).map_err(text),
            nested => {
                let id = self.transaction.insert_object(&place.object, index, nested.ty()).map_err(text)?;
                self.fill(&id, nested)
            }
        }
    }

    fn fill(&mut self, id: &ObjId, node: &Node) -> Result<(), String> {
        let object = || id.clone();
        match node {
            Node::Scalar(_) => Ok(()),
            Node::Text(content) => self.transaction.splice_text(id, 0, 0, content).map_err(text),
            Node::List(items) => items.iter().enumerate().try_for_each(|(index, item)| {
                self.insert(&Place { object: object(), ty: ObjType::List, prop: index.into() }, item)
            }),
            Node::Map(items) => items.iter().try_for_each(|(key, item)| {
                self.put(&Place { object: object(), ty: ObjType::Map, prop: key.clone().into() }, item)
            }),
        }
    }

    /// Where a value stands that is there.
    fn existing(&self, path: &[String]) -> Result<Place, String> {
        self.find(path)?;
        self.place(path, false)?.ok_or_else(|| "the document itself cannot be taken away".into())
    }

    /// Where a value stands or would stand; `None` for the whole document.
    fn place(&self, path: &[String], new: bool) -> Result<Option<Place>, String> {
        let Some((last, parents)) = path.split_last() else { return Ok(None) };
        let (value, object) = self.find(parents)?;
        let nothing = || format!("there is no object or array at {:?}", pointer(parents));
        let prop = match value {
            Value::Object(ObjType::Map | ObjType::Table) => Prop::from(last.clone()),
            Value::Object(ObjType::List) => self.index(&object, last, new)?.into(),
            _ => return Err(nothing()),
        };
        let Value::Object(ty) = value else { return Err(nothing()) };
        if path.len() >= MAX_DEPTH {
            return Err(format!("it would be nested deeper than {MAX_DEPTH} levels"));
        }
        Ok(Some(Place { object, ty, prop }))
    }

    /// An index of a list, or the one after the last if something is to be inserted.
    fn index(&self, list: &ObjId, token: &str, new: bool) -> Result<usize, String> {
        let length = self.transaction.length(list);
        if token == "-" && new {
            return Ok(length);
        }
        let is_plain = token == "0" || !token.starts_with(['0', '+', '-']);
        let index = token.parse::<usize>().ok().filter(|_| is_plain);
        let end = if new { length + 1 } else { length };
        let index = index.filter(|index| *index < end);
        index.ok_or_else(|| format!("{token:?} is no index of an array of {length}"))
    }

    fn find(&self, path: &[String]) -> Result<(Value<'static>, ObjId), String> {
        let mut at = (Value::Object(ObjType::Map), ROOT);
        for (depth, token) in path.iter().enumerate() {
            let prop = match at.0 {
                Value::Object(ObjType::Map | ObjType::Table) => Prop::from(token.clone()),
                Value::Object(ObjType::List) => self.index(&at.1, token, false)?.into(),
                _ => return Err(format!("there is no object or array at {:?}", pointer(&path[..depth]))),
            };
            let found = self.transaction.get(&at.1, prop).map_err(text)?;
            let (value, id) =
                found.ok_or_else(|| format!("there is nothing at {:?}", pointer(&path[..=depth])))?;
            at = (value.into_owned(), id);
        }
        Ok(at)
    }

    fn read(&self, path: &[String]) -> Result<Node, String> {
        let (value, id) = self.find(path)?;
        self.node(value, &id, path.len())
    }

    fn node(&self, value: Value<'_>, id: &ObjId, depth: usize) -> Result<Node, String> {
        if depth > MAX_DEPTH {
            return Err(DocumentError::TooDeep.to_string());
        }
        Ok(match value {
            Value::Scalar(value) => Node::Scalar(value.into_owned()),
            Value::Object(ObjType::Text) => Node::Text(self.transaction.text(id).map_err(text)?),
            Value::Object(ObjType::List) => {
                let read = |index| {
                    let (value, id) = self.transaction.get(id, index).map_err(text)?.ok_or("it is gone")?;
                    self.node(value.into_owned(), &id, depth + 1)
                };
                Node::List((0..self.transaction.length(id)).map(read).collect::<Result<_, String>>()?)
            }
            Value::Object(ObjType::Map | ObjType::Table) => {
                let read = |key: String| {
                    let (value, id) =
                        self.transaction.get(id, key.as_str()).map_err(text)?.ok_or("it is gone")?;
                    Ok((key, self.node(value.into_owned(), &id, depth + 1)?))
                };
                Node::Map(self.transaction.keys(id).map(read).collect::<Result<_, String>>()?)
            }
        })
    }
}

impl Node {
    fn ty(&self) -> ObjType {
        match self {
            Self::Map(_) => ObjType::Map,
            Self::List(_) => ObjType::List,
            Self::Text(_) | Self::Scalar(_) => ObjType::Text,
        }
    }
}

/// Whether two values are equal as JSON: numbers by what they are, whatever holds them.
fn same(one: &Node, other: &Node) -> bool {
    match (one, other) {
        (Node::List(one), Node::List(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| same(one, other))
        }
        (Node::Map(one), Node::Map(other)) => {
            one.len() == other.len()
                && one.iter().all(|(key, one)| other.get(key).is_some_and(|other| same(one, other)))
        }
        (Node::List(_) | Node::Map(_), _) | (_, Node::List(_) | Node::Map(_)) => false,
        (one, other) => shown(one) == shown(other),
    }
}

fn shown(node: &Node) -> String {
    let mut out = String::new();
    match node {
        Node::Text(text) => super::json::string(text, &mut out),
        Node::Scalar(ScalarValue::F64(number)) if number.fract() == 0.0 && number.abs() < 2f64.powi(53) => {
            out = (*number as i64).to_string();
        }
        Node::Scalar(value) => super::json::scalar(&value.clone().into(), &mut out),
        Node::List(_) | Node::Map(_) => {}
    }
    out
}

fn pointer(path: &[String]) -> String {
    path.iter().map(|token| format!("/{}", token.replace('~', "~0").replace('/', "~1"))).collect()
}

fn text(error: impl ToString) -> String {
    error.to_string()
}

impl From<JsonError> for PatchError {
    fn from(error: JsonError) -> Self {
        Self::Malformed(error.to_string())
    }
}
