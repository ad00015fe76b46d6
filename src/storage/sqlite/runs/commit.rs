//! The fenced commits: supersteps, events between them, and changes of state from outside a run.

use sqlx::QueryBuilder;
use uuid::Uuid;

use super::super::effects::{add_usage, put_effect};
use super::super::executions::put_executions;
use super::super::rows::get;
use super::super::threads::delete_thread_rows;
use super::super::{Write, branches, webhooks};
use crate::model::{Json, Scope, ThreadKey};
use crate::storage::encoding::{self, PLAIN, error_bytes, hide_nul};
use crate::storage::rows::driver_error;
use crate::storage::{
    CommitOutcome, Lease, Notice, Result, StateCommit, StateOutcome, StepCommit, StepRows, StoredEvent,
};

/// Rows that one statement inserts at most: every statement is a trip to the connection's thread and back. Few enough
/// that all counts stay in the statement cache.
const ROWS: usize = 16;

/// What a held lease gives a right to.
pub(super) struct Held {
    tenant: Uuid,
    pub(super) temporary: bool,
}

/// The run is still there, running, with the epoch of the lease.
pub(super) async fn fence(write: &mut Write, scope: Scope, lease: Lease) -> Result<Option<Held>> {
    let row = sqlx::query(
        "SELECT tenant, temporary FROM runs
         WHERE thread_key = $1 AND run_id = $2 AND status = 'running' AND lease_epoch = $3
           AND ($4 IS NULL OR tenant = $4)",
    )
    .bind(lease.thread.0)
    .bind(lease.run_id)
    .bind(lease.epoch)
    .bind(scope.filter())
    .fetch_optional(&mut write.conn)
    .await
    .map_err(driver_error)?;
    row.map(|row| Ok(Held { tenant: get(&row, "tenant")?, temporary: get(&row, "temporary")? })).transpose()
}

pub(super) async fn commit_steps(
    write: &mut Write,
    scope: Scope,
    batch: Vec<StepCommit>,
) -> Result<Vec<CommitOutcome>> {
    let mut outcomes = Vec::with_capacity(batch.len());
    for step in batch {
        outcomes.push(match fence(write, scope, step.lease).await? {
            None => CommitOutcome::LeaseLost,
            Some(held) => {
                commit_step(write, held, step).await?;
                CommitOutcome::Committed
            }
        });
    }
    Ok(outcomes)
}

async fn commit_step(write: &mut Write, held: Held, step: StepCommit) -> Result<()> {
    let key = step.lease.thread;
    if step.end.is_some() {
        write.notices.push(Notice::RunEnded(step.lease.run_id));
        if let Some(end) = &step.end {
            webhooks::ended_by(write, step.lease, end).await?;
        }
        if held.temporary {
            return delete_thread_rows(&mut write.conn, key).await;
        }
    }
    insert_rows(write, held.tenant, key, &step.rows).await?;
    put_interrupts(write, step.lease, &step.rows).await?;
    insert_events(write, held.tenant, key, &step.events).await?;
    put_executions(write, held.tenant, key, step.lease.run_id, &step.rows.executions).await?;
    for row in &step.rows.effects {
        put_effect(write, held.tenant, key, step.lease.run_id, row).await?;
    }
    for row in &step.rows.usage {
        add_usage(write, held.tenant, key, step.lease.run_id, row).await?;
    }
    let progress = !step.rows.checkpoints.is_empty();
    let end = step.end.as_ref();
    if progress || step.input_applied || end.is_some() {
        sqlx::query(
            "UPDATE runs SET
                 attempts = CASE WHEN $3 THEN 1 ELSE attempts END,
                 input_applied = input_applied OR $4,
                 status = COALESCE($5, status),
                 error = COALESCE($6, error),
                 lease_until = CASE WHEN $5 IS NULL THEN lease_until ELSE 0 END,
                 updated_at = $7
             WHERE thread_key = $1 AND run_id = $2",
        )
        .bind(key.0)
        .bind(step.lease.run_id)
        .bind(progress)
        .bind(step.input_applied)
        .bind(end.map(|end| end.status.as_str()))
        .bind(end.and_then(|end| end.error.as_ref()).map(error_bytes))
        .bind(write.now)
        .execute(&mut write.conn)
        .await
        .map_err(driver_error)?;
    }
    let last_event = step.events.iter().map(|event| event.id.0).max();
    if step.rows.head.is_some() || last_event.is_some() || end.is_some() {
        sqlx::query(
            "UPDATE threads SET
                 head = COALESCE($2, head),
                 last_event = MAX(last_event, $3),
                 rest_status = COALESCE($4, rest_status),
                 error = CASE WHEN $4 IS NULL THEN error ELSE $5 END,
                 view = CASE WHEN $4 IS NULL THEN view ELSE $7 END,
                 updated_at = CASE WHEN $2 IS NULL AND $4 IS NULL THEN updated_at ELSE $6 END,
                 state_updated_at = CASE WHEN $2 IS NULL AND $4 IS NULL THEN state_updated_at ELSE $6 END
             WHERE thread_key = $1",
        )
        .bind(key.0)
        .bind(&step.rows.head)
        .bind(last_event.unwrap_or(0))
        .bind(end.map(|end| end.thread_status.as_str()))
        .bind(end.and_then(|end| end.error.as_ref()).map(error_bytes))
        .bind(write.now)
        .bind(end.and_then(|end| end.view.as_ref()).map(encoding::bytes))
        .execute(&mut write.conn)
        .await
        .map_err(driver_error)?;
    }
    if last_event.is_some() {
        write.notices.push(Notice::Events(key));
    }
    if end.is_some() {
        let row =
            sqlx::query("SELECT EXISTS (SELECT 1 FROM runs WHERE thread_key = $1 AND status = 'pending') AS waiting")
                .bind(key.0)
                .fetch_one(&mut write.conn)
                .await
                .map_err(driver_error)?;
        if get(&row, "waiting")? {
            write.notices.push(Notice::RunPending);
        }
    }
    Ok(())
}

/// Inserts checkpoints, task writes, payloads and log rows. A row that is there already (a commit repeated after its
/// answer was lost) stays, except that the writes of a task are replaced.
async fn insert_rows(write: &mut Write, tenant: Uuid, key: ThreadKey, rows: &StepRows) -> Result<()> {
    for rows in rows.checkpoints.chunks(ROWS) {
        let mut query = QueryBuilder::new(
            "INSERT INTO checkpoints
                 (thread_key, ns, checkpoint_id, tenant, parent_id, run_id, step, source, created_at, metadata, codec,
                  next_nodes, body, size_bytes) ",
        );
        query.push_values(rows, |mut values, row| {
            let next: Json = row.next.iter().map(|node| Json::from(node.as_str())).collect();
            values.push_bind(key.0).push_bind(row.ns.clone()).push_bind(row.id.clone()).push_bind(tenant);
            values.push_bind(row.parent.clone()).push_bind(row.run_id).push_bind(row.step);
            values.push_bind(row.source.as_str()).push_bind(row.at.0);
            values.push_bind(encoding::metadata_text(&row.metadata)).push_bind(PLAIN);
            values.push_bind(encoding::bytes(&next)).push_bind(encoding::bytes(&row.body)).push_bind(row.bytes);
        });
        query.push(" ON CONFLICT (thread_key, ns, checkpoint_id) DO NOTHING");
        query.build().execute(&mut write.conn).await.map_err(driver_error)?;
    }
    for rows in rows.task_writes.chunks(ROWS) {
        let mut query = QueryBuilder::new(
            "INSERT OR REPLACE INTO task_writes
                 (thread_key, ns, checkpoint_id, task_id, run_id, tenant, path, written_at, codec, body) ",
        );
        query.push_values(rows, |mut values, row| {
            values.push_bind(key.0).push_bind(row.ns.clone()).push_bind(row.checkpoint_id.clone());
            values.push_bind(row.task_id.clone()).push_bind(row.run_id.unwrap_or(Uuid::nil())).push_bind(tenant);
            values.push_bind(row.path.clone()).push_bind(write.now).push_bind(PLAIN);
            values.push_bind(encoding::bytes(&row.body));
        });
        query.build().execute(&mut write.conn).await.map_err(driver_error)?;
    }
    for payload in &rows.payloads {
        sqlx::query(
            "INSERT INTO payloads (thread_key, hash, tenant, codec, value) VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT (thread_key, hash) DO NOTHING",
        )
        .bind(key.0)
        .bind(payload.hash.to_vec())
        .bind(tenant)
        .bind(PLAIN)
        .bind(encoding::bytes(&payload.value))
        .execute(&mut write.conn)
        .await
        .map_err(driver_error)?;
    }
    for row in &rows.log {
        sqlx::query(
            "INSERT INTO channel_log
                 (thread_key, ns, channel, branch, start, tenant, count, run_id, codec, items)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
             ON CONFLICT (thread_key, ns, channel, branch, start) DO NOTHING",
        )
        .bind(key.0)
        .bind(&row.ns)
        .bind(&row.channel)
        .bind(row.branch)
        .bind(row.start)
        .bind(tenant)
        .bind(row.count)
        .bind(row.run_id)
        .bind(PLAIN)
        .bind(encoding::bytes(&row.items))
        .execute(&mut write.conn)
        .await
        .map_err(driver_error)?;
    }
    Ok(())
}

/// Questions asked, answered and withdrawn.
async fn put_interrupts(write: &mut Write, lease: Lease, rows: &StepRows) -> Result<()> {
    for row in &rows.interrupts {
        sqlx::query(
            "INSERT INTO interrupts
                 (thread_key, interrupt_id, tenant, ns, checkpoint_id, root_checkpoint_id, task_id, node, graph_id,
                  assistant_id, run_id, codec, question, response_schema, checked, asked_at, answer, answered_at,
                  answered_by, answered_run, withdrawn_run)
             SELECT $1, $3, r.tenant, $4, $5, $6, $7, $8, r.graph_id, r.assistant_id, r.run_id, $9, $10, $11, $12, $13,
                    $14, CASE WHEN $15 = 'answered' THEN r.created_at END,
                    CASE WHEN $15 = 'answered' THEN r.actor END, CASE WHEN $15 = 'answered' THEN r.run_id END,
                    CASE WHEN $15 = 'withdrawn' THEN r.run_id END
             FROM runs r WHERE r.thread_key = $1 AND r.run_id = $2
             ON CONFLICT (thread_key, interrupt_id) DO UPDATE SET
                 answer = excluded.answer, answered_at = excluded.answered_at, answered_by = excluded.answered_by,
                 answered_run = excluded.answered_run, withdrawn_run = excluded.withdrawn_run,
                 checkpoint_id = excluded.checkpoint_id, root_checkpoint_id = excluded.root_checkpoint_id,
                 node = excluded.node
             -- Asking again opens what was closed, and goes along when a migrated graph asks on a new checkpoint; only what
             -- is not answered is answered or withdrawn.
             WHERE CASE WHEN excluded.answered_at IS NULL AND excluded.withdrawn_run IS NULL
                        THEN interrupts.answered_at IS NOT NULL OR interrupts.withdrawn_run IS NOT NULL
                             OR interrupts.root_checkpoint_id <> excluded.root_checkpoint_id
                        ELSE interrupts.answered_at IS NULL END",
        )
        .bind(lease.thread.0)
        .bind(lease.run_id)
        .bind(&row.id)
        .bind(&row.ns)
        .bind(&row.checkpoint_id)
        .bind(&row.root_checkpoint_id)
        .bind(&row.task_id)
        .bind(&row.node)
        .bind(PLAIN)
        .bind(encoding::bytes(&row.question))
        .bind(row.response_schema.as_ref().map(encoding::bytes))
        .bind(row.checked)
        .bind(write.now)
        .bind(row.change.answer().map(encoding::bytes))
        .bind(row.change.as_str())
        .execute(&mut write.conn)
        .await
        .map_err(driver_error)?;
    }
    Ok(())
}

async fn insert_events(write: &mut Write, tenant: Uuid, key: ThreadKey, events: &[StoredEvent]) -> Result<()> {
    for event in events {
        sqlx::query(
            "INSERT INTO events (thread_key, event_id, tenant, run_id, name, codec, data)
             VALUES ($1, $2, $3, $4, $5, $6, $7)
             ON CONFLICT (thread_key, event_id) DO NOTHING",
        )
        .bind(key.0)
        .bind(event.id.0)
        .bind(tenant)
        .bind(event.run_id)
        .bind(hide_nul(&event.name).into_owned())
        .bind(PLAIN)
        .bind(encoding::bytes(&event.data))
        .execute(&mut write.conn)
        .await
        .map_err(driver_error)?;
    }
    Ok(())
}

pub(super) async fn append_events(
    write: &mut Write,
    scope: Scope,
    lease: Lease,
    events: Vec<StoredEvent>,
) -> Result<CommitOutcome> {
    let step = StepCommit { lease, rows: StepRows::default(), events, input_applied: false, end: None };
    let Some(held) = fence(write, scope, lease).await? else { return Ok(CommitOutcome::LeaseLost) };
    commit_step(write, held, step).await?;
    Ok(CommitOutcome::Committed)
}

pub(super) async fn commit_state(write: &mut Write, scope: Scope, change: StateCommit) -> Result<StateOutcome> {
    let key = change.thread_id.key(scope.tenant());
    let row = sqlx::query(
        "SELECT t.tenant, t.head, t.is_foreign, t.closed IS NOT NULL AS is_closed,
                EXISTS (SELECT 1 FROM runs a
                        WHERE a.thread_key = t.thread_key AND a.status IN ('pending', 'running')) AS busy,
                ($2 IS NULL OR EXISTS (SELECT 1 FROM checkpoints c
                                       WHERE c.thread_key = t.thread_key AND c.ns = $2 AND c.checkpoint_id = $3))
                AS has_base
         FROM threads t WHERE t.thread_key = $1",
    )
    .bind(key.0)
    .bind(change.base.as_ref().map(|(ns, _)| ns.clone()))
    .bind(change.base.as_ref().map(|(_, id)| id.clone()))
    .fetch_optional(&mut write.conn)
    .await
    .map_err(driver_error)?;
    let Some(row) = row else { return Ok(StateOutcome::ThreadMissing) };
    if get(&row, "is_closed")? {
        return Ok(StateOutcome::ThreadClosed);
    }
    if get(&row, "is_foreign")? {
        return Ok(StateOutcome::ThreadForeign);
    }
    if get(&row, "busy")? {
        return Ok(StateOutcome::ThreadBusy);
    }
    if get::<Option<String>>(&row, "head")? != change.expected_head || !get::<bool>(&row, "has_base")? {
        return Ok(StateOutcome::HeadMoved);
    }
    if let (Some(moves), Some(to)) = (&change.moves, &change.rows.head) {
        if let Some(branch) = &moves.branch
            && !branches::stands_at(&mut write.conn, key, branch, Some(to)).await?
        {
            return Ok(StateOutcome::HeadMoved);
        }
        branches::leave(&mut write.conn, key, to, moves).await?;
    }
    let tenant = get(&row, "tenant")?;
    insert_rows(write, tenant, key, &change.rows).await?;
    insert_events(write, tenant, key, &change.events).await?;
    let last_event = change.events.iter().map(|event| event.id.0).max();
    if last_event.is_some() {
        write.notices.push(Notice::Events(key));
    }
    sqlx::query(
        "UPDATE threads SET head = COALESCE($2, head), rest_status = $3, error = NULL, view = $5, updated_at = $4,
                            state_updated_at = $4, last_event = MAX(last_event, $6)
         WHERE thread_key = $1",
    )
    .bind(key.0)
    .bind(&change.rows.head)
    .bind(change.thread_status.as_str())
    .bind(write.now)
    .bind(change.view.as_ref().map(encoding::bytes))
    .bind(last_event.unwrap_or(0))
    .execute(&mut write.conn)
    .await
    .map_err(driver_error)?;
    Ok(StateOutcome::Committed)
}
