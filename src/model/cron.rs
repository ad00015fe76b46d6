//! Crons: runs that start by themselves, on a schedule (contract section 3.8).

use uuid::Uuid;

use super::{Json, OnCompletion, ThreadId, Timestamp};

/// A cron row.
#[derive(Debug, Clone)]
pub struct Cron {
    pub cron_id: Uuid,
    pub assistant_id: Uuid,
    /// The thread its runs go to; `None`: each gets a thread of its own.
    pub thread_id: Option<ThreadId>,
    /// Five fields: minute, hour, day of the month, month, day of the week.
    pub schedule: String,
    /// The IANA name of the time zone the schedule is read in; `None` is UTC.
    pub timezone: Option<String>,
    /// No tick later than this is fired.
    pub end_time: Option<Timestamp>,
    /// What happens to the thread of a run that has one of its own.
    pub on_run_completed: Option<OnCompletion>,
    /// A paused cron (`false`) fires nothing; ticks that pass meanwhile are not made up for.
    pub enabled: bool,
    pub metadata: Json,
    /// The body it was made of, with later changes merged in, as clients see it.
    pub payload: Json,
    /// The same body, read: what the runtime makes runs of.
    pub request: Json,
    /// The tick to come; `None` when there is none before `end_time`.
    pub next_run_date: Option<Timestamp>,
    /// Grows with every change and every tick.
    pub revision: i64,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}
