//! Items on Postgres.

use async_trait::async_trait;
use futures_util::TryStreamExt as _;
use sqlx::postgres::PgConnection;
use uuid::Uuid;

use super::copies::{self, Copies, Keys};
use super::pgvector::{Ready, with_copies};
use super::rows::{get, item_from, look_at, unembedded_from};
use super::{PostgresStorage, now, read};
use crate::model::{FoundItem, Item, Scope};
use crate::storage::encoding::{self, PLAIN, hide_nul};
use crate::storage::rows::driver_error;
use crate::storage::vectors::{self, Key, Nearest};
use crate::storage::{
    Embedded, ItemFilter, ItemPlace, Items, NamespaceFilter, Near, NewItem, Page, Result, STEP_ROWS, UnembeddedItem,
    VectorsTended, items, matching,
};

const MICROS_PER_MINUTE: f64 = 60_000_000.0;

/// Replaces the vectors of an item by those of the model $4, once its row is held by `$holder`.
macro_rules! replace_vectors {
    ($holder:literal) => {
        concat!(
            " gone AS (
                DELETE FROM item_vectors v USING ",
            $holder,
            " WHERE v.tenant = $1 AND v.namespace = $2 AND v.key = $3 AND v.path <> ALL ($5::text[])
            ),
            written AS (
                INSERT INTO item_vectors (tenant, namespace, key, path, model, dims, vector, written_at)
                SELECT $1, $2, $3, u.path, $4, octet_length(u.vector) / 4, u.vector, held.updated_at
                FROM ",
            $holder,
            " AS held CROSS JOIN UNNEST($5::text[], $6::bytea[]) AS u (path, vector)
                ON CONFLICT (tenant, namespace, key, path) DO UPDATE SET
                    model = EXCLUDED.model, dims = EXCLUDED.dims, vector = EXCLUDED.vector,
                    written_at = EXCLUDED.written_at
            )"
        )
    };
}

/// The vectors follow the item's row: whoever holds that decides about them. A writer that waited for it may leave vectors
/// of the other's behind, since its snapshot is older; they do not count, by their `written_at`, and go with the item.
const PUT: &str = concat!(
    "WITH clock AS MATERIALIZED (SELECT ",
    now!(),
    " AS now),
    put AS (
        INSERT INTO items (tenant, namespace, key, codec, value, created_at, updated_at, ttl, expires_at, index_paths,
                           embedded_by, embedded_at)
        SELECT $1, $2, $3, $7, $8, clock.now, clock.now, $9::bigint, clock.now + $9::bigint, $10,
               $4::text, CASE WHEN $4::text IS NOT NULL THEN clock.now END FROM clock
        ON CONFLICT (tenant, namespace, key) DO UPDATE SET
            codec = EXCLUDED.codec, value = EXCLUDED.value, ttl = EXCLUDED.ttl, expires_at = EXCLUDED.expires_at,
            index_paths = EXCLUDED.index_paths, embedded_by = EXCLUDED.embedded_by,
            -- Each write has a time of its own: it tells the vectors of one from those of another.
            updated_at = GREATEST(EXCLUDED.updated_at, items.updated_at + 1),
            embedded_at = CASE WHEN EXCLUDED.embedded_at IS NOT NULL
                               THEN GREATEST(EXCLUDED.updated_at, items.updated_at + 1) END,
            -- An expired item counts as gone, so what replaces it is new.
            created_at = CASE WHEN items.expires_at <= EXCLUDED.updated_at THEN EXCLUDED.created_at
                              ELSE items.created_at END
        RETURNING updated_at
    ),",
    replace_vectors!("put"),
    " SELECT updated_at FROM put"
);

const EMBED: &str = concat!(
    "WITH held AS (
        UPDATE items SET embedded_by = $4, embedded_at = updated_at
        WHERE tenant = $1 AND namespace = $2 AND key = $3 AND updated_at = $7
        RETURNING updated_at
    ),",
    replace_vectors!("held"),
    " SELECT updated_at FROM held"
);

const FIND: &str = concat!(
    "SELECT namespace, key, codec, value, created_at, updated_at FROM items
     WHERE tenant = $1 AND namespace = $2 AND key = $3 AND (expires_at IS NULL OR expires_at > ",
    now!(),
    ")"
);

/// Restarts the time to live of items given as arrays of namespaces and keys.
const REFRESH: &str = concat!(
    "UPDATE items i SET expires_at = ",
    now!(),
    " + i.ttl
     FROM (SELECT f.namespace, f.key FROM items f
           JOIN UNNEST($2::text[], $3::text[]) AS u (namespace, key) ON f.namespace = u.namespace AND f.key = u.key
           WHERE f.tenant = $1 AND f.ttl IS NOT NULL AND f.expires_at > ",
    now!(),
    "      -- In the order of the key, so that two refreshes cannot wait for each other.
           ORDER BY f.namespace, f.key FOR UPDATE OF f) AS w
     WHERE i.tenant = $1 AND i.namespace = w.namespace AND i.key = w.key"
);

/// With a model ($6): only items without a vector of it that counts.
const SEARCH: &str = concat!(
    "SELECT namespace, key, codec, value, created_at, updated_at FROM items i
     WHERE ($1::uuid IS NULL OR tenant = $1) AND namespace >= $2 AND ($3::text IS NULL OR namespace < $3)
       AND (expires_at IS NULL OR expires_at > ",
    now!(),
    ") AND ($6::text IS NULL OR NOT EXISTS (
               SELECT 1 FROM item_vectors v
               WHERE v.tenant = i.tenant AND v.namespace = i.namespace AND v.key = i.key
                 AND v.written_at = i.updated_at AND v.model = $6 AND v.dims = $7))
     ORDER BY updated_at DESC, namespace, key LIMIT $4 OFFSET $5"
);

macro_rules! scan {
    ($value:literal) => {
        concat!(
            "SELECT i.tenant, i.namespace, i.key, i.updated_at, v.vector",
            $value,
            " FROM item_vectors v JOIN items i
                ON i.tenant = v.tenant AND i.namespace = v.namespace AND i.key = v.key AND i.updated_at = v.written_at
              WHERE ($1::uuid IS NULL OR v.tenant = $1) AND v.namespace >= $2 AND ($3::text IS NULL OR v.namespace < $3)
                AND v.model = $4 AND v.dims = $5 AND (i.expires_at IS NULL OR i.expires_at > ",
            now!(),
            ")"
        )
    };
}

/// All vectors that may be near, in any order; with their items' values where conditions ask for them.
const SCAN: &str = scan!("");
const SCAN_VALUES: &str = scan!(", i.codec, i.value");

/// Items by their keys, in the order of the arrays.
const FETCH: &str = concat!(
    "SELECT u.n, i.namespace, i.key, i.codec, i.value, i.created_at, i.updated_at
     FROM UNNEST($1::uuid[], $2::text[], $3::text[]) WITH ORDINALITY AS u (tenant, namespace, key, n)
     JOIN items i ON i.tenant = u.tenant AND i.namespace = u.namespace AND i.key = u.key
     WHERE i.expires_at IS NULL OR i.expires_at > ",
    now!(),
    " ORDER BY u.n"
);

/// What somebody else is writing is left for the next step.
const SWEEP: &str = concat!(
    "DELETE FROM items WHERE (tenant, namespace, key) IN (
         SELECT tenant, namespace, key FROM items
         WHERE ($1::uuid IS NULL OR tenant = $1) AND expires_at <= (SELECT ",
    now!(),
    ") ORDER BY expires_at LIMIT $2 FOR UPDATE SKIP LOCKED)
     RETURNING tenant, namespace, key"
);

/// The vectors of items that were deleted before in the same transaction: by now all that were ever written are seen.
const DELETE_VECTORS: &str = "
    DELETE FROM item_vectors v USING UNNEST($1::uuid[], $2::text[], $3::text[]) AS u (tenant, namespace, key)
    WHERE v.tenant = u.tenant AND v.namespace = u.namespace AND v.key = u.key";

const UNEMBEDDED: &str = concat!(
    "SELECT tenant, namespace, key, codec, value, created_at, updated_at, index_paths FROM items
     WHERE ($1::uuid IS NULL OR tenant = $1) AND index_paths IS DISTINCT FROM 'false'
       AND (embedded_by IS DISTINCT FROM $2 OR embedded_at IS DISTINCT FROM updated_at)
       AND (expires_at IS NULL OR expires_at > ",
    now!(),
    ") AND ($3::uuid IS NULL OR (tenant, namespace, key) > ($3, $4, $5))
     ORDER BY tenant, namespace, key LIMIT $6"
);

const NAMESPACES: &str = concat!(
    "SELECT DISTINCT namespace FROM items
     WHERE ($1::uuid IS NULL OR tenant = $1) AND namespace >= $2 AND ($3::text IS NULL OR namespace < $3)
       AND (expires_at IS NULL OR expires_at > ",
    now!(),
    ")"
);

fn dims(near: &Near) -> i32 {
    i32::try_from(near.vector.len()).unwrap_or(i32::MAX)
}

/// An item's key and vectors as their columns have them.
struct Columns {
    tenant: Uuid,
    namespace: String,
    key: String,
    model: Option<String>,
    paths: Vec<String>,
    vectors: Vec<Vec<u8>>,
}

impl Columns {
    fn new(scope: &Scope, namespace: &[String], key: &str, embedded: Option<&Embedded>) -> Columns {
        let vectors = embedded.map_or(&[][..], |embedded| &embedded.vectors);
        let (paths, vectors) =
            vectors.iter().map(|one| (hide_nul(&one.path).into_owned(), vectors::bytes(&one.vector))).unzip();
        Columns {
            tenant: scope.tenant(),
            namespace: matching::namespace_text(namespace),
            key: hide_nul(key).into_owned(),
            model: embedded.map(|embedded| embedded.model.clone()),
            paths,
            vectors,
        }
    }

    /// What pgvector is to rank of it, if it can: an item without vectors costs nothing more.
    fn copies(&self, written_at: i64) -> Copies {
        let mut copies = Copies::default();
        for (path, vector) in self.paths.iter().zip(&self.vectors) {
            let about = (path.clone(), self.model.clone().unwrap_or_default(), written_at);
            copies.push((self.tenant, self.namespace.clone(), self.key.clone()), about, vector);
        }
        copies
    }

    fn have_copies(&self) -> bool {
        !self.vectors.is_empty() && self.vectors.iter().all(|vector| Ready::takes(vector.len() / 4))
    }
}

impl PostgresStorage {
    async fn refresh(&self, scope: &Scope, namespaces: Vec<String>, keys: Vec<String>) -> Result<()> {
        if keys.is_empty() {
            return Ok(());
        }
        let mut session = self.session().await?;
        sqlx::query(REFRESH)
            .bind(scope.tenant())
            .bind(namespaces)
            .bind(keys)
            .execute(session.conn())
            .await
            .map_err(driver_error)?;
        self.wrote(session).await
    }

    async fn search_once(&self, scope: &Scope, filter: &ItemFilter, page: Page) -> Result<Vec<FoundItem>> {
        let Some(near) = &filter.near else {
            let mut session = self.session().await?;
            let found = latest(session.conn(), scope, filter, None, page).await?;
            session.finish().await?;
            return Ok(found);
        };
        with_copies!(self, copies, self.search_near(scope, filter, near, page, copies.as_deref()))
    }

    async fn search_near(
        &self,
        scope: &Scope,
        filter: &ItemFilter,
        near: &Near,
        page: Page,
        copies: Option<&Ready>,
    ) -> Result<Vec<FoundItem>> {
        // One snapshot for all statements: an item that is written meanwhile is neither missed nor found twice.
        let mut transaction = self.open_snapshot().await?;
        let nearest = match copies.filter(|_| Ready::takes(near.vector.len())) {
            Some(ready) => self.nearest_by_copies(&mut transaction, ready, (scope, filter, near), page).await?,
            None => nearest(&mut transaction, scope, filter, near, page).await?,
        };
        let (found, rest) = nearest.page(page);
        let mut items = if found.is_empty() { Vec::new() } else { fetch(&mut transaction, &found).await? };
        if rest.limit > 0 {
            items.extend(latest(&mut transaction, scope, filter, Some(near), rest).await?);
        }
        // Nothing was written: a failure to end the snapshot only costs the connection.
        let _ended = transaction.rollback().await;
        Ok(items)
    }

    /// Writes an item with [`PUT`]; with `copies`, in one transaction with those.
    async fn put_columns(&self, item: &NewItem, columns: &Columns, copies: Option<&Ready>) -> Result<()> {
        let Some(ready) = copies.filter(|_| columns.have_copies()) else {
            let mut session = self.session().await?;
            put(session.conn(), item, columns).await?;
            return self.wrote(session).await;
        };
        let mut transaction = self.begin().await?;
        let written_at = put(&mut transaction, item, columns).await?;
        columns.copies(written_at).write(&mut transaction, ready).await?;
        self.commit(transaction).await
    }

    /// Gives an item its vectors with [`EMBED`]; with `copies`, in one transaction with those.
    async fn embed_columns(&self, columns: &Columns, written_at: i64, copies: Option<&Ready>) -> Result<bool> {
        let Some(ready) = copies.filter(|_| columns.have_copies()) else {
            let mut session = self.session().await?;
            let is_held = embed(session.conn(), columns, written_at).await?;
            self.wrote(session).await?;
            return Ok(is_held);
        };
        let mut transaction = self.begin().await?;
        let is_held = embed(&mut transaction, columns, written_at).await?;
        if is_held {
            columns.copies(written_at).write(&mut transaction, ready).await?;
        }
        self.commit(transaction).await?;
        Ok(is_held)
    }

    async fn delete_once(&self, of: &Keys, copies: Option<&Ready>) -> Result<()> {
        let mut transaction = self.begin().await?;
        let gone = sqlx::query("DELETE FROM items WHERE tenant = $1 AND namespace = $2 AND key = $3")
            .bind(of.tenants.first())
            .bind(of.namespaces.first())
            .bind(of.keys.first())
            .execute(&mut *transaction)
            .await
            .map_err(driver_error)?;
        // Nobody else can write the item until the commit, if there was one; else vectors seen now are those of a writer
        // that came in between.
        if gone.rows_affected() > 0 {
            delete_vectors(&mut transaction, of, copies).await?;
        }
        self.commit(transaction).await
    }

    async fn sweep_once(&self, scope: &Scope, copies: Option<&Ready>) -> Result<bool> {
        let mut transaction = self.begin().await?;
        let gone = sqlx::query(SWEEP)
            .bind(scope.filter())
            .bind(STEP_ROWS)
            .fetch_all(&mut *transaction)
            .await
            .map_err(driver_error)?;
        if gone.is_empty() {
            return Ok(false);
        }
        let mut of = Keys::default();
        for row in &gone {
            of.push(get(row, "tenant")?, get(row, "namespace")?, get(row, "key")?);
        }
        delete_vectors(&mut transaction, &of, copies).await?;
        self.commit(transaction).await?;
        Ok(gone.len() as i64 >= STEP_ROWS)
    }
}

/// Returns the item's `updated_at`.
async fn put(conn: &mut PgConnection, item: &NewItem, columns: &Columns) -> Result<i64> {
    let row = sqlx::query(PUT)
        .bind(columns.tenant)
        .bind(&columns.namespace)
        .bind(&columns.key)
        .bind(&columns.model)
        .bind(&columns.paths)
        .bind(&columns.vectors)
        .bind(PLAIN)
        .bind(encoding::bytes(&item.value))
        .bind(item.ttl_minutes.map(|minutes| (minutes * MICROS_PER_MINUTE) as i64))
        .bind(items::indexing_text(&item.indexing))
        .fetch_one(conn)
        .await
        .map_err(driver_error)?;
    get(&row, "updated_at")
}

/// False when the item was written since, or is gone.
async fn embed(conn: &mut PgConnection, columns: &Columns, written_at: i64) -> Result<bool> {
    let held = sqlx::query(EMBED)
        .bind(columns.tenant)
        .bind(&columns.namespace)
        .bind(&columns.key)
        .bind(&columns.model)
        .bind(&columns.paths)
        .bind(&columns.vectors)
        .bind(written_at)
        .fetch_optional(conn)
        .await
        .map_err(driver_error)?;
    Ok(held.is_some())
}

/// Removes what items that were deleted before in the same transaction leave.
async fn delete_vectors(conn: &mut PgConnection, of: &Keys, copies: Option<&Ready>) -> Result<()> {
    sqlx::query(DELETE_VECTORS)
        .bind(&of.tenants)
        .bind(&of.namespaces)
        .bind(&of.keys)
        .execute(&mut *conn)
        .await
        .map_err(driver_error)?;
    match copies {
        Some(_) => copies::delete(conn, of).await,
        None => Ok(()),
    }
}

/// Items by the time they were written; with `without`, only those that no vector of its kind was made of.
async fn latest(
    conn: &mut PgConnection,
    scope: &Scope,
    filter: &ItemFilter,
    without: Option<&Near>,
    page: Page,
) -> Result<Vec<FoundItem>> {
    let (from, to) = matching::namespace_range(&filter.prefix);
    // With conditions the page is counted here, row by row; without, the database skips.
    let counted = filter.conditions.is_empty();
    let mut rows = sqlx::query(SEARCH)
        .bind(scope.filter())
        .bind(from)
        .bind(to)
        .bind(counted.then_some(page.limit))
        .bind(if counted { page.offset } else { 0 })
        .bind(without.map(|near| near.model.as_str()))
        .bind(without.map_or(0, dims))
        .fetch(conn);
    let mut found = Vec::new();
    let mut skipped = if counted { page.offset } else { 0 };
    while (found.len() as i64) < page.limit {
        let Some(row) = rows.try_next().await.map_err(driver_error)? else { break };
        let item = item_from(&row)?;
        if !matching::meets(&item.value, &filter.conditions) {
            continue;
        }
        if skipped < page.offset {
            skipped += 1;
            continue;
        }
        found.push(FoundItem { item, score: None });
    }
    Ok(found)
}

/// Looks at every vector that may match.
async fn nearest(
    conn: &mut PgConnection,
    scope: &Scope,
    filter: &ItemFilter,
    near: &Near,
    page: Page,
) -> Result<Nearest> {
    let (from, to) = matching::namespace_range(&filter.prefix);
    let mut rows = sqlx::query(if filter.conditions.is_empty() { SCAN } else { SCAN_VALUES })
        .bind(scope.filter())
        .bind(from)
        .bind(to)
        .bind(&near.model)
        .bind(dims(near))
        .fetch(conn);
    let mut nearest = Nearest::until(page);
    while let Some(row) = rows.try_next().await.map_err(driver_error)? {
        look_at(&row, &near.vector, &filter.conditions, &mut nearest)?;
    }
    Ok(nearest)
}

/// The items of a page of the nearest, in their order.
async fn fetch(conn: &mut PgConnection, found: &[(Key, f32)]) -> Result<Vec<FoundItem>> {
    let tenants: Vec<Uuid> = found.iter().map(|(key, _)| key.tenant).collect();
    let namespaces: Vec<&str> = found.iter().map(|(key, _)| key.namespace.as_str()).collect();
    let keys: Vec<&str> = found.iter().map(|(key, _)| key.key.as_str()).collect();
    let rows =
        sqlx::query(FETCH).bind(tenants).bind(namespaces).bind(keys).fetch_all(conn).await.map_err(driver_error)?;
    rows.iter()
        .map(|row| {
            let at = usize::try_from(get::<i64>(row, "n")? - 1).unwrap_or(usize::MAX);
            let score = found.get(at).map(|(_, score)| f64::from(*score));
            Ok(FoundItem { item: item_from(row)?, score })
        })
        .collect()
}

#[async_trait]
impl Items for PostgresStorage {
    async fn put_item(&self, scope: &Scope, item: NewItem) -> Result<()> {
        self.bounded(async {
            let columns = Columns::new(scope, &item.namespace, &item.key, item.embedded.as_ref());
            with_copies!(self, copies, self.put_columns(&item, &columns, copies.as_deref()))
        })
        .await
    }

    async fn get_item(&self, scope: &Scope, namespace: &[String], key: &str, restart: bool) -> Result<Option<Item>> {
        let (namespace, key) = (matching::namespace_text(namespace), hide_nul(key).into_owned());
        if restart {
            self.refresh(scope, vec![namespace.clone()], vec![key.clone()]).await?;
        }
        read!(self, async {
            let mut session = self.session().await?;
            let row = sqlx::query(FIND)
                .bind(scope.tenant())
                .bind(&namespace)
                .bind(&key)
                .fetch_optional(session.conn())
                .await
                .map_err(driver_error)?;
            session.finish().await?;
            row.as_ref().map(item_from).transpose()
        })
    }

    async fn delete_item(&self, scope: &Scope, namespace: &[String], key: &str) -> Result<()> {
        self.bounded(async {
            let mut of = Keys::default();
            of.push(scope.tenant(), matching::namespace_text(namespace), hide_nul(key).into_owned());
            with_copies!(self, copies, self.delete_once(&of, copies.as_deref()))
        })
        .await
    }

    async fn search_items(
        &self,
        scope: &Scope,
        filter: &ItemFilter,
        page: Page,
        restart: bool,
    ) -> Result<Vec<FoundItem>> {
        let found = read!(self, self.search_once(scope, filter, page))?;
        if restart {
            let namespaces = found.iter().map(|found| matching::namespace_text(&found.item.namespace)).collect();
            let keys = found.iter().map(|found| hide_nul(&found.item.key).into_owned()).collect();
            self.refresh(scope, namespaces, keys).await?;
        }
        Ok(found)
    }

    async fn list_namespaces(&self, scope: &Scope, filter: &NamespaceFilter, page: Page) -> Result<Vec<Vec<String>>> {
        let (from, to) = matching::namespace_range(matching::plain_prefix(&filter.prefix));
        let found: Vec<Vec<String>> = read!(self, async {
            let mut session = self.session().await?;
            let rows = sqlx::query(NAMESPACES)
                .bind(scope.filter())
                .bind(&from)
                .bind(&to)
                .fetch_all(session.conn())
                .await
                .map_err(driver_error)?;
            session.finish().await?;
            rows.iter()
                .map(|row| Ok(matching::namespace_labels(&get::<String>(row, "namespace")?)))
                .collect::<Result<_>>()
        })?;
        Ok(matching::page(matching::namespaces(found, filter), page))
    }

    async fn sweep_items(&self, scope: &Scope) -> Result<bool> {
        self.bounded(async { with_copies!(self, copies, self.sweep_once(scope, copies.as_deref())) }).await
    }

    async fn unembedded_items(
        &self,
        scope: &Scope,
        model: &str,
        after: Option<&ItemPlace>,
        limit: i64,
    ) -> Result<Vec<UnembeddedItem>> {
        read!(self, async {
            let mut session = self.session().await?;
            let rows = sqlx::query(UNEMBEDDED)
                .bind(scope.filter())
                .bind(model)
                .bind(after.map(|place| place.scope.tenant()))
                .bind(after.map(|place| matching::namespace_text(&place.namespace)))
                .bind(after.map(|place| hide_nul(&place.key).into_owned()))
                .bind(limit)
                .fetch_all(session.conn())
                .await
                .map_err(driver_error)?;
            session.finish().await?;
            rows.iter().map(unembedded_from).collect()
        })
    }

    async fn embed_item(&self, scope: &Scope, item: &Item, embedded: Embedded) -> Result<bool> {
        self.bounded(async {
            let columns = Columns::new(scope, &item.namespace, &item.key, Some(&embedded));
            with_copies!(self, copies, self.embed_columns(&columns, item.updated_at.0, copies.as_deref()))
        })
        .await
    }

    async fn tend_vectors(&self, scope: &Scope, after: Option<&ItemPlace>) -> Result<VectorsTended> {
        self.tend_copies(scope, after).await
    }

    fn wants_vectors_tended(&self) -> bool {
        self.pgvector.was_lacking()
    }
}
