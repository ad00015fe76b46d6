//! Sessions on Postgres.

use async_trait::async_trait;
use sqlx::postgres::{PgConnection, PgRow};

use super::rows::{cancel_from, get, run_from, thread_from};
use super::runs::{Selection, cancel_active, run_columns, run_usage};
use super::threads::{lock_thread, thread_by_key, thread_columns};
use super::{PostgresStorage, notify, now, read};
use crate::model::{
    CancelAction, ClosedAs, RunId, RunStatus, Scope, Thread, ThreadId, ThreadKey, ThreadStatus, Timestamp,
};
use crate::storage::encoding::{hide_nul, show_nul};
use crate::storage::retention::ttl_of;
use crate::storage::rows::driver_error;
use crate::storage::sessions::{SHOWN_RUNS, SessionCounts, cancel_reason, define_session_rows};
use crate::storage::{CancelRequest, Close, CloseOutcome, Notice, Result, RunDetail, RunExplained, Session, Sessions};

/// The columns of a run that its queue knows.
macro_rules! queue_columns {
    () => {
        concat!(", r.run_at, r.started_at, r.worker, r.lease_until, r.temporary", run_usage!())
    };
}

const SESSION: &str = concat!(
    "SELECT ",
    thread_columns!(),
    ", t.ttl, t.ttl_strategy, t.branch, ",
    now!(),
    " AS now,
           (SELECT COUNT(*) FROM checkpoints c WHERE c.thread_key = t.thread_key) AS checkpoints,
           (SELECT SUM(c.size_bytes)::bigint FROM checkpoints c WHERE c.thread_key = t.thread_key) AS bytes,
           (SELECT COUNT(*) FROM runs r WHERE r.thread_key = t.thread_key) AS runs,
           (SELECT COUNT(*) FROM runs r
            WHERE r.thread_key = t.thread_key AND r.status IN ('pending', 'running')) AS active_runs,
           (SELECT COUNT(*) FROM interrupts i WHERE i.thread_key = t.thread_key) AS interrupts,
           (SELECT COUNT(*) FROM events e WHERE e.thread_key = t.thread_key) AS events,
           (SELECT COUNT(*) FROM branches b WHERE b.thread_key = t.thread_key) AS branches,
           (SELECT COUNT(*) FROM crons k WHERE k.thread_key = t.thread_key) AS crons
    FROM threads t WHERE t.thread_key = $1 AND ($2::uuid IS NULL OR t.tenant = $2)"
);

const ACTIVE: &str = concat!(
    "SELECT ",
    run_columns!(),
    queue_columns!(),
    " FROM runs r JOIN threads t ON t.thread_key = r.thread_key
      WHERE r.thread_key = $1 AND r.status IN ('pending', 'running') AND ($2::uuid IS NULL OR r.tenant = $2)
      ORDER BY r.created_at, r.run_id LIMIT $3"
);

/// What goes first is what runs, then what was created before.
const EXPLAIN: &str = concat!(
    "WITH x AS (
        SELECT r.thread_key, r.run_id, r.status, r.created_at FROM run_lookup l
        JOIN runs r ON r.thread_key = l.thread_key AND r.run_id = l.run_id
        WHERE l.run_id = $1 AND ($2::uuid IS NULL OR l.tenant = $2)
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
       (SELECT COUNT(*) FROM ahead) AS ahead, ",
    now!(),
    " AS now
      FROM x JOIN runs r ON r.thread_key = x.thread_key AND r.run_id = x.run_id
      JOIN threads t ON t.thread_key = x.thread_key"
);

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

define_session_rows!(PgRow);

#[async_trait]
impl Sessions for PostgresStorage {
    async fn close_thread(&self, scope: &Scope, id: &ThreadId, how: &Close) -> Result<CloseOutcome> {
        self.bounded(async {
            let mut transaction = self.begin().await?;
            let outcome = close(&mut transaction, scope, id.key(scope.tenant()), how).await?;
            if matches!(outcome, CloseOutcome::Closed { .. } | CloseOutcome::Missing) {
                self.commit(transaction).await?;
            }
            if let CloseOutcome::Closed { cancelled, .. } = &outcome {
                self.tell(notices(cancelled));
            }
            Ok(outcome)
        })
        .await
    }

    async fn reopen_thread(&self, scope: &Scope, id: &ThreadId) -> Result<Option<Thread>> {
        self.bounded(async {
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
        })
        .await
    }

    async fn find_session(&self, scope: &Scope, id: &ThreadId) -> Result<Option<Session>> {
        read!(self, async {
            let key = id.key(scope.tenant());
            let mut session = self.session().await?;
            let row = sqlx::query(SESSION)
                .bind(key.0)
                .bind(scope.filter())
                .fetch_optional(session.conn())
                .await
                .map_err(driver_error)?;
            let Some(row) = row else { return Ok(None) };
            let active = sqlx::query(ACTIVE)
                .bind(key.0)
                .bind(scope.filter())
                .bind(SHOWN_RUNS)
                .fetch_all(session.conn())
                .await
                .map_err(driver_error)?;
            session.finish().await?;
            let active = active.iter().map(detail_from).collect::<Result<Vec<_>>>()?;
            session_from(&row, active).map(Some)
        })
    }

    async fn explain_run(&self, scope: &Scope, run_id: RunId) -> Result<Option<RunExplained>> {
        read!(self, async {
            let mut session = self.session().await?;
            let row = sqlx::query(EXPLAIN)
                .bind(run_id)
                .bind(scope.filter())
                .fetch_optional(session.conn())
                .await
                .map_err(driver_error)?;
            session.finish().await?;
            row.as_ref().map(explained_from).transpose()
        })
    }
}
