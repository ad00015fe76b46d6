//! Crons on Postgres. Locks are taken in the order thread, then cron: deleting a thread deletes its crons.

use async_trait::async_trait;
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{Postgres, QueryBuilder};
use uuid::Uuid;

use super::rows::get;
use super::runs::create_in;
use super::threads::{lock_thread, thread_by_key};
use super::{PostgresStorage, now, read};
use crate::model::{Cron, OnCompletion, Scope, Thread, Timestamp};
use crate::storage::encoding::{self, PLAIN};
use crate::storage::rows::driver_error;
use crate::storage::{
    CronCreated, CronFilter, CronFired, CronReplaced, CronSort, CronTick, Crons, DueCron, DueCrons, Page, Result,
    RunCreated, StorageError,
};

crate::storage::cron_rows::define_cron_rows!(PgRow);

/// The columns [`cron_from`] reads.
macro_rules! cron_columns {
    () => {
        "cron_id, tenant, assistant_id, thread_name, schedule, timezone, end_time, on_run_completed, enabled, \
         metadata::text AS metadata, codec, payload, request, next_run_date, revision, created_at, updated_at"
    };
}

/// Ticks are remembered this long: long enough that a changed schedule does not fire one again.
const TICKS_KEPT_US: i64 = 30 * 86_400 * 1_000_000;

fn push_conditions(query: &mut QueryBuilder<Postgres>, scope: &Scope, filter: &CronFilter) {
    query.push(" WHERE TRUE");
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
    if let Some(metadata) = &filter.metadata {
        query.push(" AND metadata @> ").push_bind(encoding::metadata_text(metadata)).push("::jsonb");
    }
}

fn column(sort: CronSort) -> &'static str {
    match sort {
        CronSort::CronId => "cron_id",
        CronSort::AssistantId => "assistant_id",
        CronSort::ThreadId => "thread_name",
        CronSort::NextRunDate => "next_run_date",
        CronSort::EndTime => "end_time",
        CronSort::CreatedAt => "created_at",
        CronSort::UpdatedAt => "updated_at",
    }
}

#[async_trait]
impl Crons for PostgresStorage {
    async fn database_time(&self, _scope: &Scope) -> Result<Timestamp> {
        read!(self, async {
            let mut session = self.session().await?;
            let row = sqlx::query(concat!("SELECT ", now!(), " AS now")).fetch_one(session.conn()).await;
            let row = row.map_err(driver_error)?;
            session.finish().await?;
            Ok(Timestamp(get(&row, "now")?))
        })
    }

    async fn create_cron(&self, scope: &Scope, new: Cron) -> Result<CronCreated> {
        self.bounded(async {
            let tenant = scope.tenant();
            let mut transaction = self.begin().await?;
            if let Some(thread) = &new.thread_id {
                let key = thread.key(tenant);
                if !lock_thread(&mut transaction, key).await? {
                    return Ok(CronCreated::ThreadMissing);
                }
                match thread_by_key(&mut transaction, scope, key).await? {
                    None => return Ok(CronCreated::ThreadMissing),
                    Some(Thread { closed: Some(closed), .. }) => return Ok(CronCreated::ThreadClosed(closed)),
                    Some(_) => {}
                }
            }
            let row = sqlx::query(concat!(
            "INSERT INTO crons (cron_id, tenant, assistant_id, thread_key, thread_name, schedule, timezone, end_time,
                                on_run_completed, enabled, metadata, codec, payload, request, next_run_date, revision,
                                created_at, updated_at)
             SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11::jsonb, $12, $13, $14, $15, 1, clock.now, clock.now
             FROM (SELECT ",
            now!(),
            " AS now) AS clock RETURNING ",
            cron_columns!()
        ))
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
            .fetch_one(&mut *transaction)
            .await
            .map_err(driver_error)?;
            let cron = cron_from(&row)?;
            self.commit(transaction).await?;
            Ok(CronCreated::Created(cron))
        })
        .await
    }

    async fn find_cron(&self, scope: &Scope, cron_id: Uuid) -> Result<Option<Cron>> {
        read!(self, async {
            let mut session = self.session().await?;
            let row = sqlx::query(concat!(
                "SELECT ",
                cron_columns!(),
                " FROM crons WHERE cron_id = $1 AND ($2::uuid IS NULL OR tenant = $2)"
            ))
            .bind(cron_id)
            .bind(scope.filter())
            .fetch_optional(session.conn())
            .await
            .map_err(driver_error)?;
            session.finish().await?;
            row.as_ref().map(cron_from).transpose()
        })
    }

    async fn replace_cron(&self, scope: &Scope, cron: Cron) -> Result<CronReplaced> {
        self.bounded(async {
            let mut session = self.session().await?;
            let row = sqlx::query(concat!(
            "UPDATE crons SET assistant_id = $4, schedule = $5, timezone = $6, end_time = $7, on_run_completed = $8,
                              enabled = $9, metadata = $10::jsonb, payload = $11, request = $12, next_run_date = $13,
                              revision = revision + 1, updated_at = ",
            now!(),
            " WHERE cron_id = $1 AND ($2::uuid IS NULL OR tenant = $2) AND revision = $3 RETURNING ",
            cron_columns!()
        ))
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
            .fetch_optional(session.conn())
            .await
            .map_err(driver_error)?;
            self.wrote(session).await?;
            match row {
                Some(row) => Ok(CronReplaced::Replaced(cron_from(&row)?)),
                None if self.find_cron(scope, cron.cron_id).await?.is_some() => Ok(CronReplaced::Moved),
                None => Ok(CronReplaced::Missing),
            }
        })
        .await
    }

    async fn delete_cron(&self, scope: &Scope, cron_id: Uuid) -> Result<bool> {
        self.bounded(async {
            let mut session = self.session().await?;
            let row = sqlx::query(
                "WITH gone AS (
                 DELETE FROM crons WHERE cron_id = $1 AND ($2::uuid IS NULL OR tenant = $2) RETURNING cron_id
             ),
             drop_ticks AS (DELETE FROM cron_ticks WHERE cron_id IN (SELECT cron_id FROM gone))
             SELECT EXISTS (SELECT 1 FROM gone) AS it",
            )
            .bind(cron_id)
            .bind(scope.filter())
            .fetch_one(session.conn())
            .await
            .map_err(driver_error)?;
            self.wrote(session).await?;
            get(&row, "it")
        })
        .await
    }

    async fn search_crons(
        &self,
        scope: &Scope,
        filter: &CronFilter,
        sort: CronSort,
        ascending: bool,
        page: Page,
    ) -> Result<Vec<Cron>> {
        read!(self, async {
            let mut query = QueryBuilder::new(concat!("SELECT ", cron_columns!(), " FROM crons"));
            push_conditions(&mut query, scope, filter);
            let direction = if ascending { " ASC" } else { " DESC" };
            query.push(" ORDER BY ").push(column(sort)).push(direction).push(" NULLS LAST, cron_id").push(direction);
            query.push(" LIMIT ").push_bind(page.limit).push(" OFFSET ").push_bind(page.offset);
            let mut session = self.session().await?;
            let rows = query.build().fetch_all(session.conn()).await.map_err(driver_error)?;
            session.finish().await?;
            rows.iter().map(cron_from).collect::<Result<Vec<Cron>>>()
        })
    }

    async fn count_crons(&self, scope: &Scope, filter: &CronFilter) -> Result<i64> {
        read!(self, async {
            let mut query = QueryBuilder::new("SELECT COUNT(*) AS n FROM crons");
            push_conditions(&mut query, scope, filter);
            let mut session = self.session().await?;
            get(&query.build().fetch_one(session.conn()).await.map_err(driver_error)?, "n")
        })
    }

    async fn due_crons(&self, scope: &Scope, limit: i64) -> Result<DueCrons> {
        read!(self, async {
            let mut session = self.session().await?;
            // One more than wanted, due or not: it says when to look again. Two steps down an index.
            let rows = sqlx::query(concat!(
                "SELECT clock.now, ",
                cron_columns!(),
                " FROM (SELECT ",
                now!(),
                " AS now) AS clock LEFT JOIN LATERAL (
                      SELECT cron_id, tenant, assistant_id, thread_name, schedule, timezone, end_time,
                             on_run_completed, enabled, metadata, codec, payload, request, next_run_date, revision,
                             created_at, updated_at
                      FROM crons
                      WHERE enabled AND next_run_date IS NOT NULL AND ($1::uuid IS NULL OR tenant = $1)
                      ORDER BY next_run_date LIMIT $2
                  ) AS c ON TRUE ORDER BY next_run_date"
            ))
            .bind(scope.filter())
            .bind(limit + 1)
            .fetch_all(session.conn())
            .await
            .map_err(driver_error)?;
            session.finish().await?;
            let mut found = DueCrons { now: Timestamp(0), due: Vec::new(), next: None };
            for row in &rows {
                found.now = Timestamp(get(row, "now")?);
                let Some(at) = get::<Option<i64>>(row, "next_run_date")?.map(Timestamp) else { continue };
                if at > found.now || found.due.len() as i64 >= limit {
                    found.next = Some(at);
                    break;
                }
                found.due.push(DueCron { tenant: get(row, "tenant")?, cron: cron_from(row)? });
            }
            Ok(found)
        })
    }

    async fn fire_cron(&self, scope: &Scope, tick: CronTick) -> Result<CronFired> {
        self.bounded(async {
            let mut transaction = self.begin().await?;
            let fired = fire(&mut transaction, scope, &tick).await?;
            if !matches!(fired, CronFired::Stale) {
                self.commit(transaction).await?;
            }
            if let CronFired::Fired(created) = &fired {
                self.tell_created(created);
            }
            Ok(fired)
        })
        .await
    }
}

async fn fire(conn: &mut PgConnection, scope: &Scope, tick: &CronTick) -> Result<CronFired> {
    let tenant = scope.tenant();
    if let Some(run) = &tick.run {
        lock_thread(conn, run.thread_id.key(tenant)).await?;
    }
    let held = sqlx::query(
        "SELECT 1 FROM crons WHERE cron_id = $1 AND ($2::uuid IS NULL OR tenant = $2) AND revision = $3 AND enabled
         FOR UPDATE",
    )
    .bind(tick.cron_id)
    .bind(scope.filter())
    .bind(tick.revision)
    .fetch_optional(&mut *conn)
    .await
    .map_err(driver_error)?;
    if held.is_none() {
        return Ok(CronFired::Stale);
    }
    let mut fired = CronFired::Skipped;
    if let Some(run) = &tick.run {
        let recorded = sqlx::query(concat!(
            "INSERT INTO cron_ticks (cron_id, tick, tenant, run_id, created_at) VALUES ($1, $2, $3, $4, ",
            now!(),
            ") ON CONFLICT (cron_id, tick) DO NOTHING"
        ))
        .bind(tick.cron_id)
        .bind(tick.tick.0)
        .bind(tenant)
        .bind(run.run_id)
        .execute(&mut *conn)
        .await
        .map_err(driver_error)?;
        if recorded.rows_affected() == 1 {
            let Some(created) = create_in(conn, tenant, run).await? else {
                return Err(StorageError::Unavailable(format!("thread {} is too contended", run.thread_id)));
            };
            match &created {
                RunCreated::Created { .. } => {}
                RunCreated::ThreadMissing => {
                    sqlx::query(
                        "WITH drop_ticks AS (DELETE FROM cron_ticks WHERE cron_id = $1)
                         DELETE FROM crons WHERE cron_id = $1",
                    )
                    .bind(tick.cron_id)
                    .execute(conn)
                    .await
                    .map_err(driver_error)?;
                    return Ok(CronFired::ThreadGone);
                }
                RunCreated::RunExists => return Err(StorageError::Other("a new run's id is taken".into())),
                RunCreated::AssistantChanged => {
                    return Err(StorageError::Unavailable("the cron's assistant is being changed".into()));
                }
                RunCreated::ThreadBusy | RunCreated::ThreadClosed(_) | RunCreated::ThreadForeign => {
                    sqlx::query("UPDATE cron_ticks SET run_id = NULL WHERE cron_id = $1 AND tick = $2")
                        .bind(tick.cron_id)
                        .bind(tick.tick.0)
                        .execute(&mut *conn)
                        .await
                        .map_err(driver_error)?;
                }
            }
            fired = CronFired::Fired(created);
        }
    }
    let goes_on = !matches!(fired, CronFired::Fired(RunCreated::ThreadClosed(_)));
    sqlx::query(
        "WITH drop_ticks AS (DELETE FROM cron_ticks WHERE cron_id = $1 AND tick < $3)
         UPDATE crons SET next_run_date = $2, enabled = $4, revision = revision + 1 WHERE cron_id = $1",
    )
    .bind(tick.cron_id)
    .bind(tick.next.map(|at| at.0))
    .bind(tick.tick.0 - TICKS_KEPT_US)
    .bind(goes_on)
    .execute(conn)
    .await
    .map_err(driver_error)?;
    Ok(fired)
}
