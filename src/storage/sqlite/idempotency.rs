//! Idempotency keys on SQLite.

use async_trait::async_trait;

use super::rows::get;
use super::{SqliteStorage, Write, clock};
use crate::model::Scope;
use crate::storage::encoding::Place;
use crate::storage::idempotency::{Keyed, REMEMBERED_US};
use crate::storage::rows::driver_error;
use crate::storage::{IdempotencyKey, IdempotencyKeys, KeyRow, Result, StorageError};

/// Inserts the row of a key, in the savepoint of the operation.
pub(super) async fn take(write: &mut Write, keyed: &Keyed) -> Result<()> {
    let done = sqlx::query(
        "INSERT INTO idempotency_keys AS k (tenant, operation, key, fingerprint, location, created_at, expires_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7)
         ON CONFLICT (tenant, operation, key) DO UPDATE SET
             fingerprint = excluded.fingerprint, location = excluded.location, status = NULL, answer = NULL,
             created_at = excluded.created_at, expires_at = excluded.expires_at
         WHERE k.expires_at <= excluded.created_at",
    )
    .bind(keyed.key.tenant)
    .bind(&keyed.key.operation)
    .bind(&keyed.key.key)
    .bind(keyed.key.fingerprint.to_vec())
    .bind(keyed.location())
    .bind(write.now)
    .bind(write.now + REMEMBERED_US)
    .execute(&mut write.conn)
    .await
    .map_err(driver_error)?;
    if done.rows_affected() == 1 { Ok(()) } else { Err(StorageError::KeyUsed) }
}

async fn answer(write: &mut Write, scope: Scope, key: IdempotencyKey, status: u16, answer: Vec<u8>) -> Result<()> {
    sqlx::query(
        "INSERT INTO idempotency_keys (tenant, operation, key, fingerprint, status, answer, created_at, expires_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
         ON CONFLICT (tenant, operation, key) DO UPDATE SET status = excluded.status, answer = excluded.answer",
    )
    .bind(scope.tenant())
    .bind(&key.operation)
    .bind(&key.key)
    .bind(key.fingerprint.to_vec())
    .bind(i32::from(status))
    .bind(answer)
    .bind(write.now)
    .bind(write.now + REMEMBERED_US)
    .execute(&mut write.conn)
    .await
    .map_err(driver_error)?;
    Ok(())
}

#[async_trait]
impl IdempotencyKeys for SqliteStorage {
    async fn find_key(&self, scope: &Scope, operation: &str, key: &str) -> Result<Option<KeyRow>> {
        let (tenant, operation, key) = (scope.tenant(), operation.to_owned(), key.to_owned());
        self.read(move |conn| {
            Box::pin(async move {
                let row = sqlx::query(
                    "SELECT fingerprint, location, status, answer FROM idempotency_keys
                     WHERE tenant = $1 AND operation = $2 AND key = $3 AND expires_at > $4",
                )
                .bind(tenant)
                .bind(operation)
                .bind(&key)
                .bind(clock())
                .fetch_optional(conn)
                .await
                .map_err(driver_error)?;
                let Some(row) = row else { return Ok(None) };
                let at = Place { table: "idempotency_keys", column: "fingerprint", id: &key };
                let fingerprint: Vec<u8> = get(&row, "fingerprint")?;
                let status: Option<i32> = get(&row, "status")?;
                let answer: Option<Vec<u8>> = get(&row, "answer")?;
                Ok(Some(KeyRow {
                    fingerprint: fingerprint.try_into().map_err(|_| at.corrupt("not 32 bytes"))?,
                    location: get(&row, "location")?,
                    answer: status.and_then(|status| u16::try_from(status).ok()).zip(answer),
                }))
            })
        })
        .await
    }

    async fn answer_key(&self, scope: &Scope, key: &IdempotencyKey, status: u16, bytes: Vec<u8>) -> Result<()> {
        let (scope, key) = (*scope, key.clone());
        self.write(move |write| Box::pin(answer(write, scope, key, status, bytes))).await
    }

    async fn forget_key(&self, scope: &Scope, operation: &str, key: &str) -> Result<()> {
        let (tenant, operation, key) = (scope.tenant(), operation.to_owned(), key.to_owned());
        self.write(move |write| {
            Box::pin(async move {
                sqlx::query("DELETE FROM idempotency_keys WHERE tenant = $1 AND operation = $2 AND key = $3")
                    .bind(tenant)
                    .bind(operation)
                    .bind(key)
                    .execute(&mut write.conn)
                    .await
                    .map_err(driver_error)?;
                Ok(())
            })
        })
        .await
    }

    async fn purge_keys(&self, scope: &Scope, limit: i64) -> Result<u64> {
        let scope = *scope;
        // Looked at first, so that an idle server does not write.
        let any = self.read(move |conn| {
            Box::pin(async move {
                let row = sqlx::query("SELECT EXISTS (SELECT 1 FROM idempotency_keys WHERE expires_at <= $1) AS it")
                    .bind(clock());
                get::<bool>(&row.fetch_one(conn).await.map_err(driver_error)?, "it")
            })
        });
        if !any.await? {
            return Ok(0);
        }
        self.write(move |write| {
            Box::pin(async move {
                let done = sqlx::query(
                    "DELETE FROM idempotency_keys WHERE (tenant, operation, key) IN (
                         SELECT tenant, operation, key FROM idempotency_keys
                         WHERE expires_at <= $2 AND ($1 IS NULL OR tenant = $1) ORDER BY expires_at LIMIT $3)",
                )
                .bind(scope.filter())
                .bind(write.now)
                .bind(limit)
                .execute(&mut write.conn)
                .await
                .map_err(driver_error)?;
                Ok(done.rows_affected())
            })
        })
        .await
    }
}
