//! Interrupts on SQLite: the reads. They are written by the commits of runs.

use async_trait::async_trait;
use futures_util::TryStreamExt as _;
use sqlx::sqlite::SqliteConnection;
use sqlx::{QueryBuilder, Sqlite};

use super::SqliteStorage;
use super::rows::{get, interrupt_from};
use crate::model::{InterruptRecord, InterruptStatus, Scope, ThreadKey};
use crate::storage::encoding::{self, Place};
use crate::storage::rows::driver_error;
use crate::storage::{InterruptCursor, InterruptFilter, Interrupts, Result, matching};

/// Appends the conditions SQLite can check itself; metadata containment is left to [`matching`].
fn push_conditions(query: &mut QueryBuilder<Sqlite>, scope: &Scope, filter: &InterruptFilter) {
    query.push(" WHERE 1 = 1");
    if let Some(tenant) = scope.filter() {
        query.push(" AND i.tenant = ").push_bind(tenant);
    }
    query.push(match filter.status {
        None => "",
        Some(InterruptStatus::Pending) => {
            " AND i.answered_at IS NULL AND i.withdrawn_run IS NULL AND i.root_checkpoint_id = t.head
              AND t.closed IS NULL"
        }
        Some(InterruptStatus::Answered) => " AND i.answered_at IS NOT NULL",
        Some(InterruptStatus::Dropped) => {
            " AND i.answered_at IS NULL
              AND (i.withdrawn_run IS NOT NULL OR i.root_checkpoint_id IS NOT t.head OR t.closed IS NOT NULL)"
        }
    });
    if let Some(thread) = &filter.thread {
        query.push(" AND i.thread_key = ").push_bind(thread.key(scope.tenant()).0);
    }
    if let Some(ids) = &filter.ids {
        query.push(" AND i.interrupt_id IN ");
        push_list(query, ids);
    }
    if let Some(checkpoints) = &filter.checkpoints {
        query.push(" AND (i.checkpoint_id IN ");
        push_list(query, checkpoints);
        query.push(" OR i.root_checkpoint_id IN ");
        push_list(query, checkpoints);
        query.push(")");
    }
    if let Some(graph_id) = &filter.graph_id {
        query.push(" AND i.graph_id = ").push_bind(graph_id.clone());
    }
    if let Some(assistant_id) = filter.assistant_id {
        query.push(" AND i.assistant_id = ").push_bind(assistant_id);
    }
    if let Some(node) = &filter.node {
        query.push(" AND i.node = ").push_bind(node.clone());
    }
    if let Some(after) = filter.asked_after {
        query.push(" AND i.asked_at >= ").push_bind(after.0);
    }
    if let Some(before) = filter.asked_before {
        query.push(" AND i.asked_at < ").push_bind(before.0);
    }
}

fn push_list(query: &mut QueryBuilder<Sqlite>, texts: &[String]) {
    query.push("(");
    let mut list = query.separated(", ");
    for text in texts {
        list.push_bind(text.clone());
    }
    query.push(")");
}

async fn list(
    conn: &mut SqliteConnection,
    scope: Scope,
    filter: InterruptFilter,
    ascending: bool,
    after: Option<InterruptCursor>,
    limit: i64,
) -> Result<Vec<(ThreadKey, InterruptRecord)>> {
    let mut query = QueryBuilder::new(
        "SELECT i.thread_key, i.interrupt_id, i.ns, i.checkpoint_id, i.root_checkpoint_id, i.task_id, i.node,
                i.graph_id, i.assistant_id, i.run_id, i.codec, i.question, i.response_schema, i.checked, i.asked_at,
                i.answer, i.answered_at, i.answered_by, i.answered_run, i.withdrawn_run, t.name AS thread_name,
                t.head AS thread_head, t.closed AS thread_closed, t.metadata AS thread_metadata
         FROM interrupts i JOIN threads t ON t.thread_key = i.thread_key",
    );
    push_conditions(&mut query, &scope, &filter);
    if let Some(after) = after {
        query.push(" AND (i.asked_at, i.interrupt_id, i.thread_key) ").push(if ascending { ">" } else { "<" });
        query.push(" (").push_bind(after.asked_at.0).push(", ").push_bind(after.id).push(", ");
        query.push_bind(after.thread.0).push(")");
    }
    let way = if ascending { " ASC" } else { " DESC" };
    query.push(" ORDER BY i.asked_at").push(way).push(", i.interrupt_id").push(way).push(", i.thread_key").push(way);
    let mut rows = query.build().fetch(conn);
    let mut found = Vec::new();
    while (found.len() as i64) < limit {
        let Some(row) = rows.try_next().await.map_err(driver_error)? else { break };
        let (key, record) = interrupt_from(&row)?;
        if let Some(part) = &filter.thread_metadata {
            let at = Place { table: "threads", column: "metadata", id: &key.0 };
            let metadata = encoding::metadata(&get::<String>(&row, "thread_metadata")?, at)?;
            if !matching::contains(&metadata, part) {
                continue;
            }
        }
        found.push((key, record));
    }
    Ok(found)
}

#[async_trait]
impl Interrupts for SqliteStorage {
    async fn list_interrupts(
        &self,
        scope: &Scope,
        filter: &InterruptFilter,
        ascending: bool,
        after: Option<&InterruptCursor>,
        limit: i64,
    ) -> Result<Vec<(ThreadKey, InterruptRecord)>> {
        let (scope, filter, after) = (*scope, filter.clone(), after.cloned());
        self.read(move |conn| Box::pin(list(conn, scope, filter, ascending, after, limit))).await
    }
}
