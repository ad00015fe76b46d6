//! Input that is wrong: the status and text of the contract, never 500, nothing half-written, and the server serves on.

use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use uuid::Uuid;

use crate::support::server::TestServer;

#[tokio::test]
async fn poison_is_refused_and_nothing_is_written() {
    let server = TestServer::start().await;
    let deep = format!("{{\"assistant_id\":\"counter\",\"input\":{}{}}}", "[".repeat(10_000), "]".repeat(10_000));
    for (body, why) in [
        ("{", "EOF"),
        ("{\"input\":}", "expected value"),
        ("{\"assistant_id\":\"counter\",\"input\":{\"counter\":1e400}}", "out of range"),
        ("{\"assistant_id\":\"counter\",\"input\":{\"counter\":\"\\ud800\"}}", "lone surrogate"),
        ("{\"assistant_id\":\"counter\",\"input\":{\"a\\u0000\":1}}", "NUL"),
        (deep.as_str(), "nesting deeper"),
    ] {
        for place in ["/threads/new-name/runs/wait", "/runs/wait", "/threads/new-name/runs/stream", "/threads"] {
            let text = server.send("POST", place, body.to_owned()).await.refused(422);
            assert!(text.starts_with("Invalid JSON in request body: ") && text.contains(why), "{place}: {text}");
        }
    }
    let text = server.send("POST", "/runs/wait", &b"{\"input\":\"\xff\"}"[..]).await.refused(422);
    assert!(text.starts_with("Invalid JSON in request body: "), "{text}");
    assert_eq!(server.post("/threads/count", json!({})).await.ok(), json!(0));
    assert_eq!(server.get("/ok?check_db=1").await.ok()["ok"], true);
}

#[tokio::test]
async fn a_repeated_key_keeps_its_last_value_and_nul_in_strings_survives() {
    let server = TestServer::start().await;
    let twice = r#"{"thread_id":"t","metadata":{"a":1},"metadata":{"a":2,"s":"x\u0000y","big":123456789012345678901234567890}}"#;
    let thread = server.send("POST", "/threads", twice).await;
    assert_eq!(thread.ok()["metadata"]["a"], 2);
    let text = server.get("/threads/t").await.text;
    assert!(text.contains(r"x\u0000y") && text.contains("123456789012345678901234567890"), "{text}");
}

#[tokio::test]
async fn wrong_types_unknown_words_and_malformed_ids_name_the_field() {
    let server = TestServer::start().await;
    let id = server.thread().await;
    for (body, field) in [
        (json!({"assistant_id": 7}), "assistant_id"),
        (json!({"stream_mode": "nope"}), "stream_mode"),
        (json!({"stream_mode": {"a": 1}}), "stream_mode"),
        (json!({"config": "x"}), "config"),
        (json!({"config": {"recursion_limit": "x"}}), "config.recursion_limit"),
        (json!({"command": []}), "command"),
        (json!({"interrupt_before": 7}), "interrupt_before"),
        (json!({"multitask_strategy": "x"}), "multitask_strategy"),
        (json!({"after_seconds": 1e12}), "after_seconds"),
        (json!({"webhook": "x".repeat(5000)}), "webhook"),
        (json!({"metadata": "x"}), "metadata"),
        (json!({"durability": true}), "durability"),
    ] {
        let text = server.post(&format!("/threads/{id}/runs"), body).await.refused(422);
        assert!(text.starts_with(field), "{field}: {text}");
    }
    for place in ["/threads/a%20b", "/threads/%00", "/threads/t/runs/x", "/threads/t/state/x", "/assistants/x"] {
        server.get(place).await.refused(422);
    }
    assert_eq!(server.get(&format!("/threads/{id}/runs")).await.ok(), json!([]));
}

#[tokio::test]
async fn a_thread_stays_readable_whatever_its_graph_refused() {
    let server = TestServer::start().await;
    let nobody = json!([{"role": "user", "content": "x"}, {"type": "remove", "id": "nope"}]);
    for (thread, body) in [
        ("no-list", json!({"assistant_id": "fanout", "input": {"items": 7}})),
        ("no-message", json!({"assistant_id": "chat", "input": {"messages": 7}})),
        ("nobody", json!({"assistant_id": "chat", "input": {"messages": nobody}})),
        ("no-update", json!({"assistant_id": "fanout", "command": {"update": {"items": 7}}})),
    ] {
        let place = format!("/threads/{thread}");
        let failed = server.post(&format!("{place}/runs/wait"), body).await.ok();
        assert!(failed["__error__"]["error"].is_string(), "{thread}: {failed}");
        assert_eq!(server.get(&place).await.ok()["status"], "error", "{thread}");
        let states = server.post(&format!("{place}/history"), json!({})).await.ok();
        // The live state says what the reducer said; the checkpoint itself can be read.
        let live = server.send("GET", &format!("{place}/state"), "").await;
        assert!([200, 400].contains(&live.status), "{thread}");
        let at = states[0]["checkpoint"]["checkpoint_id"].as_str().unwrap_or_default();
        if !at.is_empty() {
            server.get(&format!("{place}/state/{at}")).await.ok();
        }
    }
    assert_eq!(server.post("/threads/search", json!({})).await.ok().as_array().map(Vec::len), Some(4));
    let good = json!({"assistant_id": "chat", "input": {"messages": [{"role": "user", "content": "x"}]}});
    let repaired = server.post("/threads/nobody/runs/wait", good).await.ok();
    assert_eq!(repaired["messages"].as_array().map(Vec::len), Some(2), "{repaired}");
}

#[tokio::test]
async fn what_is_unknown_is_404_and_says_what_to_do() {
    let server = TestServer::start().await;
    let id = server.thread().await;
    let (none, run) = (Uuid::now_v7(), Uuid::nil());
    let text = server.get(&format!("/threads/{none}")).await.refused(404);
    assert_eq!(text, format!("Thread with ID {none} not found"), "the contract's words");
    assert_eq!(server.get(&format!("/threads/{id}/runs/{run}")).await.refused(404), "Not Found");
    server.get(&format!("/threads/{none}/runs")).await.refused(404);
    server.post(&format!("/threads/{id}/runs/{run}/cancel"), json!({})).await.refused(404);
    let text = server.post(&format!("/threads/{id}/runs/wait"), json!({"assistant_id": "nope"})).await.refused(422);
    assert!(text.contains("counter") && text.contains("GET /graphs"), "{text}");
    server.post(&format!("/threads/{id}/runs/wait"), json!({"assistant_id": none})).await.refused(404);
    let text = server.post(&format!("/threads/{id}/state"), json!({"values": {}})).await.refused(400);
    assert!(!text.is_empty());
}

#[tokio::test]
async fn methods_paths_and_sizes_have_their_codes() {
    let server = TestServer::start().await;
    let answer = server.send("PUT", "/threads", "{}").await;
    assert_eq!((answer.refused(405).as_str(), answer.header("allow")), ("Method Not Allowed", Some("POST")));
    assert_eq!(server.get("/nope").await.refused(404), "Not Found");
    let large = format!("{{\"metadata\":{{\"a\":\"{}\"}}}}", "x".repeat(1_000_000));
    let text = server.send("POST", "/threads", large).await.refused(413);
    assert!(text.contains("1000000"), "{text}");
    let metadata = json!({"metadata": {"a": "x".repeat(300_000)}});
    server.post("/threads", metadata).await.refused(422);
    server.get("/ok").await.ok();
}

#[tokio::test]
async fn a_refused_request_leaves_its_connection_usable() {
    let server = TestServer::start().await;
    let address = server.url.trim_start_matches("http://");
    for (method, path, status) in [("PUT", "/threads", "405"), ("POST", "/nope", "404")] {
        let mut connection = TcpStream::connect(address).await.expect("connects");
        let head = format!("{method} {path} HTTP/1.1\r\nhost: {address}\r\ncontent-length: 2\r\n\r\n");
        connection.write_all(head.as_bytes()).await.expect("is written");
        // Many clients send the body in a packet of its own: the refusal must not overtake it.
        tokio::time::sleep(Duration::from_millis(50)).await;
        let rest = format!("{{}}GET /ok HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
        connection.write_all(rest.as_bytes()).await.expect("is written");
        let mut answers = String::new();
        connection.read_to_string(&mut answers).await.expect("is read");
        assert!(answers.starts_with(&format!("HTTP/1.1 {status}")), "{answers}");
        assert!(answers.contains("HTTP/1.1 200 OK"), "{answers}");
    }
}
