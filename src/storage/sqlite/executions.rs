//! The execution log on SQLite.

use async_trait::async_trait;
use sqlx::QueryBuilder;
use uuid::Uuid;

use super::rows::execution_from;
use super::{SqliteStorage, Write};
use crate::model::{LoggedTask, RunId, Scope, TaskExecution, TaskOutcome, ThreadKey};
use crate::storage::encoding::{self, PLAIN, hide_nul};
use crate::storage::rows::driver_error;
use crate::storage::{ExecutionCursor, ExecutionFilter, Executions, Result};

/// Rows that one statement inserts at most.
const ROWS: usize = 16;

/// Writes executions of a run; one that is there already stays.
pub(super) async fn put_executions(
    write: &mut Write,
    tenant: Uuid,
    thread: ThreadKey,
    run_id: RunId,
    rows: &[TaskExecution],
) -> Result<()> {
    for rows in rows.chunks(ROWS) {
        let mut query = QueryBuilder::new(
            "INSERT INTO task_log (thread_key, started_at, run_id, tenant, ended_at, step, attempt, codec, ns,
                                   checkpoint_id, task_id, node, outcome, detail) ",
        );
        query.push_values(rows, |mut values, row| {
            values.push_bind(thread.0).push_bind(row.started_at.0).push_bind(run_id).push_bind(tenant);
            values.push_bind(row.ended_at.0).push_bind(row.step).push_bind(row.attempt).push_bind(PLAIN);
            values.push_bind(row.ns.clone()).push_bind(row.checkpoint_id.clone()).push_bind(row.task_id.clone());
            values.push_bind(hide_nul(&row.node).into_owned()).push_bind(row.outcome.as_str());
            values.push_bind(encoding::bytes(&row.detail.to_json()));
        });
        query.push(" ON CONFLICT (thread_key, started_at, run_id) DO NOTHING");
        query.build().execute(&mut write.conn).await.map_err(driver_error)?;
    }
    Ok(())
}

#[async_trait]
impl Executions for SqliteStorage {
    async fn list_executions(
        &self,
        scope: &Scope,
        thread: ThreadKey,
        filter: &ExecutionFilter,
        after: Option<ExecutionCursor>,
        limit: i64,
    ) -> Result<Vec<LoggedTask>> {
        let (scope, filter) = (*scope, filter.clone());
        self.read(move |conn| {
            Box::pin(async move {
                let rows = sqlx::query(
                    "SELECT e.thread_key, e.started_at, e.run_id, e.ended_at, e.step, e.attempt, e.codec, e.ns,
                            e.checkpoint_id, e.task_id, e.node, e.outcome, e.detail, r.actor
                     FROM task_log e
                     LEFT JOIN runs r ON r.thread_key = e.thread_key AND r.run_id = e.run_id
                     WHERE e.thread_key = $1 AND ($2 IS NULL OR e.tenant = $2)
                       AND ($3 IS NULL OR e.run_id = $3) AND ($4 IS NULL OR e.node = $4)
                       AND ($5 IS NULL OR e.ns = $5) AND ($6 IS NULL OR e.outcome = $6)
                       AND ($7 IS NULL OR e.step >= $7) AND ($8 IS NULL OR e.step <= $8)
                       AND ($9 IS NULL OR (e.started_at, e.run_id) < ($9, $10))
                     ORDER BY e.started_at DESC, e.run_id DESC LIMIT $11",
                )
                .bind(thread.0)
                .bind(scope.filter())
                .bind(filter.run_id)
                .bind(filter.node.as_deref().map(|node| hide_nul(node).into_owned()))
                .bind(filter.ns)
                .bind(filter.outcome.map(TaskOutcome::as_str))
                .bind(filter.min_step)
                .bind(filter.max_step)
                .bind(after.map(|after| after.started_at.0))
                .bind(after.map(|after| after.run_id))
                .bind(limit)
                .fetch_all(conn)
                .await
                .map_err(driver_error)?;
                rows.iter().map(execution_from).collect()
            })
        })
        .await
    }
}
