//! A serving process: what it announces, what each role answers, and how it ends.

use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use reqwest::Method;
use serde_json::json;

use crate::support::process::{PATIENCE, Server, binary, get, send};

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
