//! The execution log on Postgres.

use async_trait::async_trait;

use super::rows::execution_from;
use super::{PostgresStorage, read};
use crate::model::{LoggedTask, Scope, TaskOutcome, ThreadKey};
use crate::storage::encoding::hide_nul;
use crate::storage::rows::driver_error;
use crate::storage::{ExecutionCursor, ExecutionFilter, Executions, Result};

#[async_trait]
impl Executions for PostgresStorage {
    async fn list_executions(
        &self,
        scope: &Scope,
        thread: ThreadKey,
        filter: &ExecutionFilter,
        after: Option<ExecutionCursor>,
        limit: i64,
    ) -> Result<Vec<LoggedTask>> {
        read!(self, async {
            let mut session = self.session().await?;
            let rows = sqlx::query(
                "SELECT e.thread_key, e.started_at, e.run_id, e.ended_at, e.step, e.attempt, e.codec, e.ns,
                        e.checkpoint_id, e.task_id, e.node, e.outcome, e.detail, r.actor
                 FROM task_log e
                 LEFT JOIN runs r ON r.thread_key = e.thread_key AND r.run_id = e.run_id
                 WHERE e.thread_key = $1 AND ($2::uuid IS NULL OR e.tenant = $2)
                   AND ($3::uuid IS NULL OR e.run_id = $3) AND ($4::text IS NULL OR e.node = $4)
                   AND ($5::text IS NULL OR e.ns = $5) AND ($6::text IS NULL OR e.outcome = $6)
                   AND ($7::bigint IS NULL OR e.step >= $7) AND ($8::bigint IS NULL OR e.step <= $8)
                   AND ($9::bigint IS NULL OR (e.started_at, e.run_id) < ($9, $10::uuid))
                 ORDER BY e.started_at DESC, e.run_id DESC LIMIT $11",
            )
            .bind(thread.0)
            .bind(scope.filter())
            .bind(filter.run_id)
            .bind(filter.node.as_deref().map(hide_nul))
            .bind(&filter.ns)
            .bind(filter.outcome.map(TaskOutcome::as_str))
            .bind(filter.min_step)
            .bind(filter.max_step)
            .bind(after.map(|after| after.started_at.0))
            .bind(after.map(|after| after.run_id))
            .bind(limit)
            .fetch_all(session.conn())
            .await
            .map_err(driver_error)?;
            session.finish().await?;
            rows.iter().map(execution_from).collect::<Result<Vec<LoggedTask>>>()
        })
    }
}
