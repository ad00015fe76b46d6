//! Threads on Postgres.

use async_trait::async_trait;
use sqlx::postgres::PgConnection;
use sqlx::{Postgres, QueryBuilder};
use uuid::Uuid;

use super::retention::remove_rows;
use super::rows::{get, thread_from};
use super::{PostgresStorage, notify, now, read};
use crate::model::{CheckpointId, Json, RunId, Scope, Thread, ThreadId, ThreadKey};
use crate::storage::encoding::{self, PLAIN, Place};
use crate::storage::idempotency;
use crate::storage::rows::driver_error;
use crate::storage::{
    COPIED_VIEW, NewThread, Notice, Page, Result, StorageError, ThreadCreated, ThreadFilter, ThreadPatch, ThreadSort,
    Threads, WaitingThread,
};

/// The columns [`thread_from`] reads, from `threads t`. `busy` is derived: an active run exists.
macro_rules! thread_columns {
    () => {
        "t.thread_key, t.tenant, t.name, t.graph_id, t.metadata::text AS metadata, t.codec, t.config, t.rest_status, \
         t.error, t.head, t.view, t.last_event, t.created_at, t.updated_at, t.state_updated_at, t.closed, t.closed_at, \
         t.closed_by, t.closed_reason, t.moved_to, t.moved_past, \
         EXISTS (SELECT 1 FROM runs a WHERE a.thread_key = t.thread_key AND a.status IN ('pending', 'running')) AS busy, \
         (SELECT json_agg(json_build_array(u.model, u.input_tokens, u.output_tokens, u.total_tokens, u.cost_nanos))::text \
          FROM usage_totals u WHERE u.thread_key = t.thread_key \
          AND u.run_id = '00000000-0000-0000-0000-000000000000') AS usage"
    };
}
pub(super) use thread_columns;

/// The derived status as text.
const STATUS: &str = "CASE WHEN EXISTS (SELECT 1 FROM runs a WHERE a.thread_key = t.thread_key \
                      AND a.status IN ('pending', 'running')) THEN 'busy' ELSE t.rest_status END COLLATE \"C\"";

/// Reads threads by their keys.
pub(super) async fn threads_by_key(conn: &mut PgConnection, scope: &Scope, keys: Vec<Uuid>) -> Result<Vec<Thread>> {
    let rows = sqlx::query(concat!(
        "SELECT ",
        thread_columns!(),
        " FROM threads t WHERE t.thread_key = ANY ($1) AND ($2::uuid IS NULL OR t.tenant = $2)"
    ))
    .bind(keys)
    .bind(scope.filter())
    .fetch_all(conn)
    .await
    .map_err(driver_error)?;
    rows.iter().map(thread_from).collect()
}

/// Reads one thread. A statement of its own: with a list of keys Postgres plans anew every time, since it guesses that an
/// unknown list is longer.
pub(super) async fn thread_by_key(conn: &mut PgConnection, scope: &Scope, key: ThreadKey) -> Result<Option<Thread>> {
    let row = sqlx::query(concat!(
        "SELECT ",
        thread_columns!(),
        " FROM threads t WHERE t.thread_key = $1 AND ($2::uuid IS NULL OR t.tenant = $2)"
    ))
    .bind(key.0)
    .bind(scope.filter())
    .fetch_optional(conn)
    .await
    .map_err(driver_error)?;
    row.as_ref().map(thread_from).transpose()
}

/// Locks a thread against everything that writes to it; false when it is missing.
pub(super) async fn lock_thread(conn: &mut PgConnection, key: ThreadKey) -> Result<bool> {
    let row = sqlx::query("SELECT 1 FROM threads WHERE thread_key = $1 FOR UPDATE")
        .bind(key.0)
        .fetch_optional(conn)
        .await
        .map_err(driver_error)?;
    Ok(row.is_some())
}

/// Deletes a locked thread with everything on it: temporary threads, of one run each.
pub(super) async fn delete_thread_rows(conn: &mut PgConnection, key: ThreadKey) -> Result<()> {
    sqlx::query(
        "WITH drop_threads AS (DELETE FROM threads WHERE thread_key = $1),
         drop_lookup AS (DELETE FROM run_lookup WHERE run_id IN (SELECT run_id FROM runs WHERE thread_key = $1)),
         drop_runs AS (DELETE FROM runs WHERE thread_key = $1),
         drop_checkpoints AS (DELETE FROM checkpoints WHERE thread_key = $1),
         drop_task_writes AS (DELETE FROM task_writes WHERE thread_key = $1),
         drop_payloads AS (DELETE FROM payloads WHERE thread_key = $1),
         drop_log AS (DELETE FROM channel_log WHERE thread_key = $1),
         drop_interrupts AS (DELETE FROM interrupts WHERE thread_key = $1),
         drop_branches AS (DELETE FROM branches WHERE thread_key = $1),
         drop_ticks AS (DELETE FROM cron_ticks WHERE cron_id IN (SELECT cron_id FROM crons WHERE thread_key = $1)),
         drop_crons AS (DELETE FROM crons WHERE thread_key = $1),
         drop_webhooks AS (DELETE FROM webhooks WHERE thread_key = $1 AND state = 'waiting'),
         drop_effects AS (DELETE FROM effects WHERE thread_key = $1),
         drop_executions AS (DELETE FROM task_log WHERE thread_key = $1),
         drop_usage AS (DELETE FROM usage_totals WHERE thread_key = $1)
         DELETE FROM events WHERE thread_key = $1",
    )
    .bind(key.0)
    .execute(conn)
    .await
    .map_err(driver_error)?;
    Ok(())
}

/// What the head checkpoint says a thread without active runs rests at.
pub(super) async fn head_status(conn: &mut PgConnection, key: ThreadKey) -> Result<&'static str> {
    let row = sqlx::query(
        "SELECT c.codec, c.next_nodes FROM threads t
         JOIN checkpoints c ON c.thread_key = t.thread_key AND c.ns = '' AND c.checkpoint_id = t.head
         WHERE t.thread_key = $1",
    )
    .bind(key.0)
    .fetch_optional(conn)
    .await
    .map_err(driver_error)?;
    let Some(row) = row else { return Ok("idle") };
    let at = Place { table: "checkpoints", column: "next_nodes", id: &key.0 };
    let next = encoding::json(get(&row, "codec")?, get(&row, "next_nodes")?, at)?;
    Ok(if next.items().is_some_and(|next| !next.is_empty()) { "interrupted" } else { "idle" })
}

const CREATE: &str = concat!(
    "WITH clock AS MATERIALIZED (SELECT ",
    now!(),
    " AS now),
    t AS (
        INSERT INTO threads AS t (thread_key, tenant, name, graph_id, metadata, codec, config, rest_status, last_event,
                                  revision, created_at, updated_at, state_updated_at, ttl, ttl_strategy)
        -- The first revision is a time, so that a thread deleted and made again is never mistaken for itself.
        SELECT $1, $2, $3, $4, $5::jsonb, $6, $7, 'idle', 0, clock.now, clock.now, clock.now, clock.now, $8, $9
        FROM clock
        -- Asked besides ON CONFLICT: what is deleted while this waits for it may leave rows that this snapshot shows no
        -- sign of.
        WHERE NOT EXISTS (SELECT 1 FROM threads WHERE thread_key = $1)
          AND NOT EXISTS (SELECT 1 FROM dead_threads WHERE thread_key = $1)
        ON CONFLICT (thread_key) DO NOTHING
        RETURNING t.thread_key, t.tenant, t.name, t.graph_id, t.metadata, t.codec, t.config, t.rest_status, t.error,
                  t.head, t.view, t.last_event, t.created_at, t.updated_at, t.state_updated_at, t.closed, t.closed_at,
                  t.closed_by, t.closed_reason, t.moved_to, t.moved_past
    )
    SELECT ",
    thread_columns!(),
    " FROM t"
);

/// Copies below a new key; $1 is the source, $2 the copy.
const COPY_ROWS: &str = "
    WITH copy_checkpoints AS (
        INSERT INTO checkpoints (thread_key, ns, checkpoint_id, tenant, parent_id, run_id, step, source, created_at,
                                 metadata, codec, next_nodes, body, size_bytes)
        SELECT $2, ns, checkpoint_id, tenant, parent_id, run_id, step, source, created_at, metadata, codec, next_nodes,
               body, size_bytes
        FROM checkpoints WHERE thread_key = $1
    ),
    copy_task_writes AS (
        INSERT INTO task_writes (thread_key, ns, checkpoint_id, task_id, run_id, tenant, path, written_at, codec, body)
        SELECT $2, ns, checkpoint_id, task_id, run_id, tenant, path, written_at, codec, body
        FROM task_writes WHERE thread_key = $1
    ),
    -- The copy goes on where the original stands: what its waiting tasks did to the outside world is done. What that
    -- cost stays with the original.
    copy_effects AS (
        INSERT INTO effects (thread_key, ns, checkpoint_id, task_id, key, tenant, run_id, node, state, attempt, asked,
                             started_at, ended_at, codec, result, error)
        SELECT $2, ns, checkpoint_id, task_id, key, tenant, run_id, node, state, attempt, asked, started_at, ended_at,
               codec, result, error
        FROM effects WHERE thread_key = $1
    ),
    copy_payloads AS (
        INSERT INTO payloads (thread_key, hash, tenant, codec, value)
        SELECT $2, hash, tenant, codec, value FROM payloads WHERE thread_key = $1
    ),
    copy_foreign_checkpoints AS (
        INSERT INTO foreign_checkpoints (thread_key, ns, checkpoint_id, tenant, parent_id, run_id, created_at, codec, body,
                                         size_bytes)
        SELECT $2, ns, checkpoint_id, tenant, parent_id, run_id, created_at, codec, body, size_bytes
        FROM foreign_checkpoints WHERE thread_key = $1
    ),
    copy_foreign_writes AS (
        INSERT INTO foreign_writes (thread_key, ns, checkpoint_id, task_id, slot, tenant, path, written_at, codec, body)
        SELECT $2, ns, checkpoint_id, task_id, slot, tenant, path, written_at, codec, body
        FROM foreign_writes WHERE thread_key = $1
    ),
    copy_interrupts AS (
        INSERT INTO interrupts (thread_key, interrupt_id, tenant, ns, checkpoint_id, root_checkpoint_id, task_id, node,
                                graph_id, assistant_id, run_id, codec, question, response_schema, checked, asked_at,
                                answer, answered_at, answered_by, answered_run, withdrawn_run)
        SELECT $2, interrupt_id, tenant, ns, checkpoint_id, root_checkpoint_id, task_id, node, graph_id, assistant_id,
               run_id, codec, question, response_schema, checked, asked_at, answer, answered_at, answered_by,
               answered_run, withdrawn_run
        FROM interrupts WHERE thread_key = $1
    ),
    copy_branches AS (
        INSERT INTO branches (thread_key, name, tenant, checkpoint_id, created_at, updated_at, updated_by)
        SELECT $2, name, tenant, checkpoint_id, created_at, updated_at, updated_by
        FROM branches WHERE thread_key = $1
    )
    INSERT INTO channel_log (thread_key, ns, channel, branch, start, tenant, count, run_id, codec, items)
    SELECT $2, ns, channel, branch, start, tenant, count, run_id, codec, items
    FROM channel_log WHERE thread_key = $1";

pub(super) async fn copy_thread(
    conn: &mut PgConnection,
    scope: &Scope,
    from: &ThreadId,
    to: &ThreadId,
) -> Result<Option<Thread>> {
    let (source, target) = (from.key(scope.tenant()), to.key(scope.tenant()));
    // Locked, so that what is copied is one moment of the thread.
    if !lock_thread(conn, source).await? {
        return Ok(None);
    }
    sqlx::query(concat!(
        "INSERT INTO threads (thread_key, tenant, name, graph_id, metadata, codec, config, rest_status, head, view,
                              last_event, revision, created_at, updated_at, state_updated_at, ttl, ttl_strategy,
                              is_foreign, branch, moved_to, moved_past)
         SELECT $2, t.tenant, $3, t.graph_id, t.metadata, t.codec, t.config, 'idle', t.head, $4, 0, clock.now,
                clock.now, clock.now, clock.now, t.ttl, t.ttl_strategy, t.is_foreign, t.branch,
                t.moved_to, t.moved_past
         FROM threads t, (SELECT ",
        now!(),
        " AS now) AS clock WHERE t.thread_key = $1"
    ))
    .bind(source.0)
    .bind(target.0)
    .bind(to.as_str())
    .bind(COPIED_VIEW)
    .execute(&mut *conn)
    .await
    .map_err(driver_error)?;
    sqlx::query(COPY_ROWS).bind(source.0).bind(target.0).execute(&mut *conn).await.map_err(driver_error)?;
    thread_by_key(conn, scope, target).await
}

async fn delete_thread(conn: &mut PgConnection, tenant: Uuid, key: ThreadKey) -> Result<Option<Vec<RunId>>> {
    if !lock_thread(conn, key).await? {
        return Ok(None);
    }
    bury_thread(conn, tenant, key).await.map(Some)
}

/// Takes a locked thread out of sight, and removes a first part of its rows. Returns the runs that were active.
pub(super) async fn bury_thread(conn: &mut PgConnection, tenant: Uuid, key: ThreadKey) -> Result<Vec<RunId>> {
    let active: Vec<(Uuid,)> = sqlx::query_as(
        "SELECT run_id FROM runs WHERE thread_key = $1 AND status IN ('pending', 'running') ORDER BY created_at, run_id",
    )
    .bind(key.0)
    .fetch_all(&mut *conn)
    .await
    .map_err(driver_error)?;
    sqlx::query(
        "WITH drop_threads AS (DELETE FROM threads WHERE thread_key = $1),
         drop_active AS (
             DELETE FROM runs WHERE thread_key = $1 AND status IN ('pending', 'running') RETURNING run_id
         ),
         drop_ticks AS (DELETE FROM cron_ticks WHERE cron_id IN (SELECT cron_id FROM crons WHERE thread_key = $1)),
         drop_crons AS (DELETE FROM crons WHERE thread_key = $1),
         drop_webhooks AS (DELETE FROM webhooks WHERE thread_key = $1 AND state = 'waiting')
         DELETE FROM run_lookup WHERE run_id IN (SELECT run_id FROM drop_active)",
    )
    .bind(key.0)
    .execute(&mut *conn)
    .await
    .map_err(driver_error)?;
    if !remove_rows(conn, key).await? {
        sqlx::query(concat!("INSERT INTO dead_threads (thread_key, tenant, deleted_at) VALUES ($1, $2, ", now!(), ")"))
            .bind(key.0)
            .bind(tenant)
            .execute(&mut *conn)
            .await
            .map_err(driver_error)?;
    }
    let active: Vec<RunId> = active.into_iter().map(|(run_id,)| run_id).collect();
    let notices: Vec<Notice> = active.iter().map(|run_id| Notice::RunEnded(*run_id)).collect();
    notify(conn, &notices).await?;
    Ok(active)
}

fn push_conditions(query: &mut QueryBuilder<Postgres>, scope: &Scope, filter: &ThreadFilter) {
    query.push(" WHERE TRUE");
    if let Some(tenant) = scope.filter() {
        query.push(" AND t.tenant = ").push_bind(tenant);
    }
    if let Some(ids) = &filter.ids {
        let names: Vec<String> = ids.iter().map(|id| id.as_str().to_owned()).collect();
        query.push(" AND t.name = ANY (").push_bind(names).push(")");
    }
    if let Some(metadata) = &filter.metadata {
        query.push(" AND t.metadata @> ").push_bind(encoding::metadata_text(metadata)).push("::jsonb");
    }
    query.push(filter.closed.condition());
    if let Some(status) = filter.status {
        query.push(" AND ").push(STATUS).push(" = ").push_bind(status.as_str());
    }
}

#[async_trait]
impl Threads for PostgresStorage {
    async fn create_thread(&self, scope: &Scope, new: NewThread) -> Result<ThreadCreated> {
        self.bounded(async {
            let tenant = scope.tenant();
            let key = new.id.key(tenant);
            // More than once, since a thread that is in the way may be deleted before it is read.
            for _ in 0..3 {
                let mut session = self.session().await?;
                let row = sqlx::query(CREATE)
                    .bind(key.0)
                    .bind(tenant)
                    .bind(new.id.as_str())
                    .bind(&new.graph_id)
                    .bind(encoding::metadata_text(&new.metadata))
                    .bind(PLAIN)
                    .bind(encoding::bytes(&new.config))
                    .bind(new.ttl.map(|ttl| ttl.micros))
                    .bind(new.ttl.map(|ttl| ttl.strategy.as_str()))
                    .fetch_optional(session.conn())
                    .await
                    .map_err(driver_error)?;
                if let Some(row) = row {
                    self.wrote(session).await?;
                    return Ok(ThreadCreated::New(thread_from(&row)?));
                }
                let found = thread_by_key(session.conn(), scope, key).await?;
                session.finish().await?;
                if let Some(thread) = found {
                    return Ok(ThreadCreated::Existing(thread));
                }
                idempotency::aside(self.reclaim_thread(key)).await?;
            }
            Err(StorageError::Unavailable(format!("thread {} is being created and deleted", new.id)))
        })
        .await
    }

    async fn find_thread(&self, scope: &Scope, id: &ThreadId) -> Result<Option<Thread>> {
        read!(self, async {
            let mut session = self.session().await?;
            let found = thread_by_key(session.conn(), scope, id.key(scope.tenant())).await?;
            session.finish().await?;
            Ok(found)
        })
    }

    async fn update_thread(&self, scope: &Scope, id: &ThreadId, patch: ThreadPatch) -> Result<Option<Thread>> {
        self.bounded(async {
            let mut session = self.session().await?;
            let row = sqlx::query(concat!(
                "WITH t AS (
                UPDATE threads AS t SET
                    metadata = t.metadata || COALESCE($3, '{}')::jsonb, graph_id = COALESCE($4, t.graph_id),
                    ttl = COALESCE($5, t.ttl), ttl_strategy = COALESCE($6, t.ttl_strategy),
                    updated_at = ",
                now!(),
                "   WHERE t.thread_key = $1 AND ($2::uuid IS NULL OR t.tenant = $2)
                RETURNING t.thread_key, t.tenant, t.name, t.graph_id, t.metadata, t.codec, t.config, t.rest_status,
                          t.error, t.head, t.view, t.last_event, t.created_at, t.updated_at, t.state_updated_at,
                          t.closed, t.closed_at, t.closed_by, t.closed_reason, t.moved_to, t.moved_past
            )
            SELECT ",
                thread_columns!(),
                " FROM t"
            ))
            .bind(id.key(scope.tenant()).0)
            .bind(scope.filter())
            .bind(patch.metadata.as_ref().map(encoding::metadata_text))
            .bind(patch.graph_id)
            .bind(patch.ttl.map(|ttl| ttl.micros))
            .bind(patch.ttl.map(|ttl| ttl.strategy.as_str()))
            .fetch_optional(session.conn())
            .await
            .map_err(driver_error)?;
            self.wrote(session).await?;
            row.as_ref().map(thread_from).transpose()
        })
        .await
    }

    async fn delete_thread(&self, scope: &Scope, id: &ThreadId) -> Result<Option<Vec<RunId>>> {
        self.bounded(async {
            let mut transaction = self.begin().await?;
            let deleted = delete_thread(&mut transaction, scope.tenant(), id.key(scope.tenant())).await?;
            let Some(active) = deleted else { return Ok(None) };
            self.commit(transaction).await?;
            self.tell(active.iter().map(|run_id| Notice::RunEnded(*run_id)));
            Ok(Some(active))
        })
        .await
    }

    async fn update_head_metadata(
        &self,
        scope: &Scope,
        id: &ThreadId,
        metadata: &Json,
    ) -> Result<Option<Option<CheckpointId>>> {
        self.bounded(async {
            let mut session = self.session().await?;
            let row = sqlx::query(
                "WITH t AS MATERIALIZED (
                 SELECT thread_key, head FROM threads
                 WHERE thread_key = $1 AND ($2::uuid IS NULL OR tenant = $2) AND closed IS NULL
                 FOR NO KEY UPDATE
             ),
             merged AS (
                 UPDATE checkpoints c SET metadata = c.metadata || $3::jsonb
                 FROM t WHERE c.thread_key = t.thread_key AND c.ns = '' AND c.checkpoint_id = t.head
                 RETURNING c.checkpoint_id
             )
             SELECT (SELECT merged.checkpoint_id FROM merged) AS checkpoint_id FROM t",
            )
            .bind(id.key(scope.tenant()).0)
            .bind(scope.filter())
            .bind(encoding::metadata_text(metadata))
            .fetch_optional(session.conn())
            .await
            .map_err(driver_error)?;
            self.wrote(session).await?;
            row.map(|row| get(&row, "checkpoint_id")).transpose()
        })
        .await
    }

    async fn copy_thread(&self, scope: &Scope, from: &ThreadId, to: &ThreadId) -> Result<Option<Thread>> {
        self.bounded(async {
            let mut transaction = self.begin().await?;
            let copied = copy_thread(&mut transaction, scope, from, to).await?;
            if copied.is_some() {
                self.commit(transaction).await?;
            }
            Ok(copied)
        })
        .await
    }

    async fn search_threads(
        &self,
        scope: &Scope,
        filter: &ThreadFilter,
        sort: ThreadSort,
        ascending: bool,
        page: Page,
    ) -> Result<Vec<Thread>> {
        read!(self, async {
            let mut query = QueryBuilder::new(concat!("SELECT ", thread_columns!(), " FROM threads t"));
            push_conditions(&mut query, scope, filter);
            let direction = if ascending { " ASC" } else { " DESC" };
            query.push(" ORDER BY ").push(match sort {
                ThreadSort::ThreadId => "t.name",
                ThreadSort::Status => STATUS,
                ThreadSort::CreatedAt => "t.created_at",
                ThreadSort::UpdatedAt => "t.updated_at",
                ThreadSort::StateUpdatedAt => "t.state_updated_at",
            });
            query.push(direction).push(", t.name").push(direction);
            query.push(" LIMIT ").push_bind(page.limit).push(" OFFSET ").push_bind(page.offset);
            let mut session = self.session().await?;
            let rows = query.build().fetch_all(session.conn()).await.map_err(driver_error)?;
            session.finish().await?;
            rows.iter().map(thread_from).collect::<Result<Vec<Thread>>>()
        })
    }

    async fn count_threads(&self, scope: &Scope, filter: &ThreadFilter) -> Result<i64> {
        read!(self, async {
            let mut query = QueryBuilder::new("SELECT COUNT(*) AS n FROM threads t");
            push_conditions(&mut query, scope, filter);
            let mut session = self.session().await?;
            get(&query.build().fetch_one(session.conn()).await.map_err(driver_error)?, "n")
        })
    }

    async fn waiting_threads(&self, scope: &Scope, after: Option<ThreadKey>, limit: i64) -> Result<Vec<WaitingThread>> {
        read!(self, async {
            let mut session = self.session().await?;
            let rows = sqlx::query(concat!(
                "SELECT ",
                thread_columns!(),
                ", ARRAY(SELECT DISTINCT r.graph_id FROM runs r
                         WHERE r.thread_key = t.thread_key AND r.status IN ('pending', 'running')
                         ORDER BY r.graph_id) AS run_graphs
                 FROM threads t
                 WHERE ($1::uuid IS NULL OR t.thread_key > $1) AND ($2::uuid IS NULL OR t.tenant = $2)
                   AND (EXISTS (SELECT 1 FROM checkpoints c
                                WHERE c.thread_key = t.thread_key AND c.ns = '' AND c.checkpoint_id = t.head
                                  AND c.next_nodes <> '[]'::bytea)
                        OR EXISTS (SELECT 1 FROM runs a
                                   WHERE a.thread_key = t.thread_key AND a.status IN ('pending', 'running')))
                 ORDER BY t.thread_key LIMIT $3"
            ))
            .bind(after.map(|key| key.0))
            .bind(scope.filter())
            .bind(limit)
            .fetch_all(session.conn())
            .await
            .map_err(driver_error)?;
            session.finish().await?;
            rows.iter()
                .map(|row| Ok(WaitingThread { thread: thread_from(row)?, run_graphs: get(row, "run_graphs")? }))
                .collect::<Result<Vec<WaitingThread>>>()
        })
    }
}
