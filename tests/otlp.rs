//! Traces over OTLP, seen from a collector: `cargo test --features otlp --test otlp`. A binary of its own, since it needs the
//! feature.

#![expect(clippy::unwrap_used, reason = "tests panic")]

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

struct Server {
    process: Child,
    url: String,
    home: tempfile::TempDir,
}

impl Server {
    /// The server as a process, whose spans go to `endpoint`.
    fn start(endpoint: &str) -> Server {
        let home = tempfile::tempdir().unwrap();
        let mut process = Command::new(env!("CARGO_BIN_EXE_session-store"))
            .current_dir(home.path())
            .env("SESSION_STORE__SERVER__LISTEN", "127.0.0.1:0")
            .env("SESSION_STORE__TELEMETRY__OTLP_ENDPOINT", endpoint)
            .env("SESSION_STORE__AUTH__API_KEY", "k3y-of-the-server")
            .env_remove("DATABASE_URL")
            .stdout(Stdio::piped())
            .stderr(File::create(home.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let url = lines.next().unwrap().unwrap().rsplit_once(' ').unwrap().1.to_owned();
        Server { process, url, home }
    }

    async fn post(&self, path: &str, headers: &[(&str, &str)], body: Value) -> Value {
        let client = reqwest::Client::builder().timeout(PATIENCE).build().unwrap();
        let mut request =
            client.post(format!("{}{path}", self.url)).header("x-api-key", "k3y-of-the-server").json(&body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), 200);
        answer.json().await.unwrap()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.home.path().join("log")).unwrap()
    }

    /// Tells it to stop, and waits until it has.
    async fn stop(mut self) -> ExitStatus {
        Command::new("kill").arg(self.process.id().to_string()).status().unwrap();
        tokio::time::timeout(PATIENCE, tokio::task::spawn_blocking(move || self.process.wait().unwrap()))
            .await
            .expect("it ends")
            .unwrap()
    }
}

/// A collector that answers, or (`silent`) takes what comes and says nothing. The bodies it was sent.
async fn collector(silent: bool) -> (String, mpsc::UnboundedReceiver<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (sender, bodies) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            let sender = sender.clone();
            tokio::spawn(async move {
                let mut bytes = Vec::new();
                while socket.read_buf(&mut bytes).await.is_ok_and(|read| read > 0) {
                    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
                    let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
                    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
                    let length: usize = length.expect("a length");
                    if bytes.len() < end + 4 + length {
                        continue;
                    }
                    assert!(head.starts_with("post /v1/traces ") && head.contains("application/x-protobuf"), "{head}");
                    let rest = bytes.split_off(end + 4 + length);
                    let _unheard = sender.send(bytes.split_off(end + 4));
                    bytes = rest;
                    if !silent {
                        socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
                    }
                }
            });
        }
    });
    (url, bodies)
}

fn count(bytes: &[u8], what: &[u8]) -> usize {
    bytes.windows(what.len()).filter(|window| *window == what).count()
}

fn counter() -> Value {
    json!({"assistant_id": "counter", "input": {"counter": 0}})
}

#[tokio::test]
async fn requests_runs_supersteps_and_tasks_are_one_trace() {
    let (endpoint, mut bodies) = collector(false).await;
    let server = Server::start(&endpoint);
    let traceparent = format!("00-{TRACE}-00f067aa0ba902b7-01");
    let body = json!({"assistant_id": "approval", "input": {"topic": "s3cret-of-a-user"}});
    server.post("/threads/t-1/runs/wait", &[("traceparent", &traceparent)], body).await;
    // In the background: another task of the server, and perhaps another process, executes it.
    let run = server.post("/threads/t-2/runs", &[("traceparent", &traceparent)], counter()).await;
    let run_id = run["run_id"].as_str().unwrap().to_owned();
    let trace: Vec<u8> =
        (0..TRACE.len()).step_by(2).map(|at| u8::from_str_radix(&TRACE[at..at + 2], 16).unwrap()).collect();
    let mut all: Vec<u8> = Vec::new();
    // Two requests, two runs, one and three supersteps and tasks at least.
    let is_whole = |all: &[u8]| {
        count(all, &trace) >= 12
            && ["request", "run", "superstep", "task", "increment", "t-1", "t-2", &run_id, "success"]
                .iter()
                .all(|word| count(all, word.as_bytes()) > 0)
    };
    while !is_whole(&all) {
        let body = tokio::time::timeout(PATIENCE, bodies.recv()).await.expect("spans come");
        all.extend(body.unwrap());
    }
    assert!(server.stop().await.success());
    while let Ok(body) = bodies.try_recv() {
        all.extend(body);
    }
    for secret in ["s3cret-of-a-user", "k3y-of-the-server"] {
        assert_eq!(count(&all, secret.as_bytes()), 0, "{secret} left the process");
    }
}

#[tokio::test]
async fn a_collector_that_is_down_or_silent_costs_nothing_but_spans() {
    let down = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    };
    let (silent, mut bodies) = collector(true).await;
    for (endpoint, is_silent) in [(down, false), (silent, true)] {
        let server = Server::start(&endpoint);
        for n in 0..20 {
            assert_eq!(server.post(&format!("/threads/t-{n}/runs/wait"), &[], counter()).await, json!({"counter": 3}));
        }
        if is_silent {
            tokio::time::timeout(PATIENCE, bodies.recv()).await.expect("it is being waited for");
        } else {
            let told = async {
                while !server.log().contains("the collector does not take spans") {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            };
            tokio::time::timeout(PATIENCE, told).await.expect("it is said");
        }
        assert!(server.stop().await.success(), "{endpoint}");
    }
}
