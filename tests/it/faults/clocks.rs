//! Processes whose clocks are wrong: leases, order and dates follow the database's.

use super::*;
use crate::support::process::{Database, execute, number};

const STEPS: i64 = 12;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clocks_that_are_an_hour_wrong_change_nothing() {
    let Some(database) = Database::create("clocks").await else { return };
    let traces = tempfile::tempdir().expect("a directory");
    let skewed = |secs: i64| {
        let mut command = command(&database.url, traces.path(), &[]);
        command.env(SKEW_SECS, secs.to_string());
        Server::spawn(command)
    };
    let (ahead, behind) = (skewed(3600), skewed(-3600));
    // A run of the one that is ahead, half done when its process dies: to the other, its lease is as old as it is.
    Gate(traces.path()).opens_until(6);
    let run = start_walk(&ahead, "skewed", STEPS).await;
    reaches(&ahead, "skewed", 6).await;
    let number_of = async |sql: &str| number(&database.url, sql).await;
    let now = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint";
    let leases = format!("SELECT COUNT(*) FROM runs WHERE status = 'running' AND abs(lease_until - {now}) > 60000000");
    assert_eq!(number_of(&leases).await, 0, "leases end in seconds, by the database's clock");
    let taken = "SELECT MAX(lease_epoch)::bigint FROM runs";
    let epoch = number_of(taken).await;
    // Nobody takes over what is alive: renewed twice meanwhile, under the other's eyes.
    for _ in 0..2 {
        let before = number_of("SELECT MAX(lease_until)::bigint FROM runs").await;
        let renewed = async || {
            let until = number_of("SELECT MAX(lease_until)::bigint FROM runs").await;
            (until > before).then_some(())
        };
        eventually("the lease is renewed", PATIENCE, renewed).await;
    }
    assert_eq!(number_of(taken).await, epoch, "and by nobody else");
    ahead.kill();
    Gate(traces.path()).opens_until(STEPS);
    assert_eq!(ended(&behind, &run).await, "success");
    has_each_step_once(&behind, "skewed", STEPS).await;
    // Back on a process that is ahead: what comes later is newer, whatever clocks say.
    let ahead = skewed(3600);
    let counter = json!({"assistant_id": "counter", "input": {"counter": 0}});
    for server in [&ahead, &behind, &ahead, &behind] {
        assert_eq!(post(&format!("{}/threads/turns/runs/wait", server.url), counter.clone()).await["counter"], 3);
        assert_eq!(get(&format!("{}/threads/turns/state", behind.url)).await["values"]["counter"], 3);
    }
    let history = post(&format!("{}/threads/turns/history", ahead.url), json!({"limit": 1000})).await;
    let steps: Vec<i64> =
        history.as_array().expect("a list").iter().filter_map(|s| s["metadata"]["step"].as_i64()).collect();
    assert!(steps.len() > 16 && steps.windows(2).all(|pair| pair[0] == pair[1] + 1), "newest first: {steps:?}");
    // A run that is to begin later does: neither at once nor in an hour.
    for server in [&ahead, &behind] {
        let body = json!({"assistant_id": "counter", "input": {"counter": 0}, "after_seconds": 1});
        let run = post(&format!("{}/threads/later/runs", server.url), body).await;
        let run = format!("{}/threads/later/runs/{}", server.url, run["run_id"].as_str().expect("an id"));
        assert_eq!(ended(server, &run).await, "success");
    }
    let early = "SELECT COUNT(*) FROM runs r JOIN threads t USING (thread_key)
                 WHERE t.name = 'later' AND r.started_at < r.run_at";
    assert_eq!(number_of(early).await, 0);
    // A cron that is due by the database's clock fires once, and its next date lies ahead of that clock.
    let cron = json!({"assistant_id": "counter", "schedule": "0 0 1 1 *", "input": {"counter": 0}, "on_run_completed": "keep"});
    post(&format!("{}/runs/crons", behind.url), cron).await;
    assert_eq!(number_of(&format!("SELECT COUNT(*) FROM crons WHERE next_run_date > {now}")).await, 1);
    execute(&database.url, &format!("UPDATE crons SET next_run_date = {now} + 500000")).await;
    let fired = async || {
        let ticks = "SELECT COUNT(*) FROM cron_ticks WHERE run_id IS NOT NULL";
        (number_of(ticks).await == 1).then_some(())
    };
    eventually("the cron fires", PATIENCE, fired).await;
    assert_eq!(number_of(&format!("SELECT COUNT(*) FROM crons WHERE next_run_date > {now}")).await, 1, "once");
}
