//! Why a run is where it is: what its row, its queue and its checkpoints tell, in fields and in words.

use std::collections::{HashMap, HashSet};

use serde::Serialize;
use serde_json::json;

use super::{Runtime, RuntimeError};
use crate::model::{
    CheckpointId, InterruptStatus, Json, LoggedTask, RunId, RunStatus, STEP_OF_NOTHING, Scope, TaskExecution,
    TaskOutcome, ThreadId, Timestamp,
};
use crate::storage::{CheckpointFilter, ExecutionFilter, InterruptFilter, RunDetail, RunExplained};

/// Checkpoints of a run whose supersteps are compared, the newest ones; and questions shown.
const COMPARED: i64 = 200;
/// Executions of its tasks that are compared, the newest ones.
const COMPARED_TASKS: i64 = 1_000;
/// Tasks with failed attempts that are named.
const SHOWN_RETRIES: usize = 20;
const SHOWN_QUESTIONS: i64 = 20;

/// What a run waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum WaitsFor {
    /// It is not due: `after_seconds`.
    Time { until: Timestamp },
    /// Another run of its thread goes first.
    EarlierRun { run_id: RunId, status: &'static str, ahead: i64 },
    /// A process with a free place. `here`: places of the process that answers; `None`: it executes none.
    Worker { pending: i64, running: i64, here: Option<Places> },
    /// Its worker is silent: any other may take it over.
    Takeover { worker: Option<String>, since: Timestamp },
    /// It was asked to stop, and has not stopped yet.
    Stop,
    /// Answers to its questions, or somebody to go on after a breakpoint, when there are none.
    Answer { interrupt_ids: Vec<String> },
    /// Somebody: it was set aside after too many attempts without progress.
    Quarantine,
}

/// Runs that a process executes at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Places {
    pub all: usize,
    pub free: usize,
}

/// A superstep, and how long it took from its plan to its commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Superstep {
    pub step: i64,
    pub nodes: Vec<String>,
    pub ms: i64,
    pub checkpoint_id: CheckpointId,
}

/// An execution of a task that took longer than the others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SlowestNode {
    pub node: String,
    pub ms: i64,
    pub step: i64,
    pub task_id: String,
    pub checkpoint_ns: String,
}

/// A task with attempts that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Retried {
    pub node: String,
    pub task_id: String,
    pub attempts: usize,
    pub failed: usize,
    /// How the last of them failed.
    pub error: String,
}

/// A run explained.
#[derive(Debug, Clone)]
pub struct Explanation {
    pub detail: RunDetail,
    pub now: Timestamp,
    pub waits_for: Option<WaitsFor>,
    /// Among its newest `COMPARED` checkpoints.
    pub slowest: Option<Superstep>,
    /// Among its newest `COMPARED_TASKS` executions. A node that is a graph counts by the nodes of that graph.
    pub slowest_node: Option<SlowestNode>,
    /// The latest first.
    pub retried: Vec<Retried>,
    pub summary: String,
}

impl Explanation {
    /// How long it waited for a worker, in milliseconds; so far, if it still does.
    pub fn queue_ms(&self) -> Option<i64> {
        let is_pending = self.detail.run.status == RunStatus::Pending;
        let until = self.detail.started_at.or(is_pending.then_some(self.now))?;
        Some(millis(self.detail.run_at, until))
    }

    pub fn ended_at(&self) -> Option<Timestamp> {
        (!self.detail.run.status.is_active()).then_some(self.detail.run.updated_at)
    }
}

fn millis(from: Timestamp, to: Timestamp) -> i64 {
    (to.0 - from.0).max(0) / 1_000
}

impl Runtime {
    /// Explains a run of any thread, or of the given one only.
    pub async fn explain(
        &self,
        scope: &Scope,
        thread: Option<&ThreadId>,
        run_id: RunId,
    ) -> Result<Explanation, RuntimeError> {
        let found = self.storage().explain_run(scope, run_id).await?;
        let found = found.filter(|found| thread.is_none_or(|thread| *thread == found.detail.run.thread_id));
        let found = found.ok_or(RuntimeError::RunNotFound(run_id))?;
        let waits_for = self.waits_for(scope, &found).await?;
        let slowest = self.slowest(scope, &found.detail).await?;
        let filter = ExecutionFilter { run_id: Some(run_id), ..ExecutionFilter::default() };
        let key = found.detail.run.thread_key;
        let executions = self.storage().list_executions(scope, key, &filter, None, COMPARED_TASKS).await?;
        let (slowest_node, retried) = (slowest_node(&executions), retried(&executions));
        let summary = summary(&found, waits_for.as_ref());
        Ok(Explanation { detail: found.detail, now: found.now, waits_for, slowest, slowest_node, retried, summary })
    }

    /// The runs that this process executes at once.
    pub fn places(&self) -> Places {
        Places { all: self.settings().concurrency, free: self.inner.free_slots() }
    }

    async fn waits_for(&self, scope: &Scope, found: &RunExplained) -> Result<Option<WaitsFor>, RuntimeError> {
        let detail = &found.detail;
        Ok(match detail.run.status {
            RunStatus::Pending if detail.run_at > found.now => Some(WaitsFor::Time { until: detail.run_at }),
            RunStatus::Pending => match found.behind {
                Some((run_id, status)) => {
                    Some(WaitsFor::EarlierRun { run_id, status: status.as_str(), ahead: found.ahead })
                }
                None => {
                    let (pending, running) = self.storage().count_active(scope).await?;
                    let here = self.settings().claims.then(|| self.places());
                    Some(WaitsFor::Worker { pending, running, here })
                }
            },
            RunStatus::Running => match detail.lease_until {
                Some(since) if since <= found.now => Some(WaitsFor::Takeover { worker: detail.worker.clone(), since }),
                _ => detail.cancel.is_some().then_some(WaitsFor::Stop),
            },
            RunStatus::Error => {
                let class = detail.run.error.as_ref().map(|error| error.error.as_str());
                (class == Some("RunQuarantined")).then_some(WaitsFor::Quarantine)
            }
            RunStatus::Success => self.questions_of(scope, detail).await?,
            RunStatus::Timeout | RunStatus::Interrupted => None,
        })
    }

    /// What a run that ended well left open: it stopped to ask, or at a breakpoint, and nothing has come since.
    async fn questions_of(&self, scope: &Scope, detail: &RunDetail) -> Result<Option<WaitsFor>, RuntimeError> {
        let head = self.storage().load_heads(scope, &[detail.run.thread_key]).await?.pop();
        let Some((_, head)) = head.filter(|(_, head)| {
            // A run that resumes leaves the last word to its own checkpoint, or to what it wrote on the one before.
            head.row.run_id == Some(detail.run.run_id)
                || head.writes.iter().any(|writes| writes.run_id == Some(detail.run.run_id))
        }) else {
            return Ok(None);
        };
        if head.row.next.is_empty() {
            return Ok(None);
        }
        let filter = InterruptFilter {
            status: Some(InterruptStatus::Pending),
            thread: Some(detail.run.thread_id.clone()),
            ..InterruptFilter::default()
        };
        let found = self.storage().list_interrupts(scope, &filter, true, None, SHOWN_QUESTIONS).await?;
        let interrupt_ids = found.into_iter().map(|(_, question)| question.interrupt_id).collect();
        Ok(Some(WaitsFor::Answer { interrupt_ids }))
    }

    async fn slowest(&self, scope: &Scope, detail: &RunDetail) -> Result<Option<Superstep>, RuntimeError> {
        let metadata = Some(Json::from(json!({"run_id": detail.run.run_id})));
        let filter = CheckpointFilter { metadata, ..CheckpointFilter::default() };
        let rows = self.storage().list_checkpoints(scope, detail.run.thread_key, &filter, COMPARED).await?;
        let by_id: HashMap<&str, _> = rows.iter().map(|stored| (stored.row.id.as_str(), &stored.row)).collect();
        let supersteps = rows.iter().filter_map(|stored| {
            let before = by_id.get(stored.row.parent.as_deref()?)?;
            (before.step != STEP_OF_NOTHING).then(|| Superstep {
                step: stored.row.step,
                nodes: before.next.clone(),
                ms: millis(before.at, stored.row.at),
                checkpoint_id: stored.row.id.clone(),
            })
        });
        Ok(supersteps.max_by_key(|superstep| superstep.ms))
    }
}

/// The slowest of these executions; what a graph inside a task took is told of its own tasks, not of the one around.
fn slowest_node(executions: &[LoggedTask]) -> Option<SlowestNode> {
    let segments = executions.iter().flat_map(|logged| logged.execution.ns.split('|'));
    let around: HashSet<&str> = segments.filter_map(|segment| segment.rsplit_once(':')).map(|(_, task)| task).collect();
    let inner = executions.iter().map(|logged| &logged.execution).filter(|it| !around.contains(it.task_id.as_str()));
    let slowest = inner.max_by_key(|execution| execution.ended_at.0 - execution.started_at.0)?;
    Some(SlowestNode {
        node: slowest.node.clone(),
        ms: millis(slowest.started_at, slowest.ended_at),
        step: slowest.step,
        task_id: slowest.task_id.clone(),
        checkpoint_ns: slowest.ns.clone(),
    })
}

/// The tasks of these executions, the latest first, that had failed attempts.
fn retried(executions: &[LoggedTask]) -> Vec<Retried> {
    let mut attempts: HashMap<&str, usize> = HashMap::new();
    let mut tasks: Vec<Retried> = Vec::new();
    for TaskExecution { task_id, node, outcome, detail, .. } in executions.iter().map(|logged| &logged.execution) {
        *attempts.entry(task_id).or_default() += 1;
        if *outcome != TaskOutcome::Error {
            continue;
        }
        if let Some(task) = tasks.iter_mut().find(|task| task.task_id == *task_id) {
            task.failed += 1;
        } else if tasks.len() < SHOWN_RETRIES {
            let error = detail.error.as_ref().map(|error| format!("{}: {}", error.error, error.message));
            let (node, task_id, error) = (node.clone(), task_id.clone(), error.unwrap_or_default());
            tasks.push(Retried { node, task_id, attempts: 0, failed: 1, error });
        }
    }
    for task in &mut tasks {
        task.attempts = attempts.get(task.task_id.as_str()).copied().unwrap_or(0);
    }
    tasks
}

/// One sentence or two, for people.
fn summary(found: &RunExplained, waits_for: Option<&WaitsFor>) -> String {
    let RunExplained { detail, .. } = found;
    let worker = detail.worker.as_deref().unwrap_or("a worker");
    let at = |at: Timestamp| at.to_iso();
    let waits = match waits_for {
        Some(WaitsFor::Time { until }) => format!("It is not due before {}.", at(*until)),
        Some(WaitsFor::EarlierRun { run_id, status, ahead }) => format!(
            "It waits for run {run_id} of its thread, which is {status}: one run executes per thread, and {ahead} go first."
        ),
        Some(WaitsFor::Worker { running, here, .. }) => match here {
            Some(Places { free: 0, all }) => format!(
                "It waits for a place: all {all} of this process are taken, and {running} runs are executed in all."
            ),
            Some(_) => "It is about to be taken by a worker.".to_owned(),
            None => "It waits for a process that executes runs: this one does not (role api).".to_owned(),
        },
        Some(WaitsFor::Takeover { since, .. }) => {
            format!("Its worker {worker} has been silent since {}: another one takes it over.", at(*since))
        }
        Some(WaitsFor::Stop) => "It was asked to stop, and stops when its nodes notice.".to_owned(),
        Some(WaitsFor::Answer { interrupt_ids }) if interrupt_ids.is_empty() => {
            "It stopped before or after a node, as it was told: a run with null input goes on.".to_owned()
        }
        Some(WaitsFor::Answer { interrupt_ids }) => format!(
            "It stopped to ask: POST /threads/{}/interrupts/{}/answer goes on.",
            detail.run.thread_id,
            interrupt_ids.first().map_or("", String::as_str)
        ),
        Some(WaitsFor::Quarantine) => {
            format!("It was set aside after {} attempts without progress.", detail.run.attempts)
        }
        None if detail.run.status == RunStatus::Running => {
            let until = detail.lease_until.map(at).unwrap_or_default();
            format!("It is executed by {worker}, whose lease holds until {until} and is renewed.")
        }
        None => match &detail.run.error {
            Some(error) => format!("It failed with {}: {}", error.error, error.message),
            None => "Nothing is left to do for it.".to_owned(),
        },
    };
    let by = detail.run.actor.as_ref().map(|by| format!(" by {by}")).unwrap_or_default();
    let stopped = detail.cancel.as_ref().map(|cancel| {
        let by = cancel.actor.as_ref().map(|by| format!(" by {by}")).unwrap_or_default();
        let reason = cancel.reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
        format!(" Its end was asked for{by}{reason}.")
    });
    format!(
        "Run {} was created{by} and is {}. {waits}{}",
        detail.run.run_id,
        detail.run.status.as_str(),
        stopped.unwrap_or_default()
    )
}
