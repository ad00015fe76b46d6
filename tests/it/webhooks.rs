//! A server dies between the end of a run and the delivery of its webhook.

use serde_json::json;

use crate::support::process::{Server, binary, get, post, sqlite_url};
use crate::support::receiver::{Receiver, SECRET};

fn start(url: &str) -> Server {
    let mut command = binary();
    command.args(["serve", "--listen", "127.0.0.1:0", "--database-url", url]);
    command.env("SESSION_STORE__WEBHOOKS__ALLOW_PRIVATE", "true").env("SESSION_STORE__WEBHOOKS__SECRET", SECRET);
    command.env("SESSION_STORE__WEBHOOKS__TIMEOUT_SECS", "1");
    Server::spawn(command)
}

#[tokio::test]
async fn a_killed_server_delivers_after_its_restart() {
    let dir = tempfile::tempdir().expect("a directory");
    let url = sqlite_url(&dir);
    let mut receiver = Receiver::start().await;
    let server = start(&url);
    let run = json!({"assistant_id": "counter", "input": {"counter": 0}, "webhook": receiver.url});
    post(&format!("{}/threads/t/runs/wait", server.url), run).await;
    // It has arrived and is not answered: for the server nothing is delivered.
    let first = receiver.next().await;
    server.kill();

    let server = start(&url);
    receiver.answer(500);
    receiver.answer(200);
    let second = receiver.next().await;
    second.verify();
    assert_eq!(second.header("webhook-id"), first.header("webhook-id"));
    assert_eq!(second.json()["values"], json!({"counter": 3}));
    assert_eq!(get(&format!("{}/webhooks?state=dead", server.url)).await, json!([]));
}
