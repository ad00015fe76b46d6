//! The questions a thread waits with, once its runs have come to rest.

use std::time::Duration;

use tokio::time::Instant;

use super::{Runtime, RuntimeError};
use crate::model::{CheckpointRef, Interrupt, Scope, Thread, ThreadId, ThreadStatus};

/// How often to look at a busy thread.
const LOOK_EVERY: Duration = Duration::from_millis(50);

impl Runtime {
    /// The thread and its open questions. While a run is active it is waited for, `patience` at most; then what the
    /// thread shows counts. `None` when there is no such thread.
    pub async fn questions(
        &self,
        scope: &Scope,
        id: &ThreadId,
        patience: Duration,
    ) -> Result<Option<(Thread, Vec<Interrupt>)>, RuntimeError> {
        let deadline = Instant::now() + patience;
        loop {
            let Some(thread) = self.storage().find_thread(scope, id).await? else { return Ok(None) };
            if thread.status != ThreadStatus::Busy || Instant::now() >= deadline {
                let state = self.thread_state(scope, id, &CheckpointRef::default(), false).await?;
                return Ok(Some((thread, state.interrupts)));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}
