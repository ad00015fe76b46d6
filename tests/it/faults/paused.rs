//! A process that stands still beyond its leases and wakes up late.

use super::*;
use crate::support::process::Database;

const STEPS: i64 = 20;

#[tokio::test]
async fn a_worker_that_was_paused_past_its_lease_changes_nothing_and_stops() {
    let Some(database) = Database::create("paused").await else { return };
    let traces = tempfile::tempdir().expect("a directory");
    let owner = server(&database.url, traces.path(), &[]);
    Gate(traces.path()).opens_until(10);
    let run = start_walk(&owner, "paused", STEPS).await;
    reaches(&owner, "paused", 10).await;
    owner.signal("STOP");
    let heir = server(&database.url, traces.path(), &[]);
    Gate(traces.path()).opens_until(STEPS);
    // Taken over once the lease has run out, and done to the end.
    assert_eq!(ended(&heir, &run).await, "success");
    let before = get(&format!("{}/threads/paused/state", heir.url)).await;
    assert!(!owner.logged("lease lost"));
    owner.signal("CONT");
    let stopped = async || Some(()).filter(|()| owner.logged("lease lost; the run was stopped here"));
    eventually("the one that was paused gives up", PATIENCE, stopped).await;
    // It is well, and what it still had to write was refused.
    assert_eq!(get(&format!("{}/threads/paused/state", owner.url)).await, before);
    has_each_step_once(&owner, "paused", STEPS).await;
    let counter = json!({"assistant_id": "counter", "input": {"counter": 0}});
    assert_eq!(post(&format!("{}/threads/after/runs/wait", owner.url), counter).await, json!({"counter": 3}));
}
