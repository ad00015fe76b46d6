//! The whole session in one document, and why runs are where they are.

use std::time::Duration;

use serde_json::{Value, json};
use session_store::http::HttpSettings;
use session_store::runtime::Settings;

use crate::support::server::{TestServer, runtime_settings};

#[tokio::test]
async fn a_session_is_one_document() {
    let server = TestServer::start().await;
    let thread = json!({"thread_id": "t", "metadata": {"owner": "ann"}, "ttl": 60});
    server.post("/threads", thread).await.ok();
    let empty = server.get("/threads/t/session").await.ok();
    assert_eq!((&empty["session_id"], &empty["status"], &empty["values"]), (&json!("t"), &json!("idle"), &json!({})));
    assert_eq!((&empty["position"]["checkpoint_id"], &empty["counts"]["runs"]), (&Value::Null, &json!(0)));
    let run = json!({"assistant_id": "approval", "input": {"topic": "tea"}});
    server.post_as("bob", "/threads/t/runs/wait", run).await.ok();
    let session = server.post_as("eve", "/threads/t/branches/asked", json!({})).await.ok();
    assert_eq!(session["name"], json!("asked"));
    let session = server.get("/threads/t/session").await.ok();
    let state = server.get("/threads/t/state").await.ok();
    assert_eq!((&session["owner"], &session["status"]), (&json!("ann"), &json!("interrupted")));
    assert_eq!((&session["graph"]["graph_id"], &session["graph"]["version"]), (&json!("approval"), &json!("1")));
    let position = &session["position"];
    assert_eq!(position["checkpoint_id"], state["checkpoint"]["checkpoint_id"]);
    assert_eq!((&position["next"], &position["step"]), (&json!(["approve"]), &state["metadata"]["step"]));
    let pending = &session["interrupts"]["pending"];
    assert_eq!(pending.as_array().map(Vec::len), Some(1), "{session}");
    assert_eq!(position["tasks"][0]["interrupt_ids"], json!([pending[0]["interrupt_id"]]));
    assert_eq!((&session["interrupts"]["past"], &session["interrupts"]["more"]), (&json!([]), &json!(0)));
    assert_eq!(session["values"], state["values"]);
    assert_eq!((&session["counts"]["runs"], &session["counts"]["branches"]), (&json!(1), &json!(1)));
    assert!(session["counts"]["bytes"].as_i64().is_some_and(|bytes| bytes > 0), "{session}");
    assert_eq!(session["ttl"]["ttl_minutes"], json!(60.0));
    let may = session["permissions"]["may"].as_array().expect("a list");
    assert!(
        may.contains(&json!("answer")) && may.contains(&json!("run")) && !may.contains(&json!("reopen")),
        "{may:?}"
    );
    // The answer is in the past then, and who gave it.
    let path = format!("/threads/t/interrupts/{}/answer", pending[0]["interrupt_id"].as_str().expect("an id"));
    let run = server.post_as("eve", &path, json!({"answer": "yes"})).await.ok();
    server.get(&format!("/threads/t/runs/{}/join", run["run_id"].as_str().expect("an id"))).await.ok();
    server.post("/threads/t/end", json!({"reason": "published"})).await.ok();
    let session = server.get("/threads/t/session").await.ok();
    assert_eq!((&session["status"], &session["closed"]["reason"]), (&json!("idle"), &json!("published")));
    let past = &session["interrupts"]["past"][0];
    assert_eq!((&past["answer"], &past["answered_by"]), (&json!("yes"), &json!("eve")));
    assert_eq!((&session["interrupts"]["pending"], &session["position"]["next"]), (&json!([]), &json!([])));
    assert_eq!(session["permissions"]["may"], json!(["read", "label", "copy", "delete", "reopen"]));
    server.get("/threads/nobody/session").await.refused(404);
    server.get("/threads/t/session?values=x").await.refused(422);
}

#[tokio::test]
async fn a_session_shows_what_runs_on_it_under_which_lease() {
    let server = TestServer::start().await;
    let slow = json!({"assistant_id": "slow", "input": {"n": 0, "steps": 1000, "sleep_ms": 20}});
    let run = server.post("/threads/t/runs", slow.clone()).await.ok();
    let path = format!("/threads/t/runs/{}", run["run_id"].as_str().expect("an id"));
    server.until("it runs", async || server.get(&path).await.ok()["status"] == "running").await;
    let waiting = server.post("/threads/t/runs", slow).await.ok();
    let session = server.get("/threads/t/session").await.ok();
    assert_eq!((&session["status"], &session["counts"]["active_runs"]), (&json!("busy"), &json!(2)), "{session}");
    let runs = session["active_runs"].as_array().expect("a list");
    let by_id = |id: &Value| runs.iter().find(|run| run["run_id"] == *id).unwrap_or_else(|| panic!("{id} in {runs:?}"));
    let lease = &by_id(&run["run_id"])["lease"];
    assert_eq!((&lease["is_held"], &lease["epoch"]), (&json!(true), &json!(1)), "{lease}");
    assert!(lease["worker"].is_string() && lease["until"].is_string(), "{lease}");
    assert_eq!(by_id(&waiting["run_id"])["status"], "pending");
    assert_eq!(server.post("/threads/t/runs/cancel?wait=1", json!({})).await.ok(), json!({}));
    assert_eq!(server.get("/threads/t/session").await.ok()["active_runs"], json!([]));
}

#[tokio::test]
async fn long_values_are_told_by_their_size() {
    let server = TestServer::start().await;
    let long = "x".repeat(5_000);
    let messages = json!([{"role": "user", "content": long}]);
    server.post("/threads/t/runs/wait", json!({"assistant_id": "chat", "input": {"messages": messages}})).await.ok();
    let short = server.get("/threads/t/session").await.ok();
    assert_eq!((&short["values"], &short["omitted_values"]["messages"]["items"]), (&json!({}), &json!(2)));
    assert!(short["omitted_values"]["messages"]["bytes"].as_u64().is_some_and(|bytes| bytes > 5_000));
    let full = server.get("/threads/t/session?values=full").await.ok();
    assert_eq!(full["values"], server.get("/threads/t/state").await.ok()["values"]);
    assert!(full.get("omitted_values").is_none());
    assert!(server.get("/threads/t/session?values=none").await.ok().get("values").is_none());
}

#[tokio::test]
async fn a_run_that_ended_is_explained() {
    let server = TestServer::start().await;
    let run = json!({"assistant_id": "approval", "input": {"topic": "tea"}});
    let run = server.post_as("bob", "/threads/t/runs", run).await.ok();
    let run_id = run["run_id"].as_str().expect("an id").to_owned();
    server.get(&format!("/threads/t/runs/{run_id}/join")).await.ok();
    let path = format!("/runs/{run_id}/explain");
    let why = server.get(&path).await.ok();
    assert_eq!((&why["status"], &why["created_by"]), (&json!("success"), &json!("bob")));
    assert_eq!((&why["attempt"], &why["claims"], &why["lease"]), (&json!(1), &json!(1), &Value::Null));
    let question = server.get("/interrupts").await.ok()[0]["interrupt_id"].clone();
    assert_eq!(why["waits_for"], json!({"kind": "answer", "interrupt_ids": [question]}));
    assert!(why["summary"].as_str().is_some_and(|text| text.contains("by bob") && text.contains("stopped to ask")));
    assert!(why["queue_ms"].as_i64().is_some_and(|ms| ms >= 0) && why["ended_at"].is_string(), "{why}");
    assert_eq!(server.get(&format!("/threads/t/runs/{run_id}/explain")).await.ok()["run_id"], json!(run_id));
    server.post("/threads/t/runs/wait", json!({"assistant_id": "approval", "command": {"resume": "yes"}})).await.ok();
    let why = server.get(&path).await.ok();
    assert_eq!(why["waits_for"], Value::Null, "somebody answered");
    assert!(why["slowest_superstep"]["nodes"].as_array().is_some_and(|nodes| !nodes.is_empty()), "{why}");
    server.get(&format!("/threads/other/runs/{run_id}/explain")).await.refused(404);
    server.get("/runs/00000000-0000-0000-0000-000000000000/explain").await.refused(404);
    server.get("/runs/x/explain").await.refused(422);
}

#[tokio::test]
async fn a_run_that_waits_says_for_what() {
    // A lease that holds however busy the machine is.
    let settings = Settings { lease: Duration::from_secs(600), ..runtime_settings() };
    let server = TestServer::with_runtime(HttpSettings::default(), settings).await;
    let slow = json!({"assistant_id": "slow", "input": {"sleep_ms": 30_000}});
    let explain =
        async |run: &Value| server.get(&format!("/runs/{}/explain", run["run_id"].as_str().expect("an id"))).await.ok();
    let first = server.post("/threads/t/runs", slow.clone()).await.ok();
    server.until("it runs", async || explain(&first).await["status"] == json!("running")).await;
    let why = explain(&first).await;
    assert_eq!((&why["waits_for"], &why["lease"]["is_held"]), (&Value::Null, &json!(true)), "{why}");
    assert!(why["worker"].is_string() && why["started_at"].is_string());
    let second = server.post("/threads/t/runs", slow.clone()).await.ok();
    let why = explain(&second).await;
    let want = json!({"kind": "earlier_run", "run_id": first["run_id"], "status": "running", "ahead": 1});
    assert_eq!((&why["waits_for"], &why["started_at"]), (&want, &Value::Null));
    assert!(why["queue_ms"].as_i64().is_some_and(|ms| ms >= 0), "{why}");
    let later = json!({"assistant_id": "slow", "input": {}, "after_seconds": 3600});
    let later = server.post("/threads/later/runs", later).await.ok();
    let why = explain(&later).await;
    assert_eq!((&why["waits_for"]["kind"], &why["waits_for"]["until"]), (&json!("time"), &why["due_at"]));
    let path = format!("/threads/t/runs/{}/cancel?wait=true&reason=done", second["run_id"].as_str().expect("an id"));
    server.post_as("eve", &path, json!({})).await;
    let why = explain(&second).await;
    assert_eq!((&why["status"], &why["cancel"]["by"]), (&json!("interrupted"), &json!("eve")));
    assert_eq!(why["cancel"]["reason"], json!("done"));
    server.post("/threads/t/end", json!({})).await.ok();
}

#[tokio::test]
async fn a_run_nobody_takes_says_that_nobody_does() {
    let idle = Settings { claims: false, ..runtime_settings() };
    let server = TestServer::with_runtime(HttpSettings::default(), idle).await;
    let run = server.post("/threads/t/runs", json!({"assistant_id": "counter", "input": {"counter": 0}})).await.ok();
    let why = server.get(&format!("/runs/{}/explain", run["run_id"].as_str().expect("an id"))).await.ok();
    assert_eq!(why["waits_for"], json!({"kind": "worker", "pending": 1, "running": 0, "here": null}));
    assert!(why["summary"].as_str().is_some_and(|text| text.contains("role api")), "{why}");
}
