//! Receivers of webhooks that do what they should not: they hang, answer without an end, or refuse.

use std::time::Duration;

use serde_json::{Value, json};
use session_store::http::HttpSettings;
use session_store::runtime::{Settings, WebhookPolicy, WebhookSettings};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::PATIENCE;
use crate::support::server::{TestServer, runtime_settings};

/// How a receiver behaves.
#[derive(Debug, Clone, Copy)]
enum How {
    Hangs,
    /// A status, and then headers for as long as somebody reads.
    EndlessHead,
    /// A good answer whose body never ends.
    EndlessBody,
    /// Closes at once.
    Closes,
    /// No HTTP at all.
    Babbles,
}

async fn answer(how: How, mut connection: TcpStream) {
    let mut request = [0; 4096];
    let _heard = connection.read(&mut request).await;
    let (head, endless): (&[u8], &[u8]) = match how {
        How::Hangs => return std::future::pending().await,
        How::Closes => return,
        How::EndlessHead => (b"HTTP/1.1 200 OK\r\n", b"x-more: and more\r\n"),
        How::EndlessBody => (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b"4\r\nmore\r\n"),
        How::Babbles => (b"220 mail.example.com ESMTP\r\n", b"what?\r\n"),
    };
    let _sent = connection.write_all(head).await;
    while connection.write_all(endless).await.is_ok() {}
}

async fn receiver(how: How) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/hook", listener.local_addr().expect("an address"));
    tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            tokio::spawn(answer(how, connection));
        }
    });
    url
}

#[tokio::test]
async fn receivers_that_misbehave_are_given_up_and_concern_no_run() {
    let policy = WebhookPolicy { allow_private: true, ..WebhookPolicy::default() };
    let timeout = Duration::from_secs(5);
    let webhooks = WebhookSettings { policy, timeout, max_attempts: 1, ..WebhookSettings::default() };
    let settings = Settings { webhooks, ..runtime_settings() };
    let server = TestServer::with_runtime(HttpSettings::default(), settings).await;
    let all = [
        (How::Hangs, false),
        (How::EndlessHead, false),
        (How::Closes, false),
        (How::Babbles, false),
        // Its status says that it has heard; nobody reads on.
        (How::EndlessBody, true),
    ];
    let mut refused = Vec::new();
    for (how, is_heard) in all {
        let url = receiver(how).await;
        let run = json!({"assistant_id": "counter", "input": {"counter": 0}, "webhook": url});
        let thread = format!("/threads/{}/runs/wait", url.rsplit(':').next().expect("a port").replace("/hook", ""));
        assert_eq!(server.post(&thread, run).await.ok(), json!({"counter": 3}), "{how:?}");
        if !is_heard {
            refused.push(url);
        }
    }
    let started = std::time::Instant::now();
    let dead = loop {
        let due = server.get("/webhooks?state=due").await.ok();
        let dead = server.get("/webhooks?state=dead").await.ok();
        if due == json!([]) && dead.as_array().map(Vec::len) == Some(refused.len()) {
            break dead;
        }
        assert!(started.elapsed() < PATIENCE, "due: {due}, dead: {dead}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let mut named: Vec<&Value> = dead.as_array().expect("a list").iter().map(|hook| &hook["url"]).collect();
    named.sort_by_key(|url| url.to_string());
    refused.sort();
    assert_eq!(named, refused.iter().collect::<Vec<_>>());
    for hook in dead.as_array().expect("a list") {
        let why = hook["last_error"].as_str().expect("a reason");
        assert!(!why.is_empty() && why.len() <= 500, "{hook}");
    }
}
