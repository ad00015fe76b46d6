//! Cancelling: a flag on a running run, the end of a pending one.

use uuid::Uuid;

use super::super::rows::get;
use super::super::threads::delete_thread_rows;
use super::super::{Write, webhooks};
use super::delete::{delete_run_rows, move_head_back};
use crate::model::{CancelAction, RunId, Scope, ThreadKey};
use crate::storage::encoding::hide_nul;
use crate::storage::rows::driver_error;
use crate::storage::{CancelRequest, CancelTarget, Cancelled, Notice, Result};

/// Which of a thread's active runs.
pub(in crate::storage::sqlite) enum Selection {
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

/// Cancels active runs of one thread.
pub(in crate::storage::sqlite) async fn cancel_active(
    write: &mut Write,
    key: ThreadKey,
    selection: &Selection,
    request: &CancelRequest,
) -> Result<Vec<Cancelled>> {
    let rows = sqlx::query(
        "SELECT run_id, status, temporary, assistant_id FROM runs
         WHERE thread_key = $1 AND status IN ('pending', 'running') ORDER BY created_at, run_id",
    )
    .bind(key.0)
    .fetch_all(&mut write.conn)
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
            webhooks::ended(write, key, run_id, if is_rollback { "rollback" } else { "interrupted" }, None).await?;
        }
        cancelled.push(Cancelled { run_id, thread: key, running });
        if running || request.action == CancelAction::Interrupt {
            flag(write, key, run_id, request).await?;
        } else {
            delete_run_rows(&mut write.conn, key, run_id).await?;
            move_head_back(&mut write.conn, key, write.now).await?;
        }
        if !running && get::<bool>(&row, "temporary")? {
            delete_thread_rows(&mut write.conn, key).await?;
        }
        write.notices.push(if running { Notice::CancelRequested(run_id) } else { Notice::RunEnded(run_id) });
    }
    Ok(cancelled)
}

/// Sets the flag; a pending run ends with it. `rollback` replaces an earlier `interrupt`, otherwise the first stays.
async fn flag(write: &mut Write, key: ThreadKey, run_id: RunId, request: &CancelRequest) -> Result<()> {
    sqlx::query(
        "UPDATE runs SET
             cancel_actor = CASE WHEN cancel_action IS NULL OR (cancel_action = 'interrupt' AND $3 = 'rollback')
                                 THEN $4 ELSE cancel_actor END,
             cancel_reason = CASE WHEN cancel_action IS NULL OR (cancel_action = 'interrupt' AND $3 = 'rollback')
                                  THEN $5 ELSE cancel_reason END,
             cancel_action = CASE WHEN cancel_action = 'rollback' THEN cancel_action ELSE $3 END,
             status = CASE WHEN status = 'pending' THEN 'interrupted' ELSE status END,
             updated_at = $6
         WHERE thread_key = $1 AND run_id = $2",
    )
    .bind(key.0)
    .bind(run_id)
    .bind(request.action.as_str())
    .bind(request.actor.as_deref().map(|text| hide_nul(text).into_owned()))
    .bind(request.reason.as_deref().map(|text| hide_nul(text).into_owned()))
    .bind(write.now)
    .execute(&mut write.conn)
    .await
    .map_err(driver_error)?;
    Ok(())
}

pub(super) async fn cancel_runs(
    write: &mut Write,
    scope: Scope,
    target: CancelTarget,
    request: CancelRequest,
) -> Result<Vec<Cancelled>> {
    let (selection, assistant) = match target {
        CancelTarget::Runs { thread_id, run_ids } => {
            let key = thread_id.key(scope.tenant());
            return cancel_active(write, key, &Selection::Runs(run_ids), &request).await;
        }
        CancelTarget::Thread(thread_id) => {
            return cancel_active(write, thread_id.key(scope.tenant()), &Selection::All, &request).await;
        }
        CancelTarget::Status(statuses) => {
            (Selection::Status(statuses.iter().map(|status| status.as_str()).collect()), None)
        }
        CancelTarget::Assistant(id) => (Selection::Assistant(id), Some(id)),
    };
    let threads: Vec<(Uuid,)> = sqlx::query_as(
        "SELECT DISTINCT thread_key FROM runs
         WHERE status IN ('pending', 'running') AND ($1 IS NULL OR tenant = $1) AND ($2 IS NULL OR assistant_id = $2)
         ORDER BY thread_key",
    )
    .bind(scope.filter())
    .bind(assistant)
    .fetch_all(&mut write.conn)
    .await
    .map_err(driver_error)?;
    let mut cancelled = Vec::new();
    for (key,) in threads {
        cancelled.extend(cancel_active(write, ThreadKey(key), &selection, &request).await?);
    }
    Ok(cancelled)
}
