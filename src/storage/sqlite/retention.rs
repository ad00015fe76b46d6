//! Expiry, pruning and reclaiming on SQLite.

use async_trait::async_trait;
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{AssertSqlSafe, QueryBuilder};
use uuid::Uuid;

use super::branches::drop_lost_names;
use super::rows::get;
use super::threads::bury_thread;
use super::{SqliteStorage, Write, clock};
use crate::model::{Scope, ThreadId, ThreadKey, ThreadTtl, TtlStrategy};
use crate::storage::encoding::Place;
use crate::storage::retention::{THREAD_TABLES, ttl_of};
use crate::storage::rows::driver_error;
use crate::storage::{
    ExpiredThread, Kept, PayloadHash, Pruned, Result, Retention, STEP_ROWS, Size, StorageError, ThreadSizes,
};

/// Steps that whoever needs the name of a deleted thread takes before giving up for now.
const OWN_STEPS: usize = 100;

/// Removes a part of the rows of a thread; true when none is left.
pub(super) async fn remove_rows(conn: &mut SqliteConnection, key: ThreadKey) -> Result<bool> {
    let mut done = true;
    for (table, _) in THREAD_TABLES {
        let part = format!("SELECT rowid FROM {table} WHERE thread_key = $1 ORDER BY rowid LIMIT $2");
        if table == "runs" {
            // A run's entry in the lookup goes with it.
            let statement =
                format!("DELETE FROM run_lookup WHERE run_id IN (SELECT run_id FROM runs WHERE rowid IN ({part}))");
            sqlx::query(AssertSqlSafe(statement))
                .bind(key.0)
                .bind(STEP_ROWS)
                .execute(&mut *conn)
                .await
                .map_err(driver_error)?;
        }
        let gone = sqlx::query(AssertSqlSafe(format!("DELETE FROM {table} WHERE rowid IN ({part})")))
            .bind(key.0)
            .bind(STEP_ROWS)
            .execute(&mut *conn)
            .await
            .map_err(driver_error)?;
        done &= (gone.rows_affected() as i64) < STEP_ROWS;
    }
    Ok(done)
}

/// A step of removing what a deleted thread left; true when nothing is left.
async fn step(write: &mut Write, key: Uuid) -> Result<bool> {
    let done = remove_rows(&mut write.conn, ThreadKey(key)).await?;
    if done {
        sqlx::query("DELETE FROM dead_threads WHERE thread_key = $1")
            .bind(key)
            .execute(&mut write.conn)
            .await
            .map_err(driver_error)?;
    }
    Ok(done)
}

/// Whether rows of a deleted thread are in the way of a new one.
pub(super) async fn is_dead(conn: &mut SqliteConnection, key: ThreadKey) -> Result<bool> {
    let row = sqlx::query("SELECT EXISTS (SELECT 1 FROM dead_threads WHERE thread_key = $1) AS it")
        .bind(key.0)
        .fetch_one(conn)
        .await
        .map_err(driver_error)?;
    get(&row, "it")
}

/// [`step`], for whoever needs the name. Asked in the same operation: the name may be in use again, and then its rows are
/// nobody's to remove.
async fn step_if_dead(write: &mut Write, key: ThreadKey) -> Result<bool> {
    Ok(!is_dead(&mut write.conn, key).await? || step(write, key.0).await?)
}

/// Removes the rows of a table for which `keep` does not hold, a bounded number; true when there were fewer.
pub(super) async fn prune_rows(
    write: &mut Write,
    key: ThreadKey,
    table: &'static str,
    keep: &'static str,
) -> Result<bool> {
    let statement = format!(
        "DELETE FROM {table} WHERE rowid IN
             (SELECT x.rowid FROM {table} x WHERE x.thread_key = $1 AND NOT EXISTS ({keep}) LIMIT $2)"
    );
    let gone = sqlx::query(AssertSqlSafe(statement))
        .bind(key.0)
        .bind(STEP_ROWS)
        .execute(&mut write.conn)
        .await
        .map_err(driver_error)?;
    Ok((gone.rows_affected() as i64) < STEP_ROWS)
}

/// Puts what is kept into tables of this connection, for the statements that follow.
pub(super) async fn keep_rows(write: &mut Write, kept: &Kept) -> Result<()> {
    sqlx::raw_sql(
        "CREATE TEMP TABLE IF NOT EXISTS kept_checkpoints (ns TEXT, id TEXT, PRIMARY KEY (ns, id));
         CREATE TEMP TABLE IF NOT EXISTS kept_origins (ns TEXT, id TEXT, PRIMARY KEY (ns, id));
         CREATE TEMP TABLE IF NOT EXISTS kept_payloads (hash BLOB PRIMARY KEY);
         CREATE TEMP TABLE IF NOT EXISTS kept_branches (ns TEXT, channel TEXT, branch INTEGER, length INTEGER);
         DELETE FROM kept_checkpoints; DELETE FROM kept_origins; DELETE FROM kept_payloads; DELETE FROM kept_branches;",
    )
    .execute(&mut write.conn)
    .await
    .map_err(driver_error)?;
    // Few enough that a statement stays below SQLite's bound on parameters.
    for (into, rows) in [
        ("INSERT OR IGNORE INTO kept_checkpoints (ns, id) ", &kept.checkpoints),
        ("INSERT OR IGNORE INTO kept_origins (ns, id) ", &kept.origins),
    ] {
        for rows in rows.chunks(100) {
            let mut query = QueryBuilder::new(into);
            query.push_values(rows, |mut row, (ns, id)| {
                row.push_bind(ns.clone()).push_bind(id.clone());
            });
            query.build().execute(&mut write.conn).await.map_err(driver_error)?;
        }
    }
    for rows in kept.payloads.chunks(100) {
        let mut query = QueryBuilder::new("INSERT OR IGNORE INTO kept_payloads (hash) ");
        query.push_values(rows, |mut row, hash| {
            row.push_bind(hash.to_vec());
        });
        query.build().execute(&mut write.conn).await.map_err(driver_error)?;
    }
    for rows in kept.branches.chunks(100) {
        let mut query = QueryBuilder::new("INSERT INTO kept_branches (ns, channel, branch, length) ");
        query.push_values(rows, |mut row, (ns, channel, branch, length)| {
            row.push_bind(ns.clone()).push_bind(channel.clone()).push_bind(*branch).push_bind(*length);
        });
        query.build().execute(&mut write.conn).await.map_err(driver_error)?;
    }
    Ok(())
}

async fn prune(write: &mut Write, key: ThreadKey, kept: Kept) -> Result<Pruned> {
    let row = sqlx::query(
        "SELECT t.head, EXISTS (SELECT 1 FROM runs a WHERE a.thread_key = t.thread_key
                                AND a.status IN ('pending', 'running')) AS busy
         FROM threads t WHERE t.thread_key = $1",
    )
    .bind(key.0)
    .fetch_optional(&mut write.conn)
    .await
    .map_err(driver_error)?;
    let Some(row) = row else { return Ok(Pruned::Changed) };
    if get::<bool>(&row, "busy")? || get::<Option<String>>(&row, "head")? != kept.head {
        return Ok(Pruned::Changed);
    }
    keep_rows(write, &kept).await?;
    const ON_KEPT: &str = "SELECT 1 FROM kept_checkpoints k WHERE k.ns = x.ns AND k.id = x.checkpoint_id";
    // Checkpoints first and alone: one that is still there must be readable.
    if !prune_rows(write, key, "checkpoints", ON_KEPT).await? {
        return Ok(Pruned::More);
    }
    let task_writes = prune_rows(write, key, "task_writes", ON_KEPT).await?;
    let effects = prune_rows(
        write,
        key,
        "effects",
        "SELECT 1 FROM kept_checkpoints k WHERE k.ns = x.ns AND k.id = x.checkpoint_id
         UNION ALL SELECT 1 FROM kept_origins k WHERE k.ns = x.ns AND k.id = x.checkpoint_id",
    )
    .await?;
    let payloads = prune_rows(write, key, "payloads", "SELECT 1 FROM kept_payloads k WHERE k.hash = x.hash").await?;
    let log = prune_rows(
        write,
        key,
        "channel_log",
        "SELECT 1 FROM kept_branches k
         WHERE k.ns = x.ns AND k.channel = x.channel AND k.branch = x.branch AND x.start < k.length",
    )
    .await?;
    if !(task_writes && effects && payloads && log) {
        return Ok(Pruned::More);
    }
    // What they came from is gone.
    sqlx::query("UPDATE checkpoints SET parent_id = NULL WHERE thread_key = $1 AND parent_id IS NOT NULL")
        .bind(key.0)
        .execute(&mut write.conn)
        .await
        .map_err(driver_error)?;
    drop_lost_names(&mut write.conn, key).await?;
    sqlx::query("UPDATE threads SET pruned_at = $2 WHERE thread_key = $1")
        .bind(key.0)
        .bind(write.now)
        .execute(&mut write.conn)
        .await
        .map_err(driver_error)?;
    Ok(Pruned::Done)
}

/// Whether a thread `t` is due and unused at $1.
macro_rules! due {
    () => {
        "t.ttl IS NOT NULL AND (t.pruned_at IS NULL OR t.pruned_at < t.updated_at) AND t.updated_at + t.ttl <= $1
         AND NOT EXISTS (SELECT 1 FROM runs a WHERE a.thread_key = t.thread_key
                         AND a.status IN ('pending', 'running'))"
    };
}

async fn expire(write: &mut Write, tenant: Uuid, key: ThreadKey) -> Result<bool> {
    let due = sqlx::query(concat!(
        "SELECT 1 FROM threads t WHERE t.thread_key = $2 AND t.ttl_strategy = 'delete' AND ",
        due!()
    ))
    .bind(write.now)
    .bind(key.0)
    .fetch_optional(&mut write.conn)
    .await
    .map_err(driver_error)?;
    if due.is_none() {
        return Ok(false);
    }
    bury_thread(write, tenant, key).await?;
    Ok(true)
}

async fn reclaim_one(write: &mut Write, tenant: Option<Uuid>) -> Result<bool> {
    let row =
        sqlx::query("SELECT thread_key FROM dead_threads WHERE $1 IS NULL OR tenant = $1 ORDER BY deleted_at LIMIT 1")
            .bind(tenant)
            .fetch_optional(&mut write.conn)
            .await
            .map_err(driver_error)?;
    let Some(row) = row else { return Ok(false) };
    let key = get(&row, "thread_key")?;
    step(write, key).await?;
    Ok(true)
}

const SIZES: &str = "
    SELECT (SELECT COUNT(*) FROM checkpoints WHERE thread_key = $1)
               + (SELECT COUNT(*) FROM foreign_checkpoints WHERE thread_key = $1) AS checkpoints,
           COALESCE((SELECT SUM(octet_length(body) + octet_length(next_nodes) + octet_length(metadata))
                     FROM checkpoints WHERE thread_key = $1), 0)
               + COALESCE((SELECT SUM(octet_length(body)) FROM foreign_checkpoints WHERE thread_key = $1), 0)
               AS checkpoint_bytes,
           (SELECT COUNT(*) FROM payloads WHERE thread_key = $1) AS payloads,
           (SELECT SUM(octet_length(value)) FROM payloads WHERE thread_key = $1) AS payload_bytes,
           (SELECT COUNT(*) FROM task_writes WHERE thread_key = $1)
               + (SELECT COUNT(*) FROM foreign_writes WHERE thread_key = $1) AS task_writes,
           COALESCE((SELECT SUM(octet_length(body)) FROM task_writes WHERE thread_key = $1), 0)
               + COALESCE((SELECT SUM(octet_length(body)) FROM foreign_writes WHERE thread_key = $1), 0)
               AS task_write_bytes,
           (SELECT COUNT(*) FROM events WHERE thread_key = $1) AS events,
           (SELECT SUM(octet_length(data)) FROM events WHERE thread_key = $1) AS event_bytes,
           (SELECT COUNT(*) FROM runs WHERE thread_key = $1) AS runs,
           (SELECT SUM(octet_length(kwargs) + octet_length(metadata)) FROM runs WHERE thread_key = $1) AS run_bytes,
           (SELECT COUNT(*) FROM interrupts WHERE thread_key = $1) AS interrupts,
           (SELECT SUM(octet_length(question) + COALESCE(octet_length(response_schema), 0)
                       + COALESCE(octet_length(answer), 0))
            FROM interrupts WHERE thread_key = $1) AS interrupt_bytes,
           (SELECT COUNT(*) FROM effects WHERE thread_key = $1) AS effects,
           (SELECT SUM(COALESCE(octet_length(result), 0) + COALESCE(octet_length(error), 0))
            FROM effects WHERE thread_key = $1) AS effect_bytes,
           (SELECT COUNT(*) FROM task_log WHERE thread_key = $1) AS executions,
           (SELECT SUM(octet_length(detail)) FROM task_log WHERE thread_key = $1) AS execution_bytes
    FROM threads WHERE thread_key = $1 AND ($2 IS NULL OR tenant = $2)";

fn size(row: &SqliteRow, count: &str, bytes: &str) -> Result<Size> {
    Ok(Size { count: get(row, count)?, bytes: get::<Option<i64>>(row, bytes)?.unwrap_or(0) })
}

async fn sizes(conn: &mut SqliteConnection, scope: Scope, key: ThreadKey) -> Result<Option<ThreadSizes>> {
    let row =
        sqlx::query(SIZES).bind(key.0).bind(scope.filter()).fetch_optional(&mut *conn).await.map_err(driver_error)?;
    let Some(row) = row else { return Ok(None) };
    let lists = sqlx::query(
        "SELECT channel, COUNT(*) AS n, SUM(octet_length(items)) AS bytes FROM channel_log
         WHERE thread_key = $1 GROUP BY channel ORDER BY channel",
    )
    .bind(key.0)
    .fetch_all(conn)
    .await
    .map_err(driver_error)?;
    Ok(Some(ThreadSizes {
        checkpoints: size(&row, "checkpoints", "checkpoint_bytes")?,
        payloads: size(&row, "payloads", "payload_bytes")?,
        lists: lists.iter().map(|row| Ok((get(row, "channel")?, size(row, "n", "bytes")?))).collect::<Result<_>>()?,
        task_writes: size(&row, "task_writes", "task_write_bytes")?,
        events: size(&row, "events", "event_bytes")?,
        runs: size(&row, "runs", "run_bytes")?,
        interrupts: size(&row, "interrupts", "interrupt_bytes")?,
        effects: size(&row, "effects", "effect_bytes")?,
        executions: size(&row, "executions", "execution_bytes")?,
    }))
}

async fn hash_sizes(
    conn: &mut SqliteConnection,
    scope: Scope,
    key: ThreadKey,
    hashes: Vec<PayloadHash>,
) -> Result<Vec<(PayloadHash, i64)>> {
    let mut sizes = Vec::with_capacity(hashes.len());
    for hash in hashes {
        let row = sqlx::query(
            "SELECT octet_length(value) AS bytes FROM payloads
             WHERE thread_key = $1 AND hash = $2 AND ($3 IS NULL OR tenant = $3)",
        )
        .bind(key.0)
        .bind(hash.to_vec())
        .bind(scope.filter())
        .fetch_optional(&mut *conn)
        .await
        .map_err(driver_error)?;
        if let Some(row) = row {
            sizes.push((hash, get(&row, "bytes")?));
        }
    }
    Ok(sizes)
}

impl SqliteStorage {
    /// Removes what a deleted thread left, so that its name can be used again.
    pub(super) async fn reclaim_thread(&self, key: ThreadKey) -> Result<()> {
        for _ in 0..OWN_STEPS {
            if self.write(move |write| Box::pin(step_if_dead(write, key))).await? {
                return Ok(());
            }
        }
        Err(StorageError::Unavailable("a large thread of this name is still being removed".into()))
    }
}

#[async_trait]
impl Retention for SqliteStorage {
    async fn thread_ttl(&self, scope: &Scope, id: &ThreadId) -> Result<Option<ThreadTtl>> {
        let (scope, key) = (*scope, id.key(scope.tenant()));
        self.read(move |conn| {
            Box::pin(async move {
                let row = sqlx::query(
                    "SELECT ttl, ttl_strategy, updated_at FROM threads
                     WHERE thread_key = $1 AND ($2 IS NULL OR tenant = $2) AND ttl IS NOT NULL",
                )
                .bind(key.0)
                .bind(scope.filter())
                .fetch_optional(conn)
                .await
                .map_err(driver_error)?;
                let Some(row) = row else { return Ok(None) };
                let strategy: Option<String> = get(&row, "ttl_strategy")?;
                Ok(ttl_of(get(&row, "ttl")?, strategy.as_deref().unwrap_or_default(), get(&row, "updated_at")?))
            })
        })
        .await
    }

    async fn expired_threads(&self, scope: &Scope, limit: i64) -> Result<Vec<ExpiredThread>> {
        let scope = *scope;
        self.read(move |conn| {
            Box::pin(async move {
                let rows = sqlx::query(concat!(
                    "SELECT t.tenant, t.name, t.ttl_strategy FROM threads t
                     WHERE ($2 IS NULL OR t.tenant = $2) AND ",
                    due!(),
                    " ORDER BY t.updated_at + t.ttl LIMIT $3"
                ))
                .bind(clock())
                .bind(scope.filter())
                .bind(limit)
                .fetch_all(conn)
                .await
                .map_err(driver_error)?;
                rows.iter().map(expired_from).collect::<Result<Vec<_>>>()
            })
        })
        .await
    }

    async fn expire_thread(&self, scope: &Scope, id: &ThreadId) -> Result<bool> {
        let (tenant, key) = (scope.tenant(), id.key(scope.tenant()));
        self.write(move |write| Box::pin(expire(write, tenant, key))).await
    }

    async fn prune_thread(&self, scope: &Scope, id: &ThreadId, kept: &Kept) -> Result<Pruned> {
        let (key, kept) = (id.key(scope.tenant()), kept.clone());
        self.write(move |write| Box::pin(prune(write, key, kept))).await
    }

    async fn reclaim(&self, scope: &Scope) -> Result<bool> {
        let tenant = scope.filter();
        // Looked at by a reader first: an idle server sweeps without writing.
        let peek = self.read(|conn| {
            Box::pin(async move {
                let row = sqlx::query("SELECT EXISTS (SELECT 1 FROM dead_threads) AS it").fetch_one(conn).await;
                get::<bool>(&row.map_err(driver_error)?, "it")
            })
        });
        Ok(peek.await? && self.write(move |write| Box::pin(reclaim_one(write, tenant))).await?)
    }

    async fn thread_sizes(&self, scope: &Scope, id: &ThreadId) -> Result<Option<ThreadSizes>> {
        let (scope, key) = (*scope, id.key(scope.tenant()));
        self.read(move |conn| Box::pin(sizes(conn, scope, key))).await
    }

    async fn payload_sizes(
        &self,
        scope: &Scope,
        thread: ThreadKey,
        hashes: &[PayloadHash],
    ) -> Result<Vec<(PayloadHash, i64)>> {
        let (scope, hashes) = (*scope, hashes.to_vec());
        self.read(move |conn| Box::pin(hash_sizes(conn, scope, thread, hashes))).await
    }
}

fn expired_from(row: &SqliteRow) -> Result<ExpiredThread> {
    let (name, strategy): (String, Option<String>) = (get(row, "name")?, get(row, "ttl_strategy")?);
    let at = |column| Place { table: "threads", column, id: &name };
    Ok(ExpiredThread {
        scope: Scope::Tenant(get(row, "tenant")?),
        id: ThreadId::parse(&name).map_err(|error| at("name").corrupt(error.0))?,
        strategy: strategy
            .as_deref()
            .and_then(TtlStrategy::parse)
            .ok_or_else(|| at("ttl_strategy").corrupt(strategy.clone().unwrap_or_default()))?,
    })
}
