//! Who says when supersteps are committed: the run, its assistant, its graph, the server, in this order.

use serde_json::{Value, json};
use session_store::app::{Running, Server};
use session_store::config::{Config, DatabaseUrl};
use session_store::graph::{Durability, Graph, START, StateGraph, Update};

use crate::support::process;

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
