//! pgvector, where its extension is installed: the database itself ranks the items, and only the vectors of those that may
//! be on the page travel.
//!
//! It works on copies of the vectors, in a table of its own that is no migration: the schema does not depend on the
//! extension, and everything works without the table. `item_vectors` stays what counts. A copy counts while it has the
//! item's `updated_at` and model, as a vector does; an item without one (written by a process that makes none, or before
//! the extension came) is ranked by the vectors themselves, in the same statement. So copies may be missing, stale or
//! gone at any time, and no search misses anything. [`super::copies`] makes and removes them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use futures_util::TryStreamExt as _;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, SqlSafeStr as _, SqlStr};

use super::copies::Keys;
use super::rows::{get, is_met, look_at};
use super::{MIGRATION_LOCK, PostgresStorage, now};
use crate::model::Scope;
use crate::storage::rows::driver_error;
use crate::storage::vectors::{self, Candidates, Key, Nearest};
use crate::storage::{ItemFilter, Near, Page, Result, StorageError, matching};

/// The most dimensions that the type takes.
pub(super) const MAX_DIMS: usize = 16_000;

/// The extension, its schema's name in quotes, and whether the copies can be used.
const FOUND: &str = "
    SELECT e.extversion AS version, quote_ident(n.nspname) AS schema, EXISTS (
               SELECT 1 FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
               WHERE a.attrelid = to_regclass('item_vectors_pgvector') AND a.attname = 'vector' AND NOT a.attisdropped
                 AND t.typname = 'vector' AND t.typnamespace = e.extnamespace) AS has_table
    FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'vector'";

/// `DROP EXTENSION .. CASCADE` leaves the table without its column.
const DROP: &str = "DROP TABLE IF EXISTS item_vectors_pgvector";

/// As `item_vectors`: most vectors stay in their rows' pages. What the index includes tells which copies count.
macro_rules! create {
    () => {
        "CREATE TABLE item_vectors_pgvector (
             tenant     uuid NOT NULL,
             namespace  text COLLATE \"C\" NOT NULL,
             key        text COLLATE \"C\" NOT NULL,
             path       text COLLATE \"C\" NOT NULL,
             model      text NOT NULL,
             dims       integer NOT NULL,
             vector     {schema}.vector NOT NULL,
             written_at bigint NOT NULL,
             PRIMARY KEY (tenant, namespace, key, path) INCLUDE (written_at, model)
         ) WITH (toast_tuple_target = 8160)"
    };
}

/// The items that may be the nearest, with `score`: the first $7 by their copies and what is no more than $8 behind (NULL:
/// all of them); and with `vector` whatever else may be near. The copies are ranked before they meet their items: so only
/// narrow rows are sorted and joined. The product is the cosine: all vectors are of length 1, or zero.
macro_rules! nearest {
    ($columns:literal, $values:literal) => {
        concat!(
            "WITH ranked AS MATERIALIZED (
                 SELECT c.tenant, c.namespace, c.key, c.written_at,
                        {schema}.inner_product(c.vector, $6::real[]::{schema}.vector)::real AS score
                 FROM item_vectors_pgvector c
                 WHERE ($1::uuid IS NULL OR c.tenant = $1) AND c.namespace >= $2 AND ($3::text IS NULL OR c.namespace < $3)
                   AND c.model = $4 AND c.dims = $5
             ),
             near AS MATERIALIZED (
                 SELECT i.tenant, i.namespace, i.key, i.updated_at, MAX(c.score) AS score
                 FROM items i LEFT JOIN ranked c
                   ON c.tenant = i.tenant AND c.namespace = i.namespace AND c.key = i.key AND c.written_at = i.updated_at
                 WHERE ($1::uuid IS NULL OR i.tenant = $1) AND i.namespace >= $2 AND ($3::text IS NULL OR i.namespace < $3)
                   AND i.embedded_by = $4 AND i.embedded_at = i.updated_at
                   AND (i.expires_at IS NULL OR i.expires_at > ",
            now!(),
            ")   GROUP BY i.tenant, i.namespace, i.key
             ),
             least AS MATERIALIZED (
                 SELECT score - $8::real AS score FROM near WHERE $7::bigint IS NOT NULL AND score IS NOT NULL
                 ORDER BY score DESC OFFSET GREATEST($7 - 1, 0) LIMIT 1
             )
             (SELECT n.tenant, n.namespace, n.key, n.updated_at, n.score, NULL::bytea AS vector",
            $columns,
            " FROM near n",
            $values,
            " WHERE n.score >= COALESCE((SELECT score FROM least), '-Infinity') ORDER BY n.score DESC)
             UNION ALL
             (SELECT n.tenant, n.namespace, n.key, n.updated_at, NULL, v.vector",
            $columns,
            " FROM near n JOIN item_vectors v
                ON v.tenant = n.tenant AND v.namespace = n.namespace AND v.key = n.key AND v.written_at = n.updated_at",
            $values,
            " WHERE n.score IS NULL AND v.model = $4 AND v.dims = $5)"
        )
    };
}

const NEAREST: &str = nearest!("", "");
const NEAREST_VALUES: &str = nearest!(
    ", i.codec, i.value",
    " JOIN items i ON i.tenant = n.tenant AND i.namespace = n.namespace AND i.key = n.key"
);

/// The vectors of some items that count.
const VECTORS: &str = "
    SELECT i.tenant, i.namespace, i.key, i.updated_at, v.vector
    FROM UNNEST($1::uuid[], $2::text[], $3::text[]) AS u (tenant, namespace, key)
    JOIN items i ON i.tenant = u.tenant AND i.namespace = u.namespace AND i.key = u.key
    JOIN item_vectors v ON v.tenant = i.tenant AND v.namespace = i.namespace AND v.key = i.key
                       AND v.written_at = i.updated_at
    WHERE v.model = $4 AND v.dims = $5";

/// Replaces the copies of items, given as arrays with one entry per vector and the numbers of all of them in one. The items
/// are locked.
const COPY: &str = "
    WITH given AS MATERIALIZED (
        SELECT * FROM UNNEST($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::int[], $8::int[])
            AS u (tenant, namespace, key, path, model, written_at, start, dims)
    ),
    gone AS (
        DELETE FROM item_vectors_pgvector c USING (SELECT DISTINCT tenant, namespace, key FROM given) AS i
        WHERE c.tenant = i.tenant AND c.namespace = i.namespace AND c.key = i.key
          AND NOT EXISTS (SELECT 1 FROM given g WHERE g.tenant = c.tenant AND g.namespace = c.namespace
                             AND g.key = c.key AND g.path = c.path)
    )
    INSERT INTO item_vectors_pgvector (tenant, namespace, key, path, model, dims, vector, written_at)
    SELECT tenant, namespace, key, path, model, dims, ($9::real[])[start + 1 : start + dims]::{schema}.vector, written_at
    FROM given
    ON CONFLICT (tenant, namespace, key, path) DO UPDATE SET
        model = EXCLUDED.model, dims = EXCLUDED.dims, vector = EXCLUDED.vector, written_at = EXCLUDED.written_at";

/// The copies are there to be used: the statements that name the extension's schema.
#[derive(Debug)]
pub(super) struct Ready {
    version: String,
    nearest: SqlStr,
    nearest_values: SqlStr,
    pub(super) copy: SqlStr,
}

impl Ready {
    fn new(version: String, schema: &str) -> Ready {
        Ready {
            version,
            nearest: within(schema, NEAREST),
            nearest_values: within(schema, NEAREST_VALUES),
            copy: within(schema, COPY),
        }
    }

    /// Whether vectors of so many dimensions have copies.
    pub(super) fn takes(dims: usize) -> bool {
        (1..=MAX_DIMS).contains(&dims)
    }
}

/// A statement that names what is in the schema. The name comes quoted from the catalog.
fn within(schema: &str, statement: &str) -> SqlStr {
    AssertSqlSafe(statement.replace("{schema}", schema)).into_sql_str()
}

/// What a process knows of pgvector.
#[derive(Debug)]
pub(super) struct Pgvector {
    /// It may be used.
    wanted: bool,
    ready: RwLock<Option<Arc<Ready>>>,
    /// A search came upon vectors without a copy.
    lacking: AtomicBool,
}

impl Pgvector {
    pub(super) fn new(wanted: bool) -> Pgvector {
        Pgvector { wanted, ready: RwLock::new(None), lacking: AtomicBool::new(false) }
    }

    /// What to use it with, if it can be used.
    pub(super) fn ready(&self) -> Option<Arc<Ready>> {
        self.ready.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The version that is used.
    pub(super) fn version(&self) -> Option<String> {
        self.ready().map(|ready| ready.version.clone())
    }

    /// True once after a search that came upon vectors without a copy.
    pub(super) fn was_lacking(&self) -> bool {
        self.lacking.swap(false, Ordering::Relaxed)
    }

    fn set(&self, ready: Option<Ready>) {
        *self.ready.write().unwrap_or_else(PoisonError::into_inner) = ready.map(Arc::new);
    }
}

/// Something other than the connection is wrong.
pub(super) fn may_lie_in(error: &StorageError) -> bool {
    matches!(error, StorageError::Other(_) | StorageError::Schema(_))
}

/// Runs an operation with pgvector where that is ready, and again without it if it fails for a reason that may lie there:
/// what worked before the extension came works when it is gone. The operation has had no effect when it fails.
macro_rules! with_copies {
    ($storage:expr, $copies:ident, $attempt:expr) => {{
        let mut $copies = $storage.pgvector.ready();
        loop {
            match $attempt.await {
                Err(error) if $copies.is_some() && crate::storage::postgres::pgvector::may_lie_in(&error) => {
                    $storage.doubt_pgvector(&error).await;
                    $copies = None;
                }
                outcome => break outcome,
            }
        }
    }};
}
pub(super) use with_copies;

/// The extension's version and schema, and whether there is a table of copies.
async fn find(conn: &mut PgConnection) -> Result<Option<(String, String, bool)>> {
    let found = sqlx::query(FOUND).fetch_optional(conn).await.map_err(driver_error)?;
    found.map(|row| Ok((get(&row, "version")?, get(&row, "schema")?, get(&row, "has_table")?))).transpose()
}

impl PostgresStorage {
    /// Looks whether the extension and the copies are there, and uses them from now on, or no more. A database that knows of no
    /// extensions has none.
    pub(super) async fn look_for_pgvector(&self) -> Result<()> {
        if !self.pgvector.wanted {
            return Ok(());
        }
        let found = match self.find_pgvector().await {
            Err(error) if may_lie_in(&error) => {
                tracing::warn!(%error, "could not look for pgvector: items are ranked in the process");
                None
            }
            found => found?,
        };
        let ready = found.filter(|found| found.2).map(|(version, schema, _)| Ready::new(version, &schema));
        match (&ready, self.pgvector.version()) {
            (Some(now), before) if before.as_ref() != Some(&now.version) => {
                tracing::info!(version = now.version, "items are ranked by pgvector, in the database");
            }
            (None, Some(_)) => tracing::warn!("pgvector is gone: items are ranked in the process"),
            _ => {}
        }
        self.pgvector.set(ready);
        Ok(())
    }

    /// Makes the table of copies where the extension is and the table is not. Without the right to do so everything works as
    /// without the extension. Any number of processes may do so at once.
    pub(super) async fn prepare_pgvector(&self) -> Result<()> {
        if !self.pgvector.wanted {
            return Ok(());
        }
        match self.make_copies_table().await {
            Err(error) if may_lie_in(&error) => {
                tracing::warn!(%error, "pgvector cannot be used: items are ranked in the process");
                Ok(())
            }
            Err(error) => Err(error),
            Ok(()) => self.look_for_pgvector().await,
        }
    }

    async fn find_pgvector(&self) -> Result<Option<(String, String, bool)>> {
        let mut session = self.session().await?;
        let found = find(session.conn()).await?;
        session.finish().await?;
        Ok(found)
    }

    async fn make_copies_table(&self) -> Result<()> {
        if !matches!(self.find_pgvector().await?, Some((_, _, false))) {
            return Ok(());
        }
        let mut transaction = self.begin().await?;
        sqlx::query("SELECT pg_advisory_xact_lock($1)")
            .bind(MIGRATION_LOCK)
            .execute(&mut *transaction)
            .await
            .map_err(driver_error)?;
        // Somebody else may have been first.
        if let Some((_, schema, false)) = find(&mut transaction).await? {
            sqlx::query(DROP).execute(&mut *transaction).await.map_err(driver_error)?;
            sqlx::query(within(&schema, create!())).execute(&mut *transaction).await.map_err(driver_error)?;
        }
        self.commit(transaction).await
    }

    /// After an operation failed with pgvector: looks whether it is still there.
    pub(super) async fn doubt_pgvector(&self, error: &StorageError) {
        tracing::warn!(%error, "what failed with pgvector is done again without");
        if let Err(error) = self.look_for_pgvector().await {
            tracing::warn!(%error, "could not look for pgvector: items are ranked in the process");
            self.pgvector.set(None);
        }
    }

    /// The nearest items. The database says which of them may be, by their copies; how near those few are is computed here,
    /// as it is without pgvector: the same answers bit for bit.
    pub(super) async fn nearest_by_copies(
        &self,
        conn: &mut PgConnection,
        ready: &Ready,
        (scope, filter, near): (&Scope, &ItemFilter, &Near),
        page: Page,
    ) -> Result<Nearest> {
        let (from, to) = matching::namespace_range(&filter.prefix);
        let dims = i32::try_from(near.vector.len()).unwrap_or(i32::MAX);
        // Conditions are compared here: then nothing is cut off before.
        let counted = filter.conditions.is_empty();
        let statement = if counted { &ready.nearest } else { &ready.nearest_values };
        let mut rows = sqlx::query(statement.clone())
            .bind(scope.filter())
            .bind(from)
            .bind(to)
            .bind(&near.model)
            .bind(dims)
            .bind(&near.vector)
            .bind(counted.then(|| page.offset.saturating_add(page.limit).max(0)))
            .bind(vectors::margin(near.vector.len()))
            // Planned for these very bounds: a plan for any would read all tenants' copies through an index.
            .persistent(false)
            .fetch(&mut *conn);
        let mut nearest = Nearest::until(page);
        let mut candidates = Candidates::until(page, near.vector.len());
        while let Some(row) = rows.try_next().await.map_err(driver_error)? {
            let Some(score) = get::<Option<f32>>(&row, "score")? else {
                self.pgvector.lacking.store(true, Ordering::Relaxed);
                look_at(&row, &near.vector, &filter.conditions, &mut nearest)?;
                continue;
            };
            if candidates.may_take(score) && is_met(&row, &filter.conditions)? {
                let (tenant, namespace, key) = (get(&row, "tenant")?, get(&row, "namespace")?, get(&row, "key")?);
                candidates.take(score, Key { namespace, key, tenant });
            }
        }
        drop(rows);
        let mut of = Keys::default();
        for key in candidates.keys() {
            of.push(key.tenant, key.namespace, key.key);
        }
        if of.keys.is_empty() {
            return Ok(nearest);
        }
        let mut rows = sqlx::query(VECTORS)
            .bind(of.tenants)
            .bind(of.namespaces)
            .bind(of.keys)
            .bind(&near.model)
            .bind(dims)
            .fetch(conn);
        while let Some(row) = rows.try_next().await.map_err(driver_error)? {
            look_at(&row, &near.vector, &[], &mut nearest)?;
        }
        Ok(nearest)
    }
}
