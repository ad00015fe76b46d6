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
mod durability;
mod engine;
mod growth;
mod handlers;
mod histories;
mod idempotency;
mod panics;
mod queue;
mod readme;
mod sdk;
mod selfproof;
mod serve;
mod storage;
mod support;
mod tidy;
mod versions;
mod webhooks;
