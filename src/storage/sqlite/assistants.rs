//! Assistants on SQLite.

use async_trait::async_trait;
use futures_util::TryStreamExt as _;
use sqlx::sqlite::SqliteConnection;
use sqlx::{QueryBuilder, Sqlite};
use uuid::Uuid;

use super::rows::{assistant_from, get};
use super::{SqliteStorage, Write};
use crate::model::{Assistant, Json, Scope, Timestamp};
use crate::storage::assistants::folded;
use crate::storage::encoding::{self, PLAIN};
use crate::storage::rows::driver_error;
use crate::storage::{
    AssistantCreated, AssistantFilter, AssistantPatch, AssistantSort, Assistants, NewAssistant, Page, Result, matching,
};

/// The columns [`assistant_from`] reads, from `assistants a`.
macro_rules! assistant_columns {
    () => {
        "a.assistant_id, a.graph_id, a.name, a.description, a.metadata, a.codec, a.config, a.context, a.version, \
         a.created_at, a.updated_at"
    };
}

async fn find(conn: &mut SqliteConnection, tenant: Uuid, id: Uuid) -> Result<Option<Assistant>> {
    let row = sqlx::query(concat!(
        "SELECT ",
        assistant_columns!(),
        " FROM assistants a WHERE a.tenant = $1 AND a.assistant_id = $2"
    ))
    .bind(tenant)
    .bind(id)
    .fetch_optional(conn)
    .await
    .map_err(driver_error)?;
    row.as_ref().map(assistant_from).transpose()
}

/// Inserts or replaces the row.
async fn write_current(conn: &mut SqliteConnection, tenant: Uuid, assistant: &Assistant) -> Result<()> {
    sqlx::query(
        "INSERT INTO assistants (assistant_id, tenant, graph_id, name, folded_name, description, metadata, codec, config,
                                 context, version, created_at, updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
         ON CONFLICT (tenant, assistant_id) DO UPDATE SET
             graph_id = excluded.graph_id, name = excluded.name, folded_name = excluded.folded_name,
             description = excluded.description, metadata = excluded.metadata, codec = excluded.codec,
             config = excluded.config, context = excluded.context, version = excluded.version,
             updated_at = excluded.updated_at",
    )
    .bind(assistant.assistant_id)
    .bind(tenant)
    .bind(&assistant.graph_id)
    .bind(&assistant.name)
    .bind(folded(&assistant.name))
    .bind(&assistant.description)
    .bind(encoding::metadata_text(&assistant.metadata))
    .bind(PLAIN)
    .bind(encoding::bytes(&assistant.config))
    .bind(encoding::bytes(&assistant.context))
    .bind(assistant.version)
    .bind(assistant.created_at.0)
    .bind(assistant.updated_at.0)
    .execute(conn)
    .await
    .map_err(driver_error)?;
    Ok(())
}

/// Inserts a version, which is made now: at the assistant's `updated_at`.
async fn write_version(conn: &mut SqliteConnection, tenant: Uuid, assistant: &Assistant) -> Result<()> {
    sqlx::query(
        "INSERT INTO assistant_versions (assistant_id, tenant, version, graph_id, name, description, metadata, codec,
                                         config, context, created_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
    )
    .bind(assistant.assistant_id)
    .bind(tenant)
    .bind(assistant.version)
    .bind(&assistant.graph_id)
    .bind(&assistant.name)
    .bind(&assistant.description)
    .bind(encoding::metadata_text(&assistant.metadata))
    .bind(PLAIN)
    .bind(encoding::bytes(&assistant.config))
    .bind(encoding::bytes(&assistant.context))
    .bind(assistant.updated_at.0)
    .execute(conn)
    .await
    .map_err(driver_error)?;
    Ok(())
}

async fn insert(write: &mut Write, tenant: Uuid, new: NewAssistant) -> Result<Assistant> {
    let now = Timestamp(write.now);
    let at = new.created_at.unwrap_or(now).min(now);
    let assistant = Assistant {
        assistant_id: new.assistant_id,
        graph_id: new.graph_id,
        config: new.config,
        context: new.context,
        metadata: new.metadata,
        name: new.name,
        description: new.description,
        created_at: at,
        updated_at: at,
        version: 1,
    };
    write_current(&mut write.conn, tenant, &assistant).await?;
    write_version(&mut write.conn, tenant, &assistant).await?;
    Ok(assistant)
}

async fn create(write: &mut Write, tenant: Uuid, new: NewAssistant) -> Result<AssistantCreated> {
    if let Some(found) = find(&mut write.conn, tenant, new.assistant_id).await? {
        return Ok(AssistantCreated::Existing(found));
    }
    insert(write, tenant, new).await.map(AssistantCreated::New)
}

/// The time of a change: after the one before, whatever the clock says.
fn after(write: &Write, before: &Assistant) -> Timestamp {
    Timestamp(write.now.max(before.updated_at.0 + 1))
}

async fn update(
    write: &mut Write,
    tenant: Uuid,
    id: Uuid,
    patch: AssistantPatch,
    base: Option<NewAssistant>,
) -> Result<Option<Assistant>> {
    let current = match (find(&mut write.conn, tenant, id).await?, base) {
        (Some(found), _) => found,
        (None, Some(base)) => insert(write, tenant, base).await?,
        (None, None) => return Ok(None),
    };
    let updated_at = after(write, &current);
    let row =
        sqlx::query("SELECT MAX(version) + 1 AS next FROM assistant_versions WHERE tenant = $1 AND assistant_id = $2")
            .bind(tenant)
            .bind(id)
            .fetch_one(&mut write.conn)
            .await
            .map_err(driver_error)?;
    let patched = Assistant { version: get(&row, "next")?, updated_at, ..patch.apply(current) };
    write_current(&mut write.conn, tenant, &patched).await?;
    write_version(&mut write.conn, tenant, &patched).await?;
    Ok(Some(patched))
}

async fn set_version(write: &mut Write, tenant: Uuid, id: Uuid, version: i64) -> Result<Option<Assistant>> {
    let Some(current) = find(&mut write.conn, tenant, id).await? else { return Ok(None) };
    let row = sqlx::query(
        "SELECT assistant_id, graph_id, name, description, metadata, codec, config, context, version, created_at,
                created_at AS updated_at
         FROM assistant_versions WHERE tenant = $1 AND assistant_id = $2 AND version = $3",
    )
    .bind(tenant)
    .bind(id)
    .bind(version)
    .fetch_optional(&mut write.conn)
    .await
    .map_err(driver_error)?;
    let Some(row) = row else { return Ok(None) };
    let (created_at, updated_at) = (current.created_at, after(write, &current));
    let chosen = Assistant { created_at, updated_at, ..assistant_from(&row)? };
    write_current(&mut write.conn, tenant, &chosen).await?;
    Ok(Some(chosen))
}

/// Appends the conditions SQLite can check itself; metadata containment is left to [`matching`].
fn push_conditions(query: &mut QueryBuilder<Sqlite>, scope: &Scope, filter: &AssistantFilter) {
    query.push(" WHERE 1 = 1");
    if let Some(tenant) = scope.filter() {
        query.push(" AND a.tenant = ").push_bind(tenant);
    }
    if let Some(graph_id) = &filter.graph_id {
        query.push(" AND a.graph_id = ").push_bind(graph_id.clone());
    }
    if let Some(name) = &filter.name {
        query.push(" AND instr(a.folded_name, ").push_bind(folded(name)).push(") > 0");
    }
}

/// Runs a list and keeps what also has the metadata, within the window.
async fn matching_rows(
    conn: &mut SqliteConnection,
    mut query: QueryBuilder<Sqlite>,
    metadata: Option<Json>,
    page: Page,
) -> Result<Vec<Assistant>> {
    if metadata.is_none() {
        query.push(" LIMIT ").push_bind(page.limit).push(" OFFSET ").push_bind(page.offset);
    }
    let mut rows = query.build().fetch(conn);
    let (mut found, mut skipped) = (Vec::new(), 0);
    while (found.len() as i64) < page.limit {
        let Some(row) = rows.try_next().await.map_err(driver_error)? else { break };
        let assistant = assistant_from(&row)?;
        if let Some(part) = &metadata {
            if !matching::contains(&assistant.metadata, part) {
                continue;
            }
            if skipped < page.offset {
                skipped += 1;
                continue;
            }
        }
        found.push(assistant);
    }
    Ok(found)
}

async fn search(
    conn: &mut SqliteConnection,
    scope: Scope,
    filter: AssistantFilter,
    (sort, ascending): (AssistantSort, bool),
    page: Page,
) -> Result<Vec<Assistant>> {
    let mut query = QueryBuilder::new(concat!("SELECT ", assistant_columns!(), " FROM assistants a"));
    push_conditions(&mut query, &scope, &filter);
    let direction = if ascending { " ASC" } else { " DESC" };
    query.push(" ORDER BY ").push(match sort {
        AssistantSort::AssistantId => "a.assistant_id",
        AssistantSort::CreatedAt => "a.created_at",
        AssistantSort::UpdatedAt => "a.updated_at",
        AssistantSort::Name => "a.name",
        AssistantSort::GraphId => "a.graph_id",
    });
    query.push(direction).push(", a.assistant_id").push(direction);
    matching_rows(conn, query, filter.metadata, page).await
}

async fn delete(write: &mut Write, tenant: Uuid, id: Uuid) -> Result<bool> {
    let mut gone = false;
    for statement in [
        "DELETE FROM cron_ticks WHERE cron_id IN (SELECT cron_id FROM crons WHERE tenant = $1 AND assistant_id = $2)",
        "DELETE FROM crons WHERE tenant = $1 AND assistant_id = $2",
        "DELETE FROM assistant_versions WHERE tenant = $1 AND assistant_id = $2",
        "DELETE FROM assistants WHERE tenant = $1 AND assistant_id = $2",
    ] {
        let done = sqlx::query(statement).bind(tenant).bind(id).execute(&mut write.conn).await.map_err(driver_error)?;
        gone = done.rows_affected() > 0;
    }
    Ok(gone)
}

#[async_trait]
impl Assistants for SqliteStorage {
    async fn create_assistant(&self, scope: &Scope, new: NewAssistant) -> Result<AssistantCreated> {
        let tenant = scope.tenant();
        self.write(move |write| Box::pin(create(write, tenant, new))).await
    }

    async fn find_assistants(&self, scope: &Scope, ids: &[Uuid]) -> Result<Vec<Assistant>> {
        let (scope, ids) = (*scope, ids.to_vec());
        self.read(move |conn| {
            Box::pin(async move {
                let mut query = QueryBuilder::new(concat!("SELECT ", assistant_columns!(), " FROM assistants a"));
                push_conditions(&mut query, &scope, &AssistantFilter::default());
                query.push(" AND a.assistant_id IN (");
                let mut list = query.separated(", ");
                for id in ids {
                    list.push_bind(id);
                }
                query.push(")");
                let rows = query.build().fetch_all(conn).await.map_err(driver_error)?;
                rows.iter().map(assistant_from).collect::<Result<Vec<Assistant>>>()
            })
        })
        .await
    }

    async fn search_assistants(
        &self,
        scope: &Scope,
        filter: &AssistantFilter,
        sort: AssistantSort,
        ascending: bool,
        page: Page,
    ) -> Result<Vec<Assistant>> {
        let (scope, filter) = (*scope, filter.clone());
        self.read(move |conn| Box::pin(search(conn, scope, filter, (sort, ascending), page))).await
    }

    async fn count_assistants(&self, scope: &Scope, filter: &AssistantFilter) -> Result<i64> {
        let (scope, filter) = (*scope, filter.clone());
        self.read(move |conn| {
            Box::pin(async move {
                let all = Page { limit: i64::MAX, offset: 0 };
                if filter.metadata.is_some() {
                    return Ok(search(conn, scope, filter, Default::default(), all).await?.len() as i64);
                }
                let mut query = QueryBuilder::new("SELECT COUNT(*) AS n FROM assistants a");
                push_conditions(&mut query, &scope, &filter);
                get(&query.build().fetch_one(conn).await.map_err(driver_error)?, "n")
            })
        })
        .await
    }

    async fn update_assistant(
        &self,
        scope: &Scope,
        id: Uuid,
        patch: AssistantPatch,
        base: Option<NewAssistant>,
    ) -> Result<Option<Assistant>> {
        let tenant = scope.tenant();
        self.write(move |write| Box::pin(update(write, tenant, id, patch, base))).await
    }

    async fn set_assistant_version(&self, scope: &Scope, id: Uuid, version: i64) -> Result<Option<Assistant>> {
        let tenant = scope.tenant();
        self.write(move |write| Box::pin(set_version(write, tenant, id, version))).await
    }

    async fn list_assistant_versions(
        &self,
        scope: &Scope,
        id: Uuid,
        metadata: Option<&Json>,
        page: Page,
    ) -> Result<Vec<Assistant>> {
        let (scope, metadata) = (*scope, metadata.cloned());
        self.read(move |conn| {
            Box::pin(async move {
                let mut query = QueryBuilder::new(
                    "SELECT assistant_id, graph_id, name, description, metadata, codec, config, context, version,
                            created_at, created_at AS updated_at
                     FROM assistant_versions WHERE assistant_id = ",
                );
                query.push_bind(id);
                if let Some(tenant) = scope.filter() {
                    query.push(" AND tenant = ").push_bind(tenant);
                }
                query.push(" ORDER BY version DESC");
                matching_rows(conn, query, metadata, page).await
            })
        })
        .await
    }

    async fn delete_assistant(&self, scope: &Scope, id: Uuid) -> Result<bool> {
        let tenant = scope.tenant();
        self.write(move |write| Box::pin(delete(write, tenant, id))).await
    }
}
