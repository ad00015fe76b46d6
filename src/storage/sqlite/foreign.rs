//! Checkpoints from elsewhere on SQLite. The writer is alone, so what it reads stays true.

use async_trait::async_trait;
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use uuid::Uuid;

use super::retention::is_dead;
use super::rows::get;
use super::threads::{copy_thread, insert_thread};
use super::{SqliteStorage, Write, foreign_prune};
use crate::model::{CheckpointId, Json, Scope, ThreadId, ThreadKey, Timestamp};
use crate::storage::foreign::{put_by_thread, settled};
use crate::storage::foreign_rows::{body_columns, body_from, complete, payload_columns, payload_from};
use crate::storage::idempotency;
use crate::storage::rows::driver_error;
use crate::storage::{
    Foreign, ForeignBatch, ForeignCheckpoint, ForeignCopied, ForeignFilter, ForeignKept, ForeignOutcome,
    ForeignPayload, ForeignStatus, ForeignWrites, NewThread, PayloadHash, Pruned, Result, StorageError, StoredForeign,
};

/// Refuses what does not fit. `None`: it fits.
async fn refusal(write: &mut Write, key: ThreadKey, batch: &ForeignBatch) -> Result<Option<ForeignOutcome>> {
    for (ns, id) in &batch.parents {
        let found =
            sqlx::query("SELECT 1 FROM foreign_checkpoints WHERE thread_key = $1 AND ns = $2 AND checkpoint_id = $3")
                .bind(key.0)
                .bind(ns)
                .bind(id)
                .fetch_optional(&mut write.conn)
                .await
                .map_err(driver_error)?;
        if found.is_none() {
            return Ok(Some(ForeignOutcome::ParentMissing(ns.clone(), id.clone())));
        }
    }
    for (ns, id) in &batch.latest {
        let row =
            sqlx::query("SELECT MAX(checkpoint_id) AS id FROM foreign_checkpoints WHERE thread_key = $1 AND ns = $2")
                .bind(key.0)
                .bind(ns)
                .fetch_one(&mut write.conn)
                .await
                .map_err(driver_error)?;
        let latest: Option<String> = get(&row, "id")?;
        if latest != *id {
            return Ok(Some(ForeignOutcome::LatestMoved(ns.clone(), latest)));
        }
    }
    let mut lost = Vec::new();
    for hash in &batch.references {
        let found = sqlx::query("SELECT 1 FROM payloads WHERE thread_key = $1 AND hash = $2")
            .bind(key.0)
            .bind(hash.to_vec())
            .fetch_optional(&mut write.conn)
            .await
            .map_err(driver_error)?;
        if found.is_none() {
            lost.push(*hash);
        }
    }
    Ok((!lost.is_empty()).then_some(ForeignOutcome::PayloadsMissing(lost)))
}

/// `None`: rows of a deleted thread are in the way of the one to be made.
async fn put(write: &mut Write, tenant: Uuid, batch: ForeignBatch) -> Result<Option<ForeignOutcome>> {
    let key = batch.thread_id.key(tenant);
    let row = sqlx::query(
        "SELECT t.is_foreign, t.closed IS NOT NULL AS is_closed, t.head IS NULL
                    AND NOT EXISTS (SELECT 1 FROM runs r WHERE r.thread_key = t.thread_key)
                    AND NOT EXISTS (SELECT 1 FROM checkpoints c WHERE c.thread_key = t.thread_key) AS is_empty
         FROM threads t WHERE t.thread_key = $1",
    )
    .bind(key.0)
    .fetch_optional(&mut write.conn)
    .await
    .map_err(driver_error)?;
    let begins = !batch.checkpoints.is_empty();
    match &row {
        None if !begins => return Ok(Some(ForeignOutcome::ThreadMissing)),
        None if is_dead(&mut write.conn, key).await? => return Ok(None),
        Some(row) if get(row, "is_closed")? => return Ok(Some(ForeignOutcome::ThreadClosed)),
        Some(row) if !get::<bool>(row, "is_foreign")? => {
            if !get::<bool>(row, "is_empty")? {
                return Ok(Some(ForeignOutcome::ThreadNative));
            }
            if !begins {
                return Ok(Some(ForeignOutcome::ThreadMissing));
            }
        }
        _ => {}
    }
    if let Some(refusal) = refusal(write, key, &batch).await? {
        return Ok(Some(refusal));
    }
    if row.is_none() {
        let (metadata, config) = (Json::object(), Json::object());
        let new = NewThread { id: batch.thread_id.clone(), graph_id: None, metadata, config, ttl: batch.ttl };
        insert_thread(write, tenant, &new).await?;
    }
    for payload in &batch.payloads {
        let (codec, value) = payload_columns(&payload.bytes);
        sqlx::query(
            "INSERT INTO payloads (thread_key, hash, tenant, codec, value) VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT (thread_key, hash) DO NOTHING",
        )
        .bind(key.0)
        .bind(payload.hash.to_vec())
        .bind(tenant)
        .bind(codec)
        .bind(value)
        .execute(&mut write.conn)
        .await
        .map_err(driver_error)?;
    }
    for row in &batch.checkpoints {
        let (codec, body) = body_columns(&row.body);
        sqlx::query(
            "INSERT INTO foreign_checkpoints (thread_key, ns, checkpoint_id, tenant, parent_id, run_id, created_at, codec,
                                              body, size_bytes)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
             ON CONFLICT (thread_key, ns, checkpoint_id) DO UPDATE SET
                 parent_id = excluded.parent_id, run_id = excluded.run_id, codec = excluded.codec, body = excluded.body,
                 size_bytes = excluded.size_bytes
             WHERE (parent_id, run_id, body) IS NOT (excluded.parent_id, excluded.run_id, excluded.body)",
        )
        .bind(key.0)
        .bind(&row.ns)
        .bind(&row.id)
        .bind(tenant)
        .bind(&row.parent)
        .bind(&row.run_id)
        .bind(write.now)
        .bind(codec)
        .bind(body)
        .bind(row.bytes)
        .execute(&mut write.conn)
        .await
        .map_err(driver_error)?;
    }
    // Microseconds apart, so that they are read in this order.
    for (at, row) in (write.now..).zip(&batch.writes) {
        let (codec, body) = body_columns(&row.body);
        sqlx::query(
            "INSERT INTO foreign_writes (thread_key, ns, checkpoint_id, task_id, slot, tenant, path, written_at, codec,
                                         body)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
             ON CONFLICT (thread_key, ns, checkpoint_id, task_id, slot) DO UPDATE SET
                 path = excluded.path, codec = excluded.codec, body = excluded.body, written_at = excluded.written_at
             WHERE slot LIKE '-%' AND body <> excluded.body",
        )
        .bind(key.0)
        .bind(&row.ns)
        .bind(&row.checkpoint_id)
        .bind(&row.task_id)
        .bind(&row.slot)
        .bind(tenant)
        .bind(&row.path)
        .bind(at)
        .bind(codec)
        .bind(body)
        .execute(&mut write.conn)
        .await
        .map_err(driver_error)?;
    }
    let status = match &batch.status {
        Some(status) => rests_at(write, key, status).await?,
        None => None,
    };
    // Once a second is enough for what is shown and for what expires.
    sqlx::query(
        "UPDATE threads SET is_foreign = 1, rest_status = COALESCE($3, rest_status), updated_at = $2,
                            state_updated_at = $2
         WHERE thread_key = $1 AND (NOT is_foreign OR rest_status <> $3 OR updated_at < $2 - 1000000
                                    OR pruned_at >= updated_at)",
    )
    .bind(key.0)
    .bind(write.now)
    .bind(status)
    .execute(&mut write.conn)
    .await
    .map_err(driver_error)?;
    Ok(Some(ForeignOutcome::Stored))
}

/// What the thread rests at once a batch is stored; `None`: as before.
async fn rests_at(write: &mut Write, key: ThreadKey, status: &ForeignStatus) -> Result<Option<String>> {
    let row = sqlx::query(
        "SELECT CASE WHEN $3 = 'idle' THEN COALESCE(
                         (SELECT CASE slot WHEN '-1' THEN 'error' ELSE 'interrupted' END FROM foreign_writes
                          WHERE thread_key = $1 AND ns = '' AND checkpoint_id = $2 AND slot IN ('-1', '-3')
                          ORDER BY slot LIMIT 1), 'idle')
                     WHEN EXISTS (SELECT 1 FROM foreign_checkpoints
                                  WHERE thread_key = $1 AND ns = '' AND checkpoint_id > $2) THEN NULL
                     ELSE $3 END AS status",
    )
    .bind(key.0)
    .bind(&status.on)
    .bind(status.status.as_str())
    .fetch_one(&mut write.conn)
    .await
    .map_err(driver_error)?;
    get(&row, "status")
}

macro_rules! checkpoint_columns {
    () => {
        "c.thread_key, c.ns, c.checkpoint_id, c.parent_id, c.run_id, c.created_at, c.codec, c.body, c.size_bytes"
    };
}

/// A row with the writes on it in the order they were made.
async fn with_writes(conn: &mut SqliteConnection, row: &SqliteRow) -> Result<StoredForeign> {
    let key: Uuid = get(row, "thread_key")?;
    let (ns, id): (String, String) = (get(row, "ns")?, get(row, "checkpoint_id")?);
    let name = format!("{key}/{ns}/{id}");
    let body = body_from("foreign_checkpoints", &name, get(row, "codec")?, get(row, "body")?)?;
    let rows = sqlx::query(
        "SELECT task_id, slot, path, codec, body FROM foreign_writes
         WHERE thread_key = $1 AND ns = $2 AND checkpoint_id = $3 ORDER BY written_at, slot",
    )
    .bind(key)
    .bind(&ns)
    .bind(&id)
    .fetch_all(conn)
    .await
    .map_err(driver_error)?;
    let writes = rows.iter().map(|found| {
        let task_id: String = get(found, "task_id")?;
        let at = format!("{name}/{task_id}");
        Ok(ForeignWrites {
            ns: ns.clone(),
            checkpoint_id: id.clone(),
            slot: get(found, "slot")?,
            path: get(found, "path")?,
            body: body_from("foreign_writes", &at, get(found, "codec")?, get(found, "body")?)?,
            task_id,
        })
    });
    let writes = writes.collect::<Result<_>>()?;
    let at = Timestamp(get(row, "created_at")?);
    let row = ForeignCheckpoint {
        parent: get(row, "parent_id")?,
        run_id: get(row, "run_id")?,
        body,
        bytes: get(row, "size_bytes")?,
        ns,
        id,
    };
    Ok(StoredForeign { row, at, writes })
}

pub(super) async fn load(
    conn: &mut SqliteConnection,
    scope: Scope,
    key: ThreadKey,
    ns: String,
    id: Option<String>,
) -> Result<Option<StoredForeign>> {
    let row = sqlx::query(concat!(
        "SELECT ",
        checkpoint_columns!(),
        " FROM foreign_checkpoints c
          WHERE c.thread_key = $1 AND c.ns = $2 AND ($3 IS NULL OR c.tenant = $3)
            -- Rows that a deleted thread left are not shown.
            AND EXISTS (SELECT 1 FROM threads t WHERE t.thread_key = $1)
            AND ($4 IS NULL OR c.checkpoint_id = $4)
          ORDER BY c.checkpoint_id DESC LIMIT 1"
    ))
    .bind(key.0)
    .bind(ns)
    .bind(scope.filter())
    .bind(id)
    .fetch_optional(&mut *conn)
    .await
    .map_err(driver_error)?;
    match row {
        Some(row) => with_writes(conn, &row).await.map(Some),
        None => Ok(None),
    }
}

pub(super) async fn list(
    conn: &mut SqliteConnection,
    scope: Scope,
    key: ThreadKey,
    filter: ForeignFilter,
    limit: i64,
) -> Result<Vec<StoredForeign>> {
    let (after_ns, after_id) = filter.after.unzip();
    let rows = sqlx::query(concat!(
        "SELECT ",
        checkpoint_columns!(),
        " FROM foreign_checkpoints c
          WHERE c.thread_key = $1 AND ($2 IS NULL OR c.ns = $2) AND ($3 IS NULL OR c.tenant = $3)
            AND EXISTS (SELECT 1 FROM threads t WHERE t.thread_key = $1)
            AND ($4 IS NULL OR c.checkpoint_id = $4) AND ($5 IS NULL OR c.checkpoint_id < $5)
            AND ($6 IS NULL OR c.ns > $6 OR (c.ns = $6 AND c.checkpoint_id < $7))
          ORDER BY c.ns, c.checkpoint_id DESC LIMIT $8"
    ))
    .bind(key.0)
    .bind(filter.ns)
    .bind(scope.filter())
    .bind(filter.id)
    .bind(filter.before)
    .bind(after_ns)
    .bind(after_id)
    .bind(limit)
    .fetch_all(&mut *conn)
    .await
    .map_err(driver_error)?;
    let mut found = Vec::with_capacity(rows.len());
    for row in &rows {
        found.push(with_writes(conn, row).await?);
    }
    Ok(found)
}

async fn payload(
    conn: &mut SqliteConnection,
    scope: Scope,
    key: ThreadKey,
    hash: PayloadHash,
) -> Result<Option<ForeignPayload>> {
    let row = sqlx::query(
        "SELECT codec, value FROM payloads WHERE thread_key = $1 AND hash = $2 AND ($3 IS NULL OR tenant = $3)",
    )
    .bind(key.0)
    .bind(hash.to_vec())
    .bind(scope.filter())
    .fetch_optional(conn)
    .await
    .map_err(driver_error)?;
    row.map(|row| payload_from(key, &hash, get(&row, "codec")?, get(&row, "value")?)).transpose()
}

async fn payloads(
    conn: &mut SqliteConnection,
    scope: Scope,
    key: ThreadKey,
    hashes: Vec<PayloadHash>,
) -> Result<Vec<ForeignPayload>> {
    let mut found = Vec::with_capacity(hashes.len());
    let mut seen: std::collections::HashSet<PayloadHash> = hashes.iter().copied().collect();
    let mut next: Vec<PayloadHash> = seen.iter().copied().collect();
    // Down to the last part.
    while let Some(hash) = next.pop() {
        let Some(payload) = payload(conn, scope, key, hash).await? else { continue };
        next.extend(payload.bytes.parts().iter().filter(|part| seen.insert(**part)));
        found.push(payload);
    }
    complete(key, &hashes, found)
}

pub(super) async fn latest(
    conn: &mut SqliteConnection,
    scope: Scope,
    key: ThreadKey,
) -> Result<Vec<(String, CheckpointId)>> {
    let rows = sqlx::query(
        "SELECT ns, MAX(checkpoint_id) AS id FROM foreign_checkpoints
         WHERE thread_key = $1 AND ($2 IS NULL OR tenant = $2)
           AND EXISTS (SELECT 1 FROM threads t WHERE t.thread_key = $1)
         GROUP BY ns ORDER BY ns",
    )
    .bind(key.0)
    .bind(scope.filter())
    .fetch_all(conn)
    .await
    .map_err(driver_error)?;
    rows.iter().map(|row| Ok((get(row, "ns")?, get(row, "id")?))).collect()
}

async fn delete_runs(
    write: &mut Write,
    tenant: Uuid,
    run_ids: Vec<String>,
    limit: i64,
) -> Result<(i64, Vec<ThreadId>)> {
    let mut gone = 0;
    let mut threads: Vec<ThreadId> = Vec::new();
    for run_id in run_ids {
        let rows = sqlx::query(
            "SELECT c.thread_key, c.ns, c.checkpoint_id, t.name FROM foreign_checkpoints c
             JOIN threads t ON t.thread_key = c.thread_key
             WHERE c.tenant = $1 AND c.run_id = $2 LIMIT $3",
        )
        .bind(tenant)
        .bind(run_id)
        .bind(limit - gone)
        .fetch_all(&mut write.conn)
        .await
        .map_err(driver_error)?;
        for row in &rows {
            for statement in [
                "DELETE FROM foreign_checkpoints WHERE thread_key = $1 AND ns = $2 AND checkpoint_id = $3",
                "DELETE FROM foreign_writes WHERE thread_key = $1 AND ns = $2 AND checkpoint_id = $3",
            ] {
                sqlx::query(statement)
                    .bind(get::<Uuid>(row, "thread_key")?)
                    .bind(get::<String>(row, "ns")?)
                    .bind(get::<String>(row, "checkpoint_id")?)
                    .execute(&mut write.conn)
                    .await
                    .map_err(driver_error)?;
            }
            gone += 1;
            let name: String = get(row, "name")?;
            let id = ThreadId::parse(&name).map_err(|error| StorageError::Other(error.0))?;
            if !threads.contains(&id) {
                threads.push(id);
            }
        }
    }
    Ok((gone, threads))
}

pub(super) async fn is_foreign(conn: &mut SqliteConnection, scope: Scope, key: ThreadKey) -> Result<bool> {
    let row = sqlx::query("SELECT is_foreign FROM threads WHERE thread_key = $1 AND ($2 IS NULL OR tenant = $2)")
        .bind(key.0)
        .bind(scope.filter())
        .fetch_optional(conn)
        .await
        .map_err(driver_error)?;
    Ok(row.map(|row| get(&row, "is_foreign")).transpose()?.unwrap_or(false))
}

async fn copy(write: &mut Write, scope: Scope, from: ThreadId, to: ThreadId) -> Result<ForeignCopied> {
    if !is_foreign(&mut write.conn, scope, from.key(scope.tenant())).await? {
        return Ok(ForeignCopied::Missing);
    }
    let taken = sqlx::query("SELECT 1 FROM threads WHERE thread_key = $1")
        .bind(to.key(scope.tenant()).0)
        .fetch_optional(&mut write.conn)
        .await
        .map_err(driver_error)?;
    if taken.is_some() {
        return Ok(ForeignCopied::Taken);
    }
    copy_thread(write, scope, from, to).await.map(|_| ForeignCopied::Copied)
}

#[async_trait]
impl Foreign for SqliteStorage {
    async fn put_foreign(&self, scope: &Scope, batch: &ForeignBatch) -> Result<ForeignOutcome> {
        let (tenant, batch) = (scope.tenant(), settled(batch));
        for _ in 0..3 {
            let next = batch.clone();
            let is_done = |outcome: &Option<ForeignOutcome>| *outcome == Some(ForeignOutcome::Stored);
            let outcome = self.write_if(is_done, move |write| Box::pin(put(write, tenant, next))).await?;
            if let Some(outcome) = outcome {
                return Ok(outcome);
            }
            idempotency::aside(self.reclaim_thread(batch.thread_id.key(tenant))).await?;
        }
        Err(StorageError::Unavailable(format!("thread {} is being created and deleted", batch.thread_id)))
    }

    async fn put_foreign_each(&self, scope: &Scope, batches: &[ForeignBatch]) -> Vec<Result<ForeignOutcome>> {
        let mut outcomes = put_by_thread(batches, 0..batches.len(), |batch| self.put_foreign(scope, batch)).await;
        outcomes.sort_by_key(|(at, _)| *at);
        outcomes.into_iter().map(|(_, outcome)| outcome).collect()
    }

    async fn foreign_among(&self, scope: &Scope, threads: &[ThreadKey]) -> Result<Vec<ThreadKey>> {
        let (scope, threads) = (*scope, threads.to_vec());
        self.read(move |conn| {
            Box::pin(async move {
                let mut found = Vec::new();
                for key in threads {
                    if is_foreign(conn, scope, key).await? {
                        found.push(key);
                    }
                }
                Ok(found)
            })
        })
        .await
    }

    async fn load_foreign(
        &self,
        scope: &Scope,
        thread: ThreadKey,
        ns: &str,
        id: Option<&str>,
    ) -> Result<Option<StoredForeign>> {
        let (scope, ns, id) = (*scope, ns.to_owned(), id.map(str::to_owned));
        self.read(move |conn| Box::pin(load(conn, scope, thread, ns, id))).await
    }

    async fn list_foreign(
        &self,
        scope: &Scope,
        thread: ThreadKey,
        filter: &ForeignFilter,
        limit: i64,
    ) -> Result<Vec<StoredForeign>> {
        let (scope, filter) = (*scope, filter.clone());
        self.read(move |conn| Box::pin(list(conn, scope, thread, filter, limit))).await
    }

    async fn load_foreign_payloads(
        &self,
        scope: &Scope,
        thread: ThreadKey,
        hashes: &[PayloadHash],
    ) -> Result<Vec<ForeignPayload>> {
        if hashes.is_empty() {
            return Ok(Vec::new());
        }
        let (scope, hashes) = (*scope, hashes.to_vec());
        self.read(move |conn| Box::pin(payloads(conn, scope, thread, hashes))).await
    }

    async fn latest_foreign(&self, scope: &Scope, thread: ThreadKey) -> Result<Vec<(String, CheckpointId)>> {
        let scope = *scope;
        self.read(move |conn| Box::pin(latest(conn, scope, thread))).await
    }

    async fn delete_foreign_runs(&self, scope: &Scope, run_ids: &[String], limit: i64) -> Result<(i64, Vec<ThreadId>)> {
        let (tenant, run_ids) = (scope.tenant(), run_ids.to_vec());
        self.write(move |write| Box::pin(delete_runs(write, tenant, run_ids, limit))).await
    }

    async fn prune_foreign(&self, scope: &Scope, id: &ThreadId, kept: &ForeignKept) -> Result<Pruned> {
        let (scope, key, kept) = (*scope, id.key(scope.tenant()), kept.clone());
        self.write(move |write| Box::pin(foreign_prune::prune(write, scope, key, kept))).await
    }

    async fn copy_foreign(&self, scope: &Scope, from: &ThreadId, to: &ThreadId) -> Result<ForeignCopied> {
        self.reclaim_thread(to.key(scope.tenant())).await?;
        let (scope, from, to) = (*scope, from.clone(), to.clone());
        self.write(move |write| Box::pin(copy(write, scope, from, to))).await
    }
}
