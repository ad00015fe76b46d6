//! Branches: moving a thread's head, and finding checkpoints by the words clients use for them.

use uuid::Uuid;

use super::{Runtime, RuntimeError};
use crate::model::{CheckpointId, STEP_OF_NOTHING, Scope, Thread, ThreadId, ThreadStatus};
use crate::storage::{HeadMove, StateCommit, StateOutcome, StepRows, Which};

/// Tries when somebody else changes the thread at the same moment, and the caller does not care.
const ATTEMPTS: usize = 5;

/// The word for a thread's latest checkpoint.
pub const HEAD: &str = "head";

/// Where to move a head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeadTarget {
    Checkpoint(CheckpointId),
    /// To where the name stands; the thread is on that branch then.
    Branch(String),
}

/// A head that was moved.
#[derive(Debug, Clone)]
pub struct MovedHead {
    pub checkpoint_id: CheckpointId,
    pub previous: Option<CheckpointId>,
    pub branch: Option<String>,
    /// What the thread rests at there.
    pub status: ThreadStatus,
}

impl Runtime {
    /// Moves the head of a thread: what follows goes on from there, as if the runs since had not been. Nothing is deleted.
    /// With `expected` only if that is the head. When this returns, the move is committed.
    pub async fn move_head(
        &self,
        scope: &Scope,
        id: &ThreadId,
        target: &HeadTarget,
        expected: Option<&CheckpointId>,
    ) -> Result<MovedHead, RuntimeError> {
        for _ in 0..ATTEMPTS {
            let thread = self.thread(scope, id).await?;
            self.check_native(scope, &thread).await?;
            let other = expected.is_some_and(|expected| Some(expected) != thread.head.as_ref());
            if other {
                return Err(RuntimeError::Conflict(format!(
                    "The head of thread {id} is {}, not {}",
                    thread.head.as_deref().unwrap_or("no checkpoint"),
                    expected.map_or("", String::as_str)
                )));
            }
            if let Some(moved) = self.try_to_move(scope, &thread, target).await? {
                return Ok(moved);
            }
        }
        Err(RuntimeError::Conflict(format!("The head of thread {id} is moving: try again")))
    }

    /// `None`: the thread or the branch was changed meanwhile.
    async fn try_to_move(
        &self,
        scope: &Scope,
        thread: &Thread,
        target: &HeadTarget,
    ) -> Result<Option<MovedHead>, RuntimeError> {
        let (to, branch) = match target {
            HeadTarget::Checkpoint(id) => (id.clone(), None),
            HeadTarget::Branch(name) => {
                let found = self.storage().list_branches(scope, thread.key, Some(name)).await?.pop();
                let at = found.and_then(|branch| branch.checkpoint_id);
                (at.ok_or_else(|| RuntimeError::BranchNotFound(name.clone()))?, Some(name.clone()))
            }
        };
        let found = self.storage().load_checkpoint(scope, thread.key, "", &Which::Id(to.clone())).await?;
        let found = found.filter(|found| found.row.step != STEP_OF_NOTHING);
        let next = found.ok_or_else(|| RuntimeError::CheckpointNotFound(to.clone()))?.row.next;
        let status = if next.is_empty() { ThreadStatus::Idle } else { ThreadStatus::Interrupted };
        let change = StateCommit {
            thread_id: thread.id.clone(),
            expected_head: thread.head.clone(),
            base: Some((String::new(), to.clone())),
            rows: StepRows { head: Some(to.clone()), ..StepRows::default() },
            events: vec![self.state_update(thread, "", &to)],
            thread_status: status,
            view: None,
            moves: Some(HeadMove { branch: branch.clone() }),
        };
        match self.storage().commit_state(scope, change).await? {
            StateOutcome::Committed => {
                Ok(Some(MovedHead { checkpoint_id: to, previous: thread.head.clone(), branch, status }))
            }
            StateOutcome::HeadMoved => Ok(None),
            StateOutcome::ThreadMissing => Err(RuntimeError::ThreadNotFound(thread.id.to_string())),
            StateOutcome::ThreadForeign => Err(RuntimeError::ThreadForeign(thread.id.to_string())),
            StateOutcome::ThreadClosed => Err(self.why_closed(scope, &thread.id).await?),
            StateOutcome::ThreadBusy => Err(RuntimeError::Conflict(format!(
                "Thread {} has in-flight runs: its head cannot be moved until they finish",
                thread.id
            ))),
        }
    }

    /// Refuses a thread whose checkpoints come from elsewhere.
    pub async fn check_native(&self, scope: &Scope, thread: &Thread) -> Result<(), RuntimeError> {
        match thread.head.is_none() && self.storage().is_foreign(scope, thread.key).await? {
            true => Err(RuntimeError::ThreadForeign(thread.id.to_string())),
            false => Ok(()),
        }
    }

    /// The checkpoint that a word stands for: `head`, the name of a branch, or a checkpoint's id.
    pub async fn place(&self, scope: &Scope, thread: &Thread, word: &str) -> Result<CheckpointId, RuntimeError> {
        if word == HEAD {
            let latest = match &thread.head {
                Some(head) => Some(head.clone()),
                // Of a thread whose checkpoints come from elsewhere.
                None => self.storage().load_foreign(scope, thread.key, "", None).await?.map(|stored| stored.row.id),
            };
            return latest.ok_or_else(|| {
                RuntimeError::BadRequest(format!("Thread {} has no checkpoint yet: run something on it", thread.id))
            });
        }
        let branch = self.storage().list_branches(scope, thread.key, Some(word)).await?.pop();
        if let Some(at) = branch.and_then(|branch| branch.checkpoint_id) {
            return Ok(at);
        }
        Ok(checkpoint_id(word))
    }
}

/// A checkpoint's id as it is stored: UUIDs in their usual spelling, others as they are.
pub fn checkpoint_id(text: &str) -> CheckpointId {
    Uuid::try_parse(text).map_or_else(|_| text.to_owned(), |id| id.hyphenated().to_string())
}
