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
