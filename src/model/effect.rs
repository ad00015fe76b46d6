//! Effects: external calls that a task made, and what is known of their outcome.

#![deny(missing_docs)]

use super::{CheckpointId, ErrorInfo, Json, RunId, Timestamp};

/// What is known of an external call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EffectState {
    /// It was about to be made. As long as nothing follows, nobody knows whether it happened.
    Started,
    /// It is known not to have happened, or may be repeated: the next execution makes it again.
    Failed,
    /// Its outcome is recorded; it is never made again.
    Recorded,
}

impl EffectState {
    const ALL: [EffectState; 3] = [EffectState::Started, EffectState::Failed, EffectState::Recorded];

    /// The word clients see.
    pub fn as_str(self) -> &'static str {
        match self {
            EffectState::Started => "started",
            EffectState::Failed => "failed",
            EffectState::Recorded => "recorded",
        }
    }

    /// Reads the word clients see.
    pub fn parse(text: &str) -> Option<EffectState> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }
}

/// One call as the task that makes it sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct EffectEntry {
    /// Names the call within its task.
    pub key: String,
    /// What is known of it.
    pub state: EffectState,
    /// 1 for the first call, then 2, ..
    pub attempt: i32,
    /// How many questions about this call humans have answered.
    pub asked: i32,
    /// What the call returned; of a recorded call that did not fail. Lists leave it out unless it is asked for.
    pub result: Option<Json>,
    /// How it failed; of a failed call, or of a recorded one that failed.
    pub error: Option<ErrorInfo>,
}

/// Where a task hangs: the checkpoint it was planned from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EffectPlace {
    /// The namespace of the graph; `""` is the root graph.
    pub ns: String,
    /// The checkpoint.
    pub checkpoint_id: CheckpointId,
    /// The task.
    pub task_id: String,
    /// The node that the task runs.
    pub node: String,
}

/// One call as it is listed.
#[derive(Debug, Clone, PartialEq)]
pub struct Effect {
    /// The task that made it.
    pub place: EffectPlace,
    /// What the task knows of it.
    pub entry: EffectEntry,
    /// The run that wrote it last.
    pub run_id: RunId,
    /// When the latest attempt began.
    pub started_at: Timestamp,
    /// When its outcome was written.
    pub ended_at: Option<Timestamp>,
    /// Of the result; 0 without one.
    pub bytes: i64,
}
