//! What authors write: a [`StateGraph`] builder, node functions with a [`Context`], reducers, typed messages, and the
//! registry of graphs a server offers.
//!
//! A graph needs nothing from outside this module: what its signatures name of other layers is named here, too.

#![deny(missing_docs)]

mod body;
mod builder;
pub mod context;
mod destinations;
mod draw;
mod effect;
pub mod items;
pub mod message;
pub mod node;
#[doc(hidden)]
pub mod output;
pub(crate) mod question;
mod registry;
mod schema;
pub mod testing;

pub use crate::engine::channel::reducers;
pub use crate::engine::command::overwrite;
pub use crate::engine::{
    Change, ChannelKind, Command, CommandUpdate, Destination, EngineError, GraphSpec, Managed, Migration, Output,
    Packet, Reduce, ReduceContext, RouterContext,
};
pub use crate::model::{
    CheckpointId, Cost, Durability, EffectEntry, EffectState, ErrorInfo, Fields, FoundItem, Indexing, Item, Json,
    JsonError, ModelUsage, RefreshOn, RunId, TimeoutPolicy, Timestamp, UsageTotals,
};
pub use crate::update;
pub use body::{Node, NodeDefaults};
pub use builder::{BuildError, BuildErrors, StateGraph};
pub use context::Context;
pub use destinations::{Any, Destinations, Targets};
pub use draw::{Drawing, DrawnEdge, DrawnNode};
pub use effect::{EffectOptions, OnError, OnUnknown};
pub use items::{ItemQuery, Items, PutOptions};
pub use message::{AiChunk, Message, Role, ToolCall, ToolCallChunk, Usage};
pub use node::{CachePolicy, Checkpointing, Graph, KeyFunc, NodeBody, NodeError, NodeInput, Policies, RetryPolicy};
pub use output::{END, IntoOutput, START, Update, goto, send};
pub use question::Question;
pub use registry::{Registry, RegistryErrors};
