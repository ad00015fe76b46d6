//! The execution log: one row for each execution of a task.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use session_store::graph::{Context, Graph, Node, NodeError, RetryPolicy, START, StateGraph, Update, goto, send};
use session_store::http::HttpSettings;

use crate::support::server::TestServer;

/// The rows of a log, the first first, with what is asked of each.
async fn rows(server: &TestServer, path: &str, keys: &[&str]) -> Vec<Vec<Value>> {
    let listed = server.get(path).await.ok();
    let rows = listed.as_array().expect("a list").iter().rev();
    rows.map(|row| keys.iter().map(|key| row[*key].clone()).collect()).collect()
}

#[tokio::test]
async fn the_log_tells_what_each_task_did() {
    let server = TestServer::start().await;
    let run = json!({"assistant_id": "counter", "input": {"counter": 0}});
    server.post_as("ann", "/threads/t/runs/wait", run).await.ok();
    let told = rows(&server, "/threads/t/log", &["step", "node", "from", "next", "status", "attempt"]).await;
    let expected = |step: i64, from: &str, next: Value| {
        vec![json!(step), json!("increment"), json!([from]), next, json!("success"), json!(1)]
    };
    let on = json!(["increment"]);
    assert_eq!(
        told,
        [expected(1, "__start__", on.clone()), expected(2, "increment", on), expected(3, "increment", json!([]))]
    );
    let listed = server.get("/threads/t/log").await.ok();
    let row = &listed[0];
    assert_eq!((&row["written"], &row["actor"], &row["error"]), (&json!(["counter"]), &json!("ann"), &Value::Null));
    assert_eq!((&row["tokens"], &row["cost"], &row["checkpoint_ns"]), (&json!(0), &json!("0"), &json!("")));
    let (started, ended) = (row["started_at"].as_str().expect("a time"), row["ended_at"].as_str().expect("a time"));
    assert!(started <= ended && row["ms"].as_f64().is_some_and(|ms| ms >= 0.0), "{row}");
    // The task hangs on the checkpoint before the one it led to.
    let history = server.get("/threads/t/history").await.ok();
    assert_eq!(row["checkpoint_id"], history[1]["checkpoint"]["checkpoint_id"]);
    assert_eq!(row["task_id"], history[1]["tasks"][0]["id"]);
    let run_id = row["run_id"].as_str().expect("an id");
    assert_eq!(server.get("/threads/t/storage").await.ok()["log"]["count"], json!(3));
    // Pages.
    let first = server.get("/threads/t/log?limit=2").await;
    let next = first.header("x-pagination-next").expect("more").to_owned();
    assert_eq!(first.ok(), json!([listed[0], listed[1]]));
    let second = server.get(&format!("/threads/t/log?limit=2&cursor={next}")).await;
    assert_eq!(second.header("x-pagination-next"), None);
    assert_eq!(second.ok(), json!([listed[2]]));
    // Filters.
    for (query, count) in [
        ("min_step=2".to_owned(), 2),
        ("min_step=2&max_step=2".to_owned(), 1),
        ("node=increment".to_owned(), 3),
        ("node=other".to_owned(), 0),
        ("status=error".to_owned(), 0),
        ("root=true".to_owned(), 3),
        ("checkpoint_ns=x".to_owned(), 0),
        (format!("run_id={run_id}"), 3),
        ("run_id=00000000-0000-0000-0000-000000000000".to_owned(), 0),
    ] {
        let found = server.get(&format!("/threads/t/log?{query}")).await.ok();
        assert_eq!(found.as_array().map(Vec::len), Some(count), "{query}");
    }
    for query in ["limit=0", "status=x", "run_id=x", "min_step=x", "cursor=x", "cursor=1.x", "cursor=x.y"] {
        server.get(&format!("/threads/t/log?{query}")).await.refused(422);
    }
    server.get("/threads/nobody/log").await.refused(404);
    // Gone with its run.
    assert_eq!(server.send("DELETE", &format!("/threads/t/runs/{run_id}"), "").await.status, 204);
    assert_eq!(server.get("/threads/t/log").await.ok(), json!([]));
}

fn at_most(attempts: u32) -> RetryPolicy {
    RetryPolicy {
        initial_interval: Duration::from_millis(1),
        jitter: false,
        max_attempts: attempts,
        ..RetryPolicy::default()
    }
}

/// Fails twice, then succeeds.
fn flaky(calls: &Arc<AtomicUsize>) -> Node {
    let calls = Arc::clone(calls);
    Node::new(move |(), _: Context| {
        let calls = Arc::clone(&calls);
        async move {
            match calls.fetch_add(1, Ordering::SeqCst) {
                call @ 0..2 => Err(NodeError::new("Down", format!("call {call}"))),
                _ => Ok(Update::new().set("trail", ["flaky"])),
            }
        }
    })
}

#[tokio::test]
async fn failed_attempts_and_tasks_are_in_the_log() {
    let calls = Arc::new(AtomicUsize::new(0));
    let policy = RetryPolicy { retry_on: Arc::new(|_| true), ..at_most(3) };
    let graph = StateGraph::dynamic("unsteady")
        .append("trail")
        .node_with("flaky", flaky(&calls).retry(policy))
        .node("broken", async |(), _: Context| Err::<Update, _>(NodeError::new("ValueError", "no")))
        .edge(START, "flaky")
        .edge("flaky", "broken")
        .build()
        .expect("builds");
    for durability in ["sync", "exit"] {
        calls.store(0, Ordering::SeqCst);
        let server = TestServer::serving(HttpSettings::default(), vec![graph.clone()]).await;
        let run = json!({"assistant_id": "unsteady", "input": {}, "durability": durability});
        server.post("/threads/t/runs/wait", run).await;
        let told = rows(&server, "/threads/t/log", &["node", "attempt", "status", "next"]).await;
        let row = |node: &str, attempt: i64, status: &str, next: Value| {
            vec![json!(node), json!(attempt), json!(status), next]
        };
        assert_eq!(
            told,
            [
                row("flaky", 1, "error", json!([])),
                row("flaky", 2, "error", json!([])),
                row("flaky", 3, "success", json!(["broken"])),
                row("broken", 1, "error", json!([])),
            ],
            "{durability}"
        );
        let failed = server.get("/threads/t/log?status=error").await.ok();
        assert_eq!(failed[0]["error"], json!({"error": "ValueError", "message": "no"}), "{failed}");
        assert_eq!(failed[1]["error"], json!({"error": "Down", "message": "call 1"}), "whole, as in task errors");
        let run_id = failed[0]["run_id"].as_str().expect("an id");
        let why = server.get(&format!("/runs/{run_id}/explain")).await.ok();
        let retried = why["retried"].as_array().expect("a list");
        assert_eq!((retried.len(), &retried[0]["node"], &retried[1]["node"]), (2, &json!("broken"), &json!("flaky")));
        let flaky = &retried[1];
        assert_eq!(
            (&flaky["attempts"], &flaky["failed"], &flaky["error"]),
            (&json!(3), &json!(2), &json!("Down: call 1"))
        );
    }
}

fn paths() -> Graph {
    let inner = StateGraph::dynamic("inner")
        .append("trail")
        .node("deep", async |(), ctx: Context| {
            ctx.usage("m", 3, 4, None);
            Ok(Update::new().set("trail", ["deep"]))
        })
        .edge(START, "deep")
        .build()
        .expect("builds");
    StateGraph::dynamic("paths")
        .append("trail")
        .node("a", async |(), _: Context| Ok(Update::new().set("trail", ["a"])))
        .node("b", async |(), _: Context| Ok(Update::new().set("trail", ["b"])))
        .subgraph("inside", inner)
        .node("ask", async |(), ctx: Context| {
            let answer = ctx.interrupt("go on?")?;
            Ok(Update::new().set("trail", [answer]))
        })
        .edge(START, "a")
        .edge(START, "b")
        .join(["a", "b"], "inside")
        .edge("inside", "ask")
        .build()
        .expect("builds")
}

#[tokio::test]
async fn the_log_shows_ways_questions_and_graphs_inside() {
    let server = TestServer::serving(HttpSettings::default(), vec![paths()]).await;
    server.post("/threads/t/runs/wait", json!({"assistant_id": "paths", "input": {}})).await.ok();
    let keys = ["node", "from", "next", "status", "tokens"];
    let told = rows(&server, "/threads/t/log", &keys).await;
    let row = |node: &str, from: Value, next: Value, status: &str, tokens: i64| {
        vec![json!(node), from, next, json!(status), json!(tokens)]
    };
    let start = json!(["__start__"]);
    assert_eq!(told.len(), 5, "{told:?}");
    for node in ["a", "b"] {
        assert!(told[..2].contains(&row(node, start.clone(), json!(["inside"]), "success", 0)), "{told:?}");
    }
    assert_eq!(told[2][0], json!("inside"));
    assert_eq!(told[2][2..4], [json!(["ask"]), json!("success")]);
    assert_eq!(told[3], row("deep", start, json!([]), "success", 7));
    assert_eq!(told[4], row("ask", json!(["inside"]), json!([]), "interrupted", 0));
    let mut from: Vec<&str> = told[2][1].as_array().expect("a list").iter().filter_map(Value::as_str).collect();
    from.sort_unstable();
    assert_eq!(from, ["a", "b"]);
    let inner = server.get("/threads/t/log?node=deep").await.ok();
    assert!(inner[0]["checkpoint_ns"].as_str().is_some_and(|ns| ns.starts_with("inside:")), "{inner}");
    assert_eq!(server.get("/threads/t/log?root=true").await.ok().as_array().map(Vec::len), Some(4));
    // Answered in another run: the same task, executed again.
    server.post("/threads/t/runs/wait", json!({"assistant_id": "paths", "command": {"resume": "yes"}})).await.ok();
    let asked = server.get("/threads/t/log?node=ask").await.ok();
    assert_eq!((&asked[0]["status"], &asked[1]["status"]), (&json!("success"), &json!("interrupted")), "{asked}");
    assert_eq!(asked[0]["task_id"], asked[1]["task_id"]);
    assert_ne!(asked[0]["run_id"], asked[1]["run_id"]);
    // The slowest node is one that does something itself, not the one around it.
    let run_id = asked[1]["run_id"].as_str().expect("an id");
    let why = server.get(&format!("/runs/{run_id}/explain")).await.ok();
    let slowest = why["slowest_node"]["node"].as_str().expect("a node");
    assert!(["a", "b", "deep", "ask"].contains(&slowest), "{why}");
}

#[tokio::test]
async fn sends_commands_and_stopped_tasks_are_in_the_log() {
    let graph = StateGraph::dynamic("stopped")
        .append("trail")
        .node("plan", async |(), _: Context| Ok(goto(send("work", 1)).goto(send("work", 2))))
        .node("work", async |_: Value, _: Context| {
            std::future::pending::<()>().await;
            Ok(Update::new())
        })
        .edge(START, "plan")
        .build()
        .expect("builds");
    let server = TestServer::serving(HttpSettings::default(), vec![graph]).await;
    let run = server.post("/threads/t/runs", json!({"assistant_id": "stopped", "input": {}})).await.ok();
    let run_id = run["run_id"].as_str().expect("an id").to_owned();
    let log = async || server.get("/threads/t/log").await.ok();
    server.until("it works", async || log().await.as_array().is_some_and(|rows| rows.len() == 1)).await;
    assert_eq!(log().await[0]["next"], json!(["work"]));
    server.post(&format!("/threads/t/runs/{run_id}/cancel?wait=true"), json!({})).await;
    let rows = log().await;
    assert_eq!(rows.as_array().map(Vec::len), Some(3), "{rows}");
    for row in [&rows[0], &rows[1]] {
        assert_eq!((&row["node"], &row["status"]), (&json!("work"), &json!("cancelled")));
        assert_eq!(row["from"], json!(["plan"]));
    }
}
