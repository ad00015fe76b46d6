//! Queued runs start when something makes room for them, not at the next poll: here the poll is an hour away.

use std::time::Duration;

use serde_json::json;
use session_store::app::{Running, Server};
use session_store::config::{Config, DatabaseUrl, Role};

use crate::support::process::{Database, get, post, sqlite_url};

const THREADS: usize = 8;
const RUNS_PER_THREAD: usize = 3;
/// Much less than the poll, much more than two hundred supersteps take.
const SOON: Duration = Duration::from_secs(30);

async fn server(url: &str, role: Role) -> Running {
    let mut config = Config::defaults().expect("the defaults are readable");
    config.server.listen = "127.0.0.1:0".into();
    config.database.url = DatabaseUrl::new(url);
    config.runtime.role = role;
    config.runtime.concurrency = 2;
    config.runtime.poll_secs = 3600.0;
    config.runtime.lease_secs = 600.0;
    config.runtime.renew_secs = 60.0;
    let graphs = session_store::graphs::all().into_iter().map(|graph| graph.expect("a shipped graph builds"));
    Server::new(config, graphs.collect()).start().await.expect("the server starts")
}

/// More runs than the process may execute at once, and several per thread: each waits for a place, most for their
/// thread too.
async fn all_queued_runs_end(running: &Running) {
    let mut waiting = Vec::new();
    for _ in 0..RUNS_PER_THREAD {
        for thread in 0..THREADS {
            let url = format!("{}/threads/queue-{thread}/runs", running.url());
            let body = json!({"assistant_id": "counter", "input": {"counter": 0}, "multitask_strategy": "enqueue"});
            let run = post(&url, body).await;
            waiting.push(format!("{url}/{}", run["run_id"].as_str().expect("a run id")));
        }
    }
    let joined = async {
        for url in &waiting {
            // What a join answers may be the state that a later run of the thread has reached by then.
            get(&format!("{url}/join")).await;
            assert_eq!(get(url).await["status"], "success", "{url}");
        }
    };
    tokio::time::timeout(SOON, joined).await.expect("no run waits for the poll");
}

#[tokio::test]
async fn places_are_passed_on_at_once_on_sqlite() {
    let dir = tempfile::tempdir().expect("a directory");
    let running = server(&sqlite_url(&dir), Role::All).await;
    all_queued_runs_end(&running).await;
    running.shutdown().await.expect("stops");
}

#[tokio::test]
async fn places_are_passed_on_at_once_on_postgres() {
    let Some(database) = Database::create("queue").await else { return };
    let running = server(&database.url, Role::All).await;
    all_queued_runs_end(&running).await;
    running.shutdown().await.expect("stops");
}

#[tokio::test]
async fn a_worker_hears_of_runs_that_another_process_accepted() {
    let Some(database) = Database::create("queue").await else { return };
    let api = server(&database.url, Role::Api).await;
    let worker = server(&database.url, Role::Worker).await;
    all_queued_runs_end(&api).await;
    worker.shutdown().await.expect("stops");
    api.shutdown().await.expect("stops");
}
