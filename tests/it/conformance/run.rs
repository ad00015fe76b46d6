//! Carries a scenario out: its actions one after the other, each recorded as it was answered.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};

use super::client::{Answer, Client, Event};
use super::normalise::{Ids, only_questions, scrub};
use super::order::in_order;
use super::scenario::{Entry, Object, Scenario};

/// What of an action goes into the body of a run.
const RUN_KEYS: [&str; 16] = [
    "input",
    "command",
    "config",
    "context",
    "metadata",
    "stream_mode",
    "interrupt_before",
    "interrupt_after",
    "durability",
    "multitask_strategy",
    "if_not_exists",
    "on_completion",
    "after_seconds",
    "stream_resumable",
    "checkpoint_id",
    "on_disconnect",
];
const PATIENCE: Duration = Duration::from_secs(30);
/// Status and body of an action's answer.
type Recorded = (u16, Value);

/// Runs a scenario against a server; `Err`: it could not be carried out.
pub(super) async fn transcript(client: &Client, scenario: &Scenario) -> Result<Vec<Entry>, String> {
    let unique = format!("u{}", &uuid::Uuid::new_v4().simple().to_string()[..10]);
    let text = serde_json::to_string(&scenario.actions).map_err(|error| error.to_string())?;
    let actions: Vec<Object> =
        serde_json::from_str(&text.replace("@@uniq@@", &unique)).map_err(|error| error.to_string())?;
    let graph = scenario.graphs.first().and_then(|graph| graph["id"].as_str()).unwrap_or_default().to_owned();
    let mut run = Run::of(client, graph);
    let mut ids = Ids::new(&unique);
    let mut entries = Vec::new();
    for (n, action) in actions.iter().enumerate() {
        let recorded = run.act(action).await.map_err(|error| format!("action {n} {}: {error}", action["do"]))?;
        let Some((status, body)) = recorded else { continue };
        let mut body = if status == 422 { Value::Null } else { scrub(&body) };
        only_questions(&mut body);
        let action = action["do"].as_str().unwrap_or_default().to_owned();
        entries.push(Entry { n, action, status, body: ids.apply(&body) });
    }
    for thread in run.threads.values() {
        client.call(Method::DELETE, &format!("/threads/{thread}"), None).await;
    }
    Ok(entries)
}

/// A scenario under way.
struct Run {
    client: Client,
    /// The graph of actions that name none.
    graph: String,
    threads: HashMap<String, String>,
    runs: HashMap<String, String>,
    saved: HashMap<String, Value>,
    remembered: HashMap<String, String>,
}

/// A question that waits, with the task that asks it and the root graph's task around that.
struct Pending {
    task: String,
    top: String,
    id: String,
    value: Value,
}

fn text<'a>(action: &'a Object, key: &str) -> Option<&'a str> {
    action.get(key).and_then(Value::as_str)
}

/// The fields of an object that are named.
fn pick(from: &Object, keys: &[&str]) -> Object {
    let named = from.iter().filter(|(key, _)| keys.contains(&key.as_str()));
    named.map(|(key, value)| (key.clone(), value.clone())).collect()
}

fn cut(value: &Value, keys: &[&str]) -> Value {
    value.as_object().map_or_else(|| value.clone(), |fields| Value::Object(pick(fields, keys)))
}

fn events(answer: Answer, events: Option<Vec<Event>>, extra: Option<&str>) -> Recorded {
    (answer.status, events.map_or(answer.body, |events| in_order(events, extra)))
}

impl Run {
    fn of(client: &Client, graph: String) -> Run {
        Run {
            client: client.clone(),
            graph,
            threads: HashMap::new(),
            runs: HashMap::new(),
            saved: HashMap::new(),
            remembered: HashMap::new(),
        }
    }

    /// The thread of an action; none for a stateless run.
    fn thread(&self, action: &Object) -> Option<String> {
        let name = match action.get("thread") {
            None => "t",
            Some(Value::String(name)) => name,
            Some(_) => return None,
        };
        Some(self.threads.get(name).cloned().unwrap_or_else(|| name.to_owned()))
    }

    fn run_id(&self, action: &Object) -> String {
        let name = text(action, "run").unwrap_or("r");
        self.runs.get(name).cloned().unwrap_or_else(|| name.to_owned())
    }

    /// Waits until no run is active on the thread.
    async fn settle(&self, thread: &str) {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            let answer = self.client.get(&format!("/threads/{thread}")).await;
            if answer.status != 200 || answer.body["status"] != "busy" {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn history(&self, thread: &str, checkpoint: Option<Value>) -> Vec<Value> {
        let mut body = json!({"limit": 200});
        if let Some(checkpoint) = checkpoint {
            body["checkpoint"] = checkpoint;
        }
        let answer = self.client.post(&format!("/threads/{thread}/history"), &body).await;
        answer.body.as_array().filter(|_| answer.status == 200).cloned().unwrap_or_default()
    }

    async fn nested_state(&self, thread: &str) -> Value {
        let body = json!({"checkpoint": {"thread_id": thread}, "subgraphs": true});
        self.client.post(&format!("/threads/{thread}/state/checkpoint"), &body).await.body
    }

    /// The checkpoint of the graph inside a task, found by the names of the tasks on the way down.
    async fn inner_checkpoint(&self, thread: &str, path: &[Value]) -> Result<Value, String> {
        let mut state = self.nested_state(thread).await;
        for name in path {
            let tasks = state["tasks"].as_array().cloned().unwrap_or_default();
            let task = tasks.into_iter().find(|task| task["name"] == *name).ok_or(format!("no task {name}"))?;
            if task["state"].is_null() {
                return Ok(task["checkpoint"].clone());
            }
            state = task["state"].clone();
        }
        Ok(state["checkpoint"].clone())
    }

    /// What a reference to a checkpoint stands for.
    async fn checkpoint(&self, reference: &Value, thread: &str) -> Result<Value, String> {
        if let Some(n) = reference["row_mod"].as_u64() {
            let rows = self.history(thread, None).await;
            let Some(place) = (n as usize).checked_rem(rows.len()) else {
                return Ok(json!({"checkpoint_id": "1f000000-0000-6000-8000-000000000000", "checkpoint_ns": ""}));
            };
            return Ok(rows[place]["checkpoint"].clone());
        }
        let row = |rows: &[Value], rule: &Value| find_row(rows, rule).cloned();
        if let Some(rule) = reference.get("history") {
            return Ok(row(&self.history(thread, None).await, rule)?["checkpoint"].clone());
        }
        if let Some(rule) = reference.get("parent_of") {
            return Ok(row(&self.history(thread, None).await, rule)?["parent_checkpoint"].clone());
        }
        if reference["head"] == true {
            return Ok(self.client.get(&format!("/threads/{thread}/state")).await.body["checkpoint"].clone());
        }
        if let Some(name) = reference["saved"].as_str() {
            return self.saved.get(name).cloned().ok_or(format!("nothing saved as {name}"));
        }
        if let Some(path) = reference["sub"].as_array() {
            return self.inner_checkpoint(thread, path).await;
        }
        if let Some(of) = reference.get("sub_history") {
            let ns = match (of["ns"].as_str(), of["task"].as_array()) {
                (Some(ns), _) => json!(ns),
                (None, Some(path)) => self.inner_checkpoint(thread, path).await?["checkpoint_ns"].clone(),
                (None, None) => return Err(format!("bad reference {reference}")),
            };
            let at = json!({"thread_id": thread, "checkpoint_ns": ns});
            return Ok(row(&self.history(thread, Some(at)).await, &of["row"])?["checkpoint"].clone());
        }
        reference.get("literal").cloned().ok_or(format!("bad reference {reference}"))
    }

    async fn pending(&self, thread: &str) -> Vec<Pending> {
        let state = self.nested_state(thread).await;
        let mut found = Vec::new();
        collect_pending(&state, None, &mut found);
        found
    }

    /// Answers by the ids of the questions that rules find.
    async fn answers(&self, rules: &[Value], thread: &str) -> Result<Object, String> {
        let pending = self.pending(thread).await;
        let mut answers = Object::new();
        for rule in rules {
            let id = match rule["remembered"].as_str() {
                Some(name) => self.remembered.get(name).cloned(),
                None => matching(&pending, rule).map(|question| question.id.clone()),
            };
            answers.insert(id.ok_or(format!("no question matches {rule}"))?, rule["answer"].clone());
        }
        Ok(answers)
    }

    async fn run_body(&self, action: &Object, thread: Option<&str>) -> Result<Value, String> {
        let mut body = Value::Object(pick(action, &RUN_KEYS));
        body["assistant_id"] = json!(text(action, "graph").unwrap_or(&self.graph));
        if let Some(subgraphs) = action.get("subgraphs") {
            body["stream_subgraphs"] = subgraphs.clone();
        }
        let thread = thread.unwrap_or_default();
        if let Some(rules) = body["command"]["resume"]["$resume_map"].as_array().cloned() {
            body["command"]["resume"] = Value::Object(self.answers(&rules, thread).await?);
        }
        if let Some(reference) = action.get("checkpoint") {
            let mut checkpoint = self.checkpoint(reference, thread).await?;
            if let Some(fields) = checkpoint.as_object_mut() {
                fields.retain(|key, value| key != "thread_id" && !value.is_null());
            }
            body["checkpoint"] = checkpoint;
        }
        Ok(body)
    }

    fn note_run(&mut self, action: &Object, answer: &Answer) {
        let location = answer.headers.get("content-location").and_then(|value| value.to_str().ok());
        let id = location.and_then(|location| location.split("runs/").nth(1)).map(|rest| rest.chars().take(36));
        if let (Some(name), Some(id)) = (text(action, "as"), id) {
            self.runs.insert(name.to_owned(), id.collect());
        }
    }

    async fn act(&mut self, action: &Object) -> Result<Option<Recorded>, String> {
        let client = self.client.clone();
        let name = text(action, "do").unwrap_or_default().to_owned();
        if name == "thread" {
            let answer =
                client.post("/threads", &pick(action, &["metadata", "if_exists", "supersteps", "ttl"]).into()).await;
            if let Some(id) = answer.body["thread_id"].as_str() {
                self.threads.insert(text(action, "as").unwrap_or("t").to_owned(), id.to_owned());
            }
            return Ok(Some((answer.status, thread_view(&answer.body))));
        }
        let thread = self.thread(action);
        let of_thread = |path: &str| thread.as_ref().map_or(path.to_owned(), |id| format!("/threads/{id}{path}"));
        let id = thread.clone().unwrap_or_default();
        match name.as_str() {
            "wait" => {
                let body = self.run_body(action, thread.as_deref()).await?;
                let answer = client.post(&of_thread("/runs/wait"), &body).await;
                self.note_run(action, &answer);
                if thread.is_some() {
                    self.settle(&id).await;
                }
                Ok(Some((answer.status, answer.body)))
            }
            "stream" => {
                let mut body = self.run_body(action, thread.as_deref()).await?;
                let extra = ask_for_checkpoints(&mut body, action);
                let (answer, told) = client.stream(Method::POST, &of_thread("/runs/stream"), Some(&body)).await;
                self.note_run(action, &answer);
                if thread.is_some() {
                    self.settle(&id).await;
                }
                Ok(Some(events(answer, told, extra)))
            }
            "auto" => self.go_on(action, &id).await.map(Some),
            "run" => {
                let body = self.run_body(action, thread.as_deref()).await?;
                let answer = client.post(&of_thread("/runs"), &body).await;
                if let Some(run) = answer.body["run_id"].as_str() {
                    self.runs.insert(text(action, "as").unwrap_or("r").to_owned(), run.to_owned());
                }
                Ok(Some((answer.status, run_view(&answer.body))))
            }
            "store_put" => {
                let body = pick(action, &["namespace", "key", "value"]).into();
                Ok(Some(plain(client.call(Method::PUT, "/store/items", Some(&body)).await)))
            }
            "store_delete" => {
                let body = pick(action, &["namespace", "key"]).into();
                Ok(Some(plain(client.call(Method::DELETE, "/store/items", Some(&body)).await)))
            }
            "store_get" => {
                let namespace = action["namespace"].as_array().into_iter().flatten().filter_map(Value::as_str);
                let namespace = namespace.collect::<Vec<_>>().join(".");
                let key = text(action, "key").unwrap_or_default();
                Ok(Some(plain(client.get(&format!("/store/items?namespace={namespace}&key={key}")).await)))
            }
            "store_search" => {
                let body = pick(action, &["namespace_prefix", "filter", "limit", "offset"]).into();
                let mut answer = client.post("/store/items/search", &body).await;
                if let Some(items) = answer.body["items"].as_array_mut() {
                    items.iter_mut().filter_map(Value::as_object_mut).for_each(|item| {
                        item.remove("score");
                    });
                    items.sort_by_cached_key(super::normalise::blank);
                }
                Ok(Some((answer.status, answer.body)))
            }
            "store_namespaces" => {
                let body = pick(action, &["prefix", "suffix", "max_depth", "limit"]).into();
                let mut answer = client.post("/store/namespaces", &body).await;
                if let Some(list) = answer.body["namespaces"].as_array_mut() {
                    list.sort_by_cached_key(Value::to_string);
                }
                Ok(Some((answer.status, answer.body)))
            }
            "raw" => {
                let path = text(action, "path").unwrap_or_default();
                let mut path = path.replace("{thread}", &id).replace("{run}", &self.run_id(action));
                let params = action.get("params").and_then(Value::as_object).into_iter().flatten();
                let params: Vec<String> = params
                    .map(|(key, value)| {
                        format!("{key}={}", value.as_str().map_or_else(|| value.to_string(), str::to_owned))
                    })
                    .collect();
                if !params.is_empty() {
                    path = format!("{path}?{}", params.join("&"));
                }
                let method = Method::from_bytes(text(action, "method").unwrap_or("GET").as_bytes());
                let method = method.map_err(|error| error.to_string())?;
                Ok(Some(plain(client.call(method, &path, action.get("body")).await)))
            }
            "sleep" => {
                tokio::time::sleep(Duration::from_millis(action["ms"].as_u64().unwrap_or_default())).await;
                Ok(None)
            }
            "save_checkpoint" => {
                let checkpoint = self.checkpoint(&action["checkpoint"], &id).await?;
                self.saved.insert(text(action, "name").unwrap_or_default().to_owned(), checkpoint);
                Ok(None)
            }
            "remember" => {
                let pending = self.pending(&id).await;
                let question = matching(&pending, &Value::Object(action.clone())).ok_or("nothing to remember")?;
                self.remembered.insert(text(action, "name").unwrap_or_default().to_owned(), question.id.clone());
                Ok(None)
            }
            "sdk" => self.by_sdk(action, &id).await.map(Some),
            "state" | "history" | "update_state" | "copy" | "get_thread" | "patch_thread" | "delete_thread" => {
                self.on_thread(&name, action, &id).await.map(Some)
            }
            _ => self.on_run(&name, action, &id).await,
        }
    }

    /// Whatever the thread needs: answers, another go, or an input.
    async fn go_on(&mut self, action: &Object, thread: &str) -> Result<Recorded, String> {
        let state = self.client.get(&format!("/threads/{thread}/state")).await.body;
        let waits = state["next"].as_array().is_some_and(|next| !next.is_empty());
        let pending = if waits { self.pending(thread).await } else { Vec::new() };
        let mut next = pick(action, &RUN_KEYS);
        next.remove("input");
        next.extend(pick(action, &["thread", "graph", "subgraphs"]));
        let verb = if action.contains_key("stream_mode") { "stream" } else { "wait" };
        next.insert("do".to_owned(), json!(verb));
        let mode = text(action, "answer_mode").unwrap_or("all");
        let chose = if !pending.is_empty() && mode != "null" {
            let taken = match mode {
                "first" => &pending[..1],
                "last" => &pending[pending.len() - 1..],
                _ => &pending[..],
            };
            let answer = text(action, "answer").unwrap_or_default();
            let by_id =
                taken.iter().enumerate().map(|(n, question)| (question.id.clone(), json!(format!("{answer}.{n}"))));
            let resume = if mode == "plain" { action["answer"].clone() } else { Value::Object(by_id.collect()) };
            next.insert("command".to_owned(), json!({"resume": resume}));
            "resume"
        } else if waits {
            next.insert("input".to_owned(), Value::Null);
            "null"
        } else {
            next.insert("input".to_owned(), action["input"].clone());
            "input"
        };
        let (status, result) = Box::pin(self.act(&next)).await?.ok_or("nothing recorded")?;
        Ok((status, json!({"chose": chose, "result": result})))
    }

    async fn on_thread(&mut self, name: &str, action: &Object, thread: &str) -> Result<Recorded, String> {
        let client = self.client.clone();
        let path = |rest: &str| format!("/threads/{thread}{rest}");
        Ok(match name {
            "state" => {
                let subgraphs = action.get("subgraphs") == Some(&json!(true));
                plain(match action.get("checkpoint") {
                    Some(reference) => {
                        let checkpoint = self.checkpoint(reference, thread).await?;
                        let body = json!({"checkpoint": checkpoint, "subgraphs": subgraphs});
                        client.post(&path("/state/checkpoint"), &body).await
                    }
                    None => client.get(&path(if subgraphs { "/state?subgraphs=true" } else { "/state" })).await,
                })
            }
            "history" => {
                let limit = action.get("limit").cloned().unwrap_or_else(|| json!(100));
                let mut body = pick(action, &["metadata"]);
                for key in ["before", "checkpoint"] {
                    if let Some(reference) = action.get(key) {
                        body.insert(key.to_owned(), self.checkpoint(reference, thread).await?);
                    }
                }
                let answer = if text(action, "via") == Some("get") {
                    let before = body.get("before").and_then(|before| before["checkpoint_id"].as_str());
                    let before = before.map(|id| format!("&before={id}")).unwrap_or_default();
                    client.get(&path(&format!("/history?limit={limit}{before}"))).await
                } else {
                    body.insert("limit".to_owned(), limit);
                    client.post(&path("/history"), &body.into()).await
                };
                match answer.body.as_array() {
                    Some(rows) if action.get("brief") == Some(&json!(true)) => {
                        (answer.status, rows.iter().map(brief).collect())
                    }
                    _ => plain(answer),
                }
            }
            "update_state" => {
                let mut body = pick(action, &["values", "as_node"]);
                if let Some(reference) = action.get("checkpoint") {
                    body.insert("checkpoint".to_owned(), self.checkpoint(reference, thread).await?);
                }
                let answer = client.post(&path("/state"), &body.into()).await;
                if answer.status != 200 {
                    return Ok(plain(answer));
                }
                if let Some(name) = text(action, "save") {
                    self.saved.insert(name.to_owned(), answer.body["checkpoint"].clone());
                }
                (200, json!({"checkpoint": answer.body["checkpoint"]}))
            }
            "copy" => {
                let answer = client.call(Method::POST, &path("/copy"), None).await;
                if let Some(id) = answer.body["thread_id"].as_str() {
                    self.threads.insert(text(action, "as").unwrap_or("t2").to_owned(), id.to_owned());
                }
                (answer.status, thread_view(&answer.body))
            }
            "get_thread" => {
                let answer = client.get(&path("")).await;
                (answer.status, thread_view(&answer.body))
            }
            "patch_thread" => {
                let body = json!({"metadata": action["metadata"]});
                let answer = client.call(Method::PATCH, &path(""), Some(&body)).await;
                (answer.status, thread_view(&answer.body))
            }
            _ => plain(client.call(Method::DELETE, &path(""), None).await),
        })
    }

    async fn on_run(&self, name: &str, action: &Object, thread: &str) -> Result<Option<Recorded>, String> {
        let client = &self.client;
        let run = format!("/threads/{thread}/runs/{}", self.run_id(action));
        let settles = action.get("settle") != Some(&json!(false));
        Ok(Some(match name {
            "join" => {
                let answer = client.get(&format!("{run}/join")).await;
                if settles {
                    self.settle(thread).await;
                }
                plain(answer)
            }
            "join_stream" => {
                let cursor = text(action, "last_event_id");
                let (answer, told) = client.follow(&format!("{run}/stream"), cursor).await;
                events(answer, told, None)
            }
            "cancel" => {
                let wait = action.get("wait") != Some(&json!(false));
                let kind = text(action, "action").unwrap_or("interrupt");
                let path = format!("{run}/cancel?wait={wait}&action={kind}");
                let answer = client.call(Method::POST, &path, None).await;
                if settles {
                    self.settle(thread).await;
                }
                plain(answer)
            }
            "get_run" => {
                let answer = client.get(&run).await;
                (answer.status, run_view(&answer.body))
            }
            "delete_run" => plain(client.call(Method::DELETE, &run, None).await),
            "list_runs" => {
                let limit = action.get("limit").cloned().unwrap_or_else(|| json!(100));
                let answer = client.get(&format!("/threads/{thread}/runs?limit={limit}")).await;
                let rows = answer.body.as_array().into_iter().flatten();
                (answer.status, rows.map(|row| cut(row, &["status", "multitask_strategy", "run_id"])).collect())
            }
            "await_running" => {
                let end = Instant::now() + PATIENCE;
                while Instant::now() < end {
                    let answer = client.get(&run).await;
                    if answer.status == 200 && answer.body["status"] != "pending" {
                        break;
                    }
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                tokio::time::sleep(Duration::from_millis(action.get("ms").and_then(Value::as_u64).unwrap_or(0))).await;
                return Ok(None);
            }
            unknown => return Err(format!("unknown action {unknown}")),
        }))
    }

    /// What the Python SDK does for these calls; `tests/it/sdk.rs` runs the SDK itself.
    async fn by_sdk(&self, action: &Object, thread: &str) -> Result<Recorded, String> {
        let client = &self.client;
        let mut body = json!({"assistant_id": text(action, "graph").unwrap_or(&self.graph)});
        for key in ["input", "command", "stream_mode"] {
            if let Some(value) = action.get(key) {
                body[key] = value.clone();
            }
        }
        let body = Some(&body);
        let path = |rest: &str| format!("/threads/{thread}{rest}");
        let got = match text(action, "call").unwrap_or_default() {
            "runs.wait" => client.call(Method::POST, &path("/runs/wait"), body).await.body,
            "runs.stream" => {
                let (answer, told) = client.stream(Method::POST, &path("/runs/stream"), body).await;
                events(answer, told, None).1
            }
            "threads.get_state" => client.get(&path("/state")).await.body,
            "threads.get_history" => {
                let limit = action.get("limit").cloned().unwrap_or_else(|| json!(10));
                client.post(&path("/history"), &json!({"limit": limit})).await.body
            }
            "threads.update_state" => {
                let body = pick(action, &["values", "as_node"]).into();
                json!({"checkpoint": client.post(&path("/state"), &body).await.body["checkpoint"]})
            }
            unknown => return Err(format!("unknown call {unknown}")),
        };
        Ok((200, got))
    }
}

fn plain(answer: Answer) -> Recorded {
    (answer.status, answer.body)
}

/// Supersteps are seen by their checkpoints: these are asked for, too, and taken out again.
fn ask_for_checkpoints(body: &mut Value, action: &Object) -> Option<&'static str> {
    let modes = match &body["stream_mode"] {
        Value::Array(modes) => modes.clone(),
        Value::Null => vec![json!("values")],
        mode => vec![mode.clone()],
    };
    let tells = modes.iter().any(|mode| *mode == "checkpoints" || *mode == "debug");
    if action.contains_key("exact_modes") || tells || modes.iter().all(|mode| *mode == "values") {
        return None;
    }
    body["stream_mode"] = modes.into_iter().chain([json!("checkpoints")]).collect();
    Some("checkpoints")
}

fn find_row<'a>(rows: &'a [Value], rule: &Value) -> Result<&'a Value, String> {
    let mut found: Vec<&Value> = rows.iter().filter(|row| matches_row(row, rule)).collect();
    if rule["oldest"] == true {
        found.reverse();
    }
    let nth = rule["nth"].as_u64().unwrap_or(0) as usize;
    found.get(nth).copied().ok_or(format!("no history row matches {rule}"))
}

fn matches_row(row: &Value, rule: &Value) -> bool {
    rule.as_object().into_iter().flatten().all(|(key, wanted)| match key.as_str() {
        "next" => row["next"] == *wanted,
        "step" | "source" => row["metadata"][key] == *wanted,
        "values" => {
            wanted.as_object().into_iter().flatten().all(|(key, wanted)| row["values"].get(key) == Some(wanted))
        }
        _ => true,
    })
}

fn collect_pending(state: &Value, top: Option<&str>, found: &mut Vec<Pending>) {
    for task in state["tasks"].as_array().into_iter().flatten() {
        let name = task["name"].as_str().unwrap_or_default();
        let top = top.unwrap_or(name);
        if task["state"]["tasks"].as_array().is_some_and(|tasks| !tasks.is_empty()) {
            collect_pending(&task["state"], Some(top), found);
            continue;
        }
        for question in task["interrupts"].as_array().into_iter().flatten() {
            found.push(Pending {
                task: name.to_owned(),
                top: top.to_owned(),
                id: question["id"].as_str().unwrap_or_default().to_owned(),
                value: question["value"].clone(),
            });
        }
    }
}

fn matching<'a>(pending: &'a [Pending], rule: &Value) -> Option<&'a Pending> {
    let fits = |question: &&Pending| {
        let is = |key: &str, own: Value| rule.get(key).is_none_or(|wanted| *wanted == own);
        is("task", json!(question.task)) && is("top", json!(question.top)) && is("value", question.value.clone())
    };
    pending.iter().filter(fits).nth(rule["nth"].as_u64().unwrap_or(0) as usize)
}

fn thread_view(body: &Value) -> Value {
    if body.get("thread_id").is_none() {
        return body.clone();
    }
    let keys = ["thread_id", "status", "metadata", "values", "interrupts", "error"];
    let mut view: Object = keys.iter().map(|key| ((*key).to_owned(), body[*key].clone())).collect();
    if view["interrupts"].is_null() {
        view.insert("interrupts".to_owned(), json!({}));
    }
    Value::Object(view)
}

fn run_view(body: &Value) -> Value {
    if body.get("run_id").is_none() {
        return body.clone();
    }
    cut(body, &["status", "multitask_strategy", "run_id", "thread_id"])
}

fn brief(row: &Value) -> Value {
    let tasks = row["tasks"].as_array().into_iter().flatten();
    let of_task = |task: &Value| {
        let keys = ["name", "path", "error", "interrupts", "result"];
        Value::Object(keys.iter().map(|key| ((*key).to_owned(), task[*key].clone())).collect())
    };
    json!({
        "next": row["next"],
        "values": row["values"],
        "step": row["metadata"]["step"],
        "source": row["metadata"]["source"],
        "checkpoint_id": row["checkpoint"]["checkpoint_id"],
        "parent": row["parent_checkpoint"]["checkpoint_id"],
        "tasks": tasks.map(of_task).collect::<Value>(),
    })
}
