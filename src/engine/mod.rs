//! What a graph does, as pure functions: values in, values out. No async, no clock, no I/O, no randomness.
//!
//! A *superstep* is: plan the tasks whose trigger channels have a newer version than their node has seen (plus one task
//! per pending Send), run them all (somebody else's job: [`crate::runtime`]), then apply their writes to the channels in
//! a fixed order, which gives the next checkpoint. [`execution::Execution`] is that loop as a state machine;
//! [`step`] holds its verbs under LangGraph's own names; [`channel`] the places values are kept; [`spec`] the topology.
//! Section numbers in comments are those of the engine specification this was written against (README, "Sources").

pub mod channel;
pub mod chunk;
pub mod command;
pub mod error;
pub mod execution;
pub mod ids;
pub mod message;
pub mod migrate;
pub mod py;
pub mod record;
pub mod spec;
pub mod step;
pub mod view;

pub use channel::{Change, ChannelKind, Reduce, ReduceContext};
pub use command::{Command, CommandUpdate, Destination, Output, Packet};
pub use error::EngineError;
pub use migrate::Migration;
pub use spec::{Branch, GraphSpec, Managed, NodeSpec, RouterContext, Writers};
