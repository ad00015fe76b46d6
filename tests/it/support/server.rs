//! A server inside the test process: the router on a free port, over a database in memory, with the shipped graphs.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use reqwest::Method;
use reqwest::header::HeaderMap;
use serde_json::{Value, json};
use session_store::clock::Clock;
use session_store::config::{LogConfig, LogFormat};
use session_store::graph::Graph;
use session_store::graphs;
use session_store::http::{HttpSettings, router};
use session_store::memory::Memory;
use session_store::model::{Durability, Ttl, TtlStrategy};
use session_store::runtime::{CronSettings, ItemSettings, Runtime, Settings, WebhookSettings};
use session_store::storage::SharedStorage;
use session_store::storage::connect::{ConnectOptions, connect};
use session_store::telemetry;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::described;

/// How long anything may take on a busy machine before a test gives up.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running server; it ends with this value.
pub(crate) struct TestServer {
    pub(crate) url: String,
    /// What is behind the routes.
    pub(crate) runtime: Runtime,
    client: reqwest::Client,
    _stop: DropGuard,
}

impl Drop for TestServer {
    fn drop(&mut self) {
        // At the end of every test: what the detector saw last.
        if !std::thread::panicking() && self.runtime.settings().claims {
            assert_eq!(self.runtime.stuck_runs(), [], "runs that nothing moves");
        }
    }
}

/// A response, read whole.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

/// One frame of an event stream.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Frame {
    pub(crate) event: String,
    pub(crate) data: Value,
    pub(crate) id: Option<String>,
}

impl TestServer {
    pub(crate) async fn start() -> TestServer {
        TestServer::with(HttpSettings { body_limit: 1_000_000, ..HttpSettings::default() }).await
    }

    pub(crate) async fn with(settings: HttpSettings) -> TestServer {
        TestServer::serving(settings, shipped()).await
    }

    /// A server whose runtime is set otherwise, too.
    pub(crate) async fn with_runtime(settings: HttpSettings, runtime: Settings) -> TestServer {
        let storage = connect("memory", &ConnectOptions::default()).await.expect("a database in memory");
        TestServer::run(storage, settings, runtime, shipped()).await
    }

    /// [`TestServer::with_runtime`] of other graphs, over a database that others may use, too.
    pub(crate) async fn set(storage: SharedStorage, runtime: Settings, graphs: Vec<Graph>) -> TestServer {
        TestServer::run(storage, HttpSettings::default(), runtime, graphs).await
    }

    /// A server of other graphs.
    pub(crate) async fn serving(settings: HttpSettings, graphs: Vec<Graph>) -> TestServer {
        let storage = connect("memory", &ConnectOptions::default()).await.expect("a database in memory");
        TestServer::over(storage, settings, graphs).await
    }

    /// A server that deletes threads when nobody has used them for this long.
    pub(crate) async fn keeping_for(time: Duration) -> TestServer {
        let storage = connect("memory", &ConnectOptions::default()).await.expect("a database in memory");
        let ttl = Ttl::of_minutes(TtlStrategy::Delete, time.as_secs_f64() / 60.0);
        let settings = Settings { default_ttl: Some(ttl), ..runtime_settings() };
        TestServer::run(storage, HttpSettings::default(), settings, shipped()).await
    }

    /// A server over a database that others may use, too.
    pub(crate) async fn over(storage: SharedStorage, settings: HttpSettings, graphs: Vec<Graph>) -> TestServer {
        TestServer::run(storage, settings, runtime_settings(), graphs).await
    }

    async fn run(
        storage: SharedStorage,
        settings: HttpSettings,
        runtime_settings: Settings,
        graphs: Vec<Graph>,
    ) -> TestServer {
        log_what_goes_wrong();
        storage.migrate().await.expect("migrates");
        let runtime = Runtime::new(storage, graphs, Clock::default(), runtime_settings);
        runtime.start();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let stop = CancellationToken::new();
        let routes = router(runtime.clone(), HttpSettings { shutdown: stop.clone(), ..settings });
        let stopped = stop.clone().cancelled_owned();
        tokio::spawn(async move { axum::serve(listener, routes).with_graceful_shutdown(stopped).await });
        let client = reqwest::Client::builder().timeout(PATIENCE).build().expect("a client");
        TestServer { url, runtime, client, _stop: stop.drop_guard() }
    }

    /// Sends a body as it is, without a Content-Type.
    pub(crate) async fn send(&self, method: &str, path: &str, body: impl Into<Bytes>) -> Answer {
        let body = body.into();
        let name = Method::from_bytes(method.as_bytes()).expect("a method");
        let request = self.client.request(name, format!("{}{path}", self.url)).body(body.clone());
        Answer::of(request.send().await.expect("an answer")).await.described(method, path, &body)
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, "").await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        self.send("POST", path, body.to_string()).await
    }

    /// Bytes there and back.
    pub(crate) async fn send_bytes(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Vec<u8>,
    ) -> (u16, Vec<u8>) {
        let method = reqwest::Method::from_bytes(method.as_bytes()).expect("a method");
        let mut request = reqwest::Client::new().request(method, format!("{}{path}", self.url)).body(body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = request.send().await.expect("an answer");
        (response.status().as_u16(), response.bytes().await.expect("a body").to_vec())
    }

    /// Sends a body with headers of the test's own.
    pub(crate) async fn send_with(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        let verb = Method::from_bytes(method.as_bytes()).expect("a method");
        let mut request = self.client.request(verb, format!("{}{path}", self.url)).body(body.to_owned());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Answer::of(request.send().await.expect("an answer")).await.described(method, path, body.as_bytes())
    }

    /// Asks until it holds. A deadline, not a pace.
    pub(crate) async fn until(&self, what: &str, mut holds: impl AsyncFnMut() -> bool) {
        let started = std::time::Instant::now();
        while !holds().await {
            assert!(started.elapsed() < PATIENCE, "never happened: {what}");
            tokio::task::yield_now().await;
        }
    }

    /// [`TestServer::post`] by somebody.
    pub(crate) async fn post_as(&self, actor: &str, path: &str, body: Value) -> Answer {
        self.send_with("POST", path, &[("x-actor", actor)], &body.to_string()).await
    }

    /// A new thread's id.
    pub(crate) async fn thread(&self) -> String {
        let thread = self.post("/threads", json!({})).await.ok();
        thread["thread_id"].as_str().expect("an id").to_owned()
    }

    /// Sends a request and listens to its event stream for as long as the test likes.
    pub(crate) async fn listen(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Value) -> Listener {
        let method = Method::from_bytes(method.as_bytes()).expect("a method");
        let mut request = self.client.request(method, format!("{}{path}", self.url)).body(body.to_string());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = request.send().await.expect("an answer");
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream; charset=utf-8");
        Listener { chunks: response.bytes_stream().boxed(), text: String::new(), heartbeats: 0 }
    }

    /// Sends a request and reads its event stream to the end.
    pub(crate) async fn frames(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Value) -> Vec<Frame> {
        let method = Method::from_bytes(method.as_bytes()).expect("a method");
        let mut request = self.client.request(method, format!("{}{path}", self.url)).body(body.to_string());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = request.send().await.expect("an answer");
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream; charset=utf-8");
        let mut chunks = response.bytes_stream();
        let mut text = String::new();
        while let Some(chunk) = chunks.next().await {
            text.push_str(std::str::from_utf8(&chunk.expect("a chunk")).expect("UTF-8"));
        }
        text.split("\n\n").filter(|frame| !frame.is_empty() && !frame.starts_with(':')).map(Frame::parse).collect()
    }
}

/// An open event stream.
pub(crate) struct Listener {
    chunks: BoxStream<'static, reqwest::Result<Bytes>>,
    text: String,
    /// Heartbeats heard so far.
    pub(crate) heartbeats: usize,
}

impl Listener {
    /// The next frame; `None` at the end of the stream.
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some((frame, rest)) = self.text.split_once("\n\n") {
                let frame = (!frame.starts_with(':')).then(|| Frame::parse(frame));
                self.text = rest.to_owned();
                match frame {
                    Some(frame) => return Some(frame),
                    None => self.heartbeats += 1,
                }
                continue;
            }
            let chunk = self.chunks.next().await?.expect("a chunk in time");
            self.text.push_str(std::str::from_utf8(&chunk).expect("UTF-8"));
        }
    }

    /// Frames up to and with the first that `is_last`.
    pub(crate) async fn until(&mut self, is_last: impl Fn(&Frame) -> bool) -> Vec<Frame> {
        let mut frames = Vec::new();
        loop {
            let frame = self.next().await.unwrap_or_else(|| panic!("the stream ended after {frames:?}"));
            let was_last = is_last(&frame);
            frames.push(frame);
            if was_last {
                return frames;
            }
        }
    }
}

impl Answer {
    async fn of(response: reqwest::Response) -> Answer {
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Answer { status, headers, text: response.text().await.expect("a body") }
    }

    /// The same answer, which is one that `/openapi.json` allows.
    fn described(self, method: &str, path: &str, body: &[u8]) -> Answer {
        let (body, kind) = (String::from_utf8_lossy(body), self.header("content-type"));
        described::check(method, path, &body, self.status, kind, &self.text);
        self
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The body of an answer with the status 200.
    #[track_caller]
    pub(crate) fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{self:?}");
        self.json()
    }

    /// The text of a refusal with this status.
    #[track_caller]
    pub(crate) fn refused(&self, status: u16) -> String {
        assert_eq!(self.status, status, "{self:?}");
        self.json()["detail"].as_str().unwrap_or_else(|| panic!("no detail: {self:?}")).to_owned()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

impl Frame {
    fn parse(text: &str) -> Frame {
        let mut frame = Frame { event: String::new(), data: Value::Null, id: None };
        for line in text.lines() {
            let (field, value) = line.split_once(": ").unwrap_or_else(|| panic!("a line without a field: {text}"));
            match field {
                "event" => frame.event = value.to_owned(),
                "data" => frame.data = serde_json::from_str(value).expect("data is JSON on one line"),
                "id" => frame.id = Some(value.to_owned()),
                other => panic!("unknown field {other}: {text}"),
            }
        }
        frame
    }
}

fn shipped() -> Vec<Graph> {
    graphs::all().into_iter().map(|graph| graph.expect("a shipped graph")).collect()
}

pub(crate) fn runtime_settings() -> Settings {
    Settings {
        worker: "test".into(),
        concurrency: 8,
        lease: Duration::from_secs(4),
        renew_every: Duration::from_secs(1),
        poll_every: Duration::from_millis(200),
        max_attempts: 3,
        stuck_after: Duration::from_secs(10),
        run_timeout: Duration::from_secs(60),
        recursion_limit: 10_007,
        durability: Durability::Async,
        default_ttl: None,
        sweep_every: Duration::from_millis(50),
        cache_bytes: 1_000_000,
        task_log: true,
        prices: std::collections::BTreeMap::new(),
        memory: Arc::new(Memory::unlimited()),
        claims: true,
        crons: CronSettings { poll_every: Duration::from_millis(200), ..CronSettings::default() },
        webhooks: WebhookSettings::default(),
        items: ItemSettings::default(),
    }
}

/// What the server warns of stands beside a test that fails.
fn log_what_goes_wrong() {
    let log = LogConfig { filter: "warn".into(), format: LogFormat::Text };
    telemetry::init(&log).expect("a filter");
}
