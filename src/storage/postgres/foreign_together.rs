//! Batches of several threads in one statement: what a busy client sends at once costs one commit instead of one for each.
//!
//! Only what is usual goes this way. A batch that finds anything else (a thread to be taken over, a row that is there
//! already, something missing) changes nothing here and is told apart, to be looked at by itself.

use std::collections::HashSet;

use sqlx::Row as _;
use sqlx::postgres::PgConnection;
use uuid::Uuid;

use super::foreign::rests_at;
use super::now;
use crate::model::ThreadKey;
use crate::storage::ForeignBatch;
use crate::storage::foreign_rows::{body_columns, payload_columns};

/// Stores the batches that fit, each of them whole, and returns the keys of their threads.
///
/// Threads are locked in the order of their keys, and a batch is stored only if its thread is as the snapshot shows it
/// (`threads.revision`). All looking up is by subqueries for one row each: a join might read whole tables. There is no
/// `ON CONFLICT`, which writes every row to the log twice: what a concurrent statement stored first fails all of this one.
/// The length of the first array of each list is hidden from the planner: were it to see that it is short, it would make a
/// plan for each call, which takes longer than the call.
const PUT: &str = concat!(
    "WITH clock AS MATERIALIZED (SELECT ",
    now!(),
    " AS now),
    batch AS MATERIALIZED (
        SELECT b.*, (SELECT t.revision FROM threads t WHERE t.thread_key = b.key) AS revision,
               (SELECT TRUE FROM dead_threads d WHERE d.thread_key = b.key) AS is_dead
        FROM UNNEST((SELECT $2::uuid[]), $3::text[], $4::text[], $5::bigint[], $6::text[], $7::boolean[], $33::text[])
            AS b (key, name, status, ttl, ttl_strategy, begins, status_on)
    ),
    t AS MATERIALIZED (
        SELECT t.thread_key AS key, t.revision FROM threads t
        WHERE t.thread_key = ANY ((SELECT $2::uuid[])::uuid[]) AND t.is_foreign AND t.closed IS NULL
        ORDER BY t.thread_key FOR UPDATE
    ),
    checkpoint AS MATERIALIZED (
        SELECT * FROM UNNEST((SELECT $8::uuid[]), $9::text[], $10::text[], $11::text[], $12::text[], $13::bytea[], $14::bigint[],
                             $15::smallint[]) AS p (key, ns, id, parent, run, body, bytes, codec)
    ),
    written AS MATERIALIZED (
        SELECT * FROM UNNEST((SELECT $16::uuid[]), $17::text[], $18::text[], $19::text[], $20::text[], $21::text[], $22::bytea[],
                             $23::smallint[]) WITH ORDINALITY AS p (key, ns, id, task, slot, path, body, codec, ordinal)
    ),
    misfit AS MATERIALIZED (
        SELECT p.key FROM UNNEST((SELECT $24::uuid[]), $25::text[], $26::text[]) AS p (key, ns, id)
        WHERE (SELECT c.codec FROM foreign_checkpoints c
               WHERE c.thread_key = p.key AND c.ns = p.ns AND c.checkpoint_id = p.id) IS NULL
        UNION ALL
        SELECT r.key FROM UNNEST((SELECT $27::uuid[]), $28::bytea[]) AS r (key, hash)
        WHERE (SELECT p.codec FROM payloads p WHERE p.thread_key = r.key AND p.hash = r.hash) IS NULL
        UNION ALL
        SELECT p.key FROM checkpoint p
        WHERE (SELECT c.codec FROM foreign_checkpoints c
               WHERE c.thread_key = p.key AND c.ns = p.ns AND c.checkpoint_id = p.id) IS NOT NULL
        UNION ALL
        SELECT p.key FROM written p
        WHERE (SELECT w.codec FROM foreign_writes w
               WHERE w.thread_key = p.key AND w.ns = p.ns AND w.checkpoint_id = p.id AND w.task_id = p.task
                 AND w.slot = p.slot) IS NOT NULL
    ),
    inserted AS (
        INSERT INTO threads (thread_key, tenant, name, metadata, codec, config, rest_status, last_event, revision,
                             created_at, updated_at, state_updated_at, ttl, ttl_strategy, is_foreign)
        SELECT b.key, $1, b.name, '{}', 0, '{}', COALESCE(b.status, 'idle'), 0, clock.now, clock.now, clock.now,
               clock.now, b.ttl, b.ttl_strategy, TRUE
        FROM batch b, clock
        WHERE b.begins AND b.revision IS NULL AND b.is_dead IS NULL AND b.key NOT IN (SELECT misfit.key FROM misfit)
        ORDER BY b.key
        RETURNING thread_key AS key
    ),
    going AS MATERIALIZED (
        SELECT inserted.key FROM inserted
        UNION ALL
        SELECT t.key FROM t JOIN batch b USING (key)
        WHERE t.revision = b.revision AND t.key NOT IN (SELECT misfit.key FROM misfit)
    ),
    put_payloads AS (
        INSERT INTO payloads (thread_key, hash, tenant, codec, value)
        SELECT p.key, p.hash, $1, p.codec, p.value
        FROM UNNEST((SELECT $29::uuid[]), $30::bytea[], $31::smallint[], $32::bytea[]) AS p (key, hash, codec, value)
        WHERE p.key IN (SELECT going.key FROM going)
          AND (SELECT q.codec FROM payloads q WHERE q.thread_key = p.key AND q.hash = p.hash) IS NULL
    ),
    put_checkpoints AS (
        INSERT INTO foreign_checkpoints (thread_key, ns, checkpoint_id, tenant, parent_id, run_id, created_at, codec, body,
                                         size_bytes)
        SELECT p.key, p.ns, p.id, $1, p.parent, p.run, clock.now, p.codec, p.body, p.bytes FROM checkpoint p, clock
        WHERE p.key IN (SELECT going.key FROM going)
    ),
    put_writes AS (
        INSERT INTO foreign_writes (thread_key, ns, checkpoint_id, task_id, slot, tenant, path, written_at, codec, body)
        -- Microseconds apart, so that they are read in this order.
        SELECT p.key, p.ns, p.id, p.task, p.slot, $1, p.path, clock.now + p.ordinal, p.codec, p.body FROM written p, clock
        WHERE p.key IN (SELECT going.key FROM going)
    ),
    touched AS (
        -- Once a second is enough for what is shown and for what expires.
        UPDATE threads x SET rest_status = COALESCE(b.status, x.rest_status), updated_at = clock.now,
                             state_updated_at = clock.now
        FROM clock, (
            SELECT b.key, ",
    rests_at!("b.key", "b.status_on", "b.status"),
    " FROM batch b
        ) AS b
        WHERE x.thread_key = b.key AND b.key IN (SELECT going.key FROM going)
          AND (x.rest_status <> b.status OR x.updated_at < clock.now - 1000000 OR x.pruned_at >= x.updated_at)
    )
    SELECT going.key FROM going"
);

/// Whether it may go this way. Conditions on what is the latest checkpoint are looked at behind a lock.
pub(super) fn is_usual(batch: &ForeignBatch) -> bool {
    batch.latest.is_empty()
}

/// Stores those of the batches that fit, one for each thread, and says which threads. Whoever is not named was not touched;
/// with an error nothing was.
pub(super) async fn put(
    conn: &mut PgConnection,
    tenant: Uuid,
    batches: &[&ForeignBatch],
) -> sqlx::Result<HashSet<ThreadKey>> {
    let keys: Vec<Uuid> = batches.iter().map(|batch| batch.thread_id.key(tenant).0).collect();
    let all = || batches.iter().zip(&keys);
    let checkpoints: Vec<_> = all().flat_map(|(batch, key)| batch.checkpoints.iter().map(|row| (*key, row))).collect();
    let writes: Vec<_> = all().flat_map(|(batch, key)| batch.writes.iter().map(|row| (*key, row))).collect();
    let parents: Vec<_> = all().flat_map(|(batch, key)| batch.parents.iter().map(|row| (*key, row))).collect();
    let references: Vec<_> = all().flat_map(|(batch, key)| batch.references.iter().map(|row| (*key, row))).collect();
    let payloads: Vec<_> = all().flat_map(|(batch, key)| batch.payloads.iter().map(|row| (*key, row))).collect();
    let (row_codecs, bodies): (Vec<i16>, Vec<Vec<u8>>) =
        checkpoints.iter().map(|(_, row)| body_columns(&row.body)).unzip();
    let (write_codecs, written): (Vec<i16>, Vec<Vec<u8>>) =
        writes.iter().map(|(_, row)| body_columns(&row.body)).unzip();
    let (codecs, values): (Vec<i16>, Vec<Vec<u8>>) =
        payloads.iter().map(|(_, payload)| payload_columns(&payload.bytes)).unzip();
    let rows = sqlx::query(PUT)
        .bind(tenant)
        .bind(&keys)
        .bind(batches.iter().map(|batch| batch.thread_id.as_str()).collect::<Vec<_>>())
        .bind(batches.iter().map(|batch| Some(batch.status.as_ref()?.status.as_str())).collect::<Vec<_>>())
        .bind(batches.iter().map(|batch| batch.ttl.map(|ttl| ttl.micros)).collect::<Vec<_>>())
        .bind(batches.iter().map(|batch| batch.ttl.map(|ttl| ttl.strategy.as_str())).collect::<Vec<_>>())
        .bind(batches.iter().map(|batch| !batch.checkpoints.is_empty()).collect::<Vec<_>>())
        .bind(checkpoints.iter().map(|(key, _)| *key).collect::<Vec<_>>())
        .bind(checkpoints.iter().map(|(_, row)| row.ns.as_str()).collect::<Vec<_>>())
        .bind(checkpoints.iter().map(|(_, row)| row.id.as_str()).collect::<Vec<_>>())
        .bind(checkpoints.iter().map(|(_, row)| row.parent.as_deref()).collect::<Vec<_>>())
        .bind(checkpoints.iter().map(|(_, row)| row.run_id.as_deref()).collect::<Vec<_>>())
        .bind(bodies)
        .bind(checkpoints.iter().map(|(_, row)| row.bytes).collect::<Vec<_>>())
        .bind(row_codecs)
        .bind(writes.iter().map(|(key, _)| *key).collect::<Vec<_>>())
        .bind(writes.iter().map(|(_, row)| row.ns.as_str()).collect::<Vec<_>>())
        .bind(writes.iter().map(|(_, row)| row.checkpoint_id.as_str()).collect::<Vec<_>>())
        .bind(writes.iter().map(|(_, row)| row.task_id.as_str()).collect::<Vec<_>>())
        .bind(writes.iter().map(|(_, row)| row.slot.as_str()).collect::<Vec<_>>())
        .bind(writes.iter().map(|(_, row)| row.path.as_str()).collect::<Vec<_>>())
        .bind(written)
        .bind(write_codecs)
        .bind(parents.iter().map(|(key, _)| *key).collect::<Vec<_>>())
        .bind(parents.iter().map(|(_, (ns, _))| ns.as_str()).collect::<Vec<_>>())
        .bind(parents.iter().map(|(_, (_, id))| id.as_str()).collect::<Vec<_>>())
        .bind(references.iter().map(|(key, _)| *key).collect::<Vec<_>>())
        .bind(references.iter().map(|(_, hash)| hash.to_vec()).collect::<Vec<_>>())
        .bind(payloads.iter().map(|(key, _)| *key).collect::<Vec<_>>())
        .bind(payloads.iter().map(|(_, payload)| payload.hash.to_vec()).collect::<Vec<_>>())
        .bind(codecs)
        .bind(values)
        .bind(batches.iter().map(|batch| Some(batch.status.as_ref()?.on.as_str())).collect::<Vec<_>>())
        .fetch_all(conn)
        .await?;
    rows.iter().map(|row| row.try_get("key").map(ThreadKey)).collect()
}
