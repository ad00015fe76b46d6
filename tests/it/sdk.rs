//! The Python SDK, unchanged, drives a real server: what the reference documents print is what comes back.

use std::process::Command;

use crate::support::process::{Database, Server, provided, root, sqlite_url};

/// The scripts of `tests/sdk`: the reference documents' programs, every resource, `RemoteGraph`, event streaming, and
/// the clients of MCP and A2A.
const SCRIPTS: [&str; 6] =
    ["seeds.py", "resources.py", "remote_graph.py", "thread_streams.py", "mcp_client.py", "a2a_client.py"];

fn drive(server: &Server, backend: &str) {
    for script in SCRIPTS {
        drive_one(server, backend, script);
    }
}

fn drive_one(server: &Server, backend: &str, script: &str) {
    let Some(python) = provided("SESSION_STORE_TEST_PYTHON") else { return };
    let done = Command::new(python)
        // Leaves no compiled files in the checkout.
        .arg("-B")
        .arg(root().join("tests/sdk").join(script))
        .env("BASE_URL", &server.url)
        .env("LANGSMITH_TRACING", "false")
        // The SDK would send a key it finds there.
        .env_remove("LANGGRAPH_API_KEY")
        .env_remove("LANGSMITH_API_KEY")
        .env_remove("LANGCHAIN_API_KEY")
        .output()
        .expect("Python runs");
    let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "{script} on {backend}:\n{out}\n{err}");
    assert!(out.lines().any(|line| line.ends_with("checks passed")), "{out}");
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
