//! Texts that would be SQL if anybody let them, in every place a client can put a text: they are found again as they are,
//! and nothing else is.

use serde_json::{Value, json};
use session_store::http::HttpSettings;
use session_store::storage::SharedStorage;
use session_store::storage::connect::{ConnectOptions, connect};

use crate::support::postgres::Database;
use crate::support::server::TestServer;

const TEXTS: [&str; 14] = [
    "'; DROP TABLE threads; --",
    "' OR '1'='1",
    "\" OR \"\"=\"",
    "') OR 1=1 --",
    "x' UNION SELECT * FROM runs --",
    "'; SELECT pg_sleep(60); --",
    "'||(SELECT version())||'",
    "$1",
    "%",
    "_",
    "\\'; DELETE FROM items; --",
    "\u{2019} OR 1=1",
    "name) VALUES ('x'); --",
    "{\"a\": [1]}::jsonb",
];

fn ids(list: &Value, key: &str) -> Vec<String> {
    let list = list.as_array().expect("a list");
    list.iter().map(|one| one[key].as_str().expect("an id").to_owned()).collect()
}

fn encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

async fn texts_stay_texts(storage: SharedStorage) {
    let graphs = session_store::graphs::all().into_iter().map(|graph| graph.expect("a graph")).collect();
    let server = TestServer::over(storage, HttpSettings::default(), graphs).await;
    for n in 0..3 {
        let metadata = json!({"other": "x", "_": "y", "n": n});
        server.post("/threads", json!({"thread_id": format!("other{n}"), "metadata": metadata})).await.ok();
        let item = json!({"namespace": ["it", "other"], "key": format!("other{n}"), "value": {"other": "x"}});
        server.send("PUT", "/store/items", item.to_string()).await;
    }
    for (n, text) in TEXTS.iter().enumerate() {
        let id = format!("t{n}");
        let metadata = json!({"text": text, "in": {"list": [text]}, (*text): text});
        server.post("/threads", json!({"thread_id": id, "metadata": metadata})).await.ok();
        for filter in [json!({"text": text}), json!({"in": {"list": [text]}}), json!({(*text): text})] {
            let found = server.post("/threads/search", json!({"metadata": filter})).await.ok();
            assert_eq!(ids(&found, "thread_id").join(","), id, "{text}: {filter}");
        }
        let patch = json!({"metadata": {"patched": text}});
        server.send("PATCH", &format!("/threads/{id}"), patch.to_string()).await.ok();
        assert_eq!(server.get(&format!("/threads/{id}")).await.ok()["metadata"]["patched"], *text);
        // What becomes part of a statement's text comes from a list.
        for place in ["/threads/search", "/assistants/search", "/runs/crons/search"] {
            server.post(place, json!({"sort_by": text})).await.refused(422);
            // Lenient here: what is no order is the usual one.
            server.post(place, json!({"sort_order": text})).await.ok();
        }
        for query in ["status", "metadata", "asked_after", "sort_order", "cursor"] {
            server.get(&format!("/interrupts?{query}={}", encoded(text))).await.refused(422);
        }
        for query in ["graph_id", "node"] {
            assert_eq!(server.get(&format!("/interrupts?{query}={}", encoded(text))).await.ok(), json!([]));
        }
        let log = format!("/threads/{id}/log?node={}&checkpoint_ns={}", encoded(text), encoded(text));
        assert_eq!(server.get(&log).await.ok(), json!([]));
        assert_eq!(server.get(&format!("/threads/{id}/effects?task_id={}", encoded(text))).await.ok(), json!([]));
        for path in ["/threads/", "/threads/t0/runs/", "/threads/t0/state/", "/assistants/", "/runs/crons/"] {
            let status = server.get(&format!("{path}{}", encoded(text))).await.status;
            // A thread may be named `_`.
            assert!(status == 422 || (status == 404 && *text == "_"), "{path} {text}: {status}");
        }
        // Who acts and why is kept as it is said.
        if text.is_ascii() {
            let body = json!({"reason": text}).to_string();
            let closed =
                server.send_with("POST", "/threads/t0/end", &[("x-actor", text)], &body).await.ok()["closed"].clone();
            assert_eq!((&closed["by"], &closed["reason"]), (&json!(text), &json!(text)));
            server.post("/threads/t0/reopen", json!({})).await.ok();
        }
        let assistant = json!({"graph_id": "counter", "name": text, "metadata": {"text": text}});
        server.post("/assistants", assistant).await.ok();
        let found = server.post("/assistants/search", json!({"metadata": {"text": text}})).await.ok();
        assert_eq!(found[0]["name"], *text);
        assert_eq!(found.as_array().map(Vec::len), Some(1));
        let found = server.post("/assistants/search", json!({"name": text, "limit": 1000})).await.ok();
        let all = found.as_array().expect("a list");
        let holds =
            |one: &Value| one["name"].as_str().is_some_and(|name| name.to_lowercase().contains(&text.to_lowercase()));
        assert!(!all.is_empty() && all.iter().all(holds), "{text}: {found}");
        // Namespaces, keys, values and filters of items.
        let namespace = json!(["it", text]);
        let item = json!({"namespace": namespace, "key": text, "value": {"text": text, "n": n}});
        let put = server.send("PUT", "/store/items", item.to_string()).await;
        assert!(put.status < 300, "{put:?}");
        let found = server.post("/store/items/search", json!({"namespace_prefix": namespace})).await.ok();
        assert_eq!(ids(&found["items"], "key"), [*text], "{text}");
        let filter = json!({"namespace_prefix": ["it"], "filter": {"text": text}});
        let found = server.post("/store/items/search", filter).await.ok();
        assert_eq!(ids(&found["items"], "key"), [*text], "{text}");
        let found = server.post("/store/namespaces", json!({"prefix": namespace})).await.ok();
        assert_eq!(found["namespaces"], json!([namespace]), "{text}");
        let body = json!({"namespace": namespace, "key": text});
        let gone = server.send("DELETE", "/store/items", body.to_string()).await;
        assert!(gone.status < 300, "{gone:?}");
        let found = server.post("/store/items/search", json!({"namespace_prefix": ["it", "other"]})).await.ok();
        assert_eq!(found["items"].as_array().map(Vec::len), Some(3), "{text}");
    }
    assert_eq!(server.post("/threads/count", json!({})).await.ok(), json!(TEXTS.len() + 3));
    let answer =
        server.post("/threads/t0/runs/wait", json!({"assistant_id": "counter", "input": {"counter": 0}})).await;
    assert_eq!(answer.ok(), json!({"counter": 3}));
}

#[tokio::test]
async fn texts_stay_texts_on_sqlite() {
    texts_stay_texts(connect("memory", &ConnectOptions::default()).await.expect("a database")).await;
}

#[tokio::test]
async fn texts_stay_texts_on_postgres() {
    let Some(database) = Database::create().await else { return };
    let storage = connect(&database.url(), &ConnectOptions::default()).await.expect("a database");
    texts_stay_texts(storage.clone()).await;
    storage.close().await;
    database.drop().await;
}
