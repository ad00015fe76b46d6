//! The layer as a whole, without a network and in front of a storage that cannot be reached.

mod described;
pub(super) mod spy;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Request};
use futures_util::StreamExt;
use futures_util::stream;
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use uuid::Uuid;

use super::error::ApiError;
use super::sse::{self, EventFilter};
use super::{ApiKey, AppState, HttpSettings, keepalive, router};
use crate::clock::Clock;
use crate::graph::Graph;
use crate::memory::Memory;
use crate::model::{Durability, Event, Json};
use crate::runtime::{Runtime, Settings};
use crate::storage::SharedStorage;
use crate::storage::nowhere::Nowhere;

fn runtime() -> Runtime {
    runtime_over(Arc::new(Nowhere(())), Vec::new())
}

fn runtime_over(storage: SharedStorage, graphs: Vec<Graph>) -> Runtime {
    let settings = Settings {
        worker: "test".into(),
        concurrency: 1,
        lease: Duration::from_secs(4),
        renew_every: Duration::from_secs(1),
        poll_every: Duration::from_secs(1),
        max_attempts: 3,
        stuck_after: Duration::from_secs(30),
        run_timeout: Duration::from_secs(60),
        recursion_limit: 25,
        durability: Durability::Sync,
        prices: std::collections::BTreeMap::new(),
        memory: Arc::new(Memory::unlimited()),
        claims: false,
        crons: crate::runtime::CronSettings::default(),
        default_ttl: None,
        sweep_every: Duration::from_secs(60),
        webhooks: crate::runtime::WebhookSettings::default(),
        items: crate::runtime::ItemSettings::default(),
        cache_bytes: 0,
        task_log: true,
    };
    Runtime::new(storage, graphs, Clock::default(), settings)
}

fn settings() -> HttpSettings {
    HttpSettings { body_limit: 100_000, ..HttpSettings::default() }
}

fn app() -> Router {
    router(runtime(), settings())
}

struct Answer {
    status: u16,
    headers: HeaderMap,
    text: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    fn detail(&self) -> String {
        self.json()["detail"].as_str().unwrap_or_else(|| panic!("no detail: {}", self.text)).to_owned()
    }
}

async fn send(app: &Router, request: Request<Body>) -> Answer {
    let response = app.clone().oneshot(request).await.expect("infallible");
    let (parts, body) = response.into_parts();
    let bytes = to_bytes(body, usize::MAX).await.expect("a body");
    let text = String::from_utf8(bytes.to_vec()).expect("UTF-8");
    Answer { status: parts.status.as_u16(), headers: parts.headers, text }
}

async fn ask(method: &str, uri: &str, body: impl Into<Body>) -> Answer {
    let request = Request::builder().method(method).uri(uri).body(body.into()).expect("a request");
    send(&app(), request).await
}

#[tokio::test]
async fn unknown_paths_and_methods_are_told_apart() {
    let answer = ask("GET", "/nope", "").await;
    assert_eq!((answer.status, answer.detail().as_str()), (404, "Not Found"));
    let answer = ask("PUT", "/threads", "").await;
    assert_eq!((answer.status, answer.detail().as_str()), (405, "Method Not Allowed"));
    assert_eq!(answer.headers["allow"], "POST");
    let answer = ask("DELETE", "/threads/x/runs/y/cancel", "").await;
    assert_eq!((answer.status, answer.headers["allow"].as_bytes()), (405, &b"POST"[..]));
}

#[tokio::test]
async fn what_is_malformed_is_refused_before_anything_is_asked() {
    let run = Uuid::nil();
    let deep = format!("{{\"input\":{}{}}}", "[".repeat(10_000), "]".repeat(10_000));
    let runs = "/threads/t/runs/wait";
    for (method, uri, body, why) in [
        ("POST", runs, "{", "Invalid JSON in request body"),
        ("POST", runs, "[]", "expected an object, got an array"),
        ("POST", runs, deep.as_str(), "nesting deeper"),
        ("POST", runs, r#"{"input":1e400}"#, "out of range"),
        ("POST", runs, r#"{"input":"\ud800"}"#, "lone surrogate"),
        ("POST", runs, r#"{"input":{"a\u0000b":1}}"#, "NUL"),
        ("POST", runs, r#"{"assistant_id":7}"#, "assistant_id: expected a string, got an integer"),
        ("POST", runs, r#"{"stream_mode":"lifecycle"}"#, "stream_mode: expected one of"),
        ("POST", runs, r#"{"multitask_strategy":"x"}"#, "multitask_strategy: expected one of"),
        ("POST", runs, r#"{"config":{"recursion_limit":"x"}}"#, "config.recursion_limit"),
        ("POST", runs, r#"{"after_seconds":-1}"#, "after_seconds"),
        ("POST", runs, r#"{"metadata":[]}"#, "metadata: expected an object, got an array"),
        ("POST", runs, r#"{"checkpoint_id":"x"}"#, "checkpoint_id: must be a UUID"),
        ("POST", "/runs/batch", "{}", "expected an array"),
        ("POST", "/runs/batch", "[{}]", "[0].assistant_id: field required"),
        ("POST", "/runs/batch", r#"[{"stream_mode":1}]"#, "[0].stream_mode"),
        ("POST", "/runs/cancel", "{}", "either status"),
        ("GET", "/threads/a%20b", "", "Invalid thread ID"),
        ("GET", "/threads/a%00b", "", "Invalid thread ID"),
        ("GET", "/threads/%ff", "", "Invalid path"),
        ("GET", "/threads/t/runs/nope", "", "Invalid run ID: must be a UUID"),
        ("GET", "/threads/t/state/a%00b", "", "checkpoint_id"),
        ("GET", "/assistants/nope", "", "Invalid assistant ID: must be a UUID"),
        ("GET", "/threads/t/runs?limit=0", "", "limit: must be between 1 and 1000, got 0"),
        ("GET", "/threads/t/runs?limit=x", "", "limit: expected an integer"),
        ("GET", "/threads/t/runs?select=nope", "", "select"),
        ("GET", "/threads/t/history?limit=1001", "", "limit"),
        ("POST", "/threads", r#"{"thread_id":"a/b"}"#, "Invalid thread ID"),
        ("POST", "/threads", r#"{"thread_id":7}"#, "thread_id: expected a string"),
        ("POST", "/threads", r#"{"metadata":{"graph_id":"a\u0000"}}"#, "NUL"),
        ("POST", "/threads/search", r#"{"limit":"x"}"#, "limit: expected an integer, got a string"),
        ("POST", "/threads/search", r#"{"offset":-1}"#, "offset"),
        ("POST", "/threads/search", r#"{"status":"x"}"#, "status: expected one of"),
        ("POST", "/threads/t/state", r#"{"values":"x"}"#, "values: expected an object, an array or null"),
        ("POST", "/threads/t/state/checkpoint", "{}", "checkpoint: field required"),
        ("PUT", "/store/items", r#"{"namespace":["a"],"key":"k"}"#, "value: field required"),
        ("PUT", "/store/items", r#"{"namespace":["a"],"key":"a\u0000","value":{}}"#, "NUL"),
    ] {
        let answer = ask(method, uri, body.to_owned()).await;
        assert_eq!(answer.status, 422, "{method} {uri} {:.80}: {}", body, answer.text);
        assert!(answer.detail().contains(why), "{method} {uri} {:.80}: {}", body, answer.text);
    }
    let answer = ask("GET", &format!("/threads/t/runs/{run}/stream?stream_mode=nope"), "").await;
    assert_eq!(answer.status, 422);
}

#[tokio::test]
async fn labels_keys_and_contradictions_have_their_own_answers() {
    let answer = ask("PUT", "/store/items", r#"{"namespace":["a.b"],"key":"k","value":{}}"#).await;
    assert_eq!(answer.status, 422);
    assert!(answer.headers["content-type"].as_bytes().starts_with(b"text/plain"), "{:?}", answer.headers);
    let answer = ask("GET", "/store/items?namespace=a", "").await;
    assert_eq!((answer.status, answer.text.as_str()), (400, r#"{"error":"Key is required"}"#));
    let answer = ask("GET", "/store/items?namespace=a&key=k", "").await;
    assert_eq!((answer.status, answer.text.as_str()), (200, "null"));
    let answer = ask("POST", "/runs/wait", r#"{"command":{"resume":1}}"#).await;
    assert_eq!((answer.status, answer.detail().as_str()), (400, "You must provide a thread_id when resuming."));
    let both = r#"{"config":{"configurable":{"a":1}},"context":{"b":1}}"#;
    assert_eq!(ask("POST", "/runs/wait", both).await.status, 400);
    let answer = ask("POST", "/runs/cancel", r#"{"status":"all"}"#).await;
    assert_eq!((answer.status, answer.detail().as_str()), (404, "No runs found to cancel."));
    let answer = ask("DELETE", &format!("/threads/t/runs/{}", Uuid::nil()), "").await;
    assert_eq!(answer.status, 409);
}

#[tokio::test]
async fn bodies_over_the_limit_are_refused_unread_or_on_the_way() {
    let announced =
        Request::post("/threads").header("content-length", "100001").body(Body::empty()).expect("a request");
    let answer = send(&app(), announced).await;
    assert_eq!(answer.status, 413);
    assert!(answer.detail().contains("100000 bytes"), "{}", answer.text);
    let chunks = stream::iter((0..200).map(|_| Ok::<_, std::io::Error>(vec![b' '; 1000])));
    let answer = ask("POST", "/threads", Body::from_stream(chunks)).await;
    assert_eq!(answer.status, 413, "{}", answer.text);
}

#[tokio::test]
async fn an_unreachable_storage_is_503_and_a_panic_is_500_and_neither_tells_secrets() {
    let answer = ask("POST", "/threads", "{}").await;
    assert_eq!((answer.status, answer.headers["retry-after"].as_bytes()), (503, &b"1"[..]));
    assert!(!answer.text.contains("secret"), "{}", answer.text);
    let answer = ask("GET", "/ok?check_db=1", "").await;
    assert_eq!((answer.status, answer.json()["services"]["database"].as_str()), (503, Some("unhealthy")));
    let answer = ask("DELETE", "/threads/panic", "").await;
    assert_eq!(answer.status, 500);
    assert!(answer.detail().contains("error id") && !answer.text.contains("secret"), "{}", answer.text);
    assert_eq!(ask("GET", "/ok", "").await.json()["ok"], true);
}

#[tokio::test]
async fn keys_open_the_server_and_health_stays_open() {
    let app = router(runtime(), HttpSettings { api_keys: vec![ApiKey::new("k")], ..settings() });
    let get = |uri: &str, key: Option<&str>| {
        let request = Request::get(uri);
        let request = key.into_iter().fold(request, |request, key| request.header("x-api-key", key));
        request.body(Body::empty()).expect("a request")
    };
    for (uri, key, want) in [
        ("/ok", None, 200),
        ("/info/", None, 200),
        ("/graphs", None, 401),
        ("/graphs", Some("wrong"), 403),
        ("/graphs", Some("k"), 200),
        ("/nope", None, 401),
    ] {
        assert_eq!(send(&app, get(uri, key)).await.status, want, "{uri} {key:?}");
    }
    let preflight =
        Request::options("/threads").header("origin", "http://x").header("access-control-request-method", "POST");
    let private = preflight.header("access-control-request-private-network", "true");
    let answer = send(&app, private.body(Body::empty()).expect("a request")).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.headers["access-control-allow-private-network"], "true");
}

#[tokio::test]
async fn every_answer_carries_a_request_id_and_cors_headers() {
    let named = Request::get("/ok").header("x-request-id", "abc").header("origin", "http://x");
    let answer = send(&app(), named.body(Body::empty()).expect("a request")).await;
    assert_eq!(answer.headers["x-request-id"], "abc");
    assert_eq!(answer.headers["access-control-allow-origin"], "*");
    let varies = answer.headers["vary"].to_str().expect("text").to_owned();
    assert!(varies.split(", ").any(|header| header == "origin"), "{varies}");
    let exposed = answer.headers["access-control-expose-headers"].to_str().expect("text").to_owned();
    for name in ["x-pagination-total", "x-pagination-next", "content-location", "location"] {
        assert!(exposed.split(',').any(|header| header == name), "{exposed}");
    }
    let long = Request::get("/nope").header("x-request-id", "x".repeat(1000));
    let answer = send(&app(), long.body(Body::empty()).expect("a request")).await;
    assert!(Uuid::try_parse(answer.headers["x-request-id"].to_str().expect("text")).is_ok());
    assert_eq!(ask("HEAD", "/ok", "").await.status, 200);
}

#[tokio::test]
async fn pretty_slashes_and_content_types_do_not_matter() {
    let answer = ask("GET", "/ok/?pretty", "").await;
    assert_eq!(answer.text, "{\n  \"ok\": true,\n  \"services\": {},\n  \"volatile\": true\n}\n");
    let answer = ask("GET", "/nope?pretty=1", "").await;
    assert_eq!(answer.text, "{\n  \"detail\": \"Not Found\"\n}\n");
    let typed = Request::post("/store/namespaces").header("content-type", "text/plain").body(Body::from("{}"));
    let answer = send(&app(), typed.expect("a request")).await;
    assert_eq!((answer.status, answer.text.as_str()), (200, r#"{"namespaces":[["a","b"]]}"#));
    let answer = ask("POST", "/threads/search", "").await;
    assert_eq!((answer.status, answer.text.as_str()), (200, "[]"));
    assert_eq!(answer.headers["x-pagination-total"], "0");
}

fn state(shutdown: &CancellationToken) -> AppState {
    let settings = HttpSettings { heartbeat: Duration::from_millis(10), shutdown: shutdown.clone(), ..settings() };
    let requests = Arc::new(super::metrics::Requests::of(std::iter::empty()));
    AppState { runtime: runtime(), settings: Arc::new(settings), requests }
}

#[tokio::test]
async fn long_answers_send_newlines_then_json_and_failures_are_inside() {
    let state = state(&CancellationToken::new());
    let slow = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        Ok(Json::from(1))
    };
    let body = keepalive::respond(&state, false, slow).into_body();
    let body = to_bytes(body, usize::MAX).await.expect("a body");
    assert!(body.starts_with(b"\n") && body.ends_with(b"\n1"), "{body:?}");
    let failed = keepalive::respond(&state, false, async { Err(ApiError::run_not_found()) });
    assert_eq!(failed.status(), 200);
    let body = to_bytes(failed.into_body(), usize::MAX).await.expect("a body");
    assert_eq!(body, r#"{"__error__":{"error":"HTTPException","message":"404: Run not found"}}"#);
}

#[tokio::test]
async fn streams_beat_while_idle_and_end_when_the_server_stops() {
    let shutdown = CancellationToken::new();
    let state = state(&shutdown);
    let event = Event { id: None, run_id: Uuid::nil(), name: "values".into(), data: Json::from(1) };
    let events = stream::iter([event]).chain(stream::pending()).boxed();
    let response = sse::respond(&state, events, EventFilter::default());
    assert_eq!(response.headers()["content-type"], "text/event-stream; charset=utf-8");
    assert_eq!(response.headers()["cache-control"], "no-store");
    let mut frames = response.into_body().into_data_stream();
    assert_eq!(frames.next().await.expect("a frame").expect("sent"), "event: values\ndata: 1\n\n");
    assert_eq!(frames.next().await.expect("a frame").expect("sent"), ": heartbeat\n\n");
    shutdown.cancel();
    assert!(frames.next().await.is_none());
}
