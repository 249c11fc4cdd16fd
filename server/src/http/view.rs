//! Records and fields as JSON.
//!
//! A register's JSON goes out as its text stands in the store, so that numbers of any size and the order of keys come
//! back as they were sent. Of two live types of one name a read shows the first in precedence; the full view shows
//! the rest under `others`.

use std::collections::BTreeMap;

use godwit_core::ids::{RecordId, ReplicaId};
use godwit_core::read::{self, DocumentValue, FieldView, ReadAt, ReadLimits, Value};
use godwit_core::time::Hlc;
use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::contract::schemas;
use super::problem::Problem;
use super::request::Query;
use super::time::rfc3339;
use super::zsets;
use crate::node::documents::OpenDocuments;
use crate::node::{Committed, NodeHandle, ReadFailure, StoreView};

/// The most members of a set or zset that a read shows.
pub(super) const MEMBERS_SHOWN_MAX: usize = 1_000;

/// The query parameters that choose a shape.
pub(super) const PARAMETERS: [&str; 2] = ["numbers", "view"];

/// How values are shown.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    /// With types, siblings and who wrote them.
    pub(super) full: bool,
    /// Counters and uniques as strings, for languages whose numbers are floats.
    number_strings: bool,
}

impl Shape {
    pub(super) fn parse(query: &Query) -> Result<Self, Problem> {
        Self::of(query.has("view", "full")?, query)
    }

    pub(super) fn of(full: bool, query: &Query) -> Result<Self, Problem> {
        Ok(Self { full, number_strings: query.has("numbers", "string")? })
    }
}

/// A record.
#[derive(Serialize, ToSchema)]
#[schema(as = Record)]
pub(super) struct RecordBody {
    #[schema(value_type = schemas::KeyName)]
    key: String,
    #[schema(value_type = schemas::AnyFields)]
    fields: BTreeMap<String, FieldBody>,
    /// Sets and zsets of which not all members are shown.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<schemas::FieldName>)]
    truncated: Vec<String>,
    /// When it expires; in the full view.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<schemas::Time>)]
    expires: Option<String>,
    /// Of the commit that this answers, if it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    partition: Option<u16>,
    #[schema(value_type = schemas::CommitOrNone)]
    #[serde(skip_serializing_if = "Option::is_none")]
    commit: Option<Option<CommitBody>>,
}

#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum OneFieldBody {
    Value {
        field: String,
        value: ValueBody,
        #[serde(skip_serializing_if = "is_false")]
        truncated: bool,
        /// Of a set that was cut: after which member to go on; of a zset: where in a page by rank.
        #[serde(skip_serializing_if = "Option::is_none")]
        next: Option<String>,
    },
    Full(FullBody),
}

#[derive(Serialize)]
#[serde(untagged)]
enum FieldBody {
    Value(ValueBody),
    Full(FullBody),
}

#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum ValueBody {
    Json(Box<RawValue>),
    Integer(i64),
    Text(String),
    Flag(bool),
    Members(Vec<String>),
    Scored(Vec<(String, f64)>),
}

#[derive(Serialize)]
pub(super) struct FullBody {
    /// The name, where no record around it says it.
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<String>,
    r#type: &'static str,
    value: ValueBody,
    #[serde(skip_serializing_if = "Option::is_none")]
    siblings: Option<Vec<Box<RawValue>>>,
    /// Of a document: the changes that no other one builds on.
    #[serde(skip_serializing_if = "Option::is_none")]
    heads: Option<Vec<String>>,
    #[serde(skip_serializing_if = "is_false")]
    truncated: bool,
    updated: UpdatedBody,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    others: Vec<FullBody>,
}

/// Which commit made something.
#[derive(Serialize, ToSchema)]
#[schema(as = Updated)]
pub(super) struct UpdatedBody {
    #[schema(value_type = schemas::Replica)]
    replica: String,
    /// Null if it is not known which one the replica was in.
    #[schema(required)]
    region: Option<String>,
    #[schema(value_type = schemas::Time)]
    time: String,
}

impl UpdatedBody {
    /// Of a commit, with the regions that are known.
    pub(super) fn of(replica: ReplicaId, at: Hlc, regions: &BTreeMap<ReplicaId, String>) -> Self {
        let region = regions.get(&replica).cloned();
        Self { replica: replica.to_string(), region, time: rfc3339(at.millis()) }
    }
}

/// The answer to a write.
#[derive(Serialize, Clone, ToSchema)]
#[schema(as = Committed)]
pub(super) struct CommittedBody {
    partition: u16,
    #[schema(value_type = schemas::CommitOrNone)]
    commit: Option<CommitBody>,
}

/// A commit: its dot, and when it was made.
#[derive(Serialize, Clone, ToSchema)]
#[schema(as = Commit)]
pub(super) struct CommitBody {
    #[schema(value_type = schemas::Replica)]
    replica: String,
    #[schema(minimum = 1)]
    counter: u64,
    #[schema(value_type = schemas::Time)]
    time: String,
}

impl From<Committed> for CommittedBody {
    fn from(committed: Committed) -> Self {
        let commit = committed.commit.map(|(dot, hlc)| CommitBody {
            replica: dot.replica.to_string(),
            counter: dot.counter,
            time: rfc3339(hlc.millis()),
        });
        Self { partition: committed.partition.0, commit }
    }
}

/// What is read of a record.
#[derive(Debug)]
pub(super) struct RecordView {
    pub(super) fields: Vec<FieldView>,
    /// When it expires, in milliseconds since 1970.
    pub(super) expires_ms: Option<u64>,
}

impl RecordView {
    /// Of fields as they were read, in a store and a shape.
    pub(super) fn of(
        mut fields: Vec<FieldView>,
        shape: Shape,
        store: &StoreView<'_>,
        at: ReadAt,
        record: &RecordId,
        (documents, limits): (&OpenDocuments, ReadLimits),
    ) -> Result<Self, ReadFailure> {
        documents.show(store, at, record, &mut fields, limits.bytes_max)?;
        let is_told = shape.full && !fields.is_empty();
        let expires_ms = if is_told { read::expires(store, at, record)? } else { None };
        Ok(Self { fields, expires_ms })
    }
}

/// Shows fields, whose regions it looks up if they are to be shown.
pub(super) struct Viewer {
    shape: Shape,
    regions: BTreeMap<ReplicaId, String>,
}

impl Viewer {
    pub(super) async fn new(
        node: &NodeHandle,
        shape: Shape,
        views: impl IntoIterator<Item = &FieldView>,
    ) -> Self {
        let regions = if shape.full {
            let mut replicas: Vec<ReplicaId> = views.into_iter().map(|view| view.updated.replica).collect();
            replicas.sort_unstable();
            replicas.dedup();
            node.regions(&replicas).await
        } else {
            BTreeMap::new()
        };
        Self { shape, regions }
    }

    /// A record, its fields sorted by name, then by precedence.
    pub(super) fn record(
        &self,
        key: &str,
        view: RecordView,
        committed: Option<Committed>,
    ) -> Result<RecordBody, Problem> {
        let mut by_name: BTreeMap<String, Vec<FieldView>> = BTreeMap::new();
        for view in view.fields {
            by_name.entry(view.field.as_str().to_owned()).or_default().push(view);
        }
        let mut truncated = Vec::new();
        let mut fields = BTreeMap::new();
        for (name, types) in by_name {
            if types.first().is_some_and(is_truncated) {
                truncated.push(name.clone());
            }
            let body = match self.shape.full {
                true => self.full_types(types)?.map(FieldBody::Full),
                false => types
                    .into_iter()
                    .next()
                    .map(|view| self.value(view.value))
                    .transpose()?
                    .map(FieldBody::Value),
            };
            fields.extend(body.map(|body| (name, body)));
        }
        let committed = committed.map(CommittedBody::from);
        Ok(RecordBody {
            key: key.to_owned(),
            fields,
            truncated,
            expires: view.expires_ms.map(rfc3339),
            partition: committed.as_ref().map(|committed| committed.partition),
            commit: committed.map(|committed| committed.commit),
        })
    }

    /// A field by its live types, in the order of precedence; `None` if there are none.
    pub(super) fn field(&self, name: &str, types: Vec<FieldView>) -> Result<Option<OneFieldBody>, Problem> {
        let field = name.to_owned();
        if self.shape.full {
            let body = self.full_types(types)?;
            return Ok(body.map(|body| OneFieldBody::Full(FullBody { field: Some(field), ..body })));
        }
        let Some(view) = types.into_iter().next() else { return Ok(None) };
        let next = match &view.value {
            Value::Set { members, truncated: true } => members.last().cloned(),
            Value::Zset { members, truncated: true } => {
                members.last().map(|(member, score)| zsets::mark(*score, member))
            }
            _ => None,
        };
        let truncated = is_truncated(&view);
        Ok(Some(OneFieldBody::Value { field, value: self.value(view.value)?, truncated, next }))
    }

    fn full_types(&self, types: Vec<FieldView>) -> Result<Option<FullBody>, Problem> {
        let mut bodies =
            types.into_iter().map(|view| self.full(view)).collect::<Result<Vec<_>, _>>()?.into_iter();
        let Some(mut first) = bodies.next() else { return Ok(None) };
        first.others = bodies.collect();
        Ok(Some(first))
    }

    fn full(&self, mut view: FieldView) -> Result<FullBody, Problem> {
        let truncated = is_truncated(&view);
        let siblings = match &mut view.value {
            Value::Register { siblings, .. } => {
                Some(std::mem::take(siblings).into_iter().map(raw).collect::<Result<Vec<_>, _>>()?)
            }
            _ => None,
        };
        let heads = match &view.value {
            Value::Document(DocumentValue::Shown { heads, .. }) => {
                Some(heads.iter().map(ToString::to_string).collect())
            }
            _ => None,
        };
        let updated = UpdatedBody::of(view.updated.replica, view.updated_at, &self.regions);
        Ok(FullBody {
            field: None,
            r#type: view.ty.name().unwrap_or("unknown"),
            value: self.value(view.value)?,
            siblings,
            heads,
            truncated,
            updated,
            others: Vec::new(),
        })
    }

    pub(super) fn value(&self, value: Value) -> Result<ValueBody, Problem> {
        Ok(match value {
            Value::Register { value, .. } => ValueBody::Json(raw(value)?),
            Value::Counter(sum) if self.shape.number_strings => ValueBody::Text(sum.to_string()),
            Value::Counter(sum) => ValueBody::Integer(sum),
            Value::Flag => ValueBody::Flag(true),
            Value::Set { members, .. } => ValueBody::Members(members),
            Value::Zset { members, .. } => ValueBody::Scored(
                members.into_iter().map(|(member, score)| (member, score.value())).collect(),
            ),
            Value::Unique(count) if self.shape.number_strings => ValueBody::Text(count.to_string()),
            Value::Document(DocumentValue::Shown { json, .. }) => ValueBody::Json(raw(json)?),
            Value::Document(DocumentValue::Unopened) => {
                return Err(Problem::unreadable(&"a document was not shown"));
            }
            Value::Unique(count) => ValueBody::Integer(i64::try_from(count).unwrap_or(i64::MAX)),
        })
    }
}

pub(super) fn is_truncated(view: &FieldView) -> bool {
    matches!(view.value, Value::Set { truncated: true, .. } | Value::Zset { truncated: true, .. })
}

fn is_false(value: &bool) -> bool {
    !value
}

/// The text of a register was checked by the node that took it; a node that sent other bytes is caught here.
fn raw(text: String) -> Result<Box<RawValue>, Problem> {
    RawValue::from_string(text).map_err(|error| Problem::unreadable(&error))
}
