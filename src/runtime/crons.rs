//! Crons: making and changing them, and the loop that turns their ticks into runs.
//!
//! Every process that executes runs looks for due crons; whoever is first fires a tick, since the tick's row, its run and
//! the next date are one storage operation. Ticks that passed while nobody looked are made up for by one run, that of
//! the newest, unless it is later than [`CronSettings::catch_up`]. Between two looks a process sleeps until the next
//! date, but no longer than [`CronSettings::poll_every`], for the dates that other processes set.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

use super::schedule::Schedule;
use super::{AssistantName, RunRequest, Runtime, RuntimeError};
use crate::model::{
    Cron, Durability, Fields, Json, MultitaskStrategy, OnCompletion, RunKwargs, Scope, ThreadId, Timestamp,
};
use crate::storage::idempotency;
use crate::storage::{CronCreated, CronFired, CronReplaced, CronTick, DueCron, DueCrons, RunCreated};

/// Due crons read at once.
const BATCH: i64 = 100;
/// How often a change is computed anew when the cron moved meanwhile.
const ATTEMPTS: usize = 5;

/// Settings of crons; the defaults are those of `config.toml`.
#[derive(Debug, Clone)]
pub struct CronSettings {
    /// The longest sleep between two looks for due crons.
    pub poll_every: Duration,
    /// A tick that could not be fired for this long is left out.
    pub catch_up: Duration,
}

impl Default for CronSettings {
    fn default() -> Self {
        CronSettings { poll_every: Duration::from_secs(5), catch_up: Duration::from_secs(86_400) }
    }
}

/// A cron as a client wants it.
#[derive(Debug, Clone)]
pub struct CronRequest {
    pub schedule: String,
    pub timezone: Option<String>,
    pub end_time: Option<Timestamp>,
    pub enabled: bool,
    pub on_run_completed: Option<OnCompletion>,
    pub metadata: Json,
    /// The body, as clients see it again.
    pub payload: Json,
    /// The same body, read.
    pub run: RunRequest,
}

/// What is kept of a [`RunRequest`] until its ticks come.
#[derive(Debug, Serialize, Deserialize)]
struct CronRun {
    kwargs: RunKwargs,
    #[serde(default)]
    durability: Option<Durability>,
    metadata: Json,
    multitask_strategy: MultitaskStrategy,
}

impl Runtime {
    /// Makes a cron; committed when this returns.
    pub async fn create_cron(&self, scope: &Scope, request: CronRequest) -> Result<Cron, RuntimeError> {
        let now = self.storage().database_time(scope).await?;
        let cron_id = self.clock().new_run_id();
        let new = Cron {
            cron_id,
            thread_id: request.run.thread.clone(),
            revision: 0,
            created_at: now,
            updated_at: now,
            ..self.cron_of(scope, cron_id, request, now, None).await?
        };
        let thread = new.thread_id.clone();
        idempotency::leads_to(|| format!("/runs/crons/{cron_id}"));
        let created = self.storage().create_cron(scope, new).await?;
        self.inner.crons.notify_one();
        match (created, thread) {
            (CronCreated::Created(cron), _) => Ok(cron),
            (CronCreated::ThreadClosed(closed), Some(thread)) => Err(RuntimeError::closed(&thread, &closed)),
            (_, thread) => Err(RuntimeError::ThreadNotFound(thread.map_or_else(String::new, |id| id.to_string()))),
        }
    }

    /// Changes a cron: `change` makes the wanted one of the present one, again if that moved meanwhile. The next date is
    /// computed anew when schedule, time zone, end or `enabled` change: what passed during a pause is not made up for.
    pub async fn update_cron<E: From<RuntimeError>>(
        &self,
        scope: &Scope,
        cron_id: Uuid,
        change: impl Fn(&Cron) -> Result<CronRequest, E> + Send + Sync,
    ) -> Result<Cron, E> {
        let storage = |error: crate::storage::StorageError| E::from(RuntimeError::from(error));
        for _ in 0..ATTEMPTS {
            let found = self.storage().find_cron(scope, cron_id).await.map_err(storage)?;
            let found = found.ok_or(RuntimeError::CronNotFound)?;
            let now = self.storage().database_time(scope).await.map_err(storage)?;
            let wanted = self.cron_of(scope, cron_id, change(&found)?, now, Some(&found)).await?;
            match self.storage().replace_cron(scope, wanted).await.map_err(storage)? {
                CronReplaced::Replaced(cron) => {
                    self.inner.crons.notify_one();
                    return Ok(cron);
                }
                CronReplaced::Missing => return Err(RuntimeError::CronNotFound.into()),
                CronReplaced::Moved => {}
            }
        }
        Err(RuntimeError::Conflict("the cron is being changed by others; try again".to_owned()).into())
    }

    /// The row that a request asks for.
    async fn cron_of(
        &self,
        scope: &Scope,
        cron_id: Uuid,
        request: CronRequest,
        now: Timestamp,
        before: Option<&Cron>,
    ) -> Result<Cron, RuntimeError> {
        self.check_webhook(&request.run)?;
        let assistant = self.assistant_of(scope, &request.run, true).await?.assistant;
        let schedule =
            Schedule::parse(&request.schedule, request.timezone.as_deref()).map_err(RuntimeError::Invalid)?;
        if schedule.after(now).is_none() {
            return Err(RuntimeError::Invalid(format!("schedule: '{}' never comes", request.schedule)));
        }
        let own = json!({"cron_id": cron_id});
        let mut run = CronRun {
            kwargs: request.run.kwargs,
            durability: request.run.durability,
            metadata: request.run.metadata,
            multitask_strategy: request.run.multitask_strategy,
        };
        run.kwargs.config = with_configurable(&run.kwargs.config, &own.clone().into());
        let mut payload = request.payload.fields().unwrap_or_default();
        let config = payload.get("config").cloned().unwrap_or_default();
        payload.insert("config".to_owned(), with_configurable(&config, &own.into()));
        let kept = before.filter(|before| {
            (&before.schedule, &before.timezone, before.end_time, before.enabled)
                == (&request.schedule, &request.timezone, request.end_time, request.enabled)
        });
        let next = match kept {
            Some(before) => before.next_run_date,
            None => schedule.after(now).filter(|next| request.end_time.is_none_or(|end| *next <= end)),
        };
        Ok(Cron {
            cron_id,
            assistant_id: assistant.assistant_id,
            thread_id: before.and_then(|before| before.thread_id.clone()),
            schedule: request.schedule,
            timezone: request.timezone,
            end_time: request.end_time,
            on_run_completed: request.on_run_completed,
            enabled: request.enabled,
            metadata: request.metadata,
            payload: Json::from(&payload),
            request: Json::of(&run).map_err(|error| RuntimeError::Invalid(error.to_string()))?,
            next_run_date: next,
            revision: before.map_or(0, |before| before.revision),
            created_at: before.map_or(now, |before| before.created_at),
            updated_at: now,
        })
    }

    /// Fires what is due, until the process stops claiming.
    pub(super) async fn cron_loop(self) {
        let settings = self.inner.settings.crons.clone();
        loop {
            let pause = match self.storage().due_crons(&Scope::Server, BATCH).await {
                Ok(found) => self.fire_due(&found).await,
                Err(error) => {
                    tracing::warn!(%error, "could not look for due crons");
                    settings.poll_every
                }
            };
            tokio::select! {
                () = self.inner.crons.notified() => {}
                () = tokio::time::sleep(pause) => {}
                () = self.inner.draining.cancelled() => return,
            }
        }
    }

    /// Fires a batch and says how long to sleep.
    async fn fire_due(&self, found: &DueCrons) -> Duration {
        let poll = self.inner.settings.crons.poll_every;
        let mut failed = false;
        for due in &found.due {
            if self.inner.draining.is_cancelled() {
                return poll;
            }
            if let Err(error) = self.fire(due, found.now).await {
                failed = true;
                tracing::warn!(cron.id = %due.cron.cron_id, %error, "a cron could not be fired; it is tried again");
            }
        }
        let until = found
            .next
            .map_or(poll, |next| Duration::from_micros(u64::try_from(next.0 - found.now.0).unwrap_or(0)).min(poll));
        // What failed is due still: not at once again.
        if failed { poll } else { until }
    }

    /// Accounts for the ticks of one cron up to now: at most one run, that of the newest.
    async fn fire(&self, due: &DueCron, now: Timestamp) -> Result<(), RuntimeError> {
        let cron = &due.cron;
        let scope = Scope::Tenant(due.tenant);
        let Some(first) = cron.next_run_date else { return Ok(()) };
        let schedule = Schedule::parse(&cron.schedule, cron.timezone.as_deref()).map_err(RuntimeError::Invalid)?;
        let within = |tick: &Timestamp| cron.end_time.is_none_or(|end| *tick <= end);
        let last = cron.end_time.map_or(now, |end| end.min(now));
        let tick = schedule.latest(last).map_or(first, |newest| newest.max(first));
        let is_late =
            Duration::from_micros(u64::try_from(now.0 - tick.0).unwrap_or(0)) > self.inner.settings.crons.catch_up;
        let run = if is_late { None } else { Some(self.run_of(&scope, cron).await?) };
        let next = schedule.after(now.max(tick)).filter(within);
        let fired = CronTick { cron_id: cron.cron_id, revision: cron.revision, tick, run, next };
        match self.storage().fire_cron(&scope, fired).await? {
            CronFired::Fired(RunCreated::Created { run, .. }) => {
                tracing::info!(cron.id = %cron.cron_id, run.id = %run.run_id, tick = %tick.to_iso(), "cron fired");
            }
            CronFired::Fired(RunCreated::ThreadClosed(_)) => {
                tracing::info!(cron.id = %cron.cron_id, tick = %tick.to_iso(), "the cron's thread is closed: no run, and it rests");
            }
            CronFired::Fired(_) => {
                tracing::info!(cron.id = %cron.cron_id, tick = %tick.to_iso(), "the cron's thread is busy: no run");
            }
            CronFired::Skipped => {
                tracing::warn!(cron.id = %cron.cron_id, tick = %tick.to_iso(), "a cron's tick is left out");
            }
            CronFired::ThreadGone => tracing::info!(cron.id = %cron.cron_id, "deleted with its thread"),
            CronFired::Stale => {}
        }
        Ok(())
    }

    /// The run of a tick, by the same way as any other.
    async fn run_of(&self, scope: &Scope, cron: &Cron) -> Result<crate::storage::NewRun, RuntimeError> {
        let kept: CronRun = cron.request.decode().map_err(|error| RuntimeError::Invalid(error.0))?;
        let request = RunRequest {
            thread: cron.thread_id.clone(),
            assistant: Some(AssistantName::Id(cron.assistant_id)),
            kwargs: kept.kwargs,
            durability: kept.durability,
            metadata: kept.metadata,
            multitask_strategy: kept.multitask_strategy,
            create_thread: Some(false),
            after: Duration::ZERO,
            on_completion: cron.on_run_completed.unwrap_or_default(),
            cancel_on_disconnect: false,
            start_here: false,
            actor: Some("cron".to_owned()),
        };
        let assistant = self.assistant_of(scope, &request, true).await?;
        let thread_id = cron.thread_id.clone().unwrap_or_else(|| ThreadId::from_uuid(self.clock().new_thread_id()));
        let run = self.new_run(&request, &assistant, self.clock().new_run_id(), &thread_id)?;
        // Left to whoever has room: the loop does not wait for it.
        Ok(crate::storage::NewRun { claim: None, ..run })
    }
}

/// A config with more in `configurable`.
fn with_configurable(config: &Json, more: &Json) -> Json {
    let mut fields: Fields = config.fields().unwrap_or_default();
    let configurable = fields.get("configurable").cloned().unwrap_or_default();
    fields.insert("configurable".to_owned(), super::runs::merged([&configurable, more]));
    Json::from(&fields)
}
