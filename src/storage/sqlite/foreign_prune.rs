//! What is removed of threads whose checkpoints come from elsewhere, on SQLite: in steps, each a transaction of the writer.

use std::collections::BTreeSet;

use sqlx::sqlite::SqliteConnection;

use super::Write;
use super::foreign::{is_foreign, latest, list, load};
use super::retention::{keep_rows, prune_rows};
use super::rows::get;
use crate::model::{Scope, ThreadKey};
use crate::storage::foreign::ON_ITS_WAY;
use crate::storage::rows::driver_error;
use crate::storage::{ForeignFilter, ForeignKept, ForeignPrint, Kept, Pruned, Result, STEP_ROWS, StoredForeign};

pub(super) async fn prune(write: &mut Write, scope: Scope, key: ThreadKey, kept: ForeignKept) -> Result<Pruned> {
    let conn = &mut write.conn;
    if !is_foreign(conn, scope, key).await?
        || latest(conn, scope, key).await? != kept.latest
        || is_on_its_way(conn, key, write.now).await?
        || prints(conn, scope, key, &kept).await? != kept.prints
    {
        return Ok(Pruned::Changed);
    }
    let is_of_all = kept.checkpoints.is_none();
    let checkpoints = kept.checkpoints.unwrap_or_default();
    keep_rows(write, &Kept { checkpoints, payloads: kept.payloads, ..Kept::default() }).await?;
    let on_kept = match is_of_all {
        true => {
            "SELECT 1 FROM foreign_checkpoints k
             WHERE k.thread_key = x.thread_key AND k.ns = x.ns AND k.checkpoint_id = x.checkpoint_id"
        }
        false => "SELECT 1 FROM kept_checkpoints k WHERE k.ns = x.ns AND k.id = x.checkpoint_id",
    };
    // Checkpoints first and alone: one that is still there must be readable.
    if !is_of_all && !prune_rows(write, key, "foreign_checkpoints", on_kept).await? {
        return Ok(Pruned::More);
    }
    let writes = prune_rows(write, key, "foreign_writes", on_kept).await?;
    // Those that are made of others go before these and all at once, a few for each value: who finds one may refer to it.
    sqlx::query(
        "DELETE FROM payloads WHERE thread_key = $1 AND codec = 2
             AND NOT EXISTS (SELECT 1 FROM kept_payloads k WHERE k.hash = payloads.hash)",
    )
    .bind(key.0)
    .execute(&mut write.conn)
    .await
    .map_err(driver_error)?;
    let payloads = prune_rows(write, key, "payloads", "SELECT 1 FROM kept_payloads k WHERE k.hash = x.hash").await?;
    if !(writes && payloads) {
        return Ok(Pruned::More);
    }
    // What they came from is gone.
    sqlx::query(
        "UPDATE foreign_checkpoints AS c SET parent_id = NULL
         WHERE c.thread_key = $1 AND c.parent_id IS NOT NULL
           AND NOT EXISTS (SELECT 1 FROM foreign_checkpoints p
                           WHERE p.thread_key = c.thread_key AND p.ns = c.ns AND p.checkpoint_id = c.parent_id)",
    )
    .bind(key.0)
    .execute(&mut write.conn)
    .await
    .map_err(driver_error)?;
    sqlx::query("UPDATE threads SET pruned_at = $2 WHERE thread_key = $1")
        .bind(key.0)
        .bind(write.now)
        .execute(&mut write.conn)
        .await
        .map_err(driver_error)?;
    Ok(Pruned::Done)
}

/// The prints of what is kept, as it is now.
async fn prints(
    conn: &mut SqliteConnection,
    scope: Scope,
    key: ThreadKey,
    kept: &ForeignKept,
) -> Result<BTreeSet<ForeignPrint>> {
    let mut prints = BTreeSet::new();
    if let Some(checkpoints) = &kept.checkpoints {
        for (ns, id) in checkpoints {
            let stored = load(conn, scope, key, ns.clone(), Some(id.clone())).await?;
            prints.extend(stored.iter().map(StoredForeign::print));
        }
        return Ok(prints);
    }
    let mut filter = ForeignFilter::default();
    loop {
        let page = list(conn, scope, key, filter.clone(), STEP_ROWS).await?;
        prints.extend(page.iter().map(StoredForeign::print));
        filter.after = page.last().map(|stored| (stored.row.ns.clone(), stored.row.id.clone()));
        if (page.len() as i64) < STEP_ROWS {
            return Ok(prints);
        }
    }
}

/// Whether tasks wrote on a checkpoint that has yet to come.
async fn is_on_its_way(conn: &mut SqliteConnection, key: ThreadKey, now: i64) -> Result<bool> {
    let row = sqlx::query(
        "SELECT EXISTS (
             SELECT 1 FROM foreign_writes w
             WHERE w.thread_key = $1 AND w.written_at > $2
               AND NOT EXISTS (SELECT 1 FROM foreign_checkpoints c
                               WHERE c.thread_key = $1 AND c.ns = w.ns AND c.checkpoint_id >= w.checkpoint_id)
         ) AS found",
    )
    .bind(key.0)
    .bind(now - ON_ITS_WAY)
    .fetch_one(conn)
    .await
    .map_err(driver_error)?;
    get(&row, "found")
}
