//! Live events: from the executor of a run to everybody in this process who listens.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tokio::sync::broadcast;

use crate::model::{Event, Json, RunId};

/// Events a slow listener may be behind before it is cut off and has to catch up from storage.
const BACKLOG: usize = 4096;

/// The runs somebody executes or listens to in this process.
#[derive(Debug, Default)]
pub(crate) struct Hub {
    runs: Mutex<HashMap<RunId, Arc<LiveRun>>>,
}

/// One run's channel. Closed when the run has ended and its final status is committed.
#[derive(Debug)]
pub(crate) struct LiveRun {
    sender: Mutex<Option<broadcast::Sender<Event>>>,
    /// What `wait` answers, set before the channel closes.
    pub(crate) result: OnceLock<Json>,
}

impl LiveRun {
    fn new() -> LiveRun {
        LiveRun { sender: Mutex::new(Some(broadcast::channel(BACKLOG).0)), result: OnceLock::new() }
    }

    /// Sends to whoever listens now.
    pub(crate) fn send(&self, event: Event) {
        if let Some(sender) = &*self.sender.lock().unwrap_or_else(PoisonError::into_inner) {
            // No listener is no error.
            let _ = sender.send(event);
        }
    }

    pub(crate) fn has_listeners(&self) -> bool {
        let sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        sender.as_ref().is_some_and(|sender| sender.receiver_count() > 0)
    }

    /// Events from now on; already closed when the run has ended here.
    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Event> {
        match &*self.sender.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(sender) => sender.subscribe(),
            None => broadcast::channel(1).1,
        }
    }

    pub(crate) fn close(&self) {
        self.sender.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

impl Hub {
    /// The run's channel, made on first use.
    pub(crate) fn run(&self, run_id: RunId) -> Arc<LiveRun> {
        let mut runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(runs.entry(run_id).or_insert_with(|| Arc::new(LiveRun::new())))
    }

    /// Closes and forgets: the run has ended. Listeners drain what they have and see the end.
    pub(crate) fn end(&self, run_id: RunId) {
        let run = self.runs.lock().unwrap_or_else(PoisonError::into_inner).remove(&run_id);
        if let Some(run) = run {
            run.close();
        }
    }

    /// Forgets a channel that nobody uses: a listener of a run that is executed elsewhere has left.
    pub(crate) fn release(&self, run_id: RunId) {
        let mut runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        if runs.get(&run_id).is_some_and(|run| Arc::strong_count(run) == 1) {
            runs.remove(&run_id);
        }
    }
}
