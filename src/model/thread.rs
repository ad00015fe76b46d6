//! Threads: one conversation or task, and everything tied to it.

use serde::{Deserialize, Serialize};

use super::{CheckpointId, ErrorInfo, Json, ThreadId, ThreadKey, Timestamp, UsageTotals};

/// A thread's status, derived from its runs and its head; never stored as a second truth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ThreadStatus {
    /// No active run, nothing pending.
    Idle,
    /// A run is pending or running.
    Busy,
    /// No active run, and the head checkpoint still has next nodes.
    Interrupted,
    /// The last run failed.
    Error,
}

impl ThreadStatus {
    pub fn as_str(self) -> &'static str {
        match self {
            ThreadStatus::Idle => "idle",
            ThreadStatus::Busy => "busy",
            ThreadStatus::Interrupted => "interrupted",
            ThreadStatus::Error => "error",
        }
    }

    pub fn parse(text: &str) -> Option<ThreadStatus> {
        [ThreadStatus::Idle, ThreadStatus::Busy, ThreadStatus::Interrupted, ThreadStatus::Error]
            .into_iter()
            .find(|status| status.as_str() == text)
    }
}

/// A thread row. Its values and interrupts are usually not here: they are read from the head checkpoint.
#[derive(Debug, Clone)]
pub struct Thread {
    pub key: ThreadKey,
    pub id: ThreadId,
    /// The graph of the thread's latest run, if it ever had one.
    pub graph_id: Option<String>,
    pub metadata: Json,
    pub config: Json,
    pub status: ThreadStatus,
    /// Why the last run did not end well: its failure, or that somebody stopped it.
    pub error: Option<ErrorInfo>,
    /// The latest checkpoint of the root namespace.
    pub head: Option<CheckpointId>,
    /// What the thread's document shows instead of its head: `{values, interrupts}`; absent in the usual case, so that
    /// no state is stored twice.
    pub view: Option<Json>,
    /// The largest event id given out so far ([`super::EventId`]), 0 if none.
    pub last_event: i64,
    /// What models cost on this thread, runs that were deleted or rolled back included.
    pub usage: UsageTotals,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    pub state_updated_at: Timestamp,
    /// How it was closed; `None` while it is open.
    pub closed: Option<Closed>,
    /// Where its head was moved last, if ever.
    pub moved: Option<Moved>,
}

impl Thread {
    /// Whether the head was moved here and nothing has run since: what follows goes on from a checkpoint that others may
    /// have gone on from before, as time travel does.
    pub fn is_moved(&self) -> bool {
        self.moved.as_ref().is_some_and(|moved| self.head.as_ref() == Some(&moved.to))
    }

    /// The newest checkpoint of the root graph that is known without looking: new ones must be later.
    pub fn newest(&self) -> Option<CheckpointId> {
        self.head.clone().max(self.moved.as_ref().map(|moved| moved.past.clone()))
    }
}

/// How a thread was closed. Either way it takes no run and no change of its state until it is opened again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ClosedAs {
    Ended,
    /// And lists show it only when they are asked to.
    Archived,
}

impl ClosedAs {
    pub fn as_str(self) -> &'static str {
        match self {
            ClosedAs::Ended => "ended",
            ClosedAs::Archived => "archived",
        }
    }

    pub fn parse(text: &str) -> Option<ClosedAs> {
        [ClosedAs::Ended, ClosedAs::Archived].into_iter().find(|how| how.as_str() == text)
    }
}

/// That a thread was closed: how, when, by whom and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Closed {
    #[serde(rename = "as")]
    pub how: ClosedAs,
    pub at: Timestamp,
    /// A name for records, not a proof.
    pub by: Option<String>,
    pub reason: Option<String>,
}

/// A move of a thread's head to another checkpoint than the one that runs left it at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moved {
    pub to: CheckpointId,
    /// The newest checkpoint there was then.
    pub past: CheckpointId,
}

/// What happens to a thread that nobody has used for its time to live.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TtlStrategy {
    /// It is deleted.
    #[default]
    Delete,
    /// All but its latest state is.
    KeepLatest,
}

impl TtlStrategy {
    pub fn as_str(self) -> &'static str {
        match self {
            TtlStrategy::Delete => "delete",
            TtlStrategy::KeepLatest => "keep_latest",
        }
    }

    pub fn parse(text: &str) -> Option<TtlStrategy> {
        [TtlStrategy::Delete, TtlStrategy::KeepLatest].into_iter().find(|strategy| strategy.as_str() == text)
    }
}

/// How long to keep a thread after it was last used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ttl {
    pub strategy: TtlStrategy,
    pub micros: i64,
}

impl Ttl {
    /// Of a number of minutes, fractions allowed.
    pub fn of_minutes(strategy: TtlStrategy, minutes: f64) -> Ttl {
        Ttl { strategy, micros: (minutes * MICROS_PER_MINUTE) as i64 }
    }
}

/// How long a thread is kept, and until when that is as of now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ThreadTtl {
    pub strategy: TtlStrategy,
    pub ttl_micros: i64,
    /// Moves whenever the thread is used.
    pub expires_at: Timestamp,
}

impl ThreadTtl {
    pub fn minutes(&self) -> f64 {
        self.ttl_micros as f64 / MICROS_PER_MINUTE
    }
}

const MICROS_PER_MINUTE: f64 = 60_000_000.0;
