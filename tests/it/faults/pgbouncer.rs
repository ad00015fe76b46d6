//! Several replicas behind PgBouncer in transaction mode: no connection is anybody's for longer than a transaction.

use super::*;
use crate::support::pgbouncer::PgBouncer;
use crate::support::process::Database;

const STEPS: i64 = 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_pgbouncer_a_killed_worker_is_followed_by_another() {
    let Some(database) = Database::create("bounced").await else { return };
    let Some(bouncer) = PgBouncer::before(&database.url) else { return };
    let traces = tempfile::tempdir().expect("a directory");
    let url = bouncer.url(&database.url);
    let start = || server(&url, traces.path(), &[("DATABASE__PGBOUNCER", "true")]);
    let owner = start();
    Gate(traces.path()).opens_until(10);
    let run = start_walk(&owner, "bounced", STEPS).await;
    reaches(&owner, "bounced", 10).await;
    let survivor = start();
    owner.kill();
    Gate(traces.path()).opens_until(STEPS);
    assert_eq!(ended(&survivor, &run).await, "success");
    has_each_step_once(&survivor, "bounced", STEPS).await;
    // A stream of a run that another replica executes, without LISTEN.
    let other = start();
    let body = json!({
        "assistant_id": "slow", "input": {"n": 0, "steps": 5, "sleep_ms": 1}, "stream_resumable": true,
    });
    let run = post(&format!("{}/threads/heard/runs", survivor.url), body).await;
    let path = format!("/threads/heard/runs/{}/join", run["run_id"].as_str().expect("an id"));
    assert_eq!(get(&format!("{}{path}", other.url)).await["n"], 5);
}
