//! Claiming: the queue is a query.

use sqlx::sqlite::SqliteConnection;
use uuid::Uuid;

use super::super::rows::{cancel_from, get, run_from};
use super::super::threads::{delete_thread_rows, thread_by_key};
use super::super::{Write, micros, webhooks};
use super::run_columns;
use crate::model::{Scope, ThreadKey};
use crate::storage::encoding::{error_bytes, hide_nul};
use crate::storage::rows::driver_error;
use crate::storage::{Claim, ClaimedRun, Lease, Notice, Result, SUSPECT_FOR, StorageError, quarantined};

/// Runs that may be claimed at the time `$2`.
macro_rules! claimable {
    () => {
        "FROM runs r
         WHERE ($1 IS NULL OR r.tenant = $1)
           AND ((r.status = 'running' AND r.lease_until <= $2)
             OR (r.status = 'pending' AND r.run_at <= $2
                 -- One run at a time per thread, oldest first: wait for the running one and for older ones due.
                 AND NOT EXISTS (SELECT 1 FROM runs o
                                 WHERE o.thread_key = r.thread_key
                                   AND (o.status = 'running'
                                     OR (o.status = 'pending' AND o.run_at <= $2
                                         AND (o.created_at, o.run_id) < (r.created_at, r.run_id))))))"
    };
}

/// Whether a claim would find anything.
pub(super) async fn any_claimable(conn: &mut SqliteConnection, scope: Scope, now: i64) -> Result<bool> {
    let row = sqlx::query(concat!("SELECT EXISTS (SELECT 1 ", claimable!(), ") AS it"))
        .bind(scope.filter())
        .bind(now)
        .fetch_one(conn)
        .await
        .map_err(driver_error)?;
    get(&row, "it")
}

pub(super) async fn claim_runs(
    write: &mut Write,
    scope: Scope,
    claim: Claim,
    max_attempts: i32,
    limit: i64,
) -> Result<Vec<ClaimedRun>> {
    let mut has_suspect = has_suspect(write, &claim.worker, max_attempts).await?;
    let picked = sqlx::query(concat!(
        "SELECT r.thread_key, r.run_id, r.attempts, r.temporary, r.worker,
                (r.attempts > 0 AND r.attempts = $4 - 1 AND r.cancel_action IS NULL) AS is_last ",
        claimable!(),
        " AND NOT ($5 AND is_last) ORDER BY r.created_at, r.run_id LIMIT $3"
    ))
    .bind(scope.filter())
    .bind(write.now)
    .bind(limit)
    .bind(max_attempts)
    .bind(has_suspect)
    .fetch_all(&mut write.conn)
    .await
    .map_err(driver_error)?;
    let mut claimed = Vec::new();
    for row in picked {
        let (key, run_id): (Uuid, Uuid) = (get(&row, "thread_key")?, get(&row, "run_id")?);
        let attempts: i32 = get(&row, "attempts")?;
        if attempts >= max_attempts {
            let error = error_bytes(&quarantined(attempts, get::<Option<String>>(&row, "worker")?.as_deref()));
            tracing::error!(run.id = %run_id, attempts, "a run is set aside: every attempt ended without progress");
            quarantine(write, ThreadKey(key), run_id, &error, get(&row, "temporary")?).await?;
        } else {
            let is_last: bool = get(&row, "is_last")?;
            if is_last && has_suspect {
                continue;
            }
            has_suspect |= is_last;
            claimed.push(claim_one(write, scope, &claim, ThreadKey(key), run_id).await?);
        }
    }
    Ok(claimed)
}

/// Whether this worker executes a run on its last attempt; see [`SUSPECT_FOR`].
async fn has_suspect(write: &mut Write, worker: &str, max_attempts: i32) -> Result<bool> {
    let row = sqlx::query(
        "SELECT EXISTS (SELECT 1 FROM runs
                        WHERE status = 'running' AND worker = $1 AND attempts > 1 AND attempts = $2
                          AND cancel_action IS NULL AND lease_until > $3 AND updated_at > $3 - $4) AS it",
    )
    .bind(hide_nul(worker).into_owned())
    .bind(max_attempts)
    .bind(write.now)
    .bind(micros(SUSPECT_FOR))
    .fetch_one(&mut write.conn)
    .await
    .map_err(driver_error)?;
    get(&row, "it")
}

async fn claim_one(write: &mut Write, scope: Scope, claim: &Claim, key: ThreadKey, run_id: Uuid) -> Result<ClaimedRun> {
    sqlx::query(
        "UPDATE runs SET status = 'running', lease_epoch = lease_epoch + 1, lease_until = $3, attempts = attempts + 1,
                         worker = $4, updated_at = $5, started_at = COALESCE(started_at, $5)
         WHERE thread_key = $1 AND run_id = $2",
    )
    .bind(key.0)
    .bind(run_id)
    .bind(write.now + micros(claim.lease))
    .bind(hide_nul(&claim.worker).into_owned())
    .bind(write.now)
    .execute(&mut write.conn)
    .await
    .map_err(driver_error)?;
    let row = sqlx::query(concat!(
        "SELECT ",
        run_columns!(),
        " FROM runs r JOIN threads t ON t.thread_key = r.thread_key WHERE r.thread_key = $1 AND r.run_id = $2"
    ))
    .bind(key.0)
    .bind(run_id)
    .fetch_one(&mut write.conn)
    .await
    .map_err(driver_error)?;
    let thread = thread_by_key(&mut write.conn, &scope, key)
        .await?
        .ok_or_else(|| StorageError::Other(format!("run {run_id} has no thread")))?;
    Ok(ClaimedRun {
        lease: Lease { thread: key, run_id, epoch: get(&row, "lease_epoch")? },
        run: run_from(&row)?,
        thread,
        tenant: get(&row, "run_tenant")?,
        input_applied: get(&row, "input_applied")?,
        cancel: cancel_from(&row)?,
    })
}

/// Ends a run that was attempted too often without progress.
async fn quarantine(write: &mut Write, key: ThreadKey, run_id: Uuid, error: &[u8], temporary: bool) -> Result<()> {
    webhooks::ended(write, key, run_id, "error", Some(error)).await?;
    if temporary {
        delete_thread_rows(&mut write.conn, key).await?;
    } else {
        sqlx::query(
            "UPDATE runs SET status = 'error', error = $3, lease_until = 0, updated_at = $4, quarantined_at = $4
             WHERE thread_key = $1 AND run_id = $2",
        )
        .bind(key.0)
        .bind(run_id)
        .bind(error)
        .bind(write.now)
        .execute(&mut write.conn)
        .await
        .map_err(driver_error)?;
        sqlx::query(
            "UPDATE threads SET rest_status = 'error', error = $2, view = NULL, updated_at = $3,
                                state_updated_at = $3
             WHERE thread_key = $1",
        )
        .bind(key.0)
        .bind(error)
        .bind(write.now)
        .execute(&mut write.conn)
        .await
        .map_err(driver_error)?;
    }
    write.notices.push(Notice::RunEnded(run_id));
    // What waited behind it on the thread can go on.
    write.notices.push(Notice::RunPending);
    Ok(())
}
