//! Sessions on SQLite.

use async_trait::async_trait;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use super::rows::{cancel_from, get, run_from, thread_from};
use super::runs::{Selection, cancel_active, run_columns};
use super::threads::{thread_by_key, thread_columns};
use super::{SqliteStorage, Write, clock};
use crate::model::{
    CancelAction, ClosedAs, RunId, RunStatus, Scope, Thread, ThreadId, ThreadKey, ThreadStatus, Timestamp,
};
use crate::storage::encoding::{hide_nul, show_nul};
use crate::storage::retention::ttl_of;
use crate::storage::rows::driver_error;
use crate::storage::sessions::{SHOWN_RUNS, SessionCounts, cancel_reason, define_session_rows};
use crate::storage::{CancelRequest, Close, CloseOutcome, Result, RunDetail, RunExplained, Session, Sessions};

/// The columns of a run that its queue knows.
macro_rules! queue_columns {
    () => {
        ", r.run_at, r.started_at, r.worker, r.lease_until, r.temporary"
    };
}

const SESSION: &str = concat!(
    "SELECT ",
    thread_columns!(),
    ", t.ttl, t.ttl_strategy, t.branch, $3 AS now,
           (SELECT COUNT(*) FROM checkpoints c WHERE c.thread_key = t.thread_key) AS checkpoints,
           (SELECT SUM(c.size_bytes) FROM checkpoints c WHERE c.thread_key = t.thread_key) AS bytes,
           (SELECT COUNT(*) FROM runs r WHERE r.thread_key = t.thread_key) AS runs,
           (SELECT COUNT(*) FROM runs r
            WHERE r.thread_key = t.thread_key AND r.status IN ('pending', 'running')) AS active_runs,
           (SELECT COUNT(*) FROM interrupts i WHERE i.thread_key = t.thread_key) AS interrupts,
           (SELECT COUNT(*) FROM events e WHERE e.thread_key = t.thread_key) AS events,
           (SELECT COUNT(*) FROM branches b WHERE b.thread_key = t.thread_key) AS branches,
           (SELECT COUNT(*) FROM crons k WHERE k.thread_key = t.thread_key) AS crons
    FROM threads t WHERE t.thread_key = $1 AND ($2 IS NULL OR t.tenant = $2)"
);

const ACTIVE: &str = concat!(
    "SELECT ",
    run_columns!(),
    queue_columns!(),
    " FROM runs r JOIN threads t ON t.thread_key = r.thread_key
      WHERE r.thread_key = $1 AND r.status IN ('pending', 'running') AND ($2 IS NULL OR r.tenant = $2)
      ORDER BY r.created_at, r.run_id LIMIT $3"
);

/// What goes first is what runs, then what was created before.
const EXPLAIN: &str = concat!(
    "WITH x AS (
        SELECT r.thread_key, r.run_id, r.status, r.created_at FROM run_lookup l
        JOIN runs r ON r.thread_key = l.thread_key AND r.run_id = l.run_id
        WHERE l.run_id = $1 AND ($2 IS NULL OR l.tenant = $2)
    ),
    ahead AS (
        SELECT o.run_id, o.status, o.created_at FROM x
        JOIN runs o ON o.thread_key = x.thread_key AND o.run_id <> x.run_id
        WHERE x.status = 'pending' AND o.status IN ('pending', 'running')
          AND (o.status = 'running' OR (o.created_at, o.run_id) < (x.created_at, x.run_id))
    ),
    first AS (SELECT run_id, status FROM ahead ORDER BY status DESC, created_at, run_id LIMIT 1)
    SELECT ",
    run_columns!(),
    queue_columns!(),
    ", (SELECT run_id FROM first) AS behind, (SELECT status FROM first) AS behind_status,
       (SELECT COUNT(*) FROM ahead) AS ahead, $3 AS now
      FROM x JOIN runs r ON r.thread_key = x.thread_key AND r.run_id = x.run_id
      JOIN threads t ON t.thread_key = x.thread_key"
);

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

define_session_rows!(SqliteRow);

async fn find(conn: &mut SqliteConnection, scope: Scope, key: ThreadKey) -> Result<Option<Session>> {
    let row = sqlx::query(SESSION)
        .bind(key.0)
        .bind(scope.filter())
        .bind(clock())
        .fetch_optional(&mut *conn)
        .await
        .map_err(driver_error)?;
    let Some(row) = row else { return Ok(None) };
    let active = sqlx::query(ACTIVE)
        .bind(key.0)
        .bind(scope.filter())
        .bind(SHOWN_RUNS)
        .fetch_all(conn)
        .await
        .map_err(driver_error)?;
    let active = active.iter().map(detail_from).collect::<Result<Vec<_>>>()?;
    session_from(&row, active).map(Some)
}

async fn explain(conn: &mut SqliteConnection, scope: Scope, run_id: RunId) -> Result<Option<RunExplained>> {
    let row = sqlx::query(EXPLAIN)
        .bind(run_id)
        .bind(scope.filter())
        .bind(clock())
        .fetch_optional(conn)
        .await
        .map_err(driver_error)?;
    row.as_ref().map(explained_from).transpose()
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

    async fn find_session(&self, scope: &Scope, id: &ThreadId) -> Result<Option<Session>> {
        let (scope, key) = (*scope, id.key(scope.tenant()));
        self.read(move |conn| Box::pin(find(conn, scope, key))).await
    }

    async fn explain_run(&self, scope: &Scope, run_id: RunId) -> Result<Option<RunExplained>> {
        let scope = *scope;
        self.read(move |conn| Box::pin(explain(conn, scope, run_id))).await
    }
}
