//! The contract for how long things are kept: threads that expire, states that are pruned, rows that deleted threads left.
//!
//! Large threads are removed in bounded steps. Deleting takes a thread out of sight, with its active runs (so no late
//! write of theirs brings anything back) and a first part of its rows; [`Retention::reclaim`] removes the rest. Whoever
//! makes a thread of the same name meanwhile first finishes that.

use async_trait::async_trait;

use super::{PayloadHash, Result};
use crate::model::{CheckpointId, Scope, ThreadId, ThreadKey, ThreadTtl, Timestamp, TtlStrategy};

/// Rows of one table that one step of a removal takes at most.
pub const STEP_ROWS: i64 = 2_000;

/// The tables that hold rows of threads, with the rest of their keys. Whoever adds a table adds it here; a test compares.
pub(crate) const THREAD_TABLES: [(&str, &str); 13] = [
    ("runs", "run_id"),
    ("checkpoints", "ns, checkpoint_id"),
    ("task_writes", "ns, checkpoint_id, task_id, run_id"),
    ("payloads", "hash"),
    ("channel_log", "ns, channel, branch, start"),
    ("events", "event_id"),
    ("interrupts", "interrupt_id"),
    ("branches", "name"),
    ("foreign_checkpoints", "ns, checkpoint_id"),
    ("foreign_writes", "ns, checkpoint_id, task_id, slot"),
    ("effects", "ns, checkpoint_id, task_id, key"),
    ("task_log", "started_at, run_id"),
    ("usage_totals", "run_id, model"),
];

/// A thread whose time is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpiredThread {
    pub scope: Scope,
    pub id: ThreadId,
    pub strategy: TtlStrategy,
}

/// What to keep of a thread's states; everything else goes. Task writes stay with their checkpoint.
#[derive(Debug, Clone, Default)]
pub struct Kept {
    /// The head when `checkpoints` was decided; another one now is [`Pruned::Changed`].
    pub head: Option<CheckpointId>,
    /// Namespace and id.
    pub checkpoints: Vec<(String, CheckpointId)>,
    /// Checkpoints that the tasks of kept ones were planned from before a migration: their effects stay, too.
    pub origins: Vec<(String, CheckpointId)>,
    /// All that the kept checkpoints and the writes on them refer to.
    pub payloads: Vec<PayloadHash>,
    /// (namespace, channel, branch, length): rows of these branches that begin before the length.
    pub branches: Vec<(String, String, i64, i64)>,
}

/// What one step of a pruning did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pruned {
    /// Nothing is left to remove.
    Done,
    /// There may be more: call again.
    More,
    /// The thread is gone, has an active run or another head: nothing was removed.
    Changed,
}

/// Rows and their bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Size {
    pub count: i64,
    pub bytes: i64,
}

/// What a thread occupies.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ThreadSizes {
    pub checkpoints: Size,
    /// Values stored once per thread.
    pub payloads: Size,
    /// Items of list channels, by channel.
    pub lists: Vec<(String, Size)>,
    pub task_writes: Size,
    pub events: Size,
    pub runs: Size,
    pub interrupts: Size,
    pub effects: Size,
    /// The execution log.
    pub executions: Size,
}

/// Retention.
#[async_trait]
pub trait Retention {
    /// How long a thread is kept. `None` when it is missing or kept for ever.
    async fn thread_ttl(&self, scope: &Scope, id: &ThreadId) -> Result<Option<ThreadTtl>>;

    /// Threads whose time is over and that have no active run, longest first.
    async fn expired_threads(&self, scope: &Scope, limit: i64) -> Result<Vec<ExpiredThread>>;

    /// Deletes a thread if its time is still over and no run is active; false when not. As [`super::Threads::delete_thread`].
    async fn expire_thread(&self, scope: &Scope, id: &ThreadId) -> Result<bool>;

    /// One bounded step of removing all but `kept`. With [`Pruned::Done`] the thread counts as pruned until it is used
    /// again. `updated_at` stays.
    async fn prune_thread(&self, scope: &Scope, id: &ThreadId, kept: &Kept) -> Result<Pruned>;

    /// One bounded step of removing the rows of deleted threads; true when there may be more.
    async fn reclaim(&self, scope: &Scope) -> Result<bool>;

    /// What a thread occupies; `None` when it is missing.
    async fn thread_sizes(&self, scope: &Scope, id: &ThreadId) -> Result<Option<ThreadSizes>>;

    /// The bytes of payloads; hashes that are not there are left out.
    async fn payload_sizes(
        &self,
        scope: &Scope,
        thread: ThreadKey,
        hashes: &[PayloadHash],
    ) -> Result<Vec<(PayloadHash, i64)>>;
}

/// A thread's time to live as its columns hold it.
pub(crate) fn ttl_of(ttl: i64, strategy: &str, updated_at: i64) -> Option<ThreadTtl> {
    let strategy = TtlStrategy::parse(strategy)?;
    Some(ThreadTtl { strategy, ttl_micros: ttl, expires_at: Timestamp(updated_at.saturating_add(ttl)) })
}
