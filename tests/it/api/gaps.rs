//! Replays of events whose values are gone say so.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use session_store::graph::{Context, Graph, START, StateGraph};
use session_store::http::HttpSettings;
use session_store::update;

use crate::support::server::TestServer;

#[derive(Serialize, Deserialize, JsonSchema, Default)]
#[serde(default)]
struct Paper {
    n: i64,
    text: String,
}

/// Writes a text long enough to be stored once and referred to by events; the next one replaces it.
pub(super) fn paper() -> Graph {
    let graph = StateGraph::<Paper>::new("paper")
        .node("write", async |state: Paper, _: Context| {
            Ok(update!(Paper { text: format!("{}{}", "x".repeat(5_000), state.n) }))
        })
        .edge(START, "write")
        .build();
    graph.expect("builds")
}

pub(super) async fn write(server: &TestServer, n: i64) -> String {
    let run = json!({"input": {"n": n}, "stream_mode": ["values", "custom"], "stream_resumable": true});
    let run = server.post("/threads/t/runs", run).await.ok();
    let run_id = run["run_id"].as_str().expect("an id").to_owned();
    server.get(&format!("/threads/t/runs/{run_id}/join")).await.ok();
    run_id
}

#[tokio::test]
async fn a_replay_tells_of_events_whose_values_are_gone() {
    let server = TestServer::serving(HttpSettings::default(), vec![paper()]).await;
    server.post("/threads", json!({"thread_id": "t"})).await.ok();
    let (first, second) = (write(&server, 1).await, write(&server, 2).await);
    let replay = async |run: &str, query: &str, after: &str| {
        let path = format!("/threads/t/runs/{run}/stream{query}");
        server.frames("GET", &path, &[("last-event-id", after)], json!(null)).await
    };
    let before = replay(&first, "", "-1").await;
    assert!(before.iter().all(|frame| frame.event != "resume_gap"), "{before:?}");
    let lost = before.iter().rfind(|frame| frame.data["text"].is_string()).expect("a state with the text");
    let pruned = server.post("/threads/prune", json!({"thread_ids": ["t"], "strategy": "keep_latest"})).await.ok();
    assert_eq!(pruned, json!({"pruned_count": 1}));
    for query in ["", "?stream_mode=custom"] {
        let frames = replay(&first, query, "-1").await;
        let gaps: Vec<_> = frames.iter().filter(|frame| frame.event == "resume_gap").collect();
        let [gap] = gaps[..] else { panic!("{frames:?}") };
        assert_eq!(gap.data["to"], json!(gap.id), "resuming after it goes on behind the gap");
        assert_eq!((&gap.id, &gap.data["from"]), (&lost.id, &json!(lost.id)));
        assert_eq!(gap.data["events"], json!(1));
        assert!(gap.data["reason"].as_str().is_some_and(|reason| reason.contains("pruned")), "{gap:?}");
        let after = gap.id.clone().expect("an id");
        assert!(replay(&first, query, &after).await.iter().all(|frame| frame.event != "resume_gap"));
    }
    let latest = replay(&second, "", "-1").await;
    assert!(latest.iter().any(|frame| frame.data["text"].is_string()), "its values are the latest: {latest:?}");
    // Protocol v2: whatever is subscribed to.
    let body = json!({"channels": ["custom"]});
    let mut listener = server.listen("POST", "/threads/t/stream/events", &[], body).await;
    let frames = listener.until(|frame| frame.event == "resume_gap").await;
    let gap = frames.last().expect("a frame");
    assert_eq!(gap.data["method"], json!("resume_gap"));
    assert_eq!(gap.data["params"]["data"]["to"], json!(lost.id));
}
