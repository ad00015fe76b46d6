//! What authors write: a [`StateGraph`] builder, node functions with a [`Context`], reducers, typed messages, and the
//! registry of graphs a server offers.

pub mod context;
pub mod node;

pub use context::Context;
pub use node::{Graph, NodeBody, NodeError, NodeInput, Policies};
