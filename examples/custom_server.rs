//! A server with a graph of your own: all it takes. The README shows this program as it stands here.
//!
//! `cargo run --example custom_server`, then `curl localhost:8123/runs/wait -d '{"input": {"counter": 0}}'`.

use std::process::ExitCode;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use session_store::graph::{BuildErrors, END, Graph, START, StateGraph};
use session_store::update;

/// The state of a thread.
#[derive(Serialize, Deserialize, JsonSchema)]
struct Counter {
    counter: i64,
}

/// Adds one, once per superstep, until there are three.
pub(crate) fn graph() -> Result<Graph, BuildErrors> {
    StateGraph::<Counter>::new("my_counter")
        .node("increment", async |state: Counter, _ctx| Ok(update!(Counter { counter: state.counter + 1 })))
        .edge(START, "increment")
        .branch(
            "increment",
            "check_done",
            ["increment", END],
            |s: &Counter| if s.counter >= 3 { END } else { "increment" },
        )
        .build()
}

fn main() -> ExitCode {
    session_store::main([graph()])
}
