//! Branches on Postgres.

use async_trait::async_trait;
use sqlx::postgres::{PgConnection, PgRow};

use super::rows::get;
use super::threads::lock_thread;
use super::{PostgresStorage, now, read};
use crate::model::{CheckpointId, Scope, ThreadId, ThreadKey};
use crate::storage::branches::define_branch_rows;
use crate::storage::encoding::hide_nul;
use crate::storage::rows::driver_error;
use crate::storage::{Branch, BranchPut, Branches, HeadMove, MAX_BRANCHES, Result, Tip};

define_branch_rows!(PgRow);

/// Leaves are found by a list of all parents rather than by asking for the children of each.
const TIPS: &str = "
    SELECT c.thread_key, c.checkpoint_id, c.parent_id, c.run_id, c.step, c.source, c.created_at, c.codec, c.next_nodes,
           COALESCE(c.checkpoint_id = t.head, FALSE) AS is_head, (f.parent_id IS NULL) AS is_leaf
    FROM threads t
    JOIN checkpoints c ON c.thread_key = t.thread_key AND c.ns = ''
    LEFT JOIN (SELECT DISTINCT p.parent_id FROM checkpoints p
               WHERE p.thread_key = $1 AND p.ns = '' AND p.parent_id IS NOT NULL) AS f ON f.parent_id = c.checkpoint_id
    WHERE t.thread_key = $1 AND ($2::uuid IS NULL OR t.tenant = $2) AND ($3::text IS NULL OR c.checkpoint_id < $3)
      AND (f.parent_id IS NULL OR c.checkpoint_id = t.head
           OR EXISTS (SELECT 1 FROM branches b
                      WHERE b.thread_key = $1 AND b.checkpoint_id = c.checkpoint_id
                        AND b.name IS DISTINCT FROM t.branch))
    ORDER BY c.checkpoint_id DESC LIMIT $4";

const NAMES: &str = "
    SELECT b.name, CASE WHEN b.name = t.branch THEN t.head ELSE b.checkpoint_id END AS checkpoint_id,
           COALESCE(b.name = t.branch, FALSE) AS is_current, b.created_at, b.updated_at, b.updated_by
    FROM threads t JOIN branches b ON b.thread_key = t.thread_key
    WHERE t.thread_key = $1 AND ($2::uuid IS NULL OR t.tenant = $2) AND ($3::text IS NULL OR b.name = $3)
    ORDER BY b.name";

async fn names(conn: &mut PgConnection, scope: &Scope, thread: ThreadKey, name: Option<&str>) -> Result<Vec<Branch>> {
    let rows = sqlx::query(NAMES)
        .bind(thread.0)
        .bind(scope.filter())
        .bind(name)
        .fetch_all(conn)
        .await
        .map_err(driver_error)?;
    rows.iter().map(branch_from).collect()
}

async fn put(
    conn: &mut PgConnection,
    scope: &Scope,
    key: ThreadKey,
    name: &str,
    checkpoint: Option<&CheckpointId>,
    actor: Option<&str>,
) -> Result<BranchPut> {
    if !lock_thread(conn, key).await? {
        return Ok(BranchPut::ThreadMissing);
    }
    let row = sqlx::query(
        "SELECT t.head, t.branch, t.closed IS NOT NULL AS is_closed,
                EXISTS (SELECT 1 FROM checkpoints c
                        WHERE c.thread_key = t.thread_key AND c.ns = '' AND c.checkpoint_id = COALESCE($2, t.head))
                AS is_there,
                (SELECT COUNT(*) FROM branches b WHERE b.thread_key = t.thread_key AND b.name <> $3) AS others
         FROM threads t WHERE t.thread_key = $1",
    )
    .bind(key.0)
    .bind(checkpoint)
    .bind(name)
    .fetch_one(&mut *conn)
    .await
    .map_err(driver_error)?;
    let (head, current): (Option<String>, Option<String>) = (get(&row, "head")?, get(&row, "branch")?);
    if get(&row, "is_closed")? {
        return Ok(BranchPut::ThreadClosed);
    }
    if !get::<bool>(&row, "is_there")? {
        return Ok(BranchPut::CheckpointMissing);
    }
    if current.as_deref() == Some(name) && checkpoint.is_some_and(|wanted| Some(wanted) != head.as_ref()) {
        return Ok(BranchPut::IsCurrent);
    }
    if get::<i64>(&row, "others")? >= MAX_BRANCHES {
        return Ok(BranchPut::TooMany);
    }
    sqlx::query(concat!(
        "INSERT INTO branches (thread_key, name, tenant, checkpoint_id, created_at, updated_at, updated_by)
         SELECT t.thread_key, $2, t.tenant, COALESCE($3, t.head), clock.now, clock.now, $4
         FROM threads t, (SELECT ",
        now!(),
        " AS now) AS clock WHERE t.thread_key = $1
         ON CONFLICT (thread_key, name) DO UPDATE SET
             checkpoint_id = EXCLUDED.checkpoint_id, updated_at = EXCLUDED.updated_at, updated_by = EXCLUDED.updated_by"
    ))
    .bind(key.0)
    .bind(name)
    .bind(checkpoint)
    .bind(actor.map(|text| hide_nul(text).into_owned()))
    .execute(&mut *conn)
    .await
    .map_err(driver_error)?;
    let put = names(conn, scope, key, Some(name)).await?.pop();
    Ok(put.map_or(BranchPut::ThreadMissing, BranchPut::Put))
}

/// Whether a branch a head is to be moved onto is where the caller saw it. The thread is locked.
pub(super) async fn stands_at(
    conn: &mut PgConnection,
    key: ThreadKey,
    branch: &str,
    checkpoint: Option<&CheckpointId>,
) -> Result<bool> {
    let found = names(conn, &Scope::Server, key, Some(branch)).await?.pop();
    Ok(found.is_some_and(|found| found.checkpoint_id.as_ref() == checkpoint))
}

/// What a moved head leaves behind: the branch it was on, where the head was, and what there was. Before the head moves;
/// the thread is locked.
pub(super) async fn leave(conn: &mut PgConnection, key: ThreadKey, to: &CheckpointId, moves: &HeadMove) -> Result<()> {
    sqlx::query(
        "UPDATE branches b SET checkpoint_id = t.head
         FROM threads t WHERE t.thread_key = $1 AND b.thread_key = $1 AND b.name = t.branch AND t.head IS NOT NULL",
    )
    .bind(key.0)
    .execute(&mut *conn)
    .await
    .map_err(driver_error)?;
    sqlx::query(
        "UPDATE threads SET branch = $2, moved_to = $3,
                            moved_past = (SELECT MAX(c.checkpoint_id) FROM checkpoints c
                                          WHERE c.thread_key = $1 AND c.ns = '')
         WHERE thread_key = $1",
    )
    .bind(key.0)
    .bind(&moves.branch)
    .bind(to)
    .execute(conn)
    .await
    .map_err(driver_error)?;
    Ok(())
}

/// Names go with their checkpoints; the thread is locked.
pub(super) async fn drop_lost_names(conn: &mut PgConnection, key: ThreadKey) -> Result<()> {
    sqlx::query(
        "DELETE FROM branches b USING threads t
         WHERE t.thread_key = $1 AND b.thread_key = $1 AND b.name IS DISTINCT FROM t.branch
           AND NOT EXISTS (SELECT 1 FROM checkpoints c
                           WHERE c.thread_key = $1 AND c.ns = '' AND c.checkpoint_id = b.checkpoint_id)",
    )
    .bind(key.0)
    .execute(conn)
    .await
    .map_err(driver_error)?;
    Ok(())
}

#[async_trait]
impl Branches for PostgresStorage {
    async fn list_tips(
        &self,
        scope: &Scope,
        thread: ThreadKey,
        before: Option<&CheckpointId>,
        limit: i64,
    ) -> Result<Vec<Tip>> {
        read!(self, async {
            let mut session = self.session().await?;
            let rows = sqlx::query(TIPS)
                .bind(thread.0)
                .bind(scope.filter())
                .bind(before)
                .bind(limit)
                .fetch_all(session.conn())
                .await
                .map_err(driver_error)?;
            session.finish().await?;
            rows.iter().map(tip_from).collect::<Result<Vec<_>>>()
        })
    }

    async fn list_branches(&self, scope: &Scope, thread: ThreadKey, name: Option<&str>) -> Result<Vec<Branch>> {
        read!(self, async {
            let mut session = self.session().await?;
            names(session.conn(), scope, thread, name).await
        })
    }

    async fn put_branch(
        &self,
        scope: &Scope,
        id: &ThreadId,
        name: &str,
        checkpoint: Option<&CheckpointId>,
        actor: Option<&str>,
    ) -> Result<BranchPut> {
        self.bounded(async {
            let mut transaction = self.begin().await?;
            let outcome = put(&mut transaction, scope, id.key(scope.tenant()), name, checkpoint, actor).await?;
            if matches!(outcome, BranchPut::Put(_)) {
                self.commit(transaction).await?;
            }
            Ok(outcome)
        })
        .await
    }

    async fn delete_branch(&self, scope: &Scope, id: &ThreadId, name: &str) -> Result<Option<bool>> {
        self.bounded(async {
            let key = id.key(scope.tenant());
            let mut transaction = self.begin().await?;
            if !lock_thread(&mut transaction, key).await? {
                return Ok(None);
            }
            let done = sqlx::query("DELETE FROM branches WHERE thread_key = $1 AND name = $2")
                .bind(key.0)
                .bind(name)
                .execute(&mut *transaction)
                .await
                .map_err(driver_error)?;
            sqlx::query("UPDATE threads SET branch = NULL WHERE thread_key = $1 AND branch = $2")
                .bind(key.0)
                .bind(name)
                .execute(&mut *transaction)
                .await
                .map_err(driver_error)?;
            self.commit(transaction).await?;
            Ok(Some(done.rows_affected() == 1))
        })
        .await
    }

    async fn is_continued(&self, scope: &Scope, thread: ThreadKey, checkpoint: &CheckpointId) -> Result<bool> {
        read!(self, async {
            let mut session = self.session().await?;
            let row = sqlx::query(
                "SELECT EXISTS (SELECT 1 FROM checkpoints WHERE thread_key = $1 AND ns = '' AND parent_id = $2
                                AND ($3::uuid IS NULL OR tenant = $3)) AS it",
            )
            .bind(thread.0)
            .bind(checkpoint)
            .bind(scope.filter())
            .fetch_one(session.conn())
            .await
            .map_err(driver_error)?;
            session.finish().await?;
            get(&row, "it")
        })
    }
}
