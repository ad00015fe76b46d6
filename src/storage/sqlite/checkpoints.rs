//! Checkpoints, task writes, payloads and channel logs on SQLite: the reads. They are written by the commits of runs.

use std::collections::HashMap;

use async_trait::async_trait;
use futures_util::TryStreamExt as _;
use sqlx::sqlite::SqliteConnection;
use uuid::Uuid;

use super::SqliteStorage;
use super::rows::{checkpoint_from, get, log_from};
use crate::model::{Scope, ThreadId, ThreadKey};
use crate::storage::encoding::{self, Place};
use crate::storage::rows::driver_error;
use crate::storage::{
    CheckpointFilter, CheckpointRow, Checkpoints, LogRange, LogRow, Payload, PayloadHash, Result, StoredCheckpoint,
    TaskWritesRow, Which, matching, payloads,
};

macro_rules! checkpoint_columns {
    () => {
        "c.thread_key, c.ns, c.checkpoint_id, c.tenant, c.parent_id, c.run_id, c.step, c.source, c.created_at, \
         c.metadata, c.codec, c.next_nodes, c.body, c.size_bytes"
    };
}

/// The writes on a checkpoint: of each task the row written last, ordered by (path, task id).
async fn writes_on(conn: &mut SqliteConnection, key: Uuid, row: &CheckpointRow) -> Result<Vec<TaskWritesRow>> {
    let rows = sqlx::query(
        "SELECT w.task_id, w.run_id, w.path, w.codec, w.body FROM task_writes w
         WHERE w.thread_key = $1 AND w.ns = $2 AND w.checkpoint_id = $3
           -- A later run wrote for the same task: its row counts, this one does not.
           AND NOT EXISTS (SELECT 1 FROM task_writes l
                           WHERE l.thread_key = w.thread_key AND l.ns = w.ns AND l.checkpoint_id = w.checkpoint_id
                             AND l.task_id = w.task_id
                             AND (l.written_at, l.run_id) > (w.written_at, w.run_id))
         ORDER BY w.path, w.task_id",
    )
    .bind(key)
    .bind(&row.ns)
    .bind(&row.id)
    .fetch_all(conn)
    .await
    .map_err(driver_error)?;
    rows.iter()
        .map(|found| {
            let task_id: String = get(found, "task_id")?;
            let name = format!("{key}/{}/{}/{task_id}", row.ns, row.id);
            let at = Place { table: "task_writes", column: "body", id: &name };
            let run_id: Uuid = get(found, "run_id")?;
            Ok(TaskWritesRow {
                ns: row.ns.clone(),
                checkpoint_id: row.id.clone(),
                run_id: (!run_id.is_nil()).then_some(run_id),
                path: get(found, "path")?,
                body: encoding::json(get(found, "codec")?, get(found, "body")?, at)?,
                task_id,
            })
        })
        .collect()
}

async fn load(
    conn: &mut SqliteConnection,
    scope: Scope,
    key: ThreadKey,
    ns: String,
    which: Which,
) -> Result<Option<StoredCheckpoint>> {
    let query = match &which {
        Which::Latest if ns.is_empty() => sqlx::query(concat!(
            "SELECT ",
            checkpoint_columns!(),
            " FROM checkpoints c
              WHERE c.thread_key = $1 AND c.ns = $2 AND ($3 IS NULL OR c.tenant = $3)
                AND c.checkpoint_id = (SELECT t.head FROM threads t WHERE t.thread_key = $1)"
        )),
        Which::Latest => sqlx::query(concat!(
            "SELECT ",
            checkpoint_columns!(),
            " FROM checkpoints c
              WHERE c.thread_key = $1 AND c.ns = $2 AND ($3 IS NULL OR c.tenant = $3)
              ORDER BY c.checkpoint_id DESC LIMIT 1"
        )),
        Which::Id(_) => sqlx::query(concat!(
            "SELECT ",
            checkpoint_columns!(),
            " FROM checkpoints c
              WHERE c.thread_key = $1 AND c.ns = $2 AND ($3 IS NULL OR c.tenant = $3) AND c.checkpoint_id = $4"
        )),
        Which::Before(_) => sqlx::query(concat!(
            "SELECT ",
            checkpoint_columns!(),
            " FROM checkpoints c
              WHERE c.thread_key = $1 AND c.ns = $2 AND ($3 IS NULL OR c.tenant = $3) AND c.checkpoint_id < $4
              ORDER BY c.checkpoint_id DESC LIMIT 1"
        )),
        Which::During(_) => sqlx::query(concat!(
            "SELECT ",
            checkpoint_columns!(),
            " FROM checkpoints c
              WHERE c.thread_key = $1 AND c.ns = $2 AND ($3 IS NULL OR c.tenant = $3)
                AND EXISTS (SELECT 1 FROM json_each(c.metadata, '$.parents') AS p WHERE p.key = '' AND p.value = $4)
              ORDER BY c.checkpoint_id DESC LIMIT 1"
        )),
    };
    let query = query.bind(key.0).bind(ns).bind(scope.filter());
    let query = match which {
        Which::Latest => query,
        Which::Id(id) | Which::Before(id) | Which::During(id) => query.bind(id),
    };
    let Some(row) = query.fetch_optional(&mut *conn).await.map_err(driver_error)? else { return Ok(None) };
    let row = checkpoint_from(&row)?;
    let writes = writes_on(conn, key.0, &row).await?;
    Ok(Some(StoredCheckpoint { row, writes }))
}

async fn list(
    conn: &mut SqliteConnection,
    scope: Scope,
    key: ThreadKey,
    filter: CheckpointFilter,
    limit: i64,
) -> Result<Vec<StoredCheckpoint>> {
    let mut kept = Vec::new();
    {
        let mut rows = sqlx::query(concat!(
            "SELECT ",
            checkpoint_columns!(),
            " FROM checkpoints c
              WHERE c.thread_key = $1 AND c.ns = $2 AND ($3 IS NULL OR c.tenant = $3)
                AND ($4 IS NULL OR c.checkpoint_id = $4) AND ($5 IS NULL OR c.checkpoint_id < $5)
              ORDER BY c.checkpoint_id DESC"
        ))
        .bind(key.0)
        .bind(filter.ns)
        .bind(scope.filter())
        .bind(filter.id)
        .bind(filter.before)
        .fetch(&mut *conn);
        while (kept.len() as i64) < limit {
            let Some(row) = rows.try_next().await.map_err(driver_error)? else { break };
            let row = checkpoint_from(&row)?;
            if filter.metadata.as_ref().is_none_or(|wanted| matching::has_members(&row.metadata, wanted)) {
                kept.push(row);
            }
        }
    }
    let mut found = Vec::with_capacity(kept.len());
    for row in kept {
        let writes = writes_on(conn, key.0, &row).await?;
        found.push(StoredCheckpoint { row, writes });
    }
    Ok(found)
}

async fn log_range(conn: &mut SqliteConnection, scope: Scope, key: ThreadKey, range: &LogRange) -> Result<Vec<LogRow>> {
    let rows = sqlx::query(
        "SELECT thread_key, ns, channel, branch, start, count, run_id, codec, items FROM channel_log
         WHERE thread_key = $1 AND ns = $2 AND channel = $3 AND branch = $4 AND start < $6
           -- Rows of a branch do not overlap: the last one that starts at or before the range is the first to read.
           AND start >= COALESCE((SELECT MAX(f.start) FROM channel_log f
                                  WHERE f.thread_key = $1 AND f.ns = $2 AND f.channel = $3 AND f.branch = $4
                                    AND f.start <= $5), 0)
           AND start + count > $5 AND ($7 IS NULL OR tenant = $7)
         ORDER BY start",
    )
    .bind(key.0)
    .bind(&range.ns)
    .bind(&range.channel)
    .bind(range.branch)
    .bind(range.start)
    .bind(range.end)
    .bind(scope.filter())
    .fetch_all(conn)
    .await
    .map_err(driver_error)?;
    rows.iter().map(log_from).collect()
}

async fn payload(
    conn: &mut SqliteConnection,
    scope: Scope,
    key: ThreadKey,
    hash: PayloadHash,
) -> Result<Option<Payload>> {
    let row = sqlx::query(
        "SELECT codec, value FROM payloads
         WHERE thread_key = $1 AND hash = $2 AND ($3 IS NULL OR tenant = $3)",
    )
    .bind(key.0)
    .bind(hash.to_vec())
    .bind(scope.filter())
    .fetch_optional(conn)
    .await
    .map_err(driver_error)?;
    let Some(row) = row else { return Ok(None) };
    payloads::read(key, hash, get(&row, "codec")?, get(&row, "value")?).map(Some)
}

#[async_trait]
impl Checkpoints for SqliteStorage {
    async fn load_checkpoint(
        &self,
        scope: &Scope,
        thread: ThreadKey,
        ns: &str,
        which: &Which,
    ) -> Result<Option<StoredCheckpoint>> {
        let (scope, ns, which) = (*scope, ns.to_owned(), which.clone());
        self.read(move |conn| Box::pin(load(conn, scope, thread, ns, which))).await
    }

    async fn list_checkpoints(
        &self,
        scope: &Scope,
        thread: ThreadKey,
        filter: &CheckpointFilter,
        limit: i64,
    ) -> Result<Vec<StoredCheckpoint>> {
        let (scope, filter) = (*scope, filter.clone());
        self.read(move |conn| Box::pin(list(conn, scope, thread, filter, limit))).await
    }

    async fn load_heads(&self, scope: &Scope, threads: &[ThreadKey]) -> Result<Vec<(ThreadKey, StoredCheckpoint)>> {
        let (scope, threads) = (*scope, threads.to_vec());
        self.read(move |conn| {
            Box::pin(async move {
                let mut found = Vec::new();
                for key in threads {
                    let head = load(&mut *conn, scope, key, String::new(), Which::Latest).await?;
                    found.extend(head.map(|head| (key, head)));
                }
                Ok(found)
            })
        })
        .await
    }

    async fn load_payloads(&self, scope: &Scope, thread: ThreadKey, hashes: &[PayloadHash]) -> Result<Vec<Payload>> {
        let (scope, hashes) = (*scope, hashes.to_vec());
        self.read(move |conn| {
            Box::pin(async move {
                let mut found = HashMap::new();
                for hash in &hashes {
                    if !found.contains_key(hash)
                        && let Some(payload) = payload(&mut *conn, scope, thread, *hash).await?
                    {
                        found.insert(*hash, payload);
                    }
                }
                payloads::complete(thread, &hashes, found)
            })
        })
        .await
    }

    async fn load_log(&self, scope: &Scope, thread: ThreadKey, ranges: &[LogRange]) -> Result<Vec<LogRow>> {
        let (scope, ranges) = (*scope, ranges.to_vec());
        self.read(move |conn| {
            Box::pin(async move {
                let mut found = Vec::new();
                for range in &ranges {
                    found.extend(log_range(&mut *conn, scope, thread, range).await?);
                }
                Ok(found)
            })
        })
        .await
    }

    async fn continued_branches(
        &self,
        scope: &Scope,
        thread: ThreadKey,
        ends: &[(String, String, i64, i64)],
    ) -> Result<Vec<(String, String, i64)>> {
        let (scope, ends) = (*scope, ends.to_vec());
        self.read(move |conn| {
            Box::pin(async move {
                let mut continued = Vec::new();
                for (ns, channel, branch, length) in ends {
                    let row = sqlx::query(
                        // Rows of a branch do not overlap: the last one says where it ends.
                        "SELECT COALESCE((SELECT start + count > $5 FROM channel_log
                                          WHERE thread_key = $1 AND ns = $2 AND channel = $3 AND branch = $4
                                            AND ($6 IS NULL OR tenant = $6)
                                          ORDER BY start DESC LIMIT 1), FALSE) AS longer",
                    )
                    .bind(thread.0)
                    .bind(&ns)
                    .bind(&channel)
                    .bind(branch)
                    .bind(length)
                    .bind(scope.filter())
                    .fetch_one(&mut *conn)
                    .await
                    .map_err(driver_error)?;
                    if get(&row, "longer")? {
                        continued.push((ns, channel, branch));
                    }
                }
                Ok(continued)
            })
        })
        .await
    }

    async fn list_namespaces_of(&self, scope: &Scope, thread_id: &ThreadId) -> Result<Vec<String>> {
        let (scope, key) = (*scope, thread_id.key(scope.tenant()));
        self.read(move |conn| {
            Box::pin(async move {
                let rows: Vec<(String,)> = sqlx::query_as(
                    "SELECT DISTINCT ns FROM checkpoints
                     WHERE thread_key = $1 AND ($2 IS NULL OR tenant = $2) ORDER BY ns",
                )
                .bind(key.0)
                .bind(scope.filter())
                .fetch_all(conn)
                .await
                .map_err(driver_error)?;
                Ok(rows.into_iter().map(|(ns,)| ns).collect())
            })
        })
        .await
    }
}
