//! Error handlers across runs: what a handler did in a superstep that failed otherwise is kept, like any sibling's work.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use session_store::app::Server;
use session_store::config::{Config, DatabaseUrl};
use session_store::graph::{Context, Graph, Node, NodeError, START, StateGraph};
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

#[tokio::test]
async fn what_a_handler_wrote_survives_a_sibling_that_is_tried_again() {
    let mut config = Config::defaults().expect("the defaults are readable");
    config.server.listen = "127.0.0.1:0".into();
    config.database.url = DatabaseUrl::new("memory");
    let handled = Arc::new(AtomicUsize::new(0));
    let running = Server::new(config, vec![graph(&handled)]).start().await.expect("the server starts");
    let url = format!("{}/threads/handled/runs/wait", running.url());
    let run = async |input: Value| post(&url, json!({"assistant_id": "handled", "input": input})).await;
    assert_eq!(run(json!({"log": []})).await["__error__"]["message"], "g");
    assert_eq!(run(Value::Null).await, json!({"log": ["handled", "g"]}));
    assert_eq!(handled.load(Ordering::SeqCst), 1, "a handler that has finished does not run again");
    running.shutdown().await.expect("stops");
}
