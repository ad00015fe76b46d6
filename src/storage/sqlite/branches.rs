//! Branches on SQLite.

use async_trait::async_trait;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use super::rows::get;
use super::{SqliteStorage, Write};
use crate::model::{CheckpointId, Scope, ThreadId, ThreadKey};
use crate::storage::branches::define_branch_rows;
use crate::storage::encoding::hide_nul;
use crate::storage::rows::driver_error;
use crate::storage::{Branch, BranchPut, Branches, HeadMove, MAX_BRANCHES, Result, Tip};

define_branch_rows!(SqliteRow);

/// Leaves are found by a list of all parents rather than by asking for the children of each.
const TIPS: &str = "
    SELECT c.thread_key, c.checkpoint_id, c.parent_id, c.run_id, c.step, c.source, c.created_at, c.codec, c.next_nodes,
           (c.checkpoint_id IS t.head) AS is_head, (f.parent_id IS NULL) AS is_leaf
    FROM threads t
    JOIN checkpoints c ON c.thread_key = t.thread_key AND c.ns = ''
    LEFT JOIN (SELECT DISTINCT p.parent_id FROM checkpoints p
               WHERE p.thread_key = $1 AND p.ns = '' AND p.parent_id IS NOT NULL) AS f ON f.parent_id = c.checkpoint_id
    WHERE t.thread_key = $1 AND ($2 IS NULL OR t.tenant = $2) AND ($3 IS NULL OR c.checkpoint_id < $3)
      AND (f.parent_id IS NULL OR c.checkpoint_id = t.head
           OR c.checkpoint_id IN (SELECT b.checkpoint_id FROM branches b
                                  WHERE b.thread_key = $1 AND b.name IS NOT t.branch))
    ORDER BY c.checkpoint_id DESC LIMIT $4";

const NAMES: &str = "
    SELECT b.name, CASE WHEN b.name IS t.branch THEN t.head ELSE b.checkpoint_id END AS checkpoint_id,
           (b.name IS t.branch) AS is_current, b.created_at, b.updated_at, b.updated_by
    FROM threads t JOIN branches b ON b.thread_key = t.thread_key
    WHERE t.thread_key = $1 AND ($2 IS NULL OR t.tenant = $2) AND ($3 IS NULL OR b.name = $3)
    ORDER BY b.name";

async fn names(
    conn: &mut SqliteConnection,
    scope: Scope,
    thread: ThreadKey,
    name: Option<String>,
) -> Result<Vec<Branch>> {
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
    write: &mut Write,
    scope: Scope,
    key: ThreadKey,
    name: String,
    checkpoint: Option<CheckpointId>,
    actor: Option<String>,
) -> Result<BranchPut> {
    let row = sqlx::query(
        "SELECT t.head, t.branch, t.closed IS NOT NULL AS is_closed,
                EXISTS (SELECT 1 FROM checkpoints c
                        WHERE c.thread_key = t.thread_key AND c.ns = '' AND c.checkpoint_id = COALESCE($2, t.head))
                AS is_there,
                (SELECT COUNT(*) FROM branches b WHERE b.thread_key = t.thread_key AND b.name <> $3) AS others
         FROM threads t WHERE t.thread_key = $1",
    )
    .bind(key.0)
    .bind(&checkpoint)
    .bind(&name)
    .fetch_optional(&mut write.conn)
    .await
    .map_err(driver_error)?;
    let Some(row) = row else { return Ok(BranchPut::ThreadMissing) };
    let (head, current): (Option<String>, Option<String>) = (get(&row, "head")?, get(&row, "branch")?);
    if get(&row, "is_closed")? {
        return Ok(BranchPut::ThreadClosed);
    }
    if !get::<bool>(&row, "is_there")? {
        return Ok(BranchPut::CheckpointMissing);
    }
    if current.as_ref() == Some(&name) && checkpoint.is_some() && checkpoint != head {
        return Ok(BranchPut::IsCurrent);
    }
    if get::<i64>(&row, "others")? >= MAX_BRANCHES {
        return Ok(BranchPut::TooMany);
    }
    sqlx::query(
        "INSERT INTO branches (thread_key, name, tenant, checkpoint_id, created_at, updated_at, updated_by)
         SELECT t.thread_key, $2, t.tenant, COALESCE($3, t.head), $5, $5, $4 FROM threads t WHERE t.thread_key = $1
         ON CONFLICT (thread_key, name) DO UPDATE SET
             checkpoint_id = EXCLUDED.checkpoint_id, updated_at = EXCLUDED.updated_at, updated_by = EXCLUDED.updated_by",
    )
    .bind(key.0)
    .bind(&name)
    .bind(&checkpoint)
    .bind(actor.map(|text| hide_nul(&text).into_owned()))
    .bind(write.now)
    .execute(&mut write.conn)
    .await
    .map_err(driver_error)?;
    let put = names(&mut write.conn, scope, key, Some(name)).await?.pop();
    Ok(put.map_or(BranchPut::ThreadMissing, BranchPut::Put))
}

async fn delete(write: &mut Write, key: ThreadKey, name: String) -> Result<Option<bool>> {
    let there = sqlx::query("UPDATE threads SET branch = NULLIF(branch, $2) WHERE thread_key = $1")
        .bind(key.0)
        .bind(&name)
        .execute(&mut write.conn)
        .await
        .map_err(driver_error)?;
    if there.rows_affected() == 0 {
        return Ok(None);
    }
    let done = sqlx::query("DELETE FROM branches WHERE thread_key = $1 AND name = $2")
        .bind(key.0)
        .bind(&name)
        .execute(&mut write.conn)
        .await
        .map_err(driver_error)?;
    Ok(Some(done.rows_affected() == 1))
}

/// Whether a branch a head is to be moved onto is where the caller saw it.
pub(super) async fn stands_at(
    conn: &mut SqliteConnection,
    key: ThreadKey,
    branch: &str,
    checkpoint: Option<&CheckpointId>,
) -> Result<bool> {
    let found = names(conn, Scope::Server, key, Some(branch.to_owned())).await?.pop();
    Ok(found.is_some_and(|found| found.checkpoint_id.as_ref() == checkpoint))
}

/// What a moved head leaves behind: the branch it was on, where the head was, and what there was. Before the head moves.
pub(super) async fn leave(
    conn: &mut SqliteConnection,
    key: ThreadKey,
    to: &CheckpointId,
    moves: &HeadMove,
) -> Result<()> {
    sqlx::query(
        "UPDATE branches SET checkpoint_id = t.head
         FROM threads t WHERE t.thread_key = $1 AND branches.thread_key = $1 AND branches.name = t.branch
           AND t.head IS NOT NULL",
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

/// Names go with their checkpoints.
pub(super) async fn drop_lost_names(conn: &mut SqliteConnection, key: ThreadKey) -> Result<()> {
    sqlx::query(
        "DELETE FROM branches
         WHERE thread_key = $1 AND name IS NOT (SELECT t.branch FROM threads t WHERE t.thread_key = $1)
           AND NOT EXISTS (SELECT 1 FROM checkpoints c
                           WHERE c.thread_key = $1 AND c.ns = '' AND c.checkpoint_id = branches.checkpoint_id)",
    )
    .bind(key.0)
    .execute(conn)
    .await
    .map_err(driver_error)?;
    Ok(())
}

async fn tips(
    conn: &mut SqliteConnection,
    scope: Scope,
    thread: ThreadKey,
    before: Option<CheckpointId>,
    limit: i64,
) -> Result<Vec<Tip>> {
    let rows = sqlx::query(TIPS)
        .bind(thread.0)
        .bind(scope.filter())
        .bind(before)
        .bind(limit)
        .fetch_all(conn)
        .await
        .map_err(driver_error)?;
    rows.iter().map(tip_from).collect()
}

async fn is_continued(
    conn: &mut SqliteConnection,
    scope: Scope,
    thread: ThreadKey,
    checkpoint: CheckpointId,
) -> Result<bool> {
    let row = sqlx::query(
        "SELECT EXISTS (SELECT 1 FROM checkpoints
                        WHERE thread_key = $1 AND ns = '' AND parent_id = $2 AND ($3 IS NULL OR tenant = $3)) AS it",
    )
    .bind(thread.0)
    .bind(checkpoint)
    .bind(scope.filter())
    .fetch_one(conn)
    .await
    .map_err(driver_error)?;
    get(&row, "it")
}

#[async_trait]
impl Branches for SqliteStorage {
    async fn list_tips(
        &self,
        scope: &Scope,
        thread: ThreadKey,
        before: Option<&CheckpointId>,
        limit: i64,
    ) -> Result<Vec<Tip>> {
        let (scope, before) = (*scope, before.cloned());
        self.read(move |conn| Box::pin(tips(conn, scope, thread, before, limit))).await
    }

    async fn list_branches(&self, scope: &Scope, thread: ThreadKey, name: Option<&str>) -> Result<Vec<Branch>> {
        let (scope, name) = (*scope, name.map(str::to_owned));
        self.read(move |conn| Box::pin(names(conn, scope, thread, name))).await
    }

    async fn put_branch(
        &self,
        scope: &Scope,
        id: &ThreadId,
        name: &str,
        checkpoint: Option<&CheckpointId>,
        actor: Option<&str>,
    ) -> Result<BranchPut> {
        let (scope, key, name) = (*scope, id.key(scope.tenant()), name.to_owned());
        let (checkpoint, actor) = (checkpoint.cloned(), actor.map(str::to_owned));
        let is_done = |outcome: &BranchPut| matches!(outcome, BranchPut::Put(_));
        self.write_if(is_done, move |write| Box::pin(put(write, scope, key, name, checkpoint, actor))).await
    }

    async fn delete_branch(&self, scope: &Scope, id: &ThreadId, name: &str) -> Result<Option<bool>> {
        let (key, name) = (id.key(scope.tenant()), name.to_owned());
        self.write(move |write| Box::pin(delete(write, key, name))).await
    }

    async fn is_continued(&self, scope: &Scope, thread: ThreadKey, checkpoint: &CheckpointId) -> Result<bool> {
        let (scope, checkpoint) = (*scope, checkpoint.clone());
        self.read(move |conn| Box::pin(is_continued(conn, scope, thread, checkpoint))).await
    }
}
