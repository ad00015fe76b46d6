//! How long threads are kept, what is removed, and what they occupy.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::server::TestServer;

async fn chat(server: &TestServer, thread: &str, text: &str) {
    let messages = json!([{"role": "user", "content": text}]);
    let run = json!({"assistant_id": "chat", "input": {"messages": messages}});
    server.post(&format!("/threads/{thread}/runs/wait"), run).await.ok();
}

#[tokio::test]
async fn a_time_to_live_is_set_shown_and_changed() {
    let server = TestServer::start().await;
    let body = json!({"thread_id": "t", "ttl": {"strategy": "keep_latest", "ttl": 90.5}});
    assert!(server.post("/threads", body).await.ok().get("ttl").is_none());
    assert!(server.get("/threads/t").await.ok().get("ttl").is_none());
    let shown = server.get("/threads/t?include=ttl").await.ok()["ttl"].clone();
    assert_eq!((&shown["strategy"], &shown["ttl_minutes"]), (&json!("keep_latest"), &json!(90.5)));
    assert!(shown["expires_at"].as_str().is_some_and(|at| at.ends_with("+00:00")), "{shown}");
    server.send("PATCH", "/threads/t", r#"{"ttl":60}"#).await.ok();
    let shown = server.get("/threads/t?include=ttl").await.ok()["ttl"].clone();
    assert_eq!((&shown["strategy"], &shown["ttl_minutes"]), (&json!("delete"), &json!(60)));
    server.thread().await;
    server.post("/threads", json!({"thread_id": "forever"})).await.ok();
    assert_eq!(server.get("/threads/forever?include=ttl").await.ok()["ttl"], Value::Null);
    server.get("/threads/t?include=what").await.refused(422);
    for bad in [json!({"strategy": "x", "ttl": 1}), json!({"strategy": "delete"}), json!(-1), json!("x")] {
        let text = server.post("/threads", json!({"ttl": bad})).await.refused(422);
        assert!(text.starts_with("ttl"), "{text}");
    }
}

#[tokio::test]
async fn expired_threads_go_or_keep_their_latest_state() {
    let server = TestServer::start().await;
    for (thread, strategy) in [("goes", "delete"), ("stays", "keep_latest")] {
        server.post("/threads", json!({"thread_id": thread, "ttl": {"strategy": strategy, "ttl": 60}})).await.ok();
        chat(&server, thread, "one").await;
        chat(&server, thread, "two").await;
    }
    let before = server.get("/threads/stays/state").await.ok();
    // Their time is over: the sweeper of the test server looks many times a second.
    for thread in ["goes", "stays"] {
        let strategy = if thread == "goes" { "delete" } else { "keep_latest" };
        let body = json!({"ttl": {"strategy": strategy, "ttl": 0}}).to_string();
        server.send("PATCH", &format!("/threads/{thread}"), body).await.ok();
    }
    server.until("the thread is gone", async || server.get("/threads/goes").await.status == 404).await;
    let states = async || server.post("/threads/stays/history", json!({"limit": 100})).await.ok();
    server.until("old states are gone", async || states().await.as_array().map(Vec::len) == Some(1)).await;
    let after = server.get("/threads/stays/state").await.ok();
    assert_eq!((&after["values"], &after["parent_checkpoint"]), (&before["values"], &Value::Null));
    // It goes on from there.
    chat(&server, "stays", "three").await;
    let messages = server.get("/threads/stays/state").await.ok()["values"]["messages"].clone();
    assert_eq!(messages.as_array().map(Vec::len), Some(6), "{messages}");
}

#[tokio::test]
async fn pruning_deletes_threads_or_their_old_states() {
    let server = TestServer::start().await;
    for thread in ["a", "b"] {
        chat(&server, thread, &"long ".repeat(100)).await;
        chat(&server, thread, "two").await;
    }
    let before = server.get("/threads/b/storage").await.ok();
    let pruned = server.post("/threads/prune", json!({"thread_ids": ["a", "nobody"]})).await.ok();
    assert_eq!(pruned, json!({"pruned_count": 1}));
    server.get("/threads/a").await.refused(404);
    let body = json!({"thread_ids": ["b", "nobody"], "strategy": "keep_latest"});
    assert_eq!(server.post("/threads/prune", body.clone()).await.ok(), json!({"pruned_count": 1}));
    let states = server.post("/threads/b/history", json!({"limit": 100})).await.ok();
    assert_eq!(states.as_array().map(Vec::len), Some(1));
    assert_eq!(states[0]["values"]["messages"].as_array().map(Vec::len), Some(4));
    let after = server.get("/threads/b/storage").await.ok();
    assert!(after["total_bytes"].as_i64() < before["total_bytes"].as_i64(), "{before} {after}");
    assert_eq!(after["checkpoints"]["count"], 1);
    // A question that waits is kept with the state it belongs to.
    let asked = json!({"assistant_id": "approval", "input": {"topic": "tea"}});
    server.post("/threads/q/runs/wait", asked).await.ok();
    let body_q = json!({"thread_ids": ["q"], "strategy": "keep_latest"});
    assert_eq!(server.post("/threads/prune", body_q).await.ok(), json!({"pruned_count": 1}));
    let answered = json!({"assistant_id": "approval", "command": {"resume": "yes"}});
    assert_eq!(server.post("/threads/q/runs/wait", answered).await.ok()["approved"], true);
    server.post("/threads/prune", json!({})).await.refused(422);
    server.post("/threads/prune", json!({"thread_ids": ["b"], "strategy": "x"})).await.refused(422);
    // In use, a thread is left alone.
    let slow = json!({"assistant_id": "slow", "input": {"steps": 100}});
    server.post("/threads/b/runs", slow).await.ok();
    assert_eq!(server.post("/threads/prune", body).await.ok(), json!({"pruned_count": 0}));
}

#[tokio::test]
async fn bytes_are_told_by_kind_and_channel() {
    let server = TestServer::start().await;
    chat(&server, "t", &"long ".repeat(100)).await;
    let report = server.get("/threads/t/storage").await.ok();
    assert_eq!(report["thread_id"], "t");
    let of = |kind: &str| report[kind]["bytes"].as_i64().unwrap_or_else(|| panic!("{kind}: {report}"));
    let all = ["checkpoints", "channel_values", "pending_writes", "events", "runs", "log"];
    assert_eq!(report["total_bytes"].as_i64(), Some(all.iter().map(|kind| of(kind)).sum()));
    assert!(report["channel_values"]["by_channel"]["messages"]["bytes"].as_i64() > Some(500), "{report}");
    server.get("/threads/nobody/storage").await.refused(404);
    // Small values stand in the rows of their checkpoints; a question is in no channel.
    let long = "tea ".repeat(100);
    let asked = json!({"assistant_id": "approval", "input": {"topic": long}});
    server.post("/threads/q/runs/wait", asked).await.ok();
    let counted = json!({"assistant_id": "counter", "input": {"counter": 0}});
    server.post("/threads/c/runs/wait", counted).await.ok();
    let by_channel = async |thread: &str| {
        let report = server.get(&format!("/threads/{thread}/storage")).await.ok();
        report["channel_values"]["by_channel"].clone()
    };
    assert_eq!(
        by_channel("c").await,
        json!({"__start__": {"count": 1, "bytes": 13}, "counter": {"count": 4, "bytes": 4}})
    );
    let found = by_channel("q").await;
    let names: Vec<&String> = found.as_object().expect("channels").keys().collect();
    assert_eq!(names, ["__start__", "approved", "draft", "published", "topic"], "{found}");
}

#[tokio::test]
async fn metadata_is_added_to_the_latest_state() {
    let server = TestServer::start().await;
    let id = server.thread().await;
    let place = format!("/threads/{id}/state");
    server.send("PATCH", &place, r#"{"metadata":{"note":"x"}}"#).await.refused(400);
    chat(&server, &id, "one").await;
    let patched = server.send("PATCH", &place, r#"{"metadata":{"note":"x","step":99,"run_id":"y"}}"#).await.ok();
    let state = server.get(&place).await.ok();
    assert_eq!(patched["checkpoint"], state["checkpoint"]);
    assert_eq!(patched["checkpoint_id"], state["checkpoint"]["checkpoint_id"]);
    assert_eq!((&state["metadata"]["note"], &state["metadata"]["step"]), (&json!("x"), &json!(1)));
    assert_ne!(state["metadata"]["run_id"], "y");
    let found = server.post(&format!("/threads/{id}/history"), json!({"metadata": {"note": "x"}})).await.ok();
    assert_eq!(found.as_array().map(Vec::len), Some(1));
    server.send("PATCH", &place, "{}").await.refused(422);
    server.send("PATCH", "/threads/nobody/state", r#"{"metadata":{}}"#).await.refused(404);
}

#[tokio::test]
async fn every_way_of_making_a_thread_gives_it_the_default() {
    let server = TestServer::keeping_for(Duration::from_secs(3600)).await;
    let id = server.thread().await;
    chat(&server, "named", "one").await;
    let kept = json!({"assistant_id": "counter", "input": {"counter": 0}, "on_completion": "keep"});
    let answer = server.post("/runs/wait", kept).await;
    let place = answer.header("location").expect("a place").to_owned();
    let kept = place.split('/').nth(2).expect("a thread");
    for thread in [id.as_str(), "named", kept] {
        let shown = server.get(&format!("/threads/{thread}?include=ttl")).await.ok();
        assert_eq!(
            (&shown["ttl"]["strategy"], &shown["ttl"]["ttl_minutes"]),
            (&json!("delete"), &json!(60)),
            "{shown}"
        );
    }
}
