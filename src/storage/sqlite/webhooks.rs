//! Webhooks on SQLite. The parts for other operations ([`expect`], [`ended`], [`ended_by`]) run inside theirs.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::QueryBuilder;
use sqlx::sqlite::SqliteRow;
use uuid::Uuid;

use super::rows::get;
use super::{SqliteStorage, Write, clock, micros};
use crate::model::Scope;
use crate::storage::encoding::hide_nul;
use crate::storage::rows::driver_error;
use crate::storage::{AttemptOutcome, ClaimedWebhooks, Lease, NewRun, Page, Result, RunEnd, Webhooks};

crate::storage::webhook_rows::define_webhook_rows!(SqliteRow);

/// What the end of a run `r` copies into its waiting webhook `w`.
macro_rules! copy_run {
    () => {
        "state = 'due', run_created_at = r.created_at, assistant_id = r.assistant_id, \
         multitask_strategy = r.multitask_strategy, metadata = r.metadata, codec = r.codec, kwargs = r.kwargs"
    };
}

/// Writes the row of a run that asks for a webhook.
pub(super) async fn expect(write: &mut Write, tenant: Uuid, new: &NewRun) -> Result<()> {
    let Some(url) = &new.webhook else { return Ok(()) };
    sqlx::query(
        "INSERT INTO webhooks (thread_key, run_id, tenant, thread_name, url, state, attempts, next_attempt_at, codec,
                               created_at)
         VALUES ($1, $2, $3, $4, $5, 'waiting', 0, 0, 0, $6)",
    )
    .bind(new.thread_id.key(tenant).0)
    .bind(new.run_id)
    .bind(tenant)
    .bind(new.thread_id.as_str())
    .bind(hide_nul(url).into_owned())
    .bind(write.now)
    .execute(&mut write.conn)
    .await
    .map_err(driver_error)?;
    Ok(())
}

/// Expects the end of a run once more, which has ended before and was made pending again.
pub(super) async fn expect_again(write: &mut Write, thread: ThreadKey, run_id: RunId) -> Result<()> {
    let row = sqlx::query(
        "SELECT r.tenant, r.codec, r.kwargs, t.name FROM runs r JOIN threads t ON t.thread_key = r.thread_key
         WHERE r.thread_key = $1 AND r.run_id = $2",
    )
    .bind(thread.0)
    .bind(run_id)
    .fetch_one(&mut write.conn)
    .await
    .map_err(driver_error)?;
    let at = Place { table: "runs", column: "kwargs", id: &run_id };
    let kwargs = encoding::json(get(&row, "codec")?, get(&row, "kwargs")?, at)?;
    let Some(url) = kwargs.get("webhook").and_then(|url| url.as_str().map(str::to_owned)) else { return Ok(()) };
    sqlx::query(
        "INSERT INTO webhooks (thread_key, run_id, tenant, thread_name, url, state, attempts, next_attempt_at, codec,
                               created_at)
         VALUES ($1, $2, $3, $4, $5, 'waiting', 0, 0, 0, $6)
         ON CONFLICT (thread_key, run_id) DO UPDATE SET state = 'waiting', attempts = 0, next_attempt_at = 0",
    )
    .bind(thread.0)
    .bind(run_id)
    .bind(get::<Uuid>(&row, "tenant")?)
    .bind(get::<String>(&row, "name")?)
    .bind(hide_nul(&url).into_owned())
    .bind(write.now)
    .execute(&mut write.conn)
    .await
    .map_err(driver_error)?;
    Ok(())
}

/// Makes the webhook of a run due, if it has one, before the run's row changes.
pub(super) async fn ended(
    write: &mut Write,
    thread: ThreadKey,
    run_id: RunId,
    status: &str,
    error: Option<&[u8]>,
) -> Result<()> {
    sqlx::query(concat!(
        "UPDATE webhooks AS w SET run_status = $3, error = COALESCE($4, r.error), run_started_at = r.started_at, ended_at = $5, next_attempt_at = $5, ",
        copy_run!(),
        " FROM runs r WHERE w.thread_key = $1 AND w.run_id = $2 AND w.state = 'waiting'
           AND r.thread_key = w.thread_key AND r.run_id = w.run_id"
    ))
    .bind(thread.0)
    .bind(run_id)
    .bind(status)
    .bind(error)
    .bind(write.now)
    .execute(&mut write.conn)
    .await
    .map_err(driver_error)?;
    Ok(())
}

/// The same for a run that its worker ends, after the fence.
pub(super) async fn ended_by(write: &mut Write, lease: Lease, end: &RunEnd) -> Result<()> {
    let Some(hook) = &end.webhook else { return Ok(()) };
    sqlx::query(concat!(
        "UPDATE webhooks AS w SET run_status = $3, error = $4, ended_at = $5, next_attempt_at = $5, result = $6,
                                  run_started_at = $7, ",
        copy_run!(),
        " FROM runs r WHERE w.thread_key = $1 AND w.run_id = $2 AND w.state = 'waiting'
           AND r.thread_key = w.thread_key AND r.run_id = w.run_id"
    ))
    .bind(lease.thread.0)
    .bind(lease.run_id)
    .bind(end.status.as_str())
    .bind(end.error.as_ref().map(encoding::error_bytes))
    .bind(write.now)
    .bind(hook.values.as_ref().map(encoding::bytes))
    .bind(hook.started_at.0)
    .execute(&mut write.conn)
    .await
    .map_err(driver_error)?;
    Ok(())
}

async fn claim(write: &mut Write, scope: Scope, limit: i64, lease: Duration) -> Result<Vec<DueWebhook>> {
    let rows = sqlx::query(
        "UPDATE webhooks SET attempts = attempts + 1, next_attempt_at = $3
         WHERE (thread_key, run_id) IN (
             SELECT thread_key, run_id FROM webhooks
             WHERE state = 'due' AND next_attempt_at <= $2 AND ($1 IS NULL OR tenant = $1)
             ORDER BY next_attempt_at LIMIT $4)
         RETURNING thread_key, run_id, thread_name, url, attempts, assistant_id, run_status, metadata, codec, kwargs,
                   multitask_strategy, error, result, run_created_at, run_started_at, ended_at",
    )
    .bind(scope.filter())
    .bind(write.now)
    .bind(write.now + micros(lease))
    .bind(limit)
    .fetch_all(&mut write.conn)
    .await
    .map_err(driver_error)?;
    rows.iter().map(due_from).collect()
}

async fn settle(write: &mut Write, scope: Scope, attempt: Attempt, outcome: AttemptOutcome) -> Result<bool> {
    let query = match &outcome {
        AttemptOutcome::Delivered => sqlx::query(
            "DELETE FROM webhooks WHERE thread_key = $1 AND run_id = $2 AND attempts = $3 AND state = 'due'
               AND ($4 IS NULL OR tenant = $4)",
        ),
        AttemptOutcome::Retry { .. } | AttemptOutcome::Dead { .. } => sqlx::query(
            "UPDATE webhooks SET state = $5, last_error = $6, next_attempt_at = $7
             WHERE thread_key = $1 AND run_id = $2 AND attempts = $3 AND state = 'due'
               AND ($4 IS NULL OR tenant = $4)",
        ),
    };
    let query = query.bind(attempt.thread.0).bind(attempt.run_id).bind(attempt.number).bind(scope.filter());
    let query = match outcome {
        AttemptOutcome::Delivered => query,
        AttemptOutcome::Retry { after, error } => {
            query.bind("due").bind(hide_nul(&error).into_owned()).bind(write.now + micros(after))
        }
        AttemptOutcome::Dead { error } => query.bind("dead").bind(hide_nul(&error).into_owned()).bind(write.now),
    };
    Ok(query.execute(&mut write.conn).await.map_err(driver_error)?.rows_affected() == 1)
}

async fn redrive(write: &mut Write, scope: Scope, run_ids: Option<Vec<RunId>>) -> Result<i64> {
    let mut query = QueryBuilder::new("UPDATE webhooks SET state = 'due', attempts = 0, next_attempt_at = ");
    query.push_bind(write.now);
    query.push(" WHERE (thread_key, run_id) IN (SELECT thread_key, run_id FROM webhooks WHERE state = 'dead'");
    if let Some(tenant) = scope.filter() {
        query.push(" AND tenant = ").push_bind(tenant);
    }
    if let Some(run_ids) = run_ids {
        query.push(" AND run_id IN (");
        let mut list = query.separated(", ");
        for run_id in run_ids {
            list.push_bind(run_id);
        }
        query.push(")");
    }
    query.push(" ORDER BY created_at LIMIT 1000)");
    let done = query.build().execute(&mut write.conn).await.map_err(driver_error)?;
    Ok(i64::try_from(done.rows_affected()).unwrap_or(i64::MAX))
}

async fn sweep(write: &mut Write, scope: Scope, keep_dead: Duration) -> Result<u64> {
    let mut changed = 0;
    for statement in [
        concat!(
            "UPDATE webhooks AS w SET run_status = r.status, error = r.error, run_started_at = r.started_at, ended_at = $2, next_attempt_at = $2, ",
            copy_run!(),
            " FROM runs r WHERE w.state = 'waiting' AND ($1 IS NULL OR w.tenant = $1)
                AND r.thread_key = w.thread_key AND r.run_id = w.run_id AND r.status NOT IN ('pending', 'running')"
        ),
        "DELETE FROM webhooks WHERE state = 'waiting' AND ($1 IS NULL OR tenant = $1) AND created_at < $2
           AND NOT EXISTS (SELECT 1 FROM runs r WHERE r.thread_key = webhooks.thread_key
                                                  AND r.run_id = webhooks.run_id)",
        "DELETE FROM webhooks WHERE (thread_key, run_id) IN (
             SELECT thread_key, run_id FROM webhooks
             WHERE state = 'dead' AND ($1 IS NULL OR tenant = $1) AND next_attempt_at < $2 LIMIT 1000)",
    ] {
        let limit = if statement.contains("'dead'") { write.now - micros(keep_dead) } else { write.now };
        let done = sqlx::query(statement).bind(scope.filter()).bind(limit).execute(&mut write.conn).await;
        changed += done.map_err(driver_error)?.rows_affected();
    }
    Ok(changed)
}

#[async_trait]
impl Webhooks for SqliteStorage {
    async fn claim_webhooks(&self, scope: &Scope, limit: i64, lease: Duration) -> Result<ClaimedWebhooks> {
        let scope = *scope;
        // Looked at by a reader first: an idle server looks without writing.
        let first: Option<i64> = self
            .read(move |conn| {
                Box::pin(async move {
                    let row = sqlx::query(
                        "SELECT MIN(next_attempt_at) AS first FROM webhooks
                         WHERE state = 'due' AND ($1 IS NULL OR tenant = $1)",
                    )
                    .bind(scope.filter())
                    .fetch_one(conn)
                    .await
                    .map_err(driver_error)?;
                    get(&row, "first")
                })
            })
            .await?;
        let Some(first) = first else { return Ok(ClaimedWebhooks::default()) };
        if let Some(wait) = u64::try_from(first - clock()).ok().filter(|wait| *wait > 0) {
            return Ok(ClaimedWebhooks { due: Vec::new(), next: Some(Duration::from_micros(wait)) });
        }
        let due = self.write(move |write| Box::pin(claim(write, scope, limit, lease))).await?;
        // There may be more than the limit: the caller looks again when it has room.
        Ok(ClaimedWebhooks { due, next: Some(Duration::ZERO) })
    }

    async fn settle_webhook(&self, scope: &Scope, attempt: Attempt, outcome: AttemptOutcome) -> Result<bool> {
        let scope = *scope;
        self.write(move |write| Box::pin(settle(write, scope, attempt, outcome))).await
    }

    async fn list_webhooks(&self, scope: &Scope, state: WebhookState, page: Page) -> Result<Vec<Webhook>> {
        let scope = *scope;
        self.read(move |conn| {
            Box::pin(async move {
                let rows = sqlx::query(
                    "SELECT thread_name, run_id, url, state, attempts, next_attempt_at, last_error, created_at
                     FROM webhooks WHERE state = $1 AND ($2 IS NULL OR tenant = $2)
                     ORDER BY created_at, run_id LIMIT $3 OFFSET $4",
                )
                .bind(state.as_str())
                .bind(scope.filter())
                .bind(page.limit)
                .bind(page.offset)
                .fetch_all(conn)
                .await
                .map_err(driver_error)?;
                rows.iter().map(webhook_from).collect()
            })
        })
        .await
    }

    async fn redrive_webhooks(&self, scope: &Scope, run_ids: Option<&[RunId]>) -> Result<i64> {
        let (scope, run_ids) = (*scope, run_ids.map(<[RunId]>::to_vec));
        self.write(move |write| Box::pin(redrive(write, scope, run_ids))).await
    }

    async fn sweep_webhooks(&self, scope: &Scope, keep_dead: Duration) -> Result<u64> {
        let scope = *scope;
        // An empty table, the usual case, is no reason to write.
        let any = self.read(move |conn| {
            Box::pin(async move {
                let row =
                    sqlx::query("SELECT EXISTS (SELECT 1 FROM webhooks WHERE state IN ('waiting', 'dead')) AS it");
                get::<bool>(&row.fetch_one(conn).await.map_err(driver_error)?, "it")
            })
        });
        if !any.await? {
            return Ok(0);
        }
        self.write(move |write| Box::pin(sweep(write, scope, keep_dead))).await
    }
}
