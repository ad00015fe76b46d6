//! Sessions: threads as a whole. Ending, archiving and reopening them.

use axum::Json as Reply;
use axum::extract::State;
use axum::response::IntoResponse;

use super::threads::ttl;
use crate::http::AppState;
use crate::http::auth::Caller;
use crate::http::document;
use crate::http::error::{ApiError, ApiResult};
use crate::http::extract::{Body, PathIds};
use crate::http::object::Object;
use crate::model::ClosedAs;
use crate::storage::Close;

/// `POST /threads/{thread_id}/end`: no further runs.
pub(super) async fn end(State(state): State<AppState>, caller: Caller, path: PathIds, Body(body): Body) -> ApiResult {
    close(&state, &caller, &path, body, ClosedAs::Ended).await
}

/// `POST /threads/{thread_id}/archive`: as `end`, and lists leave it out.
pub(super) async fn archive(
    State(state): State<AppState>,
    caller: Caller,
    path: PathIds,
    Body(body): Body,
) -> ApiResult {
    close(&state, &caller, &path, body, ClosedAs::Archived).await
}

async fn close(state: &AppState, caller: &Caller, path: &PathIds, mut body: Object, how: ClosedAs) -> ApiResult {
    let id = path.thread()?;
    let by = caller.attribution(&mut body)?;
    let cancels = body.choice("if_active", &["cancel", "reject"], |word| match word {
        "cancel" => Some(true),
        "reject" => Some(false),
        _ => None,
    })?;
    let close =
        Close { how, actor: by.actor, reason: by.reason, ttl: ttl(&mut body)?, cancels: cancels.unwrap_or(true) };
    let thread = state.runtime.close_thread(&caller.scope, &id, &close).await?;
    Ok(Reply(document::one_thread(&state.runtime, caller, thread).await?).into_response())
}

/// `POST /threads/{thread_id}/reopen`: takes back `end` and `archive`.
pub(super) async fn reopen(State(state): State<AppState>, caller: Caller, path: PathIds, _: Body) -> ApiResult {
    let id = path.thread()?;
    let thread = state.runtime.storage().reopen_thread(&caller.scope, &id).await?;
    let thread = thread.ok_or_else(|| ApiError::thread_not_found(id.as_str()))?;
    Ok(Reply(document::one_thread(&state.runtime, &caller, thread).await?).into_response())
}
