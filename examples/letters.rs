//! A graph inside a graph, policies of nodes, and what a run takes and answers.

use std::process::ExitCode;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use session_store::graph::{
    BuildErrors, Context, Graph, Node, NodeDefaults, NodeError, RetryPolicy, START, StateGraph, Update,
};
use session_store::update;

/// What a run is given: other keys of an input are dropped.
#[derive(Serialize, Deserialize, JsonSchema)]
struct Order {
    topic: String,
}

/// The state of a thread.
#[derive(Serialize, Deserialize, JsonSchema)]
struct Letter {
    topic: String,
    text: String,
    sent: bool,
}

/// What a node reads, and what a run answers with: a part of the state.
#[derive(Serialize, Deserialize, JsonSchema)]
struct Written {
    text: String,
}

/// Writes the text. It has a state of its own, of which `topic` and `text` are also keys of the graph around it.
fn writing() -> Result<Graph, BuildErrors> {
    #[derive(Serialize, Deserialize, JsonSchema)]
    struct Draft {
        topic: String,
        outline: String,
        text: String,
    }
    #[derive(Serialize, Deserialize, JsonSchema)]
    struct Outlined {
        outline: String,
    }
    StateGraph::<Draft>::new("writing")
        .node("outline", async |order: Order, _ctx| Ok(update!(Draft { outline: format!("on {}", order.topic) })))
        .node("write", async |draft: Outlined, _ctx| Ok(update!(Draft { text: format!("A letter {}", draft.outline) })))
        .edge(START, "outline")
        .edge("outline", "write")
        .build()
}

async fn send(letter: Written, _ctx: Context) -> Result<Update, NodeError> {
    if letter.text.is_empty() {
        return Err(NodeError::new("ConnectionError", "nobody answers"));
    }
    Ok(update!(Letter { sent: true }))
}

fn graph() -> Result<Graph, BuildErrors> {
    let patient = RetryPolicy { max_attempts: 5, ..RetryPolicy::default() };
    let send =
        Node::new(send).retry(patient).timeout(Duration::from_secs(10)).error_handler(async |(), ctx: Context| {
            let why = ctx.error().map(|failure| failure.error.text()).unwrap_or_default();
            Ok(update!(Letter { text: format!("not sent: {why}") }))
        });
    StateGraph::<Letter>::new("letters")
        .input::<Order>()
        .output::<Written>()
        .subgraph("writing", writing()?)
        .node_with("send", send)
        .edge(START, "writing")
        .edge("writing", "send")
        .node_defaults(NodeDefaults::new().timeout(Duration::from_secs(60)))
        .build()
}

fn main() -> ExitCode {
    session_store::main([graph()])
}
