//! Processes die in the middle of a run; the run goes on by itself and each step's effect on state is there once.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::process::{Database, PATIENCE, Server, eventually, get, post, send, sqlite_url};

const STEPS: i64 = 100;
/// `runtime.lease_secs` of `config.toml`.
const LEASE: Duration = Duration::from_secs(4);
const THREAD: &str = "slow-1";

/// Starts a background run of 100 steps and waits until it is well under way; returns the run's id.
async fn start_slow_run(server: &Server) -> String {
    let run = post(
        &format!("{}/threads/{THREAD}/runs", server.url),
        json!({"assistant_id": "slow", "input": {"n": 0, "steps": STEPS, "sleep_ms": 40}, "stream_mode": "updates",
               "stream_resumable": true}),
    )
    .await;
    reaches(server, 20, PATIENCE).await;
    run["run_id"].as_str().expect("a run id").to_owned()
}

/// The latest committed `n`; -1 when there is none yet or the server does not answer.
async fn progress(server: &Server) -> i64 {
    match send(reqwest::Method::GET, &format!("{}/threads/{THREAD}/state", server.url), None).await {
        Ok((200, state)) => state["values"]["n"].as_i64().unwrap_or(-1),
        _ => -1,
    }
}

async fn reaches(server: &Server, n: i64, limit: Duration) -> Duration {
    let ask = async || Some(progress(server).await).filter(|now| *now >= n);
    eventually(&format!("n reaches {n}"), limit, ask).await.1
}

/// The run completes without anybody asking for it, and its history shows every step once.
async fn completes_without_a_gap(server: &Server, run: &str) {
    let url = format!("{}/threads/{THREAD}", server.url);
    let ended = async || {
        let run = get(&format!("{url}/runs/{run}")).await;
        (!matches!(run["status"].as_str(), Some("pending" | "running"))).then_some(run)
    };
    let (run, _) = eventually("the run ends", PATIENCE, ended).await;
    assert_eq!(run["status"], "success", "{run}");
    let state = get(&format!("{url}/state")).await;
    assert_eq!(state["values"]["n"], STEPS);
    assert_eq!(state["next"], json!([]));

    let Value::Array(mut history) = post(&format!("{url}/history"), json!({"limit": 1000})).await else {
        panic!("the history is a list")
    };
    history.reverse();
    let steps: Vec<i64> = history.iter().filter_map(|state| state["metadata"]["step"].as_i64()).collect();
    assert_eq!(steps, (-1..=STEPS).collect::<Vec<_>>(), "the steps are consecutive");
    let counts: Vec<i64> = history.iter().skip(2).filter_map(|state| state["values"]["n"].as_i64()).collect();
    assert_eq!(counts, (1..=STEPS).collect::<Vec<_>>(), "each step had its effect once");
    for pair in history.windows(2) {
        assert_eq!(pair[1]["parent_checkpoint"]["checkpoint_id"], pair[0]["checkpoint"]["checkpoint_id"]);
    }
    let thread = get(&url).await;
    assert_eq!(thread["status"], "idle", "{thread}");
}

/// The attempts that a replay of the run's stream tells of. It tells each step once.
async fn attempts(server: &Server, run: &str) -> Vec<i64> {
    let place = format!("{}/threads/{THREAD}/runs/{run}/stream", server.url);
    let replay = reqwest::Client::new().get(place).header("last-event-id", "-1").send().await.expect("an answer");
    let text = replay.text().await.expect("a stream that ends");
    let of = |event: &str| -> Vec<Value> {
        let data = text.split("\n\n").filter_map(|frame| frame.strip_prefix(&format!("event: {event}\ndata: ")));
        data.map(|data| serde_json::from_str(data.lines().next().expect("a line")).expect("JSON")).collect()
    };
    let steps: Vec<i64> = of("updates").iter().filter_map(|update| update["work"]["n"].as_i64()).collect();
    assert_eq!(steps, (1..=STEPS).collect::<Vec<_>>());
    of("metadata").iter().filter_map(|own| own["attempt"].as_i64()).collect()
}

#[tokio::test]
async fn a_killed_server_goes_on_after_its_restart() {
    let dir = tempfile::tempdir().expect("a directory");
    let url = sqlite_url(&dir);
    let server = Server::start(&url);
    let run = start_slow_run(&server).await;
    server.kill();

    let server = Server::start(&url);
    assert!(progress(&server).await >= 20, "what was committed before the kill is there");
    completes_without_a_gap(&server, &run).await;
    assert_eq!(attempts(&server, &run).await, [1, 2]);
}

#[tokio::test]
async fn a_survivor_takes_over_within_the_lease() {
    let Some(database) = Database::create("takeover").await else { return };
    // Alone at first, so that it is known who owns the run.
    let owner = Server::start(&database.url);
    let run = start_slow_run(&owner).await;
    let survivor = Server::start(&database.url);
    owner.kill();
    let at_kill = progress(&survivor).await;
    assert!((20..STEPS).contains(&at_kill), "killed in the middle, at {at_kill}");
    let took = reaches(&survivor, at_kill + 1, LEASE + Duration::from_secs(1)).await;
    eprintln!("taken over {took:?} after the kill");
    completes_without_a_gap(&survivor, &run).await;
    assert_eq!(attempts(&survivor, &run).await, [1, 2]);
}

#[tokio::test]
async fn a_server_told_to_stop_hands_its_runs_over() {
    let Some(database) = Database::create("handover").await else { return };
    let owner = Server::start(&database.url);
    let run = start_slow_run(&owner).await;
    let heir = Server::start(&database.url);
    let status = owner.terminate();
    assert!(status.success(), "a clean exit: {status}");
    let at_exit = progress(&heir).await;
    assert!(at_exit < STEPS, "stopped in the middle");
    let took = reaches(&heir, at_exit + 1, LEASE / 2).await;
    eprintln!("taken over {took:?} after the exit");
    completes_without_a_gap(&heir, &run).await;
}

#[tokio::test]
async fn a_stopped_server_goes_on_after_its_restart() {
    let dir = tempfile::tempdir().expect("a directory");
    let url = sqlite_url(&dir);
    let server = Server::start(&url);
    let run = start_slow_run(&server).await;
    let status = server.terminate();
    assert!(status.success(), "a clean exit: {status}");
    let server = Server::start(&url);
    completes_without_a_gap(&server, &run).await;
}

#[tokio::test]
async fn a_file_is_served_by_one_process() {
    let dir = tempfile::tempdir().expect("a directory");
    let url = sqlite_url(&dir);
    let _server = Server::start(&url);
    let second = crate::support::process::binary()
        .args(["serve", "--listen", "127.0.0.1:0", "--database-url", &url])
        .output()
        .expect("it runs");
    let said = String::from_utf8_lossy(&second.stderr);
    assert_eq!(second.status.code(), Some(1), "{said}");
    assert_eq!(said.lines().filter(|line| line.starts_with("error: ")).count(), 1, "one clear line: {said}");
}
