//! The copies of vectors that pgvector ranks ([`super::pgvector`]): written with an item, made for what was there before,
//! removed when their item is gone. Whoever makes copies holds the item's row, so they are always those of one write.

use sqlx::postgres::PgConnection;
use uuid::Uuid;

use super::pgvector::{MAX_DIMS, Ready, may_lie_in};
use super::rows::get;
use super::{PostgresStorage, read};
use crate::model::Scope;
use crate::storage::rows::driver_error;
use crate::storage::{ItemPlace, Result, VectorsTended, encoding, matching, vectors};

/// Items looked at in one step, and those that get their copies in one transaction.
const PAGE: i64 = 500;
const TOGETHER: usize = 20;

/// One page of items, and which of them have vectors and no copies.
const LACKING: &str = "
    WITH page AS MATERIALIZED (
        SELECT tenant, namespace, key, updated_at, embedded_by FROM items
        WHERE ($1::uuid IS NULL OR tenant = $1) AND ($2::uuid IS NULL OR (tenant, namespace, key) > ($2, $3, $4))
        ORDER BY tenant, namespace, key LIMIT $5
    )
    SELECT p.tenant, p.namespace, p.key,
           NOT EXISTS (SELECT 1 FROM item_vectors_pgvector c
                       WHERE c.tenant = p.tenant AND c.namespace = p.namespace AND c.key = p.key
                         AND c.written_at = p.updated_at AND c.model = p.embedded_by)
           AND EXISTS (SELECT 1 FROM item_vectors v
                       WHERE v.tenant = p.tenant AND v.namespace = p.namespace AND v.key = p.key
                         AND v.written_at = p.updated_at AND v.model = p.embedded_by AND v.dims BETWEEN 1 AND $6)
           AS is_lacking
    FROM page p ORDER BY p.tenant, p.namespace, p.key";

/// Holds items against whoever would write, delete or tend them. Nothing is waited for: who has an item makes its copies, or
/// the next round does.
const HOLD: &str = "
    SELECT i.tenant, i.namespace, i.key FROM items i
    JOIN UNNEST($1::uuid[], $2::text[], $3::text[]) AS u (tenant, namespace, key)
      ON i.tenant = u.tenant AND i.namespace = u.namespace AND i.key = u.key
    FOR NO KEY UPDATE OF i SKIP LOCKED";

/// The vectors that count of items that are held.
const VECTORS: &str = "
    SELECT v.tenant, v.namespace, v.key, v.path, v.model, v.written_at, v.vector FROM item_vectors v
    JOIN UNNEST($1::uuid[], $2::text[], $3::text[]) AS u (tenant, namespace, key)
      ON v.tenant = u.tenant AND v.namespace = u.namespace AND v.key = u.key
    JOIN items i ON i.tenant = v.tenant AND i.namespace = v.namespace AND i.key = v.key
                AND i.updated_at = v.written_at AND i.embedded_by = v.model
    WHERE v.dims BETWEEN 1 AND $4 AND octet_length(v.vector) = 4 * v.dims";

/// Copies in a range of places whose item is gone or was written since. Those that change meanwhile have another
/// `written_at`, and stay. Never waits: a writer holds its item and may wait for this.
const SWEEP: &str = "
    WITH stale AS MATERIALIZED (
        SELECT s.tenant, s.namespace, s.key, s.path, s.written_at FROM item_vectors_pgvector s
        WHERE ($1::uuid IS NULL OR s.tenant = $1)
          AND ($2::uuid IS NULL OR (s.tenant, s.namespace, s.key) > ($2, $3, $4))
          AND ($5::uuid IS NULL OR (s.tenant, s.namespace, s.key) <= ($5, $6, $7))
          AND NOT EXISTS (SELECT 1 FROM items i
                          WHERE i.tenant = s.tenant AND i.namespace = s.namespace AND i.key = s.key
                            AND i.updated_at = s.written_at)
        LIMIT 10000 FOR UPDATE OF s SKIP LOCKED
    )
    DELETE FROM item_vectors_pgvector c USING stale
    WHERE c.tenant = stale.tenant AND c.namespace = stale.namespace AND c.key = stale.key AND c.path = stale.path
      AND c.written_at = stale.written_at";

const DELETE: &str = "
    DELETE FROM item_vectors_pgvector c USING UNNEST($1::uuid[], $2::text[], $3::text[]) AS u (tenant, namespace, key)
    WHERE c.tenant = u.tenant AND c.namespace = u.namespace AND c.key = u.key";

/// Items by the columns of their key.
#[derive(Debug, Clone, Default)]
pub(super) struct Keys {
    pub(super) tenants: Vec<Uuid>,
    pub(super) namespaces: Vec<String>,
    pub(super) keys: Vec<String>,
}

impl Keys {
    pub(super) fn push(&mut self, tenant: Uuid, namespace: String, key: String) {
        self.tenants.push(tenant);
        self.namespaces.push(namespace);
        self.keys.push(key);
    }
}

/// Copies to write, of whole items.
#[derive(Debug, Default)]
pub(super) struct Copies {
    of: Keys,
    paths: Vec<String>,
    models: Vec<String>,
    written_at: Vec<i64>,
    /// Where each vector begins in `numbers`, and how long it is.
    starts: Vec<i32>,
    dims: Vec<i32>,
    numbers: Vec<f32>,
}

impl Copies {
    /// Adds a vector in its column form.
    pub(super) fn push(
        &mut self,
        (tenant, namespace, key): (Uuid, String, String),
        (path, model, written_at): (String, String, i64),
        vector: &[u8],
    ) {
        let start = self.numbers.len();
        self.numbers.extend(vectors::numbers(vector));
        self.of.push(tenant, namespace, key);
        self.paths.push(path);
        self.models.push(model);
        self.written_at.push(written_at);
        self.starts.push(i32::try_from(start).unwrap_or(i32::MAX));
        self.dims.push(i32::try_from(self.numbers.len() - start).unwrap_or(i32::MAX));
    }

    /// Writes them in place of those there were.
    pub(super) async fn write(self, conn: &mut PgConnection, ready: &Ready) -> Result<()> {
        if self.paths.is_empty() {
            return Ok(());
        }
        sqlx::query(ready.copy.clone())
            .bind(self.of.tenants)
            .bind(self.of.namespaces)
            .bind(self.of.keys)
            .bind(self.paths)
            .bind(self.models)
            .bind(self.written_at)
            .bind(self.starts)
            .bind(self.dims)
            .bind(self.numbers)
            .execute(conn)
            .await
            .map_err(driver_error)?;
        Ok(())
    }
}

/// Removes the copies of items that were deleted before in the same transaction.
pub(super) async fn delete(conn: &mut PgConnection, of: &Keys) -> Result<()> {
    sqlx::query(DELETE)
        .bind(&of.tenants)
        .bind(&of.namespaces)
        .bind(&of.keys)
        .execute(conn)
        .await
        .map_err(driver_error)?;
    Ok(())
}

impl PostgresStorage {
    /// One step of `Items::tend_vectors`.
    pub(super) async fn tend_copies(&self, scope: &Scope, after: Option<&ItemPlace>) -> Result<VectorsTended> {
        if after.is_none() {
            self.look_for_pgvector().await?;
        }
        let Some(ready) = self.pgvector.ready() else { return Ok(VectorsTended::default()) };
        let after = after.map(|place| {
            let key = encoding::hide_nul(&place.key).into_owned();
            (place.scope.tenant(), matching::namespace_text(&place.namespace), key)
        });
        let mut tended = VectorsTended::default();
        let (last, lacking) = self.lacking(scope, after.as_ref()).await?;
        for some in lacking.chunks(TOGETHER) {
            match self.copy_vectors_of(&ready, some).await {
                Ok(copied) => tended.copied += copied,
                // One by one, so that what cannot be copied keeps nothing else from it.
                Err(error) if may_lie_in(&error) => {
                    for one in some {
                        match self.copy_vectors_of(&ready, std::slice::from_ref(one)).await {
                            Ok(copied) => tended.copied += copied,
                            Err(error) if may_lie_in(&error) => {
                                let (_, namespace, key) = one;
                                tracing::warn!(namespace, key, %error, "the vectors of an item cannot be copied");
                                tended.refused += 1;
                            }
                            Err(error) => return Err(error),
                        }
                    }
                }
                Err(error) => return Err(error),
            }
        }
        self.sweep_copies(scope, after.as_ref(), last.as_ref()).await?;
        tended.next = last.map(|(tenant, namespace, key)| ItemPlace {
            scope: Scope::Tenant(tenant),
            namespace: matching::namespace_labels(&namespace),
            key: encoding::show_nul(key),
        });
        Ok(tended)
    }

    /// The last item of a page, unless there are no more, and those of the page that lack copies.
    async fn lacking(&self, scope: &Scope, after: Option<&Place>) -> Result<(Option<Place>, Vec<Place>)> {
        read!(self, async {
            let mut session = self.session().await?;
            let rows = sqlx::query(LACKING)
                .bind(scope.filter())
                .bind(after.map(|place| place.0))
                .bind(after.map(|place| &*place.1))
                .bind(after.map(|place| &*place.2))
                .bind(PAGE)
                .bind(MAX_DIMS as i32)
                .persistent(false)
                .fetch_all(session.conn())
                .await
                .map_err(driver_error)?;
            session.finish().await?;
            let mut lacking = Vec::new();
            let mut last = None;
            for row in &rows {
                let place: Place = (get(row, "tenant")?, get(row, "namespace")?, get(row, "key")?);
                if get(row, "is_lacking")? {
                    lacking.push(place.clone());
                }
                last = Some(place);
            }
            Ok((last.filter(|_| rows.len() as i64 >= PAGE), lacking))
        })
    }

    /// Makes the copies of items, in one transaction; who is written meanwhile is left out. Returns of how many vectors.
    async fn copy_vectors_of(&self, ready: &Ready, places: &[Place]) -> Result<u64> {
        self.bounded(async {
            let mut wanted = Keys::default();
            for (tenant, namespace, key) in places.iter().cloned() {
                wanted.push(tenant, namespace, key);
            }
            let mut transaction = self.begin().await?;
            let rows = sqlx::query(HOLD)
                .bind(wanted.tenants)
                .bind(wanted.namespaces)
                .bind(wanted.keys)
                .fetch_all(&mut *transaction)
                .await
                .map_err(driver_error)?;
            let mut held = Keys::default();
            for row in &rows {
                held.push(get(row, "tenant")?, get(row, "namespace")?, get(row, "key")?);
            }
            // A new snapshot: what is held cannot change any more.
            let rows = sqlx::query(VECTORS)
                .bind(held.tenants)
                .bind(held.namespaces)
                .bind(held.keys)
                .bind(MAX_DIMS as i32)
                .fetch_all(&mut *transaction)
                .await
                .map_err(driver_error)?;
            let mut copies = Copies::default();
            for row in &rows {
                let place = (get(row, "tenant")?, get(row, "namespace")?, get(row, "key")?);
                let about = (get(row, "path")?, get(row, "model")?, get(row, "written_at")?);
                copies.push(place, about, get(row, "vector")?);
            }
            copies.write(&mut transaction, ready).await?;
            self.commit(transaction).await?;
            Ok(rows.len() as u64)
        })
        .await
    }

    async fn sweep_copies(&self, scope: &Scope, after: Option<&Place>, until: Option<&Place>) -> Result<()> {
        self.bounded(async {
            let mut session = self.session().await?;
            let swept = sqlx::query(SWEEP)
                .bind(scope.filter())
                .bind(after.map(|place| place.0))
                .bind(after.map(|place| &*place.1))
                .bind(after.map(|place| &*place.2))
                .bind(until.map(|place| place.0))
                .bind(until.map(|place| &*place.1))
                .bind(until.map(|place| &*place.2))
                .persistent(false)
                .execute(session.conn())
                .await
                .map_err(driver_error)?;
            match swept.rows_affected() {
                0 => session.finish().await,
                _ => self.wrote(session).await,
            }
        })
        .await
    }
}

/// The key of an item among all tenants, as its columns have it.
type Place = (Uuid, String, String);
