//! Error handlers across runs: what a handler did in a superstep that failed otherwise is kept, like any sibling's work.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use session_store::app::Server;
use session_store::config::{Config, DatabaseUrl};
use session_store::graph::context::HandledError;
use session_store::graph::{Any, Context, Graph, Json, Node, NodeDefaults, NodeError, START, StateGraph, Update, send};
use session_store::update;
use tokio::sync::Notify;

use crate::support::process::post;

#[derive(Serialize, Deserialize, JsonSchema)]
struct Log {
    log: Vec<String>,
}

/// Two nodes at once: `f` always fails and is handled; `g` fails once, after the handler has run.
fn graph(handled: &Arc<AtomicUsize>) -> Graph {
    let (told, tries) = (Arc::new(Notify::new()), Arc::new(AtomicUsize::new(0)));
    let (tell, handled) = (Arc::clone(&told), Arc::clone(handled));
    let failing = Node::new(async |_: Log, _: Context| Err::<(), _>(NodeError::new("ValueError", "f")));
    let failing = failing.error_handler(move |_: Log, _: Context| {
        let (tell, handled) = (Arc::clone(&tell), Arc::clone(&handled));
        async move {
            handled.fetch_add(1, Ordering::SeqCst);
            tell.notify_one();
            Ok::<_, NodeError>(update!(Log { log: vec!["handled".to_owned()] }))
        }
    });
    let flaky = Node::new(move |_: Log, _: Context| {
        let (told, tries) = (Arc::clone(&told), Arc::clone(&tries));
        async move {
            if tries.fetch_add(1, Ordering::SeqCst) == 0 {
                told.notified().await;
                return Err(NodeError::new("ValueError", "g"));
            }
            Ok(update!(Log { log: vec!["g".to_owned()] }))
        }
    });
    let graph = StateGraph::<Log>::new("handled")
        .append("log")
        .node_with("f", failing)
        .node_with("g", flaky)
        .edge(START, "f")
        .edge(START, "g")
        .build();
    graph.expect("builds")
}

async fn serve(graph: Graph) -> session_store::app::Running {
    let mut config = Config::defaults().expect("the defaults are readable");
    config.server.listen = "127.0.0.1:0".into();
    config.database.url = DatabaseUrl::new("memory");
    Server::new(config, vec![graph]).start().await.expect("the server starts")
}

#[tokio::test]
async fn what_a_handler_wrote_survives_a_sibling_that_is_tried_again() {
    let handled = Arc::new(AtomicUsize::new(0));
    let running = serve(graph(&handled)).await;
    let url = format!("{}/threads/handled/runs/wait", running.url());
    let run = async |input: Value| post(&url, json!({"assistant_id": "handled", "input": input})).await;
    assert_eq!(run(json!({"log": []})).await["__error__"]["message"], "g");
    assert_eq!(run(Value::Null).await, json!({"log": ["handled", "g"]}));
    assert_eq!(handled.load(Ordering::SeqCst), 1, "a handler that has finished does not run again");
    running.shutdown().await.expect("stops");
}

/// What a handler was called for, and the id of its task.
type Handled = (String, String, String, String);

/// `p`, `q` and two tasks of `work` fail at once, each with words of its own; one handler serves them all, and fails the
/// first time it is called for `q`.
fn four_failures(handled: &Arc<Mutex<Vec<Handled>>>, called: &Arc<AtomicUsize>) -> Graph {
    let failing = |name: &'static str, class: &'static str| {
        let called = Arc::clone(called);
        Node::new(move |_: Log, _: Context| {
            called.fetch_add(1, Ordering::SeqCst);
            std::future::ready(Err::<(), _>(NodeError::new(class, format!("{name} is not to be had"))))
        })
    };
    let (counted, handled) = (Arc::clone(called), Arc::clone(handled));
    let work = Node::task(move |what: String, _: Context| {
        counted.fetch_add(1, Ordering::SeqCst);
        std::future::ready(Err::<(), _>(NodeError::new("KeyError", what)))
    });
    let all_called = Arc::new(Notify::new());
    let defaults = NodeDefaults::new().error_handler(move |_: Json, ctx: Context| {
        let (handled, all_called) = (Arc::clone(&handled), Arc::clone(&all_called));
        async move {
            let HandledError { node, error } = ctx.error().expect("a handler has a failure").clone();
            let line = format!("{node}: {error}");
            let count = {
                let mut handled = handled.lock().expect("not poisoned");
                handled.push((node.clone(), error.class, error.message, ctx.info().task_id.clone()));
                handled.len()
            };
            if count == 4 {
                all_called.notify_one();
            }
            if node == "q" && count <= 4 {
                // Siblings of a failure are given up after a while: here all have ended before.
                all_called.notified().await;
                return Err(NodeError::new("RuntimeError", "the handler"));
            }
            Ok(Update::new().set("log", [line]))
        }
    });
    let graph = StateGraph::<Log>::new("handled")
        .append("log")
        .node_with("p", failing("p", "ValueError"))
        .node_with("q", failing("q", "TypeError"))
        .node_with("work", work)
        .edge(START, "p")
        .edge(START, "q")
        .branch(START, "sends", Any, |_: &Log| vec![send("work", "one"), send("work", "two")])
        .node_defaults(defaults)
        .build();
    graph.expect("builds")
}

#[tokio::test]
async fn a_default_handler_handles_two_failures_at_once() {
    let (handled, called) = (Arc::default(), Arc::new(AtomicUsize::new(0)));
    let running = serve(four_failures(&handled, &called)).await;
    let url = format!("{}/threads/handled/runs/wait", running.url());
    let run = async |input: Value| post(&url, json!({"assistant_id": "handled", "input": input})).await;
    let failed = run(json!({"log": []})).await;
    assert_eq!(failed["__error__"], json!({"error": "RuntimeError", "message": "the handler"}));
    let first = handled.lock().expect("not poisoned").clone();
    let ids: BTreeSet<String> = first.iter().map(|(.., id)| id.clone()).collect();
    assert_eq!((first.len(), ids.len()), (4, 4), "four failures, four tasks: {first:?}");

    // Only the handler that failed runs again, with the failure it was called for.
    let done = run(Value::Null).await;
    let line = |text: &str| json!(text);
    let lines = [
        line("p: ValueError: p is not to be had"),
        line("q: TypeError: q is not to be had"),
        line("work: KeyError: one"),
        line("work: KeyError: two"),
    ];
    assert_eq!(done["log"], json!(lines), "{done}");
    let again = handled.lock().expect("not poisoned")[4..].to_vec();
    let [(node, class, message, id)] = again.as_slice() else { panic!("one handler: {again:?}") };
    assert_eq!((node.as_str(), class.as_str(), message.as_str()), ("q", "TypeError", "q is not to be had"));
    assert!(first.iter().any(|(node, .., first)| node == "q" && first == id), "the same task: {first:?}");
    assert_eq!(called.load(Ordering::SeqCst), 4, "what failed and is handled does not run again");
    running.shutdown().await.expect("stops");
}
