//! Sessions on SQLite.

use async_trait::async_trait;

use super::runs::{Selection, cancel_active};
use super::threads::thread_by_key;
use super::{SqliteStorage, Write};
use crate::model::{CancelAction, ClosedAs, Scope, Thread, ThreadId, ThreadKey, ThreadStatus};
use crate::storage::encoding::hide_nul;
use crate::storage::rows::driver_error;
use crate::storage::sessions::cancel_reason;
use crate::storage::{CancelRequest, Close, CloseOutcome, Result, Sessions};

async fn close(write: &mut Write, scope: Scope, key: ThreadKey, close: Close) -> Result<CloseOutcome> {
    let Some(thread) = thread_by_key(&mut write.conn, &scope, key).await? else { return Ok(CloseOutcome::Missing) };
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
        let reason = Some(cancel_reason(&close));
        let request = CancelRequest { action: CancelAction::Interrupt, actor: close.actor.clone(), reason };
        cancelled = cancel_active(write, key, &Selection::All, &request).await?;
    }
    sqlx::query(
        "UPDATE threads SET closed = $2, closed_at = $7, closed_by = $3, closed_reason = $4, ttl = COALESCE($5, ttl),
                            ttl_strategy = COALESCE($6, ttl_strategy), updated_at = $7, revision = revision + 1
         WHERE thread_key = $1",
    )
    .bind(key.0)
    .bind(close.how.as_str())
    .bind(close.actor.as_deref().map(|text| hide_nul(text).into_owned()))
    .bind(close.reason.as_deref().map(|text| hide_nul(text).into_owned()))
    .bind(close.ttl.map(|ttl| ttl.micros))
    .bind(close.ttl.map(|ttl| ttl.strategy.as_str()))
    .bind(write.now)
    .execute(&mut write.conn)
    .await
    .map_err(driver_error)?;
    Ok(match thread_by_key(&mut write.conn, &scope, key).await? {
        Some(thread) => CloseOutcome::Closed { thread: Box::new(thread), cancelled },
        None => CloseOutcome::Missing,
    })
}

async fn reopen(write: &mut Write, scope: Scope, key: ThreadKey) -> Result<Option<Thread>> {
    sqlx::query(
        "UPDATE threads SET closed = NULL, closed_at = NULL, closed_by = NULL, closed_reason = NULL, updated_at = $3,
                            revision = revision + 1
         WHERE thread_key = $1 AND closed IS NOT NULL AND ($2 IS NULL OR tenant = $2)",
    )
    .bind(key.0)
    .bind(scope.filter())
    .bind(write.now)
    .execute(&mut write.conn)
    .await
    .map_err(driver_error)?;
    thread_by_key(&mut write.conn, &scope, key).await
}

#[async_trait]
impl Sessions for SqliteStorage {
    async fn close_thread(&self, scope: &Scope, id: &ThreadId, how: &Close) -> Result<CloseOutcome> {
        let (scope, key, how) = (*scope, id.key(scope.tenant()), how.clone());
        let is_done = |outcome: &CloseOutcome| matches!(outcome, CloseOutcome::Closed { .. } | CloseOutcome::Missing);
        self.write_if(is_done, move |write| Box::pin(close(write, scope, key, how))).await
    }

    async fn reopen_thread(&self, scope: &Scope, id: &ThreadId) -> Result<Option<Thread>> {
        let (scope, key) = (*scope, id.key(scope.tenant()));
        self.write_if(Option::is_some, move |write| Box::pin(reopen(write, scope, key))).await
    }
}
