//! `count`: counts to five.
//!
//! `{"count": 0}` ends as `{"count": 5}`; running it again with null input changes nothing, since nothing is left to do.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::graph::{BuildErrors, Context, END, Graph, NodeError, START, StateGraph, Update};
use crate::update;

#[derive(Serialize, Deserialize, JsonSchema)]
struct Count {
    count: i64,
}

pub(super) fn graph() -> Result<Graph, BuildErrors> {
    StateGraph::<Count>::new("count")
        .description("Counts to five.")
        .node("increment", increment)
        .edge(START, "increment")
        .branch(
            "increment",
            "router",
            ["increment", END],
            |state: &Count| {
                if state.count >= 5 { END } else { "increment" }
            },
        )
        .build()
}

async fn increment(state: Count, ctx: Context) -> Result<Update, NodeError> {
    ctx.write(format!("Incrementing: {}", state.count))?;
    Ok(update!(Count { count: state.count + 1 }))
}
