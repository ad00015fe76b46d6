//! Sessions: ending, archiving and reopening threads.

use serde_json::{Value, json};

use crate::support::server::TestServer;

async fn count_to_three(server: &TestServer, thread: &str) {
    let run = json!({"assistant_id": "counter", "input": {"counter": 0}});
    server.post(&format!("/threads/{thread}/runs/wait"), run).await.ok();
}

#[tokio::test]
async fn an_ended_thread_refuses_runs_and_edits_and_says_why() {
    let server = TestServer::start().await;
    count_to_three(&server, "t").await;
    let body = json!({"reason": "the order was shipped", "ttl": {"strategy": "delete", "ttl": 60}});
    let ended = server.post_as("ann", "/threads/t/end", body).await.ok();
    let closed = &ended["closed"];
    assert_eq!((&closed["as"], &closed["by"]), (&json!("ended"), &json!("ann")));
    assert_eq!((&closed["reason"], &ended["values"]["counter"]), (&json!("the order was shipped"), &json!(3)));
    assert_eq!(closed["at"], ended["updated_at"]);
    assert_eq!(server.get("/threads/t").await.ok()["closed"], *closed);
    let run = json!({"assistant_id": "counter", "input": null});
    for (path, body) in [
        ("/threads/t/runs", run.clone()),
        ("/threads/t/runs/wait", run.clone()),
        ("/threads/t/runs/stream", run.clone()),
        ("/threads/t/state", json!({"values": {"counter": 1}})),
    ] {
        let text = server.post(path, body).await.refused(409);
        for part in ["was ended at ", " by ann (the order was shipped)", "POST /threads/t/reopen"] {
            assert!(text.contains(part), "{path}: {text}");
        }
    }
    let patch = r#"{"metadata":{"a":1}}"#;
    assert!(server.send("PATCH", "/threads/t/state", patch).await.refused(409).contains("was ended"));
    // What it is can be read, labelled and kept longer.
    assert_eq!(server.get("/threads/t/state").await.ok()["values"]["counter"], json!(3));
    assert_eq!(server.send("PATCH", "/threads/t", patch).await.ok()["metadata"]["a"], json!(1));
    assert_eq!(server.get("/threads/t?include=ttl").await.ok()["ttl"]["ttl_minutes"], json!(60));
    assert_eq!(server.post("/threads/t/end", json!({})).await.ok()["closed"], *closed, "again is the same");
    let open = server.post("/threads/t/reopen", json!({})).await.ok();
    assert!(open.get("closed").is_none(), "{open}");
    count_to_three(&server, "t").await;
    for path in ["/threads/nobody/end", "/threads/nobody/archive", "/threads/nobody/reopen"] {
        server.post(path, json!({})).await.refused(404);
    }
    assert!(server.post("/threads/t/end", json!({"if_active": "x"})).await.refused(422).contains("if_active"));
    assert!(server.post("/threads/t/end", json!({"ttl": "x"})).await.refused(422).contains("ttl"));
}

#[tokio::test]
async fn ending_stops_what_runs() {
    let server = TestServer::start().await;
    let run = json!({"assistant_id": "slow", "input": {"sleep_ms": 30_000}});
    let run = server.post("/threads/t/runs", run).await.ok();
    let run_id = run["run_id"].as_str().expect("an id").to_owned();
    let text = server.post("/threads/t/end", json!({"if_active": "reject"})).await.refused(409);
    assert!(text.contains("in-flight"), "{text}");
    assert!(server.get("/threads/t").await.ok().get("closed").is_none());
    assert_eq!(server.post("/threads/t/end", json!({})).await.ok()["closed"]["as"], json!("ended"));
    let status = async || server.get(&format!("/threads/t/runs/{run_id}")).await.ok()["status"].clone();
    server.until("the run is stopped", async || status().await == json!("interrupted")).await;
}

#[tokio::test]
async fn archived_threads_are_found_when_asked_for() {
    let server = TestServer::start().await;
    for thread in ["open", "ended", "archived"] {
        server.post("/threads", json!({"thread_id": thread})).await.ok();
    }
    server.post("/threads/ended/end", json!({})).await.ok();
    server.post("/threads/archived/archive", json!({})).await.ok();
    let text = server.post("/threads/archived/end", json!({})).await.refused(409);
    assert!(text.contains("was archived"), "{text}");
    for (closed, expected) in [
        (Value::Null, vec!["ended", "open"]),
        (json!("open"), vec!["open"]),
        (json!("ended"), vec!["ended"]),
        (json!("archived"), vec!["archived"]),
        (json!("any"), vec!["archived", "ended", "open"]),
    ] {
        let body = json!({"closed": closed, "sort_by": "thread_id", "sort_order": "asc"});
        let found = server.post("/threads/search", body.clone()).await.ok();
        let names: Vec<_> =
            found.as_array().expect("a list").iter().map(|thread| thread["thread_id"].clone()).collect();
        assert_eq!(names, expected, "{closed}");
        assert_eq!(server.post("/threads/count", body).await.ok(), json!(expected.len()));
    }
    assert!(server.post("/threads/search", json!({"closed": "x"})).await.refused(422).contains("closed"));
}

#[tokio::test]
async fn questions_of_an_ended_thread_leave_the_inbox() {
    let server = TestServer::start().await;
    let run = json!({"assistant_id": "approval", "input": {"topic": "tea"}});
    server.post("/threads/t/runs/wait", run).await.ok();
    let pending = server.get("/interrupts").await.ok();
    let id = pending[0]["interrupt_id"].as_str().expect("an id").to_owned();
    server.post("/threads/t/end", json!({})).await.ok();
    assert_eq!(server.get("/interrupts").await.ok(), json!([]));
    server.post(&format!("/threads/t/interrupts/{id}/answer"), json!({"answer": "yes"})).await.refused(409);
    server.post("/threads/t/reopen", json!({})).await.ok();
    server.post(&format!("/threads/t/interrupts/{id}/answer"), json!({"answer": "yes"})).await.ok();
}
