//! Time limits and drains of authors' graphs, through a server: what they end, what they keep, and how a run goes on.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use session_store::app::{Running, Server};
use session_store::config::{Config, DatabaseUrl};
use session_store::graph::{
    Any, Context, END, Graph, Node, NodeError, Packet, RefreshOn, RetryPolicy, START, StateGraph, Update,
};
use session_store::model::Json;

use crate::support::process::{get, post};

async fn serve(graphs: Vec<Graph>) -> Running {
    let mut config = Config::defaults().expect("the defaults are readable");
    config.server.listen = "127.0.0.1:0".into();
    config.database.url = DatabaseUrl::new("memory");
    Server::new(config, graphs).start().await.expect("the server starts")
}

async fn run(running: &Running, graph: &str, input: Value) -> Value {
    let url = format!("{}/threads/{graph}/runs/wait", running.url());
    post(&url, json!({"assistant_id": graph, "input": input})).await
}

async fn state(running: &Running, thread: &str) -> Value {
    get(&format!("{}/threads/{thread}/state", running.url())).await
}

/// A node that does not return the first time, and counts how often it was called.
fn stuck_once(name: &'static str, calls: &Arc<AtomicUsize>) -> Node {
    let calls = Arc::clone(calls);
    Node::new(move |(), _: Context| {
        let calls = Arc::clone(&calls);
        async move {
            if calls.fetch_add(1, Ordering::SeqCst) == 0 {
                std::future::pending::<()>().await;
            }
            Ok(Update::new().set("trail", [name]))
        }
    })
}

#[tokio::test]
async fn a_superstep_that_takes_too_long_fails_and_keeps_what_had_finished() {
    let (fast, slow) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&fast);
    let graph = StateGraph::dynamic("limited")
        .append("trail")
        .node("fast", move |(), _ctx| {
            counted.fetch_add(1, Ordering::SeqCst);
            std::future::ready(Ok(Update::new().set("trail", ["fast"])))
        })
        .node_with("slow", stuck_once("slow", &slow))
        .edge(START, "fast")
        .edge(START, "slow")
        .step_timeout(Duration::from_secs(1))
        .build()
        .expect("builds");
    let running = serve(vec![graph]).await;
    let failed = run(&running, "limited", json!({})).await;
    assert_eq!(failed["__error__"]["error"], "TimeoutError", "{failed}");
    let left = state(&running, "limited").await;
    assert_eq!(left["next"], json!(["slow"]), "{left}");
    assert_eq!(left["tasks"][0]["result"], json!({"trail": ["fast"]}), "{left}");
    assert_eq!(run(&running, "limited", Value::Null).await["trail"], json!(["fast", "slow"]));
    assert_eq!((fast.load(Ordering::SeqCst), slow.load(Ordering::SeqCst)), (1, 2));
    running.shutdown().await.expect("stops");
}

#[tokio::test]
async fn the_limit_of_a_graph_inside_fails_the_node_it_is_in() {
    let slow = Arc::new(AtomicUsize::new(0));
    let inner = StateGraph::dynamic("inner")
        .append("trail")
        .node_with("slow", stuck_once("slow", &slow))
        .edge(START, "slow")
        .step_timeout(Duration::from_millis(50))
        .build()
        .expect("builds");
    let outer = StateGraph::dynamic("outer").append("trail").subgraph("inside", inner).edge(START, "inside");
    let running = serve(vec![outer.build().expect("builds")]).await;
    let failed = run(&running, "outer", json!({})).await;
    assert_eq!(failed["__error__"]["error"], "TimeoutError", "{failed}");
    let left = state(&running, "outer").await;
    assert_eq!(left["next"], json!(["inside"]), "{left}");
    running.shutdown().await.expect("stops");
}

#[tokio::test]
async fn signs_of_life_restart_the_idle_timeout() {
    let idle = Duration::from_millis(1500);
    let silent = stuck_once("silent", &Arc::default());
    let alive = Node::new(async move |(), ctx: Context| {
        for _ in 0..8 {
            tokio::time::sleep(Duration::from_millis(250)).await;
            ctx.heartbeat();
        }
        Ok(Update::new().set("trail", ["alive"]))
    });
    let graph = |name: &str, node: Node| {
        let graph = StateGraph::dynamic(name).append("trail").node_with("n", node.idle_timeout(idle)).edge(START, "n");
        graph.build().expect("builds")
    };
    // Says much, but not that it is alive.
    let talking = Node::new(async |(), ctx: Context| {
        for _ in 0..600 {
            ctx.write("still here")?;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    });
    let talking = talking.refresh_on(RefreshOn::Heartbeat);
    let step = || {
        Node::new(async |(), _: Context| {
            tokio::time::sleep(Duration::from_millis(700)).await;
            Ok(())
        })
    };
    let inner = StateGraph::dynamic("inner").append("trail").node_with("a", step()).node_with("b", step());
    let inner = inner.node_with("c", step()).edge(START, "a").edge("a", "b").edge("b", "c").build().expect("builds");
    let graphs = [("silent", silent), ("alive", alive), ("talking", talking), ("inside", Node::subgraph(inner))];
    let running = serve(graphs.into_iter().map(|(name, node)| graph(name, node)).collect()).await;
    let (failed, done, talked, inside) = tokio::join!(
        run(&running, "silent", json!({})),
        run(&running, "alive", json!({})),
        run(&running, "talking", json!({})),
        run(&running, "inside", json!({"trail": ["in"]})),
    );
    for (failed, thread) in [(failed, "silent"), (talked, "talking")] {
        assert_eq!(failed["__error__"]["error"], "NodeTimeoutError", "{failed}");
        let left = state(&running, thread).await;
        let message = left["tasks"][0]["error"].as_str().unwrap_or_default();
        assert!(message.contains("Node 'n' exceeded its idle timeout of 1.500s"), "{left}");
    }
    assert_eq!(done["trail"], json!(["alive"]), "two seconds of work, never idle for long: {done}");
    assert_eq!(inside["trail"], json!(["in", "in"]), "what the graph inside does are signs of life: {inside}");
    running.shutdown().await.expect("stops");
}

#[tokio::test]
async fn a_send_brings_limits_of_its_own() {
    let (short, long) = (Duration::from_millis(20), Duration::from_secs(60));
    let work = || {
        Node::task(async |what: String, _: Context| {
            match what.as_str() {
                "endless" => std::future::pending().await,
                _ => tokio::time::sleep(Duration::from_millis(300)).await,
            }
            Ok(Update::new().set("trail", [what]))
        })
    };
    let graph = |name: &str, node: Node, sent: Packet| {
        let graph = StateGraph::dynamic(name).append("trail").node_with("work", node);
        graph.branch(START, "sends", Any, move |(): &()| sent.clone()).build().expect("builds")
    };
    let running = serve(vec![
        graph("shorter", work().timeout(long).idle_timeout(long), Packet::new("work", "endless").timeout(short)),
        graph("longer", work().timeout(short).idle_timeout(short), Packet::new("work", "slow").timeout(long)),
        graph("the_nodes", work().timeout(short), Packet::new("work", "slow")),
    ]);
    let running = running.await;
    let (shorter, longer, the_nodes) = tokio::join!(
        run(&running, "shorter", json!({})),
        run(&running, "longer", json!({})),
        run(&running, "the_nodes", json!({})),
    );
    assert_eq!(longer["trail"], json!(["slow"]), "in place of both limits of the node: {longer}");
    for (failed, thread) in [(shorter, "shorter"), (the_nodes, "the_nodes")] {
        assert_eq!(failed["__error__"]["error"], "NodeTimeoutError", "{failed}");
        let left = state(&running, thread).await;
        let message = left["tasks"][0]["error"].as_str().unwrap_or_default();
        assert!(message.contains("Node 'work' exceeded its run timeout of 0.020s"), "{left}");
    }
    running.shutdown().await.expect("stops");
}

#[tokio::test]
async fn what_is_retried_is_the_whole_of_a_task() {
    let (calls, asked) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (counted, seen) = (Arc::clone(&calls), Arc::clone(&asked));
    let node = Node::new(move |(), ctx: Context| {
        let call = counted.fetch_add(1, Ordering::SeqCst) + 1;
        async move { Ok(Update::new().set("trail", [json!([call, ctx.info().attempt])])) }
    });
    let retry = RetryPolicy { initial_interval: Duration::from_millis(1), jitter: false, ..RetryPolicy::default() };
    let graph = StateGraph::dynamic("routed")
        .append("trail")
        .node_with("n", node.retry(retry))
        .edge(START, "n")
        .branch("n", "fails_twice", Any, move |_: &Json| match seen.fetch_add(1, Ordering::SeqCst) {
            0 | 1 => Err(NodeError::new("Busy", "not now")),
            _ => Ok(END),
        })
        .build()
        .expect("builds");
    let running = serve(vec![graph]).await;
    let done = run(&running, "routed", json!({})).await;
    assert_eq!(done["trail"], json!([[3, 3]]), "two attempts left nothing: {done}");
    assert_eq!((calls.load(Ordering::SeqCst), asked.load(Ordering::SeqCst)), (3, 3), "each asks its router once");
    let log = get(&format!("{}/threads/routed/log", running.url())).await;
    let attempts: Vec<_> = log.as_array().into_iter().flatten().map(|row| (&row["attempt"], &row["status"])).collect();
    assert_eq!(attempts, [(&json!(3), &json!("success")), (&json!(2), &json!("error")), (&json!(1), &json!("error"))]);
    running.shutdown().await.expect("stops");
}

#[tokio::test]
async fn a_drained_run_keeps_its_superstep_and_goes_on_with_null_input() {
    let graph = StateGraph::dynamic("drained")
        .append("trail")
        .node("one", async |(), ctx: Context| {
            ctx.request_drain("the house is full");
            Ok(Update::new().set("trail", [1]))
        })
        .node("two", async |(), _ctx| Ok(Update::new().set("trail", [2])))
        .edge(START, "one")
        .edge("one", "two");
    let running = serve(vec![graph.build().expect("builds")]).await;
    let drained = run(&running, "drained", json!({})).await;
    assert_eq!(drained["__error__"]["error"], "GraphDrained", "{drained}");
    let left = state(&running, "drained").await;
    assert_eq!((&left["next"], &left["values"]["trail"]), (&json!(["two"]), &json!([1])), "{left}");
    assert_eq!(run(&running, "drained", Value::Null).await["trail"], json!([1, 2]));
    running.shutdown().await.expect("stops");
}
