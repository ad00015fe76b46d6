//! Threads: create, read, change, delete, copy, find.

use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::server::TestServer;

#[tokio::test]
async fn threads_are_created_read_changed_and_deleted() {
    let server = TestServer::start().await;
    let thread = server.post("/threads", json!({"metadata": {"a": 1, "run_id": "reserved"}})).await.ok();
    let id = thread["thread_id"].as_str().expect("an id");
    assert_eq!(Uuid::try_parse(id).expect("a UUID").get_version_num(), 7);
    assert_eq!((&thread["status"], &thread["values"]), (&json!("idle"), &Value::Null));
    assert_eq!((&thread["metadata"], &thread["interrupts"]), (&json!({"a": 1}), &json!({})));
    let place = format!("/threads/{id}");
    let changed = server.send("PATCH", &place, r#"{"metadata":{"b":{"c":2}}}"#).await.ok();
    assert_eq!(changed["metadata"], json!({"a": 1, "b": {"c": 2}}));
    assert_eq!(server.get(&place).await.ok()["metadata"], changed["metadata"]);
    assert_eq!(server.send("DELETE", &place, "").await.status, 204);
    for (method, path) in [("GET", ""), ("PATCH", ""), ("DELETE", ""), ("GET", "/state"), ("GET", "/history")] {
        let text = server.send(method, &format!("{place}{path}"), "").await.refused(404);
        assert!(text.starts_with(&format!("Thread with ID {id} not found")), "{method} {path}: {text}");
    }
}

#[tokio::test]
async fn taken_names_are_told_or_returned() {
    let server = TestServer::start().await;
    server.post("/threads", json!({"thread_id": "user-42", "metadata": {"a": 1}})).await.ok();
    let text = server.post("/threads", json!({"thread_id": "user-42"})).await.refused(409);
    assert!(text.contains("do_nothing"), "{text}");
    let again = json!({"thread_id": "user-42", "if_exists": "do_nothing", "metadata": {"a": 2}});
    assert_eq!(server.post("/threads", again).await.ok()["metadata"], json!({"a": 1}));
}

#[tokio::test]
async fn a_minimal_answer_can_be_preferred() {
    let server = TestServer::start().await;
    let id = server.thread().await;
    let request =
        reqwest::Client::new().patch(format!("{}/threads/{id}", server.url)).header("prefer", "return=minimal");
    assert_eq!(request.body("{}").send().await.expect("an answer").status(), 204);
}

#[tokio::test]
async fn threads_are_found_paged_selected_and_extracted() {
    let server = TestServer::start().await;
    for i in 0..5 {
        let metadata = json!({"tag": "x", "i": i, "deep": {"even": i % 2 == 0, "other": 1}});
        server.post("/threads", json!({"metadata": metadata})).await.ok();
    }
    server.post("/threads", json!({"metadata": {"tag": "y"}})).await.ok();
    assert_eq!(server.post("/threads/count", json!({"metadata": {"tag": "x"}})).await.ok(), json!(5));
    let even = json!({"metadata": {"deep": {"even": true}}});
    assert_eq!(server.post("/threads/count", even).await.ok(), json!(3));
    let page = |offset: i64| {
        json!({"metadata": {"tag": "x"}, "limit": 2, "offset": offset, "sort_by": "created_at", "sort_order": "asc",
               "select": ["thread_id", "status"], "extract": {"i": "metadata.i"}})
    };
    let first = server.post("/threads/search", page(0)).await;
    assert_eq!((first.header("x-pagination-next"), first.header("x-pagination-total")), (Some("2"), Some("3")));
    let last = server.post("/threads/search", page(4)).await;
    assert_eq!((last.header("x-pagination-next"), last.header("x-pagination-total")), (None, Some("5")));
    let rows = last.ok();
    assert_eq!(rows[0]["extracted"], json!({"i": 4}));
    assert_eq!(rows[0].as_object().expect("a row").len(), 3, "{rows}");
    let excluded = json!({"metadata": {"tag": "x"}, "exclude_metadata": {"deep": {"even": true}}});
    assert_eq!(server.post("/threads/count", excluded).await.ok(), json!(2));
    let any_of =
        json!({"metadata": {"tag": "x"}, "exclude_metadata": [{"deep": {"even": true}}, {"deep": {"even": false}}]});
    assert_eq!(server.post("/threads/count", any_of).await.ok(), json!(0));
    let none_of = json!({"metadata": {"tag": "x"}, "exclude_metadata": [{"deep": {"even": true}}, {"tag": "y"}]});
    assert_eq!(server.post("/threads/count", none_of).await.ok(), json!(2));
}

#[tokio::test]
async fn threads_are_found_by_their_values() {
    let server = TestServer::start().await;
    server.thread().await;
    let id = server.thread().await;
    let run = json!({"assistant_id": "counter", "input": {"counter": 0}});
    server.post(&format!("/threads/{id}/runs/wait"), run).await.ok();
    let found = server.post("/threads/search", json!({"values": {"counter": 3}})).await.ok();
    assert_eq!((found.as_array().map(Vec::len), &found[0]["thread_id"]), (Some(1), &json!(id)));
    assert_eq!(found[0]["values"], json!({"counter": 3}));
}

#[tokio::test]
async fn copies_have_the_state_and_a_name_of_their_own() {
    let server = TestServer::start().await;
    let id = server.thread().await;
    let run = json!({"assistant_id": "counter", "input": {"counter": 0}});
    server.post(&format!("/threads/{id}/runs/wait"), run).await.ok();
    let copy = server.post(&format!("/threads/{id}/copy"), json!({})).await.ok();
    assert_ne!(copy["thread_id"], json!(id));
    // As the contract says, the document shows no values until something runs on the copy; its state has them.
    let place = format!("/threads/{}", copy["thread_id"].as_str().expect("an id"));
    assert_eq!((&copy["values"], &server.get(&place).await.ok()["values"]), (&json!(null), &json!(null)));
    assert_eq!(server.get(&format!("{place}/state")).await.ok()["values"], json!({"counter": 3}));
    server.post("/threads/nobody/copy", json!({})).await.refused(409);
    // A question that waits is copied, and can be answered on both; the copy's document is as for any copy.
    let asked = json!({"assistant_id": "approval", "input": {"topic": "tea"}});
    server.post("/threads/q/runs/wait", asked).await.ok();
    let copy = server.post("/threads/q/copy", json!({})).await.ok();
    let place = format!("/threads/{}", copy["thread_id"].as_str().expect("an id"));
    let shown = server.get(&place).await.ok();
    assert_eq!((&shown["status"], &shown["interrupts"]), (&json!("idle"), &json!({})), "{shown}");
    let pending =
        server.get(&format!("/interrupts?thread_id={}", copy["thread_id"].as_str().expect("an id"))).await.ok();
    assert_eq!(pending.as_array().map(Vec::len), Some(1), "{pending}");
    assert_eq!(server.get(&format!("{place}/state")).await.ok()["next"], json!(["approve"]));
    let answered = server.post(&format!("{place}/runs/wait"), json!({"command": {"resume": "yes"}})).await.ok();
    assert_eq!(answered["approved"], true);
    assert_eq!(server.get("/threads/q").await.ok()["status"], "interrupted");
}

#[tokio::test]
async fn threads_are_made_with_a_history() {
    let server = TestServer::start().await;
    let update = |n: i64, node: &str| json!({"updates": [{"values": {"counter": n}, "as_node": node}]});
    let body =
        json!({"metadata": {"graph_id": "counter"}, "supersteps": [update(1, "__input__"), update(2, "increment")]});
    let thread = server.post("/threads", body).await.ok();
    let place = format!("/threads/{}", thread["thread_id"].as_str().expect("an id"));
    assert_eq!(server.get(&format!("{place}/state")).await.ok()["values"], json!({"counter": 2}));
    let bad = json!({"thread_id": "t", "metadata": {"graph_id": "counter"}, "supersteps": [update(1, "nobody")]});
    let answer = server.post("/threads", bad).await;
    assert_eq!(answer.status, 201);
    assert!(answer.json()["detail"].as_str().is_some_and(|text| text.contains("supersteps failed")), "{answer:?}");
    server.get("/threads/t").await.ok();
    let text = server.post("/threads", json!({"supersteps": [update(1, "increment")]})).await.refused(422);
    assert!(text.starts_with("supersteps"), "{text}");
}

#[tokio::test]
async fn threads_are_found_by_ids_and_status() {
    let server = TestServer::start().await;
    let ids = [server.thread().await, server.thread().await];
    let found = server.post("/threads/search", json!({"ids": [ids[0]]})).await.ok();
    assert_eq!((found.as_array().map(Vec::len), &found[0]["thread_id"]), (Some(1), &json!(ids[0])));
    let asked = json!({"assistant_id": "approval", "input": {"topic": "tea"}});
    server.post(&format!("/threads/{}/runs/wait", ids[1]), asked).await.ok();
    let found = server.post("/threads/search", json!({"status": "interrupted"})).await.ok();
    assert_eq!((found.as_array().map(Vec::len), &found[0]["thread_id"]), (Some(1), &json!(ids[1])));
    assert_eq!(found[0]["interrupts"].as_object().map(serde_json::Map::len), Some(1));
    server.post("/threads/search", json!({"ids": ["a b"]})).await.refused(400);
    server.post("/threads/search", json!({"status": "asleep"})).await.refused(422);
    server.post("/threads/search", json!({"select": ["nope"]})).await.refused(422);
}
