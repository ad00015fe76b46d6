//! Assistants on Postgres.

use async_trait::async_trait;
use sqlx::postgres::PgConnection;
use sqlx::{Postgres, QueryBuilder};
use uuid::Uuid;

use super::rows::{assistant_from, get};
use super::{PostgresStorage, now, read};
use crate::model::{Assistant, Json, Scope};
use crate::storage::assistants::folded;
use crate::storage::encoding::{self, PLAIN};
use crate::storage::rows::driver_error;
use crate::storage::{
    AssistantCreated, AssistantFilter, AssistantPatch, AssistantSort, Assistants, NewAssistant, Page, Result,
    StorageError,
};

/// The columns [`assistant_from`] reads, from `assistants a`.
macro_rules! assistant_columns {
    () => {
        "a.assistant_id, a.graph_id, a.name, a.description, a.metadata::text AS metadata, a.codec, a.config, a.context, \
         a.version, a.created_at, a.updated_at"
    };
}

const CREATE: &str = concat!(
    "WITH clock AS MATERIALIZED (SELECT LEAST($11::bigint, ",
    now!(),
    ") AS now),
    a AS (
        INSERT INTO assistants AS a (assistant_id, tenant, graph_id, name, folded_name, description, metadata, codec,
                                     config, context, version, created_at, updated_at)
        SELECT $1, $2, $3, $4, $5, $6, $7::jsonb, $8, $9, $10, 1, clock.now, clock.now FROM clock
        ON CONFLICT (tenant, assistant_id) DO NOTHING
        RETURNING a.assistant_id, a.tenant, a.graph_id, a.name, a.description, a.metadata, a.codec, a.config, a.context,
                  a.version, a.created_at, a.updated_at
    ),
    first AS (
        INSERT INTO assistant_versions (assistant_id, tenant, version, graph_id, name, description, metadata, codec,
                                        config, context, created_at)
        SELECT assistant_id, tenant, version, graph_id, name, description, metadata, codec, config, context, created_at
        FROM a
    )
    SELECT ",
    assistant_columns!(),
    " FROM a"
);

/// Inserts an assistant with its first version; `None` when its id is taken.
async fn insert(conn: &mut PgConnection, tenant: Uuid, new: &NewAssistant) -> Result<Option<Assistant>> {
    let row = sqlx::query(CREATE)
        .bind(new.assistant_id)
        .bind(tenant)
        .bind(&new.graph_id)
        .bind(&new.name)
        .bind(folded(&new.name))
        .bind(&new.description)
        .bind(encoding::metadata_text(&new.metadata))
        .bind(PLAIN)
        .bind(encoding::bytes(&new.config))
        .bind(encoding::bytes(&new.context))
        .bind(new.created_at.map(|at| at.0))
        .fetch_optional(conn)
        .await
        .map_err(driver_error)?;
    row.as_ref().map(assistant_from).transpose()
}

async fn find(conn: &mut PgConnection, scope: &Scope, ids: &[Uuid]) -> Result<Vec<Assistant>> {
    let rows = sqlx::query(concat!(
        "SELECT ",
        assistant_columns!(),
        " FROM assistants a
          WHERE a.assistant_id = ANY ((SELECT $1::uuid[])::uuid[]) AND ($2::uuid IS NULL OR a.tenant = $2)"
    ))
    .bind(ids)
    .bind(scope.filter())
    .fetch_all(conn)
    .await
    .map_err(driver_error)?;
    rows.iter().map(assistant_from).collect()
}

/// Reads one assistant and locks it against other changes.
async fn lock(conn: &mut PgConnection, tenant: Uuid, id: Uuid) -> Result<Option<Assistant>> {
    let row = sqlx::query(concat!(
        "SELECT ",
        assistant_columns!(),
        " FROM assistants a WHERE a.tenant = $1 AND a.assistant_id = $2 FOR UPDATE"
    ))
    .bind(tenant)
    .bind(id)
    .fetch_optional(conn)
    .await
    .map_err(driver_error)?;
    row.as_ref().map(assistant_from).transpose()
}

/// Makes `assistant` what the locked row says.
async fn write_current(conn: &mut PgConnection, tenant: Uuid, assistant: &Assistant) -> Result<Assistant> {
    let row = sqlx::query(concat!(
        "WITH a AS (
            UPDATE assistants AS a SET
                graph_id = $3, name = $4, folded_name = $5, description = $6, metadata = $7::jsonb, codec = $8,
                config = $9, context = $10, version = $11, updated_at = GREATEST(",
        now!(),
        ", a.updated_at + 1)
            WHERE a.tenant = $1 AND a.assistant_id = $2
            RETURNING a.assistant_id, a.graph_id, a.name, a.description, a.metadata, a.codec, a.config, a.context,
                      a.version, a.created_at, a.updated_at
        )
        SELECT ",
        assistant_columns!(),
        " FROM a"
    ))
    .bind(tenant)
    .bind(assistant.assistant_id)
    .bind(&assistant.graph_id)
    .bind(&assistant.name)
    .bind(folded(&assistant.name))
    .bind(&assistant.description)
    .bind(encoding::metadata_text(&assistant.metadata))
    .bind(PLAIN)
    .bind(encoding::bytes(&assistant.config))
    .bind(encoding::bytes(&assistant.context))
    .bind(assistant.version)
    .fetch_one(conn)
    .await
    .map_err(driver_error)?;
    assistant_from(&row)
}

async fn update(
    conn: &mut PgConnection,
    tenant: Uuid,
    id: Uuid,
    patch: AssistantPatch,
    base: Option<NewAssistant>,
) -> Result<Option<Assistant>> {
    let mut found = lock(conn, tenant, id).await?;
    if let (None, Some(base)) = (&found, base) {
        // Somebody else may be doing the same: then this waits, and finds theirs.
        insert(conn, tenant, &base).await?;
        found = lock(conn, tenant, id).await?;
    }
    let Some(current) = found else { return Ok(None) };
    let patched = patch.apply(current);
    let row = sqlx::query(concat!(
        "INSERT INTO assistant_versions (assistant_id, tenant, version, graph_id, name, description, metadata, codec,
                                         config, context, created_at)
         SELECT $2, $1, MAX(v.version) + 1, $3, $4, $5, $6::jsonb, $7, $8, $9, ",
        now!(),
        " FROM assistant_versions v WHERE v.tenant = $1 AND v.assistant_id = $2
         RETURNING version"
    ))
    .bind(tenant)
    .bind(id)
    .bind(&patched.graph_id)
    .bind(&patched.name)
    .bind(&patched.description)
    .bind(encoding::metadata_text(&patched.metadata))
    .bind(PLAIN)
    .bind(encoding::bytes(&patched.config))
    .bind(encoding::bytes(&patched.context))
    .fetch_one(&mut *conn)
    .await
    .map_err(driver_error)?;
    let patched = Assistant { version: get(&row, "version")?, ..patched };
    write_current(conn, tenant, &patched).await.map(Some)
}

async fn set_version(conn: &mut PgConnection, tenant: Uuid, id: Uuid, version: i64) -> Result<Option<Assistant>> {
    if lock(conn, tenant, id).await?.is_none() {
        return Ok(None);
    }
    let row = sqlx::query(
        "SELECT assistant_id, graph_id, name, description, metadata::text AS metadata, codec, config, context, version,
                created_at, created_at AS updated_at
         FROM assistant_versions WHERE tenant = $1 AND assistant_id = $2 AND version = $3",
    )
    .bind(tenant)
    .bind(id)
    .bind(version)
    .fetch_optional(&mut *conn)
    .await
    .map_err(driver_error)?;
    let Some(row) = row else { return Ok(None) };
    write_current(conn, tenant, &assistant_from(&row)?).await.map(Some)
}

fn push_conditions(query: &mut QueryBuilder<Postgres>, scope: &Scope, filter: &AssistantFilter) {
    query.push(" WHERE TRUE");
    if let Some(tenant) = scope.filter() {
        query.push(" AND a.tenant = ").push_bind(tenant);
    }
    if let Some(graph_id) = &filter.graph_id {
        query.push(" AND a.graph_id = ").push_bind(graph_id.clone());
    }
    if let Some(name) = &filter.name {
        query.push(" AND strpos(a.folded_name, ").push_bind(folded(name)).push(") > 0");
    }
    if let Some(metadata) = &filter.metadata {
        query.push(" AND a.metadata @> ").push_bind(encoding::metadata_text(metadata)).push("::jsonb");
    }
}

#[async_trait]
impl Assistants for PostgresStorage {
    async fn create_assistant(&self, scope: &Scope, new: NewAssistant) -> Result<AssistantCreated> {
        self.bounded(async {
            // Twice, since an assistant that is in the way may be deleted before it is read.
            for _ in 0..2 {
                let mut session = self.session().await?;
                if let Some(assistant) = insert(session.conn(), scope.tenant(), &new).await? {
                    self.wrote(session).await?;
                    return Ok(AssistantCreated::New(assistant));
                }
                let scope = Scope::Tenant(scope.tenant());
                let found = find(session.conn(), &scope, &[new.assistant_id]).await?.pop();
                session.finish().await?;
                if let Some(assistant) = found {
                    return Ok(AssistantCreated::Existing(assistant));
                }
            }
            Err(StorageError::Unavailable(format!("assistant {} is being created and deleted", new.assistant_id)))
        })
        .await
    }

    async fn find_assistants(&self, scope: &Scope, ids: &[Uuid]) -> Result<Vec<Assistant>> {
        read!(self, async {
            let mut session = self.session().await?;
            find(session.conn(), scope, ids).await
        })
    }

    async fn search_assistants(
        &self,
        scope: &Scope,
        filter: &AssistantFilter,
        sort: AssistantSort,
        ascending: bool,
        page: Page,
    ) -> Result<Vec<Assistant>> {
        read!(self, async {
            let mut query = QueryBuilder::new(concat!("SELECT ", assistant_columns!(), " FROM assistants a"));
            push_conditions(&mut query, scope, filter);
            let direction = if ascending { " ASC" } else { " DESC" };
            query.push(" ORDER BY ").push(match sort {
                AssistantSort::AssistantId => "a.assistant_id",
                AssistantSort::CreatedAt => "a.created_at",
                AssistantSort::UpdatedAt => "a.updated_at",
                AssistantSort::Name => "a.name",
                AssistantSort::GraphId => "a.graph_id",
            });
            query.push(direction).push(", a.assistant_id").push(direction);
            query.push(" LIMIT ").push_bind(page.limit).push(" OFFSET ").push_bind(page.offset);
            let mut session = self.session().await?;
            let rows = query.build().fetch_all(session.conn()).await.map_err(driver_error)?;
            session.finish().await?;
            rows.iter().map(assistant_from).collect::<Result<Vec<Assistant>>>()
        })
    }

    async fn count_assistants(&self, scope: &Scope, filter: &AssistantFilter) -> Result<i64> {
        read!(self, async {
            let mut query = QueryBuilder::new("SELECT COUNT(*) AS n FROM assistants a");
            push_conditions(&mut query, scope, filter);
            let mut session = self.session().await?;
            get(&query.build().fetch_one(session.conn()).await.map_err(driver_error)?, "n")
        })
    }

    async fn update_assistant(
        &self,
        scope: &Scope,
        id: Uuid,
        patch: AssistantPatch,
        base: Option<NewAssistant>,
    ) -> Result<Option<Assistant>> {
        self.bounded(async {
            let mut transaction = self.begin().await?;
            let updated = update(&mut transaction, scope.tenant(), id, patch, base).await?;
            if updated.is_some() {
                self.commit(transaction).await?;
            }
            Ok(updated)
        })
        .await
    }

    async fn set_assistant_version(&self, scope: &Scope, id: Uuid, version: i64) -> Result<Option<Assistant>> {
        self.bounded(async {
            let mut transaction = self.begin().await?;
            let updated = set_version(&mut transaction, scope.tenant(), id, version).await?;
            if updated.is_some() {
                self.commit(transaction).await?;
            }
            Ok(updated)
        })
        .await
    }

    async fn list_assistant_versions(
        &self,
        scope: &Scope,
        id: Uuid,
        metadata: Option<&Json>,
        page: Page,
    ) -> Result<Vec<Assistant>> {
        read!(self, async {
            let mut session = self.session().await?;
            let rows = sqlx::query(
                "SELECT assistant_id, graph_id, name, description, metadata::text AS metadata, codec, config, context,
                        version, created_at, created_at AS updated_at
                 FROM assistant_versions
                 WHERE assistant_id = $1 AND ($2::uuid IS NULL OR tenant = $2)
                   AND ($3::text IS NULL OR metadata @> $3::jsonb)
                 ORDER BY version DESC LIMIT $4 OFFSET $5",
            )
            .bind(id)
            .bind(scope.filter())
            .bind(metadata.map(encoding::metadata_text))
            .bind(page.limit)
            .bind(page.offset)
            .fetch_all(session.conn())
            .await
            .map_err(driver_error)?;
            session.finish().await?;
            rows.iter().map(assistant_from).collect::<Result<Vec<Assistant>>>()
        })
    }

    async fn delete_assistant(&self, scope: &Scope, id: Uuid) -> Result<bool> {
        self.bounded(async {
            let mut session = self.session().await?;
            let row = sqlx::query(
                "WITH gone AS (DELETE FROM assistants WHERE tenant = $1 AND assistant_id = $2 RETURNING 1),
             versions AS (DELETE FROM assistant_versions WHERE tenant = $1 AND assistant_id = $2),
             ticks AS (DELETE FROM cron_ticks WHERE cron_id IN (SELECT cron_id FROM crons
                                                                WHERE tenant = $1 AND assistant_id = $2)),
             drop_crons AS (DELETE FROM crons WHERE tenant = $1 AND assistant_id = $2)
             SELECT EXISTS (SELECT 1 FROM gone) AS gone",
            )
            .bind(scope.tenant())
            .bind(id)
            .fetch_one(session.conn())
            .await
            .map_err(driver_error)?;
            self.wrote(session).await?;
            get(&row, "gone")
        })
        .await
    }
}
