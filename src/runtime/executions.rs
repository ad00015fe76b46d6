//! The execution log: what becomes of each execution of a task. Its rows are committed with the superstep.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use super::executor::Around;
use super::shared::{Shared, lock};
use crate::engine::EngineError;
use crate::engine::Packet;
use crate::engine::execution::{Execution, Finished, Job};
use crate::engine::record::TaskRecord;
use crate::engine::spec::GraphSpec;
use crate::engine::step::{Task, is_control};
use crate::model::{ErrorInfo, TaskDetail, TaskExecution, TaskOutcome, Timestamp, UsageTotals, special};

/// The longest message of an error that is logged, in bytes.
const MAX_MESSAGE: usize = 2_000;

/// One task of the superstep in progress, shared by its job and whoever records its end.
#[derive(Debug)]
pub(crate) struct Track {
    /// The nodes that led here.
    from: Vec<String>,
    /// The attempt in progress; `None`: none has begun.
    attempt: Mutex<Option<Attempt>>,
}

#[derive(Debug, Clone, Copy)]
struct Attempt {
    number: u32,
    started_at: Timestamp,
    ended_at: Option<Timestamp>,
}

impl Track {
    /// An attempt begins.
    pub(crate) fn begin(&self, shared: &Shared, number: u32) {
        *lock(&self.attempt) = Some(Attempt { number, started_at: shared.start_time(), ended_at: None });
    }

    /// It has ended; that may be recorded later, when its turn comes.
    pub(crate) fn end(&self, shared: &Shared) {
        if let Some(attempt) = &mut *lock(&self.attempt) {
            attempt.ended_at = Some(shared.runtime.clock().now());
        }
    }

    /// Logs an attempt that failed and is followed by another.
    pub(crate) fn log_retry(&self, shared: &Shared, around: &Around, task: &Task, error: &EngineError) {
        let detail = TaskDetail { error: Some(info(error)), ..TaskDetail::default() };
        let place = Place { ns: &around.ns, checkpoint_id: &around.checkpoint_id, step: around.step };
        if let Some(row) = self.row(shared, place, task, TaskOutcome::Error, detail) {
            shared.log(row);
            // The next one may come late.
            shared.push(false);
        }
    }

    fn row(
        &self,
        shared: &Shared,
        at: Place<'_>,
        task: &Task,
        outcome: TaskOutcome,
        detail: TaskDetail,
    ) -> Option<TaskExecution> {
        let attempt = lock(&self.attempt).take()?;
        Some(TaskExecution {
            started_at: attempt.started_at,
            // A clock that was set back makes no negative times.
            ended_at: attempt.ended_at.unwrap_or_else(|| shared.runtime.clock().now()).max(attempt.started_at),
            ns: at.ns.to_owned(),
            checkpoint_id: at.checkpoint_id.to_owned(),
            task_id: task.id.to_string(),
            node: task.name.to_string(),
            step: at.step,
            attempt: i32::try_from(attempt.number).unwrap_or(i32::MAX),
            outcome,
            detail: TaskDetail { from: self.from.clone(), ..detail },
        })
    }
}

/// Where a superstep happens.
#[derive(Clone, Copy)]
struct Place<'a> {
    ns: &'a str,
    checkpoint_id: &'a str,
    step: i64,
}

impl Place<'_> {
    fn of<'a>(ns: &'a str, execution: &'a Execution) -> Place<'a> {
        Place { ns, checkpoint_id: execution.checkpoint_id(), step: execution.step() }
    }
}

/// The tasks of a graph's superstep, and which nodes led to the next ones.
#[derive(Debug, Default)]
pub(crate) struct Trail {
    open: HashMap<Arc<str>, Arc<Track>>,
    /// By node: who led to it since it ran last.
    led: HashMap<String, Vec<String>>,
}

impl Trail {
    /// A superstep begins.
    pub(crate) fn plan(&mut self, shared: &Shared, jobs: &[Job]) {
        if !shared.runtime.settings().task_log {
            return;
        }
        self.open.clear();
        for job in jobs.iter().filter(|job| !job.task.is_hidden()) {
            let from = self.led.get(&*job.task.name).cloned().unwrap_or_default();
            self.add(&job.task, from);
        }
        for job in jobs {
            self.led.remove(&*job.task.name);
        }
    }

    fn add(&mut self, task: &Task, from: Vec<String>) {
        let track = Track { from, attempt: Mutex::default() };
        self.open.insert(Arc::clone(&task.id), Arc::new(track));
    }

    /// Where a job tells its attempts; `None` when nothing is logged.
    pub(crate) fn track(&self, task_id: &str) -> Option<Arc<Track>> {
        self.open.get(task_id).cloned()
    }

    /// Logs how a task ended, once the engine has taken that in.
    pub(crate) fn finish(
        &mut self,
        shared: &Shared,
        ns: &str,
        execution: &Execution,
        job: &Job,
        finished: &Finished,
        usage: &UsageTotals,
    ) {
        let mut detail = TaskDetail { usage: usage.clone(), ..TaskDetail::default() };
        let outcome = match finished {
            Finished::Done => {
                if let Some(record) = execution.record_of(&job.task.id) {
                    self.note_outputs(execution.spec(), &job.task, record, &mut detail);
                }
                TaskOutcome::Success
            }
            Finished::Handle(handler) => {
                detail.error = handler.handles.as_ref().map(|(_, error)| info(error));
                detail.next.push(handler.task.name.to_string());
                self.add_handler(job, handler);
                TaskOutcome::Error
            }
            Finished::Failed(error) => {
                detail.error = Some(info(error));
                if error.class == "CancelledError" { TaskOutcome::Cancelled } else { TaskOutcome::Error }
            }
            Finished::Interrupted(_) => TaskOutcome::Interrupted,
            Finished::Parent(_) => TaskOutcome::Success,
        };
        self.log(shared, ns, execution, &job.task, outcome, detail);
    }

    /// Logs a task whose end says nothing to its graph: stopped, or left for the graph around.
    pub(crate) fn log(
        &mut self,
        shared: &Shared,
        ns: &str,
        execution: &Execution,
        task: &Task,
        outcome: TaskOutcome,
        detail: TaskDetail,
    ) {
        let Some(track) = self.open.remove(&task.id) else { return };
        if let Some(row) = track.row(shared, Place::of(ns, execution), task, outcome, detail) {
            shared.log(row);
        }
    }

    /// Logs a task whose output came from a cache: attempt 0.
    pub(crate) fn cached(&mut self, shared: &Shared, ns: &str, execution: &Execution, job: &Job) {
        if let Some(track) = self.open.get(&job.task.id) {
            track.begin(shared, 0);
            self.finish(shared, ns, execution, job, &Finished::Done, &UsageTotals::default());
        }
    }

    fn add_handler(&mut self, failed: &Job, handler: &Job) {
        if self.open.contains_key(&failed.task.id) {
            self.add(&handler.task, vec![failed.task.name.to_string()]);
        }
    }

    /// What a task wrote, and where that leads.
    fn note_outputs(&mut self, spec: &GraphSpec, task: &Task, record: &TaskRecord, detail: &mut TaskDetail) {
        let add = |names: &mut Vec<String>, name: &str| {
            if !names.iter().any(|other| other == name) {
                names.push(name.to_owned());
            }
        };
        for (channel, value) in &record.writes {
            if is_control(channel) {
                continue;
            }
            if let Some(nodes) = spec.trigger_to_nodes.get(&**channel) {
                nodes.iter().for_each(|node| add(&mut detail.next, node));
            } else if **channel == *special::TASKS {
                if let Some(packet) = Packet::from_json(value) {
                    add(&mut detail.next, &packet.node);
                }
            } else {
                add(&mut detail.written, channel);
            }
        }
        for node in &detail.next {
            add(self.led.entry(node.clone()).or_default(), &task.name);
        }
    }
}

/// An error as task errors show it: whole, but not too long.
fn info(error: &EngineError) -> ErrorInfo {
    let mut message = error.text();
    if message.len() > MAX_MESSAGE {
        let mut end = MAX_MESSAGE;
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        message.truncate(end);
        message.push('…');
    }
    ErrorInfo { error: error.class.clone(), message }
}
