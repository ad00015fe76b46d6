//! What a proof or a test needs of Postgres beside the contract: a schema of its own, faults, and what the statements of
//! this backend are, for who reads them on the wire.

use std::str::FromStr as _;

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _};

use crate::storage::rows::driver_error;
use crate::storage::scratch::Statement;
use crate::storage::{Result, StorageError};

/// Connections that are held so that others find none left. Dropped, they are closed.
#[derive(Debug)]
pub(in crate::storage) struct Held(#[expect(dead_code, reason = "held until dropped")] Vec<PgConnection>);

async fn admin(url: &str) -> Result<PgConnection> {
    let options = PgConnectOptions::from_str(url)
        .map_err(|error| StorageError::Url(format!("not a Postgres URL: {error}")))?
        .application_name("session-store scratch")
        .disable_statement_logging();
    PgConnection::connect_with(&options).await.map_err(driver_error)
}

async fn execute(url: &str, statement: String) -> Result<()> {
    let mut conn = admin(url).await?;
    // The text is ours and a checked name: nothing in it comes from a request.
    sqlx::query(AssertSqlSafe(statement)).execute(&mut conn).await.map_err(driver_error)?;
    conn.close().await.map_err(driver_error)
}

/// Only lower-case letters, digits and `_`: needs no quotes.
fn checked(name: &str) -> Result<&str> {
    let plain = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
    if name.is_empty() || !plain {
        Err(StorageError::Other(format!("no name for a schema: {name:?}")))
    } else {
        Ok(name)
    }
}

/// Makes the schema; an error if there is one of that name.
pub(in crate::storage) async fn create_schema(url: &str, name: &str) -> Result<()> {
    execute(url, format!("CREATE SCHEMA {}", checked(name)?)).await
}

/// Removes the schema and everything in it.
pub(in crate::storage) async fn drop_schema(url: &str, name: &str) -> Result<()> {
    execute(url, format!("DROP SCHEMA IF EXISTS {} CASCADE", checked(name)?)).await
}

/// Ends up to `limit` connections of servers, whatever they are doing. Returns how many.
pub(in crate::storage) async fn terminate_backends(url: &str, limit: i64) -> Result<u64> {
    let mut conn = admin(url).await?;
    let ended = sqlx::query(
        "SELECT pg_terminate_backend(pid) FROM (
             SELECT pid FROM pg_stat_activity WHERE application_name = 'session-store'
             ORDER BY state = 'idle', random() LIMIT $1) AS some",
    )
    .bind(limit)
    .fetch_all(&mut conn)
    .await
    .map_err(driver_error)?;
    conn.close().await.map_err(driver_error)?;
    Ok(ended.len() as u64)
}

/// Opens connections until the database has none left.
pub(in crate::storage) async fn hold_connections(url: &str, limit: usize) -> Result<Held> {
    let mut held = Vec::new();
    while held.len() < limit {
        match admin(url).await {
            Ok(conn) => held.push(conn),
            Err(_) => break,
        }
    }
    Ok(Held(held))
}

/// What a statement of this backend does. By a part of it that no other has; `tests` compares with the statements.
pub(in crate::storage) fn statement(sql: &str) -> Statement {
    let has = |part: &str| sql.contains(part);
    if has("claimed AS (") {
        Statement::Claim
    } else if has("put_task_writes AS (") {
        Statement::Commit
    } else if has("INSERT INTO runs AS r") {
        Statement::Create
    } else if has("mine AS MATERIALIZED") {
        Statement::Renew
    } else if has("INSERT INTO") || has("UPDATE ") || has("DELETE FROM") {
        Statement::OtherWrite
    } else {
        Statement::Read
    }
}
