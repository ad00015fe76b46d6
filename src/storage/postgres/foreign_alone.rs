//! The batch of one thread, in as small a statement as will do: a client that does one thing after the other waits for each.
//! `foreign_together` takes any number of threads and all that they may bring, and Postgres spends longer on setting up what
//! is not needed than on storing a row.
//!
//! Only what is usual goes this way, as there. A batch that finds anything else changes nothing here.

use sqlx::postgres::PgConnection;
use sqlx::{Postgres, QueryBuilder};
use uuid::Uuid;

use super::now;
use crate::model::ThreadStatus;
use crate::storage::foreign_rows::{body_columns, payload_columns};
use crate::storage::{ForeignBatch, ForeignCheckpoint, ForeignStatus};

/// Whether it may go this way: at most one checkpoint, and no conditions on what is the latest.
pub(super) fn is_usual(batch: &ForeignBatch) -> bool {
    let is_new = batch.checkpoints.first().is_some_and(begins);
    batch.latest.is_empty()
        && batch.checkpoints.len() <= 1
        && batch.parents.len() <= 1
        // A thread that is only made now has nothing that could be referred to.
        && !(is_new && !(batch.references.is_empty() && batch.parents.is_empty()))
}

/// Whether the thread is likely to begin with it. Should it be there already, the batch is looked at elsewhere.
fn begins(row: &ForeignCheckpoint) -> bool {
    row.parent.is_none() && row.ns.is_empty()
}

/// Stores a batch, if nothing stands in its way; then it is stored whole. A row that somebody else stored meanwhile is a
/// unique violation, and nothing is stored.
///
/// A thread that is there is locked, and must be as the snapshot shows it (`threads.revision`). There are as many texts of
/// this statement as there are kinds of batches, some dozen, and each is prepared once. The length of the first array of each
/// list is hidden from the planner: were it to see that it is short, it would make a plan for each call.
pub(super) async fn put(conn: &mut PgConnection, tenant: Uuid, batch: &ForeignBatch) -> sqlx::Result<bool> {
    let key = batch.thread_id.key(tenant).0;
    let checkpoint = batch.checkpoints.first();
    let mut query = QueryBuilder::new("WITH ");
    match checkpoint.filter(|row| begins(row)) {
        Some(_) => push_beginning(&mut query, key, tenant, batch),
        None => push_conditions(&mut query, key, batch),
    }
    if !batch.payloads.is_empty() {
        push_payloads(&mut query, key, tenant, batch);
    }
    if let Some(row) = checkpoint {
        push_checkpoint(&mut query, key, tenant, row);
    }
    if !batch.writes.is_empty() {
        push_writes(&mut query, key, tenant, batch);
    }
    query.push(" SELECT 1 FROM going");
    Ok(query.build().persistent(true).fetch_optional(conn).await?.is_some())
}

/// `going`: a new thread, unless there is one or one of this name was deleted and has left rows.
fn push_beginning(query: &mut QueryBuilder<Postgres>, key: Uuid, tenant: Uuid, batch: &ForeignBatch) {
    query
        .push(
            "going AS (
                INSERT INTO threads (thread_key, tenant, name, metadata, codec, config, rest_status, last_event, revision,
                                     created_at, updated_at, state_updated_at, ttl, ttl_strategy, is_foreign)
                SELECT ",
        )
        .push_bind(key)
        .push(", ")
        .push_bind(tenant)
        .push(", ")
        .push_bind(batch.thread_id.as_str())
        .push(", '{}', 0, '{}', ")
        .push_bind(batch.status.as_ref().map_or("idle", |status| status.status.as_str()))
        .push(", 0, clock.now, clock.now, clock.now, clock.now, ")
        .push_bind(batch.ttl.map(|ttl| ttl.micros))
        .push(", ")
        .push_bind(batch.ttl.map(|ttl| ttl.strategy.as_str()))
        .push(concat!(", TRUE FROM (SELECT ", now!(), " AS now) AS clock
                WHERE NOT EXISTS (SELECT 1 FROM threads t WHERE t.thread_key = "))
        .push_bind(key)
        .push(") AND NOT EXISTS (SELECT 1 FROM dead_threads d WHERE d.thread_key = ")
        .push_bind(key)
        .push(") RETURNING created_at AS now)");
}

/// `going`: the thread, locked, if the batch fits; and what the batch makes of the thread.
fn push_conditions(query: &mut QueryBuilder<Postgres>, key: Uuid, batch: &ForeignBatch) {
    query
        .push(concat!(
            "t AS MATERIALIZED (
                SELECT t.revision, t.rest_status, t.updated_at, t.pruned_at, ",
            now!(),
            " AS now FROM threads t WHERE t.thread_key = "
        ))
        .push_bind(key)
        .push(
            " AND t.is_foreign AND t.closed IS NULL FOR UPDATE
            ),
            going AS MATERIALIZED (
                SELECT t.* FROM t WHERE t.revision = (SELECT s.revision FROM threads s WHERE s.thread_key = ",
        )
        .push_bind(key)
        .push(")");
    if let Some((ns, id)) = batch.parents.first() {
        push_lookup(query, " AND EXISTS", key, ns, id);
    }
    if let Some(row) = batch.checkpoints.first() {
        push_lookup(query, " AND NOT EXISTS", key, &row.ns, &row.id);
    }
    // Subqueries for one row each: a join might read all rows of the thread.
    if !batch.references.is_empty() {
        query
            .push(" AND NOT EXISTS (SELECT 1 FROM UNNEST((SELECT ")
            .push_bind(batch.references.iter().map(|hash| &hash[..]).collect::<Vec<_>>())
            .push(")) AS r (hash) WHERE (SELECT p.codec FROM payloads p WHERE p.hash = r.hash AND p.thread_key = ")
            .push_bind(key)
            .push(") IS NULL)");
    }
    if !batch.writes.is_empty() {
        query.push(" AND NOT EXISTS (SELECT 1 FROM UNNEST((SELECT ");
        push_places(query, batch);
        query
            .push(
                ") AS p (ns, id, task, slot)
                    WHERE (SELECT w.codec FROM foreign_writes w
                           WHERE w.ns = p.ns AND w.checkpoint_id = p.id AND w.task_id = p.task AND w.slot = p.slot
                             AND w.thread_key = ",
            )
            .push_bind(key)
            .push(") IS NOT NULL)");
    }
    query.push(
        "),
            touched AS (
                -- Once a second is enough for what is shown and for what expires.
                UPDATE threads x SET updated_at = going.now, state_updated_at = going.now,
                                     rest_status = COALESCE(rest.status, x.rest_status)
                FROM going, (SELECT ",
    );
    push_status(query, key, batch.status.as_ref());
    query
        .push(
            " AS status) AS rest
                WHERE (x.updated_at < going.now - 1000000 OR x.pruned_at >= x.updated_at OR x.rest_status <> rest.status)
                  AND x.thread_key = ",
        )
        .push_bind(key)
        .push(")");
}

/// What the thread rests at afterwards; null: as before.
fn push_status(query: &mut QueryBuilder<Postgres>, key: Uuid, status: Option<&ForeignStatus>) {
    match status {
        None => query.push("NULL::text"),
        Some(ForeignStatus { status: ThreadStatus::Idle, on }) => query
            .push(
                "COALESCE((SELECT CASE w.slot WHEN '-1' THEN 'error' ELSE 'interrupted' END FROM foreign_writes w
                           WHERE w.ns = '' AND w.slot IN ('-1', '-3') AND w.thread_key = ",
            )
            .push_bind(key)
            .push(" AND w.checkpoint_id = ")
            .push_bind(on.as_str())
            .push(" ORDER BY w.slot LIMIT 1), 'idle')"),
        Some(ForeignStatus { status, on }) => query
            .push("CASE WHEN EXISTS (SELECT 1 FROM foreign_checkpoints c WHERE c.ns = '' AND c.thread_key = ")
            .push_bind(key)
            .push(" AND c.checkpoint_id > ")
            .push_bind(on.as_str())
            .push(") THEN NULL ELSE ")
            .push_bind(status.as_str())
            .push(" END"),
    };
}

fn push_lookup(query: &mut QueryBuilder<Postgres>, condition: &'static str, key: Uuid, ns: &str, id: &str) {
    query
        .push(condition)
        .push(" (SELECT 1 FROM foreign_checkpoints c WHERE c.thread_key = ")
        .push_bind(key)
        .push(" AND c.ns = ")
        .push_bind(ns)
        .push(" AND c.checkpoint_id = ")
        .push_bind(id)
        .push(")");
}

fn push_payloads(query: &mut QueryBuilder<Postgres>, key: Uuid, tenant: Uuid, batch: &ForeignBatch) {
    let (codecs, values): (Vec<i16>, Vec<Vec<u8>>) =
        batch.payloads.iter().map(|payload| payload_columns(&payload.bytes)).unzip();
    query
        .push(
            ",
            put_payloads AS (
                INSERT INTO payloads (thread_key, tenant, hash, codec, value) SELECT ",
        )
        .push_bind(key)
        .push(", ")
        .push_bind(tenant)
        .push(", p.hash, p.codec, p.value FROM going, UNNEST((SELECT ")
        .push_bind(batch.payloads.iter().map(|payload| &payload.hash[..]).collect::<Vec<_>>())
        .push("), ")
        .push_bind(codecs)
        .push(", ")
        .push_bind(values)
        .push(
            ") AS p (hash, codec, value)
                WHERE (SELECT q.codec FROM payloads q WHERE q.hash = p.hash AND q.thread_key = ",
        )
        .push_bind(key)
        .push(") IS NULL)");
}

fn push_checkpoint(query: &mut QueryBuilder<Postgres>, key: Uuid, tenant: Uuid, row: &ForeignCheckpoint) {
    let (codec, body) = body_columns(&row.body);
    query
        .push(
            ",
            put_checkpoint AS (
                INSERT INTO foreign_checkpoints (thread_key, ns, checkpoint_id, tenant, parent_id, run_id, codec, body,
                                                 size_bytes, created_at)
                SELECT ",
        )
        .push_bind(key)
        .push(", ")
        .push_bind(row.ns.as_str())
        .push(", ")
        .push_bind(row.id.as_str())
        .push(", ")
        .push_bind(tenant)
        .push(", ")
        .push_bind(row.parent.as_deref())
        .push(", ")
        .push_bind(row.run_id.as_deref())
        .push(", ")
        .push_bind(codec)
        .push(", ")
        .push_bind(body)
        .push(", ")
        .push_bind(row.bytes)
        .push(", going.now FROM going)");
}

fn push_writes(query: &mut QueryBuilder<Postgres>, key: Uuid, tenant: Uuid, batch: &ForeignBatch) {
    let (codecs, bodies): (Vec<i16>, Vec<Vec<u8>>) = batch.writes.iter().map(|row| body_columns(&row.body)).unzip();
    query
        .push(
            ",
            put_writes AS (
                INSERT INTO foreign_writes (thread_key, tenant, ns, checkpoint_id, task_id, slot, path, codec, body,
                                            written_at)
                SELECT ",
        )
        .push_bind(key)
        .push(", ")
        .push_bind(tenant)
        // Microseconds apart, so that they are read in this order.
        .push(
            ", p.ns, p.id, p.task, p.slot, p.path, p.codec, p.body, going.now + p.ordinal FROM going, UNNEST((SELECT ",
        );
    push_places(query, batch);
    query
        .push(", ")
        .push_bind(batch.writes.iter().map(|row| row.path.as_str()).collect::<Vec<_>>())
        .push(", ")
        .push_bind(codecs)
        .push(", ")
        .push_bind(bodies)
        .push(") WITH ORDINALITY AS p (ns, id, task, slot, path, codec, body, ordinal))");
}

/// What identifies the rows of writes, as arrays after `(SELECT `.
fn push_places(query: &mut QueryBuilder<Postgres>, batch: &ForeignBatch) {
    query
        .push_bind(batch.writes.iter().map(|row| row.ns.as_str()).collect::<Vec<_>>())
        .push("), ")
        .push_bind(batch.writes.iter().map(|row| row.checkpoint_id.as_str()).collect::<Vec<_>>())
        .push(", ")
        .push_bind(batch.writes.iter().map(|row| row.task_id.as_str()).collect::<Vec<_>>())
        .push(", ")
        .push_bind(batch.writes.iter().map(|row| row.slot.as_str()).collect::<Vec<_>>());
}
