//! Runs on threads and without.

use serde_json::{Value, json};
use session_store::http::{HeaderPatterns, HttpSettings};
use uuid::Uuid;

use crate::support::server::TestServer;

fn counter() -> Value {
    json!({"assistant_id": "counter", "input": {"counter": 0}})
}

#[tokio::test]
async fn waiting_answers_the_values_and_says_where_the_run_is() {
    let server = TestServer::start().await;
    let id = server.thread().await;
    let answer = server.post(&format!("/threads/{id}/runs/wait"), counter()).await;
    assert_eq!(answer.ok(), json!({"counter": 3}));
    let place = answer.header("content-location").expect("a place").to_owned();
    assert_eq!(answer.header("location"), Some(format!("{place}/join").as_str()));
    let run = server.get(&place).await.ok();
    assert_eq!((&run["status"], &run["thread_id"]), (&json!("success"), &json!(id)));
    assert_eq!(run["kwargs"]["input"], json!({"counter": 0}));
    assert_eq!(run["langsmith_session_name"], Value::Null);
    assert_eq!(server.get(&format!("{place}/join")).await.ok(), json!({"counter": 3}));
    assert_eq!(server.get(&format!("/threads/{id}")).await.ok()["metadata"]["graph_id"], "counter");
}

#[tokio::test]
async fn created_runs_are_pending_listed_joined_and_deleted() {
    let server = TestServer::start().await;
    let id = server.thread().await;
    let created = server.post(&format!("/threads/{id}/runs"), counter()).await;
    let run = created.ok();
    assert_eq!(run["status"], "pending");
    let place = format!("/threads/{id}/runs/{}", run["run_id"].as_str().expect("an id"));
    assert_eq!(created.header("content-location"), Some(place.as_str()));
    assert_eq!(server.get(&format!("{place}/join")).await.ok(), json!({"counter": 3}));
    let listed = server.get(&format!("/threads/{id}/runs?select=run_id&select=status")).await.ok();
    assert_eq!(listed, json!([{"run_id": run["run_id"], "status": "success"}]));
    assert_eq!(server.get(&format!("/threads/{id}/runs?status=error")).await.ok(), json!([]));
    assert_eq!(server.send("DELETE", &place, "").await.status, 204);
    server.get(&place).await.refused(404);
    server.send("DELETE", &place, "").await.refused(404);
}

#[tokio::test]
async fn stateless_runs_leave_nothing() {
    let server = TestServer::start().await;
    let answer = server.post("/runs/wait", counter()).await;
    assert_eq!(answer.ok(), json!({"counter": 3}));
    let place = answer.header("location").expect("a place");
    assert!(place.starts_with("/threads/") && place.ends_with("/join"), "{place}");
    server.get(place.trim_end_matches("/join")).await.refused(404);
    assert_eq!(server.post("/threads/count", json!({})).await.ok(), json!(0));
}

#[tokio::test]
async fn batches_are_accepted_whole_or_refused_whole() {
    let server = TestServer::start().await;
    let bad = json!([counter(), {"assistant_id": "counter", "stream_mode": "nope"}]);
    let text = server.post("/runs/batch", bad).await.refused(422);
    assert!(text.starts_with("[1].stream_mode"), "{text}");
    server.post("/runs/batch", json!([counter(), {"assistant_id": "nope"}])).await.refused(422);
    server.post("/runs/batch", json!([counter(), {}])).await.refused(422);
    assert_eq!(server.post("/threads/count", json!({})).await.ok(), json!(0));
    let runs = server.post("/runs/batch", json!([counter(), counter()])).await.ok();
    assert_eq!(runs.as_array().map(Vec::len), Some(2));
}

#[tokio::test]
async fn names_create_threads_and_unknown_uuids_are_refused_unless_asked() {
    let server = TestServer::start().await;
    assert_eq!(server.post("/threads/user-42/runs/wait", counter()).await.ok(), json!({"counter": 3}));
    let place = format!("/threads/{}/runs/wait", Uuid::now_v7());
    let text = server.post(&place, counter()).await.refused(404);
    assert_eq!(text, "Thread or assistant not found.", "the contract's words");
    let mut create = counter();
    create["if_not_exists"] = json!("create");
    assert_eq!(server.post(&place, create).await.ok(), json!({"counter": 3}));
}

#[tokio::test]
async fn cancelling_is_accepted_at_once_or_waits() {
    let server = TestServer::start().await;
    let id = server.thread().await;
    let slow = json!({"assistant_id": "slow", "input": {"steps": 1000, "sleep_ms": 50}});
    let run = server.post(&format!("/threads/{id}/runs"), slow.clone()).await.ok();
    let place = format!("/threads/{id}/runs/{}", run["run_id"].as_str().expect("an id"));
    let busy = server.post(&format!("/threads/{id}/state"), json!({"values": {"n": 1}})).await;
    busy.refused(409);
    let mut reject = slow.clone();
    reject["multitask_strategy"] = json!("reject");
    server.post(&format!("/threads/{id}/runs"), reject).await.refused(409);
    let stopped = server.post(&format!("{place}/cancel?wait=1&reason=enough"), json!({})).await;
    assert_eq!((stopped.status, stopped.text.trim()), (200, "{}"));
    assert_eq!(stopped.header("location"), Some(format!("{place}/join").as_str()));
    assert_eq!(server.get(&place).await.ok()["status"], "interrupted");
    server.post(&format!("{place}/cancel"), json!({})).await.refused(404);
    let run = server.post(&format!("/threads/{id}/runs"), slow).await.ok();
    let ids = json!({"thread_id": id, "run_ids": [run["run_id"]]});
    let many = server.post("/runs/cancel", ids).await;
    assert_eq!((many.status, many.text.as_str()), (204, ""));
}

#[tokio::test]
async fn joining_what_is_not_there_is_an_error_inside_the_answer() {
    let server = TestServer::start().await;
    let id = server.thread().await;
    let joined = server.get(&format!("/threads/{id}/runs/{}/join", Uuid::nil())).await.ok();
    assert_eq!(joined, json!({"__error__": {"error": "HTTPException", "message": "404: Run not found"}}));
}

#[tokio::test]
async fn a_run_knows_the_request_that_asked_for_it() {
    let server = TestServer::start().await;
    let headers = [
        ("x-request-id", "req-1"),
        ("langsmith-trace", "20261127T0-abc"),
        ("baggage", "langsmith-project=a%20b,tenant=secret"),
        ("x-api-key", "s3cret"),
    ];
    let mut body = counter();
    body["config"] = json!({"configurable": {"langgraph_request_id": "forged", "mine": 1}});
    let answer = server.send_with("POST", "/threads/t/runs", &headers, &body.to_string()).await;
    let run = answer.ok();
    let configurable = &run["kwargs"]["config"]["configurable"];
    assert_eq!(configurable["langgraph_request_id"], "req-1");
    assert_eq!(answer.header("x-request-id"), Some("req-1"));
    assert_eq!(configurable["langsmith-trace"], "20261127T0-abc");
    assert_eq!((&configurable["langsmith-project"], &configurable["mine"]), (&json!("a b"), &json!(1)));
    assert!(!run.to_string().contains("s3cret") && !run.to_string().contains("tenant="), "{run}");
    assert_eq!(run["kwargs"]["context"], json!({"mine": 1}), "it is no context");
    server.get(&format!("/threads/t/runs/{}/join", run["run_id"].as_str().expect("an id"))).await.ok();
    let state = server.get("/threads/t/state").await.ok();
    assert!(state["metadata"].get("langgraph_request_id").is_none(), "{state}");
    // Without one the server makes an id, and says it.
    let answer = server.post("/runs", counter()).await;
    let id = answer.header("x-request-id").expect("an id").to_owned();
    assert_eq!(answer.ok()["kwargs"]["config"]["configurable"]["langgraph_request_id"], json!(id));
    // A command over protocol v2 is such a request, too; a tick of a cron is none.
    let start = json!({"id": 1, "method": "run.start", "params": {"assistant_id": "counter", "input": {"counter": 0}}});
    server.send_with("POST", "/threads/v/commands", &headers[..1], &start.to_string()).await.ok();
    let run = server.get("/threads/v/runs").await.ok()[0].clone();
    assert_eq!(run["kwargs"]["config"]["configurable"]["langgraph_request_id"], "req-1");
    let ask = json!({"assistant_id": "approval", "input": {"topic": "tea"}});
    server.send_with("POST", "/threads/asks/runs/wait", &headers, &ask.to_string()).await.ok();
    let question = server.get("/threads/asks/interrupts").await.ok()[0]["interrupt_id"].clone();
    let place = format!("/threads/asks/interrupts/{}/answer", question.as_str().expect("an id"));
    let run = server.send_with("POST", &place, &[("x-request-id", "req-2")], r#"{"answer":"yes"}"#).await.ok();
    let configurable = &run["kwargs"]["config"]["configurable"];
    assert_eq!(configurable["langgraph_request_id"], "req-2");
    assert!(configurable.get("langsmith-trace").is_none(), "{configurable}");
    let cron = json!({"assistant_id": "counter", "schedule": "0 0 1 1 *"});
    let cron = server.send_with("POST", "/runs/crons", &headers, &cron.to_string()).await.ok();
    assert!(!cron.to_string().contains("req-1"), "{cron}");
}

#[tokio::test]
async fn headers_that_the_operator_names_are_copied() {
    let headers = [
        ("x-user-id", "7"),
        ("x-user-secret", "s3cret"),
        ("x-other", "no"),
        ("authorization", "Bearer s3cret"),
        ("cookie", "s3cret"),
    ];
    let mut body = counter();
    body["config"] = json!({"configurable": {"x-user-id": "forged", "mine": 1}});
    let run = async |patterns: &str| {
        let configurable_headers = HeaderPatterns::parse(patterns).expect("patterns");
        let server = TestServer::with(HttpSettings { configurable_headers, ..HttpSettings::default() }).await;
        let run = server.send_with("POST", "/threads/t/runs", &headers, &body.to_string()).await.ok();
        let start =
            json!({"id": 1, "method": "run.start", "params": {"assistant_id": "counter", "input": {"counter": 0}}});
        server.send_with("POST", "/threads/v/commands", &headers, &start.to_string()).await.ok();
        let by_command = server.get("/threads/v/runs").await.ok()[0].clone();
        let own = |run: &Value| run["kwargs"]["config"]["configurable"].clone();
        assert!(!format!("{run}{by_command}").contains("s3cret"), "{run}");
        server.get(&format!("/threads/t/runs/{}/join", run["run_id"].as_str().expect("an id"))).await.ok();
        (own(&run), own(&by_command))
    };
    let (named, by_command) = run("X-User-*, authorization, cookie, !*-secret").await;
    assert_eq!((&named["x-user-id"], &named["mine"], named.get("x-other")), (&json!("7"), &json!(1), None), "{named}");
    assert_eq!(by_command["x-user-id"], "7");
    let (none, by_command) = run("").await;
    assert_eq!((&none["x-user-id"], by_command.get("x-user-id")), (&json!("forged"), None), "none by default: {none}");
}

#[tokio::test]
async fn kwargs_tell_durability_by_both_names() {
    let server = TestServer::start().await;
    for (given, during, durability) in [
        (json!({}), json!(null), "async"),
        (json!({"checkpoint_during": false}), json!(false), "exit"),
        (json!({"checkpoint_during": true}), json!(true), "async"),
        (json!({"checkpoint_during": false, "durability": "sync"}), json!(false), "sync"),
    ] {
        let mut body = counter();
        body.as_object_mut().expect("an object").extend(given.as_object().expect("an object").clone());
        let run = server.post("/threads/d/runs", body).await.ok();
        let kwargs = &run["kwargs"];
        assert_eq!((&kwargs["checkpoint_during"], &kwargs["durability"]), (&during, &json!(durability)), "{given}");
    }
}
