//! Checkpoints from elsewhere on Postgres. Batches are one autocommit statement when nothing stands in their way
//! (`foreign_alone`, `foreign_together`). Of the others each is a statement of its own, and then, if need be, one behind a lock on its
//! thread, where what it sees is true.

use std::collections::HashSet;

use async_trait::async_trait;
use sqlx::postgres::{PgConnection, PgRow};
use uuid::Uuid;

use super::rows::get;
use super::threads::{copy_thread, lock_thread};
use super::{PostgresStorage, foreign_alone, foreign_prune, foreign_together, now, read};
use crate::model::{CheckpointId, Scope, ThreadId, ThreadKey, Timestamp};
use crate::storage::foreign::{put_by_thread, settled};
use crate::storage::foreign_rows::{body_columns, body_from, complete, payload_columns, payload_from};
use crate::storage::rows::driver_error;
use crate::storage::{
    Foreign, ForeignBatch, ForeignCheckpoint, ForeignCopied, ForeignFilter, ForeignKept, ForeignOutcome,
    ForeignPayload, ForeignWrites, PayloadHash, Pruned, Result, StorageError, StoredForeign,
};

/// What a thread rests at once a batch is stored ([`crate::storage::ForeignStatus`]); null: as before. In SQL, of the key of
/// the thread, the checkpoint, and the status of the batch.
macro_rules! rests_at {
    ($key:literal, $on:literal, $status:literal) => {
        concat!(
            "CASE WHEN ",
            $status,
            " = 'idle' THEN COALESCE(
                 (SELECT CASE w.slot WHEN '-1' THEN 'error' ELSE 'interrupted' END FROM foreign_writes w
                  WHERE w.thread_key = ",
            $key,
            " AND w.ns = '' AND w.checkpoint_id = ",
            $on,
            " AND w.slot IN ('-1', '-3')
                  ORDER BY w.slot LIMIT 1), 'idle')
             WHEN EXISTS (SELECT 1 FROM foreign_checkpoints c
                          WHERE c.thread_key = ",
            $key,
            " AND c.ns = '' AND c.checkpoint_id > ",
            $on,
            ") THEN NULL
             ELSE ",
            $status,
            " END AS status"
        )
    };
}
pub(super) use rests_at;

/// Checks and stores a batch. Nothing is stored unless the thread is as the snapshot shows it: whoever removes something from
/// a thread raises its revision.
const PUT: &str = concat!(
    "WITH clock AS MATERIALIZED (SELECT ",
    now!(),
    " AS now),
    snap AS MATERIALIZED (SELECT revision FROM threads WHERE thread_key = $1),
    dead AS MATERIALIZED (SELECT 1 FROM dead_threads WHERE thread_key = $1),
    t AS MATERIALIZED (
        SELECT t.revision FROM threads t WHERE t.thread_key = $1 AND t.is_foreign AND t.closed IS NULL FOR UPDATE
    ),
    lost_parent AS MATERIALIZED (
        SELECT p.ns, p.id FROM UNNEST($3::text[], $4::text[]) WITH ORDINALITY AS p (ns, id, ordinal)
        WHERE NOT EXISTS (SELECT 1 FROM foreign_checkpoints c
                          WHERE c.thread_key = $1 AND c.ns = p.ns AND c.checkpoint_id = p.id)
        ORDER BY p.ordinal LIMIT 1
    ),
    moved AS MATERIALIZED (
        SELECT e.ns, e.latest FROM (
            SELECT l.ns, l.id, l.ordinal, (SELECT MAX(c.checkpoint_id) FROM foreign_checkpoints c
                                           WHERE c.thread_key = $1 AND c.ns = l.ns) AS latest
            FROM UNNEST($5::text[], $6::text[]) WITH ORDINALITY AS l (ns, id, ordinal)
        ) AS e WHERE e.latest IS DISTINCT FROM e.id ORDER BY e.ordinal LIMIT 1
    ),
    lost_payload AS MATERIALIZED (
        -- A subquery for each, by its key: a join might read all payloads of the thread.
        SELECT r.hash FROM UNNEST($7::bytea[]) AS r (hash)
        WHERE (SELECT p.codec FROM payloads p WHERE p.thread_key = $1 AND p.hash = r.hash) IS NULL
    ),
    fits AS MATERIALIZED (
        SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM lost_parent) AND NOT EXISTS (SELECT 1 FROM moved)
                   AND NOT EXISTS (SELECT 1 FROM lost_payload)
    ),
    inserted AS (
        INSERT INTO threads (thread_key, tenant, name, metadata, codec, config, rest_status, last_event, revision,
                             created_at, updated_at, state_updated_at, ttl, ttl_strategy, is_foreign)
        SELECT $1, $2, $8, '{}', 0, '{}', COALESCE($9, 'idle'), 0, clock.now, clock.now, clock.now, clock.now, $10, $11,
               TRUE
        FROM clock, fits
        WHERE $12 AND NOT EXISTS (SELECT 1 FROM snap) AND NOT EXISTS (SELECT 1 FROM dead)
        ON CONFLICT (thread_key) DO NOTHING
        RETURNING 1
    ),
    going AS MATERIALIZED (
        SELECT clock.now FROM clock, fits
        WHERE EXISTS (SELECT 1 FROM inserted)
           OR (SELECT t.revision FROM t) = (SELECT snap.revision FROM snap)
    ),
    put_payloads AS (
        INSERT INTO payloads (thread_key, hash, tenant, codec, value)
        SELECT $1, p.hash, $2, p.codec, p.value
        FROM going, UNNEST($13::bytea[], $14::smallint[], $15::bytea[]) AS p (hash, codec, value)
        ON CONFLICT (thread_key, hash) DO NOTHING
    ),
    put_checkpoints AS (
        INSERT INTO foreign_checkpoints AS c (thread_key, ns, checkpoint_id, tenant, parent_id, run_id, created_at, codec,
                                              body, size_bytes)
        SELECT $1, p.ns, p.id, $2, p.parent, p.run, going.now, p.codec, p.body, p.bytes
        FROM going, UNNEST($16::text[], $17::text[], $18::text[], $19::text[], $20::bytea[], $21::bigint[],
                           $28::smallint[])
            AS p (ns, id, parent, run, body, bytes, codec)
        ON CONFLICT (thread_key, ns, checkpoint_id) DO UPDATE SET
            parent_id = EXCLUDED.parent_id, run_id = EXCLUDED.run_id, codec = EXCLUDED.codec, body = EXCLUDED.body,
            size_bytes = EXCLUDED.size_bytes
        WHERE (c.parent_id, c.run_id, c.body) IS DISTINCT FROM (EXCLUDED.parent_id, EXCLUDED.run_id, EXCLUDED.body)
    ),
    put_writes AS (
        INSERT INTO foreign_writes AS w (thread_key, ns, checkpoint_id, task_id, slot, tenant, path, written_at, codec,
                                         body)
        -- Microseconds apart, so that they are read in this order.
        SELECT $1, p.ns, p.id, p.task, p.slot, $2, p.path, going.now + p.ordinal, p.codec, p.body
        FROM going, UNNEST($22::text[], $23::text[], $24::text[], $25::text[], $26::text[], $27::bytea[],
                           $29::smallint[])
            WITH ORDINALITY AS p (ns, id, task, slot, path, body, codec, ordinal)
        ON CONFLICT (thread_key, ns, checkpoint_id, task_id, slot) DO UPDATE SET
            path = EXCLUDED.path, codec = EXCLUDED.codec, body = EXCLUDED.body, written_at = EXCLUDED.written_at
        WHERE w.slot LIKE '-%' AND w.body <> EXCLUDED.body
    ),
    touched AS (
        -- Once a second is enough for what is shown and for what expires.
        UPDATE threads x SET rest_status = COALESCE(rest.status, x.rest_status), updated_at = going.now,
                             state_updated_at = going.now
        FROM going, (
            SELECT ",
    rests_at!("$1", "$30", "$9"),
    "
        ) AS rest
        WHERE x.thread_key = $1
          AND (x.rest_status <> rest.status OR x.updated_at < going.now - 1000000 OR x.pruned_at >= x.updated_at)
    )
    SELECT EXISTS (SELECT 1 FROM going) AS stored, EXISTS (SELECT 1 FROM snap) AS found,
           EXISTS (SELECT 1 FROM dead) AS is_dead, EXISTS (SELECT 1 FROM t) AS is_foreign,
           (SELECT ns FROM lost_parent) AS parent_ns, (SELECT id FROM lost_parent) AS parent_id,
           (SELECT ns FROM moved) AS moved_ns, (SELECT latest FROM moved) AS moved_latest,
           ARRAY(SELECT hash FROM lost_payload) AS lost"
);

/// A checkpoint with the writes on it as parallel arrays, from `foreign_checkpoints c`. Rows that a deleted thread left are
/// not shown.
macro_rules! select_foreign {
    () => {
        "SELECT c.thread_key, c.ns, c.checkpoint_id, c.parent_id, c.run_id, c.created_at, c.codec, c.body, c.size_bytes,
                w.tasks, w.slots, w.paths, w.codecs, w.bodies
         FROM foreign_checkpoints c
         LEFT JOIN LATERAL (
             SELECT array_agg(d.task_id ORDER BY d.written_at, d.slot) AS tasks,
                    array_agg(d.slot ORDER BY d.written_at, d.slot) AS slots,
                    array_agg(d.path ORDER BY d.written_at, d.slot) AS paths,
                    array_agg(d.codec ORDER BY d.written_at, d.slot) AS codecs,
                    array_agg(d.body ORDER BY d.written_at, d.slot) AS bodies
             FROM foreign_writes d
             WHERE d.thread_key = c.thread_key AND d.ns = c.ns AND d.checkpoint_id = c.checkpoint_id
         ) AS w ON TRUE
         WHERE EXISTS (SELECT 1 FROM threads t WHERE t.thread_key = c.thread_key) "
    };
}

const LATEST: &str = concat!(
    select_foreign!(),
    "AND c.thread_key = $1 AND c.ns = $2 AND ($3::uuid IS NULL OR c.tenant = $3)
     ORDER BY c.checkpoint_id DESC LIMIT 1"
);

const BY_ID: &str = concat!(
    select_foreign!(),
    "AND c.thread_key = $1 AND c.ns = $2 AND ($3::uuid IS NULL OR c.tenant = $3) AND c.checkpoint_id = $4"
);

const LIST: &str = concat!(
    select_foreign!(),
    "AND c.thread_key = $1 AND ($2::text IS NULL OR c.ns = $2) AND ($3::uuid IS NULL OR c.tenant = $3)
       AND ($4::text IS NULL OR c.checkpoint_id = $4) AND ($5::text IS NULL OR c.checkpoint_id < $5)
       AND ($6::text IS NULL OR c.ns > $6 OR (c.ns = $6 AND c.checkpoint_id < $7))
     ORDER BY c.ns, c.checkpoint_id DESC LIMIT $8"
);

/// Payloads, and what they are made of, down to the last part.
const PAYLOADS: &str = "
    WITH RECURSIVE found AS (
        SELECT p.hash, p.codec, p.value FROM payloads p
        WHERE p.thread_key = $1 AND p.hash = ANY ((SELECT $2::bytea[])::bytea[])
          AND ($3::uuid IS NULL OR p.tenant = $3)
        UNION
        SELECT p.hash, p.codec, p.value FROM found f
        CROSS JOIN LATERAL generate_series(0, get_byte(f.value, 0) * 256 + get_byte(f.value, 1) - 1) AS n (at)
        JOIN payloads p ON p.thread_key = $1 AND p.hash = substring(f.value FROM n.at * 16 + 3 FOR 16)
        WHERE f.codec = 2 AND ($3::uuid IS NULL OR p.tenant = $3)
    )
    SELECT hash, codec, value FROM found";

/// How often a batch is tried on a thread that comes and goes.
const ATTEMPTS: usize = 5;

enum Tried {
    Done(ForeignOutcome),
    /// The thread changed meanwhile, or is not one of these yet.
    Unclear,
    /// Rows of a deleted thread of this name are in the way.
    Dead,
}

async fn statement(conn: &mut PgConnection, tenant: Uuid, batch: &ForeignBatch) -> Result<Tried> {
    let rows = &batch.checkpoints;
    let writes = &batch.writes;
    let (codecs, values): (Vec<i16>, Vec<Vec<u8>>) =
        batch.payloads.iter().map(|payload| payload_columns(&payload.bytes)).unzip();
    let (row_codecs, bodies): (Vec<i16>, Vec<Vec<u8>>) = rows.iter().map(|row| body_columns(&row.body)).unzip();
    let (write_codecs, written): (Vec<i16>, Vec<Vec<u8>>) = writes.iter().map(|row| body_columns(&row.body)).unzip();
    let begins = !batch.checkpoints.is_empty();
    let row = sqlx::query(PUT)
        .bind(batch.thread_id.key(tenant).0)
        .bind(tenant)
        .bind(batch.parents.iter().map(|(ns, _)| ns.as_str()).collect::<Vec<_>>())
        .bind(batch.parents.iter().map(|(_, id)| id.as_str()).collect::<Vec<_>>())
        .bind(batch.latest.iter().map(|(ns, _)| ns.as_str()).collect::<Vec<_>>())
        .bind(batch.latest.iter().map(|(_, id)| id.as_deref()).collect::<Vec<_>>())
        .bind(batch.references.iter().map(|hash| hash.to_vec()).collect::<Vec<_>>())
        .bind(batch.thread_id.as_str())
        .bind(batch.status.as_ref().map(|status| status.status.as_str()))
        .bind(batch.ttl.map(|ttl| ttl.micros))
        .bind(batch.ttl.map(|ttl| ttl.strategy.as_str()))
        .bind(begins)
        .bind(batch.payloads.iter().map(|payload| payload.hash.to_vec()).collect::<Vec<_>>())
        .bind(codecs)
        .bind(values)
        .bind(rows.iter().map(|row| row.ns.as_str()).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.id.as_str()).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.parent.as_deref()).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.run_id.as_deref()).collect::<Vec<_>>())
        .bind(bodies)
        .bind(rows.iter().map(|row| row.bytes).collect::<Vec<_>>())
        .bind(writes.iter().map(|row| row.ns.as_str()).collect::<Vec<_>>())
        .bind(writes.iter().map(|row| row.checkpoint_id.as_str()).collect::<Vec<_>>())
        .bind(writes.iter().map(|row| row.task_id.as_str()).collect::<Vec<_>>())
        .bind(writes.iter().map(|row| row.slot.as_str()).collect::<Vec<_>>())
        .bind(writes.iter().map(|row| row.path.as_str()).collect::<Vec<_>>())
        .bind(written)
        .bind(row_codecs)
        .bind(write_codecs)
        .bind(batch.status.as_ref().map(|status| status.on.as_str()))
        .fetch_one(conn)
        .await
        .map_err(driver_error)?;
    if get(&row, "stored")? {
        return Ok(Tried::Done(ForeignOutcome::Stored));
    }
    if get(&row, "is_dead")? {
        return Ok(Tried::Dead);
    }
    if !get::<bool>(&row, "found")? && !begins {
        return Ok(Tried::Done(ForeignOutcome::ThreadMissing));
    }
    if get::<bool>(&row, "found")? && !get::<bool>(&row, "is_foreign")? {
        return Ok(Tried::Unclear);
    }
    if let Some(ns) = get::<Option<String>>(&row, "parent_ns")? {
        return Ok(Tried::Done(ForeignOutcome::ParentMissing(ns, get(&row, "parent_id")?)));
    }
    if let Some(ns) = get::<Option<String>>(&row, "moved_ns")? {
        return Ok(Tried::Done(ForeignOutcome::LatestMoved(ns, get(&row, "moved_latest")?)));
    }
    let lost: Vec<Vec<u8>> = get(&row, "lost")?;
    if !lost.is_empty() {
        let lost = lost.iter().filter_map(|hash| PayloadHash::try_from(hash.as_slice()).ok()).collect();
        return Ok(Tried::Done(ForeignOutcome::PayloadsMissing(lost)));
    }
    Ok(Tried::Unclear)
}

/// The statement behind a lock. A thread on which nothing has run becomes one of these.
async fn locked(conn: &mut PgConnection, tenant: Uuid, batch: &ForeignBatch) -> Result<Tried> {
    let key = batch.thread_id.key(tenant);
    if lock_thread(conn, key).await? {
        // A second statement: its snapshot is younger than the lock.
        let row = sqlx::query(
            "SELECT t.is_foreign, t.closed IS NOT NULL AS is_closed, t.head IS NULL
                        AND NOT EXISTS (SELECT 1 FROM runs r WHERE r.thread_key = t.thread_key)
                        AND NOT EXISTS (SELECT 1 FROM checkpoints c WHERE c.thread_key = t.thread_key) AS is_empty
             FROM threads t WHERE t.thread_key = $1",
        )
        .bind(key.0)
        .fetch_one(&mut *conn)
        .await
        .map_err(driver_error)?;
        if get(&row, "is_closed")? {
            return Ok(Tried::Done(ForeignOutcome::ThreadClosed));
        }
        if !get::<bool>(&row, "is_foreign")? {
            if !get::<bool>(&row, "is_empty")? {
                return Ok(Tried::Done(ForeignOutcome::ThreadNative));
            }
            if batch.checkpoints.is_empty() {
                return Ok(Tried::Done(ForeignOutcome::ThreadMissing));
            }
            sqlx::query("UPDATE threads SET is_foreign = TRUE, revision = revision + 1 WHERE thread_key = $1")
                .bind(key.0)
                .execute(&mut *conn)
                .await
                .map_err(driver_error)?;
        }
    }
    statement(conn, tenant, batch).await
}

fn stored_from(row: &PgRow) -> Result<StoredForeign> {
    let key: Uuid = get(row, "thread_key")?;
    let (ns, id): (String, String) = (get(row, "ns")?, get(row, "checkpoint_id")?);
    let name = format!("{key}/{ns}/{id}");
    let body = body_from("foreign_checkpoints", &name, get(row, "codec")?, get(row, "body")?)?;
    let mut writes = Vec::new();
    if let Some(tasks) = get::<Option<Vec<String>>>(row, "tasks")? {
        let slots: Vec<String> = get(row, "slots")?;
        let paths: Vec<String> = get(row, "paths")?;
        let codecs: Vec<i16> = get(row, "codecs")?;
        let bodies: Vec<Vec<u8>> = get(row, "bodies")?;
        for ((((task_id, slot), path), codec), body) in tasks.into_iter().zip(slots).zip(paths).zip(codecs).zip(bodies)
        {
            let body = body_from("foreign_writes", &format!("{name}/{task_id}"), codec, body)?;
            writes.push(ForeignWrites { ns: ns.clone(), checkpoint_id: id.clone(), task_id, slot, path, body });
        }
    }
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

pub(super) async fn latest(
    conn: &mut PgConnection,
    scope: &Scope,
    key: ThreadKey,
) -> Result<Vec<(String, CheckpointId)>> {
    let rows = sqlx::query(
        "SELECT ns, MAX(checkpoint_id) AS id FROM foreign_checkpoints
         WHERE thread_key = $1 AND ($2::uuid IS NULL OR tenant = $2)
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

pub(super) async fn load(
    conn: &mut PgConnection,
    scope: &Scope,
    thread: ThreadKey,
    ns: &str,
    id: Option<&str>,
) -> Result<Option<StoredForeign>> {
    let query = sqlx::query(if id.is_some() { BY_ID } else { LATEST });
    let query = query.bind(thread.0).bind(ns).bind(scope.filter());
    let query = match id {
        Some(id) => query.bind(id),
        None => query,
    };
    let row = query.fetch_optional(conn).await.map_err(driver_error)?;
    row.as_ref().map(stored_from).transpose()
}

pub(super) async fn list(
    conn: &mut PgConnection,
    scope: &Scope,
    thread: ThreadKey,
    filter: &ForeignFilter,
    limit: i64,
) -> Result<Vec<StoredForeign>> {
    let rows = sqlx::query(LIST)
        .bind(thread.0)
        .bind(&filter.ns)
        .bind(scope.filter())
        .bind(&filter.id)
        .bind(&filter.before)
        .bind(filter.after.as_ref().map(|(ns, _)| ns))
        .bind(filter.after.as_ref().map(|(_, id)| id))
        .bind(limit)
        .fetch_all(conn)
        .await
        .map_err(driver_error)?;
    rows.iter().map(stored_from).collect()
}

/// What failed for several at once, for one of them.
fn again(error: &StorageError) -> StorageError {
    match error {
        StorageError::Unavailable(text) => StorageError::Unavailable(text.clone()),
        StorageError::KeyUsed => StorageError::KeyUsed,
        other => StorageError::Other(other.to_string()),
    }
}

impl PostgresStorage {
    /// Stores what needs no second look in one statement. Returns the positions of what is stored now.
    async fn together(&self, tenant: Uuid, batches: &[ForeignBatch]) -> Result<HashSet<usize>> {
        let mut seen = HashSet::new();
        // The first of a thread: the next may build on it.
        let usual: Vec<usize> = (0..batches.len())
            .filter(|at| seen.insert(&batches[*at].thread_id) && foreign_together::is_usual(&batches[*at]))
            .collect();
        if self.distributed || usual.is_empty() {
            return Ok(HashSet::new());
        }
        self.bounded(async {
            let mut session = self.session().await?;
            let some: Vec<&ForeignBatch> = usual.iter().map(|at| &batches[*at]).collect();
            let stored = match some.as_slice() {
                [one] if foreign_alone::is_usual(one) => foreign_alone::put(session.conn(), tenant, one)
                    .await
                    .map(|is_stored| is_stored.then(|| one.thread_id.key(tenant)).into_iter().collect()),
                _ => foreign_together::put(session.conn(), tenant, &some).await,
            };
            let stored: HashSet<ThreadKey> = match stored {
                Ok(stored) => stored,
                // Somebody was quicker with one of the rows: each is looked at by itself.
                Err(sqlx::Error::Database(error)) if error.is_unique_violation() => return Ok(HashSet::new()),
                Err(error) => return Err(driver_error(error)),
            };
            if !stored.is_empty() {
                self.wrote(session).await?;
            }
            Ok(usual.into_iter().filter(|at| stored.contains(&batches[*at].thread_id.key(tenant))).collect())
        })
        .await
    }

    /// Stores a batch that something may stand in the way of.
    async fn apart(&self, tenant: Uuid, batch: &ForeignBatch) -> Result<ForeignOutcome> {
        self.bounded(async {
            let mut session = self.session().await?;
            if let Tried::Done(ForeignOutcome::Stored) = statement(session.conn(), tenant, batch).await? {
                self.wrote(session).await?;
                return Ok(ForeignOutcome::Stored);
            }
            // It is refused for good only behind the lock: what is missing may be on its way.
            drop(session);
            for _ in 0..ATTEMPTS {
                let mut transaction = self.begin().await?;
                match locked(&mut transaction, tenant, batch).await? {
                    Tried::Done(ForeignOutcome::Stored) => {
                        self.commit(transaction).await?;
                        return Ok(ForeignOutcome::Stored);
                    }
                    Tried::Done(outcome) => return Ok(outcome),
                    Tried::Unclear => {}
                    Tried::Dead if batch.checkpoints.is_empty() => return Ok(ForeignOutcome::ThreadMissing),
                    Tried::Dead => {
                        drop(transaction);
                        crate::storage::idempotency::aside(self.reclaim_thread(batch.thread_id.key(tenant))).await?;
                    }
                }
            }
            Err(StorageError::Unavailable(format!("thread {} is being created and deleted", batch.thread_id)))
        })
        .await
    }
}

#[async_trait]
impl Foreign for PostgresStorage {
    async fn put_foreign(&self, scope: &Scope, batch: &ForeignBatch) -> Result<ForeignOutcome> {
        let mut outcomes = self.put_foreign_each(scope, std::slice::from_ref(batch)).await;
        outcomes.pop().unwrap_or_else(|| Err(StorageError::Other("a batch without an outcome".to_owned())))
    }

    async fn put_foreign_each(&self, scope: &Scope, batches: &[ForeignBatch]) -> Vec<Result<ForeignOutcome>> {
        let tenant = scope.tenant();
        let batches: Vec<ForeignBatch> = batches.iter().map(settled).collect();
        let stored = match self.together(tenant, &batches).await {
            Ok(stored) => stored,
            Err(error) => return batches.iter().map(|_| Err(again(&error))).collect(),
        };
        let left = (0..batches.len()).filter(|at| !stored.contains(at));
        let apart = put_by_thread(&batches, left, |batch| self.apart(tenant, batch)).await;
        let mut outcomes: Vec<Result<ForeignOutcome>> = batches.iter().map(|_| Ok(ForeignOutcome::Stored)).collect();
        for (at, outcome) in apart {
            outcomes[at] = outcome;
        }
        outcomes
    }

    async fn foreign_among(&self, scope: &Scope, threads: &[ThreadKey]) -> Result<Vec<ThreadKey>> {
        let keys: Vec<Uuid> = threads.iter().map(|key| key.0).collect();
        read!(self, async {
            let mut session = self.session().await?;
            let rows = sqlx::query(
                "SELECT thread_key FROM threads
                 WHERE thread_key = ANY ((SELECT $1::uuid[])::uuid[]) AND is_foreign AND ($2::uuid IS NULL OR tenant = $2)",
            )
            .bind(&keys)
            .bind(scope.filter())
            .fetch_all(session.conn())
            .await
            .map_err(driver_error)?;
            session.finish().await?;
            rows.iter().map(|row| Ok(ThreadKey(get(row, "thread_key")?))).collect::<Result<Vec<_>>>()
        })
    }

    async fn load_foreign(
        &self,
        scope: &Scope,
        thread: ThreadKey,
        ns: &str,
        id: Option<&str>,
    ) -> Result<Option<StoredForeign>> {
        read!(self, async {
            let mut session = self.session().await?;
            let found = load(session.conn(), scope, thread, ns, id).await?;
            session.finish().await?;
            Ok(found)
        })
    }

    async fn list_foreign(
        &self,
        scope: &Scope,
        thread: ThreadKey,
        filter: &ForeignFilter,
        limit: i64,
    ) -> Result<Vec<StoredForeign>> {
        read!(self, async {
            let mut session = self.session().await?;
            let found = list(session.conn(), scope, thread, filter, limit).await?;
            session.finish().await?;
            Ok(found)
        })
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
        let wanted: Vec<Vec<u8>> = hashes.iter().map(|hash| hash.to_vec()).collect();
        let found = read!(self, async {
            let mut session = self.session().await?;
            let rows = sqlx::query(PAYLOADS)
                .bind(thread.0)
                .bind(&wanted)
                .bind(scope.filter())
                .fetch_all(session.conn())
                .await
                .map_err(driver_error)?;
            session.finish().await?;
            rows.iter()
                .map(|row| payload_from(thread, get(row, "hash")?, get(row, "codec")?, get(row, "value")?))
                .collect::<Result<Vec<_>>>()
        })?;
        complete(thread, hashes, found)
    }

    async fn latest_foreign(&self, scope: &Scope, thread: ThreadKey) -> Result<Vec<(String, CheckpointId)>> {
        read!(self, async {
            let mut session = self.session().await?;
            let found = latest(session.conn(), scope, thread).await?;
            session.finish().await?;
            Ok(found)
        })
    }

    async fn delete_foreign_runs(&self, scope: &Scope, run_ids: &[String], limit: i64) -> Result<(i64, Vec<ThreadId>)> {
        self.bounded(async {
            let mut transaction = self.begin().await?;
            // Threads are locked in the order of their keys before anything of theirs goes.
            let rows = sqlx::query(
                "SELECT t.thread_key, t.name FROM threads t
             WHERE t.thread_key IN (SELECT c.thread_key FROM foreign_checkpoints c
                                    WHERE c.tenant = $1 AND c.run_id = ANY ($2)
                                    ORDER BY c.thread_key LIMIT $3)
             ORDER BY t.thread_key FOR UPDATE",
            )
            .bind(scope.tenant())
            .bind(run_ids)
            .bind(limit)
            .fetch_all(&mut *transaction)
            .await
            .map_err(driver_error)?;
            let keys = rows.iter().map(|row| get(row, "thread_key")).collect::<Result<Vec<Uuid>>>()?;
            let gone = sqlx::query(
                "WITH gone AS (
                 DELETE FROM foreign_checkpoints WHERE (thread_key, ns, checkpoint_id) IN (
                     SELECT c.thread_key, c.ns, c.checkpoint_id FROM foreign_checkpoints c
                     WHERE c.tenant = $1 AND c.run_id = ANY ($2) AND c.thread_key = ANY ($3) LIMIT $4)
                 RETURNING thread_key, ns, checkpoint_id
             ),
             writes AS (
                 DELETE FROM foreign_writes w USING gone g
                 WHERE w.thread_key = g.thread_key AND w.ns = g.ns AND w.checkpoint_id = g.checkpoint_id
             ),
             raised AS (
                 UPDATE threads SET revision = revision + 1 WHERE thread_key IN (SELECT thread_key FROM gone)
             )
             SELECT COUNT(*) AS n FROM gone",
            )
            .bind(scope.tenant())
            .bind(run_ids)
            .bind(&keys)
            .bind(limit)
            .fetch_one(&mut *transaction)
            .await
            .map_err(driver_error)?;
            self.commit(transaction).await?;
            let threads = rows.iter().map(|row| {
                let name: String = get(row, "name")?;
                ThreadId::parse(&name).map_err(|error| StorageError::Other(error.0))
            });
            Ok((get(&gone, "n")?, threads.collect::<Result<_>>()?))
        })
        .await
    }

    async fn prune_foreign(&self, scope: &Scope, id: &ThreadId, kept: &ForeignKept) -> Result<Pruned> {
        self.bounded(async {
            let mut transaction = self.begin().await?;
            let pruned = foreign_prune::prune(&mut transaction, scope, id.key(scope.tenant()), kept).await?;
            if pruned != Pruned::Changed {
                self.commit(transaction).await?;
            }
            Ok(pruned)
        })
        .await
    }

    async fn copy_foreign(&self, scope: &Scope, from: &ThreadId, to: &ThreadId) -> Result<ForeignCopied> {
        self.bounded(async {
            let (source, target) = (from.key(scope.tenant()), to.key(scope.tenant()));
            if !self.is_foreign(scope, source).await? {
                return Ok(ForeignCopied::Missing);
            }
            self.reclaim_thread(target).await?;
            let mut transaction = self.begin().await?;
            let taken = sqlx::query("SELECT 1 FROM threads WHERE thread_key = $1")
                .bind(target.0)
                .fetch_optional(&mut *transaction)
                .await
                .map_err(driver_error)?;
            if taken.is_some() {
                return Ok(ForeignCopied::Taken);
            }
            match copy_thread(&mut transaction, scope, from, to).await {
                Ok(Some(_)) => self.commit(transaction).await.map(|()| ForeignCopied::Copied),
                Ok(None) => Ok(ForeignCopied::Missing),
                // Somebody was quicker.
                Err(StorageError::Other(text)) if text.contains("threads_pkey") => Ok(ForeignCopied::Taken),
                Err(error) => Err(error),
            }
        })
        .await
    }
}
