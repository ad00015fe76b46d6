//! Deleting runs with what they wrote: after they ended, or to roll them back.

use sqlx::sqlite::SqliteConnection;

use super::super::branches::drop_lost_names;
use super::super::rows::get;
use super::super::threads::{delete_thread_rows, head_status};
use super::super::{Write, webhooks};
use super::commit::fence;
use crate::model::{RunId, Scope, ThreadKey, ThreadStatus};
use crate::storage::encoding::error_bytes;
use crate::storage::rolled_back;
use crate::storage::rows::driver_error;
use crate::storage::{CommitOutcome, Lease, Notice, Result};

/// Deletes a run, its checkpoints, task writes, executions, log rows and events. What other checkpoints may share stays, to go when
/// the thread is pruned: payloads, and log rows once somebody else wrote checkpoints after the run's first one. So do
/// effects of tasks on other checkpoints or on those that others go on from, which happened all the same, and the thread's share of the usage.
pub(super) async fn delete_run_rows(conn: &mut SqliteConnection, key: ThreadKey, run_id: RunId) -> Result<()> {
    for statement in [
        "DELETE FROM channel_log WHERE thread_key = $1 AND run_id = $2
           AND NOT EXISTS (SELECT 1 FROM checkpoints c
                           WHERE c.thread_key = $1 AND c.run_id IS NOT $2
                             AND c.checkpoint_id > (SELECT MIN(o.checkpoint_id) FROM checkpoints o
                                                    WHERE o.thread_key = $1 AND o.run_id = $2))",
        // Writes of others on a checkpoint that goes, too.
        "DELETE FROM task_writes WHERE thread_key = $1
           AND (run_id = $2 OR (ns, checkpoint_id) IN
                (SELECT ns, checkpoint_id FROM checkpoints WHERE thread_key = $1 AND run_id = $2))",
        "DELETE FROM effects WHERE thread_key = $1
           AND (ns, checkpoint_id) IN (SELECT ns, checkpoint_id FROM checkpoints WHERE thread_key = $1 AND run_id = $2)
           -- A checkpoint that a migration made of it goes on with the same tasks.
           AND NOT EXISTS (SELECT 1 FROM checkpoints c
                           WHERE c.thread_key = $1 AND c.ns = effects.ns AND c.parent_id = effects.checkpoint_id
                             AND c.run_id IS NOT $2)",
        "DELETE FROM task_log WHERE thread_key = $1 AND run_id = $2",
        "DELETE FROM usage_totals WHERE thread_key = $1 AND run_id = $2",
        "DELETE FROM checkpoints WHERE thread_key = $1 AND run_id = $2",
        "DELETE FROM events WHERE thread_key = $1 AND run_id = $2",
        "DELETE FROM interrupts WHERE thread_key = $1 AND run_id = $2",
        // The answer is taken back with the run that brought it; so is going on without one.
        "UPDATE interrupts SET answer = NULL, answered_at = NULL, answered_by = NULL, answered_run = NULL,
                               withdrawn_run = NULL
         WHERE thread_key = $1 AND (answered_run = $2 OR withdrawn_run = $2)",
        "DELETE FROM run_lookup WHERE run_id = $2 AND thread_key = $1",
        "DELETE FROM runs WHERE thread_key = $1 AND run_id = $2",
    ] {
        sqlx::query(statement).bind(key.0).bind(run_id).execute(&mut *conn).await.map_err(driver_error)?;
    }
    Ok(())
}

/// Moves the head to the newest root checkpoint left, if it is gone; then the thread shows and rests at what that says.
/// Names go with their checkpoints.
pub(super) async fn move_head_back(conn: &mut SqliteConnection, key: ThreadKey, now: i64) -> Result<()> {
    let done = sqlx::query(
        "UPDATE threads SET
             head = (SELECT CASE WHEN left_over.newest > threads.moved_past THEN left_over.newest
                                 -- Nothing is left of what followed the move of the head: back to where it was moved.
                                 ELSE COALESCE((SELECT c.checkpoint_id FROM checkpoints c
                                                WHERE c.thread_key = $1 AND c.ns = ''
                                                  AND c.checkpoint_id = threads.moved_to), left_over.newest) END
                     FROM (SELECT MAX(c.checkpoint_id) AS newest FROM checkpoints c
                           WHERE c.thread_key = $1 AND c.ns = '') AS left_over),
             view = NULL, updated_at = $2, state_updated_at = $2
         WHERE thread_key = $1 AND head IS NOT NULL
           AND NOT EXISTS (SELECT 1 FROM checkpoints c
                           WHERE c.thread_key = $1 AND c.ns = '' AND c.checkpoint_id = threads.head)",
    )
    .bind(key.0)
    .bind(now)
    .execute(&mut *conn)
    .await
    .map_err(driver_error)?;
    if done.rows_affected() == 1 {
        let status = head_status(conn, key).await?;
        sqlx::query("UPDATE threads SET rest_status = $2, error = NULL WHERE thread_key = $1")
            .bind(key.0)
            .bind(status)
            .execute(&mut *conn)
            .await
            .map_err(driver_error)?;
    }
    drop_lost_names(conn, key).await
}

pub(super) async fn rollback_run(
    write: &mut Write,
    scope: Scope,
    lease: Lease,
    thread_status: ThreadStatus,
) -> Result<CommitOutcome> {
    let Some(held) = fence(write, scope, lease).await? else { return Ok(CommitOutcome::LeaseLost) };
    webhooks::ended(write, lease.thread, lease.run_id, "rollback", None).await?;
    if held.temporary {
        delete_thread_rows(&mut write.conn, lease.thread).await?;
    } else {
        delete_run_rows(&mut write.conn, lease.thread, lease.run_id).await?;
        move_head_back(&mut write.conn, lease.thread, write.now).await?;
        sqlx::query(
            "UPDATE threads SET rest_status = $2, error = $4, view = NULL, updated_at = $3 WHERE thread_key = $1",
        )
        .bind(lease.thread.0)
        .bind(thread_status.as_str())
        .bind(write.now)
        .bind(error_bytes(&rolled_back()))
        .execute(&mut write.conn)
        .await
        .map_err(driver_error)?;
    }
    write.notices.push(Notice::RunEnded(lease.run_id));
    write.notices.push(Notice::RunPending);
    Ok(CommitOutcome::Committed)
}

pub(super) async fn delete_run(write: &mut Write, key: ThreadKey, run_id: RunId) -> Result<Option<bool>> {
    let row = sqlx::query("SELECT status FROM runs WHERE thread_key = $1 AND run_id = $2")
        .bind(key.0)
        .bind(run_id)
        .fetch_optional(&mut write.conn)
        .await
        .map_err(driver_error)?;
    let Some(row) = row else { return Ok(None) };
    let status: String = get(&row, "status")?;
    if matches!(status.as_str(), "pending" | "running") {
        return Ok(Some(false));
    }
    delete_run_rows(&mut write.conn, key, run_id).await?;
    move_head_back(&mut write.conn, key, write.now).await?;
    sqlx::query("UPDATE threads SET view = NULL WHERE thread_key = $1 AND view IS NOT NULL")
        .bind(key.0)
        .execute(&mut write.conn)
        .await
        .map_err(driver_error)?;
    write.notices.push(Notice::RunEnded(run_id));
    Ok(Some(true))
}
