//! Items on SQLite.

use async_trait::async_trait;
use futures_util::TryStreamExt as _;
use sqlx::sqlite::SqliteConnection;
use uuid::Uuid;

use super::rows::{get, item_from};
use super::{SqliteStorage, Write, clock};
use crate::model::{Item, Scope};
use crate::storage::encoding::{self, PLAIN, hide_nul};
use crate::storage::rows::driver_error;
use crate::storage::{ItemFilter, Items, NamespaceFilter, NewItem, Page, Result, matching};

const MICROS_PER_MINUTE: f64 = 60_000_000.0;

async fn put(write: &mut Write, scope: Scope, item: NewItem) -> Result<()> {
    let ttl = item.ttl_minutes.map(|minutes| (minutes * MICROS_PER_MINUTE) as i64);
    sqlx::query(
        "INSERT INTO items (tenant, namespace, key, codec, value, created_at, updated_at, ttl, expires_at)
         VALUES ($1, $2, $3, $4, $5, $6, $6, $7, $6 + $7)
         ON CONFLICT (tenant, namespace, key) DO UPDATE SET
             codec = excluded.codec, value = excluded.value, updated_at = excluded.updated_at, ttl = excluded.ttl,
             expires_at = excluded.expires_at,
             -- An expired item counts as gone, so what replaces it is new.
             created_at = CASE WHEN items.expires_at <= excluded.updated_at THEN excluded.created_at
                               ELSE items.created_at END",
    )
    .bind(scope.tenant())
    .bind(matching::namespace_text(&item.namespace))
    .bind(hide_nul(&item.key).into_owned())
    .bind(PLAIN)
    .bind(encoding::bytes(&item.value))
    .bind(write.now)
    .bind(ttl)
    .execute(&mut write.conn)
    .await
    .map_err(driver_error)?;
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

async fn search(
    conn: &mut SqliteConnection,
    scope: Scope,
    filter: ItemFilter,
    page: Page,
    now: i64,
) -> Result<Vec<Item>> {
    let (from, to) = matching::namespace_range(&filter.prefix);
    // With conditions the page is counted here, row by row; without, the database skips.
    let counted = filter.conditions.is_empty();
    let mut rows = sqlx::query(
        "SELECT namespace, key, codec, value, created_at, updated_at FROM items
         WHERE ($1 IS NULL OR tenant = $1) AND namespace >= $2 AND ($3 IS NULL OR namespace < $3)
           AND (expires_at IS NULL OR expires_at > $4)
         ORDER BY updated_at DESC, namespace, key
         LIMIT $5 OFFSET $6",
    )
    .bind(scope.filter())
    .bind(from)
    .bind(to)
    .bind(now)
    .bind(if counted { page.limit } else { -1 })
    .bind(if counted { page.offset } else { 0 })
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
        found.push(item);
    }
    Ok(found)
}

async fn namespaces(
    conn: &mut SqliteConnection,
    scope: Scope,
    filter: NamespaceFilter,
    page: Page,
) -> Result<Vec<Vec<String>>> {
    let (from, to) = matching::namespace_range(&filter.prefix);
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

    async fn search_items(&self, scope: &Scope, filter: &ItemFilter, page: Page, restart: bool) -> Result<Vec<Item>> {
        let (scope, filter) = (*scope, filter.clone());
        if !restart {
            return self.read(move |conn| Box::pin(search(conn, scope, filter, page, clock()))).await;
        }
        self.write(move |write| {
            Box::pin(async move {
                let now = write.now;
                let found = search(&mut write.conn, scope, filter, page, now).await?;
                for item in &found {
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
}
