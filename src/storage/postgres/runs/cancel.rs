//! Cancelling: a flag on a running run, the end of a pending one.

use sqlx::postgres::PgConnection;
use uuid::Uuid;

use super::super::rows::get;
use super::super::threads::{delete_thread_rows, lock_thread};
use super::super::{PostgresStorage, notify, now, webhooks};
use super::delete::{delete_run_rows, move_head_back};
use crate::model::{CancelAction, RunId, Scope, ThreadKey};
use crate::storage::encoding::hide_nul;
use crate::storage::rows::driver_error;
use crate::storage::{CancelRequest, CancelTarget, Cancelled, Notice, Result};

/// Which of a thread's active runs.
pub(in crate::storage::postgres) enum Selection {
    All,
    Runs(Vec<RunId>),
    Status(Vec<&'static str>),
    Assistant(Uuid),
}

impl Selection {
    fn holds(&self, run_id: RunId, status: &str, assistant_id: Uuid) -> bool {
        match self {
            Selection::All => true,
            Selection::Runs(ids) => ids.contains(&run_id),
            Selection::Status(statuses) => statuses.contains(&status),
            Selection::Assistant(id) => *id == assistant_id,
        }
    }
}

/// Cancels active runs of one thread, which the caller has locked.
pub(in crate::storage::postgres) async fn cancel_active(
    conn: &mut PgConnection,
    key: ThreadKey,
    selection: &Selection,
    request: &CancelRequest,
) -> Result<Vec<Cancelled>> {
    // Locked, since claims and renewals lock runs without their thread.
    let rows = sqlx::query(
        "SELECT run_id, status, temporary, assistant_id FROM runs
         WHERE thread_key = $1 AND status IN ('pending', 'running') ORDER BY run_id FOR UPDATE",
    )
    .bind(key.0)
    .fetch_all(&mut *conn)
    .await
    .map_err(driver_error)?;
    let mut cancelled = Vec::new();
    for row in rows {
        let (run_id, status): (Uuid, String) = (get(&row, "run_id")?, get(&row, "status")?);
        if !selection.holds(run_id, &status, get(&row, "assistant_id")?) {
            continue;
        }
        let running = status == "running";
        if !running {
            let is_rollback = request.action == CancelAction::Rollback;
            webhooks::ended(conn, key, run_id, if is_rollback { "rollback" } else { "interrupted" }, None).await?;
        }
        cancelled.push(Cancelled { run_id, thread: key, running });
        if running || request.action == CancelAction::Interrupt {
            flag(conn, key, run_id, request).await?;
        } else {
            delete_run_rows(conn, key, run_id).await?;
            move_head_back(conn, key).await?;
        }
        if !running && get::<bool>(&row, "temporary")? {
            delete_thread_rows(conn, key).await?;
        }
    }
    Ok(cancelled)
}

/// Sets the flag; a pending run ends with it. `rollback` replaces an earlier `interrupt`, otherwise the first stays.
async fn flag(conn: &mut PgConnection, key: ThreadKey, run_id: RunId, request: &CancelRequest) -> Result<()> {
    sqlx::query(concat!(
        "UPDATE runs SET
             cancel_actor = CASE WHEN cancel_action IS NULL OR (cancel_action = 'interrupt' AND $3 = 'rollback')
                                 THEN $4 ELSE cancel_actor END,
             cancel_reason = CASE WHEN cancel_action IS NULL OR (cancel_action = 'interrupt' AND $3 = 'rollback')
                                  THEN $5 ELSE cancel_reason END,
             cancel_action = CASE WHEN cancel_action = 'rollback' THEN cancel_action ELSE $3 END,
             status = CASE WHEN status = 'pending' THEN 'interrupted' ELSE status END,
             updated_at = ",
        now!(),
        " WHERE thread_key = $1 AND run_id = $2"
    ))
    .bind(key.0)
    .bind(run_id)
    .bind(request.action.as_str())
    .bind(request.actor.as_deref().map(|text| hide_nul(text).into_owned()))
    .bind(request.reason.as_deref().map(|text| hide_nul(text).into_owned()))
    .execute(conn)
    .await
    .map_err(driver_error)?;
    Ok(())
}

impl PostgresStorage {
    pub(super) async fn cancel(
        &self,
        scope: &Scope,
        target: &CancelTarget,
        request: &CancelRequest,
    ) -> Result<Vec<Cancelled>> {
        let (threads, selection) = match target {
            CancelTarget::Runs { thread_id, run_ids } => {
                (vec![thread_id.key(scope.tenant())], Selection::Runs(run_ids.clone()))
            }
            CancelTarget::Thread(thread_id) => (vec![thread_id.key(scope.tenant())], Selection::All),
            CancelTarget::Status(statuses) => {
                let statuses = statuses.iter().map(|status| status.as_str()).collect();
                (self.threads_with_active_runs(scope, None).await?, Selection::Status(statuses))
            }
            CancelTarget::Assistant(id) => {
                (self.threads_with_active_runs(scope, Some(*id)).await?, Selection::Assistant(*id))
            }
        };
        // One transaction: all of it or none. Threads are locked in the order of their keys, as everywhere.
        let mut transaction = self.begin().await?;
        let mut there = Vec::with_capacity(threads.len());
        for key in threads {
            if lock_thread(&mut transaction, key).await? {
                there.push(key);
            }
        }
        let mut cancelled = Vec::new();
        for key in there {
            cancelled.extend(cancel_active(&mut transaction, key, &selection, request).await?);
        }
        if cancelled.is_empty() {
            return Ok(cancelled);
        }
        let notices: Vec<Notice> = cancelled
            .iter()
            .map(|run| if run.running { Notice::CancelRequested(run.run_id) } else { Notice::RunEnded(run.run_id) })
            .collect();
        notify(&mut transaction, &notices).await?;
        self.commit(transaction).await?;
        self.tell(notices);
        Ok(cancelled)
    }

    async fn threads_with_active_runs(&self, scope: &Scope, assistant: Option<Uuid>) -> Result<Vec<ThreadKey>> {
        let mut session = self.session().await?;
        let rows: Vec<(Uuid,)> = sqlx::query_as(
            "SELECT DISTINCT thread_key FROM runs
             WHERE status IN ('pending', 'running') AND ($1::uuid IS NULL OR tenant = $1)
               AND ($2::uuid IS NULL OR assistant_id = $2)
             ORDER BY thread_key",
        )
        .bind(scope.filter())
        .bind(assistant)
        .fetch_all(session.conn())
        .await
        .map_err(driver_error)?;
        session.finish().await?;
        Ok(rows.into_iter().map(|(key,)| ThreadKey(key)).collect())
    }
}
