//! Expiry, pruning and reclaiming on Postgres.

use async_trait::async_trait;
use sqlx::AssertSqlSafe;
use sqlx::postgres::{PgConnection, PgRow};
use uuid::Uuid;

use super::branches::drop_lost_names;
use super::rows::get;
use super::threads::{bury_thread, lock_thread};
use super::{PostgresStorage, now, read};
use crate::model::{CheckpointId, Scope, ThreadId, ThreadKey, ThreadTtl, TtlStrategy};
use crate::storage::encoding::Place;
use crate::storage::retention::{THREAD_TABLES, ttl_of};
use crate::storage::rows::driver_error;
use crate::storage::{
    ExpiredThread, Kept, PayloadHash, Pruned, Result, Retention, STEP_ROWS, Size, StorageError, ThreadSizes,
};

/// Steps that whoever needs the name of a deleted thread takes before giving up for now.
const OWN_STEPS: usize = 100;

/// Removes a part of the rows of a thread; true when none is left.
pub(super) async fn remove_rows(conn: &mut PgConnection, key: ThreadKey) -> Result<bool> {
    let mut done = true;
    for (table, columns) in THREAD_TABLES {
        // A run's entry in the lookup goes with it.
        let lookup = match table {
            "runs" => ", lookup AS (DELETE FROM run_lookup WHERE run_id IN (SELECT id FROM gone))",
            _ => "",
        };
        let id = if table == "runs" { "run_id AS id" } else { "1 AS id" };
        let statement = format!(
            "WITH gone AS (
                 DELETE FROM {table} WHERE (thread_key, {columns}) IN
                     (SELECT thread_key, {columns} FROM {table} WHERE thread_key = $1 LIMIT $2)
                 RETURNING {id}
             ){lookup}
             SELECT COUNT(*) AS n FROM gone"
        );
        let row = sqlx::query(AssertSqlSafe(statement))
            .bind(key.0)
            .bind(STEP_ROWS)
            .fetch_one(&mut *conn)
            .await
            .map_err(driver_error)?;
        done &= get::<i64>(&row, "n")? < STEP_ROWS;
    }
    Ok(done)
}

/// A step of removing what a deleted thread left; true when nothing is left. The caller has locked its tombstone.
async fn step(conn: &mut PgConnection, key: Uuid) -> Result<bool> {
    let done = remove_rows(conn, ThreadKey(key)).await?;
    if done {
        sqlx::query("DELETE FROM dead_threads WHERE thread_key = $1")
            .bind(key)
            .execute(conn)
            .await
            .map_err(driver_error)?;
    }
    Ok(done)
}

/// Removes the rows a statement names, $2 at most; true when there were fewer. $1 is the thread.
macro_rules! prune_rows {
    ($conn:expr, $key:expr, $statement:expr $(, $bind:expr)*) => {{
        let done = sqlx::query($statement)
            .bind($key.0)
            .bind(STEP_ROWS)
            $(.bind($bind))*
            .execute(&mut *$conn)
            .await
            .map_err(driver_error)?;
        (done.rows_affected() as i64) < STEP_ROWS
    }};
}
pub(super) use prune_rows;

async fn prune(conn: &mut PgConnection, key: ThreadKey, kept: &Kept) -> Result<Pruned> {
    if !lock_thread(conn, key).await? {
        return Ok(Pruned::Changed);
    }
    let row = sqlx::query(
        "SELECT t.head, EXISTS (SELECT 1 FROM runs a WHERE a.thread_key = t.thread_key
                                AND a.status IN ('pending', 'running')) AS busy
         FROM threads t WHERE t.thread_key = $1",
    )
    .bind(key.0)
    .fetch_one(&mut *conn)
    .await
    .map_err(driver_error)?;
    if get::<bool>(&row, "busy")? || get::<Option<String>>(&row, "head")? != kept.head {
        return Ok(Pruned::Changed);
    }
    let (spaces, ids): (Vec<&str>, Vec<&str>) =
        kept.checkpoints.iter().map(|(ns, id)| (ns.as_str(), id.as_str())).unzip();
    // Checkpoints first and alone: one that is still there must be readable.
    let checkpoints = prune_rows!(
        conn,
        key,
        "DELETE FROM checkpoints WHERE (thread_key, ns, checkpoint_id) IN (
             SELECT c.thread_key, c.ns, c.checkpoint_id FROM checkpoints c
             WHERE c.thread_key = $1
               AND NOT EXISTS (SELECT 1 FROM UNNEST($3::text[], $4::text[]) AS k (ns, id)
                               WHERE k.ns = c.ns AND k.id = c.checkpoint_id)
             ORDER BY c.ns, c.checkpoint_id LIMIT $2)",
        &spaces,
        &ids
    );
    if !checkpoints {
        return Ok(Pruned::More);
    }
    let task_writes = prune_rows!(
        conn,
        key,
        "DELETE FROM task_writes WHERE (thread_key, ns, checkpoint_id, task_id, run_id) IN (
             SELECT w.thread_key, w.ns, w.checkpoint_id, w.task_id, w.run_id FROM task_writes w
             WHERE w.thread_key = $1
               AND NOT EXISTS (SELECT 1 FROM UNNEST($3::text[], $4::text[]) AS k (ns, id)
                               WHERE k.ns = w.ns AND k.id = w.checkpoint_id)
             LIMIT $2)",
        &spaces,
        &ids
    );
    let on: Vec<&(String, CheckpointId)> = kept.checkpoints.iter().chain(&kept.origins).collect();
    let effects = prune_rows!(
        conn,
        key,
        "DELETE FROM effects WHERE (thread_key, ns, checkpoint_id, task_id, key) IN (
             SELECT e.thread_key, e.ns, e.checkpoint_id, e.task_id, e.key FROM effects e
             WHERE e.thread_key = $1
               AND NOT EXISTS (SELECT 1 FROM UNNEST($3::text[], $4::text[]) AS k (ns, id)
                               WHERE k.ns = e.ns AND k.id = e.checkpoint_id)
             LIMIT $2)",
        on.iter().map(|(ns, _)| ns.as_str()).collect::<Vec<_>>(),
        on.iter().map(|(_, id)| id.as_str()).collect::<Vec<_>>()
    );
    let hashes: Vec<Vec<u8>> = kept.payloads.iter().map(|hash| hash.to_vec()).collect();
    let payloads = prune_rows!(
        conn,
        key,
        "DELETE FROM payloads WHERE (thread_key, hash) IN (
             SELECT p.thread_key, p.hash FROM payloads p
             WHERE p.thread_key = $1 AND NOT EXISTS (SELECT 1 FROM UNNEST($3::bytea[]) AS k (hash) WHERE k.hash = p.hash)
             LIMIT $2)",
        &hashes
    );
    let log = prune_rows!(
        conn,
        key,
        "DELETE FROM channel_log WHERE (thread_key, ns, channel, branch, start) IN (
             SELECT l.thread_key, l.ns, l.channel, l.branch, l.start FROM channel_log l
             WHERE l.thread_key = $1
               AND NOT EXISTS (SELECT 1 FROM UNNEST($3::text[], $4::text[], $5::bigint[], $6::bigint[])
                                   AS k (ns, channel, branch, length)
                               WHERE k.ns = l.ns AND k.channel = l.channel AND k.branch = l.branch
                                 AND l.start < k.length)
             LIMIT $2)",
        kept.branches.iter().map(|branch| branch.0.clone()).collect::<Vec<_>>(),
        kept.branches.iter().map(|branch| branch.1.clone()).collect::<Vec<_>>(),
        kept.branches.iter().map(|branch| branch.2).collect::<Vec<_>>(),
        kept.branches.iter().map(|branch| branch.3).collect::<Vec<_>>()
    );
    if !(task_writes && effects && payloads && log) {
        return Ok(Pruned::More);
    }
    // What they came from is gone.
    sqlx::query("UPDATE checkpoints SET parent_id = NULL WHERE thread_key = $1 AND parent_id IS NOT NULL")
        .bind(key.0)
        .execute(&mut *conn)
        .await
        .map_err(driver_error)?;
    drop_lost_names(conn, key).await?;
    sqlx::query(concat!("UPDATE threads SET pruned_at = ", now!(), " WHERE thread_key = $1"))
        .bind(key.0)
        .execute(conn)
        .await
        .map_err(driver_error)?;
    Ok(Pruned::Done)
}

/// Whether a thread `t` is due and unused, as of now.
macro_rules! due {
    () => {
        concat!(
            "t.ttl IS NOT NULL AND (t.pruned_at IS NULL OR t.pruned_at < t.updated_at) AND t.updated_at + t.ttl <= ",
            now!(),
            " AND NOT EXISTS (SELECT 1 FROM runs a WHERE a.thread_key = t.thread_key
                              AND a.status IN ('pending', 'running'))"
        )
    };
}

const SIZES: &str = "
    SELECT (SELECT COUNT(*) FROM checkpoints WHERE thread_key = $1)
               + (SELECT COUNT(*) FROM foreign_checkpoints WHERE thread_key = $1) AS checkpoints,
           COALESCE((SELECT SUM(octet_length(body) + octet_length(next_nodes) + octet_length(metadata::text))::bigint
                     FROM checkpoints WHERE thread_key = $1), 0)
               + COALESCE((SELECT SUM(octet_length(body))::bigint FROM foreign_checkpoints WHERE thread_key = $1), 0)
               AS checkpoint_bytes,
           (SELECT COUNT(*) FROM payloads WHERE thread_key = $1) AS payloads,
           (SELECT SUM(octet_length(value))::bigint FROM payloads WHERE thread_key = $1) AS payload_bytes,
           (SELECT COUNT(*) FROM task_writes WHERE thread_key = $1)
               + (SELECT COUNT(*) FROM foreign_writes WHERE thread_key = $1) AS task_writes,
           COALESCE((SELECT SUM(octet_length(body))::bigint FROM task_writes WHERE thread_key = $1), 0)
               + COALESCE((SELECT SUM(octet_length(body))::bigint FROM foreign_writes WHERE thread_key = $1), 0)
               AS task_write_bytes,
           (SELECT COUNT(*) FROM events WHERE thread_key = $1) AS events,
           (SELECT SUM(octet_length(data))::bigint FROM events WHERE thread_key = $1) AS event_bytes,
           (SELECT COUNT(*) FROM runs WHERE thread_key = $1) AS runs,
           (SELECT SUM(octet_length(kwargs) + octet_length(metadata::text))::bigint
            FROM runs WHERE thread_key = $1) AS run_bytes,
           (SELECT COUNT(*) FROM interrupts WHERE thread_key = $1) AS interrupts,
           (SELECT SUM(octet_length(question) + COALESCE(octet_length(response_schema), 0)
                       + COALESCE(octet_length(answer), 0))::bigint
            FROM interrupts WHERE thread_key = $1) AS interrupt_bytes,
           (SELECT COUNT(*) FROM effects WHERE thread_key = $1) AS effects,
           (SELECT SUM(COALESCE(octet_length(result), 0) + COALESCE(octet_length(error), 0))::bigint
            FROM effects WHERE thread_key = $1) AS effect_bytes,
           (SELECT COUNT(*) FROM task_log WHERE thread_key = $1) AS executions,
           (SELECT SUM(octet_length(detail))::bigint FROM task_log WHERE thread_key = $1) AS execution_bytes
    FROM threads WHERE thread_key = $1 AND ($2::uuid IS NULL OR tenant = $2)";

fn size(row: &PgRow, count: &str, bytes: &str) -> Result<Size> {
    Ok(Size { count: get(row, count)?, bytes: get::<Option<i64>>(row, bytes)?.unwrap_or(0) })
}

impl PostgresStorage {
    /// Removes what a deleted thread left, so that its name can be used again.
    pub(super) async fn reclaim_thread(&self, key: ThreadKey) -> Result<()> {
        for _ in 0..OWN_STEPS {
            let mut transaction = self.begin().await?;
            let row = sqlx::query("SELECT 1 FROM dead_threads WHERE thread_key = $1 FOR UPDATE")
                .bind(key.0)
                .fetch_optional(&mut *transaction)
                .await
                .map_err(driver_error)?;
            if row.is_none() {
                return Ok(());
            }
            let done = step(&mut transaction, key.0).await?;
            self.commit(transaction).await?;
            if done {
                return Ok(());
            }
        }
        Err(StorageError::Unavailable("a large thread of this name is still being removed".into()))
    }
}

#[async_trait]
impl Retention for PostgresStorage {
    async fn thread_ttl(&self, scope: &Scope, id: &ThreadId) -> Result<Option<ThreadTtl>> {
        read!(self, async {
            let mut session = self.session().await?;
            let row = sqlx::query(
                "SELECT ttl, ttl_strategy, updated_at FROM threads
                 WHERE thread_key = $1 AND ($2::uuid IS NULL OR tenant = $2) AND ttl IS NOT NULL",
            )
            .bind(id.key(scope.tenant()).0)
            .bind(scope.filter())
            .fetch_optional(session.conn())
            .await
            .map_err(driver_error)?;
            session.finish().await?;
            let Some(row) = row else { return Ok(None) };
            let strategy: Option<String> = get(&row, "ttl_strategy")?;
            Ok(ttl_of(get(&row, "ttl")?, strategy.as_deref().unwrap_or_default(), get(&row, "updated_at")?))
        })
    }

    async fn expired_threads(&self, scope: &Scope, limit: i64) -> Result<Vec<ExpiredThread>> {
        read!(self, async {
            let mut session = self.session().await?;
            let rows = sqlx::query(concat!(
                "SELECT t.tenant, t.name, t.ttl_strategy FROM threads t
                 WHERE ($1::uuid IS NULL OR t.tenant = $1) AND ",
                due!(),
                " ORDER BY t.updated_at + t.ttl LIMIT $2"
            ))
            .bind(scope.filter())
            .bind(limit)
            .fetch_all(session.conn())
            .await
            .map_err(driver_error)?;
            session.finish().await?;
            rows.iter().map(expired_from).collect::<Result<Vec<_>>>()
        })
    }

    async fn expire_thread(&self, scope: &Scope, id: &ThreadId) -> Result<bool> {
        self.bounded(async {
            let key = id.key(scope.tenant());
            let mut transaction = self.begin().await?;
            if !lock_thread(&mut transaction, key).await? {
                return Ok(false);
            }
            let due = sqlx::query(concat!(
                "SELECT 1 FROM threads t WHERE t.thread_key = $1 AND t.ttl_strategy = 'delete' AND ",
                due!()
            ))
            .bind(key.0)
            .fetch_optional(&mut *transaction)
            .await
            .map_err(driver_error)?;
            if due.is_none() {
                return Ok(false);
            }
            bury_thread(&mut transaction, scope.tenant(), key).await?;
            self.commit(transaction).await?;
            Ok(true)
        })
        .await
    }

    async fn prune_thread(&self, scope: &Scope, id: &ThreadId, kept: &Kept) -> Result<Pruned> {
        self.bounded(async {
            let mut transaction = self.begin().await?;
            let pruned = prune(&mut transaction, id.key(scope.tenant()), kept).await?;
            if pruned != Pruned::Changed {
                self.commit(transaction).await?;
            }
            Ok(pruned)
        })
        .await
    }

    async fn reclaim(&self, scope: &Scope) -> Result<bool> {
        self.bounded(async {
            let mut transaction = self.begin().await?;
            let row = sqlx::query(
                "SELECT thread_key FROM dead_threads WHERE ($1::uuid IS NULL OR tenant = $1)
             ORDER BY deleted_at LIMIT 1 FOR UPDATE SKIP LOCKED",
            )
            .bind(scope.filter())
            .fetch_optional(&mut *transaction)
            .await
            .map_err(driver_error)?;
            let Some(row) = row else { return Ok(false) };
            step(&mut transaction, get(&row, "thread_key")?).await?;
            self.commit(transaction).await?;
            Ok(true)
        })
        .await
    }

    async fn thread_sizes(&self, scope: &Scope, id: &ThreadId) -> Result<Option<ThreadSizes>> {
        read!(self, async {
            let key = id.key(scope.tenant());
            let mut session = self.session().await?;
            let row = sqlx::query(SIZES)
                .bind(key.0)
                .bind(scope.filter())
                .fetch_optional(session.conn())
                .await
                .map_err(driver_error)?;
            let Some(row) = row else { return Ok(None) };
            let lists = sqlx::query(
                "SELECT channel, COUNT(*) AS n, SUM(octet_length(items))::bigint AS bytes FROM channel_log
                 WHERE thread_key = $1 GROUP BY channel ORDER BY channel",
            )
            .bind(key.0)
            .fetch_all(session.conn())
            .await
            .map_err(driver_error)?;
            session.finish().await?;
            Ok(Some(ThreadSizes {
                checkpoints: size(&row, "checkpoints", "checkpoint_bytes")?,
                payloads: size(&row, "payloads", "payload_bytes")?,
                lists: lists
                    .iter()
                    .map(|row| Ok((get(row, "channel")?, size(row, "n", "bytes")?)))
                    .collect::<Result<_>>()?,
                task_writes: size(&row, "task_writes", "task_write_bytes")?,
                events: size(&row, "events", "event_bytes")?,
                runs: size(&row, "runs", "run_bytes")?,
                interrupts: size(&row, "interrupts", "interrupt_bytes")?,
                effects: size(&row, "effects", "effect_bytes")?,
                executions: size(&row, "executions", "execution_bytes")?,
            }))
        })
    }

    async fn payload_sizes(
        &self,
        scope: &Scope,
        thread: ThreadKey,
        hashes: &[PayloadHash],
    ) -> Result<Vec<(PayloadHash, i64)>> {
        read!(self, async {
            let wanted: Vec<Vec<u8>> = hashes.iter().map(|hash| hash.to_vec()).collect();
            let mut session = self.session().await?;
            let rows = sqlx::query(
                "SELECT hash, octet_length(value)::bigint AS bytes FROM payloads
                 WHERE thread_key = $1 AND hash = ANY ($2::bytea[]) AND ($3::uuid IS NULL OR tenant = $3)",
            )
            .bind(thread.0)
            .bind(wanted)
            .bind(scope.filter())
            .fetch_all(session.conn())
            .await
            .map_err(driver_error)?;
            session.finish().await?;
            let mut sizes = Vec::with_capacity(rows.len());
            for row in &rows {
                if let Ok(hash) = PayloadHash::try_from(get::<Vec<u8>>(row, "hash")?.as_slice()) {
                    sizes.push((hash, get(row, "bytes")?));
                }
            }
            Ok(sizes)
        })
    }
}

fn expired_from(row: &PgRow) -> Result<ExpiredThread> {
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
