//! `counter`: counts to three, one superstep per number.
//!
//! `{"counter": 0}` ends as `{"counter": 3}`. Interrupt it anywhere, kill the server, and null input goes on from the
//! last number that was stored.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::graph::{BuildErrors, Context, END, Graph, NodeError, START, StateGraph, Update};
use crate::update;

const LAST: i64 = 3;

#[derive(Serialize, Deserialize, JsonSchema)]
struct Counter {
    counter: i64,
}

pub(super) fn graph() -> Result<Graph, BuildErrors> {
    StateGraph::<Counter>::new("counter")
        .description("Counts to three, one superstep per number.")
        .node("increment", increment)
        .edge(START, "increment")
        .branch(
            "increment",
            "check_done",
            ["increment", END],
            |state: &Counter| {
                if state.counter >= LAST { END } else { "increment" }
            },
        )
        .build()
}

async fn increment(state: Counter, ctx: Context) -> Result<Update, NodeError> {
    ctx.write(format!("Current counter: {}", state.counter))?;
    let counter = state.counter + 1;
    if counter >= LAST {
        ctx.write("Stopping condition reached")?;
    }
    Ok(update!(Counter { counter }))
}
