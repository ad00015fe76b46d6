//! Inserting a run and applying its multitask strategy. The writer is alone, so what it reads stays true.

use super::super::retention::is_dead;
use super::super::rows::get;
use super::super::threads::{insert_thread, merge, thread_by_key};
use super::super::{Write, micros, webhooks};
use super::cancel::{Selection, cancel_active};
use super::run_by_key;
use crate::model::{CancelAction, Json, MultitaskStrategy, Scope};
use crate::storage::encoding::{self, PLAIN, hide_nul};
use crate::storage::rows::driver_error;
use crate::storage::{CancelRequest, ClaimedRun, Lease, NewRun, NewThread, Notice, Result, RunCreated, StorageError};

/// `None`: rows of a deleted thread are in the way of the one to be made.
pub(in crate::storage::sqlite) async fn create_run(
    write: &mut Write,
    scope: Scope,
    new: NewRun,
) -> Result<Option<RunCreated>> {
    let tenant = scope.tenant();
    let key = new.thread_id.key(tenant);
    let thread = thread_by_key(&mut write.conn, &scope, key).await?;
    if thread.is_none() && !new.create_thread {
        return Ok(Some(RunCreated::ThreadMissing));
    }
    if thread.is_none() && is_dead(&mut write.conn, key).await? {
        return Ok(None);
    }
    let as_of = sqlx::query("SELECT updated_at FROM assistants WHERE tenant = $1 AND assistant_id = $2")
        .bind(tenant)
        .bind(new.assistant_id)
        .fetch_optional(&mut write.conn)
        .await
        .map_err(driver_error)?
        .map(|row| get(&row, "updated_at"))
        .transpose()?;
    if as_of != new.assistant_as_of.map(|at| at.0) {
        return Ok(Some(RunCreated::AssistantChanged));
    }
    if let Some(closed) = thread.as_ref().and_then(|thread| thread.closed.clone()) {
        return Ok(Some(RunCreated::ThreadClosed(closed)));
    }
    if exists(write, "SELECT EXISTS (SELECT 1 FROM threads WHERE thread_key = $1 AND is_foreign) AS it", key.0).await? {
        return Ok(Some(RunCreated::ThreadForeign));
    }
    let busy = exists(
        write,
        "SELECT EXISTS (SELECT 1 FROM runs WHERE thread_key = $1 AND status IN ('pending', 'running')) AS it",
        key.0,
    )
    .await?;
    if busy && new.multitask_strategy == MultitaskStrategy::Reject {
        return Ok(Some(RunCreated::ThreadBusy));
    }
    if exists(write, "SELECT EXISTS (SELECT 1 FROM run_lookup WHERE run_id = $1) AS it", new.run_id).await? {
        return Ok(Some(RunCreated::RunExists));
    }

    // What the run inherits is the metadata before this request's own is merged in.
    let inherited = thread.as_ref().map_or_else(Json::object, |thread| thread.metadata.clone());
    if thread.is_none() {
        let empty = NewThread {
            id: new.thread_id.clone(),
            graph_id: None,
            metadata: Json::object(),
            config: Json::object(),
            ttl: new.thread_ttl,
        };
        insert_thread(write, tenant, &empty).await?;
    }
    sqlx::query(
        "UPDATE threads SET graph_id = $2, metadata = $3, updated_at = $4, revision = revision + 1 WHERE thread_key = $1",
    )
    .bind(key.0)
    .bind(&new.graph_id)
    .bind(encoding::metadata_text(&merge(&inherited, &new.thread_metadata)))
    .bind(write.now)
    .execute(&mut write.conn)
    .await
    .map_err(driver_error)?;

    let action = match new.multitask_strategy {
        MultitaskStrategy::Interrupt => Some(CancelAction::Interrupt),
        MultitaskStrategy::Rollback => Some(CancelAction::Rollback),
        MultitaskStrategy::Enqueue | MultitaskStrategy::Reject => None,
    };
    let cancelled = match action {
        Some(action) if busy => {
            let reason = Some(format!("superseded by run {} ({})", new.run_id, new.multitask_strategy.as_str()));
            let request = CancelRequest { action, actor: new.actor.clone(), reason };
            cancel_active(write, key, &Selection::All, &request).await?
        }
        _ => Vec::new(),
    };
    let alone = !busy || (action.is_some() && cancelled.iter().all(|run| !run.running));
    let claim = new.claim.as_ref().filter(|_| alone && new.after.is_zero());

    let run_at = write.now + micros(new.after);
    sqlx::query("INSERT INTO run_lookup (run_id, tenant, thread_key) VALUES ($1, $2, $3)")
        .bind(new.run_id)
        .bind(tenant)
        .bind(key.0)
        .execute(&mut write.conn)
        .await
        .map_err(driver_error)?;
    sqlx::query(
        "INSERT INTO runs (thread_key, run_id, tenant, assistant_id, graph_id, status, metadata, codec, kwargs,
                           multitask_strategy, attempts, input_applied, temporary, worker, lease_epoch, lease_until,
                           run_at, created_at, updated_at, actor, started_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, 0, $12, $13, $14, $15, $16, $16, $17, $18, $19)",
    )
    .bind(key.0)
    .bind(new.run_id)
    .bind(tenant)
    .bind(new.assistant_id)
    .bind(&new.graph_id)
    .bind(if claim.is_some() { "running" } else { "pending" })
    .bind(encoding::metadata_text(&merge(&merge(&new.assistant_metadata, &inherited), &new.metadata)))
    .bind(PLAIN)
    .bind(encoding::bytes(&new.kwargs))
    .bind(new.multitask_strategy.as_str())
    .bind(i32::from(claim.is_some()))
    .bind(new.temporary)
    .bind(claim.map(|claim| hide_nul(&claim.worker).into_owned()))
    .bind(i64::from(claim.is_some()))
    .bind(claim.map_or(0, |claim| write.now + micros(claim.lease)))
    .bind(run_at)
    .bind(write.now)
    .bind(new.actor.as_deref().map(|actor| hide_nul(actor).into_owned()))
    .bind(claim.map(|_| write.now))
    .execute(&mut write.conn)
    .await
    .map_err(driver_error)?;

    webhooks::expect(write, tenant, &new).await?;
    let lost = || StorageError::Other(format!("run {} is not there after its insert", new.run_id));
    let run = run_by_key(&mut write.conn, key, new.run_id).await?.ok_or_else(lost)?;
    let claimed = if claim.is_some() {
        let thread = thread_by_key(&mut write.conn, &scope, key).await?.ok_or_else(lost)?;
        let lease = Lease { thread: key, run_id: new.run_id, epoch: 1 };
        let claimed = ClaimedRun { lease, run: run.clone(), thread, tenant, input_applied: false, cancel: None };
        Some(Box::new(claimed))
    } else {
        write.notices.push(Notice::RunPending);
        None
    };
    Ok(Some(RunCreated::Created { run, claimed, cancelled }))
}

async fn exists(write: &mut Write, statement: &'static str, id: uuid::Uuid) -> Result<bool> {
    get(&sqlx::query(statement).bind(id).fetch_one(&mut write.conn).await.map_err(driver_error)?, "it")
}
