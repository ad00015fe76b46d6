//! `/metrics`: what the process counts of its own work.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::support::server::TestServer;

/// The samples of a scrape by series. Every line is of the text format, and every series has a described metric.
fn samples(text: &str) -> BTreeMap<String, f64> {
    let mut kinds = BTreeMap::new();
    let mut samples = BTreeMap::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a kind");
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert_eq!(kinds.insert(name, kind), None, "{name} is described twice");
        } else if !line.starts_with("# HELP ") {
            let (series, value) = line.rsplit_once(' ').expect("a value");
            let name = series.split('{').next().expect("a name");
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
            assert!(kinds.contains_key(name) || kinds.get(base) == Some(&"histogram"), "{line}");
            let value = value.parse().unwrap_or_else(|_| panic!("no number: {line}"));
            assert_eq!(samples.insert(series.to_owned(), value), None, "{series} comes twice");
        }
    }
    samples
}

#[tokio::test]
async fn metrics_count_requests_runs_and_commits() {
    let server = TestServer::start().await;
    let scrape = async || {
        let answer = server.get("/metrics").await;
        assert_eq!(answer.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
        samples(&answer.text)
    };
    let before = scrape().await;
    assert_eq!(before["session_store_runs_ended_total{status=\"success\"}"], 0.0);
    let run = json!({"assistant_id": "counter", "input": {"counter": 0}});
    for thread in ["a", "b"] {
        server.post(&format!("/threads/{thread}/runs/wait"), run.clone()).await.ok();
    }
    server.get("/threads/nobody").await.refused(404);
    server.get("/nowhere").await.refused(404);
    // A run is over for who waits a little before its place is free.
    let is_counted = async || {
        let now = scrape().await;
        let free = now["session_store_run_slots_free"] == now["session_store_run_slots"];
        free && now["session_store_runs_ended_total{status=\"success\"}"] == 2.0
    };
    server.until("both runs are counted", is_counted).await;
    let after = scrape().await;
    let requests = |path: &str, method: &str, status: u16| {
        let labels = format!("path=\"{path}\",method=\"{method}\",status=\"{status}\"");
        after.get(&format!("session_store_http_requests_total{{{labels}}}")).copied()
    };
    assert_eq!(requests("/threads/{thread_id}/runs/wait", "POST", 200), Some(2.0));
    assert_eq!(requests("/threads/{thread_id}", "GET", 404), Some(1.0));
    assert_eq!(requests("(none)", "GET", 404), Some(1.0));
    assert!(requests("/metrics", "GET", 200) >= Some(1.0));
    assert_eq!(after["session_store_runs_ended_total{status=\"success\"}"], 2.0);
    assert_eq!(after["session_store_run_queue_wait_seconds_count"], 2.0);
    assert!(after["session_store_commit_seconds_count"] >= 2.0);
    assert_eq!((after["session_store_runs_pending"], after["session_store_runs_running"]), (0.0, 0.0));
    assert_eq!((after["session_store_database_up"], after["session_store_commit_retries_total"]), (1.0, 0.0));
    assert!(after["session_store_database_connections"] >= 1.0);
    assert!(after["process_start_time_seconds"] > 1.7e9);
    let took = "session_store_http_request_seconds_bucket{path=\"/threads/{thread_id}/runs/wait\",method=\"POST\",le=\"+Inf\"}";
    assert_eq!(after[took], 2.0);
    assert!(after.keys().all(|series| !series.contains("nobody") && !series.contains("nowhere")), "no ids");
    let json = server.get("/metrics?format=json").await.ok();
    assert_eq!(json["queue"], json!({"n_pending": 0, "n_running": 0}));
    assert_eq!(json["workers"]["active"], json!(0));
    assert!(json["api"]["n_requests"].as_u64() >= Some(4), "{json}");
    assert_eq!(json["api"]["n_errors"], json!(0));
    server.get("/metrics?format=xml").await.refused(422);
}

#[tokio::test]
async fn open_streams_are_counted() {
    let server = TestServer::start().await;
    let open = async || samples(&server.get("/metrics").await.text)["session_store_open_streams"];
    assert_eq!(open().await, 0.0);
    server.post("/threads", json!({"thread_id": "t"})).await.ok();
    let listener = server.listen("GET", "/threads/t/stream", &[], Value::Null).await;
    assert_eq!(open().await, 1.0);
    drop(listener);
    server.until("it is closed", async || open().await == 0.0).await;
}
