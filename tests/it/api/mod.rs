//! The HTTP interface, one file per noun: request in, answer out.

mod a2a;
mod assistants;
mod bad_input;
mod branches;
mod chain_events;
mod crons;
mod foreign;
mod health;
mod idempotency;
mod interrupts;
mod mcp;
mod multitask;
mod protocol;
mod retention;
mod runs;
mod sessions;
mod sockets;
mod state;
mod stopping;
mod store;
mod streams;
mod system;
mod thread_streams;
mod threads;
mod webhooks;
