//! Values as large as a body may be: a string of fifty million characters and an object of a million keys come back as they
//! went in, or are refused with words.

use super::*;
use crate::support::process::{Database, sqlite_url};

const LIMIT: &str = "67108864";
const CHARACTERS: usize = 50_000_000;
const KEYS: usize = 1_000_000;

/// The state of a new thread with this message.
async fn with_message(server: &Server, thread: &str, message: Value) -> Value {
    let new = json!({"thread_id": thread, "metadata": {"graph_id": "chat"}});
    post(&format!("{}/threads", server.url), new).await;
    let url = format!("{}/threads/{thread}/state", server.url);
    post(&url, json!({"values": {"messages": [message]}, "as_node": "__start__"})).await;
    get(&url).await
}

async fn come_back(url: &str) {
    let traces = tempfile::tempdir().expect("a directory");
    let server = server(url, traces.path(), &[("SERVER__MAX_BODY_BYTES", LIMIT)]);
    let text = "no end of words. ".repeat(CHARACTERS.div_ceil(17));
    let keys: serde_json::Map<_, _> = (0..KEYS).map(|n| (format!("key {n}"), json!(n))).collect();
    let state = with_message(&server, "long", json!({"role": "user", "content": text, "id": "m"})).await;
    assert!(state["values"]["messages"][0]["content"] == text.as_str(), "the same text");
    let state =
        with_message(&server, "wide", json!({"role": "user", "content": "", "id": "m", "additional_kwargs": keys}))
            .await;
    assert!(state["values"]["messages"][0]["additional_kwargs"].as_object() == Some(&keys), "the same keys");

    // What is searched has a limit, which is told.
    for (place, body) in [
        ("threads", json!({"thread_id": "many", "metadata": keys})),
        ("store/items", json!({"namespace": ["it"], "key": "text", "value": {"text": text}})),
    ] {
        let method = if place == "threads" { reqwest::Method::POST } else { reqwest::Method::PUT };
        let url = format!("{}/{place}", server.url);
        let (status, answer) = send(method, &url, Some(body)).await.expect("an answer");
        assert_eq!(status, 422, "{place}");
        assert!(answer["detail"].as_str().is_some_and(|why| why.contains("larger than")), "{answer}");
    }
    let (status, _) =
        send(reqwest::Method::GET, &format!("{}/threads/many", server.url), None).await.expect("an answer");
    assert_eq!(status, 404, "nothing was made");
    // And everybody else is served.
    let run = start(&server, "small", "fault", json!({"name": "small"})).await;
    assert_eq!(ended(&server, &run).await, "success");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_million_characters_and_a_million_keys_come_back_on_sqlite() {
    let dir = tempfile::tempdir().expect("a directory");
    come_back(&sqlite_url(&dir)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_million_characters_and_a_million_keys_come_back_on_postgres() {
    let Some(database) = Database::create("large_values").await else { return };
    come_back(&database.url).await;
}
