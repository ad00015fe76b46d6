//! Items.

use std::sync::Arc;

use serde_json::{Value, json};
use session_store::http::HttpSettings;
use session_store::runtime::embed::LocalEmbedder;
use session_store::runtime::{ItemSettings, Settings};

use crate::support::server::{TestServer, runtime_settings};

async fn put(server: &TestServer, namespace: &[&str], key: &str, value: Value) {
    let body = json!({"namespace": namespace, "key": key, "value": value});
    assert_eq!(server.send("PUT", "/store/items", body.to_string()).await.status, 204);
}

#[tokio::test]
async fn items_are_put_read_and_deleted() {
    let server = TestServer::start().await;
    put(&server, &["users", "42"], "a b/c?ä", json!({"n": 1, "big": 1e300, "nul": "a\0b"})).await;
    let place = "/store/items?namespace=users.42&key=a%20b%2Fc%3F%C3%A4";
    let item = server.get(place).await.ok();
    assert_eq!(item["namespace"], json!(["users", "42"]));
    assert_eq!(item["value"], json!({"n": 1, "big": 1e300, "nul": "a\0b"}));
    let body = json!({"namespace": ["users", "42"], "key": "a b/c?ä"}).to_string();
    assert_eq!(server.send("DELETE", "/store/items", body.clone()).await.status, 204);
    assert_eq!(server.send("DELETE", "/store/items", body).await.status, 204);
    assert_eq!(server.get(place).await.text, "null");
}

#[tokio::test]
async fn items_are_found_by_prefix_and_conditions() {
    let server = TestServer::start().await;
    put(&server, &["a", "x"], "1", json!({"c": "red", "n": 1})).await;
    put(&server, &["a", "x"], "2", json!({"c": "blue", "n": 2})).await;
    put(&server, &["a", "y"], "3", json!({"c": "red", "n": 3})).await;
    let find = async |body: Value| -> Vec<String> {
        let found = server.post("/store/items/search", body).await.ok();
        let items = found["items"].as_array().expect("items").clone();
        let mut keys: Vec<String> = items.iter().map(|item| item["key"].as_str().expect("a key").to_owned()).collect();
        keys.sort();
        keys
    };
    assert_eq!(find(json!({"namespace_prefix": ["a"]})).await, ["1", "2", "3"]);
    assert_eq!(find(json!({"namespace_prefix": ["a"], "filter": {"c": "red"}})).await, ["1", "3"]);
    assert_eq!(find(json!({"namespace_prefix": ["a"], "filter": {"n": {"$gt": 1, "$lte": 2}}})).await, ["2"]);
    assert_eq!(find(json!({"namespace_prefix": ["a"], "limit": 2, "offset": 2})).await.len(), 1);
    let names = server.post("/store/namespaces", json!({"prefix": ["a"]})).await.ok();
    assert_eq!(names, json!({"namespaces": [["a", "x"], ["a", "y"]]}));
    let names = server.post("/store/namespaces", json!({"max_depth": 1})).await.ok();
    assert_eq!(names, json!({"namespaces": [["a"]]}));
}

#[tokio::test]
async fn malformed_namespaces_are_plain_text() {
    let server = TestServer::start().await;
    for namespace in [json!(["a.b"]), json!([""]), json!([])] {
        let body = json!({"namespace": namespace, "key": "k", "value": {}});
        let answer = server.send("PUT", "/store/items", body.to_string()).await;
        assert_eq!(answer.status, 422, "{answer:?}");
        assert!(answer.header("content-type").is_some_and(|kind| kind.starts_with("text/plain")), "{answer:?}");
    }
}

/// A server that embeds with what is in the process.
async fn embedding() -> TestServer {
    let items = ItemSettings { embedder: Some(Arc::new(LocalEmbedder::default())), ..ItemSettings::default() };
    TestServer::with_runtime(HttpSettings::default(), Settings { items, ..runtime_settings() }).await
}

async fn search(server: &TestServer, body: Value) -> Vec<(String, Option<f64>)> {
    let found = server.post("/store/items/search", body).await.ok();
    let items = found["items"].as_array().expect("items").clone();
    items.iter().map(|item| (item["key"].as_str().expect("a key").to_owned(), item["score"].as_f64())).collect()
}

fn keys(found: &[(String, Option<f64>)]) -> Vec<&str> {
    found.iter().map(|(key, _)| key.as_str()).collect()
}

#[tokio::test]
async fn items_are_found_by_a_query() {
    let server = embedding().await;
    put(&server, &["u", "1"], "drink", json!({"text": "the user likes strong coffee", "n": 1})).await;
    put(&server, &["u", "1"], "bill", json!({"text": "invoices are paid on Monday", "n": 2})).await;
    put(&server, &["v"], "else", json!({"text": "somebody else likes coffee too", "n": 1})).await;
    let found = search(&server, json!({"namespace_prefix": ["u"], "query": "which coffee?"})).await;
    assert_eq!(keys(&found), ["drink", "bill"]);
    assert!(found[0].1 > found[1].1 && found[0].1 <= Some(1.0), "{found:?}");
    let found = search(&server, json!({"namespace_prefix": [], "query": "coffee", "filter": {"n": 1}})).await;
    assert_eq!(found.len(), 2);
    let found = search(&server, json!({"namespace_prefix": ["u"], "query": "coffee", "limit": 1, "offset": 1})).await;
    assert_eq!(keys(&found), ["bill"]);
    let found = search(&server, json!({"namespace_prefix": ["u"], "query": ""})).await;
    assert!(found.iter().all(|(_, score)| score.is_none()), "no query, no scores: {found:?}");
}

#[tokio::test]
async fn an_item_says_what_of_it_is_embedded() {
    let server = embedding().await;
    let index = async |key: &str, index: Value| {
        let value = json!({"title": "coffee", "notes": [{"text": "invoice"}, {"text": "holiday"}]});
        let body = json!({"namespace": ["n"], "key": key, "value": value, "index": index});
        server.send("PUT", "/store/items", body.to_string()).await
    };
    for (key, paths) in [("title", json!(["title"])), ("notes", json!(["notes[*].text"])), ("none", json!(false))] {
        assert_eq!(index(key, paths).await.status, 204);
    }
    let score = async |query: &str, key: &str| {
        let found = search(&server, json!({"namespace_prefix": ["n"], "query": query})).await;
        found.into_iter().find(|(found, _)| found == key).expect("is found").1
    };
    let is_one = |score: Option<f64>| score.is_some_and(|score| (score - 1.0).abs() < 1e-5);
    assert!(is_one(score("coffee", "title").await), "the title and nothing else");
    assert!(is_one(score("holiday", "notes").await), "each text by itself");
    assert_eq!(score("coffee", "none").await, None);
    let many: Vec<String> = (0..33).map(|n| n.to_string()).collect();
    for (bad, told) in [
        (json!("title"), "index: expected an array"),
        (json!([1]), "index[0]: expected a string"),
        (json!(many), "index: at most 32"),
        (json!(["x".repeat(513)]), "index[0]: longer than 512"),
    ] {
        let text = index("bad", bad).await.refused(422);
        assert!(text.starts_with(told), "{text}");
    }
}

#[tokio::test]
async fn filters_reach_into_objects() {
    let server = TestServer::start().await;
    put(&server, &["n"], "a", json!({"o": {"p": 1, "q": {"r": "x"}}, "l": [1, 2]})).await;
    put(&server, &["n"], "b", json!({"o": {"p": 2, "q": {"r": "y"}}})).await;
    let find = async |filter: Value| search(&server, json!({"namespace_prefix": ["n"], "filter": filter})).await;
    assert_eq!(keys(&find(json!({"o": {"p": 1}})).await), ["a"]);
    assert_eq!(keys(&find(json!({"o": {"p": {"$gte": 1}, "q": {"r": "y"}}})).await), ["b"]);
    assert_eq!(keys(&find(json!({"l": [1, 2]})).await), ["a"]);
    assert_eq!(keys(&find(json!({"o": {"p": {"$ne": 1}}})).await), ["b"]);
    let body = json!({"namespace_prefix": ["n"], "filter": {"o": {"p": {"$in": [1]}}}});
    let text = server.post("/store/items/search", body).await.refused(422);
    assert!(text.starts_with("filter.o.p: expected operators of $eq"), "{text}");
}

#[tokio::test]
async fn expired_items_are_gone_and_swept() {
    let items = ItemSettings { default_ttl_minutes: Some(60.0), ..ItemSettings::default() };
    let server = TestServer::with_runtime(HttpSettings::default(), Settings { items, ..runtime_settings() }).await;
    put(&server, &["n"], "default", json!({})).await;
    let body = json!({"namespace": ["n"], "key": "over", "value": {}, "ttl": 0});
    assert_eq!(server.send("PUT", "/store/items", body.to_string()).await.status, 204);
    assert_eq!(server.get("/store/items?namespace=n&key=over").await.text, "null");
    assert_eq!(keys(&search(&server, json!({"namespace_prefix": ["n"]})).await), ["default"]);
    for bad in [json!(-1), json!("x"), json!(1e10)] {
        let body = json!({"namespace": ["n"], "key": "k", "value": {}, "ttl": bad});
        assert!(server.send("PUT", "/store/items", body.to_string()).await.refused(422).starts_with("ttl"));
    }
}
