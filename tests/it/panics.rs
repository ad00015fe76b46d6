//! Code of graph authors that panics outside its nodes: the run ends as failed, and thread and server go on.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use session_store::app::Server;
use session_store::config::{Config, DatabaseUrl};
use session_store::graph::{BuildErrors, END, Graph, START, StateGraph};
use session_store::model::Json;
use session_store::update;

use crate::support::process::{get, post};

#[derive(Serialize, Deserialize, JsonSchema)]
struct Number {
    n: i64,
}

fn router() -> Result<Graph, BuildErrors> {
    StateGraph::<Number>::new("router")
        .node("add", async |state: Number, _ctx| Ok(update!(Number { n: state.n + 1 })))
        .edge(START, "add")
        .branch("add", "next", ["add", END], |state: &Number| {
            assert!(state.n != 13, "a router has its limits");
            END
        })
        .build()
}

fn reducer() -> Result<Graph, BuildErrors> {
    StateGraph::<Number>::new("reducer")
        .reducer("n", |_: Json, new: Json| {
            assert!(new.as_i64() != Some(13), "a reducer has its limits");
            new
        })
        .node("add", async |state: Number, _ctx| Ok(update!(Number { n: state.n + 1 })))
        .edge(START, "add")
        .edge("add", END)
        .build()
}

#[tokio::test]
async fn a_panicking_router_or_reducer_fails_its_run_only() {
    let mut config = Config::defaults().expect("the defaults are readable");
    config.server.listen = "127.0.0.1:0".into();
    config.database.url = DatabaseUrl::new("memory");
    // An end that came by a lost lease would come too late.
    config.runtime.lease_secs = 600.0;
    let graphs = [router(), reducer()].map(|graph| graph.expect("builds"));
    let running = Server::new(config, graphs.into()).start().await.expect("the server starts");
    // The reducer fails on what its node writes, and on the input itself.
    for (graph, bad) in [("router", 12), ("reducer", 12), ("reducer", 13)] {
        for durability in ["sync", "async", "exit"] {
            let thread = format!("{}/threads/{graph}-{bad}-{durability}", running.url());
            let run = async |n: i64| -> Value {
                let body = json!({"assistant_id": graph, "input": {"n": n}, "durability": durability});
                let url = format!("{thread}/runs/wait");
                tokio::time::timeout(Duration::from_secs(20), post(&url, body)).await.expect("the run ends")
            };
            assert_eq!(run(1).await, json!({"n": 2}), "{thread}");
            let failed = run(bad).await;
            assert_eq!(failed["__error__"]["error"], "Panic", "{thread}: {failed}");
            assert_eq!(get(&thread).await["status"], "error", "{thread}");
            assert_eq!(run(2).await, json!({"n": 3}), "{thread}");
            assert_eq!(get(&thread).await["status"], "idle", "{thread}");
        }
    }
    running.shutdown().await.expect("stops");
}
