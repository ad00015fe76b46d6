//! What models cost: found in messages, priced, and summed for superstep, run and thread.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use session_store::app::{Running, Server};
use session_store::config::{Config, DatabaseUrl, ModelConfig};
use session_store::graph::{Context, Graph, Node, NodeError, START, StateGraph, Update};
use session_store::model::Json;
use session_store::update;

use crate::support::process::{get, post};

#[derive(Serialize, Deserialize, JsonSchema)]
struct Chat {
    messages: Vec<Value>,
}

fn ai(id: Option<&str>, model: &str, input: i64, output: i64) -> Value {
    json!({
        "type": "ai", "content": "hello", "id": id, "response_metadata": {"model_name": model},
        "usage_metadata": {
            "input_tokens": input, "output_tokens": output, "total_tokens": input + output,
            "input_token_details": {"cache_read": input / 2},
        },
    })
}

fn says(messages: Vec<Value>) -> Result<Update, NodeError> {
    Ok(update!(Chat { messages }))
}

/// Says something, then says it again in other words.
fn talk(name: &str) -> Graph {
    StateGraph::<Chat>::new(name)
        .messages("messages")
        .node("say", async |_: Chat, ctx: Context| {
            let id = format!("ai-{}", ctx.info().task_id);
            says(vec![ai(Some(&id), "m", 1000, 100), ai(None, "other", 7, 1)])
        })
        .node("rewrite", async |chat: Chat, _ctx| {
            let said = chat.messages.iter().rev().find(|message| message["response_metadata"]["model_name"] == "m");
            let mut again = said.cloned().unwrap_or_default();
            again["content"] = json!("good day");
            says(vec![again])
        })
        .edge(START, "say")
        .edge("say", "rewrite")
        .build()
        .expect("builds")
}

/// A conversation around [`talk`]: as a node, and called by one.
fn around() -> Graph {
    let inner = talk("inner");
    let called = inner.clone();
    let node = Node::new(move |_: Chat, ctx: Context| {
        let inner = called.clone();
        async move {
            let result = ctx.call(&inner, Json::object()).await?;
            ctx.usage("m", 1, 1, "0.5".parse().ok());
            says(result.decode::<Chat>()?.messages)
        }
    });
    StateGraph::<Chat>::new("around")
        .messages("messages")
        .subgraph("sub", talk("sub"))
        .node_with("caller", node.calls(&inner))
        .edge(START, "sub")
        .edge("sub", "caller")
        .build()
        .expect("builds")
}

async fn start() -> Running {
    let mut config = Config::defaults().expect("the defaults are readable");
    config.server.listen = "127.0.0.1:0".into();
    config.database.url = DatabaseUrl::new("memory");
    let price = ModelConfig { input_per_million: 2.0, output_per_million: 10.0, cached_per_million: Some(1.0) };
    config.models.insert("m".to_owned(), price);
    Server::new(config, vec![talk("talk"), around()]).start().await.expect("the server starts")
}

async fn run(running: &Running, graph: &str, thread: &str, durability: &str) -> Value {
    // What the user brings along cost nothing here.
    let input = json!({"messages": [{"type": "human", "content": "hi"}, ai(Some("old"), "m", 5000, 5000)]});
    let body = json!({"assistant_id": graph, "input": input, "durability": durability});
    let run = post(&format!("{}/threads/{thread}/runs", running.url()), body).await;
    let place = format!("{}/threads/{thread}/runs/{}", running.url(), run["run_id"].as_str().expect("an id"));
    get(&format!("{place}/join")).await;
    get(&place).await["metadata"]["usage"].clone()
}

#[tokio::test]
async fn messages_are_counted_once_and_priced() {
    let running = start().await;
    // 500 tokens at 2, 500 cached ones at 1, 100 written at 10, per million.
    let m = json!({"input_tokens": 1000, "output_tokens": 100, "total_tokens": 1100, "cost": "0.0025"});
    let other = json!({"input_tokens": 7, "output_tokens": 1, "total_tokens": 8, "cost": "0"});
    let once = json!({
        "input_tokens": 1007, "output_tokens": 101, "total_tokens": 1108, "cost": "0.0025",
        "models": {"m": m, "other": other},
    });
    for durability in ["sync", "async", "exit"] {
        let place = format!("{}/threads/talk-{durability}", running.url());
        assert_eq!(run(&running, "talk", &format!("talk-{durability}"), durability).await, once, "{durability}");
        assert_eq!(get(&place).await["metadata"]["usage"], once);
        assert_eq!(run(&running, "talk", &format!("talk-{durability}"), durability).await, once);
        assert_eq!(get(&place).await["metadata"]["usage"]["total_tokens"], 2216);
        if durability == "exit" {
            let state = get(&format!("{place}/state")).await;
            assert_eq!(state["metadata"]["usage"], once, "one checkpoint tells of all supersteps");
        } else {
            let history = get(&format!("{place}/history?limit=4")).await;
            let usage = |n: usize| history[n]["metadata"].get("usage").cloned();
            assert_eq!((usage(0), usage(1), usage(2)), (None, Some(once.clone()), None), "{history}");
        }
    }
    // A patch of metadata meanwhile or afterwards takes nothing away.
    let place = format!("{}/threads/talk-sync", running.url());
    let patched =
        crate::support::process::send(reqwest::Method::PATCH, &place, Some(json!({"metadata": {"a": 1}}))).await;
    let (_, thread) = patched.expect("answers");
    assert_eq!((&thread["metadata"]["a"], &thread["metadata"]["usage"]["total_tokens"]), (&json!(1), &json!(2216)));
    running.shutdown().await.expect("stops");
}

#[tokio::test]
async fn what_a_graph_inside_counted_is_not_counted_again() {
    let running = start().await;
    for durability in ["async", "exit"] {
        let thread = format!("around-{durability}");
        let usage = run(&running, "around", &thread, durability).await;
        assert_eq!(usage["total_tokens"], 2 * 1108 + 2, "{durability}: {usage}");
        assert_eq!(usage["cost"], "0.505");
        assert_eq!(get(&format!("{}/threads/{thread}", running.url())).await["metadata"]["usage"], usage);
    }
    running.shutdown().await.expect("stops");
}

#[tokio::test]
async fn a_graph_that_costs_nothing_shows_nothing() {
    let server = crate::support::server::TestServer::start().await;
    let id = server.thread().await;
    let body = json!({"assistant_id": "counter", "input": {"counter": 0}});
    server.post(&format!("/threads/{id}/runs/wait"), body).await.ok();
    for place in [format!("/threads/{id}"), format!("/threads/{id}/state")] {
        assert_eq!(server.get(&place).await.ok()["metadata"].get("usage"), None, "{place}");
    }
    assert_eq!(server.get(&format!("/threads/{id}/runs")).await.ok()[0]["metadata"].get("usage"), None);
}
