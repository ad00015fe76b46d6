//! Sessions on Postgres.

use async_trait::async_trait;
use sqlx::postgres::PgConnection;

use super::runs::{Selection, cancel_active};
use super::threads::{lock_thread, thread_by_key};
use super::{PostgresStorage, notify, now};
use crate::model::{CancelAction, ClosedAs, Scope, Thread, ThreadId, ThreadKey, ThreadStatus};
use crate::storage::encoding::hide_nul;
use crate::storage::rows::driver_error;
use crate::storage::sessions::cancel_reason;
use crate::storage::{CancelRequest, Close, CloseOutcome, Notice, Result, Sessions};

/// Closes a thread and says what to tell of it.
async fn close(conn: &mut PgConnection, scope: &Scope, key: ThreadKey, close: &Close) -> Result<CloseOutcome> {
    if !lock_thread(conn, key).await? {
        return Ok(CloseOutcome::Missing);
    }
    // A second statement: its snapshot is younger than the lock.
    let Some(thread) = thread_by_key(conn, scope, key).await? else { return Ok(CloseOutcome::Missing) };
    if let Some(closed) = &thread.closed {
        if closed.how == close.how {
            return Ok(CloseOutcome::Closed { thread: Box::new(thread), cancelled: Vec::new() });
        }
        if closed.how == ClosedAs::Archived {
            return Ok(CloseOutcome::Archived(closed.clone()));
        }
    }
    let is_busy = thread.status == ThreadStatus::Busy;
    if is_busy && !close.cancels {
        return Ok(CloseOutcome::Busy);
    }
    let mut cancelled = Vec::new();
    if is_busy {
        let reason = Some(cancel_reason(close));
        let request = CancelRequest { action: CancelAction::Interrupt, actor: close.actor.clone(), reason };
        cancelled = cancel_active(conn, key, &Selection::All, &request).await?;
    }
    // A larger revision: a run that is being inserted notices.
    sqlx::query(concat!(
        "UPDATE threads SET closed = $2, closed_at = clock.now, closed_by = $3, closed_reason = $4,
                            ttl = COALESCE($5, ttl), ttl_strategy = COALESCE($6, ttl_strategy),
                            updated_at = clock.now, revision = revision + 1
         FROM (SELECT ",
        now!(),
        " AS now) AS clock WHERE thread_key = $1"
    ))
    .bind(key.0)
    .bind(close.how.as_str())
    .bind(close.actor.as_deref().map(|text| hide_nul(text).into_owned()))
    .bind(close.reason.as_deref().map(|text| hide_nul(text).into_owned()))
    .bind(close.ttl.map(|ttl| ttl.micros))
    .bind(close.ttl.map(|ttl| ttl.strategy.as_str()))
    .execute(&mut *conn)
    .await
    .map_err(driver_error)?;
    notify(conn, &notices(&cancelled)).await?;
    Ok(match thread_by_key(conn, scope, key).await? {
        Some(thread) => CloseOutcome::Closed { thread: Box::new(thread), cancelled },
        None => CloseOutcome::Missing,
    })
}

fn notices(cancelled: &[crate::storage::Cancelled]) -> Vec<Notice> {
    let notice = |run: &crate::storage::Cancelled| {
        if run.running { Notice::CancelRequested(run.run_id) } else { Notice::RunEnded(run.run_id) }
    };
    cancelled.iter().map(notice).collect()
}

#[async_trait]
impl Sessions for PostgresStorage {
    async fn close_thread(&self, scope: &Scope, id: &ThreadId, how: &Close) -> Result<CloseOutcome> {
        let mut transaction = self.begin().await?;
        let outcome = close(&mut transaction, scope, id.key(scope.tenant()), how).await?;
        if matches!(outcome, CloseOutcome::Closed { .. } | CloseOutcome::Missing) {
            self.commit(transaction).await?;
        }
        if let CloseOutcome::Closed { cancelled, .. } = &outcome {
            self.tell(notices(cancelled));
        }
        Ok(outcome)
    }

    async fn reopen_thread(&self, scope: &Scope, id: &ThreadId) -> Result<Option<Thread>> {
        let key = id.key(scope.tenant());
        let mut transaction = self.begin().await?;
        if !lock_thread(&mut transaction, key).await? {
            return Ok(None);
        }
        sqlx::query(concat!(
            "UPDATE threads SET closed = NULL, closed_at = NULL, closed_by = NULL, closed_reason = NULL,
                                updated_at = clock.now, revision = revision + 1
             FROM (SELECT ",
            now!(),
            " AS now) AS clock
             WHERE thread_key = $1 AND closed IS NOT NULL AND ($2::uuid IS NULL OR tenant = $2)"
        ))
        .bind(key.0)
        .bind(scope.filter())
        .execute(&mut *transaction)
        .await
        .map_err(driver_error)?;
        let thread = thread_by_key(&mut transaction, scope, key).await?;
        self.commit(transaction).await?;
        Ok(thread)
    }
}
