//! What is removed of threads whose checkpoints come from elsewhere, on Postgres: in steps, each behind the thread's lock.

use std::collections::BTreeSet;

use sqlx::postgres::PgConnection;

use super::foreign::{latest, list, load};
use super::now;
use super::retention::prune_rows;
use super::rows::get;
use super::threads::lock_thread;
use crate::model::{Scope, ThreadKey};
use crate::storage::foreign::ON_ITS_WAY;
use crate::storage::rows::driver_error;
use crate::storage::{ForeignFilter, ForeignKept, ForeignPrint, Pruned, Result, STEP_ROWS, StoredForeign};

/// The prints of what is kept, as it is now.
async fn prints(
    conn: &mut PgConnection,
    scope: &Scope,
    key: ThreadKey,
    kept: &ForeignKept,
) -> Result<BTreeSet<ForeignPrint>> {
    let mut prints = BTreeSet::new();
    if let Some(checkpoints) = &kept.checkpoints {
        for (ns, id) in checkpoints {
            let stored = load(conn, scope, key, ns, Some(id)).await?;
            prints.extend(stored.iter().map(StoredForeign::print));
        }
        return Ok(prints);
    }
    let mut filter = ForeignFilter::default();
    loop {
        let page = list(conn, scope, key, &filter, STEP_ROWS).await?;
        prints.extend(page.iter().map(StoredForeign::print));
        filter.after = page.last().map(|stored| (stored.row.ns.clone(), stored.row.id.clone()));
        if (page.len() as i64) < STEP_ROWS {
            return Ok(prints);
        }
    }
}

/// Whether tasks wrote on a checkpoint that has yet to come.
async fn is_on_its_way(conn: &mut PgConnection, key: ThreadKey) -> Result<bool> {
    let row = sqlx::query(concat!(
        "SELECT EXISTS (
             SELECT 1 FROM foreign_writes w
             WHERE w.thread_key = $1 AND w.written_at > ",
        now!(),
        " - $2
               AND NOT EXISTS (SELECT 1 FROM foreign_checkpoints c
                               WHERE c.thread_key = $1 AND c.ns = w.ns AND c.checkpoint_id >= w.checkpoint_id)
         ) AS found"
    ))
    .bind(key.0)
    .bind(ON_ITS_WAY)
    .fetch_one(conn)
    .await
    .map_err(driver_error)?;
    get(&row, "found")
}

pub(super) async fn prune(
    conn: &mut PgConnection,
    scope: &Scope,
    key: ThreadKey,
    kept: &ForeignKept,
) -> Result<Pruned> {
    if !lock_thread(conn, key).await?
        || latest(conn, scope, key).await? != kept.latest
        || is_on_its_way(conn, key).await?
        || prints(conn, scope, key, kept).await? != kept.prints
    {
        return Ok(Pruned::Changed);
    }
    // Whoever refers to what is removed here must look again.
    let raised = sqlx::query("UPDATE threads SET revision = revision + 1 WHERE thread_key = $1 AND is_foreign")
        .bind(key.0)
        .execute(&mut *conn)
        .await
        .map_err(driver_error)?;
    if raised.rows_affected() == 0 {
        return Ok(Pruned::Changed);
    }
    let writes = match &kept.checkpoints {
        Some(checkpoints) => {
            let (spaces, ids): (Vec<&str>, Vec<&str>) =
                checkpoints.iter().map(|(ns, id)| (ns.as_str(), id.as_str())).unzip();
            // Checkpoints first and alone: one that is still there must be readable.
            let checkpoints = prune_rows!(
                conn,
                key,
                "DELETE FROM foreign_checkpoints WHERE (thread_key, ns, checkpoint_id) IN (
                     SELECT c.thread_key, c.ns, c.checkpoint_id FROM foreign_checkpoints c
                     WHERE c.thread_key = $1
                       AND NOT EXISTS (SELECT 1 FROM UNNEST($3::text[], $4::text[]) AS k (ns, id)
                                       WHERE k.ns = c.ns AND k.id = c.checkpoint_id)
                     ORDER BY c.ns, c.checkpoint_id LIMIT $2)",
                &spaces,
                &ids
            );
            if !checkpoints {
                return Ok(Pruned::More);
            }
            prune_rows!(
                conn,
                key,
                "DELETE FROM foreign_writes WHERE (thread_key, ns, checkpoint_id, task_id, slot) IN (
                     SELECT w.thread_key, w.ns, w.checkpoint_id, w.task_id, w.slot FROM foreign_writes w
                     WHERE w.thread_key = $1
                       AND NOT EXISTS (SELECT 1 FROM UNNEST($3::text[], $4::text[]) AS k (ns, id)
                                       WHERE k.ns = w.ns AND k.id = w.checkpoint_id)
                     LIMIT $2)",
                &spaces,
                &ids
            )
        }
        None => prune_rows!(
            conn,
            key,
            "DELETE FROM foreign_writes WHERE (thread_key, ns, checkpoint_id, task_id, slot) IN (
                 SELECT w.thread_key, w.ns, w.checkpoint_id, w.task_id, w.slot FROM foreign_writes w
                 WHERE w.thread_key = $1
                   AND NOT EXISTS (SELECT 1 FROM foreign_checkpoints c
                                   WHERE c.thread_key = $1 AND c.ns = w.ns AND c.checkpoint_id = w.checkpoint_id)
                 LIMIT $2)"
        ),
    };
    let hashes: Vec<&[u8]> = kept.payloads.iter().map(|hash| &hash[..]).collect();
    // Those that are made of others go before these and all at once, a few for each value: who finds one may refer to it.
    sqlx::query(
        "DELETE FROM payloads p WHERE p.thread_key = $1 AND p.codec = 2
             AND NOT EXISTS (SELECT 1 FROM UNNEST($2::bytea[]) AS k (hash) WHERE k.hash = p.hash)",
    )
    .bind(key.0)
    .bind(&hashes)
    .execute(&mut *conn)
    .await
    .map_err(driver_error)?;
    let payloads = prune_rows!(
        conn,
        key,
        "DELETE FROM payloads WHERE (thread_key, hash) IN (
             SELECT p.thread_key, p.hash FROM payloads p
             WHERE p.thread_key = $1 AND NOT EXISTS (SELECT 1 FROM UNNEST($3::bytea[]) AS k (hash) WHERE k.hash = p.hash)
             LIMIT $2)",
        &hashes
    );
    if !(writes && payloads) {
        return Ok(Pruned::More);
    }
    // What they came from is gone.
    sqlx::query(
        "UPDATE foreign_checkpoints c SET parent_id = NULL
         WHERE c.thread_key = $1 AND c.parent_id IS NOT NULL
           AND NOT EXISTS (SELECT 1 FROM foreign_checkpoints p
                           WHERE p.thread_key = c.thread_key AND p.ns = c.ns AND p.checkpoint_id = c.parent_id)",
    )
    .bind(key.0)
    .execute(&mut *conn)
    .await
    .map_err(driver_error)?;
    sqlx::query(concat!("UPDATE threads SET pruned_at = ", now!(), " WHERE thread_key = $1"))
        .bind(key.0)
        .execute(conn)
        .await
        .map_err(driver_error)?;
    Ok(Pruned::Done)
}
