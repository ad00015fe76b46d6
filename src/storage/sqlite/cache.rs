//! The cache of node outputs on SQLite.

use async_trait::async_trait;
use sqlx::QueryBuilder;
use sqlx::sqlite::SqliteConnection;
use uuid::Uuid;

use super::rows::get;
use super::{SqliteStorage, Write, clock};
use crate::model::Scope;
use crate::storage::encoding::PLAIN;
use crate::storage::rows::driver_error;
use crate::storage::{Cache, CacheEntry, CacheKey, NewCacheEntry, Result, STEP_ROWS, cache};

/// Keys of one statement, below SQLite's bound on parameters.
const KEYS: usize = 500;

async fn find(conn: &mut SqliteConnection, tenant: Uuid, keys: Vec<CacheKey>, now: i64) -> Result<Vec<CacheEntry>> {
    let mut found = Vec::new();
    for part in keys.chunks(KEYS) {
        let mut query = QueryBuilder::new("SELECT key, codec, output, expires_at - ");
        query.push_bind(now).push(" AS time_left FROM cache_entries WHERE tenant = ").push_bind(tenant);
        query.push(" AND (expires_at IS NULL OR expires_at > ").push_bind(now).push(") AND key IN (");
        let mut list = query.separated(", ");
        for key in part {
            list.push_bind(key.to_vec());
        }
        query.push(")");
        for row in query.build().fetch_all(&mut *conn).await.map_err(driver_error)? {
            let key: Vec<u8> = get(&row, "key")?;
            found.push(cache::read(&key, get(&row, "codec")?, get(&row, "output")?, get(&row, "time_left")?)?);
        }
    }
    Ok(found)
}

async fn put(write: &mut Write, tenant: Uuid, entries: Vec<NewCacheEntry>) -> Result<()> {
    for (key, graph_id, output, size, ttl) in cache::rows(entries) {
        sqlx::query(
            "INSERT INTO cache_entries (tenant, key, graph_id, codec, output, size, created_at, expires_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $7 + $8)
             ON CONFLICT (tenant, key) DO UPDATE SET
                 graph_id = excluded.graph_id, codec = excluded.codec, output = excluded.output, size = excluded.size,
                 created_at = excluded.created_at, expires_at = excluded.expires_at",
        )
        .bind(tenant)
        .bind(key.to_vec())
        .bind(graph_id)
        .bind(PLAIN)
        .bind(output)
        .bind(size)
        .bind(write.now)
        .bind(ttl)
        .execute(&mut write.conn)
        .await
        .map_err(driver_error)?;
    }
    Ok(())
}

async fn is_sweep_due(conn: &mut SqliteConnection, tenant: Option<Uuid>, max_bytes: i64, now: i64) -> Result<bool> {
    let row = sqlx::query(
        "SELECT EXISTS (SELECT 1 FROM cache_entries WHERE ($1 IS NULL OR tenant = $1) AND expires_at <= $2)
             OR (SELECT COALESCE(SUM(size), 0) FROM cache_entries WHERE $1 IS NULL OR tenant = $1) > $3 AS it",
    )
    .bind(tenant)
    .bind(now)
    .bind(max_bytes)
    .fetch_one(conn)
    .await
    .map_err(driver_error)?;
    get(&row, "it")
}

async fn sweep(write: &mut Write, tenant: Option<Uuid>, max_bytes: i64) -> Result<bool> {
    let expired = sqlx::query(
        "DELETE FROM cache_entries WHERE rowid IN (
             SELECT rowid FROM cache_entries WHERE ($1 IS NULL OR tenant = $1) AND expires_at <= $2
             ORDER BY expires_at LIMIT $3)",
    )
    .bind(tenant)
    .bind(write.now)
    .bind(STEP_ROWS)
    .execute(&mut write.conn)
    .await
    .map_err(driver_error)?
    .rows_affected();
    let row = sqlx::query("SELECT COALESCE(SUM(size), 0) AS bytes FROM cache_entries WHERE $1 IS NULL OR tenant = $1")
        .bind(tenant)
        .fetch_one(&mut write.conn)
        .await
        .map_err(driver_error)?;
    let excess = get::<i64>(&row, "bytes")?.saturating_sub(max_bytes);
    if excess <= 0 {
        return Ok(expired >= STEP_ROWS as u64);
    }
    let removed = sqlx::query(
        "DELETE FROM cache_entries WHERE rowid IN (
             SELECT id FROM (
                 SELECT id, SUM(size) OVER (ORDER BY created_at, id) - size AS older
                 FROM (SELECT rowid AS id, size, created_at FROM cache_entries WHERE $1 IS NULL OR tenant = $1
                       ORDER BY created_at, rowid LIMIT $2)
             ) WHERE older < $3)",
    )
    .bind(tenant)
    .bind(STEP_ROWS)
    .bind(excess)
    .execute(&mut write.conn)
    .await
    .map_err(driver_error)?
    .rows_affected();
    Ok(expired.max(removed) >= STEP_ROWS as u64)
}

async fn clear(write: &mut Write, tenant: Option<Uuid>, graph_id: String) -> Result<bool> {
    let gone = sqlx::query(
        "DELETE FROM cache_entries WHERE rowid IN (
             SELECT rowid FROM cache_entries WHERE ($1 IS NULL OR tenant = $1) AND graph_id = $2 LIMIT $3)",
    )
    .bind(tenant)
    .bind(graph_id)
    .bind(STEP_ROWS)
    .execute(&mut write.conn)
    .await
    .map_err(driver_error)?;
    Ok(gone.rows_affected() >= STEP_ROWS as u64)
}

#[async_trait]
impl Cache for SqliteStorage {
    async fn find_cached(&self, scope: &Scope, keys: &[CacheKey]) -> Result<Vec<CacheEntry>> {
        let (tenant, keys) = (scope.tenant(), keys.to_vec());
        self.read(move |conn| Box::pin(find(conn, tenant, keys, clock()))).await
    }

    async fn put_cached(&self, scope: &Scope, entries: Vec<NewCacheEntry>) -> Result<()> {
        if entries.is_empty() {
            return Ok(());
        }
        let tenant = scope.tenant();
        self.write(move |write| Box::pin(put(write, tenant, entries))).await
    }

    async fn sweep_cache(&self, scope: &Scope, max_bytes: i64) -> Result<bool> {
        let tenant = scope.filter();
        // Looked at by a reader first: an idle server sweeps without writing.
        let is_due = self.read(move |conn| Box::pin(is_sweep_due(conn, tenant, max_bytes, clock()))).await?;
        Ok(is_due && self.write(move |write| Box::pin(sweep(write, tenant, max_bytes))).await?)
    }

    async fn clear_cache(&self, scope: &Scope, graph_id: &str) -> Result<bool> {
        let (tenant, graph_id) = (scope.filter(), graph_id.to_owned());
        self.write(move |write| Box::pin(clear(write, tenant, graph_id))).await
    }
}
