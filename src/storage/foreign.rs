//! The contract for checkpoints of graphs that run elsewhere and keep their state here.
//!
//! Rows are opaque, as those of [`super::checkpoints`] are: `runtime::foreign` gives their bodies meaning. Their values are
//! payloads of the thread in bytes. Such a thread holds no checkpoints of this server's graphs, and the other way round.

use std::collections::{BTreeSet, HashMap};

use async_trait::async_trait;
use futures_util::future::join_all;

use super::{PayloadHash, Pruned, Result};
use crate::model::{CheckpointId, Scope, ThreadId, ThreadKey, ThreadStatus, Timestamp, Ttl};

/// How a payload row holds its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoredBytes {
    Raw(Vec<u8>),
    /// `head`, then what the rows that are referred to hold, in order, then `tail`. Those rows may be parts themselves.
    Parts {
        head: Vec<u8>,
        parts: Vec<PayloadHash>,
        tail: Vec<u8>,
    },
}

impl StoredBytes {
    /// The rows it refers to.
    pub fn parts(&self) -> &[PayloadHash] {
        match self {
            StoredBytes::Raw(_) => &[],
            StoredBytes::Parts { parts, .. } => parts,
        }
    }
}

/// A payload of a thread whose checkpoints come from elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignPayload {
    pub hash: PayloadHash,
    pub bytes: StoredBytes,
}

/// A checkpoint from elsewhere. Ids are as they came; the greatest of a namespace is its latest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignCheckpoint {
    /// `""` is the root graph.
    pub ns: String,
    pub id: CheckpointId,
    pub parent: Option<CheckpointId>,
    /// What its metadata calls the run.
    pub run_id: Option<String>,
    pub body: Vec<u8>,
    /// Bytes this checkpoint added to the thread.
    pub bytes: i64,
}

/// What a task wrote at once on a checkpoint, which may not be there yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignWrites {
    pub ns: String,
    pub checkpoint_id: CheckpointId,
    pub task_id: String,
    /// Rows with a slot that begins with `-` replace an earlier one of it; others are kept as they were first.
    pub slot: String,
    pub path: String,
    pub body: Vec<u8>,
}

/// A checkpoint as stored, with the writes on it in the order they were made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredForeign {
    pub row: ForeignCheckpoint,
    pub at: Timestamp,
    pub writes: Vec<ForeignWrites>,
}

/// Changes to one thread, all of them or none.
#[derive(Debug, Clone)]
pub struct ForeignBatch {
    pub thread_id: ThreadId,
    /// Of the thread, should this be the first thing on it.
    pub ttl: Option<Ttl>,
    /// One that is there is replaced.
    pub checkpoints: Vec<ForeignCheckpoint>,
    pub writes: Vec<ForeignWrites>,
    /// Those that are there stay as they are.
    pub payloads: Vec<ForeignPayload>,
    /// Checkpoints, by namespace and id, that must be there.
    pub parents: Vec<(String, CheckpointId)>,
    /// What must be the latest checkpoint of a namespace; `None`: it must be empty.
    pub latest: Vec<(String, Option<CheckpointId>)>,
    /// Payloads that must be there.
    pub references: Vec<PayloadHash>,
    /// What the thread rests at afterwards; `None`: as before.
    pub status: Option<ForeignStatus>,
}

/// What a thread rests at, by one of its root checkpoints and what tasks wrote on it. Either may come first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignStatus {
    /// `Idle` of a checkpoint that is put: unless tasks were interrupted ([`INTERRUPT_SLOT`]) or failed ([`ERROR_SLOT`]) on
    /// it. Others, of what tasks write: unless there is a later root checkpoint.
    pub status: ThreadStatus,
    pub on: CheckpointId,
}

/// The slot of the error of a task.
pub const ERROR_SLOT: &str = "-1";
/// The slot of what a task asks.
pub const INTERRUPT_SLOT: &str = "-3";

/// What [`Foreign::put_foreign`] did. Everything but `Stored` changed nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ForeignOutcome {
    Stored,
    /// There is no such thread, and the batch holds no checkpoint that could begin one.
    ThreadMissing,
    /// Graphs of this server ran on the thread.
    ThreadNative,
    /// The thread was ended or archived.
    ThreadClosed,
    /// The first of `parents` that is not there.
    ParentMissing(String, CheckpointId),
    /// The first of `latest` that does not hold, with what is the latest.
    LatestMoved(String, Option<CheckpointId>),
    /// Those of `references` that are not there.
    PayloadsMissing(Vec<PayloadHash>),
}

/// What to keep of a thread.
#[derive(Debug, Clone, Default)]
pub struct ForeignKept {
    /// The latest checkpoint of every namespace when this was decided; others now are [`Pruned::Changed`].
    pub latest: Vec<(String, CheckpointId)>,
    /// Namespace and id; `None`: all. Writes stay with their checkpoint.
    pub checkpoints: Option<Vec<(String, CheckpointId)>>,
    /// All payloads that these refer to, with their parts.
    pub payloads: Vec<PayloadHash>,
    /// The prints of these checkpoints when that was decided; others now are [`Pruned::Changed`].
    pub prints: BTreeSet<ForeignPrint>,
}

/// Stands for a checkpoint, the writes on it, and so for all payloads that it refers to.
pub type ForeignPrint = [u8; 32];

impl StoredForeign {
    pub fn print(&self) -> ForeignPrint {
        let mut hash = blake3::Hasher::new();
        let mut field = |bytes: &[u8]| {
            hash.update(&(bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        for text in [&self.row.ns, &self.row.id] {
            field(text.as_bytes());
        }
        field(&self.row.body);
        for write in &self.writes {
            for text in [&write.task_id, &write.slot] {
                field(text.as_bytes());
            }
            field(&write.body);
        }
        *hash.finalize().as_bytes()
    }
}

/// Writes may wait this long for their checkpoint, in microseconds: while some do, nothing of their thread is removed.
pub(crate) const ON_ITS_WAY: i64 = 3_600 * 1_000_000;

/// Which checkpoints a list shows; newest (greatest id) first, by namespace.
#[derive(Debug, Clone, Default)]
pub struct ForeignFilter {
    /// `None`: all namespaces.
    pub ns: Option<String>,
    pub id: Option<CheckpointId>,
    /// Only ids smaller than this.
    pub before: Option<CheckpointId>,
    /// Continues after this namespace and id.
    pub after: Option<(String, CheckpointId)>,
}

/// What [`Foreign::copy_foreign`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForeignCopied {
    Copied,
    /// There is no such thread, or it is not one of these.
    Missing,
    /// The name of the copy is taken.
    Taken,
}

/// Checkpoints from elsewhere.
#[async_trait]
pub trait Foreign {
    /// Stores a batch; repeating it changes nothing. A batch with a checkpoint makes the thread if it is missing, or takes one
    /// on which nothing has run.
    async fn put_foreign(&self, scope: &Scope, batch: &ForeignBatch) -> Result<ForeignOutcome>;

    /// Stores batches as [`Foreign::put_foreign`] does, each of them whole or not at all whatever becomes of the others.
    /// Batches of one thread are stored in their order. Returns an outcome for each.
    async fn put_foreign_each(&self, scope: &Scope, batches: &[ForeignBatch]) -> Vec<Result<ForeignOutcome>>;

    /// Those of the threads whose checkpoints come from elsewhere, in any order.
    async fn foreign_among(&self, scope: &Scope, threads: &[ThreadKey]) -> Result<Vec<ThreadKey>>;

    /// Whether checkpoints of a thread come from elsewhere; false when it is missing.
    async fn is_foreign(&self, scope: &Scope, thread: ThreadKey) -> Result<bool> {
        Ok(!self.foreign_among(scope, &[thread]).await?.is_empty())
    }

    /// Reads one checkpoint with its writes, by id or the latest of its namespace.
    async fn load_foreign(
        &self,
        scope: &Scope,
        thread: ThreadKey,
        ns: &str,
        id: Option<&str>,
    ) -> Result<Option<StoredForeign>>;

    /// Reads a page of a thread's checkpoints with their writes.
    async fn list_foreign(
        &self,
        scope: &Scope,
        thread: ThreadKey,
        filter: &ForeignFilter,
        limit: i64,
    ) -> Result<Vec<StoredForeign>>;

    /// Reads payloads, their parts, and the parts of these, in any order. One that is not there is a
    /// [`super::StorageError::Corrupt`].
    async fn load_foreign_payloads(
        &self,
        scope: &Scope,
        thread: ThreadKey,
        hashes: &[PayloadHash],
    ) -> Result<Vec<ForeignPayload>>;

    /// The latest checkpoint of each namespace, by namespace.
    async fn latest_foreign(&self, scope: &Scope, thread: ThreadKey) -> Result<Vec<(String, CheckpointId)>>;

    /// Deletes the checkpoints of these runs with the writes on them, on any thread; returns the threads concerned. One
    /// bounded step: when as many as `limit` checkpoints went, there may be more.
    async fn delete_foreign_runs(&self, scope: &Scope, run_ids: &[String], limit: i64) -> Result<(i64, Vec<ThreadId>)>;

    /// One bounded step of removing all but `kept`. With [`Pruned::Done`] the thread counts as pruned. A payload of parts
    /// that is there has all of its parts, between steps too. [`Pruned::Changed`] also while writes wait for a checkpoint
    /// that is on its way.
    async fn prune_foreign(&self, scope: &Scope, id: &ThreadId, kept: &ForeignKept) -> Result<Pruned>;

    /// Copies a thread with all its checkpoints under a name that is free.
    async fn copy_foreign(&self, scope: &Scope, from: &ThreadId, to: &ThreadId) -> Result<ForeignCopied>;
}

/// Puts some of the batches: one after the other those of one thread, at once those of others. Returns their positions with
/// what came of them.
pub(crate) async fn put_by_thread<'a, F: Future<Output = Result<ForeignOutcome>>>(
    batches: &'a [ForeignBatch],
    some: impl Iterator<Item = usize>,
    put: impl Fn(&'a ForeignBatch) -> F,
) -> Vec<(usize, Result<ForeignOutcome>)> {
    let mut threads: HashMap<&ThreadId, Vec<usize>> = HashMap::new();
    for at in some {
        threads.entry(&batches[at].thread_id).or_default().push(at);
    }
    let put = &put;
    let groups = threads.into_values().map(|group| async move {
        let mut outcomes = Vec::with_capacity(group.len());
        for at in group {
            outcomes.push((at, put(&batches[at]).await));
        }
        outcomes
    });
    join_all(groups).await.into_iter().flatten().collect()
}

/// A batch as every backend stores it: of what is there twice, what counts.
pub(crate) fn settled(batch: &ForeignBatch) -> ForeignBatch {
    let mut batch = batch.clone();
    let mut seen = std::collections::HashSet::new();
    batch.checkpoints.reverse();
    batch.checkpoints.retain(|row| seen.insert((row.ns.clone(), row.id.clone())));
    batch.checkpoints.reverse();
    // Of a special slot the last counts, of others the first.
    let key = |row: &ForeignWrites| (row.ns.clone(), row.checkpoint_id.clone(), row.task_id.clone(), row.slot.clone());
    let mut seen = std::collections::HashSet::new();
    batch.writes.reverse();
    batch.writes.retain(|row| !row.slot.starts_with('-') || seen.insert(key(row)));
    batch.writes.reverse();
    batch.writes.retain(|row| row.slot.starts_with('-') || seen.insert(key(row)));
    let mut seen = std::collections::HashSet::new();
    batch.payloads.retain(|payload| seen.insert(payload.hash));
    batch.references.retain(|hash| seen.insert(*hash));
    // In one order for everybody: no deadlocks.
    batch.payloads.sort_by_key(|payload| payload.hash);
    batch
}
