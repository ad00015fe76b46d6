//! Event streams of runs.

use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::server::{Frame, TestServer};

fn names(frames: &[Frame]) -> Vec<&str> {
    frames.iter().map(|frame| frame.event.as_str()).collect()
}

fn body(modes: Value, resumable: bool) -> Value {
    json!({"assistant_id": "counter", "input": {"counter": 0}, "stream_mode": modes, "stream_resumable": resumable})
}

#[tokio::test]
async fn a_stream_begins_with_metadata_and_ends_when_the_run_is_stored() {
    let server = TestServer::start().await;
    let id = server.thread().await;
    let place = format!("/threads/{id}/runs/stream");
    let frames = server.frames("POST", &place, &[], body(json!(["values", "tools"]), false)).await;
    assert_eq!(names(&frames), ["metadata", "values", "values", "values", "values"]);
    assert_eq!(frames[0].data["attempt"], 1);
    assert_eq!(frames[4].data, json!({"counter": 3}));
    assert!(frames.iter().all(|frame| frame.id.is_none()), "{frames:?}");
    let run = frames[0].data["run_id"].as_str().expect("an id");
    assert_eq!(server.get(&format!("/threads/{id}/runs/{run}")).await.ok()["status"], "success");
}

#[tokio::test]
async fn headers_say_how_to_come_back() {
    let server = TestServer::start().await;
    let id = server.thread().await;
    let answer = server.post(&format!("/threads/{id}/runs/stream"), body(json!("updates"), false)).await;
    let place = answer.header("content-location").expect("a place");
    assert_eq!(answer.header("location"), Some(format!("{place}/stream").as_str()));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    assert_eq!(answer.header("x-accel-buffering"), Some("no"));
    let stateless = server.post("/runs/stream", body(json!("updates"), false)).await;
    assert!(stateless.header("content-location").is_some_and(|place| place.starts_with("/runs/")), "{stateless:?}");
}

#[tokio::test]
async fn resumable_streams_replay_from_any_event() {
    let server = TestServer::start().await;
    let id = server.thread().await;
    let place = format!("/threads/{id}/runs/stream");
    let live = server.frames("POST", &place, &[], body(json!(["updates", "values"]), true)).await;
    assert!(live.iter().all(|frame| frame.id.is_some()), "{live:?}");
    let run = live[0].data["run_id"].as_str().expect("an id");
    let join = format!("/threads/{id}/runs/{run}/stream");
    let all = server.frames("GET", &join, &[("last-event-id", "-1")], Value::Null).await;
    assert_eq!(all, live);
    // Cut anywhere, the rest is the rest.
    for at in 0..live.len() {
        let from = live[at].id.clone().expect("an id");
        let rest = server.frames("GET", &join, &[("last-event-id", &from)], Value::Null).await;
        assert_eq!(rest, live[at + 1..]);
    }
    let some =
        server.frames("GET", &format!("{join}?stream_mode=updates"), &[("last-event-id", "-1")], Value::Null).await;
    assert!(some.iter().all(|frame| frame.event == "updates") && some.len() == 3, "{some:?}");
    let stateless = server.frames("GET", &format!("/runs/{run}/stream"), &[("last-event-id", "0")], Value::Null).await;
    assert_eq!(stateless, live);
    assert_eq!(server.frames("GET", &join, &[], Value::Null).await, []);
}

#[tokio::test]
async fn joining_an_unknown_run_is_an_error_event() {
    let server = TestServer::start().await;
    let id = server.thread().await;
    for place in [format!("/threads/{id}/runs/{}/stream", Uuid::nil()), format!("/runs/{}/stream", Uuid::nil())] {
        let frames = server.frames("GET", &place, &[], Value::Null).await;
        assert_eq!(names(&frames), ["error"], "{place}");
        assert_eq!(frames[0].data["message"], "404: Run not found");
    }
}

#[tokio::test]
async fn a_cursor_beyond_the_log_is_told_so() {
    let server = TestServer::start().await;
    let id = server.thread().await;
    let live = server.frames("POST", &format!("/threads/{id}/runs/stream"), &[], body(json!("values"), true)).await;
    let run = live[0].data["run_id"].as_str().expect("an id");
    let place = format!("/threads/{id}/runs/{run}/stream?stream_mode=values");
    let last = live.last().and_then(|frame| frame.id.clone()).expect("an id");
    // All was heard, and all of it is there.
    let rest = server.frames("GET", &place, &[("last-event-id", &last)], json!({})).await;
    assert_eq!(names(&rest), [""; 0]);
    // As a client would ask that heard more than a restored backup knows.
    let beyond = "4000000000000-7";
    for place in [place, format!("/threads/{id}/stream")] {
        let mut listener = server.listen("GET", &place, &[("last-event-id", beyond)], json!({})).await;
        let gap = listener.next().await.expect("an event");
        assert_eq!((gap.event.as_str(), &gap.data["to"]), ("resume_gap", &json!(beyond)), "{gap:?}");
        // From where the log ends one can go on.
        let end = gap.id.expect("where the log ends");
        assert!(end >= last && gap.data["from"] == json!(end), "{end} {last}");
    }
}
