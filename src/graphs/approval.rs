//! `approval`: drafts a text and publishes it if a human agrees.
//!
//! `{"topic": "tea"}` makes a draft, then `approve` asks: the run stops with the question, and the answer, sent as
//! `{"command": {"resume": ..}}`, decides. An answer is `true` or `false`, a word (`"yes"`, `"approve"`, ..), or
//! `{"approved": true, "draft": "a better text"}`.
//!
//! Instead of waiting for the question, a client may stop the run before the node with `"interrupt_before":
//! ["approve"]`, look at the draft, and put its decision into the state: `{"approved": true}`. Continued with null input,
//! `approve` finds the decision and does not ask. Continued without one, it asks.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::graph::{BuildErrors, Context, END, Graph, NodeError, START, StateGraph, Update};
use crate::model::Json;
use crate::update;

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(default)]
struct Approval {
    /// What to write about.
    topic: String,
    draft: Option<String>,
    /// The human's decision, once there is one.
    approved: Option<bool>,
    published: Option<String>,
}

impl Default for Approval {
    fn default() -> Self {
        Approval { topic: "this release".to_owned(), draft: None, approved: None, published: None }
    }
}

pub(super) fn graph() -> Result<Graph, BuildErrors> {
    StateGraph::<Approval>::new("approval")
        .description("Drafts a text and publishes it if a human agrees.")
        .node("draft", draft)
        .node("approve", approve)
        .node("publish", publish)
        .edge(START, "draft")
        .edge("draft", "approve")
        .branch("approve", "decide", [("yes", "publish"), ("no", END)], |state: &Approval| {
            if state.approved == Some(true) { "yes" } else { "no" }
        })
        .edge("publish", END)
        .build()
}

/// A new draft needs a new decision.
async fn draft(state: Approval, _ctx: Context) -> Result<Update, NodeError> {
    let text = format!("Everything worth knowing about {}.", state.topic);
    Ok(update!(Approval { draft: Some(text), approved: None, published: None }))
}

async fn approve(state: Approval, ctx: Context) -> Result<Update, NodeError> {
    if state.approved.is_some() {
        return Ok(Update::new());
    }
    let answer = ctx.interrupt(json!({"question": "Publish this draft?", "draft": state.draft}))?;
    let answer = Answer::read(&answer);
    Ok(update!(Approval { approved: Some(answer.approved), draft: answer.draft.or(state.draft) }))
}

async fn publish(state: Approval, _ctx: Context) -> Result<Update, NodeError> {
    Ok(update!(Approval { published: state.draft }))
}

/// What a human says to a draft.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Answer {
    approved: bool,
    /// A better text.
    draft: Option<String>,
}

impl Answer {
    /// Whatever is not a clear yes is a no.
    fn read(answer: &Json) -> Answer {
        if let Some(word) = answer.as_str() {
            let approved = ["yes", "y", "ok", "true", "approve", "approved"].contains(&word.to_lowercase().as_str());
            return Answer { approved, draft: None };
        }
        match answer.decode::<bool>() {
            Ok(approved) => Answer { approved, draft: None },
            Err(_) => answer.decode().unwrap_or_default(),
        }
    }
}
