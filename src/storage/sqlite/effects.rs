//! Effects on SQLite.

use async_trait::async_trait;
use serde_json::Value;
use uuid::Uuid;

use super::rows::{effect_from, entry_from};
use super::{SqliteStorage, Write};
use crate::model::{Effect, EffectEntry, EffectPlace, EffectState, RunId, Scope, ThreadKey};
use crate::storage::encoding::{self, PLAIN, error_bytes, hide_nul};
use crate::storage::rows::driver_error;
use crate::storage::{EffectFilter, EffectRow, Effects, Page, Result, UsageRow};

/// Writes a call of a task; what is recorded never changes.
pub(super) async fn put_effect(
    write: &mut Write,
    tenant: Uuid,
    thread: ThreadKey,
    run_id: RunId,
    row: &EffectRow,
) -> Result<()> {
    let (place, entry) = (&row.place, &row.entry);
    sqlx::query(
        "INSERT INTO effects (thread_key, ns, checkpoint_id, task_id, key, tenant, run_id, node, state, attempt, asked,
                              started_at, ended_at, codec, result, error)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, CASE WHEN $9 = 'started' THEN NULL ELSE $12 END,
                 $13, $14, $15)
         ON CONFLICT (thread_key, ns, checkpoint_id, task_id, key) DO UPDATE SET
             run_id = excluded.run_id, state = excluded.state, attempt = excluded.attempt, asked = excluded.asked,
             started_at = CASE WHEN excluded.state = 'started' THEN excluded.started_at ELSE effects.started_at END,
             ended_at = excluded.ended_at, codec = excluded.codec, result = excluded.result, error = excluded.error
         WHERE effects.state <> 'recorded'",
    )
    .bind(thread.0)
    .bind(&place.ns)
    .bind(&place.checkpoint_id)
    .bind(&place.task_id)
    .bind(&entry.key)
    .bind(tenant)
    .bind(run_id)
    .bind(hide_nul(&place.node).into_owned())
    .bind(entry.state.as_str())
    .bind(entry.attempt)
    .bind(entry.asked)
    .bind(write.now)
    .bind(PLAIN)
    .bind(entry.result.as_ref().map(encoding::bytes))
    .bind(entry.error.as_ref().map(error_bytes))
    .execute(&mut write.conn)
    .await
    .map_err(driver_error)?;
    Ok(())
}

/// Adds to the totals of a run, and, unless the same commit was counted before, of its thread.
pub(super) async fn add_usage(
    write: &mut Write,
    tenant: Uuid,
    thread: ThreadKey,
    run_id: RunId,
    row: &UsageRow,
) -> Result<()> {
    for (run_id, seq) in [(run_id, row.seq), (Uuid::nil(), 0)] {
        let done = sqlx::query(
            "INSERT INTO usage_totals AS u
                 (thread_key, run_id, model, tenant, input_tokens, output_tokens, total_tokens, cost_nanos, seq)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
             ON CONFLICT (thread_key, run_id, model) DO UPDATE SET
                 input_tokens = u.input_tokens + excluded.input_tokens,
                 output_tokens = u.output_tokens + excluded.output_tokens,
                 total_tokens = u.total_tokens + excluded.total_tokens,
                 cost_nanos = u.cost_nanos + excluded.cost_nanos, seq = excluded.seq
             -- A commit repeated after its answer was lost was counted already. Totals of threads have no seq.
             WHERE excluded.seq = 0 OR u.seq < excluded.seq",
        )
        .bind(thread.0)
        .bind(run_id)
        .bind(&row.model)
        .bind(tenant)
        .bind(row.usage.input_tokens)
        .bind(row.usage.output_tokens)
        .bind(row.usage.total_tokens)
        .bind(row.usage.cost.nanos())
        .bind(seq)
        .execute(&mut write.conn)
        .await
        .map_err(driver_error)?;
        if done.rows_affected() == 0 {
            break;
        }
    }
    Ok(())
}

#[async_trait]
impl Effects for SqliteStorage {
    async fn task_effects(&self, scope: &Scope, thread: ThreadKey, place: &EffectPlace) -> Result<Vec<EffectEntry>> {
        let (scope, place) = (*scope, place.clone());
        self.read(move |conn| {
            Box::pin(async move {
                let rows = sqlx::query(
                    "SELECT key, state, attempt, asked, codec, result, error, task_id FROM effects
                     WHERE thread_key = $1 AND ns = $2 AND checkpoint_id = $3 AND task_id = $4
                       AND ($5 IS NULL OR tenant = $5)",
                )
                .bind(thread.0)
                .bind(place.ns)
                .bind(place.checkpoint_id)
                .bind(place.task_id)
                .bind(scope.filter())
                .fetch_all(conn)
                .await
                .map_err(driver_error)?;
                rows.iter().map(entry_from).collect()
            })
        })
        .await
    }

    async fn list_effects(
        &self,
        scope: &Scope,
        thread: ThreadKey,
        filter: &EffectFilter,
        page: Page,
    ) -> Result<Vec<Effect>> {
        let (scope, filter) = (*scope, filter.clone());
        let tasks = filter.tasks.map(|tasks| Value::from(tasks).to_string());
        self.read(move |conn| {
            Box::pin(async move {
                let rows = sqlx::query(
                    "SELECT ns, checkpoint_id, task_id, key, run_id, node, state, attempt, asked, started_at, ended_at,
                            codec, CASE WHEN $7 THEN result END AS result, error, length(result) AS bytes
                     FROM effects
                     WHERE thread_key = $1 AND ($2 IS NULL OR tenant = $2) AND ($3 IS NULL OR state = $3)
                       AND ($4 IS NULL OR task_id IN (SELECT value FROM json_each($4)))
                     ORDER BY started_at DESC, ns, task_id, key LIMIT $5 OFFSET $6",
                )
                .bind(thread.0)
                .bind(scope.filter())
                .bind(filter.state.map(EffectState::as_str))
                .bind(tasks)
                .bind(page.limit)
                .bind(page.offset)
                .bind(filter.results)
                .fetch_all(conn)
                .await
                .map_err(driver_error)?;
                rows.iter().map(effect_from).collect()
            })
        })
        .await
    }
}
