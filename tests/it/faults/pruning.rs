//! A process dies while it removes what is not needed: what is to be kept is whole, and the next process goes on.

use sqlx::{Connection as _, PgConnection};

use super::*;
use crate::support::process::{Database, execute, number};

/// Older copies of a checkpoint, values that nothing refers to, and events: of each more than two steps remove
/// (`storage::STEP_ROWS`).
const MANY: i64 = 4_500;
const INFLATE: &str = "
    INSERT INTO checkpoints
    SELECT c.thread_key, c.ns, '1e000000-0000-6000-8000-' || lpad(to_hex(n), 12, '0'), c.tenant, NULL, c.run_id, c.step,
           c.source, c.created_at, c.metadata, c.codec, c.next_nodes, c.body, c.size_bytes
    FROM (SELECT * FROM checkpoints ORDER BY step DESC LIMIT 1) AS c, generate_series(1, 4500) AS n;
    INSERT INTO payloads
    SELECT t.thread_key, sha256(n::text::bytea), t.tenant, 0, '1'::bytea FROM threads AS t, generate_series(1, 4500) AS n;
    INSERT INTO events
    SELECT r.thread_key, n, r.tenant, r.run_id, 'custom', 0, '1'::bytea FROM runs AS r, generate_series(1, 4500) AS n
    ON CONFLICT DO NOTHING;";

/// Deletions from three tables are counted, also those that are undone; one can be made to wait for a lock.
const WATCHED: &str = "
    CREATE SEQUENCE deletions;
    CREATE TABLE stop (at bigint NOT NULL);
    INSERT INTO stop VALUES (0);
    CREATE FUNCTION wait_there() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF nextval('deletions') = (SELECT at FROM stop) THEN PERFORM pg_advisory_xact_lock(7); END IF;
        RETURN NULL;
    END $$;
    CREATE TRIGGER wait_there AFTER DELETE ON checkpoints FOR EACH STATEMENT EXECUTE FUNCTION wait_there();
    CREATE TRIGGER wait_there AFTER DELETE ON payloads FOR EACH STATEMENT EXECUTE FUNCTION wait_there();
    CREATE TRIGGER wait_there AFTER DELETE ON channel_log FOR EACH STATEMENT EXECUTE FUNCTION wait_there();";
const WAITING: &str = "SELECT COUNT(*)::bigint FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
                       AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
const OTHERS: &str = "SELECT COUNT(*)::bigint FROM pg_stat_activity
                      WHERE datname = current_database() AND pid <> pg_backend_pid()";

/// Asks a server for something and kills it in the middle: right after it has deleted for the `at`th time, before it could
/// commit that.
async fn killed_at(url: &str, server: Server, at: i64, method: reqwest::Method, path: &str, body: Option<Value>) {
    execute(url, &format!("ALTER SEQUENCE deletions RESTART; UPDATE stop SET at = {at}")).await;
    let mut holder = PgConnection::connect(url).await.expect("Postgres answers");
    sqlx::query("SELECT pg_advisory_lock(7)").execute(&mut holder).await.expect("locked");
    let address = format!("{}{path}", server.url);
    // It is not answered.
    let asked = tokio::spawn(async move { send(method, &address, body).await });
    let is_there = async || (number(url, WAITING).await > 0).then_some(());
    eventually("it waits after a deletion", PATIENCE, is_there).await;
    server.kill();
    asked.abort();
    execute(url, "UPDATE stop SET at = 0").await;
    holder.close().await.expect("closed");
    let is_over = async || (number(url, OTHERS).await == 0).then_some(());
    eventually("Postgres has noticed", PATIENCE, is_over).await;
}

async fn count(url: &str, table: &str) -> i64 {
    number(url, &format!("SELECT COUNT(*)::bigint FROM {table}")).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_in_pruning_loses_nothing_and_the_next_process_goes_on() {
    let Some(database) = Database::create("pruning").await else { return };
    let traces = tempfile::tempdir().expect("a directory");
    let start = || server(&database.url, traces.path(), &[("THREADS__SWEEP_SECS", "0.2")]);
    let mut server = start();
    Gate(traces.path()).opens_until(5);
    let run = start_walk(&server, "pruned", 5).await;
    assert_eq!(ended(&server, &run).await, "success");
    let state = get(&format!("{}/threads/pruned/state", server.url)).await;
    let (checkpoints, payloads) = (count(&database.url, "checkpoints").await, count(&database.url, "payloads").await);
    execute(&database.url, INFLATE).await;
    execute(&database.url, WATCHED).await;

    // A step deletes 2000 checkpoints, or else what is left of them, and then values: in its second step; in a step that
    // has deleted from both tables; in a second step of values.
    for (at, checkpoints, payloads) in [
        (2, checkpoints + MANY - 2000, payloads + MANY),
        (3, checkpoints + MANY - 4000, payloads + MANY),
        (6, 1, payloads + MANY - 2000),
    ] {
        let prune = json!({"thread_ids": ["pruned"], "strategy": "keep_latest"});
        killed_at(&database.url, server, at, reqwest::Method::POST, "/threads/prune", Some(prune)).await;
        // Whole steps were done, or nothing.
        assert_eq!(count(&database.url, "checkpoints").await, checkpoints, "killed at {at}");
        assert_eq!(count(&database.url, "payloads").await, payloads, "killed at {at}");
        server = start();
        let url = format!("{}/threads/pruned", server.url);
        assert_eq!(get(&format!("{url}/state")).await["values"], state["values"]);
        // Every checkpoint that is there can be read.
        let history = post(&format!("{url}/history"), json!({"limit": 1000})).await;
        assert_eq!(history.as_array().map(Vec::len), Some(usize::try_from(checkpoints.min(1000)).expect("few")));
    }
    let url = format!("{}/threads/pruned", server.url);
    let prune = json!({"thread_ids": ["pruned"], "strategy": "keep_latest"});
    assert_eq!(post(&format!("{}/threads/prune", server.url), prune).await["pruned_count"], 1);
    assert_eq!(count(&database.url, "checkpoints").await, 1);
    assert!(count(&database.url, "payloads").await <= payloads);
    assert_eq!(get(&format!("{url}/state")).await["values"], state["values"]);

    // Deleting: the answer comes after the first step, the others are the sweep's, which dies in its second.
    execute(&database.url, INFLATE).await;
    killed_at(&database.url, server, 5, reqwest::Method::DELETE, "/threads/pruned", None).await;
    assert_eq!(count(&database.url, "dead_threads").await, 1);
    let server = start();
    let (status, _) =
        send(reqwest::Method::GET, &format!("{}/threads/pruned", server.url), None).await.expect("an answer");
    assert_eq!(status, 404, "deleted it stays");
    let is_gone = async || (count(&database.url, "dead_threads").await == 0).then_some(());
    eventually("the rest is removed", PATIENCE, is_gone).await;
    for table in ["runs", "run_lookup", "checkpoints", "payloads", "channel_log", "events"] {
        assert_eq!(count(&database.url, table).await, 0, "{table}");
    }
}
