//! The server under test of the differential conformance harness: graphs that are described by JSON documents, built and
//! executed through the library's public interface alone.
//!
//! `cargo run --example conformance -- --graphs conformance/scenarios --listen 127.0.0.1:2101`. Besides the documents it
//! always serves the fixture graphs that client tests use (`refapp`, `cued`).

mod body;
mod condition;
mod counters;
pub(crate) mod cued;
pub(crate) mod documents;
mod policies;
pub(crate) mod refapp;
pub(crate) mod script;
mod template;

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::Parser;
use session_store::graph::{Graph, Registry};

/// Serves scripted graphs.
#[derive(Parser)]
pub(crate) struct Args {
    /// A file or folder of graph documents: *.json, *.jsonl, *.jsonl.gz.
    #[arg(long)]
    graphs: Option<PathBuf>,
    /// Where to listen.
    #[arg(long, default_value = "127.0.0.1:2100")]
    listen: String,
    /// Where to keep threads: `memory`, `sqlite:..`, `postgres://..`.
    #[arg(long, default_value = "memory")]
    database_url: String,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    run(Args::parse()).await
}

/// The whole program.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let documents = match &args.graphs {
        Some(path) => documents::load(path)?,
        None => Vec::new(),
    };
    let scripted = documents
        .iter()
        .map(|document| script::graph(document).with_context(|| format!("in the graph document `{}`", document.id)));
    let mut graphs = scripted.collect::<anyhow::Result<Vec<Graph>>>()?;
    for graph in refapp::all().into_iter().chain([cued::graph()]) {
        graphs.push(graph?);
    }
    let names = Registry::new(graphs.iter().cloned().map(Ok)).map_err(anyhow::Error::from)?;
    if names.is_empty() {
        bail!("no graphs");
    }
    serve(graphs, &args.listen, &args.database_url).await
}

/// The one place where the library is asked to serve.
async fn serve(graphs: Vec<Graph>, listen: &str, database_url: &str) -> anyhow::Result<()> {
    session_store::app::run_with(graphs, listen, database_url).await
}
