//! Nodes that hold their threads: what keeps leases, requests and stops going is not on those threads.

use super::*;
use crate::support::process::{Database, binary, number};

#[tokio::test]
async fn leases_are_renewed_while_nodes_block_every_node_thread() {
    let Some(database) = Database::create("blocking").await else { return };
    let traces = tempfile::tempdir().expect("a directory");
    // Long leases, renewed often: what is waited for comes soon, and a busy machine takes nothing over.
    let settings = [("RUNTIME__LEASE_SECS", "60"), ("RUNTIME__RENEW_SECS", "0.5"), ("RUNTIME__STUCK_AFTER_SECS", "3")];
    let owner = server(&database.url, traces.path(), &settings);
    // As many as the server has threads for nodes (`runtime::nodes`).
    let threads = std::thread::available_parallelism().map_or(4, |n| (n.get() * 2).max(4));
    let mut runs = Vec::new();
    for n in 0..threads {
        let name = format!("block{n}");
        runs.push(start(&owner, &name, "fault", json!({"how": "block", "name": name})).await);
    }
    let all_block = async || {
        let blocked = (0..threads).filter(|n| started(traces.path(), &format!("block{n}")) == 1).count();
        Some(()).filter(|()| blocked == threads)
    };
    eventually("every thread is blocked", PATIENCE, all_block).await;
    // Taken by this process, too, and without a thread to begin on.
    let stranded = start(&owner, "stranded", "fault", json!({"name": "stranded"})).await;
    // Somebody who would take over what is not kept.
    let heir = server(&database.url, traces.path(), &settings);
    // Three times, as nothing that was under way before could have done it.
    for _ in 0..3 {
        let sql = "SELECT MAX(lease_until)::bigint FROM runs WHERE status = 'running'";
        let before = number(&database.url, sql).await;
        let renewed = async || {
            let sql = "SELECT COALESCE(MIN(lease_until), 0)::bigint FROM runs WHERE status = 'running'";
            Some(number(&database.url, sql).await).filter(|until| *until > before)
        };
        eventually("all leases are renewed", PATIENCE, renewed).await;
    }
    // It says what is the matter with it, and takes nothing that it could not execute.
    let is_sick = async || {
        let ready = get(&format!("{}/ready", owner.url)).await;
        (ready["services"]["nodes"] == "unhealthy").then_some(ready)
    };
    let (ready, _) = eventually("it notices", PATIENCE, is_sick).await;
    assert!(ready["sick"][0].as_str().is_some_and(|why| why.starts_with("nodes: ")), "{ready}");
    let mut doctor = binary();
    doctor.args(["doctor", "--database-url", &database.url]);
    doctor.env("SESSION_STORE__SERVER__LISTEN", format!("127.0.0.1:{}", owner.port()));
    let told = String::from_utf8(doctor.output().expect("it runs").stdout).expect("text");
    assert!(told.contains("warn  server: nodes: every thread is blocked"), "{told}");
    // What had not begun is handed over; nothing that had begun is.
    assert_eq!(ended(&heir, &stranded).await, "success", "the other process executes it");
    assert_eq!(started(traces.path(), "stranded"), 1);
    let other = start(&owner, "other", "fault", json!({"name": "other"})).await;
    assert_eq!(ended(&owner, &other).await, "success", "the other process executes it");
    // A stop does not wait for the node: its thread is still blocked when the run has ended.
    post(&format!("{}/cancel?wait=true", runs[0]), json!({})).await;
    assert_eq!(ended(&owner, &runs[0]).await, "interrupted");
    std::fs::write(traces.path().join("go on"), "").expect("written");
    for run in &runs[1..] {
        assert_eq!(ended(&heir, run).await, "success");
    }
    let is_well = async || {
        let ready = get(&format!("{}/ready", owner.url)).await;
        (ready["services"]["nodes"] == "healthy" && ready.get("sick").is_none()).then_some(())
    };
    eventually("it is well again", PATIENCE, is_well).await;
    for n in 0..threads {
        assert_eq!(started(traces.path(), &format!("block{n}")), 1, "nobody took it over");
    }
}
