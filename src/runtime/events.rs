//! What one run tells: gives events their ids and sends them to listeners, through the log if the run is resumable.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use serde_json::json;

use super::Runtime;
use super::commit::Committer;
use super::live::LiveRun;
use crate::model::event::{RUN_BEGAN, RUN_ENDED};
use crate::model::{ErrorInfo, Event, EventId, Json, RunId, RunKwargs, RunStatus, ThreadStatus};

/// The way of a run's events: into the log first and to listeners second if they are stored, else to listeners at once.
pub(crate) struct Events {
    run_id: RunId,
    stored: bool,
    /// The largest id of the thread so far; only this run gives out ids while it executes.
    last: AtomicI64,
    runtime: Runtime,
    committer: Committer,
    live: Arc<LiveRun>,
}

impl Events {
    pub(crate) fn new(
        run_id: RunId,
        stored: bool,
        last_event: i64,
        runtime: Runtime,
        committer: Committer,
        live: Arc<LiveRun>,
    ) -> Events {
        Events { run_id, stored, last: AtomicI64::new(last_event), runtime, committer, live }
    }

    /// Tells an event. Stored ones reach listeners once they are committed.
    pub(crate) fn tell(&self, name: String, data: Json) {
        let (run_id, id) = (self.run_id, None);
        if !self.stored {
            self.live.send(Event { id, run_id, name, data });
            return;
        }
        let millis = self.runtime.clock().now().millis();
        let next = |last| Some(EventId::next(last, millis).0);
        let last = self.last.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).unwrap_or_default();
        let id = Some(EventId::next(last, millis));
        self.committer.push_event(Event { id, run_id, name, data });
    }

    /// Records in the log that the run began here, and tells `metadata`.
    pub(crate) fn began(&self, graph_id: &str, kwargs: &RunKwargs, attempt: u32) {
        if self.stored {
            let data = json!({"graph_id": graph_id, "modes": kwargs.stream_mode, "protocol": kwargs.protocol});
            self.tell(RUN_BEGAN.to_owned(), Json::from(data));
        }
        let metadata = json!({"run_id": self.run_id, "attempt": attempt});
        self.tell("metadata".to_owned(), Json::from(metadata));
    }

    /// Records in the log how the run ends, in the commit that ends it.
    pub(crate) fn ended(&self, status: RunStatus, rest: ThreadStatus, error: Option<&ErrorInfo>) {
        if self.stored {
            let outcome = Outcome::of(status, rest);
            let mut data = json!({"status": status.as_str(), "outcome": outcome.as_str()});
            if let Some(error) = error.filter(|_| outcome == Outcome::Failed) {
                data["error"] = json!(error.message);
            }
            self.tell(RUN_ENDED.to_owned(), Json::from(data));
        }
    }
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
