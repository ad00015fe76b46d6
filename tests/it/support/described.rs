//! Holds answers against the server's own description of them: every test that asks a [`super::server::TestServer`] is
//! a test of `/openapi.json`, too.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex};

use jsonschema::Validator;
use serde_json::Value;

use super::process::root;

/// The document as it is checked in; `api::openapi` asserts that it is the one served.
pub(crate) static DOCUMENT: LazyLock<Value> = LazyLock::new(|| {
    let text = std::fs::read_to_string(root().join("tests/it/openapi.json")).expect("the document");
    serde_json::from_str(&text).expect("JSON")
});

/// The same for answers: an object has no members but those described, and all of them unless the request selects.
struct Strict {
    document: Value,
    validators: Mutex<HashMap<String, Arc<Validator>>>,
}

static WHOLE: LazyLock<Strict> = LazyLock::new(|| Strict::new(false));
static SELECTED: LazyLock<Strict> = LazyLock::new(|| Strict::new(true));

impl Strict {
    fn new(parts: bool) -> Strict {
        let mut document = DOCUMENT.clone();
        close(&mut document["components"], parts);
        for item in document["paths"].as_object_mut().expect("paths").values_mut() {
            for operation in item.as_object_mut().expect("operations").values_mut() {
                close(&mut operation["responses"], parts);
            }
        }
        Strict { document, validators: Mutex::default() }
    }

    fn validator(&self, place: &str) -> Arc<Validator> {
        let mut validators = self.validators.lock().expect("not poisoned");
        let made = validators.entry(place.to_owned()).or_insert_with(|| {
            let mut schema = self.document.pointer(place).expect("a schema").clone();
            schema["components"] = self.document["components"].clone();
            let validator = jsonschema::options().should_validate_formats(true).build(&schema);
            Arc::new(validator.unwrap_or_else(|error| panic!("{place}: {error}")))
        });
        Arc::clone(made)
    }
}

/// Takes the freedom out of schemas.
fn close(schema: &mut Value, parts: bool) {
    match schema {
        Value::Object(members) => {
            if members.get("properties").is_some_and(Value::is_object) && !members.contains_key("additionalProperties")
            {
                members.insert("additionalProperties".to_owned(), Value::Bool(false));
            }
            if let Some(Value::Array(choices)) = members.get_mut("anyOf")
                && !parts
            {
                choices.retain(|choice| !choice["$ref"].as_str().is_some_and(|place| place.ends_with("Part")));
            }
            members.values_mut().for_each(|member| close(member, parts));
        }
        Value::Array(items) => items.iter_mut().for_each(|item| close(item, parts)),
        _ => {}
    }
}

/// The path of the document that serves `path`: words come before parameters.
fn template(path: &str) -> Option<&'static str> {
    let segments: Vec<&str> = path.split('/').collect();
    let fits = |template: &&String| {
        let wanted: Vec<&str> = template.split('/').collect();
        let is_same = |(wanted, got): (&&str, &&str)| wanted == got || (wanted.starts_with('{') && !got.is_empty());
        wanted.len() == segments.len() && wanted.iter().zip(&segments).all(is_same)
    };
    let paths = DOCUMENT["paths"].as_object().expect("paths");
    paths.keys().filter(fits).min_by_key(|template| template.matches('{').count()).map(String::as_str)
}

/// Panics if the document does not allow this answer.
#[track_caller]
pub(crate) fn check(method: &str, target: &str, body: &str, status: u16, content_type: Option<&str>, text: &str) {
    let path = target.split('?').next().unwrap_or_default();
    let path = if path.len() > 1 { path.trim_end_matches('/') } else { path };
    let Some(template) = template(path) else {
        assert!(matches!(status, 401 | 403 | 404), "{method} {target} is not described, and answers {status}");
        return;
    };
    let verb = method.to_ascii_lowercase();
    let Some(operation) = DOCUMENT["paths"][template].get(&verb) else {
        assert!(matches!(status, 401 | 403 | 405), "{method} {target} is not described, and answers {status}");
        return;
    };
    let place = format!("/paths/{}/{verb}/responses/{status}", template.replace('/', "~1"));
    let (place, answer) = match operation["responses"][status.to_string()]["$ref"].as_str() {
        Some(elsewhere) => (elsewhere[1..].to_owned(), DOCUMENT.pointer(&elsewhere[1..]).expect("a response")),
        None => (place, &operation["responses"][status.to_string()]),
    };
    assert!(answer.is_object(), "{method} {template}: {status} is not described: {text}");
    let kind = content_type.unwrap_or_default().split(';').next().unwrap_or_default();
    let Some(content) = answer["content"].as_object() else {
        assert!(text.is_empty(), "{method} {template}: {status} is described without a body: {text}");
        return;
    };
    assert!(content.contains_key(kind), "{method} {template}: {status} with {kind} is not described: {text}");
    if kind != "application/json" {
        return;
    }
    let json: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{method} {template}: {error}: {text}"));
    let asks_for_parts = target.contains("select") || body.contains("\"select\"");
    let strict = if asks_for_parts { &SELECTED } else { &WHOLE };
    let place = format!("{place}/content/application~1json/schema");
    let wrong: Vec<String> = strict
        .validator(&place)
        .iter_errors(&json)
        .map(|error| format!("{}: {error:.300}", error.instance_path()))
        .collect();
    assert!(wrong.is_empty(), "{method} {target} answers {status} outside its schema:\n{}\n{text}", wrong.join("\n"));
}
