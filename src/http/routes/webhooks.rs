//! Webhooks that are under way or given up: for operators. Not part of the contract.

use axum::Json as Reply;
use axum::extract::State;
use axum::response::IntoResponse;
use serde_json::json;

use crate::http::auth::Caller;
use crate::http::error::ApiResult;
use crate::http::extract::Body;
use crate::http::object::parse_uuid;
use crate::http::query::Query;
use crate::http::{AppState, page};
use crate::storage::WebhookState;

pub(in crate::http) const STATES: [&str; 3] = ["waiting", "due", "dead"];
pub(in crate::http) const MAX_REDRIVEN: usize = 1000;

/// `GET /webhooks`: those in a state, `dead` unless it says otherwise; oldest first.
pub(super) async fn list(State(state): State<AppState>, caller: Caller, query: Query) -> ApiResult {
    let window = page::of_query(&query)?;
    let wanted = query.choice("state", &STATES, WebhookState::parse)?.unwrap_or(WebhookState::Dead);
    let storage = state.runtime.storage();
    let mut rows = storage.list_webhooks(&caller.scope, wanted, page::with_one_more(window)).await?;
    let more = page::cut(&mut rows, window);
    let rows: Vec<serde_json::Value> = rows
        .iter()
        .map(|hook| {
            json!({
                "run_id": hook.run_id, "thread_id": hook.thread_id, "url": hook.url, "state": hook.state.as_str(),
                "attempts": hook.attempts, "next_attempt_at": hook.next_attempt_at, "last_error": hook.last_error,
                "created_at": hook.created_at,
            })
        })
        .collect();
    Ok(page::reply(&rows, more, window))
}

/// `POST /webhooks/redrive`: dead ones are tried again from the first attempt: those of `run_ids`, or all.
pub(super) async fn redrive(State(state): State<AppState>, caller: Caller, Body(mut body): Body) -> ApiResult {
    let ids = body.strings("run_ids", MAX_REDRIVEN)?;
    let ids =
        ids.map(|ids| ids.iter().map(|id| parse_uuid("run ID", id)).collect::<ApiResult<Vec<_>>>()).transpose()?;
    let redriven = state.runtime.storage().redrive_webhooks(&caller.scope, ids.as_deref()).await?;
    state.runtime.wake_webhooks();
    Ok(Reply(json!({"redriven": redriven})).into_response())
}
