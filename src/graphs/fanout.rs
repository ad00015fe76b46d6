//! `fanout`: twenty tasks side by side.
//!
//! The router sends twenty arguments to `work`; each becomes a task of its own in one superstep, and the list keeps what
//! they return in the order in which they were sent: `{"items": [0, 1, .., 19]}`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::graph::{BuildErrors, Destination, END, Graph, START, StateGraph, send};
use crate::update;

#[derive(Serialize, Deserialize, JsonSchema)]
struct Fanout {
    items: Vec<i64>,
}

/// What one task is sent.
#[derive(Serialize, Deserialize, JsonSchema)]
struct Share {
    i: i64,
}

pub(super) fn graph() -> Result<Graph, BuildErrors> {
    StateGraph::<Fanout>::new("fanout")
        .description("Twenty tasks side by side.")
        .append("items")
        .task("work", async |share: Share, _ctx| Ok(update!(Fanout { items: vec![share.i] })))
        .branch(START, "fan_out", ["work"], |(): &()| -> Vec<Destination> {
            (0..20).map(|i| send("work", Share { i })).collect()
        })
        .edge("work", END)
        .build()
}
