//! Items.

use serde_json::{Value, json};

use crate::support::server::TestServer;

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
