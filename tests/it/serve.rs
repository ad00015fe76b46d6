//! A serving process: what it announces, what each role answers, and how it ends.

use std::process::Command;
use std::time::{Duration, Instant};

use clap::Parser as _;
use futures_util::StreamExt as _;
use reqwest::Method;
use serde_json::json;

use crate::fixtures;
use crate::support::process::{PATIENCE, Server, binary, get, post, send, sqlite_url};

fn serve(flags: &[&str]) -> Server {
    let mut command = binary();
    command.args(["serve", "--listen", "127.0.0.1:0", "--database-url", "memory"]).args(flags);
    Server::spawn(command)
}

#[tokio::test]
async fn a_database_in_memory_is_said_to_be_volatile() {
    let server = serve(&[]);
    let health = get(&format!("{}/ok", server.url)).await;
    assert_eq!((&health["ok"], &health["volatile"]), (&json!(true), &json!(true)));
}

#[tokio::test]
async fn a_worker_answers_health_and_nothing_else() {
    let server = serve(&["--role", "worker"]);
    assert_eq!(get(&format!("{}/ok", server.url)).await["ok"], true);
    get(&format!("{}/info", server.url)).await;
    let search = format!("{}/threads/search", server.url);
    let (status, body) = send(Method::POST, &search, Some(json!({}))).await.expect("an answer");
    assert_eq!(status, 404);
    assert!(body["detail"].as_str().is_some_and(|detail| detail.contains("worker")), "{body}");
}

#[tokio::test]
async fn a_key_is_asked_for_when_there_is_one() {
    let mut command = binary();
    command.args(["serve", "--listen", "0.0.0.0:0", "--database-url", "memory"]);
    command.env("SESSION_STORE__AUTH__API_KEY", "s3cret");
    let server = Server::spawn(command);
    let search = format!("{}/threads/search", server.url);
    let (status, _) = send(Method::POST, &search, Some(json!({}))).await.expect("an answer");
    assert!(matches!(status, 401 | 403), "{status}");
    let request = reqwest::Client::new().post(&search).header("x-api-key", "s3cret").json(&json!({}));
    assert_eq!(request.send().await.expect("an answer").status(), 200);
    // The health check needs no key.
    let mut check = binary();
    check.args(["healthcheck", "--insecure", "--listen", &format!("0.0.0.0:{}", server.port())]);
    assert!(check.status().expect("it runs").success());
}

#[tokio::test]
async fn open_streams_do_not_hold_up_a_shutdown() {
    let server = serve(&[]);
    let body = json!({"assistant_id": "slow", "input": {"n": 0, "steps": 10_000, "sleep_ms": 20}});
    let url = format!("{}/threads/endless/runs/stream", server.url);
    let request = reqwest::Client::new().post(&url).timeout(PATIENCE).json(&body);
    let response = request.send().await.expect("an answer");
    let mut stream = response.error_for_status().expect("a stream").bytes_stream();
    stream.next().await.expect("a first frame").expect("read");
    let reader = tokio::spawn(async move { while let Some(Ok(_)) = stream.next().await {} });
    let start = Instant::now();
    // In a thread of its own: the reader must go on meanwhile.
    let status = tokio::task::spawn_blocking(|| server.terminate()).await.expect("it ends");
    assert!(status.success(), "{status}");
    assert!(start.elapsed() < Duration::from_secs(5), "took {:?}", start.elapsed());
    reader.await.expect("the stream has ended");
}

const ARGUMENTS: &str = "CONFORMANCE_ARGUMENTS";

/// Not a test: the example `conformance`, as a process of its own.
#[tokio::test]
#[ignore = "started by the test below"]
async fn the_conformance_example() {
    let arguments = std::env::var(ARGUMENTS).expect("set by the test");
    let arguments = fixtures::Args::parse_from(std::iter::once("conformance").chain(arguments.lines()));
    fixtures::run(arguments).await.expect("serves");
}

#[tokio::test]
async fn the_conformance_example_serves_its_fixtures_beside_no_documents() {
    let dir = tempfile::tempdir().expect("a directory");
    let empty = dir.path().join("graphs");
    std::fs::create_dir(&empty).expect("a folder");
    let database = sqlite_url(&dir);
    let folder = empty.display().to_string();
    let arguments = ["--graphs", &folder, "--listen", "127.0.0.1:0", "--database-url", &database].join("\n");
    let mut command = Command::new(std::env::current_exe().expect("this binary"));
    command.args(["serve::the_conformance_example", "--exact", "--ignored", "--nocapture"]);
    command.env(ARGUMENTS, arguments).env_remove("DATABASE_URL");
    let server = Server::spawn(command);
    let graphs = get(&format!("{}/graphs", server.url)).await;
    for name in ["counter", "chat", "approval", "tools", "nested"] {
        assert!(graphs.to_string().contains(&format!("\"{name}\"")), "{name}: {graphs}");
    }
    let body = json!({"assistant_id": "nested", "input": {"trail": []}});
    let values = post(&format!("{}/threads/fixture/runs/wait", server.url), body).await;
    let trail = values["trail"].as_array().and_then(|trail| trail.last());
    assert_eq!(trail, Some(&json!("p_end")), "{values}");
    assert!(dir.path().join("session-store.db").exists(), "where it was told to keep threads");
}
