//! Outputs of nodes with a cache policy: used by other threads, other replicas and after a restart.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use session_store::app::{Running, Server};
use session_store::config::{Config, DatabaseUrl};
use session_store::graph::{CachePolicy, Context, Graph, Node, NodeError, NodeInput, START, StateGraph, Update};
use session_store::model::Scope;
use session_store::update;

use crate::support::process::{Database, post, sqlite_url};

const HOUR: Duration = Duration::from_secs(3600);

#[derive(Serialize, Deserialize, JsonSchema)]
struct Work {
    #[serde(default)]
    question: String,
    #[serde(default)]
    answer: String,
}

/// What the node does to the outside world: it counts its executions.
type Executions = Arc<AtomicUsize>;

/// A graph named `cached` of one node that answers its question. `fail` fails the first time it is asked, `large` has a
/// large answer.
fn graph(policy: CachePolicy, version: &str, executions: &Executions) -> Graph {
    let executions = Arc::clone(executions);
    let node = Node::new(move |work: Work, _: Context| {
        let executions = Arc::clone(&executions);
        async move {
            let before = executions.fetch_add(1, Ordering::SeqCst);
            let answer = match work.question.as_str() {
                "fail" if before == 0 => return Err(NodeError::new("ValueError", "not yet")),
                "large" => "x".repeat(2 << 20),
                question => format!("{question}!"),
            };
            Ok::<Update, NodeError>(update!(Work { answer: answer }))
        }
    });
    let graph = StateGraph::<Work>::new("cached").version(version).node_with("node", node.cache(policy));
    graph.edge(START, "node").build().expect("builds")
}

async fn server(url: &str, policy: CachePolicy, version: &str, executions: &Executions) -> Running {
    let mut config = Config::defaults().expect("the defaults are readable");
    config.server.listen = "127.0.0.1:0".into();
    config.database.url = DatabaseUrl::new(url);
    Server::new(config, vec![graph(policy, version, executions)]).start().await.expect("the server starts")
}

async fn ask(running: &Running, thread: &str, question: &str) -> Value {
    let url = format!("{}/threads/{thread}/runs/wait", running.url());
    post(&url, json!({"assistant_id": "cached", "input": {"question": question}})).await
}

async fn stop(running: Running) {
    running.shutdown().await.expect("stops");
}

#[tokio::test]
async fn a_restart_loses_no_outputs() {
    let dir = tempfile::tempdir().expect("a directory");
    let url = sqlite_url(&dir);
    let executions = Executions::default();
    let count = || executions.load(Ordering::SeqCst);

    let first = server(&url, CachePolicy::default(), "1", &executions).await;
    assert_eq!(ask(&first, "a", "why").await["answer"], "why!");
    assert_eq!(ask(&first, "b", "why").await["answer"], "why!");
    assert_eq!(count(), 1, "threads share outputs");
    assert_eq!(ask(&first, "c", "how").await["answer"], "how!");
    assert_eq!(count(), 2, "another input");
    stop(first).await;

    let second = server(&url, CachePolicy::lasting(HOUR), "1", &executions).await;
    let before = second.storage().write_transactions();
    assert_eq!(ask(&second, "d", "why").await["answer"], "why!");
    assert_eq!(count(), 2, "the restarted server does not run the node");
    let spent = second.storage().write_transactions() - before;
    assert!(spent <= 3, "what a hit writes is committed with its superstep: {spent} transactions");
    stop(second).await;

    let third = server(&url, CachePolicy::default(), "2", &executions).await;
    assert_eq!(ask(&third, "e", "why").await["answer"], "why!");
    assert_eq!(count(), 3, "another version is another graph");
    third.runtime().clear_cache(&Scope::default(), "cached").await.expect("cleared");
    assert_eq!(ask(&third, "f", "why").await["answer"], "why!");
    assert_eq!(count(), 4, "nothing is left of a cleared graph");
    stop(third).await;
}

#[tokio::test]
async fn replicas_share_outputs() {
    let Some(database) = Database::create("cache").await else { return };
    let (executions, others) = (Executions::default(), Executions::default());
    let second = server(&database.url, CachePolicy::default(), "1", &others).await;
    let first = server(&database.url, CachePolicy::default(), "1", &executions).await;
    // A run waits for the process that accepted it, which has a place free: it executes it, too.
    assert_eq!(ask(&first, "a", "why").await["answer"], "why!");
    assert_eq!((executions.load(Ordering::SeqCst), others.load(Ordering::SeqCst)), (1, 0));
    // What is on its way to the database is there when a server has stopped.
    stop(first).await;
    assert_eq!(ask(&second, "b", "why").await["answer"], "why!");
    assert_eq!(others.load(Ordering::SeqCst), 0, "the other replica does not run the node");
    stop(second).await;
}

#[tokio::test]
async fn only_successes_of_a_bounded_size_are_used_while_they_last() {
    let executions = Executions::default();
    let count = || executions.swap(0, Ordering::SeqCst);

    let expired = server("memory", CachePolicy::lasting(Duration::ZERO), "1", &executions).await;
    for thread in ["a", "b"] {
        ask(&expired, thread, "why").await;
    }
    assert_eq!(count(), 2, "its time is over at once");
    stop(expired).await;

    let running = server("memory", CachePolicy::lasting(HOUR), "1", &executions).await;
    assert_eq!(ask(&running, "a", "fail").await["__error__"]["message"], "not yet");
    assert_eq!(ask(&running, "b", "fail").await["answer"], "fail!");
    assert_eq!(ask(&running, "c", "fail").await["answer"], "fail!");
    assert_eq!(count(), 2, "a failure is no output");
    for thread in ["d", "e"] {
        assert_eq!(ask(&running, thread, "large").await["answer"].as_str().map(str::len), Some(2 << 20));
    }
    assert_eq!(count(), 2, "a large output is not kept");
    stop(running).await;

    let first_letter = CachePolicy::default().key(|input| match input {
        NodeInput::State(fields) => {
            let question = fields.get("question").and_then(|question| question.as_str());
            question.and_then(|question| question.chars().next()).map(String::from).unwrap_or_default()
        }
        NodeInput::Arg(arg) => arg.text(),
    });
    let keyed = server("memory", first_letter, "1", &executions).await;
    assert_eq!(ask(&keyed, "a", "why").await["answer"], "why!");
    assert_eq!(ask(&keyed, "b", "what").await["answer"], "why!", "the author says that they are the same");
    assert_eq!(ask(&keyed, "c", "how").await["answer"], "how!");
    assert_eq!(count(), 2);
    stop(keyed).await;
}
