//! Idempotency keys on Postgres. A duplicate that comes while the first request's transaction is open waits for it at the
//! row.

use async_trait::async_trait;
use sqlx::postgres::PgConnection;

use super::rows::get;
use super::{PostgresStorage, now, read};
use crate::model::Scope;
use crate::storage::encoding::Place;
use crate::storage::idempotency::{Keyed, REMEMBERED_US};
use crate::storage::rows::driver_error;
use crate::storage::{IdempotencyKey, IdempotencyKeys, KeyRow, Result, StorageError};

/// Inserts the row of a key, in the transaction of the operation.
pub(super) async fn take(conn: &mut PgConnection, keyed: &Keyed) -> Result<()> {
    let done = sqlx::query(concat!(
        "INSERT INTO idempotency_keys AS k (tenant, operation, key, fingerprint, location, created_at, expires_at)
         SELECT $1, $2, $3, $4, $5, clock.now, clock.now + $6 FROM (SELECT ",
        now!(),
        " AS now) AS clock
         ON CONFLICT (tenant, operation, key) DO UPDATE SET
             fingerprint = EXCLUDED.fingerprint, location = EXCLUDED.location, status = NULL, answer = NULL,
             created_at = EXCLUDED.created_at, expires_at = EXCLUDED.expires_at
         WHERE k.expires_at <= EXCLUDED.created_at"
    ))
    .bind(keyed.key.tenant)
    .bind(&keyed.key.operation)
    .bind(&keyed.key.key)
    .bind(keyed.key.fingerprint.to_vec())
    .bind(keyed.location())
    .bind(REMEMBERED_US)
    .execute(conn)
    .await
    .map_err(driver_error)?;
    if done.rows_affected() == 1 { Ok(()) } else { Err(StorageError::KeyUsed) }
}

#[async_trait]
impl IdempotencyKeys for PostgresStorage {
    async fn find_key(&self, scope: &Scope, operation: &str, key: &str) -> Result<Option<KeyRow>> {
        read!(self, async {
            let mut session = self.session().await?;
            let row = sqlx::query(concat!(
                "SELECT fingerprint, location, status, answer FROM idempotency_keys
                 WHERE tenant = $1 AND operation = $2 AND key = $3 AND expires_at > ",
                now!()
            ))
            .bind(scope.tenant())
            .bind(operation)
            .bind(key)
            .fetch_optional(session.conn())
            .await
            .map_err(driver_error)?;
            session.finish().await?;
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
    }

    async fn answer_key(&self, scope: &Scope, key: &IdempotencyKey, status: u16, answer: Vec<u8>) -> Result<()> {
        self.bounded(async {
            let mut session = self.session().await?;
            sqlx::query(concat!(
            "INSERT INTO idempotency_keys (tenant, operation, key, fingerprint, status, answer, created_at, expires_at)
             SELECT $1, $2, $3, $4, $5, $6, clock.now, clock.now + $7 FROM (SELECT ",
            now!(),
            " AS now) AS clock
             ON CONFLICT (tenant, operation, key) DO UPDATE SET status = EXCLUDED.status, answer = EXCLUDED.answer"
        ))
            .bind(scope.tenant())
            .bind(&key.operation)
            .bind(&key.key)
            .bind(key.fingerprint.to_vec())
            .bind(i32::from(status))
            .bind(answer)
            .bind(REMEMBERED_US)
            .execute(session.conn())
            .await
            .map_err(driver_error)?;
            self.wrote(session).await
        })
        .await
    }

    async fn forget_key(&self, scope: &Scope, operation: &str, key: &str) -> Result<()> {
        self.bounded(async {
            let mut session = self.session().await?;
            sqlx::query("DELETE FROM idempotency_keys WHERE tenant = $1 AND operation = $2 AND key = $3")
                .bind(scope.tenant())
                .bind(operation)
                .bind(key)
                .execute(session.conn())
                .await
                .map_err(driver_error)?;
            self.wrote(session).await
        })
        .await
    }

    async fn purge_keys(&self, scope: &Scope, limit: i64) -> Result<u64> {
        self.bounded(async {
            let mut session = self.session().await?;
            let done = sqlx::query(concat!(
                "DELETE FROM idempotency_keys WHERE (tenant, operation, key) IN (
                 SELECT tenant, operation, key FROM idempotency_keys
                 WHERE expires_at <= ",
                now!(),
                " AND ($1::uuid IS NULL OR tenant = $1) ORDER BY expires_at LIMIT $2)"
            ))
            .bind(scope.filter())
            .bind(limit)
            .execute(session.conn())
            .await
            .map_err(driver_error)?
            .rows_affected();
            match done {
                0 => session.finish().await?,
                _ => self.wrote(session).await?,
            }
            Ok(done)
        })
        .await
    }
}
