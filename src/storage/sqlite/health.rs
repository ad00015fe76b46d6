//! Looking after a deployment on SQLite.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use uuid::Uuid;

use super::rows::get;
use super::{MIGRATIONS, SqliteStorage, Write, clock, micros, migrations, webhooks};
use crate::model::{RunId, Scope};
use crate::storage::rows::driver_error;
use crate::storage::{Counts, Health, Inspection, Notice, Page, Release, Result};

crate::storage::health_rows::define_health_rows!(SqliteRow);

/// Parameters: tenant, grace, limit, now.
const STUCK: &str = "WITH
    -- Running, and nobody has said for long that it is theirs.
    left_behind AS (
        SELECT r.thread_key, r.run_id, r.attempts, r.worker, r.lease_until AS stuck_at, 'lease_ran_out' AS why
        FROM runs r
        WHERE r.status = 'running' AND r.lease_until <= $4 - $2 AND ($1 IS NULL OR r.tenant = $1)
    ),
    -- Due, and not behind another run of its thread. It may be the next since its thread last changed.
    not_claimed AS (
        SELECT r.thread_key, r.run_id, r.attempts, r.worker,
               MAX(r.run_at, r.updated_at, COALESCE(t.updated_at, 0)) AS stuck_at, 'not_claimed' AS why
        FROM runs r LEFT JOIN threads t ON t.thread_key = r.thread_key
        WHERE r.status = 'pending' AND r.run_at <= $4 - $2 AND ($1 IS NULL OR r.tenant = $1)
          AND NOT EXISTS (SELECT 1 FROM runs o
                          WHERE o.thread_key = r.thread_key AND o.status IN ('pending', 'running')
                            AND (o.status = 'running'
                              OR (o.run_at <= $4 AND (o.created_at, o.run_id) < (r.created_at, r.run_id))))
    )
    SELECT s.thread_key, t.name AS thread_name, s.run_id, s.attempts, s.worker,
           CASE WHEN t.thread_key IS NULL THEN 'no_thread' ELSE s.why END AS reason, $4 - s.stuck_at AS since
    FROM (SELECT * FROM left_behind UNION ALL SELECT * FROM not_claimed) AS s
    LEFT JOIN threads t ON t.thread_key = s.thread_key
    WHERE s.stuck_at <= $4 - $2
      -- Last attempts wait for each other.
      AND (s.attempts = 0 OR NOT EXISTS (SELECT 1 FROM runs o WHERE o.status = 'running' AND o.lease_until > $4
                                           AND o.attempts = s.attempts + 1))
    ORDER BY s.stuck_at, s.run_id LIMIT $3";

const QUARANTINED: &str = "SELECT t.name AS thread_name, r.run_id, r.graph_id, r.attempts, r.worker, r.codec, r.error,
            r.created_at, r.quarantined_at
     FROM runs r JOIN threads t ON t.thread_key = r.thread_key
     WHERE r.quarantined_at IS NOT NULL AND ($1 IS NULL OR r.tenant = $1)
     ORDER BY r.quarantined_at, r.run_id LIMIT $2 OFFSET $3";

/// Parameter: now.
const COUNTS: &str = "SELECT (SELECT COUNT(*) FROM runs WHERE status = 'pending' AND run_at <= $1) AS pending,
            (SELECT COUNT(*) FROM runs WHERE status = 'running') AS running,
            (SELECT COUNT(*) FROM runs WHERE status = 'running' AND lease_until <= $1) AS expired_leases,
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
            (SELECT COUNT(*) FROM dead_threads) AS dead_threads";

#[async_trait]
impl Health for SqliteStorage {
    async fn find_stuck(&self, scope: &Scope, grace: Duration, limit: i64) -> Result<Vec<StuckRun>> {
        let scope = *scope;
        self.read(move |conn| {
            Box::pin(async move {
                let rows = sqlx::query(STUCK)
                    .bind(scope.filter())
                    .bind(micros(grace))
                    .bind(limit)
                    .bind(clock())
                    .fetch_all(conn)
                    .await
                    .map_err(driver_error)?;
                rows.iter().map(stuck_from).collect()
            })
        })
        .await
    }

    async fn list_quarantined(&self, scope: &Scope, page: Page) -> Result<Vec<QuarantinedRun>> {
        let scope = *scope;
        self.read(move |conn| {
            Box::pin(async move {
                let rows = sqlx::query(QUARANTINED)
                    .bind(scope.filter())
                    .bind(page.limit)
                    .bind(page.offset)
                    .fetch_all(conn)
                    .await
                    .map_err(driver_error)?;
                rows.iter().map(quarantined_from).collect()
            })
        })
        .await
    }

    async fn release_run_from_quarantine(&self, scope: &Scope, run_id: RunId) -> Result<Release> {
        let scope = *scope;
        self.write_if(
            |released| *released == Release::Released,
            move |write| Box::pin(async move { release(write, scope, run_id).await }),
        )
        .await
    }

    async fn inspect(&self) -> Result<Inspection> {
        self.read(|conn| Box::pin(inspect(conn))).await
    }
}

async fn release(write: &mut Write, scope: Scope, run_id: RunId) -> Result<Release> {
    let row = sqlx::query(
        "SELECT r.thread_key, EXISTS (SELECT 1 FROM runs o
                        WHERE o.thread_key = r.thread_key AND o.status <> 'pending'
                          AND (o.created_at, o.run_id) > (r.created_at, r.run_id))
                OR EXISTS (SELECT 1 FROM threads t WHERE t.thread_key = r.thread_key AND t.closed IS NOT NULL)
                AS is_superseded
         FROM run_lookup l JOIN runs r ON r.thread_key = l.thread_key AND r.run_id = l.run_id
         WHERE l.run_id = $1 AND ($2 IS NULL OR l.tenant = $2) AND r.quarantined_at IS NOT NULL",
    )
    .bind(run_id)
    .bind(scope.filter())
    .fetch_optional(&mut write.conn)
    .await
    .map_err(driver_error)?;
    let Some(row) = row else { return Ok(Release::NotQuarantined) };
    if get(&row, "is_superseded")? {
        return Ok(Release::Superseded);
    }
    let key: Uuid = get(&row, "thread_key")?;
    sqlx::query(
        "UPDATE runs SET status = 'pending', error = NULL, attempts = 0, worker = NULL, quarantined_at = NULL,
                         updated_at = $3
         WHERE thread_key = $1 AND run_id = $2",
    )
    .bind(key)
    .bind(run_id)
    .bind(write.now)
    .execute(&mut write.conn)
    .await
    .map_err(driver_error)?;
    sqlx::query(
        "UPDATE threads SET rest_status = 'idle', error = NULL, revision = revision + 1, updated_at = $2
         WHERE thread_key = $1",
    )
    .bind(key)
    .bind(write.now)
    .execute(&mut write.conn)
    .await
    .map_err(driver_error)?;
    webhooks::expect_again(write, ThreadKey(key), run_id).await?;
    write.notices.push(Notice::RunPending);
    Ok(Release::Released)
}

async fn inspect(conn: &mut SqliteConnection) -> Result<Inspection> {
    let (version,): (String,) =
        sqlx::query_as("SELECT sqlite_version()").fetch_one(&mut *conn).await.map_err(driver_error)?;
    let mut found =
        Inspection { server: format!("SQLite {version}"), now: Timestamp(clock()), ..Inspection::default() };
    let (journal,): (String,) =
        sqlx::query_as("PRAGMA journal_mode").fetch_one(&mut *conn).await.map_err(driver_error)?;
    found.settings.push(("journal_mode".to_owned(), journal));
    let (synchronous,): (i64,) =
        sqlx::query_as("PRAGMA synchronous").fetch_one(&mut *conn).await.map_err(driver_error)?;
    let word = match synchronous {
        0 => "off",
        1 => "normal",
        2 => "full",
        _ => "extra",
    };
    found.settings.push(("synchronous".to_owned(), word.to_owned()));
    let (damage,): (String,) =
        sqlx::query_as("PRAGMA quick_check(1)").fetch_one(&mut *conn).await.map_err(driver_error)?;
    found.settings.push(("quick_check".to_owned(), damage));
    // The column `expands` came with migration 16.
    let columns: Vec<(String,)> = sqlx::query_as("SELECT name FROM pragma_table_info('schema_migrations')")
        .fetch_all(&mut *conn)
        .await
        .map_err(driver_error)?;
    if !columns.is_empty() {
        let statement = match columns.iter().any(|(name,)| name == "expands") {
            true => "SELECT version, name, checksum, expands <> 0 AS expands FROM schema_migrations ORDER BY version",
            false => "SELECT version, name, checksum, FALSE AS expands FROM schema_migrations ORDER BY version",
        };
        let rows = sqlx::query(statement).fetch_all(&mut *conn).await.map_err(driver_error)?;
        found.applied = rows.iter().map(|row| applied_from(row, MIGRATIONS)).collect::<Result<_>>()?;
    }
    found.missing = migrations::names_missing(MIGRATIONS, &found.applied);
    if found.missing.is_empty() {
        let row = sqlx::query(COUNTS).bind(clock()).fetch_one(conn).await.map_err(driver_error)?;
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
