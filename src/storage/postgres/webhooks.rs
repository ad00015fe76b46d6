//! Webhooks on Postgres. The parts for other operations ([`expect`], [`ended`], `forget`) run inside theirs.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::postgres::{PgConnection, PgRow};
use uuid::Uuid;

use super::rows::get;
use super::{PostgresStorage, micros, now, read};
use crate::model::Scope;
use crate::storage::encoding::hide_nul;
use crate::storage::rows::driver_error;
use crate::storage::{AttemptOutcome, ClaimedWebhooks, Lease, NewRun, Page, Result, RunEnd, Webhooks};

crate::storage::webhook_rows::define_webhook_rows!(PgRow);

/// What the end of a run `r` copies into its waiting webhook `w`, at the time `clock.now`.
macro_rules! copy_run {
    () => {
        "state = 'due', ended_at = clock.now, next_attempt_at = clock.now, run_created_at = r.created_at, \
         assistant_id = r.assistant_id, multitask_strategy = r.multitask_strategy, metadata = r.metadata, \
         codec = r.codec, kwargs = r.kwargs"
    };
}
pub(super) use copy_run;

/// Writes the row of a run that asks for a webhook.
pub(super) async fn expect(conn: &mut PgConnection, tenant: Uuid, new: &NewRun) -> Result<()> {
    let Some(url) = &new.webhook else { return Ok(()) };
    sqlx::query(concat!(
        "INSERT INTO webhooks (thread_key, run_id, tenant, thread_name, url, state, attempts, next_attempt_at, codec,
                               created_at)
         VALUES ($1, $2, $3, $4, $5, 'waiting', 0, 0, 0, ",
        now!(),
        ")"
    ))
    .bind(new.thread_id.key(tenant).0)
    .bind(new.run_id)
    .bind(tenant)
    .bind(new.thread_id.as_str())
    .bind(hide_nul(url).into_owned())
    .execute(conn)
    .await
    .map_err(driver_error)?;
    Ok(())
}

/// Expects the end of a run once more, which has ended before and was made pending again.
pub(super) async fn expect_again(conn: &mut PgConnection, thread: ThreadKey, run_id: RunId) -> Result<()> {
    let row = sqlx::query(
        "SELECT r.tenant, r.codec, r.kwargs, t.name FROM runs r JOIN threads t ON t.thread_key = r.thread_key
         WHERE r.thread_key = $1 AND r.run_id = $2",
    )
    .bind(thread.0)
    .bind(run_id)
    .fetch_one(&mut *conn)
    .await
    .map_err(driver_error)?;
    let at = Place { table: "runs", column: "kwargs", id: &run_id };
    let kwargs = encoding::json(get(&row, "codec")?, get(&row, "kwargs")?, at)?;
    let Some(url) = kwargs.get("webhook").and_then(|url| url.as_str().map(str::to_owned)) else { return Ok(()) };
    sqlx::query(concat!(
        "INSERT INTO webhooks (thread_key, run_id, tenant, thread_name, url, state, attempts, next_attempt_at, codec,
                               created_at)
         VALUES ($1, $2, $3, $4, $5, 'waiting', 0, 0, 0, ",
        now!(),
        ") ON CONFLICT (thread_key, run_id) DO UPDATE SET state = 'waiting', attempts = 0, next_attempt_at = 0"
    ))
    .bind(thread.0)
    .bind(run_id)
    .bind(get::<Uuid>(&row, "tenant")?)
    .bind(get::<String>(&row, "name")?)
    .bind(hide_nul(&url).into_owned())
    .execute(conn)
    .await
    .map_err(driver_error)?;
    Ok(())
}

/// Makes the webhook of a run due, if it has one, before the run's row changes. The caller has locked the thread.
pub(super) async fn ended(
    conn: &mut PgConnection,
    thread: ThreadKey,
    run_id: RunId,
    status: &str,
    error: Option<&[u8]>,
) -> Result<()> {
    sqlx::query(concat!(
        "UPDATE webhooks w SET run_status = $3, error = COALESCE($4, r.error), run_started_at = r.started_at, ",
        copy_run!(),
        " FROM runs r, (SELECT ",
        now!(),
        " AS now) AS clock
         WHERE w.thread_key = $1 AND w.run_id = $2 AND w.state = 'waiting'
           AND r.thread_key = w.thread_key AND r.run_id = w.run_id"
    ))
    .bind(thread.0)
    .bind(run_id)
    .bind(status)
    .bind(error)
    .execute(conn)
    .await
    .map_err(driver_error)?;
    Ok(())
}

/// The same for a run that its worker ends: only under the lease.
pub(super) async fn ended_by(conn: &mut PgConnection, lease: Lease, end: &RunEnd) -> Result<()> {
    let Some(hook) = &end.webhook else { return Ok(()) };
    sqlx::query(concat!(
        "UPDATE webhooks w SET run_status = $4, error = $5, result = $6, run_started_at = $7, ",
        copy_run!(),
        " FROM runs r, (SELECT ",
        now!(),
        " AS now) AS clock
         WHERE w.thread_key = $1 AND w.run_id = $2 AND w.state = 'waiting'
           AND r.thread_key = w.thread_key AND r.run_id = w.run_id AND r.status = 'running' AND r.lease_epoch = $3"
    ))
    .bind(lease.thread.0)
    .bind(lease.run_id)
    .bind(lease.epoch)
    .bind(end.status.as_str())
    .bind(end.error.as_ref().map(encoding::error_bytes))
    .bind(hook.values.as_ref().map(encoding::bytes))
    .bind(hook.started_at.0)
    .execute(conn)
    .await
    .map_err(driver_error)?;
    Ok(())
}

const LISTED: &str = "SELECT thread_name, run_id, url, state, attempts, next_attempt_at, last_error, created_at
     FROM webhooks WHERE state = $1 AND ($2::uuid IS NULL OR tenant = $2)
     ORDER BY created_at, run_id LIMIT $3 OFFSET $4";

#[async_trait]
impl Webhooks for PostgresStorage {
    async fn claim_webhooks(&self, scope: &Scope, limit: i64, lease: Duration) -> Result<ClaimedWebhooks> {
        self.bounded(async {
            // Asked first, so that an idle server looks without writing.
            let peek = concat!(
                "SELECT MIN(next_attempt_at) - ",
                now!(),
                " AS wait FROM webhooks WHERE state = 'due' AND ($1::uuid IS NULL OR tenant = $1)"
            );
            let mut session = self.session().await?;
            let row = sqlx::query(peek).bind(scope.filter()).fetch_one(session.conn()).await.map_err(driver_error)?;
            let Some(wait) = get::<Option<i64>>(&row, "wait")? else {
                session.finish().await?;
                return Ok(ClaimedWebhooks::default());
            };
            if let Some(wait) = u64::try_from(wait).ok().filter(|wait| *wait > 0) {
                session.finish().await?;
                return Ok(ClaimedWebhooks { due: Vec::new(), next: Some(Duration::from_micros(wait)) });
            }
            let rows = sqlx::query(concat!(
                "WITH clock AS MATERIALIZED (SELECT ",
                now!(),
                " AS now),
             picked AS MATERIALIZED (
                 SELECT thread_key, run_id FROM webhooks
                 WHERE state = 'due' AND next_attempt_at <= (SELECT now FROM clock)
                   AND ($1::uuid IS NULL OR tenant = $1)
                 ORDER BY next_attempt_at LIMIT $2 FOR UPDATE SKIP LOCKED
             )
             UPDATE webhooks w SET attempts = w.attempts + 1, next_attempt_at = clock.now + $3
             FROM picked p, clock
             WHERE w.thread_key = p.thread_key AND w.run_id = p.run_id
             RETURNING w.thread_key, w.run_id, w.thread_name, w.url, w.attempts, w.assistant_id, w.run_status,
                       w.metadata::text AS metadata, w.codec, w.kwargs, w.multitask_strategy, w.error, w.result,
                       w.run_created_at, w.run_started_at, w.ended_at"
            ))
            .bind(scope.filter())
            .bind(limit)
            .bind(micros(lease))
            .fetch_all(session.conn())
            .await
            .map_err(driver_error)?;
            self.wrote(session).await?;
            let due = rows.iter().map(due_from).collect::<Result<Vec<_>>>()?;
            // There may be more than the limit: the caller looks again when it has room.
            Ok(ClaimedWebhooks { due, next: Some(Duration::ZERO) })
        })
        .await
    }

    async fn settle_webhook(&self, scope: &Scope, attempt: Attempt, outcome: AttemptOutcome) -> Result<bool> {
        self.bounded(async {
            let mut session = self.session().await?;
            let query = match &outcome {
                AttemptOutcome::Delivered => sqlx::query(
                    "DELETE FROM webhooks WHERE thread_key = $1 AND run_id = $2 AND attempts = $3 AND state = 'due'
                   AND ($4::uuid IS NULL OR tenant = $4)",
                ),
                AttemptOutcome::Retry { .. } | AttemptOutcome::Dead { .. } => sqlx::query(concat!(
                    "UPDATE webhooks SET state = $5, last_error = $6, next_attempt_at = $7 + ",
                    now!(),
                    " WHERE thread_key = $1 AND run_id = $2 AND attempts = $3 AND state = 'due'
                    AND ($4::uuid IS NULL OR tenant = $4)"
                )),
            };
            let query = query.bind(attempt.thread.0).bind(attempt.run_id).bind(attempt.number).bind(scope.filter());
            let query = match outcome {
                AttemptOutcome::Delivered => query,
                AttemptOutcome::Retry { after, error } => {
                    query.bind("due").bind(hide_nul(&error).into_owned()).bind(micros(after))
                }
                AttemptOutcome::Dead { error } => query.bind("dead").bind(hide_nul(&error).into_owned()).bind(0_i64),
            };
            let done = query.execute(session.conn()).await.map_err(driver_error)?;
            self.wrote(session).await?;
            Ok(done.rows_affected() == 1)
        })
        .await
    }

    async fn list_webhooks(&self, scope: &Scope, state: WebhookState, page: Page) -> Result<Vec<Webhook>> {
        read!(self, async {
            let mut session = self.session().await?;
            let rows = sqlx::query(LISTED)
                .bind(state.as_str())
                .bind(scope.filter())
                .bind(page.limit)
                .bind(page.offset)
                .fetch_all(session.conn())
                .await
                .map_err(driver_error)?;
            session.finish().await?;
            rows.iter().map(webhook_from).collect::<Result<Vec<_>>>()
        })
    }

    async fn redrive_webhooks(&self, scope: &Scope, run_ids: Option<&[RunId]>) -> Result<i64> {
        self.bounded(async {
            let mut session = self.session().await?;
            let done = sqlx::query(concat!(
                "UPDATE webhooks w SET state = 'due', attempts = 0, next_attempt_at = ",
                now!(),
                " FROM (SELECT thread_key, run_id FROM webhooks
                    WHERE state = 'dead' AND ($1::uuid IS NULL OR tenant = $1)
                      AND ($2::uuid[] IS NULL OR run_id = ANY ($2))
                    ORDER BY created_at LIMIT 1000 FOR UPDATE SKIP LOCKED) AS d
              WHERE w.thread_key = d.thread_key AND w.run_id = d.run_id"
            ))
            .bind(scope.filter())
            .bind(run_ids.map(<[RunId]>::to_vec))
            .execute(session.conn())
            .await
            .map_err(driver_error)?;
            self.wrote(session).await?;
            Ok(i64::try_from(done.rows_affected()).unwrap_or(i64::MAX))
        })
        .await
    }

    async fn sweep_webhooks(&self, scope: &Scope, keep_dead: Duration) -> Result<u64> {
        self.bounded(async {
            let mut changed = 0;
            let mut session = self.session().await?;
            let ended = concat!(
                "UPDATE webhooks w SET run_status = r.status, error = r.error, run_started_at = r.started_at, ",
                copy_run!(),
                " FROM runs r, (SELECT ",
                now!(),
                " AS now) AS clock
              WHERE w.state = 'waiting' AND ($1::uuid IS NULL OR w.tenant = $1)
                AND r.thread_key = w.thread_key AND r.run_id = w.run_id AND r.status NOT IN ('pending', 'running')"
            );
            let gone = "DELETE FROM webhooks w WHERE w.state = 'waiting' AND ($1::uuid IS NULL OR w.tenant = $1)
                      AND NOT EXISTS (SELECT 1 FROM runs r WHERE r.thread_key = w.thread_key AND r.run_id = w.run_id)";
            for statement in [ended, gone] {
                let done = sqlx::query(statement).bind(scope.filter()).execute(session.conn()).await;
                changed += done.map_err(driver_error)?.rows_affected();
            }
            let done = sqlx::query(concat!(
                "DELETE FROM webhooks WHERE (thread_key, run_id) IN (
                 SELECT thread_key, run_id FROM webhooks
                 WHERE state = 'dead' AND ($1::uuid IS NULL OR tenant = $1) AND next_attempt_at < ",
                now!(),
                " - $2 LIMIT 1000)"
            ))
            .bind(scope.filter())
            .bind(micros(keep_dead))
            .execute(session.conn())
            .await;
            changed += done.map_err(driver_error)?.rows_affected();
            if changed > 0 {
                self.wrote(session).await?;
            } else {
                session.finish().await?;
            }
            Ok(changed)
        })
        .await
    }
}
