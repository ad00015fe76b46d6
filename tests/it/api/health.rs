//! Readiness, the detector and the quarantine, as operators see them.

use std::time::Duration;

use serde_json::json;
use session_store::http::HttpSettings;
use session_store::runtime::Settings;
use session_store::storage::StuckReason;

use crate::support::server::{TestServer, runtime_settings};

#[tokio::test]
async fn readiness_names_what_is_sick() {
    let server = TestServer::start().await;
    let ready = server.get("/ready").await.ok();
    let well = json!({"ok": true, "services": {"database": "healthy", "nodes": "healthy", "memory": "healthy"}, "stuck_runs": 0, "volatile": true});
    assert_eq!(ready, well);
    server.runtime.storage().close().await;
    for path in ["/ready", "/ok?check_db=1"] {
        let sick = server.get(path).await;
        assert_eq!(sick.status, 503, "{sick:?}");
        let sick = sick.json();
        assert_eq!((&sick["ok"], &sick["services"]["database"]), (&json!(false), &json!("unhealthy")), "{sick}");
        assert_eq!(sick["sick"], json!(["database: cannot be reached"]));
    }
    // Alive all the same.
    assert_eq!(server.get("/ok").await.status, 200);
}

#[tokio::test]
async fn the_detector_finds_a_run_that_nobody_takes() {
    let settings = Settings { claims: false, stuck_after: Duration::from_millis(100), ..runtime_settings() };
    let server = TestServer::with_runtime(HttpSettings::default(), settings).await;
    let body = json!({"assistant_id": "counter", "input": {"counter": 0}});
    let run = server.post("/threads/nobody/runs", body).await.ok();
    // One behind it waits for it, and is not stuck.
    server.post("/threads/nobody/runs", json!({"assistant_id": "counter"})).await.ok();
    server.until("the detector sees it", async || !server.runtime.stuck_runs().is_empty()).await;
    let stuck = server.runtime.stuck_runs();
    assert_eq!(stuck.len(), 1, "{stuck:?}");
    assert_eq!(
        (stuck[0].run_id.to_string(), stuck[0].reason),
        (run["run_id"].as_str().expect("an id").to_owned(), StuckReason::NotClaimed)
    );
    assert_eq!(server.get("/ready").await.ok()["stuck_runs"], 1);
    // Moved, it is forgotten.
    server.post("/threads/nobody/runs/cancel", json!({})).await;
    server.until("it is gone", async || server.runtime.stuck_runs().is_empty()).await;
}

#[tokio::test]
async fn the_quarantine_is_listed_and_refuses_strangers() {
    let server = TestServer::start().await;
    assert_eq!(server.get("/quarantine").await.ok(), json!([]));
    let stranger = "01a21913-68b6-73b3-a441-912b8003bf29";
    let released = server.post("/quarantine/release", json!({"run_ids": [stranger]})).await.ok();
    let refused = json!([{"run_id": stranger, "released": false, "detail": "the run is not in quarantine"}]);
    assert_eq!(released, refused);
    assert!(server.post("/quarantine/release", json!({})).await.refused(422).contains("run_ids"));
    assert!(server.post("/quarantine/release", json!({"run_ids": ["x"]})).await.refused(422).contains("run ID"));
}
