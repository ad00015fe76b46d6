//! A self-hosted session store and graph runtime for LangGraph-style agents.
//!
//! The layers, top down; imports point down only (`tests/it/tidy.rs` proves it):
//!
//! * `selfproof`: shows on real processes that nothing is lost, doubled or stuck.
//! * [`app`], [`cli`](main): the command; configuration, storage, runtime, router; start and shutdown order.
//! * [`http`]: how it is asked for: routes, wire formats, status codes, event streams.
//! * [`runtime`]: when it happens: queue, leases, executor, live events.
//! * [`storage`]: where it is kept: a trait per noun, and the backends.
//! * [`graph`]: what authors write. [`graphs`]: the graphs this server ships.
//! * [`engine`]: what a graph does, as pure functions.
//! * [`model`]: the nouns.
//!
//! Beside them, for whoever needs them: [`clock`] (time and ids), [`memory`] (what the process occupies), [`spans`].
//!
//! A program with graphs of its own is [`main`] with them; [`app::Server`] is the embedded form.

pub mod app;
mod cli;
pub mod clock;
pub mod config;
pub mod engine;
pub mod graph;
pub mod graphs;
pub mod http;
pub mod memory;
pub mod model;
pub mod runtime;
mod selfproof;
pub mod spans;
pub mod storage;
pub mod telemetry;

use std::process::ExitCode;

use clap::Parser as _;

use crate::graph::{BuildErrors, Graph};

/// The whole command line (`serve`, `migrate`, `check-config`, `graphs`, `healthcheck`) over these graphs: the `main` of
/// a program that brings its own.
pub fn main(graphs: impl IntoIterator<Item = Result<Graph, BuildErrors>>) -> ExitCode {
    match cli::Cli::parse().run(graphs) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            for line in format!("{error:#}").lines() {
                eprintln!("error: {line}");
            }
            ExitCode::FAILURE
        }
    }
}
