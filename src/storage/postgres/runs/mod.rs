//! Runs on Postgres: the reads here, the writes beside it by operation.

use std::time::Duration;

use async_trait::async_trait;
use uuid::Uuid;

use super::rows::{event_from, get, run_from};
use super::threads::lock_thread;
use super::{PostgresStorage, now, read};
use crate::model::{EventId, Run, RunId, RunStatus, Scope, ThreadId, ThreadKey, ThreadStatus, Ttl};
use crate::storage::rows::driver_error;
use crate::storage::{
    CancelRequest, CancelTarget, Cancelled, Claim, ClaimedRun, CommitOutcome, Lease, LeaseState, NewRun, Page, Result,
    RunCreated, RunFilter, Runs, StateCommit, StateOutcome, StepCommit, StoredEvent,
};

mod cancel;
mod claim;
mod columns;
mod commit;
mod create;
mod delete;
mod extras;
mod group;
mod lease;

pub(super) use cancel::{Selection, cancel_active};
pub(super) use create::create_in;
pub(super) use group::Group;

/// The columns `run_from` and `cancel_from` read, from `runs r` and its thread `t`.
macro_rules! run_columns {
    () => {
        "r.run_id, r.thread_key AS run_thread_key, t.name AS thread_name, r.assistant_id, r.graph_id AS run_graph_id, \
         r.status, r.metadata::text AS run_metadata, r.codec AS run_codec, r.kwargs, r.error AS run_error, \
         r.multitask_strategy, r.attempts, r.input_applied, r.cancel_action, r.cancel_actor, r.cancel_reason, \
         r.lease_epoch, r.tenant AS run_tenant, r.created_at AS run_created_at, r.updated_at AS run_updated_at, \
         r.actor"
    };
}
pub(super) use run_columns;

/// The column `run_usage`, for reads that show it.
macro_rules! run_usage {
    () => {
        ", (SELECT json_agg(json_build_array(u.model, u.input_tokens, u.output_tokens, u.total_tokens, u.cost_nanos))::text \
          FROM usage_totals u WHERE u.thread_key = r.thread_key AND u.run_id = r.run_id) AS run_usage"
    };
}
pub(super) use run_usage;

const FIND: &str = concat!(
    "SELECT ",
    run_columns!(),
    run_usage!(),
    " FROM runs r JOIN threads t ON t.thread_key = r.thread_key
      WHERE r.thread_key = $1 AND r.run_id = $2 AND ($3::uuid IS NULL OR r.tenant = $3)"
);

const LOCATE: &str = concat!(
    "SELECT ",
    run_columns!(),
    run_usage!(),
    " FROM run_lookup l
      JOIN runs r ON r.thread_key = l.thread_key AND r.run_id = l.run_id
      JOIN threads t ON t.thread_key = l.thread_key
      WHERE l.run_id = $1 AND ($2::uuid IS NULL OR l.tenant = $2)"
);

const OF_ASSISTANT: &str = concat!(
    "SELECT ",
    run_columns!(),
    run_usage!(),
    " FROM run_lookup l
      JOIN runs r ON r.thread_key = l.thread_key AND r.run_id = l.run_id
      JOIN threads t ON t.thread_key = l.thread_key
      WHERE r.assistant_id = $1 AND ($2::uuid IS NULL OR l.tenant = $2) AND ($3::uuid IS NULL OR l.run_id < $3)
      ORDER BY l.run_id DESC LIMIT $4"
);

/// One row with only `found` when the thread is there but has no such runs.
const LIST: &str = concat!(
    "SELECT r.run_id IS NOT NULL AS found, ",
    run_columns!(),
    run_usage!(),
    " FROM threads t
      LEFT JOIN (SELECT f.thread_key, f.run_id, f.tenant, f.assistant_id, f.graph_id, f.status, f.metadata, f.codec,
                        f.kwargs, f.error, f.multitask_strategy, f.attempts, f.input_applied, f.cancel_action,
                        f.cancel_actor, f.cancel_reason, f.lease_epoch, f.created_at, f.updated_at,
                        f.actor
                 FROM runs f
                 WHERE f.thread_key = $1 AND ($3::text IS NULL OR f.status = $3)
                 ORDER BY f.created_at DESC, f.run_id DESC LIMIT $4 OFFSET $5) AS r ON r.thread_key = t.thread_key
      WHERE t.thread_key = $1 AND ($2::uuid IS NULL OR t.tenant = $2)
      ORDER BY r.created_at DESC, r.run_id DESC"
);

/// Shorter leases are for tests: they say nothing about how long an answer may take.
const MIN_BOUNDED_LEASE: Duration = Duration::from_secs(2);

impl PostgresStorage {
    /// An active run's temporary thread stays for a while after its last use, instead of going with the run.
    pub(super) async fn keep_thread_of(&self, run_id: RunId, ttl: Ttl) -> Result<()> {
        let mut transaction = self.open().await?;
        let key: Option<(uuid::Uuid,)> = sqlx::query_as(
            "SELECT r.thread_key FROM run_lookup l JOIN runs r ON r.thread_key = l.thread_key AND r.run_id = l.run_id
             WHERE l.run_id = $1 AND r.temporary",
        )
        .bind(run_id)
        .fetch_optional(&mut *transaction)
        .await
        .map_err(driver_error)?;
        let Some(key) = key.map(|(key,)| ThreadKey(key)) else { return Ok(()) };
        // The thread first, as everywhere. With the run's end it may be gone meanwhile.
        if !lock_thread(&mut transaction, key).await? {
            return Ok(());
        }
        sqlx::query(
            "WITH kept AS (
                 UPDATE runs SET temporary = FALSE WHERE thread_key = $1 AND run_id = $2 AND temporary RETURNING 1
             )
             UPDATE threads SET ttl = $3, ttl_strategy = $4 WHERE thread_key = $1 AND EXISTS (SELECT 1 FROM kept)",
        )
        .bind(key.0)
        .bind(run_id)
        .bind(ttl.micros)
        .bind(ttl.strategy.as_str())
        .execute(&mut *transaction)
        .await
        .map_err(driver_error)?;
        transaction.commit().await.map_err(driver_error)
    }
}

#[async_trait]
impl Runs for PostgresStorage {
    async fn create_run(&self, scope: &Scope, new: NewRun) -> Result<RunCreated> {
        self.bounded(self.insert_run(scope, new)).await
    }

    async fn claim_runs(&self, scope: &Scope, claim: &Claim, max_attempts: i32, limit: i64) -> Result<Vec<ClaimedRun>> {
        self.bounded(self.claim(scope, claim, max_attempts, limit)).await
    }

    async fn renew_leases(&self, scope: &Scope, leases: &[Lease], lease: Duration) -> Result<Vec<LeaseState>> {
        // Soon enough for another try over other connections before the leases are gone.
        let limit = if lease >= MIN_BOUNDED_LEASE { lease / 2 } else { Duration::ZERO };
        self.renew(scope, leases, lease, limit).await
    }

    async fn release_run(&self, scope: &Scope, lease: &Lease) -> Result<bool> {
        self.bounded(self.release(scope, lease)).await
    }

    async fn commit_steps(&self, scope: &Scope, batch: &[StepCommit]) -> Result<Vec<CommitOutcome>> {
        match batch {
            [step] if *scope == Scope::Server => Ok(vec![self.bounded(self.commit_in_group(step.clone())).await?]),
            batch => self.bounded(self.commit_batch(scope, batch)).await,
        }
    }

    async fn rollback_run(&self, scope: &Scope, lease: &Lease, thread_status: ThreadStatus) -> Result<CommitOutcome> {
        self.bounded(self.roll_back(scope, lease, thread_status)).await
    }

    async fn commit_state(&self, scope: &Scope, change: StateCommit) -> Result<StateOutcome> {
        self.bounded(self.change_state(scope, &change)).await
    }

    async fn cancel_runs(
        &self,
        scope: &Scope,
        target: &CancelTarget,
        request: &CancelRequest,
    ) -> Result<Vec<Cancelled>> {
        self.bounded(self.cancel(scope, target, request)).await
    }

    async fn find_run(&self, scope: &Scope, thread_id: &ThreadId, run_id: RunId) -> Result<Option<Run>> {
        read!(self, async {
            let mut session = self.session().await?;
            let row = sqlx::query(FIND)
                .bind(thread_id.key(scope.tenant()).0)
                .bind(run_id)
                .bind(scope.filter())
                .fetch_optional(session.conn())
                .await
                .map_err(driver_error)?;
            session.finish().await?;
            row.as_ref().map(run_from).transpose()
        })
    }

    async fn locate_run(&self, scope: &Scope, run_id: RunId) -> Result<Option<Run>> {
        read!(self, async {
            let mut session = self.session().await?;
            let row = sqlx::query(LOCATE)
                .bind(run_id)
                .bind(scope.filter())
                .fetch_optional(session.conn())
                .await
                .map_err(driver_error)?;
            session.finish().await?;
            row.as_ref().map(run_from).transpose()
        })
    }

    async fn list_runs(
        &self,
        scope: &Scope,
        thread_id: &ThreadId,
        filter: &RunFilter,
        page: Page,
    ) -> Result<Option<Vec<Run>>> {
        let rows = read!(self, async {
            let mut session = self.session().await?;
            let rows = sqlx::query(LIST)
                .bind(thread_id.key(scope.tenant()).0)
                .bind(scope.filter())
                .bind(filter.status.map(RunStatus::as_str))
                .bind(page.limit)
                .bind(page.offset)
                .fetch_all(session.conn())
                .await
                .map_err(driver_error)?;
            session.finish().await?;
            Ok(rows)
        })?;
        if rows.is_empty() {
            return Ok(None);
        }
        let mut runs = Vec::with_capacity(rows.len());
        for row in &rows {
            if get(row, "found")? {
                runs.push(run_from(row)?);
            }
        }
        Ok(Some(runs))
    }

    async fn list_assistant_runs(
        &self,
        scope: &Scope,
        assistant_id: Uuid,
        before: Option<RunId>,
        limit: i64,
    ) -> Result<Vec<Run>> {
        read!(self, async {
            let mut session = self.session().await?;
            let rows = sqlx::query(OF_ASSISTANT)
                .bind(assistant_id)
                .bind(scope.filter())
                .bind(before)
                .bind(limit)
                .fetch_all(session.conn())
                .await
                .map_err(driver_error)?;
            session.finish().await?;
            rows.iter().map(run_from).collect::<Result<Vec<_>>>()
        })
    }

    async fn delete_run(&self, scope: &Scope, thread_id: &ThreadId, run_id: RunId) -> Result<Option<bool>> {
        self.bounded(self.delete_ended_run(scope, thread_id, run_id)).await
    }

    async fn append_events(&self, scope: &Scope, lease: &Lease, events: &[StoredEvent]) -> Result<CommitOutcome> {
        self.bounded(self.append(scope, lease, events)).await
    }

    async fn read_events(
        &self,
        scope: &Scope,
        thread: ThreadKey,
        run_id: Option<RunId>,
        after: EventId,
        limit: i64,
    ) -> Result<Vec<StoredEvent>> {
        read!(self, async {
            let mut session = self.session().await?;
            let rows = sqlx::query(
                "SELECT thread_key, event_id, run_id, name, codec, data FROM events
                 WHERE thread_key = $1 AND event_id > $2 AND ($3::uuid IS NULL OR run_id = $3)
                   AND ($4::uuid IS NULL OR tenant = $4)
                 ORDER BY event_id LIMIT $5",
            )
            .bind(thread.0)
            .bind(after.0)
            .bind(run_id)
            .bind(scope.filter())
            .bind(limit)
            .fetch_all(session.conn())
            .await
            .map_err(driver_error)?;
            session.finish().await?;
            rows.iter().map(event_from).collect::<Result<Vec<_>>>()
        })
    }

    async fn count_active(&self, scope: &Scope) -> Result<(i64, i64)> {
        read!(self, async {
            let mut session = self.session().await?;
            let row = sqlx::query(concat!(
                "SELECT (SELECT COUNT(*) FROM runs
                         WHERE status = 'pending' AND run_at <= ",
                now!(),
                "         AND ($1::uuid IS NULL OR tenant = $1)) AS pending,
                        (SELECT COUNT(*) FROM runs
                         WHERE status = 'running' AND ($1::uuid IS NULL OR tenant = $1)) AS running"
            ))
            .bind(scope.filter())
            .fetch_one(session.conn())
            .await
            .map_err(driver_error)?;
            session.finish().await?;
            Ok((get(&row, "pending")?, get(&row, "running")?))
        })
    }
}
