//! Schemas that no derived one says exactly: what depends on a type, what is read by hand, and JSON that clients make.

use serde_json::{Map, Value, json};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use crate::http::problem::{self, Kind};
use crate::http::settings::RATE_MAX;
use crate::http::time::PATTERN as TIME_PATTERN;
use crate::http::view::{self, MEMBERS_SHOWN_MAX};
use crate::http::{batches, changes, documents, fields, ops, sets, zsets};

/// The namespace's form, as `godwit_core::ids` checks it.
const NAMESPACE_PATTERN: &str = "^[a-z0-9][a-z0-9_-]{0,62}$";
/// Names without control characters.
const NAME_PATTERN: &str = "^[^\\u0000-\\u001f\\u007f-\\u009f]+$";

/// Names of schemas that are written here, for handlers and derived schemas to point at.
macro_rules! by_hand {
    ($($(#[$doc:meta])* $name:ident = $schema:expr;)*) => {
        $(
        $(#[$doc])*
        #[allow(dead_code, reason = "some are named by other schemas alone")]
        pub(in crate::http) enum $name {}

        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                // `by_hand` has what stands in its place.
                RefOr::T(Schema::default())
            }
        }

        impl ToSchema for $name {})*

        /// The schemas by name.
        pub(in crate::http) fn by_hand() -> Vec<(&'static str, Value)> {
            vec![$((stringify!($name), $schema)),*]
        }
    };
}

by_hand! {
    /// This document.
    OpenApiJson = json!({
        "description": "As https://spec.openapis.org/oas/3.1/schema/ has it.",
        "type": "object", "required": ["openapi", "info", "paths"],
        "properties": {"openapi": {"const": "3.1.0"}}, "additionalProperties": true,
    });
    /// Any JSON, as a client set it.
    RegisterJson = json!({
        "description": "A register's JSON: any, up to 64 deep and `limits.value_bytes`. It comes back exactly as it was sent: numbers of any size, keys in their order. No key stands twice in an object.",
    });
    /// The JSON that a document is.
    DocumentJson = json!({
        "description": "A document's JSON: its root is an object. Counters are integers, times are strings, bytes are base64.",
        "type": "object",
    });
    /// A field's value, as reads show it without a view.
    FieldValue = json!({
        "description": "By the field's type: a register's or document's JSON, a counter's or unique's number (a string with `numbers=string`), true for a flag, the members of a set, `[member, score]` of a zset by rank.",
        "anyOf": [reference("RegisterJson"), reference("DocumentJson"), reference("Number"), {"const": true}, reference("Members"), reference("ScoredMembers")],
    });
    /// The number of a counter or unique.
    Number = json!({
        "anyOf": [
            {"type": "integer", "format": "int64"},
            {"description": "With `numbers=string`.", "type": "string", "pattern": "^-?[0-9]+$"},
        ],
    });
    /// Members of a set.
    Members = json!({"type": "array", "items": reference("Member"), "maxItems": MEMBERS_SHOWN_MAX});
    /// Members of a zset.
    ScoredMembers = json!({"type": "array", "items": reference("ScoredMember"), "maxItems": MEMBERS_SHOWN_MAX});
    /// A member and its score.
    ScoredMember = json!({
        "type": "array", "prefixItems": [reference("Member"), {"type": "number", "format": "double"}],
        "items": false, "minItems": 2,
    });
    /// A member's name.
    Member = name(1_024, "A member.");
    /// A field's name.
    FieldName = name(256, "A field's name.");
    /// A record's key.
    KeyName = name(1_024, "A record's key. Keys with the same tag in braces are in one partition.");
    /// A field with its type, and what its value won against.
    FullField = {
        let types = [
            ("register", reference("RegisterJson"), Some(("siblings", json!({
                "description": "All values that were set concurrently; the first one is the value.",
                "type": "array", "items": reference("RegisterJson")})))),
            ("counter", reference("Number"), None),
            ("unique", reference("Number"), None),
            ("flag", json!({"const": true}), None),
            ("set", reference("Members"), Some(("truncated", truncated()))),
            ("zset", reference("ScoredMembers"), Some(("truncated", truncated()))),
            ("document", reference("DocumentJson"), Some(("heads", heads()))),
        ];
        let variant = |(ty, value, more): (&str, Value, Option<(&str, Value)>)| {
            let others = json!({"description": "Other live types of the name.", "type": "array", "items": reference("FullField"), "minItems": 1});
            let mut schema = json!({
                "type": "object", "required": ["type", "value", "updated"],
                "properties": {"field": reference("FieldName"), "type": {"const": ty}, "value": value, "updated": reference("Updated"), "others": others},
            });
            if let Some((name, more)) = more {
                schema["properties"][name] = more;
            }
            schema
        };
        json!({"oneOf": types.map(variant)})
    };
    /// A field's answer, in the form that was asked for.
    FieldAnswer = {
        let forms = ["Field", "FullField", "SetPage", "ZsetPage", "SetSize", "Ranks", "DocumentAt", "DocumentDiff", "DocumentChanges", "DocumentHistory"];
        json!({"anyOf": forms.map(reference)})
    };
    /// A field and its value.
    Field = json!({
        "type": "object", "required": ["field", "value"],
        "properties": {
            "field": reference("FieldName"), "value": reference("FieldValue"), "truncated": truncated(),
            "next": {"description": "Of a set or zset that was cut: the `after` of the page that goes on, of a zset by rank.", "type": "string"},
        },
    });
    /// The body of a `PATCH`.
    Operations = json!({
        "type": "object", "required": ["ops"], "properties": {"ops": reference("OperationList")},
    });
    /// Operations on one record.
    OperationList = json!({"type": "array", "items": reference("Operation"), "minItems": 1});
    /// An operation.
    Operation = ops::schema();
    /// The body of a batch.
    Batch = batches::schema();
    /// What became of one write of a batch.
    WriteResult = {
        let either = [("commit", json!({"anyOf": [reference("Commit"), {"type": "null"}]})), ("problem", reference("Problem"))];
        json!({"oneOf": either.map(|(name, schema)| json!({
            "type": "object", "required": ["key", "partition", name],
            "properties": {"key": reference("KeyName"), "partition": partition(), name: schema},
        }))})
    };
    /// A record's fields, by name.
    Fields = by_field("FieldValue");
    /// The same, in the full view.
    FullFields = by_field("FullField");
    /// The fields that changed.
    ChangedFields = json!({
        "description": "By name; null is a field that is gone.", "type": "object", "propertyNames": reference("FieldName"),
        "additionalProperties": {"anyOf": [reference("FieldValue"), {"type": "null"}]},
    });
    /// Settings, as a `PUT` takes them.
    Settings = settings(json!(false));
    /// Settings, as they are told.
    StoredSettings = settings(json!({"description": "A setting of a newer version.", "allOf": [reference("RegisterJson")]}));
    /// What a record's fields are shown as.
    AnyFields = json!({"anyOf": [reference("Fields"), reference("FullFields")]});
    /// A page of a set or zset by member.
    SetPage = json!({
        "type": "object", "required": ["field", "value"],
        "properties": {
            "field": reference("FieldName"), "value": {"anyOf": [reference("Members"), reference("ScoredMembers")]},
            "next": {"description": "The `after` of the next page, if there is one.", "allOf": [reference("Member")]},
        },
    });
    /// The commit of a write that was made, if it changed anything.
    CommitOrNone = json!({
        "description": "Null if there was nothing to change.", "anyOf": [reference("Commit"), {"type": "null"}],
    });
    /// What a `PATCH` answers.
    CommittedRecord = json!({"anyOf": [reference("Committed"), reference("Record")]});
    /// A record, if it is there.
    RecordOrNone = json!({"anyOf": [reference("Record"), {"type": "null"}]});
    /// Why a batch failed; it has more to say than other problems.
    BatchProblem = json!(false);
    /// What a batch answers.
    BatchAnswer = json!({"anyOf": [reference("WriteResults"), reference("Records")]});
    /// A register of a unique and its rank.
    RegisterRank = ops::rank_schema();
    /// The form of numbers.
    NumbersForm = json!({"enum": ["string"]});
    /// The view of a record.
    RecordView = json!({"enum": ["full"]});
    /// The view of a field.
    FieldView = json!({"enum": ["full", "size", "ranks", "history", "diff", "changes"]});
    /// What a page is ordered by.
    PageOrder = json!({"enum": ["rank"]});
    /// What a write answers with.
    Returned = json!({"enum": ["record"]});
    /// An Automerge file.
    AutomergeFile = json!({"description": "An Automerge file.", "contentMediaType": "application/automerge"});
    /// A feed.
    EventStream = json!({
        "description": "Server-sent events: `change` with a ChangeEvent, `reset` and `position` with `{}`. The id is where a consumer stands that has handled the event: `since`, or `Last-Event-ID`, of its next request, in any region.",
        "type": "string",
    });
    /// Base64.
    Base64 = json!({"type": "string", "contentEncoding": "base64"});
    /// A digest.
    Blake3 = json!({"description": "BLAKE3, hexadecimal.", "type": "string", "pattern": "^[0-9a-f]{64}$"});
    /// Bytes.
    Hexadecimal = json!({"type": "string", "pattern": "^([0-9a-f]{2})*$"});
    /// A namespace's name.
    NamespaceName = json!({"type": "string", "pattern": NAMESPACE_PATTERN});
    /// What a namespace is in.
    NamespaceState = json!({"enum": ["active", "deleting"]});
    /// What a link goes over.
    LinkClass = json!({"enum": ["dedicated", "public"]});
    /// What a repair does.
    RepairPhase = json!({"enum": ["rows", "comparing"]});
    /// Contexts by partition.
    Contexts = by_partition(reference("Context"));
    /// Digests by partition.
    PartitionDigests = by_partition(reference("Blake3"));
    /// A hash of a change.
    ChangeHash = json!({"type": "string", "pattern": "^[0-9a-f]{64}$"});
    /// A JSON Patch.
    JsonPatch = ops::patch_schema();
    /// A replica's id.
    Replica = json!({"description": "The id of a replica: one incarnation of a node.", "type": "string"});
    /// A moment.
    Time = json!({"type": "string", "format": "date-time", "pattern": TIME_PATTERN});
    /// What a node has applied.
    Context = json!({
        "description": "The last counter of each replica.", "type": "object",
        "additionalProperties": {"type": "integer", "minimum": 1},
    });
}

/// A schema that stands elsewhere in the contract.
pub(in crate::http) fn reference(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

/// Schemas that are derived, and that no handler names: others here point at them.
pub(super) fn derived() -> Map<String, Value> {
    let mut all = Vec::new();
    fn add<T: ToSchema>(all: &mut Vec<(String, RefOr<Schema>)>) {
        all.push((T::name().into_owned(), T::schema()));
        T::schemas(all);
    }
    add::<problem::Body>(&mut all);
    add::<view::RecordBody>(&mut all);
    add::<view::UpdatedBody>(&mut all);
    add::<view::CommittedBody>(&mut all);
    add::<view::CommitBody>(&mut all);
    add::<batches::WritesBody>(&mut all);
    add::<batches::ReadsBody>(&mut all);
    add::<changes::ChangeBody>(&mut all);
    add::<fields::RanksBody>(&mut all);
    add::<sets::SizeBody>(&mut all);
    add::<zsets::PageBody>(&mut all);
    add::<documents::ValueBody>(&mut all);
    add::<documents::DiffBody>(&mut all);
    add::<documents::ChangesBody>(&mut all);
    add::<documents::HistoryBody>(&mut all);
    let value = |schema| serde_json::to_value(schema).unwrap_or_default();
    all.into_iter().map(|(name, schema)| (name, value(schema))).collect()
}

/// Says of a derived schema that what may be left out is never null: what may be null is always there.
pub(super) fn never_null(schema: &mut Value) {
    let required = schema["required"].as_array().cloned().unwrap_or_default();
    for (name, property) in schema["properties"].as_object_mut().into_iter().flatten() {
        if required.contains(&name.as_str().into()) {
            continue;
        }
        let is_null = |ty: &Value| ty == "null" || ty["type"] == "null";
        if let Some(types) = property.get_mut("type").and_then(Value::as_array_mut) {
            types.retain(|ty| !is_null(ty));
            if let [one] = types.as_slice() {
                property["type"] = one.clone();
            }
        }
        let Some(either) = property.get_mut("oneOf").and_then(Value::as_array_mut) else { continue };
        either.retain(|schema| !is_null(schema));
        if let [Value::Object(one)] = either.as_slice() {
            let one = one.clone();
            let property = property.as_object_mut();
            property.into_iter().for_each(|property| {
                property.remove("oneOf");
                one.iter().for_each(|(name, value)| {
                    property.entry(name).or_insert(value.clone());
                });
            });
        }
    }
}

/// Says of derived schemas what only their values tell: the kinds of problems, and a batch's.
pub(super) fn complete(components: &mut Map<String, Value>) {
    let Some(problem) = components.get_mut("Problem") else { return };
    problem["properties"]["type"]["enum"] = Kind::ALL.map(Kind::page).to_vec().into();
    problem["properties"]["status"]["enum"] = {
        let mut all: Vec<u16> = Kind::ALL.map(|kind| kind.status().as_u16()).to_vec();
        all.dedup();
        all.into()
    };
    let mut of_batch = problem.clone();
    let outcomes = components.get("WriteResults").cloned().unwrap_or_default();
    for (name, schema) in outcomes["properties"].as_object().into_iter().flatten() {
        of_batch["properties"][name] = schema.clone();
        if let Some(required) = of_batch["required"].as_array_mut() {
            required.push(name.as_str().into());
        }
    }
    of_batch["description"] = "Why a batch failed, and what became of each write.".into();
    components.insert("BatchProblem".to_owned(), of_batch);
}

/// What a name in a path is.
pub(super) fn path_parameter(name: &str) -> Value {
    let (schema, description) = match name {
        "ns" => (reference("NamespaceName"), "The namespace."),
        "key" => {
            (reference("KeyName"), "The record's key, percent-encoded as one segment; not `.` nor `..`.")
        }
        "field" => (reference("FieldName"), "The field, percent-encoded as one segment; not `.` nor `..`."),
        "member" => (reference("Member"), "The member, percent-encoded as one segment."),
        _ => (json!({"enum": Kind::ALL.map(Kind::slug)}), "The end of the problem's `type`."),
    };
    json!({"name": name, "in": "path", "required": true, "schema": schema, "description": description})
}

/// What operations are grouped by.
pub(super) fn tags() -> Value {
    json!([
        {"name": "records", "description": "Records and their fields."},
        {"name": "namespaces", "description": "Settings and quotas."},
        {"name": "changes", "description": "What changes, and what is visible."},
        {"name": "node", "description": "The node, and what it knows of the cluster."},
    ])
}

/// The number of a partition.
pub(in crate::http) fn partition() -> Value {
    json!({"type": "integer", "minimum": 0, "maximum": u16::MAX})
}

fn name(bytes_max: usize, description: &str) -> Value {
    json!({"type": "string", "description": description, "minLength": 1, "maxLength": bytes_max, "pattern": NAME_PATTERN})
}

fn truncated() -> Value {
    json!({"description": format!("There are more than the {MEMBERS_SHOWN_MAX} shown."), "const": true})
}

fn heads() -> Value {
    json!({"description": "The changes that no other one builds on.", "type": "array", "items": reference("ChangeHash")})
}

fn by_field(of: &str) -> Value {
    json!({"type": "object", "propertyNames": reference("FieldName"), "additionalProperties": reference(of)})
}

fn by_partition(of: Value) -> Value {
    json!({"type": "object", "propertyNames": {"pattern": "^[0-9]{1,5}$"}, "additionalProperties": of})
}

fn settings(others: Value) -> Value {
    let bound = |what: &str| json!({"description": format!("The most {what} at each node; no limit without."), "type": ["integer", "null"], "minimum": 0});
    json!({
        "type": "object", "additionalProperties": others,
        "properties": {
            "max_keys": bound("records"), "max_bytes": bound("bytes of rows"),
            "requests_per_second": {
                "description": "Requests a second at each node; no limit without.",
                "type": ["integer", "null"], "minimum": 1, "maximum": RATE_MAX,
            },
        },
    })
}
