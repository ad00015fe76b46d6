//! The contract for the execution log: reads. Its rows are written with the supersteps of a run, under its lease
//! ([`super::StepRows::executions`]), go with their run and their thread, and are neither pruned nor copied.

use async_trait::async_trait;

use super::Result;
use crate::model::{LoggedTask, RunId, Scope, TaskOutcome, ThreadKey, Timestamp};

/// Which executions a list shows.
#[derive(Debug, Clone, Default)]
pub struct ExecutionFilter {
    pub run_id: Option<RunId>,
    pub node: Option<String>,
    /// Of the graph with this namespace.
    pub ns: Option<String>,
    pub outcome: Option<TaskOutcome>,
    /// From this superstep on.
    pub min_step: Option<i64>,
    /// Up to this superstep.
    pub max_step: Option<i64>,
}

/// Where a page ends: the last row it showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExecutionCursor {
    pub started_at: Timestamp,
    pub run_id: RunId,
}

/// The execution log.
#[async_trait]
pub trait Executions {
    /// One page of a thread's executions, the latest started first, after `after`.
    async fn list_executions(
        &self,
        scope: &Scope,
        thread: ThreadKey,
        filter: &ExecutionFilter,
        after: Option<ExecutionCursor>,
        limit: i64,
    ) -> Result<Vec<LoggedTask>>;
}
