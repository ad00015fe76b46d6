//! Webhooks, as the receiver and the operator see them.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use session_store::http::HttpSettings;
use session_store::runtime::webhooks::WebhookSecrets;
use session_store::runtime::{Settings, WebhookPolicy, WebhookSettings};

use crate::support::receiver::{Receiver, SECRET};
use crate::support::server::{TestServer, runtime_settings};

/// A server that may tell receivers on this machine.
pub(super) async fn server(max_attempts: i32) -> TestServer {
    server_with(max_attempts, runtime_settings()).await
}

async fn server_with(max_attempts: i32, settings: Settings) -> TestServer {
    let webhooks = WebhookSettings {
        policy: WebhookPolicy { allow_private: true, ..WebhookPolicy::default() },
        secrets: WebhookSecrets::parse(SECRET).expect("valid"),
        max_attempts,
        ..WebhookSettings::default()
    };
    TestServer::with_runtime(HttpSettings::default(), Settings { webhooks, ..settings }).await
}

async fn eventually(what: &str, mut look: impl AsyncFnMut() -> Option<Value>) -> Value {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The webhooks of a state, once there are `count`.
async fn listed(server: &TestServer, state: &str, count: usize) -> Value {
    eventually(&format!("{count} webhooks are {state}"), async || {
        let found = server.get(&format!("/webhooks?state={state}")).await.ok();
        (found.as_array().map(Vec::len) == Some(count)).then_some(found)
    })
    .await
}

#[tokio::test]
async fn the_end_of_a_run_is_told_signed() {
    let mut receiver = Receiver::start().await;
    let server = server(3).await;
    let id = server.thread().await;
    receiver.answer(200);
    let run = json!({"assistant_id": "counter", "input": {"counter": 0}, "webhook": receiver.url});
    assert_eq!(server.post(&format!("/threads/{id}/runs/wait"), run).await.ok(), json!({"counter": 3}));
    let delivery = receiver.next().await;
    delivery.verify();
    let body = delivery.json();
    let run_id = body["run_id"].as_str().expect("an id");
    assert_eq!(delivery.header("webhook-id"), format!("msg_{}", run_id.replace('-', "")));
    assert_eq!(delivery.header("content-type"), "application/json");
    let run = server.get(&format!("/threads/{id}/runs/{run_id}")).await.ok();
    for field in
        ["run_id", "thread_id", "assistant_id", "created_at", "status", "metadata", "kwargs", "multitask_strategy"]
    {
        assert_eq!(body[field], run[field], "{field}");
    }
    assert_eq!((&body["values"], &body["error"]), (&json!({"counter": 3}), &Value::Null));
    let times: Vec<&str> = ["created_at", "run_started_at", "run_ended_at", "webhook_sent_at"]
        .iter()
        .map(|field| body[field].as_str().unwrap_or_else(|| panic!("no {field}")))
        .collect();
    assert!(times.is_sorted(), "{times:?}");
    listed(&server, "due", 0).await;
    assert!(receiver.is_empty());
}

#[tokio::test]
async fn interrupts_failures_and_runs_without_a_thread_are_told() {
    let mut receiver = Receiver::start().await;
    let server = server(3).await;
    (0..3).for_each(|_| receiver.answer(204));
    let asks = json!({"assistant_id": "approval", "input": {"topic": "tea"}, "webhook": receiver.url});
    server.post("/threads/order-1/runs/wait", asks).await.ok();
    let body = receiver.next().await.json();
    assert_eq!((&body["status"], &body["values"]["topic"]), (&json!("success"), &json!("tea")));
    assert!(body["values"].get("__interrupt__").is_none(), "{body}");
    let fails = json!({"assistant_id": "counter", "input": {"counter": "x"}, "webhook": receiver.url});
    server.post("/threads/order-2/runs/wait", fails).await.ok();
    let body = receiver.next().await.json();
    assert_eq!(body["status"], "error");
    assert!(body["error"]["error"].is_string() && body["error"]["message"].is_string(), "{body}");
    let temporary = json!({"assistant_id": "counter", "input": {"counter": 1}, "webhook": receiver.url});
    server.post("/runs/wait", temporary).await.ok();
    assert_eq!(receiver.next().await.json()["values"], json!({"counter": 3}));
}

#[tokio::test]
async fn failures_are_tried_again_then_dead_then_redriven() {
    let mut receiver = Receiver::start().await;
    let server = server(1).await;
    // A redirect is a failure: nothing follows it.
    receiver.answer(307);
    let run = json!({"assistant_id": "counter", "input": {"counter": 0}, "webhook": receiver.url});
    let started = Instant::now();
    server.post("/runs/wait", run).await.ok();
    assert!(started.elapsed() < Duration::from_secs(10), "the run does not wait for its webhook");
    let first = receiver.next().await;
    let dead = listed(&server, "dead", 1).await;
    assert_eq!((&dead[0]["attempts"], &dead[0]["url"]), (&json!(1), &json!(receiver.url)));
    assert!(dead[0]["last_error"].as_str().is_some_and(|error| error.contains("307")), "{dead}");
    receiver.answer(200);
    assert_eq!(server.post("/webhooks/redrive", json!({})).await.ok(), json!({"redriven": 1}));
    let second = receiver.next().await;
    second.verify();
    assert_eq!(second.header("webhook-id"), first.header("webhook-id"), "the receiver can tell that it is the same");
    listed(&server, "dead", 0).await;
    assert_eq!(server.post("/webhooks/redrive", json!({"run_ids": []})).await.ok(), json!({"redriven": 0}));
    server.post("/webhooks/redrive", json!({"run_ids": ["x"]})).await.refused(422);
    server.get("/webhooks?state=lost").await.refused(422);
}

#[tokio::test]
async fn a_receiver_that_is_busy_is_asked_again() {
    let mut receiver = Receiver::start().await;
    let server = server(3).await;
    receiver.answer(503);
    let run = json!({"assistant_id": "counter", "input": {"counter": 0}, "webhook": receiver.url});
    server.post("/runs/wait", run).await.ok();
    receiver.next().await.verify();
    receiver.answer(200);
    // Five seconds later, with jitter.
    receiver.next().await.verify();
    listed(&server, "due", 0).await;
    listed(&server, "dead", 0).await;
}

#[tokio::test]
async fn targets_that_are_not_allowed_are_refused_at_once() {
    let server = TestServer::start().await;
    for url in [
        "http://127.0.0.1:9/hook",
        "http://localhost/hook",
        "http://2130706433/",
        "http://[::ffff:10.0.0.1]/",
        "http://169.254.169.254/latest/meta-data",
        "/relative",
        "",
        &format!("https://example.com/{}", "x".repeat(4096)),
    ] {
        let run = json!({"assistant_id": "counter", "input": {"counter": 0}, "webhook": url});
        let text = server.post("/threads/user-42/runs", run).await.refused(422);
        assert!(text.starts_with("webhook: "), "{text}");
    }
    server.get("/threads/user-42").await.refused(404);
}

#[tokio::test]
async fn a_run_that_takes_too_long_ends_as_timeout_and_is_told_so() {
    let mut receiver = Receiver::start().await;
    receiver.answer(200);
    let settings = Settings { run_timeout: Duration::from_millis(200), ..runtime_settings() };
    let server = server_with(3, settings).await;
    let run =
        json!({"assistant_id": "slow", "input": {"n": 0, "steps": 10_000, "sleep_ms": 20}, "webhook": receiver.url});
    let answer = server.post("/threads/t/runs/wait", run).await.ok();
    let error = answer["__error__"].clone();
    assert!(error["error"].is_string() && error["message"].is_string(), "{answer}");
    let runs = server.get("/threads/t/runs?status=timeout").await.ok();
    let run = &runs[0];
    assert_eq!((runs.as_array().map(Vec::len), &run["status"]), (Some(1), &json!("timeout")));
    let thread = server.get("/threads/t").await.ok();
    assert_eq!((&thread["status"], &thread["error"]), (&json!("error"), &error));
    let told = receiver.next().await.json();
    assert_eq!((&told["run_id"], &told["status"]), (&run["run_id"], &json!("timeout")), "{told}");
    let again = server.get(&format!("/threads/t/runs/{}/join", run["run_id"].as_str().expect("an id"))).await.ok();
    assert_eq!(again["__error__"], error);
}
