//! Looking after a deployment on Postgres.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::postgres::{PgConnection, PgRow};
use uuid::Uuid;

use super::rows::get;
use super::threads::lock_thread;
use super::{MIGRATIONS, PostgresStorage, micros, migrations, notify, now, read, webhooks};
use crate::model::{RunId, Scope};
use crate::storage::rows::driver_error;
use crate::storage::{Counts, Health, Inspection, Notice, Page, Release, Result};

crate::storage::health_rows::define_health_rows!(PgRow);

const STUCK: &str = concat!(
    "WITH clock AS MATERIALIZED (SELECT ",
    now!(),
    " AS now),
    -- Running, and nobody has said for long that it is theirs.
    left_behind AS (
        SELECT r.thread_key, r.run_id, r.attempts, r.worker, r.lease_until AS stuck_at, 'lease_ran_out' AS why
        FROM runs r
        WHERE r.status = 'running' AND r.lease_until <= (SELECT now FROM clock) - $2
          AND ($1::uuid IS NULL OR r.tenant = $1)
    ),
    -- Due, and not behind another run of its thread. It may be the next since its thread last changed.
    not_claimed AS (
        SELECT r.thread_key, r.run_id, r.attempts, r.worker,
               GREATEST(r.run_at, r.updated_at, COALESCE(t.updated_at, 0)) AS stuck_at, 'not_claimed' AS why
        FROM runs r LEFT JOIN threads t ON t.thread_key = r.thread_key
        WHERE r.status = 'pending' AND r.run_at <= (SELECT now FROM clock) - $2
          AND ($1::uuid IS NULL OR r.tenant = $1)
          AND NOT EXISTS (SELECT 1 FROM runs o
                          WHERE o.thread_key = r.thread_key AND o.status IN ('pending', 'running')
                            AND (o.status = 'running'
                              OR (o.run_at <= (SELECT now FROM clock)
                                  AND (o.created_at, o.run_id) < (r.created_at, r.run_id))))
    )
    SELECT s.thread_key, t.name AS thread_name, s.run_id, s.attempts, s.worker,
           CASE WHEN t.thread_key IS NULL THEN 'no_thread' ELSE s.why END AS reason,
           (SELECT now FROM clock) - s.stuck_at AS since
    FROM (SELECT * FROM left_behind UNION ALL SELECT * FROM not_claimed) AS s
    LEFT JOIN threads t ON t.thread_key = s.thread_key
    WHERE s.stuck_at <= (SELECT now FROM clock) - $2
      -- Last attempts wait for each other.
      AND (s.attempts = 0 OR NOT EXISTS (SELECT 1 FROM runs o WHERE o.status = 'running' AND o.lease_until > (SELECT now FROM clock)
                                           AND o.attempts = s.attempts + 1))
    ORDER BY s.stuck_at, s.run_id LIMIT $3"
);

const QUARANTINED: &str = "SELECT t.name AS thread_name, r.run_id, r.graph_id, r.attempts, r.worker, r.codec, r.error,
            r.created_at, r.quarantined_at
     FROM runs r JOIN threads t ON t.thread_key = r.thread_key
     WHERE r.quarantined_at IS NOT NULL AND ($1::uuid IS NULL OR r.tenant = $1)
     ORDER BY r.quarantined_at, r.run_id LIMIT $2 OFFSET $3";

const COUNTS: &str = concat!(
    "SELECT (SELECT COUNT(*) FROM runs WHERE status = 'pending' AND run_at <= ",
    now!(),
    ") AS pending,
            (SELECT COUNT(*) FROM runs WHERE status = 'running') AS running,
            (SELECT COUNT(*) FROM runs WHERE status = 'running' AND lease_until <= ",
    now!(),
    ") AS expired_leases,
            (SELECT COUNT(*) FROM runs WHERE quarantined_at IS NOT NULL) AS quarantined,
            (SELECT COUNT(*) FROM webhooks WHERE state = 'dead') AS dead_webhooks,
            (SELECT COUNT(*) FROM runs r WHERE r.status IN ('pending', 'running')
               AND NOT EXISTS (SELECT 1 FROM threads t WHERE t.thread_key = r.thread_key))
            + (SELECT COUNT(*) FROM run_lookup l
               WHERE NOT EXISTS (SELECT 1 FROM runs r WHERE r.thread_key = l.thread_key AND r.run_id = l.run_id)
                 AND NOT EXISTS (SELECT 1 FROM dead_threads d WHERE d.thread_key = l.thread_key))
            + (SELECT COUNT(*) FROM webhooks w WHERE w.state = 'waiting'
                 AND NOT EXISTS (SELECT 1 FROM runs r WHERE r.thread_key = w.thread_key AND r.run_id = w.run_id))
            AS orphans,
            (SELECT COUNT(*) FROM dead_threads) AS dead_threads"
);

/// What decides whether a commit that was answered survives a crash of the machine.
const SETTINGS: [&str; 4] = ["fsync", "synchronous_commit", "full_page_writes", "max_connections"];

#[async_trait]
impl Health for PostgresStorage {
    async fn find_stuck(&self, scope: &Scope, grace: Duration, limit: i64) -> Result<Vec<StuckRun>> {
        read!(self, async {
            let mut session = self.session().await?;
            let rows = sqlx::query(STUCK)
                .bind(scope.filter())
                .bind(micros(grace))
                .bind(limit)
                .fetch_all(session.conn())
                .await
                .map_err(driver_error)?;
            session.finish().await?;
            rows.iter().map(stuck_from).collect::<Result<Vec<_>>>()
        })
    }

    async fn list_quarantined(&self, scope: &Scope, page: Page) -> Result<Vec<QuarantinedRun>> {
        read!(self, async {
            let mut session = self.session().await?;
            let rows = sqlx::query(QUARANTINED)
                .bind(scope.filter())
                .bind(page.limit)
                .bind(page.offset)
                .fetch_all(session.conn())
                .await
                .map_err(driver_error)?;
            session.finish().await?;
            rows.iter().map(quarantined_from).collect::<Result<Vec<_>>>()
        })
    }

    async fn release_run_from_quarantine(&self, scope: &Scope, run_id: RunId) -> Result<Release> {
        self.bounded(async {
            let mut transaction = self.begin().await?;
            let released = release(&mut transaction, scope, run_id).await?;
            if released == Release::Released {
                notify(&mut transaction, &[Notice::RunPending]).await?;
                self.commit(transaction).await?;
                self.tell([Notice::RunPending]);
            }
            Ok(released)
        })
        .await
    }

    async fn inspect(&self) -> Result<Inspection> {
        read!(self, async {
            let mut session = self.session().await?;
            inspect(session.conn()).await
        })
    }
}

async fn release(conn: &mut PgConnection, scope: &Scope, run_id: RunId) -> Result<Release> {
    let found: Option<(Uuid,)> =
        sqlx::query_as("SELECT thread_key FROM run_lookup WHERE run_id = $1 AND ($2::uuid IS NULL OR tenant = $2)")
            .bind(run_id)
            .bind(scope.filter())
            .fetch_optional(&mut *conn)
            .await
            .map_err(driver_error)?;
    let Some((key,)) = found else { return Ok(Release::NotQuarantined) };
    if !lock_thread(conn, ThreadKey(key)).await? {
        return Ok(Release::NotQuarantined);
    }
    let row = sqlx::query(
        "SELECT EXISTS (SELECT 1 FROM runs o
                        WHERE o.thread_key = r.thread_key AND o.status <> 'pending'
                          AND (o.created_at, o.run_id) > (r.created_at, r.run_id))
                OR EXISTS (SELECT 1 FROM threads t WHERE t.thread_key = r.thread_key AND t.closed IS NOT NULL)
                AS is_superseded
         FROM runs r WHERE r.thread_key = $1 AND r.run_id = $2 AND r.quarantined_at IS NOT NULL",
    )
    .bind(key)
    .bind(run_id)
    .fetch_optional(&mut *conn)
    .await
    .map_err(driver_error)?;
    let Some(row) = row else { return Ok(Release::NotQuarantined) };
    if get(&row, "is_superseded")? {
        return Ok(Release::Superseded);
    }
    sqlx::query(concat!(
        "UPDATE runs SET status = 'pending', error = NULL, attempts = 0, worker = NULL, quarantined_at = NULL,
                         updated_at = ",
        now!(),
        " WHERE thread_key = $1 AND run_id = $2"
    ))
    .bind(key)
    .bind(run_id)
    .execute(&mut *conn)
    .await
    .map_err(driver_error)?;
    // An active run more: whoever decides by an older snapshot must notice.
    sqlx::query(concat!(
        "UPDATE threads SET rest_status = 'idle', error = NULL, revision = revision + 1, updated_at = ",
        now!(),
        " WHERE thread_key = $1"
    ))
    .bind(key)
    .execute(&mut *conn)
    .await
    .map_err(driver_error)?;
    webhooks::expect_again(conn, ThreadKey(key), run_id).await?;
    Ok(Release::Released)
}

async fn inspect(conn: &mut PgConnection) -> Result<Inspection> {
    let row = sqlx::query(concat!("SELECT version() AS server, ", now!(), " AS now"))
        .fetch_one(&mut *conn)
        .await
        .map_err(driver_error)?;
    let mut found =
        Inspection { server: get(&row, "server")?, now: Timestamp(get(&row, "now")?), ..Inspection::default() };
    for name in SETTINGS {
        let (value,): (String,) = sqlx::query_as("SELECT current_setting($1)")
            .bind(name)
            .fetch_one(&mut *conn)
            .await
            .map_err(driver_error)?;
        found.settings.push((name.to_owned(), value));
    }
    // The column `expands` came with migration 16.
    let rows = sqlx::query(
        "SELECT EXISTS (SELECT 1 FROM information_schema.columns
                        WHERE table_schema = current_schema() AND table_name = 'schema_migrations'
                          AND column_name = 'version') AS is_there,
                EXISTS (SELECT 1 FROM information_schema.columns
                        WHERE table_schema = current_schema() AND table_name = 'schema_migrations'
                          AND column_name = 'expands') AS says_more",
    )
    .fetch_one(&mut *conn)
    .await
    .map_err(driver_error)?;
    if get(&rows, "is_there")? {
        let statement = match get(&rows, "says_more")? {
            true => "SELECT version, name, checksum, expands FROM schema_migrations ORDER BY version",
            false => "SELECT version, name, checksum, FALSE AS expands FROM schema_migrations ORDER BY version",
        };
        let rows = sqlx::query(statement).fetch_all(&mut *conn).await.map_err(driver_error)?;
        found.applied = rows.iter().map(|row| applied_from(row, MIGRATIONS)).collect::<Result<_>>()?;
    }
    found.missing = migrations::names_missing(MIGRATIONS, &found.applied);
    if found.missing.is_empty() {
        let row = sqlx::query(COUNTS).fetch_one(conn).await.map_err(driver_error)?;
        found.counts = Some(Counts {
            pending: get(&row, "pending")?,
            running: get(&row, "running")?,
            expired_leases: get(&row, "expired_leases")?,
            quarantined: get(&row, "quarantined")?,
            dead_webhooks: get(&row, "dead_webhooks")?,
            orphans: get(&row, "orphans")?,
            dead_threads: get(&row, "dead_threads")?,
        });
    }
    Ok(found)
}
