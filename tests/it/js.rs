//! The JavaScript SDK, unchanged, React's two `useStream` hooks in a browser, and LangGraph with the checkpointer of
//! `clients/js` drive a real server.
//!
//! The scripts of `tests/js` run in a folder of their own: beside them the packages of `tests/js/package-lock.json`,
//! wherever those are installed, and the client. The browser gets its page from another origin than the server's.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output};

use session_store::app::{Running, Server};
use session_store::config::{Config, DatabaseUrl};
use session_store::graph::Graph;

use crate::fixtures::{cued, refapp};
use crate::support::process::{self, Database, available, provided, root, sqlite_url};

fn graphs() -> Vec<Graph> {
    let graphs = refapp::all().into_iter().chain([cued::graph()]);
    graphs.map(|graph| graph.expect("a fixture builds")).collect()
}

/// A server of the graphs that clients are tested with.
pub(crate) async fn serve(database_url: &str) -> Running {
    let mut config = Config::defaults().expect("the defaults are readable");
    config.server.listen = "127.0.0.1:0".into();
    config.database.url = DatabaseUrl::new(database_url);
    Server::new(config, graphs()).start().await.expect("the server starts")
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("readable").flatten() {
        let (path, place) = (entry.path(), to.join(entry.file_name()));
        if entry.file_name() == "node_modules" {
            continue;
        }
        if path.is_dir() {
            copy_folder(&path, &place);
        } else {
            fs::copy(&path, &place).expect("copied");
        }
    }
}

/// Node resolves packages from where a script lies: the scripts are copied to where the packages are linked.
fn workspace(packages: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    copy_folder(&root().join("tests/js"), dir.path());
    copy_folder(&root().join("clients/js"), &dir.path().join("session-store-langgraph"));
    symlink(packages, dir.path().join("node_modules")).expect("linked");
    dir
}

/// What a script needs of this machine; `None` when that is not there and need not be.
fn packages() -> Option<String> {
    let packages = provided("SESSION_STORE_TEST_NODE_MODULES")?;
    available("node").then_some(packages)
}

fn node(packages: &str, arguments: &[&str], url: &str) -> Output {
    let place = workspace(packages);
    Command::new("node")
        .args(arguments)
        .current_dir(place.path())
        .env("BASE_URL", url)
        // The SDK would send a key it finds there.
        .env_remove("LANGGRAPH_API_KEY")
        .env_remove("LANGSMITH_API_KEY")
        .env_remove("LANGCHAIN_API_KEY")
        .env_remove("NODE_OPTIONS")
        .output()
        .expect("node runs")
}

/// Runs a script to its end; it must say that all of its checks passed.
async fn drive(script: &'static str, packages: String, url: String, backend: &'static str) {
    // A connection that a failed check left open must not keep it from ending.
    let done = tokio::task::spawn_blocking(move || node(&packages, &["--test-force-exit", script], &url));
    let done = done.await.expect("node was waited for");
    let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "{script} on {backend}:\n{out}\n{err}");
    assert!(out.lines().any(|line| line.ends_with("checks passed")), "{script} on {backend}:\n{out}");
}

async fn drive_on_sqlite(script: &'static str, packages: String) {
    let dir = tempfile::tempdir().expect("a directory");
    let server = serve(&sqlite_url(&dir)).await;
    drive(script, packages, server.url(), "SQLite").await;
    server.shutdown().await.expect("stops");
}

async fn drive_on_postgres(script: &'static str, packages: String) {
    let Some(database) = Database::create("js").await else { return };
    let server = serve(&database.url).await;
    drive(script, packages, server.url(), "Postgres").await;
    server.shutdown().await.expect("stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_javascript_sdk_works_on_sqlite() {
    let Some(packages) = packages() else { return };
    drive_on_sqlite("sdk.mjs", packages).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_javascript_sdk_works_on_postgres() {
    let Some(packages) = packages() else { return };
    drive_on_postgres("sdk.mjs", packages).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn both_use_stream_hooks_work_in_a_browser_on_sqlite() {
    let (Some(packages), Some(_)) = (packages(), provided("SESSION_STORE_TEST_CHROMIUM")) else { return };
    drive_on_sqlite("browser.mjs", packages).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn both_use_stream_hooks_work_in_a_browser_on_postgres() {
    let (Some(packages), Some(_)) = (packages(), provided("SESSION_STORE_TEST_CHROMIUM")) else { return };
    drive_on_postgres("browser.mjs", packages).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn javascript_graphs_keep_their_state_on_sqlite() {
    let Some(packages) = packages() else { return };
    drive_on_sqlite("saver.mjs", packages).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn javascript_graphs_keep_their_state_on_postgres() {
    let Some(packages) = packages() else { return };
    drive_on_postgres("saver.mjs", packages).await;
}

/// A program is killed in the middle, then the server; another process goes on where it stood.
fn survive(packages: &str, database_url: &str) {
    let server = process::Server::start(database_url);
    let port = server.port();
    let killed = node(packages, &["killed.mjs", "begin", "js-session"], &server.url);
    assert!(killed.status.code().is_none(), "killed by a signal: {killed:?}");
    assert_eq!(String::from_utf8_lossy(&killed.stdout), "Current counter: 0\nCurrent counter: 1\n");
    server.kill();
    // At the same address, as a supervisor would start it again.
    let mut command = process::binary();
    command.args(["serve", "--listen", &format!("127.0.0.1:{port}"), "--database-url", database_url]);
    let server = process::Server::spawn(command);
    let resumed = node(packages, &["killed.mjs", "resume", "js-session"], &server.url);
    let want = "[{\"counter\":2},[\"increment\"]]\nCurrent counter: 2\n{\"counter\":3}\n";
    assert_eq!(String::from_utf8_lossy(&resumed.stdout), want, "{resumed:?}");
}

#[test]
fn javascript_graphs_survive_kills_on_sqlite() {
    let Some(packages) = packages() else { return };
    let dir = tempfile::tempdir().expect("a directory");
    survive(&packages, &sqlite_url(&dir));
}

#[tokio::test]
async fn javascript_graphs_survive_kills_on_postgres() {
    let Some(packages) = packages() else { return };
    let Some(database) = Database::create("js").await else { return };
    survive(&packages, &database.url);
}
