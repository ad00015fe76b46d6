//! The contract for interrupts: the questions of nodes with their answers. They are written by the commits of runs
//! ([`super::StepRows`]), with the writes of the task that asked or went on.

use async_trait::async_trait;
use uuid::Uuid;

use super::Result;
use crate::model::{CheckpointId, InterruptRecord, InterruptStatus, Json, Scope, ThreadId, ThreadKey, Timestamp};

/// What a commit says about a question. The run that commits is who asked, or who brought the answer.
///
/// A question has one row per thread, by its id. Asking again leaves an open row as it is, and opens a closed one; an
/// answer counts once; only open questions are withdrawn.
#[derive(Debug, Clone)]
pub struct InterruptRow {
    pub id: String,
    /// The namespace of the graph whose node asked, and its checkpoint.
    pub ns: String,
    pub checkpoint_id: CheckpointId,
    /// The checkpoint of the root graph around it.
    pub root_checkpoint_id: CheckpointId,
    pub task_id: String,
    pub node: String,
    pub question: Json,
    pub response_schema: Option<Json>,
    /// The schema refuses answers; otherwise it is only shown.
    pub checked: bool,
    pub change: InterruptChange,
}

/// What happened to a question.
#[derive(Debug, Clone, PartialEq)]
pub enum InterruptChange {
    Asked,
    /// The task took this answer. `answered_at` and `answered_by` are when and by whom the run was created.
    Answered(Json),
    /// Its task went on without an answer.
    Withdrawn,
}

impl InterruptChange {
    /// The word backends write and compare.
    pub(crate) fn as_str(&self) -> &'static str {
        match self {
            InterruptChange::Asked => "asked",
            InterruptChange::Answered(_) => "answered",
            InterruptChange::Withdrawn => "withdrawn",
        }
    }

    pub(crate) fn answer(&self) -> Option<&Json> {
        match self {
            InterruptChange::Answered(answer) => Some(answer),
            InterruptChange::Asked | InterruptChange::Withdrawn => None,
        }
    }
}

/// Which questions a list shows. All conditions must hold.
#[derive(Debug, Clone, Default)]
pub struct InterruptFilter {
    /// Pending: open, and asked at the thread's head. Dropped: neither answered nor pending.
    pub status: Option<InterruptStatus>,
    pub thread: Option<ThreadId>,
    pub ids: Option<Vec<String>>,
    /// Asked at one of these checkpoints: of the graph that asked, or of the root graph around it.
    pub checkpoints: Option<Vec<CheckpointId>>,
    pub graph_id: Option<String>,
    pub assistant_id: Option<Uuid>,
    pub node: Option<String>,
    /// Contained in the thread's metadata, as in [`super::ThreadFilter::metadata`].
    pub thread_metadata: Option<Json>,
    /// At or after.
    pub asked_after: Option<Timestamp>,
    /// Before.
    pub asked_before: Option<Timestamp>,
}

/// The place of a question in the order of lists: the next page begins after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterruptCursor {
    pub asked_at: Timestamp,
    pub id: String,
    pub thread: ThreadKey,
}

/// Interrupts. All reads.
#[async_trait]
pub trait Interrupts {
    /// One page of the questions that match, by the time they were asked, with the keys of their threads.
    async fn list_interrupts(
        &self,
        scope: &Scope,
        filter: &InterruptFilter,
        ascending: bool,
        after: Option<&InterruptCursor>,
        limit: i64,
    ) -> Result<Vec<(ThreadKey, InterruptRecord)>>;
}
