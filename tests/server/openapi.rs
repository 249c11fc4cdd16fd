//! `/openapi.json` describes the API exactly: it is a well-formed contract, closed but for the JSON that clients make, with the
//! parameters and methods that the node takes. That answers are as it says, every test of this directory checks (`support/contract.rs`).

mod support;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use support::contract::{Asked, Contract};
use support::{Answer, Server, lone_config};
use tempfile::TempDir;

async fn lone() -> (TempDir, Server, Contract) {
    let dir = TempDir::new().unwrap();
    let server = Server::start(&lone_config(dir.path(), "")).await;
    let contract = Contract::of(server.get("/openapi.json").await.json());
    (dir, server, contract)
}

/// The operations: path, method, operation.
fn operations(contract: &Contract) -> Vec<(String, String, &Value)> {
    let paths = contract.document["paths"].as_object().unwrap();
    let of = |(path, item): (&String, &'_ Value)| {
        let item = item.as_object().unwrap().clone();
        item.into_iter().map(|(method, _)| (path.clone(), method)).collect::<Vec<_>>()
    };
    let named = paths.iter().flat_map(of);
    named
        .map(|(path, method)| {
            let at = &contract.document["paths"][&path][&method];
            (path, method, at)
        })
        .collect()
}

/// An address of a path: what is in its places does not matter.
fn address(path: &str) -> String {
    let names =
        [("{ns}", "app"), ("{key}", "k"), ("{field}", "f"), ("{member}", "m"), ("{slug}", "not-found")];
    names.iter().fold(path.to_owned(), |path, (place, name)| path.replace(place, name))
}

fn walk<'v>(value: &'v Value, place: &str, see: &mut impl FnMut(&str, &'v Value)) {
    see(place, value);
    match value {
        Value::Object(members) => {
            members.iter().for_each(|(name, value)| walk(value, &format!("{place}/{name}"), see));
        }
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(index, value)| walk(value, &format!("{place}/{index}"), see));
        }
        _ => {}
    }
}

#[tokio::test]
async fn it_is_a_closed_contract() {
    let (_dir, server, contract) = lone().await;
    let document = &contract.document;
    assert_eq!(document["openapi"], "3.1.0");
    let mut ids = BTreeSet::new();
    for (path, method, operation) in operations(&contract) {
        let name = format!("{method} {path}");
        assert!(ids.insert(operation["operationId"].as_str().unwrap()), "{name}");
        assert!(operation["summary"].as_str().is_some_and(|summary| summary.ends_with('.')), "{name}");
        assert!(
            document["tags"].as_array().unwrap().iter().any(|tag| tag["name"] == operation["tags"][0]),
            "{name}"
        );
        let parameters = operation["parameters"].as_array().into_iter().flatten();
        let named: Vec<_> = parameters
            .map(|parameter| (&parameter["in"], &parameter["name"]))
            .map(|of| format!("{of:?}"))
            .collect();
        assert_eq!(named.iter().collect::<BTreeSet<_>>().len(), named.len(), "{name}: {named:?}");
        for (status, response) in operation["responses"].as_object().unwrap() {
            assert!(!response["description"].as_str().unwrap().is_empty(), "{name}: {status}");
            if status.starts_with(['4', '5']) {
                let kinds = format!("{}", response["content"]["application/problem+json"]["schema"]);
                assert!(kinds.contains("/problems/"), "{name}: {status} has no kind of problem");
            }
        }
    }

    // Whatever a reference names is there; every schema is one, and none is free but those of clients' JSON.
    let mut used = BTreeSet::new();
    walk(document, "", &mut |place, value| {
        if let Some(at) = value.get("$ref").and_then(Value::as_str) {
            assert!(document.pointer(at.trim_start_matches('#')).is_some(), "{place}: {at}");
            used.insert(at.trim_start_matches("#/components/schemas/"));
        }
    });
    let components = document["components"]["schemas"].as_object().unwrap();
    for (name, schema) in components {
        assert!(jsonschema::meta::is_valid(schema), "{name}");
        // Events have no place in OpenAPI 3.1 that could name their schema.
        assert!(used.contains(name.as_str()) || name == "ChangeEvent", "{name} is used nowhere");
        if ["RegisterJson", "DocumentJson", "OpenApiJson", "AutomergeFile"].contains(&name.as_str()) {
            continue;
        }
        walk(schema, name, &mut |place, value| {
            let Some(members) = value.as_object() else { return };
            let is_schema = !place.ends_with("/properties");
            if is_schema && members.get("type").is_some_and(|ty| ty == "object") {
                assert!(members.contains_key("additionalProperties"), "{place} is open");
            }
            if is_schema && members.get("type").is_some_and(|ty| ty == "array") {
                assert!(members.contains_key("items"), "{place} has any items");
            }
            let says = ["type", "enum", "const", "$ref", "anyOf", "oneOf", "allOf", "pattern"];
            assert!(
                !is_schema || says.iter().any(|says| members.contains_key(*says)),
                "{place} says nothing"
            );
            assert_ne!(members.get("additionalProperties"), Some(&true.into()), "{place} is open");
        });
    }
    // As other answers.
    let again = server.get("/openapi.json").await;
    let tag = again.headers["etag"].to_str().unwrap();
    let known = Answer::of(server.request("GET", "/openapi.json").header("if-none-match", tag)).await;
    assert_eq!((known.status, known.body.as_str()), (304, ""));
}

/// The node says what it takes when it refuses a parameter, and which methods when it refuses one.
#[tokio::test]
async fn parameters_and_methods_are_those_that_are_taken() {
    let (_dir, server, contract) = lone().await;
    let mut methods: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (path, method, operation) in operations(&contract) {
        methods.entry(path.clone()).or_default().insert(method.to_uppercase());
        let parameters = operation["parameters"].as_array().into_iter().flatten();
        let told: BTreeSet<&str> =
            parameters.filter(|of| of["in"] == "query").map(|of| of["name"].as_str().unwrap()).collect();
        let asked = server.request(&method.to_uppercase(), &format!("{}?no_such=1", address(&path)));
        let asked = if method == "post" { asked.body(r#"{"reads":["k"]}"#) } else { asked };
        let answer = Answer::of(asked).await;
        if told.is_empty() && answer.status == 200 {
            // It looks at no parameter.
            continue;
        }
        let detail = answer.problem(400, "malformed")["detail"].as_str().unwrap().to_owned();
        let (_, takes) = detail.split_once("this request takes: ").unwrap();
        assert_eq!(takes.split(", ").collect::<BTreeSet<_>>(), told, "{method} {path}");
    }
    for (path, mut told) in methods {
        let refused = Answer::of(server.request("TRACE", &address(&path))).await;
        refused.problem(405, "method-not-allowed");
        let allowed = refused.headers["allow"].to_str().unwrap().split(',').map(str::to_owned);
        if told.contains("GET") {
            told.insert("HEAD".to_owned());
        }
        assert_eq!(allowed.collect::<BTreeSet<_>>(), told, "{path}");
    }
}

/// The check itself finds what is not as the contract says.
#[tokio::test]
async fn what_is_not_as_told_is_found() {
    let (_dir, server, contract) = lone().await;
    server.patch("/v1/app/k", r#"{"ops":[{"op":"incr","field":"plays","by":1}]}"#).await.json();
    let request = server.request("GET", "/v1/app/k?view=full").build().unwrap();
    let asked = Asked::of(&request);
    let good = Answer::of(server.request("GET", "/v1/app/k?view=full")).await;
    contract.check(&asked, &good).unwrap();
    let with = |change: &dyn Fn(&mut Value)| {
        let mut body = good.json();
        change(&mut body);
        contract.check(&asked, &Answer { body: body.to_string(), ..good.clone() })
    };
    assert!(with(&|_| {}).is_ok());
    assert!(with(&|body| body["new"] = 1.into()).is_err());
    assert!(with(&|body| body["key"] = 1.into()).is_err());
    assert!(
        with(&|body| {
            body.as_object_mut().unwrap().remove("fields");
        })
        .is_err()
    );
    assert!(with(&|body| body["fields"]["plays"]["value"] = json!([])).is_err());
    assert!(with(&|body| body["fields"]["plays"]["updated"]["time"] = "today".into()).is_err());
    assert!(contract.check(&asked, &Answer { status: 201, ..good.clone() }).is_err());
    assert!(contract.check(&asked, &Answer { status: 404, ..good.clone() }).is_err());
    let other = Asked { url: request.url().join("?numbers=string&new=1").unwrap(), ..Asked::of(&request) };
    assert!(contract.check(&other, &good).unwrap_err().contains("new"));
    let nowhere = Asked { url: request.url().join("/v2").unwrap(), ..Asked::of(&request) };
    assert!(contract.check(&nowhere, &good).is_err());
}
