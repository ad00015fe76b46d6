//! `Idempotency-Key` on POSTs: one effect, the same answer.

use serde_json::{Value, json};

use crate::support::server::{Answer, TestServer};

fn counter() -> Value {
    json!({"assistant_id": "counter", "input": {"counter": 0}})
}

async fn post(server: &TestServer, path: &str, key: &str, body: &Value) -> Answer {
    server.send_with("POST", path, &[("idempotency-key", key)], &body.to_string()).await
}

/// How many runs a thread has.
async fn runs(server: &TestServer, thread: &str) -> usize {
    server.get(&format!("/threads/{thread}/runs?limit=100")).await.ok().as_array().map_or(0, Vec::len)
}

#[tokio::test]
async fn a_repeat_gets_the_same_run_and_joins_it() {
    let server = TestServer::start().await;
    let first = post(&server, "/threads/t/runs", "k", &counter()).await;
    let again = post(&server, "/threads/t/runs", "k", &counter()).await;
    assert_eq!(first.ok()["run_id"], again.ok()["run_id"]);
    assert_eq!((first.header("idempotency-replayed"), again.header("idempotency-replayed")), (None, Some("true")));
    // Keys of other operations have nothing to do with it.
    for path in ["/threads/t/runs/wait", "/threads/t/runs/wait"] {
        assert_eq!(post(&server, path, "k", &counter()).await.ok(), json!({"counter": 3}));
    }
    assert_eq!(runs(&server, "t").await, 2);
    // Members in another order are the same request; another value is not.
    let reordered = r#"{ "input":{"counter":0}, "assistant_id":"counter"}"#;
    let same = server.send_with("POST", "/threads/t/runs", &[("idempotency-key", "k")], reordered).await;
    assert_eq!(same.ok()["run_id"], first.ok()["run_id"]);
    let other = json!({"assistant_id": "counter", "input": {"counter": 1}});
    let text = post(&server, "/threads/t/runs", "k", &other).await.refused(422);
    assert!(text.starts_with("Idempotency-Key: was used for another request"), "{text}");
    let text = post(&server, "/threads/u/runs", "k", &counter()).await.refused(422);
    assert!(text.starts_with("Idempotency-Key"), "another path: {text}");
    server.get("/threads/u").await.refused(404);
}

#[tokio::test]
async fn a_repeated_stream_replays_or_tells_how_it_ended() {
    let server = TestServer::start().await;
    let path = "/threads/t/runs/stream";
    let mut resumable = counter();
    resumable["stream_resumable"] = json!(true);
    for (key, body) in [("resumable", resumable), ("plain", counter())] {
        let headers = [("idempotency-key", key)];
        let first = server.frames("POST", path, &headers, body.clone()).await;
        let again = server.frames("POST", path, &headers, body).await;
        assert_eq!(first[0].data["run_id"], again[0].data["run_id"], "{key}");
        assert_eq!(first.last().expect("frames").data, again.last().expect("frames").data, "{key}");
        if key == "resumable" {
            assert_eq!(first, again);
        }
    }
    assert_eq!(runs(&server, "t").await, 2);
}

#[tokio::test]
async fn stateless_runs_and_batches_are_accepted_once() {
    let server = TestServer::start().await;
    let first = post(&server, "/runs/wait", "k", &counter()).await;
    let again = post(&server, "/runs/wait", "k", &counter()).await;
    assert_eq!((first.ok(), again.ok()), (json!({"counter": 3}), json!({"counter": 3})));
    let kept = json!({"assistant_id": "counter", "input": {"counter": 0}, "on_completion": "keep"});
    let batch = json!([kept, kept]);
    let ids = |answer: &Answer| -> Vec<Value> {
        answer.ok().as_array().expect("a list").iter().map(|run| run["run_id"].clone()).collect()
    };
    let first = ids(&post(&server, "/runs/batch", "k", &batch).await);
    assert_eq!(ids(&post(&server, "/runs/batch", "k", &batch).await), first);
    assert_eq!(server.post("/threads/count", json!({})).await.ok(), json!(2));
}

#[tokio::test]
async fn a_repeated_stream_of_a_run_without_a_thread_tells_how_it_ended() {
    let server = TestServer::start().await;
    let failing = json!({"assistant_id": "counter", "input": {"counter": "no number"}});
    let mut quiet = counter();
    quiet["stream_mode"] = json!("updates");
    let mut resumable = counter();
    resumable["stream_resumable"] = json!(true);
    let bodies = [("plain", counter()), ("failing", failing), ("quiet", quiet), ("resumable", resumable)];
    for (key, body) in bodies {
        let headers = [("idempotency-key", key)];
        let first = server.frames("POST", "/runs/stream", &headers, body.clone()).await;
        for _ in 0..2 {
            let again = server.frames("POST", "/runs/stream", &headers, body.clone()).await;
            assert_eq!(again[0].data, first[0].data, "{key}");
            let (end, last) = (again.last().expect("an end"), first.last().expect("an end"));
            if key == "quiet" {
                // What a state is was not asked for: the end is told all the same.
                assert_eq!((end.event.as_str(), &end.data), ("values", &json!({"counter": 3})));
            } else {
                assert_eq!((&end.event, &end.data), (&last.event, &last.data), "{key}");
            }
        }
        let again = post(&server, "/runs/stream", key, &body).await;
        let run = first[0].data["run_id"].as_str().expect("an id");
        assert_eq!(again.header("content-location"), Some(format!("/runs/{run}").as_str()));
        assert_eq!(again.header("location"), Some(format!("/runs/{run}/stream").as_str()));
        assert_eq!(again.header("idempotency-replayed"), Some("true"));
    }
    assert_eq!(server.post("/threads/count", json!({})).await.ok(), json!(0), "no thread is left");
}

#[tokio::test]
async fn who_lost_the_stream_of_a_run_without_a_thread_learns_how_it_ended() {
    let server = TestServer::start().await;
    let body = json!({"assistant_id": "slow", "input": {"steps": 3, "sleep_ms": 20}});
    let headers = [("idempotency-key", "k")];
    let mut listener = server.listen("POST", "/runs/stream", &headers, body.clone()).await;
    let first = listener.next().await.expect("a frame");
    drop(listener);
    server.until("the run is over", async || server.post("/threads/count", json!({})).await.ok() == json!(0)).await;
    let again = server.frames("POST", "/runs/stream", &headers, body).await;
    assert_eq!(again[0].data, first.data);
    assert_eq!(again.last().map(|frame| frame.event.as_str()), Some("values"), "{again:?}");
}

#[tokio::test]
async fn other_posts_are_answered_as_before() {
    let server = TestServer::start().await;
    let thread = post(&server, "/threads", "k", &json!({"metadata": {"a": 1}})).await.ok();
    assert_eq!(post(&server, "/threads", "k", &json!({"metadata": {"a": 1}})).await.ok(), thread);
    assert_eq!(server.post("/threads/count", json!({})).await.ok(), json!(1));
    let id = thread["thread_id"].as_str().expect("an id");
    server.post(&format!("/threads/{id}/runs/wait"), counter()).await.ok();
    let update = json!({"values": {"counter": 1}, "as_node": "increment"});
    let state = post(&server, &format!("/threads/{id}/state"), "k", &update).await.ok();
    assert_eq!(post(&server, &format!("/threads/{id}/state"), "k", &update).await.ok(), state);
    let cron = json!({"assistant_id": "counter", "schedule": "0 0 1 1 *"});
    let first = post(&server, "/runs/crons", "k", &cron).await.ok();
    assert_eq!(post(&server, "/runs/crons", "k", &cron).await.ok(), first);
    assert_eq!(server.post("/runs/crons/count", json!({})).await.ok(), json!(1));
    let slow = json!({"assistant_id": "slow", "input": {"steps": 1000, "sleep_ms": 50}});
    let run = server.post(&format!("/threads/{id}/runs"), slow).await.ok();
    let cancel = format!("/threads/{id}/runs/{}/cancel", run["run_id"].as_str().expect("an id"));
    for _ in 0..2 {
        assert_eq!(post(&server, &cancel, "k", &json!({})).await.status, 202, "the second is a repeat, not a 404");
    }
    // Reading needs no key, and takes none.
    for _ in 0..2 {
        let found = post(&server, "/threads/search", "k", &json!({})).await;
        assert_eq!((found.status, found.header("idempotency-replayed")), (200, None));
    }
}

#[tokio::test]
async fn commands_of_protocol_v2_are_carried_out_once() {
    let server = TestServer::start().await;
    let start = json!({"id": 7, "method": "run.start",
                       "params": {"assistant_id": "counter", "input": {"counter": 0}}});
    let racers = (0..20).map(|_| async { post(&server, "/threads/t/commands", "k", &start).await });
    let answers = futures_util::future::join_all(racers).await;
    let first = answers[0].ok();
    assert_eq!((&first["type"], &first["id"]), (&json!("success"), &json!(7)), "{first}");
    for answer in &answers {
        assert_eq!(answer.ok(), first);
    }
    assert_eq!(runs(&server, "t").await, 1);
}

#[tokio::test]
async fn refusals_leave_no_key() {
    let server = TestServer::start().await;
    let bad = json!({"assistant_id": "nobody"});
    for _ in 0..2 {
        post(&server, "/threads/t/runs", "k", &bad).await.refused(422);
    }
    let reject = json!({"assistant_id": "counter", "input": {"counter": 0}, "multitask_strategy": "reject"});
    let slow = json!({"assistant_id": "slow", "input": {"steps": 1000, "sleep_ms": 50}});
    let run = server.post("/threads/t/runs", slow).await.ok();
    post(&server, "/threads/t/runs", "k2", &reject).await.refused(409);
    let cancel = format!("/threads/t/runs/{}/cancel?wait=1", run["run_id"].as_str().expect("an id"));
    server.post(&cancel, json!({})).await.ok();
    post(&server, "/threads/t/runs", "k2", &reject).await.ok();
    for bad in ["", "\"\"", &"x".repeat(256)] {
        let text = post(&server, "/threads", bad, &json!({})).await.refused(422);
        assert!(text.starts_with("Idempotency-Key: expected one key"), "{text}");
    }
    post(&server, "/threads", "x", &json!([])).await.refused(422);
}

#[tokio::test]
async fn twenty_duplicates_at_once_are_one_run() {
    let server = TestServer::start().await;
    for (path, wanted) in [("/threads/t/runs", None), ("/threads/u/runs/wait", Some(json!({"counter": 3})))] {
        let racers = (0..20).map(|_| async { post(&server, path, "k", &counter()).await });
        let answers = futures_util::future::join_all(racers).await;
        for answer in &answers {
            match &wanted {
                Some(wanted) => assert_eq!(answer.ok(), *wanted),
                None => assert_eq!(answer.ok()["run_id"], answers[0].ok()["run_id"]),
            }
        }
    }
    assert_eq!((runs(&server, "t").await, runs(&server, "u").await), (1, 1));
}
