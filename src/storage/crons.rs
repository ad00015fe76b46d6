//! The contract for crons: what is due, and the one operation that turns a tick into a run.

use async_trait::async_trait;
use uuid::Uuid;

use super::{NewRun, Page, Result, RunCreated};
use crate::model::{Closed, Cron, Json, Scope, ThreadId, Timestamp};

/// Which crons a list shows. All conditions must hold.
#[derive(Debug, Clone, Default)]
pub struct CronFilter {
    pub assistant_id: Option<Uuid>,
    pub thread_id: Option<ThreadId>,
    pub enabled: Option<bool>,
    /// JSON containment, as for threads.
    pub metadata: Option<Json>,
}

/// The columns a list of crons may be ordered by; ties are broken by the id. A date that is not set sorts last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CronSort {
    CronId,
    AssistantId,
    ThreadId,
    NextRunDate,
    EndTime,
    #[default]
    CreatedAt,
    UpdatedAt,
}

/// What [`Crons::create_cron`] did.
#[derive(Debug, Clone)]
pub enum CronCreated {
    Created(Cron),
    /// Its thread is missing.
    ThreadMissing,
    /// Its thread is closed: no run would ever be accepted.
    ThreadClosed(Closed),
}

/// What became of a change.
#[derive(Debug, Clone)]
pub enum CronReplaced {
    Replaced(Cron),
    Missing,
    /// It was changed, or fired, since it was read: compute the change again.
    Moved,
}

/// A cron whose tick has come.
#[derive(Debug, Clone)]
pub struct DueCron {
    pub tenant: Uuid,
    pub cron: Cron,
}

/// What [`Crons::due_crons`] found.
#[derive(Debug, Clone)]
pub struct DueCrons {
    /// The database's clock.
    pub now: Timestamp,
    /// Earliest first.
    pub due: Vec<DueCron>,
    /// When the next one after these is due.
    pub next: Option<Timestamp>,
}

/// One tick to account for.
#[derive(Debug, Clone)]
pub struct CronTick {
    pub cron_id: Uuid,
    /// The revision the decision was made from.
    pub revision: i64,
    pub tick: Timestamp,
    /// `None`: the tick is too old, only the date moves on.
    pub run: Option<NewRun>,
    /// The tick after it.
    pub next: Option<Timestamp>,
}

/// What [`Crons::fire_cron`] did.
#[derive(Debug, Clone)]
#[expect(clippy::large_enum_variant, reason = "made once per tick")]
pub enum CronFired {
    /// The tick is recorded and the date moved on: with the run, or with what stood against it
    /// ([`RunCreated::ThreadBusy`], [`RunCreated::ThreadClosed`]).
    Fired(RunCreated),
    /// The date moved on without a run: there was none to insert, or the tick was fired before.
    Skipped,
    /// The cron's thread is gone, and now the cron is, too.
    ThreadGone,
    /// Somebody else was faster, or the cron was changed, paused or deleted. Nothing was done.
    Stale,
}

/// Crons.
#[async_trait]
pub trait Crons {
    /// The database's clock: dates are computed from it, never from the machine's.
    async fn database_time(&self, scope: &Scope) -> Result<Timestamp>;

    /// Inserts a cron (`revision` and the dates of the row are set here), if its thread can take runs.
    async fn create_cron(&self, scope: &Scope, new: Cron) -> Result<CronCreated>;

    async fn find_cron(&self, scope: &Scope, cron_id: Uuid) -> Result<Option<Cron>>;

    /// Replaces all of a cron but its id, thread and creation date, if it still has the revision given.
    async fn replace_cron(&self, scope: &Scope, cron: Cron) -> Result<CronReplaced>;

    /// Deletes a cron with its ticks; its runs stay. False when it is missing.
    async fn delete_cron(&self, scope: &Scope, cron_id: Uuid) -> Result<bool>;

    /// One page of the crons that match.
    async fn search_crons(
        &self,
        scope: &Scope,
        filter: &CronFilter,
        sort: CronSort,
        ascending: bool,
        page: Page,
    ) -> Result<Vec<Cron>>;

    /// How many crons match.
    async fn count_crons(&self, scope: &Scope, filter: &CronFilter) -> Result<i64>;

    /// Up to `limit` enabled crons whose date has come.
    async fn due_crons(&self, scope: &Scope, limit: i64) -> Result<DueCrons>;

    /// Inserts the tick's row, its run and the next date: all three or nothing. The row is unique, so a tick has at most
    /// one run, however many processes try. A cron whose thread is closed is disabled with it, so that it is seen to rest. Notices as of [`super::Runs::create_run`].
    async fn fire_cron(&self, scope: &Scope, tick: CronTick) -> Result<CronFired>;
}
