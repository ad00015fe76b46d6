//! Threads on SQLite.

use async_trait::async_trait;
use futures_util::TryStreamExt as _;
use sqlx::sqlite::SqliteConnection;
use sqlx::{QueryBuilder, Sqlite};
use uuid::Uuid;

use super::retention::{is_dead, remove_rows};
use super::rows::{get, thread_from};
use super::{SqliteStorage, Write};
use crate::model::{CheckpointId, Fields, Json, RunId, Scope, Thread, ThreadId, ThreadKey};
use crate::storage::encoding::{self, PLAIN, Place};
use crate::storage::idempotency;
use crate::storage::rows::driver_error;
use crate::storage::{
    COPIED_VIEW, NewThread, Page, Result, StorageError, ThreadCreated, ThreadFilter, ThreadPatch, ThreadSort, Threads,
    WaitingThread, matching,
};

/// The columns [`thread_from`] reads, from `threads t`. `busy` is derived: an active run exists.
macro_rules! thread_columns {
    () => {
        "t.thread_key, t.tenant, t.name, t.graph_id, t.metadata, t.codec, t.config, t.rest_status, t.error, t.head, \
         t.view, t.last_event, t.created_at, t.updated_at, t.state_updated_at, t.closed, t.closed_at, t.closed_by, \
         t.closed_reason, t.moved_to, t.moved_past, \
         EXISTS (SELECT 1 FROM runs a WHERE a.thread_key = t.thread_key AND a.status IN ('pending', 'running')) AS busy, \
         (SELECT json_group_array(json_array(u.model, u.input_tokens, u.output_tokens, u.total_tokens, u.cost_nanos)) \
          FROM usage_totals u WHERE u.thread_key = t.thread_key AND u.run_id = zeroblob(16)) AS usage"
    };
}
pub(super) use thread_columns;

/// Reads one thread by its key.
pub(super) async fn thread_by_key(
    conn: &mut SqliteConnection,
    scope: &Scope,
    key: ThreadKey,
) -> Result<Option<Thread>> {
    sqlx::query(concat!(
        "SELECT ",
        thread_columns!(),
        " FROM threads t WHERE t.thread_key = $1 AND ($2 IS NULL OR t.tenant = $2)"
    ))
    .bind(key.0)
    .bind(scope.filter())
    .fetch_optional(conn)
    .await
    .map_err(driver_error)?
    .as_ref()
    .map(thread_from)
    .transpose()
}

/// Inserts a thread; false when the key is taken.
pub(super) async fn insert_thread(write: &mut Write, tenant: Uuid, new: &NewThread) -> Result<bool> {
    let done = sqlx::query(
        "INSERT INTO threads (thread_key, tenant, name, graph_id, metadata, codec, config, rest_status, last_event,
                              revision, created_at, updated_at, state_updated_at, ttl, ttl_strategy)
         VALUES ($1, $2, $3, $4, $5, $6, $7, 'idle', 0, 1, $8, $8, $8, $9, $10)
         ON CONFLICT (thread_key) DO NOTHING",
    )
    .bind(new.id.key(tenant).0)
    .bind(tenant)
    .bind(new.id.as_str())
    .bind(&new.graph_id)
    .bind(encoding::metadata_text(&new.metadata))
    .bind(PLAIN)
    .bind(encoding::bytes(&new.config))
    .bind(write.now)
    .bind(new.ttl.map(|ttl| ttl.micros))
    .bind(new.ttl.map(|ttl| ttl.strategy.as_str()))
    .execute(&mut write.conn)
    .await
    .map_err(driver_error)?;
    Ok(done.rows_affected() == 1)
}

/// Merges objects shallowly: `over` wins.
pub(super) fn merge(below: &Json, over: &Json) -> Json {
    let mut fields: Fields = below.fields().unwrap_or_default();
    fields.extend(over.fields().unwrap_or_default());
    Json::from(&fields)
}

/// Deletes a thread with everything on it: temporary threads, of one run each.
pub(super) async fn delete_thread_rows(conn: &mut SqliteConnection, key: ThreadKey) -> Result<()> {
    for statement in [
        "DELETE FROM threads WHERE thread_key = $1",
        "DELETE FROM run_lookup WHERE run_id IN (SELECT run_id FROM runs WHERE thread_key = $1)",
        "DELETE FROM runs WHERE thread_key = $1",
        "DELETE FROM checkpoints WHERE thread_key = $1",
        "DELETE FROM task_writes WHERE thread_key = $1",
        "DELETE FROM payloads WHERE thread_key = $1",
        "DELETE FROM channel_log WHERE thread_key = $1",
        "DELETE FROM interrupts WHERE thread_key = $1",
        "DELETE FROM branches WHERE thread_key = $1",
        "DELETE FROM events WHERE thread_key = $1",
        "DELETE FROM cron_ticks WHERE cron_id IN (SELECT cron_id FROM crons WHERE thread_key = $1)",
        "DELETE FROM crons WHERE thread_key = $1",
        "DELETE FROM webhooks WHERE thread_key = $1 AND state = 'waiting'",
        "DELETE FROM effects WHERE thread_key = $1",
        "DELETE FROM task_log WHERE thread_key = $1",
        "DELETE FROM usage_totals WHERE thread_key = $1",
    ] {
        sqlx::query(statement).bind(key.0).execute(&mut *conn).await.map_err(driver_error)?;
    }
    Ok(())
}

/// What the head checkpoint says a thread without active runs rests at.
pub(super) async fn head_status(conn: &mut SqliteConnection, key: ThreadKey) -> Result<&'static str> {
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

/// `None`: rows of a deleted thread are in the way.
async fn create_thread(write: &mut Write, scope: Scope, new: NewThread) -> Result<Option<ThreadCreated>> {
    if is_dead(&mut write.conn, new.id.key(scope.tenant())).await? {
        return Ok(None);
    }
    let inserted = insert_thread(write, scope.tenant(), &new).await?;
    let thread = thread_by_key(&mut write.conn, &scope, new.id.key(scope.tenant())).await?;
    let thread =
        thread.ok_or_else(|| StorageError::Other(format!("thread {} is not there after its insert", new.id)))?;
    Ok(Some(if inserted { ThreadCreated::New(thread) } else { ThreadCreated::Existing(thread) }))
}

async fn update_thread(write: &mut Write, scope: Scope, id: ThreadId, patch: ThreadPatch) -> Result<Option<Thread>> {
    let key = id.key(scope.tenant());
    let Some(thread) = thread_by_key(&mut write.conn, &scope, key).await? else { return Ok(None) };
    let metadata = patch.metadata.map_or_else(|| thread.metadata.clone(), |over| merge(&thread.metadata, &over));
    sqlx::query(
        "UPDATE threads SET metadata = $2, graph_id = COALESCE($3, graph_id), updated_at = $4, ttl = COALESCE($5, ttl),
                            ttl_strategy = COALESCE($6, ttl_strategy)
         WHERE thread_key = $1",
    )
    .bind(key.0)
    .bind(encoding::metadata_text(&metadata))
    .bind(patch.graph_id)
    .bind(write.now)
    .bind(patch.ttl.map(|ttl| ttl.micros))
    .bind(patch.ttl.map(|ttl| ttl.strategy.as_str()))
    .execute(&mut write.conn)
    .await
    .map_err(driver_error)?;
    thread_by_key(&mut write.conn, &scope, key).await
}

async fn delete_thread(write: &mut Write, scope: Scope, id: ThreadId) -> Result<Option<Vec<RunId>>> {
    let key = id.key(scope.tenant());
    if thread_by_key(&mut write.conn, &scope, key).await?.is_none() {
        return Ok(None);
    }
    bury_thread(write, scope.tenant(), key).await.map(Some)
}

/// Takes a thread out of sight, and removes a first part of its rows. Returns the runs that were active.
pub(super) async fn bury_thread(write: &mut Write, tenant: Uuid, key: ThreadKey) -> Result<Vec<RunId>> {
    let active: Vec<(Uuid,)> = sqlx::query_as(
        "SELECT run_id FROM runs WHERE thread_key = $1 AND status IN ('pending', 'running') ORDER BY created_at, run_id",
    )
    .bind(key.0)
    .fetch_all(&mut write.conn)
    .await
    .map_err(driver_error)?;
    for statement in [
        "DELETE FROM threads WHERE thread_key = $1",
        "DELETE FROM run_lookup WHERE run_id IN
             (SELECT run_id FROM runs WHERE thread_key = $1 AND status IN ('pending', 'running'))",
        "DELETE FROM runs WHERE thread_key = $1 AND status IN ('pending', 'running')",
        "DELETE FROM cron_ticks WHERE cron_id IN (SELECT cron_id FROM crons WHERE thread_key = $1)",
        "DELETE FROM crons WHERE thread_key = $1",
        "DELETE FROM webhooks WHERE thread_key = $1 AND state = 'waiting'",
    ] {
        sqlx::query(statement).bind(key.0).execute(&mut write.conn).await.map_err(driver_error)?;
    }
    if !remove_rows(&mut write.conn, key).await? {
        sqlx::query("INSERT INTO dead_threads (thread_key, tenant, deleted_at) VALUES ($1, $2, $3)")
            .bind(key.0)
            .bind(tenant)
            .bind(write.now)
            .execute(&mut write.conn)
            .await
            .map_err(driver_error)?;
    }
    let active: Vec<RunId> = active.into_iter().map(|(run_id,)| run_id).collect();
    write.notices.extend(active.iter().map(|run_id| crate::storage::Notice::RunEnded(*run_id)));
    Ok(active)
}

async fn update_head_metadata(
    write: &mut Write,
    scope: Scope,
    key: ThreadKey,
    over: Json,
) -> Result<Option<Option<CheckpointId>>> {
    let row = sqlx::query(
        "SELECT t.head, c.metadata FROM threads t
         LEFT JOIN checkpoints c ON c.thread_key = t.thread_key AND c.ns = '' AND c.checkpoint_id = t.head
         WHERE t.thread_key = $1 AND ($2 IS NULL OR t.tenant = $2) AND t.closed IS NULL",
    )
    .bind(key.0)
    .bind(scope.filter())
    .fetch_optional(&mut write.conn)
    .await
    .map_err(driver_error)?;
    let Some(row) = row else { return Ok(None) };
    let head: Option<String> = get(&row, "head")?;
    let (Some(head), Some(metadata)) = (head, get::<Option<String>>(&row, "metadata")?) else { return Ok(Some(None)) };
    let at = Place { table: "checkpoints", column: "metadata", id: &head };
    let merged = merge(&encoding::metadata(&metadata, at)?, &over);
    sqlx::query("UPDATE checkpoints SET metadata = $3 WHERE thread_key = $1 AND ns = '' AND checkpoint_id = $2")
        .bind(key.0)
        .bind(&head)
        .bind(encoding::metadata_text(&merged))
        .execute(&mut write.conn)
        .await
        .map_err(driver_error)?;
    Ok(Some(Some(head)))
}

pub(super) async fn copy_thread(
    write: &mut Write,
    scope: Scope,
    from: ThreadId,
    to: ThreadId,
) -> Result<Option<Thread>> {
    let (source, target) = (from.key(scope.tenant()), to.key(scope.tenant()));
    if thread_by_key(&mut write.conn, &scope, source).await?.is_none() {
        return Ok(None);
    }
    for statement in [
        "INSERT INTO threads (thread_key, tenant, name, graph_id, metadata, codec, config, rest_status, head, view,
                              last_event, revision, created_at, updated_at, state_updated_at, ttl, ttl_strategy,
                              is_foreign, branch, moved_to, moved_past)
         SELECT $2, tenant, $3, graph_id, metadata, codec, config, 'idle', head, $5, 0, 1, $4, $4, $4, ttl, ttl_strategy,
                is_foreign, branch, moved_to, moved_past
         FROM threads WHERE thread_key = $1",
        "INSERT INTO foreign_checkpoints (thread_key, ns, checkpoint_id, tenant, parent_id, run_id, created_at, codec,
                                          body, size_bytes)
         SELECT $2, ns, checkpoint_id, tenant, parent_id, run_id, created_at, codec, body, size_bytes
         FROM foreign_checkpoints WHERE thread_key = $1",
        "INSERT INTO foreign_writes (thread_key, ns, checkpoint_id, task_id, slot, tenant, path, written_at, codec, body)
         SELECT $2, ns, checkpoint_id, task_id, slot, tenant, path, written_at, codec, body
         FROM foreign_writes WHERE thread_key = $1",
        "INSERT INTO checkpoints (thread_key, ns, checkpoint_id, tenant, parent_id, run_id, step, source, created_at,
                                  metadata, codec, next_nodes, body, size_bytes)
         SELECT $2, ns, checkpoint_id, tenant, parent_id, run_id, step, source, created_at, metadata, codec, next_nodes,
                body, size_bytes
         FROM checkpoints WHERE thread_key = $1",
        "INSERT INTO task_writes (thread_key, ns, checkpoint_id, task_id, run_id, tenant, path, written_at, codec, body)
         SELECT $2, ns, checkpoint_id, task_id, run_id, tenant, path, written_at, codec, body
         FROM task_writes WHERE thread_key = $1",
        // The copy goes on where the original stands: what its waiting tasks did to the outside world is done. What that
        // cost stays with the original.
        "INSERT INTO effects (thread_key, ns, checkpoint_id, task_id, key, tenant, run_id, node, state, attempt, asked,
                              started_at, ended_at, codec, result, error)
         SELECT $2, ns, checkpoint_id, task_id, key, tenant, run_id, node, state, attempt, asked, started_at, ended_at,
                codec, result, error
         FROM effects WHERE thread_key = $1",
        "INSERT INTO payloads (thread_key, hash, tenant, codec, value)
         SELECT $2, hash, tenant, codec, value FROM payloads WHERE thread_key = $1",
        "INSERT INTO channel_log (thread_key, ns, channel, branch, start, tenant, count, run_id, codec, items)
         SELECT $2, ns, channel, branch, start, tenant, count, run_id, codec, items
         FROM channel_log WHERE thread_key = $1",
        "INSERT INTO interrupts (thread_key, interrupt_id, tenant, ns, checkpoint_id, root_checkpoint_id, task_id, node,
                                 graph_id, assistant_id, run_id, codec, question, response_schema, checked, asked_at,
                                 answer, answered_at, answered_by, answered_run, withdrawn_run)
         SELECT $2, interrupt_id, tenant, ns, checkpoint_id, root_checkpoint_id, task_id, node, graph_id, assistant_id,
                run_id, codec, question, response_schema, checked, asked_at, answer, answered_at, answered_by,
                answered_run, withdrawn_run
         FROM interrupts WHERE thread_key = $1",
        "INSERT INTO branches (thread_key, name, tenant, checkpoint_id, created_at, updated_at, updated_by)
         SELECT $2, name, tenant, checkpoint_id, created_at, updated_at, updated_by
         FROM branches WHERE thread_key = $1",
    ] {
        let mut query = sqlx::query(statement).bind(source.0).bind(target.0);
        if statement.contains("$4") {
            query = query.bind(to.as_str()).bind(write.now).bind(COPIED_VIEW);
        }
        query.execute(&mut write.conn).await.map_err(driver_error)?;
    }
    thread_by_key(&mut write.conn, &scope, target).await
}

/// Appends the conditions SQLite can check itself; metadata containment is left to [`matching`].
fn push_conditions(query: &mut QueryBuilder<Sqlite>, scope: &Scope, filter: &ThreadFilter) {
    query.push(" WHERE 1 = 1");
    if let Some(tenant) = scope.filter() {
        query.push(" AND t.tenant = ").push_bind(tenant);
    }
    if let Some(ids) = &filter.ids {
        query.push(" AND t.name IN (");
        let mut list = query.separated(", ");
        for id in ids {
            list.push_bind(id.as_str().to_owned());
        }
        query.push(")");
    }
    query.push(filter.closed.condition());
    if let Some(status) = filter.status {
        query.push(" AND ").push(STATUS).push(" = ").push_bind(status.as_str());
    }
}

/// The derived status as text.
const STATUS: &str = "CASE WHEN EXISTS (SELECT 1 FROM runs a WHERE a.thread_key = t.thread_key \
                      AND a.status IN ('pending', 'running')) THEN 'busy' ELSE t.rest_status END";

async fn search(
    conn: &mut SqliteConnection,
    scope: Scope,
    filter: ThreadFilter,
    order: Option<(ThreadSort, bool)>,
    page: Page,
) -> Result<Vec<Thread>> {
    let mut query = QueryBuilder::new(concat!("SELECT ", thread_columns!(), " FROM threads t"));
    push_conditions(&mut query, &scope, &filter);
    if let Some((sort, ascending)) = order {
        let direction = if ascending { " ASC" } else { " DESC" };
        query.push(" ORDER BY ").push(match sort {
            ThreadSort::ThreadId => "t.name",
            ThreadSort::Status => STATUS,
            ThreadSort::CreatedAt => "t.created_at",
            ThreadSort::UpdatedAt => "t.updated_at",
            ThreadSort::StateUpdatedAt => "t.state_updated_at",
        });
        query.push(direction).push(", t.name").push(direction);
    }
    if filter.metadata.is_none() {
        query.push(" LIMIT ").push_bind(page.limit).push(" OFFSET ").push_bind(page.offset);
    }
    let mut rows = query.build().fetch(conn);
    let mut found = Vec::new();
    let mut skipped = 0;
    while (found.len() as i64) < page.limit {
        let Some(row) = rows.try_next().await.map_err(driver_error)? else { break };
        let thread = thread_from(&row)?;
        if let Some(part) = &filter.metadata {
            if !matching::contains(&thread.metadata, part) {
                continue;
            }
            if skipped < page.offset {
                skipped += 1;
                continue;
            }
        }
        found.push(thread);
    }
    Ok(found)
}

async fn count(conn: &mut SqliteConnection, scope: Scope, filter: ThreadFilter) -> Result<i64> {
    let mut query = QueryBuilder::new(if filter.metadata.is_some() {
        "SELECT t.thread_key, t.metadata FROM threads t"
    } else {
        "SELECT COUNT(*) AS n FROM threads t"
    });
    push_conditions(&mut query, &scope, &filter);
    let Some(part) = &filter.metadata else {
        return get(&query.build().fetch_one(conn).await.map_err(driver_error)?, "n");
    };
    let mut rows = query.build().fetch(conn);
    let mut n = 0;
    while let Some(row) = rows.try_next().await.map_err(driver_error)? {
        let key: Uuid = get(&row, "thread_key")?;
        let at = Place { table: "threads", column: "metadata", id: &key };
        n += i64::from(matching::contains(&encoding::metadata(&get::<String>(&row, "metadata")?, at)?, part));
    }
    Ok(n)
}

async fn waiting(
    conn: &mut SqliteConnection,
    scope: Scope,
    after: Option<ThreadKey>,
    limit: i64,
) -> Result<Vec<WaitingThread>> {
    let rows = sqlx::query(concat!(
        "SELECT ",
        thread_columns!(),
        ", (SELECT json_group_array(g.graph_id)
            FROM (SELECT DISTINCT r.graph_id FROM runs r
                  WHERE r.thread_key = t.thread_key AND r.status IN ('pending', 'running') ORDER BY r.graph_id) AS g)
           AS run_graphs
         FROM threads t
         WHERE ($1 IS NULL OR t.thread_key > $1) AND ($2 IS NULL OR t.tenant = $2)
           AND (EXISTS (SELECT 1 FROM checkpoints c
                        WHERE c.thread_key = t.thread_key AND c.ns = '' AND c.checkpoint_id = t.head
                          AND c.next_nodes <> CAST('[]' AS BLOB))
                OR EXISTS (SELECT 1 FROM runs a
                           WHERE a.thread_key = t.thread_key AND a.status IN ('pending', 'running')))
         ORDER BY t.thread_key LIMIT $3"
    ))
    .bind(after.map(|key| key.0))
    .bind(scope.filter())
    .bind(limit)
    .fetch_all(conn)
    .await
    .map_err(driver_error)?;
    rows.iter()
        .map(|row| {
            let thread = thread_from(row)?;
            let graphs: String = get(row, "run_graphs")?;
            let run_graphs = serde_json::from_str(&graphs).map_err(|error| {
                Place { table: "runs", column: "graph_id", id: &thread.id }.corrupt(error.to_string())
            })?;
            Ok(WaitingThread { thread, run_graphs })
        })
        .collect()
}

#[async_trait]
impl Threads for SqliteStorage {
    async fn create_thread(&self, scope: &Scope, new: NewThread) -> Result<ThreadCreated> {
        let scope = *scope;
        for _ in 0..3 {
            let again = new.clone();
            let is_new = |outcome: &Option<ThreadCreated>| matches!(outcome, Some(ThreadCreated::New(_)));
            let created = self.write_if(is_new, move |write| Box::pin(create_thread(write, scope, again))).await?;
            if let Some(created) = created {
                return Ok(created);
            }
            idempotency::aside(self.reclaim_thread(new.id.key(scope.tenant()))).await?;
        }
        Err(StorageError::Unavailable(format!("thread {} is being created and deleted", new.id)))
    }

    async fn find_thread(&self, scope: &Scope, id: &ThreadId) -> Result<Option<Thread>> {
        let (scope, key) = (*scope, id.key(scope.tenant()));
        self.read(move |conn| Box::pin(async move { thread_by_key(conn, &scope, key).await })).await
    }

    async fn update_thread(&self, scope: &Scope, id: &ThreadId, patch: ThreadPatch) -> Result<Option<Thread>> {
        let (scope, id) = (*scope, id.clone());
        self.write(move |write| Box::pin(update_thread(write, scope, id, patch))).await
    }

    async fn delete_thread(&self, scope: &Scope, id: &ThreadId) -> Result<Option<Vec<RunId>>> {
        let (scope, id) = (*scope, id.clone());
        self.write(move |write| Box::pin(delete_thread(write, scope, id))).await
    }

    async fn update_head_metadata(
        &self,
        scope: &Scope,
        id: &ThreadId,
        metadata: &Json,
    ) -> Result<Option<Option<CheckpointId>>> {
        let (scope, key, metadata) = (*scope, id.key(scope.tenant()), metadata.clone());
        self.write(move |write| Box::pin(update_head_metadata(write, scope, key, metadata))).await
    }

    async fn copy_thread(&self, scope: &Scope, from: &ThreadId, to: &ThreadId) -> Result<Option<Thread>> {
        let (scope, from, to) = (*scope, from.clone(), to.clone());
        self.write(move |write| Box::pin(copy_thread(write, scope, from, to))).await
    }

    async fn search_threads(
        &self,
        scope: &Scope,
        filter: &ThreadFilter,
        sort: ThreadSort,
        ascending: bool,
        page: Page,
    ) -> Result<Vec<Thread>> {
        let (scope, filter) = (*scope, filter.clone());
        self.read(move |conn| Box::pin(search(conn, scope, filter, Some((sort, ascending)), page))).await
    }

    async fn count_threads(&self, scope: &Scope, filter: &ThreadFilter) -> Result<i64> {
        let (scope, filter) = (*scope, filter.clone());
        self.read(move |conn| Box::pin(count(conn, scope, filter))).await
    }

    async fn waiting_threads(&self, scope: &Scope, after: Option<ThreadKey>, limit: i64) -> Result<Vec<WaitingThread>> {
        let scope = *scope;
        self.read(move |conn| Box::pin(waiting(conn, scope, after, limit))).await
    }
}
