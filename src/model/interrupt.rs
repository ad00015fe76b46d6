//! An interrupt: a question a node asked a human, with its answer, who gave it and when.

use serde::Serialize;
use uuid::Uuid;

use super::{CheckpointId, Json, RunId, ThreadId, Timestamp};

/// What became of a question. Derived: which questions are pending follows from the thread's head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum InterruptStatus {
    /// The thread waits for the answer.
    Pending,
    Answered,
    /// Nobody will answer it here: new input, an edit or time travel took the thread elsewhere, or its task went on.
    Dropped,
}

impl InterruptStatus {
    pub fn as_str(self) -> &'static str {
        match self {
            InterruptStatus::Pending => "pending",
            InterruptStatus::Answered => "answered",
            InterruptStatus::Dropped => "dropped",
        }
    }

    pub fn parse(text: &str) -> Option<InterruptStatus> {
        [Self::Pending, Self::Answered, Self::Dropped].into_iter().find(|status| status.as_str() == text)
    }
}

/// A question and its answer. `interrupt_id` is unique in its thread.
#[derive(Debug, Clone, Serialize)]
pub struct InterruptRecord {
    pub interrupt_id: String,
    pub thread_id: ThreadId,
    pub status: InterruptStatus,
    /// The graph and the assistant of the run that asked.
    pub graph_id: String,
    pub assistant_id: Uuid,
    pub node: String,
    pub task_id: String,
    pub checkpoint_ns: String,
    pub checkpoint_id: CheckpointId,
    /// The root graph's checkpoint: the question is pending while it is the thread's head.
    #[serde(skip)]
    pub root_checkpoint_id: CheckpointId,
    /// The run that asked.
    pub run_id: RunId,
    /// The question, as the node put it.
    pub value: Json,
    /// A JSON Schema for the answer.
    pub response_schema: Option<Json>,
    /// The schema refuses answers; otherwise it is only shown.
    #[serde(skip)]
    pub checked: bool,
    pub asked_at: Timestamp,
    pub answer: Option<Json>,
    /// When the run that brought the answer was accepted.
    pub answered_at: Option<Timestamp>,
    /// The actor of that run.
    pub answered_by: Option<String>,
    pub answered_run_id: Option<RunId>,
}
