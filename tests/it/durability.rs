//! When supersteps are committed: who says so (the run, its assistant, its graph, the server, in this order), and how much
//! may be on its way.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};
use session_store::app::{Running, Server};
use session_store::config::{Config, DatabaseUrl};
use session_store::graph::{ChannelKind, Context, Durability, END, Graph, START, StateGraph, Update};
use sqlx::{Connection as _, PgConnection, SqliteConnection};
use tokio::sync::Notify;

use crate::support::process::{self, Database, PATIENCE, eventually, sqlite_url};

fn graph(name: &str, durability: Option<Durability>) -> Graph {
    let graph = StateGraph::dynamic(name)
        .append("trail")
        .node("one", async |(), _ctx| Ok(Update::new().set("trail", [1])))
        .node("two", async |(), _ctx| Ok(Update::new().set("trail", [2])))
        .edge(START, "one")
        .edge("one", "two");
    let graph = match durability {
        Some(durability) => graph.durability(durability),
        None => graph,
    };
    graph.build().expect("builds")
}

/// Runs to the end; the durability the run had, and how many checkpoints it left.
async fn run(running: &Running, thread: &str, body: Value) -> (Value, usize) {
    let base = format!("{}/threads/{thread}", running.url());
    process::post(&format!("{base}/runs/wait"), body).await;
    let get = async |path: &str| -> Value {
        let answer = reqwest::get(format!("{base}/{path}")).await.expect("an answer");
        answer.json().await.expect("JSON")
    };
    let checkpoints = get("checkpoints").await.as_array().map_or(0, Vec::len);
    (get("runs").await[0]["kwargs"]["durability"].clone(), checkpoints)
}

#[tokio::test]
async fn the_run_goes_before_assistant_graph_and_server() {
    let mut config = Config::defaults().expect("the defaults are readable");
    config.server.listen = "127.0.0.1:0".into();
    config.database.url = DatabaseUrl::new("memory");
    config.runtime.durability = Durability::Sync;
    let graphs = vec![graph("plain", None), graph("last", Some(Durability::Exit))];
    let running = Server::new(config, graphs).start().await.expect("the server starts");
    let assistants = format!("{}/assistants", running.url());
    let own = process::post(&assistants, json!({"graph_id": "last", "config": {"durability": "async"}})).await;
    let own = own["assistant_id"].clone();

    let (sync, by_exit) = (("sync", 4), ("exit", 1));
    for (thread, body, (durability, checkpoints)) in [
        ("server", json!({"assistant_id": "plain"}), sync),
        ("graph", json!({"assistant_id": "last"}), by_exit),
        ("assistant", json!({"assistant_id": own}), ("async", 4)),
        ("config", json!({"assistant_id": own, "config": {"durability": "exit"}}), by_exit),
        ("run", json!({"assistant_id": own, "config": {"durability": "exit"}, "durability": "sync"}), sync),
        ("old", json!({"assistant_id": own, "checkpoint_during": false}), by_exit),
    ] {
        let mut body = body;
        body["input"] = json!({});
        assert_eq!(run(&running, thread, body).await, (json!(durability), checkpoints), "{thread}");
    }

    let refused =
        reqwest::Client::new().post(assistants).body(r#"{"graph_id":"last","config":{"durability":"never"}}"#);
    let refused = refused.send().await.expect("an answer");
    assert_eq!(refused.status(), 422);
    assert!(refused.text().await.expect("text").contains("config.durability"));
    running.shutdown().await.expect("stops");
}

// --- how much may be on its way -----------------------------------------------------------------------------------------

/// The step that waits until commits are held.
const GATE: usize = 3;
/// More than a run makes that is held.
const STEPS: usize = 1_000;

#[derive(serde::Deserialize, schemars::JsonSchema)]
struct Input {
    n: usize,
    bytes: usize,
}

/// Writes a text of so many bytes per superstep; `begun` is the latest step, and step [`GATE`] waits for `gate`.
fn writing(begun: &Arc<AtomicUsize>, gate: &Arc<Notify>) -> Graph {
    let (begun, gate) = (Arc::clone(begun), Arc::clone(gate));
    let write = move |input: Input, _: Context| {
        let (begun, gate) = (Arc::clone(&begun), Arc::clone(&gate));
        async move {
            begun.store(input.n + 1, Ordering::SeqCst);
            if input.n + 1 == GATE {
                gate.notified().await;
            }
            let text = format!("{} {}", input.n, "x".repeat(input.bytes));
            Ok(Update::new().set("n", input.n + 1).set("text", text))
        }
    };
    let is_done = |input: &Input| if input.n < STEPS / if input.bytes > 0 { 50 } else { 1 } { "write" } else { END };
    StateGraph::dynamic("writing")
        .channel("n", ChannelKind::LastValue)
        .channel("bytes", ChannelKind::LastValue)
        .channel("text", ChannelKind::LastValue)
        .node("write", write)
        .edge(START, "write")
        .branch("write", "again", ["write", END], is_done)
        .build()
        .expect("builds")
}

/// Keeps every process from committing supersteps, not from reading, for as long as it lives.
enum Hold {
    Sqlite(SqliteConnection),
    Postgres(PgConnection),
}

impl Hold {
    async fn on(url: &str) -> Hold {
        if url.starts_with("sqlite") {
            let mut connection = SqliteConnection::connect(url).await.expect("the file can be opened");
            sqlx::raw_sql("BEGIN IMMEDIATE").execute(&mut connection).await.expect("the write lock");
            return Hold::Sqlite(connection);
        }
        let mut connection = PgConnection::connect(url).await.expect("Postgres answers");
        let lock = "BEGIN; LOCK TABLE checkpoints IN EXCLUSIVE MODE";
        sqlx::raw_sql(lock).execute(&mut connection).await.expect("locked");
        Hold::Postgres(connection)
    }

    async fn end(self) {
        match self {
            Hold::Sqlite(connection) => connection.close().await.expect("closed"),
            Hold::Postgres(connection) => connection.close().await.expect("closed"),
        }
    }
}

/// A run whose commits are held stops `most` supersteps after what is stored, or earlier, and goes on with them.
async fn a_run_waits_for_its_commits(url: &str, bytes: usize, most: usize) {
    let (begun, gate) = (Arc::<AtomicUsize>::default(), Arc::<Notify>::default());
    let mut config = Config::defaults().expect("the defaults are readable");
    config.server.listen = "127.0.0.1:0".into();
    config.database.url = DatabaseUrl::new(url);
    // Renewals are held with the rest: nobody shall take the run over.
    (config.runtime.lease_secs, config.runtime.renew_secs) = (600.0, 60.0);
    let running = Server::new(config, vec![writing(&begun, &gate)]).start().await.expect("the server starts");
    let base = format!("{}/threads/{bytes}", running.url());
    let body = json!({"assistant_id": "writing", "input": {"n": 0, "bytes": bytes}, "durability": "async"});
    let run = process::post(&format!("{base}/runs"), body).await;
    let run = format!("{base}/runs/{}", run["run_id"].as_str().expect("an id"));
    // All before the gate is stored.
    let before = async || {
        let (status, state) = process::send(reqwest::Method::GET, &format!("{base}/state"), None).await.ok()?;
        (status == 200 && state["values"]["n"] == GATE - 1).then_some(())
    };
    eventually("the steps before the gate are stored", PATIENCE, before).await;
    let hold = Hold::on(url).await;
    gate.notify_one();
    // It has stopped once it makes no step for half a second: the longer that takes, the farther it could have come.
    let (mut last, mut looks) = (0, 0);
    let stopped = || {
        let now = begun.load(Ordering::SeqCst);
        looks = if now == last { looks + 1 } else { 0 };
        last = now;
        std::future::ready((looks >= 25).then_some(now))
    };
    let (reached, _) = eventually("the run waits", PATIENCE, stopped).await;
    assert!(reached - (GATE - 1) <= most, "{reached} steps were begun, {} are stored", GATE - 1);
    hold.end().await;
    let ended = async || {
        let run = process::get(&run).await;
        (!matches!(run["status"].as_str(), Some("pending" | "running"))).then_some(run)
    };
    let (ended, _) = eventually("the run goes on", PATIENCE, ended).await;
    assert_eq!(ended["status"], "success", "{ended}");
    assert!(begun.load(Ordering::SeqCst) > reached);
    running.shutdown().await.expect("stops");
}

/// What is on its way never exceeds 1 MiB and the superstep that exceeds it: four of 256 KiB, and the next waits.
#[tokio::test]
async fn an_async_run_is_at_most_a_mebibyte_ahead_of_what_is_stored() {
    let dir = tempfile::tempdir().expect("a directory");
    a_run_waits_for_its_commits(&sqlite_url(&dir), 256 << 10, 4).await;
    let Some(database) = Database::create("durability").await else { return };
    a_run_waits_for_its_commits(&database.url, 256 << 10, 4).await;
}

/// Small supersteps wait when the oldest that is not stored is 50 ms old, long before there is a mebibyte of them.
#[tokio::test]
async fn an_async_run_does_not_run_away_from_what_is_stored() {
    let dir = tempfile::tempdir().expect("a directory");
    a_run_waits_for_its_commits(&sqlite_url(&dir), 0, STEPS / 2).await;
    let Some(database) = Database::create("durability").await else { return };
    a_run_waits_for_its_commits(&database.url, 0, STEPS / 2).await;
}
