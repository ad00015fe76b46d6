//! What callers of the runtime must tell apart. HTTP maps these to status codes.

use super::embed::EmbedError;
use crate::engine::EngineError;
use crate::model::RunId;
use crate::storage::StorageError;

/// Why the runtime refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    #[error("Thread with ID {0} not found")]
    ThreadNotFound(String),
    /// Creating a run: the thread is missing and was not to be created.
    #[error("Thread or assistant not found.")]
    ThreadOrAssistantNotFound,
    /// A run from, or an edit of, a checkpoint that the thread does not have.
    #[error("Checkpoint {0} not found: GET /threads/.../checkpoints lists them")]
    CheckpointNotFound(String),
    #[error("Branch '{0}' not found: GET /threads/.../branches lists them")]
    BranchNotFound(String),
    #[error("Run not found")]
    RunNotFound(RunId),
    #[error("Cron not found")]
    CronNotFound,
    #[error("Interrupt {0} not found: GET /interrupts lists the pending ones")]
    InterruptNotFound(String),
    /// An assistant id that is a UUID but unknown.
    #[error("Assistant not found")]
    AssistantNotFound,
    /// An assistant name that is neither a UUID nor a graph. The text lists the graphs.
    #[error("{0}")]
    InvalidAssistant(String),
    /// The thread's graph is not in this build.
    #[error("{0}")]
    GraphNotFound(String),
    /// `multitask_strategy=reject`.
    #[error("Thread is already running a task. Wait for it to finish or choose a different multitask strategy.")]
    ThreadRunning,
    /// A state update on a thread with an active run.
    #[error("Thread {0} has in-flight runs: its state cannot be updated until they finish")]
    ThreadBusy(String),
    /// A run or a change of state on a thread that was ended or archived. The text says when, by whom and why.
    #[error("{0}")]
    ThreadClosed(String),
    /// A graph of this server was to run on, or change, a thread whose checkpoints come from elsewhere.
    #[error(
        "Thread {0} holds checkpoints of a graph that runs elsewhere: graphs of this server cannot run on it or change it"
    )]
    ThreadForeign(String),
    #[error("{0}")]
    Conflict(String),
    /// The request contradicts the thread: a business error.
    #[error("{0}")]
    BadRequest(String),
    /// The request is malformed.
    #[error("{0}")]
    Invalid(String),
    /// The namespace of an item is malformed.
    #[error("{0}")]
    InvalidNamespace(String),
    /// An item's texts, or those of a query, could not be embedded: nothing was written.
    #[error("embedding: {0}")]
    Embedding(#[from] EmbedError),
    /// The graph refused a state update.
    #[error("{}", .0.text())]
    Graph(#[from] EngineError),
    #[error(transparent)]
    Storage(#[from] StorageError),
}
