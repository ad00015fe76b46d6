//! LangGraph for Python, unchanged, with `HttpSaver` of `clients/python` as its checkpointer, against a real server.

use std::process::{Command, Output};

use crate::support::process::{Database, Server, binary, provided, root, sqlite_url};

fn python(server: &str, script: &str, arguments: &[&str]) -> Option<Output> {
    let python = provided("SESSION_STORE_TEST_PYTHON")?;
    let mut command = Command::new(python);
    command
        // Leaves no compiled files in the checkout.
        .arg("-B")
        .arg(root().join("tests/sdk").join(script))
        .args(arguments)
        .env("PYTHONPATH", root().join("clients/python/src"))
        .env("BASE_URL", server)
        // What it printed before it was killed is there, whatever the caller's environment says.
        .env("PYTHONUNBUFFERED", "1")
        .env("LANGSMITH_TRACING", "false")
        .env_remove("LANGSMITH_API_KEY")
        .env_remove("LANGCHAIN_API_KEY");
    Some(command.output().expect("Python runs"))
}

/// It says how many checks passed.
fn passed(script: &str, backend: &str, done: &Output) {
    let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "{script} on {backend}:\n{out}\n{err}");
    assert!(out.lines().any(|line| line.ends_with("checks passed")), "{out}");
}

fn drive(server: &Server, backend: &str) {
    for script in [
        "saver_conformance.py",
        "saver_programs.py",
        "saver_client.py",
        "saver_edges.py",
        "saver_agent.py",
        "saver_views.py",
    ] {
        let Some(done) = python(&server.url, script, &[]) else { return };
        passed(script, backend, &done);
    }
}

/// A program is killed in the middle, then the server; another process goes on where it stood.
fn survive(database_url: &str) {
    let server = Server::start(database_url);
    let port = server.port();
    let Some(killed) = python(&server.url, "saver_programs.py", &["begin", "demo-session"]) else { return };
    assert!(killed.status.code().is_none(), "killed by a signal: {killed:?}");
    assert_eq!(String::from_utf8_lossy(&killed.stdout), "Current counter: 0\nCurrent counter: 1\n");
    server.kill();
    // At the same address, as a supervisor would start it again.
    let mut command = binary();
    command.args(["serve", "--listen", &format!("127.0.0.1:{port}"), "--database-url", database_url]);
    let server = Server::spawn(command);
    let resumed = python(&server.url, "saver_programs.py", &["resume", "demo-session"]).expect("Python is there");
    let out = String::from_utf8_lossy(&resumed.stdout);
    let want = "{'counter': 2} ('increment',)\nCurrent counter: 2\nStopping condition reached\n{'counter': 3}\n";
    assert_eq!(out, want, "{resumed:?}");
}

#[test]
fn python_graphs_keep_their_state_on_sqlite() {
    let dir = tempfile::tempdir().expect("a directory");
    if provided("SESSION_STORE_TEST_PYTHON").is_some() {
        drive(&Server::start(&sqlite_url(&dir)), "SQLite");
    }
}

#[tokio::test]
async fn python_graphs_keep_their_state_on_postgres() {
    let Some(database) = Database::create("saver").await else { return };
    if provided("SESSION_STORE_TEST_PYTHON").is_some() {
        drive(&Server::start(&database.url), "Postgres");
    }
}

#[test]
fn python_graphs_survive_kills_on_sqlite() {
    let dir = tempfile::tempdir().expect("a directory");
    survive(&sqlite_url(&dir));
}

#[tokio::test]
async fn python_graphs_survive_kills_on_postgres() {
    let Some(database) = Database::create("saver").await else { return };
    survive(&database.url);
}

#[test]
fn pip_installs_the_python_client_from_its_folder() {
    let Some(done) = python("", "saver_installed.py", &[]) else { return };
    passed("saver_installed.py", "no server", &done);
}
