//! Items on Postgres.

use async_trait::async_trait;
use futures_util::TryStreamExt as _;

use super::rows::{get, item_from};
use super::{PostgresStorage, now, read};
use crate::model::{Item, Scope};
use crate::storage::encoding::{self, PLAIN, hide_nul};
use crate::storage::rows::driver_error;
use crate::storage::{ItemFilter, Items, NamespaceFilter, NewItem, Page, Result, matching};

const MICROS_PER_MINUTE: f64 = 60_000_000.0;

const PUT: &str = concat!(
    "WITH clock AS MATERIALIZED (SELECT ",
    now!(),
    " AS now)
    INSERT INTO items (tenant, namespace, key, codec, value, created_at, updated_at, ttl, expires_at)
    SELECT $1, $2, $3, $4, $5, clock.now, clock.now, $6::bigint, clock.now + $6::bigint FROM clock
    ON CONFLICT (tenant, namespace, key) DO UPDATE SET
        codec = EXCLUDED.codec, value = EXCLUDED.value, updated_at = EXCLUDED.updated_at, ttl = EXCLUDED.ttl,
        expires_at = EXCLUDED.expires_at,
        -- An expired item counts as gone, so what replaces it is new.
        created_at = CASE WHEN items.expires_at <= EXCLUDED.updated_at THEN EXCLUDED.created_at
                          ELSE items.created_at END"
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

const SEARCH: &str = concat!(
    "SELECT namespace, key, codec, value, created_at, updated_at FROM items
     WHERE ($1::uuid IS NULL OR tenant = $1) AND namespace >= $2 AND ($3::text IS NULL OR namespace < $3)
       AND (expires_at IS NULL OR expires_at > ",
    now!(),
    ")
     ORDER BY updated_at DESC, namespace, key LIMIT $4 OFFSET $5"
);

const NAMESPACES: &str = concat!(
    "SELECT DISTINCT namespace FROM items
     WHERE ($1::uuid IS NULL OR tenant = $1) AND namespace >= $2 AND ($3::text IS NULL OR namespace < $3)
       AND (expires_at IS NULL OR expires_at > ",
    now!(),
    ")"
);

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

    async fn search_once(&self, scope: &Scope, filter: &ItemFilter, page: Page) -> Result<Vec<Item>> {
        let (from, to) = matching::namespace_range(&filter.prefix);
        // With conditions the page is counted here, row by row; without, the database skips.
        let counted = filter.conditions.is_empty();
        let mut session = self.session().await?;
        let mut rows = sqlx::query(SEARCH)
            .bind(scope.filter())
            .bind(from)
            .bind(to)
            .bind(counted.then_some(page.limit))
            .bind(if counted { page.offset } else { 0 })
            .fetch(session.conn());
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
}

#[async_trait]
impl Items for PostgresStorage {
    async fn put_item(&self, scope: &Scope, item: NewItem) -> Result<()> {
        let mut session = self.session().await?;
        sqlx::query(PUT)
            .bind(scope.tenant())
            .bind(matching::namespace_text(&item.namespace))
            .bind(hide_nul(&item.key).into_owned())
            .bind(PLAIN)
            .bind(encoding::bytes(&item.value))
            .bind(item.ttl_minutes.map(|minutes| (minutes * MICROS_PER_MINUTE) as i64))
            .execute(session.conn())
            .await
            .map_err(driver_error)?;
        self.wrote(session).await
    }

    async fn get_item(&self, scope: &Scope, namespace: &[String], key: &str, restart: bool) -> Result<Option<Item>> {
        let (namespace, key) = (matching::namespace_text(namespace), hide_nul(key).into_owned());
        if restart {
            self.refresh(scope, vec![namespace.clone()], vec![key.clone()]).await?;
        }
        read!(async {
            let mut session = self.session().await?;
            sqlx::query(FIND)
                .bind(scope.tenant())
                .bind(&namespace)
                .bind(&key)
                .fetch_optional(session.conn())
                .await
                .map_err(driver_error)?
                .as_ref()
                .map(item_from)
                .transpose()
        })
    }

    async fn delete_item(&self, scope: &Scope, namespace: &[String], key: &str) -> Result<()> {
        let mut session = self.session().await?;
        sqlx::query("DELETE FROM items WHERE tenant = $1 AND namespace = $2 AND key = $3")
            .bind(scope.tenant())
            .bind(matching::namespace_text(namespace))
            .bind(hide_nul(key).into_owned())
            .execute(session.conn())
            .await
            .map_err(driver_error)?;
        self.wrote(session).await
    }

    async fn search_items(&self, scope: &Scope, filter: &ItemFilter, page: Page, restart: bool) -> Result<Vec<Item>> {
        let found = read!(self.search_once(scope, filter, page))?;
        if restart {
            let namespaces = found.iter().map(|item| matching::namespace_text(&item.namespace)).collect();
            let keys = found.iter().map(|item| hide_nul(&item.key).into_owned()).collect();
            self.refresh(scope, namespaces, keys).await?;
        }
        Ok(found)
    }

    async fn list_namespaces(&self, scope: &Scope, filter: &NamespaceFilter, page: Page) -> Result<Vec<Vec<String>>> {
        let (from, to) = matching::namespace_range(&filter.prefix);
        let found: Vec<Vec<String>> = read!(async {
            let mut session = self.session().await?;
            let rows = sqlx::query(NAMESPACES)
                .bind(scope.filter())
                .bind(&from)
                .bind(&to)
                .fetch_all(session.conn())
                .await
                .map_err(driver_error)?;
            rows.iter()
                .map(|row| Ok(matching::namespace_labels(&get::<String>(row, "namespace")?)))
                .collect::<Result<_>>()
        })?;
        Ok(matching::page(matching::namespaces(found, filter), page))
    }
}
