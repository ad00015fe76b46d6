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
mod effects;
mod embedding;
mod engine;
mod growth;
mod handlers;
mod histories;
mod idempotency;
mod panics;
mod policies;
mod queue;
mod readme;
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
