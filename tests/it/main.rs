//! The one integration test binary: features at their boundary, for real.

mod agent;
mod cli;
mod compose;
mod cost;
mod crash;
mod readme;
mod sdk;
mod serve;
mod support;
mod tidy;
