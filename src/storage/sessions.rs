//! The contract for sessions: threads as a whole, with everything tied to them: closing and opening them, what there is of
//! one, and what is known of a run besides what clients usually see.

use async_trait::async_trait;

use super::{CancelRequest, Cancelled, Result};
use crate::model::{Closed, ClosedAs, Run, RunId, RunStatus, Scope, Thread, ThreadId, ThreadTtl, Timestamp, Ttl};

/// How to close a thread.
#[derive(Debug, Clone)]
pub struct Close {
    pub how: ClosedAs,
    /// Who and why: kept with the thread, and with the runs this cancels.
    pub actor: Option<String>,
    pub reason: Option<String>,
    /// Replaces how long the thread is kept; that begins anew now in any case.
    pub ttl: Option<Ttl>,
    /// Cancel what is active on it; otherwise that is [`CloseOutcome::Busy`].
    pub cancels: bool,
}

/// What [`Sessions::close_thread`] did.
#[derive(Debug, Clone)]
pub enum CloseOutcome {
    /// Closed now, or before in this very way: then nothing was changed.
    Closed {
        thread: Box<Thread>,
        /// Runs that were active: pending ones have ended, running ones are asked to stop.
        cancelled: Vec<Cancelled>,
    },
    /// Missing, or gone with the stateless run that it was made for.
    Missing,
    /// A run is active, and was not to be cancelled. Nothing was changed.
    Busy,
    /// It is archived, which is more. Nothing was changed.
    Archived(Closed),
}

/// Active runs that a session shows at most.
pub const SHOWN_RUNS: i64 = 20;

/// A thread with what is tied to it.
#[derive(Debug, Clone)]
pub struct Session {
    pub thread: Thread,
    /// By the database's clock.
    pub now: Timestamp,
    pub ttl: Option<ThreadTtl>,
    /// The branch it is on.
    pub branch: Option<String>,
    pub counts: SessionCounts,
    /// The oldest [`SHOWN_RUNS`] of its active runs.
    pub active: Vec<RunDetail>,
}

/// How much of a session there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SessionCounts {
    /// Of the root graph and those inside it.
    pub checkpoints: i64,
    /// What its checkpoints added to the thread: rows, values and items of lists.
    pub bytes: i64,
    pub runs: i64,
    pub active_runs: i64,
    pub interrupts: i64,
    pub events: i64,
    pub branches: i64,
    pub crons: i64,
}

/// A run with what its queue knows of it.
#[derive(Debug, Clone)]
pub struct RunDetail {
    pub run: Run,
    /// Not before this.
    pub run_at: Timestamp,
    /// When a worker first took it; `None`: none did, or it was longer ago than that is remembered.
    pub started_at: Option<Timestamp>,
    /// Claims so far: the epoch of its lease.
    pub claims: i64,
    pub worker: Option<String>,
    /// While it is running.
    pub lease_until: Option<Timestamp>,
    pub cancel: Option<CancelRequest>,
    /// Its input is spent.
    pub input_applied: bool,
    pub temporary: bool,
}

/// A run, and what it may be waiting for.
#[derive(Debug, Clone)]
pub struct RunExplained {
    pub detail: RunDetail,
    /// By the database's clock.
    pub now: Timestamp,
    /// The active run of its thread that goes first.
    pub behind: Option<(RunId, RunStatus)>,
    /// Active runs of its thread that go first.
    pub ahead: i64,
}

/// Sessions.
#[async_trait]
pub trait Sessions {
    /// Closes a thread: from the moment this is committed no run is accepted and no state is changed. Moves `updated_at`,
    /// so that its time to live begins now. Sends [`super::Notice::CancelRequested`] or [`super::Notice::RunEnded`] for
    /// the runs it cancels.
    async fn close_thread(&self, scope: &Scope, id: &ThreadId, close: &Close) -> Result<CloseOutcome>;

    /// Opens a thread that was closed; an open one stays as it is. `None` when it is missing.
    async fn reopen_thread(&self, scope: &Scope, id: &ThreadId) -> Result<Option<Thread>>;

    /// Reads a session. `None` when the thread is missing.
    async fn find_session(&self, scope: &Scope, id: &ThreadId) -> Result<Option<Session>>;

    /// Reads a run with what it may be waiting for, by its id alone.
    async fn explain_run(&self, scope: &Scope, run_id: RunId) -> Result<Option<RunExplained>>;
}

/// Defines `session_from`, `detail_from` and `explained_from` for a row type.
macro_rules! define_session_rows {
    ($row:ty) => {
        fn session_from(row: &$row, active: Vec<RunDetail>) -> Result<Session> {
            let updated_at: i64 = get(row, "updated_at")?;
            let ttl: Option<i64> = get(row, "ttl")?;
            let strategy: Option<String> = get(row, "ttl_strategy")?;
            Ok(Session {
                thread: thread_from(row)?,
                now: Timestamp(get(row, "now")?),
                ttl: ttl.and_then(|ttl| ttl_of(ttl, strategy.as_deref().unwrap_or_default(), updated_at)),
                branch: get(row, "branch")?,
                counts: SessionCounts {
                    checkpoints: get(row, "checkpoints")?,
                    bytes: get::<Option<i64>>(row, "bytes")?.unwrap_or(0),
                    runs: get(row, "runs")?,
                    active_runs: get(row, "active_runs")?,
                    interrupts: get(row, "interrupts")?,
                    events: get(row, "events")?,
                    branches: get(row, "branches")?,
                    crons: get(row, "crons")?,
                },
                active,
            })
        }

        /// The columns of a run and its thread, and those of the queue.
        fn detail_from(row: &$row) -> Result<RunDetail> {
            let lease_until: i64 = get(row, "lease_until")?;
            Ok(RunDetail {
                run: run_from(row)?,
                run_at: Timestamp(get(row, "run_at")?),
                started_at: get::<Option<i64>>(row, "started_at")?.map(Timestamp),
                claims: get(row, "lease_epoch")?,
                worker: get::<Option<String>>(row, "worker")?.map(show_nul),
                lease_until: (lease_until > 0).then_some(Timestamp(lease_until)),
                cancel: cancel_from(row)?,
                input_applied: get(row, "input_applied")?,
                temporary: get(row, "temporary")?,
            })
        }

        fn explained_from(row: &$row) -> Result<RunExplained> {
            let behind: Option<uuid::Uuid> = get(row, "behind")?;
            let status: Option<String> = get(row, "behind_status")?;
            let status = status.and_then(|status| RunStatus::parse(&status));
            Ok(RunExplained {
                detail: detail_from(row)?,
                now: Timestamp(get(row, "now")?),
                behind: behind.zip(status),
                ahead: get(row, "ahead")?,
            })
        }
    };
}
pub(crate) use define_session_rows;

/// Why the runs of a thread were cancelled that was closed, unless somebody said.
pub(crate) fn cancel_reason(close: &Close) -> String {
    close.reason.clone().unwrap_or_else(|| format!("the thread was {}", close.how.as_str()))
}
