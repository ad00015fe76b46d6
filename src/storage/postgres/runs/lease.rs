//! Renewing and giving back leases.

use std::collections::HashMap;
use std::time::Duration;

use uuid::Uuid;

use super::super::rows::{cancel_from, get};
use super::super::{PostgresStorage, micros, now};
use crate::model::Scope;
use crate::storage::rows::driver_error;
use crate::storage::{Lease, LeaseState, Notice, Result};

const RENEW: &str = concat!(
    "WITH mine AS MATERIALIZED (
        SELECT r.thread_key, r.run_id
        FROM runs r
        JOIN UNNEST($1::uuid[], $2::uuid[], $3::bigint[]) AS l (thread_key, run_id, epoch)
          ON r.thread_key = l.thread_key AND r.run_id = l.run_id AND r.lease_epoch = l.epoch
        WHERE r.status = 'running' AND ($5::uuid IS NULL OR r.tenant = $5)
        -- In the order of the keys, as commits lock them.
        ORDER BY r.thread_key, r.run_id FOR UPDATE OF r
    )
    UPDATE runs r SET lease_until = ",
    now!(),
    " + $4 FROM mine WHERE r.thread_key = mine.thread_key AND r.run_id = mine.run_id
    RETURNING r.run_id, r.cancel_action, r.cancel_actor, r.cancel_reason"
);

const RELEASE: &str = concat!(
    "WITH released AS (
        UPDATE runs SET status = 'pending', lease_until = 0, attempts = GREATEST(attempts - 1, 0), worker = NULL,
                        updated_at = ",
    now!(),
    "   WHERE thread_key = $1 AND run_id = $2 AND lease_epoch = $3 AND status = 'running'
          AND ($4::uuid IS NULL OR tenant = $4)
        RETURNING run_id
    )
    SELECT pg_notify('session_store', 'p') FROM released"
);

impl PostgresStorage {
    /// `limit`: how long a connection, and then its answer, is waited for.
    pub(super) async fn renew(
        &self,
        scope: &Scope,
        leases: &[Lease],
        duration: Duration,
        limit: Duration,
    ) -> Result<Vec<LeaseState>> {
        if leases.is_empty() {
            return Ok(Vec::new());
        }
        if !self.distributed {
            return self.renew_together(scope, leases, duration, limit).await;
        }
        let mut states = Vec::with_capacity(leases.len());
        for lease in leases {
            states.extend(self.renew_together(scope, std::slice::from_ref(lease), duration, limit).await?);
        }
        Ok(states)
    }

    async fn renew_together(
        &self,
        scope: &Scope,
        leases: &[Lease],
        duration: Duration,
        limit: Duration,
    ) -> Result<Vec<LeaseState>> {
        let mut session = self.session_within(limit).await?;
        let renewed = async {
            let rows = sqlx::query(RENEW)
                .bind(leases.iter().map(|lease| lease.thread.0).collect::<Vec<Uuid>>())
                .bind(leases.iter().map(|lease| lease.run_id).collect::<Vec<Uuid>>())
                .bind(leases.iter().map(|lease| lease.epoch).collect::<Vec<i64>>())
                .bind(micros(duration))
                .bind(scope.filter())
                .fetch_all(session.conn())
                .await
                .map_err(driver_error)?;
            self.wrote(session).await?;
            Ok(rows)
        };
        let rows = self.answered(limit, renewed).await?;
        let mut held = HashMap::with_capacity(rows.len());
        for row in &rows {
            held.insert(get::<Uuid>(row, "run_id")?, cancel_from(row)?);
        }
        Ok(leases
            .iter()
            .map(|lease| match held.get(&lease.run_id) {
                Some(cancel) => LeaseState { lease: *lease, held: true, cancel: cancel.clone() },
                None => LeaseState { lease: *lease, held: false, cancel: None },
            })
            .collect())
    }

    pub(super) async fn release(&self, scope: &Scope, lease: &Lease) -> Result<bool> {
        let mut session = self.session().await?;
        let rows = sqlx::query(RELEASE)
            .bind(lease.thread.0)
            .bind(lease.run_id)
            .bind(lease.epoch)
            .bind(scope.filter())
            .fetch_all(session.conn())
            .await
            .map_err(driver_error)?;
        self.wrote(session).await?;
        let released = !rows.is_empty();
        if released {
            self.tell([Notice::RunPending]);
        }
        Ok(released)
    }
}
