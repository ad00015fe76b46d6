//! `greeter`: greets once per run and remembers having done so.
//!
//! Shows what a thread keeps without any reducer: the node returns the whole list, one greeting longer. A first run with
//! `{"messages": []}` gives one greeting; `{}` on the same thread leaves the list as it is and adds another.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::graph::{BuildErrors, Context, END, Graph, NodeError, START, StateGraph, Update};
use crate::update;

#[derive(Serialize, Deserialize, JsonSchema)]
struct Greetings {
    /// Nobody has been greeted on a thread without the key.
    #[serde(default)]
    messages: Vec<String>,
}

pub(super) fn graph() -> Result<Graph, BuildErrors> {
    StateGraph::<Greetings>::new("greeter")
        .description("Greets once per run and remembers having done so.")
        .node("chat", greet)
        .edge(START, "chat")
        .edge("chat", END)
        .build()
}

async fn greet(state: Greetings, _ctx: Context) -> Result<Update, NodeError> {
    let mut messages = state.messages;
    messages.push("Hello from the agent".to_owned());
    Ok(update!(Greetings { messages }))
}
