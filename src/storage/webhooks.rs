//! The contract for webhooks: an outbox. A run's row is written with the run, made due by the operation that ends the run
//! (whichever that is), and deleted once it is delivered.

use std::time::Duration;

use async_trait::async_trait;
use uuid::Uuid;

use super::{Page, Result};
use crate::model::{ErrorInfo, Json, RunId, Scope, ThreadId, ThreadKey, Timestamp};

/// Where a webhook is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WebhookState {
    /// Its run is active.
    Waiting,
    /// To be delivered, or being delivered.
    Due,
    /// Given up.
    Dead,
}

impl WebhookState {
    pub fn as_str(self) -> &'static str {
        match self {
            WebhookState::Waiting => "waiting",
            WebhookState::Due => "due",
            WebhookState::Dead => "dead",
        }
    }

    pub fn parse(text: &str) -> Option<WebhookState> {
        [Self::Waiting, Self::Due, Self::Dead].into_iter().find(|state| state.as_str() == text)
    }
}

/// A webhook as lists show it.
#[derive(Debug, Clone)]
pub struct Webhook {
    pub thread_id: ThreadId,
    pub run_id: RunId,
    pub url: String,
    pub state: WebhookState,
    pub attempts: i32,
    pub next_attempt_at: Timestamp,
    pub last_error: Option<String>,
    pub created_at: Timestamp,
}

/// One attempt that this process may make: valid while the row has that number of attempts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attempt {
    pub thread: ThreadKey,
    pub run_id: RunId,
    /// 1 for the first.
    pub number: i32,
}

/// What the receiver is told, and the right to tell it.
#[derive(Debug, Clone)]
pub struct DueWebhook {
    pub attempt: Attempt,
    pub url: String,
    pub thread_id: ThreadId,
    pub assistant_id: Uuid,
    /// A terminal status, or `rollback`.
    pub status: String,
    pub metadata: Json,
    pub kwargs: Json,
    pub multitask_strategy: String,
    pub error: Option<ErrorInfo>,
    /// The final values; `None` when the run ended outside a worker, or was taken back.
    pub values: Option<Json>,
    pub created_at: Timestamp,
    /// When the attempt that ended the run began.
    pub started_at: Option<Timestamp>,
    pub ended_at: Timestamp,
}

/// What [`Webhooks::claim_webhooks`] found.
#[derive(Debug, Clone, Default)]
pub struct ClaimedWebhooks {
    pub due: Vec<DueWebhook>,
    /// How long until the next one is due.
    pub next: Option<Duration>,
}

/// How an attempt went.
#[derive(Debug, Clone)]
pub enum AttemptOutcome {
    Delivered,
    Retry { after: Duration, error: String },
    Dead { error: String },
}

/// What the end of a run tells its webhook ([`super::RunEnd`]).
#[derive(Debug, Clone)]
pub struct WebhookEnd {
    pub values: Option<Json>,
    pub started_at: Timestamp,
}

/// Webhooks.
#[async_trait]
pub trait Webhooks {
    /// Takes up to `limit` due webhooks, earliest first, for the time of the lease; an attempt nobody reports on is due
    /// again after it.
    async fn claim_webhooks(&self, scope: &Scope, limit: i64, lease: Duration) -> Result<ClaimedWebhooks>;

    /// Reports on an attempt. False when another one has been made since: nothing is changed.
    async fn settle_webhook(&self, scope: &Scope, attempt: Attempt, outcome: AttemptOutcome) -> Result<bool>;

    /// One page of the webhooks in a state, oldest first.
    async fn list_webhooks(&self, scope: &Scope, state: WebhookState, page: Page) -> Result<Vec<Webhook>>;

    /// Makes dead webhooks due again: those of the runs named, or up to 1000 of all. Returns how many.
    async fn redrive_webhooks(&self, scope: &Scope, run_ids: Option<&[RunId]>) -> Result<i64>;

    /// Makes due what waits for a run that has ended all the same, forgets what waits for a run that is gone, and deletes
    /// webhooks that have been dead for longer than `keep_dead`. In a bounded batch; returns how many rows changed.
    async fn sweep_webhooks(&self, scope: &Scope, keep_dead: Duration) -> Result<u64>;
}
