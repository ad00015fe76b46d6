//! Runs that kill their process: others go on, and the guilty one is set aside with its reason, until it is released.

use std::time::Instant;

use super::*;
use crate::support::process::{Database, sqlite_url};

const STEPS: i64 = 8;
/// Short leases make the test short; they are never waited for longer than that.
const QUICK: [(&str, &str); 3] =
    [("RUNTIME__LEASE_SECS", "3"), ("RUNTIME__RENEW_SECS", "0.5"), ("RUNTIME__POLL_SECS", "0.2")];
/// Longer than it takes until the leases of a dead process have run out.
const OTHERS_WAIT: Duration = Duration::from_secs(4);

async fn is_survived(how: &str, url: &str) {
    let traces = tempfile::tempdir().expect("a directory");
    let spawn = || Server::try_spawn(command(url, traces.path(), &QUICK));
    let mut server = spawn().expect("starts");
    // It dies as often as the guilty one, in the same superstep: nothing but the outcome tells the two apart.
    Gate(traces.path()).opens_until(2);
    let innocent = start_walk(&server, "innocent", STEPS).await;
    reaches(&server, "innocent", 2).await;
    let body = json!({"assistant_id": "fault", "input": {"how": how, "name": "guilty"}});
    // The process may be gone before it has answered.
    let _ = send(reqwest::Method::POST, &format!("{}/threads/guilty/runs", server.url), Some(body)).await;
    // Whoever dies is started again, as a supervisor would do.
    let deadline = Instant::now() + PATIENCE * 2;
    let (mut deaths, mut up) = (0, Instant::now());
    let guilty = loop {
        assert!(Instant::now() < deadline, "not set aside after {deaths} deaths");
        if server.has_ended().is_some() {
            deaths += 1;
            match spawn() {
                Ok(next) => (server, up) = (next, Instant::now()),
                // Died at once: once more.
                Err(_) => continue,
            }
        }
        if deaths >= 2 && up.elapsed() > OTHERS_WAIT {
            // It makes its last attempt first, and alone: the guilty one waits for it.
            Gate(traces.path()).opens_until(STEPS);
        }
        let runs = send(reqwest::Method::GET, &format!("{}/threads/guilty/runs", server.url), None).await;
        match runs {
            Ok((200, runs)) if runs[0]["status"] == "error" => break runs[0]["run_id"].clone(),
            _ => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    Gate(traces.path()).opens_until(STEPS);
    assert_eq!(started(traces.path(), "guilty"), 3, "as often as runtime.max_attempts says");
    let quarantine = get(&format!("{}/quarantine", server.url)).await;
    assert_eq!(quarantine.as_array().map(Vec::len), Some(1), "the guilty one alone: {quarantine}");
    assert_eq!((&quarantine[0]["run_id"], &quarantine[0]["error"]["error"]), (&guilty, &json!("RunQuarantined")));
    assert!(quarantine[0]["error"]["message"].as_str().is_some_and(|why| why.contains("3 times")), "{quarantine}");
    assert_eq!(get(&format!("{}/threads/guilty", server.url)).await["status"], "error");
    assert_eq!(ended(&server, &innocent).await, "success");
    has_each_step_once(&server, "innocent", STEPS).await;

    // Cured, it is let go, and does what it was asked to do.
    std::fs::write(traces.path().join("cured"), "").expect("written");
    let released = post(&format!("{}/quarantine/release", server.url), json!({"run_ids": [guilty]})).await;
    assert_eq!(released[0]["released"], true, "{released}");
    let run = format!("{}/threads/guilty/runs/{}", server.url, guilty.as_str().expect("an id"));
    assert_eq!(ended(&server, &run).await, "success");
    assert_eq!(get(&format!("{}/threads/guilty/state", server.url)).await["values"]["done"], true);
    assert_eq!(get(&format!("{}/quarantine", server.url)).await, json!([]));
}

#[tokio::test]
async fn a_stack_overflow_leads_the_guilty_run_to_quarantine() {
    let dir = tempfile::tempdir().expect("a directory");
    is_survived("overflow", &sqlite_url(&dir)).await;
}

#[tokio::test]
async fn running_out_of_memory_leads_the_guilty_run_to_quarantine() {
    let Some(database) = Database::create("poison").await else { return };
    is_survived("memory", &database.url).await;
}

/// A hanging, a panicking and a well-behaved node side by side: each ends as it should, the server goes on.
#[tokio::test]
async fn hanging_and_panicking_nodes_concern_their_run_only() {
    let dir = tempfile::tempdir().expect("a directory");
    let traces = tempfile::tempdir().expect("a directory");
    let server = server(&sqlite_url(&dir), traces.path(), &[]);
    let hanging = start(&server, "hanging", "fault", json!({"how": "hang", "name": "hanging"})).await;
    let panicking = start(&server, "panicking", "fault", json!({"how": "panic", "name": "panicking"})).await;
    assert_eq!(ended(&server, &panicking).await, "error");
    let well = format!("{}/threads/well/runs/wait", server.url);
    assert_eq!(post(&well, json!({"assistant_id": "fault", "input": {}})).await["done"], true);
    let under_way = async || Some(()).filter(|()| started(traces.path(), "hanging") == 1);
    eventually("it hangs", PATIENCE, under_way).await;
    assert_eq!(get(&hanging).await["status"], "running");
    // It holds its thread, but not against being stopped.
    post(&format!("{hanging}/cancel?wait=true"), json!({})).await;
    assert_eq!(ended(&server, &hanging).await, "interrupted");
    assert_eq!(
        post(&well.replace("well", "hanging"), json!({"assistant_id": "fault", "input": {"how": "x"}})).await["done"],
        true
    );
}
