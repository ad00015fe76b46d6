//! Runs on SQLite: the reads here, the writes beside it by operation.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::sqlite::SqliteConnection;
use uuid::Uuid;

use super::rows::{event_from, get, run_from};
use super::threads::thread_by_key;
use super::{SqliteStorage, clock};
use crate::model::{EventId, Run, RunId, RunStatus, Scope, ThreadId, ThreadKey, ThreadStatus};
use crate::storage::idempotency;
use crate::storage::rows::driver_error;
use crate::storage::{
    CancelRequest, CancelTarget, Cancelled, Claim, ClaimedRun, CommitOutcome, Lease, LeaseState, NewRun, Page, Result,
    RunCreated, RunFilter, Runs, StateCommit, StateOutcome, StepCommit, StorageError, StoredEvent,
};

mod cancel;
mod claim;
mod commit;
mod create;
mod delete;
mod lease;

pub(super) use cancel::{Selection, cancel_active};
pub(super) use create::create_run;

/// The columns `run_from` and `cancel_from` read, from `runs r JOIN threads t`.
macro_rules! run_columns {
    () => {
        "r.run_id, r.thread_key AS run_thread_key, t.name AS thread_name, r.assistant_id, r.graph_id AS run_graph_id, \
         r.status, r.metadata AS run_metadata, r.codec AS run_codec, r.kwargs, r.error AS run_error, \
         r.multitask_strategy, r.attempts, r.input_applied, r.cancel_action, r.cancel_actor, r.cancel_reason, \
         r.lease_epoch, r.tenant AS run_tenant, r.created_at AS run_created_at, r.updated_at AS run_updated_at, \
         r.actor, \
         (SELECT json_group_array(json_array(u.model, u.input_tokens, u.output_tokens, u.total_tokens, u.cost_nanos)) \
          FROM usage_totals u WHERE u.thread_key = r.thread_key AND u.run_id = r.run_id) AS run_usage"
    };
}
pub(super) use run_columns;

async fn run_by_key(conn: &mut SqliteConnection, key: ThreadKey, run_id: RunId) -> Result<Option<Run>> {
    sqlx::query(concat!(
        "SELECT ",
        run_columns!(),
        " FROM runs r JOIN threads t ON t.thread_key = r.thread_key WHERE r.thread_key = $1 AND r.run_id = $2"
    ))
    .bind(key.0)
    .bind(run_id)
    .fetch_optional(conn)
    .await
    .map_err(driver_error)?
    .as_ref()
    .map(run_from)
    .transpose()
}

async fn list(
    conn: &mut SqliteConnection,
    scope: Scope,
    key: ThreadKey,
    status: Option<RunStatus>,
    page: Page,
) -> Result<Option<Vec<Run>>> {
    if thread_by_key(conn, &scope, key).await?.is_none() {
        return Ok(None);
    }
    let rows = sqlx::query(concat!(
        "SELECT ",
        run_columns!(),
        " FROM runs r JOIN threads t ON t.thread_key = r.thread_key
          WHERE r.thread_key = $1 AND ($2 IS NULL OR r.status = $2)
          ORDER BY r.created_at DESC, r.run_id DESC LIMIT $3 OFFSET $4"
    ))
    .bind(key.0)
    .bind(status.map(RunStatus::as_str))
    .bind(page.limit)
    .bind(page.offset)
    .fetch_all(conn)
    .await
    .map_err(driver_error)?;
    rows.iter().map(run_from).collect::<Result<_>>().map(Some)
}

#[async_trait]
impl Runs for SqliteStorage {
    async fn create_run(&self, scope: &Scope, new: NewRun) -> Result<RunCreated> {
        let scope = *scope;
        let (id, key) = (new.run_id, new.thread_id.key(scope.tenant()));
        let is_created = |outcome: &Option<RunCreated>| matches!(outcome, Some(RunCreated::Created { .. }));
        let mut next = Some(new);
        while let Some(new) = next.take() {
            let again = new.create_thread.then(|| new.clone());
            let created =
                self.write_if(is_created, move |write| Box::pin(create::create_run(write, scope, new))).await?;
            if let Some(created) = created {
                return Ok(created);
            }
            idempotency::aside(self.reclaim_thread(key)).await?;
            next = again;
        }
        Err(StorageError::Other(format!("run {id} was neither inserted nor refused")))
    }

    async fn claim_runs(&self, scope: &Scope, claim: &Claim, max_attempts: i32, limit: i64) -> Result<Vec<ClaimedRun>> {
        let (scope, claim) = (*scope, claim.clone());
        // Looked at by a reader first: an idle server polls without writing.
        let peek = self.read(move |conn| Box::pin(async move { claim::any_claimable(conn, scope, clock()).await }));
        if !peek.await? {
            return Ok(Vec::new());
        }
        self.write(move |write| Box::pin(claim::claim_runs(write, scope, claim, max_attempts, limit))).await
    }

    async fn renew_leases(&self, scope: &Scope, leases: &[Lease], lease: Duration) -> Result<Vec<LeaseState>> {
        if leases.is_empty() {
            return Ok(Vec::new());
        }
        let (scope, leases) = (*scope, leases.to_vec());
        self.write(move |write| Box::pin(lease::renew_leases(write, scope, leases, lease))).await
    }

    async fn release_run(&self, scope: &Scope, lease: &Lease) -> Result<bool> {
        let (scope, lease) = (*scope, *lease);
        self.write(move |write| Box::pin(lease::release_run(write, scope, lease))).await
    }

    async fn commit_steps(&self, scope: &Scope, batch: &[StepCommit]) -> Result<Vec<CommitOutcome>> {
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        let (scope, batch) = (*scope, batch.to_vec());
        self.write(move |write| Box::pin(commit::commit_steps(write, scope, batch))).await
    }

    async fn rollback_run(&self, scope: &Scope, lease: &Lease, thread_status: ThreadStatus) -> Result<CommitOutcome> {
        let (scope, lease) = (*scope, *lease);
        self.write(move |write| Box::pin(delete::rollback_run(write, scope, lease, thread_status))).await
    }

    async fn commit_state(&self, scope: &Scope, change: StateCommit) -> Result<StateOutcome> {
        let scope = *scope;
        self.write(move |write| Box::pin(commit::commit_state(write, scope, change))).await
    }

    async fn cancel_runs(
        &self,
        scope: &Scope,
        target: &CancelTarget,
        request: &CancelRequest,
    ) -> Result<Vec<Cancelled>> {
        let (scope, target, request) = (*scope, target.clone(), request.clone());
        self.write(move |write| Box::pin(cancel::cancel_runs(write, scope, target, request))).await
    }

    async fn find_run(&self, scope: &Scope, thread_id: &ThreadId, run_id: RunId) -> Result<Option<Run>> {
        let key = thread_id.key(scope.tenant());
        self.read(move |conn| Box::pin(run_by_key(conn, key, run_id))).await
    }

    async fn locate_run(&self, scope: &Scope, run_id: RunId) -> Result<Option<Run>> {
        let scope = *scope;
        self.read(move |conn| {
            Box::pin(async move {
                sqlx::query(concat!(
                    "SELECT ",
                    run_columns!(),
                    " FROM run_lookup l
                      JOIN runs r ON r.thread_key = l.thread_key AND r.run_id = l.run_id
                      JOIN threads t ON t.thread_key = l.thread_key
                      WHERE l.run_id = $1 AND ($2 IS NULL OR l.tenant = $2)"
                ))
                .bind(run_id)
                .bind(scope.filter())
                .fetch_optional(conn)
                .await
                .map_err(driver_error)?
                .as_ref()
                .map(run_from)
                .transpose()
            })
        })
        .await
    }

    async fn list_runs(
        &self,
        scope: &Scope,
        thread_id: &ThreadId,
        filter: &RunFilter,
        page: Page,
    ) -> Result<Option<Vec<Run>>> {
        let (scope, key, status) = (*scope, thread_id.key(scope.tenant()), filter.status);
        self.read(move |conn| Box::pin(list(conn, scope, key, status, page))).await
    }

    async fn list_assistant_runs(
        &self,
        scope: &Scope,
        assistant_id: Uuid,
        before: Option<RunId>,
        limit: i64,
    ) -> Result<Vec<Run>> {
        let scope = *scope;
        self.read(move |conn| {
            Box::pin(async move {
                // In the order of the lookup's key: no list of all runs is sorted.
                let rows = sqlx::query(concat!(
                    "SELECT ",
                    run_columns!(),
                    " FROM run_lookup l
                      CROSS JOIN runs r ON r.thread_key = l.thread_key AND r.run_id = l.run_id
                      JOIN threads t ON t.thread_key = l.thread_key
                      WHERE r.assistant_id = $1 AND ($2 IS NULL OR l.tenant = $2) AND ($3 IS NULL OR l.run_id < $3)
                      ORDER BY l.run_id DESC LIMIT $4"
                ))
                .bind(assistant_id)
                .bind(scope.filter())
                .bind(before)
                .bind(limit)
                .fetch_all(conn)
                .await
                .map_err(driver_error)?;
                rows.iter().map(run_from).collect()
            })
        })
        .await
    }

    async fn delete_run(&self, scope: &Scope, thread_id: &ThreadId, run_id: RunId) -> Result<Option<bool>> {
        let key = thread_id.key(scope.tenant());
        self.write(move |write| Box::pin(delete::delete_run(write, key, run_id))).await
    }

    async fn append_events(&self, scope: &Scope, lease: &Lease, events: &[StoredEvent]) -> Result<CommitOutcome> {
        let (scope, lease, events) = (*scope, *lease, events.to_vec());
        self.write(move |write| Box::pin(commit::append_events(write, scope, lease, events))).await
    }

    async fn read_events(
        &self,
        scope: &Scope,
        thread: ThreadKey,
        run_id: Option<RunId>,
        after: EventId,
        limit: i64,
    ) -> Result<Vec<StoredEvent>> {
        let scope = *scope;
        self.read(move |conn| {
            Box::pin(async move {
                let rows = sqlx::query(
                    "SELECT thread_key, event_id, run_id, name, codec, data FROM events
                     WHERE thread_key = $1 AND event_id > $2 AND ($3 IS NULL OR run_id = $3)
                       AND ($4 IS NULL OR tenant = $4)
                     ORDER BY event_id LIMIT $5",
                )
                .bind(thread.0)
                .bind(after.0)
                .bind(run_id)
                .bind(scope.filter())
                .bind(limit)
                .fetch_all(conn)
                .await
                .map_err(driver_error)?;
                rows.iter().map(event_from).collect()
            })
        })
        .await
    }

    async fn count_active(&self, scope: &Scope) -> Result<(i64, i64)> {
        let scope = *scope;
        self.read(move |conn| {
            Box::pin(async move {
                let row = sqlx::query(
                    "SELECT (SELECT COUNT(*) FROM runs
                             WHERE status = 'pending' AND run_at <= $2 AND ($1 IS NULL OR tenant = $1)) AS pending,
                            (SELECT COUNT(*) FROM runs
                             WHERE status = 'running' AND ($1 IS NULL OR tenant = $1)) AS running",
                )
                .bind(scope.filter())
                .bind(clock())
                .fetch_one(conn)
                .await
                .map_err(driver_error)?;
                Ok((get(&row, "pending")?, get(&row, "running")?))
            })
        })
        .await
    }
}
