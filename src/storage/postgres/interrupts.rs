//! Interrupts on Postgres: the reads. They are written by the commits of runs.

use async_trait::async_trait;
use sqlx::{Postgres, QueryBuilder};

use super::rows::interrupt_from;
use super::{PostgresStorage, read};
use crate::model::{InterruptRecord, InterruptStatus, Scope, ThreadKey};
use crate::storage::encoding;
use crate::storage::rows::driver_error;
use crate::storage::{InterruptCursor, InterruptFilter, Interrupts, Result};

fn push_conditions(query: &mut QueryBuilder<Postgres>, scope: &Scope, filter: &InterruptFilter) {
    query.push(" WHERE TRUE");
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
              AND (i.withdrawn_run IS NOT NULL OR i.root_checkpoint_id IS DISTINCT FROM t.head
                   OR t.closed IS NOT NULL)"
        }
    });
    if let Some(thread) = &filter.thread {
        query.push(" AND i.thread_key = ").push_bind(thread.key(scope.tenant()).0);
    }
    if let Some(ids) = &filter.ids {
        query.push(" AND i.interrupt_id = ANY (").push_bind(ids.clone()).push(")");
    }
    if let Some(checkpoints) = &filter.checkpoints {
        query.push(" AND (i.checkpoint_id = ANY (").push_bind(checkpoints.clone());
        query.push(") OR i.root_checkpoint_id = ANY (").push_bind(checkpoints.clone()).push("))");
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
    if let Some(metadata) = &filter.thread_metadata {
        query.push(" AND t.metadata @> ").push_bind(encoding::metadata_text(metadata)).push("::jsonb");
    }
    if let Some(after) = filter.asked_after {
        query.push(" AND i.asked_at >= ").push_bind(after.0);
    }
    if let Some(before) = filter.asked_before {
        query.push(" AND i.asked_at < ").push_bind(before.0);
    }
}

#[async_trait]
impl Interrupts for PostgresStorage {
    async fn list_interrupts(
        &self,
        scope: &Scope,
        filter: &InterruptFilter,
        ascending: bool,
        after: Option<&InterruptCursor>,
        limit: i64,
    ) -> Result<Vec<(ThreadKey, InterruptRecord)>> {
        read!(self, async {
            let mut query = QueryBuilder::new(
                "SELECT i.thread_key, i.interrupt_id, i.ns, i.checkpoint_id, i.root_checkpoint_id, i.task_id, i.node,
                        i.graph_id, i.assistant_id, i.run_id, i.codec, i.question, i.response_schema, i.checked,
                        i.asked_at, i.answer, i.answered_at, i.answered_by, i.answered_run, i.withdrawn_run,
                        t.name AS thread_name, t.head AS thread_head, t.closed AS thread_closed
                 FROM interrupts i JOIN threads t ON t.thread_key = i.thread_key",
            );
            push_conditions(&mut query, scope, filter);
            if let Some(after) = after {
                query.push(" AND (i.asked_at, i.interrupt_id, i.thread_key) ").push(if ascending { ">" } else { "<" });
                query.push(" (").push_bind(after.asked_at.0).push(", ").push_bind(after.id.clone()).push(", ");
                query.push_bind(after.thread.0).push(")");
            }
            let way = if ascending { " ASC" } else { " DESC" };
            query.push(" ORDER BY i.asked_at").push(way).push(", i.interrupt_id").push(way);
            query.push(", i.thread_key").push(way).push(" LIMIT ").push_bind(limit);
            let mut session = self.session().await?;
            let rows = query.build().fetch_all(session.conn()).await.map_err(driver_error)?;
            session.finish().await?;
            rows.iter().map(interrupt_from).collect::<Result<Vec<_>>>()
        })
    }
}
