//! What one run tells: gives events their ids and sends them to listeners, through the log if the run is resumable,
//! or if somebody in another process listens.

use std::sync::{Arc, Mutex};

use serde_json::json;

use super::Runtime;
use super::commit::{Committer, Told};
use super::live::LiveRun;
use super::shared::lock;
use crate::model::event::{RUN_BEGAN, RUN_ENDED};
use crate::model::{ErrorInfo, Event, EventId, Json, RunId, RunKwargs, RunStatus, ThreadKey, ThreadStatus};
use crate::storage::{ClaimedRun, StepRows, StoredEvent};

/// The way of a run's events: into the log first and to listeners second if they are stored, else to listeners at once.
pub(crate) struct Events {
    thread: ThreadKey,
    run_id: RunId,
    stored: bool,
    /// Ids are given and events queued under one lock: the log grows in the order of the ids.
    queue: Mutex<Queue>,
    runtime: Runtime,
    committer: Committer,
    live: Arc<LiveRun>,
}

#[derive(Default)]
struct Queue {
    /// The largest id of the thread so far; only this run gives out ids while it executes.
    last: i64,
    /// Events that refer to rows which are not queued yet, and those after them.
    held: Vec<Told>,
}

impl Events {
    pub(crate) fn new(
        claimed: &ClaimedRun,
        stored: bool,
        runtime: Runtime,
        committer: Committer,
        live: Arc<LiveRun>,
    ) -> Events {
        let (thread, run_id) = (claimed.lease.thread, claimed.run.run_id);
        let queue = Mutex::new(Queue { last: claimed.thread.last_event, held: Vec::new() });
        Events { thread, run_id, stored, queue, runtime, committer, live }
    }

    /// Tells an event. Stored ones reach listeners once they are committed.
    pub(crate) fn tell(&self, name: String, data: Json) {
        if self.is_stored() {
            return self.store(name, data, None, false);
        }
        self.tell_thread(&name, &data);
        self.live.send(Event { id: None, run_id: self.run_id, name, data });
    }

    pub(crate) fn is_stored(&self) -> bool {
        self.stored || self.live.is_wanted()
    }

    /// Stores an event, in `stored` form if that differs, then sends it. `hold`: it refers to rows that are not queued
    /// yet, and waits for [`Events::push`].
    pub(crate) fn store(&self, name: String, data: Json, stored: Option<(String, Json)>, hold: bool) {
        let millis = self.runtime.clock().now().millis();
        let mut queue = lock(&self.queue);
        let id = EventId::next(queue.last, millis);
        queue.last = id.0;
        let told = Told { event: Event { id: Some(id), run_id: self.run_id, name, data }, stored };
        if hold || !queue.held.is_empty() {
            queue.held.push(told);
        } else {
            self.committer.push_event(told);
        }
    }

    /// Queues rows, and with them the events that waited for them. `applied` is asked only if there is anything.
    pub(crate) fn push(&self, rows: StepRows, applied: impl FnOnce(&StepRows) -> bool, urgent: bool) {
        let mut queue = lock(&self.queue);
        let held = std::mem::take(&mut queue.held);
        if !held.is_empty() || !rows.is_empty() {
            let applied = applied(&rows);
            self.committer.push(rows, held, applied, urgent);
        }
    }

    /// Tells listeners of the thread in this process what the log does not keep.
    fn tell_thread(&self, name: &str, data: &Json) {
        let hub = &self.runtime.inner.hub;
        if hub.is_listened_to() {
            let millis = self.runtime.clock().now().millis();
            let mut queue = lock(&self.queue);
            let id = EventId::next(queue.last, millis);
            queue.last = id.0;
            let run_id = self.run_id;
            hub.tell_thread(self.thread, StoredEvent { id, run_id, name: name.to_owned(), data: data.clone() });
        }
    }

    /// Records in the log that the run began here, and tells `metadata`.
    pub(crate) fn began(&self, graph_id: &str, kwargs: &RunKwargs, attempt: u32) {
        let data = json!({"graph_id": graph_id, "modes": kwargs.stream_mode, "protocol": kwargs.protocol});
        self.record(self.is_stored(), RUN_BEGAN, &Json::from(data));
        let metadata = json!({"run_id": self.run_id, "attempt": attempt});
        self.tell("metadata".to_owned(), Json::from(metadata));
    }

    /// Records how the run ends: in the log before the commit that ends it (and with it), to others after it.
    pub(crate) fn ended(&self, stored: bool, end: &RunOutcome<'_>) {
        let RunOutcome { status, rest, error, result } = *end;
        // Nothing that was told stays behind.
        self.push(StepRows::default(), |_| false, true);
        let outcome = Outcome::of(status, rest);
        let mut data = json!({"status": status.as_str(), "outcome": outcome.as_str()});
        if let Some(error) = error.filter(|_| outcome == Outcome::Failed) {
            data["error"] = json!(error.message);
        }
        if let Some(result) = result.filter(|_| stored) {
            data["result"] = json!(result);
        }
        self.record(stored, RUN_ENDED, &Json::from(data));
    }

    fn record(&self, stored: bool, name: &str, data: &Json) {
        if stored {
            self.store(name.to_owned(), data.clone(), None, false);
        } else {
            self.tell_thread(name, data);
        }
    }
}

/// How a run ends.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RunOutcome<'a> {
    pub(crate) status: RunStatus,
    /// What the thread rests at.
    pub(crate) rest: ThreadStatus,
    pub(crate) error: Option<&'a ErrorInfo>,
    /// What `wait` answers, for one who waits in another process.
    pub(crate) result: Option<&'a Json>,
}

/// How a run ended, in the words of protocol v2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Completed,
    Failed,
    Interrupted,
}

impl Outcome {
    /// `rest`: what the thread rests at after the run.
    pub fn of(status: RunStatus, rest: ThreadStatus) -> Outcome {
        match status {
            RunStatus::Error | RunStatus::Timeout => Outcome::Failed,
            RunStatus::Interrupted => Outcome::Interrupted,
            _ if rest == ThreadStatus::Interrupted => Outcome::Interrupted,
            _ => Outcome::Completed,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Completed => "completed",
            Outcome::Failed => "failed",
            Outcome::Interrupted => "interrupted",
        }
    }

    pub fn parse(text: &str) -> Option<Outcome> {
        [Self::Completed, Self::Failed, Self::Interrupted].into_iter().find(|outcome| outcome.as_str() == text)
    }
}
