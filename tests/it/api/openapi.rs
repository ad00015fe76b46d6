//! The document at `/openapi.json`: complete, well formed, and changed on purpose only.

use std::collections::BTreeSet;

use serde_json::Value;
use session_store::http::{ApiKey, HttpSettings};

use crate::support::described::DOCUMENT;
use crate::support::process::root;
use crate::support::server::TestServer;

#[tokio::test]
async fn the_document_is_the_one_checked_in() {
    let server = TestServer::start().await;
    // Not through the server's own client, which holds answers against what is checked in.
    let served: Value = reqwest::get(format!("{}/openapi.json", server.url)).await.unwrap().json().await.unwrap();
    if std::env::var("SESSION_STORE_OPENAPI").is_ok_and(|what| what == "write") {
        let mut text = String::new();
        print(&served, 0, 0, &mut text);
        std::fs::write(root().join("tests/it/openapi.json"), text + "\n").unwrap();
        return;
    }
    assert!(
        served == *DOCUMENT,
        "/openapi.json is not tests/it/openapi.json any more: run `SESSION_STORE_OPENAPI=write cargo test --test it \
         api::openapi` and read the diff"
    );
}

/// JSON for people who read its changes: what fits on a line is on one. `before`: how much of the line is taken.
fn print(value: &Value, indent: usize, before: usize, out: &mut String) {
    const WIDTH: usize = 110;
    let short = value.to_string();
    let members: Vec<(String, &Value)> = match value {
        _ if indent + before + short.len() < WIDTH && indent > 2 => Vec::new(),
        Value::Object(members) => {
            members.iter().map(|(name, value)| (format!("{}: ", Value::from(name.as_str())), value)).collect()
        }
        Value::Array(items) => items.iter().map(|item| (String::new(), item)).collect(),
        _ => Vec::new(),
    };
    if members.is_empty() {
        out.push_str(&short);
        return;
    }
    let (open, close) = if value.is_array() { ('[', ']') } else { ('{', '}') };
    out.push(open);
    for (index, (name, member)) in members.iter().enumerate() {
        let comma = if index == 0 { "" } else { "," };
        out.push_str(&format!("{comma}\n{:1$}{name}", "", indent + 1));
        print(member, indent + 1, name.len(), out);
    }
    out.push_str(&format!("\n{:indent$}{close}", ""));
}

#[tokio::test]
async fn it_needs_no_key() {
    let keys = vec![ApiKey::new("k")];
    let server = TestServer::with(HttpSettings { api_keys: keys, ..HttpSettings::default() }).await;
    server.get("/openapi.json").await.ok();
    let page = server.get("/docs").await;
    assert_eq!(page.status, 200);
    let elsewhere = ["http:", "https:", "src="].iter().any(|word| page.text.contains(word));
    assert!(page.text.contains("openapi.json") && !elsewhere, "the page needs nothing but the document");
}

/// All objects of the document.
fn objects<'d>(value: &'d Value, found: &mut Vec<&'d serde_json::Map<String, Value>>) {
    match value {
        Value::Object(members) => {
            found.push(members);
            members.values().for_each(|member| objects(member, found));
        }
        Value::Array(items) => items.iter().for_each(|item| objects(item, found)),
        _ => {}
    }
}

#[test]
fn its_names_lead_somewhere_and_are_unique() {
    let mut all = Vec::new();
    objects(&DOCUMENT, &mut all);
    let mut used = BTreeSet::new();
    for object in all {
        if let Some(place) = object.get("$ref").and_then(Value::as_str) {
            assert!(DOCUMENT.pointer(place.trim_start_matches('#')).is_some(), "{place} leads nowhere");
            used.insert(place.rsplit('/').next().unwrap().to_owned());
        }
    }
    for name in DOCUMENT["components"]["schemas"].as_object().unwrap().keys() {
        assert!(used.contains(name), "{name} is described and not used");
    }
    let tags: Vec<&Value> = DOCUMENT["tags"].as_array().unwrap().iter().map(|tag| &tag["name"]).collect();
    let mut ids = BTreeSet::new();
    for (path, item) in DOCUMENT["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let id = operation["operationId"].as_str().unwrap();
            assert!(ids.insert(id.to_owned()), "{method} {path}: {id} is taken");
            assert!(tags.contains(&&operation["tags"][0]), "{method} {path}: no such tag");
            assert!(operation["summary"].as_str().is_some_and(|text| !text.is_empty()), "{method} {path}");
            let is_success = |status: &String| status.starts_with(['1', '2']);
            let is_served = operation["responses"].as_object().unwrap().keys().any(is_success);
            assert!(is_served || id == "agents.mcp_end", "{method} {path} never succeeds");
        }
    }
    assert!(ids.len() >= 65, "{}", ids.len());
}

/// The object that a schema describes, references followed.
fn described(schema: &Value) -> &Value {
    match schema["$ref"].as_str() {
        Some(place) => DOCUMENT.pointer(place.trim_start_matches('#')).expect("a component"),
        None => schema,
    }
}

#[test]
fn it_has_the_whole_contract() {
    let mut missing = Vec::new();
    let lines = include_str!("../contract.tsv").lines().filter(|line| !line.starts_with('#'));
    for line in lines {
        let columns: Vec<&str> = line.split('\t').collect();
        let [method, path, members, parameters, statuses] = columns[..] else { panic!("five columns: {line}") };
        let operation = &DOCUMENT["paths"][path][method.to_ascii_lowercase()];
        let mut wants = |what: &str, is_there: bool| {
            if !is_there {
                missing.push(format!("{method} {path}: {what}"));
            }
        };
        if statuses == "405" {
            wants("no operation", operation.is_null());
            continue;
        }
        wants("the operation", operation.is_object());
        let media = &operation["requestBody"]["content"]["application/json"];
        let body = described(&media["schema"]);
        for member in members.split_whitespace() {
            let name = member.trim_end_matches('*');
            wants(name, body["properties"].get(name).is_some());
            let is_required = body["required"].as_array().is_some_and(|all| all.contains(&Value::from(name)));
            wants(&format!("{name} is required, or not"), is_required == member.ends_with('*'));
        }
        for name in parameters.split_whitespace() {
            let all = operation["parameters"].as_array().into_iter().flatten();
            let mut of_query = all.filter(|parameter| parameter["in"] == "query");
            wants(name, of_query.any(|parameter| parameter["name"] == name));
        }
        for status in statuses.split_whitespace() {
            wants(status, operation["responses"].get(status).is_some());
        }
        let of_path = path.split('{').skip(1).filter_map(|rest| rest.split('}').next());
        for name in of_path {
            let mut all = operation["parameters"].as_array().into_iter().flatten();
            wants(name, all.any(|parameter| parameter["in"] == "path" && parameter["name"] == name));
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}
