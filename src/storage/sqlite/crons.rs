//! Crons on SQLite.

use async_trait::async_trait;
use futures_util::TryStreamExt as _;
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{QueryBuilder, Sqlite};
use uuid::Uuid;

use super::rows::get;
use super::runs::create_run;
use super::threads::thread_by_key;
use super::{SqliteStorage, Write, clock};
use crate::model::{Cron, OnCompletion, Scope, Thread, Timestamp};
use crate::storage::encoding::{self, PLAIN};
use crate::storage::rows::driver_error;
use crate::storage::{
    CronCreated, CronFilter, CronFired, CronReplaced, CronSort, CronTick, Crons, DueCron, DueCrons, Page, Result,
    RunCreated, StorageError, matching,
};

crate::storage::cron_rows::define_cron_rows!(SqliteRow);

/// The columns [`cron_from`] reads.
macro_rules! cron_columns {
    () => {
        "cron_id, tenant, assistant_id, thread_name, schedule, timezone, end_time, on_run_completed, enabled, metadata, \
         codec, payload, request, next_run_date, revision, created_at, updated_at"
    };
}

/// Ticks are remembered this long: long enough that a changed schedule does not fire one again.
const TICKS_KEPT_US: i64 = 30 * 86_400 * 1_000_000;

async fn cron_by_id(conn: &mut SqliteConnection, scope: Scope, cron_id: Uuid) -> Result<Option<Cron>> {
    sqlx::query(concat!("SELECT ", cron_columns!(), " FROM crons WHERE cron_id = $1 AND ($2 IS NULL OR tenant = $2)"))
        .bind(cron_id)
        .bind(scope.filter())
        .fetch_optional(conn)
        .await
        .map_err(driver_error)?
        .as_ref()
        .map(cron_from)
        .transpose()
}

async fn create(write: &mut Write, scope: Scope, new: Cron) -> Result<CronCreated> {
    let tenant = scope.tenant();
    if let Some(thread) = &new.thread_id {
        match thread_by_key(&mut write.conn, &scope, thread.key(tenant)).await? {
            None => return Ok(CronCreated::ThreadMissing),
            Some(Thread { closed: Some(closed), .. }) => return Ok(CronCreated::ThreadClosed(closed)),
            Some(_) => {}
        }
    }
    sqlx::query(
        "INSERT INTO crons (cron_id, tenant, assistant_id, thread_key, thread_name, schedule, timezone, end_time,
                            on_run_completed, enabled, metadata, codec, payload, request, next_run_date, revision,
                            created_at, updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, 1, $16, $16)",
    )
    .bind(new.cron_id)
    .bind(tenant)
    .bind(new.assistant_id)
    .bind(new.thread_id.as_ref().map(|thread| thread.key(tenant).0))
    .bind(new.thread_id.as_ref().map(|thread| thread.as_str()))
    .bind(&new.schedule)
    .bind(&new.timezone)
    .bind(new.end_time.map(|at| at.0))
    .bind(new.on_run_completed.map(OnCompletion::as_str))
    .bind(new.enabled)
    .bind(encoding::metadata_text(&new.metadata))
    .bind(PLAIN)
    .bind(encoding::bytes(&new.payload))
    .bind(encoding::bytes(&new.request))
    .bind(new.next_run_date.map(|at| at.0))
    .bind(write.now)
    .execute(&mut write.conn)
    .await
    .map_err(driver_error)?;
    let cron = cron_by_id(&mut write.conn, scope, new.cron_id).await?;
    cron.map(CronCreated::Created).ok_or_else(|| StorageError::Other("a new cron is not there".into()))
}

async fn replace(write: &mut Write, scope: Scope, cron: Cron) -> Result<CronReplaced> {
    let done = sqlx::query(
        "UPDATE crons SET assistant_id = $4, schedule = $5, timezone = $6, end_time = $7, on_run_completed = $8,
                          enabled = $9, metadata = $10, payload = $11, request = $12, next_run_date = $13,
                          revision = revision + 1, updated_at = $14
         WHERE cron_id = $1 AND ($2 IS NULL OR tenant = $2) AND revision = $3",
    )
    .bind(cron.cron_id)
    .bind(scope.filter())
    .bind(cron.revision)
    .bind(cron.assistant_id)
    .bind(&cron.schedule)
    .bind(&cron.timezone)
    .bind(cron.end_time.map(|at| at.0))
    .bind(cron.on_run_completed.map(OnCompletion::as_str))
    .bind(cron.enabled)
    .bind(encoding::metadata_text(&cron.metadata))
    .bind(encoding::bytes(&cron.payload))
    .bind(encoding::bytes(&cron.request))
    .bind(cron.next_run_date.map(|at| at.0))
    .bind(write.now)
    .execute(&mut write.conn)
    .await
    .map_err(driver_error)?;
    let found = cron_by_id(&mut write.conn, scope, cron.cron_id).await?;
    Ok(match found {
        Some(cron) if done.rows_affected() == 1 => CronReplaced::Replaced(cron),
        Some(_) => CronReplaced::Moved,
        None => CronReplaced::Missing,
    })
}

async fn delete(write: &mut Write, scope: Scope, cron_id: Uuid) -> Result<bool> {
    if cron_by_id(&mut write.conn, scope, cron_id).await?.is_none() {
        return Ok(false);
    }
    for statement in ["DELETE FROM cron_ticks WHERE cron_id = $1", "DELETE FROM crons WHERE cron_id = $1"] {
        sqlx::query(statement).bind(cron_id).execute(&mut write.conn).await.map_err(driver_error)?;
    }
    Ok(true)
}

/// Appends the conditions SQLite can check itself; metadata containment is left to [`matching`].
fn push_conditions(query: &mut QueryBuilder<Sqlite>, scope: &Scope, filter: &CronFilter) {
    query.push(" WHERE 1 = 1");
    if let Some(tenant) = scope.filter() {
        query.push(" AND tenant = ").push_bind(tenant);
    }
    if let Some(assistant) = filter.assistant_id {
        query.push(" AND assistant_id = ").push_bind(assistant);
    }
    if let Some(thread) = &filter.thread_id {
        query.push(" AND thread_key = ").push_bind(thread.key(scope.tenant()).0);
    }
    if let Some(enabled) = filter.enabled {
        query.push(" AND enabled = ").push_bind(enabled);
    }
}

async fn search(
    conn: &mut SqliteConnection,
    scope: Scope,
    filter: CronFilter,
    order: (CronSort, bool),
    page: Page,
) -> Result<Vec<Cron>> {
    let mut query = QueryBuilder::new(concat!("SELECT ", cron_columns!(), " FROM crons"));
    push_conditions(&mut query, &scope, &filter);
    let direction = if order.1 { " ASC" } else { " DESC" };
    query.push(" ORDER BY ").push(match order.0 {
        CronSort::CronId => "cron_id",
        CronSort::AssistantId => "assistant_id",
        CronSort::ThreadId => "thread_name",
        CronSort::NextRunDate => "next_run_date",
        CronSort::EndTime => "end_time",
        CronSort::CreatedAt => "created_at",
        CronSort::UpdatedAt => "updated_at",
    });
    query.push(direction).push(" NULLS LAST, cron_id").push(direction);
    let mut rows = query.build().fetch(conn);
    let mut found = Vec::new();
    let mut skipped = 0;
    while (found.len() as i64) < page.limit {
        let Some(row) = rows.try_next().await.map_err(driver_error)? else { break };
        let cron = cron_from(&row)?;
        if filter.metadata.as_ref().is_some_and(|part| !matching::contains(&cron.metadata, part)) {
            continue;
        }
        if skipped < page.offset {
            skipped += 1;
            continue;
        }
        found.push(cron);
    }
    Ok(found)
}

async fn due(conn: &mut SqliteConnection, scope: Scope, limit: i64, now: Timestamp) -> Result<DueCrons> {
    // One more than wanted, due or not: it says when to look again.
    let rows = sqlx::query(concat!(
        "SELECT ",
        cron_columns!(),
        " FROM crons WHERE enabled AND next_run_date IS NOT NULL AND ($1 IS NULL OR tenant = $1)
          ORDER BY next_run_date LIMIT $2"
    ))
    .bind(scope.filter())
    .bind(limit + 1)
    .fetch_all(conn)
    .await
    .map_err(driver_error)?;
    let mut found = DueCrons { now, due: Vec::new(), next: None };
    for row in &rows {
        let at = Timestamp(get(row, "next_run_date")?);
        if at > now || found.due.len() as i64 >= limit {
            found.next = Some(at);
            break;
        }
        found.due.push(DueCron { tenant: get(row, "tenant")?, cron: cron_from(row)? });
    }
    Ok(found)
}

async fn fire(write: &mut Write, scope: Scope, tick: CronTick) -> Result<CronFired> {
    let found = cron_by_id(&mut write.conn, scope, tick.cron_id).await?;
    if !found.is_some_and(|cron| cron.enabled && cron.revision == tick.revision) {
        return Ok(CronFired::Stale);
    }
    let mut fired = CronFired::Skipped;
    if let Some(run) = tick.run {
        let recorded = sqlx::query(
            "INSERT INTO cron_ticks (cron_id, tick, tenant, run_id, created_at) VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT (cron_id, tick) DO NOTHING",
        )
        .bind(tick.cron_id)
        .bind(tick.tick.0)
        .bind(scope.tenant())
        .bind(run.run_id)
        .bind(write.now)
        .execute(&mut write.conn)
        .await
        .map_err(driver_error)?;
        if recorded.rows_affected() == 1 {
            let in_the_way = || StorageError::Unavailable("a thread of this name is still being removed".into());
            let created = create_run(write, Scope::Tenant(scope.tenant()), run).await?.ok_or_else(in_the_way)?;
            match &created {
                RunCreated::Created { .. } => {}
                RunCreated::ThreadMissing => {
                    delete(write, scope, tick.cron_id).await?;
                    return Ok(CronFired::ThreadGone);
                }
                // Nothing of it may stay: an error undoes the operation.
                RunCreated::RunExists => return Err(StorageError::Other("a new run's id is taken".into())),
                RunCreated::AssistantChanged => {
                    return Err(StorageError::Unavailable("the cron's assistant is being changed".into()));
                }
                RunCreated::ThreadBusy | RunCreated::ThreadClosed(_) | RunCreated::ThreadForeign => {
                    sqlx::query("UPDATE cron_ticks SET run_id = NULL WHERE cron_id = $1 AND tick = $2")
                        .bind(tick.cron_id)
                        .bind(tick.tick.0)
                        .execute(&mut write.conn)
                        .await
                        .map_err(driver_error)?;
                }
            }
            fired = CronFired::Fired(created);
        }
    }
    sqlx::query("DELETE FROM cron_ticks WHERE cron_id = $1 AND tick < $2")
        .bind(tick.cron_id)
        .bind(tick.tick.0 - TICKS_KEPT_US)
        .execute(&mut write.conn)
        .await
        .map_err(driver_error)?;
    let goes_on = !matches!(fired, CronFired::Fired(RunCreated::ThreadClosed(_)));
    sqlx::query("UPDATE crons SET next_run_date = $2, enabled = $3, revision = revision + 1 WHERE cron_id = $1")
        .bind(tick.cron_id)
        .bind(tick.next.map(|at| at.0))
        .bind(goes_on)
        .execute(&mut write.conn)
        .await
        .map_err(driver_error)?;
    Ok(fired)
}

#[async_trait]
impl Crons for SqliteStorage {
    async fn database_time(&self, _scope: &Scope) -> Result<Timestamp> {
        Ok(Timestamp(clock()))
    }

    async fn create_cron(&self, scope: &Scope, new: Cron) -> Result<CronCreated> {
        let scope = *scope;
        self.write(move |write| Box::pin(create(write, scope, new))).await
    }

    async fn find_cron(&self, scope: &Scope, cron_id: Uuid) -> Result<Option<Cron>> {
        let scope = *scope;
        self.read(move |conn| Box::pin(cron_by_id(conn, scope, cron_id))).await
    }

    async fn replace_cron(&self, scope: &Scope, cron: Cron) -> Result<CronReplaced> {
        let scope = *scope;
        self.write(move |write| Box::pin(replace(write, scope, cron))).await
    }

    async fn delete_cron(&self, scope: &Scope, cron_id: Uuid) -> Result<bool> {
        let scope = *scope;
        self.write(move |write| Box::pin(delete(write, scope, cron_id))).await
    }

    async fn search_crons(
        &self,
        scope: &Scope,
        filter: &CronFilter,
        sort: CronSort,
        ascending: bool,
        page: Page,
    ) -> Result<Vec<Cron>> {
        let (scope, filter) = (*scope, filter.clone());
        self.read(move |conn| Box::pin(search(conn, scope, filter, (sort, ascending), page))).await
    }

    async fn count_crons(&self, scope: &Scope, filter: &CronFilter) -> Result<i64> {
        let (scope, filter) = (*scope, filter.clone());
        let all = Page { limit: i64::MAX, offset: 0 };
        let order = (CronSort::default(), true);
        self.read(move |conn| Box::pin(async move { Ok(search(conn, scope, filter, order, all).await?.len() as i64) }))
            .await
    }

    async fn due_crons(&self, scope: &Scope, limit: i64) -> Result<DueCrons> {
        let scope = *scope;
        self.read(move |conn| Box::pin(due(conn, scope, limit, Timestamp(clock())))).await
    }

    async fn fire_cron(&self, scope: &Scope, tick: CronTick) -> Result<CronFired> {
        let scope = *scope;
        self.write(move |write| Box::pin(fire(write, scope, tick))).await
    }
}
