//! What the runtime is asked for.

use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::EventStream;
use super::live::LiveRun;
use crate::model::{
    CheckpointRef, Durability, Fields, Json, MultitaskStrategy, OnCompletion, Run, RunKwargs, ThreadId,
};

/// An assistant as clients name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AssistantName {
    Id(Uuid),
    Graph(String),
}

impl AssistantName {
    pub fn parse(text: &str) -> AssistantName {
        Uuid::try_parse(text).map_or_else(|_| AssistantName::Graph(text.to_owned()), AssistantName::Id)
    }
}

/// A run to start.
#[derive(Debug, Clone)]
pub struct RunRequest {
    /// `None`: a temporary thread.
    pub thread: Option<ThreadId>,
    /// `None`: the thread's graph, or the only graph of the server.
    pub assistant: Option<AssistantName>,
    /// Input, command, config, context, stream modes, .. The runtime completes `config.configurable` and `durability`.
    pub kwargs: RunKwargs,
    /// `None`: what the assistant, the graph or the server says, in this order.
    pub durability: Option<Durability>,
    /// An object.
    pub metadata: Json,
    pub multitask_strategy: MultitaskStrategy,
    /// `None`: create threads whose name is not a UUID (DESIGN section 5), refuse missing UUIDs.
    pub create_thread: Option<bool>,
    pub after: Duration,
    pub on_completion: OnCompletion,
    /// Cancel the run when its event stream is dropped before the end.
    pub cancel_on_disconnect: bool,
    /// Start in this process, at once, if the thread is free: for `wait` and `stream`.
    pub start_here: bool,
    pub actor: Option<String>,
}

/// An accepted run: committed.
pub struct Submitted {
    pub run: Run,
    pub(crate) live: Arc<LiveRun>,
    /// All events of the run from its first, when `start_here` asked for them.
    pub events: Option<EventStream>,
}

/// Which states a history shows.
#[derive(Debug, Clone, Default)]
pub struct HistoryQuery {
    pub limit: i64,
    pub before: Option<CheckpointRef>,
    /// Equality on each given key.
    pub metadata: Option<Json>,
    /// Namespace, and a single checkpoint if it has an id.
    pub checkpoint: CheckpointRef,
}

/// A manual change of state.
#[derive(Debug, Clone)]
pub struct StateUpdate {
    pub values: Json,
    /// A Command instead of values: `{update?, goto?}`.
    pub command: Option<Json>,
    pub as_node: Option<String>,
    pub at: CheckpointRef,
    /// Who changes it and why: kept in the metadata of the checkpoint.
    pub actor: Option<String>,
    pub reason: Option<String>,
}

/// An answer to a pending question.
#[derive(Debug, Clone)]
pub struct Answer {
    pub thread: ThreadId,
    pub interrupt_id: String,
    pub answer: Json,
    /// Where it is in the request, for messages: `answers[2].`, or nothing.
    pub place: String,
}

/// Who answers.
#[derive(Debug, Clone, Default)]
pub struct Answerer {
    /// A name for records.
    pub actor: Option<String>,
    /// What the run takes along in its `configurable`.
    pub carried: Fields,
}
