//! The state of a thread: now, at a checkpoint, through time; and changing it (contract section 3.2).

use axum::Json as Reply;
use axum::extract::State;
use axum::response::IntoResponse;
use serde_json::json;

use crate::http::auth::Caller;
use crate::http::cursor;
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::{Body, PathIds};
use crate::http::object::{Object, kind};
use crate::http::page::{DEFAULT_LIMIT, LIMITS};
use crate::http::query::Query;
use crate::http::select::StateParts;
use crate::http::{AppState, run_request};
use crate::model::{CheckpointRef, Cursor, Json, ThreadId};
use crate::runtime::{HistoryQuery, StateUpdate};

/// `GET /threads/{thread_id}/state`.
pub(super) async fn latest(State(state): State<AppState>, caller: Caller, path: PathIds, query: Query) -> ApiResult {
    let at = CheckpointRef { ns: query.one("checkpoint_ns")?.unwrap_or_default().to_owned(), ..Default::default() };
    of_query(&state, &caller, &path.thread()?, at, &query).await
}

/// `GET /threads/{thread_id}/state/{checkpoint_id}`.
pub(super) async fn at_checkpoint(
    State(state): State<AppState>,
    caller: Caller,
    path: PathIds,
    query: Query,
) -> ApiResult {
    let ns = query.one("checkpoint_ns")?.unwrap_or_default().to_owned();
    let at = CheckpointRef { ns, id: Some(path.checkpoint()?), ..Default::default() };
    of_query(&state, &caller, &path.thread()?, at, &query).await
}

async fn of_query(state: &AppState, caller: &Caller, thread: &ThreadId, at: CheckpointRef, query: &Query) -> ApiResult {
    let subgraphs = query.bool("subgraphs")?.unwrap_or(false);
    let parts = StateParts::new(query.all("select")?)?;
    let found = state.runtime.thread_state(&caller.scope, thread, &at, subgraphs).await?;
    Ok(Reply(parts.apply(&found)?).into_response())
}

/// `POST /threads/{thread_id}/state/checkpoint`: a cursor without an id is the latest.
pub(super) async fn at_cursor(
    State(state): State<AppState>,
    caller: Caller,
    path: PathIds,
    Body(mut body): Body,
) -> ApiResult {
    let thread = path.thread()?;
    let at = cursor::take(&mut body, "checkpoint")?.ok_or_else(|| body.missing("checkpoint"))?;
    let subgraphs = body.bool("subgraphs")?.unwrap_or(false);
    let parts = StateParts::of_body(&mut body)?;
    let found = state.runtime.thread_state(&caller.scope, &thread, &at, subgraphs).await?;
    Ok(Reply(parts.apply(&found)?).into_response())
}

/// `POST /threads/{thread_id}/state`.
pub(super) async fn update(
    State(state): State<AppState>,
    caller: Caller,
    path: PathIds,
    Body(mut body): Body,
) -> ApiResult {
    let thread = path.thread()?;
    let values = body.json("values").unwrap_or_default();
    if !(values.is_object() || values.is_array() || values.is_null()) {
        let got = kind(&values);
        return Err(ApiError::invalid(format!("values: expected an object, an array or null, got {got}")));
    }
    let as_node = body.string("as_node")?;
    let mut at = cursor::take(&mut body, "checkpoint")?.unwrap_or_default();
    if let Some(id) = body.uuid("checkpoint_id")? {
        at.id = Some(id.hyphenated().to_string());
    }
    let update = StateUpdate { values, command: None, as_node, at, actor: caller.actor.clone() };
    let cursor = state.runtime.update_state(&caller.scope, &thread, update).await?;
    Ok(Reply(json!({"checkpoint": cursor, "configurable": cursor, "checkpoint_id": cursor.at.id})).into_response())
}

/// Keys of a checkpoint's metadata that say where it came from.
const OWN_METADATA: [&str; 4] = ["source", "step", "parents", "graph_id"];

/// `PATCH /threads/{thread_id}/state`: merges metadata into that of the latest checkpoint.
pub(super) async fn patch(
    State(state): State<AppState>,
    caller: Caller,
    path: PathIds,
    Body(mut body): Body,
) -> ApiResult {
    let thread = path.thread()?;
    let given = run_request::metadata(&mut body, "metadata")?.ok_or_else(|| body.missing("metadata"))?;
    let mut fields = given.fields().unwrap_or_default();
    fields.retain(|key, _| !OWN_METADATA.contains(&key.as_str()));
    let merged = state.runtime.storage().update_head_metadata(&caller.scope, &thread, &Json::from(&fields)).await?;
    let id = merged.ok_or_else(|| ApiError::thread_not_found(thread.as_str()))?;
    let id =
        id.ok_or_else(|| ApiError::BadRequest(format!("Thread {thread} has no checkpoint yet: run something on it")))?;
    let cursor = Cursor { thread_id: thread, at: CheckpointRef { id: Some(id), ..CheckpointRef::default() } };
    Ok(Reply(json!({"checkpoint": cursor, "configurable": cursor, "checkpoint_id": cursor.at.id})).into_response())
}

/// `GET /threads/{thread_id}/history`.
pub(super) async fn recent_history(
    State(state): State<AppState>,
    caller: Caller,
    path: PathIds,
    query: Query,
) -> ApiResult {
    let before = query.one("before")?.map(|id| Json::from_fields([("before", &Json::from(id))]));
    let before = before.map(|body| cursor::take_or_id(&mut Object::body(&body)?, "before")).transpose()?.flatten();
    let ns = query.one("checkpoint_ns")?.unwrap_or_default().to_owned();
    let wanted = HistoryQuery {
        limit: query.integer("limit", LIMITS)?.unwrap_or(DEFAULT_LIMIT),
        before,
        metadata: None,
        checkpoint: CheckpointRef { ns, ..Default::default() },
    };
    reply(&state, &caller, &path.thread()?, &wanted, &StateParts::new(query.all("select")?)?).await
}

/// `POST /threads/{thread_id}/history`.
pub(super) async fn history(
    State(state): State<AppState>,
    caller: Caller,
    path: PathIds,
    Body(mut body): Body,
) -> ApiResult {
    let wanted = HistoryQuery {
        limit: body.integer("limit", LIMITS)?.unwrap_or(DEFAULT_LIMIT),
        before: cursor::take_or_id(&mut body, "before")?,
        metadata: body.object("metadata")?,
        checkpoint: cursor::take(&mut body, "checkpoint")?.unwrap_or_default(),
    };
    reply(&state, &caller, &path.thread()?, &wanted, &StateParts::of_body(&mut body)?).await
}

async fn reply(
    state: &AppState,
    caller: &Caller,
    thread: &ThreadId,
    wanted: &HistoryQuery,
    parts: &StateParts,
) -> ApiResult {
    let states = state.runtime.history(&caller.scope, thread, wanted).await?;
    let states: Vec<Json> = states.iter().map(|state| parts.apply(state)).collect::<ApiResult<_>>()?;
    Ok(Reply(states).into_response())
}
