//! The rows of a commit turned into columns: one array per column, bound in the order of the statements of
//! [`super::commit`].

use std::collections::HashSet;

use sqlx::Postgres;
use sqlx::postgres::PgArguments;
use sqlx::query::Query;
use uuid::Uuid;

use crate::model::{Json, TaskExecution};
use crate::storage::encoding::{self, error_bytes, hide_nul};
use crate::storage::{CheckpointRow, LogRow, Payload, StepCommit, StepRows, StoredEvent, TaskWritesRow};

type PgQuery<'q> = Query<'q, Postgres, PgArguments>;

/// Parameters 1-12.
#[derive(Default)]
struct CheckpointColumns {
    member: Vec<i32>,
    ns: Vec<String>,
    checkpoint_id: Vec<String>,
    parent_id: Vec<Option<String>>,
    run_id: Vec<Option<Uuid>>,
    step: Vec<i64>,
    source: Vec<String>,
    created_at: Vec<i64>,
    metadata: Vec<String>,
    next_nodes: Vec<Vec<u8>>,
    body: Vec<Vec<u8>>,
    size_bytes: Vec<i64>,
}

impl CheckpointColumns {
    fn push(&mut self, member: i32, row: &CheckpointRow) {
        self.member.push(member);
        self.ns.push(row.ns.clone());
        self.checkpoint_id.push(row.id.clone());
        self.parent_id.push(row.parent.clone());
        self.run_id.push(row.run_id);
        self.step.push(row.step);
        self.source.push(row.source.as_str().to_owned());
        self.created_at.push(row.at.0);
        self.metadata.push(encoding::metadata_text(&row.metadata));
        self.next_nodes.push(encoding::bytes(&row.next.iter().map(|node| Json::from(node.as_str())).collect()));
        self.body.push(encoding::bytes(&row.body));
        self.size_bytes.push(row.bytes);
    }

    fn bind<'q>(self, query: PgQuery<'q>) -> PgQuery<'q> {
        let query = query.bind(self.member).bind(self.ns).bind(self.checkpoint_id).bind(self.parent_id);
        let query = query.bind(self.run_id).bind(self.step).bind(self.source).bind(self.created_at);
        query.bind(self.metadata).bind(self.next_nodes).bind(self.body).bind(self.size_bytes)
    }
}

/// Parameters 13-19.
#[derive(Default)]
struct TaskWritesColumns {
    member: Vec<i32>,
    ns: Vec<String>,
    checkpoint_id: Vec<String>,
    task_id: Vec<String>,
    run_id: Vec<Uuid>,
    path: Vec<String>,
    body: Vec<Vec<u8>>,
}

impl TaskWritesColumns {
    fn push(&mut self, member: i32, row: &TaskWritesRow) {
        self.member.push(member);
        self.ns.push(row.ns.clone());
        self.checkpoint_id.push(row.checkpoint_id.clone());
        self.task_id.push(row.task_id.clone());
        self.run_id.push(row.run_id.unwrap_or(Uuid::nil()));
        self.path.push(row.path.clone());
        self.body.push(encoding::bytes(&row.body));
    }

    fn bind<'q>(self, query: PgQuery<'q>) -> PgQuery<'q> {
        let query = query.bind(self.member).bind(self.ns).bind(self.checkpoint_id).bind(self.task_id);
        query.bind(self.run_id).bind(self.path).bind(self.body)
    }
}

/// Parameters 20-22.
#[derive(Default)]
struct PayloadColumns {
    member: Vec<i32>,
    hash: Vec<Vec<u8>>,
    value: Vec<Vec<u8>>,
}

impl PayloadColumns {
    fn push(&mut self, member: i32, payload: &Payload) {
        self.member.push(member);
        self.hash.push(payload.hash.to_vec());
        self.value.push(encoding::bytes(&payload.value));
    }

    fn bind<'q>(self, query: PgQuery<'q>) -> PgQuery<'q> {
        query.bind(self.member).bind(self.hash).bind(self.value)
    }
}

/// Parameters 23-30.
#[derive(Default)]
struct LogColumns {
    member: Vec<i32>,
    ns: Vec<String>,
    channel: Vec<String>,
    branch: Vec<i64>,
    start: Vec<i64>,
    count: Vec<i64>,
    run_id: Vec<Option<Uuid>>,
    items: Vec<Vec<u8>>,
}

impl LogColumns {
    fn push(&mut self, member: i32, row: &LogRow) {
        self.member.push(member);
        self.ns.push(row.ns.clone());
        self.channel.push(row.channel.clone());
        self.branch.push(row.branch);
        self.start.push(row.start);
        self.count.push(row.count);
        self.run_id.push(row.run_id);
        self.items.push(encoding::bytes(&row.items));
    }

    fn bind<'q>(self, query: PgQuery<'q>) -> PgQuery<'q> {
        let query = query.bind(self.member).bind(self.ns).bind(self.channel).bind(self.branch);
        query.bind(self.start).bind(self.count).bind(self.run_id).bind(self.items)
    }
}

/// Parameters 31-35.
#[derive(Default)]
struct EventColumns {
    member: Vec<i32>,
    event_id: Vec<i64>,
    run_id: Vec<Uuid>,
    name: Vec<String>,
    data: Vec<Vec<u8>>,
}

impl EventColumns {
    fn push(&mut self, member: i32, event: &StoredEvent) {
        self.member.push(member);
        self.event_id.push(event.id.0);
        self.run_id.push(event.run_id);
        self.name.push(hide_nul(&event.name).into_owned());
        self.data.push(encoding::bytes(&event.data));
    }

    fn bind<'q>(self, query: PgQuery<'q>) -> PgQuery<'q> {
        query.bind(self.member).bind(self.event_id).bind(self.run_id).bind(self.name).bind(self.data)
    }
}

/// The rows of all members: parameters 1-35.
#[derive(Default)]
pub(super) struct Rows {
    checkpoints: CheckpointColumns,
    task_writes: TaskWritesColumns,
    payloads: PayloadColumns,
    log: LogColumns,
    events: EventColumns,
}

impl Rows {
    /// Adds the rows of a member, each key once, as if they were inserted in order: of task writes the last counts (one
    /// statement may update a row once), of the rest the first.
    pub(super) fn push(&mut self, member: i32, rows: &StepRows, events: &[StoredEvent]) {
        let mut seen = HashSet::new();
        for row in rows.checkpoints.iter().filter(|row| seen.insert((&row.ns, &row.id))) {
            self.checkpoints.push(member, row);
        }
        let mut seen = HashSet::new();
        for row in rows.task_writes.iter().rev() {
            if seen.insert((&row.ns, &row.checkpoint_id, &row.task_id, row.run_id)) {
                self.task_writes.push(member, row);
            }
        }
        for payload in &rows.payloads {
            self.payloads.push(member, payload);
        }
        let mut seen = HashSet::new();
        for row in rows.log.iter().filter(|row| seen.insert((&row.ns, &row.channel, row.branch, row.start))) {
            self.log.push(member, row);
        }
        for event in events {
            self.events.push(member, event);
        }
    }

    pub(super) fn bind<'q>(self, query: PgQuery<'q>) -> PgQuery<'q> {
        let query = self.task_writes.bind(self.checkpoints.bind(query));
        self.events.bind(self.log.bind(self.payloads.bind(query)))
    }
}

/// The members of a batch: parameters 36-48.
#[derive(Default)]
pub(super) struct Members {
    member: Vec<i32>,
    thread: Vec<Uuid>,
    run: Vec<Uuid>,
    epoch: Vec<i64>,
    input_applied: Vec<bool>,
    progress: Vec<bool>,
    head: Vec<Option<String>>,
    end_status: Vec<Option<String>>,
    end_error: Vec<Option<Vec<u8>>>,
    rest_status: Vec<Option<String>>,
    view: Vec<Option<Vec<u8>>>,
    last_event: Vec<i64>,
    announce: Vec<bool>,
}

impl Members {
    pub(super) fn push(&mut self, member: i32, step: &StepCommit) {
        let end = step.end.as_ref();
        self.member.push(member);
        self.thread.push(step.lease.thread.0);
        self.run.push(step.lease.run_id);
        self.epoch.push(step.lease.epoch);
        self.input_applied.push(step.input_applied);
        self.progress.push(!step.rows.checkpoints.is_empty());
        self.head.push(step.rows.head.clone());
        self.end_status.push(end.map(|end| end.status.as_str().to_owned()));
        self.end_error.push(end.and_then(|end| end.error.as_ref()).map(error_bytes));
        self.rest_status.push(end.map(|end| end.thread_status.as_str().to_owned()));
        self.view.push(end.and_then(|end| end.view.as_ref()).map(encoding::bytes));
        self.last_event.push(step.events.iter().map(|event| event.id.0).max().unwrap_or(0));
        self.announce.push(end.is_some_and(|end| end.announce));
    }

    pub(super) fn bind<'q>(self, query: PgQuery<'q>) -> PgQuery<'q> {
        let query = query.bind(self.member).bind(self.thread).bind(self.run).bind(self.epoch).bind(self.input_applied);
        let query = query.bind(self.progress).bind(self.head).bind(self.end_status).bind(self.end_error);
        query.bind(self.rest_status).bind(self.view).bind(self.last_event).bind(self.announce)
    }
}

/// The execution log: parameters 50-60.
#[derive(Default)]
pub(super) struct Executions {
    member: Vec<i32>,
    started_at: Vec<i64>,
    ended_at: Vec<i64>,
    step: Vec<i64>,
    attempt: Vec<i32>,
    ns: Vec<String>,
    checkpoint_id: Vec<String>,
    task_id: Vec<String>,
    node: Vec<String>,
    outcome: Vec<&'static str>,
    detail: Vec<Vec<u8>>,
}

impl Executions {
    pub(super) fn push(&mut self, member: i32, rows: &[TaskExecution]) {
        for row in rows {
            self.member.push(member);
            self.started_at.push(row.started_at.0);
            self.ended_at.push(row.ended_at.0);
            self.step.push(row.step);
            self.attempt.push(row.attempt);
            self.ns.push(row.ns.clone());
            self.checkpoint_id.push(row.checkpoint_id.clone());
            self.task_id.push(row.task_id.clone());
            self.node.push(hide_nul(&row.node).into_owned());
            self.outcome.push(row.outcome.as_str());
            self.detail.push(encoding::bytes(&row.detail.to_json()));
        }
    }

    pub(super) fn bind<'q>(self, query: PgQuery<'q>) -> PgQuery<'q> {
        let query = query.bind(self.member).bind(self.started_at).bind(self.ended_at).bind(self.step);
        let query = query.bind(self.attempt).bind(self.ns).bind(self.checkpoint_id).bind(self.task_id);
        query.bind(self.node).bind(self.outcome).bind(self.detail)
    }
}
