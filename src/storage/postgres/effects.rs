//! Effects on Postgres.

use async_trait::async_trait;

use super::rows::{effect_from, entry_from};
use super::{PostgresStorage, read};
use crate::model::{Effect, EffectEntry, EffectPlace, EffectState, Scope, ThreadKey};
use crate::storage::rows::driver_error;
use crate::storage::{EffectFilter, Effects, Page, Result};

#[async_trait]
impl Effects for PostgresStorage {
    async fn task_effects(&self, scope: &Scope, thread: ThreadKey, place: &EffectPlace) -> Result<Vec<EffectEntry>> {
        read!(self, async {
            let mut session = self.session().await?;
            let rows = sqlx::query(
                "SELECT key, state, attempt, asked, codec, result, error, task_id FROM effects
                 WHERE thread_key = $1 AND ns = $2 AND checkpoint_id = $3 AND task_id = $4
                   AND ($5::uuid IS NULL OR tenant = $5)",
            )
            .bind(thread.0)
            .bind(&place.ns)
            .bind(&place.checkpoint_id)
            .bind(&place.task_id)
            .bind(scope.filter())
            .fetch_all(session.conn())
            .await
            .map_err(driver_error)?;
            session.finish().await?;
            rows.iter().map(entry_from).collect::<Result<Vec<EffectEntry>>>()
        })
    }

    async fn list_effects(
        &self,
        scope: &Scope,
        thread: ThreadKey,
        filter: &EffectFilter,
        page: Page,
    ) -> Result<Vec<Effect>> {
        read!(self, async {
            let mut session = self.session().await?;
            let rows = sqlx::query(
                "SELECT ns, checkpoint_id, task_id, key, run_id, node, state, attempt, asked, started_at, ended_at,
                        codec, CASE WHEN $7 THEN result END AS result, error, octet_length(result)::bigint AS bytes
                 FROM effects
                 WHERE thread_key = $1 AND ($2::uuid IS NULL OR tenant = $2) AND ($3::text IS NULL OR state = $3)
                   AND ($4::text[] IS NULL OR task_id = ANY ($4))
                 ORDER BY started_at DESC, ns, task_id, key LIMIT $5 OFFSET $6",
            )
            .bind(thread.0)
            .bind(scope.filter())
            .bind(filter.state.map(EffectState::as_str))
            .bind(&filter.tasks)
            .bind(page.limit)
            .bind(page.offset)
            .bind(filter.results)
            .fetch_all(session.conn())
            .await
            .map_err(driver_error)?;
            session.finish().await?;
            rows.iter().map(effect_from).collect::<Result<Vec<Effect>>>()
        })
    }
}
