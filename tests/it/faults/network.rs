//! The network between a server and its database: partitions, half-open connections, and a database that restarts.

use std::time::Instant;

use super::*;
use crate::support::process::Database;
use crate::support::proxy::Proxy;

const STEPS: i64 = 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partitioned_worker_stops_by_itself_and_changes_nothing_when_it_is_back() {
    let Some(database) = Database::create("partition").await else { return };
    let traces = tempfile::tempdir().expect("a directory");
    let proxy = Proxy::to(&database.url).await;
    let owner = server(&proxy.url(&database.url), traces.path(), &[]);
    Gate(traces.path()).opens_until(10);
    let run = start_walk(&owner, "parted", STEPS).await;
    reaches(&owner, "parted", 10).await;
    proxy.hold();
    let heir = server(&database.url, traces.path(), &[]);
    Gate(traces.path()).opens_until(STEPS);
    // Without a word from the database, it knows that its time is up.
    let stopped = async || Some(()).filter(|()| owner.logged("lease lost; the run was stopped here"));
    eventually("the partitioned one stops", PATIENCE, stopped).await;
    assert_eq!(ended(&heir, &run).await, "success");
    let before = get(&format!("{}/threads/parted/state", heir.url)).await;
    // What it had sent arrives now, late.
    proxy.pass();
    let answers = async || {
        let state = send(reqwest::Method::GET, &format!("{}/threads/parted/state", owner.url), None).await;
        state.ok().filter(|(status, _)| *status == 200).map(|(_, state)| state)
    };
    assert_eq!(eventually("it serves again", PATIENCE, answers).await.0, before);
    has_each_step_once(&heir, "parted", STEPS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_open_connections_are_left_behind() {
    let Some(database) = Database::create("halfopen").await else { return };
    let traces = tempfile::tempdir().expect("a directory");
    let proxy = Proxy::to(&database.url).await;
    let quick = [("DATABASE__STATEMENT_TIMEOUT_SECS", "3"), ("DATABASE__ACQUIRE_TIMEOUT_SECS", "2")];
    let server = server(&proxy.url(&database.url), traces.path(), &quick);
    Gate(traces.path()).opens_until(5);
    let run = start_walk(&server, "halfopen", STEPS).await;
    reaches(&server, "halfopen", 5).await;
    proxy.leave_half_open();
    Gate(traces.path()).opens_until(STEPS);
    // Nobody closes those connections. The run goes on all the same, and so does the server.
    assert_eq!(ended(&server, &run).await, "success");
    assert!(server.logged("its connections are left behind"));
    has_each_step_once(&server, "halfopen", STEPS).await;
    let ready = async || {
        let answer = send(reqwest::Method::GET, &format!("{}/ready", server.url), None).await;
        answer.ok().filter(|(status, _)| *status == 200)
    };
    eventually("it is ready", PATIENCE, ready).await;
}

/// A client with a key waits at a process that loses the database; the run ends elsewhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_could_not_be_had_is_not_kept_under_its_key() {
    let Some(database) = Database::create("keyed").await else { return };
    let traces = tempfile::tempdir().expect("a directory");
    let proxy = Proxy::to(&database.url).await;
    let api = server(&proxy.url(&database.url), traces.path(), &[("RUNTIME__ROLE", "api")]);
    let worker = server(&database.url, traces.path(), &[]);
    Gate(traces.path()).opens_until(5);
    let body = json!({"assistant_id": "walk", "input": {"name": "keyed", "n": 0, "steps": STEPS}});
    let wait = |body: Value| {
        let request = reqwest::Client::new().post(format!("{}/threads/keyed/runs/wait", api.url));
        request.header("idempotency-key", "once").json(&body).timeout(PATIENCE).send()
    };
    let waiting = wait(body.clone()).await.expect("an answer");
    assert_eq!(waiting.status(), 200, "it has begun");
    reaches(&worker, "keyed", 5).await;
    proxy.refuse();
    let answer: Value = waiting.json().await.expect("JSON");
    assert!(answer["__error__"]["error"].is_string(), "{answer}");
    proxy.pass();
    Gate(traces.path()).opens_until(STEPS);
    // Asked again, the same run, and what became of it.
    let answer = async || {
        let answer = wait(body.clone()).await.ok()?;
        let is_replay = answer.headers().contains_key("idempotency-replayed");
        let answer: Value = answer.json().await.ok()?;
        answer.get("n").is_some().then_some((is_replay, answer))
    };
    let ((is_replay, answer), _) = eventually("the database is back", PATIENCE, answer).await;
    assert_eq!((is_replay, &answer["n"]), (true, &json!(STEPS)), "{answer}");
    assert_eq!(get(&format!("{}/threads/keyed/runs", worker.url)).await.as_array().map(Vec::len), Some(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_outlast_a_restart_of_the_database_and_are_told_to_come_back_after_a_long_one() {
    let Some(database) = Database::create("restart").await else { return };
    let traces = tempfile::tempdir().expect("a directory");
    let proxy = Proxy::to(&database.url).await;
    let server = server(&proxy.url(&database.url), traces.path(), &[]);
    let counter = json!({"assistant_id": "counter", "input": {"counter": 0}});
    post(&format!("{}/threads/t/runs/wait", server.url), counter).await;
    let url = format!("{}/threads/t/state", server.url);
    for _ in 0..3 {
        proxy.refuse();
        let before = proxy.refused();
        let reading: Vec<_> = (0..4)
            .map(|_| {
                tokio::spawn({
                    let url = url.clone();
                    async move { send(reqwest::Method::GET, &url, None).await.expect("an answer") }
                })
            })
            .collect();
        // The reads have met the closed door; then it opens.
        let met = async || Some(()).filter(|()| proxy.refused() > before);
        eventually("a connection is refused", PATIENCE, met).await;
        proxy.pass();
        for read in reading {
            let (status, state) = read.await.expect("it read");
            assert_eq!((status, &state["values"]["counter"]), (200, &json!(3)), "{state}");
        }
    }
    // Longer than the budget: an answer that says when to come back, in bounded time.
    proxy.refuse();
    let asked = Instant::now();
    let response = reqwest::Client::new().get(&url).timeout(PATIENCE).send().await.expect("an answer");
    assert_eq!(response.status(), 503);
    assert_eq!(response.headers()["retry-after"], "1");
    assert!(asked.elapsed() >= Duration::from_secs(4), "not before the budget is spent");
    let (status, sick) = send(reqwest::Method::GET, &format!("{}/ready", server.url), None).await.expect("an answer");
    assert_eq!((status, &sick["services"]["database"]), (503, &json!("unhealthy")), "{sick}");
    assert_eq!(get(&format!("{}/ok", server.url)).await["ok"], true, "the process is alive");
    proxy.pass();
    assert_eq!(get(&url).await["values"]["counter"], 3);
}
