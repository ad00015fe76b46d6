//! Channels: where a graph's values are kept between supersteps, one rule of combination each (section 2).

#![deny(missing_docs)]

pub mod reducers;
mod state;

use std::fmt;
use std::sync::Arc;

pub use state::{Channel, Write};

use super::EngineError;
use crate::model::Json;

/// What a reducer did to its channel's value. The precise forms let a list be stored as what was added to it.
#[derive(Debug, Clone)]
pub enum Change {
    /// Items were added at the end.
    Append(Vec<Json>),
    /// The first `from` items stayed; what follows is `tail`.
    Edit {
        /// How many items stayed.
        from: usize,
        /// All that follows them.
        tail: Vec<Json>,
    },
    /// A new value.
    Replace(Json),
}

/// What a reducer may know besides the values: enough to give derived ids to what has none.
#[derive(Debug, Clone, Copy)]
pub struct ReduceContext<'a> {
    /// The task whose write is folded in.
    pub task_id: &'a str,
    /// The position of the write among the task's writes.
    pub index: usize,
}

/// How a channel folds a write into its value. Must be a pure function of its arguments.
///
/// [`Change::Append`] and [`Change::Edit`] say what was done to a list: then a superstep stores what was added to it. A
/// reducer that answers [`Change::Replace`] works as well, and has the value stored whole, or what two lists differ in.
///
/// ```
/// use session_store::graph::{BuildErrors, Change, EngineError, Graph, Json, Reduce, ReduceContext};
/// use session_store::graph::{START, StateGraph, Update};
///
/// /// The lines of a text, each write one more; `undo` takes the last one back.
/// struct Lines;
///
/// impl Reduce for Lines {
///     fn initial(&self) -> Option<Json> {
///         Some(Json::from_iter([]))
///     }
///
///     fn reduce(&self, lines: Option<&Json>, write: &Json, _: ReduceContext<'_>) -> Result<Change, EngineError> {
///         let count = lines.and_then(Json::items_len).unwrap_or_default();
///         match write.as_str() {
///             Some("undo") => Ok(Change::Edit { from: count.saturating_sub(1), tail: Vec::new() }),
///             Some(_) => Ok(Change::Append(vec![write.clone()])),
///             None => Err(EngineError::new("TypeError", "a line is a string")),
///         }
///     }
/// }
///
/// fn graph() -> Result<Graph, BuildErrors> {
///     StateGraph::dynamic("letter")
///         .reducer("lines", Lines)
///         .node("sign", async |(), _ctx| Ok(Update::new().set("lines", "Yours sincerely")))
///         .edge(START, "sign")
///         .build()
/// }
/// # graph().expect("builds");
/// ```
pub trait Reduce: Send + Sync {
    /// What it does, in a word: part of a graph's topology hash.
    fn name(&self) -> &'static str {
        "reducer"
    }

    /// The value before the first write: shown, but not stored until written. `None`: the first write is stored as it is.
    fn initial(&self) -> Option<Json>;

    /// Folds one write in. `current` is never absent when [`Reduce::initial`] gives a value.
    fn reduce(&self, current: Option<&Json>, write: &Json, context: ReduceContext<'_>) -> Result<Change, EngineError>;

    /// A write whose parts have the ids that [`Reduce::reduce`] will give them, if it gives any: what a task is told to
    /// have written names them as the state will. `None`: the write as it is.
    fn identify(&self, _write: &Json, _context: ReduceContext<'_>) -> Option<Json> {
        None
    }

    /// A value, or a write that is not applied yet, as a view of the state reads it before it folds one into the other.
    fn preview(&self, value: Json) -> Json {
        value
    }
}

/// The kinds of channels.
#[derive(Clone)]
pub enum ChannelKind {
    /// One value; two writes in one superstep are an error.
    LastValue,
    /// The last of many writes; cleared by a superstep that does not write it.
    Any,
    /// A reducer.
    Reducer(Arc<dyn Reduce>),
    /// A list of what was written, cleared each superstep unless it accumulates.
    Topic {
        /// What was written in earlier supersteps stays.
        accumulate: bool,
    },
    /// One value for one superstep.
    Ephemeral {
        /// Two writes in one superstep are an error.
        guard: bool,
    },
    /// One value for the run, never stored.
    Untracked {
        /// Two writes in one superstep are an error.
        guard: bool,
    },
    /// A list that LangGraph stores as deltas, with its snapshot cadence shown in metadata. Here every list is stored
    /// that way; the kind keeps the bookkeeping clients can see.
    DeltaAppend {
        /// Updates from one snapshot to the next.
        snapshot_frequency: u32,
    },
    /// Starts its node after every named node has written.
    Barrier {
        /// The nodes it waits for.
        names: Vec<String>,
        /// It also waits until nothing else is triggered.
        deferred: bool,
    },
    /// Starts a deferred node once nothing else is triggered.
    AfterFinish,
}

impl fmt::Debug for ChannelKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ChannelKind::LastValue => "LastValue",
            ChannelKind::Any => "Any",
            ChannelKind::Reducer(_) => "Reducer",
            ChannelKind::Topic { .. } => "Topic",
            ChannelKind::Ephemeral { .. } => "Ephemeral",
            ChannelKind::Untracked { .. } => "Untracked",
            ChannelKind::DeltaAppend { .. } => "DeltaAppend",
            ChannelKind::Barrier { .. } => "Barrier",
            ChannelKind::AfterFinish => "AfterFinish",
        })
    }
}
