//! Two servers on one database look for the same due crons.

use serde_json::json;

use crate::support::process::{Database, PATIENCE, Server, eventually, execute, number, post};

const CRONS: i64 = 30;

#[tokio::test]
async fn two_replicas_fire_each_tick_once() {
    let Some(database) = Database::create("crons").await else { return };
    let (one, two) = (Server::start(&database.url), Server::start(&database.url));
    for n in 0..CRONS {
        let url = if n % 2 == 0 { &one.url } else { &two.url };
        let cron = json!({"assistant_id": "counter", "schedule": "0 0 1 1 *", "input": {"counter": 0},
                          "on_run_completed": "keep"});
        post(&format!("{url}/runs/crons"), cron).await;
    }
    // All due at one moment that is about to come; both servers look every few seconds.
    let due = "UPDATE crons SET next_run_date = (extract(epoch FROM clock_timestamp()) * 1000000)::bigint + 1000000";
    execute(&database.url, due).await;
    let fired = async || {
        let left =
            "SELECT COUNT(*) FROM crons WHERE next_run_date < (extract(epoch FROM now()) * 1000000)::bigint + 60000000";
        let active = "SELECT COUNT(*) FROM runs WHERE status IN ('pending', 'running')";
        let done = number(&database.url, left).await == 0 && number(&database.url, active).await == 0;
        done.then_some(())
    };
    eventually("every tick is fired", PATIENCE, fired).await;
    assert_eq!(number(&database.url, "SELECT COUNT(*) FROM cron_ticks WHERE run_id IS NOT NULL").await, CRONS);
    assert_eq!(number(&database.url, "SELECT COUNT(*) FROM runs WHERE status = 'success'").await, CRONS);
    let revisions = number(&database.url, "SELECT COUNT(DISTINCT revision) FROM crons").await;
    assert_eq!(revisions, 1, "each moved on once");
}
