//! Every answer that a test gets is held to the contract that the node serves, `/openapi.json`: its status, headers, type and body; and
//! what a node accepted, too: its query parameters and body.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use jsonschema::Validator;
use reqwest::header::{CONTENT_TYPE, HeaderMap};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use super::Answer;

/// What was asked.
pub struct Asked {
    pub method: String,
    pub url: reqwest::Url,
    pub headers: HeaderMap,
    pub body: Option<Vec<u8>>,
}

/// The contract of the nodes of this process's tests, which are of one version.
pub struct Contract {
    pub document: Value,
    validators: Mutex<BTreeMap<String, Arc<Validator>>>,
}

impl Asked {
    pub fn of(request: &reqwest::Request) -> Self {
        Self {
            method: request.method().as_str().to_ascii_lowercase(),
            url: request.url().clone(),
            headers: request.headers().clone(),
            body: request.body().and_then(|body| body.as_bytes()).map(<[u8]>::to_vec),
        }
    }
}

/// Panics if an answer is not what the contract says.
pub async fn hold(client: &reqwest::Client, asked: &Asked, answer: &Answer) {
    if let Some(contract) = of_node(client, &asked.url).await
        && let Err(wrong) = contract.check(asked, answer)
    {
        panic!("not as /openapi.json says: {} {}: {wrong}\n{answer:?}", asked.method, asked.url);
    }
}

/// The contract that a node serves; none if it ends meanwhile: what is asked next is held to it.
pub async fn of_node(client: &reqwest::Client, url: &reqwest::Url) -> Option<&'static Contract> {
    static CONTRACT: OnceCell<Contract> = OnceCell::const_new();
    let read = CONTRACT.get_or_try_init(async || {
        let mut url = url.clone();
        url.set_path("/openapi.json");
        url.set_query(None);
        let served = client.get(url).send().await?.error_for_status()?;
        served.json().await.map(Contract::of)
    });
    read.await.ok()
}

impl Contract {
    pub fn of(document: Value) -> Self {
        Self { document, validators: Mutex::default() }
    }

    /// What is not as the contract says.
    pub fn check(&self, asked: &Asked, answer: &Answer) -> Result<(), String> {
        let Some(path) = self.path(asked.url.path()) else {
            return is(answer, 404, "there is no such path");
        };
        let is_head = asked.method == "head";
        let method = if is_head { "get" } else { asked.method.as_str() };
        let operation = &self.document["paths"][path][method];
        if operation.is_null() {
            return is(answer, 405, "there is no such method");
        }
        let response = &operation["responses"][answer.status.to_string()];
        if response.is_null() {
            return Err(format!("the status {} is not told", answer.status));
        }
        let own = |name: &&str| name.starts_with("godwit-") || ["etag", "retry-after"].contains(name);
        for name in answer.headers.keys().map(|name| name.as_str()).filter(own) {
            let told = response["headers"].as_object().into_iter().flatten();
            told.map(|(told, _)| told)
                .find(|told| told.eq_ignore_ascii_case(name))
                .ok_or(format!("the header {name}"))?;
        }
        let at =
            |rest: &str| format!("/paths/{}/{method}/{rest}", path.replace('~', "~0").replace('/', "~1"));
        if !is_head && !response["content"].is_null() {
            let content = at(&format!("responses/{}/content", answer.status));
            self.check_body(&content, &answer.headers, answer.body.as_bytes())?;
        } else if !is_head && !answer.body.is_empty() {
            return Err("the answer has a body".to_owned());
        }
        if !(200..300).contains(&answer.status) {
            return Ok(());
        }
        // What is asked for in full is more than the schema of the answer, which holds all forms, demands.
        let full = ("view".into(), "full".into());
        if asked.url.query_pairs().any(|pair| pair == full) && answer.status == 200 && !answer.body.is_empty()
        {
            let whole: Value = serde_json::from_str(&answer.body).unwrap_or_default();
            match path.ends_with("{field}") {
                true => self.validate("/components/schemas/FullField", &whole)?,
                false if whole["fields"].is_object() => {
                    self.validate("/components/schemas/FullFields", &whole["fields"])?;
                }
                false => {}
            }
        }
        // What is about the node alone takes no parameters, and looks for none.
        for (name, _) in asked.url.query_pairs().filter(|_| path.starts_with("/v1/")) {
            let told = operation["parameters"].as_array().into_iter().flatten();
            let is_it = |told: &&Value| told["in"] == "query" && told["name"] == *name;
            told.clone().find(is_it).ok_or(format!("the query parameter {name} was accepted"))?;
        }
        match (&asked.body, &operation["requestBody"]) {
            (Some(body), told) if told.is_object() => {
                let outcome = self.check_body(&at("requestBody/content"), &asked.headers, body);
                outcome.map_err(|wrong| format!("the body that was accepted: {wrong}"))
            }
            (Some(body), _) if !body.is_empty() => Err("a body was accepted".to_owned()),
            _ => Ok(()),
        }
    }

    /// The path of the contract that an address is of: one without places for names before one with.
    fn path(&self, address: &str) -> Option<&str> {
        let segments: Vec<&str> = address.split('/').collect();
        let fits = |path: &str| {
            let parts: Vec<&str> = path.split('/').collect();
            let mut pairs = parts.iter().zip(&segments);
            parts.len() == segments.len()
                && pairs.all(|(part, given)| part == given || part.starts_with('{') && !given.is_empty())
        };
        let paths = self.document["paths"].as_object()?.keys().map(String::as_str);
        paths.filter(|path| fits(path)).min_by_key(|path| path.matches('{').count())
    }

    fn check_body(&self, content: &str, headers: &HeaderMap, body: &[u8]) -> Result<(), String> {
        let told = &self.document.pointer(content).ok_or("it is not told")?;
        let ty = headers.get(CONTENT_TYPE).map_or("application/json", |ty| ty.to_str().unwrap());
        let essence = ty.split(';').next().unwrap().trim().to_ascii_lowercase();
        let is_json = essence.ends_with("json");
        let essence = match told[&essence].is_null() && is_json {
            // Bodies may come as any kind of JSON.
            true => "application/json".to_owned(),
            false => essence,
        };
        if told[&essence].is_null() {
            return Err(format!("the type {ty}"));
        }
        if !is_json {
            return Ok(());
        }
        let value: Value = match serde_json::from_slice(body) {
            Ok(value) => value,
            // A register's numbers may be of any size.
            Err(error) if error.to_string().contains("out of range") => return Ok(()),
            Err(error) => return Err(format!("it is not JSON: {error}")),
        };
        self.validate(&format!("{content}/{}/schema", essence.replace('/', "~1")), &value)
    }

    /// Holds a value to the schema at a place.
    pub fn validate(&self, place: &str, value: &Value) -> Result<(), String> {
        let validator = {
            let mut validators = self.validators.lock().unwrap();
            let validator =
                validators.entry(place.to_owned()).or_insert_with(|| Arc::new(self.validator(place)));
            Arc::clone(validator)
        };
        let mut errors = validator.iter_errors(value).peekable();
        match errors.peek() {
            None => Ok(()),
            Some(_) => Err(errors
                .map(|error| format!("{error} at {}", error.instance_path()))
                .collect::<Vec<_>>()
                .join("; ")),
        }
    }

    fn validator(&self, place: &str) -> Validator {
        let schema = self.document.pointer(place).unwrap_or_else(|| panic!("there is no schema at {place}"));
        let whole = json!({
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "components": self.document["components"], "allOf": [schema],
        });
        jsonschema::validator_for(&whole).unwrap()
    }
}

fn is(answer: &Answer, status: u16, why: &str) -> Result<(), String> {
    match answer.status == status {
        true => Ok(()),
        false => Err(format!("{why}, and it is not {status}")),
    }
}
