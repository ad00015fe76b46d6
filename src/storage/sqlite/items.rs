//! Items on SQLite.

use async_trait::async_trait;
use futures_util::TryStreamExt as _;
use sqlx::sqlite::SqliteConnection;
use uuid::Uuid;

use super::rows::{get, item_from, look_at, unembedded_from};
use super::{SqliteStorage, Write, clock};
use crate::model::{FoundItem, Item, Scope};
use crate::storage::encoding::{self, PLAIN, hide_nul};
use crate::storage::rows::driver_error;
use crate::storage::vectors::{self, Nearest};
use crate::storage::{
    Embedded, ItemFilter, ItemPlace, Items, NamespaceFilter, Near, NewItem, Page, Result, STEP_ROWS, UnembeddedItem,
    items, matching,
};

const MICROS_PER_MINUTE: f64 = 60_000_000.0;

async fn put(write: &mut Write, scope: Scope, item: NewItem) -> Result<()> {
    let ttl = item.ttl_minutes.map(|minutes| (minutes * MICROS_PER_MINUTE) as i64);
    let (namespace, key) = (matching::namespace_text(&item.namespace), hide_nul(&item.key).into_owned());
    let model = item.embedded.as_ref().map(|embedded| embedded.model.clone());
    let is_embedded = model.is_some();
    sqlx::query(
        "INSERT INTO items (tenant, namespace, key, codec, value, created_at, updated_at, ttl, expires_at, index_paths,
                            embedded_by, embedded_at)
         VALUES ($1, $2, $3, $4, $5, $6, $6, $7, $6 + $7, $8, $9, CASE WHEN $10 THEN $6 END)
         ON CONFLICT (tenant, namespace, key) DO UPDATE SET
             codec = excluded.codec, value = excluded.value, updated_at = excluded.updated_at, ttl = excluded.ttl,
             expires_at = excluded.expires_at, index_paths = excluded.index_paths, embedded_by = excluded.embedded_by,
             embedded_at = excluded.embedded_at,
             -- An expired item counts as gone, so what replaces it is new.
             created_at = CASE WHEN items.expires_at <= excluded.updated_at THEN excluded.created_at
                               ELSE items.created_at END",
    )
    .bind(scope.tenant())
    .bind(&namespace)
    .bind(&key)
    .bind(PLAIN)
    .bind(encoding::bytes(&item.value))
    .bind(write.now)
    .bind(ttl)
    .bind(items::indexing_text(&item.indexing))
    .bind(model)
    .bind(is_embedded)
    .execute(&mut write.conn)
    .await
    .map_err(driver_error)?;
    let written_at = write.now;
    replace_vectors(write, scope.tenant(), &namespace, &key, item.embedded, written_at).await
}

async fn delete_vectors(write: &mut Write, tenant: Uuid, namespace: &str, key: &str) -> Result<()> {
    sqlx::query("DELETE FROM item_vectors WHERE tenant = $1 AND namespace = $2 AND key = $3")
        .bind(tenant)
        .bind(namespace)
        .bind(key)
        .execute(&mut write.conn)
        .await
        .map_err(driver_error)?;
    Ok(())
}

async fn replace_vectors(
    write: &mut Write,
    tenant: Uuid,
    namespace: &str,
    key: &str,
    embedded: Option<Embedded>,
    written_at: i64,
) -> Result<()> {
    delete_vectors(write, tenant, namespace, key).await?;
    let Some(Embedded { model, vectors }) = embedded else { return Ok(()) };
    for one in vectors {
        sqlx::query(
            "INSERT INTO item_vectors (tenant, namespace, key, path, model, dims, vector, written_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        )
        .bind(tenant)
        .bind(namespace)
        .bind(key)
        .bind(hide_nul(&one.path).into_owned())
        .bind(&model)
        .bind(i64::try_from(one.vector.len()).unwrap_or(i64::MAX))
        .bind(vectors::bytes(&one.vector))
        .bind(written_at)
        .execute(&mut write.conn)
        .await
        .map_err(driver_error)?;
    }
    Ok(())
}

async fn find(
    conn: &mut SqliteConnection,
    tenant: Uuid,
    namespace: String,
    key: String,
    now: i64,
) -> Result<Option<Item>> {
    sqlx::query(
        "SELECT namespace, key, codec, value, created_at, updated_at FROM items
         WHERE tenant = $1 AND namespace = $2 AND key = $3 AND (expires_at IS NULL OR expires_at > $4)",
    )
    .bind(tenant)
    .bind(namespace)
    .bind(key)
    .bind(now)
    .fetch_optional(conn)
    .await
    .map_err(driver_error)?
    .as_ref()
    .map(item_from)
    .transpose()
}

/// Restarts the time to live of one item.
async fn refresh(write: &mut Write, tenant: Uuid, namespace: &str, key: &str) -> Result<()> {
    sqlx::query(
        "UPDATE items SET expires_at = $4 + ttl
         WHERE tenant = $1 AND namespace = $2 AND key = $3 AND ttl IS NOT NULL AND expires_at > $4",
    )
    .bind(tenant)
    .bind(namespace)
    .bind(key)
    .bind(write.now)
    .execute(&mut write.conn)
    .await
    .map_err(driver_error)?;
    Ok(())
}

/// Items by the time they were written; with `without`, only those that no vector of its kind was made of.
async fn latest(
    conn: &mut SqliteConnection,
    scope: Scope,
    filter: &ItemFilter,
    without: Option<&Near>,
    page: Page,
    now: i64,
) -> Result<Vec<FoundItem>> {
    let (from, to) = matching::namespace_range(&filter.prefix);
    // With conditions the page is counted here, row by row; without, the database skips.
    let counted = filter.conditions.is_empty();
    let mut rows = sqlx::query(
        "SELECT namespace, key, codec, value, created_at, updated_at FROM items i
         WHERE ($1 IS NULL OR tenant = $1) AND namespace >= $2 AND ($3 IS NULL OR namespace < $3)
           AND (expires_at IS NULL OR expires_at > $4)
           AND ($7 IS NULL OR NOT EXISTS (
               SELECT 1 FROM item_vectors v
               WHERE v.tenant = i.tenant AND v.namespace = i.namespace AND v.key = i.key
                 AND v.written_at = i.updated_at AND v.model = $7 AND v.dims = $8))
         ORDER BY updated_at DESC, namespace, key
         LIMIT $5 OFFSET $6",
    )
    .bind(scope.filter())
    .bind(from)
    .bind(to)
    .bind(now)
    .bind(if counted { page.limit } else { -1 })
    .bind(if counted { page.offset } else { 0 })
    .bind(without.map(|near| near.model.clone()))
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

fn dims(near: &Near) -> i64 {
    i64::try_from(near.vector.len()).unwrap_or(i64::MAX)
}

/// Looks at every vector that may match.
async fn nearest(
    conn: &mut SqliteConnection,
    scope: Scope,
    filter: &ItemFilter,
    near: &Near,
    page: Page,
    now: i64,
) -> Result<Nearest> {
    let (from, to) = matching::namespace_range(&filter.prefix);
    macro_rules! scan {
        ($value:literal) => {
            concat!(
                "SELECT i.tenant, i.namespace, i.key, i.updated_at, v.vector",
                $value,
                " FROM item_vectors v JOIN items i
                     ON i.tenant = v.tenant AND i.namespace = v.namespace AND i.key = v.key
                    AND i.updated_at = v.written_at
                  WHERE ($1 IS NULL OR v.tenant = $1) AND v.namespace >= $2 AND ($3 IS NULL OR v.namespace < $3)
                    AND v.model = $4 AND v.dims = $5 AND (i.expires_at IS NULL OR i.expires_at > $6)"
            )
        };
    }
    let mut rows = sqlx::query(if filter.conditions.is_empty() { scan!("") } else { scan!(", i.codec, i.value") })
        .bind(scope.filter())
        .bind(from)
        .bind(to)
        .bind(near.model.clone())
        .bind(dims(near))
        .bind(now)
        .fetch(conn);
    let mut nearest = Nearest::until(page);
    while let Some(row) = rows.try_next().await.map_err(driver_error)? {
        look_at(&row, &near.vector, &filter.conditions, &mut nearest)?;
    }
    Ok(nearest)
}

async fn search(
    conn: &mut SqliteConnection,
    scope: Scope,
    filter: ItemFilter,
    page: Page,
    now: i64,
) -> Result<Vec<FoundItem>> {
    let Some(near) = &filter.near else { return latest(conn, scope, &filter, None, page, now).await };
    let (keys, rest) = nearest(conn, scope, &filter, near, page, now).await?.page(page);
    let mut found = Vec::new();
    for (key, score) in keys {
        // In the same snapshot: what matched does so still.
        if let Some(item) = find(conn, key.tenant, key.namespace, key.key, now).await? {
            found.push(FoundItem { item, score: Some(f64::from(score)) });
        }
    }
    if rest.limit > 0 {
        found.extend(latest(conn, scope, &filter, Some(near), rest, now).await?);
    }
    Ok(found)
}

async fn sweep(write: &mut Write, tenant: Option<Uuid>) -> Result<bool> {
    let due = sqlx::query(
        "DELETE FROM items WHERE rowid IN (
             SELECT rowid FROM items WHERE ($1 IS NULL OR tenant = $1) AND expires_at <= $2
             ORDER BY expires_at LIMIT $3)
         RETURNING tenant, namespace, key",
    )
    .bind(tenant)
    .bind(write.now)
    .bind(STEP_ROWS)
    .fetch_all(&mut write.conn)
    .await
    .map_err(driver_error)?;
    for row in &due {
        let (namespace, key): (String, String) = (get(row, "namespace")?, get(row, "key")?);
        delete_vectors(write, get(row, "tenant")?, &namespace, &key).await?;
    }
    Ok(due.len() as i64 >= STEP_ROWS)
}

async fn is_sweep_due(conn: &mut SqliteConnection, tenant: Option<Uuid>) -> Result<bool> {
    let row =
        sqlx::query("SELECT EXISTS (SELECT 1 FROM items WHERE ($1 IS NULL OR tenant = $1) AND expires_at <= $2) AS it")
            .bind(tenant)
            .bind(clock())
            .fetch_one(conn)
            .await
            .map_err(driver_error)?;
    get(&row, "it")
}

async fn unembedded(
    conn: &mut SqliteConnection,
    tenant: Option<Uuid>,
    model: String,
    after: Option<ItemPlace>,
    limit: i64,
) -> Result<Vec<UnembeddedItem>> {
    let rows = sqlx::query(
        "SELECT tenant, namespace, key, codec, value, created_at, updated_at, index_paths FROM items
         WHERE ($1 IS NULL OR tenant = $1) AND index_paths IS NOT 'false'
           AND (embedded_by IS NOT $2 OR embedded_at IS NOT updated_at)
           AND (expires_at IS NULL OR expires_at > $3)
           AND ($4 IS NULL OR (tenant, namespace, key) > ($4, $5, $6))
         ORDER BY tenant, namespace, key LIMIT $7",
    )
    .bind(tenant)
    .bind(model)
    .bind(clock())
    .bind(after.as_ref().map(|place| place.scope.tenant()))
    .bind(after.as_ref().map(|place| matching::namespace_text(&place.namespace)))
    .bind(after.as_ref().map(|place| hide_nul(&place.key).into_owned()))
    .bind(limit)
    .fetch_all(conn)
    .await
    .map_err(driver_error)?;
    rows.iter().map(unembedded_from).collect()
}

async fn embed(
    write: &mut Write,
    tenant: Uuid,
    namespace: String,
    key: String,
    as_of: i64,
    embedded: Embedded,
) -> Result<bool> {
    let held = sqlx::query(
        "UPDATE items SET embedded_by = $4, embedded_at = updated_at
         WHERE tenant = $1 AND namespace = $2 AND key = $3 AND updated_at = $5",
    )
    .bind(tenant)
    .bind(&namespace)
    .bind(&key)
    .bind(&embedded.model)
    .bind(as_of)
    .execute(&mut write.conn)
    .await
    .map_err(driver_error)?;
    if held.rows_affected() == 0 {
        return Ok(false);
    }
    replace_vectors(write, tenant, &namespace, &key, Some(embedded), as_of).await?;
    Ok(true)
}

async fn namespaces(
    conn: &mut SqliteConnection,
    scope: Scope,
    filter: NamespaceFilter,
    page: Page,
) -> Result<Vec<Vec<String>>> {
    let (from, to) = matching::namespace_range(matching::plain_prefix(&filter.prefix));
    let mut rows = sqlx::query(
        "SELECT DISTINCT namespace FROM items
         WHERE ($1 IS NULL OR tenant = $1) AND namespace >= $2 AND ($3 IS NULL OR namespace < $3)
           AND (expires_at IS NULL OR expires_at > $4)",
    )
    .bind(scope.filter())
    .bind(from)
    .bind(to)
    .bind(clock())
    .fetch(conn);
    let mut found = Vec::new();
    while let Some(row) = rows.try_next().await.map_err(driver_error)? {
        found.push(matching::namespace_labels(&get::<String>(&row, "namespace")?));
    }
    Ok(matching::page(matching::namespaces(found, &filter), page))
}

#[async_trait]
impl Items for SqliteStorage {
    async fn put_item(&self, scope: &Scope, item: NewItem) -> Result<()> {
        let scope = *scope;
        self.write(move |write| Box::pin(put(write, scope, item))).await
    }

    async fn get_item(&self, scope: &Scope, namespace: &[String], key: &str, restart: bool) -> Result<Option<Item>> {
        let (tenant, namespace, key) =
            (scope.tenant(), matching::namespace_text(namespace), hide_nul(key).into_owned());
        if !restart {
            return self.read(move |conn| Box::pin(find(conn, tenant, namespace, key, clock()))).await;
        }
        self.write(move |write| {
            Box::pin(async move {
                refresh(write, tenant, &namespace, &key).await?;
                let now = write.now;
                find(&mut write.conn, tenant, namespace, key, now).await
            })
        })
        .await
    }

    async fn delete_item(&self, scope: &Scope, namespace: &[String], key: &str) -> Result<()> {
        let (tenant, namespace, key) =
            (scope.tenant(), matching::namespace_text(namespace), hide_nul(key).into_owned());
        self.write(move |write| {
            Box::pin(async move {
                delete_vectors(write, tenant, &namespace, &key).await?;
                sqlx::query("DELETE FROM items WHERE tenant = $1 AND namespace = $2 AND key = $3")
                    .bind(tenant)
                    .bind(namespace)
                    .bind(key)
                    .execute(&mut write.conn)
                    .await
                    .map_err(driver_error)?;
                Ok(())
            })
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
        let (scope, filter) = (*scope, filter.clone());
        if !restart {
            return self.read(move |conn| Box::pin(search(conn, scope, filter, page, clock()))).await;
        }
        self.write(move |write| {
            Box::pin(async move {
                let now = write.now;
                let found = search(&mut write.conn, scope, filter, page, now).await?;
                for FoundItem { item, .. } in &found {
                    let namespace = matching::namespace_text(&item.namespace);
                    refresh(write, scope.tenant(), &namespace, &hide_nul(&item.key)).await?;
                }
                Ok(found)
            })
        })
        .await
    }

    async fn list_namespaces(&self, scope: &Scope, filter: &NamespaceFilter, page: Page) -> Result<Vec<Vec<String>>> {
        let (scope, filter) = (*scope, filter.clone());
        self.read(move |conn| Box::pin(namespaces(conn, scope, filter, page))).await
    }

    async fn sweep_items(&self, scope: &Scope) -> Result<bool> {
        let tenant = scope.filter();
        // Looked at by a reader first: an idle server sweeps without writing.
        let is_due = self.read(move |conn| Box::pin(is_sweep_due(conn, tenant))).await?;
        Ok(is_due && self.write(move |write| Box::pin(sweep(write, tenant))).await?)
    }

    async fn unembedded_items(
        &self,
        scope: &Scope,
        model: &str,
        after: Option<&ItemPlace>,
        limit: i64,
    ) -> Result<Vec<UnembeddedItem>> {
        let (tenant, model, after) = (scope.filter(), model.to_owned(), after.cloned());
        self.read(move |conn| Box::pin(unembedded(conn, tenant, model, after, limit))).await
    }

    async fn embed_item(&self, scope: &Scope, item: &Item, embedded: Embedded) -> Result<bool> {
        let (tenant, as_of) = (scope.tenant(), item.updated_at.0);
        let (namespace, key) = (matching::namespace_text(&item.namespace), hide_nul(&item.key).into_owned());
        self.write(move |write| Box::pin(embed(write, tenant, namespace, key, as_of, embedded))).await
    }
}
