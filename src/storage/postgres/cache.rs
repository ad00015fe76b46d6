//! The cache of node outputs on Postgres.

use async_trait::async_trait;

use super::rows::get;
use super::{PostgresStorage, now, read};
use crate::model::Scope;
use crate::storage::encoding::PLAIN;
use crate::storage::rows::driver_error;
use crate::storage::{Cache, CacheEntry, CacheKey, NewCacheEntry, Result, STEP_ROWS, cache};

const FIND: &str = concat!(
    "WITH clock AS MATERIALIZED (SELECT ",
    now!(),
    " AS now)
     SELECT e.key, e.codec, e.output, e.expires_at - clock.now AS time_left
     FROM cache_entries e CROSS JOIN clock
     WHERE e.tenant = $1 AND e.key = ANY ($2::bytea[]) AND (e.expires_at IS NULL OR e.expires_at > clock.now)"
);

const PUT: &str = concat!(
    "WITH clock AS MATERIALIZED (SELECT ",
    now!(),
    " AS now)
     INSERT INTO cache_entries (tenant, key, graph_id, codec, output, size, created_at, expires_at)
     SELECT $1, u.key, u.graph_id, $2, u.output, u.size, clock.now, clock.now + u.ttl
     FROM UNNEST($3::bytea[], $4::text[], $5::bytea[], $6::bigint[], $7::bigint[])
              AS u (key, graph_id, output, size, ttl)
     CROSS JOIN clock
     ORDER BY u.key
     ON CONFLICT (tenant, key) DO UPDATE SET
         graph_id = EXCLUDED.graph_id, codec = EXCLUDED.codec, output = EXCLUDED.output, size = EXCLUDED.size,
         created_at = EXCLUDED.created_at, expires_at = EXCLUDED.expires_at"
);

/// What somebody else is writing is left for the next step: a removal never waits. The time is a subquery, since only
/// then does the index serve the comparison.
const EXPIRE: &str = concat!(
    "DELETE FROM cache_entries WHERE (tenant, key) IN (
         SELECT tenant, key FROM cache_entries
         WHERE ($1::uuid IS NULL OR tenant = $1) AND expires_at <= (SELECT ",
    now!(),
    ") ORDER BY expires_at LIMIT $2 FOR UPDATE SKIP LOCKED)"
);

const SIZE: &str =
    "SELECT COALESCE(SUM(size), 0)::bigint AS bytes FROM cache_entries WHERE ($1::uuid IS NULL OR tenant = $1)";

/// The oldest, until $3 bytes are gone.
const SHRINK: &str = "
    DELETE FROM cache_entries WHERE (tenant, key) IN (
        SELECT tenant, key FROM (
            SELECT tenant, key, SUM(size) OVER (ORDER BY created_at, tenant, key) - size AS older
            FROM (SELECT tenant, key, size, created_at FROM cache_entries
                  WHERE ($1::uuid IS NULL OR tenant = $1)
                  ORDER BY created_at, tenant, key LIMIT $2 FOR UPDATE SKIP LOCKED) AS oldest
        ) AS summed WHERE older < $3::bigint)";

#[async_trait]
impl Cache for PostgresStorage {
    async fn find_cached(&self, scope: &Scope, keys: &[CacheKey]) -> Result<Vec<CacheEntry>> {
        read!(self, async {
            let wanted: Vec<Vec<u8>> = keys.iter().map(|key| key.to_vec()).collect();
            let mut session = self.session().await?;
            let rows = sqlx::query(FIND)
                .bind(scope.tenant())
                .bind(wanted)
                .fetch_all(session.conn())
                .await
                .map_err(driver_error)?;
            session.finish().await?;
            rows.iter()
                .map(|row| {
                    let key: Vec<u8> = get(row, "key")?;
                    cache::read(&key, get(row, "codec")?, get(row, "output")?, get(row, "time_left")?)
                })
                .collect()
        })
    }

    async fn put_cached(&self, scope: &Scope, entries: Vec<NewCacheEntry>) -> Result<()> {
        self.bounded(async {
            if entries.is_empty() {
                return Ok(());
            }
            let (mut keys, mut graphs, mut outputs) = (Vec::new(), Vec::new(), Vec::new());
            let (mut sizes, mut ttls) = (Vec::new(), Vec::new());
            for (key, graph, output, size, ttl) in cache::rows(entries) {
                keys.push(key.to_vec());
                graphs.push(graph);
                outputs.push(output);
                sizes.push(size);
                ttls.push(ttl);
            }
            let mut session = self.session().await?;
            sqlx::query(PUT)
                .bind(scope.tenant())
                .bind(PLAIN)
                .bind(keys)
                .bind(graphs)
                .bind(outputs)
                .bind(sizes)
                .bind(ttls)
                .execute(session.conn())
                .await
                .map_err(driver_error)?;
            self.wrote(session).await
        })
        .await
    }

    async fn sweep_cache(&self, scope: &Scope, max_bytes: i64) -> Result<bool> {
        self.bounded(async {
            let mut transaction = self.begin().await?;
            let expired = sqlx::query(EXPIRE)
                .bind(scope.filter())
                .bind(STEP_ROWS)
                .execute(&mut *transaction)
                .await
                .map_err(driver_error)?
                .rows_affected();
            let row =
                sqlx::query(SIZE).bind(scope.filter()).fetch_one(&mut *transaction).await.map_err(driver_error)?;
            let excess = get::<i64>(&row, "bytes")?.saturating_sub(max_bytes);
            let mut removed = 0;
            if excess > 0 {
                removed = sqlx::query(SHRINK)
                    .bind(scope.filter())
                    .bind(STEP_ROWS)
                    .bind(excess)
                    .execute(&mut *transaction)
                    .await
                    .map_err(driver_error)?
                    .rows_affected();
            }
            if expired + removed == 0 {
                return Ok(false);
            }
            self.commit(transaction).await?;
            Ok(expired.max(removed) >= STEP_ROWS as u64)
        })
        .await
    }

    async fn clear_cache(&self, scope: &Scope, graph_id: &str) -> Result<bool> {
        self.bounded(async {
            let mut session = self.session().await?;
            let gone = sqlx::query(
                "DELETE FROM cache_entries WHERE (tenant, key) IN (
                 SELECT tenant, key FROM cache_entries
                 WHERE ($1::uuid IS NULL OR tenant = $1) AND graph_id = $2
                 ORDER BY tenant, key LIMIT $3 FOR UPDATE)",
            )
            .bind(scope.filter())
            .bind(graph_id)
            .bind(STEP_ROWS)
            .execute(session.conn())
            .await
            .map_err(driver_error)?;
            self.wrote(session).await?;
            Ok(gone.rows_affected() >= STEP_ROWS as u64)
        })
        .await
    }
}
