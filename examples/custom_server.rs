//! A server with a graph of your own: all it takes.
//!
//! `cargo run --example custom_server -- serve`, then
//! `curl localhost:8123/runs/wait -d '{"input": {"name": "Ada"}}'`.

use std::process::ExitCode;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use session_store::graph::{BuildErrors, Graph, START, StateGraph};
use session_store::update;

#[derive(Serialize, Deserialize, JsonSchema)]
struct Hello {
    name: String,
    greeting: Option<String>,
}

fn graph() -> Result<Graph, BuildErrors> {
    StateGraph::<Hello>::new("hello")
        .node("greet", async |hello: Hello, _ctx| {
            Ok(update!(Hello { greeting: Some(format!("Hello, {}!", hello.name)) }))
        })
        .edge(START, "greet")
        .build()
}

fn main() -> ExitCode {
    session_store::main([graph()])
}
