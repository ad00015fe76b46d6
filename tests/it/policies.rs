//! The policies of authors' graphs, through a server: what they repeat, reuse and end, what they keep, and how a run goes on.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use session_store::app::{Running, Server};
use session_store::config::{Config, DatabaseUrl};
use session_store::graph::context::ExecutionInfo;
use session_store::graph::{
    Any, CachePolicy, ChannelKind, Context, END, Graph, Json, Node, NodeDefaults, NodeError, Packet, RefreshOn,
    RetryPolicy, START, StateGraph, Update,
};

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

/// Counts by name.
#[derive(Clone, Default)]
struct Calls(Arc<Mutex<HashMap<&'static str, usize>>>);

impl Calls {
    fn count(&self, name: &'static str) {
        *self.0.lock().expect("not poisoned").entry(name).or_default() += 1;
    }

    fn of(&self, name: &str) -> usize {
        self.0.lock().expect("not poisoned").get(name).copied().unwrap_or_default()
    }

    /// A node that fails.
    fn failing(&self, name: &'static str, class: &'static str) -> Node {
        let calls = self.clone();
        Node::new(move |(), _: Context| {
            calls.count(name);
            std::future::ready(Err::<(), _>(NodeError::new(class, name)))
        })
    }

    /// A node that says what it read.
    fn reading(&self, name: &'static str) -> Node {
        let calls = self.clone();
        Node::new(move |input: Number, _: Context| {
            calls.count(name);
            std::future::ready(Ok(Update::new().set("trail", [format!("{name} {}", input.n)])))
        })
    }
}

#[derive(serde::Deserialize, schemars::JsonSchema)]
struct Number {
    n: i64,
}

fn attempts(max_attempts: u32) -> RetryPolicy {
    RetryPolicy { max_attempts, initial_interval: Duration::from_millis(1), jitter: false, ..RetryPolicy::default() }
}

async fn say_what_failed((): (), ctx: Context) -> Result<Update, NodeError> {
    let failed = ctx.error().map(|failure| (failure.node.clone(), failure.error.class.clone()));
    Ok(Update::new().set("trail", [failed]))
}

#[tokio::test]
async fn defaults_hold_for_every_node_that_does_not_say_otherwise() {
    let calls = Calls::default();
    let own_handler = async |(): (), _: Context| Ok(Update::new().set("trail", ["handled itself"]));
    let defaults = NodeDefaults::new().retry(attempts(2)).cache(CachePolicy::default()).error_handler(say_what_failed);
    let graph = StateGraph::dynamic("defaults")
        .channel("n", ChannelKind::LastValue)
        .append("trail")
        .node_with("cached", calls.reading("cached"))
        .node_with("flaky", calls.failing("flaky", "Busy"))
        .node_with("handled", calls.failing("handled", "Busy").error_handler(own_handler))
        .node_with("keyed", calls.reading("keyed").cache(CachePolicy::default().key(|_| "one for all".to_owned())))
        .node_with("patient", calls.failing("patient", "Busy").retry(attempts(3)))
        .node_defaults(defaults);
    let graph =
        ["cached", "flaky", "handled", "keyed", "patient"].iter().fold(graph, |graph, node| graph.edge(START, *node));
    // Time limits in a graph of their own, in which nothing is expected to be quick.
    let slow = Node::new(async |(), _: Context| {
        tokio::time::sleep(Duration::from_millis(300)).await;
        Ok(Update::new().set("trail", ["slow"]))
    });
    let counted = calls.clone();
    let endless = Node::new(move |(), _: Context| {
        counted.count("endless");
        std::future::pending::<Result<(), NodeError>>()
    });
    let limits =
        NodeDefaults::new().retry(attempts(2)).timeout(Duration::from_millis(50)).error_handler(say_what_failed);
    let limited = StateGraph::dynamic("limited")
        .append("trail")
        .node_with("endless", endless)
        .node_with("slow", slow.timeout(Duration::from_secs(60)))
        .edge(START, "endless")
        .edge(START, "slow")
        .node_defaults(limits);
    let running = serve(vec![graph.build().expect("builds"), limited.build().expect("builds")]).await;

    for (thread, n, cached, keyed) in
        [("one", 1, "cached 1", "keyed 1"), ("two", 1, "cached 1", "keyed 1"), ("three", 2, "cached 2", "keyed 1")]
    {
        let url = format!("{}/threads/{thread}/runs/wait", running.url());
        let done = post(&url, json!({"assistant_id": "defaults", "input": {"n": n}})).await;
        let trail = json!([cached, ["flaky", "Busy"], "handled itself", keyed, ["patient", "Busy"]]);
        assert_eq!(done["trail"], trail, "{thread}: {done}");
    }
    assert_eq!((calls.of("cached"), calls.of("keyed")), (2, 1), "by input, or as the node says");
    assert_eq!(
        (calls.of("flaky"), calls.of("handled"), calls.of("patient")),
        (6, 6, 9),
        "three runs; failures are not cached"
    );
    let done = run(&running, "limited", json!({})).await;
    assert_eq!(done["trail"], json!([["endless", "NodeTimeoutError"], "slow"]), "{done}");
    assert_eq!(calls.of("endless"), 2, "the limit holds for each attempt");
    running.shutdown().await.expect("stops");
}

#[tokio::test]
async fn what_a_service_refuses_is_not_asked_again() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let node = Node::new(move |input: Number, _: Context| {
        counted.fetch_add(1, Ordering::SeqCst);
        async move {
            let status = u16::try_from(input.n).expect("a status");
            let answer = axum::http::Response::builder().status(status).body("").expect("an answer");
            reqwest::Response::from(answer).error_for_status()?;
            Ok(())
        }
    });
    let graph =
        StateGraph::dynamic("calling").channel("n", ChannelKind::LastValue).node_with("n", node.retry(attempts(3)));
    let running = serve(vec![graph.edge(START, "n").build().expect("builds")]).await;
    for (status, class, times) in [(404, "HTTPClientError", 1), (429, "HTTPClientError", 1), (503, "NodeError", 3)] {
        let failed = run(&running, "calling", json!({"n": status})).await;
        assert_eq!(failed["__error__"]["error"], class, "{status}: {failed}");
        assert_eq!(calls.swap(0, Ordering::SeqCst), times, "{status}");
    }
    running.shutdown().await.expect("stops");
}

/// Scenario S197, with the fields that the reference has.
#[tokio::test]
async fn a_node_knows_its_execution() {
    let seen: Arc<Mutex<Vec<ExecutionInfo>>> = Arc::default();
    let told = Arc::clone(&seen);
    let node = Node::new(move |(), ctx: Context| {
        let mut seen = told.lock().expect("not poisoned");
        seen.push(ctx.info().clone());
        std::future::ready(if seen.len() < 3 { Err(NodeError::new("Busy", "not now")) } else { Ok(()) })
    });
    let graph = StateGraph::dynamic("known").append("trail").node_with("n", node.retry(attempts(3))).edge(START, "n");
    let running = serve(vec![graph.build().expect("builds")]).await;
    let body = json!({"assistant_id": "known", "input": {}, "context": {"uid": "U"}, "config": {"metadata": {"m": 1}}});
    post(&format!("{}/threads/known/runs/wait", running.url()), body).await;
    let base = format!("{}/threads/known", running.url());
    let (runs, history) = (get(&format!("{base}/runs")).await, get(&format!("{base}/history")).await);
    let seen = std::mem::take(&mut *seen.lock().expect("not poisoned"));
    assert_eq!(seen.iter().map(|info| info.attempt).collect::<Vec<_>>(), [1, 2, 3]);
    let planned = &history[1];
    assert_eq!(planned["next"], json!(["n"]), "{history}");
    for info in &seen {
        assert_eq!(
            (info.thread_id.as_str(), info.graph_id.as_str(), info.node.as_str(), info.step),
            ("known", "known", "n", 1)
        );
        assert_eq!(info.run_id.to_string(), runs[0]["run_id"]);
        assert_eq!(info.checkpoint_id, planned["checkpoint"]["checkpoint_id"]);
        assert_eq!(info.task_id, planned["tasks"][0]["id"]);
        assert_eq!(info.checkpoint_ns, format!("n:{}", info.task_id));
        assert_eq!(info.context.value(), &json!({"uid": "U"}));
        assert_eq!(info.config.value()["metadata"]["m"], 1, "{}", info.config);
        assert_eq!(info.first_attempt_at, seen[0].first_attempt_at, "the same for all attempts");
    }
    assert!(seen[0].first_attempt_at.0 > 0);
    running.shutdown().await.expect("stops");
}
