//! The one integration test binary: features at their boundary, for real.
#![expect(clippy::unwrap_used, reason = "tests panic")]

mod agent;
mod api;
mod cache;
mod cli;
mod compose;
mod conformance;
mod cost;
mod crash;
mod crons;
mod distributed;
mod durability;
mod effects;
mod embedding;
mod engine;
mod faults;
mod fuzz;
mod growth;
mod handlers;
mod histories;
mod idempotency;
mod js;
mod panics;
mod policies;
mod previous;
mod queue;
mod readme;
mod replicas;
mod saver;
mod sdk;
mod selfproof;
mod serve;
mod storage;
mod support;
mod takeover;
mod tidy;
mod usage;
mod versions;
mod webhooks;

/// The example `conformance`: the graphs that clients are tested with, scripted graphs, and the server of both.
#[path = "../../examples/conformance/main.rs"]
#[expect(dead_code, reason = "its main")]
mod fixtures;
