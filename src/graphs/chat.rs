//! `chat`: answers every message with the same words.
//!
//! The smallest chat there is: a message list that keeps what was said, and a node that says one thing. The node asks
//! for no state at all, so that a long conversation costs no more than a short one.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::graph::{BuildErrors, END, Graph, Message, START, StateGraph, reducers};
use crate::update;

const ANSWER: &str = "This is the fixed answer of the benchmark node, about eighty characters long, ok.";

#[derive(Serialize, Deserialize, JsonSchema)]
struct Chat {
    messages: Vec<Message>,
}

pub(super) fn graph() -> Result<Graph, BuildErrors> {
    StateGraph::<Chat>::new("chat")
        .description("Answers every message with the same words.")
        .reducer("messages", reducers::messages())
        .node("answer", async |(), _ctx| Ok(update!(Chat { messages: vec![Message::ai(ANSWER)] })))
        .edge(START, "answer")
        .edge("answer", END)
        .build()
}
