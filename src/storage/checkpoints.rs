//! The contract for checkpoints, task writes, payloads and channel logs.
//!
//! What a checkpoint means is not known here: rows are small and opaque. Their bodies refer to payloads by hash and to
//! channel logs by branch and length; `runtime::persist` gives them meaning.

use async_trait::async_trait;

use super::Result;
use crate::model::{CheckpointId, CheckpointSource, Json, RunId, Scope, ThreadId, ThreadKey, Timestamp};

/// The first 16 bytes of the BLAKE3 hash of a payload's text: its id within the thread.
pub type PayloadHash = [u8; 16];

/// A value stored once per thread.
#[derive(Debug, Clone)]
pub struct Payload {
    pub hash: PayloadHash,
    pub value: Json,
}

/// A checkpoint row.
#[derive(Debug, Clone)]
pub struct CheckpointRow {
    /// `""` is the root graph.
    pub ns: String,
    pub id: CheckpointId,
    pub parent: Option<CheckpointId>,
    pub run_id: Option<RunId>,
    pub step: i64,
    pub source: CheckpointSource,
    pub at: Timestamp,
    /// `{source, step, parents, ..}` as clients see and filter it.
    pub metadata: Json,
    /// The nodes that run next, as a record view shows them.
    pub next: Vec<String>,
    /// Versions, versions seen, values and references.
    pub body: Json,
    /// Bytes this checkpoint added to the thread: its row, payloads and log rows.
    pub bytes: i64,
}

/// All writes of one task on a checkpoint, replaced as a whole.
#[derive(Debug, Clone)]
pub struct TaskWritesRow {
    pub ns: String,
    pub checkpoint_id: CheckpointId,
    pub task_id: String,
    /// The run that wrote it; where several runs wrote for one task, the latest run's row counts.
    pub run_id: Option<RunId>,
    /// [`crate::model::TaskPath::sort_key`].
    pub path: String,
    /// An array of writes.
    pub body: Json,
}

/// Items appended to a list channel: positions `start .. start + count` of a branch.
#[derive(Debug, Clone)]
pub struct LogRow {
    pub ns: String,
    pub channel: String,
    pub branch: i64,
    pub start: i64,
    pub count: i64,
    /// The run that appended, so that a rollback can take it back.
    pub run_id: Option<RunId>,
    /// A JSON array of `count` items.
    pub items: Json,
}

/// A range of a branch to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogRange {
    pub ns: String,
    pub channel: String,
    pub branch: i64,
    pub start: i64,
    pub end: i64,
}

/// Which checkpoint of a namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    /// The head (root namespace) or the greatest id (others).
    Latest,
    Id(CheckpointId),
    /// The greatest id below this one.
    Before(CheckpointId),
    /// The greatest id of those made while the root graph was at this checkpoint.
    During(CheckpointId),
}

/// A checkpoint with the writes pending on it (or kept as results), ordered by (path, task id).
#[derive(Debug, Clone)]
pub struct StoredCheckpoint {
    pub row: CheckpointRow,
    pub writes: Vec<TaskWritesRow>,
}

/// Which checkpoints a history shows.
#[derive(Debug, Clone, Default)]
pub struct CheckpointFilter {
    pub ns: String,
    /// Only this one.
    pub id: Option<CheckpointId>,
    /// Only ids smaller than this.
    pub before: Option<CheckpointId>,
    /// Equality on each given top-level key of the metadata.
    pub metadata: Option<Json>,
}

/// Checkpoints and what they refer to. All reads.
#[async_trait]
pub trait Checkpoints {
    /// Reads one checkpoint with its writes; `None` when the thread or the checkpoint is missing.
    async fn load_checkpoint(
        &self,
        scope: &Scope,
        thread: ThreadKey,
        ns: &str,
        which: &Which,
    ) -> Result<Option<StoredCheckpoint>>;

    /// Reads a page of a history, newest (greatest id) first.
    async fn list_checkpoints(
        &self,
        scope: &Scope,
        thread: ThreadKey,
        filter: &CheckpointFilter,
        limit: i64,
    ) -> Result<Vec<StoredCheckpoint>>;

    /// Reads the heads (greatest root checkpoint by the head column) of several threads at once, with their writes.
    async fn load_heads(&self, scope: &Scope, threads: &[ThreadKey]) -> Result<Vec<(ThreadKey, StoredCheckpoint)>>;

    /// Reads payloads by hash, in any order. A hash that is not there is a [`super::StorageError::Corrupt`].
    async fn load_payloads(&self, scope: &Scope, thread: ThreadKey, hashes: &[PayloadHash]) -> Result<Vec<Payload>>;

    /// Reads the log rows that overlap each range, ordered by range and start.
    async fn load_log(&self, scope: &Scope, thread: ThreadKey, ranges: &[LogRange]) -> Result<Vec<LogRow>>;

    /// Which of the branches hold items beyond the given length: `(ns, channel, branch, length)`. Appending to such a
    /// branch would collide with a fork, so the caller starts a new one.
    async fn continued_branches(
        &self,
        scope: &Scope,
        thread: ThreadKey,
        ends: &[(String, String, i64, i64)],
    ) -> Result<Vec<(String, String, i64)>>;

    /// The namespaces of a thread that hold checkpoints, sorted.
    async fn list_namespaces_of(&self, scope: &Scope, thread_id: &ThreadId) -> Result<Vec<String>>;
}
