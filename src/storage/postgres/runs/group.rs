//! Commits of concurrent runs share statements: those that arrive while others are on their way go together in the next
//! one. Each member stands or falls alone, and is answered after the commit.

use std::sync::{Mutex, PoisonError};

use tokio::sync::{Semaphore, oneshot};

use super::super::PostgresStorage;
use crate::model::Scope;
use crate::storage::{CommitOutcome, Result, StepCommit, StorageError};

/// Statements on their way at once. Few, so that commits gather; two, so that one prepares while the other is flushed.
const IN_FLIGHT: usize = 2;

/// Commits waiting for a statement.
pub(in crate::storage::postgres) struct Group {
    waiting: Mutex<Vec<Waiting>>,
    turns: Semaphore,
}

struct Waiting {
    step: StepCommit,
    answer: oneshot::Sender<Result<CommitOutcome>>,
}

impl Default for Group {
    fn default() -> Self {
        Group { waiting: Mutex::default(), turns: Semaphore::new(IN_FLIGHT) }
    }
}

impl Group {
    fn add(&self, step: StepCommit) -> oneshot::Receiver<Result<CommitOutcome>> {
        let (answer, outcome) = oneshot::channel();
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).push(Waiting { step, answer });
        outcome
    }

    fn take(&self) -> (Vec<StepCommit>, Vec<oneshot::Sender<Result<CommitOutcome>>>) {
        let waiting = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        waiting.into_iter().map(|waiting| (waiting.step, waiting.answer)).unzip()
    }
}

impl PostgresStorage {
    /// Commits a step of a run together with those that wait. Dropped before it returns, the step may or may not be
    /// committed, by whoever is next; its lease still decides.
    pub(super) async fn commit_in_group(&self, step: StepCommit) -> Result<CommitOutcome> {
        let given_up = || StorageError::Unavailable("the commit was given up".into());
        let outcome = self.group.add(step);
        {
            let _turn = self.group.turns.acquire().await.map_err(|_| given_up())?;
            // All that has gathered, this step among them unless somebody took it along before.
            let (steps, answers) = self.group.take();
            self.commit_gathered(steps, answers).await;
        }
        outcome.await.map_err(|_| given_up())?
    }

    async fn commit_gathered(&self, steps: Vec<StepCommit>, answers: Vec<oneshot::Sender<Result<CommitOutcome>>>) {
        let scope = Scope::Server;
        // Whoever waited may be gone: sending to nobody is fine.
        match self.commit_batch(&scope, &steps).await {
            Ok(outcomes) => {
                for (answer, outcome) in answers.into_iter().zip(outcomes) {
                    let _gone = answer.send(Ok(outcome));
                }
            }
            Err(StorageError::Unavailable(reason)) => {
                for answer in answers {
                    let _gone = answer.send(Err(StorageError::Unavailable(reason.clone())));
                }
            }
            // One of them is at fault: the others shall not fail with it. What is stored already stays as it is.
            Err(_) if steps.len() > 1 => {
                for (step, answer) in steps.iter().zip(answers) {
                    let alone = self.commit_batch(&scope, std::slice::from_ref(step)).await;
                    let _gone = answer.send(alone.map(|outcomes| outcomes[0]));
                }
            }
            Err(error) => {
                if let Some(answer) = answers.into_iter().next() {
                    let _gone = answer.send(Err(error));
                }
            }
        }
    }
}
