//! The contract for threads.

use async_trait::async_trait;

use super::Result;
use crate::model::{CheckpointId, Json, RunId, Scope, Thread, ThreadId, ThreadKey, ThreadStatus, Ttl};

/// A thread to insert.
#[derive(Debug, Clone)]
pub struct NewThread {
    pub id: ThreadId,
    pub graph_id: Option<String>,
    /// An object.
    pub metadata: Json,
    /// An object.
    pub config: Json,
    /// How long to keep it; `None`: for ever.
    pub ttl: Option<Ttl>,
}

/// What [`Threads::create_thread`] did.
#[derive(Debug, Clone)]
pub enum ThreadCreated {
    New(Thread),
    /// The id was taken; nothing was changed.
    Existing(Thread),
}

/// Changes to a thread; `None` keeps.
#[derive(Debug, Clone, Default)]
pub struct ThreadPatch {
    /// Merged shallowly: given keys replace, others stay.
    pub metadata: Option<Json>,
    /// Replaces the thread's graph.
    pub graph_id: Option<String>,
    /// Replaces how long it is kept.
    pub ttl: Option<Ttl>,
}

/// Which threads a list shows. All conditions must hold.
#[derive(Debug, Clone, Default)]
pub struct ThreadFilter {
    pub ids: Option<Vec<ThreadId>>,
    /// JSON containment: every given key and value is contained, recursively (Postgres `@>` semantics).
    pub metadata: Option<Json>,
    pub status: Option<ThreadStatus>,
    pub closed: ClosedFilter,
}

/// Which threads a list shows by whether they are closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ClosedFilter {
    /// All but archived ones.
    #[default]
    NotArchived,
    Open,
    Ended,
    Archived,
    Any,
}

impl ClosedFilter {
    /// The condition on a thread `t`, as both databases read it.
    pub(crate) fn condition(self) -> &'static str {
        match self {
            ClosedFilter::NotArchived => " AND (t.closed IS NULL OR t.closed <> 'archived')",
            ClosedFilter::Open => " AND t.closed IS NULL",
            ClosedFilter::Ended => " AND t.closed = 'ended'",
            ClosedFilter::Archived => " AND t.closed = 'archived'",
            ClosedFilter::Any => "",
        }
    }
}

/// The columns a thread list may be ordered by; ties are broken by the thread's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ThreadSort {
    ThreadId,
    Status,
    CreatedAt,
    #[default]
    UpdatedAt,
    StateUpdatedAt,
}

/// A window of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Page {
    pub limit: i64,
    pub offset: i64,
}

impl Default for Page {
    fn default() -> Self {
        Page { limit: 10, offset: 0 }
    }
}

/// A thread that something is left to do on.
#[derive(Debug, Clone)]
pub struct WaitingThread {
    pub thread: Thread,
    /// The graphs of its active runs, sorted.
    pub run_graphs: Vec<String>,
}

/// Threads.
#[async_trait]
pub trait Threads {
    /// Inserts the thread unless its id is taken in this tenant.
    async fn create_thread(&self, scope: &Scope, new: NewThread) -> Result<ThreadCreated>;

    /// Reads one thread, with its status derived from its runs.
    async fn find_thread(&self, scope: &Scope, id: &ThreadId) -> Result<Option<Thread>>;

    /// Applies a patch and moves `updated_at`. `None` when the thread is missing.
    async fn update_thread(&self, scope: &Scope, id: &ThreadId, patch: ThreadPatch) -> Result<Option<Thread>>;

    /// Deletes the thread with all its runs, checkpoints, writes, payloads, logs, events and crons; of a large one the rest goes
    /// by [`super::Retention::reclaim`]. Returns the runs that were active (their workers find their lease gone), or
    /// `None` when the thread is missing. Final: no late write of a run brings anything back.
    async fn delete_thread(&self, scope: &Scope, id: &ThreadId) -> Result<Option<Vec<RunId>>>;

    /// Merges keys into the metadata of the thread's latest checkpoint. `None` when the thread is missing or closed,
    /// `Some(None)` when it has no checkpoint.
    async fn update_head_metadata(
        &self,
        scope: &Scope,
        id: &ThreadId,
        metadata: &Json,
    ) -> Result<Option<Option<CheckpointId>>>;

    /// Copies the thread, all its checkpoints, writes, payloads and logs under a new id; not its runs or events. The
    /// copy is idle, and its view says that it shows no values, until something runs on it. `None` when the
    /// source is missing.
    async fn copy_thread(&self, scope: &Scope, from: &ThreadId, to: &ThreadId) -> Result<Option<Thread>>;

    /// One page of the threads that match.
    async fn search_threads(
        &self,
        scope: &Scope,
        filter: &ThreadFilter,
        sort: ThreadSort,
        ascending: bool,
        page: Page,
    ) -> Result<Vec<Thread>>;

    /// How many threads match.
    async fn count_threads(&self, scope: &Scope, filter: &ThreadFilter) -> Result<i64>;

    /// One page of the threads that wait, in the order of their keys, after `after`: nodes are left to run at their head, or
    /// runs are queued or running.
    async fn waiting_threads(&self, scope: &Scope, after: Option<ThreadKey>, limit: i64) -> Result<Vec<WaitingThread>>;
}
