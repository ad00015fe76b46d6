//! Where it is kept: the contract every backend keeps, a trait per noun.
//!
//! Rules of the contract, all proved by the suite in `tests/it/storage` on every backend:
//! * One method is one atomic business operation: all of it is committed when the future resolves to `Ok`, or none of
//!   it. Nothing like "begin/commit" is visible from outside, so each backend locks in its own way.
//! * Every method takes a [`Scope`]; rows of other tenants look missing. `Scope::Server` sees all.
//! * Every write of a run is conditional on its [`Lease`]: the run row still exists, is running and has that epoch.
//!   A worker whose lease is gone changes nothing and is told so.
//! * Leases, order and `*_at` columns use the database's clock; the application's clock is never compared with it.
//! * Payload bytes come back exactly as they went in. Damaged or unknown stored bytes are a
//!   [`StorageError::Corrupt`] naming table, column and id.
//! * Dropping a future (cancellation) leaves the operation either wholly done or wholly undone.
//! * A missing row is `Ok(None)` or an outcome, never an error.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::broadcast;

use crate::model::{ErrorInfo, RunId, Scope, ThreadKey, Ttl};

pub mod assistants;
pub mod branches;
pub mod cache;
pub mod checkpoints;
pub mod connect;
pub mod crons;
pub mod effects;
pub mod executions;
pub mod foreign;
pub mod health;
pub mod idempotency;
pub mod interrupts;
pub mod items;
pub mod retention;
pub mod runs;
pub mod scratch;
pub mod sessions;
pub mod threads;
pub mod webhooks;

mod cron_rows;
mod deflate;
mod encoding;
mod foreign_rows;
mod health_rows;
mod matching;
mod migrations;
#[cfg(test)]
pub(crate) mod nowhere;
mod payloads;
mod postgres;
mod rows;
mod sqlite;
mod usage;
mod vectors;
mod webhook_rows;

pub use assistants::{AssistantCreated, AssistantFilter, AssistantPatch, AssistantSort, Assistants, NewAssistant};
pub use branches::{Branch, BranchPut, Branches, MAX_BRANCHES, Tip};
pub use cache::{Cache, CacheEntry, CacheKey, NewCacheEntry};
pub use checkpoints::{
    CheckpointFilter, CheckpointRow, Checkpoints, LogRange, LogRow, Payload, PayloadHash, StoredCheckpoint,
    TaskWritesRow, Which,
};
pub use crons::{CronCreated, CronFilter, CronFired, CronReplaced, CronSort, CronTick, Crons, DueCron, DueCrons};
pub use effects::{EffectFilter, EffectRow, Effects};
pub use executions::{ExecutionCursor, ExecutionFilter, Executions};
pub use foreign::{
    ERROR_SLOT, Foreign, ForeignBatch, ForeignCheckpoint, ForeignCopied, ForeignFilter, ForeignKept, ForeignOutcome,
    ForeignPayload, ForeignPrint, ForeignStatus, ForeignWrites, INTERRUPT_SLOT, StoredBytes, StoredForeign,
};
pub use health::{AppliedMigration, Counts, Health, Inspection, QuarantinedRun, Release, StuckReason, StuckRun};
pub use idempotency::{IdempotencyKey, IdempotencyKeys, KeyRow};
pub use interrupts::{InterruptChange, InterruptCursor, InterruptFilter, InterruptRow, Interrupts};
pub use items::{
    Embedded, ItemFilter, ItemMatch, ItemPlace, ItemVector, Items, NamespaceFilter, Near, NewItem, UnembeddedItem,
    VectorsTended,
};
pub use retention::{ExpiredThread, Kept, Pruned, Retention, STEP_ROWS, Size, ThreadSizes};
pub use runs::{
    CancelRequest, CancelTarget, Cancelled, Claim, ClaimedRun, CommitOutcome, HeadMove, Lease, LeaseState, NewRun,
    RunCreated, RunEnd, RunFilter, Runs, StateCommit, StateOutcome, StepCommit, StepRows, StoredEvent, UsageRow,
};
pub use sessions::{Close, CloseOutcome, RunDetail, RunExplained, Session, SessionCounts, Sessions};
pub use threads::{
    ClosedFilter, NewThread, Page, ThreadCreated, ThreadFilter, ThreadPatch, ThreadSort, Threads, WaitingThread,
};
pub use webhooks::{Attempt, AttemptOutcome, ClaimedWebhooks, DueWebhook, Webhook, WebhookEnd, WebhookState, Webhooks};

/// What can go wrong below the contract. Business outcomes (missing, busy, lease lost) are not errors.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The database cannot be reached, is restarting or out of connections: the same call may succeed later.
    #[error("storage is unavailable: {0}")]
    Unavailable(String),
    /// Stored bytes that this build cannot read.
    #[error("unreadable data in {table}.{column} of {id}: {reason}")]
    Corrupt { table: &'static str, column: &'static str, id: String, reason: String },
    /// The database belongs to a newer build, or a migration failed.
    #[error("schema: {0}")]
    Schema(String),
    /// A database URL this build does not understand. Never contains the password.
    #[error("database URL: {0}")]
    Url(String),
    /// The request's idempotency key was used before: nothing was done ([`idempotency`]).
    #[error("the idempotency key was used before")]
    KeyUsed,
    /// Everything else a driver reports.
    #[error("storage failed: {0}")]
    Other(String),
}

pub type Result<T> = std::result::Result<T, StorageError>;

/// Something happened that a process may be waiting for. Delivered at least to the process that did it; on Postgres
/// also to the other replicas (LISTEN/NOTIFY, ids only). A notice may be lost (reconnect, lag): whoever waits also
/// looks from time to time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// A run may be claimable.
    RunPending,
    /// A cancel flag was set on a running run.
    CancelRequested(RunId),
    /// A run reached a terminal status or was deleted.
    RunEnded(RunId),
    /// Stored events of the thread grew.
    Events(ThreadKey),
    /// Somebody listens to a run whose events may not be stored: who executes it stores them from now on.
    RunWanted(RunId),
    /// The listener reconnected: anything may have been missed.
    Missed,
}

/// What is in force, for the start line, `/ok` and `check-config`. Holds no secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// `sqlite` or `postgres`.
    pub backend: &'static str,
    /// A file path, `host/database`, or `in memory`.
    pub location: String,
    /// Everything is lost when the process ends.
    pub volatile: bool,
    /// What ranks items by their vectors in the database, with its version: `pgvector 0.8.0`. `None`: this process does.
    pub ranked_by: Option<String>,
}

/// The connections of this process to the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connections {
    pub open: u64,
    /// Open ones that nobody uses.
    pub idle: u64,
    /// That may be open.
    pub most: u64,
}

/// How far a database's schema is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SchemaState {
    /// Migrations that were applied. 0: the database is empty.
    pub applied: usize,
    /// Migrations of this build that were not.
    pub missing: usize,
}

/// A backend: all nouns, and the few things that concern the whole database.
#[async_trait]
pub trait Storage:
    Assistants
    + Branches
    + Threads
    + Retention
    + Runs
    + Sessions
    + Checkpoints
    + Foreign
    + Interrupts
    + Effects
    + Executions
    + Items
    + Cache
    + Crons
    + Webhooks
    + IdempotencyKeys
    + Health
    + std::fmt::Debug
    + Send
    + Sync
    + 'static
{
    fn describe(&self) -> Description;

    /// Compares the schema with this build's, changing nothing.
    async fn schema(&self) -> Result<SchemaState>;

    /// Applies missing migrations. Safe to call from many processes at once. Returns how many were applied.
    async fn migrate(&self) -> Result<usize>;

    /// One round trip to the database: `Ok` when it answers.
    async fn ping(&self, scope: &Scope) -> Result<()>;

    /// Whether other processes may work on this database: what a run tells may have to be stored to be heard.
    fn is_shared(&self) -> bool;

    /// Sends [`Notice::RunWanted`] to the other processes. `keep`: if the run is active on a temporary thread, that does not
    /// go with the run's end but stays for so long after its last use; committed before the notice is sent. Without it, one
    /// round trip, and nothing is stored.
    async fn want_run(&self, run_id: RunId, keep: Option<Ttl>) -> Result<()>;

    /// Notices from now on.
    fn notices(&self) -> broadcast::Receiver<Notice>;

    /// Write transactions committed by this process since it connected: what the cost tests count.
    fn write_transactions(&self) -> u64;

    /// How the connections are used right now.
    fn connections(&self) -> Connections;

    /// Finishes what is in flight and closes all connections.
    async fn close(&self);
}

pub type SharedStorage = Arc<dyn Storage>;

/// The view of a thread that was just copied: no values, whatever its head holds.
const COPIED_VIEW: &[u8] = br#"{"values":null,"interrupts":{}}"#;

/// What a thread shows after a run on it was taken back at somebody's wish.
pub(crate) fn rolled_back() -> ErrorInfo {
    ErrorInfo { error: "UserRollback".to_owned(), message: "the run was rolled back".to_owned() }
}

/// A worker makes one last attempt at a time: of runs that twice died with their process, one kills it, and the others
/// must not be set aside with it. A run that has lived this long on its last attempt makes room for the next.
pub(crate) const SUSPECT_FOR: Duration = Duration::from_secs(300);

/// How a run ends that was attempted too often: on every backend the same words. `worker`: who had it last.
pub(crate) fn quarantined(attempts: i32, worker: Option<&str>) -> ErrorInfo {
    let by = worker.map(|worker| format!(", last by {worker}")).unwrap_or_default();
    ErrorInfo {
        error: "RunQuarantined".into(),
        message: format!(
            "the run was attempted {attempts} times without progress{by}: each time its process died or lost it before \
             a superstep was committed; it is not tried again until it is released"
        ),
    }
}
