//! The setting for tables that are distributed by thread, observed where it counts: in the database, statement by
//! statement, and on the wire.

use serde_json::json;

use crate::support::process::{Database, PATIENCE, Server, binary, eventually, execute, get, number, post};
use crate::support::proxy::Proxy;

const TABLES: [&str; 9] =
    ["threads", "runs", "checkpoints", "task_writes", "payloads", "channel_log", "events", "interrupts", "webhooks"];

/// Notes which transaction changes rows of which thread.
async fn observe(url: &str) {
    let mut sql = "CREATE TABLE touched (transaction bigint NOT NULL, thread_key uuid NOT NULL);
        CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            INSERT INTO touched VALUES (txid_current(), COALESCE(NEW.thread_key, OLD.thread_key)); RETURN NULL;
        END $$;"
        .to_owned();
    for table in TABLES {
        sql += &format!(
            "CREATE TRIGGER touch AFTER INSERT OR UPDATE OR DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION touch();"
        );
    }
    execute(url, &sql).await;
}

/// How many transactions changed more than one thread.
const WIDE: &str = "SELECT COUNT(*)::bigint FROM (SELECT 1 FROM touched GROUP BY transaction
                    HAVING COUNT(DISTINCT thread_key) > 1) AS wide";

async fn start(url: &str, distributed: &str) -> Server {
    let mut command = binary();
    command.args(["serve", "--listen", "127.0.0.1:0", "--database-url", url]);
    command.env("SESSION_STORE__DATABASE__DISTRIBUTED", distributed).env("SESSION_STORE__RUNTIME__RENEW_SECS", "0.2");
    Server::spawn(command)
}

/// Several runs at a time: long enough to be renewed, queued behind each other, waited for, and streamed.
async fn work(server: &Server) {
    let slow = json!({"assistant_id": "slow", "input": {"n": 0, "steps": 10, "sleep_ms": 100}});
    let counter = json!({"assistant_id": "counter", "input": {"counter": 0}, "stream_resumable": true});
    let runs = |thread: usize| format!("{}/threads/t{thread}/runs", server.url);
    for thread in 0..3 {
        post(&runs(thread), slow.clone()).await;
        post(&runs(thread), counter.clone()).await;
    }
    let waits: Vec<_> = (3..9).map(|thread| (format!("{}/wait", runs(thread)), counter.clone())).collect();
    let answers =
        futures_util::future::join_all(waits.into_iter().map(|(url, body)| async move { post(&url, body).await }));
    assert!(answers.await.iter().all(|answer| *answer == json!({"counter": 3})));
    for thread in 0..3 {
        let all_ended = async || {
            let list = get(&runs(thread)).await;
            let ended = list.as_array()?.iter().all(|run| run["status"] == "success");
            ended.then_some(())
        };
        eventually("its runs end", PATIENCE, all_ended).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_statement_of_a_run_touches_two_threads() {
    let Some(database) = Database::create("distributed").await else { return };
    let migrated = binary().args(["migrate", "--database-url", &database.url]).status().expect("it runs");
    assert!(migrated.success());
    observe(&database.url).await;
    let proxy = Proxy::to(&database.url).await;
    let server = start(&proxy.url(&database.url), "true").await;
    work(&server).await;
    assert!(number(&database.url, "SELECT COUNT(*)::bigint FROM touched").await > 100);
    assert_eq!(number(&database.url, WIDE).await, 0);

    // Nothing that such databases lack.
    let sequences = "SELECT COUNT(*)::bigint FROM pg_class WHERE relkind = 'S'
                     AND relnamespace = 'public'::regnamespace";
    assert_eq!(number(&database.url, sequences).await, 0);
    assert_eq!(number(&database.url, "SELECT COUNT(*)::bigint FROM pg_extension WHERE extname <> 'plpgsql'").await, 0);
    assert_eq!(number(&database.url, "SELECT COUNT(*)::bigint FROM pg_constraint WHERE contype = 'f'").await, 0);
    let statements = proxy.statements();
    assert!(statements.len() > 10 && statements.iter().any(|text| text.contains("INSERT INTO checkpoints")));
    let advisory: Vec<&String> = statements.iter().filter(|text| text.contains("advisory")).collect();
    assert_eq!(advisory, ["SELECT pg_advisory_xact_lock($1)"], "migrations alone");
    assert!(statements.iter().all(|text| !text.contains("nextval")), "{statements:?}");
    drop(server);

    // Without the setting they do: leases are renewed together. So what is counted here can be seen.
    let server = start(&database.url, "false").await;
    work(&server).await;
    assert!(number(&database.url, WIDE).await > 0);
}
