//! Requests that are meant to hurt: too large, never finished, packed, or broken off.

use std::time::Duration;

use serde_json::{Value, json};
use session_store::http::HttpSettings;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::PATIENCE;
use crate::support::described::DOCUMENT;
use crate::support::server::TestServer;

/// So little that what is refused can still be read and dropped, which keeps its connection in order.
const LIMIT: usize = 50_000;

async fn server(body_timeout: Duration) -> TestServer {
    TestServer::with(HttpSettings { body_limit: LIMIT, body_timeout, ..HttpSettings::default() }).await
}

/// Methods and paths of the document that take a body, with ids that could be.
fn routes_with_a_body() -> Vec<(String, String)> {
    let mut routes = Vec::new();
    for (path, item) in DOCUMENT["paths"].as_object().expect("paths") {
        for (method, operation) in item.as_object().expect("operations") {
            if operation.get("requestBody").is_some() {
                let path =
                    path.replace("{thread_id}", "t").replace("{name}", "n").replace("{interrupt_id}", &"0".repeat(32));
                let id = "00000000-0000-4000-8000-000000000000";
                let path =
                    ["{assistant_id}", "{run_id}", "{cron_id}"].iter().fold(path, |path, of| path.replace(of, id));
                routes.push((method.to_uppercase(), path));
            }
        }
    }
    routes
}

#[tokio::test]
async fn a_body_of_the_limit_is_taken_and_one_byte_more_is_refused_with_the_limit_named() {
    let server = server(Duration::from_secs(60)).await;
    // Blanks around it are part of a body.
    let body = |length: usize| format!("{{\"thread_id\":\"t\"}}{}", " ".repeat(length - 17));
    assert_eq!(body(LIMIT).len(), LIMIT);
    server.send("POST", "/threads", body(LIMIT)).await.ok();
    let routes = routes_with_a_body();
    assert!(routes.len() > 40, "{routes:?}");
    for (method, path) in routes {
        let text = server.send(&method, &path, body(LIMIT + 1)).await.text;
        assert!(text.contains(&format!("limit of {LIMIT} bytes")), "{method} {path}: {text}");
    }
    // Whose length is not announced: each chunk is told only when it comes.
    let chunked = async |length: usize| {
        let whole = body(length);
        let chunks: Vec<_> = whole.as_bytes().chunks(999).map(|part| Ok::<_, std::io::Error>(part.to_vec())).collect();
        let request = reqwest::Client::new().post(format!("{}/threads/search", server.url));
        let answer = request.body(reqwest::Body::wrap_stream(futures_util::stream::iter(chunks))).send().await;
        answer.ok().map(|answer| answer.status().as_u16())
    };
    // Unknown members are ignored.
    assert_eq!(chunked(LIMIT).await, Some(200));
    // The connection may be closed under what was not read, before the answer is: refused it is.
    assert!(chunked(LIMIT + 1).await.is_none_or(|status| status == 413));
    // An endless one is refused where it passes the limit.
    let endless = futures_util::stream::repeat_with(|| Ok::<_, std::io::Error>(vec![b' '; 999]));
    let request = reqwest::Client::new().post(format!("{}/threads", server.url)).timeout(PATIENCE);
    if let Ok(answer) = request.body(reqwest::Body::wrap_stream(endless)).send().await {
        assert_eq!(answer.status(), 413);
    }
    server.get("/ok").await.ok();
}

#[tokio::test]
async fn what_is_packed_is_not_unpacked() {
    let server = server(Duration::from_secs(60)).await;
    // The beginning of any gzip file, and then what would be a thousand times as much.
    let bomb: Vec<u8> = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3].into_iter().chain([0; 10_000]).collect();
    for encoding in ["gzip", "deflate", "br", "zstd", "gzip, gzip"] {
        let headers = [("content-encoding", encoding), ("content-type", "application/json")];
        let (status, text) = server.send_bytes("POST", "/threads", &headers, bomb.clone()).await;
        assert_eq!(status, 422, "{}", String::from_utf8_lossy(&text));
    }
    assert_eq!(server.post("/threads/count", json!({})).await.ok(), json!(0));
}

fn address(server: &TestServer) -> String {
    server.url.trim_start_matches("http://").to_owned()
}

/// Sends bytes and reads until the server closes; what it said. A reset is an end, too.
async fn say(server: &TestServer, bytes: &[u8], and_close: bool) -> String {
    let mut connection = TcpStream::connect(address(server)).await.expect("connects");
    // It may refuse before it has read all.
    let _sent = connection.write_all(bytes).await;
    if and_close {
        let _closed = connection.shutdown().await;
    }
    let mut answer = Vec::new();
    let _ended = timeout(PATIENCE, connection.read_to_end(&mut answer)).await.expect("the server closes");
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn heads_are_bounded() {
    let server = server(Duration::from_secs(60)).await;
    let head = |more: &str| format!("GET /threads/t HTTP/1.1\r\nhost: it\r\nconnection: close\r\n{more}\r\n");
    for (what, head) in [
        ("a header of a megabyte", head(&format!("x-large: {}\r\n", "x".repeat(1_000_000)))),
        ("ten thousand headers", head(&"x-many: 1\r\n".repeat(10_000))),
        ("a long path", format!("GET /{} HTTP/1.1\r\nhost: it\r\nconnection: close\r\n\r\n", "x".repeat(1_000_000))),
    ] {
        let answer = say(&server, head.as_bytes(), false).await;
        // A server that closes under what it did not read may take its answer along.
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{what}: {answer}");
    }
    server.get("/ok").await.ok();
}

#[tokio::test]
async fn a_request_that_is_never_finished_holds_up_nobody_and_is_given_up() {
    let server = server(Duration::from_secs(1)).await;
    let address = address(&server);
    let mut unfinished = Vec::new();
    for n in 0..300 {
        let mut connection = TcpStream::connect(&address).await.expect("connects");
        let head = if n % 2 == 0 { "POST /threads HTTP/1.1\r\nhost: it\r\nx-slow: " } else { "GE" };
        connection.write_all(head.as_bytes()).await.expect("sent");
        unfinished.push(connection);
    }
    server.post("/threads", json!({"thread_id": "t"})).await.ok();
    // A body that stops in the middle.
    let answer =
        say(&server, b"POST /threads HTTP/1.1\r\nhost: it\r\ncontent-length: 100\r\n\r\n{\"thread_id\":", false).await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert_eq!(server.post("/threads/count", json!({})).await.ok(), json!(1));
    drop(unfinished);
}

/// Broken off at every byte, a POST has no effect; sent whole, but not waited for, it has one.
#[tokio::test]
async fn a_client_that_goes_away_in_the_middle_of_a_post_leaves_nothing_half_done() {
    let server = server(Duration::from_secs(60)).await;
    let body = json!({"assistant_id": "counter", "input": {"counter": 0}}).to_string();
    let request = format!(
        "POST /threads/cut/runs HTTP/1.1\r\nhost: it\r\nidempotency-key: once\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    for at in 0..request.len() {
        let answer = say(&server, &request.as_bytes()[..at], true).await;
        assert!(!answer.starts_with("HTTP/1.1 2"), "cut at {at}: {answer}");
    }
    assert_eq!(server.post("/threads/count", json!({})).await.ok(), json!(0));
    // Nobody waits for the answer; asked again with its key, it is the same run.
    for _ in 0..5 {
        let mut connection = TcpStream::connect(address(&server)).await.expect("connects");
        connection.write_all(request.as_bytes()).await.expect("sent");
    }
    let answer = say(&server, request.as_bytes(), false).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let run: Value = serde_json::from_str(answer.split_once("\r\n\r\n").expect("a body").1).expect("JSON");
    let run = run["run_id"].as_str().expect("an id");
    server.get(&format!("/threads/cut/runs/{run}/join")).await.ok();
    assert_eq!(server.get("/threads/cut/runs").await.ok().as_array().map(Vec::len), Some(1));
    assert_eq!(server.get("/threads/cut/state").await.ok()["values"], json!({"counter": 3}));
}
