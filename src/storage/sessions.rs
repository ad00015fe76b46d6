//! The contract for sessions: threads as a whole, with everything tied to them. Closing and opening them here.

use async_trait::async_trait;

use super::{Cancelled, Result};
use crate::model::{Closed, ClosedAs, Scope, Thread, ThreadId, Ttl};

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

/// Sessions.
#[async_trait]
pub trait Sessions {
    /// Closes a thread: from the moment this is committed no run is accepted and no state is changed. Moves `updated_at`,
    /// so that its time to live begins now. Sends [`super::Notice::CancelRequested`] or [`super::Notice::RunEnded`] for
    /// the runs it cancels.
    async fn close_thread(&self, scope: &Scope, id: &ThreadId, close: &Close) -> Result<CloseOutcome>;

    /// Opens a thread that was closed; an open one stays as it is. `None` when it is missing.
    async fn reopen_thread(&self, scope: &Scope, id: &ThreadId) -> Result<Option<Thread>>;
}

/// Why the runs of a thread were cancelled that was closed, unless somebody said.
pub(crate) fn cancel_reason(close: &Close) -> String {
    close.reason.clone().unwrap_or_else(|| format!("the thread was {}", close.how.as_str()))
}
