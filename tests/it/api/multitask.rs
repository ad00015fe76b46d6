//! Several runs on one thread: the strategies, cancelling, and clients that go away (contract section 3.5).

use serde_json::{Value, json};

use crate::support::server::TestServer;

const SLOW: &str = r#"{"assistant_id":"slow","input":{"n":0,"steps":1000,"sleep_ms":20},"durability":"sync"}"#;

fn quick(strategy: &str) -> Value {
    json!({"assistant_id": "slow", "input": {"n": 0, "steps": 1}, "multitask_strategy": strategy})
}

/// Starts a run that lasts, and waits until it has taken a step.
async fn busy(server: &TestServer, thread: &str) -> String {
    let run = server.send("POST", &format!("/threads/{thread}/runs"), SLOW).await.ok();
    let state = format!("/threads/{thread}/state");
    server.until("a step", async || server.get(&state).await.ok()["values"]["n"].as_i64() > Some(0)).await;
    let id = run["run_id"].as_str().expect("an id");
    format!("/threads/{thread}/runs/{id}")
}

async fn status(server: &TestServer, place: &str) -> String {
    server.get(place).await.ok()["status"].as_str().expect("a status").to_owned()
}

#[tokio::test]
async fn reject_inserts_nothing_while_another_run_is_active() {
    let server = TestServer::start().await;
    let first = busy(&server, "t").await;
    let text = server.post("/threads/t/runs", quick("reject")).await.refused(409);
    assert_eq!(
        text,
        "Thread is already running a task. Wait for it to finish or choose a different multitask strategy."
    );
    assert_eq!(server.get("/threads/t/runs").await.ok().as_array().map(Vec::len), Some(1));
    assert_eq!(server.get("/threads/t").await.ok()["status"], "busy");
    server.post(&format!("{first}/cancel?wait=1"), json!({})).await.ok();
    server.post("/threads/t/runs/wait", quick("reject")).await.ok();
}

#[tokio::test]
async fn enqueued_runs_wait_for_their_turn_in_order() {
    let server = TestServer::start().await;
    let first = busy(&server, "t").await;
    let mut places = Vec::new();
    for _ in 0..3 {
        let run = server.post("/threads/t/runs", quick("enqueue")).await.ok();
        places.push(format!("/threads/t/runs/{}", run["run_id"].as_str().expect("an id")));
    }
    for place in &places {
        assert_eq!(status(&server, place).await, "pending");
    }
    server.post(&format!("{first}/cancel?wait=1"), json!({})).await.ok();
    server.get(&format!("{}/join", places[2])).await.ok();
    let mut ended = Vec::new();
    for place in &places {
        let run = server.get(place).await.ok();
        assert_eq!(run["status"], "success");
        ended.push(run["updated_at"].as_str().expect("a time").to_owned());
    }
    assert!(ended.is_sorted(), "{ended:?}");
}

#[tokio::test]
async fn interrupt_stops_what_is_active_and_keeps_its_steps() {
    let server = TestServer::start().await;
    let first = busy(&server, "t").await;
    let waiting = server.post("/threads/t/runs", quick("enqueue")).await.ok();
    let waiting = format!("/threads/t/runs/{}", waiting["run_id"].as_str().expect("an id"));
    let before = server.get("/threads/t/state").await.ok()["values"]["n"].as_i64();
    let body = json!({"assistant_id": "slow", "input": {"steps": 0}, "multitask_strategy": "interrupt"});
    let after = server.post("/threads/t/runs/wait", body).await.ok();
    assert!(after["n"].as_i64() > before, "the steps stay: {after}");
    assert_eq!(status(&server, &first).await, "interrupted");
    assert_eq!(status(&server, &waiting).await, "interrupted");
}

#[tokio::test]
async fn rollback_takes_back_what_active_runs_did() {
    let server = TestServer::start().await;
    server.post("/threads/t/runs/wait", quick("enqueue")).await.ok();
    let before = server.post("/threads/t/history", json!({"limit": 100})).await.ok();
    let first = busy(&server, "t").await;
    let waiting = server.post("/threads/t/runs", quick("enqueue")).await.ok();
    let waiting = format!("/threads/t/runs/{}", waiting["run_id"].as_str().expect("an id"));
    let body = json!({"assistant_id": "slow", "input": null, "multitask_strategy": "rollback"});
    let after = server.post("/threads/t/runs/wait", body).await.ok();
    assert_eq!(after["n"], 1, "the state is that from before");
    for place in [&first, &waiting] {
        server.get(place).await.refused(404);
    }
    assert_eq!(server.post("/threads/t/history", json!({"limit": 100})).await.ok(), before);
}

#[tokio::test]
async fn cancelling_waits_when_asked_and_says_when_there_is_nothing_to_cancel() {
    let server = TestServer::start().await;
    let run = busy(&server, "t").await;
    let answer = server.post(&format!("{run}/cancel?wait=true&action=interrupt&reason=enough"), json!({})).await;
    assert_eq!((answer.ok(), answer.header("location")), (json!({}), Some(format!("{run}/join").as_str())));
    assert_eq!(status(&server, &run).await, "interrupted");
    assert_eq!(server.get("/threads/t").await.ok()["status"], "interrupted", "nodes are left");
    server.post(&format!("{run}/cancel"), json!({})).await.refused(404);
    server.post(&format!("{run}/cancel?action=stop"), json!({})).await.refused(422);
    let run = busy(&server, "u").await;
    let answer = server.post(&format!("{run}/cancel?action=rollback"), json!({})).await;
    assert_eq!((answer.status, answer.text.as_str()), (202, ""));
    server.until("the run is gone", async || server.get(&run).await.status == 404).await;
    assert_eq!(server.post("/threads/u/history", json!({})).await.ok(), json!([]));
}

#[tokio::test]
async fn whatever_runs_on_a_thread_is_cancelled_without_its_id() {
    let server = TestServer::start().await;
    let first = busy(&server, "t").await;
    let second = server.post("/threads/t/runs", quick("enqueue")).await.ok();
    assert_eq!(server.post("/threads/t/runs/cancel?wait=1", json!({})).await.ok(), json!({}));
    assert_eq!(status(&server, &first).await, "interrupted");
    let second = format!("/threads/t/runs/{}", second["run_id"].as_str().expect("an id"));
    assert_eq!(status(&server, &second).await, "interrupted");
    assert_eq!(server.post("/threads/t/runs/cancel", json!({})).await.status, 202, "again is fine");
    server.post("/threads/nobody/runs/cancel", json!({})).await.refused(404);
}

#[tokio::test]
async fn many_runs_are_cancelled_by_status_or_by_name() {
    let server = TestServer::start().await;
    let first = busy(&server, "t").await;
    let second = server.post("/threads/t/runs", quick("enqueue")).await.ok()["run_id"].clone();
    let none = json!({"thread_id": "t", "run_ids": [uuid::Uuid::nil()]});
    assert_eq!(server.post("/runs/cancel", none).await.refused(404), "No runs found to cancel.");
    let by_name = json!({"thread_id": "t", "run_ids": [second]});
    assert_eq!(server.post("/runs/cancel", by_name).await.status, 204);
    assert_eq!(status(&server, &first).await, "running");
    assert_eq!(server.post("/runs/cancel?action=interrupt", json!({"status": "all"})).await.status, 204);
    server.get(&format!("{first}/join")).await.ok();
    assert_eq!(status(&server, &first).await, "interrupted");
    server.post("/runs/cancel", json!({"status": "all"})).await.refused(404);
    server.post("/runs/cancel", json!({"status": "all", "thread_id": "t", "run_ids": []})).await.refused(422);
}

#[tokio::test]
async fn only_runs_of_a_status_are_cancelled_and_rolled_back_if_asked_to() {
    let server = TestServer::start().await;
    let running = busy(&server, "t").await;
    let pending = server.post("/threads/t/runs", quick("enqueue")).await.ok();
    let pending = format!("/threads/t/runs/{}", pending["run_id"].as_str().expect("an id"));
    assert_eq!(server.post("/runs/cancel", json!({"status": "pending"})).await.status, 204);
    assert_eq!(
        (status(&server, &pending).await.as_str(), status(&server, &running).await.as_str()),
        ("interrupted", "running")
    );
    server.post("/runs/cancel", json!({"status": "pending"})).await.refused(404);
    assert_eq!(server.post("/runs/cancel?action=rollback", json!({"status": "running"})).await.status, 204);
    server.until("the run is gone", async || server.get(&running).await.status == 404).await;
    let state = server.get("/threads/t/state").await.ok();
    assert_eq!(
        (&state["values"], &state["checkpoint"]["checkpoint_id"]),
        (&json!({}), &Value::Null),
        "and what it did"
    );
    server.post("/runs/cancel", json!({"status": "done"})).await.refused(422);
}

#[tokio::test]
async fn a_run_is_cancelled_when_the_one_who_waits_goes_away_if_they_said_so() {
    let server = TestServer::start().await;
    for (thread, on_disconnect, way) in
        [("a", "cancel", "wait"), ("b", "cancel", "stream"), ("c", "continue", "wait"), ("d", "continue", "stream")]
    {
        let mut body: Value = serde_json::from_str(SLOW).expect("JSON");
        body["on_disconnect"] = json!(on_disconnect);
        // One that goes on has an end; one that is cancelled has none that could come first.
        body["input"]["steps"] = json!(if on_disconnect == "cancel" { 10_000 } else { 10 });
        let url = format!("{}/threads/{thread}/runs/{way}", server.url);
        let request = tokio::spawn(reqwest::Client::new().post(url).body(body.to_string()).send());
        let runs = format!("/threads/{thread}/runs");
        let started = async || server.get(&runs).await.json()[0]["status"] == "running";
        server.until("it runs", started).await;
        // Whether the answer has begun or not.
        request.abort();
        drop(request.await);
        let wanted = if on_disconnect == "cancel" { "interrupted" } else { "success" };
        let ended = async || server.get(&runs).await.ok()[0]["status"] == wanted;
        server.until(&format!("{on_disconnect} {way}"), ended).await;
    }
}

#[tokio::test]
async fn a_run_is_cancelled_when_the_one_who_joined_goes_away_if_they_said_so() {
    let server = TestServer::start().await;
    for (thread, way, cancels) in [
        ("a", "join?cancel_on_disconnect=1", true),
        ("b", "stream?cancel_on_disconnect=true", true),
        ("c", "join", false),
        ("d", "stream?cancel_on_disconnect=0", false),
    ] {
        let mut body: Value = serde_json::from_str(SLOW).expect("JSON");
        // One that goes on has an end; one that is cancelled has none that could come first.
        body["input"]["steps"] = json!(if cancels { 10_000 } else { 20 });
        let run = server.post(&format!("/threads/{thread}/runs"), body).await.ok();
        let run = format!("/threads/{thread}/runs/{}", run["run_id"].as_str().expect("an id"));
        server.until("it runs", async || status(&server, &run).await == "running").await;
        // The answer begins at once, and ends with the run.
        let answer = reqwest::get(format!("{}{run}/{way}", server.url)).await.expect("an answer");
        assert_eq!(answer.status(), 200);
        drop(answer);
        let wanted = if cancels { "interrupted" } else { "success" };
        server.until(way, async || status(&server, &run).await == wanted).await;
    }
}

#[tokio::test]
async fn a_delayed_run_lies_in_the_future_until_it_is_due() {
    let server = TestServer::start().await;
    let mut body = quick("enqueue");
    body["after_seconds"] = json!(3600);
    let run = server.post("/threads/t/runs", body).await.ok();
    assert!(run["created_at"].as_str() > run["updated_at"].as_str(), "{run}");
    // It does not stand in the way of what is due.
    server.post("/threads/t/runs/wait", quick("enqueue")).await.ok();
    let place = format!("/threads/t/runs/{}", run["run_id"].as_str().expect("an id"));
    assert_eq!(status(&server, &place).await, "pending");
}

#[tokio::test]
async fn a_stateless_run_keeps_its_thread_when_asked() {
    let server = TestServer::start().await;
    let mut body = quick("enqueue");
    body["on_completion"] = json!("keep");
    body["feedback_keys"] = json!(["a"]);
    let answer = server.post("/runs/wait", body.clone()).await;
    answer.ok();
    let run = answer.header("location").expect("a place").trim_end_matches("/join").to_owned();
    assert_eq!(status(&server, &run).await, "success");
    let created = server.post("/runs", body).await;
    let run = created.ok();
    let id = run["run_id"].as_str().expect("an id");
    assert_eq!(created.header("content-location"), Some(format!("/runs/{id}").as_str()));
    let place = format!("/threads/{}/runs/{id}", run["thread_id"].as_str().expect("a thread"));
    server.get(&format!("{place}/join")).await.ok();
    assert_eq!(status(&server, &place).await, "success");
}

#[tokio::test]
async fn deleting_an_active_run_takes_it_back() {
    let server = TestServer::start().await;
    server.post("/threads/t/runs/wait", quick("enqueue")).await.ok();
    let before = server.post("/threads/t/history", json!({"limit": 100})).await.ok();
    let first = busy(&server, "t").await;
    let waiting = server.post("/threads/t/runs", quick("enqueue")).await.ok();
    let waiting = format!("/threads/t/runs/{}", waiting["run_id"].as_str().expect("an id"));
    for place in [&waiting, &first] {
        assert_eq!(server.send("DELETE", place, "").await.status, 204);
        server.get(place).await.refused(404);
    }
    assert_eq!(server.post("/threads/t/history", json!({"limit": 100})).await.ok(), before);
    server.send("DELETE", &first, "").await.refused(404);
    server.post("/threads/t/runs/wait", quick("reject")).await.ok();
}
