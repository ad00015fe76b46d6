//! A deployment that replaces processes one by one: runs are handed over, streams go on elsewhere, event by event.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::StreamExt as _;
use reqwest::RequestBuilder;

use super::*;
use crate::support::process::{Database, binary, number};

const STEPS: i64 = 40;
/// Nothing here may be waited for: neither a poll nor a lease that runs out brings the next worker.
const NO_TIMERS: [(&str, &str); 3] =
    [("RUNTIME__LEASE_SECS", "600"), ("RUNTIME__RENEW_SECS", "60"), ("RUNTIME__POLL_SECS", "3600")];

/// The longest pause between two checkpoints, in microseconds, after the superstep during which the process was told to stop.
const HAND_OVER: &str = "SELECT MAX(pause)::bigint
    FROM (SELECT step, created_at - LAG(created_at) OVER (ORDER BY step) AS pause FROM checkpoints WHERE ns = '') AS pauses
    WHERE step > 16";

/// One event: (id, name, data).
type Event = (String, String, String);

/// Reads an event stream to its end, or until `is_enough`.
async fn read(request: RequestBuilder, is_enough: impl Fn(&[Event]) -> bool) -> Vec<Event> {
    let response = request.timeout(PATIENCE).send().await.expect("an answer");
    assert_eq!(response.status(), 200);
    let (mut chunks, mut text, mut events) = (response.bytes_stream(), String::new(), Vec::new());
    while !is_enough(&events) {
        // A server that stops may cut the connection after the last whole frame.
        let Some(Ok(chunk)) = chunks.next().await else { break };
        text.push_str(std::str::from_utf8(&chunk).expect("UTF-8"));
        while let Some((frame, rest)) = text.split_once("\n\n") {
            let field = |name: &str| {
                let line = frame.lines().find_map(|line| line.strip_prefix(name));
                line.unwrap_or_default().to_owned()
            };
            if !frame.starts_with(':') {
                events.push((field("id: "), field("event: "), field("data: ")));
            }
            text = rest.to_owned();
        }
    }
    events
}

fn join(server: &Server, run: &str, after: &str) -> RequestBuilder {
    let path = run.split_once("/threads/").expect("a URL of a run").1;
    reqwest::Client::new().get(format!("{}/threads/{path}/stream", server.url)).header("last-event-id", after)
}

async fn resumable(server: &Server, thread: &str) -> String {
    let url = format!("{}/threads/{thread}/runs", server.url);
    let body = json!({
        "assistant_id": "walk", "input": {"name": thread, "n": 0, "steps": STEPS},
        "stream_mode": ["values", "updates"], "stream_resumable": true,
    });
    let run = post(&url, body).await;
    format!("{url}/{}", run["run_id"].as_str().expect("an id"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_process_hands_over_at_once_and_its_streams_go_on_elsewhere() {
    let Some(database) = Database::create("rolling").await else { return };
    let traces = tempfile::tempdir().expect("a directory");
    let owner = server(&database.url, traces.path(), &NO_TIMERS);
    let gate = Gate(traces.path());
    gate.opens_until(15);
    let run = resumable(&owner, "rolling").await;
    reaches(&owner, "rolling", 15).await;
    let heir = server(&database.url, traces.path(), &NO_TIMERS);
    let heard = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&heard);
    let reader = tokio::spawn(read(join(&owner, &run, "-1"), move |events| {
        count.store(events.len(), Ordering::SeqCst);
        false
    }));
    let listens = async || Some(()).filter(|()| heard.load(Ordering::SeqCst) > 15);
    eventually("it listens", PATIENCE, listens).await;
    // It waits in its superstep while it is told to stop.
    owner.signal("TERM");
    let told = async || Some(()).filter(|()| owner.logged("shutting down"));
    eventually("it stops", PATIENCE, told).await;
    gate.opens_until(STEPS);
    let mut events = reader.await.expect("the stream ended");
    let last = events.last().expect("it had begun").0.clone();
    assert!(events.iter().all(|(_, name, _)| name != "error"), "{events:?}");
    // The client goes on where it was, elsewhere.
    let rest = read(join(&heir, &run, &last), |_| false).await;
    assert!(!rest.is_empty());
    events.extend(rest);
    assert_eq!(ended(&heir, &run).await, "success");
    assert!(tokio::task::spawn_blocking(move || owner.ends()).await.expect("it ended").success());
    // By the database's clock. No timer was due: the other process was told.
    let gap = number(&database.url, HAND_OVER).await;
    eprintln!("the run stood still for {gap} microseconds");
    assert!(gap < PATIENCE.as_micros() as i64 / 6, "{gap} microseconds");
    assert_eq!(started(traces.path(), "rolling-15"), 1, "the superstep was finished, not repeated");
    // Nothing lost, nothing twice: what the client heard is what there is to hear.
    let all = read(join(&heir, &run, "-1"), |_| false).await;
    assert_eq!(events, all);
    let ids: Vec<&String> = events.iter().map(|(id, _, _)| id).collect();
    assert!(ids.iter().all(|id| !id.is_empty()));
    has_each_step_once(&heir, "rolling", STEPS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_replica_serves_any_stream() {
    let Some(database) = Database::create("replicas").await else { return };
    let traces = tempfile::tempdir().expect("a directory");
    let worker = server(&database.url, traces.path(), &[("RUNTIME__ROLE", "worker")]);
    let apis = [(); 2].map(|()| server(&database.url, traces.path(), &[("RUNTIME__ROLE", "api")]));
    Gate(traces.path()).opens_until(STEPS);
    let run = resumable(&apis[0], "anywhere").await;
    // Both while it happens, on processes that do not execute it.
    let live = apis.iter().map(|api| read(join(api, &run, "-1"), |_| false));
    let heard = futures_util::future::join_all(live).await;
    let all = read(join(&apis[1], &run, "-1"), |_| false).await;
    assert!(all.len() as i64 > STEPS, "{} events", all.len());
    assert_eq!(heard, [all.clone(), all]);
    assert_eq!(ended(&apis[1], &run).await, "success");
    drop(worker);
}

/// Many processes start at once on an empty database and on one that is being migrated by a process that is killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_in_a_migration_leaves_a_database_that_the_next_one_migrates() {
    let Some(database) = Database::create("migrating").await else { return };
    for _ in 0..5 {
        let mut migrating = binary();
        migrating.args(["migrate", "--database-url", &database.url]);
        migrating.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        let mut child = migrating.spawn().expect("it runs");
        // Killed as soon as it is connected, wherever it is then.
        let sql = "SELECT COUNT(*)::bigint FROM pg_stat_activity
                   WHERE datname = current_database() AND application_name = 'session-store'";
        while child.try_wait().expect("a status").is_none() && number(&database.url, sql).await == 0 {
            tokio::task::yield_now().await;
        }
        child.kill().expect("kill -9");
        child.wait().expect("reaped");
    }
    let traces = tempfile::tempdir().expect("a directory");
    let server = server(&database.url, traces.path(), &[]);
    let counter = json!({"assistant_id": "counter", "input": {"counter": 0}});
    assert_eq!(post(&format!("{}/threads/t/runs/wait", server.url), counter).await, json!({"counter": 3}));
}
