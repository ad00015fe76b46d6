//! `/openapi.json` against the handlers, from the side of requests: what is described is what is read, and what a
//! description allows and forbids is what is taken and refused. (Answers are held against it by the integration tests.)

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use jsonschema::Validator;
use serde_json::{Map, Value, json};
use tower::ServiceExt;

use super::{runtime_over, send, settings, spy};
use crate::http::{openapi, router};
use crate::model::system_assistant_id;
use crate::storage::connect::{ConnectOptions, connect};

/// Operations whose bodies are messages of other protocols or whose parameters are read before there is a handler.
const OTHER_READERS: [&str; 4] = ["events.command", "events.connect", "agents.mcp", "agents.a2a"];
/// Members that are read as they are, with what is inside of them.
const WHOLE: [&str; 1] = ["command."];
/// Members with rules beyond a schema.
const MEMBER_RULES: [&str; 13] = [
    "assistant_id",
    "before",
    "branch",
    "checkpoint_id",
    "channels",
    "end_time",
    "extract",
    "graph_id",
    "namespaces",
    "schedule",
    "select",
    "timezone",
    "webhook",
];
/// Parameters with rules beyond a schema.
const PARAMETER_RULES: [&str; 7] =
    ["asked_after", "asked_before", "before", "cursor", "metadata", "namespace", "select"];

/// One operation of the document.
struct Described {
    method: String,
    path: String,
    id: String,
    /// Required parameters of the URL.
    query: String,
    parameters: Vec<Value>,
    /// The schema of the body.
    body: Option<Value>,
}

struct World {
    app: Router,
    document: Value,
    cron: String,
}

impl World {
    async fn new() -> World {
        let storage = connect("memory", &ConnectOptions::default()).await.expect("a database in memory");
        storage.migrate().await.expect("migrates");
        let graphs = crate::graphs::all().into_iter().map(|graph| graph.expect("a graph")).collect();
        let app = router(runtime_over(Arc::clone(&storage), graphs), settings());
        let world = World { app, document: openapi::document(), cron: String::new() };
        world.ensure_thread().await;
        let cron = world.post("/runs/crons", &json!({"assistant_id": "counter", "schedule": "0 0 1 1 *"})).await;
        World { cron: cron["cron_id"].as_str().expect("an id").to_owned(), ..world }
    }

    /// Operations run one after the other, and one of them deletes it.
    async fn ensure_thread(&self) {
        let thread = json!({"thread_id": "t", "metadata": {"graph_id": "counter"}, "if_exists": "do_nothing"});
        self.post("/threads", &thread).await;
    }

    async fn post(&self, path: &str, body: &Value) -> Value {
        let request = Request::post(path).body(Body::from(body.to_string())).expect("a request");
        send(&self.app, request).await.json()
    }

    fn operations(&self) -> Vec<Described> {
        let mut all = Vec::new();
        for (template, methods) in self.document["paths"].as_object().expect("paths") {
            for (method, operation) in methods.as_object().expect("operations") {
                let parameters: Vec<Value> = operation["parameters"].as_array().expect("a list").clone();
                let is_required = |parameter: &&Value| parameter["in"] == "query" && parameter["required"] == true;
                let query: Vec<String> = parameters
                    .iter()
                    .filter(is_required)
                    .map(|parameter| format!("{}=a", parameter["name"].as_str().expect("a name")))
                    .collect();
                all.push(Described {
                    method: method.to_ascii_uppercase(),
                    path: self.real(template),
                    id: operation["operationId"].as_str().expect("an id").to_owned(),
                    query: query.join("&"),
                    parameters,
                    body: operation.pointer("/requestBody/content/application~1json/schema").cloned(),
                });
            }
        }
        all
    }

    /// A path with its parameters filled in.
    fn real(&self, template: &str) -> String {
        let nil = uuid::Uuid::nil().to_string();
        let assistant = system_assistant_id("counter").to_string();
        template
            .replace("{thread_id}", "t")
            .replace("{assistant_id}", &assistant)
            .replace("{cron_id}", &self.cron)
            .replace("{run_id}", &nil)
            .replace("{checkpoint_id}", &nil)
            .replace("{interrupt_id}", "x")
            .replace("{namespace}", "x")
            .replace("{name}", "x")
    }

    fn resolve<'v>(&'v self, schema: &'v Value) -> &'v Value {
        match schema["$ref"].as_str() {
            Some(place) => self.document.pointer(&place[1..]).expect("a component"),
            None => schema,
        }
    }

    /// The least that a schema takes, with all objects whose members are described.
    fn sample(&self, name: &str, schema: &Value) -> Value {
        let schema = self.resolve(schema);
        match name {
            "graph_id" => return json!("counter"),
            "schedule" => return json!("* * * * *"),
            "channels" => return json!(["values"]),
            "namespace" => return json!(["a"]),
            _ => {}
        }
        if let Some(first) = schema["anyOf"].get(0) {
            return self.sample(name, first);
        }
        let kind = schema["type"].as_str().or_else(|| schema["type"][0].as_str()).unwrap_or("null");
        match kind {
            "object" => {
                let mut members = Map::new();
                for (name, member) in schema["properties"].as_object().into_iter().flatten() {
                    let is_required = schema["required"].as_array().is_some_and(|all| all.contains(&json!(name)));
                    if is_required || self.has_members(member) {
                        members.insert(name.clone(), self.sample(name, member));
                    }
                }
                Value::Object(members)
            }
            "array" if schema["items"]["anyOf"].is_array() => {
                let kinds = schema["items"]["anyOf"].as_array().into_iter().flatten();
                kinds.filter(|kind| self.has_members(kind)).map(|kind| self.sample(name, kind)).collect()
            }
            "array" if self.has_members(&schema["items"]) => json!([self.sample(name, &schema["items"])]),
            "array" => json!([]),
            "string" => schema["enum"].get(0).cloned().unwrap_or_else(|| json!("a")),
            "integer" | "number" => schema.get("minimum").cloned().unwrap_or_else(|| json!(1)),
            "boolean" => json!(true),
            _ => json!({}),
        }
    }

    fn has_members(&self, schema: &Value) -> bool {
        let schema = self.resolve(schema);
        let is_described = schema["properties"].is_object();
        is_described
            || [&schema["anyOf"][0], &schema["items"]].iter().any(|part| !part.is_null() && self.has_members(part))
    }

    /// The names of all members that are described below one.
    fn members(&self, prefix: &str, schema: &Value, names: &mut BTreeSet<String>) {
        let schema = self.resolve(schema);
        for (name, member) in schema["properties"].as_object().into_iter().flatten() {
            if member["x-ignored"] == true {
                continue;
            }
            names.insert(format!("{prefix}{name}"));
            self.members(&format!("{prefix}{name}."), member, names);
        }
        for alternative in schema["anyOf"].as_array().into_iter().flatten() {
            self.members(prefix, alternative, names);
        }
        if schema["items"].is_object() {
            let prefix = format!("{}[].", prefix.trim_end_matches('.'));
            self.members(prefix.trim_start_matches("[]."), &schema["items"], names);
        }
    }

    /// Status and text of the answer to an operation with this body; a stream or a long answer is not waited for.
    async fn ask(&self, operation: &Described, query: &str, body: Option<&Value>) -> (u16, String) {
        let separator = if operation.query.is_empty() || query.is_empty() { "" } else { "&" };
        let uri = format!("{}?{}{separator}{query}", operation.path, operation.query);
        let request = Request::builder()
            .method(operation.method.as_str())
            .uri(&uri)
            .header("accept", "*/*")
            .body(Body::from(body.map(Value::to_string).unwrap_or_default()))
            .expect("a request");
        let response = self.app.clone().oneshot(request).await.expect("infallible");
        let status = response.status().as_u16();
        if status < 400 {
            return (status, String::new());
        }
        let bytes = axum::body::to_bytes(response.into_body(), usize::MAX).await.expect("a body");
        (status, String::from_utf8_lossy(&bytes).into_owned())
    }

    fn validator(&self, schema: &Value) -> Validator {
        let mut schema = schema.clone();
        schema["components"] = self.document["components"].clone();
        jsonschema::options().should_validate_formats(true).build(&schema).expect("a schema")
    }
}

#[tokio::test]
async fn methods_that_are_not_described_are_refused() {
    let world = World::new().await;
    for (template, methods) in world.document["paths"].as_object().expect("paths") {
        let mut described: Vec<String> =
            methods.as_object().expect("operations").keys().map(|method| method.to_ascii_uppercase()).collect();
        if described.iter().any(|method| method == "GET") {
            described.push("HEAD".to_owned());
        }
        described.sort();
        let request = Request::builder().method("TRACE").uri(world.real(template)).body(Body::empty());
        let answer = send(&world.app, request.expect("a request")).await;
        assert_eq!(answer.status, 405, "{template}");
        let mut allowed: Vec<&str> = answer.headers["allow"].to_str().expect("text").split(',').collect();
        allowed.sort_unstable();
        assert_eq!(allowed, described, "{template}");
    }
}

#[tokio::test]
async fn what_is_described_is_what_is_read() {
    let world = World::new().await;
    let mut wrong = Vec::new();
    for operation in world.operations().iter().filter(|operation| !OTHER_READERS.contains(&operation.id.as_str())) {
        let body = operation.body.as_ref().map(|schema| world.sample("", schema));
        let body = body.map(|mut body| {
            // One of two members must be there.
            if operation.id == "branches.move_head" {
                body["branch"] = json!("x");
            }
            body
        });
        world.ensure_thread().await;
        spy::seen();
        let (status, text) = world.ask(operation, "", body.as_ref()).await;
        let mut seen = spy::seen();
        let mut described = BTreeSet::new();
        operation.body.iter().for_each(|schema| world.members("", schema, &mut described));
        if operation.body.is_none() {
            seen.members.clear();
        }
        described.retain(|name| !WHOLE.iter().any(|whole| name.starts_with(whole)));
        let in_query = |parameter: &&Value| parameter["in"] == "query";
        let parameters: BTreeSet<String> = operation
            .parameters
            .iter()
            .filter(in_query)
            .map(|parameter| parameter["name"].as_str().expect("a name").to_owned())
            .collect();
        seen.parameters.remove("pretty");
        for (what, described, seen) in
            [("members", &described, &seen.members), ("parameters", &parameters, &seen.parameters)]
        {
            let missing: Vec<&String> = seen.difference(described).collect();
            let unread: Vec<&String> = described.difference(seen).collect();
            if !missing.is_empty() || !unread.is_empty() {
                let id = &operation.id;
                wrong.push(format!(
                    "{id}: {what} not described: {missing:?}, described and not read: {unread:?} ({status} {text})"
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Values around the limits of a schema, and of every type.
fn probes(schema: &Value) -> Vec<Value> {
    let long = |count: usize| "x".repeat(count);
    let mut probes = vec![
        json!(7),
        json!(-7.5),
        json!("?"),
        json!(""),
        json!(long(4097)),
        json!(true),
        json!([]),
        json!([7]),
        json!(["?"]),
        json!({}),
        json!({"?": 7}),
    ];
    probes.extend(schema["enum"].as_array().into_iter().flatten().cloned());
    for (limit, beyond) in [("minimum", -1), ("maximum", 1)] {
        if let Some(limit) = schema[limit].as_i64() {
            probes.extend([json!(limit), json!(limit.saturating_add(beyond))]);
        }
    }
    if let Some(most) = schema["maxItems"].as_u64() {
        let items = schema["items"].pointer("/enum/0").cloned().unwrap_or_else(|| json!("a"));
        probes.push(json!(vec![items; most as usize + 1]));
    }
    probes
}

#[tokio::test]
async fn bodies_are_taken_and_refused_as_described() {
    let world = World::new().await;
    let mut wrong = Vec::new();
    let mut probed = 0;
    for operation in world.operations().iter().filter(|operation| !OTHER_READERS.contains(&operation.id.as_str())) {
        let Some(schema) = operation.body.as_ref().map(|schema| world.resolve(schema)) else { continue };
        let sample = world.sample("", schema);
        if !sample.is_object() {
            continue;
        }
        for (name, member) in schema["properties"].as_object().into_iter().flatten() {
            if member["x-ignored"] == true {
                continue;
            }
            let validator = world.validator(member);
            for probe in probes(world.resolve(member)) {
                let mut body = sample.clone();
                body[name] = probe.clone();
                let (status, text) = world.ask(operation, "", Some(&body)).await;
                let is_refused = matches!(status, 400 | 422);
                let names_it = text.contains(&format!("{name}:")) || text.contains("Invalid");
                let is_allowed = validator.is_valid(&probe);
                let is_wrong = if is_allowed {
                    is_refused && names_it && !MEMBER_RULES.contains(&name.as_str())
                } else {
                    !is_refused
                };
                probed += 1;
                if is_wrong {
                    let probe: String = probe.to_string().chars().take(60).collect();
                    let verb = if is_allowed { "allows" } else { "forbids" };
                    wrong.push(format!("{}: the schema of {name} {verb} {probe}: {status} {text}", operation.id));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {probed}:\n{}", wrong.len(), wrong.join("\n"));
    assert!(probed > 1000, "{probed}");
}

#[tokio::test]
async fn parameters_are_taken_and_refused_as_described() {
    let world = World::new().await;
    let mut wrong = Vec::new();
    let mut probed = 0;
    for operation in world.operations().iter().filter(|operation| !OTHER_READERS.contains(&operation.id.as_str())) {
        let body = operation.body.as_ref().map(|schema| world.sample("", schema));
        world.ensure_thread().await;
        for parameter in operation.parameters.iter().filter(|parameter| parameter["in"] == "query") {
            let name = parameter["name"].as_str().expect("a name");
            let schema = if parameter["schema"]["items"].is_object() {
                &parameter["schema"]["items"]
            } else {
                &parameter["schema"]
            };
            let validator = world.validator(schema);
            for probe in probes(schema).iter().filter(|probe| !probe.is_array() && !probe.is_object()) {
                let text = probe.as_str().map_or_else(|| probe.to_string(), str::to_owned);
                // What is empty counts as absent, and a list may be cut at its commas.
                if text.is_empty() || probe.is_null() {
                    continue;
                }
                let query = format!("{name}={}", text.replace('?', "%3F"));
                let (status, answer) = world.ask(operation, &query, body.as_ref()).await;
                let as_typed = serde_json::from_str(&text).unwrap_or_else(|_| json!(text));
                let is_allowed = validator.is_valid(&json!(text)) || validator.is_valid(&as_typed);
                let is_refused = matches!(status, 400 | 422);
                let is_wrong = if is_allowed {
                    is_refused && answer.contains(&format!("{name}:")) && !PARAMETER_RULES.contains(&name)
                } else {
                    !is_refused && !matches!(text.as_str(), "0" | "1")
                };
                probed += 1;
                if is_wrong {
                    let verb = if is_allowed { "allows" } else { "forbids" };
                    wrong.push(format!("{}: the schema of {name} {verb} {text:.60}: {status} {answer}", operation.id));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {probed}:\n{}", wrong.len(), wrong.join("\n"));
    assert!(probed > 200, "{probed}");
}

/// Members whose null says something: it takes away what is there.
const NULL_TAKES_AWAY: [&str; 1] = ["crons.update end_time"];

#[tokio::test]
async fn a_member_that_is_null_is_as_if_it_were_absent() {
    let world = World::new().await;
    let mut wrong = Vec::new();
    let mut probed = 0;
    for operation in world.operations().iter().filter(|operation| !OTHER_READERS.contains(&operation.id.as_str())) {
        let Some(schema) = operation.body.as_ref().map(|schema| world.resolve(schema)) else { continue };
        let sample = world.sample("", schema);
        // Bodies, and objects right inside of them.
        let mut pairs: Vec<(String, Value, Value)> = Vec::new();
        for (name, member) in schema["properties"].as_object().into_iter().flatten() {
            if NULL_TAKES_AWAY.contains(&format!("{} {name}", operation.id).as_str()) {
                continue;
            }
            let mut without = sample.clone();
            without.as_object_mut().expect("an object").remove(name);
            let mut with = without.clone();
            with[name] = Value::Null;
            pairs.push((name.clone(), without.clone(), with));
            for inner in world.resolve(member)["properties"].as_object().into_iter().flatten().map(|(inner, _)| inner) {
                let mut with = without.clone();
                without[name] = json!({});
                with[name] = json!({inner: null});
                pairs.push((format!("{name}.{inner}"), without.clone(), with));
            }
        }
        for (name, without, with) in pairs {
            let mut answers = Vec::new();
            for body in [&without, &with] {
                world.ensure_thread().await;
                world.post("/threads/t/reopen", &json!({})).await;
                answers.push(world.ask(operation, "", Some(body)).await);
            }
            probed += 1;
            let is_same = answers[0].0 == answers[1].0 && (answers[0].0 == 500 || answers[0].1 == answers[1].1);
            if !is_same || answers[0].0 == 500 {
                wrong.push(format!("{} {name}: absent {:?}, null {:?}", operation.id, answers[0], answers[1]));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {probed}:\n{}", wrong.len(), wrong.join("\n"));
    assert!(probed > 200, "{probed}");
}

/// POSTs that only read: they take no key.
const READERS: [&str; 13] = [
    "assistants.count",
    "assistants.search",
    "assistants.versions",
    "checkpoints.deltas",
    "checkpoints.search",
    "crons.count",
    "crons.search",
    "events.subscribe",
    "state.get_at_cursor",
    "state.history",
    "store.namespaces",
    "threads.count",
    "threads.search",
];

/// With the least body these have nothing to do, and nothing is kept.
const IDLE: [&str; 4] =
    ["checkpoints.batch_of_many", "checkpoints.delete", "interrupts.answer_many", "quarantine.release"];

#[tokio::test]
async fn every_post_that_has_an_effect_has_it_once_under_a_key() {
    let world = World::new().await;
    let (mut wrong, mut kept) = (Vec::new(), Vec::new());
    let ask = async |operation: &Described, body: &Value| {
        let request = Request::post(format!("{}?{}", operation.path, operation.query))
            .header("idempotency-key", operation.id.as_str())
            .header("accept", "*/*")
            .body(Body::from(body.to_string()))
            .expect("a request");
        let response = world.app.clone().oneshot(request).await.expect("infallible");
        let is_replayed = response.headers().contains_key("idempotency-replayed");
        (response.status().as_u16(), is_replayed)
    };
    let is_post = |operation: &Described| operation.method == "POST" && !OTHER_READERS.contains(&operation.id.as_str());
    let posts: Vec<Described> = world.operations().into_iter().filter(is_post).collect();
    for operation in &posts {
        world.ensure_thread().await;
        world.post("/threads/t/reopen", &json!({})).await;
        let mut body = operation.body.as_ref().map_or_else(|| json!({}), |schema| world.sample("", schema));
        let run = json!({"assistant_id": "counter", "input": {"counter": 0}});
        match operation.id.as_str() {
            "threads.prune" => body["thread_ids"] = json!(["t"]),
            "threads.create" => body = json!({}),
            "crons.create" => body["assistant_id"] = json!("counter"),
            "stateless.create" | "stateless.stream" | "stateless.wait" => body = run,
            "stateless.batch" => body = json!([run]),
            _ => {}
        }
        let first = ask(operation, &body).await;
        let again = ask(operation, &body).await;
        let is_kept = first.0 < 300 && ![&READERS[..], &IDLE[..]].concat().contains(&operation.id.as_str());
        if first.1 || again != (first.0, is_kept) {
            wrong.push(format!("{}: {first:?}, then {again:?}", operation.id));
        }
        if is_kept {
            kept.push(operation.id.as_str());
            let mut other = body.clone();
            if other.is_object() {
                other["another"] = json!(true);
                let refused = ask(operation, &other).await;
                if refused.0 != 422 {
                    wrong.push(format!("{}: another body: {refused:?}", operation.id));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(kept.len() >= 22, "{} of {} POSTs: {kept:?}", kept.len(), posts.len());
}
