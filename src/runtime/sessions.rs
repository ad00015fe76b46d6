//! Sessions: threads as a whole. Closing and opening them.

use super::{Runtime, RuntimeError};
use crate::model::{Closed, Scope, Thread, ThreadId};
use crate::storage::{Close, CloseOutcome};

impl Runtime {
    /// Ends or archives a thread. When this returns, no run is accepted on it any more; those that were active have ended
    /// or are stopping.
    pub async fn close_thread(&self, scope: &Scope, id: &ThreadId, close: &Close) -> Result<Thread, RuntimeError> {
        match self.storage().close_thread(scope, id, close).await? {
            CloseOutcome::Closed { thread, cancelled } => {
                if !cancelled.is_empty() {
                    self.wake_webhooks();
                }
                Ok(*thread)
            }
            CloseOutcome::Missing => Err(RuntimeError::ThreadNotFound(id.to_string())),
            CloseOutcome::Busy => Err(RuntimeError::Conflict(format!(
                "Thread {id} has in-flight runs: wait for them, or send \"if_active\": \"cancel\""
            ))),
            CloseOutcome::Archived(closed) => Err(RuntimeError::closed(id, &closed)),
        }
    }

    /// Why a thread that refused something as closed is closed.
    pub async fn why_closed(&self, scope: &Scope, id: &ThreadId) -> Result<RuntimeError, RuntimeError> {
        let thread = self.thread(scope, id).await?;
        Ok(match &thread.closed {
            Some(closed) => RuntimeError::closed(id, closed),
            None => RuntimeError::Conflict(format!("Thread {id} was closed a moment ago and is open again: try again")),
        })
    }
}

impl RuntimeError {
    /// A refusal because a thread is closed: how, when, by whom, why, and the way back.
    pub fn closed(id: &ThreadId, closed: &Closed) -> RuntimeError {
        let by = closed.by.as_ref().map(|by| format!(" by {by}")).unwrap_or_default();
        let reason = closed.reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
        RuntimeError::ThreadClosed(format!(
            "Thread {id} was {} at {}{by}{reason}: POST /threads/{id}/reopen opens it again",
            closed.how.as_str(),
            closed.at.to_iso()
        ))
    }
}
