//! Threads: create, read, change, delete, copy (contract section 3.2).

use axum::Json as Reply;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use serde_json::{Value, json};

use crate::http::AppState;
use crate::http::auth::{Attribution, Caller};
use crate::http::document;
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::{Body, PathIds, thread_id};
use crate::http::object::{Object, check_text};
use crate::http::query::Query;
use crate::http::run_request::metadata;
use crate::model::{CheckpointRef, Fields, Json, ThreadId, ThreadTtl, Ttl, TtlStrategy};
use crate::runtime::StateUpdate;
use crate::storage::idempotency;
use crate::storage::{NewThread, ThreadCreated, ThreadPatch};

/// The most supersteps of a new thread, and updates of one of them.
pub(in crate::http) const MAX_SUPERSTEPS: usize = 1000;
pub(in crate::http) const MAX_TTL_MINUTES: f64 = 1e9;

/// `POST /threads`.
pub(super) async fn create(State(state): State<AppState>, caller: Caller, Body(mut body): Body) -> ApiResult {
    let id = match body.string("thread_id")? {
        Some(text) => thread_id(&text)?,
        None => ThreadId::from_uuid(state.runtime.clock().new_thread_id()),
    };
    let keep_existing = body
        .choice("if_exists", &["raise", "do_nothing"], |word| match word {
            "do_nothing" => Some(true),
            "raise" => Some(false),
            _ => None,
        })?
        .unwrap_or(false);
    let ttl = ttl(&mut body)?.or(state.runtime.settings().default_ttl);
    let metadata = metadata(&mut body, "metadata")?.unwrap_or_else(Json::object);
    let graph_id = graph_id(&metadata)?;
    let by = caller.attribution(&mut body)?;
    let updates = supersteps(&mut body, &by)?;
    if !updates.is_empty() && graph_id.is_none() {
        return Err(ApiError::invalid("supersteps: metadata.graph_id must name the graph"));
    }
    let new = NewThread { id: id.clone(), graph_id, metadata, config: Json::object(), ttl };
    idempotency::leads_to(|| format!("/threads/{id}"));
    let thread = match state.runtime.storage().create_thread(&caller.scope, new).await? {
        ThreadCreated::New(thread) => thread,
        ThreadCreated::Existing(thread) if keep_existing => {
            return Ok(Reply(document::one_thread(&state.runtime, &caller, thread).await?).into_response());
        }
        ThreadCreated::Existing(_) => {
            return Err(ApiError::Conflict(format!(
                "Thread with ID {id} already exists. Send \"if_exists\": \"do_nothing\" to get it."
            )));
        }
    };
    if updates.is_empty() {
        return Ok(Reply(document::one_thread(&state.runtime, &caller, thread).await?).into_response());
    }
    if let Err(error) = state.runtime.update_state_in_bulk(&caller.scope, &id, updates).await {
        let reason = ApiError::from(error).into_info()["message"].take();
        let detail = format!("Thread {id} was created, but its supersteps failed: {reason}");
        return Ok((StatusCode::CREATED, Reply(json!({"detail": detail, "thread_id": id}))).into_response());
    }
    reply(&state, &caller, &id).await
}

/// `GET /threads/{thread_id}`, with `?include=ttl` also how long it is kept.
pub(super) async fn find(State(state): State<AppState>, caller: Caller, path: PathIds, query: Query) -> ApiResult {
    let id = path.thread()?;
    let include = query.all("include")?.unwrap_or_default();
    if let Some(other) = include.iter().find(|part| *part != "ttl") {
        let got: String = other.chars().take(64).collect();
        return Err(ApiError::invalid(format!("include: expected ttl, got '{got}'")));
    }
    if include.is_empty() {
        return reply(&state, &caller, &id).await;
    }
    let ttl = state.runtime.storage().thread_ttl(&caller.scope, &id).await?;
    let mut document = read(&state, &caller, &id).await?;
    let shown =
        ttl.map(|ttl| json!({"strategy": ttl.strategy, "ttl_minutes": minutes(&ttl), "expires_at": ttl.expires_at}));
    document.insert("ttl".to_owned(), document::json(&shown)?);
    Ok(Reply(document).into_response())
}

/// Whole minutes without a fraction.
fn minutes(ttl: &ThreadTtl) -> Value {
    let minutes = ttl.minutes();
    if minutes.fract() == 0.0 { json!(minutes as i64) } else { json!(minutes) }
}

/// `PATCH /threads/{thread_id}`.
pub(super) async fn update(
    State(state): State<AppState>,
    caller: Caller,
    path: PathIds,
    headers: HeaderMap,
    Body(mut body): Body,
) -> ApiResult {
    let id = path.thread()?;
    let ttl = ttl(&mut body)?;
    let metadata = metadata(&mut body, "metadata")?;
    let graph_id = metadata.as_ref().map(graph_id).transpose()?.flatten();
    let patch = ThreadPatch { metadata, graph_id, ttl };
    let thread = state.runtime.storage().update_thread(&caller.scope, &id, patch).await?;
    let thread = thread.ok_or_else(|| ApiError::thread_not_found(id.as_str()))?;
    if headers.get("prefer").is_some_and(|value| value.as_bytes().starts_with(b"return=minimal")) {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    Ok(Reply(document::one_thread(&state.runtime, &caller, thread).await?).into_response())
}

/// `DELETE /threads/{thread_id}`.
pub(super) async fn delete(State(state): State<AppState>, caller: Caller, path: PathIds) -> ApiResult {
    let id = path.thread()?;
    let deleted = state.runtime.storage().delete_thread(&caller.scope, &id).await?;
    deleted.ok_or_else(|| ApiError::thread_not_found(id.as_str()))?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// `POST /threads/{thread_id}/copy`.
pub(super) async fn copy(State(state): State<AppState>, caller: Caller, path: PathIds) -> ApiResult {
    let from = path.thread()?;
    let to = ThreadId::from_uuid(state.runtime.clock().new_uuid());
    idempotency::leads_to(|| format!("/threads/{to}"));
    let copied = state.runtime.storage().copy_thread(&caller.scope, &from, &to).await?;
    let copied =
        copied.ok_or_else(|| ApiError::Conflict(format!("Thread with ID {from} not found: nothing to copy")))?;
    let key = copied.key;
    if copied.head.is_none() && state.runtime.storage().is_foreign(&caller.scope, key).await? {
        return Ok(Reply(document::one_thread(&state.runtime, &caller, copied).await?).into_response());
    }
    // The answer describes the new thread alone, as the contract says: idle, no values read yet.
    Ok(Reply(document::fresh_thread(&copied)?).into_response())
}

async fn read(state: &AppState, caller: &Caller, id: &ThreadId) -> ApiResult<Fields> {
    let thread = state.runtime.storage().find_thread(&caller.scope, id).await?;
    let thread = thread.ok_or_else(|| ApiError::thread_not_found(id.as_str()))?;
    document::one_thread(&state.runtime, caller, thread).await
}

async fn reply(state: &AppState, caller: &Caller, id: &ThreadId) -> ApiResult {
    Ok(Reply(read(state, caller, id).await?).into_response())
}

/// The graph a client names in a thread's metadata.
fn graph_id(metadata: &Json) -> ApiResult<Option<String>> {
    let Some(graph_id) = metadata.get("graph_id") else { return Ok(None) };
    let Some(graph_id) = graph_id.as_str().filter(|name| !name.is_empty()) else { return Ok(None) };
    check_text("metadata.graph_id", graph_id)?;
    Ok(Some(graph_id.to_owned()))
}

/// `ttl`: `{strategy, ttl}` or a number of minutes.
pub(super) fn ttl(body: &mut Object) -> ApiResult<Option<Ttl>> {
    let (strategy, minutes) = match body.json("ttl") {
        Some(ttl) if ttl.is_object() => {
            let mut ttl = Object::body(&Json::from_fields([("ttl", &ttl)]))?.nested("ttl")?.unwrap_or_default();
            let strategy = ttl.choice("strategy", &["delete", "keep_latest"], TtlStrategy::parse)?;
            (strategy, Some(ttl.number("ttl", 0.0..=MAX_TTL_MINUTES)?.ok_or_else(|| ttl.missing("ttl"))?))
        }
        Some(ttl) => (None, Object::body(&Json::from_fields([("ttl", &ttl)]))?.number("ttl", 0.0..=MAX_TTL_MINUTES)?),
        None => (None, None),
    };
    Ok(minutes.map(|minutes| Ttl::of_minutes(strategy.unwrap_or_default(), minutes)))
}

/// The state updates of `supersteps`: a list per superstep, in order.
fn supersteps(body: &mut Object, by: &Attribution) -> ApiResult<Vec<Vec<StateUpdate>>> {
    let mut steps = Vec::new();
    for mut step in body.objects("supersteps", MAX_SUPERSTEPS)?.unwrap_or_default() {
        let mut updates = Vec::new();
        for mut update in step.objects("updates", MAX_SUPERSTEPS)?.ok_or_else(|| step.missing("updates"))? {
            updates.push(StateUpdate {
                as_node: Some(update.required_string("as_node")?),
                command: update.object("command")?,
                values: update.json("values").unwrap_or_default(),
                at: CheckpointRef::default(),
                actor: by.actor.clone(),
                reason: by.reason.clone(),
            });
        }
        if updates.is_empty() {
            return Err(ApiError::BadRequest("No updates provided".to_owned()));
        }
        steps.push(updates);
    }
    if steps.iter().map(Vec::len).sum::<usize>() > MAX_SUPERSTEPS {
        return Err(ApiError::invalid(format!("supersteps: at most {MAX_SUPERSTEPS} updates in all")));
    }
    Ok(steps)
}
