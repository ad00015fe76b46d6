//! Claiming: the queue is a query. Workers skip what another one is claiming.

use std::collections::HashMap;

use uuid::Uuid;

use super::super::rows::{cancel_from, get, run_from};
use super::super::threads::{delete_thread_rows, lock_thread, threads_by_key};
use super::super::{PostgresStorage, Session, micros, notify, now, webhooks};
use super::run_columns;
use crate::model::{Scope, ThreadKey};
use crate::storage::encoding::{error_bytes, hide_nul};
use crate::storage::rows::driver_error;
use crate::storage::{Claim, ClaimedRun, Lease, Notice, Result, SUSPECT_FOR, quarantined};

/// Runs that a worker executes on their last attempt; see [`SUSPECT_FOR`].
macro_rules! suspects {
    ($worker:literal, $max_attempts:literal, $for:literal) => {
        concat!(
            "SELECT 1 FROM runs s WHERE s.status = 'running' AND s.worker = ",
            $worker,
            " AND s.attempts > 1 AND s.attempts = ",
            $max_attempts,
            " AND s.cancel_action IS NULL AND s.lease_until > ",
            now!(),
            " AND s.updated_at > ",
            now!(),
            " - ",
            $for
        )
    };
}

/// A claim, of runs for which `$only` holds, too, knowing the worker's `$suspects`.
macro_rules! claim {
    ($only:literal, $suspects:expr) => {
        concat!(
            "WITH clock AS MATERIALIZED (SELECT ",
            now!(),
            " AS now),
    suspects AS MATERIALIZED (",
            $suspects,
            "),
    waiting AS MATERIALIZED (
        SELECT r.thread_key, r.run_id, r.created_at, r.attempts,
               (r.attempts > 0 AND r.attempts = $3 - 1 AND r.cancel_action IS NULL) AS is_last
        FROM runs r
        WHERE ($1::uuid IS NULL OR r.tenant = $1)
          AND r.status = 'pending' AND r.run_at <= (SELECT now FROM clock)",
            $only,
            "
          -- One run at a time per thread, oldest first: wait for the running one and for older ones due. Should a run
          -- start on the thread after this snapshot, the index runs_one_running has the last word.
          AND NOT EXISTS (SELECT 1 FROM runs o
                          WHERE o.thread_key = r.thread_key AND o.status IN ('pending', 'running')
                            AND (o.status = 'running'
                              OR (o.run_at <= (SELECT now FROM clock)
                                  AND (o.created_at, o.run_id) < (r.created_at, r.run_id))))
          AND (r.attempts = 0 OR r.attempts <> $3 - 1 OR r.cancel_action IS NOT NULL
               OR NOT EXISTS (SELECT 1 FROM suspects))
        ORDER BY r.created_at, r.run_id LIMIT $2
        -- A run another worker is claiming is not worth waiting for.
        FOR UPDATE OF r SKIP LOCKED
    ),
    abandoned AS MATERIALIZED (
        SELECT r.thread_key, r.run_id, r.created_at, r.attempts,
               (r.attempts > 0 AND r.attempts = $3 - 1 AND r.cancel_action IS NULL) AS is_last
        FROM runs r
        WHERE ($1::uuid IS NULL OR r.tenant = $1)
          AND r.status = 'running' AND r.lease_until <= (SELECT now FROM clock)",
            $only,
            "
          AND (r.attempts = 0 OR r.attempts <> $3 - 1 OR r.cancel_action IS NOT NULL
               OR NOT EXISTS (SELECT 1 FROM suspects))
        ORDER BY r.created_at, r.run_id LIMIT $2
        FOR UPDATE OF r SKIP LOCKED
    ),
    picked AS MATERIALIZED (
        SELECT thread_key, run_id, created_at, attempts
        FROM (SELECT thread_key, run_id, created_at, attempts, is_last,
                     ROW_NUMBER() OVER (PARTITION BY is_last ORDER BY created_at, run_id) AS turn
              FROM (SELECT * FROM waiting UNION ALL SELECT * FROM abandoned) AS both_kinds) AS in_turn
        WHERE NOT is_last OR turn = 1
        ORDER BY created_at, run_id LIMIT $2
    ),
    claimed AS (
        UPDATE runs r SET status = 'running', lease_epoch = r.lease_epoch + 1, lease_until = clock.now + $4,
                          attempts = r.attempts + 1, worker = $5, updated_at = clock.now,
                          started_at = COALESCE(r.started_at, clock.now)
        FROM picked, clock
        WHERE r.thread_key = picked.thread_key AND r.run_id = picked.run_id AND picked.attempts < $3
        RETURNING r.run_id, r.thread_key, r.tenant, r.assistant_id, r.graph_id, r.status, r.metadata, r.codec, r.kwargs,
                  r.error, r.multitask_strategy, r.attempts, r.input_applied, r.cancel_action, r.cancel_actor,
                  r.cancel_reason, r.lease_epoch, r.created_at, r.updated_at, r.actor
    )
    SELECT picked.thread_key AS picked_thread, picked.run_id AS picked_run, (r.run_id IS NOT NULL) AS is_claimed, ",
            run_columns!(),
            ", NULL::text AS run_usage FROM picked
      LEFT JOIN claimed r ON r.thread_key = picked.thread_key AND r.run_id = picked.run_id
      LEFT JOIN threads t ON t.thread_key = picked.thread_key
      ORDER BY picked.created_at, picked.run_id"
        )
    };
}

const CLAIM: &str = claim!("", suspects!("$5", "$3", "$6"));

/// The same of one thread, `$6`: where tables are distributed by thread, locks on several are not to be had at once.
/// Whether there are suspects was asked before (`$7`).
const CLAIM_OF_THREAD: &str = claim!(" AND r.thread_key = $6", "SELECT 1 WHERE $7::boolean");

const HAS_SUSPECT: &str = concat!("SELECT EXISTS (", suspects!("$1", "$2", "$3"), ") AS it");

/// Threads on which a claim may find something, the longest waiting first. Reads only.
const CANDIDATES: &str = concat!(
    "WITH clock AS MATERIALIZED (SELECT ",
    now!(),
    " AS now)
    SELECT r.thread_key FROM runs r
    WHERE ($1::uuid IS NULL OR r.tenant = $1)
      AND ((r.status = 'pending' AND r.run_at <= (SELECT now FROM clock))
        OR (r.status = 'running' AND r.lease_until <= (SELECT now FROM clock)))
      AND NOT EXISTS (SELECT 1 FROM runs o
                      WHERE o.thread_key = r.thread_key AND o.status = 'running'
                        AND o.lease_until > (SELECT now FROM clock))
    GROUP BY r.thread_key ORDER BY MIN(r.created_at) LIMIT $2"
);

/// Whether a claim would find anything: asked first, so that an idle server polls without writing.
const ANY: &str = concat!(
    "SELECT EXISTS (SELECT 1 FROM runs WHERE status = 'pending' AND run_at <= ",
    now!(),
    " AND ($1::uuid IS NULL OR tenant = $1))
     OR EXISTS (SELECT 1 FROM runs WHERE status = 'running' AND lease_until <= ",
    now!(),
    " AND ($1::uuid IS NULL OR tenant = $1)) AS it"
);

impl PostgresStorage {
    pub(super) async fn claim(
        &self,
        scope: &Scope,
        claim: &Claim,
        max_attempts: i32,
        limit: i64,
    ) -> Result<Vec<ClaimedRun>> {
        let mut session = self.session().await?;
        let row = sqlx::query(ANY).bind(scope.filter()).fetch_one(session.conn()).await.map_err(driver_error)?;
        if !get::<bool>(&row, "it")? {
            session.finish().await?;
            return Ok(Vec::new());
        }
        if !self.distributed {
            return self.claim_of(scope, claim, max_attempts, limit, session, None).await;
        }
        let keys: Vec<(Uuid,)> = sqlx::query_as(CANDIDATES)
            .bind(scope.filter())
            .bind(limit)
            .fetch_all(session.conn())
            .await
            .map_err(driver_error)?;
        let row = sqlx::query(HAS_SUSPECT)
            .bind(hide_nul(&claim.worker).into_owned())
            .bind(max_attempts)
            .bind(micros(SUSPECT_FOR))
            .fetch_one(session.conn())
            .await
            .map_err(driver_error)?;
        let mut has_suspect: bool = get(&row, "it")?;
        session.finish().await?;
        let mut runs: Vec<ClaimedRun> = Vec::new();
        for (key,) in keys {
            let session = self.session().await;
            let claimed = match session {
                Ok(session) => self.claim_of(scope, claim, max_attempts, 1, session, Some((key, has_suspect))).await,
                Err(error) => Err(error),
            };
            match claimed {
                Ok(claimed) => {
                    has_suspect |= claimed.iter().any(|claimed| claimed.run.attempts == max_attempts);
                    runs.extend(claimed);
                }
                // What was claimed is this process's, whatever comes after.
                Err(_) if !runs.is_empty() => break,
                Err(error) => return Err(error),
            }
        }
        Ok(runs)
    }

    /// Claims runs of all threads, or of one, told whether the worker has suspects.
    async fn claim_of(
        &self,
        scope: &Scope,
        claim: &Claim,
        max_attempts: i32,
        limit: i64,
        mut session: Session,
        only: Option<(Uuid, bool)>,
    ) -> Result<Vec<ClaimedRun>> {
        let query = sqlx::query(if only.is_some() { CLAIM_OF_THREAD } else { CLAIM })
            .bind(scope.filter())
            .bind(limit)
            .bind(max_attempts)
            .bind(micros(claim.lease))
            .bind(hide_nul(&claim.worker).into_owned());
        let query = match only {
            Some((key, has_suspect)) => query.bind(key).bind(has_suspect),
            None => query.bind(micros(SUSPECT_FOR)),
        };
        let rows = query.fetch_all(session.conn()).await;
        let rows = match rows {
            Ok(rows) => rows,
            // Another run started on a thread since the snapshot; the next look finds what is left.
            Err(sqlx::Error::Database(error)) if error.constraint() == Some("runs_one_running") => {
                return Ok(Vec::new());
            }
            Err(error) => return Err(driver_error(error)),
        };
        if rows.is_empty() {
            // What is pending waits for its turn; nothing was written.
            session.finish().await?;
            return Ok(Vec::new());
        }
        self.wrote(session).await?;
        let mut claimed = Vec::new();
        for row in &rows {
            if get(row, "is_claimed")? {
                claimed.push(row);
            } else {
                let (key, run_id) = (ThreadKey(get(row, "picked_thread")?), get(row, "picked_run")?);
                self.quarantine(key, run_id, max_attempts).await?;
            }
        }
        if claimed.is_empty() {
            return Ok(Vec::new());
        }
        // After the claim, with a new snapshot: an earlier lease holder may have moved the head just before.
        let keys = claimed.iter().map(|row| get(row, "run_thread_key")).collect::<Result<Vec<Uuid>>>()?;
        let mut session = self.session().await?;
        let threads = threads_by_key(session.conn(), scope, keys).await?;
        session.finish().await?;
        let mut threads: HashMap<ThreadKey, _> = threads.into_iter().map(|thread| (thread.key, thread)).collect();
        let mut runs = Vec::with_capacity(claimed.len());
        for row in claimed {
            let run = run_from(row)?;
            // Without its thread the run was deleted right after the claim.
            let Some(thread) = threads.remove(&run.thread_key) else { continue };
            runs.push(ClaimedRun {
                lease: Lease { thread: run.thread_key, run_id: run.run_id, epoch: get(row, "lease_epoch")? },
                run,
                thread,
                tenant: get(row, "run_tenant")?,
                input_applied: get(row, "input_applied")?,
                cancel: cancel_from(row)?,
            });
        }
        Ok(runs)
    }

    /// Ends a run that was attempted too often without progress.
    async fn quarantine(&self, key: ThreadKey, run_id: Uuid, max_attempts: i32) -> Result<()> {
        let mut transaction = self.begin().await?;
        if !lock_thread(&mut transaction, key).await? {
            return Ok(());
        }
        // Asked again under the lock: another worker may have been here, or the run may have made progress.
        let row = sqlx::query(concat!(
            "SELECT attempts, temporary, worker FROM runs
             WHERE thread_key = $1 AND run_id = $2 AND attempts >= $3
               AND (status = 'pending' OR (status = 'running' AND lease_until <= ",
            now!(),
            ")) FOR UPDATE"
        ))
        .bind(key.0)
        .bind(run_id)
        .bind(max_attempts)
        .fetch_optional(&mut *transaction)
        .await
        .map_err(driver_error)?;
        let Some(row) = row else { return Ok(()) };
        let (attempts, worker): (i32, Option<String>) = (get(&row, "attempts")?, get(&row, "worker")?);
        let error = error_bytes(&quarantined(attempts, worker.as_deref()));
        tracing::error!(run.id = %run_id, attempts, worker, "a run is set aside: every attempt ended without progress");
        webhooks::ended(&mut transaction, key, run_id, "error", Some(&error)).await?;
        if get(&row, "temporary")? {
            delete_thread_rows(&mut transaction, key).await?;
        } else {
            sqlx::query(concat!(
                "UPDATE runs SET status = 'error', error = $3, lease_until = 0, updated_at = clock.now,
                                 quarantined_at = clock.now
                 FROM (SELECT ",
                now!(),
                " AS now) AS clock WHERE thread_key = $1 AND run_id = $2"
            ))
            .bind(key.0)
            .bind(run_id)
            .bind(&error)
            .execute(&mut *transaction)
            .await
            .map_err(driver_error)?;
            sqlx::query(concat!(
                "UPDATE threads SET rest_status = 'error', error = $2, view = NULL, updated_at = clock.now,
                                    state_updated_at = clock.now
                 FROM (SELECT ",
                now!(),
                " AS now) AS clock WHERE thread_key = $1"
            ))
            .bind(key.0)
            .bind(&error)
            .execute(&mut *transaction)
            .await
            .map_err(driver_error)?;
        }
        // What waited behind it on the thread can go on.
        let notices = [Notice::RunEnded(run_id), Notice::RunPending];
        notify(&mut transaction, &notices).await?;
        self.commit(transaction).await?;
        self.tell(notices);
        Ok(())
    }
}
