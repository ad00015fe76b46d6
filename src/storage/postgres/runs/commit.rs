//! The fenced commits. A batch of supersteps is one statement over arrays: it locks the threads and the live runs, and
//! everything it writes selects from those, so a member without its lease writes nothing and the others are not held up.

use std::collections::HashSet;

use sqlx::postgres::PgConnection;

use super::super::rows::get;
use super::super::threads::lock_thread;
use super::super::{PostgresStorage, branches, now, webhooks};
use super::columns::{Executions, Members, Rows};
use super::extras::Extras;
use crate::model::Scope;
use crate::storage::encoding;
use crate::storage::rows::driver_error;
use crate::storage::{
    CommitOutcome, Lease, Notice, Result, RunEnd, StateCommit, StateOutcome, StepCommit, StepRows, StoredEvent,
};

/// The inserts of rows: parameters 1-35, from `live (member, thread_key, tenant, gone)`. A row that is there already (a
/// commit repeated after its answer was lost) stays, except that the writes of a task are replaced.
///
/// The first array of each list stands in a subquery, so that Postgres guesses the same length whether it knows the list
/// or not. Otherwise a plan for an unknown list looks so much dearer than one for few members that every execution is
/// planned anew, at several times the price of the commit itself.
macro_rules! row_inserts {
    () => {
        "put_checkpoints AS (
            INSERT INTO checkpoints (thread_key, ns, checkpoint_id, tenant, parent_id, run_id, step, source, created_at,
                                     metadata, codec, next_nodes, body, size_bytes)
            SELECT l.thread_key, c.ns, c.checkpoint_id, l.tenant, c.parent_id, c.run_id, c.step, c.source, c.created_at,
                   c.metadata::jsonb, 0, c.next_nodes, c.body, c.size_bytes
            FROM UNNEST((SELECT $1::int[]), $2::text[], $3::text[], $4::text[], $5::uuid[], $6::bigint[], $7::text[],
                        $8::bigint[], $9::text[], $10::bytea[], $11::bytea[], $12::bigint[])
                AS c (member, ns, checkpoint_id, parent_id, run_id, step, source, created_at, metadata, next_nodes, body,
                      size_bytes)
            JOIN live l ON l.member = c.member AND NOT l.gone
            ON CONFLICT (thread_key, ns, checkpoint_id) DO NOTHING
        ),
        put_task_writes AS (
            INSERT INTO task_writes (thread_key, ns, checkpoint_id, task_id, run_id, tenant, path, written_at, codec,
                                     body)
            SELECT l.thread_key, w.ns, w.checkpoint_id, w.task_id, w.run_id, l.tenant, w.path, clock.now, 0, w.body
            FROM UNNEST((SELECT $13::int[]), $14::text[], $15::text[], $16::text[], $17::uuid[], $18::text[],
                        $19::bytea[])
                AS w (member, ns, checkpoint_id, task_id, run_id, path, body)
            JOIN live l ON l.member = w.member AND NOT l.gone
            CROSS JOIN clock
            ON CONFLICT (thread_key, ns, checkpoint_id, task_id, run_id) DO UPDATE SET
                tenant = EXCLUDED.tenant, path = EXCLUDED.path, written_at = EXCLUDED.written_at,
                codec = EXCLUDED.codec, body = EXCLUDED.body
        ),
        put_payloads AS (
            INSERT INTO payloads (thread_key, hash, tenant, codec, value)
            SELECT l.thread_key, p.hash, l.tenant, 0, p.value
            FROM UNNEST((SELECT $20::int[]), $21::bytea[], $22::bytea[]) AS p (member, hash, value)
            JOIN live l ON l.member = p.member AND NOT l.gone
            ON CONFLICT (thread_key, hash) DO NOTHING
        ),
        put_log AS (
            INSERT INTO channel_log (thread_key, ns, channel, branch, start, tenant, count, run_id, codec, items)
            SELECT l.thread_key, i.ns, i.channel, i.branch, i.start, l.tenant, i.count, i.run_id, 0, i.items
            FROM UNNEST((SELECT $23::int[]), $24::text[], $25::text[], $26::bigint[], $27::bigint[], $28::bigint[],
                        $29::uuid[], $30::bytea[]) AS i (member, ns, channel, branch, start, count, run_id, items)
            JOIN live l ON l.member = i.member AND NOT l.gone
            ON CONFLICT (thread_key, ns, channel, branch, start) DO NOTHING
        ),
        put_events AS (
            INSERT INTO events (thread_key, event_id, tenant, run_id, name, codec, data)
            SELECT l.thread_key, e.event_id, l.tenant, e.run_id, e.name, 0, e.data
            FROM UNNEST((SELECT $31::int[]), $32::bigint[], $33::uuid[], $34::text[], $35::bytea[])
                AS e (member, event_id, run_id, name, data)
            JOIN live l ON l.member = e.member AND NOT l.gone
            ON CONFLICT (thread_key, event_id) DO NOTHING
        )"
    };
}

/// What few commits have: questions asked, answered and withdrawn (parameters 61-72), effects (73-83) and usage (84-90). A
/// part of its own, so that other commits do not pay for it.
macro_rules! extra_inserts {
    () => {
        ",
        put_interrupts AS (
            INSERT INTO interrupts (thread_key, interrupt_id, tenant, ns, checkpoint_id, root_checkpoint_id, task_id,
                                    node, graph_id, assistant_id, run_id, codec, question, response_schema, checked,
                                    asked_at, answer, answered_at, answered_by, answered_run, withdrawn_run)
            SELECT l.thread_key, i.interrupt_id, l.tenant, i.ns, i.checkpoint_id, i.root_checkpoint_id, i.task_id,
                   i.node, r.graph_id, r.assistant_id, r.run_id, 0, i.question, i.response_schema, i.checked, clock.now,
                   i.answer, CASE WHEN i.change = 'answered' THEN r.created_at END,
                   CASE WHEN i.change = 'answered' THEN r.actor END,
                   CASE WHEN i.change = 'answered' THEN r.run_id END,
                   CASE WHEN i.change = 'withdrawn' THEN r.run_id END
            FROM UNNEST((SELECT $61::int[]), $62::text[], $63::text[], $64::text[], $65::text[], $66::text[], $67::text[],
                        $68::bytea[], $69::bytea[], $70::bool[], $71::text[], $72::bytea[])
                AS i (member, interrupt_id, ns, checkpoint_id, root_checkpoint_id, task_id, node, question,
                      response_schema, checked, change, answer)
            JOIN live l ON l.member = i.member AND NOT l.gone
            JOIN runs r ON r.thread_key = l.thread_key AND r.run_id = l.run_id
            CROSS JOIN clock
            ON CONFLICT (thread_key, interrupt_id) DO UPDATE SET
                answer = EXCLUDED.answer, answered_at = EXCLUDED.answered_at, answered_by = EXCLUDED.answered_by,
                answered_run = EXCLUDED.answered_run, withdrawn_run = EXCLUDED.withdrawn_run,
                checkpoint_id = EXCLUDED.checkpoint_id, root_checkpoint_id = EXCLUDED.root_checkpoint_id,
                node = EXCLUDED.node
            -- Asking again opens what was closed, and goes along when a migrated graph asks on a new checkpoint; only what
            -- is not answered is answered or withdrawn.
            WHERE CASE WHEN EXCLUDED.answered_at IS NULL AND EXCLUDED.withdrawn_run IS NULL
                       THEN interrupts.answered_at IS NOT NULL OR interrupts.withdrawn_run IS NOT NULL
                            OR interrupts.root_checkpoint_id <> EXCLUDED.root_checkpoint_id
                       ELSE interrupts.answered_at IS NULL END
        ),
        put_effects AS (
            INSERT INTO effects AS e (thread_key, ns, checkpoint_id, task_id, key, tenant, run_id, node, state, attempt,
                                      asked, started_at, ended_at, codec, result, error)
            SELECT l.thread_key, n.ns, n.checkpoint_id, n.task_id, n.key, l.tenant, l.run_id, n.node, n.state, n.attempt,
                   n.asked, clock.now, CASE WHEN n.state = 'started' THEN NULL ELSE clock.now END, 0, n.result, n.error
            FROM UNNEST((SELECT $73::int[]), $74::text[], $75::text[], $76::text[], $77::text[], $78::text[],
                        $79::text[], $80::int[], $81::int[], $82::bytea[], $83::bytea[])
                AS n (member, ns, checkpoint_id, task_id, key, node, state, attempt, asked, result, error)
            JOIN live l ON l.member = n.member AND NOT l.gone
            CROSS JOIN clock
            ON CONFLICT (thread_key, ns, checkpoint_id, task_id, key) DO UPDATE SET
                run_id = EXCLUDED.run_id, state = EXCLUDED.state, attempt = EXCLUDED.attempt, asked = EXCLUDED.asked,
                started_at = CASE WHEN EXCLUDED.state = 'started' THEN EXCLUDED.started_at ELSE e.started_at END,
                ended_at = EXCLUDED.ended_at, codec = EXCLUDED.codec, result = EXCLUDED.result, error = EXCLUDED.error
            -- What is recorded never changes.
            WHERE e.state <> 'recorded'
        ),
        counted AS MATERIALIZED (
            SELECT l.thread_key, l.run_id, l.tenant, n.model, n.input_tokens, n.output_tokens, n.total_tokens,
                   n.cost_nanos, n.seq
            FROM UNNEST((SELECT $84::int[]), $85::text[], $86::bigint[], $87::bigint[], $88::bigint[], $89::bigint[],
                        $90::bigint[])
                AS n (member, model, input_tokens, output_tokens, total_tokens, cost_nanos, seq)
            JOIN live l ON l.member = n.member AND NOT l.gone
        ),
        put_usage AS (
            INSERT INTO usage_totals AS u (thread_key, run_id, model, tenant, input_tokens, output_tokens, total_tokens,
                                           cost_nanos, seq)
            SELECT c.thread_key, c.run_id, c.model, c.tenant, c.input_tokens, c.output_tokens, c.total_tokens,
                   c.cost_nanos, c.seq
            FROM counted c
            ON CONFLICT (thread_key, run_id, model) DO UPDATE SET
                input_tokens = u.input_tokens + EXCLUDED.input_tokens,
                output_tokens = u.output_tokens + EXCLUDED.output_tokens,
                total_tokens = u.total_tokens + EXCLUDED.total_tokens,
                cost_nanos = u.cost_nanos + EXCLUDED.cost_nanos, seq = EXCLUDED.seq
            -- A commit repeated after its answer was lost was counted already.
            WHERE u.seq < EXCLUDED.seq
            RETURNING u.thread_key, u.run_id, u.model
        ),
        put_thread_usage AS (
            INSERT INTO usage_totals AS u (thread_key, run_id, model, tenant, input_tokens, output_tokens, total_tokens,
                                           cost_nanos, seq)
            SELECT c.thread_key, '00000000-0000-0000-0000-000000000000'::uuid, c.model, c.tenant, c.input_tokens,
                   c.output_tokens, c.total_tokens, c.cost_nanos, 0
            FROM counted c
            JOIN put_usage p ON p.thread_key = c.thread_key AND p.run_id = c.run_id AND p.model = c.model
            ON CONFLICT (thread_key, run_id, model) DO UPDATE SET
                input_tokens = u.input_tokens + EXCLUDED.input_tokens,
                output_tokens = u.output_tokens + EXCLUDED.output_tokens,
                total_tokens = u.total_tokens + EXCLUDED.total_tokens,
                cost_nanos = u.cost_nanos + EXCLUDED.cost_nanos
        )"
    };
}

/// Locks what is live, and writes it: parameters 36-49, and the execution log: 50-60.
macro_rules! live_members {
    () => {
        concat!(
            "WITH clock AS MATERIALIZED (SELECT ",
            now!(),
            " AS now),
            wanted AS MATERIALIZED (
                SELECT member, thread_key, run_id, epoch, input_applied, progress, head, end_status, end_error,
                       rest_status, view, last_event, announce
                FROM UNNEST((SELECT $36::int[]), $37::uuid[], $38::uuid[], $39::bigint[], $40::bool[], $41::bool[],
                            $42::text[], $43::text[], $44::bytea[], $45::text[], $46::bytea[], $47::bigint[], $48::bool[])
                    AS m (member, thread_key, run_id, epoch, input_applied, progress, head, end_status, end_error,
                          rest_status, view, last_event, announce)
            ),
            snap AS MATERIALIZED (
                SELECT thread_key, revision FROM threads WHERE thread_key = ANY ((SELECT $37::uuid[])::uuid[])
            ),
            held AS MATERIALIZED (
                -- Threads before runs, in the order of their keys: everybody locks like this.
                SELECT thread_key, revision FROM threads WHERE thread_key = ANY ((SELECT $37::uuid[])::uuid[])
                ORDER BY thread_key FOR NO KEY UPDATE
            ),
            live AS MATERIALIZED (
                SELECT m.member, m.thread_key, m.run_id, m.input_applied, m.progress, m.head, m.end_status, m.end_error,
                       m.rest_status, m.view, m.last_event, m.announce, r.tenant,
                       (r.temporary AND m.end_status IS NOT NULL) AS gone,
                       -- A run was inserted between this statement's snapshot and its lock on the thread.
                       (h.revision <> s.revision) AS moved
                FROM wanted m
                JOIN held h ON h.thread_key = m.thread_key
                JOIN snap s ON s.thread_key = m.thread_key
                JOIN runs r ON r.thread_key = m.thread_key AND r.run_id = m.run_id
                -- The fence.
                WHERE r.status = 'running' AND r.lease_epoch = m.epoch AND ($49::uuid IS NULL OR r.tenant = $49)
                ORDER BY r.thread_key, r.run_id
                FOR UPDATE OF r
            ), ",
            row_inserts!(),
            ",
            put_executions AS (
                INSERT INTO task_log (thread_key, started_at, run_id, tenant, ended_at, step, attempt, codec, ns,
                                      checkpoint_id, task_id, node, outcome, detail)
                SELECT l.thread_key, x.started_at, l.run_id, l.tenant, x.ended_at, x.step, x.attempt, 0, x.ns,
                       x.checkpoint_id, x.task_id, x.node, x.outcome, x.detail
                FROM UNNEST((SELECT $50::int[]), $51::bigint[], $52::bigint[], $53::bigint[], $54::int[], $55::text[],
                            $56::text[], $57::text[], $58::text[], $59::text[], $60::bytea[])
                    AS x (member, started_at, ended_at, step, attempt, ns, checkpoint_id, task_id, node, outcome, detail)
                JOIN live l ON l.member = x.member AND NOT l.gone
                ON CONFLICT (thread_key, started_at, run_id) DO NOTHING
            ),
            put_runs AS (
                UPDATE runs r SET
                    -- A checkpoint is progress: this is the first attempt since.
                    attempts = CASE WHEN l.progress THEN 1 ELSE r.attempts END,
                    input_applied = r.input_applied OR l.input_applied,
                    status = COALESCE(l.end_status, r.status),
                    error = COALESCE(l.end_error, r.error),
                    lease_until = CASE WHEN l.end_status IS NULL THEN r.lease_until ELSE 0 END,
                    updated_at = clock.now
                FROM live l, clock
                WHERE r.thread_key = l.thread_key AND r.run_id = l.run_id AND NOT l.gone
                  AND (l.progress OR l.input_applied OR l.end_status IS NOT NULL)
            ),
            put_threads AS (
                UPDATE threads t SET
                    head = COALESCE(l.head, t.head),
                    last_event = GREATEST(t.last_event, l.last_event),
                    rest_status = COALESCE(l.rest_status, t.rest_status),
                    error = CASE WHEN l.rest_status IS NULL THEN t.error ELSE l.end_error END,
                    view = CASE WHEN l.rest_status IS NULL THEN t.view ELSE l.view END,
                    updated_at = CASE WHEN l.head IS NULL AND l.rest_status IS NULL THEN t.updated_at
                                      ELSE clock.now END,
                    state_updated_at = CASE WHEN l.head IS NULL AND l.rest_status IS NULL THEN t.state_updated_at
                                            ELSE clock.now END
                FROM live l, clock
                WHERE t.thread_key = l.thread_key AND NOT l.gone
                  AND (l.head IS NOT NULL OR l.last_event > 0 OR l.rest_status IS NOT NULL)
            ),
            -- Streams of other replicas read the log when it grows.
            shown AS MATERIALIZED (
                SELECT pg_notify('session_store', 'v:' || thread_key) FROM live WHERE last_event > 0 AND NOT gone
            )"
        )
    };
}

/// The end of a batch in which no run ends.
macro_rules! goes_on {
    () => {
        " SELECT member, FALSE AS waiting, (SELECT COUNT(*) FROM shown) AS shown FROM live"
    };
}

/// The end of a batch in which runs end: temporary threads go, and whoever waits is told.
macro_rules! ends {
    () => {
        ",
    drop_lookup AS (DELETE FROM run_lookup x USING runs r, live l
                    WHERE l.gone AND r.thread_key = l.thread_key AND x.run_id = r.run_id),
    drop_runs AS (DELETE FROM runs x USING live l WHERE l.gone AND x.thread_key = l.thread_key),
    drop_checkpoints AS (DELETE FROM checkpoints x USING live l WHERE l.gone AND x.thread_key = l.thread_key),
    drop_task_writes AS (DELETE FROM task_writes x USING live l WHERE l.gone AND x.thread_key = l.thread_key),
    drop_payloads AS (DELETE FROM payloads x USING live l WHERE l.gone AND x.thread_key = l.thread_key),
    drop_log AS (DELETE FROM channel_log x USING live l WHERE l.gone AND x.thread_key = l.thread_key),
    drop_interrupts AS (DELETE FROM interrupts x USING live l WHERE l.gone AND x.thread_key = l.thread_key),
    drop_branches AS (DELETE FROM branches x USING live l WHERE l.gone AND x.thread_key = l.thread_key),
    drop_events AS (DELETE FROM events x USING live l WHERE l.gone AND x.thread_key = l.thread_key),
    drop_effects AS (DELETE FROM effects x USING live l WHERE l.gone AND x.thread_key = l.thread_key),
    drop_executions AS (DELETE FROM task_log x USING live l WHERE l.gone AND x.thread_key = l.thread_key),
    drop_usage AS (DELETE FROM usage_totals x USING live l WHERE l.gone AND x.thread_key = l.thread_key),
    drop_threads AS (DELETE FROM threads x USING live l WHERE l.gone AND x.thread_key = l.thread_key),
    ended AS MATERIALIZED (
        SELECT l.member, l.run_id, l.announce,
               -- With an old snapshot: perhaps. A needless look costs less than a run that waits for the next poll.
               (NOT l.gone AND (l.moved OR EXISTS (SELECT 1 FROM runs p
                                                   WHERE p.thread_key = l.thread_key AND p.status = 'pending')))
               AS waiting
        FROM live l WHERE l.end_status IS NOT NULL
    ),
    told AS MATERIALIZED (
        SELECT pg_notify('session_store', 'e:' || run_id) FROM ended WHERE announce
        UNION ALL
        SELECT pg_notify('session_store', 'p') FROM ended WHERE waiting
    )
    SELECT l.member, COALESCE(e.waiting, FALSE) AS waiting, (SELECT COUNT(*) FROM told) AS told,
           (SELECT COUNT(*) FROM shown) AS shown
    FROM live l LEFT JOIN ended e ON e.member = l.member"
    };
}

/// A batch in which no run ends.
const COMMIT: &str = concat!(live_members!(), goes_on!());

/// The same with extras.
const COMMIT_EXTRA: &str = concat!(live_members!(), extra_inserts!(), goes_on!());

/// A batch in which runs end.
const COMMIT_ENDS: &str = concat!(live_members!(), ends!());

/// The same with extras.
const COMMIT_EXTRA_ENDS: &str = concat!(live_members!(), extra_inserts!(), ends!());

/// Inserts for a locked thread: parameters 36-41.
const INSERT_STATE: &str = concat!(
    "WITH clock AS MATERIALIZED (SELECT ",
    now!(),
    " AS now),
    live AS (SELECT 0 AS member, $36::uuid AS thread_key, $37::uuid AS tenant, FALSE AS gone), ",
    row_inserts!(),
    ", shown AS MATERIALIZED (SELECT pg_notify('session_store', 'v:' || $36::uuid::text) WHERE $41::bigint > 0)
      UPDATE threads t SET head = COALESCE($38, t.head), rest_status = $39, error = NULL, view = $40,
                           last_event = GREATEST(t.last_event, $41),
                           updated_at = clock.now, state_updated_at = clock.now
      FROM clock WHERE t.thread_key = $36 AND (SELECT COUNT(*) FROM shown) >= 0"
);

impl PostgresStorage {
    pub(super) async fn commit_batch(&self, scope: &Scope, batch: &[StepCommit]) -> Result<Vec<CommitOutcome>> {
        let mut outcomes = vec![CommitOutcome::LeaseLost; batch.len()];
        let mut left: Vec<usize> = (0..batch.len()).collect();
        // One statement touches a thread once; a second member of the same thread goes into the next one.
        while !left.is_empty() {
            // Of one only where tables are distributed by thread.
            let mut threads = HashSet::new();
            let most = if self.distributed { 1 } else { usize::MAX };
            let (now, later): (Vec<usize>, Vec<usize>) =
                left.into_iter().partition(|index| threads.len() < most && threads.insert(batch[*index].lease.thread));
            self.commit_members(scope, batch, &now, &mut outcomes).await?;
            left = later;
        }
        Ok(outcomes)
    }

    async fn commit_members(
        &self,
        scope: &Scope,
        batch: &[StepCommit],
        indexes: &[usize],
        outcomes: &mut [CommitOutcome],
    ) -> Result<()> {
        let mut columns = Rows::default();
        let mut members = Members::default();
        let mut executions = Executions::default();
        let mut extras = Extras::default();
        for (member, index) in (0_i32..).zip(indexes) {
            let step = &batch[*index];
            columns.push(member, &step.rows, &step.events);
            members.push(member, step);
            executions.push(member, &step.rows.executions);
            extras.push(member, &step.rows);
        }
        let any_ends = indexes.iter().any(|index| batch[*index].end.is_some());
        let query = sqlx::query(match (extras.is_empty(), any_ends) {
            (true, false) => COMMIT,
            (true, true) => COMMIT_ENDS,
            (false, false) => COMMIT_EXTRA,
            (false, true) => COMMIT_EXTRA_ENDS,
        });
        let query = executions.bind(members.bind(columns.bind(query)).bind(scope.filter()));
        let query = if extras.is_empty() { query } else { extras.bind(query) };
        let hooks: Vec<(Lease, &RunEnd)> = indexes
            .iter()
            .filter_map(|index| Some((batch[*index].lease, batch[*index].end.as_ref()?)))
            .filter(|(_, end)| end.webhook.is_some())
            .collect();
        let rows = if hooks.is_empty() {
            let mut session = self.session().await?;
            let rows = query.fetch_all(session.conn()).await.map_err(driver_error)?;
            self.wrote(session).await?;
            rows
        } else {
            // Webhooks copy from runs that the end may delete: first, behind the same locks.
            let mut transaction = self.begin().await?;
            let threads: Vec<uuid::Uuid> = indexes.iter().map(|index| batch[*index].lease.thread.0).collect();
            sqlx::query("SELECT 1 FROM threads WHERE thread_key = ANY ($1) ORDER BY thread_key FOR NO KEY UPDATE")
                .bind(threads)
                .execute(&mut *transaction)
                .await
                .map_err(driver_error)?;
            for (lease, end) in hooks {
                webhooks::ended_by(&mut transaction, lease, end).await?;
            }
            let rows = query.fetch_all(&mut *transaction).await.map_err(driver_error)?;
            self.commit(transaction).await?;
            rows
        };
        for row in rows {
            let member = usize::try_from(get::<i32>(&row, "member")?).unwrap_or(usize::MAX);
            let Some(index) = indexes.get(member) else { continue };
            outcomes[*index] = CommitOutcome::Committed;
            let step = &batch[*index];
            if !step.events.is_empty() {
                self.tell([Notice::Events(step.lease.thread)]);
            }
            if step.end.is_some() {
                self.tell([Notice::RunEnded(step.lease.run_id)]);
            }
            if get(&row, "waiting")? {
                self.tell([Notice::RunPending]);
            }
        }
        Ok(())
    }

    pub(super) async fn append(&self, scope: &Scope, lease: &Lease, events: &[StoredEvent]) -> Result<CommitOutcome> {
        let step = StepCommit {
            lease: *lease,
            rows: StepRows::default(),
            events: events.to_vec(),
            input_applied: false,
            end: None,
        };
        Ok(self.commit_batch(scope, &[step]).await?[0])
    }

    pub(super) async fn change_state(&self, scope: &Scope, change: &StateCommit) -> Result<StateOutcome> {
        let mut transaction = self.begin().await?;
        let outcome = change_state(&mut transaction, scope, change).await?;
        if outcome == StateOutcome::Committed {
            self.commit(transaction).await?;
            if !change.events.is_empty() {
                self.tell([Notice::Events(change.thread_id.key(scope.tenant()))]);
            }
        }
        Ok(outcome)
    }
}

async fn change_state(conn: &mut PgConnection, scope: &Scope, change: &StateCommit) -> Result<StateOutcome> {
    let tenant = scope.tenant();
    let key = change.thread_id.key(tenant);
    if !lock_thread(conn, key).await? {
        return Ok(StateOutcome::ThreadMissing);
    }
    // A second statement: its snapshot is younger than the lock.
    let row = sqlx::query(
        "SELECT t.head, t.is_foreign, t.closed IS NOT NULL AS is_closed,
                EXISTS (SELECT 1 FROM runs a
                        WHERE a.thread_key = t.thread_key AND a.status IN ('pending', 'running')) AS busy,
                ($2::text IS NULL OR EXISTS (SELECT 1 FROM checkpoints c
                                             WHERE c.thread_key = t.thread_key AND c.ns = $2 AND c.checkpoint_id = $3))
                AS has_base
         FROM threads t WHERE t.thread_key = $1",
    )
    .bind(key.0)
    .bind(change.base.as_ref().map(|(ns, _)| ns))
    .bind(change.base.as_ref().map(|(_, id)| id))
    .fetch_one(&mut *conn)
    .await
    .map_err(driver_error)?;
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
            && !branches::stands_at(conn, key, branch, Some(to)).await?
        {
            return Ok(StateOutcome::HeadMoved);
        }
        branches::leave(conn, key, to, moves).await?;
    }
    let mut columns = Rows::default();
    columns.push(0, &change.rows, &change.events);
    columns
        .bind(sqlx::query(INSERT_STATE))
        .bind(key.0)
        .bind(tenant)
        .bind(&change.rows.head)
        .bind(change.thread_status.as_str())
        .bind(change.view.as_ref().map(encoding::bytes))
        .bind(change.events.iter().map(|event| event.id.0).max().unwrap_or(0))
        .execute(conn)
        .await
        .map_err(driver_error)?;
    Ok(StateOutcome::Committed)
}
