//! `slow`: counts `n` up to `steps` and takes its time.
//!
//! For watching what happens to runs that last: progress streams, cancelling, killed workers, full queues. Without
//! input it takes five steps of a tenth of a second.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::graph::{BuildErrors, Context, END, Graph, NodeError, START, StateGraph, Update};
use crate::update;

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(default)]
struct Slow {
    /// Steps taken.
    n: u64,
    /// Steps to take.
    steps: u64,
    /// How long one step takes.
    sleep_ms: u64,
}

impl Default for Slow {
    fn default() -> Self {
        Slow { n: 0, steps: 5, sleep_ms: 100 }
    }
}

pub(super) fn graph() -> Result<Graph, BuildErrors> {
    StateGraph::<Slow>::new("slow")
        .description("Counts n up to steps and takes its time.")
        .node("work", work)
        .edge(START, "work")
        .branch("work", "more", ["work", END], |state: &Slow| if state.n < state.steps { "work" } else { END })
        .build()
}

async fn work(state: Slow, ctx: Context) -> Result<Update, NodeError> {
    let n = state.n + 1;
    ctx.write(json!({"working_on": n, "of": state.steps}))?;
    tokio::time::sleep(Duration::from_millis(state.sleep_ms)).await;
    ctx.write(json!({"done": n, "of": state.steps}))?;
    Ok(update!(Slow { n }))
}
