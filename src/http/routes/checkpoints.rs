//! The record of a thread: its checkpoints as rows, cheap to list, and one of them with its state.

use std::collections::HashMap;

use axum::Json as Reply;
use axum::extract::State;
use axum::http::HeaderValue;
use axum::response::IntoResponse;

use super::foreign;
use crate::http::AppState;
use crate::http::auth::Caller;
use crate::http::document::json;
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::PathIds;
use crate::http::page::{self, DEFAULT_LIMIT, LIMITS, X_PAGINATION_NEXT};
use crate::http::query::Query;
use crate::http::typed::Wanted;
use crate::model::{CheckpointRef, CheckpointSource, Fields, Json, Thread};
use crate::runtime::written_by;
use crate::storage::{CheckpointFilter, CheckpointRow, Page, Which};

/// `GET /threads/{thread_id}/checkpoints`: newest first. `before` continues a list: `x-pagination-next` holds its value.
pub(super) async fn list(State(state): State<AppState>, caller: Caller, path: PathIds, query: Query) -> ApiResult {
    let limit = query.integer("limit", LIMITS)?.unwrap_or(DEFAULT_LIMIT);
    let filter = CheckpointFilter {
        ns: query.one("ns")?.unwrap_or_default().to_owned(),
        before: query.one("before")?.map(str::to_owned),
        ..CheckpointFilter::default()
    };
    let thread = thread(&state, &caller, &path).await?;
    if is_foreign(&state, &caller, &thread).await? {
        return foreign::list(&state, &caller, &thread, &query, limit).await;
    }
    let found = state.runtime.storage().list_checkpoints(&caller.scope, thread.key, &filter, limit + 1).await?;
    let mut rows: Vec<CheckpointRow> = found.into_iter().map(|checkpoint| checkpoint.row).collect();
    // The extra row is read for what it says about its child; a fork's parent may be further away.
    let by_id: HashMap<String, Vec<String>> = rows.iter().map(|row| (row.id.clone(), row.next.clone())).collect();
    let more = page::cut(&mut rows, Page { limit, offset: 0 });
    let mut documents = Vec::with_capacity(rows.len());
    for row in &rows {
        let ran = match row.parent.as_ref().and_then(|parent| by_id.get(parent)) {
            Some(next) => next.clone(),
            None => next_of_parent(&state, &caller, &thread, row).await?,
        };
        documents.push(document(row, &ran)?);
    }
    let mut response = Reply(documents).into_response();
    if let Some(last) = rows.last().filter(|_| more)
        && let Ok(next) = HeaderValue::from_str(&last.id)
    {
        response.headers_mut().insert(X_PAGINATION_NEXT, next);
    }
    Ok(response)
}

/// `GET /threads/{thread_id}/checkpoints/{checkpoint_id}`: the row together with the state at it.
pub(super) async fn find(
    State(state): State<AppState>,
    caller: Caller,
    path: PathIds,
    query: Query,
    wanted: Wanted,
) -> ApiResult {
    let id = path.checkpoint()?;
    let ns = query.one("ns")?.unwrap_or_default().to_owned();
    let subgraphs = query.bool("subgraphs")?.unwrap_or(false);
    // As it came: ids of others are not folded.
    let given = path.text("checkpoint_id")?;
    if foreign::is_asked_for(given, wanted) {
        return foreign::find(&state, &caller, &path.thread()?, &ns, given, wanted).await;
    }
    let thread = thread(&state, &caller, &path).await?;
    if is_foreign(&state, &caller, &thread).await? {
        return foreign::find(&state, &caller, &thread.id, &ns, given, wanted).await;
    }
    let storage = state.runtime.storage();
    let found = storage.load_checkpoint(&caller.scope, thread.key, &ns, &Which::Id(id.clone())).await?;
    let Some(found) = found else {
        return Err(ApiError::NotFound(format!(
            "Checkpoint {} not found. GET /threads/{}/checkpoints lists those there are.",
            id.escape_default(),
            thread.id
        )));
    };
    let at = CheckpointRef { ns, id: Some(id), ..CheckpointRef::default() };
    let whole = state.runtime.thread_state(&caller.scope, &thread.id, &at, subgraphs).await?;
    let mut fields = json(&whole)?.fields().unwrap_or_default();
    let ran = next_of_parent(&state, &caller, &thread, &found.row).await?;
    fields.extend(document(&found.row, &ran)?.into_iter().filter(|(key, _)| key != "next" && key != "created_at"));
    Ok(Reply(fields).into_response())
}

/// Whether its checkpoints come from elsewhere. A thread with a head has its own.
async fn is_foreign(state: &AppState, caller: &Caller, thread: &Thread) -> ApiResult<bool> {
    Ok(thread.head.is_none() && state.runtime.storage().is_foreign(&caller.scope, thread.key).await?)
}

async fn thread(state: &AppState, caller: &Caller, path: &PathIds) -> ApiResult<Thread> {
    let id = path.thread()?;
    let thread = state.runtime.storage().find_thread(&caller.scope, &id).await?;
    thread.ok_or_else(|| ApiError::thread_not_found(id.as_str()))
}

/// The nodes that were next at the parent: those that ran.
async fn next_of_parent(
    state: &AppState,
    caller: &Caller,
    thread: &Thread,
    row: &CheckpointRow,
) -> ApiResult<Vec<String>> {
    let Some(parent) = row.parent.clone().filter(|_| row.source == CheckpointSource::Loop) else {
        return Ok(Vec::new());
    };
    let storage = state.runtime.storage();
    let parent = storage.load_checkpoint(&caller.scope, thread.key, &row.ns, &Which::Id(parent)).await?;
    Ok(parent.map(|parent| parent.row.next).unwrap_or_default())
}

fn document(row: &CheckpointRow, ran: &[String]) -> ApiResult<Fields> {
    let written_by = written_by(row)?;
    let ran = if row.source == CheckpointSource::Loop { ran } else { &[] };
    Ok(Fields::from_iter([
        ("checkpoint_id".to_owned(), Json::from(row.id.as_str())),
        ("checkpoint_ns".to_owned(), Json::from(row.ns.as_str())),
        ("parent_checkpoint_id".to_owned(), json(&row.parent)?),
        ("run_id".to_owned(), json(&row.run_id)?),
        ("step".to_owned(), Json::from(row.step)),
        ("source".to_owned(), Json::from(row.source.as_str())),
        ("nodes".to_owned(), json(ran)?),
        ("next".to_owned(), json(&row.next)?),
        ("graph_version".to_owned(), json(&written_by.as_ref().map(|by| &by.version))?),
        ("topology".to_owned(), json(&written_by.as_ref().map(|by| &by.topology))?),
        ("bytes".to_owned(), Json::from(row.bytes)),
        ("created_at".to_owned(), json(&row.at)?),
    ]))
}
