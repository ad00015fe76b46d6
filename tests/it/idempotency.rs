//! A server dies after a request had its effect and before it was answered; the request is sent again.

use serde_json::{Value, json};

use crate::support::process::{Database, PATIENCE, Server, eventually, get, sqlite_url};

/// Sends a run with a key; `None` when the connection breaks.
async fn send(server: &Server, path: &str, key: &str, body: &Value) -> Option<(u16, Value)> {
    let request = reqwest::Client::new().post(format!("{}{path}", server.url)).timeout(PATIENCE);
    let response = request.header("idempotency-key", key).json(body).send().await.ok()?;
    let status = response.status().as_u16();
    Some((status, serde_json::from_str(&response.text().await.ok()?).ok()?))
}

async fn a_killed_server_has_accepted_the_run_once(url: &str) {
    let body = json!({"assistant_id": "slow", "input": {"n": 0, "steps": 60, "sleep_ms": 30}});
    let server = Server::start(url);
    let waiting = send(&server, "/threads/t/runs/wait", "k", &body);
    let killed = async {
        let started = async || {
            let url = format!("{}/threads/t/state", server.url);
            let answer = reqwest::get(url).await.ok()?.json::<Value>().await.ok()?;
            answer["values"]["n"].as_i64().filter(|n| *n > 5)
        };
        eventually("the run is under way", PATIENCE, started).await;
    };
    tokio::select! {
        answer = waiting => panic!("answered too early: {answer:?}"),
        () = killed => {}
    }
    server.kill();

    let server = Server::start(url);
    let racers = (0..20).map(|_| send(&server, "/threads/t/runs/wait", "k", &body));
    for answer in futures_util::future::join_all(racers).await {
        let (status, values) = answer.expect("an answer");
        assert_eq!((status, &values["n"]), (200, &json!(60)), "{values}");
    }
    let runs = get(&format!("{}/threads/t/runs", server.url)).await;
    assert_eq!(runs.as_array().map(Vec::len), Some(1), "{runs}");
    assert_eq!(runs[0]["status"], "success");
}

#[tokio::test]
async fn a_repeat_after_a_kill_joins_the_run_on_sqlite() {
    let dir = tempfile::tempdir().expect("a directory");
    a_killed_server_has_accepted_the_run_once(&sqlite_url(&dir)).await;
}

#[tokio::test]
async fn a_repeat_after_a_kill_joins_the_run_on_postgres() {
    let Some(database) = Database::create("keys").await else { return };
    a_killed_server_has_accepted_the_run_once(&database.url).await;
}

#[tokio::test]
async fn twenty_duplicates_at_two_replicas_are_one_run() {
    let Some(database) = Database::create("keys").await else { return };
    let (one, two) = (Server::start(&database.url), Server::start(&database.url));
    let body = json!({"assistant_id": "counter", "input": {"counter": 0}});
    let racers = (0..20).map(|n| send(if n % 2 == 0 { &one } else { &two }, "/threads/t/runs", "k", &body));
    let answers = futures_util::future::join_all(racers).await;
    let first = answers[0].clone().expect("an answer");
    for answer in answers {
        let (status, run) = answer.expect("an answer");
        assert_eq!((status, &run["run_id"]), (200, &first.1["run_id"]), "{run}");
    }
    let runs = get(&format!("{}/threads/t/runs", one.url)).await;
    assert_eq!(runs.as_array().map(Vec::len), Some(1), "{runs}");
}
