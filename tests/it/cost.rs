//! What a run costs in transactions: one per superstep and one to accept it; its end belongs to its last superstep.

use std::time::Duration;

use serde_json::json;
use session_store::app::{Running, Server};
use session_store::config::{Config, DatabaseUrl};

use crate::support::process::{Database, PATIENCE, eventually, number, post, sqlite_url};

/// `counter` from 0 to 3: the input, and three increments.
const SUPERSTEPS: u64 = 4;
const AT_MOST: u64 = SUPERSTEPS + 1;

async fn server(url: &str) -> Running {
    let mut config = Config::defaults().expect("the defaults are readable");
    config.server.listen = "127.0.0.1:0".into();
    config.database.url = DatabaseUrl::new(url);
    // Nothing but the runs themselves shall ask the database for anything while it is counted.
    config.runtime.poll_secs = 3600.0;
    config.runtime.lease_secs = 600.0;
    config.runtime.renew_secs = 60.0;
    config.crons.poll_secs = 3600.0;
    config.threads.sweep_secs = 3600.0;
    config.runtime.stuck_after_secs = 3600.0;
    Server::new(config, graphs()).start().await.expect("the server starts")
}

fn graphs() -> Vec<session_store::graph::Graph> {
    session_store::graphs::all().into_iter().map(|graph| graph.expect("a shipped graph builds")).collect()
}

async fn run_counter(running: &Running, thread: &str) {
    let url = format!("{}/threads/{thread}/runs/wait", running.url());
    let body = json!({"assistant_id": "counter", "input": {"counter": 0}, "durability": "sync"});
    assert_eq!(post(&url, body).await, json!({"counter": 3}));
}

/// Write transactions of this process, run by run.
async fn counts_by_the_process(url: &str) {
    let running = server(url).await;
    for index in 0..5 {
        let before = running.storage().write_transactions();
        run_counter(&running, &format!("cost-{index}")).await;
        let cost = running.storage().write_transactions() - before;
        assert!(cost <= AT_MOST, "run {index}: {cost} write transactions, at most {AT_MOST} are allowed");
    }
    running.shutdown().await.expect("stops");
}

#[tokio::test]
async fn a_run_on_sqlite_costs_a_transaction_per_superstep_and_one() {
    let dir = tempfile::tempdir().expect("a directory");
    counts_by_the_process(&sqlite_url(&dir)).await;
}

#[tokio::test]
async fn a_run_on_postgres_costs_a_transaction_per_superstep_and_one() {
    let Some(database) = Database::create("cost").await else { return };
    counts_by_the_process(&database.url).await;
}

/// All transactions that Postgres counted in a database of its own while a server executed `runs` runs, from its start
/// to its end. A backend reports what it did when it ends, so the count is complete once all have gone.
async fn transactions(runs: usize) -> Option<i64> {
    let database = Database::create("cost").await?;
    let admin = std::env::var("SESSION_STORE_TEST_POSTGRES").expect("checked before");
    let name = database.url.rsplit('/').next().expect("a database name");
    let running = server(&database.url).await;
    for index in 0..runs {
        run_counter(&running, &format!("cost-{index}")).await;
    }
    running.shutdown().await.expect("stops");
    let connected = format!("SELECT count(*) FROM pg_stat_activity WHERE datname = '{name}'");
    let gone = async || (number(&admin, &connected).await == 0).then_some(());
    eventually("all connections are closed", PATIENCE, gone).await;
    let committed = format!("SELECT xact_commit FROM pg_stat_database WHERE datname = '{name}'");
    let mut last = number(&admin, &committed).await;
    // The statistics of ended backends arrive with a short delay: read until they stand still.
    let still = async || {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let now = number(&admin, &committed).await;
        let same = now == last;
        last = now;
        same.then_some(now)
    };
    let (total, _) = still_standing(still).await;
    Some(total)
}

/// [`eventually`] for a closure that remembers.
async fn still_standing(mut ask: impl AsyncFnMut() -> Option<i64>) -> (i64, usize) {
    for attempt in 0..100 {
        if let Some(total) = ask().await {
            return (total, attempt);
        }
    }
    panic!("the statistics never stood still");
}

#[tokio::test]
async fn postgres_counts_no_more_than_the_process_does() {
    const RUNS: usize = 200;
    let Some(idle) = transactions(0).await else { return };
    let mut cost = f64::MAX;
    // On a busy machine a server looks for work that somebody else has got to first, and opens more connections: what a
    // run needs is the least of some measurements.
    for _ in 0..4 {
        let Some(busy) = transactions(RUNS).await else { return };
        cost = cost.min((busy - idle) as f64 / RUNS as f64);
        eprintln!("{cost} transactions per run, reads included");
        if cost <= AT_MOST as f64 + 0.5 {
            break;
        }
    }
    // Reads are transactions to Postgres too, so this shows that a run needs none. What is left is for the pool: a new
    // connection, and each statement prepared on it, is a transaction as well. One read per run would add a whole one.
    assert!(cost <= AT_MOST as f64 + 0.5, "{cost} transactions per run, at most {AT_MOST} are allowed");
}
