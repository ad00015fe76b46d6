//! Checkpoints, task writes, payloads and channel logs on Postgres: the reads, one statement each. They are written by
//! the commits of runs.

use std::collections::HashMap;

use async_trait::async_trait;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::rows::{checkpoint_from, get, log_from};
use super::{PostgresStorage, read};
use crate::model::{Scope, ThreadId, ThreadKey};
use crate::storage::encoding::{self, Place};
use crate::storage::rows::driver_error;
use crate::storage::{
    CheckpointFilter, Checkpoints, LogRange, LogRow, Payload, PayloadHash, Result, StoredCheckpoint, TaskWritesRow,
    Which, payloads,
};

/// A checkpoint with the writes on it as parallel arrays, from `checkpoints c`: of each task the row written last,
/// ordered by (path, task id).
macro_rules! select_checkpoints {
    () => {
        "SELECT c.thread_key, c.ns, c.checkpoint_id, c.tenant, c.parent_id, c.run_id, c.step, c.source, c.created_at,
                c.metadata::text AS metadata, c.codec, c.next_nodes, c.body, c.size_bytes,
                w.task_ids, w.run_ids, w.paths, w.codecs, w.bodies
         FROM checkpoints c
         LEFT JOIN LATERAL (
             SELECT array_agg(d.task_id ORDER BY d.path, d.task_id) AS task_ids,
                    array_agg(d.run_id ORDER BY d.path, d.task_id) AS run_ids,
                    array_agg(d.path ORDER BY d.path, d.task_id) AS paths,
                    array_agg(d.codec ORDER BY d.path, d.task_id) AS codecs,
                    array_agg(d.body ORDER BY d.path, d.task_id) AS bodies
             FROM (SELECT DISTINCT ON (p.task_id) p.task_id, p.run_id, p.path, p.codec, p.body
                   FROM task_writes p
                   WHERE p.thread_key = c.thread_key AND p.ns = c.ns AND p.checkpoint_id = c.checkpoint_id
                   ORDER BY p.task_id, p.written_at DESC, p.run_id DESC) AS d
         ) AS w ON TRUE "
    };
}

const LATEST_ROOT: &str = concat!(
    select_checkpoints!(),
    "WHERE c.thread_key = $1 AND c.ns = $2 AND ($3::uuid IS NULL OR c.tenant = $3)
       AND c.checkpoint_id = (SELECT t.head FROM threads t WHERE t.thread_key = $1)"
);

const LATEST: &str = concat!(
    select_checkpoints!(),
    "WHERE c.thread_key = $1 AND c.ns = $2 AND ($3::uuid IS NULL OR c.tenant = $3)
     ORDER BY c.checkpoint_id DESC LIMIT 1"
);

const BY_ID: &str = concat!(
    select_checkpoints!(),
    "WHERE c.thread_key = $1 AND c.ns = $2 AND ($3::uuid IS NULL OR c.tenant = $3) AND c.checkpoint_id = $4"
);

const BEFORE: &str = concat!(
    select_checkpoints!(),
    "WHERE c.thread_key = $1 AND c.ns = $2 AND ($3::uuid IS NULL OR c.tenant = $3) AND c.checkpoint_id < $4
     ORDER BY c.checkpoint_id DESC LIMIT 1"
);

const DURING: &str = concat!(
    select_checkpoints!(),
    "WHERE c.thread_key = $1 AND c.ns = $2 AND ($3::uuid IS NULL OR c.tenant = $3)
       AND c.metadata -> 'parents' ->> '' = $4
     ORDER BY c.checkpoint_id DESC LIMIT 1"
);

const LIST: &str = concat!(
    select_checkpoints!(),
    "WHERE c.thread_key = $1 AND c.ns = $2 AND ($3::uuid IS NULL OR c.tenant = $3)
       AND ($4::text IS NULL OR c.checkpoint_id = $4) AND ($5::text IS NULL OR c.checkpoint_id < $5)
       -- Equality member by member: containment would also accept parts of nested values.
       AND ($6::text IS NULL OR NOT EXISTS (SELECT 1 FROM jsonb_each($6::jsonb) AS f (key, value)
                                            WHERE c.metadata -> f.key IS DISTINCT FROM f.value))
     ORDER BY c.checkpoint_id DESC LIMIT $7"
);

const HEADS: &str = concat!(
    select_checkpoints!(),
    "JOIN threads t ON t.thread_key = c.thread_key AND t.head = c.checkpoint_id
     WHERE t.thread_key = ANY ($1) AND c.ns = '' AND ($2::uuid IS NULL OR t.tenant = $2)"
);

/// Where each range begins is found first, once; OFFSET 0 keeps the lateral a range scan of the key for each of them. The
/// first array stands in a subquery, so that Postgres guesses the same length whether it knows the list or not: otherwise
/// a plan for an unknown list looks so much dearer that every execution is planned anew.
const LOG: &str = "
    WITH r AS MATERIALIZED (
        SELECT w.ns, w.channel, w.branch, w.first, w.last, w.ordinal,
               -- Rows of a branch do not overlap: the last one that starts at or before the range is the first to read.
               COALESCE((SELECT MAX(f.start) FROM channel_log f
                         WHERE f.thread_key = $1 AND f.ns = w.ns AND f.channel = w.channel AND f.branch = w.branch
                           AND f.start <= w.first), 0) AS begins
        FROM UNNEST((SELECT $2::text[]), $3::text[], $4::bigint[], $5::bigint[], $6::bigint[]) WITH ORDINALITY
            AS w (ns, channel, branch, first, last, ordinal)
    )
    SELECT l.thread_key, l.ns, l.channel, l.branch, l.start, l.count, l.run_id, l.codec, l.items
    FROM r
    CROSS JOIN LATERAL (
        SELECT g.thread_key, g.ns, g.channel, g.branch, g.start, g.count, g.run_id, g.codec, g.items
        FROM channel_log g
        WHERE g.thread_key = $1 AND g.ns = r.ns AND g.channel = r.channel AND g.branch = r.branch
          AND g.start >= r.begins AND g.start < r.last AND g.start + g.count > r.first
          AND ($7::uuid IS NULL OR g.tenant = $7)
        OFFSET 0
    ) AS l
    ORDER BY r.ordinal, l.start";

/// A row of [`select_checkpoints`].
fn stored_from(row: &PgRow) -> Result<StoredCheckpoint> {
    let key: Uuid = get(row, "thread_key")?;
    let checkpoint = checkpoint_from(row)?;
    let task_ids: Option<Vec<String>> = get(row, "task_ids")?;
    let mut writes = Vec::new();
    if let Some(task_ids) = task_ids {
        let run_ids: Vec<Uuid> = get(row, "run_ids")?;
        let paths: Vec<String> = get(row, "paths")?;
        let codecs: Vec<i16> = get(row, "codecs")?;
        let bodies: Vec<Vec<u8>> = get(row, "bodies")?;
        for ((((task_id, run_id), path), codec), body) in
            task_ids.into_iter().zip(run_ids).zip(paths).zip(codecs).zip(bodies)
        {
            let name = format!("{key}/{}/{}/{task_id}", checkpoint.ns, checkpoint.id);
            let at = Place { table: "task_writes", column: "body", id: &name };
            writes.push(TaskWritesRow {
                ns: checkpoint.ns.clone(),
                checkpoint_id: checkpoint.id.clone(),
                run_id: (!run_id.is_nil()).then_some(run_id),
                path,
                body: encoding::json(codec, body, at)?,
                task_id,
            });
        }
    }
    Ok(StoredCheckpoint { row: checkpoint, writes })
}

#[async_trait]
impl Checkpoints for PostgresStorage {
    async fn load_checkpoint(
        &self,
        scope: &Scope,
        thread: ThreadKey,
        ns: &str,
        which: &Which,
    ) -> Result<Option<StoredCheckpoint>> {
        let (statement, id) = match which {
            Which::Latest if ns.is_empty() => (LATEST_ROOT, None),
            Which::Latest => (LATEST, None),
            Which::Id(id) => (BY_ID, Some(id)),
            Which::Before(id) => (BEFORE, Some(id)),
            Which::During(id) => (DURING, Some(id)),
        };
        read!(self, async {
            let mut session = self.session().await?;
            let query = sqlx::query(statement).bind(thread.0).bind(ns).bind(scope.filter());
            let query = match id {
                Some(id) => query.bind(id),
                None => query,
            };
            let row = query.fetch_optional(session.conn()).await.map_err(driver_error)?;
            session.finish().await?;
            row.as_ref().map(stored_from).transpose()
        })
    }

    async fn list_checkpoints(
        &self,
        scope: &Scope,
        thread: ThreadKey,
        filter: &CheckpointFilter,
        limit: i64,
    ) -> Result<Vec<StoredCheckpoint>> {
        read!(self, async {
            let mut session = self.session().await?;
            let rows = sqlx::query(LIST)
                .bind(thread.0)
                .bind(&filter.ns)
                .bind(scope.filter())
                .bind(&filter.id)
                .bind(&filter.before)
                .bind(filter.metadata.as_ref().map(encoding::metadata_text))
                .bind(limit)
                .fetch_all(session.conn())
                .await
                .map_err(driver_error)?;
            session.finish().await?;
            rows.iter().map(stored_from).collect::<Result<Vec<_>>>()
        })
    }

    async fn load_heads(&self, scope: &Scope, threads: &[ThreadKey]) -> Result<Vec<(ThreadKey, StoredCheckpoint)>> {
        let keys: Vec<Uuid> = threads.iter().map(|key| key.0).collect();
        let mut found: HashMap<ThreadKey, StoredCheckpoint> = read!(self, async {
            let mut session = self.session().await?;
            let rows = sqlx::query(HEADS)
                .bind(&keys)
                .bind(scope.filter())
                .fetch_all(session.conn())
                .await
                .map_err(driver_error)?;
            session.finish().await?;
            rows.iter().map(|row| Ok((ThreadKey(get(row, "thread_key")?), stored_from(row)?))).collect::<Result<_>>()
        })?;
        Ok(threads.iter().filter_map(|key| found.remove(key).map(|head| (*key, head))).collect())
    }

    async fn load_payloads(&self, scope: &Scope, thread: ThreadKey, hashes: &[PayloadHash]) -> Result<Vec<Payload>> {
        if hashes.is_empty() {
            return Ok(Vec::new());
        }
        let wanted: Vec<Vec<u8>> = hashes.iter().map(|hash| hash.to_vec()).collect();
        let rows = read!(self, async {
            let mut session = self.session().await?;
            let rows = sqlx::query(
                // The array in a subquery: see LOG.
                "SELECT hash, codec, value FROM payloads
                 WHERE thread_key = $1 AND hash = ANY ((SELECT $2::bytea[])::bytea[])
                   AND ($3::uuid IS NULL OR tenant = $3)",
            )
            .bind(thread.0)
            .bind(&wanted)
            .bind(scope.filter())
            .fetch_all(session.conn())
            .await
            .map_err(driver_error)?;
            session.finish().await?;
            Ok(rows)
        })?;
        let mut found = HashMap::with_capacity(rows.len());
        for row in &rows {
            let hash: Vec<u8> = get(row, "hash")?;
            if let Ok(hash) = PayloadHash::try_from(hash.as_slice()) {
                found.insert(hash, payloads::read(thread, hash, get(row, "codec")?, get(row, "value")?)?);
            }
        }
        payloads::complete(thread, hashes, found)
    }

    async fn load_log(&self, scope: &Scope, thread: ThreadKey, ranges: &[LogRange]) -> Result<Vec<LogRow>> {
        if ranges.is_empty() {
            return Ok(Vec::new());
        }
        read!(self, async {
            let mut session = self.session().await?;
            let rows = sqlx::query(LOG)
                .bind(thread.0)
                .bind(ranges.iter().map(|range| range.ns.clone()).collect::<Vec<_>>())
                .bind(ranges.iter().map(|range| range.channel.clone()).collect::<Vec<_>>())
                .bind(ranges.iter().map(|range| range.branch).collect::<Vec<_>>())
                .bind(ranges.iter().map(|range| range.start).collect::<Vec<_>>())
                .bind(ranges.iter().map(|range| range.end).collect::<Vec<_>>())
                .bind(scope.filter())
                .fetch_all(session.conn())
                .await
                .map_err(driver_error)?;
            session.finish().await?;
            rows.iter().map(log_from).collect::<Result<Vec<_>>>()
        })
    }

    async fn continued_branches(
        &self,
        scope: &Scope,
        thread: ThreadKey,
        ends: &[(String, String, i64, i64)],
    ) -> Result<Vec<(String, String, i64)>> {
        if ends.is_empty() {
            return Ok(Vec::new());
        }
        read!(self, async {
            let mut session = self.session().await?;
            let rows = sqlx::query(
                "SELECT r.ns, r.channel, r.branch
                 FROM UNNEST((SELECT $2::text[]), $3::text[], $4::bigint[], $5::bigint[]) WITH ORDINALITY
                     AS r (ns, channel, branch, length, ordinal)
                 -- Rows of a branch do not overlap: the last one says where it ends.
                 WHERE r.length < (SELECT l.start + l.count FROM channel_log l
                                   WHERE l.thread_key = $1 AND l.ns = r.ns AND l.channel = r.channel
                                     AND l.branch = r.branch AND ($6::uuid IS NULL OR l.tenant = $6)
                                   ORDER BY l.start DESC LIMIT 1)
                 ORDER BY r.ordinal",
            )
            .bind(thread.0)
            .bind(ends.iter().map(|end| end.0.clone()).collect::<Vec<_>>())
            .bind(ends.iter().map(|end| end.1.clone()).collect::<Vec<_>>())
            .bind(ends.iter().map(|end| end.2).collect::<Vec<_>>())
            .bind(ends.iter().map(|end| end.3).collect::<Vec<_>>())
            .bind(scope.filter())
            .fetch_all(session.conn())
            .await
            .map_err(driver_error)?;
            session.finish().await?;
            rows.iter()
                .map(|row| Ok((get(row, "ns")?, get(row, "channel")?, get(row, "branch")?)))
                .collect::<Result<Vec<_>>>()
        })
    }

    async fn list_namespaces_of(&self, scope: &Scope, thread_id: &ThreadId) -> Result<Vec<String>> {
        read!(self, async {
            let mut session = self.session().await?;
            let rows: Vec<(String,)> = sqlx::query_as(
                "SELECT DISTINCT ns FROM checkpoints
                 WHERE thread_key = $1 AND ($2::uuid IS NULL OR tenant = $2) ORDER BY ns",
            )
            .bind(thread_id.key(scope.tenant()).0)
            .bind(scope.filter())
            .fetch_all(session.conn())
            .await
            .map_err(driver_error)?;
            session.finish().await?;
            Ok(rows.into_iter().map(|(ns,)| ns).collect())
        })
    }
}
