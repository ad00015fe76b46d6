//! The contract for looking after a deployment: runs that nothing will move, runs that were set aside, and what the
//! database says of itself.

use std::time::Duration;

use async_trait::async_trait;

use super::{Page, Result};
use crate::model::{ErrorInfo, RunId, Scope, ThreadId, ThreadKey, Timestamp};

/// Why nothing moves an active run that has no live lease, no timer and nobody it waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StuckReason {
    /// It is running, its lease ran out, and nobody has taken it over.
    LeaseRanOut,
    /// It is due and the next of its thread, and nobody has claimed it.
    NotClaimed,
    /// Its thread is gone. Nobody can execute it.
    NoThread,
}

impl StuckReason {
    pub fn as_str(self) -> &'static str {
        match self {
            StuckReason::LeaseRanOut => "lease_ran_out",
            StuckReason::NotClaimed => "not_claimed",
            StuckReason::NoThread => "no_thread",
        }
    }

    pub fn parse(text: &str) -> Option<StuckReason> {
        [Self::LeaseRanOut, Self::NotClaimed, Self::NoThread].into_iter().find(|reason| reason.as_str() == text)
    }
}

/// A run that should be moving and is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StuckRun {
    pub thread: ThreadKey,
    /// `None` when the thread is gone.
    pub thread_id: Option<ThreadId>,
    pub run_id: RunId,
    pub reason: StuckReason,
    /// For how long, by the database's clock.
    pub since: Duration,
    pub attempts: i32,
    /// Who had it last.
    pub worker: Option<String>,
}

/// A run that was attempted too often without progress.
#[derive(Debug, Clone)]
pub struct QuarantinedRun {
    pub thread_id: ThreadId,
    pub run_id: RunId,
    pub graph_id: String,
    pub attempts: i32,
    /// Who had it last.
    pub worker: Option<String>,
    pub error: Option<ErrorInfo>,
    pub created_at: Timestamp,
    pub quarantined_at: Timestamp,
}

/// What [`Health::release_run_from_quarantine`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release {
    /// It is pending again, as if it had never been attempted.
    Released,
    /// There is no such run, or it is not in quarantine.
    NotQuarantined,
    /// Its thread has gone on with a later run, or is closed: to do it now would not be what was asked for.
    Superseded,
}

/// A migration as the database remembers it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppliedMigration {
    pub version: i64,
    pub name: String,
    /// This build has it too, with the same text.
    pub is_known: bool,
    /// Builds that do not know it keep working.
    pub expands: bool,
}

/// What the database says of itself. Counts are of the whole database.
#[derive(Debug, Clone, Default)]
pub struct Inspection {
    /// `PostgreSQL 15.6 ..`, `SQLite 3.46.0`.
    pub server: String,
    /// The database's clock.
    pub now: Timestamp,
    /// What decides whether data survives, as the database names it: (`fsync`, `on`).
    pub settings: Vec<(String, String)>,
    pub applied: Vec<AppliedMigration>,
    /// Names of migrations that this build has and the database has not.
    pub missing: Vec<String>,
    /// `None` while migrations are missing: there may be no tables to count in.
    pub counts: Option<Counts>,
}

/// How many rows there are of what an operator asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Runs that are due and wait for a worker or for their thread.
    pub pending: i64,
    pub running: i64,
    /// Of those: the lease has run out.
    pub expired_leases: i64,
    pub quarantined: i64,
    /// Webhooks that were given up.
    pub dead_webhooks: i64,
    /// Active runs without a thread, run ids that lead nowhere, webhooks that wait for a run that is gone.
    pub orphans: i64,
    /// Threads deleted whose rows are still being removed.
    pub dead_threads: i64,
}

/// Health.
#[async_trait]
pub trait Health {
    /// Active runs that have had neither a live lease, nor a timer, nor a run they wait for, for longer than `grace`;
    /// the longest first, `limit` at most.
    async fn find_stuck(&self, scope: &Scope, grace: Duration, limit: i64) -> Result<Vec<StuckRun>>;

    /// One page of the runs in quarantine, oldest first.
    async fn list_quarantined(&self, scope: &Scope, page: Page) -> Result<Vec<QuarantinedRun>>;

    /// Makes a quarantined run pending again, its attempts forgotten; its thread forgets the error, and its webhook will
    /// be told again. Sends [`super::Notice::RunPending`].
    async fn release_run_from_quarantine(&self, scope: &Scope, run_id: RunId) -> Result<Release>;

    /// Reads what the database says of itself. Changes nothing, not even an empty database.
    async fn inspect(&self) -> Result<Inspection>;
}
