//! Renewing and giving back leases.

use std::time::Duration;

use super::super::rows::cancel_from;
use super::super::{Write, micros};
use crate::model::Scope;
use crate::storage::rows::driver_error;
use crate::storage::{Lease, LeaseState, Notice, Result};

pub(super) async fn renew_leases(
    write: &mut Write,
    scope: Scope,
    leases: Vec<Lease>,
    duration: Duration,
) -> Result<Vec<LeaseState>> {
    let mut states = Vec::with_capacity(leases.len());
    for lease in leases {
        let row = sqlx::query(
            "UPDATE runs SET lease_until = $4
             WHERE thread_key = $1 AND run_id = $2 AND lease_epoch = $3 AND status = 'running'
               AND ($5 IS NULL OR tenant = $5)
             RETURNING run_id, cancel_action, cancel_actor, cancel_reason",
        )
        .bind(lease.thread.0)
        .bind(lease.run_id)
        .bind(lease.epoch)
        .bind(write.now + micros(duration))
        .bind(scope.filter())
        .fetch_optional(&mut write.conn)
        .await
        .map_err(driver_error)?;
        let cancel = row.as_ref().map(cancel_from).transpose()?.flatten();
        states.push(LeaseState { lease, held: row.is_some(), cancel });
    }
    Ok(states)
}

pub(super) async fn release_run(write: &mut Write, scope: Scope, lease: Lease) -> Result<bool> {
    let done = sqlx::query(
        "UPDATE runs SET status = 'pending', lease_until = 0, attempts = MAX(attempts - 1, 0), worker = NULL,
                         updated_at = $4
         WHERE thread_key = $1 AND run_id = $2 AND lease_epoch = $3 AND status = 'running'
           AND ($5 IS NULL OR tenant = $5)",
    )
    .bind(lease.thread.0)
    .bind(lease.run_id)
    .bind(lease.epoch)
    .bind(write.now)
    .bind(scope.filter())
    .execute(&mut write.conn)
    .await
    .map_err(driver_error)?;
    let released = done.rows_affected() == 1;
    if released {
        write.notices.push(Notice::RunPending);
    }
    Ok(released)
}
