//! Deleting runs with what they wrote: after they ended, or to roll them back.

use sqlx::postgres::PgConnection;

use super::super::branches::drop_lost_names;
use super::super::rows::get;
use super::super::threads::{delete_thread_rows, head_status, lock_thread};
use super::super::{PostgresStorage, notify, now, webhooks};
use crate::model::{RunId, Scope, ThreadId, ThreadKey, ThreadStatus};
use crate::storage::encoding::error_bytes;
use crate::storage::rolled_back;
use crate::storage::rows::driver_error;
use crate::storage::{CommitOutcome, Lease, Notice, Result};

/// Deletes a run, its checkpoints, task writes, executions, log rows and events. What other checkpoints may share stays, to go when
/// the thread is pruned: payloads, and log rows once somebody else wrote checkpoints after the run's first one. So do
/// effects of tasks on other checkpoints or on those that others go on from, which happened all the same, and the thread's share of the usage.
/// The caller has locked the thread.
pub(super) async fn delete_run_rows(conn: &mut PgConnection, key: ThreadKey, run_id: RunId) -> Result<()> {
    sqlx::query(
        "WITH drop_checkpoints AS (
             DELETE FROM checkpoints WHERE thread_key = $1 AND run_id = $2 RETURNING ns, checkpoint_id
         ),
         drop_task_writes AS (
             -- Writes of others on a checkpoint that goes, too.
             DELETE FROM task_writes WHERE thread_key = $1
               AND (run_id = $2 OR (ns, checkpoint_id) IN (SELECT ns, checkpoint_id FROM drop_checkpoints))
         ),
         drop_effects AS (
             DELETE FROM effects e WHERE e.thread_key = $1
               AND (e.ns, e.checkpoint_id) IN (SELECT ns, checkpoint_id FROM drop_checkpoints)
               -- A checkpoint that a migration made of it goes on with the same tasks.
               AND NOT EXISTS (SELECT 1 FROM checkpoints c
                               WHERE c.thread_key = $1 AND c.ns = e.ns AND c.parent_id = e.checkpoint_id
                                 AND c.run_id IS DISTINCT FROM $2)
         ),
         drop_executions AS (DELETE FROM task_log WHERE thread_key = $1 AND run_id = $2),
         drop_usage AS (DELETE FROM usage_totals WHERE thread_key = $1 AND run_id = $2),
         drop_log AS (
             DELETE FROM channel_log WHERE thread_key = $1 AND run_id = $2
               AND NOT EXISTS (SELECT 1 FROM checkpoints c
                               WHERE c.thread_key = $1 AND c.run_id IS DISTINCT FROM $2
                                 AND c.checkpoint_id > (SELECT MIN(o.checkpoint_id) FROM checkpoints o
                                                        WHERE o.thread_key = $1 AND o.run_id = $2))
         ),
         drop_events AS (DELETE FROM events WHERE thread_key = $1 AND run_id = $2),
         drop_interrupts AS (DELETE FROM interrupts WHERE thread_key = $1 AND run_id = $2),
         open_interrupts AS (
             -- The answer is taken back with the run that brought it; so is going on without one.
             UPDATE interrupts SET answer = NULL, answered_at = NULL, answered_by = NULL, answered_run = NULL,
                                   withdrawn_run = NULL
             WHERE thread_key = $1 AND run_id <> $2 AND (answered_run = $2 OR withdrawn_run = $2)
         ),
         drop_lookup AS (DELETE FROM run_lookup WHERE run_id = $2 AND thread_key = $1)
         DELETE FROM runs WHERE thread_key = $1 AND run_id = $2",
    )
    .bind(key.0)
    .bind(run_id)
    .execute(conn)
    .await
    .map_err(driver_error)?;
    Ok(())
}

/// Moves the head to the newest root checkpoint left, if it is gone; then the thread shows and rests at what that says.
/// Names go with their checkpoints.
pub(super) async fn move_head_back(conn: &mut PgConnection, key: ThreadKey) -> Result<()> {
    let done = sqlx::query(concat!(
        "UPDATE threads t SET
             head = (SELECT CASE WHEN left_over.newest > t.moved_past THEN left_over.newest
                                 -- Nothing is left of what followed the move of the head: back to where it was moved.
                                 ELSE COALESCE((SELECT c.checkpoint_id FROM checkpoints c
                                                WHERE c.thread_key = $1 AND c.ns = ''
                                                  AND c.checkpoint_id = t.moved_to), left_over.newest) END
                     FROM (SELECT MAX(c.checkpoint_id) AS newest FROM checkpoints c
                           WHERE c.thread_key = $1 AND c.ns = '') AS left_over),
             view = NULL, updated_at = clock.now, state_updated_at = clock.now
         FROM (SELECT ",
        now!(),
        " AS now) AS clock
         WHERE t.thread_key = $1 AND t.head IS NOT NULL
           AND NOT EXISTS (SELECT 1 FROM checkpoints c
                           WHERE c.thread_key = $1 AND c.ns = '' AND c.checkpoint_id = t.head)"
    ))
    .bind(key.0)
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

impl PostgresStorage {
    pub(super) async fn roll_back(
        &self,
        scope: &Scope,
        lease: &Lease,
        thread_status: ThreadStatus,
    ) -> Result<CommitOutcome> {
        let mut transaction = self.begin().await?;
        if !lock_thread(&mut transaction, lease.thread).await? {
            return Ok(CommitOutcome::LeaseLost);
        }
        let row = sqlx::query(
            "SELECT temporary FROM runs
             WHERE thread_key = $1 AND run_id = $2 AND status = 'running' AND lease_epoch = $3
               AND ($4::uuid IS NULL OR tenant = $4)
             FOR UPDATE",
        )
        .bind(lease.thread.0)
        .bind(lease.run_id)
        .bind(lease.epoch)
        .bind(scope.filter())
        .fetch_optional(&mut *transaction)
        .await
        .map_err(driver_error)?;
        let Some(row) = row else { return Ok(CommitOutcome::LeaseLost) };
        webhooks::ended(&mut transaction, lease.thread, lease.run_id, "rollback", None).await?;
        if get(&row, "temporary")? {
            delete_thread_rows(&mut transaction, lease.thread).await?;
        } else {
            delete_run_rows(&mut transaction, lease.thread, lease.run_id).await?;
            move_head_back(&mut transaction, lease.thread).await?;
            sqlx::query(concat!(
                "UPDATE threads SET rest_status = $2, error = $3, view = NULL, updated_at = ",
                now!(),
                " WHERE thread_key = $1"
            ))
            .bind(lease.thread.0)
            .bind(thread_status.as_str())
            .bind(error_bytes(&rolled_back()))
            .execute(&mut *transaction)
            .await
            .map_err(driver_error)?;
        }
        let notices = [Notice::RunEnded(lease.run_id), Notice::RunPending];
        notify(&mut transaction, &notices).await?;
        self.commit(transaction).await?;
        self.tell(notices);
        Ok(CommitOutcome::Committed)
    }

    pub(super) async fn delete_ended_run(
        &self,
        scope: &Scope,
        thread_id: &ThreadId,
        run_id: RunId,
    ) -> Result<Option<bool>> {
        let key = thread_id.key(scope.tenant());
        let mut transaction = self.begin().await?;
        if !lock_thread(&mut transaction, key).await? {
            return Ok(None);
        }
        let row = sqlx::query("SELECT status FROM runs WHERE thread_key = $1 AND run_id = $2 FOR UPDATE")
            .bind(key.0)
            .bind(run_id)
            .fetch_optional(&mut *transaction)
            .await
            .map_err(driver_error)?;
        let Some(row) = row else { return Ok(None) };
        let status: String = get(&row, "status")?;
        if matches!(status.as_str(), "pending" | "running") {
            return Ok(Some(false));
        }
        delete_run_rows(&mut transaction, key, run_id).await?;
        move_head_back(&mut transaction, key).await?;
        sqlx::query("UPDATE threads SET view = NULL WHERE thread_key = $1 AND view IS NOT NULL")
            .bind(key.0)
            .execute(&mut *transaction)
            .await
            .map_err(driver_error)?;
        notify(&mut transaction, &[Notice::RunEnded(run_id)]).await?;
        self.commit(transaction).await?;
        self.tell([Notice::RunEnded(run_id)]);
        Ok(Some(true))
    }
}
