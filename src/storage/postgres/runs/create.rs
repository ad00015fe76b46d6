//! Inserting a run and applying its multitask strategy, in one statement.
//!
//! Racers on one thread queue up at its row. The one that waited still has the snapshot from before the wait, so it
//! must not decide by it whether the thread is busy. Therefore the row is only taken when its revision is the one of
//! the snapshot; every insert of a run raises the revision. A statement that lost the race changes nothing at all and
//! is repeated, at first as it is, then behind a lock taken by a statement of its own. Runs that *end* meanwhile do not
//! raise the revision: deciding as if they were still active is deciding a moment earlier.
//!
//! `rollback` deletes runs and moves heads, which takes several statements: a transaction, the thread locked first.

use sqlx::postgres::PgConnection;
use uuid::Uuid;

use super::super::rows::{closed_from, get, run_from, thread_from};
use super::super::threads::lock_thread;
use super::super::webhooks::{self, copy_run};
use super::super::{PostgresStorage, micros, notify, now};
use super::cancel::{Selection, cancel_active};
use super::run_columns;
use crate::model::{CancelAction, MultitaskStrategy, RunStatus, Scope};
use crate::storage::encoding::{self, hide_nul};
use crate::storage::idempotency;
use crate::storage::rows::driver_error;
use crate::storage::{CancelRequest, Cancelled, ClaimedRun, Lease, NewRun, Notice, Result, RunCreated, StorageError};

const CREATE: &str = concat!(
    "WITH clock AS MATERIALIZED (SELECT ",
    now!(),
    " AS now),
    snap AS MATERIALIZED (
        SELECT revision, metadata, closed, closed_at, closed_by, closed_reason, is_foreign
        FROM threads WHERE thread_key = $1
    ),
    active AS MATERIALIZED (
        SELECT status FROM runs WHERE thread_key = $1 AND status IN ('pending', 'running')
    ),
    -- Whether the assistant is the one that was read.
    named AS MATERIALIZED (
        SELECT 1 WHERE (SELECT a.updated_at FROM assistants a WHERE a.tenant = $2 AND a.assistant_id = $9)
                       IS NOT DISTINCT FROM $19::bigint
    ),
    dead AS MATERIALIZED (SELECT 1 FROM dead_threads WHERE thread_key = $1),
    -- Whether to go on at all; both ways of taking the thread ask this.
    admitted AS MATERIALIZED (
        SELECT 1 FROM named
        WHERE NOT ($7 = 'reject' AND EXISTS (SELECT 1 FROM active))
          -- A thread that is closed while this waits has another revision.
          AND NOT EXISTS (SELECT 1 FROM snap WHERE snap.closed IS NOT NULL)
          AND NOT EXISTS (SELECT 1 FROM snap WHERE is_foreign)
    ),
    inserted AS (
        -- Only where the snapshot shows no thread, and nothing left of a deleted one: should a thread be deleted after the
        -- snapshot, nothing brings it back.
        INSERT INTO threads AS t (thread_key, tenant, name, graph_id, metadata, codec, config, rest_status, last_event,
                                  revision, created_at, updated_at, state_updated_at, ttl, ttl_strategy)
        SELECT $1, $2, $3, $4, $5::jsonb, 0, '{}', 'idle', 0, clock.now, clock.now, clock.now, clock.now, $21, $22
        FROM clock, admitted
        WHERE $6 AND NOT EXISTS (SELECT 1 FROM snap) AND NOT EXISTS (SELECT 1 FROM dead)
        ON CONFLICT (thread_key) DO NOTHING
        RETURNING t.thread_key, t.tenant, t.name, t.graph_id, t.metadata, t.codec, t.config, t.rest_status, t.error,
                  t.head, t.view, t.last_event, t.created_at, t.updated_at, t.state_updated_at, t.closed, t.closed_at,
                  t.closed_by, t.closed_reason, t.moved_to, t.moved_past
    ),
    updated AS (
        UPDATE threads t SET
            graph_id = $4, metadata = t.metadata || $5::jsonb, updated_at = clock.now, revision = t.revision + 1
        FROM clock, admitted
        -- t is the row as it is now, snap the row as it was: the same, or the snapshot is stale.
        WHERE t.thread_key = $1 AND t.revision = (SELECT snap.revision FROM snap)
        RETURNING t.thread_key, t.tenant, t.name, t.graph_id, t.metadata, t.codec, t.config, t.rest_status, t.error,
                  t.head, t.view, t.last_event, t.created_at, t.updated_at, t.state_updated_at, t.closed, t.closed_at,
                  t.closed_by, t.closed_reason, t.moved_to, t.moved_past
    ),
    taken AS MATERIALIZED (
        SELECT thread_key, tenant, name, graph_id, metadata, codec, config, rest_status, error, head, view,
               last_event, created_at, updated_at, state_updated_at, closed, closed_at, closed_by, closed_reason,
               moved_to, moved_past FROM inserted
        UNION ALL
        SELECT thread_key, tenant, name, graph_id, metadata, codec, config, rest_status, error, head, view,
               last_event, created_at, updated_at, state_updated_at, closed, closed_at, closed_by, closed_reason,
               moved_to, moved_past FROM updated
    ),
    cancelled AS (
        -- One UPDATE for both statuses: a run claimed since the snapshot is read anew and gets the flag.
        UPDATE runs r SET
            cancel_actor = CASE WHEN r.cancel_action IS NULL THEN $17 ELSE r.cancel_actor END,
            cancel_reason = CASE WHEN r.cancel_action IS NULL THEN $18 ELSE r.cancel_reason END,
            cancel_action = COALESCE(r.cancel_action, 'interrupt'),
            status = CASE WHEN r.status = 'pending' THEN 'interrupted' ELSE r.status END,
            updated_at = clock.now
        FROM taken, clock
        WHERE $7 = 'interrupt' AND r.thread_key = taken.thread_key AND r.status IN ('pending', 'running')
        RETURNING r.run_id, r.status
    ),
    hooks AS (
        UPDATE webhooks w SET run_status = 'interrupted', error = r.error, ",
    copy_run!(),
    "   FROM cancelled c, runs r, clock
        WHERE c.status = 'interrupted' AND r.thread_key = $1 AND r.run_id = c.run_id
          AND w.thread_key = $1 AND w.run_id = c.run_id AND w.state = 'waiting'
    ),
    lookup AS (
        -- A run id that is taken fails the whole statement here, so nothing at all happens.
        INSERT INTO run_lookup (run_id, tenant, thread_key) SELECT $8, $2, $1 FROM taken
    ),
    start AS MATERIALIZED (
        SELECT $13 AND (NOT EXISTS (SELECT 1 FROM active)
                        OR ($7 = 'interrupt' AND NOT EXISTS (SELECT 1 FROM cancelled WHERE status = 'running')))
               AS at_once
    ),
    r AS (
        INSERT INTO runs AS r (thread_key, run_id, tenant, assistant_id, graph_id, status, metadata, codec, kwargs,
                               multitask_strategy, attempts, input_applied, temporary, worker, lease_epoch, lease_until,
                               run_at, created_at, updated_at, actor, started_at)
        SELECT $1, $8, $2, $9, $4, CASE WHEN start.at_once THEN 'running' ELSE 'pending' END,
               $20::jsonb || COALESCE((SELECT snap.metadata FROM snap), '{}'::jsonb) || $10::jsonb, 0, $11,
               $7, start.at_once::int, FALSE, $12, CASE WHEN start.at_once THEN $14 END, start.at_once::int,
               CASE WHEN start.at_once THEN clock.now + $15 ELSE 0 END,
               clock.now + $16, clock.now + $16, clock.now, $17, CASE WHEN start.at_once THEN clock.now END
        FROM taken, clock, start
        RETURNING r.run_id, r.thread_key, r.tenant, r.assistant_id, r.graph_id, r.status, r.metadata, r.codec, r.kwargs,
                  r.error, r.multitask_strategy, r.attempts, r.input_applied, r.cancel_action, r.cancel_actor,
                  r.cancel_reason, r.lease_epoch, r.created_at, r.updated_at, r.actor
    ),
    told AS MATERIALIZED (
        SELECT pg_notify('session_store', 'p') FROM r WHERE r.status = 'pending'
        UNION ALL
        SELECT pg_notify('session_store', CASE WHEN status = 'running' THEN 'c:' ELSE 'e:' END || run_id)
        FROM cancelled
    )
    SELECT ",
    run_columns!(),
    ", t.thread_key, t.tenant, t.name, t.graph_id, t.metadata::text AS metadata, t.codec, t.config, t.rest_status,
       t.error, t.head, t.view, t.last_event, t.created_at, t.updated_at, t.state_updated_at,
       s.closed, s.closed_at, s.closed_by, s.closed_reason, t.moved_to, t.moved_past, TRUE AS busy,
       NULL::text AS usage, NULL::text AS run_usage,
       (t.thread_key IS NOT NULL) AS is_taken,
       EXISTS (SELECT 1 FROM snap) AS thread_found,
       EXISTS (SELECT 1 FROM dead) AS is_dead,
       EXISTS (SELECT 1 FROM named) AS is_assistant_current,
       EXISTS (SELECT 1 FROM snap WHERE is_foreign) AS is_foreign,
       EXISTS (SELECT 1 FROM admitted) AS is_admitted,
       ARRAY(SELECT run_id FROM cancelled ORDER BY run_id) AS cancelled_ids,
       ARRAY(SELECT status = 'running' FROM cancelled ORDER BY run_id) AS cancelled_running,
       (SELECT COUNT(*) FROM told) AS told
    FROM (VALUES (1)) AS one (n) LEFT JOIN taken t ON TRUE LEFT JOIN r ON TRUE LEFT JOIN snap s ON TRUE"
);

/// How often the statement is tried without a lock of its own.
const OPTIMISTIC: usize = 2;
/// A thread that does not exist yet cannot be locked; racers creating it may need a few rounds.
const ATTEMPTS: usize = 50;

enum Tried {
    Done(Box<RunCreated>),
    Stale,
    /// Rows of a deleted thread of this name are in the way.
    Dead,
}

impl PostgresStorage {
    pub(super) async fn insert_run(&self, scope: &Scope, new: NewRun) -> Result<RunCreated> {
        let tenant = scope.tenant();
        let rollback = new.multitask_strategy == MultitaskStrategy::Rollback;
        // What takes more than one statement.
        let together = rollback || new.webhook.is_some() || idempotency::unused().is_some();
        for attempt in 0..ATTEMPTS {
            let outcome = if together || attempt >= OPTIMISTIC {
                let mut transaction = self.begin().await?;
                let tried = locked(&mut transaction, tenant, &new).await;
                match tried {
                    Ok(Tried::Done(created)) if matches!(*created, RunCreated::Created { .. }) => {
                        self.commit(transaction).await?;
                        Ok(Tried::Done(created))
                    }
                    other => {
                        // Nothing happened, so the pending runs a rollback deleted come back too.
                        drop(transaction);
                        other
                    }
                }
            } else {
                let mut session = self.session().await?;
                let tried = statement(session.conn(), tenant, &new).await;
                match &tried {
                    Ok(Tried::Done(created)) if matches!(**created, RunCreated::Created { .. }) => {
                        self.wrote(session).await?;
                    }
                    // Nothing happened, nothing counts.
                    _ => drop(session),
                }
                tried
            };
            match outcome {
                Ok(Tried::Done(created)) => {
                    self.tell_created(&created);
                    return Ok(*created);
                }
                Ok(Tried::Stale) => {}
                Ok(Tried::Dead) => idempotency::aside(self.reclaim_thread(new.thread_id.key(tenant))).await?,
                Err(Failure::RunExists) => return Ok(RunCreated::RunExists),
                Err(Failure::Raced) => {}
                Err(Failure::Storage(error)) => return Err(error),
            }
        }
        Err(StorageError::Unavailable(format!("thread {} is too contended", new.thread_id)))
    }

    pub(in crate::storage::postgres) fn tell_created(&self, created: &RunCreated) {
        let RunCreated::Created { run, cancelled, .. } = created else { return };
        self.tell(cancelled.iter().map(|cancelled| match cancelled.running {
            true => Notice::CancelRequested(cancelled.run_id),
            false => Notice::RunEnded(cancelled.run_id),
        }));
        if run.status == RunStatus::Pending {
            self.tell([Notice::RunPending]);
        }
    }
}

enum Failure {
    RunExists,
    /// The index that allows one running run per thread said no: look again.
    Raced,
    Storage(StorageError),
}

impl From<StorageError> for Failure {
    fn from(error: StorageError) -> Self {
        Failure::Storage(error)
    }
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        let constraint = error.as_database_error().and_then(|error| error.constraint()).unwrap_or_default();
        match constraint {
            "run_lookup_pkey" | "runs_pkey" => Failure::RunExists,
            "runs_one_running" => Failure::Raced,
            _ => Failure::Storage(driver_error(error)),
        }
    }
}

/// Inserts a run as part of a larger transaction. `None`: others are too quick, and the transaction is spoilt.
pub(in crate::storage::postgres) async fn create_in(
    conn: &mut PgConnection,
    tenant: Uuid,
    new: &NewRun,
) -> Result<Option<RunCreated>> {
    match locked(conn, tenant, new).await {
        Ok(Tried::Done(created)) => Ok(Some(*created)),
        Ok(Tried::Stale | Tried::Dead) | Err(Failure::Raced) => Ok(None),
        Err(Failure::RunExists) => Ok(Some(RunCreated::RunExists)),
        Err(Failure::Storage(error)) => Err(error),
    }
}

/// The statement behind a lock on the thread: its snapshot is younger than the lock.
async fn locked(conn: &mut PgConnection, tenant: Uuid, new: &NewRun) -> std::result::Result<Tried, Failure> {
    let key = new.thread_id.key(tenant);
    let there = lock_thread(conn, key).await?;
    let mut cancelled = Vec::new();
    if there && new.multitask_strategy == MultitaskStrategy::Rollback {
        // Asked before anything is deleted: the taken id may be that of a run about to go.
        let taken =
            sqlx::query("SELECT 1 FROM run_lookup WHERE run_id = $1").bind(new.run_id).fetch_optional(&mut *conn);
        if taken.await?.is_some() {
            return Err(Failure::RunExists);
        }
        let reason = Some(format!("superseded by run {} (rollback)", new.run_id));
        let request = CancelRequest { action: CancelAction::Rollback, actor: new.actor.clone(), reason };
        cancelled = cancel_active(conn, key, &Selection::All, &request).await?;
        let notices: Vec<Notice> = cancelled
            .iter()
            .map(|run| if run.running { Notice::CancelRequested(run.run_id) } else { Notice::RunEnded(run.run_id) })
            .collect();
        notify(conn, &notices).await?;
    }
    let mut tried = statement(&mut *conn, tenant, new).await?;
    if let Tried::Done(created) = &mut tried
        && let RunCreated::Created { cancelled: reported, .. } = &mut **created
    {
        reported.extend(cancelled);
        webhooks::expect(conn, tenant, new).await?;
    }
    Ok(tried)
}

async fn statement(conn: &mut PgConnection, tenant: Uuid, new: &NewRun) -> std::result::Result<Tried, Failure> {
    let key = new.thread_id.key(tenant);
    let claim = new.claim.as_ref().filter(|_| new.after.is_zero());
    let reason = format!("superseded by run {} ({})", new.run_id, new.multitask_strategy.as_str());
    let row = sqlx::query(CREATE)
        .bind(key.0)
        .bind(tenant)
        .bind(new.thread_id.as_str())
        .bind(&new.graph_id)
        .bind(encoding::metadata_text(&new.thread_metadata))
        .bind(new.create_thread)
        .bind(new.multitask_strategy.as_str())
        .bind(new.run_id)
        .bind(new.assistant_id)
        .bind(encoding::metadata_text(&new.metadata))
        .bind(encoding::bytes(&new.kwargs))
        .bind(new.temporary)
        .bind(claim.is_some())
        .bind(claim.map(|claim| hide_nul(&claim.worker).into_owned()))
        .bind(claim.map_or(0, |claim| micros(claim.lease)))
        .bind(micros(new.after))
        .bind(new.actor.as_deref().map(|actor| hide_nul(actor).into_owned()))
        .bind(reason)
        .bind(new.assistant_as_of.map(|at| at.0))
        .bind(encoding::metadata_text(&new.assistant_metadata))
        .bind(new.thread_ttl.map(|ttl| ttl.micros))
        .bind(new.thread_ttl.map(|ttl| ttl.strategy.as_str()))
        .fetch_one(conn)
        .await?;
    if !get::<bool>(&row, "is_taken")? {
        if !get::<bool>(&row, "is_assistant_current")? {
            return Ok(Tried::Done(Box::new(RunCreated::AssistantChanged)));
        }
        if let Some(closed) = closed_from(&row, &new.thread_id)? {
            return Ok(Tried::Done(Box::new(RunCreated::ThreadClosed(closed))));
        }
        if get(&row, "is_foreign")? {
            return Ok(Tried::Done(Box::new(RunCreated::ThreadForeign)));
        }
        if !get::<bool>(&row, "is_admitted")? {
            return Ok(Tried::Done(Box::new(RunCreated::ThreadBusy)));
        }
        if !get::<bool>(&row, "thread_found")? && !new.create_thread {
            return Ok(Tried::Done(Box::new(RunCreated::ThreadMissing)));
        }
        if get(&row, "is_dead")? {
            return Ok(Tried::Dead);
        }
        return Ok(Tried::Stale);
    }
    let run = run_from(&row)?;
    let claimed = if run.status == RunStatus::Running {
        let lease = Lease { thread: key, run_id: new.run_id, epoch: get(&row, "lease_epoch")? };
        let thread = thread_from(&row)?;
        Some(Box::new(ClaimedRun { lease, run: run.clone(), thread, tenant, input_applied: false, cancel: None }))
    } else {
        None
    };
    let ids: Vec<Uuid> = get(&row, "cancelled_ids")?;
    let running: Vec<bool> = get(&row, "cancelled_running")?;
    let cancelled =
        ids.into_iter().zip(running).map(|(run_id, running)| Cancelled { run_id, thread: key, running }).collect();
    Ok(Tried::Done(Box::new(RunCreated::Created { run, claimed, cancelled })))
}
