//! What [`super::parse`] reads, as a schema: made of the same table, so that neither has an operation or a member that the other
//! lacks.

use serde_json::{Map, Value, json};

use super::{FORMS, Form};
use crate::http::contract::schemas::reference;
use crate::http::time;
use godwit_core::types::expiry::EXPIRE_MS_MAX;
use godwit_core::types::unique::{RANK_MAX, REGISTERS};

/// One operation, of any kind.
pub(in crate::http) fn schema() -> Value {
    json!({"oneOf": FORMS.iter().flat_map(operation).collect::<Vec<_>>()})
}

/// The ways to write one kind: with one member or another where it takes either.
fn operation(form: &Form) -> Vec<Value> {
    let ways: Vec<Vec<&str>> = match form.either {
        true => form.takes.iter().map(|name| vec![*name]).collect(),
        false => vec![form.takes.to_vec()],
    };
    let way = |takes: Vec<&str>| {
        let mut properties = Map::from_iter([("op".to_owned(), json!({"const": form.name}))]);
        if form.of_field {
            properties.insert("field".to_owned(), reference("FieldName"));
        }
        properties.extend(takes.iter().map(|name| ((*name).to_owned(), member(form.name, name))));
        let required: Vec<&String> = properties.keys().collect();
        json!({"type": "object", "description": form.about, "required": required, "properties": properties})
    };
    ways.into_iter().map(way).collect()
}

/// What an operation's member holds.
fn member(op: &str, name: &str) -> Value {
    match (op, name) {
        (_, "value") => reference("RegisterJson"),
        ("incr", "by") => {
            json!({"type": "integer", "format": "int64", "minimum": i64::MIN, "maximum": i64::MAX})
        }
        (_, "by") => json!({"type": "number", "format": "double"}),
        (_, "member") => reference("Member"),
        (_, "members") => json!({"type": "array", "items": reference("Member"), "minItems": 1}),
        (_, "scores") => json!({
            "type": "object", "propertyNames": reference("Member"), "minProperties": 1,
            "additionalProperties": {"type": "number", "format": "double"},
        }),
        (_, "in_ms") => json!({"type": "integer", "minimum": 1, "maximum": EXPIRE_MS_MAX}),
        (_, "at") => json!({"type": "string", "format": "date-time", "pattern": time::GIVEN_PATTERN}),
        (_, "ranks") => json!({"type": "array", "items": reference("RegisterRank"), "minItems": 1}),
        (_, "patch") => reference("JsonPatch"),
        (_, "changes") => json!({
            "description": "Automerge changes.", "type": "array", "minItems": 1,
            "items": {"type": "string", "contentEncoding": "base64", "contentMediaType": "application/octet-stream"},
        }),
        _ => json!(false),
    }
}

/// A register of a unique and its rank.
pub(in crate::http) fn rank_schema() -> Value {
    let number = |min: u64, max: u64| json!({"type": "integer", "minimum": min, "maximum": max});
    json!({
        "type": "array", "prefixItems": [number(0, u64::from(REGISTERS) - 1), number(1, u64::from(RANK_MAX))],
        "items": false, "minItems": 2,
    })
}

/// A patch of a document, as `edit` takes it and a diff tells it.
pub(in crate::http) fn patch_schema() -> Value {
    let pointer = json!({"description": "A JSON Pointer (RFC 6901).", "type": "string", "pattern": "^(/([^~/]|~[01])*)*$"});
    let count = json!({"description": "In Unicode scalar values.", "type": "integer", "minimum": 0});
    let step = |names: &[&str], takes: Value, required: &[&str]| {
        let mut properties = json!({"op": {"enum": names}, "path": pointer});
        for (name, schema) in takes.as_object().into_iter().flatten() {
            properties[name] = schema.clone();
        }
        let required = [&["op", "path"], required].concat();
        json!({"type": "object", "required": required, "properties": properties})
    };
    let steps = [
        step(&["add", "replace", "test"], json!({"value": reference("RegisterJson")}), &["value"]),
        step(&["remove"], json!({}), &[]),
        step(&["move", "copy"], json!({"from": pointer}), &["from"]),
        step(&["splice"], json!({"index": count, "delete": count, "insert": {"type": "string"}}), &["index"]),
    ];
    json!({
        "description": "JSON Patch (RFC 6902), and `splice` for texts.",
        "type": "array", "items": {"oneOf": steps},
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::LimitsSection;
    use crate::http::contract::schemas;

    /// Values of members, good and bad ones.
    fn values(name: &str) -> Vec<Value> {
        match name {
            "value" => vec![json!(null), json!({"a": [1]})],
            "by" => vec![json!(1), json!(-2.5), json!("1")],
            "member" => vec![json!("m"), json!(""), json!(7)],
            "members" => vec![json!(["m", "n"]), json!([]), json!("m"), json!(["\u{1}"])],
            "scores" => vec![json!({"m": 1.5}), json!({}), json!({"m": "1"}), json!({"": 1})],
            "in_ms" => vec![json!(1), json!(0), json!("1"), json!(EXPIRE_MS_MAX + 1)],
            "at" => vec![
                json!("2031-01-01T00:00:00Z"),
                json!("2031-01-01T00:00:00.000Z"),
                json!("soon"),
                json!(1),
            ],
            "ranks" => {
                vec![json!([[0, 1]]), json!([[16_384, 1]]), json!([[0, 0]]), json!([[0, 1, 2]]), json!([])]
            }
            "patch" => vec![
                json!([{"op": "add", "path": "/a", "value": 1}]),
                json!([{"op": "add", "path": "a", "value": 1}]),
                json!({}),
            ],
            "changes" => vec![json!([]), json!("x"), json!([1])],
            "field" => vec![json!("f"), json!("")],
            other => panic!("{other} has no values"),
        }
    }

    fn validator(name: &str) -> jsonschema::Validator {
        let components: Map<String, Value> =
            schemas::by_hand().into_iter().map(|(name, schema)| (name.to_owned(), schema)).collect();
        let mut whole = json!({"components": {"schemas": components}, "allOf": [schemas::reference(name)]});
        crate::http::contract::close(&mut whole);
        jsonschema::validator_for(&whole).unwrap()
    }

    /// Every operation with a field or without, and with each one and two of all members that there are.
    #[test]
    fn what_is_read_is_what_the_contract_takes() {
        let validator = validator("Operation");
        let all = ["value", "by", "member", "members", "scores", "in_ms", "at", "ranks", "patch", "changes"];
        let choices: Vec<(&str, Value)> =
            all.iter().flat_map(|name| values(name).into_iter().map(|value| (*name, value))).collect();
        let mut members: Vec<Vec<&(&str, Value)>> = vec![vec![]];
        members.extend(choices.iter().map(|one| vec![one]));
        for (at, one) in choices.iter().enumerate() {
            members
                .extend(choices[at..].iter().filter(|other| other.0 != one.0).map(|other| vec![one, other]));
        }
        let mut fields = vec![None];
        fields.extend(values("field").into_iter().map(Some));
        let (mut accepted, mut refused) = (0, 0);
        for form in FORMS.iter().map(|form| form.name).chain(["pop"]) {
            for field in &fields {
                for members in &members {
                    let mut op = json!({"op": form});
                    field.iter().for_each(|field| op["field"] = field.clone());
                    members.iter().for_each(|(name, value)| op[*name] = value.clone());
                    let read =
                        crate::http::ops::parse(&json!({"ops": [op]}).to_string(), &LimitsSection::default());
                    assert_eq!(read.is_ok(), validator.is_valid(&op), "{op}: {read:?}");
                    *if read.is_ok() { &mut accepted } else { &mut refused } += 1;
                }
            }
        }
        // One good way at least of each but `change`, whose changes a test of the API sends.
        assert!(accepted >= FORMS.len() && refused > 10_000, "{accepted} {refused}");
    }

    #[test]
    fn steps_of_patches_are_what_the_contract_takes() {
        let validator = validator("JsonPatch");
        let takes = [
            ("value", json!(null)),
            ("from", json!("/b")),
            ("index", json!(0)),
            ("delete", json!(1)),
            ("insert", json!("é")),
        ];
        for name in ["add", "remove", "replace", "move", "copy", "test", "splice", "pop"] {
            for path in ["", "/a~1b/0", "a", "/~2"] {
                for given in 0..1_u32 << takes.len() {
                    let mut step = json!({"op": name, "path": path});
                    let given = takes.iter().enumerate().filter(|(at, _)| given >> at & 1 == 1);
                    given.for_each(|(_, (name, value))| step[*name] = value.clone());
                    let patch = json!([step]);
                    let json = godwit_core::json::Json::parse(&patch.to_string()).unwrap();
                    let read = godwit_core::document::Patch::parse(&json);
                    assert_eq!(read.is_ok(), validator.is_valid(&patch), "{patch}: {read:?}");
                }
            }
        }
    }
}
