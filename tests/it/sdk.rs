//! The Python SDK, unchanged, drives a real server: what the reference documents print is what comes back.

use std::process::Command;

use crate::js::serve;
use crate::support::process::{Database, Server, provided, root, sqlite_url};

/// The scripts of `tests/sdk` for the shipped graphs: the reference documents' programs, every resource, `RemoteGraph`, event
/// streaming, and the clients of MCP and A2A. `drive.py` is for the graphs of `examples/conformance`.
const SCRIPTS: [&str; 6] =
    ["seeds.py", "resources.py", "remote_graph.py", "thread_streams.py", "mcp_client.py", "a2a_client.py"];

/// Checks of `drive.py`: what a server of this API is measured by. One that is left out is missed here.
const WHOLE_DRIVE: &str = "34 checks passed";

fn drive(server: &Server, backend: &str) {
    for script in SCRIPTS {
        let out = drive_one(&server.url, backend, script);
        assert!(out.lines().any(|line| line.ends_with("checks passed")), "{out}");
    }
}

/// Runs a script to its end, and returns what it said.
fn drive_one(url: &str, backend: &str, script: &str) -> String {
    let python = provided("SESSION_STORE_TEST_PYTHON").expect("the caller looked");
    let done = Command::new(python)
        // Leaves no compiled files in the checkout.
        .arg("-B")
        .arg(root().join("tests/sdk").join(script))
        .env("BASE_URL", url)
        .env("LANGSMITH_TRACING", "false")
        // The SDK would send a key it finds there.
        .env_remove("LANGGRAPH_API_KEY")
        .env_remove("LANGSMITH_API_KEY")
        .env_remove("LANGCHAIN_API_KEY")
        .output()
        .expect("Python runs");
    let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "{script} on {backend}:\n{out}\n{err}");
    out.into_owned()
}

async fn drive_whole(database_url: &str, backend: &'static str) {
    let server = serve(database_url).await;
    let url = server.url();
    let driven = tokio::task::spawn_blocking(move || drive_one(&url, backend, "drive.py"));
    let out = driven.await.expect("Python was waited for");
    assert_eq!(out.lines().last(), Some(WHOLE_DRIVE), "{out}");
    server.shutdown().await.expect("stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_whole_python_drive_passes_on_sqlite() {
    if provided("SESSION_STORE_TEST_PYTHON").is_none() {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    drive_whole(&sqlite_url(&dir), "SQLite").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_whole_python_drive_passes_on_postgres() {
    if provided("SESSION_STORE_TEST_PYTHON").is_none() {
        return;
    }
    let Some(database) = Database::create("drive").await else { return };
    drive_whole(&database.url, "Postgres").await;
}

#[test]
fn the_python_sdk_works_on_sqlite() {
    if provided("SESSION_STORE_TEST_PYTHON").is_none() {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    drive(&Server::start(&sqlite_url(&dir)), "SQLite");
}

#[tokio::test]
async fn the_python_sdk_works_on_postgres() {
    if provided("SESSION_STORE_TEST_PYTHON").is_none() {
        return;
    }
    let Some(database) = Database::create("sdk").await else { return };
    drive(&Server::start(&database.url), "Postgres");
}
