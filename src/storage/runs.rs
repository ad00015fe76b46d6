//! The contract for runs: the queue, leases, cancellation, and the fenced commit of supersteps.

use std::time::Duration;

use async_trait::async_trait;
use uuid::Uuid;

use super::checkpoints::{CheckpointRow, LogRow, Payload, TaskWritesRow};
use super::effects::EffectRow;
use super::interrupts::InterruptRow;
use super::webhooks::WebhookEnd;
use super::{Page, Result};
use crate::model::{
    CancelAction, CheckpointId, Closed, ErrorInfo, EventId, Json, ModelUsage, MultitaskStrategy, Run, RunId, RunStatus,
    Scope, TaskExecution, Thread, ThreadId, ThreadKey, ThreadStatus, Timestamp, Ttl,
};

/// The right to execute a run: valid while the run row is `running` with this epoch. The epoch grows by one per claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Lease {
    pub thread: ThreadKey,
    pub run_id: RunId,
    pub epoch: i64,
}

/// Who claims, and for how long without renewal.
#[derive(Debug, Clone)]
pub struct Claim {
    /// A name for humans; nothing is decided by it but which last attempts are made together.
    pub worker: String,
    pub lease: Duration,
}

/// A run to insert.
#[derive(Debug, Clone)]
pub struct NewRun {
    pub run_id: RunId,
    pub thread_id: ThreadId,
    /// Insert the thread when it is missing; otherwise that is [`RunCreated::ThreadMissing`].
    pub create_thread: bool,
    pub assistant_id: Uuid,
    /// When the assistant that the caller has read was last changed; `None`: it had no row. If that is not so any more,
    /// the answer is [`RunCreated::AssistantChanged`]: what callers remember of assistants cannot be stale.
    pub assistant_as_of: Option<Timestamp>,
    pub graph_id: String,
    /// An object; the thread's metadata at this moment is merged below it.
    pub metadata: Json,
    /// An object, merged below the thread's metadata: the assistant's.
    pub assistant_metadata: Json,
    /// [`crate::model::RunKwargs`] as JSON.
    pub kwargs: Json,
    pub multitask_strategy: MultitaskStrategy,
    /// Not before this long from now.
    pub after: Duration,
    /// Merged shallowly into the thread's metadata.
    pub thread_metadata: Json,
    /// How long to keep the thread, if this makes it.
    pub thread_ttl: Option<Ttl>,
    /// The thread goes when the run ends.
    pub temporary: bool,
    /// Claim the run in the inserting operation if nothing else is active on the thread and `after` is zero.
    pub claim: Option<Claim>,
    /// Who asked for it: kept with the run, with the answers it brings, and with runs cancelled by the strategy.
    pub actor: Option<String>,
    /// Where the end of the run is told: an outbox row, written with the run.
    pub webhook: Option<String>,
}

/// What [`Runs::create_run`] did.
#[derive(Debug, Clone)]
pub enum RunCreated {
    Created {
        run: Run,
        /// Present when the run was claimed at once.
        claimed: Option<Box<ClaimedRun>>,
        /// Runs that `interrupt` or `rollback` stopped or asked to stop.
        cancelled: Vec<Cancelled>,
    },
    /// The thread does not exist and was not to be created.
    ThreadMissing,
    /// `reject`, and the thread has an active run. Nothing was inserted.
    ThreadBusy,
    /// The thread is closed. Nothing was inserted.
    ThreadClosed(Closed),
    /// The thread's checkpoints come from elsewhere ([`super::foreign`]). Nothing was inserted.
    ThreadForeign,
    /// The run id is taken. Nothing was inserted.
    RunExists,
    /// The assistant is not as the caller has read it. Nothing was inserted.
    AssistantChanged,
}

/// A run that this process may execute now.
#[derive(Debug, Clone)]
pub struct ClaimedRun {
    pub lease: Lease,
    pub run: Run,
    pub thread: Thread,
    /// The tenant the thread belongs to.
    pub tenant: Uuid,
    /// The input was spent in an earlier attempt: go on with null input.
    pub input_applied: bool,
    /// A cancel flag that was already set.
    pub cancel: Option<CancelRequest>,
}

/// A durable request to stop a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CancelRequest {
    pub action: CancelAction,
    pub actor: Option<String>,
    pub reason: Option<String>,
}

/// Which active runs to cancel.
#[derive(Debug, Clone)]
pub enum CancelTarget {
    Runs {
        thread_id: ThreadId,
        run_ids: Vec<RunId>,
    },
    /// Every active run of a thread.
    Thread(ThreadId),
    /// Every active run of an assistant.
    Assistant(Uuid),
    /// Every active run of the scope with one of the statuses (`pending`, `running`).
    Status(Vec<RunStatus>),
}

/// A run that a cancel reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cancelled {
    pub run_id: RunId,
    pub thread: ThreadKey,
    /// False: it was pending and is finished now (`interrupted`, or deleted by `rollback`). True: it is running, the
    /// flag is set, its worker will stop it.
    pub running: bool,
}

/// What a renewal found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseState {
    pub lease: Lease,
    /// False: the lease is gone; stop and write nothing.
    pub held: bool,
    pub cancel: Option<CancelRequest>,
}

/// How a run ends.
#[derive(Debug, Clone)]
pub struct RunEnd {
    /// A terminal status.
    pub status: RunStatus,
    pub error: Option<ErrorInfo>,
    /// What the thread rests at: `idle`, `interrupted` or `error`.
    pub thread_status: ThreadStatus,
    /// What the thread's document shows instead of its head from now on ([`Thread::view`]); `None` clears it.
    pub view: Option<Json>,
    /// What the run's webhook is told, if it has one.
    pub webhook: Option<WebhookEnd>,
    /// Tell other replicas ([`super::Notice::RunEnded`]); the own process is always told.
    pub announce: bool,
}

/// Rows of one or more supersteps, inserted together. Except for task writes, interrupts and effects, a row that is there
/// already stays as it is: a commit repeated after its answer was lost changes nothing.
#[derive(Debug, Clone, Default)]
pub struct StepRows {
    pub checkpoints: Vec<CheckpointRow>,
    /// Inserted, or replacing the same run's earlier row of the same task.
    pub task_writes: Vec<TaskWritesRow>,
    /// Inserted unless the thread has that hash already.
    pub payloads: Vec<Payload>,
    pub log: Vec<LogRow>,
    /// Questions asked, answered and withdrawn; by a run only.
    pub interrupts: Vec<InterruptRow>,
    /// External calls of tasks; see [`EffectRow`].
    pub effects: Vec<EffectRow>,
    /// Executions of tasks, for the log; by a run only.
    pub executions: Vec<TaskExecution>,
    /// Added to the totals of the run and of its thread, once: each model at most one row per commit.
    pub usage: Vec<UsageRow>,
    /// The new head of the root namespace.
    pub head: Option<CheckpointId>,
}

impl StepRows {
    /// Nothing to write.
    pub fn is_empty(&self) -> bool {
        self.checkpoints.is_empty()
            && self.task_writes.is_empty()
            && self.payloads.is_empty()
            && self.log.is_empty()
            && self.interrupts.is_empty()
            && self.effects.is_empty()
            && self.executions.is_empty()
            && self.usage.is_empty()
    }
}

/// What a model was asked for since the last commit.
#[derive(Debug, Clone)]
pub struct UsageRow {
    pub model: String,
    pub usage: ModelUsage,
    /// Grows with every commit of the run that counts something: one that was counted already is not counted again.
    pub seq: i64,
}

/// An event kept for replay.
#[derive(Debug, Clone)]
pub struct StoredEvent {
    pub id: EventId,
    pub run_id: RunId,
    pub name: String,
    pub data: Json,
}

/// A superstep commit: all of it or none, and none without the lease. A commit with checkpoints counts as progress: it
/// resets the attempts of the run.
#[derive(Debug, Clone)]
pub struct StepCommit {
    pub lease: Lease,
    pub rows: StepRows,
    pub events: Vec<StoredEvent>,
    /// The run's input or Command is spent with this commit.
    pub input_applied: bool,
    /// The run ends with this commit. A temporary thread is deleted with everything on it.
    pub end: Option<RunEnd>,
}

/// What became of one member of a commit batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommitOutcome {
    Committed,
    /// The lease is gone (taken over, cancelled by deletion, thread deleted): nothing of this member was written.
    LeaseLost,
}

/// A state change from outside a run (`update_state`).
#[derive(Debug, Clone)]
pub struct StateCommit {
    pub thread_id: ThreadId,
    /// The head the change was computed from; a different one now is [`StateOutcome::HeadMoved`].
    pub expected_head: Option<CheckpointId>,
    /// The namespace and checkpoint whose values the change refers to; that it was pruned is [`StateOutcome::HeadMoved`].
    pub base: Option<(String, CheckpointId)>,
    pub rows: StepRows,
    /// Events that tell of the change.
    pub events: Vec<StoredEvent>,
    /// What the thread rests at afterwards: `idle` or `interrupted`.
    pub thread_status: ThreadStatus,
    /// What the thread's document shows instead of its head from now on ([`Thread::view`]); `None` clears it.
    pub view: Option<Json>,
    /// The head is not new, but moved to a checkpoint that was there.
    pub moves: Option<HeadMove>,
}

/// A move of the head ([`super::branches`]).
#[derive(Debug, Clone, Default)]
pub struct HeadMove {
    /// The branch the thread is on from now on; that its name stands elsewhere is [`StateOutcome::HeadMoved`]. `None`: on
    /// none.
    pub branch: Option<String>,
}

/// What [`Runs::commit_state`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StateOutcome {
    Committed,
    ThreadMissing,
    /// A run is pending or running.
    ThreadBusy,
    ThreadClosed,
    /// The thread's checkpoints come from elsewhere ([`super::foreign`]).
    ThreadForeign,
    HeadMoved,
}

/// Which runs a list shows.
#[derive(Debug, Clone, Default)]
pub struct RunFilter {
    pub status: Option<RunStatus>,
}

/// Runs.
#[async_trait]
pub trait Runs {
    /// Inserts a run and applies its multitask strategy in the same operation (contract section 3.5). Moves the
    /// thread's `updated_at`, sets its graph and merges `thread_metadata`. Sends [`super::Notice::RunPending`] when the
    /// run waits for a worker, [`super::Notice::CancelRequested`] for each running run it asks to stop.
    async fn create_run(&self, scope: &Scope, new: NewRun) -> Result<RunCreated>;

    /// Claims up to `limit` runs, oldest first: pending ones that are due and whose thread has no running run and no
    /// older pending one that is due, and running ones whose lease has run out. Raises epoch and attempts. A run that
    /// would exceed `max_attempts` is not returned: it ends as `error` with the class `RunQuarantined`, its thread at
    /// `error` without a view. Runs whose cancel flag is set are returned with it.
    /// Last attempts are made one at a time per worker for five minutes, unless they are cancelled.
    async fn claim_runs(&self, scope: &Scope, claim: &Claim, max_attempts: i32, limit: i64) -> Result<Vec<ClaimedRun>>;

    /// Renews the leases that are still held and reports on each, in the order given.
    async fn renew_leases(&self, scope: &Scope, leases: &[Lease], lease: Duration) -> Result<Vec<LeaseState>>;

    /// Hands a run back (drain): pending again at once, without counting the attempt. False when the lease is gone.
    async fn release_run(&self, scope: &Scope, lease: &Lease) -> Result<bool>;

    /// Commits supersteps of one or more runs; each member stands or falls alone. Outcomes in the order given.
    async fn commit_steps(&self, scope: &Scope, batch: &[StepCommit]) -> Result<Vec<CommitOutcome>>;

    /// Ends a cancelled run by `rollback`: deletes the run, the checkpoints, writes, log rows and events it made, moves
    /// the head back to the newest checkpoint left, clears the view, and sets the thread's resting status. A temporary
    /// thread is deleted.
    async fn rollback_run(&self, scope: &Scope, lease: &Lease, thread_status: ThreadStatus) -> Result<CommitOutcome>;

    /// Commits a change of state from outside a run.
    async fn commit_state(&self, scope: &Scope, change: StateCommit) -> Result<StateOutcome>;

    /// Sets the cancel flag on running runs, and ends pending ones at once. Runs that are not active are left out of
    /// the answer. Repeating is harmless; `rollback` wins over an earlier `interrupt`.
    async fn cancel_runs(
        &self,
        scope: &Scope,
        target: &CancelTarget,
        request: &CancelRequest,
    ) -> Result<Vec<Cancelled>>;

    /// Reads one run of a thread.
    async fn find_run(&self, scope: &Scope, thread_id: &ThreadId, run_id: RunId) -> Result<Option<Run>>;

    /// Resolves a run by its id alone, through the lookup table.
    async fn locate_run(&self, scope: &Scope, run_id: RunId) -> Result<Option<Run>>;

    /// One page of a thread's runs, newest first. `None` when the thread is missing.
    async fn list_runs(
        &self,
        scope: &Scope,
        thread_id: &ThreadId,
        filter: &RunFilter,
        page: Page,
    ) -> Result<Option<Vec<Run>>>;

    /// The runs of an assistant on all threads, newest id first: those with an id smaller than `before`, if given.
    async fn list_assistant_runs(
        &self,
        scope: &Scope,
        assistant_id: Uuid,
        before: Option<RunId>,
        limit: i64,
    ) -> Result<Vec<Run>>;

    /// Deletes a run that is not active, with its checkpoints, writes and events; the head moves to the newest
    /// checkpoint left, and the thread's view is cleared. `None` when missing, `Some(false)` when active (nothing
    /// changed).
    async fn delete_run(&self, scope: &Scope, thread_id: &ThreadId, run_id: RunId) -> Result<Option<bool>>;

    /// Appends events between commits, fenced by the lease, and sends [`super::Notice::Events`].
    async fn append_events(&self, scope: &Scope, lease: &Lease, events: &[StoredEvent]) -> Result<CommitOutcome>;

    /// Stored events of a thread with an id greater than `after`, oldest first, of one run or of all.
    async fn read_events(
        &self,
        scope: &Scope,
        thread: ThreadKey,
        run_id: Option<RunId>,
        after: EventId,
        limit: i64,
    ) -> Result<Vec<StoredEvent>>;

    /// How many runs are pending and due, and how many are running: for metrics and drain decisions.
    async fn count_active(&self, scope: &Scope) -> Result<(i64, i64)>;
}
